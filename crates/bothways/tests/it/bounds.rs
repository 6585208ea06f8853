//! Bounds on how many come, stay and ask: sessions whose clients are away.

use std::time::Duration;

use bothways::{
    Client, ClientOptions, ConnectionEvent, Push, Server, ServerMessages, Session, SessionLost, Stage, Target,
    session::{DropReason, PresenceChange, PresenceStatus, TopicOptions},
};

use crate::support::{address, settle, until};

/// A client whose tries to come back are a second apart, and its session.
async fn guest(server: &Server, address: &str, user: &str) -> (Client, ServerMessages, Session) {
    let options = ClientOptions::new().auth(user).backoff(Duration::from_secs(1), Duration::from_secs(1));
    let (client, messages) = Client::bidirectional(address, options).await.expect("it listens");
    settle().await;
    let session = server.sessions(&Target::user(user)).expect("no topic")[0].clone();
    (client, messages, session)
}

/// Its network is gone, and stays so for a while.
async fn leave(client: &Client, session: &Session) {
    client.connection().expect("it is up").close();
    until(|| session.connection().is_none()).await;
}

/// When one client too many leaves, the session that has waited longest ends: its sender is told, who watches the
/// topic sees it go, its story says why, and its client learns that the session is lost. Who came back in time does
/// not count.
#[tokio::test(start_paused = true)]
async fn of_too_many_sessions_that_wait_the_longest_away_ends() {
    let server = Server::builder()
        .auth(|request| async move {
            request.session().expect("it is connected").bind_user(&request.token);
            Ok::<_, String>(())
        })
        .topic("room", TopicOptions::new().open().presence(true))
        .expect("a pattern")
        .sessions_away_max(2)
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (watcher, mut seen, _) = guest(&server, listening.address(), "watcher").await;
    watcher.subscribe("room").await.expect("open");
    let mut guests = Vec::new();
    for user in ["first", "second", "third", "fourth"] {
        let guest = guest(&server, listening.address(), user).await;
        guest.0.subscribe("room").await.expect("open");
        let change: PresenceChange = seen.next().await.expect("it came").decode().expect("a change");
        assert_eq!((change.user.as_str(), change.status), (user, PresenceStatus::Online));
        guests.push(guest);
    }
    let mut events = guests[1].0.events();

    // The first leaves and is back.
    leave(&guests[0].0, &guests[0].2).await;
    assert_eq!(server.stats().sessions_away, 1);
    until(|| guests[0].2.connection().is_some()).await;
    assert_eq!(server.stats().sessions_away, 0);

    // The others cannot come back for now.
    let place = listening.address().to_owned();
    drop(listening);
    leave(&guests[1].0, &guests[1].2).await;
    leave(&guests[2].0, &guests[2].2).await;
    let receipts = [1, 2].map(|at: usize| guests[at].2.push(&Push::new("Chat", "say", "hi")).expect("small"));
    settle().await;
    assert!(receipts.iter().all(|receipt| receipt.outcomes().at(Stage::Queued) == 1), "two may wait");
    leave(&guests[3].0, &guests[3].2).await;
    let outcomes = receipts[0].handled().await;
    assert_eq!(outcomes.at(Stage::Dropped(DropReason::SessionEnded)), 1);
    assert_eq!(receipts[1].outcomes().at(Stage::Queued), 1, "the one who left later waits still");
    assert_eq!((server.stats().sessions, server.stats().sessions_away), (4, 2));
    let change: PresenceChange = seen.next().await.expect("it came").decode().expect("a change");
    assert_eq!((change.user.as_str(), change.status), ("second", PresenceStatus::Offline));
    let story = format!("{}", server.explain(&Target::user("second")).expect("no topic")[0]);
    assert!(story.contains("sessions_away_max"), "{story}");

    let _listening = server.listen(&place).await.expect("the name is free");
    until(|| guests[3].2.connection().is_some()).await;
    let why = loop {
        if let ConnectionEvent::SessionLost { why, .. } = events.next().await.expect("the client is open") {
            break why;
        }
    };
    assert_eq!(why, SessionLost::Unknown);
    assert_eq!(receipts[1].received().await.at(Stage::Received), 1);
    assert_eq!(server.stats().sessions_away, 0);
}

/// A server that lets none wait ends each session with its connection.
#[tokio::test(start_paused = true)]
async fn a_bound_of_none_lets_none_wait() {
    let server = Server::builder().sessions_away_max(0).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (client, _messages) =
        Client::bidirectional(listening.address(), ClientOptions::new()).await.expect("it listens");
    settle().await;
    let session = server.sessions(&Target::everyone()).expect("no topic")[0].clone();
    drop(client);
    until(|| server.stats().sessions == 0).await;
    assert_eq!((server.stats().sessions_away, session.is_resumable()), (0, false));
}
