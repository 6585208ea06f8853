//! Very many sessions in one process, over the memory transport: the memory of each, and the time of a publish to all
//! of them.
//!
//! Sockets have a bound (20,000 files a process is usual), these have none. Both ends are in this process;
//! what their pipes and the client's ends take is measured by themselves and left out.

use std::{
    future::poll_fn,
    io::IoSlice,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use bothways::{
    Class, Push, Server,
    transport::{AnySocket, ConnectOptions, ListenOptions, Listener, Socket, connect},
};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

#[cfg(feature = "nodes")]
use crate::cluster::{ClusterArgs, Records};
use crate::{
    contract::{self, Promise, put_request, word},
    load::put_hello,
    process::{Process, own_cpu, thread_cpu},
    server::server,
};

/// Time to come to rest, and then again to be looked at. A server gives memory of bursts back at its next
/// looks, a second apart.
const REST: Duration = Duration::from_millis(2_500);

/// A push that has not come after this long is lost.
const SILENCE: Duration = Duration::from_secs(20);

/// More than opening a crowd takes on a machine that does nothing else.
const OPENING: Duration = Duration::from_secs(120);

/// Publishes that are measured, after one that takes the memory which later ones find.
const PUBLISHES: u32 = 3;

const PUSH_BYTES: usize = 128;

/// Free blocks that glibc sorts in one allocation at most.
const SORTED_AT_ONCE: usize = 10_000;

/// More than any block that a pipe gives back, and less than has a mapping of its own.
const LARGE_BYTES: usize = 64 << 10;

/// A crowd, opened in this process.
#[derive(Args, Clone, Debug)]
pub struct CrowdArgs {
    /// What each of it is.
    #[arg(value_enum)]
    who: Who,
    /// How many.
    sessions: usize,
    /// Of a server that is a node of a cluster.
    #[cfg(feature = "nodes")]
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// What each of a crowd is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Who {
    /// A pipe and nothing at its ends.
    Pipe,
    /// A session after one call.
    Plain,
    /// A session with a user and one topic.
    Entered,
    /// The same with a session that can be resumed.
    Resumable,
}

/// What was measured of a crowd, each figure for one of it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct CrowdReport {
    /// Memory.
    pub bytes: f64,
    /// CPU time in a second in which nothing happens.
    pub idle_nanos: f64,
    /// CPU time of a publish to all, for those who have entered.
    pub publish_cpu_nanos: f64,
    /// CPU time that another task of the same thread has to wait for its turn at most, while all get a publish. It is not
    /// divided by the number of sessions.
    pub publish_held_nanos: f64,
    /// The same, while nothing happens.
    pub idle_held_nanos: f64,
}

/// Opens a crowd in a process of its own. `None` if that takes too long: the machine does too much else.
///
/// # Errors
/// An answer or a push is not as it should be.
pub fn open_alone(program: &Path, who: Who, sessions: usize) -> anyhow::Result<Option<CrowdReport>> {
    open_with(program, who, sessions, &[])
}

/// The same at a node of the cluster with this broker.
///
/// # Errors
/// As [`open_alone`]; or the broker does not take a record of each session.
#[cfg(feature = "nodes")]
pub fn open_at_node(program: &Path, who: Who, sessions: usize, broker: &str) -> anyhow::Result<Option<CrowdReport>> {
    open_with(program, who, sessions, &["--cluster", broker])
}

fn open_with(program: &Path, who: Who, sessions: usize, more: &[&str]) -> anyhow::Result<Option<CrowdReport>> {
    let begin = Instant::now();
    let mut child = Command::new(program)
        .args(["crowd", &word(&who), &sessions.to_string()])
        .args(more)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start this program again")?;

    while child.try_wait()?.is_none() {
        if OPENING < begin.elapsed() {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(20));
    }

    // It prints one line, which waits in the pipe.
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "a crowd failed");
    Ok(Some(serde_json::from_slice(&output.stdout)?))
}

/// Opens the crowd, and prints what was measured as JSON.
///
/// # Errors
/// An answer or a push is not as it should be.
pub fn run(args: &CrowdArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(open(args, REST))?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

async fn open(args: &CrowdArgs, rest: Duration) -> anyhow::Result<CrowdReport> {
    let name = format!("memory@crowd-{}", word(&args.who));
    if args.who == Who::Pipe {
        return open_pipes(&name, args.sessions).await;
    }

    let server = server();
    #[cfg(feature = "nodes")]
    let records = join(&args.cluster, &server).await?;
    let _listening = server.listen(&name).await?;
    let (address, options) = (name.parse()?, ConnectOptions::default());
    let call = FirstCall::new(args.who);
    let mut buffer = vec![0; 64 << 10];
    let mut crowd = Vec::with_capacity(args.sessions);

    let before = Process::current().resident_bytes()?;
    for _ in 0..args.sessions {
        let socket = connect(&address, &options).await?;
        call.make(&socket, &mut buffer).await?;
        crowd.push(socket);
        #[cfg(feature = "nodes")]
        if let Some(records) = records.as_ref().filter(|_| crowd.len().is_multiple_of(WRITTEN_EVERY)) {
            records.reach(crowd.len()).await?;
        }
    }

    tokio::time::sleep(rest).await;
    let bytes = Process::current().resident_bytes()?.saturating_sub(before);
    let cpu = own_cpu();
    tokio::time::sleep(rest).await;
    let idle = own_cpu() - cpu;
    let held = HeldUp::watch();
    tokio::time::sleep(rest).await;
    let idle_held_nanos = held.stop().await?;

    ensure!(server.stats().connections == args.sessions, "a connection was lost");
    let each = |value: f64| value / args.sessions as f64;
    let mut report = CrowdReport {
        bytes: each(bytes as f64),
        idle_nanos: each(idle.as_nanos() as f64 / rest.as_secs_f64()),
        idle_held_nanos,
        ..CrowdReport::default()
    };

    if args.who == Who::Entered {
        let publishes = measure_publishes(&server, &crowd, &mut buffer).await?;
        report.publish_cpu_nanos = each(publishes.cpu.as_nanos() as f64 / f64::from(PUBLISHES));
        report.publish_held_nanos = publishes.held_nanos;
    }
    Ok(report)
}

/// So many sessions wait for their records together: what waits is not part of what a session takes later, and leaves
/// holes in memory.
#[cfg(feature = "nodes")]
const WRITTEN_EVERY: usize = 100;

/// Makes the server a node, if it is to be one.
#[cfg(feature = "nodes")]
async fn join(cluster: &ClusterArgs, server: &Server) -> anyhow::Result<Option<Records>> {
    cluster.join(server).await?;
    match cluster.broker() {
        Some(broker) => Ok(Some(Records::connect(broker).await?)),
        None => Ok(None),
    }
}

/// The call after which a connection is a session of the crowd.
struct FirstCall {
    /// What goes before it.
    hello: Option<Vec<u8>>,
    request: Vec<u8>,
    payload: Vec<u8>,
}

impl FirstCall {
    fn new(who: Who) -> Self {
        // Empty for `Enter`, and for the call as usual for calls.
        let (method, payload) = match who {
            Who::Entered | Who::Resumable => (contract::ENTER, Vec::new()),
            _ => (contract::ECHO, vec![7; 581]),
        };
        let mut request = Vec::new();
        put_request(&mut request, 1, method, &payload);
        let hello = (who == Who::Resumable).then(|| {
            let mut hello = Vec::new();
            put_hello(&mut hello);
            hello
        });
        Self { hello, request, payload }
    }

    /// Sends the call on a new connection, and waits for its reply.
    async fn make(&self, socket: &AnySocket, buffer: &mut [u8]) -> anyhow::Result<()> {
        if let Some(hello) = &self.hello {
            ensure!(socket.try_write(&[IoSlice::new(hello)])? == hello.len(), "no room for a Hello");
            ensure!(0 < read(socket, buffer).await?, "no answer to a Hello");
        }

        let request = &self.request;
        ensure!(socket.try_write(&[IoSlice::new(request)])? == request.len(), "no room for a call");

        // The names and the payload come back.
        let len = poll_fn(|cx| socket.poll_read(cx, buffer)).await?;
        ensure!(len == request.len() && buffer[..len].ends_with(&self.payload), "not the reply that was due");
        Ok(())
    }
}

/// What publishes to the whole crowd took.
struct Publishes {
    /// CPU time of [`PUBLISHES`] publishes together.
    cpu: Duration,
    /// CPU time that another task had to wait for its turn at most, during one more publish.
    held_nanos: f64,
}

async fn measure_publishes(server: &Server, crowd: &[AnySocket], buffer: &mut [u8]) -> anyhow::Result<Publishes> {
    let payload = Bytes::from(vec![7; PUSH_BYTES]);
    let push = Push::new(contract::SERVICE, contract::TICK, payload.clone()).class(Class::Fire);
    // As long as a request of the same names.
    let mut frame = Vec::new();
    put_request(&mut frame, 1, contract::TICK, &payload);

    let mut measured = Publishes { cpu: Duration::ZERO, held_nanos: 0.0 };
    for publish in 0..=PUBLISHES + 1 {
        sort_free_blocks(2 * crowd.len());
        // The watch takes CPU time itself, so the last publish is not measured. The watch has its first turn here.
        let held = (PUBLISHES < publish).then(HeldUp::watch);
        tokio::task::yield_now().await;
        let before = own_cpu();
        let outcomes = server.publish(Promise::Fire.topic(), &push)?.handled().await;
        if (1..=PUBLISHES).contains(&publish) {
            measured.cpu += own_cpu() - before;
        }
        if let Some(held) = held {
            measured.held_nanos = held.stop().await?;
        }

        ensure!(outcomes.targets() == crowd.len() && outcomes.dropped() == 0, "not for all: {outcomes:?}");
        for socket in crowd {
            let len = read(socket, buffer).await?;
            ensure!(len == frame.len() && buffer[..len].ends_with(&payload), "not the push that was due");
        }
    }
    Ok(measured)
}

/// Each client that has read a push gave back the block in which it lay, as no socket of a system does. glibc sorts such
/// blocks when something is allocated next, in one go of up to 3 ms for [`SORTED_AT_ONCE`] of them: they are sorted here,
/// so that what is measured is the server's.
fn sort_free_blocks(blocks: usize) {
    for _ in 0..=blocks / SORTED_AT_ONCE {
        drop(std::hint::black_box(Vec::<u8>::with_capacity(LARGE_BYTES)));
    }
}

/// A task that always yields, and measures how much CPU time passes until its next turn.
struct HeldUp {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Duration>,
}

impl HeldUp {
    fn watch() -> Self {
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let (mut longest, mut last) = (Duration::ZERO, thread_cpu());
            loop {
                tokio::task::yield_now().await;
                let now = thread_cpu();
                (longest, last) = (longest.max(now - last), now);
                if stopped.load(Ordering::Relaxed) {
                    return longest;
                }
            }
        });
        Self { stop, task }
    }

    /// Returns the longest time, in nanoseconds.
    async fn stop(self) -> anyhow::Result<f64> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self.task.await?.as_nanos() as f64)
    }
}

async fn open_pipes(name: &str, pipes: usize) -> anyhow::Result<CrowdReport> {
    let address = name.parse()?;
    let listener = Listener::bind(&address, &ListenOptions::default()).await?;
    let (mut near, mut far) = (Vec::with_capacity(pipes), Vec::with_capacity(pipes));
    let before = Process::current().resident_bytes()?;
    for _ in 0..pipes {
        near.push(connect(&address, &ConnectOptions::default()).await?);
        far.push(listener.accept().await.handshake(REST).await?);
    }
    let bytes = Process::current().resident_bytes()?.saturating_sub(before);
    Ok(CrowdReport { bytes: bytes as f64 / pipes as f64, ..CrowdReport::default() })
}

/// What one read brings.
async fn read(socket: &AnySocket, buffer: &mut [u8]) -> anyhow::Result<usize> {
    let read = poll_fn(|cx| socket.poll_read(cx, buffer));
    Ok(tokio::time::timeout(SILENCE, read).await.context("a push is missing")??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_of_a_crowd_get_what_is_published() {
        for who in [Who::Pipe, Who::Plain, Who::Entered, Who::Resumable] {
            let args = CrowdArgs {
                who,
                sessions: 100,
                #[cfg(feature = "nodes")]
                cluster: ClusterArgs::default(),
            };
            let report = open(&args, Duration::from_millis(1)).await.expect("all is as it should be");
            for of_publish in [report.publish_cpu_nanos, report.publish_held_nanos] {
                assert_eq!(0.0 < of_publish, who == Who::Entered, "{report:?}");
            }
        }
    }
}
