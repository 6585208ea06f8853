//! What a storm does to servers and clients, and when: drawn from a seed beforehand, so that it can be had again.

use std::{fmt, time::Duration};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

/// A seed of its own for each thing that draws.
pub(crate) fn draws(seed: u64, of: u64) -> StdRng {
    StdRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(of))
}

/// What is done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Blow {
    /// The node is killed, and another one starts in its place after this time.
    Kill(usize, Duration),
    /// It stands still for this time.
    Pause(usize, Duration),
    /// It is cut off from the engine for this time.
    Cut(usize, Duration),
    /// It drains, and another one starts in its place.
    Drain(usize),
    /// The engine, or this server of it, is gone for this time.
    EngineGone(usize, Duration),
    /// The engine, or this server of it, stands still for this time.
    EngineStands(usize, Duration),
    /// Something else, of this number, for this time.
    Other(usize, Duration),
    /// A client loses its connection, and comes back at once, to any node.
    Moves(usize),
    /// A client is away for this time.
    Leaves(usize, Duration),
}

impl fmt::Display for Blow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(node, time) => write!(f, "node {node} is killed, and back after {time:?}"),
            Self::Pause(node, time) => write!(f, "node {node} stands still for {time:?}"),
            Self::Cut(node, time) => write!(f, "node {node} is cut off for {time:?}"),
            Self::Drain(node) => write!(f, "node {node} drains"),
            Self::EngineGone(server, time) => write!(f, "server {server} of the engine is gone for {time:?}"),
            Self::EngineStands(server, time) => write!(f, "server {server} of the engine stands still for {time:?}"),
            Self::Other(what, time) => write!(f, "fault {what} for {time:?}"),
            Self::Moves(client) => write!(f, "client {client} moves"),
            Self::Leaves(client, time) => write!(f, "client {client} is away for {time:?}"),
        }
    }
}

/// How often what is done, against each other, and how long it may take.
#[derive(Clone, Debug)]
pub(crate) struct Weather {
    pub(crate) nodes: usize,
    pub(crate) engines: usize,
    pub(crate) clients: usize,
    pub(crate) others: usize,
    pub(crate) length: Duration,
    /// Between one blow and the next, on average.
    pub(crate) gap: Duration,
    /// Kill, pause, cut, drain, engine gone, engine stands, other, moves, leaves.
    pub(crate) weights: [u32; 9],
    /// The longest pause or cut; the shortest is a hundredth of it.
    pub(crate) pause_max: Duration,
    /// The same of the engine.
    pub(crate) engine_max: Duration,
    /// Between two blows to the engine: it elects its leaders in between.
    pub(crate) engine_rests: Duration,
}

/// The blows, in the order of their times. One node at least is left alone at any time, and of the servers of the engine only
/// one is hit at a time.
pub(crate) fn plan(seed: u64, weather: &Weather) -> Vec<(Duration, Blow)> {
    let mut rng = draws(seed, 0);
    let mut free_from = vec![Duration::ZERO; weather.nodes];
    let mut engine_free_from = Duration::ZERO;
    let (mut now, mut plan) = (Duration::ZERO, Vec::new());
    let all: u32 = weather.weights.iter().sum();
    loop {
        now += weather.gap.mul_f64(rng.random_range(0.1..1.9));
        if weather.length < now {
            return plan;
        }
        let mut drawn = rng.random_range(0..all);
        let kind = weather.weights.iter().position(|weight| match drawn.checked_sub(*weight) {
            Some(left) => {
                drawn = left;
                false
            }
            None => true,
        });
        let long = |rng: &mut StdRng, most: Duration| most.mul_f64(10_f64.powf(rng.random_range(-2.0..0.0)));
        let blow = match kind.unwrap_or_default() {
            kind @ 0..4 => {
                let free: Vec<usize> = (0..weather.nodes).filter(|node| free_from[*node] <= now).collect();
                if free.len() < 2 {
                    continue;
                }
                let node = free[rng.random_range(0..free.len())];
                let time = long(&mut rng, weather.pause_max);
                // What drains or starts needs a while beside.
                free_from[node] = now + time + Duration::from_secs(if kind == 3 { 10 } else { 3 });
                match kind {
                    0 => Blow::Kill(node, time),
                    1 => Blow::Pause(node, time),
                    2 => Blow::Cut(node, time),
                    _ => Blow::Drain(node),
                }
            }
            kind @ 4..6 => {
                if now < engine_free_from {
                    continue;
                }
                let server = rng.random_range(0..weather.engines);
                let time = long(&mut rng, weather.engine_max);
                engine_free_from = now + time + weather.engine_rests;
                if kind == 4 { Blow::EngineGone(server, time) } else { Blow::EngineStands(server, time) }
            }
            6 => Blow::Other(rng.random_range(0..weather.others), long(&mut rng, weather.engine_max)),
            7 => Blow::Moves(rng.random_range(0..weather.clients)),
            _ => Blow::Leaves(rng.random_range(0..weather.clients), long(&mut rng, weather.pause_max)),
        };
        plan.push((now, blow));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weather() -> Weather {
        Weather {
            nodes: 3,
            engines: 3,
            clients: 20,
            others: 5,
            length: Duration::from_secs(1000),
            gap: Duration::from_secs(1),
            weights: [1; 9],
            pause_max: Duration::from_secs(20),
            engine_max: Duration::from_secs(8),
            engine_rests: Duration::from_secs(10),
        }
    }

    #[test]
    fn a_seed_is_one_storm() {
        assert_eq!(plan(7, &weather()), plan(7, &weather()));
        assert_ne!(plan(7, &weather()), plan(8, &weather()));
    }

    #[test]
    fn one_node_is_left_alone() {
        for seed in 0..50 {
            let plan = plan(seed, &weather());
            let mut hurt: Vec<(usize, Duration)> = Vec::new();
            for (at, blow) in &plan {
                hurt.retain(|(_, until)| at < until);
                if let Blow::Kill(node, time) | Blow::Pause(node, time) | Blow::Cut(node, time) = blow {
                    assert!(hurt.iter().all(|(other, _)| other != node), "{node} is hurt already");
                    hurt.push((*node, *at + *time));
                }
                assert!(hurt.len() < 3, "{plan:?}");
            }
            let kinds: std::collections::BTreeSet<_> =
                plan.iter().map(|(_, blow)| std::mem::discriminant(blow)).map(|kind| format!("{kind:?}")).collect();
            assert_eq!(kinds.len(), 9, "each kind happens");
        }
    }
}
