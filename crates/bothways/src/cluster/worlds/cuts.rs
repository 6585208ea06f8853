//! A session that moves between three nodes, and back, while two others push to its user: mail is late, words of a move are
//! late, doubled or lost, batches are given up, a node dies. Which node has the session, `claim.rs` decides; here
//! the question is which one gives it a push.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{World, bound, search};
use crate::{
    cluster::cuts::{Cuts, Mutant, Passed, Passing},
    session::{NodeId, SessionId},
};

/// Nodes at which the session may be; the one after them only pushes.
const NODES: usize = 3;
const OUTSIDE: usize = NODES;

/// Which push: its origin, and its number there.
type Push = (usize, u64);

fn id(node: usize) -> NodeId {
    NodeId(node as u64 + 1)
}

fn node_of(id: NodeId) -> usize {
    id.0 as usize - 1
}

/// The session at a node.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Stay {
    term: u64,
    has: BTreeSet<Push>,
    /// It is given away, and has this in its image for that node.
    given: Option<(usize, Cuts)>,
    /// What came since; `true`: it went to other nodes too.
    held: Vec<(Push, bool)>,
}

#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
enum Word {
    /// It is there, by this term, with these cuts.
    Took { to: usize, by: usize, term: u64, cuts: Cuts },
}

/// What may still happen, and how often.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Budget {
    /// Pushes of the first node, and of the one outside.
    pushes: [u8; 2],
    moves: u8,
    thaws: u8,
    given_up: u8,
    words_twice: u8,
    /// Owners that never learn the cuts.
    deaf: u8,
    kills: u8,
}

#[derive(Clone, Debug, Hash)]
struct Moving {
    session: SessionId,
    nodes: Vec<Passing<u8, ()>>,
    stays: Vec<Option<Stay>>,
    /// Mail of pushes, from a node to another one, in order; and what follows the session, by itself.
    links: BTreeMap<(usize, usize), VecDeque<Push>>,
    late: BTreeMap<(usize, usize), VecDeque<Push>>,
    words: BTreeSet<Word>,
    pushed: [u64; NODES + 1],
    /// Targets that the receipt of a push counts.
    targets: BTreeMap<Push, u8>,
    /// Its receipt says that a node was not reached, or that nobody knows.
    excused: BTreeSet<Push>,
    is_dead: Vec<bool>,
    /// The owner has died, and the session with it.
    is_lost: bool,
    budget: Budget,
    wrong: Option<String>,
}

impl Moving {
    /// The session is at the first node.
    fn new(mutant: Mutant, budget: Budget) -> Self {
        let stay = Stay { term: 1, has: BTreeSet::new(), given: None, held: Vec::new() };
        Self {
            session: "7".parse().expect("a number"),
            nodes: vec![Passing::mutated(mutant); NODES],
            stays: vec![Some(stay), None, None],
            links: BTreeMap::new(),
            late: BTreeMap::new(),
            words: BTreeSet::new(),
            pushed: [0; NODES + 1],
            targets: BTreeMap::new(),
            excused: BTreeSet::new(),
            is_dead: vec![false; NODES],
            is_lost: false,
            budget,
            wrong: None,
        }
    }

    /// The node that the register names: of all that have the session, the one with the greatest term.
    fn owner(&self) -> Option<usize> {
        let term = |node: &usize| self.stays[*node].as_ref().map(|stay| stay.term);
        (0..NODES).filter(|node| self.stays[*node].is_some()).max_by_key(term)
    }

    fn counts(&mut self, push: Push) {
        *self.targets.entry(push).or_default() += 1;
    }

    /// The session at a node is given a push, or the push is held for it.
    fn give(&mut self, at: usize, push: Push, went_to_others: bool) {
        let Some(stay) = &mut self.stays[at] else { return };
        if stay.given.is_some() {
            stay.held.push((push, went_to_others));
        } else if !stay.has.insert(push) {
            self.wrong = Some(format!("push {push:?} comes twice at {at}"));
        }
    }

    /// What follows a session goes to that node.
    fn send_after(&mut self, from: usize, to: usize, push: Push) {
        match self.is_dead[to] {
            true => _ = self.excused.insert(push),
            false => self.late.entry((from, to)).or_default().push_back(push),
        }
    }

    /// A push is run at a node: that of this node, or one that has come.
    fn run(&mut self, at: usize, push: Push) {
        let (origin, number) = push;
        let has_it = origin != at && self.nodes[at].have_it(id(origin), number).any(|of| of == self.session);
        if self.stays[at].is_some() && !has_it {
            self.counts(push);
            self.give(at, push, true);
        }
        let behind = self.nodes[at].behind(id(origin), number);
        let behind: Vec<_> = behind.map(|(_, to, passed)| (to.map(|(node, ())| node), passed)).collect();
        for (to, passed) in behind {
            self.counts(push);
            match (to, passed) {
                (Some(to), Passed::After) => self.send_after(at, node_of(to), push),
                _ => _ = self.excused.insert(push),
            }
        }
    }

    fn push(&mut self, origin: usize) {
        self.pushed[origin] += 1;
        let push = (origin, self.pushed[origin]);
        self.targets.insert(push, 0);
        for to in (0..NODES).filter(|to| *to != origin && !self.is_dead[*to]) {
            self.links.entry((origin, to)).or_default().push_back(push);
        }
        if origin != OUTSIDE {
            self.run(origin, push);
        }
    }

    /// Mail of an earlier batch was run, and this is next.
    fn take(&mut self, from: usize, at: usize) {
        let Some(push) = self.links.get_mut(&(from, at)).and_then(VecDeque::pop_front) else { return };
        self.nodes[at].saw(id(from), push.1);
        self.run(at, push);
    }

    fn take_late(&mut self, from: usize, at: usize) {
        let Some(push) = self.late.get_mut(&(from, at)).and_then(VecDeque::pop_front) else { return };
        match (self.nodes[at].went(self.session), &self.stays[at]) {
            (Some(to), _) => self.send_after(at, node_of(to), push),
            (None, Some(_)) => self.give(at, push, false),
            // It has ended there: so the receipt says.
            (None, None) => _ = self.excused.insert(push),
        }
    }

    /// The owner gives the session away.
    fn freeze(&mut self, at: usize, to: usize) {
        let taken = self.nodes[at].taken(self.session, id(at), self.pushed[at]);
        if let Some(stay) = &mut self.stays[at] {
            stay.given = Some((to, taken));
        }
    }

    /// By a compare-and-set of its own: nobody has it by the image.
    fn thaw(&mut self, at: usize) {
        let Some(stay) = &mut self.stays[at] else { return };
        stay.given = None;
        for (push, _) in std::mem::take(&mut stay.held) {
            if !stay.has.insert(push) {
                self.wrong = Some(format!("push {push:?} comes twice at {at}, as it stays"));
            }
        }
    }

    /// The record names another node, which has the image.
    fn install(&mut self, from: usize, at: usize, taken: Cuts) {
        let Some(stay) = self.stays[from].clone() else { return };
        let term = stay.term + 1;
        let last = self.pushed[at];
        let cuts = self.nodes[at].arrives(self.session, term, (id(at), last), taken, 1);
        self.stays[at] = Some(Stay { term, has: stay.has, given: None, held: Vec::new() });
        self.words.insert(Word::Took { to: from, by: at, term, cuts });
    }

    /// A former owner learns that the session is there.
    fn depart(&mut self, at: usize, to: usize, cuts: Option<&Cuts>) {
        let Some(stay) = self.stays[at].take() else { return };
        for (push, went_to_others) in stay.held {
            let passed = match went_to_others {
                true => self.nodes[at].of_held(self.session, cuts, id(push.0), push.1),
                false => Passed::After,
            };
            match passed {
                Passed::After => self.send_after(at, to, push),
                // The one that has it counts it.
                Passed::There => *self.targets.entry(push).or_default() -= 1,
                Passed::Unknown => _ = self.excused.insert(push),
            }
        }
        self.nodes[at].departs(self.session, id(to), cuts, (id(at), self.pushed[at]), (), 1);
    }

    fn hear(&mut self, word: &Word) {
        let Word::Took { to, by, term, cuts } = word;
        let is_of = |stay: &Stay| stay.given.is_some() && self.nodes[*to].is_next(stay.term, *term);
        if self.stays[*to].as_ref().is_some_and(is_of) && self.owner() != Some(*to) {
            self.depart(*to, *by, Some(cuts));
        }
    }

    fn kill(&mut self, at: usize) {
        self.is_dead[at] = true;
        self.is_lost |= self.owner() == Some(at);
        if let Some(stay) = self.stays[at].take() {
            self.excused.extend(stay.has);
            self.excused.extend(stay.held.into_iter().map(|(push, _)| push));
        }
        for links in [&mut self.links, &mut self.late] {
            let dead: Vec<_> = links.keys().copied().filter(|(from, to)| *from == at || *to == at).collect();
            for of in dead {
                self.excused.extend(links.remove(&of).unwrap_or_default());
            }
        }
    }

    fn after(&self, what: String, change: impl FnOnce(&mut Self)) -> (String, Self) {
        let mut next = self.clone();
        change(&mut next);
        (what, next)
    }

    fn is_quiet(&self) -> bool {
        let is_empty = |links: &BTreeMap<_, VecDeque<Push>>| links.values().all(VecDeque::is_empty);
        let stays = self.stays.iter().flatten();
        is_empty(&self.links) && is_empty(&self.late) && stays.clone().count() == 1 && {
            stays.into_iter().all(|stay| stay.given.is_none())
        }
    }

    fn steps_at(&self, at: usize, steps: &mut Vec<(String, Self)>) {
        if self.is_dead[at] {
            return;
        }
        if 0 < self.budget.kills {
            steps.push(self.after(format!("{at} is killed"), |next| {
                next.budget.kills -= 1;
                next.kill(at);
            }));
        }
        let Some(stay) = &self.stays[at] else { return };
        let is_owner = self.owner() == Some(at);
        match &stay.given {
            None if 0 < self.budget.moves => {
                for to in (0..NODES).filter(|to| *to != at && self.stays[*to].is_none() && !self.is_dead[*to]) {
                    steps.push(self.after(format!("{at} gives it to {to}"), |next| {
                        next.budget.moves -= 1;
                        next.freeze(at, to);
                    }));
                }
            }
            None => {}
            Some((to, taken)) if is_owner => {
                if !self.is_dead[*to] {
                    steps.push(self.after(format!("it is at {to}"), |next| next.install(at, *to, taken.clone())));
                }
                if 0 < self.budget.thaws || self.is_dead[*to] {
                    steps.push(self.after(format!("it stays at {at}"), |next| {
                        next.budget.thaws = next.budget.thaws.saturating_sub(1);
                        next.thaw(at);
                    }));
                }
            }
            Some((to, _)) => {
                // It asks where the word is lost.
                let cuts = self.nodes[*to].came(self.session, stay.term + 1).cloned();
                if let Some(cuts) = cuts.filter(|_| !self.is_dead[*to]) {
                    steps.push(self.after(format!("{at} asks {to}"), |next| next.depart(at, *to, Some(&cuts))));
                }
                if 0 < self.budget.deaf || self.is_dead[*to] {
                    steps.push(self.after(format!("{at} never hears of {to}"), |next| {
                        next.budget.deaf -= u8::from(!self.is_dead[*to]);
                        next.depart(at, *to, None);
                    }));
                }
            }
        }
    }
}

impl World for Moving {
    type Step = String;

    fn steps(&self) -> Vec<(String, Self)> {
        let mut steps = Vec::new();
        if self.is_lost {
            return steps;
        }
        for (of, origin) in [0, OUTSIDE].into_iter().enumerate() {
            let is_dead = origin < NODES && self.is_dead[origin];
            if 0 < self.budget.pushes[of] && !is_dead {
                steps.push(self.after(format!("a push of {origin}"), |next| {
                    next.budget.pushes[of] -= 1;
                    next.push(origin);
                }));
            }
        }
        for (from, at) in self.links.iter().filter(|(_, link)| !link.is_empty()).map(|(of, _)| *of) {
            steps.push(self.after(format!("mail of {from} at {at}"), |next| next.take(from, at)));
            if 0 < self.budget.given_up {
                steps.push(self.after(format!("mail of {from} to {at} is given up"), |next| {
                    next.budget.given_up -= 1;
                    let push = next.links.get_mut(&(from, at)).and_then(VecDeque::pop_front);
                    next.excused.extend(push);
                }));
            }
        }
        for (from, at) in self.late.iter().filter(|(_, link)| !link.is_empty()).map(|(of, _)| *of) {
            steps.push(self.after(format!("what follows from {from} at {at}"), |next| next.take_late(from, at)));
        }
        for word in &self.words {
            steps.push(self.after(format!("{word:?} comes"), |next| {
                next.words.remove(word);
                next.hear(word);
            }));
            if 0 < self.budget.words_twice {
                steps.push(self.after(format!("{word:?} comes, and once more"), |next| {
                    next.budget.words_twice -= 1;
                    next.hear(word);
                }));
            }
        }
        (0..NODES).for_each(|at| self.steps_at(at, &mut steps));
        steps
    }

    fn fault(&self) -> Option<String> {
        if self.wrong.is_some() || self.is_lost || !self.is_quiet() {
            return self.wrong.clone();
        }
        let has = |push: &Push| self.stays.iter().flatten().any(|stay| stay.has.contains(push));
        for (push, targets) in self.targets.iter().filter(|(push, _)| !self.excused.contains(push)) {
            if !has(push) {
                return Some(format!("push {push:?} is lost, and no receipt says so"));
            }
            if *targets != 1 {
                return Some(format!("the receipt of push {push:?} counts {targets} targets"));
            }
        }
        None
    }

    fn is_good_end(&self) -> bool {
        self.is_lost || self.is_quiet()
    }
}

const CALM: Budget = Budget { pushes: [1, 1], moves: 2, thaws: 0, given_up: 0, words_twice: 0, deaf: 0, kills: 0 };

/// In all that can happen, a session that moves is given each push once, or its receipt says that nobody knows.
#[test]
fn a_session_that_moves_is_given_each_push_once() {
    for (what, budget) in [
        ("one move", Budget { pushes: [2, 2], moves: 1, ..CALM }),
        ("two moves", CALM),
        ("there and back, again", Budget { pushes: [0, 1], moves: 4, ..CALM }),
        ("three moves", Budget { moves: 3, ..CALM }),
        ("one that stays", Budget { thaws: 1, ..CALM }),
        ("batches that are given up", Budget { given_up: 1, ..CALM }),
        ("words that come twice", Budget { words_twice: 1, moves: 3, pushes: [0, 1], ..CALM }),
        ("cuts that never come", Budget { deaf: 1, pushes: [0, 2], ..CALM }),
        ("a node that dies", Budget { kills: 1, pushes: [0, 2], ..CALM }),
        ("all of them", Budget { pushes: [0, 1], thaws: 1, given_up: 1, words_twice: 1, deaf: 1, kills: 1, moves: 3 }),
    ] {
        search(Moving::new(Mutant::None, budget), bound(3000)).assert_well(what);
    }
}

/// R19, and each rule of the cuts: left out, a push comes twice or not at all.
#[test]
fn each_mutant_of_the_cuts_is_found() {
    for (mutant, budget) in [
        (Mutant::CutIgnored, CALM),
        (Mutant::NothingGiven, CALM),
        (Mutant::HeldKept, CALM),
        (Mutant::TakenIgnored, CALM),
        (Mutant::TakenNotCarried, CALM),
        (Mutant::WrongSide, CALM),
        (Mutant::OwedForgotten, Budget { pushes: [0, 1], ..CALM }),
        (Mutant::OwedAtTheCut, Budget { moves: 3, pushes: [0, 1], ..CALM }),
        (Mutant::AnyTerm, Budget { moves: 4, pushes: [0, 1], ..CALM }),
        (Mutant::DoubtIsSilent, Budget { deaf: 1, ..CALM }),
    ] {
        search(Moving::new(mutant, budget), 200_000).assert_found(&format!("{mutant:?}"));
    }
}
