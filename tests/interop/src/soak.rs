//! The reports of the two ends of a soak.

use serde::{Deserialize, Serialize};

/// What the server says.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[allow(missing_docs)]
pub struct Pushed {
    pub pushed: u64,
    /// Of which the clients said that they handled them.
    pub handled: u64,
    pub resumes: u64,
    pub connections: u64,
}

impl Pushed {
    /// What another session got is added.
    pub fn add(&mut self, other: &Self) {
        self.pushed += other.pushed;
        self.handled += other.handled;
        self.resumes += other.resumes;
    }
}

/// What the clients say.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Received {
    pub received: u64,
    /// Numbers that did not come before the next one did.
    pub skipped: u64,
    /// Numbers that came when they, or a later one, had come already.
    pub repeated_or_late: u64,
    /// Messages that the server or the client said it dropped.
    pub gaps: u64,
    pub sessions_lost: u64,
    /// Connections that the clients lost.
    pub cuts: u64,
}

impl Received {
    /// What another client got is added.
    pub fn add(&mut self, other: &Self) {
        self.received += other.received;
        self.skipped += other.skipped;
        self.repeated_or_late += other.repeated_or_late;
        self.gaps += other.gaps;
        self.sessions_lost += other.sessions_lost;
        self.cuts += other.cuts;
    }
}
