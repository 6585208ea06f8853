//! What nodes write to each other: batches of items, and their answers, as MessagePack.
//!
//! A batch that cannot be read is not answered. An item of a kind that a node does not know is answered as
//! [`Answer::Unsupported`], so that nodes of two versions can be members of one cluster.

use bothways_proto::SerializeType;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    calls::CallNumber,
    link::Number,
    remote::{Name, Part, PushNumber, State},
};
use crate::{
    codec::{Encode, Payload},
    session::{Carried, CarriedCall, CarriedOutcome, Counts, NodeId, SessionId, Stage},
};

/// How a push stands at one node: how many changes there were, and how many targets stand where.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Standing {
    pub(super) changes: u64,
    pub(super) counts: Counts,
}

impl Standing {
    /// A push whose session is not there any more.
    pub(super) const NOWHERE: Self = Self { changes: u64::MAX, counts: Counts::NONE };

    /// A push whose time to live was over before its session had it.
    pub(super) fn expired() -> Self {
        Self { changes: u64::MAX, counts: Counts::one(Stage::Expired) }
    }
}

impl State for Standing {
    fn is_final(&self) -> bool {
        self.counts.is_final()
    }

    fn to_unknown(&self) -> Self {
        Self { changes: u64::MAX, counts: self.counts.to_unknown() }
    }

    fn precedes(&self, other: &Self) -> bool {
        self.changes < other.changes
    }
}

/// The last word of a node that stops about one push: what has not gone on ended so, and where the rest went.
#[derive(Clone, Debug)]
pub(super) struct LastWord {
    pub(super) name: Name,
    pub(super) rest: Standing,
    pub(super) parts: Vec<GoneOn>,
}

/// A target that has gone on: under this number of the node that stops, and for how many milliseconds it waits in the
/// store at most.
#[derive(Clone, Debug)]
pub(super) struct GoneOn {
    pub(super) number: PushNumber,
    pub(super) part: Part<Standing>,
    pub(super) left: u64,
}

/// As a standing travels.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Told(u64, Vec<(u8, u32)>);

impl From<Standing> for Told {
    fn from(standing: Standing) -> Self {
        Self(standing.changes, standing.counts.pairs())
    }
}

impl From<Told> for Standing {
    fn from(Told(changes, pairs): Told) -> Self {
        Self { changes, counts: Counts::of_pairs(&pairs) }
    }
}

/// What an item takes in the answer, and of the batch besides its own bytes.
pub(super) const ITEM_BYTES: usize = 128;

/// One thing that a node writes to another one.
#[derive(Clone, Debug)]
pub(super) enum Item {
    /// A push, which has waited so many milliseconds.
    Push(PushNumber, u64, Bytes),
    /// How pushes of the other node stand here.
    States(Vec<(PushNumber, Standing)>),
    /// How do these pushes stand at the other node?
    Digest(Vec<PushNumber>),
    /// A call, which has waited so many milliseconds.
    Call(CallNumber, u64, Bytes),
    /// Its caller has given it up.
    Cancel(CallNumber),
    /// How a call of the other node ended.
    Outcome(CallNumber, Bytes),
    /// Does the other node still know these calls?
    CallsOut(Vec<CallNumber>),
    /// How parts of pushes of the other node stand here, or of pushes that it has told of itself.
    Parts(Vec<(Name, Standing)>),
    /// How do these parts stand at the other node?
    PartsDigest(Vec<Name>),
    /// Last words of this node, which stops.
    Left(Vec<LastWord>),
    /// A push that follows a session which went to the other node.
    Late(PushNumber, SessionId, Bytes),
    /// Of a newer version.
    Other,
}

/// What an item is answered with.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Routed(Standing),
    /// The node takes no more, or cannot read it.
    Refused,
    Heard,
    /// `None`: nothing is known of it.
    Known(Vec<Option<Standing>>),
    /// The node leaves, and has said its last words of it: it is for the one behind.
    NotHeard,
    /// The node leaves, and its sessions have ended here or gone on: it has not run it.
    Left,
    /// There is no such session.
    NotThere,
    /// Whether it knows them.
    CallsKnown(Vec<bool>),
    Unsupported,
}

const PUSH: u8 = 1;
const STATES: u8 = 2;
const DIGEST: u8 = 3;
const CALL: u8 = 4;
const CANCEL: u8 = 5;
const OUTCOME: u8 = 6;
const CALLS_OUT: u8 = 7;
const LATE: u8 = 8;
const PARTS: u8 = 9;
const PARTS_DIGEST: u8 = 10;
const LEFT: u8 = 11;

const ROUTED: u8 = 1;
const REFUSED: u8 = 2;
const HEARD: u8 = 3;
const KNOWN: u8 = 4;
const UNSUPPORTED: u8 = 5;
const NOT_THERE: u8 = 6;
const CALLS_KNOWN: u8 = 7;
const NOT_HEARD: u8 = 8;
const LEAVES: u8 = 9;

/// As last words travel.
type Last = ((u64, u64), Told, Vec<(u64, Option<u64>, Told, u64)>);

fn last_of(word: &LastWord) -> Last {
    let parts = word
        .parts
        .iter()
        .map(|GoneOn { number, part, left }| (*number, part.at.map(|at| at.0), Told::from(part.state), *left));
    ((word.name.0.0, word.name.1), Told::from(word.rest), parts.collect())
}

fn read_last((name, rest, parts): Last) -> LastWord {
    let parts = parts.into_iter().map(|(number, at, state, left)| {
        let part = Part { at: at.map(NodeId), state: state.into() };
        GoneOn { number, part, left }
    });
    LastWord { name: (NodeId(name.0), name.1), rest: rest.into(), parts: parts.collect() }
}

#[derive(Deserialize, Serialize)]
struct Kind {
    kind: u8,
    body: Bytes,
}

#[derive(Deserialize, Serialize)]
struct Letter {
    from: u64,
    epoch: u64,
    n: u64,
    items: Vec<Kind>,
}

fn write<T: Serialize + Send>(value: &T) -> Bytes {
    // Of numbers, bytes and texts: there is none that MessagePack cannot write.
    value.encode(SerializeType::MSGPACK).unwrap_or_default()
}

fn read<T: Serialize + serde::de::DeserializeOwned + Send>(bytes: Bytes) -> Option<T> {
    T::decode(SerializeType::MSGPACK, bytes).ok()
}

/// A push with its target.
pub(super) fn write_push(carried: &Carried) -> Bytes {
    write(carried)
}

/// See [`write_push`].
pub(super) fn read_push(bytes: Bytes) -> Option<Carried> {
    read(bytes)
}

/// A call.
pub(super) fn write_call(call: &CarriedCall) -> Bytes {
    write(call)
}

/// See [`write_call`].
pub(super) fn read_call(bytes: Bytes) -> Option<CarriedCall> {
    read(bytes)
}

/// How a call ended.
pub(super) fn write_outcome(outcome: &CarriedOutcome) -> Bytes {
    write(outcome)
}

/// See [`write_outcome`].
pub(super) fn read_outcome(bytes: Bytes) -> Option<CarriedOutcome> {
    read(bytes)
}

pub(super) fn write_batch(from: NodeId, number: Number, items: &[Item]) -> Bytes {
    let items = items.iter().map(|item| match item {
        Item::Push(push, waited, carried) => Kind { kind: PUSH, body: write(&(*push, *waited, carried.clone())) },
        Item::States(states) => {
            let told: Vec<(u64, Told)> = states.iter().map(|(push, state)| (*push, Told::from(*state))).collect();
            Kind { kind: STATES, body: write(&told) }
        }
        Item::Digest(pushes) => Kind { kind: DIGEST, body: write(pushes) },
        Item::Call(call, waited, carried) => Kind { kind: CALL, body: write(&(*call, *waited, carried.clone())) },
        Item::Cancel(call) => Kind { kind: CANCEL, body: write(call) },
        Item::Outcome(call, outcome) => Kind { kind: OUTCOME, body: write(&(*call, outcome.clone())) },
        Item::CallsOut(calls) => Kind { kind: CALLS_OUT, body: write(calls) },
        Item::Parts(states) => {
            let told = states.iter().map(|((node, number), state)| ((node.0, *number), Told::from(*state)));
            Kind { kind: PARTS, body: write(&told.collect::<Vec<_>>()) }
        }
        Item::PartsDigest(names) => {
            let names = names.iter().map(|(node, number)| (node.0, *number));
            Kind { kind: PARTS_DIGEST, body: write(&names.collect::<Vec<_>>()) }
        }
        Item::Left(words) => Kind { kind: LEFT, body: write(&words.iter().map(last_of).collect::<Vec<_>>()) },
        Item::Late(number, id, entry) => Kind { kind: LATE, body: write(&(*number, *id, entry.clone())) },
        Item::Other => Kind { kind: 0, body: Bytes::new() },
    });
    write(&Letter { from: from.0, epoch: number.epoch, n: number.n, items: items.collect() })
}

pub(super) fn read_batch(bytes: Bytes) -> Option<(NodeId, Number, Vec<Item>)> {
    let letter: Letter = read(bytes)?;
    let items = letter.items.into_iter().map(|Kind { kind, body }| {
        Some(match kind {
            PUSH => {
                let (push, waited, carried) = read(body)?;
                Item::Push(push, waited, carried)
            }
            STATES => {
                let told: Vec<(u64, Told)> = read(body)?;
                Item::States(told.into_iter().map(|(push, told)| (push, told.into())).collect())
            }
            DIGEST => Item::Digest(read(body)?),
            CALL => {
                let (call, waited, carried) = read(body)?;
                Item::Call(call, waited, carried)
            }
            CANCEL => Item::Cancel(read(body)?),
            OUTCOME => {
                let (call, outcome) = read(body)?;
                Item::Outcome(call, outcome)
            }
            CALLS_OUT => Item::CallsOut(read(body)?),
            PARTS => {
                let told: Vec<((u64, u64), Told)> = read(body)?;
                let told = told.into_iter().map(|((node, number), told)| ((NodeId(node), number), told.into()));
                Item::Parts(told.collect())
            }
            PARTS_DIGEST => {
                let names: Vec<(u64, u64)> = read(body)?;
                Item::PartsDigest(names.into_iter().map(|(node, number)| (NodeId(node), number)).collect())
            }
            LEFT => Item::Left(read::<Vec<Last>>(body)?.into_iter().map(read_last).collect()),
            LATE => {
                let (number, id, entry) = read(body)?;
                Item::Late(number, id, entry)
            }
            _ => Item::Other,
        })
    });
    let number = Number { epoch: letter.epoch, n: letter.n };
    Some((NodeId(letter.from), number, items.collect::<Option<_>>()?))
}

pub(super) fn write_answers(answers: &[Answer]) -> Bytes {
    let answers = answers.iter().map(|answer| match answer {
        Answer::Routed(standing) => Kind { kind: ROUTED, body: write(&Told::from(*standing)) },
        Answer::Refused => Kind { kind: REFUSED, body: Bytes::new() },
        Answer::Left => Kind { kind: LEAVES, body: Bytes::new() },
        Answer::Heard => Kind { kind: HEARD, body: Bytes::new() },
        Answer::Known(states) => {
            let told: Vec<Option<Told>> = states.iter().map(|state| state.map(Told::from)).collect();
            Kind { kind: KNOWN, body: write(&told) }
        }
        Answer::NotHeard => Kind { kind: NOT_HEARD, body: Bytes::new() },
        Answer::NotThere => Kind { kind: NOT_THERE, body: Bytes::new() },
        Answer::CallsKnown(known) => Kind { kind: CALLS_KNOWN, body: write(known) },
        Answer::Unsupported => Kind { kind: UNSUPPORTED, body: Bytes::new() },
    });
    write(&answers.collect::<Vec<_>>())
}

/// As many answers as a batch has items.
pub(super) fn read_answers(bytes: Bytes) -> Option<Vec<Answer>> {
    let answers: Vec<Kind> = read(bytes)?;
    let answers = answers.into_iter().map(|Kind { kind, body }| {
        Some(match kind {
            ROUTED => Answer::Routed(read::<Told>(body)?.into()),
            REFUSED => Answer::Refused,
            LEAVES => Answer::Left,
            HEARD => Answer::Heard,
            KNOWN => {
                let told: Vec<Option<Told>> = read(body)?;
                Answer::Known(told.into_iter().map(|told| told.map(Standing::from)).collect())
            }
            NOT_HEARD => Answer::NotHeard,
            NOT_THERE => Answer::NotThere,
            CALLS_KNOWN => Answer::CallsKnown(read(body)?),
            _ => Answer::Unsupported,
        })
    });
    answers.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(changes: u64) -> Standing {
        Standing { changes, counts: Counts::of_pairs(&[(0, 1), (3, 2)]) }
    }

    fn gone(at: Option<u64>) -> GoneOn {
        GoneOn { number: 1 << 63, part: Part { at: at.map(NodeId), state: standing(1) }, left: 500 }
    }

    /// What a node writes the other one reads, also what it does not know.
    #[test]
    fn mail_is_read_as_it_was_written() {
        let items = [
            Item::Push(7, 20, Bytes::from_static(b"push")),
            Item::States(vec![(1, standing(3)), (2, standing(0))]),
            Item::Digest(vec![4, 5]),
            Item::Call(3, 7, Bytes::from_static(b"call")),
            Item::Cancel(3),
            Item::Outcome(4, Bytes::from_static(b"yes")),
            Item::CallsOut(vec![3, 4]),
            Item::Late(9, SessionId::next(), Bytes::from_static(b"late")),
            Item::Parts(vec![((NodeId(3), 1 << 63), standing(2))]),
            Item::PartsDigest(vec![(NodeId(3), 1 << 63)]),
            Item::Left(vec![LastWord {
                name: (NodeId(4), 7),
                rest: standing(1),
                parts: vec![gone(None), gone(Some(8))],
            }]),
            Item::Other,
        ];
        let number = Number { epoch: 2, n: 9 };
        let (from, again, read) = read_batch(write_batch(NodeId(5), number, &items)).expect("it is a batch");
        assert_eq!((from, again, format!("{read:?}")), (NodeId(5), number, format!("{items:?}")));
        let answers = [
            Answer::Routed(standing(1)),
            Answer::Refused,
            Answer::Heard,
            Answer::Known(vec![None, Some(standing(2))]),
            Answer::NotHeard,
            Answer::NotThere,
            Answer::CallsKnown(vec![true, false]),
            Answer::Unsupported,
        ];
        let read = read_answers(write_answers(&answers)).expect("they are answers");
        assert_eq!(format!("{read:?}"), format!("{answers:?}"));
    }

    /// Mail that is cut off or spoilt is no mail, and no panic.
    #[test]
    fn spoilt_mail_is_none() {
        let items = [Item::Digest(vec![4, 5]), Item::Push(7, 20, Bytes::from_static(b"push"))];
        let whole = write_batch(NodeId(5), Number { epoch: 2, n: 9 }, &items);
        for end in 0..whole.len() {
            assert!(read_batch(whole.slice(..end)).is_none(), "{end}");
        }
        for at in 0..whole.len() {
            let mut spoilt = whole.to_vec();
            spoilt[at] ^= 0xff;
            let _ = read_batch(spoilt.clone().into());
            let _ = read_answers(spoilt.into());
        }
    }
}
