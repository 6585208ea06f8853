//! A Rust client that says what happens to it, in the words of Go's `cmd/optin`.
//!
//! `session-client ADDRESS TOKEN`. It implements `Device` for its server, and obeys `call A B` and `subscribe TOPIC`
//! from its input, with which it ends.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use bothways::{Client, ClientOptions, ConnectionEvent, Request, Router, SerializeType};
use bothways_interop::{
    contract::{Args, Reply},
    device::{ArithClient, Device},
};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};

#[derive(Default)]
struct Phone {
    runs: AtomicI64,
}

impl Device for Phone {
    async fn mul(&self, args: Args) -> Result<Reply, String> {
        Ok(Reply { c: args.a * args.b })
    }

    async fn count(&self, args: Args) -> Result<Reply, String> {
        let c = self.runs.fetch_add(1, Ordering::SeqCst) + 1;
        tokio::time::sleep(Duration::from_millis(args.a.try_into().unwrap_or(0))).await;
        Ok(Reply { c })
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, token] = &arguments[..] else { anyhow::bail!("ADDRESS TOKEN") };
    let handlers = Router::new().service(Phone::default().into_service()).handler("Chat", "say", |request: Request| {
        assert_eq!(request.serialize_type(), SerializeType::RAW);
        let payload = request.payload().expect("not packed");
        println!("{}", json!({"event": "push", "text": String::from_utf8_lossy(&payload)}));
        std::future::ready(bothways::Reply::ok(""))
    });
    let options = ClientOptions::new().auth(token).backoff(Duration::from_millis(5), Duration::from_millis(50));
    let client = Client::with_handlers(address, options, handlers).await?;
    let mut events = client.events();
    tokio::spawn(async move {
        while let Some(event) = events.next().await {
            if let ConnectionEvent::SessionLost { why, .. } = event {
                println!("{}", json!({"event": "session-lost", "why": format!("{why:?}")}));
            }
        }
    });
    let arith = ArithClient::new(client.clone());
    // Its session is its own once the server has answered.
    arith.mul(&Args { a: 1, b: 1 }).await?;
    println!("{}", json!({"event": "connected"}));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["call", a, b] => {
                let (args, arith) = (Args { a: a.parse()?, b: b.parse()? }, ArithClient::new(client.clone()));
                tokio::spawn(async move {
                    // It multiplies: to ask again does no harm.
                    let reply = loop {
                        match arith.mul(&args).await {
                            Ok(reply) => break reply,
                            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                        }
                    };
                    println!("{}", json!({"event": "answered", "a": args.a, "b": args.b, "c": reply.c}));
                });
            }
            ["subscribe", topic] => {
                let subscribed = client.subscribe(topic).await?;
                println!("{}", json!({"event": "subscribed", "recovered": subscribed.recovered}));
            }
            _ => anyhow::bail!("{line}?"),
        }
    }
    client.close();
    Ok(())
}
