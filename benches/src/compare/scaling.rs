//! The cost of a client as the number of clients grows, and of a message as its size grows.
//!
//! | from | to | over |
//! |---|---|---|
//! | 200 clients | 19,000 | sockets: 20,000 files a process is the usual bound |
//! | 1,000 sessions | 1,000,000 | the transport within one process, each crowd in a process of its own |
//! | 64 B | 1 MiB | sockets, 16 calls in flight, or pushes to 32 clients |

use std::{thread, time::Duration};

use anyhow::ensure;
use clap::Args;

use super::{
    ask::{broadcasts, connect},
    instructions,
    kinds::{Kind, Running, Tools},
    report::{Curve, Report},
};
use crate::{
    contract::{BroadcastArgs, word},
    crowd::{self, Who},
    load::{ClosedLoop, Load},
};

/// Clients over sockets. The load opens a few files more than there are clients.
const CLIENTS: [usize; 5] = [200, 1_000, 5_000, 10_000, 19_000];

/// Sessions within one process.
const SESSIONS: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];

/// Payloads.
const SIZES: [usize; 8] = [64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];

const KINDS: [Kind; 2] = [Kind::Ours, Kind::Limit];

/// Time for a server to come to rest before its memory is looked at.
const REST: Duration = Duration::from_millis(2_500);

/// Clients that a push of some size goes to.
const RECEIVERS: usize = 32;

/// Bytes of all pushes of a size, and most of them to each.
const PUSHED_BYTES: usize = 256 << 20;
const PUSHES: usize = 5_000;

/// Rounds of what is timed, unless others are asked for. Steps beside each other show what is chance.
const ROUNDS: usize = 2;

#[derive(Args, Clone, Debug)]
pub(super) struct ScalingArgs {
    /// How often what is timed is measured: clients and sizes. Crowds and instructions are counted once.
    #[arg(long)]
    rounds: Option<usize>,
    /// Short and small, to see that everything works: the figures mean little.
    #[arg(long)]
    quick: bool,
    /// Only these parts: clients, sessions, sizes, instructions. May be given several times.
    #[arg(long)]
    only: Vec<String>,
}

impl ScalingArgs {
    /// As in a run of everything.
    pub(super) fn all(rounds: Option<usize>, quick: bool) -> Self {
        Self { rounds: rounds.map(|rounds| rounds.min(ROUNDS)), quick, only: Vec::new() }
    }
}

pub(super) fn measure(args: &ScalingArgs, tools: &Tools) -> anyhow::Result<Report> {
    let rounds = args.rounds.unwrap_or(if args.quick { 1 } else { ROUNDS }).max(1);
    let mut report = Report::new(rounds, args.quick);
    let few = |all: &[usize], quick: usize| if args.quick { all[..quick].to_vec() } else { all.to_vec() };

    type Part = fn(&mut Report, &[usize], &Tools, usize) -> anyhow::Result<()>;
    let parts: [(&str, Part, Vec<usize>); 4] = [
        ("clients", clients, few(&CLIENTS, 2)),
        ("sessions", sessions, few(&SESSIONS, 2)),
        ("sizes", sizes, few(&SIZES, 5)),
        ("instructions", counts, few(&SIZES, 2)),
    ];

    for (name, part, steps) in parts {
        if args.only.is_empty() || args.only.iter().any(|only| name.contains(only.as_str())) {
            let first = report.curves.len();
            part(&mut report, &steps, tools, rounds)?;
            report.curves[first..].iter().for_each(|curve| println!("{}", curve.table()));
        }
    }
    Ok(report)
}

/// Cost of a client as clients grow.
fn clients(report: &mut Report, steps: &[usize], tools: &Tools, rounds: usize) -> anyhow::Result<()> {
    let curve = |name, title, y| Curve::new(name, title, "clients", y);
    let mut memory = curve("clients-memory", "memory of an idle client, after one call", "bytes/client");
    let mut call = curve("clients-calls", "a call of 581 bytes, each client has one in flight", "server CPU µs/call");
    let mut push = curve("clients-pushes", "a push of 128 bytes to all", "server CPU µs/push");

    for round in 0..rounds {
        for &clients in steps {
            for kind in KINDS {
                eprintln!("{clients} clients: {}, round {} of {rounds}", kind.name(), round + 1);
                let server = tools.serve(kind)?;
                let before = server.process().resident_bytes()?;
                let mut load = connect(tools, &server, clients)?;
                load.call_each(581)?;
                thread::sleep(REST);
                let bytes = server.process().resident_bytes()?.saturating_sub(before);
                memory.add(kind.name(), clients, bytes as f64 / clients as f64);

                let mut work = closed_loop(1, 581, Duration::from_millis(1_000));
                // All have sent their first call before the time begins.
                work.warm_up += Duration::from_micros(100) * clients as u32;
                let measured = load.closed_loop(work)?;
                ensure!(0 < measured.count, "{clients} clients got no reply within a second");
                call.add(kind.name(), clients, measured.server_cpu_nanos_each() / 1e3);

                load.join_all()?;
                let args = BroadcastArgs { count: 1, size: 128 };
                // Not counted: it warms up.
                load.broadcast(args, true)?;
                let measured = broadcasts(&mut load, args, (100_000 / clients).clamp(5, 200))?;
                push.add(kind.name(), clients, measured.server_cpu_nanos_each() / 1e3);
            }
        }
    }

    report.curves.extend([memory, call, push]);
    Ok(())
}

/// Cost of a session as sessions grow, without sockets.
fn sessions(report: &mut Report, steps: &[usize], tools: &Tools, _: usize) -> anyhow::Result<()> {
    let curve = |name, title, y| Curve::new(name, title, "sessions", y);
    let mut memory = curve("sessions-memory", "memory of an idle session, without its transport", "bytes/session");
    let mut idle = curve("sessions-idle", "looking after a session that does nothing", "CPU ns/session in a second");
    let mut publish = curve("sessions-publish", "a publish of 128 bytes to all", "CPU ns/session");

    for &sessions in steps {
        let reports = [Who::Pipe, Who::Plain, Who::Entered].map(|who| {
            eprintln!("{sessions} sessions within one process: {}", word(&who));
            crowd::open_alone(tools.program_of(Kind::Ours), who, sessions)
        });
        let [Some(pipe), Some(plain), Some(entered)] = reports.into_iter().collect::<anyhow::Result<Vec<_>>>()?[..]
        else {
            println!("{sessions} sessions within one process: skipped, opening them took too long");
            break;
        };

        // The pipes and the load's own ends are no part of a session.
        let pipe = pipe.bytes;
        memory.add("after one call", sessions, plain.bytes - pipe);
        memory.add("with user and topic", sessions, entered.bytes - pipe);
        idle.add("after one call", sessions, plain.idle_nanos);
        idle.add("with user and topic", sessions, entered.idle_nanos);
        publish.add("publish", sessions, entered.publish_cpu_nanos);
    }

    report.curves.extend([memory, idle, publish]);
    Ok(())
}

/// Cost of a byte as messages grow.
fn sizes(report: &mut Report, steps: &[usize], tools: &Tools, rounds: usize) -> anyhow::Result<()> {
    let curve = |name, title, y| Curve::new(name, title, "bytes of payload", y);
    let call = curve("sizes-calls", "calls: 4 connections × 4 in flight", "server CPU µs/call");
    let call_byte = curve("sizes-calls-byte", "calls: 4 connections × 4 in flight", "server CPU ns/byte");
    let push = curve("sizes-pushes", "pushes to 32 clients", "server CPU µs/push");
    let push_byte = curve("sizes-pushes-byte", "pushes to 32 clients", "server CPU ns/byte");
    let mut curves = [call, call_byte, push, push_byte];

    for round in 0..rounds {
        for &size in steps {
            for kind in KINDS {
                eprintln!("{size} bytes: {}, round {} of {rounds}", kind.name(), round + 1);
                let server = tools.serve(kind)?;
                let nanos = [call_of(size, tools, &server)?, push_of(size, tools, &server)?];
                for (curves, nanos) in curves.chunks_mut(2).zip(nanos) {
                    curves[0].add(kind.name(), size, nanos / 1e3);
                    curves[1].add(kind.name(), size, nanos / size as f64);
                }
            }
        }
    }

    report.curves.extend(curves);
    Ok(())
}

fn call_of(size: usize, tools: &Tools, server: &Running) -> anyhow::Result<f64> {
    let measured = connect(tools, server, 4)?.closed_loop(closed_loop(4, size, Duration::from_millis(700)))?;
    Ok(measured.server_cpu_nanos_each())
}

fn push_of(size: usize, tools: &Tools, server: &Running) -> anyhow::Result<f64> {
    let mut load: Load = connect(tools, server, RECEIVERS)?;
    load.join_all()?;
    let count = (PUSHED_BYTES / RECEIVERS / size).clamp(4, PUSHES);
    load.broadcast(BroadcastArgs { count: count.div_ceil(4), size }, true)?;
    Ok(broadcasts(&mut load, BroadcastArgs { count, size }, 2)?.server_cpu_nanos_each())
}

/// Instructions of a byte as messages grow: they do not depend on machine load.
fn counts(report: &mut Report, steps: &[usize], _: &Tools, _: usize) -> anyhow::Result<()> {
    if let Err(why) = instructions::find_valgrind() {
        println!("instructions as messages grow: skipped, {why}");
        return Ok(());
    }
    let curve = |name, y| Curve::new(name, "the server's part, counted by callgrind", "bytes of payload", y);
    let mut each = curve("sizes-instructions", "instructions");
    let mut byte = curve("sizes-instructions-byte", "instructions/byte");
    for &size in steps {
        for (line, step) in [("a call, one at a time", "serve1"), ("a push to one of 8", "push1")] {
            eprintln!("{size} bytes: instructions of {line}");
            let instructions = instructions::of_size(step, size)?;
            each.add(line, size, instructions);
            byte.add(line, size, instructions / size as f64);
        }
    }
    report.curves.extend([each, byte]);
    Ok(())
}

fn closed_loop(in_flight: usize, payload_bytes: usize, measure: Duration) -> ClosedLoop {
    ClosedLoop::new(in_flight, payload_bytes, Duration::from_millis(200), measure)
}
