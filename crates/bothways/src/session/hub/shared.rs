//! Topics whose history the nodes of a cluster share: it is in a log, and each node that has subscribers has a copy.
//!
//! A copy grows by what comes live, in the order of the log. Each message that comes names the one before it; if that is
//! not the last one here, nothing is taken until the log has been read up to it. So each subscriber gets each message
//! once, in order. What the log has not kept any more is missing: the clients of those who subscribe are told, and ask
//! from where they are.
//!
//! | a copy is | |
//! |---|---|
//! | deep | it has what the log had before this node followed the topic. Until then it answers no position |
//! | being read | the log is read behind its last message; what comes live only says how far |
//!
//! A session that comes from another node says how far it is with each topic that it has by name. It is no subscriber
//! before the copy here is as new as that; then it gets from the copy what is behind, and after that what comes live. So
//! nothing overtakes anything, and what its former node has got meanwhile is nobody's to send.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bothways_proto::keys;
use tokio::task::JoinSet;

use super::{
    super::{
        Push, Session,
        came_with::Coming,
        fan_out::SendError,
        history::Position,
        kept::{Kept, Topic},
        lock::Held as HeldLocks,
        receipt::Receipt,
        rules::TopicOptions,
        topic::has_wildcard,
    },
    Hub, Published, in_order,
};
use crate::{clock::after, error::PushError, reply::BoxFuture};

/// Where the histories are that the nodes share.
pub(crate) trait SharedHistories: Send + Sync {
    /// Queues a message for the log of its topic. Never waits.
    fn publish(self: Arc<Self>, message: ToShare<'_>, receipt: &Receipt) -> Result<(), SendError>;

    /// This node has a subscriber of this pattern. Never waits.
    fn follow(self: Arc<Self>, pattern: &str);

    /// Follows a pattern and, if it is a topic, makes its copy deep, and as new as this position. Waits for some seconds at
    /// most. False: it is not as new.
    fn prepare(self: Arc<Self>, pattern: Arc<str>, from: Option<Position>) -> BoxFuture<bool>;
}

/// A message that the nodes are to have.
pub(crate) struct ToShare<'a> {
    pub(crate) topic: &'a str,
    pub(crate) push: &'a Push,
    /// How long the log keeps it.
    pub(crate) kept_for: Option<Duration>,
}

/// An entry of a log.
#[derive(Clone, Debug)]
pub(crate) struct SharedMessage {
    pub(crate) position: Position,
    /// `None`: it is no message, and only stands where the topic begins.
    pub(crate) push: Option<Push>,
    /// The number of a publish of this node.
    pub(crate) own: Option<u64>,
}

/// Some messages of a log, oldest first, and where its last one stands; `None`: it has none.
#[derive(Clone, Debug, Default)]
pub(crate) struct SharedPage {
    pub(crate) messages: Vec<SharedMessage>,
    pub(crate) last: Option<Position>,
}

/// What follows a live message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Arrived {
    /// It was delivered here.
    Taken,
    /// It is of no use here, or comes with what is being read.
    Left,
    /// The log is to be read: something is missing before it.
    Behind,
}

/// What follows a page.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Step {
    /// The copy is as new as is known; reading has ended.
    Done,
    /// There is more.
    More,
    /// A message is known that the log did not show: a replica is behind.
    Stale,
}

/// Where a copy stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CopyStanding {
    pub(crate) position: Position,
    pub(crate) is_deep: bool,
}

impl Hub {
    /// From here on histories are shared.
    pub(crate) fn share(&self, histories: Arc<dyn SharedHistories>) {
        self.topics.share();
        // Stamps below are for what was before.
        self.clock.fetch_add(OLDER_STAMPS, Ordering::Relaxed);
        let _ = self.shared.set(histories);
    }

    /// The options of topics whose history is shared, if they are such.
    fn shared_options(&self, pattern: &str) -> Option<&TopicOptions> {
        self.shared.get()?;
        self.rules.of(pattern).ok().flatten().filter(|options| options.history.is_some())
    }

    /// True if the subscribers of this node get a message that the log cannot take.
    pub(crate) fn goes_apart(&self, topic: &str) -> bool {
        self.rules.of_topic(topic).is_some_and(|options| options.goes_apart)
    }

    /// A client is about to subscribe: what it may ask for is fetched first. Without an answer from the log within some
    /// seconds, one that names no position subscribes without that.
    ///
    /// # Errors
    /// What is told to a client that names a position: from there on it would get what it has already.
    pub(crate) async fn prepare(
        &self,
        session: &Session,
        pattern: &str,
        from: Option<Position>,
    ) -> Result<(), &'static str> {
        let (Some(histories), Some(options)) = (self.shared.get(), self.shared_options(pattern)) else { return Ok(()) };
        if !has_wildcard(pattern) {
            // Without room for a copy there is no position for who subscribes.
            let _ = self.topics.keep(pattern, options, self.maker(session, true));
        }
        match Arc::clone(histories).prepare(pattern.into(), from).await {
            false if from.is_some() => Err("the log of the topic does not answer: try again"),
            _ => Ok(()),
        }
    }

    /// Somebody subscribes here.
    pub(super) fn follow(&self, pattern: &str) {
        if let (Some(histories), Some(_)) = (self.shared.get(), self.shared_options(pattern)) {
            Arc::clone(histories).follow(pattern);
        }
    }

    /// True if sessions of this node subscribe to exactly this.
    pub(crate) fn is_subscribed(&self, pattern: &str) -> bool {
        self.subscriptions.read().count(pattern) != 0
    }

    /// True if sessions of this node get messages of this topic, or will in a moment.
    pub(crate) fn has_subscribers(&self, topic: &str) -> bool {
        let mut some = self.coming.lock().contains_key(topic);
        self.subscriptions.read().each(topic, |subscribers| some |= !subscribers.is_empty());
        some
    }

    /// The topics of which there is a copy.
    pub(crate) fn copies(&self) -> Vec<Arc<str>> {
        let names = self.topics.names();
        names.into_iter().filter(|name| self.shared_options(name).is_some()).collect()
    }

    /// Forgets a copy that is not kept up to date any more, unless somebody subscribes.
    pub(crate) fn forget_copy(&self, name: &Arc<str>) {
        if self.has_subscribers(name) {
            return;
        }
        let dropped = self.topics.find(name).and_then(|topic| {
            let mut kept = topic.kept.lock();
            if kept.mirror.is_reading {
                return None;
            }
            kept.mirror = Default::default();
            Some(kept.history.as_mut()?.begin_at(NOWHERE))
        });
        // Payloads are the application's.
        drop(dropped);
        self.forget_unused([Arc::clone(name)]);
    }

    /// How long a topic keeps its messages. `None`: until others need their place.
    pub(crate) fn kept_for(&self, topic: &str) -> Option<Duration> {
        self.shared_options(topic)?.history.as_ref()?.time_to_live
    }

    /// Most messages of the copy of a topic.
    pub(crate) fn messages_max(&self, topic: &str) -> usize {
        let options = self.shared_options(topic).and_then(|options| options.history.as_ref());
        options.map_or(1, |history| history.messages)
    }

    /// Where the copy of a topic stands.
    pub(crate) fn copy(&self, topic: &str) -> Option<CopyStanding> {
        let topic = self.topics.find(topic)?;
        let kept = topic.kept.lock();
        let position = kept.history.as_ref()?.position();
        Some(CopyStanding { position, is_deep: kept.mirror.is_deep })
    }

    /// The log of this topic is read from here on. False: it is being read, or there is no copy.
    pub(crate) fn begin_reading(&self, topic: &str) -> bool {
        let Some(topic) = self.topics.find(topic) else { return false };
        let mut kept = topic.kept.lock();
        kept.history.is_some() && !std::mem::replace(&mut kept.mirror.is_reading, true)
    }

    /// Nobody reads it any more, though it may not be up to date: the next message finds that.
    pub(crate) fn end_reading(&self, topic: &str) {
        if let Some(topic) = self.topics.find(topic) {
            topic.kept.lock().mirror.is_reading = false;
        }
    }

    /// A message comes live. `previous`: the offset of the one before it in the log; 0: it is the first.
    pub(crate) fn arrive(&self, topic: &str, message: &SharedMessage, previous: u64, receipt: &Receipt) -> Arrived {
        let Some(options) = self.shared_options(topic) else { return Arrived::Left };
        let found = match self.topics.find(topic) {
            Some(topic) => topic,
            None if !self.has_subscribers(topic) => return Arrived::Left,
            None => match self.topics.keep(topic, options, None) {
                Ok(topic) => topic,
                // There is no room for a copy: those who are there get it, if nothing is lost on the way.
                Err(_) => {
                    if let Some(push) = &message.push {
                        let _ = self.publish_apart(topic, push, receipt);
                    }
                    return Arrived::Taken;
                }
            },
        };

        let mut arrived = Arrived::Left;
        let place = |kept: &mut Kept| {
            arrived = judge(kept, message.position, previous);
            (arrived == Arrived::Taken).then_some((message.position, Some(previous)))
        };
        let entered = self.enter_shared(&found, options, message, receipt, place);
        // One that is too large here is as one that was never there.
        if entered.is_err() {
            self.skip(&found, message.position);
        }
        arrived
    }

    /// Pushes to the subscribers of this node, past the log.
    pub(crate) fn publish_apart(&self, topic: &str, push: &Push, receipt: &Receipt) -> Result<(), SendError> {
        let mut positioned = push.clone();
        positioned.metadata.insert(keys::TOPIC, topic);
        self.publish_unkept(topic, push, positioned, receipt, self.fan_out.begin())
    }

    fn enter_shared(
        &self,
        topic: &Topic,
        options: &TopicOptions,
        message: &SharedMessage,
        receipt: &Receipt,
        place: impl FnOnce(&mut Kept) -> Option<(Position, Option<u64>)>,
    ) -> Result<bool, SendError> {
        let Some(push) = &message.push else {
            self.enter_beginning(topic, place);
            return Ok(true);
        };
        let mut positioned = push.clone();
        positioned.metadata.insert(keys::TOPIC, &*topic.name);
        let delivered = self.fan_out.begin();
        self.enter(topic, options, push, positioned, receipt, delivered, place)
    }

    /// Keeps where a topic begins, at the place that this finds: as a message that nobody is sent.
    fn enter_beginning(&self, topic: &Topic, place: impl FnOnce(&mut Kept) -> Option<(Position, Option<u64>)>) {
        let dropped = {
            let mut kept = topic.kept.lock();
            let Some((position, _)) = place(&mut kept) else { return };
            let Some(history) = kept.history.as_mut() else { return };
            let stamp = {
                let _subscriptions = self.subscriptions.read();
                self.clock.fetch_add(1, Ordering::Relaxed)
            };
            let beginning = Published::beginning(stamp);
            let dropped = history.push_at(position.offset, self.now(), beginning.encoded.size(), beginning);
            self.topics.schedule(topic, &mut kept);
            dropped
        };
        // Payloads are the application's.
        drop(dropped);
    }

    /// Goes past a message that cannot be kept here.
    fn skip(&self, topic: &Topic, position: Position) {
        let mut kept = topic.kept.lock();
        let dropped = kept.history.as_mut().map(|history| history.begin_at(position));
        drop(kept);
        drop(dropped);
    }

    /// What the log had when this node began to follow the topic: these are its newest messages. Nobody is sent any of
    /// them but who asks from a position.
    pub(crate) fn load(&self, name: &str, page: SharedPage) {
        let (Some(topic), Some(options)) = (self.topics.find(name), self.shared_options(name)) else { return };
        let Some(last) = page.last else {
            topic.kept.lock().mirror.is_deep = true;
            return;
        };

        let mut previous = None;
        let encoded: Vec<_> = page
            .messages
            .into_iter()
            .filter_map(|message| {
                let before = previous.replace(message.position.offset);
                self.encode_older(&topic, options, &message, before).ok()
            })
            .collect();
        let dropped;
        {
            let mut kept = topic.kept.lock();
            kept.mirror.is_deep = true;
            let Some(history) = kept.history.as_mut() else { return };
            let head = history.position();
            let mut begun = Default::default();
            if head.epoch == 0 {
                begun = history.begin_at(last);
            } else if head.epoch != last.epoch {
                // It is another life: the reading that follows finds that.
                return;
            }
            // Those that came live are here.
            let oldest = history.oldest().unwrap_or(u64::MAX);
            let mut older: Vec<_> = encoded.into_iter().filter(|(offset, ..)| *offset < oldest).collect();
            let beyond = older.len().saturating_sub(history.messages_max());
            let before = older.drain(..beyond).next_back().map(|(offset, ..)| offset);
            let count = older.len() as u64;
            let first = OLDER_STAMPS - count - self.older.fetch_add(count, Ordering::Relaxed);
            older.iter_mut().zip(first..).for_each(|((.., published), stamp)| published.stamp = stamp);
            dropped = (begun, history.prepend(self.now(), before, older.into_iter()));
            self.topics.schedule(&topic, &mut kept);
        }
        // Payloads are the application's.
        drop(dropped);
    }

    fn encode_older(
        &self,
        topic: &Topic,
        options: &TopicOptions,
        message: &SharedMessage,
        previous: Option<u64>,
    ) -> Result<(u64, usize, Published), PushError> {
        let Some(push) = &message.push else {
            let beginning = Published::beginning(0);
            return Ok((message.position.offset, beginning.encoded.size(), beginning));
        };
        let push = in_order(push, &topic.name, options.latest_only);
        let mut positioned = push.clone().into_owned();
        positioned.metadata.insert(keys::TOPIC, &*topic.name);
        set_position(&mut positioned, message.position, previous);
        let encoded = self.fan_out.encode(&positioned)?;
        let kept_push = options.latest_only.then(|| push.to_keep());
        let bytes = encoded.size() + kept_push.as_ref().map_or(0, Push::size);
        let expires = push.time_to_live.map(after);
        let name = Arc::clone(push.name());
        let published = Published { encoded, name, stamp: 0, expires, push: kept_push, is_beginning: false };
        Ok((message.position.offset, bytes, published))
    }

    /// From which offset on the log is read: the last message here is read again, to know that nothing between is lost.
    pub(crate) fn read_after(&self, topic: &str) -> u64 {
        self.copy(topic).map_or(0, |copy| copy.position.offset.saturating_sub(1))
    }

    /// A page that was read behind [`Self::read_after`]. The receipt of each is asked for.
    pub(crate) fn take_page(
        &self,
        name: &str,
        page: &SharedPage,
        receipt_of: &dyn Fn(&SharedMessage) -> Receipt,
    ) -> Step {
        let (Some(topic), Some(options)) = (self.topics.find(name), self.shared_options(name)) else {
            return Step::Done;
        };
        let (mut head, gone_on, dropped) = {
            let mut kept = topic.kept.lock();
            let Some(history) = kept.history.as_mut() else { return Step::Done };
            let head = history.position();
            let gone_on = continues(head, page);
            let from = match gone_on {
                GoesOn::Stale => return Step::Stale,
                GoesOn::At(from) | GoesOn::Missing(from) | GoesOn::OtherLife(from) => from,
            };
            let dropped = (from != head).then(|| history.begin_at(from));
            (from, gone_on, dropped)
        };
        drop(dropped);
        let is_missing = !matches!(gone_on, GoesOn::At(_));
        if is_missing {
            self.tell_missing(name);
        }
        if let GoesOn::OtherLife(_) = gone_on {
            // It is read from its beginning.
            return Step::More;
        }

        let mut is_first_known = !is_missing;
        for message in &page.messages {
            if message.position.offset <= head.offset && head.offset != 0 {
                is_first_known = true;
                continue;
            }
            let previous = std::mem::replace(&mut is_first_known, true).then_some(head.offset);
            let place = |_: &mut Kept| Some((message.position, previous));
            if self.enter_shared(&topic, options, message, &receipt_of(message), place).is_err() {
                self.skip(&topic, message.position);
            }
            head = message.position;
        }

        let last = page.last.map_or(0, |last| last.offset);
        let mut kept = topic.kept.lock();
        if head.offset < last {
            return Step::More;
        }
        let wanted = kept.mirror.wanted.filter(|wanted| wanted.epoch == head.epoch || head.epoch == 0);
        if wanted.is_some_and(|wanted| head.offset < wanted.offset) {
            return Step::Stale;
        }
        (kept.mirror.is_reading, kept.mirror.wanted) = (false, None);
        Step::Done
    }

    /// What the copy wants is not to be had: its subscribers miss something.
    pub(crate) fn give_up_reading(&self, name: &str) {
        let Some(topic) = self.topics.find(name) else { return };
        let dropped = {
            let mut kept = topic.kept.lock();
            let wanted = kept.mirror.wanted.take();
            kept.mirror.is_reading = false;
            // Without one, the log is gone, and with it all that was here.
            kept.history.as_mut().map(|history| history.begin_at(wanted.unwrap_or(NOWHERE)))
        };
        drop(dropped);
        self.tell_missing(name);
    }

    /// What was published to the topics with a history of this session may be missing: its client asks from where it is.
    pub(crate) fn tell_missed(&self, session: &Session) {
        let mut state = session.lock();
        if state.patterns().names().any(|pattern| self.kept_options(pattern).is_some()) {
            state.miss_and_tell(self.clock.fetch_add(1, Ordering::Relaxed));
        }
    }

    /// Runs this while no message is delivered of the topics with shared histories that this session has by name. It is told
    /// how far the session is with each of them: all up to there was given to it, and nothing behind.
    pub(in crate::session) fn between_messages<T>(
        &self,
        session: &Session,
        run: impl FnOnce(&[(Arc<str>, Position)]) -> T,
    ) -> T {
        // Nobody is woken while topics are locked.
        let held_locks = HeldLocks::begin();
        let names: Vec<Arc<str>> = session.lock().patterns().names().cloned().collect();
        let shared = names.iter().filter(|name| self.is_shared(name));
        let topics: Vec<Arc<Topic>> = shared.filter_map(|name| self.topics.find(name)).collect();
        // In the order of their names, as everybody who has the turns of several.
        let turns: Vec<_> = topics.iter().map(|topic| topic.turn.lock()).collect();
        let position = |topic: &Arc<Topic>| {
            let position = topic.kept.lock().history.as_ref()?.position();
            (position.epoch != 0).then(|| (Arc::clone(&topic.name), position))
        };
        let positions: Vec<_> = topics.iter().filter_map(position).collect();
        let outcome = run(&positions);
        drop(turns);
        drop(held_locks);
        outcome
    }

    /// A session has come from another node, and is to be a subscriber of this topic when the copy here is as new as it
    /// is. It is at once, if the copy is.
    pub(in crate::session) fn expect(&self, session: &Session, name: &Arc<str>, coming: Coming) {
        session.lock().expect(name, coming);
        let is_past = |copy: CopyStanding| {
            let is_of = copy.position.epoch == coming.position.epoch;
            copy.is_deep && is_of && coming.position.offset <= copy.position.offset
        };
        if self.copy(name).is_some_and(is_past) {
            return self.bring_up(session, name);
        }
        self.coming.lock().entry(Arc::clone(name)).or_default().push(session.clone());
    }

    /// Makes the copies as new as a session that has come is, and the session a subscriber of each. One of which that
    /// cannot be had within some seconds its client asks for.
    pub(in crate::session) async fn bring_up_all(self: Arc<Self>, session: Session) {
        let all = session.lock().all_coming();
        let mut bringing = JoinSet::new();
        for (name, position) in all {
            let (hub, session) = (Arc::clone(&self), session.clone());
            bringing.spawn(async move {
                // Where it does not answer the client is told.
                let _ = hub.prepare(&session, &name, Some(position)).await;
                hub.bring_up(&session, &name);
            });
        }
        while bringing.join_next().await.is_some() {}
    }

    /// A session that has come is a subscriber of this topic from here on, after what it has not got yet.
    fn bring_up(&self, session: &Session, name: &Arc<str>) {
        let coming = session.lock().coming(name);
        if let Some(Coming { by_client, .. }) = coming
            && self.subscribe(session, name, None, by_client).is_err()
        {
            // What has no room here is left out.
            self.unsubscribe(session, name);
        }
        self.forget_coming(session, name);
    }

    /// It is a subscriber of this topic, or will not be.
    pub(super) fn forget_coming(&self, session: &Session, name: &str) {
        let mut all = self.coming.lock();
        if let Some(sessions) = all.get_mut(name) {
            sessions.retain(|other| other != session);
            if sessions.is_empty() {
                all.remove(name);
            }
        }
    }

    /// Sessions that are to be subscribers of this topic in a moment.
    pub(in crate::session) fn coming_to(&self, topic: &str) -> Vec<Session> {
        let sessions = self.coming.lock().get(topic).cloned().unwrap_or_default();
        sessions.into_iter().filter(|session| session.lock().is_coming(topic)).collect()
    }

    /// True if messages of this topic, which is no pattern, are in a history that the nodes share.
    pub(in crate::session) fn is_shared(&self, name: &str) -> bool {
        !has_wildcard(name) && self.shared_options(name).is_some()
    }

    /// Tells the clients of all who subscribe that something is missing: they ask from where they are.
    fn tell_missing(&self, topic: &str) {
        let held_locks = HeldLocks::begin();
        let (subscribers, stamp) = {
            let subscriptions = self.subscriptions.read();
            let stamp = self.clock.fetch_add(1, Ordering::Relaxed);
            (self.found(&subscriptions, topic), stamp)
        };
        subscribers.iter().for_each(|session| session.lock().miss_and_tell(stamp));
        drop(held_locks);
        subscribers.iter().for_each(Session::pump);
    }
}

/// Stamps that are left for messages which were there before this node followed their topics.
const OLDER_STAMPS: u64 = 1 << 52;

/// Where a copy is that knows nothing of its topic.
const NOWHERE: Position = Position { epoch: 0, offset: 0 };

/// Whether a live message is the next one here.
fn judge(kept: &mut Kept, position: Position, previous: u64) -> Arrived {
    let Some(history) = kept.history.as_mut() else { return Arrived::Left };
    let (head, mirror) = (history.position(), &mut kept.mirror);
    if mirror.is_reading {
        let is_later = |wanted: Position| wanted.epoch != position.epoch || wanted.offset < position.offset;
        if mirror.wanted.is_none_or(is_later) {
            mirror.wanted = Some(position);
        }
        return Arrived::Left;
    }
    // Nothing is known of what was before it, or that there was nothing.
    let begins = head.epoch == 0 && (!mirror.is_deep || previous == 0);
    if begins {
        // An empty history: there is nothing to drop.
        drop(history.begin_at(Position { offset: previous, ..position }));
        return Arrived::Taken;
    }
    if head.epoch == position.epoch && position.offset <= head.offset {
        return Arrived::Left;
    }
    if head.epoch == position.epoch && previous == head.offset {
        return Arrived::Taken;
    }
    (mirror.is_reading, mirror.wanted) = (true, Some(position));
    Arrived::Behind
}

/// How a copy goes on with a page.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum GoesOn {
    /// From where it is, or from the beginning.
    At(Position),
    /// From here, and what was between is gone.
    Missing(Position),
    /// The log has lost its data: it begins anew here.
    OtherLife(Position),
    /// The page shows less than was seen already.
    Stale,
}

/// How a copy at `head` goes on with a page that was read behind the message before it.
fn continues(head: Position, page: &SharedPage) -> GoesOn {
    let is_begun = head.epoch != 0;
    let Some(last) = page.last else {
        return if is_begun && head.offset != 0 { GoesOn::Stale } else { GoesOn::At(head) };
    };
    if !is_begun {
        return GoesOn::At(Position { epoch: last.epoch, offset: 0 });
    }
    if last.epoch != head.epoch {
        let from = Position { epoch: last.epoch, offset: 0 };
        return if head.offset == 0 { GoesOn::At(from) } else { GoesOn::OtherLife(from) };
    }
    if last.offset < head.offset {
        return GoesOn::Stale;
    }
    let is_kept = page.messages.first().is_some_and(|first| first.position.offset == head.offset);
    if head.offset == 0 || is_kept || last.offset == head.offset {
        return GoesOn::At(head);
    }
    // The last one here is not kept any more: what was behind it may be gone too.
    let offset = page.messages.first().map_or(last.offset, |first| first.position.offset - 1);
    GoesOn::Missing(Position { offset, ..head })
}

pub(super) fn set_position(push: &mut Push, position: Position, previous: Option<u64>) {
    push.metadata.insert(keys::TOPIC_EPOCH, position.epoch.to_string());
    push.metadata.insert(keys::TOPIC_OFFSET, position.offset.to_string());
    if let Some(previous) = previous {
        push.metadata.insert(keys::TOPIC_PREVIOUS, previous.to_string());
    }
}
