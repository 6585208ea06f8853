//! What comes from a peer or an application never becomes an instruction of the framework.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use bothways::{
    AdmissionOptions, CallError, CallOptions, Caller, Class, Client, ClientOptions, FailMode, MultipleServersDiscovery,
    Push, PushError, Reply, Request, Router, SelectMode, Server, Target, WeakServer, XClient, XClientOptions,
    caller::RawCall,
    raw::{self, PushFrame},
    router::RouteProblem,
    session::{Position, SendError},
};
use bothways_proto::{Header, Limits, Message, Metadata, Seq, SerializeType, keys};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    scripted::{Scripted, ScriptedServer, session_pairs},
    support::{address, soon},
};

/// A path, pairs that are beside it, and whether they may be sent to servers, and to clients.
fn cases() -> Vec<(&'static str, Metadata, [bool; 2])> {
    let pair = |key| Metadata::new().with("a", "1").with(key, "news");
    vec![
        ("T", Metadata::new(), [true; 2]),
        ("T", pair("b"), [true; 2]),
        ("T", pair("_BW.t"), [true; 2]),
        ("_bothwaysX", pair("b"), [true; 2]),
        ("T", pair(keys::TOPIC), [false; 2]),
        ("T", pair(keys::IDEMPOTENCY_KEY), [false; 2]),
        ("T", pair(keys::CALL_NUMBER), [false; 2]),
        ("T", pair("_bw.whatever"), [false; 2]),
        ("T", pair("__AUTHOR"), [true; 2]),
        ("T", pair(keys::AUTH), [true, false]),
        ("T", pair("__auth"), [true, false]),
        ("T", pair(keys::SERVER_TIMEOUT), [true, false]),
        ("T", pair(keys::ERROR), [true, false]),
        (keys::CONTROL_PATH, Metadata::new(), [false; 2]),
        ("_bothways.Admin", Metadata::new(), [false; 2]),
    ]
}

/// What a client says when it subscribes.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Subscribe {
    topic: String,
    epoch: u64,
    offset: u64,
}

/// What a server answers.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct SubscribedTo {
    recovered: bool,
    epoch: u64,
    offset: u64,
}

fn subscribed(asked: &Message, at: Position) -> Vec<u8> {
    let reply = SubscribedTo { recovered: true, epoch: at.epoch, offset: at.offset };
    let serialize = asked.header().serialize();
    let payload = bothways::Encode::encode(&reply, serialize).expect("it can travel");
    Message::new(asked.header().reply(), asked.service_path(), asked.service_method(), &Metadata::new(), &payload)
        .frame()
        .to_vec()
}

fn is_refused<T: std::fmt::Debug>(outcome: &Result<T, PushError>) -> bool {
    matches!(outcome, Err(PushError::ReservedMetadata(_)))
}

fn call<'a>(path: &'a str, metadata: &Metadata) -> RawCall<'a> {
    RawCall {
        service_path: path,
        service_method: "Echo",
        serialize: SerializeType::RAW,
        payload: Bytes::new(),
        options: CallOptions::new().metadata(metadata.clone()).timeout(Duration::from_secs(1)),
    }
}

/// Whether a caller refuses such a call and such a oneway request before anything is sent.
async fn refuses(caller: &impl Caller, path: &str, metadata: &Metadata) -> [bool; 2] {
    let called = caller.call_raw(call(path, metadata)).await;
    let pushed = caller.push_raw(call(path, metadata)).await;
    [matches!(called, Err(CallError::ReservedMetadata(_))), is_refused(&pushed)]
}

/// Reserved pairs, and the framework's own path, are refused at every entrance, and nothing else is.
#[tokio::test(start_paused = true)]
async fn no_entrance_takes_reserved_pairs_or_paths() {
    let server = Server::builder().build();
    let listening = server.listen(&address()).await.expect("a free name");
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
    let servers = MultipleServersDiscovery::new([listening.address()]);
    let xclient = XClient::new("T", FailMode::Failover, SelectMode::RoundRobin, servers, XClientOptions::new());
    let connection = server.connections().remove(0);
    let session = server.sessions(&Target::everyone()).expect("no topic").remove(0);
    session.bind_user("ann");
    for (path, metadata, [to_servers, to_clients]) in cases() {
        let said = format!("{path} {metadata:?}");
        let push = Push::new(path, "m", "x").metadata(metadata.clone());
        let refused = |outcome: Result<_, SendError>| match outcome {
            Err(SendError::Push(error)) => is_refused::<()>(&Err(error)),
            other => other.map(|_: bothways::Receipt| false).expect("no topic is wrong"),
        };
        let pushed = [
            refused(server.push(&Target::everyone(), &push)),
            refused(server.publish("news", &push)),
            refused(server.push(&Target::user("nobody"), &push.clone().watch_each())),
            is_refused(&session.push(&push)),
            is_refused(&session.push_within(Duration::ZERO, &push).await),
            is_refused(&connection.send_message(path, "m", &metadata, "x")),
            is_refused(&connection.send_message_within(Duration::ZERO, path, "m", &metadata, "x").await),
            is_refused(&server.send_message(&connection, path, "m", &metadata, "x")),
            is_refused(&raw::broadcast(&server, path, "m", &metadata, b"x")),
            is_refused(&PushFrame::new(path, "m", &metadata, b"x", &Limits::default())),
        ];
        assert_eq!(pushed, [!to_clients; 10], "{said}");
        assert_eq!(refuses(&connection, path, &metadata).await, [!to_clients; 2], "{said}");
        assert_eq!(refuses(&session, path, &metadata).await, [!to_clients; 2], "{said}");
        assert_eq!(refuses(&server.user("ann"), path, &metadata).await, [!to_clients; 2], "{said}");
        assert_eq!(refuses(&client, path, &metadata).await, [!to_servers; 2], "{said}");
        let own = client.connection().expect("it is there");
        assert_eq!(refuses(&own, path, &metadata).await, [!to_servers; 2], "{said}");
        assert_eq!(refuses(&xclient, path, &metadata).await, [!to_servers; 2], "{said}");
        let all = server.user("ann").call_all::<(), ()>(path, "m", &(), CallOptions::new().metadata(metadata)).await;
        assert_eq!(matches!(all, Err(CallError::ReservedMetadata(_))), !to_clients, "{said}");
    }
    let latest = Push::new("T", "m", "x").class(Class::Latest("_bw.Presence news ann ".to_owned()));
    assert!(is_refused(&session.push(&latest)), "that would take the place of the framework's own");
    let text = session.push(&latest).expect_err("refused").to_string();
    assert!(text.contains("`_bw.Presence news ann ` belongs to the framework"), "{text}");
}

/// A handler that gives its caller's pairs back gives none of the framework's: no forged code says that it did not run.
#[tokio::test(start_paused = true)]
async fn a_reply_carries_no_reserved_pairs_of_a_handler() {
    let handler = |request: Request| {
        let failed = Reply::error("no").with_metadata(request.metadata());
        std::future::ready(failed)
    };
    let server = Server::builder().handler("T", "Echo", handler).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let mut client = Scripted::connect_negotiated(listening.address()).await;
    let pairs = Metadata::new().with("a", "1").with(keys::ERROR_CODE, "overloaded").with("_bw.x", "2");
    client.say(crate::scripted::request_with(3, "Echo", &pairs, b"")).await;
    let answer = client.next().await.metadata();
    assert_eq!((answer.get("a"), answer.reserved_key()), (Some("1"), None));
}

/// A handler that hands its caller's pairs on, in the way that the documents name, hands on no token and no deadline;
/// nor does one that gives them back.
#[tokio::test(start_paused = true)]
async fn a_callers_token_is_handed_on_to_nobody() {
    let home = Arc::<OnceLock<WeakServer>>::default();
    let of_handler = Arc::clone(&home);
    let handler = move |request: Request| {
        let server = of_handler.get().and_then(WeakServer::upgrade).expect("it runs");
        let push = Push::new("T", "Said", "x");
        let whole = server.push(&Target::everyone(), &push.clone().metadata(request.metadata()));
        assert!(matches!(whole, Err(SendError::Push(PushError::ReservedMetadata(_)))), "{whole:?}");
        let pairs = request.metadata().without_reserved();
        drop(server.push(&Target::everyone(), &push.metadata(pairs)).expect("these may be sent"));
        std::future::ready(Reply::ok("1").with_metadata(request.metadata()))
    };
    let server = Server::builder().handler("T", "Echo", handler).build();
    home.set(server.downgrade()).expect("it is set once");
    let listening = server.listen(&address()).await.expect("a free name");
    let (mut bystander, _) = crate::scripted::arrive(listening.address(), &Metadata::new()).await;
    let (mut caller, _) = crate::scripted::arrive(listening.address(), &Metadata::new()).await;
    let pairs = Metadata::new().with(keys::AUTH, "ann-SECRET").with(keys::SERVER_TIMEOUT, "5000").with("a", "1");
    caller.say(crate::scripted::request_with(3, "Echo", &pairs, b"")).await;
    for client in [&mut bystander, &mut caller] {
        let told = client.next().await;
        let metadata = told.metadata();
        assert_eq!((told.service_method(), metadata.get("a")), ("Said", Some("1")));
        assert_eq!(metadata.key_of_one_hop(), None);
    }
    let answer = caller.next().await.metadata();
    assert_eq!((answer.get("a"), answer.key_of_one_hop()), (Some("1"), None));
}

/// The code in the reply of a plain peer is an application's: it does not say that a call is safe to try again.
#[tokio::test(start_paused = true)]
async fn a_plain_servers_code_is_not_believed() {
    let server = ScriptedServer::listen().await;
    let connecting = Client::connect(&server.address, ClientOptions::new());
    let (client, mut served) = tokio::join!(connecting, server.accept_plain());
    let client = client.expect("it listens");
    let calling = tokio::spawn(async move { client.call::<()>("T", "Echo", &()).await });
    let asked = served.next().await;
    let pairs = Metadata::new().with(keys::ERROR, "no").with(keys::ERROR_CODE, "overloaded");
    let header = asked.header().reply().with_status(bothways_proto::Status::ERROR);
    served.say(Message::new(header, "T", "Echo", &pairs, &[]).frame()).await;
    let error = soon(calling).await.expect("no panic").expect_err("it failed");
    assert_eq!((error.remote_text(), error.code(), error.is_safe_to_retry()), (Some("no"), None, false));
}

/// The topic and the position of a message are those of a server that keeps topics: one that negotiated, or that has taken
/// a subscription. To others these pairs are an application's, and so they are at a server in all that clients send.
#[tokio::test(start_paused = true)]
async fn topic_and_position_are_believed_of_servers_that_keep_topics() {
    let pairs = Metadata::new().with(keys::TOPIC, "news").with(keys::TOPIC_EPOCH, "5").with(keys::TOPIC_OFFSET, "6");
    let message = |seq| Message::new(Header::oneway(seq, SerializeType::RAW), "T", "m", &pairs, b"x").frame().to_vec();
    let at = Some(Position { epoch: 5, offset: 6 });
    let listening = |negotiates: bool| async move {
        let server = ScriptedServer::listen().await;
        let (told, tells) = tokio::sync::mpsc::unbounded_channel();
        let handlers = Router::new().handler("T", "m", move |request: Request| {
            told.send((request.topic(), request.position())).expect("the test listens");
            std::future::ready(Reply::ok(""))
        });
        let options = ClientOptions::new();
        let connecting = Client::with_handlers(&server.address, options, handlers);
        let (client, peer) = match negotiates {
            true => tokio::join!(connecting, server.accept_with(session_pairs("1"))),
            false => tokio::join!(connecting, server.accept_plain()),
        };
        (client.expect("it listens"), peer, tells)
    };

    let (_client, mut negotiated, mut tells) = listening(true).await;
    for (seq, position) in [(Seq::of_push(1), at), (Seq::of_push(0), None)] {
        negotiated.say(message(seq)).await;
        assert_eq!(soon(tells.recv()).await.expect("it came"), (Some("news".to_owned()), position));
    }

    let (client, mut plain, mut tells) = listening(false).await;
    for seq in [Seq::new(1), Seq::of_push(0), Seq::of_push(1)] {
        plain.say(message(seq)).await;
        assert_eq!(soon(tells.recv()).await.expect("it came"), (None, None), "a plain server's");
    }
    let subscribing = tokio::spawn(async move { (client.subscribe("news").await, client) });
    let asked = plain.next().await;
    plain.say(subscribed(&asked, Position { epoch: 5, offset: 5 })).await;
    let (outcome, _client) = soon(subscribing).await.expect("no panic");
    outcome.expect("subscribed");
    plain.say(message(Seq::of_push(0))).await;
    assert_eq!(soon(tells.recv()).await.expect("it came"), (Some("news".to_owned()), at), "it keeps topics");

    let (told, mut tells) = tokio::sync::mpsc::unbounded_channel();
    let server = Server::builder()
        .handler("T", "m", move |request: Request| {
            told.send((request.topic(), request.position())).expect("the test listens");
            std::future::ready(Reply::ok(""))
        })
        .build();
    let listening = server.listen(&address()).await.expect("a free name");
    let call = Message::new(Header::request(Seq::new(2), SerializeType::RAW), "T", "m", &pairs, b"x").frame().to_vec();
    for mut client in
        [Scripted::connect(listening.address()).await, Scripted::connect_negotiated(listening.address()).await]
    {
        for frame in [message(Seq::new(1)), message(Seq::of_push(1)), call.clone()] {
            client.say(frame).await;
            assert_eq!(soon(tells.recv()).await.expect("it came"), (None, None), "a client's");
        }
    }
}

/// A position in a message that is not tracked is an application's: the client goes on from where it was.
#[tokio::test(start_paused = true)]
async fn a_position_is_believed_on_tracked_messages_only() {
    let server = ScriptedServer::listen().await;
    let options = ClientOptions::new().backoff(Duration::from_millis(1), Duration::from_millis(1));
    let connecting = Client::bidirectional(&server.address, options);
    let (client, mut served) = tokio::join!(connecting, server.accept_with(session_pairs("1")));
    let (client, mut messages) = client.expect("it listens");
    let subscribing = {
        let client = client.clone();
        tokio::spawn(async move { client.subscribe_from("news", Position { epoch: 7, offset: 1 }).await })
    };
    let asked = served.next().await;
    served.say(subscribed(&asked, Position { epoch: 7, offset: 1 })).await;
    soon(subscribing).await.expect("no panic").expect("subscribed");
    let message = |seq, offset: u64| {
        let pairs = Metadata::new().with(keys::TOPIC, "news").with(keys::TOPIC_EPOCH, "7");
        let header = Header::oneway(Seq::of_push(seq), SerializeType::RAW);
        let pairs = pairs.with(keys::TOPIC_OFFSET, offset.to_string());
        Message::new(header, "T", "m", &pairs, b"x").frame().to_vec()
    };
    served.say(message(1, 2)).await;
    served.say(message(0, 9)).await;
    for _ in 0..2 {
        drop(soon(messages.next()).await.expect("it came"));
    }
    served.reset();
    let mut again = server.accept_with(session_pairs("2")).await;
    let asked = loop {
        let asked = again.next().await;
        if asked.service_method() == keys::SUBSCRIBE {
            break asked;
        }
    };
    let from: Subscribe =
        bothways::Payload::decode(asked.header().serialize(), asked.payload(&Limits::default()).expect("not packed"))
            .expect("its arguments");
    assert_eq!((from.epoch, from.offset), (7, 2));
    drop(client);
}

/// A plain client may ask for more, as any rpcx client may: to it `_bothways` is a service like others.
#[tokio::test(start_paused = true)]
async fn a_plain_client_speaks_to_the_frameworks_service_itself() {
    let server = Server::builder().build();
    let listening = server.listen(&address()).await.expect("a free name");
    let options = ClientOptions::new().negotiate(false);
    let client = Client::connect(listening.address(), options).await.expect("it listens");
    let enabled =
        client.call_raw(RawCall { service_method: keys::ENABLE, ..call(keys::CONTROL_PATH, &Metadata::new()) });
    assert!(enabled.await.expect("it may").metadata.get(keys::SESSION_ID).is_some());
    let acked = Metadata::new().with(keys::ACK_OFFSETS, "0,0");
    let ack = client.call_raw(RawCall { service_method: keys::ACK, ..call(keys::CONTROL_PATH, &acked) });
    ack.await.expect("it may");
    assert_eq!(refuses(&client, "T", &acked).await, [true; 2], "elsewhere these pairs are not an application's");
}

/// The pairs of a session in a plain client's ordinary request mean nothing: it is admitted as a new client.
#[tokio::test(start_paused = true)]
async fn a_session_in_an_ordinary_request_is_not_believed() {
    let rate = bothways::Rate::per_second(1);
    let server =
        Server::builder().admission(AdmissionOptions::new().new_sessions_rate(Some(rate)).resumes_rate(None)).build();
    let listening = server.listen(&address()).await.expect("a free name");
    let (client, welcome) = crate::scripted::arrive(listening.address(), &Metadata::new()).await;
    drop(client);
    let claim = crate::scripted::claim(&welcome, 0);
    let mut plain = Scripted::connect(listening.address()).await;
    plain.say(crate::scripted::request_with(1, "Echo", &claim, b"")).await;
    plain.hears_the_end().await;
    let mut back = Scripted::connect(listening.address()).await;
    back.say(crate::scripted::hello(0, bothways_proto::Capabilities::ALL, &claim)).await;
    assert!(back.next().await.metadata().get(keys::SESSION_RESUMED).is_some());
}

/// The same route twice, or the framework's path, is an error where one asks for it.
#[tokio::test]
async fn routes_that_are_not_served_as_added_are_refused() {
    let echo = |_: Request| std::future::ready(Reply::ok("1"));
    let twice = Server::builder().handler("T", "Echo", echo).router(Router::new().handler("T", "Echo", echo));
    assert!(matches!(twice.try_build(), Err(RouteProblem::Twice { .. })));
    let reserved = Server::builder().handler("_bothways", "Enable", echo);
    assert!(matches!(reserved.try_build(), Err(RouteProblem::Reserved { .. })));
    Server::builder().handler("T", "Echo", echo).try_build().expect("once is enough");
}

/// `Debug` of what holds a token, an operator's or a session's secret shows none of them.
#[tokio::test(start_paused = true)]
async fn debug_shows_no_secret() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let server = Server::builder()
        .auth(move |request| {
            tell.send(format!("{request:?}")).expect("the test listens");
            std::future::ready(Ok::<_, String>(()))
        })
        .build();
    let listening = server.listen(&address()).await.expect("a free name");
    let secrets = Metadata::new()
        .with(keys::AUTH, "s3cret")
        .with(keys::ADMIN_TOKEN, "s3cret")
        .with(keys::SESSION_KEY, "s3cret")
        .with("k", "v");
    let mut client = Scripted::connect(listening.address()).await;
    client.say(crate::scripted::request_with(1, "Echo", &secrets, b"s3cret")).await;
    client.next().await;
    let seen = soon(told.recv()).await.expect("the hook was asked");
    let frame = PushFrame::new("T", "m", &Metadata::new(), b"s3cret", &Limits::default()).expect("small");
    let message = Message::new(Header::request(Seq::new(1), SerializeType::RAW), "T", "m", &secrets, b"s3cret");
    let options = CallOptions::new().metadata(secrets.clone());
    let shown = [
        seen,
        format!("{secrets:?}"),
        format!("{options:?}"),
        format!("{:?}", ClientOptions::new().auth("s3cret")),
        format!("{:?}", XClientOptions::new().client(ClientOptions::new().auth("s3cret"))),
        format!("{:?}", frame),
        format!("{:?}", message),
    ];
    for text in shown {
        assert!(!text.contains("s3cret"), "{text}");
    }
}
