//! Who subscribes to one pattern: a set, for they come and go one by one, and a list, which each message is published to.

use std::{
    borrow::Borrow,
    collections::HashSet,
    hash::Hash,
    sync::{Arc, OnceLock},
};

use crate::shrink::is_sparse;

/// See the module.
#[derive(Debug)]
pub(super) struct Subscribers<S> {
    set: HashSet<S>,
    /// Made by the first message after a change.
    list: OnceLock<Arc<[S]>>,
}

/// A list that is not true any more. It may be long: to be dropped when nothing is locked.
pub(super) type Stale<S> = Option<Arc<[S]>>;

impl<S> Default for Subscribers<S> {
    fn default() -> Self {
        Self { set: HashSet::new(), list: OnceLock::new() }
    }
}

impl<S: Eq + Hash> Subscribers<S> {
    pub(super) fn len(&self) -> usize {
        self.set.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    pub(super) fn contains<Q>(&self, subscriber: &Q) -> bool
    where
        S: Borrow<Q>,
        Q: Eq + Hash,
    {
        self.set.contains(subscriber)
    }

    /// False: it was there.
    pub(super) fn insert(&mut self, subscriber: S) -> (bool, Stale<S>) {
        let is_new = self.set.insert(subscriber);
        (is_new, if is_new { self.list.take() } else { None })
    }

    /// Returns how many are left; `None`: it was not among them.
    pub(super) fn remove(&mut self, subscriber: &S) -> Option<(usize, Stale<S>)> {
        if !self.set.remove(subscriber) {
            return None;
        }
        if is_sparse(self.set.len(), self.set.capacity()) {
            self.set.shrink_to_fit();
        }
        Some((self.set.len(), self.list.take()))
    }
}

impl<S: Clone> Subscribers<S> {
    /// Each of them once.
    pub(super) fn list(&self) -> &Arc<[S]> {
        self.list.get_or_init(|| self.set.iter().cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The list has who is there, through all coming and going; and it is made anew only after a change.
    #[test]
    fn the_list_has_who_is_there() {
        let mut subscribers = Subscribers::default();
        assert!(subscribers.list().is_empty());
        for (number, is_new) in [(1, true), (2, true), (1, false)] {
            let before = Arc::clone(subscribers.list());
            let (inserted, stale) = subscribers.insert(number);
            assert_eq!((inserted, stale.is_some()), (is_new, is_new));
            assert_eq!(Arc::ptr_eq(&before, subscribers.list()), !is_new, "{number}");
        }
        let mut list = subscribers.list().to_vec();
        list.sort_unstable();
        assert_eq!(list, [1, 2]);
        assert!(subscribers.remove(&3).is_none());
        let (left, stale) = subscribers.remove(&1).expect("it was there");
        assert_eq!((left, stale.map(|stale| stale.len())), (1, Some(2)));
        assert_eq!(**subscribers.list(), [2]);
    }
}
