//! Nodes that stop: their sessions go on at others, or wait in the store.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bothways::{Stage, Target, cluster::memory::MemoryBroker, testing};
use tokio::time::sleep;

use crate::{
    support::{Node, join, join_with, next, nodes, nothing, until},
    ways::{ann_at, comes_to, goes_to, is_there, session_of, settle},
};

/// A client that is away when its node stops finds its session in the store, from any node.
#[test]
fn a_session_waits_in_the_store_when_its_node_has_stopped() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let mut ann = one.client("ann/phone").await;
        let id = session_of(one.server(), "ann").expect("she is there");
        settle().await;
        one.loses(&ann).await;
        for number in 0..20 {
            one.push(&Target::user("ann"), &format!("{number}"));
        }
        let far = other.push(&Target::user("ann"), "far");
        until("it is told", || far.routing() == 0).await;
        let report = one.server().drain(Duration::from_secs(5), 100).await;
        assert_eq!(
            (report.sessions_parked, report.sessions_handed_over, report.sessions_left),
            (1, 0, 0),
            "{report:?}"
        );
        let waits = tokio::time::timeout(Duration::from_secs(5), far.handled()).await;
        assert!(waits.is_err(), "it waits with her session: {far:?}");
        comes_to(&ann, &other, id).await;
        for number in 0..20 {
            assert_eq!(next(&mut ann).await, format!("{number}"));
        }
        assert_eq!(next(&mut ann).await, "far");
        assert_eq!(far.handled().await.at(Stage::Handled), 1, "{far:?}");
        let session = other.server().sessions(&Target::session(id)).expect("no topic").remove(0);
        assert_eq!(session.label("device").as_deref(), Some("phone"));
        let receipt = other.push(&Target::user("ann"), "later");
        assert_eq!(next(&mut ann).await, "later");
        assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
        nothing(&mut ann).await;
    });
}

/// A session is parked while its record is renewed, which comes to the register after that, or before it without anybody's
/// knowledge: it is in the store, and goes on from there.
#[test]
fn a_session_is_parked_while_its_record_is_renewed() {
    /// After how long a record is renewed.
    const RENEW_AFTER: Duration = Duration::from_secs(1800);
    for renewal in ["late", "unknown", "unknown and not done"] {
        testing::run(async {
            let broker = MemoryBroker::new();
            let [one, other] = nodes(&broker).await;
            let (mut ann, id) = ann_at(&one).await;
            sleep(RENEW_AFTER - Duration::from_secs(1)).await;
            one.loses(&ann).await;
            one.push(&Target::user("ann"), "a letter");
            let faults = broker.faults();
            match renewal {
                "late" => faults.claims_late(1, Duration::from_secs(3)),
                _ => {
                    faults.claims_unknown(1, renewal == "unknown");
                    faults.reads_are_old(true);
                }
            }
            sleep(Duration::from_secs(1)).await;
            faults.reads_are_old(false);
            let report = one.server().drain(Duration::from_secs(5), 100).await;
            let counted = (report.sessions_parked, report.sessions_handed_over, report.sessions_left);
            assert_eq!(counted, (1, 0, 0), "{renewal}: {report:?}");

            sleep(Duration::from_secs(5)).await;
            comes_to(&ann, &other, id).await;
            assert_eq!(next(&mut ann).await, "a letter", "{renewal}");
            nothing(&mut ann).await;
        });
    }
}

/// What has no room in the store, or finds no store, ends with its server, and is counted.
#[test]
fn what_has_no_room_is_left() {
    testing::run(async {
        for (bytes, up) in [(0, true), (1 << 20, false)] {
            let broker = MemoryBroker::new();
            let one = join_with(&broker, |cluster| cluster.park_bytes_max(bytes)).await;
            let ann = one.client("ann").await;
            settle().await;
            one.loses(&ann).await;
            let receipt = one.push(&Target::user("ann"), "a letter");
            broker.faults().register_up(up);
            let report = one.server().drain(Duration::from_secs(5), 100).await;
            assert_eq!((report.sessions_parked, report.sessions_left), (0, 1), "{report:?}");
            assert_eq!(receipt.handled().await.dropped(), 1);
        }
    });
}

/// Three nodes are replaced one after another, while pushes go on and clients come to those that are left: each push is
/// handled once, and its receipt says so, wherever the sessions went meanwhile.
#[test]
fn a_rolling_restart_loses_nothing() {
    const CLIENTS: usize = 9;
    testing::run(async {
        let broker = MemoryBroker::new();
        let mut fleet: Vec<Node> = nodes::<3>(&broker).await.into();
        let origin = join(&broker).await;
        let knows_all = || origin.server().nodes().is_some_and(|(_, others)| others.len() == 3);
        until("it knows the others", knows_all).await;
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            clients.push((number % 3, fleet[number % 3].client(&format!("user{number}")).await));
        }
        settle().await;
        let mut receipts: Vec<(usize, bothways::Receipt)> = Vec::new();
        let push = |receipts: &mut Vec<(usize, bothways::Receipt)>| {
            for user in 0..CLIENTS {
                let number = receipts.len();
                receipts.push((user, origin.push(&Target::user(format!("user{user}")), &format!("{number}"))));
            }
        };
        for place in 0..3 {
            push(&mut receipts);
            let new = join(&broker).await;
            until("it is known", || origin.server().nodes().is_some_and(|(_, others)| others.contains(&new.id))).await;
            let old = std::mem::replace(&mut fleet[place], new);
            for (number, (at, client)) in clients.iter_mut().enumerate() {
                if *at == place {
                    *at = (place + 1 + number % 2) % 3;
                    client.wire.lead_to(fleet[*at].network.address()).expect("an address");
                }
            }
            let server = old.server().clone();
            let draining = tokio::spawn(async move { server.drain(Duration::from_secs(10), 50).await });
            while !draining.is_finished() {
                push(&mut receipts);
                tokio::time::sleep(Duration::from_millis(40)).await;
            }
            let report = draining.await.expect("no panic");
            assert_eq!(report.sessions_left, 0, "{report:?}");
            for (number, (at, _)) in clients.iter().enumerate() {
                let user = format!("user{number}");
                let node = &fleet[*at];
                until("all are connected", || {
                    let found = node.server().sessions(&Target::user(&user)).expect("no topic");
                    found.first().is_some_and(|session| session.connection().is_some())
                })
                .await;
            }
            push(&mut receipts);
        }

        let mut came: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for (user, (_, client)) in clients.iter_mut().enumerate() {
            while let Ok(text) = tokio::time::timeout(Duration::from_secs(20), next(client)).await {
                assert!(came.entry(user).or_default().insert(text.parse().expect("a number")), "{text} came twice");
            }
        }
        let mut sum = BTreeMap::new();
        for (number, (user, receipt)) in receipts.iter().enumerate() {
            let outcomes = receipt.handled().await;
            let has_come = came[user].contains(&number);
            let (handled, unknown) = (outcomes.at(Stage::Handled), outcomes.at(Stage::Unknown));
            assert!(handled <= 1 && (handled == 0 || has_come), "{number}: {receipt:?}");
            let is_missing_truly = outcomes.dropped() + unknown == outcomes.targets() || receipt.is_partial();
            assert!(has_come || (handled == 0 && is_missing_truly), "{number} is lost without a word: {receipt:?}");
            let kind = if handled == 1 {
                "handled"
            } else if has_come {
                "came, and unknown"
            } else {
                "told to be missing"
            };
            *sum.entry(kind).or_insert(0) += 1;
        }
        println!("{} pushes: {sum:?}", receipts.len());
        assert_eq!(sum.get("handled"), Some(&receipts.len()), "{sum:?}");
    });
}
