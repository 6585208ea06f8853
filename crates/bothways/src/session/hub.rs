//! Topics at work: who subscribes, what was published, who is present.
//!
//! Locks, in the order in which they are taken: a topic's turn, the table of what is kept, one topic of it, the tree of
//! subscriptions, one session. A message gets its offset, its stamp and its subscribers under the topic's lock; it goes
//! into their ledgers in the topic's turn, so that each gets the messages in the order of their offsets. Whoever
//! subscribes meanwhile has it from the history, or is among the subscribers, and gets each once. Nothing is written to a
//! socket under any of these.

use std::{
    borrow::Cow,
    collections::HashSet,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use bothways_proto::keys;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    Class, Priority, Push, Session,
    claims::Listed,
    explain::{self, What},
    fan_out::{Delivery, SendError},
    history::{History, Kept as Message, Position},
    kept::{Held, Kept, Topic, Topics},
    ledger::{Entry, Ledger, Origin},
    lock::Held as HeldLocks,
    options::SessionOptions,
    parts::Part,
    presence::{Generations, Who},
    push::Encoded,
    receipt::Receipt,
    rules::{Access, Rules, SubscribeRequest, TopicOptions},
    state::State,
    tell::Telling,
    topic::{self, Subscriptions, TopicError, WILDCARDS_MAX},
};
use crate::{
    calm::{Calm, Said, tell},
    clock::after,
};

/// Topics that are looked at before others have their turn.
const AT_ONCE: usize = 256;

/// The place of a session among the subscribers of a pattern.
enum Place {
    /// It has none: it was sent a part of what it missed, and asks for the rest.
    None,
    Known,
    New(Arc<str>),
}

/// What came of subscribing.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Subscribed {
    /// Everything that was published behind the position asked from, and has not expired, was sent or is on
    /// its way, in parts if it is more than the session's log holds: all of it. False if no position was asked from. Of a topic of which only the
    /// newest message counts, that one is meant.
    pub recovered: bool,
    /// Where the subscriber stands: everything behind it is coming. A program that goes on from here after a restart keeps
    /// it until it has handled a message. `None` if the topic has no history, and for a pattern.
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
    /// If there is no room for all that was missed, send what there is room for: the client asks again for the rest.
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) part: bool,
    /// The client asks for what it was not sent when it is told of a gap: nothing of the topic is to overtake that.
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) ordered: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// The reply, as Go declares it.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct SubscribeReply {
    pub(crate) recovered: bool,
    /// 0: the topic has no history.
    pub(crate) epoch: u64,
    pub(crate) offset: u64,
    /// What was missed was sent up to this position, for want of room: the rest is there for who asks from it, once
    /// some of the former is handled. Who was not subscribed before is not yet.
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) more: bool,
    /// Nothing of what was missed was sent, for want of room: it is there for who asks again later.
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) later: bool,
}

/// What a client asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish<'a> {
    pub(crate) pattern: &'a str,
    pub(crate) from: Option<Position>,
    /// See [`SubscribeArgs`].
    pub(crate) part: bool,
    pub(crate) ordered: bool,
}

/// What came of it, and what the client is told beside that; see [`SubscribeReply`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) subscribed: Subscribed,
    pub(crate) more: bool,
    pub(crate) later: bool,
}

impl From<Answer> for SubscribeReply {
    fn from(answer: Answer) -> Self {
        let Answer { subscribed, more, later } = answer;
        let Position { epoch, offset } = subscribed.position.unwrap_or(Position { epoch: 0, offset: 0 });
        Self { recovered: subscribed.recovered, epoch, offset, more, later }
    }
}

impl From<SubscribeReply> for Answer {
    fn from(reply: SubscribeReply) -> Self {
        let position = Position { epoch: reply.epoch, offset: reply.offset };
        let subscribed = Subscribed { recovered: reply.recovered, position: (reply.epoch != 0).then_some(position) };
        Self { subscribed, more: reply.more, later: reply.later }
    }
}

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
    /// subscription is before or behind each message.
    clock: AtomicU64,
    pub(super) generations: Generations,
    pub(super) telling: Arc<Telling>,
    /// When the log was told last of messages that are not kept, and of changes of presence that are too large.
    unkept_told: Calm,
    pub(super) too_large_told: Calm,
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
    fan_out: &'a Delivery,
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
            self.perhaps_plain = Some(self.with_topic.or_plain(self.fan_out.encode(self.push)?));
        }
        Ok(self.perhaps_plain.as_ref().expect("it was just made"))
    }
}

#[cfg(test)]
impl Published {
    pub(super) fn for_test() -> Self {
        let encoded = Encoded { frame: bytes::Bytes::new(), keyed: None };
        Self { encoded, name: "T.m".into(), stamp: 0, expires: None, push: None }
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
        })
    }

    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Forgets those of these topics of which nothing is kept, and to which nobody subscribes.
    pub(super) fn forget_unused(&self, topics: impl IntoIterator<Item = Arc<str>>) {
        let is_subscribed = |topic: &str| self.subscriptions.read().count(topic) != 0;
        self.topics.forget_unused(self.now(), topics, is_subscribed);
    }

    /// The options of a topic of which something is kept by that name.
    fn kept_options(&self, pattern: &str) -> Option<&TopicOptions> {
        let options = self.rules.of(pattern).ok().flatten()?;
        (options.keeps() && !topic::has_wildcard(pattern)).then_some(options)
    }
}

impl Hub {
    /// Asks whether a client may subscribe. Waits for the application's hook and for nothing else.
    pub(crate) async fn authorize(&self, session: &Session, pattern: &str) -> Result<(), String> {
        topic::check_pattern(pattern).map_err(|error| error.to_string())?;
        let wildcards = topic::wildcards(pattern);
        if WILDCARDS_MAX < wildcards {
            return Err(TopicError::TooManyWildcards { wildcards }.to_string());
        }
        let options = match self.rules.of(pattern) {
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
    pub(crate) fn subscribe_client(&self, session: &Session, wish: Wish<'_>) -> Result<Answer, TopicError> {
        self.subscribe_as(session, wish, true)
    }

    pub(super) fn subscribe(
        &self,
        session: &Session,
        pattern: &str,
        from: Option<Position>,
        by_client: bool,
    ) -> Result<Subscribed, TopicError> {
        let wish = Wish { pattern, from, part: false, ordered: false };
        Ok(self.subscribe_as(session, wish, by_client)?.subscribed)
    }

    fn subscribe_as(&self, session: &Session, wish: Wish<'_>, by_client: bool) -> Result<Answer, TopicError> {
        // Nobody is woken while the topics are locked.
        let held_locks = HeldLocks::begin();
        topic::check_pattern(wish.pattern)?;
        // Before anything is made for it.
        self.check_subscription(session, wish.pattern, by_client)?;

        let held = match self.kept_options(wish.pattern) {
            Some(options) => self.topics.hold(wish.pattern, options, self.maker(session, by_client))?,
            None => Held::Nothing,
        };
        let (outcome, dropped) = self.enter_topic(session, wish, by_client, held);
        if outcome.is_err() {
            self.forget_unused([wish.pattern.into()]);
        }
        drop(held_locks);
        // Payloads are the application's: those that are too old are dropped when nothing is locked.
        drop(dropped);
        let answer = outcome?;
        session.pump();
        self.tell();
        Ok(answer)
    }

    /// The first of three steps, under the lock of the topic, if something is kept of it: no message of it comes
    /// between what the session missed and its place among the subscribers. Returns what was too old, too.
    fn enter_topic(
        &self,
        session: &Session,
        wish: Wish<'_>,
        by_client: bool,
        held: Held<'_>,
    ) -> (Result<Answer, TopicError>, Vec<Message<Published>>) {
        let answer = |outcome: Result<(Answer, bool), TopicError>| outcome.map(|(answer, _)| answer);
        match held {
            Held::Nothing => (answer(self.enter_tree(session, wish, by_client, None)), Vec::new()),
            Held::Place(mut history, _table) => {
                (answer(self.enter_tree(session, wish, by_client, Some(&mut history))), Vec::new())
            }
            Held::Kept(topic) => {
                let mut kept = topic.kept.lock();
                let dropped = kept.history.as_mut().map(|history| history.trim(self.now())).unwrap_or_default();
                let outcome = self.enter_tree(session, wish, by_client, kept.history.as_mut());
                if matches!(outcome, Ok((_, true))) {
                    self.enter_roster(session, &topic, &mut kept);
                }
                (answer(outcome), dropped)
            }
        }
    }

    /// For whom topics count that are made because this session subscribes; nobody if the server itself wants that.
    fn maker(&self, session: &Session, by_client: bool) -> Option<Who> {
        by_client.then(|| Who::new(session.user(), session.id()))
    }

    /// Whether there is room for one more subscription of this session.
    fn check_subscription(&self, session: &Session, pattern: &str, by_client: bool) -> Result<(), TopicError> {
        let subscriptions = self.subscriptions.read();
        self.check_room(&subscriptions, &session.lock(), pattern, by_client)
    }

    fn check_room(
        &self,
        subscriptions: &Subscriptions<Session>,
        state: &State,
        pattern: &str,
        by_client: bool,
    ) -> Result<(), TopicError> {
        if state.is_ended() {
            return Err(TopicError::SessionEnded);
        }
        if state.patterns().contains(pattern) {
            return Ok(());
        }
        let options = self.rules.of(pattern).ok().flatten();
        let subscribers = subscriptions.count(pattern);
        let is_full = options.and_then(|options| options.subscribers_max).is_some_and(|max| max <= subscribers);
        if is_full && !shares_place(subscriptions, state, pattern) {
            return Err(TopicError::Full { subscribers });
        }
        if !by_client {
            return Ok(());
        }
        self.check_session_room(state, pattern)?;
        let (room, bytes) = (&self.room, subscriptions.bytes());
        if room.all_subscription_bytes_max < bytes + topic::bytes_of(pattern) {
            return Err(TopicError::ServerSubscriptionsFull { bytes });
        }
        Ok(())
    }

    /// Whether one session may have one more that its client asks for.
    fn check_session_room(&self, state: &State, pattern: &str) -> Result<(), TopicError> {
        let room = &self.room;
        if room.subscriptions_max <= state.patterns().len() {
            return Err(TopicError::TooManySubscriptions { subscriptions: state.patterns().len() });
        }
        let bytes = state.patterns().bytes();
        if room.subscription_bytes_max < bytes + topic::bytes_of(pattern) {
            return Err(TopicError::TooManySubscriptionBytes { bytes });
        }
        Ok(())
    }

    /// The second step, under the lock of the tree: what is published from here on finds the session there, or is
    /// among what it missed. Returns whether it is a subscriber now.
    fn enter_tree(
        &self,
        session: &Session,
        wish: Wish<'_>,
        by_client: bool,
        history: Option<&mut History<Published>>,
    ) -> Result<(Answer, bool), TopicError> {
        let mut subscriptions = self.subscriptions.write();
        let (answer, place) = self.enter_session(session, &mut subscriptions, wish, by_client, history)?;
        match place {
            Place::New(pattern) => subscriptions.add(&pattern, session.clone()),
            Place::Known => {}
            Place::None => return Ok((answer, false)),
        }
        Ok((answer, true))
    }

    /// The third step, under the lock of the session: notes what it subscribes to, and puts into its ledger what it
    /// missed.
    fn enter_session(
        &self,
        session: &Session,
        subscriptions: &mut Subscriptions<Session>,
        wish: Wish<'_>,
        by_client: bool,
        history: Option<&mut History<Published>>,
    ) -> Result<(Answer, Place), TopicError> {
        let pattern = wish.pattern;
        let mut state = session.lock();
        // Once more: others may have taken the room since it was looked for.
        self.check_room(subscriptions, &state, pattern, by_client)?;
        let is_known = state.patterns().contains(pattern);

        // Since when the session has got everything of this topic, by whatever pattern.
        let mut since = self.clock.load(Ordering::Relaxed);
        state.patterns().each_covering(pattern, |earlier| since = since.min(earlier));
        let has_history = history.is_some();
        let answer = match history {
            Some(history) => self.recover(session, &mut state, wish, by_client, history, &mut since),
            None => Answer::default(),
        };
        if by_client {
            state.note_knows_topics();
        }
        if !is_known && wish.part && (answer.more || answer.later) {
            // What is published before it has the rest it gets with that.
            return Ok((answer, Place::None));
        }

        let shared = subscriptions.shared(pattern);
        if !is_known {
            if shares_place(subscriptions, &state, pattern) {
                state.share_place(&shared);
            }
            session.inner.trail.note(What::Subscribed(explain::shared(&shared)));
        }
        state.subscribe(Arc::clone(&shared), since, by_client);
        if has_history && wish.ordered {
            state.set_ordered(pattern);
        }
        if wish.from.is_some() && !answer.more && !answer.later {
            state.caught_up(pattern);
        } else if wish.part && (answer.more || answer.later) {
            // It asks for the rest: nothing of the topic is to overtake that.
            state.stall(pattern);
        }
        Ok((answer, if is_known { Place::Known } else { Place::New(shared) }))
    }

    /// Puts what a session missed of a topic into its ledger.
    fn recover(
        &self,
        session: &Session,
        state: &mut State,
        wish: Wish<'_>,
        by_client: bool,
        history: &History<Published>,
        since: &mut u64,
    ) -> Answer {
        let Wish { pattern, from, part, .. } = wish;
        let latest_only = self.kept_options(pattern).is_some_and(|options| options.latest_only);
        let covered_since = *since;
        let parts = state.part_of(pattern);
        state.expire_waiting(session.now());
        let ledger = state.ledger();
        let in_part = |stamp| parts.is_some_and(|sent| sent.has(stamp));
        let is_sent = |stamp| (covered_since <= stamp || in_part(stamp)) && !ledger.is_unsent(stamp);
        let Missed { mut messages, outcome } = Missed::of(history, from, latest_only, is_sent);

        let mut answer = Answer { subscribed: outcome, ..Answer::default() };
        // The newest value waits for room as any value does.
        if !latest_only && !claim(state, &messages) {
            match claim_part(state, wish, history.position(), &mut messages) {
                Some(reached) => (answer.subscribed.position, answer.more) = (Some(reached), true),
                None => {
                    // In part is not at all.
                    let position = if part { from } else { Some(history.position()) };
                    return Answer { subscribed: Subscribed { recovered: false, position }, more: false, later: true };
                }
            }
        } else if let Some(sent) = parts
            && from.is_some_and(|from| sent.meets(from))
            && outcome.recovered
        {
            // What came in parts, and everything behind it.
            *since = (*since).min(sent.first);
        }

        let class = if latest_only { latest_class(pattern) } else { Class::Tracked };
        let knows_topics = by_client || state.knows_topics();
        for (_, published) in messages {
            let encoded = match &published.push {
                // It was encoded before, with pairs that made it larger.
                Some(push) if !knows_topics => self.fan_out.encode(push).map(|plain| published.encoded.or_plain(plain)),
                _ => Ok(published.encoded.clone()),
            };
            let Ok(encoded) = encoded else { continue };
            *since = (*since).min(published.stamp);
            let entry = recovered_entry(session, published, encoded, class.clone());
            // What it has got by another way it has.
            let is_known = state.ledger().has_taken(entry.keyed.as_ref());
            // While its client is being let in, it is for the session that the client gets: only who has no position
            // comes here then.
            let Some(entry) = state.hold(entry, &published.name) else { continue };
            if latest_only {
                // Of values there may be too many; what has expired is not owed.
                answer.subscribed.recovered &= state.take_latest(entry, session.now()) || is_known;
            } else {
                state.take_claimed(entry, session.now());
            }
        }
        answer
    }

    /// A session subscribes to a topic by its name: it is present.
    fn enter_roster(&self, session: &Session, topic: &Topic, kept: &mut Kept) {
        let Some(roster) = kept.roster.as_mut() else { return };
        let (who, is_online) = {
            let state = session.lock();
            // While it is not known which session the client gets, only the one that it had is there.
            if !state.patterns().contains(&topic.name) || state.wanted().is_some() {
                return;
            }
            (Who::new(state.user().cloned(), session.id()), state.connection().is_some())
        };
        let changes = roster.enter(&who, session.id(), &self.generations);
        roster.set_online(session.id(), is_online);
        self.note_changes(topic, kept, changes);
    }

    /// What a session subscribes to that makes way for another goes along to that one, from where it began: everything
    /// that was published since then was sent to one of the two. Of those that clients asked for, what is beyond the
    /// bounds of one session is left out: answers with how many.
    pub(super) fn carry_over(&self, from: &Session, to: &Session) -> usize {
        let patterns = from.lock().patterns().clone();
        let mut left_out = 0;
        for (pattern, since, by_client) in patterns.iter() {
            let topic = self.topics.find(pattern);
            let mut kept = topic.as_ref().map(|topic| topic.kept.lock());
            {
                let mut subscriptions = self.subscriptions.write();
                let mut state = to.lock();
                if state.is_ended() {
                    return left_out;
                }
                let known = state.patterns().get(pattern);
                if known.is_none() && by_client && self.check_session_room(&state, pattern).is_err() {
                    left_out += 1;
                    continue;
                }
                let since = known.map_or(since, |known| known.min(since));
                state.subscribe(Arc::clone(pattern), since, by_client);
                drop(state);
                if known.is_none() {
                    to.inner.trail.note(What::Subscribed(explain::shared(pattern)));
                    subscriptions.add(pattern, to.clone());
                }
            }
            if let (Some(topic), Some(kept)) = (&topic, &mut kept) {
                self.enter_roster(to, topic, kept);
            }
        }
        self.tell();
        left_out
    }

    pub(crate) fn unsubscribe(&self, session: &Session, pattern: &str) {
        let was = {
            let mut subscriptions = self.subscriptions.write();
            let was = session.lock().unsubscribe(pattern);
            if was {
                session.inner.trail.note(What::Unsubscribed(explain::text(pattern)));
                subscriptions.remove(pattern, session);
            }
            was
        };
        if was {
            self.absent(session, pattern, None);
            self.tell();
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
            let mut subscriptions = self.subscriptions.write();
            patterns.clone().for_each(|pattern| subscriptions.remove(pattern, session));
        }
        for pattern in patterns {
            self.absent(session, pattern, until);
        }
        self.tell();
    }

    /// A session is not subscribed to a topic any more.
    fn absent(&self, session: &Session, pattern: &str, until: Option<Instant>) {
        let Some(topic) = self.topics.find(pattern) else { return };
        let mut kept = topic.kept.lock();
        // It may have subscribed again meanwhile.
        if session.lock().patterns().contains(pattern) {
            return;
        }
        let until = until.map(|until| until.saturating_duration_since(self.began));
        let change = kept.roster.as_mut().and_then(|roster| roster.leave(session.id(), until, &self.generations));
        self.note_changes(&topic, &mut kept, change.into_iter().collect());
        self.topics.schedule(&topic, &mut kept);
        drop(kept);
        drop(topic);
        // So that subscribing here and there leaves nothing behind.
        self.forget_unused([pattern.into()]);
    }

    /// A session is somebody else's now, or has got or lost its connection: so has its presence.
    pub(super) fn rename(&self, session: &Session) {
        let patterns: Vec<Arc<str>> = session.lock().patterns().names().cloned().collect();
        for pattern in patterns {
            if let Some(topic) = self.topics.find(&pattern) {
                self.enter_roster(session, &topic, &mut topic.kept.lock());
            }
        }
        self.tell();
    }

    /// The sessions that subscribe to a topic, each once.
    pub(super) fn subscribers(&self, topic: &str) -> Vec<Session> {
        found(&self.subscriptions.read(), topic)
    }

    /// Pushes to the subscribers of a topic, and keeps the push if the topic has a history.
    pub(crate) fn publish(&self, topic: &str, push: &Push, receipt: &Receipt) -> Result<(), SendError> {
        self.fan_out.check_running()?;
        topic::check_topic(topic)?;
        push.check_reserved()?;
        let mut positioned = push.clone();
        positioned.metadata.insert(keys::TOPIC, topic);
        let options = self.rules.of_topic(topic);
        let Some(options) = options.filter(|options| options.history.is_some()) else {
            return self.publish_unkept(topic, push, positioned, receipt);
        };
        let topic = match self.topics.keep(topic, options, None) {
            Ok(topic) => topic,
            Err(error) => {
                // Those who are there get it; there is no room to keep it for others.
                tell!(self.unkept_told, warn, topic = ?Said(topic), %error, "a message is not kept");
                return self.publish_unkept(topic, push, positioned, receipt);
            }
        };
        self.publish_kept(&topic, options, push, positioned, receipt)
    }

    /// Pushes to those who subscribe now.
    fn publish_unkept(&self, topic: &str, push: &Push, positioned: Push, receipt: &Receipt) -> Result<(), SendError> {
        let with_topic = self.fan_out.encode(&positioned)?;
        let mut frames = Frames { fan_out: &self.fan_out, push, with_topic, perhaps_plain: None };
        let subscribers = self.subscribers(topic);
        let listed = Listed::new(&subscribers);
        for session in &subscribers {
            session.add(push, frames.for_session(session)?, receipt, &listed);
        }
        self.fan_out.pump_all(&subscribers);
        Ok(())
    }

    fn publish_kept(
        &self,
        topic: &Topic,
        options: &TopicOptions,
        push: &Push,
        mut positioned: Push,
        receipt: &Receipt,
    ) -> Result<(), SendError> {
        let push = in_order(push, &topic.name, options.latest_only);
        positioned.class = push.class.clone();
        // Dropped when nothing is locked, whatever happens: payloads are the application's.
        let dropped;
        // Nobody is woken while the topic is locked.
        let held_locks = HeldLocks::begin();
        // Others publish after this one; who subscribes does not wait for all its subscribers.
        let turn = topic.turn.lock();
        let mut kept = topic.kept.lock();
        let Some(history) = kept.history.as_mut() else {
            unreachable!("what is kept of a topic is as its options say, which never change")
        };
        let position = history.next_position();
        positioned.metadata.insert(keys::TOPIC_EPOCH, position.epoch.to_string());
        positioned.metadata.insert(keys::TOPIC_OFFSET, position.offset.to_string());
        let encoded = self.fan_out.encode(&positioned)?;
        let mut frames =
            Frames { fan_out: &self.fan_out, push: &push, with_topic: encoded.clone(), perhaps_plain: None };
        let (subscribers, stamp) = {
            let subscriptions = self.subscriptions.read();
            (found(&subscriptions, &topic.name), self.clock.fetch_add(1, Ordering::Relaxed))
        };
        let expires = push.time_to_live.map(after);
        let kept_push = options.latest_only.then(|| push.to_keep());
        let bytes = encoded.size() + kept_push.as_ref().map_or(0, Push::size);
        dropped = history.push(
            self.now(),
            bytes,
            Published { encoded, name: Arc::clone(push.name()), stamp, expires, push: kept_push },
        );
        receipt.store(position);
        self.topics.schedule(topic, &mut kept);
        drop(kept);

        let listed = Listed::published(&topic.name, stamp, &subscribers);
        for session in &subscribers {
            session.add(&push, frames.for_session(session)?, receipt, &listed);
        }
        drop(turn);
        drop(held_locks);
        drop(dropped);
        self.fan_out.pump_all(&subscribers);
        Ok(())
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
            self.forget_unused(unused);
            tokio::task::yield_now().await;
        }
        self.topics.forget_places(now);
        self.tell();
    }
}

/// True if the client of this session is about to get one back that subscribes already: both have one place.
fn shares_place(subscriptions: &Subscriptions<Session>, state: &State, pattern: &str) -> bool {
    state.proven().is_some_and(|wanted| subscriptions.contains(pattern, &wanted))
}

/// The subscribers of a topic, each once.
fn found(subscriptions: &Subscriptions<Session>, topic: &str) -> Vec<Session> {
    let mut of_patterns: Vec<&HashSet<Session>> = Vec::new();
    subscriptions.each(topic, |subscribers| of_patterns.push(subscribers));
    match of_patterns.as_slice() {
        [] => Vec::new(),
        [only] => only.iter().cloned().collect(),
        several => {
            let mut seen = HashSet::with_capacity(several.iter().map(|subscribers| subscribers.len()).sum());
            several.iter().copied().flatten().filter(|session| seen.insert(session.id())).cloned().collect()
        }
    }
}

type Messages<'a> = [(u64, &'a Published)];

/// Claims room for all of these.
fn claim(state: &mut State, messages: &Messages<'_>) -> bool {
    let bytes = messages.iter().map(|(_, published)| published.encoded.size()).sum();
    state.claim_room(messages.len(), bytes)
}

/// Claims room for as many of these as there is room for, if the client takes a part, and takes the others out. Returns
/// how far they reach in the topic, which stands at `head`; `None`: there is no room.
fn claim_part(
    state: &mut State,
    wish: Wish<'_>,
    head: Position,
    messages: &mut Vec<(u64, &Published)>,
) -> Option<Position> {
    // A single one may be larger than the bound.
    let fitting = if wish.part { fitting(state.ledger(), messages).max(1) } else { 0 };
    let rest = messages.split_off(fitting.min(messages.len()));
    if fitting == 0 || !claim(state, messages) {
        return None;
    }

    let ([(_, first), ..], [.., (offset, last)]) = (&messages[..], &messages[..]) else { return None };
    let reached = Position { offset: *offset, ..head };
    if state.patterns().contains(wish.pattern) {
        // From the first of these on the session counts as having got everything: these it has not.
        rest.iter().for_each(|(_, published)| state.miss(published.stamp));
    } else {
        let from = wish.from.unwrap_or(Position { offset: 0, ..reached });
        state.note_part(wish.pattern, from, Part { first: first.stamp, last: last.stamp, reached });
    }
    Some(reached)
}

/// How many of these, from the first on, the session's log has room for.
fn fitting(ledger: &Ledger, messages: &Messages<'_>) -> usize {
    let (mut left, mut bytes_left) = ledger.room();
    let fits = |(_, published): &&(u64, &Published)| {
        let bytes = published.encoded.size();
        let fits = 0 < left && bytes <= bytes_left;
        (left, bytes_left) = (left.saturating_sub(1), bytes_left.saturating_sub(bytes));
        fits
    };
    messages.iter().take_while(fits).count()
}

fn recovered_entry(session: &Session, published: &Published, encoded: Encoded, class: Class) -> Entry {
    let Encoded { frame, keyed } = encoded;
    let expires = published.expires.map(|at| at.saturating_duration_since(session.inner.trail.began()));
    let (trail, mut ticket) = (&session.inner.trail, Receipt::new().ticket(session.id()));
    ticket.follow(trail, trail.note_push(&published.name, &class, frame.len()));
    let origin = Origin::Topic(published.stamp);
    Entry { class, priority: Priority::Normal, frame, keyed, expires, origin, ticket }
}

/// What a subscriber is to get, and what it is told.
struct Missed<'a> {
    /// Each with its offset.
    messages: Vec<(u64, &'a Published)>,
    outcome: Subscribed,
}

impl<'a> Missed<'a> {
    /// `is_sent`: the message of this stamp has been sent already.
    fn of(
        history: &'a History<Published>,
        from: Option<Position>,
        latest_only: bool,
        is_sent: impl Fn(u64) -> bool,
    ) -> Self {
        let head = history.position();
        if latest_only {
            let had = from.is_some_and(|from| from == head);
            let newest = history.newest();
            let is_known = from.is_some_and(|from| from.epoch == head.epoch);
            let unsent = newest.filter(|newest| !had && !is_sent(newest.item.stamp));
            // Before the newest, so that whoever loses it on the way asks for it again.
            let offset = unsent.map_or(head.offset, |newest| newest.offset - 1);
            return Self {
                messages: unsent.map(|newest| (newest.offset, &newest.item)).into_iter().collect(),
                outcome: Subscribed {
                    recovered: from.is_some() && (is_known || newest.is_some()),
                    position: Some(Position { offset, ..head }),
                },
            };
        }
        match from.and_then(|from| Some((from, history.after(from)?))) {
            Some((from, missed)) => Self {
                messages: missed
                    .map(|kept| (kept.offset, &kept.item))
                    .filter(|(_, published)| !is_sent(published.stamp))
                    .collect(),
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

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::mpsc};

    use proptest::prelude::*;

    use super::{super::ledger::Bounds, *};
    use crate::{Client, ClientOptions, QueueBound, Server, SessionOptions};

    /// A message is on its way into very many ledgers: who subscribes meanwhile does not wait for that, and gets what
    /// is published next.
    #[tokio::test(start_paused = true)]
    async fn who_subscribes_does_not_wait_for_a_publish() {
        let history = TopicOptions::new().open().history(10, Duration::from_secs(60));
        let server = Server::builder().topic("news", history).expect("a pattern").build();
        let listening = server.listen("memory@hub-turn").await.expect("the name is free");
        let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
        client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
        let session = server.sessions(&super::super::Target::everyone()).expect("no topic").remove(0);
        let registry = session.inner.registry.upgrade().expect("the server lives");
        let hub = &registry.hub;
        server.publish("news", &Push::new("N", "say", "1")).expect("small");

        let topic = hub.topics.find("news").expect("it keeps a message");
        let turn = topic.turn.lock();
        let (done, subscribed) = mpsc::channel();
        let (of_thread, hub_of_thread) = (session.clone(), Arc::clone(hub));
        std::thread::spawn(move || done.send(hub_of_thread.subscribe(&of_thread, "news", None, false)));
        let outcome = subscribed.recv_timeout(Duration::from_secs(10)).expect("it does not wait").expect("it lives");
        assert_eq!(outcome.position.map(|position| position.offset), Some(1));
        drop(turn);
        let receipt = server.publish("news", &Push::new("N", "say", "2")).expect("small");
        assert_eq!(receipt.outcomes().targets(), 1);
    }

    /// What a topic keeps of its newest value keeps no read alive that the value is a part of.
    #[tokio::test(start_paused = true)]
    async fn a_value_that_is_kept_is_a_copy() {
        let options = TopicOptions::new().open().latest_only();
        let server = Server::builder().topic("value", options).expect("a pattern").build();
        let listening = server.listen("memory@hub-value").await.expect("the name is free");
        let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
        client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
        let session = server.sessions(&super::super::Target::everyone()).expect("no topic").remove(0);
        let registry = session.inner.registry.upgrade().expect("the server lives");
        let hub = &registry.hub;
        let read = bytes::Bytes::from(vec![7; 64 << 10]);
        server.publish("value", &Push::new("N", "say", read.slice(..40))).expect("small");

        let topic = hub.topics.find("value").expect("it keeps a message");
        let kept = topic.kept.lock();
        let push = kept.history.as_ref().and_then(|history| history.newest()?.item.push.as_ref()).expect("it is kept");
        assert_eq!(push.payload, read[..40]);
        assert!(read.is_unique(), "nothing of the read is kept");
        let newest = kept.history.as_ref().and_then(|history| history.newest()).expect("it is kept");
        assert_eq!(newest.bytes, newest.item.encoded.size() + push.size(), "it counts with both");
    }

    /// What fits is counted from the first on, in messages and in bytes, and ends with the first that does not fit.
    #[test]
    fn what_fits_is_counted_from_the_first_on() {
        let bounds = |tracked_messages, tracked_bytes| Bounds { tracked_messages, tracked_bytes, ..Bounds::default() };
        let of = |bytes: &[usize]| -> Vec<Published> {
            let frame = |bytes: &usize| bytes::Bytes::from(vec![0; *bytes]);
            let encoded = |frame| Encoded { frame, keyed: None };
            bytes.iter().map(|it| Published { encoded: encoded(frame(it)), ..Published::for_test() }).collect()
        };
        for (messages, tracked_messages, tracked_bytes, expected) in [
            (&[1, 1, 1][..], 2, 10, 2),
            (&[1, 1, 1], 3, 10, 3),
            (&[4, 6, 1], 3, 10, 2),
            (&[4, 7, 1], 3, 10, 1),
            (&[11], 3, 10, 0),
            (&[1], 0, 10, 0),
            (&[], 3, 10, 0),
        ] {
            let published = of(messages);
            let list: Vec<_> = published.iter().enumerate().map(|(at, it)| (at as u64, it)).collect();
            let mut ledger = Ledger::new(bounds(tracked_messages, tracked_bytes));
            assert_eq!(fitting(&ledger, &list), expected, "{messages:?} of {tracked_messages}, {tracked_bytes} B");
            assert!(claim(&mut ledger, &list) || expected < list.len());
        }
    }

    /// Nothing is left of a topic that keeps no message when the last one has left it; one that keeps some stays.
    #[tokio::test(start_paused = true)]
    async fn a_topic_that_is_left_leaves_nothing_behind() {
        let server = Server::builder()
            .topic("room", TopicOptions::new().open().presence(true))
            .expect("a pattern")
            .topic("news", TopicOptions::new().open().history(10, Duration::from_secs(60)))
            .expect("a pattern")
            .build();
        let listening = server.listen("memory@hub-left").await.expect("the name is free");
        let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
        client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
        let session = server.sessions(&super::super::Target::everyone()).expect("no topic").remove(0);
        let registry = session.inner.registry.upgrade().expect("the server lives");
        let hub = &registry.hub;
        server.publish("news", &Push::new("N", "say", "1")).expect("small");
        for (topic, stays) in [("room", false), ("news", true)] {
            hub.subscribe(&session, topic, None, false).expect("it is open");
            assert!(hub.topics.find(topic).is_some(), "{topic}");
            session.unsubscribe(topic);
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!(hub.topics.find(topic).is_some(), stays, "{topic}");
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Publish,
        /// The application takes so many messages, and is done with them.
        Handle(usize),
        Ask {
            from: From,
            part: bool,
        },
    }

    /// Where what is asked for begins.
    #[derive(Clone, Copy, Debug)]
    enum From {
        Now,
        TheBeginning,
        /// Behind the last message before the first that the client does not have.
        WhereItIs,
    }

    fn step() -> impl Strategy<Value = Step> {
        let from = prop::sample::select(vec![From::Now, From::TheBeginning, From::WhereItIs, From::WhereItIs]);
        prop_oneof![
            3 => Just(Step::Publish),
            2 => (1..4_usize).prop_map(Step::Handle),
            3 => (from, any::<bool>()).prop_map(|(from, part)| Step::Ask { from, part }),
        ]
    }

    /// A session with room for three messages asks for a topic in whatever way, and in whatever order: in the end it has
    /// all of it, each message once.
    async fn asks(name: &str, steps: &[Step]) {
        let history = TopicOptions::new().open().history(100, Duration::from_secs(3600));
        let server = Server::builder()
            .sessions(SessionOptions::new().log(QueueBound::messages(3).bytes(1 << 20)))
            .topic("news", history)
            .expect("a pattern")
            .build();
        let listening = server.listen(&format!("memory@{name}")).await.expect("the name is free");
        let options = ClientOptions::new();
        let (client, mut messages) = Client::bidirectional(listening.address(), options).await.expect("it listens");
        client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
        let session = server.sessions(&super::super::Target::everyone()).expect("no topic").remove(0);
        let registry = session.inner.registry.upgrade().expect("the server lives");
        let hub = &registry.hub;

        let publish = |number: u64| {
            let receipt = server.publish("news", &Push::new("N", "say", number.to_string())).expect("small");
            receipt.stored().expect("it has a history")
        };
        let (epoch, mut published) = (publish(1).epoch, 1);
        let mut got = BTreeSet::new();
        let ask = |from: From, part, got: &BTreeSet<u64>| {
            let reached = (1..).take_while(|number| got.contains(number)).last().unwrap_or(0);
            let from = match from {
                From::Now => None,
                From::TheBeginning => Some(0),
                From::WhereItIs => Some(reached),
            };
            let from = from.map(|offset| Position { epoch, offset });
            let wish = Wish { pattern: "news", from, part, ordered: false };
            hub.subscribe_client(&session, wish).expect("it is open")
        };
        let mut take = |count: usize, got: &mut BTreeSet<u64>| {
            for message in (0..count).map_while(|_| messages.try_next()) {
                let number =
                    String::from_utf8_lossy(&message.payload().expect("not packed")).parse().expect("a number");
                assert!(got.insert(number), "{number} came twice");
            }
        };
        for step in steps {
            match *step {
                Step::Publish => {
                    published += 1;
                    publish(published);
                }
                Step::Handle(count) => take(count, &mut got),
                Step::Ask { from, part } => drop(ask(from, part, &got)),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        for _ in 0..200 {
            take(usize::MAX, &mut got);
            tokio::time::sleep(Duration::from_millis(100)).await;
            if got.len() as u64 == published {
                return;
            }
            ask(From::WhereItIs, true, &got);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("of {published} only {got:?} came");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn however_a_topic_is_asked_for_all_of_it_comes_once(steps in prop::collection::vec(step(), 1..30)) {
            static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
            let name = format!("hub-asks-{}", COUNT.fetch_add(1, Ordering::Relaxed));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
            runtime.expect("a runtime").block_on(asks(&name, &steps));
        }
    }

    /// Each bound of what a client may subscribe to holds to the byte; one that subscribes again needs no more room.
    #[tokio::test(start_paused = true)]
    async fn subscriptions_are_bounded_to_the_byte() {
        let bytes = topic::bytes_of("ab");
        type Bound = fn(crate::ServerBuilder, usize) -> crate::ServerBuilder;
        let bounds: [(&str, Bound); 2] = [
            ("per-session", |builder, bytes| builder.sessions(SessionOptions::new().subscription_bytes_max(bytes))),
            ("in-all", |builder, bytes| builder.sessions(SessionOptions::new().all_subscription_bytes_max(bytes))),
        ];
        for (name, bound) in bounds {
            let open = TopicOptions::new().open();
            let server = bound(Server::builder(), 2 * bytes).topic(">", open).expect("a pattern").build();
            let listening = server.listen(&format!("memory@hub-bounds-{name}")).await.expect("the name is free");
            let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
            for topic in ["ab", "cd", "ab"] {
                client.subscribe(topic).await.expect("as much as there is room for");
            }
            client.subscribe("e").await.expect_err("no byte more");
            client.unsubscribe("ab").await.expect("it has it");
            client.subscribe("abc").await.expect_err("one byte too much");
            client.subscribe("e").await.expect("there is room");
        }
    }

    /// A topic that is wanted in order stands still behind a message that found no room, until its client has asked for
    /// what it missed and has all of that.
    #[tokio::test(start_paused = true)]
    async fn a_topic_goes_on_when_all_that_was_missed_is_there() {
        let history = || TopicOptions::new().open().history(10, Duration::from_secs(60));
        let server = Server::builder()
            .sessions(SessionOptions::new().log(QueueBound::messages(2).bytes(1 << 20)))
            .topic("news", history())
            .expect("a pattern");
        let server = server.topic("late", history()).expect("a pattern");
        let server = server.topic("talk", TopicOptions::new().open()).expect("a pattern").build();
        let listening = server.listen("memory@hub-in-order").await.expect("the name is free");
        let mut clients = Vec::new();
        for _ in 0..2 {
            let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
            client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
            clients.push(client);
        }
        let sessions = server.sessions(&super::super::Target::everyone()).expect("no topic");
        let [session, other] = &sessions[..] else { panic!("there are two") };
        let registry = session.inner.registry.upgrade().expect("the server lives");
        let hub = &registry.hub;
        let ask = |session: &Session, pattern, from, part, ordered| {
            hub.subscribe_client(session, Wish { pattern, from, part, ordered }).expect("it is open")
        };
        let is_stalled = || session.lock().patterns().is_stalled("news");
        let publish = |topic: &str| {
            (0..5).for_each(|_| _ = server.publish(topic, &Push::new("N", "say", "1")).expect("small"));
        };

        for (topic, ordered, stalls) in [("news", false, false), ("talk", true, false), ("news", true, true)] {
            ask(session, topic, None, false, ordered);
            let mut state = session.lock();
            state.patterns_mut().stall(topic);
            assert_eq!(state.patterns().is_stalled(topic), stalls, "{topic}, {ordered}");
        }
        let start = ask(session, "news", None, false, true).subscribed.position.expect("it has a history");
        publish("news");
        let end = Position { offset: 5, ..start };
        for (from, part, expected) in [(start, false, (false, true)), (start, true, (true, false))] {
            let answer = ask(session, "news", Some(from), part, true);
            assert_eq!((answer.more, answer.later), expected);
            assert!(is_stalled(), "{answer:?}");
        }
        let answer = ask(session, "news", Some(end), false, true);
        assert!(!answer.more && !answer.later && !is_stalled(), "{answer:?}");

        // A part is not the whole: who was not subscribed is so with the rest.
        let start = ask(other, "late", None, true, false).subscribed.position.expect("it has a history");
        other.unsubscribe("late");
        publish("late");
        assert!(ask(other, "late", Some(start), true, false).more);
        assert!(!other.lock().patterns().contains("late"));
        ask(other, "late", None, false, false);
        assert!(other.lock().patterns().contains("late"));
    }
}
