//! Keeps pushes apart from sessions that come and go: a push is on its way to the sessions of this node before one does, or
//! after that.

use std::cell::Cell;

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

thread_local! {
    /// What this thread has on its way, through any gate.
    static STAYS: Cell<usize> = const { Cell::new(0) };
}

/// See the module. Locked before all others.
#[derive(Debug, Default)]
pub(crate) struct Gate(RwLock<()>);

/// A push is on its way.
pub(crate) struct Stay<'a>(#[expect(dead_code, reason = "it is dropped")] RwLockReadGuard<'a, ()>);

impl Gate {
    /// A push is on its way while this is kept. It waits behind who waits to be alone: else pushes of several threads, one of
    /// which is always on its way, would let no session come or go. Not where this thread has one on its way already.
    pub(crate) fn stay(&self) -> Stay<'_> {
        let is_first = STAYS.get() == 0;
        let stay = if is_first { self.0.read() } else { self.0.read_recursive() };
        STAYS.set(STAYS.get() + 1);
        Stay(stay)
    }

    /// No push is on its way while this is kept.
    pub(crate) fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.0.write()
    }
}

impl Drop for Stay<'_> {
    fn drop(&mut self) {
        STAYS.set(STAYS.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Duration};

    use super::*;

    /// However many pushes there are, who waits to be alone is let in when those are through that were on their way before;
    /// and what one of these pushes itself does not wait.
    #[test]
    fn who_waits_to_be_alone_is_let_in() {
        let gate = Gate::default();
        let (tell, told) = mpsc::channel();
        thread::scope(|scope| {
            let first = gate.stay();
            let (gate, also_tell) = (&gate, tell.clone());
            scope.spawn(move || {
                let _alone = gate.alone();
                also_tell.send("alone")
            });
            while !gate.0.is_locked_exclusive() {
                thread::yield_now();
            }
            drop(gate.stay());

            scope.spawn(move || {
                let _stay = gate.stay();
                tell.send("stays")
            });
            assert!(told.recv_timeout(Duration::from_millis(50)).is_err(), "it comes behind");
            drop(first);
            assert_eq!([told.recv(), told.recv()], [Ok("alone"), Ok("stays")]);
        });
    }
}
