//! Idempotency keys: the last ones that a session has taken, so that a repeated push is sent once.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Longest idempotency key, in bytes: room for a hash in hexadecimal digits.
pub const KEY_BYTES_MAX: usize = 64;

/// What a key that is remembered takes at most, in a table and in a queue that grow by doubling.
pub(super) const KEPT_KEY_BYTES: usize = 64;

/// An idempotency key that is empty, or longer than [`KEY_BYTES_MAX`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("an idempotency key has 1 to {KEY_BYTES_MAX} bytes, not {bytes}")]
pub struct InvalidKey {
    /// Its bytes.
    pub bytes: usize,
}

/// A key as sessions remember it: half of its SHA-256, so that every key takes the same.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub(super) struct KeyHash([u64; 2]);

impl KeyHash {
    pub(super) fn of(key: &str) -> Result<Self, InvalidKey> {
        if key.is_empty() || KEY_BYTES_MAX < key.len() {
            return Err(InvalidKey { bytes: key.len() });
        }
        let hash = Sha256::digest(key.as_bytes());
        let half = |at: usize| u64::from_be_bytes(hash[at..at + 8].try_into().expect("eight of 32 bytes"));
        Ok(Self([half(0), half(8)]))
    }
}

/// What a push is beside its frame, if that says more than a plain client is to see: shared by all sessions of a
/// fan-out. Of its idempotency key, of the key of a newest value, or of its topic.
#[derive(Debug)]
pub(super) struct Keyed {
    /// Of its idempotency key, which is in the frame; `None`: it has none.
    pub(super) hash: Option<KeyHash>,
    /// The frame without: a plain client sees what Go would send.
    pub(super) plain: Bytes,
}

/// Which push a key is of: the address of what it is beside its frame, while it lives. One that is dead frees no key.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Holder(usize);

impl Holder {
    /// One that was written, of which nothing more will be known.
    pub(super) const SETTLED: Self = Self(0);
    /// One that is dead. Nothing lives at an odd address.
    #[cfg(feature = "cluster")]
    pub(super) const GONE: Self = Self(1);

    pub(super) fn of(push: &Arc<Keyed>) -> Self {
        Self(Arc::as_ptr(push).addr())
    }
}

/// The keys that a session has taken, oldest first. Takes no memory before the first.
#[derive(Debug, Default)]
pub(super) struct TakenKeys {
    taken: Option<Box<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    set: HashSet<KeyHash>,
    order: VecDeque<(KeyHash, Holder)>,
}

impl Taken {
    /// What is asked for was taken lately, nearly always.
    fn place_of(&self, key: KeyHash, holder: Holder) -> Option<usize> {
        if !self.set.contains(&key) {
            return None;
        }
        self.order.iter().rposition(|held| *held == (key, holder))
    }
}

impl TakenKeys {
    /// All of them, oldest first.
    #[cfg(feature = "cluster")]
    pub(super) fn iter(&self) -> impl Iterator<Item = (KeyHash, Holder)> + '_ {
        self.taken.iter().flat_map(|taken| taken.order.iter().copied())
    }

    pub(super) fn contains(&self, key: KeyHash) -> bool {
        self.taken.as_ref().is_some_and(|taken| taken.set.contains(&key))
    }

    /// Which push has taken this key.
    pub(super) fn holder(&self, key: KeyHash) -> Option<Holder> {
        let taken = self.taken.as_ref().filter(|taken| taken.set.contains(&key))?;
        taken.order.iter().rev().find(|(other, _)| *other == key).map(|(_, holder)| *holder)
    }

    /// Takes a key that is free; of more than `max` the oldest is forgotten.
    pub(super) fn insert(&mut self, key: KeyHash, holder: Holder, max: usize) {
        if max == 0 {
            return;
        }
        let taken = self.taken.get_or_insert_default();
        while max <= taken.order.len() {
            if let Some((oldest, _)) = taken.order.pop_front() {
                taken.set.remove(&oldest);
            }
        }
        if taken.set.insert(key) {
            taken.order.push_back((key, holder));
        }
    }

    /// What took this key did not go its way: the next may. If it was forgotten meanwhile, and another push has taken
    /// the key since, it stays that one's.
    pub(super) fn free(&mut self, key: KeyHash, holder: Holder) {
        let Some(taken) = &mut self.taken else { return };
        if let Some(at) = taken.place_of(key, holder) {
            taken.order.remove(at);
            taken.set.remove(&key);
        }
        if taken.order.is_empty() {
            self.taken = None;
        }
    }

    /// What took this key was written, and nothing more will be known of it.
    pub(super) fn settle(&mut self, key: KeyHash, holder: Holder) {
        if let Some(taken) = &mut self.taken
            && let Some(at) = taken.place_of(key, holder)
        {
            taken.order[at].1 = Holder::SETTLED;
        }
    }

    /// Frees the keys of all that was settled.
    pub(super) fn free_settled(&mut self) {
        let Some(taken) = &mut self.taken else { return };
        let Taken { set, order } = &mut **taken;
        order.retain(|(key, holder)| {
            let stays = *holder != Holder::SETTLED;
            if !stays {
                set.remove(key);
            }
            stays
        });
        if order.is_empty() {
            self.taken = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> KeyHash {
        KeyHash::of(text).expect("short")
    }

    const HOLDER: Holder = Holder(1);

    #[test]
    fn a_key_is_taken_until_it_is_freed_or_the_oldest_of_too_many() {
        let mut keys = TakenKeys::default();
        for text in ["a", "b", "c"] {
            assert!(!keys.contains(key(text)));
            keys.insert(key(text), HOLDER, 3);
        }
        keys.free(key("b"), HOLDER);
        assert!(keys.contains(key("a")) && !keys.contains(key("b")));
        keys.insert(key("d"), HOLDER, 3);
        assert!(keys.contains(key("a")), "the place of the one that was freed is free");
        keys.insert(key("b"), HOLDER, 3);
        assert!(!keys.contains(key("a")), "the oldest");
        assert!(["b", "c", "d"].iter().all(|text| keys.contains(key(text))));
        ["b", "c", "d"].iter().for_each(|text| keys.free(key(text), HOLDER));
        assert!(keys.taken.is_none(), "no memory without keys");
        keys.insert(key("a"), HOLDER, 0);
        assert!(keys.taken.is_none());
    }

    /// The keys of what was only written are freed together, and no others.
    #[test]
    fn settled_keys_are_freed_together() {
        let mut keys = TakenKeys::default();
        for (text, holder) in [("a", Holder(1)), ("b", Holder(2)), ("c", Holder(3))] {
            keys.insert(key(text), holder, 3);
        }
        keys.settle(key("a"), Holder(1));
        keys.settle(key("b"), Holder(7));
        assert_eq!(keys.holder(key("a")), Some(Holder::SETTLED));
        keys.free_settled();
        assert_eq!(["a", "b", "c"].map(|text| keys.contains(key(text))), [false, true, true]);
        for (text, holder) in [("b", Holder(2)), ("c", Holder(3))] {
            keys.settle(key(text), holder);
        }
        keys.free_settled();
        assert!(keys.taken.is_none(), "no memory without keys");
    }

    /// A push whose key was forgotten and taken by another does not free it when it comes to nothing.
    #[test]
    fn a_key_is_freed_only_by_the_push_that_has_it() {
        let mut keys = TakenKeys::default();
        keys.insert(key("a"), Holder(1), 1);
        keys.insert(key("b"), Holder(2), 1);
        keys.insert(key("a"), Holder(3), 1);
        keys.free(key("a"), Holder(1));
        assert!(keys.contains(key("a")));
        keys.free(key("a"), Holder(3));
        assert!(keys.taken.is_none());
    }

    #[test]
    fn a_key_has_a_length() {
        assert_eq!(KeyHash::of(""), Err(InvalidKey { bytes: 0 }));
        assert_eq!(KeyHash::of(&"x".repeat(65)), Err(InvalidKey { bytes: 65 }));
        assert_ne!(key(&"x".repeat(64)), key(&"x".repeat(63)));
    }

    /// The number that the bound of a session's memory is made of.
    #[test]
    fn a_key_takes_no_more_than_is_said() {
        let mut taken = Taken::default();
        for n in 0..1024 {
            taken.set.insert(key(&n.to_string()));
            taken.order.push_back((key(&n.to_string()), HOLDER));
        }
        // A table has a place more for each seven, and a byte beside each place.
        let buckets = (taken.set.capacity() * 8 / 7).next_power_of_two();
        let bytes = buckets * (size_of::<KeyHash>() + 1) + taken.order.capacity() * size_of::<(KeyHash, Holder)>();
        assert!(bytes <= 1024 * KEPT_KEY_BYTES, "{bytes}");
    }
}
