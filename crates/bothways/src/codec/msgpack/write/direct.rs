//! What the code that `#[message]` generates writes with, without serde.
//!
//! A message stays a serde type, so it comes to the writer by [`serialize`], wherever it stands in a value. Serde has no
//! way to hand a buffer to a value: the writer lends it by a variable of the thread.

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap},
    marker::PhantomData,
};

use serde::{Serialize, Serializer, ser::Error as _};

use super::{ARRAY, Error, INTEGER_BYTES, MAP, Sink, TEXT, Writer, put_signed, put_unsigned};
use crate::codec::{SOME_OF_NOTHING, bytes::ByteString, msgpack::DIRECT, msgpack::mark, text::is_msgpack};

/// What a value says that has been written into the lent buffer.
pub(super) const WRITTEN: &str = "_bw.written";

thread_local! {
    /// The buffer of a writer, for the value that is written next.
    static LENT: Cell<Option<Vec<u8>>> = const { Cell::new(None) };
}

/// A type that writes itself as its `Serialize` would, byte for byte.
pub trait Write {
    /// Appends the value.
    ///
    /// # Errors
    /// Those of its `Serialize`.
    fn write(&self, writer: &mut Writer) -> Result<(), Error>;

    /// Appends these, one after the other.
    ///
    /// # Errors
    /// Those of its `Serialize`.
    #[inline]
    fn write_list(list: &[Self], writer: &mut Writer) -> Result<(), Error>
    where
        Self: Sized,
    {
        list.iter().try_for_each(|element| element.write(writer))
    }
}

/// A message, which has two ways to be written.
pub trait WriteMessage: Write {
    /// The way for other formats.
    ///
    /// # Errors
    /// Those of the serializer.
    fn by_serde<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error>;
}

/// The `Serialize` of a message.
///
/// # Errors
/// Those of the serializer.
#[inline]
pub fn serialize<T: WriteMessage, S: Serializer>(message: &T, serializer: S) -> Result<S::Ok, S::Error> {
    if is_msgpack() && !serializer.is_human_readable() {
        return serializer.serialize_newtype_struct(DIRECT, &Direct(message));
    }
    message.by_serde(serializer)
}

/// A message that takes the buffer, if one is lent.
struct Direct<'a, T>(&'a T);

impl<T: WriteMessage> Serialize for Direct<'_, T> {
    #[inline]
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Some(buffer) = LENT.take() else { return self.0.by_serde(serializer) };
        let mut writer = Writer(buffer);
        let written = self.0.write(&mut writer);
        LENT.set(Some(writer.0));
        match written {
            Ok(()) => serializer.serialize_newtype_struct(WRITTEN, &()),
            Err(error) => Err(S::Error::custom(error)),
        }
    }
}

impl Writer {
    /// Lends the buffer to a message.
    #[inline]
    pub(super) fn lend<T: Serialize + ?Sized>(&mut self, message: &T) -> Result<(), Error> {
        LENT.set(Some(std::mem::take(&mut self.0)));
        let written = message.serialize(&mut *self);
        let mut buffer = LENT.take().unwrap_or_default();
        // Nothing, unless it was no message of ours.
        buffer.append(&mut self.0);
        self.0 = buffer;
        written
    }

    /// Appends bytes that are MessagePack already.
    #[inline]
    pub fn raw<const N: usize>(&mut self, bytes: &[u8; N]) {
        self.0.extend_from_slice(bytes);
    }

    /// Most texts are short, and their heads a byte.
    #[inline]
    fn text(&mut self, text: &str) -> Result<(), Error> {
        match u8::try_from(text.len()) {
            Ok(len) if len < TEXT.fix_end => self.0.push(mark::FIX_STR | len),
            _ => self.put_head(&TEXT, text.len())?,
        }
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }

    /// Most numbers are small, and a byte.
    #[inline]
    fn unsigned(&mut self, number: u64) {
        match u8::try_from(number) {
            Ok(number @ ..=mark::FIX_POS_LAST) => self.0.push(number),
            _ => self.wide_unsigned(number),
        }
    }

    #[inline]
    fn signed(&mut self, number: i64) {
        match i8::try_from(number) {
            Ok(number @ -32..) => self.0.push(number.cast_unsigned()),
            _ => self.wide_signed(number),
        }
    }

    #[inline(never)]
    fn wide_unsigned(&mut self, number: u64) {
        self.put_unsigned(number);
    }

    #[inline(never)]
    fn wide_signed(&mut self, number: i64) {
        self.put_signed(number);
    }

    /// Begins a map of so many entries.
    ///
    /// # Errors
    /// More than 4 Gi entries.
    pub fn map(&mut self, entries: usize) -> Result<(), Error> {
        self.put_head(&MAP, entries)
    }
}

/// Writes a field of this type: by [`Write`] if the type has it, else as [`OutBySerde`] does, which must be in scope.
pub struct Out<T: ?Sized>(PhantomData<T>);

impl<T: Write + ?Sized> Out<T> {
    /// See [`Out`].
    ///
    /// # Errors
    /// Those of the type.
    #[inline]
    pub fn write(value: &T, writer: &mut Writer) -> Result<(), Error> {
        value.write(writer)
    }
}

/// Writes a field of a type without [`Write`].
pub trait OutBySerde<T: ?Sized> {
    /// See [`Out`].
    ///
    /// # Errors
    /// Those of the type.
    fn write(value: &T, writer: &mut Writer) -> Result<(), Error>;
}

impl<T: Serialize + ?Sized> OutBySerde<T> for Out<T> {
    #[inline]
    fn write(value: &T, writer: &mut Writer) -> Result<(), Error> {
        value.serialize(writer)
    }
}

/// Writes a field that is a byte string, or holds some.
///
/// # Errors
/// More than 4 GiB.
#[inline]
pub fn octets<T: ByteString>(value: &T, writer: &mut Writer) -> Result<(), Error> {
    if T::IS_ONE { writer.serialize_bytes(value.octets()) } else { value.write(writer) }
}

macro_rules! scalars {
    ($($type:ty => $method:ident as $wide:ty;)*) => {$(
        impl Write for $type {
            #[inline]
            fn write(&self, writer: &mut Writer) -> Result<(), Error> {
                writer.$method(<$wide>::from(*self))
            }
        }
    )*};
}

scalars! {
    bool => serialize_bool as bool;
    f32 => serialize_f32 as f32;
    f64 => serialize_f64 as f64;
}

/// Integers of a list that are put together before they are appended.
const AT_ONCE: usize = 16;

/// So many integers. The end of the payload is in memory, and its buffer may have to grow: to ask each number for that
/// takes a third of the instructions of a list.
struct Numbers {
    bytes: [u8; AT_ONCE * INTEGER_BYTES],
    len: usize,
}

impl Numbers {
    #[inline(always)]
    fn new() -> Self {
        Self { bytes: [0; AT_ONCE * INTEGER_BYTES], len: 0 }
    }

    #[inline(always)]
    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Sink for Numbers {
    /// Copied as an array: a copy of a length that is known is no call.
    #[inline(always)]
    fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        let place = self.bytes[self.len..].first_chunk_mut();
        *place.expect("there is room for as many as there are") = bytes;
        self.len += N;
    }

    #[inline(always)]
    fn put_wide<const N: usize>(&mut self, marker: u8, number: [u8; N]) {
        self.put([marker]);
        self.put(number);
    }
}

macro_rules! integers {
    ($($one:ident, $listed:ident: $($type:ty),*;)*) => {$($(
        impl Write for $type {
            #[inline]
            fn write(&self, writer: &mut Writer) -> Result<(), Error> {
                writer.$one((*self).into());
                Ok(())
            }

            fn write_list(list: &[Self], writer: &mut Writer) -> Result<(), Error> {
                for some in list.chunks(AT_ONCE) {
                    let mut numbers = Numbers::new();
                    some.iter().for_each(|&number| $listed(&mut numbers, number.into()));
                    writer.0.extend_from_slice(numbers.as_slice());
                }
                Ok(())
            }
        }
    )*)*};
}

integers! {
    unsigned, put_unsigned: u8, u16, u32, u64;
    signed, put_signed: i8, i16, i32, i64;
}

impl Write for str {
    #[inline]
    fn write(&self, writer: &mut Writer) -> Result<(), Error> {
        writer.text(self)
    }
}

impl Write for String {
    #[inline]
    fn write(&self, writer: &mut Writer) -> Result<(), Error> {
        writer.text(self)
    }
}

impl<T: Write + ?Sized> Write for &T {
    #[inline]
    fn write(&self, writer: &mut Writer) -> Result<(), Error> {
        T::write(self, writer)
    }
}

impl<T: Write + ?Sized> Write for Box<T> {
    #[inline]
    fn write(&self, writer: &mut Writer) -> Result<(), Error> {
        T::write(self, writer)
    }
}

impl<T: Write> Write for Option<T> {
    #[inline]
    fn write(&self, writer: &mut Writer) -> Result<(), Error> {
        let Some(value) = self else { return writer.serialize_unit() };
        let from = writer.0.len();
        value.write(writer)?;
        if writer.0[from..] == [mark::NIL] {
            return Err(Error::custom(SOME_OF_NOTHING));
        }
        Ok(())
    }
}

impl<T: Write> Write for [T] {
    #[inline]
    fn write(&self, writer: &mut Writer) -> Result<(), Error> {
        writer.put_head(&ARRAY, self.len())?;
        T::write_list(self, writer)
    }
}

impl<T: Write> Write for Vec<T> {
    #[inline]
    fn write(&self, writer: &mut Writer) -> Result<(), Error> {
        self.as_slice().write(writer)
    }
}

macro_rules! maps {
    ($([$($generics:tt)*] $type:ty;)*) => {$(
        impl<$($generics)*> Write for $type {
            fn write(&self, writer: &mut Writer) -> Result<(), Error> {
                writer.map(self.len())?;
                self.iter().try_for_each(|(key, value)| {
                    key.write(writer)?;
                    value.write(writer)
                })
            }
        }
    )*};
}

maps! {
    [K: Write, V: Write] BTreeMap<K, V>;
    [K: Write, V: Write, H] HashMap<K, V, H>;
}
