//! The bare limit: the most that the operating system allows a server of the `Bench` contract.
//!
//! ```text
//! cargo run --release -p bothways-benches --bin bench-limit -- --addr 127.0.0.1:8972
//! ```
//!
//! The first line on stdout is `LISTENING tcp@127.0.0.1:8972`, when clients can connect.

use bothways_benches::{pair::ServeArgs, programs};
use clap::Parser;

#[derive(Parser)]
#[command(about = "Serves `Bench` with as few system calls as there can be")]
struct Args {
    #[command(flatten)]
    serve: ServeArgs,
}

fn main() -> anyhow::Result<()> {
    programs::serve_limit(&Args::parse().serve)
}
