//! What wraps a handler: limits, time, panics, traces.
//!
//! A layer takes a handler and gives one back. It acts before the arguments are decoded.

use std::{future::Future, sync::Arc};

use crate::handler::{BoxHandler, Reply, Request};

/// Wraps handlers.
pub trait Layer: Send + Sync {
    /// The handler, wrapped.
    fn wrap(&self, inner: BoxHandler) -> BoxHandler;
}

/// A layer from a function that gets each request and the handler behind it.
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
