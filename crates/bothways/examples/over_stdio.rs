//! rpcx over a child process's standard input and output, both ways: a transport of the application's own. The parent
//! connects to `exec@program arguments`, the child listens on `stdio@`.
//!
//! `cargo run --example over_stdio`

use std::{
    io,
    process::Stdio,
    sync::{Arc, Mutex},
    task::{Context as TaskContext, Poll},
};

use bothways::{
    Client, ClientOptions, Context, Router, Server, service,
    transport::{Accepted, Address, AnySocket, BoxFuture, ConnectOptions, Listen, ListenOptions, Transport},
};
use tokio::{process::Command, sync::Notify};

/// Standard input and output as a connection.
struct Piped;

impl Transport for Piped {
    fn networks(&self) -> &[&str] {
        &["exec", "stdio"]
    }

    /// Starts the program, once for each connection. It ends when its input does.
    fn connect(&self, address: &Address, _: &ConnectOptions) -> BoxFuture<io::Result<AnySocket>> {
        let (network, name) = (address.network().to_owned(), address.to_string());
        let words: Vec<String> = address.target().split_whitespace().map(str::to_owned).collect();
        Box::pin(async move {
            let (program, arguments) = match &words[..] {
                [program, arguments @ ..] if network == "exec" => (program, arguments),
                _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no program")),
            };
            let mut command = Command::new(program);
            command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn()?;
            let (Some(output), Some(input)) = (child.stdout.take(), child.stdin.take()) else {
                return Err(io::ErrorKind::BrokenPipe.into());
            };
            tokio::spawn(async move { child.wait().await });
            Ok(AnySocket::from_async(tokio::io::join(output, input), name))
        })
    }

    fn bind(&self, address: &Address, _: &ListenOptions) -> BoxFuture<io::Result<Box<dyn Listen>>> {
        let address = address.to_string();
        let stream = tokio::io::join(tokio::io::stdin(), tokio::io::stdout());
        let socket = Mutex::new(Some(AnySocket::from_async(stream, &*address)));
        let listening: Box<dyn Listen> = Box::new(OneConnection { address, socket });
        Box::pin(async { Ok(listening) })
    }
}

/// One connection comes, and no other.
struct OneConnection {
    address: String,
    socket: Mutex<Option<AnySocket>>,
}

impl Listen for OneConnection {
    fn local_address(&self) -> String {
        self.address.clone()
    }

    fn poll_accept(&self, _: &mut TaskContext<'_>) -> Poll<io::Result<Accepted>> {
        let mut socket = self.socket.lock().map_err(|_| io::ErrorKind::Other)?;
        socket.take().map_or(Poll::Pending, |socket| Poll::Ready(Ok(Accepted::new(socket))))
    }
}

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
            Ok(true) => Ok(format!("{on} is done by process {}", std::process::id())),
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
    let over = Arc::new(Notify::new());
    let noted = Arc::clone(&over);
    let server = Server::builder()
        .service(Diligent.into_service())
        .on_disconnect(move |_, _| noted.notify_one())
        .transport(Piped)
        .build();
    let _listening = server.listen("stdio@").await?;
    over.notified().await;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    if std::env::args().nth(1).is_some_and(|argument| argument == "child") {
        return serve().await;
    }
    let address = format!("exec@{} child", std::env::current_exe()?.display());
    let handlers = Router::new().service(Strict.into_service());
    let options = ClientOptions::new().transport(Piped);
    let client = Client::with_handlers(&address, options, handlers).await?;

    let worker = WorkerClient::new(client.clone());
    println!("{}", worker.work("the report").await?);
    println!("{}", worker.work("the weekend").await.expect_err("the parent says no"));
    client.close();
    Ok(())
}
