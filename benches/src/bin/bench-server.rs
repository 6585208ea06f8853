//! Our server of the `Bench` contract, for the load generator or any rpcx client.
//!
//! ```text
//! cargo run --release -p bothways-benches --bin bench-server -- --addr 127.0.0.1:8972
//! ```
//!
//! The first line on stdout is `LISTENING tcp@127.0.0.1:8972`, when clients can connect.

use std::io::{Read, Write};

use anyhow::Context;
use bothways_benches::server::server;
use clap::Parser;

#[derive(Parser)]
#[command(about = "Serves `Bench`: Echo, Join and Broadcast, with raw bytes")]
struct Args {
    /// Where to listen: tcp@HOST:PORT, HOST:PORT or unix@/path; port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:8972")]
    addr: String,
    /// Threads that serve. Default: one for each core.
    #[arg(long)]
    threads: Option<usize>,
    /// End when standard input does, so that a benchmark leaves no server behind.
    #[arg(long)]
    attached: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = args.threads {
        runtime.worker_threads(threads.max(1));
    }
    let runtime = runtime.enable_all().build().context("cannot start the runtime")?;
    if args.attached {
        std::thread::spawn(|| {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            std::process::exit(0);
        });
    }
    runtime.block_on(async {
        let listening = server().listen(&args.addr).await?;
        println!("LISTENING {}", listening.address());
        std::io::stdout().flush()?;
        listening.stopped().await;
        Ok(())
    })
}
