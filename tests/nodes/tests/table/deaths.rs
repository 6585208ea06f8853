//! Nodes that are killed, and one that is stopped for longer than its lease.

use std::time::{Duration, Instant};

use bothways::SessionLost;
use bothways_brokers::Broker;
use bothways_nodes::{As, CallEnd, Node, Proxy, Stored, To, until};

use crate::{CALL_MAX, Field, LEASE, NEWS, ROOM, Row, came_in_order, connected, handled_once, user};

pub(crate) const ROWS: [&str; 3] =
    ["its node is killed", "the origin is killed", "its node is stopped for longer than its lease"];

/// A lease, what a verdict takes after it, and a busy machine.
const JUDGED_MAX: Duration = Duration::from_secs(25);

#[tokio::test(flavor = "multi_thread")]
async fn its_node_is_killed() {
    let Some(broker) = Broker::one() else { return };
    let row = Row::of(ROWS[0]);
    let mut field = Field::over(broker).await;
    field.ann.hold();
    let Field { origin, owner, other, way, ann, .. } = &mut field;
    let (origin, other, ann) = (&*origin, &*other, &*ann);
    let dead = owner.id().to_owned();

    let dies = async {
        ann.until("the call runs", |ann| ann.calls(7).0 == 1).await;
        origin.push(To::user("ann"), As::Durable, 101, 10).await;
        origin.publish(NEWS, 201, 10).await;
        origin.push(To::user("ann"), As::Tracked, 1, 10).await;
        until("they came", async || origin.receipt(10).await.at("received") == 1).await;
        let stored = origin.receipts_over(101, 110).await;
        assert!(stored.iter().all(|told| matches!(told.stored, Stored::In(1, _))), "{stored:?}");
        way.lead_to([other.address()]);
        owner.kill().await;
        Instant::now()
    };
    let (call, died) = tokio::join!(origin.call(To::user("ann"), 7, CALL_MAX), dies);
    row.cell("call under way", async {
        assert_eq!(call, CallEnd::Closed { written: true });
        assert!(died.elapsed() < Duration::from_secs(10), "{:?}", died.elapsed());
    })
    .await;

    row.cell("tracked push", async {
        origin.push(To::user("ann"), As::Tracked, 11, 10).await;
        for told in origin.receipts_over(11, 20).await {
            let [missed] = &told.unreached[..] else { panic!("{told:?}") };
            assert_eq!((&*missed.node, &*missed.why), (&*dead, "NodeLost"), "{told:?}");
        }
        assert!(died.elapsed() < LEASE, "that is known before its lease has ended");
        assert_eq!((ann.sessions_lost(), connected(other, "ann").await), (vec![], vec![]), "she is refused");
        for told in origin.receipts_over(1, 10).await {
            assert_eq!((told.targets(), told.at("unknown")), (1, 1), "{told:?}");
        }
        assert!(died.elapsed() < JUDGED_MAX, "{:?}", died.elapsed());
        until("she is there", async || connected(other, "ann").await == [other.id()]).await;
        assert_eq!(ann.sessions_lost(), [SessionLost::NodeLost]);
        until("nobody counts it", async || !origin.members().await.others.contains(&dead)).await;
        origin.push(To::user("ann"), As::Tracked, 21, 10).await;
    })
    .await;
    origin.push(To::user("ann"), As::Durable, 111, 10).await;
    origin.publish(NEWS, 211, 10).await;
    ann.go_on();
    row.cell("tracked push", async {
        handled_once(ann, 21..=30).await;
        let told = origin.receipts_over(21, 30).await;
        assert!(told.iter().all(|told| told.at("handled") == 1), "{told:?}");
        let mut missed = told.iter().flat_map(|told| &told.unreached);
        assert!(missed.all(|missed| missed.node == dead && missed.why == "NodeLost"), "{told:?}");
        assert!((1..=10).all(|number| ann.times(number) <= 1) && (11..=20).all(|number| ann.times(number) == 0));
    })
    .await;
    row.cell("Durable", handled_once(ann, 101..=120)).await;
    row.cell("topic with history", async {
        came_in_order(ann, NEWS, (201..=220).collect()).await;
        assert_eq!(ann.recovered(NEWS), [true]);
    })
    .await;
    row.cell("presence", async {
        until("she is seen there", async || other.presence(ROOM).await == ["ann"]).await;
        assert!(origin.presence(ROOM).await.is_empty());
    })
    .await;
    row.done(&["tracked push", "Durable", "topic with history", "call under way", "presence"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_origin_is_killed() {
    let Some(broker) = Broker::one() else { return };
    let row = Row::of(ROWS[1]);
    let mut field = Field::over(broker).await;
    let Field { origin, owner, other, ann, .. } = &mut field;
    let (owner, other, ann) = (&*owner, &*other, &*ann);
    ann.hold();
    let dies = async {
        ann.until("the call runs", |ann| ann.calls(7).0 == 1).await;
        origin.push(To::user("ann"), As::Tracked, 1, 10).await;
        origin.push(To::user("ann"), As::Durable, 101, 10).await;
        origin.publish(NEWS, 201, 10).await;
        until("they are taken", async || {
            let (tracked, others) =
                (origin.receipts(1, 10).await, [origin.receipts(101, 110).await, origin.receipts(201, 210).await]);
            let is_stored = others.concat().iter().all(|told| matches!(told.stored, Stored::In(1, _)));
            is_stored && tracked.iter().all(|told| told.at("received") == 1)
        })
        .await;
        // What is under way at this moment comes once or not at all.
        origin.push(To::user("ann"), As::Tracked, 11, 10).await;
        origin.push(To::user("ann"), As::Durable, 111, 10).await;
        origin.publish(NEWS, 211, 10).await;
    };
    tokio::select! {
        end = origin.call(To::user("ann"), 7, CALL_MAX) => panic!("it is held: {end:?}"),
        () = dies => {}
    }
    origin.kill().await;
    let died = Instant::now();

    row.cell("call under way", async {
        ann.until("the run is cancelled", |ann| ann.calls(7) == (1, 0, 1)).await;
        assert!(died.elapsed() < JUDGED_MAX, "{:?}", died.elapsed());
    })
    .await;
    ann.go_on();
    row.cell("tracked push", async {
        handled_once(ann, 1..=10).await;
        until("nobody is to be told", async || owner.stats().await.pushes_here == 0).await;
    })
    .await;
    row.cell("Durable", handled_once(ann, 101..=110)).await;
    row.cell("topic with history", async {
        other.publish(NEWS, 231, 1).await;
        ann.until("the last came", |ann| ann.of_topic(NEWS).contains(&231)).await;
        let came = ann.of_topic(NEWS);
        assert_eq!(came[..10], (201..=210).collect::<Vec<_>>());
        assert!(came.windows(2).all(|two| two[0] < two[1]), "in order, and once: {came:?}");
    })
    .await;
    other.push(To::user("ann"), As::Durable, 131, 1).await;
    row.cell("Durable", handled_once(ann, 131..=131)).await;
    assert!((11..=20).chain(111..=120).all(|number| ann.times(number) <= 1));
    row.done(&["tracked push", "Durable", "topic with history", "call under way"]);
}

/// Ann stays, with a connection on which nothing comes; bob goes to another node.
#[tokio::test(flavor = "multi_thread")]
async fn its_node_is_stopped_for_longer_than_its_lease() {
    let Some(broker) = Broker::one() else { return };
    let row = Row::of(ROWS[2]);
    let Field { broker: _broker, origin, owner, other, way: _way, ann } = &Field::over(broker).await;
    let bobs_way = Proxy::to([owner.address()]).await;
    let bob = user(&bobs_way, "bob").await;
    ann.hold();
    bob.hold();
    let was = owner.id().to_owned();

    let stops = async {
        ann.until("the call runs", |ann| ann.calls(7).0 == 1).await;
        for (name, first) in [("ann", 0), ("bob", 1000)] {
            origin.push(To::user(name), As::Tracked, first + 1, 10).await;
            origin.push(To::user(name), As::Durable, first + 101, 10).await;
        }
        origin.publish(NEWS, 201, 10).await;
        until("they came", async || {
            origin.receipt(10).await.at("received") == 1 && origin.receipt(1010).await.at("received") == 1
        })
        .await;
        origin.receipts_over(101, 110).await;
        origin.receipts_over(1101, 1110).await;
        owner.stop();
        bobs_way.lead_to([other.address()]);
        bobs_way.cut();
        origin.publish(NEWS, 211, 10).await;
    };
    let (call, ()) = tokio::join!(origin.call(To::user("ann"), 7, CALL_MAX), stops);
    row.cell("call under way", async { assert_eq!(call, CallEnd::Closed { written: true }) }).await;
    row.cell("tracked push", async {
        for (first, last) in [(1, 10), (1001, 1010)] {
            let told = origin.receipts_over(first, last).await;
            assert!(told.iter().all(|told| told.at("unknown") == 1), "{told:?}");
        }
        until("bob is at the other", async || connected(other, "bob").await == [other.id()]).await;
        assert_eq!(bob.sessions_lost(), [SessionLost::NodeLost]);
    })
    .await;

    owner.go_on();
    origin.push(To::user("ann"), As::Durable, 111, 10).await;
    origin.push(To::user("bob"), As::Durable, 1111, 10).await;
    origin.publish(NEWS, 221, 10).await;
    row.cell("tracked push", async {
        let mut now = None;
        until("it has another life", async || {
            now = owner.members().await.me.filter(|now| *now != was);
            now.is_some()
        })
        .await;
        let now = now.expect("it has one");
        until("bob is there no more", async || !at(owner, "bob").await.contains(&now)).await;
        until("all know of it", async || known(origin).await.contains(&now) && known(other).await.contains(&now)).await;
        origin.push(To::user("ann"), As::Tracked, 11, 10).await;
        origin.push(To::user("bob"), As::Tracked, 1011, 10).await;
        ann.go_on();
        bob.go_on();
        handled_once(ann, 1..=20).await;
        handled_once(&bob, 1011..=1020).await;
        assert!((1001..=1010).all(|number| bob.times(number) <= 1));
        assert_eq!(ann.sessions_lost(), [], "nobody has taken hers");
        for (first, last) in [(11, 20), (1011, 1020)] {
            let told = origin.receipts_over(first, last).await;
            assert!(told.iter().all(|told| told.targets() == 1 && told.at("handled") == 1), "{told:?}");
        }
    })
    .await;
    row.cell("Durable", async {
        handled_once(ann, 101..=120).await;
        handled_once(&bob, 1101..=1120).await;
    })
    .await;
    row.cell("topic with history", async {
        came_in_order(ann, NEWS, (201..=230).collect()).await;
        came_in_order(&bob, NEWS, (201..=230).collect()).await;
    })
    .await;
    row.done(&["tracked push", "Durable", "topic with history", "call under way"]);
}

/// The nodes that know a session of this user, whether its client is there or away.
async fn at(asked: &Node, name: &str) -> Vec<String> {
    let seen = asked.sessions(To::user(name)).await;
    let lives = seen.into_iter().filter(|seen| seen.told.standing != bothways::session::Standing::Ended);
    lives.map(|seen| seen.node).collect()
}

async fn known(node: &Node) -> Vec<String> {
    node.members().await.others
}
