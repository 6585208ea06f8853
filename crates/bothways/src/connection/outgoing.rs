//! Bytes that wait for sockets in all connections of one server or client, and which connections may add more.
//!
//! The first [`OWN_BYTES`] of each connection are its own. Beyond them it may have no more than is left for everybody:
//! one that does not read gets half of the room, and each of `n` such ones as much as they leave together. So those that
//! hold least find room last of all to be gone, and nobody is asked who holds what.

use std::{
    cmp::Ordering::{Equal, Greater, Less},
    sync::atomic::{AtomicUsize, Ordering},
};

/// What of each connection is not counted. 64 KiB: what is on its way to a socket that takes it.
pub(super) const OWN_BYTES: usize = 64 << 10;

/// What a frame that waits takes beside its bytes: its place, and the heads of its parts.
pub(super) const ENTRY_BYTES: usize = 160;

/// See the module.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// In KiB, of each connection rounded up.
    kib: AtomicUsize,
    bytes_max: usize,
}

impl Outgoing {
    pub(super) const fn new(bytes_max: usize) -> Self {
        Self { kib: AtomicUsize::new(0), bytes_max }
    }

    /// Bytes that wait, beside what is each connection's own.
    pub(crate) fn bytes(&self) -> usize {
        self.kib.load(Ordering::Relaxed).saturating_mul(1024)
    }

    /// True if a connection may hold so many bytes. One frame alone is bounded by `body_bytes_max`.
    pub(super) fn has_room_for(&self, held: usize) -> bool {
        let Some(counted) = held.checked_sub(OWN_BYTES).filter(|counted| *counted != 0) else { return true };
        let all = self.bytes();
        all == 0 || counted <= self.bytes_max.saturating_sub(all)
    }

    /// A connection of which so many KiB were counted holds so many bytes now. Returns what is counted of it.
    pub(super) fn recount(&self, counted: u32, held: usize) -> u32 {
        let now = u32::try_from(held.saturating_sub(OWN_BYTES).div_ceil(1024)).unwrap_or(u32::MAX);
        match counted.cmp(&now) {
            Less => _ = self.kib.fetch_add((now - counted) as usize, Ordering::Relaxed),
            Greater => _ = self.kib.fetch_sub((counted - now) as usize, Ordering::Relaxed),
            Equal => {}
        }
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However many do not read, each has as much as the others, and as much is left for one more.
    #[test]
    fn those_who_hold_most_leave_room_for_others() {
        for hogs in [1, 3, 50] {
            let all = Outgoing::new(64 << 20);
            let mut held = vec![(0_u32, 0_usize); hogs];
            let mut is_full = false;
            while !is_full {
                is_full = true;
                for (counted, bytes) in &mut held {
                    if all.has_room_for(*bytes + (16 << 10)) {
                        *bytes += 16 << 10;
                        *counted = all.recount(*counted, *bytes);
                        is_full = false;
                    }
                }
            }
            let fair = (64 << 20) / (hogs + 1);
            let slack = (32 << 10) + OWN_BYTES;
            assert!(held.iter().all(|(_, bytes)| bytes.abs_diff(fair) <= slack), "{held:?} of {fair}");
            assert!(all.has_room_for(fair - slack) && all.has_room_for(OWN_BYTES));
            assert!(!all.has_room_for(2 * fair + slack));
            for (counted, _) in held {
                assert_eq!(all.recount(counted, 0), 0);
            }
            assert_eq!(all.bytes(), 0);
        }
    }

    /// What is a connection's own is not counted; one frame is taken if nobody holds more than that.
    #[test]
    fn a_connection_has_its_own_room() {
        let all = Outgoing::new(0);
        assert_eq!(all.recount(0, OWN_BYTES), 0);
        assert!(all.has_room_for(8 << 20), "it is alone");
        assert_eq!(all.recount(0, OWN_BYTES + 1), 1);
        assert!(all.has_room_for(OWN_BYTES) && !all.has_room_for(OWN_BYTES + 1));
    }
}
