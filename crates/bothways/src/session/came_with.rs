//! Which messages of topics have come with a session from another node. What a session is sent here is known by its stamp,
//! and stamps count the messages of one node: these are known by their positions.

use std::collections::HashMap;

use super::history::{Position, TopicPlace};

/// A topic of a session that has come from another node, and is no subscriber of it yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Coming {
    /// It has all up to here.
    pub(super) position: Position,
    pub(super) by_client: bool,
    /// Nothing of it may overtake what was not sent.
    pub(super) is_ordered: bool,
}

/// Chains of one topic. Of more the oldest is forgotten: a client that asks for what it is owed then gets that part twice.
const CHAINS_MAX: usize = 64;

/// What stands after one position, and up to another one: all of it has come.
#[derive(Clone, Copy, Debug)]
struct Chain {
    epoch: u64,
    after: u64,
    upto: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct CameWith {
    topics: HashMap<Box<str>, Vec<Chain>>,
}

impl CameWith {
    /// A message came that stands here.
    pub(super) fn note(&mut self, topic: &str, place: TopicPlace) {
        let TopicPlace { position: Position { epoch, offset }, previous } = place;
        let chains = match self.topics.get_mut(topic) {
            Some(chains) => chains,
            None => self.topics.entry(topic.into()).or_default(),
        };
        if let Some(chain) = chains.iter_mut().find(|chain| chain.epoch == epoch && chain.upto == previous) {
            chain.upto = offset;
            return;
        }
        if CHAINS_MAX <= chains.len() {
            chains.remove(0);
        }
        chains.push(Chain { epoch, after: previous, upto: offset });
    }

    /// True if the message that stands here has come.
    pub(super) fn has(&self, topic: &str, position: Position) -> bool {
        let Position { epoch, offset } = position;
        let has = |chain: &Chain| chain.epoch == epoch && chain.after < offset && offset <= chain.upto;
        self.topics.get(topic).is_some_and(|chains| chains.iter().any(has))
    }

    /// Its client wants this topic no more.
    pub(super) fn forget(&mut self, topic: &str) {
        self.topics.remove(topic);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.topics.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(epoch: u64, previous: u64, offset: u64) -> TopicPlace {
        TopicPlace { position: Position { epoch, offset }, previous }
    }

    fn known(came: &CameWith, topic: &str, epoch: u64) -> Vec<u64> {
        (0..400).filter(|offset| came.has(topic, Position { epoch, offset: *offset })).collect()
    }

    /// Messages that follow each other are one chain; what was not among them is in none.
    #[test]
    fn what_came_is_known_by_its_place() {
        let mut came = CameWith::default();
        assert!(came.is_empty());
        for (previous, offset) in [(3, 5), (5, 6), (8, 9), (6, 8), (9, 10)] {
            came.note("news", place(1, previous, offset));
        }
        came.note("news", place(2, 8, 20));
        came.note("other", place(1, 6, 7));
        assert_eq!(known(&came, "news", 1), [4, 5, 6, 7, 8, 9, 10]);
        assert_eq!(known(&came, "other", 1), [7]);
        assert_eq!(known(&came, "news", 2), (9..=20).collect::<Vec<_>>());

        came.forget("news");
        assert!(known(&came, "news", 1).is_empty());
        came.forget("other");
        assert!(came.is_empty());
    }

    /// It has a bound, and forgets the oldest first.
    #[test]
    fn it_does_not_grow_without_end() {
        let mut came = CameWith::default();
        let offsets: Vec<u64> = (1..=CHAINS_MAX as u64 + 1).map(|number| number * 3).collect();
        for offset in &offsets {
            came.note("news", place(1, offset - 1, *offset));
        }
        assert_eq!(known(&came, "news", 1), offsets[1..]);
    }
}
