//! The table of calls against a map.

use std::collections::{BTreeSet, HashMap};

use bothways_proto::{Calls, Seq, TooManyCalls};
use proptest::{collection::vec, prelude::*};

const MAX: usize = 70;

#[derive(Clone, Copy, Debug)]
enum Op {
    Insert,
    /// The n-th of all numbers ever given out, whether its call waits still or not.
    Complete(prop::sample::Index),
    Forget(prop::sample::Index),
    /// A number that was never given out.
    Foreign(u64),
    Drain,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => Just(Op::Insert),
        4 => any::<prop::sample::Index>().prop_map(Op::Complete),
        2 => any::<prop::sample::Index>().prop_map(Op::Forget),
        1 => prop_oneof![any::<u64>(), 0..9_u64].prop_map(Op::Foreign),
        1 => Just(Op::Drain),
    ]
}

proptest! {
    /// Each call leaves the table once, by its own number; no number is given out twice.
    #[test]
    fn a_table_of_calls_is_a_map(ops in vec(op(), 0..400)) {
        let mut calls = Calls::new(MAX);
        let mut model: HashMap<Seq, usize> = HashMap::new();
        let mut seqs: Vec<Seq> = Vec::new();
        for (waiter, op) in ops.into_iter().enumerate() {
            match op {
                Op::Insert if model.len() == MAX => prop_assert_eq!(calls.insert(waiter), Err(TooManyCalls { max: MAX })),
                Op::Insert => {
                    let seq = calls.insert(waiter).expect("there is room");
                    prop_assert!(!seqs.contains(&seq), "{seq} was given out before");
                    seqs.push(seq);
                    model.insert(seq, waiter);
                }
                Op::Complete(_) | Op::Forget(_) if seqs.is_empty() => {}
                Op::Complete(index) => {
                    let seq = *index.get(&seqs);
                    prop_assert_eq!(calls.waiter_mut(seq).copied(), model.get(&seq).copied());
                    prop_assert_eq!(calls.complete(seq), model.remove(&seq));
                }
                Op::Forget(index) => {
                    let seq = *index.get(&seqs);
                    prop_assert_eq!(calls.forget(seq), model.remove(&seq));
                }
                Op::Foreign(number) if seqs.contains(&Seq::new(number)) => {}
                Op::Foreign(number) => prop_assert_eq!(calls.complete(Seq::new(number)), None),
                Op::Drain => {
                    let drained: BTreeSet<usize> = calls.drain().collect();
                    prop_assert_eq!(drained, model.drain().map(|(_, waiter)| waiter).collect());
                }
            }
            prop_assert_eq!(calls.len(), model.len());
            prop_assert_eq!(calls.is_empty(), model.is_empty());
        }
    }
}
