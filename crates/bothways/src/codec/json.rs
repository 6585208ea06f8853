//! JSON (serialize type 1), as Go's `encoding/json` reads it.
//!
//! Bytes are base64 text. A float that is no number has no JSON: it is an error, as in Go.
//! Source: Go rpcx `codec/codec.go`, `JSONCodec`.

mod write;

use std::io;

use ::bytes::Bytes;
use base64::{Engine, prelude::BASE64_STANDARD};
use bothways_proto::SerializeType;
use serde::{
    Serialize,
    de::{DeserializeOwned, IgnoredAny},
};
use serde_json::ser::Formatter;

use self::write::Exact;
use super::{CodecError, lenient::Lenient, text::within_json};

pub(super) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Bytes, CodecError> {
    let mut payload = Vec::with_capacity(128);
    let mut serializer = serde_json::Serializer::with_formatter(&mut payload, GoFormatter);
    within_json(|| value.serialize(Exact::new(&mut serializer)))
        .map_err(|error| CodecError::codec(SerializeType::JSON, error))?;
    Ok(payload.into())
}

/// Reads the first value. What follows it is ignored, as in Go.
pub(super) fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, CodecError> {
    let mut deserializer = serde_json::Deserializer::from_slice(payload);
    let value = within_json(|| T::deserialize(Lenient::new(&mut deserializer, payload.len())))
        .map_err(|error| CodecError::codec(SerializeType::JSON, error))?;

    // serde_json reads an integer of 128 bits up to the point of `1.5`, as if the rest were another value.
    let end = deserializer.into_iter::<IgnoredAny>().byte_offset();
    let (read, rest) = payload.split_at_checked(end).unwrap_or((payload, &[]));
    if matches!((read.last(), rest.first()), (Some(b'0'..=b'9'), Some(b'.' | b'e' | b'E'))) {
        return Err(CodecError::codec(SerializeType::JSON, "a number that is not an integer"));
    }
    Ok(value)
}

/// Compact, with bytes as Go writes a `[]byte`.
struct GoFormatter;

impl Formatter for GoFormatter {
    fn write_byte_array<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: &[u8]) -> io::Result<()> {
        write!(writer, "\"{}\"", BASE64_STANDARD.encode(value))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;
    use crate::{Encode, Payload};

    #[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
    #[serde(default, rename_all = "PascalCase")]
    struct Everything {
        int: i64,
        float: f32,
        text: String,
        #[serde(with = "crate::codec::bytes")]
        bytes: Vec<u8>,
        #[serde(with = "crate::codec::bytes")]
        many: Vec<Option<Bytes>>,
        list: Vec<String>,
        map: BTreeMap<i32, u8>,
        maybe: Option<Box<Everything>>,
    }

    fn read<T: Payload>(wire: impl AsRef<[u8]>) -> Result<T, CodecError> {
        T::decode(SerializeType::JSON, Bytes::copy_from_slice(wire.as_ref()))
    }

    fn write<T: Payload>(value: &T) -> String {
        String::from_utf8(value.encode(SerializeType::JSON).unwrap().to_vec()).unwrap()
    }

    #[test]
    fn bytes_are_base64_with_the_helper_and_as_a_payload() {
        let value =
            Everything { bytes: b"hi?>".to_vec(), many: vec![Some(Bytes::from("a")), None], ..Default::default() };
        let text = write(&value);
        assert!(text.contains(r#""Bytes":"aGk/Pg==","Many":["YQ==",null]"#), "{text}");
        assert_eq!(read::<Everything>(&text).unwrap(), value);
        assert_eq!(write(&Bytes::from_static(b"hi?>")), r#""aGk/Pg==""#);
        assert_eq!(read::<Bytes>(r#""aGk/Pg==""#).unwrap(), "hi?>");
        assert_eq!(read::<Bytes>("[104,105]").unwrap(), "hi");
        assert_eq!(read::<Everything>(r#"{"Bytes":[104,105]}"#).unwrap().bytes, b"hi");
        assert!(read::<Bytes>(r#""no base64""#).is_err());
        assert!(read::<Everything>(r#"{"Bytes":"no base64"}"#).is_err());
    }

    #[test]
    fn null_is_the_zero_value_of_whatever_is_asked_for() {
        assert_eq!(read::<i32>("null").unwrap(), 0);
        assert_eq!(read::<String>(" null").unwrap(), "");
        assert_eq!(read::<Bytes>("null").unwrap(), "");
        assert_eq!(read::<Vec<i32>>("null").unwrap(), [0; 0]);
        assert_eq!(read::<BTreeMap<String, Vec<i32>>>(r#"{"a":null}"#).unwrap()["a"], [0; 0]);
        assert_eq!(read::<Everything>("null").unwrap(), Everything::default());
        let nulls =
            r#"{"Int":null,"Float":null,"Text":null,"Bytes":null,"Many":null,"List":null,"Map":null,"Maybe":null}"#;
        assert_eq!(read::<Everything>(nulls).unwrap(), Everything::default());
    }

    #[test]
    fn the_first_value_counts_and_the_rest_is_ignored() {
        assert_eq!(read::<i32>(r#"7 {"nonsense"#).unwrap(), 7);
        read::<()>(r#"{"C":200} trailing"#).unwrap();
        assert_eq!(read::<String>(r#""7".5"#).unwrap(), "7");
        assert!(read::<()>("nonsense").is_err());
        assert_eq!(write(&()), "null");
    }

    #[test]
    fn numbers_that_do_not_fit_are_errors() {
        assert!(read::<u8>("256").is_err());
        assert!(read::<u8>("-1").is_err());
        assert!(read::<i32>("1.0").is_err());
        assert!(read::<f32>("1e300").is_err());
        assert_eq!(read::<f64>("3").unwrap(), 3.0);
        assert!(read::<f64>("1e400").is_err());
    }

    #[test]
    fn a_number_that_is_no_integer_is_none_of_any_width() {
        for wire in ["1.5", "1.0", "1e2", "-1E2", "[1.5]"] {
            assert!(read::<i64>(wire).is_err(), "{wire}");
            assert!(read::<u64>(wire).is_err(), "{wire}");
            assert!(read::<i128>(wire).is_err(), "{wire}");
            assert!(read::<u128>(wire).is_err(), "{wire}");
            assert!(read::<Vec<i128>>(wire).is_err(), "{wire}");
        }
        assert!(read::<u128>("-1").is_err());
        assert_eq!(read::<u128>("null").unwrap(), 0);
        assert_eq!(read::<i128>("null").unwrap(), 0);
    }

    /// As Go: `json: unsupported value: NaN`.
    #[test]
    fn a_float_that_is_no_number_is_an_error_wherever_it_is() {
        fn refused<T: Serialize + Send>(value: T) {
            let error = value.encode(SerializeType::JSON).unwrap_err().to_string();
            assert!(error.starts_with("json (1): unsupported value: "), "{error}");
        }
        for float in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            refused(float);
            refused(Some(float));
            refused(vec![1.0, float]);
            refused((true, float));
            refused(BTreeMap::from([("a", float)]));
            refused(Ok::<_, ()>(float));
        }
        refused(f32::NAN);
        let within = Everything { float: f32::INFINITY, ..Default::default() };
        refused(Everything { maybe: Some(Box::new(within)), ..Default::default() });
        assert_eq!(read::<f64>(write(&f64::MAX)).unwrap(), f64::MAX);
    }

    #[test]
    fn a_some_that_would_be_read_as_none_is_an_error() {
        #[derive(Debug, Deserialize, PartialEq, Serialize)]
        struct Nothing;
        #[derive(Debug, Deserialize, PartialEq, Serialize)]
        struct Newtype(Option<u8>);
        let refused = [
            Some(()).encode(SerializeType::JSON),
            Some(None::<u8>).encode(SerializeType::JSON),
            vec![Some(Nothing)].encode(SerializeType::JSON),
            Some(Newtype(None)).encode(SerializeType::JSON),
        ];
        for encoded in refused {
            let error = encoded.unwrap_err().to_string();
            assert_eq!(error, "json (1): a Some of nothing would be read as None");
        }
        assert_eq!(write(&Some(Some(1_u8))), "1");
        assert_eq!(write(&None::<Option<u8>>), "null");
        assert_eq!(write(&Some(vec![None::<u8>])), "[null]");
        assert_eq!(write(&Newtype(None)), "null");
    }

    #[derive(Debug, Default, Deserialize, PartialEq, Serialize)]
    #[serde(default, rename_all = "PascalCase")]
    struct Person {
        full_name: String,
        #[serde(alias = "Years")]
        age: u8,
        #[serde(rename = "Größe")]
        height: u8,
        k: u8,
        inner: Option<Box<Person>>,
    }

    /// Go takes the exact name, else one that is the same but for case.
    #[test]
    fn names_of_fields_may_come_in_any_case() {
        let person = |wire: &str| read::<Person>(wire).unwrap();
        let ada = Person { full_name: "Ada".into(), age: 36, height: 2, ..Person::default() };
        assert_eq!(person(r#"{"FullName":"Ada","Age":36,"Größe":2}"#), ada);
        assert_eq!(person(r#"{"fullname":"Ada","AGE":36,"GRÖßE":2}"#), ada);
        assert_eq!(person(r#"{"fullName":"Ada","yEARS":36,"größe":2}"#), ada);
        assert_eq!(person(r#"{"full_name":"Ada","age":36}"#).full_name, "");
        assert_eq!(person("{\"\u{212a}\":7}").k, 7, "the sign for Kelvin is a K");
        let nested = person(r#"{"INNER":{"inner":{"fullname":"Ada","unknown":[1]}}}"#);
        assert_eq!(nested.inner.unwrap().inner.unwrap().full_name, "Ada");
        let error = read::<Person>(r#"{"Age":1,"age":2}"#).unwrap_err().to_string();
        assert!(error.contains("duplicate field `Age`"), "{error}");
    }

    #[test]
    fn an_exact_name_goes_before_one_of_another_case() {
        #[derive(Debug, Deserialize, PartialEq, Serialize)]
        struct Both {
            a: u8,
            #[serde(rename = "A")]
            capital: u8,
        }
        assert_eq!(read::<Both>(r#"{"a":1,"A":2}"#).unwrap(), Both { a: 1, capital: 2 });
        assert_eq!(read::<Both>(r#"{"A":2,"a":1}"#).unwrap(), Both { a: 1, capital: 2 });
    }

    #[test]
    fn fields_of_a_variant_may_come_in_any_case_but_neither_its_name_nor_keys_of_maps() {
        #[derive(Debug, Deserialize, PartialEq, Serialize)]
        enum Shape {
            Circle { radius: u8 },
        }
        let circle = Shape::Circle { radius: 1 };
        assert_eq!(read::<Shape>(r#"{"Circle":{"Radius":1}}"#).unwrap(), circle);
        assert!(read::<Shape>(r#"{"circle":{"radius":1}}"#).is_err());
        let map = read::<BTreeMap<String, u8>>(r#"{"a":1,"A":2}"#).unwrap();
        assert_eq!(map, BTreeMap::from([("a".into(), 1), ("A".into(), 2)]));
    }

    #[test]
    fn names_in_what_serde_buffers_are_matched_exactly() {
        #[derive(Debug, Deserialize, PartialEq, Serialize)]
        struct Inner {
            name: Option<String>,
        }
        #[derive(Debug, Deserialize, PartialEq, Serialize)]
        struct Outer {
            #[serde(flatten)]
            inner: Inner,
        }
        assert_eq!(read::<Outer>(r#"{"name":"Ada"}"#).unwrap().inner.name.as_deref(), Some("Ada"));
        assert_eq!(read::<Outer>(r#"{"Name":"Ada"}"#).unwrap().inner.name, None);
    }

    #[test]
    fn text_that_is_not_unicode_is_an_error() {
        assert!(read::<String>(b"\"\xff\"").is_err());
        assert!(read::<String>(r#""\ud800""#).is_err(), "half a pair");
        assert_eq!(read::<String>(r#""\ud83d\ude00""#).unwrap(), "😀");
    }

    /// Go has an option for it in a field's tag: `json:",string"`.
    #[test]
    fn a_number_in_quotes_is_an_error() {
        assert!(read::<i64>(r#""5""#).is_err());
        assert!(read::<f64>(r#""0.5""#).is_err());
    }

    #[test]
    fn an_array_of_another_length_is_an_error() {
        assert_eq!(read::<[i32; 2]>("[1,2]").unwrap(), [1, 2]);
        assert!(read::<[i32; 2]>("[1]").is_err());
        assert!(read::<[i32; 2]>("[1,2,3]").is_err());
    }

    #[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
    struct Numbers {
        ints: (i8, i16, i32, i64, i128),
        uints: (u8, u16, u32, u64, u128),
        floats: (f32, f64),
        by_int: BTreeMap<i64, Option<f64>>,
        by_uint: BTreeMap<u128, char>,
        by_flag: BTreeMap<bool, ()>,
        maybe: Option<Option<u8>>,
    }

    fn doubles() -> impl Strategy<Value = f64> {
        let doubles = any::<u64>().prop_map(f64::from_bits);
        doubles.prop_filter("JSON has no such number", |float| float.is_finite())
    }

    fn numbers() -> impl Strategy<Value = Numbers> {
        let single = any::<f32>().prop_filter("JSON has no such number", |float| float.is_finite());
        let maps = (
            proptest::collection::btree_map(any::<i64>(), proptest::option::of(doubles()), 0..9),
            proptest::collection::btree_map(any::<u128>(), any::<char>(), 0..9),
            proptest::collection::btree_map(any::<bool>(), Just(()), 0..3),
        );
        let ints = (any::<(i8, i16, i32, i64, i128)>(), any::<(u8, u16, u32, u64, u128)>());
        let maybe = proptest::option::of(any::<u8>().prop_map(Some));
        (ints, (single, doubles()), maps, maybe).prop_map(|((ints, uints), floats, maps, maybe)| {
            let (by_int, by_uint, by_flag) = maps;
            Numbers { ints, uints, floats, by_int, by_uint, by_flag, maybe }
        })
    }

    #[test]
    fn what_nests_too_deep_is_an_error_and_not_a_stack_overflow() {
        assert!(read::<Everything>(r#"{"Maybe":"#.repeat(100_000)).is_err());
        assert!(read::<()>("[".repeat(100_000)).is_err());
    }

    fn everything() -> impl Strategy<Value = Everything> {
        let numbers = (any::<i64>(), any::<f32>().prop_filter("JSON has no such number", |float| float.is_finite()));
        let bytes = || proptest::collection::vec(any::<u8>(), 0..40);
        let many = proptest::collection::vec(proptest::option::of(bytes().prop_map(Bytes::from)), 0..4);
        let rest = (proptest::collection::btree_map(any::<i32>(), any::<u8>(), 0..9), any::<Vec<String>>());
        (numbers, ".{0,40}", bytes(), many, rest).prop_map(|((int, float), text, bytes, many, (map, list))| {
            Everything { int, float, text, bytes, many, list, map, maybe: Some(Box::default()) }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

        #[test]
        fn every_value_survives(value in everything()) {
            prop_assert_eq!(read::<Everything>(write(&value)).unwrap(), value);
        }

        #[test]
        fn every_number_arrives_as_it_was(value in numbers()) {
            prop_assert_eq!(read::<Numbers>(write(&value)).unwrap(), value);
        }

        #[test]
        fn every_float_arrives_to_the_last_bit_or_is_refused(bits: u64) {
            let (double, single) = (f64::from_bits(bits), f32::from_bits((bits >> 32) as u32));
            match double.encode(SerializeType::JSON) {
                Ok(wire) => prop_assert_eq!(read::<f64>(wire).unwrap().to_bits(), double.to_bits()),
                Err(_) => prop_assert!(!double.is_finite()),
            }
            match single.encode(SerializeType::JSON) {
                Ok(wire) => prop_assert_eq!(read::<f32>(wire).unwrap().to_bits(), single.to_bits()),
                Err(_) => prop_assert!(!single.is_finite()),
            }
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(wire in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = read::<Everything>(&wire);
        }

        #[test]
        fn no_damaged_value_makes_the_decoder_panic(value in everything(), at: proptest::sample::Index, byte: u8) {
            let mut wire = write(&value).into_bytes();
            *at.get_mut(&mut wire[..]) = byte;
            let _ = read::<Everything>(&wire);
        }
    }
}
