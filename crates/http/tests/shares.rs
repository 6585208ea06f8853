//! What a front has for all its clients, none of them takes from the others; and what it answers to requests that are wrong.

use std::time::Duration;

use bothways::{Server, transport::ListenOptions};
use bothways_http::FrontOptions;

#[allow(dead_code, reason = "it is the support of other tests too")]
#[path = "it/support.rs"]
mod support;

use support::{Http, LONG, ask, builder, request, serve, until, with_users};

const JSON: &str = "Content-Type: application/json";

/// Options with which clients may say who they are: this machine is a proxy to the front.
fn behind_a_proxy() -> FrontOptions {
    FrontOptions::new().trusted_proxies(["127.0.0.1".parse().expect("an address")])
}

/// Bodies that never end, nine of 8 MiB as before and more, hold up their own address, and nobody else.
#[tokio::test]
async fn unfinished_bodies_hold_up_nobody_else() {
    let served = serve(builder(), behind_a_proxy()).await;
    let head = format!(
        "POST /rpc/Arith/Mul HTTP/1.1\r\nHost: x\r\n{JSON}\r\nX-Forwarded-For: 192.0.2.1\r\nContent-Length: {}\r\n\r\n",
        8 << 20
    );
    let unfinished = format!("{head}{}", " ".repeat((8 << 20) - 1));
    let mut kept = Vec::new();
    for held in 1..=4 {
        let mut http = Http::connect(served.address()).await;
        http.send(&unfinished).await;
        until("it is read", || (held << 23) - 100 <= served.front.stats().held_bytes).await;
        kept.push(http);
    }
    for _ in 0..5 {
        let mut http = Http::connect(served.address()).await;
        http.send(&unfinished).await;
        let answer = http.answer().await;
        assert!(answer.status == 503 && answer.body.contains("held_bytes_per_address_max"), "{answer:?}");
    }

    let much = format!("{{\"A\":6,\"B\":7{}}}", " ".repeat(7 << 20));
    let head = format!("POST /rpc/Arith/Mul\n{JSON}\nX-Forwarded-For: 192.0.2.2");
    let answer = tokio::time::timeout(Duration::from_secs(5), ask(served.address(), &head, &much)).await;
    assert_eq!(answer.expect("nothing holds it up").status, 200);
    let head = format!("POST /rpc/Arith/Mul\n{JSON}\nX-Forwarded-For: 192.0.2.1");
    let answer = ask(served.address(), &head, &much).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, "1"), "{answer:?}");
    assert!(answer.body.contains("held_bytes_per_address_max"), "{answer:?}");
    drop(kept);
    until("it is given back", || served.front.stats().held_bytes == 0).await;
}

/// Streams and tickets of one client leave room for those of others.
#[tokio::test]
async fn streams_and_tickets_have_shares() {
    let served = serve(with_users(), behind_a_proxy().streams_max(5)).await;
    let open = async |client: &str, user: &str| {
        let mut http = Http::connect(served.address()).await;
        let head = format!("GET /events\nX-Forwarded-For: {client}\nAuthorization: bearer {user}");
        http.send(request(&head, "")).await;
        (http.head().await.status, http)
    };
    let (first, second, third) =
        (open("192.0.2.1", "ann").await, open("192.0.2.1", "ann").await, open("192.0.2.1", "ann").await);
    assert_eq!((first.0, second.0, third.0), (200, 200, 503), "two of five leave three");
    assert_eq!(open("192.0.2.2", "bob").await.0, 200);

    let ticket = async |client: &str, user: &str| {
        let head = format!("POST /events/ticket\nX-Forwarded-For: {client}\nAuthorization: bearer {user}");
        ask(served.address(), &head, "").await.status
    };
    let mut given = 0;
    while ticket("192.0.2.1", "ann").await == 200 {
        given += 1;
        assert!(given <= 32, "of one token");
    }
    assert_eq!((given, ticket("192.0.2.1", "bob").await, ticket("192.0.2.2", "cid").await), (32, 200, 200));
}

/// Handlers see the client for whom a trusted proxy asks, over one connection of the proxy too; nobody else is believed.
#[tokio::test]
async fn a_trusted_proxy_says_for_whom_it_asks() {
    for (options, peers) in [
        (behind_a_proxy(), ["http@192.0.2.1:0", "http@[2001:db8::1]:0"]),
        (FrontOptions::new(), ["http@127.0.0.1:", "http@127.0.0.1:"]),
    ] {
        let served = serve(builder(), options).await;
        let mut http = Http::connect(served.address()).await;
        for (said, peer) in ["6.6.6.6, 192.0.2.1", "2001:db8::1"].iter().zip(peers) {
            let answer = http.ask(&format!("POST /rpc/Arith/Meta\n{JSON}\nX-Forwarded-For: {said}"), "{}").await;
            let seen = answer.json().as_str().expect("a text").to_owned();
            assert!(seen.starts_with(peer), "{said}: {seen}");
        }
    }
}

/// At the port of the server the front's bounds of connections hold too.
#[cfg(feature = "port")]
#[tokio::test]
async fn connections_at_the_servers_port_have_a_bound() {
    let front = FrontOptions::new().connections_max(3).on_port();
    let server = Server::builder().listen_options(ListenOptions::default().http(front)).build();
    let listening = server.listen("tcp@127.0.0.1:0").await.expect("a port is free");
    let address = listening.address().trim_start_matches("tcp@").parse().expect("an address");
    let mut kept = Http::connect(address).await;
    assert_eq!(kept.ask("GET /healthz", "").await.status, 200);
    // One of three leaves two, two would leave one.
    let mut refused = Http::connect(address).await;
    refused.send(request("GET /healthz", "")).await;
    assert_eq!(refused.closed().await, "");
    drop(kept);
    tokio::time::timeout(LONG, async {
        loop {
            let mut http = Http::connect(address).await;
            http.send(request("GET /healthz\nConnection: close", "")).await;
            if http.closed().await.starts_with("HTTP/1.1 200") {
                break;
            }
        }
    })
    .await
    .expect("the place is given back");
}

/// One host, named once: what stands in front of a server and the server itself would take two for different sites. And no
/// expectation that nobody meets.
#[tokio::test]
async fn a_request_names_one_host() {
    let served = serve(builder(), FrontOptions::new()).await;
    for (heads, status) in [
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a@b\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\n\r\n", 400),
        ("GET /healthz HTTP/1.0\r\n\r\n", 200),
        ("GET /healthz HTTP/1.1\r\nHost: a:80\r\n\r\n", 200),
        ("GET /healthz HTTP/1.1\r\nHost:\r\n\r\n", 200),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\n\r\n", 417),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\n\r\n", 200),
    ] {
        let mut http = Http::connect(served.address()).await;
        http.send(heads).await;
        assert_eq!(http.answer().await.status, status, "{heads:?}");
    }
}

/// A length that is no length is refused before a byte of the body is awaited.
#[tokio::test]
async fn a_length_beyond_all_numbers_is_refused() {
    let served = serve(builder(), FrontOptions::new()).await;
    for (length, status) in [
        ("18446744073709551615", 431),
        ("18446744073709551614", 431),
        ("18446744073709551613", 413),
        ("18446744073709551616", 400),
        ("99999999999999999999999999", 400),
        ("-1", 400),
    ] {
        let mut http = Http::connect(served.address()).await;
        http.send(format!("POST /rpc/Arith/Mul HTTP/1.1\r\nHost: x\r\n{JSON}\r\nContent-Length: {length}\r\n\r\n"))
            .await;
        assert_eq!(http.answer().await.status, status, "{length}");
    }
}
