//! Pushes to sessions of other nodes, as they travel.
//!
//! The registry pushes to its own sessions, and then hands the push on to what implements [`Elsewhere`]: that queues it
//! and returns. Without a cluster there is none.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use bothways_proto::{Limits, Metadata, SerializeType};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    SessionId,
    carried_call::Callable,
    elsewhere::{Known, NodeId},
    push::{Class, Priority, Push},
    receipt::Receipt,
    target::{Target, Who},
};

use crate::{connection::Connection, reply::BoxFuture};

/// Takes pushes and calls to the sessions of other nodes.
pub(crate) trait Elsewhere: Callable {
    /// Queues it for the nodes that may have such sessions. Never waits. Answers under which number, if it went to any.
    fn route(&self, carried: &Carried, receipt: &Receipt) -> Option<u64>;

    /// A session to which its client may come back began here, or ended.
    fn note(&self, id: SessionId);

    /// Brings the session here that the client of this Hello had, if it is anywhere. `None`: there is nothing to bring.
    /// `Err`: its client keeps it, and is to come again after so long.
    fn bring(&self, connection: &Connection, hello: &Metadata) -> Option<BoxFuture<Result<(), Duration>>>;

    /// Sends a push of this number after those sessions that have left lately, if that is to be done here.
    fn push_after(&self, to: &Destination, push: &Push, receipt: &Receipt, number: u64);

    /// True if there are such sessions.
    fn has_left(&self) -> bool;

    /// The sessions that have come lately, and have the push of this number of that node already.
    fn taken(&self, origin: NodeId, number: u64) -> Vec<SessionId>;
}

/// For whom a push is at another node.
#[derive(Clone, Debug)]
pub(crate) enum Destination {
    Sessions(Target),
    /// Who subscribes to it, as a message of this topic, which keeps nothing.
    Topic(String),
}

impl Destination {
    /// True if a session that went to another node lately is meant.
    pub(crate) fn admits_known(&self, id: SessionId, known: &Known) -> bool {
        match self {
            Self::Sessions(target) => target.admits_known(id, known),
            Self::Topic(topic) => known.patterns.iter().any(|pattern| super::topic::covers(pattern, topic)),
        }
    }

    /// The topic of which it is a message.
    pub(crate) fn topic(&self) -> Option<&str> {
        match self {
            Self::Sessions(_) => None,
            Self::Topic(topic) => Some(topic),
        }
    }
}

/// A push and its target, as they travel between nodes.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Carried {
    to: To,
    except: Vec<SessionId>,
    labels: Vec<(String, String)>,
    path: String,
    method: String,
    metadata: Bytes,
    payload: Bytes,
    serialize: u8,
    class: CarriedClass,
    priority: u8,
    /// What is left of it.
    ttl_ms: Option<u64>,
    key: Option<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
enum To {
    Session(SessionId),
    Users(Vec<String>),
    SubscribersOf(String),
    Everyone,
    Topic(String),
}

#[derive(Clone, Debug, Deserialize, Serialize)]
enum CarriedClass {
    Fire,
    Latest(String),
    Tracked,
}

impl Carried {
    /// `None`: nobody of another node can be meant.
    pub(crate) fn of(target: &Target, push: &Push) -> Option<Self> {
        let to = match &target.who {
            Who::Connection(_) => return None,
            Who::Session(id) => To::Session(*id),
            Who::Users(names) => To::Users(names.clone()),
            Who::SubscribersOf(topic) => To::SubscribersOf(topic.clone()),
            Who::Everyone => To::Everyone,
        };
        Some(Self { except: target.except.clone(), labels: target.labels.clone(), ..Self::to(to, push) })
    }

    /// A target alone.
    pub(crate) fn of_target(target: &Target) -> Option<Self> {
        Self::of(target, &Push::new("", "", Bytes::new()))
    }

    /// What is published to a topic that keeps nothing.
    pub(crate) fn of_topic(topic: &str, push: &Push) -> Self {
        Self::to(To::Topic(topic.to_owned()), push)
    }

    fn to(to: To, push: &Push) -> Self {
        let class = match &push.class {
            Class::Fire => CarriedClass::Fire,
            Class::Latest(key) => CarriedClass::Latest(key.clone()),
            // A durable one goes through its mailbox.
            Class::Tracked | Class::Durable { .. } => CarriedClass::Tracked,
        };
        Self {
            to,
            except: Vec::new(),
            labels: Vec::new(),
            path: push.service_path.clone(),
            method: push.service_method.clone(),
            metadata: Bytes::copy_from_slice(push.metadata.as_block()),
            payload: push.payload.clone(),
            serialize: push.serialize.get(),
            class,
            priority: push.priority as u8,
            ttl_ms: push.time_to_live.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)),
            key: push.key.as_ref().map(|(key, _)| key.to_string()),
        }
    }

    /// The only session that is meant, if it is named.
    pub(crate) fn session(&self) -> Option<SessionId> {
        match self.to {
            To::Session(id) => Some(id),
            _ => None,
        }
    }

    /// The push again, which has waited so long on its way. `None`: it is none.
    pub(crate) fn open(self, waited: Duration, limits: &Limits) -> Option<(Destination, Push)> {
        let metadata = Metadata::from_block(self.metadata, limits).ok()?;
        let mut push = Push::new(&self.path, &self.method, self.payload).metadata(metadata);
        push.serialize = SerializeType::new(self.serialize)?;
        push.class = match self.class {
            CarriedClass::Fire => Class::Fire,
            CarriedClass::Latest(key) => Class::Latest(key),
            CarriedClass::Tracked => Class::Tracked,
        };
        push.priority = match self.priority {
            0 => Priority::High,
            1 => Priority::Normal,
            _ => Priority::Bulk,
        };
        push.time_to_live = self.ttl_ms.map(|ttl| Duration::from_millis(ttl).saturating_sub(waited));
        if let Some(key) = self.key {
            push = push.idempotency_key(&key).ok()?;
        }
        let who = match self.to {
            To::Session(id) => Who::Session(id),
            To::Users(names) => Who::Users(names),
            To::SubscribersOf(topic) => Who::SubscribersOf(topic),
            To::Everyone => Who::Everyone,
            To::Topic(topic) => return Some((Destination::Topic(topic), push)),
        };
        Some((Destination::Sessions(Target { who, except: self.except, labels: self.labels }), push))
    }
}

/// Where the registry finds it.
pub(super) type Beyond = OnceLock<Arc<dyn Elsewhere>>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Encode, Payload};

    /// A push that went to another node is the same push there.
    #[test]
    fn a_push_arrives_as_it_left() {
        let pairs = Metadata::new().with("trace", "7");
        let push = Push::of("Mail", "New", &17_u32)
            .expect("a number")
            .metadata(pairs)
            .class(Class::Latest("car".to_owned()))
            .priority(Priority::High)
            .time_to_live(Duration::from_secs(10))
            .idempotency_key("key")
            .expect("a key");
        let target = Target::users(["ann", "bob"]).except(SessionId(7)).only_labelled("device", "phone");
        let carried = Carried::of(&target, &push).expect("others may have them");
        let bytes = carried.encode(SerializeType::MSGPACK).expect("it can be written");
        let carried = Carried::decode(SerializeType::MSGPACK, bytes).expect("it was written here");
        let (to, again) = carried.open(Duration::from_secs(3), &Limits::default()).expect("it is one");
        assert_eq!(format!("{to:?}"), format!("{:?}", Destination::Sessions(target)));
        let expected = push.time_to_live(Duration::from_secs(7));
        assert_eq!(format!("{again:?}"), format!("{expected:?}"));
        assert!(Carried::of(&Target::connection("c1".parse().expect("a number")), &expected).is_none());
    }
}
