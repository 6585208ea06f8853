//! The heads of HTTP messages with which connections begin: a request at a server, an answer at a client.
//!
//! Of the socket exactly the head is taken: what follows it is there to be read as if nothing had been before.

use std::{borrow::Cow, future::poll_fn, io};

use super::opening::Peek;

/// Most bytes of a head. 8 KiB, as most HTTP servers have it.
pub(super) const HEAD_BYTES_MAX: usize = 8 << 10;

/// Most headers of one.
const HEADERS_MAX: usize = 64;

/// What is looked at once.
const PIECE_BYTES: usize = 1 << 10;

/// Reads up to the empty line, and no further. `false`: the head is not complete, and as long as one may be.
pub(super) async fn read(socket: &impl Peek, head: &mut Vec<u8>) -> io::Result<bool> {
    loop {
        let known = head.len();
        if HEAD_BYTES_MAX <= known {
            return Ok(false);
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
            return Ok(true);
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
    headers: Headers<'a>,
}

/// An answer, as far as its head says.
#[derive(Debug)]
pub(super) struct Answer<'a> {
    pub(super) status: u16,
    /// The text beside it.
    reason: &'a str,
    headers: Headers<'a>,
}

type Headers<'a> = Vec<(&'a str, &'a [u8])>;

fn of_parsed<'a>(headers: &[httparse::Header<'a>]) -> Headers<'a> {
    headers.iter().map(|header| (header.name, header.value)).collect()
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
        Some(Self { method: parsed.method?, path, version: parsed.version?, headers: of_parsed(parsed.headers) })
    }

    pub(super) fn count(&self, name: &str) -> usize {
        all(&self.headers, name).count()
    }

    pub(super) fn one(&self, name: &str) -> Option<&'a str> {
        one(&self.headers, name)
    }

    pub(super) fn has_token(&self, name: &str, token: &str) -> bool {
        has_token(&self.headers, name, token)
    }

    pub(super) fn has_body(&self) -> bool {
        let has_length = all(&self.headers, "content-length").any(|len| len != b"0");
        has_length || 0 < self.count("transfer-encoding")
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
        Some(Self { status: parsed.code?, reason: parsed.reason.unwrap_or(""), headers: of_parsed(parsed.headers) })
    }

    /// The text beside the status, fit for an error.
    pub(super) fn said(&self) -> String {
        self.reason.chars().take(100).map(|c| if c.is_control() { '?' } else { c }).collect()
    }

    pub(super) fn count(&self, name: &str) -> usize {
        all(&self.headers, name).count()
    }

    pub(super) fn one(&self, name: &str) -> Option<&'a str> {
        one(&self.headers, name)
    }

    pub(super) fn has_token(&self, name: &str, token: &str) -> bool {
        has_token(&self.headers, name, token)
    }
}

/// The values of a header, each as it came.
fn all<'h, 'a>(headers: &'h [(&'a str, &'a [u8])], name: &'h str) -> impl Iterator<Item = &'a [u8]> + use<'h, 'a> {
    headers.iter().filter(move |(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
}

/// The value of a header that comes once and is a text.
fn one<'a>(headers: &[(&'a str, &'a [u8])], name: &str) -> Option<&'a str> {
    let mut values = all(headers, name);
    let value = values.next().filter(|_| values.next().is_none())?;
    std::str::from_utf8(value).ok().map(str::trim)
}

/// True if a list of words, in one header or in several, has this one, in whatever case.
fn has_token(headers: &[(&str, &[u8])], name: &str, token: &str) -> bool {
    all(headers, name).any(|value| {
        value.split(|byte| *byte == b',').any(|word| word.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    })
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
