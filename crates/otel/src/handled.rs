//! Spans around handlers.

use std::sync::Arc;

use bothways::{Reply, Request, handler::BoxHandler, layer::Layer};
use opentelemetry::trace::TraceContextExt;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::{Kind, Traces, context_of, new_span, note_end};

impl Layer for Traces {
    fn wrap(&self, inner: BoxHandler) -> BoxHandler {
        BoxHandler::new(move |request: Request| {
            let span = span_of_request(&request, request.service_path(), request.service_method());
            handle(&inner, request, span)
        })
    }

    fn wrap_route(&self, service_path: &str, service_method: &str, inner: BoxHandler) -> BoxHandler {
        let (path, method): (Arc<str>, Arc<str>) = (service_path.into(), service_method.into());
        BoxHandler::new(move |request: Request| {
            let span = span_of_request(&request, &path, &method);
            handle(&inner, request, span)
        })
    }
}

/// The span of a request, with its parent. That is set before the span is entered for the first time: afterwards a span
/// takes no parent.
fn span_of_request(request: &Request, service_path: &str, service_method: &str) -> Span {
    let is_push = request.is_oneway() && request.server().is_none();
    let kind = if request.is_oneway() { Kind::Consumer } else { Kind::Server };
    let span = new_span(kind, service_path, service_method);
    if span.is_disabled() {
        return span;
    }
    let context = context_of(&request.metadata());
    if is_push {
        span.add_link(context.span().span_context().clone());
    } else {
        // Without the layer that turns spans into those of OpenTelemetry there is nothing to set.
        let _ = span.set_parent(context);
    }
    span
}

fn handle(inner: &BoxHandler, request: Request, span: Span) -> impl Future<Output = Reply> + Send + use<> {
    let answer = span.in_scope(|| inner.handle(request));
    async move {
        let mut end = End { error: Some("dropped") };
        let reply = answer.await;
        end.error = (!reply.is_ok()).then(|| reply.code().map_or("application", |code| code.name()));
        reply
    }
    .instrument(span)
}

/// How a handler ended. It was dropped, unless it is told otherwise.
struct End {
    error: Option<&'static str>,
}

impl Drop for End {
    fn drop(&mut self) {
        note_end(&Span::current(), self.error);
    }
}
