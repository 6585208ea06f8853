//! Sessions whose clients were told to go, and have not come to another node yet.

use std::time::Duration;

use bothways::{
    Stage, Target,
    cluster::memory::MemoryBroker,
    server::ShutdownReport,
    testing::{self, TestClient},
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::nodes::{Node, join, next, nodes, until};

const DEADLINE: Duration = Duration::from_secs(20);

/// Its only client is let in nowhere from here on, and is told to go.
fn drain(node: &Node, client: &TestClient) -> JoinHandle<ShutdownReport> {
    client.wire.refuse();
    let server = node.server().clone();
    tokio::spawn(async move { server.drain(DEADLINE, 100).await })
}

/// What is pushed meanwhile finds the session where it was, and comes with it.
#[test]
fn a_session_is_a_target_until_its_client_has_come_to_another_node() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other, origin] = nodes(&broker).await;
        let mut ann = one.client("ann").await;
        sleep(Duration::from_secs(1)).await;
        ann.wire.lead_to(other.network.address()).expect("an address");
        let draining = drain(&one, &ann);
        until("she has gone", || one.server().stats().sessions_away == 1).await;

        // Less than what its back-off leaves of the two seconds.
        sleep(Duration::from_millis(200)).await;
        let receipt = origin.push(&Target::user("ann"), "meanwhile");
        until("it is told", || receipt.routing() == 0).await;
        assert_eq!(receipt.outcomes().targets(), 1, "{receipt:?}");
        ann.wire.admit();
        assert_eq!(next(&mut ann).await, "meanwhile");

        let report = draining.await.expect("no panic");
        let counted = (report.sessions_handed_over, report.sessions_parked, report.sessions_left);
        assert_eq!(counted, (1, 0, 0), "{report:?}");
        let outcomes = receipt.handled().await;
        assert_eq!((outcomes.targets(), outcomes.at(Stage::Handled)), (1, 1), "{receipt:?}");
        assert!(receipt.unreached().is_empty(), "{receipt:?}");
    });
}

/// Who does not come in time is parked, and the node stops long before its deadline. One that was away before is not waited
/// for, and where there is no other node nobody is.
#[test]
fn nobody_is_waited_for_in_vain() {
    for (is_away, is_alone, longest) in [(false, false, 3), (true, false, 1), (false, true, 1)] {
        testing::run(async {
            let broker = MemoryBroker::new();
            let one = join(&broker).await;
            let other = if is_alone { None } else { Some(join(&broker).await) };
            until("they know each other", || one.server().members().len() == 1 + usize::from(other.is_some())).await;
            let ann = one.client("ann").await;
            sleep(Duration::from_secs(1)).await;
            if is_away {
                one.loses(&ann).await;
            }
            let began = Instant::now();
            let report = drain(&one, &ann).await.expect("no panic");
            assert_eq!((report.sessions_parked, report.sessions_left), (1, 0), "{report:?}");
            let took = began.elapsed();
            let waited = !is_away && !is_alone;
            assert!(took < Duration::from_secs(longest) && waited == (Duration::from_secs(2) <= took), "{took:?}");
        });
    }
}
