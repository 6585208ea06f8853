//! One trait for each direction: clients call `Desk` at the server, the server pushes to `Inbox` at clients.
//!
//! `cargo run --example typed`

use std::sync::Mutex;

use bothways::{Client, ClientOptions, Connection, Context, Router, Server, message, service};
use tokio::sync::mpsc;

#[message]
struct Note {
    from: String,
    text: String,
}

/// What a server offers to clients.
#[service]
trait Desk {
    /// Signs in under a name, and returns how many are signed in.
    async fn sign_in(&self, cx: &mut Context, name: String) -> Result<usize, String>;
    /// Pushes a note to everyone who is signed in.
    async fn post(&self, note: Note) -> Result<usize, String>;
}

/// What a client offers to its server.
#[service]
trait Inbox {
    #[rpc(push)]
    async fn deliver(&self, note: Note);
}

#[derive(Default)]
struct FrontDesk {
    // A push over a connection comes at most once. Over a `Session` it would wait for a client that is away.
    present: Mutex<Vec<Connection>>,
}

impl Desk for FrontDesk {
    async fn sign_in(&self, cx: &mut Context, name: String) -> Result<usize, String> {
        if name.is_empty() {
            return Err("a name is needed".to_owned());
        }
        let mut present = self.present.lock().unwrap();
        present.push(cx.connection().clone());
        Ok(present.len())
    }

    async fn post(&self, note: Note) -> Result<usize, String> {
        let present = self.present.lock().unwrap().clone();
        let mut delivered = 0;
        for connection in present {
            delivered += usize::from(InboxClient::new(connection).deliver(&note).await.is_ok());
        }
        Ok(delivered)
    }
}

struct Printer {
    name: &'static str,
    printed: mpsc::UnboundedSender<()>,
}

impl Inbox for Printer {
    async fn deliver(&self, note: Note) {
        println!("{} reads: {} (from {})", self.name, note.text, note.from);
        let _ = self.printed.send(());
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = Server::builder().service(FrontDesk::default().into_service()).build();
    let listening = server.listen("127.0.0.1:0").await?;

    let (printed, mut prints) = mpsc::unbounded_channel();
    let mut desks = Vec::new();
    for name in ["ann", "bob"] {
        let inbox = Router::new().service(Printer { name, printed: printed.clone() }.into_service());
        let client = Client::with_handlers(listening.address(), ClientOptions::new(), inbox).await?;
        let desk = DeskClient::new(client);
        println!("{name} is number {}", desk.sign_in(name).await?);
        desks.push(desk);
    }
    println!("{}", desks[0].sign_in("").await.expect_err("no name was given"));

    let note = Note { from: "ann".to_owned(), text: "the coffee is ready".to_owned() };
    println!("delivered to {}", desks[0].post(&note).await?);
    for _ in 0..2 {
        prints.recv().await;
    }
    Ok(())
}
