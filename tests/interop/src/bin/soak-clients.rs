//! Many clients that expect the numbers from 0, each once and in order.
//!
//! `soak-clients ADDRESS COUNT N`. The clients are the users `u0` to `u(COUNT-1)`. Prints `READY` when the
//! server knows all of them, and a [`Received`] as JSON when each has seen N-1. It ends with its input.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use bothways::{Client, ClientOptions, ConnectionEvent, Reconnect};
use bothways_interop::soak::Received;
use tokio::{io::AsyncReadExt, sync::Barrier, task::JoinSet};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, clients, numbers] = &arguments[..] else { bail!("ADDRESS COUNT N") };
    let (clients, numbers): (usize, u64) = (clients.parse()?, numbers.parse()?);
    let mut running = JoinSet::new();
    let ready = Arc::new(Barrier::new(clients + 1));
    for client in 0..clients {
        running.spawn(receive(address.clone(), format!("u{client}"), numbers, Arc::clone(&ready)));
    }
    let (mut all, mut kept) = (Received::default(), Vec::new());
    tokio::select! {
        _ = ready.wait() => println!("READY"),
        // None ends before all are ready, unless it failed.
        Some(failed) = running.join_next() => bail!("{:?}", failed?.err()),
    }
    while let Some(received) = running.join_next().await {
        let (received, client) = received??;
        all.add(&received);
        kept.push(client);
    }
    println!("{}", serde_json::to_string(&all)?);
    // The clients stay until the server has heard what they handled.
    tokio::io::stdin().read_to_end(&mut Vec::new()).await?;
    Ok(())
}

async fn receive(
    address: String,
    user: String,
    numbers: u64,
    ready: Arc<Barrier>,
) -> anyhow::Result<(Received, Client)> {
    // The proxy may cut the first connection before the server has answered on it.
    let options =
        ClientOptions::new().backoff(Duration::from_millis(2), Duration::from_millis(20)).reconnect(Reconnect::Always);
    let (client, mut messages) = Client::bidirectional(&address, options).await.context("the proxy listens")?;
    // A session is the client's own once it has its Welcome: before that a cut means another one.
    while client.call::<()>("Soak", "Ready", &user).await.is_err() {
        tokio::task::yield_now().await;
    }
    ready.wait().await;
    let mut events = client.events();
    let mut received = Received::default();
    let mut expected = 0;
    while expected < numbers {
        tokio::select! {
            biased;
            event = events.next() => match event.context("the client is open")? {
                ConnectionEvent::SessionLost { .. } => received.sessions_lost += 1,
                ConnectionEvent::Lost { .. } => received.cuts += 1,
                _ => {}
            },
            message = messages.next() => {
                let message = message.context("the client is open")?;
                let number: u64 = std::str::from_utf8(&message.payload()?)?.parse()?;
                received.received += 1;
                received.gaps += message.dropped_before();
                if number < expected {
                    received.repeated_or_late += 1;
                } else {
                    received.skipped += number - expected;
                    expected = number + 1;
                }
            }
        }
    }
    // What comes twice may come at the end.
    let more = tokio::time::timeout(Duration::from_millis(500), async {
        while messages.next().await.is_some() {
            received.received += 1;
            received.repeated_or_late += 1;
        }
    });
    // That nothing comes is what is wanted.
    let _ = more.await;
    Ok((received, client))
}
