//! A session that was given up, as its node was out of its cluster: it is nobody's when that node is back.

use std::time::Duration;

use bothways::{
    ConnectionEvent, ConnectionEvents, Stage, Target, client::SessionLost, cluster::memory::MemoryBroker, testing,
};
use tokio::time::timeout;

use crate::{
    support::{Node, next, nodes, nothing, until},
    ways::{ann_at, goes_to, session_of, settle},
};

/// Why the client has lost its session.
async fn lost(events: &mut ConnectionEvents) -> SessionLost {
    let lost = async {
        loop {
            if let ConnectionEvent::SessionLost { why, .. } = events.next().await.expect("the client is open") {
                return why;
            }
        }
    };
    timeout(Duration::from_secs(90), lost).await.expect("it is told")
}

/// Its node was cut off for longer than its lease, before its record was written or after that: what it is owed ends as
/// unknown, and a push to its user goes to the session that the client has now, and to no other.
#[test]
fn what_was_given_up_is_no_target_when_its_node_is_back() {
    for (is_recorded, told) in [(true, SessionLost::NodeLost), (false, SessionLost::Unknown)] {
        testing::run(async {
            let broker = MemoryBroker::new();
            let [one, other, third] = nodes(&broker).await;
            let cut = |cut| assert!(broker.faults().cut(one.id, cut));
            if !is_recorded {
                cut(true);
            }
            let mut ann = one.client("ann").await;
            let mut events = ann.client.events();
            let id = session_of(one.server(), "ann").expect("she is there");
            settle().await;
            if is_recorded {
                cut(true);
            }
            one.loses(&ann).await;
            let owed = one.push(&Target::session(id), "owed");

            goes_to(&ann, &other);
            assert_eq!(lost(&mut events).await, told);
            until("she is there", || session_of(other.server(), "ann").is_some()).await;
            cut(false);
            let counts_all = |node: &Node| node.server().nodes().is_some_and(|(_, others)| others.len() == 2);
            until("it is back", || [&one, &other, &third].into_iter().all(counts_all)).await;
            until("what it had has ended", || session_of(one.server(), "ann").is_none()).await;
            assert_eq!(owed.handled().await.at(Stage::Unknown), 1, "{told:?}: {owed:?}");

            let receipt = third.push(&Target::user("ann"), "after");
            assert_eq!(next(&mut ann).await, "after", "{told:?}");
            let outcomes = receipt.handled().await;
            assert_eq!((outcomes.targets(), outcomes.at(Stage::Handled)), (1, 1), "{told:?}: {receipt:?}");
            nothing(&mut ann).await;
        });
    }
}

/// While its node, which is back, has not heard yet that the session was given up, a push to the user comes there too:
/// it is no target, as nothing was sent.
#[test]
fn what_is_pushed_before_its_node_hears_of_it_does_not_count() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other, third] = nodes(&broker).await;
        let (mut ann, _) = ann_at(&one).await;
        let mut events = ann.client.events();
        assert!(broker.faults().cut(one.id, true));
        one.loses(&ann).await;
        goes_to(&ann, &other);
        assert_eq!(lost(&mut events).await, SessionLost::NodeLost);
        settle().await;

        broker.faults().claims_late(1, Duration::from_secs(3));
        assert!(broker.faults().cut(one.id, false));
        let counts_all = |node: &Node| node.server().nodes().is_some_and(|(_, others)| others.len() == 2);
        until("it is back", || [&one, &other, &third].into_iter().all(counts_all)).await;
        let receipt = third.push(&Target::user("ann"), "early");
        assert_eq!(next(&mut ann).await, "early");
        until("it has come to both", || receipt.outcomes().targets() == 2 && receipt.routing() == 0).await;
        let outcomes = receipt.handled().await;
        assert_eq!((outcomes.targets(), outcomes.at(Stage::Handled)), (1, 1), "{receipt:?}");
        assert!(!receipt.is_partial(), "{receipt:?}");
        nothing(&mut ann).await;
    });
}
