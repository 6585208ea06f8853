//! How the socket of a connection that is over is let go.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// Counts how often its sending side was ended.
struct Counted {
    socket: MemorySocket,
    ends: Arc<AtomicUsize>,
}

impl Socket for Counted {
    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.socket.poll_read(cx, buf)
    }

    fn poll_write(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.socket.poll_write(cx, slices)
    }

    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.socket.try_write(slices)
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_flush(cx)
    }

    fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ends.fetch_add(1, Ordering::Relaxed);
        self.socket.poll_shutdown(cx)
    }

    fn peer(&self) -> String {
        self.socket.peer()
    }
}

/// However much came in one read: so many messages are handled, and then others have their turn.
#[tokio::test(start_paused = true)]
async fn others_have_their_turn_behind_so_many_messages() {
    use super::super::driver::MESSAGES;
    let (near, far) = memory::pair(1 << 20);
    let (handler, mut heard) = ears();
    let _connection = Connection::start(Role::Server, near.into(), Arc::default(), handler, None, |_| {});
    let header = bothways_proto::Header::oneway(bothways_proto::Seq::new(1), SerializeType::RAW);
    let message = Message::new(header, "T", "m", &Metadata::new(), b"");
    let all = message.frame().repeat(3 * MESSAGES);
    let mut written = 0;
    while written < all.len() {
        written += std::future::poll_fn(|cx| far.poll_write(cx, &[IoSlice::new(&all[written..])])).await.expect("room");
    }
    let mut turns = Vec::new();
    for _ in 0..1000 {
        tokio::task::yield_now().await;
        let handled = std::iter::from_fn(|| heard.pushes.try_recv().ok()).count();
        turns.extend(Some(handled).filter(|handled| 0 < *handled));
    }
    assert_eq!(turns.iter().sum::<usize>(), 3 * MESSAGES);
    assert_eq!((turns.first(), turns.iter().max()), (Some(&MESSAGES), Some(&MESSAGES)), "{turns:?}");
}

/// A server refused the Hello of a client, which closes the connection for that, or loses it: its calls say that they were
/// refused. If the refusal closes, they were certainly not run, whatever of them has left; after any other they may have.
#[tokio::test(start_paused = true)]
async fn calls_after_a_refused_hello_say_so_however_the_connection_ends() {
    let is_lost = |connection: &Connection| connection.close_now(CloseReason::PeerClosed);
    let no = || "no".to_owned();
    let not_now = || CloseReason::NotAdmitted { why: no(), retry_after: Duration::ZERO };
    let refusals = || [not_now(), CloseReason::Unauthenticated(no()), CloseReason::HelloRefused(no())];
    let ways = [Connection::close, Connection::cut, is_lost];
    for (ends, refusal) in ways.into_iter().flat_map(|ends| refusals().map(|refusal| (ends, refusal))) {
        let closes = !matches!(refusal, CloseReason::HelloRefused(_));
        let (connection, _far) = super::super::alone::alone(Role::Client);
        let of_task = connection.clone();
        let call = tokio::spawn(async move { call(&of_task, "m", Bytes::from_static(b"x")).await });
        tokio::task::yield_now().await;
        connection.shared.state.lock().drain(refusal);
        ends(&connection);
        let error = tokio::time::timeout(Duration::from_secs(60), call)
            .await
            .expect("in time")
            .expect("no panic")
            .expect_err("it is over");
        assert!(error.is_safe_to_retry() == closes && error.to_string().contains("no"), "{error}");
    }
}

/// Whichever side ends it, and in whatever way: the sending side is ended, as TLS wants it, and once.
#[tokio::test(start_paused = true)]
async fn the_sending_side_is_ended_once() {
    for own in [true, false] {
        let (near, far) = memory::pair(1 << 16);
        let ends = Arc::<AtomicUsize>::default();
        let socket = AnySocket::Other(Box::new(Counted { socket: near, ends: Arc::clone(&ends) }));
        let handler = Arc::new(super::super::alone::Deaf);
        let connection = Connection::start(Role::Server, socket, Arc::default(), handler, None, |_| {});
        if own {
            connection.close();
        } else {
            far.reset();
        }
        drop(far);
        tokio::time::timeout(Duration::from_secs(60), connection.closed()).await.expect("it is over");
        // Its task is done when the socket is gone.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(ends.load(Ordering::Relaxed), 1, "own {own}");
    }
}
