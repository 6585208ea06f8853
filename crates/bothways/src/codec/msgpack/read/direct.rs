//! What the code that `#[message]` generates reads with, without serde.
//!
//! A message stays a serde type, so the reader comes to it by [`deserialize`], wherever it stands in a value. Each type
//! here reads the forms that peers usually send. Every other form is left to serde, from the beginning of the value: the
//! two ways read the same.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    hash::{BuildHasher, Hash},
    marker::PhantomData,
    mem::size_of,
};

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, Error as _, IgnoredAny, SeqAccess, Unexpected, Visitor},
};

use super::{Error, NO_KEY, Reader, texts::TEXTS};
use crate::codec::{
    bytes::ByteString,
    decoded::{count_box, count_elements, count_entry},
    msgpack::{DIRECT, mark},
    text::is_msgpack,
};

/// Room that the length of a container may ask for before its elements are read, as in serde.
const ROOM_BYTES: usize = 1 << 20;

/// A type that reads what its `Deserialize` would, with the same errors.
pub trait Read<'de>: Sized {
    /// Reads the next value.
    ///
    /// # Errors
    /// Those of its `Deserialize`.
    fn read(reader: &mut Reader<'de>) -> Result<Self, Error>;

    /// The same, and `nil` is the type's default.
    ///
    /// # Errors
    /// Those of its `Deserialize`.
    #[inline]
    fn read_or_default(reader: &mut Reader<'de>) -> Result<Self, Error>
    where
        Self: Default,
    {
        if reader.take_nil()? { Ok(Self::default()) } else { Self::read(reader) }
    }

    /// Reads so many values, one after the other.
    ///
    /// # Errors
    /// Those of its `Deserialize`.
    #[inline]
    fn read_list(reader: &mut Reader<'de>, len: usize) -> Result<Vec<Self>, Error> {
        let mut list = Vec::with_capacity(reader.room(len, size_of::<Self>()));
        for _ in 0..len {
            list.push(Self::read(reader)?);
        }
        Ok(list)
    }
}

/// A message, which has two ways to be read.
pub trait ReadMessage<'de>: Read<'de> {
    /// Reads so many entries of a map.
    ///
    /// # Errors
    /// Those of its `Deserialize`.
    fn read_map(reader: &mut Reader<'de>, entries: u32) -> Result<Self, Error>;

    /// The way for other formats, and for other forms than a map.
    ///
    /// # Errors
    /// Those of the deserializer.
    fn by_serde<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error>;
}

/// The [`Read`] of a message.
///
/// # Errors
/// Those of its `Deserialize`.
#[inline]
pub fn message<'de, T: ReadMessage<'de>>(reader: &mut Reader<'de>) -> Result<T, Error> {
    let before = reader.rest;
    let marker = reader.marker()?;
    let Some(entries) = reader.map_len(marker)? else {
        reader.rest = before;
        return T::by_serde(reader);
    };
    reader.deeper(|reader| T::read_map(reader, entries))
}

/// The `Deserialize` of a message.
///
/// # Errors
/// Those of the deserializer.
#[inline]
pub fn deserialize<'de, T: ReadMessage<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    if is_msgpack() && !deserializer.is_human_readable() {
        return deserializer.deserialize_newtype_struct(DIRECT, Direct(PhantomData));
    }
    T::by_serde(deserializer)
}

/// A message that takes what is left of a payload, if our reader offers it as [`Rest`].
struct Direct<T>(PhantomData<T>);

impl<'de, T: ReadMessage<'de>> Visitor<'de> for Direct<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a message")
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        T::by_serde(deserializer)
    }

    #[inline]
    fn visit_seq<A: SeqAccess<'de>>(self, mut reader: A) -> Result<T, A::Error> {
        let around = reader.size_hint().unwrap_or(0);
        let rest: &'de [u8] = reader.next_element()?.ok_or_else(|| A::Error::custom(Error::EndsWithin))?;
        let (containers, enums) = (around >> AROUND_BITS, around & AROUND_MASK);
        let mut direct = Reader { rest, containers, enums, key_at: NO_KEY };
        let message = T::read(&mut direct).map_err(A::Error::custom)?;
        reader.next_element_seed(Left(direct.rest.len()))?;
        Ok(message)
    }
}

/// Both counts of what is around a value are at most [`NESTING_MAX`](crate::codec::NESTING_MAX).
const AROUND_BITS: usize = 8;
const AROUND_MASK: usize = (1 << AROUND_BITS) - 1;

/// Says how many bytes of the payload are left.
struct Left(usize);

impl<'de> DeserializeSeed<'de> for Left {
    type Value = IgnoredAny;

    #[inline]
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<IgnoredAny, D::Error> {
        deserializer.deserialize_tuple(self.0, IgnoredAny)
    }
}

/// What is left of the payload as its one element, then how much was left of that. The hint at its size says what is
/// around it.
pub(super) struct Rest<'a, 'de>(pub(super) &'a mut Reader<'de>);

impl<'de> SeqAccess<'de> for Rest<'_, 'de> {
    type Error = Error;

    #[inline]
    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        seed.deserialize(RestPart(&mut *self.0)).map(Some)
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        Some(self.0.containers << AROUND_BITS | self.0.enums)
    }
}

struct RestPart<'a, 'de>(&'a mut Reader<'de>);

impl<'de> Deserializer<'de> for RestPart<'_, 'de> {
    type Error = Error;

    #[inline]
    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_borrowed_bytes(self.0.rest)
    }

    #[inline]
    fn deserialize_tuple<V: Visitor<'de>>(self, left: usize, visitor: V) -> Result<V::Value, Error> {
        let taken = self.0.rest.len().saturating_sub(left);
        self.0.rest = &self.0.rest[taken..];
        visitor.visit_unit()
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        Err(de::Error::invalid_type(Unexpected::Other("a message"), &visitor))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string byte_buf option unit
        unit_struct newtype_struct seq tuple_struct map struct enum identifier ignored_any
    }
}

/// Reads a field of this type: by [`Read`] if the type has it, else as [`InBySerde`] does, which must be in scope.
pub struct In<'de, T>(PhantomData<(&'de (), T)>);

impl<'de, T: Read<'de>> In<'de, T> {
    /// See [`In`].
    ///
    /// # Errors
    /// Those of the type.
    #[inline]
    pub fn read(reader: &mut Reader<'de>) -> Result<T, Error> {
        T::read(reader)
    }

    /// The same, and `nil` is the type's default.
    ///
    /// # Errors
    /// Those of the type.
    #[inline]
    pub fn read_or_default(reader: &mut Reader<'de>) -> Result<T, Error>
    where
        T: Default,
    {
        T::read_or_default(reader)
    }
}

/// Reads a field of a type without [`Read`].
pub trait InBySerde<'de, T> {
    /// See [`In`].
    ///
    /// # Errors
    /// Those of the type.
    fn read(reader: &mut Reader<'de>) -> Result<T, Error>;

    /// The same, and `nil` is the type's default.
    ///
    /// # Errors
    /// Those of the type.
    fn read_or_default(reader: &mut Reader<'de>) -> Result<T, Error>
    where
        T: Default;
}

impl<'de, T: Deserialize<'de>> InBySerde<'de, T> for In<'de, T> {
    #[inline]
    fn read(reader: &mut Reader<'de>) -> Result<T, Error> {
        T::deserialize(reader)
    }

    #[inline]
    fn read_or_default(reader: &mut Reader<'de>) -> Result<T, Error>
    where
        T: Default,
    {
        crate::codec::nil_or_default(reader)
    }
}

/// Reads a field that is a byte string, or holds some.
///
/// # Errors
/// Those of the type.
#[inline]
pub fn octets<'de, T: ByteString>(reader: &mut Reader<'de>) -> Result<T, Error> {
    if T::IS_ONE {
        let before = reader.rest;
        if let Some(octets) = reader.direct_octets()
            && let Some(value) = T::of_octets(octets)
        {
            return Ok(value);
        }
        reader.rest = before;
    }
    T::read(reader)
}

/// What a required field is that the peer left out: `None`, or an error.
///
/// # Errors
/// The type is no `Option`.
pub fn missing<'de, T: Deserialize<'de>>(name: &'static str) -> Result<T, Error> {
    T::deserialize(Missing(name))
}

struct Missing(&'static str);

impl<'de> Deserializer<'de> for Missing {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Error> {
        Err(Error::missing_field(self.0))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_none()
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// The name of a field as one of these, as serde's derive reads it; else as many as there are.
struct Name {
    names: &'static [&'static str],
    strict: bool,
}

impl Name {
    fn place(self, name: &[u8]) -> Result<usize, Error> {
        let place = self.names.iter().position(|known| known.as_bytes() == name);
        match place {
            None if self.strict => Err(Error::unknown_field(&String::from_utf8_lossy(name), self.names)),
            _ => Ok(place.unwrap_or(self.names.len())),
        }
    }
}

impl<'de> Visitor<'de> for Name {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("field identifier")
    }

    fn visit_u64<E: de::Error>(self, place: u64) -> Result<usize, E> {
        let count = self.names.len();
        match usize::try_from(place) {
            Ok(place) if place < count => Ok(place),
            _ if self.strict => {
                let expected = format!("field index 0 <= i < {count}");
                Err(E::invalid_value(Unexpected::Unsigned(place), &expected.as_str()))
            }
            _ => Ok(count),
        }
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<usize, E> {
        self.place(name.as_bytes()).map_err(E::custom)
    }

    fn visit_bytes<E: de::Error>(self, name: &[u8]) -> Result<usize, E> {
        self.place(name).map_err(E::custom)
    }
}

impl Error {
    /// Two entries of a map for one field.
    #[cold]
    pub fn duplicate(name: &'static str) -> Self {
        Self::duplicate_field(name)
    }

    /// No entry of a map for this field.
    #[cold]
    pub fn missing(name: &'static str) -> Self {
        Self::missing_field(name)
    }
}

impl<'de> Reader<'de> {
    /// Takes the key that comes next, if it is written so.
    #[inline]
    pub fn begins<const N: usize>(&mut self, key: &[u8; N], entries_left: &mut u32) -> bool {
        match self.rest.split_first_chunk() {
            Some((head, rest)) if head == key && *entries_left != 0 => {
                self.rest = rest;
                *entries_left -= 1;
                true
            }
            _ => false,
        }
    }

    /// The key that comes next, as a place in these names, or as many as there are if it is none of them. `None` if
    /// no entries are left.
    ///
    /// # Errors
    /// It is no key, or an unknown one where `strict`.
    pub fn key(
        &mut self,
        names: &'static [&'static str],
        strict: bool,
        entries_left: &mut u32,
    ) -> Result<Option<usize>, Error> {
        let Some(left) = entries_left.checked_sub(1) else { return Ok(None) };
        *entries_left = left;
        self.key_at = self.rest.len();
        self.deserialize_identifier(Name { names, strict }).map(Some)
    }

    /// Reads over the value of an unknown key.
    ///
    /// # Errors
    /// It is no value, or nests too deep.
    pub fn ignore(&mut self) -> Result<(), Error> {
        self.skip()
    }

    /// Bytes that are not read.
    #[cfg(test)]
    pub(in crate::codec::msgpack) fn left(&self) -> usize {
        self.rest.len()
    }

    /// Reads what is one level deeper.
    #[inline]
    fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        self.check_depth(self.containers + self.enums)?;
        self.containers += 1;
        let value = read(self);
        self.containers -= 1;
        value
    }

    /// A string of less than 64 KiB that is UTF-8. Else nothing is taken.
    #[inline]
    fn direct_text(&mut self) -> Option<&'de str> {
        let before = self.rest;
        let text = self.direct_text_bytes().and_then(|bytes| str::from_utf8(bytes).ok());
        if text.is_none() {
            self.rest = before;
        }
        text
    }

    /// The bytes of a string of less than 64 KiB. Else nothing is taken.
    #[inline]
    fn direct_text_bytes(&mut self) -> Option<&'de [u8]> {
        let (len, rest) = match *self.rest {
            [marker @ mark::FIX_STR..=mark::FIX_STR_LAST, ref rest @ ..] => (usize::from(marker - mark::FIX_STR), rest),
            [mark::STR_8, len, ref rest @ ..] => (usize::from(len), rest),
            [STR_16, high, low, ref rest @ ..] => (usize::from(u16::from_be_bytes([high, low])), rest),
            _ => return None,
        };
        let (bytes, rest) = rest.split_at_checked(len)?;
        self.rest = rest;
        Some(bytes)
    }

    /// A byte string, or a string that is read as one. Else nothing is known of what was taken.
    #[inline]
    fn direct_octets(&mut self) -> Option<&'de [u8]> {
        let marker = self.marker().ok()?;
        let len = match marker {
            mark::BIN_8..=mark::BIN_32 => self.len(marker, mark::BIN_8).ok()?,
            _ => self.text_len(marker).ok()??,
        };
        self.slice(len).ok()
    }

    /// A value of this marker and as many bytes as there are in the array. Else nothing is taken.
    #[inline]
    fn marked<const N: usize>(&mut self, marker: u8) -> Option<[u8; N]> {
        let (first, rest) = self.rest.split_first()?;
        let (bytes, rest) = rest.split_first_chunk().filter(|_| *first == marker)?;
        self.rest = rest;
        Some(*bytes)
    }

    /// The number of elements of the container that begins here. Else nothing is taken.
    #[inline]
    fn begin(&mut self, len: impl FnOnce(&mut Self, u8) -> Result<Option<u32>, Error>) -> Option<usize> {
        let before = self.rest;
        let marker = self.marker().ok()?;
        if let Ok(Some(len)) = len(self, marker) {
            return Some(len as usize);
        }
        self.rest = before;
        None
    }

    /// For how many elements of this many bytes room is made before they are read: each has a byte on the wire.
    #[inline]
    fn room(&self, elements: usize, bytes: usize) -> usize {
        elements.min(self.rest.len()).min(ROOM_BYTES.checked_div(bytes).unwrap_or(0))
    }
}

/// An integer that fits, and what is behind it. Inlined wherever it is, so that a list keeps its place in a register.
#[inline(always)]
fn integer<T: TryFrom<u64> + TryFrom<i64>>(rest: &[u8]) -> Option<(T, &[u8])> {
    macro_rules! wide {
        ($rest:ident, $wire:ty as $wide:ty) => {{
            let (bytes, rest) = $rest.split_first_chunk()?;
            (T::try_from(<$wide>::from(<$wire>::from_be_bytes(*bytes))).ok()?, rest)
        }};
    }

    let (&marker, rest) = rest.split_first()?;
    Some(match marker {
        ..=mark::FIX_POS_LAST => (T::try_from(u64::from(marker)).ok()?, rest),
        mark::FIX_NEG.. => (T::try_from(i64::from(marker.cast_signed())).ok()?, rest),
        mark::U_8 => wide!(rest, u8 as u64),
        mark::U_16 => wide!(rest, u16 as u64),
        mark::U_32 => wide!(rest, u32 as u64),
        mark::U_64 => wide!(rest, u64 as u64),
        mark::I_8 => wide!(rest, i8 as i64),
        mark::I_16 => wide!(rest, i16 as i64),
        mark::I_32 => wide!(rest, i32 as i64),
        mark::I_64 => wide!(rest, i64 as i64),
        _ => return None,
    })
}

const STR_16: u8 = mark::STR_8 + 1;

/// Whatever is not the usual form.
#[cold]
#[inline(never)]
fn rare<'de, T: Deserialize<'de>>(reader: &mut Reader<'de>) -> Result<T, Error> {
    T::deserialize(reader)
}

/// Types whose `Deserialize` reads `nil` as their default.
macro_rules! nil_is_default {
    () => {
        #[inline]
        fn read_or_default(reader: &mut Reader<'de>) -> Result<Self, Error> {
            Self::read(reader)
        }
    };
}

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl<'de> Read<'de> for $type {
            #[inline]
            fn read(reader: &mut Reader<'de>) -> Result<Self, Error> {
                match integer(reader.rest) {
                    Some((value, rest)) => {
                        reader.rest = rest;
                        Ok(value)
                    }
                    None => rare(reader),
                }
            }

            fn read_list(reader: &mut Reader<'de>, len: usize) -> Result<Vec<Self>, Error> {
                // The list is there before its numbers are, so that none looks for room.
                let room = reader.room(len, size_of::<Self>());
                let mut list = Vec::with_capacity(room);
                list.resize(room, 0);
                let mut rest = reader.rest;
                for number in &mut list {
                    (*number, rest) = match integer(rest) {
                        Some(read) => read,
                        None => {
                            reader.rest = rest;
                            (rare(reader)?, reader.rest)
                        }
                    };
                }

                reader.rest = rest;
                for _ in list.len()..len {
                    list.push(Self::read(reader)?);
                }
                Ok(list)
            }

            nil_is_default!();
        }
    )*};
}

integers!(i8, i16, i32, i64, isize, u8, u16, u32, u64, usize);

macro_rules! others {
    ($($type:ty, $reader:ident => $read:expr;)*) => {$(
        impl<'de> Read<'de> for $type {
            #[inline]
            fn read($reader: &mut Reader<'de>) -> Result<Self, Error> {
                match $read {
                    Some(value) => Ok(value),
                    None => rare($reader),
                }
            }

            nil_is_default!();
        }
    )*};
}

others! {
    f32, reader => reader.marked(mark::F_32).map(Self::from_be_bytes);
    f64, reader => reader.marked(mark::F_64).map(Self::from_be_bytes);
    bool, reader => match *reader.rest {
        [marker @ (mark::FALSE | mark::TRUE), ref rest @ ..] => {
            reader.rest = rest;
            Some(marker == mark::TRUE)
        }
        _ => None,
    };
}

impl<'de> Read<'de> for String {
    /// Copied before it is checked: the check is faster where memory begins than anywhere in a payload.
    #[inline]
    fn read(reader: &mut Reader<'de>) -> Result<Self, Error> {
        let before = reader.rest;
        if let Some(bytes) = reader.direct_text_bytes()
            && let Ok(text) = Self::from_utf8(bytes.to_vec())
        {
            return Ok(text);
        }
        reader.rest = before;
        rare(reader)
    }

    fn read_list(reader: &mut Reader<'de>, len: usize) -> Result<Vec<Self>, Error> {
        let mut list = Vec::with_capacity(reader.room(len, size_of::<Self>()));
        while list.len() < len {
            let left = len - list.len();
            if !reader.short_texts(&mut list, left) {
                for _ in 0..left.min(TEXTS) {
                    list.push(Self::read(reader)?);
                }
            }
        }
        Ok(list)
    }

    nil_is_default!();
}

impl<'de: 'a, 'a> Read<'de> for &'a str {
    #[inline]
    fn read(reader: &mut Reader<'de>) -> Result<Self, Error> {
        match reader.direct_text() {
            Some(text) => Ok(text),
            None => rare(reader),
        }
    }
}

impl<'de, T: Read<'de>> Read<'de> for Box<T> {
    #[inline]
    fn read(reader: &mut Reader<'de>) -> Result<Self, Error> {
        count_box::<T, Error>()?;
        T::read(reader).map(Self::new)
    }

    #[inline]
    fn read_or_default(reader: &mut Reader<'de>) -> Result<Self, Error>
    where
        Self: Default,
    {
        if reader.take_nil()? {
            count_box::<T, Error>()?;
            return Ok(Self::default());
        }
        Self::read(reader)
    }
}

impl<'de, T: Read<'de>> Read<'de> for Option<T> {
    #[inline]
    fn read(reader: &mut Reader<'de>) -> Result<Self, Error> {
        if reader.take_nil()? { Ok(None) } else { T::read(reader).map(Some) }
    }

    nil_is_default!();
}

impl<'de, T: Read<'de> + Deserialize<'de>> Read<'de> for Vec<T> {
    #[inline]
    fn read(reader: &mut Reader<'de>) -> Result<Self, Error> {
        let Some(len) = reader.begin(Reader::array_len) else { return rare(reader) };
        reader.deeper(|reader| {
            count_elements::<T, Error>(len)?;
            T::read_list(reader, len)
        })
    }

    nil_is_default!();
}

macro_rules! maps {
    ($([$($generics:tt)*] $type:ty, $room:ident => $new:expr;)*) => {$(
        impl<'de, $($generics)*> Read<'de> for $type {
            fn read(reader: &mut Reader<'de>) -> Result<Self, Error> {
                let Some(len) = reader.begin(Reader::map_len) else { return rare(reader) };
                reader.deeper(|reader| {
                    let $room = reader.room(len, size_of::<(K, V)>());
                    let mut map = $new;
                    for at in 0..len {
                        let key = K::read(reader)?;
                        count_entry::<K, Error>(at == 0)?;
                        let value = V::read(reader)?;
                        count_entry::<V, Error>(at == 0)?;
                        map.insert(key, value);
                    }
                    Ok(map)
                })
            }

            nil_is_default!();
        }
    )*};
}

maps! {
    [K: Read<'de> + Deserialize<'de> + Ord, V: Read<'de> + Deserialize<'de>] BTreeMap<K, V>, _room => Self::new();
    [K: Read<'de> + Deserialize<'de> + Eq + Hash, V: Read<'de> + Deserialize<'de>, H: BuildHasher + Default]
        HashMap<K, V, H>, room => Self::with_capacity_and_hasher(room, H::default());
}
