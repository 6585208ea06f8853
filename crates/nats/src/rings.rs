//! Whether every letter has rung here. No I/O, and no clock: the time is passed in.
//!
//! The broker publishes each letter that it stores again, without its bytes: that is the ring at all nodes. A ring can be
//! lost, and nobody says so: the way between two servers breaks, a server has just come back and does not know yet who
//! listens, or the leader that has stored a letter is not the leader any more. But the sequences of a stream have no
//! holes. So a ring that is missing shows by the next one of its stream, or else by where the stream ends.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::names::Kind;

/// How long a ring may take before it counts as lost.
const RING_MAX: Duration = Duration::from_secs(5);

/// One stream.
#[derive(Debug)]
struct Rung {
    epoch: u64,
    /// All up to this sequence have rung, or were missed and told of.
    through: u64,
    /// Where the stream was seen to end, behind what had rung, and when.
    end: Option<(u64, Instant)>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Rings {
    all: Mutex<HashMap<Kind, Rung>>,
    is_followed: AtomicBool,
}

impl Rings {
    /// From here on rings come, and are missed if they do not.
    pub(crate) fn follow(&self) {
        self.is_followed.store(true, Ordering::Relaxed);
    }

    /// A letter rings. False: one before it has not.
    pub(crate) fn rang(&self, kind: Kind, epoch: u64, sequence: u64) -> bool {
        let mut all = self.all.lock();
        let one = of_epoch(&mut all, kind, epoch, sequence);
        let has_hole = one.through + 1 < sequence;
        one.through = sequence.max(one.through);
        !has_hole
    }

    /// The stream ends here now. False: what it had [`RING_MAX`] ago has not rung.
    pub(crate) fn ends_at(&self, kind: Kind, epoch: u64, last: u64, now: Instant) -> bool {
        let mut all = self.all.lock();
        let one = of_epoch(&mut all, kind, epoch, last);
        if !self.is_followed.load(Ordering::Relaxed) {
            one.through = last;
        }
        let through = one.through;
        one.end = one.end.filter(|(end, _)| through < *end);
        let lost = one.end.filter(|(_, since)| RING_MAX <= now.saturating_duration_since(*since));
        if let Some((end, _)) = lost {
            (one.through, one.end) = (end, None);
        }
        if one.end.is_none() && one.through < last {
            one.end = Some((last, now));
        }
        lost.is_none()
    }
}

/// A stream, which counts as rung through here if it is new, or was made anew: that is told of elsewhere.
fn of_epoch(all: &mut HashMap<Kind, Rung>, kind: Kind, epoch: u64, through: u64) -> &mut Rung {
    let new = Rung { epoch, through, end: None };
    match all.entry(kind) {
        Entry::Occupied(one) if one.get().epoch == epoch => one.into_mut(),
        other => other.insert_entry(new).into_mut(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: Kind = Kind::Mailbox(0);

    /// A ring that is lost shows by the next one of its stream, and only once.
    #[test]
    fn a_hole_is_found_by_the_next_ring() {
        let rings = Rings::default();
        assert!(rings.rang(KIND, 1, 7), "nobody knows of any before");
        assert!(rings.rang(KIND, 1, 8) && rings.rang(Kind::Mailbox(1), 1, 3));
        assert!(!rings.rang(KIND, 1, 10));
        assert!(rings.rang(KIND, 1, 11) && rings.rang(KIND, 1, 9), "it was told of");
        assert!(rings.rang(KIND, 1, 12), "one that comes late moves nothing back");
        assert!(rings.rang(KIND, 2, 1) && rings.rang(KIND, 2, 2), "it was made anew");
    }

    /// The last ring of all has none behind it: it is lost if it has not come some time after its letter was seen.
    #[test]
    fn the_last_ring_is_missed_by_the_end_of_its_stream() {
        let (rings, began) = (Rings::default(), Instant::now());
        assert!(rings.ends_at(KIND, 1, 1, began) && rings.ends_at(KIND, 1, 2, began));
        assert!(rings.ends_at(KIND, 1, 3, began + 2 * RING_MAX), "nobody follows");
        rings.follow();
        let ends_at = |last, seconds| rings.ends_at(KIND, 1, last, began + Duration::from_secs(seconds));
        assert!(ends_at(3, 0) && ends_at(5, 10), "it may be on its way");
        assert!(ends_at(5, 14) && !ends_at(6, 15));
        assert!(ends_at(6, 16) && !ends_at(6, 26), "the next one that is lost");
        assert!(ends_at(6, 40) && ends_at(7, 50) && rings.rang(KIND, 1, 7));
        assert!(ends_at(7, 60) && ends_at(9, 70));
        assert!(!rings.rang(KIND, 1, 9), "the ring of 8");
        assert!(ends_at(9, 90) && rings.ends_at(KIND, 2, 3, began), "another epoch");
    }
}
