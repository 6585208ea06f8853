//! When to send a heartbeat to a silent peer, and when the peer is gone.

use std::time::Duration;

/// Watches how long a peer has been silent. Times are durations since any fixed moment.
///
/// ```text
///  anything received ──► quiet ── interval passes ──► ping sent ── timeout passes ──► gone
///         ▲                                               │
///         └──────────────── anything received ────────────┘
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Keepalive {
    interval: Duration,
    timeout: Duration,
    received: Duration,
    pinged: Option<Duration>,
}

/// What to do now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KeepaliveAction {
    /// Nothing before this moment.
    WaitUntil(Duration),
    /// Send a heartbeat, and ask again.
    Ping,
    /// The peer is gone: close the connection.
    Gone,
}

impl Keepalive {
    /// A peer that was heard of at `now`; after `interval` of silence it is pinged, after
    /// `timeout` more it is gone. A dead peer is so found within `interval + timeout`.
    /// [`Duration::MAX`] as either means never.
    pub fn new(interval: Duration, timeout: Duration, now: Duration) -> Self {
        Self { interval, timeout, received: now, pinged: None }
    }

    /// The same, if it was pinged at that moment and nothing came since.
    pub fn pinged_at(self, pinged: Option<Duration>) -> Self {
        Self { pinged, ..self }
    }

    /// Something came from the peer, whatever it was.
    pub fn handle_received(&mut self, now: Duration) {
        self.received = self.received.max(now);
        self.pinged = None;
    }

    /// What to do at `now`. After [`KeepaliveAction::Ping`] the ping counts as sent.
    pub fn poll(&mut self, now: Duration) -> KeepaliveAction {
        match self.pinged {
            None if self.received.saturating_add(self.interval) <= now => {
                self.pinged = Some(now);
                KeepaliveAction::Ping
            }
            None => KeepaliveAction::WaitUntil(self.received.saturating_add(self.interval)),
            Some(pinged) if pinged.saturating_add(self.timeout) <= now => KeepaliveAction::Gone,
            Some(pinged) => KeepaliveAction::WaitUntil(pinged.saturating_add(self.timeout)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{KeepaliveAction::*, *};

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A silent peer is pinged once, and gone when the answer does not come.
    #[test]
    fn a_silent_peer_is_pinged_then_gone() {
        let mut keepalive = Keepalive::new(s(30), s(10), s(0));
        assert_eq!(keepalive.poll(s(29)), WaitUntil(s(30)));
        assert_eq!(keepalive.poll(s(31)), Ping);
        assert_eq!(keepalive.poll(s(40)), WaitUntil(s(41)));
        assert_eq!(keepalive.poll(s(41)), Gone);
    }

    /// An interval or a timeout without end is one, not an overflow.
    #[test]
    fn without_end_means_never() {
        let mut keepalive = Keepalive::new(Duration::MAX, s(10), s(1));
        assert_eq!(keepalive.poll(s(1 << 40)), WaitUntil(Duration::MAX));
        let mut keepalive = Keepalive::new(s(30), Duration::MAX, s(1));
        assert_eq!(keepalive.poll(s(31)), Ping);
        assert_eq!(keepalive.poll(s(1 << 40)), WaitUntil(Duration::MAX));
    }

    /// A caller that keeps the two moments of many peers needs no more.
    #[test]
    fn a_watch_is_made_of_two_moments() {
        assert_eq!(Keepalive::new(s(30), s(10), s(5)).pinged_at(None).poll(s(34)), WaitUntil(s(35)));
        let mut pinged = Keepalive::new(s(30), s(10), s(5)).pinged_at(Some(s(36)));
        assert_eq!((pinged.poll(s(45)), pinged.poll(s(46))), (WaitUntil(s(46)), Gone));
    }

    /// Any byte is a sign of life, not only the answer to the ping.
    #[test]
    fn any_frame_is_a_sign_of_life() {
        let mut keepalive = Keepalive::new(s(30), s(10), s(0));
        assert_eq!(keepalive.poll(s(30)), Ping);
        keepalive.handle_received(s(35));
        assert_eq!(keepalive.poll(s(60)), WaitUntil(s(65)));
    }
}
