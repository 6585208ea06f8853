//! What the register has of a session, as bytes: whose it is, and what is to be known of it when its node is gone.

use std::time::Duration;

use bothways_proto::SerializeType;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    claim::{NOBODY, Record},
    engine::{NodeId, Revision},
};
use crate::{
    codec::{Encode, Payload},
    session::Known,
};

/// How long a record is kept that nobody renews.
const RECORD_TTL: Duration = Duration::from_secs(3600);
/// When it is renewed, after it was written last.
pub(super) const RENEW_AFTER: Duration = Duration::from_secs(1800);
/// For how long it is known that a session was given up of which there was no record: for a stranger who asks for
/// sessions that never were nothing is kept for longer.
const NEVER_WAS_TTL: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Written {
    term: u64,
    owner: u64,
    nonce: u64,
    pub(super) hash: [u8; 32],
    pub(super) user: Option<String>,
    pub(super) labels: Vec<(String, String)>,
    /// Its node has left it in the store.
    pub(super) parked: Option<Parked>,
}

/// Where a session waits for a node.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Parked {
    pub(super) epoch: u64,
    /// The sequences of its first part, and of its last.
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) parts: u32,
    /// How long it is kept there, in milliseconds.
    #[serde(default)]
    pub(super) left_ms: u64,
}

impl Written {
    pub(super) fn new(record: &Record, known: &Known) -> Self {
        Self {
            term: record.term,
            owner: record.owner.0,
            nonce: record.nonce,
            hash: known.hash,
            user: known.user.as_deref().map(str::to_owned),
            labels: known.labels.clone(),
            parked: None,
        }
    }

    /// From here on the session is nobody's. `term`: that of the record before.
    pub(super) fn nobodys(term: u64, hash: [u8; 32]) -> Self {
        Self::new(&Record { term: term + 1, owner: NOBODY, nonce: rand::random() }, &Known::of(hash))
    }

    pub(super) fn record(&self) -> Record {
        Record { term: self.term, owner: NodeId(self.owner), nonce: self.nonce }
    }

    /// Its session was given up.
    pub(super) fn is_given_up(&self) -> bool {
        self.record().owner == NOBODY
    }

    /// For how long it is kept, where there was this before.
    pub(super) fn ttl(&self, was: Option<Revision>) -> Duration {
        match &self.parked {
            // Nobody renews it.
            Some(parked) => RECORD_TTL.max(Duration::from_millis(parked.left_ms)),
            None if self.is_given_up() && was.is_none() => NEVER_WAS_TTL,
            None => RECORD_TTL,
        }
    }

    pub(super) fn known(&self) -> Known {
        let user = self.user.as_deref().map(Into::into);
        Known { user, labels: self.labels.clone(), ..Known::of(self.hash) }
    }

    pub(super) fn to_bytes(&self) -> Bytes {
        // Of numbers, bytes and texts: there is none that MessagePack cannot write.
        self.encode(SerializeType::MSGPACK).unwrap_or_default()
    }

    pub(super) fn from_bytes(bytes: Bytes) -> Option<Self> {
        Self::decode(SerializeType::MSGPACK, bytes).ok()
    }
}
