//! What happens when a try fails.

use std::{sync::Arc, time::Duration};

use tokio::time::{sleep, sleep_until};

use super::{
    XClient,
    outcome::OutcomeKind,
    servers::{NoPick, Pick, Preference, Slot},
};
use crate::{
    caller::{RawCall, RawReply},
    clock::after,
    connection::CallTime,
    error::{CallError, CloseReason, ConnectError, ErrorCode, PushError},
};

/// What happens when a try fails. The names are rpcx's; [the module](super#fail-modes) has a table.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use bothways::{FailMode, Peer2PeerDiscovery, SelectMode, XClient, XClientOptions};
/// # let server = bothways::Server::builder()
/// #     .function("Bank", "Pay", |sum: i64| async move { Ok::<_, String>(sum) })
/// #     .build();
/// # let listening = server.listen("memu@fail mode").await?;
/// # let servers = Peer2PeerDiscovery::new(listening.address());
///
/// let bank = XClient::new("Bank", FailMode::Failover, SelectMode::RandomSelect, servers, XClientOptions::new());
/// // What must not run twice is tried once.
/// let paid: i64 = bank.with_fail_mode(FailMode::Failfast).call("Pay", &5).await?;
/// # assert_eq!(paid, 5);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum FailMode {
    /// Try again with another server, up to `retries` times. Of servers that are overloaded, within
    /// [`retry_budget`](super::XClientOptions::retry_budget).
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
    #[expect(
        clippy::manual_async_fn,
        reason = "an `async fn` has its arguments twice: as they came, and as they are used"
    )]
    pub(super) fn call_by_fail_mode(
        &self,
        call: &RawCall<'_>,
        mut time: Option<CallTime>,
    ) -> impl Future<Output = Result<RawReply, CallError>> + Send {
        async move {
            if self.shared.servers.awaits_list() {
                Box::pin(self.shared.servers.first_list(time)).await;
                time = time.map(CallTime::rest);
            }
            match self.fail_mode {
                FailMode::Failfast => self.failfast(call, time).await,
                FailMode::Failtry => Box::pin(self.failtry(call, time)).await,
                FailMode::Failover => self.failover(call, time).await,
                // What is larger than all the rest has no room in the future of a call: here two tries at once, and a
                // timer.
                FailMode::Failbackup => Box::pin(self.failbackup(call, time)).await,
            }
        }
    }

    /// Sends to one server. Nothing was queued by a try that failed, so that another one is always safe:
    /// all modes but `Failfast` make it.
    pub(super) async fn push_by_fail_mode(&self, push: &RawCall<'_>) -> Result<(), PushError> {
        let options = self.shared.servers.options();
        let retries = match self.fail_mode {
            FailMode::Failfast => 0,
            _ => options.retries,
        };

        if self.shared.servers.awaits_list() {
            Box::pin(self.shared.servers.first_list(None)).await;
        }

        let mut tried = Vec::new();
        let mut pick = self.pick(push, &tried)?;
        for (again, left) in (0..=retries).rev().enumerate() {
            let error = match self.try_push(&pick, push).await {
                Ok(()) => return Ok(()),
                Err(error @ (PushError::Closed(_) | PushError::NotConnected(_))) if 0 < left => error,
                Err(error) => return Err(error),
            };

            self.shared.servers.unstick(&pick.slot);
            self.pause_before_retry(None, again, &pick.slot).await;
            pick = match self.fail_mode {
                FailMode::Failtry => match self.shared.servers.client_again(&pick.slot) {
                    Some(client) => pick.again(Some(client)),
                    None => return Err(error),
                },
                _ => {
                    tried.push(Arc::clone(&pick.slot));
                    // Without another server, it failed of what this one said.
                    self.pick(push, &tried).map_err(|_| error)?
                }
            };
        }
        unreachable!("the last try returns")
    }

    #[expect(
        clippy::manual_async_fn,
        reason = "an `async fn` has its arguments twice: as they came, and as they are used"
    )]
    fn failfast(
        &self,
        call: &RawCall<'_>,
        time: Option<CallTime>,
    ) -> impl Future<Output = Result<RawReply, CallError>> + Send {
        async move {
            let pick = self.pick(call, &[])?;
            let reply = self.try_call(&pick, call, time).await;
            self.note_outcome(&pick.slot, &reply);
            reply
        }
    }

    /// Makes one try. The selector knows of it from its begin to its end, which may be that it is dropped.
    #[expect(
        clippy::manual_async_fn,
        reason = "an `async fn` has its arguments twice: as they came, and as they are used"
    )]
    fn try_call(
        &self,
        pick: &Pick,
        call: &RawCall<'_>,
        time: Option<CallTime>,
    ) -> impl Future<Output = Result<RawReply, CallError>> + Send {
        async move {
            let attempt = self.shared.servers.begin(pick);
            let reply = pick.client.try_call(call, time, pick.seen.as_ref()).await;
            attempt.end(OutcomeKind::of_call(&reply));
            if reply.is_ok() {
                self.shared.servers.retry_budget().note_success();
            }
            reply
        }
    }

    /// As [`Self::try_call`], of a oneway message.
    async fn try_push(&self, pick: &Pick, push: &RawCall<'_>) -> Result<(), PushError> {
        let attempt = self.shared.servers.begin(pick);
        let queued = pick.client.try_push(push).await;
        attempt.end(OutcomeKind::of_push(&queued));
        queued
    }

    async fn failtry(&self, call: &RawCall<'_>, mut time: Option<CallTime>) -> Result<RawReply, CallError> {
        let mut pick = self.pick(call, &[])?;
        let mut cut = None;
        for again in 0..self.shared.servers.options().retries as usize {
            let reply = self.try_call(&pick, call, time).await;
            // It is tried again here; a call after this one may go elsewhere.
            self.note_outcome(&pick.slot, &reply);
            let error = match reply {
                Err(error) if self.may_try_again(&error, Again::Here) => error,
                reply => return reply.map_err(|error| error.after_tries(cut)),
            };

            if !self.pause_before_retry(time, again, &pick.slot).await {
                return Err(error.after_tries(cut));
            }
            time = time.map(CallTime::rest);
            let client = match pick.client.is_ended() {
                false => None,
                true => match self.shared.servers.client_again(&pick.slot) {
                    None => return Err(error.after_tries(cut)),
                    client => client,
                },
            };
            pick = pick.again(client);
            note_cut(&mut cut, error);
        }

        let reply = self.try_call(&pick, call, time).await;
        self.note_outcome(&pick.slot, &reply);
        reply.map_err(|error| error.after_tries(cut))
    }

    #[expect(
        clippy::manual_async_fn,
        reason = "an `async fn` has its arguments twice: as they came, and as they are used"
    )]
    fn failover(
        &self,
        call: &RawCall<'_>,
        time: Option<CallTime>,
    ) -> impl Future<Output = Result<RawReply, CallError>> + Send {
        async move {
            let retries = self.shared.servers.options().retries;
            let pick = self.pick(call, &[])?;
            // What is named here is not kept for the wait.
            let again = {
                let reply = self.try_call(&pick, call, time).await;
                self.note_outcome(&pick.slot, &reply);
                let error = match reply {
                    Err(error) if 0 < retries && self.may_go_elsewhere(&error) => error,
                    reply => return reply,
                };
                Box::pin(self.failover_again(call, time, pick, error))
            };
            again.await
        }
    }

    /// Tries a call that failed so at other servers, as often as it may.
    async fn failover_again(
        &self,
        call: &RawCall<'_>,
        mut time: Option<CallTime>,
        mut pick: Arc<Pick>,
        mut error: CallError,
    ) -> Result<RawReply, CallError> {
        let retries = self.shared.servers.options().retries as usize;
        let (mut tried, mut cut) = (Vec::new(), None);
        for again in 0..retries {
            if !self.pause_before_retry(time, again, &pick.slot).await {
                break;
            }
            time = time.map(CallTime::rest);
            tried.push(Arc::clone(&pick.slot));
            // The list is empty by now, or the client closed: that is not what this call failed of.
            let Ok(next) = self.pick(call, &tried) else { break };
            note_cut(&mut cut, error);
            pick = next;

            let reply = self.try_call(&pick, call, time).await;
            self.note_outcome(&pick.slot, &reply);
            let is_last = again + 1 == retries;
            error = match reply {
                Err(error) if !is_last && self.may_go_elsewhere(&error) => error,
                reply => return reply.map_err(|error| error.after_tries(cut)),
            };
        }
        Err(error.after_tries(cut))
    }

    /// True if a call that failed so may be tried at another server, for which the budget has room.
    fn may_go_elsewhere(&self, error: &CallError) -> bool {
        self.may_try_again(error, Again::Elsewhere) && self.has_tries_for(error)
    }

    async fn failbackup(&self, call: &RawCall<'_>, time: Option<CallTime>) -> Result<RawReply, CallError> {
        let pick = self.pick(call, &[])?;
        let slot = &pick.slot;
        let first = async {
            let reply = self.try_call(&pick, call, time).await;
            self.note_outcome(slot, &reply);
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
            Some(Err(error)) if self.may_go_elsewhere(&error) => Some(error),
            Some(reply) => return reply,
        };

        let Some(backup) = self.pick_other(call, slot) else {
            return match failed {
                Some(error) => Err(error),
                None => first.await,
            };
        };

        let second = self.try_call(&backup, call, time.map(CallTime::rest));
        if let Some(failed) = failed {
            return second.await.map_err(|error| error.after_tries(cut_of(failed)));
        }
        tokio::pin!(second);
        // The first success counts. What is still under way then is dropped, which takes it back.
        tokio::select! {
            reply = &mut first => match reply {
                Ok(reply) => Ok(reply),
                Err(failed) => second.await.map_err(|error| error.after_tries(cut_of(failed))),
            },
            reply = &mut second => match reply {
                Ok(reply) => Ok(reply),
                Err(failed) => first.await.map_err(|error| error.after_tries(cut_of(failed))),
            },
        }
    }

    /// Chooses for the next try of a call: servers that are known to be down only if no others are left,
    /// in the modes in which any server will do.
    fn pick(&self, call: &RawCall<'_>, tried: &[Arc<Slot>]) -> Result<Arc<Pick>, NoPick> {
        let up = matches!(self.fail_mode, FailMode::Failover | FailMode::Failbackup);
        self.shared.servers.pick(call, Preference { not_tried: tried, up, sticky: true })
    }

    /// Chooses a server beside `first`, if there is one.
    fn pick_other(&self, call: &RawCall<'_>, first: &Arc<Slot>) -> Option<Arc<Pick>> {
        let tried = std::slice::from_ref(first);
        if !self.shared.servers.has_others(tried) {
            return None;
        }
        let backup = self.shared.servers.pick(call, Preference { not_tried: tried, up: true, sticky: false });
        backup.ok().filter(|backup| !Arc::ptr_eq(&backup.slot, first))
    }

    /// False if no time is left for another try. `again`: how many there were before that one; to the server of this
    /// slot.
    ///
    /// Others have their turn first in any case. Where there is no other server, and no pause was chosen, the tries are
    /// spread over some 70 ms at most: a server that resets connections is not tried again within the same moment.
    async fn pause_before_retry(&self, time: Option<CallTime>, again: usize, slot: &Arc<Slot>) -> bool {
        let chosen = self.shared.servers.options().retry_interval;
        let stays = self.fail_mode == FailMode::Failtry || !self.shared.servers.has_others(std::slice::from_ref(slot));
        let interval = match chosen.is_zero() && stays {
            true => SAME_SERVER_PAUSE.mul_f64(rand::random::<f64>()) * (1 << again.min(2)),
            false => chosen,
        };
        let until = after(interval);
        if time.is_some_and(|time| time.end <= until) {
            return false;
        }
        if interval.is_zero() {
            tokio::task::yield_now().await;
        } else {
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

    /// False if a server refused the call because it is overloaded, and enough calls were tried again for that.
    fn has_tries_for(&self, error: &CallError) -> bool {
        let is_overloaded = matches!(error, CallError::Remote { code: Some(ErrorCode::Overloaded), .. });
        !is_overloaded || self.shared.servers.retry_budget().spend()
    }

    /// True if another try may help, and does no harm beyond what the fail mode is for.
    fn may_try_again(&self, error: &CallError, again: Again) -> bool {
        let elsewhere = again == Again::Elsewhere;

        match error {
            CallError::Closed {
                written: false,
                reason: CloseReason::Unauthenticated(_) | CloseReason::HelloRefused(_),
            } => elsewhere,
            CallError::Closed { written, .. } => !written || self.shared.servers.options().retry_maybe_executed,
            CallError::NotConnected(ConnectError::Closed | ConnectError::Abandoned) => false,
            // The same server would say the same again.
            CallError::NotConnected(
                ConnectError::Address(_) | ConnectError::Refused { .. } | ConnectError::SentAway { .. },
            ) => elsewhere,
            CallError::NotConnected(_) => true,
            CallError::TooManyCalls { .. } | CallError::QueueFull { .. } => elsewhere,
            CallError::Remote { code: Some(ErrorCode::Overloaded), .. } => elsewhere,
            CallError::Remote { code: Some(ErrorCode::ShuttingDown), .. } => true,
            // What a server answered is an answer; a deadline is the caller's.
            _ => false,
        }
    }
}

/// The pause before the first further try at the same server: up to this, at random.
const SAME_SERVER_PAUSE: Duration = Duration::from_millis(10);

/// Of a try that failed, what must not be forgotten.
fn cut_of(failed: CallError) -> Option<CallError> {
    failed.may_have_run().then_some(failed)
}

fn note_cut(cut: &mut Option<CallError>, failed: CallError) {
    *cut = cut_of(failed).or(cut.take());
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

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::{
        caller::CallOptions,
        client::ClientOptions,
        discovery::MultipleServersDiscovery,
        xclient::{SelectMode, XClientOptions},
    };

    /// An XClient of so many servers, and the place of one of them.
    fn with_servers(mode: FailMode, count: usize, options: impl Into<XClientOptions>) -> (XClient, Arc<Slot>) {
        let servers = MultipleServersDiscovery::new((0..count).map(|n| format!("memu@paused-{n}")));
        let xclient = XClient::new("T", mode, SelectMode::RoundRobin, servers, options);
        let call = RawCall {
            service_path: "T",
            service_method: "Echo",
            serialize: crate::SerializeType::RAW,
            payload: bytes::Bytes::new(),
            options: CallOptions::new(),
        };
        let slot = xclient.pick(&call, &[]).map(|pick| Arc::clone(&pick.slot));
        (xclient, slot.unwrap_or_else(|_| panic!("it has servers")))
    }

    /// The same server is not tried again within the same moment, whatever the mode is that leaves no other; tries
    /// are spread at random, up to 10, 20 and then 40 ms.
    #[tokio::test(start_paused = true)]
    async fn the_same_server_is_tried_again_after_a_moment() {
        for (mode, count) in [(FailMode::Failtry, 1), (FailMode::Failtry, 3), (FailMode::Failover, 1)] {
            let (xclient, slot) = with_servers(mode, count, ClientOptions::new());
            let began = Instant::now();
            for again in 0..6 {
                let before = Instant::now();
                assert!(xclient.pause_before_retry(None, again, &slot).await);
                // The clock counts whole milliseconds.
                let most = SAME_SERVER_PAUSE * (1 << again.min(2)) + Duration::from_millis(1);
                assert!(before.elapsed() <= most, "{mode:?}, {again}: {:?}", before.elapsed());
            }
            assert!(!began.elapsed().is_zero(), "{mode:?}");
        }
    }

    /// Where another server is next, or no pause was chosen, others have their turn before each further try.
    #[tokio::test(start_paused = true)]
    async fn each_further_try_yields() {
        let (xclient, slot) = with_servers(FailMode::Failover, 2, ClientOptions::new());
        let began = Instant::now();
        for again in 0..100 {
            let mut pause = std::pin::pin!(xclient.pause_before_retry(None, again, &slot));
            let first = std::future::poll_fn(|cx| std::task::Poll::Ready(pause.as_mut().poll(cx))).await;
            assert!(first.is_pending(), "others have their turn");
            assert!(pause.await);
        }
        assert!(began.elapsed().is_zero());
    }

    /// A pause that is longer than what is left of the call's time is not begun.
    #[tokio::test(start_paused = true)]
    async fn a_pause_has_a_place_in_the_time_of_its_call() {
        for interval in [Duration::from_secs(1), Duration::MAX] {
            let (xclient, slot) = with_servers(FailMode::Failtry, 1, XClientOptions::new().retry_interval(interval));
            let began = Instant::now();
            let time = CallTime::new(Duration::from_millis(999));
            assert!(!xclient.pause_before_retry(time, 0, &slot).await);
            assert!(began.elapsed().is_zero());
        }
    }
}
