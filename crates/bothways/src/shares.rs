//! A bound that many peers share, and of which none of them can take all: bytes, connections, tickets.
//!
//! A fixed bound for each peer leaves nothing to others where enough peers reach theirs. So a peer may have **as much as it
//! leaves to others**: the first one half of all at most, the next one half of what is left, and so on. Anyone who comes finds
//! half of what is free.
//!
//! ```
//! use std::sync::Arc;
//!
//! use bothways::shares::Shares;
//!
//! let shares = Arc::new(Shares::new(100));
//! let one = shares.take("tcp@192.0.2.1:5000", 50).expect("half of all");
//! assert!(shares.take("tcp@192.0.2.1:5001", 1).is_err(), "another port is the same peer");
//! let other = shares.take("tcp@192.0.2.2:5000", 25).expect("half of what is left");
//! assert_eq!(shares.taken(), 75);
//! drop(one);
//! assert_eq!(shares.taken(), 25);
//! # drop(other);
//! ```

use std::{collections::HashMap, fmt, sync::Arc};

use parking_lot::Mutex;

use crate::peer;

/// The name of those who stand for many, which no peer has.
const MANY: &str = "*";

/// See the [module](self). Peers are told apart as in all bounds by address: an IP address without its port, of IPv6 its
/// /64 network, all of this machine's addresses as one, and each other kind of socket by its listener.
#[derive(Debug)]
pub struct Shares {
    max: usize,
    of_peer_max: usize,
    leaves_some: bool,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    taken: usize,
    of: HashMap<Arc<str>, usize>,
}

/// Why there is no more.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Full {
    /// All is taken.
    All,
    /// This peer has its share, or would leave less to others than it has.
    Peer,
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::All => "all of it is taken",
            Self::Peer => "this peer has its share",
        })
    }
}

impl std::error::Error for Full {}

/// What one peer has taken. It is given back when dropped.
#[derive(Debug)]
pub struct Share {
    shares: Arc<Shares>,
    peer: Arc<str>,
    amount: usize,
}

impl Shares {
    /// So much for all peers together, in whatever unit.
    pub fn new(max: usize) -> Self {
        Self { max, of_peer_max: max, leaves_some: true, table: Mutex::default() }
    }

    /// And so much for one peer at most, however much is free. The default is no further bound.
    #[must_use]
    pub fn of_peer_max(mut self, max: usize) -> Self {
        self.of_peer_max = max;
        self
    }

    /// One peer may have all of it, as where all clients come through one proxy that is not known as such.
    #[must_use]
    pub fn all_to_one(mut self) -> Self {
        self.leaves_some = false;
        self
    }

    /// What all peers have together.
    pub fn taken(&self) -> usize {
        self.table.lock().taken
    }

    /// Takes so much for a peer, in rpcx's form, such as `tcp@192.0.2.1:50312`.
    ///
    /// # Errors
    /// [`Full`]; nothing is taken then.
    pub fn take(self: &Arc<Self>, peer: &str, amount: usize) -> Result<Share, Full> {
        let mut share = self.share(peer);
        share.grow(amount)?;
        Ok(share)
    }

    /// Takes so much for someone who stands for many peers, such as a proxy: the bound of all holds, and no other.
    ///
    /// # Errors
    /// [`Full::All`].
    pub fn take_for_many(self: &Arc<Self>, amount: usize) -> Result<Share, Full> {
        let peer: Arc<str> = MANY.into();
        self.add(&peer, amount)?;
        Ok(Share { shares: Arc::clone(self), peer, amount })
    }

    /// A share of this peer that has nothing yet.
    pub fn share(self: &Arc<Self>, peer: &str) -> Share {
        Share { shares: Arc::clone(self), peer: peer::group(peer).into(), amount: 0 }
    }

    fn add(&self, peer: &Arc<str>, amount: usize) -> Result<(), Full> {
        if amount == 0 {
            return Ok(());
        }
        let mut table = self.table.lock();
        let taken = table.taken.saturating_add(amount);
        if self.max < taken {
            return Err(Full::All);
        }
        let theirs = table.of.get(peer).copied().unwrap_or_default().saturating_add(amount);
        // One of something has a place as long as there is one.
        let left = if self.leaves_some { (self.max - taken).max(1) } else { self.max };
        if **peer != *MANY && self.of_peer_max.min(left) < theirs {
            return Err(Full::Peer);
        }
        table.taken = taken;
        *table.of.entry(Arc::clone(peer)).or_default() = theirs;
        Ok(())
    }

    fn give_back(&self, peer: &Arc<str>, amount: usize) {
        if amount == 0 {
            return;
        }
        let mut table = self.table.lock();
        table.taken -= amount;
        if let Some(theirs) = table.of.get_mut(peer) {
            *theirs -= amount;
            if *theirs == 0 {
                table.of.remove(peer);
            }
        }
    }
}

impl Share {
    /// Takes so much more.
    ///
    /// # Errors
    /// [`Full`]; it is as large as before then.
    pub fn grow(&mut self, amount: usize) -> Result<(), Full> {
        self.shares.add(&self.peer, amount)?;
        self.amount += amount;
        Ok(())
    }

    /// How much it is.
    pub fn amount(&self) -> usize {
        self.amount
    }

    /// Whose it is: what counts as one peer has one name.
    pub fn peer(&self) -> &str {
        &self.peer
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shares.give_back(&self.peer, self.amount);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn peer(number: usize) -> String {
        format!("tcp@192.0.2.{number}:1")
    }

    /// Each takes all that it gets, and leaves as much to the next.
    #[test]
    fn those_who_take_all_leave_as_much_as_they_have() {
        let (max, piece) = (64 << 20, 1 << 10);
        let shares = Arc::new(Shares::new(max));
        let mut kept = Vec::new();
        for number in 0..14 {
            let free = max - shares.taken();
            let mut share = shares.share(&peer(number));
            while share.grow(piece).is_ok() {}
            assert!(share.amount() <= free / 2 && free / 2 < share.amount() + piece, "{number}: {}", share.amount());
            kept.push(share);
        }
        // A second connection of a peer that has its share gets nothing more of what is left.
        assert_eq!(shares.take(&peer(0), piece).map(drop), Err(Full::Peer));
        drop(kept);
        assert_eq!((shares.taken(), shares.table.lock().of.len()), (0, 0));
    }

    #[test]
    fn the_last_one_is_for_anyone() {
        let shares = Arc::new(Shares::new(2));
        let first = shares.take(&peer(1), 1).expect("it is free");
        assert_eq!(shares.take(&peer(1), 1).map(drop), Err(Full::Peer));
        let second = shares.take(&peer(2), 1).expect("it is free");
        assert_eq!(shares.take(&peer(3), 1).map(drop), Err(Full::All));
        drop((first, second));
        let one = Arc::new(Shares::new(2).all_to_one());
        assert_eq!(one.take(&peer(1), 2).expect("all of it").amount(), 2);
        let many = Arc::new(Shares::new(3));
        let proxy = many.take_for_many(2).expect("they are free");
        assert_eq!((proxy.amount(), many.take_for_many(2).map(drop)), (2, Err(Full::All)));
        let few = Arc::new(Shares::new(100).of_peer_max(3));
        assert_eq!(few.take(&peer(1), 4).map(drop), Err(Full::Peer));
        assert_eq!(few.take(&peer(1), 3).expect("so much").amount(), 3);
    }

    proptest! {
        /// In any order of taking and giving back, nothing is counted that nobody has, and no bound is exceeded.
        #[test]
        fn what_is_taken_is_what_peers_have(steps in prop::collection::vec((0..5_usize, 0..40_usize, any::<bool>()), 1..200)) {
            let shares = Arc::new(Shares::new(100).of_peer_max(45));
            let mut kept: Vec<Share> = Vec::new();
            for (number, amount, is_back) in steps {
                if is_back && !kept.is_empty() {
                    kept.swap_remove(amount % kept.len());
                } else if let Ok(share) = shares.take(&peer(number), amount) {
                    kept.push(share);
                }
                let taken: usize = kept.iter().map(Share::amount).sum();
                prop_assert_eq!(shares.taken(), taken);
                prop_assert!(taken <= 100);
                for number in 0..5 {
                    let name = peer::group(&peer(number));
                    let theirs: usize = kept.iter().filter(|share| share.peer() == name).map(Share::amount).sum();
                    prop_assert!(theirs <= 45);
                }
            }
        }
    }
}
