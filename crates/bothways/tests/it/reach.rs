//! What a handler, and a layer before it, can reach: values of those before, the server, the topic, the certificate.

use std::time::Duration;

use bothways::{
    Client, ClientOptions, Context, ErrorCode, Metadata, Push, Reply, Request, Router, Server, handler::BoxHandler,
    layer, session::TopicOptions,
};
use tokio::sync::mpsc;

use crate::support::{address, call, call_with, echo, echoing, gate, settle, soon, until};

#[derive(Clone, Debug, PartialEq)]
struct Tenant(String);

/// What the hook of one request attaches, the layers and the handler of this request find, and no other.
#[tokio::test(start_paused = true)]
async fn what_a_hook_attaches_the_handler_finds() {
    let saw = layer::from_fn(|mut request: Request, next: BoxHandler| async move {
        let tenant = request.extensions().get::<Tenant>().cloned();
        request.extensions_mut().insert(tenant.map(|tenant| tenant.0.len()));
        next.handle(request).await
    });
    let who = |request: Request| async move {
        let tenant = request.extensions().get::<Tenant>().map_or("nobody", |tenant| &tenant.0);
        let len = request.extensions().get::<Option<usize>>().copied().flatten();
        Reply::ok(format!("{tenant} {len:?}"))
    };
    let server = Server::builder()
        .handler("T", "Who", who)
        .layer(saw)
        .auth(|request| async move {
            if let Some(tenant) = request.metadata.get("tenant") {
                request.attach(Tenant("another".to_owned()));
                request.attach(Tenant(tenant.to_owned()));
            }
            Ok::<_, &str>(())
        })
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("let in");
    for (tenant, expected) in [(Some("ann"), "ann Some(3)"), (None, "nobody None"), (Some("robert"), "robert Some(6)")]
    {
        let metadata = tenant.map_or_else(Metadata::new, |tenant| Metadata::new().with("tenant", tenant));
        let options = bothways::CallOptions::new().metadata(metadata);
        assert_eq!(call_with(&client, "Who", "", options).await.expect("answered").payload, expected);
    }
}

/// A handler of a server reaches it, and no client; one of a client the other way round.
#[tokio::test(start_paused = true)]
async fn a_handler_reaches_its_own_side() {
    let sides = |request: Request| async move {
        let (server, client) = (request.server().is_some(), request.client().is_some());
        let context = Context::new(request);
        assert_eq!((server, client), (context.server().is_some(), context.client().is_some()));
        Reply::ok(format!("{server} {client}"))
    };
    let server = Server::builder().handler("T", "Sides", sides).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let handlers = Router::new().handler("T", "Sides", sides);
    let client = Client::with_handlers(listening.address(), ClientOptions::new(), handlers).await.expect("let in");
    assert_eq!(call(&client, "Sides", "").await.expect("answered"), "true false");
    let connection = server.connections().pop().expect("it is connected");
    assert_eq!(call(&connection, "Sides", "").await.expect("answered"), "false true");

    let count = |request: Request| async move {
        let server = request.server().expect("it is asked at a server");
        Reply::ok(server.connections().len().to_string())
    };
    let server = Server::builder().handler("T", "Count", count).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("let in");
    assert_eq!(call(&client, "Count", "").await.expect("answered"), "1");
}

/// A handler of messages knows the topic and the place in it, as who reads the queue does.
#[tokio::test(start_paused = true)]
async fn a_handler_of_messages_knows_the_topic() {
    let topics = TopicOptions::new().open().history(10, Duration::from_secs(60));
    let server = echoing().topic("news.*", topics).expect("a pattern").build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (told, mut tells) = mpsc::unbounded_channel();
    let handlers = Router::new().handler("News", "Flash", move |request: Request| {
        let context_topic = request.topic();
        told.send((context_topic, request.position())).expect("the test listens");
        std::future::ready(Reply::ok(""))
    });
    let client = Client::with_handlers(listening.address(), ClientOptions::new(), handlers).await.expect("let in");
    let subscribed = client.subscribe("news.eu").await.expect("open");
    server.publish("news.eu", &Push::new("News", "Flash", "x")).expect("a topic");
    let (topic, position) = soon(tells.recv()).await.expect("it comes");
    let before = subscribed.position.expect("it has a history");
    let position = position.expect("it stands in the history");
    assert_eq!((topic.as_deref(), position.epoch, position.offset), (Some("news.eu"), before.epoch, before.offset + 1));
}

/// The numbers of each route: how requests ended, and what they brought.
#[tokio::test(start_paused = true)]
async fn requests_are_counted_by_route() {
    let counts = layer::count();
    let (waiting, mut asked) = gate();
    let server = Server::builder()
        .handler("T", "Echo", echo)
        .handler("T", "Fail", |_: Request| async { Reply::error("no") })
        .handler("T", "Refuse", |_: Request| async { Reply::refused(ErrorCode::Overloaded, "later") })
        .handler("T", "Wait", waiting)
        .layer(counts.clone())
        .build();
    let before = counts.by_route();
    let names: Vec<&str> = before.iter().map(|route| &*route.service_method).collect();
    assert_eq!(names[..4], ["Echo", "Fail", "Refuse", "Wait"], "each route is known before it is asked");

    let listening = server.listen(&address()).await.expect("the name is free");
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("let in");
    call(&client, "Echo", "12345").await.expect("answered");
    call(&client, "Echo", "1").await.expect("answered");
    call(&client, "Fail", "").await.expect_err("an error");
    for _ in 0..3 {
        call(&client, "Refuse", "ab").await.expect_err("a refusal");
    }
    let running = tokio::spawn({
        let client = client.clone();
        async move { call(&client, "Wait", "").await }
    });
    let mut held = soon(asked.recv()).await.expect("it runs");
    let of =
        |method: &str| counts.by_route().into_iter().find(|route| route.service_method == method).expect("a route");
    assert_eq!((of("Wait").begun, of("Wait").dropped, of("Wait").time), (1, 0, Duration::ZERO));
    tokio::time::advance(Duration::from_secs(2)).await;
    running.abort();
    held.dropped().await;
    until(|| of("Wait").dropped == 1).await;
    assert!(Duration::from_secs(2) <= of("Wait").time && of("Wait").time < Duration::from_secs(3));

    let echo = of("Echo");
    assert_eq!((echo.begun, echo.ok, echo.failed, echo.dropped, echo.bytes_in, echo.bytes_out), (2, 2, 0, 0, 6, 6));
    assert!(echo.refused.is_empty());
    let fail = of("Fail");
    assert_eq!((fail.begun, fail.ok, fail.failed, fail.dropped), (1, 0, 1, 0));
    let refuse = of("Refuse");
    assert_eq!(
        (refuse.begun, refuse.failed, refuse.refused, refuse.bytes_in),
        (3, 0, vec![(ErrorCode::Overloaded, 3)], 6)
    );
    settle().await;
}

/// A client shows its certificate to the server, a server its own to the client, and nobody one without TLS.
#[cfg(feature = "tls")]
#[tokio::test]
async fn a_handler_sees_the_certificate_of_its_caller() {
    use bothways::transport::{
        ConnectOptions, ListenOptions,
        tls::{TlsClient, TlsIdentity, TlsRoots, TlsServer},
    };

    let certified = || rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let (server_side, client_side) = (certified(), certified());
    let identity = |of: &rcgen::CertifiedKey<rcgen::KeyPair>| {
        let (chain, key) = (of.cert.pem(), of.signing_key.serialize_pem());
        TlsIdentity::from_pem(chain.as_bytes(), key.as_bytes()).expect("an identity")
    };
    let roots =
        |of: &rcgen::CertifiedKey<rcgen::KeyPair>| TlsRoots::from_pem(of.cert.pem().as_bytes()).expect("a root");
    let tls =
        TlsServer::with_required_client_certificates(identity(&server_side), &roots(&client_side)).expect("a server");
    let shown = |request: Request| async move {
        let chain = request.connection().peer_certificates().unwrap_or_default();
        Reply::ok(chain.first().cloned().unwrap_or_default())
    };
    let server =
        Server::builder().handler("T", "Shown", shown).listen_options(ListenOptions::default().tls(tls)).build();
    let listening = server.listen("tls@localhost:0").await.expect("it listens");
    let trusted = TlsClient::with_identity(&roots(&server_side), identity(&client_side)).expect("a client");
    let options = ClientOptions::new().connect_options(ConnectOptions::default().tls(trusted));
    let connecting = Client::connect(listening.address(), options);
    let client = tokio::time::timeout(Duration::from_secs(60), connecting).await.expect("in time").expect("let in");
    assert_eq!(call(&client, "Shown", "").await.expect("answered"), client_side.cert.der().to_vec());

    let plain = Server::builder().handler("T", "Shown", shown).build();
    let listening = plain.listen(&address()).await.expect("the name is free");
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("let in");
    assert_eq!(call(&client, "Shown", "").await.expect("answered"), "");
}
