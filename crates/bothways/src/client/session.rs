//! A client's side of its session: the secret, the offsets, and what to acknowledge.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use bothways_proto::{Capabilities, Metadata, PeerMisbehaved, Seq, Welcome, keys};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::events::SessionLost;
use crate::{
    connection::ConnectionId,
    session::{Acks, End, Failure, Stage, TOLD_AT_ONCE, put_failed},
};

/// Messages after which an acknowledgement is due at once.
const ACK_MESSAGES: u64 = 32;

/// Offsets end here: the bits above say that it is a push.
const OFFSET_MAX: u64 = (1 << 62) - 1;

/// Runs of messages that failed alike, of which a client has told, and which it remembers for a server that may not have
/// heard of them. A Hello names them, so that they take 1 to 2 KiB there: a server may have chosen a
/// `metadata_bytes_max` of 4 KiB, and refuses a Hello that does not fit. Of one that is forgotten before its server has
/// heard of it nobody knows what became.
const FAILURES_MAX: usize = 48;

/// Such runs of which a client has not told, which it never forgets. Some 2 MiB. A server sends no more than its log
/// holds before it hears of them; one more than this is not acknowledged.
const UNTOLD_MAX: usize = 64 << 10;

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
    /// The server understands what became of each message.
    outcomes: bool,
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
    /// Dealt with beyond that: the first and the last offset of each run.
    ahead: BTreeMap<u64, u64>,
    /// Messages that the application has dealt with, in whatever order.
    dealt_with: u64,
    /// What the server was last told.
    told: (u64, u64),
    told_dealt_with: u64,
    failures: Failures,
    /// Pushes that the server has told to be missing.
    missed: u64,
}

impl Offsets {
    fn starting_at(offset: u64) -> Self {
        let offset = offset.min(OFFSET_MAX);
        Self { received: offset, handled: offset, told: (offset, offset), ..Self::default() }
    }

    /// The application has dealt with this one, once.
    fn handle(&mut self, offset: u64) {
        self.dealt_with += 1;
        let (mut first, mut last) = (offset, offset);
        if let Some(end) = self.ahead.remove(&(offset + 1)) {
            last = end;
        }
        if let Some((begin, _)) = self.ahead.range(..offset).next_back().filter(|(_, end)| **end + 1 == offset) {
            first = *begin;
        }
        self.ahead.insert(first, last);
        if first == self.handled + 1 {
            self.ahead.remove(&first);
            self.handled = last;
        }
    }

    /// How much the server does not know yet.
    fn untold(&self, outcomes: bool) -> u64 {
        let dealt_with = match outcomes {
            true => self.dealt_with - self.told_dealt_with,
            false => self.handled - self.told.1,
        };
        (self.received - self.told.0).max(dealt_with).max(self.failures.untold as u64)
    }

    /// Tells what there is to tell, or a first part of it.
    fn tell(&mut self, outcomes: bool) -> Acks {
        if !outcomes {
            self.told = (self.received, self.handled);
            return Acks { received: self.received, handled: self.handled, ends: Vec::new() };
        }
        let mut ends = self.failures.tell();
        if 0 < self.failures.untold {
            // The rest follows at once. Until then no offset may be taken for handled that was not.
            self.told.0 = self.received;
            return Acks { received: self.received, handled: self.told.1, ends };
        }
        (self.told, self.told_dealt_with) = ((self.received, self.handled), self.dealt_with);
        let ahead = self.ahead.iter().take(TOLD_AT_ONCE);
        ends.extend(ahead.map(|(first, last)| (*first..=*last, Stage::Handled)));
        Acks { received: self.received, handled: self.handled, ends }
    }
}

/// Messages that were not handled, in the order in which that was known: runs that failed alike.
#[derive(Debug, Default)]
struct Failures {
    all: VecDeque<End>,
    /// So many of the newest were not told on the present connection.
    untold: usize,
    /// Up to here some were forgotten.
    forgotten: u64,
}

impl Failures {
    /// False: there are too many that were not told.
    fn add(&mut self, offset: u64, stage: Stage) -> bool {
        if let Some((run, alike)) = self.all.back_mut().filter(|_| 0 < self.untold)
            && *alike == stage
            && *run.end() + 1 == offset
        {
            *run = *run.start()..=offset;
            return true;
        }
        if UNTOLD_MAX <= self.untold {
            return false;
        }
        self.all.push_back((offset..=offset, stage));
        self.untold += 1;
        self.forget_told();
        true
    }

    /// The next ones that were not told.
    fn tell(&mut self) -> Vec<End> {
        let from = self.all.len() - self.untold;
        let told = self.untold.min(TOLD_AT_ONCE);
        self.untold -= told;
        let ends: Vec<End> = self.all.iter().skip(from).take(told).cloned().collect();
        if self.untold == 0 {
            self.join_told(from);
        }
        self.forget_told();
        ends
    }

    /// All are told, the last ones from this place on: those that follow each other become one run.
    fn join_told(&mut self, from: usize) {
        let last = self.all.split_off(from);
        for (run, stage) in last {
            match self.all.back_mut() {
                Some((before, alike)) if *alike == stage && *before.end() + 1 == *run.start() => {
                    *before = *before.start()..=*run.end();
                }
                _ => self.all.push_back((run, stage)),
            }
        }
    }

    /// Forgets the oldest that were told, if there are too many.
    fn forget_told(&mut self) {
        let told = self.all.len() - self.untold;
        let too_many = self.all.len().saturating_sub(FAILURES_MAX).min(told);
        let oldest = self.all.drain(..too_many).map(|(run, _)| *run.end()).max();
        self.forgotten = self.forgotten.max(oldest.unwrap_or(0));
    }

    /// Those that a Hello tells, for a server that may have heard of none. Later ones follow in acknowledgements.
    fn of_hello(&self) -> Vec<End> {
        let forgotten = (0 < self.forgotten).then_some((1..=self.forgotten, Stage::Unknown));
        self.all.iter().take(FAILURES_MAX).cloned().chain(forgotten).collect()
    }

    /// The lowest of those that a Hello does not tell. No acknowledgement has told them, as they are not among the
    /// oldest, and none has covered them.
    fn lowest_behind_hello(&self) -> Option<u64> {
        self.all.iter().skip(FAILURES_MAX).map(|(run, _)| *run.start()).min()
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
    /// It is of an earlier connection: if the server counts it as not received, it comes again on the present one.
    Past,
    /// Here already, on this connection or one before: its server sends it in vain.
    Repeated,
    /// There is no room for it: it is as if it had not come.
    NoRoom,
    /// Its number is not the next one.
    False(PeerMisbehaved),
}

/// Acknowledges one message when dropped: as handled, unless it is said before that it was not.
#[derive(Debug)]
pub(super) struct Ack {
    memory: Arc<SessionMemory>,
    epoch: u64,
    offset: u64,
    /// What became of it, as [`Ack::ENDS`] counts; 0: it is handled.
    end: AtomicU8,
}

impl Ack {
    const ENDS: [Stage; 5] = [
        Stage::Failed(Failure::NoHandler),
        Stage::Failed(Failure::BadArguments),
        Stage::Failed(Failure::Error),
        Stage::Failed(Failure::Panicked),
        Stage::Superseded,
    ];
    /// Nobody listens: to a server that understands it, this is [`Failure::NoHandler`].
    const ABANDONED: u8 = 254;
    /// It was dropped for want of room: to a server that understands it, this is [`Failure::Error`].
    const PUSHED_OUT: u8 = 253;
    const FORGOTTEN: u8 = 255;

    fn new(memory: &Arc<SessionMemory>, epoch: u64, offset: u64) -> Self {
        Self { memory: Arc::clone(memory), epoch, offset, end: AtomicU8::new(0) }
    }

    /// Nobody has handled the message, and nobody will on this connection: it is not acknowledged.
    pub(super) fn forget(&self) {
        self.end.store(Self::FORGOTTEN, Ordering::Relaxed);
    }

    /// The message was not handled, and will not be. What is said first counts.
    pub(super) fn end_as(&self, stage: Stage) {
        let end = Self::ENDS.iter().position(|end| *end == stage).map_or(0, |at| at as u8 + 1);
        let _ = self.end.compare_exchange(0, end, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The application will not see it: there was no room.
    pub(super) fn push_out(&self) {
        let _ = self.end.compare_exchange(0, Self::PUSHED_OUT, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The application does not listen any more.
    pub(super) fn abandon(&self) {
        let _ = self.end.compare_exchange(0, Self::ABANDONED, Ordering::Relaxed, Ordering::Relaxed);
    }
}

impl Drop for Ack {
    fn drop(&mut self) {
        let end = *self.end.get_mut();
        let mut state = self.memory.state.lock();
        let is_lost = matches!(end, Self::ABANDONED | Self::PUSHED_OUT);
        if state.epoch != self.epoch || end == Self::FORGOTTEN || (is_lost && !state.outcomes) {
            return;
        }

        let failed = match end {
            0 => None,
            Self::ABANDONED => Some(Stage::Failed(Failure::NoHandler)),
            Self::PUSHED_OUT => Some(Stage::Failed(Failure::Error)),
            end => Self::ENDS.get(usize::from(end) - 1).copied(),
        };
        if let Some(stage) = failed.filter(|_| state.outcomes)
            && !state.offsets.failures.add(self.offset, stage)
        {
            // One that is not noted would be acknowledged as handled.
            return;
        }

        state.offsets.handle(self.offset);
        // Let go first: the task that is woken needs it.
        drop(state);
        self.memory.progress.notify_one();
    }
}

impl SessionMemory {
    /// The pairs of a Hello: who this client was, and how far it is.
    pub(super) fn hello(&self) -> Metadata {
        let mut state = self.state.lock();
        // What an earlier connection still brings does not count from here on.
        state.connection = None;
        if state.known.is_some() {
            state.attempts = state.attempts.saturating_add(1);
        }

        match &state.known {
            None => Metadata::new(),
            Some(known) => {
                // An offset past a failure that the Hello cannot name would call it handled.
                let behind = state.offsets.failures.lowest_behind_hello();
                let handled = behind.map_or(state.offsets.handled, |lowest| state.offsets.handled.min(lowest - 1));

                let mut hello = Metadata::new()
                    .with(keys::SESSION_ID, &known.id)
                    .with(keys::SESSION_KEY, &known.key)
                    .with(keys::SESSION_OFFSET, handled.to_string())
                    .with(keys::SESSION_RECEIVED, state.offsets.received.to_string())
                    .with(keys::SESSION_TRY, state.attempts.to_string());
                put_failed(&mut hello, &state.offsets.failures.of_hello());
                hello
            }
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
        let agreed = welcome.and_then(Welcome::from_metadata).map(|welcome| welcome.capabilities);
        state.outcomes = agreed.is_some_and(|agreed| agreed.contains(Capabilities::OUTCOMES));

        if resumed && had && state.known.is_some() {
            // What the server heard last may have been lost with the old connection.
            state.offsets.told = (0, 0);
            state.offsets.failures.untold = state.offsets.failures.all.len();
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

    /// A message came under this number. `has_room` is asked if it may be tracked, without a lock.
    ///
    /// Offsets have no holes. What is here already may come again, and is not new for that.
    pub(super) fn receive(
        self: &Arc<Self>,
        connection: ConnectionId,
        seq: Seq,
        has_room: impl FnOnce() -> bool,
    ) -> Received {
        let offset = if seq.is_push() { seq.unmarked() } else { 0 };
        if offset == 0 {
            return Received::Untracked;
        }

        // Before the lock: the queue that is asked has one of its own, and may drop acknowledgements, which take this
        // one.
        let has_room = has_room();
        let mut state = self.state.lock();
        if state.known.is_none() {
            return Received::Untracked;
        }
        if state.connection != Some(connection) {
            return Received::Past;
        }

        let next = state.offsets.received + 1;
        if next < offset {
            return Received::False(PeerMisbehaved::FalseOffset { sent: offset, expected: next });
        }
        if offset < next {
            return Received::Repeated;
        }
        if !has_room {
            return Received::NoRoom;
        }

        state.offsets.received = offset;
        let epoch = state.epoch;
        // Let go first: the task that is woken needs it.
        drop(state);
        self.progress.notify_one();
        Received::New(Ack::new(self, epoch, offset))
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

    /// Waits until an acknowledgement is due on this connection, and returns it.
    ///
    /// None is due before the server has said which session the connection has: it could belong to another, and
    /// a server takes the first for a sign that its Welcome arrived.
    ///
    /// Dropping the future loses nothing: what is due stays due.
    pub(super) async fn due(&self, connection: ConnectionId) -> Acks {
        loop {
            // Not held over the waiting below: messages are received meanwhile.
            let (untold, is_past) = {
                let state = self.state.lock();
                let is_here = state.connection == Some(connection);
                (if is_here { state.offsets.untold(state.outcomes) } else { 0 }, Some(connection) < state.connection)
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

    /// The session is over, by this side or the other: nothing that came in it is acknowledged any more, and no Hello
    /// names it. False: there was none.
    pub(super) fn lose(&self) -> bool {
        let mut state = self.state.lock();
        state.epoch += 1;
        state.offsets = Offsets::default();
        state.known.take().is_some()
    }

    /// This client leaves its session: what it acknowledges at last, in so many parts. `None`: it has none, or not on
    /// this connection.
    pub(super) fn leave(&self, connection: ConnectionId) -> Option<Vec<Metadata>> {
        let mut parts = vec![self.tell(connection)?.to_metadata()];
        while 0 < self.state.lock().offsets.failures.untold {
            parts.push(self.tell(connection)?.to_metadata());
        }
        self.lose().then_some(parts)
    }

    /// What to acknowledge; `None` if the session has left this connection.
    fn tell(&self, connection: ConnectionId) -> Option<Acks> {
        let mut state = self.state.lock();
        let outcomes = state.outcomes;
        (state.connection == Some(connection)).then(|| state.offsets.tell(outcomes))
    }
}

/// The acknowledgements of so many messages of one session.
#[cfg(test)]
pub(super) fn acks(messages: u64) -> Vec<Ack> {
    let memory = Arc::<SessionMemory>::default();
    (1..=messages).map(|offset| Ack::new(&memory, 0, offset)).collect()
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

    /// What the server knows, as it has said so itself, is not told to it again.
    #[test]
    fn a_client_that_begins_somewhere_has_nothing_to_tell() {
        let mut offsets = Offsets::starting_at(100);
        assert_eq!([true, false].map(|outcomes| offsets.untold(outcomes)), [0, 0]);
        offsets.received = 103;
        assert_eq!([true, false].map(|outcomes| offsets.untold(outcomes)), [3, 3]);
        for offset in [103, 101, 102] {
            offsets.handle(offset);
        }
        assert_eq!((offsets.handled, offsets.dealt_with, offsets.ahead.len()), (103, 3, 0));
        assert_eq!(Offsets::starting_at(u64::MAX).received, OFFSET_MAX);
    }

    /// What comes under these offsets, each for the first time.
    fn receive(memory: &Arc<SessionMemory>, on: u64, offsets: impl IntoIterator<Item = u64>) -> Vec<Ack> {
        let received = |offset| match memory.receive(connection(on), Seq::of_push(offset), || true) {
            Received::New(ack) => ack,
            _ => panic!("{offset} is new"),
        };
        offsets.into_iter().map(received).collect()
    }

    async fn acks_due(memory: &SessionMemory, on: u64) -> Acks {
        tokio::time::timeout(Duration::from_secs(1), memory.due(connection(on))).await.expect("it is due")
    }

    async fn due(memory: &SessionMemory, on: u64) -> (u64, u64) {
        let acks = acks_due(memory, on).await;
        assert!(acks.ends.is_empty(), "this server understands no more");
        (acks.received, acks.handled)
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

    /// A client with a session at a server that understands what became of each message.
    fn memory_with_outcomes() -> Arc<SessionMemory> {
        let memory = Arc::<SessionMemory>::default();
        memory.handle_welcome(connection(1), Some(&of_outcomes(welcome())));
        memory
    }

    fn of_outcomes(mut pairs: Metadata) -> Metadata {
        let capabilities = Capabilities::SESSIONS.union(Capabilities::OUTCOMES);
        Welcome { version: bothways_proto::VERSION, capabilities }.put(&mut pairs);
        pairs
    }

    fn failed(offset: u64) -> End {
        (offset..=offset, Stage::Failed(Failure::Error))
    }

    /// How a message failed that has not failed as those beside it.
    fn unlike(offset: u64) -> Stage {
        Stage::Failed(if offset.is_multiple_of(2) { Failure::Error } else { Failure::Panicked })
    }

    fn failed_unlike(offset: u64) -> End {
        (offset..=offset, unlike(offset))
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_handled_or_failed_out_of_order_is_told_at_once() {
        let memory = memory_with_outcomes();
        let mut acks: Vec<_> = receive(&memory, 1, 1..=7).into_iter().map(Some).collect();
        for offset in [7, 2, 4, 3] {
            let ack = acks[offset - 1].take().expect("it is held");
            if offset == 4 {
                ack.end_as(Stage::Failed(Failure::Error));
                ack.end_as(Stage::Failed(Failure::Panicked));
            }
        }
        let (first, second) = ((2..=4, Stage::Handled), (7..=7, Stage::Handled));
        let expected = Acks { received: 7, handled: 0, ends: vec![failed(4), first, second.clone()] };
        assert_eq!(acks_due(&memory, 1).await, expected);
        acks[0] = None;
        assert_eq!(acks_due(&memory, 1).await, Acks { received: 7, handled: 4, ends: vec![second.clone()] });
        // The server may have heard nothing of it.
        let hello = memory.hello();
        assert_eq!((hello.get(keys::SESSION_OFFSET), hello.get(keys::ACK_FAILED)), (Some("4"), Some("4:error")));
        memory.handle_welcome(connection(2), Some(&of_outcomes(resumed())));
        assert_eq!(acks_due(&memory, 2).await, Acks { received: 7, handled: 4, ends: vec![failed(4), second] });
    }

    /// No acknowledgement says of an offset that it is handled before those say so that tell which of them failed.
    #[tokio::test(start_paused = true)]
    async fn many_failures_are_told_before_what_follows_them() {
        let memory = memory_with_outcomes();
        for ack in receive(&memory, 1, 1..=40) {
            ack.end_as(unlike(ack.offset));
        }
        for (failures, handled) in [(1..=16, 0), (17..=32, 0), (33..=40, 40)] {
            let ends: Vec<End> = failures.map(failed_unlike).collect();
            assert_eq!(acks_due(&memory, 1).await, Acks { received: 40, handled, ends });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_failures_are_remembered_and_nothing_is_known_of_older_ones() {
        let memory = memory_with_outcomes();
        let more = FAILURES_MAX as u64 + 2;
        for ack in receive(&memory, 1, 1..=more) {
            ack.end_as(unlike(ack.offset));
        }
        while 0 < memory.state.lock().offsets.failures.untold {
            acks_due(&memory, 1).await;
        }
        let hello = memory.hello();
        let ends = crate::session::failed(&hello).expect("it is well formed");
        assert_eq!((ends.len(), ends.first()), (FAILURES_MAX + 1, Some(&failed_unlike(3))));
        assert_eq!(ends.last(), Some(&(1..=2, Stage::Unknown)));
    }

    /// However many messages failed, and however, what a Hello says of them fits into the metadata that a careful
    /// server takes; those that failed alike are one run.
    #[tokio::test(start_paused = true)]
    async fn the_failures_of_a_hello_are_small() {
        for unlike_each in [true, false] {
            let memory = memory_with_outcomes();
            for offset in 1..=20_000 {
                let ack = receive(&memory, 1, offset..=offset).remove(0);
                ack.end_as(if unlike_each { unlike(offset) } else { Stage::Failed(Failure::NoHandler) });
                drop(ack);
                if offset.is_multiple_of(100) {
                    while 0 < memory.state.lock().offsets.failures.untold {
                        acks_due(&memory, 1).await;
                    }
                }
            }
            let hello = memory.hello();
            assert_eq!(hello.get(keys::SESSION_OFFSET), Some("20000"));
            let said = hello.get(keys::ACK_FAILED).expect("they failed");
            assert!(said.len() < 2048, "{said}");
            if !unlike_each {
                assert_eq!(said, "1-20000:no_handler");
            }
        }
    }

    /// A Hello has room for so many, and covers none of the others.
    #[test]
    fn a_failure_that_was_not_told_is_not_forgotten() {
        let memory = memory_with_outcomes();
        let max = FAILURES_MAX as u64;
        receive(&memory, 1, 1..=4 * max).iter().for_each(|ack| ack.end_as(unlike(ack.offset)));
        let hello = memory.hello();
        assert_eq!(hello.get(keys::SESSION_OFFSET), Some(&*max.to_string()));
        let ends = crate::session::failed(&hello).expect("it is well formed");
        assert_eq!(ends, (1..=max).map(failed_unlike).collect::<Vec<_>>());
    }

    #[test]
    fn so_many_failures_wait_to_be_told_and_others_are_not_acknowledged() {
        let memory = memory_with_outcomes();
        let max = UNTOLD_MAX as u64;
        receive(&memory, 1, 1..=max + 1).iter().for_each(|ack| ack.end_as(unlike(ack.offset)));
        let offsets = &memory.state.lock().offsets;
        assert_eq!((offsets.failures.all.len(), offsets.handled), (UNTOLD_MAX, max));
    }

    /// The queue that is asked for room takes a lock, under which others may drop acknowledgements.
    #[test]
    fn room_is_asked_for_without_a_lock() {
        let memory = memory();
        let has_room = || memory.state.try_lock().is_some();
        assert!(matches!(memory.receive(connection(1), Seq::of_push(1), has_room), Received::New(_)));
    }

    /// Whatever is lost on the way, a server never takes for handled what failed.
    mod histories {
        use proptest::prelude::*;

        use super::*;

        #[derive(Clone, Debug)]
        enum Command {
            Receive(u64),
            /// So many of those that are held, every second one or all of them, from either end.
            End {
                many: usize,
                step: usize,
                last_first: bool,
            },
            Tell {
                times: usize,
                arrives: bool,
            },
            Return {
                arrives: bool,
            },
        }

        fn command() -> impl Strategy<Value = Command> {
            prop_oneof![
                4 => (1..700_u64).prop_map(Command::Receive),
                4 => (1..1500_usize, 1..4_usize, any::<bool>())
                    .prop_map(|(many, step, last_first)| Command::End { many, step, last_first }),
                3 => (1..12_usize, prop::bool::weighted(0.7))
                    .prop_map(|(times, arrives)| Command::Tell { times, arrives }),
                2 => any::<bool>().prop_map(|arrives| Command::Return { arrives }),
            ]
        }

        /// What a server has heard.
        #[derive(Default)]
        struct Heard {
            handled: u64,
            ends: BTreeMap<u64, Stage>,
        }

        impl Heard {
            fn hear(&mut self, ends: &[End], handled: u64, sent: u64) {
                for (range, stage) in ends {
                    for offset in range.clone().filter(|offset| self.handled < *offset && *offset <= sent) {
                        self.ends.entry(offset).or_insert(*stage);
                    }
                }
                for offset in self.handled + 1..=handled {
                    self.ends.entry(offset).or_insert(Stage::Handled);
                }
                self.handled = self.handled.max(handled);
            }
        }

        struct World {
            memory: Arc<SessionMemory>,
            heard: Heard,
            held: VecDeque<Ack>,
            failed: Vec<u64>,
            sent: u64,
            /// The present connection, and whether it still brings anything.
            on: u64,
            is_whole: bool,
        }

        impl World {
            fn run(&mut self, command: &Command) {
                match *command {
                    Command::Receive(many) => {
                        let offsets = self.sent + 1..=self.sent + many;
                        self.held.extend(receive(&self.memory, self.on, offsets));
                        self.sent += many;
                    }
                    Command::End { many, step, last_first } => {
                        for at in 0..many {
                            let next = if last_first { self.held.pop_back() } else { self.held.pop_front() };
                            let Some(ack) = next else { return };
                            if at % step == 0 {
                                self.failed.push(ack.offset);
                                ack.end_as(if at % 5 == 0 {
                                    Stage::Failed(Failure::Error)
                                } else {
                                    unlike(ack.offset)
                                });
                            }
                        }
                    }
                    Command::Tell { times, arrives } => (0..times).for_each(|_| self.tell(arrives)),
                    Command::Return { arrives } => self.come_back(arrives),
                }
            }

            fn tell(&mut self, arrives: bool) {
                self.is_whole &= arrives;
                let told = self.memory.tell(connection(self.on)).expect("it is the connection");
                let wire = Acks::from_metadata(&told.to_metadata()).expect("it is well formed");
                if self.is_whole {
                    self.heard.hear(&wire.ends, wire.handled, self.sent);
                }
            }

            fn come_back(&mut self, arrives: bool) {
                let mut arrives = arrives;
                loop {
                    let hello = self.memory.hello();
                    let handled = hello.get(keys::SESSION_OFFSET).and_then(|at| at.parse().ok()).expect("a number");
                    // The Hello may arrive, and its Welcome not.
                    if arrives {
                        assert!(self.heard.handled <= handled, "it has lost its place");
                        let ends = crate::session::failed(&hello).expect("it is well formed");
                        self.heard.hear(&ends, handled, self.sent);
                    }
                    self.on += 1;
                    self.is_whole = true;
                    if arrives {
                        self.memory.handle_welcome(connection(self.on), Some(&of_outcomes(resumed())));
                        return;
                    }
                    arrives = true;
                }
            }

            fn check(&self) {
                for offset in &self.failed {
                    assert_ne!(self.heard.ends.get(offset), Some(&Stage::Handled), "{offset} failed");
                }
            }
        }

        proptest! {
            #![proptest_config(ProptestConfig::with_cases(64))]
            #[test]
            fn what_failed_is_never_told_as_handled(commands in prop::collection::vec(command(), 0..40)) {
                let memory = memory_with_outcomes();
                let (heard, held, failed) = (Heard::default(), VecDeque::new(), Vec::new());
                let mut world = World { memory, heard, held, failed, sent: 0, on: 1, is_whole: true };
                for command in &commands {
                    world.run(command);
                    world.check();
                }
                world.held.clear();
                world.come_back(true);
                for _ in 0..2_000 {
                    world.tell(true);
                }
                world.check();
                prop_assert_eq!(world.heard.ends.len() as u64, world.sent, "it has heard of each");
            }
        }
    }

    /// One that is held costs a place, and not one for each that follows it.
    #[test]
    fn runs_of_what_is_handled_take_one_place_each() {
        let memory = memory_with_outcomes();
        let _held: Vec<_> = receive(&memory, 1, 1..=1000).into_iter().filter(|ack| ack.offset % 500 == 1).collect();
        assert_eq!(memory.state.lock().offsets.ahead, BTreeMap::from([(2, 500), (502, 1000)]));
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_server_is_told_what_it_understands() {
        let memory = memory();
        let mut acks = receive(&memory, 1, 1..=3);
        acks[0].end_as(Stage::Failed(Failure::Error));
        acks[2].abandon();
        acks.remove(0);
        assert_eq!(due(&memory, 1).await, (3, 1));
        drop(acks.remove(1));
        drop(acks);
        assert_eq!(due(&memory, 1).await, (3, 2), "nobody has dealt with the third");
        assert_eq!(memory.hello().get(keys::ACK_FAILED), None);
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

    /// What a server sends under these offsets on one connection, as letters: New, Repeated, False, Past.
    fn letters(memory: &Arc<SessionMemory>, on: u64, offsets: &[u64]) -> String {
        let letter = |offset: &u64| match memory.receive(connection(on), Seq::of_push(*offset), || true) {
            Received::New(_) => 'N',
            Received::Repeated => 'R',
            Received::Past => 'P',
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
        assert_eq!(letters(&memory, 1, &[6, 9]), "PP", "the session has left it");
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

    /// What the queue had no room for failed, and what nobody listens to has no handler; what was forgotten is not told.
    #[tokio::test(start_paused = true)]
    async fn what_the_application_never_saw_is_told_as_that() {
        let memory = memory_with_outcomes();
        let acks = receive(&memory, 1, 1..=3);
        acks[0].push_out();
        acks[0].abandon();
        acks[1].abandon();
        acks[1].push_out();
        acks[2].forget();
        drop(acks);
        let told = |offset, why| (offset..=offset, Stage::Failed(why));
        let ends = vec![told(1, Failure::Error), told(2, Failure::NoHandler)];
        assert_eq!(acks_due(&memory, 1).await, Acks { received: 3, handled: 2, ends });
    }

    /// Whatever became of a message with a key, its repetition is told as that.
    #[tokio::test(start_paused = true)]
    async fn a_repetition_is_told_as_its_first() {
        use crate::client::repeats::Lost;
        let memory = memory_with_outcomes();
        let lost = [
            (Lost::PushedOut, Stage::Failed(Failure::Error)),
            (Lost::Abandoned, Stage::Failed(Failure::NoHandler)),
            (Lost::Superseded, Stage::Superseded),
            (Lost::Failed(Failure::Panicked), Stage::Failed(Failure::Panicked)),
        ];
        for (ack, (lost, _)) in receive(&memory, 1, 1..=4).iter().zip(&lost) {
            lost.say_of(ack);
        }
        let ends = (1..).zip(lost).map(|(offset, (_, stage))| (offset..=offset, stage)).collect();
        assert_eq!(acks_due(&memory, 1).await, Acks { received: 4, handled: 4, ends });
        receive(&memory, 1, 5..=5).iter().for_each(|ack| Lost::Forgotten.say_of(ack));
        assert_eq!(acks_due(&memory, 1).await, Acks { received: 5, handled: 4, ends: vec![] });
    }

    /// The key of a session is a secret.
    #[test]
    fn nobody_reads_the_key_in_a_log() {
        let known = Known { id: "12".into(), key: "secret".into() };
        assert_eq!(format!("{known:?}"), "Known { id: \"12\", .. }");
    }
}
