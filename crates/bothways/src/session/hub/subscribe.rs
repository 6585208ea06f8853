//! Subscribing: a session gets what it missed, and then its place among the subscribers of a topic.
//!
//! It takes three steps, each under one lock more: the topic, the tree of subscriptions, the
//! session. So no message comes between what was missed and what comes from then on.

use std::sync::{Arc, atomic::Ordering};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    super::{
        Class, Priority, Session,
        away::Owner,
        explain::{self, What},
        history::{History, Kept as Message, Position},
        kept::{Held, Kept, Topic},
        ledger::{Entry, Ledger},
        lock::Held as HeldLocks,
        parts::Part,
        presence::Who,
        push::{Encoded, Origin},
        receipt::Receipt,
        rules::{Access, SubscribeRequest},
        state::State,
        topic::{self, Subscriptions, TopicError, WILDCARDS_MAX},
    },
    Hub, Published, latest_class,
};

/// The place of a session among the subscribers of a pattern.
enum Place {
    /// It has none: it was sent a part of what it missed, and asks for the rest.
    None,
    Known,
    New(Arc<str>),
}

/// The result of a subscription.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Subscribed {
    /// True if every message after the requested position, except for expired ones, was sent or is on its way, in parts
    /// if the session's log holds less. False if no position was requested. If only the newest message of the topic
    /// counts, that one is meant.
    pub recovered: bool,
    /// The subscriber's position: every message after it will come. A program that goes on from here after a restart
    /// keeps it until it has handled a message. `None` if the topic has no history, and for a pattern.
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
    /// some of the former is handled. A client that was not subscribed before is not yet.
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

    pub(in crate::session) fn subscribe(
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
        // From now on is from where it is, if it has come here with that.
        let from = wish.from.or_else(|| session.lock().coming_from(wish.pattern));
        let wish = Wish { from, ..wish };
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
        // Last, with nothing locked: this writes to the socket.
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
    pub(super) fn maker(&self, session: &Session, by_client: bool) -> Option<Owner> {
        if !by_client {
            return None;
        }
        let state = session.lock();
        Some(match (state.user(), state.connection()) {
            (Some(user), _) => Owner::User(Arc::clone(user)),
            (None, Some(connection)) => Owner::of_peer(connection),
            // It is over, or about to be.
            (None, None) => Owner::Peer("".into()),
        })
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
        let is_coming = state.is_coming(pattern);
        if state.patterns().contains(pattern) && !is_coming {
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
        if !is_coming {
            self.check_session_room(state, pattern)?;
        }
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
        let mut subscriptions = self.change_subscriptions();
        let (answer, place) = self.enter_session(session, &mut subscriptions, wish, by_client, history)?;
        match place {
            Place::New(pattern) => {
                subscriptions.add(&pattern, session.clone());
                #[cfg(feature = "cluster")]
                self.follow(&pattern);
            }
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
        let is_coming = state.is_coming(pattern);
        let is_known = state.patterns().contains(pattern) && !is_coming;

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
            session.inner.note(What::Subscribed(explain::shared(&shared)));
        }
        state.subscribe(Arc::clone(&shared), since, by_client);
        if has_history && wish.ordered {
            state.set_ordered(pattern);
        }

        if wish.from.is_some() && !answer.more && !answer.later {
            state.caught_up(pattern, since);
        } else if wish.part && (answer.more || answer.later) {
            // It asks for the rest: nothing of the topic is to overtake that.
            state.stall(pattern);
        }
        if is_coming && !(answer.subscribed.recovered && !answer.more && !answer.later) {
            // It does not get all that it was to get here: its client asks for that.
            state.stall(pattern);
            state.miss_and_tell(self.clock.fetch_add(1, Ordering::Relaxed));
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

        // Before room is claimed: what is too old makes some.
        state.expire_waiting(session.now());
        let ledger = state.ledger();
        let in_part = |stamp| parts.is_some_and(|sent| sent.has(stamp));
        let came_with = |offset| state.came_with(pattern, Position { offset, ..history.position() });
        let is_sent =
            |offset, stamp| came_with(offset) || (covered_since <= stamp || in_part(stamp)) && !ledger.is_unsent(stamp);
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
            // What came in parts, and everything after it.
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
    pub(in crate::session) fn carry_over(&self, from: &Session, to: &Session) -> usize {
        // A copy: topics and the tree are locked before a session.
        let patterns = from.lock().patterns().clone();
        let mut left_out = 0;
        for (pattern, since, by_client) in patterns.iter() {
            let topic = self.topics.find(pattern);
            let mut kept = topic.as_ref().map(|topic| topic.kept.lock());
            {
                let mut subscriptions = self.change_subscriptions();
                let mut state = to.lock();
                if state.is_ended() {
                    return left_out;
                }
                if state.is_coming(pattern) {
                    // It gets all of it, from where it is.
                    continue;
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
                    to.inner.note(What::Subscribed(explain::shared(pattern)));
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
            let mut subscriptions = self.change_subscriptions();
            let was = session.lock().unsubscribe(pattern);
            if was {
                session.inner.note(What::Unsubscribed(explain::text(pattern)));
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
    pub(in crate::session) fn unsubscribe_all<'a>(
        &self,
        session: &Session,
        patterns: impl Iterator<Item = &'a str> + Clone,
        until: Option<Instant>,
    ) {
        if patterns.clone().next().is_none() {
            return;
        }
        {
            let mut subscriptions = self.change_subscriptions();
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
    pub(in crate::session) fn rename(&self, session: &Session) {
        let patterns: Vec<Arc<str>> = session.lock().patterns().names().cloned().collect();
        for pattern in patterns {
            if let Some(topic) = self.topics.find(&pattern) {
                self.enter_roster(session, &topic, &mut topic.kept.lock());
            }
        }
        self.tell();
    }
}

/// True if the client of this session is about to get one back that subscribes already: both have one place.
fn shares_place(subscriptions: &Subscriptions<Session>, state: &State, pattern: &str) -> bool {
    state.wanted().is_some_and(|wanted| subscriptions.contains(pattern, wanted.0))
}

pub(super) type Messages<'a> = [(u64, &'a Published)];

/// Claims room for all of these.
fn claim(state: &mut State, messages: &Messages<'_>) -> bool {
    state.claim_room(messages.len(), size(messages))
}

pub(super) fn size(messages: &Messages<'_>) -> usize {
    messages.iter().map(|(_, published)| published.encoded.size()).sum()
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
pub(super) fn fitting(ledger: &Ledger, messages: &Messages<'_>) -> usize {
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
    let expires = published.expires.map(|at| at.saturating_duration_since(session.inner.event_log.began()));
    let (event_log, mut ticket) = (&session.inner.event_log, Receipt::new().ticket(session.id()));
    ticket.follow(event_log, event_log.note_push(&published.name, &class, frame.len(), session.now()));
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
    /// `is_sent`: the message of this offset, with this stamp, has been sent already.
    fn of(
        history: &'a History<Published>,
        from: Option<Position>,
        latest_only: bool,
        is_sent: impl Fn(u64, u64) -> bool,
    ) -> Self {
        let head = history.position();

        if latest_only {
            let had = from.is_some_and(|from| from == head);
            let newest = history.newest().filter(|newest| !newest.item.is_beginning);
            let is_known = from.is_some_and(|from| from.epoch == head.epoch);
            let unsent = newest.filter(|newest| !had && !is_sent(newest.offset, newest.item.stamp));

            // Before the newest, so that a client that loses it on the way asks for it again.
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
                    .filter(|(offset, published)| !published.is_beginning && !is_sent(*offset, published.stamp))
                    .collect(),
                outcome: Subscribed { recovered: true, position: Some(from) },
            },
            None => Self { messages: Vec::new(), outcome: Subscribed { recovered: false, position: Some(head) } },
        }
    }
}
