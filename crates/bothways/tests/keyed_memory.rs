//! What a session takes that is full of pushes with keys. Alone in its process, whose memory it measures.
#![cfg(target_os = "linux")]

use bothways::{Class, Client, ClientOptions, Push, Server, Target};

/// Bytes of this process that are in memory.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("it tells what is resident");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<usize>().ok()).expect("a number of KiB") << 10
}

/// Pushes with an idempotency key and values of class `Latest` are there in two forms, for clients that know of keys and
/// for plain ones: the sum holds for sessions that are full of these.
#[tokio::test(start_paused = true)]
async fn sessions_full_of_keys_take_no_more_than_their_bounds() {
    const SESSIONS: usize = 4;
    const BYTES: usize = 100_000;
    let server = Server::builder().session_log(100, 8 << 20).latest_queue(100, 8 << 20).build();
    let listening = server.listen("memory@session-memory-keyed").await.expect("a free name");
    let mut clients = Vec::new();
    for _ in 0..SESSIONS {
        clients.push(Client::bidirectional(listening.address(), ClientOptions::new()).await.expect("it listens"));
    }
    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    let sessions = server.sessions(&Target::everyone()).expect("no topic");
    assert_eq!(sessions.len(), SESSIONS);
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
