//! How long nothing has come on a connection whose client may still send.

use std::time::Duration;

use tokio::time::Instant;

use crate::connection::Connection;

/// See the module.
pub(super) struct Silence {
    reads: u16,
    since: Instant,
}

impl Silence {
    /// Something has come just now.
    pub(super) fn begin(connection: &Connection) -> Self {
        Self { reads: connection.reads(), since: Instant::now() }
    }

    /// For how long it has lasted. Asked often enough, it misses no read.
    pub(super) fn lasts(&mut self, connection: &Connection) -> Duration {
        if self.reads != connection.reads() {
            *self = Self::begin(connection);
        }
        self.since.elapsed()
    }
}
