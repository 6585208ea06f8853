//! How much memory does a session hold that does nothing, after one call?
//!
//! The clients are bare sockets of this process, which cost it next to nothing: what it grows by are
//! the server's sessions.

use std::time::Duration;

use bothways_benches::{load::Load, process::Process, server::server};

/// Two files each, of the 20,000 that a process may usually open.
const SESSIONS: usize = 9_000;

/// Sessions that are open before, so that what is there once for all is not counted.
const BEFORE: usize = 500;

/// A server gives memory of bursts back at its next looks, a second apart.
const REST: Duration = Duration::from_secs(3);

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let server = server();
    let listening = runtime.block_on(server.listen("tcp@127.0.0.1:0"))?;
    let open = |sessions| -> anyhow::Result<(Load, u64)> {
        let mut load = Load::connect(Process::current(), listening.address(), sessions, 1)?;
        load.call_each(581)?;
        std::thread::sleep(REST);
        Ok((load, Process::current().resident_bytes()?))
    };
    let (_first, before) = open(BEFORE)?;
    let (_load, after) = open(SESSIONS - BEFORE)?;
    let bytes = after.saturating_sub(before) / (SESSIONS - BEFORE) as u64;
    println!("idle_sessions: {bytes} bytes each, {} sessions", server.stats().connections);
    Ok(())
}
