//! A server that knows its users: it pushes by name, learns what became of each push, and a client whose
//! connection is cut comes back to what it was owed.
//!
//! `cargo run --example sessions`

use bothways::{Client, ClientOptions, Push, Server, Stage, Target};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The token is the user's name. A real server looks it up.
    let server = Server::builder()
        .auth(|request| async move {
            match (request.token.strip_prefix("bearer "), request.session()) {
                (Some(name), Some(session)) => {
                    session.bind_user(name);
                    Ok(())
                }
                _ => Err("a token is needed"),
            }
        })
        .function("Clock", "Now", |(): ()| async { Ok::<_, String>("noon") })
        .build();
    let listening = server.listen("127.0.0.1:0").await?;

    let options = ClientOptions::new().auth("bearer ann");
    let (client, mut messages) = Client::bidirectional(listening.address(), options).await?;
    let now: String = client.call("Clock", "Now", &()).await?;
    println!("ann is here at {now}");

    let receipt = server.push(&Target::user("ann"), &Push::new("Mail", "new", "a letter"))?;
    let message = messages.next().await.ok_or("the client is closed")?;
    println!("ann reads {:?}", message.payload()?);
    drop(message); // handled: the server is told
    println!("handled by {}", receipt.handled().await.at(Stage::Handled));

    // The line is cut, and the server pushes all the same.
    client.connection()?.close();
    let receipt = server.push(&Target::user("ann"), &Push::new("Mail", "new", "another letter"))?;
    let message = messages.next().await.ok_or("the client is closed")?;
    println!("ann is back and reads {:?}", message.payload()?);
    drop(message);
    println!("handled by {}", receipt.handled().await.at(Stage::Handled));

    let nobody = server.push(&Target::user("bob"), &Push::new("Mail", "new", "?"))?;
    println!("bob has {} sessions", nobody.outcomes().targets());
    for story in server.explain(&Target::user("ann"))? {
        println!("\n{story}");
    }
    Ok(())
}
