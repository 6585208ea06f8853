//! Why a message arrived, or did not.

use std::time::Duration;

use bothways::{
    CallError, CallOptions, Caller, Class, Client, ClientOptions, Push, QueueBound, Reconnect, Reply, Request, Router,
    SerializeType, Server, ServerMessages, SessionOptions, Target, caller::RawCall, session::Standing,
};
use bothways_proto::{Capabilities, Metadata, keys};

use crate::{
    scripted::{self, Scripted},
    support::{address, settle, until},
};

fn server() -> bothways::ServerBuilder {
    Server::builder().auth(|request| async move {
        if let Some(session) = request.session() {
            session.bind_user(&request.token);
        }
        Ok::<_, String>(())
    })
}

async fn client(address: &str, user: &str) -> (Client, ServerMessages) {
    let options = ClientOptions::new().auth(user).backoff(Duration::from_millis(1), Duration::from_millis(1));
    let client = Client::bidirectional(address, options).await.expect("it listens");
    settle().await;
    client
}

/// The events of the one session that is told of, without their times.
fn story(server: &Server, target: &Target) -> Vec<String> {
    let told = server.explain(target).expect("no topic");
    assert_eq!(told.len(), 1, "{told:#?}");
    told[0].events.iter().map(|happened| happened.event.to_string()).collect()
}

/// From connecting to a lost connection, a resume, and the end: one story, in order, without a word of what was sent.
#[tokio::test(start_paused = true)]
async fn a_session_tells_its_story() {
    let server = server().build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (client, mut messages) = client(listening.address(), "ann").await;
    let ann = Target::user("ann");
    let session = server.sessions(&ann).expect("no topic")[0].clone();
    session.subscribe("news.*").expect("a pattern");
    server.push(&ann, &Push::new("Chat", "say", "top secret")).expect("small");
    drop(messages.next().await.expect("it came"));
    settle().await;
    tokio::time::sleep(Duration::from_millis(100)).await;

    let first = session.connection().expect("it is up").id();
    let place = listening.address().to_owned();
    drop(listening);
    client.connection().expect("it is up").close();
    until(|| session.connection().is_none()).await;
    assert_eq!(server.explain(&ann).expect("no topic")[0].standing, Standing::Away);
    session.push(&Push::new("Chat", "say", "while away")).expect("small");
    // Events are told in the order of their moments.
    tokio::time::advance(Duration::from_millis(1)).await;
    session.push(&Push::new("Chat", "typing", "").class(Class::Fire)).expect("small");
    let _listening = server.listen(&place).await.expect("the name is free again");
    drop(messages.next().await.expect("it came"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let second = session.connection().expect("it is up").id();
    server.kick(&ann, "maintenance").expect("no topic");
    settle().await;

    let told = server.explain(&Target::session(session.id())).expect("no topic");
    assert_eq!((told[0].standing.clone(), told[0].user.as_deref()), (Standing::Ended, Some("ann")));
    let lines = story(&server, &Target::session(session.id()));
    let expected = [
        &format!("connected as {first}")[..],
        "user ann",
        "its client speaks sessions and may come back to it",
        "subscribed to news.*",
        "push Chat.say (tracked, offset 1, ",
        &format!("connection {first} lost: "),
        "push Chat.say (tracked, offset 2, ",
        "push Chat.typing (fire, ",
        &format!("resumed as {second}, generation 2; 0 pushes are sent again"),
        "ended: maintenance",
        &format!("connection {second} lost: "),
    ];
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, begins) in lines.iter().zip(expected) {
        assert!(line.starts_with(begins), "`{line}` does not begin with `{begins}`");
    }
    assert!(lines[4].contains("written after 0 ms, ") && lines[4].contains("handled after "));
    assert!(lines[5].ends_with("the session waits for its client"));
    assert!(lines[7].ends_with("dropped with its connection after 0 ms"));
    let text = told[0].to_string();
    assert!(text.starts_with(&format!("session {} of ann, ended\n", session.id())), "{text}");
    assert!(!text.contains("secret") && !text.contains("while away"), "{text}");
}

/// A push is told of at each of its stages, with the time that each took, also if nothing else is done with it meanwhile.
#[tokio::test(start_paused = true)]
async fn a_push_is_told_of_on_its_way() {
    let server = server().build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (_client, mut messages) = client(listening.address(), "ann").await;
    let ann = Target::user("ann");
    let last = || story(&server, &ann).pop().expect("there is a story");
    for looks_between in [true, false] {
        server.push(&ann, &Push::new("Chat", "say", "x")).expect("small");
        if looks_between {
            assert!(last().ends_with("written after 0 ms, its client has not confirmed it"), "{}", last());
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let message = messages.next().await.expect("it came");
        tokio::time::sleep(Duration::from_millis(700)).await;
        if looks_between {
            assert!(last().ends_with("its client has not handled it yet"), "{}", last());
        }
        drop(message);
        tokio::time::sleep(Duration::from_millis(300)).await;
        let line = last();
        assert!(line.contains("written after 0 ms, received after "), "{line}");
        let (_, after) = line.split_once("handled after ").expect("it is handled");
        let after: u64 = after.trim_end_matches(" ms").parse().expect("a number");
        assert!((1000..1300).contains(&after), "{line}");
    }
}

/// What a client's queue had no room for, and what is sent again, is told with its reason.
#[tokio::test(start_paused = true)]
async fn what_did_not_arrive_has_its_reason() {
    let server = server().sessions(SessionOptions::new().log(QueueBound::messages(2).bytes(1 << 20))).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (client, mut messages) = client(listening.address(), "ann").await;
    let session = server.sessions(&Target::user("ann")).expect("no topic")[0].clone();
    for _ in 0..3 {
        session.push(&Push::new("Chat", "say", "x")).expect("small");
    }
    client.connection().expect("it is up").close();
    settle().await;
    until(|| session.generation() == 2).await;
    messages.next().await.expect("it came");
    let lines = story(&server, &Target::user("ann"));
    let refused = "dropped because too much waited already, after 0 ms";
    assert_eq!(lines.iter().filter(|line| line.ends_with(refused)).count(), 1, "{lines:#?}");
    assert!(lines.iter().any(|line| line.ends_with("2 pushes are sent again")), "{lines:#?}");
    assert!(lines.iter().any(|line| line == "told its client that 1 pushes were dropped so far"), "{lines:#?}");
}

/// A call to a client is one event, which says what came of it.
#[tokio::test(start_paused = true)]
async fn calls_are_told_too() {
    let server = server().build();
    let listening = server.listen(&address()).await.expect("a free name");
    let handlers = Router::new().handler("Device", "Beep", |_: Request| std::future::ready(Reply::ok("beep"))).handler(
        "Device",
        "Sleep",
        |_: Request| std::future::pending::<Reply>(),
    );
    let options = ClientOptions::new().auth("ann");
    let _client = Client::with_handlers(listening.address(), options, handlers).await.expect("it listens");
    settle().await;
    let session = server.sessions(&Target::user("ann")).expect("no topic")[0].clone();
    let call = |method| RawCall {
        service_path: "Device",
        service_method: method,
        serialize: SerializeType::RAW,
        payload: "x".into(),
        options: CallOptions::new().timeout(Duration::from_millis(250)),
    };
    session.call_raw(call("Beep")).await.expect("answered");
    let late = session.call_raw(call("Sleep")).await.expect_err("it sleeps");
    assert!(matches!(late, CallError::TimedOut(_)), "{late}");
    let lines = story(&server, &Target::user("ann"));
    assert!(lines[3].starts_with("call Device.Beep: answered after "), "{lines:#?}");
    assert!(lines[4].starts_with("call Device.Sleep: failed: ") && lines[4].contains("250ms"), "{lines:#?}");
}

/// So many sessions that ended are known, and a session that only made way for another one is none of them.
#[tokio::test(start_paused = true)]
async fn the_last_that_ended_are_known() {
    let server = server().sessions(SessionOptions::new().events_max(8).ended_max(2)).build();
    let listening = server.listen(&address()).await.expect("a free name");
    for user in ["ann", "bob", "cid"] {
        let (client, _messages) = client(listening.address(), user).await;
        client.connection().expect("it is up").close();
        until(|| server.sessions(&Target::user(user)).expect("no topic")[0].generation() == 2).await;
        server.kick(&Target::user(user), "enough").expect("no topic");
        client.close();
        until(|| server.stats().connections == 0).await;
    }
    let known = |user: &str| {
        let told = server.explain(&Target::user(user)).expect("no topic");
        told.iter()
            .filter(|told| told.events.iter().any(|happened| happened.event.to_string() == "ended: enough"))
            .count()
    };
    assert_eq!((known("ann"), known("bob"), known("cid")), (0, 1, 1));
    let off = Server::builder().sessions(SessionOptions::new().events_max(0).ended_max(256)).build();
    let listening = off.listen(&address()).await.expect("a free name");
    let _client = client_of(listening.address()).await;
    assert_eq!(off.explain(&Target::everyone()).expect("no topic")[0].events, []);
}

/// One message is kept by the application while others come and go: it is told which one, and for how long.
#[tokio::test(start_paused = true)]
async fn what_an_application_holds_is_told() {
    let server = server().build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (_client, mut messages) = client(listening.address(), "ann").await;
    let session = server.sessions(&Target::user("ann")).expect("no topic").remove(0);
    let mut kept = None;
    for number in 0..200 {
        session.push(&Push::new("Chat", "say", "x")).expect("small");
        let message = messages.next().await.expect("it came");
        if number == 2 {
            kept = Some(message);
        }
    }
    tokio::time::sleep(Duration::from_millis(300_500)).await;
    let held = session.held().expect("it holds one");
    assert_eq!((held.offset, held.for_ms / 1000, session.waiting().0), (3, 300, 1));
    let told = session.explain();
    assert_eq!(told.held, Some(held));
    assert!(told.to_string().contains("\nits client has held offset 3 for 300 s\n"), "{told}");
    drop(kept);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((session.held(), session.explain().held, session.waiting().0), (None, None, 0));
}

/// Health checks come and go, and leave nothing: who was kicked before them is still explained.
#[tokio::test(start_paused = true)]
async fn health_checks_drive_out_no_story() {
    let auth = |request: bothways::server::AuthRequest| async move {
        if let Some(session) = (!request.token.is_empty()).then(|| request.session()).flatten() {
            session.bind_user(&request.token);
        }
        Ok::<_, String>(())
    };
    let server = Server::builder().auth(auth).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (client, _messages) = client(listening.address(), "ann").await;
    server.kick(&Target::user("ann"), "enough").expect("no topic");
    client.close();
    until(|| server.stats().connections == 0).await;
    for _ in 0..300 {
        let plain = ClientOptions::new().negotiate(false).reconnect(Reconnect::Never);
        let check = Client::connect(listening.address(), plain).await.expect("it listens");
        check.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
        check.close();
        until(|| server.stats().connections == 0).await;
    }
    settle().await;
    assert_eq!(server.stats().sessions, 0, "none was made, and none is left");
    let lines = story(&server, &Target::everyone());
    assert!(lines.iter().any(|line| line == "ended: enough"), "{lines:#?}");
}

async fn client_of(address: &str) -> (Client, ServerMessages) {
    client(address, "").await
}

/// Strangers come and go, whatever they say and whatever is pushed to everybody meanwhile: who was sent something before
/// them is still explained, and nothing is told of them.
#[tokio::test(start_paused = true)]
async fn strangers_drive_out_no_story() {
    let auth = |request: bothways::server::AuthRequest| async move {
        let session = request.session();
        if request.token != "ann" {
            return Err("no");
        }
        session.iter().for_each(|session| session.bind_user(&request.token));
        Ok(())
    };
    let server = Server::builder().auth(auth).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (client, _messages) = client(listening.address(), "ann").await;
    server.push(&Target::user("ann"), &Push::new("T", "Hi", "")).expect("she is there");
    client.close();
    until(|| server.stats().connections == 0).await;

    let wrong = Metadata::new().with(keys::AUTH, "bad");
    let says = [
        scripted::ping(1),
        scripted::hello(0, Capabilities::ALL, &wrong),
        scripted::request_with(1, "Echo", &wrong, b""),
        scripted::control(1, keys::ENABLE, keys::AUTH, "bad"),
    ];
    for said in says.iter().cycle().take(600) {
        let mut stranger = Scripted::connect(listening.address()).await;
        stranger.say(said).await;
        settle().await;
        server.push(&Target::everyone(), &Push::new("T", "Hi", "")).expect("nobody is there");
        drop(stranger);
        until(|| server.stats().connections == 0).await;
    }
    settle().await;
    let lines = story(&server, &Target::everyone());
    assert!(lines.iter().any(|line| line.starts_with("push T.Hi")), "{lines:#?}");
    assert_eq!(story(&server, &Target::user("ann")), lines);
}
