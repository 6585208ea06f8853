//! Pushes to sessions of other nodes, at both ends: what the origin knows of each node, and what a node owes the origin
//! of a push. No I/O, no clock.
//!
//! What a node says of a push is a state and never a change: how many of its targets stand where. So it may be said
//! twice, and late, and the newest counts.
//!
//! ```text
//!   origin, of one node                                      the node
//!                 ┌──► told (open) ──► told (all final)      answers the push with its state; says each newer state
//!   asked ────────┤       │                 ▲                until the origin has it; answers the origin's digest
//!     │           └──► unreached            │
//!     └──► doubtful ──────┴─── digest ──────┘
//! ```
//!
//! - *asked*: the push waits for the node, or is under way. The receipt counts the node as routing.
//! - *doubtful*: the batch was given up, and may have been run. The digest, in a later epoch of the link, tells: a node that
//!   knows nothing of the push then will never run it.
//! - A node that has left takes with it what nobody can know: open targets become unknown.

use std::collections::{BTreeMap, BTreeSet};

use crate::session::{NodeId, UnreachedWhy};

/// The number of a push at its origin.
pub(super) type PushNumber = u64;

/// How many targets of a push stand where, in one node's words.
pub(super) trait State: Clone + Eq {
    /// True if nothing can change any more.
    fn is_final(&self) -> bool;
    /// All that is open ends as unknown.
    fn to_unknown(&self) -> Self;
    /// True if `self` can have become `other`: a late state is not taken for a newer one.
    fn precedes(&self, other: &Self) -> bool;
}

/// What goes wrong on purpose, so that a search is seen to find it.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub(super) enum Mutant {
    #[default]
    None,
    /// A state is said once, and not again if its batch is given up.
    #[cfg(test)]
    SaidOnce,
    /// A batch that was given up counts as not run.
    #[cfg(test)]
    DoubtIsNo,
    /// No digest is asked for.
    #[cfg(test)]
    NoDigest,
    /// A node that has left keeps its open targets.
    #[cfg(test)]
    LeftIsIgnored,
    /// A final state is forgotten when it is answered, although the answer may be lost.
    #[cfg(test)]
    ForgottenTooSoon,
    /// A state that comes late is taken for the newest.
    #[cfg(test)]
    LateCounts,
}

/// What the origin knows of one push at one node.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) enum At<S> {
    Asked,
    Doubtful(UnreachedWhy),
    Told(S),
    Unreached { why: UnreachedWhy, maybe: bool },
}

impl<S: State> At<S> {
    fn is_over(&self) -> bool {
        match self {
            Self::Asked | Self::Doubtful(_) => false,
            Self::Told(state) => state.is_final(),
            Self::Unreached { .. } => true,
        }
    }
}

/// One node of one push stands elsewhere now.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Moved<S> {
    pub(super) push: PushNumber,
    pub(super) node: NodeId,
    pub(super) from: At<S>,
    pub(super) to: At<S>,
    /// Nothing more is expected of any node.
    pub(super) is_last: bool,
}

/// What the origin knows of its pushes.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Origin<S> {
    open: BTreeMap<PushNumber, Open<S>>,
    /// The pushes of which a node still has to say something.
    of_node: BTreeMap<NodeId, BTreeSet<PushNumber>>,
    mutant: Mutant,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Open<S> {
    nodes: BTreeMap<NodeId, At<S>>,
}

impl<S: State> Origin<S> {
    pub(super) fn new() -> Self {
        Self { open: BTreeMap::new(), of_node: BTreeMap::new(), mutant: Mutant::None }
    }

    #[cfg(test)]
    pub(super) fn mutated(mutant: Mutant) -> Self {
        Self { mutant, ..Self::new() }
    }

    /// A push goes to these nodes.
    pub(super) fn push(&mut self, push: PushNumber, nodes: impl IntoIterator<Item = NodeId>) {
        let nodes: BTreeMap<_, _> = nodes.into_iter().map(|node| (node, At::Asked)).collect();
        for node in nodes.keys() {
            self.of_node.entry(*node).or_default().insert(push);
        }
        if !nodes.is_empty() {
            self.open.insert(push, Open { nodes });
        }
    }

    /// A node says how the push stands there.
    pub(super) fn told(&mut self, push: PushNumber, node: NodeId, state: S) -> Option<Moved<S>> {
        let is_newer = match self.at(push, node)? {
            At::Asked | At::Doubtful(_) => true,
            At::Told(before) => before != &state && before.precedes(&state),
            At::Unreached { .. } => false,
        };
        #[cfg(test)]
        let is_newer = is_newer || self.mutant == Mutant::LateCounts;
        if is_newer { self.set(push, node, At::Told(state)) } else { None }
    }

    /// A push was not sent to this node, and is not going to be.
    pub(super) fn not_sent(&mut self, push: PushNumber, node: NodeId, why: UnreachedWhy) -> Option<Moved<S>> {
        let is_asked = matches!(self.at(push, node)?, At::Asked);
        if is_asked { self.set(push, node, At::Unreached { why, maybe: false }) } else { None }
    }

    /// Nobody has answered the batch with this push.
    pub(super) fn gave_up(&mut self, push: PushNumber, node: NodeId, why: UnreachedWhy) -> Option<Moved<S>> {
        #[cfg(test)]
        if self.mutant == Mutant::DoubtIsNo {
            return self.not_sent(push, node, why);
        }
        let is_asked = matches!(self.at(push, node)?, At::Asked);
        if is_asked { self.set(push, node, At::Doubtful(why)) } else { None }
    }

    /// What a digest asks this node for: the pushes of which it may have something to say, in a batch that was, and
    /// is answered or given up.
    pub(super) fn digest(&self, node: NodeId) -> Vec<PushNumber> {
        #[cfg(test)]
        if self.mutant == Mutant::NoDigest {
            return Vec::new();
        }
        let of_node = self.of_node.get(&node).into_iter().flatten();
        let was_sent = |push: &&PushNumber| self.at(**push, node).is_some_and(|at| !matches!(at, At::Asked));
        of_node.filter(was_sent).copied().collect()
    }

    /// A node's answer to a digest: how the push stands there, or that it knows nothing of it.
    pub(super) fn digested(&mut self, push: PushNumber, node: NodeId, state: Option<S>) -> Option<Moved<S>> {
        if let Some(state) = state {
            return self.told(push, node, state);
        }
        let to = match self.at(push, node)? {
            // The batch is of an older epoch, and is not run any more.
            At::Doubtful(why) => At::Unreached { why: *why, maybe: false },
            At::Told(state) if !state.is_final() => At::Told(state.to_unknown()),
            _ => return None,
        };
        self.set(push, node, to)
    }

    /// This node will say no more, or has said nothing for too long.
    pub(super) fn lost(&mut self, node: NodeId, why: UnreachedWhy) -> Vec<Moved<S>> {
        #[cfg(test)]
        if self.mutant == Mutant::LeftIsIgnored {
            return Vec::new();
        }
        let pushes = self.of_node.remove(&node).unwrap_or_default();
        pushes.into_iter().filter_map(|push| self.nobody_knows(push, node, why)).collect()
    }

    fn nobody_knows(&mut self, push: PushNumber, node: NodeId, why: UnreachedWhy) -> Option<Moved<S>> {
        let to = match self.at(push, node)? {
            At::Asked | At::Doubtful(_) => At::Unreached { why, maybe: true },
            At::Told(state) if !state.is_final() => At::Told(state.to_unknown()),
            _ => return None,
        };
        self.set(push, node, to)
    }

    /// Where it stands; `None`: it is over, and forgotten.
    pub(super) fn at(&self, push: PushNumber, node: NodeId) -> Option<&At<S>> {
        self.open.get(&push)?.nodes.get(&node)
    }

    fn set(&mut self, push: PushNumber, node: NodeId, to: At<S>) -> Option<Moved<S>> {
        let open = self.open.get_mut(&push)?;
        let is_over = to.is_over();
        let from = std::mem::replace(open.nodes.get_mut(&node)?, to.clone());
        let is_last = open.nodes.values().all(At::is_over);
        if is_over && let Some(pushes) = self.of_node.get_mut(&node) {
            pushes.remove(&push);
            if pushes.is_empty() {
                self.of_node.remove(&node);
            }
        }
        if is_last {
            self.open.remove(&push);
        }
        Some(Moved { push, node, from, to, is_last })
    }

    /// Pushes of which something is still expected.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }
}

/// What a node owes one origin.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Owed<S> {
    pushes: BTreeMap<PushNumber, Owing<S>>,
    /// What is to be said of the node's own accord.
    due: BTreeSet<PushNumber>,
    /// Whose state was said in the last answer, which the origin may not have yet.
    answered: BTreeSet<PushNumber>,
    mutant: Mutant,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Owing<S> {
    state: S,
    /// What is on its way to the origin.
    saying: Option<S>,
}

impl<S: State> Owed<S> {
    pub(super) fn new() -> Self {
        Self { pushes: BTreeMap::new(), due: BTreeSet::new(), answered: BTreeSet::new(), mutant: Mutant::None }
    }

    #[cfg(test)]
    pub(super) fn mutated(mutant: Mutant) -> Self {
        Self { mutant, ..Self::new() }
    }

    /// A push of the origin was run, and is answered with this state.
    pub(super) fn taken(&mut self, push: PushNumber, state: S) {
        #[cfg(test)]
        if self.mutant == Mutant::ForgottenTooSoon && state.is_final() {
            return;
        }
        self.pushes.insert(push, Owing { state, saying: None });
        self.answered.insert(push);
    }

    /// A push came with its session: how it stands is to be said.
    pub(super) fn came(&mut self, push: PushNumber, state: S) {
        self.pushes.insert(push, Owing { state, saying: None });
        self.due.insert(push);
    }

    /// It stands so now. True if that is to be said.
    pub(super) fn changed(&mut self, push: PushNumber, state: S) -> bool {
        let Some(owing) = self.pushes.get_mut(&push).filter(|owing| owing.state.precedes(&state)) else { return false };
        owing.state = state;
        self.due.insert(push);
        true
    }

    /// The origin asks how this stands. `None`: nothing is known of it.
    pub(super) fn asked(&mut self, push: PushNumber) -> Option<S> {
        let owing = self.pushes.get(&push)?;
        self.answered.insert(push);
        Some(owing.state.clone())
    }

    /// The origin has the answer before this batch.
    pub(super) fn confirmed(&mut self) {
        for push in std::mem::take(&mut self.answered) {
            let is_said = |owing: &Owing<S>| owing.saying.is_none() && owing.state.is_final();
            if !self.due.contains(&push) && self.pushes.get(&push).is_some_and(is_said) {
                self.pushes.remove(&push);
            }
        }
    }

    /// The origin may never get the answer before this batch.
    pub(super) fn broken(&mut self) {
        let answered = std::mem::take(&mut self.answered);
        self.due.extend(answered.into_iter().filter(|push| self.pushes.contains_key(push)));
    }

    /// Up to `max` states that are due. They are on their way from here on.
    pub(super) fn say(&mut self, max: usize) -> Vec<(PushNumber, S)> {
        let is_free = |push: &PushNumber| self.pushes.get(push).is_some_and(|owing| owing.saying.is_none());
        let said: Vec<PushNumber> = self.due.iter().copied().filter(is_free).take(max).collect();
        let mut states = Vec::with_capacity(said.len());
        for push in said {
            self.due.remove(&push);
            if let Some(owing) = self.pushes.get_mut(&push) {
                owing.saying = Some(owing.state.clone());
                states.push((push, owing.state.clone()));
            }
        }
        states
    }

    /// The origin has what was on its way.
    pub(super) fn heard(&mut self, push: PushNumber) {
        let Some(owing) = self.pushes.get_mut(&push) else { return };
        let heard = owing.saying.take();
        if owing.state.is_final() && heard.as_ref() == Some(&owing.state) {
            self.pushes.remove(&push);
            self.due.remove(&push);
            self.answered.remove(&push);
        }
    }

    /// Nobody has answered: the origin may not have what was on its way.
    pub(super) fn unheard(&mut self, push: PushNumber) {
        #[cfg(test)]
        if self.mutant == Mutant::SaidOnce {
            return self.heard(push);
        }
        if let Some(owing) = self.pushes.get_mut(&push) {
            owing.saying = None;
            self.due.insert(push);
        }
    }

    /// True if something is to be said.
    pub(super) fn is_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// Pushes whose end the origin does not surely know.
    pub(super) fn len(&self) -> usize {
        self.pushes.len()
    }

    /// Those of them that were said in the last answer, and are final: they are forgotten with the next batch.
    #[cfg(test)]
    pub(super) fn nearly_forgotten(&self) -> usize {
        let is_final = |push: &&PushNumber| self.pushes.get(*push).is_some_and(|owing| owing.state.is_final());
        self.answered.iter().filter(is_final).count()
    }
}
