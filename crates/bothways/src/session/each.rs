//! How a push ended for each of its targets, as it happens. Kept only for a push that asks for it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use futures_core::Stream;
use parking_lot::Mutex;

use super::{
    SessionId,
    lock::{self, Wake},
    receipt::Stage,
};

/// How each target of a push ended: its session, and the [final](Stage::is_final) stage. Each comes
/// once, in the order in which they ended. The stream ends after the last target, at once if there
/// is none.
///
/// A [`Stream`], from [`Receipt::each`](super::Receipt::each). It begins with the first target that
/// ended, whenever it was made. It keeps 24 bytes for each target until it and all copies of its
/// receipt are dropped. Dropping it changes nothing else: the receipt counts on.
#[derive(Debug)]
pub struct TargetOutcomes {
    each: Arc<Each>,
    /// Its number among the streams of this push.
    number: u64,
    /// Outcomes that it has returned.
    told: usize,
}

/// Where tickets note their ends.
#[derive(Debug, Default)]
pub(super) struct Each {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    targets: Vec<SessionId>,
    /// The places of those that have ended, in the order of their ends.
    ended: Vec<(u32, Stage)>,
    /// Streams that were ever made.
    streams: u64,
    /// Of the streams that wait, with their numbers.
    wakers: Vec<(u64, Waker)>,
}

impl Each {
    /// One more target. Returns its place.
    pub(super) fn enter(&self, session: SessionId) -> u32 {
        let mut state = self.state.lock();
        state.targets.push(session);
        // Four thousand million sessions are more than one process has.
        state.targets.len() as u32 - 1
    }

    /// The target at this place has come to its end.
    pub(super) fn end(&self, place: u32, stage: Stage) {
        let mut state = self.state.lock();
        state.ended.push((place, stage));
        let wakers = std::mem::take(&mut state.wakers);
        // Wakers are an executor's own: not under the lock.
        drop(state);
        wakers.into_iter().for_each(|(_, waker)| lock::wake(Wake::Reader(waker)));
    }
}

impl TargetOutcomes {
    /// From the first that ended. All targets are entered before anybody reads.
    pub(super) fn new(each: Arc<Each>) -> Self {
        let number = {
            let mut state = each.state.lock();
            state.streams += 1;
            state.streams
        };
        Self { each, number, told: 0 }
    }

    /// The next target that has ended; `None` after the last. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<(SessionId, Stage)> {
        std::future::poll_fn(|cx| self.poll_take(cx)).await
    }

    fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<Option<(SessionId, Stage)>> {
        let mut state = self.each.state.lock();
        if let Some((place, stage)) = state.ended.get(self.told).copied() {
            self.told += 1;
            return Poll::Ready(Some((state.targets[place as usize], stage)));
        }
        if self.told == state.targets.len() {
            return Poll::Ready(None);
        }

        let before = state.take_waker(self.number);
        state.wakers.push((self.number, cx.waker().clone()));
        // An executor's own: not under the lock.
        drop(state);
        drop(before);
        Poll::Pending
    }
}

impl State {
    fn take_waker(&mut self, number: u64) -> Option<Waker> {
        let at = self.wakers.iter().position(|(of, _)| *of == number)?;
        Some(self.wakers.swap_remove(at).1)
    }
}

impl Stream for TargetOutcomes {
    type Item = (SessionId, Stage);

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_take(cx)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.each.state.lock().targets.len() - self.told;
        (left, Some(left))
    }
}

impl Drop for TargetOutcomes {
    fn drop(&mut self) {
        let waker = self.each.state.lock().take_waker(self.number);
        drop(waker);
    }
}
