//! The code that `#[message]` generates, held against serde's derive for the same type: the same bytes, the same values,
//! the same errors, and the same count of memory.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Debug,
    time::{Duration, SystemTime},
};

use ::bytes::Bytes;
use hex_literal::hex;
use proptest::{collection::vec, prelude::*};
use serde::de::DeserializeOwned;

use super::{
    read::{
        Reader,
        tests::{leaf, value},
    },
    write::Writer,
    *,
};
use crate::codec::{NESTING_MAX, decoded::measured, text::within_msgpack};

/// A field of each kind that has code of its own, and some that have none.
#[bothways_macros::message(crate = "crate")]
#[serde(rename_all = "lowercase")]
#[derive(Clone, Debug, Default, PartialEq)]
struct Lax {
    a: i64,
    b: String,
    c: Vec<u8>,
    d: Vec<Lax>,
    e: Option<Box<Self>>,
    f: f32,
    g: Choice,
    h: Option<SystemTime>,
    i: Duration,
    j: BTreeMap<String, i16>,
    k: (u8, bool),
    l: bool,
    m: Vec<Option<u8>>,
}

#[bothways_macros::message(crate = "crate")]
#[serde(rename_all = "lowercase")]
#[derive(Clone, Debug, Default, PartialEq)]
enum Choice {
    #[default]
    A,
    B(i32),
    C(String, Option<bool>),
    D {
        a: u8,
        e: Option<Box<Lax>>,
    },
}

/// Names that are far apart, fields that must be there, defaults that are no zero, ways of one's own.
#[bothways_macros::message(crate = "crate")]
#[derive(Clone, Debug, PartialEq)]
struct Odd {
    #[message(rename = "m")]
    first: u16,
    #[message(required, rename = "a")]
    needed: Option<f64>,
    #[message(required)]
    #[serde(rename = "b")]
    number: i8,
    #[serde(rename = "c", default = "seven")]
    seven: u64,
    #[serde(rename = "d", with = "reversed")]
    reversed: String,
    #[serde(skip)]
    unseen: u8,
    #[serde(rename = "e", skip_serializing_if = "Vec::is_empty")]
    lists: Vec<Vec<f64>>,
    #[serde(rename = "f")]
    by_number: HashMap<i32, Choice>,
    #[message(plain, rename = "g")]
    octets: Vec<u8>,
    #[message(rename = "a name of more than thirty-one bytes, which few have")]
    long: Bytes,
    #[serde(rename = "h")]
    letter: char,
    #[serde(rename = "i")]
    boxed: Box<[u8]>,
    #[serde(rename = "j")]
    token: [u8; 3],
    #[serde(rename = "k")]
    odd: Vec<Odd>,
}

impl Default for Odd {
    fn default() -> Self {
        let (first, needed, number, seven, reversed) = (3, Some(0.5), -1, 8, "no".to_owned());
        let (unseen, lists, by_number, octets, long) = (0, vec![], HashMap::new(), vec![9], Bytes::new());
        let (letter, boxed, token, odd) = ('x', Box::default(), [1; 3], vec![]);
        Self {
            first,
            needed,
            number,
            seven,
            reversed,
            unseen,
            lists,
            by_number,
            octets,
            long,
            letter,
            boxed,
            token,
            odd,
        }
    }
}

fn seven() -> u64 {
    7
}

mod reversed {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&text.chars().rev().collect::<String>())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
        String::deserialize(deserializer).map(|text| text.chars().rev().collect())
    }
}

#[bothways_macros::message(strict, crate = "crate")]
#[serde(rename_all = "lowercase")]
#[derive(Clone, Debug, Default, PartialEq)]
struct Strict {
    a: u8,
    b: Option<Box<Strict>>,
    #[message(json = "other")]
    c: String,
}

#[bothways_macros::message(crate = "crate")]
#[derive(Clone, Debug, Default, PartialEq)]
struct Nothing {}

/// A serde type with messages in it.
#[derive(Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
struct Around {
    a: Lax,
    b: Vec<Strict>,
    d: Option<Nothing>,
    #[serde(flatten)]
    rest: BTreeMap<String, Option<bool>>,
}

/// Borrows what it can.
#[bothways_macros::message(crate = "crate")]
#[serde(rename_all = "lowercase")]
#[derive(Debug, PartialEq)]
struct View<'a> {
    a: i64,
    b: &'a str,
    #[serde(borrow)]
    d: Vec<&'a str>,
    c: Vec<u8>,
}

/// Lists that are read and written as a whole.
#[bothways_macros::message(crate = "crate")]
#[derive(Clone, Debug, Default, PartialEq)]
struct Lists {
    texts: Vec<String>,
    signed: Vec<i64>,
    unsigned: Vec<u64>,
}

/// What serde's derive makes of it, or the generated code where MessagePack is at work.
fn read<'de, T: Deserialize<'de> + Debug>(payload: &'de [u8]) -> (Result<String, String>, usize, usize) {
    let mut reader = Reader::new(payload);
    let (read, taken) = measured(|| super::super::decoded::bounded(|| T::deserialize(&mut reader)));
    let left = if read.is_ok() { reader.left() } else { 0 };
    (read.map(|value| format!("{value:?}")).map_err(|error| error.to_string()), taken, left)
}

fn compare_read<'de, T: Deserialize<'de> + Debug>(payload: &'de [u8]) {
    let (expected, taken, left) = read::<T>(payload);
    let (direct, taken_directly, left_directly) = within_msgpack(|| read::<T>(payload));
    let name = std::any::type_name::<T>();
    if let Err(error) = &direct
        && error.contains("bytes in memory")
    {
        // A list counts before it is read, and not as its elements come.
        assert!(expected.is_err(), "{name} of {payload:02x?}");
        return;
    }
    assert_eq!(direct, expected, "{name} of {payload:02x?}");
    if direct.is_ok() {
        assert_eq!(left_directly, left, "{name} of {payload:02x?}");
        // By serde structs count by their fields, which the generated code knows to be within what is counted already.
        assert!(taken_directly <= taken, "{name} of {payload:02x?}: {taken_directly} {taken}");
    }
}

fn compare_all(payload: &[u8]) {
    compare_read::<Lax>(payload);
    compare_read::<Odd>(payload);
    compare_read::<Strict>(payload);
    compare_read::<Nothing>(payload);
    compare_read::<View<'_>>(payload);
    compare_read::<Choice>(payload);
    compare_read::<Around>(payload);
    compare_read::<Vec<Lax>>(payload);
    compare_read::<Vec<Nothing>>(payload);
    compare_read::<Option<Strict>>(payload);
    compare_read::<BTreeMap<String, Odd>>(payload);
    compare_read::<(Strict, Odd, Option<Lax>)>(payload);
}

fn compare_written<T: Serialize + DeserializeOwned + Debug + PartialEq>(value: &T) {
    let write = || {
        let mut writer = Writer::new(vec![0xc1]);
        value.serialize(&mut writer).map(|()| writer.into_inner())
    };
    let (expected, direct) = (write(), within_msgpack(write));
    assert_eq!(direct, expected, "{value:?}");
    if let Ok(payload) = direct {
        compare_read::<T>(&payload[1..]);
    }
}

/// A map with the keys of a struct, in its order or nearly so, and values of any kind.
fn fields() -> impl Strategy<Value = Vec<u8>> {
    let keys = proptest::sample::subsequence((b'a'..=b'm').collect::<Vec<u8>>(), 0..=13);
    let swap = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), prop::bool::weighted(0.3));
    (keys, vec(prop_oneof![3 => leaf(), 1 => value()], 13), swap).prop_map(|(mut keys, values, (one, other, swap))| {
        if swap && !keys.is_empty() {
            let (one, other) = (one.index(keys.len()), other.index(keys.len()));
            keys.swap(one, other);
        }
        let entries = keys.iter().zip(&values).flat_map(|(key, value)| [&[0xa1, *key][..], value].concat());
        [0x80 | keys.len() as u8].into_iter().chain(entries).collect()
    })
}

fn lax() -> impl Strategy<Value = Lax> {
    let choice = prop_oneof![
        Just(Choice::A),
        any::<i32>().prop_map(Choice::B),
        (".{0,9}", any::<Option<bool>>()).prop_map(|(text, flag)| Choice::C(text, flag)),
        any::<u8>().prop_map(|a| Choice::D { a, e: None }),
    ];
    let numbers = (any::<i64>(), 0_u32..64, any::<f32>(), any::<(u8, bool)>(), any::<bool>());
    let texts = (".{0,40}", vec(any::<u8>(), 0..300), vec(any::<Option<u8>>(), 0..20));
    let rest = (choice, any::<Option<u32>>(), prop::collection::btree_map(".{0,9}", any::<i16>(), 0..20));
    let leaf = (numbers, texts, rest).prop_map(|((a, shift, f, k, l), (b, c, m), (g, h, j))| {
        let h = h.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.into()));
        let (a, i) = (a >> shift, Duration::from_nanos(a.unsigned_abs() >> 1));
        Lax { a, b, c, d: vec![], e: None, f: if f.is_nan() { 0.0 } else { f }, g, h, i, j, k, l, m }
    });
    leaf.prop_recursive(3, 6, 3, |inner| {
        (vec(inner.clone(), 0..3), prop::option::of(inner.clone()), inner).prop_map(|(d, e, outer)| Lax {
            d,
            e: e.map(Box::new),
            ..outer
        })
    })
}

fn odd() -> impl Strategy<Value = Odd> {
    let one =
        (any::<u16>(), any::<Option<f64>>(), any::<i8>(), any::<u64>(), ".{0,9}", vec(vec(any::<f64>(), 0..3), 0..3));
    let other =
        (prop::collection::hash_map(any::<i32>(), any::<i32>().prop_map(Choice::B), 0..2), vec(any::<u8>(), 0..9));
    (one, other, any::<char>(), any::<[u8; 3]>()).prop_map(|(one, (by_number, octets), letter, token)| {
        let (first, needed, number, seven, reversed, lists) = one;
        let (long, boxed) = (Bytes::from(octets.clone()), octets.clone().into());
        let odd = Odd {
            first,
            needed,
            number,
            seven,
            reversed,
            lists,
            by_number,
            octets,
            long,
            letter,
            boxed,
            token,
            ..Odd::default()
        };
        Odd { odd: vec![odd.clone()], ..odd }
    })
}

/// Texts that are mostly short, and numbers of each width.
fn lists() -> impl Strategy<Value = Lists> {
    let text = prop_oneof![4 => "[a-zä€𝄞]{0,8}", 1 => "[a-z€]{9,40}"];
    let numbers = vec((any::<i64>(), 0_u32..64).prop_map(|(number, shift)| number >> shift), 0..40);
    (vec(text, 0..40), numbers).prop_map(|(texts, signed)| {
        let unsigned = signed.iter().map(|number| number.unsigned_abs()).collect();
        Lists { texts, signed, unsigned }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn any_value_is_read_as_serde_reads_it(payload in value()) {
        compare_all(&payload);
    }

    #[test]
    fn any_fields_are_read_as_serde_reads_them(payload in fields()) {
        compare_all(&payload);
        compare_all(&[&[0x91][..], &payload].concat());
    }

    #[test]
    fn any_damaged_fields_are_read_as_serde_reads_them(mut payload in fields(), at: prop::sample::Index, byte: u8, cut: bool) {
        let at = at.index(payload.len());
        payload[at] = byte;
        if cut {
            payload.truncate(at + 1);
        }
        compare_all(&payload);
    }

    #[test]
    fn any_message_is_written_as_serde_writes_it(lax in lax(), odd in odd(), text in ".{0,40}") {
        compare_written(&lax);
        compare_written(&odd);
        compare_written(&vec![lax.clone(), Lax::default()]);
        compare_written(&Around { a: lax, ..Around::default() });
        let strict = Strict { c: text, ..Strict::default() };
        compare_written(&Strict { b: Some(Box::new(strict.clone())), ..strict });
    }

    #[test]
    fn lists_are_written_and_read_as_by_serde(lists in lists(), at: prop::sample::Index, byte: u8) {
        compare_written(&lists);
        let mut payload = encode(&lists).expect("it can be written").to_vec();
        let again = decode::<Lists>(&payload).expect("it was just written");
        prop_assert_eq!(again, lists);
        let at = at.index(payload.len());
        payload[at] = byte;
        compare_read::<Lists>(&payload);
        compare_read::<Lists>(&payload[..at]);
    }

    #[test]
    fn what_was_written_is_read_again(lax in lax(), odd in odd()) {
        let payload = encode(&lax).expect("it can be written");
        prop_assert_eq!(decode::<Lax>(&payload).expect("it was just written"), lax);
        let payload = encode(&odd).expect("it can be written");
        let again = decode::<Odd>(&payload).expect("it was just written");
        prop_assert_eq!(format!("{again:?}"), format!("{odd:?}"));
    }
}

#[test]
fn the_forms_of_a_message_are_those_of_serde() {
    for payload in [
        &hex!("c0")[..],
        &hex!("80"),
        &hex!("90"),
        &hex!("92 07 a161"),
        &hex!("c4 03 010203"),
        &hex!("a161"),
        &hex!("de0001 a161 07"),
        &hex!("df00000001 a161 07"),
        &hex!("df ffffffff a161 07"),
        &hex!("82 a161 07 a161 08"),
        &hex!("82 a162 a178 a162 a178"),
        &hex!("82 d90161 07 c40162 a178"),
        &hex!("82 00 07 01 a178"),
        &hex!("81 cc ff 07"),
        &hex!("81 ff 07"),
        &hex!("81 c0 07"),
        &hex!("81 a2c328 07"),
        &hex!("81 d6ff00000001 07"),
        &hex!("81 a161"),
        &hex!("81"),
        &hex!(""),
    ] {
        compare_all(payload);
    }
}

/// Short texts are checked together, and each has to be one by itself.
#[test]
fn no_character_is_in_two_texts() {
    let list = |texts: &[u8]| [&hex!("81 a5 5465787473")[..], texts].concat();
    let whole = list(&hex!("93 a161 a2c3a9 a0"));
    let texts = decode::<Lists>(&whole).expect("they are texts").texts;
    assert_eq!(texts, ["a", "é", ""]);
    for parted in [&hex!("92 a1c3 a1a9")[..], &hex!("93 a161 a2e282 a1ac"), &hex!("92 a1c3 a0"), &hex!("93 a0 a1a9 a0")]
    {
        let payload = list(parted);
        compare_read::<Lists>(&payload);
        assert!(decode::<Lists>(&payload).is_err(), "{parted:02x?}");
    }
}

/// Containers count as deep as with serde, also where the two ways take turns.
#[test]
fn the_bound_on_nesting_is_that_of_serde() {
    for (outer, levels) in [(&hex!("81 a165")[..], 1), (&hex!("81 a164 91"), 2), (&hex!("81 a167 81 a164 81 a165"), 4)]
    {
        for leaf in
            [&hex!("c0")[..], &hex!("80"), &hex!("81 a164 90"), &hex!("81 a16d 91 01"), &hex!("81 a17a 91 91 01")]
        {
            for n in NESTING_MAX / levels - 3..=NESTING_MAX / levels + 1 {
                let payload = [&outer.repeat(n)[..], leaf].concat();
                compare_read::<Lax>(&payload);
                compare_read::<Vec<Lax>>(&[&[0x91][..], &payload].concat());
            }
        }
    }
}

/// Lists count before they are read, and take no memory for a length that is only claimed.
#[test]
fn the_bound_on_memory_holds_for_messages() {
    let claimed = [&hex!("81 a16d dd")[..], &u32::MAX.to_be_bytes(), &[1]].concat();
    let error = decode::<Lax>(&claimed).expect_err("it has one element").to_string();
    assert!(error.contains("in memory"), "{error}");
    let few = [&hex!("81 a164 dd")[..], &1000_u32.to_be_bytes(), &hex!("80").repeat(1000)].concat();
    compare_read::<Lax>(&few);
    let (_, taken) = measured(|| decode::<Lax>(&few).expect("a thousand messages"));
    assert!(1000 * size_of::<Lax>() <= taken, "{taken}");
}

/// In every other format, and around a text format, a message is what serde's derive makes of it.
#[test]
fn a_message_is_a_serde_type_for_other_formats() {
    let lax = Lax { a: 300, b: "b".into(), d: vec![Lax::default()], ..Lax::default() };
    let payload = rmp_serde::to_vec_named(&lax).expect("it can be written");
    assert_eq!(rmp_serde::from_slice::<Lax>(&payload).expect("it was just written"), lax);
    assert_eq!(payload, encode(&lax).expect("it can be written"));
    // Within our MessagePack, too: as a value of another format that is bytes here.
    within_msgpack(|| {
        let payload = rmp_serde::to_vec_named(&lax).expect("it can be written");
        assert_eq!(rmp_serde::from_slice::<Lax>(&payload).expect("it was just written"), lax);
        #[cfg(feature = "json")]
        {
            let text = serde_json::to_string(&lax).expect("it can be written");
            assert_eq!(serde_json::from_str::<Lax>(&text).expect("it was just written"), lax);
        }
    });
}

/// Names of its own in JSON.
#[cfg(feature = "json")]
#[bothways_macros::message(crate = "crate", json = "snake_case")]
#[derive(Debug, Default, PartialEq)]
struct Named {
    full_name: String,
}

/// JSON that is written or read by the codec while MessagePack is at work is JSON.
#[cfg(feature = "json")]
#[test]
fn json_within_messagepack_goes_by_the_codec() {
    use bothways_proto::SerializeType;

    use crate::{Encode, Payload};
    within_msgpack(|| {
        let json = Named { full_name: "Ann".into() }.encode(SerializeType::JSON).expect("it can be written");
        assert_eq!(json, &br#"{"full_name":"Ann"}"#[..]);
        assert_eq!(Named::decode(SerializeType::JSON, json).expect("it was just written").full_name, "Ann");
    });
}

/// What serde makes of it is an error.
#[derive(Debug, Default, PartialEq)]
struct NoSerde;

impl Serialize for NoSerde {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("by serde"))
    }
}

impl<'de> Deserialize<'de> for NoSerde {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("by serde"))
    }
}

impl direct::Write for NoSerde {
    fn write(&self, writer: &mut Writer) -> Result<(), direct::WriteError> {
        writer.raw(&[7]);
        Ok(())
    }
}

impl direct::Read<'_> for NoSerde {
    fn read(reader: &mut Reader<'_>) -> Result<Self, direct::ReadError> {
        reader.ignore().map(|()| Self)
    }
}

#[bothways_macros::message(crate = "crate")]
#[derive(Debug, Default, PartialEq)]
struct Outer {
    direct: NoSerde,
    many: Vec<NoSerde>,
    maybe: Option<Box<Inner>>,
}

#[bothways_macros::message(crate = "crate")]
#[derive(Debug, Default, PartialEq)]
struct Inner {
    #[message(json = "d")]
    direct: NoSerde,
}

/// A message goes by its own code wherever it stands, and serde's is not asked for what that knows.
#[test]
fn the_generated_code_is_what_reads_and_writes_messages() {
    let outer = Outer { many: vec![NoSerde], maybe: Some(Box::default()), ..Outer::default() };
    let payload = encode(&outer).expect("without serde");
    assert_eq!(payload, hex!("83 a6446972656374 07 a44d616e79 91 07 a54d61796265 81 a6446972656374 07")[..]);
    assert_eq!(decode::<Outer>(&payload).expect("without serde"), outer);
    let list = vec![Some(Inner::default())];
    let payload = encode(&list).expect("without serde");
    assert_eq!(decode::<Vec<Option<Inner>>>(&payload).expect("without serde"), list);
    assert!(encode(&vec![NoSerde]).is_err(), "where no message is");
}
