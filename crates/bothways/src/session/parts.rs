//! Topics whose missed messages come to a session in parts, before it is subscribed: a connection may break between two
//! parts. Parts that the session was sent already are not sent again.

use super::{history::Position, topic::TOPIC_BYTES_MAX};

/// Topics of which a session is told apart: as many as our clients ask for at once. With more, the oldest is forgotten,
/// and of that one a part may come twice if the connection breaks then.
const PARTS_MAX: usize = 64;

/// What this takes at most.
pub(super) const PARTS_BYTES: usize = PARTS_MAX * (TOPIC_BYTES_MAX + 64);

/// What was sent of one topic without a gap. Messages are known by their stamps, which count them over all topics of the
/// server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Part {
    pub(super) first: u64,
    pub(super) last: u64,
    /// Of the last, within its topic.
    pub(super) reached: Position,
}

impl Part {
    pub(super) fn has(self, stamp: u64) -> bool {
        (self.first..=self.last).contains(&stamp)
    }

    /// Nothing that was not sent is between this and what follows that position.
    pub(super) fn meets(self, from: Position) -> bool {
        from.epoch == self.reached.epoch && from.offset <= self.reached.offset
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// The oldest topic first.
    list: Vec<(Box<str>, Part)>,
}

impl Parts {
    /// What was sent of this topic.
    pub(super) fn of(&self, topic: &str) -> Option<Part> {
        self.list.iter().find(|(name, _)| **name == *topic).map(|(_, sent)| *sent)
    }

    /// This was sent too: the first of what follows the position `from` and was not sent before.
    pub(super) fn note(&mut self, topic: &str, from: Position, part: Part) {
        if let Some((_, sent)) = self.list.iter_mut().find(|(name, _)| **name == *topic) {
            if !sent.meets(from) {
                // Between the two something may not have been sent.
                *sent = part;
            } else if sent.last < part.last {
                *sent = Part { first: sent.first.min(part.first), ..part };
            }
            return;
        }
        if PARTS_MAX <= self.list.len() {
            self.list.remove(0);
        }
        self.list.push((topic.into(), part));
    }

    /// The session has all of this topic, or its client wants it no more.
    pub(super) fn forget(&mut self, topic: &str) {
        self.list.retain(|(name, _)| **name != *topic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: u64) -> Position {
        Position { epoch: 1, offset }
    }

    fn part(first: u64, last: u64) -> Part {
        Part { first, last, reached: at(last) }
    }

    #[test]
    fn the_oldest_of_too_many_topics_is_forgotten() {
        let mut parts = Parts::default();
        (0..=PARTS_MAX).for_each(|number| parts.note(&number.to_string(), at(0), part(5, 7)));
        assert_eq!((parts.of("0"), parts.of("1"), parts.list.len()), (None, Some(part(5, 7)), PARTS_MAX));
        parts.forget("1");
        assert_eq!(parts.of("1"), None);
    }

    /// What is called sent was sent: parts are joined only where nothing can be missing between them.
    #[test]
    fn parts_are_joined_where_nothing_is_between_them() {
        let noted = |from: u64, next| {
            let mut parts = Parts::default();
            parts.note("a", at(4), part(5, 7));
            parts.note("a", at(from), next);
            parts.of("a")
        };
        assert_eq!(noted(7, part(8, 9)), Some(part(5, 9)), "it goes on");
        assert_eq!(noted(6, part(8, 9)), Some(part(5, 9)), "the client did not get all of the first");
        assert_eq!(noted(1, part(2, 9)), Some(part(2, 9)), "it begins anew, and goes beyond");
        assert_eq!(noted(1, part(2, 7)), Some(part(5, 7)), "it goes no further");
        assert_eq!(noted(1, part(2, 3)), Some(part(5, 7)), "4 was not sent");
        assert_eq!(noted(9, part(10, 12)), Some(part(10, 12)), "8 and 9 were not sent");
        assert!(!part(5, 7).meets(Position { epoch: 2, offset: 1 }), "another life of the topic");
        assert!(part(5, 7).has(5) && part(5, 7).has(7) && !part(5, 7).has(4) && !part(5, 7).has(8));
    }
}
