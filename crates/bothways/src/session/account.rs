//! The totals of one user's sessions: bytes in their logs, and running calls. A user with many devices is bounded as
//! one.
//!
//! Numbers, shared by the ledgers of the user's sessions: a push touches one, and no lock over sessions.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
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
    /// Where it is kept, if calls are counted.
    home: Option<Box<dyn Home>>,
    /// The user has no session: the end of the last call takes it out of the table.
    is_left: AtomicBool,
}

/// The table that an account which counts calls is kept in.
pub(super) trait Home: std::fmt::Debug + Send + Sync {
    /// The last call that this account counted is over, and its user has no session.
    fn forget(&self, account: &Arc<Account>);
}

impl Changes for Account {
    fn tell(&self) {
        self.room.notify_waiters();
    }
}

impl Account {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            held_bytes: AtomicUsize::new(0),
            calls: AtomicUsize::new(0),
            bytes_max,
            room: Notify::new(),
            home: None,
            is_left: AtomicBool::new(false),
        }
    }

    /// One that counts calls, and stays in its table until the last of them is over.
    pub(super) fn at_home(bytes_max: usize, home: impl Home + 'static) -> Self {
        Self { home: Some(Box::new(home)), ..Self::new(bytes_max) }
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

    /// Counts one more call of the user. Answers as well how many ran before.
    pub(super) fn begin_call(self: &Arc<Self>) -> (UserCall, usize) {
        // One order for this and `is_left`: the last call or the last session, whichever ends later, sees the other.
        let running = self.calls.fetch_add(1, Ordering::SeqCst);
        (UserCall(Arc::clone(self)), running)
    }

    /// The user has no session any more. True: calls of the user run still, and the account stays for them.
    pub(super) fn outlives_sessions(&self) -> bool {
        self.is_left.store(true, Ordering::SeqCst);
        self.runs_calls()
    }

    /// The user has a session.
    pub(super) fn note_session(&self) {
        self.is_left.store(false, Ordering::SeqCst);
    }

    pub(super) fn runs_calls(&self) -> bool {
        0 < self.calls.load(Ordering::SeqCst)
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

/// A call of a user that runs; gives its place back when dropped, which no thread does that has locked a session.
#[derive(Debug)]
pub(crate) struct UserCall(Arc<Account>);

impl Drop for UserCall {
    fn drop(&mut self) {
        let is_last = self.0.calls.fetch_sub(1, Ordering::SeqCst) == 1;
        if is_last
            && self.0.is_left.load(Ordering::SeqCst)
            && let Some(home) = &self.0.home
        {
            home.forget(&self.0);
        }
    }
}
