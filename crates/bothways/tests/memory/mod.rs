//! What the tests share that measure the memory of their process.

use bothways::{Client, ClientOptions, Server, ServerMessages, Session, Target};

/// Bytes of this process that are in memory.
pub(crate) fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("it tells what is resident");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<usize>().ok()).expect("a number of KiB") << 10
}

/// So many clients that are welcome at this address, and their sessions.
pub(crate) async fn welcomed(
    server: &Server,
    address: &str,
    clients: usize,
) -> (Vec<(Client, ServerMessages)>, Vec<Session>) {
    let mut connected = Vec::new();
    for _ in 0..clients {
        connected.push(Client::bidirectional(address, ClientOptions::new()).await.expect("it listens"));
    }
    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    let sessions = server.sessions(&Target::everyone()).expect("no topic");
    assert_eq!(sessions.len(), clients);
    (connected, sessions)
}
