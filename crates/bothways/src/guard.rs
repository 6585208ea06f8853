//! Runs and drops application code, and turns its panics into values.
//!
//! Whatever an application gives us (handlers, hooks, selectors, their futures) is called, polled and dropped
//! through this file where its panic would otherwise end a task of ours. A panic may itself carry something
//! that panics when it is dropped; that is caught too.

use std::{
    any::Any,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
};

use crate::{
    calm::{Calm, Said, tell},
    reply::BoxFuture,
};

/// What a panic said, if it was a text.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Panicked(pub(crate) Option<String>);

impl Panicked {
    fn of(panic: Box<dyn Any + Send>) -> Self {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        // What was thrown is dropped as carefully as anything else; a third panic is not looked at any more.
        if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
            std::mem::forget(again);
        }
        Self(text)
    }

    #[cold]
    fn log(&self, what: &'static str) {
        static TOLD: Calm = Calm::new(1);
        tell!(TOLD, error, what, panic = ?Said(self.text()), "it panicked while it was dropped");
    }

    /// Its text for a log.
    pub(crate) fn text(&self) -> &str {
        self.0.as_deref().unwrap_or("(not a text)")
    }
}

/// Calls code of others.
#[inline(always)]
pub(crate) fn call<T>(code: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(code)).map_err(Panicked::of)
}

/// Drops what may run code of others. A panic is logged, and costs nothing else.
pub(crate) fn drop_of<T>(what: &'static str, value: T) {
    if let Err(panicked) = call(|| drop(value)) {
        panicked.log(what);
    }
}

/// Does its part for one of many. Values of the application may be dropped there, such as a payload that is its own: a
/// panic costs the others nothing.
#[inline]
pub(crate) fn one_of_many(part: impl FnOnce()) {
    if let Err(panicked) = call(part) {
        panicked.log(VALUE);
    }
}

/// Such as a payload with a `Drop` of its own.
pub(crate) const VALUE: &str = "a value of the application";

const FUTURE: &str = "a future of the application";

/// A future of others, on the heap: its panic, when it is polled, is its outcome, and it is dropped as soon as it is
/// done, guarded too.
pub(crate) struct Guarded<T>(Option<BoxFuture<T>>);

impl<T> Guarded<T> {
    pub(crate) fn new(future: BoxFuture<T>) -> Self {
        Self(Some(future))
    }

    /// Makes and holds a future of others: the making may panic as well as the future.
    pub(crate) fn begin(make: impl FnOnce() -> BoxFuture<T>) -> Result<Self, Panicked> {
        call(make).map(Self::new)
    }
}

impl<T> Future for Guarded<T> {
    type Output = Result<T, Panicked>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut panicked = None;
        match self.poll_noting(cx, &mut panicked) {
            Poll::Ready(outcome) => Poll::Ready(Ok(outcome)),
            Poll::Pending => panicked.map_or(Poll::Pending, |panicked| Poll::Ready(Err(panicked))),
        }
    }
}

impl<T> Guarded<T> {
    /// As its `poll`, with an outcome for a panic: what came out is not moved once more.
    #[inline(always)]
    pub(crate) fn poll_or(&mut self, cx: &mut Context<'_>, outcome_of: impl FnOnce(Panicked) -> T) -> Poll<T> {
        let mut panicked = None;
        let mut outcome = self.poll_noting(cx, &mut panicked);
        if let Some(panicked) = panicked {
            outcome = Poll::Ready(outcome_of(panicked));
        }
        outcome
    }

    /// Polls it. One that panics is not done, and its panic is noted.
    #[inline(always)]
    fn poll_noting(&mut self, cx: &mut Context<'_>, panicked: &mut Option<Panicked>) -> Poll<T> {
        // A future that is done is not polled again.
        let held = &mut self.0;
        let mut outcome = Poll::Pending;

        // Polled and, once it is done, dropped under one guard. After a panic of its poll it is dropped under another:
        // a second panic would end the process.
        let guarded = call(|| {
            if let Some(future) = held {
                outcome = future.as_mut().poll(cx);
                if outcome.is_ready() {
                    *held = None;
                }
            }
        });

        if let Err(panic) = guarded {
            match outcome.is_ready() {
                true => panic.log(FUTURE),
                false => {
                    drop_of(FUTURE, held.take());
                    *panicked = Some(panic);
                }
            }
        }
        outcome
    }
}

impl<T> Drop for Guarded<T> {
    #[inline]
    fn drop(&mut self) {
        if let Some(future) = self.0.take() {
            drop_of(FUTURE, future);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    struct Grumbles;

    impl Drop for Grumbles {
        fn drop(&mut self) {
            panic!("it does not want to go");
        }
    }

    /// A panic is a value, whatever it carries.
    #[test]
    fn a_panic_is_a_value() {
        assert_eq!(call(|| 7), Ok(7));
        assert_eq!(call(|| panic!("a text")).map(|()| 0), Err(Panicked(Some("a text".to_owned()))));
        assert_eq!(call(|| std::panic::panic_any(Grumbles)).map(|()| 0), Err(Panicked(None)));
        drop_of("a test", Grumbles);
    }

    /// A future that panics when polled, when it is done or when it is given up ends nothing.
    #[test]
    fn a_future_is_guarded_to_its_end() {
        let mut cx = Context::from_waker(Waker::noop());
        let held = |then: Poll<()>| {
            let held = Grumbles;
            Guarded::new(Box::pin(std::future::poll_fn(move |_| {
                let _held = &held;
                then
            })))
        };
        assert_eq!(Pin::new(&mut held(Poll::Ready(()))).poll(&mut cx), Poll::Ready(Ok(())));
        let mut given_up = held(Poll::Pending);
        assert!(Pin::new(&mut given_up).poll(&mut cx).is_pending());
        drop(given_up);
        let mut panics = Guarded::<()>::new(Box::pin(std::future::poll_fn(|_| panic!("now"))));
        assert_eq!(Pin::new(&mut panics).poll(&mut cx), Poll::Ready(Err(Panicked(Some("now".to_owned())))));
        assert!(Guarded::<()>::begin(|| panic!("at once")).is_err());
    }
}
