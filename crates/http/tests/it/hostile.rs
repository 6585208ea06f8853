//! What a hostile client cannot do.

use std::time::Duration;

use bothways::{Push, Target};
use bothways_http::FrontOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Http, ask, builder, request, serve, until, with_users};

const CALL: &str = "POST /rpc/Arith/Mul\nContent-Type: application/json";

/// A head that comes byte by byte, and a connection that says nothing, are closed in time.
#[tokio::test]
async fn a_slow_head_is_given_up() {
    let served = serve(builder(), FrontOptions::new().head_timeout(Duration::from_millis(300))).await;
    let mut slow = Http::connect(served.address()).await;
    slow.send("GET /healthz HT").await;
    let mut silent = Http::connect(served.address()).await;
    let mut kept = Http::connect(served.address()).await;
    assert_eq!(kept.ask("GET /healthz", "").await.status, 200);
    for http in [&mut slow, &mut silent, &mut kept] {
        http.closed().await;
    }
    until("they are gone", || served.front.stats().connections == 0).await;
}

#[tokio::test]
async fn a_slow_body_is_given_up() {
    let served = serve(builder(), FrontOptions::new().body_timeout(Duration::from_millis(200))).await;
    let mut http = Http::connect(served.address()).await;
    http.send(
        "POST /rpc/Arith/Mul HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{",
    )
    .await;
    assert_eq!(http.answer().await.status, 408);
    http.closed().await;
}

/// What is announced is refused at once; what is not announced, when it is too much.
#[tokio::test]
async fn a_huge_body_is_refused_before_it_is_held() {
    let served = serve(builder(), FrontOptions::new().body_bytes_max(100_000)).await;
    let mut http = Http::connect(served.address()).await;
    http.send("POST /rpc/Arith/Mul HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9999999999999\r\n\r\n").await;
    assert_eq!(http.answer().await.status, 413);

    let mut http = Http::connect(served.address()).await;
    http.send("POST /rpc/Arith/Mul HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    for _ in 0..11 {
        // It may be closed by now.
        let _ = http.stream.write_all(format!("2710\r\n{}\r\n", "x".repeat(10_000)).as_bytes()).await;
    }
    assert_eq!(http.answer().await.status, 413);
    assert_eq!(served.front.stats().held_bytes, 0);
}

/// All clients together hold no more than the budget; afterwards there is room again.
#[tokio::test]
async fn bodies_of_all_clients_have_one_bound() {
    let served =
        serve(builder(), FrontOptions::new().held_bytes_max(150_000).held_bytes_per_address_max(150_000)).await;
    let head =
        "POST /rpc/Arith/Mul HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n";
    let mut first = Http::connect(served.address()).await;
    first.send(format!("{head}{}", " ".repeat(90_000))).await;
    until("it is read", || 90_000 <= served.front.stats().held_bytes).await;
    let mut second = Http::connect(served.address()).await;
    second.send(format!("{head}{}", " ".repeat(100_000))).await;
    let answer = second.answer().await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, "1"), "{answer:?}");
    drop(first);
    until("it is given back", || served.front.stats().held_bytes == 0).await;
    assert_eq!(ask(served.address(), CALL, "{\"A\":1,\"B\":1}").await.status, 200);
}

/// A reply counts for as long as its client does not take it, and no longer.
#[tokio::test]
async fn a_reply_that_is_not_read_is_counted_until_its_client_is_gone() {
    let text = |len: usize| async move { Ok::<_, String>("x".repeat(len)) };
    let builder = builder().function("Text", "Long", text);
    let served =
        serve(builder, FrontOptions::new().held_bytes_max(10_000_000).held_bytes_per_address_max(10_000_000)).await;
    let (long, json) = ("POST /rpc/Text/Long\nContent-Type: application/json", "7000000");
    let mut lazy = Http::connect(served.address()).await;
    // The head of the answer: the handler has returned.
    lazy.send(request(long, json)).await;
    assert_eq!(lazy.head().await.header("content-length"), "7000002");
    let answer = ask(served.address(), long, json).await;
    assert_eq!((answer.status, served.front.stats().held_bytes), (503, 7_000_002), "{}", answer.body.len());

    drop(lazy);
    until("it is given back", || served.front.stats().held_bytes == 0).await;
    assert_eq!(ask(served.address(), long, json).await.body.len(), 7_000_002);
    until("it was sent", || served.front.stats().held_bytes == 0).await;
}

/// Answers of JSON-RPC count as others do: a small batch makes no front hold more than it may.
#[tokio::test]
async fn answers_of_a_batch_have_the_same_bound() {
    let text = |len: usize| async move { Ok::<_, String>("x".repeat(len)) };
    let builder = builder().function("Text", "Long", text);
    let served = serve(builder, FrontOptions::new().held_bytes_max(150_000).held_bytes_per_address_max(150_000)).await;
    let long = r#"{"jsonrpc":"2.0","method":"Text.Long","params":100000,"id":7}"#;
    let answer = ask(served.address(), "POST /\nX-JSONRPC-2.0: true", &format!("[{long},{long}]")).await;
    let (refused, told): (Vec<_>, Vec<_>) = answer
        .json()
        .as_array()
        .expect("a batch")
        .iter()
        .cloned()
        .partition(|answer| answer["error"]["message"].as_str().is_some_and(|why| why.contains("held_bytes_max")));
    assert_eq!((refused.len(), told.len()), (1, 1), "{}", answer.body.len());
    assert!(told[0]["result"].as_str().is_some_and(|text| text.len() == 100_000) && refused[0]["id"] == 7);
    until("they are given back", || served.front.stats().held_bytes == 0).await;
}

/// Two lengths, or a length and chunks, are how one request is smuggled behind another.
#[tokio::test]
async fn a_request_of_two_lengths_is_refused() {
    let served = serve(builder(), FrontOptions::new()).await;
    let smuggled = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    for lengths in [
        "Content-Length: 4\r\nContent-Length: 5",
        "Content-Length: 4, 5",
        "Content-Length: +4",
        "Content-Length: 0x4",
        "Content-Length: 4\r\nTransfer-Encoding: chunked, identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding : chunked",
        "Content-Length: 4\r\n folded: x",
    ] {
        let mut http = Http::connect(served.address()).await;
        http.send(format!("POST /rpc/Arith/Mul HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{lengths}\r\n\r\nnull{smuggled}")).await;
        let said = http.closed().await;
        assert!(said.starts_with("HTTP/1.1 400 "), "{lengths}: {said}");
        assert_eq!(said.matches("HTTP/1.1").count(), 1, "{lengths}: {said}");
    }
}

/// Where both a length and chunks are given, chunks count and the connection ends: what follows is not read.
#[tokio::test]
async fn a_length_beside_chunks_smuggles_nothing() {
    let served = serve(builder(), FrontOptions::new()).await;
    let mut http = Http::connect(served.address()).await;
    http.send("POST /rpc/Arith/Mul HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    let said = http.closed().await;
    let bodies = said.matches("alive").count();
    // RFC 9112 6.1: the chunks end the request. The rest is a request of its own, or is not answered; never a body.
    assert!(said.starts_with("HTTP/1.1 ") && bodies <= 1, "{said}");
    assert!(!said.contains("\"C\"") || said.contains("\"C\":0"), "{said}");
}

#[tokio::test]
async fn a_large_head_is_refused() {
    let served = serve(builder(), FrontOptions::new()).await;
    let mut http = Http::connect(served.address()).await;
    let _ = http
        .stream
        .write_all(format!("GET /healthz HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(40_000)).as_bytes())
        .await;
    let said = http.closed().await;
    assert!(said.starts_with("HTTP/1.1 431 ") || said.is_empty(), "{said}");
    let many: String = (0..200).map(|n| format!("X-{n}: 1\r\n")).collect();
    let mut http = Http::connect(served.address()).await;
    http.send(format!("GET /healthz HTTP/1.1\r\nHost: x\r\n{many}\r\n")).await;
    assert!(http.closed().await.starts_with("HTTP/1.1 431 "));
}

/// Connections that are kept open count; more than the bound are closed at once, and others find room afterwards.
#[tokio::test]
async fn kept_connections_have_a_bound() {
    let served = serve(builder(), FrontOptions::new().connections_per_address_max(200)).await;
    let mut kept = Vec::new();
    for _ in 0..200 {
        kept.push(Http::connect(served.address()).await);
    }
    until("they are open", || served.front.stats().connections == 200).await;
    for _ in 0..20 {
        assert_eq!(Http::connect(served.address()).await.closed().await, "");
    }
    assert_eq!(served.front.stats().connections_refused, 20);
    assert_eq!(served.server.stats().connections, 0, "an HTTP connection without a call costs the server none");
    drop(kept);
    until("they are gone", || served.front.stats().connections == 0).await;
    assert_eq!(ask(served.address(), "GET /healthz", "").await.status, 200);
}

/// A reader of events that reads nothing costs its queue, and is closed; its server is not held up.
#[tokio::test]
async fn a_reader_of_events_that_reads_nothing_is_given_up() {
    let options = FrontOptions::new()
        .write_timeout(Duration::from_millis(300))
        .stream_queue(64, 64 << 10)
        .stream_resume_window(Duration::from_millis(100));
    let served = serve(with_users(), options).await;
    let mut http = Http::connect(served.address()).await;
    socket2::SockRef::from(&http.stream).set_recv_buffer_size(4096).expect("it is open");
    http.send(request("GET /events\nAuthorization: bearer ann", "")).await;
    until("it is open", || served.front.stats().streams == 1).await;
    let push = Push::new("News", "Flash", "x".repeat(16 << 10));
    let target = Target::user("ann");
    // Megabytes: more than the sockets of the system hold.
    until("it is given up", || {
        let _ = served.server.push(&target, &push);
        let stats = served.front.stats();
        stats.streams + stats.streams_waiting == 0
    })
    .await;
    until("its connections are gone", || {
        served.front.stats().connections == 0 && served.server.stats().connections == 0
    })
    .await;
    let mut rest = Vec::new();
    let _ =
        tokio::time::timeout(Duration::from_secs(5), http.stream.read_to_end(&mut rest)).await.expect("it is closed");
}

/// A page whose name was made to point here is refused, where the front knows its names.
#[tokio::test]
async fn another_host_is_misdirected() {
    let served = serve(builder(), FrontOptions::new().hosts(["LocalHost", "127.0.0.1"])).await;
    for (host, status) in [
        ("localhost:80", 200),
        ("127.0.0.1", 200),
        ("evil.example", 421),
        ("localhost.evil.example:80", 421),
        ("", 421),
    ] {
        let mut http = Http::connect(served.address()).await;
        http.send(format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(http.answer().await.status, status, "{host}");
    }
}

/// Whatever bytes come, the front lives.
#[tokio::test]
async fn nonsense_ends_its_connection_and_nothing_else() {
    let served = serve(builder(), FrontOptions::new()).await;
    for bytes in [
        &b"\x08\0\0\x30\0\0\0\0\0\0\0\x01\0\0\0\x10\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"[..],
        b"\x16\x03\x01\x02\x00",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
        b"GET http://\xff\xff/ HTTP/1.1\r\n\r\n",
    ] {
        let mut http = Http::connect(served.address()).await;
        http.send(bytes).await;
        http.stream.shutdown().await.expect("it is open");
        http.closed().await;
    }
    for path in ["/%", "/%zz", "//", "/rpc/%ff/x", "/events?from=x", "*"] {
        let mut http = Http::connect(served.address()).await;
        http.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await;
        assert!(http.closed().await.starts_with("HTTP/1.1 "), "{path}");
    }
    assert_eq!(ask(served.address(), "GET /healthz", "").await.status, 200);
}
