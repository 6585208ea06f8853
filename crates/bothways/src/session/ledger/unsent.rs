//! The messages of topics with history that a session was not sent although it was subscribed: a recovery has to bring
//! them.
//!
//! Messages are known by their stamps, which count them over all topics of the server. Kept as ranges: of a client that
//! reads too slowly, all of a stretch is missing.

/// Ranges that are kept. With more, those with the least between them become one: what was between them may be sent
/// twice by a recovery, and nothing is forgotten.
const RANGES_MAX: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(in crate::session) struct Unsent {
    /// First and last, sorted, apart from each other.
    ranges: Vec<(u64, u64)>,
    /// The greatest stamp of what was sent.
    sent: u64,
}

impl Unsent {
    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub(super) fn contains(&self, stamp: u64) -> bool {
        self.place(stamp).is_ok()
    }

    /// The range with this stamp, or where it would be.
    fn place(&self, stamp: u64) -> Result<usize, usize> {
        let after = self.ranges.partition_point(|(first, _)| *first <= stamp);
        match after.checked_sub(1) {
            Some(at) if stamp <= self.ranges[at].1 => Ok(at),
            _ => Err(after),
        }
    }

    /// The message of this stamp is not sent.
    pub(in crate::session) fn miss(&mut self, stamp: u64) {
        let Err(at) = self.place(stamp) else { return };
        let is_last = at == self.ranges.len();
        let before = at.checked_sub(1).map(|before| self.ranges[before].1);
        // Nothing that was sent is between them.
        let goes_on = before.is_some_and(|last| last + 1 == stamp || (is_last && self.sent <= last));
        if goes_on {
            self.ranges[at - 1].1 = stamp;
        } else {
            self.ranges.insert(at, (stamp, stamp));
            self.bound();
        }
    }

    /// The message of this stamp is sent, or is about to be.
    pub(super) fn send(&mut self, stamp: u64) {
        self.sent = self.sent.max(stamp);
        let Ok(at) = self.place(stamp) else { return };
        let (first, last) = self.ranges.remove(at);
        if stamp < last {
            self.ranges.insert(at, (stamp + 1, last));
        }
        if first < stamp {
            self.ranges.insert(at, (first, stamp - 1));
        }
        self.bound();
    }

    /// All of these are not sent either.
    pub(super) fn miss_all(&mut self, others: Self) {
        for (mut first, mut last) in others.ranges {
            // With those of this one that it meets.
            self.ranges.retain(|(from, to)| {
                let is_apart = *to < first || last < *from;
                if !is_apart {
                    (first, last) = (first.min(*from), last.max(*to));
                }
                is_apart
            });
            let at = self.ranges.partition_point(|(from, _)| *from < first);
            self.ranges.insert(at, (first, last));
        }
        self.sent = self.sent.max(others.sent);
        self.bound();
    }

    fn bound(&mut self) {
        while RANGES_MAX < self.ranges.len() {
            let between = |at: &usize| self.ranges[at + 1].0 - self.ranges[*at].1;
            let Some(at) = (0..self.ranges.len() - 1).min_by_key(between) else { return };
            let (_, last) = self.ranges.remove(at + 1);
            self.ranges[at].1 = last;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever was missed and not sent since is known, in any order; and nothing else is, as long as the ranges
        /// are few.
        #[test]
        fn what_was_missed_is_known(steps in prop::collection::vec((any::<bool>(), 1..40_u64), 0..60)) {
            let (mut unsent, mut sent, mut missed) = (Unsent::default(), BTreeSet::new(), BTreeSet::new());
            for (is_sent, stamp) in steps {
                if is_sent {
                    unsent.send(stamp);
                    missed.remove(&stamp);
                    sent.insert(stamp);
                } else if !sent.contains(&stamp) {
                    unsent.miss(stamp);
                    missed.insert(stamp);
                }
            }
            for stamp in &missed {
                prop_assert!(unsent.contains(*stamp), "{stamp} is owed");
            }
            for stamp in &sent {
                prop_assert_eq!(unsent.contains(*stamp), missed.contains(stamp));
            }
        }
    }

    /// A client that misses every second message for ever costs no more than so many ranges, and is owed all.
    #[test]
    fn the_ranges_are_bounded_and_nothing_is_forgotten() {
        let mut unsent = Unsent::default();
        for stamp in 1..10_000 {
            if stamp % 2 == 0 { unsent.send(stamp) } else { unsent.miss(stamp) }
        }
        assert_eq!(unsent.ranges.len(), RANGES_MAX);
        assert!((1..10_000).step_by(2).all(|stamp| unsent.contains(stamp)));
    }

    #[test]
    fn what_was_lost_with_a_connection_is_missed_beside_the_rest() {
        let (mut unsent, mut lost) = (Unsent::default(), Unsent::default());
        unsent.miss(3);
        unsent.send(4);
        lost.miss(2);
        lost.send(5);
        lost.miss(7);
        unsent.miss_all(lost);
        let known: Vec<_> = (1..10).filter(|stamp| unsent.contains(*stamp)).collect();
        assert_eq!(known, [2, 3, 7]);
    }

    /// Of too many ranges those become one that have the least between them.
    #[test]
    fn the_closest_ranges_become_one() {
        let mut unsent = Unsent::default();
        for number in 0..RANGES_MAX as u64 {
            unsent.miss(100 * number + 1);
            unsent.send(100 * number + 2);
        }
        let last = 100 * (RANGES_MAX as u64 - 1) + 1;
        unsent.miss(last + 2);
        assert_eq!((unsent.ranges.len(), unsent.ranges[RANGES_MAX - 1]), (RANGES_MAX, (last, last + 2)));
        assert!(unsent.contains(last + 1) && !unsent.contains(2) && !unsent.contains(last + 3));
    }

    /// A stretch of which nothing was sent is one range.
    #[test]
    fn a_stretch_is_one_range() {
        let mut unsent = Unsent::default();
        for stamp in [3, 4, 9, 12] {
            unsent.miss(stamp);
        }
        assert_eq!(unsent.ranges, [(3, 12)], "nothing between them was sent");
        unsent.send(7);
        assert_eq!(unsent.ranges, [(3, 6), (8, 12)]);
        unsent.send(3);
        unsent.send(12);
        assert_eq!(unsent.ranges, [(4, 6), (8, 11)]);
        unsent.miss(14);
        assert_eq!(unsent.ranges, [(4, 6), (8, 11), (14, 14)], "12 was sent");
        let mut others = Unsent::default();
        others.miss(6);
        others.miss(9);
        others.send(20);
        unsent.miss_all(others);
        assert_eq!((unsent.ranges.clone(), unsent.sent), (vec![(4, 11), (14, 14)], 20));
    }

    /// Ranges that meet in one message become one; beside each other they stay two.
    #[test]
    fn ranges_of_another_join_where_they_meet() {
        let with = |first: u64, last: u64| {
            let of = |ranges: Vec<(u64, u64)>| Unsent { ranges, sent: 0 };
            let mut unsent = of(vec![(10, 20)]);
            unsent.miss_all(of(vec![(first, last)]));
            unsent.ranges
        };
        assert_eq!((with(5, 10), with(20, 25), with(12, 13)), (vec![(5, 20)], vec![(10, 25)], vec![(10, 20)]));
        assert_eq!((with(5, 9), with(21, 25)), (vec![(5, 9), (10, 20)], vec![(10, 20), (21, 25)]));
    }

    #[test]
    fn nothing_is_missed_until_something_is() {
        let mut unsent = Unsent::default();
        assert!(unsent.is_empty());
        unsent.send(1);
        assert!(unsent.is_empty());
        unsent.miss(2);
        assert!(!unsent.is_empty());
        // What lies between two that were missed, and was missed too, joins the one before it.
        unsent.send(5);
        unsent.miss(7);
        unsent.miss(3);
        assert_eq!(unsent.ranges, [(2, 3), (7, 7)]);
        unsent.miss(5);
        assert_eq!(unsent.ranges, [(2, 3), (5, 5), (7, 7)]);
    }
}
