//! RPC in which a server calls its clients as easily as clients call the server.

pub mod caller;
pub mod client;
pub mod codec;
pub mod connection;
pub mod error;
pub mod handler;
pub mod layer;
mod reply;
pub mod router;
pub mod server;
pub mod transport;

pub use self::{
    caller::{CallOptions, Caller, Response},
    client::{Client, ClientOptions, ConnectionEvent, ConnectionEvents, ServerMessage, ServerMessages},
    codec::Payload,
    connection::{Connection, Overflow, Sent},
    error::{CallError, CloseReason, ConnectError, ErrorCode, PushError, ServeError},
    handler::{Context, Handler, Reply, Request},
    router::{Router, Service},
    server::{Server, ServerBuilder},
};
#[cfg(feature = "macros")]
pub use bothways_macros::{message, service};
pub use bothways_proto::{Limits, Metadata, SerializeType};

/// For what the macros generate. Not for use.
#[doc(hidden)]
#[cfg(feature = "macros")]
pub mod __private {
    pub use serde;

    /// The default of an array of bytes of any length.
    pub fn zeros<const N: usize>() -> [u8; N] {
        [0; N]
    }
}
