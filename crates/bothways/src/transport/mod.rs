//! How bytes move: listen, connect, a socket.
//!
//! An [`Address`] is `network@address`, as in rpcx; without `@` the network is `tcp`. [`connect`] and
//! [`Listener`] turn one into an [`AnySocket`]; a [`Socket`] of another kind is one as
//! [`AnySocket::Other`], and any stream of tokio's by [`AnySocket::from_async`].
//! A socket that somebody else bound is a [`BoundListener`], for
//! [`Server::listen_on`](crate::Server::listen_on).
//! [`Server::take`](crate::Server::take) and [`Client::over`](crate::Client::over) speak over what is brought so.
//!
//! ```text
//!  Address ──► connect ─────────────────────────────┐
//!  Address ──► Listener ──► Accepted ──(handshake)──┴──► AnySocket: Socket
//! ```

mod accept;
mod address;
mod any;
mod bound;
#[cfg(test)]
mod check;
mod connect;
mod listener;
pub mod memory;
mod options;
mod peer;
mod socket;
mod stream;
pub mod tcp;
#[cfg(feature = "tls")]
pub mod tls;
#[cfg(unix)]
pub mod unix;

pub(crate) use self::listener::{Closable, Listeners};
pub use self::{
    address::{Address, Network},
    any::AnySocket,
    bound::BoundListener,
    connect::connect,
    listener::{Accepted, Listener},
    options::{ConnectOptions, ListenOptions},
    socket::Socket,
    stream::FromAsync,
};
