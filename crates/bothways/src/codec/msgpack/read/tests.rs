//! The reader against `rmp-serde` behind the lenient layer, and what both must refuse.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Debug,
    time::{Duration, SystemTime},
};

use ::bytes::Bytes;
use hex_literal::hex;
use proptest::{collection::vec, prelude::*};
use serde::{Deserialize, de::DeserializeOwned};

use super::*;

fn read<T: DeserializeOwned + Debug>(payload: &[u8]) -> Result<String, String> {
    T::deserialize(&mut Reader::new(payload)).map(|value| format!("{value:?}")).map_err(|error| error.to_string())
}

fn expected<T: DeserializeOwned + Debug>(payload: &[u8]) -> Option<String> {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(payload);
    deserializer.set_max_depth(NESTING_MAX + 1);
    T::deserialize(Lenient::new(&mut deserializer, payload.len())).map(|value| format!("{value:?}")).ok()
}

fn compare<T: DeserializeOwned + Debug>(payload: &[u8]) {
    let name = std::any::type_name::<T>();
    assert_eq!(read::<T>(payload).ok(), expected::<T>(payload), "{name} of {payload:02x?}");
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Lax {
    a: i64,
    b: String,
    #[serde(with = "crate::codec::bytes")]
    c: Vec<u8>,
    d: Vec<Lax>,
    e: Option<Box<Lax>>,
    f: f32,
    g: Choice,
    #[serde(with = "crate::codec::time")]
    h: SystemTime,
    #[serde(with = "crate::codec::duration")]
    i: Duration,
    j: BTreeMap<String, i16>,
    #[serde(deserialize_with = "crate::codec::nil_or_default")]
    k: Choice,
    l: (u8, bool),
    m: (),
}

impl Default for Lax {
    fn default() -> Self {
        let (a, b, c, d, e, f, g, h) =
            (7, "b".into(), vec![1], vec![], None, 0.5, Choice::A, crate::codec::time::go_zero());
        Self { a, b, c, d, e, f, g, h, i: Duration::ZERO, j: BTreeMap::new(), k: Choice::A, l: (1, true), m: () }
    }
}

#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "read by `Debug`")]
struct Strict {
    a: u16,
    b: char,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(dead_code, reason = "read by `Debug`")]
enum Choice {
    #[default]
    A,
    B(i32),
    C(String, Option<bool>),
    D {
        a: u8,
    },
    E(Box<Choice>),
    F(Vec<Choice>),
    G(()),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
#[expect(dead_code, reason = "read by `Debug`")]
enum Untagged {
    Number(i64),
    Text(String),
    List(Vec<Untagged>),
    Strict(Strict),
}

#[derive(Debug, Deserialize)]
#[serde(tag = "a", rename_all = "lowercase")]
#[expect(dead_code, reason = "read by `Debug`")]
enum Tagged {
    A { b: Option<String> },
    B,
}

#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "read by `Debug`")]
struct Flat {
    a: Option<i32>,
    #[serde(flatten)]
    rest: BTreeMap<String, Untagged>,
}

#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "read by `Debug`")]
struct Newtype(Vec<Option<u8>>);

#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "read by `Debug`")]
struct Pair(u8, String);

#[derive(Debug, Deserialize)]
struct Nothing;

#[derive(Debug, Deserialize)]
#[serde(rename = "_ExtStruct")]
#[expect(dead_code, reason = "read by `Debug`")]
struct Ext((i8, Bytes));

/// Whatever the payload says that it is.
#[derive(Debug)]
#[expect(dead_code, reason = "read by `Debug`")]
enum Any {
    Nil,
    None,
    Some(Box<Any>),
    Bool(bool),
    Int(i64),
    Uint(u64),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    Seq(Vec<Any>),
    Map(Vec<(Any, Any)>),
    Newtype(Box<Any>),
}

impl<'de> Deserialize<'de> for Any {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyVisitor)
    }
}

struct AnyVisitor;

impl<'de> Visitor<'de> for AnyVisitor {
    type Value = Any;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Any, E> {
        Ok(Any::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Any, E> {
        Ok(Any::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Any, E> {
        Ok(Any::Uint(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Any, E> {
        Ok(Any::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Any, E> {
        Ok(Any::Text(value.to_owned()))
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<Any, E> {
        Ok(Any::Bytes(value.to_vec()))
    }

    fn visit_unit<E>(self) -> Result<Any, E> {
        Ok(Any::Nil)
    }

    fn visit_none<E>(self) -> Result<Any, E> {
        Ok(Any::None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Any, D::Error> {
        Deserialize::deserialize(deserializer).map(Box::new).map(Any::Some)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Any, D::Error> {
        Deserialize::deserialize(deserializer).map(Box::new).map(Any::Newtype)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Any, A::Error> {
        let mut seq = Vec::new();
        while let Some(element) = elements.next_element()? {
            seq.push(element);
        }
        Ok(Any::Seq(seq))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Any, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Any::Map(map))
    }
}

fn compare_all(payload: &[u8]) {
    compare::<Any>(payload);
    compare::<Option<Any>>(payload);
    compare::<Vec<Any>>(payload);
    compare::<HashMap<(), Any>>(payload);
    compare::<Lax>(payload);
    compare::<Vec<Lax>>(payload);
    compare::<Strict>(payload);
    compare::<Choice>(payload);
    compare::<Vec<Choice>>(payload);
    compare::<Untagged>(payload);
    compare::<Tagged>(payload);
    compare::<Flat>(payload);
    compare::<Newtype>(payload);
    compare::<Pair>(payload);
    compare::<Nothing>(payload);
    compare::<Ext>(payload);
    compare::<()>(payload);
    compare::<bool>(payload);
    compare::<i8>(payload);
    compare::<u8>(payload);
    compare::<i32>(payload);
    compare::<u64>(payload);
    // `rmp-serde` takes -1 for the largest `u128`.
    let wide = read::<i128>(payload).ok();
    if wide.as_ref().is_none_or(|wide| !wide.starts_with('-')) || payload.first() == Some(&mark::BIN_8) {
        compare::<u128>(payload);
    } else {
        assert!(read::<u128>(payload).is_err());
    }
    compare::<i128>(payload);
    compare::<f32>(payload);
    compare::<f64>(payload);
    compare::<char>(payload);
    compare::<String>(payload);
    compare::<Bytes>(payload);
    compare::<Vec<u8>>(payload);
    compare::<[u8; 3]>(payload);
    compare::<Vec<Option<u8>>>(payload);
    compare::<Vec<()>>(payload);
    compare::<(u8, Option<Choice>, String)>(payload);
    compare::<Option<Option<i64>>>(payload);
    compare::<BTreeMap<String, Option<Choice>>>(payload);
    compare::<BTreeMap<i16, Vec<String>>>(payload);
    compare::<Option<()>>(payload);
}

/// A number, text or the like, in any of its forms.
pub(in crate::codec::msgpack) fn leaf() -> impl Strategy<Value = Vec<u8>> {
    let of_length = |eight: u8, len: usize, body: Vec<u8>| {
        let len = len.to_be_bytes();
        match eight % 3 {
            0 => [&[eight][..], &len[7..], &body].concat(),
            1 => [&[eight][..], &len[6..], &body].concat(),
            _ => [&[eight][..], &len[4..], &body].concat(),
        }
    };
    // 0xc4, 0xc7 and 0xd9 are the first of three each, with lengths of 1, 2 and 4 bytes.
    let wide = move |first: u8, step: u8, number: Option<i8>, body: Vec<u8>| {
        let len = body.len();
        let body = number.map_or(body.clone(), |number| [&number.to_be_bytes()[..], &body].concat());
        let mut value = of_length(step, len, body);
        value[0] = first + step;
        value
    };
    let text = prop_oneof![
        "[a-m]".prop_map(String::into_bytes),
        ".{0,12}".prop_map(String::into_bytes),
        vec(any::<u8>(), 0..6)
    ];
    prop_oneof![
        2 => any::<u8>().prop_filter("a scalar", |byte| matches!(byte, 0..=0x7f | 0xc0..=0xc3 | 0xe0..)).prop_map(|byte| vec![byte]),
        1 => (0xca_u8..=0xd3, any::<[u8; 8]>()).prop_map(|(marker, number)| {
            let len = match marker { 0xca => 4, 0xcb => 8, marker => 1 << (marker % 4) };
            [&[marker][..], &number[..len]].concat()
        }),
        1 => (0xcc_u8..=0xd3, 0_u8..3).prop_map(|(marker, last)| {
            let mut small = vec![0; 1 << (marker % 4)];
            *small.last_mut().expect("not empty") = last;
            [&[marker][..], &small].concat()
        }),
        4 => text.clone().prop_filter("short", |text| text.len() < 32)
            .prop_map(|text| [&[0xa0 | text.len() as u8][..], &text].concat()),
        1 => (0_u8..3, text.clone()).prop_map(move |(step, text)| wide(0xd9, step, None, text)),
        1 => (0_u8..3, prop_oneof![text.clone(), vec(any::<u8>(), 16)]).prop_map(move |(step, bytes)| wide(0xc4, step, None, bytes)),
        1 => (0_u8..3, -2_i8..2, prop_oneof![Just(vec![0; 4]), Just(vec![0; 12]), text])
            .prop_map(move |(step, number, data)| wide(0xc7, step, Some(number), data)),
        1 => (0_u8..5, -2_i8..2).prop_map(|(step, number)| {
            [&[0xd4 + step][..], &number.to_be_bytes(), &vec![0; 1 << step]].concat()
        }),
    ]
}

/// Any value, with names among the keys that the types above know.
pub(in crate::codec::msgpack) fn value() -> impl Strategy<Value = Vec<u8>> {
    leaf().prop_recursive(4, 40, 6, |inner| {
        let head = |fix: u8, sixteen: u8, form: u8, len: usize| match form {
            0 => vec![fix | len as u8],
            1 => vec![sixteen, 0, len as u8],
            _ => vec![sixteen + 1, 0, 0, 0, len as u8],
        };
        let key = prop_oneof![4 => "[a-m]".prop_map(|name| [&[0xa1][..], name.as_bytes()].concat()), 1 => leaf()];
        prop_oneof![
            (vec(inner.clone(), 0..6), prop_oneof![4 => Just(0_u8), 1 => 1_u8..3]).prop_map(move |(values, form)| [
                head(0x90, 0xdc, form, values.len()),
                values.concat()
            ]
            .concat()),
            (vec((key, inner), 0..6), prop_oneof![4 => Just(0_u8), 1 => 1_u8..3]).prop_map(move |(entries, form)| {
                let entries_bytes: Vec<u8> =
                    entries.iter().flat_map(|(key, value)| [&key[..], value].concat()).collect();
                [head(0x80, 0xde, form, entries.len()), entries_bytes].concat()
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn any_value_is_read_as_before(payload in value()) {
        compare_all(&payload);
    }

    #[test]
    fn any_bytes_are_read_as_before(payload in vec(any::<u8>(), 0..40)) {
        compare_all(&payload);
    }

    #[test]
    fn any_damaged_value_is_read_as_before(mut payload in value(), at: prop::sample::Index, byte: u8, cut: bool) {
        let at = at.index(payload.len());
        payload[at] = byte;
        if cut {
            payload.truncate(at + 1);
        }
        compare_all(&payload);
    }
}

/// Arrays, maps, enums, extensions and what is skipped: at the last level that is allowed, and at the next.
#[test]
fn the_bound_on_nesting_is_where_it_was() {
    let leaves = [
        &hex!("c0")[..],
        &hex!("a161"),
        &hex!("91 01"),
        &hex!("80"),
        &hex!("d6 ff 00000000"),
        &hex!("c4 01 00"),
        &hex!("81 a165 a161"),
    ];
    for (outer, levels) in
        [(&hex!("91")[..], 1), (&hex!("81 a165"), 1), (&hex!("81 a17a"), 1), (&hex!("81 a166 91"), 2)]
    {
        for leaf in leaves {
            for n in NESTING_MAX / levels - 3..=NESTING_MAX / levels + 1 {
                compare_all(&[&outer.repeat(n)[..], leaf].concat());
            }
        }
    }
    let skipped =
        [&hex!("81 a165").repeat(100)[..], &hex!("81 a164 82 a161 01 a162"), &hex!("91").repeat(60), &hex!("c0")]
            .concat();
    compare::<Choice>(&skipped);
}
