//! What a session was sent of topics to which it does not subscribe yet: what its client missed of them comes in parts,
//! and a connection may break between two. The parts that it was sent before it is not sent again.

use super::topic::TOPIC_BYTES_MAX;

/// Topics of which a session is told apart: as many as our clients ask for at once. With more, the oldest is forgotten,
/// and of that one a part may come twice if the connection breaks then.
const PARTS_MAX: usize = 64;

/// What this takes at most.
pub(super) const PARTS_BYTES: usize = PARTS_MAX * (TOPIC_BYTES_MAX + 64);

/// Messages are known by their stamps, which count them over all topics of the server.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// Of each topic the first and the last that was sent, the oldest topic first.
    list: Vec<(Box<str>, (u64, u64))>,
}

impl Parts {
    /// The stamps of the first and the last that was sent of this topic.
    pub(super) fn of(&self, topic: &str) -> Option<(u64, u64)> {
        self.list.iter().find(|(name, _)| **name == *topic).map(|(_, sent)| *sent)
    }

    /// All between these two was sent.
    pub(super) fn note(&mut self, topic: &str, (first, last): (u64, u64)) {
        if let Some((_, sent)) = self.list.iter_mut().find(|(name, _)| **name == *topic) {
            *sent = (sent.0.min(first), sent.1.max(last));
            return;
        }
        if PARTS_MAX <= self.list.len() {
            self.list.remove(0);
        }
        self.list.push((topic.into(), (first, last)));
    }

    /// The session subscribes to this topic now, or its client wants it no more.
    pub(super) fn forget(&mut self, topic: &str) {
        self.list.retain(|(name, _)| **name != *topic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_too_many_topics_is_forgotten() {
        let mut parts = Parts::default();
        (0..=PARTS_MAX).for_each(|number| parts.note(&number.to_string(), (5, 7)));
        assert_eq!((parts.of("0"), parts.of("1"), parts.list.len()), (None, Some((5, 7)), PARTS_MAX));
        parts.note("1", (8, 9));
        parts.note("1", (3, 4));
        assert_eq!(parts.of("1"), Some((3, 9)));
        parts.forget("1");
        assert_eq!(parts.of("1"), None);
    }
}
