//! Who may call: the token on requests and on the Hello.

use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bothways::{
    AuthError, CallOptions, Class, Client, ClientOptions, CloseReason, ConnectError, ConnectionEvent, ErrorCode,
    Metadata, Push, Reconnect, Reply, Request, Router, Server, Target,
    server::AuthRequest,
    session::{SessionId, TopicOptions},
};
use bothways_proto::{Capabilities, Header, Message, Seq, SerializeType, keys};
use tokio::sync::{Semaphore, mpsc};

use crate::{
    scripted::{Scripted, arrive, claim, hello, is_control, oneway, ping, request, request_with},
    support::{Log, address, call, call_with, connections, echoing, gate, oneshot_to, settle, soon},
};

async fn check(request: AuthRequest) -> Result<(), String> {
    match &*request.token {
        "bearer good" => Ok(()),
        "bearer slow" => {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok(())
        }
        "bearer slow and bad" => {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Err("it was bad after all".to_owned())
        }
        "bearer panics" => panic!("a secret"),
        token => Err(format!("no: {token}")),
    }
}

/// A server that counts what acts.
fn guarded() -> (Server, Arc<AtomicUsize>) {
    let acted = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&acted);
    let server = echoing()
        .handler("T", "Act", move |_| {
            counts.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Reply::ok("acted"))
        })
        .auth(check)
        .build();
    (server, acted)
}

/// The hook knows a Hello from a request, and of a request what is asked for.
#[tokio::test(start_paused = true)]
async fn a_hello_is_told_from_a_request() {
    for negotiates in [true, false] {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        let server = echoing()
            .auth(move |request: AuthRequest| {
                seen.lock().expect("no panic").push((request.is_hello(), request.service_method().to_owned()));
                std::future::ready(Ok::<(), String>(()))
            })
            .build();
        let listening = server.listen(&address()).await.expect("the name is free");
        let options = ClientOptions::new().negotiate(negotiates);
        let client = Client::connect(listening.address(), options).await.expect("it listens");
        call(&client, "Nothing", "").await.expect_err("there is no such method");
        let first = asked.lock().expect("no panic")[0].clone();
        assert_eq!(first, if negotiates { (true, String::new()) } else { (false, "Nothing".to_owned()) });
    }
}

/// The token goes with the Hello and every request; the server's hook sees it.
#[tokio::test(start_paused = true)]
async fn a_good_token_opens() {
    let (server, acted) = guarded();
    let listening = server.listen(&address()).await.expect("the name is free");
    for token in ["bearer good", "bearer slow"] {
        let options = ClientOptions::new().auth(token);
        let client = Client::connect(listening.address(), options).await.expect("it listens");
        assert_eq!(call(&client, "Act", "").await.expect("answered"), "acted");
    }
    assert_eq!(acted.load(Ordering::Relaxed), 2);
}

/// 1.7. A refused request is answered with the hook's words, then the connection is closed; what was
/// right behind it does not run.
#[tokio::test(start_paused = true)]
async fn a_refused_request_is_answered_and_the_connection_closed() {
    let (server, acted) = guarded();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    let good = Metadata::new().with(keys::AUTH, "bearer good");
    client.say([request(5, "Act", b""), request_with(6, "Act", &good, b"")].concat()).await;
    let answer = client.next().await;
    assert_eq!((answer.header().seq(), answer.error_text().as_deref()), (Seq::new(5), Some("no: ")));
    client.hears_the_end().await;
    assert_eq!(acted.load(Ordering::Relaxed), 0);
    drop(client);
    connections(&server, 0).await;
}

/// 1.7. A refused oneway request closes the connection without a frame.
#[tokio::test(start_paused = true)]
async fn a_refused_oneway_request_closes_without_a_frame() {
    let (server, acted) = guarded();
    let listening = server.listen(&address()).await.expect("the name is free");
    for token in ["", "bearer slow and bad"] {
        let mut client = Scripted::connect(listening.address()).await;
        let header = Header::oneway(Seq::new(1), SerializeType::RAW);
        let metadata = Metadata::new().with(keys::AUTH, token);
        client.say(Message::new(header, "T", "Act", &metadata, b"").frame()).await;
        client.hears_the_end().await;
    }
    assert_eq!(acted.load(Ordering::Relaxed), 0);
}

/// Even what nobody serves is not told to strangers.
#[tokio::test(start_paused = true)]
async fn a_stranger_does_not_learn_what_is_served() {
    let (server, _) = guarded();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    client.say(request(0, "None", b"")).await;
    assert_eq!(client.next().await.error_text().as_deref(), Some("no: "));
}

/// S9. A Hello is authenticated, unlike a plain heartbeat: a refused one is told why, then closed, and
/// nothing behind it acts.
#[tokio::test(start_paused = true)]
async fn a_hello_is_authenticated() {
    let (server, acted) = guarded();
    let listening = server.listen(&address()).await.expect("the name is free");
    for token in ["bearer bad", "bearer slow and bad"] {
        let mut client = Scripted::connect(listening.address()).await;
        let bad = Metadata::new().with(keys::AUTH, token);
        client.say([hello(0, Capabilities::ALL, &bad), request_with(1, "Act", &bad, b"")].concat()).await;
        let answer = client.next().await;
        assert!(answer.header().is_heartbeat(), "{answer:?}");
        assert_eq!(answer.metadata().get(keys::ERROR_CODE), Some(ErrorCode::Unauthenticated.name()));
        assert!(answer.error_text().is_some_and(|text| !text.is_empty()));
        while let Some(message) = client.try_next().await {
            assert!(message.error_text().is_some(), "{message:?}");
        }
    }
    assert_eq!(acted.load(Ordering::Relaxed), 0);
    let mut plain = Scripted::connect(listening.address()).await;
    plain.say(ping(0)).await;
    assert!(plain.next().await.error_text().is_none());
}

/// A client whose token is refused is told so, and does not come back on its own.
#[tokio::test(start_paused = true)]
async fn a_refused_client_does_not_come_back() {
    let (server, _) = guarded();
    let listening = server.listen(&address()).await.expect("the name is free");
    let error = Client::connect(listening.address(), ClientOptions::new().auth("bearer bad")).await;
    let error = error.expect_err("its Hello is refused");
    assert!(matches!(&error, ConnectError::Refused { reason, .. } if reason == "no: bearer bad"), "{error}");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(server.stats().connections_accepted, 1);
}

/// S6. A hook that panics refuses nobody for good and lets nobody in: a Hello is answered with "not now", and a request
/// of a plain client with an error.
#[tokio::test(start_paused = true)]
async fn a_hook_that_panics_lets_nobody_in() {
    let (server, acted) = guarded();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    let panics = Metadata::new().with(keys::AUTH, "bearer panics");
    let is_told = |answer: &Message| {
        let text = answer.error_text().expect("an error");
        assert!(text.starts_with("internal error") && !text.contains("secret"), "{text}");
    };
    client.say([hello(0, Capabilities::ALL, &panics), request_with(1, "Act", &panics, b"")].concat()).await;
    let answer = client.next().await;
    is_told(&answer);
    assert_eq!(answer.metadata().get(keys::ERROR_CODE), Some(ErrorCode::Overloaded.name()));
    assert_eq!(answer.metadata().get(keys::RETRY_AFTER), Some("1000"));
    client.hears_the_end().await;

    let mut client = Scripted::connect(listening.address()).await;
    client.say(request_with(1, "Act", &panics, b"")).await;
    is_told(&client.next().await);
    settle().await;
    assert_eq!(acted.load(Ordering::Relaxed), 0);
}

/// However a Hello is refused: if the answer says by its code that the connection ends, nothing that was sent after the
/// Hello is run, though the hook would have let it run. A refusal of which the hook knows nothing says so or runs nothing.
#[tokio::test(start_paused = true)]
async fn nothing_behind_a_hello_is_run_if_its_refusal_closes() {
    let refuses = |way: &'static str, late: bool| {
        move |request: AuthRequest| {
            assert!(!request.is_hello() || way != "panics at once", "a secret");
            async move {
                if late {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                match way {
                    _ if !request.is_hello() => Ok(()),
                    "refuses" => Err(AuthError::from("no")),
                    "not now" => Err(AuthError::not_now("busy", NOT_BEFORE)),
                    "panics" => panic!("a secret"),
                    _ => Ok(()),
                }
            }
        }
    };
    let ways = ["refuses", "not now", "panics", "panics at once", "long payload", "long metadata", "many pairs"];
    for (way, late) in ways.into_iter().flat_map(|way| [(way, false), (way, true)]) {
        let acted = Arc::<AtomicUsize>::default();
        let counts = Arc::clone(&acted);
        let counting = move |_| {
            counts.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Reply::ok("acted"))
        };
        let server = echoing().handler("T", "Act", counting).auth(refuses(way, late)).build();
        let listening = server.listen(&address()).await.expect("the name is free");

        let mut said = Metadata::new();
        bothways_proto::Hello { version: 1, capabilities: Capabilities::ALL }.put(&mut said);
        match way {
            "long metadata" => said.insert("pair", "x".repeat(70 << 10)),
            "many pairs" => (0..200).for_each(|n| said.insert(&format!("pair {n}"), "")),
            _ => {}
        }
        let payload = if way == "long payload" { vec![0; 8 << 10] } else { Vec::new() };
        let hello = Message::ping(Seq::new(0), &said, &payload);
        let mut client = Scripted::connect(listening.address()).await;
        let behind = [hello.frame(), &request(1, "Act", b"")[..], &oneway(2, "Act", b"")[..]].concat();
        client.say(behind).await;
        let answer = client.next().await;
        assert!(answer.header().is_heartbeat() && answer.error_text().is_some(), "{way}: {answer:?}");
        let code = answer.metadata().get(keys::ERROR_CODE).map(str::to_owned).expect("why");
        if ["unauthenticated", "overloaded"].contains(&&*code) {
            client.hears_the_end().await;
            assert_eq!(acted.load(Ordering::Relaxed), 0, "{way}: {code}");
        } else {
            assert_eq!(code, "bad_arguments", "{way}");
        }
        assert!(code != "unauthenticated" || way == "refuses", "{way}: only the hook refuses a token");
    }
}

/// One connection of a plain client may carry the tokens of several users. What a hook attaches stays with its request,
/// whatever others call meanwhile; the user of the session is the last one, and the log says so once in a while.
#[tokio::test(start_paused = true)]
async fn a_request_keeps_who_sent_it_where_its_session_does_not() {
    struct Sender(String);

    let log = Log::default();
    let kept = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_ansi(false)
        .with_writer(move || kept.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let (gate, mut asked) = gate();
    let server = echoing()
        .handler("T", "Who", gate)
        .auth(|request: AuthRequest| async move {
            request.session().ok_or("the client has left")?.bind_user(&request.token);
            request.attach(Sender(request.token.clone()));
            Ok::<_, &str>(())
        })
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let said = |token| Metadata::new().with(keys::AUTH, token);

    let mut negotiated = Scripted::connect(listening.address()).await;
    negotiated.say(hello(0, Capabilities::ALL, &said("ann"))).await;
    negotiated.say(request_with(1, "Who", &said("bob"), b"")).await;
    soon(asked.recv()).await.expect("it runs").answer(Reply::ok(""));
    let mut plain = Scripted::connect(listening.address()).await;
    for (seq, token) in [(1, "ann"), (2, "ann")] {
        plain.say(request_with(seq, "Who", &said(token), b"")).await;
        soon(asked.recv()).await.expect("it runs").answer(Reply::ok(""));
    }
    settle().await;
    assert!(!log.text().contains("another user"), "{}", log.text());

    let mut running = Vec::new();
    for (seq, token) in [(3, "ann"), (4, "bob"), (5, "carl")] {
        plain.say(request_with(seq, "Who", &said(token), b"")).await;
        running.push((token, soon(asked.recv()).await.expect("it runs")));
    }
    for (token, asked) in &running {
        assert_eq!(asked.request.extensions().get::<Sender>().map(|sender| &*sender.0), Some(*token));
        assert_eq!(asked.request.session().and_then(|session| session.user()).as_deref(), Some("carl"));
    }
    drop(guard);
    let log = log.text();
    assert_eq!(log.matches("was bound to another user").count(), 1, "{log}");
}

/// A token of one's own, on one call.
#[tokio::test(start_paused = true)]
async fn the_clients_token_replaces_that_of_a_call() {
    let (server, _) = guarded();
    let listening = server.listen(&address()).await.expect("the name is free");
    let options = ClientOptions::new().auth("bearer good");
    let client = Client::connect(listening.address(), options).await.expect("it listens");
    let mine = Metadata::new().with(keys::AUTH, "bearer bad").with("k", "v");
    let reply = call_with(&client, "Act", "", CallOptions::new().metadata(mine)).await;
    assert_eq!(reply.expect("the client's own token counts").payload, "acted");
}

/// A server whose hook cannot tell while its user database is down. It looks for a moment where the token says so.
fn with_database(reasons: &Arc<Mutex<Vec<CloseReason>>>) -> (Server, Arc<AtomicBool>, Arc<AtomicUsize>) {
    let (up, asked) = (Arc::new(AtomicBool::new(true)), Arc::<AtomicUsize>::default());
    let (is_up, counted, reasons) = (Arc::clone(&up), Arc::clone(&asked), Arc::clone(reasons));
    let server = echoing()
        .auth(move |request: AuthRequest| {
            counted.fetch_add(1, Ordering::Relaxed);
            let is_up = is_up.load(Ordering::Relaxed);
            async move {
                if request.token.contains("slow") {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                if is_up { Ok(()) } else { Err(AuthError::not_now("the user database is down", NOT_BEFORE)) }
            }
        })
        .on_disconnect(move |_, reason| reasons.lock().expect("whole").push(reason.clone()));
    (server.build(), up, asked)
}

const NOT_BEFORE: Duration = Duration::from_micros(20_000_500);

/// F53. A server that cannot check tokens says when to come back: the client does, not earlier, with the same token and
/// its session, and no refusal is counted.
#[tokio::test(start_paused = true)]
async fn a_hook_may_say_not_now() {
    for token in ["good", "slow"] {
        let (server, up, asked) = with_database(&Arc::default());
        let listening = server.listen(&address()).await.expect("the name is free");
        let tokens = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&tokens);
        let options = ClientOptions::new().refusals_max(Some(1)).credentials(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            std::future::ready(token)
        });
        let handlers = Router::new().handler("C", "say", crate::support::echo);
        let client = Client::with_handlers(listening.address(), options, handlers).await.expect("let in");
        let session = sole_session(&server);
        let mut events = client.events();
        up.store(false, Ordering::Relaxed);
        let before = asked.load(Ordering::Relaxed);
        connections(&server, 1).await[0].close();
        for _ in 0..3 {
            let event = soon(events.next()).await;
            assert!(matches!(event, Some(ConnectionEvent::Lost { .. })), "{event:?}");
        }
        let began = tokio::time::Instant::now();
        assert_eq!(asked.load(Ordering::Relaxed) - before, 2);
        assert_eq!(tokens.load(Ordering::Relaxed), 3, "once for each Hello");
        assert_eq!((server.stats().tokens_refused, server.stats().clients_not_admitted), (0, 2));
        up.store(true, Ordering::Relaxed);
        let event = soon(events.next()).await;
        assert!(matches!(event, Some(ConnectionEvent::Restored { .. })), "{event:?}");
        assert!(NOT_BEFORE <= began.elapsed(), "{:?}", began.elapsed());
        assert_eq!(sole_session(&server), session);
    }
}

/// F53. Who connects while tokens cannot be checked is let in when they can, or is told why not if it does not wait.
#[tokio::test(start_paused = true)]
async fn who_comes_while_tokens_cannot_be_checked_waits() {
    let (server, up, _) = with_database(&Arc::default());
    let listening = server.listen(&address()).await.expect("the name is free");
    up.store(false, Ordering::Relaxed);
    let impatient = ClientOptions::new().auth("good").reconnect(Reconnect::Never);
    let error = Client::connect(listening.address(), impatient).await.expect_err("not now");
    assert!(error.to_string().contains("the user database is down"), "{error}");
    let (client, ()) = tokio::join!(Client::connect(listening.address(), ClientOptions::new().auth("good")), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        up.store(true, Ordering::Relaxed);
    });
    assert_eq!(call(&client.expect("let in"), "Echo", "x").await.expect("answered"), "x");
}

/// F53. A call of a client that was let in fails as one that may be tried again, and its connection goes on.
#[tokio::test(start_paused = true)]
async fn a_call_whose_token_cannot_be_checked_may_be_tried_again() {
    for token in ["good", "slow"] {
        let (server, up, _) = with_database(&Arc::default());
        let listening = server.listen(&address()).await.expect("the name is free");
        let client = Client::connect(listening.address(), ClientOptions::new().auth(token)).await.expect("let in");
        up.store(false, Ordering::Relaxed);
        let error = call(&client, "Echo", "x").await.expect_err("not now");
        assert_eq!(error.code(), Some(ErrorCode::Overloaded), "{error}");
        assert!(error.is_safe_to_retry() && error.is_worth_retrying(), "{error}");
        oneshot_to(&client, "Echo", "x").await.expect("queued");
        settle().await;
        up.store(true, Ordering::Relaxed);
        assert_eq!(call(&client, "Echo", "x").await.expect("answered"), "x");
        assert_eq!(server.stats().connections_accepted, 1);
    }
}

/// F53. A plain client is told in words, and closed.
#[tokio::test(start_paused = true)]
async fn a_plain_client_whose_token_cannot_be_checked_is_told_and_closed() {
    let reasons = Arc::default();
    let (server, up, _) = with_database(&reasons);
    let listening = server.listen(&address()).await.expect("the name is free");
    up.store(false, Ordering::Relaxed);
    for token in ["good", "slow"] {
        let said = Metadata::new().with(keys::AUTH, token);
        let mut client = Scripted::connect(listening.address()).await;
        client.say(request_with(5, "Echo", &said, b"x")).await;
        let answer = client.next().await;
        assert_eq!(answer.error_text().as_deref(), Some("the user database is down"));
        assert!(answer.metadata().iter().all(|(key, _)| !key.starts_with("_bw.")), "{answer:?}");
        client.hears_the_end().await;
        let mut client = Scripted::connect(listening.address()).await;
        let header = Header::oneway(Seq::new(1), SerializeType::RAW);
        client.say(Message::new(header, "T", "Echo", &said, b"").frame()).await;
        client.hears_the_end().await;
    }
    connections(&server, 0).await;
    let reasons = std::mem::take(&mut *reasons.lock().expect("whole"));
    assert_eq!(reasons.len(), 4);
    for reason in reasons {
        assert!(matches!(&reason, CloseReason::NotAdmitted { retry_after: NOT_BEFORE, .. }), "{reason}");
    }
}

/// Nothing behind a Hello that was not let in for now is run, and its client knows when to come back.
#[tokio::test(start_paused = true)]
async fn nothing_behind_a_hello_that_is_not_let_in_now_is_run() {
    for token in ["good", "slow"] {
        let (server, up, asked) = with_database(&Arc::default());
        let listening = server.listen(&address()).await.expect("the name is free");
        up.store(false, Ordering::Relaxed);
        let said = Metadata::new().with(keys::AUTH, token);
        let mut client = Scripted::connect(listening.address()).await;
        client.say([hello(0, Capabilities::ALL, &said), request_with(1, "Echo", &said, b"x")].concat()).await;
        let answer = client.next().await;
        assert_eq!(answer.metadata().get(keys::ERROR_CODE), Some(ErrorCode::Overloaded.name()));
        assert_eq!(answer.metadata().get(keys::RETRY_AFTER), Some("20001"), "rounded up");
        client.hears_the_end().await;
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }
}

fn sole_session(server: &Server) -> SessionId {
    let sessions = server.sessions(&Target::everyone()).expect("no topic");
    assert_eq!(sessions.len(), 1);
    sessions[0].id()
}

/// What is pushed and broadcast to everyone goes to those who were let in: not to a client that says nothing, not to one
/// whose token is being checked, and not to one whose token is refused. One that is let in gets what waited for it.
#[tokio::test(start_paused = true)]
async fn a_stranger_is_sent_nothing_and_does_not_stay() {
    let (server, _) = guarded();
    let listening = server.listen(&address()).await.expect("the name is free");
    let with = |token: &str| Metadata::new().with(keys::AUTH, token);
    let mut silent = Scripted::connect(listening.address()).await;
    silent.say(ping(0)).await;
    assert!(silent.next().await.header().is_heartbeat());
    let mut bad = Scripted::connect(listening.address()).await;
    bad.say(request_with(1, "Act", &with("bearer slow and bad"), b"")).await;
    let mut good = Scripted::connect(listening.address()).await;
    good.say(request_with(1, "Act", &with("bearer slow"), b"")).await;

    settle().await;
    server.push(&Target::everyone(), &Push::new("News", "say", "secret")).expect("small");
    let sent = bothways::raw::broadcast(&server, "News", "shout", &Metadata::new(), b"secret").expect("small");
    assert_eq!(sent.queued, 0, "nobody was let in yet");

    let heard: Vec<_> = bad.rest().await.iter().map(|message| message.error_text()).collect();
    assert_eq!(heard, [Some("it was bad after all".to_owned())]);
    let (first, second) = (good.next().await, good.next().await);
    let methods = [first.service_method(), second.service_method()];
    assert!(methods.contains(&"say") && methods.contains(&"Act"), "{methods:?}");

    // Heartbeats are no token.
    let began = tokio::time::Instant::now();
    silent.say(ping(1)).await;
    let heard = silent.rest().await;
    assert!(heard.iter().all(|message| message.header().is_heartbeat()), "{heard:?}");
    assert!((290..310).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert!(bothways::raw::broadcast(&server, "News", "shout", &Metadata::new(), b"open").is_ok());
    assert_eq!(good.next().await.service_method(), "shout");
}

/// What a client says that comes back, with its token.
fn back(welcome: &Metadata, token: &str) -> Metadata {
    claim(welcome, 0).with(keys::AUTH, token)
}

fn id(welcome: &Metadata) -> SessionId {
    welcome.get(keys::SESSION_ID).expect("a session").parse().expect("a number")
}

/// A client that says Hello with these pairs, and the pairs of the answer.
async fn says_hello(address: &str, pairs: &Metadata) -> (Scripted, Metadata) {
    let mut client = Scripted::connect(address).await;
    client.say(hello(0, Capabilities::ALL, pairs)).await;
    let answer = client.next().await.metadata();
    (client, answer)
}

/// The hook sends a user's other sessions away, and counts its devices: the session that a client is about to get back
/// is its own, and a number that is no secret shows nobody's.
#[tokio::test(start_paused = true)]
async fn a_hook_knows_which_session_a_client_gets_back() {
    let at = Arc::new(OnceLock::<Server>::new());
    let of_hook = Arc::clone(&at);
    let server = Server::builder().auth(move |request: AuthRequest| {
        let server = of_hook.get().expect("it listens").clone();
        async move {
            let session = request.session().expect("it is connected");
            let (resumes, user) = (request.resumes().map(|session| session.id()), request.token.clone());
            let others = Target::user(user.clone()).except(session.id());
            session.bind_user(&user);
            session.set_label("resumes", resumes.map(|id| id.to_string()).unwrap_or_default());
            if user == "devices" && !server.sessions(&others).expect("no topic").is_empty() {
                return Err("1 device is in already");
            }
            if request.is_hello() {
                server.kick(&others, "logged in elsewhere").expect("no topic");
            }
            Ok(())
        }
    });
    let server = at.get_or_init(|| server.build()).clone();
    let listening = server.listen(&address()).await.expect("the name is free");
    for user in ["ann", "devices"] {
        let (client, welcome) = arrive(listening.address(), &Metadata::new().with(keys::AUTH, user)).await;
        let session = server.session(id(&welcome)).expect("it lives");
        assert_eq!(session.label("resumes").as_deref(), Some(""));
        client.reset();
        let (_client, again) = says_hello(listening.address(), &back(&welcome, user)).await;
        assert_eq!(again.get(keys::SESSION_RESUMED), Some("1"), "{user}: {again:?}");
        assert_eq!(session.label("resumes"), Some(session.id().to_string()));

        // Who knows the number and not the secret claims nothing.
        let guessed = back(&welcome, user).with(keys::SESSION_KEY, "guessed");
        let (_other, answer) = says_hello(listening.address(), &guessed).await;
        match user {
            "ann" => assert!(answer.get(keys::SESSION_ID).is_some() && server.session(session.id()).is_none()),
            _ => assert!(answer.get(keys::SESSION_ID).is_none() && server.session(session.id()).is_some()),
        }
    }
}

/// What the hook labels its client with is the session's that the client gets back, and stays beside what it had; a push
/// by label that comes while the token is checked goes to a session that has that label.
#[tokio::test(start_paused = true)]
async fn labels_of_the_hook_go_to_the_session_that_the_client_gets() {
    let (gate, hellos) = (Arc::new(Semaphore::new(1)), Arc::new(AtomicUsize::new(0)));
    let (of_hook, counts) = (Arc::clone(&gate), Arc::clone(&hellos));
    let server = Server::builder().auth(move |request: AuthRequest| {
        let (gate, number) = (Arc::clone(&of_hook), counts.fetch_add(1, Ordering::Relaxed));
        async move {
            let session = request.session().expect("it is connected");
            session.set_label("n", number.to_string());
            gate.acquire().await.expect("it is open").forget();
            Ok::<_, String>(())
        }
    });
    let server = server.build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (client, welcome) = arrive(listening.address(), &Metadata::new()).await;
    let session = server.session(id(&welcome)).expect("it lives");
    session.set_label("device", "phone");
    assert_eq!(session.label("n").as_deref(), Some("0"));
    client.reset();
    let mut client = Scripted::connect(listening.address()).await;
    client.say(hello(0, Capabilities::ALL, &claim(&welcome, 0))).await;
    settle().await;
    let push = Push::new("Chat", "say", "to the new");
    let receipt = server.push(&Target::everyone().only_labelled("n", "1"), &push).expect("small");
    gate.add_permits(1);
    assert_eq!(client.next().await.metadata().get(keys::SESSION_RESUMED), Some("1"));
    assert_eq!((session.label("n").as_deref(), session.label("device").as_deref()), (Some("1"), Some("phone")));
    assert_eq!(client.next().await.service_method(), "say");
    assert_eq!(receipt.outcomes().targets(), 1);
}

/// The hook subscribes each client to a topic that is full: who comes back has its place, also beside those who watch; one
/// that only knows the number has none, and one that does not get its session back does not stand there twice.
#[tokio::test(start_paused = true)]
async fn who_comes_back_has_its_place_in_a_full_topic() {
    let room = TopicOptions::new().open().presence(true).subscribers_max(2);
    let hook = |request: AuthRequest| async move {
        let session = request.session().expect("it is connected");
        session.subscribe("room").map_err(|error| error.to_string())
    };
    let server = Server::builder().topic("room", room).expect("a pattern").auth(hook).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let watcher = Client::bidirectional(listening.address(), ClientOptions::new()).await.expect("it listens");
    // It knows of topics from here on.
    watcher.0.subscribe("room").await.expect("open");
    let (client, welcome) = arrive(listening.address(), &Metadata::new()).await;
    client.reset();
    settle().await;
    let before = server.presence("room").expect("a topic");
    let (client, again) = says_hello(listening.address(), &claim(&welcome, 0)).await;
    assert_eq!(again.get(keys::SESSION_RESUMED), Some("1"), "{again:?}");
    settle().await;
    let after = server.presence("room").expect("a topic");
    assert_eq!(after.generation, before.generation, "nobody came or went");
    let (_stranger, refused) = says_hello(listening.address(), &claim(&welcome, 0).with(keys::SESSION_KEY, "?")).await;
    assert!(refused.get(keys::ERROR).is_some_and(|text| text.contains("2 sessions")), "{refused:?}");

    // It says that it has what it was never sent.
    client.reset();
    let (_client, other) = says_hello(listening.address(), &claim(&welcome, 1000)).await;
    assert_eq!(other.get(keys::SESSION_WHY), Some("gap"), "{other:?}");
    let subscribers = server.sessions(&Target::subscribers_of("room")).expect("a topic");
    assert_eq!(subscribers.len(), 2);
    assert!(subscribers.iter().any(|session| session.id() == id(&other)));
    let members: Vec<SessionId> =
        server.presence("room").expect("a topic").members.iter().flat_map(|member| member.sessions.clone()).collect();
    assert!(members.contains(&id(&other)) && !members.contains(&id(&welcome)), "{members:?}");
}

/// A client that breaks off while its token is checked is gone at once, whatever it has sent behind that.
#[tokio::test(start_paused = true)]
async fn who_breaks_off_while_its_token_is_checked_is_gone() {
    for sent_more in [false, true] {
        let server = echoing().auth(|_| std::future::pending::<Result<(), String>>()).build();
        let listening = server.listen(&address()).await.expect("the name is free");
        let mut client = Scripted::connect(listening.address()).await;
        let token = Metadata::new().with(keys::AUTH, "bearer good");
        client.say(hello(0, Capabilities::ALL, &token)).await;
        if sent_more {
            client.say(request_with(1, "Echo", &token, b"x")).await;
        }
        settle().await;
        assert_eq!(server.stats().connections, 1);
        client.reset();
        settle().await;
        assert_eq!(server.stats().connections, 0);
    }
}

/// A client's options: it asks for its token each time, which is that of this generation.
fn with_the_newest(generation: &Arc<AtomicUsize>) -> ClientOptions {
    let newest = Arc::clone(generation);
    ClientOptions::new().credentials(move || std::future::ready(format!("t{}", newest.load(Ordering::Relaxed))))
}

/// A server whose tokens run out: only `t0` counts, then `t1`, and so on; and how many slow calls it began.
fn with_tokens_that_run_out() -> (Server, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let (generation, began) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let (counts, counted) = (Arc::clone(&generation), Arc::clone(&began));
    let server = echoing()
        .handler("T", "Slow", move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            async {
                tokio::time::sleep(Duration::from_secs(10)).await;
                Reply::ok("slow")
            }
        })
        .auth(move |request: AuthRequest| {
            let counts = format!("t{}", counts.load(Ordering::Relaxed));
            std::future::ready(if request.token == counts { Ok(()) } else { Err("the token has run out") })
        });
    (server.build(), generation, began)
}

/// A token that runs out costs no call: those that run are answered on the old connection, and those that it refuses are
/// made once more with the next token; in the same session.
#[tokio::test(start_paused = true)]
async fn a_token_that_runs_out_costs_no_call() {
    let (server, generation, began) = with_tokens_that_run_out();
    let listening = server.listen(&address()).await.expect("the name is free");
    let options = with_the_newest(&generation);
    let handlers = || Router::new().handler("C", "say", crate::support::echo);
    let client = Client::with_handlers(listening.address(), options.clone(), handlers()).await.expect("let in");
    let session = sole_session(&server);
    let discovery = bothways::Peer2PeerDiscovery::new(listening.address());
    let (mode, select) = (bothways::FailMode::Failfast, bothways::SelectMode::RandomSelect);
    let many = bothways::XClient::new("T", mode, select, discovery, options);

    let slow = |n: usize| {
        let (client, many) = (client.clone(), many.clone());
        tokio::spawn(async move {
            if n.is_multiple_of(2) { call(&client, "Slow", "").await } else { call(&many, "Slow", "").await }
        })
    };
    let slow: Vec<_> = (0..10).map(slow).collect();
    settle().await;
    assert_eq!(began.load(Ordering::Relaxed), 10);
    for _ in 0..2 {
        generation.fetch_add(1, Ordering::Relaxed);
        let quick = (0..10).map(|n: usize| {
            let (client, many) = (client.clone(), many.clone());
            tokio::spawn(async move {
                if n.is_multiple_of(2) { call(&client, "Echo", "x").await } else { call(&many, "Echo", "x").await }
            })
        });
        for quick in quick.collect::<Vec<_>>() {
            assert_eq!(soon(quick).await.expect("no panic").expect("with the next token"), "x");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    for slow in slow {
        assert_eq!(soon(slow).await.expect("no panic").expect("it was let in"), "slow");
    }
    assert_eq!(began.load(Ordering::Relaxed), 10, "nothing ran twice");
    let sessions = server.sessions(&Target::everyone()).expect("no topic");
    assert!(sessions.iter().any(|of_client| of_client.id() == session), "it came back to its session");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(server.stats().connections, 2);
}

/// Oneway requests that a token refuses that has run out go again with the next token, as calls do: each runs once.
#[tokio::test(start_paused = true)]
async fn a_token_that_runs_out_costs_no_oneway_request() {
    for check in [Duration::ZERO, Duration::from_millis(300)] {
        let (generation, noted) = (Arc::<AtomicUsize>::default(), Arc::<Mutex<Vec<String>>>::default());
        let (counts, notes) = (Arc::clone(&generation), Arc::clone(&noted));
        let server = echoing()
            .handler("T", "Note", move |request: Request| {
                notes.lock().expect("no panic").push(request.decode().expect("a text"));
                std::future::ready(Reply::ok(""))
            })
            .auth(move |request: AuthRequest| {
                let counts = Arc::clone(&counts);
                async move {
                    tokio::time::sleep(check).await;
                    let counts = format!("t{}", counts.load(Ordering::Relaxed));
                    if request.token == counts { Ok(()) } else { Err("the token has run out") }
                }
            })
            .build();
        let listening = server.listen(&address()).await.expect("the name is free");
        let options = with_the_newest(&generation);
        let client = Client::connect(listening.address(), options.clone()).await.expect("let in");
        let discovery = bothways::Peer2PeerDiscovery::new(listening.address());
        let (mode, select) = (bothways::FailMode::Failfast, bothways::SelectMode::RandomSelect);
        let many = bothways::XClient::new("T", mode, select, discovery, options);
        soon(many.oneshot("Note", "x first")).await.expect("queued");
        soon(client.oneshot("T", "Note", "c first")).await.expect("queued");

        let mut sent = vec!["x first".to_owned(), "c first".to_owned()];
        for round in 0..3 {
            tokio::time::sleep(Duration::from_secs(2)).await;
            generation.fetch_add(1, Ordering::Relaxed);
            for number in 0..10 {
                let of = |who: &str| format!("{who} {round} {number}");
                soon(client.oneshot("T", "Note", &of("c"))).await.expect("queued");
                soon(many.oneshot("Note", &of("x"))).await.expect("queued");
                sent.extend([of("c"), of("x")]);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        let mut noted = noted.lock().expect("no panic").clone();
        noted.sort();
        sent.sort();
        assert_eq!(noted, sent, "{check:?}");
        assert_eq!(client.oneways_lost(), 0);
    }
}

/// However many oneway requests are under way when a token runs out, and come back one after another: what is bounded is
/// how many wait for the next connection at once.
#[tokio::test(start_paused = true)]
async fn what_comes_back_is_bounded_by_what_waits_at_once() {
    const SENT: usize = 2000;
    let (generation, refused) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let (noted, counts) = (Arc::<Mutex<Vec<usize>>>::default(), Arc::clone(&generation));
    let notes = Arc::clone(&noted);
    let server = echoing()
        .handler("T", "Note", move |request: Request| {
            notes.lock().expect("no panic").push(request.decode().expect("a number"));
            std::future::ready(Reply::ok(""))
        })
        .auth(move |request: AuthRequest| {
            let is_old = request.token != format!("t{}", counts.load(Ordering::Relaxed));
            // One is answered a millisecond, while others run over the next connection.
            let wait = if is_old { refused.fetch_add(1, Ordering::Relaxed) as u64 } else { 0 };
            async move {
                tokio::time::sleep(Duration::from_millis(wait)).await;
                if is_old { Err("the token has run out") } else { Ok(()) }
            }
        })
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let options = with_the_newest(&generation);
    let client = Client::connect(listening.address(), options).await.expect("let in");
    soon(client.oneshot("T", "Note", &SENT)).await.expect("queued");
    tokio::time::sleep(Duration::from_secs(2)).await;
    generation.fetch_add(1, Ordering::Relaxed);
    for number in 0..SENT {
        soon(client.oneshot("T", "Note", &number)).await.expect("queued");
    }

    tokio::time::sleep(Duration::from_secs(60)).await;
    let mut noted = noted.lock().expect("no panic").clone();
    noted.sort_unstable();
    assert_eq!((noted, client.oneways_lost()), ((0..=SENT).collect(), 0));
}

/// A oneway request that the next token does not help either is sent no third time: it is counted, at both sides.
#[tokio::test(start_paused = true)]
async fn a_oneway_request_that_is_refused_twice_is_counted() {
    let asked = Arc::<AtomicUsize>::default();
    let counts = Arc::clone(&asked);
    let server = echoing()
        .auth(move |request: AuthRequest| {
            let is_refused = request.service_method() == "Note";
            counts.fetch_add(usize::from(is_refused), Ordering::Relaxed);
            std::future::ready(if is_refused { Err("not with this token") } else { Ok(()) })
        })
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    for (options, tries, lost) in [
        (ClientOptions::new().credentials(|| std::future::ready("t".to_owned())), 2, 1),
        (ClientOptions::new().auth("t"), 1, 0),
    ] {
        asked.store(0, Ordering::Relaxed);
        let client = Client::connect(listening.address(), options).await.expect("let in");
        let first = server.connections().pop().expect("it is there");
        soon(client.oneshot("T", "Note", "x")).await.expect("queued");
        settle().await;
        assert_eq!(first.stats().oneways_refused, 1);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!((asked.load(Ordering::Relaxed), client.oneways_lost()), (tries, lost));
        client.close();
        tokio::time::sleep(Duration::from_secs(120)).await;
    }
}

/// An `XClient` counts what is lost at each of its servers, also after that has left the list, and after its own end.
#[tokio::test(start_paused = true)]
async fn what_an_xclient_loses_is_counted_over_all_servers() {
    let mut servers = Vec::new();
    for _ in 0..2 {
        let server = echoing()
            .auth(|request: AuthRequest| {
                std::future::ready(if request.service_method() == "Note" { Err("not with this token") } else { Ok(()) })
            })
            .build();
        let listening = server.listen(&address()).await.expect("the name is free");
        servers.push((server, listening));
    }
    let addresses = || servers.iter().map(|(_, listening)| listening.address());
    let discovery = bothways::MultipleServersDiscovery::new(addresses());
    let options = ClientOptions::new().credentials(|| std::future::ready("t".to_owned()));
    let (mode, select) = (bothways::FailMode::Failfast, bothways::SelectMode::RoundRobin);
    let xclient = bothways::XClient::new("T", mode, select, discovery.clone(), options);
    for _ in 0..2 {
        soon(xclient.oneshot("Note", "x")).await.expect("queued");
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    let of_each: Vec<u64> = xclient.clients().iter().map(bothways::Client::oneways_lost).collect();
    assert_eq!((of_each, xclient.oneways_lost()), (vec![1, 1], 2));

    discovery.update(addresses().take(1));
    settle().await;
    assert_eq!((xclient.clients().len(), xclient.oneways_lost()), (1, 2), "who left the list counts");
    xclient.close();
    assert_eq!(xclient.oneways_lost(), 2);
}

/// What is sent while the server checks the token of a new connection is not lost if it refuses that.
#[tokio::test(start_paused = true)]
async fn a_oneway_request_waits_until_the_client_is_let_in() {
    let (generation, noted) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let (counts, notes) = (Arc::clone(&generation), Arc::clone(&noted));
    let server = echoing()
        .handler("T", "Note", move |_| {
            notes.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Reply::ok(""))
        })
        .auth(move |request: AuthRequest| {
            let counts = format!("t{}", counts.load(Ordering::Relaxed));
            async move {
                tokio::time::sleep(Duration::from_millis(100)).await;
                if request.token == counts { Ok(()) } else { Err("the token has run out") }
            }
        })
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let tokens = Arc::new(Mutex::new(vec!["t1", "t0", "t0"]));
    let options = ClientOptions::new()
        .credentials(move || std::future::ready(tokens.lock().expect("no panic").pop().unwrap_or("t1").to_owned()))
        .backoff(Duration::from_millis(1), Duration::from_millis(1));
    let client = Client::connect(listening.address(), options).await.expect("let in");
    generation.fetch_add(1, Ordering::Relaxed);
    client.connection().expect("up").close();
    tokio::time::sleep(Duration::from_millis(50)).await;
    soon(client.oneshot("T", "Note", "x")).await.expect("queued");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(noted.load(Ordering::Relaxed), 1);
}

/// A client that has no other token is refused, and what it was let in with is still answered; one that stays is closed.
#[tokio::test(start_paused = true)]
async fn what_runs_when_a_token_runs_out_is_answered() {
    let (server, generation, _) = with_tokens_that_run_out();
    let listening = server.listen(&address()).await.expect("the name is free");
    let client = Client::connect(listening.address(), ClientOptions::new().auth("t0")).await.expect("let in");
    let (mut stays, _) = arrive(listening.address(), &Metadata::new().with(keys::AUTH, "t0")).await;
    let slow = tokio::spawn({
        let client = client.clone();
        async move { call(&client, "Slow", "").await }
    });
    settle().await;
    generation.fetch_add(1, Ordering::Relaxed);
    let error = call(&client, "Echo", "x").await.expect_err("it has run out");
    assert_eq!(error.code(), Some(ErrorCode::Unauthenticated), "{error}");
    assert_eq!(soon(slow).await.expect("no panic").expect("it was let in"), "slow");

    let old = Metadata::new().with(keys::AUTH, "t0");
    stays.say([request_with(1, "Echo", &old, b"x"), request_with(2, "Echo", &old, b"x")].concat()).await;
    let goodbye = stays.next().await;
    assert!(is_control(&goodbye, keys::GOODBYE), "{goodbye:?}");
    assert_eq!(goodbye.metadata().get(keys::GOODBYE_CODE), Some("unauthenticated"));
    for seq in [1, 2] {
        let answer = stays.next().await;
        assert_eq!((answer.header().seq(), answer.error_text().is_some()), (Seq::new(seq), true), "{answer:?}");
    }
    stays.hears_the_end().await;
}

/// A request without a service or without a method is a request, and no Hello.
#[tokio::test(start_paused = true)]
async fn a_request_with_an_empty_name_is_no_hello() {
    let (seen, mut sees) = mpsc::unbounded_channel();
    let server = Server::builder()
        .auth(move |request| {
            let names = (request.service_path().to_owned(), request.service_method().to_owned(), request.is_hello());
            seen.send(names).expect("the test listens");
            std::future::ready(Ok::<_, String>(()))
        })
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("let in");
    for (path, method) in [("", "Mul"), ("Arith", ""), ("Arith", "Mul")] {
        client.call::<()>(path, method, &()).await.expect_err("there is no such service");
    }
    let named = |path: &str, method: &str, is_hello| (path.to_owned(), method.to_owned(), is_hello);
    let expected =
        [named("", "", true), named("", "Mul", false), named("Arith", "", false), named("Arith", "Mul", false)];
    for expected in expected {
        assert_eq!(soon(sees.recv()).await.expect("asked"), expected);
    }
}

/// A handler that runs when the token of its client runs out keeps its session: it is counted for its user, may push to
/// its caller, and is ended with the session. What is asked for on that connection from then on is not run.
#[tokio::test(start_paused = true)]
async fn what_runs_when_a_token_runs_out_keeps_its_session() {
    let (handler, mut asked) = gate();
    let counts = Arc::<AtomicUsize>::default();
    let valid = Arc::clone(&counts);
    let server = echoing().handler("T", "Wait", handler).auth(move |request: AuthRequest| {
        let counts = format!("t{}", valid.load(Ordering::Relaxed));
        if let Some(session) = request.session().filter(|_| request.token == counts) {
            session.bind_user("ann");
        }
        std::future::ready(if request.token == counts { Ok(()) } else { Err("the token has run out") })
    });
    let limits = bothways::ServerLimits::new().calls_per_user_max(Some(2));
    let server = server.limits(limits).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let token = |number: usize| Metadata::new().with(keys::AUTH, format!("t{number}"));
    let (mut old, welcome) = arrive(listening.address(), &token(0)).await;
    old.say(request_with(1, "Wait", &token(0), b"")).await;
    let runs = soon(asked.recv()).await.expect("it runs");
    counts.store(1, Ordering::Relaxed);
    old.say(request_with(2, "Echo", &token(0), b"x")).await;
    assert!(is_control(&old.next().await, keys::GOODBYE));
    assert!(old.next().await.error_text().is_some());

    let back = claim(&welcome, 0).with(keys::AUTH, "t1");
    let (mut new, again) = says_hello(listening.address(), &back).await;
    assert_eq!(again.get(keys::SESSION_RESUMED), Some("1"), "{again:?}");
    let session = runs.request.session().expect("it has one still");
    assert_eq!(session.id(), id(&welcome));
    session.push(&Push::new("Chat", "say", "from the handler")).expect("small");
    assert_eq!(new.next().await.service_method(), "say");
    for seq in [3, 4] {
        new.say(request_with(seq, "Wait", &token(1), b"")).await;
    }
    let text = new.next().await.error_text().expect("two places, and one was taken");
    assert!(text.contains("2 calls of this user"), "{text}");

    // The new token is good, and the session is elsewhere.
    old.say(request_with(4, "Echo", &token(1), b"x")).await;
    let answer = old.next().await;
    assert_eq!(answer.metadata().get(keys::ERROR_CODE), Some("unauthenticated"), "{answer:?}");
    assert_eq!(server.kick(&Target::user("ann"), "enough").expect("no topic"), 1);
    old.hears_the_end().await;
    drop((old, new));
    settle().await;
    assert_eq!((server.stats().connections, server.stats().sessions), (0, 0));
}

/// Once a token of a connection was refused, what its session is owed waits for the next connection: pushes of each class,
/// and calls. What runs there is answered at once, also by a handler that has pushed.
#[tokio::test(start_paused = true)]
async fn what_is_pushed_behind_a_refused_token_waits_for_the_next_connection() {
    let (handler, mut asked) = gate();
    let counts = Arc::<AtomicUsize>::default();
    let valid = Arc::clone(&counts);
    let server = echoing().handler("T", "Wait", handler).auth(move |request: AuthRequest| {
        let counts = format!("t{}", valid.load(Ordering::Relaxed));
        std::future::ready(if request.token == counts { Ok(()) } else { Err("the token was taken back") })
    });
    let server = server.build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let token = |number: usize| Metadata::new().with(keys::AUTH, format!("t{number}"));
    let (mut old, welcome) = arrive(listening.address(), &token(0)).await;
    for seq in [1, 2] {
        old.say(request_with(seq, "Wait", &token(0), b"")).await;
    }
    let runs = [soon(asked.recv()).await.expect("it runs"), soon(asked.recv()).await.expect("it runs")];
    counts.store(1, Ordering::Relaxed);
    old.say(request_with(3, "Echo", &token(0), b"x")).await;
    assert!(is_control(&old.next().await, keys::GOODBYE));
    assert!(old.next().await.error_text().is_some());

    let session = runs[0].request.session().expect("it has one");
    let say = |text: &'static str| Push::new("Chat", text, text);
    session.push(&say("tracked")).expect("there is room");
    session.push(&say("latest").class(Class::Latest("k".to_owned()))).expect("there is room");
    let shout = bothways::raw::broadcast(&server, "News", "shout", &Metadata::new(), b"secret").expect("small");
    assert_eq!(shout, bothways::raw::FanOut::default());
    let calling = tokio::spawn({
        let session = session.clone();
        async move { call(&session, "Ask", "").await }
    });
    settle().await;
    for (seq, run) in (1..).zip(runs) {
        run.answer(Reply::ok("done"));
        let answer = old.next().await;
        assert_eq!(answer.header().seq(), Seq::new(seq), "{answer:?}");
    }
    old.hears_the_end().await;

    let (mut new, again) = says_hello(listening.address(), &claim(&welcome, 0).with(keys::AUTH, "t1")).await;
    assert_eq!(again.get(keys::SESSION_RESUMED), Some("1"), "{again:?}");
    let mut came: Vec<Message> = Vec::new();
    for _ in 0..3 {
        came.push(new.next().await);
    }
    let mut names: Vec<&str> = came.iter().map(Message::service_method).collect();
    names.sort_unstable();
    assert_eq!(names, ["Ask", "latest", "tracked"]);
    let call = came.iter().find(|message| message.service_method() == "Ask").expect("it is there");
    new.say(Message::new(call.header().reply(), "T", "Ask", &Metadata::new(), b"answer").frame()).await;
    assert_eq!(soon(calling).await.expect("no panic").expect("it is answered"), "answer");
}

/// The grace for a token that has run out is for that token: with another one that is wrong too the connection ends.
#[tokio::test(start_paused = true)]
async fn a_connection_does_not_try_one_token_after_the_other() {
    let (server, generation, began) = with_tokens_that_run_out();
    let listening = server.listen(&address()).await.expect("the name is free");
    let token = |text: &str| Metadata::new().with(keys::AUTH, text);
    let (mut client, _) = arrive(listening.address(), &token("t0")).await;
    client.say(request_with(1, "Slow", &token("t0"), b"")).await;
    settle().await;
    assert_eq!(began.load(Ordering::Relaxed), 1);
    generation.fetch_add(1, Ordering::Relaxed);
    for seq in 2..50 {
        client.say(request_with(seq, "Echo", &token("t0"), b"x")).await;
    }
    assert!(is_control(&client.next().await, keys::GOODBYE));
    for _ in 2..50 {
        assert!(client.next().await.error_text().is_some());
    }
    client.say(request_with(50, "Echo", &token("guess"), b"x")).await;
    client.next().await;
    client.hears_the_end().await;
}

/// However long the hook takes, a connection that was let in is found among the sessions of its user, and ended with
/// them, whichever session it says that it had.
#[tokio::test(start_paused = true)]
async fn who_claims_another_session_is_ended_with_its_user() {
    let gate = Arc::new(Semaphore::new(0));
    let of_hook = Arc::clone(&gate);
    let server = echoing().auth(move |request: AuthRequest| {
        let gate = Arc::clone(&of_hook);
        async move {
            if request.service_method() == keys::RESUME || request.token == "slow" {
                gate.acquire().await.map_err(|error| error.to_string())?.forget();
            }
            request.session().expect("it is connected").bind_user("eve");
            Ok::<_, String>(())
        }
    });
    let server = server.build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (mut first, welcome) = arrive(listening.address(), &Metadata::new()).await;
    let resume = |pairs: &Metadata| {
        let header = Header::request(Seq::new(2), SerializeType::RAW);
        Message::new(header, keys::CONTROL_PATH, keys::RESUME, pairs, &[]).frame().to_vec()
    };
    let mut plain = Scripted::connect(listening.address()).await;
    plain.say(request(1, "Echo", b"x")).await;
    plain.next().await;
    let eve = || server.sessions(&Target::user("eve")).expect("no topic").len();
    assert_eq!(eve(), 2);
    let number = Metadata::new().with(keys::SESSION_ID, welcome.get(keys::SESSION_ID).expect("a session"));
    for pairs in [number, claim(&welcome, 0)] {
        plain.say(resume(&pairs)).await;
        settle().await;
        assert_eq!((eve(), server.explain(&Target::user("eve")).expect("no topic").len()), (2, 2), "{pairs:?}");
    }
    // One that is not let in yet is not listed beside its other one, and ends with it.
    let mut comes = Scripted::connect(listening.address()).await;
    let back = claim(&welcome, 0).with(keys::AUTH, "slow");
    comes.say(hello(0, Capabilities::ALL, &back)).await;
    settle().await;
    let everyone = Target::everyone();
    assert_eq!((server.stats().connections, server.sessions(&everyone).expect("no topic").len()), (3, 2));
    assert_eq!(server.kick(&everyone, "enough").expect("no topic"), 3);
    for client in [&mut first, &mut plain, &mut comes] {
        soon(client.rest()).await;
    }
    assert_eq!(server.stats().sessions, 0);
}

/// A hook that allows one session a user leaves out the one that a client is about to get back: a client that then does
/// not get it, for what it says is not so, does not have both.
#[tokio::test(start_paused = true)]
async fn who_does_not_get_its_session_back_has_not_both() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut welcome = arrive(listening.address(), &Metadata::new()).await;
    for (offset, why) in [("99", "gap"), ("none", "unknown")] {
        let (mut first, before) = welcome;
        let pairs = claim(&before, 0).with(keys::SESSION_OFFSET, offset);
        welcome = says_hello(listening.address(), &pairs).await;
        assert_eq!(welcome.1.get(keys::SESSION_WHY), Some(why));
        assert!(is_control(&first.next().await, keys::GOODBYE));
        first.hears_the_end().await;
        assert_eq!(sole_session(&server), id(&welcome.1));
        drop(first);
        settle().await;
        assert_eq!(server.stats().connections, 1);
    }
}

/// Values that the hook leaves are dropped with nothing locked.
#[tokio::test(start_paused = true)]
async fn a_value_may_leave_another_one_at_its_end() {
    struct Later;
    struct Value(Option<Arc<AuthRequest>>);

    impl Drop for Value {
        fn drop(&mut self) {
            if let Some(request) = self.0.take() {
                request.attach(Later);
            }
        }
    }

    let server = Server::builder()
        .auth(|request| async move {
            let request = Arc::new(request);
            request.attach(Value(Some(Arc::clone(&request))));
            request.attach(Value(None));
            Ok::<_, String>(())
        })
        .handler("T", "Later", |request: Request| async move {
            Reply::ok(if request.extensions().get::<Later>().is_some() { "later" } else { "none" })
        })
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    let answer = tokio::time::timeout(Duration::from_secs(10), call(&client, "Later", "")).await;
    assert_eq!(answer.expect("in time").expect("answered"), "later");
}
