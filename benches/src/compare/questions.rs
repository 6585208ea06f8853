//! The questions. A question is a load, the kinds that it is put to, its figures (the first is the answer, the others
//! explain it), and its targets.

use std::time::Duration;

use super::{
    ask::{Ask, PAYLOAD_BYTES, Times},
    kinds::Kind,
    targets::Target,
};
use crate::{
    contract::{BroadcastArgs, PublishArgs},
    pair::Shape,
};

pub(super) struct Question {
    pub(super) name: &'static str,
    pub(super) title: String,
    pub(super) kinds: Vec<Kind>,
    pub(super) targets: Vec<Target>,
    pub(super) ask: Ask,
    pub(super) times: Times,
}

/// All questions; with `quick` the same ones on a small scale.
pub(super) fn questions(quick: bool) -> Vec<Question> {
    let millis =
        |warm_up, measure| Times { warm_up: Duration::from_millis(warm_up), measure: Duration::from_millis(measure) };
    let times = if quick { millis(50, 200) } else { millis(300, 1_500) };
    let scale = |all: usize, few: usize| if quick { few } else { all };
    let question = |name, title, kinds: &[Kind], ask, targets: &[Target]| Question {
        name,
        title,
        kinds: kinds.to_vec(),
        targets: targets.to_vec(),
        ask,
        times,
    };
    let servers = [Kind::Ours, Kind::PerCore, Kind::Go, Kind::Limit];
    let pairs = [Kind::Ours, Kind::Tonic, Kind::Tarpc, Kind::Jsonrpsee];
    let ratio = |kind, metric| Target::ratio(kind, metric);

    let mut questions = Vec::new();
    for (name, connections, in_flight, targets) in [
        ("calls-64x1", 64, 1, vec![ratio(Kind::Limit, "calls/s").at_least(0.8)]),
        (
            "calls-64x16",
            64,
            16,
            vec![
                ratio(Kind::Limit, "calls/s").at_least(0.6),
                ratio(Kind::Go, "calls/s").at_least(12.0),
                ratio(Kind::Limit, "p99 µs").at_most(2.0),
            ],
        ),
        ("calls-1x1", 1, 1, vec![ratio(Kind::Limit, "p50 µs").at_most(1.2)]),
    ] {
        let title = format!("calls: {connections} connections × {in_flight} in flight, {PAYLOAD_BYTES} bytes");
        questions.push(question(name, title, &servers, Ask::Calls { connections, in_flight }, &targets));
    }

    for (name, clients, count, repeats, targets) in [
        (
            "broadcast-1k",
            scale(1_000, 100),
            200,
            scale(5, 1),
            vec![ratio(Kind::Limit, "pushes/s").at_least(0.6), ratio(Kind::Go, "pushes/s").at_least(35.0)],
        ),
        ("broadcast-10k", scale(10_000, 500), 1, scale(15, 2), vec![ratio(Kind::Limit, "pushes/s").at_least(0.9)]),
    ] {
        let args = BroadcastArgs { count, size: 128 };
        let title = format!("broadcast: {count} × 128 bytes to {clients} clients");
        questions.push(question(name, title, &servers, Ask::Broadcast { clients, args, repeats }, &targets));
    }

    let p99_kept = Target::figure("p99 with ÷ without").at_most(1.2);
    let args = BroadcastArgs { count: scale(1_000, 100), size: 16 << 10 };
    let (readers, stalled) = (scale(90, 18), scale(10, 2));
    let title = format!(
        "broadcast: {} × 16 KiB to {readers} clients that read, without and with {stalled} that never do",
        args.count
    );
    let kinds = [Kind::Ours, Kind::Go, Kind::Limit];
    questions.push(question("stalled", title, &kinds, Ask::Stalled { readers, stalled, args }, &[p99_kept]));
    let (readers, stalled) = (scale(900, 90), scale(100, 10));
    // More than the system and the queues hold for one, and done before those who stop are disconnected.
    let args = PublishArgs { count: 250, size: 4 << 10, every: Duration::from_millis(10) };
    let title = format!(
        "sessions: {} × 4 KiB, one every 10 ms, to {readers} clients that read, without and with {stalled} that stop",
        args.count
    );
    let ask = Ask::StalledSessions { readers, stalled, args };
    let targets = [p99_kept, Target::figure("memory ÷ bound").at_most(1.0)];
    questions.push(question("stalled-sessions", title, &[Kind::Ours], ask, &targets));

    let clients = scale(10_000, 500);
    let title = format!("memory: {clients} idle clients after one call each");
    let targets = [Target::figure("bytes/client").at_most(1_024.0)];
    questions.push(question("idle", title, &kinds, Ask::Idle { clients, entered: false }, &targets));
    let title = format!("memory: {clients} idle clients with session, user and one topic");
    let targets = [Target::figure("bytes/client").at_most(2_048.0)];
    questions.push(question("idle-session", title, &[Kind::Ours], Ask::Idle { clients, entered: true }, &targets));

    for (name, connections, in_flight, shape, targets) in [
        (
            "pair-64x16-raw",
            64,
            16,
            Shape::Raw,
            vec![ratio(Kind::Tarpc, "calls/s").at_least(3.0), ratio(Kind::Tonic, "calls/s").at_least(15.0)],
        ),
        ("pair-64x16-record", 64, 16, Shape::Record, vec![]),
        ("pair-64x1-raw", 64, 1, Shape::Raw, vec![ratio(Kind::Tarpc, "calls/s").at_least(1.3)]),
        ("pair-64x1-record", 64, 1, Shape::Record, vec![]),
        ("client-1x1000", 1, 1_000, Shape::Raw, vec![]),
    ] {
        let what = match shape {
            Shape::Raw => "bytes, or the nearest to them",
            Shape::Record => "a record in the usual codec of each",
        };
        let clients = match connections {
            1 => format!("one client shared by {in_flight} tasks"),
            _ => format!("{connections} connections × {in_flight} in flight"),
        };
        let title = format!("client and server of one kind: {clients}, 581 bytes, {what}");
        questions.push(question(name, title, &pairs, Ask::Pair { connections, in_flight, shape }, &targets));
    }
    let ask = Ask::Pair { connections: 10, in_flight: 100, shape: Shape::Raw };
    let title = "client: 1,000 tasks over 10 servers, by 10 clients in turn and by an XClient".to_owned();
    questions.push(question("xclient-10x100", title, &[Kind::Ours, Kind::XClient], ask, &[]));
    let title = "client: what governance takes of a call, over 10 servers in memory, 16 calls in flight".to_owned();
    let targets = [
        Target::figure("governance, CPU µs/call").at_most(2.0),
        Target::figure("with layers, CPU µs/call").at_most(2.0),
    ];
    let ask = Ask::Governance { servers: 10, calls: 16 };
    questions.push(question("governance", title, &[Kind::Ours], ask, &targets));

    let title = format!("fairness: heartbeats while 64 × 128 calls of {PAYLOAD_BYTES} bytes are in flight");
    let ask = Ask::Heartbeats { connections: 64, in_flight: 128 };
    questions.push(question("heartbeats", title, &kinds, ask, &[Target::figure("max ms").at_most(100.0)]));
    let args = PublishArgs { count: scale(500, 100), size: 128, every: Duration::from_millis(2) };
    let title = "fairness: pushes of 128 bytes, and replies of 16 MiB on another connection".to_owned();
    let targets = [Target::figure("p99 writes before it, 1 thread").at_most(1.0)];
    questions.push(question("large-reply", title, &[Kind::Ours], Ask::LargeReply { args }, &targets));
    let title = "fairness: calls that are refused, 131,072 others run; 64 connections × 16 in flight".to_owned();
    let ask = Ask::Refused { connections: 64, in_flight: 16 };
    questions.push(question("refused", title, &[Kind::Ours], ask, &[]));
    questions
}
