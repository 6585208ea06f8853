//! Go's `[]byte` for serde fields: `#[serde(with = "bothways::codec::bytes")]`.
//!
//! Without it serde sees a `Vec<u8>` as an array of numbers, which Go does not take for a `[]byte` in
//! MessagePack. With it the field travels as a MessagePack `bin` and as base64 text in JSON. It reads
//! `bin`, `str`, arrays of numbers, base64 text and `nil`.
//!
//! For `Vec<u8>`, [`Bytes`], `Box<[u8]>`, `[u8; N]`, also within `Option`, `Vec` and maps. An array, as
//! in Go, is numbers in JSON, and one that comes too short is filled up with zeros. In a
//! `#[bothways::message]` such fields travel this way by themselves. As a whole argument or reply,
//! where there is no field, take [`Blob`]. [`Bytes`] needs nothing: its serde already says that it is
//! bytes.
//!
//! ```
//! use bothways::{Encode, Payload, SerializeType};
//!
//! #[derive(serde::Deserialize, serde::Serialize)]
//! struct Chunk {
//!     #[serde(rename = "Data", with = "bothways::codec::bytes")]
//!     data: Vec<u8>,
//! }
//!
//! let chunk = Chunk { data: vec![1, 2, 3] };
//! assert_eq!(chunk.encode(SerializeType::MSGPACK)?, &b"\x81\xa4Data\xc4\x03\x01\x02\x03"[..]);
//! # #[cfg(feature = "json")]
//! assert_eq!(chunk.encode(SerializeType::JSON)?, r#"{"Data":"AQID"}"#);
//! # Ok::<(), bothways::codec::CodecError>(())
//! ```

use std::fmt;

use ::bytes::Bytes;
use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{
    Deserializer, Serializer,
    de::{Error, SeqAccess, Visitor},
};

use super::text::is_text;

/// Writes the field as a byte string.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<T: ByteString, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    value.write(serializer)
}

/// Reads the field from a byte string.
///
/// # Errors
/// Those of the deserializer.
pub fn deserialize<'de, T: ByteString, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    T::read(deserializer)
}

/// A type that can travel as a byte string, or as several. The library implements it for its own types; the names of
/// its methods may change.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot travel as a byte string",
    note = "if it only has the same name, say `#[message(plain)]` on the field"
)]
pub trait ByteString: Sized {
    #[doc(hidden)]
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error>;
    #[doc(hidden)]
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error>;

    /// Whether it is one byte string of any length: then it has the two methods below.
    #[doc(hidden)]
    const IS_ONE: bool = false;
    #[doc(hidden)]
    fn octets(&self) -> &[u8] {
        &[]
    }
    #[doc(hidden)]
    fn of_octets(_octets: &[u8]) -> Option<Self> {
        None
    }
}

macro_rules! byte_strings {
    ($($type:ty),*) => {$(
        impl ByteString for $type {
            fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.serialize_str(&BASE64_STANDARD.encode(self))
                } else {
                    serializer.serialize_bytes(self)
                }
            }

            fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text_is_base64 = is_text(deserializer.is_human_readable());
                deserializer.deserialize_any(Octets { text_is_base64 }).map(Self::from)
            }

            const IS_ONE: bool = true;

            #[inline]
            fn octets(&self) -> &[u8] {
                self
            }

            #[inline]
            fn of_octets(octets: &[u8]) -> Option<Self> {
                Some(Self::from(octets.to_vec()))
            }
        }
    )*};
}

byte_strings!(Vec<u8>, Bytes, Box<[u8]>);

/// A borrowed byte string, for what the macros generate.
#[cfg(feature = "macros")]
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct ByteSlice<'a>(pub &'a [u8]);

#[cfg(feature = "macros")]
impl serde::Serialize for ByteSlice<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_str(&BASE64_STANDARD.encode(self.0))
        } else {
            serializer.serialize_bytes(self.0)
        }
    }
}

impl<const N: usize> ByteString for [u8; N] {
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_seq(self) } else { serializer.serialize_bytes(self) }
    }

    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Vec::<u8>::read(deserializer)?;
        let mut array = [0; N];
        let front = array.get_mut(..bytes.len());
        let too_long = || D::Error::custom(format!("{} bytes for an array of {N}", bytes.len()));
        front.ok_or_else(too_long)?.copy_from_slice(&bytes);
        Ok(array)
    }
}

super::field::within_containers!(ByteString);

super::field::newtype! {
    /// Go's `[]byte` where there is no field to put an attribute on: a whole argument or reply.
    ///
    /// ```
    /// use bothways::{Encode, Payload, SerializeType, codec::Blob};
    ///
    /// let wire = Blob(vec![1, 2, 3]).encode(SerializeType::MSGPACK)?;
    /// assert_eq!(wire, &b"\xc4\x03\x01\x02\x03"[..]);
    /// assert_eq!(Blob::decode(SerializeType::MSGPACK, wire)?, Blob(vec![1, 2, 3]));
    ///
    /// // A `Vec<u8>` by itself is an array of numbers, which Go does not take for a `[]byte`.
    /// let array = vec![1_u8, 2, 3].encode(SerializeType::MSGPACK)?;
    /// assert_eq!(array, &b"\x93\x01\x02\x03"[..]);
    /// # Ok::<(), bothways::codec::CodecError>(())
    /// ```
    Blob, ByteString, Vec<u8>
}

struct Octets {
    text_is_base64: bool,
}

impl<'de> Visitor<'de> for Octets {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a byte string")
    }

    fn visit_bytes<E: Error>(self, value: &[u8]) -> Result<Vec<u8>, E> {
        Ok(value.to_vec())
    }

    fn visit_byte_buf<E: Error>(self, value: Vec<u8>) -> Result<Vec<u8>, E> {
        Ok(value)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Vec<u8>, E> {
        if self.text_is_base64 { from_base64(value) } else { Ok(value.as_bytes().to_vec()) }
    }

    fn visit_unit<E: Error>(self) -> Result<Vec<u8>, E> {
        Ok(Vec::new())
    }

    fn visit_none<E: Error>(self) -> Result<Vec<u8>, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut numbers: A) -> Result<Vec<u8>, A::Error> {
        let mut bytes = Vec::with_capacity(numbers.size_hint().unwrap_or(0).min(4096));
        while let Some(byte) = numbers.next_element()? {
            bytes.push(byte);
        }
        Ok(bytes)
    }
}

pub(super) fn from_base64<E: Error>(text: &str) -> Result<Vec<u8>, E> {
    BASE64_STANDARD.decode(text).map_err(|error| E::custom(format!("not base64: {error}")))
}
