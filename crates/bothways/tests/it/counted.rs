//! What a server counts: each event once, under the name that says what it was.

use std::time::Duration;

use bothways::{
    Class, Metadata, OutgoingOptions, Overflow, Push, QueueBound, Server, Stage, Target, session::QueueStats,
};
use bothways_proto::keys;

use crate::{
    scripted::{Scripted, arrive, claim, ping, request},
    support::{address, connections, echoing, settle, until},
};

/// A client that comes back is counted by how that went, and its session by where it stands meanwhile, with what waits in it.
#[tokio::test(start_paused = true)]
async fn those_who_come_back_are_counted_by_how_that_went() {
    let server = Server::builder().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (client, welcome) = arrive(listening.address(), &Metadata::new()).await;
    assert_eq!(server.stats().resumes.total(), 0, "a client that comes first comes not back");
    client.reset();
    until(|| server.stats().sessions_away == 1).await;
    let receipt = server.push(&Target::everyone(), &Push::new("Chat", "say", vec![7; 5000])).expect("small");
    let QueueStats { plain, resumable, away, pushes, bytes, bytes_max, sessions_by_bytes, .. } = server.queues();
    assert_eq!((plain, resumable, away, pushes), (0, 0, 1, 1));
    assert!((5000..5200).contains(&bytes) && bytes == bytes_max);
    // More than 4 KiB and at most 16 KiB.
    assert_eq!(sessions_by_bytes, [0, 0, 0, 1, 0, 0, 0, 0, 0]);

    let (_back, _) = arrive(listening.address(), &claim(&welcome, 0)).await;
    assert_eq!((server.queues().resumable, server.queues().away), (1, 0));
    let stranger = Metadata::new().with(keys::SESSION_ID, "0123456789abcdef0123456789abcdef");
    let (_fresh, _) = arrive(listening.address(), &stranger).await;
    let (_odd, _) = arrive(listening.address(), &Metadata::new().with(keys::SESSION_ID, "no session")).await;
    let resumes = server.stats().resumes;
    assert_eq!((resumes.get("resumed"), resumes.get("unknown"), resumes.total()), (1, 2, 3), "{resumes:?}");
    assert_eq!(server.stats().closes.total(), 1, "the one that was reset");

    // The end of its session is an end of its push, of which nobody knows more.
    assert_eq!(receipt.outcomes().open(), 1);
    server.kick(&Target::everyone(), "enough").expect("no topic");
    assert_eq!(receipt.outcomes().at(Stage::Unknown), 1);
    let pushes = server.stats().pushes;
    assert_eq!((pushes.tracked.get("unknown"), pushes.tracked.total()), (1, 1), "{pushes:?}");
}

/// What is in no receipt is counted too: pushes without a session that find the queue full, and those that wait behind
/// a full socket when their connection ends.
#[tokio::test(start_paused = true)]
async fn what_is_given_up_is_counted_by_why() {
    for (overflow, refuses) in [(Overflow::RefuseNewest, true), (Overflow::DropOldest, false)] {
        let queue = OutgoingOptions::new().push_queue(QueueBound::messages(100).bytes(4 << 20)).overflow(overflow);
        let server = echoing().outgoing(queue).build();
        let listening = server.listen(&address()).await.expect("the name is free");
        let mut slow = Scripted::connect(listening.address()).await;
        slow.say(ping(0)).await;
        let connection = connections(&server, 1).await.remove(0);
        let mut refused = 0;
        for _ in 0..1000 {
            refused += u64::from(connection.send_message("T", "News", &Metadata::new(), vec![7; 10_000]).is_err());
            settle().await;
        }
        let stats = connection.stats();
        let given_up = if refuses { refused } else { stats.pushes_dropped };
        assert!(0 < given_up && refuses == (refused != 0), "{overflow:?}: {stats:?}");
        assert_eq!(server.stats().drops.get("queue_full"), given_up, "{overflow:?}");
        assert_eq!(stats.pushes_waiting, 100);

        server.shutdown(Duration::ZERO).await;
        let (drops, closes) = (server.stats().drops, server.stats().closes);
        assert_eq!((closes.get("local"), closes.total()), (1, 1), "{closes:?}");
        // The first of them were about to be written.
        let ended = drops.get("connection_ended");
        assert!((90..=100).contains(&ended), "{overflow:?}: {drops:?}");
        assert_eq!(drops.total(), given_up + ended, "{overflow:?}");
    }
}

/// Every push to a session is counted where it ends, by its class.
#[tokio::test(start_paused = true)]
async fn pushes_are_counted_by_class_and_end() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut plain = Scripted::connect(listening.address()).await;
    plain.say(request(0, "Echo", b"")).await;
    connections(&server, 1).await;
    settle().await;
    for class in [Class::Fire, Class::Latest("key".to_owned()), Class::Tracked] {
        let receipt = server.push(&Target::everyone(), &Push::new("T", "m", "x").class(class)).expect("small");
        tokio::time::timeout(Duration::from_secs(10), receipt.handled()).await.expect("it ends when it is written");
    }
    for (class, counts) in server.stats().pushes.iter() {
        assert_eq!((counts.get("plain_written"), counts.total()), (1, 1), "{class}");
    }
}
