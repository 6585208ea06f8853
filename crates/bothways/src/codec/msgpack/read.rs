//! MessagePack → serde types, straight from the payload: nothing is allocated but what the user's type
//! keeps.
//!
//! It reads what [`Lenient`] over `rmp-serde` would, for a third of the instructions: on a record of 581 bytes
//! the layers between a type and its bytes cost more than the bytes. The tests hold the two against each
//! other. What is rare goes through [`Lenient`] still: extensions, and byte strings read as arrays.

use std::fmt;

use serde::{
    Deserializer,
    de::{
        self, DeserializeSeed, EnumAccess, MapAccess, SeqAccess, Unexpected, VariantAccess, Visitor,
        value::{BorrowedBytesDeserializer, I8Deserializer, SeqDeserializer},
    },
};

#[cfg(feature = "macros")]
use super::DIRECT;
use super::{EXTENSION, mark};
use crate::codec::{
    decoded::{count_element, count_entry, count_struct, is_too_deep},
    lenient::{Answer, Asked, Bounds, Lenient, NESTING_MAX, TOO_MUCH_STACK},
};

#[cfg(feature = "macros")]
pub(super) mod direct;
#[cfg(feature = "macros")]
mod texts;

/// Why a payload is not the value that was asked for.
#[allow(unreachable_pub, missing_docs, reason = "for generated code")]
#[derive(Debug)]
pub enum Error {
    EndsWithin,
    TooDeep,
    TooMuchStack,
    /// A value that begins with this byte.
    Misplaced(u8),
    TooMany {
        belong: u32,
    },
    /// Where a variant is named there is an integer, such as a constant of Go's. It is not the variant's place: its writer
    /// may count in another way.
    NumberForName,
    NotText(std::str::Utf8Error),
    /// The user's type, or serde, said no.
    Said(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EndsWithin => f.write_str("the payload ends within a value"),
            Self::TooDeep => write!(f, "nested deeper than {NESTING_MAX} levels"),
            Self::TooMuchStack => f.write_str(TOO_MUCH_STACK),
            Self::Misplaced(marker) => write!(f, "{} is not what belongs here", mark::name(*marker)),
            Self::TooMany { belong } => {
                write!(f, "a container has more elements than the {belong} that belong there")
            }
            Self::NumberForName => f.write_str("an integer where a variant's name belongs"),
            Self::NotText(error) => write!(f, "a string is not UTF-8: {error}"),
            Self::Said(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    #[cold]
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self::Said(crate::codec::words::brief(&text))
    }
}

/// What is left of a payload.
#[allow(unreachable_pub, reason = "for generated code")]
pub struct Reader<'de> {
    rest: &'de [u8],
    /// Containers, and enums with a value, around the next value.
    containers: usize,
    enums: usize,
    /// What was left of the payload before the last key of a map.
    key_at: usize,
}

/// What [`Reader::key_at`] is where no key is next.
const NO_KEY: usize = usize::MAX;

/// What a byte string is read as.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Bin {
    Bytes,
    Array,
    /// As an array; and a map is the fields of a struct, which are within it.
    Fields,
}

impl<'de> Reader<'de> {
    pub(super) fn new(payload: &'de [u8]) -> Self {
        Self { rest: payload, containers: 0, enums: 0, key_at: NO_KEY }
    }

    /// The first byte of the next value, which stays.
    #[inline]
    fn peek(&self) -> Result<u8, Error> {
        self.rest.first().copied().ok_or(Error::EndsWithin)
    }

    #[inline]
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(Error::EndsWithin)?;
        self.rest = rest;
        Ok(*taken)
    }

    #[inline]
    fn marker(&mut self) -> Result<u8, Error> {
        self.take().map(|[marker]| marker)
    }

    #[inline]
    fn slice(&mut self, len: u32) -> Result<&'de [u8], Error> {
        let (taken, rest) = self.rest.split_at_checked(len as usize).ok_or(Error::EndsWithin)?;
        self.rest = rest;
        Ok(taken)
    }

    /// Takes a `nil`, if there is one.
    #[inline]
    fn take_nil(&mut self) -> Result<bool, Error> {
        let is_nil = self.peek()? == mark::NIL;
        if is_nil {
            self.rest = &self.rest[1..];
        }
        Ok(is_nil)
    }

    /// A length of 1, 2 or 4 bytes, by the place of the marker behind `first`.
    #[inline]
    fn len(&mut self, marker: u8, first: u8) -> Result<u32, Error> {
        Ok(match marker - first {
            0 => u8::from_be_bytes(self.take()?).into(),
            1 => u16::from_be_bytes(self.take()?).into(),
            _ => u32::from_be_bytes(self.take()?),
        })
    }

    /// The length of the string that begins with this marker; `None` if none does.
    #[inline]
    fn text_len(&mut self, marker: u8) -> Result<Option<u32>, Error> {
        Ok(match marker {
            mark::FIX_STR..=mark::FIX_STR_LAST => Some((marker - mark::FIX_STR).into()),
            mark::STR_8..=mark::STR_32 => Some(self.len(marker, mark::STR_8)?),
            _ => None,
        })
    }

    #[inline]
    fn array_len(&mut self, marker: u8) -> Result<Option<u32>, Error> {
        Ok(match marker {
            mark::FIX_ARRAY..=mark::FIX_ARRAY_LAST => Some((marker - mark::FIX_ARRAY).into()),
            mark::ARRAY_16 | mark::ARRAY_32 => Some(self.len(marker, mark::ARRAY_16 - 1)?),
            _ => None,
        })
    }

    #[inline]
    fn map_len(&mut self, marker: u8) -> Result<Option<u32>, Error> {
        Ok(match marker {
            mark::FIX_MAP..=mark::FIX_MAP_LAST => Some((marker - mark::FIX_MAP).into()),
            mark::MAP_16 | mark::MAP_32 => Some(self.len(marker, mark::MAP_16 - 1)?),
            _ => None,
        })
    }

    fn extension_len(&mut self, marker: u8) -> Result<Option<u32>, Error> {
        Ok(match marker {
            mark::FIX_EXT_1..=mark::FIX_EXT_16 => Some(1 << (marker - mark::FIX_EXT_1)),
            mark::EXT_8..=mark::EXT_32 => Some(self.len(marker, mark::EXT_8)?),
            _ => None,
        })
    }

    /// A number or a bool, whichever it is.
    #[inline]
    fn number<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, Error> {
        match self.marker()? {
            marker @ ..=mark::FIX_POS_LAST => visitor.visit_u8(marker),
            marker @ mark::FIX_NEG.. => visitor.visit_i8(marker.cast_signed()),
            marker => self.wide_number(marker, visitor),
        }
    }

    fn wide_number<V: Visitor<'de>>(&mut self, marker: u8, visitor: V) -> Result<V::Value, Error> {
        match marker {
            mark::FALSE | mark::TRUE => visitor.visit_bool(marker == mark::TRUE),
            mark::U_8 => visitor.visit_u8(u8::from_be_bytes(self.take()?)),
            mark::U_16 => visitor.visit_u16(u16::from_be_bytes(self.take()?)),
            mark::U_32 => visitor.visit_u32(u32::from_be_bytes(self.take()?)),
            mark::U_64 => visitor.visit_u64(u64::from_be_bytes(self.take()?)),
            mark::I_8 => visitor.visit_i8(i8::from_be_bytes(self.take()?)),
            mark::I_16 => visitor.visit_i16(i16::from_be_bytes(self.take()?)),
            mark::I_32 => visitor.visit_i32(i32::from_be_bytes(self.take()?)),
            mark::I_64 => visitor.visit_i64(i64::from_be_bytes(self.take()?)),
            mark::F_32 => visitor.visit_f32(f32::from_be_bytes(self.take()?)),
            mark::F_64 => visitor.visit_f64(f64::from_be_bytes(self.take()?)),
            marker => Err(Error::Misplaced(marker)),
        }
    }

    #[inline]
    fn text<V: Visitor<'de>>(&mut self, len: u32, visitor: V) -> Result<V::Value, Error> {
        let bytes = self.slice(len)?;
        match str::from_utf8(bytes) {
            Ok(text) => visitor.visit_borrowed_str(text),
            // Go's strings hold any bytes: a type that asks for bytes gets them.
            Err(error) => visitor.visit_borrowed_bytes(bytes).map_err(|_: Error| Error::NotText(error)),
        }
    }

    /// The next value, whatever it is; `nil` is a unit.
    fn value<V: Visitor<'de>>(&mut self, bin: Bin, visitor: V) -> Result<V::Value, Error> {
        let marker = self.marker()?;
        if let Some(len) = self.text_len(marker)? {
            return self.text(len, visitor);
        }
        if let Some(len) = self.map_len(marker)? {
            return self.within(len, bin, |elements| visitor.visit_map(elements));
        }
        if let Some(len) = self.array_len(marker)? {
            return self.within(len, bin, |elements| visitor.visit_seq(elements));
        }
        self.rare_value(marker, bin, visitor)
    }

    fn rare_value<V: Visitor<'de>>(&mut self, marker: u8, bin: Bin, visitor: V) -> Result<V::Value, Error> {
        match marker {
            ..=mark::FIX_POS_LAST => visitor.visit_u8(marker),
            mark::FIX_NEG.. => visitor.visit_i8(marker.cast_signed()),
            mark::NIL => visitor.visit_unit(),
            mark::BIN_8..=mark::BIN_32 => {
                let len = self.len(marker, mark::BIN_8)?;
                let bytes = self.slice(len)?;
                match bin {
                    Bin::Bytes => visitor.visit_borrowed_bytes(bytes),
                    Bin::Array | Bin::Fields => {
                        let elements = SeqDeserializer::new(bytes.iter().copied());
                        Answer::new(visitor, Asked::Any, self.bounds()).visit_seq(elements)
                    }
                }
            }
            _ => match self.extension_len(marker)? {
                Some(len) => {
                    let bounds = self.bounds();
                    self.check_depth(self.containers)?;
                    visitor.visit_newtype_struct(Lenient::within(self.extension(len)?, bounds))
                }
                None => self.wide_number(marker, visitor),
            },
        }
    }

    /// The elements of an array, or keys and values of a map, one level deeper.
    #[inline]
    fn within<T>(
        &mut self,
        len: u32,
        read_as: Bin,
        visit: impl FnOnce(&mut Elements<'_, 'de>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.check_depth(self.containers + self.enums)?;
        self.containers += 1;
        let mut elements = Elements { reader: self, left: len, is_first: true, are_fields: read_as == Bin::Fields };
        let value = visit(&mut elements);
        let left = elements.left;
        self.containers -= 1;
        if value.is_ok() && left != 0 { Err(Error::TooMany { belong: len - left }) } else { value }
    }

    #[inline]
    fn check_depth(&self, around: usize) -> Result<(), Error> {
        match around < NESTING_MAX {
            true if is_too_deep() => Err(Error::TooMuchStack),
            true => Ok(()),
            false => Err(Error::TooDeep),
        }
    }

    /// What [`Lenient`] has to keep to here.
    fn bounds(&self) -> Bounds {
        Bounds::new(NESTING_MAX - (self.containers + self.enums), self.rest.len())
    }

    fn nil<V: Visitor<'de>>(&self, asked: Asked, visitor: V) -> Result<V::Value, Error> {
        Answer::new(visitor, asked, self.bounds()).visit_none()
    }

    fn extension(&mut self, len: u32) -> Result<Extension<'de>, Error> {
        let number = i8::from_be_bytes(self.take()?);
        Ok(Extension { number: Some(number), data: Some(self.slice(len)?) })
    }

    /// A tuple of a number and of as many bytes, which end the payload; `None` if it is something else.
    pub(super) fn number_and_bytes(mut self) -> Option<(i8, usize)> {
        let begins = self.marker().ok()? == mark::FIX_ARRAY + 2;
        let Wide::Number(number) = self.wide_integer().ok().filter(|_| begins)? else { return None };
        let marker = self.marker().ok().filter(|marker| (mark::BIN_8..=mark::BIN_32).contains(marker))?;
        let len = self.len(marker, mark::BIN_8).ok()?;
        let bytes = self.slice(len).ok().filter(|_| self.rest.is_empty())?;
        Some((number.try_into().ok()?, bytes.len()))
    }

    /// Reads over a value that nobody wants.
    fn skip(&mut self) -> Result<(), Error> {
        let marker = self.marker()?;
        let bytes = match marker {
            ..=mark::FIX_POS_LAST | mark::FIX_NEG.. | mark::NIL | mark::FALSE | mark::TRUE => 0,
            mark::U_8 | mark::I_8 => 1,
            mark::U_16 | mark::I_16 => 2,
            mark::U_32 | mark::I_32 | mark::F_32 => 4,
            mark::U_64 | mark::I_64 | mark::F_64 => 8,
            mark::BIN_8..=mark::BIN_32 => self.len(marker, mark::BIN_8)?,
            mark::RESERVED => return Err(Error::Misplaced(marker)),
            _ => {
                if let Some(len) = self.text_len(marker)? {
                    len
                } else if let Some(len) = self.array_len(marker)? {
                    return self.skip_within(len.into());
                } else if let Some(len) = self.map_len(marker)? {
                    return self.skip_within(2 * u64::from(len));
                } else {
                    let len = self.extension_len(marker)?.ok_or(Error::Misplaced(marker))?;
                    self.check_depth(self.containers)?;
                    let [_number] = self.take()?;
                    len
                }
            }
        };

        self.slice(bytes).map(|_| ())
    }

    fn skip_within(&mut self, values: u64) -> Result<(), Error> {
        self.check_depth(self.containers)?;
        self.containers += 1;
        let skipped = (0..values).try_for_each(|_| self.skip());
        self.containers -= 1;
        skipped
    }

    fn wide_integer(&mut self) -> Result<Wide, Error> {
        let marker = self.marker()?;
        Ok(Wide::Number(match marker {
            ..=mark::FIX_POS_LAST => marker.into(),
            mark::FIX_NEG.. => marker.cast_signed().into(),
            mark::U_8 => u8::from_be_bytes(self.take()?).into(),
            mark::U_16 => u16::from_be_bytes(self.take()?).into(),
            mark::U_32 => u32::from_be_bytes(self.take()?).into(),
            mark::U_64 => u64::from_be_bytes(self.take()?).into(),
            mark::I_8 => i8::from_be_bytes(self.take()?).into(),
            mark::I_16 => i16::from_be_bytes(self.take()?).into(),
            mark::I_32 => i32::from_be_bytes(self.take()?).into(),
            mark::I_64 => i64::from_be_bytes(self.take()?).into(),
            mark::BIN_8 if self.peek()? == 16 => {
                let [_len] = self.take()?;
                return Ok(Wide::Bits(u128::from_be_bytes(self.take()?)));
            }
            marker => return Err(Error::Misplaced(marker)),
        }))
    }
}

/// An integer for a type of 128 bits.
enum Wide {
    /// In one of MessagePack's own forms.
    Number(i128),
    /// As sixteen bytes, because MessagePack has no such number. Only the type that reads it knows its sign.
    Bits(u128),
}

/// Methods that ask for a scalar of this kind.
macro_rules! numbers {
    ($($method:ident => $asked:expr;)*) => {$(
        #[inline]
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            if self.take_nil()? { self.nil($asked, visitor) } else { self.number(visitor) }
        }
    )*};
}

/// Methods that ask for a value of this kind, which decides how `nil` and a byte string are read.
macro_rules! values {
    ($($method:ident($($arg:ident: $type:ty),*) => $asked:expr, $bin:expr;)*) => {$(
        #[inline]
        fn $method<V: Visitor<'de>>(self, $($arg: $type,)* visitor: V) -> Result<V::Value, Error> {
            if self.take_nil()? { self.nil($asked, visitor) } else { self.value($bin, visitor) }
        }
    )*};
}

impl<'de> Deserializer<'de> for &mut Reader<'de> {
    type Error = Error;

    numbers! {
        deserialize_bool => Asked::Bool;
        deserialize_i8 => Asked::I8;
        deserialize_i16 => Asked::I16;
        deserialize_i32 => Asked::I32;
        deserialize_i64 => Asked::I64;
        deserialize_u8 => Asked::U8;
        deserialize_u16 => Asked::U16;
        deserialize_u32 => Asked::U32;
        deserialize_u64 => Asked::U64;
        deserialize_f64 => Asked::F64;
    }

    values! {
        deserialize_char() => Asked::Char, Bin::Bytes;
        deserialize_bytes() => Asked::Bytes, Bin::Bytes;
        deserialize_byte_buf() => Asked::Bytes, Bin::Bytes;
        deserialize_seq() => Asked::Seq, Bin::Array;
        deserialize_tuple(len: usize) => Asked::Tuple(len), Bin::Array;
        deserialize_tuple_struct(name: &'static str, len: usize) => Asked::TupleStruct(name, len), Bin::Array;
        deserialize_map() => Asked::Map, Bin::Bytes;
    }

    #[inline]
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        count_struct::<Error>(fields.len())?;
        if self.take_nil()? { self.nil(Asked::Struct(name, fields), visitor) } else { self.value(Bin::Fields, visitor) }
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.value(Bin::Bytes, visitor)
    }

    /// A float of eight bytes is rounded, unless it is out of range.
    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.peek()? {
            mark::NIL | mark::F_64 => {
                let answer = Answer::new(visitor, Asked::F32, self.bounds());
                if self.take_nil()? { answer.visit_none() } else { self.number(answer) }
            }
            _ => self.number(visitor),
        }
    }

    fn deserialize_i128<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.take_nil()? {
            return self.nil(Asked::I128, visitor);
        }
        match self.wide_integer()? {
            Wide::Number(number) => visitor.visit_i128(number),
            Wide::Bits(bits) => visitor.visit_i128(bits.cast_signed()),
        }
    }

    fn deserialize_u128<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.take_nil()? {
            return self.nil(Asked::U128, visitor);
        }
        match self.wide_integer()? {
            Wide::Number(number) => match u128::try_from(number) {
                Ok(number) => visitor.visit_u128(number),
                Err(_) => visitor.visit_i128(number),
            },
            Wide::Bits(bits) => visitor.visit_u128(bits),
        }
    }

    #[inline]
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_string(visitor)
    }

    #[inline]
    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.peek()? {
            marker @ mark::FIX_STR..=mark::FIX_STR_LAST => {
                self.rest = &self.rest[1..];
                self.text((marker - mark::FIX_STR).into(), visitor)
            }
            mark::NIL => {
                self.rest = &self.rest[1..];
                self.nil(Asked::Text, visitor)
            }
            _ => self.value(Bin::Bytes, visitor),
        }
    }

    /// The name of a field or a variant. An integer as a key may be the place of a field; it names no variant.
    #[inline]
    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.peek()? {
            marker @ mark::FIX_STR..=mark::FIX_STR_LAST => {
                self.rest = &self.rest[1..];
                self.text((marker - mark::FIX_STR).into(), visitor)
            }
            marker if mark::is_integer(marker) && self.key_at != self.rest.len() => Err(Error::NumberForName),
            _ => self.value(Bin::Bytes, visitor),
        }
    }

    #[inline]
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.take_nil()? { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    /// A unit takes whatever is there.
    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.skip()?;
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_unit(visitor)
    }

    #[inline]
    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Error> {
        #[cfg(feature = "macros")]
        if name == DIRECT {
            return visitor.visit_seq(direct::Rest(self));
        }
        if name != EXTENSION {
            return visitor.visit_newtype_struct(self);
        }
        let marker = self.marker()?;
        let len = self.extension_len(marker)?.ok_or(Error::Misplaced(marker))?;
        let bounds = self.bounds();
        visitor.visit_newtype_struct(Lenient::within(self.extension(len)?, bounds))
    }

    /// A variant without a value is its name, any other a map from its name to its value.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.check_depth(self.containers + self.enums)?;

        match self.peek()? {
            marker @ (mark::FIX_MAP..=mark::FIX_MAP_LAST | mark::MAP_16 | mark::MAP_32) => {
                self.rest = &self.rest[1..];
                match self.map_len(marker)? {
                    Some(1) => {}
                    _ => return Err(Error::TooMany { belong: 1 }),
                }
                self.enums += 1;
                let value = visitor.visit_enum(Variant { reader: self, has_value: true });
                self.enums -= 1;
                value
            }
            _ => visitor.visit_enum(Variant { reader: self, has_value: false }),
        }
    }

    #[inline]
    fn is_human_readable(&self) -> bool {
        false
    }
}

/// Elements of an array, or keys and values of a map.
struct Elements<'a, 'de> {
    reader: &'a mut Reader<'de>,
    left: u32,
    is_first: bool,
    are_fields: bool,
}

impl<'de> SeqAccess<'de> for Elements<'_, 'de> {
    type Error = Error;

    #[inline]
    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        let element = seed.deserialize(&mut *self.reader)?;
        if !self.are_fields {
            count_element::<S::Value, Error>()?;
        }
        Ok(Some(element))
    }

    /// An element has a byte at least: a length from the wire asks for no more room than that.
    #[inline]
    fn size_hint(&self) -> Option<usize> {
        Some((self.left as usize).min(self.reader.rest.len()))
    }
}

impl<'de> MapAccess<'de> for Elements<'_, 'de> {
    type Error = Error;

    #[inline]
    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        self.reader.key_at = self.reader.rest.len();
        let key = seed.deserialize(&mut *self.reader)?;
        if !self.are_fields {
            count_entry::<S::Value, Error>(self.is_first)?;
        }
        Ok(Some(key))
    }

    #[inline]
    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        let value = seed.deserialize(&mut *self.reader)?;
        if !self.are_fields {
            count_entry::<S::Value, Error>(std::mem::take(&mut self.is_first))?;
        }
        Ok(value)
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        SeqAccess::size_hint(self)
    }
}

struct Variant<'a, 'de> {
    reader: &'a mut Reader<'de>,
    has_value: bool,
}

impl Variant<'_, '_> {
    fn value_of(&self, expected: &'static str) -> Result<(), Error> {
        if self.has_value { Ok(()) } else { Err(de::Error::invalid_type(Unexpected::UnitVariant, &expected)) }
    }
}

impl<'de> EnumAccess<'de> for Variant<'_, 'de> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), Error> {
        self.reader.key_at = NO_KEY;
        Ok((seed.deserialize(&mut *self.reader)?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_, 'de> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        if self.has_value {
            let marker = self.reader.marker()?;
            return if marker == mark::NIL { Ok(()) } else { Err(Error::Misplaced(marker)) };
        }
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Error> {
        self.value_of("newtype variant")?;
        seed.deserialize(self.reader)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, Error> {
        self.value_of("tuple variant")?;
        self.reader.value(Bin::Array, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(self, _fields: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        self.value_of("struct variant")?;
        self.reader.value(Bin::Fields, visitor)
    }
}

/// A value of an application's own kind: a number that says which, and its data.
struct Extension<'de> {
    number: Option<i8>,
    data: Option<&'de [u8]>,
}

impl<'de> Deserializer<'de> for Extension<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(self)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de> SeqAccess<'de> for Extension<'de> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        if let Some(number) = self.number.take() {
            return seed.deserialize(I8Deserializer::new(number)).map(Some);
        }
        self.data.take().map(|data| seed.deserialize(BorrowedBytesDeserializer::new(data))).transpose()
    }
}

/// Held against `rmp-serde` behind [`Lenient`]: the same values, and errors for the same bytes.
#[cfg(test)]
pub(super) mod tests;
