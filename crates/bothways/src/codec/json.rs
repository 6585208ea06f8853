//! JSON (serialize type 1), as Go's `encoding/json` reads it.
//!
//! Bytes are base64 text. A float that is no number has no JSON and travels as `null`.
//! Source: Go rpcx `codec/codec.go`, `JSONCodec`.

use std::io;

use ::bytes::Bytes;
use base64::{Engine, prelude::BASE64_STANDARD};
use bothways_proto::SerializeType;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::ser::Formatter;

use super::{CodecError, lenient::Lenient};

pub(super) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Bytes, CodecError> {
    let mut payload = Vec::with_capacity(128);
    let mut serializer = serde_json::Serializer::with_formatter(&mut payload, GoFormatter);
    value.serialize(&mut serializer).map_err(|error| CodecError::codec(SerializeType::JSON, error))?;
    Ok(payload.into())
}

/// Reads the first value. What follows it is ignored, as in Go.
pub(super) fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, CodecError> {
    let mut deserializer = serde_json::Deserializer::from_slice(payload);
    T::deserialize(Lenient::new(&mut deserializer, payload.len()))
        .map_err(|error| CodecError::codec(SerializeType::JSON, error))
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
    use crate::Payload;

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
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn every_value_survives(value in everything()) {
            prop_assert_eq!(read::<Everything>(write(&value)).unwrap(), value);
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
