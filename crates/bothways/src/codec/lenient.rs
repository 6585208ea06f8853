//! Go's leniency, laid over a serde deserializer: `nil` is the zero value of whatever is asked for.
//!
//! [`Lenient`] sits between a user's type and the codec's own deserializer, at every level of the
//! value, and so also bounds how deep values nest and how much room a length from the wire may ask for. JSON is
//! read through it, with the names of fields in any case. MessagePack has a reader of its own, which keeps to the same
//! rules and leaves what is rare to this one.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, EnumAccess, Error, IgnoredAny, MapAccess, SeqAccess, Unexpected, VariantAccess, Visitor},
};

use super::{
    decoded::{DECODING_STACK_BYTES, count_element, count_entry, count_struct, is_too_deep},
    words::brief,
};

/// How deep arrays, maps and enums may nest in a payload. Recursion takes stack, and the peer decides how
/// deep it goes. 128, as in serde_json; of very large types fewer: see [`DECODING_STACK_BYTES`].
pub const NESTING_MAX: usize = 128;

/// Reads a field as its `Default` if the peer sent `nil` (`null`), as Go does.
///
/// For `#[serde(default, deserialize_with = "bothways::codec::nil_or_default")]`. It is what
/// `#[bothways::message]` puts on every field; needed elsewhere only on types for which `nil` is not
/// read as zero anyway, such as enums.
///
/// ```
/// #[derive(Debug, Default, PartialEq, serde::Deserialize, serde::Serialize)]
/// enum Colour {
///     #[default]
///     Green,
///     Red,
/// }
///
/// #[derive(serde::Deserialize, serde::Serialize)]
/// struct Paint {
///     #[serde(default, deserialize_with = "bothways::codec::nil_or_default")]
///     colour: Colour,
/// }
///
/// # use bothways::{Payload, SerializeType};
/// let wire = b"\x81\xa6colour\xc0"; // {"colour": nil}
/// let paint = Paint::decode(SerializeType::MSGPACK, wire[..].into())?;
/// assert_eq!(paint.colour, Colour::Green);
/// # Ok::<(), bothways::codec::CodecError>(())
/// ```
///
/// # Errors
/// Those of the deserializer.
pub fn nil_or_default<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Deserialize<'de> + Default,
    D: Deserializer<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// What is wrong with a value of large types that nests less deep than that.
pub(super) const TOO_MUCH_STACK: &str = "nested deeper than 1 MiB of stack allows";
const _: () = assert!(DECODING_STACK_BYTES == 1 << 20);

/// The bounds of one payload, at some level in it, and how its codec matches names.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    levels_left: usize,
    /// Bytes of the payload. No container has more elements than that.
    elements_max: usize,
    /// The names of a struct's fields may come in any case, as Go's JSON has it.
    any_case: bool,
    /// This is the key of a map.
    is_key: bool,
}

impl Bounds {
    pub(super) fn new(levels_left: usize, elements_max: usize) -> Self {
        Self { levels_left, elements_max, any_case: false, is_key: false }
    }

    fn deeper<E: Error>(self) -> Result<Self, E> {
        if is_too_deep() {
            return Err(E::custom(TOO_MUCH_STACK));
        }
        let levels_left = self.levels_left.checked_sub(1);
        let levels_left = levels_left.ok_or_else(|| E::custom(format!("nested deeper than {NESTING_MAX} levels")))?;
        Ok(Self { levels_left, is_key: false, ..self })
    }
}

/// A deserializer that reads `nil` as zero.
pub(super) struct Lenient<D> {
    inner: D,
    bounds: Bounds,
}

impl<D> Lenient<D> {
    /// Over a codec's deserializer of a payload of this many bytes.
    #[cfg(any(feature = "json", test))]
    pub(super) fn new<'de>(inner: D, payload_bytes: usize) -> Self
    where
        D: Deserializer<'de>,
    {
        let any_case = inner.is_human_readable();
        let bounds = Bounds { any_case, ..Bounds::new(NESTING_MAX, payload_bytes) };
        Self::within(inner, bounds)
    }

    /// Over the deserializer of a part of a payload.
    pub(super) fn within(inner: D, bounds: Bounds) -> Self {
        Self { inner, bounds }
    }
}

/// What the user's type asked for: what `nil` is the zero of.
#[derive(Clone, Copy)]
pub(super) enum Asked {
    Any,
    Option,
    Bool,
    I8,
    I16,
    I32,
    I64,
    I128,
    U8,
    U16,
    U32,
    U64,
    U128,
    F32,
    F64,
    Char,
    Text,
    Bytes,
    /// Bytes, of a codec that has only text for them.
    Base64,
    Seq,
    Tuple(usize),
    TupleStruct(&'static str, usize),
    Map,
    Struct(&'static str, &'static [&'static str]),
}

/// Every codec's `deserialize_option` looks ahead for `nil`, so that is how each question is put first.
macro_rules! ask {
    ($($method:ident($($arg:ident: $type:ty),*) => $asked:expr;)*) => {$(
        fn $method<V: Visitor<'de>>(self, $($arg: $type,)* visitor: V) -> Result<V::Value, D::Error> {
            self.inner.deserialize_option(Answer { visitor, asked: $asked, bounds: self.bounds })
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Lenient<D> {
    type Error = D::Error;

    ask! {
        deserialize_bool() => Asked::Bool;
        deserialize_i8() => Asked::I8;
        deserialize_i16() => Asked::I16;
        deserialize_i32() => Asked::I32;
        deserialize_i64() => Asked::I64;
        deserialize_i128() => Asked::I128;
        deserialize_u8() => Asked::U8;
        deserialize_u16() => Asked::U16;
        deserialize_u32() => Asked::U32;
        deserialize_u64() => Asked::U64;
        deserialize_u128() => Asked::U128;
        deserialize_f32() => Asked::F32;
        deserialize_f64() => Asked::F64;
        deserialize_char() => Asked::Char;
        deserialize_str() => Asked::Text;
        deserialize_string() => Asked::Text;
        deserialize_option() => Asked::Option;
        deserialize_seq() => Asked::Seq;
        deserialize_tuple(len: usize) => Asked::Tuple(len);
        deserialize_tuple_struct(name: &'static str, len: usize) => Asked::TupleStruct(name, len);
        deserialize_map() => Asked::Map;
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        count_struct::<D::Error>(fields.len())?;
        let asked = Asked::Struct(name, fields);
        self.inner.deserialize_option(Answer { visitor, asked, bounds: self.bounds })
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.deserialize_byte_buf(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let asked = if self.inner.is_human_readable() { Asked::Base64 } else { Asked::Bytes };
        self.inner.deserialize_option(Answer { visitor, asked, bounds: self.bounds })
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_any(Answer { visitor, asked: Asked::Any, bounds: self.bounds })
    }

    /// A unit takes whatever is there.
    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_ignored_any(IgnoredAny)?;
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, D::Error> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_newtype_struct(name, Answer { visitor, asked: Asked::Any, bounds: self.bounds })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let answer = Answer { visitor, asked: Asked::Any, bounds: self.bounds };
        self.inner.deserialize_enum(name, variants, answer).map_err(explained)
    }

    /// An integer as a key may be the place of a field; it names no variant.
    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        if !self.bounds.is_key {
            return self.inner.deserialize_identifier(Name { inner: visitor, fields: &[] });
        }
        self.inner.deserialize_identifier(Answer { visitor, asked: Asked::Any, bounds: self.bounds })
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_ignored_any(visitor)
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

/// Of a value that is no enum at all serde_json says only that it expected a value.
#[cold]
fn explained<E: Error>(error: E) -> E {
    let said = error.to_string();
    match said.starts_with("expected value") {
        true => {
            E::custom(format_args!("a variant's name belongs here, or an object from its name to its value: {said}"))
        }
        false => error,
    }
}

/// Stands between the codec's deserializer and the visitor of the user's type.
pub(super) struct Answer<V> {
    visitor: V,
    asked: Asked,
    bounds: Bounds,
}

impl<V> Answer<V> {
    /// Whatever the codec's deserializer finds becomes an answer to what was asked for.
    pub(super) fn new(visitor: V, asked: Asked, bounds: Bounds) -> Self {
        Self { visitor, asked, bounds }
    }
}

/// What is wrong with a text. serde's own words repeat all of it, and with escapes: here they end where no more is kept.
#[derive(Debug)]
struct Brief(String);

impl fmt::Display for Brief {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Brief {}

impl Error for Brief {
    #[cold]
    fn custom<T: fmt::Display>(said: T) -> Self {
        Self(brief(&said))
    }
}

macro_rules! pass_on {
    ($($method:ident($type:ty);)*) => {$(
        fn $method<E: Error>(self, value: $type) -> Result<V::Value, E> {
            self.visitor.$method(value)
        }
    )*};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Answer<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    pass_on! {
        visit_bool(bool);
        visit_i8(i8);
        visit_i16(i16);
        visit_i32(i32);
        visit_i64(i64);
        visit_i128(i128);
        visit_u8(u8);
        visit_u16(u16);
        visit_u32(u32);
        visit_u64(u64);
        visit_u128(u128);
        visit_f32(f32);
        visit_char(char);
        visit_bytes(&[u8]);
        visit_borrowed_bytes(&'de [u8]);
        visit_byte_buf(Vec<u8>);
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<V::Value, E> {
        match self.asked {
            Asked::Base64 => self.visitor.visit_byte_buf(super::bytes::from_base64(value)?),
            _ => self.visitor.visit_str::<Brief>(value).map_err(E::custom),
        }
    }

    fn visit_borrowed_str<E: Error>(self, value: &'de str) -> Result<V::Value, E> {
        match self.asked {
            Asked::Base64 => self.visit_str(value),
            _ => self.visitor.visit_borrowed_str::<Brief>(value).map_err(E::custom),
        }
    }

    fn visit_string<E: Error>(self, value: String) -> Result<V::Value, E> {
        match self.asked {
            Asked::Base64 => self.visit_str(&value),
            _ => self.visitor.visit_string::<Brief>(value).map_err(E::custom),
        }
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<V::Value, E> {
        #[expect(clippy::cast_possible_truncation, reason = "whether it overflows is the question")]
        let fits = !value.is_finite() || (value as f32).is_finite();
        if matches!(self.asked, Asked::F32) && !fits {
            return Err(E::invalid_value(Unexpected::Float(value), &"f32"));
        }
        // JSON's `-0`, which is how Go writes a float that is minus zero.
        let signed = matches!(self.asked, Asked::I8 | Asked::I16 | Asked::I32 | Asked::I64);
        if signed && value.to_bits() == (-0.0_f64).to_bits() {
            return self.visitor.visit_i64(0);
        }
        self.visitor.visit_f64(value)
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.visitor.visit_unit()
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        let Self { visitor, asked, bounds } = self;
        match asked {
            Asked::Any | Asked::Option => visitor.visit_none(),
            Asked::Bool => visitor.visit_bool(false),
            Asked::I8 | Asked::I16 | Asked::I32 | Asked::I64 | Asked::I128 => visitor.visit_i64(0),
            Asked::U8 | Asked::U16 | Asked::U32 | Asked::U64 | Asked::U128 => visitor.visit_u64(0),
            Asked::F32 | Asked::F64 => visitor.visit_f64(0.0),
            Asked::Char => visitor.visit_char('\0'),
            Asked::Text => visitor.visit_str(""),
            Asked::Bytes | Asked::Base64 => visitor.visit_bytes(&[]),
            Asked::Seq => visitor.visit_seq(Nils { left: 0, bounds, error: Default::default() }),
            Asked::Tuple(len) | Asked::TupleStruct(_, len) => {
                visitor.visit_seq(Nils { left: len, bounds, error: Default::default() })
            }
            Asked::Map | Asked::Struct(..) => {
                visitor.visit_map(serde::de::value::MapDeserializer::new(std::iter::empty::<((), ())>()))
            }
        }
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        match self.asked {
            Asked::Any | Asked::Option => self.visitor.visit_some(Lenient { inner, bounds: self.bounds }),
            Asked::Bool => inner.deserialize_bool(self),
            Asked::I8 => inner.deserialize_i8(self),
            Asked::I16 => inner.deserialize_i16(self),
            Asked::I32 => inner.deserialize_i32(self),
            Asked::I64 => inner.deserialize_i64(self),
            Asked::I128 => inner.deserialize_i128(self),
            Asked::U8 => inner.deserialize_u8(self),
            Asked::U16 => inner.deserialize_u16(self),
            Asked::U32 => inner.deserialize_u32(self),
            Asked::U64 => inner.deserialize_u64(self),
            Asked::U128 => inner.deserialize_u128(self),
            Asked::F32 => inner.deserialize_f32(self),
            Asked::F64 => inner.deserialize_f64(self),
            Asked::Char => inner.deserialize_char(self),
            Asked::Text => inner.deserialize_string(self),
            Asked::Bytes => inner.deserialize_byte_buf(self),
            Asked::Base64 => inner.deserialize_any(self),
            Asked::Seq => inner.deserialize_seq(self),
            Asked::Tuple(len) => inner.deserialize_tuple(len, self),
            Asked::TupleStruct(name, len) => inner.deserialize_tuple_struct(name, len, self),
            Asked::Map => inner.deserialize_map(self),
            Asked::Struct(name, fields) => inner.deserialize_struct(name, fields, self),
        }
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.visitor.visit_newtype_struct(Lenient { inner, bounds: self.bounds })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        let bounds = self.bounds.deeper()?;
        self.visitor.visit_seq(Lenient { inner, bounds })
    }

    fn visit_map<A: MapAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        let bounds = self.bounds.deeper()?;
        let inner = Lenient { inner, bounds };
        match self.asked {
            Asked::Struct(_, fields) if bounds.any_case => self.visitor.visit_map(AnyCase { inner, fields }),
            // Fields are within their struct.
            Asked::Struct(..) => self.visitor.visit_map(inner),
            _ => self.visitor.visit_map(Entries { inner, is_first: true }),
        }
    }

    fn visit_enum<A: EnumAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        let bounds = self.bounds.deeper()?;
        self.visitor.visit_enum(Lenient { inner, bounds })
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Lenient<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(Lenient { inner, bounds: self.bounds })
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Lenient<A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        let element = self.inner.next_element_seed(Lenient { inner: seed, bounds: self.bounds })?;
        if element.is_some() {
            count_element::<S::Value, A::Error>()?;
        }
        Ok(element)
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint().map(|elements| elements.min(self.bounds.elements_max))
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Lenient<A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.inner.next_key_seed(Lenient { inner: seed, bounds: Bounds { is_key: true, ..self.bounds } })
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.inner.next_value_seed(Lenient { inner: seed, bounds: self.bounds })
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint().map(|elements| elements.min(self.bounds.elements_max))
    }
}

/// The entries of a map that is read as one: what they take in memory is counted.
struct Entries<A> {
    inner: Lenient<A>,
    is_first: bool,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Entries<A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        let key = self.inner.next_key_seed(seed)?;
        if key.is_some() {
            count_entry::<S::Value, A::Error>(self.is_first)?;
        }
        Ok(key)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        let value = self.inner.next_value_seed(seed)?;
        count_entry::<S::Value, A::Error>(std::mem::take(&mut self.is_first))?;
        Ok(value)
    }

    fn size_hint(&self) -> Option<usize> {
        MapAccess::size_hint(&self.inner)
    }
}

/// The entries of a map that is read as a struct. A key that differs from the name of a field only in case becomes
/// that name, unless another field has exactly this one.
struct AnyCase<A> {
    inner: Lenient<A>,
    fields: &'static [&'static str],
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for AnyCase<A> {
    type Error = A::Error;

    fn next_key_seed<S>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error>
    where
        S: DeserializeSeed<'de>,
    {
        self.inner.next_key_seed(Name { inner: seed, fields: self.fields })
    }

    fn next_value_seed<S>(&mut self, seed: S) -> Result<S::Value, A::Error>
    where
        S: DeserializeSeed<'de>,
    {
        self.inner.next_value_seed(seed)
    }

    fn size_hint(&self) -> Option<usize> {
        MapAccess::size_hint(&self.inner)
    }
}

/// Stands before the seed, the deserializer and the visitor of a field's name.
struct Name<T> {
    inner: T,
    fields: &'static [&'static str],
}

impl<T> Name<T> {
    fn field(&self, key: &str) -> Option<&'static str> {
        let exact = self.fields.iter().find(|field| **field == key);
        exact.or_else(|| self.fields.iter().find(|field| is_same_but_for_case(field, key))).copied()
    }
}

/// As Go folds names: letter by letter, whatever their lengths in bytes.
fn is_same_but_for_case(one: &str, other: &str) -> bool {
    fn folded(letter: char) -> char {
        let mut upper = letter.to_uppercase();
        let upper = if upper.len() == 1 { upper.next() } else { None };
        let mut lower = upper.unwrap_or(letter).to_lowercase();
        let lower = if lower.len() == 1 { lower.next() } else { None };
        lower.unwrap_or(letter)
    }
    if one.is_ascii() && other.is_ascii() {
        return one.eq_ignore_ascii_case(other);
    }
    one.chars().map(folded).eq(other.chars().map(folded))
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Name<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(Name { inner, fields: self.fields })
    }
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Name<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_identifier(Name { inner: visitor, fields: self.fields })
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Name<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<V::Value, E> {
        match self.field(key) {
            Some(field) => self.inner.visit_borrowed_str(field),
            None => self.inner.visit_str(key),
        }
    }

    fn visit_borrowed_str<E: Error>(self, key: &'de str) -> Result<V::Value, E> {
        match self.field(key) {
            Some(field) => self.inner.visit_borrowed_str(field),
            None => self.inner.visit_borrowed_str(key),
        }
    }

    fn visit_bytes<E: Error>(self, key: &[u8]) -> Result<V::Value, E> {
        self.inner.visit_bytes(key)
    }

    fn visit_borrowed_bytes<E: Error>(self, key: &'de [u8]) -> Result<V::Value, E> {
        self.inner.visit_borrowed_bytes(key)
    }

    fn visit_string<E: Error>(self, key: String) -> Result<V::Value, E> {
        match self.field(&key) {
            Some(field) => self.inner.visit_borrowed_str(field),
            None => self.inner.visit_string(key),
        }
    }
}

impl<'de, A: EnumAccess<'de>> EnumAccess<'de> for Lenient<A> {
    type Error = A::Error;
    type Variant = Lenient<A::Variant>;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self::Variant), A::Error> {
        let (name, inner) = self.inner.variant_seed(Name { inner: seed, fields: &[] })?;
        Ok((name, Lenient { inner, bounds: self.bounds }))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Lenient<A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        self.inner.newtype_variant_seed(Lenient { inner: seed, bounds: self.bounds })
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, A::Error> {
        self.inner.tuple_variant(len, Answer { visitor, asked: Asked::Any, bounds: self.bounds })
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        let asked = if self.bounds.any_case { Asked::Struct("", fields) } else { Asked::Any };
        self.inner.struct_variant(fields, Answer { visitor, asked, bounds: self.bounds })
    }
}

/// The elements of a `nil` that stands for an array of fixed length.
struct Nils<E> {
    left: usize,
    bounds: Bounds,
    error: std::marker::PhantomData<E>,
}

impl<'de, E: Error> SeqAccess<'de> for Nils<E> {
    type Error = E;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, E> {
        let Some(left) = self.left.checked_sub(1) else {
            return Ok(None);
        };
        self.left = left;
        let nil = serde::de::value::UnitDeserializer::new();
        seed.deserialize(Lenient { inner: nil, bounds: self.bounds.deeper()? }).map(Some)
    }
}
