//! Two nodes and the mail between them: a link each way, and the receipts of two pushes. Mail is lost, late, doubled and out
//! of order; batches are given up too early; the other node dies.

use std::collections::BTreeSet;

use super::{World, bound, search};
use crate::{
    cluster::{
        link::{self, Arrival, Incoming, Number, Outgoing},
        remote::{self, At, Moved, Origin, Owed, PushNumber, State},
    },
    session::{NodeId, UnreachedWhy},
};

/// At most.
const PUSHES: usize = 2;

/// Batches of one direction, as far as a search goes: twice of what is needed where all is right.
const BATCHES: u64 = 14;

const OTHER: NodeId = NodeId(2);

/// How far a push is at its one target: 1, 2, then 3, which is final. 4: nobody knows.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
struct Far(u8);

const HANDLED: Far = Far(3);
const UNKNOWN: Far = Far(4);

impl State for Far {
    fn is_final(&self) -> bool {
        HANDLED <= *self
    }

    fn to_unknown(&self) -> Self {
        UNKNOWN
    }

    fn precedes(&self, other: &Self) -> bool {
        self < other
    }
}

#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
enum Item {
    Push(PushNumber),
    Digest(Vec<PushNumber>),
}

/// What the items of a batch were answered with: states by push.
type Answer = Vec<(PushNumber, Option<Far>)>;

#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
enum Mail {
    ToOther(u64, u64, Vec<Item>),
    OtherAnswers(u64, u64, Answer),
    ToOrigin(u64, u64, Vec<(PushNumber, Far)>),
    OriginAnswers(u64, u64),
}

/// What may still go wrong, and how often.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Budget {
    lost: u8,
    doubled: u8,
    early: u8,
    kills: u8,
    digests: u8,
}

#[derive(Clone, Debug, Hash)]
struct Two {
    origin: Origin<Far>,
    out: Outgoing<Item>,
    at_origin: Incoming<()>,
    other: Owed<Far>,
    back: Outgoing<(PushNumber, Far)>,
    at_other: Incoming<Answer>,
    net: BTreeSet<Mail>,
    /// How many are to be pushed, and have been.
    pushes: u64,
    pushed: u64,
    /// How often each was run, and how far it is in truth.
    ran: [u8; PUSHES],
    truth: [Far; PUSHES],
    /// What the origin's receipt said last.
    said: [Option<At<Far>>; PUSHES],
    is_alive: bool,
    has_left: bool,
    budget: Budget,
    wrong: Option<String>,
}

#[derive(Clone, Debug)]
enum Step {
    Push,
    Send,
    SendBack,
    Deliver(#[allow(dead_code, reason = "shown in traces")] Mail),
    DeliverAndKeep(#[allow(dead_code, reason = "shown in traces")] Mail),
    Lose(#[allow(dead_code, reason = "shown in traces")] Mail),
    GiveUp,
    GiveUpBack,
    Digest,
    Further(#[allow(dead_code, reason = "shown in traces")] usize),
    Kill,
    Left,
}

impl Two {
    fn new(link: link::Mutant, remote: remote::Mutant, pushes: u64, budget: Budget) -> Self {
        Self {
            origin: Origin::mutated(remote),
            out: Outgoing::mutated(link),
            at_origin: Incoming::mutated(link),
            other: Owed::mutated(remote),
            back: Outgoing::mutated(link),
            at_other: Incoming::mutated(link),
            net: BTreeSet::new(),
            pushes,
            pushed: 0,
            ran: [0; PUSHES],
            truth: [Far(0); PUSHES],
            said: Default::default(),
            is_alive: true,
            has_left: false,
            budget,
            wrong: None,
        }
    }

    fn note(&mut self, moved: impl IntoIterator<Item = Moved<Far>>) {
        for moved in moved {
            let of = moved.push as usize;
            if let Some(At::Unreached { .. }) = &self.said[of] {
                self.wrong = Some(format!("push {of} goes on after its end: {moved:?}"));
            }
            if let (Some(At::Told(before)), At::Told(after)) = (&self.said[of], &moved.to)
                && after < before
            {
                self.wrong = Some(format!("push {of} goes back: {moved:?}"));
            }
            self.said[of] = Some(moved.to);
        }
    }

    fn arrive_at_other(&mut self, number: Number, items: &[Item]) {
        let answer = match self.at_other.arrive(number) {
            Arrival::Old => return,
            Arrival::Repeat(answer) => answer,
            Arrival::Run { confirms, breaks } => {
                if confirms {
                    self.other.confirmed();
                }
                if breaks {
                    self.other.broken();
                }
                let mut answer = Answer::new();
                for item in items {
                    match item {
                        Item::Push(push) => {
                            self.ran[*push as usize] += 1;
                            // The second is over when it is run, as one that nobody confirms.
                            let far = if *push == 0 { Far(1) } else { HANDLED };
                            self.truth[*push as usize] = far;
                            self.other.taken(*push, far);
                            answer.push((*push, Some(far)));
                        }
                        Item::Digest(pushes) => {
                            answer.extend(pushes.iter().map(|push| (*push, self.other.asked(*push))));
                        }
                    }
                }
                self.at_other.done(number, answer.clone());
                answer
            }
        };
        self.net.insert(Mail::OtherAnswers(number.epoch, number.n, answer));
    }

    fn answered(&mut self, number: Number, answer: &Answer) {
        let Some(items) = self.out.answered(number) else { return };
        let digested = items.iter().any(|item| matches!(item, Item::Digest(_)));
        for (push, state) in answer {
            let moved = match state {
                Some(state) => self.origin.told(*push, OTHER, *state),
                None if digested => self.origin.digested(*push, OTHER, None),
                None => None,
            };
            self.note(moved);
        }
    }

    fn deliver(&mut self, mail: &Mail) {
        match mail {
            Mail::ToOther(epoch, n, items) if self.is_alive => {
                self.arrive_at_other(Number { epoch: *epoch, n: *n }, items);
            }
            Mail::OtherAnswers(epoch, n, answer) => self.answered(Number { epoch: *epoch, n: *n }, answer),
            Mail::ToOrigin(epoch, n, states) => {
                let number = Number { epoch: *epoch, n: *n };
                match self.at_origin.arrive(number) {
                    Arrival::Old => return,
                    Arrival::Repeat(()) => {}
                    Arrival::Run { .. } => {
                        for (push, state) in states {
                            let moved = self.origin.told(*push, OTHER, *state);
                            self.note(moved);
                        }
                        self.at_origin.done(number, ());
                    }
                }
                self.net.insert(Mail::OriginAnswers(*epoch, *n));
            }
            Mail::OriginAnswers(epoch, n) if self.is_alive => {
                let heard = self.back.answered(Number { epoch: *epoch, n: *n });
                heard.into_iter().flatten().for_each(|(push, _)| self.other.heard(push));
            }
            _ => {}
        }
    }

    /// True if the mail of what is in flight, or its answer, is still under way.
    fn is_under_way(&self, to_other: bool) -> bool {
        self.net.iter().any(|mail| match mail {
            Mail::ToOther(..) | Mail::OtherAnswers(..) => to_other,
            Mail::ToOrigin(..) | Mail::OriginAnswers(..) => !to_other,
        })
    }

    /// Nothing moves by itself any more.
    fn is_quiet(&self) -> bool {
        let settled = self.truth.iter().all(|far| *far == Far(0) || *far == HANDLED);
        self.net.is_empty()
            && self.out.is_idle()
            && (!self.is_alive || (self.back.is_idle() && !self.other.is_due() && settled))
    }

    fn after(&self, step: Step, change: impl FnOnce(&mut Self)) -> (Step, Self) {
        let mut next = self.clone();
        change(&mut next);
        (step, next)
    }
}

impl World for Two {
    type Step = Step;

    fn steps(&self) -> Vec<(Step, Self)> {
        let mut steps = Vec::new();
        if self.pushed < self.pushes && !self.has_left {
            steps.push(self.after(Step::Push, |next| {
                next.origin.push(next.pushed, [OTHER]);
                next.out.offer(Item::Push(next.pushed), 1).expect("there is room");
                next.pushed += 1;
            }));
        }
        let mut sent = self.clone();
        if let Some((number, items)) = sent.out.begin(1).filter(|(number, _)| number.epoch + number.n < BATCHES) {
            sent.net.insert(Mail::ToOther(number.epoch, number.n, items));
            steps.push((Step::Send, sent));
        }
        if self.is_alive {
            let mut said = self.clone();
            for state in said.other.say(1) {
                said.back.offer(state, 1).expect("there is room");
            }
            let begun = said.back.begin(1).filter(|(number, _)| number.epoch + number.n < BATCHES);
            if let Some((number, states)) = begun {
                said.net.insert(Mail::ToOrigin(number.epoch, number.n, states));
                steps.push((Step::SendBack, said));
            }
        }

        for mail in &self.net {
            steps.push(self.after(Step::Deliver(mail.clone()), |next| {
                next.net.remove(mail);
                next.deliver(mail);
            }));
            if 0 < self.budget.doubled {
                steps.push(self.after(Step::DeliverAndKeep(mail.clone()), |next| {
                    next.budget.doubled -= 1;
                    next.deliver(mail);
                }));
            }
            if 0 < self.budget.lost {
                steps.push(self.after(Step::Lose(mail.clone()), |next| {
                    next.budget.lost -= 1;
                    next.net.remove(mail);
                }));
            }
        }

        let is_early = self.is_under_way(true);
        if !self.out.is_idle() && (!is_early || 0 < self.budget.early) {
            let mut next = self.clone();
            let given_up = next.out.give_up();
            if !given_up.is_empty() {
                next.budget.early -= u8::from(is_early);
                for item in given_up {
                    if let Item::Push(push) = item {
                        let moved = next.origin.gave_up(push, OTHER, UnreachedWhy::TimedOut);
                        next.note(moved);
                    }
                }
                steps.push((Step::GiveUp, next));
            }
        }
        let is_early = self.is_under_way(false);
        if self.is_alive && !self.back.is_idle() && (!is_early || 0 < self.budget.early) {
            let mut next = self.clone();
            let given_up = next.back.give_up();
            if !given_up.is_empty() {
                next.budget.early -= u8::from(is_early);
                given_up.into_iter().for_each(|(push, _)| next.other.unheard(push));
                steps.push((Step::GiveUpBack, next));
            }
        }

        let digest = self.origin.digest(OTHER);
        // One that nothing else can replace costs nothing.
        let is_needed = self.is_quiet() && self.is_alive;
        if !digest.is_empty() && (is_needed || 0 < self.budget.digests) {
            steps.push(self.after(Step::Digest, |next| {
                next.budget.digests -= u8::from(!is_needed);
                next.out.offer(Item::Digest(digest), 1).expect("there is room");
            }));
        }

        for of in 0..PUSHES {
            if self.is_alive && Far(0) < self.truth[of] && self.truth[of] < HANDLED {
                steps.push(self.after(Step::Further(of), |next| {
                    next.truth[of].0 += 1;
                    next.other.changed(of as PushNumber, next.truth[of]);
                }));
            }
        }
        if self.is_alive && 0 < self.budget.kills {
            steps.push(self.after(Step::Kill, |next| {
                next.budget.kills -= 1;
                next.is_alive = false;
            }));
        }
        if !self.is_alive && !self.has_left {
            steps.push(self.after(Step::Left, |next| {
                next.has_left = true;
                let waiting = next.out.take_waiting();
                for item in waiting {
                    if let Item::Push(push) = item {
                        let moved = next.origin.not_sent(push, OTHER, UnreachedWhy::NodeLost);
                        next.note(moved);
                    }
                }
                let moved = next.origin.lost(OTHER, UnreachedWhy::NodeLost);
                next.note(moved);
            }));
        }
        steps
    }

    fn fault(&self) -> Option<String> {
        if let Some(wrong) = &self.wrong {
            return Some(wrong.clone());
        }
        for of in 0..PUSHES {
            if 1 < self.ran[of] {
                return Some(format!("push {of} was run twice"));
            }
            let truth = self.truth[of];
            match &self.said[of] {
                Some(At::Unreached { maybe: false, .. }) if 0 < self.ran[of] => {
                    return Some(format!("push {of} was run, and its receipt says that it was not"));
                }
                Some(At::Unreached { maybe: true, .. }) if !self.has_left => {
                    return Some(format!("push {of}: nobody knows, and the node lives"));
                }
                Some(At::Told(UNKNOWN)) if !self.has_left => {
                    return Some(format!("push {of} is unknown, and the node lives"));
                }
                Some(At::Told(far)) if *far != UNKNOWN && truth < *far => {
                    return Some(format!("push {of} is said to be further than it is"));
                }
                _ => {}
            }
        }
        None
    }

    fn is_good_end(&self) -> bool {
        let all_over = self.pushed == self.pushes || self.has_left;
        let nothing_owed = !self.is_alive || self.other.len() <= self.other.nearly_forgotten();
        all_over && self.origin.len() == 0 && nothing_owed
    }
}

fn budget(lost: u8, doubled: u8, early: u8, kills: u8) -> Budget {
    Budget { lost, doubled, early, kills, digests: 1 }
}

/// Links and receipts as they are: in all that can happen, each push is run once at most, no receipt says what is not so,
/// and each can still end.
#[test]
fn mail_between_two_nodes_runs_each_push_once_and_ends_each_receipt() {
    let well = |pushes, budget: Budget| {
        let what = format!("{pushes} pushes, {budget:?}");
        search(Two::new(link::Mutant::None, remote::Mutant::None, pushes, budget), bound(8000)).assert_well(&what);
    };
    for (lost, doubled, early, kills) in [(0, 0, 0, 1), (1, 0, 0, 0), (0, 1, 1, 0), (1, 1, 1, 1)] {
        well(1, budget(lost, doubled, early, kills));
        well(2, budget(lost, doubled, early, kills));
    }
}

/// R16, and each rule that a link is made of: without it, a search finds a fault.
#[test]
fn each_mutant_of_the_link_is_found() {
    use link::Mutant;
    for (mutant, pushes, budget) in [
        (Mutant::GoBackN, 1, budget(1, 0, 0, 0)),
        (Mutant::SameEpoch, 2, budget(0, 1, 1, 0)),
        (Mutant::NoMemory, 1, budget(0, 1, 0, 0)),
        (Mutant::OldEpochsRun, 1, budget(0, 0, 1, 0)),
        (Mutant::AnyAnswer, 2, budget(0, 1, 0, 0)),
    ] {
        let two = Two::new(mutant, remote::Mutant::None, pushes, budget);
        search(two, 100_000).assert_found(&format!("{mutant:?}"));
    }
}

/// R17, and each rule that receipts are made of.
#[test]
fn each_mutant_of_the_receipts_is_found() {
    use remote::Mutant;
    for (mutant, pushes, budget) in [
        (Mutant::SaidOnce, 1, budget(1, 0, 0, 0)),
        (Mutant::DoubtIsNo, 1, budget(0, 0, 1, 0)),
        (Mutant::NoDigest, 1, budget(1, 0, 0, 0)),
        (Mutant::LeftIsIgnored, 1, budget(0, 0, 0, 1)),
        (Mutant::ForgottenTooSoon, 2, budget(1, 0, 0, 0)),
        (Mutant::LateCounts, 1, budget(0, 1, 0, 0)),
    ] {
        let two = Two::new(link::Mutant::None, mutant, pushes, budget);
        search(two, 100_000).assert_found(&format!("{mutant:?}"));
    }
}
