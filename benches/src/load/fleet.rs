//! Many connections on one epoll.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use bothways_proto::{self as proto, Header, Limits, Metadata, PREFIX_LEN, Seq, SerializeType};
use mio::{Events, Interest, Poll, Token};
use socket2::SockRef;

use super::wire::Wire;
use crate::{contract, server::FRAME_BYTES_MAX};

/// One read takes at most this much.
const READ_BYTES: usize = 256 << 10;

/// A server from which nothing came for this long, though something was expected, has failed.
const SILENCE: Duration = Duration::from_secs(20);

/// A turn without anything to do ends after this long.
const POLL: Duration = Duration::from_millis(20);

/// The bit in the number of a push that has an offset.
const OFFSET: u64 = 1 << 63;

const RESPONSE: u8 = 0x80;
const HEARTBEAT: u8 = 0x40;
const ONEWAY: u8 = 0x20;
const STATUS: u8 = 0x03;

/// How a refusal begins.
const OVERLOADED: &[u8] = b"overloaded";

/// A frame, as it came.
#[derive(Debug)]
pub(super) struct Frame<'a> {
    flags: u8,
    pub(super) seq: u64,
    path: &'a [u8],
    method: &'a [u8],
    metadata: &'a [u8],
    pub(super) payload: &'a [u8],
}

impl<'a> Frame<'a> {
    pub(super) fn parse(frame: &'a [u8]) -> anyhow::Result<Self> {
        let parts = contract::parts(frame).context("a frame whose inner lengths are not its own")?;
        let [path, method, metadata, payload] = parts;
        let seq = u64::from_be_bytes(*frame[4..].first_chunk().expect("a prefix is longer"));
        Ok(Self { flags: frame[2], seq, path, method, metadata, payload })
    }

    /// Fails unless it is a reply that is no error.
    pub(super) fn must_be_reply(&self) -> anyhow::Result<()> {
        ensure!(self.flags & RESPONSE != 0, "a request came where a reply was due: {self:?}");
        ensure!(self.flags & STATUS == 0, "the server answered with an error: {self:?}");
        Ok(())
    }

    /// Fails unless it is a reply that says that the server runs too many calls already.
    pub(super) fn must_be_refusal(&self) -> anyhow::Result<()> {
        let says_so = self.metadata.windows(OVERLOADED.len()).any(|window| window == OVERLOADED);
        ensure!(self.flags & RESPONSE != 0 && self.flags & STATUS != 0 && says_so, "not refused: {self:?}");
        Ok(())
    }

    /// The offset of a tracked push.
    pub(super) fn offset(&self) -> Option<u64> {
        (self.seq & OFFSET != 0).then_some(self.seq & !OFFSET).filter(|offset| *offset != 0)
    }

    /// True of the answer to a heartbeat.
    pub(super) fn is_heartbeat(&self) -> bool {
        self.flags & (RESPONSE | HEARTBEAT) == RESPONSE | HEARTBEAT
    }

    /// Fails unless it is a push of a broadcast.
    pub(super) fn must_be_push(&self) -> anyhow::Result<()> {
        let is_tick = self.path == contract::SERVICE.as_bytes() && self.method == contract::TICK.as_bytes();
        ensure!(is_tick && self.flags & (RESPONSE | ONEWAY) == ONEWAY, "another frame where a push was due: {self:?}");
        Ok(())
    }
}

/// When a read was done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) instant: Instant,
    pub(super) wall: u64,
}

impl Moment {
    pub(super) fn now() -> Self {
        Self { instant: Instant::now(), wall: contract::wall_clock() }
    }
}

#[derive(Debug)]
struct Connection {
    stream: mio::net::TcpStream,
    /// The beginning of a frame whose end has not arrived.
    partial: Vec<u8>,
    outgoing: Vec<u8>,
    /// Bytes of `outgoing` that the socket took.
    written: usize,
}

/// Connections that one thread drives.
#[derive(Debug)]
pub(super) struct Fleet {
    wire: &'static Wire,
    poll: Poll,
    events: Events,
    connections: Vec<Connection>,
    buffer: Vec<u8>,
    /// When something came.
    last: Instant,
}

impl Fleet {
    pub(super) fn connect(address: SocketAddr, count: usize, wire: &'static Wire) -> anyhow::Result<Self> {
        let poll = Poll::new()?;
        let mut connections = Vec::with_capacity(count);
        for place in 0..count {
            let mut stream = connect_waiting(address)?;
            (wire.greet)(&mut stream)?;
            stream.set_nonblocking(true)?;
            let mut stream = mio::net::TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(place), Interest::READABLE | Interest::WRITABLE)?;
            connections.push(Connection { stream, partial: Vec::new(), outgoing: Vec::new(), written: 0 });
        }
        let events = Events::with_capacity(1024);
        Ok(Self { wire, poll, events, connections, buffer: vec![0; READ_BYTES], last: Instant::now() })
    }

    pub(super) fn len(&self) -> usize {
        self.connections.len()
    }

    /// Queues bytes for one connection and writes them.
    pub(super) fn send(&mut self, place: usize, put: impl FnOnce(&mut Vec<u8>)) -> anyhow::Result<()> {
        let connection = &mut self.connections[place];
        put(&mut connection.outgoing);
        connection.write()
    }

    /// Hands every frame of the contract that comes to `each`, until `is_done`. What `each` puts into the vector
    /// leaves with one write, after all frames of one read.
    pub(super) fn run(
        &mut self,
        is_done: impl FnMut() -> bool,
        mut each: impl FnMut(usize, Frame<'_>, Moment, &mut Vec<u8>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.run_bytes(is_done, |place, frame, moment, out| each(place, Frame::parse(frame)?, moment, out))
    }

    /// The same with frames of any wire.
    pub(super) fn run_bytes(
        &mut self,
        mut is_done: impl FnMut() -> bool,
        mut each: impl FnMut(usize, &[u8], Moment, &mut Vec<u8>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.begin();
        while !is_done() {
            self.turn(POLL, &mut each)?;
        }
        Ok(())
    }

    /// From now on something is due.
    pub(super) fn begin(&mut self) {
        self.last = Instant::now();
    }

    /// Waits for something to do at most so long, and does it.
    pub(super) fn turn(
        &mut self,
        timeout: Duration,
        mut each: impl FnMut(usize, &[u8], Moment, &mut Vec<u8>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            result => result?,
        }

        if self.events.is_empty() {
            ensure!(self.last.elapsed() < SILENCE, "nothing came for {SILENCE:?}, though something was due");
        }

        for event in &self.events {
            let place = event.token().0;
            let connection = &mut self.connections[place];
            if event.is_writable() {
                connection.write()?;
            }
            if event.is_readable() {
                connection.read(self.wire.frame_len, &mut self.buffer, |frame, moment, outgoing| {
                    self.last = moment.instant;
                    each(place, frame, moment, outgoing)
                })?;
            }
        }
        Ok(())
    }

    /// One call on each connection, in slices so that no more than some wait at once.
    pub(super) fn call_each(&mut self, method: &str, payload: &[u8], reply: &[u8]) -> anyhow::Result<()> {
        const AT_ONCE: usize = 256;

        let (count, mut sent) = (self.len(), 0);
        let answered = std::cell::Cell::new(0);
        while sent < count {
            let end = (sent + AT_ONCE).min(count);
            for place in sent..end {
                self.send(place, |out| contract::put_request(out, place as u64, method, payload))?;
            }

            sent = end;
            let is_done = || answered.get() == end;
            self.run(is_done, |place, frame, _, _| {
                frame.must_be_reply()?;
                ensure!(frame.seq == place as u64, "the reply to another call");
                ensure!(frame.payload == reply, "a reply with other bytes than were due");
                answered.set(answered.get() + 1);
                Ok(())
            })?;
        }
        Ok(())
    }
}

impl Connection {
    fn read(
        &mut self,
        frame_len: fn(&[u8]) -> anyhow::Result<Option<usize>>,
        buffer: &mut [u8],
        mut each: impl FnMut(&[u8], Moment, &mut Vec<u8>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        loop {
            let n = match self.stream.read(buffer) {
                Ok(0) => bail!("the server closed a connection"),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("cannot read"),
            };

            let moment = Moment::now();
            let mut handle = |bytes: &[u8], outgoing: &mut Vec<u8>| -> anyhow::Result<usize> {
                let mut at = 0;
                while let Some(len) = frame_len(&bytes[at..])? {
                    let Some(frame) = bytes.get(at..at + len) else { break };
                    each(frame, moment, outgoing)?;
                    at += len;
                }
                Ok(at)
            };

            // Whole frames are handled where they were read; only the rest is copied.
            if self.partial.is_empty() {
                let used = handle(&buffer[..n], &mut self.outgoing)?;
                self.partial.extend_from_slice(&buffer[used..n]);
            } else {
                self.partial.extend_from_slice(&buffer[..n]);
                let used = handle(&self.partial, &mut self.outgoing)?;
                self.partial.drain(..used);
            }

            self.write()?;
            // A read that does not fill the buffer has drained the socket; an end of the stream behind
            // it is noticed at the next write, or by the silence.
            if n < buffer.len() {
                return Ok(());
            }
        }
    }

    fn write(&mut self) -> anyhow::Result<()> {
        while self.written < self.outgoing.len() {
            match self.stream.write(&self.outgoing[self.written..]) {
                Ok(n) => self.written += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("cannot write"),
            }
        }
        self.outgoing.clear();
        self.written = 0;
        Ok(())
    }
}

/// How long a benchmark waits for what must come.
const READ_TIMEOUT: Duration = Duration::from_secs(20);

/// Connects, and sees to it that the end of the connection leaves nothing behind: a benchmark uses
/// more connections than there are ports to wait for their time-out.
pub(super) fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    Ok(stream)
}

/// Connects for one who waits for what comes, and gives up when nothing does.
pub(super) fn connect_waiting(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = connect(address)?;
    stream.set_read_timeout(Some(READ_TIMEOUT))?;
    Ok(stream)
}

/// What a server may send.
pub(super) fn limits() -> Limits {
    Limits::default().body_bytes_max(FRAME_BYTES_MAX)
}

/// Reads one whole frame from a socket that blocks, and nothing behind it.
pub(super) fn read_frame(stream: &mut TcpStream) -> anyhow::Result<Vec<u8>> {
    let mut frame = vec![0; PREFIX_LEN];
    stream.read_exact(&mut frame)?;
    let len = proto::frame_len(&frame, &limits())?.context("a prefix has the length")?;
    frame.resize(len, 0);
    stream.read_exact(&mut frame[PREFIX_LEN..])?;
    Ok(frame)
}

/// Appends a heartbeat.
pub(super) fn put_heartbeat(out: &mut Vec<u8>, seq: u64, metadata: &Metadata) {
    contract::put(out, Header::heartbeat(Seq::new(seq), SerializeType::RAW), ("", ""), metadata, b"");
}
