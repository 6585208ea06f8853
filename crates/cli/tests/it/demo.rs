//! `bothways demo`, from end to end.

use std::time::{Duration, Instant};

use crate::support::run;

#[test]
fn the_demo_shows_everything_and_ends_by_itself() {
    let began = Instant::now();
    let ran = run(&["demo", "--seconds", "1"]);
    let out = ran.ended(0);
    for part in [
        "Arith.Mul 10 * 20 = 200",
        "pushes \"abcde\" to client 1",
        "3 of 3 have it",
        "calls a client",
        "comes back by itself",
        "were refused and counted",
        "gave the staller up",
        "said goodbye to all 3",
        "All 12 steps happened",
    ] {
        assert!(out.contains(part), "`{part}` is not in\n{out}");
    }
    assert!(out.lines().all(|line| line.chars().count() <= 80), "it has room in 80 columns:\n{out}");
    assert!(!out.contains('\u{1b}') && ran.err.is_empty(), "{ran:?}");
    assert!(began.elapsed() < Duration::from_secs(30));
}

#[test]
fn the_demo_works_with_many_clients() {
    let ran = run(&["demo", "--clients", "20", "--seconds", "1"]);
    assert!(ran.ended(0).contains("20 of 20 have it"), "{ran:?}");
}
