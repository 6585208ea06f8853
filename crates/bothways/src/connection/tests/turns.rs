//! What the network brings is handled between two turns of a large frame.

use std::{
    io::{self, IoSlice, Write},
    os::unix::net::UnixStream,
    sync::Arc,
    task::{Context, Poll},
};

use bothways_proto::{FrameParts, Header, Limits, Metadata, Names, Role, Seq, SerializeType};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    io::AsyncReadExt,
    runtime::{Builder, Runtime},
};

use super::{Heard, call, ears};
use crate::{
    connection::{
        Connection, Settings,
        driver::{READ_BYTES, READS},
        outbox::WRITE_BYTES,
    },
    reply::Reply,
    transport::{AnySocket, Socket, memory, memory::MemorySocket},
};

/// A letter for each KiB of the large frame that was read (`r`) or written (`w`), and for what came from the network
/// (`n`), in order.
type Events = Arc<Mutex<String>>;

/// A socket with room for everything, of which it takes so much at a time. Each time it moves a part of the large frame, a byte comes in over another
/// socket, which is one of the system.
struct Ringing {
    socket: MemorySocket,
    at_once: usize,
    bell: UnixStream,
    events: Events,
}

impl Ringing {
    fn note(&self, event: &str, result: io::Result<usize>) -> io::Result<usize> {
        if let Ok(len) = &result
            && 1024 <= *len
        {
            self.events.lock().push_str(&event.repeat(len / 1024));
            (&self.bell).write_all(b"!")?;
        }
        result
    }

    /// What it takes at once.
    fn part<'a>(&self, slices: &'a [IoSlice<'a>]) -> [IoSlice<'a>; 1] {
        [IoSlice::new(slices.first().map_or(&[], |first| &first[..first.len().min(self.at_once)]))]
    }
}

impl Socket for Ringing {
    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.socket.poll_read(cx, buf).map(|result| self.note("r", result))
    }

    fn poll_write(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.socket.poll_write(cx, &self.part(slices)).map(|result| self.note("w", result))
    }

    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.note("w", self.socket.try_write(&self.part(slices)))
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_flush(cx)
    }

    fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_shutdown(cx)
    }

    fn peer(&self) -> String {
        self.socket.peer()
    }
}

const LARGE: usize = 16 << 20;

/// The kinds of runtime, each with one thread that does all the work.
fn runtimes() -> [Runtime; 2] {
    [Builder::new_current_thread(), Builder::new_multi_thread()]
        .map(|mut builder| builder.worker_threads(1).enable_all().build().expect("a runtime"))
}

fn settings() -> Arc<Settings> {
    Arc::new(Settings { limits: Limits::default().body_bytes_max(2 * LARGE), ..Settings::default() })
}

/// A server's connection whose socket rings, what it hears, and a task that notes what the network brings.
fn ringing(socket: MemorySocket, at_once: usize, events: &Events) -> (Connection, Heard) {
    let (ours, bell) = UnixStream::pair().expect("a pair of sockets");
    ours.set_nonblocking(true).expect("it can");
    let mut ours = tokio::net::UnixStream::from_std(ours).expect("within a runtime");
    let noted = Arc::clone(events);
    tokio::spawn(async move {
        while ours.read(&mut [0; 64]).await.is_ok_and(|len| 0 < len) {
            noted.lock().push('n');
        }
    });
    let socket = AnySocket::Other(Box::new(Ringing { socket, at_once, bell, events: Arc::clone(events) }));
    let (inlet, heard) = ears();
    (Connection::start(Role::Server, socket, settings(), inlet, None, |_| {}), heard)
}

/// The most KiB of which this happened while the network waited.
fn longest_run(events: &Events, event: char) -> usize {
    events.lock().split('n').map(|run| run.matches(event).count()).max().unwrap_or_default()
}

/// While a reply of 16 MiB is written, what comes over other sockets waits for one bounded write, whoever writes,
/// however little the socket takes at once, and whatever the runtime is.
#[test]
fn the_network_is_looked_at_after_each_write_of_a_large_reply() {
    for (in_line, at_once) in [(true, LARGE), (true, 192 << 10), (false, LARGE), (false, 192 << 10)] {
        for runtime in runtimes() {
            let events = Events::default();
            let noted = Arc::clone(&events);
            let calling = runtime.spawn(async move {
                let (asking, answering) = memory::pair(4 * LARGE);
                let (_answering, mut heard) = ringing(answering, at_once, &noted);
                let (inlet, _heard) = ears();
                let asking =
                    Connection::start(Role::Client, asking.into(), settings(), inlet, Some(Metadata::new()), |_| {});
                let large = Bytes::from(vec![7; LARGE]);
                let reply = if in_line {
                    call(&asking, "echo", large.clone()).await
                } else {
                    let answer = async {
                        let asked = heard.asked.recv().await.expect("it asks");
                        let _ = asked.answer.send(Reply::ok(large.clone()));
                    };
                    tokio::join!(call(&asking, "wait", Bytes::new()), answer).0
                };
                assert_eq!(reply.expect("an answer"), large);
            });
            runtime.block_on(calling).expect("no panic");
            assert_eq!(longest_run(&events, 'w'), WRITE_BYTES >> 10, "in line: {in_line}, {at_once} at once");
        }
    }
}

/// While a push of 16 MiB is read, what comes over other sockets waits for one turn of bounded reads.
#[test]
fn the_network_is_looked_at_after_each_turn_of_a_large_read() {
    for runtime in runtimes() {
        let events = Events::default();
        let noted = Arc::clone(&events);
        let reading = runtime.spawn(async move {
            let (pushing, reading) = memory::pair(4 * LARGE);
            let (metadata, payload) = (Metadata::new(), vec![7; LARGE]);
            let header = Header::oneway(Seq::new(0), SerializeType::RAW);
            let parts =
                FrameParts { header, names: Names::new("T", "x"), metadata: &metadata, payload_len: payload.len() };
            let mut frame = Vec::new();
            parts.put_frame(&mut frame, &payload, &settings().limits).expect("within the limits");
            assert_eq!(pushing.try_write(&[IoSlice::new(&frame)]).expect("it has room"), frame.len());
            let (_reading, mut heard) = ringing(reading, LARGE, &noted);
            assert_eq!(heard.pushes.recv().await.expect("it was sent"), payload);
        });
        runtime.block_on(reading).expect("no panic");
        assert_eq!(longest_run(&events, 'r'), (READS * READ_BYTES) >> 10);
    }
}
