//! Durable pushes in a storm, at whose end all nodes and all servers are killed and started again.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc, time::Duration};

use bothways_brokers::Broker;
use bothways_nodes::{As, Node, Options, Stored, To, Told};
use rand::{RngExt as _, rngs::StdRng};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    accounts::{self, Accounts, Aim, Pushed},
    schedule::draws,
    world::{PAGE, QUIET, Size, USERS, World, seeds, size},
};

/// When all is well again, the longest that letters may be on their way: a lease ends, and then readers ask again.
const SETTLES: Duration = Duration::from_secs(120);
/// When the blows are over, the longest that the store may take for what was pushed meanwhile: its leader is elected,
/// and a letter is tried for 10 s.
const STORES: Duration = Duration::from_secs(30);
/// Letters that are pushed directly before everything is killed.
const LAST: usize = 50;

/// How many letters there are between one end of everything and the next, for how long they are pushed, and how often
/// everything ends.
fn letters() -> (usize, Duration, u64) {
    match size() {
        Size::Full => (4_000, Duration::from_secs(60), 2),
        Size::Of(letters) => (letters, Duration::from_secs(15), 1),
        Size::Small => (300, Duration::from_secs(15), 1),
    }
}

/// What the origin was told of a letter.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Fate {
    /// `stored()` said `Ok`: each device handles it once.
    Stored,
    /// Nobody knows, or the origin was killed before it could tell: once, or not at all.
    Perhaps(String),
    /// It is not stored, and nobody gets it.
    Not(String),
}

impl Fate {
    fn of(told: &Told) -> Self {
        match (&told.refused, &told.stored) {
            (Some(why), _) => Self::Not(why.clone()),
            (None, Stored::In(1, _)) => Self::Stored,
            (None, Stored::Waits) => Self::Perhaps("the origin was killed first".to_owned()),
            (None, Stored::Not(why)) if told.may_be_stored => Self::Perhaps(why.clone()),
            (None, Stored::Not(why)) => Self::Not(why.clone()),
            (None, stored @ (Stored::In(..) | Stored::Nowhere)) => panic!("a letter to one user: {stored:?}"),
        }
    }
}

/// One letter, to one user.
#[derive(Clone, Debug)]
pub(crate) struct Letter {
    at: Duration,
    user: usize,
    fate: Fate,
}

/// What each device has handled, in order: whose it is, and the numbers of the letters.
type Devices = Vec<(usize, Vec<usize>)>;

/// What does not add up, each with the number of a letter.
fn faults(letters: &[Letter], devices: &Devices) -> Vec<(usize, String)> {
    let mut faults = Vec::new();
    let mut of_user: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let mut times: Vec<BTreeMap<usize, usize>> = vec![BTreeMap::new(); letters.len()];
    for (device, (user, handled)) in devices.iter().enumerate() {
        of_user.entry(*user).or_default().push(device);
        handled.iter().for_each(|letter| *times[*letter].entry(device).or_insert(0) += 1);
    }

    for (number, Letter { user, fate, .. }) in letters.iter().enumerate() {
        let its = of_user.get(user).map_or(&[][..], Vec::as_slice);
        let stray = times[number].keys().filter(|device| !its.contains(device));
        faults.extend(stray.map(|device| (number, format!("device {device} has it, for which it is not"))));
        let has = |device: &usize| times[number].get(device).copied().unwrap_or(0);
        let is_somewhere = its.iter().any(|device| has(device) != 0);
        for device in its {
            match (has(device), fate) {
                (0, Fate::Stored) => {
                    faults.push((number, format!("it was stored, and device {device} has not got it")))
                }
                (0, _) if is_somewhere => faults.push((number, format!("device {device} alone has not got it"))),
                (1.., Fate::Not(_)) => faults.push((number, format!("it was not stored, and device {device} has it"))),
                (0 | 1, _) => {}
                (times, _) => faults.push((number, format!("device {device} has handled it {times} times"))),
            }
        }
    }
    // The mailbox has one order.
    for its in of_user.values() {
        let [one, others @ ..] = &its[..] else { continue };
        for other in others {
            let (one, other) = (&devices[*one].1, &devices[*other].1);
            let differ = one.iter().zip(other).find(|(one, other)| one != other);
            faults.extend(differ.map(|(one, other)| (*one, format!("one device has {other} in its place"))));
        }
    }
    faults
}

struct Storm {
    world: Arc<World>,
    origin: Node,
    letters: Vec<Letter>,
    /// The first letter of this origin.
    first: usize,
    rng: StdRng,
}

impl Storm {
    /// `None`: there is no broker. What it says is stored outlives the end of all its servers.
    async fn begin(seed: u64) -> Option<Self> {
        let broker = Broker::three_synced()?;
        let options = Options::new(broker.addresses()).synced();
        let (world, origin) = World::begin(seed, broker, options, true).await;
        Some(Self { world, origin, letters: Vec::new(), first: 0, rng: draws(seed, 2) })
    }

    /// Pushes while the blows come; then some more, and everything ends.
    async fn blow(&mut self, seed: u64) {
        let ((letters, length, _), began) = (letters(), Instant::now());
        let blows = self.world.blow(seed, length);
        for number in 0..letters {
            sleep_until(began + length.mul_f64(number as f64 / letters as f64)).await;
            self.push().await;
        }
        for blow in blows {
            blow.await.expect("no panic");
        }
        self.world.note("all blows are over");
        let until = Instant::now() + STORES;
        while self.ask().await && Instant::now() < until {
            sleep(Duration::from_millis(100)).await;
        }
        for _ in 0..LAST {
            self.push().await;
        }
        self.ask().await;
        // Of these nobody is told whether they are stored.
        for _ in 0..LAST {
            self.push().await;
        }
    }

    async fn push(&mut self) {
        let (user, number) = (self.rng.random_range(0..USERS), self.letters.len());
        let fate = Fate::Perhaps("nobody has asked".to_owned());
        self.letters.push(Letter { at: self.world.now(), user, fate });
        self.origin.push(To::User(format!("u{user}")), As::Durable, number as u64, 1).await;
    }

    /// What the origin knows of its letters. True: the store has not answered of all.
    async fn ask(&mut self) -> bool {
        let (last, mut waits) = (self.letters.len() - 1, false);
        for first in (self.first..=last).step_by(PAGE as usize) {
            let told = self.origin.receipts(first as u64, last.min(first + PAGE as usize - 1) as u64).await;
            for told in told {
                waits |= told.stored == Stored::Waits;
                self.letters[told.number as usize].fate = Fate::of(&told);
            }
        }
        waits
    }

    async fn end_everything(mut self) -> Self {
        self.origin = self.world.end_everything(self.origin, &mut self.rng).await;
        self.first = self.letters.len();
        self
    }

    fn devices(&self) -> Devices {
        let clients = self.world.clients.iter().map(|held| held.seen.lock());
        clients.map(|seen| (seen.user, seen.handled.iter().map(|(_, letter)| *letter).collect())).collect()
    }

    /// Waits until it adds up, and a while longer: what comes twice comes later.
    async fn settle(self) -> Vec<Letter> {
        let until = Instant::now() + SETTLES;
        while Instant::now() < until && !faults(&self.letters, &self.devices()).is_empty() {
            sleep(Duration::from_millis(500)).await;
        }
        self.world.note("it adds up, or it is too late");
        sleep(QUIET).await;
        let faults = faults(&self.letters, &self.devices());
        assert!(faults.is_empty(), "{}", self.stories(&faults));
        self.world.end();
        self.letters
    }

    fn stories(&self, faults: &[(usize, String)]) -> String {
        let pushed = |letter: &Letter| {
            let told = accounts::Told { unreached: vec![format!("{:?}", letter.fate)], ..Default::default() };
            Pushed { at: letter.at, aim: Aim::User(letter.user), told }
        };
        let accounts = Accounts {
            pushes: self.letters.iter().map(pushed).collect(),
            clients: self.world.clients.iter().map(|held| std::mem::take(&mut *held.seen.lock())).collect(),
            blows: self.world.take_blows(),
            trails: BTreeMap::new(),
        };
        accounts.stories(faults)
    }
}

/// What was stored each device handles once, in one order, although everything is killed; what was not nobody gets.
#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_letters() {
    for seed in seeds() {
        let began = Instant::now();
        println!("seed {seed}");
        let Some(mut storm) = Storm::begin(seed).await else { return };
        println!("all is ready after {:?}", began.elapsed());
        let (_, _, times) = letters();
        for time in 0..times {
            storm.blow(seed * 100 + time).await;
            storm = storm.end_everything().await;
        }
        let letters = storm.settle().await;
        let mut sum: BTreeMap<String, usize> = BTreeMap::new();
        for letter in &letters {
            let name = match &letter.fate {
                Fate::Stored => "stored".to_owned(),
                // Without the name of the user.
                Fate::Perhaps(why) => format!("perhaps: {}", why.rsplit(": ").next().unwrap_or(why)),
                Fate::Not(why) => format!("not: {}", why.rsplit(": ").next().unwrap_or(why)),
            };
            *sum.entry(name).or_insert(0) += 1;
        }
        println!("seed {seed}, {:?}: {} letters, {sum:?}", began.elapsed(), letters.len());
        assert!(letters.len() <= 2 * sum.get("stored").copied().unwrap_or(0), "hardly anything was stored: {sum:?}");
    }
}

/// Two devices of one user, and one of another, who have handled these; the first is of this fate.
fn found(fate: Fate, one: &[usize], other: &[usize], stranger: &[usize]) -> String {
    let letter = |fate| Letter { at: Duration::ZERO, user: 0, fate };
    let letters = [letter(fate), letter(Fate::Stored)];
    let devices = vec![(0, one.to_vec()), (0, other.to_vec()), (1, stranger.to_vec())];
    let mut text = String::new();
    for (number, fault) in faults(&letters, &devices) {
        let _ = write!(text, "{number}: {fault}; ");
    }
    text
}

#[test]
fn letters_that_add_up_are_no_fault() {
    let (perhaps, not) = (Fate::Perhaps(String::new()), Fate::Not(String::new()));
    for (fate, handled) in [(Fate::Stored, &[0, 1][..]), (perhaps.clone(), &[0, 1]), (perhaps, &[1]), (not, &[1])] {
        assert_eq!(found(fate.clone(), handled, handled, &[]), "", "{fate:?} {handled:?}");
    }
}

#[test]
fn each_fault_of_letters_is_found() {
    let one = |fate: Fate, one: &[usize], other: &[usize], stranger: &[usize], word: &str| {
        let text = found(fate, one, other, stranger);
        assert!(text.contains(word), "{word}: {text}");
    };
    let (perhaps, not) = (Fate::Perhaps(String::new()), Fate::Not(String::new()));
    one(Fate::Stored, &[0, 1], &[1], &[], "0: it was stored, and device 1 has not got it");
    one(Fate::Stored, &[0, 1, 0], &[0, 1], &[], "0: device 0 has handled it 2 times");
    one(perhaps.clone(), &[0, 1, 0], &[0, 1], &[], "0: device 0 has handled it 2 times");
    one(perhaps, &[0, 1], &[1], &[], "0: device 1 alone has not got it");
    one(not, &[0, 1], &[0, 1], &[], "0: it was not stored, and device 0 has it");
    one(Fate::Stored, &[0, 1], &[0, 1], &[0], "0: device 2 has it, for which it is not");
    one(Fate::Stored, &[0, 1], &[1, 0], &[], "0: one device has 1 in its place");
}
