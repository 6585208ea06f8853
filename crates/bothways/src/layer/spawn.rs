//! Handlers that run in tasks of their own from the beginning.

use std::{
    future::poll_fn,
    task::{Context, Poll},
};

use super::Layer;
use crate::handler::{BoxHandler, Request};

/// Runs handlers in tasks of their own; see [`spawn()`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Spawn;

/// Runs each handler that it wraps in a task of its own from the beginning, so that those of one connection run
/// side by side: for what computes long before its first `await`, on a runtime of many threads. In Go every handler has
/// a goroutine.
///
/// Without it a handler is first polled by the task of its connection, which costs less, but a handler that computes
/// delays the next ones of the same connection. A handler that blocks its thread for long still needs
/// [`tokio::task::spawn_blocking`].
///
/// For the whole server give it to the builder, for some methods to a [`Router`](crate::Router) of their own.
///
/// ```
/// use bothways::{Router, Server, layer};
///
/// let primes = Router::new()
///     .function("Primes", "Count", |below: u32| async move {
///         Ok::<_, String>((2..below).filter(|n| (2..*n).all(|d| n % d != 0)).count())
///     })
///     .layer(&layer::spawn());
/// let server = Server::builder().router(primes).build();
/// ```
pub fn spawn() -> Spawn {
    Spawn
}

impl Layer for Spawn {
    fn wrap(&self, inner: BoxHandler) -> BoxHandler {
        BoxHandler::new(move |request: Request| {
            let inner = inner.clone();
            async move {
                // A handler that is not ready at its first poll gets a task.
                let mut is_polled = false;
                poll_fn(|cx: &mut Context<'_>| {
                    if std::mem::replace(&mut is_polled, true) {
                        return Poll::Ready(());
                    }
                    cx.waker().wake_by_ref();
                    Poll::Pending
                })
                .await;
                inner.handle(request).await
            }
        })
    }
}
