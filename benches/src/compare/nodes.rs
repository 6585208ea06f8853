//! Many nodes over NATS: how long a push to a client of another node takes, how many clients can log in a second, what a
//! publish to all nodes takes, and what a session takes in memory; each beside the bare broker, or beside the same
//! server without a cluster, in the same run.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use async_nats::HeaderMap;
use bothways::{Client, ClientOptions, Push, Server, Target, cluster::Cluster, server::Listening};
use bothways_nats::{NatsEngine, NatsOptions};
use bytes::Bytes;
use hdrhistogram::Histogram;
use tokio::{runtime::Runtime, task::JoinSet, time::sleep};

use super::{
    kinds::{Kind, Running, Tools},
    report::Figure,
};
use crate::{
    cluster::Records,
    contract::{Promise, PublishArgs},
    crowd::{Who, open_alone, open_at_node},
    load::{Load, Measured, PLAIN, SESSION, Wire},
    process::Process,
};

/// What takes longer than this has failed.
const MOST: Duration = Duration::from_secs(60);

/// Clients that log in side by side: each waits for its Welcome.
const SIDE_BY_SIDE: usize = 16;

/// Bare writes that are under way at a time.
const IN_FLIGHT: usize = 256;

/// As many as a record of a session has.
const RECORD_BYTES: usize = 250;

/// Nodes among which the clients of a topic are shared out.
const NODES: usize = 4;

/// What is published to a topic at once: so many messages, of so many bytes.
const PUBLISHED: (usize, usize) = (200, 128);

/// Requests to publish that are not counted: event logs fill up, and what later ones find is made ready.
const WARM_UPS: usize = 2;

/// Time for the records of clients to be written before something else is measured.
const REST: Duration = Duration::from_secs(1);

/// A broker that keeps what it has in a folder of its own.
struct Broker {
    running: Running,
    _folder: tempfile::TempDir,
}

impl Broker {
    fn start(tools: &Tools) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let running = tools.serve_jetstream(folder.path())?;
        Ok(Self { running, _folder: folder })
    }

    fn address(&self) -> String {
        self.running.address.replace("tcp@", "nats://")
    }
}

struct Node {
    server: Server,
    listening: Listening,
}

impl Node {
    async fn join(broker: &Broker) -> anyhow::Result<Self> {
        let engine = NatsEngine::connect(NatsOptions::new([broker.address()])).await?;
        let server = Server::builder()
            .auth(|request| async move {
                let session = request.session().ok_or("it has left")?;
                session.bind_user(&request.token);
                Ok::<_, &str>(())
            })
            .build();
        server.join(Cluster::new(engine)).await?;
        let listening = server.listen("tcp@127.0.0.1:0").await?;
        Ok(Self { server, listening })
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) -> anyhow::Result<()> {
    let begin = Instant::now();
    while !holds() {
        ensure!(begin.elapsed() < MOST, "not within {MOST:?}: {what}");
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

fn micros(of: &Histogram<u64>, quantile: f64) -> f64 {
    of.value_at_quantile(quantile) as f64 / 1e3
}

/// Pushes to a user at another node, one at a time, until its client has them; and asks over the bare broker.
pub(super) fn push(tools: &Tools, samples: usize) -> anyhow::Result<Vec<Figure>> {
    let broker = Broker::start(tools)?;
    let runtime = Runtime::new()?;
    let (pushes, asks) = runtime.block_on(async {
        let (one, other) = (Node::join(&broker).await?, Node::join(&broker).await?);
        let options = ClientOptions::new().auth("ann");
        let (_ann, mut messages) = Client::bidirectional(other.listening.address(), options).await?;
        let to = Target::user("ann");
        until("they know each other", || one.server.nodes().is_some_and(|(_, others)| others.len() == 1)).await?;
        until("the client is there", || other.server.sessions(&to).is_ok_and(|all| all.len() == 1)).await?;

        let asker = async_nats::connect(broker.address()).await?;
        let answerer = async_nats::connect(broker.address()).await?;
        let mut asked = answerer.subscribe("bare").await?;
        answerer.flush().await?;
        let answering = tokio::spawn(async move {
            while let Some(message) = next(&mut asked).await {
                if let Some(reply) = message.reply {
                    let _ = answerer.publish(reply, message.payload).await;
                }
            }
        });

        let mut figures = [Histogram::<u64>::new(3)?, Histogram::<u64>::new(3)?];
        // In turn, so that other load on the machine is that of both. The first ones warm up.
        for sample in 0..samples + samples / 10 {
            let begin = Instant::now();
            one.server.push(&to, &Push::new("Mail", "New", vec![7_u8; 128]))?;
            messages.next().await.context("the client is gone")?;
            let pushed = begin.elapsed();
            let begin = Instant::now();
            asker.request("bare", Bytes::from(vec![7; 128])).await?;
            let answered = begin.elapsed();
            if samples / 10 <= sample {
                for (histogram, took) in figures.iter_mut().zip([pushed, answered]) {
                    histogram.record(took.as_nanos() as u64)?;
                }
            }
        }
        answering.abort();
        let [pushes, asks] = figures;
        anyhow::Ok((pushes, asks))
    })?;
    Ok(vec![
        Figure::new("push ÷ round trip", micros(&pushes, 0.5) / micros(&asks, 0.5)),
        Figure::new("push, p50 µs", micros(&pushes, 0.5)),
        Figure::new("push, p99 µs", micros(&pushes, 0.99)),
        Figure::new("round trip, p50 µs", micros(&asks, 0.5)),
    ])
}

async fn next(subscriber: &mut async_nats::Subscriber) -> Option<async_nats::Message> {
    std::future::poll_fn(|context| futures_core::Stream::poll_next(std::pin::Pin::new(&mut *subscriber), context)).await
}

/// Lets clients log in at one node until the records of all are at the broker; and writes as many over the bare broker.
pub(super) fn logins(tools: &Tools, clients: usize) -> anyhow::Result<Vec<Figure>> {
    let broker = Broker::start(tools)?;
    let runtime = Runtime::new()?;
    let node = tools.serve_node(&broker.address(), 0)?;
    let records = runtime.block_on(Records::connect(&broker.address()))?;

    let begin = Instant::now();
    let loads = log_in(&node, clients)?;
    let welcomed = begin.elapsed();
    runtime.block_on(records.reach(clients))?;
    let written = begin.elapsed();
    drop((loads, node));

    let server = tools.serve(Kind::Ours)?;
    let begin = Instant::now();
    let loads = log_in(&server, clients)?;
    let alone = begin.elapsed();
    drop((loads, server));

    let bare = runtime.block_on(creates(&broker.address(), clients))?;
    let per_second = |took: Duration| clients as f64 / took.as_secs_f64();
    Ok(vec![
        Figure::new("logins/s", per_second(written)),
        Figure::new("welcomes/s", per_second(welcomed)),
        Figure::new("logins/s, no cluster", per_second(alone)),
        Figure::new("bare creates/s", per_second(bare)),
        Figure::new("logins ÷ bare creates", bare.as_secs_f64() / written.as_secs_f64()),
    ])
}

/// Lets clients log in, some side by side, each of which waits for its Welcome.
fn log_in(server: &Running, clients: usize) -> anyhow::Result<Vec<Load>> {
    let connect = |share| {
        let (process, address) = (server.process(), server.address.clone());
        thread::spawn(move || Load::connect_by(&SESSION, process, &address, share, 1))
    };
    let share = |at| clients / SIDE_BY_SIDE + usize::from(at < clients % SIDE_BY_SIDE);
    let connecting: Vec<_> = (0..SIDE_BY_SIDE).map(|at| connect(share(at))).collect();
    connecting.into_iter().map(|one| one.join().expect("a thread of the load does not panic")).collect()
}

/// Writes keys that are not there, as what a login writes, and returns how long all took.
async fn creates(broker: &str, count: usize) -> anyhow::Result<Duration> {
    let nats = async_nats::connect(broker).await?;
    let config =
        serde_json::json!({"name": "bare", "subjects": ["bare.>"], "storage": "file", "max_msgs_per_subject": 1});
    nats.request("$JS.API.STREAM.CREATE.bare", config.to_string().into()).await?;
    let (begin, mut writing) = (Instant::now(), JoinSet::new());
    for worker in 0..IN_FLIGHT.min(count) {
        let nats = nats.clone();
        writing.spawn(async move {
            for number in (worker..count).step_by(IN_FLIGHT) {
                let mut headers = HeaderMap::new();
                headers.insert("Nats-Expected-Last-Subject-Sequence", "0");
                let bytes = Bytes::from(vec![7; RECORD_BYTES]);
                let answer = nats.request_with_headers(format!("bare.{number}"), headers, bytes).await?;
                let answer: serde_json::Value = serde_json::from_slice(&answer.payload)?;
                ensure!(answer["error"].is_null(), "{answer}");
            }
            Ok(())
        });
    }
    while let Some(written) = writing.join_next().await {
        written??;
    }
    Ok(begin.elapsed())
}

/// What publishes took.
struct Published {
    all: Measured,
    /// CPU time of the broker.
    broker: Duration,
}

impl Published {
    fn micros_each(&self) -> f64 {
        self.all.server_cpu_nanos_each() / 1e3
    }

    fn broker_micros_each(&self) -> f64 {
        self.broker.as_nanos() as f64 / 1e3 / self.all.count as f64
    }
}

/// Publishes to the clients of a topic at one server, and then with the clients shared out among nodes.
pub(super) fn publish(tools: &Tools, clients: usize, repeats: usize) -> anyhow::Result<Vec<Figure>> {
    let of = |promise| {
        let alone = publish_alone(tools, promise, clients, repeats)?;
        anyhow::Ok((alone, publish_all(tools, promise, clients, repeats)?))
    };
    let (fire_alone, fire) = of(Promise::Fire)?;
    let (tracked_alone, tracked) = of(Promise::Tracked)?;
    let rate = |alone: &Published, all: &Published| alone.micros_each() / all.micros_each();
    Ok(vec![
        Figure::new("Fire, rate per CPU ÷ one server's", rate(&fire_alone, &fire)),
        Figure::new("Tracked, rate per CPU ÷ one server's", rate(&tracked_alone, &tracked)),
        Figure::new("Fire, CPU µs/delivery", fire.micros_each()),
        Figure::new("Tracked, CPU µs/delivery", tracked.micros_each()),
        Figure::new("Fire, of it the broker's", fire.broker_micros_each()),
        Figure::new("Tracked, of it the broker's", tracked.broker_micros_each()),
        Figure::new("Fire, CPU µs/delivery, one server", fire_alone.micros_each()),
        Figure::new("Tracked, CPU µs/delivery, one server", tracked_alone.micros_each()),
        Figure::new("Fire, deliveries/s", fire.all.per_second()),
        Figure::new("Tracked, deliveries/s", tracked.all.per_second()),
    ])
}

fn publish_alone(tools: &Tools, promise: Promise, clients: usize, repeats: usize) -> anyhow::Result<Published> {
    let server = tools.serve(Kind::Ours)?;
    // The same load as of nodes.
    let load = Load::connect_by(wire(promise), server.process(), &server.address, clients, NODES)?;
    published(load, promise, clients, repeats, None)
}

fn publish_all(tools: &Tools, promise: Promise, clients: usize, repeats: usize) -> anyhow::Result<Published> {
    let broker = Broker::start(tools)?;
    let nodes = (0..NODES).map(|others| tools.serve_node(&broker.address(), others));
    let mut nodes = nodes.collect::<anyhow::Result<Vec<_>>>()?;
    // The last one knew all others when it began to listen: it publishes.
    nodes.reverse();
    let servers: Vec<_> = nodes.iter().map(|node| (node.process(), node.address.as_str())).collect();
    let (process, each) = (broker.running.process(), clients / NODES);
    let load = Load::connect_each(wire(promise), &servers, &[process], each)?;
    published(load, promise, each * NODES, repeats, Some(process))
}

/// A tracked push goes to clients that acknowledge it.
fn wire(promise: Promise) -> &'static Wire {
    if promise == Promise::Fire { &PLAIN } else { &SESSION }
}

/// Lets the clients subscribe, publishes, and checks that the receipts know of every delivery.
fn published(
    mut load: Load,
    promise: Promise,
    clients: usize,
    repeats: usize,
    broker: Option<Process>,
) -> anyhow::Result<Published> {
    load.enter_all(promise.topic())?;
    thread::sleep(REST);

    let (count, size) = PUBLISHED;
    let args = PublishArgs { promise, ..PublishArgs::new(count, size, Duration::ZERO) };
    let mut publish = || {
        let broker_cpu = || broker.map_or(Ok(Duration::ZERO), Process::cpu);
        let before = broker_cpu()?;
        let (all, told) = load.publish(args)?;
        let (here, of_receipts) = ((clients * count) as u64, told.written + told.handled);
        ensure!(of_receipts == here && told.dropped_full == 0, "for {here} pushes, receipts say {told:?}");
        anyhow::Ok(Published { all, broker: broker_cpu()? - before })
    };
    for _ in 0..WARM_UPS {
        publish()?;
    }
    let mut sum = publish()?;
    for _ in 1..repeats {
        let more = publish()?;
        sum.all.add(&more.all);
        sum.broker += more.broker;
    }
    Ok(sum)
}

/// Opens sessions within one process, at a server alone and at a node of a cluster.
pub(super) fn memory(tools: &Tools, sessions: usize) -> anyhow::Result<Vec<Figure>> {
    let broker = Broker::start(tools)?;
    let program = tools.program_of(Kind::Nodes);
    let alone = open_alone(program, Who::Resumable, sessions)?.context("opening them took too long")?;
    let at_node = open_at_node(program, Who::Resumable, sessions, &broker.address())?;
    let at_node = at_node.context("opening them at a node took too long")?;
    Ok(vec![
        Figure::new("bytes/session for the cluster", at_node.bytes - alone.bytes),
        Figure::new("bytes/session at a node", at_node.bytes),
        Figure::new("bytes/session, no cluster", alone.bytes),
    ])
}
