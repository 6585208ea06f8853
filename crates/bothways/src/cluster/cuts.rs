//! Which node gives which push to a session that moves. No I/O, no clock.
//!
//! ```text
//!  pushes of one node, as another one sees them: growing numbers, some left out, each once
//!
//!  former owner  ──── has them, up to `taken` ────┤ frozen ├──── those up to the cut, after the session ────
//!  new owner     ──────────────── sees them, without the session ────────────┤ cut ├──── those beyond it ────
//! ```
//!
//! - With the image goes up to which number the session has been given the pushes of each node: `taken`. The new owner
//!   leaves those out, however late they come to it.
//! - The new owner says up to which number it had seen those of each node when the session came: the *cuts*. Up to there
//!   the former owner gives them to the session, wherever that is, as nobody else does; what lies beyond is not its own.
//! - A session that comes back finds what its node still owes it: those are given, though the image counts them as taken.
//!   So a node knows of each session that left lately which numbers it owes, and not only up to where.
//! - Where the cuts never came, nobody knows who gives a push, and its receipt says so.
//!
//! Numbers of one node reach another one in their order or not at all; so what is owed and has been overtaken is over.
//! The word of an earlier stay counts for nothing: each says the term of the record under which the session came.

use std::collections::{BTreeMap, BTreeSet};

use super::{engine::NodeId, remote::PushNumber};
use crate::session::SessionId;

/// Up to which number the pushes of each node have come.
pub(super) type Cuts = BTreeMap<NodeId, PushNumber>;

/// What goes wrong on purpose, so that a search is seen to find it.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub(super) enum Mutant {
    #[default]
    None,
    /// A former owner gives the session all that comes to it.
    #[cfg(test)]
    CutIgnored,
    /// A former owner gives nothing to a session that has left.
    #[cfg(test)]
    NothingGiven,
    /// What was pushed to a session that was being given away follows it in any case.
    #[cfg(test)]
    HeldKept,
    /// A new owner gives what the session has already.
    #[cfg(test)]
    TakenIgnored,
    /// A session that goes on says what this node has seen, and not what those before it have.
    #[cfg(test)]
    TakenNotCarried,
    /// The cuts are those of the wrong side: what the former owner has seen.
    #[cfg(test)]
    WrongSide,
    /// A session that comes back is not given what its node still owes it.
    #[cfg(test)]
    OwedForgotten,
    /// What was owed, and held while the session was given away, is left to the node beyond whose cut it is.
    #[cfg(test)]
    OwedAtTheCut,
    /// The cuts of any stay count.
    #[cfg(test)]
    AnyTerm,
    /// What is pushed where the cuts are not known is passed over.
    #[cfg(test)]
    DoubtIsSilent,
}

/// What becomes of a push to a session that has left.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Passed {
    /// It is sent after the session.
    After,
    /// The node that has the session gets it by itself.
    There,
    /// Nobody knows.
    Unknown,
}

/// The sessions of a node that came or left lately. `T` is a time, `K` what is to be known of a session that has left.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Passing<T, K> {
    /// The greatest number of a push of each node that came here.
    seen: Cuts,
    sessions: BTreeMap<SessionId, Passage<T, K>>,
    mutant: Mutant,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Passage<T, K> {
    /// Its stays here, and what this node had seen when each began.
    stays: Vec<(u64, Cuts)>,
    /// Up to there the session had been given the pushes of each node when it came last.
    taken: Cuts,
    /// What this node gives to the session all the same, from the first number to the second.
    owed: BTreeMap<NodeId, Vec<(PushNumber, PushNumber)>>,
    /// The cuts of a node to which it went never came.
    is_unsure: bool,
    /// Members of which the cuts of such a node said nothing: they may push past it.
    unheard: BTreeSet<NodeId>,
    /// Where it went; `None`: it is here.
    left: Option<(NodeId, K)>,
    until: T,
}

/// Most stays of a session that are told apart: a node asks for those of the last seconds.
const STAYS_MAX: usize = 8;

/// Both up to the greater number.
fn merge(into: &mut Cuts, other: &Cuts) {
    for (node, number) in other {
        let cut = into.entry(*node).or_default();
        *cut = (*number).max(*cut);
    }
}

fn is_within(cuts: &Cuts, origin: NodeId, number: PushNumber) -> bool {
    cuts.get(&origin).is_some_and(|cut| number <= *cut)
}

impl<T, K> Passage<T, K> {
    fn new(until: T) -> Self {
        let (stays, taken, owed) = (Vec::new(), Cuts::new(), BTreeMap::new());
        Self { stays, taken, owed, is_unsure: false, unheard: BTreeSet::new(), left: None, until }
    }

    fn owes(&self, origin: NodeId, number: PushNumber) -> bool {
        let ranges = self.owed.get(&origin).into_iter().flatten();
        ranges.into_iter().any(|(from, to)| *from <= number && number <= *to)
    }
}

impl<T: Copy + Ord, K> Passing<T, K> {
    pub(super) fn new() -> Self {
        Self { seen: Cuts::new(), sessions: BTreeMap::new(), mutant: Mutant::None }
    }

    #[cfg(test)]
    pub(super) fn mutated(mutant: Mutant) -> Self {
        Self { mutant, ..Self::new() }
    }

    /// A push of another node has come.
    pub(super) fn saw(&mut self, origin: NodeId, number: PushNumber) {
        let seen = self.seen.entry(origin).or_default();
        *seen = number.max(*seen);
    }

    /// What this node has seen; `last`: the number of its own last push.
    fn cuts(&self, me: NodeId, last: PushNumber) -> Cuts {
        let mut cuts = self.seen.clone();
        cuts.insert(me, last);
        cuts
    }

    /// Up to which numbers a session that is given away now has been given the pushes of each node.
    pub(super) fn taken(&self, id: SessionId, me: NodeId, last: PushNumber) -> Cuts {
        let mut taken = self.cuts(me, last);
        #[cfg(test)]
        if self.mutant == Mutant::TakenNotCarried {
            return taken;
        }
        if let Some(passage) = self.sessions.get(&id) {
            merge(&mut taken, &passage.taken);
        }
        taken
    }

    /// A session comes, by a record of this term, and with what it has been given. Returns its cuts, for its former node.
    pub(super) fn arrives(
        &mut self,
        id: SessionId,
        term: u64,
        (me, last): (NodeId, PushNumber),
        taken: Cuts,
        until: T,
    ) -> Cuts {
        let cuts = self.cuts(me, last);
        #[cfg(test)]
        let cuts = if self.mutant == Mutant::WrongSide { taken.clone() } else { cuts };
        let passage = self.sessions.entry(id).or_insert_with(|| Passage::new(until));
        (passage.taken, passage.left, passage.until) = (taken, None, until);
        passage.unheard.clear();
        #[cfg(test)]
        if self.mutant == Mutant::OwedForgotten {
            passage.owed.clear();
        }
        if STAYS_MAX <= passage.stays.len() {
            passage.stays.remove(0);
        }
        passage.stays.push((term, cuts.clone()));
        cuts
    }

    /// One that could not be taken in.
    pub(super) fn forget(&mut self, id: SessionId) {
        self.sessions.remove(&id);
    }

    /// A session has gone on there, and this is what that node had seen when it came; `None`: nobody knows. `last`: the
    /// number of this node's own last push.
    pub(super) fn departs(
        &mut self,
        id: SessionId,
        to: NodeId,
        cuts: Option<&Cuts>,
        (me, last): (NodeId, PushNumber),
        known: K,
        until: T,
    ) {
        let seen = self.cuts(me, last);
        let passage = self.sessions.entry(id).or_insert_with(|| Passage::new(until));
        let cuts = match cuts {
            Some(cuts) => cuts,
            None => {
                passage.is_unsure = true;
                &Cuts::new()
            }
        };
        for (origin, cut) in cuts {
            let taken = passage.taken.get(origin).copied().unwrap_or_default();
            if taken < *cut {
                passage.owed.entry(*origin).or_default().push((taken + 1, *cut));
            }
        }
        // What is owed and was overtaken will not come any more.
        for (origin, ranges) in &mut passage.owed {
            let seen = seen.get(origin).copied().unwrap_or_default();
            ranges.retain(|(_, to)| seen < *to);
        }
        passage.owed.retain(|_, ranges| !ranges.is_empty());
        (passage.left, passage.until) = (Some((to, known)), until);
    }

    /// The node to which a session has gone, and whose cuts are known, has not heard of these members: it let the session in
    /// as nobody was there under their names.
    pub(super) fn has_not_heard(&mut self, id: SessionId, members: impl Iterator<Item = NodeId>) {
        if let Some(passage) = self.sessions.get_mut(&id) {
            passage.unheard.extend(members);
        }
    }

    /// What becomes of a push of this number, if it was held for a session while that was given away, and that has gone on
    /// to a node with these cuts.
    pub(super) fn of_held(&self, id: SessionId, cuts: Option<&Cuts>, origin: NodeId, number: PushNumber) -> Passed {
        let is_taken = self.sessions.get(&id).is_some_and(|passage| is_within(&passage.taken, origin, number));
        let is_unheard = self.sessions.get(&id).is_some_and(|passage| passage.unheard.contains(&origin));
        #[cfg(test)]
        let is_taken = is_taken && self.mutant != Mutant::OwedAtTheCut;
        #[cfg(test)]
        if self.mutant == Mutant::HeldKept {
            return Passed::After;
        }
        // It was owed here: the image counts it as taken, and so no other node gives it.
        if is_taken {
            return Passed::After;
        }
        match cuts {
            None => Passed::Unknown,
            Some(_) if is_unheard => Passed::Unknown,
            Some(cuts) if is_within(cuts, origin, number) => Passed::After,
            Some(_) => Passed::There,
        }
    }

    /// The sessions that came lately and have the push of this number of that node already, or get it from another one.
    pub(super) fn have_it(&self, origin: NodeId, number: PushNumber) -> impl Iterator<Item = SessionId> {
        #[cfg(test)]
        let is_ignored = self.mutant == Mutant::TakenIgnored;
        #[cfg(not(test))]
        let is_ignored = false;
        let has = move |passage: &Passage<T, K>| {
            is_within(&passage.taken, origin, number) && !passage.owes(origin, number) && !is_ignored
        };
        self.sessions.iter().filter(move |(_, passage)| has(passage)).map(|(id, _)| *id)
    }

    /// What becomes of the push of this number that has come here, for each session that has left lately, or whose cuts were
    /// never known: those that get it by themselves are left out. `to`: where it went, `None`: it is here.
    pub(super) fn behind(
        &self,
        origin: NodeId,
        number: PushNumber,
    ) -> impl Iterator<Item = (SessionId, Option<(NodeId, &K)>, Passed)> {
        let of = move |passage: &Passage<T, K>| {
            let is_taken = is_within(&passage.taken, origin, number);
            #[cfg(test)]
            match self.mutant {
                Mutant::CutIgnored if passage.left.is_some() => return Passed::After,
                Mutant::NothingGiven => return Passed::There,
                Mutant::DoubtIsSilent if !passage.owes(origin, number) => return Passed::There,
                _ => {}
            }
            match passage.left {
                Some(_) if passage.owes(origin, number) => Passed::After,
                Some(_) if passage.is_unsure || passage.unheard.contains(&origin) => Passed::Unknown,
                None if passage.is_unsure && is_taken && !passage.owes(origin, number) => Passed::Unknown,
                _ => Passed::There,
            }
        };
        self.sessions.iter().filter_map(move |(id, passage)| match of(passage) {
            Passed::There => None,
            passed => Some((*id, passage.left.as_ref().map(|(to, known)| (*to, known)), passed)),
        })
    }

    /// Where a session went.
    pub(super) fn went(&self, id: SessionId) -> Option<NodeId> {
        self.sessions.get(&id)?.left.as_ref().map(|(to, _)| *to)
    }

    /// True if a word of a stay by the record of this term is of a session that was given under that one.
    pub(super) fn is_next(&self, given: u64, came: u64) -> bool {
        #[cfg(test)]
        if self.mutant == Mutant::AnyTerm {
            return true;
        }
        came == given + 1
    }

    /// The cuts of a session that came by a record of this term.
    pub(super) fn came(&self, id: SessionId, term: u64) -> Option<&Cuts> {
        let stays = &self.sessions.get(&id)?.stays;
        #[cfg(test)]
        if self.mutant == Mutant::AnyTerm {
            return stays.last().map(|(_, cuts)| cuts);
        }
        stays.iter().find(|(of, _)| *of == term).map(|(_, cuts)| cuts)
    }

    /// What is over is forgotten.
    pub(super) fn forget_old(&mut self, now: T) {
        self.sessions.retain(|_, passage| now < passage.until);
    }

    /// What was pushed there before counts no more; `None`: anywhere.
    pub(super) fn lost(&mut self, node: Option<NodeId>) {
        match node {
            Some(node) => _ = self.seen.remove(&node),
            None => self.seen.clear(),
        }
    }

    /// Sessions that left lately, or of which nobody knows what they lack; and all of those here.
    pub(super) fn counts(&self) -> (usize, usize) {
        let has_left = |passage: &&Passage<T, K>| passage.left.is_some() || passage.is_unsure;
        (self.sessions.values().filter(has_left).count(), self.sessions.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node that let a session in without having heard of a member: what that one pushes meanwhile is nobody's, and the
    /// receipt says so. What is heard of is that node's to give.
    #[test]
    fn what_a_node_has_not_heard_of_is_unknown() {
        let [me, there, heard, unheard] = [NodeId(1), NodeId(2), NodeId(3), NodeId(4)];
        let id: SessionId = "7".parse().expect("a number");
        let mut passing = Passing::<u8, ()>::new();
        let cuts: Cuts = [(me, 5), (there, 1), (heard, 9)].into();
        passing.departs(id, there, Some(&cuts), (me, 5), (), 1);
        passing.has_not_heard(id, [unheard].into_iter());
        let held = |passing: &Passing<u8, ()>, origin, number| passing.of_held(id, Some(&cuts), origin, number);
        assert_eq!(held(&passing, heard, 9), Passed::After);
        assert_eq!(held(&passing, heard, 10), Passed::There);
        assert_eq!(held(&passing, unheard, 3), Passed::Unknown);
        let behind = |passing: &Passing<u8, ()>, origin| -> Vec<Passed> {
            passing.behind(origin, 12).map(|(_, _, passed)| passed).collect()
        };
        assert_eq!(behind(&passing, heard), []);
        assert_eq!(behind(&passing, unheard), [Passed::Unknown]);
        assert_eq!(behind(&passing, NodeId(5)), [], "one that has joined since knows the node that has it");

        passing.arrives(id, 3, (me, 5), Cuts::new(), 1);
        assert_eq!(behind(&passing, unheard), []);
    }
}
