//! The documentation's example of rpcx: a server that remembers who called, and sends to it every second.
//!
//! `cargo run --example bidirectional_server [ADDRESS]`, default 127.0.0.1:8972.

use std::{sync::Mutex, time::Duration};

use bothways::{Connection, Context, Metadata, Server, message, service};

#[message]
struct Args {
    a: i64,
    b: i64,
}

#[message]
struct Reply {
    c: i64,
}

struct Arith;

static CALLER: Mutex<Option<Connection>> = Mutex::new(None);

#[service]
impl Arith {
    async fn mul(&self, cx: &mut Context, args: Args) -> Result<Reply, String> {
        *CALLER.lock().unwrap() = Some(cx.connection().clone());
        Ok(Reply { c: args.a * args.b })
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:8972".to_owned());
    let server = Server::builder().service(Arith).build();
    let listening = server.listen(&address).await?;
    println!("LISTENING {}", listening.address());

    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let caller = CALLER.lock().unwrap().clone();
        if let Some(caller) = caller {
            let sent =
                server.send_message(&caller, "test_service_path", "test_service_method", &Metadata::new(), "abcde");
            if let Err(error) = sent {
                println!("not sent to {}: {error}", caller.peer_address());
                *CALLER.lock().unwrap() = None;
            }
        }
    }
}
