//! What an idle client costs its server on the heap, to the byte. Alone in its process, whose allocator counts.
#![cfg(unix)]

#[path = "memory/heap.rs"]
mod heap;

use std::{io::Write, os::unix::net::UnixStream, path::Path, time::Duration};

use bothways::{Metadata, Reply, Request, Server, Target};
use bothways_proto::{Header, Limits, Seq, SerializeType, frame};
use tokio::runtime::Runtime;

use crate::heap::{HEAP, heap, hear, wait};

/// Clients, and how many are counted: the others are there before, so that tables have grown. Between the two the
/// table of connections does not grow, for it doubles at 224 and at 448, and no system allows fewer open files.
const CLIENTS: usize = 440;
const COUNTED: usize = 200;

/// Of a client that has called: the connection (360 bytes), and what tokio keeps of its socket (256). Nothing
/// else, and 70 bytes to spare. `docs/performance.md` says what it is in memory.
const PLAIN_BYTES_MAX: usize = 720;

/// Of one with a user and a topic: also the session with a blank ledger (208 bytes), its story (130), its user's name,
/// and its places in tables, which with few clients are mostly empty. Again 70 to spare.
const WITH_SESSION_BYTES_MAX: usize = 1296;

/// What is taken for a client that connects, if only for a moment: what it keeps (616 bytes), and no task, which would be
/// 384. What goes at once leaves holes between what stays.
const CONNECTING_BYTES_MAX: usize = 920;

struct Clients {
    runtime: Runtime,
    streams: Vec<UnixStream>,
}

impl Clients {
    /// More than a few looks at the connections.
    fn rest(&self) {
        self.runtime.block_on(async { tokio::time::sleep(Duration::from_secs(5)).await });
    }

    fn connect(&mut self, path: &Path, server: &Server, upto: usize) {
        while self.streams.len() < upto {
            self.streams.push(UnixStream::connect(path).expect("it listens"));
            wait(&self.runtime, || server.stats().connections == self.streams.len());
        }
    }

    /// Each calls this method so often.
    fn call(&self, method: &str, from: usize, times: usize) {
        let header = Header::request(Seq::new(1), SerializeType::RAW);
        let call = frame(header, "T", method, &Metadata::new(), &[7; 581], &Limits::default()).expect("small");
        for stream in &self.streams[from..] {
            for _ in 0..times {
                (&*stream).write_all(&call).expect("it is there");
                hear(&self.runtime, stream, 582);
            }
        }
    }

    /// Each is pushed what no socket takes at once.
    fn burst(&self, server: &Server, from: usize) {
        let large = vec![1; 1 << 20];
        for connection in server.connections().iter().rev().take(self.streams.len() - from) {
            connection.send_message("T", "Large", &Metadata::new(), large.clone()).expect("it is taken");
        }
        for stream in &self.streams[from..] {
            hear(&self.runtime, stream, large.len() + 1);
        }
    }
}

/// The heap that each of the last clients takes at rest, after this method.
fn measured(method: &str) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    let mut clients = Clients { runtime: runtime.expect("a runtime"), streams: Vec::with_capacity(CLIENTS) };
    let server = Server::builder()
        .handler("T", "Echo", |request: Request| std::future::ready(Reply::ok(request.payload().expect("bytes"))))
        .handler("T", "Join", |request: Request| {
            let session = request.session().expect("it is connected");
            session.bind_user(&format!("user-{:06}", request.connection().id().get()));
            session.subscribe("news").expect("a topic");
            std::future::ready(Reply::ok(request.payload().expect("bytes")))
        })
        .build();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    let listening = clients.runtime.block_on(server.listen(&format!("unix@{}", path.display())));
    let _listening = listening.expect("a new name");

    clients.connect(&path, &server, CLIENTS - COUNTED);
    clients.call(method, 0, 1);
    // What the thread keeps for all of them, within a bound, is there before.
    clients.burst(&server, 0);
    clients.rest();
    let before = heap();
    let taken = HEAP.stats().bytes_allocated;
    clients.connect(&path, &server, CLIENTS);
    let taken = (HEAP.stats().bytes_allocated - taken) / COUNTED;
    assert!(taken <= CONNECTING_BYTES_MAX, "{taken} bytes are taken for a client that connects");
    clients.call(method, CLIENTS - COUNTED, 1);
    clients.rest();
    let after = heap();
    let each = (after - before) / COUNTED;

    // Many calls and large pushes: at rest it is as it was.
    clients.call("Echo", CLIENTS - COUNTED, 20);
    clients.burst(&server, CLIENTS - COUNTED);
    clients.rest();
    let burst = heap().saturating_sub(after) / COUNTED;
    assert!(burst <= COUNTERS_BYTES, "a burst leaves {burst} bytes of each client");
    assert_eq!(server.sessions(&Target::everyone()).expect("no topic").len(), CLIENTS);
    each
}

/// Counters of pushes stay after the first one.
const COUNTERS_BYTES: usize = 128;

/// An idle client takes no more than its bound on the heap, and a burst leaves nothing.
#[test]
fn an_idle_client_is_small() {
    let plain = measured("Echo");
    assert!(plain <= PLAIN_BYTES_MAX, "a plain client takes {plain} bytes, of {PLAIN_BYTES_MAX}");
    let with_session = measured("Join");
    assert!(
        with_session <= WITH_SESSION_BYTES_MAX,
        "a client with session, user and topic takes {with_session} bytes, of {WITH_SESSION_BYTES_MAX}"
    );
    println!("plain {plain}, with session, user and topic {with_session}");
}
