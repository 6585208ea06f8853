//! Mailboxes of a cluster: they are in its engine, and each node reads for its sessions.

use std::{sync::Arc, time::Duration};

use bothways::{
    Server, Stage, Target,
    cluster::{Cluster, memory::MemoryBroker},
    testing::{self, Network},
};

use crate::support::{builder, client, letter, network, next, next_of, nothing_for, post, stored, until_letters};

async fn node(broker: &MemoryBroker) -> Network {
    let server: Server = builder().build();
    server.join(Cluster::new(broker.engine())).await.expect("the engine works");
    network(server).await
}

/// What is pushed at one node reaches the user at another one; and who comes to a third one has the rest there.
#[test]
fn a_letter_reaches_its_user_at_any_node() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let (one, other, third) = (node(&broker).await, node(&broker).await, node(&broker).await);
        let mut ann = client(&other, "ann", Some("phone")).await;
        stored(&one, "ann", "1").await;
        assert_eq!(next(&mut ann).await, "1");
        until_letters(&one, "ann", 0).await;
        ann.client.close();
        for text in ["2", "3"] {
            stored(&one, "ann", text).await;
        }
        let mut ann = client(&third, "ann", Some("phone")).await;
        assert_eq!(next_of(&mut ann, 2).await, ["2", "3"]);
        nothing_for(&mut ann).await;
        let mut again = client(&one, "ann", Some("phone")).await;
        nothing_for(&mut again).await;
    });
}

/// A durable push goes by the store, and asks no node who is there: it never says that nobody is.
#[test]
fn a_letter_is_no_search_for_sessions() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let (one, other) = (node(&broker).await, node(&broker).await);
        let mut ann = client(&other, "ann", None).await;
        let receipt = post(&one, "ann", "1");
        assert!(!receipt.is_no_route(), "it is not stored yet");
        receipt.stored().await.expect("there is room");
        assert_eq!(next(&mut ann).await, "1");
        assert_eq!((receipt.outcomes().targets(), receipt.is_no_route()), (0, false), "ann has it");

        broker.faults().register_up(false);
        for node in [&one, &other] {
            let receipt = post(node, "ann", "2");
            receipt.stored().await.expect_err("the store is out");
            assert_eq!((receipt.outcomes().targets(), receipt.is_no_route()), (0, false), "ann is there all the same");
        }
    });
}

/// A ring that was lost, because mail between nodes was out, passes nothing over: the first letter comes with the
/// second, and before it.
#[test]
fn a_lost_ring_loses_no_letter() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let (one, other) = (node(&broker).await, node(&broker).await);
        let mut ann = client(&other, "ann", None).await;
        let node_of_ann = other.server().nodes().expect("it is a member").0;
        assert!(broker.faults().cut(node_of_ann, true));
        stored(&one, "ann", "1").await;
        nothing_for(&mut ann).await;
        assert!(broker.faults().cut(node_of_ann, false));
        // A new epoch: all sessions look.
        assert_eq!(next(&mut ann).await, "1");
        stored(&one, "ann", "2").await;
        assert_eq!(next(&mut ann).await, "2");
        nothing_for(&mut ann).await;
    });
}

/// All nodes end: who comes to a new one gets what was stored before, in order.
#[test]
fn a_mailbox_outlives_all_nodes() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let one = node(&broker).await;
        let receipts: Vec<_> = (0..50).map(|number| post(&one, "ann", &number.to_string())).collect();
        for receipt in receipts {
            receipt.stored().await.expect("there is room");
        }
        drop(one);
        let another = node(&broker).await;
        let mut ann = client(&another, "ann", None).await;
        assert_eq!(next_of(&mut ann, 50).await, (0..50).map(|number| number.to_string()).collect::<Vec<_>>());
    });
}

/// The register is out when a push is made: an error to the caller, nothing sent. Reading goes on when it is back.
#[test]
fn a_register_that_is_out_is_said_to_the_caller() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let (one, other) = (node(&broker).await, node(&broker).await);
        let mut ann = client(&other, "ann", None).await;
        broker.faults().register_up(false);
        let receipt = one.server().push(&Target::user("ann"), &letter("lost")).expect("there is a store");
        assert!(receipt.stored().await.is_err());
        assert_eq!(receipt.handled().await.targets(), 0);
        broker.faults().register_up(true);
        let receipt = other.server().push(&Target::user("ann"), &letter("kept")).expect("there is a store");
        receipt.stored().await.expect("there is room");
        assert_eq!(next(&mut ann).await, "kept");
        assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
        nothing_for(&mut ann).await;
    });
}

/// Sessions of one user at several nodes each get their own copy, by the place of their device; a burst from two
/// nodes is complete at each.
#[test]
fn a_burst_is_complete_at_each_device() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let (one, other) = (Arc::new(node(&broker).await), node(&broker).await);
        let (mut phone, mut laptop) =
            (client(&one, "ann", Some("phone")).await, client(&other, "ann", Some("laptop")).await);
        let mut receipts = Vec::new();
        for number in 0..60 {
            let at = if number % 2 == 0 { &one } else { &other };
            receipts.push(post(at, "ann", &number.to_string()));
            tokio::time::sleep(Duration::from_millis(number % 3)).await;
        }
        for receipt in receipts {
            receipt.stored().await.expect("there is room");
        }
        let sorted = |mut texts: Vec<String>| {
            texts.sort_by_key(|text| text.parse::<u32>().expect("a number"));
            texts
        };
        let all: Vec<String> = (0..60).map(|number| number.to_string()).collect();
        let (at_phone, at_laptop) = (next_of(&mut phone, 60).await, next_of(&mut laptop, 60).await);
        assert_eq!(at_phone, at_laptop, "one order for all");
        assert_eq!(sorted(at_phone), all);
        for one in [&mut phone, &mut laptop] {
            nothing_for(one).await;
        }
        until_letters(&one, "ann", 0).await;
    });
}
