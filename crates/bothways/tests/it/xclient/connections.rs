//! The connection of each server.

use super::*;

#[tokio::test(start_paused = true)]
async fn first_calls_at_once_make_one_connection() {
    let server = Named::start(Behaviour::Answer).await;
    let xclient = xclient(FailMode::Failfast, list([&server]));
    settle().await;
    assert_eq!(server.server.stats().connections_accepted, 0, "nothing is connected before the first call");
    let calls: Vec<_> = (0..100)
        .map(|_| {
            let xclient = xclient.clone();
            tokio::spawn(async move { name(&xclient).await })
        })
        .collect();
    for call in calls {
        call.await.expect("no panic").expect("it answers");
    }
    assert_eq!((server.asked(), server.server.stats().connections_accepted), (100, 1));
}

#[tokio::test(start_paused = true)]
async fn a_slow_dial_holds_up_nobody_else() {
    let (full, _holding) = full_listener().await;
    let server = Named::start(Behaviour::Answer).await;
    let discovery = MultipleServersDiscovery::new([full.as_str(), &server.address]);
    let by_argument = SelectMode::by_user(|selection: &Selection<'_>| Some(usize::from(selection.args()[0])));
    let xclient = XClient::new("Who", FailMode::Failfast, by_argument, discovery, ClientOptions::new());
    let began = Instant::now();
    let slow = tokio::spawn({
        let xclient = xclient.clone();
        async move { xclient.call::<String>("Name", &0).await }
    });
    tokio::task::yield_now().await;
    for _ in 0..10 {
        assert_eq!(xclient.call::<String>("Name", &1).await.expect("it answers"), server.address);
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
    let error = slow.await.expect("no panic").expect_err("nobody accepts");
    assert!(matches!(error, CallError::NotConnected(_)), "{error}");
    assert_eq!(began.elapsed().as_secs(), 5);
}

/// A server that refused the token is asked again by the next call, and not for good given up.
#[tokio::test(start_paused = true)]
async fn a_refused_token_is_presented_again_with_the_next_call() {
    let refusals = Arc::new(AtomicUsize::new(1));
    let server = arith().auth(move |request: bothways::server::AuthRequest| {
        let refuse = refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        let right = request.token == "bearer right";
        std::future::ready(if right && !refuse { Ok(()) } else { Err("who are you") })
    });
    let server = server.build();
    let address = address();
    let _listening = server.listen(&address).await.expect("the name is free");
    let options = ClientOptions::new().auth("bearer right");
    let discovery = Peer2PeerDiscovery::new(address.as_str());
    let xclient = XClient::new("Arith", FailMode::Failtry, SelectMode::RandomSelect, discovery, options);
    let args = Args { a: 6, b: 7 };
    xclient.call::<Product>("Mul", &args).await.expect_err("it is refused");
    settle().await;
    assert_eq!(xclient.call::<Product>("Mul", &args).await.expect("it is taken"), Product { c: 42 });
}

/// The caller's metadata goes with every try, and the token too.
#[tokio::test(start_paused = true)]
async fn every_try_brings_metadata_and_token() {
    let (sender, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let build = || {
        let sender = sender.clone();
        let handler = move |request: Request| {
            let metadata = request.metadata();
            let value = |key| metadata.get(key).map(str::to_owned);
            sender.send((value("k"), value("__AUTH"))).expect("the test listens");
            async move { vanish(&request).await }
        };
        Server::builder().handler("Who", "Name", handler).build()
    };
    let (one, two, addresses) = (build(), build(), [address(), address()]);
    let _one = one.listen(&addresses[0]).await.expect("the name is free");
    let _two = two.listen(&addresses[1]).await.expect("the name is free");
    let options = ClientOptions::new().auth("bearer x");
    let discovery = MultipleServersDiscovery::new(addresses);
    let xclient = XClient::new("Who", FailMode::Failover, SelectMode::RoundRobin, discovery, options);
    let call_options = CallOptions::new().metadata(Metadata::new().with("k", "v"));
    xclient.call_with::<String>("Name", &(), call_options).await.expect_err("both vanish");
    let seen: Vec<_> = std::iter::from_fn(|| seen.try_recv().ok()).collect();
    assert_eq!(seen, vec![(Some("v".to_owned()), Some("bearer x".to_owned())); 4]);
}

/// As a caller it calls whatever service it is told to, which is what stubs need.
#[tokio::test(start_paused = true)]
async fn it_is_a_caller_for_stubs() {
    let server = arith().build();
    let address = address();
    let _listening = server.listen(&address).await.expect("the name is free");
    let xclient = xclient(FailMode::Failover, Peer2PeerDiscovery::new(address.as_str()));
    let call = xclient.call_typed::<_, Product>("Arith", "Mul", &Args { a: 10, b: 20 }, CallOptions::new());
    assert_eq!(call.await.expect("it multiplies").value, Product { c: 200 });
}

#[tokio::test(start_paused = true)]
async fn a_oneway_message_goes_where_a_server_is() {
    for mode in [FailMode::Failover, FailMode::Failbackup] {
        let server = Named::start(Behaviour::Answer).await;
        let discovery = MultipleServersDiscovery::new([address(), server.address.clone()]);
        xclient(mode, discovery).oneshot("Name", &()).await.expect("one of them takes it");
        settle().await;
        assert_eq!(server.asked(), 1, "{mode:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_closed_client_is_closed_for_every_clone() {
    let server = Named::start(Behaviour::Hang).await;
    let (xclient, mut messages) =
        XClient::bidirectional("Who", FailMode::Failover, first(), list([&server]), ClientOptions::new());
    let mut events = xclient.events();
    let calling = tokio::spawn({
        let xclient = xclient.clone();
        async move { name(&xclient).await }
    });
    settle().await;
    xclient.clone().close();
    let error = calling.await.expect("no panic").expect_err("it is closed");
    assert!(error.is_connection_failure(), "{error}");
    let error = name(&xclient).await.expect_err("it is closed");
    assert!(matches!(error, CallError::NotConnected(ConnectError::Closed)), "{error}");
    xclient.oneshot("Name", &()).await.expect_err("it is closed");
    assert!(messages.next().await.is_none());
    assert!(matches!(events.next().await, Some(ConnectionEvent::Connected { .. })));
    assert!(events.next().await.is_none(), "one's own close is no loss");
    assert_eq!((server.connections(), xclient.clients().len()), (0, 0));
}
