//! Sessions whose clients are away: each waits for its client, for so long, and with so many others.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    Registry, Session, SessionId,
    endings::{Ending, NotResumed},
    ranks::Ranks,
    registry::ENDED_AT_ONCE,
    state::State,
};
use crate::{connection::Connection, peer};

/// Those who wait, by when their clients left.
#[derive(Default)]
pub(super) struct Away {
    /// Locked under the lock of a session, and never the other way round. Of a session that is back at this moment it
    /// may still have one.
    waiting: Mutex<Table>,
    /// Sessions that are away now. Changed under the lock of each.
    count: AtomicUsize,
    /// Held by whoever makes room, so that two who do it at once do not make twice as much as is needed.
    making_room: Mutex<()>,
}

type Key = (Instant, SessionId);

/// All that wait, and who makes way first when they are too many: those whose end costs their clients nothing, and then
/// the others; of either kind one of whoever has most, so that nobody drives out those of others.
#[derive(Default)]
struct Table {
    all: BTreeMap<Key, Waiting>,
    idle: Ranks<Owner, Key>,
    used: Ranks<Owner, Key>,
}

/// Whose a session is: its user's; without a user its peer's.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) enum Owner {
    User(Arc<str>),
    Peer(Arc<str>),
}

impl Owner {
    pub(super) fn of(state: &State, connection: &Connection) -> Self {
        match &state.user {
            Some(user) => Self::User(Arc::clone(user)),
            None => Self::Peer(peer::group(&connection.peer_address()).into()),
        }
    }
}

pub(super) struct Waiting {
    pub(super) session: Session,
    /// It has been back since if this is not its generation any more.
    pub(super) generation: u64,
    pub(super) owner: Owner,
    /// Its end would cost its client nothing.
    pub(super) is_idle: bool,
}

impl Waiting {
    fn is_still(&self, state: &State) -> bool {
        state.generation == self.generation && state.is_away()
    }
}

impl Table {
    fn insert(&mut self, key: Key, waiting: Waiting) {
        self.ranks(waiting.is_idle).add(&waiting.owner, key);
        self.all.insert(key, waiting);
    }

    fn remove(&mut self, key: Key) -> Option<Waiting> {
        let waiting = self.all.remove(&key)?;
        self.ranks(waiting.is_idle).remove(&waiting.owner, key);
        Some(waiting)
    }

    fn ranks(&mut self, is_idle: bool) -> &mut Ranks<Owner, Key> {
        if is_idle { &mut self.idle } else { &mut self.used }
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

    /// A session that was away is back, or ends; under its lock.
    pub(super) fn forget(&self, session: SessionId, state: &State) {
        if let Some(lost_at) = state.lost_at() {
            self.waiting.lock().remove((lost_at, session));
        }
    }

    /// The one that makes way first.
    fn first(&self) -> Option<(Key, Waiting)> {
        let mut waiting = self.waiting.lock();
        let key = waiting.idle.first_of_most().or_else(|| waiting.used.first_of_most())?;
        waiting.remove(key).map(|first| (key, first))
    }

    /// Some of those whose clients left by then, first those that left first.
    fn over(&self, left_by: Instant, sessions_max: usize) -> Vec<Waiting> {
        let mut waiting = self.waiting.lock();
        let mut over = Vec::new();
        while over.len() < sessions_max {
            let Some(key) = waiting.all.first_key_value().map(|(key, _)| *key) else { break };
            if left_by < key.0 {
                break;
            }
            over.extend(waiting.remove(key));
        }
        over
    }
}

impl Registry {
    /// Keeps a session whose client has just left. If too many wait by now, another one ends: first those whose end costs
    /// nothing, and of those one of whoever has most.
    pub(super) fn wait_for_client(&self, waiting: Waiting, lost_at: Instant) {
        self.away.waiting.lock().insert((lost_at, waiting.session.id()), waiting);
        let max = self.options().away_max;
        if self.away.len() <= max {
            return;
        }
        let _turn = self.away.making_room.lock();
        while max < self.away.len() {
            let Some((key, mut first)) = self.away.first() else { return };
            // It was not when its client left: since then it has been owed something.
            if first.is_idle && !first.session.inner.state.lock().is_idle() {
                first.is_idle = false;
                self.keep_waiting(key, first);
                continue;
            }
            self.end_away(&first, "more clients were away than `sessions.away_max`");
        }
    }

    fn keep_waiting(&self, key: Key, waiting: Waiting) {
        let session = waiting.session.clone();
        let state = session.inner.state.lock();
        if waiting.is_still(&state) {
            self.away.waiting.lock().insert(key, waiting);
        }
    }

    /// Ends the sessions whose window is over. Those that leave topics together are not told of each other.
    pub(super) async fn sweep_away(&self, now: Instant) {
        let Some(left_by) = now.checked_sub(self.options().resume_window) else { return };
        let mut hold = None;
        loop {
            let over = self.away.over(left_by, ENDED_AT_ONCE);
            let Some(first) = over.first().map(|first| first.session.id()) else { return };
            hold.get_or_insert_with(|| self.hold_telling());
            for waiting in &over {
                self.end_away(waiting, "its client did not come back within `resume_window`");
            }
            let sessions = over.len();
            tracing::info!(sessions, %first, "sessions expired: their clients did not come back");
            tokio::task::yield_now().await;
        }
    }

    fn end_away(&self, waiting: &Waiting, why: &str) {
        // Its client may have come back this moment.
        let ending = Ending::new(why, NotResumed::Expired);
        self.remove_if(&waiting.session, ending, None, |state| waiting.is_still(state));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{QueueBound, SessionOptions};

    /// A tick looks at those whose time is over, however many others wait.
    #[tokio::test(start_paused = true)]
    async fn a_tick_looks_at_whose_window_is_over() {
        let server = crate::Server::builder().build();
        let listening = server.listen("memory@away-tick").await.expect("the name is free");
        let client =
            crate::Client::connect(listening.address(), crate::ClientOptions::new()).await.expect("it listens");
        client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
        let session = server.sessions(&super::super::Target::everyone()).expect("no topic").remove(0);
        let (away, began) = (Away::default(), Instant::now());
        for second in 0..1000 {
            let key = (began + Duration::from_secs(second), SessionId(u128::from(second)));
            let owner = Owner::User("ann".into());
            let waiting = Waiting { session: session.clone(), generation: second, owner, is_idle: false };
            away.waiting.lock().insert(key, waiting);
        }
        let over = |left_by, max| away.over(began + Duration::from_secs(left_by), max).len();
        assert_eq!([over(9, 4), over(9, 100), over(9, 100)], [4, 6, 0]);
        assert_eq!(away.first().map(|(_, first)| first.generation), Some(10));
        assert_eq!(away.waiting.lock().all.len(), 989);
    }

    /// Only a session that has never had anything to lose is ended before others.
    #[tokio::test(start_paused = true)]
    async fn a_session_is_idle_that_has_nothing_to_lose() {
        let server = crate::Server::builder()
            .sessions(SessionOptions::new().log(QueueBound::messages(10).bytes(1 << 20)))
            .build();
        let listening = server.listen("memory@away-idle").await.expect("the name is free");
        for (number, does) in [
            |_: &Session| {},
            |session: &Session| session.subscribe("news").expect("the server may"),
            |session: &Session| _ = session.push(&crate::Push::new("N", "say", "1")).expect("small"),
        ]
        .into_iter()
        .enumerate()
        {
            let connecting = crate::Client::bidirectional(listening.address(), crate::ClientOptions::new());
            let (client, _messages) = connecting.await.expect("it listens");
            client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
            let session = server.sessions(&super::super::Target::everyone()).expect("no topic").remove(0);
            assert!(session.inner.state.lock().is_idle(), "{number}");
            does(&session);
            assert_eq!(session.inner.state.lock().is_idle(), number == 0, "{number}");
            session.end("the next one is alone");
        }
    }
}
