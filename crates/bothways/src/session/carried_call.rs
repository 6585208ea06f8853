//! Calls to clients of other nodes, and how they ended, as they travel; and what makes them travel.

use std::{sync::Arc, time::Duration};

use bothways_proto::{Limits, Metadata, SerializeType};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{NodeId, SessionId, UnreachedWhy};
use crate::{
    beside::Beside,
    caller::{CallOptions, RawCall, RawReply},
    error::{CallError, CloseReason, ErrorCode},
    reply::BoxFuture,
};

/// Reaches clients of other nodes.
pub(crate) trait Callable: Send + Sync {
    /// Which of these sessions the nodes have, this one among them, and which may be called with this method.
    fn find(self: Arc<Self>, asked: FindAsked, within: Duration) -> BoxFuture<FoundEverywhere>;

    /// Calls the client of a session of this node. Dropping the future gives the call up there.
    fn call(self: Arc<Self>, node: NodeId, call: CarriedCall, deadline: Instant)
    -> BoxFuture<Result<RawReply, Missed>>;
}

/// Why a call that went to another node has no reply.
#[derive(Debug)]
pub(crate) enum Missed {
    /// It has no such session. Nothing was sent to a client.
    NotThere,
    Failed(CallError),
}

/// What is looked for.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct FindAsked {
    pub(crate) of: FindOf,
    pub(crate) path: String,
    pub(crate) method: String,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) enum FindOf {
    /// The sessions of a user; those on this device, if one is named.
    User(String, Option<String>),
    Session(SessionId),
}

/// A session that a call may go to, as its node sees it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Seen {
    pub(crate) session: SessionId,
    pub(super) handles: bool,
    pub(super) takes_calls: bool,
    pub(super) is_being_let_in: bool,
    pub(super) is_connected: bool,
    /// Since it came, or left.
    pub(super) age_us: u64,
}

/// What the nodes have.
#[derive(Clone, Debug, Default)]
pub(crate) struct FoundEverywhere {
    pub(crate) found: Vec<(NodeId, Seen)>,
    /// What these have is not known.
    pub(crate) silent: Vec<(NodeId, UnreachedWhy)>,
}

/// A call of a session's client, as it travels between nodes.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct CarriedCall {
    session: SessionId,
    /// Under which the client runs it once, however often it is sent.
    id: u64,
    path: String,
    method: String,
    metadata: Bytes,
    serialize: u8,
    payload: Bytes,
    /// What is left of its time. Only durations travel: the clocks of two nodes have nothing to do with each other.
    left_ms: u64,
}

/// A call that has come from another node.
#[derive(Debug)]
pub(crate) struct OpenedCall {
    pub(crate) session: SessionId,
    pub(crate) id: u64,
    path: String,
    method: String,
    serialize: SerializeType,
    payload: Bytes,
    options: CallOptions,
}

impl CarriedCall {
    pub(crate) fn of(session: SessionId, id: u64, call: &RawCall<'_>, left: Duration) -> Self {
        Self {
            session,
            id,
            path: call.service_path.to_owned(),
            method: call.service_method.to_owned(),
            metadata: Bytes::copy_from_slice(call.options.metadata.as_block()),
            serialize: call.serialize.get(),
            payload: call.payload.clone(),
            left_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// The call again, which has waited so long on its way. `None`: it is none.
    pub(crate) fn open(self, waited: Duration, limits: &Limits) -> Option<OpenedCall> {
        let metadata = Metadata::from_block(self.metadata, limits).ok()?;
        let left = Duration::from_millis(self.left_ms).saturating_sub(waited);
        Some(OpenedCall {
            session: self.session,
            id: self.id,
            path: self.path,
            method: self.method,
            serialize: SerializeType::new(self.serialize)?,
            payload: self.payload,
            options: CallOptions::new().metadata(metadata).timeout(left),
        })
    }
}

impl OpenedCall {
    pub(crate) fn raw(&self) -> RawCall<'_> {
        RawCall {
            service_path: &self.path,
            service_method: &self.method,
            serialize: self.serialize,
            payload: self.payload.clone(),
            options: self.options.clone(),
        }
    }
}

/// How a call ended at the node of its session.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) enum CarriedOutcome {
    Reply {
        serialize: u8,
        payload: Bytes,
        metadata: Bytes,
    },
    Remote {
        text: String,
        code: Option<String>,
        beside: Option<(Bytes, u8, Bytes)>,
    },
    TimedOut(u64),
    Closed {
        written: bool,
        why: String,
    },
    NotSupported,
    NoClient(String),
    /// Anything else that went wrong before something was sent.
    NotSent(String),
}

impl CarriedOutcome {
    pub(crate) fn of(outcome: Result<RawReply, CallError>) -> Self {
        match outcome {
            Ok(reply) => Self::Reply {
                serialize: reply.serialize.get(),
                payload: reply.payload,
                metadata: Bytes::copy_from_slice(reply.metadata.as_block()),
            },
            Err(CallError::Remote { text, code, beside }) => {
                Self::Remote { text, code: code.map(|code| code.name().to_owned()), beside: beside.carried() }
            }
            Err(CallError::TimedOut(limit)) => Self::TimedOut(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
            Err(CallError::Closed { written, reason }) => Self::Closed { written, why: reason.to_string() },
            Err(CallError::NotSupported) => Self::NotSupported,
            Err(CallError::NoClient(why)) => Self::NoClient(why),
            Err(error) if error.may_have_run() => Self::Closed { written: true, why: error.to_string() },
            Err(error) => Self::NotSent(error.to_string()),
        }
    }

    /// The outcome again; `None`: it is none.
    pub(crate) fn open(self, limits: &Limits) -> Option<Result<RawReply, CallError>> {
        Some(match self {
            Self::Reply { serialize, payload, metadata } => Ok(RawReply {
                serialize: SerializeType::new(serialize)?,
                payload,
                metadata: Metadata::from_block(metadata, limits).ok()?,
            }),
            Self::Remote { text, code, beside } => {
                let beside = match beside {
                    None => Beside::default(),
                    Some((metadata, serialize, payload)) => {
                        let metadata = Metadata::from_block(metadata, limits).ok()?;
                        Beside::of_carried(metadata, SerializeType::new(serialize)?, payload)
                    }
                };
                Err(CallError::Remote { text, code: code.as_deref().and_then(ErrorCode::from_name), beside })
            }
            Self::TimedOut(ms) => Err(CallError::TimedOut(Duration::from_millis(ms))),
            Self::Closed { written, why } => Err(CallError::Closed { written, reason: CloseReason::Elsewhere(why) }),
            Self::NotSupported => Err(CallError::NotSupported),
            Self::NoClient(why) | Self::NotSent(why) => Err(CallError::NoClient(why)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Encode, Payload};

    fn travelled<T: serde::Serialize + serde::de::DeserializeOwned + Send>(value: &T) -> T {
        let bytes = value.encode(SerializeType::MSGPACK).expect("it can be written");
        T::decode(SerializeType::MSGPACK, bytes).expect("it was written here")
    }

    /// A call that went to another node is the same call there, with the time that is left.
    #[test]
    fn a_call_arrives_as_it_left() {
        let options = CallOptions::new().metadata(Metadata::new().with("trace", "7"));
        let call = RawCall {
            service_path: "Customer",
            service_method: "Confirm",
            serialize: SerializeType::JSON,
            payload: Bytes::from_static(b"5"),
            options,
        };
        let carried = CarriedCall::of(SessionId(4), 9, &call, Duration::from_secs(10));
        let opened = travelled(&carried).open(Duration::from_secs(3), &Limits::default()).expect("it is one");
        let again = opened.raw();
        assert_eq!((opened.session, opened.id), (SessionId(4), 9));
        assert_eq!((again.service_path, again.service_method), ("Customer", "Confirm"));
        assert_eq!((again.serialize, again.payload), (SerializeType::JSON, Bytes::from_static(b"5")));
        assert_eq!(again.options.metadata.get("trace"), Some("7"));
        assert_eq!(again.options.timeout, Some(Duration::from_secs(7)));
        let late = travelled(&carried).open(Duration::from_secs(30), &Limits::default()).expect("it is one");
        assert_eq!(late.raw().options.timeout, Some(Duration::ZERO));
    }

    /// An outcome means at the origin what it means where the call ran: above all, whether it may have run.
    #[test]
    fn an_outcome_keeps_its_meaning() {
        let pairs = Metadata::new().with("request-id", "8");
        let outcomes: Vec<Result<RawReply, CallError>> = vec![
            Ok(RawReply {
                serialize: SerializeType::RAW,
                payload: Bytes::from_static(b"yes"),
                metadata: pairs.clone(),
            }),
            Err(CallError::Remote { text: "no".into(), code: None, beside: Beside::of_pairs(pairs) }),
            Err(CallError::Remote {
                text: "busy".into(),
                code: Some(ErrorCode::Overloaded),
                beside: Beside::default(),
            }),
            Err(CallError::TimedOut(Duration::ZERO)),
            Err(CallError::TimedOut(Duration::from_secs(2))),
            Err(CallError::Closed { written: true, reason: CloseReason::PeerClosed }),
            Err(CallError::Closed { written: false, reason: CloseReason::PeerClosed }),
            Err(CallError::NotSupported),
            Err(CallError::NoClient("gone".into())),
            Err(CallError::TooManyCalls { max: 3 }),
            Err(CallError::QueueFull { bytes: 3 }),
        ];
        for outcome in outcomes {
            let carried = CarriedOutcome::of(outcome.clone());
            let again = travelled(&carried).open(&Limits::default()).expect("it is one");
            match (&outcome, &again) {
                (Ok(sent), Ok(came)) => {
                    assert_eq!((sent.serialize, &sent.payload), (came.serialize, &came.payload));
                    assert_eq!(sent.metadata.get("request-id"), came.metadata.get("request-id"));
                }
                (Err(sent), Err(came)) => {
                    let told = |error: &CallError| {
                        (error.may_have_run(), error.code(), error.remote_text().map(str::to_owned))
                    };
                    assert_eq!(told(sent), told(came), "{sent:?} {came:?}");
                    let pair = |error: &CallError| error.beside()?.metadata().get("request-id").map(str::to_owned);
                    assert_eq!(pair(sent), pair(came));
                }
                (sent, came) => panic!("{sent:?} became {came:?}"),
            }
        }
    }
}
