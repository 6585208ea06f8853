//! The command line that all peers share: `serve` and `call`, as `compare` starts them.

use bothways_benches::pair::{ClientArgs, Peer, ServeArgs, block_on, run_client};
use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answers what it is sent.
    Serve(ServeArgs),
    /// Calls, and prints what was measured.
    Call(ClientArgs),
}

/// Serves with `serve`, or calls with `P`.
///
/// # Errors
/// Those of either.
pub fn main<P: Peer, F: Future<Output = anyhow::Result<()>>>(serve: impl FnOnce(ServeArgs) -> F) -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Serve(args) => {
            args.watch_stdin();
            block_on(args.threads, serve(args))
        }
        Command::Call(args) => block_on(args.threads, run_client::<P>(args)),
    }
}

/// `tcp@HOST:PORT` without the network, as other libraries want it.
pub fn host_port(address: &str) -> &str {
    address.strip_prefix("tcp@").unwrap_or(address)
}
