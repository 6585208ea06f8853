//! What was pushed to a session while it moved, and is sent after it.

use std::time::Duration;

use bothways::{Push, Stage, Target, cluster::memory::MemoryBroker, testing};
use tokio::time::sleep;

use crate::{
    support::{next, nodes, nothing, until},
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
    follows(Some(Duration::from_millis(3500)));
}

fn follows(time_to_live: Option<Duration>) {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other, origin] = nodes(&broker).await;
        let (mut ann, id) = ann_at(&one).await;
        one.loses(&ann).await;
        assert!(broker.faults().pause(one.id, true));
        goes_to(&ann, &other);
        sleep(Duration::from_millis(100)).await;
        // The other node has seen it before it has the session; her own has given that away before it sees it.
        let mut push = Push::new("Mail", "New", "late".to_owned());
        if let Some(time) = time_to_live {
            push = push.time_to_live(time);
        }
        let receipt = origin.server().push(&Target::user("ann"), &push).expect("a small push");
        sleep(Duration::from_millis(50)).await;
        assert!(broker.faults().pause(other.id, true));
        // What follows waits behind this.
        one.push(&Target::user("bob"), "to nobody");
        assert!(broker.faults().pause(one.id, false));
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
