//! The caller's deadline, at both ends.

use std::time::Duration;

use bothways::{CallError, CallOptions, Client, ClientOptions, ErrorCode, Metadata, Reply, ServerLimits};
use bothways_proto::{Header, Message, Seq, SerializeType, keys};
use tokio::time::Instant;

use crate::{
    scripted::{Scripted, ScriptedServer, reply, request, request_with},
    support::{address, call, call_with, echoing, gate, settle, soon, until},
};

/// 1.5. `__ServerTimeout` counts milliseconds from arrival; nonsense is ignored, and so are zero and less, unless a
/// caller that negotiated says so: then nobody waits any more.
#[tokio::test(start_paused = true)]
async fn the_callers_deadline_is_read_as_go_reads_it() {
    let (handler, mut asked) = gate();
    let server = echoing().handler("T", "Wait", handler).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut negotiated = Scripted::connect_negotiated(listening.address()).await;
    for over in ["0", "-1", "-9223372036854775808"] {
        let client = &mut negotiated;
        client.say(request_with(1, "Wait", &Metadata::new().with(keys::SERVER_TIMEOUT, over), b"")).await;
        assert!(client.next().await.error_text().is_some_and(|text| text.contains("deadline")));
        assert!(asked.try_recv().is_err(), "it never ran");
    }
    let mut client = Scripted::connect(listening.address()).await;
    for nonsense in ["", "soon", "1.5", "99999999999999999999", " 5", "0", "-1"] {
        client.say(request_with(1, "Wait", &Metadata::new().with(keys::SERVER_TIMEOUT, nonsense), b"")).await;
        let running = soon(asked.recv()).await.expect("it runs");
        assert_eq!(running.request.deadline(), None, "{nonsense}");
        running.answer(Reply::ok(""));
        client.next().await;
    }
    for far in ["1000", "9223372036854775807"] {
        client.say(request_with(1, "Wait", &Metadata::new().with(keys::SERVER_TIMEOUT, far), b"")).await;
        let running = soon(asked.recv()).await.expect("it runs");
        let deadline = running.request.deadline().expect("it was said");
        assert!(Instant::now() + Duration::from_millis(999) <= deadline);
        running.answer(Reply::ok(""));
        client.next().await;
    }
}

/// W9. A handler that is not done by then is dropped; its caller is told when it surely waits no more.
#[tokio::test(start_paused = true)]
async fn a_handler_is_dropped_at_its_callers_deadline() {
    let (handler, mut asked) = gate();
    let server = echoing().handler("T", "Wait", handler).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect_negotiated(listening.address()).await;
    client.say(request_with(1, "Wait", &Metadata::new().with(keys::SERVER_TIMEOUT, "250"), b"")).await;
    let began = Instant::now();
    let mut running = soon(asked.recv()).await.expect("it runs");
    running.dropped().await;
    assert_eq!(began.elapsed().as_millis() / 10, 25);
    let answer = client.next().await;
    assert!(Duration::from_millis(250) < began.elapsed());
    assert_eq!(answer.metadata().get(keys::ERROR_CODE), Some(ErrorCode::Timeout.name()));
    until(|| server.stats().calls_running == 0).await;
}

/// Go's `Oneshot` tells the deadline of its context as a call does. Nobody waits for a oneway request: its handler runs
/// to its end, as in Go, and is told the deadline all the same.
#[tokio::test(start_paused = true)]
async fn a_oneway_request_runs_to_its_end_whatever_its_callers_deadline() {
    for negotiated in [false, true] {
        let (handler, mut asked) = gate();
        let server = echoing().handler("T", "Wait", handler).build();
        let listening = server.listen(&address()).await.expect("the name is free");
        let mut client = match negotiated {
            false => Scripted::connect(listening.address()).await,
            true => Scripted::connect_negotiated(listening.address()).await,
        };
        let said = Metadata::new().with(keys::SERVER_TIMEOUT, "250");
        let header = Header::oneway(Seq::new(1), SerializeType::RAW);
        client.say(Message::new(header, "T", "Wait", &said, b"").frame()).await;
        let running = soon(asked.recv()).await.expect("it runs");
        assert!(running.request.deadline().is_some());
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!running.is_dropped(), "negotiated: {negotiated}");
        assert_eq!(server.stats().calls_running, 1);
        running.answer(Reply::ok(""));
        until(|| server.stats().calls_running == 0).await;
    }
}

/// The caller tells its deadline in whole milliseconds, and never less than one: zero would say that it
/// has passed.
#[tokio::test(start_paused = true)]
async fn a_caller_tells_its_deadline() {
    let server = ScriptedServer::listen().await;
    let options = ClientOptions::new().timeout(Duration::from_millis(1500));
    let (client, mut peer) = tokio::join!(Client::connect(&server.address, options), server.accept_plain());
    let client = client.expect("it listens");
    settle().await;
    let told = [(None, "1500"), (Some(Duration::from_micros(300)), "1"), (Some(Duration::from_millis(20)), "20")];
    for (timeout, text) in told {
        let options = timeout.map_or(CallOptions::new(), |timeout| CallOptions::new().timeout(timeout));
        let began = Instant::now();
        let error = call_with(&client, "Wait", "", options).await.expect_err("nobody answers");
        assert!(matches!(error, CallError::TimedOut(_)), "{error}");
        // The clock of these tests goes in whole milliseconds.
        assert_eq!(began.elapsed().as_millis(), text.parse::<u128>().expect("a number"));
        assert_eq!(peer.next().await.metadata().get(keys::SERVER_TIMEOUT), Some(text));
    }
}

/// A deadline beyond the clock is none.
#[tokio::test(start_paused = true)]
async fn a_deadline_beyond_the_clock_is_none() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    let answer = call_with(&client, "Echo", "x", CallOptions::new().timeout(Duration::MAX)).await;
    assert_eq!(answer.expect("answered").payload, "x");
    server.shutdown(Duration::MAX).await;
}

/// The time for a call includes the wait for its connection.
#[tokio::test(start_paused = true)]
async fn waiting_for_a_connection_counts() {
    let address = address();
    let server = ScriptedServer::listen_on(&address).await;
    let options = ClientOptions::new().connection_wait(Duration::from_secs(60));
    let (client, peer) = tokio::join!(Client::connect(&address, options), server.accept_plain());
    let client = client.expect("it listens");
    drop((peer, server));
    settle().await;
    let began = Instant::now();
    let options = CallOptions::new().timeout(Duration::from_secs(2));
    let error = call_with(&client, "Wait", "", options).await.expect_err("nobody is there");
    assert!(matches!(error, CallError::NotConnected(_)) && error.is_safe_to_retry(), "{error}");
    assert_eq!(began.elapsed(), Duration::from_secs(2));
    client.close();
    call(&client, "Wait", "").await.expect_err("it is closed");
}

/// S10. A call whose caller has given up takes no place: others run in it before its caller is told.
#[tokio::test(start_paused = true)]
async fn a_call_that_was_given_up_takes_no_place() {
    for per_connection in [true, false] {
        let (handler, mut asked) = gate();
        let builder = echoing().handler("T", "Wait", handler);
        let server = match per_connection {
            true => builder.limits(ServerLimits::new().calls_per_connection_max(1)).build(),
            false => builder.limits(ServerLimits::new().calls_max(1)).build(),
        };
        let listening = server.listen(&address()).await.expect("the name is free");
        let mut client = Scripted::connect(listening.address()).await;
        client.say(request_with(1, "Wait", &Metadata::new().with(keys::SERVER_TIMEOUT, "100"), b"")).await;
        let mut running = soon(asked.recv()).await.expect("it runs");
        running.dropped().await;
        let began = Instant::now();
        client.say(request(2, "Echo", b"now")).await;
        client.hears(reply(2, "Echo", b"now")).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert!(client.next().await.error_text().is_some_and(|text| text.contains("deadline")));
        assert_ne!(began.elapsed(), Duration::ZERO);
    }
}

/// So many callers that gave up wait for the end of their time; one more is told at once, for each holds its request.
#[tokio::test(start_paused = true)]
async fn refusals_that_wait_are_bounded() {
    let (handler, mut asked) = gate();
    let server = echoing().handler("T", "Wait", handler).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    let timeout = Metadata::new().with(keys::SERVER_TIMEOUT, "1000");
    let mut running = Vec::new();
    for n in 0..4100 {
        client.say(request_with(n, "Wait", &timeout, b"")).await;
        running.push(soon(asked.recv()).await.expect("it runs"));
    }
    tokio::time::sleep(Duration::from_millis(1100)).await;
    for at_once in [4, 4096] {
        for _ in 0..at_once {
            client.next().await;
        }
        client.hears_nothing().await;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// F43. A call whose time is zero ends as timed out before anything of it is sent, at whichever side, and is safe to
/// try again.
#[tokio::test(start_paused = true)]
async fn a_call_without_time_is_not_sent() {
    let ran = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&ran);
    let handler = move |_: bothways::Request| {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        std::future::ready(Reply::ok(""))
    };
    let server = echoing().handler("T", "Count", handler).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    call(&client, "Echo", "").await.expect("answered");
    let connection = client.connection().expect("it is up");
    let none = || CallOptions::new().timeout(Duration::ZERO);
    for _ in 0..20 {
        for error in [
            call_with(&client, "Count", "", none()).await.expect_err("it has no time"),
            call_with(&connection, "Count", "", none()).await.expect_err("it has no time"),
        ] {
            assert!(matches!(error, CallError::TimedOut(Duration::ZERO)) && error.is_safe_to_retry(), "{error}");
        }
    }
    call(&client, "Echo", "").await.expect("answered");
    assert_eq!(ran.load(std::sync::atomic::Ordering::Relaxed), 0);
}

/// Go's clients write `__ServerTimeout` into the metadata of their application and leave it there: it counts for each
/// call that carries it.
#[tokio::test(start_paused = true)]
async fn a_deadline_that_an_earlier_call_left_counts() {
    let (handler, mut asked) = gate();
    let server = echoing().handler("T", "Wait", handler).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    let left = Metadata::new().with(keys::SERVER_TIMEOUT, "300");
    for seq in 1..=2 {
        client.say(request_with(seq, "Wait", &left, b"")).await;
        let mut running = soon(asked.recv()).await.expect("it runs");
        running.dropped().await;
        assert!(client.next().await.error_text().is_some_and(|text| text.contains("deadline")));
    }
}
