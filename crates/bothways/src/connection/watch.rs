//! What time does to a connection: heartbeats, idle and write deadlines.
//!
//! No connection has a timer of its own. Whoever owns connections (a server its many, a client its
//! one) calls [`Connection::watch`] about once a second; the times below are kept to that
//! precision.

use std::{num::NonZeroU32, sync::atomic::Ordering, time::Duration};

use bothways_proto::{Capabilities, Keepalive, KeepaliveAction, Metadata, Peer, Role};
use tokio::time::Instant;

use super::{Connection, Phase, Waiter};
use crate::error::CloseReason;

/// How long each kind of silence may last.
#[derive(Clone, Debug)]
pub(crate) struct Deadlines {
    /// Silence after which a peer that answers heartbeats is asked for one. `None`: never asked.
    pub(crate) heartbeat_interval: Option<Duration>,
    /// Silence after a heartbeat before the peer is gone.
    pub(crate) heartbeat_timeout: Duration,
    /// Silence after which any peer is closed. `None`: never.
    pub(crate) idle_timeout: Option<Duration>,
    /// Time for the first frame of a client.
    pub(crate) first_frame_timeout: Duration,
    /// Time without a byte taken by a socket for which bytes wait.
    pub(crate) write_timeout: Duration,
    /// Time for what waits to be written, and for the peer to end its side, when closing.
    pub(crate) close_timeout: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            heartbeat_interval: Some(Duration::from_secs(15)),
            heartbeat_timeout: Duration::from_secs(10),
            idle_timeout: None,
            first_frame_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(10),
            close_timeout: Duration::from_secs(5),
        }
    }
}

impl Deadlines {
    /// How often [`Connection::watch`] must be called for these to be kept well.
    pub(crate) fn tick(&self) -> Duration {
        let shortest = [Some(self.heartbeat_timeout), self.heartbeat_interval, self.idle_timeout]
            .into_iter()
            .flatten()
            .chain([self.first_frame_timeout, self.write_timeout, self.close_timeout])
            .min()
            .unwrap_or(Duration::from_secs(1));
        (shortest / 4).clamp(Duration::from_millis(10), Duration::from_secs(1))
    }
}

/// What was seen of a connection at the last look. Small, for every connection has one.
#[derive(Debug)]
pub(crate) struct Watch {
    began: Instant,
    /// When something had come. Milliseconds, as all times here: since the beginning.
    read_at: u64,
    reads: u16,
    written_bytes: u32,
    /// The last 32 bits of when something was taken by the socket, or nothing waited for it: never long ago.
    written_at: u32,
    /// Likewise of when a heartbeat was sent that is not answered.
    pinged_at: Option<NonZeroU32>,
    /// Likewise of when it began to close.
    closing_since: Option<NonZeroU32>,
    /// A look found the driver idle, and asks it to rest.
    pub(super) rest_wanted: bool,
}

impl Watch {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            began: now,
            read_at: 0,
            reads: 0,
            written_bytes: 0,
            written_at: 0,
            pinged_at: None,
            closing_since: None,
            rest_wanted: false,
        }
    }

    /// Reads since the last look.
    pub(super) fn reads_since(&self, reads: u16) -> u16 {
        reads.wrapping_sub(self.reads)
    }

    pub(super) fn began(&self) -> Instant {
        self.began
    }
}

/// The last 32 bits of a moment; of one that has none, those of the millisecond before it.
fn mark(now: u64) -> NonZeroU32 {
    NonZeroU32::new(now as u32).unwrap_or(NonZeroU32::MAX)
}

/// How long ago a moment was of which these are the last 32 bits.
fn since(now: u64, then: u32) -> Duration {
    Duration::from_millis(u64::from((now as u32).wrapping_sub(then)))
}

impl Connection {
    /// Looks at the connection: sends what is due, ends it if a deadline passed, frees idle memory.
    pub(crate) fn watch(&self, now: Instant) {
        let deadlines = &self.shared.settings.watch;
        let reads = self.shared.reads.load(Ordering::Relaxed);
        let mut state = self.shared.state.lock();
        let state = &mut *state;
        let watch = &mut state.watch;
        let now = now.saturating_duration_since(watch.began).as_millis() as u64;
        let is_quiet = reads == watch.reads;
        if !is_quiet {
            watch.reads = reads;
            watch.read_at = now;
            watch.pinged_at = None;
        }
        // No socket takes just 4 GiB between two looks.
        let written_bytes = state.outbox.written_bytes() as u32;
        if written_bytes != watch.written_bytes || state.outbox.is_empty() {
            watch.written_bytes = written_bytes;
            watch.written_at = now as u32;
        }
        match state.phase {
            Phase::Closed(_) => return,
            Phase::Closing(ref reason) | Phase::Answering(ref reason) => {
                let began = *watch.closing_since.get_or_insert(mark(now));
                if deadlines.close_timeout <= since(now, began.get()) {
                    let reason = CloseReason::clone(reason);
                    self.end(state, reason);
                }
                return;
            }
            Phase::Open | Phase::Draining(_) => {}
        }
        let silent = Duration::from_millis(now.saturating_sub(watch.read_at));
        let role = state.proto.role();
        // Bytes are no frame: one byte now and then must not hold a connection.
        let no_frame = role == Role::Server && state.proto.peer() == Peer::Unknown;
        if no_frame && deadlines.first_frame_timeout <= Duration::from_millis(now) {
            return self.end(state, CloseReason::NoFirstFrame(deadlines.first_frame_timeout));
        }
        if deadlines.write_timeout <= since(now, watch.written_at) {
            return self.end(state, CloseReason::SlowPeer("it took no byte within `write_timeout`"));
        }
        if let Some(idle) = deadlines.idle_timeout.filter(|idle| *idle <= silent) {
            return self.end(state, CloseReason::Idle(idle));
        }
        // A plain server answers heartbeats, a plain client would take one for a reply.
        let answers = role == Role::Client || state.proto.peer_can(Capabilities::PING);
        let action = deadlines.heartbeat_interval.filter(|_| answers).map(|interval| {
            let [received, now_at] = [watch.read_at, now].map(Duration::from_millis);
            let pinged = watch.pinged_at.map(|pinged| now_at.saturating_sub(since(now, pinged.get())));
            Keepalive::new(interval, deadlines.heartbeat_timeout, received).pinged_at(pinged).poll(now_at)
        });
        match action {
            Some(KeepaliveAction::Ping) => {
                watch.pinged_at = Some(mark(now));
                self.heartbeat(state, Waiter::Ping, &Metadata::new());
                self.wake_driver(state);
            }
            Some(KeepaliveAction::Gone) => self.end(state, CloseReason::Gone { silent }),
            Some(KeepaliveAction::WaitUntil(_)) | None => {}
        }
        if is_quiet {
            self.ask_to_rest(state);
        }
        state.outbox.shrink();
        state.proto.shrink();
    }
}
