//! Spans around calls that are made.

use std::sync::Arc;

use bothways::{
    CallError, Caller, Metadata, PushError, SerializeType,
    call::{BoxFuture, Call, CallLayer, CallService},
    caller::{RawCall, RawReply},
};
use opentelemetry::trace::TraceContextExt;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::{Kind, Traces, context_of, new_span, note_end, put_context};

impl CallLayer for Traces {
    fn wrap(&self, inner: Arc<dyn CallService>) -> Arc<dyn CallService> {
        Arc::new(OfClient(inner))
    }
}

struct OfClient(Arc<dyn CallService>);

impl CallService for OfClient {
    fn call(&self, mut call: Call) -> BoxFuture<Result<RawReply, CallError>> {
        let span = new_span(Kind::Client, call.service_path(), call.service_method());
        begin(&span, call.metadata_mut());
        let reply = span.in_scope(|| self.0.call(call));
        Box::pin(ended(reply, of_call_error).instrument(span))
    }

    fn push(&self, mut push: Call) -> BoxFuture<Result<(), PushError>> {
        let span = new_span(Kind::Producer, push.service_path(), push.service_method());
        begin(&span, push.metadata_mut());
        let sent = span.in_scope(|| self.0.push(push));
        Box::pin(ended(sent, of_push_error).instrument(span))
    }
}

/// The span goes with the request. Its parent is the span of now; where there is none, the request may have been given one.
pub(crate) fn begin(span: &Span, metadata: &mut Metadata) {
    if span.is_disabled() {
        return;
    }
    if !Span::current().context().span().span_context().is_valid() {
        let given = context_of(metadata);
        if given.span().span_context().is_valid() {
            let _ = span.set_parent(given);
        }
    }
    put_context(&span.context(), metadata);
}

/// Notes in the span of now how it ended.
async fn ended<T, E>(outcome: impl Future<Output = Result<T, E>>, name: fn(&E) -> &'static str) -> Result<T, E> {
    let mut end = End { error: Some("dropped") };
    let outcome = outcome.await;
    end.error = outcome.as_ref().err().map(name);
    outcome
}

struct End {
    error: Option<&'static str>,
}

impl Drop for End {
    fn drop(&mut self) {
        note_end(&Span::current(), self.error);
    }
}

fn of_call_error(error: &CallError) -> &'static str {
    match error {
        CallError::Remote { code, .. } => code.map_or("application", |code| code.name()),
        CallError::TimedOut(_) => "timed_out",
        CallError::Closed { .. } => "closed",
        CallError::NotConnected(_) => "not_connected",
        CallError::NoServer(_) | CallError::NoClient(_) => "no_server",
        CallError::Decode(_) => "decode",
        _ => "refused_here",
    }
}

fn of_push_error(error: &PushError) -> &'static str {
    match error {
        PushError::Closed(_) => "closed",
        PushError::NotConnected(_) => "not_connected",
        PushError::NoServer(_) | PushError::NoClient(_) => "no_server",
        _ => "refused_here",
    }
}

impl Traces {
    /// Calls by this caller, each with a span: for those of a server to its clients, whose connections, sessions and users
    /// take no layers.
    ///
    /// ```
    /// # async fn example(server: bothways::Server) -> Result<(), Box<dyn std::error::Error>> {
    /// use bothways::{CallOptions, Caller};
    /// use bothways_otel::traces;
    ///
    /// let ann = traces().caller(server.user("ann"));
    /// let reply = ann.call_typed::<str, bool>("Customer", "Confirm", "order 17", CallOptions::new()).await?;
    /// println!("{}", reply.value);
    /// # Ok(()) }
    /// ```
    pub fn caller<C: Caller>(&self, inner: C) -> Traced<C> {
        Traced { inner }
    }
}

/// A caller whose calls have spans; see [`Traces::caller`].
#[derive(Clone, Debug)]
pub struct Traced<C> {
    inner: C,
}

impl<C> Traced<C> {
    /// The caller without spans.
    pub fn inner(&self) -> &C {
        &self.inner
    }
}

impl<C: Caller> Caller for Traced<C> {
    fn call_raw(&self, mut call: RawCall<'_>) -> impl Future<Output = Result<RawReply, CallError>> + Send {
        let span = new_span(Kind::Client, call.service_path, call.service_method);
        begin(&span, call.options.metadata_mut());
        let reply = span.in_scope(|| self.inner.call_raw(call));
        ended(reply, of_call_error).instrument(span)
    }

    fn push_raw(&self, mut push: RawCall<'_>) -> impl Future<Output = Result<(), PushError>> + Send {
        let span = new_span(Kind::Producer, push.service_path, push.service_method);
        begin(&span, push.options.metadata_mut());
        let sent = span.in_scope(|| self.inner.push_raw(push));
        ended(sent, of_push_error).instrument(span)
    }

    fn serialize_type(&self) -> SerializeType {
        self.inner.serialize_type()
    }
}
