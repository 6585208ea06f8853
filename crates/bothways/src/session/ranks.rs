//! Sessions whose clients are away, by user or address: the one with the most of them loses one first.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
};

/// Items of owners, each item once. Every step takes time that grows with the logarithm of their number.
#[derive(Debug)]
pub(super) struct Ranks<O, K> {
    of: HashMap<O, BTreeSet<K>>,
    /// Owners by how many they have, and of those of as many the one whose first item is least comes last.
    by_count: BTreeMap<(usize, Reverse<K>), O>,
}

impl<O, K> Default for Ranks<O, K> {
    fn default() -> Self {
        Self { of: HashMap::new(), by_count: BTreeMap::new() }
    }
}

impl<O: Clone + Eq + Hash, K: Copy + Ord> Ranks<O, K> {
    pub(super) fn add(&mut self, owner: &O, item: K) {
        self.change(owner, |theirs| _ = theirs.insert(item));
    }

    pub(super) fn remove(&mut self, owner: &O, item: K) {
        self.change(owner, |theirs| _ = theirs.remove(&item));
    }

    /// The first item of the one with the most.
    pub(super) fn first_of_most(&self) -> Option<K> {
        self.by_count.last_key_value().map(|((_, Reverse(first)), _)| *first)
    }

    fn change(&mut self, owner: &O, change: impl FnOnce(&mut BTreeSet<K>)) {
        let theirs = self.of.entry(owner.clone()).or_default();
        if let Some(first) = theirs.first() {
            self.by_count.remove(&(theirs.len(), Reverse(*first)));
        }
        change(theirs);
        match theirs.first() {
            Some(first) => _ = self.by_count.insert((theirs.len(), Reverse(*first)), owner.clone()),
            None => _ = self.of.remove(owner),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the one who has most the first goes, of those who have as many the one whose first is least.
    #[test]
    fn who_has_most_is_first() {
        let mut ranks = Ranks::default();
        for (owner, item) in [("ann", 1), ("eve", 2), ("eve", 3), ("eve", 4), ("bob", 5)] {
            ranks.add(&owner, item);
        }
        let owner = |item| {
            if item == 1 {
                "ann"
            } else if item == 5 {
                "bob"
            } else {
                "eve"
            }
        };
        let mut order = Vec::new();
        while let Some(item) = ranks.first_of_most() {
            ranks.remove(&owner(item), item);
            ranks.remove(&owner(item), item);
            order.push(item);
        }
        assert_eq!(order, [2, 3, 1, 4, 5]);
        assert!(ranks.of.is_empty() && ranks.by_count.is_empty());
    }
}
