//! What a client asks by itself is asked again when the server cannot, or does not want to, for now: nothing that the
//! application subscribed to is lost by a refusal that passes, and nothing comes out of order or twice.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bothways::{
    AuthError, Client, ClientOptions, ConnectionEvent, ConnectionEvents, Push, QueueBound, Rate, Server, ServerLimits,
    ServerMessages, Session, SessionOptions, Target, session::TopicOptions,
};

use crate::support::{address, soon, until};

const HOUR: Duration = Duration::from_secs(3600);
const MS: Duration = Duration::from_millis(1);

fn options() -> ClientOptions {
    ClientOptions::new().backoff(MS, MS)
}

async fn client(address: &str, options: ClientOptions) -> (Client, ServerMessages, ConnectionEvents) {
    let (client, messages) = Client::bidirectional(address, options).await.expect("it listens");
    let events = client.events();
    (client, messages, events)
}

fn push(number: usize) -> Push {
    Push::new("News", "say", number.to_string())
}

fn only_session(server: &Server) -> Session {
    server.sessions(&Target::everyone()).expect("no topic").pop().expect("there is one")
}

fn number(message: &bothways::ServerMessage) -> usize {
    let text = String::from_utf8(message.payload().expect("not packed").to_vec()).expect("a text");
    text.parse().expect("a number")
}

/// What has come by now of a topic.
fn numbers(messages: &mut ServerMessages, topic: &str) -> Vec<usize> {
    let mut numbers = Vec::new();
    while let Some(message) = messages.try_next() {
        if message.topic().as_deref() == Some(topic) {
            numbers.push(number(&message));
        }
    }
    numbers
}

/// What was told of topics by now: refusals, those for good, and how often it is subscribed again with and without a gap.
async fn told(events: &mut ConnectionEvents) -> [usize; 4] {
    let mut told = [0; 4];
    while let Ok(Some(event)) = tokio::time::timeout(MS, events.next()).await {
        match event {
            ConnectionEvent::SubscriptionLost { for_good, .. } => told[usize::from(for_good)] += 1,
            ConnectionEvent::Resubscribed { recovered, .. } => told[if recovered { 3 } else { 2 }] += 1,
            _ => {}
        }
    }
    told
}

/// A hook that refuses, or takes its time.
#[derive(Clone, Default)]
struct Hook {
    refuses: Arc<AtomicBool>,
    is_slow: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
}

impl Hook {
    fn options(&self, only: &'static str) -> TopicOptions {
        let hook = self.clone();
        TopicOptions::new().history(1000, HOUR).authorize(move |request| {
            let (hook, is_meant) = (hook.clone(), request.pattern.starts_with(only));
            async move {
                hook.asked.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(if hook.is_slow.load(Ordering::Relaxed) { 600 * MS } else { 20 * MS }).await;
                if is_meant && hook.refuses.load(Ordering::Relaxed) { Err("the user database is down") } else { Ok(()) }
            }
        })
    }
}

/// A session is lost while messages come to one of many topics, which a pattern covers too: all of them come, in order
/// and once, and that is said.
#[tokio::test(start_paused = true)]
async fn a_topic_that_a_pattern_covers_too_goes_on_in_order() {
    for pattern in ["a.*", ">", "a.>"] {
        let server = Server::builder().topic(">", Hook::default().options("a")).expect("a pattern").build();
        let listening = server.listen(&address()).await.expect("a free name");
        let (ann, mut messages, mut events) = client(listening.address(), options()).await;
        ann.subscribe(pattern).await.expect("let in");
        for number in 0..100 {
            ann.subscribe(&format!("a.t{number:03}")).await.expect("let in");
        }
        ann.subscribe("a.zz").await.expect("let in");
        let mut got = Vec::new();
        for number in 0..300 {
            server.publish("a.zz", &push(number)).expect("small");
            if number == 50 {
                only_session(&server).end("a test");
            }
            tokio::time::sleep(3 * MS).await;
            got.extend(numbers(&mut messages, "a.zz"));
        }
        tokio::time::sleep(HOUR).await;
        got.extend(numbers(&mut messages, "a.zz"));
        assert_eq!(got, (0..300).collect::<Vec<_>>(), "{pattern}");
        // A pattern has no history.
        assert_eq!(told(&mut events).await, [0, 0, 1, 101], "{pattern}");
    }
}

/// While a topic is refused, a pattern brings its messages. What was missed before them is asked for all the same.
#[tokio::test(start_paused = true)]
async fn what_a_pattern_brings_moves_no_position_that_is_still_asked_from() {
    let hook = Hook::default();
    let server = Server::builder().topic("a.*", hook.options("a.zz")).expect("a pattern").build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, mut messages, mut events) = client(listening.address(), options()).await;
    for topic in ["a.*", "a.zz"] {
        ann.subscribe(topic).await.expect("let in");
    }
    let mut got = Vec::new();
    hook.refuses.store(true, Ordering::Relaxed);
    only_session(&server).end("a test");
    for number in 0..1000 {
        server.publish("a.zz", &push(number)).expect("small");
        tokio::time::sleep(3 * MS).await;
        got.extend(numbers(&mut messages, "a.zz"));
    }
    assert!(got[0] != 0 && got.len() < 1000, "the first ones are missing");
    assert_eq!(told(&mut events).await, [1, 0, 1, 0]);
    hook.refuses.store(false, Ordering::Relaxed);
    tokio::time::sleep(HOUR).await;
    got.extend(numbers(&mut messages, "a.zz"));
    got.sort_unstable();
    assert_eq!(got, (0..1000).collect::<Vec<_>>(), "all of them, and once");
    assert_eq!(told(&mut events).await, [0, 0, 0, 1]);
}

/// An application that subscribes by itself when its session is lost gets what it missed all the same.
#[tokio::test(start_paused = true)]
async fn an_application_that_subscribes_again_misses_nothing() {
    for wait in [0, 5, 30] {
        let server = Server::builder().topic("a.*", Hook::default().options("a")).expect("a pattern").build();
        let listening = server.listen(&address()).await.expect("a free name");
        let (ann, mut messages, mut events) = client(listening.address(), options()).await;
        for number in 0..100 {
            ann.subscribe(&format!("a.t{number:03}")).await.expect("let in");
        }
        ann.subscribe("a.zz").await.expect("let in");
        let (again, mut lost) = (ann.clone(), ann.events());
        let subscribes = tokio::spawn(async move {
            while !matches!(soon(lost.next()).await, Some(ConnectionEvent::SessionLost { .. })) {}
            tokio::time::sleep(wait * MS).await;
            again.subscribe("a.zz").await
        });
        only_session(&server).end("a test");
        let mut got = Vec::new();
        for number in 0..100 {
            server.publish("a.zz", &push(number)).expect("small");
            tokio::time::sleep(3 * MS).await;
            got.extend(numbers(&mut messages, "a.zz"));
        }
        soon(subscribes).await.expect("no panic").expect("let in");
        assert_eq!(got, (0..100).collect::<Vec<_>>(), "{wait}");
        assert_eq!(told(&mut events).await, [0, 0, 0, 101], "{wait}");
    }
}

/// A server that starts again subscribes the client by itself, and publishes before the client asks: what was missed is
/// not called recovered.
#[tokio::test(start_paused = true)]
async fn what_another_life_of_a_server_brings_hides_no_loss() {
    let start = || {
        let builder = Server::builder().auth(|request| {
            if request.is_hello()
                && let Some(session) = request.session()
            {
                session.subscribe("a.zz").expect("a topic");
            }
            std::future::ready(Ok::<_, String>(()))
        });
        builder.topic("a.*", Hook::default().options("a")).expect("a pattern").build()
    };
    let server = start();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, mut messages, mut events) = client(listening.address(), options()).await;
    ann.subscribe("a.zz").await.expect("let in");
    server.publish("a.zz", &push(0)).expect("small");
    assert_eq!(number(&soon(messages.next()).await.expect("open")), 0);
    server.shutdown(Duration::ZERO).await;
    let place = listening.address().to_owned();
    drop(listening);

    tokio::time::sleep(10 * MS).await;
    let server = start();
    for number in 1..=20 {
        server.publish("a.zz", &push(number)).expect("small");
    }
    let _listening = server.listen(&place).await.expect("the name is free again");
    for number in 21..=60 {
        server.publish("a.zz", &push(number)).expect("small");
        tokio::time::sleep(MS).await;
    }
    tokio::time::sleep(HOUR).await;
    assert!(numbers(&mut messages, "a.zz").len() < 60);
    assert_eq!(told(&mut events).await, [0, 0, 1, 0]);
}

/// Topics that wait for room keep no place from others, and go on as soon as there is room.
#[tokio::test(start_paused = true)]
async fn what_waits_for_room_holds_nobody_up() {
    let builder = Server::builder()
        .sessions(SessionOptions::new().log(QueueBound::messages(10).bytes(1 << 20)))
        .topic("z", TopicOptions::new().open());
    let builder = builder.expect("a pattern").topic("t.*", Hook::default().options("t")).expect("a pattern");
    let server = builder.build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, mut messages, _events) = client(listening.address(), options()).await;
    let topics: Vec<_> = (0..80).map(|number| format!("t.{number:03}")).collect();
    for topic in &topics {
        ann.subscribe(topic).await.expect("let in");
    }
    ann.subscribe("z").await.expect("open");
    only_session(&server).end("a test");
    for topic in &topics {
        (0..20).for_each(|number| drop(server.publish(topic, &push(number)).expect("small")));
    }
    tokio::time::sleep(8000 * MS).await;
    assert!(only_session(&server).subscriptions().contains(&"z".to_owned()), "it has no history to wait for");

    let began = tokio::time::Instant::now();
    for _ in 0..80 * 20 {
        soon(messages.next()).await.expect("open");
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(60), "{took:?}");
}

/// A session is lost again before a topic was asked for: what nobody owes any more is not called recovered.
#[tokio::test(start_paused = true)]
async fn what_two_lost_sessions_cost_is_not_called_recovered() {
    let hook = Hook::default();
    let server = Server::builder().topic("a.*", hook.options("a.zz")).expect("a pattern").build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, mut messages, mut events) = client(listening.address(), options()).await;
    for topic in ["a.*", "a.zz"] {
        ann.subscribe(topic).await.expect("let in");
    }
    hook.refuses.store(true, Ordering::Relaxed);
    only_session(&server).end("a test");
    for number in 0..200 {
        server.publish("a.zz", &push(number)).expect("small");
        tokio::time::sleep(3 * MS).await;
    }
    assert_eq!(told(&mut events).await, [1, 0, 1, 0]);
    only_session(&server).end("another");
    hook.refuses.store(false, Ordering::Relaxed);
    tokio::time::sleep(HOUR).await;
    let got = numbers(&mut messages, "a.zz");
    assert!(got.len() < 200, "the first ones are missing");
    assert_eq!(told(&mut events).await, [0, 0, 2, 0]);
    assert_eq!(only_session(&server).subscriptions(), ["a.*", "a.zz"]);
}

/// A server that limits frames, a hook that fails, and one that takes longer than calls may: all pass.
#[tokio::test(start_paused = true)]
async fn a_refusal_that_passes_costs_no_subscription() {
    for kind in ["rate", "down", "slow"] {
        let hook = Hook::default();
        let rate = (kind == "rate").then(|| Rate::per_second(50).burst(50));
        let builder = Server::builder().limits(ServerLimits::new().frames_per_connection_rate(rate));
        let server = builder.topic("t.*", hook.options("t")).expect("a pattern").build();
        let listening = server.listen(&address()).await.expect("a free name");
        let (ann, mut messages, mut events) = client(listening.address(), options().timeout(300 * MS)).await;
        for number in 0..200 {
            ann.subscribe(&format!("t.{number:03}")).await.expect("let in");
            tokio::time::sleep(20 * MS).await;
        }
        hook.refuses.store(kind == "down", Ordering::Relaxed);
        hook.is_slow.store(kind == "slow", Ordering::Relaxed);
        only_session(&server).end("a test");
        tokio::time::sleep(2000 * MS).await;
        server.publish("t.007", &push(7)).expect("small");
        hook.refuses.store(false, Ordering::Relaxed);
        hook.is_slow.store(false, Ordering::Relaxed);
        tokio::time::sleep(HOUR).await;
        assert_eq!(only_session(&server).subscriptions().len(), 200, "{kind}");
        assert_eq!(numbers(&mut messages, "t.007"), [7], "{kind}");
        assert_eq!(told(&mut events).await, [0, 0, 0, 200], "{kind}");
    }
}

/// A server that refuses is asked slowly, for as long as the application wants the topic.
#[tokio::test(start_paused = true)]
async fn who_refuses_is_asked_slowly() {
    let hook = Hook::default();
    let server = Server::builder().topic("t", hook.options("t")).expect("a pattern").build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, _messages, mut events) = client(listening.address(), options()).await;
    ann.subscribe("t").await.expect("let in");
    hook.refuses.store(true, Ordering::Relaxed);
    only_session(&server).end("a test");
    tokio::time::sleep(HOUR).await;
    assert_eq!(told(&mut events).await, [1, 0, 0, 0], "it is told once");
    let asked = hook.asked.load(Ordering::Relaxed);
    assert!((60..=130).contains(&asked), "{asked} times in an hour");
    ann.unsubscribe("t").await.expect("connected");
    tokio::time::sleep(HOUR).await;
    assert!(hook.asked.load(Ordering::Relaxed) <= asked + 1);
    assert!(only_session(&server).subscriptions().is_empty());
}

/// A refusal while a client asks for what a gap cost it ends no subscription that it has.
#[tokio::test(start_paused = true)]
async fn a_refusal_while_a_gap_is_recovered_costs_nothing() {
    let hook = Hook::default();
    let builder = Server::builder().sessions(SessionOptions::new().log(QueueBound::messages(3).bytes(1 << 20)));
    let server = builder.topic("t.*", hook.options("t.0")).expect("a pattern").build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, mut messages, mut events) = client(listening.address(), options()).await;
    for topic in ["t.0", "t.1"] {
        ann.subscribe(topic).await.expect("let in");
    }
    for number in 0..6 {
        server.publish("t.0", &push(number)).expect("small");
    }
    hook.refuses.store(true, Ordering::Relaxed);
    tokio::time::sleep(20 * MS).await;
    let mut got = numbers(&mut messages, "t.0");
    tokio::time::sleep(10_000 * MS).await;
    got.extend(numbers(&mut messages, "t.0"));
    assert_eq!(got, [0, 1, 2]);
    assert_eq!(only_session(&server).subscriptions(), ["t.0", "t.1"]);
    server.publish("t.0", &push(6)).expect("small");
    hook.refuses.store(false, Ordering::Relaxed);
    while got.len() < 7 {
        got.push(number(&soon(messages.next()).await.expect("open")));
    }
    assert_eq!(got, (0..7).collect::<Vec<_>>());
    tokio::time::sleep(HOUR).await;
    assert_eq!(told(&mut events).await, [0, 0, 0, 1]);
}

/// What the application unsubscribed from while it was away is given up, though the server is too busy at first.
#[tokio::test(start_paused = true)]
async fn who_unsubscribed_while_away_asks_a_busy_server_again() {
    let is_busy = Arc::new(AtomicBool::new(true));
    let busy = Arc::clone(&is_busy);
    let builder = Server::builder().auth(move |request| {
        let refused = request.service_method() == "Unsubscribe" && busy.load(Ordering::Relaxed);
        std::future::ready(match refused {
            true => Err(AuthError::not_now("the user database is down", Duration::from_secs(1))),
            false => Ok(()),
        })
    });
    let server = builder.topic("t", TopicOptions::new().open()).expect("a pattern").build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, _messages, _events) = client(listening.address(), options().connection_wait(Duration::ZERO)).await;
    ann.subscribe("t").await.expect("open");
    let session = only_session(&server);
    ann.connection().expect("up").close();
    until(|| session.connection().is_none()).await;
    ann.unsubscribe("t").await.expect_err("it is away");
    tokio::time::sleep(10_000 * MS).await;
    assert_eq!((session.generation(), session.subscriptions().len()), (2, 1), "the same session");
    is_busy.store(false, Ordering::Relaxed);
    until(|| session.subscriptions().is_empty()).await;
}

/// Two clones ask for the opposite at once, and the server takes longer for what came first: what was asked last counts,
/// at the server and at the client.
#[tokio::test(start_paused = true)]
async fn what_is_asked_last_of_a_topic_counts() {
    let builder = Server::builder().auth(|request| async move {
        tokio::time::sleep(if request.service_method() == "Unsubscribe" { 300 * MS } else { MS }).await;
        Ok::<_, String>(())
    });
    let server = builder.topic("*", TopicOptions::new().open()).expect("a pattern").build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, mut messages, _events) = client(listening.address(), options()).await;
    ann.subscribe("a").await.expect("open");
    let clone = ann.clone();
    let (first, second) = tokio::join!(ann.unsubscribe("a"), async {
        tokio::time::sleep(20 * MS).await;
        clone.subscribe("a").await
    });
    first.expect("connected");
    second.expect("open");
    assert_eq!(only_session(&server).subscriptions(), ["a"]);
    server.publish("a", &push(1)).expect("small");
    assert_eq!(number(&soon(messages.next()).await.expect("it is there")), 1);

    let (first, second) = tokio::join!(clone.subscribe("b"), ann.unsubscribe("b"));
    first.expect("open");
    second.expect("connected");
    assert_eq!(only_session(&server).subscriptions(), ["a"]);
    only_session(&server).end("a test");
    tokio::time::sleep(1000 * MS).await;
    assert_eq!(only_session(&server).subscriptions(), ["a"], "in the next session too");
}

/// The session whose client is there. A session whose Welcome was cut off waits for nobody.
fn connected(server: &Server) -> Session {
    let mut sessions = server.sessions(&Target::everyone()).expect("no topic");
    sessions.retain(|session| session.connection().is_some());
    assert_eq!(sessions.len(), 1);
    sessions.remove(0)
}

/// A small generator of its own: the same orders in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// Whatever order clones subscribe and unsubscribe in, while connections are cut, sessions are lost and the hook takes
/// any time: the server has what the application was told last, and so has the next session.
#[tokio::test(start_paused = true)]
async fn the_server_has_what_the_application_was_told_last() {
    let dice = Arc::new(std::sync::Mutex::new(Dice(7)));
    let of_hook = Arc::clone(&dice);
    let builder = Server::builder().auth(move |_| {
        let takes = of_hook.lock().expect("no panic").below(60);
        async move {
            tokio::time::sleep(MS * u32::try_from(takes).expect("small")).await;
            Ok::<_, String>(())
        }
    });
    let server = builder.topic("*", TopicOptions::new().open()).expect("a pattern").build();
    let listening = server.listen(&address()).await.expect("a free name");
    let roll = |sides| dice.lock().expect("no panic").below(sides);
    for round in 0..150 {
        let (ann, _messages, _events) = client(listening.address(), options()).await;
        let mut asked = tokio::task::JoinSet::new();
        let topics = ["a", "b", "c"];
        let ask = |asked: &mut tokio::task::JoinSet<()>, topic: &'static str, subscribes: bool| {
            let ann = ann.clone();
            // Tasks of one thread run in the order in which they were made.
            asked.spawn(async move {
                let _ = if subscribes { ann.subscribe(topic).await.map(|_| ()) } else { ann.unsubscribe(topic).await };
            });
        };
        for _ in 0..30 {
            match roll(10) {
                0 => drop(ann.connection().map(|connection| connection.close())),
                1 => server.sessions(&Target::everyone()).expect("no topic").iter().for_each(|all| all.end("a test")),
                2 | 3 => tokio::time::sleep(MS * u32::try_from(roll(40)).expect("small")).await,
                _ => {
                    let topic = topics[usize::try_from(roll(3)).expect("small")];
                    ask(&mut asked, topic, roll(2) == 0);
                }
            }
        }
        // The last word, which is asked until it is answered, beside whatever is still under way: all of that has been
        // asked before.
        tokio::time::sleep(MS).await;
        let mut expected = Vec::new();
        for topic in topics {
            if roll(2) == 0 {
                expected.push(topic);
                while soon(ann.subscribe(topic)).await.is_err() {}
            } else {
                while soon(ann.unsubscribe(topic)).await.is_err() {}
            }
        }
        soon(asked.join_all()).await;
        tokio::time::sleep(5000 * MS).await;
        assert_eq!(connected(&server).subscriptions(), expected, "round {round}");
        connected(&server).end("a test");
        tokio::time::sleep(5000 * MS).await;
        assert_eq!(connected(&server).subscriptions(), expected, "round {round}, in the next session");
        ann.close();
        until(|| server.sessions(&Target::everyone()).expect("no topic").is_empty()).await;
    }
}

/// The application unsubscribes and subscribes again while the client itself asks for the topic: what it has then is the
/// later subscription, also after the next lost connection and the next lost session.
#[tokio::test(start_paused = true)]
async fn an_unsubscription_while_the_client_asks_again_costs_the_next_one_nothing() {
    let hook = Hook::default();
    let server = Server::builder().topic("a", hook.options("no")).expect("a pattern").build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, mut messages, mut events) = client(listening.address(), options()).await;
    ann.subscribe("a").await.expect("let in");

    hook.is_slow.store(true, Ordering::Relaxed);
    let asked = hook.asked.load(Ordering::Relaxed);
    only_session(&server).end("a test");
    until(|| asked < hook.asked.load(Ordering::Relaxed)).await;
    ann.unsubscribe("a").await.expect("it is there");
    ann.subscribe("a").await.expect("let in");
    hook.is_slow.store(false, Ordering::Relaxed);
    tokio::time::sleep(1000 * MS).await;
    assert_eq!(told(&mut events).await, [0; 4], "nothing was lost, and nothing restored");

    let session = only_session(&server);
    ann.connection().expect("up").close();
    until(|| session.generation() == 2 && session.connection().is_some()).await;
    tokio::time::sleep(1000 * MS).await;
    assert_eq!(session.subscriptions(), ["a"], "after a lost connection");
    session.end("a test");
    tokio::time::sleep(1000 * MS).await;
    assert_eq!(only_session(&server).subscriptions(), ["a"], "after a lost session");
    server.publish("a", &push(7)).expect("small");
    let message = soon(messages.next()).await.expect("it is there");
    assert_eq!(number(&message), 7);
}

/// What is fired at a topic with history moves its position, too: after a lost session it does not come again.
#[tokio::test(start_paused = true)]
async fn what_was_fired_at_a_topic_does_not_come_again() {
    let server = Server::builder().topic("a.*", Hook::default().options("a")).expect("a pattern").build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (ann, mut messages, mut events) = client(listening.address(), options()).await;
    ann.subscribe("a.zz").await.expect("let in");
    let (mut got, mut expected) = (Vec::new(), Vec::new());
    for round in 0..4 {
        for number in 10 * round..10 * round + 4 {
            let fired = number % 4 != round;
            let class = if fired { bothways::Class::Fire } else { bothways::Class::default() };
            server.publish("a.zz", &push(number).class(class)).expect("small");
            expected.push(number);
            tokio::time::sleep(MS).await;
        }
        got.extend(numbers(&mut messages, "a.zz"));
        only_session(&server).end("a test");
        tokio::time::sleep(HOUR).await;
        got.extend(numbers(&mut messages, "a.zz"));
    }
    assert_eq!(got, expected);
    assert_eq!(told(&mut events).await[2], 0, "nothing was missing");
}
