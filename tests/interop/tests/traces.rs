//! A trace goes from Rust through a Go service to Rust: one trace, each span the child of the one before.

use std::{process::Stdio, time::Duration};

use bothways::{Client, ClientOptions, Server};
use bothways_interop::{LONG, go::go, peers::ServerProcess, until};
use bothways_otel::traces;
use opentelemetry::{
    Context, KeyValue,
    baggage::BaggageExt,
    trace::{SpanKind, TracerProvider},
};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};
use tokio::process::Command;
use tracing_subscriber::layer::SubscriberExt;

#[tokio::test]
async fn a_trace_goes_through_a_go_service() {
    let Some(go) = go() else { return };
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("interop"));
    let _spans = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));

    let server = Server::builder()
        .function("Text", "Upper", |text: String| async move { Ok::<_, String>(text.to_uppercase()) })
        .layer(traces())
        .build();
    let listening = server.listen("tcp@127.0.0.1:0").await.expect("a free port");
    let mut command = Command::new(go.program("traced"));
    command.args(["-next", listening.address()]).stderr(Stdio::inherit());
    let mut relay = ServerProcess::start(command).await;
    let options = ClientOptions::new().layer(traces());
    let client = Client::connect(&relay.address, options).await.expect("it listens");

    let with_baggage = Context::new().with_baggage([KeyValue::new("tenant", "blue, ö")]).attach();
    let calling = client.call::<String>("Relay", "Ask", "hello");
    let answer = calling.await.expect("the relay asks on");
    drop(with_baggage);
    assert_eq!(answer, "HELLO");

    let line = relay.process.line_where(LONG, |line| line.starts_with('{')).await;
    let of_go: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    let ended = |name: &str| {
        let spans = exporter.get_finished_spans().expect("it is in memory");
        spans.into_iter().find(|span| span.name == name)
    };
    let (asked, answered) = ("rpcx.client.Relay.Ask", "rpcx.service.Text.Upper");
    until("both spans", Duration::from_secs(20), async || ended(asked).is_some() && ended(answered).is_some()).await;
    let (asked, answered) = (ended(asked).expect("it ended"), ended(answered).expect("it ended"));

    assert_eq!(of_go["name"], "rpcx.service.Relay.Ask");
    assert_eq!(of_go["trace"], asked.span_context.trace_id().to_string());
    assert_eq!(of_go["parent"], asked.span_context.span_id().to_string(), "Go's span is a child of the client's");
    assert_eq!(answered.span_context.trace_id(), asked.span_context.trace_id());
    assert_eq!(of_go["span"], answered.parent_span_id.to_string(), "the server's span is a child of Go's");
    assert!(answered.parent_span_is_remote);
    assert_eq!((asked.span_kind, answered.span_kind), (SpanKind::Client, SpanKind::Server));
    assert_eq!(of_go["baggage"], "tenant=blue%2C%20%C3%B6");
}
