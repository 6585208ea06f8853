//! Receipts say what became of a push: handled only if the client's application did handle it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bothways::{
    Class, Client, ClientOptions, Limits, Metadata, Push, PushError, QueueBound, Reply, Request, Router, Server,
    SessionOptions, Stage, Target,
    session::{DropReason, Failure, Outcomes, Position, TopicOptions},
};
use bothways_proto::{Capabilities, Header, Message, Seq, SerializeType, keys};

use crate::{
    scripted::{Scripted, ScriptedServer, arrive, claim, hello, session_pairs, welcome},
    support::{address, oneshot_to, settle, soon, until},
};

const PATIENCE: Duration = Duration::from_millis(1);

/// A client's options that connects again at once.
fn options() -> ClientOptions {
    ClientOptions::new().backoff(PATIENCE, PATIENCE)
}

fn push(method: &str, payload: &'static str) -> Push {
    Push::new("C", method, payload)
}

async fn handled(server: &Server, push: &Push) -> Outcomes {
    soon(server.push(&Target::everyone(), push).expect("small").handled()).await
}

/// Handlers that fail in every way there is.
fn failing() -> Router {
    Router::new()
        .function("C", "Command", |_: u32| async { Ok::<_, String>(()) })
        .function("C", "Full", |_: String| async { Err::<(), _>("disk full") })
        .handler("C", "Raw", |_: Request| async { Reply::error("disk full") })
        .handler("C", "Panic", |_: Request| async { panic!("a handler's bug") })
        .handler("C", "Good", |_: Request| async { Reply::ok("") })
}

/// What is announced not to be taken is not even sent; the rest comes once, fails at the client, and does not come
/// again. What follows is handled as if nothing had happened.
#[tokio::test(start_paused = true)]
async fn a_push_that_the_application_could_not_handle_is_not_called_handled() {
    let server = Server::builder().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let _client = Client::with_handlers(listening.address(), options(), failing()).await.expect("it listens");
    until(|| !server.sessions(&Target::everyone()).expect("no topic").is_empty()).await;
    let session = server.sessions(&Target::everyone()).expect("no topic").remove(0);
    until(|| session.is_resumable()).await;
    for (push, failure, written) in [
        (push("NoSuchMethod", "x"), Failure::NoHandler, false),
        (push("Command", "hello"), Failure::BadArguments, true),
        (push("Full", "x"), Failure::BadArguments, true),
        (Push::of("C", "Full", "x").expect("text"), Failure::Error, true),
        (push("Raw", "x"), Failure::Error, true),
        (push("Panic", "x"), Failure::Panicked, true),
    ] {
        let outcomes = handled(&server, &push).await;
        assert_eq!((outcomes.at(Stage::Failed(failure)), outcomes.failed()), (1, 1), "{push:?}: {outcomes:?}");
        let told = session.explain().events.pop().expect("it is told").to_string();
        assert!(told.contains("failed: ") && told.contains("written after") == written, "{told}");
        assert_eq!(handled(&server, &Push::new("C", "Good", "x")).await.at(Stage::Handled), 1);
    }
    assert_eq!(session.waiting(), (0, 0));
    let by_stub = soon(oneshot_to(&session, "NoSuchMethod", "x")).await;
    assert!(matches!(by_stub, Err(PushError::NotSupported)), "{by_stub:?}");
    session.end("enough");
    let to_nobody = soon(oneshot_to(&session, "Good", "x")).await;
    assert!(matches!(to_nobody, Err(PushError::NoClient(_))), "{to_nobody:?}");
}

/// A client whose application takes messages by itself gets every name, whatever its handlers are for.
#[tokio::test(start_paused = true)]
async fn who_takes_messages_by_itself_gets_every_name_and_says_what_failed() {
    let server = Server::builder().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (_client, mut messages) = Client::bidirectional(listening.address(), options()).await.expect("it listens");
    until(|| server.sessions(&Target::everyone()).expect("no topic").iter().any(|one| one.is_resumable())).await;
    let receipts = ["a", "b", "c"].map(|name| server.push(&Target::everyone(), &push(name, "x")).expect("small"));
    soon(messages.next()).await.expect("it is open").fail("not today");
    let copied = soon(messages.next()).await.expect("it is open");
    drop(copied.clone());
    copied.clone().fail("one of two clones");
    drop(soon(messages.next()).await);
    let last = soon(receipts[2].handled()).await;
    assert_eq!(receipts[0].outcomes().at(Stage::Failed(Failure::Error)), 1);
    assert_eq!((receipts[1].outcomes().at(Stage::Received), last.at(Stage::Handled)), (1, 1), "one is held");
    drop(copied);
    assert_eq!(soon(receipts[1].handled()).await.at(Stage::Failed(Failure::Error)), 1);
}

/// A retry after a failure is no repetition, neither for the server nor for the client.
#[tokio::test(start_paused = true)]
async fn what_failed_may_be_pushed_again_under_its_key() {
    let server = Server::builder().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let handlers = Router::new().handler("C", "Do", move |_: Request| {
        let run = counted.fetch_add(1, Ordering::Relaxed);
        async move { if run == 0 { Reply::error("not yet") } else { Reply::ok("") } }
    });
    let _client = Client::with_handlers(listening.address(), options(), handlers).await.expect("it listens");
    let keyed = push("Do", "x").idempotency_key("k").expect("a key");
    until(|| !server.sessions(&Target::everyone()).expect("no topic").is_empty()).await;
    let stages = [Stage::Failed(Failure::Error), Stage::Handled, Stage::Duplicate];
    for (run, stage) in (0..).zip(stages) {
        assert_eq!(handled(&server, &keyed).await.at(stage), 1, "{run}");
    }
    assert_eq!(runs.load(Ordering::Relaxed), 2);
}

/// An application keeps its first message, and deals with all others: none of their receipts waits for it, and the log
/// has room for more than it holds at once.
#[tokio::test(start_paused = true)]
async fn one_message_that_is_kept_holds_up_no_other() {
    let server =
        Server::builder().sessions(SessionOptions::new().log(QueueBound::messages(100).bytes(1 << 20))).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (client, mut messages) = Client::bidirectional(listening.address(), options()).await.expect("it listens");
    until(|| server.sessions(&Target::everyone()).expect("no topic").iter().any(|one| one.is_resumable())).await;
    let session = server.sessions(&Target::everyone()).expect("no topic").remove(0);
    let first = session.push(&push("say", "kept")).expect("small");
    let held = soon(messages.next()).await.expect("it is open");
    let mut receipts = Vec::new();
    for _ in 0..300 {
        receipts.push(session.push_within(Duration::from_secs(9), &push("say", "x")).await.expect("small"));
        drop(soon(messages.next()).await);
    }
    for receipt in &receipts {
        assert_eq!(soon(receipt.handled()).await.at(Stage::Handled), 1);
    }
    assert_eq!((first.outcomes().at(Stage::Received), session.waiting().0), (1, 1));

    // Nor does a lost connection bring any of it again.
    client.connection().expect("it is up").close();
    until(|| session.generation() == 2).await;
    let more = session.push(&push("say", "more")).expect("small");
    drop(soon(messages.next()).await.expect("it is open"));
    assert_eq!(soon(more.handled()).await.at(Stage::Handled), 1);
    drop(held);
    assert_eq!(soon(first.handled()).await.at(Stage::Handled), 1);
    assert_eq!((messages.dropped(), session.waiting()), (0, (0, 0)));
}

/// The application drops its stream and keeps the client: what waits and what follows ends at once, for its senders.
#[tokio::test(start_paused = true)]
async fn an_application_that_listens_no_more_tells_the_senders() {
    let server = Server::builder().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (client, messages) = Client::bidirectional(listening.address(), options()).await.expect("it listens");
    until(|| server.sessions(&Target::everyone()).expect("no topic").iter().any(|one| one.is_resumable())).await;
    let before = server.push(&Target::everyone(), &push("say", "before")).expect("small");
    until(|| messages.len() == 1).await;
    drop(messages);
    let no_handler = Stage::Failed(Failure::NoHandler);
    assert_eq!(soon(before.handled()).await.at(no_handler), 1);
    for _ in 0..3000 {
        let receipt = server.push(&Target::everyone(), &push("say", "x")).expect("small");
        assert_eq!(soon(receipt.handled()).await.at(no_handler), 1);
    }
    drop(client);
}

/// The client handles the push, and the server stops before it was told so: it waits for that a little.
#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_for_what_was_handled_to_be_acknowledged() {
    let server = Server::builder().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (_client, mut messages) = Client::bidirectional(listening.address(), options()).await.expect("it listens");
    until(|| server.sessions(&Target::everyone()).expect("no topic").iter().any(|one| one.is_resumable())).await;
    let [done, kept] =
        ["done", "kept"].map(|text| server.push(&Target::everyone(), &push("say", text)).expect("small"));
    drop(soon(messages.next()).await.expect("it is open"));
    let _held = soon(messages.next()).await.expect("it is open");
    let report = soon(server.shutdown(Duration::from_secs(5))).await;
    assert_eq!(soon(done.handled()).await.at(Stage::Handled), 1);
    assert_eq!(soon(kept.handled()).await.at(Stage::Unknown), 1, "it was received, and may be handled");
    assert_eq!((report.pushes_unhandled, report.sessions_left), (1, 1));
}

/// A session that ends leaves three kinds of pushes: handled, perhaps handled, and surely not.
#[tokio::test(start_paused = true)]
async fn a_kick_calls_dropped_only_what_the_client_has_not_got() {
    let server = Server::builder().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (mut client, welcome) = arrive(listening.address(), &Metadata::new()).await;
    let session = server.sessions(&Target::everyone()).expect("no topic").remove(0);
    let sent = session.push(&push("say", "sent")).expect("small");
    client.next().await;
    until(|| sent.outcomes().at(Stage::Written) == 1).await;
    client.reset();
    until(|| session.connection().is_none()).await;
    let waits = session.push(&push("say", "waits")).expect("small");
    session.end("enough");
    assert_eq!(sent.outcomes().at(Stage::Unknown), 1);
    assert_eq!(waits.outcomes().at(Stage::Dropped(DropReason::SessionEnded)), 1);
    let told: Vec<_> = server.explain(&Target::session(session.id())).expect("no topic").remove(0).events;
    assert!(
        told.iter().any(|event| event.to_string().contains("before its client said what became of it")),
        "{told:?}"
    );
    drop(welcome);
}

#[tokio::test(start_paused = true)]
async fn what_a_topic_keeps_is_stored_though_nobody_is_there() {
    let options = TopicOptions::new().history(10, Duration::from_secs(60));
    let server = Server::builder().topic("log", options).expect("a pattern").build();
    for offset in 1..=2 {
        let receipt = server.publish("log", &push("say", "x")).expect("small");
        let stored = receipt.position().expect("the topic keeps it");
        assert_eq!((receipt.outcomes().targets(), stored.offset), (0, offset));
        assert_ne!(stored, Position { epoch: 0, offset });
    }
    assert_eq!(server.publish("other", &push("say", "x")).expect("small").position(), None);
    assert_eq!(server.push(&Target::everyone(), &push("say", "x")).expect("small").position(), None);
}

/// Values come faster than the application takes them: of each key only the newest waits, in the place of the oldest.
#[tokio::test(start_paused = true)]
async fn of_values_that_wait_for_the_application_only_the_newest_is_handled() {
    let server = Server::builder().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (_client, mut messages) = Client::bidirectional(listening.address(), options()).await.expect("it listens");
    until(|| server.sessions(&Target::everyone()).expect("no topic").iter().any(|one| one.is_resumable())).await;
    let session = server.sessions(&Target::everyone()).expect("no topic").remove(0);
    let value = |key: &str, text: String| {
        session.push(&Push::new("C", "set", text).class(Class::Latest(key.to_owned()))).expect("small")
    };
    let mut receipts = Vec::new();
    for n in 0..100 {
        receipts.push(value("a", format!("a{n}")));
        receipts.push(value("b", format!("b{n}")));
        settle().await;
    }
    let between = session.push(&push("say", "between")).expect("small");
    receipts.extend(["a", "b"].map(|key| value(key, format!("{key}100"))));
    until(|| messages.len() == 3 && receipts[198].outcomes().at(Stage::Superseded) == 1).await;
    let mut texts = Vec::new();
    while let Some(message) = messages.try_next() {
        texts.push(String::from_utf8(message.payload().expect("not packed").to_vec()).expect("text"));
    }
    assert_eq!(texts, ["a100", "b100", "between"]);
    let newest = receipts.split_off(200);
    for receipt in [&newest[0], &newest[1], &between] {
        assert_eq!(soon(receipt.handled()).await.at(Stage::Handled), 1);
    }
    for receipt in &receipts {
        assert_eq!(soon(receipt.handled()).await.at(Stage::Superseded), 1);
    }
    assert_eq!(session.waiting(), (0, 0));
    // A key whose value was taken begins behind the others again.
    value("a", "a101".to_owned());
    assert_eq!(soon(messages.next()).await.expect("it is open").payload().expect("not packed"), "a101");
}

fn tracked(offset: u64, metadata: &Metadata) -> Vec<u8> {
    let header = Header::oneway(Seq::of_push(offset), SerializeType::RAW);
    Message::new(header, "C", "say", metadata, b"x").frame().to_vec()
}

fn ack(pairs: &[(&str, &str)]) -> Vec<u8> {
    let header = Header::oneway(Seq::new(9), SerializeType::RAW);
    let pairs = pairs.iter().fold(Metadata::new(), |pairs, (key, value)| pairs.with(key, *value));
    Message::new(header, keys::CONTROL_PATH, keys::ACK, &pairs, &[]).frame().to_vec()
}

/// The words on the wire, from a client to our server.
#[tokio::test(start_paused = true)]
async fn a_server_takes_ranges_and_failed_offsets() {
    let server = Server::builder().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (mut client, welcome) = arrive(listening.address(), &Metadata::new()).await;
    let session = server.sessions(&Target::everyone()).expect("no topic").remove(0);
    let receipts: Vec<_> = (0..8).map(|_| session.push(&push("say", "x")).expect("small")).collect();
    for _ in 0..8 {
        client.next().await;
    }
    client
        .say(ack(&[(keys::ACK_OFFSETS, "8,1"), (keys::ACK_AHEAD, "3-4,6-6"), (keys::ACK_FAILED, "3:panicked")]))
        .await;
    until(|| receipts[5].outcomes().at(Stage::Handled) == 1).await;
    let stages = [
        Stage::Handled,
        Stage::Received,
        Stage::Failed(Failure::Panicked),
        Stage::Handled,
        Stage::Received,
        Stage::Handled,
        Stage::Received,
        Stage::Received,
    ];
    for (receipt, stage) in receipts.iter().zip(stages) {
        assert_eq!(receipt.outcomes().at(stage), 1, "{receipt:?} is not {stage:?}");
    }
    assert_eq!(session.waiting().0, 4);

    // What failed on the lost connection is said in the Hello that counts it as handled.
    client.reset();
    until(|| session.connection().is_none()).await;
    let pairs = claim(&welcome, 5).with(keys::SESSION_RECEIVED, "8").with(keys::ACK_FAILED, "2:no_handler,1-5:unknown");
    let mut client = Scripted::connect(listening.address()).await;
    client.say(hello(0, Capabilities::ALL, &pairs)).await;
    assert!(client.next().await.metadata().get(keys::SESSION_RESUMED).is_some());
    client.hears_nothing().await;
    assert_eq!(receipts[1].outcomes().at(Stage::Failed(Failure::NoHandler)), 1);
    assert_eq!(receipts[4].outcomes().at(Stage::Unknown), 1);
    assert_eq!(receipts[0].outcomes().at(Stage::Handled), 1, "what is final stays");

    client.say(ack(&[(keys::ACK_OFFSETS, "8,5"), (keys::ACK_AHEAD, "7-9")])).await;
    soon(client.hears_the_end()).await;
    assert_eq!(session.waiting().0, 2, "what was never sent cannot be handled, and a false claim changes nothing");
}

/// The words on the wire, from our client: to a server that understands them, and to one that does not.
#[tokio::test(start_paused = true)]
async fn a_client_says_ranges_and_failed_offsets_to_who_understands_them() {
    for understands in [true, false] {
        let server = ScriptedServer::listen().await;
        let address = server.address.clone();
        let connecting = tokio::spawn(async move { Client::bidirectional(&address, options()).await });
        let mut peer = soon(server.accept()).await;
        let greeting = peer.next().await;
        match understands {
            true => peer.say(welcome(&greeting, session_pairs("1"))).await,
            false => {
                let mut pairs = session_pairs("1");
                let capabilities = Capabilities::ALL.without(Capabilities::OUTCOMES.union(Capabilities::HANDLERS));
                bothways_proto::Welcome { version: 1, capabilities }.put(&mut pairs);
                peer.say(Message::new(greeting.header().reply(), "", "", &pairs, &[]).frame()).await;
            }
        }
        let (_client, mut messages) = soon(connecting).await.expect("no panic").expect("it listens");
        let of_key = Metadata::new().with(keys::LATEST_KEY, "k");
        for offset in 1..=3 {
            peer.say(tracked(offset, &Metadata::new())).await;
        }
        peer.say(tracked(4, &of_key)).await;
        peer.say(tracked(5, &of_key)).await;
        let _held = soon(messages.next()).await;
        soon(messages.next()).await.expect("it is open").fail("no");
        drop(soon(messages.next()).await);
        let said = soon(peer.next()).await.metadata();
        let pair = |key| said.get(key).map(str::to_owned);
        let waiting = messages.len();
        let expected = match understands {
            true => (Some("5,0"), Some("2-4"), Some("2:error,4:superseded"), 1),
            false => (Some("5,0"), None, None, 2),
        };
        let told = (pair(keys::ACK_OFFSETS), pair(keys::ACK_AHEAD), sorted(pair(keys::ACK_FAILED)), waiting);
        let told = (told.0.as_deref(), told.1.as_deref(), told.2.as_deref(), told.3);
        assert_eq!(told, expected);
    }
}

fn sorted(failed: Option<String>) -> Option<String> {
    let failed = failed?;
    let mut failed: Vec<&str> = failed.split(',').collect();
    failed.sort_unstable();
    Some(failed.join(","))
}

/// An acknowledgement that the server passes over unread, as it has too much metadata, would leave failures out: the next
/// one covers them.
#[tokio::test(start_paused = true)]
async fn failures_are_told_to_a_server_that_takes_little_metadata() {
    let server = Server::builder().limits(Limits::default().metadata_bytes_max(1024)).build();
    let listening = server.listen("memory@outcomes-little-metadata").await.expect("the name is free");
    let (client, mut messages) =
        Client::bidirectional(listening.address(), ClientOptions::new()).await.expect("it listens");
    client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
    let session = server.sessions(&Target::everyone()).expect("no topic").remove(0);
    let push = |number: usize| session.push(&Push::new("L", "say", number.to_string())).expect("small");
    let receipts: Vec<_> = (0..300).map(push).collect();

    let mut all = Vec::new();
    for _ in &receipts {
        all.push(messages.next().await.expect("the client is open"));
    }
    // Each second one fails: no two neighbours are alike.
    for (number, message) in all.into_iter().enumerate() {
        if number % 2 == 0 { message.fail("no") } else { drop(message) }
    }
    for (number, receipt) in receipts.iter().enumerate() {
        let expected = if number % 2 == 0 { Stage::Failed(Failure::Error) } else { Stage::Handled };
        let done = tokio::time::timeout(Duration::from_secs(60), receipt.handled()).await.expect("it is told");
        assert_eq!(done.at(expected), 1, "push {number}: {done:?}");
    }
}
