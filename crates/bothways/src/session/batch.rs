//! Pushes of a burst to the same many sessions, which wait together for the flusher.
//!
//! To enter a push for a session takes little, but the memory of a session that is not in the processor's cache takes
//! long to come. So what follows a push closely, to the same sessions, is noted once, here; and when it is written each
//! session takes all of it at once.
//!
//! Nobody sees that. Each session knows the batch that it is in ([`State::join`](super::state::State::join)), and
//! takes all that was noted until then whenever it is locked ([`Session::lock`]): nothing overtakes anything. A session
//! is in one batch at most. Where it leaves one that is not written yet, as it joins another or has nobody to take its
//! pushes any more, the batch is closed: what comes later begins a new one.
//!
//! Locks, in the order in which they are taken: the turn of a batch, a session, what is in the batch.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicU32, AtomicUsize, Ordering},
};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use super::{
    Push, Session,
    flight::Flight,
    lock::Held,
    long_batch::{Unwritten, Walked},
    subscribers::LongList,
};

/// Sessions from which on pushes wait for them together. Two: one alone is in the cache once it was pushed to.
pub(super) const SESSIONS_MIN: usize = 2;

/// Bytes of frames above which a batch is written at once, as what waits on one connection is.
const BYTES: usize = 32 << 10;

/// Pushes above which it is.
const PUSHES: usize = 1024;

/// Batches that are not written yet. What would begin one more is pushed to each session at once.
const BATCHES_MAX: usize = 64;

/// Pushes for which a batch pays. Where one was closed before, as its sessions get pushes of many lists in turn,
const PAYS: usize = 4;

/// so many that follow it to those sessions are pushed to each at once.
const PAUSE: u32 = 64;

/// One push that waits.
#[derive(Debug)]
pub(super) struct Noted {
    pub(super) with_topic: Arc<Flight>,
    /// For those who know of no topics; `None`: all of them do.
    pub(super) plain: Option<Arc<Flight>>,
    /// The topic that keeps it.
    pub(super) topic: Option<Arc<str>>,
    pub(super) service_path: Box<str>,
    pub(super) service_method: Box<str>,
}

impl Noted {
    pub(super) fn new(
        push: &Push,
        with_topic: Arc<Flight>,
        plain: Option<Arc<Flight>>,
        topic: Option<&Arc<str>>,
    ) -> Self {
        let (service_path, service_method) = (push.service_path.as_str().into(), push.service_method.as_str().into());
        Self { with_topic, plain, topic: topic.cloned(), service_path, service_method }
    }

    /// For a session that knows of topics, or not.
    pub(super) fn for_one(&self, knows_topics: bool) -> &Arc<Flight> {
        match &self.plain {
            Some(plain) if !knows_topics => plain,
            _ => &self.with_topic,
        }
    }
}

/// See the module.
pub(super) struct Batch {
    home: Weak<Batches>,
    to: To,
    noted: RwLock<AllNoted>,
}

/// To whom it goes.
enum To {
    Short {
        sessions: Arc<[Session]>,
        turn: Mutex<Option<Joined>>,
    },
    /// See `long_batch.rs`.
    Long(Walked),
}

/// What is known of the sessions once each was asked.
#[derive(Clone)]
pub(super) struct Joined {
    /// Those that took no part: they are pushed to at once.
    pub(super) others: Arc<[Session]>,
    /// Some know of no topics.
    pub(super) has_plain: bool,
    /// Some got so much of other batches, as they joined, that it is written at once.
    has_much: bool,
}

/// How a session takes part in a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Joins {
    pub(super) knows_topics: bool,
    /// It was in another batch, of which its connection has got much to write.
    pub(super) has_much: bool,
}

#[derive(Default)]
struct AllNoted {
    pushes: Vec<Noted>,
    bytes: usize,
    is_closed: bool,
    /// One of its sessions has joined one of another list.
    is_crossed: bool,
}

/// How a push was noted.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Fill {
    /// There is room for more.
    #[default]
    Some,
    /// It is to be written at once.
    Full,
}

impl Batch {
    fn new(home: &Arc<Batches>, sessions: &Arc<[Session]>) -> Self {
        let to = To::Short { sessions: Arc::clone(sessions), turn: Mutex::new(None) };
        Self { home: Arc::downgrade(home), to, noted: RwLock::default() }
    }

    fn new_long(home: &Arc<Batches>, list: &Arc<LongList<Session>>) -> Self {
        Self { home: Arc::downgrade(home), to: To::Long(Walked::begin(list)), noted: RwLock::default() }
    }

    /// The sessions of a short list.
    pub(super) fn sessions(&self) -> &[Session] {
        match &self.to {
            To::Short { sessions, .. } => sessions,
            To::Long(_) => &[],
        }
    }

    /// How far a long list is walked.
    pub(super) fn walked(&self) -> Option<&Walked> {
        match &self.to {
            To::Short { .. } => None,
            To::Long(walked) => Some(walked),
        }
    }

    fn is_of(&self, sessions: &Arc<[Session]>) -> bool {
        matches!(&self.to, To::Short { sessions: own, .. } if Arc::ptr_eq(own, sessions))
    }

    fn is_of_long(&self, list: &Arc<LongList<Session>>) -> bool {
        self.walked().is_some_and(|walked| Arc::ptr_eq(&walked.list, list))
    }

    fn has_list_of(&self, other: &Self) -> bool {
        match &other.to {
            To::Short { sessions, .. } => self.is_of(sessions),
            To::Long(walked) => self.is_of_long(&walked.list),
        }
    }

    /// Notes a push to a short list that `make` makes, which is told who has joined. `Ok(None)`: the batch is closed.
    pub(super) fn note<E>(
        self: &Arc<Self>,
        make: impl FnOnce(&Joined) -> Result<Noted, E>,
    ) -> Result<Option<(Fill, Joined)>, E> {
        // Nobody is woken in its turn: who is woken may publish to the same sessions.
        let _held = Held::begin();
        let To::Short { turn, .. } = &self.to else { return Ok(None) };
        // Others note behind this one, once all have joined.
        let mut turn = turn.lock();
        if self.is_closed() {
            return Ok(None);
        }
        let has_begun = turn.is_some();
        let joined = turn.get_or_insert_with(|| self.join_all());
        let noted = make(joined)?;
        let fill = self.add(noted).ok();
        let is_full = !has_begun && joined.has_much;
        Ok(fill.map(|fill| (if is_full { Fill::Full } else { fill }, joined.clone())))
    }

    fn join_all(self: &Arc<Self>) -> Joined {
        let (mut others, mut has_plain, mut has_much) = (Vec::new(), false, false);
        for session in self.sessions() {
            match session.join(self) {
                Some(joins) => (has_plain, has_much) = (has_plain | !joins.knows_topics, has_much | joins.has_much),
                None => others.push(session.clone()),
            }
        }
        Joined { others: others.into(), has_plain, has_much }
    }

    /// Notes a push; to a long list, also before its sessions have joined. `Err`: the batch is closed.
    pub(super) fn add(&self, noted: Noted) -> Result<Fill, Noted> {
        let mut all = self.noted.write();
        if all.is_closed {
            return Err(noted);
        }
        all.bytes += noted.with_topic.encoded.size();
        all.pushes.push(noted);
        let is_full = BYTES <= all.bytes || PUSHES <= all.pushes.len();
        Ok(if is_full { Fill::Full } else { Fill::Some })
    }

    fn is_closed(&self) -> bool {
        self.noted.read().is_closed
    }

    /// Nothing is noted here any more.
    pub(super) fn close(&self) {
        self.noted.write().is_closed = true;
    }

    /// As [`Self::close`], as one of its sessions joins this one: its successor, or one of another list.
    pub(super) fn close_for(&self, other: &Self) {
        let mut all = self.noted.write();
        all.is_closed = true;
        all.is_crossed |= !self.has_list_of(other);
    }

    /// True if it was closed for others before it paid.
    fn was_in_vain(&self) -> bool {
        let all = self.noted.read();
        all.is_crossed && all.pushes.len() < PAYS
    }

    /// It is written: each of its sessions has left it.
    pub(super) fn end(self: &Arc<Self>) {
        if let Some(home) = self.home.upgrade() {
            home.forget(self);
        }
    }

    /// All that was noted.
    pub(super) fn noted(&self) -> impl std::ops::Deref<Target = Vec<Noted>> {
        RwLockReadGuard::map(self.noted.read(), |all| &all.pushes)
    }
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sessions = self.walked().map_or_else(|| self.sessions().len(), |walked| walked.list.len());
        let noted = self.noted().len();
        f.debug_struct("Batch").field("sessions", &sessions).field("noted", &noted).finish_non_exhaustive()
    }
}

/// The batches of a server that are not written yet.
#[derive(Default)]
pub(super) struct Batches {
    unwritten: Mutex<Vec<Arc<Batch>>>,
    /// Those of long lists, by age.
    long: RwLock<Vec<Unwritten>>,
    /// All of them.
    count: AtomicUsize,
    /// Of frames in long ones.
    long_bytes: AtomicUsize,
    /// Pushes that are not to be noted, as batches did not pay.
    pause: AtomicU32,
}

impl Batches {
    /// True if a session may have something to take, which it does when it is locked.
    pub(super) fn any(&self) -> bool {
        self.count.load(Ordering::Acquire) != 0
    }

    /// The batch of these sessions, perhaps a new one, which its caller has written. `None`: they are pushed to at once.
    pub(super) fn of(self: &Arc<Self>, sessions: &Arc<[Session]>) -> Option<Arc<Batch>> {
        let pause = self.pause.load(Ordering::Relaxed);
        if 0 < pause {
            // Of two threads one may be counted for both.
            self.pause.store(pause - 1, Ordering::Relaxed);
            return None;
        }

        let mut unwritten = self.unwritten.lock();
        let mut of_these = unwritten.iter().filter(|batch| batch.is_of(sessions));
        if let Some(batch) = of_these.clone().find(|batch| !batch.is_closed()) {
            return Some(Arc::clone(batch));
        }
        if of_these.any(|batch| batch.was_in_vain()) {
            self.pause.store(PAUSE, Ordering::Relaxed);
            return None;
        }
        if BATCHES_MAX <= unwritten.len() {
            return None;
        }
        let batch = Arc::new(Batch::new(self, sessions));
        unwritten.push(Arc::clone(&batch));
        self.count.fetch_add(1, Ordering::AcqRel);
        Some(batch)
    }

    /// The batch of a long list. True: it is a new one, which the caller has [walked](super::long_batch::Walker).
    pub(super) fn of_long(self: &Arc<Self>, list: &Arc<LongList<Session>>) -> (Arc<Batch>, bool) {
        // Others begin before this one, or after it.
        let unwritten = self.unwritten.lock();
        let mut long = self.long.write();
        let newest = long.last().map(|long| &long.batch);
        if let Some(newest) = newest.filter(|newest| newest.is_of_long(list) && !newest.is_closed()) {
            return (Arc::clone(newest), false);
        }

        unwritten.iter().chain(newest).for_each(|batch| batch.close());
        let batch = Arc::new(Batch::new_long(self, list));
        long.push(Unwritten::begin(Arc::clone(&batch)));
        self.count.fetch_add(1, Ordering::AcqRel);
        (batch, true)
    }

    /// Those of long lists, by age.
    pub(super) fn long(&self) -> RwLockReadGuard<'_, Vec<Unwritten>> {
        self.long.read()
    }

    /// Bytes of frames that are noted for long lists.
    pub(super) fn long_bytes(&self) -> usize {
        self.long_bytes.load(Ordering::Relaxed)
    }

    /// Notes a push in the batch of a long list. `Err`: it is closed.
    pub(super) fn note_long(&self, batch: &Batch, noted: Noted) -> Result<(), Noted> {
        // First: it may be written, and forgotten, as soon as it is noted.
        let bytes = noted.with_topic.encoded.size();
        self.long_bytes.fetch_add(bytes, Ordering::Relaxed);
        match batch.add(noted) {
            Ok(Fill::Some) => Ok(()),
            Ok(Fill::Full) => {
                batch.close();
                Ok(())
            }
            Err(noted) => {
                self.long_bytes.fetch_sub(bytes, Ordering::Relaxed);
                Err(noted)
            }
        }
    }

    /// This one is written.
    pub(super) fn forget_long(&self, batch: &Arc<Batch>) {
        let at = {
            let mut long = self.long.write();
            let at = long.iter().position(|long| Arc::ptr_eq(&long.batch, batch));
            at.map(|at| long.remove(at))
        };
        if at.is_some() {
            self.count.fetch_sub(1, Ordering::AcqRel);
            self.long_bytes.fetch_sub(batch.noted.read().bytes, Ordering::Relaxed);
        }
    }

    fn forget(&self, batch: &Arc<Batch>) {
        let mut unwritten = self.unwritten.lock();
        let before = unwritten.len();
        unwritten.retain(|other| !Arc::ptr_eq(other, batch));
        self.count.fetch_sub(before - unwritten.len(), Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        sync::atomic::{AtomicBool, AtomicU64},
        time::Duration,
    };

    use bothways_proto::Metadata;
    use proptest::{
        prelude::*,
        test_runner::{Config, TestRunner},
    };

    use super::{
        super::{
            Class, Receipt, Stage, fixtures::plain_connections, flusher::CROWD, push::Origin, registry::Registry,
            rules::TopicOptions,
        },
        *,
    };
    use crate::{
        Client, ClientOptions, Reconnect, Reply, Request, Server, ServerMessages,
        codec::Raw,
        connection::{Connection, LOCKS_TAKEN},
        server::Listening,
    };

    /// Clients; the last speaks plain rpcx.
    const CLIENTS: usize = 3;

    /// Topics, with their subscribers: they overlap, and the second keeps its messages.
    const TOPICS: [(&str, &[usize]); 3] = [("all", &[0, 1, 2]), ("kept", &[0, 1]), ("some", &[1, 2])];

    #[derive(Clone, Copy, Debug)]
    enum Step {
        /// So many messages to this topic.
        Publish(usize, usize),
        /// To the session of this client.
        Push(usize),
        /// Straight to its connection.
        Send(usize),
        /// This client calls a handler that publishes to this topic.
        Call(usize, usize),
        /// This one loses its connection, and comes back; meanwhile so many are published.
        Cut(usize, usize),
        /// Everybody else has a turn.
        Turn,
    }

    fn step() -> impl Strategy<Value = Step> {
        let (client, topic) = (0..CLIENTS, 0..TOPICS.len());
        prop_oneof![
            6 => (topic.clone(), 1_usize..5).prop_map(|(topic, count)| Step::Publish(topic, count)),
            3 => client.clone().prop_map(Step::Push),
            2 => client.clone().prop_map(Step::Send),
            2 => (client, topic).prop_map(|(client, topic)| Step::Call(client, topic)),
            // A client that speaks plain rpcx does not come back.
            1 => (0..CLIENTS - 1, 0_usize..4).prop_map(|(client, count)| Step::Cut(client, count)),
            2 => Just(Step::Turn),
        ]
    }

    struct Told {
        client: Client,
        messages: ServerMessages,
        session: Session,
        /// What it has to get, in this order.
        due: VecDeque<Due>,
    }

    #[derive(Debug)]
    struct Due {
        number: u64,
        /// It does not outlive its connection.
        is_lossy: bool,
        /// That was lost.
        may_be_lost: bool,
    }

    impl Told {
        /// Takes what has come: each once, and in order.
        fn read(&mut self) {
            while let Some(message) = self.messages.try_next() {
                let number = number_of(&message.payload().expect("plain"));
                loop {
                    let due = self.due.pop_front().expect("it is due");
                    if due.number == number {
                        break;
                    }
                    assert!(due.may_be_lost && due.number < number, "{number} came in place of {due:?}");
                }
            }
        }
    }

    fn number_of(text: &[u8]) -> u64 {
        std::str::from_utf8(text).expect("a text").parse().expect("a number")
    }

    /// Of a message of this number.
    fn is_fire(number: u64) -> bool {
        number.is_multiple_of(3)
    }

    fn message(number: u64) -> Push {
        let class = if is_fire(number) { Class::Fire } else { Class::Tracked };
        Push::new("T", "m", number.to_string()).class(class)
    }

    struct Trial {
        server: Server,
        /// Dropped, it lets nobody come back.
        _listening: Listening,
        told: Vec<Told>,
        next: u64,
        receipts: Vec<Receipt>,
    }

    impl Trial {
        /// Of more subscribers than that, the list is a long one.
        async fn begin(crowd: usize) -> Self {
            static NEXT: AtomicU64 = AtomicU64::new(0);
            let address = format!("memory@session-batch-{}", NEXT.fetch_add(1, Ordering::Relaxed));
            let publish = |request: Request| {
                let text = request.payload().expect("plain");
                let (topic, number) = std::str::from_utf8(&text).expect("a text").split_once(' ').expect("two words");
                let server = request.server().expect("it lives");
                server.publish(topic, &message(number.parse().expect("a number"))).expect("small");
                std::future::ready(Reply::ok(""))
            };
            let history = TopicOptions::new().open().history(1000, Duration::from_secs(600));
            let server =
                Server::builder().topic("kept", history).expect("a pattern").handler("T", "P", publish).build();
            let listening = server.listen(&address).await.expect("the name is free");

            let mut told = Vec::new();
            for number in 0..CLIENTS {
                let options = match number + 1 < CLIENTS {
                    true => ClientOptions::new(),
                    false => ClientOptions::new().negotiate(false).reconnect(Reconnect::Never),
                };
                let (client, messages) = Client::bidirectional(listening.address(), options).await.expect("it listens");
                client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
                let connection = server.connections().into_iter().max_by_key(Connection::id).expect("it is there");
                let registry = connection.owner::<Registry>().expect("a server's connection");
                registry.fan_out.crowd.store(crowd, Ordering::Relaxed);
                let session = registry.of(&connection).expect("it is made");
                for (topic, _) in TOPICS.iter().filter(|(_, subscribers)| subscribers.contains(&number)) {
                    registry.hub.subscribe(&session, topic, None, false).expect("there is room");
                }
                told.push(Told { client, messages, session, due: VecDeque::new() });
            }
            Self { server, _listening: listening, told, next: 0, receipts: Vec::new() }
        }

        /// The next number, which these are to get.
        fn number(&mut self, clients: &[usize], is_message: bool) -> u64 {
            self.next += 1;
            for client in clients {
                let is_lossy = !is_message || is_fire(self.next);
                self.told[*client].due.push_back(Due { number: self.next, is_lossy, may_be_lost: false });
            }
            self.next
        }

        fn publish(&mut self, topic: usize) {
            let (topic, subscribers) = TOPICS[topic];
            let number = self.number(subscribers, true);
            self.receipts.push(self.server.publish(topic, &message(number)).expect("small"));
        }

        async fn take(&mut self, step: Step) {
            match step {
                Step::Publish(topic, count) => (0..count).for_each(|_| self.publish(topic)),
                Step::Push(client) => {
                    let number = self.number(&[client], true);
                    self.receipts.push(self.told[client].session.push(&message(number)).expect("small"));
                }
                Step::Send(client) => {
                    let number = self.number(&[client], false);
                    let connection = self.told[client].session.connection().expect("it is up");
                    connection.send_message("T", "m", &Metadata::new(), number.to_string()).expect("it is open");
                }
                Step::Call(client, topic) => self.call(client, topic).await,
                Step::Cut(client, count) => self.cut(client, count).await,
                Step::Turn => turn().await,
            }
            self.told.iter_mut().for_each(Told::read);
        }

        /// The reply comes behind what its handler has published.
        async fn call(&mut self, client: usize, topic: usize) {
            let (topic, subscribers) = TOPICS[topic];
            let number = self.number(subscribers, true);
            let said = Raw(format!("{topic} {number}").into());
            self.told[client].client.call::<Raw>("T", "P", &said).await.expect("it is answered");
            let told = &mut self.told[client];
            told.read();
            assert!(told.due.iter().all(|due| due.number != number), "the reply overtook {number}");
        }

        /// What is published meanwhile is for those who come back, too.
        async fn cut(&mut self, client: usize, count: usize) {
            let session = self.told[client].session.clone();
            let before = session.connection().expect("it is up");
            before.cut();
            for _ in 0..count {
                self.publish(0);
            }
            self.told[client].due.iter_mut().for_each(|due| due.may_be_lost |= due.is_lossy);
            for _ in 0..1000 {
                if session.connection().is_some_and(|connection| connection != before) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("the client did not come back: {:?}", session.explain());
        }

        async fn end(mut self) {
            turn().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            for told in &mut self.told {
                told.read();
                assert!(told.due.iter().all(|due| due.may_be_lost), "{:?} did not come", told.due);
            }
            for receipt in &self.receipts {
                assert_eq!(receipt.outcomes().at(Stage::Queued), 0, "{receipt:?}");
            }
            let registry = self.told[0].session.inner.registry.upgrade().expect("the server lives");
            assert!(!registry.fan_out.has_batches(), "all are written");
        }
    }

    /// Lets all tasks that are ready have their turn, and those that they wake.
    async fn turn() {
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
    }

    /// Whatever is published in bursts, and whatever comes between: each client gets each push once, all in the order in
    /// which they were made, a reply behind what its handler published, and each receipt comes to an end.
    #[test]
    fn nothing_overtakes_what_waits() {
        // Lists of two are short ones, and long ones, and those of three long alone.
        for crowd in [CROWD, 1, 2] {
            nothing_overtakes(crowd);
        }
    }

    fn nothing_overtakes(crowd: usize) {
        let steps = prop::collection::vec(step(), 1..40);
        let outcome = TestRunner::new(Config::with_cases(24)).run(&steps, |steps| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
            runtime.expect("a runtime").block_on(async {
                let mut trial = Trial::begin(crowd).await;
                for step in steps {
                    trial.take(step).await;
                }
                trial.end().await;
            });
            Ok(())
        });
        outcome.expect("it holds");
    }

    /// A server's two sessions, and what notes a push to them, which tells whether there is room for more; `None`: closed.
    async fn two_sessions(name: &str) -> (Server, Vec<Client>, Arc<[Session]>, impl Fn(&Arc<Batch>) -> Option<Fill>) {
        let (server, clients, registry, connections) = plain_connections::<2>(name).await;
        let sessions = connections.iter().map(|connection| registry.of(connection).expect("it is made")).collect();
        let note = move |batch: &Arc<Batch>| note_of(&registry, batch, 1);
        (server, clients, sessions, note)
    }

    /// Notes a push of so many bytes to two sessions.
    fn note_of(registry: &Registry, batch: &Arc<Batch>, bytes: usize) -> Option<Fill> {
        let (push, receipt) = (Push::new("T", "m", vec![b'x'; bytes]), Receipt::new());
        receipt.enter(2);
        let encoded = registry.fan_out.encode(&push).expect("small");
        let flight = Flight::of(&push, &encoded, &receipt, Origin::Push).expect("it has no key");
        let noted = batch.note(|_| Ok::<_, ()>(Noted::new(&push, flight, None, None)));
        noted.expect("it is made").map(|(fill, _)| fill)
    }

    /// What is noted a session takes under one lock of its connection, and not under one for each push.
    #[tokio::test(start_paused = true)]
    async fn a_session_takes_what_is_noted_at_once() {
        let (_server, _clients, sessions, note) = two_sessions("at-once").await;
        let batch = Arc::<Batches>::default().of(&sessions).expect("the first");
        (0..50).for_each(|_| assert!(note(&batch).is_some(), "it is open"));
        let locked = LOCKS_TAKEN.get();
        drop(sessions[0].lock());
        assert_eq!(LOCKS_TAKEN.get() - locked, 1);
        batch.close();
        sessions[0].write_batch(&batch);
        assert_eq!(sessions[0].connection().expect("it is up").pushes_written(), 50);
    }

    /// Sessions that go from batch to batch take no more onto their connections than is written soon.
    #[tokio::test(start_paused = true)]
    async fn what_sessions_take_as_they_join_may_be_much() {
        let (_server, _clients, sessions, note) = two_sessions("much").await;
        let registry = sessions[0].inner.registry.upgrade().expect("the server lives");
        let batches = Arc::<Batches>::default();
        let (one, other): (Arc<[Session]>, Arc<[Session]>) = (sessions.to_vec().into(), sessions);
        let first = batches.of(&one).expect("the first");
        let fills = [0; 4].map(|_| note_of(&registry, &first, BYTES / 4));
        assert_eq!(fills.last(), Some(&Some(Fill::Full)), "{fills:?}");
        let second = batches.of(&other).expect("of another list");
        assert_eq!(note(&second), Some(Fill::Full), "its sessions took much");
        assert_eq!(note(&second), Some(Fill::Some), "and that was said");
    }

    /// Where sessions get the pushes of several lists in turn, nothing is noted for a while: it does not pay.
    #[tokio::test(start_paused = true)]
    async fn lists_in_turn_are_not_noted() {
        let (_server, _clients, sessions, note) = two_sessions("in-turn").await;
        let (one, other): (Arc<[Session]>, Arc<[Session]>) = (sessions.to_vec().into(), sessions);
        let batches = Arc::<Batches>::default();
        let first = batches.of(&one).expect("the first");
        assert!(Arc::ptr_eq(&first, &batches.of(&one).expect("the same")));
        assert_eq!(note(&first), Some(Fill::Some));
        let second = batches.of(&other).expect("one more");
        assert_eq!(note(&second), Some(Fill::Some));
        assert_eq!(note(&first), None, "its sessions are in the other one");
        assert!(batches.of(&one).is_none(), "it had one push only");
        assert!((0..PAUSE).all(|_| batches.of(&other).is_none()));
        assert!(batches.of(&other).is_some_and(|batch| Arc::ptr_eq(&batch, &second)), "it is open still");
        [first, second].iter().for_each(Batch::end);
        assert!(!batches.any());
    }

    /// A session whose client leaves closes its batch: what is published next it gets by another one.
    #[tokio::test(start_paused = true)]
    async fn a_session_that_leaves_its_batch_misses_nothing() {
        let (server, _clients, registry, connections) = plain_connections::<2>("leaves").await;
        registry.arrive(&connections[0], &Metadata::new()).expect("it is open");
        registry.welcomed(&connections[0]);
        let sessions = connections.each_ref().map(|connection| registry.of(connection).expect("it is made"));
        for session in &sessions {
            registry.hub.subscribe(session, "all", None, false).expect("there is room");
        }
        let publish = |number: u64| server.publish("all", &Push::new("T", "m", number.to_string())).expect("small");
        let before = [1, 2, 3].map(publish);
        assert!(registry.fan_out.has_batches());
        connections[0].cut();
        registry.leave(&connections[0]);
        let after = publish(4);
        turn().await;
        assert_eq!(sessions[0].lock().ledger().waiting().0, 4, "all of them: {before:?}, {after:?}");
        assert!(!registry.fan_out.has_batches());
    }

    /// A batch that goes on in another one of the same sessions, as it is being written, was not in vain.
    #[tokio::test(start_paused = true)]
    async fn a_successor_says_nothing_against_its_batch() {
        let (_server, _clients, sessions, note) = two_sessions("successor").await;
        let batches = Arc::<Batches>::default();
        let first = batches.of(&sessions).expect("the first");
        assert_eq!(note(&first), Some(Fill::Some));
        first.close();
        let second = batches.of(&sessions).expect("its successor");
        assert_eq!(note(&second), Some(Fill::Some));
        second.close();
        assert!(batches.of(&sessions).is_some(), "and one more");
    }

    /// Who is woken by what the sessions take as they join may publish to them: it is nobody's turn then.
    #[tokio::test(start_paused = true)]
    async fn nobody_is_woken_in_the_turn_of_a_batch() {
        struct Looks(Arc<Batch>, AtomicBool);

        impl std::task::Wake for Looks {
            fn wake(self: Arc<Self>) {
                let To::Short { turn, .. } = &self.0.to else { panic!("its list is short") };
                self.1.store(turn.try_lock().is_some(), Ordering::Relaxed);
            }
        }

        let (_server, _clients, sessions, note) = two_sessions("woken").await;
        let registry = sessions[0].inner.registry.upgrade().expect("the server lives");
        let connections: Vec<Connection> = sessions.iter().filter_map(Session::connection).collect();
        let batches = Arc::<Batches>::default();
        let first = batches.of(&sessions).expect("the first");
        let (push, receipt) = (Push::new("T", "m", "x").class(Class::Fire), Receipt::new());
        receipt.enter(2);
        let encoded = registry.fan_out.encode(&push).expect("small");
        let flight = Flight::of(&push, &encoded, &receipt, Origin::Push).expect("it has no key");
        let noted = first.note(|_| Ok::<_, ()>(Noted::new(&push, flight, None, None)));
        assert!(noted.is_ok_and(|noted| noted.is_some()));
        connections.iter().for_each(Connection::cut);
        first.close();

        let second = batches.of(&sessions).expect("its successor");
        let looks = Arc::new(Looks(Arc::clone(&second), AtomicBool::new(false)));
        let waker = std::task::Waker::from(Arc::clone(&looks));
        let mut written = std::pin::pin!(receipt.written());
        assert!(written.as_mut().poll(&mut std::task::Context::from_waker(&waker)).is_pending());
        note(&second);
        assert_eq!(receipt.outcomes().dropped(), 2, "{receipt:?}");
        assert!(looks.1.load(Ordering::Relaxed), "it was woken, and found the turn free");
    }

    /// What waits is before the end of its connection, whichever way that begins.
    #[tokio::test(start_paused = true)]
    async fn what_waits_is_before_the_end() {
        let (server, _clients, registry, connections) = plain_connections::<2>("before-the-end").await;
        for connection in &connections {
            let session = registry.of(connection).expect("it is made");
            registry.hub.subscribe(&session, "t", None, false).expect("there is room");
        }
        let receipts = ["1", "2", "3"].map(|text| server.publish("t", &Push::new("T", "m", text)).expect("small"));
        assert!(registry.fan_out.has_batches(), "the last ones wait: {receipts:?}");
        connections.iter().for_each(Connection::end_once_answered);
        for connection in &connections {
            connection.closed().await;
        }
        turn().await;
        assert!(receipts.iter().all(|receipt| receipt.outcomes().at(Stage::PlainWritten) == 2), "{receipts:?}");
    }

    /// A client is told of an end behind what was published before.
    #[tokio::test(start_paused = true)]
    async fn what_waits_is_before_a_goodbye() {
        let mut trial = Trial::begin(CROWD).await;
        (0..3).for_each(|_| trial.publish(0));
        let registry = trial.told[0].session.inner.registry.upgrade().expect("the server lives");
        assert!(registry.fan_out.has_batches(), "the last ones wait");
        let connection = registry.connections.lock().values().min_by_key(|it| it.id()).cloned().expect("three");
        assert!(connection.say_goodbye_for("moved", "for a test", None));
        assert_eq!(connection.pushes_written(), 3);
    }

    /// A batch is to be written when it has so many pushes, and there are no more than so many batches.
    #[tokio::test(start_paused = true)]
    async fn batches_are_bounded() {
        let (_server, _clients, sessions, note) = two_sessions("bounded").await;
        let batches = Arc::<Batches>::default();
        let batch = batches.of(&sessions).expect("the first");
        let mut noted = 1;
        while note(&batch) == Some(Fill::Some) {
            noted += 1;
        }
        let bytes = batch.noted().iter().map(|noted| noted.with_topic.encoded.size()).sum::<usize>();
        let size = batch.noted()[0].with_topic.encoded.size();
        assert!(noted == PUSHES || (BYTES..BYTES + size).contains(&bytes), "{noted} of {bytes} bytes");
        for _ in 1..BATCHES_MAX {
            assert!(batches.of(&sessions.to_vec().into()).is_some());
        }
        assert!(batches.of(&sessions.to_vec().into()).is_none());
        batch.end();
        assert!(batches.of(&sessions.to_vec().into()).is_some(), "it has left its place");
    }
}
