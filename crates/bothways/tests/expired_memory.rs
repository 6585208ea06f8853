//! What sessions leave on the heap of their server when they have expired, to the byte. Alone in its process, whose
//! allocator counts.
#![cfg(unix)]

#[path = "memory/heap.rs"]
mod heap;

use std::{io::Write, os::unix::net::UnixStream, path::Path, time::Duration};

use bothways::{Metadata, Reply, Request, Server, Target, session::SessionOptions};
use bothways_proto::{Capabilities, Header, Hello, Message, Seq, SerializeType, VERSION};
use tokio::runtime::Runtime;

use crate::heap::{heap, hear, wait};

/// Sessions at a time, each of a user of its own, and topics of each, which nobody else has.
const SESSIONS: usize = 100;
const TOPICS: usize = 30;

/// What each may leave until others come: how it ended, for its client, and its places in tables. 5 MiB of all together.
/// Stories, for who asks what became of a push, have a bound of their own, which is low here. Topics left behind would be
/// 3 KiB.
const LEFT_BYTES_MAX: usize = 512;
const ROUNDS: usize = 5;

/// How long a session waits for its client.
const WINDOW: Duration = Duration::from_secs(10);

/// Clients come, each with a session that outlives its connection, subscribe, and are gone without a word.
fn come_and_go(runtime: &Runtime, server: &Server, path: &Path) {
    let mut said = Metadata::new();
    Hello { version: VERSION, capabilities: Capabilities::ALL.without(Capabilities::LAST) }.put(&mut said);
    let hello = Message::ping(Seq::new(1), &said, &[]).frame().to_vec();
    let join = Header::request(Seq::new(2), SerializeType::RAW);
    let join = Message::new(join, "T", "Join", &Metadata::new(), &[]).frame().to_vec();
    let mut streams = Vec::with_capacity(SESSIONS);
    for _ in 0..SESSIONS {
        let mut stream = UnixStream::connect(path).expect("it listens");
        stream.write_all(&hello).expect("it is there");
        hear(runtime, &stream, 100);
        stream.write_all(&join).expect("it is there");
        hear(runtime, &stream, 16);
        streams.push(stream);
    }
    let count = || server.sessions(&Target::everyone()).expect("no topic").len();
    assert_eq!(count(), SESSIONS);
    drop(streams);
    wait(runtime, || server.stats().connections == 0);
    assert_eq!(count(), SESSIONS, "they wait for their clients");
    runtime.block_on(async { tokio::time::sleep(2 * WINDOW).await });
    assert_eq!(count(), 0, "they have expired");
}

/// What a server knows of sessions that have expired has its bounds, and nothing else of them stays.
#[test]
fn expired_sessions_leave_no_more_than_what_is_known_of_them() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    let runtime = runtime.expect("a runtime");
    let server = Server::builder()
        .sessions(SessionOptions::new().resume_window(WINDOW).ended_max(10))
        .handler("T", "Join", |request: Request| {
            let session = request.session().expect("it is connected");
            let id = request.connection().id().get();
            session.bind_user(&format!("user-{id:0200}"));
            for topic in 0..TOPICS {
                session.subscribe(&format!("topic-{id:090}-{topic:05}")).expect("there is room");
            }
            std::future::ready(Reply::ok(""))
        })
        .build();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    let listening = runtime.block_on(server.listen(&format!("unix@{}", path.display())));
    let _listening = listening.expect("a new name");

    // Tables have grown, and threads keep what they keep for all.
    come_and_go(&runtime, &server, &path);
    let before = heap();
    for _ in 0..ROUNDS {
        come_and_go(&runtime, &server, &path);
    }
    let each = heap().saturating_sub(before) / (ROUNDS * SESSIONS);
    println!("{each} bytes stay of a session that has expired");
    assert!(each <= LEFT_BYTES_MAX, "{each} bytes of each, of {LEFT_BYTES_MAX}");
}
