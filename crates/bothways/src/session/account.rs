//! The totals of one user's sessions: bytes in their logs, and running calls. A user with many devices is bounded as
//! one.
//!
//! Numbers, shared by the ledgers of the user's sessions: a push touches one, and no lock over sessions.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Notify;

use super::lock::{self, Changes, Wake};

/// See the module.
#[derive(Debug)]
pub(super) struct Account {
    held_bytes: AtomicUsize,
    calls: AtomicUsize,
    bytes_max: usize,
    /// Told when there is more room than before.
    pub(super) room: Notify,
}

impl Changes for Account {
    fn tell(&self) {
        self.room.notify_waiters();
    }
}

impl Account {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { held_bytes: AtomicUsize::new(0), calls: AtomicUsize::new(0), bytes_max, room: Notify::new() }
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

    pub(super) fn give_back(self: &Arc<Self>, bytes: usize) {
        if 0 < bytes {
            self.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
            lock::wake(Wake::Of(Arc::clone(self) as Arc<dyn Changes>));
        }
    }

    /// True if so much would be taken now.
    pub(super) fn has_room_for(&self, bytes: usize) -> bool {
        self.fits(self.held_bytes.load(Ordering::Relaxed), bytes)
    }

    /// A place for one more call of the user. `Err`: as many as may run do.
    pub(super) fn begin_call(self: &Arc<Self>, calls_max: usize) -> Result<UserCall, usize> {
        let running = self.calls.fetch_add(1, Ordering::AcqRel);
        let call = UserCall(Arc::clone(self));
        if running < calls_max { Ok(call) } else { Err(running) }
    }

    fn fits(&self, held: usize, bytes: usize) -> bool {
        fits(held, bytes, self.bytes_max)
    }

    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes.load(Ordering::Relaxed)
    }
}

/// True if so many bytes may be taken beside those that are held: whatever it is, if nothing is.
pub(super) fn fits(held: usize, bytes: usize, bytes_max: usize) -> bool {
    held == 0 || held.saturating_add(bytes) <= bytes_max
}

/// A call of a user that runs; gives its place back when dropped.
#[derive(Debug)]
pub(crate) struct UserCall(Arc<Account>);

impl Drop for UserCall {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::AcqRel);
    }
}
