//! The parts of the interop tests: Go's programs, a Rust server of the same services, golden frames.
//!
//! | file | what it does |
//! |---|---|
//! | `contract.rs` | the services that every test server offers, in Rust: `go/README.md` has them as a table |
//! | `go.rs` | finds Go and builds its programs, once a run |
//! | `process.rs` | a program that runs beside a test, and never outlives it |
//! | `peers.rs` | servers in processes of their own, in Go and in Rust; the Go client |
//! | `wire.rs` | a socket without a library, for frames that no library sends |
//! | `proxy.rs` | stands between a client and a server, and remembers every frame |
//! | `fault_proxy.rs` | the same, but as a bad network: delays, freezes, half closes, cuts between frames and within |
//! | `app.rs` | applications in processes of their own, with a session or without, in Go and in Rust |
//! | `device.rs` | what a server and its clients offer each other where sessions are tested |
//! | `soak.rs` | what the two ends of a soak say of it |
//! | `certificates.rs` | certificates that live as long as a test |
//! | `golden.rs` | reads `golden/*.hex` |
//! | `bin/interop-server.rs` | the Rust server; says how it is when it is asked |
//! | `bin/interop-client.rs` | a Rust client for tests to kill |
//! | `bin/session-server.rs`, `bin/session-client.rs` | a server that knows its clients and does what it is told; a client that says what happens to it |
//! | `bin/soak-server.rs`, `bin/soak-clients.rs` | a server that pushes numbers, and many clients that check them |
//!
//! `README.md` says which test of Go's own has which counterpart here.

pub mod app;
pub mod certificates;
pub mod contract;
pub mod device;
pub mod fault_proxy;
pub mod go;
pub mod golden;
pub mod peers;
pub mod process;
pub mod proxy;
pub mod soak;
pub mod wire;

use std::time::Duration;

/// The bound on every wait that has no closer one: nothing hangs.
pub const LONG: Duration = Duration::from_secs(60);

/// Waits until it holds, looking again every few milliseconds.
///
/// # Panics
/// If it does not hold within this long.
pub async fn until(what: &str, limit: Duration, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + limit;
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The same future, with an end.
///
/// # Panics
/// If it is not done within this long.
pub async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(limit, future).await.unwrap_or_else(|_| panic!("{what}: not within {limit:?}"))
}
