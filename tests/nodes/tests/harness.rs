//! What the tests here stand on does what it says.

use std::time::Duration;

use bothways::session::Standing;
use bothways_brokers::Broker;
use bothways_nodes::{As, CallEnd, Command, Node, Options, Proxy, SessionSeen, Stored, To, User, until};

const SECONDS: Duration = Duration::from_secs(20);

/// Pushes, letters, topics, calls, sessions, kicks and the drain of nodes that are processes, and a node's death.
#[tokio::test]
async fn nodes_do_what_they_are_told() {
    let Some(broker) = Broker::one() else { return };
    let [mut one, other] = Node::start_all(&Options::new(broker.addresses())).await;
    let balancer = Proxy::to([one.address(), other.address()]).await;
    let ann = User::connect(balancer.address(), "ann").await;

    other.push(To::user("ann"), As::Tracked, 1, 10).await;
    let told = other.receipts_over(1, 10).await;
    assert!(told.iter().all(|told| (told.targets(), told.at("handled")) == (1, 1)), "{told:?}");
    other.push(To::user("bob"), As::Tracked, 11, 1).await;
    assert_eq!(other.receipt_over(11).await.targets(), 0);
    one.push(To::user("ann"), As::Durable, 1, 1).await;
    assert!(matches!(one.receipt_over(1).await.stored, Stored::In(1, _)));
    ann.client.subscribe("news.sport").await.expect("it is open");
    other.publish("news.sport", 12, 2).await;
    ann.until("the news", |ann| ann.of_topic("news.sport") == [12, 13]).await;
    ann.until("each came", |ann| (1..=10).all(|number| ann.times(number) == if number == 1 { 2 } else { 1 })).await;
    let twice = Command::Push { to: To::Everyone, class: As::Fire, key: None, first: 10, count: 1 };
    assert_eq!(other.ask::<()>(twice).await, Err("the number 10 is used twice".to_owned()));

    ann.hold();
    let (calling, ()) = tokio::join!(other.call(To::user("ann"), 7, SECONDS), async {
        ann.until("it runs", |ann| ann.calls(7) == (1, 0, 0)).await;
        ann.go_on();
    });
    assert_eq!((calling, ann.calls(7)), (CallEnd::Reply(7), (1, 1, 0)));
    assert!(matches!(other.call(To::user("bob"), 8, SECONDS).await, CallEnd::NoClient(_)));

    let seen = other.sessions(To::user("ann")).await;
    assert_eq!(seen.iter().map(|seen| &*seen.node).collect::<Vec<_>>(), [one.id()]);
    one.kill().await;
    until("ann is at the other", async || {
        let is_there =
            |seen: &SessionSeen| seen.node == other.id() && matches!(seen.told.standing, Standing::Connected(_));
        other.sessions(To::user("ann")).await.iter().any(is_there)
    })
    .await;
    assert_eq!(one.ask::<()>(Command::Stats).await, Err("the process has ended".to_owned()));
    assert_eq!(other.kick(To::user("ann"), "enough").await.ended, 1);
    assert_eq!(other.drain(SECONDS, 100).await.left, 0);
}

/// What stands between passes everything on, stands still, and is cut.
#[tokio::test]
async fn a_proxy_stands_still_and_is_cut() {
    let Some(broker) = Broker::one() else { return };
    let to_broker = Proxy::to(broker.addresses()).await;
    let options = Options::new(vec![to_broker.broker_address()]);
    let [one] = Node::start_all(&options).await;
    let balancer = Proxy::to([one.address()]).await;
    let ann = User::connect(balancer.address(), "ann").await;

    balancer.stand_still();
    one.push(To::user("ann"), As::Tracked, 1, 1).await;
    assert_eq!(one.receipt(1).await.open, 1, "nothing passes");
    balancer.go_on();
    assert_eq!(one.receipt_over(1).await.at("handled"), 1);

    balancer.cut();
    ann.until("it is back", |ann| ann.times_back() == 1).await;
    balancer.cut_off();
    one.push(To::user("ann"), As::Tracked, 2, 1).await;
    assert_eq!(one.receipt(2).await.open, 1, "it is away");
    balancer.go_on();
    assert_eq!(one.receipt_over(2).await.at("handled"), 1);

    to_broker.cut_off();
    one.push(To::user("ann"), As::Durable, 3, 1).await;
    assert!(matches!(one.receipt_over(3).await.stored, Stored::Not(_)), "there is no broker");
}
