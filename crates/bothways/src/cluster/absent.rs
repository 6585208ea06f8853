//! Nodes that were members, and of which nobody knows whether they still run.
//!
//! The end of a lease is not the end of its node: that may stand still, or be cut off from the engine, and serve all its
//! clients meanwhile. No push reaches it before it begins another life. So it is remembered for a while, and each receipt
//! says that it was not reached. One that leaves says so, and is not remembered.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, timeout_at},
};

use super::{
    ask::{Asked, Question},
    engine::NodeId,
    node::{Card, Node},
};
use crate::session::UnreachedWhy;

/// For how long receipts name a node whose lease has ended: twice as long as a lease. Its sessions are told to be lost by
/// then, and each push would be partial for as long.
const ABSENT_FOR: Duration = Duration::from_secs(30);
/// How many such nodes are remembered. Of more, those whose leases ended last.
const ABSENT_MAX: usize = 256;
/// How long a node that leaves waits for each of the others to hear it.
const FAREWELL_MAX: Duration = Duration::from_millis(500);

/// How long its farewell waits for the answers to what is under way to it: less than it waits itself.
const LAST_ANSWERS_MAX: Duration = Duration::from_millis(400);

/// What a node is known by under any name.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Whose {
    /// 0: of a version that does not say it.
    process: u64,
    address: Option<String>,
}

impl Whose {
    pub(super) fn of(card: Option<Card>) -> Self {
        let Card { process, address, .. } = card.unwrap_or_default();
        Self { process, address }
    }

    /// It is the same process, or one in its place: two do not listen at one address.
    pub(super) fn is_after(&self, gone: &Self) -> bool {
        (self.process != 0 && self.process == gone.process) || (self.address.is_some() && self.address == gone.address)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Absent {
    all: BTreeMap<NodeId, (Whose, Instant)>,
}

impl Absent {
    /// This one is no member any more.
    pub(super) fn gone(&mut self, node: NodeId, whose: Whose, now: Instant) {
        self.forget_old(now);
        self.all.insert(node, (whose, now));
        if ABSENT_MAX < self.all.len() {
            let oldest = self.all.iter().min_by_key(|(_, (_, since))| *since).map(|(node, _)| *node);
            oldest.into_iter().for_each(|node| _ = self.all.remove(&node));
        }
    }

    /// This one is a member.
    pub(super) fn came(&mut self, node: NodeId, whose: &Whose) {
        self.all.retain(|gone, (was, _)| *gone != node && !whose.is_after(was));
    }

    /// This node is a member again, after a time in which it saw nobody come.
    pub(super) fn begin(&mut self, now: Instant) {
        self.all.values_mut().for_each(|(_, since)| *since = now);
    }

    /// Those that are not forgotten yet.
    fn at(&self, now: Instant) -> impl Iterator<Item = NodeId> {
        let lately = move |since: Instant| now.saturating_duration_since(since) < ABSENT_FOR;
        self.all.iter().filter(move |(_, (_, since))| lately(*since)).map(|(node, _)| *node)
    }

    /// Those that a push does not reach now, and why. Without a life of this node there is nobody else.
    pub(super) fn unreached(&self, lives: bool, now: Instant) -> Vec<(NodeId, UnreachedWhy)> {
        match lives {
            true => self.at(now).map(|node| (node, UnreachedWhy::NodeLost)).collect(),
            false => self.all.keys().map(|node| (*node, UnreachedWhy::Left)).collect(),
        }
    }

    /// The same nodes, and where clients reached them.
    pub(super) fn addresses(&self, lives: bool, now: Instant) -> Vec<(NodeId, Option<String>)> {
        let address = |node| self.all.get(&node).and_then(|(whose, _)| whose.address.clone());
        self.unreached(lives, now).into_iter().map(|(node, _)| (node, address(node))).collect()
    }

    /// Those whose time is over are not named any more.
    pub(super) fn forget_old(&mut self, now: Instant) {
        self.all.retain(|_, (_, since)| now.saturating_duration_since(*since) < ABSENT_FOR);
    }
}

impl Node {
    /// The nodes that were members lately, and that nothing reaches now.
    pub(super) fn absent(&self) -> Vec<(NodeId, UnreachedWhy)> {
        let state = self.state.lock();
        state.absent.unreached(state.life.is_some(), Instant::now())
    }

    /// Tells all others that this node leaves: they do not take it for lost when its lease ends.
    pub(super) async fn say_farewell(&self) {
        let Some(me) = self.me() else { return };
        let Some(farewell) = Question::bytes(Asked::Leaves(me.0)) else { return };
        let mut saying = JoinSet::new();
        for node in self.others() {
            let (engine, farewell) = (Arc::clone(self.engine()), farewell.clone());
            // One that does not hear it takes this node for lost for a while, which is no harm.
            saying.spawn(async move { _ = engine.ask(node, farewell, FAREWELL_MAX).await });
        }
        while saying.join_next().await.is_some() {}
    }

    /// This one leaves, and has no sessions any more: no push goes there from here on. Returns when it has answered what
    /// is under way, so that nothing is in doubt when it listens no more.
    pub(super) async fn hear_farewell(&self, leaver: NodeId) {
        let deadline = Instant::now() + LAST_ANSWERS_MAX;
        loop {
            let said = self.said.notified();
            tokio::pin!(said);
            said.as_mut().enable();
            let is_idle = {
                let mut state = self.state.lock();
                let Some(link) = state.members.get_mut(&leaver) else { return };
                link.leaves = true;
                link.out.is_idle()
            };
            if is_idle || timeout_at(deadline, said).await.is_err() {
                return;
            }
        }
    }

    /// It has said that it leaves.
    pub(super) fn leaves(&self, node: NodeId) -> bool {
        self.state.lock().members.get(&node).is_some_and(|link| link.leaves)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whose(process: u64, address: Option<&str>) -> Whose {
        Whose { process, address: address.map(str::to_owned) }
    }

    /// A node is absent until its process, or one at its address, is a member again, and for a bounded time.
    #[tokio::test(start_paused = true)]
    async fn who_is_absent() {
        let [one, other, third] = [NodeId(1), NodeId(2), NodeId(3)];
        let mut absent = Absent::default();
        let began = Instant::now();
        absent.gone(one, whose(1, None), began);
        absent.gone(other, whose(2, Some("tcp@a:1")), began);
        absent.gone(third, whose(0, None), began);
        absent.came(NodeId(4), &whose(0, None));
        absent.came(NodeId(5), &whose(5, Some("tcp@b:1")));
        assert_eq!(absent.at(began).collect::<Vec<_>>(), [one, other, third], "they are others");

        absent.came(NodeId(6), &whose(1, None));
        assert_eq!(absent.at(began).collect::<Vec<_>>(), [other, third], "one process, under another name");
        absent.came(NodeId(7), &whose(7, Some("tcp@a:1")));
        assert_eq!(absent.at(began).collect::<Vec<_>>(), [third], "another one in its place");

        let ends = began + ABSENT_FOR;
        assert_eq!(absent.unreached(true, ends - Duration::from_millis(1)), [(third, UnreachedWhy::NodeLost)]);
        assert_eq!(absent.unreached(true, ends), []);
        assert_eq!(absent.unreached(false, ends), [(third, UnreachedWhy::Left)], "nobody is seen to come");
        absent.begin(ends);
        assert_eq!(absent.unreached(true, ends), [(third, UnreachedWhy::NodeLost)]);
        absent.came(third, &whose(0, None));
        assert_eq!(absent.unreached(false, ends), [], "its lease lives after all");
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_as_there_is_room_for() {
        let (mut absent, began) = (Absent::default(), Instant::now());
        for number in 0..=ABSENT_MAX as u64 {
            absent.gone(NodeId(number), whose(number + 1, None), began + Duration::from_millis(number));
        }
        let all: Vec<NodeId> = absent.at(began).collect();
        assert_eq!((all.len(), all[0]), (ABSENT_MAX, NodeId(1)));
    }
}
