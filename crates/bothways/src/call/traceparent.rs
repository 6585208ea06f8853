//! A trace that travels with each call.

use std::sync::Arc;

use super::{Call, CallLayer, CallService, map};

/// The key under which a trace travels, as in [W3C Trace Context](https://www.w3.org/TR/trace-context/).
pub const TRACEPARENT: &str = "traceparent";

/// Puts a trace into the metadata of calls; see [`traceparent`].
pub struct Traceparent(Arc<dyn CallLayer>);

/// Puts a `traceparent` into the metadata of each call and oneway message that has none. `current` gives that of the span
/// in which the call is made, as the tracing system of the application writes it; where it gives `None`, the call begins
/// a trace of its own, with random ids.
///
/// [`layer::trace`](crate::layer::trace) at a server puts it into the span of the request.
///
/// ```
/// use bothways::{ClientOptions, call};
///
/// // With OpenTelemetry, `current` would ask its propagator.
/// let options = ClientOptions::new().layer(call::traceparent(|| None));
/// ```
pub fn traceparent(current: impl Fn() -> Option<String> + Send + Sync + 'static) -> Traceparent {
    Traceparent(Arc::new(map(move |call: &mut Call| {
        if call.metadata().get(TRACEPARENT).is_none() {
            let trace = current().unwrap_or_else(begin_trace);
            call.metadata_mut().insert(TRACEPARENT, trace);
        }
    })))
}

impl CallLayer for Traceparent {
    fn wrap(&self, inner: Arc<dyn CallService>) -> Arc<dyn CallService> {
        self.0.wrap(inner)
    }
}

/// A trace without a parent: version 0, ids that are not zero, sampled.
fn begin_trace() -> String {
    let (trace, span) = (rand::random_range(1..=u128::MAX), rand::random_range(1..=u64::MAX));
    format!("00-{trace:032x}-{span:016x}-01")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_that_begins_is_well_formed() {
        let trace = begin_trace();
        let lengths: Vec<_> = trace.split('-').map(str::len).collect();
        assert_eq!(lengths, [2, 32, 16, 2], "{trace}");
        assert!(trace.chars().all(|c| c == '-' || matches!(c, '0'..='9' | 'a'..='f')), "{trace}");
    }
}
