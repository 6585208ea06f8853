//! HTTP, server-sent events and rpcx on one port.
//!
//! ```text
//! cargo run -p bothways-http --all-features --example shop            # calls itself once, and ends
//! cargo run -p bothways-http --all-features --example shop serve 8080 # until it is stopped
//! curl -d '{"A":6,"B":7}' -H 'Content-Type: application/json' http://127.0.0.1:8080/rpc/Arith/Mul
//! curl -N 'http://127.0.0.1:8080/events?topics=ticks'
//! ```

use std::{env, error::Error, time::Duration};

use bothways::{Client, ClientOptions, Push, Server, session::TopicOptions, transport::ListenOptions};
use bothways_http::FrontOptions;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

#[bothways::message]
struct Args {
    a: i64,
    b: i64,
}

#[bothways::message]
struct Product {
    c: i64,
}

struct Arith;

#[bothways::service]
impl Arith {
    async fn mul(&self, args: Args) -> Result<Product, String> {
        Ok(Product { c: args.a.saturating_mul(args.b) })
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let port = match &*arguments {
        [serve, port] if serve == "serve" => port.parse::<u16>()?,
        _ => 0,
    };
    let front = FrontOptions::new().debug(true).on_port();
    let server = Server::builder()
        .service(Arith)
        .topic("ticks", TopicOptions::new().history(100, Duration::from_secs(60)).open())?
        .listen_options(ListenOptions::default().http(front))
        .build();
    let listening = server.listen(&format!("tcp@127.0.0.1:{port}")).await?;
    println!("listening on {}", listening.address());
    if port == 0 {
        return call_itself(listening.address()).await;
    }

    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    for number in 0_u64.. {
        tokio::select! {
            _ = ticks.tick() => {}
            () = listening.stopped() => break,
        }
        server.publish("ticks", &Push::of("Clock", "Tick", &number)?)?;
    }
    Ok(())
}

/// By rpcx and by HTTP, at the same port.
async fn call_itself(address: &str) -> Result<(), Box<dyn Error>> {
    let client = Client::connect(address, ClientOptions::new()).await?;
    let product: Product = client.call("Arith", "Mul", &Args { a: 6, b: 7 }).await?;
    println!("by rpcx: {}", product.c);

    let mut stream = TcpStream::connect(address.trim_start_matches("tcp@")).await?;
    let body = r#"{"A":6,"B":7}"#;
    let head = "POST /rpc/Arith/Mul HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close";
    stream.write_all(format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    println!("by HTTP: {}", answer.lines().last().unwrap_or_default());
    Ok(())
}
