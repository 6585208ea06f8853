//! Topics at work: subscriptions, published messages, presence.
//!
//! | file | what it does |
//! |---|---|
//! | `hub.rs` | publishing, and forgetting what is too old |
//! | `hub/shared.rs` | topics whose history the nodes of a cluster share |
//! | `hub/subscribe.rs` | subscribing: what was missed, the place among the subscribers, the end of it |
//!
//! Locks, in the order in which they are taken: a topic's turn, the table of what is kept, one topic of it, the tree of
//! subscriptions, one session. A message gets its offset, its stamp and its subscribers under the topic's lock; it goes
//! into their ledgers in the topic's turn, so that each gets the messages in the order of their offsets. A new
//! subscriber subscribes meanwhile has it from the history, or is among the subscribers, and gets each once. Nothing is
//! written to a socket under any of these.

#[cfg(feature = "cluster")]
mod shared;
mod subscribe;

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    ops::{Deref, DerefMut},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use bothways_proto::keys;
use parking_lot::{RwLock, RwLockWriteGuard};
use tokio::time::Instant;

#[cfg(feature = "cluster")]
pub(crate) use self::shared::{Arrived, SharedHistories, SharedMessage, SharedPage, Step, ToShare};
pub use self::subscribe::Subscribed;
pub(crate) use self::subscribe::{Answer, SubscribeArgs, SubscribeReply, Wish};
use super::{
    Class, Priority, Push, Session,
    claims::Listed,
    fan_out::{Delivered, Delivery, Publishing, SendError},
    history::{History, Position},
    kept::{Kept, Topic, Topics},
    lock::Held as HeldLocks,
    options::SessionOptions,
    presence::Generations,
    push::Encoded,
    receipt::Receipt,
    rules::{Rules, TopicOptions},
    subscribers::{Listing, Stale, Subscribers},
    tell::Telling,
    topic::{self, Subscriptions},
};
use crate::{
    calm::{Calm, Said, tell},
    clock::after,
};

/// Topics that are looked at before others have their turn.
const AT_ONCE: usize = 256;

/// The topics of a server.
pub(crate) struct Hub {
    pub(super) me: Weak<Hub>,
    rules: Rules,
    room: Room,
    pub(super) fan_out: Arc<Delivery>,
    began: Instant,
    pub(super) subscriptions: RwLock<Subscriptions<Session>>,
    pub(super) topics: Topics,
    /// Counts what is published to topics with history. Moves only while the tree is locked for reading, so that a
    /// subscription is before or after each message.
    clock: AtomicU64,
    pub(super) generations: Generations,
    pub(super) telling: Arc<Telling>,
    /// When the log was told last of messages that are not kept, and of changes of presence that are too large.
    unkept_told: Calm,
    pub(super) too_large_told: Calm,
    /// Where the nodes of a cluster have their histories.
    #[cfg(feature = "cluster")]
    shared: std::sync::OnceLock<Arc<dyn SharedHistories>>,
    /// Stamps that were given to what was there before.
    #[cfg(feature = "cluster")]
    older: AtomicU64,
    /// Sessions that came from other nodes and are to be subscribers in a moment, by topic. Looked at with no session locked.
    #[cfg(feature = "cluster")]
    coming: parking_lot::Mutex<std::collections::HashMap<Arc<str>, Vec<Session>>>,
}

/// What clients may subscribe to.
struct Room {
    /// Topics and patterns of one session, and their bytes.
    subscriptions_max: usize,
    subscription_bytes_max: usize,
    /// Bytes of the subscriptions of all sessions.
    all_subscription_bytes_max: usize,
}

#[derive(Debug)]
pub(super) struct Published {
    /// Encoded, with its position.
    encoded: Encoded,
    /// What event logs call it.
    name: Arc<str>,
    /// By the hub's clock.
    stamp: u64,
    expires: Option<Instant>,
    /// As it was pushed, of a topic whose newest message is sent to every new subscriber, and so to those that do not
    /// know of topics.
    push: Option<Push>,
    /// It is no message, and nobody is sent it: it gives a topic to which nothing was published a position.
    is_beginning: bool,
}

impl Published {
    #[cfg(test)]
    pub(super) fn for_test() -> Self {
        let encoded = Encoded { frame: bytes::Bytes::new(), keyed: None };
        Self { encoded, name: "T.m".into(), stamp: 0, expires: None, push: None, is_beginning: false }
    }

    #[cfg(feature = "cluster")]
    fn beginning(stamp: u64) -> Self {
        let encoded = Encoded { frame: bytes::Bytes::new(), keyed: None };
        Self { encoded, name: "".into(), stamp, expires: None, push: None, is_beginning: true }
    }
}

impl Hub {
    pub(super) fn new(options: &SessionOptions, rules: Rules, fan_out: Arc<Delivery>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            rules,
            room: Room {
                subscriptions_max: options.subscriptions_max,
                subscription_bytes_max: options.subscription_bytes_max,
                all_subscription_bytes_max: options.all_subscription_bytes_max,
            },
            fan_out,
            began: Instant::now(),
            subscriptions: RwLock::default(),
            topics: Topics::new(),
            clock: AtomicU64::new(0),
            generations: Generations::beginning_at(SystemTime::now()),
            telling: Arc::default(),
            unkept_told: Calm::default(),
            too_large_told: Calm::default(),
            #[cfg(feature = "cluster")]
            shared: std::sync::OnceLock::new(),
            #[cfg(feature = "cluster")]
            older: AtomicU64::new(0),
            #[cfg(feature = "cluster")]
            coming: parking_lot::Mutex::default(),
        })
    }

    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn change_subscriptions(&self) -> Changing<'_> {
        Changing { tree: self.subscriptions.write(), stale: Vec::new() }
    }

    /// Forgets those of these topics of which nothing is kept, and to which nobody subscribes.
    pub(super) fn forget_unused(&self, topics: impl IntoIterator<Item = Arc<str>>) {
        #[cfg(feature = "cluster")]
        let is_subscribed = |topic: &str| match self.shared.get() {
            None => self.subscriptions.read().count(topic) != 0,
            // Who subscribes to a pattern follows the chain of each of its topics.
            Some(_) => self.has_subscribers(topic),
        };
        #[cfg(not(feature = "cluster"))]
        let is_subscribed = |topic: &str| self.subscriptions.read().count(topic) != 0;
        self.topics.forget_unused(self.now(), topics, is_subscribed);
    }

    /// The options of a topic of which something is kept by that name.
    fn kept_options(&self, pattern: &str) -> Option<&TopicOptions> {
        let options = self.rules.of(pattern).ok().flatten()?;
        (options.keeps() && !topic::has_wildcard(pattern)).then_some(options)
    }
}

/// A topic or a pattern, and what there is of it.
#[derive(Clone, Debug)]
pub(crate) struct TopicStanding {
    pub(crate) name: Arc<str>,
    pub(crate) subscribers: usize,
    /// With a history: the offset of its newest message.
    pub(crate) newest: Option<u64>,
    /// With presence.
    pub(crate) members: Option<usize>,
}

impl Hub {
    /// How many topics and patterns begin so, and a page of them by name, after this one. Nobody subscribes meanwhile, or
    /// ends a subscription: it takes some 50 ns for each of all there are.
    pub(crate) fn topics_after(&self, prefix: &str, after: &str, max: usize) -> (usize, Vec<TopicStanding>) {
        let (mut total, mut first) = (0, BTreeMap::<Arc<str>, usize>::new());
        let kept = self.topics.names();
        {
            let subscriptions = self.subscriptions.read();
            let mut show = |name: &Arc<str>, subscribers: usize| {
                if !name.starts_with(prefix) {
                    return;
                }
                total += 1;
                let is_on_page = max != first.len() || first.last_key_value().is_some_and(|(last, _)| name < last);
                if after < &**name && is_on_page {
                    first.insert(Arc::clone(name), subscribers);
                    if max < first.len() {
                        first.pop_last();
                    }
                }
            };
            subscriptions.each_name(&mut show);
            kept.iter().filter(|name| subscriptions.count(name) == 0).for_each(|name| show(name, 0));
        }

        let standing = |(name, subscribers): (Arc<str>, usize)| {
            let topic = self.topics.find(&name);
            let kept = topic.as_ref().map(|topic| topic.kept.lock());
            let newest = kept.as_ref().and_then(|kept| Some(kept.history.as_ref()?.position().offset));
            let members = kept.as_ref().and_then(|kept| Some(kept.roster.as_ref()?.len()));
            drop(kept);
            TopicStanding { name, subscribers, newest, members }
        };
        (total, first.into_iter().map(standing).collect())
    }

    /// The sessions that subscribe to a topic, each once.
    pub(super) fn subscribers(&self, topic: &str) -> Listing<Session> {
        self.found(&self.subscriptions.read(), topic)
    }

    /// The subscribers of a topic, each once.
    fn found(&self, subscriptions: &Subscriptions<Session>, topic: &str) -> Listing<Session> {
        let mut of_patterns: Vec<&Subscribers<Session>> = Vec::new();
        subscriptions.each(topic, |subscribers| of_patterns.push(subscribers));
        let short_max = self.fan_out.crowd();
        match of_patterns.as_slice() {
            [] => Listing::default(),
            [only] => only.listing(short_max),
            several => {
                let mut seen = HashSet::with_capacity(several.iter().map(|subscribers| subscribers.len()).sum());
                let lists: Vec<_> = several.iter().map(|subscribers| subscribers.listing(short_max)).collect();
                let all = lists.iter().flat_map(Listing::iter);
                Listing::Short(all.filter(|session| seen.insert(session.id())).cloned().collect())
            }
        }
    }

    /// Pushes to the subscribers of a topic, and keeps the push if the topic has a history.
    pub(crate) fn publish(&self, topic: &str, push: &Push, receipt: &Receipt) -> Result<(), SendError> {
        // First: whether this thread is in a burst is judged by when the push begins.
        let delivered = self.fan_out.begin();
        self.fan_out.check_running()?;
        topic::check_topic(topic)?;
        push.check_reserved()?;

        let mut positioned = push.clone();
        positioned.metadata.insert(keys::TOPIC, topic);
        let options = self.rules.of_topic(topic);
        let Some(options) = options.filter(|options| options.history.is_some()) else {
            return self.publish_unkept(topic, push, positioned, receipt, delivered);
        };

        #[cfg(feature = "cluster")]
        if let Some(shared) = self.shared.get() {
            // What is too large is told at once.
            self.fan_out.encode(&positioned)?;
            let push = in_order(push, topic, options.latest_only);
            let kept_for = options.history.as_ref().and_then(|history| history.time_to_live);
            return Arc::clone(shared).publish(ToShare { topic, push: &push, kept_for }, receipt);
        }

        let topic = match self.topics.keep(topic, options, None) {
            Ok(topic) => topic,
            Err(error) => {
                // Those who are there get it; there is no room to keep it for others.
                tell!(self.unkept_told, warn, topic = ?Said(topic), %error, "a message is not kept");
                return self.publish_unkept(topic, push, positioned, receipt, delivered);
            }
        };
        self.publish_kept(&topic, options, push, positioned, receipt, delivered)
    }

    /// As [`Self::publish`] to a topic of which nothing is kept, to all but these.
    #[cfg(feature = "cluster")]
    pub(crate) fn publish_to_others(
        &self,
        topic: &str,
        push: &Push,
        receipt: &Receipt,
        except: &[super::SessionId],
    ) -> Result<(), SendError> {
        if except.is_empty() {
            return self.publish(topic, push, receipt);
        }
        let mut delivered = self.fan_out.begin();
        self.fan_out.check_running()?;
        topic::check_topic(topic)?;
        push.check_reserved()?;

        let mut positioned = push.clone();
        positioned.metadata.insert(keys::TOPIC, topic);
        let except: HashSet<super::SessionId> = except.iter().copied().collect();
        let all = self.subscribers(topic);
        let others = all.iter().filter(|session| !except.contains(&session.id())).cloned().collect();
        let outcome = self.deliver_unkept(&Listing::Short(others), push, &positioned, receipt, &mut delivered);
        self.fan_out.write(delivered);
        outcome
    }

    /// True if messages of this topic are kept.
    #[cfg(feature = "cluster")]
    pub(super) fn keeps_history(&self, topic: &str) -> bool {
        self.rules.of_topic(topic).is_some_and(|options| options.history.is_some())
    }

    /// Pushes to those who subscribe now.
    fn publish_unkept(
        &self,
        topic: &str,
        push: &Push,
        positioned: Push,
        receipt: &Receipt,
        mut delivered: Delivered,
    ) -> Result<(), SendError> {
        let outcome = self.deliver_unkept(&self.subscribers(topic), push, &positioned, receipt, &mut delivered);
        self.fan_out.write(delivered);
        outcome
    }

    fn deliver_unkept(
        &self,
        subscribers: &Listing<Session>,
        push: &Push,
        positioned: &Push,
        receipt: &Receipt,
        delivered: &mut Delivered,
    ) -> Result<(), SendError> {
        let with_topic = self.fan_out.encode(positioned)?;
        let listed = Listed::new(subscribers);
        let published = Publishing { with_topic: &with_topic, listed: &listed, topic: None, listing: subscribers };
        Ok(self.fan_out.deliver_of_topic(&published, push, receipt, delivered)?)
    }

    fn publish_kept(
        &self,
        topic: &Topic,
        options: &TopicOptions,
        push: &Push,
        positioned: Push,
        receipt: &Receipt,
        delivered: Delivered,
    ) -> Result<(), SendError> {
        let next = |kept: &mut Kept| Some((kept.history.as_ref()?.next_position(), None));
        self.enter(topic, options, push, positioned, receipt, delivered, next).map(|_| ())
    }

    /// Keeps a message at the place that this finds, with the offset before it where those do not count by one, and
    /// delivers it. False: there is no place for it.
    #[expect(clippy::too_many_arguments, reason = "it is one step of a publish, which has these")]
    fn enter(
        &self,
        topic: &Topic,
        options: &TopicOptions,
        push: &Push,
        mut positioned: Push,
        receipt: &Receipt,
        mut delivered: Delivered,
        place: impl FnOnce(&mut Kept) -> Option<(Position, Option<u64>)>,
    ) -> Result<bool, SendError> {
        let push = in_order(push, &topic.name, options.latest_only);
        positioned.class = push.class.clone();

        // Dropped when nothing is locked, whatever happens: payloads are the application's.
        let dropped;
        // Nobody is woken while the topic is locked.
        let held_locks = HeldLocks::begin();
        // Others publish after this one; a new subscriber does not wait for all others.
        let turn = topic.turn.lock();
        let mut kept = topic.kept.lock();
        let Some((position, previous)) = place(&mut kept) else { return Ok(false) };
        let Some(history) = kept.history.as_mut() else {
            unreachable!("what is kept of a topic is as its options say, which never change")
        };

        positioned.metadata.insert(keys::TOPIC_EPOCH, position.epoch.to_string());
        positioned.metadata.insert(keys::TOPIC_OFFSET, position.offset.to_string());
        if let Some(previous) = previous {
            positioned.metadata.insert(keys::TOPIC_PREVIOUS, previous.to_string());
        }
        let encoded = self.fan_out.encode(&positioned)?;
        let with_topic = encoded.clone();
        let (subscribers, stamp) = {
            // Under one lock: a session that subscribes after the look-up starts after this stamp.
            let subscriptions = self.subscriptions.read();
            (self.found(&subscriptions, &topic.name), self.clock.fetch_add(1, Ordering::Relaxed))
        };

        let expires = push.time_to_live.map(after);
        let kept_push = options.latest_only.then(|| push.to_keep());
        let bytes = encoded.size() + kept_push.as_ref().map_or(0, Push::size);
        dropped = history.push_at(
            position.offset,
            self.now(),
            bytes,
            Published { encoded, name: Arc::clone(push.name()), stamp, expires, push: kept_push, is_beginning: false },
        );
        receipt.store(position);
        self.topics.schedule(topic, &mut kept);
        // A new subscriber finds the message in the history from here on, and need not wait longer.
        drop(kept);

        let listed = Listed::published(&topic.name, stamp, &subscribers);
        let published =
            Publishing { with_topic: &with_topic, listed: &listed, topic: Some(&topic.name), listing: &subscribers };
        let outcome = self.fan_out.deliver_of_topic(&published, &push, receipt, &mut delivered);

        // From here on nothing is locked: wakes, then drops of payloads, then writes.
        drop(turn);
        drop(held_locks);
        drop(dropped);
        self.fan_out.write(delivered);
        outcome?;
        Ok(true)
    }

    /// Forgets what is too old, and who did not come back.
    pub(super) async fn sweep_topics(&self) {
        let now = self.now();
        loop {
            let due = self.topics.due(now, AT_ONCE);
            if due.is_empty() {
                break;
            }

            let mut unused = Vec::new();
            for topic in due {
                let mut kept = topic.kept.lock();
                let dropped = kept.history.as_mut().map(|history| history.trim(now));
                let gone = kept.roster.as_mut().map(|roster| roster.expire(now, &self.generations));
                self.note_changes(&topic, &mut kept, gone.unwrap_or_default());
                self.topics.schedule(&topic, &mut kept);
                if kept.history.as_ref().is_none_or(History::is_empty) {
                    unused.push(Arc::clone(&topic.name));
                }
                drop(kept);
                // Payloads are the application's.
                drop(dropped);
            }

            // After the loop: the table is locked before its topics, and a topic in use would stay.
            self.forget_unused(unused);
            tokio::task::yield_now().await;
        }

        self.topics.forget_places(now);
        self.tell();
    }
}

/// The tree of subscriptions while it is changed. Lists that are not true any more are dropped when it is unlocked.
struct Changing<'a> {
    // Fields are dropped in this order.
    tree: RwLockWriteGuard<'a, Subscriptions<Session>>,
    stale: Vec<Stale<Session>>,
}

impl Deref for Changing<'_> {
    type Target = Subscriptions<Session>;

    fn deref(&self) -> &Self::Target {
        &self.tree
    }
}

impl DerefMut for Changing<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.tree
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.stale = self.tree.take_stale();
    }
}

/// A push to a topic with history, so that nothing overtakes anything.
fn in_order<'a>(push: &'a Push, topic: &str, latest_only: bool) -> Cow<'a, Push> {
    let class = match &push.class {
        Class::Fire => Class::Fire,
        _ if latest_only => latest_class(topic),
        _ => Class::Tracked,
    };
    match class == push.class && push.priority == Priority::Normal {
        true => Cow::Borrowed(push),
        false => Cow::Owned(push.clone().class(class).priority(Priority::Normal)),
    }
}

fn latest_class(topic: &str) -> Class {
    Class::Latest(format!("{} {topic}", keys::TOPIC))
}

#[cfg(test)]
mod tests;
