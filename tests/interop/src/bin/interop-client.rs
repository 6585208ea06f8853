//! A Rust client for tests to kill: it listens to pushes, waits for a slow call, and prints `READY`.
//!
//! `interop-client ADDRESS`. It ends with its input.

use bothways::{Client, ClientOptions};
use bothways_interop::contract::{Args, Reply};
use tokio::io::AsyncReadExt;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "tcp@127.0.0.1:8972".to_owned());
    let (client, mut messages) = Client::bidirectional(&address, ClientOptions::new()).await?;
    client.call::<Reply>("Push", "Tick", &Args { a: 10, b: 5 }).await?;
    messages.next().await;
    let slow = client.clone();
    tokio::spawn(async move { slow.call::<Reply>("Arith", "Sleep", &Args { a: 20_000, b: 1 }).await });
    client.call::<Reply>("Arith", "Mul", &Args { a: 10, b: 20 }).await?;
    println!("READY");
    let _ = tokio::io::stdin().read_to_end(&mut Vec::new()).await;
    Ok(())
}
