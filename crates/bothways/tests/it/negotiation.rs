//! Hello and Welcome, and how each side behaves to a peer that knows neither.

use std::sync::{Arc, Mutex};

use bothways::{CallError, Client, ClientOptions, CloseReason, Metadata, Reconnect};
use bothways_proto::{Capabilities, Header, Hello, Message, Seq, SerializeType, Welcome, keys};

use crate::{
    scripted::{Scripted, ScriptedServer, hello, oneway, ping, reply, reply_to, request},
    support::{address, call, connections, echoing, settle, soon},
};

/// B12. Hello is a heartbeat and the first frame; a call that waits for the connection is right behind it.
#[tokio::test(start_paused = true)]
async fn hello_comes_first_and_calls_do_not_wait_for_the_welcome() {
    let server = ScriptedServer::listen().await;
    let options = ClientOptions::new().auth("bearer t");
    let (client, peer) = tokio::join!(Client::connect(&server.address, options), server.accept_plain());
    let client = client.expect("it is let in");
    drop(peer);
    let mut peer = server.accept().await;
    let asking = tokio::spawn(async move { call(&client, "Echo", "x").await });
    let first = peer.next().await;
    assert!(first.header().is_heartbeat() && first.service_path().is_empty() && first.service_method().is_empty());
    assert_eq!(first.header().serialize(), SerializeType::MSGPACK, "as every heartbeat of Go");
    // It does not listen, so that it promises to handle nothing.
    let of_listeners = Capabilities::SESSIONS.union(Capabilities::OUTCOMES).union(Capabilities::HANDLERS);
    // And it has no other token, with which it could send again what was refused.
    let all_but_sessions = Capabilities::ALL.without(of_listeners).without(Capabilities::RETURNS);
    assert_eq!(Hello::from_metadata(&first.metadata()).map(|hello| hello.capabilities), Some(all_but_sessions));
    assert_eq!(first.metadata().get(keys::AUTH), Some("bearer t"));
    let second = peer.next().await;
    assert_eq!((second.service_method(), second.metadata().get(keys::AUTH)), ("Echo", Some("bearer t")));
    peer.say(reply_to(&second, b"y")).await;
    assert_eq!(asking.await.expect("no panic").expect("answered"), "y");
}

/// A server that echoes the Hello, as Go does, is plain: calls go on as ever.
#[tokio::test(start_paused = true)]
async fn a_server_that_echoes_is_plain() {
    let server = ScriptedServer::listen().await;
    let (client, mut peer) =
        tokio::join!(Client::connect(&server.address, ClientOptions::new()), server.accept_plain());
    let client = client.expect("it listens");
    settle().await;
    assert!(!client.connection().expect("it is up").is_negotiated());
    assert_eq!(client.stats().calls_pending, 0);
    let answering = async {
        let request = peer.next().await;
        peer.say(reply_to(&request, b"y")).await;
    };
    let (answer, ()) = tokio::join!(call(&client, "Echo", "x"), answering);
    assert_eq!(answer.expect("answered"), "y");
}

/// Both use what both can: what the client does not name, and what nobody knows, is not there.
#[tokio::test(start_paused = true)]
async fn both_use_what_both_can() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    let metadata =
        Metadata::new().with("_bw.v", "9").with("_bw.caps", "ping, teleport,cancel").with(keys::AUTH, "secret");
    client.say(Message::ping(Seq::new(3), &metadata, b"tick").frame()).await;
    let answer = client.next().await;
    assert_eq!(answer.header().seq(), Seq::new(3));
    assert!(answer.header().is_heartbeat());
    let welcome = Welcome::from_metadata(&answer.metadata()).expect("it is welcomed");
    assert_eq!(welcome.version, bothways_proto::VERSION);
    assert_eq!(welcome.capabilities, Capabilities::PING.union(Capabilities::CANCEL));
    assert_eq!(answer.metadata().get(keys::AUTH), None, "a token is not sent back");
    let [connection] = &connections(&server, 1).await[..] else { unreachable!() };
    assert!(connection.is_negotiated() && !connection.takes_calls());
    let error = call(connection, "Echo", "").await.expect_err("it takes no calls");
    assert!(matches!(error, CallError::NotSupported), "{error}");
    client.hears_nothing().await;
}

/// A client that is told not to negotiate says nothing but what Go says.
#[tokio::test(start_paused = true)]
async fn a_client_may_leave_it() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let options = ClientOptions::new().negotiate(false);
    let client = Client::connect(listening.address(), options.clone()).await.expect("it listens");
    call(&client, "Echo", "").await.expect("answered");
    assert!(!connections(&server, 1).await[0].is_negotiated());

    let server = ScriptedServer::listen().await;
    let (client, mut peer) = tokio::join!(Client::connect(&server.address, options), server.accept());
    peer.hears_nothing().await;
    drop(client);
}

/// A plain client's heartbeat is echoed byte by byte except for the response bit, oneway or not (1.9).
#[tokio::test(start_paused = true)]
async fn a_plain_heartbeat_is_echoed() {
    let server = echoing().auth(|_| async { Err("heartbeats have no token") }).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    for oneway_bit in [0, 0x20] {
        let mut heartbeat = ping(5);
        heartbeat[2] |= oneway_bit;
        client.say(&heartbeat).await;
        heartbeat[2] |= 0x80;
        client.hears(heartbeat).await;
    }
    assert!(!connections(&server, 1).await[0].is_negotiated());
}

/// The first frame decides: a Hello behind it ends the connection, and so does a second one.
#[tokio::test(start_paused = true)]
async fn a_late_hello_ends_the_connection() {
    let reasons = Arc::new(Mutex::new(Vec::new()));
    let server = echoing()
        .on_disconnect({
            let reasons = Arc::clone(&reasons);
            move |_, reason| reasons.lock().expect("no panic").push(reason.clone())
        })
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut plain = Scripted::connect(listening.address()).await;
    plain.say(request(0, "Echo", b"")).await;
    plain.hears(reply(0, "Echo", b"")).await;
    let mut negotiated = Scripted::connect_negotiated(listening.address()).await;
    for client in [&mut plain, &mut negotiated] {
        client.say(hello(1, Capabilities::ALL, &Metadata::new())).await;
        client.hears_the_end().await;
    }
    settle().await;
    let reasons = reasons.lock().expect("no panic");
    assert!(matches!(&reasons[..], [CloseReason::Misbehaved(_), CloseReason::Misbehaved(_)]), "{reasons:?}");
}

/// P1. A plain client's reply to nothing, and a plain server's call or heartbeat, end the connection.
#[tokio::test(start_paused = true)]
async fn frames_that_were_not_negotiated_end_the_connection() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    client.say(reply(0, "Echo", b"")).await;
    client.hears_the_end().await;

    for frame in [request(1, "Echo", b""), ping(1)] {
        let server = ScriptedServer::listen().await;
        let options = ClientOptions::new().reconnect(Reconnect::Never);
        let (client, mut peer) = tokio::join!(Client::connect(&server.address, options), server.accept_plain());
        let client = client.expect("it listens");
        let connection = client.connection().expect("it is up");
        peer.say(frame).await;
        let reason = soon(connection.closed()).await;
        assert!(matches!(reason, CloseReason::Misbehaved(_)), "{reason}");
    }
}

/// Control messages are ordinary requests to those who did not negotiate them.
#[tokio::test(start_paused = true)]
async fn a_plain_client_cannot_cancel() {
    let (handler, mut asked) = crate::support::gate();
    let server = echoing().handler("T", "Wait", handler).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    client.say(request(4, "Wait", b"")).await;
    let running = soon(asked.recv()).await.expect("it runs");
    client.say(crate::scripted::control(5, keys::CANCEL, keys::CANCEL_SEQ, "4")).await;
    client.hears_nothing().await;
    assert!(!running.is_dropped());
}

/// A client takes a push from a plain server whatever its number is: Go's servers count from 1.
#[tokio::test(start_paused = true)]
async fn pushes_of_a_plain_server_are_taken_by_their_oneway_bit() {
    let server = ScriptedServer::listen().await;
    let (client, mut peer) =
        tokio::join!(Client::bidirectional(&server.address, ClientOptions::new()), server.accept_plain());
    let (client, mut messages) = client.expect("it listens");
    let asking = tokio::spawn(async move { call(&client, "Ask", "").await });
    let asked = peer.next().await;
    peer.say(oneway(asked.header().seq().get(), "News", b"1")).await;
    let message = soon(messages.next()).await.expect("it is connected");
    assert_eq!((message.service_method(), &message.payload().expect("plain")[..]), ("News", &b"1"[..]));
    assert!(!asking.is_finished(), "a push is no reply, even under the number of a call");
    peer.say(reply_to(&asked, b"done")).await;
    assert_eq!(asking.await.expect("no panic").expect("answered"), "done");
    let header = Header::request(Seq::new(77), SerializeType::RAW).reply();
    peer.say(Message::new(header, "T", "Late", &Metadata::new(), b"").frame()).await;
}
