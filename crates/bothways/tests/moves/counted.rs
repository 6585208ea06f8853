//! A client comes to a node that has just joined, and that not every other one knows of.

use std::time::Duration;

use bothways::{Stage, Target, cluster::memory::MemoryBroker, testing};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    support::{join, next, nodes, nothing, until},
    ways::{ann_at, comes_to, goes_to, is_there},
};

/// What is pushed by a node that does not know yet of the one to which a client goes reaches the client all the same: its
/// session goes there when all know of it, and not before.
#[test]
fn a_session_goes_to_a_node_that_all_know_of() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, origin] = nodes(&broker).await;
        let (mut ann, id) = ann_at(&one).await;
        assert!(broker.faults().blind(origin.id, true));
        let third = join(&broker).await;
        let knows = |of: &[_]| of.contains(&third.id);
        assert!(origin.server().nodes().is_some_and(|(_, others)| !knows(&others)), "it hears of nobody");
        until("the other one knows it", || one.server().nodes().is_some_and(|(_, others)| knows(&others))).await;

        one.loses(&ann).await;
        goes_to(&ann, &third);
        let mut receipts = Vec::new();
        for number in 0..20 {
            receipts.push(origin.push(&Target::user("ann"), &format!("{number}")));
            sleep(Duration::from_millis(200)).await;
            assert!(!is_there(&third, id), "it would miss what comes now");
        }
        // What is on its way to her node, and to no other one, is late.
        assert!(broker.faults().pause(one.id, true));
        receipts.push(origin.push(&Target::user("ann"), "20"));
        assert!(broker.faults().blind(origin.id, false));
        receipts.push(origin.push(&Target::user("ann"), "21"));
        sleep(Duration::from_millis(400)).await;
        assert!(broker.faults().pause(one.id, false));
        until("it is there", || is_there(&third, id)).await;
        receipts.push(origin.push(&Target::user("ann"), "22"));

        for number in 0..23 {
            assert_eq!(next(&mut ann).await, format!("{number}"));
        }
        for receipt in receipts {
            let outcomes = tokio::time::timeout(Duration::from_secs(300), receipt.handled()).await;
            let outcomes = outcomes.unwrap_or_else(|_| receipt.outcomes());
            assert_eq!((outcomes.targets(), outcomes.at(Stage::Handled)), (1, 1), "{receipt:?}");
        }
        nothing(&mut ann).await;
    });
}

/// A node that joins is known to all when it has joined, if they answer; one that does not delays it for two seconds, and one
/// under whose name nobody is for half a second.
#[test]
fn a_node_is_known_when_it_has_joined() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let began = Instant::now();
        let third = join(&broker).await;
        for node in [&one, &other] {
            assert!(node.server().nodes().is_some_and(|(_, others)| others.contains(&third.id)));
        }
        assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());

        broker.faults().kill(other.id);
        let began = Instant::now();
        let fourth = join(&broker).await;
        assert!(one.server().nodes().is_some_and(|(_, others)| others.contains(&fourth.id)));
        assert!((400..1000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());

        assert!(broker.faults().pause(one.id, true));
        let began = Instant::now();
        let _fifth = join(&broker).await;
        assert!((1900..2500).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    });
}

/// A node that was cut off until its lease had ended, and does not know it yet, takes no session in: nobody counts it before
/// its next life.
#[test]
fn a_session_goes_to_no_node_whose_lease_has_ended() {
    testing::run(async {
        let began = Instant::now();
        let broker = MemoryBroker::new();
        let [one, other, origin] = nodes(&broker).await;
        let (mut ann, id) = ann_at(&one).await;
        // Now it knows that all count it, in the life that is about to end.
        for node in [&other, &one] {
            comes_to(&ann, node, id).await;
        }
        assert!(broker.faults().cut(other.id, true));
        // It renews its lease each second, and so finds out 900 ms later.
        sleep_until(began + Duration::from_millis(20_100)).await;
        assert_eq!(origin.server().nodes().map(|(_, others)| others), Some(vec![one.id]));
        assert!(broker.faults().cut(other.id, false));
        goes_to(&ann, &other);
        let mut receipts = Vec::new();
        for number in 0..40 {
            let is_next_life = other.server().nodes().is_some_and(|(me, _)| me != other.id);
            assert!(is_next_life || !is_there(&other, id), "it would miss what comes now");
            receipts.push(origin.push(&Target::user("ann"), &format!("{number}")));
            sleep(Duration::from_millis(50)).await;
        }
        until("it is there", || is_there(&other, id)).await;
        for number in 0..40 {
            assert_eq!(next(&mut ann).await, format!("{number}"));
        }
        for receipt in receipts {
            let outcomes = receipt.handled().await;
            assert_eq!((outcomes.targets(), outcomes.at(Stage::Handled)), (1, 1), "{receipt:?}");
        }
        nothing(&mut ann).await;
    });
}
