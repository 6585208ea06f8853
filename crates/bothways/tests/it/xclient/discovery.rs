//! Lists of a source that fails and comes back.

use std::{collections::VecDeque, sync::Mutex};

use bothways::discovery::{DiscoveryError, DnsDiscovery, ListSink};

use super::*;

/// What the source does next.
#[derive(Clone)]
enum Step {
    Say(Vec<String>),
    Wait(Duration),
    Fail,
    Panic,
}

/// A source that goes on with its script each time it is watched, and ends with it.
#[derive(Clone)]
struct Scripted {
    script: Arc<Mutex<VecDeque<Step>>>,
    watched: Arc<AtomicUsize>,
}

impl Scripted {
    fn new(script: impl IntoIterator<Item = Step>) -> Self {
        Self { script: Arc::new(Mutex::new(script.into_iter().collect())), watched: Arc::default() }
    }

    async fn go_on(self, lists: ListSink) -> Result<(), DiscoveryError> {
        self.watched.fetch_add(1, Ordering::SeqCst);
        loop {
            let Some(step) = self.script.lock().expect("no panic").pop_front() else { return Ok(()) };
            match step {
                Step::Say(servers) => lists.set(servers),
                Step::Wait(time) => sleep(time).await,
                Step::Fail => return Err("the registry is away".into()),
                Step::Panic => panic!("on purpose"),
            }
        }
    }
}

impl Discovery for Scripted {
    fn lists(&self, service: &str) -> Lists {
        assert_eq!(service, "Who");
        let source = self.clone();
        Lists::watched(move |lists| source.clone().go_on(lists))
    }
}

fn listed(xclient: &XClient) -> Vec<String> {
    xclient.servers().iter().map(|server| server.address().to_owned()).collect()
}

/// It fails, panics, comes back with repeats, and ends: calls go on with the last list, and each failure is told.
#[tokio::test(start_paused = true)]
async fn a_source_that_fails_keeps_its_servers_and_comes_back() {
    let servers = Named::start_all([Behaviour::Answer; 2]).await;
    let [a, b] = servers.each_ref().map(|server| server.address.clone());
    let second = Duration::from_secs(1);
    let source = Scripted::new([
        Step::Say(vec![a.clone(), a.clone()]),
        Step::Wait(second),
        Step::Fail,
        Step::Panic,
        Step::Wait(second),
        Step::Fail,
        Step::Say(vec![b.clone(), a.clone(), b.clone()]),
    ]);
    let xclient = xclient(FailMode::Failfast, source.clone());
    let mut events = xclient.events();
    assert_eq!(name(&xclient).await.expect("the first list comes"), a);
    assert_eq!(listed(&xclient), [a.as_str()]);

    for why in ["the registry is away", "it panicked: on purpose", "the registry is away"] {
        let failed = async {
            loop {
                let event = events.next().await.expect("the client is open");
                if let ConnectionEvent::DiscoveryFailed { service, error } = &event {
                    assert_eq!((&**service, event.server()), ("Who", None));
                    return error.to_string();
                }
            }
        };
        let failed = tokio::time::timeout(60 * second, failed).await.expect("it is told");
        assert_eq!(failed, why);
        assert_eq!(name(&xclient).await.expect("the last list counts"), a);
    }
    sleep(2 * second).await;
    assert_eq!(listed(&xclient), [b.clone(), a]);
    assert_eq!(name(&xclient).await.expect("it is up"), b);

    // It has ended: its last list is final, and it is not watched again.
    sleep(600 * second).await;
    assert_eq!((source.watched.load(Ordering::SeqCst), name(&xclient).await.expect("it is up")), (4, b));
}

/// A call that comes before the first list waits for it, within its time; without one it says why.
#[tokio::test(start_paused = true)]
async fn calls_wait_for_the_first_list() {
    let server = Named::start(Behaviour::Answer).await;
    let wait = Duration::from_secs(2);
    let late = || Scripted::new([Step::Wait(wait), Step::Say(vec![server.address.clone()])]);
    let client = xclient(FailMode::Failover, late());
    let began = Instant::now();
    assert_eq!(name(&client).await.expect("it comes"), server.address);
    assert!((wait..wait + Duration::from_millis(10)).contains(&began.elapsed()), "{:?}", began.elapsed());
    client.oneshot("Name", &()).await.expect("there is a list");

    let client = xclient(FailMode::Failover, late());
    let options = CallOptions::new().timeout(wait / 2);
    let error = client.call_with::<String>("Name", &(), options).await.expect_err("its time is over");
    assert_eq!(error.to_string(), "no server: the discovery lists none");

    let client = xclient(FailMode::Failover, Scripted::new([const { Step::Fail }; 100]));
    let error = name(&client).await.expect_err("there is no list");
    assert_eq!(error.to_string(), "no server: the discovery failed: the registry is away");
    client.close();
    let error = name(&client).await.expect_err("it is closed");
    assert!(matches!(error, CallError::NotConnected(ConnectError::Closed)), "{error}");
}

/// A source is dropped with the last client that goes by it.
#[tokio::test(start_paused = true)]
async fn nobody_watches_a_source_for_a_client_that_is_gone() {
    let source = Scripted::new((0..100).flat_map(|_| [Step::Wait(Duration::from_secs(1)), Step::Fail]));
    drop(xclient(FailMode::Failover, source.clone()));
    settle().await;
    let left = source.script.lock().expect("no panic").len();
    sleep(Duration::from_secs(600)).await;
    assert_eq!(source.script.lock().expect("no panic").len(), left);
    assert_eq!(Arc::strong_count(&source.script), 1, "nobody has it any more");
}

/// A name that stands for a server over the network.
#[tokio::test]
async fn a_dns_name_is_a_list_of_servers() {
    let server = Server::builder()
        .handler("Who", "Name", |request: Request| async move { Reply::encode("found", request.serialize_type()) })
        .build();
    let listening = server.listen("tcp@127.0.0.1:0").await.expect("a port is free");
    let port = listening.address().rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let xclient = xclient(FailMode::Failover, DnsDiscovery::new("tcp", "127.0.0.1", port));
    let found = tokio::time::timeout(Duration::from_secs(30), name(&xclient)).await.expect("it is found");
    assert_eq!(found.expect("it listens"), "found");
}
