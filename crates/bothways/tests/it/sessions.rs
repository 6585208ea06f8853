//! Sessions: who is who, who gets what, and what becomes of it.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use bothways::{
    Class, Client, ClientOptions, ConnectError, ConnectionEvent, Metadata, Push, QueueBound, Reply, Request, Server,
    ServerMessages, SessionLost, SessionOptions, Stage, Target,
    session::{DropReason, Failure},
};
use bothways_proto::{Header, Message, Seq, SerializeType, keys};
use tokio::sync::mpsc;

use crate::{
    scripted::{Scripted, oneway, ping, request},
    support::{address, connections, echoing, soon},
};

/// A server at which a client becomes the user whose name is its token, and subscribes to what it sends.
fn server() -> Server {
    Server::builder()
        .auth(|request| async move {
            match request.token.as_str() {
                "" => Err("a name is needed"),
                name => {
                    if let Some(session) = request.session() {
                        session.bind_user(name);
                    }
                    Ok(())
                }
            }
        })
        .handler("Topics", "Join", |request: Request| {
            let session = request.session().expect("the client is connected");
            let pattern: String = request.decode().expect("a text");
            let outcome = session.subscribe(&pattern);
            std::future::ready(outcome.map_or_else(|error| Reply::error(error.to_string()), |()| Reply::ok("")))
        })
        .build()
}

async fn client(address: &str, user: &str) -> (Client, ServerMessages) {
    let options = ClientOptions::new().auth(user).backoff(Duration::from_millis(1), Duration::from_millis(1));
    let (client, messages) = Client::bidirectional(address, options).await.expect("it listens");
    client.call::<()>("Topics", "Join", &format!("own.{user}")).await.expect("a topic");
    (client, messages)
}

async fn text(messages: &mut ServerMessages) -> String {
    let message = messages.next().await.expect("the client is open");
    String::from_utf8(message.payload().expect("not packed").to_vec()).expect("a text")
}

/// Users, topics and labels name sessions, each once, and exceptions hold.
#[tokio::test(start_paused = true)]
async fn targets_name_sessions() {
    let server = server();
    let listening = server.listen(&address()).await.expect("a free name");
    let (phone, mut on_phone) = client(listening.address(), "ann").await;
    let (_desk, mut at_desk) = client(listening.address(), "ann").await;
    let (bob, mut to_bob) = client(listening.address(), "bob").await;
    phone.call::<()>("Topics", "Join", &"news.*".to_owned()).await.expect("a pattern");
    phone.call::<()>("Topics", "Join", &"news.>".to_owned()).await.expect("a pattern");
    bob.call::<()>("Topics", "Join", &"news.sport".to_owned()).await.expect("a topic");

    let reached = |target: Target| server.sessions(&target).expect("a topic's name").len();
    assert_eq!(reached(Target::user("ann")), 2);
    assert_eq!(reached(Target::users(["ann", "bob", "ann"])), 3);
    assert_eq!(reached(Target::everyone()), 3);
    assert_eq!(reached(Target::subscribers_of("news.sport")), 2, "by however many patterns, each once");
    assert_eq!(reached(Target::subscribers_of("news.sport.today")), 1);
    assert_eq!(reached(Target::user("nobody")), 0);

    let of_bob = server.sessions(&Target::user("bob")).expect("no topic")[0].clone();
    of_bob.set_label("device", "watch");
    assert_eq!(reached(Target::everyone().except(of_bob.id())), 2);
    assert_eq!(reached(Target::everyone().only_labelled("device", "watch")), 1);

    let receipt = server.push(&Target::user("ann"), &Push::new("Chat", "say", "hi ann")).expect("small");
    assert_eq!((text(&mut on_phone).await, text(&mut at_desk).await), ("hi ann".to_owned(), "hi ann".to_owned()));
    assert_eq!(receipt.handled().await.at(Stage::Handled), 2);
    assert!(to_bob.try_next().is_none());
    assert_eq!(
        server.push(&Target::user("nobody"), &Push::new("Chat", "say", "?")).expect("small").outcomes().targets(),
        0
    );
}

/// A receipt tells each stage as it is reached: written, received, and handled only when the application is done.
#[tokio::test(start_paused = true)]
async fn a_receipt_tells_each_stage() {
    let server = server();
    let listening = server.listen(&address()).await.expect("a free name");
    let (_client, mut messages) = client(listening.address(), "ann").await;
    let receipt = server.push(&Target::user("ann"), &Push::new("Chat", "say", "hi")).expect("small");
    assert_eq!(receipt.received().await.at(Stage::Received), 1);
    let message = messages.next().await.expect("it came");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(receipt.outcomes().at(Stage::Received), 1, "the application still has it");
    drop(message);
    assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
}

/// Who asks is told of each target of a fan-out when it has come to its end: by a topic, too.
#[tokio::test(start_paused = true)]
async fn each_target_of_a_fan_out_tells_its_end() {
    let server = server();
    let listening = server.listen(&address()).await.expect("a free name");
    let (_ann, mut to_ann) = client(listening.address(), "ann").await;
    let (bob, _to_bob) = client(listening.address(), "bob").await;
    let options = ClientOptions::new().auth("carl").negotiate(false);
    let carl = Client::connect(listening.address(), options).await.expect("it listens");
    carl.call::<()>("Topics", "Join", &"own.carl").await.expect("a topic");
    let of = |user: &str| server.sessions(&Target::user(user)).expect("no topic").remove(0).id();
    let (ann, bob_s, carl_s) = (of("ann"), of("bob"), of("carl"));

    let hi = Push::new("Chat", "say", "hi").watch_each();
    let receipt = server.push(&Target::everyone(), &hi).expect("small");
    let mut each = receipt.each().expect("it was asked for");
    assert_eq!(each.next().await, Some((carl_s, Stage::PlainWritten)));
    assert!(tokio::time::timeout(Duration::from_secs(1), each.next()).await.is_err(), "nobody is done");
    drop(to_ann.next().await.expect("it came"));
    assert_eq!(each.next().await, Some((ann, Stage::Handled)));
    assert_eq!(futures_core::Stream::size_hint(&each), (1, Some(1)));
    bob.close();
    assert_eq!(each.next().await, Some((bob_s, Stage::Unknown)), "he did not come back, and may have handled it");
    assert_eq!(each.next().await, None);
    assert_eq!(receipt.outcomes().open(), 0);

    let mut each = server.publish("own.ann", &hi).expect("small").each().expect("it was asked for");
    drop(to_ann.next().await.expect("it came"));
    assert_eq!((each.next().await, each.next().await), (Some((ann, Stage::Handled)), None));
    let mut nobody = server.push(&Target::user("dora"), &hi).expect("small").each().expect("it was asked for");
    assert_eq!(nobody.next().await, None);

    let session = server.session(ann).expect("she is there");
    let pushed = [session.push(&hi), session.push_within(Duration::from_secs(1), &hi).await];
    for receipt in pushed {
        let mut each = receipt.expect("small").each().expect("it was asked for");
        drop(to_ann.next().await.expect("it came"));
        assert_eq!((each.next().await, each.next().await), (Some((ann, Stage::Handled)), None));
    }
    let unasked = server.push(&Target::user("ann"), &Push::new("Chat", "say", "hi")).expect("small");
    assert!(unasked.each().is_none(), "a receipt keeps only what it was asked for");
}

/// Go's client reads before its application listens: what a plain client is owed waits until it asks for something,
/// in the queue that bounds it, and a heartbeat asks for nothing.
#[tokio::test(start_paused = true)]
async fn what_a_plain_client_is_owed_waits_for_its_first_request() {
    let server = echoing().sessions(SessionOptions::new().fire_queue(QueueBound::messages(3).bytes(1 << 20))).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let mut plain = Scripted::connect(listening.address()).await;
    let connection = connections(&server, 1).await.remove(0);
    let push = |text: &str| Push::new("Chat", "say", text.to_owned());
    let target = Target::connection(connection.id());
    let receipts = ["1", "2"].map(|text| server.push(&target, &push(text)).expect("small"));
    plain.hears_nothing().await;
    plain.say(ping(0)).await;
    assert!(plain.next().await.header().is_heartbeat());
    plain.hears_nothing().await;
    let fires: Vec<_> = ["3", "4", "5", "6"]
        .map(|text| server.push(&target, &push(text).class(Class::Fire)).expect("small"))
        .into_iter()
        .collect();
    assert_eq!(fires[0].outcomes().at(Stage::Dropped(DropReason::Full)), 1, "the oldest of too many");
    assert_eq!(receipts[0].outcomes().at(Stage::Queued), 1);
    // The plain form goes at once: the sender knows who listens.
    connection.send_message("Chat", "say", &Metadata::new(), "at once").expect("room");
    assert_eq!(plain.next().await.wire_payload()[..], b"at once"[..]);

    plain.say(request(1, "Echo", b"x")).await;
    let mut pushed = Vec::new();
    for _ in 0..6 {
        let message = plain.next().await;
        if message.header().is_oneway() {
            assert_eq!(message.header().seq(), Seq::of_push(0));
            pushed.extend(String::from_utf8(message.wire_payload().to_vec()));
        }
    }
    assert_eq!(pushed, ["1", "2", "4", "5", "6"]);
    assert_eq!(receipts[1].outcomes().at(Stage::PlainWritten), 1);
    server.push(&target, &push("7")).expect("small");
    assert_eq!(plain.next().await.wire_payload()[..], b"7"[..], "from now on at once");

    // One that leaves without a request has got nothing, and its sender is told.
    let silent = Scripted::connect(listening.address()).await;
    let connection = connections(&server, 2).await.remove(1);
    let lost = server.push(&Target::connection(connection.id()), &push("8")).expect("small");
    silent.reset();
    assert_eq!(lost.handled().await.at(Stage::Dropped(DropReason::SessionEnded)), 1);
}

/// A oneway request is one too; and what waits for one that begins its session comes behind the answer to that, and
/// is tracked.
#[tokio::test(start_paused = true)]
async fn what_waits_for_a_request_goes_as_the_request_says() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("a free name");
    let push = || Push::new("Chat", "say", "hi");
    let mut plain = Scripted::connect(listening.address()).await;
    connections(&server, 1).await;
    server.push(&Target::everyone(), &push()).expect("small");
    plain.say(oneway(1, "Echo", b"x")).await;
    assert_eq!(plain.next().await.header().seq(), Seq::of_push(0));

    let mut enables = Scripted::connect(listening.address()).await;
    let connection = connections(&server, 2).await.remove(1);
    server.push(&Target::connection(connection.id()), &push()).expect("small");
    let header = Header::request(Seq::new(1), SerializeType::RAW);
    let enable = Message::new(header, keys::CONTROL_PATH, keys::ENABLE, &Metadata::new(), b"");
    enables.say(enable.frame()).await;
    assert!(!enables.next().await.header().is_oneway());
    assert_eq!(enables.next().await.header().seq(), Seq::of_push(1));
}

/// Who is greeted when it connects hears it: a Bothways client behind its Welcome, and tracked.
#[tokio::test(start_paused = true)]
async fn a_greeting_waits_for_the_welcome() {
    let greeter = Arc::new(OnceLock::<Server>::new());
    let greets = Arc::clone(&greeter);
    let (told, mut receipts) = mpsc::unbounded_channel();
    let server = Server::builder().on_connect(move |connection| {
        let server = greets.get().expect("it was built");
        let receipt = server.push(&Target::connection(connection.id()), &Push::new("Chat", "say", "welcome"));
        told.send(receipt.expect("small")).expect("the test listens");
    });
    let server = greeter.get_or_init(|| server.build()).clone();
    let listening = server.listen(&address()).await.expect("a free name");
    let (_client, mut messages) =
        Client::bidirectional(listening.address(), ClientOptions::new()).await.expect("it listens");
    assert_eq!(text(&mut messages).await, "welcome");
    let receipt = receipts.recv().await.expect("it was pushed");
    assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
}

/// What nobody reads any more is not handled, and its senders are told so: dropping the stream handles nothing.
#[tokio::test(start_paused = true)]
async fn a_dropped_stream_handles_nothing() {
    let server = server();
    let listening = server.listen(&address()).await.expect("a free name");
    let (client, messages) = client(listening.address(), "ann").await;
    let before = server.push(&Target::user("ann"), &Push::new("Chat", "say", "waits")).expect("small");
    assert_eq!(before.received().await.at(Stage::Received), 1);
    drop(messages);
    let after = server.push(&Target::user("ann"), &Push::new("Chat", "say", "comes later")).expect("small");
    tokio::time::sleep(Duration::from_secs(1)).await;
    for receipt in [before, after] {
        assert_eq!(receipt.outcomes().at(Stage::Failed(Failure::NoHandler)), 1, "{receipt:?}");
    }
    drop(client);

    let (_bob, messages) = self::client(listening.address(), "bob").await;
    drop(messages);
    let only = server.push(&Target::user("bob"), &Push::new("Chat", "say", "comes later")).expect("small");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(only.outcomes().at(Stage::Failed(Failure::NoHandler)), 1, "{only:?}");
}

/// A client whose connection is cut comes back to its session: what it had not handled is there once, in order,
/// before anything new.
#[tokio::test(start_paused = true)]
async fn a_cut_loses_nothing_and_repeats_nothing() {
    let server = server();
    let listening = server.listen(&address()).await.expect("a free name");
    let (client, mut messages) = client(listening.address(), "ann").await;
    let session = server.sessions(&Target::user("ann")).expect("no topic")[0].clone();
    let mut receipts = Vec::new();
    for number in 0..100 {
        receipts.push(session.push(&Push::new("Chat", "say", number.to_string())).expect("small"));
        if number % 10 == 5
            && let Ok(connection) = client.connection()
        {
            connection.close();
            // The server may or may not have noticed; both are right.
            for _ in 0..number % 7 {
                tokio::task::yield_now().await;
            }
        }
        if number % 3 == 0 {
            assert_eq!(text(&mut messages).await, (number / 3).to_string());
        }
    }
    for number in 34..100 {
        assert_eq!(text(&mut messages).await, number.to_string());
    }
    for receipt in receipts {
        assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
    }
    assert_eq!(server.sessions(&Target::user("ann")).expect("no topic"), std::slice::from_ref(&session));
    assert!(1 < session.generation());
    assert!(messages.try_next().is_none());
}

/// A client that stays away for too long finds a new session, is told so, and its sender too.
#[tokio::test(start_paused = true)]
async fn a_session_ends_with_its_window() {
    let server = server();
    let listening = server.listen(&address()).await.expect("a free name");
    let (client, mut messages) = client(listening.address(), "ann").await;
    let mut events = client.events();
    let session = server.sessions(&Target::user("ann")).expect("no topic")[0].clone();
    // The client is away: its server does not listen any more, but lives.
    let place = listening.address().to_owned();
    drop(listening);
    client.connection().expect("it is up").close();
    assert!(matches!(events.next().await, Some(ConnectionEvent::Lost { .. })));
    let receipt = session.push(&Push::new("Chat", "say", "are you there?")).expect("small");
    tokio::time::sleep(Duration::from_secs(119)).await;
    assert_eq!(receipt.outcomes().at(Stage::Queued), 1, "the window is still open");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(receipt.outcomes().at(Stage::Dropped(DropReason::SessionEnded)), 1);
    let _listening = server.listen(&place).await.expect("the name is free again");
    assert!(matches!(events.next().await, Some(ConnectionEvent::Restored { .. })));
    let lost = events.next().await;
    assert!(matches!(lost, Some(ConnectionEvent::SessionLost { why: SessionLost::Expired, .. })), "{lost:?}");
    assert!(messages.try_next().is_none());
}

/// Of values of one key that wait, the newest arrives; those it replaced say so.
#[tokio::test(start_paused = true)]
async fn the_newest_value_of_a_key_arrives() {
    let server = server();
    let listening = server.listen(&address()).await.expect("a free name");
    let (client, mut messages) = client(listening.address(), "ann").await;
    let session = server.sessions(&Target::user("ann")).expect("no topic")[0].clone();
    client.connection().expect("it is up").close();
    while session.connection().is_some() {
        tokio::task::yield_now().await;
    }
    let price = |value: &str| Push::new("Prices", "set", value.to_owned()).class(Class::Latest("EUR".to_owned()));
    let receipts: Vec<_> = ["1.1", "1.2", "1.3"].iter().map(|v| session.push(&price(v)).expect("small")).collect();
    let fire = session.push(&Push::new("Cursor", "at", "1,2").class(Class::Fire)).expect("small");
    assert_eq!(fire.outcomes().at(Stage::Dropped(DropReason::Disconnected)), 1, "at once");
    assert_eq!(text(&mut messages).await, "1.3");
    assert_eq!(receipts[2].handled().await.at(Stage::Handled), 1);
    assert_eq!(receipts[0].outcomes().at(Stage::Superseded), 1);
}

/// A push that is too old is not sent, wherever it waited.
#[tokio::test(start_paused = true)]
async fn what_is_too_old_is_not_sent() {
    let server = server();
    let listening = server.listen(&address()).await.expect("a free name");
    let (client, mut messages) = client(listening.address(), "ann").await;
    let session = server.sessions(&Target::user("ann")).expect("no topic")[0].clone();
    let place = listening.address().to_owned();
    drop(listening);
    client.connection().expect("it is up").close();
    while session.connection().is_some() {
        tokio::task::yield_now().await;
    }
    let old = Push::new("Chat", "say", "old").time_to_live(Duration::from_secs(1));
    let old = session.push(&old).expect("small");
    let new = session.push(&Push::new("Chat", "say", "new")).expect("small");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let _listening = server.listen(&place).await.expect("the name is free again");
    assert_eq!(text(&mut messages).await, "new");
    assert_eq!(old.outcomes().at(Stage::Expired), 1);
    assert_eq!(new.handled().await.at(Stage::Handled), 1);
}

/// Nor is it sent again after a lost connection, and the client counts it all the same: what it has received in
/// time it has, however late its application comes for it.
#[tokio::test(start_paused = true)]
async fn what_is_too_old_is_not_sent_again() {
    let server = server();
    let listening = server.listen(&address()).await.expect("a free name");
    let (client, mut messages) = client(listening.address(), "ann").await;
    let session = server.sessions(&Target::user("ann")).expect("no topic")[0].clone();
    let brief = |text: &str| Push::new("Chat", "say", text.to_owned()).time_to_live(Duration::from_secs(1));
    let received = session.push(&brief("received")).expect("small");
    assert_eq!(received.received().await.at(Stage::Received), 1);

    // These are written, and its connection ends before the client reads them.
    let lost = session.push(&brief("lost")).expect("small");
    let lasting = session.push(&Push::new("Chat", "say", "lasting")).expect("small");
    let place = listening.address().to_owned();
    drop(listening);
    client.connection().expect("it is up").close();
    assert_eq!(lost.outcomes().at(Stage::Written), 1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(lost.outcomes().at(Stage::Expired), 0, "the client may have received it");
    let _listening = server.listen(&place).await.expect("the name is free again");

    assert_eq!(text(&mut messages).await, "received");
    assert_eq!(text(&mut messages).await, "lasting");
    assert_eq!(soon(lost.handled()).await.at(Stage::Expired), 1);
    assert_eq!(soon(received.handled()).await.at(Stage::Handled), 1);
    assert_eq!(soon(lasting.handled()).await.at(Stage::Handled), 1);
    assert_eq!(session.waiting(), (0, 0), "the one that was skipped is acknowledged with the others");
}

/// A client that does not handle what it gets is owed no more than its log holds; the rest is refused, and it
/// is told of the gap.
#[tokio::test(start_paused = true)]
async fn a_full_log_refuses_and_tells_of_the_gap() {
    let server = Server::builder().sessions(SessionOptions::new().log(QueueBound::messages(10).bytes(1 << 20))).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (_client, mut messages) =
        Client::bidirectional(listening.address(), ClientOptions::new()).await.expect("it listens");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let session = server.sessions(&Target::everyone()).expect("no topic")[0].clone();
    let refused: usize = (0..15)
        .map(|number| session.push(&Push::new("Chat", "say", number.to_string())).expect("small").outcomes().dropped())
        .sum();
    assert_eq!(refused, 5);
    for number in 0..10 {
        assert_eq!(text(&mut messages).await, number.to_string());
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let after = session.push(&Push::new("Chat", "say", "after")).expect("small");
    let message = messages.next().await.expect("it came");
    assert_eq!((message.dropped_before(), messages.dropped()), (5, 5));
    drop(message);
    assert_eq!(after.handled().await.at(Stage::Handled), 1);
}

/// A plain client gets pushes by user too; its receipts say written, and claim no more.
#[tokio::test(start_paused = true)]
async fn a_plain_client_gets_plain_pushes() {
    let server = server();
    let listening = server.listen(&address()).await.expect("a free name");
    let options = ClientOptions::new().auth("ann").negotiate(false);
    let (client, mut messages) = Client::bidirectional(listening.address(), options).await.expect("it listens");
    client.call::<()>("Topics", "Join", &"a".to_owned()).await.expect("a topic");
    let receipt = server.push(&Target::user("ann"), &Push::new("Chat", "say", "hi")).expect("small");
    assert_eq!(text(&mut messages).await, "hi");
    assert_eq!(receipt.handled().await.at(Stage::PlainWritten), 1);
    client.close();
    while server.stats().sessions != 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A session that is sent away learns why, and cannot come back to it.
#[tokio::test(start_paused = true)]
async fn who_is_kicked_stays_away() {
    let server = server();
    let listening = server.listen(&address()).await.expect("a free name");
    let (client, _messages) = client(listening.address(), "ann").await;
    let mut events = client.events();
    let before = server.sessions(&Target::user("ann")).expect("no topic")[0].id();
    assert_eq!(server.kick(&Target::user("ann"), "maintenance").expect("no topic"), 1);
    match events.next().await {
        Some(ConnectionEvent::Lost { reason, .. }) => assert!(reason.to_string().contains("maintenance"), "{reason}"),
        other => panic!("{other:?}"),
    }
    let lost = events.next().await;
    assert!(matches!(lost, Some(ConnectionEvent::SessionLost { why: SessionLost::Kicked, .. })), "{lost:?}");
    assert!(matches!(events.next().await, Some(ConnectionEvent::GaveUp { .. })));
    assert!(events.next().await.is_none(), "it has ended");
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!((server.stats().sessions, server.stats().connections), (0, 0));
    assert!(server.session(before).is_none());
    let error = client.connection().expect_err("it has ended");
    assert!(matches!(&error, ConnectError::SentAway { why: SessionLost::Kicked, .. }), "{error}");
    assert!(error.to_string().contains("maintenance"), "{error}");
}

/// Also one whose Hello is still being checked: it is answered at once, by a Welcome, the Goodbye and the end.
#[tokio::test(start_paused = true)]
async fn who_is_kicked_while_its_hello_is_checked_stays_away() {
    let server = Server::builder()
        .auth(|request| async move {
            let session = request.session().ok_or("no session")?;
            session.bind_user("ann");
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok::<_, &str>(())
        })
        .build();
    let listening = server.listen(&address()).await.expect("a free name");
    let address = listening.address().to_owned();
    let connecting = tokio::spawn(async move { Client::connect(&address, ClientOptions::new()).await });
    let kicked = async {
        while server.kick(&Target::user("ann"), "maintenance").expect("no topic") == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), kicked).await.expect("it comes");
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!((server.stats().sessions, server.stats().connections), (0, 0));
    let client = connecting.await.expect("no panic");
    let error = match client {
        Ok(client) => client.connection().expect_err("it has ended"),
        Err(error) => error,
    };
    assert!(matches!(&error, ConnectError::SentAway { why: SessionLost::Kicked, .. }), "{error}");
    assert!(error.to_string().contains("maintenance"), "{error}");
}

/// A value that waits because its client is behind keeps nobody busy, and goes when there is room.
#[tokio::test(start_paused = true)]
async fn a_value_waits_for_a_client_that_is_behind() {
    let server = Server::builder().sessions(SessionOptions::new().log(QueueBound::messages(2).bytes(1 << 20))).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (_client, mut messages) =
        Client::bidirectional(listening.address(), ClientOptions::new()).await.expect("it listens");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let session = server.sessions(&Target::everyone()).expect("no topic")[0].clone();
    for number in 0..2 {
        session.push(&Push::new("Chat", "say", number.to_string())).expect("small");
    }
    let held = [messages.next().await, messages.next().await];
    let price = Push::new("Prices", "set", "1.1").class(Class::Latest("EUR".to_owned()));
    let receipt = session.push(&price).expect("small");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(receipt.outcomes().at(Stage::Queued), 1);
    drop(held);
    assert_eq!(text(&mut messages).await, "1.1");
    assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
}

/// A client that comes back confirms nothing before it is welcomed: until then the server takes it for somebody
/// new, to whom nothing was ever sent.
#[tokio::test(start_paused = true)]
async fn nothing_is_confirmed_before_the_welcome() {
    let server = Server::builder()
        .auth(|_| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok::<_, String>(())
        })
        .build();
    let listening = server.listen(&address()).await.expect("a free name");
    let options = ClientOptions::new().backoff(Duration::from_millis(1), Duration::from_millis(1));
    let (client, mut messages) = Client::bidirectional(listening.address(), options).await.expect("it listens");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let session = server.sessions(&Target::everyone()).expect("no topic")[0].clone();
    let receipt = session.push(&Push::new("Chat", "say", "hi")).expect("small");
    assert_eq!(text(&mut messages).await, "hi");
    client.connection().expect("it is up").close();
    assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!((session.generation(), server.stats().connections_accepted), (2, 2));
}

/// Threads that push to one session meet the one that reads its acknowledgements, and none waits for another for ever:
/// a session once asked its connection for room under its own lock, and got the answer under the same lock.
#[test]
fn threads_that_push_to_one_session_do_not_block_each_other() {
    const THREADS: usize = 3;
    const PUSHES: usize = 3000;
    let (done, over) = std::sync::mpsc::channel();
    // On a thread of its own: what is blocked for ever cannot be dropped.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build();
        let runtime = runtime.expect("a runtime");
        let server = server();
        let connecting = async {
            let listening = server.listen(&address()).await.expect("a free name");
            let client = client(listening.address(), "ann").await;
            (listening, client)
        };
        let (_listening, (_client, mut messages)) = runtime.block_on(connecting);
        let session = server.sessions(&Target::user("ann")).expect("no topic")[0].clone();
        let pushing: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (session, handle) = (session.clone(), runtime.handle().clone());
                std::thread::spawn(move || {
                    for number in 0..PUSHES {
                        let push = Push::new("Chat", "say", format!("{thread} {number}"));
                        let pushed = handle.block_on(session.push_within(Duration::from_secs(60), &push));
                        assert_eq!(pushed.expect("small").outcomes().dropped(), 0);
                    }
                })
            })
            .collect();
        let mut next = [0; THREADS];
        for _ in 0..THREADS * PUSHES {
            let said = runtime.block_on(text(&mut messages));
            let (thread, number) = said.split_once(' ').expect("two numbers");
            let next = &mut next[thread.parse::<usize>().expect("a number")];
            assert_eq!(number, next.to_string(), "in the order of its thread");
            *next += 1;
        }
        for thread in pushing {
            thread.join().expect("no panic");
        }
        done.send(()).expect("the test waits");
    });
    over.recv_timeout(Duration::from_secs(60)).expect("all is pushed, and nobody is blocked");
}

/// A waker as another executor may have it: it looks at the session.
struct Looks(bothways::Session);

impl std::task::Wake for Looks {
    fn wake(self: Arc<Self>) {
        self.0.waiting();
    }
}

/// Who waits for a receipt, or for the end of each target, is woken when the session's lock is free.
#[test]
fn a_waker_may_look_at_the_session() {
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.expect("a runtime").block_on(async {
            let server = Server::builder().build();
            let listening = server.listen(&address()).await.expect("a free name");
            let (_client, mut messages) =
                Client::bidirectional(listening.address(), ClientOptions::new()).await.expect("it listens");
            let resumable = || server.sessions(&Target::everyone()).expect("a target");
            crate::support::until(|| resumable().iter().any(bothways::Session::is_resumable)).await;
            let session = resumable().remove(0);
            let waker = std::task::Waker::from(Arc::new(Looks(session)));
            let mut cx = std::task::Context::from_waker(&waker);
            let receipt = server.push(&Target::everyone(), &Push::new("T", "x", "y")).expect("small");
            let mut handled = Box::pin(receipt.handled());
            assert!(handled.as_mut().poll(&mut cx).is_pending());

            drop(soon(messages.next()).await);

            crate::support::until(|| receipt.outcomes().at(Stage::Handled) == 1).await;
            assert!(handled.as_mut().poll(&mut cx).is_ready());
        });
        // The test is over if nobody listens.
        let _ = done.send(());
    });
    assert!(is_done.recv_timeout(Duration::from_secs(60)).is_ok(), "it hangs, or panicked");
}
