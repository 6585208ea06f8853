//! The list of servers changes, and the client ends.

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
        fn subscribe(&self) -> tokio::sync::watch::Receiver<Arc<[ServerEntry]>> {
            self.0.clone()
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
