//! `compare` and what it starts: see the library.

use bothways_benches::{
    compare::{self, CompareArgs, StepsArgs},
    pair::{ClientArgs, ServeArgs},
    plot::{self, PlotArgs},
    programs,
};
use clap::{Parser, Subcommand, ValueEnum};

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
    /// Draws what `compare --json` wrote, a picture for each question.
    Plot(PlotArgs),
    /// Serves the contract.
    Serve {
        kind: Server,
        #[command(flatten)]
        args: ServeArgs,
    },
    /// Calls our server with our client.
    Call {
        kind: Client,
        #[command(flatten)]
        args: ClientArgs,
    },
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
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Compare(args) => compare::run(&args),
        Command::Plot(args) => plot::run(&args),
        Command::Serve { kind: Server::Bothways, args } => programs::serve_ours(&args),
        Command::Serve { kind: Server::Limit, args } => programs::serve_limit(&args),
        Command::Call { kind: Client::Bothways, args } => programs::call_ours(args),
        Command::Steps(args) => compare::run_steps(&args),
    }
}
