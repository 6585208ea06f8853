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
    tokio::spawn(live(one.lease(me, Bytes::new(), LEASE).await.expect("it works")));
    let dead: Vec<NodeId> = (0..4).map(|_| NodeId::random()).collect();
    for node in &dead {
        let lease = one.lease(*node, Bytes::new(), SHORT).await.expect("it works");
        for _ in 0..3 {
            lease.renew(Bytes::from_static(b"lives")).await.expect("it lives");
        }
    }
    let mut members = one.members();
    let alone = timeout(LONG, members.wait_for(|members| members.keys().eq([&me]))).await;
    drop(alone.expect("their leases end").expect("the engine is there"));

    broker.kill(0);
    let mut register = one.register_state();
    timeout(LONG, register.wait_for(|state| !state.is_up())).await.expect("it is gone").expect("the engine is there");
    broker.start(0);
    timeout(LONG, register.wait_for(|state| state.is_up())).await.expect("it is back").expect("the engine is there");

    let other = engine(&broker).await;
    let too = NodeId::random();
    tokio::spawn(live(other.lease(too, Bytes::new(), LEASE).await.expect("it works")));
    for engine in [&one, &other] {
        let mut members = engine.members();
        let both = timeout(LONG, members.wait_for(|members| members.contains_key(&me) && members.contains_key(&too)));
        drop(both.await.expect("they live").expect("the engine is there"));
        let again = timeout(LISTS, members.wait_for(|members| members.len() != 2)).await;
        assert!(again.is_err(), "{again:?}");
    }
    for node in &dead {
        assert_eq!(other.bury(*node, Revision(0)).await, Ok(()), "its lease is over");
    }
    assert!(other.bury(me, Revision(0)).await.is_err(), "it lives");
}
