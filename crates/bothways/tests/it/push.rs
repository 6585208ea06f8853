//! Servers that send unasked.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use bothways::{
    Class, Client, ClientOptions, Connection, Limits, Metadata, OutgoingOptions, Priority, Push, PushError, QueueBound,
    Reply, Request, Router, Server, Target, WeakServer,
    raw::{self, FanOut, PushFrame, fan_out},
};
use hex_literal::hex;
use tokio::sync::mpsc;

use crate::{
    scripted::{Scripted, ScriptedServer, reply, request},
    support::{Args, Product, address, arith, connections, echoing, gate, oneshot_to, settle, soon, until},
};

/// A server remembers who called, and sends to it when it likes.
#[tokio::test(start_paused = true)]
async fn a_server_sends_to_a_client_that_called() {
    let (sender, mut callers) = tokio::sync::mpsc::unbounded_channel();
    let server = arith()
        .handler("Chat", "Join", move |request: Request| {
            sender.send(request.connection().clone()).expect("the test listens");
            std::future::ready(Reply::ok(""))
        })
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (client, mut messages) =
        Client::bidirectional(listening.address(), ClientOptions::new()).await.expect("it listens");

    let product: Product = client.call("Arith", "Mul", &Args { a: 10, b: 20 }).await.expect("it multiplies");
    assert_eq!(product, Product { c: 200 });

    client.oneshot("Chat", "Join", &()).await.expect("there is room");
    let caller = callers.recv().await.expect("it joined");
    server.send_message(&caller, "Chat", "say", &Metadata::new().with("k", "v"), "abcde").expect("there is room");
    let message = messages.next().await.expect("it is connected");
    assert_eq!((message.service_path(), message.service_method()), ("Chat", "say"));
    assert_eq!(message.metadata().get("k"), Some("v"));
    assert_eq!(message.payload().expect("not compressed"), "abcde");
    assert_eq!(message.server(), listening.address());
}

/// A push to a plain client is what Go sends except for the number, whose highest bit keeps it apart from every call of
/// the client (P2).
#[tokio::test(start_paused = true)]
async fn a_push_is_the_bytes_that_go_sends() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    let connection = &connections(&server, 1).await[0];
    connection.send_message("p", "m", &Metadata::new().with("k", "v"), "abcde").expect("there is room");
    client
        .hears(hex!(
            "08 00 20 00 8000000000000000 00000021 00000001 70 00000001 6d"
            "0000000a 00000001 6b 00000001 76 00000005 6162636465"
        ))
        .await;
}

/// B14. What a handler pushes before it returns leaves before its reply.
#[tokio::test(start_paused = true)]
async fn a_push_made_in_a_handler_precedes_its_reply() {
    let (handler, mut asked) = gate();
    let at_once = |request: Request| {
        request.connection().send_message("T", "News", &Metadata::new(), "").expect("there is room");
        std::future::ready(Reply::ok(""))
    };
    let server = echoing().handler("T", "AtOnce", at_once).handler("T", "Later", handler).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    for full in [false, true] {
        client.say([request(1, "Later", b""), request(2, "Echo", b"")].concat()).await;
        client.hears(reply(2, "Echo", b"")).await;
        let connection = &connections(&server, 1).await[0];
        let mut stuffed = 0;
        while full && connection.stats().pushes_waiting < 100 {
            connection.send_message("T", "Stuff", &Metadata::new(), vec![0; 1000]).expect("there is room");
            stuffed += 1;
        }
        client.say([request(3, "AtOnce", b""), request(4, "Echo", b"")].concat()).await;
        settle().await;
        let later = soon(asked.recv()).await.expect("it runs");
        connection.send_message("T", "Late", &Metadata::new(), "").expect("there is room");
        later.answer(Reply::ok(""));
        settle().await;
        let mut heard = Vec::new();
        for _ in 0..stuffed + 5 {
            heard.push(client.next().await.service_method().to_owned());
        }
        let at = |method| heard.iter().position(|heard| heard == method).expect("it came");
        assert!(at("News") < at("AtOnce"), "{heard:?}");
        assert!(at("Late") < at("Later"), "{heard:?}");
        if full {
            assert!(at("Echo") < at("News"), "a reply whose handler pushed nothing waits for no push");
        }
    }
}

/// The same of what a handler pushes to the session of its caller, whatever is promised of it: behind a full socket it
/// waits with the session, and the reply with it. A reply whose handler pushed nothing waits for nothing.
#[tokio::test(start_paused = true)]
async fn a_push_to_a_session_precedes_the_reply_behind_a_full_socket() {
    const KINDS: [(&str, Class, Priority); 4] = [
        ("Bulk", Class::Tracked, Priority::Bulk),
        ("Fire", Class::Fire, Priority::Normal),
        ("High", Class::Tracked, Priority::High),
        ("Value", Class::Tracked, Priority::Normal),
    ];
    for negotiated in [false, true] {
        let home = Arc::<OnceLock<WeakServer>>::default();
        let of_handler = Arc::clone(&home);
        let push_all = move |request: &Request| {
            let server = of_handler.get().and_then(WeakServer::upgrade).expect("it serves");
            for (method, class, priority) in KINDS {
                let class = if method == "Value" { Class::Latest("k".to_owned()) } else { class };
                let push = Push::new("T", method, "").class(class).priority(priority);
                let receipt = server.push(&Target::connection(request.connection().id()), &push).expect("small");
                assert_eq!(receipt.outcomes().targets(), 1);
            }
        };
        let at_once = move |request: Request| {
            push_all(&request);
            std::future::ready(Reply::ok(""))
        };
        let (handler, mut asked) = gate();
        let server = echoing().handler("T", "AtOnce", at_once).handler("T", "Later", handler).build();
        home.set(server.downgrade()).expect("it is set once");
        let listening = server.listen(&address()).await.expect("the name is free");
        let mut client = match negotiated {
            false => Scripted::connect(listening.address()).await,
            true => Scripted::connect_negotiated(listening.address()).await,
        };
        client.say([request(1, "Later", b""), request(2, "Echo", b"")].concat()).await;
        client.hears(reply(2, "Echo", b"")).await;
        let connection = &connections(&server, 1).await[0];
        let target = Target::connection(connection.id());
        let mut expected = 0;
        let stuffing = Push::new("T", "Stuff", vec![0; 1000]).priority(Priority::Bulk);
        while connection.stats().pushes_waiting < 100 {
            connection.send_message("T", "Full", &Metadata::new(), vec![0; 1000]).expect("there is room");
            expected += 1;
        }
        for _ in 0..100 {
            server.push(&target, &stuffing).expect("small");
            expected += 1;
        }

        client.say([request(3, "AtOnce", b""), request(4, "Echo", b"")].concat()).await;
        settle().await;
        let later = soon(asked.recv()).await.expect("it runs");
        server.push(&target, &Push::new("T", "Late", "")).expect("small");
        later.answer(Reply::ok(""));
        settle().await;
        let waiting = server.sessions(&target).expect("no topic")[0].waiting().0;
        assert!(100 < waiting, "they wait with the session: {waiting}");
        let mut heard = Vec::new();
        for _ in 0..expected + KINDS.len() + 4 {
            heard.push(client.next().await.service_method().to_owned());
        }
        let at = |method| heard.iter().position(|heard| heard == method).expect("it came");
        for (method, ..) in KINDS {
            assert!(at(method) < at("AtOnce"), "{method} of {heard:?}");
        }
        assert!(at("Late") < at("Later"), "{heard:?}");
        assert!(at("Echo") < at("Late"), "a reply whose handler pushed nothing waits for no push: {heard:?}");
    }
}

/// The connection ends, or its session does, while a reply waits for pushes: the reply leaves without them.
#[tokio::test(start_paused = true)]
async fn a_reply_that_waits_for_pushes_leaves_when_there_are_none_any_more() {
    for ends_session in [false, true] {
        let (handler, mut asked) = gate();
        let server = echoing().handler("T", "Later", handler).build();
        let listening = server.listen(&address()).await.expect("the name is free");
        let mut client = Scripted::connect(listening.address()).await;
        client.say([request(1, "Later", b""), request(2, "Echo", b"")].concat()).await;
        client.hears(reply(2, "Echo", b"")).await;
        let connection = &connections(&server, 1).await[0];
        let target = Target::connection(connection.id());
        while connection.stats().pushes_waiting < 100 {
            connection.send_message("T", "Full", &Metadata::new(), vec![0; 1000]).expect("there is room");
        }
        let later = soon(asked.recv()).await.expect("it runs");
        let receipt = server.push(&target, &Push::new("T", "Late", "")).expect("small");
        later.answer(Reply::ok(""));
        settle().await;
        match ends_session {
            false => connection.close(),
            true => server.sessions(&target).expect("no topic")[0].end("enough"),
        }
        let mut heard = Vec::new();
        while let Some(message) = client.try_next().await {
            heard.push(message.service_method().to_owned());
        }
        assert!(heard.iter().any(|method| method == "Later"), "{heard:?}");
        assert!(!heard.iter().any(|method| method == "Late"), "{receipt:?}");
    }
}

/// B11. What a server sends as the first thing of all is not missed, not even by a client that is not
/// yet told that it is connected.
#[tokio::test(start_paused = true)]
async fn early_pushes_are_not_lost() {
    let server = echoing()
        .on_connect(|connection| {
            for n in 0_u32..1000 {
                connection.send_message("T", "Early", &Metadata::new(), n.to_be_bytes().to_vec()).expect("room");
            }
        })
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (_client, mut messages) =
        Client::bidirectional(listening.address(), ClientOptions::new()).await.expect("it listens");
    for n in 0_u32..1000 {
        let message = soon(messages.next()).await.expect("it is connected");
        assert_eq!(message.payload().expect("plain")[..], n.to_be_bytes());
    }
    assert_eq!(messages.dropped(), 0);
}

/// Both ends push 20,000 messages at once; nobody waits for the other, all arrive in order. One task
/// that awaits its writes before it reads stops after the first.
#[tokio::test(start_paused = true)]
async fn both_may_push_at_once() {
    const COUNT: u32 = 20_000;
    let (sender, mut received) = mpsc::unbounded_channel();
    let server = Server::builder()
        .handler("T", "In", move |request: Request| {
            sender.send(request.payload().expect("plain")).expect("the test listens");
            std::future::ready(Reply::ok(""))
        })
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (client, mut messages) =
        Client::bidirectional(listening.address(), ClientOptions::new()).await.expect("it listens");
    let connection = connections(&server, 1).await.remove(0);
    let payload = |n: u32| n.to_be_bytes().repeat(16);
    let down = async {
        for n in 0..COUNT {
            let wait = Duration::from_secs(10);
            connection.send_message_within(wait, "T", "Out", &Metadata::new(), payload(n)).await.expect("room");
        }
    };
    let up = async {
        for n in 0..COUNT {
            oneshot_to(&client, "In", payload(n)).await.expect("room");
        }
    };
    let heard_below = async {
        for n in 0..COUNT {
            let message = messages.next().await.expect("it is connected");
            assert_eq!(message.payload().expect("plain")[..], payload(n));
        }
    };
    let heard_above = async {
        for n in 0..COUNT {
            assert_eq!(received.recv().await.expect("the server lives")[..], payload(n));
        }
    };
    soon(async { tokio::join!(down, up, heard_below, heard_above) }).await;
    assert_eq!((messages.dropped(), connection.stats().pushes_dropped), (0, 0));
}

/// One frame, encoded once, for everybody who is connected; those who are gone are counted.
#[tokio::test(start_paused = true)]
async fn a_broadcast_reaches_everybody() {
    let server = echoing().outgoing(OutgoingOptions::new().push_queue(QueueBound::messages(10).bytes(10_000))).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(Client::bidirectional(listening.address(), ClientOptions::new()).await.expect("it listens"));
    }
    let connections = connections(&server, 5).await;
    let outcome = raw::broadcast(&server, "T", "All", &Metadata::new(), b"x").expect("it is small");
    assert_eq!(outcome, FanOut { queued: 5, ..FanOut::default() });
    for connection in &connections {
        assert_eq!(server.connection(connection.id()).map(|found| found.id()), Some(connection.id()));
    }
    let limits = Limits::default();
    let frame = |n| PushFrame::new("T", "Many", &Metadata::new(), &[n; 1000], &limits).expect("it is small");
    let outcome = fan_out(&connections, &(1..61).map(frame).collect::<Vec<_>>());
    assert_eq!(outcome, FanOut { queued: 5 * 60, ..FanOut::default() });
    for (_, messages) in &mut clients {
        for n in 0..61 {
            let message = soon(messages.next()).await.expect("it is connected");
            assert_eq!(message.service_method(), if n == 0 { "All" } else { "Many" });
            let payload = message.payload().expect("it is not packed");
            assert_eq!(payload, if n == 0 { b"x".to_vec() } else { vec![n; 1000] });
        }
    }
    drop(clients);
    until(|| connections.iter().all(Connection::is_closed)).await;
    assert_eq!(
        fan_out(&connections, &[PushFrame::new("T", "x", &Metadata::new(), b"", &limits).expect("small")]).closed,
        5
    );
    let error = connections[0].send_message("T", "x", &Metadata::new(), "").expect_err("it is over");
    assert!(matches!(error, PushError::Closed(_)), "{error}");
}

/// A plain server means nothing by a key: what it sends twice comes twice.
#[tokio::test(start_paused = true)]
async fn a_key_of_a_plain_server_is_none() {
    for (is_plain, count) in [(true, 2), (false, 1)] {
        let server = ScriptedServer::listen().await;
        let accepting = async { if is_plain { server.accept_plain().await } else { server.accept_negotiated().await } };
        let connecting = Client::bidirectional(&server.address, ClientOptions::new());
        let (client, mut peer) = tokio::join!(connecting, accepting);
        let (_client, mut messages) = client.expect("let in");
        let header = bothways_proto::Header::oneway(bothways_proto::Seq::new(1), bothways_proto::SerializeType::RAW);
        let pairs = Metadata::new().with(bothways_proto::keys::IDEMPOTENCY_KEY, "k");
        for _ in 0..2 {
            peer.say(bothways_proto::Message::new(header, "T", "Tell", &pairs, b"x").frame()).await;
        }
        crate::support::settle().await;
        assert_eq!(std::iter::from_fn(|| messages.try_next()).count(), count, "{is_plain}");
    }
}

/// A push that is too large is refused, and nothing of it leaves.
#[tokio::test(start_paused = true)]
async fn a_push_that_is_too_large_is_refused() {
    let server = echoing().limits(Limits::default().body_bytes_max(1000)).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    let connection = &connections(&server, 1).await[0];
    let error = connection.send_message("T", "Large", &Metadata::new(), vec![0; 1000]).expect_err("too large");
    assert!(matches!(error, PushError::TooLarge(_)), "{error}");
    assert!(raw::broadcast(&server, "T", "Large", &Metadata::new(), &[0; 1000]).is_err());
    client.hears_nothing().await;
    assert_eq!(connection.stats().pushes_sent, 0);
}

/// Handlers of pushes run one after the other, in order; one that fails or panics ends only itself.
#[tokio::test(start_paused = true)]
async fn handlers_of_pushes_run_in_order() {
    let (sender, mut seen) = mpsc::unbounded_channel();
    let handlers = Router::new().handler("T", "News", move |request: Request| {
        let sender = sender.clone();
        async move {
            let n = request.payload().expect("plain")[0];
            // The first takes longest: the order is that of the server all the same.
            tokio::time::sleep(Duration::from_millis(10 - u64::from(n))).await;
            sender.send(n).expect("the test listens");
            assert_ne!(n, 1, "one panics");
            if n == 2 { Reply::error("one fails") } else { Reply::ok("") }
        }
    });
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let _client = Client::with_handlers(listening.address(), ClientOptions::new(), handlers).await.expect("it listens");
    let connection = &connections(&server, 1).await[0];
    for n in 0..5 {
        connection.send_message("T", "Unknown", &Metadata::new(), "").expect("room");
        connection.send_message("T", "News", &Metadata::new(), vec![n]).expect("room");
    }
    for n in 0..5 {
        assert_eq!(soon(seen.recv()).await, Some(n));
    }
}

/// The stream of messages ends with the client, though the messages themselves hold its connection.
#[tokio::test(start_paused = true)]
async fn the_stream_of_messages_ends_with_its_client() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (client, mut messages) =
        Client::bidirectional(listening.address(), ClientOptions::new()).await.expect("it listens");
    connections(&server, 1).await[0].send_message("T", "News", &Metadata::new(), "").expect("room");
    let kept = soon(messages.next()).await.expect("it is connected");
    connections(&server, 1).await[0].send_message("T", "Last", &Metadata::new(), "").expect("room");
    settle().await;
    drop(client);
    assert_eq!(soon(messages.next()).await.map(|last| last.service_method().to_owned()).as_deref(), Some("Last"));
    assert!(soon(messages.next()).await.is_none());
    assert_eq!(kept.service_method(), "News");
}
