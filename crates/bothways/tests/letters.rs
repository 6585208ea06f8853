//! Durable pushes while the session of their user goes from node to node, and the engine between the nodes has faults: a
//! device handles each letter that was stored once, in the order of the mailbox, and none that was not. A binary of its own, as
//! it needs features.

#[path = "cluster/support.rs"]
#[allow(dead_code, reason = "others use the rest")]
mod support;
#[path = "moves/ways.rs"]
#[allow(dead_code, reason = "others use the rest")]
mod ways;

use std::{collections::HashMap, time::Duration};

use bothways::{
    Class, ClientOptions, Push, Receipt, Target,
    client::ServerMessage,
    cluster::memory::MemoryBroker,
    store::AppendError,
    testing::{self, TestClient},
};
use tokio::time::{sleep, timeout};

use crate::{
    support::{Node, nodes},
    ways::goes_to,
};

const TTL: Duration = Duration::from_secs(24 * 3600);

/// Numbers that are the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}

async fn phone(node: &Node) -> TestClient {
    let options = ClientOptions::new().auth("ann").device("phone");
    let client = node.network.client(options).await.expect("it listens");
    client.welcomed().await;
    client
}

/// What a device got, and what it was to get.
#[derive(Default)]
struct Story {
    posted: Vec<(String, Receipt)>,
    came: Vec<String>,
    /// Letters that the application has not handled yet.
    held: Vec<ServerMessage>,
}

impl Story {
    fn post(&mut self, node: &Node, count: u64) {
        for _ in 0..count {
            let text = self.posted.len().to_string();
            let push = Push::new("Mail", "New", text.clone()).class(Class::Durable { ttl: TTL });
            self.posted.push((text, node.server().push(&Target::user("ann"), &push).expect("there is a store")));
        }
    }

    /// Takes what comes within this time; of these letters so many are handled later.
    async fn take(&mut self, ann: &mut TestClient, within: Duration, mut held: u64) {
        let all = async {
            while let Some(message) = ann.messages.next().await {
                let text = message.payload().expect("not packed").to_vec();
                self.came.push(String::from_utf8(text).expect("a text"));
                if held != 0 {
                    held -= 1;
                    self.held.push(message);
                }
            }
        };
        let _ = timeout(within, all).await;
    }

    /// Waits for all that is to come, and looks whether it is as it was promised.
    async fn ends(mut self, ann: &mut TestClient, node: &Node, what: &str) {
        self.held.clear();
        let mail = node.server().mail().expect("there is a store");
        for round in 0.. {
            self.take(ann, Duration::from_secs(30), 0).await;
            let left = mail.letters("ann", 0, 1000).await.expect("the store works");
            if left.is_empty() {
                break;
            }
            assert!(round < 20, "{what}: {} letters stay", left.len());
        }
        self.take(ann, Duration::from_secs(200), 0).await;
        let dead = mail.dead_letters("ann", 0, 100).await.expect("the store works");
        assert!(dead.is_empty(), "{what}: {dead:?}");

        let mut counts: HashMap<&str, usize> = HashMap::new();
        self.came.iter().for_each(|text| *counts.entry(text).or_default() += 1);
        let mut places = HashMap::new();
        for (text, receipt) in &self.posted {
            let count = counts.get(&**text).copied().unwrap_or(0);
            match receipt.stored().await {
                Ok(kept) => {
                    places.insert(&**text, kept[0].position.sequence);
                    assert_eq!(count, 1, "{what}: {text} was stored; {:?}", self.came);
                }
                Err(error) if error.failed[0].1 == AppendError::Unknown => {
                    assert!(count <= 1, "{what}: {text} came twice; {:?}", self.came);
                }
                Err(error) => assert_eq!(count, 0, "{what}: {text}: {error}; {:?}", self.came),
            }
        }
        let order: Vec<u64> = self.came.iter().filter_map(|text| places.get(&**text).copied()).collect();
        assert!(order.is_sorted(), "{what}: not in the order of the mailbox: {:?}", self.came);
        assert!(!order.is_empty(), "{what}: some were stored");
    }
}

/// Letters from all nodes, moves, letters that are handled late, and no fault.
#[test]
fn letters_come_once_and_in_order_while_a_session_moves() {
    for seed in 0..20 {
        testing::run(async {
            let broker = MemoryBroker::new();
            let [one, other, third] = nodes(&broker).await;
            let (all, mut dice) = ([&one, &other, &third], Dice(seed));
            let (mut ann, mut story) = (phone(&one).await, Story::default());
            for _ in 0..40 {
                story.post(all[dice.below(3) as usize], dice.below(4));
                if dice.below(3) == 0 {
                    goes_to(&ann, all[dice.below(3) as usize]);
                }
                let (within, held) = (Duration::from_millis(dice.below(60)), dice.below(3));
                story.take(&mut ann, within, held).await;
                if dice.below(4) == 0 {
                    story.held.clear();
                }
            }
            story.ends(&mut ann, &one, &format!("seed {seed}")).await;
        });
    }
}

/// The same while the store stands still, mail between nodes is lost or out, and appends and claims end unknown.
#[test]
fn letters_come_once_and_in_order_through_faults() {
    for seed in 100..140 {
        testing::run(async {
            let broker = MemoryBroker::new();
            let [one, other, third] = nodes(&broker).await;
            let (all, mut dice, faults) = ([&one, &other, &third], Dice(seed), broker.faults());
            let (mut ann, mut story) = (phone(&one).await, Story::default());
            for _ in 0..40 {
                story.post(all[dice.below(3) as usize], dice.below(4));
                match dice.below(10) {
                    0 | 1 => goes_to(&ann, all[dice.below(3) as usize]),
                    2 => faults.register_up(false),
                    3 => faults.mail_up(false),
                    4 => faults.lose_mail(dice.below(3) as usize),
                    5 => faults.lose_answers(dice.below(3) as usize),
                    6 => faults.appends_unknown(dice.below(4) as usize, dice.below(3) as usize, dice.below(2) == 0),
                    7 => faults.claims_unknown(1, dice.below(2) == 0),
                    _ => {}
                }
                let (within, held) = (Duration::from_millis(dice.below(400)), dice.below(3));
                story.take(&mut ann, within, held).await;
                if dice.below(3) == 0 {
                    faults.register_up(true);
                    faults.mail_up(true);
                    story.held.clear();
                }
            }
            faults.appends_unknown(0, 0, false);
            faults.claims_unknown(0, false);
            faults.lose_mail(0);
            faults.lose_answers(0);
            faults.register_up(true);
            faults.mail_up(true);
            story.ends(&mut ann, &one, &format!("seed {seed}")).await;
        });
    }
}

/// The node of the session is gone without a word, with letters that were delivered and not handled: the client has another
/// session at another node, and its device the rest of the mailbox, nothing twice.
#[test]
fn letters_outlive_the_node_of_their_session() {
    for seed in 200..210 {
        testing::run(async {
            let broker = MemoryBroker::new();
            let [one, other, third] = nodes(&broker).await;
            let (mut ann, mut story, mut dice) = (phone(&one).await, Story::default(), Dice(seed));
            story.post(&other, 3 + dice.below(10));
            story.post(&third, dice.below(10));
            let (within, held) = (Duration::from_millis(dice.below(20)), dice.below(8));
            story.take(&mut ann, within, held).await;

            broker.faults().kill(one.id);
            goes_to(&ann, &other);
            drop(one);
            story.post(&third, 5);
            story.take(&mut ann, Duration::from_secs(dice.below(30)), dice.below(3)).await;
            story.post(&other, 5);
            sleep(Duration::from_secs(60)).await;
            story.ends(&mut ann, &other, &format!("seed {seed}")).await;
        });
    }
}
