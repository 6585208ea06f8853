//! No time is too long for the engine.

use std::time::Duration;

use bothways_nats::{ConnectError, NatsEngine, NatsOptions};

/// However long connecting may take, where nobody listens that is said at once.
#[tokio::test]
async fn connecting_may_take_for_ever() {
    let nowhere =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port is free");
    let options = NatsOptions::new([format!("nats://{nowhere}")]).start_max(Duration::MAX);
    let connecting = tokio::time::timeout(Duration::from_secs(20), NatsEngine::connect(options));
    let error = connecting.await.expect("it ends").expect_err("nobody listens");
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error}");
}
