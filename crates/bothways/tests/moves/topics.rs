//! Topics with a history of clients that go to another node.

use std::time::Duration;

use bothways::{
    ClientOptions, Push, Server, Target,
    cluster::{Cluster, memory::MemoryBroker},
    session::{SessionId, TopicOptions},
    testing::{self, Network},
};
use tokio::time::{sleep, timeout};

use crate::{
    support::{Node, next, nothing, until},
    ways::{comes_to, goes_to, is_there, settle},
};

/// A node that keeps what is published to `log`, and lets everybody in.
async fn join(broker: &MemoryBroker) -> Node {
    let kept = TopicOptions::new().history(100, Duration::from_secs(3600)).open();
    let server = Server::builder().topic("log", kept).expect("a pattern").build();
    let id = server.join(Cluster::new(broker.engine())).await.expect("the engine works");
    Node { id, network: Network::new(server).await.expect("it runs") }
}

/// Whatever is lost on the way of its session, a subscriber gets each message of a topic with history, once and in order,
/// also the last one before a silence; whether the other node follows the topic already, or not.
#[test]
fn a_subscriber_that_moves_gets_each_message_once() {
    let mut wrong = Vec::new();
    for (lost, answers) in [(0, false), (1, false), (1, true), (2, false), (2, true)] {
        for (count, is_followed) in (0..7).flat_map(|count| [(count, false), (count, true)]) {
            testing::run(async {
                let broker = MemoryBroker::new();
                let [one, other, third] = [join(&broker).await, join(&broker).await, join(&broker).await];
                for node in [&one, &other, &third] {
                    let knows = || node.server().nodes().is_some_and(|(_, others)| others.len() == 2);
                    until("all know each other", knows).await;
                }
                let (mut ann, id) = subscriber(&one).await;
                let _bob = if is_followed { Some(subscriber(&other).await) } else { None };
                let publish = |text: &str| {
                    third.server().publish("log", &Push::new("News", "say", text.to_owned())).expect("small")
                };
                publish("seen");
                assert_eq!(next(&mut ann).await, "seen");

                one.loses(&ann).await;
                publish("owed");
                settle().await;
                match answers {
                    true => broker.faults().lose_answers(lost),
                    false => broker.faults().lose_mail(lost),
                }
                goes_to(&ann, &other);
                for number in 0..count {
                    sleep(Duration::from_millis(350)).await;
                    publish(&number.to_string());
                }
                until("it is there", || is_there(&other, id)).await;
                let mut came = Vec::new();
                while let Ok(text) = timeout(Duration::from_secs(60), next(&mut ann)).await {
                    came.push(text);
                }
                let expected: Vec<String> =
                    std::iter::once("owed".to_owned()).chain((0..count).map(|number| number.to_string())).collect();
                if came != expected {
                    wrong.push(format!("{lost} {answers} {is_followed}: {came:?} and not {expected:?}"));
                }
            });
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Its former node has got messages of the topic while its session was on the way, and learns late that it has gone: what
/// the new node sends meanwhile overtakes none of them, and nothing comes twice. The receipt of one that its former node
/// publishes then counts no target there.
#[test]
fn nothing_of_a_topic_overtakes_what_came_before_the_move() {
    for is_followed in [false, true] {
        testing::run(async {
            let broker = MemoryBroker::new();
            let [one, other] = two(&broker).await;
            let (mut ann, id) = subscriber(&one).await;
            let _bob = if is_followed { Some(subscriber(&other).await) } else { None };
            let publish = |node: &Node, text: &str| {
                let push = Push::new("News", "say", text.to_owned());
                node.server().publish("log", &push).expect("small")
            };
            publish(&other, "seen");
            assert_eq!(next(&mut ann).await, "seen");

            broker.faults().claims_late(1, Duration::from_millis(900));
            goes_to(&ann, &other);
            sleep(Duration::from_millis(600)).await;
            assert!(broker.faults().pause(one.id, true), "it does not hear where the session goes");
            let mut receipts = Vec::new();
            for number in 0..30 {
                receipts.push(publish(if number % 2 == 0 { &one } else { &other }, &number.to_string()));
                sleep(Duration::from_millis(50)).await;
            }
            assert!(is_there(&other, id));
            assert!(broker.faults().pause(one.id, false));
            for number in 30..40 {
                publish(&other, &number.to_string());
                sleep(Duration::from_millis(50)).await;
            }
            for number in 0..40 {
                let came = timeout(Duration::from_secs(60), next(&mut ann)).await;
                assert_eq!(came, Ok(number.to_string()), "{is_followed}");
            }
            nothing(&mut ann).await;
            for receipt in receipts.iter().step_by(2) {
                let outcomes = timeout(Duration::from_secs(60), receipt.handled()).await.expect("it ends");
                assert_eq!(outcomes.targets(), 0, "{is_followed}: {receipt:?}");
            }
        });
    }
}

/// Two nodes that know each other.
async fn two(broker: &MemoryBroker) -> [Node; 2] {
    let [one, other] = [join(broker).await, join(broker).await];
    until("they know each other", || one.server().nodes().is_some_and(|(_, others)| others.len() == 1)).await;
    [one, other]
}

/// What is published while a session is in the store its client asks for when it is back, also if nothing is published
/// after that; what it is owed by its session it gets once.
#[test]
fn what_was_published_while_a_session_was_parked_is_asked_for() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = two(&broker).await;
        let (mut ann, id) = subscriber(&one).await;
        let publish = |text: &str| other.server().publish("log", &Push::new("News", "say", text.to_owned()));
        publish("seen").expect("small");
        assert_eq!(next(&mut ann).await, "seen");

        one.loses(&ann).await;
        for text in ["1", "2"] {
            publish(text).expect("small");
        }
        settle().await;
        let report = one.server().drain(Duration::from_secs(5), 100).await;
        assert_eq!(report.sessions_parked, 1, "{report:?}");
        for text in ["3", "4"] {
            publish(text).expect("small");
        }
        settle().await;
        comes_to(&ann, &other, id).await;
        for text in ["1", "2", "3", "4"] {
            let came = timeout(Duration::from_secs(60), next(&mut ann)).await;
            assert_eq!(came.as_deref(), Ok(text));
        }
        nothing(&mut ann).await;
        publish("5").expect("small");
        assert_eq!(next(&mut ann).await, "5");
        nothing(&mut ann).await;
    });
}

/// What a session is owed when it comes to another node is not sent once more to a client that asks from before that: by
/// itself, as its session was in the store, before it has got any of it; or because its application asks.
#[test]
fn what_came_with_a_session_is_not_sent_again() {
    for parks in [true, false] {
        testing::run(async {
            let broker = MemoryBroker::new();
            let [one, other] = two(&broker).await;
            let (mut ann, id) = subscriber(&one).await;
            let publish = |text: &str| other.server().publish("log", &Push::new("News", "say", text.to_owned()));
            publish("seen").expect("small");
            assert_eq!(next(&mut ann).await, "seen");
            let seen = ann.client.subscribe("log").await.expect("it has it").position.expect("it has a history");

            one.loses(&ann).await;
            // More than is on the way at once: what it owes comes after the word that something is missing.
            let texts: Vec<String> = (0..8).map(|number| format!("{number} {}", "x".repeat(100 << 10))).collect();
            for text in &texts {
                publish(text).expect("small");
            }
            settle().await;
            if parks {
                assert_eq!(one.server().drain(Duration::from_secs(5), 100).await.sessions_parked, 1);
            }
            comes_to(&ann, &other, id).await;
            for text in &texts {
                let came = timeout(Duration::from_secs(60), next(&mut ann)).await;
                assert!(came.as_deref() == Ok(&**text), "in order, and once: {:?}", came.map(|came| came.len()));
            }
            nothing(&mut ann).await;

            let asked = ann.client.subscribe_from("log", seen).await.expect("it is open");
            assert!(asked.recovered);
            nothing(&mut ann).await;

            // Who leaves a topic and asks for it anew has it again.
            ann.client.unsubscribe("log").await.expect("it had it");
            ann.client.subscribe_from("log", seen).await.expect("it is open");
            for text in &texts {
                let came = timeout(Duration::from_secs(60), next(&mut ann)).await;
                assert!(came.as_deref() == Ok(&**text), "again, as it was asked for");
            }
        });
    }
}

/// A client there that subscribes to `log`.
async fn subscriber(node: &Node) -> (testing::TestClient, SessionId) {
    let client = node.network.client(ClientOptions::new()).await.expect("it listens");
    client.welcomed().await;
    let id = node.server().sessions(&Target::everyone()).expect("no topic").remove(0).id();
    client.client.subscribe("log").await.expect("it is open");
    settle().await;
    (client, id)
}
