//! Logs that keep what is appended, and cursors into them: what durable pushes need, with or without a cluster.
//!
//! Anything that implements [`Store`] will do: an embedded database for a single node, such as `bothways-redb`, or the
//! engine of a cluster, which has it as a part. What implements it runs
//! [`testing::store::store_checks`](crate::testing::store::store_checks), which the feature `testing` has.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

pub use crate::reply::BoxFuture;
use crate::session::SessionId;

/// Longest name of a reader, in bytes.
pub const READER_BYTES_MAX: usize = 64;

/// A page of a log ends with the entry that reaches so many bytes.
pub const PAGE_BYTES: usize = 1 << 20;

/// For how long [`Store::append_all`] begins to append more: what is left then is [`AppendError::Down`], as nothing was sent
/// of it. The caller waits 10 s for all of them, and after that knows of none.
pub const TOGETHER_WITHIN: Duration = Duration::from_secs(5);

/// How well something is stored once the engine has said so.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Level {
    /// In the memory of one process.
    Memory,
    /// In most replicas, which may not have written it to their disks yet.
    Replicated,
    /// On disk.
    Synced,
}

/// What an engine, or a store, takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct EngineLimits {
    /// Most bytes of one ask, answer, record, card or entry. At least 64 KiB.
    pub message_bytes_max: usize,
    /// How well it stores.
    pub level: Level,
    /// Most entries of one history. The oldest makes way for a new one.
    pub history_entries_max: usize,
    /// Most entries of one mailbox. A full one refuses.
    pub mailbox_entries_max: usize,
}

impl EngineLimits {
    /// One MiB a message, and 1,000 entries a log.
    pub fn new(level: Level) -> Self {
        Self { message_bytes_max: 1 << 20, level, history_entries_max: 1000, mailbox_entries_max: 1000 }
    }

    /// Most bytes of one message.
    pub fn message_bytes_max(self, bytes: usize) -> Self {
        Self { message_bytes_max: bytes.max(64 << 10), ..self }
    }

    /// Most entries of one history.
    pub fn history_entries_max(self, entries: usize) -> Self {
        Self { history_entries_max: entries, ..self }
    }

    /// Most entries of one mailbox.
    pub fn mailbox_entries_max(self, entries: usize) -> Self {
        Self { mailbox_entries_max: entries, ..self }
    }
}

/// This part of the engine does not work now. Nothing is known of what was asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the engine between the nodes does not answer")]
pub struct EngineDown;

/// Why an entry was not appended.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The mailbox, or the room of the whole store, is full. The key is free as before.
    #[error("it is full")]
    Full,
    /// It has more bytes than [`EngineLimits::message_bytes_max`].
    #[error("the entry is larger than the engine takes")]
    TooLarge,
    /// It cannot be told whether it was appended. With a key it can be repeated, and is stored once.
    #[error("it is not known whether the entry was stored")]
    Unknown,
    /// The store does not work. Nothing was appended.
    #[error("the store does not answer")]
    Down,
}

/// Which log.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Log {
    /// The history of a topic: the oldest entry makes way for a new one.
    History(String),
    /// What a user is to get, also later: a full one refuses.
    Mailbox(String),
    /// What a user could not handle, for an operator to look at: the oldest makes way.
    Dead(String),
    /// The parts of a session that waits for a node.
    Parked(SessionId),
    /// Which sessions of a user wait, or have waited: it has cursors that are named by them, and no entries.
    ParkedOf(String),
}

impl Log {
    /// Whose it is: the topic, the user, or the session.
    pub fn name(&self) -> String {
        match self {
            Self::History(name) | Self::Mailbox(name) | Self::Dead(name) | Self::ParkedOf(name) => name.clone(),
            Self::Parked(session) => session.to_string(),
        }
    }
}

impl std::fmt::Display for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::History(topic) => write!(f, "the history of {topic:?}"),
            Self::Mailbox(user) => write!(f, "the mailbox of {user:?}"),
            Self::Dead(user) => write!(f, "the dead letters of {user:?}"),
            Self::Parked(session) => write!(f, "the place of the session {session}"),
            Self::ParkedOf(user) => write!(f, "the sessions of {user:?} that wait"),
        }
    }
}

/// Where an entry stands. Sequences of one log grow, not by one, and begin anew only in another epoch.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Place {
    /// Of the store: another one if it lost its data.
    pub epoch: u64,
    /// Within the epoch; from 1.
    pub sequence: u64,
}

/// As `epoch-sequence`, both in hexadecimal digits.
impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}-{:x}", self.epoch, self.sequence)
    }
}

impl std::str::FromStr for Place {
    type Err = InvalidPlace;

    fn from_str(text: &str) -> Result<Self, InvalidPlace> {
        let number = |text| u64::from_str_radix(text, 16).map_err(|_| InvalidPlace);
        let (epoch, sequence) = text.split_once('-').ok_or(InvalidPlace)?;
        Ok(Self { epoch: number(epoch)?, sequence: number(sequence)? })
    }
}

/// In its text form.
impl serde::Serialize for Place {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Place {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A text that names no place.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a place is two numbers in hexadecimal digits with `-` between, such as 0123456789abcdef-1f")]
pub struct InvalidPlace;

/// An entry that is to be appended.
#[derive(Clone, Debug)]
#[must_use]
pub struct NewEntry {
    /// Of several with the same key in one log within two minutes the first is stored. Keys of different logs have
    /// nothing to do with each other.
    pub key: Option<String>,
    /// When it is forgotten. `None`: when others need its place.
    pub time_to_live: Option<Duration>,
    /// What is kept.
    pub bytes: Bytes,
}

impl NewEntry {
    /// Without a key, and without an end.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self { key: None, time_to_live: None, bytes: bytes.into() }
    }

    /// See [`Self::key`].
    pub fn with_key(self, key: impl Into<String>) -> Self {
        Self { key: Some(key.into()), ..self }
    }

    /// See [`Self::time_to_live`].
    pub fn with_time_to_live(self, ttl: Duration) -> Self {
        Self { time_to_live: Some(ttl), ..self }
    }
}

/// An entry was stored.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Stored {
    /// Where.
    pub place: Place,
    /// How well.
    pub level: Level,
    /// One of the same key was there, and this is its place.
    pub repeated: bool,
}

impl Stored {
    /// An entry that was stored.
    pub fn new(place: Place, level: Level, repeated: bool) -> Self {
        Self { place, level, repeated }
    }
}

/// Some entries of a log, oldest first.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Page {
    /// Their places, and what they are.
    pub entries: Vec<(Place, Bytes)>,
    /// The last place of the log, as far as the store knows: if the last entry here is before it, there may be more. It may
    /// stay when the last entries are over or removed, so a page without entries is the end. `None`: the log is empty.
    pub last: Option<Place>,
}

impl Page {
    /// A page.
    pub fn new(entries: Vec<(Place, Bytes)>, last: Option<Place>) -> Self {
        Self { entries, last }
    }
}

/// Logs and cursors: all that durable pushes need, with or without a cluster. A future that is dropped may have done
/// its work.
pub trait Store: Send + Sync + 'static {
    /// Appends to a log, which begins with its first entry. Nothing is stored by a future that was never polled.
    ///
    /// # Errors
    /// [`AppendError`].
    fn append(&self, to: Log, entry: NewEntry) -> BoxFuture<Result<Stored, AppendError>>;

    /// As [`Self::append`] of each: what is stored stands in this order. One that is full or too large does not keep those
    /// behind it from being stored.
    ///
    /// Of a history nothing is stored behind one that is [`Down`](AppendError::Down) or [`Unknown`](AppendError::Unknown), as
    /// far as the store can: that one is appended again, and is to stand before it. Where something was all the same, it is
    /// not appended again.
    ///
    /// Where one goes after another, none is begun after [`TOGETHER_WITHIN`].
    fn append_all(&self, to: Log, entries: Vec<NewEntry>) -> BoxFuture<Vec<Result<Stored, AppendError>>> {
        let appends: Vec<_> = entries.into_iter().map(|entry| self.append(to.clone(), entry)).collect();
        Box::pin(async move {
            let (mut stored, mut is_open) = (Vec::with_capacity(appends.len()), false);
            let began = Instant::now();
            for append in appends {
                let is_over = is_open || TOGETHER_WITHIN <= began.elapsed();
                let outcome = if is_over { Err(AppendError::Down) } else { append.await };
                is_open |= matches!(outcome, Err(AppendError::Down | AppendError::Unknown));
                stored.push(outcome);
            }
            stored
        })
    }

    /// Up to `max` entries after this sequence, oldest first; 0 begins at the oldest that is kept. A page may end earlier,
    /// after about a MiB ([`PAGE_BYTES`]), and has one entry at least if there is one. As fresh as the store
    /// can be, and yet a replica may be behind: only a place that is there is certain.
    ///
    /// # Errors
    /// [`EngineDown`].
    fn read(&self, from: Log, after: u64, max: usize) -> BoxFuture<Result<Page, EngineDown>>;

    /// How far this reader of a log has come. `None`: it has not begun, or its time is over.
    ///
    /// # Errors
    /// [`EngineDown`].
    fn cursor(&self, of: Log, reader: String) -> BoxFuture<Result<Option<Place>, EngineDown>>;

    /// How far all readers of a log have come, in any order: all of them, or an error.
    ///
    /// # Errors
    /// [`EngineDown`]: also if there are more than can be read.
    fn cursors(&self, of: Log) -> BoxFuture<Result<Vec<(String, Place)>, EngineDown>>;

    /// Moves a cursor forward, and never back within its epoch, and keeps it this long. Returns where it stands then. A place
    /// of epoch 0, which no store has, only makes a cursor where there is none, and moves no other one.
    /// The names of readers have at most [`READER_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// [`EngineDown`]: it may have moved.
    fn advance(&self, of: Log, reader: String, to: Place, keep: Duration) -> BoxFuture<Result<Place, EngineDown>>;

    /// Forgets the entries up to this place, and with it; none if it is of another epoch. Their keys are known for as
    /// long as they would be, unless the store has to read again what it has: a broker that restarts knows only the keys
    /// of the entries that are there.
    ///
    /// # Errors
    /// [`EngineDown`]: some may be forgotten.
    fn trim(&self, log: Log, upto: Place) -> BoxFuture<Result<(), EngineDown>>;

    /// Forgets one entry. False: it is not there.
    ///
    /// # Errors
    /// [`EngineDown`]: it may be forgotten.
    fn remove(&self, from: Log, place: Place) -> BoxFuture<Result<bool, EngineDown>>;

    /// Up to `max` logs of the kind of `after` whose names come after that one's, in the order of their names, each with
    /// how many entries it has. Those without entries may be left out. For operators.
    ///
    /// # Errors
    /// [`EngineDown`].
    fn list(&self, after: Log, max: usize) -> BoxFuture<Result<Vec<(String, usize)>, EngineDown>>;
}

/// What is shared is the same store.
impl<S: Store + ?Sized> Store for std::sync::Arc<S> {
    fn append(&self, to: Log, entry: NewEntry) -> BoxFuture<Result<Stored, AppendError>> {
        (**self).append(to, entry)
    }

    fn append_all(&self, to: Log, entries: Vec<NewEntry>) -> BoxFuture<Vec<Result<Stored, AppendError>>> {
        (**self).append_all(to, entries)
    }

    fn read(&self, from: Log, after: u64, max: usize) -> BoxFuture<Result<Page, EngineDown>> {
        (**self).read(from, after, max)
    }

    fn cursor(&self, of: Log, reader: String) -> BoxFuture<Result<Option<Place>, EngineDown>> {
        (**self).cursor(of, reader)
    }

    fn cursors(&self, of: Log) -> BoxFuture<Result<Vec<(String, Place)>, EngineDown>> {
        (**self).cursors(of)
    }

    fn advance(&self, of: Log, reader: String, to: Place, keep: Duration) -> BoxFuture<Result<Place, EngineDown>> {
        (**self).advance(of, reader, to, keep)
    }

    fn trim(&self, log: Log, upto: Place) -> BoxFuture<Result<(), EngineDown>> {
        (**self).trim(log, upto)
    }

    fn remove(&self, from: Log, place: Place) -> BoxFuture<Result<bool, EngineDown>> {
        (**self).remove(from, place)
    }

    fn list(&self, after: Log, max: usize) -> BoxFuture<Result<Vec<(String, usize)>, EngineDown>> {
        (**self).list(after, max)
    }
}

/// An entry that is kept, and where. From [`Receipt::stored`](crate::Receipt::stored).
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Kept {
    /// In this log: the mailbox of a user, or the history of a topic.
    pub log: Log,
    /// Where in it.
    pub position: Place,
    /// How well.
    pub level: Level,
    /// One of the same idempotency key was there already, and this is its place.
    pub repeated: bool,
}

impl Kept {
    /// What was stored in this log.
    pub fn new(log: Log, stored: Stored) -> Self {
        Self { log, position: stored.place, level: stored.level, repeated: stored.repeated }
    }
}

/// A push was not stored everywhere that it should be, or nobody knows. Nothing was sent where it was not stored.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct StoreError {
    /// Where it was stored all the same.
    pub stored: Vec<Kept>,
    /// Where it was not, and why.
    pub failed: Vec<(Log, AppendError)>,
}

impl StoreError {
    /// Some of it failed.
    pub fn new(stored: Vec<Kept>, failed: Vec<(Log, AppendError)>) -> Self {
        Self { stored, failed }
    }

    /// True if it may be stored in one of the logs that failed: only with an idempotency key it can be repeated.
    pub fn is_unknown(&self) -> bool {
        self.failed.iter().any(|(_, why)| *why == AppendError::Unknown)
    }
}

impl std::fmt::Display for StoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &*self.failed {
            [] => f.write_str("it was not stored"),
            [(log, why)] => write!(f, "{log} has not stored it: {why}"),
            [(log, why), others @ ..] => {
                write!(f, "{log} has not stored it: {why}; and so have {} others not", others.len())
            }
        }
    }
}

impl std::error::Error for StoreError {}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// A store that appends slowly, and one after another.
    #[derive(Default)]
    struct Slow {
        appended: std::sync::Arc<AtomicU64>,
    }

    impl Store for Slow {
        fn append(&self, _: Log, _: NewEntry) -> BoxFuture<Result<Stored, AppendError>> {
            let appended = std::sync::Arc::clone(&self.appended);
            Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let sequence = appended.fetch_add(1, Ordering::Relaxed) + 1;
                Ok(Stored::new(Place { epoch: 1, sequence }, Level::Memory, false))
            })
        }

        fn read(&self, _: Log, _: u64, _: usize) -> BoxFuture<Result<Page, EngineDown>> {
            Box::pin(std::future::ready(Err(EngineDown)))
        }

        fn cursor(&self, _: Log, _: String) -> BoxFuture<Result<Option<Place>, EngineDown>> {
            Box::pin(std::future::ready(Err(EngineDown)))
        }

        fn cursors(&self, _: Log) -> BoxFuture<Result<Vec<(String, Place)>, EngineDown>> {
            Box::pin(std::future::ready(Err(EngineDown)))
        }

        fn advance(&self, _: Log, _: String, _: Place, _: Duration) -> BoxFuture<Result<Place, EngineDown>> {
            Box::pin(std::future::ready(Err(EngineDown)))
        }

        fn trim(&self, _: Log, _: Place) -> BoxFuture<Result<(), EngineDown>> {
            Box::pin(std::future::ready(Err(EngineDown)))
        }

        fn remove(&self, _: Log, _: Place) -> BoxFuture<Result<bool, EngineDown>> {
            Box::pin(std::future::ready(Err(EngineDown)))
        }

        fn list(&self, _: Log, _: usize) -> BoxFuture<Result<Vec<(String, usize)>, EngineDown>> {
            Box::pin(std::future::ready(Err(EngineDown)))
        }
    }

    /// Many together at a slow store: what was stored in time is known to be, and of the rest nothing was begun.
    #[tokio::test(start_paused = true)]
    async fn a_slow_store_answers_for_what_it_has_stored() {
        let (store, began) = (Slow::default(), Instant::now());
        let entries = (0..256).map(|number: u32| NewEntry::new(number.to_string())).collect();
        let stored = store.append_all(Log::History("news".to_owned()), entries).await;
        assert!(began.elapsed() < TOGETHER_WITHIN + Duration::from_millis(200), "{:?}", began.elapsed());
        let count = stored.iter().take_while(|stored| stored.is_ok()).count();
        assert_eq!((count as u64, stored.len()), (store.appended.load(Ordering::Relaxed), 256));
        assert!((40..60).contains(&count), "{count}");
        assert!(stored[count..].iter().all(|stored| *stored == Err(AppendError::Down)), "{stored:?}");
    }
}
