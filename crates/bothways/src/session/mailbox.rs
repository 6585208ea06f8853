//! Durable pushes: what a user is to get also if nobody is there, or the server ends meanwhile.
//!
//! | file | what it does |
//! |---|---|
//! | `mailbox.rs` | appends letters to the mailboxes of users, and wakes those who read |
//! | `mailbox/reader.rs` | one session reads: from the cursor of its device, in order, as its client handles them |
//! | `mailbox/window.rs` | how far it is; no I/O, no clock |
//! | `mailbox/letter.rs` | what is in a mailbox |
//! | `mailbox/desk.rs` | what an operator does with mailboxes |
//! | `mailbox/unsure.rs` | appends that may be done after their callers have given up |
//!
//! ```text
//!  Server::push ──► post ──► one lane a user, in order ──► Store::append_all
//!                                                             │ stored
//!                    ┌────────────────── wake ◄───────────────┘   and when a client comes, or another node has appended
//!                    ▼
//!  reader of a session ──► Store::read after the cursor ──► Session::push_within ──► handled ──► Store::advance, trim
//! ```
//!
//! A reader lives while there is something to read or to wait for, so a session without mail has none. Only sessions
//! whose clients acknowledge read: what a plain client was sent, nobody would know to be handled.
//!
//! Locks: each of them is small, and no other one is taken under it, except that of a reader under the table of readers.

mod desk;
mod letter;
mod reader;
mod unsure;
mod window;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::timeout;

pub use self::desk::{DeadLetter, LetterView, Mail, MailboxView};
use self::{
    letter::Letter,
    reader::{Reader, Registered},
    unsure::Unsure,
    window::Tries,
};
use super::{
    Session, SessionId,
    push::Push,
    receipt::{Receipt, Storing},
    registry::Registry,
};
use crate::{
    calm::{Calm, tell},
    clock::Runtimes,
    error::{NotDurable, PushError},
    store::{AppendError, Kept, Log, NewEntry, Place, READER_BYTES_MAX, Store, StoreError, Stored},
};

/// What waits for the store: most bytes, and most letters.
const WAITING_BYTES_MAX: usize = 64 << 20;
const WAITING_MAX: usize = 65_536;

/// What of one user is appended at a time: most letters, and bytes after which no more are taken.
const TOGETHER_MAX: usize = 256;
const TOGETHER_BYTES: usize = 1 << 20;

/// Most named devices of one user. One more reads with the cursor that those without a name share.
pub(super) const DEVICES_MAX: usize = 16;

/// Users whose devices are given a cursor at the same time.
const NAMING_AT_ONCE: usize = 64;

/// The device of a client that names none.
pub(super) const DEFAULT_DEVICE: &str = "default";

/// Sessions that look into their mailboxes at the same time, when all of them have to.
#[cfg(feature = "cluster")]
const LOOK_AT_ONCE: usize = 64;

/// How long the next ones wait for these at most.
#[cfg(feature = "cluster")]
const LOOK_WAIT: Duration = Duration::from_secs(10);

/// Bounds and times of durable pushes.
///
/// ```
/// use std::time::Duration;
///
/// use bothways::session::MailboxOptions;
///
/// let options = MailboxOptions::new().deliveries_max(10).retry(Duration::from_secs(5), Duration::from_secs(600));
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct MailboxOptions {
    ttl_max: Duration,
    deliveries_max: u32,
    retry_first: Duration,
    retry_longest: Duration,
    dead_letters_kept: Duration,
    store_wait: Duration,
}

impl Default for MailboxOptions {
    fn default() -> Self {
        Self {
            ttl_max: Duration::from_secs(30 * 24 * 3600),
            deliveries_max: 5,
            retry_first: Duration::from_secs(1),
            retry_longest: Duration::from_secs(60),
            dead_letters_kept: Duration::from_secs(30 * 24 * 3600),
            store_wait: Duration::from_secs(10),
        }
    }
}

impl MailboxOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// The longest time to live of a durable push; a longer one is refused. The cursor of a device that handles no letter is
    /// kept as long. Default 30 days.
    pub fn ttl_max(self, ttl: Duration) -> Self {
        Self { ttl_max: ttl, ..self }
    }

    /// How often a letter may fail in one session before it is given up, and is with the dead letters. Counted by this
    /// process; at least 1. Default 5.
    pub fn deliveries_max(self, deliveries: u32) -> Self {
        Self { deliveries_max: deliveries.max(1), ..self }
    }

    /// How long a letter that failed waits until it is sent again: `first` after the first failure, then twice as long
    /// each time, and never longer than `longest`. Default 1 s and 60 s.
    pub fn retry(self, first: Duration, longest: Duration) -> Self {
        Self { retry_first: first, retry_longest: longest, ..self }
    }

    /// How long dead letters are kept. Default 30 days.
    pub fn dead_letters_kept(self, time: Duration) -> Self {
        Self { dead_letters_kept: time, ..self }
    }

    /// How long a push waits for the store. After that nobody knows whether it is stored
    /// ([`AppendError::Unknown`](crate::store::AppendError::Unknown)). Default 10 s.
    pub fn store_wait(self, wait: Duration) -> Self {
        Self { store_wait: wait, ..self }
    }

    fn tries(&self) -> Tries {
        Tries { most: self.deliveries_max, first: self.retry_first, longest: self.retry_longest }
    }
}

/// The mailboxes of all users, as one server has them. See the module.
pub(crate) struct Mailboxes {
    store: Arc<dyn Store>,
    options: MailboxOptions,
    registry: Weak<Registry>,
    runtimes: Arc<Runtimes>,
    outgoing: Mutex<Outgoing>,
    readers: Mutex<HashMap<SessionId, Arc<Reader>>>,
    unsure: Unsure,
    /// The names that clients gave their devices, of those that gave one.
    devices: Mutex<HashMap<SessionId, Arc<str>>>,
    naming: [tokio::sync::Mutex<()>; NAMING_AT_ONCE],
    told: Told,
}

#[derive(Default)]
struct Told {
    down: Calm,
    full: Calm,
    died: Calm,
    devices: Calm,
}

/// What waits for the store.
#[derive(Default)]
struct Outgoing {
    /// Each has a task, which appends what is there in order.
    lanes: HashMap<Arc<str>, VecDeque<Posted>>,
    count: usize,
    bytes: usize,
}

/// One push to one user.
struct Posted {
    entry: NewEntry,
    posting: Arc<Posting>,
}

/// One push to all its users.
struct Posting {
    receipt: Receipt,
    state: Mutex<PostingState>,
}

struct PostingState {
    left: usize,
    kept: Vec<Kept>,
    failed: Vec<(Log, AppendError)>,
    storing: Option<Storing>,
}

impl Posting {
    /// One of its users is done.
    fn note(&self, user: &str, outcome: Result<Stored, AppendError>) {
        let log = Log::Mailbox(user.to_owned());
        let mut state = self.state.lock();
        match outcome {
            Ok(stored) => state.kept.push(Kept::new(log, stored)),
            Err(why) => state.failed.push((log, why)),
        }
        state.left -= 1;
        if state.left != 0 {
            return;
        }
        let (kept, failed) = (std::mem::take(&mut state.kept), std::mem::take(&mut state.failed));
        let storing = state.storing.take();
        drop(state);
        if let Some(storing) = storing {
            storing.done(if failed.is_empty() { Ok(kept) } else { Err(StoreError::new(kept, failed)) });
        }
    }
}

/// Where a registry has its mailboxes, if it has any.
pub(super) type Post = OnceLock<Arc<Mailboxes>>;

impl Mailboxes {
    pub(crate) fn new(store: Arc<dyn Store>, options: MailboxOptions, registry: &Arc<Registry>) -> Arc<Self> {
        Arc::new(Self {
            store,
            options,
            registry: Arc::downgrade(registry),
            runtimes: Arc::clone(&registry.runtimes),
            outgoing: Mutex::default(),
            readers: Mutex::default(),
            unsure: Unsure::default(),
            devices: Mutex::default(),
            naming: std::array::from_fn(|_| tokio::sync::Mutex::default()),
            told: Told::default(),
        })
    }

    /// Posts a push to these users: it is appended to the mailbox of each, and then delivered. The receipt says what becomes
    /// of it.
    pub(super) fn post(
        self: &Arc<Self>,
        users: &[String],
        push: &Push,
        ttl: Duration,
        receipt: &Receipt,
    ) -> Result<(), PushError> {
        if ttl.is_zero() || self.options.ttl_max < ttl {
            return Err(NotDurable::TimeToLive(self.options.ttl_max).into());
        }
        if users.iter().any(|user| user.is_empty() || super::USER_BYTES_MAX < user.len()) {
            return Err(NotDurable::User.into());
        }
        let runtime = self.runtimes.near().or_else(|| self.runtimes.any()).ok_or(NotDurable::NoRuntime)?;
        let letter = Letter::of(push);
        let mut seen = HashSet::new();
        let users: Vec<Arc<str>> =
            users.iter().filter(|user| seen.insert(*user)).map(|user| (&**user).into()).collect();

        // Before the lock: each user's is a letter of its own.
        let letters = users.iter().map(|_| letter.to_another().to_bytes()).collect::<Result<Vec<_>, _>>()?;

        let mut outgoing = self.outgoing.lock();
        let all: usize = letters.iter().map(Bytes::len).sum();
        if WAITING_MAX < outgoing.count + users.len() || WAITING_BYTES_MAX < outgoing.bytes.saturating_add(all) {
            let (frames, bytes) = (outgoing.count, outgoing.bytes);
            return Err(PushError::Full { frames, bytes, setting: None });
        }
        let logs = users.iter().map(|user| Log::Mailbox(user.to_string())).collect();
        let storing = receipt.storing(logs);
        if users.is_empty() {
            drop(outgoing);
            storing.done(Ok(Vec::new()));
            return Ok(());
        }

        (outgoing.count, outgoing.bytes) = (outgoing.count + users.len(), outgoing.bytes + all);
        let state = PostingState { left: users.len(), kept: Vec::new(), failed: Vec::new(), storing: Some(storing) };
        let posting = Arc::new(Posting { receipt: receipt.clone(), state: Mutex::new(state) });
        let mut new = Vec::new();
        for (user, bytes) in users.into_iter().zip(letters) {
            let mut entry = NewEntry::new(bytes).with_time_to_live(ttl);
            entry.key = push.key.as_ref().map(|(key, _)| key.to_string());
            let posted = Posted { entry, posting: Arc::clone(&posting) };
            match outgoing.lanes.get_mut(&user) {
                Some(lane) => lane.push_back(posted),
                None => {
                    outgoing.lanes.insert(Arc::clone(&user), VecDeque::from([posted]));
                    new.push(user);
                }
            }
        }
        drop(outgoing);
        for user in new {
            // Made before its task: a runtime that ends may drop that before it has run.
            let lane = Lane { mail: Arc::clone(self), user, taken: (0, 0), is_closed: false };
            runtime.spawn(lane.append_in_order());
        }
        Ok(())
    }

    /// A letter is in the mailbox: the sessions of its user that are here are its targets, as far as this server knows.
    fn deliver(self: &Arc<Self>, user: &str, stored: &Stored, receipt: &Receipt) {
        for session in self.sessions_of(user) {
            let ticket = receipt.ticket(session.id());
            self.wake(&session, Some(stored.place), Some((*stored, ticket)));
        }
    }

    fn sessions_of(&self, user: &str) -> Vec<Session> {
        let Some(registry) = self.registry.upgrade() else { return Vec::new() };
        let mut sessions = registry.users.sessions_of(user);
        sessions.retain(Session::is_resumable);
        sessions
    }

    /// Something was appended to the mailbox of this user, by whomever.
    pub(crate) fn ring(self: &Arc<Self>, user: &str, place: Option<Place>) {
        self.sessions_of(user).iter().for_each(|session| self.wake(session, place, None));
    }

    /// This session looks into its mailbox. A ticket is told what becomes of the letter there.
    pub(super) fn wake(
        self: &Arc<Self>,
        session: &Session,
        place: Option<Place>,
        ticket: Option<(Stored, super::receipt::Ticket)>,
    ) {
        let is_new;
        let (reader, over) = {
            let mut readers = self.readers.lock();
            let reader = readers.entry(session.id());
            is_new = matches!(reader, std::collections::hash_map::Entry::Vacant(_));
            let reader = Arc::clone(reader.or_default());
            // Under the lock: a reader that is about to end sees it.
            let over = reader.ring(place, ticket);
            (reader, over)
        };
        // Nobody is told anything under a lock.
        if let Some((mut ticket, stage)) = over {
            ticket.advance(stage);
        }
        if !is_new {
            return;
        }
        let runtime = self.runtimes.near().or_else(|| self.runtimes.any());
        let registered = Registered { mail: Arc::clone(self), session: session.clone(), reader };
        match runtime {
            Some(runtime) => _ = runtime.spawn(reader::run(registered)),
            None => drop(registered),
        }
    }

    /// All sessions look into their mailboxes: what was appended meanwhile may not have rung.
    #[cfg(feature = "cluster")]
    pub(crate) async fn wake_all(self: Arc<Self>) {
        let Some(registry) = self.registry.upgrade() else { return };
        for part in 0.. {
            let Some(sessions) = registry.part(part) else { return };
            for some in sessions.chunks(LOOK_AT_ONCE) {
                let some = some.iter().filter(|session| session.is_resumable() && session.user().is_some());
                let woken: Vec<SessionId> =
                    some.inspect(|session| self.wake(session, None, None)).map(Session::id).collect();
                self.looked(&woken).await;
            }
        }
    }

    /// Waits until these have asked the store, or it does not answer them.
    #[cfg(feature = "cluster")]
    async fn looked(&self, sessions: &[SessionId]) {
        let until = crate::clock::after(LOOK_WAIT);
        let looks = |id: &SessionId| self.readers.lock().get(id).is_some_and(|reader| !reader.has_looked());
        while sessions.iter().any(looks) && tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The client of this session is there, and belongs to a user: it gets what is in its mailbox.
    pub(super) fn arrived(self: &Arc<Self>, session: &Session) {
        if session.is_resumable() && session.user().is_some() {
            self.wake(session, None, None);
        }
    }

    /// How its client calls its device, as it says in its Hello.
    pub(crate) fn name_device(&self, session: SessionId, name: Option<&str>) {
        let name = name.filter(|name| !name.is_empty() && name.len() <= READER_BYTES_MAX);
        let mut devices = self.devices.lock();
        match name {
            Some(name) => _ = devices.insert(session, name.into()),
            None => _ = devices.remove(&session),
        }
    }

    /// The name of its device.
    pub(super) fn device_of(&self, session: SessionId) -> Arc<str> {
        self.devices.lock().get(&session).cloned().unwrap_or_else(|| DEFAULT_DEVICE.into())
    }

    /// One device of this user is given a cursor at a time: so many there are, none comes between. Of other nodes it is not
    /// known; the bound is theirs together, except for those that come there meanwhile.
    async fn turn_to_name(&self, user: &str) -> tokio::sync::MutexGuard<'_, ()> {
        let place = BuildHasherDefault::<DefaultHasher>::default().hash_one(user) as usize % NAMING_AT_ONCE;
        self.naming[place].lock().await
    }

    /// This session has ended.
    pub(crate) fn forget(&self, session: SessionId) {
        self.devices.lock().remove(&session);
    }
}

/// What the task of a lane has taken. If its runtime ends, what waits is given up, and the next push begins anew.
struct Lane {
    mail: Arc<Mailboxes>,
    user: Arc<str>,
    taken: (usize, usize),
    is_closed: bool,
}

impl Lane {
    /// Appends what is pushed to one user, in the order of the pushes, until nothing waits.
    async fn append_in_order(mut self) {
        let (mail, user) = (Arc::clone(&self.mail), Arc::clone(&self.user));
        while let Some(posted) = self.take() {
            let (entries, postings): (Vec<_>, Vec<_>) =
                posted.into_iter().map(|posted| (posted.entry, posted.posting)).unzip();
            let count = entries.len();
            let appending = mail.store.append_all(Log::Mailbox(user.to_string()), entries);
            let outcomes = match timeout(mail.options.store_wait, appending).await {
                Ok(outcomes) => outcomes,
                Err(_) => vec![Err(AppendError::Unknown); count],
            };
            self.give_back();
            // A store that answers less than it was asked leaves the others unknown.
            let outcomes = outcomes.into_iter().chain(std::iter::repeat(Err(AppendError::Unknown)));
            let mut is_unsure = false;
            for (posting, outcome) in postings.into_iter().zip(outcomes) {
                is_unsure |= outcome == Err(AppendError::Unknown);
                match &outcome {
                    Ok(stored) => mail.deliver(&user, stored, &posting.receipt),
                    Err(AppendError::Down | AppendError::Unknown) => {
                        tell!(mail.told.down, warn, "the store of durable pushes does not answer");
                    }
                    Err(_) => {}
                }
                posting.note(&user, outcome);
            }
            if is_unsure {
                mail.look_for(&user);
            }
        }
    }

    /// Some of what waits. `None`: nothing, and the lane is closed.
    fn take(&mut self) -> Option<Vec<Posted>> {
        let mut outgoing = self.mail.outgoing.lock();
        let lane = outgoing.lanes.get_mut(&self.user)?;
        let mut posted = Vec::new();
        while posted.len() < TOGETHER_MAX && self.taken.1 < TOGETHER_BYTES {
            let Some(next) = lane.pop_front() else { break };
            self.taken = (self.taken.0 + 1, self.taken.1 + next.entry.bytes.len());
            posted.push(next);
        }
        if posted.is_empty() {
            outgoing.lanes.remove(&self.user);
            self.is_closed = true;
            return None;
        }
        Some(posted)
    }

    fn give_back(&mut self) {
        let (count, bytes) = std::mem::take(&mut self.taken);
        let mut outgoing = self.mail.outgoing.lock();
        (outgoing.count, outgoing.bytes) = (outgoing.count - count, outgoing.bytes - bytes);
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if self.is_closed {
            return;
        }
        self.give_back();
        let mut outgoing = self.mail.outgoing.lock();
        let left = outgoing.lanes.remove(&self.user).unwrap_or_default();
        let bytes: usize = left.iter().map(|posted| posted.entry.bytes.len()).sum();
        (outgoing.count, outgoing.bytes) = (outgoing.count - left.len(), outgoing.bytes - bytes);
        drop(outgoing);
        // Their receipts are told, not under the lock.
        drop(left);
    }
}
