//! The text of a server at work: what is counted, under which names and labels.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bothways::{
    Client, ClientOptions, Push, Server, ServerMessages, Target,
    server::{Listening, ServerBuilder},
};
use bothways_metrics::{CONTENT_TYPE, Calls, Metrics};

/// Every sample of a text, by its name with labels.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            (name.to_owned(), value.parse().expect("a number"))
        })
        .collect()
}

fn server() -> ServerBuilder {
    Server::builder().function("Math", "Half", |number: i64| async move {
        if number % 2 == 0 { Ok(number / 2) } else { Err("odd") }
    })
}

async fn client(server: &Server, name: &str, options: ClientOptions) -> (Client, ServerMessages, Listening) {
    let listening = server.listen(&format!("memu@{name}")).await.expect("the name is free");
    let (client, messages) = Client::bidirectional(listening.address(), options).await.expect("it listens");
    (client, messages, listening)
}

/// Calls have labels of their routes only, whatever a client names; both sides count how each ended, and how long it took.
#[tokio::test]
async fn calls_are_counted_by_route_and_outcome() {
    let calls = Calls::new();
    let server = server().layer(calls.clone()).build();
    let metrics = Metrics::new(&server).with_calls(&calls);
    let options = ClientOptions::new().layer(calls.clone());
    let (client, _messages, _listening) = client(&server, "metrics-calls", options).await;
    client.call::<i64>("Math", "Secret-ann", &1).await.expect_err("there is no such method");
    client.call::<i64>("Math", "Half", &3).await.expect_err("it is odd");
    for _ in 0..3 {
        client.call::<i64>("Math", "Half", &4).await.expect("it is even");
    }
    client.call::<i64>("Math", "Half", "four").await.expect_err("it is no number");
    client.call::<i64>("Secret-bob", "x", &1).await.expect_err("there is no such service");

    let text = metrics.encode();
    let found = samples(&text);
    let of = |name: &str| found.get(name).copied().unwrap_or_else(|| panic!("no {name} in {text}"));
    let half = r#"path="Math",method="Half""#;
    assert_eq!(of(&format!(r#"bothways_calls_total{{{half},code="ok"}}"#)), 3.0);
    assert_eq!(of(&format!(r#"bothways_calls_total{{{half},code="application"}}"#)), 1.0);
    assert_eq!(of(&format!(r#"bothways_calls_total{{{half},code="bad_arguments"}}"#)), 1.0);
    assert_eq!(of(r#"bothways_calls_total{path="unknown",method="unknown",code="not_found"}"#), 2.0);
    assert_eq!(of(&format!("bothways_call_seconds_count{{{half}}}")), 5.0);
    assert_eq!(of(&format!(r#"bothways_call_seconds_bucket{{le="+Inf",{half}}}"#)), 5.0);
    assert!(0.0 < of(&format!("bothways_call_seconds_sum{{{half}}}")));

    // The client's route has its name once a call has succeeded; before that it is unknown, and so is what is no route.
    assert_eq!(of(&format!(r#"bothways_client_calls_total{{{half},code="ok"}}"#)), 3.0);
    assert_eq!(of(&format!(r#"bothways_client_calls_total{{{half},code="bad_arguments"}}"#)), 1.0);
    let unknown = r#"path="unknown",method="unknown""#;
    assert_eq!(of(&format!(r#"bothways_client_calls_total{{{unknown},code="application"}}"#)), 1.0);
    assert_eq!(of(&format!(r#"bothways_client_calls_total{{{unknown},code="not_found"}}"#)), 2.0);
    assert!(!text.contains("Secret"), "what a client names is no label: {text}");
    assert!(text.ends_with("# EOF\n") && CONTENT_TYPE.starts_with("application/openmetrics-text; version=1.0.0"));
}

/// Pushes, sessions, queues, bytes and ends, as the server counts them; never a user, a topic or an address.
#[tokio::test]
async fn what_a_server_counts_is_told() {
    let server = server()
        .auth(|request| async move {
            request.session().ok_or("gone")?.bind_user("Secret-ann");
            Ok::<_, &str>(())
        })
        .build();
    let metrics = Metrics::new(&server).with_queues_kept(Duration::ZERO);
    let (client, mut messages, _listening) = client(&server, "metrics-Secret", ClientOptions::new()).await;
    let push = || Push::new("Secret", "new", "letter");
    let receipt = server.push(&Target::user("Secret-ann"), &push()).expect("small");
    drop(messages.next().await.expect("it came"));
    receipt.handled().await;
    server.push(&Target::user("Secret-ann"), &push()).expect("small");
    client.subscribe("Secret.topic").await.expect_err("no such topic is open");

    let text = metrics.encode();
    let found = samples(&text);
    let of = |name: &str| found.get(name).copied().unwrap_or_else(|| panic!("no {name} in {text}"));
    assert_eq!(of(r#"bothways_pushes_total{class="tracked",stage="handled"}"#), 1.0);
    assert_eq!(of(r#"bothways_pushes_total{class="fire",stage="dropped_full"}"#), 0.0);
    assert_eq!(of(r#"bothways_sessions{state="resumable"}"#), 1.0);
    assert_eq!((of("bothways_connections"), of("bothways_connections_accepted_total")), (1.0, 1.0));
    assert_eq!((of("bothways_pushes_waiting"), of("bothways_queue_bytes_count")), (1.0, 1.0));
    assert_eq!(
        (of(r#"bothways_queue_bytes_bucket{le="0.0"}"#), of(r#"bothways_queue_bytes_bucket{le="+Inf"}"#)),
        (0.0, 1.0)
    );
    assert!(
        100.0 < of(r#"bothways_bytes_total{direction="out"}"#) && 3.0 <= of(r#"bothways_frames_total{direction="in"}"#)
    );
    assert!(!text.contains("Secret"), "no name is a label: {text}");

    drop(messages.next().await);
    client.close();
    server.shutdown(Duration::from_secs(5)).await;
    let found = samples(&metrics.encode());
    let closes: f64 = found.iter().filter(|(name, _)| name.starts_with("bothways_close_total")).map(|(_, n)| n).sum();
    assert_eq!((closes, found["bothways_connections"]), (1.0, 0.0));
    drop(server);
}

/// The text is well formed as OpenMetrics has it: each metric is described once, before its samples, which stand together,
/// and no series comes twice. Metrics of the application stand beside.
#[tokio::test]
async fn the_text_is_well_formed() {
    let calls = Calls::new();
    let server = server().layer(calls.clone()).build();
    let mut metrics = Metrics::new(&server).with_calls(&calls);
    let own = bothways_metrics::prometheus_client::metrics::counter::Counter::<u64>::default();
    own.inc();
    metrics.registry().register("orders", "Orders that came", own);
    let metrics = Arc::new(metrics);
    let text = metrics.encode();
    assert!(text.contains("\norders_total 1\n"), "{text}");

    let (mut families, mut seen) = (Vec::<&str>::new(), std::collections::BTreeSet::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let family = rest.split(' ').next().expect("a name");
            assert!(!families.contains(&family), "{family} is described twice");
            families.push(family);
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().expect("a name");
            let family = families.last().expect("it is described");
            let suffix = name.strip_prefix(family).unwrap_or_else(|| panic!("{name} stands among those of {family}"));
            assert!(["", "_total", "_bucket", "_sum", "_count", "_info"].contains(&suffix), "{name}");
            assert!(seen.insert(line.rsplit_once(' ').expect("a value").0), "{line} comes twice");
        }
    }
    drop(server);
}
