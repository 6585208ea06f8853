//! A limit on how many handlers run at once.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::Layer;
use crate::{
    error::ErrorCode,
    handler::{BoxHandler, Reply, Request},
};

/// Runs at most so many handlers at once; see [`concurrency`].
#[derive(Clone, Debug)]
pub struct Concurrency {
    places: Arc<Semaphore>,
    max: usize,
}

/// Runs at most `max` of the handlers that it wraps at once, all of them together, and answers more with
/// [`ErrorCode::Overloaded`] at once: no request waits for a place. A clone counts with the original.
///
/// For the whole server give it to the builder, for some methods to a [`Router`](crate::Router) of their
/// own. The bounds of the server as such, `calls_max` and `calls_per_connection_max`, hold without it.
///
/// ```
/// use bothways::{Router, Server, layer};
///
/// let reports = Router::new()
///     .function("Reports", "Yearly", |year: u32| async move { Ok::<_, String>(format!("of {year}")) })
///     .layer(&layer::concurrency(4));
/// let server = Server::builder().router(reports).build();
/// ```
pub fn concurrency(max: usize) -> Concurrency {
    Concurrency { places: Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS))), max }
}

impl Layer for Concurrency {
    fn wrap(&self, inner: BoxHandler) -> BoxHandler {
        let Self { places, max } = self.clone();
        BoxHandler::new(move |request: Request| {
            let place = Arc::clone(&places).try_acquire_owned();
            let inner = inner.clone();
            async move {
                match place {
                    Ok(_held_until_the_end) => inner.handle(request).await,
                    Err(_) => Reply::refused(ErrorCode::Overloaded, format!("overloaded: {max} of these run already")),
                }
            }
        })
    }
}
