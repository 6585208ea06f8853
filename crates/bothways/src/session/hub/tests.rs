//! The topics of a server, tried from inside.

use std::{collections::BTreeSet, sync::mpsc};

use proptest::prelude::*;

use super::{
    super::{
        fixtures::one_session_at,
        history::Position,
        ledger::{Bounds, Ledger},
    },
    subscribe::{fitting, size},
    *,
};
use crate::{Client, ClientOptions, QueueBound, Server, SessionOptions};

/// A message is on its way into very many ledgers: who subscribes meanwhile does not wait for that, and gets what
/// is published next.
#[tokio::test(start_paused = true)]
async fn who_subscribes_does_not_wait_for_a_publish() {
    let history = TopicOptions::new().open().history(10, Duration::from_secs(60));
    let server = Server::builder().topic("news", history).expect("a pattern").build();
    let (server, _client, registry, session) = one_session_at(server, "hub-turn").await;
    let hub = &registry.hub;
    server.publish("news", &Push::new("N", "say", "1")).expect("small");

    let topic = hub.topics.find("news").expect("it keeps a message");
    let turn = topic.turn.lock();
    let (done, subscribed) = mpsc::channel();
    let (of_thread, hub_of_thread) = (session.clone(), Arc::clone(hub));
    std::thread::spawn(move || done.send(hub_of_thread.subscribe(&of_thread, "news", None, false)));
    let outcome = subscribed.recv_timeout(Duration::from_secs(10)).expect("it does not wait").expect("it lives");
    assert_eq!(outcome.position.map(|position| position.offset), Some(1));
    drop(turn);
    let receipt = server.publish("news", &Push::new("N", "say", "2")).expect("small");
    assert_eq!(receipt.outcomes().targets(), 1);
}

/// What a topic keeps of its newest value keeps no read alive that the value is a part of.
#[tokio::test(start_paused = true)]
async fn a_value_that_is_kept_is_a_copy() {
    let options = TopicOptions::new().open().latest_only();
    let server = Server::builder().topic("value", options).expect("a pattern").build();
    let (server, _client, registry, _session) = one_session_at(server, "hub-value").await;
    let hub = &registry.hub;
    let read = bytes::Bytes::from(vec![7; 64 << 10]);
    server.publish("value", &Push::new("N", "say", read.slice(..40))).expect("small");

    let topic = hub.topics.find("value").expect("it keeps a message");
    let kept = topic.kept.lock();
    let push = kept.history.as_ref().and_then(|history| history.newest()?.item.push.as_ref()).expect("it is kept");
    assert_eq!(push.payload, read[..40]);
    assert!(read.is_unique(), "nothing of the read is kept");
    let newest = kept.history.as_ref().and_then(|history| history.newest()).expect("it is kept");
    assert_eq!(newest.bytes, newest.item.encoded.size() + push.size(), "it counts with both");
}

/// What fits is counted from the first on, in messages and in bytes, and ends with the first that does not fit.
#[test]
fn what_fits_is_counted_from_the_first_on() {
    let bounds = |tracked_messages, tracked_bytes| Bounds { tracked_messages, tracked_bytes, ..Bounds::default() };
    let of = |bytes: &[usize]| -> Vec<Published> {
        let frame = |bytes: &usize| bytes::Bytes::from(vec![0; *bytes]);
        let encoded = |frame| Encoded { frame, keyed: None };
        bytes.iter().map(|it| Published { encoded: encoded(frame(it)), ..Published::for_test() }).collect()
    };
    for (messages, tracked_messages, tracked_bytes, expected) in [
        (&[1, 1, 1][..], 2, 10, 2),
        (&[1, 1, 1], 3, 10, 3),
        (&[4, 6, 1], 3, 10, 2),
        (&[4, 7, 1], 3, 10, 1),
        (&[11], 3, 10, 0),
        (&[1], 0, 10, 0),
        (&[], 3, 10, 0),
    ] {
        let published = of(messages);
        let list: Vec<_> = published.iter().enumerate().map(|(at, it)| (at as u64, it)).collect();
        let mut ledger = Ledger::new(bounds(tracked_messages, tracked_bytes));
        assert_eq!(fitting(&ledger, &list), expected, "{messages:?} of {tracked_messages}, {tracked_bytes} B");
        assert!(ledger.claim_room(list.len(), size(&list)) || expected < list.len());
    }
}

/// Nothing is left of a topic that keeps no message when the last one has left it; one that keeps some stays.
#[tokio::test(start_paused = true)]
async fn a_topic_that_is_left_leaves_nothing_behind() {
    let server = Server::builder()
        .topic("room", TopicOptions::new().open().presence(true))
        .expect("a pattern")
        .topic("news", TopicOptions::new().open().history(10, Duration::from_secs(60)))
        .expect("a pattern")
        .build();
    let (server, _client, registry, session) = one_session_at(server, "hub-left").await;
    let hub = &registry.hub;
    server.publish("news", &Push::new("N", "say", "1")).expect("small");
    for (topic, stays) in [("room", false), ("news", true)] {
        hub.subscribe(&session, topic, None, false).expect("it is open");
        assert!(hub.topics.find(topic).is_some(), "{topic}");
        session.unsubscribe(topic);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(hub.topics.find(topic).is_some(), stays, "{topic}");
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Publish,
    /// The application takes so many messages, and is done with them.
    Handle(usize),
    Ask {
        from: From,
        part: bool,
    },
}

/// Where what is asked for begins.
#[derive(Clone, Copy, Debug)]
enum From {
    Now,
    TheBeginning,
    /// Behind the last message before the first that the client does not have.
    WhereItIs,
}

fn step() -> impl Strategy<Value = Step> {
    let from = prop::sample::select(vec![From::Now, From::TheBeginning, From::WhereItIs, From::WhereItIs]);
    prop_oneof![
        3 => Just(Step::Publish),
        2 => (1..4_usize).prop_map(Step::Handle),
        3 => (from, any::<bool>()).prop_map(|(from, part)| Step::Ask { from, part }),
    ]
}

/// A session with room for three messages asks for a topic in whatever way, and in whatever order: in the end it has
/// all of it, each message once.
async fn asks(name: &str, steps: &[Step]) {
    let history = TopicOptions::new().open().history(100, Duration::from_secs(3600));
    let server = Server::builder()
        .sessions(SessionOptions::new().log(QueueBound::messages(3).bytes(1 << 20)))
        .topic("news", history)
        .expect("a pattern")
        .build();
    let listening = server.listen(&format!("memory@{name}")).await.expect("the name is free");
    let options = ClientOptions::new();
    let (client, mut messages) = Client::bidirectional(listening.address(), options).await.expect("it listens");
    client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
    let session = server.sessions(&super::super::Target::everyone()).expect("no topic").remove(0);
    let registry = session.inner.registry.upgrade().expect("the server lives");
    let hub = &registry.hub;

    let publish = |number: u64| {
        let receipt = server.publish("news", &Push::new("N", "say", number.to_string())).expect("small");
        receipt.position().expect("it has a history")
    };
    let (epoch, mut published) = (publish(1).epoch, 1);
    let mut got = BTreeSet::new();
    let ask = |from: From, part, got: &BTreeSet<u64>| {
        let reached = (1..).take_while(|number| got.contains(number)).last().unwrap_or(0);
        let from = match from {
            From::Now => None,
            From::TheBeginning => Some(0),
            From::WhereItIs => Some(reached),
        };
        let from = from.map(|offset| Position { epoch, offset });
        let wish = Wish { pattern: "news", from, part, ordered: false };
        hub.subscribe_client(&session, wish).expect("it is open")
    };
    let mut take = |count: usize, got: &mut BTreeSet<u64>| {
        for message in (0..count).map_while(|_| messages.try_next()) {
            let number = String::from_utf8_lossy(&message.payload().expect("not packed")).parse().expect("a number");
            assert!(got.insert(number), "{number} came twice");
        }
    };
    for step in steps {
        match *step {
            Step::Publish => {
                published += 1;
                publish(published);
            }
            Step::Handle(count) => take(count, &mut got),
            Step::Ask { from, part } => drop(ask(from, part, &got)),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for _ in 0..200 {
        take(usize::MAX, &mut got);
        tokio::time::sleep(Duration::from_millis(100)).await;
        if got.len() as u64 == published {
            return;
        }
        ask(From::WhereItIs, true, &got);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("of {published} only {got:?} came");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn however_a_topic_is_asked_for_all_of_it_comes_once(steps in prop::collection::vec(step(), 1..30)) {
        static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let name = format!("hub-asks-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.expect("a runtime").block_on(asks(&name, &steps));
    }
}

/// A part that came before the topic was subscribed to does not come again when later messages were asked for meanwhile.
#[tokio::test(start_paused = true)]
async fn a_part_is_known_after_what_is_behind_it_was_asked_for() {
    let ask = |from, part| Step::Ask { from, part };
    let publish_three = [Step::Publish; 3];
    let steps = [
        &publish_three[..],
        &[ask(From::TheBeginning, true)],
        &publish_three,
        &[Step::Handle(2), ask(From::Now, false), ask(From::TheBeginning, true)],
        &[Step::Handle(3), ask(From::WhereItIs, false)],
        &[Step::Handle(2), ask(From::TheBeginning, false)],
    ];
    asks("hub-asks-behind-a-part", &steps.concat()).await;
}

/// Each bound of what a client may subscribe to holds to the byte; one that subscribes again needs no more room.
#[tokio::test(start_paused = true)]
async fn subscriptions_are_bounded_to_the_byte() {
    let bytes = topic::bytes_of("ab");
    type Bound = fn(crate::ServerBuilder, usize) -> crate::ServerBuilder;
    let bounds: [(&str, Bound); 2] = [
        ("per-session", |builder, bytes| builder.sessions(SessionOptions::new().subscription_bytes_max(bytes))),
        ("in-all", |builder, bytes| builder.sessions(SessionOptions::new().all_subscription_bytes_max(bytes))),
    ];
    for (name, bound) in bounds {
        let open = TopicOptions::new().open();
        let server = bound(Server::builder(), 2 * bytes).topic(">", open).expect("a pattern").build();
        let listening = server.listen(&format!("memory@hub-bounds-{name}")).await.expect("the name is free");
        let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
        for topic in ["ab", "cd", "ab"] {
            client.subscribe(topic).await.expect("as much as there is room for");
        }
        client.subscribe("e").await.expect_err("no byte more");
        client.unsubscribe("ab").await.expect("it has it");
        client.subscribe("abc").await.expect_err("one byte too much");
        client.subscribe("e").await.expect("there is room");
    }
}

/// A topic that is wanted in order stands still behind a message that found no room, until its client has asked for
/// what it missed and has all of that.
#[tokio::test(start_paused = true)]
async fn a_topic_goes_on_when_all_that_was_missed_is_there() {
    let history = || TopicOptions::new().open().history(10, Duration::from_secs(60));
    let server = Server::builder()
        .sessions(SessionOptions::new().log(QueueBound::messages(2).bytes(1 << 20)))
        .topic("news", history())
        .expect("a pattern");
    let server = server.topic("late", history()).expect("a pattern");
    let server = server.topic("talk", TopicOptions::new().open()).expect("a pattern").build();
    let listening = server.listen("memory@hub-in-order").await.expect("the name is free");
    let mut clients = Vec::new();
    for _ in 0..2 {
        let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
        client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
        clients.push(client);
    }
    let sessions = server.sessions(&super::super::Target::everyone()).expect("no topic");
    let [session, other] = &sessions[..] else { panic!("there are two") };
    let registry = session.inner.registry.upgrade().expect("the server lives");
    let hub = &registry.hub;
    let ask = |session: &Session, pattern, from, part, ordered| {
        hub.subscribe_client(session, Wish { pattern, from, part, ordered }).expect("it is open")
    };
    let is_stalled = || session.lock().patterns().is_stalled("news");
    let publish = |topic: &str| {
        (0..5).for_each(|_| _ = server.publish(topic, &Push::new("N", "say", "1")).expect("small"));
    };

    for (topic, ordered, stalls) in [("news", false, false), ("talk", true, false), ("news", true, true)] {
        ask(session, topic, None, false, ordered);
        let mut state = session.lock();
        state.patterns_mut().stall(topic);
        assert_eq!(state.patterns().is_stalled(topic), stalls, "{topic}, {ordered}");
    }
    let start = ask(session, "news", None, false, true).subscribed.position.expect("it has a history");
    publish("news");
    let end = Position { offset: 5, ..start };
    for (from, part, expected) in [(start, false, (false, true)), (start, true, (true, false))] {
        let answer = ask(session, "news", Some(from), part, true);
        assert_eq!((answer.more, answer.later), expected);
        assert!(is_stalled(), "{answer:?}");
    }
    let answer = ask(session, "news", Some(end), false, true);
    assert!(!answer.more && !answer.later && !is_stalled(), "{answer:?}");

    // A part is not the whole: who was not subscribed is so with the rest.
    let start = ask(other, "late", None, true, false).subscribed.position.expect("it has a history");
    other.unsubscribe("late");
    publish("late");
    assert!(ask(other, "late", Some(start), true, false).more);
    assert!(!other.lock().patterns().contains("late"));
    ask(other, "late", None, false, false);
    assert!(other.lock().patterns().contains("late"));
}

/// A session that has come from another node, with its place in a topic, is no subscriber before the copy is deep and as new as
/// that; it counts as one. Then it gets what is behind its place, and after that what comes live. What is not there any more
/// its client is told to ask for, and nothing overtakes that.
#[cfg(feature = "cluster")]
#[tokio::test(start_paused = true)]
async fn who_has_come_gets_what_is_behind_its_place() {
    /// A log that answers when a place is free.
    struct Log(tokio::sync::Semaphore);
    use super::super::came_with::Coming;

    impl SharedHistories for Log {
        fn publish(self: Arc<Self>, _: ToShare<'_>, _: &Receipt) -> Result<(), SendError> {
            Err(SendError::ShutDown)
        }

        fn follow(self: Arc<Self>, _: &str) {}

        fn prepare(self: Arc<Self>, _: Arc<str>, _: Option<Position>) -> crate::reply::BoxFuture<bool> {
            Box::pin(async move { self.0.acquire().await.map(|place| place.forget()).is_ok() })
        }
    }

    let history = TopicOptions::new().open().history(10, Duration::from_secs(60));
    let server = Server::builder().topic("news", history).expect("a pattern").build();
    let listening = server.listen("memory@hub-come").await.expect("the name is free");
    let (_client, mut messages) =
        Client::bidirectional(listening.address(), ClientOptions::new()).await.expect("it listens");
    let session = loop {
        match server.sessions(&super::super::Target::everyone()).expect("no topic").pop() {
            Some(session) if session.lock().is_resumable() => break session,
            _ => tokio::task::yield_now().await,
        }
    };
    let registry = session.inner.registry.upgrade().expect("the server lives");
    let (hub, name): (_, Arc<str>) = (&registry.hub, "news".into());
    let log = Arc::new(Log(tokio::sync::Semaphore::new(0)));
    hub.share(Arc::clone(&log) as Arc<dyn SharedHistories>);
    hub.topics.keep(&name, hub.kept_options(&name).expect("a rule"), None).expect("there is room");
    let at = |offset| Position { epoch: 7, offset };
    let come = |offset: u64| {
        let push = Push::new("N", "say", offset.to_string());
        let message = SharedMessage { position: at(offset), push: Some(push), own: None };
        let receipt = Receipt::new();
        assert_eq!(hub.arrive(&name, &message, offset - 1, &receipt), Arrived::Taken, "{offset}");
        receipt
    };
    let coming = |position| Coming { position, by_client: true, is_ordered: true };

    come(1);
    come(2);
    hub.expect(&session, &name, coming(at(1)));
    assert_eq!(come(3).outcomes().targets(), 0);
    let subscribers = super::super::Target::subscribers_of("news");
    assert_eq!(registry.find_all(&subscribers).expect("a topic").len(), 1, "it counts as one");
    assert_eq!(session.lock().all_coming(), [(Arc::clone(&name), at(1))], "it would go on from there");
    let bringing = tokio::spawn(Arc::clone(hub).bring_up_all(session.clone()));
    tokio::task::yield_now().await;
    assert!(session.lock().is_coming(&name) && !bringing.is_finished());
    hub.load(&name, SharedPage::default());
    log.0.add_permits(1);
    bringing.await.expect("it ends");
    assert!(!session.lock().is_coming(&name) && hub.coming.lock().is_empty());
    assert_eq!(come(4).outcomes().targets(), 1);
    for offset in 2..=4 {
        let message = messages.next().await.expect("it is open");
        assert_eq!(message.payload().expect("not packed"), offset.to_string().as_bytes());
    }

    hub.unsubscribe(&session, &name);
    hub.expect(&session, &name, coming(at(4)));
    assert!(!session.lock().is_coming(&name), "the copy is as new");
    hub.unsubscribe(&session, &name);
    hub.expect(&session, &name, coming(Position { epoch: 6, offset: 4 }));
    log.0.add_permits(1);
    let missed = session.lock().ledger().missed();
    Arc::clone(hub).bring_up_all(session.clone()).await;
    assert!(session.lock().patterns().is_stalled(&name) && missed < session.lock().ledger().missed());
    assert_eq!(come(5).outcomes().dropped(), 1, "its client asks");
}
