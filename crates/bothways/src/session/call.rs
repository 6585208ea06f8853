//! Calls to a session's client, which may lose its connection during the call and come back.

use std::time::Duration;

use bothways_proto::keys;
use tokio::time::Instant;

use super::{Push, Session, explain::CallEvent, given_up, push};
use crate::{
    caller::{Caller, RawCall, RawReply},
    connection::after,
    error::{CallError, PushError},
};

/// How long a call to a session or a user takes at most if it names no time of its own.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// How far one call has come, over all its connections. Dropped before its end, the call is given up.
struct Progress<'a> {
    session: &'a Session,
    id: u64,
    deadline: Instant,
    /// It was sent, once at least.
    was_out: bool,
    /// It is out now, on a connection that lives.
    is_out: bool,
    /// Its caller has its outcome.
    is_over: bool,
    /// A connection ended under it after it may have been sent.
    cut: Option<CallError>,
}

impl<'a> Progress<'a> {
    fn new(session: &'a Session, id: u64, deadline: Instant) -> Self {
        Self { session, id, deadline, was_out: false, is_out: false, is_over: false, cut: None }
    }

    /// What the error of the last attempt means for the call: that nothing ran is true only of all of them.
    fn judge(&self, error: CallError) -> CallError {
        error.after_tries(self.cut.clone())
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        if self.was_out && !self.is_over {
            self.session.give_up_call(self.id, self.deadline, self.is_out);
        }
    }
}

impl Session {
    /// Sends the call on each connection that the session has, until one brings an end.
    async fn attempt(
        &self,
        call: RawCall<'_>,
        deadline: Instant,
        progress: &mut Progress<'_>,
        event_log: &CallEvent<'_>,
    ) -> Result<RawReply, CallError> {
        loop {
            // It may have made way for an earlier session of its client since the last attempt.
            let session = &self.current();
            if !session.handles(call.service_path, call.service_method) {
                return Err(CallError::NotSupported);
            }
            let Some(connection) = session.connected().await else {
                return Err(CallError::NoClient(format!("session {} has ended", self.id())));
            };

            if connection.has_refused_token() {
                // It is asked on the next one, as if it were away.
                session.left(&connection).await;
                continue;
            }

            let mut attempt = call.clone();
            attempt.options.timeout = Some(deadline.saturating_duration_since(Instant::now()));
            event_log.sent();
            (progress.was_out, progress.is_out) = (true, true);
            let outcome = connection.call_raw(attempt).await;
            progress.is_out = false;

            match outcome {
                Err(error @ CallError::Closed { .. }) => {
                    if !error.is_safe_to_retry() {
                        progress.cut = Some(error.clone());
                    }
                    if !session.is_resumable() {
                        return Err(error);
                    }
                }
                outcome => return outcome,
            }
            session.left(&connection).await;
        }
    }

    /// See [`Caller::call_raw`]. The client runs what comes under one id once.
    pub(crate) async fn call_under(&self, id: u64, mut call: RawCall<'_>) -> Result<RawReply, CallError> {
        call.check_for_client()?;
        // The hook of a Hello may have been given a session that made way for an earlier one of its client.
        let session = &self.current();
        let timeout = call.options.timeout.unwrap_or(CALL_TIMEOUT);
        let deadline = after(timeout);
        call.options.is_own = true;

        let event_log = session.inner.event_log.call(call.service_path, call.service_method);
        let mut progress = Progress::new(session, id, deadline);
        call.options.metadata.insert(keys::CALL_ID, given_up::text(progress.id));
        let attempt = session.attempt(call, deadline, &mut progress, &event_log);
        let outcome = match session.within(deadline, attempt).await {
            // Zero says that nothing was sent, of which this is the last try.
            Ok(Err(CallError::TimedOut(left))) if !left.is_zero() || progress.cut.is_some() => {
                Err(CallError::TimedOut(timeout))
            }
            Ok(outcome) => outcome.map_err(|error| progress.judge(error)),
            Err(_) if !progress.is_out && progress.cut.is_none() => {
                Err(CallError::NoClient(format!("the client of session {} was away for {timeout:?}", session.id())))
            }
            Err(_) => Err(CallError::TimedOut(timeout)),
        };

        progress.is_over = true;
        event_log.ended(&outcome);
        outcome
    }

    /// The caller of a call that was sent waits no more. Its client is told, now and whenever it comes back while the
    /// call has time. `is_told`: a Cancel is on its way already, and may be lost with its connection.
    fn give_up_call(&self, id: u64, until: Instant, is_told: bool) {
        let session = self.current();
        let connection = {
            let mut state = session.lock();
            if !state.give_up_call(id, until) {
                return;
            }
            state.connection().cloned()
        };
        if let Some(connection) = connection.filter(|_| !is_told) {
            connection.cancel_call(&given_up::text(id));
        }
    }
}

impl Caller for Session {
    /// Calls the client. If its connection is lost and it comes back before the deadline, the same call is sent again
    /// under the same id, and the client runs it once. A call without a time limit has 30 s.
    ///
    /// Dropping the future gives the call up, and tells the client, which drops the handler; a client that is away is
    /// told when it is back, if the call has time left by then.
    ///
    /// # Errors
    /// Any [`CallError`]. In particular:
    /// - [`CallError::NotSupported`]: the client speaks plain rpcx, or has announced its methods without this one. For
    ///   a client that is away, its last announcement counts. Nothing was sent.
    /// - [`CallError::NoClient`]: the session ended, or its client stayed away until the deadline. Nothing was sent.
    /// - [`CallError::Closed`]: the session ended under the call; `written` says whether it may have run.
    /// - [`CallError::Remote`] as [`Overloaded`](crate::ErrorCode::Overloaded): the client already runs as many calls
    ///   as it may, and did not run this one.
    async fn call_raw(&self, call: RawCall<'_>) -> Result<RawReply, CallError> {
        self.call_under(rand::random(), call).await
    }

    async fn push_raw(&self, push: RawCall<'_>) -> Result<(), PushError> {
        let wait = push.options.timeout.unwrap_or_default();
        let receipt = self.push_within(wait, &Push::from_raw(push)).await?;
        push::accepted(&receipt, || self.waiting())
    }
}
