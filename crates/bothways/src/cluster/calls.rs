//! Calls to clients of other nodes, at both ends: which are under way, and what is still to be said of them. No I/O, no
//! clock.
//!
//! ```text
//!   origin:  asked ──► out ──► ended                          the node:  running ──► ended ──► (said) ──► forgotten
//!              │        └── the node is lost: it may have run                └── cancelled
//!              └── not sent, refused, no such session
//! ```
//!
//! A node keeps an outcome until the origin has it: what is said of a call may be said twice, and the first counts.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use bytes::Bytes;

use crate::session::{NodeId, UnreachedWhy};

/// The number of a call at its origin.
pub(super) type CallNumber = u64;

/// How a call ended, as far as the nodes know.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum CallEnd {
    /// The node has said how, in these bytes.
    Ended(Bytes),
    /// It has no such session.
    NotThere,
    /// It runs as many calls of others as it takes, or cannot read this one.
    Refused,
    /// It is of a version that takes none.
    Unsupported,
    /// Nothing more will be heard of it. `written`: it may have run.
    Unreached { why: UnreachedWhy, written: bool },
}

/// What there may be at most of calls of this node, and as much of calls of others.
#[derive(Clone, Copy, Debug)]
pub(super) struct CallBounds {
    pub(super) calls: usize,
    pub(super) bytes: usize,
}

/// Why a call was not begun.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum NoRoom {
    Calls,
    Bytes(usize),
}

/// The calls of this node that run elsewhere. `T` is told how one ended.
#[derive(Debug)]
pub(super) struct CallsOut<T> {
    next: CallNumber,
    calls: HashMap<CallNumber, Out<T>>,
    /// Those that their nodes have taken.
    taken: HashMap<NodeId, BTreeSet<CallNumber>>,
    bytes: usize,
}

#[derive(Debug)]
struct Out<T> {
    node: NodeId,
    bytes: usize,
    tell: T,
}

impl<T> CallsOut<T> {
    pub(super) fn new() -> Self {
        Self { next: 1, calls: HashMap::new(), taken: HashMap::new(), bytes: 0 }
    }

    /// One more, of so many bytes.
    ///
    /// # Errors
    /// There are as many as there may be.
    pub(super) fn begin(
        &mut self,
        node: NodeId,
        bytes: usize,
        bounds: CallBounds,
        tell: T,
    ) -> Result<CallNumber, NoRoom> {
        if bounds.calls <= self.calls.len() {
            return Err(NoRoom::Calls);
        }
        if bounds.bytes < self.bytes + bytes {
            return Err(NoRoom::Bytes(self.bytes));
        }
        let number = self.next;
        self.next += 1;
        self.bytes += bytes;
        self.calls.insert(number, Out { node, bytes, tell });
        Ok(number)
    }

    /// The node has taken it.
    pub(super) fn taken(&mut self, number: CallNumber) {
        if let Some(out) = self.calls.get(&number) {
            self.taken.entry(out.node).or_default().insert(number);
        }
    }

    /// It is over, for its caller or for the node. Returns whom to tell; `None`: it was over.
    pub(super) fn end(&mut self, number: CallNumber, node: NodeId) -> Option<T> {
        if self.calls.get(&number).is_none_or(|out| out.node != node) {
            return None;
        }
        let out = self.calls.remove(&number)?;
        self.bytes -= out.bytes;
        if let Some(taken) = self.taken.get_mut(&node) {
            taken.remove(&number);
            if taken.is_empty() {
                self.taken.remove(&node);
            }
        }
        Some(out.tell)
    }

    /// Those that this node runs, as far as is known.
    pub(super) fn out_at(&self, node: NodeId) -> Vec<CallNumber> {
        self.taken.get(&node).into_iter().flatten().copied().collect()
    }

    /// True if this node runs one.
    pub(super) fn has_out(&self, node: NodeId) -> bool {
        self.taken.contains_key(&node)
    }

    /// All to this node.
    pub(super) fn all_at(&self, node: NodeId) -> Vec<CallNumber> {
        let mut numbers: Vec<_> = self.calls.iter().filter(|(_, out)| out.node == node).map(|(n, _)| *n).collect();
        numbers.sort_unstable();
        numbers
    }

    pub(super) fn len(&self) -> usize {
        self.calls.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// The calls of other nodes that run here. `A` gives a run up.
#[derive(Debug)]
pub(super) struct CallsHere<A> {
    of: HashMap<NodeId, OfOrigin<A>>,
    count: usize,
    bytes: usize,
}

#[derive(Debug)]
struct OfOrigin<A> {
    calls: HashMap<CallNumber, Here<A>>,
    /// Whose outcomes are to be said.
    due: VecDeque<CallNumber>,
}

#[derive(Debug)]
enum Here<A> {
    Running(A, usize),
    Ended(Bytes),
}

impl<A> Here<A> {
    fn bytes(&self) -> usize {
        match self {
            Self::Running(_, bytes) => *bytes,
            Self::Ended(outcome) => outcome.len(),
        }
    }
}

impl<A> CallsHere<A> {
    pub(super) fn new() -> Self {
        Self { of: HashMap::new(), count: 0, bytes: 0 }
    }

    /// True if there is room for one more of so many bytes.
    pub(super) fn has_room(&self, bytes: usize, bounds: CallBounds) -> bool {
        self.count < bounds.calls && self.bytes + bytes <= bounds.bytes
    }

    /// It runs.
    pub(super) fn began(&mut self, origin: NodeId, number: CallNumber, bytes: usize, run: A) {
        let of = self.of.entry(origin).or_insert_with(|| OfOrigin { calls: HashMap::new(), due: VecDeque::new() });
        if of.calls.insert(number, Here::Running(run, bytes)).is_none() {
            self.count += 1;
            self.bytes += bytes;
        }
    }

    /// It ended so. True: that is to be said. Outcomes beyond the bound in bytes are cut to what `short` says.
    pub(super) fn ended(
        &mut self,
        origin: NodeId,
        number: CallNumber,
        outcome: Bytes,
        bounds: CallBounds,
        short: impl FnOnce() -> Bytes,
    ) -> bool {
        let Some(of) = self.of.get_mut(&origin) else { return false };
        let Some(here) = of.calls.get_mut(&number) else { return false };
        if matches!(here, Here::Ended(_)) {
            return false;
        }
        self.bytes -= here.bytes();
        let outcome = if bounds.bytes < self.bytes + outcome.len() { short() } else { outcome };
        self.bytes += outcome.len();
        *here = Here::Ended(outcome);
        of.due.push_back(number);
        true
    }

    /// Outcomes that are to be said to this origin, of so many bytes together and one at least. They are on their way from
    /// here on.
    pub(super) fn say(&mut self, origin: NodeId, most: usize) -> Vec<(CallNumber, Bytes)> {
        let (mut said, mut bytes) = (Vec::new(), 0);
        let Some(of) = self.of.get_mut(&origin) else { return said };
        while let Some(number) = of.due.front().copied() {
            let Some(Here::Ended(outcome)) = of.calls.get(&number) else {
                of.due.pop_front();
                continue;
            };
            if !said.is_empty() && most < bytes + outcome.len() {
                break;
            }
            bytes += outcome.len();
            said.push((number, outcome.clone()));
            of.due.pop_front();
        }
        said
    }

    /// The origin has the outcome.
    pub(super) fn heard(&mut self, origin: NodeId, number: CallNumber) {
        self.remove(origin, number);
    }

    /// The origin may not have what was on its way.
    pub(super) fn unheard(&mut self, origin: NodeId, number: CallNumber) {
        if let Some(of) = self.of.get_mut(&origin)
            && matches!(of.calls.get(&number), Some(Here::Ended(_)))
            && !of.due.contains(&number)
        {
            of.due.push_back(number);
        }
    }

    /// The origin gives it up. Returns its run, if it still runs.
    pub(super) fn cancel(&mut self, origin: NodeId, number: CallNumber) -> Option<A> {
        match self.remove(origin, number)? {
            Here::Running(run, _) => Some(run),
            Here::Ended(_) => None,
        }
    }

    fn remove(&mut self, origin: NodeId, number: CallNumber) -> Option<Here<A>> {
        let of = self.of.get_mut(&origin)?;
        let here = of.calls.remove(&number)?;
        self.count -= 1;
        self.bytes -= here.bytes();
        if of.calls.is_empty() {
            self.of.remove(&origin);
        }
        Some(here)
    }

    /// Which of these it knows.
    pub(super) fn known(&self, origin: NodeId, numbers: &[CallNumber]) -> Vec<bool> {
        let of = self.of.get(&origin);
        numbers.iter().map(|number| of.is_some_and(|of| of.calls.contains_key(number))).collect()
    }

    /// The origin's life is over: nobody waits. Returns the runs.
    pub(super) fn lost(&mut self, origin: NodeId) -> Vec<A> {
        let Some(of) = self.of.remove(&origin) else { return Vec::new() };
        self.count -= of.calls.len();
        self.bytes -= of.calls.values().map(Here::bytes).sum::<usize>();
        let runs = of.calls.into_values().filter_map(|here| match here {
            Here::Running(run, _) => Some(run),
            Here::Ended(_) => None,
        });
        runs.collect()
    }

    /// All origins are gone.
    pub(super) fn lost_all(&mut self) -> Vec<A> {
        let origins: HashSet<NodeId> = self.of.keys().copied().collect();
        origins.into_iter().flat_map(|origin| self.lost(origin)).collect()
    }

    /// True if something is to be said to this origin.
    pub(super) fn is_due(&self, origin: NodeId) -> bool {
        self.of.get(&origin).is_some_and(|of| !of.due.is_empty())
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: CallBounds = CallBounds { calls: 3, bytes: 100 };
    const NODE: NodeId = NodeId(5);

    fn text(bytes: usize) -> Bytes {
        Bytes::from(vec![b'x'; bytes])
    }

    /// What is under way has bounds in number and in bytes, and room comes back with each end.
    #[test]
    fn calls_of_this_node_have_bounds() {
        let mut out = CallsOut::new();
        let first = out.begin(NODE, 60, BOUNDS, "a").expect("there is room");
        assert_eq!(out.begin(NODE, 60, BOUNDS, "b"), Err(NoRoom::Bytes(60)));
        let second = out.begin(NODE, 20, BOUNDS, "b").expect("there is room");
        out.begin(NodeId(6), 20, BOUNDS, "c").expect("there is room");
        assert_eq!(out.begin(NODE, 0, BOUNDS, "d"), Err(NoRoom::Calls));
        out.taken(second);
        assert_eq!((out.out_at(NODE), out.all_at(NODE)), (vec![second], vec![first, second]));
        assert_eq!(out.end(first, NodeId(6)), None, "that node has nothing to say of it");
        assert_eq!((out.end(first, NODE), out.end(first, NODE)), (Some("a"), None));
        assert_eq!((out.len(), out.bytes()), (2, 40));
    }

    /// An outcome is said until the origin has it, and nothing of it is left then.
    #[test]
    fn an_outcome_is_said_until_it_is_heard() {
        let mut here = CallsHere::new();
        for number in 1..=3 {
            assert!(here.has_room(10, BOUNDS));
            here.began(NODE, number, 10, number);
        }
        assert!(!here.has_room(0, BOUNDS), "three run");
        for number in [2, 1] {
            assert!(here.ended(NODE, number, text(30), BOUNDS, || text(1)));
            assert!(!here.ended(NODE, number, text(3), BOUNDS, || text(1)), "it has ended");
        }
        assert_eq!(here.say(NODE, 40), [(2, text(30))]);
        assert_eq!(here.say(NODE, 40), [(1, text(30))]);
        assert!(here.say(NODE, 40).is_empty() && !here.is_due(NODE), "both are on their way");
        here.unheard(NODE, 2);
        here.unheard(NODE, 2);
        here.heard(NODE, 1);
        assert_eq!(here.known(NODE, &[1, 2, 3]), [false, true, true]);
        assert_eq!(here.say(NODE, 40), [(2, text(30))]);
        here.heard(NODE, 2);
        assert_eq!(here.cancel(NODE, 3), Some(3));
        assert_eq!((here.len(), here.bytes(), here.cancel(NODE, 3)), (0, 0, None));
    }

    /// A reply for which there is no room says so, and takes none.
    #[test]
    fn a_reply_beyond_the_bound_is_cut() {
        let mut here = CallsHere::new();
        here.began(NODE, 1, 90, ());
        here.began(NODE, 2, 10, ());
        assert!(here.ended(NODE, 2, text(11), BOUNDS, || text(1)));
        assert_eq!((here.bytes(), here.say(NODE, 100)), (91, vec![(2, text(1))]));
    }

    /// With an origin's life ends what it asked for.
    #[test]
    fn a_lost_origin_leaves_nothing() {
        let mut here = CallsHere::new();
        here.began(NODE, 1, 10, "one");
        here.began(NODE, 2, 10, "two");
        here.began(NodeId(6), 1, 10, "other");
        here.ended(NODE, 2, text(5), BOUNDS, || text(1));
        assert_eq!(here.lost(NODE), ["one"]);
        assert_eq!((here.len(), here.bytes(), here.is_due(NODE)), (1, 10, false));
        assert!(!here.ended(NODE, 1, text(5), BOUNDS, || text(1)), "a late end is nobody's");
        assert_eq!(here.lost_all(), ["other"]);
        assert_eq!((here.len(), here.bytes()), (0, 0));
    }
}
