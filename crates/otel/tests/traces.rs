//! Traces through calls and pushes, in both directions: who is whose parent, what the spans say.

use std::{sync::Arc, time::Duration};

use bothways::{
    CallError, CallOptions, Caller, Client, ClientOptions, Push, Router, Server, Target,
    server::ServerBuilder,
    session::{Position, TopicOptions},
};
use bothways_otel::{TracedPush, span_of, traces};
use opentelemetry::{
    Context, KeyValue,
    baggage::BaggageExt,
    trace::{SpanKind, Status, TraceContextExt, TracerProvider},
};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use tracing::{Instrument, Span, subscriber::DefaultGuard};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{filter::LevelFilter, layer::SubscriberExt};

/// The spans of this thread, as they end.
struct Spans {
    exporter: InMemorySpanExporter,
    _provider: SdkTracerProvider,
    _subscriber: DefaultGuard,
}

impl Spans {
    fn record(level: LevelFilter) -> Self {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let subscriber = tracing_subscriber::registry().with(level).with(layer);
        Self { exporter, _provider: provider, _subscriber: tracing::subscriber::set_default(subscriber) }
    }

    /// The spans of this name that have ended, once there are so many.
    async fn named(&self, name: &str, count: usize) -> Vec<SpanData> {
        let looking = async {
            loop {
                let mut found = self.exporter.get_finished_spans().expect("it is in memory");
                found.retain(|span| span.name == name);
                if found.len() == count {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(20), looking).await;
        found.unwrap_or_else(|_| panic!("no {count} of {name} among {:?}", self.exporter.get_finished_spans()))
    }

    async fn one(&self, name: &str) -> SpanData {
        self.named(name, 1).await.remove(0)
    }
}

fn attribute(span: &SpanData, key: &str) -> Option<String> {
    span.attributes.iter().find(|pair| pair.key.as_str() == key).map(|pair| pair.value.to_string())
}

fn is_child(child: &SpanData, parent: &SpanData) -> bool {
    child.parent_span_id == parent.span_context.span_id()
        && child.span_context.trace_id() == parent.span_context.trace_id()
}

fn is_linked(span: &SpanData, to: &SpanData) -> bool {
    let is_to = |link: &opentelemetry::trace::Link| link.span_context.span_id() == to.span_context.span_id();
    span.links.iter().any(is_to) && span.span_context.trace_id() != to.span_context.trace_id()
}

fn server() -> ServerBuilder {
    Server::builder()
        .function("Math", "Half", |number: i64| async move {
            tracing::info_span!("inner").in_scope(|| ());
            if number % 2 == 0 { Ok(number / 2) } else { Err("odd") }
        })
        .layer(traces())
}

/// A call is one trace: the caller's span, the client's, the server's, and what the handler does.
#[tokio::test]
async fn a_call_is_one_trace() {
    let spans = Spans::record(LevelFilter::INFO);
    let server = server().build();
    let listening = server.listen("memu@otel-call").await.expect("the name is free");
    let options = ClientOptions::new().layer(traces());
    let client = Client::connect(listening.address(), options).await.expect("it listens");
    let calling = async {
        client.call::<i64>("Math", "Half", &4).await.expect("it is even");
    };
    calling.instrument(tracing::info_span!("outer")).await;

    let outer = spans.one("outer").await;
    let (made, handled) = (spans.one("rpcx.client.Math.Half").await, spans.one("rpcx.service.Math.Half").await);
    let inner = spans.one("inner").await;
    assert!(is_child(&made, &outer) && is_child(&handled, &made) && is_child(&inner, &handled));
    assert_eq!((&made.span_kind, &handled.span_kind), (&SpanKind::Client, &SpanKind::Server));
    for span in [&made, &handled] {
        let told = ["rpc.system", "rpc.service", "rpc.method"].map(|key| attribute(span, key));
        assert_eq!(told, ["rpcx", "Math", "Half"].map(|value| Some(value.to_owned())));
        assert_eq!((&span.status, attribute(span, "error.type")), (&Status::Unset, None));
    }
}

/// How a call failed is told on both sides by a word, without a text of the application.
#[tokio::test]
async fn a_failure_is_told_by_its_kind() {
    let spans = Spans::record(LevelFilter::INFO);
    let server = server().build();
    let listening = server.listen("memu@otel-failed").await.expect("the name is free");
    let client = Client::connect(listening.address(), ClientOptions::new().layer(traces())).await.expect("it listens");
    client.call::<i64>("Math", "Half", &3).await.expect_err("it is odd");
    client.call::<i64>("Math", "Third", &3).await.expect_err("there is no such method");
    for (name, kind) in [
        ("rpcx.client.Math.Half", "application"),
        ("rpcx.service.Math.Half", "application"),
        ("rpcx.client.Math.Third", "not_found"),
    ] {
        let span = spans.one(name).await;
        assert!(matches!(span.status, Status::Error { .. }), "{span:?}");
        assert_eq!(attribute(&span, "error.type").as_deref(), Some(kind), "{name}");
        assert!(!format!("{span:?}").contains("odd"), "{span:?}");
    }
}

/// A call from a server to its client, in a handler of a call of that client, is in the trace of the first.
#[tokio::test]
async fn a_call_back_is_in_the_same_trace() {
    let spans = Spans::record(LevelFilter::INFO);
    let ask_back = |request: bothways::Request| async move {
        let caller = traces().caller(request.connection().clone());
        let asked: Result<_, CallError> =
            caller.call_typed::<_, bool>("Device", "Confirm", "17", CallOptions::new()).await;
        bothways::Reply::encode(&asked.expect("it confirms").value, request.serialize_type())
    };
    let server = Server::builder().handler("Shop", "Order", ask_back).layer(traces()).build();
    let listening = server.listen("memu@otel-back").await.expect("the name is free");
    let handlers = Router::new().function("Device", "Confirm", |_: String| async { Ok::<_, String>(true) });
    let (options, handlers) = (ClientOptions::new().layer(traces()), handlers.layer(&traces()));
    let client = Client::with_handlers(listening.address(), options, handlers).await.expect("it listens");
    assert!(client.call::<bool>("Shop", "Order", "17").await.expect("it asks back"));

    let (ordered, handled) = (spans.one("rpcx.client.Shop.Order").await, spans.one("rpcx.service.Shop.Order").await);
    let (asked, confirmed) =
        (spans.one("rpcx.client.Device.Confirm").await, spans.one("rpcx.service.Device.Confirm").await);
    assert!(is_child(&handled, &ordered) && is_child(&asked, &handled) && is_child(&confirmed, &asked));
    assert_eq!((asked.span_kind, confirmed.span_kind), (SpanKind::Client, SpanKind::Server));
}

/// What becomes of a push links to the span in which it was made: at once, and also when it is read from the history of a
/// topic later on.
#[tokio::test]
async fn a_push_is_linked_to_where_it_was_made() {
    let spans = Spans::record(LevelFilter::INFO);
    let news = TopicOptions::new().open().history(10, Duration::from_secs(60));
    let server = Server::builder().topic("news", news).expect("a pattern").build();
    let listening = server.listen("memu@otel-push").await.expect("the name is free");
    let receipt = tracing::info_span!("outer")
        .in_scope(|| server.publish("news", &Push::new("News", "Old", "rain").traced()).expect("small"));
    let start = Position { offset: 0, ..receipt.position().expect("it is kept") };

    let (client, mut messages) =
        Client::bidirectional(listening.address(), ClientOptions::new()).await.expect("it listens");
    client.subscribe_from("news", start).await.expect("it is open");
    let message = messages.next().await.expect("it is kept");
    span_of(&message).in_scope(|| drop(message));
    let (outer, old) = (spans.one("outer").await, spans.one("rpcx.client.News.Old").await);
    assert!(is_child(&old, &outer) && old.span_kind == SpanKind::Producer);
    let read = spans.one("rpcx.service.News.Old").await;
    assert!(is_linked(&read, &old) && read.span_kind == SpanKind::Consumer, "{read:?}");

    // By a handler.
    let handlers = Router::new().function("News", "New", |_: String| async { Ok::<_, String>(()) });
    let handlers = handlers.layer(&traces());
    let other = Client::with_handlers(listening.address(), ClientOptions::new(), handlers).await;
    let _other = other.expect("it listens");
    server.push(&Target::everyone(), &Push::of("News", "New", "sun").expect("a text").traced()).expect("small");
    let (new, handled) = (spans.one("rpcx.client.News.New").await, spans.one("rpcx.service.News.New").await);
    assert!(is_linked(&handled, &new) && handled.span_kind == SpanKind::Consumer, "{handled:?}");
}

/// Baggage goes along; where the level is off, nothing does.
#[tokio::test]
async fn baggage_goes_along_and_nothing_where_the_level_is_off() {
    for (level, expected) in [(LevelFilter::INFO, Some("blue")), (LevelFilter::ERROR, None)] {
        let spans = Spans::record(level);
        let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
        let of_handler = Arc::clone(&seen);
        let server = Server::builder()
            .handler("Tell", "me", move |request: bothways::Request| {
                let of_context = Span::current().context();
                let tenant = of_context.baggage().get("tenant").map(ToString::to_string);
                let travelled = request.metadata().get("traceparent").is_some();
                of_handler.lock().expect("no panic").push((tenant, travelled));
                async { bothways::Reply::ok("") }
            })
            .layer(traces())
            .build();
        let listening = server.listen("memu@otel-baggage").await.expect("the name is free");
        let options = ClientOptions::new().layer(traces());
        let client = Client::connect(listening.address(), options).await.expect("it listens");
        let context = Context::new().with_baggage([KeyValue::new("tenant", "blue")]);
        assert!(!context.span().span_context().is_valid());
        let guard = context.attach();
        let calling = client.call_raw(bothways::caller::RawCall {
            service_path: "Tell",
            service_method: "me",
            serialize: bothways::SerializeType::RAW,
            payload: Default::default(),
            options: CallOptions::new(),
        });
        calling.await.expect("it answers");
        drop(guard);
        let seen = seen.lock().expect("no panic").clone();
        assert_eq!(seen, [(expected.map(str::to_owned), expected.is_some())], "{level}");
        drop(spans);
    }
}
