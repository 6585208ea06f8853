//! A node that stops, and the receipt of a push whose session has gone on: to another node, or into the store. Words are
//! lost, late, doubled and out of order; nodes die.

use std::collections::BTreeSet;

use super::{World, bound, search};
use crate::{
    cluster::remote::{At, Moved, Mutant, Name, Origin, Owed, Part, State},
    session::{NodeId, UnreachedWhy},
};

/// The node that stops, and the one that has the session after it.
const ONE: NodeId = NodeId(2);
const OTHER: NodeId = NodeId(3);
const PUSH: u64 = 7;
const PART: Name = (ONE, 9);

/// How far the push is at its target: 1, 2, then 3, which is final. 4: nobody knows.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
struct Far(u8);

const HANDLED: Far = Far(3);
const UNKNOWN: Far = Far(4);
/// Of no target.
const NONE: Far = Far(5);

impl State for Far {
    fn is_final(&self) -> bool {
        HANDLED <= *self
    }

    fn to_unknown(&self) -> Self {
        if *self == NONE { NONE } else { UNKNOWN }
    }

    fn precedes(&self, other: &Self) -> bool {
        self < other
    }
}

#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
enum Mail {
    /// The node that stops still tells what it has.
    Told(Far),
    /// Its last word: where the session is, and how far the push was.
    Last(Option<NodeId>, Far),
    /// The other node tells of the part.
    Part(Far),
    Digested(Option<Far>),
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Where {
    AtOne,
    InStore,
    AtOther,
}

#[derive(Clone, Debug, Hash)]
struct Stop {
    origin: Origin<Far>,
    /// What the other node owes the origin, once the one is gone.
    owed: Owed<Far, Name>,
    /// What it has said and was not answered yet: its link has one batch under way.
    saying: Option<Far>,
    net: BTreeSet<Mail>,
    place: Where,
    truth: Far,
    /// What the one knows of it.
    known: Far,
    said: Option<At<Far>>,
    /// The one has said its last words; it is gone; the other is.
    has_said_last: bool,
    one_is_gone: bool,
    other_is_gone: bool,
    /// The last word came.
    is_heard: bool,
    is_overdue: bool,
    lost: u8,
    doubled: u8,
    kills: u8,
    wrong: Option<String>,
}

#[derive(Clone, Debug)]
enum Step {
    Further,
    Tell,
    Move(#[allow(dead_code, reason = "shown in traces")] bool),
    Hear,
    LastWord,
    OneIsGone,
    OtherIsGone,
    TakeOut,
    Say,
    Overdue,
    Digest,
    Deliver(#[allow(dead_code, reason = "shown in traces")] Mail),
    Keep(#[allow(dead_code, reason = "shown in traces")] Mail),
    Lose(#[allow(dead_code, reason = "shown in traces")] Mail),
}

impl Stop {
    fn new(mutant: Mutant, lost: u8, doubled: u8, kills: u8) -> Self {
        let mut origin = Origin::mutated(mutant);
        origin.push(PUSH, [ONE]);
        let _ = origin.told(PUSH, ONE, Far(1));
        Self {
            origin,
            owed: Owed::mutated(mutant),
            saying: None,
            net: BTreeSet::new(),
            place: Where::AtOne,
            truth: Far(1),
            known: Far(1),
            said: Some(At::Told(Far(1))),
            has_said_last: false,
            one_is_gone: false,
            other_is_gone: false,
            is_heard: false,
            is_overdue: false,
            lost,
            doubled,
            kills,
            wrong: None,
        }
    }

    /// What the receipt says of the target.
    fn receipt(&self) -> Option<Far> {
        match self.said.as_ref()? {
            At::Told(far) => Some(*far),
            At::Gone { rest, parts } => Some(parts.values().next().map_or(*rest, |part| part.state)),
            _ => None,
        }
    }

    fn note(&mut self, moved: impl IntoIterator<Item = Moved<Far>>) {
        for moved in moved {
            let before = self.receipt();
            self.said = Some(moved.to);
            if self.receipt() < before {
                self.wrong = Some(format!("it goes back from {before:?} to {:?}", self.receipt()));
            }
        }
    }

    fn deliver(&mut self, mail: Mail) {
        let moved = match mail {
            Mail::Told(far) => self.origin.told(PUSH, ONE, far),
            Mail::Last(at, far) => {
                self.is_heard = true;
                // One that is no member counts as not seen yet: what it has waits for its word, and for its time.
                let at = at.filter(|_| !self.other_is_gone);
                self.origin.left(PUSH, ONE, NONE, [(PART, Part { at, state: far })])
            }
            Mail::Part(far) => {
                let moved = self.origin.part_told(PART, OTHER, far);
                // The answer to a batch that is not under way any more says nothing.
                if self.saying == Some(far) {
                    self.saying = None;
                    self.owed.heard(PART);
                }
                moved
            }
            Mail::Digested(far) => self.origin.part_digested(PART, OTHER, far),
        };
        self.note(moved);
    }

    fn after(&self, step: Step, change: impl FnOnce(&mut Self)) -> (Step, Self) {
        let mut next = self.clone();
        change(&mut next);
        (step, next)
    }

    /// The other node has the session, and the one is gone: it tells the origin itself.
    fn owe(&mut self) {
        if self.one_is_gone && self.place == Where::AtOther && self.owed.state(PART).is_none() {
            self.owed.came(PART, self.truth, Vec::new());
        }
    }
}

impl World for Stop {
    type Step = Step;

    fn steps(&self) -> Vec<(Step, Self)> {
        let mut steps = Vec::new();
        let is_served = match self.place {
            Where::AtOne => !self.one_is_gone,
            Where::InStore => false,
            Where::AtOther => !self.other_is_gone,
        };
        if is_served && self.truth < HANDLED {
            steps.push(self.after(Step::Further, |next| {
                next.truth.0 += 1;
                if next.place == Where::AtOne {
                    next.known = next.truth;
                }
                next.owed.changed(PART, next.truth);
            }));
        }
        if !self.one_is_gone {
            if !self.has_said_last && self.said != Some(At::Told(self.known)) {
                steps.push(self.after(Step::Tell, |next| _ = next.net.insert(Mail::Told(next.known))));
            }
            if self.place == Where::AtOne && !self.known.is_final() {
                steps.push(self.after(Step::Move(true), |next| next.place = Where::AtOther));
                steps.push(self.after(Step::Move(false), |next| next.place = Where::InStore));
            }
            // What the other node tells it, it passes on.
            if !self.has_said_last && self.place == Where::AtOther && self.known < self.truth {
                steps.push(self.after(Step::Hear, |next| next.known = next.truth));
            }
            if self.place != Where::AtOne && !self.has_said_last && !self.known.is_final() {
                steps.push(self.after(Step::LastWord, |next| {
                    next.has_said_last = true;
                    let at = (next.place == Where::AtOther).then_some(OTHER);
                    next.net.insert(Mail::Last(at, next.known));
                }));
            }
            if self.has_said_last || 0 < self.kills {
                steps.push(self.after(Step::OneIsGone, |next| {
                    next.kills -= u8::from(!next.has_said_last);
                    next.one_is_gone = true;
                    // Nobody reads what it has said and was not heard.
                    next.net.retain(|mail| !matches!(mail, Mail::Told(_) | Mail::Last(..)));
                    let moved = next.origin.lost(ONE, UnreachedWhy::NodeLost);
                    next.note(moved);
                    next.owe();
                }));
            }
        }
        if self.place == Where::InStore && !self.is_overdue && !self.other_is_gone {
            steps.push(self.after(Step::TakeOut, |next| {
                next.place = Where::AtOther;
                next.owe();
            }));
        }
        // The node that took it out may be gone before it has said so.
        if (self.place == Where::InStore || self.other_is_gone) && self.is_heard && !self.is_overdue {
            steps.push(self.after(Step::Overdue, |next| {
                next.is_overdue = true;
                let moved = next.origin.part_overdue(PART);
                next.note(moved);
            }));
        }
        if !self.other_is_gone {
            if self.owed.is_due() && self.saying.is_none() {
                steps.push(self.after(Step::Say, |next| {
                    next.saying = next.owed.say(1).first().map(|(_, far)| *far);
                    next.net.extend(next.saying.map(Mail::Part));
                }));
            }
            if 0 < self.kills {
                steps.push(self.after(Step::OtherIsGone, |next| {
                    next.kills -= 1;
                    next.other_is_gone = true;
                    next.net.retain(|mail| !matches!(mail, Mail::Part(_) | Mail::Digested(_)));
                    let moved = next.origin.lost(OTHER, UnreachedWhy::NodeLost);
                    next.note(moved);
                }));
            }
            let is_asked = !self.origin.digest_parts(OTHER).is_empty();
            if is_asked && self.net.is_empty() && self.one_is_gone {
                steps.push(self.after(Step::Digest, |next| {
                    let answer = next.owed.asked(PART);
                    next.net.insert(Mail::Digested(answer));
                }));
            }
        }
        for mail in &self.net {
            steps.push(self.after(Step::Deliver(*mail), |next| {
                next.net.remove(mail);
                next.deliver(*mail);
            }));
            if 0 < self.doubled {
                steps.push(self.after(Step::Keep(*mail), |next| {
                    next.doubled -= 1;
                    next.deliver(*mail);
                }));
            }
            // What a link loses it says again; what the one has said is lost with it.
            if 0 < self.lost && matches!(mail, Mail::Part(_) | Mail::Digested(_)) {
                steps.push(self.after(Step::Lose(*mail), |next| {
                    next.lost -= 1;
                    next.net.remove(mail);
                    if next.saying.is_some_and(|far| *mail == Mail::Part(far)) {
                        next.saying = None;
                        next.owed.unheard(PART);
                    }
                }));
            }
        }
        steps
    }

    fn fault(&self) -> Option<String> {
        if let Some(wrong) = &self.wrong {
            return Some(wrong.clone());
        }
        let said = self.receipt()?;
        if said == NONE {
            return Some("a target is forgotten".to_owned());
        }
        if said == UNKNOWN && self.is_heard && !self.other_is_gone && !self.is_overdue {
            return Some("the last word came, the session lives, and its receipt is unknown".to_owned());
        }
        (said != UNKNOWN && self.truth < said).then(|| "it is said to be further than it is".to_owned())
    }

    fn is_good_end(&self) -> bool {
        self.origin.len() == 0
    }
}

/// In all that can happen the receipt says what is so, and comes to an end.
#[test]
fn a_receipt_follows_its_session_from_a_node_that_stops() {
    for (lost, doubled, kills) in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 2)] {
        let what = format!("{lost} lost, {doubled} doubled, {kills} killed");
        search(Stop::new(Mutant::None, lost, doubled, kills), bound(60_000)).assert_well(&what);
    }
}

/// Each rule of last words: without it, a search finds a fault.
#[test]
fn each_mutant_of_the_last_words_is_found() {
    for (mutant, kills) in [(Mutant::LastWordIsIgnored, 0), (Mutant::NeverOverdue, 0), (Mutant::PartsStay, 1)] {
        search(Stop::new(mutant, 0, 0, kills), 100_000).assert_found(&format!("{mutant:?}"));
    }
}
