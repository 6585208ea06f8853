//! Users who are kicked while their sessions wait in the store.

use std::time::Duration;

use bothways::{
    Target,
    cluster::{
        Store,
        engine::{Log, NewEntry},
        memory::MemoryBroker,
    },
    session::UnreachedWhy,
    testing::{self, TestClient},
};

use crate::{
    support::{Node, join, nodes, until},
    ways::{comes_to, goes_to, is_there, session_of, settle},
};

/// Clients of these users, whose node has stopped: their sessions wait in the store.
async fn parked(node: &Node, users: &[&str]) -> Vec<(TestClient, bothways::session::SessionId)> {
    let mut clients = Vec::new();
    for token in users {
        let (user, _) = token.split_once('/').unwrap_or((token, ""));
        let client = node.client(token).await;
        clients.push((client, session_of(node.server(), user).expect("it is there")));
    }
    settle().await;
    for (client, _) in &clients {
        client.wire.refuse();
        client.wire.cut();
    }
    until("all are away", || node.server().stats().sessions_away == users.len()).await;
    let report = node.server().drain(Duration::from_secs(5), 100).await;
    assert_eq!(report.sessions_parked, users.len(), "{report:?}");
    clients
}

/// Kicks at a node, and says how many sessions ended, all of which were in the store.
async fn kick(node: &Node, target: &Target) -> usize {
    let kicked = node.server().kick_everywhere(target, "enough").await.expect("no topic");
    assert!(kicked.silent.is_empty(), "{kicked:?}");
    assert_eq!(kicked.answers[0].0, node.id, "{kicked:?}");
    assert!(kicked.answers[1..].iter().all(|(_, count)| *count == 0), "{kicked:?}");
    kicked.answers[0].1
}

/// Their user, or all with a label, or all are kicked: those who are meant come back to no session of theirs, and the others
/// go on with theirs.
#[test]
fn a_kick_of_a_user_ends_what_waits_in_the_store() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other, third] = nodes(&broker).await;
        let long = "x".repeat(255);
        let alike = format!("{long}y");
        let users = ["ann/phone", "bob/laptop", "cyd/phone", "dan/phone", &long, &alike];
        let clients = parked(&one, &users).await;

        assert_eq!(kick(&third, &Target::user("ann")).await, 1);
        assert_eq!(kick(&other, &Target::user("ann")).await, 0, "it has ended");
        assert_eq!(kick(&third, &Target::user("eve")).await, 0);
        assert_eq!(kick(&third, &Target::user("bob").only_labelled("device", "phone")).await, 0);
        assert_eq!(kick(&third, &Target::user("cyd").except(clients[2].1)).await, 0);
        assert_eq!(kick(&third, &Target::user(&*long)).await, 1, "and not the one whose name is longer");
        assert_eq!(kick(&third, &Target::everyone().only_labelled("device", "laptop")).await, 1);
        assert_eq!(kick(&third, &Target::users(["cyd", "eve"])).await, 1);

        for (number, (client, id)) in clients.iter().enumerate() {
            match number {
                3 | 5 => comes_to(client, &other, *id).await,
                _ => {
                    let mut events = client.client.events();
                    goes_to(client, &other);
                    let lost = crate::leaving::why_lost(&mut events).await;
                    assert_eq!(lost, bothways::SessionLost::Unknown, "{number}");
                    assert!(!is_there(&other, *id), "{number}");
                }
            }
        }
    });
}

/// All are kicked: more than are listed at once, each of them, and what has come out of the store since is kicked at its node.
#[test]
fn a_kick_of_everyone_ends_all_that_waits_in_the_store() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let one = join(&broker).await;
        let third = join(&broker).await;
        // What else lies there, before them: of no session that anybody knows.
        let store = broker.engine();
        for number in 1..1500 {
            let other = Log::Parked(format!("{number:x}").parse().expect("a number"));
            store.append(other, NewEntry::new("a part")).await.expect("the store works");
        }
        let users: Vec<String> = (0..100).map(|number| format!("user{number}")).collect();
        let users: Vec<&str> = users.iter().map(|user| &**user).collect();
        let clients = parked(&one, &users).await;
        let (client, id) = &clients[7];
        comes_to(client, &third, *id).await;

        assert_eq!(kick(&third, &Target::users(users[30..].iter().copied())).await, 70, "more than are looked up");
        let kicked = third.server().kick_everywhere(&Target::everyone(), "enough").await.expect("no topic");
        assert!(kicked.silent.is_empty(), "{kicked:?}");
        assert_eq!(kicked.answers, [(third.id, 30)]);
        assert_eq!(kick(&third, &Target::everyone()).await, 0);
    });
}

/// Without the register nobody can tell what waits in the store: the answer says so, of users and of all.
#[test]
fn a_kick_of_a_user_without_the_register_says_so() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let [one, other] = nodes(&broker).await;
        let _clients = parked(&one, &["ann"]).await;
        broker.faults().register_up(false);
        for target in [Target::user("ann"), Target::everyone()] {
            let kicked = other.server().kick_everywhere(&target, "enough").await.expect("no topic");
            assert!(kicked.silent.contains(&(other.id, UnreachedWhy::EngineDown)), "{kicked:?}");
        }
    });
}
