//! Whether the other members count this node as one.
//!
//! A push goes to the members that its node knows of, and a node that has just joined is not known to all of them at once. A
//! session that went there would miss what is pushed meanwhile: its former node leaves to the new one whatever that has
//! not seen. So a node takes in no session of another one before each member has said that it counts this node, and with
//! which of its pushes it began to.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bothways_proto::SerializeType;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};

use super::{
    ask::{Asked, Question, Said},
    engine::{AskError, NodeId},
    node::{NOBODY_MAX, Node},
    remote::PushNumber,
};
use crate::codec::Payload;

/// How long one ask may take.
const ASK_MAX: Duration = Duration::from_secs(1);
/// After how long a member is asked again that did not count this node, or was not there.
const AGAIN: Duration = Duration::from_millis(50);

/// What the members have said, to one life of this node.
#[derive(Debug, Default)]
pub(super) struct Counted {
    me: Option<NodeId>,
    by: BTreeSet<NodeId>,
    /// Since when nobody answers under a member's name.
    nobody: BTreeMap<NodeId, Instant>,
}

impl Counted {
    /// Those of the members that have not said it, and under whose name there is somebody.
    fn missing(&self, members: impl IntoIterator<Item = NodeId>) -> Vec<NodeId> {
        let is_nobody = |node: &NodeId| self.nobody.get(node).is_some_and(|since| NOBODY_MAX <= since.elapsed());
        members.into_iter().filter(|node| !self.by.contains(node) && !is_nobody(node)).collect()
    }

    /// What one has answered to this life; `true`: it counts it.
    fn heard(&mut self, node: NodeId, answer: &Result<Option<PushNumber>, AskError>) -> bool {
        if !matches!(answer, Err(AskError::NoNode)) {
            self.nobody.remove(&node);
        }
        match answer {
            Ok(Some(_)) => self.by.insert(node),
            Err(AskError::NoNode) => {
                self.nobody.entry(node).or_insert_with(Instant::now);
                false
            }
            Ok(None) | Err(_) => false,
        }
    }
}

impl Node {
    /// Waits until each member counts this node, or nobody is there under its name. False: one has not said so in time.
    pub(super) async fn is_counted(&self, deadline: Instant) -> bool {
        // One asks for all that wait, and they find what it has heard.
        let Ok(_alone) = timeout_at(deadline, self.counting.lock()).await else { return false };
        loop {
            let Some(me) = self.me() else { return false };
            let missing = self.not_counting(me);
            if missing.is_empty() {
                return true;
            }
            if deadline <= Instant::now() {
                return false;
            }
            self.ask_who_counts(me, missing, deadline).await;
            if self.not_counting(me).is_empty() {
                return true;
            }
            sleep(AGAIN).await;
        }
    }

    fn not_counting(&self, me: NodeId) -> Vec<NodeId> {
        let mut members: BTreeSet<NodeId> = self.members().into_iter().collect();
        members.extend(self.engine().members().borrow().keys().filter(|node| **node != me));
        let mut counted = self.counted.lock();
        if counted.me != Some(me) {
            *counted = Counted { me: Some(me), ..Counted::default() };
        }
        counted.by.retain(|node| members.contains(node));
        counted.nobody.retain(|node, _| members.contains(node));
        counted.missing(members)
    }

    async fn ask_who_counts(&self, me: NodeId, nodes: Vec<NodeId>, deadline: Instant) {
        let Some(question) = Question::bytes(Asked::Counts(me.0)) else { return };
        let within = ASK_MAX.min(deadline.saturating_duration_since(Instant::now()));
        let mut asking = JoinSet::new();
        for node in nodes {
            let (engine, question) = (Arc::clone(self.engine()), question.clone());
            asking.spawn(async move { (node, engine.ask(node, question, within).await) });
        }
        while let Some(Ok((node, answer))) = asking.join_next().await {
            let answer = answer.map(|bytes| match Said::decode(SerializeType::MSGPACK, bytes) {
                Ok(Said::Counts(since)) => since,
                _ => None,
            });
            let mut counted = self.counted.lock();
            if counted.me == Some(me) && counted.heard(node, &answer) {
                // None of those comes here: what a session has to get of them, its former node gives.
                self.moves.saw(node, answer.ok().flatten().unwrap_or_default());
            }
        }
    }

    /// As [`Self::counts_since`], of a node that may have joined this moment.
    pub(super) fn counts(self: &Arc<Self>, asker: NodeId) -> Option<PushNumber> {
        if self.counts_since(asker).is_none() {
            self.see();
        }
        self.counts_since(asker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A member counts this node once it has said so; one under whose name nobody is for a while is not waited for, and is
    /// again when it answers.
    #[tokio::test(start_paused = true)]
    async fn who_is_waited_for() {
        let [one, other] = [NodeId(1), NodeId(2)];
        let mut counted = Counted::default();
        assert_eq!(counted.missing([one, other]), [one, other]);
        assert!(!counted.heard(one, &Ok(None)) && !counted.heard(other, &Err(AskError::TimedOut)));
        assert_eq!(counted.missing([one, other]), [one, other], "one does not, and one is silent");
        assert!(counted.heard(one, &Ok(Some(0))));
        assert!(!counted.heard(one, &Ok(Some(7))), "it was heard before");
        assert_eq!(counted.missing([one, other]), [other]);

        assert!(!counted.heard(other, &Err(AskError::NoNode)));
        assert_eq!(counted.missing([one, other]), [other], "it may be on its way back");
        sleep(NOBODY_MAX).await;
        assert!(!counted.heard(other, &Err(AskError::NoNode)));
        assert!(counted.missing([one, other]).is_empty());
        assert!(!counted.heard(other, &Ok(None)));
        assert_eq!(counted.missing([one, other]), [other], "it is back");
    }
}
