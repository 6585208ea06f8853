//! What a cluster needs of the system between its nodes: mail, a register, logs.
//!
//! | part | what it is |
//! |---|---|
//! | mail | one node asks another one, and is answered; "there is no such node" is an answer too |
//! | register | leases of nodes, and records of sessions that change only by compare-and-set |
//! | [`Store`] | logs that keep what is appended, and cursors into them |
//! | followers | what is published to a topic or appended to its log, at every node that asked for it |
//!
//! No method names a product: everything above this seam runs over any [`Engine`] that passes
//! [`testing::engine`](crate::testing::engine), which the feature `testing` has.
//!
//! An engine is trusted: anyone who may write to it may push to every client of the cluster.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::watch;

use crate::session::SessionId;
pub use crate::{reply::BoxFuture, session::NodeId};

/// Orders the changes of one key of the register. Revisions of different keys are not compared.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Revision(pub u64);

/// Whether a part of the engine works, as far as this process knows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EngineState {
    /// It works. The epoch is another one after each gap, in which something may have been missed.
    Up {
        /// Of this stretch without a gap.
        epoch: u64,
    },
    /// It does not work.
    Down,
}

impl EngineState {
    /// True if it works.
    pub fn is_up(self) -> bool {
        matches!(self, Self::Up { .. })
    }
}

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

/// What an engine takes.
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

/// Why an ask was not answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// Nobody listens under this name at the moment: the node has not got it. That is no death: a living node whose way
    /// to the engine breaks is not there for some milliseconds.
    #[error("no such node listens")]
    NoNode,
    /// Mail does not work. The node may have got it.
    #[error("there is no mail between the nodes")]
    Down,
    /// The node did not answer in time. It may have got it.
    #[error("the node did not answer in time")]
    TimedOut,
    /// It has more bytes than [`EngineLimits::message_bytes_max`]. The node has not got it.
    #[error("the message is larger than the engine takes")]
    TooLarge,
}

/// Why a lease was not renewed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RenewError {
    /// It ended, or the node was buried: others may have claimed its sessions. It is not to be renewed again.
    #[error("the lease has ended")]
    Lapsed,
    /// The register does not work, or it cannot be told whether the lease was renewed. It is to be tried again.
    #[error("the register does not answer")]
    Down,
}

/// Why a node was not buried.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BuryError {
    /// Its lease was renewed since that revision, or lives.
    #[error("the node lives")]
    Alive,
    /// The register does not work.
    #[error("the register does not answer")]
    Down,
}

/// Why a record was not changed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// It has another revision. What it is now may come along; it is newer than the one that was named.
    #[error("somebody else was first")]
    Lost(Option<(Bytes, Revision)>),
    /// It cannot be told whether it was changed: a nonce in the record tells later.
    #[error("it is not known whether the record was changed")]
    Unknown,
    /// The register does not work. Nothing was changed.
    #[error("the register does not answer")]
    Down,
    /// It has more bytes than [`EngineLimits::message_bytes_max`].
    #[error("the record is larger than the engine takes")]
    TooLarge,
}

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

/// What takes a node's mail.
pub trait Inbox: Send + Sync + 'static {
    /// Takes one message and returns the answer; `None` answers nothing, and the asker's time runs out. The engine polls
    /// the future in a task, and may drop it when the asker's time is over.
    fn take(&self, bytes: Bytes) -> BoxFuture<Option<Bytes>>;
}

/// The lease of a node: as long as it renews it, the others count it as a member. Dropped, it runs out.
pub trait Lease: Send + Sync + 'static {
    /// Renews it for another `ttl`, with this card, by compare-and-set on its own last revision. Success proves that it
    /// has never ended. One at a time.
    ///
    /// # Errors
    /// [`RenewError`].
    fn renew(&self, card: Bytes) -> BoxFuture<Result<(), RenewError>>;

    /// Gives it back: the node leaves, and the others know at once. Best effort, as it would end by itself.
    fn release(&self) -> BoxFuture<()>;
}

/// One node, as the register shows it.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Member {
    /// What the node says of itself.
    pub card: Bytes,
    /// Of its lease.
    pub revision: Revision,
}

impl Member {
    /// A member.
    pub fn new(card: Bytes, revision: Revision) -> Self {
        Self { card, revision }
    }
}

/// The nodes whose leases live.
pub type Members = BTreeMap<NodeId, Member>;

/// Which log.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Log {
    /// The history of a topic: the oldest entry makes way for a new one.
    History(String),
    /// What a user is to get, also later: a full one refuses.
    Mailbox(String),
    /// The parts of a session that waits for a node.
    Parked(SessionId),
}

/// Where an entry stands. Sequences of one log grow, not by one, and begin anew only in another epoch.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Place {
    /// Of the store: another one if it lost its data.
    pub epoch: u64,
    /// Within the epoch; from 1.
    pub sequence: u64,
}

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
    /// The last place of the log: there is more if the last entry here is before it. `None`: the log is empty.
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
    /// Appends to a log, which begins with its first entry.
    ///
    /// # Errors
    /// [`AppendError`].
    fn append(&self, to: Log, entry: NewEntry) -> BoxFuture<Result<Stored, AppendError>>;

    /// Up to `max` entries after this sequence, oldest first; 0 begins at the oldest that is kept. As fresh as the store
    /// can be, and yet a replica may be behind: only a place that is there is certain.
    ///
    /// # Errors
    /// [`EngineDown`].
    fn read(&self, from: Log, after: u64, max: usize) -> BoxFuture<Result<Page, EngineDown>>;

    /// How far this reader, such as `ann.phone`, has come. `None`: it has not begun, or its time is over.
    ///
    /// # Errors
    /// [`EngineDown`].
    fn cursor(&self, of: String) -> BoxFuture<Result<Option<Place>, EngineDown>>;

    /// Moves a cursor forward, and never back within its epoch, and keeps it this long. Returns where it stands then.
    ///
    /// # Errors
    /// [`EngineDown`]: it may have moved.
    fn advance(&self, of: String, to: Place, keep: Duration) -> BoxFuture<Result<Place, EngineDown>>;
}

/// What is published to a topic.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Followed {
    /// Of this topic.
    pub topic: String,
    /// What was published.
    pub bytes: Bytes,
    /// If a log keeps it: where, and the last sequence of the log before. A hole in this chain is to be read.
    pub stored: Option<(Place, u64)>,
}

impl Followed {
    /// Something that was published.
    pub fn new(topic: impl Into<String>, bytes: Bytes, stored: Option<(Place, u64)>) -> Self {
        Self { topic: topic.into(), bytes, stored }
    }
}

/// Takes what is published.
pub trait Follower: Send + Sync + 'static {
    /// In the order of the engine. Must not block.
    fn message(&self, message: Followed);
}

/// Something is followed for as long as this is kept.
pub struct Following(Option<Box<dyn FnOnce() + Send + Sync>>);

impl Following {
    /// Runs this when it is dropped.
    pub fn until(end: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(end)))
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        if let Some(end) = self.0.take() {
            end();
        }
    }
}

impl fmt::Debug for Following {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Following")
    }
}

/// The system between the nodes, as one of them uses it. Each node has its own.
///
/// Every future ends: at the latest some seconds after the time that it was given, also if the engine is gone. No method
/// blocks the thread. A future that is dropped may have done its work.
pub trait Engine: Store {
    /// Whether mail works. The two parts fail by themselves: a register that elects a leader stands still for seconds
    /// while mail goes on.
    fn mail_state(&self) -> watch::Receiver<EngineState>;

    /// Whether the register and the store work.
    fn register_state(&self) -> watch::Receiver<EngineState>;

    /// What it takes.
    fn limits(&self) -> EngineLimits;

    /// Takes the mail of this node from here on. One inbox for each engine.
    ///
    /// # Errors
    /// [`EngineDown`].
    fn listen(&self, me: NodeId, inbox: Arc<dyn Inbox>) -> BoxFuture<Result<(), EngineDown>>;

    /// Takes no mail any more under that name.
    fn deafen(&self, me: NodeId) -> BoxFuture<()>;

    /// Asks another node, and waits for the answer this long.
    ///
    /// # Errors
    /// [`AskError`].
    fn ask(&self, to: NodeId, bytes: Bytes, within: Duration) -> BoxFuture<Result<Bytes, AskError>>;

    /// Takes a lease, for a life that never had one.
    ///
    /// # Errors
    /// [`EngineDown`].
    fn lease(&self, me: NodeId, card: Bytes, ttl: Duration) -> BoxFuture<Result<Arc<dyn Lease>, EngineDown>>;

    /// Who has a lease: watched, and compared with the register each second. While the register is down it may be old.
    fn members(&self) -> watch::Receiver<Arc<Members>>;

    /// Puts a gravestone on the lease of a node that ended, which had this revision last: after that it cannot be renewed.
    ///
    /// # Errors
    /// [`BuryError`].
    fn bury(&self, node: NodeId, was: Revision) -> BoxFuture<Result<(), BuryError>>;

    /// The record of a session. `fresh`: as the leader of the register has it, and even that may be old. Only
    /// [`Self::claim`] is certain.
    ///
    /// # Errors
    /// [`EngineDown`].
    fn session(&self, id: SessionId, fresh: bool) -> BoxFuture<Result<Option<(Bytes, Revision)>, EngineDown>>;

    /// Writes the record of a session, if it has this revision; `None`: if there is none. It ends after `ttl`, unless it
    /// is written again.
    ///
    /// # Errors
    /// [`ClaimError`].
    fn claim(
        &self,
        id: SessionId,
        was: Option<Revision>,
        record: Bytes,
        ttl: Duration,
    ) -> BoxFuture<Result<Revision, ClaimError>>;

    /// Removes the record of a session, if it has this revision.
    ///
    /// # Errors
    /// [`ClaimError`].
    fn forget(&self, id: SessionId, was: Revision) -> BoxFuture<Result<(), ClaimError>>;

    /// Publishes to a topic that keeps nothing: those who follow it now get it, at most once.
    ///
    /// # Errors
    /// [`EngineDown`]: some may have got it.
    fn publish(&self, topic: String, bytes: Bytes) -> BoxFuture<Result<(), EngineDown>>;

    /// Follows what is published to the topics of this pattern, or appended to their histories: `*` is one segment, a
    /// last `>` the rest. What comes while mail is down is missed, and the next epoch of [`Self::mail_state`] says so.
    ///
    /// # Errors
    /// [`EngineDown`].
    fn follow(&self, pattern: String, follower: Arc<dyn Follower>) -> BoxFuture<Result<Following, EngineDown>>;
}
