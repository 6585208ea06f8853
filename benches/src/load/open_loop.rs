//! Calls at an even pace, as a crowd of independent users makes them.
//!
//! A closed loop sends its next call only after a reply. While the server is slow it sends few calls, so that its
//! latencies leave out most of the slow time ("coordinated omission"). An open loop sends each call when it is due, and
//! its latency counts from that time, even if the load was late to send it.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use anyhow::ensure;
use hdrhistogram::Histogram;

use super::{
    fleet::{Fleet, Frame},
    latencies, pattern,
};
use crate::contract::{self, put_request};

/// At most this many due calls go into one write.
const AT_ONCE: u64 = 16;

/// The shortest time that the poller can wait. If the next call is due earlier, it does not wait.
const SHORT: Duration = Duration::from_millis(1);

/// What an open loop is.
#[derive(Clone, Copy, Debug)]
pub struct OpenLoop {
    /// Calls of `Echo` in a second, over all connections.
    pub per_second: f64,
    /// Bytes of each payload.
    pub payload_bytes: usize,
    /// Time before the measurement.
    pub warm_up: Duration,
    /// Time of the measurement.
    pub measure: Duration,
}

/// Returns the latencies of the calls that were due between `begin` and `end`, in nanoseconds.
pub(super) fn open_loop(
    fleet: &mut Fleet,
    work: OpenLoop,
    per_second: f64,
    begin: Instant,
    end: Instant,
) -> anyhow::Result<Histogram<u64>> {
    fleet.begin();
    let start = Instant::now();
    let due_at = |number: u64| start + Duration::from_secs_f64(number as f64 / per_second);
    let all = (end.saturating_duration_since(start).as_secs_f64() * per_second) as u64;
    let (mut sent, answered) = (0, Cell::new(0));
    let mut is_answered = vec![false; all as usize];
    let (mut latency, payload) = (latencies(), pattern(work.payload_bytes));

    while answered.get() < all {
        let now = Instant::now();
        let due = ((now - start).as_secs_f64() * per_second) as u64;
        // At most one write to each connection, then replies are read.
        let due = due.min(all).min(sent + AT_ONCE * fleet.len() as u64);
        while sent < due {
            let (place, next) = ((sent / AT_ONCE) as usize % fleet.len(), (sent / AT_ONCE + 1) * AT_ONCE);
            let to = due.min(next);
            fleet.send(place, |out| (sent..to).for_each(|seq| put_request(out, seq, contract::ECHO, &payload)))?;
            sent = to;
        }

        // A wait for less than the poller can time would end too late.
        let is_soon = sent < all && due_at(sent).saturating_duration_since(now) < SHORT;
        fleet.turn(if is_soon { Duration::ZERO } else { SHORT }, |_, frame, now, _| {
            let frame = Frame::parse(frame)?;
            frame.must_be_reply()?;
            ensure!(frame.payload == payload, "a reply with other bytes than its call");
            let is_new = is_answered.get_mut(frame.seq as usize).is_some_and(|of| !std::mem::replace(of, true));
            ensure!(is_new, "a second reply, or one to no call: {}", frame.seq);
            answered.set(answered.get() + 1);

            let due = due_at(frame.seq);
            if begin <= due && due < end {
                latency.saturating_record(now.instant.saturating_duration_since(due).as_nanos() as u64);
            }
            Ok(())
        })?;
    }
    Ok(latency)
}
