//! The recent messages of a topic: a ring, with an epoch and an offset for each.
//!
//! Without I/O and without a clock: times are durations since any fixed moment. An epoch stands for one life of a
//! history: a position of another epoch says nothing about this one. The offset of the newest message outlives the
//! message, so that a client that has seen it is known to miss nothing.

use std::{collections::VecDeque, time::Duration};

use bothways_proto::{Metadata, keys};

/// How far somebody is with the messages of a topic that has a history.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Position {
    /// Which life of the history: random, and never 0.
    pub epoch: u64,
    /// The last message seen, counted from 1; 0 is before the first.
    pub offset: u64,
}

/// Where a message stands, as its pairs say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct TopicPlace {
    pub(crate) position: Position,
    /// The offset of the message before it: one less, unless its pairs say otherwise.
    pub(crate) previous: u64,
}

impl TopicPlace {
    /// `None`: it is of no topic with a history.
    pub(crate) fn of(metadata: &Metadata) -> Option<Self> {
        let number = |key| metadata.get(key)?.parse().ok();
        let position = Position { epoch: number(keys::TOPIC_EPOCH)?, offset: number(keys::TOPIC_OFFSET)? };
        let before = position.offset.saturating_sub(1);
        let previous = number(keys::TOPIC_PREVIOUS).filter(|said| *said <= before).unwrap_or(before);
        Some(Self { position, previous })
    }
}

/// How much a history keeps. What is beyond any of these is dropped, oldest first.
#[derive(Clone, Debug)]
pub(super) struct HistoryBounds {
    pub(super) messages: usize,
    /// The newest message is kept, however large.
    pub(super) bytes: usize,
    /// `None`: until newer ones take the place.
    pub(super) time_to_live: Option<Duration>,
}

/// One message that is kept.
#[derive(Debug)]
pub(super) struct Kept<T> {
    pub(super) offset: u64,
    pub(super) bytes: usize,
    at: Duration,
    pub(super) item: T,
}

/// See the module.
#[derive(Debug)]
pub(super) struct History<T> {
    bounds: HistoryBounds,
    epoch: u64,
    /// The offset of the newest message, whether or not it is still kept.
    head: u64,
    /// Everything behind this offset is kept.
    floor: u64,
    kept: VecDeque<Kept<T>>,
    bytes: usize,
}

impl<T> History<T> {
    /// An empty one, whose last message stood here.
    pub(super) fn beginning_at(place: Position, bounds: HistoryBounds) -> Self {
        let Position { epoch, offset } = place;
        Self { bounds, epoch, head: offset, floor: offset, kept: VecDeque::new(), bytes: 0 }
    }

    /// When its oldest message is too old.
    pub(super) fn next_due(&self) -> Option<Duration> {
        self.kept.front()?.at.checked_add(self.bounds.time_to_live?)
    }

    /// Where somebody stands who has seen everything.
    pub(super) fn position(&self) -> Position {
        Position { epoch: self.epoch, offset: self.head }
    }

    /// Where the next message will stand.
    pub(super) fn next_position(&self) -> Position {
        Position { epoch: self.epoch, offset: self.head + 1 }
    }

    /// As [`Self::push_at`], at [`Self::next_position`].
    #[cfg(test)]
    #[must_use]
    pub(super) fn push(&mut self, now: Duration, bytes: usize, item: T) -> Vec<Kept<T>> {
        self.push_at(self.head + 1, now, bytes, item)
    }

    /// Keeps a message at this offset, behind all others. Answers with what is dropped for it, as [`Self::trim`] does.
    #[must_use]
    pub(super) fn push_at(&mut self, offset: u64, now: Duration, bytes: usize, item: T) -> Vec<Kept<T>> {
        self.head = offset;
        self.bytes += bytes;
        self.kept.push_back(Kept { offset: self.head, bytes, at: now, item });
        self.trim(now)
    }

    /// Returns the messages beyond the bounds. The caller, who may hold locks now, drops them: payloads are the
    /// application's.
    #[must_use]
    pub(super) fn trim(&mut self, now: Duration) -> Vec<Kept<T>> {
        let mut dropped = Vec::new();
        while let Some(oldest) = self.kept.front() {
            let old = self.bounds.time_to_live.is_some_and(|time| time <= now.saturating_sub(oldest.at));
            let many = self.bounds.messages < self.kept.len();
            let large = self.bounds.bytes < self.bytes && 1 < self.kept.len();
            if !(old || many || large) {
                break;
            }
            self.bytes -= oldest.bytes;
            self.floor = oldest.offset;
            dropped.extend(self.kept.pop_front());
        }
        dropped
    }

    /// Everything after this position, oldest first; `None` if not all of it is here any more, or the position is of
    /// another life.
    pub(super) fn after(&self, position: Position) -> Option<impl Iterator<Item = &Kept<T>>> {
        let whole = position.epoch == self.epoch && position.offset <= self.head && self.floor <= position.offset;
        let seen = self.kept.partition_point(|kept| kept.offset <= position.offset);
        whole.then(|| self.kept.iter().skip(seen))
    }

    /// Begins anew behind this place. Answers with all that was kept.
    #[cfg(feature = "cluster")]
    #[must_use]
    pub(super) fn begin_at(&mut self, place: Position) -> VecDeque<Kept<T>> {
        (self.epoch, self.head, self.floor, self.bytes) = (place.epoch, place.offset, place.offset, 0);
        std::mem::take(&mut self.kept)
    }

    /// Puts older messages before those that are kept, each with its offset and its bytes, oldest first: nothing is between
    /// them, and nothing between the first and the one `before` it, if that is known. Answers with what is dropped.
    #[cfg(feature = "cluster")]
    #[must_use]
    pub(super) fn prepend(
        &mut self,
        now: Duration,
        before: Option<u64>,
        older: impl DoubleEndedIterator<Item = (u64, usize, T)>,
    ) -> Vec<Kept<T>> {
        for (offset, bytes, item) in older.rev() {
            self.bytes += bytes;
            // Whether there was one before it is not known.
            self.floor = offset;
            self.kept.push_front(Kept { offset, bytes, at: now, item });
        }
        self.floor = before.unwrap_or(self.floor);
        self.trim(now)
    }

    /// The offset of the oldest message that is kept.
    #[cfg(feature = "cluster")]
    pub(super) fn oldest(&self) -> Option<u64> {
        self.kept.front().map(|kept| kept.offset)
    }

    /// Most messages that it keeps.
    #[cfg(feature = "cluster")]
    pub(super) fn messages_max(&self) -> usize {
        self.bounds.messages
    }

    /// The newest message, if it is kept.
    pub(super) fn newest(&self) -> Option<&Kept<T>> {
        self.kept.back()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bounds(messages: usize, bytes: usize, seconds: Option<u64>) -> HistoryBounds {
        HistoryBounds { messages, bytes, time_to_live: seconds.map(Duration::from_secs) }
    }

    proptest! {
        /// What is given after a position is exactly what was pushed after it, or nothing at all; and nothing only if
        /// something of it had to go.
        #[test]
        fn recovery_is_whole_or_none(
            messages in 1..8_usize,
            bytes in 1..40_usize,
            seconds in prop::option::of(1..20_u64),
            pushes in prop::collection::vec((0..5_u64, 1..12_usize), 0..30),
            late in 0..10_u64,
            offset in 0..32_u64,
            epoch in 7..9_u64,
        ) {
            let mut history = History::beginning_at(Position { epoch: 7, offset: 0 }, bounds(messages, bytes, seconds));
            let (mut now, mut all) = (Duration::ZERO, Vec::new());
            for (pause, size) in pushes {
                now += Duration::from_secs(pause);
                prop_assert_eq!(history.next_position().offset, all.len() as u64 + 1);
                drop(history.push(now, size, all.len()));
                all.push((now, size));
            }
            now += Duration::from_secs(late);
            drop(history.trim(now));
            prop_assert_eq!(history.position(), Position { epoch: 7, offset: all.len() as u64 });

            // The definition, without a ring: a message stays if it is young, and those from it on are few and small.
            let stays = |at: usize| {
                let rest = &all[at..];
                let young = seconds.is_none_or(|s| now - all[at].0 < Duration::from_secs(s));
                young && rest.len() <= messages && (rest.len() == 1 || rest.iter().map(|m| m.1).sum::<usize>() <= bytes)
            };
            let missed = usize::try_from(offset).expect("small");
            let expected: Option<Vec<usize>> = (epoch == 7 && missed <= all.len() && (missed..all.len()).all(stays))
                .then(|| (missed..all.len()).collect());
            let given: Option<Vec<usize>> =
                history.after(Position { epoch, offset }).map(|kept| kept.map(|kept| kept.item).collect());
            prop_assert_eq!(given, expected);
            let newest = all.len().checked_sub(1).filter(|at| stays(*at));
            prop_assert_eq!(history.newest().map(|kept| kept.item), newest);
        }
    }

    /// A client that has seen all misses nothing, however long it was quiet.
    #[test]
    fn the_head_outlives_its_message() {
        let mut history = History::beginning_at(Position { epoch: 3, offset: 0 }, bounds(10, 100, Some(1)));
        drop(history.push(Duration::ZERO, 1, "a"));
        let seen = history.position();
        let dropped = history.trim(Duration::from_secs(60));
        assert_eq!(dropped.into_iter().map(|kept| kept.item).collect::<Vec<_>>(), ["a"]);
        assert!(history.is_empty());
        assert_eq!(history.after(seen).map(Iterator::count), Some(0));
        assert!(history.after(Position { epoch: 3, offset: 0 }).is_none(), "one is gone");
    }

    /// Each bound holds to the message, the byte and the moment.
    #[test]
    fn bounds_are_exact() {
        let mut history = History::beginning_at(Position { epoch: 3, offset: 0 }, bounds(3, 10, Some(5)));
        let second = Duration::from_secs(1);
        let kept = |history: &History<char>| history.kept.iter().map(|kept| kept.item).collect::<String>();
        for (at, bytes, item, expected) in
            [(0, 4, 'a', "a"), (1, 6, 'b', "ab"), (1, 1, 'c', "bc"), (1, 1, 'd', "bcd"), (1, 1, 'e', "cde")]
        {
            drop(history.push(at * second, bytes, item));
            assert_eq!(kept(&history), expected);
        }
        drop(history.push(2 * second, 20, 'f'));
        assert_eq!(kept(&history), "f", "one alone may be larger");
        drop(history.trim(7 * second - Duration::from_nanos(1)));
        assert_eq!(kept(&history), "f");
        drop(history.trim(7 * second));
        assert!(history.is_empty());
    }
}
