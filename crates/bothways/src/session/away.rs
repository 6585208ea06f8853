//! Sessions whose clients are away: each waits for its client, for so long, and with so many others.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Registry, Session, State};
use crate::clock::after;

/// Those who wait, in the order in which their clients left, and some whose clients are back.
#[derive(Default)]
pub(super) struct Away {
    queue: Mutex<VecDeque<Waiting>>,
    /// Sessions that are away now. Changed under the lock of each.
    count: AtomicUsize,
    /// Held by whoever makes room, so that two who do it at once do not make twice as much as is needed.
    making_room: Mutex<()>,
}

struct Waiting {
    until: Instant,
    session: Session,
    /// It has been back since if this is not its generation any more.
    generation: u64,
}

impl Waiting {
    fn is_still(&self, state: &State) -> bool {
        state.generation == self.generation && state.is_away()
    }
}

impl Away {
    /// Sessions whose clients are away.
    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// A session changes, under its lock: it counts as what it is afterwards.
    pub(super) fn recount(&self, was_away: bool, is_away: bool) {
        match (was_away, is_away) {
            (false, true) => self.count.fetch_add(1, Ordering::Relaxed),
            (true, false) => self.count.fetch_sub(1, Ordering::Relaxed),
            _ => return,
        };
    }

    /// The one whose client left first, among those that are away still.
    fn longest(&self) -> Option<Waiting> {
        let mut queue = self.queue.lock();
        loop {
            let first = queue.pop_front()?;
            if first.is_still(&first.session.inner.state.lock()) {
                return Some(first);
            }
        }
    }

    /// Those who have waited long enough. Who is back is forgotten.
    fn over(&self, now: Instant) -> Vec<Waiting> {
        let mut over = Vec::new();
        let mut queue = self.queue.lock();
        queue.retain(|waiting| waiting.is_still(&waiting.session.inner.state.lock()));
        while queue.front().is_some_and(|first| first.until <= now) {
            over.extend(queue.pop_front());
        }
        if queue.len() < queue.capacity() / 8 {
            queue.shrink_to_fit();
        }
        over
    }
}

impl State {
    /// True while it waits for its client.
    pub(super) fn is_away(&self) -> bool {
        self.connection.is_none() && self.lost_at().is_some() && self.resumable && !self.ended
    }

    /// True if its client has stayed away for as long as it might: the next sweep ends it.
    pub(super) fn is_past(&self, window: Duration) -> bool {
        self.is_away() && self.lost_at().is_some_and(|lost_at| window <= lost_at.elapsed())
    }
}

impl Registry {
    /// Keeps a session whose client has just left. If too many wait by now, the one that does so longest ends.
    pub(super) fn wait_for_client(&self, session: Session, generation: u64) {
        let until = after(self.options().resume_window);
        self.away.queue.lock().push_back(Waiting { until, session, generation });
        let max = self.options().away_max;
        if self.away.len() <= max {
            return;
        }
        let _turn = self.away.making_room.lock();
        while max < self.away.len() {
            let Some(longest) = self.away.longest() else { return };
            self.end_away(&longest, "more clients were away than `sessions_away_max`, and its client for longest");
        }
    }

    /// Ends the sessions whose window is over.
    pub(super) fn sweep_away(&self, now: Instant) {
        let over = self.away.over(now);
        for waiting in &over {
            self.end_away(waiting, "its client did not come back within `resume_window`");
        }
        if let Some(first) = over.first() {
            let (sessions, first) = (over.len(), first.session.id());
            tracing::info!(sessions, %first, "sessions expired: their clients did not come back");
        }
    }

    fn end_away(&self, waiting: &Waiting, why: &str) {
        // Its client may have come back this moment.
        self.remove_if(&waiting.session, Some(why), None, |state| waiting.is_still(state));
    }
}
