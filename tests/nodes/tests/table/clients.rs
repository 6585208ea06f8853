//! Clients that come to other nodes.

use std::time::Duration;

use bothways_brokers::Broker;
use bothways_nodes::{As, CallEnd, Proxy, Stored, To, until};

use crate::{CALL_MAX, Field, NEWS, ROOM, Row, assert_handled, came_in_order, connected, handled_once, user};

pub(crate) const ROWS: [&str; 3] =
    ["a client comes to another node", "its node drains", "two nodes claim a session at once"];

#[tokio::test(flavor = "multi_thread")]
async fn a_client_comes_to_another_node() {
    let Some(broker) = Broker::one() else { return };
    let row = Row::of(ROWS[0]);
    let Field { broker: _broker, origin, owner, other, way, ann } = &Field::over(broker).await;
    let ann_moves = async {
        ann.until("the call runs", |ann| ann.calls(7).0 == 1).await;
        origin.push(To::user("ann"), As::Tracked, 1, 20).await;
        origin.push(To::user("ann"), As::Durable, 101, 10).await;
        origin.publish(NEWS, 201, 10).await;
        until("some came", async || origin.receipt(20).await.at("received") == 1).await;
        way.lead_to([other.address()]);
        way.cut();
        origin.push(To::user("ann"), As::Tracked, 21, 20).await;
        origin.push(To::user("ann"), As::Durable, 111, 10).await;
        origin.publish(NEWS, 211, 10).await;
        until("she is there", async || connected(origin, "ann").await == [other.id()]).await;
        origin.push(To::user("ann"), As::Tracked, 41, 20).await;
        origin.push(To::user("ann"), As::Durable, 121, 10).await;
        origin.publish(NEWS, 221, 10).await;
        ann.go_on();
    };
    ann.hold();
    let (call, ()) = tokio::join!(origin.call(To::user("ann"), 7, CALL_MAX), ann_moves);

    row.cell("tracked push", async {
        handled_once(ann, 1..=60).await;
        assert_handled(&origin.receipts_over(1, 60).await);
    })
    .await;
    row.cell("Durable", async {
        handled_once(ann, 101..=130).await;
        let told = origin.receipts_over(101, 130).await;
        assert!(told.iter().all(|told| matches!(told.stored, Stored::In(1, _))), "{told:?}");
    })
    .await;
    row.cell("topic with history", async {
        came_in_order(ann, NEWS, (201..=230).collect()).await;
        assert!(ann.recovered(NEWS).iter().all(|recovered| *recovered));
    })
    .await;
    row.cell("call under way", async {
        assert_eq!((call, ann.calls(7)), (CallEnd::Reply(7), (1, 1, 0)));
    })
    .await;
    row.cell("presence", async {
        until("she is seen there", async || other.presence(ROOM).await == ["ann"]).await;
        until("she is gone here", async || owner.presence(ROOM).await.is_empty()).await;
    })
    .await;
    assert_eq!(ann.sessions_lost(), []);
    row.done(&["tracked push", "Durable", "topic with history", "call under way", "presence"]);
}

/// Ann is there, and is handed over; bob is away, and is parked.
#[tokio::test(flavor = "multi_thread")]
async fn its_node_drains() {
    let Some(broker) = Broker::one() else { return };
    let row = Row::of(ROWS[1]);
    let Field { broker: _broker, origin, owner, other, way, ann } = &Field::over(broker).await;
    let bobs_way = Proxy::to([owner.address()]).await;
    let bob = user(&bobs_way, "bob").await;
    bobs_way.cut_off();
    until("bob is away", async || connected(origin, "bob").await.is_empty()).await;
    for (name, first) in [("ann", 0), ("bob", 1000)] {
        origin.push(To::user(name), As::Tracked, first + 1, 20).await;
        origin.push(To::user(name), As::Durable, first + 101, 10).await;
    }
    origin.publish(NEWS, 201, 10).await;
    until("they are taken", async || origin.receipt(1020).await.targets() == 1).await;
    way.lead_to([other.address()]);

    let drains = async {
        ann.until("the call runs", |ann| ann.calls(7).0 == 1).await;
        let calls_end = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            ann.go_on();
        };
        let (report, ()) = tokio::join!(owner.drain(Duration::from_secs(10), 100), calls_end);
        report
    };
    ann.hold();
    let (call, report) = tokio::join!(origin.call(To::user("ann"), 7, CALL_MAX), drains);
    assert_eq!((report.handed_over, report.parked, report.left), (1, 1, 0), "{report:?}");

    row.cell("tracked push", async {
        handled_once(ann, 1..=20).await;
        assert_handled(&origin.receipts_over(1, 20).await);
    })
    .await;
    origin.push(To::user("bob"), As::Durable, 1111, 10).await;
    origin.publish(NEWS, 211, 10).await;
    bobs_way.lead_to([other.address()]);
    bobs_way.go_on();
    row.cell("tracked push", async {
        handled_once(&bob, 1001..=1020).await;
        // Who takes it out of the store says what becomes of it.
        assert_handled(&origin.receipts_over(1001, 1020).await);
    })
    .await;
    row.cell("Durable", async {
        handled_once(ann, 101..=110).await;
        handled_once(&bob, 1101..=1120).await;
    })
    .await;
    row.cell("topic with history", async {
        came_in_order(ann, NEWS, (201..=220).collect()).await;
        came_in_order(&bob, NEWS, (201..=220).collect()).await;
    })
    .await;
    row.cell("call under way", async {
        assert_eq!((call, ann.calls(7)), (CallEnd::Reply(7), (1, 1, 0)));
    })
    .await;
    row.cell("presence", async {
        // Its Goodbye has named both others.
        until("they are seen there", async || {
            let mut seen = [origin.presence(ROOM).await, other.presence(ROOM).await].concat();
            seen.sort();
            seen == ["ann", "bob"]
        })
        .await;
    })
    .await;
    assert_eq!((ann.sessions_lost(), bob.sessions_lost()), (vec![], vec![]));
    row.done(&["tracked push", "Durable", "topic with history", "call under way", "presence"]);
}

/// The Hello of a client comes to two nodes at the same time, again and again.
#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_claim_a_session_at_once() {
    let Some(broker) = Broker::one() else { return };
    let row = Row::of(ROWS[2]);
    let Field { broker: _broker, origin, owner, other, way, ann } = &Field::over(broker).await;
    row.cell("tracked push", async {
        let mut at = [owner, other, origin];
        for round in 0..8 {
            at.rotate_left(1);
            let back = ann.times_back();
            origin.push(To::user("ann"), As::Tracked, round * 10 + 1, 5).await;
            way.lead_to([at[0].address()]);
            way.double_to(at[1].address());
            way.cut();
            origin.push(To::user("ann"), As::Tracked, round * 10 + 6, 5).await;
            ann.until("she is back", |ann| back < ann.times_back()).await;
            until("one has her", async || connected(origin, "ann").await.len() == 1).await;
        }
        handled_once(ann, 1..=80).await;
        assert_handled(&origin.receipts_over(1, 80).await);
        assert_eq!(ann.sessions_lost(), []);
    })
    .await;
    row.done(&["tracked push"]);
}
