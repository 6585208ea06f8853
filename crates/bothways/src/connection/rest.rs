//! An idle connection has no task: what tokio keeps for a task is more than the rest of an idle connection.
//!
//! ```text
//!            the socket has something          polled
//!  Resting ─────────────────────────► Made ─────────► Task ──┐
//!     │ ▲                              ▲               │     │ reads go on, bytes wait, a part of a frame
//!     │ └──────────────────────────────┼───────────────┘ ◄───┘ came, or it is about to end
//!     │    somebody needs the task     │  nothing to do
//!     └───────────────► Called ────────┘
//! ```
//!
//! What was made for one read goes when that is handled: it is one turn of a task that [reads](super::readers) for many.
//! From the second read within a tick of the [watch](super::watch) on it is a task that stays, for one to each read would
//! be dearer than the memory; it goes after a tick that saw nothing come. Only a server's sockets of the system rest. Others stay awake: their wake-ups may die
//! with their runtime, and nobody would learn that the connection is over.

use std::{
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, Wake, Waker},
};

use tokio::runtime::Handle;

use super::{BEHIND, Connection, Shared, State, driver::Driver};

/// The task that reads, and writes when the socket was full.
pub(super) enum Driving {
    /// Nobody. The socket has a task made when something comes.
    Resting,
    /// Somebody needs the task, and holds the lock: it is made from elsewhere.
    Called,
    /// A task that has not run yet, and looks at everything when it does.
    Made,
    Task(Waker),
}

impl Driving {
    /// The task runs, as this one.
    pub(super) fn note(&mut self, waker: &Waker) {
        match self {
            Self::Task(same) if same.will_wake(waker) => {}
            _ => *self = Self::Task(waker.clone()),
        }
    }
}

/// The socket wakes a connection at rest.
impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        let mut state = self.state.lock();
        state.woken_by_socket = true;
        match &state.driving {
            Driving::Made => {}
            Driving::Task(task) => task.wake_by_ref(),
            Driving::Resting | Driving::Called => {
                // The task takes the lock when it is made, and, if its runtime shuts down, ends the connection.
                drop(state);
                Connection { shared: self }.make_driver();
            }
        }
    }
}

impl Connection {
    /// Starts: at rest, if there is nothing to read yet.
    pub(super) fn begin(&self) {
        let rests = self.runtime().is_some() && {
            let waker = Waker::from(Arc::clone(&self.shared));
            self.shared.socket.poll_rest(&mut Context::from_waker(&waker)) == Some(Poll::Pending)
        };
        if !rests {
            self.make_driver();
        }
    }

    /// Makes the task, unless somebody else did. Not under the lock: a runtime that shuts down drops it on the
    /// spot, and it ends the connection then.
    fn make_driver(&self) {
        let mut state = self.shared.state.lock();
        if !matches!(state.driving, Driving::Resting | Driving::Called) {
            return;
        }
        state.driving = Driving::Made;
        drop(state);
        match self.shared.handler.readers() {
            Some(readers) => readers.take(self.clone()),
            None => _ = tokio::spawn(Driver::new(self.clone())),
        }
    }

    /// Has the driver look at everything.
    pub(super) fn wake_driver(&self, state: &mut State) {
        match &state.driving {
            Driving::Task(task) => task.wake_by_ref(),
            Driving::Called | Driving::Made => {}
            Driving::Resting => {
                // Without a runtime of its own it is just beginning, and its driver about to be made.
                let Some(runtime) = self.runtime() else { return };
                state.driving = Driving::Called;
                // Dropped before it runs, because the runtime shuts down, this leaves it to the socket: it is
                // woken by the end of its runtime.
                let connection = self.clone();
                runtime.spawn(async move { connection.make_driver() });
            }
        }
    }

    /// Ends the turn of a driver: at rest (true), if it has nothing to do. `is_new`: it was made for this turn.
    pub(super) fn poll_rest(&self, is_new: bool, asked: bool) -> bool {
        let shared = &self.shared;
        let ready = |state: &State| {
            let reads = shared.reads.load(Ordering::Relaxed);
            !state.woken_by_socket
                && state.is_quiet()
                && !state.paused
                && (asked || (is_new && state.watch.reads_since(reads) <= 1))
        };

        if self.runtime().is_none() {
            return false;
        }

        {
            // Let go before the socket is asked: its waker takes the lock.
            let mut state = shared.state.lock();
            state.woken_by_socket = false;
            if !ready(&state) {
                return false;
            }
        }

        let waker = Waker::from(Arc::clone(shared));
        if shared.socket.poll_rest(&mut Context::from_waker(&waker)) != Some(Poll::Pending) {
            return false;
        }

        let mut state = shared.state.lock();
        // What has come since was for this task.
        if !ready(&state) {
            return false;
        }

        state.driving = Driving::Resting;
        shared.note_reading(BEHIND, false);
        state.outbox.shrink();
        state.proto.shrink();
        true
    }

    /// Asks a driver that had nothing to read since the last tick to rest.
    pub(super) fn ask_to_rest(&self, state: &mut State) {
        if let Driving::Task(task) = &state.driving
            && self.runtime().is_some()
            && self.shared.socket.can_rest()
        {
            state.watch.rest_wanted = true;
            task.wake_by_ref();
        }
    }

    /// Where tasks of a connection that may rest are made.
    fn runtime(&self) -> Option<&Handle> {
        self.shared.handler.readers().map(|readers| readers.runtime())
    }
}
