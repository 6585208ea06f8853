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
    Client, ClientOptions, Connection, Limits, Metadata, SerializeType, Server,
    codec::Raw,
    connection::{PushFrame, fan_out},
    transport::{AnySocket, ConnectOptions, Socket, connect},
};
use bothways_proto::{Deframer, FrameParts, Header, Names, Seq};
use clap::{Args, ValueEnum};

use crate::{contract, pair::Record, server::server};

/// Repetitions of the short run and of the long one.
const REPEATS: [u64; 2] = [1_000, 6_000];

const PAYLOAD: [u8; 581] = [7; 581];

/// Connections that a push goes to.
const RECEIVERS: usize = 64;

#[derive(Args, Debug)]
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
}

/// What is counted.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Step {
    /// The server's part of a call, 16 at once on one connection; the client is bare bytes.
    Serve16,
    /// The server's part of a call, one at a time.
    Serve1,
    /// Both ends of a call of raw bytes, 16 at once on one connection.
    Call16,
    /// Both ends of a call of raw bytes, one at a time.
    Call1,
    /// Both ends of a call of a record in MessagePack, 16 at once.
    CallRecord16,
    /// The server's part of a push, one to each of 64 connections at once.
    Push1,
    /// The server's part of a push, 16 to each of 64 connections at once.
    Push16,
    /// A push of 581 bytes becomes a frame.
    EncodePush,
    /// A call of 581 bytes becomes a message, 16 in one read.
    Decode,
}

impl Step {
    fn name(self) -> String {
        self.to_possible_value().expect("no step is hidden").get_name().to_owned()
    }

    /// What is counted in one repetition.
    fn units(self) -> u64 {
        match self {
            Self::Serve16 | Self::Call16 | Self::CallRecord16 | Self::Decode => 16,
            Self::Push1 => RECEIVERS as u64,
            Self::Push16 => 16 * RECEIVERS as u64,
            Self::Serve1 | Self::Call1 | Self::EncodePush => 1,
        }
    }

    fn question(self) -> &'static str {
        match self {
            Self::Serve16 => "server's part of a call, 16 at once",
            Self::Serve1 => "server's part of a call, one at a time",
            Self::Call16 => "both ends of a call, 16 at once",
            Self::Call1 => "both ends of a call, one at a time",
            Self::CallRecord16 => "both ends of a call of a record, 16 at once",
            Self::Push1 => "a push to one of 64 connections, one at a time",
            Self::Push16 => "a push to one of 64 connections, 16 at once",
            Self::EncodePush => "a push becomes a frame",
            Self::Decode => "a frame becomes a message",
        }
    }
}

pub(super) fn run(args: &InstructionsArgs) -> anyhow::Result<()> {
    if let Err(error) = Command::new("valgrind").arg("--version").stdout(Stdio::null()).status() {
        println!("instructions: skipped, no valgrind: {error}");
        return Ok(());
    }
    println!("{:<16} {:>12} {:>11}   of what (payloads of 581 bytes)", "step", "instructions", "allocations");
    for &step in Step::value_variants() {
        let name = step.name();
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
        let instructions = each(step, &["--tool=callgrind", &profile], "Collected :")?;
        let allocations = each(step, &["--tool=memcheck", "--undef-value-errors=no"], "total heap usage:")?;
        println!("{name:<16} {instructions:>12.0} {allocations:>11.2}   {}", step.question());
    }
    Ok(())
}

/// What one unit of a step adds to a figure that valgrind tells at the end.
fn each(step: Step, options: &[&str], figure: &str) -> anyhow::Result<f64> {
    let repeats = REPEATS.map(|repeats| repeats / step.units().min(50));
    let (few, many) = (count(step, repeats[0], options, figure)?, count(step, repeats[1], options, figure)?);
    Ok((many as f64 - few as f64) / ((repeats[1] - repeats[0]) * step.units()) as f64)
}

/// The figure of a whole run.
fn count(step: Step, repeats: u64, options: &[&str], figure: &str) -> anyhow::Result<u64> {
    let name = step.name();
    let output = Command::new("valgrind")
        // glibc copies some KiB and more with one `rep movsb`, which valgrind counts once for each byte.
        .env("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-ERMS")
        .args(options)
        .arg(env::current_exe()?)
        .args(["steps", &name, &repeats.to_string()])
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} failed under valgrind: {text}");
    let told = text.lines().find_map(|line| {
        let number = line.split_once(figure)?.1.split_whitespace().next()?;
        number.replace(',', "").parse().ok()
    });
    told.with_context(|| format!("valgrind does not tell {figure:?}: {text}"))
}

/// Runs one step, without counting anything.
///
/// # Errors
/// An answer is not as it should be.
pub fn run_steps(args: &StepsArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(steps(args.step, args.repeats))
}

async fn steps(step: Step, repeats: u64) -> anyhow::Result<()> {
    let server = server();
    let listening = server.listen("memory@steps").await?;
    let address = listening.address();
    match step {
        Step::Serve16 | Step::Serve1 => {
            let socket = connect(&address.parse()?, &ConnectOptions::default()).await?;
            let request: Vec<u8> = (0..step.units()).flat_map(request).collect();
            let mut buffer = vec![0; 64 << 10];
            for _ in 0..repeats {
                ensure!(socket.try_write(&[IoSlice::new(&request)])? == request.len(), "no room for the calls");
                // The names and the payload come back: as many bytes as were sent.
                read(&socket, &mut buffer, request.len()).await?;
            }
        }
        Step::Call16 | Step::Call1 | Step::CallRecord16 => {
            let client = Client::connect(address, ClientOptions::new()).await?;
            let mut callers = tokio::task::JoinSet::new();
            for _ in 0..step.units() {
                let client = client.clone();
                callers.spawn(async move {
                    for _ in 0..repeats {
                        call(step, &client).await?;
                    }
                    anyhow::Ok(())
                });
            }
            callers.join_all().await.into_iter().collect::<anyhow::Result<()>>()?;
        }
        Step::Push1 | Step::Push16 => push(&server, address, step.units() as usize / RECEIVERS, repeats).await?,
        Step::EncodePush => {
            let (metadata, limits) = (Metadata::new(), Limits::default());
            for _ in 0..repeats {
                black_box(PushFrame::new(contract::SERVICE, contract::TICK, &metadata, &PAYLOAD, &limits)?);
            }
        }
        Step::Decode => {
            let (bytes, limits) = ((0..step.units()).flat_map(request).collect::<Vec<u8>>(), Limits::default());
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

async fn call(step: Step, client: &Client) -> anyhow::Result<()> {
    if step == Step::CallRecord16 {
        let record = Record::sample(0);
        let got: Record = client.call(contract::SERVICE, contract::RECORD, &record).await?;
        return record.check(&got);
    }
    let payload = Raw::from(&PAYLOAD[..]);
    let got: Raw = client.call(contract::SERVICE, contract::ECHO, &payload).await?;
    ensure!(got == payload, "a reply with other bytes than its call");
    Ok(())
}

async fn push(server: &Server, address: &str, frames: usize, repeats: u64) -> anyhow::Result<()> {
    let mut sockets = Vec::new();
    for _ in 0..RECEIVERS {
        sockets.push(connect(&address.parse()?, &ConnectOptions::default()).await?);
    }
    while server.stats().connections < RECEIVERS {
        tokio::task::yield_now().await;
    }
    let connections: Vec<Connection> = server.connections();
    let mut buffer = vec![0; 64 << 10];
    let frame_len = request(0).len();
    let frame = PushFrame::new(contract::SERVICE, contract::ECHO, &Metadata::new(), &PAYLOAD, &Limits::default())?;
    let batch = vec![frame; frames];
    for _ in 0..repeats {
        let outcome = fan_out(&connections, &batch);
        ensure!(outcome.queued == RECEIVERS * frames, "a push was refused: {outcome:?}");
        for socket in &sockets {
            read(socket, &mut buffer, frame_len * frames).await?;
        }
    }
    Ok(())
}

fn request(number: u64) -> Vec<u8> {
    let header = Header::request(Seq::new(number), SerializeType::RAW);
    let (names, metadata) = (Names::new(contract::SERVICE, contract::ECHO), &Metadata::new());
    let parts = FrameParts { header, names, metadata, payload_len: PAYLOAD.len() };
    let mut frame = Vec::new();
    parts.put_frame(&mut frame, &PAYLOAD, &Limits::default()).expect("within the limits");
    frame
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
