//! Questions that every node answers.

use std::time::Duration;

use bothways::{
    CloseReason, ConnectionEvent, SessionLost, Target, cluster::memory::MemoryBroker, session::UnreachedWhy, testing,
};
use tokio::time::Instant;

use crate::support::{next, nodes, server, until};

/// What happened to a user's sessions is told by every node that had one.
#[test]
fn every_node_explains_its_sessions() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other, third] = nodes(&broker).await;
        let (_phone, mut laptop) = (one.client("ann").await, other.client("ann").await);
        other.push(&Target::user("ann"), "a letter").received().await;
        assert_eq!(next(&mut laptop).await, "a letter");
        let explained = one.server().explain_everywhere(&Target::user("ann")).await.expect("no topic");
        assert!(explained.silent.is_empty(), "{explained:?}");
        let of = |node| explained.answers.iter().find(|(id, _)| *id == node).map(|(_, said)| said);
        assert_eq!(explained.answers[0].0, one.id, "its own first");
        for (node, sessions) in [(&one, 1), (&other, 1), (&third, 0)] {
            let said = of(node.id).expect("it has answered");
            assert_eq!((said.sessions.len(), said.left_out), (sessions, 0));
            assert!(said.sessions.iter().all(|one| one.user.as_deref() == Some("ann")));
            let told = format!("{:?}", said.sessions);
            assert_eq!(told.contains("Mail.New"), sessions == 1, "{told}");
        }
    });
}

/// A user is sent away from every node, and each client is told why.
#[test]
fn a_user_is_kicked_at_every_node() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let (mut here, mut there) = (one.client("ann").await, other.client("ann").await);
        let bob = other.client("bob").await;
        let mut events = [here.client.events(), there.client.events()];
        let kicked = one.server().kick_everywhere(&Target::user("ann"), "bye").await.expect("no topic");
        assert_eq!((kicked.answers, kicked.silent), (vec![(one.id, 1), (other.id, 1)], vec![]));
        for (client, events) in [&mut here, &mut there].into_iter().zip(&mut events) {
            assert!(client.messages.next().await.is_none(), "it is closed, and does not come back");
            let Some(ConnectionEvent::Lost { reason: CloseReason::Goodbye { code, why, .. }, .. }) =
                events.next().await
            else {
                panic!("it is told why");
            };
            assert_eq!((&*code, &*why), ("kicked", "bye"));
            let lost = events.next().await;
            assert!(matches!(lost, Some(ConnectionEvent::SessionLost { why: SessionLost::Kicked, .. })), "{lost:?}");
        }
        until("only bob is left", || one.server().stats().sessions + other.server().stats().sessions == 1).await;
        drop(bob);
    });
}

/// A node that does not answer is named, with the reason, and nobody waits for it longer than a few seconds.
#[test]
fn a_silent_node_is_named() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other, third] = nodes(&broker).await;
        broker.faults().pause(other.id, true);
        let began = Instant::now();
        let kicked = one.server().kick_everywhere(&Target::everyone(), "bye").await.expect("no topic");
        assert_eq!(kicked.silent, [(other.id, UnreachedWhy::TimedOut)]);
        assert_eq!(kicked.answers, [(one.id, 0), (third.id, 0)]);
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        broker.faults().pause(other.id, false);
        broker.faults().mail_up(false);
        let kicked = one.server().kick_everywhere(&Target::everyone(), "bye").await.expect("no topic");
        assert_eq!((kicked.answers.len(), kicked.silent.len()), (1, 2));
    });
}

/// A server without a cluster answers for itself.
#[test]
fn a_server_alone_answers_for_itself() {
    testing::run(async {
        let alone = server();
        let kicked = alone.kick_everywhere(&Target::everyone(), "bye").await.expect("no topic");
        assert_eq!((kicked.answers.len(), kicked.answers[0].1, kicked.silent.len()), (1, 0, 0));
        assert!(alone.kick_everywhere(&Target::subscribers_of("a..b"), "bye").await.is_err());
        assert!(alone.explain_everywhere(&Target::subscribers_of("a..b")).await.is_err());
    });
}
