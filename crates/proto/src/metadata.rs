//! Ordered string pairs beside a payload, kept as they travel.

use bytes::Bytes;

use crate::{DecodeError, Limits};

/// The metadata keys that rpcx and Bothways give a meaning to.
pub mod keys {
    /// What the keys of the framework begin with. An application cannot send such a pair.
    pub const RESERVED_PREFIX: &str = "_bw.";
    /// The admin token of a request to the admin service.
    pub const ADMIN_TOKEN: &str = "_bw.admin";
    /// Keys whose values nothing may show: they let their bearer in.
    pub const SECRETS: [&str; 3] = [AUTH, ADMIN_TOKEN, SESSION_KEY];

    /// True for a key whose value must not be shown, in whatever case its letters are.
    pub fn is_secret(key: &[u8]) -> bool {
        SECRETS.iter().any(|secret| key.eq_ignore_ascii_case(secret.as_bytes()))
    }

    /// Keys whose pairs mean one request or one reply, and nobody that it is handed on to.
    pub const OF_ONE_HOP: [&str; 3] = [AUTH, SERVER_TIMEOUT, ERROR];

    /// True for a key of [`OF_ONE_HOP`], in whatever case its letters are.
    pub fn is_of_one_hop(key: &[u8]) -> bool {
        OF_ONE_HOP.iter().any(|of_one| key.eq_ignore_ascii_case(of_one.as_bytes()))
    }

    /// True for a service path that belongs to the framework: [`CONTROL_PATH`], and what begins with it and a dot.
    pub fn is_reserved_path(service_path: &str) -> bool {
        let rest = service_path.strip_prefix(CONTROL_PATH);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    /// True for a key that belongs to the framework.
    pub fn is_reserved(key: &[u8]) -> bool {
        key.starts_with(RESERVED_PREFIX.as_bytes())
    }

    /// The error text of a reply with status 1. Source: Go `protocol.ServiceError`.
    pub const ERROR: &str = "__rpcx_error__";
    /// The auth token of a request. Source: Go `share.AuthKey`.
    pub const AUTH: &str = "__AUTH";
    /// Milliseconds until the caller gives up, decimal. Source: Go `share.ServerTimeout`.
    pub const SERVER_TIMEOUT: &str = "__ServerTimeout";
    /// What kind of error a reply of ours is, for a peer that wants to branch on it: `overloaded`,
    /// `unauthenticated`, `not_found`, `bad_arguments`, `internal`, `timeout`, `shutting_down`. A Go
    /// peer ignores it.
    pub const ERROR_CODE: &str = "_bw.err";
    /// The application's own code of an error, at most 64 bytes, in a failed reply.
    pub const APP_CODE: &str = "_bw.app";
    /// The value of an error, in a failed reply: MessagePack, in base64.
    pub const ERROR_DETAIL: &str = "_bw.detail";
    /// Of which type [`ERROR_DETAIL`] is: the last segment of its path, at most 64 bytes; empty if it has no name of the
    /// application's.
    pub const ERROR_DETAIL_TYPE: &str = "_bw.dt";
    /// The service path of control messages between negotiated peers.
    pub const CONTROL_PATH: &str = "_bothways";
    /// The method that asks the peer to stop a call. A oneway request, from either side.
    pub const CANCEL: &str = "Cancel";
    /// Which call [`CANCEL`] means, or which request [`RETURN`]: its number as it stands on the wire, decimal.
    pub const CANCEL_SEQ: &str = "_bw.seq";
    /// The method by which a server hands back a oneway request that it did not run, as its token was refused: the
    /// payload is the frame of the request, or empty if that finds no room. A oneway request, with [`CANCEL_SEQ`].
    pub const RETURN: &str = "Return";
    /// The method by which a client says that it sends no more requests on this connection, after [`GOODBYE`]. A oneway
    /// request, behind all others.
    pub const LAST: &str = "Last";
    /// The method by which a server that is about to end the connection says [`TAKEN_COUNT`]. A oneway request.
    pub const TAKEN: &str = "Taken";
    /// In [`TAKEN`] and [`GOODBYE`]: how many oneway requests of this connection the server has taken, with [`LAST`], and
    /// without the other ones to the control path and those that it has handed back. Decimal.
    pub const TAKEN_COUNT: &str = "_bw.taken";
    /// A method of the control path: the server dropped pushes of this session.
    pub const GAP: &str = "Gap";
    /// Metadata of a [`GAP`] notice: how many pushes were dropped since the session began, decimal.
    pub const GAP_MISSED: &str = "_bw.missed";
    /// The method by which a client acknowledges tracked pushes.
    pub const ACK: &str = "Ack";
    /// The method by which a client ends its session: it does not come back.
    pub const LEAVE: &str = "Leave";
    /// Metadata of an [`ACK`], and of a [`LEAVE`] that says it once more: the offsets received and handled, decimal,
    /// with a comma between.
    pub const ACK_OFFSETS: &str = "_bw.ack";
    /// Metadata of an [`ACK`]: what is handled beyond the offsets in [`ACK_OFFSETS`]: at most 32 ranges, each as its
    /// first and last offset with `-` between, in order, with commas between.
    pub const ACK_AHEAD: &str = "_bw.sack";
    /// Metadata of an [`ACK`], and of a Hello that resumes: offsets that were not handled, each as `OFFSET:CODE` or
    /// `FIRST-LAST:CODE`, with commas between. Codes: `no_handler`, `bad_arguments`, `error`, `panicked`, `superseded`,
    /// `unknown`.
    pub const ACK_FAILED: &str = "_bw.nack";
    /// Metadata of a push of the newest value of something: the key of that.
    pub const LATEST_KEY: &str = "_bw.lk";
    /// The session's number: in Hello of a client that wants it back, and in Welcome.
    pub const SESSION_ID: &str = "_bw.sid";
    /// The session's secret, beside [`SESSION_ID`].
    pub const SESSION_KEY: &str = "_bw.key";
    /// In Hello: the offset up to which the client has handled. In Welcome: where the session stands.
    pub const SESSION_OFFSET: &str = "_bw.off";
    /// In Hello: the offset up to which the client has received. It understands [`SKIP`].
    pub const SESSION_RECEIVED: &str = "_bw.rcv";
    /// In Hello, and in [`RESUME`], of a client that comes back: which of its attempts this is, decimal. It grows; a
    /// client that says none is always the latest.
    pub const SESSION_TRY: &str = "_bw.try";
    /// In Hello, and in [`ENABLE`] and [`RESUME`]: the name of the client's device, at most 64 bytes. Each named device of
    /// a user gets its own copy of what is durable.
    pub const DEVICE: &str = "_bw.dev";
    /// In Hello, and in [`ENABLE`] and [`RESUME`]: which methods the client handles, each as `Path.method`, with commas
    /// between; at most 4,096 bytes. Without it a server asks and sees.
    pub const METHODS: &str = "_bw.fns";
    /// In Hello and in Welcome: most bytes of a frame's body that this side takes, decimal. A peer that knows it sends
    /// nothing larger.
    pub const BODY_BYTES_MAX: &str = "_bw.max";
    /// A method of the control path, under an offset: in place of a push whose time to live is over, or that is larger
    /// than the client takes.
    pub const SKIP: &str = "Skip";
    /// In Welcome: `1` if the session was resumed.
    pub const SESSION_RESUMED: &str = "_bw.res";
    /// In Welcome: why the session was not resumed: `expired`, `gap`, `unknown`, `revoked`, `kicked`, `ended` or
    /// `node_lost`.
    pub const SESSION_WHY: &str = "_bw.why";
    /// In the reply to Resume: how many topics that were subscribed to on this connection the session has no room for.
    pub const LEFT_OUT: &str = "_bw.out";
    /// In Welcome, beside [`SESSION_WHY`] of a session that was ended on purpose: why, for people; at most 200 bytes.
    pub const SESSION_WORDS: &str = "_bw.words";
    /// The id of a call to a client, by which a client that came back knows that it has run it.
    pub const CALL_ID: &str = "_bw.id";
    /// The method by which a client that speaks plain rpcx asks for a session that can be acknowledged,
    /// called and resumed.
    pub const ENABLE: &str = "Enable";
    /// The method by which such a client takes its session to a new connection.
    pub const RESUME: &str = "Resume";
    /// The method by which such a client answers a call of the server.
    pub const REPLY: &str = "Reply";
    /// The number of a call to such a client: in the push that is the call, and in its [`REPLY`]. Decimal.
    pub const CALL_NUMBER: &str = "_bw.call";
    /// A method of the control path: a client subscribes to a topic. An ordinary call.
    pub const SUBSCRIBE: &str = "Subscribe";
    /// A method of the control path: a client ends a subscription. An ordinary call.
    pub const UNSUBSCRIBE: &str = "Unsubscribe";
    /// A method of the control path: who is in a topic. An ordinary call.
    pub const ROSTER: &str = "Roster";
    /// A method of the control path: who has come to a topic, or gone. A push.
    pub const PRESENCE: &str = "Presence";
    /// Metadata of a push: the topic to which it was published.
    pub const TOPIC: &str = "_bw.t";
    /// Metadata of a push of a topic with history: the epoch of that history, decimal.
    pub const TOPIC_EPOCH: &str = "_bw.te";
    /// Metadata of a push of a topic with history: its offset within the epoch, decimal.
    pub const TOPIC_OFFSET: &str = "_bw.to";
    /// Metadata of a push of a topic whose offsets do not count by one: the offset of the message before it, decimal.
    pub const TOPIC_PREVIOUS: &str = "_bw.tp";
    /// Metadata of a push: its idempotency key. A client hands on one of several that have the same.
    pub const IDEMPOTENCY_KEY: &str = "_bw.ik";
    /// The method by which a server says that it is about to close the connection. A oneway request.
    pub const GOODBYE: &str = "Goodbye";
    /// Why the server says [`GOODBYE`], for a program to branch on. After `kicked`, `expired` and `revoked` a client does
    /// not come back by itself. In Welcome: one of these three, if the client was sent away while it had no connection.
    pub const GOODBYE_CODE: &str = "_bw.code";
    /// Why the server says [`GOODBYE`], for people.
    pub const GOODBYE_WHY: &str = "_bw.why";
    /// How long the client waits before it connects again after [`GOODBYE`]: milliseconds, decimal.
    pub const GOODBYE_AFTER: &str = "_bw.after";
    /// Where else the client may go, in [`GOODBYE`] and in the refusal of a Hello by a server that stops: addresses in
    /// rpcx's form, `network@address`, separated by blanks, the best one first.
    pub const GOODBYE_OTHERS: &str = "_bw.alt";
    /// Metadata of the refusal of a Hello, if there are too many clients: milliseconds to wait before trying again,
    /// decimal.
    pub const RETRY_AFTER: &str = "_bw.after";
}

/// Key and value pairs, in the order in which they were added.
///
/// The value *is* the block of the wire (four bytes of length, key, four bytes of length, value, and
/// so on): reading one from a frame copies nothing, writing one is a copy of bytes, and a clone is a
/// counter. Look-ups walk the block; metadata is a handful of pairs.
///
/// Keys are unique as far as this type's own methods go. A frame from a peer may repeat a key: the
/// last one counts, as in Go. Go's own order is random; two values are equal if they hold the same
/// pairs in the same order.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct Metadata {
    block: Bytes,
}

/// A key or a value that cannot be metadata.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MetadataError {
    len: usize,
}

impl std::fmt::Display for MetadataError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a metadata key or value has {} bytes; the wire has room for {}", self.len, u32::MAX)
    }
}

impl std::error::Error for MetadataError {}

impl Metadata {
    /// No pairs. Takes no memory.
    pub const fn new() -> Self {
        Self { block: Bytes::new() }
    }

    /// The pairs of a block from the wire, checked: every length fits, and the bounds hold.
    ///
    /// # Errors
    /// [`DecodeError::MetadataTooLarge`] and [`DecodeError::Metadata`].
    pub fn from_block(block: Bytes, limits: &Limits) -> Result<Self, DecodeError> {
        check(&block, limits)?;
        Ok(Self { block })
    }

    /// The pairs of a block that went through [`check`] before.
    pub(crate) fn from_checked_block(block: Bytes) -> Self {
        Self { block }
    }

    /// Whether these pairs may travel: what is too much, the limit, and its unit.
    pub(crate) fn check_bounds(&self, limits: &Limits) -> Result<(), (usize, usize, &'static str)> {
        let (found, max) = (self.block.len(), limits.metadata_bytes());
        if max < found {
            return Err((found, max, "bytes"));
        }
        let max = limits.metadata_pairs();
        if self.block.len() / PAIR_BYTES_MIN <= max {
            return Ok(()); // so short a block has no room for more pairs: the common case is not walked
        }
        let found = self.pairs().count();
        if max < found { Err((found, max, "pairs")) } else { Ok(()) }
    }

    /// The pairs as they travel.
    pub fn as_block(&self) -> &[u8] {
        &self.block
    }

    /// True if there is no pair.
    pub fn is_empty(&self) -> bool {
        self.block.is_empty()
    }

    /// Adds a pair, or replaces the value of its key.
    ///
    /// # Panics
    /// If `key` or `value` has 4 GiB or more; [`Self::try_insert`] answers instead.
    pub fn insert(&mut self, key: &str, value: impl AsRef<[u8]>) {
        self.try_insert(key, value).expect("metadata keys and values are far below 4 GiB");
    }

    /// Adds a pair, or replaces the value of its key.
    ///
    /// # Errors
    /// [`MetadataError`] if `key` or `value` has 4 GiB or more; nothing changes.
    pub fn try_insert(&mut self, key: &str, value: impl AsRef<[u8]>) -> Result<(), MetadataError> {
        let value = value.as_ref();
        let too_long = |len| MetadataError { len };
        let key_len = u32::try_from(key.len()).map_err(|_| too_long(key.len()))?;
        let value_len = u32::try_from(value.len()).map_err(|_| too_long(value.len()))?;
        self.remove(key);
        let mut block = Vec::from(std::mem::take(&mut self.block));
        block.reserve(8 + key.len() + value.len());
        block.extend_from_slice(&key_len.to_be_bytes());
        block.extend_from_slice(key.as_bytes());
        block.extend_from_slice(&value_len.to_be_bytes());
        block.extend_from_slice(value);
        self.block = block.into();
        Ok(())
    }

    /// The same metadata with one more pair.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.insert(key, value);
        self
    }

    /// Removes every pair of this key.
    pub fn remove(&mut self, key: &str) {
        if self.value(key).is_none() {
            return;
        }
        *self = Self::of_pairs(self.pairs().filter(|(k, _)| *k != key.as_bytes()));
    }

    /// The first key that belongs to the framework, `_bw.` and more. Applications cannot send one.
    pub fn reserved_key(&self) -> Option<std::borrow::Cow<'_, str>> {
        self.pairs().map(|(key, _)| key).find(|key| keys::is_reserved(key)).map(String::from_utf8_lossy)
    }

    /// The first key whose pair means one request or one reply: the caller's token, its deadline, an error. A server
    /// sends its clients none.
    pub fn key_of_one_hop(&self) -> Option<std::borrow::Cow<'_, str>> {
        self.pairs().map(|(key, _)| key).find(|key| keys::is_of_one_hop(key)).map(String::from_utf8_lossy)
    }

    /// The same pairs without those of the framework, and without what means one request or reply alone: the token
    /// `__AUTH`, `__ServerTimeout` and `__rpcx_error__`. What is left of a caller's pairs an application may send on.
    #[must_use]
    #[inline]
    pub fn without_reserved(self) -> Self {
        if self.is_empty() { self } else { self.only_unreserved() }
    }

    fn only_unreserved(self) -> Self {
        let stays = |key: &[u8]| !keys::is_reserved(key) && !keys::is_of_one_hop(key);
        match self.pairs().all(|(key, _)| stays(key)) {
            true => self,
            false => Self::of_pairs(self.pairs().filter(|(key, _)| stays(key))),
        }
    }

    /// Adds every pair of `other` whose key is not here yet.
    pub fn merge_missing(&mut self, other: &Self) {
        if self.is_empty() {
            self.block = other.block.clone();
            return;
        }
        let missing: Vec<_> = other.pairs().filter(|(key, _)| self.value_of(key).is_none()).collect();
        if !missing.is_empty() {
            *self = Self::of_pairs(self.pairs().chain(missing));
        }
    }

    /// Copies the pairs out of whatever they came in: from here on they keep nothing else alive. For code that keeps them.
    pub fn compact(&mut self) {
        if !self.is_empty() {
            self.block = Bytes::copy_from_slice(&self.block);
        }
    }

    /// The value of a key as text; `None` if there is none, or if it is not UTF-8.
    pub fn get(&self, key: &str) -> Option<&str> {
        str::from_utf8(self.value(key)?).ok()
    }

    /// The value of a key as it came; the last one if a peer sent the key more than once.
    pub fn value(&self, key: &str) -> Option<&[u8]> {
        self.value_of(key.as_bytes())
    }

    fn of_pairs<'a>(pairs: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Self {
        let mut block = Vec::new();
        for part in pairs.flat_map(|(key, value)| [key, value]) {
            block.extend_from_slice(&(part.len() as u32).to_be_bytes());
            block.extend_from_slice(part);
        }
        Self { block: block.into() }
    }

    fn value_of(&self, key: &[u8]) -> Option<&[u8]> {
        self.pairs().filter(|(k, _)| *k == key).last().map(|(_, value)| value)
    }

    /// All pairs as bytes, in order.
    pub fn pairs(&self) -> Pairs<'_> {
        Pairs { rest: &self.block }
    }

    /// All pairs as text, in order; what is not UTF-8 is shown with replacement characters.
    pub fn iter(&self) -> impl Iterator<Item = (std::borrow::Cow<'_, str>, std::borrow::Cow<'_, str>)> {
        self.pairs().map(|(key, value)| (String::from_utf8_lossy(key), String::from_utf8_lossy(value)))
    }
}

impl std::fmt::Debug for Metadata {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A token is a secret and logs are not.
        let shown = |(key, value): (std::borrow::Cow<'_, str>, _)| match keys::is_secret(key.as_bytes()) {
            true => (key.into_owned(), "***".into()),
            false => (key.into_owned(), value),
        };
        f.debug_map().entries(self.iter().map(shown)).finish()
    }
}

impl<K: AsRef<str>, V: AsRef<[u8]>> FromIterator<(K, V)> for Metadata {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        pairs.into_iter().fold(Self::new(), |metadata, (key, value)| metadata.with(key.as_ref(), value))
    }
}

/// The pairs of a [`Metadata`] as bytes. Stops at the first thing that is no pair.
#[derive(Clone, Debug)]
pub struct Pairs<'a> {
    rest: &'a [u8],
}

impl<'a> Pairs<'a> {
    /// The pairs of a block that went through [`check`] before.
    pub(crate) fn of_block(block: &'a [u8]) -> Self {
        Self { rest: block }
    }
}

impl<'a> Iterator for Pairs<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (key, rest) = split_part(self.rest)?;
        let (value, rest) = split_part(rest)?;
        self.rest = rest;
        Some((key, value))
    }
}

/// Four bytes of length, that many bytes, and what follows.
fn split_part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_be_bytes(*len) as usize)
}

/// Two lengths, and nothing between them.
pub(crate) const PAIR_BYTES_MIN: usize = 8;

/// The text and the code of a failed reply, of a block from the wire that is a sequence of pairs, however many.
pub(crate) fn error_of(block: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let (mut text, mut code) = (None, None);
    let mut pairs = Pairs { rest: block };
    for (key, value) in pairs.by_ref() {
        if key == keys::ERROR.as_bytes() {
            text = Some(value);
        } else if key == keys::ERROR_CODE.as_bytes() {
            code = Some(value);
        }
    }
    pairs.rest.is_empty().then_some((text?, code))
}

/// Whether a block from the wire is a sequence of pairs within the bounds.
pub(crate) fn check(block: &[u8], limits: &Limits) -> Result<(), DecodeError> {
    let max = limits.metadata_bytes();
    if max < block.len() {
        return Err(DecodeError::MetadataTooLarge { found: block.len(), max, unit: "bytes" });
    }
    let mut pairs = Pairs { rest: block };
    let found = pairs.by_ref().count();
    if !pairs.rest.is_empty() {
        return Err(DecodeError::Metadata { len: block.len() });
    }
    let max = limits.metadata_pairs();
    if max < found {
        return Err(DecodeError::MetadataTooLarge { found, max, unit: "pairs" });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use hex_literal::hex;

    use super::*;

    fn from(block: &[u8]) -> Result<Metadata, DecodeError> {
        Metadata::from_block(Bytes::copy_from_slice(block), &Limits::default())
    }

    /// A pair is two lengths and two texts.
    #[test]
    fn a_pair_is_two_lengths_and_two_texts() {
        let metadata = Metadata::new().with("k", "v");
        assert_eq!(metadata.as_block(), hex!("00000001 6b 00000001 76"));
        assert_eq!(from(metadata.as_block()), Ok(metadata));
    }

    /// A repeated key counts once: the last value, as in Go.
    #[test]
    fn the_last_value_of_a_repeated_key_counts() {
        let metadata = from(&hex!("00000001 6b 00000001 61  00000001 6b 00000001 62")).expect("well formed");
        assert_eq!(metadata.get("k"), Some("b"));
    }

    /// An empty key is a key, as in Go.
    #[test]
    fn an_empty_key_is_a_key() {
        let metadata = from(&hex!("00000000 00000001 76")).expect("well formed");
        assert_eq!(metadata.get(""), Some("v"));
    }

    /// Inserting a key again replaces its value and keeps the others.
    #[test]
    fn inserting_again_replaces() {
        let metadata = Metadata::new().with("a", "1").with("b", "2").with("a", "3");
        assert_eq!(metadata.iter().collect::<Vec<_>>(), [("b".into(), "2".into()), ("a".into(), "3".into())]);
    }

    /// What a handler put there wins over what is merged in.
    #[test]
    fn merging_keeps_what_is_there() {
        let mut metadata = Metadata::new().with("a", "mine");
        metadata.merge_missing(&Metadata::new().with("a", "theirs").with("b", "theirs"));
        assert_eq!((metadata.get("a"), metadata.get("b")), (Some("mine"), Some("theirs")));
    }

    /// Every way in which a block can end too early, or hold stray bytes, is refused.
    #[test]
    fn blocks_that_end_early_are_refused() {
        for block in [
            &hex!("0000")[..],
            &hex!("00000001"),
            &hex!("00000001 6b"),
            &hex!("00000001 6b 000000"),
            &hex!("00000001 6b 00000002 76"),
            &hex!("ffffffff 6b 00000001 76"),
            &hex!("00000001 6b 00000001 76 0000"),
        ] {
            assert_eq!(from(block), Err(DecodeError::Metadata { len: block.len() }));
        }
    }

    /// Too many pairs and too many bytes are refused before anybody walks them again.
    #[test]
    fn bounds_hold() {
        let limits = Limits::default().metadata_pairs_max(1).metadata_bytes_max(40);
        let two = Metadata::new().with("a", "1").with("b", "2").block;
        assert_eq!(
            Metadata::from_block(two, &limits),
            Err(DecodeError::MetadataTooLarge { found: 2, max: 1, unit: "pairs" })
        );
        let long = Metadata::new().with("a", [0; 40]).block;
        assert_eq!(
            Metadata::from_block(long, &limits),
            Err(DecodeError::MetadataTooLarge { found: 49, max: 40, unit: "bytes" })
        );
    }

    /// A token never shows in a log: not that of a request, of an operator or of a session.
    #[test]
    fn debug_hides_every_secret() {
        let shown = format!("{:?}", Metadata::new().with(keys::AUTH, "secret").with("k", "v"));
        assert_eq!(shown, r#"{"__AUTH": "***", "k": "v"}"#);
        for key in ["__AUTH", "__auth", "_bw.admin", "_bw.key"] {
            let shown = format!("{:?}", Metadata::new().with(key, "secret"));
            assert_eq!(shown, format!(r#"{{"{key}": "***"}}"#));
        }
        let shown = format!("{:?}", Metadata::new().with("_bw.sid", "9").with("_bw.keys", "k"));
        assert_eq!(shown, r#"{"_bw.sid": "9", "_bw.keys": "k"}"#, "a number is no secret, nor a longer key");
    }

    /// What belongs to the framework is found, and can be left out; all other pairs stay as they are.
    #[test]
    fn reserved_pairs_are_found_and_left_out() {
        let clean = Metadata::new().with("a", "1").with("_BW.t", "2").with("_bw", "3").with("x_bw.t", "4");
        assert_eq!(clean.reserved_key(), None);
        assert_eq!(clean.clone().without_reserved(), clean);
        let mixed = Metadata::new().with("a", "1").with("_bw.", "2").with("b", "3").with("_bw.zzz", "4");
        assert_eq!(mixed.reserved_key().as_deref(), Some("_bw."));
        assert_eq!(mixed.without_reserved(), Metadata::new().with("a", "1").with("b", "3"));
        let asked = Metadata::new().with("__AUTH", "s").with("__auth", "s").with("__ServerTimeout", "9");
        let asked = asked.with("a", "1").with("__rpcx_error__", "no").with("__AUTHOR", "ann");
        assert_eq!((asked.reserved_key(), asked.key_of_one_hop().as_deref()), (None, Some("__AUTH")));
        assert_eq!(asked.without_reserved(), Metadata::new().with("a", "1").with("__AUTHOR", "ann"));
        let odd = from(&hex!("00000005 5f62772eff 00000000")).expect("well formed");
        assert_eq!(odd.reserved_key().as_deref(), Some("_bw.\u{fffd}"));
        assert!(odd.without_reserved().is_empty());
    }
}
