//! What happens to all sessions of a server, for those who watch: a ring of the newest events. While nobody watches, an
//! event costs one look at a clock's mark.
//!
//! Pushes and calls are not in it: they are too many, and the story of their session has them.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    SessionId,
    explain::{Event, What},
};
use crate::clock::unix_ms;

/// Events that are kept for those who watch; older ones are counted as missed. An event takes some 400 bytes at most.
const EVENTS_MAX: usize = 1024;

/// Events are kept for so long after somebody looked.
const WATCHED_FOR: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug)]
pub(crate) struct Feed {
    began: Instant,
    /// Milliseconds since then, until which somebody watches.
    watched_until: AtomicU64,
    ring: Mutex<Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    /// The number of the oldest event.
    first: u64,
    events: VecDeque<Fed>,
}

/// One event, and whose it is.
#[derive(Clone, Debug)]
pub(crate) struct Fed {
    /// Milliseconds since 1970.
    pub(crate) at_ms: u64,
    pub(crate) session: SessionId,
    pub(crate) event: Event,
}

/// What was read of the feed.
#[derive(Clone, Debug)]
pub(crate) struct FeedRead {
    /// The number behind the last event of these: where the next look begins.
    pub(crate) next: u64,
    /// Events between the place that was named and the first of these, which are not kept any more.
    pub(crate) missed: u64,
    pub(crate) events: Vec<Fed>,
}

impl Default for Feed {
    fn default() -> Self {
        Self { began: Instant::now(), watched_until: 0.into(), ring: Mutex::default() }
    }
}

impl Feed {
    /// True if somebody has looked lately.
    pub(super) fn is_watched(&self) -> bool {
        let until = self.watched_until.load(Ordering::Relaxed);
        until != 0 && self.now() < until
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// Keeps an event, if it is of a kind that is shown and somebody watches.
    pub(super) fn note(&self, session: SessionId, what: &What) {
        if !self.is_watched() || matches!(what, What::Push(_) | What::Call { .. }) {
            return;
        }
        let fed = Fed { at_ms: unix_ms(), session, event: what.event() };

        let mut ring = self.ring.lock();
        ring.events.push_back(fed);
        if EVENTS_MAX < ring.events.len() {
            ring.events.pop_front();
            ring.first += 1;
        }
    }

    /// The events from this number on, at most so many. Without a number, none: only where the feed stands now. From
    /// then on it is watched for [`WATCHED_FOR`].
    pub(crate) fn read(&self, from: Option<u64>, max: usize) -> FeedRead {
        let until = self.now() + WATCHED_FOR.as_millis() as u64;
        let mut ring = self.ring.lock();
        if !self.is_watched() {
            // What happened while nobody watched is not here: what is left from before would look as if it were all.
            ring.first += ring.events.len() as u64;
            ring.events = VecDeque::new();
        }
        self.watched_until.fetch_max(until, Ordering::Relaxed);

        let end = ring.first + ring.events.len() as u64;
        let from = from.unwrap_or(end).min(end);
        let missed = ring.first.saturating_sub(from);
        let skipped = from.saturating_sub(ring.first) as usize;
        let events: Vec<Fed> = ring.events.iter().skip(skipped).take(max).cloned().collect();
        FeedRead { next: from + missed + events.len() as u64, missed, events }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(feed: &Feed, count: u64) {
        (0..count).for_each(|number| feed.note(SessionId::next(), &What::GapTold(number)));
    }

    /// While nobody watches nothing is kept; then each event once, in order, and of too many the newest, with how many
    /// were missed.
    #[tokio::test(start_paused = true)]
    async fn who_watches_sees_each_event_once() {
        let feed = Feed::default();
        note(&feed, 3);
        let begun = feed.read(None, 10);
        assert_eq!((begun.next, begun.missed, begun.events.len()), (0, 0, 0));
        note(&feed, 3);
        let two = feed.read(Some(begun.next), 2);
        assert_eq!((two.next, two.missed, two.events.len()), (2, 0, 2));
        assert!(matches!(two.events[1].event, Event::GapTold(1)));
        note(&feed, EVENTS_MAX as u64);
        let rest = feed.read(Some(two.next), usize::MAX);
        assert_eq!((rest.next, rest.missed, rest.events.len()), (3 + EVENTS_MAX as u64, 1, EVENTS_MAX));
        let none = feed.read(Some(rest.next), usize::MAX);
        assert_eq!((none.next, none.missed, none.events.len()), (rest.next, 0, 0));
        let ahead = feed.read(Some(u64::MAX), 1);
        assert_eq!((ahead.next, ahead.missed), (rest.next, 0), "of a server that was started anew");

        tokio::time::advance(WATCHED_FOR).await;
        assert!(!feed.is_watched());
        note(&feed, 5);
        let later = feed.read(Some(two.next), usize::MAX);
        assert_eq!((later.next, later.events.len()), (rest.next, 0), "the old ones go with the watcher");
        assert!(feed.is_watched());
    }

    /// Pushes and calls are told by their session.
    #[tokio::test(start_paused = true)]
    async fn calls_are_not_in_the_feed() {
        let feed = Feed::default();
        feed.read(None, 1);
        let call = What::Call {
            name: "A.b".into(),
            attempts: 1,
            outcome: super::super::explain::Outcome::Waits,
            done: super::super::explain::NEVER,
        };
        feed.note(SessionId::next(), &call);
        assert_eq!(feed.read(Some(0), 1).events.len(), 0);
    }
}
