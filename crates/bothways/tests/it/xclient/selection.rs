//! Who is called.

use super::*;

async fn names(xclient: &XClient, calls: usize) -> Vec<String> {
    let mut names = Vec::new();
    for _ in 0..calls {
        names.push(name(xclient).await.expect("all are up"));
    }
    names
}

#[tokio::test(start_paused = true)]
async fn round_robin_keeps_the_order_of_the_list() {
    let servers = Named::start_all([Behaviour::Answer; 3]).await;
    let select = SelectMode::RoundRobin;
    let xclient = XClient::new("Who", FailMode::Failfast, select, list(&servers), ClientOptions::new());
    let names = names(&xclient, 9).await;
    let begin = servers.iter().position(|server| server.address == names[0]).expect("one of them");
    let expected: Vec<_> = (begin..begin + 9).map(|n| servers[n % 3].address.clone()).collect();
    assert_eq!(names, expected);
}

#[tokio::test(start_paused = true)]
async fn random_select_reaches_all() {
    let servers = Named::start_all([Behaviour::Answer; 3]).await;
    let select = SelectMode::RandomSelect;
    let xclient = XClient::new("Who", FailMode::Failfast, select, list(&servers), ClientOptions::new());
    names(&xclient, 300).await;
    let asked = servers.each_ref().map(Named::asked);
    // Six standard deviations are 49.
    assert!(asked.iter().all(|asked| (50..150).contains(asked)), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn sticky_calls_stay_until_the_server_fails() {
    let servers = Named::start_all([Behaviour::Answer; 3]).await;
    let discovery = list(&servers);
    let options = XClientOptions::new().sticky(true);
    let select = SelectMode::RandomSelect;
    let xclient = XClient::new("Who", FailMode::Failover, select, discovery.clone(), options);
    let names_first = names(&xclient, 20).await;
    assert!(names_first.iter().all(|name| *name == names_first[0]), "{names_first:?}");

    let mut servers = Vec::from(servers);
    let at = servers.iter().position(|server| server.address == names_first[0]).expect("one of them");
    servers.remove(at).stop().await;
    let names_then = names(&xclient, 20).await;
    assert!(names_then.iter().all(|name| *name == names_then[0]), "{names_then:?}");
    assert_ne!(names_then[0], names_first[0]);

    // It leaves the list: the calls go on with the one that is left.
    servers.retain(|server| server.address != names_then[0]);
    discovery.update([servers[0].address.as_str()]);
    assert_eq!(names(&xclient, 5).await, vec![servers[0].address.clone(); 5]);
}

#[tokio::test(start_paused = true)]
async fn inactive_servers_and_other_groups_are_not_called() {
    let servers = Named::start_all([Behaviour::Answer; 4]).await;
    let [a, b, c, d] = servers.each_ref().map(|server| server.address.as_str());
    let discovery = MultipleServersDiscovery::new([
        (a, "group=test&weight=7"),
        (b, "group=test&state=inactive"),
        (c, "group=blue&group=test"),
        (d, "group=blue"),
    ]);
    let options = XClientOptions::new().group("test").eager(true);
    let select = SelectMode::RoundRobin;
    let xclient = XClient::new("Who", FailMode::Failfast, select, discovery.clone(), options);
    names(&xclient, 10).await;
    assert_eq!(servers.each_ref().map(Named::asked), [5, 0, 5, 0]);
    assert_eq!(servers.each_ref().map(Named::connections), [1, 0, 1, 0]);

    discovery.update([(a, "group=test&state=inactive"), (d, "group=blue")]);
    let error = name(&xclient).await.expect_err("nobody is left");
    assert_eq!(error.to_string(), "no server: none of 2 is active and in the group `test`");
    assert!(error.is_safe_to_retry());
    discovery.update([""; 0]);
    let error = name(&xclient).await.expect_err("nobody is left");
    assert_eq!(error.to_string(), "no server: the discovery lists none");
    discovery.update(["quic@127.0.0.1:1"]);
    let error = name(&xclient).await.expect_err("there is no such network").to_string();
    assert!(error.starts_with("no server: none of 1 can be used: unknown network `quic`"), "{error}");
}

/// A selector of one's own sees the call and the list.
#[tokio::test(start_paused = true)]
async fn a_selector_of_ones_own_sees_the_call() {
    let servers = Named::start_all([Behaviour::Answer; 3]).await;
    let by_argument = SelectMode::by_user(|selection: &Selection<'_>| {
        assert_eq!((selection.service_path(), selection.service_method()), ("Who", "Name"));
        // A positive fixint of MessagePack is its own value.
        let server = usize::from(selection.args()[0]);
        (server < selection.servers().len()).then_some(server)
    });
    let xclient = XClient::new("Who", FailMode::Failfast, by_argument, list(&servers), ClientOptions::new());
    for (server, named) in servers.iter().enumerate() {
        let name: String = xclient.call("Name", &server).await.expect("it answers");
        assert_eq!(name, named.address);
    }
    let error = xclient.call::<String>("Name", &3).await.expect_err("there are three");
    assert_eq!(error.to_string(), "no server: the selector chose none of 3 servers");
}
