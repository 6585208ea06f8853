//! What time does to a connection: heartbeats, idle and write deadlines.
//!
//! No connection has a timer of its own. Whoever owns connections (a server its many, a client its
//! one) calls [`Connection::watch`] about once a second; the times below are kept to that
//! precision.

use std::{sync::atomic::Ordering, time::Duration};

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

/// What was seen of a connection at the last look.
#[derive(Debug)]
pub(crate) struct Watch {
    began: Instant,
    keepalive: Option<Keepalive>,
    reads: u64,
    read_at: Instant,
    written_bytes: u64,
    written_at: Instant,
    closing_since: Option<Instant>,
}

impl Watch {
    pub(crate) fn new(deadlines: &Deadlines, now: Instant) -> Self {
        let keepalive = deadlines
            .heartbeat_interval
            .map(|interval| Keepalive::new(interval, deadlines.heartbeat_timeout, Duration::ZERO));
        Self { began: now, keepalive, reads: 0, read_at: now, written_bytes: 0, written_at: now, closing_since: None }
    }
}

impl Connection {
    /// Looks at the connection: sends what is due, ends it if a deadline passed, frees idle memory.
    pub(crate) fn watch(&self, now: Instant) {
        let deadlines = &self.shared.settings.watch;
        let reads = self.shared.reads.load(Ordering::Relaxed);
        let mut state = self.shared.state.lock();
        let state = &mut *state;
        let watch = &mut state.watch;
        if reads != watch.reads {
            watch.reads = reads;
            watch.read_at = now;
            if let Some(keepalive) = &mut watch.keepalive {
                keepalive.handle_received(now - watch.began);
            }
        }
        let written_bytes = state.outbox.written_bytes();
        if written_bytes != watch.written_bytes || state.outbox.is_empty() {
            watch.written_bytes = written_bytes;
            watch.written_at = now;
        }
        match state.phase {
            Phase::Closed(_) => return,
            Phase::Closing(ref reason) | Phase::Answering(ref reason) => {
                let since = *watch.closing_since.get_or_insert(now);
                if deadlines.close_timeout <= now - since {
                    let reason = reason.clone();
                    self.end(state, reason);
                }
                return;
            }
            Phase::Open | Phase::Draining(_) => {}
        }
        let silent = now - watch.read_at;
        let role = state.proto.role();
        // Bytes are no frame: one byte now and then must not hold a connection.
        let no_frame = role == Role::Server && state.proto.peer() == Peer::Unknown;
        if no_frame && deadlines.first_frame_timeout <= now - watch.began {
            return self.end(state, CloseReason::NoFirstFrame(deadlines.first_frame_timeout));
        }
        if deadlines.write_timeout <= now - watch.written_at {
            return self.end(state, CloseReason::SlowPeer("it took no byte within `write_timeout`"));
        }
        if let Some(idle) = deadlines.idle_timeout.filter(|idle| *idle <= silent) {
            return self.end(state, CloseReason::Idle(idle));
        }
        // A plain server answers heartbeats, a plain client would take one for a reply.
        let answers = role == Role::Client || state.proto.peer_can(Capabilities::PING);
        let action = watch.keepalive.as_mut().filter(|_| answers).map(|keepalive| keepalive.poll(now - watch.began));
        match action {
            Some(KeepaliveAction::Ping) => {
                self.heartbeat(state, Waiter::Ping, &Metadata::new());
                state.wake_driver();
            }
            Some(KeepaliveAction::Gone) => self.end(state, CloseReason::Gone { silent }),
            Some(KeepaliveAction::WaitUntil(_)) | None => {}
        }
        state.outbox.shrink();
    }
}
