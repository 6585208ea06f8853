//! Storms over many nodes in one process, over the engine in memory, in virtual time: nodes are killed, stopped, cut off and
//! drained, mail and register fail, clients move, while one node pushes. At the end the sum is exact.
//!
//! `BOTHWAYS_STORM=full` has larger ones, and `BOTHWAYS_STORM_SEED` names one seed.

mod accounts;
mod memory;
mod schedule;

use std::time::Duration;

use bothways::testing;

use self::{
    accounts::Sum,
    memory::Storm,
    schedule::{Weather, plan},
};

const CLIENTS: usize = 24;

/// How many storms there are of each kind, how many pushes each has, and how long it takes.
fn size() -> (u64, usize, Duration) {
    match std::env::var("BOTHWAYS_STORM").as_deref() {
        Ok("full") => (20, 5_000, Duration::from_secs(400)),
        _ => (3, 1_000, Duration::from_secs(90)),
    }
}

/// Those of CI, or the one that is asked for.
fn seeds(count: u64) -> std::ops::RangeInclusive<u64> {
    let asked = std::env::var("BOTHWAYS_STORM_SEED").ok();
    asked.map_or(1..=count, |seed| {
        let seed = seed.parse().expect("a number");
        seed..=seed
    })
}

/// Kill, pause, cut, drain, engine gone, engine stands, other, moves, leaves.
fn weather(weights: [u32; 9]) -> Weather {
    Weather {
        nodes: memory::NODES,
        engines: 1,
        clients: CLIENTS,
        others: memory::OTHERS,
        length: size().2,
        gap: Duration::from_millis(700),
        weights,
        pause_max: Duration::from_secs(25),
        engine_max: Duration::from_secs(9),
        engine_rests: Duration::from_secs(5),
    }
}

fn storms(name: &str, weights: [u32; 9]) -> Vec<Sum> {
    let (count, pushes, _) = size();
    seeds(count)
        .map(|seed| {
            println!("{name}, seed {seed}");
            let weather = weather(weights);
            let sum = testing::run(async {
                Storm::begin(seed, CLIENTS).await.blow(plan(seed, &weather), &weather, pushes).await.settle()
            });
            println!("{sum:?}");
            assert_eq!(sum.pushes, pushes);
            sum
        })
        .collect()
}

/// Most targets ended as handled: a storm in which nobody knows anything proves nothing.
fn most_are_handled(sums: &[Sum], least: f64) {
    for sum in sums {
        let targets = sum.handled + sum.unknown + sum.dropped;
        assert!(least * targets as f64 <= sum.handled as f64, "{sum:?}");
    }
}

/// Clients that move and leave, and mail that is lost: nothing of it may cost a session.
#[test]
fn clients_move() {
    let sums = storms("clients move", [0, 0, 0, 0, 0, 0, 1, 10, 3]);
    most_are_handled(&sums, 0.99);
    assert!(sums.iter().all(|sum| sum.sessions_lost == 0), "{sums:?}");
}

/// The mail or the register is gone for a while, or stands still.
#[test]
fn the_engine_fails() {
    let sums = storms("the engine fails", [0, 0, 0, 0, 2, 2, 2, 6, 2]);
    most_are_handled(&sums, 0.9);
}

/// Nodes are stopped and cut off, also for longer than their lease.
#[test]
fn nodes_stand_still() {
    let sums = storms("nodes stand still", [0, 3, 3, 0, 0, 0, 1, 6, 2]);
    most_are_handled(&sums, 0.7);
}

/// Nodes are killed, and others start in their places.
#[test]
fn nodes_are_killed() {
    let sums = storms("nodes are killed", [1, 0, 0, 0, 0, 0, 2, 12, 4]);
    most_are_handled(&sums, 0.7);
}

/// Nodes drain, one after another.
#[test]
fn nodes_drain() {
    let sums = storms("nodes drain", [0, 0, 0, 2, 0, 0, 1, 6, 2]);
    most_are_handled(&sums, 0.5);
    assert!(sums.iter().all(|sum| sum.sessions_lost == 0), "{sums:?}");
}

/// All of it.
#[test]
fn everything_fails() {
    let sums = storms("everything fails", [1, 1, 1, 1, 1, 1, 2, 6, 2]);
    most_are_handled(&sums, 0.5);
}
