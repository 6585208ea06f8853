//! Who has a session, when its client comes to another node. No I/O, no clock.
//!
//! ```text
//!  Hello at B ──► read the record ──► ask its owner for the session (Give)
//!                   ▲                   ├─ image ──► compare-and-set on the revision that came with it ─► install
//!                   └───── lost ◄───────┘                └─ unknown ─► the same once more, until it is known
//!                 ├─ it names this node, or one that answers, and there is nothing: is the connection still open? ─►
//!                 │  compare-and-set ─► unknown
//!                 ├─ it is parked: read the image from the store, compare-and-set ─► install
//!                 ├─ the owner is silent, or the register: refused for now, and the client keeps its session
//!                 ├─ its lease has ended: gravestone ─► is the connection still open? ─► compare-and-set ─► node lost
//!                 ├─ it was given up ─► unknown
//!                 └─ no record: every member is asked; if all answer, and none has it, a record is created: only where
//!                    that can be done, the session is unknown
//! ```
//!
//! The image comes first and the compare-and-set second: anyone who dies on the way leaves a record that names a node
//! that has the session. The owner stays frozen until the record has moved, or thaws by a compare-and-set of its own.
//! Where nobody knows how a compare-and-set ended the image is kept, and the same is written once more, on the same
//! revision and under the same nonce: if it was written, the register says so, and if not, it is now. Until one of them is
//! certain the record may name this node, and so the session is not let go ([`Claim::may_stop`]).
//! What gives a session up writes that it is [`NOBODY`]'s, and stays in the register: a node that was stopped has it still,
//! and would write its record anew, and push to a session that its client knows to be lost.
//! The term moves with the owner. Connections of one owner are numbered by the client, and the owner admits only a
//! greater number.

use super::engine::{NodeId, Revision};

/// Whose a session is that was given up: no node has this name.
pub(super) const NOBODY: NodeId = NodeId(0);

/// How often a claim begins anew before the client is refused for now.
const ROUNDS_MAX: u8 = 3;
/// How often an owner finds a record of its own in its way, before it tries again later.
const OWN_MAX: u8 = 8;
/// How many nodes a claim is sent on by.
const HOPS_MAX: u8 = 8;

/// What goes wrong on purpose, so that a search is seen to find it.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub(super) enum Mutant {
    #[default]
    None,
    /// R1: a frozen owner goes on without asking the register.
    #[cfg(test)]
    ThawsAlone,
    /// R1: the record is claimed before the image is there.
    #[cfg(test)]
    ClaimFirst,
    /// R8: nobody looks at the connection before a session is given up.
    #[cfg(test)]
    NoLook,
    /// R2: the owner admits any attempt.
    #[cfg(test)]
    AnyTry,
    /// R4: a record that is not read is no session.
    #[cfg(test)]
    ReadIsVerdict,
    /// R5: an owner that does not answer is lost, although its lease lives.
    #[cfg(test)]
    SilenceIsDeath,
    /// R9: an owner whose lease is not certain goes on.
    #[cfg(test)]
    DoubtIsFine,
    /// A session is given up without a gravestone.
    #[cfg(test)]
    NoGravestone,
    /// Members that have nothing are proof enough, although an owner may be stopped, and no member.
    #[cfg(test)]
    NoProof,
    /// N14: a claim of which nobody knows whether it was written lets go of the session.
    #[cfg(test)]
    DoubtDrops,
    /// A node that has a session in its hands says that it has none.
    #[cfg(test)]
    InHandIsNothing,
    /// N13: a record of its own, from a try of which nobody knew how it ended, is another node's to an owner.
    #[cfg(test)]
    OwnIsOthers,
    /// An owner that does not know whether it was written takes it that it was.
    #[cfg(test)]
    UnknownIsWon,
    /// A record that names an earlier life of the owner is another node's to it.
    #[cfg(test)]
    FormerIsOthers,
    /// That a session was given up is forgotten at once.
    #[cfg(test)]
    GivenUpIsForgotten,
}

/// What the register has of a session.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Record {
    pub(super) term: u64,
    pub(super) owner: NodeId,
    /// Of the claim that wrote it: one whose end is unknown finds itself again.
    pub(super) nonce: u64,
}

/// What an owner answers to a Hello.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) enum Admission {
    Admit,
    Late,
    /// It is frozen: this is to be written first, on this revision. [`Owned::thawed`] follows.
    Thaw(Revision, Record),
    /// Its lease is in doubt: not now.
    InDoubt,
}

/// What an owner answers to one that wants the session.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) enum Given<I> {
    Image {
        term: u64,
        revision: Revision,
        image: I,
    },
    /// It has admitted a later attempt.
    Late,
    /// It is not here, or cannot go.
    NotMine,
    /// There is nothing of it, and nothing is on its way: a record that names the one that says so names nobody.
    Nothing,
    /// This node has it now.
    Moved(NodeId),
    /// Nothing was answered in time, or the owner is in doubt.
    Silent,
}

/// A session at its owner.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Owned<I> {
    pub(super) term: u64,
    /// Of the record, as this owner wrote it.
    pub(super) revision: Revision,
    /// The greatest attempt that was admitted, or for which it was given.
    last_try: u64,
    is_frozen: bool,
    /// What the session is.
    pub(super) image: I,
    mutant: Mutant,
}

impl<I: Clone> Owned<I> {
    pub(super) fn new(term: u64, revision: Revision, last_try: u64, image: I) -> Self {
        Self { term, revision, last_try, is_frozen: false, image, mutant: Mutant::None }
    }

    #[cfg(test)]
    pub(super) fn mutated(self, mutant: Mutant) -> Self {
        Self { mutant, ..self }
    }

    pub(super) fn is_live(&self) -> bool {
        !self.is_frozen
    }

    /// Its image could not be made: it goes nowhere.
    pub(super) fn not_given(&mut self) {
        self.is_frozen = false;
    }

    pub(super) fn last_try(&self) -> u64 {
        self.last_try
    }

    /// The client has come here. `certain`: the lease of this node surely lives.
    pub(super) fn hello(&mut self, attempt: u64, me: NodeId, nonce: u64, certain: bool) -> Admission {
        #[cfg(test)]
        let certain = certain || self.mutant == Mutant::DoubtIsFine;
        if !certain {
            return Admission::InDoubt;
        }
        let is_late = attempt <= self.last_try;
        #[cfg(test)]
        let is_late = is_late && self.mutant != Mutant::AnyTry;
        if is_late {
            return Admission::Late;
        }
        if self.is_frozen {
            #[cfg(test)]
            if self.mutant == Mutant::ThawsAlone {
                (self.is_frozen, self.last_try) = (false, attempt);
                return Admission::Admit;
            }
            return Admission::Thaw(self.revision, self.record(me, nonce));
        }
        self.last_try = attempt;
        Admission::Admit
    }

    /// What is written when it thaws.
    pub(super) fn record(&self, me: NodeId, nonce: u64) -> Record {
        Record { term: self.term, owner: me, nonce }
    }

    /// The record has not moved, and cannot be moved by a claim with the old image any more.
    pub(super) fn thawed(&mut self, revision: Revision) {
        (self.is_frozen, self.revision) = (false, revision);
    }

    /// Another node wants it for this attempt. It is frozen from here on.
    pub(super) fn give(&mut self, attempt: u64, certain: bool) -> Given<I> {
        #[cfg(test)]
        let certain = certain || self.mutant == Mutant::DoubtIsFine;
        if !certain {
            return Given::Silent;
        }
        // The same attempt asks again: its answer was lost.
        let is_late = if self.is_frozen { attempt < self.last_try } else { attempt <= self.last_try };
        #[cfg(test)]
        let is_late = is_late && self.mutant != Mutant::AnyTry;
        if is_late {
            return Given::Late;
        }
        (self.is_frozen, self.last_try) = (true, attempt);
        Given::Image { term: self.term, revision: self.revision, image: self.image.clone() }
    }
}

/// How a compare-and-set of an owner's own record has ended.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) enum Wrote {
    Won(Revision),
    /// It is this now, which is newer than what was named; `None`: there is none.
    Lost(Option<(Record, Revision)>),
    /// It is this now, and the session waits in the store.
    Parked(Record),
    /// Nobody knows; or nothing was written.
    Unknown,
}

/// What an owner does about its own record.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) enum Keep {
    /// Compare and set: [`Keeping::wrote`].
    Write(Option<Revision>),
    /// The session is here, by this revision.
    Stays(Revision),
    /// Another node has it.
    Gone(NodeId),
    /// Its client was told that it is lost: nobody has it, here neither.
    GivenUp,
    /// There is no record any more.
    Forgotten,
    /// Not now: it is as it was, and tried again later.
    Later,
}

/// An owner writes the record of a session that it has. A record of the same term and of any life of this owner that is
/// there already is an earlier try of which nobody could tell how it ended, as no other node writes these names: it is
/// written over. By one that is parked the session is in the store, and here no more.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Keeping {
    record: Record,
    /// The names of this owner's lives.
    lives: Vec<NodeId>,
    rounds: u8,
    mutant: Mutant,
}

impl Keeping {
    pub(super) fn begin(was: Option<Revision>, record: Record, lives: Vec<NodeId>) -> (Self, Keep) {
        (Self { record, lives, rounds: 0, mutant: Mutant::None }, Keep::Write(was))
    }

    #[cfg(test)]
    pub(super) fn mutated(self, mutant: Mutant) -> Self {
        Self { mutant, ..self }
    }

    pub(super) fn wrote(&mut self, wrote: Wrote) -> Keep {
        match wrote {
            Wrote::Won(revision) => Keep::Stays(revision),
            Wrote::Lost(Some((other, _))) if other.owner == NOBODY => Keep::GivenUp,
            Wrote::Lost(Some((other, _))) | Wrote::Parked(other) if !self.is_own(&other) => Keep::Gone(other.owner),
            Wrote::Lost(Some((_, revision))) => {
                self.rounds += 1;
                if self.rounds < OWN_MAX { Keep::Write(Some(revision)) } else { Keep::Later }
            }
            Wrote::Lost(None) => Keep::Forgotten,
            Wrote::Parked(_) | Wrote::Unknown => Keep::Later,
        }
    }

    fn is_own(&self, other: &Record) -> bool {
        let is_former = self.lives.contains(&other.owner);
        #[cfg(test)]
        let is_former = is_former && self.mutant != Mutant::FormerIsOthers;
        let is_own = other.term == self.record.term && (is_former || other.owner == self.record.owner);
        #[cfg(test)]
        let is_own = is_own && self.mutant != Mutant::OwnIsOthers;
        is_own
    }
}

/// What the one that claims is to do next.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) enum Step<I> {
    /// Read the record: [`Claim::read`] follows.
    Read,
    /// Ask this node: [`Claim::gave`].
    Give(NodeId),
    /// Read what its node has left in the store: [`Claim::unparked`].
    Unpark,
    /// Ask every member whether it has it: [`Claim::asked_all`].
    AskAll,
    /// Is the connection still open? [`Claim::looked`].
    Look,
    /// Put a gravestone on this node's lease: [`Claim::buried`].
    Bury(NodeId),
    /// Compare and set, `None`: where there is none: [`Claim::claimed`].
    Write(Option<Revision>, Record),
    /// The session is here from here on.
    Install {
        term: u64,
        revision: Revision,
        image: I,
    },
    End(End),
}

/// How a claim ends without the session.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum End {
    /// Refused for now: the client keeps its session and comes again.
    Again,
    /// A later attempt of this client was admitted.
    Late,
    /// Nobody has it.
    Unknown,
    /// Its node is gone, and it begins anew: the same user and labels.
    NodeLost,
}

/// What reading the record has shown.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) enum Read {
    /// `owner_lives`: it is in the list of members. `may_judge`: this node's lease is certain, and the register was up for
    /// a whole lease. `is_here`: this node has the session.
    Record {
        record: Record,
        revision: Revision,
        owner_lives: bool,
        may_judge: bool,
        is_here: bool,
    },
    /// Its node has left it in the store.
    Parked {
        record: Record,
        revision: Revision,
    },
    /// It was given up before.
    GivenUp,
    Nothing,
    Down,
}

/// How a compare-and-set has ended.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Written {
    Won(Revision),
    /// Another one was first. If the record is the very one that was to be written, it was won.
    Lost,
    Unknown,
    /// Nothing was written by this try.
    Down,
}

/// One attempt of a client to get its session at a node that has not got it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Claim<I> {
    me: NodeId,
    nonce: u64,
    rounds: u8,
    hops: u8,
    state: State<I>,
    mutant: Mutant,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum State<I> {
    Reading,
    /// `named`: by the record of this term and revision.
    Giving {
        named: Option<(u64, Revision)>,
    },
    AskingAll,
    Unparking {
        term: u64,
        revision: Revision,
    },
    Burying {
        term: u64,
        revision: Revision,
    },
    /// `goal`: what is written if the client is still there.
    Looking {
        term: u64,
        was: Option<Revision>,
        goal: Goal<I>,
    },
    /// `is_unsure`: an earlier try of the same may have been written.
    Writing {
        was: Option<Revision>,
        record: Record,
        goal: Goal<I>,
        is_unsure: bool,
    },
    #[cfg(test)]
    ClaimedFirst {
        term: u64,
        revision: Revision,
    },
    Over,
}

/// What a record is written for.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum Goal<I> {
    Image(I),
    /// The session begins anew: its node is gone.
    Anew,
    /// Nobody has it: a record that can be created, or written over one that names a node without it, proves that.
    Proof,
}

impl<I: Clone> Claim<I> {
    /// A claim, and its first step. The nonce is its own.
    pub(super) fn begin(me: NodeId, nonce: u64) -> (Self, Step<I>) {
        (Self { me, nonce, rounds: 0, hops: 0, state: State::Reading, mutant: Mutant::None }, Step::Read)
    }

    #[cfg(test)]
    pub(super) fn mutated(self, mutant: Mutant) -> Self {
        Self { mutant, ..self }
    }

    /// The session, while this claim may have won it and it is not installed yet.
    #[cfg(test)]
    pub(super) fn in_hand(&self) -> Option<&I> {
        match &self.state {
            State::Writing { goal: Goal::Image(image), .. } => Some(image),
            _ => None,
        }
    }

    /// True if nothing is lost when it ends here, as for a client whose time is over. False: the record may name this
    /// node already, and what is in its hands may be all that there is of the session.
    pub(super) fn may_stop(&self) -> bool {
        #[cfg(test)]
        if self.mutant == Mutant::DoubtDrops {
            return true;
        }
        !matches!(self.state, State::Writing { goal: Goal::Image(_), is_unsure: true, .. })
    }

    fn end(&mut self, end: End) -> Step<I> {
        self.state = State::Over;
        Step::End(end)
    }

    fn again(&mut self) -> Step<I> {
        self.rounds += 1;
        if ROUNDS_MAX <= self.rounds {
            return self.end(End::Again);
        }
        self.state = State::Reading;
        Step::Read
    }

    fn give(&mut self, to: NodeId, named: Option<(u64, Revision)>) -> Step<I> {
        self.hops += 1;
        if HOPS_MAX < self.hops {
            return self.end(End::Again);
        }
        self.state = State::Giving { named };
        Step::Give(to)
    }

    fn look(&mut self, term: u64, was: Option<Revision>, goal: Goal<I>) -> Step<I> {
        self.state = State::Looking { term, was, goal };
        Step::Look
    }

    fn write(&mut self, term: u64, was: Option<Revision>, goal: Goal<I>) -> Step<I> {
        let owner = if matches!(goal, Goal::Image(_)) { self.me } else { NOBODY };
        #[cfg(test)]
        let owner = if self.mutant == Mutant::ClaimFirst { self.me } else { owner };
        let record = Record { term: term + 1, owner, nonce: self.nonce };
        self.state = State::Writing { was, record: record.clone(), goal, is_unsure: false };
        Step::Write(was, record)
    }

    fn won(&mut self, term: u64, revision: Revision, goal: Goal<I>) -> Step<I> {
        match goal {
            Goal::Image(image) => {
                self.state = State::Over;
                Step::Install { term, revision, image }
            }
            Goal::Anew => self.end(End::NodeLost),
            Goal::Proof => self.end(End::Unknown),
        }
    }

    pub(super) fn read(&mut self, read: Read) -> Step<I> {
        match read {
            Read::Down => self.end(End::Again),
            Read::Record { record, revision, owner_lives, may_judge, is_here } => {
                #[cfg(test)]
                if self.mutant == Mutant::ClaimFirst && owner_lives {
                    return self.write(record.term, Some(revision), Goal::Anew);
                }
                if is_here {
                    // It was won here meanwhile: the client finds it when it comes again.
                    self.end(End::Again)
                } else if record.owner == self.me {
                    // No other claim of this node is under way: it ended here, and its record stayed.
                    self.look(record.term, Some(revision), Goal::Proof)
                } else if owner_lives {
                    self.give(record.owner, Some((record.term, revision)))
                } else if may_judge {
                    #[cfg(test)]
                    if self.mutant == Mutant::NoGravestone {
                        return self.look(record.term, Some(revision), Goal::Anew);
                    }
                    self.state = State::Burying { term: record.term, revision };
                    Step::Bury(record.owner)
                } else {
                    self.end(End::Again)
                }
            }
            Read::Parked { record, revision } => {
                self.state = State::Unparking { term: record.term, revision };
                Step::Unpark
            }
            Read::GivenUp => self.end(End::Unknown),
            #[cfg(test)]
            Read::Nothing if self.mutant == Mutant::ReadIsVerdict => self.end(End::Unknown),
            Read::Nothing => {
                self.state = State::AskingAll;
                Step::AskAll
            }
        }
    }

    /// What its node has left. `Ok(None)`: it is not kept any more. `Err`: the store does not answer.
    pub(super) fn unparked(&mut self, image: Result<Option<I>, ()>) -> Step<I> {
        match (&self.state, image) {
            (&State::Unparking { term, revision }, Ok(Some(image))) => {
                self.write(term, Some(revision), Goal::Image(image))
            }
            (&State::Unparking { term, revision }, Ok(None)) => self.look(term, Some(revision), Goal::Anew),
            _ => self.end(End::Again),
        }
    }

    pub(super) fn gave(&mut self, given: Given<I>) -> Step<I> {
        #[cfg(test)]
        if let State::ClaimedFirst { term, revision } = self.state {
            return match given {
                Given::Image { image, .. } => self.won(term, revision, Goal::Image(image)),
                _ => self.end(End::NodeLost),
            };
        }
        let named = match self.state {
            State::Giving { named } => named,
            _ => None,
        };
        match given {
            Given::Image { term, revision, image } => self.write(term, Some(revision), Goal::Image(image)),
            Given::Late => self.end(End::Late),
            Given::NotMine => self.again(),
            // It has said so after it was named, and gets it by another revision only.
            Given::Nothing => match named {
                Some((term, revision)) => self.look(term, Some(revision), Goal::Proof),
                None => self.again(),
            },
            Given::Moved(to) if to != self.me => self.give(to, None),
            Given::Moved(_) => self.again(),
            #[cfg(test)]
            Given::Silent if self.mutant == Mutant::SilenceIsDeath => self.end(End::NodeLost),
            Given::Silent => self.end(End::Again),
        }
    }

    /// Every member was asked, this node among them. `Ok(Some)`: this one has it; `Ok(None)`: all have answered, and none has. `Err`: one is
    /// silent.
    pub(super) fn asked_all(&mut self, found: Result<Option<NodeId>, ()>) -> Step<I> {
        match found {
            Ok(Some(node)) if node == self.me => self.end(End::Again),
            Ok(Some(node)) => self.give(node, None),
            #[cfg(test)]
            Ok(None) if self.mutant == Mutant::NoProof => self.end(End::Unknown),
            Ok(None) => self.write(0, None, Goal::Proof),
            Err(()) => self.end(End::Again),
        }
    }

    /// `false`: it lives, or the register is down. What a gravestone stops is won back by its node, if nobody has it.
    pub(super) fn buried(&mut self, is_buried: bool) -> Step<I> {
        match self.state {
            State::Burying { term, revision } if is_buried => self.look(term, Some(revision), Goal::Anew),
            _ => self.end(End::Again),
        }
    }

    /// Directly before what is written that gives a session up: a client that has gone on to another node is not to lose its session by this one.
    pub(super) fn looked(&mut self, is_open: bool) -> Step<I> {
        #[cfg(test)]
        let is_open = is_open || self.mutant == Mutant::NoLook;
        match std::mem::replace(&mut self.state, State::Over) {
            State::Looking { term, was, goal } if is_open => self.write(term, was, goal),
            _ => self.end(End::Again),
        }
    }

    pub(super) fn claimed(&mut self, written: Written) -> Step<I> {
        let State::Writing { was, record, goal, is_unsure } = std::mem::replace(&mut self.state, State::Over) else {
            return self.end(End::Again);
        };
        match written {
            #[cfg(test)]
            Written::Won(revision) if self.mutant == Mutant::ClaimFirst && matches!(goal, Goal::Anew) => {
                self.state = State::ClaimedFirst { term: record.term, revision };
                Step::Give(NodeId(0))
            }
            Written::Won(revision) => self.won(record.term, revision, goal),
            Written::Lost => self.again(),
            // Nothing was written: the owner thaws by itself.
            Written::Down if !is_unsure => self.end(End::Again),
            Written::Unknown | Written::Down => match goal {
                Goal::Image(_) => {
                    self.state = State::Writing { was, record: record.clone(), goal, is_unsure: true };
                    Step::Write(was, record)
                }
                // What gives a session up is not written again for a client that has gone on.
                Goal::Anew | Goal::Proof => self.look(record.term - 1, was, goal),
            },
        }
    }
}
