//! A span for each request.

use tokio::time::Instant;
use tracing::{Instrument, field};

use super::Layer;
use crate::{
    call::TRACEPARENT,
    calm::Said,
    handler::{BoxHandler, Request},
};

/// Puts each request into a span; see [`trace`].
#[derive(Clone, Copy, Debug)]
pub struct Trace;

/// Runs each handler in a span `request` with path, method, connection and the `traceparent` that the caller
/// [sends](crate::call::traceparent()), at level info, so that what the handler logs says which request it was for. At
/// level debug it logs at its end how it ended and how long it took. A level that is off costs a comparison.
///
/// How it ended: `ok`, the text of the error, or `dropped` if the caller gave up, the deadline passed or the handler
/// panicked. Arguments and replies are never logged. Names and texts are cut at 1 KiB.
pub fn trace() -> Trace {
    Trace
}

impl Layer for Trace {
    fn wrap(&self, inner: BoxHandler) -> BoxHandler {
        BoxHandler::new(move |request: Request| {
            let span = tracing::info_span!(
                "request",
                path = ?Said(request.service_path()),
                method = ?Said(request.service_method()),
                connection = %request.connection().id(),
                oneway = request.is_oneway().then_some(true),
                traceparent = request.metadata().get(TRACEPARENT).map(|trace| field::debug(Said(trace.to_owned()))),
                outcome = field::Empty,
            );

            let answer = inner.handle(request);
            async move {
                let mut end = End { began: Instant::now(), outcome: None };
                let reply = answer.await;
                if tracing::enabled!(tracing::Level::DEBUG) {
                    end.outcome = Some(reply.error_text().unwrap_or("ok").to_owned());
                }
                reply
            }
            .instrument(span)
        })
    }
}

/// Tells of the end of a request, also of one that is dropped.
struct End {
    began: Instant,
    outcome: Option<String>,
}

impl Drop for End {
    fn drop(&mut self) {
        let outcome = Said(self.outcome.as_deref().unwrap_or("dropped"));
        tracing::Span::current().record("outcome", field::debug(&outcome));
        tracing::debug!(?outcome, took = ?self.began.elapsed(), "a request ended");
    }
}
