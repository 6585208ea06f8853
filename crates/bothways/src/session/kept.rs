//! The topics that the server keeps: history and presence of those in use, and the positions of those that are not.
//!
//! Locks, in the order in which they are taken: a topic's turn, the table, what is kept of it, the list of what is due.
//!
//! A topic with history that nobody has published to takes nothing: its epoch follows from its name. One whose messages
//! are all too old leaves its epoch and its last offset behind, so that a client that has seen that one misses nothing.
//! When these are forgotten, the topic has another epoch, and no other topic has.

use std::{
    collections::{BTreeSet, HashMap, VecDeque, hash_map::Entry},
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use super::{
    away::Owner,
    history::{History, HistoryBounds, Position},
    hub::Published,
    presence::{Change, Roster},
    rules::TopicOptions,
    topic::TopicError,
};

/// Topics of which a server keeps history or presence: with names of 100 bytes some 30 MiB, without the messages.
pub(super) const TOPICS_KEPT_MAX: usize = 65_536;

/// Of these, how many may be there because clients subscribed. The rest is for what the server publishes.
const TOPICS_OF_CLIENTS_MAX: usize = TOPICS_KEPT_MAX / 4 * 3;

/// What part of the room that is left one client, or one user, may have taken at most.
const SHARE: usize = 16;

/// Topics that keep no message any more, and of which the position is still known: 15 MiB at most, with names of 100
/// bytes. Of more the oldest are forgotten.
const PLACES_MAX: usize = 65_536;

/// How long the position of a topic that keeps no message any more is known.
pub(super) const PLACE_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Topics whose position was forgotten, of which it is known that their epoch is another one now: 9 MiB. With one more,
/// all these are forgotten, and every topic that nobody has published to gets another epoch.
const LIVES_MAX: usize = 262_144;

/// One topic of which something is kept.
pub(super) struct Topic {
    pub(super) name: Arc<str>,
    /// Held by a publish, until the message is in the ledger of every subscriber: each gets the messages in the order
    /// of their offsets. A subscription does not wait for it.
    pub(super) turn: Mutex<()>,
    pub(super) kept: Mutex<Kept>,
    /// The client or user that made it by subscribing.
    maker: Option<Owner>,
}

/// What is kept of one topic.
pub(super) struct Kept {
    pub(super) history: Option<History<Published>>,
    pub(super) roster: Option<Roster>,
    /// Changes of presence that subscribers are still to be told of, oldest first.
    pub(super) untold: Vec<Change>,
    #[cfg(feature = "cluster")]
    pub(super) mirror: Mirror,
    /// When it is looked at next, because something is too old by then.
    due: Option<Duration>,
}

impl Kept {
    /// True if nothing of it needs to stay but its position.
    pub(super) fn is_unused(&self) -> bool {
        self.untold.is_empty()
            && self.history.as_ref().is_none_or(History::is_empty)
            && self.roster.as_ref().is_none_or(Roster::is_empty)
    }

    /// When the next part of it is too old.
    fn next_due(&self) -> Option<Duration> {
        let history = self.history.as_ref().and_then(History::next_due);
        let roster = self.roster.as_ref().and_then(Roster::next_due);
        history.into_iter().chain(roster).min()
    }
}

/// How far the history here is with that which the nodes share.
#[cfg(feature = "cluster")]
#[derive(Debug, Default)]
pub(super) struct Mirror {
    /// It has what the log had before this node followed it.
    pub(super) is_deep: bool,
    /// The log is being read: what comes meanwhile is read too.
    pub(super) is_reading: bool,
    /// There is a message here.
    pub(super) wanted: Option<Position>,
}

/// What a topic has when somebody subscribes to it.
pub(super) enum Held<'a> {
    /// It keeps nothing.
    Nothing,
    /// Nothing is kept of it yet, and as long as this is held nothing will be. The history is empty.
    Place(History<Published>, RwLockReadGuard<'a, Table>),
    Kept(Arc<Topic>),
}

/// See the module.
pub(super) struct Topics {
    table: RwLock<Table>,
    /// Topics by when they are looked at next, each once.
    due: Mutex<BTreeSet<(Duration, Arc<str>)>>,
    /// Histories are copies of those that the nodes share: where they stand is known by those.
    is_shared: AtomicBool,
}

#[derive(Default)]
pub(super) struct Table {
    topics: HashMap<Arc<str>, Arc<Topic>>,
    /// How many of the topics each client, or user, has made.
    made: HashMap<Owner, usize>,
    made_in_all: usize,
    /// Where topics stand that keep no message any more, and until when that is known.
    places: HashMap<Arc<str>, (Position, Duration)>,
    /// Those, the oldest first; some are gone since, or younger.
    places_by_age: VecDeque<(Duration, Arc<str>)>,
    lives: Lives,
}

/// How often the places of topics were forgotten. From that follows the epoch of a topic that has no place.
#[derive(Default)]
struct Lives {
    hasher: RandomState,
    /// By the hash of the name: it takes less room than the name, and differs as well as an epoch does.
    by_topic: HashMap<u64, u64>,
    /// How often [`Self::by_topic`] was full.
    of_all: u64,
}

impl Lives {
    /// The epoch of a topic that begins now.
    fn epoch(&self, topic: &str) -> u64 {
        let life = self.by_topic.get(&self.hasher.hash_one(topic)).copied().unwrap_or(0);
        // 53 bits, so that every language's numbers hold it.
        (self.hasher.hash_one((topic, self.of_all, life)) >> 11).max(1)
    }

    /// The place of this topic is forgotten: one of its name begins anew, and so must differ from what it was.
    fn end(&mut self, topic: &str) {
        let topic = self.hasher.hash_one(topic);
        if let Some(life) = self.by_topic.get_mut(&topic) {
            *life += 1;
            return;
        }
        if LIVES_MAX <= self.by_topic.len() {
            self.by_topic.clear();
            self.of_all += 1;
            return;
        }
        self.by_topic.insert(topic, 1);
    }
}

impl Topics {
    pub(super) fn new() -> Self {
        Self { table: RwLock::default(), due: Mutex::default(), is_shared: AtomicBool::new(false) }
    }

    /// From here on histories are copies.
    #[cfg(feature = "cluster")]
    pub(super) fn share(&self) {
        self.is_shared.store(true, Ordering::Relaxed);
    }

    /// A history that begins where the topic stands; where that is not known, at no place.
    fn history(&self, table: &Table, topic: &str, bounds: &HistoryBounds) -> History<Published> {
        match self.is_shared.load(Ordering::Relaxed) {
            false => table.history(topic, bounds),
            true => History::beginning_at(Position { epoch: 0, offset: 0 }, bounds.clone()),
        }
    }

    pub(super) fn find(&self, topic: &str) -> Option<Arc<Topic>> {
        self.table.read().topics.get(topic).cloned()
    }

    /// The names of those of which something is kept.
    pub(super) fn names(&self) -> Vec<Arc<str>> {
        self.table.read().topics.keys().cloned().collect()
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.table.read().topics.len()
    }

    /// What is there for somebody who subscribes. `maker`: a client, which may make so many topics.
    pub(super) fn hold(
        &self,
        topic: &str,
        options: &TopicOptions,
        maker: Option<Owner>,
    ) -> Result<Held<'_>, TopicError> {
        let table = self.table.read();
        if let Some(topic) = table.topics.get(topic) {
            return Ok(Held::Kept(Arc::clone(topic)));
        }

        match &options.history {
            Some(bounds) if !options.presence => {
                let history = self.history(&table, topic, bounds);
                Ok(Held::Place(history, table))
            }
            _ => {
                // `keep` locks the table for writing.
                drop(table);
                self.keep(topic, options, maker).map(Held::Kept)
            }
        }
    }

    /// What is kept of a topic, from now on.
    pub(super) fn keep(
        &self,
        name: &str,
        options: &TopicOptions,
        maker: Option<Owner>,
    ) -> Result<Arc<Topic>, TopicError> {
        if let Some(topic) = self.find(name) {
            return Ok(topic);
        }

        let mut table = self.table.write();
        // Others may have made it between the two locks.
        if let Some(topic) = table.topics.get(name) {
            return Ok(Arc::clone(topic));
        }
        table.check_room(maker.as_ref())?;
        if let Some(maker) = &maker {
            *table.made.entry(maker.clone()).or_default() += 1;
            table.made_in_all += 1;
        }

        let history = options.history.as_ref().map(|bounds| self.history(&table, name, bounds));
        let name: Arc<str> = name.into();
        let topic = Arc::new(Topic {
            name: Arc::clone(&name),
            turn: Mutex::default(),
            kept: Mutex::new(Kept {
                history,
                roster: options.presence.then(Roster::default),
                untold: Vec::new(),
                #[cfg(feature = "cluster")]
                mirror: Mirror::default(),
                due: None,
            }),
            maker,
        });

        table.places.remove(&name);
        table.topics.insert(name, Arc::clone(&topic));
        Ok(topic)
    }

    /// Forgets those of these topics of which nothing is kept, and to which nobody subscribes.
    pub(super) fn forget_unused(
        &self,
        now: Duration,
        topics: impl IntoIterator<Item = Arc<str>>,
        is_subscribed: impl Fn(&str) -> bool,
    ) {
        let mut table = self.table.write();
        for name in topics {
            let Entry::Occupied(entry) = table.topics.entry(Arc::clone(&name)) else { continue };
            // Nobody can get hold of it while the table is locked, so that a count of one stays one.
            if Arc::strong_count(entry.get()) != 1 || is_subscribed(&name) || !entry.get().kept.lock().is_unused() {
                continue;
            }

            let topic = entry.remove();
            if let Some(maker) = &topic.maker {
                table.forget_made(maker);
            }
            let kept = topic.kept.lock();
            if let Some(due) = kept.due {
                self.due.lock().remove(&(due, Arc::clone(&name)));
            }
            let place = kept.history.as_ref().map(History::position);
            drop(kept);
            let is_shared = self.is_shared.load(Ordering::Relaxed);
            if let Some(place) = place.filter(|place| 0 < place.offset && !is_shared) {
                table.places.insert(Arc::clone(&name), (place, now + PLACE_LIFETIME));
                table.places_by_age.push_back((now + PLACE_LIFETIME, name));
            }
        }

        table.forget_places(now);
    }

    /// A topic has something to expire: it is looked at when that is due. Its lock is held.
    pub(super) fn schedule(&self, topic: &Topic, kept: &mut Kept) {
        let Some(due) = kept.next_due().filter(|due| kept.due.is_none_or(|known| *due < known)) else { return };
        let known = kept.due.replace(due);
        let mut all = self.due.lock();
        if let Some(known) = known {
            all.remove(&(known, Arc::clone(&topic.name)));
        }
        all.insert((due, Arc::clone(&topic.name)));
    }

    /// Topics that have something to expire by now, so many at most. [`Self::schedule`] follows for each.
    pub(super) fn due(&self, now: Duration, topics_max: usize) -> Vec<Arc<Topic>> {
        let mut due = Vec::new();
        while due.len() < topics_max {
            let next = {
                let mut all = self.due.lock();
                if all.first().is_none_or(|(at, _)| now < *at) {
                    break;
                }
                all.pop_first()
            };
            let Some((at, topic)) = next.and_then(|(at, name)| Some((at, self.find(&name)?))) else { continue };
            let mut kept = topic.kept.lock();
            if kept.due == Some(at) {
                kept.due = None;
                drop(kept);
                due.push(topic);
            }
        }
        due
    }

    /// Forgets the places of topics whose time is over.
    pub(super) fn forget_places(&self, now: Duration) {
        let is_due = self.table.read().places_by_age.front().is_some_and(|(until, _)| *until <= now);
        if is_due {
            self.table.write().forget_places(now);
        }
    }
}

impl Table {
    /// A history that begins where the topic stands.
    fn history(&self, topic: &str, bounds: &HistoryBounds) -> History<Published> {
        let place = self.places.get(topic).map(|(place, _)| *place);
        let place = place.unwrap_or_else(|| Position { epoch: self.lives.epoch(topic), offset: 0 });
        History::beginning_at(place, bounds.clone())
    }

    fn check_room(&self, maker: Option<&Owner>) -> Result<(), TopicError> {
        if TOPICS_KEPT_MAX <= self.topics.len() {
            return Err(TopicError::TooManyTopics { topics: self.topics.len() });
        }
        let Some(maker) = maker else { return Ok(()) };
        if TOPICS_OF_CLIENTS_MAX <= self.made_in_all {
            return Err(TopicError::TooManyTopics { topics: self.topics.len() });
        }
        let topics = self.made.get(maker).copied().unwrap_or(0);
        let share = (TOPICS_OF_CLIENTS_MAX - self.made_in_all).div_ceil(SHARE);
        if share <= topics { Err(TopicError::TooManyTopicsMade { topics }) } else { Ok(()) }
    }

    fn forget_made(&mut self, maker: &Owner) {
        self.made_in_all -= 1;
        if let Some(made) = self.made.get_mut(maker) {
            *made -= 1;
            if *made == 0 {
                self.made.remove(maker);
            }
        }
    }

    fn forget_places(&mut self, now: Duration) {
        while let Some((until, _)) = self.places_by_age.front() {
            let (is_over, are_many) = (*until <= now, PLACES_MAX < self.places.len());
            // One for each place, and some of topics that are in use again.
            let is_long = 2 * PLACES_MAX < self.places_by_age.len();
            if !(is_over || are_many || is_long) {
                return;
            }
            let Some((until, name)) = self.places_by_age.pop_front() else { return };
            if self.places.get(&name).is_some_and(|(_, known)| *known == until) {
                self.places.remove(&name);
                self.lives.end(&name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::{
        super::{
            SessionId,
            presence::{Generations, Who},
        },
        *,
    };

    fn history() -> TopicOptions {
        TopicOptions::new().history(10, Duration::from_secs(60))
    }

    fn presence() -> TopicOptions {
        TopicOptions::new().presence(true)
    }

    fn client(number: u128) -> Option<Owner> {
        Some(Owner::Peer(number.to_string().into()))
    }

    /// Where a topic stands for who subscribes now.
    fn place(topics: &Topics, name: &str) -> Position {
        match topics.hold(name, &history(), client(1)).expect("there is room") {
            Held::Place(history, _) => history.position(),
            Held::Kept(topic) => topic.kept.lock().history.as_ref().expect("it has one").position(),
            Held::Nothing => panic!("it keeps a history"),
        }
    }

    /// However many topics with history clients name, nothing is kept of them before somebody publishes.
    #[test]
    fn who_subscribes_makes_no_topic_with_history() {
        let topics = Topics::new();
        let first = place(&topics, "a");
        for number in 0..1000 {
            place(&topics, &format!("room.{number}"));
        }
        assert_eq!((topics.len(), first.offset), (0, 0));
        let kept = topics.keep("a", &history(), None).expect("there is room");
        assert_eq!(kept.kept.lock().history.as_ref().expect("one").position(), first, "as it was told");
        assert_ne!(place(&topics, "b").epoch, first.epoch);
    }

    /// The position outlives the messages, for its time; a topic that begins anew then has another epoch.
    #[test]
    fn a_position_is_known_for_its_time() {
        let (topics, mut now) = (Topics::new(), Duration::ZERO);
        let before = place(&topics, "quiet");
        let forget = |now| topics.forget_unused(now, ["quiet".into()], |_| false);
        let topic = topics.keep("quiet", &history(), None).expect("there is room");
        topic.kept.lock().history.as_mut().expect("one").push(now, 1, Published::for_test()).clear();
        drop(topic);
        forget(now);
        assert_eq!(topics.len(), 1, "it keeps a message");
        now += Duration::from_secs(60);
        topics.find("quiet").expect("kept").kept.lock().history.as_mut().expect("one").trim(now).clear();
        forget(now);
        assert_eq!(topics.len(), 0);
        assert_eq!(place(&topics, "quiet"), Position { offset: 1, ..before });
        topics.forget_places(now + PLACE_LIFETIME - Duration::from_secs(1));
        assert_eq!(place(&topics, "quiet").offset, 1);
        topics.forget_places(now + PLACE_LIFETIME);
        let anew = place(&topics, "quiet");
        assert!(anew.offset == 0 && anew.epoch != before.epoch, "{anew:?}, after {before:?}");
    }

    /// No client, and no user, takes the room of all others; and what the server publishes is kept though clients
    /// have taken all that they may.
    #[test]
    fn nobody_takes_the_topics_of_others() {
        let topics = Topics::new();
        let take_all = |who: u128| {
            let make = |number: &usize| topics.keep(&format!("{who}.{number}"), &presence(), client(who)).is_ok();
            (0..).take_while(make).count()
        };
        let first = take_all(1);
        assert!((1000..=TOPICS_OF_CLIENTS_MAX / SHARE).contains(&first), "{first}");
        for who in 2..=65 {
            take_all(who);
        }
        assert!(topics.keep("another", &presence(), client(66)).is_ok(), "there is room for one more");
        for who in 100..400 {
            take_all(who);
        }
        assert!(topics.len() <= TOPICS_OF_CLIENTS_MAX);
        for number in 0..1000 {
            topics.keep(&format!("news.{number}"), &history(), None).expect("the server has its own part");
        }
        // What is forgotten makes room.
        topics.forget_unused(Duration::ZERO, (0..first).map(|number| format!("1.{number}").into()), |_| false);
        assert!(topics.keep("another one", &presence(), client(1)).is_ok());
    }

    /// A tick looks at the topics that have something too old, and at no others.
    #[test]
    fn a_tick_looks_at_what_is_due() {
        let topics = Topics::new();
        let publish = |name: &str, now: u64| {
            let topic = topics.keep(name, &history(), None).expect("there is room");
            let mut kept = topic.kept.lock();
            kept.history.as_mut().expect("one").push(Duration::from_secs(now), 1, Published::for_test()).clear();
            topics.schedule(&topic, &mut kept);
        };
        for number in 0..1000 {
            publish(&format!("later.{number}"), 100);
        }
        for now in 0..10 {
            publish("busy", now);
        }
        assert_eq!(topics.due.lock().len(), 1001, "each topic is in the list once");
        let due = |now| topics.due(Duration::from_secs(now), 256);
        assert_eq!(due(59).len(), 0);
        let names: Vec<_> = due(60).iter().map(|topic| Arc::clone(&topic.name)).collect();
        assert_eq!(names, ["busy".into()]);
        assert_eq!(due(160).len(), 256, "so many at once");
    }

    /// Members come and go: a topic is in the list once, and no more when it is forgotten.
    #[test]
    fn a_topic_is_due_once_while_members_come_and_go() {
        let (topics, generations) = (Topics::new(), Generations::beginning_at(SystemTime::UNIX_EPOCH));
        let seconds = Duration::from_secs;
        let options = TopicOptions::new().history(10, seconds(1_000_000)).presence(true);
        let topic = topics.keep("room", &options, None).expect("there is room");
        let (who, session) = (Who::User("ann".into()), SessionId(1));
        {
            let mut kept = topic.kept.lock();
            kept.history.as_mut().expect("one").push(Duration::ZERO, 1, Published::for_test()).clear();
            topics.schedule(&topic, &mut kept);
        }
        for now in (0..100).map(|round| seconds(1000 * round)) {
            {
                let mut kept = topic.kept.lock();
                let roster = kept.roster.as_mut().expect("one");
                roster.enter(&who, session, &generations);
                roster.leave(session, Some(now + seconds(120)), &generations);
                topics.schedule(&topic, &mut kept);
            }
            assert_eq!((topics.due(now, 256).len(), topics.due.lock().len()), (0, 1));
            let due = topics.due(now + seconds(120), 256);
            assert_eq!(due.len(), 1, "she did not come back");
            let mut kept = topic.kept.lock();
            kept.roster.as_mut().expect("one").expire(now + seconds(120), &generations);
            topics.schedule(&topic, &mut kept);
            assert_eq!(topics.due.lock().len(), 1);
        }
        topic.kept.lock().history = None;
        drop(topic);
        topics.forget_unused(Duration::ZERO, ["room".into()], |_| false);
        assert_eq!((topics.len(), topics.due.lock().len()), (0, 0));
    }

    /// What is still subscribed to, held by somebody, or in use is not forgotten, each for itself.
    #[test]
    fn what_is_in_use_is_not_forgotten() {
        let topics = Topics::new();
        let make = || topics.keep("quiet", &presence(), client(1)).expect("there is room");
        let forget = |is_subscribed: bool| {
            topics.forget_unused(Duration::ZERO, ["quiet".into()], |_| is_subscribed);
            topics.len()
        };
        drop(make());
        assert_eq!(forget(true), 1, "somebody subscribes to it");
        let held = make();
        assert_eq!(forget(false), 1, "somebody holds it");
        let who = Who::Session(SessionId(1));
        held.kept.lock().untold.push(Change { who, is_in: true, generation: 1 });
        drop(held);
        assert_eq!(forget(false), 1, "something is to be told of it");
        make().kept.lock().untold.clear();
        assert_eq!(forget(false), 0);
    }

    /// Places are kept for so many topics, and what tells their age is bounded though topics come and go.
    #[test]
    fn places_are_bounded_in_number() {
        let mut table = Table::default();
        let (now, until) = (Duration::ZERO, Duration::from_secs(1));
        let place = Position { epoch: 1, offset: 1 };
        for number in 0..2 * PLACES_MAX {
            table.places_by_age.push_back((until, "gone".into()));
            if number % 2 == 0 {
                table.places.insert(number.to_string().into(), (place, until));
            }
        }
        table.forget_places(now);
        assert_eq!(
            (table.places.len(), table.places_by_age.len()),
            (PLACES_MAX, 2 * PLACES_MAX),
            "all there is room for"
        );
        table.places_by_age.push_back((until, "last".into()));
        table.forget_places(now);
        assert_eq!((table.places_by_age.len(), table.lives.by_topic.len()), (2 * PLACES_MAX, 0));
        table.places.insert("last".into(), (place, until));
        table.forget_places(now);
        assert_eq!((table.places_by_age.len(), table.places.len()), (0, PLACES_MAX));
        assert_eq!(table.lives.by_topic.len(), 1);
    }

    /// What is known of topics that began anew is bounded. When it is forgotten, none of them has the epoch that it had.
    #[test]
    fn no_epoch_comes_again_when_lives_are_forgotten() {
        let mut lives = Lives::default();
        let first = lives.epoch("a");
        let untouched = lives.epoch("b");
        lives.end("a");
        let second = lives.epoch("a");
        assert_eq!(lives.epoch("b"), untouched, "nothing of it was lost");
        for number in 1..LIVES_MAX {
            lives.end(&number.to_string());
        }
        assert_eq!((lives.by_topic.len(), lives.epoch("a")), (LIVES_MAX, second));
        let last = lives.epoch("one more");
        lives.end("one more");
        assert_eq!(lives.by_topic.len(), 0);
        assert!(lives.epoch("one more") != last && ![first, second].contains(&lives.epoch("a")));
    }

    /// A topic to which nothing was ever published has no place to remember.
    #[test]
    fn a_topic_without_messages_leaves_no_place() {
        let topics = Topics::new();
        drop(topics.keep("quiet", &history(), None).expect("there is room"));
        topics.forget_unused(Duration::ZERO, ["quiet".into()], |_| false);
        assert_eq!((topics.len(), topics.table.read().places.len()), (0, 0));
    }
}
