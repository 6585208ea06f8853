//! Who has how much of a room that is more than half taken.
//!
//! The first half of a room is taken first come, first served, and costs nobody a look. Of the rest an owner may have no more
//! than is left for everybody: one that takes all that it gets leaves half of it, and each of `n` such ones as much as
//! they leave together, so that those that hold little find room. An owner is a user, or without one an address,
//! however many connections it has, and had: what runs for a connection that is over counts on.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

/// See the module. Of one room.
#[derive(Debug, Default)]
pub(super) struct Shares {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    held: HashMap<Arc<str>, usize>,
    all: usize,
}

/// What one owner holds beyond the first half, given back when this is dropped.
#[derive(Debug)]
pub(super) struct Share {
    shares: Arc<Shares>,
    owner: Arc<str>,
    amount: usize,
}

/// True if so much is more than the first half of a room.
pub(super) fn is_scarce(taken: usize, max: usize) -> bool {
    max - max / 2 < taken
}

/// What of the last amount that was taken is beyond the first half.
pub(super) fn beyond_half(amount: usize, taken: usize, max: usize) -> usize {
    amount.min(taken.saturating_sub(max - max / 2))
}

impl Shares {
    /// True if this owner may have so much more, where so much is left for everybody.
    pub(super) fn fits(&self, owner: &str, amount: usize, left: usize) -> bool {
        self.table.lock().fits(owner, amount, left)
    }

    /// Takes so much, if the owner may have it. So much of it is `beyond` the first half, and counts.
    pub(super) fn take(self: &Arc<Self>, owner: Arc<str>, amount: usize, beyond: usize, left: usize) -> Option<Share> {
        let mut table = self.table.lock();
        let fits = table.fits(&owner, amount, left);
        fits.then(|| table.add(self, owner, beyond))
    }

    /// The same in a room that nothing else takes of.
    pub(super) fn take_within(self: &Arc<Self>, owner: Arc<str>, amount: usize, max: usize) -> Option<Share> {
        let mut table = self.table.lock();
        let fits = table.fits(&owner, amount, max.saturating_sub(table.all));
        fits.then(|| table.add(self, owner, amount))
    }

    /// Counts what is held anyway.
    pub(super) fn add(self: &Arc<Self>, owner: Arc<str>, amount: usize) -> Share {
        self.table.lock().add(self, owner, amount)
    }
}

impl Table {
    fn fits(&self, owner: &str, amount: usize, left: usize) -> bool {
        self.held.get(owner).copied().unwrap_or(0).saturating_add(amount) <= left
    }

    fn add(&mut self, shares: &Arc<Shares>, owner: Arc<str>, amount: usize) -> Share {
        if amount != 0 {
            *self.held.entry(Arc::clone(&owner)).or_default() += amount;
        }
        self.all += amount;
        Share { shares: Arc::clone(shares), owner, amount }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut table = self.shares.table.lock();
        table.all -= self.amount;
        if let Some(held) = table.held.get_mut(&self.owner) {
            *held -= self.amount;
            if *held == 0 {
                table.held.remove(&self.owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However many owners take all that they get, each leaves as much as it has beyond the first half; one that has
    /// little gets that, and nothing is kept of an owner that has nothing.
    #[test]
    fn owners_leave_as_much_as_they_have() {
        const MAX: usize = 1000;
        for hogs in [1, 3, 9] {
            let shares = Arc::new(Shares::default());
            let mut held = Vec::new();
            let mut taken = MAX / 2;
            loop {
                let before = taken;
                for hog in 0..hogs {
                    let share = shares.take(format!("hog {hog}").into(), 1, 1, MAX - taken);
                    taken += usize::from(share.is_some());
                    held.extend(share);
                }
                if before == taken {
                    break;
                }
            }
            let fair = MAX / 2 / (hogs + 1);
            let left = MAX - taken;
            assert!(fair <= left && left <= fair + hogs, "{hogs}: {left}");
            assert!(shares.fits("ann", left, left) && !shares.fits("hog 0", fair, left));
            let forced = shares.add("ann".into(), MAX);
            assert!(!shares.fits("ann", 0, MAX - 1));
            drop((held, forced));
            assert!(shares.table.lock().held.is_empty() && shares.table.lock().all == 0);
        }
    }

    /// A room that only these take of has a bound for all of them.
    #[test]
    fn a_room_of_shares_has_a_bound() {
        let shares = Arc::new(Shares::default());
        let held: Vec<_> = (0..20).filter_map(|owner| shares.take_within(format!("{owner}").into(), 2, 10)).collect();
        assert_eq!(held.len(), 5);
        drop(held);
        assert!(
            shares.take_within("one".into(), 10, 10).is_some() && shares.take_within("one".into(), 11, 10).is_none()
        );
    }

    #[test]
    fn the_first_half_is_first_come_first_served() {
        let first = |max| (1..).take_while(|taken| !is_scarce(*taken, max)).count();
        assert_eq!([0, 1, 2, 3, 4, 1000].map(first), [0, 1, 1, 2, 2, 500]);
        assert!(!is_scarce(usize::MAX / 2, usize::MAX));
        assert_eq!([400, 500, 501, 600, 900].map(|taken| beyond_half(100, taken, 1000)), [0, 0, 1, 100, 100]);
    }
}
