//! The heads of HTTP messages with which connections begin: a request at a server, an answer at a client.
//!
//! Of the socket exactly the head is taken: what follows it is there to be read as if nothing had been before.

use std::{borrow::Cow, future::poll_fn, io, sync::Arc};

use super::opening::Peek;
use crate::shares::Shares;

/// Most bytes of a head. 8 KiB, as most HTTP servers have it.
pub(super) const HEAD_BYTES_MAX: usize = 8 << 10;

/// Most headers of one.
const HEADERS_MAX: usize = 64;

/// What is looked at once.
const PIECE_BYTES: usize = 1 << 10;

/// What has come of a head.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Read {
    Whole,
    /// It is as long as one may be, and has not ended.
    TooLong,
    /// Heads that are not complete take all the room that there is for those of this peer.
    NoRoom,
}

/// Reads up to the empty line, and no further. A head that comes in pieces takes room of these shares meanwhile.
pub(super) async fn read(socket: &impl Peek, head: &mut Vec<u8>, rooms: Option<&Arc<Shares>>) -> io::Result<Read> {
    let mut room = None;
    loop {
        let known = head.len();
        if HEAD_BYTES_MAX <= known {
            return Ok(Read::TooLong);
        }
        if 0 < known
            && room.is_none()
            && let Some(rooms) = rooms
        {
            room = rooms.take(&socket.peer(), HEAD_BYTES_MAX).ok();
            if room.is_none() {
                return Ok(Read::NoRoom);
            }
        }
        head.resize(HEAD_BYTES_MAX.min(known + PIECE_BYTES), 0);
        let here = poll_fn(|cx| socket.poll_peek(cx, &mut head[known..])).await?;
        if here == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.truncate(known + here);
        // Its last line may have begun in an earlier piece.
        let end = end_of(&head[..], known.saturating_sub(3));
        head.truncate(end.unwrap_or(head.len()));

        let mut taken = known;
        while taken < head.len() {
            taken += poll_fn(|cx| socket.poll_read(cx, &mut head[taken..])).await?;
        }
        if end.is_some() {
            return Ok(Read::Whole);
        }
    }
}

/// Behind the first empty line from this place on. Go ends its lines without a `\r`.
fn end_of(head: &[u8], from: usize) -> Option<usize> {
    let ends = |place: usize| match &head[place..] {
        [b'\n', b'\n', ..] => Some(place + 2),
        [b'\n', b'\r', b'\n', ..] => Some(place + 3),
        _ => None,
    };
    (from..head.len()).find_map(ends)
}

/// A request, as far as its head says.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) method: &'a str,
    /// Without what is behind a `?`.
    pub(super) path: &'a str,
    /// 0 or 1, of HTTP/1.
    pub(super) version: u8,
    pub(super) headers: Headers<'a>,
}

/// An answer, as far as its head says.
#[derive(Debug)]
pub(super) struct Answer<'a> {
    pub(super) status: u16,
    /// The text beside it.
    reason: &'a str,
    pub(super) headers: Headers<'a>,
}

/// The headers of either, by names in whatever case.
#[derive(Debug)]
pub(super) struct Headers<'a>(Vec<(&'a str, &'a [u8])>);

impl<'a> Headers<'a> {
    fn of(parsed: &[httparse::Header<'a>]) -> Self {
        Self(parsed.iter().map(|header| (header.name, header.value)).collect())
    }

    /// The values of a header, each as it came.
    fn all(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().filter(move |(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
    }

    pub(super) fn count(&self, name: &str) -> usize {
        self.all(name).count()
    }

    /// The value of a header that comes once and is a text.
    pub(super) fn one(&self, name: &str) -> Option<&'a str> {
        let mut values = self.all(name);
        let value = values.next().filter(|_| values.next().is_none())?;
        std::str::from_utf8(value).ok().map(str::trim)
    }

    /// True if a list of words, in one header or in several, has this one, in whatever case.
    pub(super) fn has_token(&self, name: &str, token: &str) -> bool {
        self.all(name).any(|value| {
            value.split(|byte| *byte == b',').any(|word| word.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
        })
    }
}

impl<'a> Request<'a> {
    /// `None`: it is no request.
    pub(super) fn of(head: &'a [u8]) -> Option<Self> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut parsed = httparse::Request::new(&mut headers);
        if !parsed.parse(head).ok()?.is_complete() {
            return None;
        }
        let target = parsed.path?;
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        Some(Self { method: parsed.method?, path, version: parsed.version?, headers: Headers::of(parsed.headers) })
    }

    pub(super) fn has_body(&self) -> bool {
        let has_length = self.headers.all("content-length").any(|len| len != b"0");
        has_length || 0 < self.headers.count("transfer-encoding")
    }
}

impl<'a> Answer<'a> {
    /// `None`: it is no answer.
    pub(super) fn of(head: &'a [u8]) -> Option<Self> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut parsed = httparse::Response::new(&mut headers);
        if !parsed.parse(head).ok()?.is_complete() {
            return None;
        }
        Some(Self { status: parsed.code?, reason: parsed.reason.unwrap_or(""), headers: Headers::of(parsed.headers) })
    }

    /// The text beside the status, fit for an error.
    pub(super) fn said(&self) -> String {
        self.reason.chars().take(100).map(|c| if c.is_control() { '?' } else { c }).collect()
    }
}

/// A whole answer with a text, after which the connection ends.
pub(super) fn refusal(status: &str, headers: &str, why: &str) -> String {
    let len = why.len() + 1;
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len}\r\n{headers}\
         Connection: close\r\n\r\n{why}\n"
    )
}

/// The beginning of what a peer said, fit for an error.
pub(super) fn shown(head: &[u8]) -> String {
    let first = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let first: Cow<'_, str> = String::from_utf8_lossy(&first[..first.len().min(100)]);
    first.trim_end().escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use super::*;
    use crate::transport::{ConnectOptions, Socket, check, connect, tcp::TcpSocket};

    /// A client that says whole pieces, and the server's end of it.
    async fn pair() -> (crate::transport::AnySocket, TcpSocket) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("bound").into();
        let options = ConnectOptions::default();
        let (client, accepted) = tokio::join!(connect(&address, &options), listener.accept());
        (client.expect("it listens"), TcpSocket::new(accepted.expect("it connects").0).expect("it is connected"))
    }

    /// Whatever is sent in one piece with a head, and however a head is cut.
    #[tokio::test]
    async fn what_follows_a_head_stays_in_the_socket() {
        for (head, rest) in [
            ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "first frame"),
            ("HTTP/1.0 200 Connected to rpcx\n\n", "\n\nfirst frame"),
            ("GET / HTTP/1.1\n\r\n", "\r\n"),
        ] {
            for cut in [1, head.len() / 2, head.len() - 1, head.len(), head.len() + 1] {
                let (client, server) = pair().await;
                let said = [head, rest].concat();
                let (first, second) = said.as_bytes().split_at(cut);
                assert_eq!(client.try_write(&[IoSlice::new(first)]).expect("there is room"), first.len());
                let mut read = Vec::new();
                let mut reading = Box::pin(super::read(&server, &mut read, None));
                let at_once = poll_fn(|cx| std::task::Poll::Ready(reading.as_mut().poll(cx))).await;
                assert_eq!(client.try_write(&[IoSlice::new(second)]).expect("there is room"), second.len());
                match at_once {
                    std::task::Poll::Ready(is_whole) => {
                        assert!(is_whole.expect("it is open") == Read::Whole);
                        drop(reading);
                    }
                    std::task::Poll::Pending => assert!(reading.await.expect("it is open") == Read::Whole),
                }
                assert_eq!(String::from_utf8_lossy(&read), head);
                drop(client);
                assert_eq!(check::read_to_end(&server).await.expect("it is there"), rest.as_bytes());
            }
        }
    }

    /// A head without end is given up, and one that ends too early is an error.
    #[tokio::test]
    async fn a_head_has_an_end() {
        let (client, server) = pair().await;
        let endless = vec![b'x'; HEAD_BYTES_MAX + 1];
        assert_eq!(client.try_write(&[IoSlice::new(&endless)]).expect("there is room"), endless.len());
        let mut head = Vec::new();
        assert_eq!(super::read(&server, &mut head, None).await.expect("it is open"), Read::TooLong);
        assert_eq!((head.len(), check::read(&server, 10).await.expect("it is open").len()), (HEAD_BYTES_MAX, 1));

        let (client, server) = pair().await;
        client.try_write(&[IoSlice::new(b"GET / HTTP/1.1\r\n")]).expect("there is room");
        drop(client);
        let error = super::read(&server, &mut Vec::new(), None).await.expect_err("it has no end");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn headers_are_found_in_whatever_case() {
        let head = b"GET /a?b HTTP/1.1\r\nUPGRADE: h2c , WebSocket\r\nA: 1\r\na: 2\r\nBin: \xff\r\n\r\n";
        let request = Request::of(head).expect("it is one");
        assert_eq!((request.method, request.path, request.version), ("GET", "/a", 1));
        assert!(request.headers.has_token("upgrade", "websocket") && !request.headers.has_token("upgrade", "web"));
        assert_eq!(
            (
                request.headers.count("A"),
                request.headers.one("a"),
                request.headers.one("bin"),
                request.headers.one("none")
            ),
            (2, None, None, None)
        );
        assert!(Request::of(b"NOT HTTP\r\n\r\n").is_none() && Answer::of(b"HTTP/1.1 200\r\n").is_none());
    }

    /// What a stranger says is shown on one line, and not whole.
    #[test]
    fn what_is_shown_is_short_and_on_one_line() {
        assert_eq!(shown(b"GET / HTTP/1.1\r\nHost: x\r\n"), "GET / HTTP/1.1");
        assert_eq!(shown(b"\x1b[31mred\r\n"), "\\u{1b}[31mred");
        assert!(shown(&[b'x'; 1000]).len() <= 100);
    }
}
