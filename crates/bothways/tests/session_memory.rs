//! What a session takes when everything that is bounded is full. Alone in its process, whose memory it measures.
#![cfg(target_os = "linux")]

mod memory;

use bothways::{Class, Push, Server};

use crate::memory::{resident, welcomed};

/// Sessions filled to their bounds, by large and by small frames, take no more than the sum in the documentation,
/// and no less than a quarter of it: the bounds are the memory, not a number far from it.
#[tokio::test(start_paused = true)]
async fn a_full_session_takes_no_more_than_its_bounds() {
    const SESSIONS: usize = 16;
    let mut most = 0;
    for (number, bytes) in [1000, 40].into_iter().enumerate() {
        let server = Server::builder().build();
        let listening = server.listen(&format!("memory@session-memory-{number}")).await.expect("a free name");
        let (clients, sessions) = welcomed(&server, listening.address(), SESSIONS).await;
        let before = resident();
        // Without a pause between them, nothing is confirmed, and the sockets in memory fill.
        for session in &sessions {
            for n in 0..1100 {
                let push = |class| Push::new("T", "News", vec![n as u8; bytes]).class(class);
                session.push(&push(Class::Tracked)).expect("small");
                session.push(&push(Class::Fire)).expect("small");
                session.push(&push(Class::Latest(format!("key {n}")))).expect("small");
            }
            assert!(1000 < session.waiting().0 && 0 < session.dropped(), "{:?}", session.waiting());
        }
        let each = resident().saturating_sub(before) / SESSIONS;
        let allowed = server.session_bytes_max(bytes + 100);
        assert!(each <= allowed, "a session takes {each} bytes, of {allowed}");
        most = most.max(each * 4 / allowed);
        drop(clients);
    }
    assert!(1 <= most, "the sum is far from what a session takes");
}
