//! A client that comes to another living node has its session there, whole and once.

use bothways::{Class, Push, Stage, Target, cluster::memory::MemoryBroker, testing};

use crate::{
    support::{next, nodes, nothing, until},
    ways::{ann_at, goes_to, is_there, moves_to, session_of, settle},
};

/// What was pushed while the client was away, and what it had not handled, comes at the other node: in order, once; and
/// each receipt tells the truth, of this node and of a third one.
#[test]
fn a_session_goes_on_at_another_node() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other, third] = nodes(&broker).await;
        let mut ann = one.client("ann/phone").await;
        let id = session_of(one.server(), "ann").expect("she is there");
        settle().await;
        let held = one.push(&Target::user("ann"), "1");
        let first = ann.messages.next().await.expect("it is open");
        assert_eq!(held.received().await.at(Stage::Received), 1);

        one.loses(&ann).await;
        let here = one.push(&Target::user("ann"), "2");
        let afar = third.push(&Target::user("ann"), "3");
        until("the third has said so", || afar.routing() == 0).await;
        assert_eq!((here.outcomes().at(Stage::Queued), afar.outcomes().at(Stage::Queued)), (1, 1));

        moves_to(&ann, "ann", &other, id).await;
        drop(first);
        assert_eq!((next(&mut ann).await, next(&mut ann).await), ("2".to_owned(), "3".to_owned()));
        for receipt in [&held, &here, &afar] {
            let outcomes = receipt.handled().await;
            assert_eq!((outcomes.targets(), outcomes.at(Stage::Handled)), (1, 1), "{receipt:?}");
            assert!(!receipt.is_partial());
        }
        until("it is gone where it was", || session_of(one.server(), "ann").is_none()).await;
        let session = other.server().sessions(&Target::session(id)).expect("no topic").remove(0);
        assert_eq!(session.label("device").as_deref(), Some("phone"));
        nothing(&mut ann).await;

        for node in [&one, &other, &third] {
            let receipt = node.push(&Target::user("ann"), "later");
            assert_eq!(next(&mut ann).await, "later");
            assert_eq!(receipt.handled().await.targets(), 1, "{receipt:?}");
        }
        nothing(&mut ann).await;
    });
}

/// Two moves, and back again; each time with something owed.
#[test]
fn a_session_goes_from_node_to_node_and_back() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other, third] = nodes(&broker).await;
        let (mut ann, id) = ann_at(&one).await;
        let mut receipts = Vec::new();
        let mut at = &one;
        for (round, node) in [&other, &third, &one, &third, &other].into_iter().enumerate() {
            ann.wire.refuse();
            ann.wire.cut();
            until("it is away", || at.server().stats().sessions_away == 1).await;
            receipts.push(third.push(&Target::user("ann"), &format!("{round}")));
            receipts.push(one.push(&Target::everyone(), &format!("{round}!")));
            settle().await;
            moves_to(&ann, "ann", node, id).await;
            at = node;
            // Of two origins there is no order.
            let came = std::collections::BTreeSet::from([next(&mut ann).await, next(&mut ann).await]);
            assert_eq!(came, std::collections::BTreeSet::from([format!("{round}"), format!("{round}!")]));
        }
        for receipt in receipts {
            let outcomes = receipt.handled().await;
            assert_eq!((outcomes.targets(), outcomes.at(Stage::Handled)), (1, 1), "{receipt:?}");
        }
        nothing(&mut ann).await;
    });
}

/// Pushes of all nodes go on while the client moves: each is handled once.
#[test]
fn pushes_go_on_while_a_session_moves() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other, third] = nodes(&broker).await;
        let (mut ann, id) = ann_at(&one).await;
        let mut receipts = Vec::new();
        let mut expected = 0;
        for node in [&other, &third, &one, &other] {
            goes_to(&ann, node);
            loop {
                for from in [&one, &other, &third] {
                    receipts.push(from.push(&Target::user("ann"), &expected.to_string()));
                    expected += 1;
                }
                tokio::time::sleep(std::time::Duration::from_millis(7)).await;
                if is_there(node, id) {
                    break;
                }
            }
        }
        let mut seen = std::collections::BTreeSet::new();
        while seen.len() < expected {
            let Ok(text) = tokio::time::timeout(std::time::Duration::from_secs(60), next(&mut ann)).await else {
                let open: Vec<_> =
                    receipts.iter().enumerate().filter(|(at, _)| !seen.contains(&at.to_string())).collect();
                panic!("of {expected} these did not come: {open:?}");
            };
            assert!(seen.insert(text.clone()), "{text} came twice");
        }
        nothing(&mut ann).await;
        for receipt in receipts {
            let outcomes = receipt.handled().await;
            assert_eq!((outcomes.targets(), outcomes.at(Stage::Handled)), (1, 1), "{receipt:?}");
        }
    });
}

/// What a push says of itself goes along: its class, its key, its time to live.
#[test]
fn classes_keys_and_times_go_along() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let (mut ann, id) = ann_at(&one).await;
        one.loses(&ann).await;
        let push = |text: &str| Push::new("Mail", "New", text.to_owned());
        let send =
            |node: &crate::support::Node, push: &Push| node.server().push(&Target::user("ann"), push).expect("small");
        let old = send(&one, &push("old").class(Class::Latest("car".to_owned())));
        let new = send(&one, &push("new").class(Class::Latest("car".to_owned())));
        let short = send(&one, &push("short").time_to_live(std::time::Duration::from_secs(5)));
        let keyed = push("keyed").idempotency_key("k").expect("a key");
        let first = send(&one, &keyed);
        let fire = send(&one, &push("fire").class(Class::Fire));
        assert_eq!(fire.outcomes().dropped(), 1);
        tokio::time::sleep(std::time::Duration::from_secs(6)).await;
        moves_to(&ann, "ann", &other, id).await;
        assert_eq!((next(&mut ann).await, next(&mut ann).await), ("new".to_owned(), "keyed".to_owned()));
        let again = send(&other, &keyed);
        for (receipt, stage) in [
            (&old, Stage::Superseded),
            (&new, Stage::Handled),
            (&short, Stage::Expired),
            (&first, Stage::Handled),
            (&again, Stage::Duplicate),
        ] {
            let outcomes = receipt.handled().await;
            assert_eq!((outcomes.targets(), outcomes.at(stage)), (1, 1), "{receipt:?}");
        }
        nothing(&mut ann).await;
    });
}
