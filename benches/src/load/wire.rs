//! The protocols that the load speaks: the contract, also within WebSocket, NATS, and Centrifugo's JSON.
//!
//! All subscribers of a server have the same subject or channel. A push begins with the clock, as in the contract. In a
//! text payload the clock is [`DIGITS`] decimal digits.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use anyhow::{Context, bail, ensure};
use bothways_proto::{Capabilities, Header, Hello, Metadata, Seq, SerializeType, VERSION, keys};

use super::fleet::{Frame, limits, put_heartbeat, read_frame};
use crate::contract::{self, BroadcastArgs, Promise, Stamps};

/// A protocol.
pub struct Wire {
    /// The length of the first frame. `None`: more bytes are needed to tell.
    pub(super) frame_len: fn(&[u8]) -> anyhow::Result<Option<usize>>,
    /// Does the handshake of a new connection, and subscribes.
    pub(super) greet: fn(&mut TcpStream) -> anyhow::Result<()>,
    /// What a frame carries of a stream whose own frames are cut anywhere: these are what `pushes` gets. `None`: a frame is
    /// what it is.
    pub(super) carries: Option<Carries>,
    /// Calls the function for each push in a frame.
    pub(super) pushes: fn(&[u8], EachPush<'_>) -> anyhow::Result<()>,
    /// Publishes, on a new connection without a handshake.
    pub(super) publish: fn(&mut TcpStream, BroadcastArgs) -> anyhow::Result<()>,
    /// Waits for the answer to that, and checks it.
    pub(super) published: fn(&mut TcpStream) -> anyhow::Result<()>,
}

impl Wire {
    /// Calls the function for each push that ends in this frame of a connection. `rest` is kept for its next one.
    pub(super) fn each_push(&self, frame: &[u8], rest: &mut Vec<u8>, each: EachPush<'_>) -> anyhow::Result<()> {
        let Some(carries) = self.carries else { return (self.pushes)(frame, each) };
        rest.extend_from_slice(carries(frame)?);
        let mut at = 0;
        while let Some(whole) =
            bothways_proto::frame_len(&rest[at..], &limits())?.and_then(|len| rest.get(at..at + len))
        {
            (self.pushes)(whole, each)?;
            at += whole.len();
        }
        rest.drain(..at);
        Ok(())
    }
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Wire")
    }
}

/// A frame, and what it carries.
type Carries = fn(&[u8]) -> anyhow::Result<&[u8]>;
type EachPush<'a> = &'a mut dyn FnMut(Pushed) -> anyhow::Result<()>;

/// A push, as it came.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Pushed {
    pub(super) clock: u64,
    /// Bytes of its payload.
    pub(super) len: usize,
    /// If the push is tracked.
    pub(super) offset: Option<u64>,
}

/// The contract, spoken by a plain rpcx client.
pub static PLAIN: Wire = Wire {
    frame_len: |bytes| Ok(bothways_proto::frame_len(bytes, &limits())?),
    carries: None,
    greet: |_| Ok(()),
    pushes: |frame, each| {
        let frame = Frame::parse(frame)?;
        frame.must_be_push()?;
        let clock = contract::stamped(frame.payload).context("a push without a clock")?;
        each(Pushed { clock, len: frame.payload.len(), offset: frame.offset() })
    },
    publish: |stream, args| {
        let mut request = Vec::new();
        contract::put_request(&mut request, 1, contract::BROADCAST, args.to_string().as_bytes());
        Ok(stream.write_all(&request)?)
    },
    published: |stream| Frame::parse(&read_frame(stream).context("no answer to the broadcast")?)?.must_be_reply(),
};

/// The contract, spoken by a client with a resumable session. It acknowledges tracked pushes.
pub static SESSION: Wire = Wire {
    greet: |stream| {
        let mut hello = Vec::new();
        put_hello(&mut hello);
        stream.write_all(&hello)?;
        let welcome = read_frame(stream).context("no answer to a Hello")?;
        ensure!(Frame::parse(&welcome)?.is_heartbeat(), "another frame than a Welcome");
        Ok(())
    },
    ..PLAIN
};

/// The contract within WebSocket, spoken by a plain client whose session has entered.
pub static WS: Wire =
    Wire { frame_len: websocket_len, greet: |stream| greet_ws(stream, false), carries: Some(payload_of), ..PLAIN };

/// The same by a client with a resumable session, such as a page with the client in JavaScript.
pub static WS_SESSION: Wire = Wire { greet: |stream| greet_ws(stream, true), ..WS };

/// Makes a WebSocket of a connection, says Hello if it is to have a session that can be resumed, and enters.
fn greet_ws(stream: &mut TcpStream, says_hello: bool) -> anyhow::Result<()> {
    upgrade(stream, "/_rpcx_", "Origin: http://localhost\r\n")?;
    let (mut enters, mut hello) = (Vec::new(), Vec::new());
    contract::put_request(&mut enters, 2, contract::ENTER, Promise::Fire.topic().as_bytes());
    put_hello(&mut hello);
    let requests = if says_hello { vec![hello, enters] } else { vec![enters] };
    for request in requests {
        // A binary frame, masked with zeros. A length has its shortest form.
        let len = u16::try_from(request.len())?;
        let head = match u8::try_from(len) {
            Ok(short @ 0..126) => vec![0x82, 0x80 | short],
            _ => [&[0x82, 0x80 | 126][..], &len.to_be_bytes()].concat(),
        };
        stream.write_all(&[&head, &[0; 4][..], &request].concat())?;
        let answer = read_until(stream, |bytes| Ok(!bytes.is_empty() && is_whole(bytes)?))?;
        let answer = payload_of(&answer)?;
        let len = bothways_proto::frame_len(answer, &limits())?.context("an answer without a frame")?;
        let frame = Frame::parse(answer.get(..len).context("a part of a frame")?)?;
        ensure!(frame.is_heartbeat() || frame.must_be_reply().is_ok(), "the server says {frame:?}");
    }
    Ok(())
}

/// Asks for a WebSocket.
fn upgrade(stream: &mut TcpStream, path: &str, headers: &str) -> anyhow::Result<()> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{headers}\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let answer = read_until(stream, |bytes| Ok(find(bytes, b"\r\n\r\n").is_some()))?;
    ensure!(answer.starts_with(b"HTTP/1.1 101 "), "no WebSocket: {}", text(&answer));
    Ok(())
}

/// What a server's frame of WebSocket carries; of a control frame nothing.
fn payload_of(frame: &[u8]) -> anyhow::Result<&[u8]> {
    let head = match frame {
        [opcode, ..] if opcode & 0x0f > 2 => return Ok(&[]),
        [_, 127, ..] => 10,
        [_, 126, ..] => 4,
        _ => 2,
    };
    frame.get(head..).context("a frame without its head")
}

/// Appends the Hello of a client with a resumable session.
pub fn put_hello(out: &mut Vec<u8>) {
    let mut metadata = Metadata::new();
    let capabilities = Capabilities::SESSIONS.union(Capabilities::CALLS);
    Hello { version: VERSION, capabilities }.put(&mut metadata);
    put_heartbeat(out, 1, &metadata);
}

/// Appends an Ack of all pushes up to this offset.
pub fn put_ack(out: &mut Vec<u8>, count: u64) {
    let metadata = Metadata::new().with(keys::ACK_OFFSETS, format!("{count},{count}"));
    let header = Header::oneway(Seq::new(count), SerializeType::RAW);
    contract::put(out, header, (keys::CONTROL_PATH, keys::ACK), &metadata, b"");
}

/// The text protocol of nats-server.
pub static NATS: Wire = Wire {
    carries: None,
    frame_len: |bytes| {
        let Some(line) = find(bytes, b"\r\n") else { return Ok(None) };
        ensure!(!bytes.starts_with(b"-ERR"), "the server says {}", text(&bytes[..line]));
        let payload = if bytes.starts_with(b"MSG ") { 2 + last_number(&bytes[..line])? } else { 0 };
        Ok(Some(line + 2 + payload))
    },
    greet: |stream| {
        stream.write_all(b"CONNECT {\"verbose\":false}\r\nSUB ticks 1\r\nPING\r\n")?;
        read_until(stream, |bytes| Ok(find(bytes, b"PONG\r\n").is_some())).map(drop)
    },
    pushes: |frame, each| {
        // Any other line is a ping or a status.
        let Some(line) = find(frame, b"\r\n").filter(|_| frame.starts_with(b"MSG ")) else { return Ok(()) };
        let payload = &frame[line + 2..frame.len() - 2];
        let clock = contract::stamped(payload).context("a push without a clock")?;
        each(Pushed { clock, len: payload.len(), offset: None })
    },
    publish: |stream, args| {
        let mut bytes = b"CONNECT {\"verbose\":false}\r\n".to_vec();
        let (mut payload, mut stamps) = (vec![0; args.size], Stamps::default());
        for _ in 0..args.count {
            stamps.stamp(&mut payload);
            bytes.extend_from_slice(format!("PUB ticks {}\r\n", args.size).as_bytes());
            bytes.extend_from_slice(&payload);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"PING\r\n");
        Ok(stream.write_all(&bytes)?)
    },
    published: |stream| read_until(stream, |bytes| Ok(find(bytes, b"PONG\r\n").is_some())).map(drop),
};

/// Centrifugo's client protocol: JSON over WebSocket. It publishes by its HTTP API.
pub static CENTRIFUGO: Wire = Wire {
    carries: None,
    frame_len: websocket_len,
    greet: |stream| {
        upgrade(stream, "/connection/websocket", "")?;
        let commands = br#"{"id":1,"connect":{}}
{"id":2,"subscribe":{"channel":"ticks"}}"#;
        // A text frame. A client must mask it; the mask is all zeros.
        stream.write_all(&[0x81, 0x80 | commands.len() as u8, 0, 0, 0, 0])?;
        stream.write_all(commands)?;
        let answer = read_until(stream, |bytes| Ok(is_whole(bytes)? && find(bytes, b"\"id\":2").is_some()))?;
        ensure!(find(&answer, b"\"error\"").is_none(), "no subscription: {}", text(&answer));
        Ok(())
    },
    pushes: |frame, each| {
        ensure!(frame[0] & 0x0f == 1, "the server says {}", text(frame));
        for line in frame.split(|byte| *byte == b'\n') {
            let Some(at) = find(line, b"\"data\":\"").filter(|_| find(line, b"\"pub\":").is_some()) else { continue };
            let payload = &line[at + 8..];
            let len = find(payload, b"\"").context("a text without an end")?;
            let clock = payload.get(..DIGITS).context("a push without a clock")?;
            each(Pushed { clock: text(clock).parse()?, len, offset: None })?;
        }
        Ok(())
    },
    publish: |stream, args| {
        let mut stamps = Stamps::default();
        let mut command = || {
            let mut clock = [0; contract::CLOCK_LEN];
            stamps.stamp(&mut clock);
            let (clock, rest) = (u64::from_be_bytes(clock), ".".repeat(args.size.saturating_sub(DIGITS)));
            format!(r#"{{"publish":{{"channel":"ticks","data":"{clock:0DIGITS$}{rest}"}}}}"#)
        };
        let commands: Vec<_> = (0..args.count).map(|_| command()).collect();
        let body = format!(r#"{{"commands":[{}]}}"#, commands.join(","));
        let head = format!(
            "POST /api/batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        Ok(stream.write_all((head + &body).as_bytes())?)
    },
    published: |stream| {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let is_good = answer.starts_with(b"HTTP/1.1 200 ") && find(&answer, b"\"error\"").is_none();
        ensure!(is_good, "nothing was published: {}", text(&answer));
        Ok(())
    },
};

/// Digits of a clock in a text.
const DIGITS: usize = 20;

fn websocket_len(bytes: &[u8]) -> anyhow::Result<Option<usize>> {
    Ok(match *bytes {
        [_, 127, a, b, c, d, e, f, g, h, ..] => {
            Some(10 + usize::try_from(u64::from_be_bytes([a, b, c, d, e, f, g, h]))?)
        }
        [_, 126, a, b, ..] => Some(4 + usize::from(u16::from_be_bytes([a, b]))),
        [_, 126 | 127, ..] | [] | [_] => None,
        [_, len @ 0..126, ..] => Some(2 + usize::from(len)),
        _ => bail!("a server's frame with a mask"),
    })
}

/// True if the bytes are whole frames, without the beginning of another one.
fn is_whole(mut bytes: &[u8]) -> anyhow::Result<bool> {
    while let Some(rest) = websocket_len(bytes)?.and_then(|len| bytes.get(len..)) {
        bytes = rest;
    }
    Ok(bytes.is_empty())
}

/// Reads until `is_enough`.
fn read_until(stream: &mut TcpStream, is_enough: fn(&[u8]) -> anyhow::Result<bool>) -> anyhow::Result<Vec<u8>> {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    while !is_enough(&bytes)? {
        let n = stream.read(&mut buffer).with_context(|| format!("no answer after {}", text(&bytes)))?;
        ensure!(0 < n, "the server closed the connection after {}", text(&bytes));
        bytes.extend_from_slice(&buffer[..n]);
    }
    Ok(bytes)
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

fn last_number(line: &[u8]) -> anyhow::Result<usize> {
    text(line.rsplit(|byte| *byte == b' ').next().unwrap_or_default()).parse().context("a line without a length")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a stream holds, cut into frames, and the pushes in them.
    fn pushes(wire: &Wire, mut bytes: &[u8]) -> Vec<Pushed> {
        let mut pushes = Vec::new();
        while let Some(len) = (wire.frame_len)(bytes).expect("a valid stream") {
            let (frame, rest) = bytes.split_at(len);
            let mut each = |push| {
                pushes.push(push);
                Ok(())
            };
            (wire.pushes)(frame, &mut each).expect("valid pushes");
            bytes = rest;
        }
        assert!(bytes.is_empty());
        pushes
    }

    #[test]
    fn a_message_of_nats_is_a_push() {
        let push = Pushed { clock: 7, len: 9, offset: None };
        let stream = b"PING\r\nMSG ticks 1 9\r\n\0\0\0\0\0\0\0\x07\r\r\nPING\r\n";
        assert_eq!(pushes(&NATS, stream), [push]);
        assert_eq!((NATS.frame_len)(b"MSG ticks 1 9").expect("valid"), None);
        assert!((NATS.frame_len)(b"-ERR 'no'\r\n").is_err());
    }

    /// Where a message ends means nothing to the frames within.
    #[test]
    fn messages_of_web_socket_carry_a_stream() {
        let mut frames = Vec::new();
        for clock in [3_u64, 4] {
            contract::put_oneway(&mut frames, 1, contract::TICK, &[&clock.to_be_bytes()[..], &[0; 3]].concat());
        }
        let (mut rest, mut clocks) = (Vec::new(), Vec::new());
        for part in frames.chunks(50) {
            let message = [&[0x82, part.len() as u8][..], part].concat();
            assert_eq!((WS.frame_len)(&message).expect("valid"), Some(message.len()));
            let mut each = |push: Pushed| {
                clocks.push(push.clock);
                Ok(())
            };
            WS.each_push(&message, &mut rest, &mut each).expect("valid");
        }
        assert_eq!((clocks, rest), (vec![3, 4], Vec::new()));
        assert_eq!(payload_of(&[0x89, 1, 7]).expect("a ping"), b"");
    }

    #[test]
    fn a_frame_of_centrifugo_holds_several_pushes() {
        let line = |clock: u64| format!(r#"{{"push":{{"channel":"ticks","pub":{{"data":"{clock:020}....."}}}}}}"#);
        let text = format!("{}\n{}\n{{}}", line(3), line(4));
        let len = u8::try_from(text.len()).expect("a short text");
        let bytes = [&[0x81, 126, 0, len][..], text.as_bytes(), &[0x81, 2], b"{}"].concat();
        let clocks = [3, 4].map(|clock| Pushed { clock, len: 25, offset: None });
        assert_eq!(pushes(&CENTRIFUGO, &bytes), clocks);
        assert!(is_whole(&bytes).expect("valid") && !is_whole(&bytes[1..]).unwrap_or(false));
        assert_eq!(websocket_len(&[0x81, 127, 0]).expect("valid"), None);
    }
}
