//! Topics at work: who subscribes, what was published, who is present.
//!
//! Locks, in the order in which they are taken: the table of what is kept, one topic of it, the tree of
//! subscriptions, one session. A topic stays locked from the moment in which a message gets its offset until it
//! is in the ledger of every subscriber, so that each gets the messages in the order of their offsets, and
//! whoever subscribes meanwhile gets each once. Nothing is written to a socket under any of these.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bothways_proto::keys;
use parking_lot::{Mutex, MutexGuard, RwLock};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    Class, Priority, Push, Session, SessionId,
    claims::Listed,
    explain::{self, What},
    history::{History, Position},
    ledger::Entry,
    presence::{Change, Presence, PresenceChange, PresenceMember, PresenceStatus, Roster, Who},
    push::Encoded,
    receipt::Receipt,
    registry::{Registry, SendError, unique},
    rules::{Access, Rules, SubscribeRequest, TopicOptions},
    topic::{self, Subscriptions, TopicError},
};

/// Topics of which a server keeps history or presence: with names of 100 bytes some 30 MiB, without the messages.
const TOPICS_KEPT_MAX: usize = 65_536;

/// What came of subscribing.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Subscribed {
    /// Everything that was published behind the position asked from, and has not expired, was sent or is on
    /// its way: all of it, never a part. False if no position was asked from. Of a topic of which only the
    /// newest message counts, that one is meant.
    pub recovered: bool,
    /// Where the subscriber stands: everything behind it is coming. `None` if the topic has no history, and
    /// for a pattern.
    pub position: Option<Position>,
}

/// The arguments of `_bothways` / `Subscribe` and `Unsubscribe`, as Go declares them.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct SubscribeArgs {
    pub(crate) topic: String,
    /// 0: from now on.
    pub(crate) epoch: u64,
    pub(crate) offset: u64,
}

/// The reply, as Go declares it.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct SubscribeReply {
    pub(crate) recovered: bool,
    /// 0: the topic has no history.
    pub(crate) epoch: u64,
    pub(crate) offset: u64,
}

impl From<Subscribed> for SubscribeReply {
    fn from(subscribed: Subscribed) -> Self {
        let Position { epoch, offset } = subscribed.position.unwrap_or(Position { epoch: 0, offset: 0 });
        Self { recovered: subscribed.recovered, epoch, offset }
    }
}

impl From<SubscribeReply> for Subscribed {
    fn from(reply: SubscribeReply) -> Self {
        let position = Position { epoch: reply.epoch, offset: reply.offset };
        Self { recovered: reply.recovered, position: (reply.epoch != 0).then_some(position) }
    }
}

/// The topics of a server.
pub(super) struct Hub {
    rules: Rules,
    began: Instant,
    pub(super) subscriptions: RwLock<Subscriptions<Session>>,
    kept: RwLock<HashMap<Arc<str>, Arc<Mutex<Kept>>>>,
    /// Counts what is published to topics with history. Moves only while the tree is locked for reading, so that a
    /// subscription is before or behind each message.
    clock: AtomicU64,
    /// Counts changes of presence.
    generations: AtomicU64,
}

/// What is kept of one topic.
struct Kept {
    history: Option<History<Published>>,
    roster: Option<Roster>,
}

struct Published {
    /// Encoded, with its position.
    encoded: Encoded,
    /// What trails call it.
    name: Arc<str>,
    /// By the hub's clock.
    stamp: u64,
    expires: Option<Instant>,
    /// As it was pushed, of a topic of which the newest is sent to whoever comes, and so to those who do not know of
    /// topics.
    push: Option<Push>,
}

/// A push in its two forms: for those who know of topics, and for those of whom it is not known. These see what Go would
/// send, unless they turn out to speak sessions before it goes.
struct Frames<'a> {
    registry: &'a Registry,
    push: &'a Push,
    with_topic: Encoded,
    perhaps_plain: Option<Encoded>,
}

impl Frames<'_> {
    fn for_session(&mut self, session: &Session) -> Result<&Encoded, SendError> {
        if session.knows_topics() {
            return Ok(&self.with_topic);
        }
        if self.perhaps_plain.is_none() {
            self.perhaps_plain = Some(self.with_topic.or_plain(self.registry.encode(self.push)?));
        }
        Ok(self.perhaps_plain.as_ref().expect("it was just made"))
    }
}

impl Hub {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            rules,
            began: Instant::now(),
            subscriptions: RwLock::default(),
            kept: RwLock::default(),
            clock: AtomicU64::new(0),
            generations: AtomicU64::new(0),
        }
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn find(&self, topic: &str) -> Option<Arc<Mutex<Kept>>> {
        self.kept.read().get(topic).cloned()
    }

    /// What is kept of a topic, from now on.
    fn keep(&self, topic: &str, options: &TopicOptions) -> Result<Arc<Mutex<Kept>>, TopicError> {
        if let Some(kept) = self.find(topic) {
            return Ok(kept);
        }
        let mut all = self.kept.write();
        if let Some(kept) = all.get(topic) {
            return Ok(Arc::clone(kept));
        }
        if TOPICS_KEPT_MAX <= all.len() {
            return Err(TopicError::TooManyTopics { topics: all.len() });
        }
        // 53 bits, so that every language's numbers hold it.
        let epoch = (rand::random::<u64>() >> 11).max(1);
        let kept = Arc::new(Mutex::new(Kept {
            history: options.history.clone().map(|bounds| History::new(epoch, bounds)),
            roster: options.presence.then(Roster::default),
        }));
        all.insert(topic.into(), Arc::clone(&kept));
        Ok(kept)
    }
}

impl Hub {
    /// Forgets those of these topics of which nothing is kept, and to which nobody subscribes.
    fn forget_unused<'a>(&self, topics: impl IntoIterator<Item = &'a str>) {
        let mut all = self.kept.write();
        for topic in topics {
            // Nobody can get hold of it while the table is locked, so that a count of one stays one.
            let is_unused = all.get(topic).is_some_and(|kept| {
                Arc::strong_count(kept) == 1 && kept.lock().is_unused() && self.subscriptions.read().count(topic) == 0
            });
            if is_unused {
                all.remove(topic);
            }
        }
    }
}

impl Registry {
    /// Asks whether a client may subscribe. Waits for the application's hook and for nothing else.
    pub(crate) async fn authorize(&self, session: &Session, pattern: &str) -> Result<(), String> {
        topic::check_pattern(pattern).map_err(|error| error.to_string())?;
        let options = match self.hub.rules.of(pattern) {
            Ok(options) => options,
            Err(rule) => return Err(format!("`{pattern}` is wider than `{rule}`: subscribe to less at once")),
        };
        let refused = || format!("clients may not subscribe to `{pattern}`");
        let options = options.ok_or_else(refused)?;
        if options.subscribers_max.is_some() && topic::has_wildcard(pattern) {
            return Err(format!("`{pattern}` has a wildcard, and its topics count their subscribers"));
        }
        match &options.access {
            Access::Nobody => Err(refused()),
            Access::Anyone => Ok(()),
            Access::Asked(hook) => {
                hook(SubscribeRequest { session: session.clone(), pattern: pattern.to_owned() }).await
            }
        }
    }

    /// A client that may subscribes, and gets what it missed since its position.
    pub(crate) fn subscribe_client(
        &self,
        session: &Session,
        pattern: &str,
        from: Option<Position>,
    ) -> Result<Subscribed, TopicError> {
        self.subscribe(session, pattern, from, true)
    }

    pub(super) fn subscribe(
        &self,
        session: &Session,
        pattern: &str,
        from: Option<Position>,
        by_client: bool,
    ) -> Result<Subscribed, TopicError> {
        topic::check_pattern(pattern)?;
        let options = self.hub.rules.of(pattern).ok().flatten();
        let kept = match options {
            Some(options) if options.keeps() && !topic::has_wildcard(pattern) => Some(self.hub.keep(pattern, options)?),
            _ => None,
        };
        let mut kept = kept.as_ref().map(|kept| kept.lock());

        let mut subscriptions = self.hub.subscriptions.write();
        let mut state = session.inner.state.lock();
        if state.ended {
            return Err(TopicError::SessionEnded);
        }
        let known = state.patterns.get(pattern);
        if known.is_none() {
            let subscribers = subscriptions.count(pattern);
            if options.and_then(|options| options.subscribers_max).is_some_and(|max| max <= subscribers) {
                return Err(TopicError::Full { subscribers });
            }
            if by_client && self.options().subscriptions_max <= state.patterns.len() {
                return Err(TopicError::TooManySubscriptions { subscriptions: state.patterns.len() });
            }
        }
        // Since when the session has got everything of this topic, by whatever pattern.
        let covering = state.patterns.iter().filter(|(held, _)| topic::covers(held, pattern)).map(|(_, since)| since);
        let mut since = covering.min().unwrap_or_else(|| self.hub.clock.load(Ordering::Relaxed));
        let mut outcome = Subscribed::default();
        if let Some(history) = kept.as_mut().and_then(|kept| kept.history.as_mut()) {
            let latest_only = options.is_some_and(|options| options.latest_only);
            history.trim(self.hub.now());
            let missed = Missed::of(history, from, latest_only, since);
            let bytes = missed.messages.iter().map(|published| published.encoded.frame.len()).sum();
            // The newest value waits for room as any value does.
            let fits = latest_only || state.ledger.claim_room(missed.messages.len(), bytes);
            outcome = match fits {
                true => missed.outcome,
                // In part is not at all.
                false => Subscribed { recovered: false, position: Some(history.position()) },
            };
            if fits {
                let class = match latest_only {
                    true => latest_class(pattern),
                    false => Class::Tracked,
                };
                let knows_topics = by_client || state.resumable || state.knows_topics;
                for published in missed.messages {
                    let encoded = match &published.push {
                        // It was encoded before, with pairs that made it larger.
                        Some(push) if !knows_topics => self.encode(push).map(|plain| published.encoded.or_plain(plain)),
                        _ => Ok(published.encoded.clone()),
                    };
                    let Ok(Encoded { frame, keyed }) = encoded else { continue };
                    since = since.min(published.stamp);
                    let expires = published.expires.map(|at| at.saturating_duration_since(session.inner.trail.began()));
                    let (trail, mut ticket) = (&session.inner.trail, Receipt::new().ticket(session.id()));
                    ticket.follow(trail, trail.note_push(&published.name, &class, frame.len()));
                    let (class, priority) = (class.clone(), Priority::Normal);
                    // What it has got by another way it has.
                    let is_known = state.ledger.has_taken(keyed.as_ref());
                    let entry = Entry { class, priority, frame, keyed, expires, ticket };
                    match &mut state.claims {
                        // It is for the session that its client gets. Only who has no position comes here.
                        Some(claims) => claims.hold(entry, &published.name),
                        None if !latest_only => state.ledger.push_claimed(entry, session.now()),
                        // Of values there may be too many; what has expired is not owed.
                        None => outcome.recovered &= state.ledger.push(entry, session.now()) || is_known,
                    }
                }
            }
        }
        state.knows_topics |= by_client;
        let who = Who::new(state.user.clone(), session.id());
        let shared = subscriptions.shared(pattern);
        if known.is_none() {
            session.inner.trail.note(What::Subscribed(explain::shared(&shared)));
        }
        state.patterns.insert(Arc::clone(&shared), since);
        drop(state);
        if known.is_none() {
            subscriptions.add(&shared, session.clone());
        }
        drop(subscriptions);

        let mut told = Vec::new();
        if let Some(kept) = &mut kept {
            let changes = kept.roster.as_mut().map(|roster| roster.enter(&who, session.id())).unwrap_or_default();
            told = self.tell(pattern, kept, changes, Some(session));
        }
        drop(kept);
        session.pump();
        told.iter().for_each(Session::pump);
        Ok(outcome)
    }

    /// What a session subscribes to that makes way for another goes along to that one, from where it began: everything
    /// that was published since then was sent to one of the two.
    pub(super) fn carry_over(&self, from: &Session, to: &Session) {
        let patterns = from.inner.state.lock().patterns.clone();
        for (pattern, since) in patterns.iter() {
            let kept = self.hub.find(pattern);
            let mut kept = kept.as_ref().map(|kept| kept.lock());
            let who = {
                let mut subscriptions = self.hub.subscriptions.write();
                let mut state = to.inner.state.lock();
                if state.ended {
                    return;
                }
                let known = state.patterns.get(pattern);
                state.patterns.insert(Arc::clone(pattern), known.map_or(since, |known| known.min(since)));
                let who = Who::new(state.user.clone(), to.id());
                drop(state);
                if known.is_none() {
                    to.inner.trail.note(What::Subscribed(explain::shared(pattern)));
                    subscriptions.add(pattern, to.clone());
                }
                who
            };

            let mut told = Vec::new();
            if let Some(kept) = &mut kept {
                let changes = kept.roster.as_mut().map(|roster| roster.enter(&who, to.id())).unwrap_or_default();
                told = self.tell(pattern, kept, changes, Some(to));
            }
            drop(kept);
            told.iter().for_each(Session::pump);
        }
    }

    pub(crate) fn unsubscribe(&self, session: &Session, pattern: &str) {
        let was = {
            let mut subscriptions = self.hub.subscriptions.write();
            let was = session.inner.state.lock().patterns.remove(pattern);
            if was {
                session.inner.trail.note(What::Unsubscribed(explain::text(pattern)));
                subscriptions.remove(pattern, session);
            }
            was
        };
        if was {
            self.absent(session, pattern, None);
        }
    }

    /// A session is over. `until`: its user may come back with another one by then.
    pub(super) fn unsubscribe_all<'a>(
        &self,
        session: &Session,
        patterns: impl Iterator<Item = &'a str> + Clone,
        until: Option<Instant>,
    ) {
        if patterns.clone().next().is_none() {
            return;
        }
        {
            let mut subscriptions = self.hub.subscriptions.write();
            patterns.clone().for_each(|pattern| subscriptions.remove(pattern, session));
        }
        for pattern in patterns {
            self.absent(session, pattern, until);
        }
    }

    /// A session is not subscribed to a topic any more.
    fn absent(&self, session: &Session, pattern: &str, until: Option<Instant>) {
        let Some(topic) = self.hub.find(pattern) else { return };
        let mut kept = topic.lock();
        // It may have subscribed again meanwhile.
        if session.inner.state.lock().patterns.contains(pattern) {
            return;
        }
        let until = until.map(|until| until.saturating_duration_since(self.hub.began));
        let change = kept.roster.as_mut().and_then(|roster| roster.leave(session.id(), until));
        let told = self.tell(pattern, &mut kept, change.into_iter().collect(), None);
        let was_used = kept.history.as_ref().is_some_and(|history| 0 < history.position().offset);
        drop(kept);
        drop(topic);
        told.iter().for_each(Session::pump);
        if !was_used {
            // So that subscribing here and there leaves nothing behind.
            self.hub.forget_unused([pattern]);
        }
    }

    /// A session is somebody else's now: so is its presence.
    pub(super) fn rename(&self, session: &Session) {
        let patterns: Vec<Arc<str>> = session.inner.state.lock().patterns.names().cloned().collect();
        for pattern in patterns {
            let Some(kept) = self.hub.find(&pattern) else { continue };
            let mut kept = kept.lock();
            let who = {
                let state = session.inner.state.lock();
                if !state.patterns.contains(&pattern) {
                    continue;
                }
                Who::new(state.user.clone(), session.id())
            };
            let changes = kept.roster.as_mut().map(|roster| roster.enter(&who, session.id())).unwrap_or_default();
            let told = self.tell(&pattern, &mut kept, changes, Some(session));
            drop(kept);
            told.iter().for_each(Session::pump);
        }
    }

    /// Puts changes of presence into the ledgers of a topic's subscribers, whom the caller pumps once the topic
    /// is free. Not for `except`, whom the changes are about.
    fn tell(
        &self,
        topic: &str,
        kept: &mut MutexGuard<'_, Kept>,
        changes: Vec<Change>,
        except: Option<&Session>,
    ) -> Vec<Session> {
        let Some(roster) = kept.roster.as_mut().filter(|_| !changes.is_empty()) else { return Vec::new() };
        let mut subscribers = self.subscribers(topic);
        subscribers.retain(|session| Some(session) != except && session.knows_topics());
        for Change { who, is_in } in changes {
            roster.generation = self.hub.generations.fetch_add(1, Ordering::Relaxed) + 1;
            let (user, session) = match &who {
                Who::User(name) => (name.to_string(), String::new()),
                Who::Session(id) => (String::new(), id.to_string()),
            };
            // No application's key: those do not begin so.
            let key = format!("{}{} {topic} {user} {session}", keys::RESERVED_PREFIX, keys::PRESENCE);
            let status = if is_in { PresenceStatus::Online } else { PresenceStatus::Offline };
            let change =
                PresenceChange { topic: topic.to_owned(), user, session, status, generation: roster.generation };
            let push = Push::of(keys::CONTROL_PATH, keys::PRESENCE, &change).expect("texts and a number");
            let mut push = push.class(Class::Latest(key));
            push.metadata.insert(keys::TOPIC, topic);
            let Ok(frame) = self.encode(&push) else {
                tracing::warn!(topic, "a change of presence is larger than a frame may be");
                continue;
            };
            let (receipt, listed) = (Receipt::new(), Listed::new(&subscribers));
            for session in &subscribers {
                session.add(&push, &frame, &receipt, &listed);
            }
        }
        subscribers
    }

    /// The sessions that subscribe to a topic, each once.
    pub(super) fn subscribers(&self, topic: &str) -> Vec<Session> {
        let mut found = Vec::new();
        self.hub.subscriptions.read().each(topic, |session| found.push(session.clone()));
        unique(found)
    }

    /// Pushes to the subscribers of a topic, and keeps the push if the topic has a history.
    pub(crate) fn publish(&self, topic: &str, push: &Push, receipt: &Receipt) -> Result<(), SendError> {
        topic::check_topic(topic)?;
        push.check_reserved()?;
        let mut positioned = push.clone();
        positioned.metadata.insert(keys::TOPIC, topic);
        let options = self.hub.rules.of_topic(topic);
        let Some(options) = options.filter(|options| options.history.is_some()) else {
            let with_topic = self.encode(&positioned)?;
            let mut frames = Frames { registry: self, push, with_topic, perhaps_plain: None };
            let subscribers = self.subscribers(topic);
            let listed = Listed::new(&subscribers);
            for session in &subscribers {
                session.add(push, frames.for_session(session)?, receipt, &listed);
            }
            subscribers.iter().for_each(Session::pump);
            return Ok(());
        };
        let push = in_order(push, topic, options.latest_only);
        positioned.class = push.class.clone();
        let kept = self.hub.keep(topic, options)?;
        let mut kept = kept.lock();
        let Some(history) = kept.history.as_mut() else {
            unreachable!("what is kept of a topic is as its options say, which never change")
        };
        let position = history.next_position();
        positioned.metadata.insert(keys::TOPIC_EPOCH, position.epoch.to_string());
        positioned.metadata.insert(keys::TOPIC_OFFSET, position.offset.to_string());
        let encoded = self.encode(&positioned)?;
        let mut frames = Frames { registry: self, push: &push, with_topic: encoded.clone(), perhaps_plain: None };
        let (subscribers, stamp) = {
            let subscriptions = self.hub.subscriptions.read();
            let mut found = Vec::new();
            subscriptions.each(topic, |session| found.push(session.clone()));
            (unique(found), self.hub.clock.fetch_add(1, Ordering::Relaxed))
        };
        let expires = push.time_to_live.and_then(|time| Instant::now().checked_add(time));
        let (bytes, kept_push) = (encoded.frame.len(), options.latest_only.then(|| push.clone().into_owned()));
        history.push(
            self.hub.now(),
            bytes,
            Published { encoded, name: Arc::clone(push.name()), stamp, expires, push: kept_push },
        );
        receipt.store(position);
        let listed = Listed::new(&subscribers);
        for session in &subscribers {
            session.add(&push, frames.for_session(session)?, receipt, &listed);
        }
        drop(kept);
        subscribers.iter().for_each(Session::pump);
        Ok(())
    }

    /// Who is in a topic.
    pub(crate) fn presence(&self, topic: &str) -> Result<Presence, TopicError> {
        topic::check_topic(topic)?;
        let Some(kept) = self.hub.find(topic) else { return Ok(Presence::default()) };
        let kept = kept.lock();
        let Some(roster) = &kept.roster else { return Ok(Presence::default()) };
        let is_online = |id: &SessionId| self.session(*id).is_some_and(|session| session.connection().is_some());
        let members = roster.members().map(|(who, sessions)| PresenceMember {
            user: match who {
                Who::User(name) => Some(Arc::clone(name)),
                Who::Session(_) => None,
            },
            sessions: sessions.to_vec(),
            status: match sessions.iter().any(is_online) {
                true => PresenceStatus::Online,
                false => PresenceStatus::Reconnecting,
            },
        });
        Ok(Presence { generation: roster.generation, members: members.collect() })
    }

    /// Forgets what is too old, and who did not come back.
    pub(super) fn sweep_topics(&self) {
        let all: Vec<Arc<str>> = self.hub.kept.read().keys().cloned().collect();
        let now = self.hub.now();
        let mut unused = Vec::new();
        for topic in all {
            let Some(kept) = self.hub.find(&topic) else { continue };
            let mut kept = kept.lock();
            if let Some(history) = &mut kept.history {
                history.trim(now);
            }
            let gone = kept.roster.as_mut().map(|roster| roster.expire(now)).unwrap_or_default();
            let told = self.tell(&topic, &mut kept, gone, None);
            let is_unused = kept.is_unused();
            drop(kept);
            told.iter().for_each(Session::pump);
            if is_unused {
                unused.push(topic);
            }
        }
        if !unused.is_empty() {
            self.hub.forget_unused(unused.iter().map(|topic| &**topic));
        }
    }
}

impl Kept {
    fn is_unused(&self) -> bool {
        self.history.as_ref().is_none_or(History::is_empty) && self.roster.as_ref().is_none_or(Roster::is_empty)
    }
}

/// What a subscriber is to get, and what it is told.
struct Missed<'a> {
    messages: Vec<&'a Published>,
    outcome: Subscribed,
}

impl<'a> Missed<'a> {
    /// `since`: everything from there on has been sent already.
    fn of(history: &'a History<Published>, from: Option<Position>, latest_only: bool, since: u64) -> Self {
        let head = history.position();
        if latest_only {
            let had = from.is_some_and(|from| from == head);
            let newest = history.newest();
            let is_known = from.is_some_and(|from| from.epoch == head.epoch);
            let unsent = newest.filter(|newest| !had && newest.item.stamp < since);
            // Before the newest, so that whoever loses it on the way asks for it again.
            let offset = unsent.map_or(head.offset, |newest| newest.offset - 1);
            return Self {
                messages: unsent.map(|newest| &newest.item).into_iter().collect(),
                outcome: Subscribed {
                    recovered: from.is_some() && (is_known || newest.is_some()),
                    position: Some(Position { offset, ..head }),
                },
            };
        }
        match from.and_then(|from| Some((from, history.after(from)?))) {
            Some((from, missed)) => Self {
                messages: missed.map(|kept| &kept.item).filter(|published| published.stamp < since).collect(),
                outcome: Subscribed { recovered: true, position: Some(from) },
            },
            None => Self { messages: Vec::new(), outcome: Subscribed { recovered: false, position: Some(head) } },
        }
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
