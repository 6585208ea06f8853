//! Many servers as one caller.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bothways::{
    CallError, CallOptions, Caller, Client, ClientOptions, ConnectError, ConnectionEvent, ErrorCode, FailMode,
    Metadata, MultipleServersDiscovery, Peer2PeerDiscovery, Reply, Request, Router, SelectMode, SerializeType, Server,
    ServerBuilder, ServerEntry, XClient, XClientOptions,
    discovery::Discovery,
    server::Listening,
    transport::{self, Address, ConnectOptions, ListenOptions, Listener},
    xclient::Selection,
};
use tokio::time::{Instant, sleep};

use crate::support::{Args, Product, address, arith};

const ALL_MODES: [FailMode; 4] = [FailMode::Failover, FailMode::Failfast, FailMode::Failtry, FailMode::Failbackup];

/// A server that says its name, and counts how often it was asked.
struct Named {
    address: String,
    asked: Arc<AtomicUsize>,
    server: Server,
    listening: Listening,
}

impl Named {
    async fn start(behaviour: Behaviour) -> Self {
        Self::start_at(address(), behaviour).await
    }

    async fn start_at(address: String, behaviour: Behaviour) -> Self {
        let asked = Arc::new(AtomicUsize::new(0));
        let server = named(&address, &asked, behaviour).build();
        let listening = server.listen(&address).await.expect("the name is free");
        Self { address, asked, server, listening }
    }

    async fn start_all<const N: usize>(behaviours: [Behaviour; N]) -> [Self; N] {
        let mut servers = Vec::new();
        for behaviour in behaviours {
            servers.push(Self::start(behaviour).await);
        }
        servers.try_into().unwrap_or_else(|_| unreachable!("as many as behaviours"))
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn connections(&self) -> usize {
        self.server.stats().connections
    }

    async fn stop(self) -> String {
        drop(self.listening);
        self.server.shutdown(Duration::ZERO).await;
        self.address
    }
}

/// What a [`Named`] server does when it is asked.
#[derive(Clone, Copy)]
enum Behaviour {
    Answer,
    AnswerAfter(Duration),
    /// Ends the connection in the middle of so many calls, then answers.
    VanishTimes(usize),
    VanishAfter(Duration),
    Fail,
    Refuse(ErrorCode),
    Hang,
}

const VANISH: Behaviour = Behaviour::VanishTimes(usize::MAX);

fn named(address: &str, asked: &Arc<AtomicUsize>, behaviour: Behaviour) -> ServerBuilder {
    let (name, asked) = (address.to_owned(), Arc::clone(asked));
    Server::builder().handler("Who", "Name", move |request: Request| {
        let (name, times) = (name.clone(), asked.fetch_add(1, Ordering::SeqCst));
        async move {
            let answer = Reply::encode(&name, request.serialize_type());
            match behaviour {
                Behaviour::Answer => answer,
                Behaviour::AnswerAfter(time) => {
                    sleep(time).await;
                    answer
                }
                Behaviour::VanishTimes(n) if n <= times => answer,
                Behaviour::VanishTimes(_) => vanish(&request).await,
                Behaviour::VanishAfter(time) => {
                    sleep(time).await;
                    vanish(&request).await
                }
                Behaviour::Fail => Reply::error("boom"),
                Behaviour::Refuse(code) => Reply::refused(code, "not now"),
                Behaviour::Hang => std::future::pending().await,
            }
        }
    })
}

async fn vanish(request: &Request) -> Reply {
    request.connection().close();
    std::future::pending().await
}

fn list<'a>(servers: impl IntoIterator<Item = &'a Named>) -> MultipleServersDiscovery {
    MultipleServersDiscovery::new(servers.into_iter().map(|server| server.address.as_str()))
}

/// Always the first that is not excluded: tests know who is asked.
fn first() -> SelectMode {
    SelectMode::by_user(|selection: &Selection<'_>| selection.candidates().next())
}

fn xclient(fail_mode: FailMode, discovery: impl Discovery) -> XClient {
    XClient::new("Who", fail_mode, first(), discovery, XClientOptions::new())
}

async fn name(xclient: &XClient) -> Result<String, CallError> {
    xclient.call("Name", &()).await
}

/// Lets everything run that can run without time passing.
async fn settle() {
    sleep(Duration::from_millis(1)).await;
}

// ---- fail modes ----------------------------------------------------------------------------------

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
    assert!(matches!(error, CallError::TimedOut(of) if of == timeout), "{error}");
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

// ---- selection -----------------------------------------------------------------------------------

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

// ---- the list changes ----------------------------------------------------------------------------

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

// ---- connections ---------------------------------------------------------------------------------

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

/// An address whose listener accepts nobody and has no room for more: connecting takes its full time.
async fn full_listener() -> (String, impl Sized) {
    let text = address();
    let address: Address = text.parse().expect("an address");
    let listener = Listener::bind(&address, &ListenOptions::default().backlog(1)).await.expect("the name is free");
    let first = transport::connect(&address, &ConnectOptions::default()).await.expect("there is room for one");
    (text, (listener, first))
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

// ---- servers that speak first --------------------------------------------------------------------

/// What `server` sends to all who are connected.
fn send_to_all(server: &Server, payload: &str) -> usize {
    let metadata = Metadata::new();
    server.broadcast("Chat", "say", &metadata, payload.as_bytes()).expect("it is small").queued
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
