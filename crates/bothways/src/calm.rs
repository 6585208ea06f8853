//! Lines of the log that a peer can bring about: told at once, and then at most once in a while, with how many were
//! left out. So refusals are seen, and a flood of them fills no disk.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The least time between two lines of one kind.
pub(crate) const PAUSE: Duration = Duration::from_secs(10);

/// One kind of line.
#[derive(Debug, Default)]
pub(crate) struct Calm {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    told: Option<Instant>,
    left_out: u64,
}

impl Calm {
    /// Something happened. `Some`: tell it, and that so many before it were left out.
    pub(crate) fn due(&self) -> Option<u64> {
        let now = Instant::now();
        let mut state = self.state.lock();
        if state.told.is_some_and(|told| now.saturating_duration_since(told) < PAUSE) {
            state.left_out = state.left_out.saturating_add(1);
            return None;
        }
        state.told = Some(now);
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first is told, then one each ten seconds, with how many were not.
    #[tokio::test(start_paused = true)]
    async fn a_flood_is_a_line_each_ten_seconds() {
        let calm = Calm::default();
        assert_eq!(calm.due(), Some(0));
        assert_eq!((0..1000).filter_map(|_| calm.due()).count(), 0);
        tokio::time::advance(PAUSE - Duration::from_millis(1)).await;
        assert_eq!(calm.due(), None);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!((calm.due(), calm.due()), (Some(1001), None));
    }
}
