//! Signs of life: heartbeats of both sides, and what silence means.

use std::{
    future::Future,
    sync::{Arc, Mutex},
    task::{Context, Waker},
    time::Duration,
};

use bothways::{
    CallError, Client, ClientOptions, CloseReason, FailMode, Heartbeat, Limits, Metadata, MultipleServersDiscovery,
    Push, Reconnect, Reply, Request, SelectMode, SerializeType, Server, ServerBuilder, Session, Stage, Target,
    Timeouts, XClient, XClientOptions,
};
use bothways_proto::{Capabilities, Header, Hello, Message, Seq};
use tokio::time::Instant;

use crate::{
    scripted::{Scripted, ScriptedServer, hello, ping, reply_to, request},
    support::{address, call, connections, echoing, settle, soon, until},
};

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A server whose reasons for closing are kept.
fn remembering(builder: ServerBuilder) -> (ServerBuilder, Arc<Mutex<Vec<CloseReason>>>) {
    let reasons = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&reasons);
    (builder.on_disconnect(move |_, reason| kept.lock().expect("no panic").push(reason.clone())), reasons)
}

/// A client asks a silent server for a sign of life and finds a dead one within interval, timeout and
/// the second to which times are kept.
#[tokio::test(start_paused = true)]
async fn a_client_finds_a_dead_server() {
    let server = ScriptedServer::listen().await;
    let options = ClientOptions::new().heartbeat(Heartbeat::every(s(15)).timeout(s(10))).reconnect(Reconnect::Never);
    let (client, mut peer) = tokio::join!(Client::connect(&server.address, options), server.accept_plain());
    let client = client.expect("it listens");
    let connection = client.connection().expect("it is up");
    // It answers once, then freezes.
    let asked = peer.next().await;
    assert!(asked.header().is_heartbeat() && Hello::from_metadata(&asked.metadata()).is_none());
    peer.say(asked.pong()).await;
    let began = Instant::now();
    let reason = soon(connection.closed()).await;
    assert!(matches!(reason, CloseReason::Gone { .. }), "{reason}");
    let took = began.elapsed();
    assert!(s(25) <= took && took <= s(25) + s(3), "{took:?}");
}

/// G28. A plain server whose pool is full answers heartbeats behind the calls that fill it: while a call waits for its
/// reply its silence is no death for ten times the timeout, and no longer than that.
#[tokio::test(start_paused = true)]
async fn a_plain_server_that_is_busy_is_not_dead() {
    let server = ScriptedServer::listen().await;
    let options = ClientOptions::new().heartbeat(Heartbeat::every(s(15)).timeout(s(10))).reconnect(Reconnect::Never);
    let (client, mut peer) = tokio::join!(Client::connect(&server.address, options), server.accept_plain());
    let client = client.expect("it listens");
    let connection = client.connection().expect("it is up");
    let calling = || {
        let client = client.clone();
        tokio::spawn(async move { client.call::<()>("T", "Echo", &()).await })
    };
    let first = calling();
    let asked = peer.next().await;
    tokio::time::sleep(s(90)).await;
    assert!(!connection.is_closed(), "it runs the call");
    let beat = peer.next().await;
    assert!(beat.header().is_heartbeat());
    let mut reply = reply_to(&asked, b"");
    reply.extend_from_slice(&beat.pong()[..]);
    peer.say(reply).await;
    let outcome = soon(first).await.expect("no panic");
    assert!(!matches!(outcome, Err(CallError::Closed { .. })), "{outcome:?}");

    let second = calling();
    let began = Instant::now();
    let reason = soon(connection.closed()).await;
    assert!(matches!(reason, CloseReason::Gone { .. }), "{reason}");
    let took = began.elapsed();
    assert!(s(110) <= took && took <= s(120), "{took:?}");
    soon(second).await.expect("no panic").expect_err("it is gone");
}

/// G28. A call behind a Hello that a busy plain server has not answered is not lost after `connect_timeout`.
#[tokio::test(start_paused = true)]
async fn a_hello_that_is_answered_late_fails_no_call() {
    let server = ScriptedServer::listen().await;
    let servers = MultipleServersDiscovery::new([&*server.address]);
    let xclient = XClient::new("T", FailMode::Failfast, SelectMode::RoundRobin, servers, XClientOptions::new());
    let calling = tokio::spawn(async move { xclient.call::<()>("Echo", &()).await });
    let mut peer = server.accept().await;
    let (said, asked) = (peer.next().await, peer.next().await);
    assert!(said.header().is_heartbeat() && !asked.header().is_heartbeat());
    tokio::time::sleep(s(20)).await;
    let mut reply = said.pong()[..].to_vec();
    reply.extend_from_slice(&reply_to(&asked, b""));
    peer.say(reply).await;
    let outcome = soon(calling).await.expect("no panic");
    assert!(!matches!(outcome, Err(CallError::Closed { .. } | CallError::NotConnected(_))), "{outcome:?}");
}

/// B13. A server asks a negotiated client, and finds a dead one; anything it sends is a sign of life.
#[tokio::test(start_paused = true)]
async fn a_server_finds_a_dead_client() {
    let (builder, reasons) = remembering(echoing().heartbeat(Heartbeat::every(s(15)).timeout(s(10))));
    let server = builder.build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect_negotiated(listening.address()).await;
    for _ in 0..3 {
        let asked = client.next().await;
        assert!(asked.header().is_heartbeat(), "{asked:?}");
        assert_eq!(asked.header().seq().get() >> 62, 3, "no number of the client's own");
        client.say(asked.pong()).await;
    }
    for n in 0..10 {
        client.say(request(n, "Echo", b"")).await;
        assert!(!client.next().await.header().is_heartbeat());
        tokio::time::sleep(s(10)).await;
    }
    assert_eq!(connections(&server, 1).await[0].stats().calls_pending, 0);
    let began = Instant::now();
    let frozen = client;
    connections(&server, 0).await;
    let took = began.elapsed();
    assert!(s(12) <= took && took <= s(28), "{took:?}");
    assert!(matches!(reasons.lock().expect("no panic")[..], [CloseReason::Gone { .. }]));
    drop(frozen);
}

/// B13. A plain client is never asked, and never closed for its silence.
#[tokio::test(start_paused = true)]
async fn a_plain_client_is_never_asked() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut plain = Scripted::connect(listening.address()).await;
    plain.say(ping(0)).await;
    plain.next().await;
    let mut cannot = Scripted::connect(listening.address()).await;
    cannot.say(hello(0, Capabilities::ALL.without(Capabilities::PING), &Metadata::new())).await;
    cannot.next().await;
    tokio::time::sleep(s(1000)).await;
    for client in [&mut plain, &mut cannot] {
        client.hears_nothing().await;
    }
}

/// Two of ours keep each other company for hours, and no call is left pending.
#[tokio::test(start_paused = true)]
async fn an_idle_connection_of_ours_lives() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    let connection = client.connection().expect("it is up");
    tokio::time::sleep(s(3600)).await;
    assert!(!connection.is_closed());
    settle().await;
    assert_eq!((client.stats().calls_pending, connections(&server, 1).await[0].stats().calls_pending), (0, 0));
}

/// S9. A client that sends no frame in its time is closed, even if it sends a byte now and then.
#[tokio::test(start_paused = true)]
async fn a_client_without_a_first_frame_is_closed() {
    let (builder, reasons) = remembering(echoing().timeouts(Timeouts::new().first_frame(s(5))));
    let server = builder.build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut silent = Scripted::connect(listening.address()).await;
    let mut trickling = Scripted::connect(listening.address()).await;
    let mut proper = Scripted::connect(listening.address()).await;
    proper.say(ping(0)).await;
    let began = Instant::now();
    let frame = ping(0);
    for byte in &frame[..4] {
        trickling.say([*byte]).await;
        tokio::time::sleep(s(1)).await;
    }
    for client in [&mut silent, &mut trickling] {
        client.hears_the_end().await;
        assert!(s(4) <= began.elapsed() && began.elapsed() <= s(8), "{:?}", began.elapsed());
    }
    proper.next().await;
    proper.hears_nothing().await;
    settle().await;
    assert!(matches!(
        reasons.lock().expect("no panic")[..],
        [CloseReason::NoFirstFrame(_), CloseReason::NoFirstFrame(_)]
    ));
}

/// A time limit on silence closes any client, a plain one too; without one nobody is closed.
#[tokio::test(start_paused = true)]
async fn an_idle_client_is_closed_if_that_is_wanted() {
    let (builder, reasons) =
        remembering(echoing().timeouts(Timeouts::new().idle(Some(s(30)))).heartbeat(Heartbeat::never()));
    let server = builder.build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    for _ in 0..3 {
        client.say(ping(0)).await;
        client.next().await;
        tokio::time::sleep(s(20)).await;
    }
    let began = Instant::now();
    client.hears_the_end().await;
    assert!(s(9) <= began.elapsed() && began.elapsed() <= s(13), "{:?}", began.elapsed());
    settle().await;
    assert!(matches!(reasons.lock().expect("no panic")[..], [CloseReason::Idle(_)]));
}

/// A client whose table of calls is full can still ask for a sign of life: a server that answers heartbeats
/// and takes its time with the calls is not dead.
#[tokio::test(start_paused = true)]
async fn a_full_table_of_calls_is_no_sign_of_death() {
    let server = ScriptedServer::listen().await;
    let options = ClientOptions::new()
        .heartbeat(Heartbeat::every(s(15)).timeout(s(10)))
        .limits(Limits::default().calls_pending_max(1))
        .negotiate(false);
    let (client, mut peer) = tokio::join!(Client::connect(&server.address, options), server.accept());
    let client = client.expect("it listens");
    let calling = client.clone();
    let asking = tokio::spawn(async move { call(&calling, "Slow", "x").await });
    let slow = peer.next().await;
    for _ in 0..10 {
        let asked = peer.next().await;
        assert!(asked.header().is_heartbeat(), "{asked:?}");
        peer.say(asked.pong()).await;
    }
    assert!(!client.connection().expect("it is up").is_closed());
    peer.say(reply_to(&slow, b"y")).await;
    assert_eq!(asking.await.expect("no panic").expect("answered"), "y");
}

/// Heartbeats that a peer never answers, while it says other things, leave nothing behind.
#[tokio::test(start_paused = true)]
async fn unanswered_heartbeats_do_not_pile_up() {
    let server = ScriptedServer::listen().await;
    let options = ClientOptions::new().heartbeat(Heartbeat::every(s(15)).timeout(s(10))).negotiate(false);
    let (client, mut peer) = tokio::join!(Client::connect(&server.address, options), server.accept());
    let client = client.expect("it listens");
    for _ in 0..10 {
        assert!(peer.next().await.header().is_heartbeat());
        peer.say(
            Message::new(Header::oneway(Seq::new(1), SerializeType::RAW), "T", "x", &Metadata::new(), b"").frame(),
        )
        .await;
    }
    assert!(client.stats().calls_pending <= 1, "{:?}", client.stats());
}

/// A client whose deadlines are short looks at its connection often, and acknowledges in time all the same.
#[tokio::test(start_paused = true)]
async fn short_deadlines_do_not_keep_acknowledgements_back() {
    let server = Server::builder().build();
    let listening = server.listen(&address()).await.expect("a free name");
    let options = ClientOptions::new()
        .heartbeat(Heartbeat::every(Duration::from_millis(100)).timeout(Duration::from_millis(100)));
    let (_client, mut messages) = Client::bidirectional(listening.address(), options).await.expect("it listens");
    until(|| server.sessions(&Target::everyone()).is_ok_and(|all| all.iter().any(Session::is_resumable))).await;

    let receipt = server.push(&Target::everyone(), &Push::new("Chat", "say", "hi")).expect("small");
    drop(messages.next().await);

    let handled = tokio::time::timeout(Duration::from_secs(1), receipt.handled()).await;
    assert_eq!(handled.expect("50 ms and a way").at(Stage::Handled), 1);
}

/// A server that is busy with what a client sent has not read its sign of life yet: that is not the client's silence.
#[tokio::test(start_paused = true)]
async fn a_client_is_not_gone_while_the_server_does_not_read() {
    const REQUESTS: u64 = 240;
    // Four of them are longer than a turn: those behind them wait for the next one.
    let slow = |_: Request| {
        // The clock goes on by the first poll.
        let mut cx = Context::from_waker(Waker::noop());
        let _ = std::pin::pin!(tokio::time::advance(Duration::from_millis(2))).poll(&mut cx);
        std::future::ready(Reply::ok(""))
    };
    let (builder, reasons) =
        remembering(Server::builder().handler("T", "Slow", slow).heartbeat(Heartbeat::every(s(15)).timeout(s(10))));
    let server = builder.build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect_negotiated(listening.address()).await;
    client.say((0..REQUESTS).flat_map(|n| request(n, "Slow", b"")).collect::<Vec<u8>>()).await;
    let began = Instant::now();
    let answers = async {
        let mut answered = 0;
        while answered < REQUESTS {
            let message = client.next().await;
            answered += u64::from(!message.header().is_heartbeat());
        }
    };
    let time = async {
        loop {
            tokio::time::advance(s(1)).await;
        }
    };
    tokio::select! {
        () = answers => {}
        () = time => {}
    }
    assert!(s(50) < began.elapsed(), "each four took a turn, and about a second");
    assert_eq!(connections(&server, 1).await.len(), 1);

    // Now it is silent.
    connections(&server, 0).await;
    assert!(matches!(reasons.lock().expect("no panic")[..], [CloseReason::Gone { .. }]));
    drop(client);
}
