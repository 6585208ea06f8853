//! A server behind a front, and a client that sends exactly the bytes that it is given.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use bothways::{Context, Server, ServerBuilder};
use bothways_http::{Front, FrontOptions, HttpListening};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// No wait is longer: nothing hangs.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// Keeps a server and its front alive.
pub(crate) struct Served {
    pub(crate) server: Server,
    pub(crate) front: Front,
    pub(crate) listening: HttpListening,
}

impl Served {
    pub(crate) fn address(&self) -> SocketAddr {
        self.listening.address()
    }
}

struct Arith;

#[bothways::message]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Args {
    pub(crate) a: i64,
    pub(crate) b: i64,
}

#[bothways::message]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    pub(crate) c: i64,
}

#[bothways::service]
impl Arith {
    async fn mul(&self, args: Args) -> Result<Product, String> {
        Ok(Product { c: args.a * args.b })
    }

    async fn err(&self, _args: Args) -> Result<Product, String> {
        Err("boom\r\nSet-Cookie: a=b\r\n\r\n<script>".to_owned())
    }

    /// Gives each pair of the request back, and who asked.
    async fn meta(&self, cx: &mut Context, _args: Args) -> Result<String, String> {
        let pairs = cx.request().metadata();
        for (key, value) in pairs.iter() {
            cx.reply_metadata().insert(&format!("got.{key}"), value.as_bytes());
        }
        Ok(cx.request().connection().peer_address())
    }

    async fn sleep(&self, millis: u64) -> Result<u64, String> {
        tokio::time::sleep(Duration::from_millis(millis)).await;
        Ok(millis)
    }
}

/// The services of these tests.
pub(crate) fn builder() -> ServerBuilder {
    Server::builder().service(Arith)
}

/// As [`builder`], for users whose tokens are `bearer NAME`.
pub(crate) fn with_users() -> ServerBuilder {
    builder().auth(|request| async move {
        let name = request.token.strip_prefix("bearer ").ok_or("a name is needed")?;
        if name.starts_with("bad") {
            return Err("not you");
        }
        request.session().ok_or("gone")?.bind_user(name);
        Ok(())
    })
}

pub(crate) async fn serve(builder: ServerBuilder, options: FrontOptions) -> Served {
    let server = builder.build();
    let front = Front::new(&server, options);
    let listening = front.listen("127.0.0.1:0").await.expect("a port is free");
    Served { server, front, listening }
}

/// A response.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in small letters.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// An HTTP connection.
pub(crate) struct Http {
    pub(crate) stream: TcpStream,
    read: Vec<u8>,
}

impl Http {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("it listens");
        Self { stream, read: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.expect("it is open");
    }

    /// Sends a request with a body, and reads the response.
    pub(crate) async fn ask(&mut self, head: &str, body: &str) -> Answer {
        self.send(request(head, body)).await;
        self.answer().await
    }

    /// The next response.
    pub(crate) async fn answer(&mut self) -> Answer {
        let mut answer = self.head().await;
        let length = answer.header("content-length").parse().unwrap_or(0);
        while self.read.len() < length {
            assert!(self.more().await, "the body ends early: {answer:?}");
        }
        answer.body = String::from_utf8_lossy(&self.read.drain(..length).collect::<Vec<_>>()).into_owned();
        answer
    }

    /// The head of the next response.
    pub(crate) async fn head(&mut self) -> Answer {
        let end = loop {
            if let Some(end) = self.read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break end;
            }
            assert!(self.more().await, "no response: {:?}", String::from_utf8_lossy(&self.read));
        };
        let head: Vec<u8> = self.read.drain(..end + 4).collect();
        let head = String::from_utf8(head).expect("a head is a text");
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status");
        let headers = lines.map(|line| {
            let (name, value) = line.split_once(':').expect("a header");
            (name.to_ascii_lowercase(), value.trim().to_owned())
        });
        Answer { status, headers: headers.collect(), body: String::new() }
    }

    /// Reads the next chunk of a body that comes in chunks; `None`: it has ended.
    pub(crate) async fn chunk(&mut self) -> Option<String> {
        let end = loop {
            if let Some(end) = self.read.windows(2).position(|bytes| bytes == b"\r\n") {
                break end;
            }
            if !self.more().await {
                return None;
            }
        };
        let size = std::str::from_utf8(&self.read[..end]).expect("a size");
        let size = usize::from_str_radix(size, 16).expect("a size");
        while self.read.len() < end + 2 + size + 2 {
            if !self.more().await {
                return None;
            }
        }
        let chunk = self.read[end + 2..end + 2 + size].to_vec();
        self.read.drain(..end + 2 + size + 2);
        (size != 0).then(|| String::from_utf8(chunk).expect("a text"))
    }

    /// Reads more; false at the end.
    async fn more(&mut self) -> bool {
        let reading = self.stream.read_buf(&mut self.read);
        let read = tokio::time::timeout(LONG, reading).await.expect("it says something in time");
        read.is_ok_and(|read| 0 < read)
    }

    /// Waits until the server closes the connection; what it said before that.
    pub(crate) async fn closed(&mut self) -> String {
        while self.more().await {}
        String::from_utf8_lossy(&self.read).into_owned()
    }
}

/// A request: its line and headers with one line for each, and its body.
pub(crate) fn request(head: &str, body: &str) -> String {
    let head = head.trim().lines().map(str::trim).collect::<Vec<_>>();
    let (line, headers) = head.split_first().expect("a request line");
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    format!("{line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len())
}

/// One request over a connection of its own.
pub(crate) async fn ask(address: SocketAddr, head: &str, body: &str) -> Answer {
    Http::connect(address).await.ask(head, body).await
}

/// Waits until it holds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + LONG;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
