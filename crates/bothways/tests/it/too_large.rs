//! What is too large for one side costs that one message: nobody else's calls, no connection, no session.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bothways::{
    CallError, Class, Client, ClientOptions, ErrorCode, FailMode, Limits, Metadata, Push, PushError, Reply, Request,
    Router, SelectMode, Server, Stage, Target, Timeouts, XClient, discovery::MultipleServersDiscovery,
    session::Failure, session::TopicOptions,
};
use bothways_proto::{Header, Message, Seq, SerializeType, Status, keys};

use crate::{
    admin::Log,
    scripted::{
        Scripted, ScriptedServer, arrive, claim, is_control, oneway, reply, reply_to, request, request_with,
        session_pairs,
    },
    support::{address, call, connections, echoing, gate, soon, until},
};

const TOO_LARGE: Stage = Stage::Failed(Failure::BadArguments);

/// The limits of who takes frames of so many bytes.
fn up_to(bytes: usize) -> Limits {
    Limits::default().body_bytes_max(bytes)
}

/// Handlers of a client: `Good` takes what comes, `Big` answers with more than 1,000 bytes.
fn handlers() -> Router {
    Router::new().handler("C", "Good", |_: Request| async { Reply::ok("good") }).handler(
        "C",
        "Big",
        |_: Request| async { Reply::ok(vec![7; 3000]) },
    )
}

fn good(bytes: usize) -> Push {
    Push::new("C", "Good", vec![7; bytes])
}

/// A push of the server under this offset.
fn tracked(offset: u64, bytes: usize) -> Vec<u8> {
    let header = Header::oneway(Seq::of_push(offset), SerializeType::RAW);
    Message::new(header, "C", "Good", &Metadata::new(), &vec![7; bytes]).frame().to_vec()
}

/// Of a plain client, whose limits nobody knows, and which knows none.
#[tokio::test(start_paused = true)]
async fn a_request_that_is_too_large_is_answered_and_passed_over() {
    let server = echoing().limits(up_to(1000)).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    // The first frame as well as later ones, in pieces and with what is behind them.
    for number in [1, 3] {
        let stream = [request(number, "Echo", &[7; 9000]), request(number + 1, "Echo", b"next")].concat();
        for piece in stream.chunks(4000) {
            client.say(piece).await;
        }
        let refused = client.next().await;
        assert_eq!(refused.header().seq(), Seq::new(number));
        assert!(refused.error_text().is_some_and(|text| text.contains("`body_bytes_max` is 1000")), "{refused:?}");
        client.hears(reply(number + 1, "Echo", b"next")).await;
    }
    // What wants no answer ends a plain client's connection: it could not be told. Ours is counted.
    let mut plain = Scripted::connect(listening.address()).await;
    plain.say(oneway(5, "Echo", &[7; 9000])).await;
    plain.hears_the_end().await;
    let mut ours = Scripted::connect_negotiated(listening.address()).await;
    ours.say([oneway(5, "Echo", &[7; 9000]), request(6, "Echo", b"next")].concat()).await;
    ours.hears(reply(6, "Echo", b"next")).await;
    let of_ours = connections(&server, 2).await.pop().expect("the newest");
    assert_eq!(of_ours.stats().oneways_refused, 1);

    // Sixteen times the limit is passed over, and no more.
    client.say([request(7, "Echo", &[7; 15_900]), request(8, "Echo", b"next")].concat()).await;
    assert_eq!(client.next().await.header().status(), Status::ERROR);
    client.hears(reply(8, "Echo", b"next")).await;
    client.say(&request(9, "Echo", &[7; 17_000])[..500]).await;
    assert_eq!(client.next().await.header().seq(), Seq::new(9));
    client.hears_the_end().await;
}

/// What is passed over goes on as other frames do, or its connection ends; and strangers are passed over nothing.
#[tokio::test(start_paused = true)]
async fn what_is_passed_over_has_a_bound_in_time_and_strangers_have_none_of_it() {
    let server = echoing()
        .limits(up_to(100_000))
        .timeouts(Timeouts::new().frame_progress(10 << 10, Duration::from_secs(10)))
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    client.say(&request(1, "Echo", &[7; 200_000])[..50_000]).await;
    assert_eq!(client.next().await.header().status(), Status::ERROR);
    client.hears_the_end().await;

    let server = echoing().limits(up_to(1000)).auth(|_| async { Err::<(), _>("never") }).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    client.say(request(1, "Echo", &[7; 2000])).await;
    assert_eq!(client.next().await.header().status(), Status::ERROR);
    client.hears_the_end().await;
}

/// U10. Of a server that does not know the client's limit, as an old one.
#[tokio::test(start_paused = true)]
async fn what_a_server_sends_that_is_too_large_is_passed_over() {
    let server = ScriptedServer::listen().await;
    let options = ClientOptions::new().limits(up_to(1000));
    let (client, mut peer) = tokio::join!(
        Client::with_handlers(&server.address, options, handlers()),
        server.accept_with(session_pairs("1"))
    );
    let client = client.expect("it listens");

    // A push: it failed, and the next one is handled.
    peer.say([tracked(1, 9000), tracked(2, 10)].concat()).await;
    loop {
        let ack = soon(peer.next()).await;
        assert!(is_control(&ack, keys::ACK), "{ack:?}");
        if ack.metadata().get(keys::ACK_OFFSETS) == Some("2,2") {
            assert_eq!(ack.metadata().get(keys::ACK_FAILED), Some("1:bad_arguments"));
            break;
        }
    }

    // A call: it is answered.
    let header = Header::request(Seq::of_call_to_client(1), SerializeType::RAW);
    peer.say(Message::new(header, "C", "Good", &Metadata::new(), &[7; 9000]).frame()).await;
    let refused = soon(peer.next()).await;
    assert!(refused.error_text().is_some_and(|text| text.contains("`body_bytes_max` is 1000")), "{refused:?}");
    assert_eq!(refused.metadata().get(keys::ERROR_CODE), Some("bad_arguments"));

    // A reply: its call fails, and one beside it does not.
    let script = async {
        let (large, small) = (peer.next().await, peer.next().await);
        peer.say([reply_to(&large, &[7; 9000]), reply_to(&small, b"small")].concat()).await;
    };
    let (large, small, ()) = tokio::join!(call(&client, "Ask", "large"), call(&client, "Ask", "small"), script);
    let error = large.expect_err("it does not fit");
    assert!(matches!(error, CallError::Decode(_)) && error.may_have_run() && !error.is_worth_retrying(), "{error:?}");
    assert!(error.to_string().contains("`body_bytes_max` is 1000"), "{error}");
    assert_eq!(small.expect("it fits"), "small");
}

/// U10, U10b, U10d. Both sides know each other's limits, and send nothing beyond them.
#[tokio::test(start_paused = true)]
async fn what_is_larger_than_the_peer_takes_is_not_sent() {
    let server =
        echoing().handler("T", "Big", |_: Request| async { Reply::ok(vec![7; 3000]) }).limits(up_to(2000)).build();
    let larger = echoing().handler("T", "Big", |_: Request| async { Reply::ok(vec![7; 3000]) });
    let history = TopicOptions::new().open().history(10, Duration::from_secs(3600));
    let larger = larger.topic("news.*", history).expect("a pattern").build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let second = larger.listen(&address()).await.expect("the name is free");

    // The client takes less.
    let options = ClientOptions::new().limits(up_to(1000));
    let client = Client::with_handlers(second.address(), options, handlers()).await.expect("it listens");
    call(&client, "Echo", "hello").await.expect("it echoes");
    let session = larger.sessions(&Target::everyone()).expect("no topic").remove(0);
    client.subscribe("news.today").await.expect("open");
    for class in [Class::Tracked, Class::Fire, Class::Latest("key".into())] {
        let outcomes = soon(session.push(&good(1500).class(class.clone())).expect("it fits here").handled()).await;
        assert_eq!(outcomes.at(TOO_LARGE), 1, "{class:?}: {outcomes:?}");
        let outcomes = soon(session.push(&good(10)).expect("it fits").handled()).await;
        assert_eq!(outcomes.at(Stage::Handled), 1, "{class:?}: {outcomes:?}");
    }
    let published = larger.publish("news.today", &good(1500)).expect("it fits here");
    assert_eq!(soon(published.handled()).await.at(TOO_LARGE), 1);
    let connection = larger.connections().remove(0);
    let sent = connection.send_message("C", "Good", &Metadata::new(), vec![7; 1500]);
    assert!(matches!(sent, Err(PushError::TooLarge(_))), "{sent:?}");
    let called = soon(connection.call_raw_to("Good", 1500)).await;
    assert!(matches!(called, Err(CallError::TooLarge(_))), "{called:?}");
    let answer = call(&client, "Big", "").await.expect_err("it does not fit");
    assert!(answer.remote_text().is_some_and(|text| text.contains("cannot be sent")), "{answer:?}");
    until(|| session.waiting() == (0, 0)).await;
    assert_eq!(session.generation(), 1);

    // The server takes less.
    let client =
        Client::with_handlers(listening.address(), ClientOptions::new(), handlers()).await.expect("it listens");
    let error = call(&client, "Echo", vec![7; 2500]).await.expect_err("it does not fit");
    assert!(matches!(error, CallError::TooLarge(_)), "{error:?}");
    let connection = connections(&server, 1).await.remove(0);
    let error = soon(connection.call_raw_to("Big", 1)).await.expect_err("its reply does not fit");
    assert!(error.remote_text().is_some_and(|text| text.contains("cannot be sent")), "{error:?}");
    call(&client, "Echo", "hello").await.expect("the connection lives");
    assert_eq!(server.sessions(&Target::everyone()).expect("no topic").remove(0).generation(), 1);
}

/// A raw call of service `C`.
trait CallRawTo {
    async fn call_raw_to(&self, method: &str, bytes: usize) -> Result<(), CallError>;
}

impl CallRawTo for bothways::Connection {
    async fn call_raw_to(&self, service_method: &str, bytes: usize) -> Result<(), CallError> {
        use bothways::{CallOptions, Caller, caller::RawCall};
        let (serialize, payload, options) = (SerializeType::RAW, vec![7; bytes].into(), CallOptions::new());
        self.call_raw(RawCall { service_path: "C", service_method, serialize, payload, options }).await.map(drop)
    }
}

/// What was pushed while the client was away, when nobody knew what it takes when it comes back: a notice goes in its
/// place, and again to who comes back without that.
#[tokio::test(start_paused = true)]
async fn what_waits_and_is_too_large_is_skipped() {
    let (log, _logging) = Log::begin();
    let server = Server::builder().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (client, welcome) = arrive(listening.address(), &Metadata::new()).await;
    let session = server.sessions(&Target::everyone()).expect("no topic").remove(0);
    drop(client);
    until(|| session.connection().is_none()).await;
    let large = session.push(&good(1500)).expect("it fits here");
    let small = session.push(&good(10)).expect("it fits");
    let mut secret = welcome;
    for _ in 0..2 {
        let small_client = claim(&secret, 0).with(keys::SESSION_RECEIVED, "0").with(keys::BODY_BYTES_MAX, "1000");
        let (mut client, welcome) = arrive(listening.address(), &small_client).await;
        assert_eq!(welcome.get(keys::SESSION_RESUMED), Some("1"), "{welcome:?}");
        assert_eq!(welcome.get(keys::BODY_BYTES_MAX), Some("8388608"));
        let skip = soon(client.next()).await;
        assert!(is_control(&skip, keys::SKIP) && skip.header().seq() == Seq::of_push(1), "{skip:?}");
        assert_eq!(soon(client.next()).await.header().seq(), Seq::of_push(2));
        assert_eq!(large.outcomes().at(TOO_LARGE), 1);
        secret = welcome;
    }
    assert_eq!(small.outcomes().failed(), 0);
    assert_eq!(log.lines("a push is larger than its client takes"), 1, "told once in ten seconds: {}", log.text());
}

/// G26. The reply of a plain server: its method runs once, whatever the fail mode, and other calls of the connection are
/// answered.
#[tokio::test(start_paused = true)]
async fn a_large_reply_of_a_plain_server_costs_its_call() {
    for mode in [FailMode::Failover, FailMode::Failtry, FailMode::Failbackup, FailMode::Failfast] {
        let runs = Arc::new(AtomicUsize::new(0));
        let (handler, mut asked) = gate();
        let mut servers = Vec::new();
        for _ in 0..2 {
            let runs = Arc::clone(&runs);
            let big = move |_: Request| {
                runs.fetch_add(1, Ordering::Relaxed);
                std::future::ready(Reply::ok(vec![7; 9000]))
            };
            let server = echoing().handler("T", "Wait", handler.clone()).handler("T", "Big", big).build();
            servers.push(server.listen(&address()).await.expect("the name is free"));
        }
        let list = MultipleServersDiscovery::new(servers.iter().map(|server| server.address().to_owned()));
        let options = ClientOptions::new().negotiate(false).limits(up_to(1000));
        let client = XClient::new("T", mode, SelectMode::RoundRobin, list, options);
        let others: Vec<_> = (0..2)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { call(&client, "Wait", "").await })
            })
            .collect();
        let running = [soon(asked.recv()).await.expect("it runs"), soon(asked.recv()).await.expect("it runs")];
        let error = call(&client, "Big", "").await.expect_err("it does not fit");
        assert!(matches!(error, CallError::Decode(_)), "{mode:?}: {error:?}");
        assert_eq!(runs.load(Ordering::Relaxed), 1, "{mode:?}");
        running.into_iter().for_each(|asked| asked.answer(Reply::ok("done")));
        for other in others {
            assert_eq!(soon(other).await.expect("no panic").expect("it is answered"), "done");
        }
    }
}

/// X11, U2. Names that fill a frame do not fill the answer, which says what it would of short ones.
#[tokio::test(start_paused = true)]
async fn a_refusal_fits_whatever_the_names_are() {
    let server = echoing().limits(up_to(200_000)).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    for bytes in [70_000, 199_900] {
        for (path, method, said) in [(bytes, 1, "can't find service xxx"), (1, bytes, "can't find ")] {
            let mut client = Scripted::connect_negotiated(listening.address()).await;
            let header = Header::request(Seq::new(1), SerializeType::RAW);
            let (path, method) = ("x".repeat(path), "y".repeat(method));
            client.say(Message::new(header, &path, &method, &Metadata::new(), &[]).frame()).await;
            let refused = soon(client.next()).await;
            let text = refused.error_text().expect("it is refused");
            assert!(text.contains(said) && text.len() < 1024, "{text}");
            assert_eq!(refused.metadata().get(keys::ERROR_CODE), Some("not_found"));
        }
    }
}

/// The text of an error that does not fit is cut, and its code stays.
#[tokio::test(start_paused = true)]
async fn the_text_of_an_error_that_does_not_fit_is_cut() {
    let long = |code: Option<ErrorCode>| {
        move |_: Request| {
            let text = "why ".repeat(30_000);
            std::future::ready(code.map_or_else(|| Reply::error(&*text), |code| Reply::refused(code, &*text)))
        }
    };
    let server = echoing().handler("T", "Error", long(None)).handler("T", "Late", long(Some(ErrorCode::Timeout)));
    let server = server.build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect_negotiated(listening.address()).await;
    for (method, code) in [("Error", None), ("Late", Some("timeout"))] {
        client.say(request_with(1, method, &Metadata::new(), b"")).await;
        let refused = soon(client.next()).await;
        let text = refused.error_text().expect("it failed");
        assert!(text.starts_with("why why ") && text.contains("`metadata_bytes_max` is 65536"), "{text}");
        assert!(text.len() < 1024, "{text}");
        assert_eq!(refused.metadata().get(keys::ERROR_CODE), code);
    }
}
