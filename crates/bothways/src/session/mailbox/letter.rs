//! What is in a mailbox: a push as it is kept, and one that could not be handled.

use bothways_proto::{Limits, Metadata, SerializeType};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::super::push::{Priority, Push};
use crate::{
    clock::unix_ms,
    codec::{Encode, Payload},
    error::PushError,
};

/// With what the idempotency key begins of a letter that the application gave none. A random number follows, and no place: a
/// store that lost its last entries gives their places again.
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
            key: Some(push.key.as_ref().map_or_else(random_key, |(key, _)| key.to_string())),
            at_ms: unix_ms(),
        }
    }

    pub(super) fn to_bytes(&self) -> Result<Bytes, PushError> {
        self.encode(SerializeType::MSGPACK).map_err(PushError::Encode)
    }

    /// The same letter to somebody else, whose client may be the same one.
    pub(super) fn to_another(&self) -> Self {
        let is_own = self.key.as_ref().is_none_or(|key| key.starts_with(OWN_KEY));
        let key = if is_own { Some(random_key()) } else { self.key.clone() };
        Self { key, ..self.clone() }
    }

    /// The key that the application gave it.
    pub(super) fn given_key(self) -> Option<String> {
        self.key.filter(|key| !key.starts_with(OWN_KEY))
    }

    /// `None`: it was not written by this version, or is spoilt.
    pub(super) fn of_bytes(bytes: Bytes) -> Option<Self> {
        Self::decode(SerializeType::MSGPACK, bytes).ok()
    }

    /// The push that a session gets. It has a key in any case: a client that has handled it, and whose server forgot
    /// that, does not handle it again. `None`: it cannot be sent.
    pub(super) fn open(self, limits: &Limits) -> Option<Push> {
        let metadata = Metadata::from_block(self.metadata, limits).ok()?;
        let mut push = Push::new(&self.path, &self.method, self.payload).metadata(metadata);
        push.serialize = SerializeType::new(self.serialize)?;
        push.priority = match self.priority {
            0 => Priority::High,
            1 => Priority::Normal,
            _ => Priority::Bulk,
        };
        push.idempotency_key(&self.key?).ok()
    }
}

fn random_key() -> String {
    format!("{OWN_KEY}{:032x}", rand::random::<u128>())
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A push comes out of a mailbox as it went in, and always with a key: its own, or one that no other letter has.
    #[test]
    fn a_letter_is_opened_as_it_was_written() {
        let push = Push::of("Mail", "New", &17_u32)
            .expect("a number")
            .metadata(Metadata::new().with("trace", "7"))
            .priority(Priority::High);
        let keyed = push.clone().idempotency_key("key").expect("a key");
        for (push, given) in [(push, None), (keyed, Some("key"))] {
            let letter = Letter::of(&push);
            let key = letter.key.clone().expect("each has one");
            let [again, another] = [Letter::of(&push), letter.to_another()].map(|letter| letter.key);
            assert_eq!(again.as_ref() == Some(&key) && another.as_ref() == Some(&key), given.is_some());
            assert_eq!(letter.clone().given_key().as_deref(), given);

            let bytes = letter.to_bytes().expect("it can be written");
            let letter = Letter::of_bytes(bytes.clone()).expect("it was written here");
            let opened = letter.open(&Limits::default()).expect("it is one");
            let expected = push.idempotency_key(&key).expect("a key");
            assert_eq!(format!("{opened:?}"), format!("{expected:?}"));

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
