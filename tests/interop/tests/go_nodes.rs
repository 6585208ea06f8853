//! Go clients on rpcx alone at the nodes of a cluster: they are pushed to from any node. The nodes are three servers over NATS
//! in this process.

use std::time::Duration;

use bothways::{
    Class, Push, Receipt, Server, Stage, Target, cluster::Cluster, server::Listening, session::TopicOptions,
};
use bothways_brokers::Broker;
use bothways_interop::{
    LONG,
    app::App,
    go::{Go, go},
    until, within,
};
use bothways_nats::{NatsEngine, NatsOptions};
use serde_json::json;

const KEPT: Duration = Duration::from_secs(600);

/// One server of the cluster. Its clients are the users that their tokens name.
struct Node {
    server: Server,
    listening: Listening,
}

impl Node {
    async fn start(broker: &Broker) -> Self {
        let server = Server::builder()
            .auth(|request| async move {
                let session = request.session().ok_or("it has left")?;
                session.bind_user(&request.token);
                Ok::<_, &str>(())
            })
            .topic("news.>", TopicOptions::new().open().history(100, KEPT))
            .expect("a pattern")
            .build();
        let engine = NatsEngine::connect(NatsOptions::new(broker.addresses())).await.expect("the broker works");
        server.join(Cluster::new(engine)).await.expect("the broker works");
        let listening = server.listen("tcp@127.0.0.1:0").await.expect("a free port");
        Self { server, listening }
    }

    /// A push, whose text is its number.
    fn push(&self, class: Class, number: usize) -> Receipt {
        let push = Push::new("Chat", "say", number.to_string()).class(class);
        self.server.push(&Target::user("ann"), &push).expect("small")
    }

    /// True if ann is connected here.
    fn has_ann(&self) -> bool {
        let sessions = self.server.sessions(&Target::user("ann")).expect("no topic");
        sessions.iter().any(|session| session.connection().is_some())
    }
}

async fn nodes(broker: &Broker) -> [Node; 3] {
    let nodes = [Node::start(broker).await, Node::start(broker).await, Node::start(broker).await];
    let know = |node: &Node| node.server.nodes().is_some_and(|(_, others)| others.len() == 2);
    until("they know each other", LONG, async || nodes.iter().all(know)).await;
    nodes
}

fn of_ann(go: Go, address: &str, kind: &[&str]) -> App {
    App::go(go, address, &[&["-token", "ann"], kind].concat())
}

/// Where a client speaks rpcx and no more, a push from another node reaches it as one from its own does, and the receipt
/// says what can be known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_go_client_is_pushed_to_from_any_node() {
    let Some(go) = go() else { return };
    let Some(broker) = Broker::one() else { return };
    let [one, other, third] = nodes(&broker).await;
    let mut app = of_ann(go, one.listening.address(), &["-plain"]);
    // With its first call it says who it is; before anything is published, the topic has a place.
    app.tell("subscribe news.sport").await;
    let subscribed = app.next("subscribed").await;
    assert_ne!(subscribed["epoch"], 0, "{subscribed}");

    for (number, node) in [&one, &other, &third].into_iter().enumerate() {
        let receipt = node.push(Class::Tracked, number);
        assert_eq!(app.next("push").await["text"], number.to_string());
        let outcomes = within(LONG, "its end", receipt.handled()).await;
        assert_eq!((outcomes.targets(), outcomes.at(Stage::PlainWritten)), (1, 1), "it says no more");
        assert!(receipt.unreached().is_empty());
    }
    let news = Push::new("News", "say", "goal");
    other.server.publish("news.sport", &news).expect("small").stored().await.expect("the broker works");
    let said = app.next("push").await;
    assert_eq!(
        (&said["text"], &said["topic"], &said["epoch"]),
        (&json!("goal"), &json!("news.sport"), &subscribed["epoch"])
    );

    // What cannot be acknowledged stays in the mailbox.
    other.push(Class::Durable { ttl: KEPT }, 99).stored().await.expect("the broker works");
    let letters = one.server.mail().expect("a store").letters("ann", 0, 10).await.expect("the broker works");
    assert_eq!(letters.len(), 1);
    app.end().await;
    until("it has gone", LONG, async || !one.has_ann()).await;
    assert!(third.push(Class::Tracked, 100).handled().await.targets() == 0, "nobody is there");
}
