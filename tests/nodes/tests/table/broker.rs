//! Brokers that are killed, stopped, emptied, and out of reach.

use std::time::{Duration, Instant};

use bothways_brokers::Broker;
use bothways_nodes::{As, CallEnd, LONG, Node, Proxy, Stored, To, Told, User, lead_everything, until};

use tokio::time::sleep;

use crate::{
    CALL_MAX, Field, LEASE, NEWS, ROOM, Row, assert_handled, came_in_order, connected, handled_once, options, user,
};

pub(crate) const ROWS: [&str; 3] = [
    "the register is out: its leader is killed or stands still",
    "mail is out at a node",
    "the broker has lost its data",
];

/// Less than the register is out, and more than anything takes that does not wait for it.
const UNAFFECTED: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_of_the_register_is_killed() {
    without_the_leader(|broker| broker.kill(2), |broker| broker.start(2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_of_the_register_stands_still() {
    without_the_leader(|broker| broker.stop(2), |broker| broker.go_on(2)).await;
}

async fn without_the_leader(blow: impl Fn(&mut Broker), heal: impl Fn(&mut Broker)) {
    let Some(broker) = Broker::three() else { return };
    let row = Row::of(ROWS[0]);
    // No node is at the third server: its own mail would stand still too.
    let at = broker.addresses()[..2].to_vec();
    let mut field = Field::with(broker, &options(at)).await;
    let cat = User::connect(field.owner.address(), "cat").await;
    let way_of_bob = Proxy::to([field.owner.address()]).await;
    let bob = user(&way_of_bob, "bob").await;
    lead_everything(&field.broker, 2).await;
    let Field { broker, origin, owner, other, ann, .. } = &mut field;
    let (origin, owner, other, ann) = (&*origin, &*owner, &*other, &*ann);
    let lives = [origin.id(), owner.id(), other.id()];

    blow(broker);
    let began = Instant::now();
    way_of_bob.lead_to([other.address()]);
    way_of_bob.cut();
    origin.push(To::user("ann"), As::Durable, 1001, 20).await;
    origin.publish(NEWS, 2001, 20).await;

    row.cell("tracked push", async {
        for number in 1..=20 {
            let sent = Instant::now();
            origin.push(To::user("ann"), As::Tracked, number, 1).await;
            assert_handled(&[origin.receipt_over(number).await]);
            assert!(sent.elapsed() < UNAFFECTED, "{:?}", sent.elapsed());
            assert_eq!(ann.times(number), 1);
        }
    })
    .await;
    row.cell("call under way", async {
        for (node, number) in [(owner, 1), (origin, 2)] {
            let called = Instant::now();
            assert_eq!(node.call(To::user("cat"), number, CALL_MAX).await, CallEnd::Reply(number));
            assert!(called.elapsed() < UNAFFECTED, "{:?}", called.elapsed());
        }
        assert_eq!((cat.calls(1), cat.calls(2)), ((1, 1, 0), (1, 1, 0)));
    })
    .await;
    println!("pushes and calls had ended {:?} after the blow", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(4), "the register is out still: {:?}", began.elapsed());

    row.cell("tracked push", async {
        until("bob has moved", async || connected(origin, "bob").await == [other.id()]).await;
        println!("bob has moved {:?} after the blow", began.elapsed());
        assert_eq!(bob.sessions_lost(), []);
        origin.push(To::user("bob"), As::Tracked, 21, 10).await;
        handled_once(&bob, 21..=30).await;
    })
    .await;
    let ended = [origin.receipts_over(1001, 1020).await, origin.receipts_over(2001, 2020).await];
    println!("appends had ended {:?} after the blow", began.elapsed());
    heal(broker);
    // Behind these nothing earlier is under way.
    let last_letter =
        stored_at_last(origin, 1021, async |number| origin.push(To::user("ann"), As::Durable, number, 1).await);
    let last_message = stored_at_last(origin, 2021, async |number| origin.publish(NEWS, number, 1).await);
    let (letters, messages) = tokio::join!(last_letter, last_message);
    row.cell("Durable", async {
        handled_once(ann, letters.number..=letters.number).await;
        assert_as_told(&ended[0], |number| ann.times(number));
        assert_as_told(&letters.before, |number| ann.times(number));
    })
    .await;
    row.cell("topic with history", async {
        ann.until("the last came", |ann| ann.of_topic(NEWS).contains(&messages.number)).await;
        let came = ann.of_topic(NEWS);
        let times = |number| came.iter().filter(|came| **came == number).count();
        assert_as_told(&ended[1], times);
        assert_as_told(&messages.before, times);
    })
    .await;
    assert_eq!(lives, [origin, owner, other].map(Node::id), "nobody has begun another life");
    for node in [origin, owner, other] {
        assert_eq!(node.members().await.me.as_deref(), Some(node.id()), "nobody was judged");
    }
    row.done(&["tracked push", "Durable", "topic with history", "call under way"]);
}

/// One that was stored, and what was not before it.
struct StoredAtLast {
    number: u64,
    before: Vec<Told>,
}

/// How long an application waits before it makes again what was not stored.
const PAUSE: Duration = Duration::from_millis(200);

/// As an application does that is told that something is not stored: makes it again, under the next number, until it is. An
/// election may begin at any time on a machine with much to do.
async fn stored_at_last(origin: &Node, first: u64, make: impl AsyncFn(u64)) -> StoredAtLast {
    let (deadline, mut before) = (Instant::now() + LONG, Vec::new());
    for number in first.. {
        make(number).await;
        let told = origin.receipt_over(number).await;
        if matches!(told.stored, Stored::In(..)) {
            return StoredAtLast { number, before };
        }
        println!("not stored, and made again: {told:?}");
        assert!(Instant::now() < deadline, "nothing is stored within {LONG:?}: {told:?}");
        before.push(told);
        sleep(PAUSE).await;
    }
    unreachable!("numbers do not end")
}

/// What was stored came once; of what was not, or may be, nothing came twice.
fn assert_as_told(told: &[Told], times: impl Fn(u64) -> usize) {
    for told in told {
        match &told.stored {
            Stored::In(1, level) => assert_eq!((times(told.number), &**level), (1, "Replicated"), "{told:?}"),
            Stored::Not(_) => assert!(times(told.number) <= 1, "{told:?}"),
            other => panic!("{other:?}: {told:?}"),
        }
    }
}

/// The owner's way to the broker stands still, and is cut; both for less than its lease.
#[tokio::test(flavor = "multi_thread")]
async fn mail_is_out_at_a_node() {
    let Some(broker) = Broker::one() else { return };
    let row = Row::of(ROWS[1]);
    let to_broker = Proxy::to(broker.addresses()).await;
    let [origin] = Node::start_all(&options(broker.addresses())).await;
    let owner = Node::start(&options(vec![to_broker.broker_address()])).await;
    Node::know_each_other(&[&origin, &owner]).await;
    let (to_owner, to_origin) = (Proxy::to([owner.address()]).await, Proxy::to([origin.address()]).await);
    let (ann, bob) = (user(&to_owner, "ann").await, user(&to_origin, "bob").await);
    ann.client.subscribe("apart.1").await.expect("it is open");

    // What is on its way is neither lost nor doubled, and known in the end.
    let stopped = Instant::now();
    ann.hold();
    let stands_still = async {
        ann.until("the call runs", |ann| ann.calls(7).0 == 1).await;
        to_broker.stand_still();
        origin.push(To::user("ann"), As::Tracked, 1, 1).await;
        until("it may have come", async || {
            let told = origin.receipt(1).await;
            told.routing == 1 && told.unreached.iter().any(|missed| missed.maybe)
        })
        .await;
        println!("it may have come {:?} after mail stood still", stopped.elapsed());
    };
    let call = origin.call(To::user("ann"), 7, CALL_MAX);
    let (call, ()) = tokio::join!(call, stands_still);
    to_broker.go_on();
    assert!(stopped.elapsed() < LEASE, "its lease has not ended: {:?}", stopped.elapsed());
    row.cell("call under way", async { assert_eq!(call, CallEnd::Closed { written: true }) }).await;
    ann.go_on();
    row.cell("tracked push", async {
        for told in origin.receipts_over(1, 1).await {
            println!("what was on its way is settled {:?} after mail stood still: {told:?}", stopped.elapsed());
            let [handled, missed] = [told.at("handled"), told.unreached.len()];
            assert_eq!((handled + missed, told.unreached.iter().any(|missed| missed.maybe)), (1, false), "{told:?}");
            assert_eq!(ann.times(told.number), handled, "{told:?}");
        }
    })
    .await;
    Node::know_each_other(&[&origin, &owner]).await;

    let cut = Instant::now();
    to_broker.cut_off();
    // From here on it knows.
    owner.push(To::user("ann"), As::Durable, 100, 1).await;
    owner.receipt_over(100).await;
    let mut number = 2000;
    until("it knows", async || {
        number += 1;
        owner.push(To::user("bob"), As::Tracked, number, 1).await;
        owner.receipt(number).await.unreached.iter().any(|missed| missed.why == "EngineDown")
    })
    .await;
    row.cell("tracked push", async {
        owner.push(To::user("bob"), As::Tracked, 3001, 10).await;
        for told in owner.receipts(3001, 3010).await {
            assert!(told.is_over() && told.targets() == 0, "at once: {told:?}");
            assert!(told.unreached.len() == 1 && told.unreached[0].why == "EngineDown", "{told:?}");
        }
        owner.push(To::user("ann"), As::Tracked, 11, 10).await;
        origin.push(To::user("bob"), As::Tracked, 21, 10).await;
        handled_once(&ann, 11..=20).await;
        handled_once(&bob, 21..=30).await;
    })
    .await;
    row.cell("call under way", async {
        assert_eq!(owner.call(To::user("ann"), 8, CALL_MAX).await, CallEnd::Reply(8));
        assert!(matches!(owner.call(To::user("bob"), 9, CALL_MAX).await, CallEnd::NoClient(_)));
        assert_eq!((ann.calls(8), bob.calls(9)), ((1, 1, 0), (0, 0, 0)));
    })
    .await;
    row.cell("presence", async {
        assert_eq!((owner.presence(ROOM).await, origin.presence(ROOM).await), (vec!["ann".into()], vec!["bob".into()]));
    })
    .await;
    owner.push(To::user("bob"), As::Durable, 101, 5).await;
    owner.publish(NEWS, 201, 5).await;
    owner.publish("apart.1", 301, 5).await;
    origin.publish(NEWS, 211, 10).await;
    let (durable, news, apart) =
        (owner.receipts_over(101, 105), owner.receipts_over(201, 205), owner.receipts_over(301, 305));
    let (durable, news, apart) = tokio::join!(durable, news, apart);
    println!("appends have failed {:?} after the cut", cut.elapsed());
    for told in [&durable, &news, &apart].into_iter().flatten() {
        assert!(matches!(told.stored, Stored::Not(_)), "{told:?}");
    }
    row.cell("topic with history", came_in_order(&ann, "apart.1", (301..=305).collect())).await;
    to_broker.go_on();
    row.cell("Durable", async {
        owner.push(To::user("bob"), As::Durable, 111, 1).await;
        until("there is a store", async || owner.receipt(111).await.is_over()).await;
        assert!((101..=105).all(|number| bob.times(number) <= 1));
    })
    .await;
    row.cell("topic with history", async {
        ann.until("she has caught up", |ann| ann.of_topic(NEWS).contains(&220)).await;
        let came = ann.of_topic(NEWS);
        let later: Vec<u64> = came.iter().copied().filter(|number| 211 <= *number).collect();
        assert_eq!(later, (211..=220).collect::<Vec<_>>());
    })
    .await;
    println!("mail was out for {:?}", cut.elapsed());
    row.done(&["tracked push", "Durable", "topic with history", "call under way", "presence"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_has_lost_its_data() {
    let Some(broker) = Broker::one() else { return };
    let row = Row::of(ROWS[2]);
    let mut field = Field::over(broker).await;
    let Field { broker, origin, owner, other, way, ann } = &mut field;
    let (origin, owner, other, ann) = (&*origin, &*owner, &*other, &*ann);
    let nodes = [origin, owner, other];
    let lives = nodes.map(|node| node.id().to_owned());
    origin.push(To::user("bob"), As::Durable, 101, 10).await;
    origin.publish(NEWS, 201, 10).await;
    came_in_order(ann, NEWS, (201..=210).collect()).await;
    let before = ann.client.subscribe(NEWS).await.expect("it is open").position;
    row.cell("Durable", async {
        let told = origin.receipts_over(101, 110).await;
        assert!(told.iter().all(|told| told.stored == Stored::In(1, "Memory".to_owned())), "{told:?}");
    })
    .await;
    ann.hold();
    origin.push(To::user("ann"), As::Tracked, 1, 10).await;
    until("they came", async || origin.receipts(1, 10).await.iter().all(|told| told.at("received") == 1)).await;

    broker.kill(0);
    broker.wipe(0);
    broker.start(0);
    until("all have begun another life", async || {
        for (node, was) in nodes.iter().zip(&lives) {
            if node.members().await.me.is_none_or(|me| me == *was) {
                return false;
            }
        }
        true
    })
    .await;
    row.cell("tracked push", async {
        way.lead_to([other.address()]);
        way.cut();
        let now = other.members().await.me.expect("it has a lease");
        until("ann has moved", async || connected(other, "ann").await == [&*now]).await;
        ann.go_on();
        handled_once(ann, 1..=10).await;
        assert_eq!(ann.sessions_lost(), []);
        origin.push(To::user("ann"), As::Tracked, 11, 10).await;
        handled_once(ann, 11..=20).await;
        assert_handled(&origin.receipts_over(11, 20).await);
        // The lease of who told of them has ended.
        let told = origin.receipts_over(1, 10).await;
        assert!(told.iter().all(|told| told.at("handled") + told.at("unknown") == 1), "{told:?}");
    })
    .await;
    row.cell("Durable", async {
        origin.push(To::user("bob"), As::Durable, 111, 10).await;
        let bob = User::connect(other.address(), "bob").await;
        handled_once(&bob, 111..=120).await;
        assert!((101..=110).all(|number| bob.times(number) == 0), "nobody has them");
    })
    .await;
    row.cell("topic with history", async {
        origin.publish(NEWS, 211, 10).await;
        ann.until("the new ones came", |ann| ann.of_topic(NEWS).contains(&220)).await;
        assert_eq!(ann.of_topic(NEWS), (201..=220).collect::<Vec<_>>());
        let subscribed = ann.client.subscribe_from(NEWS, before.expect("it has a history")).await.expect("it is open");
        assert!(!subscribed.recovered, "that was in another epoch");
    })
    .await;
    row.done(&["tracked push", "Durable", "topic with history"]);
}
