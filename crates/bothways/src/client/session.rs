//! What a client remembers of its session: secret, offsets, and what to acknowledge.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bothways_proto::{Metadata, PeerMisbehaved, Seq, keys};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::events::SessionLost;
use crate::connection::ConnectionId;

/// Messages after which an acknowledgement is due at once.
const ACK_MESSAGES: u64 = 32;

/// Offsets end here: the bits above say that it is a push.
const OFFSET_MAX: u64 = (1 << 62) - 1;

/// How long fewer may wait.
const ACK_DELAY: Duration = Duration::from_millis(50);

/// Shared between the reader of the connection, the messages that were handed out, and the link's task.
#[derive(Debug, Default)]
pub(super) struct SessionMemory {
    state: Mutex<State>,
    /// Told when there is something to acknowledge.
    progress: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Counts sessions, so that a message of an earlier one acknowledges nothing of this one.
    epoch: u64,
    known: Option<Known>,
    /// The connection on which the server last said which session this is. What an earlier one still brings
    /// belongs to a session that may be gone, and is sent again if it does not.
    connection: Option<ConnectionId>,
    offsets: Offsets,
    /// Attempts to come back to a session so far.
    attempts: u64,
}

struct Known {
    id: String,
    key: String,
}

impl std::fmt::Debug for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Known").field("id", &self.id).finish_non_exhaustive()
    }
}

/// How far a client is with one session.
#[derive(Debug, Default)]
struct Offsets {
    received: u64,
    /// Everything up to here is handled.
    handled: u64,
    /// Handled beyond that.
    handled_ahead: BTreeSet<u64>,
    /// What the server was last told.
    told: (u64, u64),
    /// Pushes that the server has told to be missing.
    missed: u64,
}

impl Offsets {
    fn starting_at(offset: u64) -> Self {
        let offset = offset.min(OFFSET_MAX);
        Self { received: offset, handled: offset, handled_ahead: BTreeSet::new(), told: (offset, offset), missed: 0 }
    }

    fn handle(&mut self, offset: u64) {
        self.handled_ahead.insert(offset);
        while self.handled_ahead.remove(&(self.handled + 1)) {
            self.handled += 1;
        }
    }

    /// How much the server does not know yet.
    fn untold(&self) -> u64 {
        (self.received - self.told.0).max(self.handled - self.told.1)
    }
}

/// In which session a client is after a Hello.
pub(super) enum Arrival {
    /// In the one that it had.
    Resumed,
    /// In a new one, or in none that outlives its connection.
    New {
        /// Why the one that it had was lost, if it had one.
        lost: Option<SessionLost>,
    },
}

/// What a number makes of a message.
pub(super) enum Received {
    /// Not tracked.
    Untracked,
    /// Tracked, and here for the first time.
    New(Ack),
    /// Here already: it was sent again because the server could not know.
    Repeated,
    /// There is no room for it: it is as if it had not come.
    NoRoom,
    /// Its number is not the next one.
    False(PeerMisbehaved),
}

/// Acknowledges one message as handled when dropped.
#[derive(Debug)]
pub(super) struct Ack {
    memory: Arc<SessionMemory>,
    epoch: u64,
    offset: u64,
}

impl Ack {
    /// Nobody has handled the message, and nobody will: it is not acknowledged.
    pub(super) fn forget(&mut self) {
        self.epoch = u64::MAX;
    }
}

impl Drop for Ack {
    fn drop(&mut self) {
        let mut state = self.memory.state.lock();
        if state.epoch == self.epoch {
            state.offsets.handle(self.offset);
            drop(state);
            self.memory.progress.notify_one();
        }
    }
}

impl SessionMemory {
    /// The pairs of a Hello: who this client was, and how far it is.
    pub(super) fn hello(&self) -> Metadata {
        let mut state = self.state.lock();
        state.connection = None;
        if state.known.is_some() {
            state.attempts = state.attempts.saturating_add(1);
        }
        match &state.known {
            None => Metadata::new(),
            Some(known) => Metadata::new()
                .with(keys::SESSION_ID, &known.id)
                .with(keys::SESSION_KEY, &known.key)
                .with(keys::SESSION_OFFSET, state.offsets.handled.to_string())
                .with(keys::SESSION_RECEIVED, state.offsets.received.to_string())
                .with(keys::SESSION_TRY, state.attempts.to_string()),
        }
    }

    /// Takes the answer to a Hello in; `None` from a plain server.
    pub(super) fn handle_welcome(&self, connection: ConnectionId, welcome: Option<&Metadata>) -> Arrival {
        let mut state = self.state.lock();
        state.connection = Some(connection);
        let had = state.known.is_some();
        let named = welcome.and_then(|welcome| {
            let (id, key) = (welcome.get(keys::SESSION_ID)?, welcome.get(keys::SESSION_KEY)?);
            Some(Known { id: id.to_owned(), key: key.to_owned() })
        });
        let resumed = welcome.is_some_and(|welcome| welcome.value(keys::SESSION_RESUMED).is_some());
        state.known = named;
        if resumed && had && state.known.is_some() {
            // What the server heard last may have been lost with the old connection.
            state.offsets.told = (0, 0);
            drop(state);
            self.progress.notify_one();
            return Arrival::Resumed;
        }
        let begin = welcome.and_then(|welcome| welcome.get(keys::SESSION_OFFSET)).and_then(|at| at.parse().ok());
        state.epoch += 1;
        state.offsets = Offsets::starting_at(begin.unwrap_or(0));
        let why = match welcome {
            None => SessionLost::Plain,
            Some(welcome) => SessionLost::from_wire(welcome.get(keys::SESSION_WHY).unwrap_or_default()),
        };
        Arrival::New { lost: had.then_some(why) }
    }

    /// A message came under this number. `has_room` is asked if it is tracked and new.
    ///
    /// Offsets have no holes. What is here already may come again: the server could not know.
    pub(super) fn receive(
        self: &Arc<Self>,
        connection: ConnectionId,
        seq: Seq,
        has_room: impl FnOnce() -> bool,
    ) -> Received {
        let offset = if seq.is_push() { seq.unmarked() } else { 0 };
        let mut state = self.state.lock();
        if offset == 0 || state.known.is_none() {
            return Received::Untracked;
        }
        if state.connection != Some(connection) {
            return Received::Repeated;
        }
        let next = state.offsets.received + 1;
        if next < offset {
            return Received::False(PeerMisbehaved::FalseOffset { sent: offset, expected: next });
        }
        if offset < next {
            return Received::Repeated;
        }
        if !has_room() {
            return Received::NoRoom;
        }
        state.offsets.received = offset;
        let epoch = state.epoch;
        drop(state);
        self.progress.notify_one();
        Received::New(Ack { memory: Arc::clone(self), epoch, offset })
    }

    /// The server says how many pushes it dropped since the session began. Answers how many of them are news:
    /// it says so again on each connection.
    pub(super) fn miss(&self, connection: ConnectionId, since_beginning: u64) -> u64 {
        let mut state = self.state.lock();
        if state.connection != Some(connection) {
            return 0;
        }
        let news = since_beginning.saturating_sub(state.offsets.missed);
        state.offsets.missed += news;
        news
    }

    /// Waits until an acknowledgement is due on this connection, and answers its offsets: received, handled.
    ///
    /// None is due before the server has said which session the connection has: it could belong to another, and
    /// a server takes the first for a sign that its Welcome arrived.
    ///
    /// Dropping the future loses nothing: what is due stays due.
    pub(super) async fn due(&self, connection: ConnectionId) -> (u64, u64) {
        loop {
            let (untold, is_past) = {
                let state = self.state.lock();
                let is_here = state.connection == Some(connection);
                (if is_here { state.offsets.untold() } else { 0 }, Some(connection) < state.connection)
            };
            if is_past {
                // What woke this one was for the one that has taken its place.
                self.progress.notify_one();
                return std::future::pending().await;
            }
            if 0 < untold {
                if untold < ACK_MESSAGES {
                    tokio::time::sleep(ACK_DELAY).await;
                }
                if let Some(told) = self.tell(connection) {
                    return told;
                }
                continue;
            }
            self.progress.notified().await;
        }
    }

    /// What to acknowledge; `None` if the session has left this connection.
    fn tell(&self, connection: ConnectionId) -> Option<(u64, u64)> {
        let mut state = self.state.lock();
        let is_here = state.connection == Some(connection);
        let offsets = &mut state.offsets;
        is_here.then(|| {
            offsets.told = (offsets.received, offsets.handled);
            offsets.told
        })
    }
}

/// The acknowledgements of so many messages of one session.
#[cfg(test)]
pub(super) fn acks(messages: u64) -> Vec<Ack> {
    let memory = Arc::<SessionMemory>::default();
    (1..=messages).map(|offset| Ack { memory: Arc::clone(&memory), epoch: 0, offset }).collect()
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn connection(number: u64) -> ConnectionId {
        format!("c{number}").parse().expect("a number")
    }

    fn welcome() -> Metadata {
        Metadata::new().with(keys::SESSION_ID, "1").with(keys::SESSION_KEY, "k").with(keys::SESSION_OFFSET, "0")
    }

    fn resumed() -> Metadata {
        welcome().with(keys::SESSION_RESUMED, "1")
    }

    /// A client with a session on its first connection.
    fn memory() -> Arc<SessionMemory> {
        let memory = Arc::<SessionMemory>::default();
        memory.handle_welcome(connection(1), Some(&welcome()));
        memory
    }

    /// What comes under these offsets, each for the first time.
    fn receive(memory: &Arc<SessionMemory>, on: u64, offsets: impl IntoIterator<Item = u64>) -> Vec<Ack> {
        let received = |offset| match memory.receive(connection(on), Seq::of_push(offset), || true) {
            Received::New(ack) => ack,
            _ => panic!("{offset} is new"),
        };
        offsets.into_iter().map(received).collect()
    }

    async fn due(memory: &SessionMemory, on: u64) -> (u64, u64) {
        tokio::time::timeout(Duration::from_secs(1), memory.due(connection(on))).await.expect("it is due")
    }

    /// The application deals with the second and the third message first: the server is told so when it has dealt with
    /// the first, and the Hello of a client that comes back meanwhile says what it has received beside that.
    #[tokio::test(start_paused = true)]
    async fn what_is_handled_out_of_order_is_told_in_order() {
        let memory = memory();
        let mut acks = receive(&memory, 1, 1..=4);
        acks.drain(1..3);
        assert_eq!(due(&memory, 1).await, (4, 0));
        acks.remove(0);
        assert_eq!(due(&memory, 1).await, (4, 3));
        let hello = memory.hello();
        assert_eq!((hello.get(keys::SESSION_OFFSET), hello.get(keys::SESSION_RECEIVED)), (Some("3"), Some("4")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_of_an_earlier_session_acknowledges_nothing_of_this_one() {
        let memory = memory();
        let earlier = receive(&memory, 1, 1..=2);
        memory.hello();
        assert!(matches!(memory.handle_welcome(connection(2), Some(&welcome())), Arrival::New { lost: Some(_) }));
        let _held = receive(&memory, 2, 1..=2);
        drop(earlier);
        assert_eq!(due(&memory, 2).await, (2, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn many_are_acknowledged_at_once_and_fewer_a_little_later() {
        for (messages, wait) in [(ACK_MESSAGES, Duration::ZERO), (ACK_MESSAGES - 1, ACK_DELAY)] {
            let memory = memory();
            let _held = receive(&memory, 1, 1..=messages);
            let began = Instant::now();
            assert_eq!((due(&memory, 1).await, began.elapsed()), ((messages, 0), wait));
        }
    }

    /// The session goes to another connection while an acknowledgement waits a little: it is made there.
    #[tokio::test(start_paused = true)]
    async fn what_is_due_goes_with_the_session() {
        let memory = memory();
        let _held = receive(&memory, 1, 1..=1);
        let (old, on) = (Arc::clone(&memory), connection(1));
        let old = tokio::spawn(async move { old.due(on).await });
        tokio::time::sleep(ACK_DELAY / 2).await;
        memory.hello();
        assert!(matches!(memory.handle_welcome(connection(2), Some(&resumed())), Arrival::Resumed));
        assert_eq!(due(&memory, 2).await, (1, 0));
        tokio::time::sleep(ACK_DELAY * 2).await;
        assert!(!old.is_finished());
        old.abort();
    }

    /// The server heard all of it before; that it hears it again tells it that its Welcome arrived.
    #[tokio::test(start_paused = true)]
    async fn who_is_back_acknowledges_once_more() {
        let memory = memory();
        drop(receive(&memory, 1, 1..=1));
        assert_eq!(due(&memory, 1).await, (1, 1));
        memory.hello();
        memory.handle_welcome(connection(2), Some(&resumed()));
        assert_eq!(due(&memory, 2).await, (1, 1));
    }

    /// What a server sends under these offsets on one connection, as letters: New, Repeated, False.
    fn letters(memory: &Arc<SessionMemory>, on: u64, offsets: &[u64]) -> String {
        let letter = |offset: &u64| match memory.receive(connection(on), Seq::of_push(*offset), || true) {
            Received::New(_) => 'N',
            Received::Repeated => 'R',
            Received::False(_) => 'F',
            Received::Untracked | Received::NoRoom => '?',
        };
        offsets.iter().map(letter).collect()
    }

    #[test]
    fn offsets_have_no_holes() {
        assert_eq!(letters(&memory(), 1, &[1, 2, 3, 3, 2, 5, 4, 1 << 61, OFFSET_MAX, 5]), "NNNRRFNFFN");
        assert_eq!(letters(&memory(), 1, &[2, OFFSET_MAX]), "FF");
        // What the client has already comes again on a new connection.
        let memory = memory();
        assert_eq!(letters(&memory, 1, &[1, 2, 3, 4]), "NNNN");
        memory.hello();
        memory.handle_welcome(connection(2), Some(&resumed()));
        assert_eq!(letters(&memory, 2, &[3, 4, 5, 7]), "RRNF");
        assert_eq!(letters(&memory, 1, &[6, 9]), "RR", "the session has left it");
    }

    #[test]
    fn a_session_may_begin_at_any_offset_that_there_is() {
        for (begin, first, letters_of_it) in [(41, 42, "N"), (OFFSET_MAX, OFFSET_MAX, "R"), (u64::MAX, 1, "R")] {
            let memory = Arc::<SessionMemory>::default();
            let welcome = welcome().with(keys::SESSION_OFFSET, begin.to_string());
            memory.handle_welcome(connection(1), Some(&welcome));
            assert_eq!(letters(&memory, 1, &[first]), letters_of_it, "from {begin}");
        }
    }

    #[test]
    fn what_finds_no_room_has_not_come() {
        let memory = memory();
        assert!(matches!(memory.receive(connection(1), Seq::of_push(1), || false), Received::NoRoom));
        assert_eq!(letters(&memory, 1, &[1]), "N");
    }

    /// A server may count what is missing up to the largest number there is, in each of its sessions.
    #[test]
    fn no_number_of_missing_pushes_is_too_large() {
        let memory = memory();
        assert_eq!([1, u64::MAX, 3].map(|missed| memory.miss(connection(1), missed)), [1, u64::MAX - 1, 0]);
    }

    #[test]
    fn who_has_no_session_counts_nothing_and_resumes_none() {
        let memory = Arc::<SessionMemory>::default();
        assert!(matches!(memory.handle_welcome(connection(1), None), Arrival::New { lost: None }));
        for _ in 0..2 {
            let received = memory.receive(connection(1), Seq::of_push(7), || true);
            assert!(matches!(received, Received::Untracked), "a plain server's");
        }
        let claimed = memory.handle_welcome(connection(2), Some(&resumed()));
        assert!(matches!(claimed, Arrival::New { lost: None }), "there was none to resume");
    }
}
