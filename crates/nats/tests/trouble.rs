//! Servers of the broker that are killed, stopped, and emptied, while nodes go on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bothways::cluster::{
    Engine, NodeId, Store,
    engine::{
        AppendError, AskError, BoxFuture, ClaimError, EngineState, Followed, Follower, Inbox, Log, NewEntry, Place,
        RenewError,
    },
};
use bothways_brokers::Broker;
use bothways_nats::{NatsEngine, NatsOptions};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

/// As long as the register may stand still, and a little.
const ELECTION_MAX: Duration = Duration::from_secs(40);
const LEASE: Duration = Duration::from_secs(15);

async fn engine(broker: &Broker) -> Arc<NatsEngine> {
    NatsEngine::connect(NatsOptions::new(broker.addresses())).await.expect("the broker works")
}

async fn until_up(state: &mut watch::Receiver<EngineState>, up: bool) -> EngineState {
    let found = timeout(ELECTION_MAX, state.wait_for(|state| state.is_up() == up)).await;
    *found.expect("it changes").expect("the engine is there")
}

/// Which server leads a stream.
async fn leader(broker: &Broker, through: usize, stream: &str) -> usize {
    let client = async_nats::connect(&broker.addresses()[through]).await.expect("it listens");
    let until = Instant::now() + ELECTION_MAX;
    loop {
        let info = client.request(format!("$JS.API.STREAM.INFO.{stream}"), Bytes::new()).await;
        let info: serde_json::Value =
            info.ok().and_then(|info| serde_json::from_slice(&info.payload).ok()).unwrap_or_default();
        if let Some(name) = info["cluster"]["leader"].as_str() {
            return broker.number_of(name);
        }
        assert!(Instant::now() < until, "no leader: {info}");
        sleep(Duration::from_millis(50)).await;
    }
}

struct Echo;

impl Inbox for Echo {
    fn take(&self, bytes: Bytes) -> BoxFuture<Option<Bytes>> {
        Box::pin(async move { Some(bytes) })
    }
}

#[derive(Default)]
struct Heard(Mutex<Vec<Followed>>);

impl Follower for Heard {
    fn message(&self, message: Followed) {
        self.0.lock().push(message);
    }
}

fn letters() -> Log {
    Log::Mailbox("ann".to_owned())
}

/// The broker is gone: everything ends within its bound, and says so. It is back: everything goes on, in new epochs.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_killed_and_comes_back() {
    let Some(mut broker) = Broker::one() else { return };
    let (one, other) = (engine(&broker).await, engine(&broker).await);
    let (me, id) = (NodeId::random(), "7".parse().expect("a session"));
    other.listen(me, Arc::new(Echo)).await.expect("it works");
    let lease = other.lease(me, Bytes::new(), LEASE).await.expect("it works");
    let record = one.claim(id, None, "1".into(), LEASE).await.expect("it works");
    let before = one.append(letters(), NewEntry::new("before")).await.expect("it works").place;
    let (mut mail, mut register) = (one.mail_state(), one.register_state());
    let epochs = (*mail.borrow(), *register.borrow());

    broker.kill(0);
    until_up(&mut mail, false).await;
    until_up(&mut register, false).await;
    let began = Instant::now();
    assert_eq!(one.ask(me, "x".into(), Duration::from_secs(3)).await, Err(AskError::Down));
    assert!(one.append(letters(), NewEntry::new("lost")).await.is_err());
    assert!(one.read(letters(), 0, 10).await.is_err());
    assert_eq!(one.claim(id, Some(record), "2".into(), LEASE).await, Err(ClaimError::Down));
    assert!(one.publish("news".to_owned(), "x".into()).await.is_err());
    assert!(one.follow("news".to_owned(), Arc::<Heard>::default()).await.is_err());
    assert_eq!(lease.renew(Bytes::new()).await, Err(RenewError::Down));
    assert!(began.elapsed() < Duration::from_secs(1), "nobody waits for what is gone: {:?}", began.elapsed());

    broker.start(0);
    let mail_now = until_up(&mut mail, true).await;
    let register_now = until_up(&mut register, true).await;
    assert!(mail_now != epochs.0 && register_now != epochs.1, "there was a gap");
    until_up(&mut other.mail_state(), true).await;
    assert_eq!(one.ask(me, "x".into(), Duration::from_secs(3)).await, Ok("x".into()), "it listens by itself");
    assert_eq!(lease.renew(Bytes::new()).await, Ok(()));
    let after = one.append(letters(), NewEntry::new("after")).await.expect("it works").place;
    assert_eq!((before.epoch, true), (after.epoch, before.sequence < after.sequence), "the same store");
    let page = one.read(letters(), 0, 10).await.expect("it works");
    assert_eq!(page.entries, [(before, "before".into()), (after, "after".into())]);
    one.claim(id, Some(record), "2".into(), LEASE).await.expect("it is the last");
}

/// The broker has lost all that it had: places, revisions and leases from earlier count for nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_lost_its_data_is_another_epoch() {
    let Some(mut broker) = Broker::one() else { return };
    let (one, me, id) = (engine(&broker).await, NodeId::random(), "7".parse().expect("a session"));
    let lease = one.lease(me, Bytes::new(), LEASE).await.expect("it works");
    let record = one.claim(id, None, "1".into(), LEASE).await.expect("it works");
    let before = one.append(letters(), NewEntry::new("1")).await.expect("it works").place;
    one.advance(letters(), "phone".to_owned(), before, LEASE).await.expect("it works");
    let mut register = one.register_state();
    let epoch = *register.borrow_and_update();

    broker.kill(0);
    until_up(&mut register, false).await;
    broker.wipe(0);
    broker.start(0);
    let now = until_up(&mut register, true).await;
    assert_ne!(now, epoch);
    assert!(!one.members().borrow().contains_key(&me));
    assert_eq!(lease.renew(Bytes::new()).await, Err(RenewError::Lapsed));
    assert_eq!(one.session(id, true).await, Ok(None));
    // Another one has a record of the same sequence meanwhile.
    one.claim(id, None, "2".into(), LEASE).await.expect("there is none");
    assert!(matches!(one.claim(id, Some(record), "3".into(), LEASE).await, Err(ClaimError::Lost(_))));
    assert_eq!(one.cursor(letters(), "phone".to_owned()).await, Ok(None));
    let after = one.append(letters(), NewEntry::new("2")).await.expect("it works").place;
    assert_ne!(before.epoch, after.epoch);
    one.trim(letters(), before).await.expect("of another epoch");
    assert_eq!(one.read(letters(), 0, 10).await.expect("it works").entries.len(), 1);
}

/// The server stores two entries after the one that it has on its disk, its machine fails, and it comes back without them.
/// Returns the place of the one that is kept, and of the last that is lost.
async fn lose_the_end(broker: &mut Broker, nodes: [&NatsEngine; 2]) -> (Place, Place) {
    let kept = nodes[0].append(letters(), NewEntry::new("kept")).await.expect("it works").place;
    kill(broker, nodes).await;
    broker.keep(0);
    broker.start(0);
    for node in nodes {
        until_up(&mut node.register_state(), true).await;
    }
    let again = nodes[0].append(letters(), NewEntry::new("again")).await.expect("it works").place;
    assert_eq!((again.epoch, again.sequence), (kept.epoch, kept.sequence + 1), "nothing was lost");
    let lost = nodes[0].append(letters(), NewEntry::new("lost")).await.expect("it works").place;

    kill(broker, nodes).await;
    broker.fall_back(0);
    broker.start(0);
    (kept, lost)
}

async fn kill(broker: &mut Broker, nodes: [&NatsEngine; 2]) {
    broker.kill(0);
    for node in nodes {
        until_up(&mut node.register_state(), false).await;
    }
}

async fn append_until_it_works(to: &NatsEngine) -> Place {
    let until = Instant::now() + ELECTION_MAX;
    loop {
        match to.append(letters(), NewEntry::new("new").with_key("a key")).await {
            Ok(stored) => return stored.place,
            Err(error) => assert!(Instant::now() < until, "it works again: {error}"),
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// N20. A single server acknowledges before it writes to its disk. Its machine fails, and it comes back without the end of
/// a log, whose sequences it gives to other entries: every place from before is of another epoch, at every node, whether a
/// node looks at the log or appends to it first.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_lost_its_end_is_another_epoch() {
    for appends_first in [false, true] {
        let Some(mut broker) = Broker::one() else { return };
        let (one, other) = (engine(&broker).await, engine(&broker).await);
        let (kept, lost) = lose_the_end(&mut broker, [&one, &other]).await;
        if !appends_first {
            until_up(&mut one.register_state(), true).await;
        }
        let new = append_until_it_works(&one).await;
        assert!(new.sequence <= lost.sequence, "a sequence comes again: {new:?}, {lost:?}");
        assert_ne!(new.epoch, kept.epoch, "appends_first: {appends_first}");
        let entries = one.read(letters(), 0, 10).await.expect("it works").entries;
        let texts: Vec<&[u8]> = entries.iter().map(|(_, text)| &text[..]).collect();
        assert_eq!(texts, [&b"kept"[..], b"new"], "stored once");
        assert!(entries.iter().all(|(place, _)| place.epoch == new.epoch));

        // The other node has seen nothing of what was lost.
        let until = Instant::now() + ELECTION_MAX;
        loop {
            let page = other.read(letters(), 0, 10).await;
            if page.is_ok_and(|page| page.entries.iter().all(|(place, _)| place.epoch == new.epoch)) {
                break;
            }
            assert!(Instant::now() < until, "the other node finds the epoch in the stream");
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// A node that may not write down that a log has lost its end does not use it, and does all else.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_end_that_cannot_be_written_down_stops_its_log_alone() {
    let user = "publish: { allow: [\"bw.>\", \"$JS.API.>\"], deny: \"$JS.API.STREAM.UPDATE.>\" }, subscribe: \"bw.>\"";
    let user = format!("authorization {{ users: [{{ user: ann, password: x, permissions: {{ {user} }} }}] }}\n");
    let Some(mut broker) = Broker::with(&user) else { return };
    let options = NatsOptions::new(broker.addresses()).user_and_password("ann", "x");
    let one = NatsEngine::connect(options.clone()).await.expect("the broker works");
    let other = NatsEngine::connect(options).await.expect("the broker works");
    lose_the_end(&mut broker, [&one, &other]).await;
    until_up(&mut one.register_state(), true).await;
    assert_eq!(one.append(letters(), NewEntry::new("new")).await.map(drop), Err(AppendError::Down));
    assert!(one.read(letters(), 0, 10).await.is_err());
    one.claim("7".parse().expect("a session"), None, "1".into(), LEASE).await.expect("the register works");
}

/// R9, R11, R24. The leader of the leases is killed, and stopped: both nodes keep theirs, mail goes on, every entry that
/// was acknowledged is there, once, and followers see no hole.
#[tokio::test(flavor = "multi_thread")]
async fn leaders_that_are_killed_and_stopped() {
    let Some(mut broker) = Broker::three() else { return };
    let nodes = [engine(&broker).await, engine(&broker).await];
    let mut leases = Vec::new();
    let mut names = Vec::new();
    for node in &nodes {
        let me = NodeId::random();
        node.listen(me, Arc::new(Echo)).await.expect("it works");
        leases.push((node.lease(me, Bytes::new(), LEASE).await.expect("it works"), me));
        names.push(me);
    }
    let heard = Arc::<Heard>::default();
    let _following = nodes[1].follow("news.>".to_owned(), Arc::clone(&heard) as _).await.expect("it works");

    let goes_on = Arc::new(AtomicBool::new(true));
    let appending = tokio::spawn(append_all(Arc::clone(&nodes[0]), Arc::clone(&goes_on)));
    let renewing: Vec<_> =
        leases.into_iter().map(|lease| tokio::spawn(renew_all(lease, Arc::clone(&goes_on)))).collect();

    for blow in ["kill", "stop"] {
        let victim = leader(&broker, 0, "bw_bothways_k").await;
        println!("{blow} of the leader n{victim}");
        match blow {
            "kill" => broker.kill(victim),
            _ => broker.stop(victim),
        }
        sleep(Duration::from_secs(12)).await;
        match blow {
            "kill" => broker.start(victim),
            _ => broker.go_on(victim),
        }
        for node in &nodes {
            until_up(&mut node.mail_state(), true).await;
            until_up(&mut node.register_state(), true).await;
        }
        let answered = nodes[0].ask(names[1], "x".into(), Duration::from_secs(3)).await;
        assert_eq!(answered, Ok("x".into()), "after the {blow}");
        sleep(Duration::from_secs(2)).await;
    }

    goes_on.store(false, Ordering::Relaxed);
    for renewing in renewing {
        let longest = renewing.await.expect("no lease has ended");
        println!("the longest time without a renewal: {longest:?}");
    }
    let (acked, unknown) = appending.await.expect("no panic");
    let (mut stored, mut after) = (Vec::new(), 0);
    loop {
        let page = nodes[1].read(news(), after, 1000).await.expect("it works");
        let Some((last, _)) = page.entries.last() else { break };
        after = last.sequence;
        stored.extend(page.entries);
    }
    println!("{} acknowledged, {} stored, {unknown} of unknown end meanwhile", acked.len(), stored.len());
    assert!(100 < acked.len());
    let count = |bytes: &Bytes| stored.iter().filter(|(_, other)| other == bytes).count();
    for (place, bytes) in &acked {
        assert!(stored.contains(&(*place, bytes.clone())), "{place:?} was acknowledged");
        assert_eq!(count(bytes), 1, "a key is stored once");
    }
    check_chain(&heard.0.lock(), &stored);
}

/// R14. The server of a node stands still, and its connection stays open: the node leaves it for another one, keeps its
/// lease, and is found again.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stands_still_is_left() {
    let Some(mut broker) = Broker::three() else { return };
    let addresses = broker.addresses();
    let other = NatsEngine::connect(NatsOptions::new([&addresses[2]])).await.expect("it works");
    // The second does not answer now: it comes to the first.
    broker.stop(1);
    let node = NatsEngine::connect(NatsOptions::new(&addresses[..2]).start_max(ELECTION_MAX)).await;
    let node = node.expect("two are enough");
    broker.go_on(1);
    let (me, lease) = begin_life(&node).await;
    until_answered(&other, me).await;

    let goes_on = Arc::new(AtomicBool::new(true));
    let renewing = tokio::spawn(renew_all((lease, me), Arc::clone(&goes_on)));
    let mut mail = node.mail_state();
    let epoch = *mail.borrow_and_update();
    broker.stop(0);
    let began = Instant::now();
    while other.ask(me, "x".into(), Duration::from_millis(500)).await == Ok("x".into()) {
        assert!(began.elapsed() < Duration::from_secs(2), "it is at another server");
    }
    println!("not found after {:?}", began.elapsed());
    let left = timeout(Duration::from_secs(20), mail.wait_for(|state| state.is_up() && *state != epoch)).await;
    left.expect("it is left").expect("the engine is there");
    until_answered(&other, me).await;
    println!("found again after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    sleep(Duration::from_secs(5)).await;
    goes_on.store(false, Ordering::Relaxed);
    println!("the longest time without a renewal: {:?}", renewing.await.expect("its lease has not ended"));
    broker.go_on(0);
}

/// A name that is listened to and has a lease. While a leader is elected there is none: as a node does, it is tried again
/// under another name, for nobody knows whether the first got one.
async fn begin_life(node: &NatsEngine) -> (NodeId, Arc<dyn bothways::cluster::engine::Lease>) {
    let until = Instant::now() + ELECTION_MAX;
    loop {
        let me = NodeId::random();
        node.listen(me, Arc::new(Echo)).await.expect("it works");
        match node.lease(me, Bytes::new(), LEASE).await {
            Ok(lease) => return (me, lease),
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        node.deafen(me).await;
        sleep(Duration::from_millis(50)).await;
    }
}

async fn until_answered(asker: &NatsEngine, node: NodeId) {
    let until = Instant::now() + ELECTION_MAX;
    while asker.ask(node, "x".into(), Duration::from_secs(1)).await != Ok("x".into()) {
        assert!(Instant::now() < until, "it does not answer");
        sleep(Duration::from_millis(50)).await;
    }
}

fn news() -> Log {
    Log::History("news.sport".to_owned())
}

/// One entry after another, each until it is known to be stored.
async fn append_all(node: Arc<NatsEngine>, goes_on: Arc<AtomicBool>) -> (Vec<(Place, Bytes)>, usize) {
    let (mut acked, mut unknown) = (Vec::new(), 0);
    for number in 0_u64.. {
        let bytes = Bytes::from(number.to_string());
        let entry = NewEntry::new(bytes.clone()).with_key(number.to_string());
        loop {
            match node.append(news(), entry.clone()).await {
                Ok(stored) => break acked.push((stored.place, bytes)),
                Err(AppendError::Unknown) => unknown += 1,
                Err(AppendError::Down) => {}
                Err(error) => panic!("{error}"),
            }
            sleep(Duration::from_millis(100)).await;
        }
        if !goes_on.load(Ordering::Relaxed) || number == 990 {
            break;
        }
        sleep(Duration::from_millis(30)).await;
    }
    (acked, unknown)
}

/// Renews a lease each second, and returns the longest time without success.
async fn renew_all(
    (lease, me): (Arc<dyn bothways::cluster::engine::Lease>, NodeId),
    goes_on: Arc<AtomicBool>,
) -> Duration {
    let (mut longest, mut last) = (Duration::ZERO, Instant::now());
    while goes_on.load(Ordering::Relaxed) {
        match lease.renew(Bytes::new()).await {
            Ok(()) => {
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
            Err(RenewError::Down) => {}
            Err(error) => panic!("the lease of {me}: {error} after {:?}", last.elapsed()),
        }
        sleep(Duration::from_secs(1)).await;
    }
    longest
}

/// What a follower heard is a part of what is stored, in order; and where something is missing, the chain shows it.
fn check_chain(heard: &[Followed], stored: &[(Place, Bytes)]) {
    let places: Vec<u64> = stored.iter().map(|(place, _)| place.sequence).collect();
    let (mut last, mut holes) = (0, 0);
    for message in heard {
        let (place, before) = message.stored.expect("a history");
        let at = places.binary_search(&place.sequence).expect("it is stored");
        assert_eq!(stored[at].1, message.bytes);
        assert!(last < place.sequence, "in order");
        assert_eq!(before, at.checked_sub(1).map_or(0, |before| places[before]), "the chain tells the one before");
        holes += usize::from(before != last);
        last = place.sequence;
    }
    println!("{} heard, with {holes} holes that the chain shows", heard.len());
    assert!(!heard.is_empty());
}
