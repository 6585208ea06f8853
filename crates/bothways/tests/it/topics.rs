//! Topics: what is kept, who may subscribe, who is there, and how clients come back to them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bothways::{
    CallError, CallOptions, Caller, Class, Client, ClientOptions, ConnectionEvent, ConnectionEvents, Priority, Push,
    QueueBound, Reconnect, Request, SerializeType, Server, ServerBuilder, ServerMessages, Session, SessionOptions,
    Stage, Target,
    caller::RawCall,
    session::{Position, PresenceChange, PresenceStatus, SubscribeRequest, Subscribed, TopicError, TopicOptions},
};

use crate::support::{address, soon, until};

const HOUR: Duration = Duration::from_secs(3600);

/// A server at which a client is the user whose name is its token, with these topics.
fn server(topics: &[(&str, TopicOptions)]) -> ServerBuilder {
    let mut builder = Server::builder().auth(|request| async move {
        if let Some(session) = request.session().filter(|_| !request.token.is_empty()) {
            session.bind_user(&request.token);
        }
        Ok::<_, String>(())
    });
    for (pattern, options) in topics {
        builder = builder.topic(pattern, options.clone()).expect("a pattern");
    }
    builder
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

async fn text(messages: &mut ServerMessages) -> String {
    let message = soon(messages.next()).await.expect("the client is open");
    String::from_utf8(message.payload().expect("not packed").to_vec()).expect("a text")
}

/// What has come by now.
async fn texts(messages: &mut ServerMessages) -> Vec<String> {
    tokio::time::sleep(Duration::from_millis(10)).await;
    let mut texts = Vec::new();
    while let Some(message) = messages.try_next() {
        texts.push(String::from_utf8(message.payload().expect("not packed").to_vec()).expect("a text"));
    }
    texts
}

async fn presence(messages: &mut ServerMessages) -> (String, PresenceStatus) {
    let message = soon(messages.next()).await.expect("the client is open");
    assert_eq!((message.service_path(), message.service_method()), ("_bothways", "Presence"));
    let change: PresenceChange = message.decode().expect("a change");
    assert_eq!(message.topic(), Some(change.topic));
    (change.user, change.status)
}

fn session_of(server: &Server, user: &str) -> Session {
    server.sessions(&Target::user(user)).expect("no topic")[0].clone()
}

fn members(server: &Server, topic: &str) -> Vec<(String, PresenceStatus)> {
    let presence = server.presence(topic).expect("a topic");
    presence.members.into_iter().map(|m| (m.user.as_deref().unwrap_or("?").to_owned(), m.status)).collect()
}

/// The text of a refusal.
fn refusal<T: std::fmt::Debug>(outcome: Result<T, CallError>) -> String {
    match outcome {
        Err(CallError::Remote { text, .. }) => text,
        other => panic!("{other:?}"),
    }
}

/// Ends a client's session while its connection is cut, as a server's restart would.
async fn lose_session(server: &Server, user: &str, events: &mut ConnectionEvents) {
    server.sessions(&Target::user(user)).expect("no topic").iter().for_each(|session| session.end("a test"));
    loop {
        if let Some(ConnectionEvent::SessionLost { .. }) = soon(events.next()).await {
            return;
        }
    }
}

/// A client that says how far it was gets what it missed, in order and once, and then what is new.
#[tokio::test(start_paused = true)]
async fn what_was_missed_is_sent() {
    let server = server(&[("news.>", TopicOptions::new().open().history(10, HOUR))]).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, mut to_ann) = client(listening.address(), "ann").await;
    let subscribed = ann.subscribe("news.sport").await.expect("open");
    let start = subscribed.position.expect("it has a history");
    assert_eq!((subscribed.recovered, start.offset), (false, 0));
    for number in 1..=5 {
        server.publish("news.sport", &push(&number.to_string())).expect("small");
    }
    server.publish("news.weather", &push("rain")).expect("small");
    let first = soon(to_ann.next()).await.expect("open");
    assert_eq!(first.topic().as_deref(), Some("news.sport"));
    assert_eq!(first.position(), Some(Position { epoch: start.epoch, offset: 1 }));

    let (bob, mut to_bob) = client(listening.address(), "bob").await;
    let seen = Position { epoch: start.epoch, offset: 2 };
    assert!(bob.subscribe_from("news.sport", seen).await.expect("open").recovered);
    server.publish("news.sport", &push("6")).expect("small");
    assert_eq!(texts(&mut to_bob).await, ["3", "4", "5", "6"]);
    assert_eq!(texts(&mut to_ann).await, ["2", "3", "4", "5", "6"]);

    // Nothing to recover is recovered, and a new subscriber gets what is new.
    let (eve, mut to_eve) = client(listening.address(), "eve").await;
    let head = Position { epoch: start.epoch, offset: 6 };
    assert_eq!(
        eve.subscribe_from("news.sport", head).await.expect("open"),
        Subscribed { recovered: true, position: Some(head) }
    );
    eve.subscribe("news.weather").await.expect("open");
    assert!(texts(&mut to_eve).await.is_empty());
    eve.unsubscribe("news.sport").await.expect("connected");
    server.publish("news.sport", &push("7")).expect("small");
    server.publish("news.weather", &push("sun")).expect("small");
    assert_eq!(texts(&mut to_eve).await, ["sun"]);
}

/// What is not all there is not sent in part: some of it is gone for their number, their bytes or their age, or it is of
/// another life of the topic.
#[tokio::test(start_paused = true)]
async fn in_part_is_not_at_all() {
    let minute = Duration::from_secs(60);
    let topics = [
        ("few", TopicOptions::new().open().history(3, HOUR)),
        ("brief", TopicOptions::new().open().history(100, minute)),
        ("small", TopicOptions::new().open().history(100, HOUR).history_bytes_max(300)),
        ("many", TopicOptions::new().open().history(100, HOUR)),
    ];
    let server = server(&topics).sessions(SessionOptions::new().log(QueueBound::messages(20).bytes(1 << 20))).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, mut to_ann) = client(listening.address(), "ann").await;
    for (topic, count) in [("few", 5), ("brief", 2), ("small", 5), ("many", 30)] {
        for number in 1..=count {
            server.publish(topic, &push(&number.to_string())).expect("small");
        }
    }
    let mut from = Vec::new();
    for topic in ["few", "brief", "small", "many"] {
        from.push(ann.subscribe(topic).await.expect("open").position.expect("it has a history"));
        ann.unsubscribe(topic).await.expect("connected");
    }
    let ask = async |topic: &str, at: Position, offset: u64| {
        let outcome = ann.subscribe_from(topic, Position { offset, ..at }).await.expect("open");
        ann.unsubscribe(topic).await.expect("connected");
        (outcome.recovered, outcome.position.expect("it has a history").offset)
    };
    assert_eq!(ask("few", from[0], 1).await, (false, 5), "the second is gone");
    assert_eq!(ask("few", Position { epoch: from[0].epoch + 1, offset: 0 }, 4).await, (false, 5), "another life");
    assert_eq!(ask("few", from[0], 6).await, (false, 5), "what never was");
    assert_eq!(ask("small", from[2], 0).await, (false, 5), "its bytes");
    assert!(texts(&mut to_ann).await.is_empty());
    assert_eq!(ask("few", from[0], 2).await, (true, 2));
    assert_eq!(texts(&mut to_ann).await, ["3", "4", "5"]);
    assert_eq!(ask("brief", from[1], 0).await, (true, 0));
    assert_eq!(texts(&mut to_ann).await, ["1", "2"]);
    assert_eq!(ask("many", from[3], 25).await, (true, 25));
    assert_eq!(texts(&mut to_ann).await, ["26", "27", "28", "29", "30"]);
    ann.subscribe("brief").await.expect("open");
    tokio::time::sleep(minute).await;
    assert_eq!(ask("brief", from[1], 1).await, (false, 2), "too old");
    assert!(texts(&mut to_ann).await.is_empty());
}

/// Two subscriptions to the same, with and without a position, and one that is made again: each message once.
#[tokio::test(start_paused = true)]
async fn by_several_ways_it_arrives_once() {
    let server = server(&[(">", TopicOptions::new().open().history(100, HOUR))]).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, mut to_ann) = client(listening.address(), "ann").await;
    for number in 1..=3 {
        server.publish("news.sport", &push(&number.to_string())).expect("small");
    }
    assert_eq!(ann.subscribe("news.*").await.expect("open"), Subscribed::default());
    for number in 4..=6 {
        server.publish("news.sport", &push(&number.to_string())).expect("small");
    }
    assert_eq!(texts(&mut to_ann).await, ["4", "5", "6"]);
    let head = ann.subscribe("news.sport").await.expect("open").position.expect("it has a history");
    let from = |offset| Position { offset, ..head };
    assert!(ann.subscribe_from("news.sport", from(1)).await.expect("open").recovered);
    assert_eq!(texts(&mut to_ann).await, ["2", "3"], "the others were there");
    assert!(ann.subscribe_from("news.sport", from(1)).await.expect("open").recovered);
    ann.unsubscribe("news.*").await.expect("connected");
    assert!(ann.subscribe_from("news.sport", from(0)).await.expect("open").recovered);
    server.publish("news.sport", &push("7")).expect("small");
    assert_eq!(texts(&mut to_ann).await, ["1", "7"]);
    // A client that ends the subscription begins anew.
    ann.unsubscribe("news.sport").await.expect("connected");
    assert!(ann.subscribe_from("news.sport", from(5)).await.expect("open").recovered);
    assert_eq!(texts(&mut to_ann).await, ["6", "7"]);
}

/// In a topic with history nothing overtakes anything, whatever its priority and class; what has expired is not
/// owed.
#[tokio::test(start_paused = true)]
async fn a_history_is_in_order() {
    let server = server(&[("log", TopicOptions::new().open().history(100, HOUR))]).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, mut to_ann) = client(listening.address(), "ann").await;
    let start = ann.subscribe("log").await.expect("open").position.expect("it has a history");
    let session = session_of(&server, "ann");
    ann.connection().expect("up").close();
    until(|| session.connection().is_none()).await;
    let latest = || Class::Latest("key".to_owned());
    server.publish("log", &push("1").class(latest())).expect("small");
    server.publish("log", &push("2")).expect("small");
    server.publish("log", &push("3").priority(Priority::High)).expect("small");
    server.publish("log", &push("4").class(latest())).expect("small");
    assert_eq!(texts(&mut to_ann).await, ["1", "2", "3", "4"]);
    server.publish("log", &push("old").time_to_live(Duration::from_secs(1))).expect("small");
    server.publish("log", &push("6")).expect("small");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (bob, mut to_bob) = client(listening.address(), "bob").await;
    assert!(bob.subscribe_from("log", Position { offset: 3, ..start }).await.expect("open").recovered);
    assert_eq!(texts(&mut to_bob).await, ["4", "6"]);
}

/// Of a topic of which only the newest counts, a new subscriber gets that one, and one that has it does not.
#[tokio::test(start_paused = true)]
async fn the_newest_is_there_for_whoever_comes() {
    let server = server(&[("price.*", TopicOptions::new().open().latest_only())]).build();
    let listening = server.listen(&address()).await.expect("a free name");
    for price in ["1.1", "1.2"] {
        server.publish("price.EUR", &push(price)).expect("small");
    }
    let (ann, mut to_ann) = client(listening.address(), "ann").await;
    assert!(!ann.subscribe("price.EUR").await.expect("open").recovered);
    let message = soon(to_ann.next()).await.expect("open");
    assert_eq!(message.payload().expect("not packed"), "1.2");
    let position = message.position().expect("it has one");
    drop(message);
    ann.subscribe("price.EUR").await.expect("open");
    ann.unsubscribe("price.EUR").await.expect("connected");
    assert!(ann.subscribe_from("price.EUR", position).await.expect("open").recovered);
    assert!(texts(&mut to_ann).await.is_empty(), "it has that one");

    // Those that wait for a client make way for the newest.
    let session = session_of(&server, "ann");
    ann.connection().expect("up").close();
    until(|| session.connection().is_none()).await;
    for price in ["1.3", "1.4", "1.5"] {
        server.publish("price.EUR", &push(price)).expect("small");
    }
    assert_eq!(texts(&mut to_ann).await, ["1.5"]);
    ann.unsubscribe("price.EUR").await.expect("connected");
    server.publish("price.EUR", &push("1.6")).expect("small");
    assert!(ann.subscribe_from("price.EUR", position).await.expect("open").recovered);
    assert_eq!(texts(&mut to_ann).await, ["1.6"]);
}

/// What a topic kept says its topic to who knows of topics: a client that negotiates, and a plain one that has
/// subscribed by itself.
#[tokio::test(start_paused = true)]
async fn what_was_kept_says_its_topic_to_who_knows_of_topics() {
    let options = || TopicOptions::new().open().latest_only();
    for (negotiates, subscribes, knows) in [(true, false, true), (false, false, false), (false, true, true)] {
        let server = server(&[("board", options()), ("other", options())]).build();
        let listening = server.listen(&address()).await.expect("a free name");
        server.publish("board", &push("kept")).expect("small");
        let options = ClientOptions::new().negotiate(negotiates);
        let (ann, mut to_ann) = Client::bidirectional(listening.address(), options).await.expect("it listens");
        ann.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
        if subscribes {
            ann.subscribe("other").await.expect("open");
        }
        let session = server.sessions(&Target::everyone()).expect("no topic").remove(0);
        session.subscribe("board").expect("the server may");
        let message = soon(to_ann.next()).await.expect("open");
        assert_eq!(message.payload().expect("not packed"), "kept");
        assert_eq!(message.topic().as_deref(), knows.then_some("board"), "{negotiates} {subscribes}");
    }
}

/// A new subscriber stands before the newest until it has it, so that it gets it if it asks again from there. Who has
/// seen that there was none has missed nothing, and nor has who got the value by another way.
#[tokio::test(start_paused = true)]
async fn the_position_of_the_newest_is_before_it() {
    let server = server(&[("price", TopicOptions::new().open().latest_only())]).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, mut to_ann) = client(listening.address(), "ann").await;
    let (bob, mut to_bob) = client(listening.address(), "bob").await;
    let none = ann.subscribe("price").await.expect("open").position.expect("it has a history");
    assert!(bob.subscribe_from("price", none).await.expect("open").recovered);
    bob.unsubscribe("price").await.expect("connected");
    server.publish("price", &push("1.1")).expect("small");
    let before = bob.subscribe("price").await.expect("open").position;
    assert_eq!((before, texts(&mut to_bob).await), (Some(none), vec!["1.1".to_owned()]));
    bob.unsubscribe("price").await.expect("connected");
    let keyed = push("1.2").idempotency_key("k").expect("short");
    session_of(&server, "bob").push(&keyed).expect("small");
    server.publish("price", &keyed).expect("small");
    assert!(bob.subscribe_from("price", none).await.expect("open").recovered);
    assert_eq!(
        (texts(&mut to_bob).await, texts(&mut to_ann).await),
        (vec!["1.2".to_owned()], vec!["1.2".to_owned()]),
        "ann has not read the first one, which gave way to the second"
    );
}

/// What is too old is not there for who comes, though nobody has swept it out yet.
#[tokio::test(start_paused = true)]
async fn a_history_forgets_in_time() {
    let server = server(&[("news", TopicOptions::new().open().history(10, Duration::from_millis(100)))]).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, mut to_ann) = client(listening.address(), "ann").await;
    let start = ann.subscribe("news").await.expect("open").position.expect("it has a history");
    server.publish("news", &push("old")).expect("small");
    assert_eq!(texts(&mut to_ann).await, ["old"]);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let (bob, mut to_bob) = client(listening.address(), "bob").await;
    assert!(!bob.subscribe_from("news", start).await.expect("open").recovered);
    assert!(texts(&mut to_bob).await.is_empty());
}

/// Who subscribes by several patterns gets a message once, with history and without. What the server subscribes a
/// session to is not counted against what its client may, and a session that is over subscribes to nothing.
#[tokio::test(start_paused = true)]
async fn a_session_subscribes_to_what_the_server_likes_while_it_lives() {
    let builder = server(&[("kept.>", TopicOptions::new().open().history(10, HOUR))])
        .sessions(SessionOptions::new().subscriptions_max(0));
    let server = builder.build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (_ann, mut to_ann) = client(listening.address(), "ann").await;
    until(|| !server.sessions(&Target::user("ann")).expect("no topic").is_empty()).await;
    let session = session_of(&server, "ann");
    for pattern in ["kept.>", "kept.*", "kept.a", "news.*", "news.a"] {
        session.subscribe(pattern).expect("the server decides");
    }
    for topic in ["kept.a", "news.a"] {
        assert_eq!(server.publish(topic, &push(topic)).expect("small").outcomes().targets(), 1);
    }
    assert_eq!(texts(&mut to_ann).await, ["kept.a", "news.a"]);
    session.end("enough");
    assert_eq!(session.subscribe("kept.a"), Err(TopicError::SessionEnded));
    assert_eq!(server.publish("kept.a", &push("2")).expect("small").outcomes().targets(), 0);
}

/// A client that is behind with its log gets the newest value once there is room, as it gets any value.
#[tokio::test(start_paused = true)]
async fn the_newest_waits_for_room() {
    let server = server(&[("price", TopicOptions::new().open().latest_only())])
        .sessions(SessionOptions::new().log(QueueBound::messages(1).bytes(1 << 20)))
        .build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, mut to_ann) = client(listening.address(), "ann").await;
    ann.call::<()>("Nothing", "is", &()).await.expect_err("there is no such service");
    session_of(&server, "ann").push(&push("first")).expect("small");
    let first = soon(to_ann.next()).await.expect("open");
    server.publish("price", &push("1.1")).expect("small");
    ann.subscribe("price").await.expect("open");
    assert!(texts(&mut to_ann).await.is_empty(), "the first is not handled");
    drop(first);
    assert_eq!(text(&mut to_ann).await, "1.1");
}

/// A hook decides who may subscribe, its text reaches the client, and nothing gets around it: not a wildcard over
/// several rules, and not a topic without a rule.
#[tokio::test(start_paused = true)]
async fn a_hook_decides_who_may_subscribe() {
    let own = TopicOptions::new().authorize(|asked: SubscribeRequest| async move {
        let owner = asked.pattern.strip_prefix("own.").unwrap_or_default();
        match asked.session.user().as_deref() == Some(owner) {
            true => Ok(()),
            false => Err(format!("{} is not yours", asked.pattern)),
        }
    });
    let server = server(&[("own.>", own), ("staff.>", TopicOptions::new()), (">", TopicOptions::new().open())])
        .sessions(SessionOptions::new().subscriptions_max(3))
        .build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, mut to_ann) = client(listening.address(), "ann").await;
    ann.subscribe("own.ann").await.expect("her own");
    assert_eq!(refusal(ann.subscribe("own.bob").await), "own.bob is not yours");
    assert_eq!(refusal(ann.subscribe("own.*").await), "own.* is not yours");
    assert_eq!(refusal(ann.subscribe("staff.a").await), "clients may not subscribe to `staff.a`");
    for wide in [">", "*.bob"] {
        let text = refusal(ann.subscribe(wide).await);
        assert!(text.contains("wider than `own.>`"), "{text}");
    }
    assert_eq!(refusal(ann.subscribe("a..b").await), TopicError::EmptySegment("a..b".to_owned()).to_string());
    let session = session_of(&server, "ann");
    assert_eq!(session.subscriptions(), ["own.ann"]);
    for topic in ["own.bob", "staff.a"] {
        server.publish(topic, &push(topic)).expect("small");
    }
    assert!(texts(&mut to_ann).await.is_empty());

    // The server may do what a client may not, and counts: one more is left.
    session.subscribe("staff.a").expect("the server decides");
    ann.subscribe("news").await.expect("open");
    ann.subscribe("news").await.expect("it is there");
    let error = TopicError::TooManySubscriptions { subscriptions: 3 };
    assert_eq!(refusal(ann.subscribe("more").await), error.to_string());
    server.publish("staff.a", &push("a")).expect("small");
    assert_eq!(text(&mut to_ann).await, "a");

    let closed = Server::builder().build();
    let listening = closed.listen(&address()).await.expect("a free name");
    let (bob, _to_bob) = client(listening.address(), "bob").await;
    assert_eq!(refusal(bob.subscribe("news").await), "clients may not subscribe to `news`");
}

/// A topic with a bound takes so many sessions, gives the places of those who leave to others, and no wildcard gets
/// around it.
#[tokio::test(start_paused = true)]
async fn a_topic_takes_so_many_subscribers() {
    let server = server(&[("room.*", TopicOptions::new().open().subscribers_max(2))]).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, _to_ann) = client(listening.address(), "ann").await;
    let (bob, _to_bob) = client(listening.address(), "bob").await;
    let (eve, _to_eve) = client(listening.address(), "eve").await;
    for client in [&ann, &bob, &ann] {
        client.subscribe("room.1").await.expect("there is a place");
    }
    let full = TopicError::Full { subscribers: 2 };
    assert_eq!(refusal(eve.subscribe("room.1").await), full.to_string());
    assert_eq!(session_of(&server, "eve").subscribe("room.1"), Err(full));
    assert!(refusal(eve.subscribe("room.*").await).contains("wildcard"));
    eve.subscribe("room.2").await.expect("another room");
    ann.unsubscribe("room.1").await.expect("connected");
    eve.subscribe("room.1").await.expect("there is a place");
    server.kick(&Target::user("bob"), "out").expect("no topic");
    ann.subscribe("room.1").await.expect("there is a place");
}

/// A network that blinks shows nothing; a real leave is told once, after the resume window, or at once if the
/// session is ended or unsubscribes.
#[tokio::test(start_paused = true)]
async fn a_blink_is_no_leave() {
    use PresenceStatus::{Offline, Online, Reconnecting};
    let server = server(&[("room", TopicOptions::new().open().presence(true))]).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, mut to_ann) = client(listening.address(), "ann").await;
    ann.subscribe("room").await.expect("open");
    let (bob, _to_bob) = client(listening.address(), "bob").await;
    let (phone, _to_phone) = client(listening.address(), "bob").await;
    bob.subscribe("room").await.expect("open");
    phone.subscribe("room").await.expect("open");
    assert_eq!(presence(&mut to_ann).await, ("bob".to_owned(), Online));
    let both = vec![("ann".to_owned(), Online), ("bob".to_owned(), Online)];
    assert_eq!(members(&server, "room"), both);

    phone.unsubscribe("room").await.expect("connected");
    let session = session_of(&server, "bob");
    bob.connection().expect("up").close();
    until(|| session.connection().is_none()).await;
    assert_eq!(members(&server, "room")[1], ("bob".to_owned(), Reconnecting));
    until(|| session.connection().is_some()).await;
    assert_eq!(members(&server, "room"), both);

    // A real leave: the client is gone, and the window passes.
    let before = server.presence("room").expect("a topic").generation;
    bob.close_keeping_session();
    tokio::time::sleep(Duration::from_secs(119)).await;
    assert!(to_ann.is_empty(), "a blink, as far as anybody knows");
    assert_eq!(members(&server, "room")[1], ("bob".to_owned(), Reconnecting));
    assert_eq!(presence(&mut to_ann).await, ("bob".to_owned(), Offline));
    assert!(before < server.presence("room").expect("a topic").generation);
    assert_eq!(members(&server, "room"), [("ann".to_owned(), Online)]);

    // An end that somebody wants is told at once.
    phone.subscribe("room").await.expect("open");
    assert_eq!(presence(&mut to_ann).await, ("bob".to_owned(), Online));
    phone.unsubscribe("room").await.expect("connected");
    assert_eq!(presence(&mut to_ann).await, ("bob".to_owned(), Offline));
    phone.subscribe("room").await.expect("open");
    assert_eq!(presence(&mut to_ann).await, ("bob".to_owned(), Online));
    let kicked = tokio::time::Instant::now();
    session_of(&server, "bob").end("out");
    assert_eq!(presence(&mut to_ann).await, ("bob".to_owned(), Offline));
    assert!(kicked.elapsed() < Duration::from_secs(1));
}

/// The user of a plain client comes back as another session, and was never gone; a client that becomes somebody else is
/// that one from then on. Watchers by a wildcard are not seen.
#[tokio::test(start_paused = true)]
async fn presence_is_of_users() {
    use PresenceStatus::{Offline, Online};
    let server = server(&[("room.*", TopicOptions::new().open().presence(true))]).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (watcher, mut seen) = client(listening.address(), "watcher").await;
    watcher.subscribe("room.*").await.expect("open");
    let plain = options("ann").negotiate(false);
    let (ann, _to_ann) = Client::bidirectional(listening.address(), plain).await.expect("it listens");
    ann.subscribe("room.1").await.expect("open");
    assert_eq!(presence(&mut seen).await, ("ann".to_owned(), Online));
    let first = session_of(&server, "ann");
    ann.connection().expect("up").close();
    until(|| server.sessions(&Target::user("ann")).expect("no topic").iter().any(|session| *session != first)).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(seen.is_empty());
    assert_eq!(members(&server, "room.1"), [("ann".to_owned(), Online)]);
    assert!(0 < server.presence("room.1").expect("a topic").generation, "there was a change");

    session_of(&server, "ann").bind_user("anna");
    assert_eq!(presence(&mut seen).await, ("ann".to_owned(), Offline));
    assert_eq!(presence(&mut seen).await, ("anna".to_owned(), Online));
    ann.close();
    tokio::time::sleep(Duration::from_secs(110)).await;
    assert!(seen.is_empty());
    assert_eq!(presence(&mut seen).await, ("anna".to_owned(), Offline));
    assert_eq!(members(&server, "room.1"), []);
}

/// A client that comes back to its session finds its subscriptions there; one that lost it subscribes again from
/// where it was, and says whether it missed something, or that it may not any more.
#[tokio::test(start_paused = true)]
async fn a_lost_session_is_subscribed_again() {
    let asked = Arc::new(AtomicUsize::new(0));
    let once = {
        let asked = Arc::clone(&asked);
        TopicOptions::new().authorize(move |_| {
            let times = asked.fetch_add(1, Ordering::Relaxed);
            std::future::ready(if times == 0 { Ok(()) } else { Err("only once") })
        })
    };
    let topics = [
        ("news", TopicOptions::new().open().history(5, HOUR)),
        ("plain.*", TopicOptions::new().open()),
        ("once", once),
    ];
    let server = server(&topics).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, mut to_ann) = client(listening.address(), "ann").await;
    let mut events = ann.events();
    for topic in ["news", "plain.*", "once"] {
        ann.subscribe(topic).await.expect("open");
    }
    server.publish("news", &push("1")).expect("small");
    assert_eq!(text(&mut to_ann).await, "1");

    // A resume asks for nothing.
    let session = session_of(&server, "ann");
    ann.connection().expect("up").close();
    until(|| session.connection().is_none()).await;
    server.publish("news", &push("2")).expect("small");
    assert_eq!(text(&mut to_ann).await, "2");
    assert_eq!(asked.load(Ordering::Relaxed), 1);

    lose_session(&server, "ann", &mut events).await;
    server.publish("news", &push("3")).expect("small");
    assert_eq!(text(&mut to_ann).await, "3");
    let mut told = Vec::new();
    for _ in 0..3 {
        told.push(match soon(events.next()).await {
            Some(ConnectionEvent::Resubscribed { topic, recovered, .. }) => format!("{topic} {recovered}"),
            Some(ConnectionEvent::SubscriptionLost { topic, error, .. }) => {
                format!("{topic} {}", refusal::<()>(Err(error)))
            }
            other => panic!("{other:?}"),
        });
    }
    told.sort();
    assert_eq!(told, ["news true", "once only once", "plain.* false"]);
    assert_eq!(session_of(&server, "ann").subscriptions(), ["news", "plain.*"]);

    // Too much was published meanwhile: nothing of it, and it is said.
    let place = listening.address().to_owned();
    drop(listening);
    session_of(&server, "ann").end("a test");
    for number in 4..=9 {
        server.publish("news", &push(&number.to_string())).expect("small");
    }
    tokio::time::sleep(Duration::from_millis(10)).await;
    let _listening = server.listen(&place).await.expect("the name is free again");
    let news = loop {
        match soon(events.next()).await {
            Some(ConnectionEvent::Resubscribed { topic, recovered, .. }) if &*topic == "news" => break recovered,
            Some(_) => {}
            None => panic!("the client is open"),
        }
    };
    assert!(!news);
    server.publish("news", &push("10")).expect("small");
    assert_eq!(texts(&mut to_ann).await, ["10"]);

    // What was given up is not subscribed to again.
    ann.unsubscribe("news").await.expect("connected");
    lose_session(&server, "ann", &mut events).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(session_of(&server, "ann").subscriptions(), ["plain.*"]);
}

/// A plain client subscribes by an ordinary call with Go's names, and gets ordinary pushes; one whom the server
/// subscribed sees exactly what the server pushed.
#[tokio::test(start_paused = true)]
async fn a_plain_client_subscribes_by_a_call() {
    let topics = [
        ("news", TopicOptions::new().open().history(10, HOUR)),
        ("price.*", TopicOptions::new().latest_only()),
        ("room", TopicOptions::new().presence(true)),
    ];
    let server = server(&topics).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let plain = options("ann").negotiate(false);
    let (ann, mut to_ann) = Client::bidirectional(listening.address(), plain.clone()).await.expect("it listens");
    let call = async |method: &str, args: &str| {
        let (serialize, payload) = (SerializeType::JSON, args.to_owned().into());
        let options = CallOptions::new();
        let call = RawCall { service_path: "_bothways", service_method: method, serialize, payload, options };
        String::from_utf8(ann.call_raw(call).await.expect("it may").payload.to_vec()).expect("a text")
    };
    let epoch = |reply: &str| -> String {
        let (_, rest) = reply.split_once("\"Epoch\":").expect("it has one");
        rest.chars().take_while(char::is_ascii_digit).collect()
    };
    let reply = call("Subscribe", r#"{"Topic":"news"}"#).await;
    let life = epoch(&reply);
    assert_eq!(reply, format!(r#"{{"Recovered":false,"Epoch":{life},"Offset":0}}"#));
    for number in 1..=3 {
        server.publish("news", &push(&number.to_string())).expect("small");
    }
    let message = soon(to_ann.next()).await.expect("open");
    assert_eq!((message.service_path(), message.service_method()), ("News", "say"));
    let metadata = message.metadata();
    let pairs: Vec<_> = ["_bw.t", "_bw.te", "_bw.to"].iter().map(|key| metadata.get(key)).collect();
    assert_eq!(pairs, [Some("news"), Some(&life), Some("1")]);
    assert_eq!(texts(&mut to_ann).await, ["2", "3"]);
    call("Unsubscribe", r#"{"Topic":"news"}"#).await;
    server.publish("news", &push("4")).expect("small");
    let reply = call("Subscribe", &format!(r#"{{"Topic":"news","Epoch":{life},"Offset":2}}"#)).await;
    assert_eq!(reply, format!(r#"{{"Recovered":true,"Epoch":{life},"Offset":2}}"#));
    assert_eq!(texts(&mut to_ann).await, ["3", "4"]);

    let (bob, mut to_bob) = Client::bidirectional(listening.address(), plain.auth("bob")).await.expect("it listens");
    bob.oneshot("Nothing", "is", &()).await.expect("connected");
    until(|| !server.sessions(&Target::user("bob")).expect("no topic").is_empty()).await;
    session_of(&server, "bob").subscribe("news").expect("the server decides");
    session_of(&server, "bob").subscribe("room").expect("the server decides");
    session_of(&server, "ann").subscribe("room").expect("the server decides");
    server.publish("news", &push("5")).expect("small");
    server.publish("price.EUR", &push("1.1")).expect("small");
    session_of(&server, "bob").subscribe("price.EUR").expect("the server decides");
    for expected in ["5", "1.1"] {
        let message = soon(to_bob.next()).await.expect("open");
        assert!(message.metadata().is_empty(), "nothing that Go would not send");
        assert_eq!(message.payload().expect("not packed"), expected);
    }
}

/// A Bothways client that is plain subscribes again at each new connection.
#[tokio::test(start_paused = true)]
async fn a_client_without_a_session_subscribes_again() {
    let server = server(&[("news", TopicOptions::new().open().history(10, HOUR))]).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let plain = options("ann").negotiate(false);
    let (ann, mut to_ann) = Client::bidirectional(listening.address(), plain).await.expect("it listens");
    let mut events = ann.events();
    ann.subscribe("news").await.expect("open");
    server.publish("news", &push("1")).expect("small");
    assert_eq!(text(&mut to_ann).await, "1");
    ann.connection().expect("up").close();
    until(|| server.sessions(&Target::user("ann")).expect("no topic").is_empty()).await;
    server.publish("news", &push("2")).expect("small");
    assert_eq!(text(&mut to_ann).await, "2");
    loop {
        if let Some(ConnectionEvent::Resubscribed { recovered, .. }) = soon(events.next()).await {
            assert!(recovered);
            break;
        }
    }
}

/// A request behind a Hello that is being checked waits for that, and is for the session that the client had. What is
/// published meanwhile to what the hook, or the application, subscribes it to comes once and in order, and so does the
/// newest value that was there before.
#[tokio::test(start_paused = true)]
async fn a_subscription_behind_a_slow_hello_is_not_lost() {
    let hellos = Arc::new(AtomicUsize::new(0));
    let builder = {
        let hellos = Arc::clone(&hellos);
        Server::builder().auth(move |request| {
            let slow = request.is_hello() && 0 < hellos.fetch_add(usize::from(request.is_hello()), Ordering::Relaxed);
            async move {
                if slow {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                if let Some(session) = request.session() {
                    session.bind_user("ann");
                }
                Ok::<_, String>(())
            }
        })
    };
    let builder = builder.topic("news", TopicOptions::new().open().history(10, HOUR)).expect("a pattern");
    let builder = builder.topic("one", TopicOptions::new().subscribers_max(1)).expect("a pattern");
    let value = TopicOptions::new().history(10, HOUR).latest_only();
    let server = builder
        .topic("value", value)
        .expect("a pattern")
        .handler("Topics", "Join", |request: Request| {
            let session = request.session().expect("connected");
            for topic in ["joined", "one", "value"] {
                session.subscribe(topic).expect("a topic");
            }
            std::future::ready(bothways::Reply::ok(""))
        })
        .build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, mut to_ann) = client(listening.address(), "ann").await;
    ann.call::<()>("Topics", "Join", &()).await.expect("connected");
    let session = session_of(&server, "ann");
    ["joined", "one", "value"].iter().for_each(|topic| session.unsubscribe(topic));
    session.subscribe("both").expect("a topic");
    server.publish("value", &push("value")).expect("small");
    ann.connection().expect("up").close();
    until(|| session.connection().is_none() && ann.connection().is_ok()).await;
    let subscribing = ann.subscribe("news");
    let publishing = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let fresh = server.connections().pop().expect("it is up");
        let fresh = server.sessions(&Target::connection(fresh.id())).expect("no topic").remove(0);
        ["both", "joined", "one", "value"].iter().for_each(|topic| fresh.subscribe(topic).expect("a topic"));
        let mut receipts = Vec::new();
        for topic in ["joined", "one", "both"] {
            for number in 1..=2 {
                let receipt = server.publish(topic, &push(&format!("{topic} {number}"))).expect("small");
                assert_eq!(receipt.outcomes().targets(), 1, "{topic}");
                receipts.push(receipt);
            }
        }
        assert!(session.connection().is_none(), "the hook thinks");
        receipts
    };
    let (subscribed, receipts) = soon(async { tokio::join!(subscribing, publishing) }).await;
    subscribed.expect("open");
    assert_eq!(session.subscriptions(), ["both", "joined", "news", "one", "value"]);
    for number in 3..=4 {
        server.publish("joined", &push(&format!("joined {number}"))).expect("small");
    }
    server.publish("news", &push("news 1")).expect("small");
    let mut texts = Vec::new();
    for _ in 0..10 {
        texts.push(text(&mut to_ann).await);
    }
    for (topic, expected) in [("joined", 4), ("one", 2), ("both", 2), ("news", 1)] {
        let of_topic: Vec<_> = texts.iter().filter(|text| text.starts_with(topic)).collect();
        let expected: Vec<_> = (1..=expected).map(|number| format!("{topic} {number}")).collect();
        assert_eq!(of_topic, expected.iter().collect::<Vec<_>>(), "{texts:?}");
    }
    assert!(texts.iter().any(|text| text == "value"), "{texts:?}");
    for receipt in receipts {
        assert_eq!(soon(receipt.handled()).await.at(Stage::Handled), 1);
    }
}

/// A client names any position, as a number may be any: it is answered, and is where it would be without one.
#[tokio::test(start_paused = true)]
async fn a_position_beyond_all_numbers_is_no_position() {
    let server = server(&[("news", TopicOptions::new().open().history(10, HOUR))]).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, _to_ann) = client(listening.address(), "ann").await;
    let position = ann.subscribe("news").await.expect("open").position.expect("it has a history");
    server.publish("news", &push("1")).expect("small");
    for offset in [u64::MAX, u64::MAX - 1] {
        let (bob, _to_bob) = client(listening.address(), "bob").await;
        let from = Position { offset, ..position };
        let subscribed = soon(bob.subscribe_from("news", from)).await.expect("open");
        assert_eq!((subscribed.recovered, subscribed.position), (false, Some(Position { offset: 1, ..position })));
    }
}

/// What a client takes back behind its Hello is taken back in the session that it gets.
#[tokio::test(start_paused = true)]
async fn an_unsubscription_behind_a_slow_hello_is_not_lost() {
    let hellos = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&hellos);
    let builder = Server::builder().auth(move |request| {
        let slow = request.is_hello() && 0 < counted.fetch_add(usize::from(request.is_hello()), Ordering::Relaxed);
        async move {
            tokio::time::sleep(Duration::from_secs(u64::from(slow))).await;
            request.session().expect("connected").bind_user("ann");
            Ok::<_, String>(())
        }
    });
    let server = builder.topic("news", TopicOptions::new().open()).expect("a pattern").build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, _to_ann) = client(listening.address(), "ann").await;
    ann.subscribe("news").await.expect("open");
    let session = session_of(&server, "ann");
    assert_eq!(session.subscriptions(), ["news"]);
    ann.connection().expect("up").close();
    until(|| session.connection().is_none() && ann.connection().is_ok()).await;
    soon(ann.unsubscribe("news")).await.expect("connected");
    assert!(session.connection().is_some());
    assert_eq!(session.subscriptions(), Vec::<String>::new());
}

/// The hook subscribes a client, and thinks on. What is published meanwhile, and the newest value that was there before,
/// say which topic they are of to the client that turns out to know; a plain one sees what Go would send.
#[tokio::test(start_paused = true)]
async fn what_is_published_while_a_client_is_let_in_says_its_topic_to_who_knows() {
    let topics = ["news", "kept", "value"];
    let builder = Server::builder().auth(move |request| async move {
        let session = request.session().expect("connected");
        if request.is_hello() {
            for topic in topics {
                session.subscribe(topic).expect("a topic");
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Ok::<_, String>(())
    });
    let kept = TopicOptions::new().history(10, HOUR);
    let builder = builder.topic("kept", kept.clone()).expect("a topic");
    let server = builder.topic("value", kept.latest_only()).expect("a topic").build();
    let listening = server.listen(&address()).await.expect("a free name");
    server.publish("value", &push("before")).expect("small");
    let silent = options("ann").reconnect(Reconnect::Never);
    let connecting = async || {
        let connected = Client::bidirectional(listening.address(), silent.clone()).await.expect("it listens");
        tokio::time::sleep(Duration::from_millis(10)).await;
        connected
    };
    let (_ann, mut to_ann) = connecting().await;
    for topic in ["news", "kept"] {
        let key = format!("{topic} 1");
        server.publish(topic, &push(topic).idempotency_key(&key).expect("short")).expect("small");
    }
    let mut told = Vec::new();
    for _ in topics {
        let message = soon(to_ann.next()).await.expect("open");
        told.push((message.topic().unwrap_or_default(), message.position().map(|position| position.offset)));
    }
    told.sort();
    let told: Vec<_> = told.iter().map(|(topic, offset)| (&**topic, *offset)).collect();
    assert_eq!(told, [("kept", Some(1)), ("news", None), ("value", Some(1))]);
}
