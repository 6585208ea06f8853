//! Payload bytes ↔ user types, by the serialize type that a frame names.
//!
//! # How a serialize type is chosen
//!
//! Every frame names the codec of its payload, so the two ends agree on nothing beforehand.
//!
//! 1. A caller has a preferred serialize type: that of the call's options, else that of the
//!    [`Caller`](crate::Caller), which is MessagePack unless it was told otherwise.
//! 2. The type of the arguments has the last word ([`Encode::serialize_type`]): a type that cannot
//!    travel in the preferred one travels in its own.
//! 3. The reply comes in the codec of the request, as in Go, if the reply's type can travel in it;
//!    else in that type's own. The caller reads what the reply's frame says.
//!
//! | type | travels as | its own |
//! |---|---|---|
//! | any serde type (`Serialize + DeserializeOwned`) | MessagePack, JSON (feature `json`) | MessagePack |
//! | [`Raw`] | raw bytes | raw bytes |
//! | [`Bytes`], [`Blob`] and others that are byte strings | as serde types; raw bytes are read, too | MessagePack |
#![cfg_attr(feature = "protobuf", doc = "| [`Protobuf`] | Protocol Buffers | Protocol Buffers |")]
#![cfg_attr(
    not(feature = "protobuf"),
    doc = "| `Protobuf` (feature `protobuf`) | Protocol Buffers | Protocol Buffers |"
)]
#![cfg_attr(feature = "thrift", doc = "| [`Thrift`] | Thrift's binary protocol | Thrift |")]
#![cfg_attr(not(feature = "thrift"), doc = "| `Thrift` (feature `thrift`) | Thrift's binary protocol | Thrift |")]
//!
//! ```
//! use bothways::{Encode, Payload, SerializeType, codec::Raw};
//!
//! // A string can travel in what the caller prefers, raw bytes only as themselves.
//! assert_eq!(String::serialize_type(SerializeType::MSGPACK), SerializeType::MSGPACK);
//! assert_eq!(String::serialize_type(SerializeType::THRIFT), SerializeType::MSGPACK);
//! assert_eq!(Raw::serialize_type(SerializeType::MSGPACK), SerializeType::RAW);
//! # Ok::<(), bothways::codec::CodecError>(())
//! ```
//!
//! # What serde types accept
//!
//! Go's decoders are lenient and its encoders make use of it: a nil slice travels as `nil`, not as an empty array. So
//! both codecs here read `nil` (`null` in JSON) as the zero value wherever a serde type expects a number, a bool, a
//! string, bytes, an array or a map. An integer may come in any width; one that does not fit is an error, where Go cuts
//! it off. An integer fills a float, rounded where the float has no such value, as in Go. A MessagePack `float64` fills
//! an `f32`, rounded, unless it is out of range, which is an error. Unknown keys are skipped. A *missing* key is an
//! error unless the type says `#[serde(default)]`, as all fields of a `#[bothways::message]` do. Bytes after the value
//! are ignored. Names of fields are matched exactly in MessagePack. In JSON an exact name goes first; else a name that
//! is the same except for upper and lower case is accepted, as in Go. Values nest at most [`NESTING_MAX`] deep, and less
//! deep where their types would take more than [`DECODING_STACK_BYTES`] of stack; a thread that decodes needs twice
//! that. Their lists, maps and boxes take at most [`DECODED_BYTES_MAX`] in memory.
//!
//! What serde buffers before it decides (`#[serde(flatten)]`, untagged and internally tagged enums)
//! follows serde's own, stricter rules: names are matched exactly in JSON too, and bytes there need
//! the field attribute below.
//!
//! # What cannot travel
//!
//! A value arrives as it was, or is an error where it is written or read:
//!
//! - JSON has no NaN and no infinity: writing one is an error, as in Go. MessagePack has them.
//! - `Some(())` and `Some(None)` would be read as `None`: writing one is an error.
//! - Integers beyond 64 bits are numbers in JSON, and sixteen bytes in MessagePack, whose sign is that of the
//!   type that reads them. Go reads neither into its integers.
//! - Times before the year 0 or after 9999 have no JSON; durations are of at most 292 years, and never negative.
//!
//! # No payload at all
//!
//! An empty payload is neither MessagePack nor JSON. `()` and `Option` read it as `()` and `None`; for any other serde
//! type it is [`CodecError::Empty`]: as arguments Go refuses it too (`EOF`), and as a reply, where Go leaves the reply
//! variable untouched, Rust has no variable to leave. `()` reads any payload, so that a call whose reply does not
//! matter cannot fail because of it.
//!
//! # Go's types
//!
//! | Go | Rust | as a field, unless in a `#[bothways::message]` | as a whole argument or reply |
//! |---|---|---|---|
//! | `[]byte` | `Vec<u8>`, [`Bytes`] | `#[serde(with = "bothways::codec::bytes")]` | [`Bytes`], [`Blob`] |
//! | `time.Time` | `SystemTime` | `#[serde(with = "bothways::codec::time")]` | [`Timestamp`] |
//! | `time.Duration` | `Duration` | `#[serde(with = "bothways::codec::duration")]` | [`Nanos`] |
//!
//! **The last column matters**: a `Vec<u8>`, `SystemTime` or `Duration` that is the whole payload travels as serde has
//! it, an array or a map, which Rust reads and Go does not: its client then ends the connection. `#[bothways::service]`
//! refuses such a method, and every other whose argument or reply Go cannot read: lists of bytes, tuples, `char`,
//! integers of 128 bits, enums with data, maps whose keys are neither text nor integers, also through an alias, in a
//! container or in a `#[bothways::message]`. A type with serde impls of its own is trusted. `#[rpc(plain)]` on the
//! method, or `#[message(plain)]` on a field, leaves it so. [`Router::function`](crate::Router::function) and
//! [`Client::call`](crate::Client::call) cannot see it.
//!
//! An embedded struct of Go's is `#[serde(flatten)]`; an embedded pointer that may be nil is `#[serde(flatten)]
//! Option<_>`, which is `Some` of defaults for a nil pointer if the type is a `#[message]`, as Go writes a nil for each of
//! its fields. Names of `json` tags are `#[message(json = "...")]`, of `msgpack` tags `#[message(rename = "...")]`.

use bothways_proto::SerializeType;
// The crate, not the module beside it.
use crate::packing::{NotUnpacked, WAIT_MAX};
use ::bytes::Bytes;

pub mod bytes;
pub(crate) mod decoded;
pub mod duration;
mod field;
#[cfg(feature = "macros")]
#[doc(hidden)]
pub mod go;
#[cfg(feature = "json")]
mod json;
mod lenient;
mod msgpack;
mod plain;
#[cfg(feature = "protobuf")]
mod protobuf;
mod raw;
mod text;
#[cfg(feature = "thrift")]
mod thrift;
pub mod time;
mod words;

#[cfg(feature = "macros")]
pub use self::bytes::ByteSlice;
#[cfg(feature = "macros")]
#[doc(hidden)]
pub use self::msgpack::direct;
#[cfg(feature = "protobuf")]
pub use self::protobuf::Protobuf;
#[cfg(feature = "macros")]
pub(crate) use self::text::is_text;
#[cfg(feature = "thrift")]
pub use self::thrift::Thrift;
pub use self::{
    bytes::Blob,
    decoded::{DECODED_BYTES_MAX, DECODING_STACK_BYTES},
    duration::Nanos,
    lenient::{NESTING_MAX, nil_or_default},
    plain::decode_borrowed,
    raw::Raw,
    time::Timestamp,
};

/// Why `Some` of what is written as nothing is refused, in every codec.
const SOME_OF_NOTHING: &str = "a Some of nothing would be read as None";

/// A value that can be sent: the half of [`Payload`] that arguments need.
///
/// Implemented for every type that serde can serialize, borrowed ones such as `str` among them.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the payload of a message",
    label = "is no `Payload`",
    note = "make it a `#[bothways::message]`, or derive serde's `Serialize` and `Deserialize`; `Raw`, `Protobuf` and `Thrift` are for other codecs"
)]
pub trait Encode: Send {
    /// The serialize type this value travels in when the caller would like `preferred`: that one if
    /// it can, else its own.
    fn serialize_type(preferred: SerializeType) -> SerializeType;

    /// Value → bytes.
    ///
    /// # Errors
    /// [`CodecError::Unsupported`], or the codec's error.
    fn encode(&self, serialize: SerializeType) -> Result<Bytes, CodecError>;
}

/// Bytes that are sent as they are: texts, lists of bytes, [`Bytes`]. A value is encoded first.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not bytes, and nothing encodes it here",
    label = "is no bytes",
    note = "for a push of a value take `Push::of(path, method, &value)?`, or the `…Push` type that `#[bothways::service]` makes"
)]
pub trait IntoBytes {
    /// The bytes.
    fn into_bytes(self) -> Bytes;
}

#[diagnostic::do_not_recommend]
impl<T: Into<Bytes>> IntoBytes for T {
    fn into_bytes(self) -> Bytes {
        self.into()
    }
}

/// A value that can be the payload of a message.
///
/// Implemented for every serde type. Implement it yourself for a codec of your own, on a type that is
/// not `Serialize`: rpcx leaves the serialize types 5 to 15 to applications.
///
/// ```
/// use bothways::{Encode, Payload, SerializeType, codec::CodecError};
/// use bytes::Bytes;
///
/// /// Text in upper case, on the wire as serialize type 9.
/// struct Shout(String);
///
/// const SHOUT: SerializeType = SerializeType::new(9).unwrap();
///
/// impl Encode for Shout {
///     fn serialize_type(_preferred: SerializeType) -> SerializeType {
///         SHOUT
///     }
///
///     fn encode(&self, serialize: SerializeType) -> Result<Bytes, CodecError> {
///         if serialize != SHOUT {
///             return Err(CodecError::unsupported::<Self>(serialize, "serialize type 9"));
///         }
///         Ok(Bytes::from(self.0.to_uppercase()))
///     }
/// }
///
/// impl Payload for Shout {
///     fn decode(serialize: SerializeType, payload: Bytes) -> Result<Self, CodecError> {
///         if serialize != SHOUT {
///             return Err(CodecError::unsupported::<Self>(serialize, "serialize type 9"));
///         }
///         let text = str::from_utf8(&payload).map_err(|error| CodecError::codec(serialize, error))?;
///         Ok(Self(text.to_owned()))
///     }
/// }
///
/// assert_eq!(Shout("hey".into()).encode(SHOUT)?, "HEY");
/// # Ok::<(), CodecError>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the payload of a message",
    label = "is no `Payload`",
    note = "make it a `#[bothways::message]`, or derive serde's `Serialize` and `Deserialize`; `Raw`, `Protobuf` and `Thrift` are for other codecs",
    note = "if nothing says what the reply is, name its type: `client.call::<Reply>(…)`"
)]
pub trait Payload: Encode + Sized {
    /// Bytes → value. The bytes come from a peer: whatever they are, the result is a value or an error.
    ///
    /// # Errors
    /// [`CodecError::Unsupported`], [`CodecError::Empty`], or the codec's error.
    fn decode(serialize: SerializeType, payload: Bytes) -> Result<Self, CodecError>;
}

/// Why a value did not become bytes, or bytes not a value.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The type cannot travel in this serialize type.
    ///
    /// Its text goes to peers, and does not name the type.
    #[error("a value of this type cannot travel as {serialize}; it can as {can}")]
    Unsupported {
        /// The Rust type.
        type_name: &'static str,
        /// The serialize type that was requested.
        serialize: SerializeType,
        /// The ones that it can travel as, for people.
        can: &'static str,
    },
    /// The payload is empty, and the type needs a value. Go says `EOF`.
    #[error("{serialize}: the payload is empty")]
    Empty {
        /// The codec.
        serialize: SerializeType,
    },
    /// The codec said no.
    #[error("{serialize}: {text}")]
    Codec {
        /// The codec.
        serialize: SerializeType,
        /// Its words.
        text: String,
    },
    /// The payload could not be unpacked.
    #[error(transparent)]
    Compressed(#[from] bothways_proto::DecodeError),
    /// The payload came packed, and others took the room for what is unpacked.
    #[error("no room to unpack the payload within {} s (`unpacked_bytes_max`)", WAIT_MAX.as_secs())]
    NoRoom,
}

impl From<NotUnpacked> for CodecError {
    fn from(why: NotUnpacked) -> Self {
        match why {
            NotUnpacked::Decode(error) => Self::Compressed(error),
            NotUnpacked::NoRoom => Self::NoRoom,
        }
    }
}

impl CodecError {
    /// `T` cannot travel as `serialize`, only as `can` (for people). For [`Payload`] implementations.
    pub fn unsupported<T: ?Sized>(serialize: SerializeType, can: &'static str) -> Self {
        Self::Unsupported { type_name: std::any::type_name::<T>(), serialize, can }
    }

    /// The codec's own error, for [`Payload`] implementations. Its text goes to peers: only the first 1 KiB is kept,
    /// because it may repeat a value, and the names of Rust types that serde puts there (`expected struct Args`) are
    /// left out.
    pub fn codec(serialize: SerializeType, error: impl std::fmt::Display) -> Self {
        Self::Codec { serialize, text: words::without_type_names(&words::brief(&error)) }
    }
}
