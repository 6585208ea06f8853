//! Pushes, and what becomes of them at a client.

use bothways::{Push, ServerMessage};
use opentelemetry::trace::TraceContextExt;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::{Kind, context_of, made::begin, new_span};

/// Pushes that carry a trace.
pub trait TracedPush: Sized {
    /// Makes a span of kind PRODUCER, as a child of the span of now, and has the push carry it: to every session and topic
    /// that it is pushed to, also when it is sent again or read from the history of a topic. The span ends at once, for a
    /// push is not waited for.
    ///
    /// ```
    /// # fn example(server: bothways::Server) -> Result<(), Box<dyn std::error::Error>> {
    /// use bothways::{Push, Target};
    /// use bothways_otel::TracedPush;
    ///
    /// server.push(&Target::user("ann"), &Push::new("Mail", "New", "a letter").traced())?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    fn traced(self) -> Self;
}

impl TracedPush for Push {
    fn traced(mut self) -> Self {
        let span = new_span(Kind::Producer, self.service_path(), self.service_method());
        begin(&span, self.metadata_mut());
        self
    }
}

/// A span of kind CONSUMER for a message of a server, with a link to the span of the push: handle the message in it. What
/// goes to handlers of a client has such a span by [`Router::layer`](bothways::Router::layer).
///
/// ```
/// # async fn example(mut messages: bothways::ServerMessages) {
/// use tracing::Instrument;
///
/// # async fn show(_: bothways::ServerMessage) {}
/// while let Some(message) = messages.next().await {
///     let span = bothways_otel::span_of(&message);
///     show(message).instrument(span).await;
/// }
/// # }
/// ```
pub fn span_of(message: &ServerMessage) -> Span {
    let span = new_span(Kind::Consumer, message.service_path(), message.service_method());
    if !span.is_disabled() {
        span.add_link(context_of(&message.metadata()).span().span_context().clone());
    }
    span
}
