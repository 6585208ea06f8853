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
pub use crate::{
    reply::BoxFuture,
    session::NodeId,
    store::{
        AppendError, EngineDown, EngineLimits, Level, Log, NewEntry, PAGE_BYTES, Page, Place, READER_BYTES_MAX, Store,
        Stored,
    },
};

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
    /// The register does not work, or could not say who was first. Nothing was changed.
    #[error("the register does not answer")]
    Down,
    /// It has more bytes than [`EngineLimits::message_bytes_max`].
    #[error("the record is larger than the engine takes")]
    TooLarge,
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
    /// In the order of its topic. Must not block.
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

    /// Puts a gravestone on the lease of a node that ended, which had this revision last, as far as is known: after that
    /// it cannot be renewed, and for a minute at least none can be taken under its name. A living lease refuses,
    /// whatever revision is named.
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

    /// Follows the mailboxes of all users: each entry that is appended to one rings, without its bytes, with its user as
    /// the topic, its place, and the last sequence of the mailbox before it. What comes while mail is down is missed, and
    /// the next epoch of [`Self::mail_state`] says so. Nor may a ring that is lost in any other way stay unnoticed: the
    /// engine begins an epoch for it, within half a minute.
    ///
    /// # Errors
    /// [`EngineDown`].
    fn follow_mailboxes(&self, follower: Arc<dyn Follower>) -> BoxFuture<Result<Following, EngineDown>>;
}
