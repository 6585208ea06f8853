//! What is asked for while a caller writes happens when that write is done.

use std::sync::{
    atomic::{AtomicUsize, Ordering},
    mpsc,
};

use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};

use super::{fairness::turn, *};

const LIMIT: Duration = Duration::from_secs(60);

/// A socket that holds a caller's write until the test lets it go.
struct Held {
    socket: Arc<MemorySocket>,
    entered: mpsc::Sender<()>,
    go: Mutex<mpsc::Receiver<()>>,
}

impl Socket for Held {
    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.socket.poll_read(cx, buf)
    }

    fn poll_write(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.socket.poll_write(cx, slices)
    }

    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        // The test may be over.
        let _ = self.entered.send(());
        let _ = self.go.lock().recv_timeout(LIMIT);
        self.socket.try_write(slices)
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

/// Counts how often it is told of room.
struct Counts(Arc<AtomicUsize>);

impl ConnectionHandler for Counts {
    fn handle_request(&self, _: &Connection, _: Message) -> Answer {
        Answer::Nothing
    }

    fn handle_hello(&self, _: &Connection, _: Metadata) -> BoxFuture<Result<(), crate::error::AuthError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn handle_closed(&self, _: &Connection, _: &CloseReason) {}

    fn on_writable(&self, _: &Connection) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// What the peer reads, how often the layer above was told of room, and whether nothing is kept, if this is done while a
/// caller writes a push.
fn during_a_write(act: fn(&Connection), ends: bool) -> (Vec<u8>, usize, bool) {
    let runtime: Runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (entered, has_entered) = mpsc::channel();
    let (go, is_let_go) = mpsc::channel();
    let told = Arc::new(AtomicUsize::new(0));
    runtime.block_on(async {
        let (near, far) = memory::pair(1 << 20);
        let held = Held { socket: Arc::new(near), entered, go: Mutex::new(is_let_go) };
        let socket = AnySocket::Other(Box::new(held));
        let handler = Arc::new(Counts(Arc::clone(&told)));
        let connection = Connection::start(Role::Client, socket, Arc::default(), handler, None, |_| {});
        turn().await;
        let writing = std::thread::spawn({
            let connection = connection.clone();
            move || connection.send_message("T", "x", &Metadata::new(), "payload")
        });
        has_entered.recv_timeout(LIMIT).expect("it writes");

        act(&connection);
        // The connection's task sees that somebody writes. At the end it waits for the write.
        for _ in 0..if connection.is_closed() { 0 } else { 10 } {
            turn().await;
        }
        go.send(()).expect("it waits");
        let sent = tokio::task::spawn_blocking(|| writing.join().expect("no panic")).await.expect("no panic");
        sent.expect("it is open");

        let mut read = Vec::new();
        let mut buf = [0; 1024];
        let reading = async {
            loop {
                let len = std::future::poll_fn(|cx| far.poll_read(cx, &mut buf)).await.expect("memory does not fail");
                read.extend_from_slice(&buf[..len]);
                if len == 0 || !ends {
                    break;
                }
            }
        };
        tokio::time::timeout(LIMIT, reading).await.expect("it goes on");
        (read, told.load(Ordering::SeqCst), connection.shared.state.lock().outbox.is_empty())
    })
}

/// A connection that is closed while a caller writes ends when that is written.
#[test]
fn a_close_during_a_callers_write_comes_after_it() {
    let (read, ..) = during_a_write(|connection| connection.close(), true);
    assert!(read.ends_with(b"payload"), "{read:?}");
}

/// The layer above asks for room while a caller writes, and is told once when everything is written.
#[test]
fn room_that_is_asked_for_during_a_callers_write_is_told_of() {
    let (read, told, _) = during_a_write(|connection| assert!(connection.notify_writable(false)), false);
    assert!(read.ends_with(b"payload"), "{read:?}");
    assert_eq!(told, 1);
}

/// A handle that is kept of a connection that ended during a write keeps nothing of what was written.
#[test]
fn a_connection_that_ends_during_a_write_keeps_nothing() {
    let (.., is_empty) = during_a_write(|connection| connection.cut(), true);
    assert!(is_empty);
}

/// Sends a client away that is being welcomed.
struct Kicks;

impl ConnectionHandler for Kicks {
    fn handle_request(&self, _: &Connection, _: Message) -> Answer {
        Answer::Nothing
    }

    fn handle_hello(&self, _: &Connection, _: Metadata) -> BoxFuture<Result<(), crate::error::AuthError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn handle_closed(&self, _: &Connection, _: &CloseReason) {}

    /// As if another thread did so, which finds the session as soon as it is given to the connection.
    fn welcome_pairs(&self, connection: &Connection, _: &Metadata) -> Result<Metadata, Duration> {
        assert!(connection.say_goodbye_for("kicked", "not here", None));
        connection.close();
        Ok(Metadata::new())
    }
}

/// A session ends while the Welcome of its client is not queued: the Goodbye comes behind the Welcome, as what it is. It
/// once came first, to the application, and the Welcome never.
#[tokio::test(start_paused = true)]
async fn a_goodbye_beside_a_welcome_comes_behind_it() {
    let (client, server) = memory::pair(1 << 16);
    let settings = Arc::new(Settings::default());
    let _server = Connection::start(Role::Server, server.into(), Arc::clone(&settings), Arc::new(Kicks), None, |_| {});
    let (handler, mut heard) = ears();
    let client = Connection::start(Role::Client, client.into(), settings, handler, Some(Metadata::new()), |_| {});
    let reason = tokio::time::timeout(LIMIT, client.closed()).await.expect("it ends");
    assert!(matches!(&reason, CloseReason::Goodbye { code, .. } if code == "kicked"), "{reason}");
    assert!(client.is_negotiated());
    assert!(heard.pushes.try_recv().is_err(), "it is no message of the application's");
}

/// A call over TLS whose connection breaks with the batch half sent may have run, and says so.
#[cfg(feature = "tls")]
#[tokio::test]
async fn a_call_half_sent_over_tls_may_have_run() {
    use crate::transport::tls::half_sent;
    let (socket, _far) = half_sent(20_000).await;
    let (handler, _heard) = ears();
    let connection = Connection::start(Role::Client, socket, Arc::default(), handler, None, |_| {});
    // Queued first, so that both leave in one write, before the connection's task has had a turn.
    let limits = bothways_proto::Limits::default();
    let frame = crate::connection::send::PushFrame::new("T", "x", &Metadata::new(), &[7; 40_000], &limits);
    connection.queue(&frame.expect("small")).expect("room");
    let calling = call(&connection, "wait", Bytes::from_static(b"small"));
    let error = tokio::time::timeout(LIMIT, calling).await.expect("in time").expect_err("it broke");
    assert!(matches!(error, CallError::Closed { written: true, .. }), "{error}");
    assert!(!error.is_safe_to_retry());
}
