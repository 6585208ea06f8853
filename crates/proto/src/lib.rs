//! The wire format of Go's rpcx and the state of one two-way connection, without I/O.
//!
//! ```text
//!   bytes from a socket                               bytes for a socket
//!          │                                                  ▲
//!   decode.rs   Deframer: bounds first, then slices    encode.rs   parts → one frame
//!          │ Message                                          │
//!   connection.rs  Connection: whose reply is it, what may this peer send, what is a push
//!          │ Inbound                                          │
//!          ▼                                                  │
//!   (the crate `bothways` moves the bytes, keeps the time and runs the handlers)
//! ```
//!
//! Nothing here opens a socket, reads a clock, draws a random number or starts a task: bytes,
//! messages and the time are arguments, so that tests and fuzzers own all four. Each bound a peer
//! can run into is a field of [`Limits`].
//!
//! The facts of the wire come from Go rpcx v1.9.4, `protocol/message.go` and `client/client.go`;
//! where this crate is stricter, `docs/go-differences.md` says so and names the test.

mod calls;
mod connection;
mod decode;
mod encode;
mod error;
mod greeting;
mod header;
mod keepalive;
mod limits;
mod message;
mod metadata;
mod names;
mod negotiation;
mod place;
mod rate;
mod seq;
mod text;

#[cfg(feature = "gzip")]
mod compress;

#[cfg(feature = "gzip")]
pub use self::compress::{gunzip, gzip};
pub use self::{
    calls::Calls,
    connection::{Connection, HEARTBEAT_BYTES_MAX, Inbound, Role},
    decode::{Deframer, frame_len},
    encode::{FrameParts, frame},
    error::{DecodeError, EncodeError, PeerMisbehaved, TooManyCalls},
    greeting::Greeting,
    header::{CompressType, HEADER_LEN, Header, MAGIC, MessageKind, PREFIX_LEN, SerializeType, Status},
    keepalive::{Keepalive, KeepaliveAction},
    limits::Limits,
    message::Message,
    metadata::{Metadata, MetadataError, Pairs, keys},
    names::Names,
    negotiation::{Capabilities, Hello, VERSION, Welcome},
    place::{Buffers, Fresh},
    rate::{Rate, TokenBucket},
    seq::Seq,
    text::{OneLine, one_line, steers},
};
