//! Bytes as they are (serialize type 0), as in every push of a Go server.

use std::ops::Deref;

use ::bytes::Bytes;
use bothways_proto::SerializeType;

use super::{CodecError, Encode, Payload};

/// A payload without a codec: the bytes are the application's own.
///
/// A Go server pushes nothing else (`SendMessage`); what is in the bytes is then a matter between the
/// two programs. Often it is JSON or MessagePack all the same: [`Raw::parse`] and [`Raw::of`] are for that.
///
/// ```
/// use bothways::{Payload, SerializeType, codec::Raw};
///
/// let pushed = Raw::decode(SerializeType::RAW, "hello".into())?;
/// assert_eq!(&pushed[..], b"hello");
/// assert_eq!(pushed, Raw::from("hello"));
/// # Ok::<(), bothways::codec::CodecError>(())
/// ```
#[derive(Clone, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Raw(pub Bytes);

impl Raw {
    /// The bytes, read as a value in the codec that both programs know to expect.
    ///
    /// ```
    /// # use bothways::{SerializeType, codec::Raw};
    /// let pushed = Raw::from(&b"\x93\x01\x02\x03"[..]);
    /// assert_eq!(pushed.parse::<Vec<i32>>(SerializeType::MSGPACK)?, [1, 2, 3]);
    /// # Ok::<(), bothways::codec::CodecError>(())
    /// ```
    ///
    /// # Errors
    /// As [`Payload::decode`].
    pub fn parse<T: Payload>(&self, serialize: SerializeType) -> Result<T, CodecError> {
        T::decode(serialize, self.0.clone())
    }

    /// A value in this codec, to travel as raw bytes.
    ///
    /// ```
    /// # use bothways::{SerializeType, codec::Raw};
    /// assert_eq!(Raw::of(&vec![1, 2, 3], SerializeType::MSGPACK)?, Raw::from(&b"\x93\x01\x02\x03"[..]));
    /// # Ok::<(), bothways::codec::CodecError>(())
    /// ```
    ///
    /// # Errors
    /// As [`Encode::encode`].
    pub fn of<T: Encode + ?Sized>(value: &T, serialize: SerializeType) -> Result<Self, CodecError> {
        value.encode(serialize).map(Self)
    }
}

impl Encode for Raw {
    fn serialize_type(_preferred: SerializeType) -> SerializeType {
        SerializeType::RAW
    }

    fn encode(&self, serialize: SerializeType) -> Result<Bytes, CodecError> {
        match serialize {
            SerializeType::RAW => Ok(self.0.clone()),
            _ => Err(CodecError::unsupported::<Self>(serialize, "raw bytes")),
        }
    }
}

impl Payload for Raw {
    fn decode(serialize: SerializeType, payload: Bytes) -> Result<Self, CodecError> {
        match serialize {
            SerializeType::RAW => Ok(Self(payload)),
            _ => Err(CodecError::unsupported::<Self>(serialize, "raw bytes")),
        }
    }
}

impl Deref for Raw {
    type Target = Bytes;

    fn deref(&self) -> &Bytes {
        &self.0
    }
}

impl AsRef<[u8]> for Raw {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl From<Raw> for Bytes {
    fn from(raw: Raw) -> Self {
        raw.0
    }
}

macro_rules! from {
    ($($type:ty),*) => {$(
        impl From<$type> for Raw {
            fn from(bytes: $type) -> Self {
                Self(bytes.into())
            }
        }
    )*};
}

from!(Bytes, Vec<u8>, String, Box<[u8]>, &'static [u8], &'static str);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_bytes_travel_as_serialize_type_0_and_nothing_else() {
        let raw = Raw::from("abcde");
        assert_eq!(raw.encode(SerializeType::RAW).unwrap(), "abcde");
        assert_eq!(Raw::decode(SerializeType::RAW, "abcde".into()).unwrap(), raw);
        assert_eq!(Raw::decode(SerializeType::RAW, Bytes::new()).unwrap(), Raw::default());
        let error = Raw::decode(SerializeType::JSON, "abcde".into()).unwrap_err();
        assert!(matches!(error, CodecError::Unsupported { .. }), "{error}");
    }
}
