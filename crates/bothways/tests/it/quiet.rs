//! What a peer can bring about with each of its messages fills no log.

use bothways::{
    Client, ClientOptions, FailMode, Metadata, MultipleServersDiscovery, Reply, Request, Router, SelectMode, XClient,
    xclient::Selection,
};

use crate::{
    admin::Log,
    scripted::{Scripted, ScriptedServer, control},
    support::{address, call, echoing, settle, until},
};
use bothways_proto::{Header, Message, Seq, SerializeType, keys};

/// A message of a plain server.
fn message(path: &str, method: &str) -> Vec<u8> {
    let header = Header::oneway(Seq::of_push(0), SerializeType::RAW);
    Message::new(header, path, method, &Metadata::new(), b"").frame().to_vec()
}

/// No line is longer than what it may show of a peer, and its own words.
#[track_caller]
fn check_lines(log: &Log) {
    let longest = log.text().lines().map(str::len).max().unwrap_or(0);
    assert!(longest < 4096, "{longest}");
}

/// Messages that no handler takes, or whose handlers fail or panic, are a line of each kind; names are cut.
#[tokio::test(start_paused = true)]
async fn messages_of_a_server_are_a_line_of_each_kind() {
    let (log, _guard) = Log::begin();
    let server = ScriptedServer::listen().await;
    let handlers = Router::new()
        .handler("T", "Fails", |_| std::future::ready(Reply::error("\u{1b}".repeat(100_000))))
        .handler("T", "Panics", |_: Request| async { panic!("{}", "x".repeat(100_000)) });
    let options = ClientOptions::new();
    let (client, mut peer) =
        tokio::join!(Client::with_handlers(&server.address, options, handlers), server.accept_plain());
    let client = client.expect("it listens");
    let long = "name".repeat(10_000);
    for _ in 0..50 {
        peer.say(message(&long, &long)).await;
        peer.say(message("T", "Fails")).await;
        peer.say(message("T", "Panics")).await;
    }
    settle().await;
    for line in ["no handler takes", "a handler of server messages failed", "a handler of server messages panicked"] {
        assert_eq!(log.lines(line), 1, "{line}");
    }
    check_lines(&log);
    drop(client);
}

/// The same with messages that wait for an application which fails them, and where nobody listens.
#[tokio::test(start_paused = true)]
async fn messages_that_an_application_fails_are_a_line() {
    let (log, _guard) = Log::begin();
    let server = ScriptedServer::listen().await;
    let options = ClientOptions::new();
    let (client, mut peer) =
        tokio::join!(Client::bidirectional(&server.address, options.clone()), server.accept_plain());
    let (_client, mut messages) = client.expect("it listens");
    let (deaf, mut other) = tokio::join!(Client::connect(&server.address, options), server.accept_plain());
    let _deaf = deaf.expect("it listens");
    let long = "name".repeat(10_000);
    for _ in 0..50 {
        peer.say(message(&long, &long)).await;
        other.say(message(&long, &long)).await;
        messages.next().await.expect("it came").fail("no".repeat(100_000));
    }
    settle().await;
    assert_eq!(log.lines("the application failed to handle a server message"), 1);
    assert_eq!(log.lines("this client does not listen"), 1);
    check_lines(&log);
}

/// Calls whose handler panics are so many lines, for the ids that callers have; hooks, and what clients finish, are one.
#[tokio::test(start_paused = true)]
async fn panics_that_clients_bring_about_are_few_lines() {
    let (log, _guard) = Log::begin();
    let server = echoing()
        .handler("T", "Panics", |_: Request| async { panic!("{}", "x".repeat(100_000)) })
        .on_connect(|_| panic!("on purpose"))
        .on_disconnect(|_, _| panic!("on purpose"))
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    for _ in 0..50 {
        call(&client, "Panics", "x").await.expect_err("it panics");
        drop(Scripted::connect(listening.address()).await);
    }
    until(|| server.stats().connections == 1).await;
    settle().await;
    // The sixteen are of the process, in which other tests may run.
    assert!((1..=16).contains(&log.lines("a handler panicked")), "{}", log.lines("a handler panicked"));
    assert_eq!(log.lines("a hook panicked"), 1);
    check_lines(&log);
}

/// What a server says as it goes, and a client as it misbehaves, is cut.
#[tokio::test(start_paused = true)]
async fn last_words_are_cut() {
    let (log, _guard) = Log::begin();
    let server = ScriptedServer::listen().await;
    let (client, mut peer) =
        tokio::join!(Client::connect(&server.address, ClientOptions::new()), server.accept_negotiated());
    let _client = client.expect("it listens");
    peer.say(control(0, keys::GOODBYE, keys::GOODBYE_WHY, &"\u{1b}bye".repeat(5_000))).await;
    until(|| log.lines("the connection was lost") == 1).await;
    check_lines(&log);
}

/// What is wrong with each list of a discovery, and with a selector that is asked for each call, is a line of each kind.
#[tokio::test(start_paused = true)]
async fn lists_that_are_wrong_are_a_line_of_each_kind() {
    let (log, _guard) = Log::begin();
    let servers = MultipleServersDiscovery::new(["memu@quiet-lists"]);
    let panics = SelectMode::by_user(|_: &Selection<'_>| panic!("on purpose"));
    let xclient = XClient::new("T", FailMode::Failfast, panics, servers.clone(), ClientOptions::new());
    for _ in 0..50 {
        servers.update((0..50).map(|n| format!("quic@host-{n}:1")).chain(["memu@quiet-lists".to_owned()]));
        assert_eq!(xclient.servers().len(), 1);
        servers.update([""; 0]);
        assert_eq!(xclient.servers().len(), 1);
        xclient.call::<()>("M", &()).await.expect_err("it panics");
    }
    for line in ["a server is left out", "the discovery lists no server", "a selector panicked"] {
        assert_eq!(log.lines(line), 1, "{line}");
    }
    check_lines(&log);
}
