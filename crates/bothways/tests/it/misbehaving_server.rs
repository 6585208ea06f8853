//! A server that sends what it must not: the client keeps its bounds, loses nothing, and goes on.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bothways::{
    CallError, Client, ClientOptions, CloseReason, ConnectionEvent, ConnectionEvents, QueueBound, Reply, Router,
    ServerMessages,
};
use bothways_proto::{Header, Message, Metadata, Seq, SerializeType, keys};

use crate::{
    scripted::{
        Scripted, ScriptedServer, control, error_to, is_control, oneway, reply_to, request_with, session_pairs, welcome,
    },
    support::{call, oneshot_to, settle, soon},
};

const PUSH: u64 = 1 << 63;

fn resumed(id: &str) -> Metadata {
    session_pairs(id).with(keys::SESSION_RESUMED, "1")
}

/// A listening client, and the server's end of its first connection.
async fn connected(server: &ScriptedServer, options: ClientOptions) -> (Client, ServerMessages, Scripted) {
    let connecting = Client::bidirectional(&server.address, options);
    let (client, peer) = tokio::join!(connecting, server.accept_with(session_pairs("1")));
    let (client, messages) = client.expect("it listens");
    (client, messages, peer)
}

/// An error of a Go server may have any length: a panic brings its arguments and its stack. The caller has the beginning
/// of it, and the connection goes on.
#[tokio::test(start_paused = true)]
async fn an_error_with_a_text_beyond_all_limits_is_an_answer() {
    let server = ScriptedServer::listen().await;
    let connecting = Client::connect(&server.address, ClientOptions::new());
    let (client, mut peer) = tokio::join!(connecting, server.accept_plain());
    let client = client.expect("it listens");
    for len in [60 << 10, 70_000, 1 << 20] {
        let caller = client.clone();
        let calling = tokio::spawn(async move { call(&caller, "Echo", "x").await });
        let asked = peer.next().await;
        let text = format!("panic: {}", "x".repeat(len));
        peer.say(error_to(&asked, &text)).await;
        let error = soon(calling).await.expect("no panic").expect_err("it failed");
        let CallError::Remote { text: kept, code: None, .. } = &error else { panic!("{error:?}") };
        assert!(text.starts_with(&**kept) && 60_000 < kept.len() && kept.len() <= 64 << 10, "{}", kept.len());
        assert!(error.may_have_run());
    }
}

/// Why the connection was lost.
async fn lost(events: &mut ConnectionEvents) -> CloseReason {
    loop {
        if let ConnectionEvent::Lost { reason, .. } = soon(events.next()).await.expect("the client lives") {
            return reason;
        }
    }
}

/// One tracked push more than may wait ends the connection. It was not taken, and the resume brings it.
#[tokio::test(start_paused = true)]
async fn one_tracked_push_too_many_ends_the_connection_and_comes_again() {
    // Ten messages at once; or as many as there is room for.
    for (messages_max, bytes_max, bytes, fit) in [(10, 1 << 20, 10, 10), (1000, 10_000, 4000, 2), (10, 10, 1000, 1)] {
        let server = ScriptedServer::listen().await;
        let options = ClientOptions::new().tracked_queue(QueueBound::messages(messages_max).bytes(bytes_max));
        let (client, mut messages, mut peer) = connected(&server, options).await;
        let mut events = client.events();
        let payload = vec![0; bytes];
        for offset in 1..=fit + 3 {
            // Its connection may be over by now.
            let _ = peer.try_say(oneway(PUSH | offset, "News", &payload)).await;
        }
        let reason = lost(&mut events).await;
        assert!(matches!(reason, CloseReason::SlowPeer(_)), "{reason}");
        assert_eq!(messages.len() as u64, fit);

        let mut peer = server.accept().await;
        let hello = peer.next().await;
        assert_eq!(hello.metadata().get(keys::SESSION_RECEIVED), Some(&*fit.to_string()));
        peer.say(welcome(&hello, resumed("1"))).await;
        for _ in 0..fit {
            soon(messages.next()).await.expect("it is open");
        }
        peer.say(oneway(PUSH | (fit + 1), "News", b"again")).await;
        assert_eq!(soon(messages.next()).await.expect("it is open").payload().expect("plain"), "again");
        assert_eq!(messages.dropped(), 0);
    }
}

/// The ids of calls are remembered up to 64 bytes: no server fills a client's memory with them. A call with a longer one
/// runs each time it comes.
#[tokio::test(start_paused = true)]
async fn a_call_with_an_id_of_more_than_64_bytes_is_not_remembered() {
    for (bytes, runs) in [(0, 1), (16, 1), (64, 1), (65, 3), (60_000, 3)] {
        let server = ScriptedServer::listen().await;
        let counted = Arc::<AtomicUsize>::default();
        let counts = Arc::clone(&counted);
        let handlers = Router::new().handler("T", "Count", move |_| {
            let run = 1 + counts.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Reply::ok(run.to_string()))
        });
        let connecting = Client::with_handlers(&server.address, ClientOptions::new(), handlers);
        let (client, mut peer) = tokio::join!(connecting, server.accept_with(session_pairs("1")));
        let _client = client.expect("it listens");
        let said = Metadata::new().with(keys::CALL_ID, "i".repeat(bytes));
        for seq in 1..=3 {
            peer.say(request_with(seq, "Count", &said, b"")).await;
            let reply = peer.next().await;
            assert_eq!(reply.error_text(), None, "{bytes}");
        }
        assert_eq!(counted.load(Ordering::Relaxed), runs, "{bytes}");
    }
}

/// A stream that is dropped takes nothing, and has no bound to keep.
#[tokio::test(start_paused = true)]
async fn nobody_reads_and_the_connection_goes_on() {
    let server = ScriptedServer::listen().await;
    let options = ClientOptions::new().tracked_queue(QueueBound::messages(1).bytes(1));
    let (client, messages, mut peer) = connected(&server, options).await;
    drop(messages);
    for offset in 1..=10 {
        peer.say(oneway(PUSH | offset, "News", b"")).await;
    }
    settle().await;
    assert!(client.connection().is_ok_and(|connection| !connection.is_closed()));
}

/// Offsets have no holes.
#[tokio::test(start_paused = true)]
async fn a_false_offset_ends_the_connection() {
    for offsets in [&[5][..], &[1, 3], &[1, 1 << 61], &[1, (1 << 62) - 1]] {
        let server = ScriptedServer::listen().await;
        let (client, messages, mut peer) = connected(&server, ClientOptions::new()).await;
        let mut events = client.events();
        for offset in offsets {
            peer.say(oneway(PUSH | offset, "News", b"")).await;
        }
        let reason = lost(&mut events).await;
        assert!(matches!(reason, CloseReason::Misbehaved(_)), "{reason}");
        assert!(reason.to_string().contains("comes next"), "{reason}");
        assert_eq!(messages.len(), offsets.len() - 1, "what came before it counts");
    }
    let server = ScriptedServer::listen().await;
    let (client, _messages, mut peer) = connected(&server, ClientOptions::new()).await;
    let mut events = client.events();
    peer.say(control(PUSH | 7, keys::SKIP, "x", "")).await;
    let reason = lost(&mut events).await;
    assert!(matches!(reason, CloseReason::Misbehaved(_)), "{reason}");
}

/// What comes under an offset that the client has is not handed on, and no loss; it is counted, as is what comes twice
/// under a key, and what comes for nobody.
#[tokio::test(start_paused = true)]
async fn what_a_client_drops_of_its_server_is_counted() {
    let server = ScriptedServer::listen().await;
    let (client, mut messages, mut peer) = connected(&server, ClientOptions::new()).await;
    for offset in [1, 2, 2, 1, 3] {
        peer.say(oneway(PUSH | offset, "News", b"")).await;
    }
    peer.say(control(PUSH | 2, keys::SKIP, "x", "")).await;
    settle().await;
    let stats = client.stats();
    assert_eq!((messages.len(), messages.dropped()), (3, 0));
    assert_eq!((stats.messages_repeated, stats.messages_unheard), (3, 0));
    assert_eq!(soon(messages.next()).await.expect("it is open").dropped_before(), 0, "nothing is missing");

    let connecting = Client::connect(&server.address, ClientOptions::new());
    let (client, mut peer) = tokio::join!(connecting, server.accept_negotiated());
    let client = client.expect("it listens");
    for offset in 0..2 {
        peer.say(oneway(PUSH | offset, "News", b"")).await;
    }
    settle().await;
    assert_eq!((client.stats().messages_repeated, client.stats().messages_unheard), (0, 2));
}

/// F66. Numbers of a server are added up as far as they go.
#[tokio::test(start_paused = true)]
async fn a_gap_of_any_size_is_counted() {
    let server = ScriptedServer::listen().await;
    let (_client, mut messages, mut peer) = connected(&server, ClientOptions::new()).await;
    for session in 2..5 {
        peer.say(control(PUSH, keys::GAP, keys::GAP_MISSED, &u64::MAX.to_string())).await;
        settle().await;
        assert_eq!(messages.dropped(), u64::MAX);
        drop(peer);
        peer = server.accept_with(session_pairs(&session.to_string())).await;
    }
    peer.say(oneway(PUSH | 1, "News", b"")).await;
    assert_eq!(soon(messages.next()).await.expect("it is open").dropped_before(), u64::MAX);
}

/// A page of a roster, of so many users with names of so many bytes; there is always more.
fn roster_page(members: usize, name: usize) -> Vec<u8> {
    let user = "u".repeat(name);
    let member = [("User", user.as_str()), ("Session", ""), ("Status", "online")];
    let member = member.into_iter().collect::<std::collections::BTreeMap<_, _>>();
    let mut page = b"\x83\xaaGeneration\x01\xa4More\xc3\xa7Members".to_vec();
    page.extend(rmp_serde::to_vec(&vec![member; members]).expect("maps of texts"));
    page
}

/// A roster comes in pages of 1,000 members and has 64 MiB at most, whatever a server tells.
#[tokio::test(start_paused = true)]
async fn a_roster_without_an_end_is_refused() {
    for (members, name, pages_taken) in [(1001, 1, 1), (1000, 1, 10), (1000, 7000, 10)] {
        let server = ScriptedServer::listen().await;
        let (client, _messages, mut peer) = connected(&server, ClientOptions::new()).await;
        let asking = tokio::spawn(async move { client.roster("room").await });
        let page = roster_page(members, name);
        for _ in 0..pages_taken {
            let asked = peer.next().await;
            assert_eq!(asked.service_method(), keys::ROSTER);
            peer.say(reply_to(&asked, &page)).await;
        }
        if (members, name) == (1000, 1) {
            // What is within the bounds goes on.
            assert_eq!(peer.next().await.service_method(), keys::ROSTER);
            continue;
        }
        let refused = soon(asking).await.expect("no panic").expect_err("too much");
        assert!(matches!(refused, CallError::Decode(_)), "{refused}");
    }
}

/// A push of service `T` with more pairs than a client takes.
fn oneway_with_too_many_pairs(seq: u64) -> Vec<u8> {
    let header = Header::oneway(Seq::new(seq), SerializeType::RAW);
    let pairs = (0..300).fold(Metadata::new(), |pairs, n| pairs.with(&format!("k{n}"), "v"));
    Message::new(header, "T", "News", &pairs, &[]).frame().to_vec()
}

/// It is counted as dropped, shown as a gap, and no reason to end the connection, be it tracked or not.
#[tokio::test(start_paused = true)]
async fn a_push_with_too_much_metadata_is_a_gap() {
    let server = ScriptedServer::listen().await;
    let connecting = Client::bidirectional(&server.address, ClientOptions::new());
    let (client, mut peer) = tokio::join!(connecting, server.accept_plain());
    let (client, mut messages) = client.expect("it listens");
    for (seq, gap) in [(7, 1), (9, 1)] {
        peer.say(oneway_with_too_many_pairs(seq)).await;
        peer.say(oneway(seq + 1, "News", b"fits")).await;
        let message = soon(messages.next()).await.expect("it is open");
        assert_eq!((&*message.payload().expect("plain"), message.dropped_before()), (&b"fits"[..], gap));
    }
    assert_eq!((messages.dropped(), client.stats().oneways_refused), (2, 0));

    let (_client, mut messages, mut peer) = connected(&server, ClientOptions::new()).await;
    peer.say(oneway_with_too_many_pairs(PUSH | 1)).await;
    peer.say(oneway(PUSH | 2, "News", b"fits")).await;
    let message = soon(messages.next()).await.expect("it is open");
    assert_eq!((message.dropped_before(), messages.dropped()), (1, 1));
    drop(message);
    // Its sender learns that nobody could read it.
    let mut failed = None;
    while failed.is_none() {
        let ack = peer.next().await;
        assert!(is_control(&ack, keys::ACK), "{ack:?}");
        failed = ack.metadata().get(keys::ACK_FAILED).map(str::to_owned);
    }
    assert_eq!(failed.as_deref(), Some("1:bad_arguments"));
}

/// A server that says "more" and moves nothing is asked as one that says "later": not at once.
#[tokio::test(start_paused = true)]
async fn an_answer_that_moves_nothing_is_asked_again_slowly() {
    let server = ScriptedServer::listen().await;
    let (client, _messages, mut peer) =
        connected(&server, ClientOptions::new().serialize_type(SerializeType::JSON)).await;
    let answer = |request: &Message, more: bool| {
        let args = format!("{{\"Recovered\": true, \"Epoch\": 7, \"Offset\": 5, \"More\": {more}}}");
        Message::new(
            Header::request(request.header().seq(), SerializeType::JSON).reply(),
            request.service_path(),
            request.service_method(),
            &Metadata::new(),
            args.as_bytes(),
        )
    };
    let (subscribed, ()) = tokio::join!(client.subscribe("t"), async {
        let request = peer.next().await;
        peer.say(answer(&request, false).frame()).await;
    });
    subscribed.expect("it says so");
    drop(peer);
    let mut peer = server.accept_with(session_pairs("2").with(keys::SESSION_WHY, "unknown")).await;
    let began = tokio::time::Instant::now();
    let mut asked = 0;
    while began.elapsed() < std::time::Duration::from_secs(6) {
        let Ok(message) = tokio::time::timeout(std::time::Duration::from_secs(1), peer.next()).await else { continue };
        if message.service_method() == keys::SUBSCRIBE {
            asked += 1;
            peer.say(answer(&message, true).frame()).await;
        }
    }
    assert!((3..=12).contains(&asked), "{asked}");
}

/// A server that hands back one request again and again, as it came or as something else, has the client send one more.
#[tokio::test(start_paused = true)]
async fn a_request_is_taken_back_once() {
    let server = ScriptedServer::listen().await;
    let options = ClientOptions::new().credentials(|| std::future::ready("t".to_owned()));
    let (client, _messages, mut peer) = connected(&server, options).await;
    oneshot_to(&client, "Note", "x").await.expect("queued");
    let sent = peer.next().await;
    for _ in 0..300 {
        let other = Message::new(sent.header(), "Evil", "Method", &Metadata::new(), &[]);
        for frame in [sent.frame(), other.frame()] {
            let header = Header::oneway(Seq::new(0), SerializeType::RAW);
            let back = Message::new(header, keys::CONTROL_PATH, keys::RETURN, &Metadata::new(), frame);
            peer.say(back.frame()).await;
        }
    }
    settle().await;
    drop(peer);
    let mut peer = server.accept_with(resumed("1")).await;
    let again = peer.next().await;
    assert_eq!((again.service_path(), again.service_method()), ("T", "Note"));
    peer.hears_nothing().await;
    assert_eq!(client.oneways_lost(), 599);
}
