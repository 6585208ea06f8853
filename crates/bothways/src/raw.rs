//! The layer below sessions: frames that are encoded once and sent to many connections.
//!
//! A frame is sent at most once, on the current connection. There is no receipt, no history, and
//! nothing waits for a client that is away. [`Server::push`] and [`Server::publish`] have all of
//! that. This layer is for programs that send very much, such as a ticker, and for which only the
//! newest message counts.
//!
//! | you want to | call this |
//! |---|---|
//! | send to every connection | [`broadcast`] |
//! | send several frames to some connections | [`PushFrame::new`], then [`fan_out`] |
//! | gather frames for one connection, and write once | [`queue`], then [`flush`] |
//!
//! Nothing here waits for a client. Each connection has a bounded queue
//! ([`OutgoingOptions::push_queue`](crate::OutgoingOptions::push_queue)), and its
//! [`Overflow`](crate::Overflow) says what happens when that is full.
//!
//! ```
//! use bothways::{Limits, Metadata, Server, raw};
//!
//! let server = Server::builder().build();
//! let limits = Limits::default();
//! let frame = raw::PushFrame::new("Prices", "Tick", &Metadata::new(), b"101.5", &limits)?;
//! for connection in server.connections() {
//!     raw::queue(&connection, &frame)?;
//!     raw::flush(&connection);
//! }
//! # Ok::<(), bothways::PushError>(())
//! ```

use bothways_proto::Metadata;

pub use crate::connection::send::{FanOut, PushFrame, fan_out};
use crate::{
    connection::{Connection, Sent},
    error::PushError,
    server::Server,
};

/// Sends one message to every client of a server. It is encoded once, and no client waits for
/// another. If there is an [auth hook](crate::ServerBuilder::auth), clients that have not passed it
/// yet are left out.
///
/// # Errors
/// [`PushError::TooLarge`] and [`PushError::ReservedMetadata`]: nobody got it.
pub fn broadcast(
    server: &Server,
    service_path: &str,
    service_method: &str,
    metadata: &Metadata,
    payload: &[u8],
) -> Result<FanOut, PushError> {
    let frame = PushFrame::new(service_path, service_method, metadata, payload, server.limits())?;
    Ok(server.broadcast(&frame))
}

/// Queues a frame for one connection. It is written by the next [`flush`], by the connection's own
/// next write, or by [`fan_out`]; without any of these within about a second, at the connection's
/// next tick.
///
/// # Errors
/// As [`Connection::send_message`].
pub fn queue(connection: &Connection, frame: &PushFrame) -> Result<(), PushError> {
    connection.queue(frame)
}

/// Writes what is queued for one connection, as far as the socket takes it without waiting.
pub fn flush(connection: &Connection) -> Sent {
    connection.flush()
}
