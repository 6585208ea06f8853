//! What begins as HTTP: WebSocket, CONNECT, and one port for everything that a server speaks.
#![cfg(feature = "ws")]

use std::{
    io::IoSlice,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bothways::{
    Client, ClientOptions, Metadata, Reconnect, SerializeType, Server, ServerLimits, Timeouts,
    server::Listening,
    transport::{
        Address, AnySocket, BoxFuture, ConnectOptions, HttpFront, HttpStream, ListenOptions, Socket, connect,
        ws::WsOrigins,
    },
};
use bothways_proto::{Header, Seq, frame};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
};

const SECOND: Duration = Duration::from_secs(1);

/// Echoes what a connection says up to its end, then waits for the end of the server, or for a permit.
#[derive(Clone)]
struct Echo {
    served: Arc<AtomicUsize>,
    let_go: Arc<Semaphore>,
    heeds_stopping: bool,
}

impl Echo {
    fn new(heeds_stopping: bool) -> Self {
        Self { served: Arc::default(), let_go: Arc::new(Semaphore::new(0)), heeds_stopping }
    }
}

impl HttpFront for Echo {
    fn serve(&self, mut stream: HttpStream) -> BoxFuture<()> {
        self.served.fetch_add(1, Ordering::Relaxed);
        let (let_go, heeds_stopping) = (Arc::clone(&self.let_go), self.heeds_stopping);
        let stopping = stream.stopping();
        let routes = stream.server().expect("it came in at one").routes().len();
        Box::pin(async move {
            let mut said = [0; 16];
            stream.read_exact(&mut said).await.expect("sixteen bytes");
            assert!(stream.peer().starts_with("tcp@127.0.0.1:") && 0 < routes);
            stream.write_all(&said).await.expect("it reads");
            tokio::select! {
                _ = let_go.acquire() => {}
                _ = stopping, if heeds_stopping => {}
            }
        })
    }
}

async fn server(front: Echo, connections_max: usize) -> (Server, Listening, SocketAddr) {
    let server = Server::builder()
        .function("Text", "Upper", |text: String| async move { Ok::<_, String>(text.to_uppercase()) })
        .listen_options(ListenOptions::default().http(front))
        .limits(ServerLimits::new().connections_max(connections_max))
        .build();
    let listening = server.listen("tcp@127.0.0.1:0").await.expect("a port is free");
    let place = listening.address()["tcp@".len()..].parse().expect("a place");
    (server, listening, place)
}

async fn says(place: SocketAddr, text: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(place).await.expect("it listens");
    stream.write_all(text).await.expect("it takes some bytes");
    stream
}

async fn hears(stream: &mut TcpStream) -> String {
    let mut heard = vec![0; 16];
    tokio::time::timeout(10 * SECOND, stream.read_exact(&mut heard)).await.expect("in time").expect("an answer");
    String::from_utf8(heard).expect("a text")
}

/// The front gets the whole of what HTTP clients say, and clients of rpcx are served beside them as ever.
#[tokio::test]
async fn http_goes_to_the_front_and_rpcx_does_not() {
    let front = Echo::new(true);
    let (server, listening, place) = server(front.clone(), 100).await;
    let mut http = says(place, b"GET / HTTP/1.1\r\n\r\n").await;
    assert_eq!(hears(&mut http).await, "GET / HTTP/1.1\r\n");

    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    assert_eq!(client.call::<String>("Text", "Upper", "abc").await.expect("it is served"), "ABC");
    let stats = server.stats();
    assert_eq!((stats.connections, stats.http_connections, stats.connections_accepted), (1, 1, 2));
    assert_eq!(front.served.load(Ordering::Relaxed), 1);
}

/// An HTTP connection has a place as all others have, for as long as it is served.
#[tokio::test]
async fn http_connections_count_as_connections() {
    let front = Echo::new(true);
    let (server, listening, place) = server(front.clone(), 1).await;
    let mut http = says(place, b"GET / HTTP/1.1\r\n\r\n").await;
    hears(&mut http).await;
    let options = || ClientOptions::new().reconnect(Reconnect::Never);
    let refused = async {
        let client = Client::connect(listening.address(), options()).await?;
        client.call::<String>("Text", "Upper", "abc").await.map_err(|_| bothways::error::ConnectError::NoRuntime)
    };
    refused.await.expect_err("there is no place");

    front.let_go.add_permits(1);
    assert_eq!(http.read(&mut [0; 1]).await.expect("it ends"), 0);
    let client = Client::connect(listening.address(), options()).await.expect("a place is free");
    assert_eq!(client.call::<String>("Text", "Upper", "abc").await.expect("it is served"), "ABC");
    assert_eq!(server.stats().http_connections, 0);
}

/// A front that ends its connections when it is told holds up no shutdown; of one that does not, they are cut at the
/// deadline.
#[tokio::test]
async fn http_connections_end_with_their_server() {
    for (heeds, cut) in [(true, 0), (false, 1)] {
        let (server, _listening, place) = server(Echo::new(heeds), 100).await;
        let mut http = says(place, b"GET / HTTP/1.1\r\n\r\n").await;
        hears(&mut http).await;
        let deadline = if heeds { 60 * SECOND } else { SECOND / 10 };
        let report = tokio::time::timeout(10 * SECOND, server.shutdown(deadline)).await.expect("in time");
        assert_eq!(report.connections_cut, cut, "{report:?}");
        assert_eq!(server.stats().http_connections, 0);
        assert_eq!(http.read(&mut [0; 1]).await.unwrap_or(0), 0, "it is over");
    }
}

/// What is neither, and what says nothing, is closed.
#[tokio::test]
async fn what_is_neither_rpcx_nor_http_is_closed() {
    let (server, _listening, place) = server(Echo::new(true), 100).await;
    for text in [&b"\x16\x03\x01"[..], b"\0\0\0\0", b"get / HTTP/1.1\r\n", b"\xff"] {
        let mut stream = says(place, text).await;
        let ended = tokio::time::timeout(10 * SECOND, stream.read(&mut [0; 16])).await.expect("in time");
        assert!(matches!(ended, Ok(0) | Err(_)), "{text:?}");
    }
    assert_eq!(server.stats().connections_refused, 4);
}

/// Routes and pushes of a server that is listened on by every network here.
fn echoing(listen: ListenOptions) -> Server {
    Server::builder()
        .function("Text", "Upper", |text: String| async move { Ok::<_, String>(text.to_uppercase()) })
        .function("Text", "Len", |text: String| async move { Ok::<_, String>(text.len()) })
        .limits(bothways::Limits::default().body_bytes_max(64 << 20))
        .listen_options(listen)
        .build()
}

/// Calls, pushes in order, large payloads and many at once: as over any other transport.
async fn is_as_any(server: &Server, address: &str, options: ClientOptions, peer: &str) {
    const LARGE: usize = 16 << 20;
    let options = options.limits(bothways::Limits::default().body_bytes_max(64 << 20));
    let (client, mut messages) = Client::bidirectional(address, options).await.expect("it listens");
    assert_eq!(client.call::<String>("Text", "Upper", "abc").await.expect("it is served"), "ABC");
    let text = "x".repeat(LARGE);
    assert_eq!(client.call::<usize>("Text", "Len", &text).await.expect("it is served"), LARGE);

    let connection = server.connections().pop().expect("it is connected");
    assert!(connection.peer_address().starts_with(peer), "{}", connection.peer_address());
    for n in 0..300_u32 {
        let payload = n.to_be_bytes().repeat(1 + n as usize);
        connection.send_message("News", "Flash", &Metadata::new(), payload).expect("it has room");
    }
    for n in 0..300_u32 {
        let message = tokio::time::timeout(10 * SECOND, messages.next()).await.expect("in time").expect("it is open");
        assert_eq!(message.payload().expect("it is not packed"), n.to_be_bytes().repeat(1 + n as usize), "push {n}");
    }

    let mut calls = tokio::task::JoinSet::new();
    for n in 0..1000 {
        let client = client.clone();
        calls.spawn(async move {
            let reply = client.call::<String>("Text", "Upper", &format!("n{n}")).await.expect("it is served");
            assert_eq!(reply, format!("N{n}"));
        });
    }
    assert_eq!(calls.join_all().await.len(), 1000);
    client.close();
}

/// WebSocket and CONNECT are transports as any other, at ports of their own and at one for everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_over_http_are_clients_as_any() {
    let server = echoing(ListenOptions::default().one_port(true));
    for (network, peer) in [("ws", "ws@127.0.0.1:"), ("http", "tcp@127.0.0.1:"), ("tcp", "tcp@127.0.0.1:")] {
        for listens in [network, "tcp"] {
            let listening = server.listen(&format!("{listens}@127.0.0.1:0")).await.expect("a port is free");
            let (_, place) = listening.address().split_once('@').expect("a network");
            is_as_any(&server, &format!("{network}@{place}"), ClientOptions::new(), peer).await;
        }
    }
    let listening = server.listen("ws@127.0.0.1:0/a/path").await.expect("a port is free");
    assert!(listening.address().ends_with("/a/path"));
    is_as_any(&server, listening.address(), ClientOptions::new(), "ws@").await;
}

#[cfg(feature = "tls")]
mod tls {
    use bothways::transport::{
        ConnectOptions,
        tls::{TlsClient, TlsIdentity, TlsRoots, TlsServer},
    };

    use super::*;

    /// Of a server, and for who trusts it.
    fn options() -> (ListenOptions, ClientOptions) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let (pem, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let identity = TlsIdentity::from_pem(pem.as_bytes(), key.as_bytes()).expect("an identity");
        let roots = TlsRoots::from_pem(pem.as_bytes()).expect("a root");
        let connect = ConnectOptions::default().tls(TlsClient::new(&roots).expect("a client"));
        let server = TlsServer::new(identity).expect("a server");
        (ListenOptions::default().tls(server), ClientOptions::new().connect_options(connect))
    }

    /// `wss@` says it; behind the other networks the options do, as in rpcx. One port has all of it inside TLS.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn everything_goes_inside_tls() {
        let (listen, client) = options();
        let server = echoing(listen.one_port(true));
        for (listens, network, peer) in [
            ("wss", "wss", "wss@127.0.0.1:"),
            ("ws", "ws", "wss@127.0.0.1:"),
            ("http", "http", "tls@127.0.0.1:"),
            ("tcp", "wss", "wss@127.0.0.1:"),
            ("tcp", "http", "tls@127.0.0.1:"),
            ("tls", "tcp", "tls@127.0.0.1:"),
        ] {
            let listening = server.listen(&format!("{listens}@127.0.0.1:0")).await.expect("a port is free");
            let (_, port) = listening.address().rsplit_once(':').expect("a port");
            is_as_any(&server, &format!("{network}@localhost:{port}"), client.clone(), peer).await;
        }
    }

    /// Where there is TLS, nothing is taken without it unless that is asked for.
    #[tokio::test]
    async fn nobody_is_let_in_without_tls_by_mistake() {
        for (plain, is_let_in) in [(false, false), (true, true)] {
            let (listen, client) = options();
            let server = echoing(listen.one_port(true).plain_beside_tls(plain));
            let listening = server.listen("tcp@127.0.0.1:0").await.expect("a port is free");
            let (_, port) = listening.address().rsplit_once(':').expect("a port");
            for network in ["tcp", "ws", "http"] {
                let address = format!("{network}@127.0.0.1:{port}");
                let options = ClientOptions::new().reconnect(Reconnect::Never).timeout(5 * SECOND);
                let called = async {
                    let client = Client::connect(&address, options).await.map_err(|error| error.to_string())?;
                    client.call::<String>("Text", "Upper", "abc").await.map_err(|error| error.to_string())
                };
                let called = called.await;
                assert_eq!(called.is_ok(), is_let_in, "{address}: {called:?}");
            }
            is_as_any(&server, &format!("wss@localhost:{port}"), client, "wss@").await;
        }
    }

    #[tokio::test]
    async fn wss_without_a_certificate_is_refused_at_once() {
        let error = Server::builder().build().listen("wss@127.0.0.1:0").await.expect_err("it has no certificate");
        assert!(error.to_string().contains("`ListenOptions::tls`"), "{error}");
        let error = Client::connect("wss@127.0.0.1:1", ClientOptions::new()).await.expect_err("it trusts nobody");
        assert!(error.to_string().contains("`ConnectOptions::tls`"), "{error}");
    }
}

/// The good request, with these lines in place of those of the same name; an empty value leaves the line out.
fn upgrade(lines: &[(&str, &str)]) -> String {
    let usual = [
        ("Host", "localhost"),
        ("Upgrade", "websocket"),
        ("Connection", "keep-alive, Upgrade"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Version", "13"),
        ("Origin", "http://localhost"),
    ];
    let own = |name: &str| lines.iter().any(|(own, _)| *own == name);
    let all = usual.iter().filter(|(name, _)| !own(name)).chain(lines).filter(|(_, value)| !value.is_empty());
    let all: String = all.map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("GET /_rpcx_ HTTP/1.1\r\n{all}\r\n")
}

/// What a server says to this, up to its end or to what follows an upgrade.
async fn answer_to(place: SocketAddr, request: &str) -> String {
    let mut stream = says(place, request.as_bytes()).await;
    let mut heard = Vec::new();
    while !heard.starts_with(b"HTTP/1.1 101") || !heard.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match tokio::time::timeout(10 * SECOND, stream.read(&mut byte)).await.expect("in time") {
            Ok(1) => heard.push(byte[0]),
            _ => break,
        }
    }
    String::from_utf8(heard).expect("a text")
}

async fn place_of(server: &Server, address: &str) -> (Listening, SocketAddr) {
    let listening = server.listen(address).await.expect("a port is free");
    let place = listening.address().split_once('@').expect("a network").1.parse().expect("a place");
    (listening, place)
}

/// Each request has its answer, and none that is refused leaves anything behind.
#[tokio::test]
async fn bad_requests_are_refused_by_name() {
    let server = echoing(ListenOptions::default().one_port(true));
    let (_listening, place) = place_of(&server, "tcp@127.0.0.1:0").await;
    let good = upgrade(&[]);
    let long = format!("{}X: {}\r\n\r\n", good.trim_end_matches("\r\n").to_owned() + "\r\n", "y".repeat(8 << 10));
    let many = format!("{}{}\r\n", good.trim_end_matches("\r\n").to_owned() + "\r\n", "X: y\r\n".repeat(100));
    let cases = [
        (good.clone(), "101 "),
        (good.replace("\r\n", "\n"), "101 "),
        (good.replace("/_rpcx_", "/_rpcx_?token=x"), "101 "),
        (upgrade(&[("upgrade", "h2c, WebSocket"), ("Upgrade", "")]), "101 "),
        (upgrade(&[("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")]), "101 "),
        (upgrade(&[("Sec-WebSocket-Protocol", "chat, superchat")]), "101 "),
        (good.replace("/_rpcx_", "/elsewhere"), "404 "),
        (good.replace("GET", "POST"), "400 "),
        (good.replace("HTTP/1.1", "HTTP/1.0"), "400 "),
        (good.replace("HTTP/1.1", "HTTP/3.7"), "400 "),
        (upgrade(&[("Upgrade", "")]), "404 "),
        (upgrade(&[("Connection", "keep-alive")]), "426 "),
        (upgrade(&[("Sec-WebSocket-Version", "8")]), "426 "),
        (upgrade(&[("Sec-WebSocket-Version", "")]), "426 "),
        (upgrade(&[("Sec-WebSocket-Key", "")]), "400 "),
        (upgrade(&[("Sec-WebSocket-Key", "c2hvcnQ=")]), "400 "),
        (upgrade(&[("Sec-WebSocket-Key", "not base64 at all!!!!!!!")]), "400 "),
        (upgrade(&[("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")]), "400 "),
        (upgrade(&[("Host", "")]), "400 "),
        (upgrade(&[("Content-Length", "5")]), "400 "),
        (upgrade(&[("Transfer-Encoding", "chunked")]), "400 "),
        (upgrade(&[("Origin", "")]), "403 "),
        (upgrade(&[("Origin", "null")]), "403 "),
        (upgrade(&[("Origin", "http://evil.org")]), "403 "),
        (upgrade(&[("Origin", "http://evil.org"), ("origin", "http://localhost")]), "400 "),
        // A name that anybody can let point to this machine.
        (upgrade(&[("Host", "evil.org"), ("Origin", "http://evil.org")]), "403 "),
        (long, "431 "),
        (many, "400 "),
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "404 "),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), "400 "),
        ("GARBAGE\r\n\r\n".to_owned(), "400 "),
        ("CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n".to_owned(), "404 "),
    ];
    for (request, status) in cases {
        let answer = answer_to(place, &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}{answer}");
        assert!(!answer.contains("Sec-WebSocket-Extensions") && !answer.contains("Sec-WebSocket-Protocol"), "{answer}");
        assert_eq!(answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), status == "101 ", "{answer}");
    }
    let chosen = answer_to(place, &upgrade(&[("Sec-WebSocket-Protocol", "chat, rpcx")])).await;
    assert!(chosen.contains("\r\nSec-WebSocket-Protocol: rpcx\r\n"), "{chosen}");
}

/// A server at all addresses is at loopback too, where a page in a browser of this machine finds it under any name.
#[tokio::test]
async fn at_all_addresses_loopback_takes_no_name_that_anybody_has() {
    for network in ["tcp", "ws", "tcp4"] {
        let server = echoing(ListenOptions::default().one_port(true));
        let (_listening, mut place) = place_of(&server, &format!("{network}@0.0.0.0:0")).await;
        place.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        let evil = upgrade(&[("Host", "evil.org"), ("Origin", "http://evil.org")]);
        let answer = answer_to(place, &evil).await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{network}: {answer}");
        let answer = answer_to(place, &upgrade(&[])).await;
        assert!(answer.starts_with("HTTP/1.1 101 "), "{network}: {answer}");
    }
}

/// A port of one network takes that one only, and says so as Go does.
#[tokio::test]
async fn a_port_of_one_network_takes_no_other() {
    let server = echoing(ListenOptions::default());
    let (_ws, ws) = place_of(&server, "ws@127.0.0.1:0").await;
    let (_http, http) = place_of(&server, "http@127.0.0.1:0").await;
    let connect = "CONNECT /_rpcx_ HTTP/1.0\n\n";
    assert!(answer_to(ws, connect).await.starts_with("HTTP/1.1 400 "));
    assert!(
        answer_to(ws, "GET /_rpcx_ HTTP/1.1\r\nHost: x\r\n\r\n").await.contains("\r\nSec-WebSocket-Version: 13\r\n")
    );
    assert!(answer_to(http, "GET /_rpcx_ HTTP/1.1\r\nHost: x\r\n\r\n").await.ends_with("\r\n\r\n405 must CONNECT\n"));
    assert!(answer_to(http, "CONNECT /x HTTP/1.0\n\n").await.starts_with("HTTP/1.1 404 "));
    for place in [ws, http] {
        assert_eq!(answer_to(place, "\x08\0\0\0").await, "", "rpcx at once is not for here");
    }
    let mut stream = says(http, connect.as_bytes()).await;
    let mut answer = [0; 32];
    stream.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(answer, *b"HTTP/1.0 200 Connected to rpcx\n\n");
}

/// Pages of other hosts connect where they are named, and clients without an origin where that is allowed.
/// What looks every few seconds whether somebody listens is no failure: neither counted nor logged as one.
#[tokio::test]
async fn who_connects_and_leaves_is_no_failed_handshake() {
    let (server, _listening, place) = server(Echo::new(true), 100).await;
    for _ in 0..20 {
        drop(TcpStream::connect(place).await.expect("it listens"));
        drop(says(place, b"GET / HT").await);
    }
    // Those come before this one, which is a failure.
    drop(says(place, b"\xffnonsense").await);
    tokio::time::timeout(20 * SECOND, async {
        while server.stats().connections_refused == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("nonsense is refused");
    assert_eq!(server.stats().connections_refused, 1);
}

/// Heads that begin and do not end take room, and half of it is the most that one address takes. One that comes whole needs
/// none.
#[tokio::test]
async fn unfinished_heads_have_a_bound() {
    let server = Server::builder()
        .listen_options(ListenOptions::default().http(Echo::new(true)))
        .timeouts(Timeouts::new().first_frame(600 * SECOND))
        .build();
    let (_listening, place) = place_of(&server, "tcp@127.0.0.1:0").await;
    let mut unfinished = Vec::new();
    for _ in 0..1100 {
        unfinished.push(says(place, b"GET / HTTP/1.1\r\n").await);
    }
    // All of them are looked at: 1,024 have room.
    let refused = || {
        let is_refused = |stream: &&TcpStream| {
            let mut said = [0; 13];
            stream.try_read(&mut said).is_ok_and(|_| said == *b"HTTP/1.1 503 ")
        };
        unfinished.iter().filter(is_refused).count()
    };
    let (mut all, enough) = (0, 1100 - 1024);
    tokio::time::timeout(60 * SECOND, async {
        while all < enough {
            tokio::task::yield_now().await;
            all += refused();
        }
    })
    .await
    .expect("what is beyond is refused");
    assert_eq!(all, enough, "and no others");
    let mut whole = says(place, b"GET / HTTP/1.1\r\n\r\n").await;
    let mut said = [0; 16];
    whole.read_exact(&mut said).await.expect("the front answers");
}

#[tokio::test]
async fn origins_are_those_that_are_named() {
    let origins = WsOrigins::these(["https://shop.example.org", "none"]);
    let server = echoing(ListenOptions::default().ws_origins(origins));
    let (_listening, place) = place_of(&server, "ws@127.0.0.1:0").await;
    for (origin, status) in [
        ("https://shop.example.org", "101"),
        ("", "101"),
        ("https://example.org", "403"),
        ("http://example.org", "403"),
        ("null", "403"),
    ] {
        let answer = answer_to(place, &upgrade(&[("Origin", origin)])).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{origin}: {answer}");
    }
}

/// A client that says nothing, or goes on too slowly, has the time of a first frame, and holds a place for no longer.
#[tokio::test(start_paused = true)]
async fn a_slow_handshake_has_a_time() {
    let server = Server::builder()
        .listen_options(ListenOptions::default().one_port(true))
        .limits(ServerLimits::new().connections_max(3))
        .build();
    let (_listening, place) = place_of(&server, "tcp@127.0.0.1:0").await;
    let mut slow = Vec::new();
    for said in [&b""[..], b"GET /_rpcx_ HT", &upgrade(&[]).as_bytes()[..100]] {
        slow.push(says(place, said).await);
    }
    for stream in &mut slow {
        let ended = tokio::time::timeout(60 * SECOND, stream.read(&mut [0; 16])).await.expect("it has a time");
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    }
    assert!(answer_to(place, &upgrade(&[])).await.starts_with("HTTP/1.1 101 "));
}

fn request(seq: u64) -> Vec<u8> {
    let header = Header::request(Seq::new(seq), SerializeType::JSON);
    let limits = bothways::Limits::default();
    frame(header, "Text", "Upper", &Metadata::new(), b"\"abc\"", &limits).expect("it is small").to_vec()
}

async fn hears_reply(socket: &AnySocket) {
    let mut heard = Vec::new();
    while !heard.ends_with(b"\"ABC\"") {
        let mut buf = [0; 1024];
        let len = std::future::poll_fn(|cx| socket.poll_read(cx, &mut buf)).await.expect("it is open");
        assert!(0 < len, "it ended");
        heard.extend_from_slice(&buf[..len]);
    }
}

/// What follows the request in the same write is the first that is read over WebSocket.
#[tokio::test]
async fn what_is_sent_at_once_behind_the_request_is_not_lost() {
    let server = echoing(ListenOptions::default());
    let (_listening, place) = place_of(&server, "ws@127.0.0.1:0").await;
    let call = request(1);
    let mut said = upgrade(&[]).into_bytes();
    said.extend([0x82, 0x80 | u8::try_from(call.len()).expect("it is short"), 0, 0, 0, 0]);
    said.extend(&call);
    let mut stream = says(place, &said).await;
    let mut heard = Vec::new();
    while !heard.ends_with(b"\"ABC\"") {
        let len = tokio::time::timeout(10 * SECOND, stream.read_buf(&mut heard)).await.expect("in time");
        assert!(0 < len.expect("it is open"), "it ended");
    }
}

/// A client over WebSocket that has called and says no more costs its server no task, as one over TCP.
#[cfg(target_os = "linux")]
#[tokio::test(start_paused = true)]
async fn an_idle_web_socket_client_has_no_task() {
    let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let server = echoing(ListenOptions::default().one_port(true));
    let (listening, place) = place_of(&server, "tcp@127.0.0.1:0").await;
    let base = alive();
    for address in [format!("ws@{place}"), format!("http@{place}"), listening.address().to_owned()] {
        let address: Address = address.parse().expect("an address");
        let socket = connect(&address, &ConnectOptions::default()).await.expect("it listens");
        for seq in 1..20 {
            let call = request(seq);
            assert_eq!(socket.try_write(&[IoSlice::new(&call)]).expect("it has room"), call.len());
            hears_reply(&socket).await;
        }
        tokio::time::sleep(5 * SECOND).await;
        assert_eq!((alive(), server.stats().connections), (base, 1), "{address}");

        let call = request(20);
        assert_eq!(socket.try_write(&[IoSlice::new(&call)]).expect("it has room"), call.len());
        hears_reply(&socket).await;
        server.connections()[0].send_message("T", "m", &Metadata::new(), &b"\"ABC\""[..]).expect("it has room");
        hears_reply(&socket).await;
        drop(socket);
        while server.stats().connections != 0 {
            tokio::time::sleep(SECOND).await;
        }
    }
}

/// Servers share a port by Go's name for that; a client is told what to say.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn reuseport_is_an_address_of_servers() {
    let (one, other) = (echoing(ListenOptions::default()), echoing(ListenOptions::default()));
    let first = one.listen("reuseport@127.0.0.1:0").await.expect("a port is free");
    let (network, place) = first.address().split_once('@').expect("a network");
    assert_eq!(network, "tcp", "what a client says");
    let _second = other.listen(&format!("reuseport@{place}")).await.expect("it is shared");
    let client = Client::connect(first.address(), ClientOptions::new()).await.expect("one of them listens");
    assert_eq!(client.call::<String>("Text", "Upper", "abc").await.expect("it is served"), "ABC");

    let error = Client::connect(&format!("reuseport@{place}"), ClientOptions::new()).await.expect_err("not for it");
    assert!(error.to_string().contains("a client connects to `tcp@`"), "{error}");
}
