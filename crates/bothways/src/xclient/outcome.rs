//! How each try ended, for selectors that learn from it.

use std::time::Duration;

use tokio::time::Instant;

use super::servers::Servers;
use crate::{
    caller::RawReply,
    discovery::ServerEntry,
    error::{CallError, ErrorCode, PushError},
};

/// How one try ended; see [`Selector::ended`](super::Selector::ended).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Outcome {
    /// How long the try took, with the wait for a connection that was being made.
    pub latency: Duration,
    /// How it ended.
    pub kind: OutcomeKind,
}

impl Outcome {
    /// An outcome, for tests of a selector.
    pub fn new(latency: Duration, kind: OutcomeKind) -> Self {
        Self { latency, kind }
    }
}

/// How one try ended.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum OutcomeKind {
    /// The server returned a value.
    Ok,
    /// The server ran the handler, and returned an error of the application's, or that the arguments could not be decoded.
    /// A plain server says no more, so that each of its errors is one of these.
    Error,
    /// The server could not do it: its handler panicked, or it has no such method.
    Failed,
    /// A oneway message was queued. Its latency is the wait for room, and says nothing of the handler.
    Queued,
    /// The server refused the call: it is overloaded, shuts down, or does not accept the token.
    Refused,
    /// No server could have taken the call: it is too large, or uses a reserved name. Nothing was sent.
    Invalid,
    /// Nothing was sent: no connection, or the queue to this server is full.
    NotSent,
    /// The connection ended with the call under way.
    Lost,
    /// The deadline passed.
    TimedOut,
    /// The caller dropped the call, or the other try of a [`Failbackup`](super::FailMode::Failbackup) was first.
    Cancelled,
}

impl OutcomeKind {
    pub(super) fn of_call(reply: &Result<RawReply, CallError>) -> Self {
        let Err(error) = reply else { return Self::Ok };
        match error {
            CallError::Remote {
                code: Some(ErrorCode::Overloaded | ErrorCode::ShuttingDown | ErrorCode::Unauthenticated),
                ..
            } => Self::Refused,
            CallError::Remote { code: Some(ErrorCode::Internal | ErrorCode::NotFound), .. } => Self::Failed,
            CallError::Remote { .. } | CallError::Decode(_) => Self::Error,
            // Zero was over before anything was sent.
            CallError::TimedOut(limit) if limit.is_zero() => Self::NotSent,
            CallError::TimedOut(_) => Self::TimedOut,
            CallError::Closed { written: true, .. } => Self::Lost,
            CallError::ReservedMetadata(_) | CallError::TooLarge(_) | CallError::Encode(_) => Self::Invalid,
            _ => Self::NotSent,
        }
    }

    pub(super) fn of_push(queued: &Result<(), PushError>) -> Self {
        match queued {
            Ok(()) => Self::Queued,
            Err(PushError::ReservedMetadata(_) | PushError::TooLarge(_) | PushError::Encode(_)) => Self::Invalid,
            Err(_) => Self::NotSent,
        }
    }
}

/// A try under way. The selector is told of its end once: also when it is dropped.
pub(super) struct Attempt<'a>(Option<Begun<'a>>);

struct Begun<'a> {
    servers: &'a Servers,
    entry: ServerEntry,
    began: Instant,
}

impl<'a> Attempt<'a> {
    /// A try of which no selector wants to know.
    pub(super) const UNSEEN: Self = Self(None);

    pub(super) fn begin(servers: &'a Servers, entry: ServerEntry) -> Self {
        servers.tell_selector(|selector| selector.begun(&entry));
        Self(Some(Begun { servers, entry, began: Instant::now() }))
    }

    pub(super) fn end(mut self, kind: OutcomeKind) {
        self.tell(kind);
    }

    fn tell(&mut self, kind: OutcomeKind) {
        let Some(Begun { servers, entry, began }) = self.0.take() else { return };
        let outcome = Outcome { latency: began.elapsed(), kind };
        servers.tell_selector(|selector| selector.ended(&entry, &outcome));
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.tell(OutcomeKind::Cancelled);
    }
}
