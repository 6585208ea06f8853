//! Replies leave after the pushes of their handlers, including pushes that a session still keeps for lack of room.
//!
//! When the socket is full, a session's pushes wait in the session, and not here. A reply whose handler may have made
//! such a push is kept back, and the session is given a [`HeldReply`], which it puts behind what it owes at this
//! moment. Whatever becomes of that, the reply leaves when the last of it has left, and never waits for the peer.

use super::{Connection, State};

/// How many pushes were made for a connection, at one moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct PushesSoFar {
    /// That were added to its outbox.
    pub(super) added: u64,
    /// How often its session kept some.
    pub(super) kept: u64,
}

/// A reply that waits for what a session owes. Dropped, it lets the reply go.
#[derive(Debug)]
pub(crate) struct HeldReply {
    connection: Connection,
    number: u64,
}

impl Drop for HeldReply {
    /// The caller may hold the lock of a session.
    fn drop(&mut self) {
        let mut state = self.connection.shared.state.lock();
        if state.outbox.release_reply(Some(self.number)) {
            // The thread that writes may have looked already.
            self.connection.wake_driver(&mut state);
        }
    }
}

impl State {
    pub(super) fn pushes_so_far(&self) -> PushesSoFar {
        PushesSoFar { added: self.outbox.pushes_added(), kept: self.outbox.pushes_kept() }
    }

    /// True if a reply may wait for what a session keeps: it is sent as soon as the socket takes it.
    pub(super) fn may_hold_replies(&self) -> bool {
        self.takes_pushes()
    }

    /// Its session sends nothing more on this connection: no reply waits for that.
    pub(super) fn release_replies(&mut self) {
        debug_assert!(!self.takes_pushes(), "pushes may follow");
        while self.outbox.release_reply(None) {}
    }
}

impl Connection {
    /// What its session was pushed before, and puts off, is before what is sent from here on. Its caller holds no lock.
    #[inline]
    pub(super) fn catch_up(&self) {
        if self.is_adopted() {
            self.shared.handler.catch_up(self);
        }
    }

    /// Its session keeps a push for which there is no room, or that a task of its own is to write: replies of handlers
    /// that run now ask whether it is theirs.
    pub(crate) fn note_kept_push(&self) {
        self.shared.state.lock().outbox.note_kept_push();
    }

    pub(super) fn held_reply(&self, number: u64) -> HeldReply {
        HeldReply { connection: self.clone(), number }
    }
}
