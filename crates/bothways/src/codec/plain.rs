//! Serde types: MessagePack, and JSON; and byte strings, which may come as they are.

use ::bytes::Bytes;
use bothways_proto::SerializeType;
use serde::{
    Deserialize, Serialize,
    de::{DeserializeOwned, Visitor},
};

#[cfg(feature = "json")]
use super::json;
use super::{CodecError, Encode, Payload, msgpack};

#[cfg(feature = "json")]
const CAN: &str = "msgpack or json";
#[cfg(not(feature = "json"))]
const CAN: &str = "msgpack (json is behind the feature `json`)";

impl<T: Serialize + Send + ?Sized> Encode for T {
    fn serialize_type(preferred: SerializeType) -> SerializeType {
        match preferred {
            #[cfg(feature = "json")]
            SerializeType::JSON => SerializeType::JSON,
            _ => SerializeType::MSGPACK,
        }
    }

    fn encode(&self, serialize: SerializeType) -> Result<Bytes, CodecError> {
        match serialize {
            SerializeType::MSGPACK => msgpack::encode(self),
            #[cfg(feature = "json")]
            SerializeType::JSON => json::encode(self),
            _ => Err(CodecError::unsupported::<T>(serialize, CAN)),
        }
    }
}

impl<T: Serialize + DeserializeOwned + Send> Payload for T {
    fn decode(serialize: SerializeType, payload: Bytes) -> Result<Self, CodecError> {
        decode_borrowed(serialize, &payload)
    }
}

/// Bytes → a serde value that may borrow from them, such as a `#[bothways::message]` with `&str` fields. It takes no
/// memory for texts. For handlers that get a [`Request`](crate::Request), and for pushes.
///
/// A `&str` is an error where the codec has no such text: in JSON one with escapes, and `nil` unless the field has
/// [`nil_or_default`](super::nil_or_default), as those of a `#[bothways::message]` have.
///
/// ```
/// use bothways::{Reply, Request, codec};
///
/// #[bothways::message]
/// struct Note<'a> {
///     title: &'a str,
///     #[serde(borrow)]
///     tags: Vec<&'a str>,
/// }
///
/// async fn title(request: Request) -> Reply {
///     let serialize = request.serialize_type();
///     let payload = match request.payload() {
///         Ok(payload) => payload,
///         Err(error) => return Reply::error(error.to_string()),
///     };
///     match codec::decode_borrowed::<Note<'_>>(serialize, &payload) {
///         Ok(note) => Reply::encode(note.title, serialize),
///         Err(error) => Reply::error(error.to_string()),
///     }
/// }
/// # let _ = bothways::Server::builder().handler("Notes", "Title", title);
/// ```
///
/// # Errors
/// As [`Payload::decode`].
pub fn decode_borrowed<'de, T>(serialize: SerializeType, payload: &'de [u8]) -> Result<T, CodecError>
where
    T: Deserialize<'de>,
{
    let decode = match serialize {
        SerializeType::MSGPACK => msgpack::decode,
        #[cfg(feature = "json")]
        SerializeType::JSON => json::decode,
        // Bytes as they are, such as each push of a Go server: what reads byte strings reads them.
        SerializeType::RAW => {
            let bytes = Bare { bytes: Some(payload) };
            return T::deserialize(bytes).map_err(|_| CodecError::unsupported::<T>(serialize, CAN));
        }
        _ => return Err(CodecError::unsupported::<T>(serialize, CAN)),
    };

    if payload.is_empty() {
        return T::deserialize(Bare { bytes: None }).map_err(|_| CodecError::Empty { serialize });
    }
    decode(payload)
}

/// Methods that ask for a value which a payload without a codec does not hold.
macro_rules! no_values {
    ($($method:ident($($arg:ty),*))*) => {$(
        fn $method<V: Visitor<'de>>(self, $(_: $arg,)* _: V) -> Result<V::Value, Self::Error> {
            Err(no_value())
        }
    )*};
}

fn no_value() -> serde::de::value::Error {
    serde::de::Error::custom("no codec")
}

/// A payload without a codec. An empty one holds enough for `()` and `None`, and nothing for any other type; raw bytes
/// hold a byte string, and no other value than `()`.
struct Bare<'a> {
    bytes: Option<&'a [u8]>,
}

impl<'de> serde::Deserializer<'de> for Bare<'_> {
    type Error = serde::de::value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.bytes {
            Some(bytes) => visitor.visit_bytes(bytes),
            None => Err(no_value()),
        }
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.deserialize_any(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.deserialize_any(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Self::Error> {
        match self.bytes {
            Some(_) => visitor.visit_newtype_struct(self),
            None => Err(no_value()),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _name: &str, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_unit()
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.bytes {
            Some(_) => visitor.visit_some(self),
            None => visitor.visit_none(),
        }
    }

    fn is_human_readable(&self) -> bool {
        false
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_unit()
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Self::Error> {
        Err(no_value())
    }

    no_values! {
        deserialize_bool() deserialize_i8() deserialize_i16() deserialize_i32() deserialize_i64() deserialize_i128()
        deserialize_u8() deserialize_u16() deserialize_u32() deserialize_u64() deserialize_u128() deserialize_f32()
        deserialize_f64() deserialize_char() deserialize_str() deserialize_string() deserialize_seq()
        deserialize_map() deserialize_identifier() deserialize_tuple(usize)
        deserialize_tuple_struct(&'static str, usize) deserialize_struct(&'static str, &'static [&'static str])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Blob;

    #[derive(Debug, Deserialize, PartialEq, Serialize)]
    struct Nothing;

    #[test]
    fn an_empty_payload_is_unit_or_none_and_an_error_for_all_else() {
        let codecs = [SerializeType::MSGPACK, SerializeType::JSON];
        for serialize in codecs.into_iter().filter(|s| u32::serialize_type(*s) == *s) {
            assert_eq!(<()>::decode(serialize, Bytes::new()).ok(), Some(()));
            assert_eq!(Nothing::decode(serialize, Bytes::new()).ok(), Some(Nothing));
            assert_eq!(Option::<u32>::decode(serialize, Bytes::new()).ok(), Some(None));
            let error = u32::decode(serialize, Bytes::new()).unwrap_err();
            assert!(matches!(error, CodecError::Empty { .. }), "{error}");
            assert!(String::decode(serialize, Bytes::new()).is_err());
            assert!(Vec::<u8>::decode(serialize, Bytes::new()).is_err());
        }
    }

    /// Each push of a Go server is bytes without a codec. What is Go's `[]byte` in a codec is those bytes; no other type
    /// makes something of them, except for `()`, which takes anything.
    #[test]
    fn raw_bytes_are_a_byte_string_and_nothing_else() {
        #[derive(Debug, Deserialize, PartialEq, Serialize)]
        struct Note(#[serde(with = "crate::codec::bytes")] Vec<u8>);

        fn raw<T: Payload>(payload: &'static [u8]) -> Option<T> {
            T::decode(SerializeType::RAW, Bytes::from_static(payload)).ok()
        }
        for payload in [&b""[..], b"abc", b"\xff\xc0", b"null", b"\xc0"] {
            assert_eq!(raw::<Bytes>(payload).as_deref(), Some(payload));
            assert_eq!(raw::<Blob>(payload), Some(Blob(payload.to_vec())));
            assert_eq!(raw::<Note>(payload), Some(Note(payload.to_vec())));
            assert_eq!(raw::<Option<Bytes>>(payload).flatten().as_deref(), Some(payload));
            assert_eq!(raw::<()>(payload), Some(()));
            assert_eq!(raw::<String>(payload), None);
            assert_eq!(raw::<Vec<u8>>(payload), None, "it is a list of numbers");
            assert_eq!(raw::<u8>(payload), None);
            assert_eq!(raw::<Result<(), ()>>(payload), None);
            assert_eq!(raw::<std::collections::BTreeMap<String, u8>>(payload), None);
        }
    }

    #[test]
    fn a_serde_type_cannot_travel_as_raw_protobuf_or_thrift_and_says_so() {
        let error = 7u32.encode(SerializeType::THRIFT).unwrap_err().to_string();
        assert!(error.starts_with("a value of this type cannot travel as thrift (4); it can as msgpack"), "{error}");
        let error = u32::decode(SerializeType::RAW, Bytes::from_static(b"7")).unwrap_err().to_string();
        assert!(error.starts_with("a value of this type cannot travel as raw (0)"), "{error}");
    }
}
