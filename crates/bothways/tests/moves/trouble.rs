//! A client that comes to another node while something goes wrong: it keeps its session, or is told the truth.

use std::time::Duration;

use bothways::{
    ClientOptions, Push, Stage, Target,
    cluster::{Cluster, memory::MemoryBroker},
    session::{SessionId, Standing},
    testing::{self, TestClient},
};
use tokio::{sync::watch, time::sleep};

use crate::{
    support::{Node, builder, join, join_as, know_each_other, next, nodes, nothing, until},
    ways::{ann_at, comes_to, goes_to, is_there, session_of, settle},
};

/// The client is at the first node, away, and owed this.
async fn owed(one: &Node, text: &str) -> (testing::TestClient, bothways::session::SessionId, bothways::Receipt) {
    let (ann, id) = ann_at(one).await;
    one.loses(&ann).await;
    let receipt = one.push(&Target::user("ann"), text);
    (ann, id, receipt)
}

/// Mail that is lost or doubled, a compare-and-set whose end nobody knows, reads that are old, a register or mail that is out
/// for seven seconds: the client comes again until it has its session, whole and once.
#[test]
fn what_fails_for_a_while_costs_no_session() {
    for trouble in [
        "lost",
        "answers lost",
        "twice",
        "unknown and done",
        "unknown and not done",
        "old reads",
        "register",
        "mail",
        "both",
    ] {
        eprintln!("{trouble}");
        testing::run(async {
            let broker = MemoryBroker::new();
            let [one, other] = nodes(&broker).await;
            let (mut ann, id, receipt) = owed(&one, "a letter").await;
            let faults = broker.faults();
            match trouble {
                "lost" => faults.lose_mail(3),
                "answers lost" => faults.lose_answers(3),
                "twice" => faults.repeat_mail(20),
                "unknown and done" => faults.claims_unknown(2, true),
                "unknown and not done" => faults.claims_unknown(2, false),
                "old reads" => faults.reads_are_old(true),
                "register" => faults.register_up(false),
                "mail" => faults.mail_up(false),
                _ => {
                    faults.register_up(false);
                    faults.mail_up(false);
                }
            }
            goes_to(&ann, &other);
            sleep(Duration::from_secs(7)).await;
            if matches!(trouble, "register" | "mail" | "both") {
                assert!(!is_there(&other, id), "{trouble}: nobody could bring it");
            }
            faults.register_up(true);
            faults.mail_up(true);
            faults.reads_are_old(false);
            until("it is there", || is_there(&other, id)).await;
            let came = tokio::time::timeout(Duration::from_secs(60), next(&mut ann)).await;
            assert_eq!(came.as_deref(), Ok("a letter"), "{trouble}: {receipt:?}");
            let outcomes = tokio::time::timeout(Duration::from_secs(300), receipt.handled()).await;
            let outcomes = outcomes.unwrap_or_else(|_| receipt.outcomes());
            assert_eq!((outcomes.targets(), outcomes.at(Stage::Handled)), (1, 1), "{trouble}: {receipt:?}");
            nothing(&mut ann).await;
        });
    }
}

/// However much mail, or however many answers are lost, and whenever the client moves, before or after its push has got
/// through to where it goes: it has each push, and each message of its topic, once, and each receipt has one target.
#[test]
fn lost_mail_doubles_no_push() {
    let mut wrong = Vec::new();
    for (lost, answers) in [1, 2, 3, 5].into_iter().flat_map(|lost| [(lost, false), (lost, true)]) {
        for after in [0, 3, 495, 990, 1500, 3100] {
            testing::run(async {
                let broker = MemoryBroker::new();
                let [one, other, third] = nodes(&broker).await;
                let (mut ann, id, receipt) = owed(&one, "of its node").await;
                let session = one.server().sessions(&Target::session(id)).expect("no topic").remove(0);
                session.subscribe("plain").expect("a topic");
                match answers {
                    true => broker.faults().lose_answers(lost),
                    false => broker.faults().lose_mail(lost),
                }
                let mut receipts = vec![("of its node", receipt)];
                for (node, text) in [(&other, "of the next"), (&third, "of a third")] {
                    receipts.push((text, node.push(&Target::user("ann"), text)));
                }
                for (node, text) in [(&one, "of a topic"), (&other, "of a topic, there"), (&third, "of a topic, far")] {
                    let push = Push::new("Mail", "New", text.to_owned());
                    receipts.push((text, node.server().publish("plain", &push).expect("small")));
                }
                sleep(Duration::from_millis(after)).await;
                goes_to(&ann, &other);
                sleep(Duration::from_millis(after)).await;
                receipts.push(("late", one.push(&Target::user("ann"), "late")));
                until("it is there", || is_there(&other, id)).await;
                let mut came = Vec::new();
                while let Ok(text) = tokio::time::timeout(Duration::from_secs(30), next(&mut ann)).await {
                    came.push(text);
                }
                for (text, receipt) in &receipts {
                    let count = came.iter().filter(|came| came == text).count();
                    let outcomes = tokio::time::timeout(Duration::from_secs(300), receipt.handled()).await;
                    let outcomes = outcomes.unwrap_or_else(|_| receipt.outcomes());
                    if count != 1 || (outcomes.targets(), outcomes.at(Stage::Handled)) != (1, 1) {
                        wrong.push(format!("{lost} {answers} {after} {text}: came {count} times, {receipt:?}"));
                    }
                }
            });
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// While a session is brought to its client, which takes a while, the client has no other one to which something is
/// pushed: not where there is no auth hook, either.
#[test]
fn a_client_whose_session_is_being_brought_is_no_other_target() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = [join_open(&broker).await, join_open(&broker).await];
        until("they know each other", || one.server().nodes().is_some_and(|(_, others)| others.len() == 1)).await;
        let mut ann = one.network.client(ClientOptions::new()).await.expect("it listens");
        ann.welcomed().await;
        let id = one.server().sessions(&Target::everyone()).expect("no topic").remove(0).id();
        settle().await;
        one.loses(&ann).await;

        // The question for the session: its answer takes a second.
        broker.faults().lose_answers(1);
        goes_to(&ann, &other);
        sleep(Duration::from_millis(500)).await;
        let receipts = [one.push(&Target::everyone(), "one"), other.push(&Target::everyone(), "other")];
        until("it is there", || is_there(&other, id)).await;
        let came = std::collections::BTreeSet::from([next(&mut ann).await, next(&mut ann).await]);
        assert_eq!(came, std::collections::BTreeSet::from(["one".to_owned(), "other".to_owned()]));
        nothing(&mut ann).await;
        for receipt in receipts {
            let outcomes = receipt.handled().await;
            assert_eq!((outcomes.targets(), outcomes.at(Stage::Handled)), (1, 1), "{receipt:?}");
        }
    });
}

/// A node that lets everybody in.
async fn join_open(broker: &MemoryBroker) -> Node {
    let server = bothways::Server::builder().build();
    let id = server.join(Cluster::new(broker.engine())).await.expect("the engine works");
    Node { id, network: testing::Network::new(server).await.expect("it runs") }
}

/// A node that is dead takes its sessions with it: until its lease has ended the client is refused, and keeps its session;
/// then it has a new one of the same user with the same labels.
#[test]
fn a_session_of_a_dead_node_is_lost_when_its_lease_has_ended() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        // Long enough for a node to judge others.
        sleep(Duration::from_secs(20)).await;
        let (ann, id, receipt) = owed(&one, "a letter").await;
        let far = other.push(&Target::user("ann"), "another");
        until("it is told", || far.routing() == 0).await;
        broker.faults().cut(one.id, true);
        goes_to(&ann, &other);
        sleep(Duration::from_secs(10)).await;
        assert_eq!(session_of_connected(&other), None, "its node may live");
        until("it has a session", || session_of_connected(&other).is_some()).await;
        assert_ne!(session_of_connected(&other), Some(id));
        let session = other.server().sessions(&Target::user("ann")).expect("no topic").remove(0);
        assert_eq!(session.label("device").as_deref(), Some("phone"));
        let outcomes = far.handled().await;
        assert_eq!((outcomes.targets(), outcomes.at(Stage::Unknown)), (1, 1), "{far:?}");
        drop(receipt);
    });
}

fn session_of_connected(node: &Node) -> Option<bothways::session::SessionId> {
    let found = node.server().sessions(&Target::user("ann")).expect("no topic");
    found.into_iter().find(|session| session.connection().is_some()).map(|session| session.id())
}

/// A node that stands still for less than its lease loses nothing: its client is refused until it goes on.
#[test]
fn a_node_that_stands_still_keeps_its_sessions() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        sleep(Duration::from_secs(20)).await;
        let (mut ann, id, receipt) = owed(&one, "a letter").await;
        broker.faults().pause(one.id, true);
        goes_to(&ann, &other);
        sleep(Duration::from_secs(5)).await;
        assert_eq!(session_of_connected(&other), None, "its node lives");
        broker.faults().pause(one.id, false);
        until("it is there", || is_there(&other, id)).await;
        assert_eq!(next(&mut ann).await, "a letter");
        assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
    });
}

/// All leases end at once, as with a leader that was frozen: each node claims its sessions again, and they go on.
#[test]
fn sessions_outlive_the_leases_of_their_nodes() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let (mut ann, id, receipt) = owed(&one, "a letter").await;
        broker.faults().end_all_leases();
        sleep(Duration::from_secs(10)).await;
        assert_eq!(session_of(one.server(), "ann"), Some(id));
        comes_to(&ann, &other, id).await;
        assert_eq!(next(&mut ann).await, "a letter");
        assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
    });
}

/// A Hello that the network has kept comes to the former node when the client has its session elsewhere: it takes nothing.
#[test]
fn a_late_hello_takes_nothing() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let (mut ann, id, _receipt) = owed(&one, "a letter").await;
        comes_to(&ann, &other, id).await;
        assert_eq!(next(&mut ann).await, "a letter");
        settle().await;
        ann.wire.lead_to(one.network.address()).expect("an address");
        ann.wire.claim_late();
        sleep(Duration::from_secs(5)).await;
        assert!(is_there(&other, id) && session_of(one.server(), "ann").is_none());
        let receipt = one.push(&Target::user("ann"), "later");
        assert_eq!(next(&mut ann).await, "later");
        assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
    });
}

/// A client's Hello came twice to the node that had its session, whose hook takes its time, and the session goes to another
/// node meanwhile. The connection of the second Hello is nobody's: a push has one target, the session where it is.
#[test]
fn who_has_named_a_session_that_went_on_is_nobody() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let (opens, is_open) = watch::channel(true);
        let slow = builder().auth(move |request| {
            let mut is_open = is_open.clone();
            async move {
                request.session().ok_or("it has left")?.bind_user(&request.token);
                let _ = is_open.wait_for(|is_open| *is_open).await;
                Ok::<_, &str>(())
            }
        });
        let nodes = [join_as(slow.build(), Cluster::new(broker.engine())).await, join(&broker).await];
        know_each_other(&nodes).await;
        let [one, other] = &nodes;
        let (mut ann, id) = ann_at(one).await;
        opens.send_replace(false);
        ann.wire.claim_twice();
        goes_to(&ann, one);
        let arriving = || {
            let told = one.server().explain(&Target::user("ann")).expect("no topic");
            told.iter().filter(|told| matches!(told.standing, Standing::Arriving(_))).count()
        };
        until("both are being let in", || arriving() == 2).await;
        comes_to(&ann, other, id).await;
        settle().await;
        assert_eq!(arriving(), 1, "nobody has closed that one");
        for from in [one, other] {
            let receipt = from.push(&Target::user("ann"), "a letter");
            assert_eq!(next(&mut ann).await, "a letter");
            let told = receipt.handled().await;
            assert_eq!((told.targets(), told.at(Stage::Handled)), (1, 1), "{receipt:?}");
        }
        opens.send_replace(true);
        sleep(Duration::from_secs(1)).await;
        assert_eq!((is_there(other, id), session_of(one.server(), "ann")), (true, None), "it takes nothing");
    });
}

/// Who shows another secret gets a session of its own, at any node, and takes nothing.
#[test]
fn a_stranger_with_the_number_gets_nothing() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let (mut ann, id, receipt) = owed(&one, "a letter").await;
        for node in [&one, &other] {
            let (sid, key) = (format!("{id}"), "0".repeat(64));
            let pairs =
                [("_bw.sid", sid.as_str()), ("_bw.key", &key), ("_bw.off", "0"), ("_bw.try", "18446744073709551615")];
            let options = bothways::ClientOptions::new().auth("eve").negotiate(false);
            let eve = node.network.client(options).await.expect("it listens");
            let mut said = bothways::Metadata::new();
            pairs.iter().for_each(|(key, value)| said.insert(key, *value));
            let call = bothways::CallOptions::new().metadata(said);
            let _ = eve.client.call_with::<()>("_bothways", "Resume", &(), call).await;
            settle().await;
        }
        comes_to(&ann, &other, id).await;
        assert_eq!(next(&mut ann).await, "a letter");
        assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
    });
}

/// The session of ann, who is away, goes on at the other node, with what it is owed.
async fn goes_on(one: &Node, other: &Node, ann: &mut TestClient, id: SessionId) {
    one.loses(ann).await;
    let receipt = one.push(&Target::user("ann"), "a letter");
    comes_to(ann, other, id).await;
    assert_eq!(next(ann).await, "a letter");
    assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
    nothing(ann).await;
}

/// N13. Nobody can tell whether the record of a session was written, at its birth or after its node has lapsed, and the read
/// that follows is old: the next try finds the record to be its own, and the session goes on and can move.
#[test]
fn a_record_of_its_own_is_known_again() {
    for lapses in [false, true] {
        testing::run(async {
            let broker = MemoryBroker::new();
            let [one, other] = nodes(&broker).await;
            let faults = broker.faults();
            let unsure = || {
                faults.claims_unknown(1, true);
                faults.reads_are_old(true);
            };
            if !lapses {
                unsure();
            }
            let mut ann = one.client("ann").await;
            let id = session_of(one.server(), "ann").expect("she is there");
            if lapses {
                settle().await;
                faults.end_all_leases();
                unsure();
            }
            sleep(Duration::from_secs(5)).await;
            faults.reads_are_old(false);
            sleep(Duration::from_secs(60)).await;
            assert!(is_there(&one, id), "lapses: {lapses}: it has not ended");

            goes_on(&one, &other, &mut ann, id).await;
        });
    }
}

/// The record that nobody knows to be written names a life of its node that is over when that is looked at again: it is its own
/// all the same. The session goes on and can move.
#[test]
fn a_record_of_a_former_life_is_its_own() {
    for is_new in [true, false] {
        testing::run(async {
            let broker = MemoryBroker::new();
            let [one, other] = nodes(&broker).await;
            let faults = broker.faults();
            let unsure = |count| {
                faults.claims_unknown(count, true);
                faults.reads_are_old(count != 0);
            };
            if is_new {
                unsure(usize::MAX);
            }
            let mut ann = one.client("ann").await;
            let id = session_of(one.server(), "ann").expect("she is there");
            settle().await;
            if !is_new {
                // It is written by the next life, and another one follows.
                unsure(usize::MAX);
                faults.end_all_leases();
                sleep(Duration::from_secs(5)).await;
            }
            faults.end_all_leases();
            sleep(Duration::from_secs(5)).await;
            unsure(0);
            sleep(Duration::from_secs(60)).await;
            assert!(is_there(&one, id), "is new: {is_new}: it has not ended");

            goes_on(&one, &other, &mut ann, id).await;
        });
    }
}

/// N14. For seven seconds nobody knows how any compare-and-set ends, and reads show the past: a node that may have won the
/// session keeps it in its hands, whether it was written or not, and has it when the register can say so.
#[test]
fn a_claim_of_unknown_end_keeps_the_session() {
    for applied in [true, false] {
        testing::run(async {
            let broker = MemoryBroker::new();
            let [one, other] = nodes(&broker).await;
            let (mut ann, id, receipt) = owed(&one, "a letter").await;
            let faults = broker.faults();
            faults.claims_unknown(usize::MAX, applied);
            faults.reads_are_old(true);
            goes_to(&ann, &other);
            sleep(Duration::from_secs(7)).await;
            assert!(!is_there(&other, id), "applied: {applied}: nobody knows whose it is");
            faults.claims_unknown(0, false);
            faults.reads_are_old(false);
            until("it is there", || is_there(&other, id)).await;
            assert_eq!(next(&mut ann).await, "a letter", "applied: {applied}");
            assert_eq!(receipt.handled().await.at(Stage::Handled), 1, "applied: {applied}");
            nothing(&mut ann).await;
        });
    }
}
