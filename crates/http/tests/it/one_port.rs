//! HTTP on the port of the server itself.

use std::{net::SocketAddr, time::Duration};

use bothways::{Client, ClientOptions, transport::ListenOptions};
use bothways_http::FrontOptions;
use serde_json::json;

use crate::support::{Args, Http, Product, ask, builder, until};

#[tokio::test]
async fn one_port_serves_rpcx_and_http() {
    let front = FrontOptions::new().on_port();
    let server = builder().listen_options(ListenOptions::default().http(front)).build();
    let listening = server.listen("tcp@127.0.0.1:0").await.expect("a port is free");
    let address: SocketAddr = listening.address()["tcp@".len()..].parse().expect("an address");

    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    let product: Product = client.call("Arith", "Mul", &Args { a: 6, b: 7 }).await.expect("it answers");
    assert_eq!(product.c, 42);

    let mut http = Http::connect(address).await;
    let head = "POST /rpc/Arith/Mul\nContent-Type: application/json";
    for _ in 0..2 {
        assert_eq!(http.ask(head, "{\"A\":6,\"B\":7}").await.json(), json!({ "C": 42 }));
    }
    let who = http.ask("POST /rpc/Arith/Meta\nContent-Type: application/json", "{\"A\":6,\"B\":7}").await;
    assert_eq!(who.body, format!("\"http@{}\"", http.stream.local_addr().expect("it has one")));
    assert_eq!(server.stats().http_connections, 1);

    // The server keeps its front, and not the other way round.
    let weak = server.downgrade();
    server.shutdown(Duration::from_secs(5)).await;
    http.closed().await;
    drop((client, listening, server));
    until("the server is gone", || weak.upgrade().is_none()).await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "nobody listens");
}

/// A stream of events ends with the server, which does not wait for it.
#[tokio::test]
async fn a_stream_of_events_ends_with_its_server() {
    let front = FrontOptions::new().on_port();
    let server = builder().listen_options(ListenOptions::default().http(front)).build();
    let listening = server.listen("tcp@127.0.0.1:0").await.expect("a port is free");
    let address: SocketAddr = listening.address()["tcp@".len()..].parse().expect("an address");
    assert_eq!(ask(address, "GET /readyz", "").await.status, 200);
    let mut http = Http::connect(address).await;
    http.send(crate::support::request("GET /events", "")).await;
    assert_eq!(http.head().await.status, 200);
    let began = std::time::Instant::now();
    let report = server.shutdown(Duration::from_secs(60)).await;
    assert!(report.connections_cut == 0 && began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    let said = http.closed().await;
    assert!(said.contains("event: bothways.end") && said.ends_with("0\r\n\r\n"), "{said}");
}
