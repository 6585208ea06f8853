//! How bytes move: listen, connect, a socket.
//!
//! An [`Address`] is `network@address`, as in rpcx; without `@` the network is `tcp`. The [`Transport`] of its network
//! turns one into an [`AnySocket`]. `tcp`, `tls`, `ws`, `wss`, `http`, `unix` and `memory` are built in; an application adds its own by
//! [`ClientOptions::transport`](crate::ClientOptions::transport) and
//! [`ServerBuilder::transport`](crate::ServerBuilder::transport). A [`Socket`] of another kind is an [`AnySocket`] as
//! [`AnySocket::Other`], and any stream of tokio's by [`AnySocket::from_async`].
//! A socket that somebody else bound is a [`BoundListener`], for
//! [`Server::listen_on`](crate::Server::listen_on).
//! [`Server::take`](crate::Server::take) and [`Client::over`](crate::Client::over) speak over what is brought so.
//!
//! ```text
//!  Address ──► Transport::connect ──────────────────────────────────────┐
//!  Address ──► Transport::bind ──► Listen ──► Accepted ──(handshake)──┴──► AnySocket: Socket
//! ```

mod accept;
mod address;
mod any;
mod bound;
#[cfg(test)]
mod check;
mod connect;
#[cfg(feature = "ws")]
mod front;
#[cfg(feature = "ws")]
mod head;
mod listener;
pub mod memory;
#[cfg(feature = "ws")]
mod opening;
mod options;
mod os;
mod peer;
mod socket;
mod stream;
pub mod tcp;
#[cfg(feature = "tls")]
pub mod tls;
mod transports;
#[cfg(unix)]
pub mod unix;
#[cfg(feature = "ws")]
pub mod ws;

#[cfg(feature = "ws")]
pub use self::front::{HttpFront, HttpStream};
pub use self::{
    address::Address,
    any::AnySocket,
    bound::BoundListener,
    connect::connect,
    listener::{Accepted, Listener},
    options::{ConnectOptions, ListenOptions, TcpOptions},
    os::OsSocket,
    socket::Socket,
    stream::FromAsync,
    transports::{Listen, Transport},
};
pub(crate) use self::{
    listener::{Closable, Listeners, Opened},
    transports::Transports,
};
pub use crate::reply::BoxFuture;
