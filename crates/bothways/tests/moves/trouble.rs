//! A client that comes to another node while something goes wrong: it keeps its session, or is told the truth.

use std::time::Duration;

use bothways::{Stage, Target, cluster::memory::MemoryBroker, testing};
use tokio::time::sleep;

use crate::{
    support::{Node, next, nodes, until},
    ways::{goes_to, is_there, session_of, settle},
};

/// The client is at the first node, away, and owed this.
async fn owed(one: &Node, text: &str) -> (testing::TestClient, bothways::session::SessionId, bothways::Receipt) {
    let ann = one.client("ann").await;
    let id = session_of(one.server(), "ann").expect("she is there");
    settle().await;
    one.loses(&ann).await;
    let receipt = one.push(&Target::user("ann"), text);
    (ann, id, receipt)
}

/// A node that is dead takes its sessions with it: until its lease has ended the client is refused, and keeps its session;
/// then it has a new one of the same user with the same labels.
#[test]
fn a_session_of_a_dead_node_is_lost_when_its_lease_has_ended() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        // Long enough for a node to judge others.
        sleep(Duration::from_secs(20)).await;
        let (ann, id, receipt) = owed(&one, "a letter").await;
        let far = other.push(&Target::user("ann"), "another");
        until("it is told", || far.routing() == 0).await;
        broker.faults().cut(one.id, true);
        goes_to(&ann, &other);
        sleep(Duration::from_secs(10)).await;
        assert_eq!(session_of_connected(&other), None, "its node may live");
        until("it has a session", || session_of_connected(&other).is_some()).await;
        assert_ne!(session_of_connected(&other), Some(id));
        let session = other.server().sessions(&Target::user("ann")).expect("no topic").remove(0);
        assert_eq!(session.label("device").as_deref(), Some("phone"));
        let outcomes = far.handled().await;
        assert_eq!((outcomes.targets(), outcomes.at(Stage::Unknown)), (1, 1), "{far:?}");
        drop(receipt);
    });
}

fn session_of_connected(node: &Node) -> Option<bothways::session::SessionId> {
    let found = node.server().sessions(&Target::user("ann")).expect("no topic");
    found.into_iter().find(|session| session.connection().is_some()).map(|session| session.id())
}

/// A node that stands still for less than its lease loses nothing: its client is refused until it goes on.
#[test]
fn a_node_that_stands_still_keeps_its_sessions() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        sleep(Duration::from_secs(20)).await;
        let (mut ann, id, receipt) = owed(&one, "a letter").await;
        broker.faults().pause(one.id, true);
        goes_to(&ann, &other);
        sleep(Duration::from_secs(5)).await;
        assert_eq!(session_of_connected(&other), None, "its node lives");
        broker.faults().pause(one.id, false);
        until("it is there", || is_there(&other, id)).await;
        assert_eq!(next(&mut ann).await, "a letter");
        assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
    });
}

/// All leases end at once, as with a leader that was frozen: each node claims its sessions again, and they go on.
#[test]
fn sessions_outlive_the_leases_of_their_nodes() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let (mut ann, id, receipt) = owed(&one, "a letter").await;
        broker.faults().end_all_leases();
        sleep(Duration::from_secs(10)).await;
        assert_eq!(session_of(one.server(), "ann"), Some(id));
        goes_to(&ann, &other);
        until("it is there", || is_there(&other, id)).await;
        assert_eq!(next(&mut ann).await, "a letter");
        assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
    });
}

/// A Hello that the network has kept comes to the former node when the client has its session elsewhere: it takes nothing.
#[test]
fn a_late_hello_takes_nothing() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let (mut ann, id, _receipt) = owed(&one, "a letter").await;
        goes_to(&ann, &other);
        until("it is there", || is_there(&other, id)).await;
        assert_eq!(next(&mut ann).await, "a letter");
        settle().await;
        ann.wire.lead_to(one.network.address()).expect("an address");
        ann.wire.claim_late();
        sleep(Duration::from_secs(5)).await;
        assert!(is_there(&other, id) && session_of(one.server(), "ann").is_none());
        let receipt = one.push(&Target::user("ann"), "later");
        assert_eq!(next(&mut ann).await, "later");
        assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
    });
}

/// Who shows another secret gets a session of its own, at any node, and takes nothing.
#[test]
fn a_stranger_with_the_number_gets_nothing() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let (mut ann, id, receipt) = owed(&one, "a letter").await;
        for node in [&one, &other] {
            let (sid, key) = (format!("{id}"), "0".repeat(64));
            let pairs =
                [("_bw.sid", sid.as_str()), ("_bw.key", &key), ("_bw.off", "0"), ("_bw.try", "18446744073709551615")];
            let options = bothways::ClientOptions::new().auth("eve").negotiate(false);
            let eve = node.network.client(options).await.expect("it listens");
            let mut said = bothways::Metadata::new();
            pairs.iter().for_each(|(key, value)| said.insert(key, *value));
            let call = bothways::CallOptions::new().metadata(said);
            let _ = eve.client.call_with::<()>("_bothways", "Resume", &(), call).await;
            settle().await;
        }
        goes_to(&ann, &other);
        until("it is there", || is_there(&other, id)).await;
        assert_eq!(next(&mut ann).await, "a letter");
        assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
    });
}
