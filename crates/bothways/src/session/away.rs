//! Sessions whose clients are away: how long each waits for its client, and how many may wait.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Session, SessionId, ranks::Ranks, state::State};
use crate::{connection::Connection, peer};

/// Those who wait, by when their clients left.
#[derive(Default)]
pub(super) struct Away {
    /// Locked under the lock of a session, and never the other way round. Of a session that is back at this moment it
    /// may still have one.
    pub(super) waiting: Mutex<Table>,
    /// Sessions that are away now. Changed under the lock of each.
    count: AtomicUsize,
    /// Held while a thread makes room, so that two that do it at once do not make twice as much as is needed.
    pub(super) making_room: Mutex<()>,
}

pub(super) type Key = (Instant, SessionId);

/// All that wait, and who makes way first when they are too many: those whose end costs their clients nothing, and then
/// the others; of either kind one of the user with the most, so that nobody drives out those of others.
#[derive(Default)]
pub(super) struct Table {
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
        match state.user() {
            Some(user) => Self::User(Arc::clone(user)),
            None => Self::of_peer(connection),
        }
    }

    pub(super) fn of_peer(connection: &Connection) -> Self {
        Self::Peer(peer::group(&connection.peer_address()).into())
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
    pub(super) fn is_still(&self, state: &State) -> bool {
        state.generation() == self.generation && state.is_away()
    }
}

impl Table {
    pub(super) fn insert(&mut self, key: Key, waiting: Waiting) {
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

    /// A session is away from now on; under its lock.
    pub(super) fn note(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// A session that was away since then is back, or ends; under its lock.
    pub(super) fn forget(&self, session: SessionId, since: Instant) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.waiting.lock().remove((since, session));
    }

    /// The one that makes way first.
    pub(super) fn first(&self) -> Option<(Key, Waiting)> {
        let mut waiting = self.waiting.lock();
        let key = waiting.idle.first_of_most().or_else(|| waiting.used.first_of_most())?;
        waiting.remove(key).map(|first| (key, first))
    }

    /// Some of those whose clients left by then, first those that left first.
    pub(super) fn over(&self, left_by: Instant, sessions_max: usize) -> Vec<Waiting> {
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
            let generation = session.lock().generation();
            let owner = Owner::User("ann".into());
            let waiting = Waiting { session: session.clone(), generation, owner, is_idle: true };
            assert!(!waiting.is_still(&session.lock()), "its client is here");
            assert!(session.lock().is_idle(), "{number}");
            does(&session);
            assert_eq!(session.lock().is_idle(), number == 0, "{number}");
            session.end("the next one is alone");
        }
    }
}
