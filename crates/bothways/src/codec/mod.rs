//! Payload bytes ↔ user types, by the serialize type that a frame names.
//!
//! A type says by its [`Payload`] implementation which serialize types it can travel in. Every type
//! of serde's travels as MessagePack (the default) and JSON; the wrappers [`Raw`], [`Protobuf`] and
//! [`Thrift`] are for the others.
//!
//! A server answers in the codec of the request, as Go does.

use bothways_proto::SerializeType;
use bytes::Bytes;

/// A value that can be the payload of a message.
///
/// Implemented for every serde type. Implement it yourself for a codec of your own: rpcx leaves the
/// serialize types 5 to 15 to applications.
pub trait Payload: Sized + Send {
    /// The serialize type this value travels in when the caller would like `preferred`: that one if
    /// it can, else its own.
    fn serialize_type(preferred: SerializeType) -> SerializeType;

    /// Value → bytes.
    ///
    /// # Errors
    /// [`CodecError::Unsupported`], or what the codec says.
    fn encode(&self, serialize: SerializeType) -> Result<Bytes, CodecError>;

    /// Bytes → value. The bytes come from a peer: whatever they are, the answer is a value or an error.
    ///
    /// # Errors
    /// [`CodecError::Unsupported`], or what the codec says.
    fn decode(serialize: SerializeType, payload: Bytes) -> Result<Self, CodecError>;
}

/// Why a value did not become bytes, or bytes not a value.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The type cannot travel in this serialize type.
    #[error("{type_name} cannot travel as {serialize}; it can as {can}")]
    Unsupported {
        /// The Rust type.
        type_name: &'static str,
        /// What was asked for.
        serialize: SerializeType,
        /// What it can travel as, for people.
        can: &'static str,
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
}
