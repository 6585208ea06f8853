//! Accepting connections goes on after errors, with pauses.

use std::{io, time::Duration};

use crate::{
    calm::{Calm, tell},
    clock::backoff,
};

/// The first pause after a failure. Each further failure doubles it.
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// The longest pause: a server that ran out of file descriptors is back a second after it has some.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The failures of one attempt to accept, and the pauses between its tries.
#[derive(Debug)]
pub(super) struct Failures {
    in_a_row: u32,
}

impl Failures {
    pub(super) fn none() -> Self {
        Self { in_a_row: 0 }
    }

    /// Waits before the next try. A connection that broke off before it was accepted costs no pause;
    /// any other failure, such as no file descriptor left, costs one that grows while failures go on.
    pub(super) async fn pause_after(&mut self, error: io::Error, address: &str) {
        if is_of_one_connection(&error) {
            tracing::debug!(address, %error, "a connection broke off before it was accepted");
            return;
        }
        let pause = backoff(PAUSE_MIN, PAUSE_MAX, self.in_a_row, 1.0);
        self.in_a_row = self.in_a_row.saturating_add(1);
        static TOLD: Calm = Calm::new(1);
        tell!(TOLD, warn, address, %error, ?pause, "cannot accept, trying again");
        tokio::time::sleep(pause).await;
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    async fn pauses(failures: u32, kind: io::ErrorKind) -> Duration {
        let start = Instant::now();
        let mut seen = Failures::none();
        for _ in 0..failures {
            seen.pause_after(kind.into(), "tcp@test").await;
        }
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_from_5_ms_to_1_s() {
        assert_eq!(pauses(1, io::ErrorKind::Other).await.as_millis(), 5);
        assert_eq!(pauses(3, io::ErrorKind::Other).await.as_millis(), 5 + 10 + 20);
        let doubling: u128 = (0..8).map(|n| 5 << n).sum();
        assert_eq!(pauses(10, io::ErrorKind::Other).await.as_millis(), doubling + 2000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_broke_off_costs_no_pause() {
        assert!(pauses(1000, io::ErrorKind::ConnectionAborted).await.is_zero());
    }
}
