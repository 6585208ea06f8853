//! rpcx over a child process's standard input and output: a connection over any stream of bytes, without a transport of
//! the library's. The child serves, and calls its parent back.
//!
//! `cargo run --example over_stdio`

use std::process::Stdio;

use bothways::{
    Client, ClientOptions, Context, Reconnect, Router, Server, service,
    transport::{AnySocket, ConnectOptions},
};
use tokio::process::Command;

/// What the child offers.
#[service]
trait Worker {
    async fn work(&self, cx: &mut Context, on: String) -> Result<String, String>;
}

/// What the parent offers to the child.
#[service]
trait Boss {
    async fn may_i(&self, question: String) -> Result<bool, String>;
}

struct Diligent;

impl Worker for Diligent {
    async fn work(&self, cx: &mut Context, on: String) -> Result<String, String> {
        let boss = BossClient::new(cx.connection().clone());
        match boss.may_i(&format!("may I work on {on}?")).await {
            Ok(true) => Ok(format!("{on} is done")),
            Ok(false) => Err("it was not allowed".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

struct Strict;

impl Boss for Strict {
    async fn may_i(&self, question: String) -> Result<bool, String> {
        println!("the child asks: {question}");
        Ok(!question.contains("the weekend"))
    }
}

/// The child: one connection, for as long as there is one.
async fn serve() -> Result<(), Box<dyn std::error::Error>> {
    let server = Server::builder().service(Diligent.into_service()).build();
    let stream = tokio::io::join(tokio::io::stdin(), tokio::io::stdout());
    let connection = server.take(AnySocket::from_async(stream, "stdio"))?;
    connection.closed().await;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    if std::env::args().nth(1).is_some_and(|argument| argument == "child") {
        return serve().await;
    }
    let program = std::env::current_exe()?;
    let mut child = Command::new(program).arg("child").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (output, input) = (child.stdout.take().ok_or("piped")?, child.stdin.take().ok_or("piped")?);
    let socket = AnySocket::from_async(tokio::io::join(output, input), "child");

    let options =
        ClientOptions::new().connect_options(ConnectOptions::default().over(socket)).reconnect(Reconnect::Never);
    let handlers = Router::new().service(Strict.into_service());
    let client = Client::with_handlers("memory@child", options, handlers).await?;
    let worker = WorkerClient::new(client.clone());
    println!("{}", worker.work("the report").await?);
    println!("{}", worker.work("the weekend").await.expect_err("the parent says no"));

    client.close();
    println!("the child ends: {}", child.wait().await?);
    Ok(())
}
