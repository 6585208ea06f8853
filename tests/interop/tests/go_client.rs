//! The unmodified Go client, case by case, against the Rust server.
//!
//! What each case checks stands in `go/README.md`. Every case fails, whatever it is about, if the server
//! sends a frame that an unmodified client must never get.

use std::time::Duration;

use bothways_interop::{
    certificates::Certificates,
    go::go,
    peers::{ServerProcess, finish_case, go_client},
};

/// More than any case takes, on a slow machine too.
const CASE: Duration = Duration::from_secs(120);

const TOKEN: &str = "bearer interop";

macro_rules! cases {
    ($($test:ident $case:literal $($argument:literal)*;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            let Some(go) = go() else { return };
            let server = ServerProcess::rust(&[]).await;
            finish_case(go_client(go, &server.address, $case, &[$($argument),*]), CASE).await;
        }
    )*};
}

cases! {
    msgpack "msgpack";
    json "json";
    bare_values_in_msgpack "bare-msgpack";
    bare_values_in_json "bare-json";
    integers_that_do_not_fit "narrow";
    protobuf "protobuf";
    thrift "thrift";
    raw "raw";
    functions "function";
    router_handlers "router";
    metadata "metadata";
    errors "errors";
    a_panic_gives_nothing_away "panic";
    oneway "oneway";
    heartbeats "heartbeat";
    compression "compression";
    timeouts "timeout";
    ten_thousand_calls_at_once "concurrent";
    payloads_of_16_mib "large";
    pushes_before_the_reply "push-before-reply";
    a_hundred_thousand_pushes_in_order "pushes";
    the_documentations_example "bidirectional";
    contradicting_lengths "strict";
    the_loss_that_the_client_asks_for "loss" "-kick";
}

/// What cannot be framed ends its connection; a payload that cannot be unpacked is an error of its call only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_frames() {
    let Some(go) = go() else { return };
    let server = ServerProcess::rust(&[]).await;
    let result = finish_case(go_client(go, &server.address, "malformed", &[]), CASE).await;
    assert_eq!(result["answered"], 3);
}

/// With a token on both sides every case is as it is without; the one about tokens needs it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens() {
    let Some(go) = go() else { return };
    let server = ServerProcess::rust(&["--auth", TOKEN]).await;
    for case in ["auth", "metadata", "errors", "push-before-reply", "malformed"] {
        finish_case(go_client(go, &server.address, case, &["-auth", TOKEN]), CASE).await;
    }
}

/// All cases over a Unix socket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unix_sockets() {
    let Some(go) = go() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let address = format!("unix@{}", folder.path().join("server").display());
    let server = ServerProcess::rust_at(&address, &[]).await;
    finish_case(go_client(go, &server.address, "all", &[]), CASE).await;
}

fn borrowed(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

/// All cases over TLS, the server's certificate checked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls() {
    let Some(go) = go() else { return };
    let certificates = Certificates::new();
    let server = ServerProcess::rust(&borrowed(&certificates.server_arguments(false))).await;
    let arguments = certificates.client_arguments(false);
    finish_case(go_client(go, &server.address, "all", &borrowed(&arguments)), CASE).await;
}

/// A client without a certificate is not let in where one is asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_with_client_certificates() {
    let Some(go) = go() else { return };
    let certificates = Certificates::new();
    let server = ServerProcess::rust(&borrowed(&certificates.server_arguments(true))).await;
    for case in ["msgpack", "bidirectional", "concurrent"] {
        let arguments = certificates.client_arguments(true);
        finish_case(go_client(go, &server.address, case, &borrowed(&arguments)), CASE).await;
    }
    let arguments = certificates.client_arguments(false);
    let mut stranger = go_client(go, &server.address, "msgpack", &borrowed(&arguments));
    assert_eq!(stranger.ended(CASE).await.code(), Some(1));
}

/// A server that is killed is a loss that the application hears of, and its pending call fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_a_killed_server() {
    let Some(go) = go() else { return };
    let mut server = ServerProcess::rust(&[]).await;
    let mut client = go_client(go, &server.address, "loss", &[]);
    client.line_where(CASE, |line| line.contains("\"ready\"")).await;
    server.process.kill().await;
    let result = finish_case(client, CASE).await;
    assert_eq!(result["metadata"]["server"], server.socket_address());
}

/// Go's Failtry client finds the server that came back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_back_is_found() {
    let Some(go) = go() else { return };
    let mut server = ServerProcess::rust(&[]).await;
    let mut client = go_client(go, &server.address, "reconnect", &[]);
    client.line_where(CASE, |line| line.contains("\"connected\"")).await;
    server.process.kill().await;
    let _back = ServerProcess::rust_at(&server.address, &[]).await;
    let result = finish_case(client, CASE).await;
    assert!(result["connections"].as_u64().is_some_and(|connections| 2 <= connections), "{result}");
}
