//! Serde types → MessagePack, into one buffer.
//!
//! Writes what `rmp-serde` writes with `with_struct_map`, which the tests hold it against, and puts the head of a
//! value into the buffer in one piece. Two things are its own: an integer of 128 bits that fits into 64 is written
//! as that, and `Some` of what is written as `nil`, which would be read as `None`, is an error.

use serde::{
    Serialize, Serializer,
    ser::{
        Error as _, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
        SerializeTupleStruct, SerializeTupleVariant,
    },
};

#[cfg(feature = "macros")]
use super::DIRECT;
use super::{EXTENSION, mark, read::Reader};
use crate::codec::SOME_OF_NOTHING;

#[cfg(feature = "macros")]
pub(super) mod direct;

/// The words of a type that cannot be written.
#[allow(unreachable_pub, reason = "for generated code")]
pub type Error = serde::de::value::Error;

/// The payload as far as it is written.
#[allow(unreachable_pub, reason = "for generated code")]
pub struct Writer(Vec<u8>);

/// First bytes of a kind of value with a length.
struct Heads {
    /// Has a length below `fix_end` in it.
    fix: u8,
    fix_end: u8,
    /// With a length of one byte behind it; [`mark::RESERVED`] where there is no such form.
    one: u8,
    two: u8,
    four: u8,
}

const TEXT: Heads =
    Heads { fix: mark::FIX_STR, fix_end: 32, one: mark::STR_8, two: mark::STR_8 + 1, four: mark::STR_32 };
const BIN: Heads = Heads { fix: 0, fix_end: 0, one: mark::BIN_8, two: mark::BIN_8 + 1, four: mark::BIN_32 };
const ARRAY: Heads =
    Heads { fix: mark::FIX_ARRAY, fix_end: 16, one: mark::RESERVED, two: mark::ARRAY_16, four: mark::ARRAY_32 };
const MAP: Heads =
    Heads { fix: mark::FIX_MAP, fix_end: 16, one: mark::RESERVED, two: mark::MAP_16, four: mark::MAP_32 };
/// The most that an integer takes.
const INTEGER_BYTES: usize = 9;

const EXT: Heads = Heads { fix: 0, fix_end: 0, one: mark::EXT_8, two: mark::EXT_8 + 1, four: mark::EXT_32 };

/// What numbers are appended to.
trait Sink {
    fn put<const N: usize>(&mut self, bytes: [u8; N]);

    /// A marker and the number behind it.
    fn put_wide<const N: usize>(&mut self, marker: u8, number: [u8; N]);
}

impl Sink for Vec<u8> {
    #[inline(always)]
    fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        self.extend_from_slice(&bytes);
    }

    #[inline(always)]
    fn put_wide<const N: usize>(&mut self, marker: u8, number: [u8; N]) {
        let mut bytes = [0; INTEGER_BYTES];
        bytes[0] = marker;
        bytes[1..=N].copy_from_slice(&number);
        self.extend_from_slice(&bytes[..=N]);
    }
}

/// In its shortest form.
#[inline(always)]
fn put_unsigned(sink: &mut impl Sink, number: u64) {
    match (u8::try_from(number), u16::try_from(number), u32::try_from(number)) {
        (Ok(number @ ..=mark::FIX_POS_LAST), ..) => sink.put([number]),
        (Ok(number), ..) => sink.put([mark::U_8, number]),
        (_, Ok(number), _) => sink.put_wide(mark::U_16, number.to_be_bytes()),
        (.., Ok(number)) => sink.put_wide(mark::U_32, number.to_be_bytes()),
        _ => sink.put_wide(mark::U_64, number.to_be_bytes()),
    }
}

/// In its shortest form.
#[inline(always)]
fn put_signed(sink: &mut impl Sink, number: i64) {
    match (i8::try_from(number), i16::try_from(number), i32::try_from(number)) {
        _ if 0 <= number => put_unsigned(sink, number.cast_unsigned()),
        (Ok(number @ -32..), ..) => sink.put(number.to_be_bytes()),
        (Ok(number), ..) => sink.put_wide(mark::I_8, number.to_be_bytes()),
        (_, Ok(number), _) => sink.put_wide(mark::I_16, number.to_be_bytes()),
        (.., Ok(number)) => sink.put_wide(mark::I_32, number.to_be_bytes()),
        _ => sink.put_wide(mark::I_64, number.to_be_bytes()),
    }
}

impl Writer {
    /// Appends to this buffer.
    pub(super) fn new(buffer: Vec<u8>) -> Self {
        Self(buffer)
    }

    pub(super) fn into_inner(self) -> Vec<u8> {
        self.0
    }

    #[inline]
    fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        self.0.extend_from_slice(&bytes);
    }

    /// A marker and the number behind it.
    #[inline]
    fn put_wide<const N: usize>(&mut self, marker: u8, number: [u8; N]) {
        self.0.put_wide(marker, number);
    }

    #[inline(always)]
    fn put_unsigned(&mut self, number: u64) {
        put_unsigned(&mut self.0, number);
    }

    #[inline(always)]
    fn put_signed(&mut self, number: i64) {
        put_signed(&mut self.0, number);
    }

    #[inline]
    fn put_head(&mut self, heads: &Heads, len: usize) -> Result<(), Error> {
        match (u8::try_from(len), u16::try_from(len), u32::try_from(len)) {
            (Ok(len), ..) if len < heads.fix_end => self.put([heads.fix | len]),
            (Ok(len), ..) if heads.one != mark::RESERVED => self.put([heads.one, len]),
            (_, Ok(len), _) => self.put_wide(heads.two, len.to_be_bytes()),
            (.., Ok(len)) => self.put_wide(heads.four, len.to_be_bytes()),
            _ => return Err(Error::custom("longer than 4 GiB")),
        }
        Ok(())
    }

    /// The name of a variant that has a value, which comes next.
    fn put_variant(&mut self, variant: &str) -> Result<(), Error> {
        self.put_head(&MAP, 1)?;
        self.serialize_str(variant)
    }

    /// Values of a number that is known, or is counted.
    fn begin(&mut self, heads: &'static Heads, len: Option<usize>) -> Result<Parts<'_>, Error> {
        let counted = match len {
            Some(len) => {
                self.put_head(heads, len)?;
                None
            }
            None => Some(Counted { heads, from: self.0.len(), values: 0 }),
        };
        Ok(Parts { writer: self, counted })
    }

    /// Turns the tuple that begins here, of a number and of bytes, into an extension.
    fn make_extension(&mut self, from: usize) -> Result<(), Error> {
        let (number, len) = Reader::new(&self.0[from..])
            .number_and_bytes()
            .ok_or_else(|| Error::custom("an extension is a tuple of a number from -128 to 127 and bytes"))?;
        let data = self.0.split_off(self.0.len() - len);
        self.0.truncate(from);
        match len {
            1 => self.put([mark::FIX_EXT_1]),
            2 => self.put([mark::FIX_EXT_1 + 1]),
            4 => self.put([mark::FIX_EXT_1 + 2]),
            8 => self.put([mark::FIX_EXT_1 + 3]),
            16 => self.put([mark::FIX_EXT_16]),
            _ => self.put_head(&EXT, len)?,
        }
        self.put(number.to_be_bytes());
        self.0.extend_from_slice(&data);
        Ok(())
    }
}

impl<'a> Serializer for &'a mut Writer {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Parts<'a>;
    type SerializeTuple = Parts<'a>;
    type SerializeTupleStruct = Parts<'a>;
    type SerializeTupleVariant = Parts<'a>;
    type SerializeMap = Parts<'a>;
    type SerializeStruct = Parts<'a>;
    type SerializeStructVariant = Parts<'a>;

    #[inline]
    fn serialize_bool(self, value: bool) -> Result<(), Error> {
        self.put([if value { mark::TRUE } else { mark::FALSE }]);
        Ok(())
    }

    fn serialize_i8(self, value: i8) -> Result<(), Error> {
        self.serialize_i64(value.into())
    }

    fn serialize_i16(self, value: i16) -> Result<(), Error> {
        self.serialize_i64(value.into())
    }

    fn serialize_i32(self, value: i32) -> Result<(), Error> {
        self.serialize_i64(value.into())
    }

    fn serialize_i64(self, value: i64) -> Result<(), Error> {
        self.put_signed(value);
        Ok(())
    }

    fn serialize_i128(self, value: i128) -> Result<(), Error> {
        match (u64::try_from(value), i64::try_from(value)) {
            (Ok(value), _) => self.serialize_u64(value),
            (_, Ok(value)) => self.serialize_i64(value),
            _ => self.serialize_bytes(&value.to_be_bytes()),
        }
    }

    fn serialize_u8(self, value: u8) -> Result<(), Error> {
        self.serialize_u64(value.into())
    }

    fn serialize_u16(self, value: u16) -> Result<(), Error> {
        self.serialize_u64(value.into())
    }

    fn serialize_u32(self, value: u32) -> Result<(), Error> {
        self.serialize_u64(value.into())
    }

    fn serialize_u64(self, value: u64) -> Result<(), Error> {
        self.put_unsigned(value);
        Ok(())
    }

    fn serialize_u128(self, value: u128) -> Result<(), Error> {
        match u64::try_from(value) {
            Ok(value) => self.serialize_u64(value),
            Err(_) => self.serialize_bytes(&value.to_be_bytes()),
        }
    }

    #[inline]
    fn serialize_f32(self, value: f32) -> Result<(), Error> {
        self.put_wide(mark::F_32, value.to_be_bytes());
        Ok(())
    }

    #[inline]
    fn serialize_f64(self, value: f64) -> Result<(), Error> {
        self.put_wide(mark::F_64, value.to_be_bytes());
        Ok(())
    }

    fn serialize_char(self, value: char) -> Result<(), Error> {
        self.serialize_str(value.encode_utf8(&mut [0; 4]))
    }

    #[inline]
    fn serialize_str(self, value: &str) -> Result<(), Error> {
        self.put_head(&TEXT, value.len())?;
        self.0.extend_from_slice(value.as_bytes());
        Ok(())
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), Error> {
        self.put_head(&BIN, value.len())?;
        self.0.extend_from_slice(value);
        Ok(())
    }

    fn serialize_none(self) -> Result<(), Error> {
        self.serialize_unit()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        let from = self.0.len();
        value.serialize(&mut *self)?;
        if self.0[from..] == [mark::NIL] {
            return Err(Error::custom(SOME_OF_NOTHING));
        }
        Ok(())
    }

    fn serialize_unit(self) -> Result<(), Error> {
        self.put([mark::NIL]);
        Ok(())
    }

    fn serialize_unit_struct(self, _name: &'static str) -> Result<(), Error> {
        self.put_head(&ARRAY, 0)
    }

    fn serialize_unit_variant(self, _name: &'static str, _index: u32, variant: &'static str) -> Result<(), Error> {
        self.serialize_str(variant)
    }

    #[inline]
    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, name: &'static str, value: &T) -> Result<(), Error> {
        #[cfg(feature = "macros")]
        match name {
            DIRECT => return self.lend(value),
            direct::WRITTEN => return Ok(()),
            _ => {}
        }
        let from = self.0.len();
        value.serialize(&mut *self)?;
        if name == EXTENSION { self.make_extension(from) } else { Ok(()) }
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        self.put_variant(variant)?;
        value.serialize(self)
    }

    #[inline]
    fn serialize_seq(self, len: Option<usize>) -> Result<Parts<'a>, Error> {
        self.begin(&ARRAY, len)
    }

    fn serialize_tuple(self, len: usize) -> Result<Parts<'a>, Error> {
        self.begin(&ARRAY, Some(len))
    }

    fn serialize_tuple_struct(self, _name: &'static str, len: usize) -> Result<Parts<'a>, Error> {
        self.begin(&ARRAY, Some(len))
    }

    fn serialize_tuple_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Parts<'a>, Error> {
        self.put_variant(variant)?;
        self.begin(&ARRAY, Some(len))
    }

    fn serialize_map(self, len: Option<usize>) -> Result<Parts<'a>, Error> {
        self.begin(&MAP, len)
    }

    #[inline]
    fn serialize_struct(self, _name: &'static str, len: usize) -> Result<Parts<'a>, Error> {
        self.begin(&MAP, Some(len))
    }

    fn serialize_struct_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Parts<'a>, Error> {
        self.put_variant(variant)?;
        self.begin(&MAP, Some(len))
    }

    #[inline]
    fn is_human_readable(&self) -> bool {
        false
    }
}

/// The values of an array or a map, as they come.
#[allow(unreachable_pub, reason = "a type of the writer, which is public")]
pub struct Parts<'a> {
    writer: &'a mut Writer,
    counted: Option<Counted>,
}

/// Values whose number is not known before the last: their head comes then.
struct Counted {
    heads: &'static Heads,
    from: usize,
    values: usize,
}

impl Parts<'_> {
    #[inline]
    fn put<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        if let Some(counted) = &mut self.counted {
            counted.values += 1;
        }
        value.serialize(&mut *self.writer)
    }

    #[inline]
    fn end(self, values_each: usize) -> Result<(), Error> {
        if let Some(Counted { heads, from, values }) = self.counted {
            let behind = self.writer.0.split_off(from);
            self.writer.put_head(heads, values / values_each)?;
            self.writer.0.extend_from_slice(&behind);
        }
        Ok(())
    }
}

/// Those that have nothing but values.
macro_rules! values {
    ($($trait:ident::$method:ident;)*) => {$(
        impl $trait for Parts<'_> {
            type Ok = ();
            type Error = Error;

            #[inline]
            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
                self.put(value)
            }

            #[inline]
            fn end(self) -> Result<(), Error> {
                self.end(1)
            }
        }
    )*};
}

values! {
    SerializeSeq::serialize_element;
    SerializeTuple::serialize_element;
    SerializeTupleStruct::serialize_field;
    SerializeTupleVariant::serialize_field;
}

/// Those that have names, too.
macro_rules! fields {
    ($($trait:ident;)*) => {$(
        impl $trait for Parts<'_> {
            type Ok = ();
            type Error = Error;

            #[inline]
            fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Error> {
                self.writer.serialize_str(name)?;
                value.serialize(&mut *self.writer)
            }

            #[inline]
            fn end(self) -> Result<(), Error> {
                Ok(())
            }
        }
    )*};
}

fields! {
    SerializeStruct;
    SerializeStructVariant;
}

impl SerializeMap for Parts<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        self.put(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        self.put(value)
    }

    fn end(self) -> Result<(), Error> {
        self.end(2)
    }
}

/// Held against `rmp-serde`: the same bytes.
#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ::bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn written<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        value.serialize(&mut writer).expect("it can be written");
        writer.into_inner()
    }

    fn compare<T: Serialize + ?Sized>(value: &T) {
        let mut expected = Vec::new();
        value.serialize(&mut rmp_serde::Serializer::new(&mut expected).with_struct_map()).expect("it can be written");
        assert_eq!(written(value), expected);
    }

    #[derive(Debug, Serialize)]
    struct Everything {
        int: i64,
        ints: (i8, u8, i16, u16, i32, u32),
        wide: (u64, i128),
        floats: (f32, f64),
        texts: Vec<String>,
        bytes: Bytes,
        map: BTreeMap<i32, Choice>,
        maybe: Option<Option<bool>>,
        letter: char,
        unit: ((), Nothing),
        newtype: Newtype,
        #[serde(flatten)]
        flat: BTreeMap<String, u8>,
        ext: Ext,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        none: Vec<u8>,
    }

    #[derive(Clone, Debug, Serialize)]
    enum Choice {
        Unit,
        Newtype(String),
        Tuple(u8, i64),
        Struct { a: f32 },
    }

    #[derive(Debug, Serialize)]
    struct Nothing;

    #[derive(Debug, Serialize)]
    struct Newtype(Vec<u8>);

    #[derive(Debug, Serialize)]
    #[serde(rename = "_ExtStruct")]
    struct Ext((i8, Bytes));

    /// Elements whose number nobody knows before the last.
    struct Uncounted(Vec<String>);

    impl Serialize for Uncounted {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_seq(self.0.iter().filter(|text| !text.is_empty()))
        }
    }

    fn choices() -> impl Strategy<Value = Choice> {
        prop_oneof![
            Just(Choice::Unit),
            ".{0,40}".prop_map(Choice::Newtype),
            any::<(u8, i64)>().prop_map(|(a, b)| Choice::Tuple(a, b)),
            any::<f32>().prop_map(|a| Choice::Struct { a }),
        ]
    }

    fn everything() -> impl Strategy<Value = Everything> {
        let numbers = (
            any::<i64>(),
            any::<(i8, u8, i16, u16, i32, u32)>(),
            (any::<u64>(), (i128::MIN..i64::MIN.into())),
            any::<(f32, f64)>(),
        );
        let bytes = || proptest::collection::vec(any::<u8>(), 0..300);
        let texts = (
            proptest::collection::vec(".{0,40}", 0..20),
            bytes(),
            any::<char>(),
            proptest::option::of(any::<bool>().prop_map(Some)),
        );
        let maps = (
            proptest::collection::btree_map(any::<i32>(), choices(), 0..20),
            proptest::collection::btree_map("[a-z]{3}", any::<u8>(), 0..20),
        );
        let rest = (
            bytes(),
            any::<i8>(),
            prop_oneof![Just(1_usize), Just(2), Just(4), Just(8), Just(16), 0_usize..300],
            bytes(),
        );
        (numbers, texts, maps, rest).prop_map(
            |((int, ints, wide, floats), (texts, bytes, letter, maybe), (map, flat), (newtype, number, len, none))| {
                let (unit, newtype) = (((), Nothing), Newtype(newtype));
                let ext = Ext((number, vec![7; len].into()));
                let bytes = bytes.into();
                Everything { int, ints, wide, floats, texts, bytes, map, maybe, letter, unit, newtype, flat, ext, none }
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

        #[test]
        fn every_value_is_written_as_before(value in everything()) {
            compare(&value);
        }

        #[test]
        fn every_integer_takes_the_form_that_it_took(value: i64, shift in 0_u32..64) {
            compare(&(value >> shift));
            compare(&(value.cast_unsigned() >> shift));
        }

        #[test]
        fn elements_that_are_counted_late_are_written_as_before(texts in proptest::collection::vec("[a-z]{0,2}", 0..40)) {
            compare(&Uncounted(texts));
        }
    }

    #[test]
    fn heads_grow_where_they_grew() {
        for len in [0, 15, 16, 31, 32, 255, 256, 65_535, 65_536] {
            compare(&"x".repeat(len));
            compare(&Bytes::from(vec![7; len]));
            compare(&vec![1_u8; len]);
            compare(&(0..len).map(|key| (key, true)).collect::<BTreeMap<_, _>>());
            compare(&Ext((5, vec![7; len].into())));
        }
    }

    #[test]
    fn a_wide_integer_is_an_ordinary_one_while_it_fits_and_sixteen_bytes_beyond() {
        for value in [0, 1, -1, i128::from(i64::MIN), i128::from(u64::MAX), -129, 70_000] {
            match i64::try_from(value) {
                Ok(narrow) => assert_eq!(written(&value), written(&narrow)),
                Err(_) => assert_eq!(written(&value), written(&u64::MAX)),
            }
        }
        assert_eq!(written(&u128::from(u64::MAX)), written(&u64::MAX));
        for value in [i128::MIN, i128::from(i64::MIN) - 1, i128::from(u64::MAX) + 1, i128::MAX] {
            compare(&value);
            compare(&value.cast_unsigned());
        }
    }

    #[test]
    fn a_some_that_would_be_read_as_none_is_an_error() {
        #[derive(Serialize)]
        struct Within {
            a: Vec<Option<Option<u8>>>,
        }
        let refused = |value: &dyn Fn(&mut Writer) -> Result<(), Error>| {
            let error = value(&mut Writer::new(vec![mark::NIL])).unwrap_err().to_string();
            assert_eq!(error, "a Some of nothing would be read as None");
        };
        refused(&|writer| Some(()).serialize(writer));
        refused(&|writer| Some(None::<u8>).serialize(writer));
        refused(&|writer| Within { a: vec![None, Some(Some(1)), Some(None)] }.serialize(writer));
        compare(&Within { a: vec![None, Some(Some(1))] });
        compare(&Some(vec![None::<u8>]));
        compare(&Some(Nothing));
    }

    #[test]
    fn an_extension_must_be_a_number_and_bytes() {
        #[derive(Serialize)]
        #[serde(rename = "_ExtStruct")]
        struct Wrong<T>(T);
        assert!(Wrong(1_u8).serialize(&mut Writer::new(Vec::new())).is_err());
        assert!(Wrong((500, Bytes::new())).serialize(&mut Writer::new(Vec::new())).is_err());
        assert!(Wrong((5, "text")).serialize(&mut Writer::new(Vec::new())).is_err());
    }
}
