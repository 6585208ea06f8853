//! Storms over processes: three nodes with clients, three servers of NATS, and a fourth node that pushes; nodes and servers are
//! killed, stopped and started again, nodes drain, and clients move and leave. At the end the sum is exact.
//!
//! `BOTHWAYS_STORM=full` has the large ones, and `BOTHWAYS_STORM_SEED` names one seed.

#[path = "../../../crates/bothways/tests/storm/accounts.rs"]
mod accounts;
#[path = "../../../crates/bothways/tests/storm/schedule.rs"]
mod schedule;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use accounts::{Accounts, Aim, Pushed, Seen, Sum, Told};
use bothways::{Client, ClientOptions, ConnectionEvent, ServerMessages, session::SessionId};
use bothways_brokers::Broker;
use bothways_nodes::{As, Node, Options, Proxy, Stored, To};
use parking_lot::Mutex;
use rand::{RngExt as _, rngs::StdRng};
use schedule::{Blow, Weather, draws, plan};
use tokio::{
    sync::Mutex as Turn,
    task::spawn_blocking,
    time::{Instant, sleep, sleep_until},
};

const NODES: usize = 3;
/// The first of them have a second client each; the others are pushed to by their sessions too.
const USERS: usize = 150;
const CLIENTS: usize = 200;
const GROUPS: usize = 50;
/// A node that stands still for this long may lose its lease of 15 s.
const LEASE_DOUBT: Duration = Duration::from_secs(9);
/// When it goes on, it begins another life within this time, and all know of it.
const ANOTHER_LIFE: Duration = Duration::from_secs(15);
/// Without a connection for this long a client tries another node.
const TRIES_ANOTHER: Duration = Duration::from_secs(3);
/// When all is well again, the longest that receipts may stay open.
const SETTLES: Duration = Duration::from_secs(240);
/// What nobody waits for comes within this time.
const QUIET: Duration = Duration::from_secs(5);
/// Receipts that are asked for at once.
const PAGE: u64 = 1_000;

/// How many pushes there are, and for how long they are made.
fn size() -> (usize, Duration) {
    match std::env::var("BOTHWAYS_STORM").as_deref() {
        Ok("full") => (100_000, Duration::from_secs(150)),
        Ok(pushes) => (pushes.parse().expect("a number of pushes, or `full`"), Duration::from_secs(30)),
        Err(_) => (5_000, Duration::from_secs(30)),
    }
}

fn seeds() -> std::ops::RangeInclusive<u64> {
    let asked = std::env::var("BOTHWAYS_STORM_SEED").ok();
    let last = if std::env::var("BOTHWAYS_STORM").is_ok_and(|size| size == "full") { 20 } else { 1 };
    asked.map_or(1..=last, |seed| {
        let seed = seed.parse().expect("a number");
        seed..=seed
    })
}

fn weather() -> Weather {
    Weather {
        nodes: NODES,
        engines: 3,
        clients: CLIENTS,
        others: 1,
        length: size().1,
        gap: Duration::from_millis(500),
        // Kill, pause, cut, drain, engine gone, engine stands, other, moves, leaves.
        weights: [2, 2, 0, 1, 1, 1, 0, 8, 4],
        pause_max: Duration::from_secs(20),
        engine_max: Duration::from_secs(6),
        engine_rests: Duration::from_secs(15),
    }
}

struct Place {
    node: Turn<Option<Node>>,
    /// `None`: no client goes there.
    address: Mutex<Option<String>>,
}

struct Held {
    way: Proxy,
    /// The place of the node to which its next connection goes, and of the one that let it in last.
    leads_to: Mutex<usize>,
    home: Mutex<usize>,
    seen: Mutex<Seen>,
    is_connected: AtomicBool,
    is_away: AtomicBool,
}

struct World {
    began: Instant,
    options: Options,
    broker: Arc<Mutex<Broker>>,
    places: Vec<Place>,
    clients: Vec<Held>,
    blows: Mutex<Vec<(Duration, String)>>,
}

impl World {
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn note(&self, what: impl Into<String>) {
        let (now, what) = (self.now(), what.into());
        println!("{now:.1?}: {what}");
        self.blows.lock().push((now, what));
    }

    /// The next connection of this client goes to any node that takes clients; the one that is there, or is being made, ends.
    fn move_on(&self, client: usize, cut: bool, rng: &mut StdRng) {
        let open: Vec<(usize, String)> = self
            .places
            .iter()
            .enumerate()
            .filter_map(|(place, at)| at.address.lock().clone().map(|address| (place, address)))
            .collect();
        if open.is_empty() {
            return;
        }
        let (place, address) = &open[rng.random_range(0..open.len())];
        let held = &self.clients[client];
        held.way.lead_to([address]);
        *held.leads_to.lock() = *place;
        if cut {
            held.way.cut();
        }
    }

    fn scatter(&self, place: usize, cut: bool, rng: &mut StdRng) {
        for client in 0..self.clients.len() {
            if *self.clients[client].leads_to.lock() == place {
                self.move_on(client, cut, rng);
            }
        }
    }

    /// Sessions that may be at this node may be no targets. `None`: until their clients are back.
    fn hide(&self, place: usize, from: Duration, to: Option<Duration>) {
        for held in &self.clients {
            if *held.home.lock() == place || !held.is_connected.load(Ordering::Relaxed) {
                held.seen.lock().hidden.push((from, to.unwrap_or(Duration::MAX)));
            }
        }
    }

    async fn strike(&self, blow: Blow, rng: &mut StdRng) {
        self.note(blow.to_string());
        match blow {
            Blow::Kill(place, time) => {
                let mut node = self.places[place].node.lock().await;
                self.places[place].address.lock().take();
                self.hide(place, self.now(), None);
                if let Some(mut node) = node.take() {
                    node.kill().await;
                }
                self.hide(place, self.now(), None);
                self.scatter(place, true, rng);
                sleep(time).await;
                self.start(place, &mut node).await;
            }
            Blow::Drain(place) => {
                let mut node = self.places[place].node.lock().await;
                self.places[place].address.lock().take();
                self.hide(place, self.now(), None);
                self.scatter(place, false, rng);
                if let Some(mut node) = node.take() {
                    let told = node.drain(Duration::from_secs(8), 50).await;
                    self.note(format!("node {place} has drained: {told:?}"));
                    node.kill().await;
                }
                self.start(place, &mut node).await;
            }
            Blow::Pause(place, time) => {
                let node = self.places[place].node.lock().await;
                let Some(node) = &*node else { return };
                node.stop();
                sleep(time.min(LEASE_DOUBT)).await;
                if let Some(more) = time.checked_sub(LEASE_DOUBT) {
                    self.hide(place, self.now(), Some(self.now() + more + ANOTHER_LIFE));
                    sleep(more).await;
                }
                node.go_on();
                self.note(format!("node {place} goes on"));
            }
            Blow::EngineGone(server, time) => {
                self.on_broker(move |broker| broker.kill(server)).await;
                sleep(time).await;
                self.on_broker(move |broker| broker.start(server)).await;
                self.note(format!("server {server} is back"));
            }
            Blow::EngineStands(server, time) => {
                self.on_broker(move |broker| broker.stop(server)).await;
                sleep(time).await;
                self.on_broker(move |broker| broker.go_on(server)).await;
                self.note(format!("server {server} goes on"));
            }
            Blow::Moves(client) => self.move_on(client, true, rng),
            Blow::Leaves(client, time) => {
                let held = &self.clients[client];
                if !held.is_away.swap(true, Ordering::Relaxed) {
                    held.way.cut_off();
                    sleep(time).await;
                    self.move_on(client, true, rng);
                    held.way.go_on();
                    held.is_away.store(false, Ordering::Relaxed);
                }
            }
            Blow::Cut(..) | Blow::Other(..) => unreachable!("there is no such weather"),
        }
    }

    async fn on_broker(&self, act: impl FnOnce(&mut Broker) + Send + 'static) {
        let broker = Arc::clone(&self.broker);
        spawn_blocking(move || act(&mut broker.lock())).await.expect("it does");
    }

    async fn start(&self, place: usize, node: &mut Option<Node>) {
        let started = Node::start(&self.options).await;
        *self.places[place].address.lock() = Some(started.address().to_owned());
        *node = Some(started);
        self.note(format!("another node {place}"));
    }
}

/// One client, until the storm is over.
async fn live(world: Arc<World>, me: usize, seed: u64, client: Client, mut messages: ServerMessages) {
    let mut events = client.events();
    let mut rng = draws(seed, 1000 + me as u64);
    let held = &world.clients[me];
    loop {
        tokio::select! {
            biased;
            event = events.next() => match event {
                Some(event) => saw(&world, held, &event),
                None => return,
            },
            message = messages.next() => {
                let Some(message) = message else { return };
                let push = std::str::from_utf8(&message.payload().expect("not packed")).expect("a text").parse();
                let push: usize = push.expect("a number");
                held.seen.lock().handled.push((world.now(), push));
                if rng.random_bool(0.02) {
                    tokio::spawn(async move {
                        sleep(Duration::from_millis(500)).await;
                        drop(message);
                    });
                }
            }
            () = sleep(TRIES_ANOTHER) => {
                if client.connection().is_err() && !held.is_away.load(Ordering::Relaxed) {
                    world.move_on(me, true, &mut rng);
                }
            }
        }
    }
}

fn saw(world: &World, held: &Held, event: &ConnectionEvent) {
    let mut seen = held.seen.lock();
    let now = world.now();
    match event {
        ConnectionEvent::Lost { reason, .. } => {
            held.is_connected.store(false, Ordering::Relaxed);
            seen.gone(now, reason);
        }
        ConnectionEvent::Restored { .. } => {
            held.is_connected.store(true, Ordering::Relaxed);
            let place = *held.leads_to.lock();
            *held.home.lock() = place;
            seen.back(now, format_args!("at node {place}"));
        }
        ConnectionEvent::SessionLost { why, .. } => seen.session_lost(now, format!("{why:?}")),
        ConnectionEvent::GaveUp { error, .. } => panic!("a client gave up: {error}"),
        _ => {}
    }
}

struct Storm {
    world: Arc<World>,
    origin: Node,
    ids: BTreeMap<usize, SessionId>,
    aims: Vec<(Duration, Aim)>,
}

impl Storm {
    /// `None`: there is no broker.
    async fn begin(seed: u64) -> Option<Self> {
        let broker = Broker::three()?;
        let options = Options::new(broker.addresses());
        let [one, other, third, origin] = Node::start_all(&options).await;
        let places: Vec<Place> = [one, other, third]
            .into_iter()
            .map(|node| {
                let address = Mutex::new(Some(node.address().to_owned()));
                Place { node: Turn::new(Some(node)), address }
            })
            .collect();

        let (mut clients, mut ends) = (Vec::new(), Vec::new());
        for client in 0..CLIENTS {
            let (place, user, group) = (client % NODES, client % USERS, client % GROUPS);
            let address = places[place].address.lock().clone().expect("it takes clients");
            let way = Proxy::to([address]).await;
            let second = Duration::from_secs(1);
            let options =
                ClientOptions::new().auth(format!("u{user}/g{group}")).backoff(second / 20, second).quiet(true);
            let (client, messages) = Client::bidirectional(&way.address(), options).await.expect("it is let in");
            ends.push((client, messages));
            let (leads_to, home) = (Mutex::new(place), Mutex::new(place));
            let (is_connected, is_away) = (AtomicBool::new(true), AtomicBool::new(false));
            let seen = Mutex::new(Seen { user, group, ..Seen::default() });
            clients.push(Held { way, leads_to, home, seen, is_connected, is_away });
        }
        let mut ids = BTreeMap::new();
        for client in CLIENTS - USERS..USERS {
            bothways_nodes::until("it has a session", async || {
                let seen = origin.sessions(To::user(&format!("u{client}"))).await;
                ids.extend(seen.first().map(|seen| (client, seen.told.session)));
                !seen.is_empty()
            })
            .await;
        }
        // The records of the sessions are written: other nodes can have them.
        sleep(Duration::from_secs(1)).await;

        let broker = Arc::new(Mutex::new(broker));
        let world = World { began: Instant::now(), options, broker, places, clients, blows: Mutex::default() };
        let world = Arc::new(world);
        for (me, (client, messages)) in ends.into_iter().enumerate() {
            tokio::spawn(live(Arc::clone(&world), me, seed, client, messages));
        }
        Some(Self { world, origin, ids, aims: Vec::new() })
    }

    /// Pushes while the blows come, and waits until all is well.
    async fn blow(&mut self, seed: u64) {
        let began = self.world.began;
        let blows: Vec<_> = plan(seed, &weather())
            .into_iter()
            .enumerate()
            .map(|(number, (at, blow))| {
                let (world, mut rng) = (Arc::clone(&self.world), draws(seed, 1_000_000 + number as u64));
                tokio::spawn(async move {
                    sleep_until(began + at).await;
                    world.strike(blow, &mut rng).await;
                })
            })
            .collect();
        let (mut rng, (pushes, length)) = (draws(seed, 1), size());
        for number in 0..pushes {
            sleep_until(began + length.mul_f64(number as f64 / pushes as f64)).await;
            self.push(number as u64, &mut rng).await;
        }
        for blow in blows {
            blow.await.expect("no panic");
        }
        self.world.note("all is well");
    }

    async fn push(&mut self, number: u64, rng: &mut StdRng) {
        let client = rng.random_range(0..CLIENTS);
        let session = self.ids.get(&client).filter(|_| self.world.clients[client].seen.lock().lost.is_empty());
        let (user, group) = (client % USERS, client % GROUPS);
        let (aim, to) = match (rng.random_range(0..200), session) {
            (0, _) => (Aim::Everyone, To::Everyone),
            (1..20, _) => (Aim::Group(group), To::Group(format!("g{group}"))),
            (20..100, Some(id)) => (Aim::Session(client), To::Session(*id)),
            _ => (Aim::User(user), To::User(format!("u{user}"))),
        };
        self.aims.push((self.world.now(), aim));
        self.origin.push(to, As::Tracked, number, 1).await;
    }

    async fn settle(self) -> Accounts {
        let (until, last) = (Instant::now() + SETTLES, self.aims.len() as u64 - 1);
        let mut told = Vec::new();
        for first in (0..=last).step_by(PAGE as usize) {
            loop {
                let page = self.origin.receipts(first, last.min(first + PAGE - 1)).await;
                if page.iter().all(bothways_nodes::Told::is_over) || until <= Instant::now() {
                    break;
                }
                sleep(Duration::from_millis(500)).await;
            }
        }
        self.world.note("no receipt is open, or it is too late");
        sleep(QUIET).await;
        for first in (0..=last).step_by(PAGE as usize) {
            told.extend(self.origin.receipts(first, last.min(first + PAGE - 1)).await);
        }
        let pushed = |((at, aim), told)| Pushed { at, aim, told: of_node(told) };
        Accounts {
            pushes: self.aims.into_iter().zip(&told).map(pushed).collect(),
            clients: self.world.clients.iter().map(|held| std::mem::take(&mut *held.seen.lock())).collect(),
            blows: std::mem::take(&mut *self.world.blows.lock()),
            trails: BTreeMap::new(),
        }
    }
}

fn of_node(of: &bothways_nodes::Told) -> Told {
    assert_eq!((&of.refused, &of.stored), (&None, &Stored::Nowhere));
    let dropped = ["dropped_full", "dropped_disconnected", "dropped_session_ended", "expired"];
    let mut told = Told {
        routing: of.routing,
        open: of.open,
        handled: of.at("handled"),
        unknown: of.at("unknown"),
        dropped: dropped.iter().map(|stage| of.at(stage)).sum(),
        maybe: of.unreached.iter().any(|missed| missed.maybe),
        unreached: of.unreached.iter().map(|missed| format!("{missed:?}")).collect(),
        ..Told::default()
    };
    told.other = of.targets() - told.open - told.handled - told.unknown - told.dropped;
    told
}

/// Each push is handled once by each client that it is for, or its receipt says that this is not known, or that it was not
/// reached; and what is said to be handled was.
#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_tracked_pushes() {
    for seed in seeds() {
        let began = Instant::now();
        println!("seed {seed}");
        let Some(mut storm) = Storm::begin(seed).await else { return };
        println!("all is ready after {:?}", began.elapsed());
        storm.blow(seed).await;
        let sum: Sum = storm.settle().await.settle();
        println!("seed {seed}, {:?}: {sum:?}", began.elapsed());
        let targets = sum.handled + sum.unknown + sum.dropped;
        assert!(targets * 3 < sum.handled * 4, "hardly anything is known: {sum:?}");
    }
}
