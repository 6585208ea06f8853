//! Pushes to very many sessions, which get them in turns of bounded time.
//!
//! To walk a hundred thousand sessions takes longer than others can wait. So what is published to a long list is noted in
//! a [`Batch`], which is all that its publisher waits for; tasks walk the list part by part, and others run in between.
//!
//! Nobody sees that either. A session that is locked before its turn takes what is noted for it first, as it does with
//! each batch that it has joined ([`Session::lock`]): it finds its place by its number, unless it has looked since the
//! newest long batch began. A session that stands for another one, whose client came back to it, takes what that one
//! would. What begins a long batch closes all others, so that each session takes them in the order of their beginnings.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    Session, SessionId,
    batch::{Batch, Batches},
    lock::Held,
    state::State,
    subscribers::LongList,
};
use crate::guard;

/// Sessions that are written to before it is asked whether others are to have their turn.
pub(super) const WRITTEN_AT_ONCE: usize = 32;

/// After so long they have it. Half a millisecond: of two tasks that give way to each other a runtime may let one have
/// two turns before the other's, and nobody is to wait for more than one.
pub(super) const TURN_TIME: Duration = Duration::from_micros(500);

/// The same here. In tests each session of a long batch has a turn of its own.
const AT_ONCE: usize = if cfg!(test) { 1 } else { WRITTEN_AT_ONCE };
const TURN: Duration = if cfg!(test) { Duration::ZERO } else { TURN_TIME };

/// Long batches above which a thread that begins one more does a turn of the work itself.
const MANY: usize = 16;

/// Long batches, and bytes of their frames, above which it does all that is beyond.
const BATCHES_MAX: usize = 64;
const BYTES_MAX: usize = 16 << 20;

/// Long batches of all servers in this process that are not written yet.
static UNWRITTEN: AtomicUsize = AtomicUsize::new(0);

/// The number of the one that was begun last.
static NEWEST: AtomicU32 = AtomicU32::new(0);

/// The number of the newest long batch, if any is not written yet: a session that has looked since then owes no look.
pub(super) fn newest() -> Option<u32> {
    (UNWRITTEN.load(Ordering::Acquire) != 0).then(|| NEWEST.load(Ordering::Acquire))
}

/// The part of a [`Batch`] that says how far its list is walked.
pub(super) struct Walked {
    pub(super) list: Arc<LongList<Session>>,
    /// As [`newest`] counts them.
    number: u32,
    /// A bit for each place: somebody has taken what is noted there, or takes it from now on.
    taken: Box<[AtomicU64]>,
    /// From this place on it is nobody's turn yet.
    next: AtomicUsize,
    /// Those whose turn is not over.
    left: AtomicUsize,
}

impl Walked {
    pub(super) fn begin(list: &Arc<LongList<Session>>) -> Self {
        let taken = std::iter::repeat_with(AtomicU64::default).take(list.len().div_ceil(64)).collect();
        let number = NEWEST.fetch_add(1, Ordering::AcqRel).wrapping_add(1);
        Self { list: Arc::clone(list), number, taken, next: AtomicUsize::new(0), left: AtomicUsize::new(list.len()) }
    }

    fn place_of(&self, id: SessionId) -> Option<usize> {
        self.list.place_of(id.0)
    }

    /// True if this is the first to ask for what is noted for that place. Asked under the lock of who takes it.
    fn take(&self, place: usize) -> bool {
        let bit = 1 << (place % 64);
        self.taken.get(place / 64).is_some_and(|taken| taken.fetch_or(bit, Ordering::AcqRel) & bit == 0)
    }

    /// So many places whose turn it is now, at most.
    fn claim(&self, max: usize) -> Option<(usize, &[Session])> {
        let mut claimed: &[Session] = &[];
        let after = |next: usize| {
            claimed = self.list.at(next, max);
            (!claimed.is_empty()).then_some(next + claimed.len())
        };
        let first = self.next.fetch_update(Ordering::AcqRel, Ordering::Acquire, after).ok()?;
        Some((first, claimed))
    }
}

/// A long batch that counts as unwritten.
pub(super) struct Unwritten {
    pub(super) batch: Arc<Batch>,
    _count: Count,
}

struct Count;

impl Drop for Count {
    fn drop(&mut self) {
        UNWRITTEN.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Unwritten {
    pub(super) fn begin(batch: Arc<Batch>) -> Self {
        UNWRITTEN.fetch_add(1, Ordering::AcqRel);
        Self { batch, _count: Count }
    }
}

impl Batch {
    /// Before anything else happens to this session: it takes what is noted for it, and from now on whenever it is
    /// locked.
    fn take_part(self: &Arc<Self>, walked: &Walked, session: &Session, state: &mut State) {
        if state.made_way_for().is_some() {
            // The session that it made way for does.
            return;
        }
        let in_place_of = || state.stands_for().and_then(|id| walked.place_of(id));
        if let Some(place) = walked.place_of(session.id()).or_else(in_place_of) {
            self.take_at(walked, place, session, state);
        }
    }

    /// This session takes what is noted for this place, unless somebody has.
    fn take_at(self: &Arc<Self>, walked: &Walked, place: usize, session: &Session, state: &mut State) {
        if !walked.take(place) || state.is_in(self) {
            return;
        }
        let event_log = &session.inner.event_log;
        if state.join(self, event_log).is_some() {
            return state.catch_up(event_log);
        }
        // What comes later it gets by another one, once it is known what becomes of it.
        self.close();
        state.take_outside(self, |wanted| walked.place_of(wanted).is_some(), event_log);
    }

    /// It is the turn of who has this place. `is_oldest`: no other long batch can be before this one.
    fn write_at(self: &Arc<Self>, walked: &Walked, place: usize, session: &Session, is_oldest: bool) {
        let mut state = if is_oldest { session.lock_in_turn() } else { session.lock() };
        let Some(into) = state.made_way_for().cloned() else {
            self.take_at(walked, place, session, &mut state);
            if is_oldest {
                // Its client's acknowledgement may come while others have their turns: it need not look for its place.
                state.has_seen(walked.number);
            }
            return session.write_batch_of(state, self);
        };
        drop(state);

        if walked.place_of(into.id()).is_some() {
            // It is not a target twice. Nobody is woken while what is noted is being read.
            let _held = Held::begin();
            if walked.take(place) {
                self.noted().iter().for_each(|noted| noted.with_topic.leave());
            }
            return;
        }
        let mut state = into.lock();
        self.take_at(walked, place, &into, &mut state);
        into.write_batch_of(state, self);
    }
}

impl Batches {
    /// The session takes what is noted for it in long batches, in their order.
    #[cold]
    pub(super) fn take_part(&self, session: &Session, state: &mut State) {
        let unwritten: Vec<Arc<Batch>> = self.long().iter().map(|long| Arc::clone(&long.batch)).collect();
        for batch in unwritten {
            if let Some(walked) = batch.walked() {
                batch.take_part(walked, session, state);
            }
        }
    }

    /// Writes to so many sessions of long batches at most. False: it is the turn of all of them already.
    fn write_some(&self, max: usize) -> bool {
        let Some((batch, is_oldest)) = self.next_long() else { return false };
        let Some(walked) = batch.walked() else { return false };
        let Some((first, sessions)) = walked.claim(max) else { return true };
        batch.close();
        for (at, session) in sessions.iter().enumerate() {
            guard::one_of_many(|| batch.write_at(walked, first + at, session, is_oldest));
        }

        let count = sessions.len();
        if walked.left.fetch_sub(count, Ordering::AcqRel) == count {
            self.forget_long(&batch);
        }
        true
    }

    /// One that is not in the turn of all its sessions.
    fn next_long(&self) -> Option<(Arc<Batch>, bool)> {
        let long = self.long();
        let has_more = |batch: &Batch| batch.walked().is_some_and(|it| it.next.load(Ordering::Acquire) < it.list.len());
        let at = long.iter().position(|long| has_more(&long.batch))?;
        Some((Arc::clone(&long[at].batch), at == 0))
    }

    /// Writes until others are to have their turn. False: there is nothing more.
    fn write_a_turn(&self) -> bool {
        let began = Instant::now();
        loop {
            if !self.write_some(AT_ONCE) {
                return false;
            }
            if TURN <= began.elapsed() {
                return true;
            }
        }
    }

    /// A thread has noted something in a long batch. Where it goes on without giving others their turn, it does their work.
    pub(super) fn help(&self) {
        let are_many = |batches_max: usize| batches_max < self.long().len() || BYTES_MAX < self.long_bytes();
        if are_many(MANY) {
            self.write_a_turn();
        }
        while are_many(BATCHES_MAX) && self.write_some(AT_ONCE) {}
    }
}

/// Writes long batches until there are none. Dropped with its runtime, it writes what is left.
pub(super) struct Walker(pub(super) Arc<Batches>);

impl Walker {
    pub(super) async fn run(self) {
        loop {
            // Those that are ready publish first.
            tokio::task::yield_now().await;
            if !self.0.write_a_turn() {
                return;
            }
        }
    }
}

impl Drop for Walker {
    fn drop(&mut self) {
        while self.0.write_some(usize::MAX) {}
    }
}

#[cfg(test)]
mod tests {
    use bothways_proto::Metadata;

    use super::{
        super::{
            Class, Push, Receipt, Stage,
            batch::Noted,
            fixtures::{claim, plain_connections},
            flight::Flight,
            push::Origin,
            registry::Registry,
            subscribers::{Listing, Subscribers},
        },
        *,
    };
    use crate::{Client, Server, connection::Connection};

    /// A server whose every list is a long one, and its clients, who subscribe to `all`.
    async fn subscribed<const N: usize>(
        name: &str,
    ) -> (Server, Vec<Client>, Arc<Registry>, [Connection; N], [Session; N]) {
        let (server, clients, registry, connections) = plain_connections::<N>(name).await;
        registry.fan_out.crowd.store(1, Ordering::Relaxed);
        let sessions = connections.each_ref().map(|connection| registry.of(connection).expect("it is made"));
        for session in &sessions {
            registry.hub.subscribe(session, "all", None, false).expect("there is room");
        }
        (server, clients, registry, connections, sessions)
    }

    fn publish(server: &Server, text: &str) -> Receipt {
        server.publish("all", &Push::new("T", "m", text.to_owned()).class(Class::Fire)).expect("small")
    }

    fn written(receipt: &Receipt) -> usize {
        receipt.outcomes().at(Stage::PlainWritten)
    }

    /// A publish ends before anybody has it. Its receipt knows all its targets, and others run between two parts.
    #[tokio::test(start_paused = true)]
    async fn others_run_between_the_parts() {
        let (server, _clients, registry, _connections, _sessions) = subscribed::<5>("parts").await;
        let receipts = ["1", "2", "3"].map(|text| publish(&server, text));
        assert!(receipts.iter().all(|receipt| receipt.outcomes().at(Stage::Queued) == 5), "{receipts:?}");
        let last = receipts[2].clone();
        let other_task = tokio::spawn(async move {
            let mut seen = Vec::new();
            while seen.last() != Some(&5) {
                assert!(seen.len() < 20, "it comes to no end: {seen:?}");
                seen.push(written(&last));
                tokio::task::yield_now().await;
            }
            seen
        });
        let seen = other_task.await.expect("no panic");
        // A runtime may turn the order of two that give way to each other.
        assert!(seen.windows(2).all(|two| two[1] <= two[0] + 2), "one after the other: {seen:?}");
        assert!(receipts.iter().all(|receipt| written(receipt) == 5), "each took all three at once: {receipts:?}");
        assert!(!registry.fan_out.has_batches());
    }

    /// What is for one session alone does not overtake what was published, however long its turn is off.
    #[tokio::test(start_paused = true)]
    async fn a_session_takes_it_before_its_turn() {
        let (server, _clients, _registry, connections, sessions) = subscribed::<3>("before-its-turn").await;
        let published = publish(&server, "1");
        let receipt = sessions[1].push(&Push::new("T", "m", "2").class(Class::Fire)).expect("small");
        assert_eq!((written(&published), written(&receipt)), (1, 1), "nobody else has it");
        assert_eq!(connections[1].pushes_written(), 2, "and went behind the first");
        assert_eq!([0, 2].map(|other: usize| connections[other].pushes_written()), [0, 0]);
        assert_eq!(published.written().await.at(Stage::PlainWritten), 3);
    }

    /// A session that has had its turn does not look again for its place in that batch, and one that has not does.
    #[tokio::test(start_paused = true)]
    async fn who_had_its_turn_looks_no_more() {
        let (server, _clients, registry, _connections, sessions) = subscribed::<3>("looks-no-more").await;
        let receipt = publish(&server, "1");
        let number = registry.fan_out.batches.long()[0].batch.walked().expect("it is long").number;
        assert!(registry.fan_out.batches.write_some(1));
        let looks = sessions.each_ref().map(|session| session.inner.state.lock().has_not_seen(number));
        assert_eq!(looks, [false, true, true], "the first in the order in which they began");
        // That question was taken for a look: what is noted for these waits for their turns.
        while registry.fan_out.batches.write_some(1) {}
        assert_eq!(written(&receipt), 3);
    }

    /// If the runtime of a publisher ends, nothing is lost.
    #[test]
    fn all_get_it_though_the_runtime_ends() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (all, receipt) = runtime.block_on(async {
            let all = subscribed::<3>("runtime-ends").await;
            let receipt = publish(&all.0, "1");
            (all, receipt)
        });
        assert_eq!(receipt.outcomes().at(Stage::Queued), 3);
        drop(runtime);
        assert_eq!(receipt.outcomes().at(Stage::Queued), 0, "{receipt:?}");
        drop(all);
    }

    /// A thread that publishes without a pause does the work itself, beyond a bound.
    #[tokio::test(start_paused = true)]
    async fn what_waits_is_bounded() {
        let (server, _clients, registry, _connections, sessions) = subscribed::<3>("bounded").await;
        let mut receipts = Vec::new();
        for round in 0..3 * BATCHES_MAX {
            receipts.push(publish(&server, "1"));
            // A session that comes or goes makes another list.
            registry.hub.unsubscribe(&sessions[0], "all");
            registry.hub.subscribe(&sessions[0], "all", None, false).expect("there is room");
            assert!(registry.fan_out.batches.long().len() <= BATCHES_MAX, "in round {round}");
        }
        let large = Push::new("T", "m", vec![b'x'; 1 << 20]).class(Class::Fire);
        for _ in 0..2 * (BYTES_MAX >> 20) {
            server.publish("all", &large).expect("small enough");
            assert!(registry.fan_out.batches.long_bytes() <= BYTES_MAX);
        }
        for receipt in &receipts {
            receipt.written().await;
        }
        while registry.fan_out.has_batches() {
            tokio::task::yield_now().await;
        }
        assert_eq!(registry.fan_out.batches.long_bytes(), 0);
    }

    /// A message to these, as a thread notes it that found them before something happened.
    fn note(registry: &Registry, sessions: &[Session], text: &'static str) -> Receipt {
        let mut subscribers = Subscribers::default();
        sessions.iter().for_each(|session| _ = subscribers.insert(session.clone()));
        let Listing::Long(list) = subscribers.listing(1) else { panic!("they are too few") };
        let (push, receipt) = (Push::new("T", "m", text), Receipt::new());
        receipt.enter(list.len());
        let encoded = registry.fan_out.encode(&push).expect("small");
        let flight = Flight::of(&push, &encoded, &receipt, Origin::Push).expect("it has no key");
        let (batch, _) = registry.fan_out.batches.of_long(&list);
        assert!(registry.fan_out.batches.note_long(&batch, Noted::new(&push, flight, None, None)).is_ok());
        receipt
    }

    /// A session, and another one that has made way for it, whose client came back to the first.
    async fn heir_and_gone(name: &str) -> (Server, Vec<Client>, Arc<Registry>, Session, Session, Session) {
        let (server, clients, registry, [first, second, third]) = plain_connections::<3>(name).await;
        let welcome = registry.arrive(&first, &Metadata::new()).expect("it is open");
        registry.welcomed(&first);
        let [heir, gone, other] = [&first, &second, &third].map(|it| registry.of(it).expect("it is made"));
        registry.arrive(&second, &claim(&welcome)).expect("it is open");
        registry.welcomed(&second);
        assert_eq!(gone.current(), heir);
        (server, clients, registry, heir, gone, other)
    }

    /// What was published to a session that has just made way goes to the one that it made way for, and before all that
    /// comes later.
    #[tokio::test(start_paused = true)]
    async fn what_was_for_a_session_that_made_way_is_for_the_other() {
        let (_server, _clients, registry, heir, gone, other) = heir_and_gone("heir").await;
        let receipt = note(&registry, &[gone.clone(), other.clone()], "1");
        let later = heir.push(&Push::new("T", "m", "2")).expect("small");
        let written = |receipt: &Receipt| receipt.outcomes().at(Stage::Queued) == 0;
        assert_eq!((heir.waiting().0, written(&later)), (2, true), "both are with its client, and not handled");
        while registry.fan_out.batches.write_some(1) {}
        assert!(written(&receipt), "{receipt:?}");
        assert_eq!(heir.waiting().0, 2, "and none comes twice");
        let again = note(&registry, &[gone, other], "3");
        while registry.fan_out.batches.write_some(1) {}
        assert_eq!((written(&again), heir.waiting().0), (true, 3), "at its turn, too");
    }

    /// One message is for a client once, though both of its sessions were found.
    #[tokio::test(start_paused = true)]
    async fn two_sessions_of_one_client_are_one_target() {
        let (_server, _clients, registry, heir, gone, other) = heir_and_gone("one-target").await;
        let receipt = note(&registry, &[heir.clone(), gone, other], "1");
        assert_eq!(receipt.outcomes().targets(), 3, "as far as is known");
        while registry.fan_out.batches.write_some(1) {}
        assert_eq!((receipt.outcomes().targets(), heir.waiting().0), (2, 1), "{receipt:?}");
    }

    /// A session that is over by its turn counts as such.
    #[tokio::test(start_paused = true)]
    async fn a_session_that_is_over_counts_as_dropped() {
        let (_server, _clients, registry, _connections, sessions) = subscribed::<2>("over").await;
        sessions[0].end("for a test");
        let receipt = note(&registry, &sessions, "1");
        while registry.fan_out.batches.write_some(1) {}
        let outcomes = receipt.outcomes();
        assert_eq!((outcomes.dropped(), outcomes.at(Stage::PlainWritten)), (1, 1), "{receipt:?}");
    }
}
