//! Many idle clients to whom something happens at once.
#![cfg(unix)]

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bothways::{Metadata, Reply, Request, Server, server::Listening};
use bothways_proto::{Header, Limits, Seq, SerializeType, frame};
use tokio::runtime::{Builder, Handle, Runtime};

/// Clients. Many more than the tasks that read for them.
const CLIENTS: usize = 100;

/// Tasks that may be made for them at once, beside those of the server.
const TASKS_MAX: usize = 20;

/// What takes longer has failed.
const LIMIT: Duration = Duration::from_secs(60);

/// A server whose method does this, and its clients, which are connected and have said nothing: they are at rest.
struct Trial {
    server: Server,
    _listening: Listening,
    clients: Vec<UnixStream>,
    call: Vec<u8>,
}

impl Trial {
    fn begin(runtime: &Runtime, path: &Path, act: impl Fn() + Send + Sync + 'static) -> Self {
        let server = Server::builder()
            .handler("T", "Act", move |request: Request| {
                act();
                std::future::ready(Reply::ok(request.payload().expect("bytes")))
            })
            .build();
        let listening = runtime.block_on(server.listen(&format!("unix@{}", path.display()))).expect("a new name");
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            clients.push(UnixStream::connect(path).expect("it listens"));
            wait(runtime, || server.stats().connections == clients.len());
        }
        let header = Header::request(Seq::new(1), SerializeType::RAW);
        let call = frame(header, "T", "Act", &Metadata::new(), b"7", &Limits::default()).expect("small").to_vec();
        Self { server, _listening: listening, clients, call }
    }

    fn call_all(&self) {
        self.clients.iter().for_each(|mut client| client.write_all(&self.call).expect("it is there"));
    }

    fn hear_all(&self, runtime: &Runtime) {
        for mut client in &self.clients {
            client.set_nonblocking(true).expect("a socket");
            let (mut heard, mut buffer) = (0, [0; 256]);
            // An answer repeats the names and the payload.
            wait(runtime, || {
                while let Ok(more @ 1..) = client.read(&mut buffer) {
                    heard += more;
                }
                heard == self.call.len()
            });
        }
    }
}

/// Lets the runtime work until this holds.
fn wait(runtime: &Runtime, mut until: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !until() {
        assert!(begin.elapsed() < LIMIT, "it takes for ever");
        runtime.block_on(tokio::task::yield_now());
    }
}

/// All idle clients call at once: no task is made for each of them.
#[test]
fn many_that_call_at_once_take_few_tasks() {
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let most = Arc::new(AtomicUsize::new(0));
    let noted = Arc::clone(&most);
    let note = move || _ = noted.fetch_max(Handle::current().metrics().num_alive_tasks(), Ordering::Relaxed);
    let trial = Trial::begin(&runtime, &folder.path().join("few"), note);
    let before = runtime.metrics().num_alive_tasks();
    trial.call_all();
    trial.hear_all(&runtime);
    let more = most.load(Ordering::Relaxed) - before;
    assert!((1..=TASKS_MAX).contains(&more), "{more} tasks for {CLIENTS} clients");
}

/// Handlers that block their threads, all of them until the last one runs: none waits for another to be done.
#[test]
fn handlers_that_block_hold_up_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let all_run = Arc::new(Barrier::new(CLIENTS));
    let meet = move || tokio::task::block_in_place(|| _ = all_run.wait());
    let trial = Trial::begin(&runtime, &folder.path().join("block"), meet);
    trial.call_all();
    trial.hear_all(&runtime);
}

/// Something came to all of them, and then their runtime ended: so do they.
#[test]
fn all_end_with_their_runtime() {
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let trial = Trial::begin(&runtime, &folder.path().join("end"), || {});
    trial.call_all();
    drop(runtime);
    assert_eq!(trial.server.stats().connections, 0);
    for mut client in &trial.clients {
        client.set_nonblocking(false).expect("a socket");
        client.set_read_timeout(Some(LIMIT)).expect("a socket");
        let ended = client.read(&mut [0; 256]);
        let is_over =
            ended.as_ref().map_or_else(|error| error.kind() == std::io::ErrorKind::ConnectionReset, |n| *n == 0);
        assert!(is_over, "{ended:?}");
    }
}
