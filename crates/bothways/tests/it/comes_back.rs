//! A client comes back by itself, tells the truth about where it stands, and leaves nothing behind.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bothways::{
    CallError, Client, ClientOptions, CloseReason, ConnectError, Connection, ConnectionEvent, ConnectionEvents,
    ErrorCode, FailMode, Metadata, Peer2PeerDiscovery, Push, PushError, Reconnect, Reply, Request, Router, SelectMode,
    SerializeType, Server, Stage, Target, Token, XClient, XClientOptions, call as layers, session::TopicOptions,
    transport::ConnectOptions,
};
use bothways_proto::{Header, Message, Seq, Status, keys};
use tokio::time::Instant;

use crate::{
    scripted::{ScriptedServer, control},
    support::{address, call, connections, echo, echoing, oneshot_to, settle, soon, until},
};

/// Beyond every other time of these tests.
const FOR_EVER: Duration = Duration::from_secs(3000);

/// A server that lets nobody in while its user database is down.
fn with_database() -> (Server, Arc<AtomicBool>, Arc<AtomicUsize>) {
    let (up, asked) = (Arc::new(AtomicBool::new(true)), Arc::<AtomicUsize>::default());
    let (is_up, counted) = (Arc::clone(&up), Arc::clone(&asked));
    let server = echoing().auth(move |request| {
        counted.fetch_add(usize::from(request.is_hello()), Ordering::Relaxed);
        let outcome = match is_up.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err("the user database is down"),
        };
        std::future::ready(outcome)
    });
    (server.build(), up, asked)
}

async fn next(events: &mut ConnectionEvents) -> ConnectionEvent {
    soon(events.next()).await.expect("the client lives")
}

/// The events that wait, as letters.
async fn letters(events: &mut ConnectionEvents) -> String {
    let mut letters = String::new();
    while let Ok(Some(event)) = tokio::time::timeout(Duration::ZERO, events.next()).await {
        letters.push(match event {
            ConnectionEvent::Connected { .. } => 'C',
            ConnectionEvent::Lost { .. } => 'L',
            ConnectionEvent::Refused { .. } => 'F',
            ConnectionEvent::Restored { .. } => 'R',
            ConnectionEvent::SessionLost { .. } => 'S',
            ConnectionEvent::GaveUp { .. } => 'G',
            other => panic!("{other:?}"),
        });
    }
    letters
}

/// F53. The database is down for a while: the client is back by itself, in its session, and its events never said that
/// it was connected meanwhile, or that its session was lost.
#[tokio::test(start_paused = true)]
async fn a_refusal_is_not_for_ever() {
    let (server, up, asked) = with_database();
    let listening = server.listen(&address()).await.expect("the name is free");
    let handlers = Router::new().handler("C", "say", echo);
    let client = Client::with_handlers(listening.address(), ClientOptions::new(), handlers).await.expect("let in");
    let mut events = client.events();
    up.store(false, Ordering::Relaxed);
    connections(&server, 1).await[0].close();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(letters(&mut events).await, "LF");
    let tries = asked.load(Ordering::Relaxed);
    assert!((4..30).contains(&tries), "{tries}: with growing patience");
    let receipt = server.push(&Target::everyone(), &Push::new("C", "say", "owed")).expect("small");
    assert_eq!(receipt.outcomes().targets(), 1, "its session waits for it");
    up.store(true, Ordering::Relaxed);
    let outcomes = soon(receipt.handled()).await;
    assert_eq!(outcomes.at(Stage::Handled), 1, "{outcomes:?}");
    assert_eq!(letters(&mut events).await, "R");
}

/// F53. However long it was refused, it goes on at a slow pace, and a call does not wait for that.
#[tokio::test(start_paused = true)]
async fn a_call_tries_at_once_where_the_client_was_refused() {
    let (server, up, asked) = with_database();
    let listening = server.listen(&address()).await.expect("the name is free");
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("let in");
    up.store(false, Ordering::Relaxed);
    connections(&server, 1).await[0].close();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let tries = asked.load(Ordering::Relaxed);
    assert!((60..300).contains(&tries), "{tries}: each minute at least");
    let (began, error) = (Instant::now(), call(&client, "Echo", "").await.expect_err("it is still down"));
    assert!(matches!(&error, CallError::NotConnected(ConnectError::Refused { .. })), "{error}");
    assert!(error.is_safe_to_retry() && began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(tries < asked.load(Ordering::Relaxed), "it is no answer from memory");
    up.store(true, Ordering::Relaxed);
    let began = Instant::now();
    assert_eq!(call(&client, "Echo", "x").await.expect("it is up"), "x");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

/// F53. Giving up is chosen, and has an event of its own, which is the last.
#[tokio::test(start_paused = true)]
async fn a_client_gives_up_if_it_is_told_to() {
    let (server, up, asked) = with_database();
    let listening = server.listen(&address()).await.expect("the name is free");
    let options = ClientOptions::new().refusals_max(Some(3));
    let client = Client::connect(listening.address(), options).await.expect("let in");
    let mut events = client.events();
    up.store(false, Ordering::Relaxed);
    connections(&server, 1).await[0].close();
    assert!(matches!(next(&mut events).await, ConnectionEvent::Lost { .. }));
    for _ in 0..3 {
        let event = next(&mut events).await;
        assert!(matches!(&event, ConnectionEvent::Refused { reason, .. } if reason.contains("database")), "{event:?}");
    }
    let event = next(&mut events).await;
    assert!(matches!(event, ConnectionEvent::GaveUp { error: ConnectError::Refused { .. }, .. }), "{event:?}");
    assert!(soon(events.next()).await.is_none());
    up.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(asked.load(Ordering::Relaxed), 4);
    assert!(matches!(call(&client, "Echo", "").await, Err(CallError::NotConnected(ConnectError::Refused { .. }))));
}

/// F53. The token is asked for before each Hello, and once more when it was refused; all calls carry it.
#[tokio::test(start_paused = true)]
async fn credentials_are_asked_for_again() {
    let valid = Arc::new(AtomicUsize::new(1));
    let checked = Arc::clone(&valid);
    let server = echoing().auth(move |request| {
        let good = request.token == format!("bearer {}", checked.load(Ordering::Relaxed));
        std::future::ready(if good { Ok(()) } else { Err("it ran out") })
    });
    let server = server.build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let asked = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&asked);
    let options = ClientOptions::new().credentials(move || {
        let number = 1 + counted.fetch_add(1, Ordering::Relaxed);
        async move { Token::new(format!("bearer {number}")) }
    });
    let client = Client::connect(listening.address(), options).await.expect("let in");
    let mut events = client.events();
    call(&client, "Echo", "").await.expect("its token is good");
    for (runs_out, expected) in [(2, 2), (4, 4)] {
        // The next one, or the one after it.
        valid.store(runs_out, Ordering::Relaxed);
        connections(&server, 1).await[0].close();
        assert!(matches!(next(&mut events).await, ConnectionEvent::Lost { .. }));
        let event = next(&mut events).await;
        assert!(matches!(event, ConnectionEvent::Restored { .. }), "{event:?}");
        assert_eq!(asked.load(Ordering::Relaxed), expected);
        call(&client, "Echo", "").await.expect("its token is good");
    }
}

/// Who is asked for a token may fail, and take its time: that ends no client.
#[tokio::test(start_paused = true)]
async fn credentials_that_cannot_be_had_are_an_error() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let panics = || async { if true { panic!("no token") } else { "" } };
    let error = Client::connect(listening.address(), ClientOptions::new().credentials(panics)).await;
    assert!(matches!(error, Err(ConnectError::Credentials { .. })), "{error:?}");
    let hangs = ClientOptions::new().credentials(std::future::pending::<String>);
    let error = soon(Client::connect(listening.address(), hangs)).await;
    assert!(matches!(error, Err(ConnectError::Credentials { .. })), "{error:?}");
}

/// F58. Who is refused is told so by `connect`, each time; and so is who finds nobody that speaks rpcx.
#[tokio::test(start_paused = true)]
async fn connect_waits_for_the_answer_to_its_hello() {
    let (server, up, _) = with_database();
    let listening = server.listen(&address()).await.expect("the name is free");
    up.store(false, Ordering::Relaxed);
    for _ in 0..50 {
        let error = Client::connect(listening.address(), ClientOptions::new()).await.expect_err("it is refused");
        assert!(matches!(error, ConnectError::Refused { .. }), "{error}");
    }
    let silent = ScriptedServer::listen().await;
    let began = Instant::now();
    let error = soon(Client::connect(&silent.address, ClientOptions::new())).await.expect_err("nobody answers");
    assert!(matches!(error, ConnectError::NoAnswer { .. }), "{error}");
    assert_eq!(began.elapsed(), Duration::from_secs(5), "connect_timeout");
    silent.accept().await.next().await;

    for bytes in [&b""[..], b"HTTP/1.1 400 Bad Request\r\n\r\n"] {
        let (error, ()) = tokio::join!(Client::connect(&silent.address, ClientOptions::new()), async {
            let mut peer = silent.accept().await;
            peer.next().await;
            peer.say(bytes).await;
        });
        let error = error.expect_err("that is no answer");
        assert!(matches!(error, ConnectError::Unanswered { .. }), "{error}");
    }
}

/// A client that is told to goes on from the first try, and `connect` returns when it is let in.
#[tokio::test(start_paused = true)]
async fn the_first_connection_is_tried_again_if_one_likes() {
    let address = address();
    let options = ClientOptions::new().reconnect(Reconnect::Always);
    let connecting = tokio::spawn({
        let address = address.clone();
        async move { Client::connect(&address, options).await }
    });
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!connecting.is_finished());
    let (server, up, asked) = with_database();
    up.store(false, Ordering::Relaxed);
    let _listening = server.listen(&address).await.expect("the name is free");
    until(|| 3 < asked.load(Ordering::Relaxed)).await;
    assert!(!connecting.is_finished());
    up.store(true, Ordering::Relaxed);
    let client = soon(connecting).await.expect("no panic").expect("at last");
    assert_eq!(call(&client, "Echo", "x").await.expect("let in"), "x");
    let given_up = ClientOptions::new().reconnect(Reconnect::Always).refusals_max(Some(2));
    up.store(false, Ordering::Relaxed);
    let error = soon(Client::connect(&address, given_up)).await.expect_err("refused twice");
    assert!(matches!(error, ConnectError::Refused { .. }), "{error}");
}

/// F55. A call that was certainly not sent waits for the next connection, whenever it finds that out.
#[tokio::test]
async fn what_was_not_sent_waits_for_the_next_connection() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let options = ClientOptions::new().backoff(Duration::from_millis(1), Duration::from_millis(1));
    let client = Client::connect(listening.address(), options).await.expect("let in");
    for round in 0..100 {
        let before = client.connection().expect("it is up");
        connections(&server, 1).await[0].close();
        soon(before.closed()).await;
        if round % 2 == 0 {
            oneshot_to(&client, "Echo", "x").await.expect("it waits");
        }
        assert_eq!(call(&client, "Echo", "x").await.expect("it waits"), "x");
        until(|| server.connections().len() == 1).await;
    }
}

/// A handler `Note` that notes the numbers with which texts begin.
fn noting() -> (Server, Arc<Mutex<Vec<usize>>>) {
    let noted = Arc::<Mutex<Vec<usize>>>::default();
    let notes = Arc::clone(&noted);
    let server = Server::builder().handler("T", "Note", move |request: Request| {
        let payload = request.payload().expect("not compressed");
        let number = std::str::from_utf8(&payload[..8]).expect("a text").parse().expect("a number");
        notes.lock().expect("no panic").push(number);
        std::future::ready(Reply::ok(""))
    });
    (server.build(), noted)
}

fn numbered(number: usize, bytes: usize) -> String {
    format!("{number:08}{}", "x".repeat(bytes))
}

/// Sends oneway requests until the connection takes no more. Returns how many, and of how many the socket has taken
/// nothing, and a part.
async fn fill(client: &Client, bytes: usize) -> (usize, usize, usize) {
    let header = Header::oneway(Seq::new(0), SerializeType::RAW);
    let frame = Message::new(header, "T", "Note", &Metadata::new(), numbered(0, bytes).as_bytes());
    let frame = frame.frame().len() as u64;
    let mut sent = 0;
    loop {
        match oneshot_to(client, "Note", numbered(sent, bytes)).await {
            Ok(()) => sent += 1,
            Err(PushError::Full { .. }) => break,
            Err(error) => panic!("{error}"),
        }
    }
    settle().await;
    let written = client.stats().written_bytes;
    let (whole, is_cut) = (written / frame, !written.is_multiple_of(frame));
    let untouched = sent - usize::try_from(whole).expect("few") - usize::from(is_cut);
    (sent, untouched, usize::from(is_cut))
}

/// A oneway request that was queued behind a full socket goes over the next connection, in order and once; none that may
/// have left does.
#[tokio::test(start_paused = true)]
async fn what_had_not_left_goes_over_the_next_connection() {
    for bytes in [0, 3000, 20_000, 300_000] {
        let frozen = ScriptedServer::listen().await;
        let address = frozen.address.clone();
        let options = ClientOptions::new().negotiate(false).room_wait(Duration::ZERO);
        let client = Client::connect(&address, options).await.expect("it listens");
        let of_server = frozen.accept().await;
        let (sent, untouched, cut) = fill(&client, bytes).await;
        assert!(1 < untouched, "{bytes}: the socket is full");

        of_server.reset();
        drop((of_server, frozen));
        let (server, noted) = noting();
        let _listening = server.listen(&address).await.expect("the name is free");
        tokio::time::sleep(Duration::from_secs(10)).await;
        let noted = noted.lock().expect("no panic").clone();
        assert_eq!(noted, (sent - untouched..sent).collect::<Vec<_>>(), "{bytes}");
        assert_eq!(client.oneways_lost(), cut as u64, "{bytes}: what had left in part");
    }
}

/// Calls that a server refuses because it is shutting down did not run: they wait for the next server at its address, as
/// those do that were not sent.
#[tokio::test(start_paused = true)]
async fn a_call_that_is_refused_at_a_shutdown_waits_for_the_next_connection() {
    let (hold, held) = tokio::sync::oneshot::channel::<()>();
    let server = echoing().on_shutdown(|| async { _ = held.await }).build();
    let address = address();
    let _listening = server.listen(&address).await.expect("the name is free");
    let client = Client::connect(&address, ClientOptions::new()).await.expect("it listens");
    let first = client.connection().expect("it stands");

    let stopping = tokio::spawn(async move { server.shutdown(FOR_EVER).await });
    settle().await;
    let calls: Vec<_> = (0..20_u8)
        .map(|number| {
            let client = client.clone();
            tokio::spawn(async move { call(&client, "Echo", vec![number]).await })
        })
        .collect();
    settle().await;
    let error = call(&first, "Echo", "x").await.expect_err("over a connection there is no other");
    assert_eq!(error.code(), Some(ErrorCode::ShuttingDown));
    assert!(calls.iter().all(|call| !call.is_finished()), "they wait");

    let next = echoing().build();
    let _listening = next.listen(&address).await.expect("the name is free");
    hold.send(()).expect("it waits");
    soon(stopping).await.expect("no panic");
    for (number, call) in (0..20_u8).zip(calls) {
        assert_eq!(soon(call).await.expect("no panic").expect("answered"), vec![number]);
    }
}

/// A server that stays down, and one that only refuses, give the error of the refusal: the latter is asked three times.
#[tokio::test(start_paused = true)]
async fn a_call_that_is_refused_at_a_shutdown_does_not_wait_for_ever() {
    let wait = Duration::from_secs(2);
    for goes_on in [false, true] {
        let server = ScriptedServer::listen().await;
        let options = ClientOptions::new().connection_wait(wait).backoff(Duration::ZERO, Duration::ZERO);
        let (connecting, mut of_server) =
            tokio::join!(Client::connect(&server.address, options), server.accept_negotiated());
        let client = connecting.expect("it listens");

        let calling = tokio::spawn(async move {
            let began = Instant::now();
            (call(&client, "Echo", "x").await, began.elapsed())
        });
        let mut asked = 0;
        while !calling.is_finished() {
            let request = of_server.next().await;
            asked += 1;
            let said = Metadata::new()
                .with(keys::ERROR, "the server is shutting down")
                .with(keys::ERROR_CODE, ErrorCode::ShuttingDown.name());
            let header = request.header().reply().with_status(Status::ERROR);
            of_server.say(Message::new(header, "T", "Echo", &said, &[]).frame()).await;
            settle().await;
            if !goes_on {
                break;
            }
            if !calling.is_finished() {
                drop(of_server);
                of_server = server.accept_negotiated().await;
            }
        }
        let (outcome, waited) = soon(calling).await.expect("no panic");
        let error = outcome.expect_err("refused");
        assert!(error.code() == Some(ErrorCode::ShuttingDown) && error.is_safe_to_retry(), "{error}");
        assert_eq!((asked, waited < wait), if goes_on { (3, true) } else { (1, false) });
    }
}

/// What had not left is lost, and counted, if there is no connection in time, or will be none.
#[tokio::test(start_paused = true)]
async fn what_finds_no_next_connection_is_counted() {
    type Ends = fn(&Client);
    let wait = Duration::from_secs(2);
    let ways: [(&str, ClientOptions, Ends); 4] = [
        ("late", ClientOptions::new().connection_wait(wait), |_| {}),
        ("none", ClientOptions::new().connection_wait(Duration::ZERO), |_| {}),
        ("never", ClientOptions::new().reconnect(Reconnect::Never), |_| {}),
        ("closed", ClientOptions::new(), Client::close),
    ];
    for (name, options, end) in ways {
        let frozen = ScriptedServer::listen().await;
        let address = frozen.address.clone();
        let options = options.negotiate(false).room_wait(Duration::ZERO);
        let client = Client::connect(&address, options).await.expect("it listens");
        let of_server = frozen.accept().await;
        let (_, untouched, cut) = fill(&client, 20_000).await;
        end(&client);
        of_server.reset();
        drop((of_server, frozen));
        tokio::time::sleep(wait + Duration::from_secs(1)).await;
        assert_eq!(client.oneways_lost(), (untouched + cut) as u64, "{name}");
        let (server, noted) = noting();
        let _listening = server.listen(&address).await.expect("the name is free");
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert!(noted.lock().expect("no panic").is_empty(), "{name}");
    }
}

/// Runs a test in a runtime of its own thread: where a future never lets the runtime go, no time limit of that runtime
/// would come.
fn apart<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.expect("a runtime").block_on(test());
        // The test may have given up.
        let _ = done.send(());
    });
    is_done.recv_timeout(Duration::from_secs(60)).expect("it ends, and lets others run");
}

/// Whatever an application asks right after its connection has ended waits for the next one, and lets the task run that
/// makes it.
#[test]
fn what_meets_a_connection_that_is_over_takes_no_thread_for_itself() {
    apart(|| async {
        let server = echoing().topic("t.*", TopicOptions::new().open().presence(true)).expect("a pattern").build();
        let listening = server.listen(&address()).await.expect("the name is free");
        let layered = ClientOptions::new().layer(layers::map(|_| ()));
        for options in [ClientOptions::new(), layered] {
            let connecting = Client::bidirectional(listening.address(), options.clone());
            let (client, _messages) = connecting.await.expect("let in");
            let end = async || client.connection().expect("it is up").close();
            for _ in 0..3 {
                end().await;
                soon(oneshot_to(&client, "Echo", "x")).await.expect("it waits");
                end().await;
                assert_eq!(call(&client, "Echo", "x").await.expect("it waits"), "x");
                end().await;
                soon(client.subscribe("t.a")).await.expect("it waits");
                end().await;
                soon(client.roster("t.a")).await.expect("it waits");
                end().await;
                soon(client.unsubscribe("t.a")).await.expect("it waits");
            }

            let servers = Peer2PeerDiscovery::new(listening.address());
            let xclient = XClient::new("T", FailMode::Failtry, SelectMode::RandomSelect, servers, options);
            call(&xclient, "Echo", "x").await.expect("it connects");
            for _ in 0..3 {
                xclient.connections().iter().for_each(Connection::close);
                soon(oneshot_to(&xclient, "Echo", "x")).await.expect("it waits");
                xclient.connections().iter().for_each(Connection::close);
                soon(xclient.subscribe("t.a")).await.expect("it is not closed");
                xclient.connections().iter().for_each(Connection::close);
                soon(xclient.unsubscribe("t.a")).await.expect("it waits");
            }
        }
    });
}

/// A client that sends oneway requests all the time comes back, also if its server ends the connection.
#[test]
fn a_client_that_sends_all_the_time_comes_back() {
    apart(|| async {
        let server = echoing().build();
        let listening = server.listen(&address()).await.expect("the name is free");
        let connecting = Client::bidirectional(listening.address(), ClientOptions::new());
        let (client, _messages) = connecting.await.expect("let in");
        let sender = client.clone();
        let sending = tokio::spawn(async move {
            loop {
                // Now and then time passes; else the next one comes among the turns of other tasks.
                for _ in 0..50 {
                    soon(oneshot_to(&sender, "Echo", "x")).await.expect("it waits");
                    tokio::spawn(async {}).await.expect("no panic");
                }
                settle().await;
            }
        });
        for round in 0..20 {
            for session in server.sessions(&Target::everyone()).expect("nobody is named") {
                match (round % 2, session.connection()) {
                    (1, Some(connection)) => connection.close(),
                    _ => session.end("again"),
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        sending.abort();
        assert_eq!(call(&client, "Echo", "x").await.expect("it is back"), "x");
    });
}

/// A call of which no byte has left goes from connection to connection, at whatever moment each of them ends: who
/// hears that one ended hears that a part had left.
#[tokio::test(start_paused = true)]
async fn a_call_goes_from_connection_to_connection_until_a_part_has_left() {
    let server = ScriptedServer::listen().await;
    let backoff = Duration::from_millis(1);
    let options = ClientOptions::new().backoff(backoff, backoff).connection_wait(FOR_EVER);
    let (client, mut peer) = tokio::join!(Client::connect(&server.address, options), server.accept_negotiated());
    let client = client.expect("let in");
    let ask = |method: &'static str, len: usize| {
        let client = client.clone();
        tokio::spawn(async move { call(&client, method, vec![0; len]).await })
    };
    for yields in 0..40 {
        // What is before it fills the socket, of which nothing is read.
        let large = ask("Large", 1 << 20);
        settle().await;
        let small = ask("Small", 10);
        settle().await;
        for _ in 0..3 {
            peer.reset();
            peer = server.accept_negotiated().await;
            for _ in 0..yields {
                tokio::task::yield_now().await;
            }
        }
        soon(large).await.expect("no panic").expect_err("a part of it had left");
        settle().await;
        if small.is_finished() {
            let error = soon(small).await.expect("no panic").expect_err("nobody has answered");
            assert!(matches!(error, CallError::Closed { written: true, .. }), "{error}");
            continue;
        }
        let asked = soon(peer.next()).await;
        peer.say(crate::scripted::reply_to(&asked, b"at last")).await;
        assert_eq!(soon(small).await.expect("no panic").expect("it waits"), "at last");
    }
}

/// A message that found no room, and no connection then, goes over the next one; where there is none to wait for, and
/// beyond the time for which it waits, it is refused.
#[tokio::test(start_paused = true)]
async fn a_message_that_found_no_room_goes_over_the_next_connection() {
    for (reconnects, waits) in [(true, true), (true, false), (false, true)] {
        let server = ScriptedServer::listen().await;
        let wait = if waits { Duration::from_secs(60) } else { Duration::ZERO };
        let options = ClientOptions::new()
            .reconnect(if reconnects { Reconnect::Lost } else { Reconnect::Never })
            .connection_wait(wait)
            .room_wait(FOR_EVER);
        let (client, peer) = tokio::join!(Client::connect(&server.address, options), server.accept_negotiated());
        let client = client.expect("let in");
        let sending = tokio::spawn({
            let client = client.clone();
            async move {
                let mut sent = 0;
                loop {
                    match oneshot_to(&client, "Sent", vec![0; 1 << 20]).await {
                        Ok(()) if sent < 1000 => sent += 1,
                        outcome => return outcome,
                    }
                }
            }
        });
        // No time passes: who waits for no connection would wait until this moment.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(!sending.is_finished(), "there is no room");
        peer.reset();
        if reconnects && waits {
            let mut next = server.accept_negotiated().await;
            assert_eq!(next.next().await.service_method(), "Sent");
            sending.abort();
        } else {
            let error = soon(sending).await.expect("no panic").expect_err("it is lost");
            assert!(matches!(error, PushError::Closed(_)), "{error}");
        }
    }
}

/// F56. A server that says goodbye again and again, and never closes, costs its client three connections and no more.
#[tokio::test(start_paused = true)]
async fn connections_that_were_said_goodbye_to_do_not_pile_up() {
    let server = ScriptedServer::listen().await;
    let (client, mut peer) =
        tokio::join!(Client::connect(&server.address, ClientOptions::new()), server.accept_negotiated());
    let client = client.expect("let in");
    let mut peers = Vec::new();
    for _ in 0..20 {
        peer.say(control(1 << 63, keys::GOODBYE, keys::GOODBYE_AFTER, "100")).await;
        peers.push(peer);
        peer = server.accept_negotiated().await;
        settle().await;
        let now = Instant::now();
        for gone in peers.iter_mut().rev().skip(2) {
            gone.hears_the_end().await;
        }
        assert!(now.elapsed() < Duration::from_secs(1), "the oldest gives way at once");
        peers.drain(..peers.len().saturating_sub(2));
    }
    // Where nothing runs, they end by themselves.
    tokio::time::sleep(Duration::from_secs(6)).await;
    for gone in &mut peers {
        gone.hears_the_end().await;
    }
    drop(client);
    peer.hears_the_end().await;
}

/// F57. A server that drops its clients, before or behind its answer to the Hello, is asked less and less.
#[tokio::test(start_paused = true)]
async fn a_server_that_drops_its_clients_is_asked_less_and_less() {
    for answers in [false, true] {
        let server = ScriptedServer::listen().await;
        let (client, peer) =
            tokio::join!(Client::connect(&server.address, ClientOptions::new()), server.accept_negotiated());
        let client = client.expect("let in");
        drop(peer);
        let (began, mut tries) = (Instant::now(), 0);
        while began.elapsed() < Duration::from_secs(120) {
            if answers {
                drop(server.accept_negotiated().await);
            } else {
                server.accept().await.next().await;
            }
            tries += 1;
        }
        assert!((12..80).contains(&tries), "{tries} in two minutes, at most every 10 s");
        drop(client);
    }
}

/// F59. A client that is refused does not wait for the server to close, and the server is not left with it.
#[tokio::test(start_paused = true)]
async fn a_refused_client_closes_the_connection_itself() {
    let server = ScriptedServer::listen().await;
    let (client, peer) =
        tokio::join!(Client::connect(&server.address, ClientOptions::new()), server.accept_negotiated());
    let client = client.expect("let in");
    let mut events = client.events();
    drop(peer);
    let mut peer = server.accept().await;
    let hello = peer.next().await;
    let why = Metadata::new().with(keys::ERROR, "no").with(keys::ERROR_CODE, "unauthenticated");
    let header: Header = hello.header().reply().with_status(Status::ERROR);
    peer.say(Message::new(header, "", "", &why, &[]).frame()).await;
    let began = Instant::now();
    peer.hears_the_end().await;
    assert!(matches!(next(&mut events).await, ConnectionEvent::Lost { reason: CloseReason::PeerClosed, .. }));
    assert!(matches!(next(&mut events).await, ConnectionEvent::Refused { .. }));
    assert!(began.elapsed() < Duration::from_secs(1));
}

/// F64. Events that are taken when `connect` has returned begin with what comes later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_begin_behind_the_connection_that_was_waited_for() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    for _ in 0..200 {
        let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("let in");
        let mut events = client.events();
        client.close();
        assert!(soon(events.next()).await.is_none());
    }
}

/// A server that takes the connection and does not answer has the time that the client was told to give it.
#[tokio::test(start_paused = true)]
async fn a_server_has_so_much_time_for_its_answer() {
    for limit in [1, 7].map(Duration::from_secs) {
        let server = ScriptedServer::listen().await;
        let options = ClientOptions::new().connect_options(ConnectOptions::default().connect_timeout(limit));
        let began = Instant::now();
        let (refused, _peer) = tokio::join!(Client::connect(&server.address, options), server.accept());
        let error = refused.expect_err("nobody answers");
        assert!(matches!(error, ConnectError::NoAnswer { after, .. } if after == limit), "{error}");
        assert!(limit <= began.elapsed() && began.elapsed() < limit + Duration::from_secs(1), "{:?}", began.elapsed());
    }
}

/// F64. Nothing is left of a client that is dropped while it connects.
#[tokio::test(start_paused = true)]
async fn a_client_that_is_dropped_while_it_connects_stops_at_once() {
    let server = ScriptedServer::listen().await;
    let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = alive();
    let patient = ConnectOptions::default().connect_timeout(Duration::from_secs(3600));
    let options = ClientOptions::new().connect_options(patient);
    let connecting = tokio::time::timeout(Duration::from_secs(1), Client::connect(&server.address, options.clone()));
    assert!(connecting.await.is_err(), "nobody answers");
    let mut peer = server.accept().await;
    peer.next().await;
    peer.hears_the_end().await;
    let asks = options.credentials(std::future::pending::<String>);
    let connecting = tokio::time::timeout(Duration::from_secs(1), Client::connect(&server.address, asks));
    assert!(connecting.await.is_err(), "no token");
    let began = Instant::now();
    until(|| alive() == before).await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

/// A client that ends before its server has answered the Hello leaves nothing behind, whether it is dropped while it
/// connects, closed, or dropped without a call.
#[tokio::test(start_paused = true)]
async fn a_client_that_ends_in_its_greeting_is_gone_at_once() {
    let server = ScriptedServer::listen().await;
    let before = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    for round in 0..3 {
        let servers = Peer2PeerDiscovery::new(&server.address);
        let options = XClientOptions::new().eager(true);
        let xclient = (0 < round)
            .then(|| XClient::new("T", FailMode::Failover, SelectMode::RandomSelect, servers.clone(), options));
        let address = server.address.clone();
        let connecting = tokio::spawn(async move { Client::connect(&address, ClientOptions::new()).await });
        let mut peers = vec![server.accept().await];
        peers[0].next().await;
        if xclient.is_some() {
            peers.push(server.accept().await);
            peers[1].next().await;
        }
        connecting.abort();
        if let Some(xclient) = xclient {
            if round == 1 {
                xclient.close();
            }
            drop(xclient);
        }
        settle().await;
        assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), before, "{round}");
        for mut peer in peers {
            peer.hears_the_end().await;
        }
    }
}

/// F72. What goes over a client's connection carries its token, wherever the connection was got.
#[tokio::test(start_paused = true)]
async fn a_clients_connection_carries_its_token() {
    let server = echoing().auth(|request| {
        std::future::ready(if request.token == "good" { Ok(()) } else { Err(format!("no: {}", request.token)) })
    });
    let heard = Arc::<AtomicUsize>::default();
    let hears = Arc::clone(&heard);
    let server = server.handler("T", "Progress", move |_: Request| {
        hears.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Reply::ok(""))
    });
    let server = server.build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let handlers = Router::new().handler("C", "Do", |request: Request| async move {
        let connection = request.connection().clone();
        oneshot_to(&connection, "Progress", "").await.expect("it is up");
        connection.send_message("T", "Progress", &Metadata::new(), "").expect("it is up");
        match call(&connection, "Echo", "x").await {
            Ok(answer) => Reply::ok(answer),
            Err(error) => Reply::error(error.to_string()),
        }
    });
    let options = ClientOptions::new().auth("good");
    let client = Client::with_handlers(listening.address(), options, handlers).await.expect("let in");
    call(&client.connection().expect("it is up"), "Echo", "x").await.expect("its token is good");
    let connection = connections(&server, 1).await.remove(0);
    let calling = bothways::CallOptions::new();
    let call = bothways::caller::RawCall {
        service_path: "C",
        service_method: "Do",
        serialize: bothways::SerializeType::RAW,
        payload: "".into(),
        options: calling,
    };
    let answer = soon(bothways::Caller::call_raw(&connection, call)).await.expect("the handler's call is let in");
    assert_eq!(answer.payload, "x");
    until(|| heard.load(Ordering::Relaxed) == 2).await;
    assert_eq!(server.stats().connections_accepted, 1, "it was never sent away");
}

/// F40. Nobody waits for a connection that nobody makes any more.
#[test]
fn calls_of_a_client_whose_runtime_is_gone_fail() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("one");
    let (servers, clients) = (runtime(), runtime());
    let server = echoing().build();
    let listening = servers.block_on(server.listen(&address())).expect("the name is free");
    let options = ClientOptions::new().connection_wait(Duration::from_secs(3600));
    let client = clients.block_on(Client::connect(listening.address(), options)).expect("let in");
    drop(clients);
    let error = servers.block_on(call(&client, "Echo", "")).expect_err("it is gone");
    assert!(matches!(error, CallError::NotConnected(ConnectError::Abandoned)), "{error}");
}

/// F42. Calls may be made from any thread, with a deadline or without one, and whether the client is up or not.
#[test]
fn calls_may_be_made_without_a_runtime() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("one");
    let server = echoing().build();
    let listening = runtime.block_on(server.listen(&address())).expect("the name is free");
    let options = ClientOptions::new().compress(bothways::CompressType::GZIP);
    let client = runtime.block_on(Client::connect(listening.address(), options)).expect("let in");
    let call = |payload: &[u8], options: bothways::CallOptions| {
        let call = bothways::caller::RawCall {
            service_path: "T",
            service_method: "Echo",
            serialize: bothways::SerializeType::RAW,
            payload: payload.to_vec().into(),
            options,
        };
        futures_executor_block_on(bothways::Caller::call_raw(&client, call)).expect("answered").payload
    };
    assert_eq!(call(b"x", bothways::CallOptions::new()), "x");
    let large = vec![7; 1 << 20];
    assert_eq!(call(&large, bothways::CallOptions::new()), large, "its reply comes packed");
    for timeout in [Duration::from_secs(60), Duration::MAX] {
        let before = client.connection().expect("it is up");
        before.close();
        runtime.block_on(soon(before.closed()));
        assert_eq!(call(b"x", bothways::CallOptions::new().timeout(timeout)), "x");
    }
}

/// Polls a future on this thread, which has no runtime.
fn futures_executor_block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let (mut context, mut future) = (std::task::Context::from_waker(&waker), std::pin::pin!(future));
    let until = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        if let std::task::Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        assert!(std::time::Instant::now() < until, "it takes for ever");
        std::thread::park_timeout(Duration::from_secs(1));
    }
}

/// A server that goes away for good while it lets a client in for the first time is not waited for, though it said that
/// the client may come again: the outcome is that of the next try.
#[tokio::test(start_paused = true)]
async fn a_server_that_goes_away_during_the_first_hello_is_not_waited_for() {
    for retries in [false, true] {
        let server = echoing().auth(|_| async { std::future::pending::<Result<(), &str>>().await }).build();
        let listening = server.listen(&address()).await.expect("the name is free");
        let options = ClientOptions::new().auth("token");
        let options = if retries { options.reconnect(Reconnect::Always) } else { options };
        let place = listening.address().to_owned();
        let connecting = tokio::spawn(async move { Client::bidirectional(&place, options).await.map(drop) });
        until(|| server.stats().connections == 1).await;
        settle().await;
        drop(listening);
        server.shutdown(Duration::from_millis(50)).await;
        let outcome = tokio::time::timeout(Duration::from_secs(60), connecting).await;
        match outcome {
            Ok(connected) => {
                let error = connected.expect("no panic").expect_err("nobody listens");
                assert!(!retries, "{error}");
            }
            Err(_) => assert!(retries, "it waits for a server that is gone"),
        }
    }
}
