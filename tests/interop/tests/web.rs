//! WebSocket, CONNECT and one port for everything, with unmodified Go at the other end.

use std::time::Duration;

use bothways::{
    CallOptions, Client, ClientOptions, Metadata, SerializeType,
    codec::{Protobuf, Raw, Thrift},
    transport::{
        ConnectOptions,
        tls::{TlsClient, TlsRoots},
    },
};
use bothways_interop::{
    LONG,
    certificates::Certificates,
    contract::{
        self, Args, MetaReply, ProtoArgs, ProtoReply, Reply, Text, ThriftArgs, ThriftReply, Types, letters,
        numbered_payload, pattern, sample_types,
    },
    go::{Go, go},
    peers::{ServerProcess, finish_case, go_client},
    within,
};

/// More than any case takes, on a slow machine too.
const CASE: Duration = Duration::from_secs(120);

fn options() -> ClientOptions {
    ClientOptions::new().limits(contract::limits()).timeout(LONG)
}

fn borrowed(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

/// Every case of Go's client that needs nothing but a server, except for two that write bytes to a socket themselves.
const CASES: [&str; 22] = [
    "msgpack",
    "json",
    "bare-msgpack",
    "bare-json",
    "narrow",
    "protobuf",
    "thrift",
    "raw",
    "function",
    "router",
    "metadata",
    "errors",
    "panic",
    "oneway",
    "heartbeat",
    "compression",
    "timeout",
    "concurrent",
    "large",
    "push-before-reply",
    "pushes",
    "bidirectional",
];

async fn all_cases_at(go: Go, server: &ServerProcess, arguments: &[&str]) {
    for case in CASES {
        finish_case(go_client(go, &server.address, case, arguments), CASE).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn go_clients_over_web_socket() {
    let Some(go) = go() else { return };
    let server = ServerProcess::rust_at("ws@127.0.0.1:0", &[]).await;
    all_cases_at(go, &server, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn go_clients_over_connect() {
    let Some(go) = go() else { return };
    let server = ServerProcess::rust_at("http@127.0.0.1:0", &[]).await;
    all_cases_at(go, &server, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn go_clients_over_web_socket_and_tls() {
    let Some(go) = go() else { return };
    let certificates = Certificates::new();
    let server = ServerProcess::rust_at("wss@127.0.0.1:0", &borrowed(&certificates.server_arguments(false))).await;
    let arguments = certificates.client_arguments(false);
    all_cases_at(go, &server, &borrowed(&arguments)).await;
}

/// Go's clients of three networks at one port, with and without TLS; and Go's client of TLS at a port that takes both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn go_clients_of_all_networks_at_one_port() {
    let Some(go) = go() else { return };
    let certificates = Certificates::new();
    let mut arguments = certificates.server_arguments(false);
    arguments.extend(["--one-port".to_owned(), "--plain-beside-tls".to_owned()]);
    for arguments in [vec!["--one-port".to_owned()], arguments] {
        let server = ServerProcess::rust(&borrowed(&arguments)).await;
        let place = server.socket_address();
        for network in ["tcp", "ws", "http"] {
            for case in ["msgpack", "push-before-reply", "large"] {
                finish_case(go_client(go, &format!("{network}@{place}"), case, &[]), CASE).await;
            }
        }
        if arguments.len() == 1 {
            continue;
        }
        let secure = certificates.client_arguments(false);
        for network in ["tcp", "wss"] {
            finish_case(go_client(go, &format!("{network}@{place}"), "msgpack", &borrowed(&secure)), CASE).await;
        }
    }
}

/// What a Bothways client does at Go's server, in all codecs, large and many at once.
async fn everything_at(address: &str, options: impl Fn() -> ClientOptions) {
    for serialize in [SerializeType::MSGPACK, SerializeType::JSON] {
        let client = Client::connect(address, options().serialize_type(serialize)).await.expect("it listens");
        let types = client.call::<Types>("Codec", "Echo", &sample_types()).await.expect("an echo");
        assert_eq!(types, sample_types());
        client.close();
    }

    let (client, mut messages) = Client::bidirectional(address, options()).await.expect("it listens");
    let peer = client.connection().expect("it stands").peer_address();
    assert!(peer.contains(address.split_once('@').expect("a network").1.split('/').next().expect("a place")), "{peer}");
    let reply: Protobuf<ProtoReply> =
        client.call("Proto", "Mul", &Protobuf(ProtoArgs { a: 6, b: 7 })).await.expect("a product");
    assert_eq!(reply.c, 42);
    let reply: Thrift<ThriftReply> =
        client.call("Thrift", "Mul", &Thrift(ThriftArgs { a: 6, b: 7 })).await.expect("a product");
    assert_eq!(reply.c, 42);

    const LARGE: usize = 16 << 20;
    for size in [0, 1, 125, 126, 127, 65_535, 65_536, LARGE] {
        let echo: Raw = client.call("Raw", "Echo", &Raw::from(pattern(size))).await.expect("an echo");
        assert!(echo[..] == pattern(size), "{size} bytes");
    }
    let len: Reply = client.call("Big", "Len", &Text { s: letters(LARGE) }).await.expect("a length");
    assert_eq!(len.c, LARGE as i64);

    let sent = Metadata::new().with("k", "v").with("Grüße", "世界");
    let response = client
        .call_with::<MetaReply>("Meta", "Echo", &Args::default(), CallOptions::new().metadata(sent))
        .await
        .expect("an echo");
    assert_eq!(response.metadata.get("got-Grüße"), Some("世界"));

    many_at_once(&client).await;

    let args = Args { a: 1_000, b: 64 };
    client.call::<Reply>("Push", "Start", &args).await.expect("it pushes");
    for n in 0..1_000 {
        let message = within(LONG, "a push", messages.next()).await.expect("the client is open");
        assert!(message.payload().expect("it is not packed") == numbered_payload(n, 64), "push {n}");
    }
    client.close();
}

async fn many_at_once(client: &Client) {
    const MANY: i64 = 10_000;
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..MANY {
        let client = client.clone();
        calls.spawn(async move {
            let reply: Reply = client.call("Arith", "Mul", &Args { a: n, b: 3 }).await.expect("a product");
            assert_eq!(reply.c, 3 * n);
        });
    }
    assert_eq!(calls.join_all().await.len(), MANY as usize);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn go_servers_over_web_socket_and_connect() {
    let Some(go) = go() else { return };
    for network in ["ws", "http"] {
        let server = ServerProcess::go_at(go, &format!("{network}@127.0.0.1:0"), &[]).await;
        everything_at(&server.address, options).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn go_servers_over_web_socket_and_tls() {
    let Some(go) = go() else { return };
    let certificates = Certificates::new();
    let server = ServerProcess::go_at(go, "wss@127.0.0.1:0", &borrowed(&certificates.server_arguments(false))).await;
    let roots = TlsRoots::from_pem_file(certificates.authority()).expect("an authority");
    let tls = TlsClient::new(&roots).and_then(|tls| tls.server_name("localhost")).expect("a name");
    everything_at(&server.address, || options().connect_options(ConnectOptions::default().tls(tls.clone()))).await;
}

/// A server that does not take what it is asked for says so, and the client says what it said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_of_gos_is_told() {
    let Some(go) = go() else { return };
    let options = || options().reconnect(bothways::Reconnect::Never);
    for (serves, asked, why) in [
        ("ws", "ws@PLACE/elsewhere", "404 Not Found"),
        ("http", "http@PLACE/elsewhere", "404 Not Found"),
        ("http", "ws@PLACE", "405"),
    ] {
        let server = ServerProcess::go_at(go, &format!("{serves}@127.0.0.1:0"), &[]).await;
        let address = asked.replace("PLACE", server.socket_address());
        let error = Client::connect(&address, options()).await.expect_err("it is not served there");
        assert!(error.to_string().contains(why), "{address}: {error}");
    }
}
