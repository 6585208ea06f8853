//! The lock of a session, and what waits until it is free.
//!
//! A push ends while its session is locked, and a task that waits for its receipt is to be woken. A waker belongs to
//! the task that waits: that of another executor may look at the session. So nobody is woken while a thread holds such
//! a lock; when it has let go of the last one, all are.

use std::{
    cell::{Cell, RefCell},
    ops::{Deref, DerefMut},
    sync::Arc,
    task::Waker,
};

use parking_lot::{Mutex, MutexGuard};

thread_local! {
    /// Locks that this thread holds.
    static HELD: Cell<usize> = const { Cell::new(0) };
    /// There are some of the next.
    static HAS_WAKES: Cell<bool> = const { Cell::new(false) };
    /// Whom it is to wake after them.
    static WAKES: RefCell<Vec<Wake>> = const { RefCell::new(Vec::new()) };
}

#[cfg(test)]
thread_local! {
    /// How often this thread took such a lock.
    pub(super) static TAKEN: Cell<usize> = const { Cell::new(0) };
}

/// Something that others wait for.
pub(super) trait Changes: Send + Sync {
    /// Wakes them.
    fn tell(&self);
}

/// The wakers that are to be called.
pub(super) enum Wake {
    Of(Arc<dyn Changes>),
    Reader(Waker),
}

impl Wake {
    fn now(self) {
        match self {
            Self::Of(changes) => changes.tell(),
            Self::Reader(waker) => waker.wake(),
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Of(a), Self::Of(b)) => Arc::as_ptr(a).cast::<()>() == Arc::as_ptr(b).cast::<()>(),
            _ => false,
        }
    }
}

/// Wakes once this thread holds no lock of a session: now, if it holds none.
pub(super) fn wake(wake: Wake) {
    if HELD.get() == 0 {
        return wake.now();
    }
    HAS_WAKES.set(true);
    WAKES.with_borrow_mut(|wakes| {
        // Many targets of one push may end together.
        if !wakes.last().is_some_and(|last| last.is_same(&wake)) {
            wakes.push(wake);
        }
    });
}

/// See the module.
#[derive(Debug)]
pub(super) struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    pub(super) fn new(state: T) -> Self {
        Self(Mutex::new(state))
    }

    pub(super) fn lock(&self) -> Locked<'_, T> {
        #[cfg(test)]
        TAKEN.set(TAKEN.get() + 1);
        let held = Held::begin();
        Locked { state: self.0.lock(), _held: held }
    }
}

/// What is locked.
pub(super) struct Locked<'a, T> {
    // Fields are dropped in this order: the lock is free before anybody is woken.
    state: MutexGuard<'a, T>,
    _held: Held,
}

impl<T> Deref for Locked<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.state
    }
}

impl<T> DerefMut for Locked<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.state
    }
}

/// This thread holds a lock, or several that belong together: nobody is woken before it has let go of all. Not to be
/// sent to another one, as the guard beside it.
pub(super) struct Held(std::marker::PhantomData<*const ()>);

impl Held {
    pub(super) fn begin() -> Self {
        HELD.set(HELD.get() + 1);
        Self(std::marker::PhantomData)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let held = HELD.get() - 1;
        HELD.set(held);
        if held == 0 && HAS_WAKES.get() {
            wake_all();
        }
    }
}

#[cold]
fn wake_all() {
    // A waker may lock again, and leave more behind.
    while HAS_WAKES.replace(false) {
        WAKES.take().into_iter().for_each(Wake::now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Looks(Lock<u32>);

    impl std::task::Wake for Looks {
        fn wake(self: Arc<Self>) {
            *self.0.0.try_lock().expect("nobody holds it") += 1;
        }
    }

    /// A waker finds every lock free, however many the thread held: it is called once the thread holds none.
    #[test]
    fn nobody_is_woken_under_a_lock() {
        let (looks, other) = (Arc::new(Looks(Lock::new(0))), Lock::new(()));
        let waker = || Wake::Reader(Waker::from(Arc::clone(&looks)));
        wake(waker());
        assert_eq!(*looks.0.lock(), 1, "at once");
        let outer = other.lock();
        let inner = looks.0.lock();
        wake(waker());
        drop(inner);
        wake(waker());
        assert_eq!(*looks.0.0.lock(), 1, "not while the other one is held");
        drop(outer);
        assert_eq!(*looks.0.lock(), 3);
    }
}
