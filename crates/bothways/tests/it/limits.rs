//! Bounds, and what a peer that runs into one is told.

use std::time::Duration;

use bothways::{
    CallError, Client, ClientOptions, CloseReason, ErrorCode, Limits, Metadata, Reply, SerializeType, Server,
    ServerLimits,
};
use bothways_proto::{Header, Message, Seq};
use tokio::time::Instant;

use crate::{
    scripted::{Scripted, ScriptedServer, oneway, ping, reply, request, request_with},
    support::{address, call, connections, echoing, gate, oneshot_to, settle, soon, until},
};

/// S10. As many connections as are allowed, however many come at once; a place is free again when one ends.
#[tokio::test(start_paused = true)]
async fn connections_are_bounded() {
    let server = echoing().limits(ServerLimits::new().connections_max(3)).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(Scripted::connect(listening.address()).await);
    }
    settle().await;
    let mut taken = Vec::new();
    for mut client in clients {
        if client.try_say(ping(0)).await.is_ok() && client.try_next().await.is_some() {
            taken.push(client);
        }
    }
    assert_eq!(taken.len(), 3);
    let stats = server.stats();
    assert_eq!((stats.connections, stats.connections_accepted, stats.connections_refused), (3, 3, 7));
    taken.pop();
    connections(&server, 2).await;
    let mut client = Scripted::connect(listening.address()).await;
    client.say(ping(0)).await;
    client.next().await;
}

/// S10. More calls than may run are answered as overloaded at once, of one connection or of all;
/// requests without a reply are dropped and counted.
#[tokio::test(start_paused = true)]
async fn calls_at_once_are_bounded() {
    for per_connection in [true, false] {
        let (handler, mut asked) = gate();
        let builder = echoing().handler("T", "Wait", handler);
        let server = match per_connection {
            true => builder.limits(ServerLimits::new().calls_per_connection_max(2)).build(),
            false => builder.limits(ServerLimits::new().calls_max(2)).build(),
        };
        let listening = server.listen(&address()).await.expect("the name is free");
        let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
        let other = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
        let calls = [(); 2].map(|()| {
            let client = client.clone();
            tokio::spawn(async move { call(&client, "Wait", "").await })
        });
        let running = [soon(asked.recv()).await.expect("it runs"), soon(asked.recv()).await.expect("it runs")];
        let began = Instant::now();
        let error = call(&client, "Echo", "").await.expect_err("two run");
        assert_eq!((error.code(), began.elapsed()), (Some(ErrorCode::Overloaded), Duration::ZERO));
        assert!(error.is_safe_to_retry());
        assert_eq!(call(&other, "Echo", "").await.is_ok(), per_connection);
        oneshot_to(&client, "Wait", "").await.expect("room");
        let [connection, _] = &connections(&server, 2).await[..] else { unreachable!() };
        until(|| connection.stats().oneways_refused == 1).await;
        running.into_iter().for_each(|asked| asked.answer(Reply::ok("")));
        for call in calls {
            call.await.expect("no panic").expect("answered");
        }
        call(&client, "Echo", "").await.expect("there is room again");
    }
}

/// Heartbeats are answered at once while as many calls run as one likes, on their own connection and elsewhere.
#[tokio::test(start_paused = true)]
async fn heartbeats_are_answered_while_calls_run() {
    let (handler, mut asked) = gate();
    let server = echoing().handler("T", "Wait", handler).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut clients = Vec::new();
    for _ in 0..64 {
        let mut client = Scripted::connect(listening.address()).await;
        client.say((0..128).flat_map(|n| request(n, "Wait", b"")).collect::<Vec<u8>>()).await;
        clients.push(client);
    }
    let mut running = Vec::new();
    while running.len() < 64 * 128 {
        running.push(soon(asked.recv()).await.expect("it runs"));
    }
    let began = Instant::now();
    for client in &mut clients {
        client.say(ping(999)).await;
        assert!(client.next().await.header().is_heartbeat());
    }
    assert_eq!((began.elapsed(), server.stats().calls_running), (Duration::ZERO, 64 * 128));
}

/// S2, S4. What is no frame ends the connection before memory is taken for it; what came before it is
/// answered, and nobody else notices.
#[tokio::test(start_paused = true)]
async fn what_is_no_frame_ends_the_connection() {
    let reasons = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let kept = std::sync::Arc::clone(&reasons);
    let server: Server =
        echoing().on_disconnect(move |_, reason| kept.lock().expect("no panic").push(reason.clone())).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut other = Scripted::connect(listening.address()).await;
    let mut too_large = ping(0)[..12].to_vec();
    too_large.extend(u32::MAX.to_be_bytes());
    let mut bad_length = request(1, "Echo", b"x");
    bad_length[19] = 0xff;
    let strange: [(&[u8], _); 4] = [
        (b"GET / HTTP/1.1\r\n", None),
        (&too_large, Some("`body_bytes_max`")),
        (&bad_length, None),
        (&[8; 40], Some("`body_bytes_max`")),
    ];
    for (bytes, told) in strange {
        let mut client = Scripted::connect(listening.address()).await;
        client.say([&request(7, "Echo", b"before")[..], bytes].concat()).await;
        client.hears(reply(7, "Echo", b"before")).await;
        // Of a frame that is too large the number can be read, and so its sender is told why.
        if let Some(told) = told {
            assert!(client.next().await.error_text().is_some_and(|text| text.contains(told)));
        }
        client.hears_the_end().await;
    }
    other.say(request(1, "Echo", b"")).await;
    other.hears(reply(1, "Echo", b"")).await;
    settle().await;
    let reasons = reasons.lock().expect("no panic");
    assert_eq!(reasons.len(), 4);
    assert!(reasons.iter().all(|reason| matches!(reason, CloseReason::BadFrame(_))), "{reasons:?}");
}

/// W8. A bad frame does not cost the replies of handlers that run already.
#[tokio::test(start_paused = true)]
async fn a_bad_frame_does_not_cost_earlier_replies() {
    let (handler, mut asked) = gate();
    let server = echoing().handler("T", "Wait", handler).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    client.say([&request(7, "Wait", b"")[..], b"nonsense"].concat()).await;
    let running = soon(asked.recv()).await.expect("it runs");
    settle().await;
    running.answer(Reply::ok("done"));
    client.hears(reply(7, "Wait", b"done")).await;
    client.hears_the_end().await;
}

/// A handler that takes for ever does not keep the connection of a client that has gone.
#[tokio::test(start_paused = true)]
async fn a_handler_does_not_keep_a_connection_for_ever() {
    for cancel in [false, true] {
        let (handler, mut asked) = gate();
        let server = echoing().handler("T", "Wait", handler).cancel_on_disconnect(cancel).build();
        let listening = server.listen(&address()).await.expect("the name is free");
        let mut client = Scripted::connect(listening.address()).await;
        client.say([request(1, "Wait", b""), oneway(2, "Wait", b"")].concat()).await;
        let mut running = [soon(asked.recv()).await.expect("it runs"), soon(asked.recv()).await.expect("it runs")];
        let began = Instant::now();
        drop(client);
        connections(&server, 0).await;
        settle().await;
        for asked in &mut running {
            assert_eq!(asked.is_dropped(), cancel);
        }
        let expected = if cancel { 0..=1 } else { 5..=7 };
        assert!(expected.contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    }
}

/// Metadata beyond the limits costs its request, which is answered with the limit; the connection goes on. Within them
/// it goes both ways, also beside an error.
#[tokio::test(start_paused = true)]
async fn metadata_is_bounded() {
    let server = echoing().limits(Limits::default().metadata_pairs_max(2)).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    let two = Metadata::new().with("a", "1").with("b", "2");
    client.say(request_with(1, "Echo", &two, b"")).await;
    client.next().await;
    let three = two.with("c", "3");
    client.say([request_with(2, "Echo", &three, b""), request(3, "Echo", b"next")].concat()).await;
    let refused = client.next().await;
    assert_eq!(refused.header().seq(), Seq::new(2));
    assert!(refused.error_text().is_some_and(|text| text.contains("`metadata_pairs_max` is 2")), "{refused:?}");
    client.hears(reply(3, "Echo", b"next")).await;
    let header = Header::oneway(Seq::new(4), SerializeType::RAW);
    client.say(Message::new(header, "T", "Echo", &three, b"").frame()).await;
    let connection = connections(&server, 1).await.remove(0);
    until(|| connection.stats().oneways_refused == 1).await;
}

/// A reply with more metadata than the client takes costs its call, and the connection goes on.
#[tokio::test(start_paused = true)]
async fn metadata_of_a_reply_is_bounded() {
    let server = ScriptedServer::listen().await;
    let options = ClientOptions::new().limits(Limits::default().metadata_pairs_max(16));
    let (client, mut peer) = tokio::join!(Client::connect(&server.address, options), server.accept_plain());
    let client = client.expect("it listens");
    for pairs in [17, 16] {
        let script = async {
            let request = peer.next().await;
            let metadata = (0..pairs).fold(Metadata::new(), |all, n| all.with(&n.to_string(), "x"));
            let header = request.header().reply();
            peer.say(Message::new(header, "T", "Ask", &metadata, b"done").frame()).await;
        };
        let (answer, ()) = tokio::join!(call(&client, "Ask", ""), script);
        match pairs {
            16 => assert_eq!(answer.expect("it fits"), "done"),
            _ => assert!(matches!(answer, Err(CallError::Decode(_))), "{answer:?}"),
        }
    }
}

/// F82. A request that is too large is answered with the limit, also if its body never comes, and with what ran before
/// it. The connection ends if the rest stays away.
#[tokio::test(start_paused = true)]
async fn a_request_that_is_too_large_is_answered() {
    for cancel in [false, true] {
        let server = echoing().limits(Limits::default().body_bytes_max(1000)).cancel_on_disconnect(cancel).build();
        let listening = server.listen(&address()).await.expect("the name is free");
        let mut client = Scripted::connect(listening.address()).await;
        let large = request(8, "Echo", &[7; 2000]);
        client.say([&request(7, "Echo", b"")[..], &large[..500]].concat()).await;
        client.hears(reply(7, "Echo", b"")).await;
        let refused = client.next().await;
        assert_eq!(refused.header().seq(), Seq::new(8));
        let text = refused.error_text().expect("it failed");
        assert!(text.contains("`body_bytes_max` is 1000"), "{text}");
        client.hears_the_end().await;
    }
}

/// F83. HTTP and TLS that come first are answered in one line; behind a frame they are nonsense.
#[tokio::test(start_paused = true)]
async fn http_is_told_what_speaks_here() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    for first in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"CONNECT x", b"POST /", &[0x16, 3, 1, 0, 200, 1]] {
        let mut client = Scripted::connect(listening.address()).await;
        client.say(first).await;
        let heard = String::from_utf8(client.bytes_to_the_end().await).expect("a text");
        assert!(heard.starts_with("HTTP/1.0 400 ") && heard.contains("rpcx port"), "{heard}");
    }
    let mut client = Scripted::connect(listening.address()).await;
    client.say([0x09; 20]).await;
    assert_eq!(client.bytes_to_the_end().await, b"");
}
