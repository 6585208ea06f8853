//! Nodes that have given a session away and hear of nothing for a while: they have it no more when they are back.

use std::time::Duration;

use bothways::{
    Server, Target,
    cluster::{Cluster, memory::MemoryBroker},
    session::SessionOptions,
    testing::{self, Network},
};
use tokio::time::sleep;

use crate::{
    support::{Node, next, nodes, until},
    ways::{ann_at, comes_to, goes_to, is_there, session_of, settle},
};

/// A node with the frozen image of a session is cut off as the session goes on elsewhere, where it ends: by its client, or by
/// its server. Its record is not there any more. The node does not have the session again when it is back, within its lease
/// or long after.
#[test]
fn what_has_ended_elsewhere_is_not_had_again() {
    for is_kicked in [false, true] {
        for after in [5, 20, 70, 110] {
            testing::run(async {
                let broker = MemoryBroker::new();
                let [one, other, third] = nodes(&broker).await;
                let (ann, id) = ann_at(&one).await;
                one.loses(&ann).await;
                one.push(&Target::user("ann"), "a letter");
                broker.faults().claims_late(1, Duration::from_millis(300));
                goes_to(&ann, &other);
                // Its image has gone, and the record moves in a moment.
                sleep(Duration::from_millis(100)).await;
                assert!(broker.faults().cut(one.id, true));
                until("it is there", || is_there(&other, id)).await;
                ann.wire.refuse();
                if is_kicked {
                    let here = other.server().sessions(&Target::session(id)).expect("no topic");
                    assert_eq!(here.len(), 1);
                    other.server().kick(&Target::session(id), "enough").expect("no topic");
                } else {
                    ann.client.close();
                }
                until("it has ended", || session_of(other.server(), "ann").is_none()).await;

                sleep(Duration::from_secs(after)).await;
                assert!(broker.faults().cut(one.id, false));
                let counts_it = |node: &Node| node.server().nodes().is_some_and(|(_, others)| others.len() == 2);
                until("it is back", || counts_it(&one) && counts_it(&third)).await;
                // As long as it may take to find out.
                sleep(Duration::from_secs(5)).await;
                assert_eq!(session_of(one.server(), "ann"), None, "kicked: {is_kicked}, after {after} s");
                let receipt = third.push(&Target::user("ann"), "another");
                until("all have answered", || receipt.routing() == 0).await;
                assert!(receipt.is_no_route(), "kicked: {is_kicked}, after {after} s: {receipt:?}");
            });
        }
    }
}

/// The register has lost its data while a node with the frozen image of a session was cut off: the one that has the session
/// keeps it, whichever is the first to write its record anew.
#[test]
fn a_frozen_session_does_not_come_before_the_one_that_lives() {
    for after in [0, 500, 1500, 3000] {
        testing::run(async {
            let broker = MemoryBroker::new();
            let [one, other] = nodes(&broker).await;
            let (mut ann, id) = ann_at(&one).await;
            one.loses(&ann).await;
            broker.faults().claims_late(1, Duration::from_millis(300));
            goes_to(&ann, &other);
            sleep(Duration::from_millis(100)).await;
            assert!(broker.faults().cut(one.id, true));
            until("it is there", || is_there(&other, id)).await;
            let there = other.server().nodes().expect("it is a member").0;
            broker.faults().wipe();
            assert!(broker.faults().cut(there, true));
            assert!(broker.faults().cut(one.id, false));
            sleep(Duration::from_millis(after)).await;
            assert!(broker.faults().cut(there, false));
            sleep(Duration::from_secs(40)).await;
            assert!(is_there(&other, id), "after {after} ms");
            assert_eq!(session_of(one.server(), "ann"), None, "after {after} ms");
            let receipt = one.push(&Target::user("ann"), "a letter");
            assert_eq!(next(&mut ann).await, "a letter");
            let outcomes = receipt.handled().await;
            assert_eq!((outcomes.targets(), receipt.is_partial()), (1, false), "after {after} ms: {receipt:?}");
        });
    }
}

/// A node with sessions that are kept for three hours.
async fn join_patient(broker: &MemoryBroker) -> Node {
    let window = SessionOptions::new().resume_window(Duration::from_secs(3 * 3600));
    let server = Server::builder().sessions(window).build();
    let id = server.join(Cluster::new(broker.engine())).await.expect("the engine works");
    Node { id, network: Network::new(server).await.expect("it runs") }
}

/// A session waits in the store for as long as its server keeps it, also where that is longer than a record is kept of a
/// session whose node is gone.
#[test]
fn a_session_waits_in_the_store_for_all_its_time() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = [join_patient(&broker).await, join_patient(&broker).await];
        until("they know each other", || one.server().nodes().is_some_and(|(_, others)| others.len() == 1)).await;
        let ann = one.network.client(bothways::ClientOptions::new()).await.expect("it listens");
        ann.welcomed().await;
        let id = one.server().sessions(&Target::everyone()).expect("no topic").remove(0).id();
        settle().await;
        one.loses(&ann).await;
        assert_eq!(one.server().drain(Duration::from_secs(5), 100).await.sessions_parked, 1);
        sleep(Duration::from_secs(2 * 3600)).await;
        comes_to(&ann, &other, id).await;
    });
}
