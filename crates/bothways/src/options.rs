//! Options that servers and clients have in common: the bound of a queue, and the heartbeat.

use std::time::Duration;

/// Most messages, and most bytes of them, that wait in one queue. A bound that is not given keeps the default of the
/// queue it is for.
///
/// ```
/// use bothways::{QueueBound, SessionOptions};
///
/// let options = SessionOptions::new().fire_queue(QueueBound::messages(64).bytes(64 << 10));
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[cfg_attr(feature = "config", derive(serde::Deserialize), serde(default, deny_unknown_fields))]
#[must_use]
pub struct QueueBound {
    messages: Option<usize>,
    bytes: Option<usize>,
}

impl QueueBound {
    /// At most so many messages.
    pub const fn messages(messages: usize) -> Self {
        Self { messages: Some(messages), bytes: None }
    }

    /// At most so many bytes.
    pub const fn bytes(self, bytes: usize) -> Self {
        Self { bytes: Some(bytes), ..self }
    }

    /// These bounds, in place of those of a queue.
    pub(crate) fn set(self, messages: &mut usize, bytes: &mut usize) {
        *messages = self.messages.unwrap_or(*messages);
        *bytes = self.bytes.unwrap_or(*bytes);
    }
}

/// When a silent peer gets a heartbeat, and how long it may take to answer.
///
/// ```
/// use std::time::Duration;
///
/// use bothways::{ClientOptions, Heartbeat};
///
/// let often = Heartbeat::every(Duration::from_secs(5)).timeout(Duration::from_secs(2));
/// let options = ClientOptions::new().heartbeat(often);
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub struct Heartbeat {
    pub(crate) interval: Option<Duration>,
    pub(crate) timeout: Duration,
}

impl Heartbeat {
    /// After so much silence. Default 15 s.
    pub const fn every(interval: Duration) -> Self {
        Self { interval: Some(interval), timeout: Duration::from_secs(10) }
    }

    /// Never.
    pub const fn never() -> Self {
        Self { interval: None, timeout: Duration::from_secs(10) }
    }

    /// How long the peer may take to answer. Default 10 s. Zero ends a silent connection at the next look, within a
    /// second.
    pub const fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self::every(Duration::from_secs(15))
    }
}
