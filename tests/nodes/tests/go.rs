//! A Go application on rpcx and `_bothways` at the nodes of a cluster: it takes its session along to another node, and where
//! its node is killed it is told so, and gets what is kept.

use std::time::Duration;

use bothways_brokers::Broker;
use bothways_interop::{
    app::App,
    go::{Go, go},
};
use bothways_nodes::{As, CallEnd, Node, Options, Proxy, SessionSeen, Stored, To, Told, until};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

const NEWS: &str = "news.sport";
const SECONDS: Duration = Duration::from_secs(20);
/// A lease, the longest pause of the helper until then, and a busy machine.
const COMES_WITHIN: Duration = Duration::from_secs(50);

/// Ann's application, and what it has said.
struct Ann {
    app: App,
    /// The numbers that were pushed to her, in the order in which they came.
    pushed: Vec<u64>,
    /// The numbers that were published, and their places.
    news: Vec<(u64, (u64, u64))>,
    /// What each connection behind the first has said of the session before it: nothing, or why it is lost.
    lost: Vec<String>,
}

impl Ann {
    /// It comes by this way, and subscribes from a place on.
    async fn start(go: Go, way: &Proxy) -> Self {
        let mut app = App::go(go, &way.address(), &["-token", "ann", "-delay", "1ms"]);
        assert_eq!(app.next("connected").await["lost"], "");
        let mut ann = Self { app, pushed: Vec::new(), news: Vec::new(), lost: Vec::new() };
        assert!(!ann.subscribe((0, 0)).await, "nothing was asked for");
        ann
    }

    /// True: it has all that was published since.
    async fn subscribe(&mut self, (epoch, offset): (u64, u64)) -> bool {
        self.app.tell(&format!("subscribe {NEWS} {epoch} {offset}")).await;
        self.app.next_of("subscribed").await["recovered"] == true
    }

    /// Takes what it says until this is so.
    async fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + COMES_WITHIN;
        while !is_so(self) {
            let Ok(said) = timeout_at(deadline, self.app.any()).await else {
                let news = self.numbers_of_news();
                panic!("{what}: not within {COMES_WITHIN:?}; pushed {:?}, news {news:?}, {:?}", self.pushed, self.lost);
            };
            self.take(&said);
        }
    }

    fn take(&mut self, said: &Value) {
        let place = |key: &str| said[key].as_u64().expect("a number");
        match said["event"].as_str() {
            Some("push") => {
                let number = said["text"].as_str().and_then(|text| text.parse().ok()).expect("a number");
                match said["topic"].as_str() {
                    Some(NEWS) => self.news.push((number, (place("epoch"), place("at")))),
                    _ => self.pushed.push(number),
                }
            }
            Some("connected") => self.lost.push(said["lost"].as_str().expect("a text").to_owned()),
            Some("failed") => {
                let why = said["why"].as_str().expect("a text");
                assert!(!why.starts_with("offset "), "one was left out: {why}");
                // It was not let in, and comes again.
            }
            _ => panic!("nobody asked for {said}"),
        }
    }

    /// What was pushed, by number: what follows a session may come behind what goes to its new place.
    fn numbers(&self) -> Vec<u64> {
        let mut numbers = self.pushed.clone();
        numbers.sort_unstable();
        numbers
    }

    fn numbers_of_news(&self) -> Vec<u64> {
        self.news.iter().map(|(number, _)| *number).collect()
    }

    /// How often this one came.
    fn times(&self, number: u64) -> usize {
        self.pushed.iter().filter(|came| **came == number).count()
    }
}

/// The nodes at which she is connected.
async fn places(asked: &Node) -> Vec<String> {
    let seen = asked.sessions(To::user("ann")).await;
    let is_there = |seen: &SessionSeen| matches!(seen.told.standing, bothways::session::Standing::Connected(_));
    seen.into_iter().filter(is_there).map(|seen| seen.node).collect()
}

async fn she_is_at(node: &Node, asked: &Node) {
    until("she is there", async || places(asked).await == [node.id()]).await;
}

/// Each was handled by its one target, and where it did not reach a node, that one had left with nothing of it.
fn assert_handled(told: &[Told]) {
    for told in told {
        assert_eq!((told.targets(), told.at("handled")), (1, 1), "{told:?}");
        assert!(told.unreached.iter().all(|missed| missed.why == "Left" && !missed.maybe), "{told:?}");
    }
}

fn assert_stored(told: &[Told]) {
    assert!(told.iter().all(|told| matches!(told.stored, Stored::In(1, _))), "{told:?}");
}

/// Its connection is lost and it comes to another node, where it gets letters and is called; then that node drains. Each
/// push comes once, and so does each message of its topic, in the order of the publishes.
#[tokio::test(flavor = "multi_thread")]
async fn a_go_application_takes_its_session_along() {
    let Some(go) = go() else { return };
    let Some(broker) = Broker::one() else { return };
    let [origin, owner, other] = Node::start_all(&Options::new(broker.addresses())).await;
    let way = Proxy::to([owner.address()]).await;
    let mut ann = Ann::start(go, &way).await;

    origin.push(To::user("ann"), As::Tracked, 1, 40).await;
    origin.publish(NEWS, 201, 10).await;
    ann.until("some came", |ann| !ann.pushed.is_empty()).await;
    way.lead_to([other.address()]);
    way.cut();
    origin.push(To::user("ann"), As::Tracked, 41, 40).await;
    origin.publish(NEWS, 211, 10).await;
    ann.until("all came", |ann| 80 <= ann.pushed.len() && 20 <= ann.news.len()).await;
    she_is_at(&other, &origin).await;
    assert_eq!(ann.numbers(), (1..=80).collect::<Vec<_>>());
    assert_eq!(ann.numbers_of_news(), (201..=220).collect::<Vec<_>>());

    origin.push(To::user("ann"), As::Durable, 81, 10).await;
    ann.until("letters came", |ann| 90 <= ann.pushed.len()).await;
    assert_stored(&origin.receipts_over(81, 90).await);
    assert_eq!(origin.call(To::user("ann"), 7, SECONDS).await, CallEnd::Reply(7));

    way.lead_to([owner.address()]);
    let drains = async {
        let report = other.drain(SECONDS, 100).await;
        assert_eq!((report.handed_over, report.parked, report.left), (1, 0, 0), "{report:?}");
    };
    let meanwhile = async {
        for number in 91..=130 {
            origin.push(To::user("ann"), As::Tracked, number, 1).await;
            origin.publish(NEWS, number + 130, 1).await;
        }
    };
    tokio::join!(drains, meanwhile);
    she_is_at(&owner, &origin).await;
    origin.push(To::user("ann"), As::Tracked, 131, 10).await;
    origin.publish(NEWS, 261, 10).await;
    ann.until("all came", |ann| 140 <= ann.pushed.len() && 70 <= ann.news.len()).await;
    assert_eq!(ann.numbers(), (1..=140).collect::<Vec<_>>());
    assert_eq!(ann.numbers_of_news(), (201..=270).collect::<Vec<_>>());
    assert_eq!(ann.lost, ["", ""], "it is the same session");
    assert_handled(&origin.receipts_over(1, 80).await);
    assert_handled(&origin.receipts_over(91, 140).await);
    assert_stored(&origin.receipts_over(201, 270).await);
    ann.app.end().await;
}

/// Its node is killed. What was pushed meanwhile is told not to have reached that node, or waits: in the mailbox, and in the
/// history of the topic.
#[tokio::test(flavor = "multi_thread")]
async fn a_go_application_outlives_its_node() {
    let Some(go) = go() else { return };
    let Some(broker) = Broker::one() else { return };
    let [origin, mut owner, other] = Node::start_all(&Options::new(broker.addresses())).await;
    let way = Proxy::to([owner.address()]).await;
    let mut ann = Ann::start(go, &way).await;
    origin.push(To::user("ann"), As::Tracked, 1, 10).await;
    origin.push(To::user("ann"), As::Durable, 101, 10).await;
    origin.publish(NEWS, 201, 10).await;
    ann.until("all came", |ann| 20 <= ann.pushed.len() && 10 <= ann.news.len()).await;
    assert_handled(&origin.receipts_over(1, 10).await);

    let dead = owner.id().to_owned();
    way.lead_to([other.address()]);
    owner.kill().await;
    origin.push(To::user("ann"), As::Tracked, 11, 10).await;
    origin.push(To::user("ann"), As::Durable, 111, 10).await;
    origin.publish(NEWS, 211, 10).await;
    for told in origin.receipts_over(11, 20).await {
        let [missed] = &told.unreached[..] else { panic!("{told:?}") };
        assert_eq!((told.targets(), &*missed.node, &*missed.why), (0, &*dead, "NodeLost"), "{told:?}");
    }
    assert_stored(&[origin.receipts_over(111, 120).await, origin.receipts_over(211, 220).await].concat());

    ann.until("it is let in", |ann| !ann.lost.is_empty()).await;
    assert_eq!(ann.lost, ["node_lost"]);
    she_is_at(&other, &origin).await;
    origin.push(To::user("ann"), As::Tracked, 21, 10).await;
    let (_, place) = *ann.news.last().expect("ten came");
    assert!(ann.subscribe(place).await, "it is said that all is there");
    ann.until("all came", |ann| (21..=30).chain(111..=120).all(|number| 0 < ann.times(number))).await;
    ann.until("the news came", |ann| 20 <= ann.news.len()).await;
    assert_eq!(ann.numbers_of_news(), (201..=220).collect::<Vec<_>>());
    let told = origin.receipts_over(21, 30).await;
    assert!(told.iter().all(|told| (told.targets(), told.at("handled")) == (1, 1)), "{told:?}");
    let once = (1..=10).chain(21..=30).chain(101..=120);
    assert!(once.into_iter().all(|number| ann.times(number) == 1), "each once: {:?}", ann.pushed);
    assert!((11..=20).all(|number| ann.times(number) == 0), "nobody has them: {:?}", ann.pushed);
    ann.app.end().await;
}
