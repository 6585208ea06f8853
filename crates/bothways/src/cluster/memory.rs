//! An engine for nodes of one process: for programs that run several servers side by side, and for tests.
//!
//! Its clock is tokio's: real, or virtual in tests. With the feature `testing` it is as unkind as the real ones
//! ([`MemoryFaults`]): the register stands still while mail goes on, reads are old, nobody knows how a
//! compare-and-set ended, all leases are gone at once, mail is lost, late or comes twice, the data is lost.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use super::engine::{
    AppendError, AskError, BoxFuture, BuryError, ClaimError, Engine, EngineDown, EngineLimits, EngineState, Followed,
    Follower, Following, Inbox, Lease, Level, Log, Member, Members, NewEntry, NodeId, PAGE_BYTES, Page, Place,
    READER_BYTES_MAX, RenewError, Revision, Store, Stored,
};
use crate::{
    clock::later,
    session::{SessionId, covers},
};

/// Most bytes of all entries, records and cursors. What would go beyond is refused as full.
pub const STORE_BYTES_MAX: usize = 256 << 20;

/// For how long an entry's key is known.
const KEYS_KEPT: Duration = Duration::from_secs(120);

/// What an entry or a record takes beside its bytes.
const OVERHEAD: usize = 128;

/// How long nobody takes a lease under the name of a node that was buried.
const BURIED_FOR: Duration = Duration::from_secs(60);

/// Versions of a record that are kept for reads that are old.
const VERSIONS: usize = 4;

/// What all nodes of the process share. A clone is the same.
///
/// ```
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use bothways::cluster::{
///     Store,
///     engine::{Log, NewEntry},
///     memory::MemoryBroker,
/// };
///
/// let broker = MemoryBroker::new();
/// let (one, other) = (broker.engine(), broker.engine());
/// let letters = Log::Mailbox("ann".to_owned());
/// let stored = one.append(letters.clone(), NewEntry::new("a letter")).await?;
/// let page = other.read(letters, 0, 10).await?;
/// assert_eq!(page.entries, [(stored.place, "a letter".into())]);
/// # Ok(()) }
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(example()).unwrap();
/// ```
#[derive(Clone)]
pub struct MemoryBroker {
    shared: Arc<Shared>,
}

struct Shared {
    limits: EngineLimits,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    nodes: HashMap<NodeId, Listener>,
    leases: BTreeMap<NodeId, Leased>,
    /// Of the nodes that were buried, with their ends.
    stones: HashMap<NodeId, Instant>,
    records: HashMap<SessionId, Kept>,
    logs: HashMap<Log, Entries>,
    cursors: HashMap<Log, BTreeMap<String, (Place, Instant)>>,
    followers: BTreeMap<u64, FollowerHere>,
    /// Of engines, whose states are told together.
    engines: Vec<Arc<Here>>,
    /// Of revisions, sequences and followers.
    count: u64,
    store_epoch: u64,
    bytes: usize,
    faults: Faults,
}

/// What may go wrong, and does only in tests.
#[derive(Default)]
struct Faults {
    reads_are_old: bool,
    /// So many claims end unknown; and whether they are applied.
    claims_unknown: (usize, bool),
    /// So many claims come to the register after this time only.
    claims_late: (usize, Duration),
    /// After so many appends that go well, so many end unknown; and whether they are applied.
    appends_unknown: (usize, usize, bool),
    mail_lost: usize,
    told_lost: usize,
    answers_lost: usize,
    mail_twice: usize,
}

/// One node's side.
struct Here {
    mail: watch::Sender<EngineState>,
    register: watch::Sender<EngineState>,
    members: watch::Sender<Arc<Members>>,
    /// It hears of no change of the members.
    is_blind: AtomicBool,
    node: Mutex<Option<NodeId>>,
}

struct Listener {
    inbox: Arc<dyn Inbox>,
    /// Its process does not run at the moment.
    paused: watch::Sender<bool>,
    here: Arc<Here>,
}

struct Leased {
    member: Member,
    until: Instant,
}

/// A record, with the versions before it.
struct Kept {
    /// Oldest first; `None`: there was none.
    versions: VecDeque<Option<(Bytes, Revision)>>,
    until: Instant,
}

struct FollowerHere {
    /// `None`: the mailboxes.
    pattern: Option<String>,
    follower: Arc<dyn Follower>,
    here: Arc<Here>,
}

#[derive(Default)]
struct Entries {
    all: VecDeque<Entry>,
    last: u64,
    keys: HashMap<String, u64>,
    /// The keys in the order of their ends.
    keys_end: VecDeque<(Instant, String)>,
}

struct Entry {
    sequence: u64,
    bytes: Bytes,
    until: Option<Instant>,
}

impl Default for MemoryBroker {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for MemoryBroker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MemoryBroker")
    }
}

impl MemoryBroker {
    /// With the limits of [`EngineLimits::new`].
    pub fn new() -> Self {
        Self::with_limits(EngineLimits::new(Level::Memory))
    }

    /// With limits of its own. It stores in [memory](Level::Memory), whatever level they name.
    pub fn with_limits(limits: EngineLimits) -> Self {
        let state = State { store_epoch: rand::random(), ..State::default() };
        let shared = Shared { limits: EngineLimits { level: Level::Memory, ..limits }, state: Mutex::new(state) };
        Self { shared: Arc::new(shared) }
    }

    /// The engine of one more node.
    pub fn engine(&self) -> Arc<MemoryEngine> {
        let up = || watch::Sender::new(EngineState::Up { epoch: rand::random() });
        let mut state = self.shared.state.lock();
        let members = watch::Sender::new(Arc::new(state.members()));
        let is_blind = AtomicBool::new(false);
        let here = Arc::new(Here { mail: up(), register: up(), members, is_blind, node: Mutex::new(None) });
        state.engines.push(Arc::clone(&here));
        drop(state);
        Arc::new(MemoryEngine { side: Side { shared: Arc::clone(&self.shared), here } })
    }

    /// What makes it unkind.
    #[cfg(feature = "testing")]
    pub fn faults(&self) -> MemoryFaults {
        MemoryFaults { shared: Arc::clone(&self.shared) }
    }
}

/// The engine of one node. From [`MemoryBroker::engine`].
pub struct MemoryEngine {
    side: Side,
}

/// What one node has of the broker.
#[derive(Clone)]
struct Side {
    shared: Arc<Shared>,
    here: Arc<Here>,
}

impl std::fmt::Debug for MemoryEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MemoryEngine")
    }
}

impl Drop for MemoryEngine {
    fn drop(&mut self) {
        let Side { shared, here } = &self.side;
        let mut state = shared.state.lock();
        state.engines.retain(|other| !Arc::ptr_eq(other, here));
        let gone: Vec<NodeId> =
            state.nodes.iter().filter(|(_, node)| Arc::ptr_eq(&node.here, here)).map(|(id, _)| *id).collect();
        let gone: Vec<_> = gone.iter().filter_map(|id| state.nodes.remove(id)).collect();
        // An inbox is the node's own: not under the lock.
        drop(state);
        drop(gone);
    }
}

/// Where a message goes.
enum Way {
    To { inbox: Arc<dyn Inbox>, paused: watch::Receiver<bool>, twice: bool, answered: bool },
    Lost,
    Nobody,
    Down,
}

impl Shared {
    fn tell_members(&self, state: &State) {
        let members = Arc::new(state.members());
        for here in state.engines.iter().filter(|here| !here.is_blind.load(Ordering::Relaxed)) {
            here.members.send_replace(Arc::clone(&members));
        }
    }

    /// Ends the leases that have run out.
    fn expire(&self, state: &mut State) {
        let (now, before) = (Instant::now(), state.leases.len());
        state.leases.retain(|_, leased| now < leased.until);
        if state.leases.len() != before {
            self.tell_members(state);
        }
    }

    fn way(&self, from: &Here, to: NodeId) -> Way {
        let mut state = self.state.lock();
        if !from.mail.borrow().is_up() {
            return Way::Down;
        }
        let Some(listener) = state.nodes.get(&to).filter(|listener| listener.here.mail.borrow().is_up()) else {
            return Way::Nobody;
        };
        let (inbox, paused) = (Arc::clone(&listener.inbox), listener.paused.subscribe());
        let faults = &mut state.faults;
        if take_one(&mut faults.mail_lost) {
            return Way::Lost;
        }
        Way::To {
            inbox,
            paused,
            twice: take_one(&mut faults.mail_twice),
            answered: !take_one(&mut faults.answers_lost),
        }
    }
}

fn take_one(left: &mut usize) -> bool {
    let some = *left != 0;
    *left -= usize::from(some);
    some
}

impl State {
    fn members(&self) -> Members {
        self.leases.iter().map(|(node, leased)| (*node, leased.member.clone())).collect()
    }

    fn next(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    fn record(&self, id: SessionId) -> Option<(Bytes, Revision)> {
        let kept = self.records.get(&id).filter(|kept| Instant::now() < kept.until)?;
        kept.versions.back().cloned().flatten()
    }

    /// Writes what is the record from now on.
    fn write(&mut self, id: SessionId, to: Option<Bytes>, ttl: Duration) -> Revision {
        let revision = Revision(self.next());
        let before = self.record(id);
        let size =
            |version: &Option<(Bytes, Revision)>| version.as_ref().map_or(0, |(bytes, _)| bytes.len() + OVERHEAD);
        let kept = self.records.entry(id).or_insert_with(|| Kept { versions: VecDeque::new(), until: Instant::now() });
        if before.is_none() && kept.versions.back().is_none_or(Option::is_some) {
            kept.versions.push_back(None);
        }
        kept.until = later(Instant::now(), ttl);
        let version = to.map(|bytes| (bytes, revision));
        self.bytes += size(&version);
        kept.versions.push_back(version);
        while VERSIONS < kept.versions.len() {
            let gone = kept.versions.pop_front().unwrap_or_default();
            self.bytes -= size(&gone);
        }
        revision
    }

    /// Forgets these entries of a log. Returns how many there were.
    fn forget(&mut self, log: &Log, is_one: impl Fn(&Entry) -> bool) -> usize {
        let Some(entries) = self.logs.get_mut(log) else { return 0 };
        let (mut count, mut bytes) = (0, 0);
        entries.all.retain(|entry| {
            let goes = is_one(entry);
            (count, bytes) = if goes { (count + 1, bytes + entry.bytes.len() + OVERHEAD) } else { (count, bytes) };
            !goes
        });
        self.bytes = self.bytes.saturating_sub(bytes);
        count
    }

    /// Forgets what is over, when room is asked for that is not there.
    fn has_room(&mut self, bytes: usize) -> bool {
        if STORE_BYTES_MAX < self.bytes + bytes + OVERHEAD {
            let now = Instant::now();
            self.records.retain(|_, kept| now < kept.until && kept.versions.back().is_some_and(Option::is_some));
            self.logs.values_mut().for_each(|entries| entries.expire(now));
            for readers in self.cursors.values_mut() {
                readers.retain(|_, (_, until)| now < *until);
            }
            self.cursors.retain(|_, readers| !readers.is_empty());
            let records = self.records.values().flat_map(|kept| kept.versions.iter().flatten());
            let entries = self.logs.values().flat_map(|entries| entries.all.iter());
            let of_records: usize = records.map(|(bytes, _)| bytes.len() + OVERHEAD).sum();
            let of_entries: usize = entries.map(|entry| entry.bytes.len() + OVERHEAD).sum();
            let readers = self.cursors.values().flat_map(BTreeMap::keys);
            let of_cursors: usize = readers.map(|name| name.len() + OVERHEAD).sum();
            self.bytes = of_records + of_entries + of_cursors;
        }
        self.bytes + bytes + OVERHEAD <= STORE_BYTES_MAX
    }

    /// Those whom this is for: what is published to a topic, or `None`, what rings for a mailbox.
    fn followers_of(&self, topic: Option<&str>) -> Vec<Arc<dyn Follower>> {
        let is_for = |pattern: &Option<String>| match (pattern, topic) {
            (Some(pattern), Some(topic)) => covers(pattern, topic),
            (None, None) => true,
            _ => false,
        };
        let all = self.followers.values();
        let reached = all.filter(|one| one.here.mail.borrow().is_up() && is_for(&one.pattern));
        reached.map(|one| Arc::clone(&one.follower)).collect()
    }
}

impl Entries {
    fn expire(&mut self, now: Instant) {
        self.all.retain(|entry| entry.until.is_none_or(|until| now < until));
        while let Some((_, key)) = self.keys_end.pop_front_if(|(end, _)| *end <= now) {
            self.keys.remove(&key);
        }
    }
}

impl Side {
    /// Runs this if the register works at this node.
    fn registered<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Shared, &mut State) -> T + Send + 'static,
    ) -> BoxFuture<Result<T, EngineDown>> {
        let Self { shared, here } = self.clone();
        Box::pin(async move {
            let mut state = shared.state.lock();
            if !here.register.borrow().is_up() {
                return Err(EngineDown);
            }
            shared.expire(&mut state);
            Ok(run(&shared, &mut state))
        })
    }

    /// `None` follows the mailboxes.
    fn follow(&self, pattern: Option<String>, follower: Arc<dyn Follower>) -> BoxFuture<Result<Following, EngineDown>> {
        let Self { shared, here } = self.clone();
        Box::pin(async move {
            if !here.mail.borrow().is_up() {
                return Err(EngineDown);
            }
            let mut state = shared.state.lock();
            let number = state.next();
            state.followers.insert(number, FollowerHere { pattern, follower, here });
            drop(state);
            let followed = Arc::downgrade(&shared);
            Ok(Following::until(move || {
                if let Some(shared) = followed.upgrade() {
                    let gone = shared.state.lock().followers.remove(&number);
                    drop(gone);
                }
            }))
        })
    }

    fn is_too_large(&self, bytes: &Bytes) -> bool {
        self.shared.limits.message_bytes_max < bytes.len()
    }
}

impl Store for MemoryEngine {
    fn append(&self, to: Log, entry: NewEntry) -> BoxFuture<Result<Stored, AppendError>> {
        if self.side.is_too_large(&entry.bytes) {
            return Box::pin(async { Err(AppendError::TooLarge) });
        }
        let appended = self.side.registered(move |shared, state| append(shared, state, to, entry));
        Box::pin(async move {
            let (outcome, told) = appended.await.map_err(|_| AppendError::Down)?;
            tell_all(told);
            outcome
        })
    }

    /// Nothing of others comes between.
    fn append_all(&self, to: Log, entries: Vec<NewEntry>) -> BoxFuture<Vec<Result<Stored, AppendError>>> {
        let (count, most) = (entries.len(), self.side.shared.limits.message_bytes_max);
        let appended = self.side.registered(move |shared, state| {
            let (mut outcomes, mut all_told, mut is_open) = (Vec::with_capacity(entries.len()), Told::new(), false);
            for entry in entries {
                let (outcome, told) = match most < entry.bytes.len() {
                    true => (Err(AppendError::TooLarge), Told::new()),
                    false if is_open => (Err(AppendError::Down), Told::new()),
                    false => append(shared, state, to.clone(), entry),
                };
                is_open |= matches!(outcome, Err(AppendError::Down | AppendError::Unknown));
                outcomes.push(outcome);
                all_told.extend(told);
            }
            (outcomes, all_told)
        });
        Box::pin(async move {
            let Ok((outcomes, told)) = appended.await else { return vec![Err(AppendError::Down); count] };
            tell_all(told);
            outcomes
        })
    }

    fn read(&self, from: Log, after: u64, max: usize) -> BoxFuture<Result<Page, EngineDown>> {
        self.side.registered(move |_, state| {
            let epoch = state.store_epoch;
            let Some(entries) = state.logs.get_mut(&from) else { return Page::default() };
            entries.expire(Instant::now());
            let place = |sequence| Place { epoch, sequence };
            let mut bytes = 0;
            let within = |entry: &&Entry| {
                let is_within = bytes < PAGE_BYTES;
                bytes += entry.bytes.len();
                is_within
            };
            let page = entries.all.iter().filter(|entry| after < entry.sequence).take(max).take_while(within);
            let page = page.map(|entry| (place(entry.sequence), entry.bytes.clone())).collect();
            Page::new(page, (entries.last != 0).then(|| place(entries.last)))
        })
    }

    fn cursor(&self, of: Log, reader: String) -> BoxFuture<Result<Option<Place>, EngineDown>> {
        self.side.registered(move |_, state| {
            let (place, until) = state.cursors.get(&of)?.get(&reader).copied()?;
            (Instant::now() < until).then_some(place)
        })
    }

    fn cursors(&self, of: Log) -> BoxFuture<Result<Vec<(String, Place)>, EngineDown>> {
        self.side.registered(move |_, state| {
            let now = Instant::now();
            let readers = state.cursors.get(&of).into_iter().flatten();
            let live = readers.filter(|(_, (_, until))| now < *until);
            live.map(|(reader, (place, _))| (reader.clone(), *place)).collect()
        })
    }

    fn advance(&self, of: Log, reader: String, to: Place, keep: Duration) -> BoxFuture<Result<Place, EngineDown>> {
        let advanced = self.side.registered(move |_, state| {
            let now = Instant::now();
            let until = later(now, keep);
            let before = state.cursors.get(&of).and_then(|readers| readers.get(&reader).copied());
            if before.is_none() {
                if READER_BYTES_MAX < reader.len() || !state.has_room(reader.len()) {
                    return Err(EngineDown);
                }
                state.bytes += reader.len() + OVERHEAD;
            }
            let before = before.filter(|(_, until)| now < *until).map(|(place, _)| place);
            let stands = before
                .filter(|before| to.epoch == 0 || before.epoch == to.epoch && to.sequence < before.sequence)
                .unwrap_or(to);
            state.cursors.entry(of).or_default().insert(reader, (stands, until));
            Ok(stands)
        });
        Box::pin(async move { advanced.await? })
    }

    fn trim(&self, log: Log, upto: Place) -> BoxFuture<Result<(), EngineDown>> {
        self.side.registered(move |_, state| {
            if upto.epoch == state.store_epoch {
                state.forget(&log, |entry| entry.sequence <= upto.sequence);
            }
        })
    }

    fn remove(&self, from: Log, place: Place) -> BoxFuture<Result<bool, EngineDown>> {
        self.side.registered(move |_, state| {
            place.epoch == state.store_epoch && state.forget(&from, |entry| entry.sequence == place.sequence) != 0
        })
    }

    fn list(&self, after: Log, max: usize) -> BoxFuture<Result<Vec<(String, usize)>, EngineDown>> {
        self.side.registered(move |_, state| {
            let now = Instant::now();
            let alike = |log: &Log| std::mem::discriminant(log) == std::mem::discriminant(&after) && after < *log;
            let mut found: Vec<Log> = state.logs.keys().filter(|log| alike(log)).cloned().collect();
            found.sort_unstable();
            let with_entries = found.into_iter().filter_map(|log| {
                let entries = state.logs.get_mut(&log)?;
                entries.expire(now);
                (!entries.all.is_empty()).then(|| (log.name(), entries.all.len()))
            });
            with_entries.take(max).collect()
        })
    }
}

type Told = Vec<(Arc<dyn Follower>, Followed)>;

/// Not under the lock: a follower may ask for something.
fn tell_all(told: impl IntoIterator<Item = (Arc<dyn Follower>, Followed)>) {
    told.into_iter().for_each(|(follower, message)| follower.message(message));
}

/// What the one who appends is told, and those who follow.
fn append(shared: &Shared, state: &mut State, to: Log, entry: NewEntry) -> (Result<Stored, AppendError>, Told) {
    let (well, unknown, applied) = &mut state.faults.appends_unknown;
    let (is_unknown, is_applied) = (!take_one(well) && take_one(unknown), *applied);
    if is_unknown && !is_applied {
        return (Err(AppendError::Unknown), Told::new());
    }
    match store(shared, state, to, entry) {
        Ok((_, told)) if is_unknown => (Err(AppendError::Unknown), told),
        Ok((stored, told)) => (Ok(stored), told),
        Err(why) => (Err(why), Told::new()),
    }
}

fn store(shared: &Shared, state: &mut State, to: Log, entry: NewEntry) -> Result<(Stored, Told), AppendError> {
    let (now, epoch, limits) = (Instant::now(), state.store_epoch, &shared.limits);
    let size = entry.bytes.len();
    if !state.has_room(size) {
        return Err(AppendError::Full);
    }
    let sequence = state.next();
    let entries = state.logs.entry(to.clone()).or_default();
    entries.expire(now);
    let stored = |sequence, repeated| Stored::new(Place { epoch, sequence }, Level::Memory, repeated);
    if let Some(sequence) = entry.key.as_ref().and_then(|key| entries.keys.get(key)) {
        return Ok((stored(*sequence, true), Vec::new()));
    }

    let mut freed = 0;
    match to {
        Log::Mailbox(_) if limits.mailbox_entries_max <= entries.all.len() => return Err(AppendError::Full),
        Log::History(_) | Log::Dead(_) => {
            while limits.history_entries_max <= entries.all.len() {
                freed += entries.all.pop_front().map_or(0, |gone| gone.bytes.len() + OVERHEAD);
            }
        }
        _ => {}
    }
    let previous = std::mem::replace(&mut entries.last, sequence);
    let until = entry.time_to_live.map(|ttl| later(now, ttl));
    entries.all.push_back(Entry { sequence, bytes: entry.bytes.clone(), until });
    if let Some(key) = entry.key {
        entries.keys.insert(key.clone(), sequence);
        entries.keys_end.push_back((later(now, KEYS_KEPT), key));
    }
    state.bytes = (state.bytes + size + OVERHEAD).saturating_sub(freed);

    let at = Some((Place { epoch, sequence }, previous));
    let (followers, message) = match to {
        Log::History(topic) => (state.followers_of(Some(&topic)), Followed::new(topic, entry.bytes, at)),
        Log::Mailbox(user) => (state.followers_of(None), Followed::new(user, Bytes::new(), at)),
        Log::Dead(_) | Log::Parked(_) | Log::ParkedOf(_) => return Ok((stored(sequence, false), Vec::new())),
    };
    if take_one(&mut state.faults.told_lost) {
        return Ok((stored(sequence, false), Vec::new()));
    }
    let told = followers.into_iter().map(|follower| (follower, message.clone())).collect();
    Ok((stored(sequence, false), told))
}

impl Engine for MemoryEngine {
    fn mail_state(&self) -> watch::Receiver<EngineState> {
        self.side.here.mail.subscribe()
    }

    fn register_state(&self) -> watch::Receiver<EngineState> {
        self.side.here.register.subscribe()
    }

    fn limits(&self) -> EngineLimits {
        self.side.shared.limits
    }

    fn listen(&self, me: NodeId, inbox: Arc<dyn Inbox>) -> BoxFuture<Result<(), EngineDown>> {
        let Side { shared, here } = self.side.clone();
        Box::pin(async move {
            if !here.mail.borrow().is_up() {
                return Err(EngineDown);
            }
            *here.node.lock() = Some(me);
            let listener = Listener { inbox, paused: watch::Sender::new(false), here };
            shared.state.lock().nodes.insert(me, listener);
            Ok(())
        })
    }

    fn deafen(&self, me: NodeId) -> BoxFuture<()> {
        let shared = Arc::clone(&self.side.shared);
        Box::pin(async move {
            let gone = shared.state.lock().nodes.remove(&me);
            drop(gone);
        })
    }

    fn ask(&self, to: NodeId, bytes: Bytes, within: Duration) -> BoxFuture<Result<Bytes, AskError>> {
        if self.side.is_too_large(&bytes) {
            return Box::pin(async { Err(AskError::TooLarge) });
        }
        let Side { shared, here } = self.side.clone();
        Box::pin(async move {
            let (inbox, mut paused, twice, answered) = match shared.way(&here, to) {
                Way::To { inbox, paused, twice, answered } => (inbox, paused, twice, answered),
                Way::Nobody => return Err(AskError::NoNode),
                Way::Down => return Err(AskError::Down),
                Way::Lost => {
                    tokio::time::sleep(within).await;
                    return Err(AskError::TimedOut);
                }
            };
            // A task: what was sent arrives, although the asker has given up.
            let taking = tokio::spawn(async move {
                let _ = paused.wait_for(|paused| !paused).await;
                if twice {
                    inbox.take(bytes.clone()).await;
                }
                inbox.take(bytes).await
            });
            match timeout(within, taking).await {
                Ok(Ok(Some(answer))) if answered && answer.len() <= shared.limits.message_bytes_max => Ok(answer),
                Err(_) => Err(AskError::TimedOut),
                _ => {
                    tokio::time::sleep(within).await;
                    Err(AskError::TimedOut)
                }
            }
        })
    }

    fn lease(&self, me: NodeId, card: Bytes, ttl: Duration) -> BoxFuture<Result<Arc<dyn Lease>, EngineDown>> {
        let leased = self.side.registered(move |shared, state| {
            if state.stones.get(&me).is_some_and(|end| Instant::now() < *end) {
                return Err(EngineDown);
            }
            let revision = Revision(state.next());
            let until = later(Instant::now(), ttl);
            state.leases.insert(me, Leased { member: Member::new(card, revision), until });
            shared.tell_members(state);
            Ok(revision)
        });
        let Side { shared, here } = self.side.clone();
        Box::pin(async move {
            let revision = leased.await??;
            // Others are told of its end without asking.
            let watched = Arc::downgrade(&shared);
            tokio::spawn(async move {
                while let Some(shared) = watched.upgrade() {
                    let until = {
                        let mut state = shared.state.lock();
                        shared.expire(&mut state);
                        state.leases.get(&me).map(|leased| leased.until)
                    };
                    let Some(until) = until else { break };
                    drop(shared);
                    sleep_until(until).await;
                }
            });
            let revision = Arc::new(Mutex::new(revision));
            Ok(Arc::new(MemoryLease { side: Side { shared, here }, me, ttl, revision }) as Arc<dyn Lease>)
        })
    }

    fn members(&self) -> watch::Receiver<Arc<Members>> {
        self.side.here.members.subscribe()
    }

    fn bury(&self, node: NodeId, _was: Revision) -> BoxFuture<Result<(), BuryError>> {
        let buried = self.side.registered(move |_, state| match state.leases.get(&node) {
            None => {
                let now = Instant::now();
                state.stones.retain(|_, end| now < *end);
                state.stones.insert(node, later(now, BURIED_FOR));
                Ok(())
            }
            Some(_) => Err(BuryError::Alive),
        });
        Box::pin(async move { buried.await.map_err(|_| BuryError::Down)? })
    }

    fn session(&self, id: SessionId, _fresh: bool) -> BoxFuture<Result<Option<(Bytes, Revision)>, EngineDown>> {
        self.side.registered(move |_, state| {
            if !state.faults.reads_are_old {
                return state.record(id);
            }
            let kept = state.records.get(&id)?;
            let before = kept.versions.len().checked_sub(2)?;
            kept.versions[before].clone()
        })
    }

    fn claim(
        &self,
        id: SessionId,
        was: Option<Revision>,
        record: Bytes,
        ttl: Duration,
    ) -> BoxFuture<Result<Revision, ClaimError>> {
        if self.side.is_too_large(&record) {
            return Box::pin(async { Err(ClaimError::TooLarge) });
        }
        let late = {
            let (count, by) = &mut self.side.shared.state.lock().faults.claims_late;
            take_one(count).then_some(*by)
        };
        let claimed = self.side.registered(move |_, state| {
            let unknown = take_one(&mut state.faults.claims_unknown.0);
            if unknown && !state.faults.claims_unknown.1 {
                return Err(ClaimError::Unknown);
            }
            let now = state.record(id);
            if now.as_ref().map(|(_, revision)| *revision) != was {
                return Err(if unknown { ClaimError::Unknown } else { ClaimError::Lost(now) });
            }
            if !state.has_room(record.len()) {
                return Err(ClaimError::Down);
            }
            let revision = state.write(id, Some(record), ttl);
            if unknown { Err(ClaimError::Unknown) } else { Ok(revision) }
        });
        Box::pin(async move {
            if let Some(by) = late {
                tokio::time::sleep(by).await;
            }
            claimed.await.map_err(|_| ClaimError::Down)?
        })
    }

    fn forget(&self, id: SessionId, was: Revision) -> BoxFuture<Result<(), ClaimError>> {
        let forgotten = self.side.registered(move |_, state| {
            let now = state.record(id);
            if now.as_ref().is_none_or(|(_, revision)| *revision != was) {
                return Err(ClaimError::Lost(now));
            }
            state.write(id, None, Duration::from_secs(60));
            Ok(())
        });
        Box::pin(async move { forgotten.await.map_err(|_| ClaimError::Down)? })
    }

    fn publish(&self, topic: String, bytes: Bytes) -> BoxFuture<Result<(), EngineDown>> {
        let Side { shared, here } = self.side.clone();
        Box::pin(async move {
            if !here.mail.borrow().is_up() || shared.limits.message_bytes_max < bytes.len() {
                return Err(EngineDown);
            }
            let followers = shared.state.lock().followers_of(Some(&topic));
            let message = Followed::new(topic, bytes, None);
            followers.into_iter().for_each(|follower| follower.message(message.clone()));
            Ok(())
        })
    }

    fn follow(&self, pattern: String, follower: Arc<dyn Follower>) -> BoxFuture<Result<Following, EngineDown>> {
        self.side.follow(Some(pattern), follower)
    }

    fn follow_mailboxes(&self, follower: Arc<dyn Follower>) -> BoxFuture<Result<Following, EngineDown>> {
        self.side.follow(None, follower)
    }
}

struct MemoryLease {
    side: Side,
    me: NodeId,
    ttl: Duration,
    revision: Arc<Mutex<Revision>>,
}

impl Lease for MemoryLease {
    fn renew(&self, card: Bytes) -> BoxFuture<Result<(), RenewError>> {
        let (me, ttl, revision) = (self.me, self.ttl, Arc::clone(&self.revision));
        let renewed = self.side.registered(move |shared, state| {
            let next = Revision(state.next());
            let mut last = revision.lock();
            let lives = state.leases.get_mut(&me).filter(|leased| leased.member.revision == *last);
            let Some(leased) = lives else { return Err(RenewError::Lapsed) };
            *last = next;
            *leased = Leased { member: Member::new(card, next), until: later(Instant::now(), ttl) };
            shared.tell_members(state);
            Ok(())
        });
        Box::pin(async move { renewed.await.map_err(|_| RenewError::Down)? })
    }

    fn release(&self) -> BoxFuture<()> {
        let (me, revision) = (self.me, Arc::clone(&self.revision));
        let released = self.side.registered(move |shared, state| {
            let is_mine = state.leases.get(&me).is_some_and(|leased| leased.member.revision == *revision.lock());
            if is_mine {
                state.leases.remove(&me);
                shared.tell_members(state);
            }
        });
        Box::pin(async move {
            // What is left runs out.
            let _ = released.await;
        })
    }
}

/// Makes a [`MemoryBroker`] as unkind as a broker of three servers has been seen to be.
#[cfg(feature = "testing")]
#[derive(Clone)]
pub struct MemoryFaults {
    shared: Arc<Shared>,
}

#[cfg(feature = "testing")]
impl std::fmt::Debug for MemoryFaults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MemoryFaults")
    }
}

#[cfg(feature = "testing")]
impl MemoryFaults {
    fn all(&self, of: impl Fn(&Here) -> &watch::Sender<EngineState>, up: bool) {
        let engines = self.shared.state.lock().engines.clone();
        engines.iter().for_each(|here| set(of(here), up));
    }

    /// The register and the store stand still for all nodes, or work again. Leases run on meanwhile.
    pub fn register_up(&self, up: bool) {
        self.all(|here| &here.register, up);
    }

    /// There is no mail between any nodes, or there is again.
    pub fn mail_up(&self, up: bool) {
        self.all(|here| &here.mail, up);
    }

    /// This node alone is cut off from mail and register, or is back. False: it does not listen.
    pub fn cut(&self, node: NodeId, cut: bool) -> bool {
        let engines = self.shared.state.lock().engines.clone();
        let mut cut_off = engines.iter().filter(|here| *here.node.lock() == Some(node));
        let found = cut_off.next();
        if let Some(here) = found {
            set(&here.mail, !cut);
            set(&here.register, !cut);
        }
        found.is_some()
    }

    /// This node hears of no member that comes or goes, or does again. False: it does not listen.
    pub fn blind(&self, node: NodeId, blind: bool) -> bool {
        let state = self.shared.state.lock();
        let here = state.nodes.get(&node).map(|listener| &listener.here);
        let found = here.inspect(|here| here.is_blind.store(blind, Ordering::Relaxed)).is_some();
        self.shared.tell_members(&state);
        found
    }

    /// This node answers nothing, as one that is stopped; when it goes on, it gets what was sent to it meanwhile. False:
    /// it does not listen.
    pub fn pause(&self, node: NodeId, paused: bool) -> bool {
        let state = self.shared.state.lock();
        let listener = state.nodes.get(&node);
        listener.inspect(|listener| _ = listener.paused.send_replace(paused)).is_some()
    }

    /// The node is gone without a word: its lease runs out by itself, and nothing that is left of it reaches the broker.
    pub fn kill(&self, node: NodeId) {
        let gone = {
            let mut state = self.shared.state.lock();
            let gone = state.nodes.remove(&node);
            if let Some(Listener { here, .. }) = &gone {
                state.engines.retain(|other| !Arc::ptr_eq(other, here));
            }
            gone
        };
        if let Some(Listener { here, .. }) = gone {
            set(&here.mail, false);
            set(&here.register, false);
        }
    }

    /// Reads of records show what was there before the last change.
    pub fn reads_are_old(&self, old: bool) {
        self.shared.state.lock().faults.reads_are_old = old;
    }

    /// The next so many claims end as [`ClaimError::Unknown`], and are applied all the same, or not.
    pub fn claims_unknown(&self, count: usize, applied: bool) {
        self.shared.state.lock().faults.claims_unknown = (count, applied);
    }

    /// The next so many claims come to the register after this time.
    pub fn claims_late(&self, count: usize, by: Duration) {
        self.shared.state.lock().faults.claims_late = (count, by);
    }

    /// After so many appends that go well, the next so many end as [`AppendError::Unknown`], and are applied all the same, or
    /// not.
    pub fn appends_unknown(&self, after: usize, count: usize, applied: bool) {
        self.shared.state.lock().faults.appends_unknown = (after, count, applied);
    }

    /// All leases end at once, although their nodes live and have renewed them.
    pub fn end_all_leases(&self) {
        let mut state = self.shared.state.lock();
        state.leases.clear();
        self.shared.tell_members(&state);
    }

    /// The next so many messages do not arrive.
    pub fn lose_mail(&self, count: usize) {
        self.shared.state.lock().faults.mail_lost = count;
    }

    /// The next so many entries of histories and mailboxes are stored, and nobody who follows is told of them.
    pub fn tell_nobody(&self, count: usize) {
        self.shared.state.lock().faults.told_lost = count;
    }

    /// The next so many answers do not arrive.
    pub fn lose_answers(&self, count: usize) {
        self.shared.state.lock().faults.answers_lost = count;
    }

    /// The next so many messages arrive twice.
    pub fn repeat_mail(&self, count: usize) {
        self.shared.state.lock().faults.mail_twice = count;
    }

    /// All data is lost: records, logs, cursors and leases. The epochs are others from here on.
    pub fn wipe(&self) {
        let mut state = self.shared.state.lock();
        (state.records, state.logs, state.cursors) = Default::default();
        state.leases.clear();
        state.stones.clear();
        (state.bytes, state.store_epoch) = (0, rand::random());
        self.shared.tell_members(&state);
        let engines = state.engines.clone();
        drop(state);
        engines.iter().for_each(|here| set(&here.register, true));
    }
}

/// Up again is another epoch.
#[cfg(feature = "testing")]
fn set(part: &watch::Sender<EngineState>, up: bool) {
    part.send_replace(if up { EngineState::Up { epoch: rand::random() } } else { EngineState::Down });
}
