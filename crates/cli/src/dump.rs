//! Frames in readable form: from a file, from standard input, or from a proxy in the middle.

use std::{
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bothways::{Limits, Metadata, transport::Address};
use bothways_proto::{CompressType, DecodeError, Header, Message, MessageKind, Status, frame_len, keys};
use bytes::{Bytes, BytesMut};
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
    sync::mpsc,
};

use crate::{
    args::DumpArgs,
    call::codec_name,
    failure::Failure,
    term::{self, Out, Paint},
    value::{MetadataJson, PayloadFields, Shown, metadata_line},
};

/// Bytes of one read.
const READ_BYTES: usize = 64 << 10;

pub(crate) async fn run(args: DumpArgs) -> Result<(), Failure> {
    let printer = Printer {
        out: Out::new(),
        paint: Paint::stdout(),
        json: args.json,
        show_secrets: args.show_secrets,
        payload_max: args.payload_max,
        limits: limits(args.frame_max),
        left: AtomicU64::new(args.count.unwrap_or(u64::MAX)),
    };
    match (&args.proxy, &args.to) {
        (Some(listen), Some(to)) => proxy(Arc::new(printer), listen, to).await,
        _ => {
            // Reading a file blocks, and nothing else is to be done meanwhile.
            let done = tokio::task::spawn_blocking(move || file(&printer, &args));
            done.await.unwrap_or_else(|_| Err(Failure::usage("reading was interrupted")))
        }
    }
}

/// Only the size of a frame is bounded: a dump is to show what others refuse.
fn limits(frame_max: usize) -> Limits {
    Limits::default()
        .body_bytes_max(frame_max)
        .decompressed_bytes_max(frame_max.max(Limits::default().decompressed_bytes()))
        .metadata_bytes_max(usize::MAX)
        .metadata_pairs_max(usize::MAX)
}

fn file(printer: &Printer, args: &DumpArgs) -> Result<(), Failure> {
    let name = args.file.as_ref().map_or("-".into(), |path| path.display().to_string());
    let mut input: Box<dyn Read> = match &args.file {
        Some(path) if path.as_os_str() != "-" => {
            Box::new(std::fs::File::open(path).map_err(|error| Failure::usage(format!("cannot open {name}: {error}")))?)
        }
        _ => Box::new(std::io::stdin()),
    };

    let cannot_read = |error: std::io::Error| Failure::usage(format!("cannot read {name}: {error}"));
    let mut stream = Stream::default();
    let mut bad = 0;
    let mut take = |bytes: &[u8], stream: &mut Stream| -> Result<bool, Failure> {
        stream.feed(bytes);
        while let Some(frame) = stream.next(&printer.limits).map_err(|error| stopped(&error))? {
            bad += u64::from(frame.message.is_err());
            if !printer.print(&frame, None)? {
                return Ok(false);
            }
        }
        Ok(true)
    };

    if args.hex {
        let mut text = String::new();
        input.read_to_string(&mut text).map_err(cannot_read)?;
        let bytes = from_hex(&text).map_err(Failure::usage)?;
        if !take(&bytes, &mut stream)? {
            return Ok(());
        }
    } else {
        let mut bytes = vec![0; READ_BYTES];
        loop {
            let read = input.read(&mut bytes).map_err(cannot_read)?;
            if read == 0 {
                break;
            }
            if !take(&bytes[..read], &mut stream)? {
                return Ok(());
            }
        }
    }

    if let Some(rest) = stream.rest(&printer.limits) {
        return Err(Failure::usage(rest));
    }
    match bad {
        0 => Ok(()),
        bad => Err(Failure::usage(format!("{} could not be read", term::count(bad, "frame")))),
    }
}

fn stopped(error: &BadStream) -> Failure {
    let failure = Failure::usage(format!("at byte offset {}: {}", error.offset, error.error));
    match error.error {
        DecodeError::WrongMagic { .. } => failure.hint(
            "the bytes must be one direction of one connection, from its beginning; text in hexadecimal needs --hex",
        ),
        DecodeError::TooLarge { .. } => failure.hint("if that is right, raise --frame-max"),
        _ => failure,
    }
}

/// Bytes from hexadecimal text. Blanks, colons and what follows a `#` do not count.
fn from_hex(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut high = None;
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default();
        for c in line.chars().filter(|c| !c.is_whitespace() && *c != ':') {
            let digit = c.to_digit(16).ok_or_else(|| format!("line {}: `{c}` is no hexadecimal digit", number + 1))?;
            match high.take() {
                None => high = Some(digit),
                Some(high) => bytes.push((high << 4 | digit) as u8),
            }
        }
    }
    match high {
        None => Ok(bytes),
        Some(_) => Err("the number of hexadecimal digits is odd: half a byte is missing".into()),
    }
}

/// One direction of a connection, cut into frames.
#[derive(Debug, Default)]
struct Stream {
    bytes: BytesMut,
    /// Where in the stream `bytes` begins.
    offset: u64,
}

/// A frame, or what is wrong in it.
#[derive(Debug)]
struct Frame {
    offset: u64,
    bytes: Bytes,
    message: Result<Message, DecodeError>,
}

/// Where the next frame begins is not known.
#[derive(Debug)]
struct BadStream {
    offset: u64,
    error: DecodeError,
}

impl Stream {
    fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn next(&mut self, limits: &Limits) -> Result<Option<Frame>, BadStream> {
        let offset = self.offset;
        let len = frame_len(&self.bytes, limits).map_err(|error| BadStream { offset, error })?;
        let Some(len) = len.filter(|len| *len <= self.bytes.len()) else { return Ok(None) };
        let bytes = self.bytes.split_to(len).freeze();
        self.offset += len as u64;
        let message = Message::parse(bytes.clone(), limits);
        Ok(Some(Frame { offset, bytes, message }))
    }

    /// What is missing at the end.
    fn rest(&self, limits: &Limits) -> Option<String> {
        if self.bytes.is_empty() {
            return None;
        }
        let (offset, has) = (self.offset, self.bytes.len());
        Some(match frame_len(&self.bytes, limits) {
            Ok(Some(len)) => format!("the stream ends within the frame at byte offset {offset}: {has} of {len} bytes"),
            _ => format!("the stream ends within the header at byte offset {offset}: {has} of 16 bytes"),
        })
    }
}

/// Which way a frame went through the proxy.
#[derive(Clone, Copy, Debug)]
struct Route {
    connection: u64,
    to_server: bool,
}

struct Printer {
    out: Out,
    paint: Paint,
    json: bool,
    show_secrets: bool,
    payload_max: usize,
    limits: Limits,
    /// Frames that are still wanted.
    left: AtomicU64,
}

impl Printer {
    /// False: no more frames are wanted.
    fn print(&self, frame: &Frame, route: Option<Route>) -> Result<bool, Failure> {
        let less = |left: u64| left.checked_sub(1);
        let Ok(left) = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less) else { return Ok(false) };
        let line = match (&frame.message, self.json) {
            (Ok(message), true) => self.json_line(frame, message, route),
            (Ok(message), false) => self.text_line(frame, message, route),
            (Err(error), true) => {
                let bad = BadFrame { offset: frame.offset, bytes: frame.bytes.len(), error: error.to_string() };
                to_json(&RoutedLine::new(route, bad))
            }
            (Err(error), false) => {
                let bytes = frame.bytes.len();
                format!("{}{} {error} ({bytes} bytes)", self.place(frame, route), self.paint.red("bad frame"))
            }
        };
        self.out.line(&line)?;
        Ok(1 < left)
    }

    fn place(&self, frame: &Frame, route: Option<Route>) -> String {
        self.paint.dim(&match route {
            None => format!("{:>8}  ", format!("@{}", frame.offset)),
            Some(Route { connection, to_server }) => {
                format!("{} #{connection} {} ", term::now(), if to_server { "-->" } else { "<--" })
            }
        })
    }

    fn text_line(&self, frame: &Frame, message: &Message, route: Option<Route>) -> String {
        let header = message.header();
        let mut parts = vec![self.kind(header)];
        let name = format!("{}.{}", message.service_path(), message.service_method());
        if name != "." {
            parts.push(self.paint.cyan(&term::one_line(&name)));
        }

        let seq = header.seq().get();
        parts.push(if seq >> 62 == 0 { format!("seq {seq}") } else { format!("seq {seq:#x}") });
        parts.push(
            header.serialize().name().map_or_else(|| format!("codec {}", header.serialize().get()), str::to_owned),
        );

        match header.compress() {
            CompressType::NONE => {}
            CompressType::GZIP => parts.push("gzip".into()),
            other => parts.push(format!("compress {}", other.get())),
        }

        // Other requests have it in their kind.
        if header.is_oneway() && (header.is_heartbeat() || header.kind() == MessageKind::Response) {
            parts.push("oneway".into());
        }

        let plain_status = header.status() == Status::NORMAL
            || (header.status() == Status::ERROR && header.kind() == MessageKind::Response);
        for (name, value, usual) in [
            ("status", header.status().get(), plain_status),
            ("version", frame.bytes[1], frame.bytes[1] == 0),
            ("reserved", frame.bytes[3] & 0xf, frame.bytes[3] & 0xf == 0),
        ] {
            if !usual {
                parts.push(format!("{name} {value}"));
            }
        }

        parts.push(format!("{} B", frame.bytes.len()));
        let metadata = metadata_line(&message.metadata(), self.show_secrets, self.payload_max);
        if !metadata.is_empty() {
            parts.push(metadata);
        }
        match message.payload(&self.limits) {
            Ok(payload) if payload.is_empty() => {}
            Ok(payload) => parts.push(match self.returned(message, &payload) {
                None => Shown::new(header.serialize(), &payload).one_line(self.payload_max),
                Some(returned) => self.returned_text(&returned, payload.len()),
            }),
            Err(error) => parts.push(format!("(payload: {error})")),
        }

        format!("{}{}", self.place(frame, route), parts.join("  "))
    }

    /// The request that a server hands back, if this is such a frame. Its token may still be valid, so it is never shown
    /// as bytes. `Err`: it is no frame, or brings another one back.
    fn returned(&self, message: &Message, payload: &Bytes) -> Option<Result<Message, ()>> {
        if payload.is_empty() || !is_return(message) {
            return None;
        }
        let request = Message::parse(payload.clone(), &self.limits).ok();
        Some(request.filter(|request| !is_return(request)).ok_or(()))
    }

    /// The request that was handed back, in brackets, or how long what came instead is.
    fn returned_text(&self, returned: &Result<Message, ()>, bytes: usize) -> String {
        let Ok(request) = returned else { return format!("[no request: {bytes} B]") };
        let header = request.header();
        let name = format!("{}.{}", request.service_path(), request.service_method());
        let mut parts = vec![kind(header).to_owned(), term::one_line(&name), format!("seq {}", header.seq().get())];

        let metadata = metadata_line(&request.metadata(), self.show_secrets, self.payload_max);
        if !metadata.is_empty() {
            parts.push(metadata);
        }
        match request.payload(&self.limits) {
            Ok(payload) if payload.is_empty() => {}
            Ok(payload) => parts.push(Shown::new(header.serialize(), &payload).one_line(self.payload_max)),
            Err(error) => parts.push(format!("(payload: {error})")),
        }
        format!("[{}]", parts.join("  "))
    }

    fn kind(&self, header: Header) -> String {
        let kind = kind(header);
        let padded = format!("{kind:<7}");
        match kind {
            "error" => self.paint.red(&padded),
            "reply" => self.paint.green(&padded),
            "ping" | "pong" => self.paint.dim(&padded),
            _ => self.paint.bold(&padded),
        }
    }

    fn json_line(&self, frame: &Frame, message: &Message, route: Option<Route>) -> String {
        let header = message.header();
        let payload = message.payload(&self.limits);
        let returned = payload.as_ref().ok().and_then(|payload| self.returned(message, payload));
        let shown = payload.as_ref().ok().filter(|_| returned.is_none());
        let shown = shown.map(|payload| Shown::new(header.serialize(), payload));
        let metadata = message.metadata();

        to_json(&RoutedLine::new(
            route,
            FrameLine {
                offset: frame.offset,
                bytes: frame.bytes.len(),
                kind: kind(header),
                response: header.kind() == MessageKind::Response,
                heartbeat: header.is_heartbeat(),
                oneway: header.is_oneway(),
                status: header.status().get(),
                codec: codec_name(header.serialize()),
                compress: header.compress().get(),
                version: frame.bytes[1],
                reserved: frame.bytes[3] & 0xf,
                seq: header.seq().get(),
                path: message.service_path(),
                method: message.service_method(),
                metadata: MetadataJson { metadata: &metadata, show_secrets: self.show_secrets },
                metadata_pairs: metadata_pairs(&metadata),
                payload_bytes: message.wire_payload().len(),
                payload: shown.as_ref().map(|shown| shown.fields(self.payload_max)),
                payload_error: payload.as_ref().err().map(ToString::to_string),
                returned: returned.and_then(Result::ok).map(|request| self.returned_json(&request)),
            },
        ))
    }

    /// The request that was handed back, as an object.
    fn returned_json(&self, request: &Message) -> serde_json::Value {
        let (header, metadata) = (request.header(), request.metadata());
        let payload = request.payload(&self.limits).ok();
        let shown = payload.map(|payload| Shown::new(header.serialize(), &payload));

        let line = ReturnedLine {
            kind: kind(header),
            seq: header.seq().get(),
            codec: codec_name(header.serialize()),
            path: request.service_path(),
            method: request.service_method(),
            metadata: MetadataJson { metadata: &metadata, show_secrets: self.show_secrets },
            payload_bytes: request.wire_payload().len(),
            payload: shown.as_ref().map(|shown| shown.fields(self.payload_max)),
        };
        serde_json::to_value(line).expect("a line can be written as JSON")
    }
}

/// Keys may repeat on the wire; an object of JSON shows each once.
fn metadata_pairs(metadata: &Metadata) -> usize {
    metadata.pairs().count()
}

fn to_json(line: &impl Serialize) -> String {
    serde_json::to_string(line).expect("a line can be written as JSON")
}

/// True if the payload is the whole frame of a request.
fn is_return(message: &Message) -> bool {
    message.has_service_path(keys::CONTROL_PATH) && message.service_method() == keys::RETURN
}

/// One word for what a frame is.
fn kind(header: Header) -> &'static str {
    match (header.kind(), header.is_heartbeat()) {
        (MessageKind::Request, true) => "ping",
        (MessageKind::Response, true) => "pong",
        (MessageKind::Request, false) if header.is_oneway() => "oneway",
        (MessageKind::Request, false) => "request",
        (MessageKind::Response, false) if header.status().is_error() => "error",
        (MessageKind::Response, false) => "reply",
    }
}

/// A line of JSON, with its way through the proxy if it went through one.
#[derive(Serialize)]
struct RoutedLine<T: Serialize> {
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connection: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<&'static str>,
    #[serde(flatten)]
    line: T,
}

impl<T: Serialize> RoutedLine<T> {
    fn new(route: Option<Route>, line: T) -> Self {
        Self {
            time: route.map(|_| term::now()),
            connection: route.map(|route| route.connection),
            to: route.map(|route| if route.to_server { "server" } else { "client" }),
            line,
        }
    }
}

#[derive(Serialize)]
struct FrameLine<'a> {
    offset: u64,
    bytes: usize,
    kind: &'static str,
    response: bool,
    heartbeat: bool,
    oneway: bool,
    status: u8,
    codec: String,
    compress: u8,
    version: u8,
    reserved: u8,
    seq: u64,
    path: &'a str,
    method: &'a str,
    metadata: MetadataJson<'a>,
    metadata_pairs: usize,
    payload_bytes: usize,
    #[serde(flatten)]
    payload: Option<PayloadFields<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_error: Option<String>,
    /// In place of the payload, if that is a request that the server did not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    returned: Option<serde_json::Value>,
}

#[derive(Serialize)]
struct ReturnedLine<'a> {
    kind: &'static str,
    seq: u64,
    codec: String,
    path: &'a str,
    method: &'a str,
    metadata: MetadataJson<'a>,
    payload_bytes: usize,
    #[serde(flatten)]
    payload: Option<PayloadFields<'a>>,
}

#[derive(Serialize)]
struct BadFrame {
    offset: u64,
    bytes: usize,
    error: String,
}

/// Forwards connections to `to`, and prints what goes through.
async fn proxy(printer: Arc<Printer>, listen: &Address, to: &Address) -> Result<(), Failure> {
    let to = tcp_target(to, "127.0.0.1")?;
    let at = tcp_target(listen, "0.0.0.0")?;

    let cannot_listen = |error: std::io::Error| Failure::usage(format!("cannot listen on {listen}: {error}"));
    let listener = TcpListener::bind(&at).await.map_err(cannot_listen)?;
    let local = listener.local_addr().map_err(cannot_listen)?;
    term::complain(&format!("listening on tcp@{local}, forwarding to tcp@{to}; Ctrl-C stops"));

    let (end, mut ended) = mpsc::channel(1);
    let mut number = 0;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, peer)) => {
                    number += 1;
                    term::complain(&format!("#{number} connected from {peer}"));
                    tokio::spawn(forward(Arc::clone(&printer), client, to.clone(), number, end.clone()));
                }
                Err(error) => {
                    term::complain(&format!("cannot accept a connection: {error}"));
                    // Out of files, most likely: others have to end first.
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            },
            failure = ended.recv() => return failure.unwrap_or(Ok(())),
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

/// `host:port` for the system.
fn tcp_target(address: &Address, no_host: &str) -> Result<String, Failure> {
    match (address.network(), address.host()) {
        ("tcp" | "tcp4" | "tcp6", Some("")) => Ok(format!("{no_host}:{}", address.port().unwrap_or_default())),
        ("tcp" | "tcp4" | "tcp6", _) => Ok(address.target().to_owned()),
        _ => Err(Failure::usage(format!("cannot look into {address}: only TCP without TLS can be read on its way"))),
    }
}

type End = mpsc::Sender<Result<(), Failure>>;

async fn forward(printer: Arc<Printer>, client: TcpStream, to: String, connection: u64, end: End) {
    let server = match TcpStream::connect(&to).await {
        Ok(server) => server,
        Err(error) => return term::complain(&format!("#{connection} cannot connect to {to}: {error}")),
    };
    // Latency would be shown that is only the proxy's own.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((client_read, client_write), (server_read, server_write)) = (client.into_split(), server.into_split());
    let there = Route { connection, to_server: true };
    let back = Route { connection, to_server: false };
    tokio::join!(
        copy(&printer, client_read, server_write, there, &end),
        copy(&printer, server_read, client_write, back, &end),
    );
    term::complain(&format!("#{connection} ended"));
}

/// Forwards one direction until it ends. What cannot be read is forwarded all the same.
async fn copy(printer: &Printer, mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf, route: Route, end: &End) {
    let mut bytes = vec![0; READ_BYTES];
    let mut stream = Some(Stream::default());
    loop {
        let read = match from.read(&mut bytes).await {
            Ok(0) | Err(_) => break,
            Ok(read) => read,
        };

        // Forwarded first, so that no frame waits to be printed.
        if to.write_all(&bytes[..read]).await.is_err() {
            break;
        }

        if let Some(frames) = &mut stream {
            frames.feed(&bytes[..read]);
            match print_all(printer, frames, route, end) {
                Ok(()) => {}
                Err(error) => {
                    let BadStream { offset, error } = error;
                    let way = if route.to_server { "client" } else { "server" };
                    term::complain(&format!(
                        "#{} from the {way}, at byte offset {offset}: {error}; forwarded unread from here",
                        route.connection
                    ));
                    stream = None;
                }
            }
        }
    }

    // The other end may be gone already.
    let _ = to.shutdown().await;
}

fn print_all(printer: &Printer, frames: &mut Stream, route: Route, end: &End) -> Result<(), BadStream> {
    while let Some(frame) = frames.next(&printer.limits)? {
        match printer.print(&frame, Some(route)) {
            Ok(true) => {}
            // The channel holds one end, and one is enough.
            Ok(false) => drop(end.try_send(Ok(()))),
            Err(failure) => drop(end.try_send(Err(failure))),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use hex_literal::hex;

    use super::*;
    use crate::failure::Exit;

    const PUSH: [u8; 49] = hex!(
        "08 00 20 00 0000000000000001 00000021 00000001 70 00000001 6d 0000000a 00000001 6b 00000001 76"
        "00000005 6162636465"
    );

    #[test]
    fn frames_are_found_however_the_bytes_come() {
        let limits = limits(1 << 20);
        for step in [1, 7, 49, 98] {
            let (mut stream, mut offsets) = (Stream::default(), Vec::new());
            for piece in [PUSH, PUSH].concat().chunks(step) {
                stream.feed(piece);
                while let Some(frame) = stream.next(&limits).expect("it is in order") {
                    assert!(frame.message.is_ok());
                    offsets.push(frame.offset);
                }
            }
            assert_eq!(offsets, [0, 49], "in steps of {step}");
            assert_eq!(stream.rest(&limits), None);
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_offset() {
        let limits = limits(1 << 20);
        let mut stream = Stream::default();
        stream.feed(&[&PUSH[..], b"GET / HTTP/1.1"].concat());
        assert!(stream.next(&limits).expect("the first is in order").is_some());
        let bad = stream.next(&limits).expect_err("HTTP is no rpcx");
        assert_eq!((bad.offset, bad.error), (49, DecodeError::WrongMagic { found: b'G' }));

        let mut stream = Stream::default();
        stream.feed(&PUSH[..20]);
        assert!(stream.next(&limits).expect("nothing is wrong yet").is_none());
        let rest = stream.rest(&limits).expect("something is missing");
        assert_eq!(rest, "the stream ends within the frame at byte offset 0: 20 of 49 bytes");
    }

    #[test]
    fn hexadecimal_text_may_have_comments() {
        assert_eq!(from_hex("# a push\n08 00:20\n\t0A # rest"), Ok(hex!("0800200a").to_vec()));
        assert_eq!(from_hex("08 0"), Err("the number of hexadecimal digits is odd: half a byte is missing".into()));
        assert_eq!(from_hex("\n0x08"), Err("line 2: `x` is no hexadecimal digit".into()));
    }

    #[test]
    fn only_tcp_can_be_looked_into() {
        let target = |text: &str| tcp_target(&text.parse().expect("an address"), "0.0.0.0");
        assert_eq!(target(":80").expect("TCP"), "0.0.0.0:80");
        assert_eq!(target("tcp@localhost:80").expect("TCP"), "localhost:80");
        assert_eq!(target("memory@x").expect_err("no TCP").exit(), Some(Exit::Usage));
    }
}
