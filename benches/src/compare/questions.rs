//! What is asked. A question is a load, the kinds it is put to, and the figures it gives: the first of
//! them is the answer, the others explain it.

use std::{thread, time::Duration};

use anyhow::{Context, ensure};

use super::{
    kinds::{Kind, PairWork, Running, Tools},
    report::Figure,
};
use crate::{
    contract::BroadcastArgs,
    load::{ClosedLoop, Load, Measured, Stalled},
    pair::Shape,
};

/// Payload of a call, unless the question is about another: a usual message of rpcx's own benchmarks.
const PAYLOAD_BYTES: usize = 581;

/// Time for a server to come to rest before its memory is looked at.
const REST: Duration = Duration::from_secs(3);

pub(super) struct Question {
    pub(super) name: &'static str,
    pub(super) title: String,
    pub(super) kinds: Vec<Kind>,
    ask: Ask,
    times: Times,
}

#[derive(Clone, Copy)]
struct Times {
    warm_up: Duration,
    measure: Duration,
}

enum Ask {
    Calls { connections: usize, in_flight: usize },
    Broadcast { clients: usize, args: BroadcastArgs, repeats: usize },
    Stalled { readers: usize, stalled: usize, args: BroadcastArgs },
    Idle { clients: usize },
    Pair { connections: usize, in_flight: usize, shape: Shape },
}

/// All questions; with `quick` the same ones on a small scale.
pub(super) fn questions(quick: bool) -> Vec<Question> {
    let millis =
        |warm_up, measure| Times { warm_up: Duration::from_millis(warm_up), measure: Duration::from_millis(measure) };
    let times = if quick { millis(50, 200) } else { millis(500, 3_000) };
    let scale = |all: usize, few: usize| if quick { few } else { all };
    let servers = || vec![Kind::Ours, Kind::Go, Kind::Limit];
    let pairs = || vec![Kind::Ours, Kind::Tonic, Kind::Tarpc, Kind::Jsonrpsee];
    let question = |name, title, kinds, ask| Question { name, title, kinds, ask, times };

    let mut questions = Vec::new();
    for (name, connections, in_flight) in [("calls-64x1", 64, 1), ("calls-64x16", 64, 16), ("calls-1x1", 1, 1)] {
        let title = format!("calls: {connections} connections × {in_flight} in flight, {PAYLOAD_BYTES} bytes");
        questions.push(question(name, title, servers(), Ask::Calls { connections, in_flight }));
    }
    for (name, clients, count, repeats) in
        [("broadcast-1k", scale(1_000, 100), 200, scale(5, 1)), ("broadcast-10k", scale(10_000, 500), 1, scale(20, 2))]
    {
        let args = BroadcastArgs { count, size: 128 };
        let title = format!("broadcast: {count} × 128 bytes to {clients} clients");
        questions.push(question(name, title, servers(), Ask::Broadcast { clients, args, repeats }));
    }
    let args = BroadcastArgs { count: scale(1_000, 100), size: 16 << 10 };
    let (readers, stalled) = (scale(90, 18), scale(10, 2));
    let title = format!(
        "broadcast: {} × 16 KiB to {readers} clients that read, without and with {stalled} that never do",
        args.count
    );
    questions.push(question("stalled", title, servers(), Ask::Stalled { readers, stalled, args }));
    let clients = scale(10_000, 500);
    let title = format!("memory: {clients} idle clients after one call each");
    questions.push(question("idle", title, servers(), Ask::Idle { clients }));
    for (name, in_flight, shape) in [
        ("pair-64x16-raw", 16, Shape::Raw),
        ("pair-64x16-record", 16, Shape::Record),
        ("pair-64x1-raw", 1, Shape::Raw),
        ("pair-64x1-record", 1, Shape::Record),
    ] {
        let what = match shape {
            Shape::Raw => "bytes, or the nearest to them",
            Shape::Record => "a record in the usual codec of each",
        };
        let title = format!("client and server of one kind: 64 connections × {in_flight} in flight, 581 bytes, {what}");
        questions.push(question(name, title, pairs(), Ask::Pair { connections: 64, in_flight, shape }));
    }
    questions
}

impl Question {
    /// Asks one kind once: a new server, a new load.
    pub(super) fn put_to(&self, kind: Kind, tools: &Tools) -> anyhow::Result<Vec<Figure>> {
        let files = self.files();
        let limit = open_files_max().unwrap_or(usize::MAX);
        ensure!(files <= limit, "it takes {files} open files, and {limit} are allowed (ulimit -n)");
        let server = tools.serve(kind)?;
        let connect =
            |server: &Running, clients| Load::connect(server.process(), &server.address, clients, tools.load_threads);
        match self.ask {
            Ask::Calls { connections, in_flight } => {
                let Times { warm_up, measure } = self.times;
                let work = ClosedLoop { in_flight, payload_bytes: PAYLOAD_BYTES, warm_up, measure };
                let mut figures = calls(&connect(&server, connections)?.closed_loop(work)?);
                if connections * in_flight == 1 {
                    // One call at a time: the question is how long it takes.
                    figures.swap(0, 1);
                }
                Ok(figures)
            }
            Ask::Broadcast { clients, args, repeats } => {
                let mut load = connect(&server, clients)?;
                load.join_all()?;
                // The first is not counted: it takes the memory that later ones find.
                load.broadcast(args, true)?;
                let mut sum: Option<Measured> = None;
                for _ in 0..repeats {
                    let measured = load.broadcast(args, true)?;
                    match &mut sum {
                        None => sum = Some(measured),
                        Some(sum) => sum.add(&measured),
                    }
                }
                Ok(pushes(&sum.context("a broadcast is done at least once")?))
            }
            Ask::Stalled { readers, stalled, args } => {
                let broadcast = |server: &Running, stalled| {
                    let mut load = connect(server, readers)?;
                    load.join_all()?;
                    let before = server.process().resident_bytes()?;
                    let stalled = Stalled::connect(&server.address, stalled)?;
                    let measured = load.broadcast(args, stalled.is_empty())?;
                    anyhow::Ok((measured, server.process().resident_bytes()?.saturating_sub(before)))
                };
                let (without, _) = broadcast(&server, 0)?;
                let (with, more_bytes) = broadcast(&tools.serve(kind)?, stalled)?;
                // By the clock in the push, which each server reads at another moment: only the ratio between
                // the two runs of one server compares.
                let p99 = |measured: &Measured| measured.latency.value_at_quantile(0.99) as f64 / 1e6;
                Ok(vec![
                    Figure::new("p99 with ÷ without", p99(&with) / p99(&without)),
                    Figure::new("own p99 without, ms", p99(&without)),
                    Figure::new("own p99 with, ms", p99(&with)),
                    Figure::new("pushes/s without", without.per_second()),
                    Figure::new("pushes/s with", with.per_second()),
                    Figure::new("memory with, MiB", more_bytes as f64 / f64::from(1 << 20)),
                ])
            }
            Ask::Idle { clients } => {
                let before = server.process().resident_bytes()?;
                let mut load = connect(&server, clients)?;
                load.call_each(PAYLOAD_BYTES)?;
                thread::sleep(REST);
                let bytes = server.process().resident_bytes()?.saturating_sub(before);
                let cpu = server.process().cpu()?;
                thread::sleep(REST);
                let cpu = server.process().cpu()? - cpu;
                Ok(vec![
                    Figure::new("bytes/client", bytes as f64 / clients as f64),
                    Figure::new("idle CPU, %", 100.0 * cpu.as_secs_f64() / REST.as_secs_f64()),
                ])
            }
            Ask::Pair { connections, in_flight, shape } => {
                let (warm_up_ms, measure_ms) =
                    (self.times.warm_up.as_millis() as u64, self.times.measure.as_millis() as u64);
                let payload_bytes = PAYLOAD_BYTES;
                let work = PairWork { connections, in_flight, payload_bytes, shape, warm_up_ms, measure_ms };
                let measured = tools.call(kind, &server, &work)?;
                let report = measured.report;
                Ok(vec![
                    Figure::new("calls/s", report.calls as f64 / report.seconds),
                    Figure::new("p50 µs", report.p50_ns as f64 / 1e3),
                    Figure::new("p99 µs", report.p99_ns as f64 / 1e3),
                    Figure::new("CPU µs/call, both", measured.cpu.as_nanos() as f64 / 1e3 / report.calls as f64),
                ])
            }
        }
    }

    /// Files that one process opens, roughly.
    fn files(&self) -> usize {
        const OTHERS: usize = 64;
        OTHERS
            + match self.ask {
                Ask::Calls { connections, .. } | Ask::Pair { connections, .. } => connections,
                Ask::Broadcast { clients, .. } | Ask::Idle { clients } => clients,
                Ask::Stalled { readers, stalled, .. } => readers + stalled,
            }
    }
}

fn calls(measured: &Measured) -> Vec<Figure> {
    vec![
        Figure::new("calls/s", measured.per_second()),
        Figure::new("p50 µs", measured.latency.value_at_quantile(0.5) as f64 / 1e3),
        Figure::new("p99 µs", measured.latency.value_at_quantile(0.99) as f64 / 1e3),
        Figure::new("CPU µs/call", measured.server_cpu_nanos_each() / 1e3),
        Figure::new("load CPU, %", load_cpu(measured)),
    ]
}

fn pushes(measured: &Measured) -> Vec<Figure> {
    vec![
        Figure::new("pushes/s", measured.per_second()),
        Figure::new("p50 ms since asked", measured.since_asked.value_at_quantile(0.5) as f64 / 1e6),
        Figure::new("p99 ms since asked", measured.since_asked.value_at_quantile(0.99) as f64 / 1e6),
        Figure::new("CPU µs/push", measured.server_cpu_nanos_each() / 1e3),
        Figure::new("load CPU, %", load_cpu(measured)),
    ]
}

/// Near 100 for each thread of the load, it is the load that is measured.
fn load_cpu(measured: &Measured) -> f64 {
    100.0 * measured.load_cpu.as_secs_f64() / measured.elapsed.as_secs_f64()
}

/// The soft limit. `None` where the system does not say.
fn open_files_max() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}
