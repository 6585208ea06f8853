//! Plain rpcx clients that ask for more through the service `_bothways`: sessions, calls, acknowledgements.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bothways::{
    CallError, CallOptions, Class, ErrorCode, Metadata, Push, QueueBound, Rate, Reply, Request, SerializeType, Server,
    ServerBuilder, ServerLimits, Session, SessionOptions, Stage, Target,
    session::{Failure, TopicOptions},
};
use bothways_proto::{Capabilities, Header, Message, Seq, Status, keys};
use bytes::Bytes;

use crate::{
    scripted::{Scripted, hello, request},
    support::{address, call, call_with, connections, echoing, gate, settle, soon, until},
};

/// A request of the service `_bothways` that wants a reply.
fn control(seq: u64, method: &str, pairs: &Metadata, payload: &[u8]) -> Bytes {
    let header = Header::request(Seq::new(seq), SerializeType::RAW);
    Message::new(header, keys::CONTROL_PATH, method, pairs, payload).frame().clone()
}

/// The same, wanting none.
fn control_oneway(seq: u64, method: &str, pairs: &Metadata, payload: &[u8]) -> Bytes {
    let header = Header::oneway(Seq::new(seq), SerializeType::RAW);
    Message::new(header, keys::CONTROL_PATH, method, pairs, payload).frame().clone()
}

fn pair(key: &str, value: impl AsRef<str>) -> Metadata {
    Metadata::new().with(key, value.as_ref())
}

/// A plain client says this, and gets a success whose pairs are answered.
async fn ask(client: &mut Scripted, method: &str, pairs: &Metadata) -> Metadata {
    client.say(control(7, method, pairs, b"")).await;
    let reply = client.next().await;
    assert_eq!((reply.header().seq().get(), reply.header().status()), (7, Status::NORMAL), "{reply:?}");
    reply.metadata()
}

/// A plain client says this, and is refused; the text is answered.
async fn refused(client: &mut Scripted, method: &str, pairs: &Metadata) -> String {
    client.say(control(8, method, pairs, b"")).await;
    let reply = client.next().await;
    assert!(reply.metadata().get(keys::ERROR_CODE).is_none(), "codes are for Bothways clients");
    reply.error_text().expect("a refusal")
}

/// What a client says to take its session to another connection.
fn resume_pairs(welcome: &Metadata, handled: u64) -> Metadata {
    pair(keys::SESSION_ID, welcome.get(keys::SESSION_ID).expect("it has a session"))
        .with(keys::SESSION_KEY, welcome.get(keys::SESSION_KEY).expect("it has a secret"))
        .with(keys::SESSION_OFFSET, handled.to_string())
}

/// A server, and a plain client that has enabled its session.
async fn enabled(server: &Server, address: &str) -> (Scripted, Metadata, Session) {
    let mut client = Scripted::connect(address).await;
    let welcome = ask(&mut client, keys::ENABLE, &Metadata::new()).await;
    let id = welcome.get(keys::SESSION_ID).expect("a session").parse().expect("a number");
    (client, welcome, server.session(id).expect("it lives"))
}

fn push(text: &str) -> Push {
    Push::new("Chat", "say", text.to_owned())
}

/// The next message is this tracked push.
async fn hears_push(client: &mut Scripted, offset: u64, text: &str) {
    let message = client.next().await;
    assert!(message.header().is_oneway(), "{message:?}");
    assert_eq!((message.service_path(), message.service_method()), ("Chat", "say"));
    assert_eq!((message.header().seq(), &message.wire_payload()[..]), (Seq::of_push(offset), text.as_bytes()));
}

/// The next message is a call; answers its number.
async fn hears_call(client: &mut Scripted, method: &str) -> (String, Message) {
    let message = client.next().await;
    assert!(message.header().is_oneway(), "a plain client would take anything else for a reply: {message:?}");
    assert_eq!((message.service_path(), message.service_method()), ("T", method));
    assert_eq!(message.header().seq(), Seq::of_push(0), "it is not tracked");
    (message.metadata().get(keys::CALL_NUMBER).expect("a number").to_owned(), message)
}

/// Before Enable a client gets plain pushes; behind the reply to Enable tracked ones carry their offset, and what is
/// acknowledged is handled.
#[tokio::test(start_paused = true)]
async fn after_enable_pushes_carry_offsets() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    client.say(request(1, "Echo", b"x")).await;
    client.next().await;
    let before = server.push(&Target::everyone(), &push("before")).expect("small");
    hears_push(&mut client, 0, "before").await;
    assert_eq!(before.handled().await.at(Stage::PlainWritten), 1);

    let welcome = ask(&mut client, keys::ENABLE, &Metadata::new()).await;
    assert_eq!(welcome.get(keys::SESSION_OFFSET), Some("0"));
    assert!(welcome.get(keys::SESSION_WHY).is_none() && welcome.get(keys::SESSION_RESUMED).is_none());
    let session = &server.sessions(&Target::everyone()).expect("no topic")[0];
    assert_eq!(welcome.get(keys::SESSION_ID), Some(&*session.id().to_string()));
    assert!(session.is_resumable());

    let receipts: Vec<_> = ["a", "b"].map(|text| session.push(&push(text)).expect("small")).into();
    let fire = session.push(&push("f").class(Class::Fire)).expect("small");
    hears_push(&mut client, 1, "a").await;
    hears_push(&mut client, 2, "b").await;
    hears_push(&mut client, 0, "f").await;
    assert_eq!(fire.handled().await.at(Stage::PlainWritten), 1);
    assert_eq!(receipts[0].outcomes().at(Stage::Written), 1);
    client.say(control_oneway(2, keys::ACK, &pair(keys::ACK_OFFSETS, "2,1"), b"")).await;
    assert_eq!(receipts[0].handled().await.at(Stage::Handled), 1);
    assert_eq!(receipts[1].outcomes().at(Stage::Received), 1);
    ask(&mut client, keys::ACK, &pair(keys::ACK_OFFSETS, "2,2")).await;
    assert_eq!(receipts[1].outcomes().at(Stage::Handled), 1);
}

/// A call goes out as a push with a number, a deadline and an id; `Reply` under that number answers it, whatever
/// comes between, and its pairs are the application's.
#[tokio::test(start_paused = true)]
async fn a_call_is_a_push_and_reply_answers_it() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (mut client, _, session) = enabled(&server, listening.address()).await;
    assert!(session.connection().expect("it is connected").takes_calls());
    let asking = |payload: &'static str| {
        let session = session.clone();
        tokio::spawn(async move {
            let options = CallOptions::new().timeout(Duration::from_secs(5)).metadata(pair("k", "v"));
            call_with(&session, "Ask", payload, options).await
        })
    };
    let (first, second) = (asking("one"), asking("two"));
    let (number_one, one) = hears_call(&mut client, "Ask").await;
    let (number_two, two) = hears_call(&mut client, "Ask").await;
    assert_ne!(number_one, number_two);
    assert_eq!((&one.wire_payload()[..], &two.wire_payload()[..]), (&b"one"[..], &b"two"[..]));
    let said = one.metadata();
    assert_eq!((said.get("k"), said.get(keys::SERVER_TIMEOUT)), (Some("v"), Some("5000")));
    assert!(said.get(keys::CALL_ID).is_some());

    // The second is answered first, and as a call of its own.
    let pairs = pair(keys::CALL_NUMBER, &number_two).with("x", "y").with(keys::AUTH, "secret");
    client.say(control(9, keys::REPLY, &pairs, b"answer two")).await;
    assert_eq!(client.next().await.error_text(), None);
    let reply = second.await.expect("no panic").expect("answered");
    assert_eq!((reply.payload, reply.metadata), (Bytes::from("answer two"), pair("x", "y")));

    client.say(control_oneway(10, keys::REPLY, &pair(keys::CALL_NUMBER, &number_one), b"answer one")).await;
    assert_eq!(first.await.expect("no panic").expect("answered").payload, "answer one");

    let text = refused(&mut client, keys::REPLY, &pair(keys::CALL_NUMBER, &number_one)).await;
    assert!(text.contains("nobody waits"), "{text}");
    let connection = session.connection().expect("it is connected");
    assert_eq!((connection.stats().calls_pending, connection.stats().late_replies), (0, 1));
}

/// A plain client may say with Enable and with Resume what it handles; what it said last counts.
#[tokio::test(start_paused = true)]
async fn who_enables_may_say_what_it_handles() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    let welcome = ask(&mut client, keys::ENABLE, &pair(keys::METHODS, "T.Ask")).await;
    let session = server.sessions(&Target::everyone()).expect("no topic").remove(0);
    assert!(matches!(call(&session, "Confirm", "").await, Err(CallError::NotSupported)));
    client.hears_nothing().await;
    let mut client = Scripted::connect(listening.address()).await;
    ask(&mut client, keys::RESUME, &resume_pairs(&welcome, 0).with(keys::METHODS, "T.Confirm")).await;
    let asking = tokio::spawn({
        let session = session.clone();
        async move { call(&session, "Confirm", "").await }
    });
    let (number, _) = hears_call(&mut client, "Confirm").await;
    client.say(control(9, keys::REPLY, &pair(keys::CALL_NUMBER, &number), b"yes")).await;
    assert_eq!(asking.await.expect("no panic").expect("answered"), "yes");
    assert!(matches!(call(&session, "Ask", "").await, Err(CallError::NotSupported)));
}

/// An answer with an error text fails the call with that text.
#[tokio::test(start_paused = true)]
async fn an_answer_may_be_an_error() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (mut client, _, session) = enabled(&server, listening.address()).await;
    let asking = tokio::spawn(async move { call(&session, "Ask", "").await });
    let (number, _) = hears_call(&mut client, "Ask").await;
    let pairs = pair(keys::CALL_NUMBER, number).with(keys::ERROR, "no time");
    client.say(control_oneway(2, keys::REPLY, &pairs, b"")).await;
    let error = asking.await.expect("no panic").expect_err("it failed");
    assert_eq!((error.remote_text(), error.code()), (Some("no time"), None));
}

/// A call whose future is dropped, or whose deadline passes, is cancelled by a push with its number.
#[tokio::test(start_paused = true)]
async fn a_call_that_is_given_up_is_cancelled_by_a_push() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (mut client, _, session) = enabled(&server, listening.address()).await;
    let hears_cancel = async |client: &mut Scripted, number: &str| {
        let cancel = client.next().await;
        assert!(cancel.header().is_oneway());
        assert_eq!((cancel.service_path(), cancel.service_method()), (keys::CONTROL_PATH, keys::CANCEL));
        assert_eq!(cancel.metadata(), pair(keys::CANCEL_SEQ, number));
    };

    let of_drop = session.clone();
    let asking = tokio::spawn(async move { call(&of_drop, "Ask", "").await });
    let (number, _) = hears_call(&mut client, "Ask").await;
    asking.abort();
    hears_cancel(&mut client, &number).await;

    let wait = Duration::from_secs(2);
    let asking =
        tokio::spawn(async move { call_with(&session, "Ask", "", CallOptions::new().timeout(wait)).await.map(|_| ()) });
    let (number, _) = hears_call(&mut client, "Ask").await;
    hears_cancel(&mut client, &number).await;
    assert!(matches!(asking.await.expect("no panic"), Err(CallError::TimedOut(after)) if after == wait));
    // The late answer disturbs nobody.
    client.say(control_oneway(3, keys::REPLY, &pair(keys::CALL_NUMBER, number), b"late")).await;
    client.say(request(4, "Echo", b"still here")).await;
    assert_eq!(client.next().await.wire_payload()[..], b"still here"[..]);
}

/// A client that enabled nothing is never called, and cannot answer.
#[tokio::test(start_paused = true)]
async fn who_enabled_nothing_is_not_called() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    client.say(request(1, "Echo", b"x")).await;
    client.next().await;
    let session = server.sessions(&Target::everyone()).expect("no topic").remove(0);
    assert!(matches!(call(&session, "Ask", "").await, Err(CallError::NotSupported)));
    assert!(refused(&mut client, keys::ACK, &pair(keys::ACK_OFFSETS, "0,0")).await.contains("Enable"));
    refused(&mut client, keys::REPLY, &pair(keys::CALL_NUMBER, "4294967296")).await;
    client.hears_nothing().await;
}

/// On a new connection a client resumes: what it has not handled comes again, before anything new and behind the
/// reply. The old connection is fenced and closed.
#[tokio::test(start_paused = true)]
async fn resume_replays_what_was_not_handled() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (mut old, welcome, session) = enabled(&server, listening.address()).await;
    let receipts: Vec<_> = ["a", "b", "c"].map(|text| session.push(&push(text)).expect("small")).into();
    for (offset, text) in [(1, "a"), (2, "b"), (3, "c")] {
        hears_push(&mut old, offset, text).await;
    }

    // The server has not noticed that the old connection is of no use.
    let mut new = Scripted::connect(listening.address()).await;
    let resumed = ask(&mut new, keys::RESUME, &resume_pairs(&welcome, 1)).await;
    assert_eq!((resumed.get(keys::SESSION_RESUMED), resumed.get(keys::SESSION_OFFSET)), (Some("1"), Some("3")));
    assert_eq!(resumed.get(keys::SESSION_ID), welcome.get(keys::SESSION_ID));
    assert_eq!(resumed.get(keys::SESSION_KEY), welcome.get(keys::SESSION_KEY), "it stays for the session's life");
    let live = session.push(&push("d")).expect("small");
    for (offset, text) in [(2, "b"), (3, "c"), (4, "d")] {
        hears_push(&mut new, offset, text).await;
    }
    assert_eq!(receipts[0].outcomes().at(Stage::Handled), 1, "it said so when it resumed");
    old.hears_the_end().await;
    assert_eq!((server.stats().sessions, session.generation()), (1, 2));
    new.say(control_oneway(2, keys::ACK, &pair(keys::ACK_OFFSETS, "4,4"), b"")).await;
    assert_eq!(live.handled().await.at(Stage::Handled), 1);

    // After a cut that the server has seen, what came meanwhile is there too.
    new.reset();
    until(|| session.connection().is_none()).await;
    session.push(&push("e")).expect("small");
    let mut newest = Scripted::connect(listening.address()).await;
    ask(&mut newest, keys::RESUME, &resume_pairs(&resumed, 4)).await;
    hears_push(&mut newest, 5, "e").await;
    newest.hears_nothing().await;
}

/// A client that says what it has received gets no more than the rest again, and of what is too old no more than its
/// offset. One that does not say it gets all that was sent in time.
#[tokio::test(start_paused = true)]
async fn what_is_too_old_is_skipped_for_who_knows_of_it() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (mut old, welcome, session) = enabled(&server, listening.address()).await;
    let brief = |text: &str| push(text).time_to_live(Duration::from_secs(1));
    let pushes = [push("a"), brief("b"), brief("c"), push("d")];
    let receipts = pushes.each_ref().map(|push| session.push(push).expect("small"));
    for (offset, text) in [(1, "a"), (2, "b"), (3, "c"), (4, "d")] {
        hears_push(&mut old, offset, text).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;

    let mut unaware = Scripted::connect(listening.address()).await;
    let resumed = ask(&mut unaware, keys::RESUME, &resume_pairs(&welcome, 1)).await;
    for (offset, text) in [(2, "b"), (3, "c"), (4, "d")] {
        hears_push(&mut unaware, offset, text).await;
    }
    assert_eq!(receipts[1].outcomes().at(Stage::Written), 1);

    let mut aware = Scripted::connect(listening.address()).await;
    let pairs = resume_pairs(&resumed, 1).with(keys::SESSION_RECEIVED, "2");
    let resumed = ask(&mut aware, keys::RESUME, &pairs).await;
    let skip = aware.next().await;
    assert_eq!((skip.service_path(), skip.service_method()), (keys::CONTROL_PATH, keys::SKIP));
    assert!(skip.header().is_oneway() && skip.header().seq() == Seq::of_push(3), "{skip:?}");
    hears_push(&mut aware, 4, "d").await;
    let stages = [Stage::Handled, Stage::Received, Stage::Expired, Stage::Written];
    for (receipt, stage) in receipts.iter().zip(stages) {
        assert_eq!(receipt.outcomes().at(stage), 1, "{receipt:?}");
    }
    ask(&mut aware, keys::ACK, &pair(keys::ACK_OFFSETS, "4,4")).await;
    assert_eq!(session.waiting(), (0, 0));

    let mut babbling = Scripted::connect(listening.address()).await;
    let pairs = resume_pairs(&resumed, 4).with(keys::SESSION_RECEIVED, "many");
    assert_eq!(ask(&mut babbling, keys::RESUME, &pairs).await.get(keys::SESSION_WHY), Some("unknown"));
}

/// A call that was under way when the connection was lost is sent again after the resume, under the same id.
#[tokio::test(start_paused = true)]
async fn a_call_survives_a_resume() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (mut old, welcome, session) = enabled(&server, listening.address()).await;
    let asking = tokio::spawn(async move { call(&session, "Ask", "x").await });
    let (_, first) = hears_call(&mut old, "Ask").await;
    old.reset();
    settle().await;
    let mut new = Scripted::connect(listening.address()).await;
    ask(&mut new, keys::RESUME, &resume_pairs(&welcome, 0)).await;
    let (number, again) = hears_call(&mut new, "Ask").await;
    assert_eq!(first.metadata().get(keys::CALL_ID), again.metadata().get(keys::CALL_ID));
    new.say(control_oneway(2, keys::REPLY, &pair(keys::CALL_NUMBER, number), b"done")).await;
    assert_eq!(asking.await.expect("no panic").expect("answered"), "done");
}

/// A session that cannot be resumed is told so with a reason, and the client has a new one that works.
#[tokio::test(start_paused = true)]
async fn who_cannot_resume_has_a_new_session() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (old, welcome, session) = enabled(&server, listening.address()).await;
    let receipt = session.push(&push("a")).expect("small");
    let mut thief = Scripted::connect(listening.address()).await;
    let mut wrong = resume_pairs(&welcome, 0);
    wrong.insert(keys::SESSION_KEY, "guessed");
    let fresh = ask(&mut thief, keys::RESUME, &wrong).await;
    assert_eq!((fresh.get(keys::SESSION_WHY), fresh.get(keys::SESSION_RESUMED)), (Some("unknown"), None));
    assert_ne!(fresh.get(keys::SESSION_ID), welcome.get(keys::SESSION_ID));
    server.push(&Target::everyone(), &push("b")).expect("small");
    hears_push(&mut thief, 1, "b").await;

    drop(old);
    until(|| session.connection().is_none()).await;
    tokio::time::sleep(Duration::from_secs(130)).await;
    assert_eq!(receipt.outcomes().at(Stage::Unknown), 1);
    let mut late = Scripted::connect(listening.address()).await;
    let fresh = ask(&mut late, keys::RESUME, &resume_pairs(&welcome, 0)).await;
    assert_eq!(fresh.get(keys::SESSION_WHY), Some("expired"));
}

/// Of two attempts to come back the earlier one, read late, is refused, and may try again as a later one.
#[tokio::test(start_paused = true)]
async fn an_attempt_that_comes_late_may_be_made_again() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (client, welcome, session) = enabled(&server, listening.address()).await;
    let resume = |number: &str| resume_pairs(&welcome, 0).with(keys::SESSION_TRY, number);
    let mut second = Scripted::connect(listening.address()).await;
    ask(&mut second, keys::RESUME, &resume("5")).await;
    let mut late = Scripted::connect(listening.address()).await;
    assert!(refused(&mut late, keys::RESUME, &resume("4")).await.contains("a later attempt"));
    let resumed = ask(&mut late, keys::RESUME, &resume("6")).await;
    assert_eq!((resumed.get(keys::SESSION_RESUMED), resumed.get(keys::LEFT_OUT)), (Some("1"), None));
    session.push(&push("a")).expect("small");
    hears_push(&mut late, 1, "a").await;
    drop((client, second));
}

/// Each client of a server that stops is closed when it is done, and not when all are: when its calls are answered, and
/// when it has acknowledged what it was sent, or had the time for that.
#[tokio::test(start_paused = true)]
async fn each_client_of_a_server_that_stops_is_closed_when_it_is_done() {
    let ms = Duration::from_millis;
    for drains in [false, true] {
        let (handler, mut asked) = gate();
        let server = Server::builder().handler("T", "Wait", handler).build();
        let listening = server.listen(&address()).await.expect("the name is free");
        let mut callers = Vec::new();
        for _ in 0..2 {
            let mut caller = Scripted::connect(listening.address()).await;
            caller.say(request(1, "Wait", b"")).await;
            callers.push((caller, soon(asked.recv()).await.expect("it is asked")));
        }
        let mut owing = Vec::new();
        for _ in 0..2 {
            let (mut client, _, session) = enabled(&server, listening.address()).await;
            session.push(&push("a")).expect("small");
            hears_push(&mut client, 1, "a").await;
            owing.push(client);
        }
        let mut idle = Scripted::connect_negotiated(listening.address()).await;
        let began = tokio::time::Instant::now();
        let stopping = tokio::spawn(async move {
            let minute = Duration::from_secs(60);
            if drains { server.drain(minute, 1_000_000).await } else { server.shutdown(minute).await }
        });
        if drains {
            idle.rest().await;
            assert!(began.elapsed() < ms(100), "nothing is owed: {:?}", began.elapsed());
        }
        tokio::time::sleep_until(began + ms(100)).await;
        owing[0].say(control_oneway(9, keys::ACK, &pair(keys::ACK_OFFSETS, "1,1"), b"")).await;
        owing[0].rest().await;
        assert!((ms(100)..ms(200)).contains(&began.elapsed()), "it has acknowledged: {:?}", began.elapsed());
        let (mut caller, running) = callers.pop().expect("two call");
        running.answer(Reply::ok("done"));
        assert_eq!(caller.next().await.wire_payload(), "done");
        caller.rest().await;
        assert!(began.elapsed() < ms(300), "it is answered: {:?}", began.elapsed());
        owing[1].rest().await;
        assert!((ms(500)..ms(600)).contains(&began.elapsed()), "it had its time: {:?}", began.elapsed());
        let (mut caller, running) = callers.pop().expect("one is left");
        tokio::time::sleep(Duration::from_secs(10)).await;
        running.answer(Reply::ok("late"));
        assert_eq!(caller.next().await.wire_payload(), "late");
        let report = soon(stopping).await.expect("no panic");
        assert_eq!((report.calls_unfinished, report.connections_cut), (0, 0), "{report:?}");
    }
}

/// A connection has one session: a client that has it cannot enable again, nor leave it by a Resume; a Bothways client
/// has it by its Hello. What lacks its pairs is refused.
#[tokio::test(start_paused = true)]
async fn a_connection_has_one_session() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (mut client, welcome, session) = enabled(&server, listening.address()).await;
    for (method, pairs) in [(keys::ENABLE, Metadata::new()), (keys::RESUME, resume_pairs(&welcome, 0))] {
        assert!(refused(&mut client, method, &pairs).await.contains("already"), "{method}");
    }
    refused(&mut client, keys::RESUME, &pair(keys::SESSION_ID, "1")).await;
    refused(&mut client, keys::REPLY, &Metadata::new()).await;
    client.say(control_oneway(5, keys::ENABLE, &Metadata::new(), b"")).await;
    session.push(&push("a")).expect("small");
    hears_push(&mut client, 1, "a").await;

    let mut bothways = Scripted::connect(listening.address()).await;
    bothways.say(hello(0, Capabilities::ALL, &Metadata::new())).await;
    bothways.next().await;
    bothways.say(control(1, keys::ENABLE, &Metadata::new(), b"")).await;
    let reply = bothways.next().await;
    assert_eq!(reply.metadata().get(keys::ERROR_CODE), Some(ErrorCode::BadArguments.name()));
}

/// An acknowledgement of what was never sent ends the connection.
#[tokio::test(start_paused = true)]
async fn a_false_acknowledgement_ends_the_connection() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    for oneway in [true, false] {
        let (mut client, ..) = enabled(&server, listening.address()).await;
        let frame = if oneway { control_oneway } else { control };
        client.say(frame(2, keys::ACK, &pair(keys::ACK_OFFSETS, "1,1"), b"")).await;
        client.hears_the_end().await;
    }
}

/// The methods pass the auth hook like any other call, and do nothing before it; a user that it binds must be the
/// one whom the session belongs to.
#[tokio::test(start_paused = true)]
async fn the_auth_hook_is_asked() {
    let server = Server::builder()
        .auth(|request| async move {
            let session = request.session().expect("the client is connected");
            match request.token.as_str() {
                "" => Err("a name is needed"),
                name => {
                    session.bind_user(name);
                    Ok(())
                }
            }
        })
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let ann = pair(keys::AUTH, "ann");
    let mut client = Scripted::connect(listening.address()).await;
    let welcome = ask(&mut client, keys::ENABLE, &ann).await;
    let session = server.sessions(&Target::user("ann")).expect("no topic").remove(0);
    session.push(&push("a")).expect("small");
    hears_push(&mut client, 1, "a").await;

    for token in ["ann", "bob"] {
        let mut other = Scripted::connect(listening.address()).await;
        let pairs = resume_pairs(&welcome, 0).with(keys::AUTH, token);
        let answer = ask(&mut other, keys::RESUME, &pairs).await;
        match token {
            "ann" => hears_push(&mut other, 1, "a").await,
            _ => assert_eq!(answer.get(keys::SESSION_WHY), Some("revoked")),
        }
    }
    // Its client was told so, and nobody comes back to it.
    assert!(server.session(session.id()).is_none());
    assert!(server.sessions(&Target::user("ann")).expect("no topic").is_empty());

    // An acknowledgement needs no token where one was accepted. Elsewhere it is refused like any oneway call: without a
    // frame.
    let mut client = Scripted::connect(listening.address()).await;
    ask(&mut client, keys::ENABLE, &ann).await;
    let mut stranger = Scripted::connect(listening.address()).await;
    for client in [&mut client, &mut stranger] {
        client.say(control_oneway(2, keys::ACK, &pair(keys::ACK_OFFSETS, "0,0"), b"")).await;
    }
    client.hears_nothing().await;
    stranger.hears_the_end().await;

    let mut nobody = Scripted::connect(listening.address()).await;
    assert_eq!(refused(&mut nobody, keys::ENABLE, &Metadata::new()).await, "a name is needed");
    nobody.hears_the_end().await;
}

/// A handler may call the client that asks it, and a server that shuts down still takes the answer.
#[tokio::test(start_paused = true)]
async fn a_handler_may_call_its_caller_even_at_the_end() {
    let (gate, mut asked) = gate();
    let server = Server::builder()
        .handler("T", "Gate", gate)
        .handler("T", "Back", |request: Request| async move {
            match call(request.connection(), "Ask", "back").await {
                Ok(answer) => Reply::ok(answer),
                Err(error) => Reply::error(error.to_string()),
            }
        })
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (mut client, ..) = enabled(&server, listening.address()).await;
    client.say(request(1, "Back", b"")).await;
    let (number, _) = hears_call(&mut client, "Ask").await;
    client.say(request(2, "Gate", b"")).await;
    let waits = asked.recv().await.expect("it is asked");
    let stopping = tokio::spawn(async move { server.shutdown(Duration::from_secs(10)).await });
    settle().await;
    client.say(control_oneway(3, keys::REPLY, &pair(keys::CALL_NUMBER, number), b"and forth")).await;
    let reply = client.next().await;
    assert_eq!((reply.header().seq().get(), &reply.wire_payload()[..]), (1, &b"and forth"[..]));
    waits.answer(Reply::ok("done"));
    assert_eq!(client.next().await.wire_payload()[..], b"done"[..]);
    client.hears_the_end().await;
    let report = stopping.await.expect("no panic");
    assert_eq!((report.calls_unfinished, report.connections_cut), (0, 0));
}

/// What a session that is behind drops is told to its client, once it has enabled that.
#[tokio::test(start_paused = true)]
async fn a_gap_is_told_by_a_push() {
    let server = Server::builder().sessions(SessionOptions::new().log(QueueBound::messages(2).bytes(1 << 20))).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (mut client, _, session) = enabled(&server, listening.address()).await;
    for text in ["a", "b", "c"] {
        session.push(&push(text)).expect("small");
    }
    hears_push(&mut client, 1, "a").await;
    hears_push(&mut client, 2, "b").await;
    let gap = client.next().await;
    assert_eq!((gap.service_path(), gap.service_method()), (keys::CONTROL_PATH, keys::GAP));
    assert_eq!((gap.header().is_oneway(), gap.metadata()), (true, pair(keys::GAP_MISSED, "1")));
    assert_eq!(connections(&server, 1).await.len(), 1);
}

/// While a client that comes back is being let in, what is pushed to its user, its label or everybody is for the session
/// that it had: the receipt counts one target, and the client gets it once. It once went to the connection as well, as
/// a push of a plain client, and the application got it twice.
#[tokio::test(start_paused = true)]
async fn what_is_pushed_while_a_client_comes_back_comes_once() {
    for by_hello in [false, true] {
        let server = Server::builder()
            .auth(|request| async move {
                let session = request.session().expect("the client is connected");
                session.bind_user("ann");
                session.set_label("device", "phone");
                session.subscribe("news").expect("a topic");
                // It asks a database, and has bound the session before.
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok::<_, String>(())
            })
            .build();
        let listening = server.listen(&address()).await.expect("the name is free");
        let (old, welcome, session) = enabled(&server, listening.address()).await;
        old.reset();
        until(|| session.connection().is_none()).await;

        let mut new = Scripted::connect(listening.address()).await;
        match by_hello {
            true => new.say(hello(7, Capabilities::ALL, &resume_pairs(&welcome, 0))).await,
            false => new.say(control(7, keys::RESUME, &resume_pairs(&welcome, 0), b"")).await,
        }
        settle().await;
        let targets = [Target::user("ann"), Target::everyone(), Target::everyone().only_labelled("device", "phone")];
        let mut receipts = Vec::new();
        for target in &targets {
            assert_eq!(server.sessions(target).expect("no topic"), std::slice::from_ref(&session));
            receipts.push(server.push(target, &push("once")).expect("small"));
        }
        // The hook has subscribed both.
        receipts.push(server.publish("news", &push("once")).expect("small"));
        assert_eq!(new.next().await.metadata().get(keys::SESSION_RESUMED), Some("1"));
        for (offset, receipt) in (1..).zip(&receipts) {
            hears_push(&mut new, offset, "once").await;
            assert_eq!((receipt.outcomes().targets(), receipt.outcomes().at(Stage::Written)), (1, 1));
        }
        new.hears_nothing().await;
        assert_eq!(server.stats().sessions, 1);
    }
}

/// A client that claims a session in vain has its new one, and gets what is pushed from then on.
#[tokio::test(start_paused = true)]
async fn who_claims_in_vain_is_somebody_all_the_same() {
    for by_hello in [false, true] {
        let server = Server::builder()
            .auth(|request| async move {
                request.session().expect("the client is connected").bind_user("ann");
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok::<_, String>(())
            })
            .build();
        let listening = server.listen(&address()).await.expect("the name is free");
        let mut client = Scripted::connect(listening.address()).await;
        let pairs = pair(keys::SESSION_ID, "1").with(keys::SESSION_KEY, "x").with(keys::SESSION_OFFSET, "0");
        match by_hello {
            true => client.say(hello(7, Capabilities::ALL, &pairs)).await,
            false => client.say(control(7, keys::RESUME, &pairs, b"")).await,
        }
        assert_eq!(client.next().await.metadata().get(keys::SESSION_WHY), Some("unknown"));
        server.push(&Target::user("ann"), &push("a")).expect("small");
        hears_push(&mut client, 1, "a").await;
        if !by_hello {
            // A client that has a session and asks for another is refused, and is reached meanwhile.
            client.say(control(8, keys::RESUME, &pairs, b"")).await;
            settle().await;
            server.push(&Target::user("ann"), &push("b")).expect("small");
            hears_push(&mut client, 2, "b").await;
            assert!(client.next().await.error_text().is_some());
        }
    }
}

/// What is no name of a session is answered like the name of one that is gone.
#[tokio::test(start_paused = true)]
async fn a_resume_of_nonsense_is_told_why() {
    let server = Server::builder().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    for id in ["", "x", "-1"] {
        let mut client = Scripted::connect(listening.address()).await;
        let pairs = pair(keys::SESSION_ID, id).with(keys::SESSION_KEY, "x").with(keys::SESSION_OFFSET, "0");
        client.say(control(7, keys::RESUME, &pairs, b"")).await;
        let said = client.next().await.metadata();
        assert_eq!((said.get(keys::SESSION_WHY), said.get(keys::SESSION_RESUMED)), (Some("unknown"), None), "{id}");
        assert_ne!(said.get(keys::SESSION_ID), Some(id));
    }
}

/// A handler that calls its client back holds its user's only place. The answer, and acknowledgements, are no calls of
/// the user's: they are taken all the same.
#[tokio::test(start_paused = true)]
async fn what_ends_a_callback_needs_no_place_of_the_user() {
    let back = |request: Request| async move {
        match call(request.connection(), "Ask", "back").await {
            Ok(answer) => Reply::ok(answer),
            Err(error) => Reply::error(error.to_string()),
        }
    };
    let builder =
        echoing().handler("T", "Back", back).limits(ServerLimits::new().calls_per_user_max(Some(1))).auth(|request| {
            request.session().expect("it is connected").bind_user("ann");
            std::future::ready(Ok::<_, String>(()))
        });
    let server = builder.build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (mut client, _, session) = enabled(&server, listening.address()).await;
    let receipt = session.push(&push("a")).expect("small");
    hears_push(&mut client, 1, "a").await;
    client.say(request(1, "Back", b"")).await;
    let (number, _) = hears_call(&mut client, "Ask").await;
    client.say(request(2, "Echo", b"x")).await;
    assert!(client.next().await.error_text().is_some_and(|text| text.contains("of this user")));
    ask(&mut client, keys::ACK, &pair(keys::ACK_OFFSETS, "1,1")).await;
    assert_eq!(receipt.outcomes().at(Stage::Handled), 1);
    client.say(control(3, keys::REPLY, &pair(keys::CALL_NUMBER, number), b"and forth")).await;
    let mut answers = [client.next().await, client.next().await];
    answers.sort_by_key(|answer| answer.header().seq().get());
    assert_eq!((&answers[0].wire_payload()[..], answers[1].error_text()), (&b"and forth"[..], None));
}

/// Whatever bound a client's own calls have reached: what it answers and acknowledges meanwhile counts, asked for as a
/// call or oneway.
#[tokio::test(start_paused = true)]
async fn what_ends_something_needs_no_place() {
    let bounds: [fn(ServerBuilder) -> ServerBuilder; 5] = [
        |builder| builder.limits(ServerLimits::new().calls_max(1)),
        |builder| builder.limits(ServerLimits::new().calls_per_connection_max(1)),
        |builder| builder.limits(ServerLimits::new().calls_per_user_max(Some(1))),
        |builder| {
            builder.limits(ServerLimits::new().request_bytes_max(1 << 10).request_bytes_per_connection_max(1 << 10))
        },
        |builder| builder.limits(ServerLimits::new().frames_per_connection_rate(Some(Rate::per_second(1).burst(2)))),
    ];
    for (number, bound) in bounds.into_iter().enumerate() {
        for is_oneway in [false, true] {
            let (handler, mut running) = gate();
            let builder = echoing().handler("T", "Wait", handler).auth(|request| async move {
                request.session().expect("it is connected").bind_user("ann");
                Ok::<_, String>(())
            });
            let server = bound(builder).build();
            let listening = server.listen(&address()).await.expect("the name is free");
            let (mut client, _, session) = enabled(&server, listening.address()).await;
            client.say(request(1, "Wait", &[0; 2048])).await;
            let of_client = soon(running.recv()).await.expect("it runs");
            let asking = tokio::spawn({
                let session = session.clone();
                async move { call(&session, "Ask", "").await }
            });
            let (call_number, _) = hears_call(&mut client, "Ask").await;
            let receipt = session.push(&push("a")).expect("small");
            hears_push(&mut client, 1, "a").await;

            let say = if is_oneway { control_oneway } else { control };
            let answers = pair(keys::CALL_NUMBER, &call_number);
            client.say(say(8, keys::REPLY, &answers, b"yes")).await;
            client.say(say(9, keys::ACK, &pair(keys::ACK_OFFSETS, "1,1"), b"")).await;
            let answer = soon(asking).await.expect("no panic").expect("answered");
            assert_eq!(answer, "yes", "bound {number}");
            assert_eq!(soon(receipt.handled()).await.at(Stage::Handled), 1, "bound {number}");
            if !is_oneway {
                assert_eq!(client.next().await.error_text(), None, "bound {number}");
                assert_eq!(client.next().await.error_text(), None, "bound {number}");
            }
            of_client.answer(Reply::ok("done"));
            client.hears(crate::scripted::reply(1, "Wait", b"done")).await;
        }
    }
}

/// What begins something counts against the rate of frames whichever service it is for, oneway as well as asked for.
#[tokio::test(start_paused = true)]
async fn oneway_requests_to_the_framework_have_the_rate_of_frames() {
    let rate = Rate::per_second(1).burst(5);
    let topics = TopicOptions::new().open();
    let server = echoing()
        .topic(">", topics)
        .expect("a pattern")
        .limits(ServerLimits::new().frames_per_connection_rate(Some(rate)))
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (mut client, _, session) = enabled(&server, listening.address()).await;
    let header = Header::oneway(Seq::new(9), SerializeType::JSON);
    for number in 0..20 {
        let args = format!(r#"{{"Topic":"topic.{number}"}}"#);
        let asks = Message::new(header, keys::CONTROL_PATH, keys::SUBSCRIBE, &Metadata::new(), args.as_bytes());
        client.say(asks.frame().clone()).await;
    }
    let refused = || server.connections()[0].stats().oneways_refused;
    until(|| 10 <= refused()).await;
    client.say(crate::scripted::ping(10)).await;
    client.next().await;
    let subscribed = session.subscriptions().len() as u64;
    assert!(subscribed <= 5 && subscribed + refused() == 20, "{subscribed} and {}", refused());
}

/// A hook that awaits something takes longer for one request than for the next: what a client says of pushes counts in
/// the order in which it came all the same, and the hook that has let the client in is not asked again.
#[tokio::test(start_paused = true)]
async fn acknowledgements_keep_their_order_whatever_the_hook_takes() {
    let asked = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&asked);
    let builder = echoing().auth(move |_| {
        let number = counted.fetch_add(1, Ordering::Relaxed);
        async move {
            tokio::time::sleep(Duration::from_millis(if number % 2 == 1 { 300 } else { 10 })).await;
            Ok::<_, String>(())
        }
    });
    let server = builder.build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (mut client, _, session) = enabled(&server, listening.address()).await;
    let receipts: Vec<_> = (0..6).map(|_| session.push(&push("a")).expect("small")).collect();
    for offset in 1..=6_u64 {
        hears_push(&mut client, offset, "a").await;
        let pairs = pair(keys::ACK_OFFSETS, format!("{offset},{offset}"));
        let pairs = match offset % 2 {
            1 => pairs.with(keys::ACK_FAILED, format!("{offset}:error")),
            _ => pairs,
        };
        client.say(control_oneway(20 + offset, keys::ACK, &pairs, b"")).await;
    }
    let expected = [Stage::Failed(Failure::Error), Stage::Handled];
    for (number, receipt) in receipts.iter().enumerate() {
        let outcomes = soon(receipt.handled()).await;
        assert_eq!(outcomes.at(expected[number % 2]), 1, "push {number}: {outcomes:?}");
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1, "of `Enable`");
    client.say(control(30, keys::LEAVE, &pair(keys::ACK_OFFSETS, "6,6"), b"")).await;
    assert_eq!(client.next().await.error_text(), None);
    assert_eq!((asked.load(Ordering::Relaxed), server.stats().sessions), (1, 0));
}

/// What a plain client brings along when it takes its session to another connection stays within the bounds of one
/// session, however often it does so; it is told how much was left out. What the server subscribed it to goes along.
#[tokio::test(start_paused = true)]
async fn a_session_is_brought_no_more_than_it_may_have() {
    let builder = echoing().topic(">", bothways::session::TopicOptions::new().open()).expect("a pattern");
    let server = builder.sessions(SessionOptions::new().subscriptions_max(3)).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (_client, mut welcome, session) = enabled(&server, listening.address()).await;
    let mut left_out = Vec::new();
    for round in 0..3 {
        let mut client = Scripted::connect(listening.address()).await;
        for number in 0..2 {
            let header = Header::request(Seq::new(3), SerializeType::JSON);
            let args = format!("{{\"Topic\": \"t.{round}.{number}\"}}");
            let subscribe =
                Message::new(header, keys::CONTROL_PATH, keys::SUBSCRIBE, &Metadata::new(), args.as_bytes());
            client.say(subscribe.frame()).await;
            assert_eq!(client.next().await.error_text(), None);
        }
        let all = server.sessions(&Target::everyone()).expect("no topic");
        let fresh = all.iter().find(|other| **other != session).expect("its own");
        fresh.subscribe(&format!("by.server.{round}")).expect("it lives");
        let answer = ask(&mut client, keys::RESUME, &resume_pairs(&welcome, 0)).await;
        assert_eq!(answer.get(keys::SESSION_RESUMED), Some("1"));
        left_out.push(answer.get("_bw.out").map(str::to_owned));
        welcome = answer;
    }
    let asked_for = session.subscriptions().iter().filter(|topic| topic.starts_with("t.")).count();
    assert_eq!(asked_for, 2, "as many as there is room for: {:?}", session.subscriptions());
    assert_eq!(session.subscriptions().len(), asked_for + 3);
    let left_out: usize = left_out.into_iter().flatten().map(|count| count.parse::<usize>().expect("a number")).sum();
    assert_eq!(left_out, 6 - asked_for);
}

/// What one connection asks of one topic is done in the order in which it came, though the hook of the first takes
/// longer than that of the second; another topic does not wait.
#[tokio::test(start_paused = true)]
async fn requests_about_one_topic_are_handled_in_order() {
    let slow = Duration::from_millis(300);
    let builder = echoing().auth(move |request| async move {
        let is_slow = request.service_method() == keys::UNSUBSCRIBE;
        tokio::time::sleep(if is_slow { slow } else { Duration::from_millis(1) }).await;
        Ok::<_, String>(())
    });
    let builder = builder.topic(">", bothways::session::TopicOptions::new().open()).expect("a pattern");
    let server = builder.build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (mut client, _, session) = enabled(&server, listening.address()).await;
    let about = |seq, method, topic: &str| {
        let args = format!("{{\"Topic\": \"{topic}\"}}");
        let header = Header::request(Seq::new(seq), SerializeType::JSON);
        Message::new(header, keys::CONTROL_PATH, method, &Metadata::new(), args.as_bytes()).frame().clone()
    };
    client.say(about(1, keys::SUBSCRIBE, "a")).await;
    client.next().await;
    for (seq, method, topic) in
        [(2, keys::UNSUBSCRIBE, "a"), (3, keys::SUBSCRIBE, "a"), (4, keys::SUBSCRIBE, "b"), (5, keys::UNSUBSCRIBE, "b")]
    {
        client.say(about(seq, method, topic)).await;
    }
    let mut answered = Vec::new();
    for _ in 0..4 {
        let reply = client.next().await;
        assert_eq!(reply.error_text(), None);
        answered.push(reply.header().seq().get());
    }
    let place = |seq| answered.iter().position(|answered| *answered == seq);
    assert!(place(4) < place(2) && place(2) < place(3), "{answered:?}");
    assert_eq!(session.subscriptions(), ["a"]);
}
