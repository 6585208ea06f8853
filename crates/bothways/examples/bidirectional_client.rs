//! The documentation's example of rpcx: a client that calls, and prints what the server sends to it.
//!
//! `cargo run --example bidirectional_client [ADDRESS]`, default 127.0.0.1:8972.

use bothways::{ClientOptions, FailMode, Peer2PeerDiscovery, SelectMode, XClient, message};

#[message]
struct Args {
    a: i64,
    b: i64,
}

#[message]
struct Reply {
    c: i64,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:8972".to_owned());
    let discovery = Peer2PeerDiscovery::new(address.as_str());
    let (client, mut messages) =
        XClient::bidirectional("Arith", FailMode::Failtry, SelectMode::RandomSelect, discovery, ClientOptions::new());

    let args = Args { a: 10, b: 20 };
    let reply: Reply = client.call("Mul", &args).await?;
    println!("{} * {} = {}", args.a, args.b, reply.c);

    while let Some(message) = messages.next().await {
        println!("received: {}", String::from_utf8_lossy(&message.payload()?));
    }
    Ok(())
}
