//! How many calls may be tried again though servers are overloaded.

use std::sync::atomic::{AtomicBool, Ordering};

use bothways_proto::{Rate, TokenBucket};
use parking_lot::Mutex;
use tokio::time::Instant;

/// Tries that come back in a second, so that a client whose calls all fail tries again at last.
const BACK_PER_SECOND: u32 = 10;

/// See [`XClientOptions::retry_budget`](super::XClientOptions::retry_budget).
pub(super) struct RetryBudget {
    max: u32,
    /// Nothing was spent: calls that succeed need not look further.
    is_full: AtomicBool,
    began: Instant,
    left: Mutex<TokenBucket>,
}

impl RetryBudget {
    pub(super) fn new(max: u32) -> Self {
        let left = TokenBucket::new(Rate::per_second(BACK_PER_SECOND).burst(max));
        Self { max, is_full: true.into(), began: Instant::now(), left: left.into() }
    }

    /// One more try. False: none is left.
    pub(super) fn spend(&self) -> bool {
        // A bucket holds one token at least, and none is without a bound.
        if matches!(self.max, 0 | u32::MAX) {
            return self.max != 0;
        }
        let is_left = self.left.lock().take(self.began.elapsed(), 1).is_ok();
        if is_left {
            self.is_full.store(false, Ordering::Release);
        }
        is_left
    }

    /// A call has succeeded.
    pub(super) fn note_success(&self) {
        if !self.is_full.load(Ordering::Acquire) {
            let is_full = self.left.lock().put_back(1);
            self.is_full.store(is_full, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// One try comes back in this time.
    const COMES_BACK: Duration = Duration::from_millis(1000 / BACK_PER_SECOND as u64);

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
