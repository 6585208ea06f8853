//! Publishing to the sessions of a topic, and to the subscribers of other servers.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;

use super::{
    ask::load_cpu,
    kinds::{Kind, Running, Tools},
    report::Figure,
};
use crate::{
    contract::{BroadcastArgs, Promise, PublishArgs, Published},
    load::{CENTRIFUGO, Load, Measured, NATS, PLAIN, Paced, SESSION, WS, WS_SESSION, Wire, paced},
};

/// The pace of the other calls.
const CALL_EVERY: Duration = Duration::from_millis(1);

/// Events that a session keeps. Until so many messages have come to it, its event log takes more memory with them.
const EVENTS_KEPT: usize = 64;

/// The clients of a topic, and what is published to them.
#[derive(Clone, Copy)]
pub(super) struct Publishing {
    /// Connected clients.
    pub(super) clients: usize,
    /// What one request publishes. `promises` replaces its promise.
    pub(super) args: PublishArgs,
    /// Requests that are measured. Others come before them, which allocate what these reuse.
    pub(super) repeats: usize,
    /// Each is measured with a new server.
    pub(super) promises: &'static [Promise],
}

impl Publishing {
    /// Measures the server's CPU time for a delivery, and deliveries in a second. Other kinds have one promise only: they
    /// are measured again for each of ours.
    pub(super) fn measure(self, kind: Kind, tools: &Tools) -> anyhow::Result<Vec<Figure>> {
        let measured = self.promises.iter().map(|&promise| anyhow::Ok((promise, self.of(promise, kind, tools)?)));
        let measured = measured.collect::<anyhow::Result<Vec<_>>>()?;
        let figures = |at: usize, value: fn(&Measured) -> f64| {
            measured.iter().map(move |(promise, of)| Figure::new(metrics(*promise)[at], value(of))).collect::<Vec<_>>()
        };
        let cpu = figures(0, |of| of.server_cpu_nanos_each() / 1e3);
        let per_second = figures(1, Measured::per_second);
        let latency = figures(2, |of| of.latency.value_at_quantile(0.5) as f64 / 1e3);
        let most_load = measured.iter().map(|(_, of)| load_cpu(of)).fold(0.0, f64::max);
        Ok(match self.args.every.is_zero() {
            true => [cpu, per_second, vec![Figure::new("load CPU, %", most_load)]].concat(),
            // The pace is given, so deliveries in a second say nothing.
            false if self.clients == 1 => [latency, cpu].concat(),
            false => [cpu, latency].concat(),
        })
    }

    fn of(self, promise: Promise, kind: Kind, tools: &Tools) -> anyhow::Result<Measured> {
        let server = tools.serve(kind)?;
        let mut topic = self.subscribe(promise, kind, tools, &server)?;
        for _ in 0..EVENTS_KEPT.div_ceil(self.args.count.max(1)) {
            self.publish(promise, kind, &mut topic)?;
        }
        let mut sum = self.publish(promise, kind, &mut topic)?;
        for _ in 1..self.repeats {
            sum.add(&self.publish(promise, kind, &mut topic)?);
        }
        Ok(sum)
    }

    fn subscribe(self, promise: Promise, kind: Kind, tools: &Tools, server: &Running) -> anyhow::Result<Load> {
        let connect =
            |wire| Load::connect_by(wire, server.process(), &server.address, self.clients, tools.load_threads);
        match (kind, broadcasts(kind)) {
            // They enter in their handshake.
            (Kind::Ws, _) => return connect(&WS),
            (Kind::Broadcast | Kind::Limit, Some(wire)) => {
                let mut load = connect(wire)?;
                load.join_all()?;
                return Ok(load);
            }
            (_, Some(wire)) => return connect(wire),
            (_, None) => {}
        }
        let enter = |wire, clients| {
            let mut load = Load::connect_by(wire, server.process(), &server.address, clients, tools.load_threads)?;
            load.enter_all(promise.topic())?;
            anyhow::Ok(load)
        };
        // These connections end at once, and their sessions stay.
        drop(enter(&SESSION, self.args.away)?);
        enter(if promise == Promise::Fire { &PLAIN } else { &SESSION }, self.clients)
    }

    /// Publishes once, and checks the receipts.
    fn publish(self, promise: Promise, kind: Kind, topic: &mut Load) -> anyhow::Result<Measured> {
        let PublishArgs { count, size, every, .. } = self.args;
        if broadcasts(kind).is_some() {
            return match every.is_zero() {
                true => topic.broadcast(BroadcastArgs { count, size }, true),
                false => self.broadcast_at_pace(topic),
            };
        }
        let args = PublishArgs { promise, ..self.args };
        let (measured, published) = topic.publish(args)?;
        let Published { written, handled, waiting, dropped_full, .. } = published;
        let [here, away] = [self.clients, args.away].map(|clients| (clients * count) as u64);
        let is_true = match promise {
            Promise::Fire => (written, handled, dropped_full) == (here, 0, 0),
            _ => (written, handled, dropped_full, waiting) == (0, here, 0, away),
        };
        ensure!(is_true, "for {here} pushes to clients, and {away} to those away, receipts say {published:?}");
        Ok(measured)
    }

    /// The same by servers that know no pace: each message is asked for when it is due.
    fn broadcast_at_pace(self, topic: &mut Load) -> anyhow::Result<Measured> {
        let PublishArgs { count, size, every, .. } = self.args;
        let mut due = Instant::now();
        let mut one = || {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            due += every;
            topic.broadcast(BroadcastArgs { count: 1, size }, true)
        };
        let mut sum = one()?;
        for _ in 1..count {
            sum.add(&one()?);
        }
        Ok(sum)
    }

    /// Measures other calls at an even pace, first alone and then while the server publishes.
    pub(super) fn beside_calls(self, kind: Kind, tools: &Tools, time: Duration) -> anyhow::Result<Vec<Figure>> {
        let server = tools.serve(kind)?;
        let mut topic = self.subscribe(Promise::Fire, kind, tools, &server)?;
        // Not counted: it warms up what the later ones find ready.
        self.publish(Promise::Fire, kind, &mut topic)?;

        let mut calls = |publishes: bool| {
            let (address, begin) = (server.address.clone(), Instant::now());
            let end = begin + time;
            let calls = thread::spawn(move || paced(Paced::Calls, &address, begin, end, CALL_EVERY));
            let mut sum: Option<Measured> = None;
            while publishes && Instant::now() < end {
                let measured = self.publish(Promise::Fire, kind, &mut topic)?;
                match &mut sum {
                    Some(sum) => sum.add(&measured),
                    None => sum = Some(measured),
                }
            }
            anyhow::Ok((calls.join().expect("a thread of the load does not panic")?, sum))
        };

        let (without, _) = calls(false)?;
        let (with, published) = calls(true)?;
        let micros = |of: &hdrhistogram::Histogram<u64>, quantile| of.value_at_quantile(quantile) as f64 / 1e3;
        Ok(vec![
            Figure::new("p99 µs of calls", micros(&with, 0.99)),
            Figure::new("p50 µs of calls", micros(&with, 0.5)),
            Figure::new("p99 µs without publishing", micros(&without, 0.99)),
            Figure::new("p50 µs without publishing", micros(&without, 0.5)),
            Figure::new("deliveries/s", published.as_ref().map_or(0.0, Measured::per_second)),
        ])
    }
}

/// The protocol of a kind that publishes by a broadcast to all its clients.
fn broadcasts(kind: Kind) -> Option<&'static Wire> {
    match kind {
        Kind::Nats => Some(&NATS),
        Kind::Centrifugo => Some(&CENTRIFUGO),
        Kind::Broadcast | Kind::Limit => Some(&PLAIN),
        _ => None,
    }
}

/// The protocol of a kind whose clients subscribe in their handshake.
pub(super) fn subscribes(kind: Kind) -> Option<&'static Wire> {
    match kind {
        Kind::Nats => Some(&NATS),
        Kind::Centrifugo => Some(&CENTRIFUGO),
        Kind::Ws => Some(&WS_SESSION),
        _ => None,
    }
}

/// Names of the figures of a promise.
fn metrics(promise: Promise) -> [&'static str; 3] {
    match promise {
        Promise::Fire => ["Fire, CPU µs/delivery", "Fire, deliveries/s", "Fire, p50 µs"],
        Promise::Tracked => ["Tracked, CPU µs/delivery", "Tracked, deliveries/s", "Tracked, p50 µs"],
        Promise::History => ["history, CPU µs/delivery", "history, deliveries/s", "history, p50 µs"],
    }
}
