//! Three servers in one process that are nodes of one cluster: a push at any of them reaches a user at every one.
//!
//! `cargo run -p bothways --features cluster-memory --example three_nodes`

use std::{error::Error, time::Duration};

use bothways::{
    Client, ClientOptions, Push, Server, Stage, Target,
    cluster::{Cluster, memory::MemoryBroker},
};

/// A server in which a client's token is its user's name.
fn server() -> Server {
    Server::builder()
        .auth(|request| async move {
            request.session().ok_or("the client has left")?.bind_user(&request.token);
            Ok::<_, &str>(())
        })
        .build()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // The engine between the nodes: one for all.
    let broker = MemoryBroker::new();
    let (mut servers, mut listening, mut clients) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..3 {
        let server = server();
        // Join first, so that no client comes to a server that is alone.
        let node = server.join(Cluster::new(broker.engine())).await?;
        let address = server.listen("tcp@127.0.0.1:0").await?;
        println!("node {node} listens on {}", address.address());
        clients.push(Client::bidirectional(address.address(), ClientOptions::new().auth("ann")).await?);
        servers.push(server);
        listening.push(address);
    }
    // A client has a session once its server has answered its Hello.
    for (client, _) in &clients {
        while !client.connection()?.is_negotiated() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    let receipt = servers[0].push(&Target::user("ann"), &Push::new("Mail", "New", "a letter"))?;
    println!("pushed at the first node: {} here, {} nodes to hear of", receipt.outcomes().targets(), receipt.routing());
    for (number, (_, messages)) in clients.iter_mut().enumerate() {
        let message = messages.next().await.ok_or("the client is closed")?;
        println!("device {number} has {:?}", message.payload()?);
    }
    let outcomes = receipt.handled().await;
    println!("handled by {} of {}", outcomes.at(Stage::Handled), outcomes.targets());

    let nobody = servers[1].push(&Target::user("bob"), &Push::new("Mail", "New", "a letter"))?;
    nobody.handled().await;
    println!("bob is nowhere: {}", nobody.is_no_route());

    for server in servers {
        server.shutdown(Duration::from_secs(1)).await;
    }
    Ok(())
}
