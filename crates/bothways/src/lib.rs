//! RPC in which a server calls its clients as easily as clients call the server.
//!
//! On the wire it is Go's rpcx: Go services and clients work with it unchanged, in both directions.
//!
//! | to | begin at |
//! |---|---|
//! | offer services | [`Server::builder`], [`service`](macro@service) |
//! | call one server | [`Client::connect`]; many: `XClient` |
//! | hear what a server sends unasked | [`Client::bidirectional`], or typed: [`Client::with_handlers`] |
//! | send to a client unasked | [`Context::connection`], [`Connection::send_message`], [`Server::broadcast`] |
//! | call a client and get its answer | a generated stub over its [`Connection`]: it is a [`Caller`] |
//! | publish, and let clients subscribe | [`Server::publish`], [`Client::subscribe`], [`session::TopicOptions`] |
//! | know what a failed call may have done | [`CallError::is_safe_to_retry`] |
//! | bound what peers can cost | [`Limits`], [`ServerBuilder`], [`ClientOptions`] |
//!
//! # Features
//!
//! `macros`, `json` and `tls` are on by default; `protobuf`, `thrift`, `config` and `testing` are not. A feature adds
//! to what is there and changes nothing.
//!
//! # What the log says
//!
//! Through `tracing`: the life of a server and of a client at level info (listening, stopping, a session that was
//! ended, expired or resumed; connected, lost, connected again), refusals as warnings, at most one of a kind in ten
//! seconds, and single connections at level debug. [`layer::trace`] puts what a handler logs into the span of its
//! request. What peers say is on one line, and no secret is shown.
//!
//! # Names that belong to the framework
//!
//! Metadata keys that begin with `_bw.`, and the service path `_bothways`. Every way to send refuses them
//! ([`PushError::ReservedMetadata`], [`CallError::ReservedMetadata`]), and replies leave such pairs out. Who hands on
//! a peer's pairs takes [`Metadata::without_reserved`]: it leaves out the caller's token and deadline too, `__AUTH` and
//! `__ServerTimeout`, which no way to send to a client takes.
//!
//! # What dropping a future leaves behind
//!
//! A call's future gives the call up: its place in the table of pending calls is free at once, its late
//! reply is dropped, and a peer that understands it is told to drop the handler. A stream's `next` loses
//! nothing. A push that waits for room sends nothing. Everything else says so where it differs.

pub mod caller;
mod calm;
pub mod client;
mod clock;
pub mod codec;
#[cfg(feature = "config")]
mod config;
pub mod connection;
pub mod discovery;
pub mod error;
mod guard;
pub mod handler;
mod in_turn;
pub mod layer;
pub mod options;
mod packing;
mod peer;
mod reply;
pub mod router;
pub mod server;
pub mod session;
mod shrink;
#[cfg(feature = "testing")]
pub mod testing;
pub mod transport;
pub mod xclient;

pub use self::{
    caller::{CallOptions, Caller, Response},
    client::{
        Client, ClientOptions, ConnectionEvent, ConnectionEvents, Reconnect, ServerMessage, ServerMessages,
        SessionLost, Token,
    },
    codec::{Encode, Payload},
    connection::{Connection, Overflow, Sent},
    discovery::{Discovery, MultipleServersDiscovery, Peer2PeerDiscovery, ServerEntry},
    error::{AuthError, CallError, CloseReason, ConnectError, ErrorCode, PushError, ReservedName, ServeError},
    handler::{Context, Handler, Reply, Request},
    options::{Heartbeat, QueueBound},
    router::{Router, Service},
    server::{
        AdmissionOptions, OutgoingOptions, Server, ServerBuilder, ServerLimits, ServerOptions, SessionOptions,
        Timeouts, WeakServer,
    },
    session::{CallPolicy, Class, Explanation, Priority, Push, Receipt, Session, Stage, Target, User},
    xclient::{FailMode, SelectMode, Selector, XClient, XClientOptions},
};
#[cfg(feature = "macros")]
pub use bothways_macros::{message, service};
pub use bothways_proto::{CompressType, Limits, Metadata, Rate, SerializeType};

/// For what the macros generate. Not for use.
#[doc(hidden)]
#[cfg(feature = "macros")]
pub mod __private {
    pub use serde;

    pub use crate::codec::go;

    /// Whether the format is a text, which says so itself.
    pub fn is_text(says_so: bool) -> bool {
        crate::codec::is_text(says_so)
    }

    /// The default of an array of bytes of any length.
    pub fn zeros<const N: usize>() -> [u8; N] {
        [0; N]
    }
}

/// The code of the README, so that it compiles.
#[cfg(all(doctest, feature = "macros"))]
#[doc = include_str!("../README.md")]
struct Readme;
