//! Futures that run side by side: only those that were woken are polled, and at most a given number run at once.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, Wake, Waker},
};

use parking_lot::Mutex;

/// Futures that are polled before others have their turn.
const AT_ONCE: usize = 64;

type BoxedFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// See the module. Dropping it drops all that have not ended.
pub(super) struct SideBySide<'a, T> {
    /// Each at its place, until it ends.
    futures: Vec<Option<(BoxedFuture<'a, T>, Arc<Place>)>>,
    running: usize,
    woken: Arc<Woken>,
}

/// Which of them were woken.
#[derive(Default)]
struct Woken {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Each place once.
    places: VecDeque<usize>,
    reader: Option<Waker>,
}

/// One future's place, as its waker.
struct Place {
    at: usize,
    woken: Weak<Woken>,
    is_queued: Mutex<bool>,
}

impl Wake for Place {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let Some(woken) = self.woken.upgrade() else { return };
        if std::mem::replace(&mut *self.is_queued.lock(), true) {
            return;
        }
        let reader = {
            let mut state = woken.state.lock();
            state.places.push_back(self.at);
            state.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

impl<'a, T> SideBySide<'a, T> {
    pub(super) fn new(futures: impl Iterator<Item = BoxedFuture<'a, T>>) -> Self {
        let woken = Arc::<Woken>::default();
        let place = |at| Arc::new(Place { at, woken: Arc::downgrade(&woken), is_queued: Mutex::new(true) });
        let futures: Vec<_> = futures.enumerate().map(|(at, future)| Some((future, place(at)))).collect();
        woken.state.lock().places.extend(0..futures.len());
        Self { running: futures.len(), futures, woken }
    }

    /// The next that ends, with its place; `None` when all have. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Option<(usize, T)> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`Self::next`], without waiting: `None` also if none has ended by now.
    pub(super) async fn next_by_now(&mut self) -> Option<(usize, T)> {
        poll_fn(|cx| match self.poll_next(cx) {
            Poll::Pending => Poll::Ready(None),
            ready => ready,
        })
        .await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<(usize, T)>> {
        if self.running == 0 {
            return Poll::Ready(None);
        }

        for _ in 0..AT_ONCE {
            // Free before the poll: a future may be woken there, which takes this lock.
            let at = {
                let mut state = self.woken.state.lock();
                let Some(at) = state.places.pop_front() else {
                    let before = state.reader.replace(cx.waker().clone());
                    drop(state);
                    // An executor's own: not under the lock.
                    drop(before);
                    return Poll::Pending;
                };
                at
            };

            let Some((future, place)) = &mut self.futures[at] else { continue };
            // What wakes it from here on is news.
            *place.is_queued.lock() = false;
            let waker = Waker::from(Arc::clone(place));
            if let Poll::Ready(ended) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                self.futures[at] = None;
                self.running -= 1;
                return Poll::Ready(Some((at, ended)));
            }
        }

        // There may be more: polled again once others had their turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::oneshot;

    use super::*;

    /// A crowd that ends one by one is polled twice each: when it begins and when it ends.
    #[tokio::test(start_paused = true)]
    async fn only_what_was_woken_is_polled() {
        const CROWD: usize = 2000;
        let polls = AtomicUsize::new(0);
        let (ends, waits): (Vec<_>, Vec<_>) = (0..CROWD).map(|_| oneshot::channel::<usize>()).unzip();
        let mut all = SideBySide::new(waits.into_iter().map(|mut wait| -> BoxedFuture<'_, usize> {
            let polls = &polls;
            Box::pin(poll_fn(move |cx| {
                polls.fetch_add(1, Ordering::Relaxed);
                Pin::new(&mut wait).poll(cx).map(|end| end.unwrap_or(usize::MAX))
            }))
        }));
        let first = tokio::time::timeout(std::time::Duration::from_millis(1), all.next()).await;
        assert!(first.is_err(), "none has ended");
        assert!(polls.load(Ordering::Relaxed) <= CROWD + CROWD / 10);
        for (at, end) in ends.into_iter().enumerate().rev() {
            end.send(at).expect("it waits");
            assert_eq!(all.next().await, Some((at, at)));
        }
        assert_eq!(all.next().await, None);
        // Beside these, some that the runtime makes give way.
        let polls = polls.load(Ordering::Relaxed);
        assert!(polls <= 2 * CROWD + CROWD / 10, "{polls} polls");
    }

    /// What is dropped gives up what has not ended; and who wakes it afterwards wakes nobody.
    #[tokio::test(start_paused = true)]
    async fn what_is_dropped_drops_all() {
        let (end, wait) = oneshot::channel::<()>();
        let mut all = SideBySide::new(std::iter::once::<BoxedFuture<'_, bool>>(Box::pin(async { wait.await.is_ok() })));
        tokio::time::timeout(std::time::Duration::from_millis(1), all.next()).await.expect_err("it waits");
        drop(all);
        assert!(end.is_closed());
    }
}
