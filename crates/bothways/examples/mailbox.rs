//! Durable pushes: ann is not there when the letters are written, the server ends, and another one delivers them.
//!
//! ```sh
//! cargo run -p bothways --example mailbox --features cluster-memory
//! ```
//!
//! The store here is in memory and outlives the two servers, as a file of `bothways-redb` outlives their processes.

use std::{sync::Arc, time::Duration};

use bothways::{
    Class, Client, ClientOptions, Push, Server, Stage, Target,
    cluster::memory::{MemoryBroker, MemoryEngine},
};

fn server(store: Arc<MemoryEngine>) -> Server {
    Server::builder()
        .store(store)
        .auth(|request| async move {
            let session = request.session().ok_or("the client has left")?;
            session.bind_user(&request.token);
            Ok::<_, &str>(())
        })
        .build()
}

fn letter(text: &str) -> Push {
    Push::new("Mail", "New", text.to_owned()).class(Class::Durable { ttl: Duration::from_secs(24 * 3600) })
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let store = MemoryBroker::new().engine();
    let first = server(Arc::clone(&store));
    let listening = first.listen("memory@first").await?;
    for text in ["the first letter", "the second letter"] {
        let kept = first.push(&Target::user("ann"), &letter(text))?.stored().await?;
        println!("{text:?} is in {}, at {}", kept[0].log, kept[0].position);
    }
    first.shutdown(Duration::from_secs(1)).await;
    drop((listening, first));
    println!("the first server has ended");

    let second = server(store);
    let listening = second.listen("memory@second").await?;
    let options = ClientOptions::new().auth("ann").device("phone");
    let (_client, mut messages) = Client::bidirectional(listening.address(), options).await?;
    for _ in 0..2 {
        let message = messages.next().await.ok_or("the client is closed")?;
        println!("ann's phone got {:?}", String::from_utf8_lossy(&message.payload()?));
    }

    let receipt = second.push(&Target::user("ann"), &letter("the third letter"))?;
    let message = messages.next().await.ok_or("the client is closed")?;
    println!("ann's phone got {:?}", String::from_utf8_lossy(&message.payload()?));
    drop(message);
    println!("handled by {} of {} sessions", receipt.handled().await.at(Stage::Handled), receipt.outcomes().targets());
    Ok(())
}
