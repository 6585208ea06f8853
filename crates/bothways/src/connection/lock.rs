//! The lock of a connection, and what waits until it is free.
//!
//! Wakers belong to the tasks that wait: an executor's own waker may look at the connection it is woken for. So do the
//! payloads of an application, which may be dropped here. Neither runs under the lock: a guard collects them, and
//! lets them run when it has let go.

use std::{
    mem::ManuallyDrop,
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};

use bothways_proto::Message;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot};

use super::{
    ConnectionId, State,
    wheel::{Place, Wheel},
};
use crate::{error::CallError, guard};

#[cfg(test)]
thread_local! {
    /// How often this thread took such a lock.
    pub(crate) static LOCKS_TAKEN: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Where the answer to a call is told.
type Reply = oneshot::Sender<Result<Message, CallError>>;

/// See the module.
pub(super) struct StateLock {
    id: ConnectionId,
    wheel: Arc<Wheel>,
    state: Mutex<State>,
}

impl StateLock {
    pub(super) fn new(id: ConnectionId, wheel: Arc<Wheel>, state: State) -> Self {
        Self { id, wheel, state: Mutex::new(state) }
    }

    pub(super) fn id(&self) -> ConnectionId {
        self.id
    }

    pub(super) fn wheel(&self) -> &Wheel {
        &self.wheel
    }

    /// Anyone who takes the lock may change something: the connection is looked at in the next turn.
    #[inline]
    pub(super) fn lock(&self) -> Locked<'_> {
        #[cfg(test)]
        LOCKS_TAKEN.set(LOCKS_TAKEN.get() + 1);
        let mut state = self.state.lock();
        if !state.place.soon {
            self.look_soon(&mut state);
        }
        Locked { state, later: Later::default() }
    }

    /// The lock for who looks at the connection, which alone is nothing to look at.
    pub(super) fn lock_to_look(&self) -> Locked<'_> {
        Locked { state: self.state.lock(), later: Later::default() }
    }

    #[cold]
    fn look_soon(&self, state: &mut State) {
        self.wheel.look_soon(self.id, &mut state.place);
    }

    /// When it is looked at next.
    pub(super) fn look_again(&self, place: &mut Place, next: NextLook, turn: Duration) {
        match next {
            NextLook::Never => {}
            NextLook::Soon => self.wheel.look_soon(self.id, place),
            NextLook::Within(time) => {
                let turns = time.as_nanos().div_ceil(turn.as_nanos().max(1));
                self.wheel.look_later(self.id, place, usize::try_from(turns).unwrap_or(usize::MAX));
            }
        }
    }
}

/// When there is something to look at again, if nothing happens until then.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum NextLook {
    Never,
    Soon,
    Within(Duration),
}

/// The state, under the lock.
pub(super) struct Locked<'a> {
    // Fields are dropped in this order: the lock is free before anybody is woken.
    state: MutexGuard<'a, State>,
    later: Later<'a>,
}

impl<'a> Locked<'a> {
    /// Wakes everyone who waits for this, once the lock is free.
    pub(super) fn notify(&mut self, changed: &'a Notify) {
        self.later.changed = Some(changed);
    }

    /// Tells the caller how its call ended, once the lock is free.
    pub(super) fn answer(&mut self, reply: Reply, error: CallError) {
        self.later.more().answers.push((reply, error));
    }

    /// Drops this once the lock is free.
    pub(super) fn drop_later(&mut self, value: impl Send + 'static) {
        self.later.more().dropped.push(Box::new(value));
    }

    /// Lets go of the lock. What waits for that is done when the answer is dropped.
    pub(super) fn unlock(self) -> impl Sized + use<'a> {
        self.later
    }

    /// Drops what the outbox has given up, once the lock is free.
    #[inline(always)]
    pub(super) fn drop_forgotten(&mut self) {
        if self.outbox.has_dropped() {
            self.drop_them_later();
        }
    }

    #[cold]
    fn drop_them_later(&mut self) {
        for dropped in self.outbox.take_dropped() {
            self.drop_later(dropped);
        }
    }
}

impl Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

/// What is done when the lock is free.
#[derive(Default)]
struct Later<'a> {
    changed: Option<&'a Notify>,
    /// Done when this is dropped, and `None` behind that: looking once spares each lock a call.
    more: ManuallyDrop<Option<Box<More>>>,
}

#[derive(Default)]
struct More {
    answers: Vec<(Reply, CallError)>,
    dropped: Vec<Box<dyn Send>>,
}

impl Later<'_> {
    fn more(&mut self) -> &mut More {
        self.more.get_or_insert_default()
    }
}

impl Drop for Later<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.more.is_some() || self.changed.is_some() {
            self.act();
        }
    }
}

impl Later<'_> {
    #[cold]
    fn act(&mut self) {
        if let Some(more) = self.more.take() {
            for (reply, error) in more.answers {
                // Nobody listens if the call's future was dropped this moment.
                let _ = reply.send(Err(error));
            }
            more.dropped.into_iter().for_each(|dropped| guard::drop_of(guard::VALUE, dropped));
        }
        if let Some(changed) = self.changed.take() {
            changed.notify_waiters();
        }
    }
}
