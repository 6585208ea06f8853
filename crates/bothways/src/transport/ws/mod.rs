//! WebSocket (RFC 6455) over any other socket, with framing of its own.
//!
//! The bytes are a stream in both directions, as those of TCP: where a message of WebSocket ends means nothing, and text
//! and binary messages are the same. Go's rpcx sends bytes of any kind in text messages, which no WebSocket library takes.
//!
//! | file | what it does |
//! |---|---|
//! | `frame.rs` | headers of frames, and what comes in: in place, without a buffer |
//! | `out.rs` | what goes out: at a server one gathered write, at a client a masked copy |
//! | `socket.rs` | [`WsSocket`] |
//! | `upgrade.rs` | the HTTP before it, at both ends |
//! | `origins.rs` | from which web pages a server takes connections |

mod frame;
mod origins;
mod out;
#[cfg(test)]
mod rfc;
mod socket;
mod upgrade;

pub(super) use self::upgrade::{PATH, Refusal, answer_to, ask};
pub use self::{origins::WsOrigins, socket::WsSocket, upgrade::accept_key};
