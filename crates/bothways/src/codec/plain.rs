//! Serde types: MessagePack, and JSON.

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
        _ => return Err(CodecError::unsupported::<T>(serialize, CAN)),
    };
    if payload.is_empty() {
        return T::deserialize(NoPayload).map_err(|_| CodecError::Empty { serialize });
    }
    decode(payload)
}

/// What an empty payload holds: enough for `()` and `None`, nothing for any other type.
struct NoPayload;

impl<'de> serde::Deserializer<'de> for NoPayload {
    type Error = serde::de::value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Self::Error> {
        Err(serde::de::Error::custom("empty"))
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _name: &str, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_unit()
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_none()
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        newtype_struct seq tuple tuple_struct map struct enum identifier
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_serde_type_cannot_travel_as_raw_protobuf_or_thrift_and_says_so() {
        let error = 7u32.encode(SerializeType::THRIFT).unwrap_err().to_string();
        assert!(error.starts_with("a value of this type cannot travel as thrift (4); it can as msgpack"), "{error}");
        let error = u32::decode(SerializeType::RAW, Bytes::from_static(b"7")).unwrap_err().to_string();
        assert!(error.starts_with("a value of this type cannot travel as raw (0)"), "{error}");
    }
}
