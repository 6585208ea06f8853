//! Calls to users with several sessions, and to sessions that lose their connections meanwhile.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bothways::{
    CallError, CallOptions, CallPolicy, Caller, Client, ClientOptions, Connection, Context, ErrorCode, Handler,
    Metadata, Push, PushError, QueueBound, Reply, Request, Router, Server, ServerBuilder, Session, SessionOptions,
    Stage, Target, User, session::DEVICE_LABEL,
};
use bothways_proto::{Capabilities, Header, Message, Seq, SerializeType, Welcome, keys};
use tokio::{sync::mpsc::UnboundedReceiver, task::JoinHandle, time::Instant};

use crate::{
    scripted::{Scripted, ScriptedServer, arrive, claim, control, hello, is_control, reply_to},
    support::{Asked, address, call, call_with, gate, settle, soon, until},
};

/// A token `user/device` makes a client's session one of that user on that device.
fn builder() -> ServerBuilder {
    Server::builder().auth(|request| async move {
        if let (Some((user, device)), Some(session)) = (request.token.split_once('/'), request.session()) {
            session.bind_user(user);
            session.set_label(DEVICE_LABEL, device);
        }
        Ok::<(), String>(())
    })
}

fn options(token: &str) -> ClientOptions {
    ClientOptions::new().auth(token).backoff(Duration::from_millis(1), Duration::from_millis(1))
}

/// A client whose method `Ask` the test answers.
async fn device(server: &Server, address: &str, token: &str) -> (Client, UnboundedReceiver<Asked>) {
    let (handler, asked) = gate();
    (device_with(server, address, token, handler).await, asked)
}

async fn device_with(server: &Server, address: &str, token: &str, handler: impl Handler) -> Client {
    let before = server.stats().connections;
    let handlers = Router::new().handler("T", "Ask", handler);
    let client = Client::with_handlers(address, options(token), handlers).await.expect("it listens");
    until(|| {
        let connections = server.connections();
        before < connections.len() && connections.iter().all(|connection| connection.is_negotiated())
    })
    .await;
    client
}

fn asking(user: User) -> JoinHandle<Result<bytes::Bytes, CallError>> {
    tokio::spawn(async move { call(&user, "Ask", "?").await })
}

async fn next(asked: &mut UnboundedReceiver<Asked>) -> Asked {
    soon(asked.recv()).await.expect("it is asked")
}

/// The first device that succeeds is the reply; the others' handlers are dropped, and one that failed before did
/// not count.
#[tokio::test(start_paused = true)]
async fn the_first_success_is_the_reply_and_the_others_are_cancelled() {
    let server = builder().build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (_phone, mut on_phone) = device(&server, listening.address(), "ann/phone").await;
    let (_desk, mut at_desk) = device(&server, listening.address(), "ann/desk").await;
    let (_watch, mut on_watch) = device(&server, listening.address(), "ann/watch").await;
    let (_bob, mut of_bob) = device(&server, listening.address(), "bob/phone").await;
    let asking = asking(server.user("ann"));
    next(&mut on_phone).await.answer(Reply::error("the phone is locked"));
    let mut on_watch = next(&mut on_watch).await;
    settle().await;
    next(&mut at_desk).await.answer(Reply::ok("yes"));
    assert_eq!(asking.await.expect("no panic").expect("one said yes"), "yes");
    on_watch.dropped().await;
    assert!(of_bob.try_recv().is_err(), "somebody else");
}

/// If no device succeeds, what a handler said is the error, and not that another was overloaded.
#[tokio::test(start_paused = true)]
async fn an_answer_says_more_than_a_failure() {
    let server = builder().build();
    let listening = server.listen(&address()).await.expect("a free name");
    let refuses = |_| std::future::ready(Reply::refused(ErrorCode::Overloaded, "busy"));
    let _desk = device_with(&server, listening.address(), "ann/desk", refuses).await;
    let (_phone, mut on_phone) = device(&server, listening.address(), "ann/phone").await;
    let asking = asking(server.user("ann"));
    let asked = next(&mut on_phone).await;
    settle().await;
    asked.answer(Reply::error("no"));
    let error = asking.await.expect("no panic").expect_err("nobody said yes");
    assert_eq!((error.remote_text(), error.code()), (Some("no"), None));
}

/// Whichever of them comes first.
#[tokio::test(start_paused = true)]
async fn a_failure_after_an_answer_says_no_more() {
    let server = builder().build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (_phone, mut on_phone) = device(&server, listening.address(), "ann/phone").await;
    let (_desk, mut at_desk) = device(&server, listening.address(), "ann/desk").await;
    let asking = asking(server.user("ann"));
    next(&mut on_phone).await.answer(Reply::error("no"));
    settle().await;
    next(&mut at_desk).await.answer(Reply::refused(ErrorCode::Overloaded, "busy"));
    let error = asking.await.expect("no panic").expect_err("nobody said yes");
    assert_eq!((error.remote_text(), error.code()), (Some("no"), None));
}

/// The most recent is the one that connected last; one that is away counts only if all are.
#[tokio::test(start_paused = true)]
async fn the_most_recent_is_who_came_last() {
    let server = builder().build();
    let listening = server.listen(&address()).await.expect("a free name");
    let named = |name: &'static str| move |_: Request| std::future::ready(Reply::ok(name));
    let ann = || server.user("ann").policy(CallPolicy::MostRecent);
    let phone = device_with(&server, listening.address(), "ann/phone", named("phone")).await;
    let desk = device_with(&server, listening.address(), "ann/desk", named("desk")).await;
    assert_eq!(call(&ann(), "Ask", "").await.expect("answered"), "desk");
    // The phone comes back, and so is the last that came.
    phone.connection().expect("it is up").close();
    until(|| server.user("ann").sessions().iter().any(|session| session.generation() == 2)).await;
    assert_eq!(call(&ann(), "Ask", "").await.expect("answered"), "phone");
    phone.close();
    settle().await;
    assert_eq!(call(&ann(), "Ask", "").await.expect("answered"), "desk");
    desk.close();
    settle().await;
    let error = call(&ann(), "Ask", "").await.expect_err("all are away");
    assert!(matches!(error, CallError::NoClient(_)) && error.is_safe_to_retry(), "{error}");
}

/// A quorum is reached with the last success that it needs, and missed with the first failure too many.
#[tokio::test(start_paused = true)]
async fn a_quorum_is_reached_or_missed_as_soon_as_that_is_certain() {
    let server = builder().build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (_a, mut a) = device(&server, listening.address(), "ann/a").await;
    let (_b, mut b) = device(&server, listening.address(), "ann/b").await;
    let (_c, mut c) = device(&server, listening.address(), "ann/c").await;
    let ann = |quorum| server.user("ann").policy(CallPolicy::All { quorum });

    let two = asking(ann(2));
    next(&mut b).await.answer(Reply::ok("b"));
    settle().await;
    assert!(!two.is_finished());
    let mut left = next(&mut a).await;
    next(&mut c).await.answer(Reply::ok("c"));
    assert_eq!(two.await.expect("no panic").expect("two did"), "b", "the reply of the first");
    left.dropped().await;

    // Nobody has time to be asked.
    let none = CallOptions::new().timeout(Duration::ZERO);
    let error = call_with(&ann(0), "Ask", "", none).await.expect_err("there is no time");
    assert!(matches!(error, CallError::NoQuorum { .. }) && error.is_safe_to_retry(), "{error}");

    let every_one = asking(ann(0));
    let mut left = next(&mut a).await;
    next(&mut b).await.answer(Reply::ok("b"));
    settle().await;
    next(&mut c).await.answer(Reply::error("no"));
    match every_one.await.expect("no panic").expect_err("one did not") {
        CallError::NoQuorum { wanted: 3, answered: 1, error, .. } => assert_eq!(error.remote_text(), Some("no")),
        other => panic!("{other}"),
    }
    left.dropped().await;

    // Each was asked, and each has answered: it did run.
    let one = asking(ann(1));
    for asked in [&mut a, &mut b, &mut c] {
        next(asked).await.answer(Reply::error("no"));
        settle().await;
    }
    match one.await.expect("no panic").expect_err("nobody did") {
        error @ CallError::NoQuorum { wanted: 1, answered: 0, .. } => assert!(!error.is_safe_to_retry(), "{error}"),
        other => panic!("{other}"),
    }

    let error = call(&ann(4), "Ask", "").await.expect_err("there are three");
    assert!(matches!(error, CallError::NoClient(_)), "{error}");
    assert!(a.try_recv().is_err(), "nothing was sent");
}

/// A device is found by its label and by its session's number.
#[tokio::test(start_paused = true)]
async fn a_device_is_called_by_its_name() {
    let server = builder().build();
    let listening = server.listen(&address()).await.expect("a free name");
    let named = |name: &'static str| move |_: Request| std::future::ready(Reply::ok(name));
    let _phone = device_with(&server, listening.address(), "ann/phone", named("phone")).await;
    let _desk = device_with(&server, listening.address(), "ann/desk", named("desk")).await;
    let on = |device: &str| server.user("ann").policy(CallPolicy::Device(device.to_owned()));
    assert_eq!(call(&on("phone"), "Ask", "").await.expect("answered"), "phone");
    assert_eq!(call(&on("desk"), "Ask", "").await.expect("answered"), "desk");
    let desk = Target::user("ann").only_labelled(DEVICE_LABEL, "desk");
    let id = server.sessions(&desk).expect("no topic")[0].id();
    assert_eq!(call(&on(&id.to_string()), "Ask", "").await.expect("answered"), "desk");
    let error = call(&on("watch"), "Ask", "").await.expect_err("there is none");
    assert!(matches!(error, CallError::NoClient(_)), "{error}");
}

/// Nobody there and only plain clients there are different errors, and in both nothing is sent.
#[tokio::test(start_paused = true)]
async fn nobody_and_nobody_who_takes_calls_are_different() {
    let server = builder().build();
    let listening = server.listen(&address()).await.expect("a free name");
    let policies =
        [CallPolicy::First, CallPolicy::MostRecent, CallPolicy::All { quorum: 2 }, CallPolicy::Device("x".to_owned())];
    for policy in &policies {
        let error = call(&server.user("ann").policy(policy.clone()), "Ask", "").await.expect_err("nobody");
        assert!(matches!(error, CallError::NoClient(_)) && error.is_safe_to_retry(), "{policy:?}: {error}");
    }
    assert!(server.user("ann").call_all::<_, ()>("T", "Ask", &1, CallOptions::new()).await.expect("1").is_empty());
    let mut plain = Scripted::connect(listening.address()).await;
    until(|| server.connections().len() == 1).await;
    let session = server.sessions(&Target::everyone()).expect("no topic").remove(0);
    session.bind_user("ann");
    session.set_label(DEVICE_LABEL, "x");
    for policy in &policies {
        let error = call(&server.user("ann").policy(policy.clone()), "Ask", "").await.expect_err("plain");
        assert!(matches!(error, CallError::NotSupported), "{policy:?}: {error}");
    }
    plain.hears_nothing().await;
}

/// Each session's outcome stands beside it: success, error, silence, and that it takes no calls.
#[tokio::test(start_paused = true)]
async fn each_session_has_its_outcome() {
    let server = builder().build();
    let listening = server.listen(&address()).await.expect("a free name");
    let says = |reply: Reply| move |_: Request| std::future::ready(reply.clone());
    let yes = Reply::encode(&"yes".to_owned(), SerializeType::MSGPACK);
    let _yes = device_with(&server, listening.address(), "ann/yes", says(yes)).await;
    let _no = device_with(&server, listening.address(), "ann/no", says(Reply::error("no"))).await;
    let (_silent, _asked) = device(&server, listening.address(), "ann/silent").await;
    let plain = Scripted::connect(listening.address()).await;
    until(|| server.connections().len() == 4).await;
    let connection = server.connections().pop().expect("there are four");
    let session = server.sessions(&Target::connection(connection.id())).expect("no topic").remove(0);
    session.bind_user("ann");
    session.set_label(DEVICE_LABEL, "plain");
    let began = Instant::now();
    let options = CallOptions::new().timeout(Duration::from_secs(2));
    let outcomes = server.user("ann").call_all::<_, String>("T", "Ask", &1, options).await.expect("1 can be encoded");
    assert_eq!(began.elapsed(), Duration::from_secs(2));
    let mut seen: Vec<String> = outcomes
        .into_iter()
        .map(|(session, outcome)| {
            let what = match outcome {
                Ok(reply) => reply.value,
                Err(CallError::Remote { text, .. }) => format!("error {text}"),
                Err(CallError::TimedOut(after)) => format!("nothing in {after:?}"),
                Err(error) => error.to_string(),
            };
            format!("{}: {what}", session.label(DEVICE_LABEL).expect("each has one"))
        })
        .collect();
    seen.sort();
    let not_supported = format!("plain: {}", CallError::NotSupported);
    assert_eq!(seen, ["no: error no", &*not_supported, "silent: nothing in 2s", "yes: yes"]);
    drop(plain);
}

/// A client announces what it handles: who does not handle a method is not asked for it, by whatever policy.
#[tokio::test(start_paused = true)]
async fn only_who_handles_a_method_is_called() {
    let server = builder().build();
    let listening = server.listen(&address()).await.expect("a free name");
    let named = |name: &'static str| move |_: Request| std::future::ready(Reply::ok(name));
    let both = Router::new().handler("T", "Ask", named("phone")).handler("T", "Confirm", named("phone"));
    let _phone = Client::with_handlers(listening.address(), options("ann/phone"), both).await.expect("it listens");
    let _desk = device_with(&server, listening.address(), "ann/desk", named("desk")).await;
    let (_stream, _messages) =
        Client::bidirectional(listening.address(), options("ann/wall")).await.expect("it listens");
    until(|| server.user("ann").sessions().len() == 3).await;
    let sessions = server.user("ann").sessions();
    let of = |device: &str| {
        let session = sessions.iter().find(|session| session.label(DEVICE_LABEL).as_deref() == Some(device));
        session.expect("it is connected").clone()
    };
    assert_eq!(of("phone").methods().expect("it said so"), ["T.Ask", "T.Confirm"]);
    assert_eq!(of("desk").methods().expect("it said so"), ["T.Ask"]);
    assert!(of("wall").methods().expect("it said so").is_empty(), "it handles nothing");

    let ann = |policy| server.user("ann").policy(policy);
    let written = || sessions.iter().map(|s| s.connection().expect("up").stats().written_bytes).sum::<u64>();
    assert_eq!(call(&ann(CallPolicy::MostRecent), "Ask", "").await.expect("answered"), "desk");
    for policy in [CallPolicy::First, CallPolicy::MostRecent, CallPolicy::All { quorum: 0 }] {
        assert_eq!(call(&ann(policy), "Confirm", "").await.expect("answered"), "phone");
    }
    settle().await;
    let before = written();
    let error = call(&ann(CallPolicy::All { quorum: 2 }), "Confirm", "").await.expect_err("one handles it");
    assert!(matches!(error, CallError::NoClient(_)), "{error}");
    for policy in [CallPolicy::First, CallPolicy::All { quorum: 1 }, CallPolicy::Device("phone".to_owned())] {
        let error = call(&ann(policy), "Other", "").await.expect_err("nobody handles it");
        assert!(matches!(error, CallError::NotSupported), "{error}");
    }
    let desk = CallPolicy::Device("desk".to_owned());
    assert!(matches!(call(&ann(desk), "Confirm", "").await, Err(CallError::NotSupported)));
    assert!(matches!(call(&of("desk"), "Confirm", "").await, Err(CallError::NotSupported)));
    let connection = of("desk").connection().expect("up");
    assert!(matches!(call(&connection, "Confirm", "").await, Err(CallError::NotSupported)));
    assert_eq!(written(), before, "nobody was asked");
}

/// A client that comes back with other handlers is asked for those; one that is away, for what it handled when it was
/// there. Who says nothing, or names more than is listened to, is asked and answers for itself.
#[tokio::test(start_paused = true)]
async fn the_latest_announcement_counts() {
    let server = builder().build();
    let listening = server.listen(&address()).await.expect("a free name");
    let announces = |text: &str| Metadata::new().with(keys::METHODS, text);
    let (old, welcome) = scripted(listening.address(), announces("T.Ask")).await;
    let session = server.user("ann").sessions().remove(0);
    assert!(matches!(call(&session, "Confirm", "").await, Err(CallError::NotSupported)));

    old.reset();
    until(|| session.connection().is_none()).await;
    assert!(matches!(call(&session, "Confirm", "").await, Err(CallError::NotSupported)));
    let waits = tokio::spawn({
        let session = session.clone();
        async move { call(&session, "Ask", "").await }
    });
    settle().await;

    let pairs = claim(&welcome, 0).with(keys::METHODS, "T.Confirm,Other.Thing");
    let (mut new, welcome) = scripted(listening.address(), pairs).await;
    assert_eq!(session.generation(), 2);
    assert!(matches!(waits.await.expect("no panic"), Err(CallError::NotSupported)), "it is not handled any more");
    let asking = asking_for(&session, "Confirm");
    let request = new.next().await;
    assert_eq!(request.service_method(), "Confirm");
    new.say(reply_to(&request, b"yes")).await;
    assert_eq!(asking.await.expect("no panic").expect("answered"), "yes");

    for said in [claim(&welcome, 0), claim(&welcome, 0).with(keys::METHODS, "x".repeat(4097))] {
        let (mut silent, _) = scripted(listening.address(), said).await;
        let asking = asking_for(&session, "Anything");
        let request = silent.next().await;
        silent.say(reply_to(&request, b"yes")).await;
        assert_eq!(asking.await.expect("no panic").expect("answered"), "yes");
        assert_eq!(session.methods(), None);
    }
}

fn asking_for(session: &Session, method: &'static str) -> JoinHandle<Result<bytes::Bytes, CallError>> {
    let session = session.clone();
    tokio::spawn(async move { call(&session, method, "?").await })
}

/// A call that names no time ends after 30 s, at a user and at a session.
#[tokio::test(start_paused = true)]
async fn no_call_waits_for_ever() {
    let server = builder().build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (_client, mut asked) = device(&server, listening.address(), "ann/phone").await;
    let session = server.user("ann").sessions().remove(0);
    for of_user in [true, false] {
        let began = Instant::now();
        let outcome = match of_user {
            true => call(&server.user("ann"), "Ask", "").await,
            false => call(&session, "Ask", "").await,
        };
        let error = outcome.expect_err("nobody answers");
        assert!(matches!(error, CallError::TimedOut(after) if after == Duration::from_secs(30)), "{error}");
        assert_eq!(began.elapsed(), Duration::from_secs(30));
        next(&mut asked).await.dropped().await;
    }
    let for_ever = CallOptions::new().timeout(Duration::MAX);
    assert!(tokio::time::timeout(Duration::from_secs(1800), call_with(&session, "Ask", "", for_ever)).await.is_err());
}

/// A busy client refuses at once, and says that it did not run the call.
#[tokio::test(start_paused = true)]
async fn a_busy_client_says_so_at_once() {
    let server = builder().build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (_client, mut asked) = device(&server, listening.address(), "ann/phone").await;
    let running: Vec<_> = (0..16).map(|_| asking(server.user("ann"))).collect();
    let mut held = Vec::new();
    while held.len() < 16 {
        held.push(next(&mut asked).await);
    }
    let began = Instant::now();
    let error = call(&server.user("ann"), "Ask", "").await.expect_err("16 run");
    assert_eq!(error.code(), Some(ErrorCode::Overloaded));
    assert!(error.is_safe_to_retry() && began.elapsed() < Duration::from_millis(10));
    held.into_iter().for_each(|asked| asked.answer(Reply::ok("done")));
    for running in running {
        assert_eq!(running.await.expect("no panic").expect("it had a place"), "done");
    }
}

/// A handler that runs when the connection is lost goes on; the call is sent again, runs once, and gets its reply.
#[tokio::test(start_paused = true)]
async fn a_call_outlives_its_connection_and_runs_once() {
    let server = builder().build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (client, mut asked) = device(&server, listening.address(), "ann/phone").await;
    let asking = asking(server.user("ann"));
    let running = next(&mut asked).await;
    let session = server.user("ann").sessions().remove(0);
    for generation in 2..5 {
        client.connection().expect("it is up").close();
        until(|| session.generation() == generation && client.connection().is_ok()).await;
        settle().await;
    }
    running.answer(Reply::ok("done"));
    assert_eq!(asking.await.expect("no panic").expect("it came back"), "done");
    assert!(asked.try_recv().is_err(), "it ran once");
}

/// A call to a session whose client is away waits for it; without it, it says that nothing was sent.
#[tokio::test(start_paused = true)]
async fn a_call_waits_for_a_client_that_is_away() {
    let server = builder().build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (client, mut asked) = device(&server, listening.address(), "ann/phone").await;
    let place = listening.address().to_owned();
    drop(listening);
    client.connection().expect("it is up").close();
    until(|| server.connections().is_empty()).await;
    let began = Instant::now();
    let options = CallOptions::new().timeout(Duration::from_secs(5));
    let error = call_with(&server.user("ann"), "Ask", "", options).await.expect_err("it is away");
    assert!(matches!(error, CallError::NoClient(_)) && error.is_safe_to_retry(), "{error}");
    assert_eq!(began.elapsed(), Duration::from_secs(5));
    let asking = asking(server.user("ann"));
    settle().await;
    let _listening = server.listen(&place).await.expect("the name is free again");
    next(&mut asked).await.answer(Reply::ok("back"));
    assert_eq!(asking.await.expect("no panic").expect("it came back"), "back");
}

/// One device has the call when it loses its connection, and another one answers meanwhile: the first is told when it is
/// back, and its handler is dropped.
#[tokio::test(start_paused = true)]
async fn a_loser_that_is_away_is_cancelled_when_it_is_back() {
    let server = builder().build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (phone, mut on_phone) = device(&server, listening.address(), "ann/phone").await;
    let (_desk, mut at_desk) = device(&server, listening.address(), "ann/desk").await;
    let (place, asking) = (listening.address().to_owned(), asking(server.user("ann")));
    let (mut on_phone, at_desk) = (next(&mut on_phone).await, next(&mut at_desk).await);
    drop(listening);
    phone.connection().expect("it is up").close();
    until(|| server.connections().len() == 1).await;
    at_desk.answer(Reply::ok("yes"));
    assert_eq!(asking.await.expect("no panic").expect("one said yes"), "yes");
    settle().await;
    assert!(!on_phone.is_dropped(), "nobody could tell it");
    let back = Instant::now();
    let _listening = server.listen(&place).await.expect("the name is free again");
    on_phone.dropped().await;
    assert!(back.elapsed() < Duration::from_secs(20), "before the time of the call is over");
}

/// A Cancel that is lost with its connection is said again on the next one, while the call has time; a call that has ended
/// is not cancelled.
#[tokio::test(start_paused = true)]
async fn a_cancel_that_was_lost_is_said_again() {
    let server = builder().build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (mut client, welcome) = scripted(listening.address(), Metadata::new()).await;
    let answered = asking(server.user("ann"));
    let request = client.next().await;
    client.say(reply_to(&request, b"done")).await;
    answered.await.expect("no panic").expect("answered");
    let given_up = asking(server.user("ann"));
    let request = client.next().await;
    let id = request.metadata().get(keys::CALL_ID).expect("it has an id").to_owned();
    given_up.abort();
    let cancel = client.next().await;
    assert!(is_control(&cancel, keys::CANCEL) && cancel.metadata().get(keys::CANCEL_SEQ).is_some(), "{cancel:?}");

    for wait in [0, 10] {
        client.reset();
        tokio::time::sleep(Duration::from_secs(wait)).await;
        (client, _) = scripted(listening.address(), claim(&welcome, 0)).await;
        let cancel = client.next().await;
        assert!(is_control(&cancel, keys::CANCEL), "{cancel:?}");
        assert_eq!(cancel.metadata().get(keys::CALL_ID), Some(&*id));
        client.hears_nothing().await;
    }
    client.reset();
    tokio::time::sleep(Duration::from_secs(20)).await;
    (client, _) = scripted(listening.address(), claim(&welcome, 0)).await;
    client.hears_nothing().await;
}

/// A client runs no call that was cancelled before it came.
#[tokio::test(start_paused = true)]
async fn a_call_that_comes_behind_its_cancel_does_not_run() {
    let (handler, mut asked) = gate();
    let calling = Calling::start(Router::new().handler("T", "Ask", handler)).await;
    let mut connection = calling.server.accept_negotiated().await;
    connection.say(control(1, keys::CANCEL, keys::CALL_ID, "a")).await;
    connection.say(call_to_client("a", 1)).await;
    let answer = connection.next().await;
    assert_eq!(answer.metadata().get(keys::ERROR_CODE), Some(ErrorCode::Timeout.name()));
    assert!(asked.try_recv().is_err(), "it never ran");
}

/// A scripted client of this user, and the pairs of its Welcome.
async fn scripted(address: &str, pairs: Metadata) -> (Scripted, Metadata) {
    arrive(address, &pairs.with(keys::AUTH, "ann/phone")).await
}

/// A call that was sent before its connection was lost is never called safe to try again, whatever the next
/// connection, or the end of the session, says.
#[tokio::test(start_paused = true)]
async fn a_call_that_may_have_run_says_so_to_the_end() {
    let server = builder().build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (mut client, welcome) = scripted(listening.address(), Metadata::new()).await;
    let session = server.user("ann").sessions().remove(0);

    let first = asking(server.user("ann"));
    let request = client.next().await;
    let id = request.metadata().get(keys::CALL_ID).expect("it has an id").to_owned();
    client.reset();
    let (mut client, welcome) = scripted(listening.address(), claim(&welcome, 0)).await;
    assert_eq!(welcome.get(keys::SESSION_RESUMED), Some("1"));
    let request = client.next().await;
    assert_eq!(request.metadata().get(keys::CALL_ID), Some(&*id), "the same call");
    let refusal = Metadata::new().with(keys::ERROR, "busy").with(keys::ERROR_CODE, ErrorCode::Overloaded.name());
    let header = request.header().reply().with_status(bothways_proto::Status::ERROR);
    client.say(Message::new(header, "T", "Ask", &refusal, &[]).frame()).await;
    let error = first.await.expect("no panic").expect_err("refused");
    assert!(matches!(error, CallError::Closed { written: true, .. }), "{error}");
    assert!(!error.is_safe_to_retry());

    let second = asking(server.user("ann"));
    client.next().await;
    client.reset();
    until(|| session.connection().is_none()).await;
    let third = asking(server.user("ann"));
    settle().await;
    session.end("the test says so");
    let error = second.await.expect("no panic").expect_err("the session is over");
    assert!(matches!(error, CallError::Closed { written: true, .. }), "it was sent: {error}");
    let error = third.await.expect("no panic").expect_err("the session is over");
    assert!(matches!(error, CallError::NoClient(_)) && error.is_safe_to_retry(), "it was not: {error}");
}

/// A real client at a scripted server, which calls it under this id on a connection of its own.
struct Calling {
    server: ScriptedServer,
    _client: Client,
}

impl Calling {
    async fn start(handlers: Router) -> Self {
        let server = ScriptedServer::listen().await;
        let connecting = tokio::spawn({
            let address = server.address.clone();
            async move { Client::with_handlers(&address, options("ann/phone"), handlers).await.expect("it listens") }
        });
        let first = server.accept_negotiated().await;
        let client = connecting.await.expect("no panic");
        first.reset();
        Self { server, _client: client }
    }

    async fn call(&self, id: &str, seq: u64) -> Scripted {
        let mut connection = self.server.accept_negotiated().await;
        connection.say(call_to_client(id, seq)).await;
        connection
    }
}

fn call_to_client(id: &str, seq: u64) -> Vec<u8> {
    let header = Header::request(Seq::new(3 << 62 | seq), SerializeType::RAW);
    Message::new(header, "T", "Ask", &Metadata::new().with(keys::CALL_ID, id), id.as_bytes()).frame().to_vec()
}

/// A reply that was lost with its connection is given once more, and the handler does not run again.
#[tokio::test(start_paused = true)]
async fn a_lost_reply_is_given_once_more() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&runs);
    let handler = move |request: Request| {
        let run = counting.fetch_add(1, Ordering::SeqCst);
        let payload = request.payload().expect("plain");
        std::future::ready(Reply::ok([&payload[..], format!(" {run}").as_bytes()].concat()))
    };
    let calling = Calling::start(Router::new().handler("T", "Ask", handler)).await;
    for (id, reply) in [("a", "a 0"), ("b", "b 1"), ("a", "a 0"), ("a", "a 0"), ("b", "b 1")] {
        let mut connection = calling.call(id, 1).await;
        let answer = connection.next().await;
        assert_eq!(answer.payload(&bothways_proto::Limits::default()).expect("plain"), reply);
        connection.reset();
    }
    assert_eq!(runs.load(Ordering::SeqCst), 2);
}

/// A cancel reaches the handler on whatever connection its call first came, and the call does not run again.
#[tokio::test(start_paused = true)]
async fn a_cancel_reaches_a_run_of_an_earlier_connection() {
    let (handler, mut asked) = gate();
    let calling = Calling::start(Router::new().handler("T", "Ask", handler)).await;
    let first = calling.call("a", 1).await;
    let mut running = next(&mut asked).await;
    first.reset();
    let mut second = calling.call("a", 2).await;
    settle().await;
    assert!(!running.is_dropped(), "it goes on for the second");
    second.say(control(9, keys::CANCEL, keys::CANCEL_SEQ, &(3 << 62 | 2u64).to_string())).await;
    running.dropped().await;
    second.say(call_to_client("a", 3)).await;
    let answer = second.next().await;
    assert_eq!(answer.metadata().get(keys::ERROR_CODE), Some(ErrorCode::Timeout.name()), "{answer:?}");
    assert!(asked.try_recv().is_err(), "it ran once");
}

/// Replies that are remembered have a bound in bytes: the newest stay, and a call whose reply was let go still
/// does not run again.
#[tokio::test(start_paused = true)]
async fn large_replies_are_let_go_and_do_not_run_again() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&runs);
    let handler = move |_: Request| {
        counting.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Reply::ok(vec![7; 3 << 20]))
    };
    let calling = Calling::start(Router::new().handler("T", "Ask", handler)).await;
    let mut connection = calling.call("a", 1).await;
    connection.next().await;
    connection.say(call_to_client("b", 2)).await;
    connection.next().await;
    for (id, is_kept) in [("a", false), ("b", true)] {
        connection.say(call_to_client(id, 3)).await;
        let answer = connection.next().await;
        assert_eq!(!answer.header().status().is_error(), is_kept, "{id}");
    }
    assert_eq!(runs.load(Ordering::SeqCst), 2);
}

/// A client acknowledges nothing on a connection before it knows which session that has: the server takes an
/// acknowledgement for a sign that its Welcome, with the next secret, arrived.
#[tokio::test(start_paused = true)]
async fn nothing_is_acknowledged_before_the_welcome() {
    let server = ScriptedServer::listen().await;
    let connecting = tokio::spawn({
        let address = server.address.clone();
        async move { Client::bidirectional(&address, options("ann/phone")).await.expect("it listens") }
    });
    let welcome = |hello: &Message, pairs: Metadata| {
        let mut metadata =
            pairs.with(keys::SESSION_ID, "1").with(keys::SESSION_KEY, "k").with(keys::SESSION_OFFSET, "0");
        let said = bothways_proto::Hello::from_metadata(&hello.metadata()).expect("a Hello comes first");
        Welcome::answer(&said, Capabilities::ALL).put(&mut metadata);
        Message::new(hello.header().reply(), "", "", &metadata, &[]).frame().to_vec()
    };
    let push = |offset| {
        let header = Header::oneway(Seq::of_push(offset), SerializeType::RAW);
        Message::new(header, "Chat", "say", &Metadata::new(), b"hi").frame().to_vec()
    };
    let mut first = server.accept().await;
    let said = first.next().await;
    first.say(welcome(&said, Metadata::new())).await;
    let (_client, mut messages) = connecting.await.expect("no panic");
    first.say(push(1)).await;
    drop(soon(messages.next()).await.expect("it came"));
    first.reset();
    let mut second = server.accept().await;
    let said = second.next().await;
    assert_eq!(said.metadata().get(keys::SESSION_OFFSET), Some("1"));
    second.hears_nothing().await;
    second.say(welcome(&said, Metadata::new().with(keys::SESSION_RESUMED, "1"))).await;
    let ack = second.next().await;
    assert!(is_control(&ack, keys::ACK), "{ack:?}");
    assert_eq!(ack.metadata().get(keys::ACK_OFFSETS), Some("1,1"));
}

/// A push to a user while its client is being let in again comes once: to the session that it comes back to, behind
/// the Welcome; not to the connection as to a plain client's.
#[tokio::test(start_paused = true)]
async fn who_is_being_let_in_gets_a_push_once() {
    let gate = Arc::new(tokio::sync::Semaphore::new(1));
    let checked = Arc::clone(&gate);
    let server = Server::builder()
        .auth(move |request| {
            let checked = Arc::clone(&checked);
            async move {
                request.session().expect("it is connected").bind_user("ann");
                checked.acquire().await.expect("it is open").forget();
                Ok::<(), String>(())
            }
        })
        .build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (client, welcome) = scripted(listening.address(), Metadata::new()).await;
    let session = server.user("ann").sessions().remove(0);
    client.reset();
    until(|| session.connection().is_none()).await;
    let mut client = Scripted::connect(listening.address()).await;
    client.say(hello(0, Capabilities::ALL, &claim(&welcome, 0))).await;
    settle().await;
    assert_eq!(server.user("ann").sessions(), [session], "the one it had, and no other");
    let receipt = server.push(&Target::user("ann"), &Push::new("Chat", "say", "hi")).expect("small");
    // Called now, it is called as the session that it was, and once.
    let asking = asking(server.user("ann"));
    client.hears_nothing().await;
    gate.add_permits(1);
    let answer = client.next().await.metadata();
    assert_eq!(answer.get(keys::SESSION_RESUMED), Some("1"), "{answer:?}");
    let mut pushes = Vec::new();
    for _ in 0..2 {
        let message = client.next().await;
        match message.header().is_oneway() {
            true => pushes.push(message.header().seq()),
            false => client.say(reply_to(&message, b"yes")).await,
        }
    }
    client.hears_nothing().await;
    assert_eq!(pushes, [Seq::of_push(1)]);
    assert_eq!(asking.await.expect("no panic").expect("answered"), "yes");
    assert_eq!(receipt.outcomes().at(Stage::Written), 1);
}

/// Of many that wait for room in one session's log, each gets in, in time, and none is refused.
#[tokio::test(start_paused = true)]
async fn all_that_wait_for_room_get_in() {
    let server = builder().sessions(SessionOptions::new().log(QueueBound::messages(2).bytes(1 << 20))).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (_client, mut messages) =
        Client::bidirectional(listening.address(), options("ann/phone")).await.expect("it listens");
    until(|| server.user("ann").sessions().first().is_some_and(Session::is_resumable)).await;
    let session = server.user("ann").sessions().remove(0);
    let pushing: Vec<_> = (0..20)
        .map(|number: u32| {
            let session = session.clone();
            let push = Push::new("Chat", "say", number.to_string());
            tokio::spawn(async move { session.push_within(Duration::from_secs(60), &push).await.expect("small") })
        })
        .collect();
    for _ in 0..20 {
        let message = soon(messages.next()).await.expect("the client is open");
        assert_eq!(message.dropped_before(), 0);
    }
    for pushing in pushing {
        let receipt = pushing.await.expect("no panic");
        assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
    }
}

/// A stub's push goes to every session of a user; without any it says so.
#[tokio::test(start_paused = true)]
async fn a_stub_pushes_to_a_user() {
    let server = builder().build();
    let listening = server.listen(&address()).await.expect("a free name");
    let push = || async { server.user("ann").push_typed("T", "Ask", &"hi".to_owned(), CallOptions::new()).await };
    assert!(matches!(push().await, Err(PushError::NoClient(_))));
    let (_phone, mut on_phone) = device(&server, listening.address(), "ann/phone").await;
    let (_desk, mut at_desk) = device(&server, listening.address(), "ann/desk").await;
    push().await.expect("room");
    for asked in [&mut on_phone, &mut at_desk] {
        let asked = next(asked).await;
        assert_eq!(asked.request.decode::<String>().expect("a text"), "hi");
        asked.answer(Reply::ok(""));
    }
}

/// What both ends of the typed test offer each other.
#[bothways::service]
trait Stairs {
    /// The steps below this one.
    async fn down(&self, cx: &mut Context, steps: u32) -> Result<Vec<u32>, String>;
}

struct AtClient;
struct AtServer;

async fn below(caller: impl Caller, steps: u32) -> Result<Vec<u32>, String> {
    let mut below = match steps {
        0 => Vec::new(),
        _ => StairsClient::new(caller).down(&(steps - 1)).await.map_err(|error| error.to_string())?,
    };
    below.push(steps);
    Ok(below)
}

impl Stairs for AtClient {
    async fn down(&self, cx: &mut Context, steps: u32) -> Result<Vec<u32>, String> {
        below(cx.connection().clone(), steps).await
    }
}

impl Stairs for AtServer {
    async fn down(&self, cx: &mut Context, steps: u32) -> Result<Vec<u32>, String> {
        let session = cx.session().expect("the client is connected");
        below(session, steps).await
    }
}

/// Calls of one trait go down 32 steps, from each to the other, by stubs over a user and a session; deeper than
/// the places that the client has, the call is refused, and nothing waits for ever.
#[tokio::test(start_paused = true)]
async fn typed_calls_nest_to_depth_32() {
    let server = builder().service(AtServer.into_service()).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let handlers = Router::new().service(AtClient.into_service());
    let client = Client::with_handlers(listening.address(), options("ann/phone"), handlers).await.expect("it listens");
    until(|| server.user("ann").sessions().first().is_some_and(Session::is_resumable)).await;
    let steps: Vec<u32> = (0..=31).collect();
    assert_eq!(StairsClient::new(server.user("ann")).down(&31).await.expect("32 calls"), steps);
    assert_eq!(StairsClient::new(&client).down(&31).await.expect("32 calls"), steps);
    let began = Instant::now();
    let error = StairsClient::new(server.user("ann")).down(&32).await.expect_err("it has 16 places");
    assert!(error.to_string().contains("overloaded"), "{error}");
    assert!(began.elapsed() < Duration::from_millis(100));
    until(|| client.stats().calls_running == 0 && server.stats().calls_running == 0).await;
}

/// The hook of a Hello is given a session that makes way for the one that its client had: a call begun on it goes on there,
/// also over a lost connection.
#[tokio::test(start_paused = true)]
async fn a_call_begun_in_a_hook_goes_on_over_a_lost_connection() {
    let (told, mut outcomes) = tokio::sync::mpsc::unbounded_channel();
    let server = Server::builder()
        .auth(move |request| {
            let told = told.clone();
            async move {
                let (Some(session), true) = (request.session(), request.resumes().is_some()) else { return Ok(()) };
                tokio::spawn(async move {
                    let options = CallOptions::new().timeout(Duration::from_secs(10));
                    let outcome = session.call_typed::<_, String>("C", "Slow", &(), options).await;
                    told.send(outcome.map(|response| response.value))
                });
                // The call is made while it is not known which session the client gets.
                tokio::time::sleep(Duration::from_millis(50)).await;
                Ok::<_, String>(())
            }
        })
        .build();
    let listening = server.listen("memory@call-users-hook").await.expect("the name is free");
    let handlers = Router::new().function("C", "Slow", |(): ()| async {
        tokio::time::sleep(Duration::from_millis(600)).await;
        Ok::<_, String>("done".to_owned())
    });
    let client = Client::with_handlers(listening.address(), ClientOptions::new(), handlers).await.expect("it listens");
    client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");

    server.connections()[0].close();
    // It is back, and handles the call.
    tokio::time::sleep(Duration::from_millis(500)).await;
    server.connections().iter().for_each(Connection::close);
    let outcome = tokio::time::timeout(Duration::from_secs(20), outcomes.recv()).await.expect("it ends");
    assert_eq!(outcome.expect("the hook ran").expect("the client came back"), "done");
}
