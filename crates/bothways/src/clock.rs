//! Deadlines from any duration, up to the longest there is, and waits for them on any thread.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use tokio::{
    runtime::{Handle, Id},
    task::JoinHandle,
    time::Instant,
};

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

/// How long to wait before the next try: `first`, doubled with each failure in a row up to `most`, and of that a part,
/// such as [`spread`] draws it.
pub(crate) fn backoff(first: Duration, most: Duration, failures: u32, part: f64) -> Duration {
    first.saturating_mul(1 << failures.min(20)).min(most.min(FOR_EVER)).mul_f64(part)
}

/// A random part of a wait, from `least` to all of it, so that those who wait do not come together.
pub(crate) fn spread(least: f64) -> f64 {
    least + rand::random::<f64>() * (1.0 - least)
}

/// Milliseconds since 1970, by the clock of the system.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
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

/// Awaits a future that may wait for timers, on any thread: where there is no runtime, in a box of its own and with the
/// clock of this one. A macro, for a future that is given to a function lies in that of its caller twice.
macro_rules! anywhere {
    ($runtime:expr, $future:expr) => {
        match $crate::clock::is_outside() {
            false => $future.await,
            true => $crate::clock::clocked($runtime, Box::pin($future)).await,
        }
    };
}
pub(crate) use anywhere;

/// The time is over.
pub(crate) struct Over;

/// As tokio's `timeout_at`, on any thread: where there is no runtime, this one keeps the time.
pub(crate) async fn timeout<F: Future>(
    runtime: impl FnOnce() -> Option<Handle>,
    deadline: Instant,
    future: F,
) -> Result<F::Output, Over> {
    match is_outside() {
        false => tokio::time::timeout_at(deadline, future).await.map_err(|_| Over),
        true => timeout_outside(runtime(), deadline, future).await,
    }
}

/// As tokio's `timeout_at`, on a thread without a runtime: a task of this one keeps the time. If there is none, or it
/// ends, there is no time to wait.
pub(crate) async fn timeout_outside<F: Future>(
    runtime: Option<Handle>,
    deadline: Instant,
    future: F,
) -> Result<F::Output, Over> {
    let (mut future, mut late) = (Box::pin(future), None);
    std::future::poll_fn(move |cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        let Some(runtime) = &runtime else { return Poll::Ready(Err(Over)) };
        let Late(late) =
            late.get_or_insert_with(|| Late(runtime.spawn(async move { tokio::time::sleep_until(deadline).await })));
        Pin::new(late).poll(cx).map(|_| Err(Over))
    })
    .await
}

/// A task that keeps the time of one that waits elsewhere.
struct Late(JoinHandle<()>);

impl Drop for Late {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runtimes that are there, and may keep the time of those who wait elsewhere.
#[derive(Debug, Default)]
pub(crate) struct Runtimes(Mutex<Vec<Handle>>);

impl Runtimes {
    /// False: it is there already.
    pub(crate) fn add(&self, runtime: Handle) -> bool {
        let mut runtimes = self.0.lock();
        let is_new = runtimes.iter().all(|known| known.id() != runtime.id());
        if is_new {
            runtimes.push(runtime);
        }
        is_new
    }

    /// It is gone, and another one may have its number.
    pub(crate) fn remove(&self, runtime: Id) {
        self.0.lock().retain(|known| known.id() != runtime);
    }

    pub(crate) fn any(&self) -> Option<Handle> {
        self.0.lock().first().cloned()
    }

    /// The runtime of this thread, if it is one of these.
    pub(crate) fn here(&self) -> Option<Id> {
        let here = Handle::try_current().ok()?.id();
        self.0.lock().iter().any(|known| known.id() == here).then_some(here)
    }

    /// Where a task goes that this thread begins: its own runtime if that is one of these, otherwise another of them, as
    /// its own may end at any moment. If there are none, its own all the same. `None`: it has no runtime.
    pub(crate) fn near(&self) -> Option<Handle> {
        let here = Handle::try_current().ok()?;
        let runtimes = self.0.lock();
        let is_known = runtimes.iter().any(|known| known.id() == here.id());
        let other = if is_known { None } else { runtimes.first().cloned() };
        Some(other.unwrap_or(here))
    }
}

/// True on a thread that has no runtime at the moment. Within a task this is one look at the thread's own memory.
pub(crate) fn is_outside() -> bool {
    tokio::task::try_id().is_none() && Handle::try_current().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a thread without a runtime the time is kept by another's; without that one there is none.
    #[test]
    fn a_time_limit_outside_needs_a_runtime_somewhere() {
        use std::{future::ready, task::Waker};
        let mut cx = Context::from_waker(Waker::noop());
        let long = Instant::now() + FOR_EVER;
        let at_once = std::pin::pin!(timeout_outside(None, long, ready(7)));
        assert!(matches!(at_once.poll(&mut cx), Poll::Ready(Ok(7))));
        let never = std::pin::pin!(timeout_outside(None, long, std::future::pending::<()>()));
        assert!(matches!(never.poll(&mut cx), Poll::Ready(Err(Over))));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let handle = Some(runtime.handle().clone());
        let mut waits = std::pin::pin!(timeout_outside(handle, long, std::future::pending::<()>()));
        assert!(waits.as_mut().poll(&mut cx).is_pending());
        drop(runtime);
        assert!(matches!(waits.as_mut().poll(&mut cx), Poll::Ready(Err(Over))), "its runtime is gone");
    }

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
