//! One client of three servers: it goes on when one of them dies, and to one that joins.
//!
//! `cargo run --example xclient`

use bothways::{
    FailMode, MultipleServersDiscovery, SelectMode, Server, ServerEntry, XClient, XClientOptions, server::Listening,
};

/// A server that answers with its name.
async fn server(name: &'static str) -> Result<(Server, Listening), Box<dyn std::error::Error>> {
    let who = move |(): ()| async move { Ok::<_, String>(name.to_owned()) };
    let server = Server::builder().function("Who", "Are", who).build();
    let listening = server.listen("127.0.0.1:0").await?;
    Ok((server, listening))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (one, at_one) = server("one").await?;
    let (_two, at_two) = server("two").await?;
    let servers = MultipleServersDiscovery::new([at_one.address(), at_two.address()]);

    // As rpcx's `NewXClient`: Failover asks another server where the first cannot be reached.
    let options = XClientOptions::new();
    let client = XClient::new("Who", FailMode::Failover, SelectMode::RoundRobin, servers.clone(), options);
    for _ in 0..4 {
        println!("answered by {}", client.call::<String>("Are", &()).await?);
    }

    drop(at_one);
    one.shutdown(std::time::Duration::from_secs(1)).await;
    println!("one is gone");
    for _ in 0..3 {
        println!("answered by {}", client.call::<String>("Are", &()).await?);
    }

    let (_three, at_three) = server("three").await?;
    servers.update([ServerEntry::new(at_two.address()), ServerEntry::new(at_three.address())]);
    println!("three has joined");
    for _ in 0..4 {
        println!("answered by {}", client.call::<String>("Are", &()).await?);
    }
    Ok(())
}
