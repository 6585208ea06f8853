//! Any history of a server and its clients, end to end: what was promised holds, whatever breaks, and when.
//!
//! `BOTHWAYS_HISTORIES` says how many histories; the default keeps a run of all tests short.

use std::{collections::HashMap, time::Duration};

use bothways::{
    Class, ClientOptions, Priority, Push, Receipt, Server, ServerMessage, Session, Stage, Target,
    session::{DropReason, SessionId, TargetOutcomes},
    testing::{Direction, Network, TestClient, run},
};
use proptest::prelude::*;

const USERS: [&str; 2] = ["ann", "bob"];
const LOG: usize = 12;
const FIRES: usize = 8;

#[derive(Clone, Debug)]
enum Command {
    Push {
        to: To,
        class: Class,
        priority: Priority,
        lives: Option<u64>,
        key: Option<u8>,
        each: bool,
    },
    Subscribe(usize),
    Unsubscribe(usize),
    /// The application takes so many messages, and is done with them.
    Handle(usize, usize),
    /// It takes one, and keeps it.
    Hold(usize),
    /// It is done with what it keeps.
    Release(usize),
    Cut(usize),
    Strand(usize),
    CutAfterPush(usize, u64),
    CutAfterFrames(usize, bool, u64),
    CutInsideFrame(usize, bool, usize),
    Freeze(usize),
    Thaw(usize),
    DropAck(usize, u64),
    ClaimTwice(usize),
    Refuse(usize),
    Admit(usize),
    Kick(usize),
    Advance(u64),
}

#[derive(Clone, Copy, Debug)]
enum To {
    User(usize),
    Topic,
    Everyone,
}

fn command() -> impl Strategy<Value = Command> {
    let who = || 0..USERS.len();
    let to = prop_oneof![3 => who().prop_map(To::User), 1 => Just(To::Topic), 1 => Just(To::Everyone)];
    let class = prop_oneof![
        3 => Just(Class::Tracked),
        1 => Just(Class::Fire),
        1 => (0..2_u8).prop_map(|key| Class::Latest(key.to_string())),
    ];
    let priority = prop::sample::select(vec![Priority::Normal, Priority::High, Priority::Bulk]);
    let key = prop::option::weighted(0.3, 0..6_u8);
    let push = (to, class, priority, prop::option::weighted(0.25, 0..3000_u64), key, any::<bool>())
        .prop_map(|(to, class, priority, lives, key, each)| Command::Push { to, class, priority, lives, key, each });
    prop_oneof![
        16 => push,
        2 => who().prop_map(Command::Subscribe),
        1 => who().prop_map(Command::Unsubscribe),
        5 => (who(), 1..6_usize).prop_map(|(who, count)| Command::Handle(who, count)),
        1 => who().prop_map(Command::Hold),
        1 => who().prop_map(Command::Release),
        2 => who().prop_map(Command::Cut),
        1 => who().prop_map(Command::Strand),
        2 => (who(), 1..5_u64).prop_map(|(who, pushes)| Command::CutAfterPush(who, pushes)),
        2 => (who(), any::<bool>(), 1..5_u64).prop_map(|(who, up, frames)| Command::CutAfterFrames(who, up, frames)),
        2 => (who(), any::<bool>(), 0..60_usize).prop_map(|(who, up, bytes)| Command::CutInsideFrame(who, up, bytes)),
        1 => who().prop_map(Command::Freeze),
        2 => who().prop_map(Command::Thaw),
        1 => (who(), 1..3_u64).prop_map(|(who, acks)| Command::DropAck(who, acks)),
        1 => who().prop_map(Command::ClaimTwice),
        1 => who().prop_map(Command::Refuse),
        2 => who().prop_map(Command::Admit),
        1 => who().prop_map(Command::Kick),
        8 => prop::sample::select(vec![1_u64, 1, 10, 60, 1000]).prop_map(Command::Advance),
    ]
}

/// What the specification remembers of one push: its sessions, at the moment of pushing.
struct Pushed {
    class: Class,
    priority: Priority,
    key: Option<u8>,
    to: Vec<SessionId>,
    receipt: Receipt,
    /// The end of each, of those pushes for which somebody wants to know.
    outcomes: Option<TargetOutcomes>,
}

struct End {
    client: TestClient,
    held: Vec<ServerMessage>,
    /// Numbers of the pushes that the application got, in order.
    got: Vec<usize>,
}

impl End {
    fn take(&mut self) -> Option<ServerMessage> {
        let message = self.client.messages.try_next()?;
        let payload = message.payload().expect("not packed");
        let text = std::str::from_utf8(&payload).expect("it was a text").to_owned();
        let (number, again) = text.split_once(' ').expect("it was two numbers");
        assert_eq!(number, again, "it was changed on its way");
        self.got.push(number.parse().expect("a number"));
        Some(message)
    }
}

struct World {
    network: Network,
    ends: Vec<End>,
    pushes: Vec<Pushed>,
    /// Users who were sent away, whose sessions may end.
    kicked: [bool; 2],
    sessions: HashMap<SessionId, usize>,
}

impl World {
    async fn new() -> Self {
        let server = Server::builder()
            .session_log(LOG, 1 << 20)
            .fire_queue(FIRES, 1 << 20)
            .auth(|request| async move {
                if let Some(session) = request.session() {
                    session.bind_user(&request.token);
                }
                Ok::<_, String>(())
            })
            .build();
        let network = Network::new(server).await.expect("a name of its own");
        let mut ends = Vec::new();
        for user in USERS {
            let options = ClientOptions::new().auth(user).backoff(Duration::from_millis(1), Duration::from_millis(1));
            let client = network.client(options).await.expect("it listens");
            client.welcomed().await;
            ends.push(End { client, held: Vec::new(), got: Vec::new() });
        }
        Self { network, ends, pushes: Vec::new(), kicked: [false; 2], sessions: HashMap::new() }
    }

    fn sessions_of(&self, target: &Target) -> Vec<Session> {
        self.network.server().sessions(target).expect("a topic's name")
    }

    async fn run(&mut self, command: &Command) {
        match command.clone() {
            Command::Push { to, class, priority, lives, key, each } => {
                let target = match to {
                    To::User(who) => Target::user(USERS[who]),
                    To::Topic => Target::topic("news.today"),
                    To::Everyone => Target::everyone(),
                };
                let number = self.pushes.len();
                let to: Vec<_> = self.sessions_of(&target).iter().map(Session::id).collect();
                let mut push =
                    Push::new("T", "N", format!("{number} {number}")).class(class.clone()).priority(priority);
                if let Some(lives) = lives {
                    push = push.time_to_live(Duration::from_millis(lives));
                }
                if let Some(key) = key {
                    push = push.idempotency_key(&key.to_string()).expect("short");
                }
                let server = self.network.server();
                let (receipt, outcomes) = match each {
                    true => server.push_each(&target, &push).map(|(receipt, each)| (receipt, Some(each))),
                    false => server.push(&target, &push).map(|receipt| (receipt, None)),
                }
                .expect("small");
                assert_eq!(receipt.outcomes().targets(), to.len());
                self.pushes.push(Pushed { class, priority, key, to, receipt, outcomes });
            }
            Command::Subscribe(who) => {
                for session in self.sessions_of(&Target::user(USERS[who])) {
                    session.subscribe("news.*").expect("a pattern");
                }
            }
            Command::Unsubscribe(who) => {
                for session in self.sessions_of(&Target::user(USERS[who])) {
                    session.unsubscribe("news.*");
                }
            }
            Command::Handle(who, count) => {
                for _ in 0..count {
                    self.ends[who].take();
                }
            }
            Command::Hold(who) => {
                let message = self.ends[who].take();
                self.ends[who].held.extend(message);
            }
            Command::Release(who) => self.ends[who].held.clear(),
            Command::Cut(who) => self.ends[who].client.wire.cut(),
            Command::Strand(who) => self.ends[who].client.wire.strand(),
            Command::CutAfterPush(who, pushes) => self.ends[who].client.wire.cut_after_push(pushes),
            Command::CutAfterFrames(who, up, frames) => {
                self.ends[who].client.wire.cut_after_frames(direction(up), frames);
            }
            Command::CutInsideFrame(who, up, bytes) => {
                self.ends[who].client.wire.cut_inside_frame(direction(up), bytes);
            }
            Command::Freeze(who) => self.ends[who].client.wire.freeze_reader(),
            Command::Thaw(who) => self.ends[who].client.wire.thaw(),
            Command::DropAck(who, acks) => self.ends[who].client.wire.drop_ack(acks),
            Command::ClaimTwice(who) => self.ends[who].client.wire.claim_twice(),
            Command::Refuse(who) => self.ends[who].client.wire.refuse(),
            Command::Admit(who) => self.ends[who].client.wire.admit(),
            Command::Kick(who) => {
                self.kicked[who] = true;
                self.network.server().kick(&Target::user(USERS[who]), "enough").expect("no topic");
            }
            Command::Advance(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
        }
        for session in self.sessions_of(&Target::everyone()) {
            assert!(session.waiting().0 <= LOG + FIRES + 2, "the bounds hold");
            if let Some(who) = session.user().and_then(|user| USERS.iter().position(|name| **name == *user)) {
                self.sessions.insert(session.id(), who);
            }
        }
        self.check();
    }

    /// Nothing invented, nothing twice, no receipt better than the truth. A message that the application has not
    /// taken yet has arrived, but is not handled.
    fn check(&self) {
        let got: Vec<HashMap<usize, usize>> = self.ends.iter().map(|end| counted(&end.got)).collect();
        for (who, got) in got.iter().enumerate() {
            for (number, count) in got {
                let pushed = self.pushes.get(*number).expect("nothing is invented");
                let of_user = |id: &SessionId| self.sessions.get(id).is_none_or(|of| *of == who);
                assert!(pushed.to.iter().any(of_user), "push {number} came to somebody else");
                assert_eq!(*count, 1, "push {number} came twice");
                let has_key = |other: &&usize| pushed.key.is_some() && self.pushes[**other].key == pushed.key;
                assert!(got.keys().filter(has_key).count() <= 1, "what push {number} is about came twice");
            }
        }
        for (number, pushed) in self.pushes.iter().enumerate() {
            let came = got.iter().filter(|got| got.contains_key(&number)).count();
            let outcomes = pushed.receipt.outcomes();
            let handled = outcomes.at(Stage::Handled);
            // A repetition that is sent to another session of the same client is handled with the first.
            let has_key = |other: &usize| pushed.key.is_some() && self.pushes[*other].key == pushed.key;
            let has_had = |id: &&SessionId| self.sessions.get(id).is_none_or(|who| got[*who].keys().any(has_key));
            let came_once = pushed.to.iter().filter(has_had).count();
            let may_be = if pushed.key.is_some() { came_once } else { came };
            assert!(handled <= may_be, "push {number} says {handled} handled, and {may_be} were");
            let never_sent = [Stage::Expired, Stage::Superseded, Stage::Duplicate, Stage::Dropped(DropReason::Full)];
            let never_sent: usize = never_sent.into_iter().map(|stage| outcomes.at(stage)).sum();
            assert!(came + never_sent <= pushed.to.len(), "push {number} came, and says that it was never sent");
        }
    }

    /// All faults end, and all comes to rest.
    async fn finish(&mut self) {
        for end in &mut self.ends {
            end.client.wire.thaw();
            end.client.wire.admit();
            end.held.clear();
            // Within a connection no acknowledgement is lost for good; with the next one, all is said again.
            end.client.wire.drop_ack(0);
            end.client.wire.cut();
        }
        // Longer than the resume window: a session whose Welcome was lost ends by itself.
        for _ in 0..100 {
            for end in &mut self.ends {
                while end.take().is_some() {}
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        self.check();
        for pushed in &mut self.pushes {
            let Some(each) = &mut pushed.outcomes else { continue };
            let outcomes = pushed.receipt.outcomes();
            let mut told = HashMap::new();
            while told.len() < outcomes.targets() - outcomes.open() {
                let (session, stage) = each.next().await.expect("not all of them were told");
                assert!(stage.is_final() && pushed.to.contains(&session));
                assert_eq!(told.insert(session, stage), None, "it has one end");
            }
            for stage in told.values() {
                let count = told.values().filter(|other| *other == stage).count();
                assert_eq!(count, outcomes.at(*stage), "the receipt says something else");
            }
        }
        for (number, pushed) in self.pushes.iter().enumerate() {
            let came = self.ends.iter().filter(|end| end.got.contains(&number)).count();
            let outcomes = pushed.receipt.outcomes();
            let sent_away = |id: &SessionId| self.sessions.get(id).is_none_or(|who| self.kicked[*who]);
            if pushed.class == Class::Tracked {
                assert_eq!(
                    outcomes.at(Stage::Handled)
                        + outcomes.at(Stage::PlainWritten)
                        + outcomes.dropped()
                        + outcomes.at(Stage::Duplicate)
                        + outcomes.at(Stage::Expired),
                    pushed.to.len(),
                    "push {number} is lost without a word: {outcomes:?}"
                );
                if pushed.key.is_some() {
                    continue;
                }
                assert!(outcomes.at(Stage::Handled) <= came);
                if !pushed.to.iter().any(sent_away) {
                    assert_eq!(outcomes.at(Stage::Dropped(DropReason::SessionEnded)), 0, "push {number}: {outcomes:?}");
                    assert_eq!(outcomes.at(Stage::Handled), came, "push {number}: {outcomes:?}");
                }
            }
        }
        for end in &self.ends {
            for priority in [Priority::High, Priority::Normal, Priority::Bulk] {
                // A newer value takes the place of an older one, and so comes before what was pushed between.
                let ordered = |number: &&usize| {
                    let pushed = &self.pushes[**number];
                    pushed.priority == priority && !matches!(pushed.class, Class::Latest(_))
                };
                let order: Vec<_> = end.got.iter().filter(ordered).collect();
                assert!(order.is_sorted(), "{priority:?}: {order:?}");
            }
        }
    }
}

fn direction(up: bool) -> Direction {
    if up { Direction::ToServer } else { Direction::ToClient }
}

fn counted(numbers: &[usize]) -> HashMap<usize, usize> {
    let mut counts = HashMap::new();
    for number in numbers {
        *counts.entry(*number).or_default() += 1;
    }
    counts
}

fn histories() -> u32 {
    std::env::var("BOTHWAYS_HISTORIES").map_or(200, |text| text.parse().expect("BOTHWAYS_HISTORIES is a number"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: histories(), failure_persistence: None, ..ProptestConfig::default() })]
    /// Whatever breaks: nothing is invented, changed, reordered within a priority, or handled twice; receipts say no
    /// more than is true; and a tracked push is handled, or its sender is told that it was not.
    #[test]
    fn promises_hold_end_to_end(commands in prop::collection::vec(command(), 1..40)) {
        run(async {
            let mut world = World::new().await;
            for command in &commands {
                world.run(command).await;
            }
            world.finish().await;
        });
    }
}
