//! One connection's large frame, and everybody else's small ones.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    sync::Arc,
    task::{Context, Poll},
};

use bothways_proto::{Limits, Metadata, Role};
use bytes::Bytes;
use parking_lot::Mutex;

use super::{Heard, call, ears};
use crate::{
    connection::{Connection, Settings, outbox::WRITE_BYTES},
    reply::Reply,
    transport::{AnySocket, Socket, memory, memory::MemorySocket},
};

/// Who wrote how many bytes, in order.
pub(super) type Writes = Arc<Mutex<Vec<(char, usize)>>>;

/// A socket with room for everything, that notes what is written.
struct Noted {
    socket: MemorySocket,
    name: char,
    writes: Writes,
}

impl Noted {
    fn note(&self, result: io::Result<usize>) -> io::Result<usize> {
        result.inspect(|len| self.writes.lock().push((self.name, *len)))
    }
}

impl Socket for Noted {
    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.socket.poll_read(cx, buf)
    }

    fn poll_write(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.socket.poll_write(cx, slices).map(|result| self.note(result))
    }

    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.note(self.socket.try_write(slices))
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

/// Both ends of a connection whose server's writes are noted under this name.
pub(super) fn noted(name: char, writes: &Writes) -> ([Connection; 2], [Heard; 2]) {
    let settings = Settings { limits: Limits::default().body_bytes_max(2 * LARGE), ..Settings::default() };
    let settings = Arc::new(settings);
    let (client, server) = memory::pair(4 * LARGE);
    let server = AnySocket::Other(Box::new(Noted { socket: server, name, writes: Arc::clone(writes) }));
    let start = |role, socket: AnySocket, hello| {
        let (inlet, heard) = ears();
        (Connection::start(role, socket, Arc::clone(&settings), inlet, hello, |_| {}), heard)
    };
    let (server, server_heard) = start(Role::Server, server, None);
    let (client, client_heard) = start(Role::Client, client.into(), Some(Metadata::new()));
    ([client, server], [client_heard, server_heard])
}

/// Lets every task that is ready have one turn.
pub(super) async fn turn() {
    let mut begun = false;
    poll_fn(|cx| {
        cx.waker().wake_by_ref();
        if std::mem::replace(&mut begun, true) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// A push on one connection waits for one bounded write of a reply of 16 MiB on another, in whichever task
/// that reply is written; and the reply arrives whole.
#[tokio::test(start_paused = true)]
async fn a_large_reply_delays_a_push_elsewhere_by_one_write() {
    for in_line in [true, false] {
        let writes = Writes::default();
        let ([asking, _answering], [_, mut heard]) = noted('L', &writes);
        let ([_listening, pushing], [mut listened, _]) = noted('p', &writes);
        while !(pushing.is_negotiated() && asking.is_negotiated()) {
            turn().await;
        }
        writes.lock().clear();
        let noted = Arc::clone(&writes);
        let pusher = tokio::spawn(async move {
            let written = || noted.lock().iter().filter(|(name, _)| *name == 'L').map(|(_, len)| len).sum::<usize>();
            let mut pushed = 0;
            while written() <= LARGE {
                if WRITE_BYTES <= written() {
                    pushing.send_message("T", "x", &Metadata::new(), "now").expect("it is open");
                    pushed += 1;
                }
                tokio::task::yield_now().await;
            }
            pushed
        });
        let large = Bytes::from(vec![7; LARGE]);
        let reply = match in_line {
            true => call(&asking, "echo", large.clone()).await,
            false => {
                let answer = async {
                    let asked = heard.asked.recv().await.expect("it asks");
                    let _ = asked.answer.send(Reply::ok(large.clone()));
                };
                tokio::join!(call(&asking, "wait", Bytes::new()), answer).0
            }
        };
        assert_eq!(reply.expect("an answer"), large);
        for _ in 0..pusher.await.expect("no panic") {
            listened.pushes.recv().await.expect("it was sent");
        }
        let writes = writes.lock();
        let began = writes.iter().position(|write| *write == ('L', WRITE_BYTES)).expect("it is large");
        let ended = writes.iter().rposition(|(name, _)| *name == 'L').expect("it is large");
        let meanwhile = &writes[began..=ended];
        assert_eq!(meanwhile.iter().filter(|(name, _)| *name == 'L').count(), LARGE / WRITE_BYTES + 1);
        assert!(meanwhile.iter().all(|(_, len)| *len <= WRITE_BYTES));
        let delay = meanwhile.chunk_by(|a, b| a.0 == b.0).filter(|run| run[0].0 == 'L').map(<[_]>::len).max();
        assert_eq!(delay, Some(1), "{meanwhile:?}");
    }
}
