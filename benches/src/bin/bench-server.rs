//! Our server of the `Bench` contract, for the load generator or any rpcx client.
//!
//! ```text
//! cargo run --release -p bothways-benches --bin bench-server -- --addr 127.0.0.1:8972
//! ```
//!
//! The first line on stdout is `LISTENING tcp@127.0.0.1:8972`, when clients can connect.

use bothways_benches::programs::{self, OurServeArgs};
use clap::Parser;

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(about = "Serves `Bench`: Echo, Join and Broadcast, with raw bytes")]
struct Args {
    #[command(flatten)]
    serve: OurServeArgs,
}

fn main() -> anyhow::Result<()> {
    programs::serve_ours(&Args::parse().serve)
}
