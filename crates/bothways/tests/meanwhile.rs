//! Sessions that move while something else happens at the same moment: the lease of the node that takes one in ends, or the
//! one that stops is asked. A binary of its own, as it needs features.

#[path = "cluster/support.rs"]
#[allow(dead_code, reason = "others use the rest")]
mod support;
#[path = "moves/ways.rs"]
#[allow(dead_code, reason = "others use the rest")]
mod ways;

use std::time::Duration;

use bothways::{Receipt, Stage, Target, cluster::memory::MemoryBroker, testing};
use tokio::time::{sleep, timeout};

use crate::{
    support::{Node, join_with, next, nodes, nothing, until},
    ways::{ann_at, comes_to, goes_to, is_there},
};

async fn all_know_each_other(all: &[&Node]) {
    let knows = |node: &&Node| node.server().nodes().is_some_and(|(_, others)| others.len() == all.len() - 1);
    until("all know each other", || all.iter().all(knows)).await;
}

/// How many targets a receipt has in the end, and of how many of those it is known, or said not to be.
async fn ends(receipt: &Receipt) -> (usize, usize) {
    let outcomes = timeout(Duration::from_secs(60), receipt.handled()).await;
    let outcomes = outcomes.unwrap_or_else(|_| panic!("it stays open: {receipt:?}"));
    (outcomes.targets(), outcomes.at(Stage::Handled) + outcomes.at(Stage::Unknown))
}

/// A node takes a session in, its former node does not hear of that, and then the lease of the new one ends: its next life
/// owes nobody a word of the pushes that came with the session. Their receipts end all the same.
#[test]
fn what_came_to_a_life_that_is_over_does_not_stay_open() {
    for after in 0..5 {
        testing::run(async {
            let broker = MemoryBroker::new();
            let [one, origin] = nodes(&broker).await;
            let other = join_with(&broker, |cluster| cluster.lease(Duration::from_secs(3))).await;
            all_know_each_other(&[&one, &origin, &other]).await;
            let (mut ann, id) = ann_at(&one).await;
            one.loses(&ann).await;
            let receipts = [one.push(&Target::user("ann"), "near"), origin.push(&Target::user("ann"), "far")];
            until("they are told", || receipts.iter().all(|receipt| receipt.routing() == 0)).await;

            let faults = broker.faults();
            faults.claims_late(1, Duration::from_millis(900));
            goes_to(&ann, &other);
            sleep(Duration::from_millis(600)).await;
            assert!(!is_there(&other, id), "its image is out");
            // That the session is there, and how its pushes stand.
            faults.lose_mail(2);
            until("it is there", || is_there(&other, id)).await;
            faults.register_up(false);
            sleep(Duration::from_millis(3500 + 200 * after)).await;
            faults.register_up(true);
            let has_begun_anew = || other.server().nodes().is_some_and(|(me, _)| me != other.id);
            until("it has begun another life", has_begun_anew).await;

            assert_eq!([next(&mut ann).await, next(&mut ann).await], ["near", "far"]);
            for receipt in &receipts {
                assert_eq!(ends(receipt).await, (1, 1), "{receipt:?}");
            }
            nothing(&mut ann).await;
        });
    }
}

/// The last words of a node that stops are still on their way when the origin asks it how the push stands, as it does every
/// ten seconds: the answer says no less than they do, and the receipt follows the session.
#[test]
fn a_node_that_has_said_its_last_words_answers_nothing_else() {
    for after in 0..40 {
        testing::run(async {
            let broker = MemoryBroker::new();
            let [one, origin, third] = nodes(&broker).await;
            let (mut ann, id) = ann_at(&one).await;
            one.loses(&ann).await;
            let receipt = origin.push(&Target::user("ann"), "a letter");
            until("it is told", || receipt.routing() == 0).await;
            sleep(Duration::from_millis(250 * after)).await;

            // What the origin asks goes out meanwhile.
            assert!(broker.faults().pause(origin.id, true));
            let server = one.server().clone();
            let draining = tokio::spawn(async move { server.drain(Duration::from_secs(5), 100).await });
            sleep(Duration::from_millis(400)).await;
            assert!(broker.faults().pause(origin.id, false));
            let report = draining.await.expect("no panic");
            assert_eq!(report.sessions_parked, 1, "{report:?}");

            comes_to(&ann, &third, id).await;
            assert_eq!(next(&mut ann).await, "a letter");
            let outcomes = timeout(Duration::from_secs(60), receipt.handled()).await.expect("it ends");
            assert_eq!((outcomes.targets(), outcomes.at(Stage::Handled)), (1, 1), "after {after}: {receipt:?}");
            nothing(&mut ann).await;
        });
    }
}
