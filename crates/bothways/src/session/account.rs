//! Bytes that the logs of one user's sessions hold together: a user with many devices is bounded as one.
//!
//! One number, shared by the ledgers of the user's sessions: a push touches it, and no lock over sessions.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// See the module.
#[derive(Debug)]
pub(super) struct Account {
    held_bytes: AtomicUsize,
    bytes_max: usize,
    /// Told when there is more room than before.
    pub(super) room: Notify,
}

impl Account {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { held_bytes: AtomicUsize::new(0), bytes_max, room: Notify::new() }
    }

    /// Takes so much, if there is room; whatever it is, if nothing is held.
    pub(super) fn take(&self, bytes: usize) -> bool {
        let taken = self
            .held_bytes
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |held| self.fits(held, bytes).then_some(held + bytes));
        taken.is_ok()
    }

    /// Takes what is held already, or must be.
    pub(super) fn take_anyway(&self, bytes: usize) {
        self.held_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn give_back(&self, bytes: usize) {
        if 0 < bytes {
            self.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.room.notify_waiters();
        }
    }

    /// True if so much would be taken now.
    pub(super) fn has_room_for(&self, bytes: usize) -> bool {
        self.fits(self.held_bytes.load(Ordering::Relaxed), bytes)
    }

    fn fits(&self, held: usize, bytes: usize) -> bool {
        held == 0 || held.saturating_add(bytes) <= self.bytes_max
    }

    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes.load(Ordering::Relaxed)
    }
}
