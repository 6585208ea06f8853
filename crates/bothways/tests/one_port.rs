//! One port for everything that a server speaks: `ListenOptions::http`.
#![cfg(feature = "ws")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bothways::{
    Client, ClientOptions, Reconnect, Server, ServerLimits,
    server::Listening,
    transport::{BoxFuture, HttpFront, HttpStream, ListenOptions},
};
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
    let mut http = says(place, b"GET / HTTP/1.1\r\n").await;
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
    let mut http = says(place, b"GET / HTTP/1.1\r\n").await;
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
        let mut http = says(place, b"GET / HTTP/1.1\r\n").await;
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
