//! What topics promise when there is too little room, too many clients or too long a silence: nothing is called
//! recovered that is not, nothing is lost that can be had, and nobody pays for others.

use std::time::Duration;

use bothways::{
    CallError, Class, Client, ClientOptions, ConnectionEvent, Push, QueueBound, Reconnect, Reply, Request, Router,
    Server, ServerBuilder, ServerMessages, Session, SessionOptions, Stage, Target,
    session::{Event, Position, PresenceChange, PresenceStatus, Subscribed, TopicOptions},
};

use crate::support::{Log, address, soon, until};

const HOUR: Duration = Duration::from_secs(3600);

/// A server at which a client is the user whose name is its token.
fn server(pattern: &str, options: TopicOptions) -> ServerBuilder {
    let builder = Server::builder().auth(|request| async move {
        if let Some(session) = request.session().filter(|_| !request.token.is_empty()) {
            session.bind_user(&request.token);
        }
        Ok::<_, String>(())
    });
    builder.topic(pattern, options).expect("a pattern")
}

fn options(user: &str) -> ClientOptions {
    ClientOptions::new().auth(user).backoff(Duration::from_millis(1), Duration::from_millis(1))
}

async fn client(address: &str, user: &str) -> (Client, ServerMessages) {
    Client::bidirectional(address, options(user)).await.expect("it listens")
}

fn push(text: &str) -> Push {
    Push::new("News", "say", text.to_owned())
}

/// What has come by now; notices of gaps are none of it.
async fn texts(messages: &mut ServerMessages) -> Vec<String> {
    tokio::time::sleep(Duration::from_millis(10)).await;
    let mut texts = Vec::new();
    while let Some(message) = messages.try_next() {
        texts.push(String::from_utf8(message.payload().expect("not packed").to_vec()).expect("a text"));
    }
    texts
}

/// The changes of presence that have come by now: who, and whether it is there.
async fn changes(messages: &mut ServerMessages) -> Vec<PresenceChange> {
    tokio::time::sleep(Duration::from_millis(10)).await;
    let mut changes = Vec::new();
    while let Some(message) = messages.try_next() {
        assert_eq!((message.service_path(), message.service_method()), ("_bothways", "Presence"));
        changes.push(message.decode().expect("a change"));
    }
    changes
}

fn session_of(server: &Server, user: &str) -> Session {
    server.sessions(&Target::user(user)).expect("no topic")[0].clone()
}

fn refusal<T: std::fmt::Debug>(outcome: Result<T, CallError>) -> String {
    match outcome {
        Err(CallError::Remote { text, .. }) => text,
        other => panic!("{other:?}"),
    }
}

/// What a session's log had no room for is not called sent. A client that asks for it while there is no room gets it when
/// there is, in order and once.
#[tokio::test(start_paused = true)]
async fn what_found_no_room_comes_when_there_is_room() {
    let server = server("log", TopicOptions::new().open().history(100, HOUR))
        .sessions(SessionOptions::new().log(QueueBound::messages(3).bytes(1 << 20)))
        .build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, mut to_ann) = client(listening.address(), "ann").await;
    let start = ann.subscribe("log").await.expect("open").position.expect("it has a history");
    let at = |offset| Position { offset, ..start };
    for number in 1..=6 {
        server.publish("log", &push(&number.to_string())).expect("small");
    }
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(soon(to_ann.next()).await.expect("open"));
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(ann.subscribe_from("log", at(3)).await.expect("open").recovered, "the history has all of it");
    assert!(texts(&mut to_ann).await.is_empty(), "there is no room for it");
    drop(held);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(texts(&mut to_ann).await, ["4", "5", "6"]);
    let again = ann.subscribe_from("log", at(3)).await.expect("open");
    assert_eq!(again, Subscribed { recovered: true, position: Some(at(3)) });
    assert!(texts(&mut to_ann).await.is_empty(), "each once");
    tokio::time::sleep(Duration::from_secs(1)).await;
    server.publish("log", &push("7")).expect("small");
    assert_eq!(texts(&mut to_ann).await, ["7"]);
}

/// A server whose topic keeps 40 messages, of which a session's log holds three; the position before the first of them,
/// a client that has none of them, and what is to be kept for as long as the test.
async fn with_a_long_past() -> (Server, Position, Client, ServerMessages, impl Sized) {
    let server = server("log", TopicOptions::new().open().history(100, HOUR))
        .sessions(SessionOptions::new().log(QueueBound::messages(3).bytes(1 << 20)))
        .build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, to_ann) = client(listening.address(), "ann").await;
    let start = ann.subscribe("log").await.expect("open").position.expect("it has a history");
    for number in 1..=40 {
        server.publish("log", &push(&number.to_string())).expect("small");
    }
    let (bob, to_bob) = client(listening.address(), "bob").await;
    (server, start, bob, to_bob, (listening, ann, to_ann))
}

/// What happens while a client that is far behind gets what it missed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Meanwhile {
    Nothing,
    /// Its connection is lost, and not its session.
    Cut,
    /// Its session is lost, too.
    Lost,
}

/// A program that starts anew and is further behind than its session's log holds gets all of it in parts, in order and
/// once, and behind that what is new; also if it has subscribed from now on before it asks.
#[tokio::test(start_paused = true)]
async fn who_starts_anew_far_behind_gets_all_of_it_in_parts() {
    use Meanwhile::{Cut, Lost, Nothing};
    for (twice, meanwhile) in [(false, Nothing), (false, Cut), (false, Lost), (true, Nothing), (true, Cut)] {
        let (server, start, bob, mut to_bob, _kept) = with_a_long_past().await;
        let publish = |number: usize| _ = server.publish("log", &push(&number.to_string())).expect("small");
        if twice {
            bob.subscribe("log").await.expect("open");
        }
        let from = Position { offset: 5, ..start };
        let subscribed = soon(bob.subscribe_from("log", from)).await.expect("open");
        assert_eq!(subscribed, Subscribed { recovered: true, position: Some(from) }, "{twice}, {meanwhile:?}");
        let mut got = Vec::new();
        for round in 41..=80 {
            if round % 8 == 0 {
                publish(round);
            }
            got.extend(texts(&mut to_bob).await);
            match meanwhile {
                Cut if round == 45 => bob.connection().expect("up").close(),
                Lost if round == 45 => session_of(&server, "bob").end("a test"),
                _ => {}
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        publish(81);
        got.extend(texts(&mut to_bob).await);
        let all = (6..=40).chain((41..=80).filter(|number| number % 8 == 0)).chain([81]);
        assert_eq!(got, all.map(|number| number.to_string()).collect::<Vec<_>>(), "{twice}, {meanwhile:?}");
    }
}

/// What a session still owes of an earlier position ends with it, if its client has subscribed from now on before it
/// asked: a part may have been lost on its way. The application is told so, and goes on with what is new.
#[tokio::test(start_paused = true)]
async fn who_loses_its_session_amid_parts_of_the_past_is_told() {
    let (server, start, bob, mut to_bob, _kept) = with_a_long_past().await;
    let publish = |number: usize| _ = server.publish("log", &push(&number.to_string())).expect("small");
    let mut events = bob.events();
    let now = soon(bob.subscribe("log")).await.expect("open").position;
    assert_eq!(now.map(|position| position.offset), Some(40));
    let from = Position { offset: 5, ..start };
    assert!(soon(bob.subscribe_from("log", from)).await.expect("open").recovered);
    let mut got = Vec::new();
    while got.len() < 6 {
        got.extend(texts(&mut to_bob).await);
    }
    session_of(&server, "bob").end("a test");
    let recovered = loop {
        let event = soon(events.next()).await.expect("the client is open");
        if let ConnectionEvent::Resubscribed { recovered, .. } = event {
            break recovered;
        }
    };
    assert!(!recovered, "not all of it has come");
    for number in 41..=43 {
        publish(number);
        tokio::time::sleep(Duration::from_secs(1)).await;
        got.extend(texts(&mut to_bob).await);
    }

    let parts = got.len() - 3;
    assert!(parts < 35, "it was lost amid the parts");
    let expected = (6..6 + parts).chain(41..=43).map(|number| number.to_string());
    assert_eq!(got, expected.collect::<Vec<_>>(), "in order and once, without a hole that nobody was told of");
}

/// An application that does not read until it has subscribed is answered though its session's log is full.
#[tokio::test(start_paused = true)]
async fn who_is_far_behind_in_several_topics_is_answered_before_it_reads() {
    let server = server("log.*", TopicOptions::new().open().history(100, HOUR))
        .sessions(SessionOptions::new().log(QueueBound::messages(3).bytes(1 << 20)))
        .build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, _to_ann) = client(listening.address(), "ann").await;
    let topics = ["log.a", "log.b", "log.c"];
    let mut starts = Vec::new();
    for topic in topics {
        starts.push(ann.subscribe(topic).await.expect("open").position.expect("it has a history"));
        (1..=10).for_each(|number| _ = server.publish(topic, &push(&format!("{topic} {number}"))).expect("small"));
    }
    let (bob, mut to_bob) = client(listening.address(), "bob").await;
    for (topic, start) in topics.iter().zip(starts) {
        assert!(soon(bob.subscribe_from(topic, start)).await.expect("open").recovered);
    }
    let mut got = Vec::new();
    for _ in 0..60 {
        got.extend(texts(&mut to_bob).await);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    for topic in topics {
        let of_topic: Vec<_> = got.iter().filter(|text| text.starts_with(topic)).cloned().collect();
        assert_eq!(of_topic, (1..=10).map(|number| format!("{topic} {number}")).collect::<Vec<_>>());
    }
}

/// Of a topic with history nothing overtakes what found no room, though room is made in between.
#[tokio::test(start_paused = true)]
async fn nothing_overtakes_what_found_no_room() {
    let server = server("log", TopicOptions::new().open().history(100, HOUR))
        .sessions(SessionOptions::new().log(QueueBound::messages(3).bytes(1 << 20)))
        .build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, mut to_ann) = client(listening.address(), "ann").await;
    ann.subscribe("log").await.expect("open");
    let mut got = Vec::new();
    for number in 1..=40 {
        server.publish("log", &push(&number.to_string())).expect("small");
        if number % 5 == 0 {
            got.extend(texts(&mut to_ann).await);
        }
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    for _ in 0..30 {
        got.extend(texts(&mut to_ann).await);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let all: Vec<_> = (1..=40).map(|number| number.to_string()).collect();
    assert_eq!(got, all);
}

/// What is fired at a client that is away, or lost with its connection, is not called sent either.
#[tokio::test(start_paused = true)]
async fn what_was_fired_at_nobody_can_be_recovered() {
    let server = server("log", TopicOptions::new().open().history(100, HOUR)).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, mut to_ann) = client(listening.address(), "ann").await;
    let start = ann.subscribe("log").await.expect("open").position.expect("it has a history");
    let session = session_of(&server, "ann");
    ann.connection().expect("up").close();
    until(|| session.connection().is_none()).await;
    server.publish("log", &push("1").class(Class::Fire)).expect("small");
    until(|| session.connection().is_some()).await;
    server.publish("log", &push("2")).expect("small");
    assert_eq!(texts(&mut to_ann).await, ["2"]);
    assert!(ann.subscribe_from("log", start).await.expect("open").recovered);
    assert_eq!(texts(&mut to_ann).await, ["1"]);
    // Written to a connection that is lost before the client has it.
    session.connection().expect("up").close();
    server.publish("log", &push("3").class(Class::Fire)).expect("small");
    assert!(texts(&mut to_ann).await.is_empty());
    assert!(ann.subscribe_from("log", Position { offset: 2, ..start }).await.expect("open").recovered);
    assert_eq!(texts(&mut to_ann).await, ["3"]);
}

/// A client whose session is lost recovers a history that is longer than the session's log: part by part, in order.
#[tokio::test(start_paused = true)]
async fn a_long_history_is_recovered_in_parts() {
    let server = server("log", TopicOptions::new().open().history(1000, HOUR))
        .sessions(SessionOptions::new().log(QueueBound::messages(10).bytes(1 << 20)))
        .build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, mut to_ann) = client(listening.address(), "ann").await;
    ann.subscribe("log").await.expect("open");
    session_of(&server, "ann").end("a test");
    for number in 1..=95 {
        server.publish("log", &push(&number.to_string())).expect("small");
    }
    let mut got = Vec::new();
    while got.len() < 95 {
        let message = soon(to_ann.next()).await.expect("open");
        got.push(message.position().expect("it has one").offset);
        if got.len() == 50 {
            server.publish("log", &push("96")).expect("small");
        }
    }
    assert_eq!(texts(&mut to_ann).await, ["96"]);
    assert_eq!(got, (1..=95).collect::<Vec<_>>());
}

/// What is pushed to a topic's subscribers past its history is no message of the topic, and so no recovery owes it.
#[tokio::test(start_paused = true)]
async fn a_push_to_subscribers_is_no_message_of_the_topic() {
    let server = server("news", TopicOptions::new().open().history(100, HOUR)).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, mut to_ann) = client(listening.address(), "ann").await;
    let start = ann.subscribe("news").await.expect("open").position.expect("it has a history");
    server.publish("news", &push("1")).expect("small");
    server.push(&Target::subscribers_of("news"), &push("aside")).expect("small");
    server.publish("news", &push("2")).expect("small");
    let mut got = Vec::new();
    for _ in 0..3 {
        got.push(soon(to_ann.next()).await.expect("open").position().map(|position| position.offset));
    }
    assert_eq!(got, [Some(1), None, Some(2)], "the topic's own offsets have no hole");
    let (bob, mut to_bob) = client(listening.address(), "bob").await;
    assert!(bob.subscribe_from("news", start).await.expect("open").recovered);
    assert_eq!(texts(&mut to_bob).await, ["1", "2"]);
}

/// Who unsubscribes while its connection is lost is unsubscribed when it is back in its session; and who wants the
/// topic again has it.
#[tokio::test(start_paused = true)]
async fn who_unsubscribes_while_away_is_not_subscribed_when_it_is_back() {
    let server = server("*", TopicOptions::new().open()).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let options = options("ann").connection_wait(Duration::ZERO);
    let (ann, mut to_ann) = Client::bidirectional(listening.address(), options).await.expect("it listens");
    soon(ann.call::<()>("No", "Such", &())).await.expect_err("there is no such service");
    for topic in ["a", "b"] {
        ann.subscribe(topic).await.expect("open");
    }
    let session = session_of(&server, "ann");
    ann.connection().expect("up").close();
    until(|| session.connection().is_none()).await;
    ann.unsubscribe("a").await.expect_err("it is away");
    until(|| session.subscriptions() == ["b"]).await;
    assert_eq!(session.generation(), 2, "it is the same session");
    server.publish("a", &push("1")).expect("small");
    server.publish("b", &push("2")).expect("small");
    assert_eq!(texts(&mut to_ann).await, ["2"]);
    ann.subscribe("a").await.expect("open");
    ann.connection().expect("up").close();
    until(|| session.generation() == 3).await;
    server.publish("a", &push("3")).expect("small");
    assert_eq!(texts(&mut to_ann).await, ["3"]);
}

/// The position of a topic outlives its messages: a client that has them all is not made to load everything again.
#[tokio::test(start_paused = true)]
async fn a_quiet_topic_keeps_its_place() {
    let minute = Duration::from_secs(60);
    let server = server("news.*", TopicOptions::new().open().history(100, minute)).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (watcher, _seen) = client(listening.address(), "watcher").await;
    watcher.subscribe("news.*").await.expect("open");
    let (ann, mut to_ann) = client(listening.address(), "ann").await;
    let start = ann.subscribe("news.a").await.expect("open").position.expect("it has a history");
    server.publish("news.a", &push("1")).expect("small");
    assert_eq!(texts(&mut to_ann).await, ["1"]);
    ann.unsubscribe("news.a").await.expect("connected");
    for wait in [70, 3600] {
        tokio::time::sleep(Duration::from_secs(wait)).await;
        let seen = Position { offset: 1, ..start };
        let back = ann.subscribe_from("news.a", seen).await.expect("open");
        assert_eq!(back, Subscribed { recovered: true, position: Some(seen) });
        assert!(!ann.subscribe_from("news.a", start).await.expect("open").recovered, "the message is too old");
        ann.unsubscribe("news.a").await.expect("connected");
    }
    tokio::time::sleep(Duration::from_secs(25 * 3600)).await;
    assert_ne!(ann.subscribe("news.a").await.expect("open").position.map(|at| at.epoch), Some(start.epoch));
}

/// A history that is longer than a session's log is told of when the server is built, and no other is.
#[test]
fn a_history_longer_than_the_log_is_told_of_at_build() {
    for (messages, is_told) in [(1000, false), (1001, true)] {
        let log = Log::default();
        let kept = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || kept.clone()).finish();
        let builder = server("news.*", TopicOptions::new().history(messages, HOUR));
        let builder = builder.sessions(SessionOptions::new().log(QueueBound::messages(1000).bytes(1 << 20)));
        drop(tracing::subscriber::with_default(subscriber, || builder.build()));
        let text = log.text();
        assert_eq!(text.contains("WARN") && text.contains("news.*"), is_told, "{text}");
    }
}

/// What a server forgets of one topic costs nobody a message of another: a client that subscribes before anything is
/// published gets all of it, also if it loses its session meanwhile.
#[tokio::test(start_paused = true)]
async fn the_end_of_one_topic_is_not_that_of_another() {
    let minute = Duration::from_secs(60);
    let server = server("news.*", TopicOptions::new().open().history(100, minute)).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (watcher, _seen) = client(listening.address(), "watcher").await;
    server.publish("news.other", &push("0")).expect("small");
    let start = watcher.subscribe("news.other").await.expect("open").position.expect("it has a history");
    watcher.unsubscribe("news.other").await.expect("connected");
    let (ann, mut to_ann) = client(listening.address(), "ann").await;
    ann.subscribe("news.quiet").await.expect("open");
    let mut events = ann.events();

    tokio::time::sleep(26 * HOUR).await;
    let anew = watcher.subscribe("news.other").await.expect("open").position.expect("it has a history");
    assert_ne!(anew.epoch, start.epoch, "it is forgotten");

    session_of(&server, "ann").end("lost");
    for text in ["1", "2"] {
        server.publish("news.quiet", &push(text)).expect("small");
    }
    let recovered = loop {
        if let ConnectionEvent::Resubscribed { recovered, .. } = soon(events.next()).await.expect("it is told") {
            break recovered;
        }
    };
    assert!(recovered);
    assert_eq!(texts(&mut to_ann).await, ["1", "2"]);
}

/// A client that was told of too few changes asks who is there, and is told with the generation of the last change.
#[tokio::test(start_paused = true)]
async fn a_roster_can_be_had_after_a_gap() {
    let server = server("room", TopicOptions::new().open().presence(true))
        .sessions(SessionOptions::new().latest_queue(QueueBound::messages(5).bytes(1 << 20)))
        .build();
    let listening = server.listen(&address()).await.expect("a free name");
    let minute = Duration::from_secs(60);
    let slow = options("ann").backoff(minute, minute);
    let (ann, mut to_ann) = Client::bidirectional(listening.address(), slow).await.expect("it listens");
    assert!(refusal(ann.roster("room").await).contains("subscribe"));
    ann.subscribe("room").await.expect("open");
    let session = session_of(&server, "ann");
    ann.connection().expect("up").close();
    until(|| session.connection().is_none()).await;
    let mut others = Vec::new();
    for number in 0..8 {
        let (other, messages) = client(listening.address(), &format!("user{number}")).await;
        other.subscribe("room").await.expect("open");
        others.push((other, messages));
    }
    tokio::time::sleep(2 * minute).await;
    let told = changes(&mut to_ann).await;
    let roster = ann.roster("room").await.expect("it subscribes");
    let users: Vec<_> = roster.members.iter().map(|member| member.user.as_deref().expect("users")).collect();
    assert_eq!(users, ["ann", "user0", "user1", "user2", "user3", "user4", "user5", "user6", "user7"]);
    assert!(told.len() < 8 && told.iter().all(|change| change.generation <= roster.generation));
    // What was told is acknowledged, and makes room for more.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let (bob, _to_bob) = client(listening.address(), "bob").await;
    bob.subscribe("room").await.expect("open");
    let [change] = changes(&mut to_ann).await.try_into().expect("one change");
    assert!(roster.generation < change.generation && change.user == "bob");
    assert_eq!(server.presence("room").expect("a topic").generation, change.generation);
}

/// Clients in one room that shows who is there; each has had what it was told by now.
async fn crowd(address: &str, count: usize) -> Vec<(Client, ServerMessages)> {
    let mut crowd = Vec::new();
    for number in 0..count {
        // A client that is kicked stays away.
        let options = options(&format!("user{number}")).reconnect(Reconnect::Never);
        let (member, messages) = Client::bidirectional(address, options).await.expect("it listens");
        member.subscribe("room").await.expect("open");
        crowd.push((member, messages));
    }
    for (_, messages) in &mut crowd {
        changes(messages).await;
    }
    crowd
}

/// Those who leave together are not told of each other; who stays is told of each, once.
#[tokio::test(start_paused = true)]
async fn who_leaves_together_is_not_told_of_the_others() {
    const LEAVING: usize = 20;
    let server = server("room", TopicOptions::new().open().presence(true)).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, mut to_ann) = client(listening.address(), "ann").await;
    ann.subscribe("room").await.expect("open");
    let leaves = |changes: Vec<PresenceChange>| {
        changes.into_iter().filter(|change| change.status == PresenceStatus::Offline).count()
    };

    let mut kicked = crowd(listening.address(), LEAVING).await;
    changes(&mut to_ann).await;
    let names: Vec<_> = (0..LEAVING).map(|number| format!("user{number}")).collect();
    let sessions: Vec<_> = names.iter().map(|name| session_of(&server, name)).collect();
    server.kick(&Target::users(names), "a test").expect("no topic");
    assert_eq!(leaves(changes(&mut to_ann).await), LEAVING);
    for session in &sessions {
        let told =
            session.explain().events.iter().filter(|happened| matches!(happened.event, Event::Push { .. })).count();
        assert_eq!(told, 0, "the framework's own messages are none of its story");
    }
    for (member, messages) in &mut kicked {
        member.close();
        assert_eq!(leaves(changes(messages).await), 0);
    }
    drop(kicked);
    until(|| server.stats().sessions == 1).await;

    // Their windows end together.
    let lost = crowd(listening.address(), LEAVING).await;
    changes(&mut to_ann).await;
    let sessions: Vec<_> = (0..LEAVING).map(|number| session_of(&server, &format!("user{number}"))).collect();
    lost.iter().for_each(|(client, _)| client.close_keeping_session());
    drop(lost);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(leaves(changes(&mut to_ann).await), 0, "they may come back");
    tokio::time::sleep(Duration::from_secs(130)).await;
    assert_eq!(leaves(changes(&mut to_ann).await), LEAVING);
    let dropped: u64 = sessions.iter().map(Session::dropped).sum();
    assert_eq!((server.stats().sessions, dropped), (1, 0));
}

/// A server that stops, or drains, tells nobody who leaves, and counts what it told of presence among no pushes.
#[tokio::test(start_paused = true)]
async fn a_server_that_stops_tells_nobody_who_leaves() {
    for drains in [false, true] {
        let server = server("room", TopicOptions::new().open().presence(true)).build();
        let listening = server.listen(&address()).await.expect("a free name");
        let mut members = Vec::new();
        for number in 0..30 {
            let (member, messages) = client(listening.address(), &format!("user{number}")).await;
            member.subscribe("room").await.expect("open");
            members.push((member, messages));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(0 < session_of(&server, "user0").waiting().0, "it has not dealt with what it was told");
        let report = match drains {
            true => server.drain(Duration::from_secs(5), 1000).await,
            false => server.shutdown(Duration::from_secs(5)).await,
        };
        assert_eq!(report.pushes_unhandled, 0, "{report:?}");
        for (_, messages) in &mut members {
            let told = changes(messages).await;
            assert!(told.iter().all(|change| change.status == PresenceStatus::Online), "{told:?}");
        }
    }
}

/// A client whose handlers are known is not told what none of them takes; one that handles it is.
#[tokio::test(start_paused = true)]
async fn presence_goes_to_those_who_handle_it() {
    let server = server("room", TopicOptions::new().open().presence(true)).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (told, mut changes) = tokio::sync::mpsc::unbounded_channel();
    let deaf = Router::new().handler("News", "say", |_: Request| async { Reply::ok("") });
    let hears = Router::new().presence(move |change: PresenceChange| {
        told.send(change.user).expect("the test runs");
        std::future::ready(())
    });
    let mut clients = Vec::new();
    for (user, handlers) in [("deaf", deaf), ("hears", hears)] {
        let client = Client::with_handlers(listening.address(), options(user), handlers).await.expect("it listens");
        client.subscribe("room").await.expect("open");
        clients.push(client);
    }
    let (ann, _to_ann) = client(listening.address(), "ann").await;
    ann.subscribe("room").await.expect("open");
    assert_eq!(soon(changes.recv()).await.as_deref(), Some("ann"));
    let receipt = server.push(&Target::user("deaf"), &push("1")).expect("small");
    assert_eq!(soon(receipt.handled()).await.at(Stage::Handled), 1);
    let explained = session_of(&server, "deaf").explain();
    let offsets = explained.events.iter().filter_map(|happened| match &happened.event {
        Event::Push { offset, .. } => *offset,
        _ => None,
    });
    assert_eq!(offsets.collect::<Vec<_>>(), [1], "nothing was sent before it");
}

/// What subscriptions take is bounded in bytes, for a session and for the server; a pattern has three wildcards at most.
#[tokio::test(start_paused = true)]
async fn subscriptions_are_bounded_in_bytes() {
    let long = |number: usize| format!("{number:0>250}");
    let builder = server(">", TopicOptions::new().open());
    let server = builder
        .sessions(SessionOptions::new().subscription_bytes_max(64 << 10).all_subscription_bytes_max(100 << 10))
        .build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, _to_ann) = client(listening.address(), "ann").await;
    let fill = async |client: &Client, from: usize| {
        for number in from..from + 1000 {
            if let Err(error) = client.subscribe(&long(number)).await {
                return (number - from, refusal::<()>(Err(error)));
            }
        }
        panic!("there is no bound");
    };
    let (count, why) = fill(&ann, 0).await;
    assert!((100..=256).contains(&count) && why.contains("of the session take"), "{count}: {why}");
    ann.subscribe(&long(0)).await.expect("it has that one");
    let (bob, _to_bob) = client(listening.address(), "bob").await;
    let (count, why) = fill(&bob, 10_000).await;
    assert!((10..=100).contains(&count) && why.contains("at this server take"), "{count}: {why}");
    session_of(&server, "bob").subscribe(&long(20_000)).expect("the server itself decides for itself");
    for number in 0..100 {
        ann.unsubscribe(&long(number)).await.expect("connected");
    }
    bob.subscribe(&long(30_000)).await.expect("there is room again");
    bob.subscribe("*.*.>").await.expect("three wildcards");
    assert!(refusal(bob.subscribe("*.*.*.a.*").await).contains("4 wildcards"));
}

/// A session that is refused leaves nothing behind, and what clients subscribe to takes no topic from what the server
/// publishes.
#[tokio::test(start_paused = true)]
async fn a_refused_subscription_leaves_nothing() {
    let builder = server("room.*", TopicOptions::new().open().history(10, HOUR).presence(true));
    let server = builder.sessions(SessionOptions::new().subscriptions_max(2)).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, mut to_ann) = client(listening.address(), "ann").await;
    for topic in ["room.1", "room.2"] {
        ann.subscribe(topic).await.expect("open");
    }
    for number in 0..100 {
        assert!(refusal(ann.subscribe(&format!("room.x{number}")).await).contains("2 subscriptions"));
    }
    assert_eq!(session_of(&server, "ann").subscriptions(), ["room.1", "room.2"]);
    let receipt = server.publish("room.1", &push("1")).expect("it is published");
    assert_eq!(receipt.outcomes().targets(), 1);
    assert_eq!(texts(&mut to_ann).await, ["1"]);
}

/// No messages, or none for any time, is no history: no receipt says that a topic keeps what it does not.
#[tokio::test(start_paused = true)]
async fn a_history_of_nothing_keeps_nothing() {
    for (messages, time) in [(0, HOUR), (10, Duration::ZERO)] {
        let server = server("log", TopicOptions::new().open().history(messages, time)).build();
        let listening = server.listen(&address()).await.expect("a free name");
        assert_eq!(server.publish("log", &push("1")).expect("small").position(), None);
        let (ann, mut to_ann) = client(listening.address(), "ann").await;
        assert_eq!(ann.subscribe("log").await.expect("open").position, None);
        assert_eq!(server.publish("log", &push("2")).expect("small").position(), None);
        assert_eq!(texts(&mut to_ann).await, ["2"]);
    }
}

/// A client whose session is lost is subscribed at once to what has no history, however much waits for room; and what
/// waits comes as fast as it is taken, and not when the client next asks by its clock.
#[tokio::test(start_paused = true)]
async fn what_waits_for_room_comes_when_messages_are_handled() {
    const TOPICS: usize = 80;
    let builder = server("log.*", TopicOptions::new().open().history(100, HOUR));
    let server = builder
        .topic("z.live", TopicOptions::new().open())
        .expect("a name")
        .sessions(SessionOptions::new().log(QueueBound::messages(10).bytes(1 << 20)))
        .build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, mut to_ann) = client(listening.address(), "ann").await;
    for number in 0..TOPICS {
        ann.subscribe(&format!("log.{number}")).await.expect("open");
    }
    ann.subscribe("z.live").await.expect("open");
    session_of(&server, "ann").end("a test");
    for number in 0..TOPICS * 10 {
        server.publish(&format!("log.{}", number % TOPICS), &push(&number.to_string())).expect("small");
    }
    // The application takes nothing for a while.
    tokio::time::sleep(Duration::from_secs(8)).await;
    let live = server.publish("z.live", &push("live").class(Class::Fire)).expect("small");
    assert_eq!(live.outcomes().targets(), 1, "what has no history waits for nothing");

    let began = tokio::time::Instant::now();
    let mut got = 0;
    while got < TOPICS * 10 {
        let message = soon(to_ann.next()).await.expect("open");
        got += usize::from(message.topic().as_deref() != Some("z.live"));
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(12), "{took:?}");
}

/// An empty name is the name of no user: nobody is bound to it.
#[tokio::test(start_paused = true)]
async fn nobody_is_bound_to_an_empty_name() {
    let server = server("log", TopicOptions::new().open()).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (_ann, _to_ann) = client(listening.address(), "ann").await;
    let session = session_of(&server, "ann");
    session.bind_user("");
    assert_eq!(session.user().as_deref(), Some("ann"));
    assert_eq!(server.sessions(&Target::user("")).expect("no topic"), []);
}

/// A payload whose end looks at the topic that kept it.
struct Looks(Server, &'static [u8]);

impl AsRef<[u8]> for Looks {
    fn as_ref(&self) -> &[u8] {
        self.1
    }
}

impl Drop for Looks {
    fn drop(&mut self) {
        self.0.presence("value").expect("a topic");
        self.0.publish("value.dropped", &push("it ended")).expect("small");
    }
}

/// The payload of an older value is the application's: it is dropped when nothing is locked.
#[test]
fn what_a_topic_drops_is_dropped_when_nothing_is_locked() {
    let (done, ends) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.expect("a runtime").block_on(async {
            let latest = TopicOptions::new().open().latest_only().presence(true);
            let server = Server::builder().topic("value", latest.clone()).expect("a pattern");
            let server = server.topic("value.dropped", latest).expect("a pattern").build();
            for _ in 0..3 {
                let payload = bytes::Bytes::from_owner(Looks(server.clone(), b"1"));
                server.publish("value", &Push::new("News", "say", payload)).expect("small");
            }
        });
        done.send(())
    });
    ends.recv_timeout(Duration::from_secs(60)).expect("nobody waits for what it holds itself");
}
