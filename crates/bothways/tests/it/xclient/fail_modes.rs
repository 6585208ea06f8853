//! What happens when a try fails.

use super::*;

/// Nobody listens; nothing was sent, and the error says so.
#[tokio::test(start_paused = true)]
async fn total_failure_is_an_error_in_every_mode() {
    for mode in ALL_MODES {
        let xclient = xclient(mode, MultipleServersDiscovery::new([address(), address()]));
        let error = name(&xclient).await.expect_err("nobody listens");
        assert!(matches!(error, CallError::NotConnected(_)), "{mode:?}: {error}");
        assert!(error.is_safe_to_retry(), "{mode:?}");
        let raw = xclient.send_raw("Name", SerializeType::MSGPACK, vec![0xc0], CallOptions::new()).await;
        assert!(matches!(raw, Err(CallError::NotConnected(_))), "{mode:?}: {raw:?}");
        let push = xclient.oneshot("Name", &()).await;
        assert!(push.is_err(), "{mode:?}");
    }
}

/// A server's own error is an answer: one call, in every mode.
#[tokio::test(start_paused = true)]
async fn what_a_server_answers_is_never_tried_again() {
    for mode in ALL_MODES {
        let servers = Named::start_all([Behaviour::Fail, Behaviour::Answer]).await;
        let error = name(&xclient(mode, list(&servers))).await.expect_err("it fails");
        assert_eq!(error.remote_text(), Some("boom"), "{mode:?}");
        assert_eq!([servers[0].asked(), servers[1].asked()], [1, 0], "{mode:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn failfast_asks_once() {
    let servers = Named::start_all([VANISH, Behaviour::Answer]).await;
    let error = name(&xclient(FailMode::Failfast, list(&servers))).await.expect_err("it vanishes");
    assert!(matches!(error, CallError::Closed { written: true, .. }), "{error}");
    assert_eq!([servers[0].asked(), servers[1].asked()], [1, 0]);
}

/// The connection is made again, and the same server is asked again, up to three times more.
#[tokio::test(start_paused = true)]
async fn failtry_asks_the_same_server_again() {
    let servers = Named::start_all([Behaviour::VanishTimes(3), Behaviour::Answer]).await;
    let xclient = xclient(FailMode::Failtry, list(&servers));
    assert_eq!(name(&xclient).await.expect("the fourth try"), servers[0].address);
    assert_eq!([servers[0].asked(), servers[1].asked()], [4, 0]);

    let server = Named::start(VANISH).await;
    let xclient = self::xclient(FailMode::Failtry, list([&server]));
    let error = name(&xclient).await.expect_err("it always vanishes");
    assert!(matches!(error, CallError::Closed { written: true, .. }), "{error}");
    assert_eq!(server.asked(), 4);
}

/// A server that starts within the tries is found, although its first connections were refused.
#[tokio::test(start_paused = true)]
async fn failtry_waits_for_a_server_that_starts() {
    let address = address();
    let options = XClientOptions::new().retry_interval(Duration::from_secs(1));
    let discovery = Peer2PeerDiscovery::new(address.as_str());
    let xclient = XClient::new("Who", FailMode::Failtry, SelectMode::RandomSelect, discovery, options);
    let calling = tokio::spawn({
        let xclient = xclient.clone();
        async move { name(&xclient).await }
    });
    sleep(Duration::from_millis(1500)).await;
    let server = Named::start_at(address, Behaviour::Answer).await;
    assert_eq!(calling.await.expect("no panic").expect("the third try"), server.address);
    assert_eq!(server.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn failover_asks_others() {
    let live = Named::start(Behaviour::Answer).await;
    let discovery = MultipleServersDiscovery::new([address(), address(), live.address.clone()]);
    let xclient = xclient(FailMode::Failover, discovery);
    assert_eq!(name(&xclient).await.expect("one is there"), live.address);

    let servers = Named::start_all([VANISH, VANISH, Behaviour::Answer]).await;
    let xclient = self::xclient(FailMode::Failover, list(&servers));
    assert_eq!(name(&xclient).await.expect("the third"), servers[2].address);
    assert_eq!(servers.each_ref().map(Named::asked), [1, 1, 1]);
}

/// Four tries among two servers: each is asked again only after the other one.
#[tokio::test(start_paused = true)]
async fn failover_goes_round_when_all_were_tried() {
    let servers = Named::start_all([VANISH, VANISH]).await;
    name(&xclient(FailMode::Failover, list(&servers))).await.expect_err("both vanish");
    assert_eq!(servers.each_ref().map(Named::asked), [2, 2]);
}

/// Without the risk of running twice: a call whose bytes left is not sent again, one whose bytes did not is.
#[tokio::test(start_paused = true)]
async fn a_call_that_may_have_run_is_not_sent_again_if_so_wished() {
    for mode in [FailMode::Failtry, FailMode::Failover] {
        let servers = Named::start_all([VANISH, Behaviour::Answer]).await;
        let discovery = MultipleServersDiscovery::new([&address(), &servers[0].address, &servers[1].address]);
        let options = XClientOptions::new().retry_maybe_executed(false);
        let xclient = XClient::new("Who", mode, first(), discovery.clone(), options);
        if mode == FailMode::Failtry {
            discovery.update([servers[0].address.as_str()]);
        }
        let error = name(&xclient).await.expect_err("it vanishes in mid-call");
        assert!(matches!(error, CallError::Closed { written: true, .. }), "{mode:?}: {error}");
        assert_eq!([servers[0].asked(), servers[1].asked()], [1, 0], "{mode:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_overloaded_servers_call_goes_elsewhere_in_failover_only() {
    for code in [ErrorCode::Overloaded, ErrorCode::ShuttingDown] {
        let servers = Named::start_all([Behaviour::Refuse(code), Behaviour::Answer]).await;
        let failover = xclient(FailMode::Failover, list(&servers));
        assert_eq!(name(&failover).await.expect("the other one answers"), servers[1].address);
        let error = name(&failover.with_fail_mode(FailMode::Failtry)).await.expect_err("it refuses");
        assert_eq!(error.code(), Some(code));
    }
    for code in [ErrorCode::Internal, ErrorCode::NotFound, ErrorCode::BadArguments, ErrorCode::Timeout] {
        let servers = Named::start_all([Behaviour::Refuse(code), Behaviour::Answer]).await;
        let error = name(&xclient(FailMode::Failover, list(&servers))).await.expect_err("it is an answer");
        assert_eq!((error.code(), servers[1].asked()), (Some(code), 0));
    }
}

/// Calls go on while a server shuts down in good order: none fails, and none runs twice.
#[tokio::test(start_paused = true)]
async fn a_shutdown_in_good_order_is_not_noticed() {
    let answer = Behaviour::AnswerAfter(Duration::from_millis(3));
    let servers = Named::start_all([answer, answer]).await;
    let discovery = list(&servers);
    let options = XClientOptions::new().retry_maybe_executed(false);
    let xclient = XClient::new("Who", FailMode::Failover, SelectMode::RoundRobin, discovery, options);
    let calls: Vec<_> = (0..200)
        .map(|n| {
            let xclient = xclient.clone();
            tokio::spawn(async move {
                sleep(Duration::from_micros(n * 100)).await;
                name(&xclient).await
            })
        })
        .collect();
    sleep(Duration::from_millis(10)).await;
    let asked = servers[0].asked();
    assert!(0 < asked);
    let report = servers[0].server.shutdown(Duration::from_secs(5)).await;
    assert_eq!((report.calls_unfinished, report.connections_cut), (0, 0));
    for call in calls {
        call.await.expect("no panic").expect("one of the two answers");
    }
    assert_eq!(servers[0].asked() + servers[1].asked(), 200);
}

/// The time for a call is for all its tries, and each server learns what is left of it.
#[tokio::test(start_paused = true)]
async fn a_deadline_covers_all_tries() {
    for mode in [FailMode::Failtry, FailMode::Failover] {
        let slow = Behaviour::VanishAfter(Duration::from_millis(400));
        let servers = Named::start_all([slow, slow, slow, slow]).await;
        let xclient = xclient(mode, list(&servers));
        let (began, timeout) = (Instant::now(), Duration::from_secs(1));
        let options = CallOptions::new().timeout(timeout);
        let error = xclient.call_with::<String>("Name", &(), options).await.expect_err("they vanish");
        assert!(matches!(error, CallError::TimedOut(of) if of == timeout), "{mode:?}: {error}");
        assert!(began.elapsed() <= timeout + Duration::from_millis(2), "{mode:?}: {:?}", began.elapsed());
        let asked: usize = servers.iter().map(Named::asked).sum();
        assert!((2..=3).contains(&asked), "{mode:?}: {asked}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_try_has_what_is_left_of_the_time() {
    let (sender, mut times) = tokio::sync::mpsc::unbounded_channel();
    let server = Server::builder().handler("Who", "Name", move |request: Request| {
        let time = request.metadata().get("__ServerTimeout").expect("there is a deadline").parse::<u64>();
        sender.send(time.expect("a number")).expect("the test listens");
        async move {
            sleep(Duration::from_millis(300)).await;
            vanish(&request).await
        }
    });
    let server = server.build();
    let address = address();
    let _listening = server.listen(&address).await.expect("the name is free");
    let options = ClientOptions::new()
        .timeout(Duration::from_secs(1))
        .backoff(Duration::from_millis(1), Duration::from_millis(1));
    let discovery = Peer2PeerDiscovery::new(address.as_str());
    let xclient = XClient::new("Who", FailMode::Failtry, SelectMode::RandomSelect, discovery, options);
    let error = name(&xclient).await.expect_err("it vanishes");
    assert!(matches!(error, CallError::TimedOut(of) if of == Duration::from_secs(1)), "{error}");
    let times: Vec<u64> = std::iter::from_fn(|| times.try_recv().ok()).collect();
    assert!(times.len() == 4 && times.windows(2).all(|pair| pair[1] + 295 < pair[0]), "{times:?}");
}

/// A deadline also ends the waiting for a connection, and a pause that would be longer is not begun.
#[tokio::test(start_paused = true)]
async fn waiting_and_pausing_end_with_the_deadline() {
    let (full, _holding) = full_listener().await;
    let timeout = Duration::from_millis(200);
    let xclient = xclient(FailMode::Failfast, Peer2PeerDiscovery::new(full.as_str()));
    let began = Instant::now();
    let options = CallOptions::new().timeout(timeout);
    let error = xclient.call_with::<String>("Name", &(), options.clone()).await.expect_err("it is not accepted");
    assert!(matches!(error, CallError::NotConnected(ConnectError::Connecting { .. })), "{error}");
    assert!(began.elapsed() < Duration::from_millis(202));

    let options_of_all = XClientOptions::new().retry_interval(Duration::from_secs(1));
    let discovery = Peer2PeerDiscovery::new(address());
    let xclient = XClient::new("Who", FailMode::Failtry, SelectMode::RandomSelect, discovery, options_of_all);
    let began = Instant::now();
    let error = xclient.call_with::<String>("Name", &(), options).await.expect_err("nobody listens");
    assert!(matches!(error, CallError::NotConnected(ConnectError::Io { .. })), "{error}");
    assert!(began.elapsed() < Duration::from_millis(2));
}

#[tokio::test(start_paused = true)]
async fn failbackup_takes_the_first_success_and_takes_the_other_call_back() {
    let servers = Named::start_all([Behaviour::Hang, Behaviour::Answer]).await;
    let xclient = xclient(FailMode::Failbackup, list(&servers));
    let began = Instant::now();
    assert_eq!(name(&xclient).await.expect("the second answers"), servers[1].address);
    assert!((10..13).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    assert_eq!(servers.each_ref().map(Named::asked), [1, 1]);
    settle().await;
    assert_eq!(servers[0].server.stats().calls_running, 0, "the handler was dropped");
    assert_eq!(xclient.connections()[0].stats().calls_pending, 0);
}

#[tokio::test(start_paused = true)]
async fn failbackup_leaves_the_second_server_alone_if_the_first_is_quick() {
    let quick = Behaviour::AnswerAfter(Duration::from_millis(9));
    let servers = Named::start_all([quick, Behaviour::Answer]).await;
    let xclient = xclient(FailMode::Failbackup, list(&servers));
    assert_eq!(name(&xclient).await.expect("in time"), servers[0].address);
    assert_eq!(servers.each_ref().map(Named::asked), [1, 0]);
}

/// An error of either is not the end while the other may still succeed.
#[tokio::test(start_paused = true)]
async fn failbackup_waits_for_a_success() {
    let slow = Behaviour::AnswerAfter(Duration::from_millis(50));
    let servers = Named::start_all([slow, Behaviour::Fail]).await;
    assert_eq!(name(&xclient(FailMode::Failbackup, list(&servers))).await.expect("the first"), servers[0].address);

    let vanishing = Behaviour::VanishAfter(Duration::from_millis(20));
    let servers = Named::start_all([vanishing, slow]).await;
    assert_eq!(name(&xclient(FailMode::Failbackup, list(&servers))).await.expect("the second"), servers[1].address);

    let servers = Named::start_all([vanishing, Behaviour::Fail]).await;
    name(&xclient(FailMode::Failbackup, list(&servers))).await.expect_err("both fail");
    assert_eq!(servers.each_ref().map(Named::asked), [1, 1]);
}

/// One server has no backup: its own second call would wait behind the first.
#[tokio::test(start_paused = true)]
async fn failbackup_with_one_server_asks_once() {
    let server = Named::start(Behaviour::AnswerAfter(Duration::from_secs(1))).await;
    let xclient = xclient(FailMode::Failbackup, list([&server]));
    assert_eq!(name(&xclient).await.expect("it answers"), server.address);
    assert_eq!(server.asked(), 1);
}

/// A backup that cannot be reached does not hurt the first call.
#[tokio::test(start_paused = true)]
async fn failbackup_goes_on_without_a_backup() {
    let server = Named::start(Behaviour::AnswerAfter(Duration::from_millis(50))).await;
    let discovery = MultipleServersDiscovery::new([server.address.clone(), address()]);
    assert_eq!(name(&xclient(FailMode::Failbackup, discovery)).await.expect("it answers"), server.address);
    // The other way round the backup is asked at once.
    let discovery = MultipleServersDiscovery::new([address(), server.address.clone()]);
    assert_eq!(name(&xclient(FailMode::Failbackup, discovery)).await.expect("it answers"), server.address);
}

/// A server that is known to be down costs a call nothing while others are up.
#[tokio::test(start_paused = true)]
async fn failover_passes_over_servers_that_are_down() {
    let servers = Named::start_all([Behaviour::Answer, Behaviour::Answer]).await;
    let discovery = list(&servers);
    let options = XClientOptions::new().eager(true).retries(0);
    let xclient = XClient::new("Who", FailMode::Failover, SelectMode::RoundRobin, discovery, options);
    settle().await;
    let [gone, there] = servers;
    gone.stop().await;
    settle().await;
    for _ in 0..4 {
        assert_eq!(name(&xclient).await.expect("one is up"), there.address);
    }
    // In the other modes it may matter which server it is.
    let failfast = xclient.with_fail_mode(FailMode::Failfast);
    assert!(name(&failfast).await.is_err() != name(&failfast).await.is_err());
}

/// Where all servers are overloaded, their clients do not multiply that; where one of them is, calls go on to the others.
#[tokio::test(start_paused = true)]
async fn overloaded_servers_get_few_further_tries() {
    let busy = Behaviour::Refuse(ErrorCode::Overloaded);
    let servers = Named::start_all([busy; 4]).await;
    let asked = || servers.iter().map(Named::asked).sum::<usize>();
    for mode in [FailMode::Failover, FailMode::Failbackup] {
        let before = asked();
        let select = SelectMode::RandomSelect;
        let xclient = XClient::new("Who", mode, select, list(&servers), XClientOptions::new());
        for _ in 0..100 {
            let error = name(&xclient).await.expect_err("all are busy");
            assert_eq!(error.code(), Some(ErrorCode::Overloaded), "{error}");
        }
        assert_eq!(asked() - before, 100 + 20, "{mode:?}");
        sleep(Duration::from_millis(500)).await;
        name(&xclient).await.expect_err("all are busy");
        let tries = if mode == FailMode::Failover { 4 } else { 2 };
        assert_eq!(asked() - before, 100 + 20 + tries, "some come back with time: {mode:?}");
    }
    let options = XClientOptions::new().retry_budget(u32::MAX);
    let before = asked();
    let without = XClient::new("Who", FailMode::Failover, SelectMode::RandomSelect, list(&servers), options);
    for _ in 0..100 {
        name(&without).await.expect_err("all are busy");
    }
    assert_eq!(asked() - before, 400);

    let some = Named::start_all([busy, Behaviour::Answer]).await;
    let xclient = XClient::new("Who", FailMode::Failover, SelectMode::RoundRobin, list(&some), XClientOptions::new());
    for _ in 0..200 {
        assert_eq!(name(&xclient).await.expect("one is free"), some[1].address);
    }
    assert!(100 <= some[0].asked(), "it is asked as always");
}
