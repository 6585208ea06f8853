//! RPC in which a server calls its clients as easily as clients call the server.

pub mod caller;
pub mod codec;
pub mod connection;
pub mod error;
pub mod handler;
pub mod layer;
pub mod router;
pub mod transport;

pub use self::{
    caller::{CallOptions, Caller, Response},
    codec::Payload,
    connection::Connection,
    error::{CallError, CloseReason, ConnectError, ErrorCode, PushError, ServeError},
    handler::{Context, Handler, Reply, Request},
    router::{Router, Service},
};
pub use bothways_proto::{Limits, Metadata, SerializeType};
