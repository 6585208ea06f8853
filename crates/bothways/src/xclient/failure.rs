//! What happens when a try fails.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};

use super::{
    XClient,
    servers::{NoPick, Pick, Preference, Slot},
};
use crate::{
    caller::{RawCall, RawReply},
    connection::CallTime,
    error::{CallError, ConnectError, ErrorCode, PushError},
};

/// What happens when a try fails. The names are rpcx's; [the module](super#fail-modes) has a table.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum FailMode {
    /// Try again with another server, up to `retries` times.
    #[default]
    Failover,
    /// Return the error.
    Failfast,
    /// Try again with the same server, up to `retries` times.
    Failtry,
    /// Ask a second server if the first one has not answered within `backup_latency`; the first success
    /// counts.
    Failbackup,
}

/// Where a further try would go.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Again {
    Here,
    Elsewhere,
}

impl XClient {
    pub(super) async fn call_by_fail_mode(&self, call: &RawCall<'_>) -> Result<RawReply, CallError> {
        let options = self.shared.servers.options();
        let timeout = call.options.timeout.or(options.client.default_timeout());
        let time = timeout.and_then(CallTime::new);
        let reply = match self.fail_mode {
            FailMode::Failfast => self.failfast(call, time).await,
            FailMode::Failtry => self.failtry(call, time).await,
            FailMode::Failover => self.failover(call, time).await,
            FailMode::Failbackup => self.failbackup(call, time).await,
        };
        reply.map_err(|error| match (error, timeout) {
            // The time of the call, and not what was left of it for the last try.
            (CallError::TimedOut(_), Some(timeout)) => CallError::TimedOut(timeout),
            (error, _) => error,
        })
    }

    /// Sends to one server. Nothing was queued by a try that failed, so that another one is always safe:
    /// all modes but `Failfast` make it.
    pub(super) async fn push_by_fail_mode(&self, push: &RawCall<'_>) -> Result<(), PushError> {
        let options = self.shared.servers.options();
        let retries = match self.fail_mode {
            FailMode::Failfast => 0,
            _ => options.retries,
        };
        let mut tried = Vec::new();
        let mut pick = self.pick(push, &tried)?;
        for left in (0..=retries).rev() {
            let error = match pick.client.try_push(push).await {
                Ok(()) => return Ok(()),
                Err(error @ (PushError::Closed(_) | PushError::NotConnected(_))) if 0 < left => error,
                Err(error) => return Err(error),
            };
            self.shared.servers.unstick(&pick.slot);
            sleep(options.retry_interval).await;
            pick = match self.fail_mode {
                FailMode::Failtry => match self.shared.servers.client_again(&pick.slot) {
                    Some(client) => Pick { client, ..pick },
                    None => return Err(error),
                },
                _ => {
                    tried.push(pick.slot);
                    self.pick(push, &tried)?
                }
            };
        }
        unreachable!("the last try returns")
    }

    async fn failfast(&self, call: &RawCall<'_>, time: Option<CallTime>) -> Result<RawReply, CallError> {
        let Pick { slot, client } = self.pick(call, &[])?;
        let reply = client.try_call(call, time).await;
        self.note_outcome(&slot, &reply);
        reply
    }

    async fn failtry(&self, call: &RawCall<'_>, mut time: Option<CallTime>) -> Result<RawReply, CallError> {
        let Pick { slot, mut client } = self.pick(call, &[])?;
        for _ in 0..self.shared.servers.options().retries {
            let error = match client.try_call(call, time).await {
                Err(error) if self.may_try_again(&error, Again::Here) => error,
                reply => return reply,
            };
            if !self.pause_before_retry(time).await {
                return Err(error);
            }
            time = time.map(CallTime::rest);
            if client.is_ended() {
                match self.shared.servers.client_again(&slot) {
                    Some(again) => client = again,
                    None => return Err(error),
                }
            }
        }
        let reply = client.try_call(call, time).await;
        self.note_outcome(&slot, &reply);
        reply
    }

    async fn failover(&self, call: &RawCall<'_>, mut time: Option<CallTime>) -> Result<RawReply, CallError> {
        let mut pick = self.pick(call, &[])?;
        let mut tried = Vec::new();
        for _ in 0..self.shared.servers.options().retries {
            let reply = pick.client.try_call(call, time).await;
            self.note_outcome(&pick.slot, &reply);
            let error = match reply {
                Err(error) if self.may_try_again(&error, Again::Elsewhere) => error,
                reply => return reply,
            };
            if !self.pause_before_retry(time).await {
                return Err(error);
            }
            time = time.map(CallTime::rest);
            tried.push(pick.slot);
            pick = match self.pick(call, &tried) {
                Ok(pick) => pick,
                // The list is empty by now: that is not what this call failed of.
                Err(NoPick::NoServer(_)) => return Err(error),
                Err(closed) => return Err(closed.into()),
            };
        }
        let reply = pick.client.try_call(call, time).await;
        self.note_outcome(&pick.slot, &reply);
        reply
    }

    async fn failbackup(&self, call: &RawCall<'_>, time: Option<CallTime>) -> Result<RawReply, CallError> {
        let Pick { slot, client } = self.pick(call, &[])?;
        let first = async {
            let reply = client.try_call(call, time).await;
            self.note_outcome(&slot, &reply);
            reply
        };
        tokio::pin!(first);
        let early = tokio::select! {
            biased;
            reply = &mut first => Some(reply),
            () = sleep(self.shared.servers.options().backup_latency) => None,
        };
        let failed = match early {
            None => None,
            // It failed before the backup was due, and another server may do better: it is due now.
            Some(Err(error)) if self.may_try_again(&error, Again::Elsewhere) => Some(error),
            Some(reply) => return reply,
        };
        let Some(backup) = self.pick_other(call, &slot) else {
            return match failed {
                Some(error) => Err(error),
                None => first.await,
            };
        };
        let second = backup.client.try_call(call, time.map(CallTime::rest));
        if failed.is_some() {
            return second.await;
        }
        tokio::pin!(second);
        // The first success counts. What is still under way then is dropped, which takes it back.
        tokio::select! {
            reply = &mut first => match reply {
                Ok(reply) => Ok(reply),
                Err(_) => second.await,
            },
            reply = &mut second => match reply {
                Ok(reply) => Ok(reply),
                Err(_) => first.await,
            },
        }
    }

    /// Chooses for the next try of a call: servers that are known to be down only if no others are left,
    /// in the modes in which any server will do.
    fn pick(&self, call: &RawCall<'_>, tried: &[Arc<Slot>]) -> Result<Pick, NoPick> {
        let up = matches!(self.fail_mode, FailMode::Failover | FailMode::Failbackup);
        self.shared.servers.pick(call, Preference { not_tried: tried, up, sticky: true })
    }

    /// Chooses a server beside `first`, if there is one.
    fn pick_other(&self, call: &RawCall<'_>, first: &Arc<Slot>) -> Option<Pick> {
        let tried = std::slice::from_ref(first);
        if !self.shared.servers.has_others(tried) {
            return None;
        }
        let backup = self.shared.servers.pick(call, Preference { not_tried: tried, up: true, sticky: false });
        backup.ok().filter(|backup| !Arc::ptr_eq(&backup.slot, first))
    }

    /// False if no time is left for another try.
    async fn pause_before_retry(&self, time: Option<CallTime>) -> bool {
        let interval = self.shared.servers.options().retry_interval;
        let until = Instant::now() + interval;
        if time.is_some_and(|time| time.end <= until) {
            return false;
        }
        if interval != Duration::ZERO {
            sleep_until(until).await;
        }
        true
    }

    /// Calls do not stay with a server whose connection failed.
    fn note_outcome(&self, slot: &Arc<Slot>, reply: &Result<RawReply, CallError>) {
        if reply.as_ref().is_err_and(CallError::is_connection_failure) {
            self.shared.servers.unstick(slot);
        }
    }

    /// True if another try may help, and does no harm beyond what the fail mode is for.
    fn may_try_again(&self, error: &CallError, again: Again) -> bool {
        let elsewhere = again == Again::Elsewhere;
        match error {
            CallError::Closed { written, .. } => !written || self.shared.servers.options().retry_maybe_executed,
            CallError::NotConnected(ConnectError::Closed) => false,
            // The same server would say the same again.
            CallError::NotConnected(ConnectError::Address(_) | ConnectError::Refused { .. }) => elsewhere,
            CallError::NotConnected(_) => true,
            CallError::TooManyCalls { .. } => elsewhere,
            CallError::Remote { code: Some(ErrorCode::Overloaded), .. } => elsewhere,
            CallError::Remote { code: Some(ErrorCode::ShuttingDown), .. } => true,
            // What a server answered is an answer; a deadline is the caller's.
            _ => false,
        }
    }
}

impl From<NoPick> for CallError {
    fn from(none: NoPick) -> Self {
        match none {
            NoPick::Closed => Self::NotConnected(ConnectError::Closed),
            NoPick::NoServer(why) => Self::NoServer(why),
        }
    }
}

impl From<NoPick> for PushError {
    fn from(none: NoPick) -> Self {
        match none {
            NoPick::Closed => Self::NotConnected(ConnectError::Closed),
            NoPick::NoServer(why) => Self::NoServer(why),
        }
    }
}
