//! Topics with history over several nodes, at work: what is published goes into the log of its topic, and comes from there
//! to each node that follows the topic, live. What is missing between is read from the log.
//!
//! ```text
//!  publish ──► the queue of its topic, some of it at a time ──► log ──► followers ──► Hub::arrive ──► subscribers here
//!                                                                │                        │ something is missing
//!                                                                └──── read, a page at a time ◄──┘
//! ```
//!
//! Nothing is buffered for a copy that is behind: what it needs is in the log. After each gap of the mail, and of the
//! store, the ends of all topics followed are compared with their logs.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::{Arc, Weak},
    time::Duration,
};

use bothways_proto::{Limits, SerializeType};
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, Semaphore, SemaphorePermit, oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{
    engine::{AppendError, BoxFuture, EngineState, Followed, Follower, Following, Level, Log, NewEntry, Place, Stored},
    node::{Node, until_stopped},
    view::ClusterStats,
};
use crate::{
    clock::backoff,
    codec::{Encode, Payload},
    error::PushError,
    session::{
        Arrived, Carried, Destination, Position, Push, Receipt, Registry, SendError, SharedHistories, SharedMessage,
        SharedPage, Step, Storing, ToShare,
    },
    store::{Kept, StoreError},
};

/// Most publishes of this node that wait for their logs, and most bytes of them.
const WAITING_MAX: usize = 64 << 10;
/// See [`WAITING_MAX`].
const WAITING_BYTES_MAX: usize = 16 << 20;
/// Most publishes of this node that are stored and have not come back, of which the payloads are let go. Of more the receipts
/// do not wait for that.
const STORED_MAX: usize = 64 << 10;
/// What of one topic is appended at a time: most messages, and bytes after which no more are taken.
const TOGETHER_MAX: usize = 256;
/// See [`TOGETHER_MAX`].
const TOGETHER_BYTES: usize = 1 << 20;
/// How long a publish is tried.
const APPEND_MAX: Duration = Duration::from_secs(10);
/// How long a message that is stored may take to come back, so that its receipt has the sessions of this node.
const DELIVERED_WITHIN: Duration = Duration::from_secs(5);
/// How long a client that subscribes waits for what it may ask for.
const PREPARE_MAX: Duration = Duration::from_secs(3);
/// Most messages of one read.
const PAGE_MAX: usize = 64;
/// Topics that are read side by side.
const READERS_MAX: usize = 16;
/// The same of those whose logs have not answered: they take no place of others.
const READERS_AGAIN_MAX: usize = 4;
/// How often a log is read that does not show what is known to be there.
const STALE_TRIES: u32 = 8;
/// Pauses between tries: the first, and the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
/// See [`PAUSE_FIRST`].
const PAUSE_MOST: Duration = Duration::from_secs(1);
/// How often it is looked which topics nobody here subscribes to any more.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// How long a message that is stored, and has not come back, may take to be read from its log.
const READ_WITHIN: Duration = Duration::from_secs(20);
/// Topics whose ends are compared with their logs at each such look, in turn: nothing may come behind a message that was
/// lost on its way.
const COMPARED_EACH: usize = 32;
/// An entry that is no message. It gives a topic to which nothing was published a position, from which a client can ask
/// for what was published since, at any node. It is written when somebody subscribes, and its key keeps it from being
/// there twice.
const BEGINNING: &[u8] = b"_bw.begin";
const BEGINNING_KEY: &str = "_bw.begin";
/// How long such an entry is kept: at least while its key is known, and at most this long.
const BEGINNING_KEPT_MIN: Duration = Duration::from_secs(180);
/// See [`BEGINNING_KEPT_MIN`].
const BEGINNING_KEPT_MAX: Duration = Duration::from_secs(3600);
/// Topics that are looked at before others have their turn.
const AT_ONCE: usize = 256;

/// What a node has of topics.
pub(super) struct TopicsOfNode {
    state: Mutex<State>,
    /// Something is to be followed.
    wanted: Notify,
    /// A topic was read.
    read: Notify,
    readers: Semaphore,
    /// See [`READERS_AGAIN_MAX`].
    readers_again: Semaphore,
    /// Names this node in what it appends, for all its lives.
    publisher: u64,
}

#[derive(Default)]
struct State {
    follows: HashMap<Arc<str>, Option<Following>>,
    next: u64,
    /// By number.
    publishing: HashMap<u64, Publishing>,
    /// Numbers that wait, by topic: the first ones are being appended.
    queues: HashMap<Arc<str>, VecDeque<(u64, NewEntry)>>,
    waiting: usize,
    waiting_bytes: usize,
}

/// A publish of this node that is not over.
struct Publishing {
    topic: Arc<str>,
    /// Until it is stored: sent to the subscribers of this node if it cannot be.
    push: Option<Push>,
    receipt: Receipt,
    storing: Storing,
    since: Instant,
    stored: Option<Stored>,
    /// It was tried, and may have been stored then.
    maybe: bool,
    /// Where it was seen in the log.
    seen: Option<Place>,
    /// The sessions of this node have it.
    is_delivered: bool,
}

impl Publishing {
    fn begin(topic: &Arc<str>, push: &Push, receipt: &Receipt) -> Self {
        Self {
            topic: Arc::clone(topic),
            push: Some(push.clone()),
            receipt: receipt.clone(),
            storing: receipt.storing(vec![Log::History(topic.to_string())]),
            since: Instant::now(),
            stored: None,
            maybe: false,
            seen: None,
            is_delivered: false,
        }
    }
}

/// An entry of a log.
#[derive(Deserialize, Serialize)]
struct Letter {
    from: u64,
    number: u64,
    carried: Carried,
}

/// A publish that does not wait any more.
enum Over {
    Stored(u64),
    Failed(Box<Publishing>, AppendError),
}

impl State {
    /// One more waits to be appended to the log of its topic. True: nothing appends to it yet. What does so ends when it finds
    /// the queue empty, and takes the queue away in the same moment; until then an empty one is looked at again.
    fn wait(&mut self, topic: &Arc<str>, number: u64, entry: NewEntry) -> bool {
        (self.waiting, self.waiting_bytes) = (self.waiting + 1, self.waiting_bytes + entry.bytes.len());
        let is_first = !self.queues.contains_key(topic);
        self.queues.entry(Arc::clone(topic)).or_default().push_back((number, entry));
        is_first
    }

    /// The first so many of a topic wait no longer.
    fn forget_first(&mut self, topic: &str, count: usize) {
        let Some(queue) = self.queues.get_mut(topic) else { return };
        let gone = queue.drain(..count.min(queue.len()));
        let (count, bytes) = gone.fold((0, 0), |(count, bytes), (_, entry)| (count + 1, bytes + entry.bytes.len()));
        (self.waiting, self.waiting_bytes) = (self.waiting - count, self.waiting_bytes - bytes);
    }
}

impl TopicsOfNode {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::default(),
            wanted: Notify::new(),
            read: Notify::new(),
            readers: Semaphore::new(READERS_MAX),
            readers_again: Semaphore::new(READERS_AGAIN_MAX),
            publisher: rand::random(),
        }
    }

    /// Waits for a turn to ask a log, which has not answered so often. `None`: there are none any more.
    async fn turn(&self, tries: u32) -> Option<SemaphorePermit<'_>> {
        let turns = if tries == 0 { &self.readers } else { &self.readers_again };
        turns.acquire().await.ok()
    }

    /// The receipt of a publish of this node that is seen in the log.
    fn seen(&self, number: u64, place: Place) -> Option<Receipt> {
        let mut state = self.state.lock();
        let publishing = state.publishing.get_mut(&number)?;
        publishing.seen = Some(place);
        (!publishing.is_delivered).then(|| publishing.receipt.clone())
    }

    /// The sessions of this node have it.
    fn delivered(&self, number: u64) {
        if let Some(publishing) = self.state.lock().publishing.get_mut(&number) {
            publishing.is_delivered = true;
        }
    }

    /// It is over, if it is stored and has come back.
    fn settle(&self, number: u64, has_subscribers: impl FnOnce(&str) -> bool) {
        let over = {
            let mut state = self.state.lock();
            let Some(publishing) = state.publishing.get(&number) else { return };
            let Some(stored) = publishing.stored else { return };
            let is_late = DELIVERED_WITHIN <= publishing.since.elapsed();
            let are_many = STORED_MAX + state.waiting < state.publishing.len();
            let comes = !publishing.is_delivered && !stored.repeated && !is_late && !are_many;
            if comes && has_subscribers(&publishing.topic) {
                return;
            }
            state.publishing.remove(&number)
        };
        if let Some(Publishing { topic, storing, stored: Some(stored), .. }) = over {
            storing.done(Ok(vec![Kept::new(Log::History(topic.to_string()), stored)]));
        }
    }

    /// What is to be appended to this topic next. `None`: nothing waits, and the queue is closed.
    fn take_some(&self, topic: &str) -> Option<Vec<(u64, NewEntry)>> {
        let mut state = self.state.lock();
        let queue = state.queues.get(topic)?;
        let mut bytes = 0;
        let is_within = |(_, entry): &&(u64, NewEntry)| {
            let is_within = bytes < TOGETHER_BYTES;
            bytes += entry.bytes.len();
            is_within
        };
        let some: Vec<_> = queue.iter().take(TOGETHER_MAX).take_while(is_within).cloned().collect();
        if some.is_empty() {
            state.queues.remove(topic);
            return None;
        }
        Some(some)
    }

    /// What came of the first that waited. Those that are over, so many, are taken from the queue; what is behind them is tried
    /// again.
    fn note(
        &self,
        topic: &str,
        numbers: &[u64],
        outcomes: &[Result<Stored, AppendError>],
        level: Level,
    ) -> (Vec<Over>, usize) {
        let mut state = self.state.lock();
        for (number, outcome) in numbers.iter().zip(outcomes) {
            if let Some(publishing) = state.publishing.get_mut(number) {
                publishing.maybe |= *outcome == Err(AppendError::Unknown);
            }
        }
        let last_stored = outcomes.iter().rposition(Result::is_ok);
        let (mut all, mut count) = (Vec::new(), 0);
        for (at, (number, outcome)) in numbers.iter().zip(outcomes).enumerate() {
            let Some(publishing) = state.publishing.get_mut(number) else {
                count += 1;
                continue;
            };
            // Where one behind it is stored, it would come too late.
            let may_wait = Some(at) > last_stored && publishing.since.elapsed() < APPEND_MAX;
            let stored = match (outcome, publishing.seen) {
                // The first of them, which was tried before, comes back as a new one does.
                (Ok(stored), _) => Ok(Stored { repeated: stored.repeated && !publishing.maybe, ..*stored }),
                (Err(why @ (AppendError::Full | AppendError::TooLarge)), _) => Err(*why),
                (Err(_), _) if may_wait => break,
                // It has come back: so it is stored.
                (Err(_), Some(place)) => Ok(Stored::new(place, level, false)),
                (Err(_), None) if publishing.maybe => Err(AppendError::Unknown),
                (Err(why), None) => Err(*why),
            };
            count += 1;
            match stored {
                Ok(stored) => {
                    publishing.stored = Some(stored);
                    publishing.push = None;
                    all.push(Over::Stored(*number));
                }
                Err(why) => all.extend(state.publishing.remove(number).map(|one| Over::Failed(Box::new(one), why))),
            }
        }
        state.forget_first(topic, count);
        (all, count)
    }

    /// Publishes that are stored, and still have not come back; with the topic of those that may still be read.
    fn late(&self) -> Vec<(u64, Option<Arc<str>>)> {
        let state = self.state.lock();
        let late = |(number, publishing): (&u64, &Publishing)| {
            let waited = publishing.since.elapsed();
            let may_be_read = !publishing.is_delivered && waited < READ_WITHIN;
            let is_late = publishing.stored.is_some() && DELIVERED_WITHIN <= waited;
            is_late.then(|| (*number, may_be_read.then(|| Arc::clone(&publishing.topic))))
        };
        state.publishing.iter().filter_map(late).collect()
    }

    pub(super) fn count(&self, stats: &mut ClusterStats) {
        let state = self.state.lock();
        (stats.publishes_waiting, stats.publish_bytes_waiting) = (state.waiting, state.waiting_bytes);
        stats.patterns_followed = state.follows.len();
    }
}

/// As clients see it: 53 bits, so that every language's numbers hold it, and never 0.
fn position(place: Place) -> Position {
    Position { epoch: (place.epoch >> 11).max(1), offset: place.sequence }
}

/// For a message of another node, or what is none.
fn new_receipt(sessions: &Registry, message: &SharedMessage) -> Receipt {
    message.push.as_ref().map_or_else(Receipt::new, |push| sessions.receipt_of(push))
}

/// Who has written an entry, under which number; and what.
fn read(bytes: Bytes, limits: &Limits) -> Option<((u64, u64), Push)> {
    let Letter { from, number, carried } = Letter::decode(SerializeType::MSGPACK, bytes).ok()?;
    match carried.open(Duration::ZERO, limits)? {
        (Destination::Topic(_), push) => Some(((from, number), push)),
        (Destination::Sessions(_), _) => None,
    }
}

impl Node {
    fn message(&self, place: Place, bytes: Bytes, limits: &Limits) -> Option<SharedMessage> {
        if *bytes == *BEGINNING {
            return Some(SharedMessage { position: position(place), push: None, own: None });
        }
        let ((from, number), push) = read(bytes, limits)?;
        let own = (from == self.topics.publisher).then_some(number);
        Some(SharedMessage { position: position(place), push: Some(push), own })
    }

    /// For what becomes of a message here: that of its publisher, if that is this node.
    fn receipt_of(&self, sessions: &Registry, message: &SharedMessage, place: Place) -> Receipt {
        let own = message.own.and_then(|number| self.topics.seen(number, place));
        own.unwrap_or_else(|| new_receipt(sessions, message))
    }

    fn settle_publish(&self, sessions: &Registry, number: u64) {
        self.topics.settle(number, |topic| sessions.hub.has_subscribers(topic));
    }

    /// A message comes live.
    fn followed(self: &Arc<Self>, followed: Followed) {
        let (Some(sessions), Some((place, previous))) = (self.sessions.upgrade(), followed.stored) else { return };
        let Some(message) = self.message(place, followed.bytes, sessions.limits()) else { return };
        let receipt = self.receipt_of(&sessions, &message, place);
        let arrived = sessions.hub.arrive(&followed.topic, &message, previous, &receipt);
        if arrived == Arrived::Behind {
            drop(self.spawn_reader(followed.topic.into()));
        }
        if let Some(number) = message.own {
            if arrived == Arrived::Taken {
                self.topics.delivered(number);
            }
            self.settle_publish(&sessions, number);
        }
    }

    /// Reads a topic, which nobody else does. Answers with true when its copy is as new as its log, and false if that does
    /// not answer.
    fn spawn_reader(self: &Arc<Self>, topic: Arc<str>) -> oneshot::Receiver<bool> {
        let (node, mut stop) = (Arc::downgrade(self), self.stop.subscribe());
        let (tell, told) = oneshot::channel();
        self.runtime.spawn(async move {
            let is_new = tokio::select! {
                () = until_stopped(&mut stop) => false,
                is_new = read_topic(&node, &topic) => is_new,
            };
            // Nobody may wait for it.
            let _ = tell.send(is_new);
            if let Some(node) = node.upgrade() {
                node.topics.read.notify_waiters();
            }
        });
        told
    }

    /// Compares the end of a topic with its log, if somebody here subscribes. False: nobody does.
    fn compare(self: &Arc<Self>, sessions: &Registry, topic: Arc<str>) -> bool {
        let has_subscribers = sessions.hub.has_subscribers(&topic);
        if has_subscribers && sessions.hub.begin_reading(&topic) {
            drop(self.spawn_reader(topic));
        }
        has_subscribers
    }

    /// Compares the ends of some topics with their logs: those whose names come after this one.
    fn compare_some(self: &Arc<Self>, after: &mut Arc<str>) {
        let Some(sessions) = self.sessions.upgrade() else { return };
        let mut next = BTreeSet::new();
        for topic in sessions.hub.copies() {
            if *after < topic {
                next.insert(topic);
            }
            if COMPARED_EACH < next.len() {
                next.pop_last();
            }
        }
        let has_more = next.len() == COMPARED_EACH;
        *after = next.last().filter(|_| has_more).cloned().unwrap_or_default();
        for topic in next {
            self.compare(&sessions, topic);
        }
    }

    /// Compares the ends of all topics followed with their logs.
    async fn compare_all(self: &Arc<Self>) {
        let Some(sessions) = self.sessions.upgrade() else { return };
        for (at, topic) in sessions.hub.copies().into_iter().enumerate() {
            self.compare(&sessions, topic);
            if at % AT_ONCE == AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Follows what is wanted and is not followed.
    async fn follow_all(self: &Arc<Self>) -> bool {
        let missing: Vec<Arc<str>> = {
            let state = self.topics.state.lock();
            state
                .follows
                .iter()
                .filter(|(_, following)| following.is_none())
                .map(|(pattern, _)| Arc::clone(pattern))
                .collect()
        };
        let mut following = JoinSet::new();
        let mut all = true;
        for pattern in missing {
            if READERS_MAX <= following.len() {
                all &= following.join_next().await.is_none_or(|done| done.unwrap_or(false));
            }
            let node = Arc::clone(self);
            following.spawn(async move { node.ensure_follow(&pattern).await });
        }
        while let Some(done) = following.join_next().await {
            all &= done.unwrap_or(false);
        }
        all
    }

    /// True if the pattern is followed.
    async fn ensure_follow(self: &Arc<Self>, pattern: &Arc<str>) -> bool {
        if self.topics.state.lock().follows.get(pattern).is_some_and(Option::is_some) {
            return true;
        }
        let follower: Arc<dyn Follower> = Arc::new(Taker { node: Arc::downgrade(self) });
        let Ok(following) = self.engine.follow(pattern.to_string(), follower).await else { return false };
        let before = self.topics.state.lock().follows.insert(Arc::clone(pattern), Some(following));
        // An engine's own: not under the lock.
        drop(before);
        true
    }

    /// Stops to follow what nobody here subscribes to, and forgets the copies of that. `idle`: what was so the last time.
    async fn sweep_topics(self: &Arc<Self>, idle: &mut HashSet<Arc<str>>) {
        let Some(sessions) = self.sessions.upgrade() else { return };
        let patterns: Vec<Arc<str>> = self.topics.state.lock().follows.keys().cloned().collect();
        let now: HashSet<Arc<str>> =
            patterns.into_iter().filter(|pattern| !sessions.hub.is_subscribed(pattern)).collect();
        let ended: Vec<Arc<str>> = now.intersection(idle).cloned().collect();
        for pattern in ended {
            self.let_go(&sessions, &pattern);
        }
        *idle = now;
        for (at, topic) in sessions.hub.copies().into_iter().enumerate() {
            let is_followed = self.topics.state.lock().follows.contains_key(&topic);
            if !is_followed {
                sessions.hub.forget_copy(&topic);
            }
            if at % AT_ONCE == AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
        }
        for (number, unread) in self.topics.late() {
            // One whose first append had no known end may not have been told of: the log has it.
            let is_read = unread.is_some_and(|topic| self.compare(&sessions, topic));
            if !is_read {
                self.settle_publish(&sessions, number);
            }
        }
    }

    /// Nobody here subscribed to this pattern when that was looked at. A client that has done so since found it followed: it is
    /// followed again.
    fn let_go(self: &Arc<Self>, sessions: &Registry, pattern: &str) {
        let following = self.topics.state.lock().follows.remove(pattern);
        drop(following);
        if sessions.hub.is_subscribed(pattern) {
            Arc::clone(self).follow(pattern);
        }
    }

    /// Appends what waits for one topic, in its order, and what failed again before what is behind it.
    async fn append_all(self: Arc<Self>, topic: Arc<str>) {
        let (log, mut tries) = (Log::History(topic.to_string()), 0);
        while let Some(some) = self.topics.take_some(&topic) {
            let (numbers, entries): (Vec<u64>, Vec<NewEntry>) = some.into_iter().unzip();
            // A store that answers less than it was asked leaves the others unknown.
            let appended = timeout(APPEND_MAX, self.engine.append_all(log.clone(), entries)).await.unwrap_or_default();
            let unknown = std::iter::repeat(Err(AppendError::Unknown));
            let outcomes: Vec<_> = appended.into_iter().chain(unknown).take(numbers.len()).collect();

            let level = self.engine.limits().level;
            let (over, count) = self.topics.note(&topic, &numbers, &outcomes, level);
            let Some(sessions) = self.sessions.upgrade() else { return };
            for over in over {
                match over {
                    Over::Stored(number) => self.settle_publish(&sessions, number),
                    Over::Failed(publishing, why) => self.fail(&sessions, *publishing, why),
                }
            }
            drop(sessions);
            tries = if count == 0 { tries } else { 0 };
            if count < numbers.len() {
                sleep(backoff(PAUSE_FIRST, PAUSE_MOST, tries, 1.0)).await;
                tries += 1;
            }
        }
    }

    /// The log has not taken it.
    fn fail(&self, sessions: &Registry, publishing: Publishing, why: AppendError) {
        let Publishing { topic, push, receipt, storing, .. } = publishing;
        if let Some(push) = push.filter(|_| sessions.hub.goes_apart(&topic)) {
            // What they do not get its receipt says.
            let _ = sessions.hub.publish_apart(&topic, &push, &receipt);
        }
        storing.done(Err(StoreError::new(Vec::new(), vec![(Log::History(topic.to_string()), why)])));
    }

    /// False: nobody can tell whether this node has seen what stands at that position.
    async fn prepare_topic(self: Arc<Self>, pattern: Arc<str>, from: Option<Position>) -> bool {
        self.topics.state.lock().follows.entry(Arc::clone(&pattern)).or_default();
        if !self.ensure_follow(&pattern).await {
            self.topics.wanted.notify_one();
        }
        let Some(sessions) = self.sessions.upgrade() else { return false };
        let mut was_begun = false;
        loop {
            let read = self.topics.read.notified();
            tokio::pin!(read);
            read.as_mut().enable();
            // A pattern has no copy of its own.
            let Some(copy) = sessions.hub.copy(&pattern) else { return true };
            let is_empty = copy.is_deep && copy.position.epoch == 0;
            // Where that is not stored, the topic has no position yet.
            let begins = is_empty && !was_begun && self.begin_topic(&sessions, &pattern).await;
            was_begun |= is_empty;
            let is_past = |from: Position| from.epoch == copy.position.epoch && from.offset <= copy.position.offset;
            if copy.is_deep && !begins && from.is_none_or(is_past) {
                return true;
            }
            // The copy is behind, or the client is of another life.
            if sessions.hub.begin_reading(&pattern) {
                let is_new = self.spawn_reader(Arc::clone(&pattern)).await.unwrap_or(false);
                let is_empty = sessions.hub.copy(&pattern).is_some_and(|copy| copy.position.epoch == 0);
                if !is_new || !is_empty || was_begun {
                    return is_new;
                }
                continue;
            }
            read.await;
        }
    }
}

impl Node {
    /// Gives a topic of which nothing is kept a position. False: the store has not taken that.
    async fn begin_topic(&self, sessions: &Registry, topic: &str) -> bool {
        let Some(_turn) = self.topics.turn(0).await else { return false };
        let kept_for = sessions.hub.kept_for(topic).unwrap_or(BEGINNING_KEPT_MAX);
        let entry = NewEntry::new(Bytes::from_static(BEGINNING))
            .with_key(BEGINNING_KEY)
            .with_time_to_live(kept_for.clamp(BEGINNING_KEPT_MIN, BEGINNING_KEPT_MAX));
        self.engine.append(Log::History(topic.to_owned()), entry).await.is_ok()
    }
}

/// Reads the log of a topic until its copy here is as new as is known.
async fn read_topic(node: &Weak<Node>, topic: &Arc<str>) -> bool {
    let (mut tries, mut stale) = (0, 0);
    loop {
        let Some(node) = node.upgrade() else { return false };
        let Some(sessions) = node.sessions.upgrade() else { return false };
        let Some(copy) = sessions.hub.copy(topic) else { return false };
        let Some(turn) = node.topics.turn(tries).await else { return false };
        if !copy.is_deep {
            let is_loaded = load(&node, &sessions, topic).await;
            drop(turn);
            match is_loaded {
                true => continue,
                false if !sessions.hub.has_subscribers(topic) => {
                    sessions.hub.end_reading(topic);
                    return false;
                }
                false => {
                    sleep(backoff(PAUSE_FIRST, PAUSE_MOST, tries, 1.0)).await;
                    tries += 1;
                    continue;
                }
            }
        }

        let after = sessions.hub.read_after(topic);
        let read = node.engine.read(Log::History(topic.to_string()), after, PAGE_MAX).await;
        drop(turn);
        let step = match read {
            Ok(page) => {
                tries = 0;
                let places: HashMap<u64, Place> =
                    page.entries.iter().map(|(place, _)| (place.sequence, *place)).collect();
                let entries = page.entries.into_iter();
                let messages =
                    entries.filter_map(|(place, bytes)| node.message(place, bytes, sessions.limits())).collect();
                let page = SharedPage { messages, last: page.last.map(position) };
                let receipt_of = |message: &SharedMessage| match places.get(&message.position.offset) {
                    Some(place) => node.receipt_of(&sessions, message, *place),
                    None => new_receipt(&sessions, message),
                };
                let step = sessions.hub.take_page(topic, &page, &receipt_of);
                page.messages
                    .iter()
                    .filter_map(|message| message.own)
                    .for_each(|own| node.settle_publish(&sessions, own));
                step
            }
            Err(_) if !sessions.hub.has_subscribers(topic) => {
                sessions.hub.end_reading(topic);
                return false;
            }
            Err(_) => {
                sleep(backoff(PAUSE_FIRST, PAUSE_MOST, tries, 1.0)).await;
                tries += 1;
                continue;
            }
        };
        match step {
            Step::Done => return true,
            Step::More => stale = 0,
            Step::Stale if stale < STALE_TRIES => {
                sleep(backoff(PAUSE_FIRST, PAUSE_MOST, stale, 1.0)).await;
                stale += 1;
            }
            Step::Stale => {
                sessions.hub.give_up_reading(topic);
                return true;
            }
        }
        tokio::task::yield_now().await;
    }
}

/// What the log has before anything comes live: as many of the newest as the copy keeps, and the one before them, from which
/// on nothing is missing. False: it does not answer.
async fn load(node: &Arc<Node>, sessions: &Arc<Registry>, topic: &Arc<str>) -> bool {
    let (log, most) = (Log::History(topic.to_string()), sessions.hub.messages_max(topic));
    let (mut messages, mut after, mut last) = (VecDeque::new(), 0, None);
    loop {
        let Ok(mut page) = node.engine.read(log.clone(), after, PAGE_MAX).await else { return false };
        last = page.last.or(last);
        let Some((newest, _)) = page.entries.last() else { break };
        after = newest.sequence;
        let entries = page.entries.drain(..);
        messages.extend(entries.filter_map(|(place, bytes)| node.message(place, bytes, sessions.limits())));
        while most + 1 < messages.len() {
            messages.pop_front();
        }
        if page.last.is_none_or(|last| last.sequence <= after) {
            break;
        }
        tokio::task::yield_now().await;
    }
    // What came behind the last page is of the reading that follows.
    sessions.hub.load(topic, SharedPage { messages: messages.into(), last: last.map(position) });
    true
}

impl SharedHistories for Node {
    fn publish(self: Arc<Self>, message: ToShare<'_>, receipt: &Receipt) -> Result<(), SendError> {
        let ToShare { topic, push, kept_for } = message;
        let topic: Arc<str> = topic.into();
        let me = self.topics.publisher;
        let mut state = self.topics.state.lock();
        state.next += 1;
        let number = state.next;
        let letter = Letter { from: me, number, carried: Carried::of_topic(&topic, push) };
        let bytes = letter.encode(SerializeType::MSGPACK).map_err(PushError::Encode)?;
        if self.engine.limits().message_bytes_max < bytes.len() {
            let max = self.engine.limits().message_bytes_max;
            return Err(PushError::TooLarge(bothways_proto::EncodeError::TooLarge { len: bytes.len(), max }).into());
        }
        if WAITING_MAX <= state.waiting || WAITING_BYTES_MAX < state.waiting_bytes + bytes.len() {
            let (frames, bytes) = (state.waiting, state.waiting_bytes);
            return Err(PushError::Full { frames, bytes, setting: None }.into());
        }

        // It is repeated if nobody knows how an append ended, and stored once.
        let key = push.key().map_or_else(|| format!("~{me:x}.{number}"), ToOwned::to_owned);
        let kept_for = [kept_for, push.lives_for()].into_iter().flatten().min();
        let entry = NewEntry { key: Some(key), time_to_live: kept_for, bytes };
        state.publishing.insert(number, Publishing::begin(&topic, push, receipt));
        let is_first = state.wait(&topic, number, entry);
        drop(state);
        if is_first {
            self.runtime.spawn(Arc::clone(&self).append_all(topic));
        }
        Ok(())
    }

    fn follow(self: Arc<Self>, pattern: &str) {
        let mut state = self.topics.state.lock();
        if !state.follows.contains_key(pattern) {
            state.follows.insert(pattern.into(), None);
            self.topics.wanted.notify_one();
        }
    }

    fn prepare(self: Arc<Self>, pattern: Arc<str>, from: Option<Position>) -> BoxFuture<bool> {
        Box::pin(async move { timeout(PREPARE_MAX, self.prepare_topic(pattern, from)).await.unwrap_or(false) })
    }
}

/// What takes messages from the engine.
struct Taker {
    node: Weak<Node>,
}

impl Follower for Taker {
    fn message(&self, message: Followed) {
        if let Some(node) = self.node.upgrade() {
            node.followed(message);
        }
    }
}

/// Follows what is wanted, and after each gap looks what was missed.
pub(super) async fn keep_topics(
    node: Weak<Node>,
    mut mail: watch::Receiver<EngineState>,
    mut register: watch::Receiver<EngineState>,
    mut stop: watch::Receiver<bool>,
) {
    let mut seen = (*mail.borrow_and_update(), *register.borrow_and_update());
    let (mut idle, mut sweep_at, mut compared) = (HashSet::new(), Instant::now() + SWEEP_EVERY, Arc::from(""));
    loop {
        let retry = {
            let Some(node) = node.upgrade() else { return };
            let retry = !node.follow_all().await;
            let now = (*mail.borrow_and_update(), *register.borrow_and_update());
            if now != seen && now.0.is_up() && now.1.is_up() {
                seen = now;
                node.compare_all().await;
            }
            if sweep_at <= Instant::now() {
                sweep_at = Instant::now() + SWEEP_EVERY;
                node.sweep_topics(&mut idle).await;
                node.compare_some(&mut compared);
            }
            retry
        };
        let Some(wanted) = node.upgrade().map(|node| Arc::clone(&node.topics)) else { return };
        tokio::select! {
            () = until_stopped(&mut stop) => return,
            () = wanted.wanted.notified() => {}
            changed = mail.changed() => if changed.is_err() { return },
            changed = register.changed() => if changed.is_err() { return },
            () = sleep(PAUSE_MOST), if retry => {}
            () = tokio::time::sleep_until(sweep_at) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a log that takes some, loses some, and does not answer for others.
    #[derive(Clone, Copy, Debug, Eq, PartialEq)]
    enum Fate {
        Taken,
        TakenUnheard,
        Lost,
        Refused,
        Full,
    }

    const FATES: [Fate; 5] = [Fate::Taken, Fate::TakenUnheard, Fate::Lost, Fate::Refused, Fate::Full];

    /// A log that knows what it has taken.
    #[derive(Default)]
    struct TestLog {
        taken: Vec<u64>,
    }

    impl TestLog {
        fn append(&mut self, number: u64, fate: Fate) -> Result<Stored, AppendError> {
            let stored =
                |at: usize, repeated| Stored::new(Place { epoch: 1, sequence: at as u64 + 1 }, Level::Memory, repeated);
            if let Some(at) = self.taken.iter().position(|taken| *taken == number) {
                return Ok(stored(at, true));
            }
            match fate {
                Fate::Taken | Fate::TakenUnheard => self.taken.push(number),
                Fate::Lost | Fate::Refused | Fate::Full => {}
            }
            match fate {
                Fate::Taken => Ok(stored(self.taken.len() - 1, false)),
                Fate::TakenUnheard | Fate::Lost => Err(AppendError::Unknown),
                Fate::Refused => Err(AppendError::Down),
                Fate::Full => Err(AppendError::Full),
            }
        }
    }

    async fn topics_with(count: u64) -> (TopicsOfNode, Arc<str>) {
        let (topics, topic): (_, Arc<str>) = (TopicsOfNode::new(), "news".into());
        let mut state = topics.state.lock();
        for number in 1..=count {
            let publishing = Publishing::begin(&topic, &Push::new("News", "Say", "x"), &Receipt::new());
            state.publishing.insert(number, publishing);
            let entry = NewEntry::new("x").with_key(number.to_string());
            state.wait(&topic, number, entry);
        }
        drop(state);
        (topics, topic)
    }

    /// A message that is published when the one before it is stored, and what has appended that has not looked again yet: it
    /// appends this one too. A second one beside it would have taken what the first was about to append for its own.
    #[tokio::test]
    async fn what_is_published_between_two_looks_is_appended_once() {
        let (topics, topic) = topics_with(1).await;
        let append = || {
            let some = topics.take_some(&topic)?;
            let numbers: Vec<u64> = some.iter().map(|(number, _)| *number).collect();
            let mut log = TestLog::default();
            let outcomes: Vec<_> = numbers.iter().map(|number| log.append(*number, Fate::Taken)).collect();
            topics.note(&topic, &numbers, &outcomes, Level::Memory);
            Some(numbers)
        };
        assert_eq!(append(), Some(vec![1]));
        assert!(!topics.state.lock().wait(&topic, 2, NewEntry::new("x")), "it is looked at once more");
        assert_eq!((append(), append()), (Some(vec![2]), None));
        assert!(topics.state.lock().wait(&topic, 3, NewEntry::new("x")), "nothing appends any more");
        assert_eq!((append(), append()), (Some(vec![3]), None));
        let state = topics.state.lock();
        assert_eq!((state.waiting, state.waiting_bytes, state.queues.len()), (0, 0, 0));
    }

    /// Whatever becomes of each of a window, also where a log goes on behind one that failed: what is stored stands in the order
    /// of the publishes, each once, and what is said to be stored is.
    #[tokio::test(start_paused = true)]
    async fn a_window_that_fails_anywhere_stays_in_order() {
        const COUNT: u32 = 4;
        for stops in [true, false] {
            for case in 0..5_usize.pow(COUNT) {
                let mut fates: Vec<Fate> = (0..COUNT).map(|digit| FATES[case / 5_usize.pow(digit) % 5]).collect();
                if !stops && fates.contains(&Fate::TakenUnheard) {
                    // Nobody could know of it: that is why a log is to stop.
                    fates.iter_mut().filter(|fate| **fate == Fate::TakenUnheard).for_each(|fate| *fate = Fate::Taken);
                }
                let (topics, topic) = topics_with(u64::from(COUNT)).await;
                let (mut log, mut is_first) = (TestLog::default(), true);
                let (mut stored, mut failed, mut rounds) = (Vec::new(), Vec::new(), 0);
                while let Some(some) = topics.take_some(&topic) {
                    rounds += 1;
                    let numbers: Vec<u64> = some.iter().map(|(number, _)| *number).collect();
                    let (mut outcomes, mut is_open) = (Vec::new(), false);
                    for number in &numbers {
                        let fate = if is_first { fates[*number as usize - 1] } else { Fate::Taken };
                        let outcome = if is_open && stops { Err(AppendError::Down) } else { log.append(*number, fate) };
                        is_open |= matches!(outcome, Err(AppendError::Down | AppendError::Unknown));
                        outcomes.push(outcome);
                    }
                    is_first = false;
                    for over in topics.note(&topic, &numbers, &outcomes, Level::Memory).0 {
                        match over {
                            Over::Stored(number) => stored.push(number),
                            Over::Failed(publishing, why) => failed.push((publishing.storing, why)),
                        }
                    }
                }
                assert!(log.taken.is_sorted(), "{fates:?}: {:?}", log.taken);
                assert!(rounds <= 2 && stored.len() + failed.len() == COUNT as usize, "{fates:?}");
                let is_there = |number: &u64| log.taken.contains(number);
                assert!(stored.iter().all(is_there), "{fates:?}: {stored:?}");
                let state = topics.state.lock();
                assert_eq!((state.waiting, state.waiting_bytes), (0, 0), "{fates:?}");
                let told: Vec<Stored> = state.publishing.values().filter_map(|one| one.stored).collect();
                assert!(told.iter().all(|stored| !stored.repeated), "each was stored by this publish");
                if stops {
                    // Tried again until it is stored, where nothing has passed it.
                    let full = failed.iter().all(|(_, why)| *why == AppendError::Full);
                    assert!(full, "{fates:?}");
                }
            }
        }
    }

    /// Logs that do not answer are asked again and again: they keep no other one from being read.
    #[tokio::test(start_paused = true)]
    async fn logs_that_do_not_answer_take_no_turn_of_others() {
        let topics = TopicsOfNode::new();
        let within = |tries| timeout(Duration::from_secs(1), topics.turn(tries));
        let mut turns = Vec::new();
        for _ in 0..READERS_AGAIN_MAX {
            turns.push(within(1).await.expect("there is room"));
        }
        assert!(within(7).await.is_err(), "so many at once");
        for _ in 0..READERS_MAX {
            turns.push(within(0).await.expect("there is room"));
        }
        assert!(within(0).await.is_err(), "and so many of the others");
        turns.clear();
        assert!(within(1).await.is_ok() && within(0).await.is_ok());
    }

    /// What is stored keeps no payload while it has not come back, and what is not keeps it. Of so many the receipts wait for
    /// that, and of no more.
    #[tokio::test(start_paused = true)]
    async fn what_has_not_come_back_is_bounded() {
        let count = STORED_MAX as u64 + 2;
        let (topics, topic) = topics_with(count).await;
        let place = |sequence| Place { epoch: 1, sequence };
        for number in 1..count {
            let stored = Stored::new(place(number), Level::Memory, false);
            topics.note(&topic, &[number], &[Ok(stored)], Level::Memory);
        }
        let all = || (1..=count).filter(|number| topics.state.lock().publishing.contains_key(number)).count();
        let has_payload = |number: u64| topics.state.lock().publishing[&number].push.is_some();
        assert!((1..count).all(|number| !has_payload(number)) && has_payload(count));

        (1..=count).for_each(|number| topics.settle(number, |_| true));
        assert_eq!(all(), STORED_MAX + 1, "one is over, and one waits");
        assert!(has_payload(count), "the one that waits");
        tokio::time::advance(DELIVERED_WITHIN).await;
        (1..=count).for_each(|number| topics.settle(number, |_| true));
        assert_eq!(all(), 1);
    }

    /// What is not stored in its time is given up, and what may be is said to be unknown; what was seen in the log is stored.
    #[tokio::test(start_paused = true)]
    async fn what_is_not_stored_in_time_is_given_up() {
        let (topics, topic) = topics_with(3).await;
        let down = [Err(AppendError::Unknown), Err(AppendError::Unknown), Err(AppendError::Down)];
        assert_eq!(topics.note(&topic, &[1, 2, 3], &down, Level::Memory).1, 0);
        let place = Place { epoch: 1, sequence: 7 };
        topics.state.lock().publishing.get_mut(&2).expect("it waits").seen = Some(place);
        tokio::time::advance(APPEND_MAX).await;
        let (over, count) = topics.note(&topic, &[1, 2, 3], &[Err(AppendError::Down); 3], Level::Memory);
        assert_eq!(count, 3);
        assert!(matches!(&over[0], Over::Failed(_, AppendError::Unknown)));
        assert!(matches!(&over[1], Over::Stored(2)));
        assert!(matches!(&over[2], Over::Failed(_, AppendError::Down)));
        assert_eq!(topics.state.lock().publishing[&2].stored.map(|stored| stored.place), Some(place));
        assert!(topics.take_some(&topic).is_none());
    }
}
