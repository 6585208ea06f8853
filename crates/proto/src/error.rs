//! Errors of decoding, of encoding, and of a peer that breaks the protocol.

use std::{error::Error, fmt};

use crate::{CompressType, Seq};

/// Why bytes from a peer are not a frame, or a payload cannot be unpacked.
///
/// An error of [`Deframer`](crate::Deframer) or [`Message::parse`](crate::Message::parse) ends the
/// connection: where the next frame begins is no longer known. [`Self::MetadataTooLarge`] costs that
/// frame only, of which the end is known, and so does [`Self::TooLarge`] up to
/// [`Limits::passed_over_bytes`](crate::Limits::passed_over_bytes). [`Self::UnknownCompression`],
/// [`Self::Gzip`] and [`Self::DecompressedTooLarge`] come from
/// [`Message::payload`](crate::Message::payload) and cost that one message.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum DecodeError {
    /// The first byte of a frame is not 8: the peer does not speak rpcx, or a byte was lost.
    WrongMagic {
        /// The byte that stood there.
        found: u8,
    },
    /// The prefix announces a body beyond [`Limits::body_bytes_max`](crate::Limits::body_bytes_max).
    TooLarge {
        /// The announced bytes.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The prefix announces a body beyond the smaller bound for peers that have shown no token that was accepted.
    TooLargeUnauthenticated {
        /// The announced bytes.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// A length inside the frame points beyond its end, or the frame ends before a length.
    Truncated {
        /// The part that did not fit.
        part: &'static str,
        /// The bytes of the body.
        body_len: usize,
    },
    /// The frame was cut in the wrong place: its prefix says another length. Only
    /// [`Message::parse`](crate::Message::parse) can see this; a [`Deframer`](crate::Deframer) cuts by the prefix.
    BodyLength {
        /// What the prefix says.
        stated: usize,
        /// What follows the prefix.
        actual: usize,
    },
    /// The payload length is not what is left of the body. Go ignores the field.
    PayloadLength {
        /// What the field says.
        stated: usize,
        /// What is left of the body.
        actual: usize,
    },
    /// Service path or method is not UTF-8.
    NotUtf8 {
        /// Which of the two.
        part: &'static str,
    },
    /// The metadata block is not a sequence of keys and values.
    Metadata {
        /// The bytes of the block.
        len: usize,
    },
    /// The metadata block is beyond `metadata_bytes_max` or `metadata_pairs_max`.
    MetadataTooLarge {
        /// What was found.
        found: usize,
        /// The limit.
        max: usize,
        /// `bytes` or `pairs`.
        unit: &'static str,
    },
    /// The payload has a compress type that nobody here knows.
    UnknownCompression(CompressType),
    /// The payload is not valid gzip.
    Gzip(String),
    /// The payload unpacks to more than `decompressed_bytes_max`.
    DecompressedTooLarge {
        /// The limit.
        max: usize,
    },
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WrongMagic { found } => {
                write!(f, "the frame begins with byte {found:#04x} instead of 0x08: {}", speaks(*found))
            }
            Self::TooLarge { len, max } => {
                write!(f, "the frame announces a body of {len} bytes; the limit `body_bytes_max` is {max}")
            }
            Self::TooLargeUnauthenticated { len, max } => write!(
                f,
                "the frame announces a body of {len} bytes; until a token was accepted the limit \
                 `unauthenticated_body_bytes_max` is {max}"
            ),
            Self::Truncated { part, body_len } => write!(f, "the frame of {body_len} bytes ends within its {part}"),
            Self::BodyLength { stated, actual } => {
                write!(f, "the prefix says {stated} bytes of body, the frame holds {actual}")
            }
            Self::PayloadLength { stated, actual } => {
                write!(f, "the payload length says {stated} bytes, the frame holds {actual}")
            }
            Self::NotUtf8 { part } => write!(f, "the {part} is not UTF-8"),
            Self::Metadata { len } => write!(f, "the metadata block of {len} bytes ends within a key or a value"),
            Self::MetadataTooLarge { found, max, unit } => {
                write!(f, "the metadata holds {found} {unit}; the limit `metadata_{unit}_max` is {max}")
            }
            Self::UnknownCompression(kind) => {
                write!(f, "the payload has compress type {}, known are 0 (none) and 1 (gzip)", kind.get())
            }
            Self::Gzip(error) => write!(f, "the payload is not valid gzip: {error}"),
            Self::DecompressedTooLarge { max } => {
                write!(f, "the payload unpacks to more than the limit `decompressed_bytes_max` of {max} bytes")
            }
        }
    }
}

impl Error for DecodeError {}

/// What a peer speaks that begins like that.
fn speaks(first: u8) -> &'static str {
    match first {
        0x14..=0x17 => "the peer speaks TLS, and this side does not",
        b'H' => "the peer speaks HTTP, or answers in it",
        b'A'..=b'Z' => "the peer speaks HTTP or another protocol of text, not rpcx",
        _ => "the peer does not speak rpcx",
    }
}

/// Why a message of ours cannot become a frame. Nothing was sent.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum EncodeError {
    /// The frame would be beyond [`Limits::body_bytes_max`](crate::Limits::body_bytes_max).
    TooLarge {
        /// The bytes of the body.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The metadata is beyond `metadata_bytes_max` or `metadata_pairs_max`: a peer with the same
    /// limits would close the connection.
    MetadataTooLarge {
        /// What was found.
        found: usize,
        /// The limit.
        max: usize,
        /// `bytes` or `pairs`.
        unit: &'static str,
    },
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { len, max } => {
                write!(f, "the message takes {len} bytes; the limit `body_bytes_max` is {max}")
            }
            Self::MetadataTooLarge { found, max, unit } => {
                write!(f, "the metadata holds {found} {unit}; the limit `metadata_{unit}_max` is {max}")
            }
        }?;
        f.write_str(": send less, or raise it on both sides")
    }
}

impl Error for EncodeError {}

/// [`Limits::calls_pending_max`](crate::Limits::calls_pending_max) calls wait for a reply already; nothing was sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TooManyCalls {
    /// The limit.
    pub max: usize,
}

impl fmt::Display for TooManyCalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} calls wait for a reply on this connection already (`calls_pending_max`)", self.max)
    }
}

impl Error for TooManyCalls {}

/// A well-formed frame that this peer must not send. The connection ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum PeerMisbehaved {
    /// A client sent a response to a call without having negotiated calls, or to a heartbeat without
    /// having negotiated those. A Go server would run it as a request.
    ReplyFromPlainClient(Seq),
    /// A server that did not negotiate sent a request that wants a reply.
    CallFromPlainServer(Seq),
    /// A server that did not negotiate sent a heartbeat request.
    PingFromPlainServer(Seq),
    /// A client acknowledged a push that it was never sent, or in a form that is none.
    FalseAck,
    /// A server sent a tracked push under an offset beyond the next one: what lies between is lost.
    FalseOffset {
        /// The offset of the push.
        sent: u64,
        /// The next one of its session.
        expected: u64,
    },
    /// A second Hello, or one that is not the first frame.
    LateHello,
    /// A heartbeat of more than [`HEARTBEAT_BYTES_MAX`](crate::HEARTBEAT_BYTES_MAX) bytes. Each is answered with as
    /// many.
    LargeHeartbeat(usize),
}

impl fmt::Display for PeerMisbehaved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReplyFromPlainClient(seq) => {
                write!(f, "the client sent a response (number {seq}), but calls to clients were not negotiated")
            }
            Self::CallFromPlainServer(seq) => {
                write!(f, "the server sent a call (number {seq}), but calls to clients were not negotiated")
            }
            Self::PingFromPlainServer(seq) => {
                write!(f, "the server sent a heartbeat request (number {seq}), but these were not negotiated")
            }
            Self::FalseAck => f.write_str("the client acknowledged what it was never sent"),
            Self::FalseOffset { sent, expected } => {
                write!(f, "the server sent offset {sent} where {expected} comes next")
            }
            Self::LateHello => f.write_str("the client sent a Hello that is not its first frame"),
            Self::LargeHeartbeat(bytes) => {
                write!(f, "the peer sent a heartbeat of {bytes} bytes; at most 4096 are allowed")
            }
        }
    }
}

impl Error for PeerMisbehaved {}
