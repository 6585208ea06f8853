//! A trace's context in metadata: W3C Trace Context and Baggage, under the keys that rpcx's plugin reads and writes.

use bothways::Metadata;
use opentelemetry::{
    Context,
    baggage::{Baggage, BaggageExt},
    trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState},
};
use percent_encoding::percent_decode_str;

/// The keys. In Go the map of metadata tells upper case from lower case, and the plugin uses lower case.
const TRACEPARENT: &str = bothways::call::TRACEPARENT;
const TRACESTATE: &str = "tracestate";
const BAGGAGE: &str = "baggage";

/// Most bytes of a `tracestate` or a `baggage` that is read: what the standards ask for at most.
const LIST_BYTES_MAX: usize = 8192;

/// The context that this metadata carries: the span of the sender, as a remote one, and its baggage. An empty one if
/// there is none, or none that is well formed.
pub fn context_of(metadata: &Metadata) -> Context {
    let mut context = Context::new();
    if let Some(span) = metadata.get(TRACEPARENT).and_then(|text| span_context(text, metadata.get(TRACESTATE))) {
        context = context.with_remote_span_context(span);
    }
    match metadata.get(BAGGAGE).filter(|text| text.len() <= LIST_BYTES_MAX).map(baggage_of) {
        Some(baggage) if !baggage.is_empty() => context.with_baggage(baggage.iter().map(|(key, (value, about))| {
            opentelemetry::baggage::KeyValueMetadata::new(key.clone(), value.clone(), about.clone())
        })),
        _ => context,
    }
}

/// Puts a context into metadata, in place of what is there. A context without a valid span changes nothing.
pub fn put_context(context: &Context, metadata: &mut Metadata) {
    let span = context.span();
    let span = span.span_context();
    if !span.is_valid() {
        return;
    }
    let (trace, id, flags) = (span.trace_id(), span.span_id(), span.trace_flags() & TraceFlags::SAMPLED);
    metadata.insert(TRACEPARENT, format!("00-{trace}-{id}-{:02x}", flags.to_u8()));
    put_or_remove(metadata, TRACESTATE, span.trace_state().header());
    put_or_remove(metadata, BAGGAGE, context.baggage().to_string());
}

fn put_or_remove(metadata: &mut Metadata, key: &str, value: String) {
    if value.is_empty() || LIST_BYTES_MAX < value.len() {
        metadata.remove(key);
    } else {
        metadata.insert(key, value);
    }
}

/// Reads a `traceparent`: version, trace, span and flags in lower-case hexadecimal. Later versions may have more behind
/// these.
fn span_context(traceparent: &str, state: Option<&str>) -> Option<SpanContext> {
    let mut parts = traceparent.trim().split('-');
    let [version, trace, span, flags] = [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
    let has_more = parts.next().is_some();
    let lengths = [version.len(), trace.len(), span.len(), flags.len()];
    let is_lower_hex = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_hex = [version, trace, span, flags].into_iter().all(is_lower_hex);
    if lengths != [2, 32, 16, 2] || !is_hex || version == "ff" || (version == "00" && has_more) {
        return None;
    }

    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    // A state that cannot be read costs the state, and not the trace.
    let state = state.filter(|text| text.len() <= LIST_BYTES_MAX).and_then(|text| text.parse::<TraceState>().ok());
    let context = SpanContext::new(trace, span, flags, true, state.unwrap_or_default());
    context.is_valid().then_some(context)
}

/// Reads a `baggage`: `key=value;properties,…`. What is not well formed is left out.
fn baggage_of(text: &str) -> Baggage {
    let mut baggage = Baggage::new();
    for member in text.split(',') {
        let (pair, about) = member.split_once(';').unwrap_or((member, ""));
        let Some((key, value)) = pair.split_once('=') else { continue };
        let Ok(value) = percent_decode_str(value.trim()).decode_utf8() else { continue };
        baggage.insert_with_metadata(key.trim().to_owned(), value.into_owned(), about.trim());
    }
    baggage
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn with(traceparent: &str) -> Metadata {
        Metadata::new().with(TRACEPARENT, traceparent)
    }

    /// What is read is written again as it was.
    #[test]
    fn a_context_survives() {
        let metadata = with(PARENT).with(TRACESTATE, "a=1,b=2").with(BAGGAGE, "user=J%C3%B6rg%2C%20x;p=1");
        let context = context_of(&metadata);
        assert!(context.span().span_context().is_remote() && context.span().span_context().is_sampled());
        assert_eq!(context.baggage().get("user").map(|value| value.as_str()), Some("Jörg, x"));
        let mut written = with("stale");
        put_context(&context, &mut written);
        for key in [TRACEPARENT, TRACESTATE, BAGGAGE] {
            assert_eq!(written.get(key), metadata.get(key));
        }
    }

    /// A context without a state or baggage leaves none behind; one without a span changes nothing.
    #[test]
    fn what_is_stale_goes() {
        let mut metadata = with("stale").with(TRACESTATE, "a=1").with(BAGGAGE, "b=2").with("own", "stays");
        put_context(&Context::new(), &mut metadata);
        assert_eq!((metadata.get(TRACEPARENT), metadata.get(BAGGAGE)), (Some("stale"), Some("b=2")));
        put_context(&context_of(&with(PARENT)), &mut metadata);
        let left = [TRACEPARENT, TRACESTATE, BAGGAGE, "own"].map(|key| metadata.get(key));
        assert_eq!(left, [Some(PARENT), None, None, Some("stays")]);
    }

    /// Whatever a peer sends as a context is a context or none.
    #[test]
    fn what_is_not_well_formed_is_no_context() {
        for wrong in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333ö-1",
        ] {
            assert!(!context_of(&with(wrong)).span().span_context().is_valid(), "{wrong}");
        }
        let later = "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more";
        assert!(context_of(&with(later)).span().span_context().is_valid());

        let context = context_of(&with(PARENT).with(TRACESTATE, "no list").with(BAGGAGE, "a,=b,c=%ff,d=1"));
        assert!(context.span().span_context().is_valid());
        let kept: Vec<_> = context.baggage().iter().map(|(key, (value, _))| (key.as_str(), value.as_str())).collect();
        assert_eq!(kept, [("d", "1")]);
        let long = format!("a={}", "x".repeat(LIST_BYTES_MAX));
        assert!(context_of(&Metadata::new().with(BAGGAGE, long)).baggage().is_empty());
    }
}
