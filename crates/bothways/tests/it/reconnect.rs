//! A connection that comes back by itself, and who is told of it.

use std::{sync::Arc, time::Duration};

use bothways::{
    CallError, CallOptions, Client, ClientOptions, CloseReason, ConnectError, ConnectionEvent, ConnectionEvents,
    Metadata, PushError, Reconnect,
};
use bothways_proto::keys;
use tokio::time::Instant;

use crate::{
    scripted::{Scripted, ScriptedServer, control, oneway, reply_to, session_pairs},
    support::{address, call, call_with, connections, echoing, oneshot_to, settle, soon, until},
};

/// The next event, as a letter and the reason of a loss.
async fn next(events: &mut ConnectionEvents) -> (char, Option<CloseReason>) {
    match soon(events.next()).await.expect("the client lives") {
        ConnectionEvent::Connected { .. } => ('C', None),
        ConnectionEvent::Lost { reason, .. } => ('L', Some(reason)),
        ConnectionEvent::Restored { losses: 1, .. } => ('R', None),
        other => panic!("{other:?}"),
    }
}

async fn ask(client: &Client, server: &mut Scripted, answer: &[u8]) -> Result<bytes::Bytes, CallError> {
    let answering = async {
        let request = server.next().await;
        server.say(reply_to(&request, answer)).await;
    };
    tokio::join!(call(client, "Ask", ""), answering).0
}

/// B8, B9. A client whose server goes away and comes back is connected again, without a call; its
/// events say so, in order, and its stream of messages goes on.
#[tokio::test(start_paused = true)]
async fn a_client_comes_back() {
    let address = address();
    let server = ScriptedServer::listen_on(&address).await;
    let (client, mut peer) = tokio::join!(Client::bidirectional(&address, ClientOptions::new()), server.accept_plain());
    let (client, mut messages) = client.expect("it listens");
    let mut events = client.events();
    ask(&client, &mut peer, b"1").await.expect("answered");
    peer.say(oneway(1, "News", b"")).await;
    drop((peer, server));
    assert!(matches!(next(&mut events).await, ('L', Some(CloseReason::PeerClosed))));
    assert!(matches!(client.connection(), Err(ConnectError::Reconnecting { .. })));

    // A server that is away for a while is found again.
    tokio::time::sleep(Duration::from_secs(60)).await;
    let server = ScriptedServer::listen_on(&address).await;
    let mut peer = server.accept_plain().await;
    assert!(matches!(next(&mut events).await, ('R', None)));
    ask(&client, &mut peer, b"2").await.expect("answered");
    peer.say(oneway(1, "News", b"")).await;
    for _ in 0..2 {
        assert_eq!(soon(messages.next()).await.expect("it goes on").service_method(), "News");
    }
    peer.reset();
    assert!(matches!(next(&mut events).await, ('L', Some(CloseReason::Io(_)))));
    let mut peer = server.accept_plain().await;
    assert!(matches!(next(&mut events).await, ('R', None)));
    ask(&client, &mut peer, b"3").await.expect("answered");
}

/// B9. One's own close is no loss; streams end with it.
#[tokio::test(start_paused = true)]
async fn ones_own_close_is_no_loss() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (client, mut messages) =
        Client::bidirectional(listening.address(), ClientOptions::new()).await.expect("it listens");
    let mut events = client.events();
    call(&client, "Echo", "").await.expect("answered");
    client.close();
    assert!(soon(events.next()).await.is_none());
    assert!(soon(messages.next()).await.is_none());
    let error = call(&client, "Echo", "").await.expect_err("it is closed");
    assert!(matches!(error, CallError::NotConnected(ConnectError::Closed)), "{error}");
    let error = oneshot_to(&client, "Echo", "").await.expect_err("it is closed");
    assert!(matches!(error, PushError::NotConnected(ConnectError::Closed)), "{error}");
    connections(&server, 0).await;
}

/// Waiting before each new try keeps a crowd of clients from coming back at once: a random time, up to
/// a limit that doubles.
#[tokio::test(start_paused = true)]
async fn tries_are_spread_and_slow_down() {
    let address = address();
    let server = ScriptedServer::listen_on(&address).await;
    let options = ClientOptions::new().backoff(Duration::from_secs(1), Duration::from_secs(4));
    let (client, peer) = tokio::join!(Client::connect(&address, options), server.accept_plain());
    let client = client.expect("it listens");
    let mut events = client.events();
    drop(peer);
    // A server that takes connections and drops them at once is asked at most as often as the limits allow.
    let began = Instant::now();
    for _ in 0..20 {
        drop(server.accept().await);
    }
    let took = began.elapsed();
    assert!(Duration::from_secs(4) <= took && took <= Duration::from_secs(60), "{took:?}");
    assert_eq!(next(&mut events).await.0, 'L');
    drop(client);
}

/// A call that waits while the connection is made is sent when it stands; with no patience it fails at once.
#[tokio::test(start_paused = true)]
async fn a_call_waits_for_the_connection() {
    for (wait, waits) in [(Duration::from_secs(60), true), (Duration::ZERO, false)] {
        let address = address();
        let server = ScriptedServer::listen_on(&address).await;
        let options = ClientOptions::new().connection_wait(wait);
        let (client, peer) = tokio::join!(Client::connect(&address, options), server.accept_plain());
        let client = client.expect("it listens");
        drop((peer, server));
        settle().await;
        let asking = tokio::spawn({
            let client = client.clone();
            async move { call(&client, "Ask", "").await }
        });
        settle().await;
        assert_ne!(asking.is_finished(), waits);
        let server = ScriptedServer::listen_on(&address).await;
        let mut peer = server.accept_plain().await;
        if waits {
            let request = peer.next().await;
            peer.say(reply_to(&request, b"at last")).await;
            assert_eq!(asking.await.expect("no panic").expect("answered"), "at last");
        } else {
            let error = asking.await.expect("no panic").expect_err("there is no connection");
            assert!(matches!(error, CallError::NotConnected(ConnectError::Reconnecting { .. })), "{error}");
            assert!(error.is_safe_to_retry());
        }
    }
}

/// A call whose bytes left may have run, one whose bytes did not cannot: the error says which it is.
#[tokio::test(start_paused = true)]
async fn a_lost_call_says_whether_it_may_have_run() {
    let server = ScriptedServer::listen().await;
    let options = ClientOptions::new().connection_wait(Duration::ZERO);
    let (client, mut peer) = tokio::join!(Client::connect(&server.address, options), server.accept_negotiated());
    let client = client.expect("it listens");
    let ask = |method: &'static str, len: usize| {
        let client = client.clone();
        tokio::spawn(async move { call(&client, method, vec![0; len]).await })
    };
    let written = ask("Read", 10);
    assert_eq!(peer.next().await.service_method(), "Read");
    let partly = ask("Partly", 200_000);
    settle().await;
    let unwritten = ask("Unwritten", 10);
    settle().await;
    peer.reset();
    for (call, expected) in [(written, true), (partly, true), (unwritten, false)] {
        let error = call.await.expect("no panic").expect_err("it is lost");
        let CallError::Closed { written, reason: CloseReason::Io(_) } = &error else { panic!("{error}") };
        assert_eq!(*written, expected);
        assert_eq!(error.is_safe_to_retry(), !expected);
    }
}

/// A client that must not come back ends with its connection.
#[tokio::test(start_paused = true)]
async fn a_client_need_not_come_back() {
    let server = ScriptedServer::listen().await;
    let options = ClientOptions::new().reconnect(Reconnect::Never);
    let (client, peer) = tokio::join!(Client::bidirectional(&server.address, options), server.accept_plain());
    let (client, mut messages) = client.expect("it listens");
    let mut events = client.events();
    drop(peer);
    assert!(matches!(next(&mut events).await, ('L', Some(CloseReason::PeerClosed))));
    assert!(soon(messages.next()).await.is_none());
    let error = call(&client, "Ask", "").await.expect_err("it is over");
    assert!(matches!(error, CallError::NotConnected(_)), "{error}");
}

/// A call whose time is over before there is a connection was not sent, and says what is wrong.
#[tokio::test(start_paused = true)]
async fn a_call_that_found_no_connection_in_its_time_was_not_sent() {
    let server = ScriptedServer::listen().await;
    let (client, peer) = tokio::join!(Client::connect(&server.address, ClientOptions::new()), server.accept_plain());
    let client = client.expect("it listens");
    let mut events = client.events();
    drop((peer, server));
    assert!(matches!(next(&mut events).await, ('L', Some(CloseReason::PeerClosed))));
    let began = Instant::now();
    let options = CallOptions::new().timeout(Duration::from_millis(500));
    let error = call_with(&client, "Ask", "", options).await.expect_err("there is no connection");
    assert!(matches!(error, CallError::NotConnected(_)), "{error}");
    assert!(error.is_safe_to_retry() && error.is_worth_retrying());
    assert!(began.elapsed() <= Duration::from_millis(501));
}

/// Nobody there at the first try is an error of `connect`, and nothing goes on behind it.
#[tokio::test(start_paused = true)]
async fn nobody_there_is_an_error() {
    let before = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let error = Client::connect(&address(), ClientOptions::new()).await.expect_err("nobody listens");
    assert!(matches!(error, ConnectError::Io { .. }), "{error}");
    until(|| tokio::runtime::Handle::current().metrics().num_alive_tasks() == before).await;
    let error = Client::connect("nonsense@x", ClientOptions::new()).await.expect_err("no address");
    assert!(matches!(error, ConnectError::Address(_)), "{error}");
}

/// A server that says goodbye gets no new call; what it has is answered, also when the next connection stands already.
/// The loss is told at once, and names its words.
#[tokio::test(start_paused = true)]
async fn a_goodbye_ends_in_good_order() {
    let server = ScriptedServer::listen().await;
    let (client, mut peer) =
        tokio::join!(Client::connect(&server.address, ClientOptions::new()), server.accept_negotiated());
    let client = client.expect("it listens");
    let mut events = client.events();
    let ask_later = |method: &'static str| {
        let client = client.clone();
        tokio::spawn(async move { call(&client, method, "").await })
    };
    let running = ask_later("Ask");
    let request = peer.next().await;
    peer.say(control(1 << 63 | 1, "Goodbye", "_bw.why", "so long")).await;
    let (letter, reason) = next(&mut events).await;
    let Some(CloseReason::Goodbye { why, .. }) = reason else { panic!("{reason:?}") };
    assert_eq!((letter, &*why), ('L', "so long"));
    let late = ask_later("Late");
    let mut second = server.accept_negotiated().await;
    assert_eq!(next(&mut events).await.0, 'R');
    let request_of_late = second.next().await;
    assert_eq!(request_of_late.service_method(), "Late");
    second.say(reply_to(&request_of_late, b"here")).await;
    assert_eq!(late.await.expect("no panic").expect("answered"), "here");
    assert!(!running.is_finished());
    peer.say(reply_to(&request, b"still")).await;
    assert_eq!(running.await.expect("no panic").expect("answered"), "still");
    // With the client end both connections.
    client.close();
    second.hears_the_end().await;
    peer.hears_the_end().await;
}

/// A client that was told when to come back comes then, counted from the telling: neither for a call that waits, nor
/// because the old connection ends, nor while that one stays open.
#[tokio::test(start_paused = true)]
async fn a_client_keeps_its_slot() {
    for old_one_stays in [true, false] {
        let server = ScriptedServer::listen().await;
        let options = ClientOptions::new().connection_wait(Duration::from_secs(60));
        let (client, mut peer) = tokio::join!(Client::connect(&server.address, options), server.accept_negotiated());
        let client = client.expect("it listens");
        let mut events = client.events();
        peer.say(control(1 << 63 | 1, "Goodbye", "_bw.after", "30000")).await;
        let began = Instant::now();
        let (_, reason) = next(&mut events).await;
        assert_eq!(reason.and_then(|reason| reason.reconnect_after()), Some(Duration::from_secs(30)));
        assert!(matches!(client.connection(), Err(ConnectError::Reconnecting { .. })));
        let waiting = tokio::spawn(async move { call(&client, "Ask", "").await });
        let kept = if old_one_stays {
            Some(peer)
        } else {
            tokio::time::sleep(Duration::from_secs(10)).await;
            drop(peer);
            None
        };
        let mut second = server.accept_negotiated().await;
        let took = began.elapsed();
        assert!(Duration::from_secs(30) <= took && took <= Duration::from_millis(30_200), "{took:?}");
        let request = second.next().await;
        second.say(reply_to(&request, b"here")).await;
        assert_eq!(waiting.await.expect("no panic").expect("answered"), "here");
        drop(kept);
    }
}

/// While the old connection lives on beside the new one, what the new one brings is acknowledged on the new one.
#[tokio::test(start_paused = true)]
async fn an_old_connection_takes_no_acknowledgement_from_the_new_one() {
    let server = ScriptedServer::listen().await;
    let welcome = async |id: &str| server.accept_with(session_pairs(id)).await;
    let (client, mut old) = tokio::join!(Client::bidirectional(&server.address, ClientOptions::new()), welcome("1"));
    let (client, _messages) = client.expect("it listens");
    old.say(control(1 << 63, "Goodbye", "_bw.why", "so long")).await;
    let mut new = welcome("2").await;
    for offset in 1..20 {
        new.say(oneway(1 << 63 | offset, "News", b"")).await;
        let began = Instant::now();
        let ack = new.next().await;
        let expected = format!("{offset},0");
        assert_eq!(ack.metadata().get(keys::ACK_OFFSETS), Some(&*expected));
        assert!(began.elapsed() <= Duration::from_millis(100));
    }
    old.hears_nothing().await;
    drop(client);
}

/// A client subscribes, and its server says goodbye before it answers. The answer is about a session that the client does
/// not have any more by then: it subscribes again in the one that it has.
#[tokio::test(start_paused = true)]
async fn an_answer_of_the_old_connection_subscribes_the_new_session_to_nothing() {
    let server = ScriptedServer::listen().await;
    let welcome = async |id: &str| server.accept_with(session_pairs(id)).await;
    let (client, mut old) = tokio::join!(Client::bidirectional(&server.address, ClientOptions::new()), welcome("1"));
    let (client, _messages) = client.expect("it listens");
    let subscribing = tokio::spawn({
        let client = client.clone();
        async move { client.subscribe("news").await }
    });
    let asked = old.next().await;
    assert_eq!(asked.service_method(), keys::SUBSCRIBE);
    old.say(control(1 << 63, "Goodbye", "_bw.why", "so long")).await;
    let mut new = welcome("2").await;
    settle().await;
    const EMPTY_MAP: &[u8] = b"\x80";
    old.say(reply_to(&asked, EMPTY_MAP)).await;
    let again = new.next().await;
    assert_eq!(again.service_method(), keys::SUBSCRIBE);
    assert!(!subscribing.is_finished());
    new.say(reply_to(&again, EMPTY_MAP)).await;
    subscribing.await.expect("no panic").expect("it may");
}

/// B10. Events and messages name their server.
#[tokio::test(start_paused = true)]
async fn events_and_messages_name_their_server() {
    let server = echoing()
        .on_connect(|connection| {
            connection.send_message("T", "News", &Metadata::new(), "").expect("room");
        })
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (client, mut messages) =
        Client::bidirectional(listening.address(), ClientOptions::new()).await.expect("it listens");
    let mut events = client.events();
    let expected: Arc<str> = listening.address().into();
    assert_eq!(soon(messages.next()).await.expect("it is connected").server(), &*expected);
    server.shutdown(Duration::ZERO).await;
    assert_eq!(soon(events.next()).await.expect("it is told").server(), Some(&expected));
}
