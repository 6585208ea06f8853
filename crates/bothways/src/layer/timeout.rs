//! A limit on the time of handlers.

use std::time::Duration;

use tokio::time::timeout_at;

use super::Layer;
use crate::{
    connection::after,
    error::ErrorCode,
    handler::{BoxHandler, Reply, Request},
};

/// Gives handlers at most this long; see [`timeout`].
#[derive(Clone, Copy, Debug)]
pub struct Timeout(Duration);

/// Drops a handler that takes longer, and answers [`ErrorCode::Timeout`] in its place. If the caller
/// gives up earlier, its own deadline counts; [`Request::deadline`] tells the handler which it is.
///
/// A dropped handler stops at its next `await`: one that computes or blocks is not stopped.
///
/// ```
/// use std::time::Duration;
/// use bothways::{Server, layer};
///
/// let server = Server::builder().layer(layer::timeout(Duration::from_secs(5))).build();
/// ```
pub fn timeout(limit: Duration) -> Timeout {
    Timeout(limit)
}

impl Layer for Timeout {
    fn wrap(&self, inner: BoxHandler) -> BoxHandler {
        let limit = self.0;
        BoxHandler::new(move |mut request: Request| {
            let deadline = after(limit);
            let deadline = request.deadline.map_or(deadline, |callers| callers.min(deadline));
            request.deadline = Some(deadline);
            let answer = timeout_at(deadline, inner.handle(request));
            async move {
                answer.await.unwrap_or_else(|_| {
                    Reply::refused(ErrorCode::Timeout, format!("the handler was not done within its {limit:?}"))
                })
            }
        })
    }
}
