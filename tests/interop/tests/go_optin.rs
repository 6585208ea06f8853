//! Applications on Go's unmodified library that opt in by the helper of `go/bothways`: a Rust server calls them, and
//! they miss nothing when their connection is lost.

use std::time::Duration;

use bothways::{
    CallError, CallOptions, Caller, Client, ClientOptions, Metadata, Push, Request, Response, Router, Server,
    ServerBuilder, Session, Stage, Target, server::Listening,
};
use bothways_interop::{
    LONG,
    contract::{Args, Reply},
    go::{Go, go},
    process::Process,
    until, within,
};
use serde_json::{Value, json};
use tokio::{process::Command, sync::mpsc, task::JoinHandle};

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

/// A running `cmd/optin`.
struct App(Process);

impl App {
    fn start(go: Go, listening: &Listening, arguments: &[&str]) -> Self {
        let mut command = Command::new(go.program("optin"));
        command.args(["-addr", listening.address()]).args(arguments);
        Self(Process::start(command))
    }

    /// The application of user `ann`, and its session.
    async fn of_ann(go: Go, server: &Server, listening: &Listening, arguments: &[&str]) -> (Self, Session) {
        let mut app = Self::start(go, listening, &[&["-token", "ann"], arguments].concat());
        assert_eq!(app.next("connected").await["lost"], "");
        let session = server.sessions(&Target::user("ann")).expect("no topic").remove(0);
        (app, session)
    }

    /// The next event, which is of this kind.
    async fn next(&mut self, event: &str) -> Value {
        let line = self.0.line(LONG).await;
        let value: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
        assert_eq!(value["event"], event, "{line}");
        value
    }

    async fn end(mut self) {
        let status = self.0.stop(LONG).await;
        assert!(status.success(), "it complained: {}", self.0.errors());
        assert_eq!(self.0.lines_so_far(), [""; 0], "nothing is left unread");
    }
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
    let (app, session) = App::of_ann(go, &server, &listening, &[]).await;
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
    let (mut app, session) = App::of_ann(go, &server, &listening, &[]).await;
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
    let (mut app, session) = App::of_ann(go, &server, &listening, &[]).await;
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
    let (server, listening) = serve(Server::builder().session_log(50, 1 << 20)).await;
    let (mut app, session) = App::of_ann(go, &server, &listening, &["-delay", "1ms"]).await;
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
        let line = app.0.line(LONG).await;
        let said: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
        if said["event"] == "connected" {
            assert_eq!(said["lost"], "", "it is the same session");
            came_back += 1;
            cut_at = (came_back < CUTS).then_some(number + 70);
            continue;
        }
        assert_eq!((&said["text"], &said["offset"]), (&json!(number.to_string()), &json!(number + 1)), "{line}");
        if cut_at == Some(number) {
            match came_back + 1 {
                CUTS => session.connection().expect("it came back").close(),
                _ => app.0.tell("cut").await,
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
    let (mut app, session) = App::of_ann(go, &server, &listening, &[]).await;
    let call = asking(&session, "Count", LONG);
    app.next("counting").await;
    app.0.tell("cut").await;
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
    let (mut app, session) = App::of_ann(go, &server, &listening, &[]).await;
    session.push(&Push::new("Chat", "say", "before")).expect("small");
    assert_eq!(app.next("push").await["offset"], 1);
    assert_eq!(server.kick(&Target::user("ann"), "maintenance").expect("no topic"), 1);
    assert_eq!(app.next("connected").await["lost"], "unknown");
    let fresh = server.sessions(&Target::user("ann")).expect("no topic").remove(0);
    assert_ne!(fresh.id(), session.id());
    let receipt = fresh.push(&Push::new("Chat", "say", "after")).expect("small");
    let push = app.next("push").await;
    assert_eq!((&push["text"], &push["offset"]), (&json!("after"), &json!(1)));
    assert_eq!(within(LONG, "the acknowledgement", receipt.handled()).await.at(Stage::Handled), 1);
    app.end().await;
}

/// A server with a plain Go client, a Go client with the helper, and a Rust client: pushes reach all three in the form
/// that each understands, and calls reach the two that can be called.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_server_serves_all_three() {
    let Some(go) = go() else { return };
    let (server, listening) = server().await;
    let mut plain = App::start(go, &listening, &["-token", "ann", "-topic", "news.sport", "-plain"]);
    plain.next("joined").await;
    let mut helped = App::start(go, &listening, &["-token", "ann", "-topic", "news.*"]);
    helped.next("connected").await;
    helped.next("joined").await;
    let (sender, mut heard) = mpsc::unbounded_channel();
    let handlers = Router::new()
        .handler("Chat", "say", move |request: Request| {
            let payload = request.payload().expect("not packed");
            sender
                .send((String::from_utf8(payload.to_vec()).expect("a text"), request.metadata()))
                .expect("it is heard");
            std::future::ready(bothways::Reply::ok(""))
        })
        .function("Device", "Mul", |args: Args| async move { Ok::<_, String>(Reply { c: args.a * args.b }) });
    let rust = Client::with_handlers(listening.address(), ClientOptions::new().auth("ann"), handlers).await;
    let rust = rust.expect("it listens");
    rust.call::<()>("Topics", "Join", &"news.>".to_owned()).await.expect("a pattern");

    let targets = [Target::user("ann"), Target::topic("news.sport"), Target::everyone()];
    for (number, target) in (1..).zip(targets) {
        let text = format!("push {number}");
        let push = Push::new("Chat", "say", text.clone()).metadata(Metadata::new().with("k", "v"));
        let receipt = server.push(&target, &push).expect("small");
        for (app, offset) in [(&mut plain, 0), (&mut helped, number)] {
            let said = app.next("push").await;
            assert_eq!((&said["method"], &said["text"]), (&json!("Chat.say"), &json!(text)), "{said}");
            assert_eq!((&said["offset"], &said["metadata"]), (&json!(offset), &json!({"k": "v"})), "{said}");
        }
        let (said, pairs) = within(LONG, "the Rust client", heard.recv()).await.expect("it lives");
        assert_eq!((said, pairs.get("k")), (text, Some("v")));
        let outcomes = within(LONG, "the acknowledgements", receipt.handled()).await;
        let stages = [Stage::Handled, Stage::PlainWritten].map(|stage| outcomes.at(stage));
        assert_eq!((outcomes.targets(), stages), (3, [2, 1]));
    }

    let (mut answered, mut unsupported) = (0, 0);
    for session in server.sessions(&Target::user("ann")).expect("no topic") {
        match ask(&session, "Mul", Args { a: 6, b: 7 }, LONG).await {
            Ok(reply) => {
                assert_eq!(reply, Reply { c: 42 });
                answered += 1;
            }
            Err(CallError::NotSupported) => unsupported += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!((answered, unsupported), (2, 1));
    helped.end().await;
    plain.end().await;
    rust.close();
    until("every plain connection's session is over", LONG, || async {
        server.sessions(&Target::everyone()).expect("no topic").iter().all(Session::is_resumable)
    })
    .await;
}
