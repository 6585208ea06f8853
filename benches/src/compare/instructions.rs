//! How many instructions and allocations a call and a push take.
//!
//! They hold where times do not: on a machine that does other things too. A [`Step`] is run
//! twice under valgrind, with few and with many repetitions; the difference leaves out the start of
//! the program. Everything is in one thread and goes over memory, so that neither the kernel nor a
//! second thread has a part in it.

use std::{
    env,
    future::poll_fn,
    hint::black_box,
    io::IoSlice,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, bail, ensure};
use bothways::{
    Class, Client, ClientOptions, Connection, Limits, Metadata, Push, Server, ServerLimits, Stage, Target,
    codec::Raw,
    raw::{PushFrame, fan_out},
    transport::{AnySocket, ConnectOptions, Socket, connect},
};
use bothways_proto::Deframer;
use bytes::Bytes;
use clap::{Args, ValueEnum};

use super::report::{Counted, Report, number};
use crate::{
    contract::{self, Promise, put_request, word},
    load::{put_ack, put_hello},
    record::Record,
    server::server,
};

/// Repetitions of the short run and of the long one.
const REPEATS: [u64; 2] = [1_000, 6_000];

/// Payload of a call or a push, unless it is asked for another.
const PAYLOAD_BYTES: usize = 581;

/// Connections that a push goes to.
const RECEIVERS: usize = 64;

/// Sessions that get what is published.
const SUBSCRIBERS: usize = 100;

/// Messages that are published before anybody else has a turn.
const PUBLISHED_AT_ONCE: usize = 200;

/// Bytes of what is published.
const PUBLISHED_BYTES: usize = 128;

/// The same where messages grow: a MiB to each is much to count.
const RECEIVERS_OF_SIZE: usize = 8;

#[derive(Args, Clone, Debug, Default)]
pub(super) struct InstructionsArgs {
    /// Only the steps whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Keeps valgrind's profile of each long run in this directory, for `callgrind_annotate`.
    #[arg(long)]
    profiles: Option<PathBuf>,
}

/// One step, run so many times. For `compare instructions`, which runs it under valgrind.
#[derive(Args, Debug)]
pub struct StepsArgs {
    #[arg(value_enum)]
    step: Step,
    repeats: u64,
    /// Bytes of each payload.
    #[arg(long, default_value_t = PAYLOAD_BYTES)]
    payload: usize,
    /// Connections that a push goes to.
    #[arg(long, default_value_t = RECEIVERS)]
    receivers: usize,
}

/// What is counted.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Step {
    /// The server's part of a call, 16 at once on one connection; the client is bare bytes.
    Serve16,
    /// The server's part of a call, one at a time.
    Serve1,
    /// A call beyond the bound of a server is refused, 16 at once on one connection.
    Refuse16,
    /// Both ends of a call of raw bytes, 16 at once on one connection.
    Call16,
    /// Both ends of a call of raw bytes, one at a time.
    Call1,
    /// Both ends of a call of a record in MessagePack, 16 at once.
    CallRecord16,
    /// The same to a handler that reads the record where it lies.
    CallBorrowed16,
    /// The server's part of a push, one to each of 64 connections at once.
    Push1,
    /// The server's part of a push, 16 to each of 64 connections at once.
    Push16,
    /// One delivery of what is published to 100 sessions, 200 at once, of class `Fire`: the server's part.
    PublishFire,
    /// The same of class `Tracked`, with an acknowledgement for every 200.
    PublishTracked,
    /// A push of 581 bytes becomes a frame.
    EncodePush,
    /// A call of 581 bytes becomes a message, 16 in one read.
    Decode,
}

impl Step {
    /// What is counted in one repetition.
    fn units(self) -> u64 {
        match self {
            Self::Serve16
            | Self::Refuse16
            | Self::Call16
            | Self::CallRecord16
            | Self::CallBorrowed16
            | Self::Decode => 16,
            Self::Push1 => RECEIVERS as u64,
            Self::Push16 => 16 * RECEIVERS as u64,
            Self::PublishFire | Self::PublishTracked => (PUBLISHED_AT_ONCE * SUBSCRIBERS) as u64,
            Self::Serve1 | Self::Call1 | Self::EncodePush => 1,
        }
    }

    /// Most instructions that one may take.
    fn to_reach(self) -> Option<f64> {
        match self {
            Self::PublishFire => Some(1_000.0),
            Self::PublishTracked => Some(1_100.0),
            Self::CallRecord16 => Some(24_500.0),
            Self::CallBorrowed16 => Some(21_500.0),
            _ => None,
        }
    }

    fn question(self) -> &'static str {
        match self {
            Self::Serve16 => "server's part of a call, 16 at once",
            Self::Serve1 => "server's part of a call, one at a time",
            Self::Refuse16 => "a call beyond the bound is refused, 16 at once",
            Self::Call16 => "both ends of a call, 16 at once",
            Self::Call1 => "both ends of a call, one at a time",
            Self::CallRecord16 => "both ends of a call of a record, 16 at once",
            Self::CallBorrowed16 => "the same, to a handler that reads the record where it lies",
            Self::Push1 => "a push to one of 64 connections, one at a time",
            Self::Push16 => "a push to one of 64 connections, 16 at once",
            Self::PublishFire => "a delivery of what is published to 100 sessions, 200 at once, Fire",
            Self::PublishTracked => "the same, Tracked and acknowledged",
            Self::EncodePush => "a push becomes a frame",
            Self::Decode => "a frame becomes a message",
        }
    }
}

/// Whether valgrind is there, or why not.
pub(super) fn find_valgrind() -> Result<(), String> {
    match Command::new("valgrind").arg("--version").stdout(Stdio::null()).status() {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("no valgrind: {error}")),
    }
}

/// Counts every step, and prints it at once.
pub(super) fn measure(args: &InstructionsArgs) -> anyhow::Result<Report> {
    let mut report = Report::new(1, false);
    if let Err(why) = find_valgrind() {
        println!("instructions: skipped, {why}");
        return Ok(report);
    }

    let head = ["step", "instructions", "to reach", "allocations"];
    println!("{:<16} {:>12} {:>8} {:>11}   of what (payloads of 581 bytes)", head[0], head[1], head[2], head[3]);
    for &step in Step::value_variants() {
        let name = word(&step);
        if args.only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            continue;
        }

        let profile = match &args.profiles {
            None => PathBuf::from("/dev/null"),
            Some(directory) => {
                std::fs::create_dir_all(directory)?;
                directory.join(format!("callgrind.out.{name}"))
            }
        };
        let profile = format!("--callgrind-out-file={}", profile.display());

        // A step of very many units tells enough with few repetitions.
        let repeats = REPEATS.map(|repeats| repeats / step.units().min(if step.units() < 5_000 { 50 } else { 500 }));
        let each = |options: &[&str], figure| Counting { step, repeats, more: Vec::new() }.each(options, figure);
        let instructions = each(&["--tool=callgrind", &profile], INSTRUCTIONS)?;
        let allocations = each(&["--tool=memcheck", "--undef-value-errors=no"], "total heap usage:")?;

        let to_reach = step.to_reach();
        let most = to_reach.map(number).unwrap_or_default();
        println!("{name:<16} {instructions:>12.0} {most:>8} {allocations:>11.2}   {}", step.question());
        let title = step.question().to_owned();
        report.steps.push(Counted { name, title, instructions, to_reach, allocations });
    }
    Ok(report)
}

/// Instructions of one unit of a step with payloads of this size.
pub(super) fn of_size(step: &str, payload: usize) -> anyhow::Result<f64> {
    let step = Step::from_str(step, false).map_err(anyhow::Error::msg)?;
    // As many of the large ones as take some seconds.
    let few = ((4 << 20) / payload as u64).clamp(4, 400);
    let more = vec![format!("--payload={payload}"), format!("--receivers={RECEIVERS_OF_SIZE}")];
    let counting = Counting { step, repeats: [few, 4 * few], more };
    let nanos = counting.each(&["--tool=callgrind", "--callgrind-out-file=/dev/null"], INSTRUCTIONS)?;
    // Counted as a push to one of the usual number.
    Ok(if step == Step::Push1 { nanos * RECEIVERS as f64 / RECEIVERS_OF_SIZE as f64 } else { nanos })
}

/// What callgrind calls them.
const INSTRUCTIONS: &str = "Collected :";

/// A step under valgrind, in a short run and in a long one.
struct Counting {
    step: Step,
    repeats: [u64; 2],
    /// Options of the step.
    more: Vec<String>,
}

impl Counting {
    /// What one unit of the step adds to a figure that valgrind tells at the end.
    fn each(&self, options: &[&str], figure: &str) -> anyhow::Result<f64> {
        let [few, many] = self.repeats;
        let added = self.count(many, options, figure)? as f64 - self.count(few, options, figure)? as f64;
        Ok(added / ((many - few) * self.step.units()) as f64)
    }

    /// The figure of a whole run.
    fn count(&self, repeats: u64, options: &[&str], figure: &str) -> anyhow::Result<u64> {
        let name = word(&self.step);
        let output = Command::new("valgrind")
            // glibc copies some KiB and more with one `rep movsb`, which valgrind counts once for each byte.
            .env("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-ERMS")
            .args(options)
            .arg(env::current_exe()?)
            .args(["steps", &name, &repeats.to_string()])
            .args(&self.more)
            .output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{name} failed under valgrind: {text}");
        let told = text.lines().find_map(|line| {
            let number = line.split_once(figure)?.1.split_whitespace().next()?;
            number.replace(',', "").parse().ok()
        });
        told.with_context(|| format!("valgrind does not tell {figure:?}: {text}"))
    }
}

/// Runs one step, without counting anything.
///
/// # Errors
/// An answer is not as it should be.
pub fn run_steps(args: &StepsArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(steps(args))
}

async fn steps(args: &StepsArgs) -> anyhow::Result<()> {
    let StepsArgs { step, repeats, payload, receivers } = *args;
    let payload = &*vec![7; payload];
    let server = server();
    let listening = server.listen("memory@steps").await?;
    // Under valgrind time flies: what is read at once would not be handled in one turn, which has a bound in time, and
    // pushes that follow each other at once would be no burst.
    tokio::time::pause();
    let address = listening.address();

    match step {
        Step::Serve16 | Step::Serve1 => {
            let socket = connect(&address.parse()?, &ConnectOptions::default()).await?;
            let request: Vec<u8> = (0..step.units()).flat_map(|number| request(number, payload)).collect();
            let mut buffer = vec![0; 64 << 10];

            for _ in 0..repeats {
                let mut rest = &*request;
                while !rest.is_empty() {
                    let written = poll_fn(|cx| socket.poll_write(cx, &[IoSlice::new(rest)])).await?;
                    rest = &rest[written..];
                }
                // The names and the payload come back: as many bytes as were sent.
                read(&socket, &mut buffer, request.len()).await?;
            }
        }
        Step::Refuse16 => {
            let server = Server::builder().limits(ServerLimits::new().calls_max(0)).build();
            let listening = server.listen("memory@full").await?;
            let socket = connect(&listening.address().parse()?, &ConnectOptions::default()).await?;
            let request: Vec<u8> = (0..step.units()).flat_map(|number| request(number, payload)).collect();
            let mut buffer = vec![0; 64 << 10];
            let mut len = 0;

            for _ in 0..repeats {
                ensure!(socket.try_write(&[IoSlice::new(&request)])? == request.len(), "no room for the calls");
                // The first answers tell how many bytes all later ones take.
                if len == 0 {
                    len = refusals(&socket, &mut buffer, step.units()).await?;
                } else {
                    read(&socket, &mut buffer, len).await?;
                }
            }
        }
        Step::Call16 | Step::Call1 | Step::CallRecord16 | Step::CallBorrowed16 => {
            let client = Client::connect(address, ClientOptions::new()).await?;
            let mut callers = tokio::task::JoinSet::new();

            for _ in 0..step.units() {
                let (client, payload) = (client.clone(), Raw::from(payload.to_vec()));
                callers.spawn(async move {
                    for _ in 0..repeats {
                        call(step, &client, &payload).await?;
                    }
                    anyhow::Ok(())
                });
            }

            callers.join_all().await.into_iter().collect::<anyhow::Result<()>>()?;
        }
        Step::Push1 | Step::Push16 => {
            let frames = step.units() as usize / RECEIVERS;
            push(&server, address, receivers, payload, frames, repeats).await?;
        }
        Step::PublishFire => publish(&server, address, Class::Fire, repeats).await?,
        Step::PublishTracked => publish(&server, address, Class::Tracked, repeats).await?,
        Step::EncodePush => {
            let (metadata, limits) = (Metadata::new(), Limits::default());
            for _ in 0..repeats {
                black_box(PushFrame::new(contract::SERVICE, contract::TICK, &metadata, payload, &limits)?);
            }
        }
        Step::Decode => {
            let (bytes, limits) =
                ((0..step.units()).flat_map(|number| request(number, payload)).collect::<Vec<u8>>(), Limits::default());

            let mut deframer = Deframer::new();
            for _ in 0..repeats {
                deframer.feed(&bytes, &limits);
                while let Some(message) = deframer.next_message(&limits)? {
                    black_box(message);
                }
            }
        }
    }

    Ok(())
}

async fn call(step: Step, client: &Client, payload: &Raw) -> anyhow::Result<()> {
    let of_record = match step {
        Step::CallRecord16 => Some(contract::RECORD),
        Step::CallBorrowed16 => Some(contract::BORROWED),
        _ => None,
    };
    if let Some(method) = of_record {
        let record = Record::sample(0);
        let got: Record = client.call(contract::SERVICE, method, &record).await?;
        return record.check(&got);
    }
    let got: Raw = client.call(contract::SERVICE, contract::ECHO, payload).await?;
    ensure!(got == *payload, "a reply with other bytes than its call");
    Ok(())
}

async fn push(
    server: &Server,
    address: &str,
    receivers: usize,
    payload: &[u8],
    frames: usize,
    repeats: u64,
) -> anyhow::Result<()> {
    let mut sockets = Vec::new();
    for _ in 0..receivers {
        sockets.push(connect(&address.parse()?, &ConnectOptions::default()).await?);
    }

    // A connection may be there before the server has accepted it.
    while server.stats().connections < receivers {
        tokio::task::yield_now().await;
    }

    let connections: Vec<Connection> = server.connections();
    let mut buffer = vec![0; 64 << 10];
    let frame = PushFrame::new(contract::SERVICE, contract::ECHO, &Metadata::new(), payload, &Limits::default())?;
    let frame_len = request(0, payload).len();
    let batch = vec![frame; frames];

    for _ in 0..repeats {
        let outcome = fan_out(&connections, &batch);
        ensure!(outcome.queued == receivers * frames, "a push was refused: {outcome:?}");
        for socket in &sockets {
            read(socket, &mut buffer, frame_len * frames).await?;
        }
    }
    Ok(())
}

/// Publishes to sessions of clients that are bare bytes.
async fn publish(server: &Server, address: &str, class: Class, repeats: u64) -> anyhow::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let mut sockets = Vec::new();
    let (is_tracked, topic) = (class == Class::Tracked, Promise::Fire.topic());
    for _ in 0..SUBSCRIBERS {
        let socket = connect(&address.parse()?, &ConnectOptions::default()).await?;
        let mut opening = Vec::new();
        if is_tracked {
            put_hello(&mut opening);
        }
        put_request(&mut opening, 2, contract::ENTER, b"");
        ensure!(socket.try_write(&[IoSlice::new(&opening)])? == opening.len(), "no room for the first frames");
        sockets.push(socket);
    }

    // The answers are not read yet: the server tells when all have subscribed.
    while server.sessions(&Target::subscribers_of(topic))?.len() < SUBSCRIBERS {
        tokio::task::yield_now().await;
    }

    // Reads the replies to the first frames, so that only pushes are read below.
    for socket in &sockets {
        tokio::task::yield_now().await;
        while 0 < poll_fn(|cx| std::task::Poll::Ready(ready_read(socket.poll_read(cx, &mut buffer)))).await? {}
    }

    let payload = Bytes::from(vec![7; PUBLISHED_BYTES]);
    let push = Push::new(contract::SERVICE, contract::TICK, payload).class(class);
    // As long as a Go client sees it: the frame of a session that knows no topics.
    let mut offset = 0;
    for _ in 0..repeats {
        let receipts: Vec<_> =
            (0..PUBLISHED_AT_ONCE).map(|_| server.publish(topic, &push)).collect::<Result<_, _>>()?;
        for receipt in receipts {
            let outcomes = receipt.written().await;
            let written = outcomes.at(Stage::PlainWritten) + outcomes.at(Stage::Written);
            ensure!(written == SUBSCRIBERS, "not to all: {outcomes:?}");
        }

        offset += PUBLISHED_AT_ONCE as u64;
        let mut ack = Vec::new();
        put_ack(&mut ack, offset);
        for socket in &sockets {
            let read = poll_fn(|cx| socket.poll_read(cx, &mut buffer)).await?;
            ensure!(PUBLISHED_AT_ONCE * PUBLISHED_BYTES < read, "{read} bytes of the pushes");
            if is_tracked {
                ensure!(socket.try_write(&[IoSlice::new(&ack)])? == ack.len(), "no room for an acknowledgement");
            }
        }
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// What a read brings that need not wait; 0: nothing.
fn ready_read(read: std::task::Poll<std::io::Result<usize>>) -> std::io::Result<usize> {
    match read {
        std::task::Poll::Ready(read) => read,
        std::task::Poll::Pending => Ok(0),
    }
}

fn request(number: u64, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    put_request(&mut frame, number, contract::ECHO, payload);
    frame
}

/// Reads so many refusals. Answers how many bytes they have.
async fn refusals(socket: &AnySocket, buffer: &mut [u8], count: u64) -> anyhow::Result<usize> {
    let (mut deframer, limits, mut len) = (Deframer::new(), Limits::default(), 0);
    for _ in 0..count {
        let message = loop {
            if let Some(message) = deframer.next_message(&limits)? {
                break message;
            }
            let read = poll_fn(|cx| socket.poll_read(cx, buffer)).await?;
            ensure!(0 < read, "the server closed the connection");
            deframer.feed(&buffer[..read], &limits);
        };
        let text = message.error_text().unwrap_or_default();
        ensure!(text.starts_with("overloaded"), "a call beyond the bound was answered with {text:?}");
        len += message.frame().len();
    }
    Ok(len)
}

/// Reads exactly so many bytes.
async fn read(socket: &AnySocket, buffer: &mut [u8], len: usize) -> anyhow::Result<()> {
    let mut got = 0;
    while got < len {
        match poll_fn(|cx| socket.poll_read(cx, buffer)).await? {
            0 => bail!("the server closed the connection"),
            n => got += n,
        }
    }
    ensure!(got == len, "{got} bytes instead of {len}");
    Ok(())
}
