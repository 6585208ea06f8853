//! What was pushed to a session while it moved, and is sent after it.

use std::time::Duration;

use bothways::{
    Class, Push, Stage, Target,
    cluster::memory::MemoryBroker,
    testing::{self, TestClient},
};
use tokio::time::sleep;

use crate::{
    support::{Node, next, nodes, nothing, until},
    ways::{ann_at, goes_to, is_there},
};

/// The node to which a session went answers nothing for some seconds: a push that follows the session, and has not been sent,
/// waits for it. The session lives, so the push is not dropped.
#[test]
fn what_follows_a_session_waits_for_its_node() {
    follows(None);
}

/// Its time to live runs meanwhile.
#[test]
fn what_follows_a_session_expires_while_it_waits() {
    follows(Some(Duration::from_millis(2500)));
}

/// She is at the other node, hers has given her session away, and the other one has not got it yet.
async fn is_on_its_way(broker: &MemoryBroker, ann: &TestClient, one: &Node, other: &Node) {
    one.loses(ann).await;
    broker.faults().claims_late(1, Duration::from_millis(900));
    goes_to(ann, other);
    sleep(Duration::from_millis(600)).await;
}

fn follows(time_to_live: Option<Duration>) {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other, origin] = nodes(&broker).await;
        let (mut ann, id) = ann_at(&one).await;
        is_on_its_way(&broker, &ann, &one, &other).await;
        let mut push = Push::new("Mail", "New", "late".to_owned());
        if let Some(time) = time_to_live {
            push = push.time_to_live(time);
        }
        let receipt = origin.server().push(&Target::user("ann"), &push).expect("a small push");
        sleep(Duration::from_millis(50)).await;
        assert!(broker.faults().pause(other.id, true));
        // What follows waits behind this.
        one.push(&Target::user("bob"), "to nobody");
        assert!(!is_there(&other, id));
        until("it is there", || is_there(&other, id)).await;
        sleep(Duration::from_secs(4)).await;
        assert_eq!(receipt.outcomes().dropped(), 0, "{receipt:?}");
        assert!(broker.faults().pause(other.id, false));

        if time_to_live.is_some() {
            let outcomes = tokio::time::timeout(Duration::from_secs(300), receipt.handled()).await;
            let outcomes = outcomes.unwrap_or_else(|_| receipt.outcomes());
            assert_eq!((outcomes.targets(), outcomes.at(Stage::Expired)), (1, 1), "{receipt:?}");
            return nothing(&mut ann).await;
        }
        let came = tokio::time::timeout(Duration::from_secs(60), next(&mut ann)).await;
        assert_eq!(came.as_deref(), Ok("late"), "{receipt:?}");
        let outcomes = tokio::time::timeout(Duration::from_secs(300), receipt.handled()).await;
        let outcomes = outcomes.unwrap_or_else(|_| receipt.outcomes());
        assert_eq!((outcomes.targets(), outcomes.at(Stage::Handled)), (1, 1), "{receipt:?}");
        nothing(&mut ann).await;
    });
}

/// A value of a key follows a session, and comes behind a newer one that its node has got by itself: it is superseded, and
/// does not end as the newest. What else follows comes in its order, also where it had to wait for the node.
#[test]
fn an_older_value_that_follows_is_superseded() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other, origin] = nodes(&broker).await;
        let (mut ann, id) = ann_at(&one).await;
        is_on_its_way(&broker, &ann, &one, &other).await;
        let latest = |text: &str| {
            let push = Push::new("Mail", "New", text.to_owned()).class(Class::Latest("rate".to_owned()));
            origin.server().push(&Target::user("ann"), &push).expect("a small push")
        };
        let old = latest("old");
        let followers: Vec<_> = (0..5).map(|number| origin.push(&Target::user("ann"), &format!("{number}"))).collect();
        sleep(Duration::from_millis(50)).await;
        assert!(broker.faults().pause(other.id, true));
        // What follows waits behind this.
        one.push(&Target::user("bob"), "to nobody");
        assert!(!is_there(&other, id));
        until("it is there", || is_there(&other, id)).await;
        let new = latest("new");
        sleep(Duration::from_secs(1)).await;
        assert!(broker.faults().pause(other.id, false));

        let (mut values, mut others) = (Vec::new(), Vec::new());
        while let Ok(text) = tokio::time::timeout(Duration::from_secs(30), next(&mut ann)).await {
            if text.parse::<u32>().is_ok() { &mut others } else { &mut values }.push(text);
        }
        assert_eq!(others, ["0", "1", "2", "3", "4"]);
        assert_eq!(values, ["new"]);
        assert_eq!(old.handled().await.at(Stage::Superseded), 1, "{old:?}");
        for receipt in followers.iter().chain([&new]) {
            let outcomes = tokio::time::timeout(Duration::from_secs(300), receipt.handled()).await.expect("it ends");
            assert_eq!((outcomes.targets(), outcomes.at(Stage::Handled)), (1, 1), "{receipt:?}");
        }
    });
}
