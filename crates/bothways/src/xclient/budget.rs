//! How many calls may be tried again though servers are overloaded.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::clock::later;

/// One try comes back in this time, so that a client whose calls all fail tries again at last.
const COMES_BACK: Duration = Duration::from_millis(100);

/// See [`XClientOptions::retry_budget`](super::XClientOptions::retry_budget).
pub(super) struct RetryBudget {
    max: u32,
    /// Nothing was spent: calls that succeed need not look further.
    is_full: AtomicBool,
    left: Mutex<Left>,
}

struct Left {
    tries: u32,
    /// Counted up to here.
    until: Instant,
}

impl RetryBudget {
    pub(super) fn new(max: u32) -> Self {
        Self { max, is_full: true.into(), left: Mutex::new(Left { tries: max, until: Instant::now() }) }
    }

    /// One more try. False: none is left.
    pub(super) fn spend(&self) -> bool {
        if self.max == u32::MAX {
            return true;
        }
        let (mut left, now) = (self.left.lock(), Instant::now());
        let since = now.saturating_duration_since(left.until);
        let back = u32::try_from(since.as_millis() / COMES_BACK.as_millis()).unwrap_or(u32::MAX);
        left.tries = left.tries.saturating_add(back).min(self.max);
        left.until = if left.tries == self.max { now } else { later(left.until, COMES_BACK.saturating_mul(back)) };
        let Some(tries) = left.tries.checked_sub(1) else { return false };
        left.tries = tries;
        self.is_full.store(false, Ordering::Release);
        true
    }

    /// A call has succeeded.
    pub(super) fn note_success(&self) {
        if self.is_full.load(Ordering::Acquire) {
            return;
        }
        let mut left = self.left.lock();
        left.tries = left.tries.saturating_add(1).min(self.max);
        self.is_full.store(left.tries == self.max, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spend_all(budget: &RetryBudget) -> u32 {
        (0..10_000).map_while(|_| budget.spend().then_some(1)).sum()
    }

    /// What is spent comes back with successes and with time, up to the bound and no further.
    #[tokio::test(start_paused = true)]
    async fn tries_come_back_with_successes_and_time() {
        let budget = RetryBudget::new(3);
        assert_eq!((spend_all(&budget), spend_all(&budget)), (3, 0));
        (0..2).for_each(|_| budget.note_success());
        assert_eq!(spend_all(&budget), 2);
        (0..100).for_each(|_| budget.note_success());
        assert_eq!(spend_all(&budget), 3);

        tokio::time::advance(COMES_BACK * 5 / 2).await;
        assert_eq!(spend_all(&budget), 2);
        tokio::time::advance(COMES_BACK / 2).await;
        assert_eq!(spend_all(&budget), 1, "no part of a time is lost");
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!((spend_all(&budget), spend_all(&budget)), (3, 0));
        assert_eq!((spend_all(&RetryBudget::new(0)), spend_all(&RetryBudget::new(u32::MAX))), (0, 10_000));
    }
}
