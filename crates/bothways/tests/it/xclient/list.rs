//! The list of servers changes, and the client ends.

use bothways::{CloseReason, SessionLost, Target};

use super::*;

/// Calls that begin after an update go by the new list; those under way end where they began, and only then
/// does the connection.
#[tokio::test(start_paused = true)]
async fn a_server_that_leaves_the_list_finishes_its_calls() {
    let slow = Named::start(Behaviour::AnswerAfter(Duration::from_secs(3))).await;
    let quick = Named::start(Behaviour::Answer).await;
    let discovery = list([&slow]);
    let xclient = xclient(FailMode::Failfast, discovery.clone());
    let calling = tokio::spawn({
        let xclient = xclient.clone();
        async move { name(&xclient).await }
    });
    settle().await;
    discovery.update([quick.address.as_str()]);
    assert_eq!(name(&xclient).await.expect("the new one"), quick.address);
    settle().await;
    assert_eq!((slow.connections(), slow.asked()), (1, 1));
    assert_eq!(calling.await.expect("no panic").expect("it may finish"), slow.address);
    settle().await;
    assert_eq!(slow.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_ends_when_its_server_leaves_the_list() {
    let servers = Named::start_all([Behaviour::Answer, Behaviour::Answer]).await;
    let discovery = list(&servers);
    let options = XClientOptions::new().eager(true);
    let xclient = XClient::new("Who", FailMode::Failover, SelectMode::RandomSelect, discovery.clone(), options);
    settle().await;
    assert_eq!(servers.each_ref().map(Named::connections), [1, 1]);
    assert_eq!((xclient.servers().len(), xclient.clients().len(), xclient.connections().len()), (2, 2, 2));

    discovery.update([servers[1].address.as_str()]);
    settle().await;
    assert_eq!(servers.each_ref().map(Named::connections), [0, 1]);
    discovery.update([servers[0].address.as_str(), servers[1].address.as_str()]);
    settle().await;
    assert_eq!(servers.each_ref().map(Named::connections), [1, 1]);
    assert_eq!(servers[1].server.stats().connections_accepted, 1, "who stays keeps its connection");
}

/// Many calls while the list changes all the time: each goes to a server of a list, and none fails.
#[tokio::test(start_paused = true)]
async fn calls_and_updates_mix() {
    let servers = Named::start_all([Behaviour::AnswerAfter(Duration::from_millis(2)); 4]).await;
    let discovery = list(&servers);
    let xclient = xclient(FailMode::Failfast, discovery.clone());
    let calls: Vec<_> = (0..300)
        .map(|n| {
            let xclient = xclient.clone();
            tokio::spawn(async move {
                sleep(Duration::from_micros(n * 137)).await;
                name(&xclient).await
            })
        })
        .collect();
    for n in 0..40 {
        sleep(Duration::from_millis(1)).await;
        let left: Vec<_> = (0..4).filter(|at| n % 4 != *at && n % 3 != *at).collect();
        discovery.update(left.iter().map(|at| servers[*at].address.as_str()));
    }
    for call in calls {
        call.await.expect("no panic").expect("every list has servers that are up");
    }
    assert_eq!(servers.iter().map(Named::asked).sum::<usize>(), 300);
}

/// The same on several threads: no lock is taken in two orders, and no client is lost or made twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn threads_call_and_update_at_once() {
    let servers = Named::start_all([Behaviour::Answer; 4]).await;
    let discovery = list(&servers);
    let options = XClientOptions::new().eager(true).sticky(true);
    let xclient = XClient::new("Who", FailMode::Failover, SelectMode::RandomSelect, discovery.clone(), options);
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let xclient = xclient.clone();
            tokio::spawn(async move {
                for _ in 0..500 {
                    name(&xclient).await.expect("every list has servers that are up");
                    assert!(!xclient.clients().is_empty());
                }
            })
        })
        .collect();
    let addresses: Vec<String> = servers.iter().map(|server| server.address.clone()).collect();
    let updating = tokio::spawn(async move {
        for n in 0..2000 {
            discovery.update([&addresses[n % 4], &addresses[(n + 1) % 4]]);
            tokio::task::yield_now().await;
        }
    });
    for caller in callers {
        caller.await.expect("no call failed");
    }
    updating.await.expect("no panic");
    assert_eq!(servers.iter().map(Named::asked).sum::<usize>(), 2000);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_client_leaves_nothing_behind() {
    let server = Named::start(Behaviour::Answer).await;
    let (sender, receiver) = tokio::sync::watch::channel(Arc::from([ServerEntry::new(&server.address)]));
    struct Shared(tokio::sync::watch::Receiver<Arc<[ServerEntry]>>);
    impl Discovery for Shared {
        fn lists(&self, _service: &str) -> Lists {
            Lists::known(self.0.clone())
        }
    }
    let xclient = xclient(FailMode::Failover, Shared(receiver));
    name(&xclient).await.expect("it answers");
    let clone = xclient.clone();
    drop(xclient);
    name(&clone).await.expect("a clone is the same client");
    drop(clone);
    settle().await;
    assert_eq!(server.connections(), 0);
    assert_eq!(sender.receiver_count(), 0, "nobody follows the list any more");
}

/// Whom a server has sent away stays away, whatever list names it again and whatever is asked there; it begins anew when
/// a list without it and one with it have come.
#[tokio::test(start_paused = true)]
async fn whom_a_server_sent_away_is_not_brought_back() {
    let servers = Named::start_all([Behaviour::Answer, Behaviour::Answer]).await;
    let [away, other] = &servers;
    let discovery = list(&servers);
    let options = ClientOptions::new();
    let (xclient, _messages) = XClient::bidirectional("Who", FailMode::Failfast, first(), discovery.clone(), options);
    settle().await;
    away.server.kick(&Target::everyone(), "out").expect("no topic");
    sleep(Duration::from_secs(10)).await;

    for _ in 0..3 {
        discovery.update([away.address.as_str(), other.address.as_str()]);
        for mode in [FailMode::Failfast, FailMode::Failtry] {
            let began = Instant::now();
            let error = name(&xclient.with_fail_mode(mode)).await.expect_err("it was sent away");
            assert!(matches!(error, CallError::NotConnected(ConnectError::SentAway { .. })), "{error}");
            assert!(error.to_string().contains("out") && began.elapsed().is_zero(), "{error}");
        }
        for mode in [FailMode::Failover, FailMode::Failbackup] {
            assert_eq!(name(&xclient.with_fail_mode(mode)).await.expect("there is another"), other.address);
        }
        xclient.oneshot("Name", &()).await.expect_err("it was sent away");
        assert!(xclient.subscribe("news").await.expect("it is open")[0].1.is_err());
        sleep(Duration::from_secs(60)).await;
        let stats = away.server.stats();
        assert_eq!((stats.connections, stats.sessions, stats.connections_accepted), (0, 0, 1));
    }
    assert_eq!(away.asked(), 0);

    discovery.update([other.address.as_str()]);
    settle().await;
    discovery.update([away.address.as_str(), other.address.as_str()]);
    assert_eq!(name(&xclient).await.expect("it may come again"), away.address);
}

/// A client that was refused too often is asked for no token again, by a list or by a call.
#[tokio::test(start_paused = true)]
async fn who_gave_up_is_not_brought_back() {
    let refusals = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&refusals);
    let server = arith().auth(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Err("who are you"))
    });
    let (server, address) = (server.build(), address());
    let _listening = server.listen(&address).await.expect("the name is free");
    let discovery = MultipleServersDiscovery::new([address.as_str()]);
    let options = XClientOptions::from(ClientOptions::new().auth("x").refusals_max(Some(2))).eager(true);
    let xclient = XClient::new("Arith", FailMode::Failover, first(), discovery.clone(), options);
    sleep(Duration::from_secs(600)).await;
    assert_eq!(refusals.load(Ordering::SeqCst), 2);
    for _ in 0..3 {
        discovery.update([address.as_str()]);
        let error = xclient.call::<Product>("Mul", &Args { a: 6, b: 7 }).await.expect_err("it gave up");
        assert!(matches!(error, CallError::NotConnected(ConnectError::Refused { .. })), "{error}");
        sleep(Duration::from_secs(600)).await;
    }
    assert_eq!(refusals.load(Ordering::SeqCst), 2);
}

/// A list without any server is a registry that has lost its way: connections and sessions stay.
#[tokio::test(start_paused = true)]
async fn a_list_without_any_server_ends_nothing() {
    let server = Named::start(Behaviour::Answer).await;
    let discovery = list([&server]);
    let (xclient, _messages) =
        XClient::bidirectional("Who", FailMode::Failover, first(), discovery.clone(), ClientOptions::new());
    let mut events = xclient.events();
    settle().await;
    for servers in [&[][..], &[server.address.as_str()], &[], &[]] {
        discovery.update(servers.iter().copied());
        sleep(Duration::from_secs(60)).await;
        assert_eq!(name(&xclient).await.expect("it is there"), server.address);
        let stats = server.server.stats();
        assert_eq!((stats.connections_accepted, stats.sessions, xclient.servers().len()), (1, 1, 1));
    }
    xclient.close();
    assert!(matches!(events.next().await, Some(ConnectionEvent::Connected { .. })));
    assert!(events.next().await.is_none(), "nothing was lost");
}

/// What a client had at a server that leaves the list is lost, and that is told: also while it was away.
#[tokio::test(start_paused = true)]
async fn a_server_that_leaves_the_list_is_told_as_a_loss() {
    for is_away in [false, true] {
        let [leaves, stays] = Named::start_all([Behaviour::Answer, Behaviour::Answer]).await;
        let discovery = list([&leaves, &stays]);
        let (xclient, _messages) =
            XClient::bidirectional("Who", FailMode::Failover, first(), discovery.clone(), ClientOptions::new());
        settle().await;
        let mut events = xclient.events();
        let mut next = async || tokio::time::timeout(Duration::from_secs(60), events.next()).await.expect("it is told");
        if is_away {
            leaves.stop().await;
        }
        if is_away {
            let lost = next().await;
            assert!(matches!(lost, Some(ConnectionEvent::Lost { .. })), "{lost:?}");
        }
        discovery.update([stays.address.as_str()]);
        if !is_away {
            let lost = next().await;
            let is_told = matches!(&lost, Some(ConnectionEvent::Lost { reason: CloseReason::Local, .. }));
            assert!(is_told, "{lost:?}");
        }
        let lost = next().await;
        let is_told = matches!(&lost, Some(ConnectionEvent::SessionLost { why: SessionLost::Unlisted, .. }));
        assert!(is_told, "{lost:?}");
        assert_eq!(stays.server.stats().sessions, 1);
        xclient.close();
        assert!(next().await.is_none());
    }
}
