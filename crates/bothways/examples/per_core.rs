//! One server with a runtime for each core: each has a listener of its own on the one port
//! (`SO_REUSEPORT`), and drives the connections that it accepts. Sessions, users and topics are the
//! server's: a push from anywhere reaches everyone.
//!
//! `cargo run --example per_core`

use std::{io, thread, time::Duration};

use bothways::{Client, ClientOptions, Server, server::Listening, transport::ListenOptions};
use tokio::runtime::{Builder, Runtime};

/// Runs until the server is shut down, and until those whom this runtime drives have been told.
fn drive(runtime: &Runtime, server: &Server, listening: &Listening) {
    runtime.block_on(async {
        listening.stopped().await;
        server.shutdown(Duration::from_secs(5)).await;
    });
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = Server::builder()
        .function("Core", "Which", |(): ()| async {
            Ok::<_, String>(thread::current().name().unwrap_or_default().to_owned())
        })
        .listen_options(ListenOptions::default().reuse_port(true))
        .build();

    let cores = thread::available_parallelism()?.get();
    let mut address = "tcp@127.0.0.1:0".to_owned();
    let mut threads = Vec::new();
    for core in 0..cores {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let listening = runtime.block_on(server.listen(&address))?;
        // The first listener settles the port. Its runtime also keeps the deadlines of all connections.
        address = listening.address().to_owned();
        let server = server.clone();
        let name = format!("core-{core}");
        threads.push(thread::Builder::new().name(name).spawn(move || drive(&runtime, &server, &listening))?);
    }
    println!("{cores} runtimes listen on {address}");

    // Anything else has a runtime of its own: here the clients, and the end.
    Builder::new_current_thread().enable_all().build()?.block_on(async {
        for client in 0..8 {
            let connected = Client::connect(&address, ClientOptions::new()).await?;
            let core: String = connected.call("Core", "Which", &()).await?;
            println!("client {client} is served by {core}");
        }
        server.shutdown(Duration::from_secs(5)).await;
        Ok::<_, Box<dyn std::error::Error>>(())
    })?;
    threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| io::Error::other("a runtime panicked")))?;
    Ok(())
}
