//! The admin page at its address: HTTP, WebSocket and rpcx on one port, and whom it lets in.

use std::{net::SocketAddr, time::Duration};

use bothways::{
    Client, ClientOptions, Server,
    server::{AdminClient, AdminOptions, Listening, Page},
};
use bothways_http::{ADMIN_PAGE_PATH, AdminPage, FrontOptions};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{LONG, builder};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

async fn serve() -> (Server, Listening, SocketAddr) {
    let options = AdminOptions::token(TOKEN).expect("it has characters");
    let options = AdminPage::new().host("admin.example.org").add_to(options);
    // Whatever the service's own ports have is not at this one.
    let http = bothways::transport::ListenOptions::default().http(FrontOptions::new().on_port());
    let server = builder().listen_options(http).admin(options).build();
    let listening = server.listen_admin("tcp@127.0.0.1:0").await.expect("a port is free");
    let address = listening.address()["tcp@".len()..].parse().expect("an address");
    (server, listening, address)
}

/// What the server says to these bytes, up to its end or to this text.
async fn say(address: SocketAddr, request: &str, until: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.write_all(request.as_bytes()).await.expect("it is open");
    let (mut said, mut piece) = (Vec::new(), [0; 4096]);
    let reading = async {
        loop {
            match stream.read(&mut piece).await {
                Ok(0) | Err(_) => break,
                Ok(len) => said.extend_from_slice(&piece[..len]),
            }
            if String::from_utf8_lossy(&said).contains(until) {
                break;
            }
        }
    };
    tokio::time::timeout(LONG, reading).await.expect("it answers");
    String::from_utf8_lossy(&said).into_owned()
}

async fn get(address: SocketAddr, path: &str, more: &str) -> String {
    say(address, &format!("GET {path} HTTP/1.1\r\nConnection: close\r\n{more}\r\n"), "no such text").await
}

async fn upgrade(address: SocketAddr, host: &str, origin: &str) -> String {
    let request = format!(
        "GET /_rpcx_ HTTP/1.1\r\nHost: {host}\r\nOrigin: {origin}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    say(address, &request, "\r\n\r\n").await
}

/// The page, and nothing of the service's front; tools that speak rpcx ask at the same port.
#[tokio::test]
async fn the_page_and_tools_share_a_port() {
    let (_server, listening, address) = serve().await;
    let host = format!("Host: {address}\r\n");
    let page = get(address, ADMIN_PAGE_PATH, &host).await;
    assert!(page.starts_with("HTTP/1.1 200 OK") && page.contains("<title>Bothways admin</title>"), "{page}");
    assert!(page.contains(&format!("connect-src 'self' ws://{address};")), "{page}");
    for path in ["/readyz", "/rpc/Arith/Mul", "/events"] {
        let none = get(address, path, &host).await;
        assert!(none.starts_with("HTTP/1.1 404 "), "{path}: {none}");
    }

    let client = Client::connect(listening.address(), ClientOptions::new().negotiate(false)).await.expect("it listens");
    AdminClient::new(client, TOKEN).connections(Page::default()).await.expect("the token is right");
}

/// Pages of other origins, and of names that anybody can let point here, get neither the page nor a WebSocket.
#[tokio::test]
async fn pages_of_others_are_refused() {
    let (_server, _listening, address) = serve().await;
    let own = address.to_string();
    let local = format!("localhost:{}", address.port());
    for host in [&*own, &*local, "admin.example.org"] {
        let made = upgrade(address, host, &format!("http://{host}")).await;
        assert!(made.starts_with("HTTP/1.1 101 "), "{host}: {made}");
    }
    for (host, origin) in [
        (&*own, "http://evil.net"),
        (&*own, "null"),
        ("evil.net", "http://evil.net"),
        ("127.0.0.1.evil.net", "http://127.0.0.1.evil.net"),
    ] {
        let refused = upgrade(address, host, origin).await;
        assert!(refused.starts_with("HTTP/1.1 403 "), "{host} {origin}: {refused}");
        let page = get(address, ADMIN_PAGE_PATH, &format!("Host: {host}\r\nOrigin: {origin}\r\n")).await;
        assert!(page.starts_with("HTTP/1.1 421 ") || page.starts_with("HTTP/1.1 403 "), "{host} {origin}: {page}");
    }
}

/// One that asks for the page has a stranger's place and time, and costs operators nothing.
#[tokio::test]
async fn who_looks_at_the_page_keeps_no_place() {
    let options = AdminPage::new().add_to(AdminOptions::token(TOKEN).expect("it has characters"));
    let limits = bothways::Timeouts::default().first_frame(Duration::from_millis(200));
    let server = builder().timeouts(limits).admin(options).build();
    let listening = server.listen_admin("tcp@127.0.0.1:0").await.expect("a port is free");
    let address: SocketAddr = listening.address()["tcp@".len()..].parse().expect("an address");
    let head = format!("GET {ADMIN_PAGE_PATH} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    let mut open = Vec::new();
    for _ in 0..40 {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream.write_all(head.as_bytes()).await.expect("it is open");
        open.push(stream);
    }
    let client = Client::connect(listening.address(), ClientOptions::new().negotiate(false)).await.expect("it listens");
    AdminClient::new(client, TOKEN).connections(Page::default()).await.expect("the token is right");
    for mut stream in open {
        let mut said = Vec::new();
        let ended = tokio::time::timeout(LONG, stream.read_to_end(&mut said));
        _ = ended.await.expect("each is ended, whatever it has got");
    }
}

/// Operators look in also while the server stops, and not any longer.
#[tokio::test]
async fn the_page_ends_with_the_server() {
    let (server, _listening, address) = serve().await;
    server.shutdown(Duration::from_secs(1)).await;
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens");
}
