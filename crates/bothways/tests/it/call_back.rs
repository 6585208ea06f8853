//! Servers that call their clients.

use std::time::Duration;

use bothways::{
    CallError, CallOptions, Client, ClientOptions, CloseReason, Connection, ErrorCode, Metadata, Reply, Request,
    Router, Server, ServerBuilder, server::Listening,
};
use bothways_proto::{Capabilities, keys};
use tokio::{sync::Semaphore, time::Instant};

use crate::{
    scripted::{Scripted, hello, is_control, ping, reply_to},
    support::{address, call, call_with, connections, echo, echoing, gate, oneshot_to, settle, soon, until},
};

/// A server, a client with these handlers, and the server's handle on it.
async fn connected(
    builder: ServerBuilder,
    options: ClientOptions,
    handlers: Router,
) -> (Server, Listening, Client, Connection) {
    let server = builder.build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let client = Client::with_handlers(listening.address(), options, handlers).await.expect("it listens");
    let connection = connections(&server, 1).await.remove(0);
    until(|| connection.takes_calls()).await;
    (server, listening, client, connection)
}

/// B4. A server calls a client as a client calls a server: values, errors, unknown names, panics.
#[tokio::test(start_paused = true)]
async fn a_client_answers_its_server() {
    let handlers = Router::new()
        .handler("T", "Echo", echo)
        .handler("T", "Fails", |_| std::future::ready(Reply::error("boom")))
        .handler("T", "Panics", |_: Request| async { panic!("secret") });
    let (_server, _listening, _client, connection) = connected(echoing(), ClientOptions::new(), handlers).await;
    assert_eq!(call(&connection, "Echo", "x").await.expect("answered"), "x");
    let error = call(&connection, "Fails", "").await.expect_err("it fails");
    assert_eq!((error.remote_text(), error.code()), (Some("boom"), None));
    let error = call(&connection, "None", "").await.expect_err("there is none, as it announced");
    assert!(matches!(error, CallError::NotSupported), "{error}");
    let error = call(&connection, "Panics", "").await.expect_err("it panics");
    assert_eq!(error.code(), Some(ErrorCode::Internal));
    assert!(!error.to_string().contains("secret"), "{error}");
}

/// The number of a call to a client has bits 63 and 62, so that nobody takes it for a reply (P1, P2).
/// A call that is dropped is cancelled under that number.
#[tokio::test(start_paused = true)]
async fn calls_to_a_client_are_marked_and_cancelled() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect_negotiated(listening.address()).await;
    let connection = connections(&server, 1).await.remove(0);
    let asking = tokio::spawn({
        let connection = connection.clone();
        async move { call(&connection, "Ask", "x").await }
    });
    let request = client.next().await;
    assert_eq!(request.header().seq().get() >> 62, 3);
    assert!(!request.header().is_oneway());
    asking.abort();
    let cancel = client.next().await;
    assert!(is_control(&cancel, keys::CANCEL), "{cancel:?}");
    assert_eq!(cancel.metadata().get(keys::CANCEL_SEQ), Some(&*request.header().seq().to_string()));
    assert_eq!(connection.stats().calls_pending, 0);
    client.say(reply_to(&request, b"late")).await;
    settle().await;
    assert_eq!(connection.stats().late_replies, 1);
}

/// A plain client is never called: the error comes before anything is sent.
#[tokio::test(start_paused = true)]
async fn a_plain_client_is_never_called() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    let connection = connections(&server, 1).await.remove(0);
    for _ in 0..2 {
        let error = call(&connection, "Ask", "").await.expect_err("it takes none");
        assert!(matches!(error, CallError::NotSupported), "{error}");
        client.hears_nothing().await;
        client.say(ping(0)).await;
        client.next().await;
    }
}

/// A deadline travels: the client's handler knows it, and is dropped when the server gives up.
#[tokio::test(start_paused = true)]
async fn a_deadline_reaches_the_client() {
    let (handler, mut asked) = gate();
    let handlers = Router::new().handler("T", "Slow", handler);
    let (_server, _listening, client, connection) = connected(echoing(), ClientOptions::new(), handlers).await;
    let began = Instant::now();
    let asking = tokio::spawn(async move {
        call_with(&connection, "Slow", "", CallOptions::new().timeout(Duration::from_secs(3))).await
    });
    let mut running = soon(asked.recv()).await.expect("it runs");
    assert_eq!(running.request.deadline(), Some(began + Duration::from_secs(3)));
    let error = asking.await.expect("no panic").expect_err("nobody answers");
    assert!(matches!(error, CallError::TimedOut(_)), "{error}");
    assert_eq!(began.elapsed(), Duration::from_secs(3));
    running.dropped().await;
    until(|| client.stats().calls_running == 0).await;
}

/// Hands a number back and forth until it is zero.
async fn down(request: Request) -> Reply {
    let n = request.payload().expect("plain")[0];
    if n == 0 {
        return Reply::ok(vec![0]);
    }
    match call(request.connection(), "Down", vec![n - 1]).await {
        Ok(below) => Reply::ok([&below[..], &[n]].concat()),
        Err(error) => Reply::error(error.to_string()),
    }
}

/// A handler may call back, and that call's handler as well, to depth 8, a hundred times at once.
#[tokio::test(start_paused = true)]
async fn calls_nest_both_ways() {
    let handlers = Router::new().handler("T", "Down", down);
    let options = ClientOptions::new().server_calls_max(1000);
    let (server, _listening, client, connection) =
        connected(echoing().handler("T", "Down", down), options, handlers).await;
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..100 {
        let (client, connection) = (client.clone(), connection.clone());
        calls.spawn(async move {
            if n % 2 == 0 { call(&client, "Down", vec![8]).await } else { call(&connection, "Down", vec![8]).await }
        });
    }
    while let Some(outcome) = soon(calls.join_next()).await {
        assert_eq!(outcome.expect("no panic").expect("answered")[..], [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    }
    settle().await;
    assert_eq!(
        (server.stats().calls_running, client.stats().calls_pending, connection.stats().calls_pending),
        (0, 0, 0)
    );
}

/// A client runs as many calls as it may and refuses more at once; pushes are taken all the same.
#[tokio::test(start_paused = true)]
async fn a_busy_client_refuses_calls_and_takes_pushes() {
    let (handler, mut asked) = gate();
    let (news, mut pushes) = gate();
    let handlers = Router::new().handler("T", "Slow", handler).handler("T", "News", news);
    let options = ClientOptions::new().server_calls_max(1);
    let (_server, _listening, client, connection) = connected(echoing(), options, handlers).await;
    let first = tokio::spawn({
        let connection = connection.clone();
        async move { call(&connection, "Slow", "").await }
    });
    let running = soon(asked.recv()).await.expect("it runs");
    let error = call(&connection, "Slow", "").await.expect_err("one runs already");
    assert_eq!(error.code(), Some(ErrorCode::Overloaded));
    assert!(error.is_safe_to_retry());
    connection.send_message("T", "News", &Metadata::new(), "").expect("room");
    soon(pushes.recv()).await.expect("it came").answer(Reply::ok(""));
    assert_eq!(client.stats().oneways_refused, 0);
    running.answer(Reply::ok("done"));
    assert_eq!(first.await.expect("no panic").expect("answered"), "done");
}

/// A call to a client that goes away may have run, and says so.
#[tokio::test(start_paused = true)]
async fn a_call_to_a_client_that_goes_away_fails_at_once() {
    let (handler, mut asked) = gate();
    let handlers = Router::new().handler("T", "Slow", handler);
    let (_server, _listening, client, connection) = connected(echoing(), ClientOptions::new(), handlers).await;
    let asking = tokio::spawn(async move { call(&connection, "Slow", "").await });
    let _running = soon(asked.recv()).await.expect("it runs");
    let began = Instant::now();
    drop(client);
    let error = asking.await.expect("no panic").expect_err("it is gone");
    assert!(matches!(error, CallError::Closed { written: true, .. }), "{error}");
    assert!(began.elapsed() < Duration::from_secs(1));
}

/// A call made while the client's token is being checked waits for that, but not beyond its deadline
/// and not beyond the connection.
#[tokio::test(start_paused = true)]
async fn a_call_waits_for_the_check_of_the_hello() {
    static CHECKED: Semaphore = Semaphore::const_new(0);
    let check = |_| async { CHECKED.acquire().await.map(|permit| permit.forget()).map_err(|error| error.to_string()) };
    let server = echoing().auth(check).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    client.say(hello(0, Capabilities::ALL, &Metadata::new())).await;
    let connection = connections(&server, 1).await.remove(0);
    settle().await;
    let options = CallOptions::new().timeout(Duration::from_secs(1));
    let error = call_with(&connection, "Ask", "", options).await.expect_err("not yet welcomed");
    assert!(matches!(error, CallError::TimedOut(Duration::ZERO)) && error.is_safe_to_retry(), "{error}");

    let asking = tokio::spawn({
        let connection = connection.clone();
        async move { call(&connection, "Ask", "").await }
    });
    client.hears_nothing().await;
    CHECKED.add_permits(1);
    assert!(client.next().await.header().is_heartbeat(), "the welcome comes before the call");
    let request = client.next().await;
    client.say(reply_to(&request, b"yes")).await;
    assert_eq!(asking.await.expect("no panic").expect("answered"), "yes");

    let mut client = Scripted::connect(listening.address()).await;
    client.say(hello(0, Capabilities::ALL, &Metadata::new())).await;
    let connection = connections(&server, 2).await.remove(1);
    settle().await;
    let asking = tokio::spawn(async move { call(&connection, "Ask", "").await });
    settle().await;
    client.reset();
    let error = asking.await.expect("no panic").expect_err("the client is gone");
    assert!(matches!(error, CallError::Closed { written: false, reason: CloseReason::Io(_) }), "{error}");
}

/// A client's request and the server's answers to it share a connection with calls back, in any mix.
#[tokio::test(start_paused = true)]
async fn a_handler_may_call_back_before_it_answers() {
    let ask_back = |request: Request| async move {
        match call(request.connection(), "Name", "").await {
            Ok(name) => Reply::ok(["hello, ".as_bytes(), &name].concat()),
            Err(error) => Reply::error(error.to_string()),
        }
    };
    let handlers = Router::new().handler("T", "Name", |_| std::future::ready(Reply::ok("Ada")));
    let (server, _listening, client, _connection) =
        connected(echoing().handler("T", "Greet", ask_back), ClientOptions::new(), handlers).await;
    assert_eq!(call(&client, "Greet", "").await.expect("answered"), "hello, Ada");
    // Called by a oneway request, it does the same, and nobody hears the answer.
    oneshot_to(&client, "Greet", "").await.expect("room");
    until(|| server.stats().calls_running == 0).await;
}

/// A client's handler finds its client, over which it calls the server that asks; a server's finds none.
#[tokio::test(start_paused = true)]
async fn a_clients_handler_finds_its_client() {
    let is_at_server = |request: bothways::Request| {
        std::future::ready(bothways::Reply::ok(if request.client().is_none() { "server" } else { "client" }))
    };
    let server = crate::support::echoing().handler("T", "Where", is_at_server).build();
    let listening = server.listen(&crate::support::address()).await.expect("the name is free");
    let handlers = bothways::Router::new()
        .handler("T", "Ask", |request: bothways::Request| async move {
            let client = request.client().expect("it is kept");
            match crate::support::call(&client, "Where", "").await {
                Ok(place) => bothways::Reply::ok(place),
                Err(error) => bothways::Reply::error(error.to_string()),
            }
        })
        .handler("T", "Context", |request: bothways::Request| {
            let client = bothways::Context::new(request).client();
            std::future::ready(bothways::Reply::ok(client.expect("it is kept").address()))
        });
    let options = bothways::ClientOptions::new();
    let client = bothways::Client::with_handlers(listening.address(), options, handlers).await.expect("let in");
    let connection = crate::support::connections(&server, 1).await.remove(0);
    assert_eq!(crate::support::call(&connection, "Ask", "").await.expect("answered"), "server");
    let address = crate::support::call(&connection, "Context", "").await.expect("answered");
    assert_eq!(address, client.address());
    drop(client);
    crate::support::connections(&server, 0).await;
}
