//! Three nodes with clients, three servers of NATS, and a fourth node that pushes, all of them processes, and what
//! befalls them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bothways::{Client, ClientOptions, ConnectionEvent, ServerMessages};
use bothways_brokers::Broker;
use bothways_nodes::{Command, Known, Node, Options, Proxy};
use parking_lot::Mutex;
use rand::{RngExt as _, rngs::StdRng};
use tokio::{
    sync::Mutex as Turn,
    task::{AbortHandle, JoinHandle, spawn_blocking},
    time::{Instant, sleep, sleep_until},
};

use crate::{
    accounts::{Blows, Seen},
    schedule::{Blow, Weather, draws, plan},
};

const NODES: usize = 3;
/// The first of them have a second client each.
pub(crate) const USERS: usize = 150;
pub(crate) const CLIENTS: usize = 200;
pub(crate) const GROUPS: usize = 50;
/// A node that stands still for this long may lose its lease of 15 s.
const LEASE_DOUBT: Duration = Duration::from_secs(9);
/// When it goes on, it begins another life within this time, and all know of it.
const ANOTHER_LIFE: Duration = Duration::from_secs(15);
/// Without a connection for this long a client tries another node.
const TRIES_ANOTHER: Duration = Duration::from_secs(3);
/// How often each node is asked what it calls itself.
const NAMES_EVERY: Duration = Duration::from_millis(500);
/// What nobody waits for comes within this time.
pub(crate) const QUIET: Duration = Duration::from_secs(5);
/// Receipts that are asked for at once.
pub(crate) const PAGE: u64 = 1_000;

/// How large the storms are: `BOTHWAYS_STORM`.
pub(crate) enum Size {
    Small,
    Full,
    /// Of so many pushes.
    Of(usize),
}

pub(crate) fn size() -> Size {
    match std::env::var("BOTHWAYS_STORM").as_deref() {
        Ok("full") => Size::Full,
        Ok(pushes) => Size::Of(pushes.parse().expect("a number of pushes, or `full`")),
        Err(_) => Size::Small,
    }
}

/// One in CI, twenty if they are full, or the one that is asked for.
pub(crate) fn seeds() -> std::ops::RangeInclusive<u64> {
    let asked = std::env::var("BOTHWAYS_STORM_SEED").ok();
    let last = if matches!(size(), Size::Full) { 20 } else { 1 };
    asked.map_or(1..=last, |seed| {
        let seed = seed.parse().expect("a number");
        seed..=seed
    })
}

fn weather(length: Duration) -> Weather {
    Weather {
        nodes: NODES,
        engines: 3,
        clients: CLIENTS,
        others: 1,
        length,
        gap: Duration::from_millis(500),
        // Kill, pause, cut, drain, engine gone, engine stands, other, moves, leaves.
        weights: [2, 2, 0, 1, 1, 1, 0, 8, 4],
        pause_max: Duration::from_secs(20),
        engine_max: Duration::from_secs(6),
        engine_rests: Duration::from_secs(15),
    }
}

pub(crate) struct Place {
    node: Turn<Option<Node>>,
    /// `None`: no client goes there.
    address: Mutex<Option<String>>,
}

pub(crate) struct Held {
    way: Proxy,
    /// The place of the node to which its next connection goes, and of the one that let it in last.
    leads_to: Mutex<usize>,
    home: Mutex<Option<usize>>,
    pub(crate) seen: Mutex<Seen>,
    is_connected: AtomicBool,
    is_away: AtomicBool,
}

pub(crate) struct World {
    began: Instant,
    options: Options,
    broker: Arc<Mutex<Broker>>,
    places: Vec<Place>,
    pub(crate) clients: Vec<Held>,
    blows: Mutex<Blows>,
    names: Mutex<Names>,
    tasks: Mutex<Vec<AbortHandle>>,
}

/// Which node is which. A node has its first name here, whatever it calls itself later.
#[derive(Default)]
struct Names {
    /// Where it is, and at which place: `None`: it is the one that pushes.
    at: BTreeMap<String, (String, Option<usize>)>,
    first: BTreeMap<String, String>,
}

impl Names {
    fn started(&mut self, node: &Node, place: Option<usize>) {
        self.at.insert(bare(node.address()).to_owned(), (node.id().to_owned(), place));
        self.first.insert(node.id().to_owned(), node.id().to_owned());
    }
}

/// Without the network before it.
fn bare(address: &str) -> &str {
    address.rsplit('@').next().unwrap_or(address)
}

impl World {
    /// The nodes know each other, and each client has a session. Returns the node that pushes, too. `have_devices`: the
    /// clients name theirs, `c` and the number of the client.
    pub(crate) async fn begin(seed: u64, broker: Broker, options: Options, have_devices: bool) -> (Arc<Self>, Node) {
        let [one, other, third, origin] = Node::start_all(&options).await;
        let mut names = Names::default();
        names.started(&origin, None);
        let places: Vec<Place> = [one, other, third]
            .into_iter()
            .enumerate()
            .map(|(place, node)| {
                names.started(&node, Some(place));
                let address = Mutex::new(Some(node.address().to_owned()));
                Place { node: Turn::new(Some(node)), address }
            })
            .collect();

        let (mut clients, mut ends) = (Vec::new(), Vec::new());
        for client in 0..CLIENTS {
            let (place, user, group) = (client % NODES, client % USERS, client % GROUPS);
            let address = places[place].address.lock().clone().expect("it takes clients");
            let homes = vec![(Duration::ZERO, names.at[bare(&address)].0.clone())];
            let way = Proxy::to([address]).await;
            let second = Duration::from_secs(1);
            let options =
                ClientOptions::new().auth(format!("u{user}/g{group}")).backoff(second / 20, second).quiet(true);
            let options = if have_devices { options.device(&format!("c{client}")) } else { options };
            let (client, messages) = Client::bidirectional(&way.address(), options).await.expect("it is let in");
            ends.push((client, messages));
            let (leads_to, home) = (Mutex::new(place), Mutex::new(Some(place)));
            let (is_connected, is_away) = (AtomicBool::new(true), AtomicBool::new(false));
            let seen = Mutex::new(Seen { user, group, homes, ..Seen::default() });
            clients.push(Held { way, leads_to, home, seen, is_connected, is_away });
        }
        // The records of the sessions are written: other nodes can have them.
        sleep(Duration::from_secs(1)).await;

        let broker = Arc::new(Mutex::new(broker));
        let (blows, tasks, names) = (Mutex::default(), Mutex::default(), Mutex::new(names));
        let world = Self { began: Instant::now(), options, broker, places, clients, blows, names, tasks };
        let world = Arc::new(world);
        let mut tasks = Vec::new();
        for (me, (client, messages)) in ends.into_iter().enumerate() {
            tasks.push(tokio::spawn(live(Arc::clone(&world), me, seed, client, messages)).abort_handle());
        }
        tasks.push(tokio::spawn(learn_names(Arc::clone(&world))).abort_handle());
        *world.tasks.lock() = tasks;
        (world, origin)
    }

    /// Its clients, its nodes and its brokers go: another storm follows.
    pub(crate) fn end(&self) {
        self.tasks.lock().drain(..).for_each(|task| task.abort());
    }

    /// A node that a receipt names, by its first name. `None`: it has not told this one.
    pub(crate) fn name_of(&self, node: &str) -> Option<String> {
        self.names.lock().first.get(node).cloned()
    }

    /// Clients may stay at this node: it is neither killed nor does it drain.
    fn takes_clients(&self, node: &str, place: Option<usize>) -> bool {
        let Some(place) = place else { return true };
        let address = self.places[place].address.lock().clone();
        let names = self.names.lock();
        address.and_then(|address| names.at.get(bare(&address))).is_some_and(|(name, _)| name == node)
    }

    /// Where this client is connected now: the node's name, and its place.
    fn home_of(&self, held: &Held, client: &Client) -> Option<(String, Option<usize>)> {
        let peer = client.connection().ok()?.peer_address();
        let address = match bare(&peer) == bare(&held.way.address()) {
            true => held.way.last_led_to()?,
            // Its server has named another one, and it went there by itself.
            false => bare(&peer).to_owned(),
        };
        self.names.lock().at.get(&address).cloned()
    }

    /// What befalls it from now on, for this time.
    pub(crate) fn blow(self: &Arc<Self>, seed: u64, length: Duration) -> Vec<JoinHandle<()>> {
        let (plan, began) = (plan(seed, &weather(length)), Instant::now());
        let blow = |(number, (at, blow)): (usize, (Duration, Blow))| {
            let (world, mut rng) = (Arc::clone(self), draws(seed, 1_000_000 + number as u64));
            tokio::spawn(async move {
                sleep_until(began + at).await;
                world.strike(blow, &mut rng).await;
            })
        };
        plan.into_iter().enumerate().map(blow).collect()
    }

    /// All nodes and all servers are killed, and started again on what they have stored. Returns another node that pushes.
    pub(crate) async fn end_everything(&self, mut origin: Node, rng: &mut StdRng) -> Node {
        self.note("everything is killed");
        let mut nodes = Vec::new();
        for place in &self.places {
            place.address.lock().take();
            nodes.push(place.node.lock().await);
        }
        for node in nodes.iter_mut().filter_map(|node| node.as_mut()) {
            node.kill().await;
        }
        origin.kill().await;
        self.on_broker(|broker| {
            let all = 0..broker.count();
            all.clone().for_each(|server| broker.kill(server));
            all.for_each(|server| broker.start(server));
        })
        .await;

        let start = |options: Options| tokio::spawn(async move { Node::start(&options).await });
        let origin = start(self.options.clone());
        let starting: Vec<_> = nodes.iter().map(|_| start(self.options.clone())).collect();
        for (number, ((place, node), started)) in self.places.iter().zip(&mut nodes).zip(starting).enumerate() {
            let started = started.await.expect("it starts");
            self.names.lock().started(&started, Some(number));
            *place.address.lock() = Some(started.address().to_owned());
            **node = Some(started);
        }
        let origin = origin.await.expect("it starts");
        self.names.lock().started(&origin, None);
        self.note("everything is back");
        (0..CLIENTS).for_each(|client| self.move_on(client, true, rng));
        origin
    }

    pub(crate) fn take_blows(&self) -> Blows {
        std::mem::take(&mut *self.blows.lock())
    }

    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    pub(crate) fn note(&self, what: impl Into<String>) {
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
            if *held.home.lock() == Some(place) || !held.is_connected.load(Ordering::Relaxed) {
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
        self.names.lock().started(&started, Some(place));
        *self.places[place].address.lock() = Some(started.address().to_owned());
        *node = Some(started);
        self.note(format!("another node {place}"));
    }
}

/// Nodes that were out of their cluster are back under other names.
async fn learn_names(world: Arc<World>) {
    loop {
        sleep(NAMES_EVERY).await;
        for place in &world.places {
            // One that is killed, stopped or drained at this moment is asked later.
            let Ok(node) = place.node.try_lock() else { continue };
            let Some(node) = &*node else { continue };
            if let Ok(Known { me: Some(me), .. }) = node.ask(Command::Members).await {
                world.names.lock().first.insert(me, node.id().to_owned());
            }
        }
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
                Some(event) => saw(&world, held, &client, &event),
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

fn saw(world: &World, held: &Held, client: &Client, event: &ConnectionEvent) {
    let mut seen = held.seen.lock();
    let now = world.now();
    match event {
        ConnectionEvent::Lost { reason, .. } => {
            held.is_connected.store(false, Ordering::Relaxed);
            seen.gone(now, reason);
        }
        ConnectionEvent::Restored { .. } => {
            held.is_connected.store(true, Ordering::Relaxed);
            // It may be gone again by now.
            if let Some((node, place)) = world.home_of(held, client) {
                *held.home.lock() = place;
                seen.back(now, format_args!("at node {node}, place {place:?}"));
                if !world.takes_clients(&node, place) {
                    // It came at the moment in which that one was hurt.
                    seen.hidden.push((now, Duration::MAX));
                }
                seen.homes.push((now, node));
            }
        }
        ConnectionEvent::SessionLost { why, .. } => seen.session_lost(now, format!("{why:?}")),
        ConnectionEvent::GaveUp { error, .. } => panic!("a client gave up: {error}"),
        _ => {}
    }
}
