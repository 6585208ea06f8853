//! A server that stops gracefully: calls that run are answered, clients are told to come back, and the report says what was
//! left. Ctrl-C and SIGTERM stop it. With the argument `now` it stops itself while a call runs.
//!
//! `cargo run --example graceful_stop now`

use std::time::Duration;

use bothways::{Client, ClientOptions, ConnectionEvent, Reconnect, Server};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let slowly = |name: String| async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        Ok::<_, String>(format!("hello, {name}"))
    };
    let server = Server::builder().function("Greeter", "Hello", slowly).build();
    let listening = server.listen("127.0.0.1:0").await?;
    println!("listening on {}", listening.address());

    let client = Client::connect(listening.address(), ClientOptions::new().reconnect(Reconnect::Never)).await?;
    let mut events = client.events();
    let greeting = tokio::spawn({
        let client = client.clone();
        async move { client.call::<String>("Greeter", "Hello", "ann").await }
    });

    // From here on the signals do not end the process any more.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    if std::env::args().nth(1).is_some_and(|argument| argument == "now") {
        tokio::time::sleep(Duration::from_millis(100)).await;
    } else {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    }

    // No new connections from here on. Calls that run have ten seconds.
    drop(listening);
    let report = server.shutdown(Duration::from_secs(10)).await;
    println!("the call that ran: {:?}", greeting.await?);
    println!("{} told, {} closed, {} cut", report.clients_told, report.connections_closed, report.connections_cut);
    while let Some(event) = events.next().await {
        if let ConnectionEvent::Lost { reason, .. } = event {
            println!("the client knows why: {reason}");
            break;
        }
    }
    Ok(())
}
