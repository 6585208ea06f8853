//! Sessions whose node leaves, and whose clients have not come to another one yet: they wait in the store.
//!
//! The parts come first and the compare-and-set second, as everywhere: a record that says "parked" names parts that are
//! there. A client that comes to another node at this moment has its session by one of the two, and by one only.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{
    claim::{Keep, Record},
    engine::{Log, NodeId, Revision},
    kicking::parked_of,
    moves::wait_until,
    node::Node,
    record::{Parked, Written},
    snapshot,
};
use crate::{
    clock::after,
    session::{Known, Registry, SessionId, SessionImage},
    store::{NewEntry, Place},
};

/// Sessions that are parked side by side.
const SIDE_BY_SIDE: usize = 64;
/// How long one of them may take, and all of them.
const PARK_MAX: Duration = Duration::from_secs(5);
/// See [`PARK_MAX`].
const ALL_MAX: Duration = Duration::from_secs(30);

/// What became of the sessions of a node that left.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Parking {
    /// They went on at other nodes since the server began to stop.
    pub(crate) handed_over: usize,
    /// They wait in the store.
    pub(crate) parked: usize,
}

/// How one session was parked.
enum Put {
    Parked,
    /// Another node has it.
    Gone(NodeId),
    /// It stays, and ends with its server.
    Left,
}

impl Node {
    /// The server begins to stop: sessions that go on elsewhere count from here on.
    pub(crate) fn begin_leaving(&self) {
        self.moves.count_departed();
        self.show_card();
    }

    /// Leaves the sessions whose clients may come back in the store, where every node finds them.
    pub(crate) async fn park_all(self: &Arc<Self>) -> Parking {
        let Some(sessions) = self.registry() else { return Parking::default() };
        self.all_brought().await;
        let (places, bytes) = (Arc::new(Semaphore::new(SIDE_BY_SIDE)), Arc::new(AtomicUsize::new(0)));
        let (deadline, mut parking) = (Instant::now() + ALL_MAX, JoinSet::new());
        for id in sessions.resumable() {
            let (node, sessions) = (Arc::clone(self), Arc::clone(&sessions));
            let (places, bytes) = (Arc::clone(&places), Arc::clone(&bytes));
            parking.spawn(async move {
                let Ok(_place) = places.acquire().await else { return false };
                if deadline <= Instant::now() {
                    return false;
                }
                match node.park(&sessions, id, &bytes).await {
                    Put::Parked => true,
                    Put::Gone(to) => {
                        node.depart_when_there(id, to).await;
                        false
                    }
                    Put::Left => false,
                }
            });
        }
        let mut parked = 0;
        while let Some(put) = parking.join_next().await {
            parked += usize::from(put.unwrap_or(false));
        }
        // The last words say where each has gone.
        self.moves.all_departed(PARK_MAX).await;
        Parking { handed_over: self.moves.departed(), parked }
    }

    /// No session is brought here any more, and what was on its way here when the server began to stop is here, or is not.
    async fn all_brought(&self) {
        self.moves.bring_no_more();
        wait_until(PARK_MAX, || !self.moves.are_being_brought()).await;
    }

    async fn park(self: &Arc<Self>, sessions: &Arc<Registry>, id: SessionId, bytes: &AtomicUsize) -> Put {
        self.settled(id).await;
        if !self.moves.has_record(id) {
            // It began this moment.
            let _ = timeout(PARK_MAX, Arc::clone(self).keep_record(id)).await;
        }
        let (Some(me), Some(known)) = (self.me(), sessions.known(id)) else { return Put::Left };
        let Some((record, was)) = self.moves.freeze_own(id, me, self.is_certain()) else { return Put::Left };
        let (mut numbers, until) = (Vec::new(), after(sessions.window()));
        let given = self.give_away(sessions, id, &known.hash, &mut |debt| {
            let number = self.moves.number_in_store(debt, until);
            numbers.push(number);
            number
        });
        let put = match given {
            Some(image) => self.put(sessions, (id, image), (&record, was), &known, bytes).await,
            None => self.unpark_own(sessions, id),
        };
        match put {
            Put::Parked => {
                self.moves.disown(id);
                for (number, relay) in numbers.into_iter().zip(sessions.let_go(id)) {
                    // The last words of this node say where it went.
                    self.relay(number, None, relay);
                }
            }
            // Where it went, the node that gave it says so.
            Put::Gone(_) | Put::Left => numbers.into_iter().for_each(|number| self.moves.forget(number)),
        }
        put
    }

    /// Puts its image into the store.
    async fn put(
        self: &Arc<Self>,
        sessions: &Arc<Registry>,
        (id, image): (SessionId, SessionImage),
        (record, was): (&Record, Revision),
        known: &Known,
        bytes: &AtomicUsize,
    ) -> Put {
        let left = Duration::from_millis(image.left.max(1));
        let part_bytes = snapshot::part_bytes(self.engine().limits().message_bytes_max);
        let Some(parts) = snapshot::write(&image, part_bytes) else { return self.unpark_own(sessions, id) };

        let size: usize = parts.iter().map(bytes::Bytes::len).sum();
        if self.options.park_bytes_max < bytes.fetch_add(size, Ordering::Relaxed) + size {
            bytes.fetch_sub(size, Ordering::Relaxed);
            return self.unpark_own(sessions, id);
        }
        let (count, mut places) = (parts.len() as u32, Vec::new());
        for part in parts {
            let entry = NewEntry::new(part).with_time_to_live(left);
            match timeout(PARK_MAX, self.engine().append(Log::Parked(id), entry)).await {
                Ok(Ok(stored)) => places.push(stored.place),
                Ok(Err(_)) | Err(_) => return self.unpark_own(sessions, id),
            }
        }
        let (Some(first), Some(last)) = (places.first(), places.last()) else { return self.unpark_own(sessions, id) };
        if let Some(user) = &known.user {
            // Before it is there: who kicks the user finds it.
            let named = self.engine().advance(parked_of(user), id.to_string(), *first, left);
            if !matches!(timeout(PARK_MAX, named).await, Ok(Ok(_))) {
                return self.unpark_own(sessions, id);
            }
        }
        let parked = Parked {
            epoch: first.epoch,
            first: first.sequence,
            last: last.sequence,
            parts: count,
            left_ms: left.as_millis() as u64,
        };
        let mut written = Written::new(record, known);
        written.parked = Some(parked);
        // Its record may be renewed at this moment.
        match timeout(PARK_MAX, self.keep_while(id, Some(was), &written, || self.moves.is_frozen(id))).await {
            Ok(Keep::Stays(revision)) if !sessions.session_lives(id) => {
                // It was ended meanwhile: who comes for it is not to find it.
                self.moves.disown(id);
                let _ = timeout(PARK_MAX, self.forget_ended(id, record.term, revision)).await;
                Put::Left
            }
            Ok(Keep::Stays(_)) => Put::Parked,
            Ok(Keep::Gone(to)) => Put::Gone(to),
            Ok(Keep::GivenUp) => {
                self.end_given_up(id);
                Put::Left
            }
            // Its client has come for it: the image is old.
            Ok(Keep::Write(_)) => Put::Left,
            // Perhaps it was written: then it is in the store, and ends here without a word of what it was owed.
            Ok(Keep::Forgotten | Keep::Later) | Err(_) => {
                self.moves.disown(id);
                drop(sessions.let_go(id));
                Put::Left
            }
        }
    }

    /// A session whose image another node has got is there in a moment, or stays here by a compare-and-set: until then
    /// nobody can tell, and it is neither parked nor ended.
    async fn settled(&self, id: SessionId) {
        wait_until(PARK_MAX, || !self.moves.is_frozen(id)).await;
    }

    /// A session is in the store no more. Its time would end by itself.
    pub(super) async fn forget_parked(&self, id: SessionId, parked: Parked) {
        let place = Place { epoch: parked.epoch, sequence: parked.last };
        let _ = self.engine().trim(Log::Parked(id), place).await;
    }

    /// It cannot be parked.
    fn unpark_own(&self, sessions: &Registry, id: SessionId) -> Put {
        self.moves.unfreeze(id);
        sessions.take_back(id);
        Put::Left
    }
}
