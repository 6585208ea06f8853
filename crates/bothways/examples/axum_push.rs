//! A web server in the same process: an HTTP route pushes to a user who is connected.
//!
//! `cargo run --example axum_push`

use std::time::Duration;

use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    routing::post,
};
use bothways::{Client, ClientOptions, Push, Server, Stage, Target};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// `POST /users/{user}/letters`: pushes the body to the user, and says what became of it.
async fn letter(State(server): State<Server>, Path(user): Path<String>, body: String) -> (StatusCode, String) {
    let receipt = match server.push(&Target::user(user), &Push::new("Mail", "New", body)) {
        Ok(receipt) => receipt,
        Err(error) => return (StatusCode::BAD_REQUEST, error.to_string()),
    };
    if receipt.outcomes().targets() == 0 {
        return (StatusCode::NOT_FOUND, "not connected".to_owned());
    }
    match timeout(Duration::from_secs(5), receipt.handled()).await {
        Ok(outcomes) => (StatusCode::OK, format!("handled by {}", outcomes.at(Stage::Handled))),
        Err(_) => (StatusCode::ACCEPTED, "on its way".to_owned()),
    }
}

/// What any HTTP client would do.
async fn post_letter(address: &str, user: &str, text: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let length = text.len();
    let head = format!("POST /users/{user}/letters HTTP/1.1\r\nHost: {address}\r\nContent-Length: {length}\r\n");
    stream.write_all(format!("{head}Connection: close\r\n\r\n{text}").as_bytes()).await?;

    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let status = answer.lines().next().unwrap_or_default();
    let body = answer.lines().last().unwrap_or_default();
    Ok(format!("{status}: {body}"))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The token is the user's name. A real server looks it up.
    let server = Server::builder()
        .auth(|request| async move {
            request.session().ok_or("the client has left")?.bind_user(&request.token);
            Ok::<_, &str>(())
        })
        .build();
    let listening = server.listen("127.0.0.1:0").await?;

    let web = TcpListener::bind("127.0.0.1:0").await?;
    let web_address = web.local_addr()?.to_string();
    let routes = Router::new().route("/users/{user}/letters", post(letter)).with_state(server.clone());
    tokio::spawn(async move { axum::serve(web, routes).await });

    let options = ClientOptions::new().auth("ann");
    let (client, mut messages) = Client::bidirectional(listening.address(), options).await?;
    let reading = tokio::spawn(async move {
        while let Some(message) = messages.next().await {
            println!("ann reads {:?}", message.payload());
        }
    });

    println!("for ann: {}", post_letter(&web_address, "ann", "a letter").await?);
    println!("for bob: {}", post_letter(&web_address, "bob", "a letter").await?);

    client.close();
    reading.await?;
    Ok(())
}
