//! Who is called.

use std::sync::{Barrier, Mutex};

use bothways::{
    Selector,
    xclient::{Outcome, OutcomeKind},
};
use proptest::prelude::*;

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

/// A call that failed with its connection is the last one at that server, in each mode, also if it is not tried again.
#[tokio::test(start_paused = true)]
async fn no_mode_stays_with_a_server_that_cuts() {
    for mode in [FailMode::Failfast, FailMode::Failtry, FailMode::Failover] {
        let servers = Named::start_all([VANISH, Behaviour::Answer]).await;
        let options = XClientOptions::new().sticky(true).retry_maybe_executed(false);
        let asked = AtomicUsize::new(0);
        let select = SelectMode::by_user(move |_: &Selection<'_>| Some(asked.fetch_add(1, Ordering::SeqCst).min(1)));
        let xclient = XClient::new("Who", mode, select, list(&servers), options);
        let mut names = Vec::new();
        for _ in 0..4 {
            names.push(name(&xclient).await.ok());
        }
        assert_eq!(names.iter().filter(|name| name.is_none()).count(), 1, "{mode:?}: {names:?}");
        assert_eq!(names[3].as_ref(), Some(&servers[1].address), "{mode:?}: {names:?}");
    }
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

/// Of each pair of servers that is drawn the quicker one is called: the slow one only until that is known.
#[tokio::test(start_paused = true)]
async fn least_loaded_avoids_a_slow_server() {
    let [quick, slow] = [1, 100].map(|millis| Behaviour::AnswerAfter(Duration::from_millis(millis)));
    let servers = Named::start_all([quick, slow, quick]).await;
    let select = SelectMode::LeastLoaded;
    let xclient = XClient::new("Who", FailMode::Failfast, select, list(&servers), ClientOptions::new());
    names(&xclient, 100).await;
    let [one, slow_one, other] = servers.each_ref().map(Named::asked);
    assert!(slow_one <= 1 && 0 < one && 0 < other, "{one} {slow_one} {other}");

    // Many at once: it has no more in flight than the others.
    let calls: Vec<_> = (0..30)
        .map(|n| {
            let xclient = xclient.clone();
            tokio::spawn(async move {
                sleep(Duration::from_millis(2 * n)).await;
                name(&xclient).await
            })
        })
        .collect();
    for call in calls {
        call.await.expect("no panic").expect("all are up");
    }
    assert!(servers[1].asked() <= slow_one + 1, "{}", servers[1].asked());
}

/// A server that refuses at once looks idle, and is avoided all the same.
#[tokio::test(start_paused = true)]
async fn least_loaded_avoids_a_server_that_refuses() {
    let servers = Named::start_all([Behaviour::Answer, Behaviour::Refuse(ErrorCode::Overloaded)]).await;
    let select = SelectMode::LeastLoaded;
    let xclient = XClient::new("Who", FailMode::Failover, select, list(&servers), ClientOptions::new());
    names(&xclient, 50).await;
    assert!(servers[1].asked() <= 1, "{}", servers[1].asked());
}

/// A server that fails at once looks idle: it gets no more calls than any other, and hardly any if it is plain that it
/// cannot do them.
#[tokio::test(start_paused = true)]
async fn least_loaded_draws_no_calls_to_a_server_that_fails_at_once() {
    for (what, most) in [("panic", 20), ("no route", 20), ("error", 100)] {
        let takes = Behaviour::AnswerAfter(Duration::from_millis(10));
        let [one, other] = Named::start_all([takes, takes]).await;
        let bad = address();
        let asked = Arc::new(AtomicUsize::new(0));
        let server = match what {
            "panic" => Server::builder().handler("Who", "Name", |_: Request| async { panic!("a bad day") }),
            "no route" => Server::builder(),
            _ => named(&bad, &asked, Behaviour::Fail),
        };
        let server = server.build();
        let _listening = server.listen(&bad).await.expect("the name is free");
        let discovery = MultipleServersDiscovery::new([&*one.address, &bad, &other.address]);
        let select = SelectMode::LeastLoaded;
        let xclient = XClient::new("Who", FailMode::Failover, select, discovery, ClientOptions::new());
        let callers: Vec<_> = (0..6)
            .map(|_| {
                let xclient = xclient.clone();
                tokio::spawn(async move {
                    let mut failed = 0;
                    for _ in 0..50 {
                        failed += usize::from(name(&xclient).await.is_err());
                    }
                    failed
                })
            })
            .collect();
        let mut failed = 0;
        for caller in callers {
            failed += caller.await.expect("no panic");
        }
        // A third of the calls is 100, and six standard deviations are 49.
        assert!(failed <= most + 49, "{what}: {failed} of 300");
    }
}

/// What a selector was told: tries under way by address, and how the others ended.
#[derive(Clone, Default)]
struct Learned {
    under_way: Arc<Mutex<BTreeMap<String, usize>>>,
    ended: Arc<Mutex<Vec<Outcome>>>,
    next: Arc<AtomicUsize>,
}

impl Selector for Learned {
    fn select(&self, selection: &Selection<'_>) -> Option<usize> {
        let count = selection.candidates().count();
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        selection.candidates().nth(next.checked_rem(count)?)
    }

    fn begun(&self, server: &ServerEntry) {
        *self.under_way.lock().expect("no panic").entry(server.address().to_owned()).or_default() += 1;
    }

    fn ended(&self, server: &ServerEntry, outcome: &Outcome) {
        let mut under_way = self.under_way.lock().expect("no panic");
        let count = under_way.get_mut(server.address()).expect("it had begun");
        *count = count.checked_sub(1).expect("as many began");
        self.ended.lock().expect("no panic").push(*outcome);
    }
}

impl Learned {
    fn under_way(&self) -> usize {
        self.under_way.lock().expect("no panic").values().sum()
    }

    fn kinds(&self) -> Vec<OutcomeKind> {
        self.ended.lock().expect("no panic").drain(..).map(|outcome| outcome.kind).collect()
    }
}

/// A selector learns how each try ended, and how long it took.
#[tokio::test(start_paused = true)]
async fn a_selector_learns_how_each_try_ends() {
    let second = Duration::from_secs(1);
    for (behaviour, kind) in [
        (Behaviour::AnswerAfter(second), OutcomeKind::Ok),
        (Behaviour::Fail, OutcomeKind::Error),
        (Behaviour::Refuse(ErrorCode::NotFound), OutcomeKind::Failed),
        (Behaviour::Refuse(ErrorCode::Overloaded), OutcomeKind::Refused),
        (Behaviour::VanishAfter(second), OutcomeKind::Lost),
        (Behaviour::Hang, OutcomeKind::TimedOut),
    ] {
        let (server, learned) = (Named::start(behaviour).await, Learned::default());
        let select = SelectMode::by_user(learned.clone());
        let options = ClientOptions::new().timeout(2 * second);
        let xclient = XClient::new("Who", FailMode::Failfast, select, list([&server]), options);
        let began = Instant::now();
        let _ = name(&xclient).await;
        let (outcome, took) = (learned.ended.lock().expect("no panic")[0], began.elapsed());
        assert_eq!((outcome.kind, outcome.latency, learned.under_way()), (kind, took, 0));
    }
    let (server, learned) = (Named::start(Behaviour::Hang).await, Learned::default());
    let xclient = XClient::new(
        "Who",
        FailMode::Failfast,
        SelectMode::by_user(learned.clone()),
        list([&server]),
        ClientOptions::new(),
    );
    let dropped = tokio::time::timeout(second, name(&xclient)).await;
    assert!(dropped.is_err() && learned.kinds() == [OutcomeKind::Cancelled]);
    xclient.oneshot("Name", &()).await.expect("it is queued");
    assert_eq!(learned.kinds(), [OutcomeKind::Queued]);
    let reserved = CallOptions::new().metadata(Metadata::new().with("_bw.x", "y"));
    xclient.call_with::<String>("Name", &(), reserved).await.expect_err("it is reserved");
    assert_eq!(learned.kinds(), [OutcomeKind::Invalid]);
    server.stop().await;
    settle().await;
    name(&xclient).await.expect_err("nobody listens");
    assert_eq!((learned.kinds(), learned.under_way()), (vec![OutcomeKind::NotSent], 0));
}

fn behaviour() -> impl Strategy<Value = Behaviour> {
    let time = || (0_u64..30).prop_map(Duration::from_millis);
    prop_oneof![
        Just(Behaviour::Answer),
        time().prop_map(Behaviour::AnswerAfter),
        time().prop_map(Behaviour::VanishAfter),
        Just(Behaviour::VanishTimes(2)),
        Just(Behaviour::Fail),
        Just(Behaviour::Refuse(ErrorCode::Overloaded)),
        Just(Behaviour::Refuse(ErrorCode::ShuttingDown)),
        Just(Behaviour::Hang),
    ]
}

/// What is done with one call: its time, when its future is dropped, and whether it is a oneway message.
type Made = (Option<u64>, Option<u64>, bool);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever servers do, in every fail mode, with deadlines, drops and lists that change: each try that begins ends
    /// once.
    #[test]
    fn each_try_that_begins_ends_once(
        behaviours in prop::collection::vec(behaviour(), 1..4),
        mode in prop::sample::select(ALL_MODES.to_vec()),
        made in prop::collection::vec((prop::option::of(0_u64..50), prop::option::of(0_u64..50), any::<bool>()), 1..12),
        sticky in any::<bool>(),
        leaves in prop::option::of(0_u64..50),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        let runtime = runtime.expect("a runtime");
        let all = tries(behaviours, mode, made, sticky, leaves);
        let outcome = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(600), all).await });
        outcome.expect("calls end")?;
    }
}

async fn tries(
    behaviours: Vec<Behaviour>,
    mode: FailMode,
    made: Vec<Made>,
    sticky: bool,
    leaves: Option<u64>,
) -> Result<(), TestCaseError> {
    let mut servers = Vec::new();
    for behaviour in behaviours {
        servers.push(Named::start(behaviour).await);
    }
    let (discovery, learned) = (list(&servers), Learned::default());
    let options = XClientOptions::new().sticky(sticky).retries(2);
    let select = SelectMode::by_user(learned.clone());
    let xclient = XClient::new("Who", mode, select, discovery.clone(), options);
    let calls: Vec<_> = made
        .into_iter()
        .map(|(timeout, dropped, oneway)| {
            let xclient = xclient.clone();
            tokio::spawn(async move {
                let millis = Duration::from_millis;
                let options = CallOptions::new().timeout(millis(timeout.unwrap_or(500)));
                let calling = async {
                    if oneway {
                        let _ = xclient.oneshot("Name", &()).await;
                    } else {
                        let _ = xclient.call_with::<String>("Name", &(), options).await;
                    }
                };
                let _ = tokio::time::timeout(millis(dropped.unwrap_or(10_000)), calling).await;
            })
        })
        .collect();
    if let Some(leaves) = leaves {
        sleep(Duration::from_millis(leaves)).await;
        discovery.update([servers[0].address.as_str()]);
    }
    for call in calls {
        call.await.expect("no panic");
    }
    prop_assert_eq!(learned.under_way(), 0);
    Ok(())
}

/// A selector that does not return holds up nobody: neither calls to a server that was chosen, nor a new list.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_slow_selector_holds_up_its_own_call_only() {
    let servers = Named::start_all([Behaviour::Answer; 2]).await;
    let (begun, waits) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let (discovery, count) = (list(&servers[..1]), AtomicUsize::new(0));
    let select = SelectMode::by_user({
        let (begun, waits) = (Arc::clone(&begun), Arc::clone(&waits));
        move |_: &Selection<'_>| {
            if count.fetch_add(1, Ordering::SeqCst) == 0 {
                begun.wait();
                waits.wait();
            }
            Some(0)
        }
    });
    let xclient =
        XClient::new("Who", FailMode::Failover, select, discovery.clone(), XClientOptions::new().sticky(true));
    let held = tokio::spawn({
        let xclient = xclient.clone();
        async move { name(&xclient).await }
    });
    tokio::task::spawn_blocking(move || begun.wait()).await.expect("no panic");
    let others = async {
        assert_eq!(name(&xclient).await.expect("it is up"), servers[0].address);
        discovery.update([servers[1].address.as_str()]);
        assert_eq!(name(&xclient).await.expect("it is up"), servers[1].address);
    };
    let others = tokio::time::timeout(Duration::from_secs(30), others).await;
    tokio::task::spawn_blocking(move || waits.wait()).await.expect("no panic");
    others.expect("nobody waits for the selector");
    // Its server has left the list meanwhile, so that it chooses again.
    let held = tokio::time::timeout(Duration::from_secs(30), held).await.expect("it goes on").expect("no panic");
    assert_eq!(held.expect("it is up"), servers[1].address);
}
