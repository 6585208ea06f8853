//! Applications on Go's unmodified library that opt in by the helper of `go/bothways`: a Rust server calls them, and
//! they miss nothing when their connection is lost.

use std::time::Duration;

use bothways::{
    CallError, CallOptions, Caller, Limits, Push, QueueBound, Request, Response, Server, ServerBuilder, Session,
    SessionOptions, Stage, Target,
    codec::Raw,
    server::Listening,
    session::{Eviction, Failure, TopicOptions},
};
use bothways_interop::{
    LONG,
    app::App,
    contract::{Args, Reply},
    go::{Go, go},
    until, within,
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// A server at which a client becomes the user whose name is its token, and joins topics.
async fn server() -> (Server, Listening) {
    serve(Server::builder()).await
}

async fn serve(builder: ServerBuilder) -> (Server, Listening) {
    let server = builder
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
            session.subscribe(&pattern).expect("a pattern");
            std::future::ready(bothways::Reply::ok(""))
        })
        .build();
    let listening = server.listen("tcp@127.0.0.1:0").await.expect("a port is free");
    (server, listening)
}

fn start(go: Go, listening: &Listening, arguments: &[&str]) -> App {
    App::go(go, listening.address(), arguments)
}

/// The application of user `ann`, and its session.
async fn of_ann(go: Go, server: &Server, listening: &Listening, arguments: &[&str]) -> (App, Session) {
    let mut app = start(go, listening, &[&["-token", "ann"], arguments].concat());
    assert_eq!(app.next("connected").await["lost"], "");
    let session = server.sessions(&Target::user("ann")).expect("no topic").remove(0);
    (app, session)
}

async fn ask(session: &Session, method: &str, args: Args, limit: Duration) -> Result<Reply, CallError> {
    let options = CallOptions::new().timeout(limit);
    let reply: Response<Reply> = within(LONG, method, session.call_typed("Device", method, &args, options)).await?;
    Ok(reply.value)
}

fn asking(session: &Session, method: &'static str, limit: Duration) -> JoinHandle<Result<Reply, CallError>> {
    let session = session.clone();
    tokio::spawn(async move { ask(&session, method, Args { a: 500, b: 0 }, limit).await })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_go_application_answers_its_server() {
    let Some(go) = go() else { return };
    let (server, listening) = server().await;
    let (app, session) = of_ann(go, &server, &listening, &[]).await;
    let reply = ask(&session, "Mul", Args { a: 6, b: 7 }, LONG).await.expect("it answers");
    assert_eq!(reply, Reply { c: 42 });
    let error = ask(&session, "Fail", Args { a: 0, b: 0 }, LONG).await.expect_err("it fails");
    assert_eq!(error.remote_text(), Some("the device is busy"));
    let error = ask(&session, "Fly", Args { a: 0, b: 0 }, LONG).await.expect_err("it has said what it handles");
    assert!(matches!(error, CallError::NotSupported), "{error}");

    let together = (0..500).map(|a| {
        let session = session.clone();
        tokio::spawn(async move { ask(&session, "Mul", Args { a, b: 3 }, LONG).await.map(|reply| reply.c) })
    });
    for (a, answered) in together.collect::<Vec<_>>().into_iter().enumerate() {
        assert_eq!(answered.await.expect("no panic").expect("it answers"), 3 * a as i64);
    }
    // The connection of the session is one of calls without a session's id too.
    let connection = session.connection().expect("it is connected");
    for c in [2, 4] {
        let reply: Response<Reply> =
            connection.call_typed("Device", "Mul", &Args { a: c, b: 1 }, CallOptions::new()).await.expect("it answers");
        assert_eq!(reply.value, Reply { c });
    }
    app.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_ends_a_call_at_both_ends() {
    let Some(go) = go() else { return };
    let (server, listening) = server().await;
    let (mut app, session) = of_ann(go, &server, &listening, &[]).await;
    let limit = Duration::from_millis(300);
    let call = asking(&session, "Wait", limit);
    app.next("waiting").await;
    assert!(matches!(call.await.expect("no panic"), Err(CallError::TimedOut(after)) if after == limit));
    // By its own clock or by the server's word, whichever is first.
    app.next("given-up").await;
    assert_eq!(ask(&session, "Mul", Args { a: 1, b: 1 }, LONG).await.expect("it answers"), Reply { c: 1 });
    app.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_given_up_is_cancelled() {
    let Some(go) = go() else { return };
    let (server, listening) = server().await;
    let (mut app, session) = of_ann(go, &server, &listening, &[]).await;
    let call = asking(&session, "Wait", LONG);
    app.next("waiting").await;
    call.abort();
    assert_eq!(app.next("given-up").await["why"], "context canceled");
    assert_eq!(session.connection().expect("it is connected").stats().calls_pending, 0);
    app.end().await;
}

/// The connection breaks three times with pushes on their way, and once the server ends it: all come, once and in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_go_application_misses_nothing() {
    const PUSHES: u64 = 1000;
    const CUTS: u64 = 4;
    let Some(go) = go() else { return };
    // So small a log that an application which does not come back gets no further than 50 pushes.
    let (server, listening) =
        serve(Server::builder().sessions(SessionOptions::new().log(QueueBound::messages(50).bytes(1 << 20)))).await;
    let (mut app, session) = of_ann(go, &server, &listening, &["-delay", "1ms"]).await;
    let pushing = tokio::spawn({
        let session = session.clone();
        async move {
            let mut receipts = Vec::new();
            for number in 0..PUSHES {
                let push = Push::new("Chat", "say", number.to_string());
                receipts.push(session.push_within(LONG, &push).await.expect("small"));
            }
            receipts
        }
    });
    let (mut number, mut came_back, mut cut_at) = (0, 0, Some(70));
    while number < PUSHES {
        let said = app.any().await;
        if said["event"] == "connected" {
            assert_eq!(said["lost"], "", "it is the same session");
            came_back += 1;
            cut_at = (came_back < CUTS).then_some(number + 70);
            continue;
        }
        assert_eq!((&said["text"], &said["offset"]), (&json!(number.to_string()), &json!(number + 1)), "{said}");
        if cut_at == Some(number) {
            match came_back + 1 {
                CUTS => session.connection().expect("it came back").close(),
                _ => app.tell("cut").await,
            }
        }
        number += 1;
    }
    for receipt in pushing.await.expect("no panic") {
        let outcomes = within(LONG, "the acknowledgement", receipt.handled()).await;
        assert_eq!(outcomes.at(Stage::Handled), 1);
    }
    assert_eq!((came_back, session.generation()), (CUTS, CUTS + 1));
    assert_eq!(server.sessions(&Target::user("ann")).expect("no topic"), [session]);
    app.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_runs_once_across_a_lost_connection() {
    let Some(go) = go() else { return };
    let (server, listening) = server().await;
    let (mut app, session) = of_ann(go, &server, &listening, &[]).await;
    let call = asking(&session, "Count", LONG);
    app.next("counting").await;
    app.tell("cut").await;
    app.next("connected").await;
    assert_eq!(call.await.expect("no panic").expect("it answers"), Reply { c: 1 });
    assert_eq!(session.generation(), 2);
    // Another call is another run.
    let call = asking(&session, "Count", LONG);
    app.next("counting").await;
    assert_eq!(call.await.expect("no panic").expect("it answers"), Reply { c: 2 });
    app.end().await;
}

/// A session that is gone is told to the application, which goes on with a new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_go_application_hears_that_its_session_is_gone() {
    let Some(go) = go() else { return };
    let (server, listening) = server().await;
    let (mut app, session) = of_ann(go, &server, &listening, &[]).await;
    session.push(&Push::new("Chat", "say", "before")).expect("small");
    assert_eq!(app.next("push").await["offset"], 1);
    session.end("maintenance");
    assert_eq!(app.next("connected").await["lost"], "ended");
    let fresh = server.sessions(&Target::user("ann")).expect("no topic").remove(0);
    assert_ne!(fresh.id(), session.id());
    let receipt = fresh.push(&Push::new("Chat", "say", "after")).expect("small");
    let push = app.next("push").await;
    assert_eq!((&push["text"], &push["offset"]), (&json!("after"), &json!(1)));
    assert_eq!(within(LONG, "the acknowledgement", receipt.handled()).await.at(Stage::Handled), 1);
    app.end().await;
}

/// An application that was sent away is not in another session a moment later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_go_application_that_was_sent_away_stays_away() {
    let Some(go) = go() else { return };
    let (server, listening) = server().await;
    let (mut app, session) = of_ann(go, &server, &listening, &[]).await;
    session.evict(Eviction::Kicked, "it is not wanted");
    assert_eq!(app.next("connected").await["lost"], "kicked");
    assert_eq!(app.next("ended").await["why"], "the server has sent the application away");
    // It has waited for the answer to its Leave.
    assert_eq!(server.sessions(&Target::everyone()).expect("no topic"), []);
    app.end().await;
}

/// It ends, and is not taken for somebody who is away and may come back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_go_application_that_ends_leaves() {
    let Some(go) = go() else { return };
    let (server, listening) = server().await;
    let (mut app, session) = of_ann(go, &server, &listening, &[]).await;
    let receipt = session.push(&Push::new("Chat", "say", "hi")).expect("small");
    app.next("push").await;
    app.end().await;
    assert_eq!(within(LONG, "the acknowledgement", receipt.handled()).await.at(Stage::Handled), 1);
    assert_eq!(server.sessions(&Target::everyone()).expect("no topic"), []);
}

/// The server is not there yet when the application begins, and not for a while when it is started again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_go_application_waits_for_its_server() {
    let Some(go) = go() else { return };
    let (server, listening) = server().await;
    let address = listening.address().to_owned();
    server.shutdown(Duration::ZERO).await;
    drop((server, listening));
    let mut app = App::go(go, &address, &["-token", "ann"]);
    let why = app.next("failed").await["why"].as_str().expect("a text").to_owned();
    assert!(why.contains("refused"), "{why}");
    for _ in 0..2 {
        let server = Server::builder().build();
        let _listening = server.listen(&address).await.expect("the port is still free");
        within(LONG, "the application", async { while app.any().await["event"] != "connected" {} }).await;
        server.shutdown(Duration::ZERO).await;
        within(LONG, "the failure", async { while app.any().await["event"] != "failed" {} }).await;
    }
    app.process.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_go_application_hears_that_its_token_is_refused() {
    let Some(go) = go() else { return };
    let (_server, listening) = server().await;
    let mut app = start(go, &listening, &[]);
    assert_eq!(app.next("failed").await["why"], "a name is needed");
    app.process.kill().await;
}

/// What a handler of the application does wrong, and what it is sent wrongly, fails that one call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_goes_wrong_does_not_end_a_go_application() {
    let Some(go) = go() else { return };
    let (server, listening) = server().await;
    for (kind, methods) in [(&[][..], &["Panic", "Chan", "Big"][..]), (&["-minimal"], &[])] {
        let (app, session) = of_ann(go, &server, &listening, kind).await;
        let raw = Raw::from(b"hello".to_vec());
        let call = session.call_typed::<_, Reply>("Device", "Mul", &raw, CallOptions::new().timeout(LONG));
        let error = within(LONG, "the answer", call).await.expect_err("it is no Args");
        assert!(error.remote_text().is_some_and(|text| text.contains("serialize type 0")), "{error}");
        for method in methods {
            let error = ask(&session, method, Args { a: 9 << 20, b: 0 }, LONG).await.expect_err("it goes wrong");
            let text = error.remote_text().unwrap_or_default();
            let expected =
                ["the handler of Device.Panic panicked", "unsupported chan int", "above the limit of 8323072"];
            assert!(expected.iter().any(|expected| text.contains(expected)), "{method}: {error}");
        }
        assert_eq!(ask(&session, "Mul", Args { a: 6, b: 7 }, LONG).await.expect("it answers"), Reply { c: 42 });
        assert_eq!(session.generation(), 1, "its connection goes on");
        app.end().await;
        session.end("the test goes on");
    }
}

/// A server whose limit is smaller than the application thinks: the call fails when its answer has cost three connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_above_the_limit_does_not_come_for_ever() {
    let Some(go) = go() else { return };
    let limits = Limits::default().body_bytes_max(64 << 10);
    let (server, listening) = serve(Server::builder().limits(limits)).await;
    let (mut app, session) = of_ann(go, &server, &listening, &[]).await;
    let error = ask(&session, "Big", Args { a: 100_000, b: 0 }, LONG).await.expect_err("it is too large");
    assert!(error.remote_text().is_some_and(|text| text.contains("3 answers of 100")), "{error}");
    for _ in 0..3 {
        assert_eq!(app.next("connected").await["lost"], "");
    }
    app.end().await;
}

/// A receipt is never better than the truth: what comes behind a failure does not cover it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_that_a_go_application_fails_counts_as_failed() {
    const PUSHES: usize = 400;
    let Some(go) = go() else { return };
    let (server, listening) = server().await;
    for (kind, worst) in [(&[][..], "panic"), (&["-minimal"], "fail")] {
        let (mut app, session) = of_ann(go, &server, &listening, kind).await;
        let texts = |number: usize| ["fine", "fail", "fine", worst][number % 4];
        let pushed = (0..PUSHES).map(|number| Push::new("Chat", "say", texts(number)));
        let receipts: Vec<_> = pushed.map(|push| session.push(&push).expect("small")).collect();
        for (number, receipt) in receipts.into_iter().enumerate() {
            let expected = match texts(number) {
                "fine" => Stage::Handled,
                "fail" => Stage::Failed(Failure::Error),
                _ => Stage::Failed(Failure::Panicked),
            };
            assert_eq!(app.next("push").await["text"], texts(number));
            let outcomes = within(LONG, "the acknowledgement", receipt.handled()).await;
            assert_eq!(outcomes.at(expected), 1, "{number}");
        }
        app.end().await;
        session.end("the test goes on");
    }
}

/// An application that copes with its connection by itself needs little of the helper: it is called and answers,
/// and what it has handled is known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_go_application_needs_little_to_be_called() {
    let Some(go) = go() else { return };
    let (server, listening) = server().await;
    let (mut app, session) = of_ann(go, &server, &listening, &["-minimal"]).await;
    assert_eq!(ask(&session, "Mul", Args { a: 6, b: 7 }, LONG).await.expect("it answers"), Reply { c: 42 });
    let error = ask(&session, "Fly", Args { a: 0, b: 0 }, LONG).await.expect_err("there is none");
    assert_eq!(error.remote_text(), Some("only Mul"));
    for offset in 1..=3 {
        let receipt = session.push(&Push::new("Chat", "say", "hi")).expect("small");
        assert_eq!(app.next("push").await["offset"], offset);
        assert_eq!(within(LONG, "the acknowledgement", receipt.handled()).await.at(Stage::Handled), 1);
    }
    app.end().await;
}

/// Topics of each kind: `news` keeps a hundred messages, `short` three, `price` the newest; `room` shows who is there.
fn with_topics() -> ServerBuilder {
    let history = |messages| TopicOptions::new().open().history(messages, Duration::from_secs(600));
    let topics = [
        ("news.>", history(100)),
        ("short", history(3)),
        ("price", TopicOptions::new().open().latest_only()),
        ("room", TopicOptions::new().open().presence(true)),
        ("secret", TopicOptions::new()),
    ];
    topics
        .into_iter()
        .fold(Server::builder(), |builder, (pattern, options)| builder.topic(pattern, options).expect("a pattern"))
}

fn publish(server: &Server, topic: &str, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        server.publish(topic, &Push::new("News", "say", number.to_string())).expect("a topic");
    }
}

/// Subscribes, and says what came of it: recovered, and the position.
async fn subscribe(app: &mut App, topic: &str, from: Option<(u64, u64)>) -> (bool, u64, u64) {
    let from = from.map(|(epoch, offset)| format!(" {epoch} {offset}")).unwrap_or_default();
    app.tell(&format!("subscribe {topic}{from}")).await;
    // What is sent because of it may be there before the answer is.
    let said = app.next_of("subscribed").await;
    let number = |field: &str| said[field].as_u64().expect("a number");
    (said["recovered"].as_bool().expect("yes or no"), number("epoch"), number("offset"))
}

/// The next pushes are those of these numbers in this topic, which are their offsets too.
async fn hears(app: &mut App, topic: &str, epoch: u64, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        let said = app.next_of("push").await;
        assert_eq!(
            (&said["text"], &said["topic"], &said["epoch"], &said["at"]),
            (&json!(number.to_string()), &json!(topic), &json!(epoch), &json!(number)),
            "{said}"
        );
    }
}

/// With the helper or without: a Go application subscribes, and gets what is published from then on. When it subscribes
/// again, and says where it was, it gets what it missed, and nothing else before what is new.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_go_application_subscribes_and_recovers() {
    let Some(go) = go() else { return };
    for kind in [&["-token", "ann"][..], &["-token", "ann", "-minimal"], &["-token", "ann", "-plain"]] {
        let (server, listening) = serve(with_topics()).await;
        publish(&server, "news.sport", 1..=2);
        let mut app = start(go, &listening, kind);
        if !kind.contains(&"-plain") {
            app.next("connected").await;
        }
        let (recovered, epoch, offset) = subscribe(&mut app, "news.sport", None).await;
        assert_eq!((recovered, offset), (false, 2), "it asked for nothing");
        publish(&server, "news.sport", 3..=5);
        hears(&mut app, "news.sport", epoch, 3..=5).await;

        app.tell("unsubscribe news.sport").await;
        app.next("unsubscribed").await;
        publish(&server, "news.sport", 6..=20);
        assert_eq!(subscribe(&mut app, "news.sport", Some((epoch, 5))).await, (true, epoch, 5));
        publish(&server, "news.sport", 21..=22);
        hears(&mut app, "news.sport", epoch, 6..=22).await;
        // Again from the same place, on the same session: nothing comes twice.
        assert_eq!(subscribe(&mut app, "news.sport", Some((epoch, 5))).await, (true, epoch, 5));
        publish(&server, "news.sport", 23..=23);
        hears(&mut app, "news.sport", epoch, 23..=23).await;
        app.end().await;
    }
}

/// The process ends and with it its session. The next one begins where it was: by the epoch and the offset that it
/// noted, in a session of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_go_application_recovers_what_was_published_while_it_did_not_run() {
    let Some(go) = go() else { return };
    let (server, listening) = serve(with_topics()).await;
    let (mut app, first) = of_ann(go, &server, &listening, &[]).await;
    let (_, epoch, _) = subscribe(&mut app, "news.sport", None).await;
    publish(&server, "news.sport", 1..=10);
    hears(&mut app, "news.sport", epoch, 1..=10).await;
    app.process.kill().await;
    until("the server notices", LONG, async || first.connection().is_none()).await;
    first.end("the test is at its second part");
    publish(&server, "news.sport", 11..=60);

    let (mut app, second) = of_ann(go, &server, &listening, &[]).await;
    assert_ne!(first.id(), second.id());
    assert_eq!(subscribe(&mut app, "news.sport", Some((epoch, 10))).await, (true, epoch, 10));
    publish(&server, "news.sport", 61..=62);
    hears(&mut app, "news.sport", epoch, 11..=62).await;
    app.end().await;
}

/// What is not all there any more is not recovered in part, and the answer says so: a position that is too old, and one
/// of another life of the topic.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_go_application_hears_that_it_missed_something() {
    let Some(go) = go() else { return };
    let (server, listening) = serve(with_topics()).await;
    let (mut app, _) = of_ann(go, &server, &listening, &[]).await;
    publish(&server, "short", 1..=10);
    let (_, epoch, _) = subscribe(&mut app, "short", None).await;
    for (from, expected) in [((epoch, 6), (false, epoch, 10)), ((epoch + 1, 9), (false, epoch, 10))] {
        app.tell("unsubscribe short").await;
        app.next("unsubscribed").await;
        assert_eq!(subscribe(&mut app, "short", Some(from)).await, expected);
    }
    publish(&server, "short", 11..=11);
    hears(&mut app, "short", epoch, 11..=11).await;
    app.tell("unsubscribe short").await;
    app.next("unsubscribed").await;
    assert_eq!(subscribe(&mut app, "short", Some((epoch, 8))).await, (true, epoch, 8), "three are kept");
    hears(&mut app, "short", epoch, 9..=11).await;
    app.end().await;
}

/// A connection breaks while a topic is published to, and the session takes its subscriptions along: each message comes
/// once and in order, without another word of the application.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_outlives_a_lost_connection() {
    let Some(go) = go() else { return };
    let (server, listening) = serve(with_topics()).await;
    let (mut app, session) = of_ann(go, &server, &listening, &["-delay", "1ms"]).await;
    let (_, epoch, _) = subscribe(&mut app, "news.sport", None).await;
    for cut in 0..3 {
        let first = cut * 200 + 1;
        publish(&server, "news.sport", first..=first + 199);
        hears(&mut app, "news.sport", epoch, first..=first + 99).await;
        app.tell("cut").await;
        hears(&mut app, "news.sport", epoch, first + 100..=first + 199).await;
        assert_eq!(app.next_of("connected").await["lost"], "");
    }
    assert_eq!(session.generation(), 4);
    app.end().await;
}

/// Patterns have no position; a topic of which the newest counts sends that to each new subscriber; who may not
/// subscribe is told so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_go_application_subscribes_to_every_kind_of_topic() {
    let Some(go) = go() else { return };
    let (server, listening) = serve(with_topics()).await;
    let (mut app, _) = of_ann(go, &server, &listening, &[]).await;
    assert_eq!(subscribe(&mut app, "news.*", None).await, (false, 0, 0));
    publish(&server, "news.art", 1..=2);
    let epoch = {
        let said = app.next_of("push").await;
        assert_eq!((&said["text"], &said["topic"], &said["at"]), (&json!("1"), &json!("news.art"), &json!(1)));
        said["epoch"].as_u64().expect("a number")
    };
    hears(&mut app, "news.art", epoch, 2..=2).await;

    publish(&server, "price", 1..=5);
    let (recovered, epoch, offset) = subscribe(&mut app, "price", None).await;
    assert_eq!((recovered, offset), (false, 4), "the newest is on its way");
    hears(&mut app, "price", epoch, 5..=5).await;

    for (topic, words) in [("secret", "may not subscribe"), ("a..b", "empty segment"), (">", "wider")] {
        app.tell(&format!("subscribe {topic}")).await;
        let why = app.next("refused").await["why"].as_str().expect("a text").to_owned();
        assert!(why.contains(words), "{topic}: {why}");
    }

    subscribe(&mut app, "room", None).await;
    let mut other = start(go, &listening, &["-token", "bob", "-plain"]);
    subscribe(&mut other, "room", None).await;
    let Value::Object(change) = app.next("presence").await else { panic!("it is no object") };
    assert_eq!(
        (&change["topic"], &change["user"], &change["status"]),
        (&json!("room"), &json!("bob"), &json!("online"))
    );
    app.tell("roster room").await;
    let members = app.next("roster").await["members"].clone();
    let users: Vec<_> = members.as_array().expect("a list").iter().map(|member| member["User"].as_str()).collect();
    assert_eq!(users, [Some("ann"), Some("bob")]);
    app.end().await;
    let change = other.next("presence").await;
    assert_eq!((&change["user"], &change["status"]), (&json!("ann"), &json!("offline")), "it has left");
    other.end().await;
}
