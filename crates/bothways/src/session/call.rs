//! Calls to a session's client, which may lose its connection meanwhile and come back.

use std::time::Duration;

use bothways_proto::keys;
use tokio::time::Instant;

use super::{Push, Session, explain::CallTrail, push};
use crate::{
    caller::{Caller, RawCall, RawReply},
    connection::after,
    error::{CallError, PushError},
};

/// How long a call to a session or a user takes at most if it names no time of its own.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// How far one call has come, over all its connections.
#[derive(Debug, Default)]
struct Progress {
    /// It is out now, on a connection that lives.
    is_out: bool,
    /// A connection ended under it after it may have been sent.
    cut: Option<CallError>,
}

impl Progress {
    /// What the error of the last attempt means for the call: that nothing ran is true only of all of them.
    fn judge(&self, error: CallError) -> CallError {
        error.after_tries(self.cut.clone())
    }
}

impl Session {
    /// Sends the call on each connection that the session has, until one brings an end.
    async fn attempt(
        &self,
        call: RawCall<'_>,
        deadline: Instant,
        progress: &mut Progress,
        trail: &CallTrail<'_>,
    ) -> Result<RawReply, CallError> {
        loop {
            if !self.handles(call.service_path, call.service_method) {
                return Err(CallError::NotSupported);
            }
            let Some(connection) = self.connected().await else {
                return Err(CallError::NoClient(format!("session {} has ended", self.id())));
            };
            let mut attempt = call.clone();
            attempt.options.timeout = Some(deadline.saturating_duration_since(Instant::now()));
            trail.sent();
            progress.is_out = true;
            let outcome = connection.call_raw(attempt).await;
            progress.is_out = false;
            match outcome {
                Err(error @ CallError::Closed { .. }) => {
                    if !error.is_safe_to_retry() {
                        progress.cut = Some(error.clone());
                    }
                    if !self.is_resumable() {
                        return Err(error);
                    }
                }
                outcome => return outcome,
            }
            self.left(&connection).await;
        }
    }
}

impl Caller for Session {
    /// Calls the client. If its connection is lost and it comes back before the deadline, the same call is
    /// sent again under the same id, and the client runs it once. A call that names no time has 30 s.
    ///
    /// Dropping the future gives the call up, and tells the client, which drops the handler.
    ///
    /// # Errors
    /// Any [`CallError`]. Of note:
    /// - [`CallError::NotSupported`]: the client speaks plain rpcx, or has said which methods it handles, and this is
    ///   none of them; if it is away, by what it said when it was there. Nothing was sent.
    /// - [`CallError::NoClient`]: the session ended, or its client stayed away until the deadline. Nothing was sent.
    /// - [`CallError::Closed`]: the session ended under the call; `written` says whether it may have run.
    /// - [`CallError::Remote`] as [`Overloaded`](crate::ErrorCode::Overloaded): the client runs as many calls as
    ///   it may, and did not run this one.
    async fn call_raw(&self, mut call: RawCall<'_>) -> Result<RawReply, CallError> {
        call.check_reserved()?;
        let timeout = call.options.timeout.unwrap_or(CALL_TIMEOUT);
        let deadline = after(timeout);
        call.options.is_own = true;
        call.options.metadata.insert(keys::CALL_ID, format!("{:016x}", rand::random::<u64>()));
        let trail = self.inner.trail.call(call.service_path, call.service_method);
        let mut progress = Progress::default();
        let attempt = self.attempt(call, deadline, &mut progress, &trail);
        let outcome = match tokio::time::timeout_at(deadline, attempt).await {
            Ok(Err(CallError::TimedOut(_))) => Err(CallError::TimedOut(timeout)),
            Ok(outcome) => outcome.map_err(|error| progress.judge(error)),
            Err(_) if !progress.is_out && progress.cut.is_none() => {
                Err(CallError::NoClient(format!("the client of session {} was away for {timeout:?}", self.id())))
            }
            Err(_) => Err(CallError::TimedOut(timeout)),
        };
        trail.ended(&outcome);
        outcome
    }

    async fn push_raw(&self, push: RawCall<'_>) -> Result<(), PushError> {
        let wait = push.options.timeout.unwrap_or_default();
        let receipt = self.push_within(wait, &Push::from_raw(push)).await?;
        push::accepted(&receipt, || self.waiting())
    }
}
