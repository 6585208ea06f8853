//! What became of a push for each of its targets, told as it happens; made only for who asks for it.

use std::{
    collections::VecDeque,
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

/// How each target of a push ended: its session, and the [final](Stage::is_final) stage. In the order in which they
/// ended, and each once; ends after the last, at once if there is no target.
///
/// A [`Stream`]. What nobody has read yet waits, 24 bytes for each target and no more than one outcome of each; beside
/// that, 16 bytes for each target while it is kept. Dropping it gives that back and changes nothing else: the receipt
/// counts on.
#[derive(Debug)]
pub struct TargetOutcomes {
    each: Arc<Each>,
}

/// Where tickets tell their ends.
#[derive(Debug, Default)]
pub(super) struct Each {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    targets: Vec<SessionId>,
    ended: VecDeque<(SessionId, Stage)>,
    /// Targets whose end was read.
    told: usize,
    /// Nobody reads.
    is_closed: bool,
    reader: Option<Waker>,
}

impl Each {
    /// One more target; answers its place.
    pub(super) fn enter(&self, session: SessionId) -> u32 {
        let mut state = self.state.lock();
        state.targets.push(session);
        // Four thousand million sessions are more than one process has.
        state.targets.len() as u32 - 1
    }

    /// The target at this place has come to its end.
    pub(super) fn end(&self, place: u32, stage: Stage) {
        let mut state = self.state.lock();
        if state.is_closed {
            return;
        }
        let session = state.targets[place as usize];
        state.ended.push_back((session, stage));
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            lock::wake(Wake::Reader(reader));
        }
    }
}

impl TargetOutcomes {
    /// For targets that are all entered before anybody reads.
    pub(super) fn new(each: Arc<Each>) -> Self {
        Self { each }
    }

    /// The next target that has ended; `None` once all were told. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<(SessionId, Stage)> {
        std::future::poll_fn(|cx| self.poll_take(cx)).await
    }

    fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<Option<(SessionId, Stage)>> {
        let mut state = self.each.state.lock();
        match state.ended.pop_front() {
            Some(ended) => {
                state.told += 1;
                Poll::Ready(Some(ended))
            }
            None if state.told == state.targets.len() => Poll::Ready(None),
            None => {
                let before = state.reader.replace(cx.waker().clone());
                drop(state);
                // An executor's own: not under the lock.
                drop(before);
                Poll::Pending
            }
        }
    }
}

impl Stream for TargetOutcomes {
    type Item = (SessionId, Stage);

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_take(cx)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let state = self.each.state.lock();
        let left = state.targets.len() - state.told;
        (left, Some(left))
    }
}

impl Drop for TargetOutcomes {
    fn drop(&mut self) {
        *self.each.state.lock() = State { is_closed: true, ..State::default() };
    }
}
