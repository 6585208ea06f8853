//! What wraps the calls of clients.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bothways::{
    CallError, CallOptions, Caller, Client, ClientOptions, ErrorCode, FailMode, MultipleServersDiscovery, PushError,
    Reply, Request, SelectMode, Server, XClient, XClientOptions,
    call::{self, BoxFuture, Call, CallLayer, CallService},
    caller::RawReply,
    layer,
    server::Listening,
    session::TopicOptions,
    xclient::Selection,
};
use tokio::time::Instant;

use crate::support::{Log, address, soon};

/// Notes what passes, under its name, and how it ends.
#[derive(Clone)]
struct Noting {
    name: &'static str,
    noted: Arc<Mutex<Vec<String>>>,
}

struct NotingService {
    noting: Noting,
    inner: Arc<dyn CallService>,
}

impl Noting {
    fn note(&self, what: impl std::fmt::Display) {
        self.noted.lock().expect("no panic").push(format!("{} {what}", self.name));
    }
}

impl CallLayer for Noting {
    fn wrap(&self, inner: Arc<dyn CallService>) -> Arc<dyn CallService> {
        Arc::new(NotingService { noting: self.clone(), inner })
    }
}

impl CallService for NotingService {
    fn call(&self, call: Call) -> BoxFuture<Result<RawReply, CallError>> {
        let (noting, tag) = (self.noting.clone(), call.extensions().get::<u32>().copied().unwrap_or_default());
        noting.note(format_args!("{}.{} {tag}", call.service_path(), call.service_method()));
        let reply = self.inner.call(call);
        Box::pin(async move {
            let reply = reply.await;
            match &reply {
                Ok(_) => noting.note("ok"),
                Err(error) => noting.note(format_args!("{:?}", error.code())),
            }
            reply
        })
    }

    fn push(&self, push: Call) -> BoxFuture<Result<(), PushError>> {
        self.noting.note("oneway");
        self.inner.push(push)
    }
}

fn noting() -> ([Noting; 3], impl Fn() -> Vec<String>) {
    let noted = Arc::new(Mutex::new(Vec::new()));
    let all = ["call", "try", "client"].map(|name| Noting { name, noted: Arc::clone(&noted) });
    (all, move || std::mem::take(&mut *noted.lock().expect("no panic")))
}

async fn serve(reply: impl Fn(Request) -> Reply + Send + Sync + 'static) -> (Server, Listening) {
    let reply = Arc::new(reply);
    let server = Server::builder().layer(layer::trace()).handler("T", "M", move |request: Request| {
        let reply = Arc::clone(&reply);
        async move { reply(request) }
    });
    let server = server.build();
    let listening = server.listen(&address()).await.expect("the name is free");
    (server, listening)
}

/// Layers of a call see it once, those of tries see each try, and those of the client are inside of these.
#[tokio::test(start_paused = true)]
async fn layers_wrap_calls_and_tries() {
    let (_refusing, busy) = serve(|_| Reply::refused(ErrorCode::Overloaded, "not now")).await;
    let (_answering, free) = serve(|request| Reply::encode(&1_i64, request.serialize_type())).await;
    let ([of_call, of_try, of_client], noted) = noting();

    let options = ClientOptions::new().layer(of_call.clone()).layer(of_client.clone());
    let client = Client::connect(free.address(), options.clone()).await.expect("it listens");
    let tagged = CallOptions::new().extension(7_u32);
    let value = client.call_with::<i64>("T", "M", &(), tagged.clone()).await.expect("it answers").value;
    assert_eq!((value, noted()), (1, ["call T.M 7", "client T.M 7", "client ok", "call ok"].map(str::to_owned).into()));
    client.oneshot("T", "M", &()).await.expect("it is queued");
    assert_eq!(noted(), ["call oneway", "client oneway"]);

    let options = XClientOptions::new().layer(of_call).try_layer(of_try).client(ClientOptions::new().layer(of_client));
    let first = SelectMode::by_user(|selection: &Selection<'_>| selection.candidates().next());
    let servers = MultipleServersDiscovery::new([busy.address(), free.address()]);
    let xclient = XClient::new("T", FailMode::Failover, first, servers, options);
    xclient.call_with::<i64>("M", &(), tagged).await.expect("the second one answers");
    let refused = "Some(Overloaded)";
    let expected = [
        "call T.M 7".to_owned(),
        "try T.M 7".to_owned(),
        "client T.M 7".to_owned(),
        format!("client {refused}"),
        format!("try {refused}"),
        "try T.M 7".to_owned(),
        "client T.M 7".to_owned(),
        "client ok".to_owned(),
        "try ok".to_owned(),
        "call ok".to_owned(),
    ];
    assert_eq!(noted(), expected);
    xclient.oneshot("M", &()).await.expect("it is queued");
    assert_eq!(noted(), ["call oneway", "try oneway", "client oneway"]);
}

/// A layer may answer by itself; what it adds is refused as that of the application would be.
#[tokio::test(start_paused = true)]
async fn a_layer_names_nothing_of_the_frameworks() {
    let (_server, listening) = serve(|_| Reply::ok("")).await;
    let options = ClientOptions::new().layer(call::map(|call| call.metadata_mut().insert("_bw.x", "y")));
    let client = Client::connect(listening.address(), options).await.expect("it listens");
    let error = client.call::<()>("T", "M", &()).await.expect_err("it is reserved");
    assert!(matches!(error, CallError::ReservedMetadata(_)), "{error}");

    let never = call::from_fn(|_, _| async { Err(CallError::NoServer("not today".to_owned())) });
    let client = Client::connect(listening.address(), ClientOptions::new().layer(never)).await.expect("it listens");
    let error = client.call::<()>("T", "M", &()).await.expect_err("the layer says no");
    assert_eq!(error.to_string(), "no server: not today");
}

/// Through a `Client` and an `XClient`, with a trace of the application and without.
#[tokio::test(start_paused = true)]
async fn a_trace_travels_to_the_handler_and_its_span() {
    let log = Log::default();
    let kept = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || kept.clone()).finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let (_server, listening) = serve(|request| {
        tracing::info!("it runs");
        let trace = request.metadata().get("traceparent").unwrap_or_default().to_owned();
        Reply::encode(&trace, request.serialize_type())
    })
    .await;

    let ours = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let with = ClientOptions::new().layer(call::traceparent(move || Some(ours.to_owned())));
    let client = Client::connect(listening.address(), with).await.expect("it listens");
    assert_eq!(client.call::<String>("T", "M", &()).await.expect("it answers"), ours);
    let begins = XClientOptions::new().layer(call::traceparent(|| None));
    let servers = MultipleServersDiscovery::new([listening.address()]);
    let xclient = XClient::new("T", FailMode::Failover, SelectMode::RandomSelect, servers, begins);
    let begun = soon(xclient.call::<String>("M", &())).await.expect("it answers");
    assert_eq!(begun.len(), ours.len(), "{begun}");
    tokio::time::sleep(Duration::from_millis(1)).await;
    drop(guard);

    let log = log.text();
    for trace in [ours, &begun] {
        let line = log.lines().find(|line| line.contains("it runs") && line.contains(trace));
        assert!(line.is_some_and(|line| line.contains("traceparent")), "{trace}: {log}");
    }
}

/// A server whose service `T` answers after 600 ms, and that has a topic.
async fn slow() -> (Server, Listening) {
    let server = Server::builder()
        .topic("t", TopicOptions::new().open().presence(true))
        .expect("a topic")
        .handler("T", "M", |request: Request| async move {
            tokio::time::sleep(Duration::from_millis(600)).await;
            Reply::encode(&1_i64, request.serialize_type())
        })
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    (server, listening)
}

fn many(listening: &Listening, options: XClientOptions) -> XClient {
    let servers = MultipleServersDiscovery::new([listening.address()]);
    XClient::new("T", FailMode::Failover, SelectMode::RandomSelect, servers, options)
}

/// Calls `T` in so much time: how it ended, and after how many milliseconds.
async fn timed(caller: &impl Caller, time: Option<Duration>) -> (String, u128) {
    let (began, mut options) = (Instant::now(), CallOptions::new());
    if let Some(time) = time {
        options = options.timeout(time);
    }
    let called = soon(caller.call_typed::<_, i64>("T", "M", &(), options)).await;
    (called.map_or_else(|error| error.to_string(), |reply| reply.value.to_string()), began.elapsed().as_millis())
}

/// The clock counts whole milliseconds, and each timer may add one.
fn is_about((outcome, after): (String, u128), expected: &(String, u128)) {
    assert_eq!(outcome, expected.0);
    assert!((expected.1..expected.1 + 10).contains(&after), "{outcome}, after {after} ms");
}

/// What a layer gives a call is its time, wherever the layer is; of what its caller gave it the shorter one counts.
#[tokio::test(start_paused = true)]
async fn a_layer_may_give_a_call_less_time() {
    let (_server, listening) = slow().await;
    let ms = Duration::from_millis;
    for (given, of_caller, ends) in [
        (100, None, ("no reply within 100ms", 100)),
        (100, Some(ms(1000)), ("no reply within 100ms", 100)),
        (1000, Some(ms(200)), ("no reply within 200ms", 200)),
        (1000, None, ("1", 600)),
        (1000, Some(ms(1000)), ("1", 600)),
    ] {
        let gives = || call::map(move |call| call.set_timeout(ms(given)));
        let client = Client::connect(listening.address(), ClientOptions::new().layer(gives())).await.expect("let in");
        let all = [
            XClientOptions::new().layer(gives()),
            XClientOptions::new().try_layer(gives()),
            ClientOptions::new().layer(gives()).into(),
        ]
        .map(|options| many(&listening, options));
        let ends = (ends.0.to_owned(), ends.1);
        is_about(timed(&client, of_caller).await, &ends);
        for xclient in &all {
            let _ = timed(xclient, None).await;
            is_about(timed(xclient, of_caller).await, &ends);
        }
    }
}

/// The time of a call includes what its layers wait for: those of a client, of an `XClient`, and of its tries.
#[tokio::test(start_paused = true)]
async fn the_time_of_a_call_includes_its_layers() {
    let (_server, listening) = slow().await;
    let ms = Duration::from_millis;
    let waits = || {
        call::from_fn(move |call, next| async move {
            tokio::time::sleep(ms(700)).await;
            next.call(call).await
        })
    };
    for timeout in [ms(100), ms(1000), ms(2000)] {
        let options = || ClientOptions::new().timeout(timeout);
        let client = Client::connect(listening.address(), options().layer(waits())).await.expect("let in");
        let all = [
            XClientOptions::new().client(options()).layer(waits()),
            XClientOptions::new().client(options()).try_layer(waits()),
            options().layer(waits()).into(),
        ]
        .map(|options| many(&listening, options));
        let expected = match timeout < ms(1300) {
            true => (format!("no reply within {timeout:?}"), timeout.as_millis()),
            false => ("1".to_owned(), 1300),
        };
        is_about(timed(&client, None).await, &expected);
        is_about(timed(&client, Some(timeout)).await, &expected);
        for xclient in &all {
            is_about(timed(xclient, None).await, &expected);
            is_about(timed(xclient, Some(timeout)).await, &expected);
        }
    }
}

/// What the framework asks by itself has no layers: those that change or refuse what they see change and refuse nothing
/// of it.
#[tokio::test(start_paused = true)]
async fn what_a_client_asks_by_itself_has_no_layers() {
    let (server, listening) = slow().await;
    let never = || call::from_fn(|_, _| async { Err(CallError::NoServer("not today".to_owned())) });
    let garbles = || call::map(|call| call.set_payload("garbled"));
    for options in [ClientOptions::new().layer(never()), ClientOptions::new().layer(garbles())] {
        let client = Client::bidirectional(listening.address(), options.clone()).await.expect("let in").0;
        soon(client.subscribe("t")).await.expect("it is open");
        assert_eq!(soon(client.roster("t")).await.expect("it is there").members.len(), 1);
        soon(client.unsubscribe("t")).await.expect("it was there");
        client.close();

        let servers = MultipleServersDiscovery::new([listening.address()]);
        let options = XClientOptions::new().client(options).layer(never()).try_layer(never());
        let (mode, select) = (FailMode::Failover, SelectMode::RandomSelect);
        let (xclient, _messages) = XClient::bidirectional("T", mode, select, servers, options);
        soon(xclient.subscribe("t")).await.expect("it is not closed").pop().expect("a server").1.expect("it is open");
        assert_eq!(server.presence("t").expect("it has presence").members.len(), 1);
        soon(xclient.unsubscribe("t")).await.expect("it was there");
        assert_eq!(server.presence("t").expect("it has presence").members.len(), 0);
        xclient.close();
    }
}
