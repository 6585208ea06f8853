//! One connection's large frame, and everybody else's small ones.

use std::{future::poll_fn, sync::Arc, task::Poll};

use bothways_proto::{Limits, Metadata, Role};
use bytes::Bytes;
use parking_lot::Mutex;

use super::{
    Heard, call_back, ears, limit,
    noted::{Moved, Noted},
};
use crate::{
    connection::{Connection, Settings, wire::WRITE_BYTES},
    transport::{AnySocket, memory},
};

/// Who wrote how many bytes, in order.
pub(super) type Writes = Arc<Mutex<Vec<(char, usize)>>>;

const LARGE: usize = 16 << 20;

/// Both ends of a connection whose server's writes are noted under this name.
pub(super) fn noted(name: char, writes: &Writes) -> ([Connection; 2], [Heard; 2]) {
    let settings = Settings { limits: Limits::default().body_bytes_max(2 * LARGE), ..Settings::default() };
    let settings = Arc::new(settings);
    let (client, server) = memory::pair(4 * LARGE);
    let writes = Arc::clone(writes);
    let server = Noted::socket(server, None, move |moved, len| {
        if moved == Moved::Written {
            writes.lock().push((name, len));
        }
    });
    let start = |role, socket: AnySocket, hello| {
        let (handler, heard) = ears();
        (Connection::start(role, socket, Arc::clone(&settings), handler, hello, |_| {}), heard)
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
    let _limit = limit("a_large_reply_delays_a_push_elsewhere_by_one_write");
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
        let reply = call_back(&asking, &mut heard, in_line, large.clone()).await;
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
