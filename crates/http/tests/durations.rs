//! No duration is too long for a front: each may be for ever.

use std::{net::SocketAddr, time::Duration};

use bothways::Server;
use bothways_http::{Front, FrontOptions};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

/// What is waited for at most.
const LIMIT: Duration = Duration::from_secs(20);

/// More than a system keeps of what a client does not read.
const LONG_BYTES: usize = 7 << 20;

/// A client with little room for what it has not read.
async fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("it is small");
    socket.connect(address).await.expect("it listens")
}

/// Sends a request, and reads until the answer has this. What was read.
async fn ask_up_to(stream: &mut TcpStream, request: &str, end: &str) -> String {
    stream.write_all(request.as_bytes()).await.expect("it is open");
    let (mut read, mut piece) = (Vec::new(), vec![0; 64 << 10]);
    let reading = async {
        loop {
            let len = stream.read(&mut piece).await.expect("it is open");
            assert_ne!(len, 0, "the connection ended: {}", String::from_utf8_lossy(&read));
            read.extend_from_slice(&piece[..len]);
            // It may have come in two pieces.
            let from = read.len().saturating_sub(len + end.len());
            if String::from_utf8_lossy(&read[from..]).contains(end) {
                return;
            }
        }
    };
    timeout(LIMIT, reading).await.expect("it answers");
    String::from_utf8(read).expect("a text")
}

fn post(path: &str, headers: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}

/// A call, one by JSON-RPC, a response that its client takes slowly, and a stream of events to which its client comes back:
/// a front answers them all though every one of its times is the longest there is.
#[tokio::test]
async fn any_duration_may_be_for_ever() {
    let server = Server::builder()
        .function("Text", "Upper", |text: String| async move { Ok::<_, String>(text.to_uppercase()) })
        .function("Text", "Long", |(): ()| async move { Ok::<_, String>("x".repeat(LONG_BYTES)) })
        .build();
    let options = FrontOptions::new()
        .head_timeout(Duration::MAX)
        .body_timeout(Duration::MAX)
        .write_timeout(Duration::MAX)
        .call_timeout(Duration::MAX)
        .stream_resume_window(Duration::MAX)
        .stream_beat(Duration::MAX)
        .ticket_time(Duration::MAX);
    let listening = Front::new(&server, options).listen("127.0.0.1:0").await.expect("a port is free");
    let mut stream = connect(listening.address()).await;

    let is_json = "Content-Type: application/json\r\n";
    let answer = ask_up_to(&mut stream, &post("/rpc/Text/Upper", is_json, "\"abc\""), "\"ABC\"").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let call = r#"{"jsonrpc":"2.0","method":"Text.Upper","params":"abc","id":1}"#;
    ask_up_to(&mut stream, &post("/", "X-JSONRPC-2.0: true\r\n", call), r#""result":"ABC""#).await;
    let answer = ask_up_to(&mut stream, &post("/rpc/Text/Long", is_json, "null"), "x\"").await;
    assert!(LONG_BYTES < answer.len(), "{}", answer.len());

    let answer = ask_up_to(&mut stream, &post("/events/ticket", "", ""), "}").await;
    let ticket = answer.split("\"ticket\":\"").nth(1).and_then(|rest| rest.split('"').next()).expect("it gives one");
    let events = format!("GET /events?ticket={ticket} HTTP/1.1\r\nHost: x\r\n\r\n");
    let answer = ask_up_to(&mut stream, &events, "\"topics\":[]").await;
    let id = answer.split("id: ").nth(1).and_then(|rest| rest.lines().next()).expect("each event has one");
    drop(stream);
    let mut stream = connect(listening.address()).await;
    let again = format!("GET /events HTTP/1.1\r\nHost: x\r\nLast-Event-ID: {id}\r\n\r\n");
    let answer = ask_up_to(&mut stream, &again, "retry: ").await;
    assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains("bothways.open"), "{answer}");
}
