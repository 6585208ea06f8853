//! Bounds, and what a peer that runs into one is told.

use std::time::Duration;

use bothways::{Client, ClientOptions, CloseReason, ErrorCode, Limits, Metadata, Reply, Server};
use tokio::time::Instant;

use crate::{
    scripted::{Scripted, oneway, ping, reply, request, request_with},
    support::{address, call, connections, echoing, gate, oneshot_to, settle, soon, until},
};

/// S10. As many connections as are allowed, however many come at once; a place is free again when one ends.
#[tokio::test(start_paused = true)]
async fn connections_are_bounded() {
    let server = echoing().connections_max(3).build();
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
            true => builder.calls_per_connection_max(2).build(),
            false => builder.calls_max(2).build(),
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
    let strange: [&[u8]; 4] = [b"GET / HTTP/1.1\r\n", &too_large, &bad_length, &[8; 40]];
    for bytes in strange {
        let mut client = Scripted::connect(listening.address()).await;
        client.say([&request(7, "Echo", b"before")[..], bytes].concat()).await;
        client.hears(reply(7, "Echo", b"before")).await;
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

/// Metadata beyond the limits ends the connection; within them it goes both ways, also beside an error.
#[tokio::test(start_paused = true)]
async fn metadata_is_bounded() {
    let server = echoing().limits(Limits::default().metadata_pairs_max(2)).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    let two = Metadata::new().with("a", "1").with("b", "2");
    client.say(request_with(1, "Echo", &two, b"")).await;
    client.next().await;
    client.say(request_with(2, "Echo", &two.with("c", "3"), b"")).await;
    client.hears_the_end().await;
}
