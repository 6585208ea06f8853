//! Calls to sessions of other nodes: where a user's sessions are, and a handle for a session that may be anywhere.

use std::{cmp::Reverse, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};

use super::{
    NodeId, Push, Registry, SendError, Session, SessionId, Target, UnreachedWhy,
    call::CALL_TIMEOUT,
    carried_call::{Callable, CarriedCall, FindAsked, FindOf, Missed, Seen},
    push,
    user::{Candidate, is_device},
};
use crate::{
    caller::{Caller, RawCall, RawReply},
    connection::after,
    error::{CallError, PushError},
};

/// How long nodes are asked where sessions are.
const FIND_MAX: Duration = Duration::from_secs(1);
/// How often a call follows a session that moves.
const MOVES_MAX: usize = 3;

impl Registry {
    /// What this node has of what is looked for, `max` at most. The flag: it has more.
    pub(crate) fn seen(&self, asked: &FindAsked, max: usize) -> (Vec<Seen>, bool) {
        let (target, device) = match &asked.of {
            FindOf::User(name, device) => (Target::user(&**name), device.as_deref()),
            FindOf::Session(id) => (Target::session(*id), None),
        };
        let mut sessions = self.find(&target).unwrap_or_default();
        sessions.retain(|session| device.is_none_or(|device| is_device(session, device)));
        let is_cut = max < sessions.len();
        sessions.truncate(max);
        (sessions.iter().map(|session| see(session, asked)).collect(), is_cut)
    }
}

fn see(session: &Session, asked: &FindAsked) -> Seen {
    let connection = session.connection();
    let since = match &connection {
        Some(connection) => connection.began(),
        None => session.lock().away_since().unwrap_or_else(Instant::now),
    };
    Seen {
        session: session.id(),
        handles: session.handles(&asked.path, &asked.method),
        takes_calls: session.takes_calls(),
        is_being_let_in: connection.as_ref().is_some_and(|connection| connection.is_being_let_in()),
        is_connected: connection.is_some(),
        age_us: u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX),
    }
}

/// One of a user's sessions, at any node.
pub(super) struct SeenAt {
    pub(super) session: SessionAnywhere,
    seen: Seen,
}

impl Candidate for SeenAt {
    type Recency = (bool, Reverse<u64>);

    fn handles(&self, _call: &RawCall<'_>) -> bool {
        self.seen.handles
    }

    fn takes_calls(&self) -> bool {
        self.seen.takes_calls
    }

    fn is_being_let_in(&self) -> bool {
        self.seen.is_being_let_in
    }

    /// The clocks of two nodes have nothing to do with each other, but ages can be compared.
    fn recency(&self) -> Self::Recency {
        (self.seen.is_connected, Reverse(self.seen.age_us))
    }
}

/// A session at any node of the cluster, to call or push to: [`Server::session_anywhere`](crate::Server::session_anywhere).
///
/// It is a [`Caller`], so a generated stub works over it. The node that has the session runs the call as it runs one of
/// its own, within the time that is left, and gives it up when the future is dropped here or when this node's lease ends.
/// A call without a time limit has 30 s.
///
/// ```no_run
/// # async fn example(server: bothways::Server, id: bothways::session::SessionId) -> Result<(), bothways::CallError> {
/// use bothways::{CallOptions, Caller};
///
/// let client = server.session_anywhere(id);
/// let yes: bool = client.call_typed("Customer", "Confirm", &"Pay 5?".to_owned(), CallOptions::new()).await?.value;
/// # Ok(()) }
/// ```
pub struct SessionAnywhere {
    registry: Arc<Registry>,
    id: SessionId,
    /// Which node had it last.
    node: Mutex<Option<NodeId>>,
}

impl Clone for SessionAnywhere {
    fn clone(&self) -> Self {
        Self { registry: Arc::clone(&self.registry), id: self.id, node: Mutex::new(*self.node.lock()) }
    }
}

impl std::fmt::Debug for SessionAnywhere {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionAnywhere").field("id", &self.id).finish_non_exhaustive()
    }
}

impl SessionAnywhere {
    pub(crate) fn new(registry: Arc<Registry>, id: SessionId) -> Self {
        Self { registry, id, node: Mutex::new(None) }
    }

    /// Its number.
    pub fn id(&self) -> SessionId {
        self.id
    }

    fn no_client(&self, silent: &[(NodeId, UnreachedWhy)]) -> CallError {
        CallError::NoClient(match silent.first() {
            None => format!("there is no session {}", self.id),
            Some((node, why)) => format!("no node that has answered has session {}; of node {node}: {why}", self.id),
        })
    }

    /// The node that has it, other than this one.
    async fn locate(&self, call: &RawCall<'_>, deadline: Instant) -> Result<NodeId, CallError> {
        if let Some(node) = *self.node.lock() {
            return Ok(node);
        }
        let Some(beyond) = self.registry.callable() else { return Err(self.no_client(&[])) };
        let everywhere = beyond.find(asked(FindOf::Session(self.id), call), within(deadline)).await;
        match everywhere.found.first() {
            Some((node, _)) => {
                *self.node.lock() = Some(*node);
                Ok(*node)
            }
            None => Err(self.no_client(&everywhere.silent)),
        }
    }

    /// Calls it where it is, and follows it if it moves: the client runs what is sent under one id once.
    async fn call_until(&self, call: RawCall<'_>, id: u64, deadline: Instant) -> Result<RawReply, CallError> {
        let mut cut = None::<CallError>;
        for _ in 0..MOVES_MAX {
            if let Some(session) = self.registry.session(self.id) {
                let mut here = call.clone();
                here.options.timeout = Some(deadline.saturating_duration_since(Instant::now()));
                match session.call_under(id, here).await {
                    Err(error) if self.registry.session(self.id).is_none() && may_have_moved(&error) => {
                        cut = error.may_have_run().then_some(error).or(cut);
                        *self.node.lock() = None;
                    }
                    outcome => return outcome.map_err(|error| error.after_tries(cut)),
                }
            }

            let node = match self.locate(&call, deadline).await {
                Ok(node) => node,
                Err(error) => return Err(error.after_tries(cut)),
            };
            let Some(beyond) = self.registry.callable() else { return Err(self.no_client(&[]).after_tries(cut)) };
            let left = deadline.saturating_duration_since(Instant::now());
            match beyond.call(node, CarriedCall::of(self.id, id, &call, left), deadline).await {
                Ok(reply) => return Ok(reply),
                // It has moved, or ended: somebody knows.
                Err(Missed::NotThere) => *self.node.lock() = None,
                Err(Missed::Failed(error)) => {
                    *self.node.lock() = None;
                    if !may_have_moved(&error) || left.is_zero() {
                        return Err(error.after_tries(cut));
                    }
                    let elsewhere = self.locate(&call, deadline).await;
                    if elsewhere.is_err() || elsewhere.is_ok_and(|now| now == node) {
                        return Err(error.after_tries(cut));
                    }
                    cut = error.may_have_run().then_some(error).or(cut);
                }
            }
        }
        Err(CallError::NoClient(format!("session {} moves from node to node", self.id)).after_tries(cut))
    }
}

/// True of what a call ends with if its session leaves its node.
fn may_have_moved(error: &CallError) -> bool {
    matches!(error, CallError::NoClient(_) | CallError::Closed { .. })
}

fn asked(of: FindOf, call: &RawCall<'_>) -> FindAsked {
    FindAsked { of, path: call.service_path.to_owned(), method: call.service_method.to_owned() }
}

fn within(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).min(FIND_MAX)
}

impl Caller for SessionAnywhere {
    /// Calls the client, at whichever node its session is.
    ///
    /// Dropping the future gives the call up there too, as far as there is mail between the nodes; without mail the call
    /// ends at the latest with its time.
    ///
    /// # Errors
    /// As of a call to a [`Session`], and
    /// - [`CallError::NoClient`]: no node has the session, or its node cannot be reached. Nothing was sent.
    /// - [`CallError::Closed`]: the node was lost under the call; `written` says whether it may have run.
    /// - [`CallError::TooManyCalls`] and [`CallError::QueueFull`]: the bounds of
    ///   [`Cluster::calls_pending_max`](crate::cluster::Cluster::calls_pending_max) and
    ///   [`Cluster::call_bytes_max`](crate::cluster::Cluster::call_bytes_max). Nothing was sent.
    /// - [`CallError::Remote`] as [`Overloaded`](crate::ErrorCode::Overloaded): the same bounds at that node.
    async fn call_raw(&self, call: RawCall<'_>) -> Result<RawReply, CallError> {
        call.check_for_client()?;
        let timeout = call.options.timeout.unwrap_or(CALL_TIMEOUT);
        if timeout.is_zero() {
            return Err(CallError::TimedOut(timeout));
        }
        let deadline = after(timeout);
        match timeout_at(deadline, self.call_until(call, rand::random(), deadline)).await {
            Ok(Err(CallError::TimedOut(left))) if !left.is_zero() => Err(CallError::TimedOut(timeout)),
            Ok(outcome) => outcome,
            Err(_) => Err(CallError::TimedOut(timeout)),
        }
    }

    /// Pushes to the session, and never waits.
    async fn push_raw(&self, push: RawCall<'_>) -> Result<(), PushError> {
        push.check_for_client()?;
        push_to(&self.registry, &Target::session(self.id), &Push::from_raw(push))
    }
}

/// Pushes to all that a target names, at all nodes. An error if it is known already that nobody gets it.
pub(super) fn push_to(registry: &Registry, target: &Target, push: &Push) -> Result<(), PushError> {
    let receipt = registry.receipt_of(push);
    registry.push(target, push, &receipt).map_err(|error| match error {
        SendError::Push(error) => error,
        other => PushError::NoClient(other.to_string()),
    })?;
    if receipt.routing() != 0 {
        return Ok(());
    }
    if let (0, Some(missed)) = (receipt.outcomes().targets(), receipt.unreached().first()) {
        let why = format!("no node that was reached has such a session; node {} was not: {}", missed.node, missed.why);
        return Err(PushError::NoClient(why));
    }
    let waiting = || {
        let sessions = registry.find(target).unwrap_or_default();
        sessions.iter().map(Session::waiting).max().unwrap_or_default()
    };
    push::accepted(&receipt, waiting)
}

/// The sessions of a user at all nodes, and the nodes of which it is not known.
pub(super) async fn sessions_of(
    registry: &Arc<Registry>,
    beyond: Arc<dyn Callable>,
    of: FindOf,
    call: &RawCall<'_>,
) -> (Vec<SeenAt>, Vec<(NodeId, UnreachedWhy)>) {
    let deadline = after(call.options.timeout.unwrap_or(CALL_TIMEOUT));
    let everywhere = beyond.find(asked(of, call), within(deadline)).await;
    let at = |(node, seen): (NodeId, Seen)| SeenAt {
        session: SessionAnywhere { registry: Arc::clone(registry), id: seen.session, node: Mutex::new(Some(node)) },
        seen,
    };
    (everywhere.found.into_iter().map(at).collect(), everywhere.silent)
}
