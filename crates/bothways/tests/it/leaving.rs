//! How a session ends: by its client, by the server, by its window. Who is told, and what.

use std::time::Duration;

use bothways::{
    Client, ClientOptions, CloseReason, ConnectError, ConnectionEvent, ConnectionEvents, FailMode, Metadata,
    MultipleServersDiscovery, Push, Reconnect, Reply, Request, SelectMode, Server, ServerMessages, SessionLost, Stage,
    Target, XClient, XClientOptions,
    session::{Eviction, PresenceStatus, TopicOptions},
};
use bothways_proto::{Capabilities, Header, Message, Seq, SerializeType, keys};

use crate::{
    scripted::{Scripted, ScriptedServer, arrive, claim, control, hello, is_control, reply, request, session_pairs},
    support::{address, call, connections, echo, gate, settle, soon, until},
};

/// A server at which a client is the user whose name is its token, with a room that shows who is in it.
fn server() -> Server {
    let builder = Server::builder().auth(|request| async move {
        if let Some(session) = request.session().filter(|_| !request.token.is_empty()) {
            session.bind_user(&request.token);
        }
        Ok::<_, String>(())
    });
    builder.topic("room", TopicOptions::new().open().presence(true)).expect("a topic").build()
}

fn options(user: &str) -> ClientOptions {
    ClientOptions::new().auth(user).backoff(Duration::from_millis(1), Duration::from_millis(1))
}

async fn client(address: &str, user: &str) -> (Client, ServerMessages) {
    let connected = Client::bidirectional(address, options(user)).await.expect("it listens");
    settle().await;
    connected
}

async fn next(events: &mut ConnectionEvents) -> Option<ConnectionEvent> {
    soon(events.next()).await
}

fn members(server: &Server) -> Vec<(String, PresenceStatus)> {
    let presence = server.presence("room").expect("a topic");
    let name = |user: &Option<std::sync::Arc<str>>| user.as_deref().unwrap_or_default().to_owned();
    presence.members.iter().map(|member| (name(&member.user), member.status)).collect()
}

/// A client that is closed, or whose last clone is dropped, is gone at once: no session waits for it, others see it go,
/// and what it was owed has its end. What it has handled is handled, though it had no time to say so.
#[tokio::test(start_paused = true)]
async fn a_client_that_is_closed_ends_its_session() {
    for is_dropped in [false, true] {
        let server = server();
        let listening = server.listen(&address()).await.expect("a free name");
        let (ann, mut messages) = client(listening.address(), "ann").await;
        ann.subscribe("room").await.expect("open");
        assert_eq!(members(&server), [("ann".to_owned(), PresenceStatus::Online)]);
        let push = |text: &'static str| server.push(&Target::user("ann"), &Push::new("Chat", "say", text));
        let (handled, kept) = (push("handled").expect("small"), push("kept").expect("small"));
        drop(soon(messages.next()).await.expect("it came"));
        let _held = soon(messages.next()).await.expect("it came");
        match is_dropped {
            true => drop(ann),
            false => ann.close(),
        }
        settle().await;
        assert_eq!((server.stats().sessions, server.stats().sessions_away), (0, 0));
        assert_eq!(members(&server), []);
        assert_eq!(handled.outcomes().at(Stage::Handled), 1);
        assert_eq!((kept.outcomes().open(), kept.outcomes().at(Stage::Handled)), (0, 0), "{kept:?}");
        assert_eq!(push("nobody").expect("small").outcomes().targets(), 0);
    }
}

/// A program starts anew at once, as the same user: what is pushed to the user is for its new session alone.
#[tokio::test(start_paused = true)]
async fn a_program_that_starts_anew_is_one_session() {
    let server = server();
    let listening = server.listen(&address()).await.expect("a free name");
    let (first, _messages) = client(listening.address(), "ann").await;
    first.close();
    let (_second, mut messages) = client(listening.address(), "ann").await;
    let receipt = server.push(&Target::user("ann"), &Push::new("Chat", "say", "hi")).expect("small");
    assert_eq!(receipt.outcomes().targets(), 1);
    drop(soon(messages.next()).await);
    assert_eq!(soon(receipt.handled()).await.at(Stage::Handled), 1);
}

/// Who wants to be taken for one that has lost its connection says so.
#[tokio::test(start_paused = true)]
async fn a_session_can_be_kept_for_its_window() {
    let server = server();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, _messages) = client(listening.address(), "ann").await;
    ann.subscribe("room").await.expect("open");
    ann.close_keeping_session();
    settle().await;
    assert_eq!((server.stats().sessions, server.stats().sessions_away), (1, 1));
    assert_eq!(members(&server), [("ann".to_owned(), PresenceStatus::Reconnecting)]);
    tokio::time::sleep(Duration::from_secs(125)).await;
    assert_eq!(server.stats().sessions, 0);
}

/// A client of several servers leaves each of them.
#[tokio::test(start_paused = true)]
async fn a_client_of_several_servers_leaves_each() {
    let servers = [server(), server()];
    let mut listening = Vec::new();
    for server in &servers {
        listening.push(server.listen(&address()).await.expect("a free name"));
    }
    let addresses: Vec<_> = listening.iter().map(|listening| listening.address().to_owned()).collect();
    let options = XClientOptions::new().client(options("ann"));
    let (xclient, _messages) = XClient::bidirectional(
        "Chat",
        FailMode::Failtry,
        SelectMode::RoundRobin,
        MultipleServersDiscovery::new(addresses),
        options,
    );
    xclient.subscribe("room").await.expect("open");
    for server in &servers {
        until(|| members(server).len() == 1).await;
    }
    xclient.close();
    settle().await;
    for server in &servers {
        assert_eq!((server.stats().sessions, members(server).len()), (0, 0));
    }
}

/// Leave on the wire: oneway from a client that said Hello, with what it acknowledges at last; a call from one that asked
/// for its session by `Enable`. A claim of what was never sent closes the connection, as in any acknowledgement.
#[tokio::test(start_paused = true)]
async fn leaving_is_said_with_a_last_acknowledgement() {
    let server = server();
    let listening = server.listen(&address()).await.expect("a free name");
    for (acked, ends) in [("1,1", Stage::Handled), ("7,7", Stage::Written)] {
        let (mut client, welcome) = arrive(listening.address(), &Metadata::new()).await;
        let session = server.session(welcome.get(keys::SESSION_ID).expect("one").parse().expect("a number"));
        let receipt = session.expect("it lives").push(&Push::new("Chat", "say", "a")).expect("small");
        client.next().await;
        client.say(control(9, keys::LEAVE, keys::ACK_OFFSETS, acked)).await;
        settle().await;
        assert_eq!(receipt.outcomes().at(ends), 1, "{acked}: {receipt:?}");
        match ends {
            Stage::Handled => assert_eq!(server.stats().sessions, 0),
            _ => client.hears_the_end().await,
        }
        let (_client, again) = arrive(listening.address(), &claim(&welcome, 1)).await;
        let why = again.get(keys::SESSION_WHY);
        assert_eq!(why, (ends == Stage::Handled).then_some("ended"), "{acked}");
        server.sessions(&Target::everyone()).expect("no topic").iter().for_each(|session| session.end("next"));
    }

    let mut plain = Scripted::connect(listening.address()).await;
    let call = |seq, method| {
        let header = Header::request(Seq::new(seq), SerializeType::RAW);
        Message::new(header, keys::CONTROL_PATH, method, &Metadata::new(), &[]).frame().to_vec()
    };
    plain.say(call(1, keys::ENABLE)).await;
    let enabled = plain.next().await.metadata();
    assert!(enabled.get(keys::SESSION_ID).is_some());
    plain.say(call(2, keys::LEAVE)).await;
    assert_eq!(plain.next().await.error_text(), None);
    assert_eq!(server.stats().sessions, 0);
}

/// A plain server is told nothing, and a client that is closed while it comes back says nothing on the connection that
/// it has lost.
#[tokio::test(start_paused = true)]
async fn leave_is_said_to_whom_understands_it() {
    let scripted = ScriptedServer::listen().await;
    let connect = || {
        let address = scripted.address.clone();
        tokio::spawn(async move { Client::bidirectional(&address, options("ann")).await })
    };
    let connecting = connect();
    let mut plain = scripted.accept_plain().await;
    let connected = connecting.await.expect("no panic").expect("it listens");
    settle().await;
    connected.0.close();
    assert!(plain.rest().await.is_empty());

    let connecting = connect();
    let mut peer = scripted.accept_with(session_pairs("1")).await;
    let connected = connecting.await.expect("no panic").expect("it listens");
    settle().await;
    connected.0.close();
    let rest = peer.rest().await;
    assert_eq!(rest.len(), 1, "{rest:?}");
    assert!(is_control(&rest[0], keys::LEAVE));
    assert_eq!(rest[0].metadata().get(keys::ACK_OFFSETS), Some("0,0"));
}

/// The session has gone to another connection: what the old one says of leaving counts for nothing.
#[tokio::test(start_paused = true)]
async fn the_old_connection_ends_no_session() {
    let server = server();
    let listening = server.listen(&address()).await.expect("a free name");
    let (mut old, welcome) = arrive(listening.address(), &Metadata::new()).await;
    let (_new, again) = arrive(listening.address(), &claim(&welcome, 0)).await;
    assert!(again.get(keys::SESSION_RESUMED).is_some());
    // It may be gone already.
    let _ = old.try_say(control(9, keys::LEAVE, keys::ACK_OFFSETS, "0,0")).await;
    settle().await;
    assert_eq!(server.stats().sessions, 1);
}

/// A client that is sent away hears why, by its name, and does not come back by itself.
#[tokio::test(start_paused = true)]
async fn who_is_sent_away_hears_why_and_stays_away() {
    for (eviction, expected) in [
        (Eviction::Kicked, SessionLost::Kicked),
        (Eviction::Expired, SessionLost::Expired),
        (Eviction::Revoked, SessionLost::Revoked),
    ] {
        let server = server();
        let listening = server.listen(&address()).await.expect("a free name");
        let (ann, mut messages) = client(listening.address(), "ann").await;
        let mut events = ann.events();
        server.sessions(&Target::user("ann")).expect("no topic")[0].evict(eviction, "so it is");
        let Some(ConnectionEvent::Lost { reason, .. }) = next(&mut events).await else { panic!("it is lost first") };
        assert_eq!(reason.sent_away(), Some(expected), "{reason}");
        let lost = next(&mut events).await;
        assert!(matches!(&lost, Some(ConnectionEvent::SessionLost { why, .. }) if *why == expected), "{lost:?}");
        let gave_up = next(&mut events).await;
        let is_told = matches!(&gave_up, Some(ConnectionEvent::GaveUp { error: ConnectError::SentAway { .. }, .. }));
        assert!(is_told, "{gave_up:?}");
        assert!(next(&mut events).await.is_none() && soon(messages.next()).await.is_none());
        tokio::time::sleep(Duration::from_secs(300)).await;
        assert_eq!((server.stats().connections, server.stats().sessions), (0, 0));
        let error = ann.call::<()>("No", "Such", &()).await.expect_err("it has ended").to_string();
        assert!(error.contains(&expected.to_string()) && error.contains("so it is"), "{error}");
        // Another one is let in.
        let (_again, _messages) = client(listening.address(), "ann").await;
        assert_eq!(server.stats().sessions, 1);
    }
}

/// The client is away when its session ends. When it is back it hears the true reason; if it was sent away it does not
/// begin another session.
#[tokio::test(start_paused = true)]
async fn who_is_away_hears_the_true_reason_when_it_is_back() {
    let evicted = [Eviction::Kicked, Eviction::Expired, Eviction::Revoked].map(Some);
    let evicted = evicted.into_iter().zip([SessionLost::Kicked, SessionLost::Expired, SessionLost::Revoked]);
    for (eviction, expected) in evicted.chain([(None, SessionLost::Ended), (None, SessionLost::Expired)]) {
        let server = server();
        let listening = server.listen(&address()).await.expect("a free name");
        let patient = options("ann").backoff(Duration::from_secs(1), Duration::from_secs(1));
        let (ann, _messages) = Client::bidirectional(listening.address(), patient).await.expect("it listens");
        settle().await;
        let session = server.sessions(&Target::user("ann")).expect("no topic")[0].clone();
        let mut events = ann.events();
        let place = listening.address().to_owned();
        drop(listening);
        ann.connection().expect("it is up").close();
        until(|| session.connection().is_none()).await;
        match (eviction, expected) {
            (Some(Eviction::Kicked), _) => drop(server.kick(&Target::user("ann"), "out").expect("no topic")),
            (Some(eviction), _) => session.evict(eviction, "out"),
            (None, SessionLost::Ended) => session.end("over"),
            _ => tokio::time::sleep(Duration::from_secs(300)).await,
        }
        let _listening = server.listen(&place).await.expect("the name is free again");
        let lost = loop {
            if let ConnectionEvent::SessionLost { why, .. } = next(&mut events).await.expect("it is told") {
                break why;
            }
        };
        assert_eq!(lost, expected);
        tokio::time::sleep(Duration::from_secs(10)).await;
        let comes_back = eviction.is_none();
        assert_eq!(server.stats().sessions, usize::from(comes_back), "{expected:?}");
        // In the words of the server.
        let is_sent_away = matches!(
            ann.connection(),
            Err(ConnectError::SentAway { why, reason, .. }) if reason == "out" && why == expected
        );
        assert_eq!(is_sent_away, !comes_back, "{expected:?}");
    }
}

/// The words on the wire, for clients of any library; and a secret is needed to hear how a session ended.
#[tokio::test(start_paused = true)]
async fn the_codes_of_an_end_are_as_documented() {
    let server = server();
    let listening = server.listen(&address()).await.expect("a free name");
    for (eviction, code) in [
        (None, "ended"),
        (Some(Eviction::Kicked), "kicked"),
        (Some(Eviction::Expired), "expired"),
        (Some(Eviction::Revoked), "revoked"),
    ] {
        let (mut client, welcome) = arrive(listening.address(), &Metadata::new()).await;
        let session = server.session(welcome.get(keys::SESSION_ID).expect("one").parse().expect("a number"));
        let session = session.expect("it lives");
        match eviction {
            None => session.end("enough"),
            Some(eviction) => session.evict(eviction, "enough"),
        }
        let goodbye = client.next().await;
        assert!(is_control(&goodbye, keys::GOODBYE), "{goodbye:?}");
        let said = goodbye.metadata();
        assert_eq!((said.get(keys::GOODBYE_CODE), said.get(keys::GOODBYE_WHY)), (Some(code), Some("enough")));
        client.hears_the_end().await;
        let (_client, again) = arrive(listening.address(), &claim(&welcome, 0)).await;
        assert_eq!((again.get(keys::SESSION_WHY), again.get(keys::SESSION_RESUMED)), (Some(code), None));
        assert_eq!(again.get(keys::GOODBYE_CODE), eviction.map(|_| code));
        let guessed = claim(&welcome, 0).with(keys::SESSION_KEY, "guessed");
        assert_eq!(arrive(listening.address(), &guessed).await.1.get(keys::SESSION_WHY), Some("unknown"));
    }
}

/// An older server says `ended` when it kicks: its client comes back, as it always did.
#[tokio::test(start_paused = true)]
async fn a_goodbye_of_an_old_server_is_not_for_good() {
    let scripted = ScriptedServer::listen().await;
    let address = scripted.address.clone();
    let connecting = tokio::spawn(async move { Client::bidirectional(&address, options("ann")).await });
    let mut peer = scripted.accept_with(session_pairs("1")).await;
    let (ann, _messages) = connecting.await.expect("no panic").expect("it listens");
    let mut events = ann.events();
    settle().await;
    let header = Header::oneway(Seq::new(1 << 63), SerializeType::RAW);
    let pairs = Metadata::new().with(keys::GOODBYE_CODE, "ended").with(keys::GOODBYE_WHY, "enough");
    peer.say(Message::new(header, keys::CONTROL_PATH, keys::GOODBYE, &pairs, &[]).frame()).await;
    let _back = scripted.accept_with(session_pairs("2").with(keys::SESSION_WHY, "unknown")).await;
    let reason = loop {
        if let ConnectionEvent::Lost { reason, .. } = next(&mut events).await.expect("it is told") {
            break reason;
        }
    };
    assert!(matches!(&reason, CloseReason::Goodbye { code, .. } if code == "ended") && reason.sent_away().is_none());
    let lost = loop {
        if let ConnectionEvent::SessionLost { why, .. } = next(&mut events).await.expect("it is told") {
            break why;
        }
    };
    assert_eq!(lost, SessionLost::Unknown);
}

/// Who sends clients away may say why at any length: of a long text they hear the beginning.
#[tokio::test(start_paused = true)]
async fn a_long_reason_is_cut_and_ends_everybody() {
    let why = "x".repeat(100_000);
    let server = server();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, _to_ann) = client(listening.address(), "ann").await;
    let (other, _to_other) = client(listening.address(), "ann").await;
    let mut events = ann.events();
    assert_eq!(server.kick(&Target::user("ann"), &why).expect("no topic"), 2);
    let Some(ConnectionEvent::Lost { reason: CloseReason::Goodbye { why: heard, .. }, .. }) = next(&mut events).await
    else {
        panic!("it is told");
    };
    assert!(1000 < heard.len() && why.starts_with(&heard), "{}", heard.len());
    settle().await;
    assert_eq!(server.stats().connections, 0);
    drop(other);

    let refused = Server::builder().auth(move |_| std::future::ready(Err::<(), _>("y".repeat(100_000)))).build();
    let listening = refused.listen(&address()).await.expect("a free name");
    let Err(ConnectError::Refused { .. }) = Client::bidirectional(listening.address(), options("ann")).await else {
        panic!("it is refused, and hears the beginning of why");
    };
    assert_eq!(refused.session_bytes_max(usize::MAX), usize::MAX);
}

/// Who has left is on no connection any more, where nothing would bound or find it as its user: what runs is answered,
/// what it says behind that is not heard, and the connection ends.
#[tokio::test(start_paused = true)]
async fn a_connection_ends_with_the_leave_of_its_client() {
    let leave = |is_oneway: bool| {
        let seq = Seq::new(2);
        let header = match is_oneway {
            true => Header::oneway(seq, SerializeType::RAW),
            false => Header::request(seq, SerializeType::RAW),
        };
        Message::new(header, keys::CONTROL_PATH, keys::LEAVE, &Metadata::new(), &[]).frame().to_vec()
    };
    for (is_negotiated, is_oneway) in [(false, false), (false, true), (true, false), (true, true)] {
        let (handler, mut asked) = gate();
        let (waits, mut echoed) = gate();
        let builder = Server::builder().auth(|request| async move {
            request.session().expect("it is connected").bind_user("ann");
            Ok::<_, String>(())
        });
        let server = builder.handler("T", "Wait", handler).handler("T", "Late", waits).build();
        let listening = server.listen(&address()).await.expect("a free name");
        let mut client = match is_negotiated {
            true => arrive(listening.address(), &Metadata::new()).await.0,
            false => Scripted::connect(listening.address()).await,
        };
        client.say(request(1, "Wait", b"")).await;
        let running = soon(asked.recv()).await.expect("it runs");
        let mut said = leave(is_oneway);
        said.extend(request(3, "Late", b""));
        client.say(said).await;
        if !is_oneway {
            let answer = client.next().await;
            assert_eq!((answer.header().seq().get(), answer.error_text()), (2, None));
        }
        settle().await;
        assert_eq!(server.stats().sessions, 0);
        assert!(echoed.try_recv().is_err(), "it is not heard any more");
        running.answer(Reply::ok("done"));
        if !(is_negotiated && is_oneway) {
            client.hears(reply(1, "Wait", b"done")).await;
        }
        client.hears_the_end().await;
        client.end().await;
        connections(&server, 0).await;
    }
}

/// The handler of a call such as `Logout` ends the session of its caller: it and what runs beside it are answered, and
/// then the connection ends.
#[tokio::test(start_paused = true)]
async fn a_handler_may_end_the_session_after_its_reply() {
    let (handler, mut asked) = gate();
    let logout = |request: Request| async move {
        request.session().expect("it is connected").end_after_replies("logged out");
        Reply::ok("bye")
    };
    let server = Server::builder()
        .handler("T", "Wait", handler)
        .handler("T", "Logout", logout)
        .handler("T", "Echo", echo)
        .build();
    let listening = server.listen(&address()).await.expect("a free name");
    let client = Client::connect(listening.address(), ClientOptions::new().reconnect(Reconnect::Never))
        .await
        .expect("it listens");
    settle().await;
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { call(&client, "Wait", "").await }
    });
    let running = soon(asked.recv()).await.expect("it runs");
    assert_eq!(call(&client, "Logout", "").await.expect("answered"), "bye");
    assert_eq!(server.stats().sessions, 0);
    call(&client, "Echo", "").await.expect_err("it is logged out");
    running.answer(Reply::ok("done"));
    assert_eq!(soon(waiting).await.expect("no panic").expect("answered"), "done");
    connections(&server, 0).await;
}

/// A hook that ends the session of whom it lets in lets nobody in: there is no Welcome to a session that has ended.
#[tokio::test(start_paused = true)]
async fn a_session_that_ends_within_the_hook_is_welcomed_by_nobody() {
    for after_replies in [false, true] {
        let server = Server::builder().handler("T", "Echo", echo).auth(move |request| async move {
            match request.session() {
                Some(session) if after_replies => session.end_after_replies("full"),
                Some(session) => session.end("full"),
                None => panic!("it has just come"),
            }
            Ok::<_, String>(())
        });
        let server = server.build();
        let listening = server.listen(&address()).await.expect("a free name");
        let mut client = Scripted::connect(listening.address()).await;
        let began = tokio::time::Instant::now();
        client.say(hello(0, Capabilities::ALL, &Metadata::new())).await;
        client.hears_the_end().await;
        client.end().await;
        connections(&server, 0).await;
        assert!(began.elapsed() < Duration::from_secs(1), "it waits for nothing");
        assert_eq!(server.stats().sessions, 0);
    }
}
