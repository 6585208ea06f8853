//! What is in a mailbox: a push as it is kept, and one that could not be handled.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bothways_proto::{Limits, Metadata, SerializeType};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::super::push::{Priority, Push};
use crate::{
    codec::{Encode, Payload},
    error::PushError,
    store::Place,
};

/// With what the idempotency key begins of a letter that has none of its own: its place follows.
const OWN_KEY: &str = "_bw.m ";

/// A durable push, as a store keeps it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Letter {
    pub(super) path: String,
    pub(super) method: String,
    pub(super) metadata: Bytes,
    pub(super) payload: Bytes,
    pub(super) serialize: u8,
    pub(super) priority: u8,
    pub(super) key: Option<String>,
    /// When it was pushed, in milliseconds since 1970: for operators.
    pub(super) at_ms: u64,
}

impl Letter {
    pub(super) fn of(push: &Push) -> Self {
        Self {
            path: push.service_path.clone(),
            method: push.service_method.clone(),
            metadata: Bytes::copy_from_slice(push.metadata.as_block()),
            payload: push.payload.clone(),
            serialize: push.serialize.get(),
            priority: push.priority as u8,
            key: push.key.as_ref().map(|(key, _)| key.to_string()),
            at_ms: now_ms(),
        }
    }

    pub(super) fn to_bytes(&self) -> Result<Bytes, PushError> {
        self.encode(SerializeType::MSGPACK).map_err(PushError::Encode)
    }

    /// `None`: it was not written by this version, or is spoilt.
    pub(super) fn of_bytes(bytes: Bytes) -> Option<Self> {
        Self::decode(SerializeType::MSGPACK, bytes).ok()
    }

    /// These bytes of a letter, with the key under which it was sent from this place: if it is sent again from another one,
    /// it is known to be the same.
    pub(super) fn with_key(bytes: Bytes, place: Place) -> Bytes {
        let Some(letter) = Self::of_bytes(bytes.clone()) else { return bytes };
        let key = Some(letter.key.unwrap_or_else(|| format!("{OWN_KEY}{place}")));
        Self { key, ..letter }.to_bytes().unwrap_or(bytes)
    }

    /// The push that a session gets. It has a key in any case: a client that has handled it, and whose server forgot
    /// that, does not handle it again. `None`: it cannot be sent.
    pub(super) fn open(self, place: Place, limits: &Limits) -> Option<Push> {
        let metadata = Metadata::from_block(self.metadata, limits).ok()?;
        let mut push = Push::new(&self.path, &self.method, self.payload).metadata(metadata);
        push.serialize = SerializeType::new(self.serialize)?;
        push.priority = match self.priority {
            0 => Priority::High,
            1 => Priority::Normal,
            _ => Priority::Bulk,
        };
        let key = self.key.unwrap_or_else(|| format!("{OWN_KEY}{place}"));
        push.idempotency_key(&key).ok()
    }
}

/// A letter that a device could not handle.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Dead {
    pub(super) device: String,
    /// Why it was given up.
    pub(super) why: String,
    pub(super) deliveries: u32,
    /// When, in milliseconds since 1970.
    pub(super) at_ms: u64,
    /// The letter, as it was in the mailbox.
    pub(super) letter: Bytes,
}

impl Dead {
    /// `None`: one without its letter cannot be written.
    pub(super) fn to_bytes(&self) -> Option<Bytes> {
        self.encode(SerializeType::MSGPACK).ok()
    }

    pub(super) fn of_bytes(bytes: Bytes) -> Option<Self> {
        Self::decode(SerializeType::MSGPACK, bytes).ok()
    }
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A push comes out of a mailbox as it went in, and always with a key, which names its place if it had none.
    #[test]
    fn a_letter_is_opened_as_it_was_written() {
        let place = Place { epoch: 7, sequence: 9 };
        let push = Push::of("Mail", "New", &17_u32)
            .expect("a number")
            .metadata(Metadata::new().with("trace", "7"))
            .priority(Priority::High);
        let keyed = push.clone().idempotency_key("key").expect("a key");
        for (push, key) in [(push, format!("{OWN_KEY}{place}")), (keyed, "key".to_owned())] {
            let bytes = Letter::of(&push).to_bytes().expect("it can be written");
            let letter = Letter::of_bytes(bytes.clone()).expect("it was written here");
            let again = letter.open(place, &Limits::default()).expect("it is one");
            let expected = push.idempotency_key(&key).expect("a key");
            assert_eq!(format!("{again:?}"), format!("{expected:?}"));

            let dead = Dead {
                device: "phone".to_owned(),
                why: "x".to_owned(),
                deliveries: 5,
                at_ms: 1,
                letter: bytes.clone(),
            };
            let dead = Dead::of_bytes(dead.to_bytes().expect("it can be written")).expect("it was written here");
            assert_eq!((dead.letter, dead.deliveries), (bytes, 5));
        }
        assert!(Letter::of_bytes(Bytes::from_static(b"spoilt")).is_none());
    }
}
