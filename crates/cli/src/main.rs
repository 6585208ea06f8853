//! The program `bothways`: shows the framework, and calls, watches, measures and serves rpcx services.
//!
//! | file | what it does |
//! |---|---|
//! | `args.rs` | what was typed |
//! | `plan.rs` | what is meant: methods, times, sizes, payloads, tokens |
//! | `peer.rs` | how a command connects |
//! | `failure.rs` | what goes wrong, in words and as an exit code |
//! | `term.rs` | what a terminal is shown: colours, safe text, times |
//! | `value.rs` | JSON ↔ MessagePack, and payloads for people |
//! | `demo.rs` | the whole framework in one process, step by step, each step checked |
//! | `nodes_demo.rs` | nodes of one cluster, one of which dies |
//! | `service.rs`, `serve.rs` | the services of `demo` and `serve`, and serving them |
//! | `cluster.rs` | how a server becomes a node of a cluster |
//! | `web.rs`, `web_demo.rs` | HTTP beside the server; a page that is a client, and its server |
//! | `call.rs`, `listen.rs`, `push.rs` | one command each |
//! | `sessions.rs` | lists, explains and ends sessions |
//! | `mail.rs` | mailboxes of durable pushes |
//! | `dump.rs` | frames, from a file or from a proxy in the middle |
//! | `load.rs`, `broadcast.rs`, `latency.rs` | load in either direction, and how long things took |

mod args;
mod broadcast;
mod call;
#[cfg(feature = "nats")]
mod cluster;
mod demo;
mod dump;
mod failure;
mod latency;
mod listen;
mod load;
mod mail;
mod nodes;
mod nodes_demo;
mod peer;
mod plan;
mod push;
mod serve;
mod service;
mod sessions;
mod term;
mod value;
mod web;
mod web_demo;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::{
    args::{Args, Command},
    failure::{Exit, Failure},
};

fn main() -> ExitCode {
    let args = Args::parse();
    let serves = matches!(args.command, Command::Serve(_));
    log_to_stderr(args.verbose, serves);

    let done = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Usage, format!("cannot start the runtime: {error}")))
        .and_then(|runtime| {
            let done = runtime.block_on(run(args.command));
            // A read of standard input that nobody waits for any more must not hold up the end.
            runtime.shutdown_background();
            done
        });

    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.tell();
            failure.exit_code()
        }
    }
}

async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Demo(args) => demo::run(args).await,
        Command::Serve(args) => serve::run(args).await,
        Command::Call(args) => call::run(args).await,
        Command::Listen(args) => listen::run(args).await,
        Command::Push(args) => push::run(args).await,
        Command::Connections(args) => push::connections(args).await,
        Command::Nodes(args) => nodes::list(args).await,
        Command::Sessions(args) => sessions::list(args).await,
        Command::Explain(args) => sessions::explain(args).await,
        Command::Kick(args) => sessions::kick(args).await,
        Command::Mail(args) => mail::run(args).await,
        Command::Dump(args) => dump::run(args).await,
        Command::Load(args) => load::run(args).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "bothways", &mut script);
            term::Out::new().bytes(&script)
        }
    }
}

/// What the library logs, as far as it is asked for: `-v`, or `RUST_LOG`. A server warns in any case.
fn log_to_stderr(verbose: u8, serves: bool) {
    let level = match verbose {
        0 if serves => "warn",
        0 => "error",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };

    let said = std::env::var("RUST_LOG").ok().filter(|said| !said.is_empty());
    let filter = said.map(tracing_subscriber::EnvFilter::try_new).transpose().unwrap_or_else(|error| {
        term::complain(&format!("note: RUST_LOG is not understood, and does not count: {error}"));
        None
    });
    let filter = filter.unwrap_or_else(|| level.into());

    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(term::Paint::stderr().is_on())
        .init();
}
