//! `bothways demo`, from end to end.

use std::time::{Duration, Instant};

use crate::support::{Running, bothways, http, run};

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

/// The page of `--web` and all that it loads are there, with a policy; `js/test/demo.test.mjs` opens it in a browser.
#[test]
fn the_web_demo_serves_its_page() {
    let demo = Running::start(bothways(&["demo", "--web=0"]));
    let line = demo.out.until("open http://");
    let address = line.split("http://").nth(1).and_then(|rest| rest.split('/').next()).expect("an address").to_owned();
    let get = |path: &str, host: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        http(&address, &request, "the end, which it does not say")
    };
    let page = get("/", &address);
    assert!(
        page.starts_with("HTTP/1.1 200 OK") && page.contains("Content-Security-Policy: default-src 'none'"),
        "{page}"
    );
    let loads = page.split('"').filter(|part| part.starts_with('/') && part.contains('.'));
    let mut loaded = vec!["/bothways.js"];
    loaded.extend(loads);
    assert!(loaded.contains(&"/demo.js") && loaded.contains(&"/demo.css"), "{loaded:?}");
    for path in loaded {
        assert!(get(path, "localhost").starts_with("HTTP/1.1 200 OK"), "{path}");
    }
    assert!(get("/", "evil.example").starts_with("HTTP/1.1 421 "));
}
