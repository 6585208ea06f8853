//! Who is a member when a broker has started again, which may show entries whose time was over.

use std::{sync::Arc, time::Duration};

use bothways::cluster::{
    Engine, NodeId,
    engine::{Lease, Revision},
};
use bothways_brokers::Broker;
use bothways_nats::{NatsEngine, NatsOptions};
use bytes::Bytes;
use tokio::time::{Instant, sleep_until, timeout};

const LONG: Duration = Duration::from_secs(40);
/// Of the nodes.
const STREAM: &str = "bw_bothways_k";
/// Of those that live.
const LEASE: Duration = Duration::from_secs(15);
/// Of those that die.
const SHORT: Duration = Duration::from_secs(2);
/// Longer than several lists of members take.
const LISTS: Duration = Duration::from_secs(5);

async fn engine(broker: &Broker) -> Arc<NatsEngine> {
    NatsEngine::connect(NatsOptions::new(broker.addresses())).await.expect("the broker works")
}

/// Renews it each second, as a node does, for as long as this task runs.
async fn live(lease: Arc<dyn Lease>) {
    let mut next = Instant::now();
    loop {
        let _ = lease.renew(Bytes::from_static(b"lives")).await;
        next += Duration::from_secs(1);
        sleep_until(next).await;
    }
}

/// Nodes whose leases have ended are no members again, neither for those that were there nor for one that joins, and can
/// be buried.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_starts_again_brings_no_dead_node_back() {
    let Some(mut broker) = Broker::one() else { return };
    let one = engine(&broker).await;
    let me = NodeId::random();
    let mine = one.lease(me, Bytes::new(), LEASE).await.expect("it works");
    let mut theirs = Vec::new();
    for _ in 0..4 {
        let node = NodeId::random();
        theirs.push((node, one.lease(node, Bytes::new(), SHORT).await.expect("it works")));
    }
    // In turn, as nodes do: what the broker has removed lies between what it keeps.
    for _ in 0..4 {
        for (_, lease) in &theirs {
            mine.renew(Bytes::new()).await.expect("it lives");
            lease.renew(Bytes::from_static(b"lives")).await.expect("it lives");
        }
    }
    tokio::spawn(live(mine));
    let dead: Vec<NodeId> = theirs.into_iter().map(|(node, _)| node).collect();
    let mut members = one.members();
    let alone = timeout(LONG, members.wait_for(|members| members.keys().eq([&me]))).await;
    drop(alone.expect("their leases end").expect("the engine is there"));

    let (mut members, ended) = (one.members(), dead.clone());
    let again = tokio::spawn(async move {
        drop(members.wait_for(|members| ended.iter().any(|node| members.contains_key(node))).await);
    });
    broker.kill(0);
    let mut register = one.register_state();
    timeout(LONG, register.wait_for(|state| !state.is_up())).await.expect("it is gone").expect("the engine is there");
    broker.start(0);
    // The broker ends what it shows anew within a moment, or within two minutes: it is asked at once.
    let other = engine(&broker).await;
    let mut seen: Vec<NodeId> = other.members().borrow().keys().copied().collect();
    seen.retain(|node| *node != me);
    assert_eq!(seen, [], "they are dead");
    for node in &dead {
        assert_eq!(other.bury(*node, Revision(0)).await, Ok(()), "its lease is over");
    }
    timeout(LONG, register.wait_for(|state| state.is_up())).await.expect("it is back").expect("the engine is there");

    let too = NodeId::random();
    tokio::spawn(live(other.lease(too, Bytes::new(), LEASE).await.expect("it works")));
    for engine in [&one, &other] {
        let mut members = engine.members();
        let both = timeout(LONG, members.wait_for(|members| members.contains_key(&me) && members.contains_key(&too)));
        drop(both.await.expect("they live").expect("the engine is there"));
        let again = timeout(LISTS, members.wait_for(|members| members.len() != 2)).await;
        assert!(again.is_err(), "{again:?}");
    }
    assert!(!again.is_finished(), "one that was dead was a member again");
    assert!(other.bury(me, Revision(0)).await.is_err(), "it lives");
}

/// The broker goes on to show an entry whose time is over, as one may that has started again: it is no member, and can be
/// buried.
#[tokio::test(flavor = "multi_thread")]
async fn an_entry_whose_time_is_over_is_no_member() {
    let Some(broker) = Broker::one() else { return };
    let one = engine(&broker).await;
    let me = NodeId::random();
    tokio::spawn(live(one.lease(me, Bytes::new(), LEASE).await.expect("it works")));
    let client = async_nats::connect(&broker.addresses()[0]).await.expect("it listens");
    let info = client.request(format!("$JS.API.STREAM.INFO.{STREAM}"), Bytes::new()).await.expect("it is there");
    let info: serde_json::Value = serde_json::from_slice(&info.payload).expect("JSON");
    let subjects = info["config"]["subjects"][0].as_str().and_then(|subjects| subjects.strip_suffix('>'));
    let dead = NodeId::random();
    let subject = format!("{}{dead}", subjects.expect("those of nodes"));
    // The broker does not know it by this name, and keeps the entry.
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("nats-ttl", "3s");
    let living = Bytes::from_static(&[1, 0, 0, 0, 0, 0, 0, 0, 7]);
    client.request_with_headers(subject, headers, living).await.expect("it is stored");

    let mut members = one.members();
    let came = timeout(LONG, members.wait_for(|members| members.contains_key(&dead))).await;
    drop(came.expect("its time is not over").expect("the engine is there"));
    assert!(one.bury(dead, Revision(0)).await.is_err(), "its time is not over");
    let went = timeout(LONG, members.wait_for(|members| members.keys().eq([&me]))).await;
    drop(went.expect("its time is over").expect("the engine is there"));
    assert_eq!(one.bury(dead, Revision(0)).await, Ok(()), "its time is over");
}
