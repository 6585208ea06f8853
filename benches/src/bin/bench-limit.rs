//! The bare limit: what the system itself allows a server of the `Bench` contract.
//!
//! ```text
//! cargo run --release -p bothways-benches --bin bench-limit -- --addr 127.0.0.1:8972
//! ```
//!
//! The first line on stdout is `LISTENING tcp@127.0.0.1:8972`, when clients can connect.

use std::{
    io::{Read, Write},
    net::{SocketAddr, ToSocketAddrs},
};

use anyhow::Context;
use bothways_benches::limit;
use clap::Parser;
use socket2::{Domain, Socket, Type};

#[derive(Parser)]
#[command(about = "Serves `Bench` with as few system calls as there can be")]
struct Args {
    /// Where to listen: tcp@HOST:PORT or HOST:PORT; port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:8972")]
    addr: String,
    /// Threads, each with an epoll and a share of the connections. Default: one for each core.
    #[arg(long)]
    threads: Option<usize>,
    /// End when standard input does, so that a benchmark leaves no server behind.
    #[arg(long)]
    attached: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let host_port = args.addr.strip_prefix("tcp@").unwrap_or(&args.addr);
    let address = host_port.to_socket_addrs()?.next().context("the host has no address")?;
    if args.attached {
        std::thread::spawn(|| {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            std::process::exit(0);
        });
    }
    let listener = listen(address).with_context(|| format!("cannot listen on {address}"))?;
    println!("LISTENING {}", limit::address_of(listener.local_addr()?));
    std::io::stdout().flush()?;
    let cores = std::thread::available_parallelism()?.get();
    Ok(limit::serve(listener, args.threads.unwrap_or(cores))?)
}

/// As std listens, but with room for all clients of a benchmark that connect at once.
fn listen(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}
