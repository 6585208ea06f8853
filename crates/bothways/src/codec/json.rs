//! JSON (serialize type 1), as Go's `encoding/json` reads it.
//!
//! Bytes are base64 text. Floats are written as Go writes them: `7`, not `7.0`, which Go would not read into an
//! integer. A float that is no number has no JSON: it is an error, as in Go.
//! Source: Go rpcx `codec/codec.go`, `JSONCodec`.

mod write;

use std::io;

use ::bytes::Bytes;
use base64::{Engine, prelude::BASE64_STANDARD};
use bothways_proto::SerializeType;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::ser::Formatter;

use self::write::Exact;
use super::{CodecError, decoded::bounded, lenient::Lenient, text::within_json};

pub(super) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Bytes, CodecError> {
    let mut payload = Vec::with_capacity(128);
    let mut serializer = serde_json::Serializer::with_formatter(&mut payload, GoFormatter);
    within_json(|| value.serialize(Exact::new(&mut serializer)))
        .map_err(|error| CodecError::codec(SerializeType::JSON, error))?;
    Ok(payload.into())
}

/// Reads the first value. What follows it is ignored, as in Go.
pub(super) fn decode<'de, T: Deserialize<'de>>(payload: &'de [u8]) -> Result<T, CodecError> {
    let mut deserializer = serde_json::Deserializer::from_slice(payload);
    let value = bounded(|| within_json(|| T::deserialize(Lenient::new(&mut deserializer, payload.len()))))
        .map_err(|error| CodecError::codec(SerializeType::JSON, error))?;

    // serde_json reads an integer of 128 bits up to the point of `1.5`, as if the rest were another value.
    let end = deserializer.into_iter::<IgnoredAny>().byte_offset();
    let (read, rest) = payload.split_at_checked(end).unwrap_or((payload, &[]));
    if matches!((read.last(), rest.first()), (Some(b'0'..=b'9'), Some(b'.' | b'e' | b'E'))) {
        return Err(CodecError::codec(SerializeType::JSON, "a number that is not an integer"));
    }
    Ok(value)
}

/// Compact, with floats and bytes as Go writes them.
struct GoFormatter;

/// Below it Go writes a float with an exponent.
const EXPONENT_BELOW: f64 = 1e-6;
/// From here on, too.
const EXPONENT_FROM: f64 = 1e21;

/// The shortest digits that are read as the same float. Source: Go `encoding/json`, `floatEncoder`.
macro_rules! write_float {
    ($method:ident($type:ty)) => {
        fn $method<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: $type) -> io::Result<()> {
            #[allow(clippy::cast_possible_truncation, reason = "only one of the two types is narrower")]
            let plain = EXPONENT_BELOW as $type..EXPONENT_FROM as $type;
            if value == 0.0 || plain.contains(&value.abs()) {
                return write!(writer, "{value}");
            }
            let text = format!("{value:e}");
            match text.split_once('e') {
                // Go writes the sign of each exponent.
                Some((digits, exponent)) if !exponent.starts_with('-') => write!(writer, "{digits}e+{exponent}"),
                _ => writer.write_all(text.as_bytes()),
            }
        }
    };
}

impl Formatter for GoFormatter {
    write_float!(write_f32(f32));
    write_float!(write_f64(f64));

    fn write_byte_array<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: &[u8]) -> io::Result<()> {
        write!(writer, "\"{}\"", BASE64_STANDARD.encode(value))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

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

    /// Go's constants of an integer type are integers. The error says what belongs there.
    #[test]
    fn an_integer_names_no_variant_and_the_error_says_so() {
        #[derive(Debug, Deserialize, PartialEq, Serialize)]
        enum Level {
            Low,
            High(u8),
        }

        #[derive(Debug, Deserialize, PartialEq, Serialize)]
        struct Alarm {
            level: Vec<Level>,
        }

        for wire in ["1", "-1", "1.5", "true", "[]"] {
            let error = read::<Level>(wire).unwrap_err().to_string();
            assert!(error.contains("a variant's name belongs here"), "{error}");
        }
        let error = read::<Alarm>(r#"{"level":["Low",1]}"#).unwrap_err().to_string();
        assert!(error.contains("a variant's name belongs here") && error.ends_with("line 1 column 17"), "{error}");
        assert_eq!(read::<Alarm>(r#"{"level":["Low",{"High":1}]}"#).unwrap().level, [Level::Low, Level::High(1)]);
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

    /// What `json.Marshal` of Go 1.26 writes. Its readers of integers refuse `7.0`.
    #[test]
    fn floats_are_written_as_go_writes_them() {
        let doubles = [
            (0.0, "0"),
            (-0.0, "-0"),
            (7.0, "7"),
            (-7.0, "-7"),
            (0.5, "0.5"),
            (1e5, "100000"),
            (1e15, "1000000000000000"),
            (1e16, "10000000000000000"),
            (1e17, "100000000000000000"),
            (18_446_744_073_709_551_615.0, "18446744073709552000"),
            (1.234_567_890_123_456_8e20, "123456789012345680000"),
            (9.999_999_999_999_999e20, "999999999999999900000"),
            (1e21, "1e+21"),
            (-1e21, "-1e+21"),
            (1.5e21, "1.5e+21"),
            (1e100, "1e+100"),
            (f64::MAX, "1.7976931348623157e+308"),
            (5e-324, "5e-324"),
            (f64::MIN_POSITIVE, "2.2250738585072014e-308"),
            (1e-5, "0.00001"),
            (1.234e-6, "0.000001234"),
            (1e-6, "0.000001"),
            (9.99e-7, "9.99e-7"),
            (1e-7, "1e-7"),
            (-1.5e-7, "-1.5e-7"),
            (1e-10, "1e-10"),
            (0.1 + 0.2, "0.30000000000000004"),
        ];
        for (value, text) in doubles {
            assert_eq!(write(&value), text);
            assert_eq!(read::<f64>(text).unwrap().to_bits(), value.to_bits(), "{text}");
        }
        let singles = [
            (7.0_f32, "7"),
            (0.1, "0.1"),
            (16_777_216.0, "16777216"),
            (1e10, "10000000000"),
            (9.999_999e20, "999999900000000000000"),
            (1e21, "1e+21"),
            (f32::MAX, "3.4028235e+38"),
            (1e-45, "1e-45"),
            (1e-6, "0.000001"),
            (9.999e-7, "9.999e-7"),
            (123_456.79, "123456.79"),
        ];
        for (value, text) in singles {
            assert_eq!(write(&value), text);
            assert_eq!(read::<f32>(text).unwrap().to_bits(), value.to_bits(), "{text}");
        }
        let nested = (Some(7.0), [1.0_f32], BTreeMap::from([("a".to_owned(), 2.0)]));
        assert_eq!(write(&nested), r#"[7,[1],{"a":2}]"#);
        assert_eq!(read::<(i64, u8, i32)>(write(&(7.0_f64, 200.0_f32, -3.0_f64))).unwrap(), (7, 200, -3));
    }

    /// What Go writes of a float that is minus zero.
    #[test]
    fn minus_zero_is_zero_for_an_integer_with_a_sign() {
        assert_eq!(read::<(i8, i16, i32, i64)>("[-0,-0,-0,-0]").unwrap(), (0, 0, 0, 0));
        assert_eq!(read::<i128>("-0").unwrap(), 0);
        assert!(read::<u8>("-0").is_err(), "as in Go");
        assert!(read::<f64>("-0").unwrap().is_sign_negative());
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

    /// Go takes the exact name, or else a name that differs only in case.
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
    fn integers_as_keys_are_not_read_in_what_serde_buffers() {
        #[derive(Debug, Default, Deserialize, PartialEq, Serialize)]
        struct Inner {
            by_number: BTreeMap<i64, String>,
        }
        #[derive(Debug, Deserialize, PartialEq, Serialize)]
        struct Outer {
            #[serde(flatten)]
            inner: Inner,
        }
        let text = r#"{"by_number":{"1":"one"}}"#;
        assert_eq!(read::<Inner>(text).unwrap().by_number[&1], "one");
        let error = read::<Outer>(text).unwrap_err().to_string();
        assert!(error.contains(r#"invalid type: string "1", expected i64"#), "{error}");
    }

    #[test]
    fn a_json_value_holds_no_bytes_and_no_time_of_messagepack() {
        let value = |wire: &'static [u8]| serde_json::Value::decode(SerializeType::MSGPACK, Bytes::from_static(wire));
        assert_eq!(value(b"\x81\xa1a\x01").unwrap(), serde_json::json!({"a": 1}));
        assert!(value(b"\xc4\x02hi").is_err(), "bytes");
        assert!(value(b"\xd6\xff\0\0\0\x01").is_err(), "a time");
    }

    #[test]
    fn a_struct_may_come_as_an_array() {
        #[derive(Debug, Deserialize, PartialEq, Serialize)]
        struct Args {
            a: u8,
            b: u8,
        }
        assert_eq!(read::<Args>("[3,4]").unwrap(), Args { a: 3, b: 4 });
        assert!(read::<Args>("[3]").is_err());
        assert_eq!(read::<Person>(r#"["Ada"]"#).unwrap(), Person { full_name: "Ada".into(), ..Person::default() });
    }

    #[test]
    fn base64_text_fills_an_array_of_bytes() {
        #[derive(Debug, Deserialize, PartialEq, Serialize)]
        struct Token(#[serde(with = "crate::codec::bytes")] [u8; 4]);
        assert_eq!(write(&Token([1, 2, 3, 4])), "[1,2,3,4]");
        assert_eq!(read::<Token>(r#""AQI=""#).unwrap(), Token([1, 2, 0, 0]));
        assert!(read::<Token>(r#""AQIDBAU=""#).is_err());
    }

    #[test]
    fn text_that_is_not_unicode_is_an_error() {
        assert!(read::<String>(b"\"\xff\"").is_err());
        assert!(read::<String>(r#""\ud800""#).is_err(), "half a pair");
        assert!(read::<Person>(r#"{"unknown":"\ud800"}"#).is_ok(), "nobody reads what is skipped");
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
