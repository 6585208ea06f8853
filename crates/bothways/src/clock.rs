//! Durations added to clocks: any of them, up to the longest there is.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{runtime::Handle, time::Instant};

/// What is longer is as long as this, thirty years: a clock can count it, and nobody waits to see the difference.
pub(crate) const FOR_EVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// The moment that long from now.
pub(crate) fn after(wait: Duration) -> Instant {
    later(Instant::now(), wait)
}

/// The moment that long after another.
pub(crate) fn later(moment: Instant, wait: Duration) -> Instant {
    moment + wait.min(FOR_EVER)
}

/// Polls a future that may wait for timers, also on a thread without a runtime: with this one's clock.
pub(crate) struct Clocked<'a, F> {
    runtime: &'a Handle,
    future: F,
}

/// See [`Clocked`].
pub(crate) fn clocked<F: Future + Unpin>(runtime: &Handle, future: F) -> Clocked<'_, F> {
    Clocked { runtime, future }
}

impl<F: Future + Unpin> Future for Clocked<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let _entered = is_outside().then(|| self.runtime.enter());
        Pin::new(&mut self.future).poll(cx)
    }
}

/// True on a thread that has no runtime at the moment. Within a task this is one look at the thread's own memory.
pub(crate) fn is_outside() -> bool {
    tokio::task::try_id().is_none() && Handle::try_current().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_duration_may_be_added_to_the_clock() {
        let now = Instant::now();
        for wait in [Duration::ZERO, Duration::from_nanos(1), FOR_EVER, Duration::from_secs(u64::MAX), Duration::MAX] {
            let moment = later(now, wait);
            assert_eq!(moment.duration_since(now), wait.min(FOR_EVER));
            assert!(now <= after(wait));
        }
    }
}
