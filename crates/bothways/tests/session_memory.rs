//! What a session takes when everything that is bounded is full. Alone in its process, whose memory it measures.
#![cfg(target_os = "linux")]

use bothways::{Class, Client, ClientOptions, Push, Server, Target};

/// Bytes of this process that are in memory.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("it tells what is resident");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<usize>().ok()).expect("a number of KiB") << 10
}

/// Sessions filled to their bounds, by large and by small frames, take no more than the sum in the documentation,
/// and no less than a quarter of it: the bounds are the memory, not a number far from it.
#[tokio::test(start_paused = true)]
async fn a_full_session_takes_no_more_than_its_bounds() {
    const SESSIONS: usize = 16;
    let mut most = 0;
    for (number, bytes) in [1000, 40].into_iter().enumerate() {
        let server = Server::builder().build();
        let listening = server.listen(&format!("memory@session-memory-{number}")).await.expect("a free name");
        let mut clients = Vec::new();
        for _ in 0..SESSIONS {
            let options = ClientOptions::new();
            clients.push(Client::bidirectional(listening.address(), options).await.expect("it listens"));
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        let sessions = server.sessions(&Target::everyone()).expect("no topic");
        assert_eq!(sessions.len(), SESSIONS);
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
