//! Three nodes with clients and one without, which pushes, in one process.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bothways::{
    Client, ClientOptions, ConnectionEvent, ConnectionEvents, OtherAddresses, Push, Receipt, Server, ServerMessages,
    Stage, Target,
    cluster::{Cluster, NodeId, memory::MemoryBroker},
    session::{SessionId, SessionOptions},
    testing::{Network, TestClient, Wire},
};
use parking_lot::Mutex;
use rand::{RngExt as _, rngs::StdRng};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    accounts::{Accounts, Aim, PUSH_NAME, Pushed, Seen, Told},
    schedule::{Blow, Weather, draws},
};

pub(crate) const NODES: usize = 3;
/// What else can go wrong: mail is lost, answers are lost, mail comes twice, the end of a claim is unknown and it was
/// applied or not, reads are old.
pub(crate) const OTHERS: usize = 6;
/// Clients of one user.
const OF_USER: usize = 2;
/// How many groups of clients there are.
const GROUPS: usize = 4;
/// When all is well again, the longest that receipts may stay open: a node is asked for 120 s, and its lease ends.
const SETTLES: Duration = Duration::from_secs(400);
/// A node that is cut off for this long may lose its lease of 15 s: it was renewed up to a second before, and is looked at
/// each second.
const LEASE_DOUBT: Duration = Duration::from_secs(12);
/// Once it is back, a node begins another life, and has written the records of its sessions, within this time.
const ANOTHER_LIFE: Duration = Duration::from_secs(5);
/// For the stories.
const EVENTS: usize = 2_000;
/// Without a connection for this long a client tries another node.
const TRIES_ANOTHER: Duration = Duration::from_secs(3);

struct Node {
    network: Network,
}

impl Node {
    /// `place`: none is at its address at the same time.
    async fn join(broker: &MemoryBroker, place: usize) -> Arc<Self> {
        let server = Server::builder()
            .sessions(SessionOptions::new().events_max(EVENTS))
            .auth(|request| async move {
                let session = request.session().ok_or("it has left")?;
                let [user, group, client] = request.token.split('/').collect::<Vec<_>>()[..] else { Err("a token")? };
                session.bind_user(user);
                session.set_label("group", group);
                session.set_label("client", client);
                Ok::<_, &str>(())
            })
            .build();
        // While the register stands still nobody joins.
        while let Err(error) = server.join(Cluster::new(broker.engine()).address(format!("place@{place}"))).await {
            eprintln!("nobody joins now: {error}");
            sleep(Duration::from_millis(500)).await;
        }
        Arc::new(Self { network: Network::new(server).await.expect("a name of its own") })
    }

    fn server(&self) -> &Server {
        self.network.server()
    }

    /// Its life now.
    fn life(&self) -> Option<NodeId> {
        self.server().nodes().map(|(me, _)| me)
    }
}

/// What the storm has of one client.
struct Held {
    wire: Wire,
    /// The place of the node to which its next connection goes.
    leads_to: Mutex<usize>,
    seen: Mutex<Seen>,
    /// It is away, and stays so for now.
    is_away: AtomicBool,
}

struct World {
    began: Instant,
    broker: MemoryBroker,
    /// `None`: nobody can connect there.
    nodes: Mutex<Vec<Option<Arc<Node>>>>,
    /// What is left of nodes that were killed.
    graves: Mutex<Vec<Arc<Node>>>,
    clients: Vec<Held>,
    blows: Mutex<Vec<(Duration, String)>>,
}

pub(crate) struct Storm {
    seed: u64,
    world: Arc<World>,
    origin: Arc<Node>,
    pushes: Vec<(Duration, Aim, Receipt)>,
}

impl World {
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn note(&self, what: impl Into<String>) {
        self.blows.lock().push((self.now(), what.into()));
    }

    fn node(&self, place: usize) -> Option<Arc<Node>> {
        self.nodes.lock()[place].clone()
    }

    /// The next connection of this client goes to another node that lets clients in, or to any.
    fn lead(&self, client: usize, rng: &mut StdRng) {
        let open: Vec<usize> = {
            let nodes = self.nodes.lock();
            (0..NODES).filter(|place| nodes[*place].is_some()).collect()
        };
        if open.is_empty() {
            return;
        }
        let place = open[rng.random_range(0..open.len())];
        let node = self.node(place).expect("it is there");
        let held = &self.clients[client];
        held.wire.lead_to(node.network.address()).expect("an address");
        *held.leads_to.lock() = place;
    }

    /// Clients of a node that is gone go elsewhere.
    fn scatter(&self, place: usize, cut: bool, rng: &mut StdRng) {
        for (client, held) in self.clients.iter().enumerate() {
            if *held.leads_to.lock() == place {
                self.lead(client, rng);
                if cut {
                    held.wire.cut();
                }
            }
        }
    }

    /// The sessions of this node are no targets.
    fn hide(&self, node: &Node, from: Duration, to: Duration) {
        for session in node.server().sessions(&Target::everyone()).expect("no topic") {
            let client: Option<usize> = session.label("client").and_then(|client| client.parse().ok());
            let Some(client) = client else { continue };
            self.clients[client].seen.lock().hidden.push((from, to));
        }
    }

    async fn strike(self: &Arc<Self>, blow: Blow, rng: &mut StdRng) {
        self.note(blow.to_string());
        match blow {
            Blow::Kill(place, time) => {
                let Some(node) = self.nodes.lock()[place].take() else { return };
                if let Some(life) = node.life() {
                    self.broker.faults().kill(life);
                }
                self.hide(&node, self.now(), Duration::MAX);
                self.scatter(place, true, rng);
                self.graves.lock().push(node);
                sleep(time).await;
                self.replace(place).await;
            }
            Blow::Drain(place) => {
                let Some(node) = self.nodes.lock()[place].take() else { return };
                self.hide(&node, self.now(), Duration::MAX);
                self.scatter(place, false, rng);
                let report = node.server().drain(Duration::from_secs(8), 20).await;
                self.note(format!("node {place} has drained: {report:?}"));
                self.replace(place).await;
            }
            Blow::Pause(place, time) => {
                let Some(life) = self.node(place).and_then(|node| node.life()) else { return };
                self.broker.faults().pause(life, true);
                sleep(time).await;
                self.broker.faults().pause(life, false);
                self.note(format!("node {place} goes on"));
            }
            Blow::Cut(place, time) => {
                let Some(node) = self.node(place) else { return };
                let from = self.now();
                let Some(life) = node.life().filter(|life| self.broker.faults().cut(*life, true)) else { return };
                sleep(time.min(LEASE_DOUBT)).await;
                if let Some(more) = time.checked_sub(LEASE_DOUBT) {
                    self.hide(&node, self.now(), from + time + ANOTHER_LIFE);
                    sleep(more).await;
                }
                self.broker.faults().cut(life, false);
                self.note(format!("node {place} is back"));
            }
            Blow::EngineGone(_, time) => {
                self.broker.faults().mail_up(false);
                sleep(time).await;
                self.broker.faults().mail_up(true);
                self.note("there is mail again");
            }
            Blow::EngineStands(_, time) => {
                self.broker.faults().register_up(false);
                sleep(time).await;
                self.broker.faults().register_up(true);
                self.note("there is a register again");
            }
            Blow::Other(what, time) => self.spoil(what, time, rng).await,
            Blow::Moves(client) => {
                self.lead(client, rng);
                self.clients[client].wire.cut();
            }
            Blow::Leaves(client, time) => {
                let held = &self.clients[client];
                if held.is_away.swap(true, Ordering::Relaxed) {
                    return;
                }
                held.wire.refuse();
                held.wire.cut();
                sleep(time).await;
                self.lead(client, rng);
                held.wire.admit();
                held.is_away.store(false, Ordering::Relaxed);
            }
        }
    }

    async fn spoil(&self, what: usize, time: Duration, rng: &mut StdRng) {
        let (faults, count) = (self.broker.faults(), rng.random_range(1..6));
        match what {
            0 => faults.lose_mail(count),
            1 => faults.lose_answers(count),
            2 => faults.repeat_mail(count),
            3 => faults.claims_unknown(count, true),
            4 => faults.claims_unknown(count, false),
            _ => {
                faults.reads_are_old(true);
                sleep(time).await;
                faults.reads_are_old(false);
            }
        }
    }

    async fn replace(&self, place: usize) {
        let node = Node::join(&self.broker, place).await;
        self.nodes.lock()[place] = Some(node);
        self.note(format!("another node {place}"));
    }

    /// What each node tells of the sessions of a user.
    fn trail(&self, user: usize) -> String {
        let mut text = String::new();
        let (nodes, graves) = (self.nodes.lock(), self.graves.lock());
        for node in nodes.iter().flatten().chain(graves.iter()) {
            let told = node.server().explain(&Target::user(format!("u{user}"))).expect("no topic");
            for session in told {
                text += &format!("at node {:?}:\n{session}\n", node.life());
            }
        }
        text
    }

    /// Looks for the session that this client has now.
    fn session_of(&self, client: usize) -> Option<SessionId> {
        let target = Target::everyone().only_labelled("client", client.to_string());
        let nodes = self.nodes.lock();
        let mut found = nodes.iter().flatten().flat_map(|node| node.server().sessions(&target).expect("no topic"));
        found.find(|session| session.connection().is_some()).map(|session| session.id())
    }
}

/// One client, until the storm is over.
async fn live(world: Arc<World>, me: usize, seed: u64, client: Client, mut messages: ServerMessages) {
    let mut events: ConnectionEvents = client.events();
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
                held.seen.lock().handled.push((world.now(), push.expect("a number")));
                if rng.random_bool(0.02) {
                    tokio::spawn(async move {
                        sleep(Duration::from_millis(700)).await;
                        drop(message);
                    });
                } else if rng.random_bool(0.1) {
                    sleep(Duration::from_millis(rng.random_range(0..30))).await;
                }
            }
            () = sleep(TRIES_ANOTHER) => {
                if client.connection().is_err() && !held.is_away.load(Ordering::Relaxed) {
                    world.lead(me, &mut rng);
                }
            }
        }
    }
}

fn saw(world: &World, held: &Held, event: &ConnectionEvent) {
    let mut seen = held.seen.lock();
    let now = world.now();
    match event {
        ConnectionEvent::Lost { reason, .. } => seen.gone(now, reason),
        ConnectionEvent::Restored { .. } => {
            seen.back(now, format_args!("perhaps at node {}", held.leads_to.lock()));
        }
        ConnectionEvent::SessionLost { why, .. } => seen.session_lost(now, format!("{why:?}")),
        ConnectionEvent::GaveUp { error, .. } => panic!("a client gave up: {error}"),
        _ => {}
    }
}

impl Storm {
    /// The nodes know each other, and each client has a session.
    pub(crate) async fn begin(seed: u64, clients: usize) -> Self {
        let broker = MemoryBroker::new();
        let mut nodes = Vec::new();
        for place in 0..NODES {
            nodes.push(Some(Node::join(&broker, place).await));
        }
        let origin = Node::join(&broker, NODES).await;
        let knows_all = || origin.server().nodes().is_some_and(|(_, others)| others.len() == NODES);
        until("it knows the others", knows_all).await;

        let mut held = Vec::new();
        let mut ends = Vec::new();
        for client in 0..clients {
            let place = client % NODES;
            let (user, group) = (client / OF_USER, client % GROUPS);
            let options = ClientOptions::new()
                .auth(format!("u{user}/g{group}/{client}"))
                .backoff(Duration::from_millis(50), Duration::from_secs(1))
                // The storm says where they go.
                .other_addresses(OtherAddresses::Ignore)
                .quiet(true);
            let node = nodes[place].as_ref().expect("it is there");
            let test = node.network.client(options).await.expect("it listens");
            test.welcomed().await;
            let TestClient { client, messages, wire, .. } = test;
            ends.push((client, messages));
            let seen = Mutex::new(Seen { user, group, ..Seen::default() });
            held.push(Held { wire, leads_to: Mutex::new(place), seen, is_away: AtomicBool::default() });
        }
        // The records of the sessions are written: other nodes can have them.
        sleep(Duration::from_secs(1)).await;
        let world = World {
            began: Instant::now(),
            broker,
            nodes: Mutex::new(nodes),
            graves: Mutex::default(),
            clients: held,
            blows: Mutex::default(),
        };
        let world = Arc::new(world);
        for (me, (client, messages)) in ends.into_iter().enumerate() {
            tokio::spawn(live(Arc::clone(&world), me, seed, client, messages));
        }
        Self { seed, world, origin, pushes: Vec::new() }
    }

    /// Pushes while the blows come, waits until all is well, and says what happened.
    pub(crate) async fn blow(mut self, plan: Vec<(Duration, Blow)>, weather: &Weather, pushes: usize) -> Accounts {
        let began = self.world.began;
        let blows: Vec<_> = plan
            .into_iter()
            .enumerate()
            .map(|(number, (at, blow))| {
                let (world, mut rng) = (Arc::clone(&self.world), draws(self.seed, 1_000_000 + number as u64));
                tokio::spawn(async move {
                    sleep_until(began + at).await;
                    world.strike(blow, &mut rng).await;
                })
            })
            .collect();
        let mut rng = draws(self.seed, 1);
        let gap = weather.length.div_f64(pushes as f64);
        for _ in 0..pushes {
            sleep(gap.mul_f64(rng.random_range(0.0..2.0))).await;
            self.push(&mut rng);
        }
        for blow in blows {
            blow.await.expect("no panic");
        }
        self.world.note("all is well");
        self.settle().await;
        self.accounts()
    }

    fn push(&mut self, rng: &mut StdRng) {
        let client = rng.random_range(0..self.world.clients.len());
        let aim = match rng.random_range(0..20) {
            0..12 => Aim::User(client / OF_USER),
            12..17 => Aim::Session(client),
            17..19 => Aim::Group(client % GROUPS),
            _ => Aim::Everyone,
        };
        let session = self.world.session_of(client);
        let (aim, target) = match (aim, session) {
            (Aim::Session(client), Some(id)) => (Aim::Session(client), Target::session(id)),
            (Aim::User(_) | Aim::Session(_), _) => {
                (Aim::User(client / OF_USER), Target::user(format!("u{}", client / OF_USER)))
            }
            (Aim::Group(group), _) => (aim, Target::everyone().only_labelled("group", format!("g{group}"))),
            (Aim::Everyone, _) => (aim, Target::everyone()),
        };
        let number = self.pushes.len();
        let (path, method) = PUSH_NAME.split_once('.').expect("two names");
        let push = Push::new(path, &format!("{method}{number}"), number.to_string());
        let receipt = self.origin.server().push(&target, &push).expect("a small push");
        self.pushes.push((self.world.now(), aim, receipt));
    }

    async fn settle(&self) {
        let until = Instant::now() + SETTLES;
        let is_open = |receipt: &Receipt| receipt.routing() != 0 || receipt.outcomes().open() != 0;
        while Instant::now() < until && self.pushes.iter().any(|(_, _, receipt)| is_open(receipt)) {
            sleep(Duration::from_secs(1)).await;
        }
        // What nobody waits for comes too.
        sleep(Duration::from_secs(60)).await;
    }

    fn accounts(self) -> Accounts {
        let users = 0..self.world.clients.len().div_ceil(OF_USER);
        let trails = users.map(|user| (user, self.world.trail(user))).collect();
        let pushed = |(at, aim, receipt): (Duration, Aim, Receipt)| Pushed { at, aim, told: told(&receipt) };
        Accounts {
            pushes: self.pushes.into_iter().map(pushed).collect(),
            clients: self.world.clients.iter().map(|held| std::mem::take(&mut *held.seen.lock())).collect(),
            blows: std::mem::take(&mut *self.world.blows.lock()),
            trails,
        }
    }
}

fn told(receipt: &Receipt) -> Told {
    let outcomes = receipt.outcomes();
    let mut told = Told {
        routing: receipt.routing(),
        open: outcomes.open(),
        handled: outcomes.at(Stage::Handled),
        unknown: outcomes.at(Stage::Unknown),
        dropped: outcomes.dropped() + outcomes.at(Stage::Expired),
        ..Told::default()
    };
    told.other = outcomes.targets() - told.open - told.handled - told.unknown - told.dropped;
    for unreached in receipt.unreached() {
        told.maybe |= unreached.maybe;
        told.unreached.push(format!("{unreached:?}"));
    }
    told
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}
