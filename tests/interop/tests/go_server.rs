//! The Rust client against the unmodified Go server.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bothways::{
    CallError, CallOptions, Client, ClientOptions, CloseReason, ConnectionEvent, ConnectionEvents, Heartbeat, Metadata,
    QueueBound, Reconnect, SerializeType, ServerMessages,
    codec::{Blob, Nanos, Protobuf, Raw, Thrift, Timestamp, time},
    transport::{
        ConnectOptions,
        tls::{TlsClient, TlsIdentity, TlsRoots},
    },
};
use bothways_interop::{
    LONG,
    certificates::Certificates,
    contract::{
        self, Args, MetaReply, ProtoArgs, ProtoReply, Reply, Text, ThriftArgs, ThriftReply, Times, Types, letters,
        numbered_payload, pattern, sample_times, sample_types,
    },
    go::{Go, go},
    peers::ServerProcess,
    proxy::{Proxy, Way},
    until, within,
};
use bothways_proto::CompressType;
use bytes::Bytes;
use serde_json::Value;

const TOKEN: &str = "bearer interop";

fn options() -> ClientOptions {
    ClientOptions::new().limits(contract::limits()).timeout(LONG).backoff(millis(10), millis(50))
}

async fn connect(server: &ServerProcess) -> Client {
    Client::connect(&server.address, options()).await.expect("the server listens")
}

async fn go_and_client(go: Go) -> (ServerProcess, Client) {
    let server = ServerProcess::go(go, &[]).await;
    let client = connect(&server).await;
    (server, client)
}

async fn mul(client: &Client) -> Result<i64, CallError> {
    client.call::<Reply>("Arith", "Mul", &Args { a: 10, b: 20 }).await.map(|reply| reply.c)
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// The next event of the Go server of this kind.
async fn event(server: &mut ServerProcess, kind: &str) -> Value {
    let wanted = format!("\"event\":\"{kind}\"");
    let line = server.process.line_where(LONG, |line| line.contains(&wanted)).await;
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"))
}

/// The reason of the next loss.
async fn loss(events: &mut ConnectionEvents, limit: Duration) -> CloseReason {
    within(limit, "the loss", async {
        loop {
            if let ConnectionEvent::Lost { reason, .. } = events.next().await.expect("the client is open") {
                return reason;
            }
        }
    })
    .await
}

async fn restored(events: &mut ConnectionEvents) {
    within(LONG, "the restoration", async {
        while !matches!(events.next().await.expect("the client is open"), ConnectionEvent::Restored { .. }) {}
    })
    .await;
}

// Codecs.

/// Every Go type goes both ways in the codecs that take any type, with values and with zeros.
async fn every_type_in(serialize: SerializeType) {
    let Some(go) = go() else { return };
    let server = ServerProcess::go(go, &[]).await;
    let client = Client::connect(&server.address, options().serialize_type(serialize)).await.expect("it listens");
    assert_eq!(mul(&client).await.expect("it multiplies"), 200);

    let call = async |method, types: &Types| client.call::<Types>("Codec", method, types).await.expect(method);
    assert_eq!(call("Echo", &sample_types()).await, sample_types());
    assert_eq!(call("Echo", &Types::default()).await, Types::default());
    let sample: Types = client.call("Codec", "Sample", &Args::default()).await.expect("a sample");
    assert_eq!(sample, sample_types());
    let differing: Text = client.call("Codec", "Diff", &sample_types()).await.expect("a diff");
    assert_eq!(differing.s, "");

    let echo: Times = client.call("Codec", "EchoTimes", &sample_times()).await.expect("an echo");
    assert_eq!(echo, sample_times());
    let sample: Times = client.call("Codec", "SampleTimes", &Args::default()).await.expect("a sample");
    assert_eq!(sample, sample_times());
    let differing: Text = client.call("Codec", "DiffTimes", &sample_times()).await.expect("a diff");
    assert_eq!(differing.s, "");

    let text: String = client.call("Codec", "EchoString", &"Grüße <&> 世界".to_owned()).await.expect("an echo");
    assert_eq!(text, "Grüße <&> 世界");
    for texts in [vec![], vec!["a".to_owned(), String::new(), "c".to_owned()]] {
        let echo: Vec<String> = client.call("Codec", "EchoStrings", &texts).await.expect("an echo");
        assert_eq!(echo, texts);
    }
}

#[tokio::test]
async fn every_type_in_msgpack() {
    every_type_in(SerializeType::MSGPACK).await;
}

#[tokio::test]
async fn every_type_in_json() {
    every_type_in(SerializeType::JSON).await;
}

/// What is no struct, structs with tags, and the ends of ranges.
async fn bare_values_in(serialize: SerializeType) {
    let Some(go) = go() else { return };
    let server = ServerProcess::go(go, &[]).await;
    let client = Client::connect(&server.address, options().serialize_type(serialize)).await.expect("it listens");

    for bytes in [vec![], vec![0], vec![0, 1, 254, 255], pattern(300)] {
        echo(&client, "Bytes", Blob(bytes.clone())).await;
        echo(&client, "Bytes", Bytes::from(bytes)).await;
    }
    echo(&client, "Lists", vec![Blob(vec![1_u8]), Blob(vec![])]).await;
    let times = sample_times();
    for time in [times.seconds, times.nanos, times.far, times.before, time::go_zero()] {
        echo(&client, "Time", Timestamp(time)).await;
    }
    for duration in [Duration::ZERO, millis(1500), Duration::from_nanos(i64::MAX as u64)] {
        echo(&client, "Duration", Nanos(duration)).await;
    }
    for float in [0.0, 0.1, f64::MAX, f64::MIN_POSITIVE, 5e-324, 1.0 / 3.0, 1e21, 1e-7, 1.2345678901234567e-290] {
        echo(&client, "Float", float).await;
        echo(&client, "Float", -float).await;
    }
    for float in [0.0, 0.1, f32::MAX, f32::MIN_POSITIVE, 16_777_217.0] {
        echo(&client, "Single", float).await;
    }
    for number in [0, i64::MAX as u64, 1 << 63, u64::MAX] {
        echo(&client, "Uint", number).await;
        echo(&client, "Uint", u128::from(number)).await;
    }
    for number in [0, -1, i64::MIN, i64::MAX] {
        echo(&client, "Int", number).await;
        echo(&client, "Int", i128::from(number)).await;
    }
    echo(&client, "Map", BTreeMap::from([(-1, "a".to_owned()), (i64::MAX, String::new())])).await;
    echo(&client, "Tagged", contract::sample_tagged()).await;
    assert_eq!(mul(&client).await.expect("it multiplies"), 200);
}

async fn echo<T: bothways::Payload + PartialEq + std::fmt::Debug + Sync>(client: &Client, method: &str, value: T) {
    let back: T = client.call("Bare", method, &value).await.unwrap_or_else(|error| panic!("{value:?}: {error}"));
    assert_eq!(back, value, "{method}");
}

#[tokio::test]
async fn bare_values_in_msgpack() {
    bare_values_in(SerializeType::MSGPACK).await;
}

#[tokio::test]
async fn bare_values_in_json() {
    bare_values_in(SerializeType::JSON).await;
}

/// A whole float is written without a point: Go does not read `7.0` into an integer.
#[tokio::test]
async fn a_whole_float_in_json_is_an_integer_to_go() {
    let Some(go) = go() else { return };
    let (_server, client) = go_and_client(go).await;
    let options = || CallOptions::new().serialize_type(SerializeType::JSON);
    for number in [7.0, -7.0, 0.0, -0.0, 1e15, 9_007_199_254_740_992.0] {
        let back = client.call_with::<f64>("Bare", "Int", &number, options()).await.expect("Go reads it");
        assert_eq!(back.value, number);
    }
    assert_eq!(mul(&client).await.expect("it multiplies"), 200);
}

/// In JSON both sides refuse to write one, each in the same words.
#[tokio::test]
async fn a_float_that_is_no_number_travels_in_msgpack_and_is_an_error_in_json() {
    let Some(go) = go() else { return };
    let (_server, client) = go_and_client(go).await;
    let nan: f64 = client.call("Bare", "NaN", &Args::default()).await.expect("MessagePack has it");
    assert!(nan.is_nan());
    for float in [f64::INFINITY, f64::NEG_INFINITY] {
        echo(&client, "Float", float).await;
    }

    let options = || CallOptions::new().serialize_type(SerializeType::JSON);
    let error = client.call_with::<f64>("Bare", "NaN", &Args::default(), options()).await.expect_err("no JSON");
    assert!(error.to_string().contains("unsupported value: NaN"), "{error}");
    let error = client.call_with::<f64>("Bare", "Float", &f64::NAN, options()).await.expect_err("no JSON");
    assert!(error.to_string().contains("unsupported value: NaN"), "{error}");
    assert_eq!(mul(&client).await.expect("it multiplies"), 200);
}

#[tokio::test]
async fn protobuf_thrift_and_raw_bytes() {
    let Some(go) = go() else { return };
    let (_server, client) = go_and_client(go).await;
    for (a, b) in [(10, 20), (-7, 6), (0, 0), (46_340, 46_340)] {
        let args = Protobuf(ProtoArgs { a, b });
        let reply: Protobuf<ProtoReply> = client.call("Proto", "Mul", &args).await.expect("a product");
        assert_eq!(reply.c, a * b);
        let args = Thrift(ThriftArgs { a, b });
        let reply: Thrift<ThriftReply> = client.call("Thrift", "Mul", &args).await.expect("a product");
        assert_eq!(reply.c, a * b);
    }
    for size in [0, 1, 255, 1024, 1025, 70_000] {
        let echo: Raw = client.call("Raw", "Echo", &Raw::from(pattern(size))).await.expect("an echo");
        assert!(echo[..] == pattern(size), "{size} bytes");
        let made: Raw = client.call("Raw", "Make", &Raw::from(size.to_string().into_bytes())).await.expect("bytes");
        assert!(made[..] == pattern(size), "{size} bytes");
    }
}

/// Functions and low-level handlers of Go are called like methods.
#[tokio::test]
async fn functions_and_router_handlers() {
    let Some(go) = go() else { return };
    let (_server, client) = go_and_client(go).await;
    let args = Args { a: 6, b: 7 };
    let reply: Reply = client.call("a.fake.service", "mul", &args).await.expect("a product");
    assert_eq!(reply.c, 42);
    let echo: Args = client.call("Router", "Echo", &args).await.expect("an echo");
    assert_eq!(echo, args);
    for (path, method, text) in [("a.fake.service", "err", "function boom"), ("Router", "Err", "router boom")] {
        let error = client.call::<Args>(path, method, &args).await.expect_err("it fails");
        assert_eq!(error.remote_text(), Some(text));
    }
    assert_eq!(mul(&client).await.expect("the connection goes on"), 200);
}

/// 16 MiB each way, beyond what the limits allow unless they are raised.
#[tokio::test]
async fn payloads_of_16_mib() {
    let Some(go) = go() else { return };
    const SIZE: usize = 16 << 20;
    let (server, client) = go_and_client(go).await;
    let len: Reply = client.call("Big", "Len", &Text { s: letters(SIZE) }).await.expect("a length");
    assert_eq!(len.c, SIZE as i64);
    let made: Text = client.call("Big", "Make", &Args { a: SIZE as i64, b: 0 }).await.expect("letters");
    assert!(made.s == letters(SIZE));
    let echo: Raw = client.call("Raw", "Echo", &Raw::from(pattern(SIZE))).await.expect("an echo");
    assert!(echo[..] == pattern(SIZE));

    let small = Client::connect(&server.address, ClientOptions::new()).await.expect("it listens");
    let error = small.call::<Reply>("Big", "Len", &Text { s: letters(SIZE) }).await.expect_err("8 MiB is the limit");
    assert!(matches!(error, CallError::TooLarge(_)), "{error}");
    assert_eq!(mul(&small).await.expect("nothing was sent, the connection goes on"), 200);
}

// Metadata, errors, deadlines.

#[tokio::test]
async fn metadata_goes_both_ways() {
    let Some(go) = go() else { return };
    let (_server, client) = go_and_client(go).await;
    let mut sent = Metadata::new().with("k", "v").with("empty", "").with("", "no key").with("Grüße", "世界");
    sent.insert("nul", "a\0b");
    for i in 0..100 {
        sent.insert(&format!("key{i}"), i.to_string().repeat(i));
    }
    let options = CallOptions::new().metadata(sent.clone());
    let response = client.call_with::<MetaReply>("Meta", "Echo", &Args::default(), options).await.expect("an echo");
    for (key, value) in sent.iter() {
        assert_eq!(response.metadata.get(&format!("got-{key}")), Some(&*value), "{key:?}");
    }
}

/// What Go says is what the caller reads, and the connection survives it.
#[tokio::test]
async fn errors_have_gos_texts() {
    let Some(go) = go() else { return };
    let (_server, client) = go_and_client(go).await;
    let connection = client.connection().expect("it stands").id();
    for (path, method, text) in [
        ("Arith", "Err", "boom"),
        ("Arith", "ErrPartial", "partial boom"),
        ("Nope", "Mul", "rpcx: can't find service Nope"),
        ("Arith", "Nope", "rpcx: can't find method Nope"),
    ] {
        let error = client.call::<Reply>(path, method, &Args { a: 3, b: 4 }).await.expect_err("it fails");
        let CallError::Remote { text: said, code: None, .. } = &error else { panic!("{error:?}") };
        assert_eq!(said, text);
        assert!(!error.is_connection_failure() && !error.is_safe_to_retry());
    }
    let unknown = SerializeType::new(9).expect("four bits");
    let error = client.call::<Raw>("Arith", "Mul", &InUnknownCodec(unknown)).await.expect_err("nobody has it");
    assert_eq!(error.remote_text(), Some("can not find codec for 9"));
    let panic = client.call::<Reply>("Arith", "Panic", &Args::default()).await.expect_err("it panics");
    assert!(panic.remote_text().is_some_and(|text| text.contains("panic on purpose")), "{panic}");
    assert_eq!(mul(&client).await.expect("it goes on"), 200);
    assert_eq!(client.connection().expect("it stands").id(), connection);
}

/// Bytes in a serialize type that neither side has a codec for.
struct InUnknownCodec(SerializeType);

impl bothways::Encode for InUnknownCodec {
    fn serialize_type(_: SerializeType) -> SerializeType {
        SerializeType::new(9).expect("four bits")
    }

    fn encode(&self, serialize: SerializeType) -> Result<bytes::Bytes, bothways::codec::CodecError> {
        assert_eq!(serialize, self.0);
        Ok(bytes::Bytes::from_static(b"x"))
    }
}

impl bothways::Payload for InUnknownCodec {
    fn decode(serialize: SerializeType, _: bytes::Bytes) -> Result<Self, bothways::codec::CodecError> {
        Ok(Self(serialize))
    }
}

/// A deadline reaches Go's handler; it ends the call here; the late reply is nobody's.
#[tokio::test]
async fn deadlines() {
    let Some(go) = go() else { return };
    let (_server, client) = go_and_client(go).await;
    let options = |limit| CallOptions::new().timeout(limit);
    let seen = client.call_with::<MetaReply>("Meta", "Echo", &Args::default(), options(millis(5_000))).await;
    let seen = seen.expect("an echo").value;
    assert!(seen.deadline && (1..=5_000).contains(&seen.millis), "{seen:?}");

    let began = Instant::now();
    let slow = Args { a: 400, b: 9 };
    let error = client.call_with::<Reply>("Arith", "Sleep", &slow, options(millis(100))).await.expect_err("too slow");
    assert!(matches!(error, CallError::TimedOut(limit) if limit == millis(100)), "{error}");
    assert!(began.elapsed() < millis(350), "{:?}", began.elapsed());
    until("the late reply", LONG, async || client.stats().late_replies == 1).await;
    assert_eq!(mul(&client).await.expect("it goes on"), 200);
    assert_eq!(client.stats().calls_pending, 0);
}

// Oneway calls, heartbeats, compression.

#[tokio::test]
async fn oneway_calls_count_and_are_not_answered() {
    let Some(go) = go() else { return };
    let server = ServerProcess::go(go, &[]).await;
    let proxy = Proxy::start(server.socket_address()).await;
    let client = Client::connect(proxy.address(), options()).await.expect("it listens");
    for _ in 0..100 {
        client.oneshot("Oneway", "Add", &Args { a: 3, b: 0 }).await.expect("there is room");
    }
    client.oneshot("Arith", "Err", &Args::default()).await.expect("there is room");
    client.oneshot("Arith", "Nope", &Args::default()).await.expect("there is room");
    until("the sum", LONG, async || {
        let total: Reply = client.call("Oneway", "Total", &Args::default()).await.expect("a total");
        total.c == 300
    })
    .await;
    assert_eq!(mul(&client).await.expect("it goes on"), 200);
    let asked = proxy.messages(Way::ToServer).iter().filter(|message| !message.header().is_oneway()).count();
    assert_eq!(proxy.messages(Way::ToClient).len(), asked);
}

/// Silence is met with heartbeats, Go echoes them, and the connection stays the same.
#[tokio::test]
async fn heartbeats_keep_the_connection() {
    let Some(go) = go() else { return };
    // Go closes a client that sends nothing for so long.
    let mut server = ServerProcess::go(go, &["-read-timeout", "1s"]).await;
    let client =
        Client::connect(&server.address, options().heartbeat(Heartbeat::every(millis(100)).timeout(millis(2_000))))
            .await;
    let client = client.expect("it listens");
    let connection = client.connection().expect("it stands").id();
    for _ in 0..12 {
        let beat = event(&mut server, "heartbeat").await;
        assert_eq!((&beat["path"], &beat["method"]), (&Value::from(""), &Value::from("")), "{beat}");
    }
    // A call that takes longer than Go's patience: the heartbeats go between.
    let reply: Reply = client.call("Arith", "Sleep", &Args { a: 1_500, b: 7 }).await.expect("it is not cut off");
    assert_eq!(reply.c, 7);
    assert_eq!(client.connection().expect("it stands").id(), connection);
}

/// Go takes a Hello for a heartbeat: nothing is agreed, and everything works.
#[tokio::test]
async fn a_hello_is_harmless() {
    let Some(go) = go() else { return };
    let (mut server, client) = go_and_client(go).await;
    let hello = event(&mut server, "heartbeat").await;
    assert_eq!(hello["metadata"]["_bw.v"], "1", "{hello}");
    assert_eq!(mul(&client).await.expect("it multiplies"), 200);
    let connection = client.connection().expect("it stands");
    assert!(!connection.is_negotiated() && !connection.takes_calls());

    let silent = Client::connect(&server.address, options().negotiate(false)).await.expect("it listens");
    assert_eq!(mul(&silent).await.expect("it multiplies"), 200);
}

/// Above 1,024 bytes a request is packed, and then a reply above 1,024 bytes too.
#[tokio::test]
async fn compression_begins_at_1025_bytes() {
    let Some(go) = go() else { return };
    let server = ServerProcess::go(go, &[]).await;
    let proxy = Proxy::start(server.socket_address()).await;
    let packing = Client::connect(proxy.address(), options().compress(CompressType::GZIP)).await.expect("it listens");
    let plain = Client::connect(proxy.address(), options()).await.expect("it listens");
    let mut at = 0;
    for (client, size, packed) in
        [(&packing, 1024, false), (&packing, 1025, true), (&plain, 1025, false), (&packing, 100_000, true)]
    {
        let echo: Raw = client.call("Raw", "Echo", &Raw::from(pattern(size))).await.expect("an echo");
        assert!(echo[..] == pattern(size), "{size} bytes");
        let (request, reply) = (&proxy.messages(Way::ToServer)[at], &proxy.messages(Way::ToClient)[at]);
        let expected = if packed { CompressType::GZIP } else { CompressType::NONE };
        assert_eq!(request.header().compress(), expected, "the request of {size} bytes");
        assert_eq!(reply.header().compress(), expected, "the reply of {size} bytes");
        at += 1;
    }
    // A small request gets a large reply as it is.
    let _: Raw = packing.call("Raw", "Make", &Raw::from("5000")).await.expect("bytes");
    assert_eq!(proxy.messages(Way::ToClient)[at].header().compress(), CompressType::NONE);
    let len: Reply = packing.call("Big", "Len", &Text { s: letters(200_000) }).await.expect("a length");
    assert_eq!(len.c, 200_000);
}

// Many at once, and pushes.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_calls_at_once_find_their_replies() {
    let Some(go) = go() else { return };
    let (_server, client) = go_and_client(go).await;
    let calls: Vec<_> = (0..10_000)
        .map(|a| {
            let client = client.clone();
            tokio::spawn(async move { client.call::<Reply>("Order", "Sleep", &Args { a, b: 0 }).await })
        })
        .collect();
    for (a, call) in (0..).zip(calls) {
        assert_eq!(within(LONG, "a reply", call).await.expect("no panic").expect("a reply").c, a);
    }
    assert_eq!(client.stats().calls_pending, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_pushes_arrive_in_order() {
    let Some(go) = go() else { return };
    const PUSHES: u64 = 100_000;
    let server = ServerProcess::go(go, &[]).await;
    let options = options().message_queue(QueueBound::messages(PUSHES as usize).bytes(64 << 20));
    let (client, mut messages) = Client::bidirectional(&server.address, options).await.expect("it listens");
    let reply: Reply = client.call("Push", "Start", &Args { a: PUSHES as i64, b: 64 }).await.expect("it starts");
    assert_eq!(reply.c, PUSHES as i64);
    for n in 0..PUSHES {
        let message = within(LONG, "a push", messages.next()).await.expect("the client is open");
        assert_eq!(message.dropped_before(), 0, "before push {n}");
        assert_eq!((message.service_path(), message.service_method()), (contract::PUSH_PATH, contract::PUSH_METHOD));
        assert_eq!(message.serialize_type(), SerializeType::RAW);
        assert_eq!(message.metadata().get("n"), Some(&*n.to_string()));
        assert!(message.payload().expect("it is not packed") == numbered_payload(n, 64), "push {n}");
    }
    assert_eq!(mul(&client).await.expect("it goes on"), 200);
    assert!(messages.is_empty() && messages.dropped() == 0);
}

/// What Go wrote before the reply is in the queue when the call returns.
#[tokio::test]
async fn a_push_before_the_reply_is_there_first() {
    let Some(go) = go() else { return };
    let server = ServerProcess::go(go, &[]).await;
    let (client, mut messages) = Client::bidirectional(&server.address, options()).await.expect("it listens");
    for a in 0..200 {
        let reply: Reply = client.call("Push", "Then", &Args { a, b: 2 }).await.expect("a product");
        assert_eq!(reply.c, a * 2);
        let push = messages.try_next().expect("the push came before the reply");
        assert_eq!(push.payload().expect("it is not packed"), contract::PUSH_PAYLOAD);
        assert!(push.metadata().is_empty() && messages.is_empty());
    }
}

/// Nobody listens: pushes are dropped, and calls go on.
#[tokio::test]
async fn pushes_that_nobody_hears_disturb_nobody() {
    let Some(go) = go() else { return };
    let (_server, client) = go_and_client(go).await;
    let _: Reply = client.call("Push", "Start", &Args { a: 10_000, b: 64 }).await.expect("it starts");
    assert_eq!(mul(&client).await.expect("it goes on"), 200);
}

// Tokens.

#[tokio::test]
async fn a_wrong_token_is_refused_with_gos_text() {
    let Some(go) = go() else { return };
    let server = ServerProcess::go(go, &["-auth", TOKEN]).await;
    let right = Client::connect(&server.address, options().auth(TOKEN)).await.expect("it listens");
    assert_eq!(mul(&right).await.expect("the token is right"), 200);
    for wrong in [options().auth("bearer nobody"), options().auth(""), options()] {
        // Go hears of the token with the first call only.
        let client = Client::connect(&server.address, wrong).await.expect("a heartbeat needs no token");
        let mut events = client.events();
        let error = mul(&client).await.expect_err("the token is wrong");
        assert_eq!(error.remote_text(), Some(contract::AUTH_REFUSAL));
        let reason = loss(&mut events, LONG).await;
        assert!(matches!(reason, CloseReason::PeerClosed | CloseReason::Io(_)), "{reason}");
    }
    assert_eq!(mul(&right).await.expect("others are not concerned"), 200);
}

// The end of connections.

/// A call of 20 s that waits for its reply.
fn slow_call(client: &Client) -> tokio::task::JoinHandle<Result<Reply, CallError>> {
    let client = client.clone();
    tokio::spawn(async move { client.call::<Reply>("Arith", "Sleep", &Args { a: 20_000, b: 1 }).await })
}

async fn pending(client: &Client) {
    until("the call is sent", LONG, async || client.stats().calls_pending == 1).await;
    // It was sent before this one.
    mul(client).await.expect("it multiplies");
}

/// The reason with which a call ended whose bytes were sent.
fn written_and_lost(outcome: Result<Reply, CallError>) -> CloseReason {
    match outcome {
        Err(error @ CallError::Closed { written: true, .. }) => {
            assert!(error.is_connection_failure() && !error.is_safe_to_retry());
            let CallError::Closed { reason, .. } = error else { unreachable!("it was matched") };
            reason
        }
        other => panic!("{other:?}"),
    }
}

/// A server that is killed: a caller that waits hears at once, with the reason; and it is found when it is back.
#[tokio::test]
async fn a_killed_server_is_a_loss_at_once_and_found_when_it_is_back() {
    let Some(go) = go() else { return };
    let mut server = ServerProcess::go(go, &[]).await;
    let (client, mut messages) = Client::bidirectional(&server.address, options()).await.expect("it listens");
    let mut events = client.events();
    let waiting = slow_call(&client);
    pending(&client).await;

    let began = Instant::now();
    server.process.kill().await;
    let outcome = within(LONG, "the end of the call", waiting).await.expect("no panic");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let of_call = written_and_lost(outcome);
    let of_event = loss(&mut events, LONG).await;
    for reason in [of_call, of_event] {
        assert!(matches!(reason, CloseReason::PeerClosed | CloseReason::Io(_)), "{reason}");
    }

    let _back = ServerProcess::go_at(go, &server.address, &[]).await;
    restored(&mut events).await;
    assert_eq!(mul(&client).await.expect("it is back"), 200);
    // The same stream goes on.
    let _: Reply = client.call("Push", "Then", &Args::default()).await.expect("it is back");
    assert_eq!(messages.try_next().expect("a push").payload().expect("plain"), contract::PUSH_PAYLOAD);
}

/// A server that is frozen says nothing and closes nothing: the keep-alive finds out. While a call waits that takes ten
/// times as long, since Go's may be busy with its pool.
#[tokio::test]
async fn a_frozen_server_is_found_out_by_the_keepalive() {
    let Some(go) = go() else { return };
    let mut server = ServerProcess::go(go, &[]).await;
    let options = options().heartbeat(Heartbeat::every(millis(300)).timeout(millis(500)));
    let client = Client::connect(&server.address, options).await.expect("it listens");
    let mut events = client.events();
    let waiting = slow_call(&client);
    pending(&client).await;

    let began = Instant::now();
    server.process.freeze().await;
    let outcome = within(LONG, "the end of the call", waiting).await.expect("no panic");
    assert!(millis(5000) <= began.elapsed(), "{:?}", began.elapsed());
    let reason = written_and_lost(outcome);
    assert!(matches!(reason, CloseReason::Gone { silent } if millis(5000) <= silent), "{reason}");
    let reason = loss(&mut events, LONG).await;
    assert!(matches!(reason, CloseReason::Gone { .. }), "{reason}");
}

/// Go's server closes the connection in the middle of a call, without a word.
#[tokio::test]
async fn a_connection_that_the_server_closes_is_made_again() {
    let Some(go) = go() else { return };
    let (_server, client) = go_and_client(go).await;
    let mut events = client.events();
    let outcome = client.call::<Reply>("Conn", "Close", &Args { a: 0, b: 0 }).await;
    let reason = written_and_lost(outcome);
    assert!(matches!(reason, CloseReason::PeerClosed | CloseReason::Io(_)), "{reason}");
    restored(&mut events).await;
    assert_eq!(mul(&client).await.expect("it is back"), 200);
    let reply: Reply = client.call("Conn", "Close", &Args { a: 50, b: 0 }).await.expect("a reply, then the end");
    assert_eq!(reply.c, 50);
    restored(&mut events).await;
    assert_eq!(mul(&client).await.expect("it is back"), 200);
}

/// One's own close is no loss: what waits fails as closed here, and the streams end.
#[tokio::test]
async fn ones_own_close_is_no_loss() {
    let Some(go) = go() else { return };
    let server = ServerProcess::go(go, &[]).await;
    let (client, mut messages) = Client::bidirectional(&server.address, options()).await.expect("it listens");
    let mut events = client.events();
    let waiting = slow_call(&client);
    pending(&client).await;
    client.close();
    let outcome = within(LONG, "the end of the call", waiting).await.expect("no panic");
    assert!(matches!(outcome, Err(CallError::Closed { reason: CloseReason::Local, .. })), "{outcome:?}");
    drop(client);
    assert!(within(LONG, "the end of the messages", messages.next()).await.is_none());
    while let Some(event) = within(LONG, "the end of the events", events.next()).await {
        assert!(!matches!(event, ConnectionEvent::Lost { .. }), "{event:?}");
    }
}

// Other networks.

async fn everything_small(client: &Client, messages: &mut ServerMessages) {
    assert_eq!(mul(client).await.expect("it multiplies"), 200);
    let echo: Types = client.call("Codec", "Echo", &sample_types()).await.expect("an echo");
    assert_eq!(echo, sample_types());
    let echo: Raw = client.call("Raw", "Echo", &Raw::from(pattern(1 << 20))).await.expect("an echo");
    assert!(echo[..] == pattern(1 << 20));
    let _: Reply = client.call("Push", "Start", &Args { a: 1_000, b: 64 }).await.expect("it starts");
    for n in 0..1_000 {
        let message = within(LONG, "a push", messages.next()).await.expect("the client is open");
        assert!(message.payload().expect("it is not packed") == numbered_payload(n, 64), "push {n}");
    }
}

#[tokio::test]
async fn unix_sockets() {
    let Some(go) = go() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let address = format!("unix@{}", folder.path().join("server").display());
    let mut server = ServerProcess::go_at(go, &address, &[]).await;
    let (client, mut messages) = Client::bidirectional(&address, options()).await.expect("it listens");
    everything_small(&client, &mut messages).await;
    let mut events = client.events();
    server.process.kill().await;
    loss(&mut events, LONG).await;
}

/// Over TLS everything is as it is without; with client certificates too; and who has none is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls() {
    let Some(go) = go() else { return };
    let certificates = Certificates::new();
    let roots = TlsRoots::from_pem_file(certificates.authority()).expect("an authority");
    let (certificate, key) = certificates.client();
    let identity = TlsIdentity::from_pem_files(certificate, key).expect("an identity");
    let stranger = TlsClient::new(&roots).and_then(|tls| tls.server_name("localhost")).expect("a name");
    let known =
        TlsClient::with_identity(&roots, identity).and_then(|tls| tls.server_name("localhost")).expect("a name");
    for asks in [false, true] {
        let arguments = certificates.server_arguments(asks);
        let server = ServerProcess::go(go, &arguments.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let with = |tls: &TlsClient| options().connect_options(ConnectOptions::default().tls(tls.clone()));
        let tls = if asks { &known } else { &stranger };
        let (client, mut messages) = Client::bidirectional(&server.address, with(tls)).await.expect("it listens");
        everything_small(&client, &mut messages).await;
        if asks {
            let options = with(&stranger).reconnect(Reconnect::Never).timeout(Duration::from_secs(5));
            // In TLS 1.3 the client is done before the server has looked at its certificate: either act fails.
            let refused = match Client::connect(&server.address, options).await {
                Ok(client) => mul(&client).await,
                Err(error) => Err(error.into()),
            };
            let error = refused.expect_err("it shows no certificate");
            assert!(error.is_connection_failure(), "{error}");
        }
    }
}

/// A server whose certificate is another's is not spoken to.
#[tokio::test]
async fn a_strange_certificate_is_refused() {
    let Some(go) = go() else { return };
    let certificates = Certificates::new();
    let arguments = certificates.server_arguments(false);
    let server = ServerProcess::go(go, &arguments.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let roots = TlsRoots::from_pem_file(Certificates::new().authority()).expect("an authority");
    let tls = TlsClient::new(&roots).and_then(|tls| tls.server_name("localhost")).expect("a name");
    let options = options().reconnect(Reconnect::Never).connect_options(ConnectOptions::default().tls(tls));
    let error = Client::connect(&server.address, options).await.expect_err("the authority is another");
    assert!(error.to_string().to_lowercase().contains("cert"), "{error}");
}
