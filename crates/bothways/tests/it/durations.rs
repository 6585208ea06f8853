//! Any duration is one: none panics, and none hangs.

use std::time::Duration;

use bothways::{
    CallOptions, Client, ClientOptions, Heartbeat, Peer2PeerDiscovery, Push, Router, Server, ServerBuilder,
    SessionOptions, Target, Timeouts, layer,
    server::{AdminClient, AdminOptions, Page},
    session::{PresenceStatus, TopicOptions},
    transport::ConnectOptions,
    xclient::{FailMode, SelectMode, XClient, XClientOptions},
};

use crate::{
    scripted::Scripted,
    support::{address, call_with, echo, echoing, soon},
};

type ServerOption = (&'static str, fn(ServerBuilder, Duration) -> ServerBuilder);
type ClientOption = (&'static str, fn(ClientOptions, Duration) -> ClientOptions);

const SERVER: &[ServerOption] = &[
    ("none", |builder, _| builder),
    ("first_frame", |builder, limit| builder.timeouts(Timeouts::new().first_frame(limit))),
    ("idle", |builder, limit| builder.timeouts(Timeouts::new().idle(limit))),
    ("heartbeat", |builder, limit| builder.heartbeat(Heartbeat::every(limit).timeout(limit))),
    ("write", |builder, limit| builder.timeouts(Timeouts::new().write(limit))),
    ("resume_window", |builder, limit| builder.sessions(SessionOptions::new().resume_window(limit))),
    ("frame_progress", |builder, within| builder.timeouts(Timeouts::new().frame_progress(1, within))),
    ("layer::timeout", |builder, limit| builder.layer(layer::timeout(limit))),
    ("TopicOptions::history", |builder, time_to_live| {
        let news = TopicOptions::new().open().history(10, time_to_live);
        builder.topic("news", news).expect("a name")
    }),
];

const CLIENT: &[ClientOption] = &[
    ("none", |options, _| options),
    ("timeout", ClientOptions::timeout),
    ("connection_wait", ClientOptions::connection_wait),
    ("room_wait", ClientOptions::room_wait),
    ("heartbeat", |options, limit| options.heartbeat(Heartbeat::every(limit).timeout(limit))),
    ("idle_timeout", |options, limit| options.idle_timeout(Some(limit))),
    ("backoff", |options, limit| options.backoff(limit, limit)),
    ("connect_timeout", |options, limit| options.connect_options(ConnectOptions::default().connect_timeout(limit))),
];

/// A client connects, calls, is pushed to, loses its connection and calls again, whatever one duration is. With the
/// longest there is, all of it succeeds; with none at all, it ends.
#[tokio::test(start_paused = true)]
async fn any_duration_may_be_none_or_for_ever() {
    for limit in [Duration::ZERO, Duration::MAX] {
        for (name, option) in SERVER {
            try_all(name, option(echoing(), limit).build(), ClientOptions::new(), limit).await;
        }
        for (name, option) in CLIENT {
            // Only the back-off waits for the next connection, and any part of for ever is too long.
            let options = option(ClientOptions::new().connection_wait(Duration::from_secs(60)), limit);
            try_all(name, echoing().build(), options, limit).await;
        }
    }
}

async fn try_all(name: &str, server: Server, options: ClientOptions, limit: Duration) {
    let listening = server.listen(&address()).await.expect("the name is free");
    let handlers = Router::new().handler("C", "say", echo);
    let connected = soon(Client::with_handlers(listening.address(), options, handlers)).await;
    if let Err(error) = &connected {
        assert!(limit.is_zero(), "{name}: {error}");
    }
    let Ok(client) = connected else { return };
    let outcome = call_with(&client, "Echo", "x", CallOptions::new().timeout(limit)).await;
    assert!(limit.is_zero() || outcome.is_ok(), "{name}: {outcome:?}");
    let push = Push::new("C", "say", "x").time_to_live(limit);
    let receipt = server.push(&Target::everyone(), &push).expect("small");
    soon(receipt.handled()).await;
    if let Some(session) = server.sessions(&Target::everyone()).expect("no topic").first() {
        let receipt = soon(session.push_within(limit, &Push::new("C", "say", "x"))).await.expect("small");
        soon(receipt.handled()).await;
    }
    let subscribed = soon(client.subscribe("news")).await;
    if name.starts_with("Topic") {
        let subscribed = subscribed.expect("it is open");
        server.publish("news", &push).expect("small");
        assert_eq!(subscribed.position.is_none(), limit.is_zero(), "no time is no history");
        if let Some(position) = subscribed.position {
            soon(client.subscribe_from("news", position)).await.expect("it is open");
        }
    }
    server.connections().iter().for_each(bothways::Connection::close);
    // Whether it is back in time depends on the durations; that it does not hang does not.
    let _ = call_with(&client, "Echo", "x", CallOptions::new().timeout(Duration::from_secs(30))).await;
    client.close();
    match name {
        "none" => soon(server.drain(limit, 1)).await,
        _ => soon(server.shutdown(limit)).await,
    };
}

/// An XClient with each of its durations, in each fail mode.
#[tokio::test(start_paused = true)]
async fn any_duration_of_an_xclient_may_be_none_or_for_ever() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    for limit in [Duration::ZERO, Duration::MAX] {
        for mode in [FailMode::Failover, FailMode::Failfast, FailMode::Failtry, FailMode::Failbackup] {
            let options = XClientOptions::new().retry_interval(limit).backup_latency(limit);
            let discovery = || Peer2PeerDiscovery::new(listening.address());
            let xclient = XClient::new("T", mode, SelectMode::RandomSelect, discovery(), options);
            let outcome = call_with(&xclient, "Echo", "x", CallOptions::new()).await;
            assert_eq!(outcome.expect("it is there").payload, "x", "{mode:?}, {limit:?}");
            // A pause for ever is not waited for by a call that has a time.
            let nobody = Peer2PeerDiscovery::new(address());
            let options = XClientOptions::new().retry_interval(limit).backup_latency(limit);
            let xclient = XClient::new("T", mode, SelectMode::RandomSelect, nobody, options);
            let options = CallOptions::new().timeout(Duration::from_secs(60));
            call_with(&xclient, "Echo", "x", options).await.expect_err("nobody is there");
        }
    }
}

/// The user of a plain client that has left may come back within the window, however long that is.
#[tokio::test(start_paused = true)]
async fn a_window_for_ever_is_one_for_plain_clients_too() {
    for window in [Duration::from_secs(120), Duration::MAX] {
        let room = TopicOptions::new().open().presence(true);
        let server = echoing()
            .sessions(SessionOptions::new().resume_window(window))
            .topic("room", room)
            .expect("a name")
            .build();
        let listening = server.listen(&address()).await.expect("the name is free");
        let client =
            Client::connect(listening.address(), ClientOptions::new().negotiate(false)).await.expect("it listens");
        crate::support::connections(&server, 1).await;
        let session = server.sessions(&Target::everyone()).expect("no topic").remove(0);
        session.bind_user("ann");
        session.subscribe("room").expect("open");
        drop(client);
        crate::support::until(|| server.stats().sessions == 0).await;
        let members = server.presence("room").expect("a topic").members;
        let of: Vec<_> = members.iter().map(|member| (member.user.as_deref(), member.status)).collect();
        assert_eq!(of, [(Some("ann"), PresenceStatus::Reconnecting)], "{window:?}");
    }
}

/// An operator's question with any time.
#[tokio::test(start_paused = true)]
async fn any_duration_of_an_admin_client_may_be_none_or_for_ever() {
    let token = AdminOptions::token("right").expect("it has characters");
    let server = Server::builder().admin(token).build();
    let listening = server.listen_admin(&address()).await.expect("the name is free");
    for limit in [Duration::ZERO, Duration::MAX] {
        let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("let in");
        let admin = AdminClient::new(client, "right").timeout(limit);
        let outcome = soon(admin.connections(Page::default())).await;
        assert_eq!(outcome.is_ok(), !limit.is_zero(), "{outcome:?}");
    }
}

/// F41. The runtime that listened first is gone; deadlines are kept where the server listens now.
#[test]
fn deadlines_outlive_the_first_runtime_that_listened() {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().start_paused(true).build().expect("a runtime")
    };
    let server = echoing().timeouts(Timeouts::new().first_frame(Duration::from_millis(300))).build();
    for _ in 0..3 {
        let runtime = runtime();
        runtime.block_on(async {
            let listening = server.listen(&address()).await.expect("the name is free");
            let mut silent = Scripted::connect(listening.address()).await;
            silent.hears_the_end().await;
        });
    }
}

/// Two runtimes listen; that of the first ends, and the second takes over.
#[test]
fn deadlines_go_to_another_runtime_that_listens() {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().start_paused(true).build().expect("a runtime")
    };
    let server = echoing().timeouts(Timeouts::new().first_frame(Duration::from_millis(300))).build();
    let (first, second) = (runtime(), runtime());
    let _of_first = first.block_on(server.listen(&address())).expect("the name is free");
    let of_second = second.block_on(server.listen(&address())).expect("the name is free");
    second.block_on(tokio::task::yield_now());
    drop(first);
    second.block_on(async {
        let mut silent = Scripted::connect(of_second.address()).await;
        silent.hears_the_end().await;
    });
}

/// F63. A service may hold its server weakly, and both are dropped.
#[tokio::test(start_paused = true)]
async fn a_server_that_its_service_holds_weakly_is_dropped() {
    use std::sync::{Arc, OnceLock};
    let home = Arc::<OnceLock<bothways::WeakServer>>::default();
    let of_service = Arc::clone(&home);
    let server = Server::builder()
        .function("T", "Routes", move |(): ()| {
            let server = of_service.get().and_then(bothways::WeakServer::upgrade);
            async move { server.map(|server| server.routes().len() as u64).ok_or("it is gone") }
        })
        .build();
    home.set(server.downgrade()).expect("once");
    let listening = server.listen(&address()).await.expect("the name is free");
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("let in");
    let routes: u64 = soon(client.call("T", "Routes", &())).await.expect("it is there");
    assert_eq!(routes, server.routes().len() as u64);
    drop(client);
    server.shutdown(Duration::from_secs(5)).await;
    drop((server, listening));
    crate::support::until(|| Arc::strong_count(&home) == 1).await;
    assert!(home.get().expect("it was set").upgrade().is_none());
}
