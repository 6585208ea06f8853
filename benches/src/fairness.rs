//! How many bytes of large replies are written before a push on another connection that was requested in between.
//!
//! Counted in bytes that the server wrote, and not in time: where cores are few, a push that was written in time is read
//! when the system has a core for the reader, and gives the server's own thread that core for some milliseconds before.
//! So the server is in this process, where both can be seen in one moment.

use std::{
    future::ready,
    sync::{Arc, OnceLock},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use bothways::{Connection, Limits, Metadata, Reply, Request, Server, server::Listening};
use bytes::Bytes;
use hdrhistogram::Histogram;

use crate::{
    contract::{self, PublishArgs},
    load::{ClosedLoop, Load, Single, latencies},
    process::Process,
    server::FRAME_BYTES_MAX,
};

/// The connection that is sent large replies, once there is one.
type Large = Arc<OnceLock<Connection>>;

/// KiB of replies of this size that were written between the asking for a push and its handling, by a server that
/// has so many threads.
///
/// # Errors
/// A push or a reply is another than was due, or does not come.
pub(crate) fn kib_before_a_push(
    threads: usize,
    reply_bytes: usize,
    args: PublishArgs,
) -> anyhow::Result<Histogram<u64>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    let large = Large::default();
    let listening = runtime.block_on(listen(Arc::clone(&large), reply_bytes))?;
    let mut asking = Load::connect(Process::current(), listening.address(), 1, 1)?;
    let mut pushed = Single::connect(listening.address())?;

    let measure = args.every * u32::try_from(args.count).context("a count of some hundreds")?;
    let warm_up = Duration::from_millis(50);
    let work = ClosedLoop::fill(reply_bytes, warm_up, measure);
    let replies = thread::spawn(move || asking.closed_loop(work));
    thread::sleep(warm_up);

    let (mut before, mut next, payload) = (latencies(), Instant::now(), vec![0; args.size]);
    let end = next + measure;
    let large = large.get().context("no large reply was asked for")?;

    while next < end {
        thread::sleep(next.saturating_duration_since(Instant::now()));
        pushed.ask(contract::TELL, &payload)?;
        // From here on it is with the server's socket. A write that is under way counts whole.
        let asked_at = large.stats().written_bytes;
        let push = pushed.push()?;
        let handled_at = contract::stamped(&push).context("a push without a count")?;
        before.saturating_record(handled_at.saturating_sub(asked_at).div_ceil(1024).max(1));
        // After a late one the next is due at once, and those in between are left out.
        next = (next + args.every).max(Instant::now());
    }

    let replies = replies.join().expect("a thread of the load does not panic")?;
    ensure!(0 < replies.count, "no large reply came");
    runtime.shutdown_background();
    Ok(before)
}

/// Answers with large replies, and pushes how much of them it has written.
async fn listen(large: Large, reply_bytes: usize) -> anyhow::Result<Listening> {
    let zeros = Bytes::from(vec![0; reply_bytes]);
    let noted = Arc::clone(&large);
    let server = Server::builder()
        .limits(Limits::default().body_bytes_max(FRAME_BYTES_MAX))
        .handler(contract::SERVICE, contract::FILL, move |request: Request| {
            noted.get_or_init(|| request.connection().clone());
            ready(Reply::ok(zeros.clone()))
        })
        .handler(contract::SERVICE, contract::TELL, move |request: Request| ready(tell(&large, &request)))
        .build();
    Ok(server.listen("tcp@127.0.0.1:0").await?)
}

fn tell(large: &Large, request: &Request) -> Reply {
    let written = large.get().map_or(0, |large| large.stats().written_bytes);
    let Ok(payload) = request.payload() else { return Reply::error("no payload") };
    let mut payload = payload.to_vec();
    payload[..contract::CLOCK_LEN].copy_from_slice(&written.to_be_bytes());
    match request.connection().send_message(contract::SERVICE, contract::TICK, &Metadata::new(), payload) {
        Ok(_) => Reply::ok(""),
        Err(error) => Reply::error(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_goes_before_a_push() {
        let args = PublishArgs::new(50, 128, Duration::from_millis(2));
        let before = kib_before_a_push(1, 4 << 20, args).expect("all is as it should be");
        assert!(!before.is_empty() && before.min() <= 256, "{} KiB", before.min());
    }
}
