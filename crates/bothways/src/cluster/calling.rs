//! Calls to clients of other nodes, at work: sent in the mail of a link, run where the session is, and their outcomes sent
//! back until they are heard.
//!
//! A call ends at its origin with its outcome, or when nothing more will be heard of it: its node is gone, has not
//! answered a batch in time, knows nothing of it, or there is no mail for half a second. What had left this node may have
//! run then; what had not is not sent. A call that its origin has given up is cancelled at its node.

use std::{sync::Arc, time::Duration};

use bothways_proto::EncodeError;
use bytes::Bytes;
use tokio::{
    sync::oneshot,
    task::AbortHandle,
    time::{Instant, timeout_at},
};

use super::{
    ask,
    calls::{CallEnd, CallNumber, CallsHere, CallsOut, NoRoom},
    link::Outgoing,
    mail::{self, Answer, ITEM_BYTES, Item},
    node::{BATCH_OVERHEAD, Node, Queued, State},
    view::ClusterStats,
};
use crate::{
    beside::Beside,
    caller::RawReply,
    error::{CallError, CloseReason, ErrorCode},
    reply::BoxFuture,
    session::{Callable, CarriedCall, CarriedOutcome, FindAsked, FoundEverywhere, Missed, NodeId, UnreachedWhy},
};

/// Most calls that one item asks after.
const DIGEST_CALLS_MAX: usize = 1024;

/// What a node has of calls.
pub(super) struct CallsOfNode {
    out: CallsOut<oneshot::Sender<CallEnd>>,
    here: CallsHere<AbortHandle>,
}

impl CallsOfNode {
    pub(super) fn new() -> Self {
        Self { out: CallsOut::new(), here: CallsHere::new() }
    }

    fn end(&mut self, node: NodeId, call: CallNumber, end: CallEnd) {
        if let Some(tell) = self.out.end(call, node) {
            // Its caller may have gone this moment.
            let _ = tell.send(end);
        }
    }

    /// Puts outcomes into the way to their origin.
    pub(super) fn say(&mut self, origin: NodeId, out: &mut Outgoing<Queued>, most: usize) {
        for (call, outcome) in self.here.say(origin, most) {
            let bytes = outcome.len() + ITEM_BYTES;
            if out.offer(Queued::now(Item::Outcome(call, outcome)), bytes).is_err() {
                self.here.unheard(origin, call);
            }
        }
    }

    /// Asks after the calls that this node runs.
    pub(super) fn ask_digest(&mut self, node: NodeId, out: &mut Outgoing<Queued>) {
        for some in self.out.out_at(node).chunks(DIGEST_CALLS_MAX) {
            // What has no room now is asked for the next time.
            let _ = out.offer(Queued::now(Item::CallsOut(some.to_vec())), some.len() * ITEM_BYTES);
        }
    }

    /// An item about calls was answered by this node.
    pub(super) fn answered(&mut self, node: NodeId, item: Item, answer: Answer) {
        match (item, answer) {
            (Item::Call(call, ..), Answer::Heard) => self.out.taken(call),
            (Item::Call(call, ..), Answer::NotThere) => self.end(node, call, CallEnd::NotThere),
            (Item::Call(call, ..), Answer::Unsupported) => self.end(node, call, CallEnd::Unsupported),
            (Item::Call(call, ..), _) => self.end(node, call, CallEnd::Refused),
            (Item::Outcome(call, _), _) => self.here.heard(node, call),
            (Item::CallsOut(calls), Answer::CallsKnown(known)) => {
                let unknown = calls.into_iter().zip(known).filter(|(_, known)| !known);
                let end = CallEnd::Unreached { why: UnreachedWhy::NodeLost, written: true };
                unknown.for_each(|(call, _)| self.end(node, call, end.clone()));
            }
            _ => {}
        }
    }

    /// An item about calls has not been answered by this node.
    pub(super) fn failed(&mut self, node: NodeId, item: Item, why: UnreachedWhy, maybe: bool) {
        match item {
            Item::Call(call, ..) => self.end(node, call, CallEnd::Unreached { why, written: maybe }),
            Item::Outcome(call, outcome) if why == UnreachedWhy::TooLarge => {
                // It would be too large again.
                let _ = (self.here.cancel(node, call), outcome);
            }
            Item::Outcome(call, _) => self.here.unheard(node, call),
            _ => {}
        }
    }

    /// This node does not answer: what runs there is lost for its callers.
    pub(super) fn lost(&mut self, node: NodeId, why: UnreachedWhy) {
        for call in self.out.out_at(node) {
            self.end(node, call, CallEnd::Unreached { why, written: true });
        }
    }

    /// This node is none any more, and all that was sent to it is lost.
    pub(super) fn lost_all(&mut self, node: NodeId, why: UnreachedWhy) {
        for call in self.out.all_at(node) {
            self.end(node, call, CallEnd::Unreached { why, written: true });
        }
    }

    /// A call of this node's has ended there.
    pub(super) fn told(&mut self, node: NodeId, call: CallNumber, outcome: Bytes) {
        self.end(node, call, CallEnd::Ended(outcome));
    }

    /// The origin has given it up.
    pub(super) fn cancelled(&mut self, origin: NodeId, call: CallNumber) {
        if let Some(run) = self.here.cancel(origin, call) {
            run.abort();
        }
    }

    /// The origin's life is over.
    pub(super) fn end_of(&mut self, origin: NodeId) {
        self.here.lost(origin).iter().for_each(AbortHandle::abort);
    }

    /// This node's life is over: nobody waits for what it runs.
    pub(super) fn end_here(&mut self) {
        self.here.lost_all().iter().for_each(AbortHandle::abort);
    }

    /// Which of its calls run here, or have ended and are not heard of.
    pub(super) fn known(&self, origin: NodeId, calls: &[CallNumber]) -> Vec<bool> {
        self.here.known(origin, calls)
    }

    pub(super) fn is_due(&self, origin: NodeId) -> bool {
        self.here.is_due(origin)
    }

    pub(super) fn has_out(&self, node: NodeId) -> bool {
        self.out.has_out(node)
    }

    pub(super) fn count(&self, stats: &mut ClusterStats) {
        (stats.calls_out, stats.call_bytes_out) = (self.out.len(), self.out.bytes());
        (stats.calls_here, stats.call_bytes_here) = (self.here.len(), self.here.bytes());
    }
}

impl Node {
    /// Runs a call of another node. `None`: it takes no more, or it is none.
    pub(super) fn run_call(
        self: &Arc<Self>,
        origin: NodeId,
        number: CallNumber,
        waited: Duration,
        carried: Bytes,
    ) -> Option<Answer> {
        let sessions = self.sessions.upgrade()?;
        let bytes = carried.len();
        let call = mail::read_call(carried)?.open(waited, sessions.limits())?;
        let Some(session) = sessions.session(call.session) else { return Some(Answer::NotThere) };
        let mut state = self.state.lock();
        if !state.calls.here.has_room(bytes, self.options.calls) {
            return None;
        }
        let node = Arc::downgrade(self);
        // It ends by itself with its time, also if nobody cancels it.
        let run = tokio::spawn(async move {
            let outcome = session.call_under(call.id, call.raw()).await;
            if let Some(node) = node.upgrade() {
                node.call_ended(origin, number, &CarriedOutcome::of(outcome));
            }
        });
        state.calls.here.began(origin, number, bytes, run.abort_handle());
        Some(Answer::Heard)
    }

    /// A call of another node has ended so.
    fn call_ended(&self, origin: NodeId, number: CallNumber, outcome: &CarriedOutcome) {
        let lost = |why: &str| {
            mail::write_outcome(&CarriedOutcome::Closed { written: true, why: format!("its reply is lost: {why}") })
        };
        let mut outcome = mail::write_outcome(outcome);
        if self.batch_bytes_max() < outcome.len() + ITEM_BYTES + BATCH_OVERHEAD {
            outcome = lost("it is larger than the nodes send each other");
        }

        let mut state = self.state.lock();
        let full = || lost("too many bytes of calls wait for other nodes (`call_bytes_max`)");
        if state.calls.here.ended(origin, number, outcome, self.options.calls, full)
            && let Some(link) = state.members.get(&origin)
        {
            link.wake.notify_one();
        }
    }

    /// Queues a call for a node. What it ends with is told once.
    fn begin_call(
        self: &Arc<Self>,
        node: NodeId,
        carried: &CarriedCall,
    ) -> Result<(Giveup, oneshot::Receiver<CallEnd>), Missed> {
        let no_client = |why: String| Missed::Failed(CallError::NoClient(why));
        if !self.engine.mail_state().borrow().is_up() {
            return Err(no_client(UnreachedWhy::EngineDown.to_string()));
        }
        let bytes = mail::write_call(carried);
        let size = bytes.len() + ITEM_BYTES;
        let most = self.batch_bytes_max() - BATCH_OVERHEAD;
        if most < size {
            let too_large = EncodeError::TooLarge { len: size, max: most };
            return Err(Missed::Failed(CallError::TooLarge(too_large)));
        }

        let mut state = self.state.lock();
        let State { members, calls, .. } = &mut *state;
        let Some(link) = members.get_mut(&node) else { return Err(Missed::NotThere) };
        let (tell, told) = oneshot::channel();
        let bounds = self.options.calls;
        let number = calls.out.begin(node, size, bounds, tell).map_err(|full| {
            Missed::Failed(match full {
                NoRoom::Calls => CallError::TooManyCalls { max: bounds.calls },
                NoRoom::Bytes(bytes) => CallError::QueueFull { bytes },
            })
        })?;
        if link.out.offer(Queued::now(Item::Call(number, 0, bytes)), size).is_err() {
            calls.out.end(number, node);
            return Err(no_client(format!("{} {node}", UnreachedWhy::Full)));
        }
        link.wake.notify_one();
        Ok((Giveup { of: Arc::clone(self), node, number }, told))
    }

    async fn call_at(self: Arc<Self>, node: NodeId, call: CarriedCall, deadline: Instant) -> Result<RawReply, Missed> {
        let (_giveup, told) = self.begin_call(node, &call)?;
        let end = match timeout_at(deadline, told).await {
            Ok(Ok(end)) => end,
            Ok(Err(_)) => CallEnd::Unreached { why: UnreachedWhy::Left, written: true },
            // Of the whole call, in the words of its caller.
            Err(_) => return Err(Missed::Failed(CallError::TimedOut(Duration::MAX))),
        };
        let at_node = |why: &dyn std::fmt::Display| format!("node {node}: {why}");
        let error = match end {
            CallEnd::Ended(outcome) => {
                let limits = self.registry().map(|sessions| sessions.limits().clone()).unwrap_or_default();
                let outcome = mail::read_outcome(outcome).and_then(|outcome| outcome.open(&limits));
                let unreadable = || {
                    let reason = CloseReason::Elsewhere(at_node(&"its reply cannot be read"));
                    Err(CallError::Closed { written: true, reason })
                };
                return outcome.unwrap_or_else(unreadable).map_err(Missed::Failed);
            }
            CallEnd::NotThere => return Err(Missed::NotThere),
            CallEnd::Refused => CallError::Remote {
                text: at_node(&"it runs as many calls of other nodes as it takes"),
                code: Some(ErrorCode::Overloaded),
                beside: Beside::default(),
            },
            CallEnd::Unsupported => CallError::NoClient(at_node(&"it is of a version that takes no calls of others")),
            CallEnd::Unreached { why, written: true } => {
                CallError::Closed { written: true, reason: CloseReason::Elsewhere(at_node(&why)) }
            }
            CallEnd::Unreached { why, written: false } => CallError::NoClient(at_node(&why)),
        };
        Err(Missed::Failed(error))
    }
}

/// Dropped before its call has ended, it cancels it.
struct Giveup {
    of: Arc<Node>,
    node: NodeId,
    number: CallNumber,
}

impl Drop for Giveup {
    fn drop(&mut self) {
        let mut state = self.of.state.lock();
        if state.calls.out.end(self.number, self.node).is_none() {
            return;
        }
        if let Some(link) = state.members.get_mut(&self.node) {
            // Without room the call runs until its time is over.
            let _ = link.out.offer(Queued::now(Item::Cancel(self.number)), ITEM_BYTES);
            link.wake.notify_one();
        }
    }
}

impl Callable for Node {
    fn find(self: Arc<Self>, asked: FindAsked, within: Duration) -> BoxFuture<FoundEverywhere> {
        Box::pin(async move { ask::find(&self, asked, within).await })
    }

    fn call(
        self: Arc<Self>,
        node: NodeId,
        call: CarriedCall,
        deadline: Instant,
    ) -> BoxFuture<Result<RawReply, Missed>> {
        Box::pin(self.call_at(node, call, deadline))
    }
}
