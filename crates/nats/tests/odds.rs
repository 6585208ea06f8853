//! What a broker, its network and its operators do at odd moments: messages that are lost inside a batch, listeners to
//! everything, bounds, replicas that are taken away.

use std::{sync::Arc, time::Duration};

use bothways::{
    cluster::{
        Engine, NodeId, Store,
        engine::{
            AppendError, AskError, BoxFuture, EngineDown, Inbox, Level, Log, NewEntry, Place, READER_BYTES_MAX,
            Revision,
        },
    },
    session::SessionId,
};
use bothways_brokers::Broker;
use bothways_nats::{NatsEngine, NatsOptions};
use bytes::Bytes;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, copy},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

const LEASE: Duration = Duration::from_secs(15);
const KEEP: Duration = Duration::from_secs(3600);
/// As long as something may take that the broker does by itself.
const SOON: Duration = Duration::from_secs(30);

fn letters() -> Log {
    Log::Mailbox("ann".to_owned())
}

fn session(number: u64) -> SessionId {
    format!("{number:x}").parse().expect("a session")
}

async fn engine(address: impl Into<String>) -> Arc<NatsEngine> {
    NatsEngine::connect(NatsOptions::new([address.into()])).await.expect("the broker works")
}

/// A way to a server on which the messages of batches that have one of these sequences are lost.
async fn losing(server: String, lost: Vec<u64>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = format!("nats://{}", listener.local_addr().expect("it listens"));
    let server = server.trim_start_matches("nats://").to_owned();
    tokio::spawn(async move {
        while let Ok((node, _)) = listener.accept().await {
            let Ok(server) = TcpStream::connect(&server).await else { continue };
            let ((from_node, to_node), (from_server, to_server)) = (node.into_split(), server.into_split());
            tokio::spawn(async move {
                let (mut from_node, mut to_server) = (from_node, to_server);
                copy(&mut from_node, &mut to_server).await
            });
            tokio::spawn(lose(BufReader::new(from_server), to_node, lost.clone()));
        }
    });
    address
}

/// Passes on what a server says, line by line and message by message.
async fn lose(mut from: BufReader<OwnedReadHalf>, mut to: OwnedWriteHalf, lost: Vec<u64>) -> std::io::Result<()> {
    let mut line = String::new();
    while from.read_line(&mut line).await? != 0 {
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut bytes = Vec::new();
        if let ["HMSG" | "MSG", .., size] = words[..] {
            bytes.resize(size.parse::<usize>().expect("a length") + 2, 0);
            from.read_exact(&mut bytes).await?;
        }
        let head = String::from_utf8_lossy(&bytes[..bytes.len().min(1024)]).into_owned();
        let is_lost = lost.iter().any(|sequence| head.contains(&format!("\r\nNats-Sequence: {sequence}\r\n")));
        if !is_lost {
            to.write_all(line.as_bytes()).await?;
            to.write_all(&bytes).await?;
        }
        line.clear();
    }
    Ok(())
}

/// A route that breaks for a moment takes messages out of the middle of a batch: a reader gets them all the same, before
/// those behind them. The first and the last are no others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_lost_inside_a_page_is_read_again() {
    let Some(broker) = Broker::one() else { return };
    let address = broker.addresses().remove(0);
    let writer = engine(&*address).await;
    let mut places = Vec::new();
    for number in 0..20 {
        let stored = writer.append(letters(), NewEntry::new(format!("letter {number}"))).await.expect("there is room");
        places.push(stored.place);
    }
    for lost in [vec![7, 8, 9], vec![1], vec![20], (1..=20).collect()] {
        let reader = engine(losing(address.clone(), lost.clone()).await).await;
        let page = reader.read(letters(), 0, 100).await.expect("it works");
        let got: Vec<Place> = page.entries.iter().map(|(place, _)| *place).collect();
        assert_eq!(got, places, "without {lost:?}");
        assert_eq!(page.entries[8].1, "letter 8");
    }
}

struct Echo;

impl Inbox for Echo {
    fn take(&self, bytes: Bytes) -> BoxFuture<Option<Bytes>> {
        Box::pin(async move { Some(bytes) })
    }
}

/// An operator's `nats sub '>'` keeps no node from starting, listening, following and leaving.
#[tokio::test]
async fn somebody_who_listens_to_everything_stops_nobody() {
    let Some(broker) = Broker::one() else { return };
    let address = broker.addresses().remove(0);
    let operator = async_nats::connect(&address).await.expect("it listens");
    let _everything = operator.subscribe(">").await.expect("it is allowed");
    operator.flush().await.expect("it listens");

    let (one, other, me) = (engine(&*address).await, engine(&*address).await, NodeId::random());
    one.listen(me, Arc::new(Echo)).await.expect("it works");
    assert_eq!(other.ask(me, "x".into(), Duration::from_secs(3)).await, Ok("x".into()));
    let lease = one.lease(me, Bytes::new(), LEASE).await.expect("it works");
    assert_eq!(lease.renew(Bytes::new()).await, Ok(()));
    let began = Instant::now();
    one.deafen(me).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    // All that it costs: the server does not say that nobody is there.
    let asked = other.ask(me, "x".into(), Duration::from_millis(200)).await;
    assert_eq!(asked, Err(AskError::TimedOut));
}

/// Logs have a bound in bytes, which a full mailbox shows. Records, leases and cursors have none: the oldest is as good as
/// any other.
#[tokio::test]
async fn a_bound_in_bytes_takes_no_record() {
    let Some(broker) = Broker::one() else { return };
    let options = NatsOptions::new(broker.addresses()).stream_bytes_max(64 << 10);
    let one = NatsEngine::connect(options).await.expect("the broker works");
    let lease = one.lease(NodeId::random(), vec![1; 1000].into(), LEASE).await.expect("there is room");
    let mut sessions: Vec<(SessionId, Revision)> = Vec::new();
    for number in 0..100 {
        let id = session(number);
        let revision = one.claim(id, None, vec![7; 1000].into(), KEEP).await.expect("there is room");
        sessions.push((id, revision));
        one.lease(NodeId::random(), vec![1; 1000].into(), LEASE).await.expect("there is room");
    }
    for (id, revision) in sessions {
        let record = one.session(id, true).await.expect("it works").map(|(_, revision)| revision);
        assert_eq!(record, Some(revision), "it is as it was");
    }
    assert_eq!(lease.renew(vec![1; 1000].into()).await, Ok(()));

    let mut stored = 0;
    let refused = loop {
        let entry = NewEntry::new(vec![7; 1000]).with_time_to_live(KEEP);
        match one.append(letters(), entry).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, AppendError::Full);
    let page = one.read(letters(), 0, 1000).await.expect("it works");
    assert_eq!(page.entries.len(), stored, "nothing made way");
}

/// A part of the readers is not all: who trims by it would take letters from those that are left out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_readers_than_are_read_are_an_error() {
    let Some(broker) = Broker::one() else { return };
    let one = engine(broker.addresses().remove(0)).await;
    let place = Place { epoch: 7, sequence: 5 };
    let begin = async |names: std::ops::Range<usize>| {
        let mut all = JoinSet::new();
        for number in names {
            all.spawn(one.advance(letters(), format!("device {number}"), place, KEEP));
        }
        while let Some(moved) = all.join_next().await {
            assert_eq!(moved.expect("no panic"), Ok(place));
        }
    };
    begin(0..900).await;
    assert_eq!(one.cursors(letters()).await.map(|all| all.len()), Ok(900));
    begin(900..1100).await;
    assert_eq!(one.cursors(letters()).await, Err(EngineDown));
    assert_eq!(one.cursor(letters(), "device 1099".to_owned()).await, Ok(Some(place)), "each by its name is there");
    assert!(one.cursor(letters(), "x".repeat(READER_BYTES_MAX + 1)).await.is_err());
}

/// Many large letters at once fill what logs may have under way, and wait; leases, records and mail go on beside
/// them, and nothing is said to be down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_that_wait_for_room_keep_nothing_else_from_it() {
    let Some(broker) = Broker::one() else { return };
    let address = broker.addresses().remove(0);
    let (one, other, me) = (engine(&*address).await, engine(&*address).await, NodeId::random());
    other.listen(me, Arc::new(Echo)).await.expect("it works");
    let lease = one.lease(me, Bytes::new(), LEASE).await.expect("it works");
    let mut register = one.register_state();
    let up = *register.borrow_and_update();

    let letter = Bytes::from(vec![7; 64 << 10]);
    let mut all = JoinSet::new();
    // Half as much again as may be under way.
    for user in 0..(24 << 20) / letter.len() {
        let entry = NewEntry::new(letter.clone()).with_time_to_live(KEEP);
        all.spawn(one.append(Log::Mailbox(format!("user {user}")), entry));
    }
    tokio::task::yield_now().await;
    assert_eq!(one.ask(me, "x".into(), Duration::from_secs(3)).await, Ok("x".into()));
    assert_eq!(lease.renew(Bytes::new()).await, Ok(()));
    one.claim(session(1000), None, "1".into(), LEASE).await.expect("there is room");
    while let Some(stored) = all.join_next().await {
        let stored = stored.expect("no panic");
        assert!(stored.is_ok(), "{stored:?}");
    }
    assert_eq!(*register.borrow(), up, "nothing was down");
}

/// What has one copy since is not said to have three, and a mailbox whose bounds somebody changed is not written to, while
/// all else goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_somebody_changes_meanwhile() {
    let Some(broker) = Broker::three() else { return };
    let one = NatsEngine::connect(NatsOptions::new(broker.addresses())).await.expect("the broker works");
    let append = async || one.append(letters(), NewEntry::new("x").with_time_to_live(KEEP)).await;
    assert_eq!(append().await.map(|stored| stored.level), Ok(Level::Replicated));

    let operator = async_nats::connect(&broker.addresses()[0]).await.expect("it listens");
    let edit = async |stream: &str, change: &dyn Fn(&mut serde_json::Value)| {
        let info = operator.request(format!("$JS.API.STREAM.INFO.{stream}"), Bytes::new()).await.expect("it listens");
        let mut config: serde_json::Value = serde_json::from_slice(&info.payload).expect("JSON");
        change(&mut config["config"]);
        let config = config["config"].to_string();
        let edited = operator.request(format!("$JS.API.STREAM.UPDATE.{stream}"), config.into()).await;
        let edited: serde_json::Value = serde_json::from_slice(&edited.expect("it listens").payload).expect("JSON");
        assert!(edited["error"].is_null(), "{edited}");
    };
    for number in 0..4 {
        edit(&format!("bw_bothways_m{number}"), &|config| config["num_replicas"] = 1.into()).await;
    }
    let until = async |what: &str, holds: &dyn Fn(&Result<bothways::cluster::engine::Stored, AppendError>) -> bool| {
        let found = timeout(SOON, async {
            while !holds(&append().await) {
                sleep(Duration::from_millis(100)).await;
            }
        });
        assert!(found.await.is_ok(), "{what}");
    };
    until("one copy is not three", &|stored| matches!(stored, Ok(stored) if stored.level == Level::Memory)).await;

    for number in 0..4 {
        edit(&format!("bw_bothways_m{number}"), &|config| config["max_msgs_per_subject"] = 7.into()).await;
    }
    until("it is not written to", &|stored| matches!(stored, Err(AppendError::Down))).await;
    assert!(one.register_state().borrow().is_up(), "the register goes on");
    one.claim(session(1000), None, "1".into(), LEASE).await.expect("it works");
    let history = one.append(Log::History("news".to_owned()), NewEntry::new("x")).await.expect("it works");
    assert_eq!(history.level, Level::Replicated);
    for number in 0..4 {
        edit(&format!("bw_bothways_m{number}"), &|config| config["max_msgs_per_subject"] = 1000.into()).await;
    }
    until("it is used again", &|stored| stored.is_ok()).await;
}
