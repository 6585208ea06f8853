//! One value for many threads that only read it: each takes it from a place that few others use.
//!
//! A clone of one shared `Arc` moves a line of memory from core to core with each call, and so does a lock. Here each
//! place has an `Arc` of its own.

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;

/// Places: threads beyond them share.
const PLACES: usize = 8;

thread_local! {
    static PLACE: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// The place of this thread.
fn place() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    if PLACE.get() == usize::MAX {
        PLACE.set(NEXT.fetch_add(1, Ordering::Relaxed) % PLACES);
    }
    PLACE.get()
}

/// See the module.
pub(super) struct Snapshots<T>([Place<T>; PLACES]);

/// As large as what a core takes at once, with its neighbour.
#[repr(align(128))]
struct Place<T>(Mutex<Option<Arc<T>>>);

impl<T> Default for Snapshots<T> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Place(Mutex::default())))
    }
}

impl<T> Snapshots<T> {
    /// The value, if there is one.
    #[inline]
    pub(super) fn get(&self) -> Option<Arc<T>> {
        self.0[place()].0.lock().clone()
    }

    /// Another value from now on, which is made for each place, or none. The one before may be in use for a while.
    pub(super) fn set(&self, make: impl Fn() -> Option<T>) {
        for Place(place) in &self.0 {
            let before = std::mem::replace(&mut *place.lock(), make().map(Arc::new));
            drop(before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every thread sees the value that was set last.
    #[test]
    fn every_thread_sees_what_was_set_last() {
        let snapshots = Snapshots::default();
        for value in [Some(1), Some(2), None, Some(3)] {
            snapshots.set(|| value);
            std::thread::scope(|scope| {
                for _ in 0..2 * PLACES {
                    scope.spawn(|| assert_eq!(snapshots.get().as_deref(), value.as_ref()));
                }
            });
        }
    }
}
