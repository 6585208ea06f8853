//! Health, readiness, and the debug endpoint.

use std::time::Duration;

use bothways_http::FrontOptions;

use crate::support::{Http, ask, builder, serve, until};

#[tokio::test]
async fn readiness_ends_when_the_server_begins_to_stop() {
    let served = serve(builder(), FrontOptions::new()).await;
    for path in ["/healthz", "/readyz"] {
        let answer = ask(served.address(), &format!("GET {path}"), "").await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
    }
    assert_eq!(ask(served.address(), "POST /readyz", "").await.status, 405);

    let mut kept = Http::connect(served.address()).await;
    let call = "POST /rpc/Arith/Mul\nContent-Type: application/json";
    assert_eq!(kept.ask(call, "{}").await.status, 200);
    served.server.drain(Duration::from_secs(5), 100).await;
    assert_eq!(ask(served.address(), "GET /healthz", "").await.status, 200);
    let ready = ask(served.address(), "GET /readyz", "").await;
    assert_eq!((ready.status, ready.header("connection")), (503, "close"), "{ready:?}");
    let answer = ask(served.address(), call, "{}").await;
    assert_eq!((answer.status, answer.header("x-bothways-error")), (503, "shutting_down"), "{answer:?}");
    kept.closed().await;
}

/// A page is served as it is, and may use nothing but what comes from here.
#[tokio::test]
async fn a_page_is_served_with_a_policy() {
    let options = FrontOptions::new().file("/", "text/html; charset=utf-8", "<!doctype html>").gateway(false);
    let served = serve(builder(), options).await;
    let page = ask(served.address(), "GET /?x=1", "").await;
    assert_eq!((page.status, page.body.as_str()), (200, "<!doctype html>"));
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    let policy = page.header("content-security-policy");
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
    assert_eq!(page.header("x-content-type-options"), "nosniff");
    assert_eq!(ask(served.address(), "POST /", "").await.status, 405);
    assert_eq!(ask(served.address(), "GET /other", "").await.status, 404);
}

#[tokio::test]
async fn the_debug_endpoint_is_closed_unless_it_is_opened() {
    let closed = serve(builder(), FrontOptions::new()).await;
    assert_eq!(ask(closed.address(), "GET /debug/vars", "").await.status, 404);

    let served = serve(builder(), FrontOptions::new().debug(true)).await;
    let mut sleeper = Http::connect(served.address()).await;
    let head = "POST /rpc/Arith/Sleep\nContent-Type: application/json";
    sleeper.send(crate::support::request(head, "60000")).await;
    until("it sleeps", || served.server.stats().calls_running == 1).await;
    let vars = ask(served.address(), "GET /debug/vars", "").await.json();
    assert_eq!(vars["server"]["connections"], 1, "{vars:#}");
    assert_eq!(vars["server"]["calls_running"], 1, "{vars:#}");
    assert_eq!(vars["tasks"]["by_kind"]["handler"], 1, "{vars:#}");
    assert_eq!(vars["tasks"]["by_kind"]["http_connection"], 2, "{vars:#}");
    assert_eq!(vars["http"]["requests"], 2, "{vars:#}");
    assert!(vars["queues"]["outgoing_bytes"].is_u64() && vars["tasks"]["all"].is_u64(), "{vars:#}");
}

#[cfg(feature = "metrics")]
#[tokio::test]
async fn metrics_are_closed_unless_they_are_opened() {
    use bothways_metrics::{CONTENT_TYPE, Calls, Metrics};

    let closed = serve(builder(), FrontOptions::new()).await;
    assert_eq!(ask(closed.address(), "GET /metrics", "").await.status, 404);

    let calls = Calls::new();
    let options = {
        let calls = calls.clone();
        FrontOptions::new().metrics(move |server| Metrics::new(server).with_calls(&calls))
    };
    let served = serve(builder().layer(calls), options).await;
    let call = "POST /rpc/Arith/Mul\nContent-Type: application/json";
    assert_eq!(ask(served.address(), call, "{}").await.status, 200);
    let answer = ask(served.address(), "GET /metrics", "").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, CONTENT_TYPE));
    let line = answer.body.lines().find(|line| line.starts_with("bothways_calls_total{") && line.contains("\"Mul\""));
    assert!(line.is_some_and(|line| line.ends_with(" 1")), "{}", answer.body);
    assert!(answer.body.ends_with("# EOF\n"));
    assert_eq!(ask(served.address(), "POST /metrics", "").await.status, 405);
}
