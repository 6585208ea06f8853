//! What the binaries of this package do, so that one of them can start another as itself.

use anyhow::Context;
use socket2::{Domain, Socket, Type};

use crate::{
    limit,
    load::socket_address,
    ours::OurClient,
    pair::{ClientArgs, ServeArgs, block_on, run_client, say_listening},
    server::server,
};

/// Serves the contract with Bothways.
///
/// # Errors
/// The address cannot be listened on.
pub fn serve_ours(args: &ServeArgs) -> anyhow::Result<()> {
    args.watch_stdin();
    block_on(args.threads, async {
        let listening = server().listen(&args.addr).await?;
        say_listening(listening.address())?;
        listening.stopped().await;
        Ok(())
    })
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
