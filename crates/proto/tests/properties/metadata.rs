//! Metadata against a list of pairs.

use bothways_proto::{Limits, Metadata};
use bytes::Bytes;
use proptest::{collection::vec, prelude::*};

type Pair = (Vec<u8>, Vec<u8>);

#[derive(Clone, Debug)]
enum Op {
    Insert(String, Vec<u8>),
    Remove(String),
    MergeMissing(Vec<Pair>),
}

/// Few keys, so that they meet; one of them empty, one of them not ASCII.
fn key() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["", "a", "b", "__AUTH", "ключ"]).prop_map(String::from)
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..4)
}

/// Pairs as a peer may send them: keys repeat, and need not be UTF-8.
fn wire_pairs() -> impl Strategy<Value = Vec<Pair>> {
    let wire_key = prop_oneof![4 => key().prop_map(String::into_bytes), 1 => Just(vec![0xff])];
    vec((wire_key, value()), 0..6)
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (key(), value()).prop_map(|(key, value)| Op::Insert(key, value)),
        key().prop_map(Op::Remove),
        wire_pairs().prop_map(Op::MergeMissing),
    ]
}

fn from_wire(pairs: &[Pair]) -> Metadata {
    let mut block = Vec::new();
    for part in pairs.iter().flat_map(|(key, value)| [key, value]) {
        block.extend_from_slice(&(part.len() as u32).to_be_bytes());
        block.extend_from_slice(part);
    }
    Metadata::from_block(block.into(), &Limits::default()).expect("well formed")
}

fn last<'a>(model: &'a [Pair], key: &[u8]) -> Option<&'a [u8]> {
    model.iter().rev().find(|(k, _)| k == key).map(|(_, value)| &value[..])
}

proptest! {
    /// Whatever came from a peer and whatever is done to it, it is a list in which the last pair of a key counts.
    #[test]
    fn metadata_is_a_list_of_pairs(start in wire_pairs(), ops in vec(op(), 0..20)) {
        let (mut metadata, mut model) = (from_wire(&start), start);
        for op in ops {
            match op {
                Op::Insert(key, value) => {
                    metadata.insert(&key, &value);
                    model.retain(|(k, _)| k != key.as_bytes());
                    model.push((key.into_bytes(), value));
                }
                Op::Remove(key) => {
                    metadata.remove(&key);
                    model.retain(|(k, _)| k != key.as_bytes());
                }
                Op::MergeMissing(other) => {
                    metadata.merge_missing(&from_wire(&other));
                    let missing: Vec<Pair> = other.into_iter().filter(|(k, _)| last(&model, k).is_none()).collect();
                    model.extend(missing);
                }
            }
            let pairs: Vec<Pair> = metadata.pairs().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
            prop_assert_eq!(&pairs, &model);
            prop_assert_eq!(metadata.is_empty(), model.is_empty());
            for key in ["", "a", "b", "__AUTH", "ключ", "absent"] {
                let value = last(&model, key.as_bytes());
                prop_assert_eq!(metadata.value(key), value);
                prop_assert_eq!(metadata.get(key), value.and_then(|value| str::from_utf8(value).ok()));
            }
            let block = Bytes::copy_from_slice(metadata.as_block());
            prop_assert_eq!(Metadata::from_block(block, &Limits::default()), Ok(metadata.clone()));
        }
    }

    /// A block is taken as it is, or refused; there is no third way.
    #[test]
    fn a_block_is_taken_as_it_is_or_refused(block in vec(prop_oneof![3 => Just(0), 2 => 0..9_u8, 1 => any::<u8>()], 0..40)) {
        if let Ok(metadata) = Metadata::from_block(block.clone().into(), &Limits::default()) {
            prop_assert_eq!(metadata.as_block(), &block);
            let bytes: usize = metadata.pairs().map(|(key, value)| 8 + key.len() + value.len()).sum();
            prop_assert_eq!(bytes, block.len());
        }
    }
}
