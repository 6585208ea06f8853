//! Pushes to clients of other nodes, while all is well.

use std::time::Duration;

use bothways::{
    Class, Push, Stage, Target,
    cluster::{Cluster, JoinError, memory::MemoryBroker},
    session::UnreachedWhy,
    testing,
};
use tokio::time::{Instant, sleep};

use crate::support::{join, join_with, next, nodes, nothing, server, until};

/// A user's devices get a push wherever they are connected, and one receipt counts all of them.
#[test]
fn a_push_reaches_a_user_at_every_node() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other, third] = nodes(&broker).await;
        let (mut phone, mut laptop) = (one.client("ann").await, other.client("ann").await);
        let mut bob = third.client("bob").await;
        let receipt = one.push(&Target::user("ann"), "a letter");
        assert_eq!((receipt.outcomes().targets(), receipt.routing()), (1, 2), "here, and two that have not said");
        assert_eq!((next(&mut phone).await, next(&mut laptop).await), ("a letter".to_owned(), "a letter".to_owned()));
        let outcomes = receipt.handled().await;
        assert_eq!((outcomes.targets(), outcomes.at(Stage::Handled), receipt.routing()), (2, 2, 0));
        assert!(!receipt.is_partial() && !receipt.is_no_route());
        nothing(&mut bob).await;
    });
}

/// The receipt goes through the stages of a push to another node, and is never ahead.
#[test]
fn a_receipt_shows_each_stage_of_another_node() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let mut ann = other.client("ann").await;
        let receipt = one.push(&Target::user("ann"), "a letter");
        assert_eq!(receipt.received().await.at(Stage::Received), 1);
        let message = ann.messages.next().await.expect("it is open");
        sleep(Duration::from_secs(30)).await;
        assert_eq!((receipt.outcomes().at(Stage::Received), receipt.outcomes().open()), (1, 1), "not handled yet");
        drop(message);
        assert_eq!(receipt.handled().await.at(Stage::Handled), 1);

        let fire = Push::new("Mail", "Typing", "").class(Class::Fire);
        let receipt = one.server().push(&Target::user("ann"), &fire).expect("small");
        assert_eq!(receipt.handled().await.at(Stage::PlainWritten), 1);
    });
}

/// `NoRoute` is said when every node was asked and had no such session, and not before.
#[test]
fn a_user_without_a_session_is_no_route() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, _other, _third] = nodes(&broker).await;
        let receipt = one.push(&Target::user("nobody"), "a letter");
        assert!(!receipt.is_no_route(), "two have not been asked yet");
        assert_eq!(receipt.handled().await.targets(), 0);
        assert!(receipt.is_no_route() && !receipt.is_partial());
    });
}

/// Everyone, except for some, with a label; a session; the subscribers of a topic: each means those of all nodes.
#[test]
fn every_target_means_the_sessions_of_all_nodes() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let mut here = one.client("ann/phone").await;
        let mut there = other.client("ann/laptop").await;
        let mut bob = other.client("bob/laptop").await;
        let session_of = |user: &str| other.server().sessions(&Target::user(user)).expect("no topic").remove(0);

        let everyone = one.push(&Target::everyone(), "all");
        for client in [&mut here, &mut there, &mut bob] {
            assert_eq!(next(client).await, "all");
        }
        assert_eq!(everyone.handled().await.at(Stage::Handled), 3);

        let target = Target::everyone().only_labelled("device", "laptop").except(session_of("bob").id());
        let receipt = one.push(&target, "laptops");
        assert_eq!(next(&mut there).await, "laptops");
        assert_eq!(receipt.handled().await.targets(), 1);

        let receipt = one.push(&Target::session(session_of("bob").id()), "to bob");
        assert_eq!(next(&mut bob).await, "to bob");
        assert_eq!(receipt.handled().await.targets(), 1);

        session_of("ann").subscribe("news.*").expect("a pattern");
        let receipt = one.push(&Target::subscribers_of("news.sport"), "2:1");
        assert_eq!(next(&mut there).await, "2:1");
        assert_eq!(receipt.handled().await.targets(), 1);

        let receipt = one.push(&Target::users(["ann", "bob", "nobody"]), "to some");
        for client in [&mut here, &mut there, &mut bob] {
            assert_eq!(next(client).await, "to some");
        }
        assert_eq!(receipt.handled().await.at(Stage::Handled), 3);
    });
}

/// A message of a topic reaches the subscribers of all nodes, as a message of that topic; one of a topic with history
/// comes from its log.
#[test]
fn a_topic_without_history_has_subscribers_at_all_nodes() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let (mut here, mut there) = (one.client("ann").await, other.client("bob").await);
        for node in [&one, &other] {
            for session in node.server().sessions(&Target::everyone()).expect("no topic") {
                session.subscribe("news.*").expect("a pattern");
                session.subscribe("kept.*").expect("a pattern");
            }
        }
        let receipt = one.server().publish("news.sport", &Push::new("News", "say", "2:1")).expect("small");
        for client in [&mut here, &mut there] {
            let message = client.messages.next().await.expect("it is open");
            assert_eq!(message.topic().as_deref(), Some("news.sport"));
        }
        assert_eq!(receipt.handled().await.at(Stage::Handled), 2);
        assert!(!receipt.is_partial());

        let receipt = one.server().publish("kept.sport", &Push::new("News", "say", "3:1")).expect("small");
        assert_eq!((next(&mut here).await, next(&mut there).await), ("3:1".to_owned(), "3:1".to_owned()));
        assert_eq!((receipt.routing(), receipt.handled().await.targets()), (0, 1), "those of its own node");
    });
}

/// A session or a connection that is here is nobody else's: no other node is asked.
#[test]
fn what_is_here_asks_nobody() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, _other] = nodes(&broker).await;
        let mut ann = one.client("ann").await;
        let session = one.server().sessions(&Target::user("ann")).expect("no topic").remove(0);
        let connection = session.connection().expect("it is there").id();
        for target in [Target::session(session.id()), Target::connection(connection)] {
            let receipt = one.push(&target, "x");
            assert_eq!((receipt.routing(), receipt.outcomes().targets()), (0, 1));
            assert_eq!(next(&mut ann).await, "x");
        }
    });
}

/// Pushes of one node reach a session of another one in their order, each once.
#[test]
fn pushes_arrive_in_their_order() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let mut ann = other.client("ann").await;
        let receipts: Vec<_> = (0..500).map(|number| one.push(&Target::user("ann"), &number.to_string())).collect();
        for number in 0..500 {
            assert_eq!(next(&mut ann).await, number.to_string());
        }
        for receipt in receipts {
            assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
        }
    });
}

/// A client that is away gets what another node pushed meanwhile when it is back, and the receipt waits for it.
#[test]
fn a_client_that_is_away_gets_it_when_it_is_back() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let mut ann = other.client("ann").await;
        other.loses(&ann).await;
        let receipt = one.push(&Target::user("ann"), "while away");
        sleep(Duration::from_secs(40)).await;
        assert_eq!((receipt.routing(), receipt.outcomes().at(Stage::Queued)), (0, 1));
        ann.wire.admit();
        assert_eq!(next(&mut ann).await, "while away");
        assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
    });
}

/// The time to live of a push runs on its way and in the other node's queues.
#[test]
fn a_push_expires_at_another_node() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let mut ann = other.client("ann").await;
        other.loses(&ann).await;
        let push = Push::new("Mail", "New", "short").time_to_live(Duration::from_secs(5));
        let receipt = one.server().push(&Target::user("ann"), &push).expect("small");
        sleep(Duration::from_secs(10)).await;
        ann.wire.admit();
        let outcomes = receipt.written().await;
        assert_eq!(outcomes.at(Stage::Expired), 1, "{outcomes:?} {receipt:?}");
        nothing(&mut ann).await;
    });
}

/// What is larger than a batch of the engine goes to the sessions here, and is said not to have gone elsewhere.
#[test]
fn a_push_that_the_engine_does_not_take_is_unreached() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let mut ann = one.client("ann").await;
        let receipt = one.push(&Target::user("ann"), &"x".repeat(600 << 10));
        assert_eq!(next(&mut ann).await.len(), 600 << 10);
        let unreached = receipt.unreached();
        assert_eq!((unreached.len(), unreached[0].node), (1, other.id));
        assert_eq!((unreached[0].why, unreached[0].maybe), (UnreachedWhy::TooLarge, false));
        assert!(receipt.is_partial() && receipt.routing() == 0);
        assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
    });
}

/// Pushes that others have to answer for have a bound at both ends.
#[test]
fn open_pushes_have_a_bound() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let one = join_with(&broker, |cluster| cluster.pushes_max(8)).await;
        let other = join_with(&broker, |cluster| cluster.pushes_max(4)).await;
        until("they know each other", || one.server().nodes().is_some_and(|(_, others)| others.len() == 1)).await;
        let ann = other.client("ann").await;
        let receipts: Vec<_> = (0..10).map(|number| one.push(&Target::user("ann"), &number.to_string())).collect();
        until("all have been answered", || receipts.iter().all(|receipt| receipt.routing() == 0)).await;
        let whys: Vec<_> = receipts.iter().flat_map(|receipt| receipt.unreached()).map(|one| one.why).collect();
        let count = |why| whys.iter().filter(|other| **other == why).count();
        assert_eq!((count(UnreachedWhy::Refused), count(UnreachedWhy::Full)), (4, 2), "{whys:?}");
        let mut ann = ann;
        for number in 0..4 {
            assert_eq!(next(&mut ann).await, number.to_string());
        }
        for receipt in &receipts[..4] {
            assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
        }
        let again = one.push(&Target::user("ann"), "there is room again");
        assert_eq!(next(&mut ann).await, "there is room again");
        assert_eq!(again.handled().await.at(Stage::Handled), 1);
    });
}

/// A server joins once; one that was shut down joins nothing, and one that joins a dead engine is told so.
#[test]
fn a_server_joins_once() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let one = join(&broker).await;
        assert_eq!(one.server().nodes(), Some((one.id, vec![])));
        assert_eq!(one.server().join(Cluster::new(broker.engine())).await, Err(JoinError::Joined));
        one.server().shutdown(Duration::from_secs(1)).await;
        assert_eq!(one.server().join(Cluster::new(broker.engine())).await, Err(JoinError::ShutDown));
        let late = server();
        let engine = broker.engine();
        broker.faults().register_up(false);
        assert!(matches!(late.join(Cluster::new(engine)).await, Err(JoinError::Engine(_))));
        broker.faults().register_up(true);
        late.join(Cluster::new(broker.engine())).await.expect("it works again");
    });
}

/// A server that stops tells the others how their pushes ended and that it goes, at once. Its sessions have no room in the
/// store, where the receipts would wait with them.
#[test]
fn a_server_that_stops_leaves_its_cluster() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let one = join(&broker).await;
        let other = join_with(&broker, |cluster| cluster.park_bytes_max(0)).await;
        until("they know each other", || one.server().nodes().is_some_and(|(_, others)| others.len() == 1)).await;
        let ann = other.client("ann").await;
        let receipt = one.push(&Target::user("ann"), "not handled");
        assert_eq!(receipt.received().await.at(Stage::Received), 1);
        let began = Instant::now();
        other.server().shutdown(Duration::from_secs(1)).await;
        assert_eq!(receipt.handled().await.at(Stage::Unknown), 1, "its session ended unacknowledged");
        until("one is alone", || one.server().nodes() == Some((one.id, vec![]))).await;
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        // It is buried within a second.
        sleep(Duration::from_secs(2)).await;
        let receipt = one.push(&Target::user("ann"), "too late");
        assert!(receipt.routing() == 0 && receipt.is_no_route());
        drop(ann);
    });
}

/// The receipt of what a session in the store is owed waits as long as that waits for its client, and ten seconds more.
#[test]
fn what_nobody_takes_from_the_store_is_unknown() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let ann = other.client("ann").await;
        let receipt = one.push(&Target::user("ann"), "not handled");
        assert_eq!(receipt.received().await.at(Stage::Received), 1);
        drop(ann);
        let report = other.server().shutdown(Duration::from_secs(1)).await;
        assert_eq!(report.sessions_parked, 1, "{report:?}");
        let (window, slack, began) = (Duration::from_secs(120), Duration::from_secs(10), Instant::now());
        let outcomes = receipt.handled().await;
        assert_eq!(outcomes.at(Stage::Unknown), 1, "{outcomes:?}");
        let took = began.elapsed();
        assert!((window..window + slack + Duration::from_secs(5)).contains(&took), "{took:?}");
    });
}

/// N1. What two nodes answer at once is told to the receipts in the order in which it was decided: none waits for ever.
/// On threads and in real time, as no virtual time has such an order.
#[test]
fn answers_that_come_at_once_end_each_receipt() {
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build();
    threads.expect("threads").block_on(async {
        let broker = MemoryBroker::new();
        let nodes: [_; 4] = nodes(&broker).await;
        let mut ann = nodes[1].client("ann").await;
        let told = tokio::spawn(async move {
            for _ in 0..100 {
                next(&mut ann).await;
            }
            ann
        });
        let receipts: Vec<_> = (0..8000)
            .map(|number| {
                let user = if number % 80 == 0 { "ann" } else { "nobody" };
                (user, nodes[0].push(&Target::user(user), "many"))
            })
            .collect();
        for (user, receipt) in &receipts {
            let ended = tokio::time::timeout(Duration::from_secs(30), receipt.handled()).await;
            let outcomes = ended.unwrap_or_else(|_| panic!("open for ever: {receipt:?}"));
            assert_eq!(outcomes.at(Stage::Handled), usize::from(*user == "ann"), "{outcomes:?}");
            assert_eq!(receipt.routing(), 0);
        }
        told.await.expect("it has got them");
    });
}
