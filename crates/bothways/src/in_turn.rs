//! Queues of futures: those about one key run one after another, in the order in which they were made.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// A line for each thing of which something is under way. What is in it is bounded by who joins: a place is held while
/// a call is under way.
#[derive(Debug)]
pub(crate) struct Lines<K>(Mutex<HashMap<K, VecDeque<Arc<Notify>>>>);

impl<K> Default for Lines<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash> Lines<K> {
    /// A place at the end of a line.
    pub(crate) fn join(self: &Arc<Self>, of: K) -> Place<K> {
        let waits = Arc::new(Notify::new());
        self.0.lock().entry(of.clone()).or_default().push_back(Arc::clone(&waits));
        Place { lines: Arc::clone(self), of, waits }
    }
}

/// A place in a line, left when it is dropped.
#[derive(Debug)]
pub(crate) struct Place<K: Eq + Hash> {
    lines: Arc<Lines<K>>,
    of: K,
    waits: Arc<Notify>,
}

impl<K: Eq + Hash> Place<K> {
    /// Nobody is before it.
    pub(crate) fn is_first(&self) -> bool {
        let lines = self.lines.0.lock();
        lines.get(&self.of).and_then(VecDeque::front).is_some_and(|first| Arc::ptr_eq(first, &self.waits))
    }

    /// Waits until nobody is before it.
    pub(crate) async fn turn(&self) {
        while !self.is_first() {
            self.waits.notified().await;
        }
    }
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut lines = self.lines.0.lock();
        let Some(line) = lines.get_mut(&self.of) else { return };
        line.retain(|waits| !Arc::ptr_eq(waits, &self.waits));
        let next = line.front().cloned();
        if next.is_none() {
            lines.remove(&self.of);
        }
        drop(lines);
        // A waker belongs to the task that waits: it is called when nothing is locked. A task that is first already
        // looks in vain.
        if let Some(next) = next {
            next.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Those in one line have their turn in the order in which they joined it, also when one of them gives up; other
    /// lines do not wait for them, and nothing is left.
    #[tokio::test(start_paused = true)]
    async fn who_joins_first_has_the_first_turn() {
        let lines = Arc::new(Lines::default());
        let (first, second) = (lines.join("a"), lines.join("a"));
        let (third, other) = (lines.join("a"), lines.join("b"));
        let is_next = async |place: &Place<&str>| {
            let waited = tokio::time::timeout(Duration::from_secs(1), place.turn()).await;
            waited.is_ok()
        };
        assert!(is_next(&first).await && is_next(&other).await);
        assert!(!is_next(&second).await && !is_next(&third).await);
        drop(second);
        assert!(!is_next(&third).await, "the first one is still there");
        let (left, ()) = tokio::join!(is_next(&third), async { drop(first) });
        assert!(left);
        drop((third, other));
        assert!(lines.0.lock().is_empty());
    }
}
