//! Servers of one cluster over NATS, with clients: what they do over the engine in memory they do here.

#[allow(dead_code)]
mod support;

use std::time::Duration;

use bothways::{
    CallError, CallOptions, Caller as _, Client, ClientOptions, Push, Receipt, Router, ServerMessages, Stage, Target,
    session::UnreachedWhy,
};
use bothways_brokers::Broker;
use bothways_nats::NatsOptions;
use bytes::Bytes;
use support::{LONG, Node, run, until};
use tokio::time::{Instant, sleep, timeout};

fn nodes<const N: usize>(broker: &Broker) -> [Node; N] {
    nodes_at(&broker.addresses())
}

fn nodes_at<const N: usize>(addresses: &[String]) -> [Node; N] {
    let nodes = std::array::from_fn(|_| Node::start(NatsOptions::new(addresses), "news.>", |server| server));
    let know = |node: &Node| node.server.nodes().is_some_and(|(_, others)| others.len() == N - 1);
    let until = std::time::Instant::now() + LONG;
    while !nodes.iter().all(know) {
        assert!(std::time::Instant::now() < until, "they do not know each other");
        std::thread::sleep(Duration::from_millis(10));
    }
    nodes
}

struct User {
    /// It is open for as long as this is kept.
    _client: Client,
    messages: ServerMessages,
}

impl User {
    async fn at(node: &Node, name: &str) -> Self {
        let options = ClientOptions::new().auth(name);
        let me = name.to_owned();
        let (client, messages) = Client::bidirectional(node.listening.address(), options).await.expect("it listens");
        let user = Self { _client: client, messages };
        until("it has a session", || {
            node.server.sessions(&Target::user(&me)).is_ok_and(|sessions| !sessions.is_empty())
        })
        .await;
        user
    }

    async fn next(&mut self) -> String {
        let message = timeout(LONG, self.messages.next()).await.expect("it comes").expect("it is open");
        String::from_utf8(message.payload().expect("not packed").to_vec()).expect("a text")
    }
}

async fn handled(receipt: &Receipt) -> usize {
    timeout(LONG, receipt.handled()).await.expect("it ends").at(Stage::Handled)
}

/// A user, everyone, a session, a topic, and nobody, from any node, with one receipt; also over three servers.
#[test]
fn a_push_reaches_the_sessions_of_all_nodes() {
    for broker in [Broker::one(), Broker::three()] {
        let Some(broker) = broker else { return };
        let [one, other, third] = nodes(&broker);
        run(async {
            let mut users = [User::at(&one, "ann").await, User::at(&other, "ann").await, User::at(&third, "bob").await];
            let receipt = one.push(&Target::user("ann"), "to ann");
            assert_eq!((users[0].next().await, users[1].next().await), ("to ann".into(), "to ann".into()));
            assert_eq!(handled(&receipt).await, 2);
            assert!(!receipt.is_partial() && !receipt.is_no_route());

            let receipt = other.push(&Target::everyone(), "to all");
            for user in &mut users {
                assert_eq!(user.next().await, "to all");
            }
            assert_eq!(handled(&receipt).await, 3);

            let bob = third.server.sessions(&Target::user("bob")).expect("no topic")[0].id();
            let receipt = one.push(&Target::session(bob), "to bob's session");
            assert_eq!(users[2].next().await, "to bob's session");
            assert_eq!(handled(&receipt).await, 1);

            one.server.publish("news.sport", &Push::new("News", "Say", "2:1")).expect("small");
            for user in &mut users {
                assert_eq!(user.next().await, "2:1");
            }
            let receipt = one.push(&Target::user("nobody"), "to nobody");
            assert_eq!(handled(&receipt).await, 0);
            assert!(receipt.is_no_route());

            for number in 0..200 {
                one.push(&Target::user("bob"), &number.to_string());
            }
            for number in 0..200 {
                assert_eq!(users[2].next().await, number.to_string(), "in order");
            }
        });
        let _ = [one, other, third].map(Node::kill);
    }
}

/// Calls to clients of other nodes, their stories, and their end.
#[test]
fn clients_of_other_nodes_are_called_explained_and_kicked() {
    let Some(broker) = Broker::one() else { return };
    let [one, other] = nodes(&broker);
    run(async {
        let handlers = Router::new().function("T", "Echo", |text: String| async move { Ok::<_, String>(text) });
        let options = ClientOptions::new().auth("ann");
        let _ann = Client::with_handlers(other.listening.address(), options, handlers).await.expect("it listens");
        until("ann is there", || other.server.sessions(&Target::user("ann")).is_ok_and(|all| all.len() == 1)).await;

        let ann = one.server.user("ann");
        let reply = ann.call_typed::<_, String>("T", "Echo", "hey", CallOptions::new()).await.expect("it answers");
        assert_eq!(reply.value, "hey");
        let nobody = one.server.user("bob").call_typed::<_, String>("T", "Echo", "hey", CallOptions::new()).await;
        assert!(matches!(nobody, Err(CallError::NoClient(_))), "{nobody:?}");

        let told = one.server.explain_everywhere(&Target::user("ann")).await.expect("no topic");
        let sessions: usize = told.answers.iter().map(|(_, told)| told.sessions.len()).sum();
        assert_eq!((sessions, told.silent.len()), (1, 0));
        let ended = one.server.kick_everywhere(&Target::user("ann"), "enough").await.expect("no topic");
        assert_eq!(ended.answers.iter().map(|(_, ended)| ended).sum::<usize>(), 1);
    });
    let _ = [one, other].map(Node::kill);
}

/// A node dies with a client: the receipt of what was there ends as unknown, what comes later is unreached until the lease
/// has ended, and the others go on.
#[test]
fn a_node_that_dies_is_known_to_be_dead() {
    let Some(broker) = Broker::one() else { return };
    let [one, other, third] = nodes(&broker);
    run(async {
        let mut ann = User::at(&other, "ann").await;
        let bob = User::at(&third, "bob").await;
        let open = one.push(&Target::user("bob"), "is not handled");
        timeout(LONG, open.received()).await.expect("it comes");
        let dead = third.kill();
        drop(bob);

        let receipt = one.push(&Target::everyone(), "meanwhile");
        assert_eq!(ann.next().await, "meanwhile");
        assert_eq!(handled(&receipt).await, 1);
        let unreached = receipt.unreached();
        assert_eq!((unreached.len(), unreached[0].node), (1, dead));
        assert!(matches!(unreached[0].why, UnreachedWhy::NodeLost | UnreachedWhy::TimedOut), "{unreached:?}");

        let outcomes = timeout(LONG, open.handled()).await.expect("its lease ends");
        assert_eq!(outcomes.at(Stage::Unknown), 1, "{outcomes:?}");
        until("it is no member", || one.server.nodes().is_some_and(|(_, others)| others.len() == 1)).await;
        let receipt = one.push(&Target::everyone(), "later");
        assert_eq!(ann.next().await, "later");
        assert_eq!(handled(&receipt).await, 1);
        // It may only be cut off.
        let unreached = receipt.unreached();
        assert_eq!((unreached.len(), unreached[0].node, unreached[0].why), (1, dead, UnreachedWhy::NodeLost));
    });
    let _ = [one, other].map(Node::kill);
}

/// R13. The leader of the leases is stopped for longer than an election: pushes between nodes do not notice, nobody is
/// judged, and no node begins another life.
#[test]
fn a_register_that_stands_still_delays_no_push() {
    let Some(mut broker) = Broker::three() else { return };
    // No node is at the third server: mail of its own clients would stand still too.
    let [one, other] = nodes_at(&broker.addresses()[..2]);
    run(async {
        let mut ann = User::at(&other, "ann").await;
        lead(&broker, 2, "bw_bothways_k").await;
        broker.stop(2);
        let began = Instant::now();
        for number in 0.. {
            let receipt = one.push(&Target::user("ann"), &number.to_string());
            let sent = Instant::now();
            assert_eq!(ann.next().await, number.to_string());
            assert_eq!(handled(&receipt).await, 1, "{receipt:?}");
            assert!(sent.elapsed() < Duration::from_secs(2), "{:?}", sent.elapsed());
            if Duration::from_secs(10) < began.elapsed() {
                break;
            }
            sleep(Duration::from_millis(100)).await;
        }
        broker.go_on(2);
        sleep(Duration::from_secs(5)).await;
        assert_eq!(one.server.nodes(), Some((one.id, vec![other.id])), "nobody was judged");
        assert_eq!(other.server.nodes(), Some((other.id, vec![one.id])), "nobody was judged");
    });
    let _ = [one, other].map(Node::kill);
}

/// Has this server lead a stream.
async fn lead(broker: &Broker, server: usize, stream: &str) {
    let client = async_nats::connect(&broker.addresses()[0]).await.expect("it listens");
    let deadline = Instant::now() + LONG;
    loop {
        let info = client.request(format!("$JS.API.STREAM.INFO.{stream}"), Bytes::new()).await.expect("it answers");
        let info: serde_json::Value = serde_json::from_slice(&info.payload).expect("JSON");
        if info["cluster"]["leader"].as_str().is_some_and(|name| broker.number_of(name) == server) {
            return;
        }
        assert!(Instant::now() < deadline, "it does not lead: {info}");
        let preferred = format!(r#"{{"placement":{{"preferred":"n{server}"}}}}"#);
        let _ = client.request(format!("$JS.API.STREAM.LEADER.STEPDOWN.{stream}"), preferred.into()).await;
        sleep(Duration::from_millis(200)).await;
    }
}
