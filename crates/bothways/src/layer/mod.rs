//! What wraps a handler: limits, time, traces.
//!
//! A layer takes a handler and gives one back. It acts before the arguments are decoded.
//!
//! | file | what it does |
//! |---|---|
//! | `timeout.rs` | [`timeout()`]: a limit on the time of handlers |
//! | `concurrency.rs` | [`concurrency()`]: a limit on how many run at once |
//! | `spawn.rs` | [`spawn()`]: a task for each handler from the beginning |
//! | `trace.rs` | [`trace()`]: a span for each request |
//! | `count.rs` | [`count()`]: what each route was asked, and how it ended |
//!
//! Panics need no layer: every connection catches those of its handlers, answers
//! [`ErrorCode::Internal`](crate::ErrorCode::Internal) with an id and no word of the arguments, and logs
//! the panic under that id.

mod concurrency;
mod count;
mod spawn;
mod timeout;
mod trace;

use std::{future::Future, sync::Arc};

pub use self::{
    concurrency::{Concurrency, concurrency},
    count::{Count, RouteCounts, count},
    spawn::{Spawn, spawn},
    timeout::{Timeout, timeout},
    trace::{Trace, trace},
};
use crate::handler::{BoxHandler, Reply, Request};

/// Wraps handlers.
///
/// ```
/// use std::sync::{Arc, atomic::{AtomicU64, Ordering}};
///
/// use bothways::{Request, Server, handler::BoxHandler, layer::Layer};
///
/// /// Counts requests.
/// #[derive(Clone, Default)]
/// struct Count(Arc<AtomicU64>);
///
/// impl Layer for Count {
///     fn wrap(&self, inner: BoxHandler) -> BoxHandler {
///         let count = Arc::clone(&self.0);
///         BoxHandler::new(move |request: Request| {
///             count.fetch_add(1, Ordering::Relaxed);
///             inner.handle(request)
///         })
///     }
/// }
///
/// let count = Count::default();
/// let server = Server::builder().layer(count.clone()).build();
/// ```
pub trait Layer: Send + Sync {
    /// The handler, wrapped.
    fn wrap(&self, inner: BoxHandler) -> BoxHandler;

    /// The handler of this route, wrapped: asked once for each route, when it is added. Default: [`Self::wrap`].
    fn wrap_route(&self, service_path: &str, service_method: &str, inner: BoxHandler) -> BoxHandler {
        let _ = (service_path, service_method);
        self.wrap(inner)
    }
}

/// A layer from a function that gets each request and the handler that it wraps.
///
/// ```
/// # use bothways::{layer, handler::{BoxHandler, Request}};
/// let logged = layer::from_fn(|request: Request, next: BoxHandler| async move {
///     println!("{}.{}", request.service_path(), request.service_method());
///     next.handle(request).await
/// });
/// ```
pub fn from_fn<F, Fut>(function: F) -> impl Layer
where
    F: Fn(Request, BoxHandler) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Reply> + Send + 'static,
{
    FromFn(Arc::new(function))
}

struct FromFn<F>(Arc<F>);

impl<F, Fut> Layer for FromFn<F>
where
    F: Fn(Request, BoxHandler) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Reply> + Send + 'static,
{
    fn wrap(&self, inner: BoxHandler) -> BoxHandler {
        let function = Arc::clone(&self.0);
        BoxHandler::new(move |request: Request| function(request, inner.clone()))
    }
}
