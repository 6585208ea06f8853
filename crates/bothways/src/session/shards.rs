//! A table in parts, each with a lock of its own, so that threads rarely meet.

use std::hash::{BuildHasher, Hash, RandomState};

use parking_lot::RwLock;

/// Parts of one table: few enough to walk.
const SHARDS: usize = 64;

/// See the module. Nobody locks two of its parts at once.
pub(super) struct Shards<T, S = RandomState> {
    hasher: S,
    parts: Vec<RwLock<T>>,
}

impl<T: Default, S: Default> Default for Shards<T, S> {
    fn default() -> Self {
        let parts = std::iter::repeat_with(RwLock::default).take(SHARDS).collect();
        Self { hasher: S::default(), parts }
    }
}

impl<T, S: BuildHasher> Shards<T, S> {
    /// The part in which this key is, or would be.
    pub(super) fn of<K: Hash + ?Sized>(&self, key: &K) -> &RwLock<T> {
        // Of the bits in the middle: a table in a part has its places by the lowest, and tells its keys by the highest.
        &self.parts[(self.hasher.hash_one(key) >> 40) as usize % SHARDS]
    }

    /// All parts.
    pub(super) fn iter(&self) -> impl Iterator<Item = &RwLock<T>> {
        self.parts.iter()
    }
}
