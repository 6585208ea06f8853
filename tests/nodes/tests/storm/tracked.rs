//! Tracked pushes in a storm.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bothways::session::SessionId;
use bothways_brokers::Broker;
use bothways_nodes::{As, Node, Options, Stored, To};
use rand::{RngExt as _, rngs::StdRng};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    accounts::{Accounts, Aim, Pushed, Sum, Told},
    schedule::draws,
    world::{CLIENTS, GROUPS, PAGE, QUIET, Size, USERS, World, seeds, size},
};

/// When all is well again, the longest that receipts may stay open.
const SETTLES: Duration = Duration::from_secs(240);

/// Pushes that are told to the origin at once, when so many are due: one after the other each would wait until either
/// process has had its turn.
const TOGETHER: usize = 64;

/// How many pushes there are, and for how long they are made.
fn pushes() -> (usize, Duration) {
    match size() {
        Size::Full => (100_000, Duration::from_secs(150)),
        Size::Of(pushes) => (pushes, Duration::from_secs(30)),
        Size::Small => (5_000, Duration::from_secs(30)),
    }
}

struct Storm {
    world: Arc<World>,
    origin: Node,
    /// The sessions of the users with one client.
    ids: BTreeMap<usize, SessionId>,
    aims: Vec<(Duration, Aim)>,
}

impl Storm {
    /// `None`: there is no broker.
    async fn begin(seed: u64) -> Option<Self> {
        let broker = Broker::three()?;
        let options = Options::new(broker.addresses());
        let (world, origin) = World::begin(seed, broker, options, false).await;
        let mut ids = BTreeMap::new();
        for client in CLIENTS - USERS..USERS {
            bothways_nodes::until("it has a session", async || {
                let seen = origin.sessions(To::user(&format!("u{client}"))).await;
                ids.extend(seen.first().map(|seen| (client, seen.told.session)));
                !seen.is_empty()
            })
            .await;
        }
        Some(Self { world, origin, ids, aims: Vec::new() })
    }

    /// Pushes while the blows come, and waits until all is well.
    async fn blow(&mut self, seed: u64) {
        let (mut rng, (pushes, length), began) = (draws(seed, 1), pushes(), Instant::now());
        let blows = self.world.blow(seed, length);
        let due = |number: usize| began + length.mul_f64(number as f64 / pushes as f64);
        let mut next = 0;
        while next < pushes {
            sleep_until(due(next)).await;
            let (first, now) = (next, Instant::now());
            while next < pushes && next - first < TOGETHER && due(next) <= now {
                next += 1;
            }
            let together = (first..next).map(|number| self.draw(number as u64, &mut rng)).collect();
            self.origin.push_all(together, As::Tracked).await;
        }
        let took = began.elapsed();
        self.world.note(format!("all is pushed, {:.1?} late", took.saturating_sub(length)));
        for blow in blows {
            blow.await.expect("no panic");
        }
        self.world.note("all is well");
    }

    /// To whom this one goes.
    fn draw(&mut self, number: u64, rng: &mut StdRng) -> (To, u64) {
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
        (to, number)
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
        let pushed = |((at, aim), told)| Pushed { at, aim, told: of_node(&self.world, told) };
        let accounts = Accounts {
            pushes: self.aims.into_iter().zip(&told).map(pushed).collect(),
            clients: self.world.clients.iter().map(|held| std::mem::take(&mut *held.seen.lock())).collect(),
            blows: self.world.take_blows(),
            trails: BTreeMap::new(),
        };
        self.world.end();
        accounts
    }
}

fn of_node(world: &World, of: &bothways_nodes::Told) -> Told {
    assert_eq!((&of.refused, &of.stored), (&None, &Stored::Nowhere));
    let dropped = ["dropped_full", "dropped_disconnected", "dropped_session_ended", "expired"];
    let mut told = Told {
        routing: of.routing,
        open: of.open,
        handled: of.at("handled"),
        unknown: of.at("unknown"),
        dropped: dropped.iter().map(|stage| of.at(stage)).sum(),
        maybe: of.unreached.iter().any(|missed| missed.maybe),
        missed: of.unreached.iter().map(|missed| (world.name_of(&missed.node), missed.maybe)).collect(),
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
