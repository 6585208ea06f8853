//! TLS by rustls, with the ring provider; versions 1.2 and 1.3.
//!
//! [`TlsServer`] and [`TlsClient`] are what the options of listening and connecting take. On the wire it
//! is plain TLS round TCP, without ALPN, as rpcx has it. The `handshake` methods of both put TLS on any
//! other [`Socket`](super::Socket).

mod config;
mod socket;

#[cfg(test)]
pub(super) use self::config::tests::Authority;
#[cfg(test)]
pub(crate) use self::socket::tests::{half_sent, pair as socket_pair};
pub use self::{
    config::{TlsClient, TlsError, TlsIdentity, TlsRoots, TlsServer},
    socket::TlsSocket,
};
/// The rustls of this build, whose types the configurations can be made of.
pub use rustls;
