//! For tests: a connection whose peer is the test itself.

use std::sync::Arc;

use bothways_proto::{Capabilities, Hello, Message, Metadata, Role, VERSION};

use super::{Answer, Connection, ConnectionHandler, Settings};
use crate::{
    error::{AuthError, CloseReason},
    reply::BoxFuture,
    transport::memory::{self, MemorySocket},
};

/// Handles nothing.
pub(crate) struct Deaf;

impl ConnectionHandler for Deaf {
    fn handle_request(&self, _: &Connection, _: Message) -> Answer {
        Answer::Nothing
    }

    fn handle_hello(&self, _: &Connection, _: Metadata) -> BoxFuture<Result<(), AuthError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn handle_closed(&self, _: &Connection, _: &CloseReason) {}
}

/// One that does not negotiate. It lives as long as the socket of the other end.
pub(crate) fn alone(role: Role) -> (Connection, MemorySocket) {
    let (near, far) = memory::pair(1 << 16);
    let settings = Arc::new(Settings::default());
    (Connection::start(role, near.into(), settings, Arc::new(Deaf), None, |_| {}), far)
}

/// A plain client that has asked for a session, and has it.
pub(crate) fn enable(connection: &Connection) {
    let mut state = connection.shared.state.lock();
    state.proto.on_passed_over();
    assert!(state.proto.on_enable());
    state.proto.on_enabled();
}

/// A client that has been let in, and can so much.
pub(crate) fn negotiate(connection: &Connection, capabilities: Capabilities) {
    let hello = Hello { version: VERSION, capabilities };
    let mut state = connection.shared.state.lock();
    state.proto.on_hello_accepted(&hello, capabilities);
    state.proto.on_welcome_sent();
}
