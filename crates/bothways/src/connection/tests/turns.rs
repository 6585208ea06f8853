//! What the network brings is handled between two turns of a large frame.

use std::{
    io::{IoSlice, Write},
    os::unix::net::UnixStream,
    sync::Arc,
};

use bothways_proto::{FrameParts, Header, Limits, Metadata, Names, Role, Seq, SerializeType};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    io::AsyncReadExt,
    runtime::{Builder, Runtime},
};

use super::{
    Heard, call_back, ears, limit,
    noted::{Moved, Noted},
};
use crate::{
    connection::{
        Connection, Settings,
        driver::{READ_BYTES, READS},
        wire::WRITE_BYTES,
    },
    transport::{Socket, memory, memory::MemorySocket},
};

/// A letter for each KiB of the large frame that was read (`r`) or written (`w`), and for what came from the network
/// (`n`), in order.
type Events = Arc<Mutex<String>>;

const LARGE: usize = 16 << 20;

/// The kinds of runtime, each with one thread that does all the work.
fn runtimes() -> [Runtime; 2] {
    [Builder::new_current_thread(), Builder::new_multi_thread()]
        .map(|mut builder| builder.worker_threads(1).enable_all().build().expect("a runtime"))
}

fn settings() -> Arc<Settings> {
    Arc::new(Settings { limits: Limits::default().body_bytes_max(2 * LARGE), ..Settings::default() })
}

/// A server's connection, what it hears, and a task that notes what the network brings: each time the connection's socket
/// moves a part of the large frame, a byte comes in over another socket, which is one of the system.
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
    let events = Arc::clone(events);
    let socket = Noted::socket(socket, Some(at_once), move |moved, len| {
        if 1024 <= len {
            let event = if moved == Moved::Read { "r" } else { "w" };
            events.lock().push_str(&event.repeat(len / 1024));
            (&bell).write_all(b"!").expect("the bell is heard");
        }
    });
    let (handler, heard) = ears();
    (Connection::start(Role::Server, socket, settings(), handler, None, |_| {}), heard)
}

/// The most KiB of which this happened while the network waited.
fn longest_run(events: &Events, event: char) -> usize {
    events.lock().split('n').map(|run| run.matches(event).count()).max().unwrap_or_default()
}

/// While a reply of 16 MiB is written, what comes over other sockets waits for one bounded write, whichever thread
/// writes, however little the socket takes at once, and whatever the runtime is.
#[test]
fn the_network_is_looked_at_after_each_write_of_a_large_reply() {
    let _limit = limit("the_network_is_looked_at_after_each_write_of_a_large_reply");
    for (in_line, at_once) in [(true, LARGE), (true, 192 << 10), (false, LARGE), (false, 192 << 10)] {
        for runtime in runtimes() {
            let events = Events::default();
            let noted = Arc::clone(&events);
            let calling = runtime.spawn(async move {
                let (asking, answering) = memory::pair(4 * LARGE);
                let (_answering, mut heard) = ringing(answering, at_once, &noted);
                let (handler, _heard) = ears();
                let asking =
                    Connection::start(Role::Client, asking.into(), settings(), handler, Some(Metadata::new()), |_| {});
                let large = Bytes::from(vec![7; LARGE]);
                let reply = call_back(&asking, &mut heard, in_line, large.clone()).await;
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
    let _limit = limit("the_network_is_looked_at_after_each_turn_of_a_large_read");
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
