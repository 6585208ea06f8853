//! A room whose messages are kept for those who come later, and that shows who is in it.
//!
//! `cargo run --example topics`

use std::time::Duration;

use bothways::{
    Client, ClientOptions, Push, Server, ServerMessages,
    session::{Position, PresenceChange, TopicOptions},
};

/// Prints what arrives until this many messages of the room have arrived. Changes of presence arrive between them.
async fn read(name: &str, messages: &mut ServerMessages, count: usize) -> Result<(), Box<dyn std::error::Error>> {
    let mut seen = 0;
    while seen < count {
        let message = messages.next().await.ok_or("the client is closed")?;
        if message.service_method() == "Presence" {
            let change: PresenceChange = message.decode()?;
            println!("{name} sees that {} is {:?}", change.user, change.status);
        } else {
            println!("{name} reads {:?} at {:?}", message.payload()?, message.position().map(|at| at.offset));
            seen += 1;
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Clients may subscribe to these by themselves. Of each the last 100 messages of an hour are kept.
    let rooms = TopicOptions::new().open().presence(true).history(100, Duration::from_secs(3600));
    let server = Server::builder()
        .auth(|request| async move {
            let session = request.session().ok_or("the client has left")?;
            session.bind_user(&request.token);
            Ok::<_, &str>(())
        })
        .topic("room.*", rooms)?
        .build();
    let listening = server.listen("127.0.0.1:0").await?;
    let say = |text: &str| server.publish("room.1", &Push::new("Room", "said", text.to_owned()));

    let connect = |name| Client::bidirectional(listening.address(), ClientOptions::new().auth(name));
    let (ann, mut to_ann) = connect("ann").await?;
    ann.subscribe("room.1").await?;
    say("first")?;
    say("second")?;
    read("ann", &mut to_ann, 2).await?;

    // Bob comes later, and asks for what he missed: from the beginning of the topic. A program that goes on after a restart
    // keeps the position that `subscribe` returns, and then that of each message that it has handled, and asks from there.
    let (bob, mut to_bob) = connect("bob").await?;
    let now = bob.subscribe("room.1").await?.position.ok_or("the room has a history")?;
    bob.subscribe_from("room.1", Position { offset: 0, ..now }).await?;
    let receipt = say("third")?;
    println!("the room keeps it at {:?}, and {} are told", receipt.position(), receipt.outcomes().targets());
    read("bob", &mut to_bob, 3).await?;
    read("ann", &mut to_ann, 1).await?;

    for member in server.presence("room.1")?.members {
        println!("in the room: {} ({:?})", member.user.as_deref().unwrap_or("?"), member.status);
    }
    Ok(())
}
