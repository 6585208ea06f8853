//! The programs of this package's binaries, so that one of them can start another as itself.

use anyhow::Context;
use bothways::transport::ListenOptions;
use clap::Args;
use socket2::{Domain, Socket, Type};

#[cfg(feature = "nodes")]
use crate::cluster::ClusterArgs;
use crate::{
    limit,
    load::socket_address,
    ours::{OurClient, OurTurns, OurXClient},
    pair::{ClientArgs, ServeArgs, block_on, run_client, say_listening},
    server::server_with,
};

/// How to serve with Bothways.
#[derive(Args, Clone, Debug)]
pub struct OurServeArgs {
    /// As every server does.
    #[command(flatten)]
    pub serve: ServeArgs,
    /// A runtime of one thread for each core, each with a listener of its own on the one port, in place of
    /// one runtime with many threads.
    #[arg(long)]
    per_core: bool,
    /// Takes WebSocket too, at the same port.
    #[arg(long)]
    one_port: bool,
    /// As a node of a cluster.
    #[cfg(feature = "nodes")]
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Serves the contract with Bothways.
///
/// # Errors
/// The address cannot be listened on.
pub fn serve_ours(args: &OurServeArgs) -> anyhow::Result<()> {
    args.serve.watch_stdin();
    if args.per_core {
        return serve_per_core(&args.serve);
    }
    let listen = ListenOptions::default().one_port(args.one_port);
    block_on(args.serve.threads, async {
        let server = server_with(|builder| builder.listen_options(listen));
        #[cfg(feature = "nodes")]
        args.cluster.join(&server).await?;
        let listening = server.listen(&args.serve.addr).await?;
        say_listening(listening.address())?;
        listening.stopped().await;
        Ok(())
    })
}

/// One server on several runtimes: each accepts from a listener of its own, and drives what it accepts.
fn serve_per_core(args: &ServeArgs) -> anyhow::Result<()> {
    let server = server_with(|builder| builder.listen_options(ListenOptions::default().reuse_port(true)));
    let runtimes = args.threads.unwrap_or(std::thread::available_parallelism()?.get()).max(1);
    let mut address = args.addr.clone();
    let mut threads = Vec::new();
    for index in 0..runtimes {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listening = runtime.block_on(server.listen(&address))?;
        // The first one settles the port for all.
        address = listening.address().to_owned();
        let serve = move || runtime.block_on(listening.stopped());
        threads.push(std::thread::Builder::new().name(format!("core-{index}")).spawn(serve)?);
    }
    // Before all listen, nobody may connect: the system spreads connections over those that do.
    say_listening(address)?;
    threads.into_iter().for_each(|thread| thread.join().expect("a runtime does not panic"));
    Ok(())
}

/// Serves the contract on epoll alone.
///
/// # Errors
/// The address cannot be listened on.
pub fn serve_limit(args: &ServeArgs) -> anyhow::Result<()> {
    args.watch_stdin();
    let address = socket_address(&args.addr)?;
    // As std listens, but with room for all clients of a benchmark that connect at once.
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into()).with_context(|| format!("cannot listen on {address}"))?;
    socket.listen(4096)?;
    let listener = std::net::TcpListener::from(socket);
    say_listening(limit::address_of(listener.local_addr()?))?;
    let cores = std::thread::available_parallelism()?.get();
    Ok(limit::serve(listener, args.threads.unwrap_or(cores))?)
}

/// Calls our server with our client.
///
/// # Errors
/// A call failed, or its reply was not what was due.
pub fn call_ours(args: ClientArgs) -> anyhow::Result<()> {
    block_on(args.threads, run_client::<OurClient>(args))
}

/// Calls our server with ten of our clients, each call by the next one.
///
/// # Errors
/// A call failed, or its reply was not what was due.
pub fn call_ours_in_turn(args: ClientArgs) -> anyhow::Result<()> {
    block_on(args.threads, run_client::<OurTurns>(args))
}

/// Calls our server with our client of many servers.
///
/// # Errors
/// A call failed, or its reply was not what was due.
pub fn call_ours_by_xclient(args: ClientArgs) -> anyhow::Result<()> {
    block_on(args.threads, run_client::<OurXClient>(args))
}
