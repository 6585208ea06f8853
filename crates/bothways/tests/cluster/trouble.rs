//! Pushes to clients of other nodes, while something goes wrong: a receipt says what is so, and ends.

use std::time::Duration;

use bothways::{
    Stage, Target,
    cluster::{NodeId, memory::MemoryBroker},
    session::{Unreached, UnreachedWhy},
    testing,
};
use tokio::time::{Instant, sleep};

use crate::support::{Node, join_with, next, nodes, nothing, until};

/// Without mail, the sessions here get a push, and the others count as unreached at once.
#[test]
fn without_mail_the_others_are_unreached_at_once() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let (mut here, mut there) = (one.client("ann").await, other.client("ann").await);
        broker.faults().mail_up(false);
        let receipt = one.push(&Target::user("ann"), "no mail");
        assert_eq!(next(&mut here).await, "no mail");
        let unreached = receipt.unreached();
        assert_eq!((unreached[0].node, unreached[0].why), (other.id, UnreachedWhy::EngineDown));
        assert!(!unreached[0].maybe && receipt.is_partial() && !receipt.is_no_route());
        assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
        nothing(&mut there).await;
        broker.faults().mail_up(true);
        let receipt = one.push(&Target::user("ann"), "mail again");
        assert_eq!((next(&mut here).await, next(&mut there).await), ("mail again".into(), "mail again".into()));
        assert_eq!(receipt.handled().await.at(Stage::Handled), 2);
    });
}

/// The register stands still for nine seconds, as while it elects a leader: pushes do not notice.
#[test]
fn the_register_may_stand_still() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let mut ann = other.client("ann").await;
        broker.faults().register_up(false);
        for number in 0..9 {
            let receipt = one.push(&Target::user("ann"), &number.to_string());
            assert_eq!(next(&mut ann).await, number.to_string());
            assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
            sleep(Duration::from_secs(1)).await;
        }
        broker.faults().register_up(true);
        sleep(Duration::from_secs(30)).await;
        assert_eq!(one.server().nodes(), Some((one.id, vec![other.id])), "nobody was judged");
    });
}

/// R17. Mail is lost, answers are lost, and batches come twice: each push is handled once, and its receipt says so.
#[test]
fn lost_and_doubled_mail_is_made_up_for() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let mut ann = other.client("ann").await;
        for (number, fault) in ["lost", "answer lost", "twice", "states lost"].into_iter().enumerate() {
            match fault {
                "lost" => broker.faults().lose_mail(1),
                "answer lost" => broker.faults().lose_answers(1),
                "twice" => broker.faults().repeat_mail(4),
                _ => {}
            }
            let receipt = one.push(&Target::user("ann"), fault);
            if fault == "states lost" {
                receipt.received().await;
                broker.faults().lose_mail(2);
            }
            assert_eq!(next(&mut ann).await, fault, "{number}");
            assert_eq!(receipt.handled().await.at(Stage::Handled), 1, "{fault}");
            assert!(!receipt.is_partial(), "{fault}");
        }
        nothing(&mut ann).await;
    });
}

/// A whole batch is given up: meanwhile the receipt says that it may have come, and then what is so.
#[test]
fn what_may_have_come_is_told_when_the_mail_is_back() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let mut ann = other.client("ann").await;

        // It comes, and no answer does. Its client is away: the other node has nothing more to say.
        other.loses(&ann).await;
        broker.faults().lose_answers(100);
        let receipt = one.push(&Target::user("ann"), "came");
        until("it is doubtful", || receipt.is_partial()).await;
        let unreached = receipt.unreached()[0];
        assert_eq!((unreached.node, unreached.maybe, receipt.routing()), (other.id, true, 1));
        broker.faults().lose_answers(0);
        until("it is known", || receipt.routing() == 0).await;
        assert_eq!(receipt.outcomes().at(Stage::Queued), 1);
        ann.wire.admit();
        assert_eq!(next(&mut ann).await, "came");
        assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
        assert!(!receipt.is_partial(), "{receipt:?}");

        // It does not come.
        broker.faults().lose_mail(100);
        let receipt = one.push(&Target::user("ann"), "did not come");
        until("it is doubtful", || receipt.is_partial()).await;
        assert!(receipt.unreached()[0].maybe);
        broker.faults().lose_mail(0);
        let outcomes = receipt.handled().await;
        assert_eq!((outcomes.targets(), receipt.routing()), (0, 0));
        assert!(!receipt.unreached()[0].maybe && receipt.is_partial() && !receipt.is_no_route());
        nothing(&mut ann).await;
    });
}

/// A node that is stopped for a while gets what waited, once, and the receipt follows. Its lease outlives that.
#[test]
fn a_node_that_was_stopped_goes_on() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let mut ann = other.client("ann").await;
        broker.faults().pause(other.id, true);
        let receipts: Vec<_> = (0..3).map(|number| one.push(&Target::user("ann"), &number.to_string())).collect();
        until("all are doubtful", || receipts.iter().all(|receipt| receipt.is_partial())).await;
        broker.faults().pause(other.id, false);
        let mut handled = 0;
        for receipt in &receipts {
            let outcomes = tokio::select! {
                outcomes = receipt.handled() => outcomes,
                () = async { loop { next(&mut ann).await; } } => unreachable!(),
            };
            handled += outcomes.at(Stage::Handled);
            assert!(outcomes.targets() == 1 || (!receipt.unreached()[0].maybe), "{receipt:?}");
        }
        assert!(0 < handled, "the first batch was taken");
    });
}

/// R14, R20. A node dies: what is on its way is unreached, what it had is unknown when its lease has ended, and not before.
#[test]
fn a_node_that_dies_takes_with_it_what_nobody_can_know() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other, third] = nodes(&broker).await;
        let _ann = other.client("ann").await;
        let mut bob = third.client("bob").await;
        let taken = one.push(&Target::user("ann"), "received, not handled");
        assert_eq!(taken.received().await.at(Stage::Received), 1);

        // Its mail ends, and its lease is not renewed any more.
        let died = Instant::now();
        broker.faults().cut(other.id, true);
        let late = one.push(&Target::users(["ann", "bob"]), "late");
        assert_eq!(next(&mut bob).await, "late");
        let outcomes = late.handled().await;
        assert!(died.elapsed() < Duration::from_secs(2), "{:?}", died.elapsed());
        assert_eq!((outcomes.targets(), outcomes.at(Stage::Handled)), (1, 1));
        let unreached = late.unreached();
        assert_eq!((unreached.len(), unreached[0].node, unreached[0].why), (1, other.id, UnreachedWhy::NodeLost));
        assert!(!unreached[0].maybe);
        assert_eq!(taken.outcomes().at(Stage::Received), 1, "no verdict yet");

        assert_eq!(taken.handled().await.at(Stage::Unknown), 1);
        let took = died.elapsed();
        assert!(Duration::from_secs(13) < took && took < Duration::from_secs(18), "{took:?}");
        assert_eq!(one.server().nodes(), Some((one.id, vec![third.id])));

        // It comes back as another node.
        broker.faults().cut(other.id, false);
        until("it is back", || one.server().nodes().is_some_and(|(_, others)| others.len() == 2)).await;
        assert!(other.server().nodes().is_some_and(|(me, _)| me != other.id));
        let receipt = one.push(&Target::user("ann"), "again");
        assert_eq!(receipt.received().await.at(Stage::Received), 1);
    });
}

/// R11. All leases end in one moment while all live: each begins another life, and pushes go on.
#[test]
fn all_leases_may_end_while_all_live() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let mut ann = other.client("ann").await;
        broker.faults().end_all_leases();
        until("both are back", || {
            let back =
                |node: &Node| node.server().nodes().is_some_and(|(me, others)| me != node.id && others.len() == 1);
            back(&one) && back(&other)
        })
        .await;
        let receipt = one.push(&Target::user("ann"), "on we go");
        assert_eq!(next(&mut ann).await, "on we go");
        assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
        assert!(!receipt.is_partial());
    });
}

/// A node whose lease has ended and that cannot take another one says that it reaches nobody else.
#[test]
fn a_node_without_a_lease_says_that_it_reaches_nobody() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let mut ann = one.client("ann").await;
        // Without mail it cannot begin another life.
        broker.faults().mail_up(false);
        broker.faults().end_all_leases();
        until("it is no member", || one.server().nodes().is_none()).await;
        let receipt = one.push(&Target::user("ann"), "alone");
        assert_eq!(next(&mut ann).await, "alone");
        let outcomes = receipt.handled().await;
        assert_eq!(outcomes.at(Stage::Handled), 1);
        let unreached = receipt.unreached();
        assert_eq!((unreached[0].node, unreached[0].why), (other.id, UnreachedWhy::Left));
        assert!(receipt.is_partial() && !receipt.is_no_route());
        broker.faults().mail_up(true);
        until("it is back", || one.server().nodes().is_some_and(|(_, others)| others.len() == 1)).await;
        let mut bob = other.client("bob").await;
        let receipt = one.push(&Target::user("bob"), "together");
        assert_eq!(next(&mut bob).await, "together");
        assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
    });
}

/// A server that is dropped without a shutdown leaves nothing behind: its lease runs out.
#[test]
fn a_server_that_is_dropped_runs_out() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        drop(other);
        until("one is alone", || one.server().nodes() == Some((one.id, vec![]))).await;
        // It is buried within a second.
        sleep(Duration::from_secs(2)).await;
        let receipt = one.push(&Target::everyone(), "x");
        assert_eq!((receipt.routing(), receipt.outcomes().targets()), (0, 0));
        assert!(receipt.is_partial(), "it may only be cut off");
        sleep(Duration::from_secs(120)).await;
        assert!(one.push(&Target::everyone(), "y").is_no_route());
    });
}

/// A node whose lease has ended may live, and have all its clients: until it is a member again, and for 30 s at most,
/// pushes and questions name it as not reached.
#[test]
fn a_node_that_may_still_live_is_unreached() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let mut ann = other.client("ann").await;
        let is_alone = || one.server().nodes().is_some_and(|(_, others)| others.is_empty());

        broker.faults().cut(other.id, true);
        until("nobody counts it", is_alone).await;
        sleep(Duration::from_secs(2)).await;
        let receipt = one.push(&Target::user("ann"), "while it is away");
        assert_eq!((receipt.routing(), receipt.outcomes().targets(), receipt.is_no_route()), (0, 0, false));
        let unreached = receipt.unreached();
        assert_eq!((unreached.len(), unreached[0].node, unreached[0].why), (1, other.id, UnreachedWhy::NodeLost));
        assert!(!unreached[0].maybe);
        let explained = one.server().explain_everywhere(&Target::user("ann")).await.expect("no topic");
        assert_eq!(explained.silent, [(other.id, UnreachedWhy::NodeLost)]);

        broker.faults().cut(other.id, false);
        until("it is back", || !is_alone()).await;
        let receipt = one.push(&Target::user("ann"), "now it is back");
        assert_eq!(next(&mut ann).await, "now it is back");
        assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
        assert!(!receipt.is_partial());

        // This node loses its lease too, and is back before the other one, which is cut off.
        let (other_id, _) = other.server().nodes().expect("it is a member");
        broker.faults().cut(other_id, true);
        broker.faults().end_all_leases();
        until("it is back", || one.server().nodes().is_some_and(|(me, _)| me != one.id)).await;
        let receipt = one.push(&Target::user("ann"), "nobody else is back");
        assert_eq!((receipt.unreached()[0].node, receipt.unreached()[0].why), (other_id, UnreachedWhy::NodeLost));

        sleep(Duration::from_secs(29)).await;
        assert!(one.push(&Target::user("ann"), "still").is_partial());
        sleep(Duration::from_secs(1)).await;
        assert!(one.push(&Target::user("ann"), "not any more").is_no_route());
        nothing(&mut ann).await;
    });
}

/// Of a node that has left everybody knows that nothing of it is there.
#[test]
fn a_node_that_has_left_is_not_unreached() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        other.server().shutdown(Duration::from_secs(1)).await;
        until("one is alone", || one.server().nodes() == Some((one.id, vec![]))).await;
        sleep(Duration::from_secs(2)).await;
        let receipt = one.push(&Target::everyone(), "x");
        assert!(receipt.is_no_route() && !receipt.is_partial(), "{receipt:?}");
    });
}

/// While it leaves, each push is told that by its name, and nothing stays in doubt; behind it no push names it.
#[test]
fn a_node_that_leaves_is_never_lost() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other, third] = nodes(&broker).await;
        let server = other.server().clone();
        let stopping = tokio::spawn(async move { server.shutdown(Duration::from_secs(1)).await });
        let mut receipts = Vec::new();
        while receipts.len() < 3000 {
            receipts.push((stopping.is_finished(), one.push(&Target::everyone(), "x")));
            sleep(Duration::from_millis(1)).await;
        }
        assert!(stopping.is_finished(), "it has stopped meanwhile");
        assert_eq!(one.server().nodes(), Some((one.id, vec![third.id])));
        for (number, (is_after, receipt)) in receipts.iter().enumerate() {
            receipt.handled().await;
            for unreached in receipt.unreached() {
                let Unreached { node, why, maybe, .. } = unreached;
                assert_eq!((node, why, maybe), (other.id, UnreachedWhy::Left, false), "push {number}");
                assert!(!is_after, "push {number}: it was stopped");
            }
        }
    });
}

/// One more node, which clients reach at this address.
async fn join_at(broker: &MemoryBroker, address: &str) -> Node {
    join_with(broker, |cluster| cluster.address(address)).await
}

/// Where a node died another one runs, at its address: its sessions are nowhere any more.
#[test]
fn a_node_in_the_place_of_another_one_ends_the_doubt() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one] = nodes(&broker).await;
        let other = join_at(&broker, "tcp@10.0.0.7:8972").await;
        broker.faults().kill(other.id);
        until("one is alone", || one.server().nodes() == Some((one.id, vec![]))).await;
        sleep(Duration::from_secs(2)).await;
        assert!(one.push(&Target::user("ann"), "x").is_partial());
        let _elsewhere = join_at(&broker, "tcp@10.0.0.8:8972").await;
        assert!(one.push(&Target::user("ann"), "x").is_partial());
        let _there = join_at(&broker, "tcp@10.0.0.7:8972").await;
        let receipt = one.push(&Target::user("ann"), "x");
        receipt.handled().await;
        assert!(receipt.is_no_route(), "{receipt:?}");
    });
}

/// The same where it has joined before the lease of the dead one has ended.
#[test]
fn a_node_that_was_replaced_at_once_is_not_named() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one] = nodes(&broker).await;
        let other = join_at(&broker, "tcp@10.0.0.7:8972").await;
        broker.faults().kill(other.id);
        let there = join_at(&broker, "tcp@10.0.0.7:8972").await;
        let knows = |of: NodeId| one.server().nodes().is_some_and(|(_, others)| others.contains(&of));
        until("the lease of the dead one lives", || knows(there.id) && knows(other.id)).await;
        until("it has ended", || !knows(other.id)).await;
        sleep(Duration::from_secs(2)).await;
        let receipt = one.push(&Target::user("ann"), "x");
        receipt.handled().await;
        assert!(receipt.is_no_route(), "{receipt:?}");
    });
}
