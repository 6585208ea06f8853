//! What strangers can have a server write, and the names under which they reach it.

use std::{
    io::{self, Write},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bothways::{Context, Metadata, Server, transport::ListenOptions};
use bothways_http::{Front, FrontOptions};
use tokio::net::TcpListener;
use tracing_subscriber::filter::LevelFilter;

#[allow(dead_code, reason = "it is the support of other tests too")]
#[path = "it/support.rs"]
mod support;

use support::{Http, ask, serve, with_users};

const JSON: &str = "Content-Type: application/json";

/// What is logged as a warning, or worse, on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("nobody panics here").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn begin() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let kept = log.clone();
        let subscriber = tracing_subscriber::fmt().with_max_level(LevelFilter::WARN).with_ansi(false);
        let guard = tracing::subscriber::set_default(subscriber.with_writer(move || kept.clone()).finish());
        (log, guard)
    }

    fn lines(&self) -> Vec<String> {
        let bytes = self.0.lock().expect("nobody panics here").clone();
        String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect()
    }
}

/// Each way in, with a token that is refused: one line in all, of the server, and none of the token.
#[tokio::test]
async fn a_flood_of_refused_tokens_is_one_line() {
    let (log, _guard) = Log::begin();
    let served = serve(with_users(), FrontOptions::new()).await;
    let json_rpc = r#"{"jsonrpc":"2.0","id":1,"method":"Arith.Mul","params":{"A":1,"B":2}}"#;
    for (head, body) in [
        (format!("POST /rpc/Arith/Mul\n{JSON}"), "{}"),
        ("GET /events".to_owned(), ""),
        ("POST /events/ticket".to_owned(), ""),
        ("POST /\nX-RPCX-ServicePath: Arith\nX-RPCX-ServiceMethod: Mul\nX-RPCX-SerializeType: 1".to_owned(), "{}"),
        (format!("POST /\nX-JSONRPC-2.0: true\n{JSON}"), json_rpc),
    ] {
        let mut http = Http::connect(served.address()).await;
        for _ in 0..10 {
            let answer = http.ask(&format!("{head}\nAuthorization: bearer bad secret"), body).await;
            assert!(answer.status == 401 || answer.body.contains("not you"), "{head}: {answer:?}");
        }
    }
    let lines = log.lines();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("a client was not authenticated") && !lines[0].contains("secret"), "{lines:#?}");
}

struct Talks;

#[bothways::service]
impl Talks {
    /// Says something to its caller, who does not listen.
    async fn back(&self, cx: &mut Context, _: u64) -> Result<bool, String> {
        Ok(cx.request().connection().send_message("T", "News", &Metadata::new(), "").is_ok())
    }

    async fn large(&self, bytes: u64) -> Result<String, String> {
        Ok("x".repeat(bytes as usize))
    }
}

/// Each HTTP connection whose client inside is sent what nobody reads there, or a reply that is too large for it.
#[tokio::test]
async fn what_goes_wrong_inside_is_no_line_of_each_client() {
    let (log, _guard) = Log::begin();
    let served = serve(with_users().service(Talks), FrontOptions::new().body_bytes_max(1 << 10)).await;
    for _ in 0..10 {
        let head = |method| format!("POST /rpc/Talks/{method}\n{JSON}\nAuthorization: bearer ann");
        let said = ask(served.address(), &head("Back"), "1").await;
        assert_eq!((said.status, &*said.body), (200, "true"), "{said:?}");
        let large = ask(served.address(), &head("Large"), "1000000").await;
        assert_ne!(large.status, 200, "{large:?}");
    }
    let lines = log.lines();
    assert!(lines.is_empty(), "{lines:#?}");
}

async fn upgrade(place: SocketAddr, host: &str) -> u16 {
    let mut http = Http::connect(place).await;
    http.send(format!(
        "GET /_rpcx_ HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nOrigin: http://{host}\r\n\r\n"
    ))
    .await;
    http.head().await.status
}

/// A page whose owner lets its name point to this machine gets no WebSocket either, and a name that is the front's does.
#[tokio::test]
async fn the_names_of_a_front_hold_for_web_sockets_at_its_port() {
    let front = FrontOptions::new().hosts(["localhost", "shop.example"]).on_port();
    let server = Server::builder().listen_options(ListenOptions::default().http(front)).build();
    let listening = server.listen("tcp@127.0.0.1:0").await.expect("a port is free");
    let place: SocketAddr = listening.address()["tcp@".len()..].parse().expect("an address");
    for (host, status) in [
        ("localhost", 101),
        ("Shop.example:8080", 101),
        ("127.0.0.1", 421),
        ("evil.example", 421),
        ("evil.example:80", 421),
    ] {
        assert_eq!(upgrade(place, host).await, status, "{host}");
    }

    // A front that takes any name still gives no page of a stranger's name a WebSocket on loopback.
    let http = ListenOptions::default().http(FrontOptions::new().on_port());
    let server = Server::builder().listen_options(http).build();
    let listening = server.listen("tcp@127.0.0.1:0").await.expect("a port is free");
    let place: SocketAddr = listening.address()["tcp@".len()..].parse().expect("an address");
    for (host, status) in [("localhost", 101), ("127.0.0.1:80", 101), ("evil.example", 403)] {
        assert_eq!(upgrade(place, host).await, status, "{host}");
    }
}

/// A socket that cannot accept, as with too many open files, is tried ten times a second: that is one line each ten
/// seconds.
#[tokio::test(start_paused = true)]
async fn a_front_that_cannot_accept_says_so_calmly() {
    let (log, _guard) = Log::begin();
    let server = support::builder().build();
    let front = Front::new(&server, FrontOptions::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    socket2::SockRef::from(&listener).shutdown(std::net::Shutdown::Both).expect("it listens no more");
    _ = tokio::time::timeout(Duration::from_secs(15), front.serve(listener)).await;
    let lines = log.lines();
    let told = lines.iter().filter(|line| line.contains("cannot accept an HTTP connection")).count();
    assert_eq!(told, 2, "{lines:?}");
    assert!(lines.last().is_some_and(|line| line.contains("left_out=")), "{lines:?}");
}
