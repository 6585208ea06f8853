//! A front over real sockets: what it answers, and what a hostile client cannot do to it.

#[cfg(feature = "admin")]
mod admin;
mod events;
mod gateway;
mod health;
mod hostile;
mod jsonrpc;
mod mounted;
#[cfg(feature = "port")]
mod one_port;
mod rpc;
mod support;
