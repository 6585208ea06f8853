//! `compare` and the programs that it starts: see the library.

use bothways_benches::{
    compare::{self, CompareArgs, StepsArgs},
    crowd::{self, CrowdArgs},
    page::{self, FillArgs},
    pair::ClientArgs,
    programs::{self, OurServeArgs},
};
use clap::{Parser, Subcommand, ValueEnum};

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(about = "Benchmarks of Bothways beside Go rpcx, other frameworks and the bare limit")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Puts all questions to all kinds, and prints medians and ratios.
    Compare(CompareArgs),
    /// Writes what `compare --json` wrote into a page, as tables and pictures.
    Page(FillArgs),
    /// Serves the contract.
    Serve {
        kind: Server,
        #[command(flatten)]
        args: OurServeArgs,
    },
    /// Calls our server with our client.
    Call {
        kind: Client,
        #[command(flatten)]
        args: ClientArgs,
    },
    /// Opens very many sessions within this process.
    Crowd(CrowdArgs),
    /// Runs one step many times, to be counted from outside.
    Steps(StepsArgs),
}

#[derive(Clone, Copy, ValueEnum)]
enum Server {
    Bothways,
    Limit,
}

#[derive(Clone, Copy, ValueEnum)]
enum Client {
    Bothways,
    /// One client of ten servers: of the addresses 127.0.0.1 to 127.0.0.10.
    Xclient,
    /// Ten clients; each call is made by the next one.
    Turns,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Compare(args) => compare::run(&args),
        Command::Page(args) => page::run(&args),
        Command::Crowd(args) => crowd::run(&args),
        Command::Serve { kind: Server::Bothways, args } => programs::serve_ours(&args),
        Command::Serve { kind: Server::Limit, args } => programs::serve_limit(&args.serve),
        Command::Call { kind: Client::Bothways, args } => programs::call_ours(args),
        Command::Call { kind: Client::Xclient, args } => programs::call_ours_by_xclient(args),
        Command::Call { kind: Client::Turns, args } => programs::call_ours_in_turn(args),
        Command::Steps(args) => compare::run_steps(&args),
    }
}
