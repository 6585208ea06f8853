//! Nodes that stop: their sessions go on at others, or wait in the store.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bothways::{
    ConnectionEvent, ConnectionEvents, SessionLost, Stage, Target,
    cluster::{Cluster, memory::MemoryBroker},
    session::{Explanation, SessionId, SessionOptions, Standing, UnreachedWhy},
    testing,
};
use tokio::time::sleep;

use crate::{
    support::{Node, builder, join, join_as, join_with, know_each_other, next, nodes, nothing, until},
    ways::{ann_at, comes_to, goes_to, session_of, settle},
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

/// A session waits in the store for as long as its window is, also where that is longer than a record is kept which nobody
/// renews.
#[test]
fn a_session_waits_in_the_store_for_longer_than_an_hour() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let window = SessionOptions::new().resume_window(Duration::from_secs(3 * 3600));
        let join = || join_as(builder().sessions(window.clone()).build(), Cluster::new(broker.engine()));
        let nodes = [join().await, join().await];
        know_each_other(&nodes).await;
        let [one, other] = &nodes;
        let (mut ann, id) = ann_at(one).await;
        one.loses(&ann).await;
        one.push(&Target::user("ann"), "a letter");
        assert_eq!(one.server().drain(Duration::from_secs(5), 100).await.sessions_parked, 1);
        sleep(Duration::from_secs(2 * 3600)).await;
        comes_to(&ann, other, id).await;
        assert_eq!(next(&mut ann).await, "a letter");
    });
}

/// A session comes to a node that begins to stop while it is on its way: it is parked as the others are.
#[test]
fn a_session_that_is_on_its_way_to_a_node_that_stops_is_parked() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other, third] = nodes(&broker).await;
        let (mut ann, id) = ann_at(&one).await;
        one.loses(&ann).await;
        one.push(&Target::user("ann"), "a letter");
        broker.faults().claims_late(1, Duration::from_millis(300));
        goes_to(&ann, &other);
        let arrives = |told: &Explanation| matches!(told.standing, Standing::Arriving(_));
        until("she arrives", || other.server().explain(&Target::user("ann")).expect("no topic").iter().any(arrives))
            .await;
        settle().await;
        let report = other.server().drain(Duration::ZERO, 100).await;
        assert_eq!((report.sessions_parked, report.sessions_left), (1, 0), "{report:?}");
        comes_to(&ann, &third, id).await;
        assert_eq!(next(&mut ann).await, "a letter");
        nothing(&mut ann).await;
    });
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

/// Why this client has lost its session, which it hears.
pub(crate) async fn why_lost(events: &mut ConnectionEvents) -> SessionLost {
    let lost = async {
        loop {
            if let Some(ConnectionEvent::SessionLost { why, .. }) = events.next().await {
                break why;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), lost).await.expect("it hears of it")
}

/// A session that is named is kicked also where it waits in the store, and where its node has died: who comes for it hears
/// that nobody knows it. One that a living node has is kicked there, and no other session ends.
#[test]
fn a_kick_ends_a_session_that_is_at_no_node() {
    for dies in [false, true] {
        testing::run(async {
            let broker = MemoryBroker::new();
            let [one, other, third] = nodes(&broker).await;
            let (ann, id) = ann_at(&one).await;
            let mut events = ann.client.events();
            one.loses(&ann).await;
            if dies {
                broker.faults().kill(one.id);
                let is_alone = || other.server().nodes().is_some_and(|(_, others)| !others.contains(&one.id));
                until("it is gone", is_alone).await;
                // Until a node has buried it it may live.
                sleep(Duration::from_secs(3)).await;
            } else {
                assert_eq!(one.server().drain(Duration::from_secs(5), 100).await.sessions_parked, 1);
            }
            let stranger = Target::session(id).only_labelled("device", "another");
            let kicked = third.server().kick_everywhere(&stranger, "enough").await.expect("no topic");
            assert!(kicked.answers.iter().all(|(_, count)| *count == 0), "{kicked:?}");
            let kicked = third.server().kick_everywhere(&Target::session(id), "enough").await.expect("no topic");
            assert_eq!(kicked.answers.iter().map(|(_, count)| count).sum::<usize>(), 1, "{kicked:?}");
            assert_eq!(kicked.answers[0], (third.id, 1));
            let again = third.server().kick_everywhere(&Target::session(id), "enough").await.expect("no topic");
            assert!(again.answers.iter().all(|(_, count)| *count == 0), "{again:?}");

            goes_to(&ann, &other);
            let lost = why_lost(&mut events).await;
            assert_eq!(lost, SessionLost::Unknown, "{dies}");
        });
    }
}

/// Without the register nobody can tell whether a session waits in the store: the answer says so.
#[test]
fn a_kick_without_the_register_says_so() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let (ann, id) = ann_at(&one).await;
        one.loses(&ann).await;
        assert_eq!(one.server().drain(Duration::from_secs(5), 100).await.sessions_parked, 1);
        broker.faults().register_up(false);
        let kicked = other.server().kick_everywhere(&Target::session(id), "enough").await.expect("no topic");
        assert!(kicked.silent.contains(&(other.id, UnreachedWhy::EngineDown)), "{kicked:?}");
    });
}

/// A user is kicked while her session is on its way from one node to another: it ends, wherever it is by then, and her client
/// is told. A session that she begins afterwards stays.
#[test]
fn a_kick_ends_a_session_that_is_on_its_way() {
    for after in [0, 300, 600, 900, 1200] {
        testing::run(async {
            let broker = MemoryBroker::new();
            let [one, other, third] = nodes(&broker).await;
            let (ann, id) = ann_at(&one).await;
            let mut events = ann.client.events();
            one.loses(&ann).await;
            sleep(Duration::from_secs(5)).await;
            broker.faults().claims_late(1, Duration::from_millis(900));
            goes_to(&ann, &other);
            sleep(Duration::from_millis(after)).await;
            let kicked = third.server().kick_everywhere(&Target::user("ann"), "enough").await.expect("no topic");
            assert!(kicked.silent.is_empty(), "{kicked:?}");

            let lost = why_lost(&mut events).await;
            assert!(matches!(lost, SessionLost::Kicked | SessionLost::Unknown), "{after}: {lost:?}");
            // By then its image has come.
            sleep(Duration::from_secs(3)).await;
            for node in [&one, &other] {
                assert!(node.server().sessions(&Target::session(id)).expect("no topic").is_empty(), "{after}");
            }
            // She may be back by herself, with another one.
            let sessions_at = |node: &Node| -> BTreeSet<SessionId> {
                let found = node.server().sessions(&Target::user("ann")).expect("no topic");
                found.iter().map(bothways::Session::id).collect()
            };
            let before = sessions_at(&one);
            let again = one.client("ann").await;
            settle().await;
            let new = *sessions_at(&one).difference(&before).next().expect("it is there");
            comes_to(&again, &other, new).await;
            sleep(Duration::from_secs(5)).await;
            assert!(sessions_at(&other).contains(&new), "{after}");
        });
    }
}
