//! The questions. A question is a load, the kinds that it is put to, its figures (the first is the answer, the others
//! explain it), and its targets.

use std::time::Duration;

use super::{
    ask::{Ask, PAYLOAD_BYTES, Times},
    kinds::Kind,
    publish::Publishing,
    targets::Target,
};
use crate::{
    contract::{BroadcastArgs, Origin, Promise, PublishArgs},
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
        let ask = Ask::Calls { connections, in_flight, payload_bytes: PAYLOAD_BYTES };
        questions.push(question(name, title, &servers, ask, &targets));
    }

    for (name, kib) in [("calls-256k", 256), ("calls-1m", 1_024)] {
        let title = format!("calls: 4 connections × 4 in flight, {kib} KiB");
        let ask = Ask::Calls { connections: 4, in_flight: 4, payload_bytes: kib << 10 };
        let targets = [ratio(Kind::Limit, "CPU µs/call").at_most(1.1)];
        questions.push(question(name, title, &[Kind::Ours, Kind::Limit], ask, &targets));
    }

    let title = "calls: 64 connections, at an even pace, half as many as at 16 in flight".to_owned();
    let ask = Ask::OpenLoop { connections: 64, in_flight: 16 };
    questions.push(question("open-loop", title, &[Kind::Ours, Kind::Go, Kind::Limit], ask, &[]));

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

    let (clients, args) = (32, BroadcastArgs { count: scale(2_000, 100), size: 16 << 10 });
    let title = format!("broadcast: {} × 16 KiB to {clients} clients", args.count);
    let ask = Ask::Broadcast { clients, args, repeats: scale(3, 1) };
    let targets = [ratio(Kind::Limit, "CPU µs/push").at_most(1.2)];
    questions.push(question("broadcast-16k", title, &[Kind::Ours, Kind::Limit], ask, &targets));

    publishing(quick, |name, title, kinds, ask, targets| questions.push(question(name, title, kinds, ask, targets)));

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
    let args = PublishArgs::new(250, 4 << 10, Duration::from_millis(10));
    let title = format!(
        "sessions: {} × 4 KiB, one every 10 ms, to {readers} clients that read, without and with {stalled} that stop",
        args.count
    );
    let ask = Ask::StalledSessions { readers, stalled, args };
    let targets = [p99_kept, Target::figure("memory ÷ bound").at_most(1.0)];
    questions.push(question("stalled-sessions", title, &[Kind::Ours], ask, &targets));

    let clients = scale(10_000, 500);
    let title = format!("memory: {clients} idle clients after one call each");
    let targets = [Target::figure("bytes/client").at_most(768.0)];
    questions.push(question("idle", title, &kinds, Ask::Idle { clients, entered: false }, &targets));
    let title = format!("memory: {clients} idle clients with session, user and one topic");
    let targets = [Target::figure("bytes/client").at_most(1_536.0)];
    let kinds_of_topics = [Kind::Ours, Kind::Nats, Kind::Centrifugo];
    questions.push(question("idle-session", title, &kinds_of_topics, Ask::Idle { clients, entered: true }, &targets));

    let title =
        format!("memory: {clients} idle WebSocket clients with a session that can be resumed, user and one topic");
    let targets = [Target::figure("bytes/client").at_most(2_560.0)];
    let ask = Ask::Idle { clients, entered: true };
    questions.push(question("idle-ws", title, &[Kind::Ws, Kind::Centrifugo], ask, &targets));

    for (name, connections, in_flight, shape, targets) in [
        (
            "pair-64x16-raw",
            64,
            16,
            Shape::Raw,
            vec![ratio(Kind::Tarpc, "calls/s").at_least(3.0), ratio(Kind::Tonic, "calls/s").at_least(15.0)],
        ),
        (
            "pair-64x16-record",
            64,
            16,
            Shape::Record,
            vec![ratio(Kind::Tarpc, "calls/s").at_least(3.0), ratio(Kind::Tonic, "calls/s").at_least(15.0)],
        ),
        ("pair-64x1-raw", 64, 1, Shape::Raw, vec![ratio(Kind::Tarpc, "calls/s").at_least(1.3)]),
        ("pair-64x1-record", 64, 1, Shape::Record, vec![]),
        ("pair-64x2-raw", 64, 2, Shape::Raw, vec![]),
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
    let title =
        "client: 1,000 tasks over 10 connections, by an XClient, by a client for each 100, and in turn".to_owned();
    let targets = [ratio(Kind::Ours, "calls/s").at_least(0.8)];
    questions.push(question("xclient-10x100", title, &[Kind::XClient, Kind::Ours, Kind::Turns], ask, &targets));

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

    let args = PublishArgs::new(scale(500, 100), 128, Duration::from_millis(2));
    let title = "fairness: pushes of 128 bytes, and replies of 16 MiB on another connection".to_owned();
    let targets = [Target::figure("p99 writes before it, 1 thread").at_most(1.0)];
    questions.push(question("large-reply", title, &[Kind::Ours], Ask::LargeReply { args }, &targets));

    nodes(quick, |name, title, ask, target| questions.push(question(name, title, &[Kind::Nodes], ask, target)));

    let title = "fairness: calls that are refused, 131,072 others run; 64 connections × 16 in flight".to_owned();
    let ask = Ask::Refused { connections: 64, in_flight: 16 };
    questions.push(question("refused", title, &[Kind::Ours], ask, &[]));
    questions
}

/// The questions about many nodes over one nats-server.
fn nodes(quick: bool, mut question: impl FnMut(&'static str, String, Ask, &[Target])) {
    let scale = |all: usize, few: usize| if quick { few } else { all };

    let title = "nodes: 128 bytes to a user at another node".to_owned();
    let targets = [Target::figure("push ÷ round trip").at_most(3.0)];
    question("node-push", title, Ask::NodePush { samples: scale(2_000, 100) }, &targets);

    let clients = scale(5_000, 300);
    let title = format!("nodes: {clients} clients log in at one, until the broker has the record of each");
    let targets = [Target::figure("logins/s").at_least(10_000.0)];
    question("node-logins", title, Ask::NodeLogins { clients }, &targets);

    let clients = scale(1_000, 100);
    let title = format!("nodes: 200 × 128 bytes to {clients} clients of a topic at 4 nodes, from a handler");
    let targets = ["Fire, rate per CPU ÷ one server's", "Tracked, rate per CPU ÷ one server's"]
        .map(|rate| Target::figure(rate).at_least(0.5));
    question("node-publish", title, Ask::NodePublish { clients, repeats: scale(3, 1) }, &targets);

    let sessions = scale(50_000, 2_000);
    let title = format!("nodes: memory of {sessions} idle sessions that can be resumed, with user and one topic");
    let targets = [Target::figure("bytes/session for the cluster").at_most(64.0)];
    question("node-memory", title, Ask::NodeMemory { sessions }, &targets);
}

/// Payload of what is published.
const PUBLISHED_BYTES: usize = 128;

/// The questions about publishing to a topic.
fn publishing(quick: bool, mut question: impl FnMut(&'static str, String, &[Kind], Ask, &[Target])) {
    use Promise::{Fire, History, Tracked};
    let scale = |all: usize, few: usize| if quick { few } else { all };
    let (clients, away) = (scale(1_000, 100), scale(3_000, 300));
    let args = PublishArgs::new(200, PUBLISHED_BYTES, Duration::ZERO);
    let publishing = |args, promises| Publishing { clients, args, repeats: scale(3, 1), promises };
    let [fire, tracked, history] = ["Fire, CPU µs/delivery", "Tracked, CPU µs/delivery", "history, CPU µs/delivery"];
    let (figure, ratio) = (Target::figure, Target::ratio);
    let others = [Kind::Ours, Kind::Broadcast, Kind::Nats, Kind::Centrifugo];
    let (ours, both): (_, &[Promise]) = ([Kind::Ours], &[Fire, Tracked]);

    let from_handler = format!("publish: 200 × 128 bytes to {clients} clients of a topic, from a handler");
    question(
        "publish-1k",
        from_handler.clone(),
        &others,
        Ask::Publish(publishing(args, &[Fire, Tracked, History])),
        &[
            ratio(Kind::Nats, fire).at_most(0.333),
            ratio(Kind::Nats, tracked).at_most(0.4),
            ratio(Kind::Nats, history).at_most(0.5),
        ],
    );

    let title = format!("WebSocket: 200 × 128 bytes to {clients} clients of a topic");
    let kinds = [Kind::Ws, Kind::Ours, Kind::Limit, Kind::Centrifugo];
    let targets = [ratio(Kind::Ours, fire).at_most(1.3), ratio(Kind::Centrifugo, fire).at_most(0.2)];
    question("ws-1k", title, &kinds, Ask::Publish(publishing(args, &[Fire])), &targets);

    for (name, origin, from, most) in [
        ("publish-task", Origin::Task, "a task", [0.8, 0.9]),
        ("publish-yield", Origin::YieldingTask, "a task that yields after each", [2.0, 3.0]),
    ] {
        let title = format!("publish: 200 × 128 bytes to {clients} clients of a topic, from {from}");
        let targets = [figure(fire).at_most(most[0]), figure(tracked).at_most(most[1])];
        question(name, title, &ours, Ask::Publish(publishing(PublishArgs { origin, ..args }, both)), &targets);
    }

    let title = format!("{from_handler}, while {away} more are away");
    let targets = [figure(fire).at_most(0.7), figure(tracked).at_most(1.4)];
    question("publish-away", title, &ours, Ask::Publish(publishing(PublishArgs { away, ..args }, both)), &targets);

    let of_many = Publishing { clients: scale(5_000, 500), ..publishing(PublishArgs { count: 4, ..args }, both) };
    let title = format!("publish: 4 × 128 bytes to {} clients of a topic, from a handler", of_many.clients);
    let targets = [ratio(Kind::Broadcast, fire).at_most(1.1), ratio(Kind::Broadcast, tracked).at_most(1.5)];
    let of_many = Publishing { repeats: scale(10, 1), ..of_many };
    question("publish-5k", title, &others, Ask::Publish(of_many), &targets);

    let one = |count, millis| PublishArgs {
        origin: Origin::Task,
        ..PublishArgs::new(count, PUBLISHED_BYTES, Duration::from_millis(millis))
    };
    let to_one = Publishing { clients: 1, repeats: 1, ..publishing(one(scale(500, 100), 2), both) };
    let targets = [figure("Fire, p50 µs").at_most(65.0), figure("Tracked, p50 µs").at_most(65.0)];
    let title = "publish: 128 bytes to one client of a topic, one every 2 ms, from a task".to_owned();
    question("push-1x1", title, &[Kind::Ours, Kind::Limit], Ask::Publish(to_one), &targets);

    let to_all = Publishing { repeats: 1, ..publishing(one(scale(100, 10), 20), both) };
    let targets = [figure(fire).at_most(6.0), figure(tracked).at_most(7.2)];
    let title = format!("publish: 128 bytes to {clients} clients of a topic, one every 20 ms, from a task");
    question("push-1x1k", title, &[Kind::Ours, Kind::Limit], Ask::Publish(to_all), &targets);

    let title = format!("{from_handler}, again and again; and 1,000 other calls a second");
    question("publish-calls", title, &ours, Ask::PublishBesideCalls(publishing(args, both)), &[]);

    let sessions = scale(100_000, 2_000);
    let title = format!("publish: 128 bytes to {sessions} sessions in memory, and to none");
    let targets = [
        figure("publish, CPU µs/session").at_most(1.2),
        figure("publish, others held up, ms").at_most(2.0),
        figure("idle, CPU ns/session in a second").at_most(5.0),
        figure("idle, others held up, ms").at_most(2.0),
    ];
    question("crowd", title, &ours, Ask::Crowd { sessions }, &targets);
}
