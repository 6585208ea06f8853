//! Tracked pushes over a network that is cut, frozen and half closed, between processes of their own.
//!
//! `BOTHWAYS_SOAK=full` makes it a thousand cuts in a million pushes, which is for a release build.

use std::time::{Duration, Instant};

use bothways_interop::{
    fault_proxy::{Fault, FaultPlan, FaultProxy},
    peers::{ServerProcess, rust_program},
    process::Process,
    proxy::Way,
    soak::{Pushed, Received},
};
use tokio::process::Command;

const CLIENTS: u64 = 100;

/// Whatever happens to their connections, all clients get all that was pushed to them, once and in order, and the
/// server knows it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_and_nothing_comes_twice() {
    let full = std::env::var("BOTHWAYS_SOAK").is_ok_and(|soak| soak == "full");
    let (cuts, numbers, frames_max, limit) = match full {
        true => (1000, 10_000, 1200, Duration::from_secs(600)),
        false => (100, 500, 300, Duration::from_secs(60)),
    };
    let began = Instant::now();
    let mut server = ServerProcess::start(Command::new(rust_program("soak-server"))).await;
    let plan = FaultPlan { seed: 7, cuts, frames_max, pause: Duration::from_millis(50) };
    let proxy = FaultProxy::start(server.socket_address(), plan).await;
    let mut command = Command::new(rust_program("soak-clients"));
    command.args([proxy.address(), &CLIENTS.to_string(), &numbers.to_string()]);
    let mut clients = Process::start(command);
    assert_eq!(clients.line(limit).await, "READY");
    server.process.tell(&format!("push {numbers}")).await;

    let received: Received = serde_json::from_str(&clients.line(limit).await).expect("it is JSON");
    let pushed: Pushed = serde_json::from_str(&server.process.line(limit).await).expect("it is JSON");
    println!("{:?}: {received:?}\n{pushed:?}", began.elapsed());
    let done = proxy.cuts();
    assert_eq!(done.len(), cuts, "the whole plan");
    for fault in [Fault::Reset, Fault::WithinFrame, Fault::Close, Fault::HalfClose, Fault::Freeze, Fault::HalfOpen] {
        let count = |way| done.iter().filter(|done| **done == (way, fault)).count();
        let (to_client, to_server) = (count(Way::ToClient), count(Way::ToServer));
        println!("{fault:?}: {to_client} to the client, {to_server} to the server");
        assert_ne!(to_client + to_server, 0, "{fault:?}");
    }
    for way in [Way::ToClient, Way::ToServer] {
        assert!(done.iter().any(|(went, _)| *went == way), "{way:?}");
    }
    let all = CLIENTS * numbers;
    assert_eq!(Received { cuts: received.cuts, ..Received::default() }, Received { received: 0, ..received });
    assert_eq!((received.received, pushed.pushed, pushed.handled), (all, all, all));
}
