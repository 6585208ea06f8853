//! A connection of a server has a task only while there is something to do. Over sockets of the system, for those
//! in memory never rest.

use std::{
    io::{self, IoSlice, Write},
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bothways::{
    CloseReason, Heartbeat, Metadata, Server, Target,
    server::Listening,
    transport::{Accepted, Address, AnySocket, BoxFuture, Listen, ListenOptions, Listener, Socket, Transport},
};
use bothways_proto::{Capabilities, Limits};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::runtime::{Builder, Handle, Runtime};

use crate::{
    scripted::{Scripted, hello, request},
    support::{connections, echoing, until},
};

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// Longer than a few looks of the watch.
const A_REST: Duration = Duration::from_secs(3);

async fn listen(server: &Server) -> (TempDir, Listening) {
    let folder = tempfile::tempdir().expect("a folder");
    let listening = server.listen(&format!("unix@{}", folder.path().join("socket").display())).await;
    (folder, listening.expect("a new name"))
}

async fn calls(client: &mut Scripted, seq: u64) {
    client.say(request(seq, "Echo", b"x")).await;
    assert_eq!(client.next().await.wire_payload()[..], *b"x");
}

/// Neither before the first call nor after it, nor when more calls are over for a while.
#[tokio::test(start_paused = true)]
async fn an_idle_client_has_no_task() {
    const CLIENTS: usize = 20;
    let server = echoing().build();
    let (_folder, listening) = listen(&server).await;
    let base = tasks();
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(Scripted::connect(listening.address()).await);
    }
    connections(&server, CLIENTS).await;
    until(|| tasks() == base).await;
    for client in &mut clients {
        calls(client, 1).await;
    }
    until(|| tasks() == base).await;
    for seq in 2..10 {
        calls(&mut clients[0], seq).await;
    }
    assert_eq!(tasks(), base + 1, "who calls on has a task");
    tokio::time::sleep(A_REST).await;
    assert_eq!(tasks(), base, "and none once it rests");
    calls(&mut clients[0], 10).await;
    assert_eq!(server.stats().connections, CLIENTS);
}

/// A part of a frame is kept by the task.
#[tokio::test(start_paused = true)]
async fn half_a_frame_keeps_its_task() {
    let server = echoing().build();
    let (_folder, listening) = listen(&server).await;
    let base = tasks();
    let mut client = Scripted::connect(listening.address()).await;
    let frame = request(1, "Echo", b"x");
    let (begin, end) = frame.split_at(20);
    client.say(begin).await;
    until(|| tasks() == base + 1).await;
    tokio::time::sleep(A_REST).await;
    assert_eq!(tasks(), base + 1);
    client.say(end).await;
    assert_eq!(client.next().await.wire_payload()[..], *b"x");
    tokio::time::sleep(A_REST).await;
    assert_eq!(tasks(), base);
}

/// Much more than a socket takes at once goes out although nothing is read.
#[tokio::test(start_paused = true)]
async fn a_push_that_fills_the_socket_calls_for_the_task() {
    let server = echoing().build();
    let (_folder, listening) = listen(&server).await;
    let base = tasks();
    let mut client = Scripted::connect(listening.address()).await;
    calls(&mut client, 1).await;
    until(|| tasks() == base).await;
    let payload = vec![7; Limits::default().body_bytes() / 2];
    let connection = server.connections().remove(0);
    connection.send_message("T", "Large", &Metadata::new(), payload.clone()).expect("it is taken");
    until(|| tasks() == base + 1).await;
    assert_eq!(client.next().await.wire_payload(), payload);
    tokio::time::sleep(A_REST).await;
    assert_eq!(tasks(), base);
    calls(&mut client, 2).await;
}

/// A connection at rest is asked for signs of life as others are.
#[tokio::test(start_paused = true)]
async fn a_client_at_rest_gets_its_heartbeats() {
    let server = echoing().heartbeat(Heartbeat::every(Duration::from_secs(5)).timeout(Duration::from_secs(5))).build();
    let (_folder, listening) = listen(&server).await;
    let base = tasks();
    let mut client = Scripted::connect(listening.address()).await;
    client.say(hello(0, Capabilities::PING, &Metadata::new())).await;
    client.next().await;
    until(|| tasks() == base).await;
    for _ in 0..3 {
        let ping = client.next().await;
        assert!(ping.header().is_heartbeat(), "{ping:?}");
        client.say(ping.pong()).await;
    }
    client.next().await;
    client.hears_the_end().await;
}

/// Either side's end is seen, and told, as ever.
#[tokio::test(start_paused = true)]
async fn a_connection_at_rest_ends_as_others_do() {
    let reasons = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&reasons);
    let server = echoing().on_disconnect(move |_, reason| kept.lock().push(reason.to_string())).build();
    let (_folder, listening) = listen(&server).await;
    let base = tasks();
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = Scripted::connect(listening.address()).await;
        calls(&mut client, 1).await;
        clients.push(client);
    }
    until(|| tasks() == base).await;
    let [first, second, _] = server.connections().try_into().expect("three");
    first.close();
    clients[0].hears_the_end().await;
    drop(clients.remove(0));
    connections(&server, 2).await;
    server.kick(&Target::connection(second.id()), "no reason").expect("no topic");
    clients[0].hears_the_end().await;
    drop(clients);
    connections(&server, 0).await;
    let (local, left) = (CloseReason::Local.to_string(), CloseReason::PeerClosed.to_string());
    assert_eq!(*reasons.lock(), [local.clone(), local, left]);
    until(|| tasks() == base).await;
}

/// A runtime that ends takes connections along that had no task in it, and says so.
#[test]
fn the_end_of_a_runtime_ends_connections_at_rest() {
    let runtimes: [fn() -> Runtime; 2] = [
        || Builder::new_current_thread().enable_all().build().expect("a runtime"),
        || Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime"),
    ];
    for runtime in runtimes {
        let runtime = runtime();
        let ended = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&ended);
        let server = echoing().on_disconnect(move |_, _| _ = counted.fetch_add(1, Ordering::Relaxed)).build();
        let (folder, listening) = runtime.block_on(listen(&server));
        let path = folder.path().join("socket");
        let clients: Vec<_> = (0..5).map(|_| UnixStream::connect(&path).expect("it listens")).collect();
        (&clients[0]).write_all(&request(1, "Echo", b"x")).expect("it is there");
        runtime.block_on(connections(&server, 5));
        assert_eq!(ended.load(Ordering::Relaxed), 0);
        drop(runtime);
        assert_eq!(ended.load(Ordering::Relaxed), 5);
        drop(listening);
    }
}

/// `wrapped@path` is `unix@path`, in a socket of its own kind, which says of itself whether it can rest.
struct Wrapped {
    can_rest: bool,
}

impl Transport for Wrapped {
    fn networks(&self) -> &[&str] {
        &["wrapped"]
    }

    fn bind(&self, address: &Address, options: &ListenOptions) -> BoxFuture<io::Result<Box<dyn Listen>>> {
        let below = format!("unix@{}", address.target()).parse().expect("a path");
        let (options, can_rest) = (options.clone(), self.can_rest);
        Box::pin(async move {
            let below = Listener::bind(&below, &options).await.map_err(io::Error::other)?;
            Ok(Box::new(WrappedListener { below, can_rest }) as Box<dyn Listen>)
        })
    }
}

struct WrappedListener {
    below: Listener,
    can_rest: bool,
}

impl Listen for WrappedListener {
    fn local_address(&self) -> String {
        self.below.local_address().to_owned()
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        let can_rest = self.can_rest;
        self.below.poll_accept(cx).map_ok(|accepted| {
            Accepted::after(accepted.peer(), async move {
                let below = accepted.handshake(Duration::from_secs(10)).await?;
                let socket: Box<dyn Socket> = Box::new(WrappedSocket { below, can_rest });
                Ok(socket.into())
            })
        })
    }
}

struct WrappedSocket {
    below: AnySocket,
    can_rest: bool,
}

impl Socket for WrappedSocket {
    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.below.poll_read(cx, buf)
    }

    fn poll_write(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.below.poll_write(cx, slices)
    }

    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.below.try_write(slices)
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.below.poll_flush(cx)
    }

    fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.below.poll_shutdown(cx)
    }

    fn peer(&self) -> String {
        self.below.peer()
    }

    fn can_rest(&self) -> bool {
        self.can_rest && self.below.can_rest()
    }

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.below.poll_readable(cx)
    }
}

/// How many tasks an idle client costs, which comes in through a transport of the application's own.
async fn tasks_of_an_idle_client(can_rest: bool) -> usize {
    let server = echoing().transport(Wrapped { can_rest }).build();
    let folder = tempfile::tempdir().expect("a folder");
    let place = format!("wrapped@{}", folder.path().join("socket").display());
    let listening = server.listen(&place).await.expect("a new name");
    let base = tasks();
    let mut client = Scripted::connect(listening.address()).await;
    connections(&server, 1).await;
    calls(&mut client, 1).await;
    tokio::time::sleep(A_REST).await;
    let idle = tasks() - base;
    calls(&mut client, 2).await;
    idle
}

#[tokio::test(start_paused = true)]
async fn a_socket_of_ones_own_rests_if_it_says_so() {
    assert_eq!(tasks_of_an_idle_client(true).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_socket_of_ones_own_has_a_task_if_it_says_nothing() {
    assert_eq!(tasks_of_an_idle_client(false).await, 1);
}
