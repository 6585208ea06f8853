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
//! - A node that stops says last which of its targets have gone on, one *part* of the push each: to which node, or into the
//!   store, and under which name. From there on the node that has the session tells of the part under that name; one that
//!   takes it out of the store says so first. What nobody took in its time, and what was at a node that has left, is
//!   unknown. The parts count as those of the node that stopped.

use std::collections::{BTreeMap, BTreeSet};

use crate::session::{NodeId, UnreachedWhy};

/// The number of a push at its origin.
pub(super) type PushNumber = u64;

/// The name of a part: the node that has given it, and its number there.
pub(super) type Name = (NodeId, PushNumber);

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
    /// The last word of a node that stops is not heeded.
    #[cfg(test)]
    LastWordIsIgnored,
    /// What nobody takes out of the store is waited for.
    #[cfg(test)]
    NeverOverdue,
    /// A part of a node that has left stays open.
    #[cfg(test)]
    PartsStay,
}

/// What the origin knows of one push at one node.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) enum At<S> {
    Asked,
    Doubtful(UnreachedWhy),
    Told(S),
    Unreached {
        why: UnreachedWhy,
        maybe: bool,
    },
    /// It has stopped. What has not gone on ended so; the rest are parts.
    Gone {
        rest: S,
        parts: BTreeMap<Name, Part<S>>,
    },
}

/// A target that has gone on from a node that stopped.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Part<S> {
    /// The node that has it; `None`: it waits in the store.
    pub(super) at: Option<NodeId>,
    pub(super) state: S,
}

impl<S: State> At<S> {
    fn is_over(&self) -> bool {
        match self {
            Self::Asked | Self::Doubtful(_) => false,
            Self::Told(state) => state.is_final(),
            Self::Unreached { .. } => true,
            Self::Gone { rest, parts } => rest.is_final() && parts.values().all(|part| part.state.is_final()),
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
    /// The parts that are open: of which push at which node that stopped.
    parts: BTreeMap<Name, (PushNumber, NodeId)>,
    mutant: Mutant,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Open<S> {
    nodes: BTreeMap<NodeId, At<S>>,
}

impl<S: State> Origin<S> {
    pub(super) fn new() -> Self {
        Self { open: BTreeMap::new(), of_node: BTreeMap::new(), parts: BTreeMap::new(), mutant: Mutant::None }
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
            At::Unreached { .. } | At::Gone { .. } => false,
        };
        #[cfg(test)]
        let is_newer = is_newer || self.mutant == Mutant::LateCounts;
        if is_newer { self.set(push, node, At::Told(state)) } else { None }
    }

    /// The last word of a node that stops: what has not gone on ended so, and these parts have.
    pub(super) fn left(
        &mut self,
        push: PushNumber,
        node: NodeId,
        rest: S,
        parts: impl IntoIterator<Item = (Name, Part<S>)>,
    ) -> Option<Moved<S>> {
        #[cfg(test)]
        if self.mutant == Mutant::LastWordIsIgnored {
            return None;
        }
        if self.at(push, node)?.is_over() || matches!(self.at(push, node)?, At::Gone { .. }) {
            return None;
        }
        let parts: BTreeMap<_, _> = parts.into_iter().collect();
        for (name, part) in &parts {
            if !part.state.is_final() {
                self.parts.insert(*name, (push, node));
            }
        }
        // It says nothing more, whatever becomes of the parts.
        self.forget_of(push, node);
        self.set(push, node, At::Gone { rest, parts })
    }

    /// True if this is an open part of a push.
    pub(super) fn has_part(&self, name: Name) -> bool {
        self.parts.contains_key(&name)
    }

    /// A node that has the session of this part says how it stands. The first one takes it out of the store.
    pub(super) fn part_told(&mut self, name: Name, by: NodeId, state: S) -> Option<Moved<S>> {
        self.change_part(name, |part| {
            if part.at.is_some_and(|at| at != by) {
                return false;
            }
            let is_taken_out = part.at.replace(by).is_none();
            let is_newer = part.state.precedes(&state);
            if is_newer {
                part.state = state;
            }
            is_taken_out || is_newer
        })
    }

    /// A node that had a part stops too: the part has gone on, under another name.
    pub(super) fn part_left(&mut self, name: Name, by: NodeId, to: Name, part: Part<S>) -> Option<Moved<S>> {
        let (push, node) = *self.parts.get(&name)?;
        let mut at = self.at(push, node)?.clone();
        let At::Gone { parts, .. } = &mut at else { return None };
        if parts.get(&name)?.at.is_some_and(|at| at != by) {
            return None;
        }
        self.parts.remove(&name);
        parts.remove(&name);
        if !part.state.is_final() {
            self.parts.insert(to, (push, node));
        }
        parts.insert(to, part);
        self.set(push, node, at)
    }

    /// Nobody has taken this part out of the store in its time.
    pub(super) fn part_overdue(&mut self, name: Name) -> Option<Moved<S>> {
        #[cfg(test)]
        if self.mutant == Mutant::NeverOverdue {
            return None;
        }
        self.change_part(name, |part| {
            let is_nowhere = part.at.is_none();
            if is_nowhere {
                part.state = part.state.to_unknown();
            }
            is_nowhere
        })
    }

    /// The open parts at this node, of which a digest asks.
    pub(super) fn digest_parts(&self, node: NodeId) -> Vec<Name> {
        let is_there = |name: &&Name| self.part(**name).is_some_and(|part| part.at == Some(node));
        self.parts.keys().filter(is_there).copied().collect()
    }

    /// A node's answer to that. `None`: it knows nothing of the part.
    pub(super) fn part_digested(&mut self, name: Name, node: NodeId, state: Option<S>) -> Option<Moved<S>> {
        match state {
            Some(state) => self.part_told(name, node, state),
            None => self.part_lost(name, node),
        }
    }

    fn part_lost(&mut self, name: Name, node: NodeId) -> Option<Moved<S>> {
        self.change_part(name, |part| {
            let is_its = part.at == Some(node);
            if is_its {
                part.state = part.state.to_unknown();
            }
            is_its
        })
    }

    fn part(&self, name: Name) -> Option<&Part<S>> {
        let (push, node) = self.parts.get(&name)?;
        match self.at(*push, *node)? {
            At::Gone { parts, .. } => parts.get(&name),
            _ => None,
        }
    }

    /// False of `change`: it stays as it was.
    fn change_part(&mut self, name: Name, change: impl FnOnce(&mut Part<S>) -> bool) -> Option<Moved<S>> {
        let (push, node) = *self.parts.get(&name)?;
        let mut at = self.at(push, node)?.clone();
        let At::Gone { parts, .. } = &mut at else { return None };
        let part = parts.get_mut(&name)?;
        if !change(part) {
            return None;
        }
        if part.state.is_final() {
            self.parts.remove(&name);
        }
        self.set(push, node, at)
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
        let mut moved: Vec<_> = pushes.into_iter().filter_map(|push| self.nobody_knows(push, node, why)).collect();
        #[cfg(test)]
        if self.mutant == Mutant::PartsStay {
            return moved;
        }
        let parts = self.digest_parts(node);
        moved.extend(parts.into_iter().filter_map(|name| self.part_lost(name, node)));
        moved
    }

    fn forget_of(&mut self, push: PushNumber, node: NodeId) {
        if let Some(pushes) = self.of_node.get_mut(&node) {
            pushes.remove(&push);
            if pushes.is_empty() {
                self.of_node.remove(&node);
            }
        }
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
        if is_over {
            self.forget_of(push, node);
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
pub(super) struct Owed<S, K: Ord = PushNumber> {
    pushes: BTreeMap<K, Owing<S>>,
    /// What is to be said of the node's own accord.
    due: BTreeSet<K>,
    /// Whose state was said in the last answer, which the origin may not have yet.
    answered: BTreeSet<K>,
    /// Of which the last word is said: by a node that stops.
    gone: BTreeSet<K>,
    mutant: Mutant,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Owing<S> {
    state: S,
    /// What is on its way to the origin.
    saying: Option<S>,
    /// Who is told of it when the one that it is owed to is gone: the first of these that lives.
    behind: Vec<NodeId>,
}

impl<S: State, K: Copy + Ord> Owed<S, K> {
    pub(super) fn new() -> Self {
        let (pushes, due) = (BTreeMap::new(), BTreeSet::new());
        Self { pushes, due, answered: BTreeSet::new(), gone: BTreeSet::new(), mutant: Mutant::None }
    }

    #[cfg(test)]
    pub(super) fn mutated(mutant: Mutant) -> Self {
        Self { mutant, ..Self::new() }
    }

    /// A push of the origin was run, and is answered with this state.
    pub(super) fn taken(&mut self, push: K, state: S) {
        #[cfg(test)]
        if self.mutant == Mutant::ForgottenTooSoon && state.is_final() {
            return;
        }
        self.pushes.insert(push, Owing { state, saying: None, behind: Vec::new() });
        self.answered.insert(push);
    }

    /// It answers for this one.
    pub(super) fn has(&self, push: K) -> bool {
        self.pushes.contains_key(&push)
    }

    /// A push came with its session: how it stands is to be said.
    pub(super) fn came(&mut self, push: K, state: S, behind: Vec<NodeId>) {
        self.pushes.insert(push, Owing { state, saying: None, behind });
        self.due.insert(push);
    }

    /// These are told of it when the one that it is owed to is gone.
    pub(super) fn has_behind(&mut self, push: K, behind: Vec<NodeId>) {
        if let Some(owing) = self.pushes.get_mut(&push) {
            owing.behind = behind;
        }
    }

    /// Who is told of it when the one that it is owed to is gone. `None`: it is not owed.
    pub(super) fn behind(&self, push: K) -> Option<&[NodeId]> {
        self.pushes.get(&push).map(|owing| &*owing.behind)
    }

    /// The one that it is owed to is gone: what is owed to others now.
    pub(super) fn into_rest(self) -> Vec<(K, S, Vec<NodeId>)> {
        let rest = self.pushes.into_iter().filter(|(_, owing)| !owing.behind.is_empty());
        rest.map(|(push, owing)| (push, owing.state, owing.behind)).collect()
    }

    /// The last word of it is said by other means.
    pub(super) fn said_last(&mut self, push: K) {
        self.pushes.remove(&push);
        self.due.remove(&push);
        self.answered.remove(&push);
        self.gone.insert(push);
    }

    /// True if the last word of one of these is said, and on its way: an answer to a digest may overtake it, and says less.
    pub(super) fn have_gone<'a>(&self, mut pushes: impl Iterator<Item = &'a K>) -> bool
    where
        K: 'a,
    {
        pushes.any(|push| self.gone.contains(push))
    }

    /// Of whom something is owed, whatever it is.
    pub(super) fn state(&self, push: K) -> Option<&S> {
        self.pushes.get(&push).map(|owing| &owing.state)
    }

    /// It stands so now. True if that is to be said.
    pub(super) fn changed(&mut self, push: K, state: S) -> bool {
        let Some(owing) = self.pushes.get_mut(&push).filter(|owing| owing.state.precedes(&state)) else { return false };
        owing.state = state;
        self.due.insert(push);
        true
    }

    /// The origin asks how this stands. `None`: nothing is known of it.
    pub(super) fn asked(&mut self, push: K) -> Option<S> {
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
    pub(super) fn say(&mut self, max: usize) -> Vec<(K, S)> {
        let is_free = |push: &K| self.pushes.get(push).is_some_and(|owing| owing.saying.is_none());
        let said: Vec<K> = self.due.iter().copied().filter(is_free).take(max).collect();
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
    pub(super) fn heard(&mut self, push: K) {
        let Some(owing) = self.pushes.get_mut(&push) else { return };
        let heard = owing.saying.take();
        if owing.state.is_final() && heard.as_ref() == Some(&owing.state) {
            self.pushes.remove(&push);
            self.due.remove(&push);
            self.answered.remove(&push);
        }
    }

    /// Nobody has answered: the origin may not have what was on its way.
    pub(super) fn unheard(&mut self, push: K) {
        #[cfg(test)]
        if self.mutant == Mutant::SaidOnce {
            return self.heard(push);
        }
        if let Some(owing) = self.pushes.get_mut(&push) {
            owing.saying = None;
            self.due.insert(push);
        }
    }

    /// One that leaves has got it, and passes it on no more. To say it again at once would only go round in a circle: it is
    /// said when it changes, or to the one behind.
    fn kept(&mut self, push: K) {
        if let Some(owing) = self.pushes.get_mut(&push) {
            owing.saying = None;
        }
    }

    /// What was said is answered. `is_heard`: by one that does not leave. Returns how many pushes are owed no more.
    pub(super) fn answered(&mut self, said: &[(K, S)], is_heard: bool) -> usize {
        let before = self.pushes.len();
        for (push, _) in said {
            if is_heard { self.heard(*push) } else { self.kept(*push) }
        }
        before - self.pushes.len()
    }

    /// As [`Self::unheard`], of all these.
    pub(super) fn all_unheard(&mut self, said: &[(K, S)]) {
        said.iter().for_each(|(push, _)| self.unheard(*push));
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
        let is_final = |push: &&K| self.pushes.get(*push).is_some_and(|owing| owing.state.is_final());
        self.answered.iter().filter(is_final).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cluster::mail::Standing, session::Counts};

    /// What a node that leaves has not taken is not said to it again and again, and is not lost: it is said when it changes,
    /// and to the one behind.
    #[test]
    fn what_one_that_leaves_has_not_taken_waits() {
        let standing = |changes, stage| Standing { changes, counts: Counts::of_pairs(&[(stage, 1)]) };
        let (mut owed, behind) = (Owed::<Standing>::new(), vec![NodeId(3)]);
        owed.came(7, standing(1, 0), behind.clone());
        let said = owed.say(10);
        assert_eq!(said, [(7, standing(1, 0))]);
        assert_eq!(owed.answered(&said, false), 0);
        assert!(!owed.is_due() && owed.say(10).is_empty(), "it would go round in a circle");

        assert!(owed.changed(7, standing(2, 0)) && owed.is_due());
        let said = owed.say(10);
        assert_eq!(owed.answered(&said, false), 0);
        assert_eq!(owed.into_rest(), [(7, standing(2, 0), behind)]);
    }
}
