//! What does not fit: peers that do not read, and applications that do not take.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bothways::{
    CallError, Client, ClientOptions, CloseReason, Connection, Metadata, OutgoingOptions, Overflow, PushError,
    QueueBound, Reconnect, Reply, Request, Server, ServerBuilder, ServerLimits, Timeouts,
    raw::{self, PushFrame},
};
use bothways_proto::{Message, PeerMisbehaved, Seq};
use tokio::time::Instant;

use crate::{
    scripted::{Scripted, ScriptedServer, oneway, ping, request},
    support::{address, call, connections, echoing, gate, settle, soon},
};

const NONE: Metadata = Metadata::new();

/// A server, a client of it that does not read, and one that does.
async fn slow_and_quick(builder: ServerBuilder) -> (Server, Scripted, Connection, Client, impl Sized) {
    let server = builder.build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut slow = Scripted::connect(listening.address()).await;
    slow.say(ping(0)).await;
    let connection = connections(&server, 1).await.remove(0);
    let quick = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    call(&quick, "Echo", "").await.expect("answered");
    slow.next().await;
    (server, slow, connection, quick, listening)
}

/// Sends numbered pushes until nothing moves any more; answers how many were taken, and the refusal.
async fn fill(connection: &Connection) -> (u32, PushError) {
    let (mut taken, mut refused) = (0, false);
    loop {
        match connection.send_message("T", "News", &NONE, payload(taken)) {
            Ok(_) => (taken, refused) = (taken + 1, false),
            Err(error) if refused || connection.is_closed() => return (taken, error),
            Err(_) => {
                // The connection's task may have moved some on.
                refused = true;
                settle().await;
            }
        }
    }
}

fn number(payload: &[u8]) -> u32 {
    u32::from_be_bytes(*payload.first_chunk().expect("four bytes"))
}

fn payload(n: u32) -> Vec<u8> {
    n.to_be_bytes().repeat(250)
}

/// B1, B6. A push that finds the queue full is refused and says so; what was taken arrives, in order.
#[tokio::test(start_paused = true)]
async fn the_newest_is_refused() {
    let builder = echoing().outgoing(OutgoingOptions::new().push_queue(QueueBound::messages(10).bytes(1 << 20)));
    let (_server, mut slow, connection, quick, _listening) = slow_and_quick(builder).await;
    let (taken, error) = fill(&connection).await;
    assert!(matches!(error, PushError::Full { frames: 10, setting: Some("outgoing.push_queue"), .. }), "{error}");
    call(&quick, "Echo", "").await.expect("other clients notice nothing");
    let stats = connection.stats();
    assert_eq!((stats.pushes_sent, stats.pushes_dropped, stats.pushes_waiting), (taken.into(), 0, 10));
    for n in 0..taken {
        assert_eq!(number(&slow.next().await.wire_payload()), n);
    }
    connection.send_message("T", "News", &NONE, payload(7)).expect("there is room again");
    assert_eq!(number(&slow.next().await.wire_payload()), 7);
}

/// The bound on bytes holds too, but one push that is larger than the bound fits when nothing waits.
#[tokio::test(start_paused = true)]
async fn a_queue_is_bounded_in_bytes() {
    let (_server, _slow, connection, ..) =
        slow_and_quick(echoing().outgoing(OutgoingOptions::new().push_queue(QueueBound::messages(1000).bytes(5000))))
            .await;
    // The first is under way, as far as the socket takes it; the second waits.
    for _ in 0..2 {
        connection.send_message("T", "News", &NONE, vec![0; 100_000]).expect("room");
    }
    let error = connection.send_message("T", "News", &NONE, "x").expect_err("it is full");
    assert!(matches!(error, PushError::Full { frames: 1, bytes: 100_000.., .. }), "{error}");
}

/// The oldest that waits is dropped, and counted; what arrives is in order and ends with the newest.
#[tokio::test(start_paused = true)]
async fn the_oldest_is_dropped() {
    let builder = echoing().outgoing(
        OutgoingOptions::new().push_queue(QueueBound::messages(10).bytes(1 << 20)).overflow(Overflow::DropOldest),
    );
    let (_server, mut slow, connection, quick, _listening) = slow_and_quick(builder).await;
    for n in 0..1000 {
        connection.send_message("T", "News", &NONE, payload(n)).expect("it drops another one");
    }
    call(&quick, "Echo", "").await.expect("other clients notice nothing");
    let stats = connection.stats();
    assert!(0 < stats.pushes_dropped);
    let mut heard = Vec::new();
    for _ in stats.pushes_dropped..1000 {
        heard.push(number(&slow.next().await.wire_payload()));
    }
    slow.hears_nothing().await;
    assert!(heard.is_sorted_by(|a, b| a < b), "{heard:?}");
    assert_eq!(heard[heard.len() - 10..], (990..1000).collect::<Vec<_>>());
}

/// A client that is too slow is disconnected, alone, and its sender is told.
#[tokio::test(start_paused = true)]
async fn the_slow_one_is_disconnected() {
    let builder = echoing().outgoing(
        OutgoingOptions::new().push_queue(QueueBound::messages(10).bytes(1 << 20)).overflow(Overflow::Disconnect),
    );
    let (server, mut slow, connection, quick, _listening) = slow_and_quick(builder).await;
    let (_, error) = fill(&connection).await;
    assert!(matches!(error, PushError::Closed(CloseReason::SlowPeer(_))), "{error}");
    assert!(matches!(soon(connection.closed()).await, CloseReason::SlowPeer(_)));
    call(&quick, "Echo", "").await.expect("other clients notice nothing");
    assert_eq!(connections(&server, 1).await.len(), 1);
    slow.rest().await;
}

/// B6, W7. A client that takes no byte for the time of `timeouts.write` is closed, however little waits.
#[tokio::test(start_paused = true)]
async fn a_client_that_takes_no_byte_is_closed() {
    let builder = echoing().timeouts(Timeouts::new().write(Duration::from_secs(4)));
    let (_server, mut slow, connection, quick, _listening) = slow_and_quick(builder).await;
    fill(&connection).await;
    // As long as it takes a byte now and then, it lives.
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(2)).await;
        for _ in 0..20 {
            slow.next().await;
        }
    }
    assert!(!connection.is_closed());
    let began = Instant::now();
    assert!(matches!(soon(connection.closed()).await, CloseReason::SlowPeer(_)));
    let took = began.elapsed();
    assert!(Duration::from_secs(4) <= took && took <= Duration::from_secs(6), "{took:?}");
    assert!(0 < connection.stats().pushes_dropped);
    call(&quick, "Echo", "").await.expect("other clients notice nothing");
}

/// One that waits for room gets it as soon as the client reads, or learns in its time that it does not.
#[tokio::test(start_paused = true)]
async fn a_sender_may_wait_for_room() {
    let (_server, mut slow, connection, ..) =
        slow_and_quick(echoing().outgoing(OutgoingOptions::new().push_queue(QueueBound::messages(3).bytes(1 << 20))))
            .await;
    let (sent, _) = fill(&connection).await;
    let began = Instant::now();
    let wait = Duration::from_secs(2);
    let error = connection.send_message_within(wait, "T", "News", &NONE, payload(0)).await.expect_err("no room");
    assert!(matches!(error, PushError::Full { .. }), "{error}");
    assert_eq!(began.elapsed(), wait);
    let waiting = tokio::spawn({
        let connection = connection.clone();
        async move { connection.send_message_within(Duration::MAX, "T", "Last", &NONE, "").await }
    });
    settle().await;
    let began = Instant::now();
    for _ in 0..sent {
        slow.next().await;
    }
    waiting.await.expect("no panic").expect("there is room");
    assert_eq!(slow.next().await.service_method(), "Last");
    assert!(began.elapsed() < Duration::from_secs(1));
}

/// A client that asks and does not read its replies is not read either; then it is closed. Its memory is
/// bounded by `reply_bytes_max` and what one read brings.
#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_its_replies_is_not_read() {
    let builder = echoing()
        .outgoing(OutgoingOptions::new().reply_bytes_max(100_000))
        .timeouts(Timeouts::new().write(Duration::from_secs(4)));
    let (server, mut slow, connection, ..) = slow_and_quick(builder).await;
    let before = server.stats();
    let asking = tokio::spawn(async move {
        let request = crate::scripted::request(1, "Echo", &[0; 10_000]);
        let mut asked = 0;
        while slow.try_say(&request).await.is_ok() {
            asked += 1;
        }
        asked
    });
    assert!(matches!(soon(connection.closed()).await, CloseReason::SlowPeer(_)));
    drop(connection);
    let asked: usize = asking.await.expect("no panic");
    assert!(asked < 60, "{asked} requests of 10 kB were taken");
    assert_eq!(before.connections_accepted, server.stats().connections_accepted);
}

/// A server that calls its client and does not read the replies is answered that the client is overloaded. The
/// client reads on, and answers again as soon as it is read.
#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_read_its_replies_is_refused_more() {
    let server = ScriptedServer::listen().await;
    let large = |_: Request| std::future::ready(Reply::ok(vec![0; 100_000]));
    let options = ClientOptions::new().reply_bytes_max(300_000);
    let handlers = bothways::Router::new().handler("T", "Large", large);
    let (client, mut peer) =
        tokio::join!(Client::with_handlers(&server.address, options, handlers), server.accept_negotiated());
    let client = client.expect("it listens");
    for seq in 1..=50 {
        peer.say(request(1 << 63 | 1 << 62 | seq, "Large", b"")).await;
    }
    settle().await;
    let asked = tokio::spawn({
        let client = client.clone();
        async move { call(&client, "Ask", "").await }
    });
    let (mut answered, mut refused, mut was_asked) = (0, 0, false);
    while answered + refused < 50 || !was_asked {
        let message = peer.next().await;
        if message.service_method() == "Ask" {
            was_asked = true;
            peer.say(crate::scripted::reply_to(&message, b"read")).await;
        } else if let Some(text) = message.error_text() {
            assert!(text.contains("overloaded"), "{text}");
            refused += 1;
        } else {
            answered += 1;
        }
    }
    // Three fill the bound and one goes beyond; what the line and the writer hold is not waiting.
    assert!((4..10).contains(&answered), "{answered} replies of 100 kB were kept");
    assert_eq!(asked.await.expect("no panic").expect("answered"), "read");
    peer.say(request(1 << 63 | 1 << 62 | 99, "Large", b"")).await;
    assert_eq!(peer.next().await.wire_payload().len(), 100_000, "there is room again");
}

/// S9. A client that sends heartbeats and never reads the answers is closed, too.
#[tokio::test(start_paused = true)]
async fn answers_to_heartbeats_are_bounded() {
    let (_server, mut slow, connection, ..) = slow_and_quick(echoing()).await;
    let asking = tokio::spawn(async move {
        let heartbeats = ping(1).repeat(100);
        while slow.try_say(&heartbeats).await.is_ok() {}
    });
    assert!(matches!(soon(connection.closed()).await, CloseReason::SlowPeer(_)));
    drop(connection);
    asking.await.expect("no panic");
}

/// A heartbeat is answered with all it brought: one that is large ends the connection, before any token as after it,
/// at a server and at a client.
#[tokio::test(start_paused = true)]
async fn a_large_heartbeat_ends_its_connection() {
    let large = Message::ping(Seq::new(1), &NONE, &[0; bothways_proto::HEARTBEAT_BYTES_MAX]).frame().to_vec();
    let largest = bothways_proto::HEARTBEAT_BYTES_MAX - Message::ping(Seq::new(1), &NONE, &[]).frame().len();
    let largest = Message::ping(Seq::new(1), &NONE, &vec![0; largest]).frame().to_vec();
    assert_eq!(largest.len(), bothways_proto::HEARTBEAT_BYTES_MAX);

    let builder = echoing().auth(|_| std::future::ready(Err("no".to_owned())));
    let server = builder.build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut slow = Scripted::connect(listening.address()).await;
    let connection = connections(&server, 1).await.remove(0);
    slow.say(&largest).await;
    slow.next().await;
    slow.say(&large).await;
    let reason = soon(connection.closed()).await;
    assert!(matches!(reason, CloseReason::Misbehaved(PeerMisbehaved::LargeHeartbeat(_))), "{reason}");

    let server = ScriptedServer::listen().await;
    let options = ClientOptions::new().reconnect(Reconnect::Never);
    let (client, mut peer) = tokio::join!(Client::connect(&server.address, options), server.accept_negotiated());
    let client = client.expect("it listens");
    let connection = client.connection().expect("it is up");
    peer.say(&largest).await;
    peer.next().await;
    peer.say(&large).await;
    let reason = soon(connection.closed()).await;
    assert!(matches!(reason, CloseReason::Misbehaved(PeerMisbehaved::LargeHeartbeat(_))), "{reason}");
}

/// A client that sends the largest heartbeats there are, and reads none of the answers, is not read any more: few of
/// them are taken.
#[tokio::test(start_paused = true)]
async fn heartbeats_are_not_read_while_their_answers_pile_up() {
    let (_server, mut slow, connection, ..) = slow_and_quick(echoing()).await;
    let payload = [0; bothways_proto::HEARTBEAT_BYTES_MAX - 100];
    let heartbeat = Message::ping(Seq::new(1), &NONE, &payload).frame().to_vec();
    let asking = tokio::spawn(async move {
        let mut bytes = 0;
        while slow.try_say(&heartbeat).await.is_ok() {
            bytes += heartbeat.len();
        }
        bytes
    });
    assert!(matches!(soon(connection.closed()).await, CloseReason::SlowPeer(_)));
    drop(connection);
    let taken = asking.await.expect("no panic");
    // Half of what may wait, twice what is under way, what one read brings, and what the line itself holds.
    assert!(taken <= (128 << 10) + 7 * (64 << 10), "{taken} bytes of heartbeats were taken");
}

/// Calls to a client that does not read wait up to their bytes. What is refused was not sent, and says so.
#[tokio::test(start_paused = true)]
async fn calls_to_a_client_that_does_not_read_are_bounded_in_bytes() {
    let server = echoing().outgoing(OutgoingOptions::new().call_bytes_max(4 << 20)).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let silent = Scripted::connect_negotiated(listening.address()).await;
    let connection = connections(&server, 1).await.remove(0);
    let calls: Vec<_> = (0..400)
        .map(|_| {
            let connection = connection.clone();
            tokio::spawn(async move { call(&connection, "Ask", vec![0; 1 << 20]).await })
        })
        .collect();
    settle().await;
    let waiting = calls.iter().filter(|call| !call.is_finished()).count();
    assert!((4..=6).contains(&waiting), "{waiting} calls of 1 MiB wait");
    drop(silent);
    let mut refused = 0;
    for ended in calls {
        match ended.await.expect("no panic").expect_err("nobody answers") {
            error @ CallError::QueueFull { bytes } => {
                assert!(bytes <= 4 << 20 && error.is_safe_to_retry(), "{error}");
                refused += 1;
            }
            error => assert!(matches!(error, CallError::Closed { .. }), "{error}"),
        }
    }
    assert_eq!(refused, 400 - waiting);
}

/// Handlers that run when the reading stops come to their ends. Their replies wait up to a bound; beyond it a caller
/// is told that its own cannot be sent, and the connection goes on.
#[tokio::test(start_paused = true)]
async fn replies_of_handlers_that_ran_already_are_bounded() {
    const CALLS: u64 = 100;
    let (handler, mut asked) = gate();
    let server = Server::builder()
        .handler("T", "Ask", handler)
        .outgoing(OutgoingOptions::new().reply_bytes_max(100_000))
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    for seq in 0..CALLS {
        client.say(request(seq, "Ask", b"")).await;
    }
    let mut running = Vec::new();
    for _ in 0..CALLS {
        running.push(soon(asked.recv()).await.expect("it runs"));
    }
    for asked in running {
        asked.answer(Reply::ok(vec![0; 100_000]));
    }
    settle().await;
    let (mut answered, mut failed) = (0, 0);
    for _ in 0..CALLS {
        match client.next().await.error_text() {
            None => answered += 1,
            Some(text) => {
                assert!(text.contains("cannot be sent"), "{text}");
                failed += 1;
            }
        }
    }
    // Sixteen times the bound, and what is under way and in the line.
    assert!((15..=20).contains(&answered) && answered + failed == CALLS, "{answered} replies of 100 kB were kept");
    client.say(request(CALLS, "Ask", b"")).await;
    soon(asked.recv()).await.expect("it goes on").answer(Reply::ok("on"));
    assert_eq!(client.next().await.wire_payload(), "on");
}

/// What waits for all clients has a bound: those that hold most are refused first and not read from, those that hold
/// little find room. What was read, or was for clients that are gone, is given back.
#[tokio::test(start_paused = true)]
async fn slow_clients_leave_room_for_others() {
    const BYTES: usize = 2 << 20;
    let (handler, mut asked) = gate();
    let builder = echoing().handler("T", "Ask", handler).outgoing(
        OutgoingOptions::new().reply_bytes_max(1 << 30).push_queue(QueueBound::messages(1000).bytes(1 << 30)),
    );
    let server = builder.outgoing(OutgoingOptions::new().all_bytes_max(BYTES)).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let quick = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    let known: Vec<_> = connections(&server, 1).await.iter().map(Connection::id).collect();
    let mut slow = Vec::new();
    for _ in 0..10 {
        let mut client = Scripted::connect(listening.address()).await;
        for seq in 0..10 {
            client.say(request(seq, "Ask", b"")).await;
        }
        for _ in 0..10 {
            soon(asked.recv()).await.expect("it runs").answer(Reply::ok(vec![0; 100_000]));
        }
        settle().await;
        slow.push(client);
    }
    let held = server.stats().outgoing_bytes;
    assert!((BYTES / 2..=BYTES).contains(&held), "{held}");

    // Who holds most is not read from, and is sent nothing more.
    slow[0].say(request(10, "Ask", b"")).await;
    settle().await;
    assert!(asked.try_recv().is_err());
    let first = server.connections().into_iter().filter(|of| !known.contains(&of.id())).min_by_key(Connection::id);
    let first = first.expect("it is there");
    let refused = first.send_message("T", "News", &NONE, vec![0; 100_000]).expect_err("it holds most");
    assert!(matches!(refused, PushError::Full { setting: Some("outgoing.all_bytes_max"), .. }), "{refused}");
    for len in [1, 1000, 50_000] {
        assert_eq!(call(&quick, "Echo", vec![1; len]).await.expect("it holds nothing").len(), len);
    }

    let (mut answered, mut failed) = (0, 0);
    for client in &mut slow[..5] {
        for _ in 0..10 {
            match client.next().await.error_text() {
                None => answered += 1,
                Some(text) => {
                    assert!(text.contains("cannot be sent") && text.contains("`outgoing.all_bytes_max`"), "{text}");
                    failed += 1;
                }
            }
        }
    }
    assert!(answered + failed == 50 && 15 <= answered && 10 <= failed, "{answered} {failed}");
    soon(asked.recv()).await.expect("it is read again").answer(Reply::ok(vec![0; 500_000]));
    assert_eq!(slow[0].next().await.wire_payload().len(), 500_000);
    drop(slow);
    crate::support::until(|| server.stats().connections == 1).await;
    assert_eq!(server.stats().outgoing_bytes, 0);
    assert_eq!(call(&quick, "Echo", vec![1; 1_000_000]).await.expect("there is room").len(), 1_000_000);
}

/// A push that is queued, and that nobody writes, leaves by itself. It is not taken for a peer that does not read.
#[tokio::test(start_paused = true)]
async fn a_push_that_is_queued_leaves_by_itself() {
    let builder = echoing().timeouts(Timeouts::new().write(Duration::from_millis(500)));
    let (_server, mut slow, connection, ..) = slow_and_quick(builder).await;
    for n in 0..5 {
        let limits = bothways::Limits::default();
        let push = PushFrame::new("T", "News", &NONE, &payload(n), &limits).expect("small");
        raw::queue(&connection, &push).expect("room");
        let heard = tokio::time::timeout(Duration::from_secs(2), slow.next()).await.expect("within a second");
        assert_eq!(number(&heard.wire_payload()), n);
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    assert!(!connection.is_closed());
}

/// A client that reads after it wrote is not too slow, however many refusals one read of requests brings.
#[tokio::test(start_paused = true)]
async fn many_refusals_at_once_are_no_overflow() {
    let server = echoing().limits(ServerLimits::new().calls_max(0)).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    client.say(crate::scripted::request(1, "E", b"").repeat(1900)).await;
    for _ in 0..1900 {
        assert!(client.next().await.error_text().is_some());
    }
}

/// A client whose server sends 20 numbered messages while its application takes none.
async fn untaken(
    overflow: Overflow,
    messages_max: usize,
    bytes_max: usize,
) -> (Client, bothways::ServerMessages, Scripted) {
    let server = ScriptedServer::listen().await;
    let options = ClientOptions::new()
        .message_queue(QueueBound::messages(messages_max).bytes(bytes_max))
        .message_overflow(overflow);
    let options = options.reconnect(Reconnect::Never);
    let (client, mut peer) = tokio::join!(Client::bidirectional(&server.address, options), server.accept_plain());
    let (client, messages) = client.expect("it listens");
    for n in 0..20 {
        peer.say(oneway(u64::from(n), "News", &payload(n))).await;
    }
    settle().await;
    (client, messages, peer)
}

/// What waits, as numbers and the gaps before them.
fn taken(messages: &mut bothways::ServerMessages) -> Vec<(u32, u64)> {
    let mut taken = Vec::new();
    while let Some(message) = messages.try_next() {
        taken.push((number(&message.payload().expect("plain")), message.dropped_before()));
    }
    taken
}

/// B1, B2. A queue that its application does not empty drops the oldest, counts them, and marks the gap;
/// replies are read all the while.
#[tokio::test(start_paused = true)]
async fn an_application_that_does_not_take_loses_the_oldest() {
    let (client, mut messages, mut peer) = untaken(Overflow::DropOldest, 3, 1 << 20).await;
    let answering = async {
        let request = peer.next().await;
        peer.say(crate::scripted::reply_to(&request, b"in time")).await;
    };
    let (answer, ()) = tokio::join!(call(&client, "Ask", ""), answering);
    assert_eq!(answer.expect("answered"), "in time");
    assert_eq!(taken(&mut messages), [(17, 17), (18, 0), (19, 0)]);
    assert_eq!(messages.dropped(), 17);
}

/// The same by bytes: three messages of 1,000 bytes and their frames, and not a fourth.
#[tokio::test(start_paused = true)]
async fn the_queue_of_messages_is_bounded_in_bytes() {
    let (_client, mut messages, _peer) = untaken(Overflow::DropOldest, 1000, 3500).await;
    assert_eq!(taken(&mut messages), [(17, 17), (18, 0), (19, 0)]);
}

/// A queue that refuses the newest keeps what it has; the next message that fits tells of the gap.
#[tokio::test(start_paused = true)]
async fn an_application_that_does_not_take_loses_the_newest() {
    let (_client, mut messages, mut peer) = untaken(Overflow::RefuseNewest, 3, 1 << 20).await;
    assert_eq!(taken(&mut messages), [(0, 0), (1, 0), (2, 0)]);
    peer.say([oneway(20, "News", &payload(20)), oneway(21, "News", &payload(21))].concat()).await;
    settle().await;
    assert_eq!(taken(&mut messages), [(20, 17), (21, 0)]);
    assert_eq!(messages.dropped(), 17);
}

/// A queue that disconnects keeps what it had; the stream ends behind it.
#[tokio::test(start_paused = true)]
async fn an_application_that_does_not_take_is_disconnected() {
    let (_client, mut messages, mut peer) = untaken(Overflow::Disconnect, 3, 1 << 20).await;
    peer.hears_the_end().await;
    assert_eq!(taken(&mut messages), [(0, 0), (1, 0), (2, 0)]);
    assert!(soon(messages.next()).await.is_none());
    assert_eq!(messages.dropped(), 1);
}

/// What nobody listens to is no error, and holds up nothing.
#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_listen_drops_what_comes() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    let connection = &connections(&server, 1).await[0];
    for n in 0..2000 {
        connection
            .send_message_within(Duration::from_secs(1), "T", "News", &NONE, payload(n))
            .await
            .expect("the client reads on");
    }
    call(&client, "Echo", "").await.expect("answered");
    drop(server);
}

/// One read may hold a thousand small requests for large replies: no more of them run than have room, and all
/// run once the client reads.
#[tokio::test(start_paused = true)]
async fn many_small_requests_in_one_read_are_answered_as_there_is_room() {
    const REQUESTS: u64 = 100;
    let ran = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&ran);
    let large = move |_: Request| {
        counted.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Reply::ok(vec![0; 1 << 20]))
    };
    let server =
        echoing().handler("T", "Large", large).outgoing(OutgoingOptions::new().reply_bytes_max(4 << 20)).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    let requests: Vec<u8> = (0..REQUESTS).flat_map(|seq| request(seq, "Large", b"")).collect();
    client.say(requests).await;
    settle().await;
    let before = ran.load(Ordering::Relaxed);
    assert!((1..10).contains(&before), "{before} MiB of replies wait");
    for _ in 0..REQUESTS {
        assert_eq!(client.next().await.wire_payload().len(), 1 << 20);
    }
    assert_eq!(ran.load(Ordering::Relaxed), REQUESTS as usize);
}
