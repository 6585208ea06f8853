//! Calls and their replies, in any order, at most once.

use std::{
    future::Future,
    task::{Context, Waker},
    time::Duration,
};

use bothways::{CallError, CallOptions, Client, ClientOptions, ErrorCode, Metadata, Reply, SerializeType};
use bothways_proto::{Capabilities, Header, Message, Seq, Status, keys};

use tokio::time::Instant;

use crate::{
    scripted::{
        Scripted, ScriptedServer, error_to, hello, is_control, oneway, reply, reply_to, request, session_pairs, welcome,
    },
    support::{Product, address, arith, call, call_with, connections, echoing, gate, settle, soon, until},
};

async fn plain() -> (Client, Scripted) {
    let server = ScriptedServer::listen().await;
    let (client, peer) = tokio::join!(Client::connect(&server.address, ClientOptions::new()), server.accept_plain());
    settle().await;
    (client.expect("it listens"), peer)
}

async fn negotiated() -> (Client, Scripted) {
    let server = ScriptedServer::listen().await;
    let (client, peer) =
        tokio::join!(Client::connect(&server.address, ClientOptions::new()), server.accept_negotiated());
    settle().await;
    (client.expect("it listens"), peer)
}

/// Replies find their calls by number, in whatever order they come.
#[tokio::test(start_paused = true)]
async fn replies_come_in_any_order() {
    let (client, mut server) = plain().await;
    let script = async {
        let (first, second) = (server.next().await, server.next().await);
        server.say(reply_to(&second, b"to second")).await;
        server.say(reply_to(&first, b"to first")).await;
    };
    let (first, second, ()) = tokio::join!(call(&client, "A", "1"), call(&client, "B", "2"), script);
    assert_eq!(first.expect("answered"), "to first");
    assert_eq!(second.expect("answered"), "to second");
}

/// The reply to a call that was given up reaches nobody, and is counted.
#[tokio::test(start_paused = true)]
async fn a_late_reply_reaches_nobody() {
    let (client, mut server) = plain().await;
    let options = CallOptions::new().timeout(Duration::from_millis(10));
    let timed_out = call_with(&client, "Slow", "", options).await.expect_err("nobody answers");
    assert!(matches!(timed_out, CallError::TimedOut(after) if after == Duration::from_millis(10)), "{timed_out}");
    let slow = server.next().await;

    let next = tokio::spawn({
        let client = client.clone();
        async move { call(&client, "Next", "").await }
    });
    let request = server.next().await;
    assert_ne!(request.header().seq(), slow.header().seq());
    server.say(reply_to(&slow, b"late")).await;
    settle().await;
    assert!(!next.is_finished());
    assert_eq!(client.stats().late_replies, 1);
    server.say(reply_to(&request, b"in time")).await;
    assert_eq!(next.await.expect("no panic").expect("answered"), "in time");
}

/// W3, W21. A call that is dropped leaves the table at once; only a peer that understands it is told,
/// by the number of the call as it stood on the wire.
#[tokio::test(start_paused = true)]
async fn a_dropped_call_is_forgotten_at_once_and_cancelled_at_a_negotiated_server() {
    let (client, mut server) = negotiated().await;
    let dropped = tokio::spawn({
        let client = client.clone();
        async move { call(&client, "Slow", "").await }
    });
    let request = server.next().await;
    assert_eq!(client.stats().calls_pending, 1);
    dropped.abort();
    settle().await;
    assert_eq!(client.stats().calls_pending, 0);
    let cancel = server.next().await;
    assert!(is_control(&cancel, keys::CANCEL), "{cancel:?}");
    assert_eq!(cancel.metadata().get(keys::CANCEL_SEQ), Some(&*request.header().seq().to_string()));
}

/// A plain server would serve the cancel as a request: it never gets one.
#[tokio::test(start_paused = true)]
async fn a_plain_server_is_told_nothing_of_a_dropped_call() {
    let (client, mut server) = plain().await;
    let options = CallOptions::new().timeout(Duration::from_millis(10));
    let asked = call_with(&client, "Slow", "", options);
    asked.await.expect_err("nobody answers");
    server.next().await;
    server.hears_nothing().await;
    assert_eq!(client.stats().calls_pending, 0);
}

/// The server's handler is dropped when its caller gives up, and its place is free.
#[tokio::test(start_paused = true)]
async fn a_cancelled_call_drops_its_handler() {
    let (handler, mut asked) = gate();
    let server = echoing().handler("T", "Slow", handler).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    call(&client, "Echo", "").await.expect("it is welcomed");
    let options = CallOptions::new().timeout(Duration::from_millis(10));
    let slow = tokio::spawn({
        let client = client.clone();
        async move { call_with(&client, "Slow", "", options).await }
    });
    let mut running = soon(asked.recv()).await.expect("it runs");
    assert_eq!(server.stats().calls_running, 1);
    running.dropped().await;
    until(|| server.stats().calls_running == 0).await;
    slow.await.expect("no panic").expect_err("it timed out");
}

/// A call that is given up while it waits behind a full socket never leaves.
#[tokio::test(start_paused = true)]
async fn a_call_that_is_given_up_before_it_leaves_never_leaves() {
    let (client, mut server) = negotiated().await;
    let big = vec![b'x'; 100 << 10];
    let first = tokio::spawn({
        let client = client.clone();
        async move { call(&client, "Big", big).await }
    });
    settle().await;
    let options = CallOptions::new().timeout(Duration::from_millis(10));
    for _ in 0..3000 {
        let asked = client.clone();
        let options = options.clone();
        tokio::spawn(async move { call_with(&asked, "GivenUp", vec![0; 1000], options).await });
    }
    let last = tokio::spawn({
        let client = client.clone();
        async move { call(&client, "Last", "").await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(client.stats().calls_pending, 2);

    for (method, call) in [("Big", first), ("Last", last)] {
        let request = server.next().await;
        assert_eq!(request.service_method(), method);
        server.say(reply_to(&request, b"ok")).await;
        call.await.expect("no panic").expect("answered");
    }
    server.hears_nothing().await;
}

/// W6. Every status but 0 is an error, with or without a text.
#[tokio::test(start_paused = true)]
async fn an_error_without_a_text_is_an_error() {
    let (client, mut server) = plain().await;
    for (status, text) in [(1, Some("boom")), (1, None), (2, None), (3, None)] {
        let script = async {
            let request = server.next().await;
            let mut frame = reply_to(&request, b"");
            if let Some(text) = text {
                frame = error_to(&request, text);
            }
            frame[2] = frame[2] & !3 | status;
            server.say(frame).await;
        };
        let (outcome, ()) = tokio::join!(call(&client, "Fails", ""), script);
        match outcome {
            Err(CallError::Remote { text: found, code: None, .. }) => assert_eq!(found, text.unwrap_or_default()),
            other => panic!("status {status}: {other:?}"),
        }
    }
}

/// W2. A reply that cannot be decoded or unpacked fails its call; the connection and the others go on.
#[tokio::test(start_paused = true)]
async fn a_reply_that_cannot_be_decoded_fails_one_call() {
    let (client, mut server) = plain().await;
    let other = tokio::spawn({
        let client = client.clone();
        async move { call(&client, "Other", "").await }
    });
    let other_request = server.next().await;
    for (serialize, compress) in [
        (SerializeType::MSGPACK, 0),
        (SerializeType::new(9).expect("four bits"), 0),
        (SerializeType::MSGPACK, 1),
        (SerializeType::MSGPACK, 5),
    ] {
        let script = async {
            let request = server.next().await;
            let mut header = Header::request(request.header().seq(), serialize).reply().to_bytes();
            header[2] |= compress << 2;
            let header = Header::from_bytes(&header).expect("the magic is right");
            server.say(Message::new(header, "T", "Bad", &Metadata::new(), b"\xc1no").frame()).await;
        };
        let (outcome, ()) = tokio::join!(client.call::<Product>("T", "Bad", &1_i64), script);
        assert!(matches!(outcome, Err(CallError::Decode(_))), "{outcome:?}");
    }
    server.say(reply_to(&other_request, b"fine")).await;
    assert_eq!(other.await.expect("no panic").expect("answered"), "fine");
}

/// Unknown names are answered in Go's own words, which its clients compare.
#[tokio::test(start_paused = true)]
async fn unknown_names_are_answered_in_gos_words() {
    let server = arith().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    for (path, method, text) in
        [("No", "Mul", "rpcx: can't find service No"), ("Arith", "Div", "rpcx: can't find method Div")]
    {
        let error = client.call::<Product>(path, method, &1_i64).await.expect_err("there is none");
        assert_eq!((error.remote_text(), error.code()), (Some(text), Some(ErrorCode::NotFound)));
    }
}

/// W9. Arguments that cannot be decoded are answered, whatever their codec is.
#[tokio::test(start_paused = true)]
async fn bad_arguments_are_answered() {
    let server = arith().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let plain = Scripted::connect(listening.address()).await;
    let negotiated = Scripted::connect_negotiated(listening.address()).await;
    // A code is for peers that know it.
    for (mut client, code) in [(plain, None), (negotiated, Some(ErrorCode::BadArguments.name()))] {
        for serialize in 0..16 {
            let serialize = SerializeType::new(serialize).expect("four bits");
            let header = Header::request(Seq::new(1), serialize);
            client.say(Message::new(header, "Arith", "Mul", &Metadata::new(), b"").frame()).await;
            let answer = client.next().await;
            assert_eq!(answer.header().serialize(), serialize);
            assert!(answer.error_text().is_some_and(|text| !text.is_empty()), "{answer:?}");
            assert_eq!(answer.metadata().get(keys::ERROR_CODE), code);
        }
    }
}

/// A peer that uses a number twice at once gets both answers under it.
#[tokio::test(start_paused = true)]
async fn two_runs_of_one_number_are_both_answered() {
    let (handler, mut asked) = gate();
    let server = echoing().handler("T", "Wait", handler).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    for mut client in
        [Scripted::connect(listening.address()).await, Scripted::connect_negotiated(listening.address()).await]
    {
        client.say([request(7, "Wait", b"a"), request(7, "Wait", b"b")].concat()).await;
        let (a, b) = (soon(asked.recv()).await.expect("runs"), soon(asked.recv()).await.expect("runs"));
        a.answer(Reply::ok("a"));
        client.hears(reply(7, "Wait", b"a")).await;
        b.answer(Reply::ok("b"));
        client.hears(reply(7, "Wait", b"b")).await;
        assert_eq!(server.stats().calls_running, 0);
    }
}

/// A reply echoes number, codec and version, and not what Go echoes beyond them.
#[tokio::test(start_paused = true)]
async fn a_reply_is_the_bytes_that_go_reads() {
    let server = arith().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    client
        .say(hex_literal::hex!(
            "08 00 00 30 0000000000000002 0000001f 00000005 4172697468 00000003 4d756c 00000000 00000007 82a1410aa14214"
        ))
        .await;
    let answer = client.next().await;
    let head = hex_literal::hex!("08 00 80 30 0000000000000002");
    assert_eq!(answer.frame()[..12], head);
    assert_eq!(answer.header().status(), Status::NORMAL);
}

/// 1.10. A oneway request is never answered, not even one that nobody serves.
#[tokio::test(start_paused = true)]
async fn a_oneway_request_is_never_answered() {
    let (handler, mut asked) = gate();
    let server = echoing().handler("T", "Wait", handler).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    client.say([oneway(1, "Echo", b"x"), oneway(2, "None", b""), oneway(3, "Wait", b"")].concat()).await;
    soon(asked.recv()).await.expect("it runs").answer(Reply::error("nobody sees it"));
    client.hears_nothing().await;
    client.say(request(4, "Echo", b"y")).await;
    client.hears(reply(4, "Echo", b"y")).await;
}

/// Requests that come in pieces, and many in one piece, are all answered.
#[tokio::test(start_paused = true)]
async fn the_cut_of_the_stream_does_not_matter() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    let stream: Vec<u8> = (0..200).flat_map(|n| request(n, "Echo", &n.to_be_bytes())).collect();
    for piece in stream.chunks(7) {
        client.say(piece).await;
        tokio::task::yield_now().await;
    }
    client.say(&stream).await;
    for n in (0..200).chain(0..200) {
        client.hears(reply(n, "Echo", &n.to_be_bytes())).await;
    }
}

/// A reply beyond the limit becomes an error reply of the same number.
#[tokio::test(start_paused = true)]
async fn a_reply_that_is_too_large_becomes_an_error() {
    let limits = bothways::Limits::default().body_bytes_max(4096).metadata_bytes_max(1000);
    let server = echoing()
        .handler("T", "Large", |_| std::future::ready(Reply::ok(vec![0; 5000])))
        .handler("T", "LongText", |_| std::future::ready(Reply::error("x".repeat(2000))))
        .limits(limits)
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    for (method, said) in [("Large", "the reply cannot be sent"), ("LongText", "xxxx")] {
        let error = call(&client, method, "").await.expect_err("it is too large");
        let text = error.remote_text().expect("the server answered");
        assert!(text.starts_with(said) && text.contains("_bytes_max` is "), "{text}");
    }
    assert_eq!(call(&client, "Echo", "on it goes").await.expect("answered"), "on it goes");
}

/// Too many calls at once, and calls that are too large, fail before anything is sent.
#[tokio::test(start_paused = true)]
async fn a_call_beyond_the_limits_is_not_sent() {
    let server = ScriptedServer::listen().await;
    let limits = bothways::Limits::default().calls_pending_max(2).body_bytes_max(1000);
    let options = ClientOptions::new().limits(limits);
    let (client, peer) = tokio::join!(Client::connect(&server.address, options), server.accept_plain());
    let (client, mut peer) = (client.expect("it listens"), peer);
    settle().await;
    let waiting = [(); 2].map(|()| {
        let client = client.clone();
        tokio::spawn(async move { call(&client, "Wait", "").await })
    });
    let requests = [peer.next().await, peer.next().await];
    let error = call(&client, "Third", "").await.expect_err("the table is full");
    assert!(matches!(error, CallError::TooManyCalls { max: 2 }) && error.is_safe_to_retry(), "{error}");
    for (request, waiting) in requests.iter().zip(waiting) {
        peer.say(reply_to(request, b"")).await;
        waiting.await.expect("no panic").expect("answered");
    }
    let error = call(&client, "Large", vec![0; 1000]).await.expect_err("it is too large");
    assert!(matches!(error, CallError::TooLarge(_)), "{error}");
    assert_eq!(client.stats().calls_pending, 0);
    peer.hears_nothing().await;
}

/// A client that half-closes gets the replies to what it asked (W8).
#[tokio::test(start_paused = true)]
async fn a_client_that_ends_its_side_gets_its_replies() {
    let (handler, mut asked) = gate();
    let server = echoing().handler("T", "Wait", handler).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    client.say([request(1, "Wait", b""), request(2, "Echo", b"x")].concat()).await;
    client.end().await;
    let running = soon(asked.recv()).await.expect("it runs");
    client.hears(reply(2, "Echo", b"x")).await;
    running.answer(Reply::ok("done"));
    client.hears(reply(1, "Wait", b"done")).await;
    client.hears_the_end().await;
    connections(&server, 0).await;
}

/// A Bothways client reads no reply once it has ended its side: it is not connected any more, though its handlers run
/// to their end.
#[tokio::test(start_paused = true)]
async fn a_bothways_client_that_is_gone_is_not_listed_while_its_handlers_run() {
    let (handler, mut asked) = gate();
    let server = echoing().handler("T", "Wait", handler).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    client.say(hello(1, Capabilities::ALL, &Metadata::new())).await;
    client.next().await;
    client.say(request(2, "Wait", b"")).await;
    let running = soon(asked.recv()).await.expect("it runs");
    client.end().await;
    let began = Instant::now();
    connections(&server, 0).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    client.hears_the_end().await;
    assert!(!running.is_dropped());
}

/// Calls that are made together leave together; one that is given up just then holds nobody up.
#[tokio::test(start_paused = true)]
async fn a_call_that_is_given_up_writes_for_the_others_all_the_same() {
    let server = ScriptedServer::listen().await;
    let (client, mut peer) =
        tokio::join!(Client::connect(&server.address, ClientOptions::new().negotiate(false)), server.accept());
    let client = client.expect("it listens");
    let waiting = client.clone();
    let _first = tokio::spawn(async move { call(&waiting, "First", "x").await });
    assert_eq!(peer.next().await.service_method(), "First");

    let mut cx = Context::from_waker(Waker::noop());
    let mut given_up = Box::pin(call(&client, "GivenUp", "x"));
    let mut relies = Box::pin(call(&client, "Relies", "x"));
    assert!(given_up.as_mut().poll(&mut cx).is_pending());
    assert!(relies.as_mut().poll(&mut cx).is_pending());
    drop(given_up);
    let mut next = peer.next().await;
    if next.service_method() == "GivenUp" {
        next = peer.next().await;
    }
    assert_eq!(next.service_method(), "Relies");
}

/// A thousand tasks that call hold a thousand of these: what is seldom needed, the wait for a connection or for the
/// answer to a Hello, has no room in them.
#[tokio::test(start_paused = true)]
async fn the_future_of_a_call_is_small() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    let args = String::new();
    let call = client.call::<String>("Echo", "Echo", &args);
    assert!(size_of_val(&call) <= 480, "{} bytes", size_of_val(&call));
}

/// The caller gets the text of a failed reply, and what a Go server says beside it; but not what only a peer that
/// negotiated may say.
#[tokio::test(start_paused = true)]
async fn a_failed_reply_of_a_plain_server_gives_its_text_pairs_and_payload() {
    let (client, mut peer) = plain().await;
    let calling = tokio::spawn(async move { call(&client, "Partial", "").await });
    let asked = peer.next().await;
    let said = Metadata::new().with(keys::ERROR, "half done").with("k", "v");
    let said = said.with(keys::APP_CODE, "x").with(keys::ERROR_DETAIL, "wA==");
    let header = asked.header().reply().with_status(Status::ERROR).with_serialize(SerializeType::MSGPACK);
    peer.say(Message::new(header, "T", "Partial", &said, b"\xa4half").frame()).await;
    let error = calling.await.expect("no panic").expect_err("it failed");
    assert!(matches!(&error, CallError::Remote { text, code: None, .. } if text == "half done"), "{error}");
    let beside = error.beside().expect("the peer answered");
    assert_eq!(beside.metadata(), Metadata::new().with("k", "v"));
    assert_eq!((beside.payload::<String>().as_deref(), beside.payload::<u64>()), (Some("half"), None));
    assert_eq!((error.app_code(), error.detail::<Option<u8>>()), (None, None));
}

/// A call that is given up before the Hello is answered is cancelled behind the answer, if that says that the server
/// understands it, and up to a bound.
#[tokio::test(start_paused = true)]
async fn what_is_given_up_before_the_welcome_is_cancelled_with_it() {
    for (is_welcomed, calls, cancelled) in [(true, 3, 3), (false, 3, 0), (true, 600, 512)] {
        let server = ScriptedServer::listen().await;
        let options = ClientOptions::new().backoff(Duration::from_millis(1), Duration::from_millis(1));
        let (client, first) = tokio::join!(Client::connect(&server.address, options), server.accept_negotiated());
        let client = client.expect("it listens");
        drop(first);
        let mut peer = server.accept().await;
        let hello = peer.next().await;
        let calls: Vec<_> = (0..calls)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { call(&client, "Slow", "").await })
            })
            .collect();
        let mut expected = Vec::new();
        for _ in &calls {
            expected.push(peer.next().await.header().seq().get());
        }
        calls.iter().for_each(tokio::task::JoinHandle::abort);
        peer.hears_nothing().await;
        peer.say(if is_welcomed { welcome(&hello, session_pairs("1")) } else { hello.pong() }).await;
        let mut heard = Vec::new();
        for _ in 0..cancelled {
            let cancel = peer.next().await;
            assert!(is_control(&cancel, keys::CANCEL), "{cancel:?}");
            let said = cancel.metadata();
            heard.push(said.get(keys::CANCEL_SEQ).expect("a number").parse::<u64>().expect("a number"));
        }
        peer.hears_nothing().await;
        heard.sort_unstable();
        expected.sort_unstable();
        assert!(heard.iter().all(|number| expected.contains(number)) && heard.len() == cancelled, "{heard:?}");
    }
}
