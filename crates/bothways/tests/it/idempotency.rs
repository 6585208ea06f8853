//! Pushes that are repeated under one key: a sender that does not know whether it has pushed may push again.

use std::time::Duration;

use bothways::{
    Class, Client, ClientOptions, FailMode, MultipleServersDiscovery, Push, QueueBound, Request, Router, SelectMode,
    Server, ServerMessages, Session, SessionLost, SessionOptions, Stage, Target, XClient,
    session::{InvalidKey, TopicOptions},
};
use bothways_proto::keys;
use tokio::sync::mpsc;

use crate::{
    scripted::{Scripted, request},
    support::{address, settle, until},
};

fn server() -> Server {
    let news = TopicOptions::new().open().history(10, Duration::from_secs(60));
    Server::builder()
        .auth(|request| async move {
            if let (false, Some(session)) = (request.token.is_empty(), request.session()) {
                session.bind_user(&request.token);
            }
            Ok::<_, String>(())
        })
        .topic("news.*", news)
        .expect("a pattern")
        .build()
}

async fn client(address: &str, user: &str) -> (Client, ServerMessages) {
    let options = ClientOptions::new().auth(user).backoff(Duration::from_millis(1), Duration::from_millis(1));
    let (client, messages) = Client::bidirectional(address, options).await.expect("it listens");
    client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
    (client, messages)
}

fn session_of(server: &Server, user: &str) -> Session {
    server.sessions(&Target::user(user)).expect("no topic").remove(0)
}

fn push(text: &str, key: &str) -> Push {
    Push::new("Chat", "say", text.to_owned()).idempotency_key(key).expect("short")
}

fn texts(messages: &mut ServerMessages) -> Vec<String> {
    std::iter::from_fn(|| messages.try_next())
        .map(|message| String::from_utf8(message.payload().expect("not packed").to_vec()).expect("a text"))
        .collect()
}

/// Whatever the way to a session, it is sent one of several with the same key; who has not had it is sent the next.
#[tokio::test(start_paused = true)]
async fn a_session_is_sent_one_of_several_by_whatever_way() {
    let server = server();
    let listening = server.listen(&address()).await.expect("a free name");
    let (_ann, mut to_ann) = client(listening.address(), "ann").await;
    session_of(&server, "ann").subscribe("alerts.*").expect("a pattern");
    session_of(&server, "ann").subscribe("fires.*").expect("a pattern");
    let first = server.push(&Target::subscribers_of("alerts.a"), &push("x", "k")).expect("small");
    let repeated = [
        server.publish("fires.b", &push("x", "k")).expect("small"),
        session_of(&server, "ann").push(&push("y", "k")).expect("small"),
    ];

    let (_bob, mut to_bob) = client(listening.address(), "bob").await;
    let receipt = server.push(&Target::users(["ann", "bob"]), &push("x", "k")).expect("small");
    assert_eq!(receipt.outcomes().targets(), 2);
    settle().await;
    assert_eq!((texts(&mut to_ann), texts(&mut to_bob)), (vec!["x".to_owned()], vec!["x".to_owned()]));
    assert_eq!(first.handled().await.at(Stage::Handled), 1);
    for receipt in repeated {
        assert_eq!(receipt.handled().await.at(Stage::Duplicate), 1, "the first one was handled");
    }
    let outcomes = receipt.handled().await;
    assert_eq!((outcomes.at(Stage::Handled), outcomes.at(Stage::Duplicate), outcomes.dropped()), (1, 1, 0));
    let story = session_of(&server, "ann").explain().to_string();
    assert!(story.contains("not sent, as one of the same idempotency key was"), "{story}");
}

/// A topic with history keeps both; a session is sent one, also of those that it missed.
#[tokio::test(start_paused = true)]
async fn a_history_is_sent_without_repetitions() {
    let server = server();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, mut to_ann) = client(listening.address(), "ann").await;
    let start = ann.subscribe("news.today").await.expect("it is open").position.expect("it has a history");
    for (text, key) in [("1", "a"), ("2", "b"), ("1 again", "a")] {
        server.publish("news.today", &push(text, key)).expect("small");
    }
    settle().await;
    assert_eq!(texts(&mut to_ann), ["1", "2"]);
    let (bob, mut to_bob) = client(listening.address(), "bob").await;
    session_of(&server, "bob").push(&push("2 before", "b")).expect("small");
    let subscribed = bob.subscribe_from("news.today", start).await.expect("it is open");
    assert!(subscribed.recovered);
    settle().await;
    assert_eq!(texts(&mut to_bob), ["2 before", "1"]);
}

/// The client loses its session with a message that its application has not handled, and the server's application
/// pushes again to the new session: the handler runs once, and nobody says handled before it is done.
#[tokio::test(start_paused = true)]
async fn a_handler_runs_once_over_a_lost_session() {
    let server = server();
    let listening = server.listen(&address()).await.expect("a free name");
    let (client, mut messages) = client(listening.address(), "ann").await;
    let mut events = client.events();
    let old = session_of(&server, "ann");
    let first = old.push(&push("pay 5", "order 1")).expect("small");
    assert_eq!(first.received().await.at(Stage::Received), 1);
    let held = messages.next().await.expect("it came");
    old.end("enough");
    until(|| server.sessions(&Target::user("ann")).expect("no topic").iter().any(|session| *session != old)).await;
    assert_eq!(first.outcomes().at(Stage::Unknown), 1);
    assert!(session_lost(&mut events).await);

    let new = session_of(&server, "ann");
    let again = new.push(&push("pay 5", "order 1")).expect("small");
    assert_eq!(again.received().await.at(Stage::Received), 1, "it is not a repetition in this session");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(texts(&mut messages), [""; 0]);
    assert_eq!(again.outcomes().at(Stage::Received), 1, "the application is not done with the first");
    drop(held);
    assert_eq!(again.handled().await.at(Stage::Handled), 1);

    new.end("enough");
    until(|| server.sessions(&Target::user("ann")).expect("no topic").iter().any(|session| *session != new)).await;
    assert!(session_lost(&mut events).await);
    let third = session_of(&server, "ann").push(&push("pay 5", "order 1")).expect("small");
    assert_eq!(third.handled().await.at(Stage::Handled), 1, "it was, before");
    assert_eq!(texts(&mut messages), [""; 0]);
}

async fn session_lost(events: &mut bothways::ConnectionEvents) -> bool {
    use bothways::ConnectionEvent;
    loop {
        match events.next().await {
            Some(ConnectionEvent::SessionLost { why: SessionLost::Ended, .. }) => return true,
            Some(_) => {}
            None => return false,
        }
    }
}

/// The same with handlers, whose message ends with the handler and not when it is taken from the queue.
#[tokio::test(start_paused = true)]
async fn a_handler_that_runs_is_not_run_again() {
    let server = server();
    let listening = server.listen(&address()).await.expect("a free name");
    let (runs, mut ran) = mpsc::unbounded_channel();
    let handlers = Router::new().handler("Chat", "say", move |_: Request| {
        let runs = runs.clone();
        async move {
            tokio::time::sleep(Duration::from_secs(5)).await;
            runs.send(()).expect("the test listens");
            bothways::Reply::ok("")
        }
    });
    let options = ClientOptions::new().auth("ann").backoff(Duration::from_millis(1), Duration::from_millis(1));
    let _client = Client::with_handlers(listening.address(), options, handlers).await.expect("it listens");
    until(|| !server.sessions(&Target::user("ann")).expect("no topic").is_empty()).await;
    settle().await;
    let old = session_of(&server, "ann");
    old.push(&push("x", "k")).expect("small").received().await;
    old.end("enough");
    until(|| server.sessions(&Target::user("ann")).expect("no topic").iter().any(|session| session.is_resumable()))
        .await;
    settle().await;
    let again = session_of(&server, "ann").push(&push("x", "k")).expect("small");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(again.outcomes().at(Stage::Received), 1);
    assert_eq!(again.handled().await.at(Stage::Handled), 1);
    assert!(ran.recv().await.is_some());
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(ran.try_recv().is_err());
}

/// A server fails with a message that the application of an `XClient` has not handled, and another one pushes it again:
/// the application gets it once, and the second receipt says handled when it is. So it is if both push it at once.
#[tokio::test(start_paused = true)]
async fn a_push_that_another_server_repeats_is_handed_on_once() {
    let (failing, other) = (server(), server());
    let listening = failing.listen(&address()).await.expect("a free name");
    let of_other = other.listen(&address()).await.expect("a free name");
    let (xclient, mut messages) = XClient::bidirectional(
        "Chat",
        FailMode::Failover,
        SelectMode::RoundRobin,
        MultipleServersDiscovery::new([listening.address(), of_other.address()]),
        ClientOptions::new().auth("ann"),
    );
    let knows_ann =
        |server: &Server| server.sessions(&Target::user("ann")).expect("no topic").iter().any(Session::is_resumable);
    until(|| knows_ann(&failing) && knows_ann(&other)).await;
    let at = |server: &Server, text, key| server.push(&Target::user("ann"), &push(text, key)).expect("small");

    let first = at(&failing, "pay 5", "order 1");
    assert_eq!(first.received().await.at(Stage::Received), 1);
    let held = messages.next().await.expect("it came");
    drop(listening);
    failing.shutdown(Duration::ZERO).await;
    let again = at(&other, "pay 5", "order 1");
    assert_eq!(again.received().await.at(Stage::Received), 1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(texts(&mut messages), [""; 0]);
    assert_eq!(again.outcomes().at(Stage::Received), 1, "the application is not done with the first");
    drop(held);
    assert_eq!(again.handled().await.at(Stage::Handled), 1);

    let third = server();
    let of_third = third.listen(&address()).await.expect("a free name");
    let discovery = MultipleServersDiscovery::new([of_other.address(), of_third.address()]);
    let options = ClientOptions::new().auth("bob");
    let (_bob, mut to_bob) =
        XClient::bidirectional("Chat", FailMode::Failover, SelectMode::RoundRobin, discovery, options);
    let knows_bob =
        |server: &Server| server.sessions(&Target::user("bob")).expect("no topic").iter().any(Session::is_resumable);
    until(|| knows_bob(&other) && knows_bob(&third)).await;
    let receipts = [&other, &third].map(|server| server.push(&Target::user("bob"), &push("both", "order 2")));
    settle().await;
    assert_eq!(texts(&mut to_bob), ["both"]);
    for receipt in receipts {
        assert_eq!(receipt.expect("small").handled().await.at(Stage::Handled), 1);
    }
    drop(xclient);
}

/// A first that is not tracked has no promise by itself; with a tracked repetition of another server it has, and is not
/// pushed out for want of room.
#[tokio::test(start_paused = true)]
async fn the_first_of_a_tracked_repetition_is_not_pushed_out() {
    let (one, other) = (server(), server());
    let of_one = one.listen(&address()).await.expect("a free name");
    let of_other = other.listen(&address()).await.expect("a free name");
    let (_xclient, mut messages) = XClient::bidirectional(
        "Chat",
        FailMode::Failover,
        SelectMode::RoundRobin,
        MultipleServersDiscovery::new([of_one.address(), of_other.address()]),
        // Half of it is first come, first served: two.
        ClientOptions::new().auth("ann").message_queue(QueueBound::messages(4).bytes(1 << 20)),
    );
    let knows_ann =
        |server: &Server| server.sessions(&Target::user("ann")).expect("no topic").iter().any(Session::is_resumable);
    until(|| knows_ann(&one) && knows_ann(&other)).await;
    let at = |server: &Server, push: Push| server.push(&Target::user("ann"), &push).expect("small");

    at(&one, push("pay 5", "order 1").class(Class::Fire));
    settle().await;
    let again = at(&other, push("pay 5", "order 1"));
    assert_eq!(again.received().await.at(Stage::Received), 1);
    for text in ["1", "2", "3"] {
        at(&one, Push::new("Chat", "say", text.to_owned()).class(Class::Fire));
    }
    settle().await;
    assert_eq!(texts(&mut messages), ["pay 5", "3"]);
    assert_eq!(again.handled().await.at(Stage::Handled), 1);
}

/// What the client's own queue had no room for was not handled: a sender that pushes again is heard.
#[tokio::test(start_paused = true)]
async fn what_the_client_dropped_may_come_again() {
    let server = server();
    let listening = server.listen(&address()).await.expect("a free name");
    let options = ClientOptions::new().auth("ann").message_queue(QueueBound::messages(1).bytes(1 << 20));
    let options = options.backoff(Duration::from_millis(1), Duration::from_millis(1));
    let (client, mut messages) = Client::bidirectional(listening.address(), options).await.expect("it listens");
    client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
    let session = session_of(&server, "ann");
    for (text, key) in [("dropped", "k"), ("waits", "l")] {
        session.push(&push(text, key).class(Class::Fire)).expect("small");
    }
    settle().await;
    assert_eq!(texts(&mut messages), ["waits"]);
    session.end("enough");
    until(|| server.sessions(&Target::user("ann")).expect("no topic").iter().any(|session| session.is_resumable()))
        .await;
    settle().await;
    for (text, key) in [("waits", "l"), ("dropped", "k")] {
        session_of(&server, "ann").push(&push(text, key)).expect("small");
        settle().await;
    }
    assert_eq!(texts(&mut messages), ["dropped"]);
}

/// A plain client sees what Go would send, a Bothways client that listens sees the key as well.
#[tokio::test(start_paused = true)]
async fn a_plain_client_sees_nothing_of_a_key() {
    let server = server();
    let listening = server.listen(&address()).await.expect("a free name");
    let mut plain = Scripted::connect(listening.address()).await;
    plain.say(request(1, "Echo", b"x")).await;
    plain.next().await;
    let (_ann, mut to_ann) = client(listening.address(), "ann").await;
    let with = push("x", "k");
    let without = Push::new("Chat", "say", "x");
    let receipt = server.push(&Target::everyone(), &with).expect("small");
    server.push(&Target::everyone(), &without).expect("small");
    let (first, second) = (plain.next().await, plain.next().await);
    assert_eq!(first.frame(), second.frame());
    let again = server.push(&Target::everyone(), &with).expect("small");
    assert_eq!(again.outcomes().at(Stage::PlainWritten), 1, "of the plain client nothing more is known");
    plain.hears_nothing().await;
    let message = to_ann.next().await.expect("it came");
    assert_eq!(message.metadata().get(keys::IDEMPOTENCY_KEY), Some("k"));
    drop(message);
    assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
    let outcomes = again.handled().await;
    assert_eq!((outcomes.at(Stage::Duplicate), outcomes.at(Stage::PlainWritten)), (1, 1));
}

/// A key has a length, and how many are remembered is an option.
#[tokio::test(start_paused = true)]
async fn keys_have_bounds() {
    let long = "x".repeat(65);
    assert_eq!(Push::new("Chat", "say", "").idempotency_key(&long).unwrap_err(), InvalidKey { bytes: 65 });
    assert_eq!(Push::new("Chat", "say", "").idempotency_key("").unwrap_err(), InvalidKey { bytes: 0 });
    let few = |keys_max| Server::builder().sessions(SessionOptions::new().idempotency_keys_max(keys_max)).build();
    assert_eq!(few(1024).session_bytes_max(100) - few(0).session_bytes_max(100), 64 << 10);
    for (keys_max, expected) in [(0, 0), (1, 0), (2, 1)] {
        let server = few(keys_max);
        let listening = server.listen(&address()).await.expect("a free name");
        let (_client, mut messages) = client(listening.address(), "").await;
        let mut repeated = Vec::new();
        for key in ["a", "b", "a"] {
            let receipt = server.push(&Target::everyone(), &push("x", key)).expect("small");
            settle().await;
            texts(&mut messages);
            repeated.push(receipt.handled().await.at(Stage::Duplicate));
        }
        assert_eq!(repeated, [0, 0, expected], "of {keys_max}");
    }
}
