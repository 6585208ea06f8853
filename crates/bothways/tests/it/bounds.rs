//! Bounds on how many stay and how many come: sessions whose clients are away, and admission.

use std::time::Duration;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bothways::{
    AdmissionOptions, CallError, Client, ClientOptions, CloseReason, ConnectionEvent, ErrorCode, Metadata, Push, Rate,
    Reply, Server, ServerLimits, ServerMessages, Session, SessionLost, SessionOptions, Stage, Target,
    server::AuthRequest,
    session::{DropReason, PresenceChange, PresenceStatus, SessionId, TopicOptions},
};
use bothways_proto::{Capabilities, Message, Status, keys};
use tokio::{sync::mpsc, time::Instant};

use crate::{
    admin::Log,
    scripted::{Scripted, ScriptedServer, arrive, hello, oneway, ping, reply, reply_to, request, request_with},
    support::{Asked, address, call, echoing, gate, oneshot_to, settle, soon, until},
};

/// A client whose tries to come back are a second apart, and its session.
async fn guest(server: &Server, address: &str, user: &str) -> (Client, ServerMessages, Session) {
    let options = ClientOptions::new().auth(user).backoff(Duration::from_secs(1), Duration::from_secs(1));
    let (client, messages) = Client::bidirectional(address, options).await.expect("it listens");
    settle().await;
    let session = server.sessions(&Target::user(user)).expect("no topic")[0].clone();
    (client, messages, session)
}

/// Its network is gone, and stays so for a while.
async fn leave(client: &Client, session: &Session) {
    client.connection().expect("it is up").close();
    until(|| session.connection().is_none()).await;
}

/// When one client too many leaves, the session that has waited longest ends: its sender is told, who watches the
/// topic sees it go, its story says why, and its client learns that the session is lost. Who came back in time does
/// not count.
#[tokio::test(start_paused = true)]
async fn of_too_many_sessions_that_wait_the_longest_away_ends() {
    let server = Server::builder()
        .auth(|request| async move {
            request.session().expect("it is connected").bind_user(&request.token);
            Ok::<_, String>(())
        })
        .topic("room", TopicOptions::new().open().presence(true))
        .expect("a pattern")
        .sessions(SessionOptions::new().away_max(2))
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (watcher, mut seen, _) = guest(&server, listening.address(), "watcher").await;
    watcher.subscribe("room").await.expect("open");
    let mut guests = Vec::new();
    for user in ["first", "second", "third", "fourth"] {
        let guest = guest(&server, listening.address(), user).await;
        guest.0.subscribe("room").await.expect("open");
        let change: PresenceChange = seen.next().await.expect("it came").decode().expect("a change");
        assert_eq!((change.user.as_str(), change.status), (user, PresenceStatus::Online));
        guests.push(guest);
    }
    let mut events = guests[1].0.events();

    // The first leaves and is back.
    leave(&guests[0].0, &guests[0].2).await;
    assert_eq!(server.stats().sessions_away, 1);
    until(|| guests[0].2.connection().is_some()).await;
    assert_eq!(server.stats().sessions_away, 0);

    // The others cannot come back for now.
    let place = listening.address().to_owned();
    drop(listening);
    leave(&guests[1].0, &guests[1].2).await;
    leave(&guests[2].0, &guests[2].2).await;
    let receipts = [1, 2].map(|at: usize| guests[at].2.push(&Push::new("Chat", "say", "hi")).expect("small"));
    settle().await;
    assert!(receipts.iter().all(|receipt| receipt.outcomes().at(Stage::Queued) == 1), "two may wait");
    leave(&guests[3].0, &guests[3].2).await;
    let outcomes = receipts[0].handled().await;
    assert_eq!(outcomes.at(Stage::Dropped(DropReason::SessionEnded)), 1);
    assert_eq!(receipts[1].outcomes().at(Stage::Queued), 1, "the one who left later waits still");
    assert_eq!((server.stats().sessions, server.stats().sessions_away), (4, 2));
    let change: PresenceChange = seen.next().await.expect("it came").decode().expect("a change");
    assert_eq!((change.user.as_str(), change.status), ("second", PresenceStatus::Offline));
    let story = format!("{}", server.explain(&Target::user("second")).expect("no topic")[0]);
    assert!(story.contains("sessions.away_max"), "{story}");

    let _listening = server.listen(&place).await.expect("the name is free");
    until(|| guests[3].2.connection().is_some()).await;
    let why = loop {
        if let ConnectionEvent::SessionLost { why, .. } = events.next().await.expect("the client is open") {
            break why;
        }
    };
    assert_eq!(why, SessionLost::Expired);
    assert_eq!(receipts[1].received().await.at(Stage::Received), 1);
    assert_eq!(server.stats().sessions_away, 0);
}

/// One client makes very many sessions and leaves each: that ends its own, and nobody else's. First those go that are
/// owed nothing, and then the others of the user with the most.
#[tokio::test(start_paused = true)]
async fn who_leaves_many_sessions_ends_none_of_others() {
    let server = Server::builder()
        .auth(|request| async move {
            request.session().expect("it is connected").bind_user(&request.token);
            Ok::<_, String>(())
        })
        .sessions(SessionOptions::new().away_max(10))
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let go = async |user: &str, pushes: usize| {
        let hello = Metadata::new().with(keys::AUTH, user);
        let (mut client, welcome) = arrive(listening.address(), &hello).await;
        let id: SessionId = welcome.get(keys::SESSION_ID).expect("a session").parse().expect("a number");
        let session = server.session(id).expect("it lives");
        let receipts: Vec<_> =
            (0..pushes).map(|_| session.push(&Push::new("Chat", "say", "hi")).expect("small")).collect();
        for _ in 0..pushes {
            client.next().await;
        }
        client.reset();
        until(|| session.connection().is_none()).await;
        (session, receipts)
    };
    let (quiet, _) = go("bob", 0).await;
    let owed = quiet.push(&Push::new("Chat", "say", "while away")).expect("small");
    let (ann, receipts) = go("ann", 3).await;
    for pushes in [0, 1] {
        for _ in 0..50 {
            go("eve", pushes).await;
        }
        assert_eq!(server.stats().sessions_away, 10);
        for session in [&ann, &quiet] {
            assert!(session.is_resumable(), "{pushes}: {}", session.explain());
        }
    }
    assert!(receipts.iter().chain([&owed]).all(|receipt| receipt.outcomes().dropped() == 0));
    // Each has one: the one who left first.
    for user in 0..10 {
        go(&format!("user {user}"), 1).await;
    }
    assert_eq!((quiet.is_resumable(), ann.is_resumable()), (false, false));
    assert_eq!(server.sessions(&Target::user("eve")).expect("no topic").len(), 0);
}

/// A server that lets none wait ends each session with its connection.
#[tokio::test(start_paused = true)]
async fn a_bound_of_none_lets_none_wait() {
    let server = Server::builder().sessions(SessionOptions::new().away_max(0)).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (client, _messages) =
        Client::bidirectional(listening.address(), ClientOptions::new()).await.expect("it listens");
    settle().await;
    let session = server.sessions(&Target::everyone()).expect("no topic")[0].clone();
    drop(client);
    until(|| server.stats().sessions == 0).await;
    assert_eq!((server.stats().sessions_away, session.is_resumable()), (0, false));
}

/// A client too many is told when to try again, before anybody looks at its token, and nothing that it sent is run; a
/// plain one is closed.
#[tokio::test(start_paused = true)]
async fn who_is_too_many_is_told_when_to_come_again() {
    let asked = Arc::new(AtomicUsize::new(0));
    let asks = Arc::clone(&asked);
    let server = echoing()
        .auth(move |_| {
            asks.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Ok::<_, String>(()))
        })
        .admission(AdmissionOptions::new().new_sessions_rate(Some(Rate::per_second(2).burst(1))))
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut first = Scripted::connect(listening.address()).await;
    first.say(request(1, "Echo", b"a")).await;
    first.hears(reply(1, "Echo", b"a")).await;

    let mut negotiated = Scripted::connect(listening.address()).await;
    negotiated.say([hello(0, Capabilities::ALL, &Metadata::new()), request(1, "Echo", b"b")].concat()).await;
    let refusal = negotiated.next().await;
    assert_eq!((refusal.header().is_heartbeat(), refusal.header().status()), (true, Status::ERROR));
    let said = refusal.metadata();
    assert_eq!(said.get(keys::ERROR_CODE), Some(ErrorCode::Overloaded.name()));
    assert_eq!(said.get(keys::RETRY_AFTER), Some("500"));
    negotiated.hears_the_end().await;
    for plain in [request(1, "Echo", b"c"), ping(1)] {
        let mut client = Scripted::connect(listening.address()).await;
        client.say(plain).await;
        client.hears_the_end().await;
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1, "only who was let in");
    assert_eq!(server.stats().clients_not_admitted, 3);

    // Who was let in stays, and there is room again.
    first.say(request(2, "Echo", b"d")).await;
    first.hears(reply(2, "Echo", b"d")).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    drop(Scripted::connect_negotiated(listening.address()).await);
}

/// Those who come back have a place of their own, whatever crowd comes new; a wrong secret is none.
#[tokio::test(start_paused = true)]
async fn who_comes_back_does_not_wait_behind_who_comes_new() {
    let one = Rate::per_second(1);
    let server = echoing()
        .admission(AdmissionOptions::new().new_sessions_rate(Some(one.burst(2))).resumes_rate(Some(one)))
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut welcomes = Vec::new();
    for _ in 0..2 {
        let mut client = Scripted::connect(listening.address()).await;
        client.say(hello(0, Capabilities::ALL, &Metadata::new())).await;
        welcomes.push(client.next().await.metadata());
    }
    let back = |welcome: &Metadata, secret: Option<&str>| {
        let value = |key| welcome.get(key).expect("a session").to_owned();
        let key = secret.map_or_else(|| value(keys::SESSION_KEY), str::to_owned);
        let pairs = Metadata::new().with(keys::SESSION_ID, value(keys::SESSION_ID)).with(keys::SESSION_KEY, key);
        hello(0, Capabilities::ALL, &pairs.with(keys::SESSION_OFFSET, "0"))
    };
    let mut outcomes = Vec::new();
    for (welcome, secret) in [(0, Some("wrong")), (0, None), (1, None)] {
        let mut client = Scripted::connect(listening.address()).await;
        client.say(back(&welcomes[welcome], secret)).await;
        let answer = client.next().await.metadata();
        outcomes.push((answer.get(keys::SESSION_RESUMED).is_some(), answer.get(keys::RETRY_AFTER).is_some()));
    }
    assert_eq!(outcomes, [(false, true), (true, false), (false, true)]);
}

/// A Bothways client that is not admitted keeps trying, from its beginning and later, and its application knows why.
/// What it asked meanwhile did not run, and may be asked again.
#[tokio::test(start_paused = true)]
async fn a_client_that_is_not_admitted_waits_and_comes_again() {
    let server =
        echoing().admission(AdmissionOptions::new().new_sessions_rate(Some(Rate::per_second(1).burst(1)))).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let first = Scripted::connect_negotiated(listening.address()).await;
    let began = Instant::now();
    let options = ClientOptions::new().connection_wait(Duration::from_secs(60));
    let client = Client::connect(listening.address(), options).await.expect("it listens");
    assert_eq!(call(&client, "Echo", "1").await.expect("admitted"), "1");
    let took = began.elapsed();
    assert!(Duration::from_secs(1) <= took && took < Duration::from_secs(2), "{took:?}");

    let (mut events, before) = (client.events(), server.stats().clients_not_admitted);
    let told = tokio::spawn(async move {
        loop {
            if let ConnectionEvent::Lost { reason: reason @ CloseReason::NotAdmitted { .. }, .. } =
                events.next().await.expect("the client is open")
            {
                return reason;
            }
        }
    });
    client.connection().expect("it is up").close();
    let began = Instant::now();
    let answer = loop {
        match call(&client, "Echo", "2").await {
            Ok(answer) => break answer,
            Err(error) => assert!(error.is_safe_to_retry(), "{error:?}"),
        }
        settle().await;
    };
    assert_eq!(answer, "2");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(before < server.stats().clients_not_admitted);
    let why = soon(told).await.expect("no panic");
    let wait = why.reconnect_after().expect("it says when");
    assert!(Duration::from_millis(500) < wait && wait <= Duration::from_secs(1), "{wait:?}");
    drop(first);
}

/// A client that has been let in has lost its connection, and comes again: with its second Hello, which is not answered.
async fn comes_again(server: &ScriptedServer, options: ClientOptions) -> (Client, Scripted, Message) {
    let (client, peer) = tokio::join!(Client::connect(&server.address, options), server.accept_plain());
    let client = client.expect("it is let in");
    drop(peer);
    let mut peer = server.accept().await;
    let hello = peer.next().await;
    (client, peer, hello)
}

/// What was sent behind a Hello that is refused did not run: it waits, or says so.
#[tokio::test(start_paused = true)]
async fn nothing_behind_a_refused_hello_was_run() {
    for (code, waits) in [("overloaded", true), ("overloaded", false), ("unauthenticated", false)] {
        let server = ScriptedServer::listen().await;
        let wait = if waits { Duration::from_secs(5) } else { Duration::ZERO };
        let options = ClientOptions::new().connection_wait(wait);
        let (client, mut peer, hello) = comes_again(&server, options).await;
        let asking = tokio::spawn(async move { (call(&client, "Ask", "").await, client) });
        let why = Metadata::new().with(keys::ERROR, "full").with(keys::ERROR_CODE, code);
        let header = hello.header().reply().with_status(Status::ERROR);
        let refusal = Message::new(header, "", "", &why.with(keys::RETRY_AFTER, "700"), &[]);
        assert_eq!(peer.next().await.service_method(), "Ask");
        peer.say(refusal.frame()).await;
        peer.end().await;
        if waits {
            let mut next = server.accept_plain().await;
            let again = next.next().await;
            assert_eq!(again.service_method(), "Ask");
            next.say(reply_to(&again, b"here")).await;
            assert_eq!(soon(asking).await.expect("no panic").0.expect("it waited"), "here");
            continue;
        }
        let (error, _client) = soon(asking).await.expect("no panic");
        let error = error.expect_err("nobody ran it");
        assert!(matches!(&error, CallError::Closed { written: false, .. }) && error.is_safe_to_retry(), "{error:?}");
        if let CallError::Closed { reason: CloseReason::NotAdmitted { why, retry_after }, .. } = error {
            assert_eq!((&*why, retry_after), ("full", Duration::from_millis(700)));
        }
    }
}

/// Only a token that is refused, and "not now", say that nothing after the Hello was looked at: older servers go on
/// reading after `internal`. A call after any other refusal is not called unsent, and is not sent again.
#[tokio::test(start_paused = true)]
async fn what_was_sent_behind_a_hello_may_have_run_unless_the_refusal_closes() {
    for code in ["internal", "bad_arguments", "of a later version"] {
        let server = ScriptedServer::listen().await;
        let options = ClientOptions::new().connection_wait(Duration::from_secs(5));
        let (client, mut peer, hello) = comes_again(&server, options).await;
        let asking = tokio::spawn(async move { (call(&client, "Ask", "").await, client) });
        assert_eq!(peer.next().await.service_method(), "Ask");
        let why = Metadata::new().with(keys::ERROR, "no").with(keys::ERROR_CODE, code);
        let header = hello.header().reply().with_status(Status::ERROR);
        peer.say(Message::new(header, "", "", &why, &[]).frame()).await;
        let (error, _client) = soon(asking).await.expect("no panic");
        let error = error.expect_err("nobody answered");
        let said = matches!(&error, CallError::Closed { reason: CloseReason::HelloRefused(text), .. } if text == "no");
        assert!(said && error.may_have_run(), "{code}: {error:?}");
    }
}

/// A plain server that answers the Hello with an error, as Go's does while requests come too fast, stays: it runs what was
/// sent after the Hello, and its answers count.
#[tokio::test(start_paused = true)]
async fn a_plain_server_that_answers_the_hello_with_an_error_stays() {
    for text in ["request reached rate limit", "E42: another text, by `ServerErrorFunc`"] {
        let server = ScriptedServer::listen().await;
        let (client, mut peer, hello) = comes_again(&server, ClientOptions::new()).await;
        let caller = client.clone();
        let asking = tokio::spawn(async move { call(&caller, "Ask", "").await });
        let asked = peer.next().await;
        // Go's reply is a copy of the request, with the error among its pairs.
        let header = hello.header().reply().with_status(Status::ERROR);
        let said = hello.metadata().with(keys::ERROR, text);
        peer.say(Message::new(header, "", "", &said, &[]).frame()).await;
        peer.say(reply_to(&asked, b"here")).await;
        assert_eq!(soon(asking).await.expect("no panic").expect("it is answered"), "here", "{text}");
        let asking = tokio::spawn(async move { call(&client, "Ask", "").await });
        let asked = peer.next().await;
        peer.say(reply_to(&asked, b"again")).await;
        assert_eq!(soon(asking).await.expect("no panic").expect("on the same connection"), "again");
    }
}

/// Of a crowd that comes at once, each is admitted about when the rate allows, with few tries: those who are sent away
/// have moments of their own.
#[tokio::test(start_paused = true)]
async fn a_crowd_is_let_in_at_the_rate() {
    const CLIENTS: usize = 300;
    let server =
        echoing().admission(AdmissionOptions::new().new_sessions_rate(Some(Rate::per_second(50).burst(20)))).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let began = Instant::now();
    let crowd: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let address = listening.address().to_owned();
            tokio::spawn(async move {
                let options = ClientOptions::new().connection_wait(Duration::from_secs(60));
                let client = Client::connect(&address, options).await.expect("it listens");
                while call(&client, "Echo", "").await.is_err() {}
                (Instant::now(), client)
            })
        })
        .collect();
    let (mut by_second, mut clients) = (BTreeMap::<u64, usize>::new(), Vec::new());
    for client in crowd {
        let (at, client) = client.await.expect("no panic");
        *by_second.entry((at - began).as_secs()).or_default() += 1;
        clients.push(client);
    }
    let took = began.elapsed().as_secs_f64();
    assert!((5.0..12.0).contains(&took), "{took}: 280 of them at 50 a second");
    assert!(by_second.values().all(|count| *count <= 71), "{by_second:?}");
    let sent_away = server.stats().clients_not_admitted;
    assert!(sent_away < 3 * CLIENTS as u64, "{sent_away}");
    assert_eq!(server.stats().connections, CLIENTS);
}

/// Requests beyond the rate of frames are refused at once, each with a word if it wants one; what cannot be refused is
/// taken; and nobody else is touched by it.
#[tokio::test(start_paused = true)]
async fn frames_beyond_the_rate_are_refused() {
    let server =
        echoing().limits(ServerLimits::new().frames_per_connection_rate(Some(Rate::per_second(10).burst(5)))).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut plain = Scripted::connect(listening.address()).await;
    let mut said: Vec<u8> = (1..=7).flat_map(|seq| request(seq, "Echo", b"x")).collect();
    said.extend(oneway(8, "Echo", b"x"));
    said.extend(ping(9));
    plain.say(said).await;
    for seq in 1..=7 {
        let answer = plain.next().await;
        let outcome = (answer.header().seq().get(), answer.error_text().is_none());
        assert_eq!(outcome, (seq, seq <= 5), "{answer:?}");
        if let Some(text) = answer.error_text() {
            assert!(text.contains("10 a second, 5 at once"), "{text}");
            assert_eq!(answer.metadata().get(keys::ERROR_CODE), None, "as Go would send it");
        }
    }
    assert!(plain.next().await.header().is_heartbeat());
    assert_eq!(server.connections()[0].stats().oneways_refused, 1);

    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    for _ in 0..4 {
        call(&client, "Echo", "x").await.expect("another connection, whose Hello was the first frame");
    }
    let error = call(&client, "Echo", "x").await.expect_err("one too many");
    assert_eq!((error.code(), error.is_safe_to_retry()), (Some(ErrorCode::Overloaded), true));
    tokio::time::sleep(Duration::from_millis(100)).await;
    call(&client, "Echo", "x").await.expect("ten a second");
}

/// A client that sends more bytes than it may is read from more slowly: all arrives, in its time. Another one's calls
/// are not slower for it.
#[tokio::test(start_paused = true)]
async fn bytes_beyond_the_rate_wait() {
    let server =
        echoing().limits(ServerLimits::new().bytes_per_connection_rate(Some(Rate::per_second(10_000)))).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    let other = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    let began = Instant::now();
    let calls: Vec<_> = (0..60)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { call(&client, "Echo", vec![7; 2000]).await.map(|answer| answer.len()) })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let asked = Instant::now();
    call(&other, "Echo", "x").await.expect("answered");
    assert!(asked.elapsed() < Duration::from_millis(100), "{:?}", asked.elapsed());
    for call in calls {
        assert_eq!(call.await.expect("no panic").expect("answered"), 2000);
    }
    let took = began.elapsed();
    assert!(Duration::from_secs(10) <= took && took <= Duration::from_secs(14), "{took:?} for 120,000 bytes");
    // Who has paid his debt is quick again, and who leaves in debt is let go.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let asked = Instant::now();
    call(&client, "Echo", vec![7; 5000]).await.expect("answered");
    assert!(asked.elapsed() < Duration::from_millis(100), "{:?}", asked.elapsed());
    oneshot_to(&client, "Echo", vec![7; 30_000]).await.expect("room");
    settle().await;
    client.close();
    until(|| server.stats().connections == 1).await;
}

/// The calls of a user's devices are bounded together; another user's are not touched, and a place is free when its
/// call is done.
#[tokio::test(start_paused = true)]
async fn the_calls_of_a_user_are_bounded_together() {
    let (handler, mut asked) = gate();
    let server = echoing()
        .handler("T", "Wait", handler)
        .auth(|request| async move {
            request.session().expect("it is connected").bind_user(&request.token);
            Ok::<_, String>(())
        })
        .limits(ServerLimits::new().calls_per_user_max(Some(2)))
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut devices = Vec::new();
    for user in ["ann", "ann", "bob"] {
        let options = ClientOptions::new().auth(user);
        devices.push(Client::connect(listening.address(), options).await.expect("it listens"));
        settle().await;
    }
    let ask = |at: usize| {
        let client = devices[at].clone();
        tokio::spawn(async move { call(&client, "Wait", "").await })
    };
    let running = [ask(0), ask(1)];
    let gates = [soon(asked.recv()).await.expect("it runs"), soon(asked.recv()).await.expect("it runs")];
    for at in [0, 1] {
        let error = call(&devices[at], "Echo", "x").await.expect_err("both places are taken");
        assert_eq!(error.code(), Some(ErrorCode::Overloaded), "{error}");
    }
    oneshot_to(&devices[0], "Echo", "x").await.expect("room");
    call(&devices[2], "Echo", "x").await.expect("another user");
    gates.into_iter().for_each(|asked| asked.answer(Reply::ok("")));
    for call in running {
        call.await.expect("no panic").expect("answered");
    }
    assert_eq!(server.connections().iter().map(|connection| connection.stats().oneways_refused).sum::<u64>(), 1);
    call(&devices[0], "Echo", "x").await.expect("there is room again");
}

/// A client that leaves and comes back does not run more for that: what it began runs on, and counts on.
#[tokio::test(start_paused = true)]
async fn the_calls_of_a_user_who_left_count_until_they_are_over() {
    let (handler, mut asked) = gate();
    let server = echoing()
        .handler("T", "Wait", handler)
        .auth(|request| async move {
            request.session().expect("it is connected").bind_user("eve");
            Ok::<_, String>(())
        })
        .limits(ServerLimits::new().calls_per_user_max(Some(2)))
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut running = Vec::new();
    for round in 0..4 {
        let mut client = Scripted::connect(listening.address()).await;
        for seq in 0..3 {
            client.say(request(seq, "Wait", b"")).await;
        }
        let refused = if round == 0 { 1 } else { 3 };
        for _ in 0..refused {
            let text = client.next().await.error_text().expect("both places are taken");
            assert!(text.contains("2 calls of this user"), "{text}");
        }
        running.extend(std::iter::from_fn(|| asked.try_recv().ok()));
        client.reset();
        settle().await;
        assert_eq!((server.stats().connections, running.len()), (0, 2));
    }
    running.into_iter().for_each(|asked| asked.answer(Reply::ok("")));
    settle().await;
    let mut client = Scripted::connect(listening.address()).await;
    client.say(request(1, "Wait", b"")).await;
    soon(asked.recv()).await.expect("there is room again");
}

/// A client that opens a connection for each call is bounded by the first one of each: it counts as soon as the hook
/// has said whose it is.
#[tokio::test(start_paused = true)]
async fn the_first_call_of_each_connection_counts_for_its_user() {
    let (handler, mut asked) = gate();
    let server = echoing()
        .handler("T", "Wait", handler)
        .auth(|request| async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            request.session().expect("it is connected").bind_user("ann");
            Ok::<_, String>(())
        })
        .limits(ServerLimits::new().calls_per_user_max(Some(2)))
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut clients = Vec::new();
    for number in 0..5 {
        let mut client = Scripted::connect(listening.address()).await;
        client.say(request(1, "Wait", b"")).await;
        if 2 <= number {
            let text = client.next().await.error_text().expect("both places are taken");
            assert!(text.contains("of this user"), "{text}");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        clients.push(client);
    }
    let running = [soon(asked.recv()).await.expect("it runs"), soon(asked.recv()).await.expect("it runs")];
    assert!(asked.try_recv().is_err());
    running.into_iter().for_each(|asked| asked.answer(Reply::ok("")));
}

/// A server whose hook binds each client to the user that its token names, and takes a moment for that.
fn of_users(limits: ServerLimits) -> (Server, mpsc::UnboundedReceiver<Asked>) {
    let (handler, asked) = gate();
    let builder = echoing().handler("T", "Wait", handler).limits(limits).auth(|request: AuthRequest| async move {
        tokio::time::sleep(Duration::from_millis(1)).await;
        request.session().expect("it is connected").bind_user(&request.token);
        Ok::<_, String>(())
    });
    (builder.build(), asked)
}

async fn comes(listening: &bothways::server::Listening, user: &str) -> Scripted {
    let mut client = Scripted::connect(listening.address()).await;
    client.say(hello(0, Capabilities::ALL, &Metadata::new().with(keys::AUTH, user))).await;
    let welcome = soon(client.next()).await.metadata();
    assert!(welcome.get(keys::SESSION_ID).is_some(), "{user}: {welcome:?}");
    client
}

/// One user who fills the places of the server, over however many connections, and leaves, has left some for each of the
/// others, while its handlers run on. Where others have taken the rest, a client is still let in. What is refused is
/// counted, and told once.
#[tokio::test(start_paused = true)]
async fn a_user_who_fills_all_places_leaves_some_for_others() {
    let (log, _guard) = Log::begin();
    let (server, mut asked) = of_users(ServerLimits::new().calls_max(32));
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut running = Vec::new();
    for _ in 0..6 {
        let mut eve = comes(&listening, "eve").await;
        for seq in 1..17 {
            eve.say(request_with(seq, "Wait", &Metadata::new().with(keys::AUTH, "eve"), b"")).await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        eve.reset();
    }
    running.extend(std::iter::from_fn(|| asked.try_recv().ok()));
    assert_eq!(running.len(), 24, "half of it, and half of the rest");
    assert!(0 < server.stats().overloads);
    let told = "there was no room for what a peer asked";
    assert_eq!(log.lines(told), 1, "{}", log.text());
    assert!(log.text().contains("owner=\"user eve\""), "{}", log.text());
    let mut others = Vec::new();
    for number in 0..20 {
        let user = format!("user {number}");
        let mut client = comes(&listening, &user).await;
        client.say(request_with(1, "Wait", &Metadata::new().with(keys::AUTH, &*user), b"")).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        let runs = asked.try_recv().ok();
        assert_eq!(runs.is_some(), running.len() < 32, "{user}");
        running.extend(runs);
        others.push(client);
    }
    assert_eq!((running.len(), server.stats().calls_running), (32, 32));
    drop(running);
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(server.stats().calls_running, 0);
}

/// The same of the bytes that requests hold: those of one user leave room for small ones, and for large ones too.
#[tokio::test(start_paused = true)]
async fn a_user_who_fills_the_room_of_requests_leaves_some_for_others() {
    const KIB: usize = 1 << 10;
    let limits = ServerLimits::new().request_bytes_max(4096 * KIB).request_bytes_per_connection_max(4096 * KIB);
    let (server, mut asked) = of_users(limits);
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut running = Vec::new();
    for _ in 0..6 {
        let mut eve = comes(&listening, "eve").await;
        for seq in 1..20 {
            let token = Metadata::new().with(keys::AUTH, "eve");
            eve.say(request_with(seq, "Wait", &token, &vec![7; 200 * KIB])).await;
            settle().await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        running.extend(std::iter::from_fn(|| asked.try_recv().ok()));
        eve.reset();
    }
    assert!((12..16).contains(&running.len()), "{} of 20 that there is room for", running.len());
    for user in ["ann", "bob"] {
        let mut client = comes(&listening, user).await;
        let token = Metadata::new().with(keys::AUTH, user);
        for (seq, bytes) in [(1, 200 * KIB), (2, 10)] {
            client.say(request_with(seq, "Wait", &token, &vec![7; bytes])).await;
            running.push(soon(asked.recv()).await.expect("it runs"));
        }
    }
    drop(running);
    tokio::time::sleep(Duration::from_millis(10)).await;
    let mut eve = comes(&listening, "eve").await;
    eve.say(request_with(1, "Wait", &Metadata::new().with(keys::AUTH, "eve"), &vec![7; 1000 * KIB])).await;
    soon(asked.recv()).await.expect("there is room again");
}

/// The same of frames that have begun: the one that finds no room is one of the user who has most.
#[tokio::test(start_paused = true)]
async fn a_user_who_fills_the_room_of_partial_frames_leaves_some_for_others() {
    const KIB: usize = 1 << 10;
    let (server, _asked) = of_users(ServerLimits::new().partial_bytes_max(2048 * KIB));
    let listening = server.listen(&address()).await.expect("the name is free");
    let frame = |user: &str| {
        let frame = request_with(1, "Echo", &Metadata::new().with(keys::AUTH, user), &vec![7; 300 * KIB]);
        let begun = frame[..230 * KIB].to_vec();
        (begun, frame[230 * KIB..].to_vec())
    };
    let mut hogs = Vec::new();
    for _ in 0..30 {
        let mut eve = comes(&listening, "eve").await;
        // What is refused is not read to its end.
        let _ = tokio::time::timeout(Duration::from_millis(100), eve.try_say(frame("eve").0)).await;
        settle().await;
        hogs.push(eve);
    }
    let refused = server.stats().overloads;
    assert!((15..25).contains(&refused), "{refused}");
    for user in ["ann", "bob"] {
        let (begun, rest) = frame(user);
        let mut client = comes(&listening, user).await;
        client.say(begun).await;
        settle().await;
        client.say(rest).await;
        assert_eq!(soon(client.next()).await.error_text(), None);
    }
    assert_eq!(server.stats().overloads, refused);
}

/// Without a user the topics that are made count for the address: more connections make no more of them.
#[tokio::test(start_paused = true)]
async fn many_connections_of_one_address_make_the_topics_of_one() {
    let room = TopicOptions::new().open().presence(true);
    let server = echoing().topic("room.*", room).expect("a pattern").build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut clients = Vec::new();
    let mut made = 0;
    for number in 0..4 {
        let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
        for topic in 0..1000 {
            made += usize::from(client.subscribe(&format!("room.{number}-{topic}")).await.is_ok());
        }
        clients.push(client);
    }
    assert!((2000..3072).contains(&made), "{made}: a sixteenth of what is left of 49,152");
}

/// A user's name is no place to keep much: a longer one binds nobody.
#[tokio::test(start_paused = true)]
async fn a_name_of_a_user_has_so_many_bytes() {
    let (server, _asked) = of_users(ServerLimits::new());
    let listening = server.listen(&address()).await.expect("the name is free");
    for (bytes, is_bound) in [(256, true), (257, false), (60_000, false)] {
        let name = "x".repeat(bytes);
        let _client = comes(&listening, &name).await;
        assert_eq!(server.sessions(&Target::user(&*name)).expect("no topic").len(), usize::from(is_bound), "{bytes}");
    }
}
