//! Any history of a server and its clients, end to end: what was promised holds, whatever breaks, and when.
//!
//! `BOTHWAYS_HISTORIES` says how many histories; the default keeps a run of all tests short.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bothways::{
    Class, ClientOptions, ConnectionEvent, ConnectionEvents, Priority, Push, QueueBound, Receipt, Server,
    ServerMessage, Session, SessionOptions, Stage, Target,
    session::{DropReason, SessionId, TargetOutcomes, TopicOptions},
    testing::{Direction, Network, TestClient, run},
};
use proptest::prelude::*;
use tokio::task::JoinHandle;

const USERS: [&str; 2] = ["ann", "bob"];
/// Whose each client is: one user has two.
const ENDS: [usize; 3] = [0, 0, 1];
const FIRES: usize = 8;
/// A topic that keeps its messages, to which each client has subscribed by itself.
const JOURNAL: &str = "journal";
/// A topic to which clients subscribe while their Hello is being checked.
const LATE: &str = "late";
/// How long a session waits for its client, in milliseconds.
const WINDOW: u64 = 120_000;

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
    /// The last claim of this client comes once more, long after it.
    LateClaim(usize),
    /// From here on the auth hook takes so long.
    SlowHook(u64),
    /// The hook takes long for one attempt of this client to come back, and no time for the one that it makes meanwhile.
    Overtake(usize),
    /// This client is cut, and subscribes while its next Hello is being checked.
    SubscribeLate(usize),
    /// Longer than any session waits for its client.
    Expire,
    /// This client comes back so many milliseconds before or after its session is swept away.
    Sweep(usize, i64),
    Refuse(usize),
    Admit(usize),
    Kick(usize),
    Advance(u64),
}

#[derive(Clone, Copy, Debug)]
enum To {
    User(usize),
    Topic,
    Journal,
    Everyone,
}

fn command() -> impl Strategy<Value = Command> {
    let (who, user) = (|| 0..ENDS.len(), || 0..USERS.len());
    let to = prop_oneof![
        3 => user().prop_map(To::User),
        1 => Just(To::Topic),
        2 => Just(To::Journal),
        1 => Just(To::Everyone),
    ];
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
        2 => who().prop_map(Command::LateClaim),
        2 => prop::sample::select(vec![0_u64, 3, 40, 400]).prop_map(Command::SlowHook),
        2 => who().prop_map(Command::Overtake),
        2 => who().prop_map(Command::SubscribeLate),
        1 => Just(Command::Expire),
        1 => (who(), prop::sample::select(vec![-400_i64, -3, -1, 0, 1, 500, 1500]))
            .prop_map(|(who, millis)| Command::Sweep(who, millis)),
        1 => who().prop_map(Command::Refuse),
        2 => who().prop_map(Command::Admit),
        1 => user().prop_map(Command::Kick),
        8 => prop::sample::select(vec![1_u64, 1, 10, 60, 1000]).prop_map(Command::Advance),
    ]
}

/// What the specification remembers of one push: its sessions, at the moment of pushing.
struct Pushed {
    address: To,
    class: Class,
    priority: Priority,
    key: Option<u8>,
    lives: bool,
    to: Vec<SessionId>,
    receipt: Receipt,
    /// The end of each, of those pushes for which somebody wants to know.
    outcomes: Option<TargetOutcomes>,
}

struct End {
    client: TestClient,
    events: ConnectionEvents,
    held: Vec<ServerMessage>,
    /// Numbers of the pushes that the application got, in order.
    got: Vec<usize>,
    /// It was told that its session is lost, and that something of the journal may be missing.
    told_of_loss: bool,
    told_of_hole: bool,
    /// Whether what it asked for late was done.
    late: Vec<JoinHandle<bool>>,
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

    /// Takes in what it was told so far.
    async fn hear(&mut self) {
        while let Ok(Some(event)) = tokio::time::timeout(Duration::ZERO, self.events.next()).await {
            match event {
                ConnectionEvent::SessionLost { .. } => self.told_of_loss = true,
                ConnectionEvent::Resubscribed { recovered, .. } => self.told_of_hole |= !recovered,
                ConnectionEvent::SubscriptionLost { error, .. } => panic!("everybody may subscribe: {error}"),
                _ => {}
            }
        }
    }
}

struct World {
    network: Network,
    /// Pushes that a session keeps until they are handled.
    log: usize,
    ends: Vec<End>,
    pushes: Vec<Pushed>,
    /// How long the auth hook takes, in milliseconds.
    hook_takes: Arc<AtomicU64>,
    /// Whom the network lets in, and who reads.
    reachable: [bool; ENDS.len()],
    /// Users who were sent away, or away for too long, whose sessions may end.
    kicked: [bool; 2],
    /// Which client has which session.
    sessions: HashMap<SessionId, usize>,
}

impl World {
    async fn new(log: usize) -> Self {
        let hook_takes = Arc::new(AtomicU64::new(0));
        let takes = Arc::clone(&hook_takes);
        let server = Server::builder()
            .sessions(
                SessionOptions::new()
                    .log(QueueBound::messages(log).bytes(1 << 20))
                    .fire_queue(QueueBound::messages(FIRES).bytes(1 << 20)),
            )
            .topic(JOURNAL, TopicOptions::new().open().history(1000, Duration::from_secs(3600)))
            .expect("a topic")
            .topic(LATE, TopicOptions::new().open())
            .expect("a topic")
            .auth(move |request| {
                let takes = Duration::from_millis(takes.load(Ordering::Relaxed));
                async move {
                    tokio::time::sleep(takes).await;
                    // A client that has left this very moment has none, and hears no answer.
                    let Some(session) = request.session() else { return Err("it has left".to_owned()) };
                    let (user, end) = request.token.split_once('/').expect("a user and a number");
                    session.bind_user(user);
                    session.set_label("end", end);
                    Ok(())
                }
            })
            .build();
        let network = Network::new(server).await.expect("a name of its own");
        let mut ends = Vec::new();
        for (end, user) in ENDS.into_iter().enumerate() {
            let token = format!("{}/{end}", USERS[user]);
            let options =
                ClientOptions::new().auth(token).backoff(Duration::from_millis(1), Duration::from_millis(500));
            let client = network.client(options).await.expect("it listens");
            client.welcomed().await;
            client.client.subscribe(JOURNAL).await.expect("everybody may");
            let (events, held, got) = (client.client.events(), Vec::new(), Vec::new());
            ends.push(End { client, events, held, got, told_of_loss: false, told_of_hole: false, late: Vec::new() });
        }
        Self {
            network,
            log,
            ends,
            pushes: Vec::new(),
            hook_takes,
            reachable: [true; ENDS.len()],
            kicked: [false; 2],
            sessions: HashMap::new(),
        }
    }

    fn sessions_of_end(&self, end: usize) -> Vec<Session> {
        self.sessions_of(&Target::everyone().only_labelled("end", end.to_string()))
    }

    fn sessions_of(&self, target: &Target) -> Vec<Session> {
        self.network.server().sessions(target).expect("a topic's name")
    }

    async fn run(&mut self, command: &Command) {
        match command.clone() {
            Command::Push { to: address, class, priority, lives, key, each } => {
                let target = match address {
                    To::User(who) => Target::user(USERS[who]),
                    To::Topic => Target::subscribers_of("news.today"),
                    To::Journal => Target::subscribers_of(JOURNAL),
                    To::Everyone => Target::everyone(),
                };
                // Of a topic that keeps its messages none overtakes another.
                let is_kept = matches!(address, To::Journal);
                let (class, priority, key) = match is_kept {
                    true => (Class::Tracked, Priority::Normal, None),
                    false => (class, priority, key),
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
                if each {
                    push = push.watch_each();
                }
                let sent = if is_kept { server.publish(JOURNAL, &push) } else { server.push(&target, &push) };
                let receipt = sent.expect("small");
                let outcomes = receipt.each();
                assert_eq!(receipt.outcomes().targets(), to.len());
                self.pushes.push(Pushed {
                    address,
                    class,
                    priority,
                    key,
                    lives: lives.is_some(),
                    to,
                    receipt,
                    outcomes,
                });
            }
            Command::Subscribe(who) => {
                for session in self.sessions_of_end(who) {
                    session.subscribe("news.*").expect("a pattern");
                }
            }
            Command::Unsubscribe(who) => {
                for session in self.sessions_of_end(who) {
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
            Command::Freeze(who) => {
                self.reachable[who] = false;
                self.ends[who].client.wire.freeze_reader();
            }
            Command::Thaw(who) => {
                self.reachable[who] = true;
                self.ends[who].client.wire.thaw();
                self.ends[who].client.wire.admit();
            }
            Command::DropAck(who, acks) => self.ends[who].client.wire.drop_ack(acks),
            Command::ClaimTwice(who) => self.ends[who].client.wire.claim_twice(),
            Command::LateClaim(who) => self.ends[who].client.wire.claim_late(),
            Command::SlowHook(millis) => self.hook_takes.store(millis, Ordering::Relaxed),
            Command::Overtake(who) => {
                let takes = self.hook_takes.swap(400, Ordering::Relaxed);
                self.ends[who].client.wire.cut();
                tokio::time::sleep(Duration::from_millis(5)).await;
                self.hook_takes.store(0, Ordering::Relaxed);
                // The server does not notice: it goes on with the attempt that its client has given up.
                self.ends[who].client.wire.strand();
                tokio::time::sleep(Duration::from_millis(5)).await;
                self.hook_takes.store(takes, Ordering::Relaxed);
            }
            Command::SubscribeLate(who) => {
                let takes = self.hook_takes.fetch_max(40, Ordering::Relaxed);
                self.ends[who].client.wire.cut();
                let client = self.ends[who].client.client.clone();
                tokio::time::sleep(Duration::from_millis(5)).await;
                self.ends[who].late.push(tokio::spawn(async move { client.subscribe(LATE).await.is_ok() }));
                tokio::time::sleep(Duration::from_millis(5)).await;
                self.hook_takes.store(takes, Ordering::Relaxed);
            }
            Command::Sweep(who, millis) => {
                self.ends[who].client.wire.refuse();
                self.ends[who].client.wire.cut();
                for (end, user) in ENDS.into_iter().enumerate() {
                    self.kicked[user] |= end == who || !self.reachable[end];
                }
                tokio::time::sleep(Duration::from_millis(WINDOW.saturating_add_signed(millis))).await;
                if self.reachable[who] {
                    self.ends[who].client.wire.admit();
                }
            }
            Command::Expire => {
                for (end, user) in ENDS.into_iter().enumerate() {
                    self.kicked[user] |= !self.reachable[end];
                }
                tokio::time::sleep(Duration::from_secs(125)).await;
            }
            Command::Refuse(who) => {
                self.reachable[who] = false;
                self.ends[who].client.wire.refuse();
            }
            Command::Admit(who) => {
                self.reachable[who] = true;
                self.ends[who].client.wire.thaw();
                self.ends[who].client.wire.admit();
            }
            Command::Kick(who) => {
                self.kicked[who] = true;
                self.sessions_of(&Target::user(USERS[who])).iter().for_each(|session| session.end("enough"));
            }
            Command::Advance(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
        }
        for session in self.sessions_of(&Target::everyone()) {
            assert!(session.waiting().0 <= self.log + FIRES + 2, "the bounds hold");
            if let Some(end) = session.label("end") {
                self.sessions.insert(session.id(), end.parse().expect("a number"));
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
                let of_end = |id: &SessionId| self.sessions.get(id).is_none_or(|of| *of == who);
                // What the journal keeps may come to a session that was not there yet.
                let is_for_it = matches!(pushed.address, To::Journal) || pushed.to.iter().any(of_end);
                assert!(is_for_it, "push {number} came to somebody else");
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
            if matches!(pushed.address, To::Journal) {
                // After a session that lost it may come one that recovers it.
                continue;
            }
            let never_sent = [Stage::Expired, Stage::Superseded, Stage::Duplicate, Stage::Dropped(DropReason::Full)];
            let never_sent: usize = never_sent.into_iter().map(|stage| outcomes.at(stage)).sum();
            assert!(came + never_sent <= pushed.to.len(), "push {number} came, and says that it was never sent");
        }
    }

    /// All faults end, and all comes to rest.
    async fn finish(&mut self) {
        self.hook_takes.store(0, Ordering::Relaxed);
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
        for end in &mut self.ends {
            end.hear().await;
        }
        self.check_late().await;
        self.check_outcomes();
        self.check_orders();
        self.check_journal();
        // Who is not sent away keeps a session; who keeps it is told of each push that it refused.
        for (end, user) in self.ends.iter().zip(ENDS) {
            assert!(self.kicked[user] || !end.told_of_loss, "a session was lost without a reason");
        }
        if self.kicked == [false; 2] {
            let full = Stage::Dropped(DropReason::Full);
            let refused: usize = self.pushes.iter().map(|pushed| pushed.receipt.outcomes().at(full)).sum();
            let told: u64 = self.ends.iter().map(|end| end.client.messages.dropped()).sum();
            assert_eq!(told, refused as u64, "gaps are told, each once");
        }
    }

    /// A subscription that was answered is the session's, whichever that is by now.
    async fn check_late(&mut self) {
        for who in 0..ENDS.len() {
            let mut is_subscribed = false;
            for asked in std::mem::take(&mut self.ends[who].late) {
                is_subscribed |= asked.await.expect("no panic");
            }
            let has_it = |session: &Session| session.subscriptions().iter().any(|topic| topic == LATE);
            let sessions = self.sessions_of_end(who);
            let connected: Vec<_> = sessions.iter().filter(|session| session.connection().is_some()).collect();
            assert!(!is_subscribed || connected.iter().any(|session| has_it(session)), "client {who}: {sessions:?}");
        }
    }

    /// What came of a push is said, and of each class what it promises.
    fn check_outcomes(&self) {
        for (number, pushed) in self.pushes.iter().enumerate() {
            let came = self.ends.iter().filter(|end| end.got.contains(&number)).count();
            let outcomes = pushed.receipt.outcomes();
            assert_eq!(outcomes.open(), 0, "push {number} is lost without a word: {outcomes:?}");
            let sent_away = |id: &SessionId| self.sessions.get(id).is_none_or(|end| self.kicked[ENDS[*end]]);
            if pushed.class == Class::Fire || pushed.key.is_some() || pushed.to.iter().any(sent_away) {
                continue;
            }
            assert_eq!(outcomes.at(Stage::Dropped(DropReason::SessionEnded)), 0, "push {number}: {outcomes:?}");
            assert_eq!(outcomes.at(Stage::Unknown), 0, "push {number}: {outcomes:?}");
            assert_eq!(outcomes.at(Stage::Dropped(DropReason::Disconnected)), 0, "push {number}: {outcomes:?}");
            if matches!(pushed.address, To::Journal) {
                // To some it may come by recovery.
                continue;
            }
            assert_eq!(outcomes.at(Stage::Handled), came, "push {number}: {outcomes:?}");
            let is_newest = !self.pushes[number + 1..].iter().any(|later| later.class == pushed.class);
            assert!(!is_newest || outcomes.at(Stage::Superseded) == 0, "push {number}, the newest: {outcomes:?}");
        }
    }

    /// Within a priority nothing overtakes; values of a key only become newer.
    fn check_orders(&self) {
        let in_order = |end: &End, counts: &dyn Fn(&Pushed) -> bool| {
            let order: Vec<_> = end.got.iter().filter(|number| counts(&self.pushes[**number])).collect();
            assert!(order.is_sorted(), "{order:?}");
        };
        for end in &self.ends {
            for priority in [Priority::High, Priority::Normal, Priority::Bulk] {
                // A newer value takes the place of an older one, and so comes before what was pushed between. And what
                // a client recovers of the journal, in a new session or after a gap, comes behind what was pushed to its
                // session before.
                let recovers = end.told_of_loss || 0 < end.client.messages.dropped();
                in_order(end, &|pushed| {
                    pushed.priority == priority
                        && !matches!(pushed.class, Class::Latest(_))
                        && !(recovers && matches!(pushed.address, To::Journal))
                });
            }
            for key in ["0", "1"] {
                in_order(end, &|pushed| pushed.class == Class::Latest(key.to_owned()));
            }
            in_order(end, &|pushed| matches!(pushed.address, To::Journal));
        }
    }

    /// Each client has all of the journal, over however many sessions, or was told that it has not.
    fn check_journal(&self) {
        for (at, end) in self.ends.iter().enumerate() {
            for (number, pushed) in self.pushes.iter().enumerate() {
                if matches!(pushed.address, To::Journal) && !pushed.lives && !end.told_of_hole {
                    assert!(end.got.contains(&number), "client {at} misses {number} of the journal: {:?}", end.got);
                }
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

fn play(log: usize, commands: &[Command]) {
    run(async {
        let mut world = World::new(log).await;
        for command in commands {
            world.run(command).await;
        }
        world.finish().await;
    });
}

fn journal(lives: Option<u64>) -> Command {
    let (class, priority) = (Class::Tracked, Priority::Normal);
    Command::Push { to: To::Journal, class, priority, lives, key: None, each: false }
}

/// A connection breaks between two parts of what a client recovers, and it comes back: nothing comes twice.
#[test]
fn a_part_that_was_sent_is_not_sent_again() {
    use Command::{CutAfterFrames, Sweep};
    for seen_before in 1..5 {
        let history = [
            journal(None),
            CutAfterFrames(1, false, 1),
            journal(Some(0)),
            CutAfterFrames(0, false, 1),
            journal(None),
            journal(None),
            CutAfterFrames(1, false, seen_before),
            Sweep(1, -3),
        ];
        (0..20).for_each(|_| play(3, &history));
    }
}

/// A value that another one superseded at its client, unseen, has not been handled, and neither has a repetition of it.
#[test]
fn a_repetition_of_what_was_superseded_is_not_handled() {
    use Command::{Advance, Kick};
    let latest = |to, key| {
        let (class, priority) = (Class::Latest("0".to_owned()), Priority::Normal);
        Command::Push { to, class, priority, lives: None, key, each: false }
    };
    let again = Command::Push {
        to: To::Everyone,
        class: Class::Tracked,
        priority: Priority::Normal,
        lives: None,
        key: Some(0),
        each: false,
    };
    play(12, &[latest(To::User(0), Some(0)), Advance(10), latest(To::Everyone, None), Kick(0), Advance(10), again]);
}

// Two, for two processors.
proptest! {
    #![proptest_config(ProptestConfig { cases: histories() / 2, failure_persistence: None, ..ProptestConfig::default() })]
    /// Whatever breaks: nothing is invented, changed, reordered within a priority, or handled twice; receipts say no
    /// more than is true; a tracked push is handled, or its sender is told that it was not; and of a topic that is
    /// kept nothing is missing, even over lost sessions, unless the client is told.
    #[test]
    fn promises_hold_end_to_end(commands in prop::collection::vec(command(), 1..40)) {
        play(12, &commands);
    }

    /// With logs that are full most of the time.
    #[test]
    fn promises_hold_end_to_end_when_room_is_short(commands in prop::collection::vec(command(), 1..40)) {
        play(3, &commands);
    }
}
