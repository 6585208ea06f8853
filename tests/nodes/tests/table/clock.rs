//! A clock that jumps.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use bothways_brokers::Broker;
use bothways_nodes::{As, CallEnd, Node, Proxy, Stored, To, until};

use crate::{CALL_MAX, LEASE, NEWS, ROOM, Row, assert_handled, came_in_order, connected, handled_once, options, user};

pub(crate) const ROWS: [&str; 1] = ["the clock of a node jumps"];

/// Debian's `libfaketime`, which gives a program another time of day.
fn faketime() -> Option<PathBuf> {
    let folders = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib", "/usr/local/lib"];
    let libraries = folders.map(|folder| Path::new(folder).join("faketime/libfaketimeMT.so.1"));
    let found = libraries.into_iter().find(|library| library.exists());
    if found.is_none() {
        println!("skipped: no libfaketime");
        assert!(std::env::var_os("CI").is_none(), "there is no libfaketime, and in CI no test is skipped");
    }
    found
}

/// The time of day of the owner is a day ahead, and then a day behind. What counts durations is as ever: no call of the
/// system sets that.
#[tokio::test(flavor = "multi_thread")]
async fn the_clock_of_a_node_jumps() {
    let (Some(broker), Some(library)) = (Broker::one(), faketime()) else { return };
    let row = Row::of(ROWS[0]);
    let folder = tempfile::tempdir().expect("a folder");
    let jump = folder.path().join("jump");
    let jumps = |by: &str| std::fs::write(&jump, by).expect("our own folder");
    jumps("+0");
    let variables = [
        ("LD_PRELOAD", library.to_str().expect("a path")),
        ("FAKETIME_TIMESTAMP_FILE", jump.to_str().expect("a path")),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("FAKETIME_NO_CACHE", "1"),
    ];
    let owner = Node::start_in(&options(broker.addresses()), &variables).await;
    let origin = Node::start(&options(broker.addresses())).await;
    Node::know_each_other(&[&origin, &owner]).await;
    let way = Proxy::to([owner.address()]).await;
    let ann = user(&way, "ann").await;
    let lives = [origin.id(), owner.id()];

    let mut base = 0;
    for by in ["+86400", "-86400"] {
        // Under way when it jumps.
        ann.hold();
        let all_jump = async {
            ann.until("the call runs", |ann| ann.calls(base + 7).0 == 1).await;
            origin.push(To::user("ann"), As::Tracked, base + 1, 5).await;
            origin.push(To::user("ann"), As::Durable, base + 101, 5).await;
            origin.publish(NEWS, base + 201, 5).await;
            jumps(by);
            let jumped = Instant::now();
            let off = time_of_day(&owner, base + 500).await;
            assert!(Duration::from_secs(80_000) < off, "its clock is {off:?} off");
            // As long as leases, and whatever else counts time, may take to notice.
            while jumped.elapsed() < LEASE + Duration::from_secs(3) {
                tokio::time::sleep(Duration::from_millis(100)).await;
                assert_eq!(connected(&origin, "ann").await, [owner.id()]);
            }
            owner.push(To::user("ann"), As::Durable, base + 106, 5).await;
            owner.publish(NEWS, base + 206, 5).await;
            origin.push(To::user("ann"), As::Tracked, base + 6, 5).await;
            ann.go_on();
        };
        let (call, ()) = tokio::join!(origin.call(To::user("ann"), base + 7, CALL_MAX), all_jump);
        row.cell("call under way", async {
            assert_eq!((call, ann.calls(base + 7)), (CallEnd::Reply(base + 7), (1, 1, 0)));
        })
        .await;
        row.cell("tracked push", async {
            handled_once(&ann, base + 1..=base + 10).await;
            assert_handled(&origin.receipts_over(base + 1, base + 10).await);
        })
        .await;
        row.cell("Durable", async {
            handled_once(&ann, base + 101..=base + 110).await;
            let told = owner.receipts_over(base + 106, base + 110).await;
            assert!(told.iter().all(|told| matches!(told.stored, Stored::In(1, _))), "{told:?}");
        })
        .await;
        base += 1000;
    }
    row.cell("topic with history", async {
        let all = (0..2).flat_map(|round| round * 1000 + 201..=round * 1000 + 210);
        came_in_order(&ann, NEWS, all.collect()).await;
    })
    .await;
    row.cell("presence", async {
        until("she is seen", async || owner.presence(ROOM).await == ["ann"]).await;
    })
    .await;
    for (node, life) in [&origin, &owner].into_iter().zip(lives) {
        assert_eq!(node.members().await.me.as_deref(), Some(life), "nobody was judged");
    }
    assert_eq!((ann.sessions_lost(), ann.times_back()), (vec![], 0));
    row.done(&["tracked push", "Durable", "topic with history", "call under way", "presence"]);
}

/// How far the time of day of a node is from that of this process: by what it notes of this push.
async fn time_of_day(node: &Node, number: u64) -> Duration {
    node.push(To::user("ann"), As::Fire, number, 1).await;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    let seen = node.sessions(To::user("ann")).await;
    let last = seen[0].told.events.last().expect("it has connected");
    Duration::from_millis(last.at_ms).abs_diff(now)
}
