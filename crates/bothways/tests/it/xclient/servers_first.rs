//! Servers that speak first.

use super::*;

/// What `server` sends to all who are connected.
fn send_to_all(server: &Server, payload: &str) -> usize {
    let metadata = Metadata::new();
    bothways::raw::broadcast(server, "Chat", "say", &metadata, payload.as_bytes()).expect("it is small").queued
}

/// No call is needed, neither for the first connection nor after a loss.
#[tokio::test(start_paused = true)]
async fn a_listening_client_connects_by_itself_and_again_after_a_restart() {
    let server = Named::start(Behaviour::Answer).await;
    let (xclient, mut messages) = XClient::bidirectional(
        "Who",
        FailMode::Failtry,
        SelectMode::RandomSelect,
        Peer2PeerDiscovery::new(server.address.as_str()),
        ClientOptions::new(),
    );
    let mut events = xclient.events();
    let event = events.next().await.expect("it connects");
    assert!(matches!(event, ConnectionEvent::Connected { .. }), "{event:?}");
    assert_eq!(send_to_all(&server.server, "before"), 1);
    let message = messages.next().await.expect("it is connected");
    assert_eq!(message.payload().expect("not compressed"), "before");

    let address = server.stop().await;
    let event = events.next().await.expect("it is lost");
    assert!(matches!(event, ConnectionEvent::Lost { .. }), "{event:?}");
    sleep(Duration::from_secs(60)).await;
    let server = Named::start_at(address, Behaviour::Answer).await;
    let event = events.next().await.expect("it is back");
    assert!(matches!(event, ConnectionEvent::Restored { losses: 1, .. }), "{event:?}");
    assert_eq!(send_to_all(&server.server, "after"), 1);
    let message = messages.next().await.expect("it is connected again");
    assert_eq!(message.payload().expect("not compressed"), "after");
    assert_eq!(server.asked(), 0, "no call was made");
}

/// A call that waits for a server does not sit out a long back-off.
#[tokio::test(start_paused = true)]
async fn a_call_shortens_a_long_back_off() {
    let server = Named::start(Behaviour::Answer).await;
    let options = ClientOptions::new().backoff(Duration::from_millis(50), Duration::from_secs(3600));
    let discovery = list([&server]);
    let (xclient, _messages) =
        XClient::bidirectional("Who", FailMode::Failtry, SelectMode::RandomSelect, discovery, options);
    settle().await;
    let address = server.stop().await;
    sleep(Duration::from_secs(24 * 3600)).await;
    let server = Named::start_at(address, Behaviour::Answer).await;
    let began = Instant::now();
    assert_eq!(name(&xclient).await.expect("it is back"), server.address);
    assert!(began.elapsed() < Duration::from_millis(802), "{:?}", began.elapsed());
}

/// What a server sends the moment a client is there arrives, and says whom it is from.
#[tokio::test(start_paused = true)]
async fn early_messages_of_all_servers_arrive_in_one_stream() {
    let addresses = [address(), address(), address()];
    let mut listening = Vec::new();
    for address in &addresses {
        let name = address.clone();
        let server = arith().on_connect(move |connection| {
            for n in 0..3 {
                let sent = connection.send_message("Chat", "say", &Metadata::new(), format!("{n} {name}"));
                sent.expect("there is room");
            }
        });
        listening.push(server.build().listen(address).await.expect("the name is free"));
    }
    let discovery = MultipleServersDiscovery::new(addresses.clone());
    let (_xclient, mut messages) =
        XClient::bidirectional("Arith", FailMode::Failover, SelectMode::RandomSelect, discovery, ClientOptions::new());
    let mut by_server: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for _ in 0..9 {
        let message = messages.next().await.expect("it is connected");
        let payload = message.payload().expect("not compressed");
        let text = String::from_utf8(payload.into()).expect("text");
        let server = message.server().replace("memory@", "memu@");
        assert!(text.ends_with(&server), "{text} from {server}");
        by_server.entry(server).or_default().push(text[..1].to_owned());
    }
    assert_eq!(by_server.len(), 3);
    assert!(by_server.values().all(|order| order == &["0", "1", "2"]), "{by_server:?}");
    assert!(messages.try_next().is_none());
}

/// Handlers instead of a stream: messages and calls of any server, without a call of ours.
#[tokio::test(start_paused = true)]
async fn handlers_take_messages_and_calls() {
    let servers = Named::start_all([Behaviour::Answer, Behaviour::Answer]).await;
    let (sender, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let handlers = Router::new()
        .function("Arith", "Mul", |args: Args| async move { Ok::<_, String>(Product { c: args.a * args.b }) })
        .handler("Chat", "say", move |request: Request| {
            sender.send(request.payload().expect("not compressed")).expect("the test listens");
            std::future::ready(Reply::ok(""))
        });
    let options = XClientOptions::new().handlers(handlers);
    let select = SelectMode::RandomSelect;
    let _xclient = XClient::new("Who", FailMode::Failover, select, list(&servers), options);
    settle().await;
    for server in &servers {
        let client = server.server.connections().pop().expect("it connected by itself");
        let args = Args { a: 6, b: 7 };
        let product = client.call_typed::<_, Product>("Arith", "Mul", &args, CallOptions::new()).await;
        assert_eq!(product.expect("it multiplies").value, Product { c: 42 });
        assert_eq!(send_to_all(&server.server, "hello"), 1);
        assert_eq!(heard.recv().await.expect("a handler runs"), "hello");
    }
}

/// The stream ends with the client, though the application keeps messages, and with them a handle on their
/// connection.
#[tokio::test(start_paused = true)]
async fn a_stream_ends_though_messages_are_kept() {
    let server = Named::start(Behaviour::Answer).await;
    let discovery = list([&server]);
    let (xclient, mut of_xclient) =
        XClient::bidirectional("Who", FailMode::Failtry, first(), discovery, ClientOptions::new());
    let (client, mut of_client) =
        Client::bidirectional(&server.address, ClientOptions::new()).await.expect("it listens");
    settle().await;
    assert_eq!(send_to_all(&server.server, "kept"), 2);
    let kept = (of_xclient.next().await, of_client.next().await);
    drop(xclient);
    client.close();
    assert!(of_xclient.next().await.is_none() && of_client.next().await.is_none());
    drop(kept);
}
