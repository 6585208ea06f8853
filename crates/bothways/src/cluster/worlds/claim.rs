//! Three nodes, a register, and a client that comes to any of them, gives up and comes again: Hellos are late, mail is lost
//! or late, reads are old, the register does not answer, nobody knows how a compare-and-set ended, that of a claim or of the
//! owner; nodes are stopped past their lease, and die.
//!
//! Besides what a client sees, one rule holds at every moment: while the record names a node that lives, that node has the
//! session, or a claim of it has the image in its hands.

use std::collections::BTreeSet;

use super::{World, bound, search};
use crate::cluster::{
    claim::{Admission, Claim, End, Given, Keep, Keeping, Mutant, NOBODY, Owned, Read, Record, Step, Written, Wrote},
    engine::{NodeId, Revision},
};

const NODES: usize = 3;

/// Pushes that a session has, a bit each.
type Pushes = u8;

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Lease {
    Lives,
    Ended,
    Buried,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Node {
    life: u64,
    is_dead: bool,
    is_stopped: bool,
    lease: Lease,
    /// It has renewed its lease since it was stopped last.
    is_certain: bool,
    owned: Option<Owned<Pushes>>,
    /// What it has is of a life that is over, until its record is written again.
    is_stale: bool,
    gave_to: Option<NodeId>,
}

/// A Hello at a node.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Hello {
    at: usize,
    life: u64,
    attempt: u64,
    is_open: bool,
    doing: Doing,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum Doing {
    Arrived,
    Claims(Claim<Pushes>, Step<Pushes>),
    /// It waits for the answer of this node.
    Asks(Claim<Pushes>, NodeId),
    Done,
}

#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
enum Mail {
    Give { to: u64, hello: usize },
    Gave { hello: usize, given: u8 },
}

/// What is heard of a compare-and-set.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Heard {
    Said,
    /// Nothing, and it was done.
    NotSaid,
    NotDone,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Budget {
    hellos: u64,
    pushes: u8,
    kills: u8,
    stops: u8,
    lost: u8,
    old_reads: u8,
    unknown: u8,
    /// How often the register does not answer.
    down: u8,
    /// Ends of connections that are not seen.
    unseen: u8,
    /// Hellos whose time is over before their claim is.
    late: u8,
    /// Sessions that end by themselves, while their record cannot be forgotten.
    ends: u8,
}

#[derive(Clone, Debug, Hash)]
struct Three {
    nodes: Vec<Node>,
    /// The record, and the one before it.
    record: (Option<Record>, Revision),
    before: (Option<Record>, Revision),
    hellos: Vec<Hello>,
    net: BTreeSet<Mail>,
    /// What was answered, by the number in the mail.
    answers: Vec<Given<Pushes>>,
    /// Where the client has its session, and by which attempt.
    connected: Option<(usize, u64)>,
    is_told: bool,
    /// The end of a connection was not seen: its session may be given up.
    has_overlooked: bool,
    /// It was given up, or has ended: the record may name a node without it.
    is_given_up: bool,
    /// The Hello that has given it up.
    given_up_by: Option<usize>,
    accepted: Pushes,
    handled: Pushes,
    /// Reported as unknown.
    ended: Pushes,
    next_nonce: u64,
    budget: Budget,
    mutant: Mutant,
    wrong: Option<String>,
}

fn id(node: usize, life: u64) -> NodeId {
    NodeId(life * 10 + node as u64 + 1)
}

fn node_of(id: NodeId) -> usize {
    (id.0 % 10) as usize - 1
}

impl Three {
    /// The client has its session at the first node.
    fn new(mutant: Mutant, budget: Budget) -> Self {
        let node = |owned| Node {
            life: 0,
            is_dead: false,
            is_stopped: false,
            lease: Lease::Lives,
            is_certain: true,
            owned,
            is_stale: false,
            gave_to: None,
        };
        let record = (Some(Record { term: 1, owner: id(0, 0), nonce: 0 }), Revision(1));
        let owned = Owned::new(1, Revision(1), 1, 0).mutated(mutant);
        Self {
            nodes: vec![node(Some(owned)), node(None), node(None)],
            // It was just written: a read that is old shows nothing.
            record,
            before: (None, Revision(0)),
            hellos: Vec::new(),
            net: BTreeSet::new(),
            answers: Vec::new(),
            connected: Some((0, 1)),
            is_told: false,
            has_overlooked: false,
            is_given_up: false,
            given_up_by: None,
            accepted: 0,
            handled: 0,
            ended: 0,
            next_nonce: 1,
            budget,
            mutant,
            wrong: None,
        }
    }

    fn runs(&self, node: usize) -> bool {
        !self.nodes[node].is_dead && !self.nodes[node].is_stopped
    }

    fn write(&mut self, was: Option<Revision>, record: Record) -> Option<Revision> {
        if self.record.0.as_ref().map(|_| self.record.1) != was {
            return None;
        }
        let revision = Revision(self.record.1.0 + 1);
        self.before = std::mem::replace(&mut self.record, (Some(record), revision));
        Some(revision)
    }

    /// A node writes the record of the session that it has: with what it hears of it.
    fn keep(&mut self, at: usize, heard: Heard) -> Keep {
        let Some(owned) = self.nodes[at].owned.clone() else { return Keep::Later };
        let nonce = self.nonce();
        let record = owned.record(id(at, self.nodes[at].life), nonce);
        let lives = (0..=self.nodes[at].life).map(|life| id(at, life)).collect();
        let (keeping, mut keep) = Keeping::begin(Some(owned.revision), record.clone(), lives);
        let (mut keeping, mut heard) = (keeping.mutated(self.mutant), heard);
        while let Keep::Write(was) = keep {
            let won = if heard == Heard::NotDone { None } else { self.write(was, record.clone()) };
            let wrote = match won {
                Some(revision) if heard == Heard::Said || self.mutant == Mutant::UnknownIsWon => Wrote::Won(revision),
                None if heard == Heard::Said => {
                    Wrote::Lost(self.record.0.clone().map(|record| (record, self.record.1)))
                }
                None if self.mutant == Mutant::UnknownIsWon => Wrote::Won(owned.revision),
                _ => Wrote::Unknown,
            };
            // Once is enough.
            heard = Heard::Said;
            keep = keeping.wrote(wrote);
        }
        // As if the register had lost its data.
        if keep == Keep::Forgotten
            && let Some(revision) = self.write(None, record)
        {
            keep = Keep::Stays(revision);
        }
        match &keep {
            Keep::Stays(revision) => {
                self.nodes[at].is_stale = false;
                if let Some(owned) = &mut self.nodes[at].owned {
                    owned.thawed(*revision);
                }
            }
            Keep::Gone(to) if node_of(*to) == at => {
                self.wrong = Some(format!("{at} takes its own record for another node's"));
            }
            Keep::Gone(..) if self.nodes[at].is_stale => self.drop_session(at),
            Keep::GivenUp => self.drop_session(at),
            Keep::Gone(..) => self.moved(at),
            Keep::Forgotten | Keep::Later | Keep::Write(..) => {}
        }
        keep
    }

    /// What an owner may hear of its compare-and-set.
    fn heard(&self) -> &'static [Heard] {
        if 0 < self.budget.unknown { &[Heard::Said, Heard::NotSaid, Heard::NotDone] } else { &[Heard::Said] }
    }

    fn nonce(&mut self) -> u64 {
        self.next_nonce += 1;
        self.next_nonce
    }

    /// The client is told that it has its session again.
    fn welcome(&mut self, node: usize, attempt: u64, is_open: bool) {
        if !is_open {
            return;
        }
        self.connected = Some((node, attempt));
        let owns = self.record.0.as_ref().is_some_and(|record| record.owner == id(node, self.nodes[node].life));
        if !owns {
            self.wrong = Some(format!("{node} welcomes the client, and does not own the session"));
        }
        let has = self.nodes[node].owned.as_ref().map_or(0, |owned| owned.image);
        let owed = self.accepted & !self.handled & !self.ended;
        if owed & !has != 0 {
            self.wrong = Some(format!("pushes {owed:b} are owed, and the session has {has:b}"));
        }
    }

    /// True if a node that is not buried has the session. One that has begun another life may lose it to one that has buried
    /// the former. What was given stays frozen until its node hears that the record has moved: that is nobody's any more.
    fn lives(&self, revision: Revision) -> bool {
        let has = |node: &Node| {
            !node.is_stale && node.owned.as_ref().is_some_and(|owned| owned.is_live() || owned.revision == revision)
        };
        self.nodes.iter().any(|node| !node.is_dead && node.lease != Lease::Buried && has(node))
    }

    fn finish(&mut self, hello: usize, end: End) {
        self.hellos[hello].doing = Doing::Done;
        let gives_up = matches!(end, End::NodeLost | End::Unknown);
        if gives_up && self.mutant == Mutant::GivenUpIsForgotten {
            let revision = Revision(self.record.1.0 + 1);
            self.before = std::mem::replace(&mut self.record, (None, revision));
        }
        if !self.hellos[hello].is_open {
            // Nobody hears it, but the register may have been told.
            let has = |node: &Node| !node.is_dead && !node.is_stale && node.owned.as_ref().is_some_and(Owned::is_live);
            if gives_up && self.given_up_by == Some(hello) && !self.has_overlooked && self.nodes.iter().any(has) {
                self.wrong = Some("a session was given up for a connection that is over".to_owned());
            }
            return;
        }
        self.hellos[hello].is_open = false;
        match end {
            End::Again | End::Late => {}
            End::Unknown => {
                self.is_told = true;
                if self.lives(self.before.1) {
                    self.wrong = Some("it is said to be unknown, and lives".to_owned());
                }
            }
            End::NodeLost => {
                self.is_told = true;
                if self.lives(self.before.1) {
                    self.wrong = Some("its node is said to be lost, and has it".to_owned());
                }
            }
        }
        if self.is_told {
            self.budget = Budget { hellos: 0, pushes: 0, ..CALM };
        }
    }

    /// A Hello has a next step.
    fn go_on(&mut self, hello: usize, claim: Claim<Pushes>, step: Step<Pushes>) {
        let (at, life, attempt, is_open) = {
            let hello = &self.hellos[hello];
            (hello.at, hello.life, hello.attempt, hello.is_open)
        };
        // A claim under a name that is over goes no further, unless it may have been written.
        let is_over = self.nodes[at].life != life && claim.may_stop();
        if is_over && !matches!(step, Step::Install { .. } | Step::End(_)) {
            return self.finish(hello, End::Again);
        }
        self.hellos[hello].doing = match step {
            Step::Give(to) => {
                // The mutant that claims first asks the owner before it.
                let former = self.before.0.as_ref().map_or(NodeId(1), |record| record.owner);
                let to = if to == NodeId(0) { former } else { to };
                self.net.insert(Mail::Give { to: to.0, hello });
                Doing::Asks(claim, to)
            }
            Step::Install { term, revision, image } => {
                let owned = Owned::new(term, revision, attempt, image).mutated(self.mutant);
                if !is_open && self.connected.is_some() {
                    self.wrong = Some("a late Hello takes the session from its client".to_owned());
                }
                self.nodes[at].owned = Some(owned);
                self.nodes[at].gave_to = None;
                if self.nodes[at].life == life {
                    self.welcome(at, attempt, is_open);
                } else {
                    // It was won under a name that is over.
                    self.nodes[at].is_stale = true;
                }
                Doing::Done
            }
            Step::End(end) => return self.finish(hello, end),
            step => Doing::Claims(claim, step),
        };
    }

    fn arrive(&mut self, hello: usize, heard: Heard) {
        let Hello { at, attempt, is_open, .. } = self.hellos[hello].clone();
        let nonce = self.nonce();
        let life = self.nodes[at].life;
        self.hellos[hello].life = life;
        let me = id(at, life);
        let certain = self.nodes[at].is_certain;
        if self.nodes[at].is_stale {
            return self.finish(hello, End::Again);
        }
        if let Some(mut owned) = self.nodes[at].owned.clone() {
            let admission = owned.hello(attempt, me, nonce, certain);
            self.nodes[at].owned = Some(owned);
            match admission {
                Admission::Admit => {
                    self.hellos[hello].doing = Doing::Done;
                    return self.welcome(at, attempt, is_open);
                }
                Admission::Late => return self.finish(hello, End::Late),
                Admission::InDoubt => return self.finish(hello, End::Again),
                Admission::Thaw(..) => match self.keep(at, heard) {
                    Keep::Stays(_) => return self.arrive(hello, Heard::Said),
                    Keep::Gone(_) => {}
                    _ => return self.finish(hello, End::Again),
                },
            }
        }
        if self.is_claiming(at) {
            return self.finish(hello, End::Again);
        }
        let (claim, step) = Claim::begin(me, nonce);
        self.go_on(hello, claim.mutated(self.mutant), step);
    }

    /// The record has moved: what a node had is elsewhere.
    fn moved(&mut self, node: usize) {
        self.nodes[node].owned = None;
        self.nodes[node].gave_to = self.record.0.as_ref().map(|record| record.owner);
    }

    fn read(&self, old: bool, by: usize) -> Read {
        let (record, revision) = if old { &self.before } else { &self.record };
        match record {
            None => Read::Nothing,
            Some(record) if record.owner == NOBODY => Read::GivenUp,
            Some(record) => {
                let owner = &self.nodes[node_of(record.owner)];
                let owner_lives = owner.life == record.owner.0 / 10 && owner.lease == Lease::Lives;
                let (record, revision, may_judge) = (record.clone(), *revision, self.nodes[by].is_certain);
                let is_here = self.nodes[by].owned.is_some();
                Read::Record { record, revision, owner_lives, may_judge, is_here }
            }
        }
    }

    /// The images of claims at a node that may have won.
    fn in_hand(&self, node: usize) -> impl Iterator<Item = Pushes> {
        let of_node = self.hellos.iter().filter(move |hello| hello.at == node);
        of_node.filter_map(|hello| match &hello.doing {
            Doing::Claims(claim, _) => claim.in_hand().copied(),
            _ => None,
        })
    }

    /// True if a node is bringing the session there.
    fn is_claiming(&self, node: usize) -> bool {
        let is_at_work = |hello: &Hello| matches!(hello.doing, Doing::Claims(..) | Doing::Asks(..));
        self.hellos.iter().any(|hello| hello.at == node && is_at_work(hello))
    }

    fn ask_all(&self) -> Result<Option<NodeId>, ()> {
        let mut found = Ok(None);
        for (node, other) in self.nodes.iter().enumerate() {
            if other.lease == Lease::Lives && !self.runs(node) {
                return Err(());
            }
            if self.runs(node) && other.owned.is_some() {
                found = Ok(Some(id(node, other.life)));
            }
        }
        found
    }

    fn deliver(&mut self, mail: &Mail) {
        match mail {
            Mail::Give { to, hello } => {
                let (at, to) = (node_of(NodeId(*to)), NodeId(*to));
                let node = &mut self.nodes[at];
                if node.is_dead || id(at, node.life) != to {
                    return;
                }
                let (attempt, certain) = (self.hellos[*hello].attempt, node.is_certain);
                let is_claiming = self.mutant != Mutant::InHandIsNothing && self.is_claiming(at);
                let node = &mut self.nodes[at];
                let given = match (&mut node.owned, node.gave_to) {
                    (Some(_), _) if node.is_stale => Given::Silent,
                    (Some(owned), _) => owned.give(attempt, certain),
                    (None, Some(other)) => Given::Moved(other),
                    (None, None) if is_claiming => Given::Silent,
                    (None, None) => Given::Nothing,
                };
                self.answers.push(given);
                self.net.insert(Mail::Gave { hello: *hello, given: self.answers.len() as u8 - 1 });
            }
            Mail::Gave { hello, given } => {
                let runs = self.runs(self.hellos[*hello].at);
                if let Doing::Asks(claim, _) = self.hellos[*hello].doing.clone()
                    && runs
                {
                    let (mut claim, given) = (claim, self.answers[usize::from(*given)].clone());
                    let step = claim.gave(given);
                    self.go_on(*hello, claim, step);
                }
            }
        }
    }

    fn after(&self, what: String, change: impl FnOnce(&mut Self)) -> (String, Self) {
        let mut next = self.clone();
        change(&mut next);
        (what, next)
    }

    /// What a Hello does next.
    fn steps_of(&self, hello: usize, steps: &mut Vec<(String, Self)>) {
        let Hello { at, ref doing, is_open, .. } = self.hellos[hello];
        if !self.runs(at) {
            return;
        }
        let budget = self.budget;
        let mut claim = match doing {
            Doing::Arrived => {
                for heard in self.heard() {
                    steps.push(self.after(format!("{hello} is read at {at}: {heard:?}"), |next| {
                        next.budget.unknown -= u8::from(*heard != Heard::Said);
                        next.arrive(hello, *heard);
                    }));
                }
                return;
            }
            Doing::Asks(claim, to) => {
                let is_under_way = self.net.iter().any(|mail| match mail {
                    Mail::Give { hello: of, .. } | Mail::Gave { hello: of, .. } => *of == hello,
                });
                if !is_under_way || 0 < budget.lost {
                    steps.push(self.after(format!("{hello} hears nothing of {to}"), |next| {
                        next.budget.lost -= u8::from(is_under_way);
                        let mut claim = claim.clone();
                        let step = claim.gave(Given::Silent);
                        next.go_on(hello, claim, step);
                    }));
                }
                return;
            }
            Doing::Claims(claim, _) => claim.clone(),
            Doing::Done => return,
        };
        let Doing::Claims(_, step) = doing else { return };

        if 0 < budget.late && claim.may_stop() {
            steps.push(self.after(format!("the time of {hello} is over"), |next| {
                next.budget.late -= 1;
                next.finish(hello, End::Again);
            }));
        }
        if 0 < budget.down && matches!(step, Step::Read | Step::Write(..)) {
            steps.push(self.after(format!("{hello} finds the register down"), |next| {
                next.budget.down -= 1;
                let mut claim = claim.clone();
                let step = match step {
                    Step::Read => claim.read(Read::Down),
                    _ => claim.claimed(Written::Down),
                };
                next.go_on(hello, claim, step);
            }));
        }
        match step {
            Step::Read => {
                for old in [false, true] {
                    if old && budget.old_reads == 0 {
                        continue;
                    }
                    steps.push(self.after(format!("{hello} reads, old: {old}"), |next| {
                        next.budget.old_reads -= u8::from(old);
                        let mut claim = claim.clone();
                        let step = claim.read(self.read(old, at));
                        next.go_on(hello, claim, step);
                    }));
                }
            }
            Step::AskAll => steps.push(self.after(format!("{hello} asks all"), |next| {
                let step = claim.asked_all(self.ask_all());
                next.go_on(hello, claim, step);
            })),
            Step::Bury(node) => steps.push(self.after(format!("{hello} buries {node}"), |next| {
                let other = &mut next.nodes[node_of(*node)];
                let is_other_life = id(node_of(*node), other.life) != *node;
                let is_buried = is_other_life || other.lease != Lease::Lives;
                if is_buried && !is_other_life {
                    other.lease = Lease::Buried;
                }
                let step = claim.buried(is_buried);
                next.go_on(hello, claim, step);
            })),
            Step::Look => {
                let seen: &[bool] = if is_open || budget.unseen == 0 { &[true] } else { &[true, false] };
                for seen in seen {
                    for heard in self.heard() {
                        let what = format!("{hello} looks and writes, sees its end: {seen}, {heard:?}");
                        steps.push(self.after(what, |next| {
                            let mut claim = claim.clone();
                            next.budget.unseen -= u8::from(!seen);
                            next.has_overlooked |= !seen;
                            let step = claim.looked(is_open || !seen);
                            match step {
                                Step::Write(was, record) => next.claim(hello, claim, was, record, *heard),
                                step => next.go_on(hello, claim, step),
                            }
                        }));
                    }
                }
            }
            Step::Write(was, record) => {
                for heard in self.heard() {
                    steps.push(self.after(format!("{hello} writes: {heard:?}"), |next| {
                        next.claim(hello, claim.clone(), *was, record.clone(), *heard);
                    }));
                }
            }
            _ => {}
        }
    }

    /// A claim writes its record.
    fn claim(&mut self, hello: usize, mut claim: Claim<Pushes>, was: Option<Revision>, record: Record, heard: Heard) {
        let won = if heard == Heard::NotDone { None } else { self.write(was, record.clone()) };
        if won.is_some() && claim.in_hand().is_none() {
            (self.is_given_up, self.given_up_by) = (true, Some(hello));
        }
        let is_ours = self.record.0.as_ref() == Some(&record);
        let written = match heard {
            Heard::Said if is_ours => Written::Won(self.record.1),
            Heard::Said => Written::Lost,
            Heard::NotSaid | Heard::NotDone => {
                self.budget.unknown -= 1;
                Written::Unknown
            }
        };
        let step = claim.claimed(written);
        self.go_on(hello, claim, step);
    }

    /// What happens to a node.
    fn steps_at(&self, at: usize, steps: &mut Vec<(String, Self)>) {
        let node = &self.nodes[at];
        if (node.is_dead || node.is_stopped) && node.lease == Lease::Lives {
            steps.push(self.after(format!("the lease of {at} ends"), |next| next.nodes[at].lease = Lease::Ended));
        }
        if node.is_dead {
            return;
        }
        if node.is_stopped {
            steps.push(self.after(format!("{at} goes on"), |next| next.nodes[at].is_stopped = false));
            return;
        }
        if !node.is_certain {
            steps.push(self.after(format!("{at} renews"), |next| next.renew(at)));
        }
        let is_frozen = node.owned.as_ref().is_some_and(|owned| !owned.is_live());
        if node.is_certain && (is_frozen || node.is_stale) {
            for heard in self.heard() {
                steps.push(self.after(format!("{at} writes its record: {heard:?}"), |next| {
                    next.budget.unknown -= u8::from(*heard != Heard::Said);
                    if let Some(owned) = next.nodes[at].owned.as_mut().filter(|_| self.mutant == Mutant::ThawsAlone) {
                        return owned.thawed(owned.revision);
                    }
                    next.keep(at, *heard);
                }));
            }
        }
        if 0 < self.budget.pushes && node.owned.as_ref().is_some_and(Owned::is_live) {
            steps.push(self.after(format!("a push at {at}"), |next| {
                next.budget.pushes -= 1;
                let bit = 1 << next.budget.pushes;
                next.accepted |= bit;
                if let Some(owned) = &mut next.nodes[at].owned {
                    owned.image |= bit;
                }
            }));
        }
        if 0 < self.budget.ends && !node.is_stale && node.owned.as_ref().is_some_and(Owned::is_live) {
            steps.push(self.after(format!("the session ends at {at}"), |next| {
                next.budget.ends -= 1;
                next.is_given_up = true;
                next.drop_session(at);
            }));
        }
        if 0 < self.budget.kills {
            steps.push(self.after(format!("{at} is killed"), |next| {
                next.budget.kills -= 1;
                next.nodes[at].is_dead = true;
                let is_owner = next.record.0.as_ref().is_some_and(|record| record.owner == id(at, node.life));
                if is_owner {
                    next.ended |= self.in_hand(at).fold(0, |all, image| all | image);
                }
                next.drop_session(at);
            }));
        }
        if 0 < self.budget.stops {
            steps.push(self.after(format!("{at} is stopped"), |next| {
                next.budget.stops -= 1;
                next.nodes[at].is_stopped = true;
                next.nodes[at].is_certain = false;
            }));
        }
    }

    fn drop_session(&mut self, at: usize) {
        // A frozen session may be whole elsewhere, and its receipts are told by the node that has it.
        self.nodes[at].is_stale = false;
        if let Some(owned) = self.nodes[at].owned.take() {
            self.ended |= owned.image;
        }
        if self.connected.is_some_and(|(node, _)| node == at) {
            self.connected = None;
        }
    }

    /// Its lease goes on, or another life begins, and with it each session has to be won anew.
    fn renew(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.is_certain = true;
        if node.lease != Lease::Lives {
            node.life += 1;
            node.lease = Lease::Lives;
            node.is_stale = node.owned.is_some();
        }
    }

    /// The node that the record names, if it lives, has neither the session nor its image.
    fn names_one_without(&self) -> Option<usize> {
        let owner = self.record.0.as_ref().map(|record| record.owner).filter(|owner| *owner != NOBODY)?;
        let at = node_of(owner);
        let node = &self.nodes[at];
        let lives = !node.is_dead && node.lease != Lease::Buried && id(at, node.life) == owner;
        let has = node.owned.is_some() || self.in_hand(at).next().is_some();
        (lives && !has && !self.is_given_up).then_some(at)
    }
}

impl World for Three {
    type Step = String;

    fn steps(&self) -> Vec<(String, Self)> {
        let mut steps = Vec::new();
        if self.is_told {
            // A node that was stopped goes on, and has the session still.
            (0..NODES).for_each(|at| self.steps_at(at, &mut steps));
            return steps;
        }
        if (self.hellos.len() as u64) < self.budget.hellos {
            for at in (0..NODES).filter(|at| !self.nodes[*at].is_dead) {
                steps.push(self.after(format!("Hello {} at {at}", self.hellos.len()), |next| {
                    next.hellos.iter_mut().for_each(|hello| hello.is_open = false);
                    next.connected = None;
                    let (life, attempt) = (next.nodes[at].life, next.hellos.len() as u64 + 2);
                    next.hellos.push(Hello { at, life, attempt, is_open: true, doing: Doing::Arrived });
                }));
            }
        }
        for hello in 0..self.hellos.len() {
            self.steps_of(hello, &mut steps);
        }
        for mail in &self.net {
            let runs = match mail {
                Mail::Give { to, .. } => !self.nodes[node_of(NodeId(*to))].is_stopped,
                Mail::Gave { hello, .. } => !self.nodes[self.hellos[*hello].at].is_stopped,
            };
            if runs {
                steps.push(self.after(format!("{mail:?} arrives"), |next| {
                    next.net.remove(mail);
                    next.deliver(mail);
                }));
            }
            if 0 < self.budget.lost {
                steps.push(self.after(format!("{mail:?} is lost"), |next| {
                    next.budget.lost -= 1;
                    next.net.remove(mail);
                }));
            }
        }
        for at in 0..NODES {
            self.steps_at(at, &mut steps);
        }
        if let Some((at, attempt)) = self.connected
            && self.runs(at)
            && let Some(owned) = &self.nodes[at].owned
            && owned.is_live()
            && owned.last_try() == attempt
            && owned.image != 0
        {
            steps.push(self.after("the client handles".to_owned(), |next| {
                if let Some(owned) = &mut next.nodes[at].owned {
                    next.handled |= owned.image;
                    owned.image = 0;
                }
            }));
        }
        steps
    }

    fn fault(&self) -> Option<String> {
        let counts = |node: &&Node| {
            let is_owner = node.owned.as_ref().is_some_and(Owned::is_live);
            !node.is_dead && !node.is_stale && node.is_certain && node.lease != Lease::Buried && is_owner
        };
        if 1 < self.nodes.iter().filter(counts).count() {
            return Some("two nodes own the session".to_owned());
        }
        if self.is_told && self.nodes.iter().any(|node| counts(&node)) {
            return Some("a session that was given up is back".to_owned());
        }
        if let Some(at) = self.names_one_without() {
            return Some(format!("the record names {at}, which has not got the session"));
        }
        self.wrong.clone()
    }

    fn is_good_end(&self) -> bool {
        // Whether the client gets anywhere depends on how often it comes.
        true
    }
}

const CALM: Budget = Budget {
    hellos: 2,
    pushes: 1,
    kills: 0,
    stops: 0,
    lost: 0,
    old_reads: 0,
    unknown: 0,
    down: 0,
    unseen: 0,
    late: 0,
    ends: 0,
};

#[test]
fn a_session_has_one_owner_and_loses_nothing_on_its_way() {
    for (what, budget) in [
        ("no faults", CALM),
        ("lost mail", Budget { lost: 1, ..CALM }),
        ("old reads", Budget { old_reads: 1, ..CALM }),
        ("unknown ends", Budget { unknown: 2, ..CALM }),
        ("a stop", Budget { stops: 1, ..CALM }),
        ("a kill", Budget { kills: 1, ..CALM }),
        ("an end that is not seen", Budget { stops: 1, unseen: 1, ..CALM }),
        ("a register that is down", Budget { down: 2, ..CALM }),
        ("a register that goes down over an unknown end", Budget { unknown: 1, down: 1, late: 1, ..CALM }),
        ("unknown ends at a stop", Budget { unknown: 2, stops: 1, hellos: 1, ..CALM }),
        ("a session that ends", Budget { ends: 1, unknown: 1, old_reads: 1, ..CALM }),
        ("several pushes", Budget { pushes: 3, unknown: 1, ..CALM }),
        ("three hellos", Budget { hellos: 3, ..CALM }),
        ("all of them", Budget { kills: 1, stops: 1, lost: 1, old_reads: 1, unknown: 1, down: 1, late: 1, ..CALM }),
    ] {
        search(Three::new(Mutant::None, budget), bound(6000)).assert_well(what);
    }
}

/// A record of this owner's that is parked says where the session is: it is not written over. One of another node says that
/// that has it.
#[test]
fn an_owner_writes_over_no_session_that_is_in_the_store() {
    let record = |term, owner| Record { term, owner, nonce: owner.0 };
    let [me, former, other] = [NodeId(1), NodeId(2), NodeId(3)];
    let begin = || Keeping::begin(Some(Revision(1)), record(1, me), vec![former, me]).0;
    for (term, owner, becomes) in
        [(1, me, Keep::Later), (1, former, Keep::Later), (1, other, Keep::Gone(other)), (2, me, Keep::Gone(me))]
    {
        assert_eq!(begin().wrote(Wrote::Parked(record(term, owner))), becomes, "{term} {owner}");
    }
    for owner in [me, former] {
        let lost = Wrote::Lost(Some((record(1, owner), Revision(2))));
        assert_eq!(begin().wrote(lost), Keep::Write(Some(Revision(2))), "{owner}");
    }
}

/// R1 to R9, N13 and N14: each rule, left out, breaks a promise.
#[test]
fn each_mutant_of_the_claim_is_found() {
    for (mutant, budget) in [
        (Mutant::ThawsAlone, CALM),
        (Mutant::ClaimFirst, Budget { lost: 1, ..CALM }),
        (Mutant::NoLook, Budget { stops: 1, pushes: 0, ..CALM }),
        (Mutant::AnyTry, CALM),
        (Mutant::ReadIsVerdict, Budget { old_reads: 1, ..CALM }),
        (Mutant::SilenceIsDeath, Budget { lost: 1, ..CALM }),
        (Mutant::DoubtIsFine, Budget { stops: 1, unseen: 1, pushes: 0, ..CALM }),
        (Mutant::NoGravestone, Budget { stops: 1, ..CALM }),
        (Mutant::NoProof, Budget { old_reads: 1, stops: 1, ..CALM }),
        (Mutant::DoubtDrops, Budget { hellos: 1, unknown: 1, late: 1, ..CALM }),
        (Mutant::InHandIsNothing, Budget { unknown: 1, ..CALM }),
        (Mutant::OwnIsOthers, Budget { unknown: 1, ..CALM }),
        (Mutant::UnknownIsWon, Budget { unknown: 1, ..CALM }),
        (Mutant::GivenUpIsForgotten, Budget { stops: 1, hellos: 1, pushes: 0, ..CALM }),
        (Mutant::FormerIsOthers, Budget { unknown: 1, stops: 1, hellos: 1, pushes: 0, ..CALM }),
    ] {
        search(Three::new(mutant, budget), 200_000).assert_found(&format!("{mutant:?}"));
    }
}
