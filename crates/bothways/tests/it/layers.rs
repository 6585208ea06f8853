//! What wraps handlers.

use std::time::Duration;

use bothways::{
    CallOptions, Client, ClientOptions, ErrorCode, Reply, Request, Router, Server, ServerBuilder, handler::BoxHandler,
    layer, server::Listening,
};
use tokio::time::Instant;

use crate::support::{Log, address, call, call_with, echo, echoing, gate, oneshot_to, settle, soon, until};

async fn served(builder: ServerBuilder) -> (Server, Listening, Client) {
    let server = builder.build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    call(&client, "Echo", "").await.expect("answered");
    (server, listening, client)
}

/// The shorter of the layer's limit and the caller's deadline counts; the handler knows it and is
/// dropped at it.
#[tokio::test(start_paused = true)]
async fn a_handler_has_the_shorter_of_both_times() {
    let (handler, mut asked) = gate();
    let builder = echoing().handler("T", "Slow", handler).layer(layer::timeout(Duration::from_secs(2)));
    let (server, _listening, client) = served(builder).await;
    for (callers, expected) in [(None, 2000), (Some(5000), 2000), (Some(1000), 1000)] {
        let options = callers.map_or(CallOptions::new(), |ms| CallOptions::new().timeout(Duration::from_millis(ms)));
        let began = Instant::now();
        let asking = tokio::spawn({
            let client = client.clone();
            async move { call_with(&client, "Slow", "", options).await }
        });
        let mut running = soon(asked.recv()).await.expect("it runs");
        assert_eq!(running.request.deadline(), Some(began + Duration::from_millis(expected)));
        running.dropped().await;
        assert_eq!(began.elapsed().as_millis() / 10, u128::from(expected) / 10);
        let error = asking.await.expect("no panic").expect_err("it took too long");
        assert_eq!(error.code(), (expected == 2000).then_some(ErrorCode::Timeout), "{error}");
    }
    until(|| server.stats().calls_running == 0).await;
}

/// A limit beyond the clock is none.
#[tokio::test(start_paused = true)]
async fn a_time_without_end_is_none() {
    let (_server, _listening, client) = served(echoing().layer(layer::timeout(Duration::MAX))).await;
    assert_eq!(call(&client, "Echo", "x").await.expect("answered"), "x");
}

/// As many handlers of a set run as its layer allows; more are refused at once. Others are not counted,
/// and a place is free again however its handler ended.
#[tokio::test(start_paused = true)]
async fn a_set_of_handlers_has_its_own_limit() {
    let (handler, mut asked) = gate();
    let few = Router::new().handler("T", "A", handler.clone()).handler("T", "B", handler);
    let (_server, _listening, client) = served(echoing().router(few.layer(&layer::concurrency(2)))).await;
    let ask = |method: &'static str, timeout: u64| {
        let client = client.clone();
        let options = CallOptions::new().timeout(Duration::from_secs(timeout));
        tokio::spawn(async move { call_with(&client, method, "", options).await })
    };
    for _ in 0..3 {
        let calls = [ask("A", 100), ask("B", 1)];
        let (answered, given_up) =
            (soon(asked.recv()).await.expect("it runs"), soon(asked.recv()).await.expect("it runs"));
        let began = Instant::now();
        let error = call(&client, "A", "").await.expect_err("two run");
        assert_eq!((error.code(), began.elapsed()), (Some(ErrorCode::Overloaded), Duration::ZERO));
        assert_eq!(call(&client, "Echo", "x").await.expect("not of the set"), "x");
        answered.answer(Reply::ok(""));
        for call in calls {
            let _ = call.await.expect("no panic");
        }
        settle().await;
        assert!(given_up.is_dropped());
    }
}

/// The layer that was added first sees a request first, and the reply last.
#[tokio::test(start_paused = true)]
async fn the_first_layer_is_the_outermost() {
    let named = |name: &'static str| {
        layer::from_fn(move |request: Request, next: BoxHandler| async move {
            let inner = next.handle(request).await;
            Reply::error(format!("{name}({})", inner.error_text().unwrap_or("handler")))
        })
    };
    let server = Server::builder().layer(named("first")).handler("T", "X", echo).layer(named("second")).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    let error = call(&client, "X", "").await.expect_err("layers make it one");
    assert_eq!(error.remote_text(), Some("first(second(handler))"));
}

/// Each request has a span with its names and its end, however it ends; arguments are not told.
#[tokio::test(start_paused = true)]
async fn each_request_is_traced() {
    let log = Log::default();
    let kept = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(move || kept.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let (handler, mut asked) = gate();
    let builder = echoing()
        .handler("T", "Fails", |_| std::future::ready(Reply::error("boom")))
        .handler("T", "Slow", handler)
        .handler("T", "Panics", |_: Request| async { panic!("at the disco") })
        .layer(layer::trace());
    let (_server, _listening, client) = served(builder).await;
    call(&client, "Echo", "secret").await.expect("answered");
    call(&client, "Fails", "secret").await.expect_err("it fails");
    call(&client, "Panics", "secret").await.expect_err("it panics");
    oneshot_to(&client, "Slow", "secret").await.expect("room");
    let slow = soon(asked.recv()).await.expect("it runs");
    tokio::time::sleep(Duration::from_secs(7)).await;
    slow.answer(Reply::ok(""));
    settle().await;
    drop(guard);

    let log = log.text();
    let line = |method: &str| {
        let named = format!("method=\"{method}\"");
        log.lines().rfind(|line| line.contains(&named) && line.contains("ended")).unwrap_or_else(|| panic!("{log}"))
    };
    for (method, outcome) in [("Echo", "ok"), ("Fails", "boom"), ("Panics", "dropped"), ("Slow", "ok")] {
        let line = line(method);
        assert!(line.contains("path=\"T\"") && line.contains("connection=c"), "{line}");
        assert!(line.contains(&format!("outcome=\"{outcome}\"")), "{line}");
    }
    assert!(line("Slow").contains("took=7") && line("Slow").contains("oneway=true"), "{log}");
    assert!(!log.contains("secret"), "{log}");
}
