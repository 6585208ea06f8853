//! Calls to a user, who may have several sessions: a phone, a desk, a watch.

use std::{future::Future, pin::Pin, sync::Arc};

use tokio::time::Instant;

use super::{Push, Registry, Session, Target, call::CALL_TIMEOUT, push, side_by_side::SideBySide};
#[cfg(feature = "cluster")]
use super::{
    anywhere,
    carried_call::{Callable, FindOf},
};
#[cfg(feature = "cluster")]
use crate::connection::after;
use crate::{
    caller::{CallOptions, Caller, RawCall, RawReply, Response},
    codec::Payload,
    connection::ConnectionId,
    error::{CallError, PushError},
};

/// The label that names a device: [`CallPolicy::Device`] looks for it. The application sets it, by
/// [`Session::set_label`](super::Session::set_label); the framework does not.
pub const DEVICE_LABEL: &str = "device";

/// Which sessions of a user a call goes to, and when the call is done.
///
/// Sessions of plain rpcx clients cannot be called and are left out; so are sessions whose clients have announced their
/// methods without this one. A session whose client is away gets the call if the client comes back before the deadline.
///
/// In a cluster these are the sessions of all nodes, which are asked for up to one second. A node that does not answer is
/// left out; of [`Self::All`] without a quorum, and of a user of whom no session was found, the call fails for that
/// reason, with nothing sent.
///
/// ```
/// use bothways::{Server, session::CallPolicy};
///
/// let server = Server::builder().build();
/// let newest_device = server.user("ann").policy(CallPolicy::MostRecent);
/// let every_device = server.user("ann").policy(CallPolicy::All { quorum: 0 });
/// let phone = server.user("ann").policy(CallPolicy::Device("phone".to_owned()));
/// ```
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum CallPolicy {
    /// All of them. The first success is the reply, and the others are cancelled. If none succeeds, the error is one that a
    /// handler returned, if there is one.
    #[default]
    First,
    /// The one whose client connected last; one that is connected before one that is away.
    MostRecent,
    /// All of them; done when `quorum` have succeeded, with the reply of the first of these. Those that are
    /// not done then are cancelled. 0 means every one.
    ///
    /// The error is [`CallError::NoQuorum`] as soon as too few can succeed. If there are fewer sessions than
    /// that, nothing is sent.
    All {
        /// How many must succeed.
        quorum: usize,
    },
    /// The one whose label [`DEVICE_LABEL`] has this value, or whose number in text form this is; of several,
    /// as [`Self::MostRecent`].
    ///
    /// This is not the name that a client gives by [`ClientOptions::device`](crate::ClientOptions::device): that one is for
    /// its place in the mailbox of durable pushes, and sets no label.
    Device(String),
}

/// A user to call or push to: [`Server::user`](crate::Server::user).
///
/// It is a [`Caller`], so a generated stub works over it. The user's sessions are looked up at each call, so it may be kept
/// while sessions come and go. A call without a time limit has 30 s.
///
/// ```no_run
/// # async fn example(server: bothways::Server) -> Result<(), bothways::CallError> {
/// use bothways::{CallOptions, Caller, session::CallPolicy};
///
/// let ann = server.user("ann").policy(CallPolicy::MostRecent);
/// let yes: bool = ann.call_typed("Customer", "Confirm", &"Pay 5?".to_owned(), CallOptions::new()).await?.value;
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use]
pub struct User {
    registry: Arc<Registry>,
    name: Arc<str>,
    policy: CallPolicy,
}

impl User {
    pub(crate) fn new(registry: Arc<Registry>, name: &str) -> Self {
        Self { registry, name: name.into(), policy: CallPolicy::default() }
    }

    /// The user's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which sessions a call goes to. Default [`CallPolicy::First`].
    pub fn policy(mut self, policy: CallPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// The user's sessions now, those whose clients are away among them; in a cluster, those of this node.
    pub fn sessions(&self) -> Vec<Session> {
        self.registry.find(&Target::user(&*self.name)).expect("only a topic's name can be wrong")
    }

    /// Calls every [session of this node](Self::sessions), whatever the policy, and returns the outcome of each when all are done, at the latest at the
    /// deadline. For a client that does not accept the call it is [`CallError::NotSupported`].
    ///
    /// Dropping the future cancels all calls.
    ///
    /// # Errors
    /// [`CallError::Encode`] and [`CallError::ReservedMetadata`]: nothing was sent. All others are among the outcomes.
    pub async fn call_all<A: Payload + Sync, R: Payload>(
        &self,
        service_path: &str,
        service_method: &str,
        args: &A,
        options: CallOptions,
    ) -> Result<Vec<(Session, Result<Response<R>, CallError>)>, CallError> {
        let serialize = A::serialize_type(options.serialize.unwrap_or(self.serialize_type()));
        let payload = args.encode(serialize).map_err(CallError::Encode)?;
        let sessions = self.sessions();
        let call = RawCall { service_path, service_method, serialize, payload, options };
        call.check_for_client()?;

        let mut calls = call_each(&sessions, call);
        let mut outcomes: Vec<_> = sessions.iter().map(|_| None).collect();
        while let Some((at, outcome)) = calls.next().await {
            outcomes[at] = Some(outcome.and_then(|reply| {
                let value = R::decode(reply.serialize, reply.payload).map_err(CallError::Decode)?;
                Ok(Response { value, metadata: reply.metadata })
            }));
        }

        // The calls borrow the sessions, which go to the caller.
        drop(calls);
        let outcomes = outcomes.into_iter().map(|outcome| outcome.expect("each call has ended"));
        Ok(sessions.into_iter().zip(outcomes).collect())
    }

    /// The sessions that a call goes to by the policy, of this node.
    fn callees(&self, call: &RawCall<'_>) -> Result<Vec<Session>, CallError> {
        let mut sessions = self.sessions();
        if let CallPolicy::Device(device) = &self.policy {
            sessions.retain(|session| is_device(session, device));
        }
        self.choose(sessions, call)
    }

    /// Those of these sessions that a call goes to by the policy.
    fn choose<C: Candidate>(&self, sessions: Vec<C>, call: &RawCall<'_>) -> Result<Vec<C>, CallError> {
        if sessions.is_empty() {
            return Err(CallError::NoClient(match &self.policy {
                CallPolicy::Device(device) => format!("the user {} has no session on {device}", self.name),
                _ => format!("the user {} has no session", self.name),
            }));
        }

        let (mut callees, others): (Vec<_>, Vec<_>) =
            sessions.into_iter().filter(|session| session.handles(call)).partition(C::takes_calls);
        if callees.is_empty() {
            // A client that is being let in may be about to come back to one of the user's sessions: called only if
            // there is no other, or the same client would be called twice.
            callees = others.into_iter().filter(C::is_being_let_in).collect();
        }

        match &self.policy {
            CallPolicy::MostRecent | CallPolicy::Device(_) => {
                callees = callees.into_iter().max_by_key(C::recency).into_iter().collect();
            }
            CallPolicy::All { quorum } if !callees.is_empty() && callees.len() < *quorum => {
                let (name, there) = (&self.name, callees.len());
                return Err(CallError::NoClient(format!(
                    "{quorum} sessions of the user {name} are wanted, not {there}"
                )));
            }
            CallPolicy::First | CallPolicy::All { .. } => {}
        }

        if callees.is_empty() { Err(CallError::NotSupported) } else { Ok(callees) }
    }

    /// Calls the user's sessions at all nodes.
    #[cfg(feature = "cluster")]
    async fn call_anywhere(&self, beyond: Arc<dyn Callable>, mut call: RawCall<'_>) -> Result<RawReply, CallError> {
        let timeout = call.options.timeout.unwrap_or(CALL_TIMEOUT);
        let deadline = after(timeout);
        let device = match &self.policy {
            CallPolicy::Device(device) => Some(device.clone()),
            _ => None,
        };
        let of = FindOf::User(self.name.to_string(), device);
        let (sessions, silent) = anywhere::sessions_of(&self.registry, beyond, of, &call).await;
        let is_of_all = matches!(self.policy, CallPolicy::All { quorum: 0 });
        let callees = self.choose(sessions, &call);
        if let Some((node, why)) = silent.first()
            && (is_of_all || callees.is_err())
        {
            // That there are none, or not enough, is a guess.
            return Err(CallError::NoClient(format!(
                "node {node} may have a session of the user {}, and has not answered: {why}",
                self.name
            )));
        }

        let callees = callees?;
        call.options.timeout = Some(deadline.saturating_duration_since(Instant::now()));
        let calls = callees.iter().map(|callee| -> BoxFuture<'_> { Box::pin(callee.session.call_raw(call.clone())) });
        match self.gather(SideBySide::new(calls), callees.len()).await {
            Err(CallError::TimedOut(left)) if !left.is_zero() => Err(CallError::TimedOut(timeout)),
            outcome => outcome,
        }
    }

    /// Waits for the outcome by the policy. Calls that are not done when this returns are dropped, and so cancelled.
    async fn gather(&self, mut calls: Calls<'_>, count: usize) -> Result<RawReply, CallError> {
        let quorum = match &self.policy {
            CallPolicy::All { quorum: 0 } => count,
            CallPolicy::All { quorum } => *quorum,
            _ => 1,
        };

        let (mut first, mut answered, mut failed) = (None, 0, None::<CallError>);
        let mut left = count;
        let mut may_have_run = false;
        loop {
            // Once too few are left, those count that are over by then.
            let next = match answered + left < quorum {
                true => calls.next_by_now().await,
                false => calls.next().await,
            };
            let Some((_, outcome)) = next else { break };
            left -= 1;
            may_have_run |= outcome.as_ref().map_or_else(CallError::may_have_run, |_| true);

            match outcome {
                Ok(reply) => {
                    answered += 1;
                    let first = &*first.get_or_insert(reply);
                    if answered == quorum {
                        return Ok(first.clone());
                    }
                }
                Err(error) => match &failed {
                    Some(worse) if weight(&error) <= weight(worse) => {}
                    _ => failed = Some(error),
                },
            }
        }

        let error = failed.expect("without an error each of the callees has answered");
        match &self.policy {
            CallPolicy::All { .. } => {
                // What is still under way may run before it is told not to.
                let may_have_run = may_have_run || 0 < left;
                Err(CallError::NoQuorum { wanted: quorum, answered, error: Box::new(error), may_have_run })
            }
            _ => Err(error),
        }
    }

    /// Pushes to the user's sessions at all nodes.
    #[cfg(feature = "cluster")]
    fn push_anywhere(&self, push: &Push) -> Result<(), PushError> {
        let all = Target::user(&*self.name);
        let CallPolicy::Device(device) = &self.policy else {
            return anywhere::push_to(&self.registry, &all, push);
        };
        // A session may be named by its number, too.
        let mut here = self.sessions();
        here.retain(|session| session.id().to_string() == *device);
        match here.first() {
            Some(session) => anywhere::push_to(&self.registry, &Target::session(session.id()), push),
            None => anywhere::push_to(&self.registry, &all.only_labelled(DEVICE_LABEL, device), push),
        }
    }
}

/// A session that may be called.
pub(super) trait Candidate: Sized {
    /// Orders sessions by when their clients were last there.
    type Recency: Ord;

    /// See [`Session::handles`].
    fn handles(&self, call: &RawCall<'_>) -> bool;
    /// See [`Session::takes_calls`].
    fn takes_calls(&self) -> bool;
    /// Its client may be about to come back to another session.
    fn is_being_let_in(&self) -> bool;
    /// The last one is called by [`CallPolicy::MostRecent`].
    fn recency(&self) -> Self::Recency;
}

impl Candidate for Session {
    type Recency = (Option<ConnectionId>, Option<Instant>);

    fn handles(&self, call: &RawCall<'_>) -> bool {
        Session::handles(self, call.service_path, call.service_method)
    }

    fn takes_calls(&self) -> bool {
        Session::takes_calls(self)
    }

    fn is_being_let_in(&self) -> bool {
        self.connection().is_some_and(|connection| connection.is_being_let_in())
    }

    fn recency(&self) -> Self::Recency {
        Session::recency(self)
    }
}

pub(super) fn is_device(session: &Session, device: &str) -> bool {
    session.label(DEVICE_LABEL).as_deref() == Some(device) || session.id().to_string() == device
}

impl Caller for User {
    /// Calls the user by the policy.
    ///
    /// Dropping the future gives the call up everywhere.
    ///
    /// # Errors
    /// As of a call to a [`Session`], and
    /// - [`CallError::NoClient`]: the user has no session, not this device, or fewer sessions than the quorum.
    /// - [`CallError::NotSupported`]: no client of the user accepts this call.
    /// - [`CallError::NoQuorum`]: too few succeeded.
    ///
    /// In the first two nothing was sent.
    async fn call_raw(&self, call: RawCall<'_>) -> Result<RawReply, CallError> {
        call.check_for_client()?;
        #[cfg(feature = "cluster")]
        if let Some(beyond) = self.registry.callable() {
            return self.call_anywhere(beyond, call).await;
        }
        let callees = self.callees(&call)?;
        self.gather(call_each(&callees, call), callees.len()).await
    }

    /// Pushes to every session of the user, or to the device alone, and never waits.
    async fn push_raw(&self, push: RawCall<'_>) -> Result<(), PushError> {
        push.check_for_client()?;
        #[cfg(feature = "cluster")]
        if self.registry.callable().is_some() {
            return self.push_anywhere(&Push::from_raw(push));
        }
        let mut sessions = self.sessions();
        if let CallPolicy::Device(device) = &self.policy {
            sessions.retain(|session| is_device(session, device));
        }
        if sessions.is_empty() {
            return Err(PushError::NoClient(format!("the user {} has no session to push to", self.name)));
        }
        let push = Push::from_raw(push);
        let receipt = self.registry.receipt_of(&push);
        self.registry.fan_out.push_to(&sessions, &push, &receipt)?;
        push::accepted(&receipt, || sessions.iter().map(Session::waiting).max().unwrap_or_default())
    }
}

/// How much an error says about the call as a whole: an answer more than a failure, and that it may have run more
/// than that it has not.
fn weight(error: &CallError) -> u8 {
    match error {
        CallError::Remote { code: None, .. } => 2,
        error if !error.is_safe_to_retry() => 1,
        _ => 0,
    }
}

/// The same call to several sessions, side by side: each with the place of its session.
type Calls<'a> = SideBySide<'a, Result<RawReply, CallError>>;

fn call_each<'a>(sessions: &'a [Session], mut call: RawCall<'a>) -> Calls<'a> {
    call.options.timeout = call.options.timeout.or(Some(CALL_TIMEOUT));
    SideBySide::new(sessions.iter().map(move |session| -> BoxFuture<'a> { Box::pin(session.call_raw(call.clone())) }))
}

type BoxFuture<'a> = Pin<Box<dyn Future<Output = Result<RawReply, CallError>> + Send + 'a>>;

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User").field("name", &self.name).field("policy", &self.policy).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Of several errors that counts which says most: what a handler answered, then that it may have run.
    #[test]
    fn an_error_has_its_weight() {
        let answered = CallError::Remote { text: "no".into(), code: None, beside: Default::default() };
        let late = CallError::TimedOut(Duration::from_secs(1));
        let unsent = CallError::TimedOut(Duration::ZERO);
        assert_eq!([&answered, &late, &unsent, &CallError::NotSupported].map(weight), [2, 1, 0, 0]);
    }

    #[test]
    fn a_user_has_its_name() {
        let server = crate::Server::builder().build();
        assert_eq!(server.user("ann").name(), "ann");
    }
}
