//! What a client says first, at ports where that decides something: those of WebSocket and CONNECT, and one port for
//! everything that a server speaks.
//!
//! ```text
//!   the first byte    0x08 ──► rpcx, at once          0x16 ──► TLS, and then the same inside
//!   (stays there)     A-Z  ──► the head of an HTTP request ──► WebSocket
//!                                                          ├─► CONNECT: rpcx follows
//!                                                          └─► anything else: the front, or a refusal
//! ```
//!
//! What is looked at stays in the socket: a client of rpcx costs one system call more, once, and its socket is the same
//! as on a port of its own.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    net::IpAddr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

#[cfg(feature = "tls")]
use super::tls::TlsServer;
use super::{
    Address, AnySocket, HttpStream, ListenOptions, Socket,
    address::Network,
    head::{self, Answer, Request},
    listener::Opened,
    tcp::TcpSocket,
    ws::{self, Refusal, WsOrigins, WsSocket},
};
use crate::shares::Shares;

/// The first byte of each rpcx frame.
const RPCX: u8 = 0x08;

/// The first byte of TLS: a record of its handshake.
#[cfg(feature = "tls")]
const TLS: u8 = 0x16;

/// What a server says to CONNECT, to the byte. Source: Go rpcx `server/server.go`, `ServeHTTP`.
const CONNECTED: &str = "HTTP/1.0 200 Connected to rpcx\n\n";
const CONNECTED_REASON: &str = "Connected to rpcx";

/// How long, and how much, a client that is refused may still say: closing with bytes unread would take the answer away
/// from it.
const REFUSED_TIME: Duration = Duration::from_secs(1);
const REFUSED_BYTES: usize = 64 << 10;

/// Heads of requests at one listener that have begun and are not complete, each of 8 KiB: 16 MiB. Half of them are for one
/// peer at most; a head that comes whole is none of them.
const UNFINISHED_HEADS_MAX: usize = 2048;

/// A socket of which the first bytes can be read without taking them.
pub(super) trait Peek: Socket + Into<AnySocket> + Sized {
    /// As [`Socket::poll_read`]; what is read can be read again.
    fn poll_peek(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>>;

    /// The address at which the peer found this end.
    fn local_ip(&self) -> Option<IpAddr>;

    /// With WebSocket over it.
    fn under_ws(ws: WsSocket<Self>) -> AnySocket;
}

/// What a port takes.
#[derive(Debug)]
pub(super) struct Opening {
    takes: Takes,
    path: Box<str>,
    origins: WsOrigins,
    /// For connections over loopback, as long as no front says which hosts are here. An address for all networks has them
    /// too: a page in a browser of this machine comes so.
    loopback_origins: WsOrigins,
    front: Option<super::options::Front>,
    /// Room for heads that are not complete.
    heads: Arc<Shares>,
    #[cfg(feature = "tls")]
    tls: Option<TlsServer>,
    #[cfg(feature = "tls")]
    plain_beside_tls: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Takes {
    Everything,
    Ws,
    Connect,
}

/// What becomes of a request.
#[derive(Debug, Eq, PartialEq)]
enum Next {
    /// WebSocket, with this answer.
    Ws(String),
    Connect,
    Front,
    Refuse(Refusal),
}

impl Opening {
    /// `None`: the first bytes decide nothing there.
    pub(super) fn of(address: Option<&Address>, options: &ListenOptions) -> Option<Arc<Self>> {
        let takes = match address.map(Address::kind) {
            Some(Network::Ws | Network::Wss) => Takes::Ws,
            Some(Network::Http) => Takes::Connect,
            _ if options.one_port || options.http.is_some() => Takes::Everything,
            _ => return None,
        };
        let name = address.and_then(Address::host);
        let loopback_origins = options.ws_origins.on_loopback(name);
        Some(Arc::new(Self {
            takes,
            loopback_origins,
            path: address.map_or(ws::PATH, Address::path).into(),
            origins: options.ws_origins.clone(),
            front: options.http.clone(),
            heads: Arc::new(Shares::new(UNFINISHED_HEADS_MAX * head::HEAD_BYTES_MAX)),
            #[cfg(feature = "tls")]
            tls: options.tls.clone(),
            #[cfg(feature = "tls")]
            plain_beside_tls: options.plain_beside_tls,
        }))
    }

    /// Waits for what the client says first.
    pub(super) async fn open(self: Arc<Self>, socket: TcpSocket) -> io::Result<Opened> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls
            && (!self.plain_beside_tls || first_byte(&socket).await? == TLS)
        {
            let socket = tls.handshake(socket).await?;
            return self.tell(socket).await;
        }
        self.tell(socket).await
    }

    async fn tell(self: Arc<Self>, socket: impl Peek) -> io::Result<Opened> {
        match first_byte(&socket).await? {
            RPCX if self.takes == Takes::Everything => Ok(Opened::Socket(socket.into())),
            b'A'..=b'Z' => self.http(socket).await,
            #[cfg(feature = "tls")]
            TLS => Err(invalid("it speaks TLS, and nobody does here (`ListenOptions::tls`)".to_owned())),
            other => {
                Err(invalid(format!("it begins with the byte {other:#04x}, which nothing does that is taken here")))
            }
        }
    }

    async fn http(self: Arc<Self>, socket: impl Peek) -> io::Result<Opened> {
        let mut head = Vec::new();
        let read = head::read(&socket, &mut head, Some(&self.heads)).await?;
        let is_loopback = socket.local_ip().is_none_or(|ip| ip.to_canonical().is_loopback());
        match self.next(read, &head, is_loopback) {
            Next::Ws(answer) => {
                write_all(&socket, answer.as_bytes()).await?;
                Ok(Opened::Socket(Peek::under_ws(WsSocket::server(socket))))
            }
            Next::Connect => {
                write_all(&socket, CONNECTED.as_bytes()).await?;
                Ok(Opened::Socket(socket.into()))
            }
            Next::Front => {
                let front = self.front.as_ref().expect("it is the next one only if there is one");
                Ok(Opened::Http(Arc::clone(&front.0), HttpStream::new(socket, head)))
            }
            Next::Refuse(refusal) => {
                let why = format!("`{}` was answered {}: {}", head::shown(&head), refusal.status, refusal.why);
                refuse(&socket, refusal).await?;
                Err(invalid(why))
            }
        }
    }

    fn next(&self, read: head::Read, head: &[u8], is_loopback: bool) -> Next {
        match read {
            head::Read::Whole => {}
            head::Read::TooLong => {
                return self.other("431 Request Header Fields Too Large", "a head has 8 KiB at most");
            }
            // Of which nobody knows whom it is for.
            head::Read::NoRoom => {
                return Next::Refuse(Refusal {
                    status: "503 Service Unavailable",
                    why: "too many heads are unfinished",
                });
            }
        }
        let Some(request) = Request::of(head) else {
            return self.other("400 Bad Request", "this is not HTTP/1");
        };
        let (is_connect, wants_ws) = (request.method == "CONNECT", request.headers.has_token("upgrade", "websocket"));
        let is_here = request.path == &*self.path;
        match self.takes {
            Takes::Everything | Takes::Ws if is_here && wants_ws => self.ws(&request, is_loopback),
            Takes::Everything | Takes::Connect if is_here && is_connect => Next::Connect,
            Takes::Ws if is_here && self.front.is_none() => self.ws(&request, is_loopback),
            // As Go answers, at these paths and others.
            Takes::Connect if !is_connect => self.other("405 Method Not Allowed", "405 must CONNECT"),
            _ => self.other("404 Not Found", "404 page not found"),
        }
    }

    fn ws(&self, request: &Request<'_>, is_loopback: bool) -> Next {
        let host = request.headers.one("host").unwrap_or_default();
        let origins = match self.front.as_ref().and_then(|front| front.0.serves_host(host)) {
            Some(false) => {
                let why = "this host is not served here";
                return Next::Refuse(Refusal { status: "421 Misdirected Request", why });
            }
            Some(true) => &self.origins,
            None if is_loopback => &self.loopback_origins,
            None => &self.origins,
        };
        match ws::answer_to(request, origins) {
            Ok(answer) => Next::Ws(answer),
            Err(refusal) => Next::Refuse(refusal),
        }
    }

    /// What is none of ours.
    fn other(&self, status: &'static str, why: &'static str) -> Next {
        if self.front.is_some() { Next::Front } else { Next::Refuse(Refusal { status, why }) }
    }
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

async fn first_byte(socket: &impl Peek) -> io::Result<u8> {
    let mut first = [0];
    match poll_fn(|cx| socket.poll_peek(cx, &mut first)).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(first[0]),
    }
}

async fn write_all(socket: &impl Socket, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match poll_fn(|cx| socket.poll_write(cx, &[IoSlice::new(bytes)])).await? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => bytes = &bytes[written..],
        }
    }
    poll_fn(|cx| socket.poll_flush(cx)).await
}

async fn refuse(socket: &impl Socket, refusal: Refusal) -> io::Result<()> {
    let headers = match refusal.status.starts_with("426") {
        true => "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
        false => "",
    };
    write_all(socket, head::refusal(refusal.status, headers, refusal.why).as_bytes()).await?;
    poll_fn(|cx| socket.poll_shutdown(cx)).await?;
    let heard_out = async {
        let mut buf = vec![0; 4 << 10];
        for _ in 0..REFUSED_BYTES / buf.len() {
            if poll_fn(|cx| socket.poll_read(cx, &mut buf)).await? == 0 {
                break;
            }
        }
        Ok::<_, io::Error>(())
    };
    _ = tokio::time::timeout(REFUSED_TIME, heard_out).await;
    Ok(())
}

/// At a client: says first what the network of this address begins with.
pub(super) async fn begin(socket: impl Peek, address: &Address, is_tls: bool) -> io::Result<AnySocket> {
    match address.kind() {
        Network::Ws | Network::Wss => begin_ws(socket, address, is_tls).await,
        Network::Http => begin_connect(socket, address).await,
        _ => Ok(socket.into()),
    }
}

async fn begin_ws<S: Peek>(socket: S, address: &Address, is_tls: bool) -> io::Result<AnySocket> {
    let ask = ws::ask(&address.place(), address.path(), is_tls);
    write_all(&socket, ask.request.as_bytes()).await?;
    let head = answer(&socket).await?;
    let answer = Answer::of(&head).ok_or_else(|| no_http(&head))?;
    ask.check(&answer).map_err(invalid)?;
    Ok(Peek::under_ws(WsSocket::client(socket)))
}

/// To the byte as Go does. Source: Go rpcx `client/connection.go`, `newDirectHTTPConn`.
async fn begin_connect(socket: impl Peek, address: &Address) -> io::Result<AnySocket> {
    write_all(&socket, format!("CONNECT {} HTTP/1.0\n\n", address.path()).as_bytes()).await?;
    let head = answer(&socket).await?;
    let answer = Answer::of(&head).ok_or_else(|| no_http(&head))?;
    if (answer.status, &*answer.said()) != (200, CONNECTED_REASON) {
        return Err(invalid(format!("the server answers {} {} to CONNECT", answer.status, answer.said())));
    }
    Ok(socket.into())
}

async fn answer(socket: &impl Peek) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    match head::read(socket, &mut head, None).await {
        Ok(head::Read::Whole) => Ok(head),
        Ok(_) => Err(no_http(&head)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && head.is_empty() => {
            Err(io::Error::new(error.kind(), "the server ended the connection without an answer in HTTP"))
        }
        Err(error) => Err(error),
    }
}

fn no_http(head: &[u8]) -> io::Error {
    invalid(format!("the server's answer is not HTTP: `{}`", head::shown(head)))
}
