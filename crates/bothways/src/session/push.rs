//! One push: what is sent, in which class, with which priority and for how long.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use bothways_proto::Metadata;
use bytes::Bytes;

use super::{
    explain,
    keys::{InvalidKey, KeyHash, Keyed},
    receipt::{DropReason, Failure, Receipt, Stage},
};
use crate::{
    caller::RawCall,
    codec::IntoBytes,
    error::{PushError, ReservedName},
};

/// The class of a push: what it promises.
///
/// ```
/// use bothways::{Class, Push};
///
/// let typing = Push::new("Chat", "Typing", "ann").class(Class::Fire);
/// let position = Push::new("Map", "Moved", "48.2,16.4").class(Class::Latest("car 7".to_owned()));
/// let message = Push::new("Chat", "Say", "hello"); // Tracked.
/// ```
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum Class {
    /// At most once, on the connection of now. When too many wait, the oldest is dropped.
    ///
    /// A topic with history keeps it like any other push. A client that lost its session gets from there what it missed; it
    /// may get once more what had arrived before an earlier message of the topic.
    Fire,
    /// The newest value of this key arrives if the session lives or resumes. Older values may be skipped while they wait
    /// for the connection, or for the application of a Bothways client. Keys that begin with `_bw.` belong to the
    /// framework. Published to a topic with history it is [`Self::Tracked`]: every value is kept and arrives.
    Latest(String),
    /// Sent at least once, and given to the application once and in order, as long as the session lives or resumes. The
    /// receipt says whether the application could handle it. A plain rpcx client is sent it as [`Self::Fire`].
    #[default]
    Tracked,
    /// Kept in the mailbox of each user it is for, until all of the user's devices have handled it, or for this long: also
    /// if none is there, or the server ends. Only for [`Target::user`](super::Target::user) and
    /// [`Target::users`](super::Target::users), by [`Server::push`](crate::Server::push), of a server that has a
    /// [store](crate::ServerBuilder::store).
    ///
    /// [`Receipt::stored`] says when it is kept; before that nothing is sent, and nothing is promised. A device gets what it
    /// has missed in order, and before what is new. A letter that its application failed to handle is sent again, a few times,
    /// and is then with the dead letters ([`Mail`](super::Mail)). `docs/durable.md` has all of it.
    Durable {
        /// After this the store has it no more. What a session has taken from there by then is still handed to its
        /// device, if that comes back to the session.
        ttl: Duration,
    },
}

impl Class {
    /// Its name in one word, without its key: a value for a label of a metric.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Fire => "fire",
            Self::Latest(_) => "latest",
            Self::Tracked => "tracked",
            Self::Durable { .. } => "durable",
        }
    }

    /// Its place among the classes that are counted.
    pub(super) fn index(&self) -> u8 {
        match self {
            Self::Fire => 0,
            Self::Latest(_) => 1,
            // It is tracked when a session has it.
            Self::Tracked | Self::Durable { .. } => 2,
        }
    }
}

/// Which of several waiting pushes is sent first. Within a priority they keep their order.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Priority {
    /// Before all others.
    High,
    /// The default.
    #[default]
    Normal,
    /// When nothing else waits.
    Bulk,
}

impl Priority {
    pub(super) const COUNT: usize = 3;

    pub(super) fn index(self) -> usize {
        self as usize
    }

    /// The one of this [index](Self::index).
    #[cfg(feature = "cluster")]
    pub(super) fn of_index(index: u8) -> Option<Self> {
        [Self::High, Self::Normal, Self::Bulk].get(usize::from(index)).copied()
    }
}

/// By whom, or by what, a push was made.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Origin {
    /// The application pushed it to sessions, or published it to a topic that keeps nothing.
    #[default]
    Push,
    /// A topic keeps it, under this stamp: if it is not sent now, it can be recovered from there.
    Topic(u64),
    /// The framework itself tells of something.
    Framework,
}

/// A push as frames, made once for any number of sessions. A clone is a counter.
#[derive(Clone, Debug)]
pub(super) struct Encoded {
    pub(super) frame: Bytes,
    pub(super) keyed: Option<Arc<Keyed>>,
}

impl Encoded {
    /// What a session that has it counts.
    pub(super) fn size(&self) -> usize {
        self.frame.len() + self.keyed.as_ref().map_or(0, |keyed| keyed.plain.len())
    }

    /// Goes as `self` to a client that turns out to speak sessions, and as `plain` to one that does not.
    pub(super) fn or_plain(&self, plain: Self) -> Self {
        let hash = self.keyed.as_ref().and_then(|keyed| keyed.hash);
        let plain = plain.keyed.map_or(plain.frame, |keyed| keyed.plain.clone());
        Self { frame: self.frame.clone(), keyed: Some(Arc::new(Keyed { hash, plain })) }
    }
}

/// What a caller is told that gets no receipt: an error if it is known already that no target gets the push.
/// `waiting`: how much waits for those who have no room.
pub(super) fn accepted(receipt: &Receipt, waiting: impl FnOnce() -> (usize, usize)) -> Result<(), PushError> {
    let outcomes = receipt.outcomes();
    let [full, ended, no_handler] =
        [Stage::Dropped(DropReason::Full), Stage::Dropped(DropReason::SessionEnded), Stage::Failed(Failure::NoHandler)]
            .map(|stage| outcomes.at(stage));
    if full + ended + no_handler < outcomes.targets() {
        return Ok(());
    }

    if 0 < full {
        let (frames, bytes) = waiting();
        return Err(PushError::Full { frames, bytes, setting: Some("sessions.log") });
    }
    match no_handler {
        0 => Err(PushError::NoClient("the session has ended".to_owned())),
        _ => Err(PushError::NotSupported),
    }
}

/// One push, for any number of targets.
///
/// ```
/// use std::time::Duration;
///
/// use bothways::{Class, Priority, Push, SerializeType};
///
/// let letter = Push::new("Mail", "New", "a letter").time_to_live(Duration::from_secs(3600));
/// let price = Push::of("Prices", "Changed", &101.5)?.class(Class::Latest("ACME".to_owned())).priority(Priority::High);
/// let order = Push::new("Orders", "Paid", "17").idempotency_key("order-17-paid")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Push {
    pub(super) service_path: String,
    pub(super) service_method: String,
    pub(super) metadata: Metadata,
    pub(super) payload: Bytes,
    pub(super) serialize: bothways_proto::SerializeType,
    pub(super) class: Class,
    pub(super) priority: Priority,
    pub(super) time_to_live: Option<Duration>,
    pub(super) key: Option<(Arc<str>, KeyHash)>,
    /// Its receipt notes the end of each target.
    pub(super) watches_each: bool,
    /// What event logs call it, made once for all sessions.
    pub(super) name: OnceLock<Arc<str>>,
}

impl Push {
    /// Its idempotency key.
    #[cfg(feature = "cluster")]
    pub(crate) fn key(&self) -> Option<&str> {
        self.key.as_ref().map(|(key, _)| &**key)
    }

    /// See [`Self::time_to_live`].
    #[cfg(feature = "cluster")]
    pub(crate) fn lives_for(&self) -> Option<Duration> {
        self.time_to_live
    }

    /// A tracked push of bytes, without a codec, as Go's `SendMessage` sends them. [`Self::of`] is for values.
    pub fn new(service_path: &str, service_method: &str, payload: impl IntoBytes) -> Self {
        Self {
            service_path: service_path.to_owned(),
            service_method: service_method.to_owned(),
            metadata: Metadata::new(),
            payload: payload.into_bytes(),
            serialize: bothways_proto::SerializeType::RAW,
            class: Class::Tracked,
            priority: Priority::Normal,
            time_to_live: None,
            key: None,
            watches_each: false,
            name: OnceLock::new(),
        }
    }

    /// A tracked push of a value, as MessagePack if its type can choose.
    ///
    /// # Errors
    /// The error of its codec.
    pub fn of<T: crate::codec::Encode + ?Sized>(
        service_path: &str,
        service_method: &str,
        value: &T,
    ) -> Result<Self, crate::codec::CodecError> {
        let serialize = T::serialize_type(bothways_proto::SerializeType::MSGPACK);
        Ok(Self { serialize, ..Self::new(service_path, service_method, value.encode(serialize)?) })
    }

    /// That it names nothing that only the framework may, and no caller's token.
    pub(super) fn check_reserved(&self) -> Result<(), ReservedName> {
        if let Class::Latest(key) = &self.class {
            ReservedName::check_key(key)?;
        }
        ReservedName::check_for_client(&self.service_path, &self.metadata)
    }

    /// This push as a copy that can be kept: its parts may belong to something larger, such as a read.
    pub(super) fn to_keep(&self) -> Self {
        let mut kept = Self { payload: Bytes::copy_from_slice(&self.payload), ..self.clone() };
        kept.metadata.compact();
        kept
    }

    /// What one that is kept holds.
    pub(super) fn size(&self) -> usize {
        let names = self.service_path.len() + self.service_method.len();
        names + self.metadata.as_block().len() + self.payload.len()
    }

    pub(super) fn name(&self) -> &Arc<str> {
        self.name.get_or_init(|| explain::name(&self.service_path, &self.service_method))
    }

    /// What a caller sends without wanting a reply: a tracked push.
    pub(super) fn from_raw(raw: RawCall<'_>) -> Self {
        let RawCall { service_path, service_method, serialize, payload, options } = raw;
        Self { serialize, ..Self::new(service_path, service_method, payload).metadata(options.metadata) }
    }

    /// The pairs beside the payload. A key that begins with `_bw.` belongs to the framework, and `__AUTH`,
    /// `__ServerTimeout` and `__rpcx_error__` belong to one request: with one of them the push fails with
    /// [`PushError::ReservedMetadata`](crate::PushError::ReservedMetadata). [`Metadata::without_reserved`] removes such
    /// pairs from what a peer sent.
    pub fn metadata(mut self, metadata: Metadata) -> Self {
        self.metadata = metadata;
        self
    }

    /// The pairs beside the payload, to change them.
    pub fn metadata_mut(&mut self) -> &mut Metadata {
        &mut self.metadata
    }

    /// The service that it names, such as `Chat`.
    pub fn service_path(&self) -> &str {
        &self.service_path
    }

    /// The method that it names, such as `say`.
    pub fn service_method(&self) -> &str {
        &self.service_method
    }

    /// The codec of the payload. Default raw, as Go's `SendMessage`; for [`Push::of`] that of the value.
    pub fn serialize_type(mut self, serialize: bothways_proto::SerializeType) -> Self {
        self.serialize = serialize;
        self
    }

    /// The class of the push. Default [`Class::Tracked`].
    pub fn class(mut self, class: Class) -> Self {
        self.class = class;
        self
    }

    /// Which of several waiting pushes is sent first. Default [`Priority::Normal`], which a push to a topic with history
    /// has in any case: its messages arrive in their order.
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// The push is not sent after this time, neither first nor again after a lost connection: its receipt then says
    /// [`Expired`](super::Stage::Expired). Default: none. A push that the client's library received in time reaches its
    /// application, however late. A client of another library that comes back without saying what it received gets
    /// again what was first sent in time.
    pub fn time_to_live(mut self, time: Duration) -> Self {
        self.time_to_live = Some(time);
        self
    }

    /// Its receipt notes how each target ends, for [`Receipt::each`]: which session has handled it, and which never
    /// will. That takes 24 bytes for each target as long as the receipt is kept. Default: the receipt only counts.
    pub fn watch_each(mut self) -> Self {
        self.watches_each = true;
        self
    }

    /// A key for this push, however often it is pushed: a session gets only one of several pushes with the same key. So
    /// a sender that does not know whether it has pushed, to a user or to a topic, may push again. Until the first is
    /// handled, the receipts of the others show its stage and end as it does. Once it is handled, they say
    /// [`Duplicate`](super::Stage::Duplicate). Up to 64 repetitions wait so in a session, and one more is dropped.
    ///
    /// A push that was dropped, expired or failed does not count: the next one with its key is sent. One that was
    /// [superseded](super::Stage::Superseded) does count, because a newer value has taken its place. A push such as
    /// [`Class::Fire`] ends when it is [written](super::Stage::PlainWritten), and the receipts of the others say so
    /// too. When its connection is lost, the next one is sent, and a Bothways client gives its application only one of
    /// them.
    ///
    /// A session remembers the last 1,024 keys
    /// ([`SessionOptions::idempotency_keys_max`](crate::SessionOptions::idempotency_keys_max)). A new session of the
    /// same client remembers none, but the client does: a Bothways client that listens remembers the last 1,024 keys
    /// that it received, over all its sessions, and gives no push to its application twice. A push that it drops for
    /// this reason counts as handled when the first one does. An [`XClient`](crate::XClient) remembers keys over all
    /// its servers, 1,024 for each: its application gets one push of several servers under one key. So a key must mean
    /// the same push at all servers of a service, and after each restart: a counter of one process will not do. Topics
    /// with history keep each push; a client that would get several from there gets one.
    ///
    /// # Errors
    /// [`InvalidKey`]: the key is empty, or has more than 64 bytes.
    pub fn idempotency_key(mut self, key: &str) -> Result<Self, InvalidKey> {
        self.key = Some((key.into(), KeyHash::of(key)?));
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::SessionId, *};

    /// An error says why nobody gets it; if one target may, there is none.
    #[test]
    fn a_caller_without_a_receipt_is_told_what_is_known() {
        let full = Stage::Dropped(DropReason::Full);
        let ended = Stage::Dropped(DropReason::SessionEnded);
        let unheard = Stage::Failed(Failure::NoHandler);
        let told = |stages: &[Stage]| {
            let receipt = Receipt::new();
            let tickets: Vec<_> = stages
                .iter()
                .map(|stage| {
                    let mut ticket = receipt.ticket(SessionId(1));
                    ticket.advance(*stage);
                    ticket
                })
                .collect();
            let told = match accepted(&receipt, || (3, 4)) {
                Ok(()) => "accepted",
                Err(PushError::Full { frames: 3, bytes: 4, .. }) => "full",
                Err(PushError::NotSupported) => "not supported",
                Err(PushError::NoClient(_)) => "no client",
                Err(other) => panic!("{other}"),
            };
            drop(tickets);
            told
        };
        for (stages, expected) in [
            (&[Stage::Written][..], "accepted"),
            (&[full, Stage::Queued], "accepted"),
            (&[full, ended, unheard], "full"),
            (&[ended, unheard], "not supported"),
            (&[ended, ended], "no client"),
            (&[], "no client"),
        ] {
            assert_eq!(told(stages), expected, "{stages:?}");
        }
    }

    /// What is kept counts with all that it is made of.
    #[test]
    fn a_push_counts_with_its_names_and_pairs() {
        let push = Push::new("News", "say", "hello");
        assert_eq!(push.size(), 4 + 3 + 5);
        let pairs = Metadata::new().with("k", "value");
        let block = pairs.as_block().len();
        assert_eq!(push.metadata(pairs).size(), 4 + 3 + 5 + block);
    }

    /// A session that has a push counts what may go to either kind of client.
    #[test]
    fn a_push_in_two_forms_counts_with_both() {
        let frame = Bytes::from_static(b"12345");
        let keyed = Keyed { hash: None, plain: Bytes::from_static(b"123") };
        assert_eq!(Encoded { frame: frame.clone(), keyed: None }.size(), 5);
        assert_eq!(Encoded { frame, keyed: Some(Arc::new(keyed)) }.size(), 8);
    }
}
