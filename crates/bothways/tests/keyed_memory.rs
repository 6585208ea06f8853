//! What a session takes that is full of pushes with keys. Alone in its process, whose memory it measures.
#![cfg(target_os = "linux")]

mod memory;

use bothways::{Class, Push, QueueBound, Server, SessionOptions};

use crate::memory::{resident, welcomed};

/// Pushes with an idempotency key and values of class `Latest` are there in two forms, for clients that know of keys and
/// for plain ones: the sum holds for sessions that are full of these.
#[tokio::test(start_paused = true)]
async fn sessions_full_of_keys_take_no_more_than_their_bounds() {
    const SESSIONS: usize = 4;
    const BYTES: usize = 100_000;
    let server = Server::builder()
        .sessions(
            SessionOptions::new()
                .log(QueueBound::messages(100).bytes(8 << 20))
                .latest_queue(QueueBound::messages(100).bytes(8 << 20)),
        )
        .build();
    let listening = server.listen("memory@session-memory-keyed").await.expect("a free name");
    let (clients, sessions) = welcomed(&server, listening.address(), SESSIONS).await;
    let before = resident();
    for session in &sessions {
        for n in 0..250 {
            let key = format!("key {n}");
            let payload = || vec![n as u8; BYTES];
            let tracked = Push::new("T", "News", payload()).idempotency_key(&key).expect("it is short");
            session.push(&tracked).expect("within the limits");
            session.push(&Push::new("T", "News", payload()).class(Class::Latest(key))).expect("within the limits");
        }
        assert!(session.waiting().1 <= 25 << 20 && 0 < session.dropped(), "{:?}", session.waiting());
    }
    let each = resident().saturating_sub(before) / SESSIONS;
    let allowed = server.session_bytes_max(BYTES + 100);
    assert!(each <= allowed, "a session takes {each} bytes, of {allowed}");
    assert!(allowed <= 4 * each, "the sum is far from what a session takes: {each} bytes, of {allowed}");
    drop(clients);
}
