//! Asks one kind one question: starts a new server and a new load, and returns the figures.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};

#[cfg(feature = "nodes")]
use super::nodes;
use super::{
    SKIPPED,
    kinds::{Kind, PairWork, Running, Tools},
    publish::{self, Publishing},
    report::Figure,
};
use crate::{
    contract::{self, BroadcastArgs, Promise, PublishArgs},
    crowd::{Who, open_alone},
    fairness, governance,
    load::{Call, ClosedLoop, Load, Measured, OpenLoop, PLAIN, Paced, Stalled, paced},
    pair::Shape,
};

/// Payload of a call, unless the question is about another: a usual message of rpcx's own benchmarks.
pub(super) const PAYLOAD_BYTES: usize = 581;

/// Time for a server to come to rest before its memory is looked at.
const REST: Duration = Duration::from_millis(2_500);

/// Time in which its rest is looked at.
const IDLE: Duration = Duration::from_millis(1_500);

/// How often a heartbeat goes out.
const HEARTBEAT_EVERY: Duration = Duration::from_millis(5);

/// A reply that takes a while.
const LARGE_REPLY_BYTES: usize = 16 << 20;

/// What a server of ours writes to one connection at most before it turns to others.
const TURN_BYTES: usize = 256 << 10;

/// Calls of one connection that a server of ours runs at once, and all of them (`calls_per_connection_max`,
/// `calls_max`).
const CALLS_MAX: [usize; 2] = [16_384, 131_072];

/// What is done, and what is measured of it.
#[cfg_attr(not(feature = "nodes"), expect(dead_code, reason = "questions about nodes are named, and not asked"))]
#[derive(Clone, Copy)]
pub(super) enum Ask {
    /// Calls in a closed loop.
    Calls { connections: usize, in_flight: usize, payload_bytes: usize },
    /// Calls at an even pace: half of the calls a second that a closed loop reaches.
    OpenLoop { connections: usize, in_flight: usize },
    /// What is published to a topic.
    Publish(Publishing),
    /// The same beside other calls.
    PublishBesideCalls(Publishing),
    /// Very many sessions in memory.
    Crowd { sessions: usize },
    /// Broadcasts, one after the other.
    Broadcast { clients: usize, args: BroadcastArgs, repeats: usize },
    /// A broadcast without and with clients that never read.
    Stalled { readers: usize, stalled: usize, args: BroadcastArgs },
    /// The same through sessions, at an even pace.
    StalledSessions { readers: usize, stalled: usize, args: PublishArgs },
    /// Memory of clients that do nothing; each has a user and a topic, or is a plain one.
    Idle { clients: usize, entered: bool },
    /// Client and server of one kind.
    Pair { connections: usize, in_flight: usize, shape: Shape },
    /// Heartbeats while calls are in flight.
    Heartbeats { connections: usize, in_flight: usize },
    /// Pushes without and with large replies on another connection.
    LargeReply { args: PublishArgs },
    /// Calls beyond the limits.
    Refused { connections: usize, in_flight: usize },
    /// Pushes to a user of another node, one at a time.
    NodePush { samples: usize },
    /// Clients that log in at a node.
    NodeLogins { clients: usize },
    /// What is published to clients of a topic at several nodes.
    NodePublish { clients: usize, repeats: usize },
    /// Memory of sessions at a node.
    NodeMemory { sessions: usize },
    /// What choosing a server, fail modes and layers take of a call.
    Governance { servers: usize, calls: usize },
}

#[derive(Clone, Copy)]
pub(super) struct Times {
    pub(super) warm_up: Duration,
    pub(super) measure: Duration,
}

impl Times {
    pub(super) fn calls(self, in_flight: usize) -> ClosedLoop {
        ClosedLoop::new(in_flight, PAYLOAD_BYTES, self.warm_up, self.measure)
    }
}

impl Ask {
    /// Asks one kind once.
    pub(super) fn put_to(self, kind: Kind, times: Times, tools: &Tools) -> anyhow::Result<Vec<Figure>> {
        let files = self.files();
        let limit = open_files_max().unwrap_or(usize::MAX);
        ensure!(files <= limit, "it takes {files} open files, and {limit} are allowed (ulimit -n)");

        match self {
            Self::Calls { connections, in_flight, payload_bytes } => {
                closed_loop(kind, tools, times, connections, in_flight, payload_bytes)
            }
            Self::OpenLoop { connections, in_flight } => open_loop(kind, tools, times, connections, in_flight),
            Self::NodePush { .. } | Self::NodeLogins { .. } | Self::NodePublish { .. } | Self::NodeMemory { .. } => {
                ensure!(kind == Kind::Nodes, "{SKIPPED}the nodes are those of one program");
                self.put_to_nodes(tools)
            }
            Self::Publish(publishing) => publishing.measure(kind, tools),
            Self::PublishBesideCalls(publishing) => publishing.beside_calls(kind, tools, times.measure),
            Self::Crowd { sessions } => crowd(kind, tools, sessions),
            Self::Broadcast { clients, args, repeats } => broadcast(kind, tools, clients, args, repeats),
            Self::Stalled { readers, stalled, args } => stalled_broadcast(kind, tools, readers, stalled, args),
            Self::StalledSessions { readers, stalled, args } => stalled_sessions(kind, tools, readers, stalled, args),
            Self::Idle { clients, entered } => idle(kind, tools, clients, entered),
            Self::Pair { connections, in_flight, shape } => pair(kind, tools, times, connections, in_flight, shape),
            Self::Heartbeats { connections, in_flight } => heartbeats(kind, tools, times, connections, in_flight),
            Self::LargeReply { args } => large_reply(kind, tools, args),
            Self::Refused { connections, in_flight } => refused(kind, tools, times, connections, in_flight),
            Self::Governance { servers, calls } => governance::measure(servers, calls, times.measure),
        }
    }

    #[cfg(feature = "nodes")]
    fn put_to_nodes(self, tools: &Tools) -> anyhow::Result<Vec<Figure>> {
        match self {
            Self::NodePush { samples } => nodes::push(tools, samples),
            Self::NodeLogins { clients } => nodes::logins(tools, clients),
            Self::NodePublish { clients, repeats } => nodes::publish(tools, clients, repeats),
            Self::NodeMemory { sessions } => nodes::memory(tools, sessions),
            _ => unreachable!("another question is put to another kind"),
        }
    }

    #[cfg(not(feature = "nodes"))]
    fn put_to_nodes(self, _: &Tools) -> anyhow::Result<Vec<Figure>> {
        anyhow::bail!("{SKIPPED}no nodes: `--features nodes` builds them")
    }

    /// Files that one process opens, roughly.
    fn files(self) -> usize {
        const OTHERS: usize = 64;
        OTHERS
            + match self {
                Self::Calls { connections, .. }
                | Self::OpenLoop { connections, .. }
                | Self::Pair { connections, .. }
                | Self::Heartbeats { connections, .. }
                | Self::Refused { connections, .. } => connections,
                Self::Broadcast { clients, .. }
                | Self::Idle { clients, .. }
                | Self::NodeLogins { clients }
                | Self::NodePublish { clients, .. } => clients,
                Self::Stalled { readers, stalled, .. } | Self::StalledSessions { readers, stalled, .. } => {
                    readers + stalled
                }
                Self::Publish(of) | Self::PublishBesideCalls(of) => of.clients.max(of.args.away),
                Self::LargeReply { .. }
                | Self::Governance { .. }
                | Self::Crowd { .. }
                | Self::NodePush { .. }
                | Self::NodeMemory { .. } => 2,
            }
    }
}

pub(super) fn connect(tools: &Tools, server: &Running, clients: usize) -> anyhow::Result<Load> {
    Load::connect(server.process(), &server.address, clients, tools.load_threads)
}

/// Several, as one.
pub(super) fn broadcasts(load: &mut Load, args: BroadcastArgs, repeats: usize) -> anyhow::Result<Measured> {
    let mut sum = load.broadcast(args, true)?;
    for _ in 1..repeats {
        sum.add(&load.broadcast(args, true)?);
    }
    Ok(sum)
}

fn closed_loop(
    kind: Kind,
    tools: &Tools,
    times: Times,
    connections: usize,
    in_flight: usize,
    payload_bytes: usize,
) -> anyhow::Result<Vec<Figure>> {
    let server = tools.serve(kind)?;
    let work = ClosedLoop { payload_bytes, ..times.calls(in_flight) };
    let measured = connect(tools, &server, connections)?.closed_loop(work)?;
    let mut figures = calls(&measured);
    if connections * in_flight == 1 {
        // One call at a time: the question is how long it takes.
        figures.swap(0, 1);
    }
    figures.push(memory(&server)?);
    Ok(figures)
}

fn open_loop(
    kind: Kind,
    tools: &Tools,
    times: Times,
    connections: usize,
    in_flight: usize,
) -> anyhow::Result<Vec<Figure>> {
    let server = tools.serve(kind)?;
    let mut load = connect(tools, &server, connections)?;
    // The pace is relative to what this server can do.
    let peak = load.closed_loop(times.calls(in_flight))?.per_second();
    ensure!(0.0 < peak, "no call was answered in time to tell the peak");

    let (per_second, payload_bytes) = (peak / 2.0, PAYLOAD_BYTES);
    let Times { warm_up, measure } = times;
    let measured = load.open_loop(OpenLoop { per_second, payload_bytes, warm_up, measure })?;

    let mut figures = calls(&measured);
    // The pace is given: the question is how long they take.
    figures.rotate_left(1);
    figures.insert(2, Figure::new("p99.9 µs", micros(&measured, 0.999)));
    Ok(figures)
}

fn crowd(kind: Kind, tools: &Tools, sessions: usize) -> anyhow::Result<Vec<Figure>> {
    let report = open_alone(tools.program_of(kind), Who::Entered, sessions)?;
    let report = report.context("opening them took too long")?;
    Ok(vec![
        Figure::new("publish, CPU µs/session", report.publish_cpu_nanos / 1e3),
        Figure::new("publish, others held up, ms", report.publish_held_nanos / 1e6),
        Figure::new("idle, CPU ns/session in a second", report.idle_nanos),
        Figure::new("idle, others held up, ms", report.idle_held_nanos / 1e6),
        Figure::new("bytes/session", report.bytes),
    ])
}

fn broadcast(
    kind: Kind,
    tools: &Tools,
    clients: usize,
    args: BroadcastArgs,
    repeats: usize,
) -> anyhow::Result<Vec<Figure>> {
    let server = tools.serve(kind)?;
    let mut load = connect(tools, &server, clients)?;
    load.join_all()?;
    // The first is not counted: it takes the memory that later ones find.
    load.broadcast(args, true)?;
    let mut figures = pushes(&broadcasts(&mut load, args, repeats)?);
    figures.push(memory(&server)?);
    Ok(figures)
}

fn stalled_broadcast(
    kind: Kind,
    tools: &Tools,
    readers: usize,
    stalled: usize,
    args: BroadcastArgs,
) -> anyhow::Result<Vec<Figure>> {
    let broadcast = |stalled| {
        let server = tools.serve(kind)?;
        let mut load = connect(tools, &server, readers)?;
        load.join_all()?;
        // What is added from here on is kept for the stalled.
        let before = server.process().resident_bytes()?;
        let stalled = Stalled::connect(&server.address, stalled, contract::JOIN)?;
        let measured = load.broadcast(args, stalled.is_empty())?;
        anyhow::Ok((measured, server.process().resident_bytes()?.saturating_sub(before)))
    };

    let (without, _) = broadcast(0)?;
    let (with, more_bytes) = broadcast(stalled)?;

    // By the clock in the push, which each server reads at another moment: only the ratio between
    // the two runs of one server compares.
    Ok(vec![
        Figure::new("p99 with ÷ without", p99_ms(&with) / p99_ms(&without)),
        Figure::new("own p99 without, ms", p99_ms(&without)),
        Figure::new("own p99 with, ms", p99_ms(&with)),
        Figure::new("pushes/s without", without.per_second()),
        Figure::new("pushes/s with", with.per_second()),
        Figure::new("memory with, MiB", mib(more_bytes)),
    ])
}

/// Clients that come and go before others are counted.
const FIRST_CLIENTS: usize = 16;

fn idle(kind: Kind, tools: &Tools, clients: usize, entered: bool) -> anyhow::Result<Vec<Figure>> {
    let server = tools.serve(kind)?;
    // Clients of other kinds subscribe in their handshake.
    let wire = publish::subscribes(kind).unwrap_or(&PLAIN);
    let come = |clients| {
        let mut load = Load::connect_by(wire, server.process(), &server.address, clients, tools.load_threads)?;
        if publish::subscribes(kind).is_none() {
            load.call_each(PAYLOAD_BYTES)?;
            if entered {
                load.enter_all(Promise::Fire.topic())?;
            }
        }
        anyhow::Ok(load)
    };

    // The first ones bring in the pages of the program, which are not memory of a client.
    drop(come(FIRST_CLIENTS)?);
    thread::sleep(REST);
    let before = server.process().resident_bytes()?;
    let _load = come(clients)?;

    thread::sleep(REST);
    let bytes = server.process().resident_bytes()?.saturating_sub(before);
    let cpu = server.process().cpu()?;
    thread::sleep(IDLE);
    let cpu = server.process().cpu()? - cpu;

    Ok(vec![
        Figure::new("bytes/client", bytes as f64 / clients as f64),
        Figure::new("idle CPU, %", 100.0 * cpu.as_secs_f64() / IDLE.as_secs_f64()),
    ])
}

fn pair(
    kind: Kind,
    tools: &Tools,
    times: Times,
    connections: usize,
    in_flight: usize,
    shape: Shape,
) -> anyhow::Result<Vec<Figure>> {
    let server = tools.serve(kind)?;

    let millis = |duration: Duration| duration.as_millis() as u64;
    let (warm_up_ms, measure_ms) = (millis(times.warm_up), millis(times.measure));
    let payload_bytes = PAYLOAD_BYTES;
    let work = PairWork { connections, in_flight, payload_bytes, shape, warm_up_ms, measure_ms };

    let measured = tools.call(kind, &server, &work)?;
    let report = measured.report;
    Ok(vec![
        Figure::new("calls/s", report.calls as f64 / report.seconds),
        Figure::new("p50 µs", report.p50_ns as f64 / 1e3),
        Figure::new("p99 µs", report.p99_ns as f64 / 1e3),
        Figure::new("CPU µs/call, both", measured.cpu.as_nanos() as f64 / 1e3 / report.calls as f64),
        memory(&server)?,
    ])
}

fn heartbeats(
    kind: Kind,
    tools: &Tools,
    times: Times,
    connections: usize,
    in_flight: usize,
) -> anyhow::Result<Vec<Figure>> {
    let server = tools.serve(kind)?;
    let mut load = connect(tools, &server, connections)?;

    let (address, begin) = (server.address.clone(), Instant::now() + times.warm_up);
    let end = begin + times.measure;
    // Beside the load, a connection that does nothing else, for comparison.
    let alone = thread::spawn(move || paced(Paced::Heartbeats, &address, begin, end, HEARTBEAT_EVERY));
    let work = ClosedLoop { heartbeat_every: Some(HEARTBEAT_EVERY), ..times.calls(in_flight) };
    let measured = load.closed_loop(work)?;
    let alone = alone.join().expect("a thread of the load does not panic")?;

    let millis = |nanos: u64| nanos as f64 / 1e6;
    ensure!(!measured.heartbeats.is_empty() && !alone.is_empty(), "no heartbeat was answered");
    Ok(vec![
        Figure::new("max ms", millis(measured.heartbeats.max().max(alone.max()))),
        Figure::new("p99 ms", millis(measured.heartbeats.value_at_quantile(0.99))),
        Figure::new("p99 ms, idle connection", millis(alone.value_at_quantile(0.99))),
        Figure::new("max ms, idle connection", millis(alone.max())),
        Figure::new("calls/s", measured.per_second()),
    ])
}

fn refused(
    kind: Kind,
    tools: &Tools,
    times: Times,
    connections: usize,
    in_flight: usize,
) -> anyhow::Result<Vec<Figure>> {
    let server = tools.serve(kind)?;
    // Their calls go on for as long as they are kept.
    let mut holding = connect(tools, &server, CALLS_MAX[1] / CALLS_MAX[0])?;
    holding.hold(CALLS_MAX[0])?;
    let work = ClosedLoop { call: Call::EchoRefused, ..times.calls(in_flight) };
    let mut figures = calls(&connect(tools, &server, connections)?.closed_loop(work)?);
    figures.push(memory(&server)?);
    Ok(figures)
}

fn stalled_sessions(
    kind: Kind,
    tools: &Tools,
    readers: usize,
    stalled: usize,
    args: PublishArgs,
) -> anyhow::Result<Vec<Figure>> {
    let publish = |stalled: usize| {
        let server = tools.serve(kind)?;
        let mut load = connect(tools, &server, readers)?;
        load.enter_all(Promise::Fire.topic())?;

        let before = server.process().resident_bytes()?;
        let stalling = Stalled::connect(&server.address, stalled, contract::ENTER)?;
        let peak = server.process().watch_resident_bytes();
        let (measured, published) = load.publish(args)?;
        let more_bytes = peak.stop().saturating_sub(before);

        let outcomes = published.written + published.dropped_full + published.dropped_ended;
        // All of them have one by now; a client that was disconnected before the last push is no longer a target of it.
        let meant = (args.count * (readers + stalled)) as u64;
        ensure!(outcomes <= meant && measured.count <= published.written, "outcomes for {meant}? {published:?}");
        if 0 < stalled {
            // Their policy: the oldest is dropped, and who takes nothing for too long is disconnected.
            ensure!(0 < published.dropped_full, "nothing was dropped: {published:?}");
            stalling.read_to_the_end()?;
        } else {
            ensure!(published.dropped_full == 0, "a push to a client that reads was dropped: {published:?}");
        }
        anyhow::Ok((measured, published, more_bytes))
    };

    let (without, _, usual_bytes) = publish(0)?;
    let (with, published, more_bytes) = publish(stalled)?;

    let bound = published.session_bytes_max * stalled as u64;
    let dropped = published.dropped_full + published.dropped_ended;
    Ok(vec![
        Figure::new("p99 with ÷ without", p99_ms(&with) / p99_ms(&without)),
        Figure::new("own p99 without, ms", p99_ms(&without)),
        Figure::new("own p99 with, ms", p99_ms(&with)),
        Figure::new("memory with, MiB", mib(more_bytes)),
        Figure::new("memory without, MiB", mib(usual_bytes)),
        Figure::new("bound of docs/slow-clients.md, MiB", mib(bound)),
        Figure::new("memory ÷ bound", more_bytes as f64 / bound as f64),
        Figure::new("dropped, % of the stalled", 100.0 * dropped as f64 / (args.count * stalled) as f64),
    ])
}

/// How much of large replies goes before a push on another connection; and, in time, pushes alone; while another server,
/// and then the same one, sends large replies to somebody else. The second takes as much of the machine as the third. What
/// the third adds is the system's doing, too: it shares out the cores by
/// thread, and the one that reads a push waits longest behind the one that wrote it (`fairness.rs`).
fn large_reply(kind: Kind, tools: &Tools, args: PublishArgs) -> anyhow::Result<Vec<Figure>> {
    let writes_before = |threads| {
        let before = fairness::kib_before_a_push(threads, LARGE_REPLY_BYTES, args)?;
        anyhow::Ok(before.value_at_quantile(0.99) as f64 * 1024.0 / TURN_BYTES as f64)
    };
    let (one_thread, two_threads) = (writes_before(1)?, writes_before(2)?);

    // Replies of another server cost the machine as much: the difference is this server's doing.
    let (server, other) = (tools.serve(kind)?, tools.serve(kind)?);
    let mut listening = connect(tools, &server, 1)?;
    listening.enter_all(Promise::Fire.topic())?;
    // The first is not counted: it takes the memory that later ones find.
    listening.publish(PublishArgs { count: 20, ..args })?;
    let (without, _) = listening.publish(args)?;

    let mut publish_beside = |replying: &Running| {
        let mut asking = connect(tools, replying, 1)?;
        let measure = args.every * u32::try_from(args.count).context("a count of some hundreds")?;
        let warm_up = Duration::from_millis(50);
        let work = ClosedLoop::fill(LARGE_REPLY_BYTES, warm_up, measure);
        let asking = thread::spawn(move || asking.closed_loop(work));
        thread::sleep(warm_up);
        let (measured, _) = listening.publish(args)?;
        let replies = asking.join().expect("a thread of the load does not panic")?;
        ensure!(0 < replies.count, "no large reply came");
        anyhow::Ok((measured, replies))
    };

    let (beside, _) = publish_beside(&other)?;
    let (with, replies) = publish_beside(&server)?;

    let turn = micros(&replies, 0.5) * TURN_BYTES as f64 / LARGE_REPLY_BYTES as f64;
    Ok(vec![
        Figure::new("p99 writes before it, 1 thread", one_thread),
        Figure::new("p99 writes before it, 2 threads", two_threads),
        Figure::new("p99 µs", micros(&with, 0.99)),
        Figure::new("p99 µs, replies of another server", micros(&beside, 0.99)),
        Figure::new("p99 µs, no replies", micros(&without, 0.99)),
        Figure::new("p50 µs", micros(&with, 0.5)),
        Figure::new("p50 µs, replies of another server", micros(&beside, 0.5)),
        Figure::new("p50 µs, no replies", micros(&without, 0.5)),
        Figure::new("max µs", micros(&with, 1.0)),
        Figure::new("µs a write of 256 KiB", turn),
    ])
}

fn calls(measured: &Measured) -> Vec<Figure> {
    vec![
        Figure::new("calls/s", measured.per_second()),
        Figure::new("p50 µs", micros(measured, 0.5)),
        Figure::new("p99 µs", micros(measured, 0.99)),
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

fn memory(server: &Running) -> anyhow::Result<Figure> {
    Ok(Figure::new("server MiB", mib(server.process().resident_bytes()?)))
}

fn p99_ms(measured: &Measured) -> f64 {
    micros(measured, 0.99) / 1e3
}

fn micros(measured: &Measured, quantile: f64) -> f64 {
    measured.latency.value_at_quantile(quantile) as f64 / 1e3
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Near 100 for each thread of the load, it is the load that is measured.
pub(super) fn load_cpu(measured: &Measured) -> f64 {
    100.0 * measured.load_cpu.as_secs_f64() / measured.elapsed.as_secs_f64()
}

/// The soft limit. `None` where the system does not say.
fn open_files_max() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}
