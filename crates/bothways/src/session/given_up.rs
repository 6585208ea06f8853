//! Calls that were sent to a client, and that their callers gave up: where a Cancel may have been lost with its connection,
//! the client is told once more when it comes back.

use std::collections::VecDeque;

use tokio::time::Instant;

/// Calls of one session that are remembered so: of more the oldest are forgotten, and end by their deadlines.
const CALLS_MAX: usize = 32;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct GivenUp {
    /// By id, with the end of their time: a client ends by itself what is older.
    calls: VecDeque<(u64, Instant)>,
}

impl GivenUp {
    pub(super) fn note(&mut self, id: u64, until: Instant) {
        let now = Instant::now();
        self.calls.retain(|(_, until)| now < *until);
        if CALLS_MAX <= self.calls.len() {
            self.calls.pop_front();
        }
        self.calls.push_back((id, until));
    }

    /// Those that may still run, and for how many milliseconds.
    #[cfg(feature = "cluster")]
    pub(super) fn left(&self) -> Vec<(u64, u64)> {
        let left = |until: &Instant| until.saturating_duration_since(Instant::now()).as_millis() as u64;
        self.calls.iter().map(|(id, until)| (*id, left(until))).filter(|(_, left)| 0 < *left).collect()
    }

    /// Those that may still run.
    pub(super) fn ids(&self) -> Vec<u64> {
        let now = Instant::now();
        self.calls.iter().filter(|(_, until)| now < *until).map(|(id, _)| *id).collect()
    }
}

/// The id of a call as the wire has it.
pub(super) fn text(id: u64) -> String {
    format!("{id:016x}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// However many are given up, few are remembered, the newest, and none beyond its time.
    #[tokio::test(start_paused = true)]
    async fn the_newest_are_remembered_for_their_time() {
        let mut given_up = GivenUp::default();
        let until = Instant::now() + Duration::from_secs(30);
        (0..100).for_each(|id| given_up.note(id, until));
        assert_eq!(given_up.ids(), (68..100).collect::<Vec<_>>());
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!(given_up.ids(), [0; 0]);
        given_up.note(7, until);
        assert_eq!(given_up.calls.len(), 1, "the others are gone");
    }
}
