//! MessagePack (serialize type 3), as `vmihailenco/msgpack` v5 speaks it with default flags.
//!
//! Structs are maps from field names. Integers take the shortest form, `f32` four bytes.
//! Source: Go rpcx `codec/codec.go`, `MsgpackCodec`.
//!
//! | file | what it does |
//! |---|---|
//! | `mark.rs` | the first bytes of values |
//! | `read.rs`, `read/direct.rs` | payload → value: by serde, and by the code that `#[message]` generates |
//! | `read/texts.rs` | lists of short texts, whose UTF-8 is checked together |
//! | `write.rs`, `write/direct.rs` | value → payload: the same |

mod mark;
mod read;
mod write;

use std::cell::Cell;

use ::bytes::Bytes;
use bothways_proto::SerializeType;
use serde::{Deserialize, Serialize};

use self::{read::Reader, write::Writer};

/// What the code needs that `#[message]` generates.
#[cfg(feature = "macros")]
#[doc(hidden)]
pub mod direct {
    pub use super::{
        read::{
            Error as ReadError, Reader,
            direct::{In, InBySerde, Read, ReadMessage, deserialize, message, missing, octets as read_octets},
        },
        write::{
            Error as WriteError, Writer,
            direct::{Out, OutBySerde, Write, WriteMessage, octets as write_octets, serialize},
        },
    };
}

use super::{CodecError, decoded::bounded, text::within_msgpack};

/// The name of a newtype whose value is an extension: a tuple of its number and its data. The one that
/// `rmp-serde` gave it, so that types that were made for it travel here too.
pub(super) const EXTENSION: &str = "_ExtStruct";

/// The name of a newtype with code of its own for MessagePack: a `#[message]`, which our reader and our writer hand
/// their bytes to.
#[cfg(feature = "macros")]
const DIRECT: &str = "_bw.direct";

/// A payload of more than this is not copied out of the buffer, but takes it along.
const COPY_BYTES: usize = 16 << 10;

thread_local! {
    /// Where payloads are written before their size is known, so that each takes one allocation of exactly that.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

pub(super) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Bytes, CodecError> {
    // A value may encode another one while it is being written: that one finds no buffer, and makes one.
    let mut writer = Writer::new(BUFFER.take());
    let written = within_msgpack(|| value.serialize(&mut writer));
    let mut buffer = writer.into_inner();
    let payload = match written {
        Ok(()) if COPY_BYTES < buffer.len() => return Ok(buffer.into()),
        Ok(()) => Ok(Bytes::copy_from_slice(&buffer)),
        Err(error) => Err(CodecError::codec(SerializeType::MSGPACK, error)),
    };
    buffer.clear();
    buffer.shrink_to(COPY_BYTES);
    BUFFER.set(buffer);
    payload
}

/// Bytes after the value are ignored, as in Go.
pub(super) fn decode<'de, T: Deserialize<'de>>(payload: &'de [u8]) -> Result<T, CodecError> {
    bounded(|| within_msgpack(|| T::deserialize(&mut Reader::new(payload))))
        .map_err(|error| CodecError::codec(SerializeType::MSGPACK, error))
}

/// Held against serde's derive.
#[cfg(all(test, feature = "macros"))]
mod direct_tests;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use hex_literal::hex;
    use proptest::prelude::*;

    use super::*;
    use crate::{Payload, codec::NESTING_MAX};

    #[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Args {
        a: i32,
        b: i32,
    }

    #[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
    #[serde(default, rename_all = "PascalCase")]
    struct Everything {
        int: i64,
        byte: u8,
        float: f32,
        double: f64,
        text: String,
        #[serde(with = "crate::codec::bytes")]
        bytes: Vec<u8>,
        list: Vec<String>,
        map: BTreeMap<String, i16>,
        pair: [i32; 2],
        maybe: Option<Box<Everything>>,
        choice: Choice,
        flag: bool,
        letter: char,
    }

    #[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
    enum Choice {
        #[default]
        Nothing,
        AVeryLongNameThatTakesMoreThanThirtyOneBytes,
        One(u64),
        Two(String, bool),
        Named {
            x: i8,
        },
        Nested(Box<Choice>),
    }

    fn read<T: Payload>(wire: &[u8]) -> Result<T, CodecError> {
        T::decode(SerializeType::MSGPACK, Bytes::copy_from_slice(wire))
    }

    fn write<T: Payload>(value: &T) -> Bytes {
        value.encode(SerializeType::MSGPACK).unwrap()
    }

    /// What Go rpcx sends for `Args{A: 10, B: 20}`.
    #[test]
    fn a_struct_is_a_map_from_field_names() {
        assert_eq!(write(&Args { a: 10, b: 20 }), hex!("82 a141 0a a142 14")[..]);
        assert_eq!(read::<Args>(&hex!("82 a141 0a a142 14")).unwrap(), Args { a: 10, b: 20 });
    }

    #[test]
    fn a_struct_may_come_as_an_array_of_all_its_fields() {
        assert_eq!(read::<Args>(&hex!("92 0a 14")).unwrap(), Args { a: 10, b: 20 });
        assert!(read::<Args>(&hex!("91 0a")).is_err());
        assert!(read::<Args>(&hex!("93 0a 14 1e")).is_err());
        let short = Everything { int: 7, byte: 1, ..Everything::default() };
        assert_eq!(read::<Everything>(&hex!("92 07 01")).unwrap(), short, "its fields are `default`");
    }

    #[test]
    fn every_width_of_integer_fills_every_integer() {
        let ones = [
            &hex!("01")[..],
            &hex!("cc01"),
            &hex!("cd0001"),
            &hex!("ce00000001"),
            &hex!("cf0000000000000001"),
            &hex!("d001"),
            &hex!("d10001"),
            &hex!("d200000001"),
            &hex!("d30000000000000001"),
        ];
        for wire in ones {
            assert_eq!(read::<u8>(wire).unwrap(), 1);
            assert_eq!(read::<i64>(wire).unwrap(), 1);
            assert_eq!(read::<f32>(wire).unwrap(), 1.0);
            assert_eq!(read::<f64>(wire).unwrap(), 1.0);
            assert!(read::<bool>(wire).is_err());
            assert!(read::<String>(wire).is_err());
        }
        assert_eq!(read::<i16>(&hex!("d3ffffffffffffffff")).unwrap(), -1);
    }

    /// Go cuts off what does not fit.
    #[test]
    fn an_integer_that_does_not_fit_is_an_error() {
        assert!(read::<u128>(&hex!("ff")).is_err());
        assert!(read::<u128>(&write(&i64::MIN)).is_err());
        assert!(read::<u128>(&write(&-1i128)).is_err());
        assert!(read::<i64>(&write(&i128::MAX)).is_err());
        assert!(read::<u8>(&hex!("cd0100")).is_err());
        assert!(read::<i64>(&hex!("cfffffffffffffffff")).is_err());
        assert!(read::<u64>(&hex!("ff")).is_err());
    }

    #[test]
    fn integers_take_the_shortest_form_and_f32_stays_four_bytes() {
        assert_eq!(write(&1i64), hex!("01")[..]);
        assert_eq!(write(&-33i64), hex!("d0df")[..]);
        assert_eq!(write(&200i32), hex!("ccc8")[..]);
        assert_eq!(write(&1.5f32), hex!("ca3fc00000")[..]);
        assert_eq!(write(&1.5f64), hex!("cb3ff8000000000000")[..]);
    }

    #[test]
    fn a_float64_is_rounded_into_an_f32_unless_it_is_out_of_range() {
        assert_eq!(read::<f32>(&write(&0.1f64)).unwrap(), 0.1);
        assert!(read::<f32>(&write(&f64::INFINITY)).unwrap().is_infinite());
        assert!(read::<f32>(&write(&1e300f64)).is_err());
        assert_eq!(read::<f64>(&write(&1.5f32)).unwrap(), 1.5);
        assert!(read::<i32>(&write(&1.0f64)).is_err());
    }

    #[test]
    fn bin_and_str_stand_for_each_other() {
        assert_eq!(read::<String>(&hex!("c402 6869")).unwrap(), "hi");
        assert_eq!(read::<Bytes>(&hex!("a2 6869")).unwrap(), "hi");
        assert_eq!(write(&Bytes::from_static(b"hi")), hex!("c402 6869")[..]);
        assert!(read::<String>(&hex!("a1 ff")).is_err(), "not UTF-8");
        assert_eq!(read::<Bytes>(&hex!("a1 ff")).unwrap()[..], [0xff]);
        let bytes = |wire| read::<Everything>(wire).unwrap().bytes;
        assert_eq!(bytes(&hex!("81 a5 4279746573 c402 6869")), b"hi");
        assert_eq!(bytes(&hex!("81 a5 4279746573 a2 6869")), b"hi");
        assert_eq!(bytes(&hex!("81 a5 4279746573 92 6869")), b"hi");
        assert_eq!(bytes(&hex!("81 a5 4279746573 c0")), b"");
        assert_eq!(read::<Vec<u8>>(&hex!("c402 6869")).unwrap(), b"hi");
    }

    /// Serde's own buffers say of every format that it is a text.
    #[test]
    fn a_string_stands_for_bytes_also_in_what_serde_buffers() {
        #[derive(Debug, Deserialize, PartialEq, Serialize)]
        struct Inner {
            #[serde(with = "crate::codec::bytes")]
            data: Vec<u8>,
        }
        #[derive(Debug, Deserialize, PartialEq, Serialize)]
        struct Outer {
            #[serde(flatten)]
            inner: Inner,
        }
        let outer = Outer { inner: Inner { data: b"abcd".to_vec() } };
        assert_eq!(read::<Outer>(&hex!("81 a4 64617461 a4 61626364")).unwrap(), outer);
        assert_eq!(write(&outer), hex!("81 a4 64617461 c404 61626364")[..]);
        assert_eq!(read::<Outer>(&write(&outer)).unwrap(), outer);
    }

    #[test]
    fn an_array_of_bytes_is_bin_and_filled_up_with_zeros() {
        #[derive(Debug, Deserialize, PartialEq, Serialize)]
        struct Token(#[serde(with = "crate::codec::bytes")] [u8; 4]);
        assert_eq!(write(&Token([1, 2, 3, 4])), hex!("c404 01020304")[..]);
        assert_eq!(read::<Token>(&hex!("c404 01020304")).unwrap(), Token([1, 2, 3, 4]));
        assert_eq!(read::<Token>(&hex!("c402 0102")).unwrap(), Token([1, 2, 0, 0]));
        assert_eq!(read::<Token>(&hex!("c0")).unwrap(), Token([0; 4]));
        let error = read::<Token>(&hex!("c405 0102030405")).unwrap_err().to_string();
        assert_eq!(error, "msgpack (3): 5 bytes for an array of 4");
    }

    #[test]
    fn nil_is_the_zero_value_of_whatever_is_asked_for() {
        let nil = &hex!("c0");
        assert_eq!(read::<i32>(nil).unwrap(), 0);
        assert_eq!(read::<u64>(nil).unwrap(), 0);
        assert_eq!((read::<i128>(nil).unwrap(), read::<u128>(nil).unwrap()), (0, 0));
        assert_eq!(read::<f64>(nil).unwrap(), 0.0);
        assert!(!read::<bool>(nil).unwrap());
        assert_eq!(read::<String>(nil).unwrap(), "");
        assert_eq!(read::<Bytes>(nil).unwrap(), "");
        assert_eq!(read::<Vec<String>>(nil).unwrap(), [""; 0]);
        assert_eq!(read::<[u16; 3]>(nil).unwrap(), [0; 3]);
        assert_eq!(read::<BTreeMap<String, i32>>(nil).unwrap(), BTreeMap::new());
        assert_eq!(read::<Option<i32>>(nil).unwrap(), None);
        assert_eq!(read::<Everything>(nil).unwrap(), Everything::default());
        assert!(read::<Args>(nil).is_err(), "its fields are not `default`");
        assert_eq!(read::<Vec<String>>(&hex!("93 a161 c0 a162")).unwrap(), ["a", "", "b"]);
    }

    #[test]
    fn unknown_keys_are_skipped_and_missing_ones_are_default_if_the_type_says_so() {
        let wire = hex!("83 a15a 93 01 c0 d6ff00000001 a3 496e74 07 a4 4d6f7265 81 01 02");
        assert_eq!(read::<Everything>(&wire).unwrap(), Everything { int: 7, ..Everything::default() });
        let error = read::<Args>(&hex!("81 a141 0a")).unwrap_err().to_string();
        assert_eq!(error, "msgpack (3): missing field `B`");
        assert!(read::<Args>(&hex!("82 a161 0a a142 14")).is_err(), "`a` is not `A`");
    }

    #[test]
    fn trailing_bytes_are_ignored() {
        assert_eq!(read::<Args>(&hex!("82 a141 0a a142 14 ffff")).unwrap(), Args { a: 10, b: 20 });
    }

    #[test]
    fn unit_takes_anything_and_sends_nil() {
        for wire in [&hex!("c0")[..], &hex!("80"), &hex!("90"), &hex!("82 a141 0a a142 14"), &hex!("d6ff00000001")] {
            read::<()>(wire).unwrap();
        }
        assert!(read::<()>(&hex!("92 01")).is_err(), "not even a value");
        assert_eq!(write(&()), hex!("c0")[..]);
    }

    #[test]
    fn a_payload_that_ends_within_a_value_says_so() {
        let error = read::<Args>(&hex!("82 a141 0a a142")).unwrap_err().to_string();
        assert_eq!(error, "msgpack (3): the payload ends within a value");
    }

    #[test]
    fn a_length_beyond_the_payload_takes_no_memory() {
        assert!(read::<Vec<u64>>(&hex!("dd ffffffff")).is_err());
        assert!(read::<Vec<[u64; 32]>>(&hex!("dd ffffffff")).is_err());
        assert!(read::<BTreeMap<String, u64>>(&hex!("df ffffffff")).is_err());
        assert!(read::<std::collections::HashMap<String, [u64; 32]>>(&hex!("df ffffffff")).is_err());
        assert!(read::<Bytes>(&hex!("c6 ffffffff 00")).is_err());
        assert!(read::<String>(&hex!("db ffffffff 61")).is_err());
        assert!(read::<()>(&hex!("c9 ffffffff 01")).is_err());
    }

    /// What Go writes for a text with the tag `intern`, for one: the error says what belongs there.
    #[test]
    fn an_extension_is_no_text() {
        for wire in [&hex!("d4 80 00")[..], &hex!("c7 02 80 cd 01")] {
            let error = decode::<String>(wire).expect_err("it is no text").to_string();
            assert!(error.contains("expected a string"), "{error}");
        }
    }

    #[test]
    fn what_nests_too_deep_is_an_error_and_not_a_stack_overflow() {
        let key = hex!("81 a5 4d61796265");
        let within = [&key.repeat(NESTING_MAX - 1)[..], &hex!("80")].concat();
        assert!(read::<Everything>(&within).is_ok());
        let beyond = [&key.repeat(NESTING_MAX)[..], &hex!("80")].concat();
        let error = read::<Everything>(&beyond).unwrap_err().to_string();
        assert_eq!(error, "msgpack (3): nested deeper than 128 levels");
        assert!(read::<Everything>(&key.repeat(100_000)).is_err());
        assert!(read::<()>(&[0x91; 100_000]).is_err(), "skipped arrays");
        assert!(read::<Choice>(&hex!("81 a6 4e6573746564").repeat(100_000)).is_err(), "enums in enums");
    }

    /// Go takes -1 for a `uint64`, and the upper half of a `uint64` for negative when it fills a float.
    #[test]
    fn the_widest_integers_fill_a_float_with_their_own_sign() {
        assert_eq!(read::<f64>(&write(&u64::MAX)).unwrap(), 18_446_744_073_709_551_615.0);
        assert_eq!(read::<f32>(&write(&i64::MIN)).unwrap(), -9_223_372_036_854_775_808.0);
    }

    #[test]
    fn the_last_of_several_equal_keys_counts_in_a_map_and_is_an_error_in_a_struct() {
        let wire = hex!("82 a141 01 a141 02");
        assert_eq!(read::<BTreeMap<String, u8>>(&wire).unwrap(), BTreeMap::from([("A".into(), 2)]));
        let error = read::<Args>(&wire).unwrap_err().to_string();
        assert_eq!(error, "msgpack (3): duplicate field `A`");
    }

    #[test]
    fn nil_is_the_empty_key_of_a_map_and_none_of_a_struct() {
        let wire = hex!("81 c0 01");
        assert_eq!(read::<BTreeMap<String, u8>>(&wire).unwrap(), BTreeMap::from([("".into(), 1)]));
        assert!(read::<Everything>(&wire).is_err());
    }

    #[test]
    fn an_integer_as_a_key_is_the_place_of_a_field() {
        assert_eq!(read::<Args>(&hex!("82 00 0a 01 14")).unwrap(), Args { a: 10, b: 20 });
    }

    /// Go's constants of an integer type are integers. An integer is not the place of a variant: it would be another value.
    #[test]
    fn an_integer_names_no_variant() {
        #[derive(Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
        enum Level {
            Low,
            High(u8),
        }

        #[derive(Debug, Deserialize, PartialEq, Serialize)]
        #[serde(tag = "Kind")]
        enum Within {
            Low,
            High { n: u8 },
        }

        #[derive(Debug, Deserialize, PartialEq, Serialize)]
        #[serde(tag = "Kind", content = "Value")]
        enum Beside {
            Low,
            High(u8),
        }

        fn refused<T: Payload + std::fmt::Debug>(wire: &[u8]) {
            let error = read::<T>(wire).unwrap_err().to_string();
            assert!(error.ends_with("an integer where a variant's name belongs"), "{error}");
        }
        let integers: [&[u8]; 6] = [
            &hex!("00"),
            &hex!("01"),
            &hex!("ff"),
            &hex!("cc 01"),
            &hex!("d3 0000000000000001"),
            &hex!("cf 00000000 00000001"),
        ];
        for integer in integers {
            let after = |before: &[u8]| [before, integer].concat();
            refused::<Level>(integer);
            refused::<Option<Level>>(integer);
            refused::<Vec<Level>>(&after(&hex!("91")));
            refused::<Level>(&[&hex!("81")[..], integer, &hex!("07")].concat());
            refused::<BTreeMap<Level, u8>>(&[&hex!("81")[..], integer, &hex!("07")].concat());
            refused::<BTreeMap<u8, Level>>(&after(&hex!("81 05")));
            refused::<Result<u8, u8>>(&[&hex!("81")[..], integer, &hex!("07")].concat());
            refused::<Within>(&after(&hex!("81 a4 4b696e64")));
            refused::<Beside>(&after(&hex!("81 a4 4b696e64")));
        }
        assert_eq!(read::<Level>(&hex!("a3 4c6f77")).unwrap(), Level::Low);
        assert_eq!(read::<BTreeMap<Level, u8>>(&hex!("81 a3 4c6f77 07")).unwrap()[&Level::Low], 7);
        assert_eq!(read::<Within>(&hex!("82 a4 4b696e64 a4 48696768 a1 6e 07")).unwrap(), Within::High { n: 7 });
        assert_eq!(read::<Beside>(&hex!("82 a4 4b696e64 a4 48696768 a5 56616c7565 07")).unwrap(), Beside::High(7));
    }

    #[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
    struct Numbers {
        ints: (i8, i16, i32, i64, i128),
        uints: (u8, u16, u32, u64, u128),
        by_int: BTreeMap<i128, Option<u128>>,
        by_flag: BTreeMap<bool, Option<Vec<()>>>,
        by_letter: BTreeMap<char, (u64, [i64; 2])>,
        maybe: Option<Option<u8>>,
    }

    /// Of every size, not only of the largest.
    fn wide() -> impl Strategy<Value = i128> {
        (any::<i128>(), 0_u32..128).prop_map(|(value, shift)| value >> shift)
    }

    fn numbers() -> impl Strategy<Value = Numbers> {
        let ints = any::<(i8, i16, i32, i64)>();
        let uints = any::<(u8, u16, u32, u64)>();
        let by_int = proptest::collection::btree_map(wide(), any::<Option<u128>>(), 0..9);
        let by_flag = proptest::collection::btree_map(any::<bool>(), any::<Option<Vec<()>>>(), 0..3);
        let by_letter = proptest::collection::btree_map(any::<char>(), any::<(u64, [i64; 2])>(), 0..9);
        let maybe = proptest::option::of(any::<u8>().prop_map(Some));
        (ints, uints, wide(), wide(), by_int, by_flag, by_letter, maybe).prop_map(
            |((a, b, c, d), (e, f, g, h), int, uint, by_int, by_flag, by_letter, maybe)| Numbers {
                ints: (a, b, c, d, int),
                uints: (e, f, g, h, uint.cast_unsigned()),
                by_int,
                by_flag,
                by_letter,
                maybe,
            },
        )
    }

    fn choices() -> impl Strategy<Value = Choice> {
        let leaf = prop_oneof![
            Just(Choice::Nothing),
            Just(Choice::AVeryLongNameThatTakesMoreThanThirtyOneBytes),
            any::<u64>().prop_map(Choice::One),
            (".{0,40}", any::<bool>()).prop_map(|(text, flag)| Choice::Two(text, flag)),
            any::<i8>().prop_map(|x| Choice::Named { x }),
        ];
        leaf.prop_recursive(3, 3, 1, |inner| inner.prop_map(|choice| Choice::Nested(Box::new(choice))))
    }

    fn everything() -> impl Strategy<Value = Everything> {
        let numbers = (any::<i64>(), any::<u8>(), any::<f32>(), any::<f64>(), any::<[i32; 2]>());
        let texts = (".{0,40}", proptest::collection::vec(any::<u8>(), 0..300), any::<Vec<String>>());
        let rest =
            (proptest::collection::btree_map(".{0,9}", any::<i16>(), 0..20), choices(), any::<bool>(), any::<char>());
        let leaf = (numbers, texts, rest).prop_map(
            |((int, byte, float, double, pair), (text, bytes, list), (map, choice, flag, letter))| {
                let maybe = None;
                Everything { int, byte, float, double, text, bytes, list, map, pair, maybe, choice, flag, letter }
            },
        );
        leaf.prop_recursive(3, 3, 1, |inner| {
            inner.prop_map(|inner| Everything { maybe: Some(Box::new(inner)), ..Everything::default() })
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn every_value_survives(value in everything()) {
            prop_assert_eq!(read::<Everything>(&write(&value)).unwrap(), value);
        }

        #[test]
        fn every_number_arrives_as_it_was(value in numbers()) {
            prop_assert_eq!(read::<Numbers>(&write(&value)).unwrap(), value);
        }

        #[test]
        fn every_float_arrives_to_the_last_bit(bits: u64) {
            let (double, single) = (f64::from_bits(bits), f32::from_bits(bits as u32));
            prop_assert_eq!(read::<f64>(&write(&double)).unwrap().to_bits(), bits);
            prop_assert_eq!(read::<f32>(&write(&single)).unwrap().to_bits(), bits as u32);
        }

        /// What reads an integer reads the same number, or an error.
        #[test]
        fn an_integer_read_as_another_type_is_the_same_number_or_an_error(value in wide()) {
            let wire = write(&value);
            let fits = i64::try_from(value).is_ok() || u64::try_from(value).is_ok();
            prop_assert_eq!(read::<i16>(&wire).ok(), i16::try_from(value).ok());
            prop_assert_eq!(read::<i64>(&wire).ok(), i64::try_from(value).ok());
            prop_assert_eq!(read::<u64>(&wire).ok(), u64::try_from(value).ok());
            if fits {
                prop_assert_eq!(read::<u128>(&wire).ok(), u128::try_from(value).ok());
            }
            prop_assert_eq!(read::<i128>(&wire).unwrap(), value);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(wire in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = read::<Everything>(&wire);
            let _ = read::<Vec<Choice>>(&wire);
            let _ = read::<()>(&wire);
        }

        #[test]
        fn no_damaged_value_makes_the_decoder_panic(value in everything(), at: proptest::sample::Index, byte: u8) {
            let mut wire = write(&value).to_vec();
            *at.get_mut(&mut wire[..]) = byte;
            let _ = read::<Everything>(&wire);
        }
    }
}
