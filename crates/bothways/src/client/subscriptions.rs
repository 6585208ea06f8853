//! The subscriptions of a client, and its position in each topic.
//!
//! While a session lives or resumes its subscriptions live with it. Then positions are noted here; what the server says
//! that it dropped is asked for again; and what the application unsubscribed from while there was no connection is made
//! good. Each session begins with a connection, and connections are numbered: a reply of an earlier one says nothing of
//! the session that there is now.
//!
//! What is asked of one topic is asked one after another, in the order in which the application asked; the client itself
//! looks again right before it asks. Subscriptions are numbered: what is learned of one says nothing of the next one of the
//! same topic.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bothways_proto::{Metadata, keys};
use parking_lot::Mutex;

use super::holes::Holes;
use crate::{
    caller::{CallOptions, Caller},
    connection::ConnectionId,
    error::CallError,
    in_turn::{self, Lines},
    session::{Answer, Position, SubscribeArgs, SubscribeReply, Subscribed, TopicPlace},
};

/// Shared between the client, the reader of its connection, and the task that subscribes again.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    /// There is one at least: messages are looked at.
    any: AtomicBool,
    /// The server has taken one: it knows of topics.
    answered: AtomicBool,
    state: Mutex<State>,
    /// Calls about each topic. Joined while the state is locked: the order is that in which the state changed.
    lines: Arc<Lines<Arc<str>>>,
}

/// A place among the calls about one topic.
pub(super) type Place = in_turn::Place<Arc<str>>;

#[derive(Debug, Default)]
struct State {
    list: BTreeMap<Arc<str>, Subscription>,
    /// The first connection of the present session.
    began: Option<ConnectionId>,
    /// The newest connection that stood: only on this one is anything asked for again.
    newest: Option<ConnectionId>,
    /// What the application has unsubscribed from, and the present session may still have; with the number of that.
    unwanted: BTreeMap<Arc<str>, u64>,
    /// How many subscriptions and unsubscriptions have begun, to tell one from the next of the same topic.
    begun: u64,
}

#[derive(Debug, Default)]
struct Subscription {
    /// Which of those of its topic it is.
    number: u64,
    position: Option<Position>,
    /// What is missing before that, of this epoch: it was dropped, has expired, or is on its way.
    holes: Holes,
    /// The present session is to have it, and does not yet.
    pending: Option<Pending>,
    /// The server has refused it, and the application was told so.
    refused: bool,
    /// How often the server has said that it dropped something, since all was recovered.
    gaps: u64,
    /// The connection on which what was dropped is being asked for.
    recovering: Option<ConnectionId>,
    /// The application has subscribed, and was told so.
    wanted: bool,
    /// The present session has it.
    held: bool,
    /// Calls under way that subscribe.
    claims: usize,
}

impl State {
    /// One subscription, if it is still there.
    fn get(&mut self, which: &Which) -> Option<&mut Subscription> {
        self.list.get_mut(&which.topic).filter(|of| of.number == which.number)
    }

    /// The session is not to have this topic, and may.
    fn end(&mut self, topic: &Arc<str>) -> u64 {
        self.begun += 1;
        self.unwanted.insert(Arc::clone(topic), self.begun);
        self.begun
    }

    /// The subscription to a topic, which begins here if there is none.
    fn entry(&mut self, topic: &str) -> &mut Subscription {
        let begun = &mut self.begun;
        self.list.entry(topic.into()).or_insert_with(|| {
            *begun += 1;
            Subscription { number: *begun, ..Subscription::default() }
        })
    }
}

/// One subscription to a topic.
#[derive(Clone, Debug)]
pub(super) struct Which {
    pub(super) topic: Arc<str>,
    number: u64,
}

/// Where a topic was when its session began. Until it is asked for, messages that come by a wildcard move its position.
#[derive(Clone, Copy, Debug)]
struct Pending {
    from: Option<Position>,
    /// Messages of a session before this one are missing.
    missed: bool,
    /// The application asked for what is before the position that the topic had: that position says nothing of it.
    behind: bool,
}

impl Subscription {
    /// Its session is lost, and with it what that was still to send.
    fn lose_session(&mut self) {
        let was_pending = self.pending.is_some_and(|pending| {
            let epoch = |position: Option<Position>| position.map(|position| position.epoch);
            let is_past = pending.from.is_some() && epoch(pending.from) != epoch(self.position);
            pending.missed || pending.behind || is_past
        });
        let missed = 0 < self.gaps || self.holes.are_owed() || was_pending;
        self.pending = self.wanted.then_some(Pending { from: self.position, missed, behind: false });
        self.holes = Holes::default();
        (self.held, self.gaps, self.recovering) = (false, 0, None);
    }

    /// Goes on to a position, and back only into another life of the topic.
    fn note(&mut self, position: Position) {
        match &mut self.position {
            Some(noted) if noted.epoch == position.epoch => noted.offset = noted.offset.max(position.offset),
            noted => (*noted, self.holes) = (Some(position), Holes::default()),
        }
    }

    /// A message came. What is missing before it is remembered.
    fn note_message(&mut self, position: Position, previous: u64) {
        let before = self.position.filter(|noted| noted.epoch == position.epoch);
        self.note(position);
        let Some(before) = before else { return };
        self.holes.note(before.offset, previous, position.offset);
        if self.pending.is_some() {
            self.holes.owe();
        }
    }
}

/// The subscriber.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Asker {
    /// The client by itself.
    Client,
    /// The application, from now on.
    Application,
    /// The application, from where it says that it is.
    ApplicationFrom,
}

/// A call that subscribes is under way. Without success nothing is left of it.
pub(super) struct Claim {
    all: Arc<Subscriptions>,
    which: Which,
    /// The server has answered: what it has is known.
    answered: AtomicBool,
}

/// The application subscribes, and its call is in line. The claim ends before the next one has its turn.
pub(crate) struct Subscribing {
    pub(super) claim: Claim,
    pub(super) place: Place,
}

/// The application unsubscribes, and its call is in line.
pub(crate) struct Unsubscribing {
    all: Arc<Subscriptions>,
    pub(super) which: Which,
    pub(super) place: Place,
}

impl Unsubscribing {
    /// The server does not have it any more. What was asked since counts for itself.
    pub(super) fn has_ended(&self) {
        self.all.has_ended(&self.which);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut state = self.all.state.lock();
        if let Some(subscription) = state.get(&self.which) {
            subscription.claims = subscription.claims.saturating_sub(1);
            if subscription.claims == 0 && !subscription.wanted {
                state.list.remove(&self.which.topic);
                if !*self.answered.get_mut() {
                    // The session may have it, and the application was not told so.
                    state.end(&self.which.topic);
                }
            }
        }
        self.all.any.store(!state.list.is_empty(), Ordering::Release);
    }
}

impl Claim {
    pub(super) fn which(&self) -> &Which {
        &self.which
    }

    /// The server has answered, whatever it was.
    pub(super) fn is_answered(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    /// Has it in each session that begins from now on, unless it was unsubscribed meanwhile.
    pub(super) fn want(&self) {
        let mut state = self.all.state.lock();
        if let Some(subscription) = state.get(&self.which) {
            subscription.wanted = true;
            state.unwanted.remove(&self.which.topic);
        }
    }

    /// The server refuses it for good: only others who subscribe now may still have it. False: it was unsubscribed
    /// meanwhile, and perhaps subscribed to again.
    pub(super) fn forget(&self) -> bool {
        self.is_answered();
        let mut state = self.all.state.lock();
        let Some(subscription) = state.get(&self.which) else { return false };
        (subscription.held, subscription.pending) = (false, None);
        std::mem::take(&mut subscription.wanted)
    }

    /// The server answered on this connection: of what the application asked for it has sent what is up to here, and the
    /// client is to ask for the rest. False: the session is lost since.
    pub(super) fn hold_part(&self, connection: ConnectionId, reached: Position) -> bool {
        self.all.answered.store(true, Ordering::Release);
        let mut state = self.all.state.lock();
        let is_held = state.began.is_none_or(|began| began <= connection);
        // Unsubscribed meanwhile: there is nothing to ask for.
        let Some(subscription) = state.get(&self.which) else { return true };
        subscription.wanted = true;
        let is_beyond = |noted: &Position| noted.epoch == reached.epoch && reached.offset < noted.offset;
        let behind = subscription.position.as_ref().is_some_and(is_beyond);
        subscription.note(reached);
        if is_held {
            let missed = subscription.pending.is_some_and(|pending| pending.missed);
            subscription.pending = Some(Pending { from: Some(reached), missed, behind });
            state.unwanted.remove(&self.which.topic);
        }
        is_held
    }

    /// The server answered on this connection: it has the topic. `None`: the session is lost since. Otherwise whether
    /// messages are missing that sessions before it were to send.
    pub(super) fn hold(&self, connection: ConnectionId, subscribed: &Subscribed, asker: Asker) -> Option<bool> {
        self.all.answered.store(true, Ordering::Release);
        let mut state = self.all.state.lock();
        let held = state.began.is_none_or(|began| began <= connection);
        // Unsubscribed meanwhile: the client has nothing to tell of it.
        let Some(subscription) = state.get(&self.which) else { return (asker != Asker::Client).then_some(false) };
        (subscription.wanted, subscription.held) = (true, held);

        // What was missed before is still asked for, and not after this position.
        let still_asked = asker == Asker::Application && subscription.pending.is_some();
        if let Some(position) = subscribed.position
            && (subscribed.recovered || !still_asked)
        {
            subscription.note(position);
        }

        if !held {
            return None;
        }
        if asker == Asker::Client && !subscribed.recovered {
            subscription.holes = Holes::default();
        }
        let pending = if still_asked { None } else { subscription.pending.take() };
        state.unwanted.remove(&self.which.topic);
        Some(pending.is_some_and(|pending| pending.missed))
    }
}

impl Subscriptions {
    /// True once the server has taken a subscription.
    pub(super) fn were_answered(&self) -> bool {
        self.answered.load(Ordering::Acquire)
    }

    /// With these as soon as there is a session, and in each one after it.
    pub(super) fn wanting(topics: impl IntoIterator<Item = Arc<str>>) -> Self {
        let this = Self::default();
        topics.into_iter().for_each(|topic| this.want(&topic));
        this
    }

    /// Has this one in each session that begins from now on. The present one is the caller's business.
    pub(super) fn want(&self, topic: &str) {
        let mut state = self.state.lock();
        state.entry(topic).wanted = true;
        state.unwanted.remove(topic);
        self.any.store(true, Ordering::Release);
    }

    /// The application subscribes. Positions of the topic are noted from now on: its messages may come before the reply.
    pub(super) fn begin_subscribe(self: &Arc<Self>, topic: &str) -> Subscribing {
        let mut state = self.state.lock();
        let topic: Arc<str> = topic.into();
        let subscription = state.entry(&topic);
        subscription.claims += 1;
        let which = Which { topic: Arc::clone(&topic), number: subscription.number };
        self.any.store(true, Ordering::Release);
        let place = self.lines.join(topic);
        Subscribing { claim: Claim { all: Arc::clone(self), which, answered: false.into() }, place }
    }

    /// The client itself subscribes to what the session does not have, from where it is, if that is still wanted.
    pub(super) fn claim(self: &Arc<Self>, topic: &str) -> Option<(Claim, Option<Position>)> {
        let mut state = self.state.lock();
        let (topic, _) = state.list.get_key_value(topic)?;
        let topic = Arc::clone(topic);
        let subscription = state.list.get_mut(&topic)?;
        let is_missing = !subscription.held || subscription.pending.is_some();
        let from = subscription.from().filter(|_| is_missing)?;
        subscription.claims += 1;
        let which = Which { topic, number: subscription.number };
        Some((Claim { all: Arc::clone(self), which, answered: false.into() }, from))
    }

    /// The application wants this no more. Until the server has said that it does not have it, a session that is resumed
    /// may.
    pub(super) fn begin_unsubscribe(self: &Arc<Self>, topic: &str) -> Unsubscribing {
        let mut state = self.state.lock();
        let topic: Arc<str> = topic.into();
        state.list.remove(&topic);
        self.any.store(!state.list.is_empty(), Ordering::Release);
        let number = state.end(&topic);
        let place = self.lines.join(Arc::clone(&topic));
        Unsubscribing { all: Arc::clone(self), which: Which { topic, number }, place }
    }

    /// The client itself gives up a subscription. False: the application has done so before.
    pub(super) fn give_up(&self, which: &Which) -> bool {
        let mut state = self.state.lock();
        let Some(subscription) = state.get(which) else { return false };
        if 0 < subscription.claims {
            // The application subscribes this moment: that counts.
            (subscription.held, subscription.pending) = (false, None);
            return std::mem::take(&mut subscription.wanted);
        }
        state.list.remove(&which.topic);
        self.any.store(!state.list.is_empty(), Ordering::Release);
        state.end(&which.topic);
        true
    }

    /// A place in line for the client itself, which looks again when it has its turn.
    pub(super) fn join(&self, topic: &Arc<str>) -> Place {
        self.lines.join(Arc::clone(topic))
    }

    /// Which unsubscription the server is still to be told: none that it was told, and none before a newer wish.
    pub(super) fn unwanted(&self, topic: &Arc<str>) -> Option<Which> {
        let state = self.state.lock();
        let number = *state.unwanted.get(topic).filter(|_| !state.list.contains_key(topic))?;
        Some(Which { topic: Arc::clone(topic), number })
    }

    /// The server does not have it any more, since this unsubscription.
    pub(super) fn has_ended(&self, which: &Which) {
        let mut state = self.state.lock();
        if state.unwanted.get(&which.topic).is_some_and(|number| *number <= which.number) {
            state.unwanted.remove(&which.topic);
        }
    }

    /// A message came, for the first time.
    pub(super) fn note(&self, metadata: impl FnOnce() -> Metadata) {
        self.note_if(metadata, |_, _, _| true);
    }

    /// A message came that nobody keeps for this client. An application could have written its pairs, and what was before
    /// it may still come: it is believed only if it is the next one.
    pub(super) fn note_fired(&self, metadata: impl FnOnce() -> Metadata) {
        self.note_if(metadata, |before, position, previous| {
            let before = before.map(|before| (before.epoch, before.offset));
            before == Some((position.epoch, previous)) && previous < position.offset
        });
    }

    /// A message came with these pairs, which count if this says so of where its topic was and where the message stands.
    fn note_if(
        &self,
        metadata: impl FnOnce() -> Metadata,
        counts: impl FnOnce(Option<Position>, Position, u64) -> bool,
    ) {
        if !self.any.load(Ordering::Acquire) {
            return;
        }
        let metadata = metadata();
        if let (Some(topic), Some(place)) = (metadata.get(keys::TOPIC), TopicPlace::of(&metadata))
            && let TopicPlace { position, previous } = place
            && let Some(subscription) = self.state.lock().list.get_mut(topic)
            && counts(subscription.position, position, previous)
        {
            subscription.note_message(position, previous);
        }
    }

    /// A connection stands, with the session that the one before had or with a new one. Returns what is to be done.
    pub(super) fn begin(&self, connection: ConnectionId, resumed: bool) -> ToDo {
        let mut state = self.state.lock();
        state.newest = Some(connection);
        if !resumed {
            state.began = Some(connection);
            state.list.values_mut().for_each(Subscription::lose_session);
            state.unwanted.clear();
        }
        let wanted = || state.list.iter().filter(|(_, subscription)| subscription.wanted);
        let names = |topic: (&Arc<str>, &Subscription)| Arc::clone(topic.0);
        let with_history = |s: &Subscription| s.pending.is_some_and(|pending| pending.from.is_some());
        let missing = wanted().filter(|(_, s)| !s.held || s.pending.is_some());
        ToDo {
            missing: missing.map(|(topic, s)| (Arc::clone(topic), with_history(s))).collect(),
            with_gaps: wanted().filter(|(_, s)| s.held && s.pending.is_none() && 0 < s.gaps).map(names).collect(),
            unwanted: state.unwanted.keys().filter(|topic| !state.list.contains_key(*topic)).cloned().collect(),
        }
    }

    /// The server says on this connection that it dropped something. Returns the topics of which that may have been, and
    /// of which it is not being asked for.
    pub(super) fn miss(&self, connection: ConnectionId) -> Vec<Arc<str>> {
        let mut state = self.state.lock();
        // The reply to a call that subscribes may come after the notice.
        let held = state.list.iter_mut().filter(|(_, s)| 0 < s.claims || (s.held && s.position.is_some()));
        let missed = held.filter_map(|(topic, subscription)| {
            subscription.gaps += 1;
            (subscription.recovering != Some(connection)).then(|| Arc::clone(topic))
        });
        missed.collect()
    }

    /// Where a topic was of which the application wants what comes from now on, and that it has had before.
    pub(super) fn pending_from(&self, topic: &str) -> Option<Position> {
        let state = self.state.lock();
        state.list.get(topic).filter(|subscription| subscription.pending.is_some())?.from()?
    }

    /// A part of what was missed was sent or is on its way, up to here.
    pub(super) fn note_part(&self, which: &Which, reached: Option<Position>) {
        if let Some(pending) = self.state.lock().get(which).and_then(|s| s.pending.as_mut()) {
            pending.from = reached;
        }
    }

    pub(super) fn is_wanted(&self, which: &Which) -> bool {
        self.state.lock().get(which).is_some_and(|subscription| subscription.wanted)
    }

    /// No connection has stood since.
    pub(super) fn is_newest(&self, connection: ConnectionId) -> bool {
        self.state.lock().newest.is_none_or(|newest| newest == connection)
    }

    /// The server refuses it. True if that is to be told: once, until it lets the client in.
    pub(super) fn note_refusal(&self, which: &Which) -> bool {
        let mut state = self.state.lock();
        let Some(subscription) = state.get(which).filter(|subscription| subscription.wanted) else {
            return false;
        };
        !std::mem::replace(&mut subscription.refused, true)
    }

    /// The server does not refuse it any more. True if the application was told that it did.
    pub(super) fn end_refusal(&self, which: &Which) -> bool {
        let mut state = self.state.lock();
        state.get(which).is_some_and(|subscription| std::mem::take(&mut subscription.refused))
    }

    /// What was dropped is about to be asked for on this connection: `None` if somebody asks already.
    pub(super) fn begin_recovery(&self, connection: ConnectionId, topic: &Arc<str>) -> Option<Which> {
        let mut state = self.state.lock();
        let subscription = state.list.get_mut(topic)?;
        let which = Which { topic: Arc::clone(topic), number: subscription.number };
        (subscription.recovering.replace(connection) != Some(connection)).then_some(which)
    }

    /// What is to be asked for next, if that is known.
    pub(super) fn next_recovery(&self, which: &Which) -> Recovery {
        let mut state = self.state.lock();
        match state.get(which) {
            Some(subscription) if subscription.held && subscription.wanted => subscription.recovery(),
            Some(subscription) if 0 < subscription.claims => Recovery::Unknown,
            _ => Recovery::Over,
        }
    }

    /// What was dropped was asked for, as far as `gaps`, and is on its way or gone. False if the server has said since
    /// that it dropped more.
    pub(super) fn end_recovery(&self, which: &Which, gaps: u64, recovered: bool) -> bool {
        let mut state = self.state.lock();
        let Some(subscription) = state.get(which) else { return true };
        match recovered {
            true => subscription.holes.owe(),
            false => subscription.holes = Holes::default(),
        }
        if gaps == subscription.gaps {
            (subscription.gaps, subscription.recovering) = (0, None);
        }
        subscription.gaps == 0
    }

    /// Nobody asks any more on this connection.
    pub(super) fn leave_recovery(&self, connection: ConnectionId, which: &Which) {
        if let Some(subscription) = self.state.lock().get(which)
            && subscription.recovering == Some(connection)
        {
            subscription.recovering = None;
        }
    }

    pub(super) fn note_position(&self, which: &Which, position: Position) {
        if let Some(subscription) = self.state.lock().get(which) {
            subscription.note(position);
        }
    }

    /// The server may not have this topic any more. True if it is wanted.
    pub(super) fn lose(&self, topic: &str) -> bool {
        let mut state = self.state.lock();
        let wanted = state.list.get_mut(topic).filter(|subscription| subscription.wanted);
        wanted.map(|subscription| subscription.held = false).is_some()
    }
}

/// What was dropped, as far as it is known.
pub(super) enum Recovery {
    /// From where to ask, for so many gaps.
    From(Position, u64),
    /// The server has not answered yet to the call that subscribes.
    Unknown,
    /// Nothing that is kept.
    Over,
}

impl Subscription {
    /// Where to go on, if that is wanted. A new session is asked from where the topic was when it began; one that has
    /// had the topic, from what is missing.
    fn from(&self) -> Option<Option<Position>> {
        if !self.wanted {
            return None;
        }
        let first_missing = self.first_missing();
        let Some(Pending { from, behind, .. }) = self.pending else { return Some(first_missing) };
        if behind {
            return Some(from);
        }
        let goes_on = first_missing.zip(from).filter(|(reached, from)| reached.epoch == from.epoch);
        Some(goes_on.map_or(from, |(reached, from)| [from, reached].into_iter().max_by_key(|position| position.offset)))
    }

    fn recovery(&self) -> Recovery {
        // What is being asked for comes first: nothing that a gap cost is to overtake it.
        let behind = self.pending.filter(|pending| pending.behind).and_then(|pending| pending.from);
        let from = behind.or_else(|| self.first_missing());
        from.map_or(Recovery::Over, |position| Recovery::From(position, self.gaps))
    }

    /// The last message before the first one that is missing.
    fn first_missing(&self) -> Option<Position> {
        let position = self.position?;
        Some(Position { offset: self.holes.first().unwrap_or(position.offset), ..position })
    }
}

/// What a client does when a connection stands.
pub(super) struct ToDo {
    /// What the session does not have; and of which a position is known.
    pub(super) missing: Vec<(Arc<str>, bool)>,
    /// Of which it was not sent everything.
    pub(super) with_gaps: Vec<Arc<str>>,
    /// What it has and is not to have.
    pub(super) unwanted: Vec<Arc<str>>,
}

/// Subscribes by an ordinary call. `part`: what was missed may come in parts, for which the caller asks.
pub(super) async fn subscribe(
    caller: &impl Caller,
    topic: &str,
    from: Option<Position>,
    part: bool,
    mut options: CallOptions,
) -> Result<Answer, CallError> {
    options.is_own = true;
    let Position { epoch, offset } = from.unwrap_or(Position { epoch: 0, offset: 0 });
    let args = SubscribeArgs { topic: topic.to_owned(), epoch, offset, part, ordered: true };
    let reply = caller.call_typed::<_, SubscribeReply>(keys::CONTROL_PATH, keys::SUBSCRIBE, &args, options);
    Ok(reply.await?.value.into())
}

/// Unsubscribes by an ordinary call.
pub(super) async fn unsubscribe(caller: &impl Caller, topic: &str, mut options: CallOptions) -> Result<(), CallError> {
    options.is_own = true;
    let args = SubscribeArgs { topic: topic.to_owned(), ..SubscribeArgs::default() };
    caller.call_typed::<_, ()>(keys::CONTROL_PATH, keys::UNSUBSCRIBE, &args, options).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEWS: &str = "news";

    fn connection(number: u64) -> ConnectionId {
        format!("c{number}").parse().expect("a number")
    }

    fn at(offset: u64) -> Position {
        Position { epoch: 1, offset }
    }

    fn subscribed(offset: u64, recovered: bool) -> Subscribed {
        Subscribed { recovered, position: Some(at(offset)) }
    }

    fn message(offset: u64) -> Metadata {
        Metadata::new()
            .with(keys::TOPIC, NEWS)
            .with(keys::TOPIC_EPOCH, "1")
            .with(keys::TOPIC_OFFSET, offset.to_string())
    }

    /// Subscribed on this connection, at this offset.
    fn held(on: u64, offset: u64) -> Arc<Subscriptions> {
        let all = Arc::<Subscriptions>::default();
        all.begin(connection(on), false);
        let claim = all.begin_subscribe(NEWS).claim;
        assert_eq!(claim.hold(connection(on), &subscribed(offset, false), Asker::Application), Some(false));
        claim.is_answered();
        drop(claim);
        all
    }

    /// The present subscription to a topic; of another topic none.
    fn which(all: &Subscriptions, topic: &str) -> Which {
        let number = all.state.lock().list.get(topic).map_or(0, |subscription| subscription.number);
        Which { topic: topic.into(), number }
    }

    fn from_of(all: &Subscriptions, topic: &str) -> Option<Option<Position>> {
        all.state.lock().list.get(topic).and_then(Subscription::from)
    }

    fn names(topics: &[Arc<str>]) -> Vec<&str> {
        topics.iter().map(|topic| &**topic).collect()
    }

    /// What the position is from which a topic goes on.
    fn from(all: &Subscriptions) -> Option<u64> {
        from_of(all, NEWS).flatten().map(|position| position.offset)
    }

    #[test]
    fn positions_go_on_and_not_back() {
        let all = held(1, 5);
        assert_eq!(from(&all), Some(5));
        all.note_position(&which(&all, NEWS), at(7));
        assert_eq!(from(&all), Some(7));
        all.note_position(&which(&all, NEWS), at(6));
        assert_eq!(from(&all), Some(7), "not back");
        all.note_position(&which(&all, "another"), at(9));
        all.note(|| message(8));
        assert_eq!(from(&all), Some(8));
        all.note(|| message(11));
        assert_eq!(from(&all), Some(8), "two are missing");
        all.note_position(&which(&all, NEWS), Position { epoch: 2, offset: 1 });
        assert_eq!(from_of(&all, NEWS).flatten(), Some(Position { epoch: 2, offset: 1 }), "another life of the topic");
        assert!(from_of(&all, "another").is_none());
    }

    /// What the client asked for by itself and cannot have is not asked for again. What the application asks for anew, and
    /// what was recovered, leaves what is missing as it was.
    #[test]
    fn what_the_client_cannot_have_is_not_asked_for_again() {
        for (asker, recovered, expected) in
            [(Asker::Client, false, 11), (Asker::Client, true, 8), (Asker::Application, false, 8)]
        {
            let all = held(1, 8);
            all.note(|| message(11));
            assert_eq!(from(&all), Some(8), "two are missing");
            let claim = all.begin_subscribe(NEWS).claim;
            assert_eq!(claim.hold(connection(1), &subscribed(11, recovered), asker), Some(false));
            assert_eq!(from(&all), Some(expected), "{asker:?}, {recovered}");
        }
    }

    /// What was dropped is asked for by one on each connection.
    #[test]
    fn one_at_a_time_asks_for_what_was_dropped() {
        let all = held(1, 5);
        assert_eq!(names(&all.miss(connection(1))), [NEWS]);
        assert!(all.begin_recovery(connection(1), &NEWS.into()).is_some());
        assert!(all.begin_recovery(connection(1), &NEWS.into()).is_none(), "somebody asks already");
        assert_eq!(all.miss(connection(1)), [], "it is being asked for");
        assert_eq!(names(&all.miss(connection(2))), [NEWS], "not on this one");
        let Recovery::From(position, gaps) = all.next_recovery(&which(&all, NEWS)) else { panic!("it is known") };
        assert_eq!((position, gaps), (at(5), 3));
        assert!(!all.end_recovery(&which(&all, NEWS), 2, true), "more was dropped since");
        assert!(all.begin_recovery(connection(1), &NEWS.into()).is_none(), "and so it goes on");
        assert!(all.end_recovery(&which(&all, NEWS), 3, true));
        assert!(all.begin_recovery(connection(1), &NEWS.into()).is_some(), "the next one");
        all.leave_recovery(connection(2), &which(&all, NEWS));
        assert!(all.begin_recovery(connection(1), &NEWS.into()).is_none(), "that was another connection");
        all.leave_recovery(connection(1), &which(&all, NEWS));
        assert!(all.begin_recovery(connection(1), &NEWS.into()).is_some());
        assert!(
            all.begin_recovery(connection(2), &NEWS.into()).is_some(),
            "it is asked for anew on the next connection"
        );
        assert!(
            all.begin_recovery(connection(1), &"another".into()).is_none()
                && all.end_recovery(&which(&all, "another"), 0, true)
        );
    }

    /// A topic is asked for from its position, once the server has answered.
    #[test]
    fn what_is_not_answered_yet_has_no_position() {
        let all = Arc::<Subscriptions>::default();
        all.begin(connection(1), false);
        assert!(matches!(all.next_recovery(&which(&all, NEWS)), Recovery::Over));
        let claim = all.begin_subscribe(NEWS).claim;
        assert!(matches!(all.next_recovery(&which(&all, NEWS)), Recovery::Unknown));
        assert_eq!(names(&all.miss(connection(1))), [NEWS], "its answer may be behind the notice");
        assert!(!all.is_wanted(&which(&all, NEWS)), "the application was not told yet");
        drop(claim);
        assert!(all.unwanted(&NEWS.into()).is_some(), "the session may have it");
        assert!(matches!(all.next_recovery(&which(&all, NEWS)), Recovery::Over));
        assert_eq!(all.miss(connection(1)), []);
        all.has_ended(&all.unwanted(&NEWS.into()).expect("it may"));
        assert!(all.unwanted(&NEWS.into()).is_none());
        all.begin_subscribe(NEWS).claim.is_answered();
        assert!(all.unwanted(&NEWS.into()).is_none(), "it was refused");
    }

    /// With a new session all that is wanted is asked for again, from where it was; a resumed one has it.
    #[test]
    fn a_new_session_has_nothing_yet() {
        let all = held(1, 5);
        all.miss(connection(1));
        let resumed = all.begin(connection(2), true);
        assert_eq!((resumed.missing.len(), names(&resumed.with_gaps), resumed.unwanted.len()), (0, vec![NEWS], 0));
        assert!(all.is_newest(connection(2)) && !all.is_newest(connection(1)));
        assert_eq!(all.pending_from(NEWS), None);

        let begun = all.begin(connection(3), false);
        assert_eq!(begun.missing, [(Arc::from(NEWS), true)]);
        assert_eq!((begun.with_gaps.len(), all.pending_from(NEWS)), (0, Some(at(5))));
        assert!(matches!(all.next_recovery(&which(&all, NEWS)), Recovery::Over), "it is wanted, and not there");
        assert_eq!(names(&all.miss(connection(3))), [] as [&str; 0], "the new session does not have it");
        // A message that comes by another pattern moves nothing of that.
        all.note(|| message(9));
        assert_eq!(all.pending_from(NEWS), Some(at(5)));
        all.note_part(&which(&all, NEWS), Some(at(7)));
        assert_eq!(all.pending_from(NEWS), Some(at(7)));

        let (claim, _) = all.claim(NEWS).expect("it is missing");
        assert_eq!(claim.hold(connection(2), &subscribed(9, true), Asker::Client), None, "that session is lost");
        assert_eq!(claim.hold(connection(3), &subscribed(9, true), Asker::Client), Some(true), "some were missing");
        assert_eq!(claim.hold(connection(3), &subscribed(9, true), Asker::Client), Some(false), "it is told once");
        drop(claim);
        assert_eq!(all.begin(connection(4), true).missing, []);
    }

    /// Until the server has it no more, what the application has left is unwanted in a session that is resumed.
    #[test]
    fn what_is_left_is_unwanted_until_the_server_has_it_no_more() {
        let all = held(1, 5);
        assert!(all.is_wanted(&which(&all, NEWS)));
        drop(all.begin_unsubscribe(NEWS));
        assert!(!all.is_wanted(&which(&all, NEWS)) && all.unwanted(&NEWS.into()).is_some());
        assert_eq!(names(&all.begin(connection(2), true).unwanted), [NEWS]);
        assert_eq!(all.begin(connection(3), false).unwanted, [], "a new session never had it");
        drop(all.begin_unsubscribe(NEWS));
        all.want(NEWS);
        assert!(all.is_wanted(&which(&all, NEWS)) && all.unwanted(&NEWS.into()).is_none());
        assert!(all.begin_subscribe(NEWS).claim.forget());
        assert!(!all.is_wanted(&which(&all, NEWS)) && all.unwanted(&NEWS.into()).is_none());
        let wanting = Subscriptions::wanting([Arc::from(NEWS)]);
        assert_eq!(wanting.begin(connection(1), false).missing, [(Arc::from(NEWS), false)]);
    }

    /// A refusal is told once, until the server lets the client in.
    #[test]
    fn a_refusal_is_told_once() {
        let all = held(1, 5);
        assert_eq!([0; 2].map(|_| all.note_refusal(&which(&all, NEWS))), [true, false]);
        assert_eq!([0; 2].map(|_| all.end_refusal(&which(&all, NEWS))), [true, false]);
        assert!(
            all.note_refusal(&which(&all, NEWS))
                && !all.note_refusal(&which(&all, "another"))
                && !all.end_refusal(&which(&all, "another"))
        );
        assert!(all.lose(NEWS) && !all.lose("another"));
        assert_eq!(all.begin(connection(2), true).missing, [(Arc::from(NEWS), false)], "it is asked for again");
    }

    /// Messages are looked at only if something is subscribed to.
    #[test]
    fn what_nobody_wants_is_not_looked_at() {
        let all = Arc::<Subscriptions>::default();
        all.note(|| panic!("there is no subscription"));
        let all = held(1, 5);
        drop(all.begin_unsubscribe(NEWS));
        all.note(|| panic!("there is none any more"));
    }

    /// A session is lost before all of the one before it was asked for: only what is in another life of the topic by
    /// then is missing.
    #[test]
    fn what_was_pending_is_missed_in_another_life_of_the_topic() {
        for (epoch, missed) in [(1, false), (2, true)] {
            let all = held(1, 5);
            all.begin(connection(2), false);
            all.note_position(&which(&all, NEWS), Position { epoch, offset: 9 });
            all.begin(connection(3), false);
            let (claim, _) = all.claim(NEWS).expect("it is missing");
            assert_eq!(claim.hold(connection(3), &subscribed(9, true), Asker::Client), Some(missed), "{epoch}");
        }
    }

    /// Nothing is asked for of a topic that has no position: it keeps nothing.
    #[test]
    fn a_topic_without_a_position_is_not_asked_for() {
        let all = Arc::<Subscriptions>::default();
        all.begin(connection(1), false);
        let claim = all.begin_subscribe(NEWS).claim;
        let subscribed = Subscribed { recovered: false, position: None };
        assert_eq!(claim.hold(connection(1), &subscribed, Asker::Application), Some(false));
        claim.is_answered();
        drop(claim);
        assert_eq!(all.miss(connection(1)), []);
        let todo = all.begin(connection(2), true);
        assert_eq!((todo.missing.len(), todo.with_gaps.len()), (0, 0));
        assert_eq!(all.begin(connection(3), false).missing, [(Arc::from(NEWS), false)]);
    }

    /// An earlier answer does not move what the present session has.
    #[test]
    fn while_something_is_claimed_others_keep_it() {
        let all = held(1, 5);
        let (one, other) = (all.begin_subscribe(NEWS).claim, all.begin_subscribe("other").claim);
        other.is_answered();
        drop(other);
        drop(one);
        assert!(
            all.is_wanted(&which(&all, NEWS))
                && all.unwanted(&NEWS.into()).is_none()
                && all.unwanted(&"other".into()).is_none()
        );
        let (first, second) = (all.begin_subscribe("new").claim, all.begin_subscribe("new").claim);
        drop(first);
        assert!(matches!(all.next_recovery(&which(&all, "new")), Recovery::Unknown), "another call is under way");
        drop(second);
        assert!(
            matches!(all.next_recovery(&which(&all, "new")), Recovery::Over) && all.unwanted(&"new".into()).is_some()
        );
    }

    /// What is learned late of an earlier subscription, or of an earlier end of one, says nothing of the present one.
    #[test]
    fn what_is_learned_late_says_nothing_of_the_next() {
        let all = held(1, 5);
        let earlier = which(&all, NEWS);
        let first = all.begin_unsubscribe(NEWS);
        let again = all.begin_subscribe(NEWS);
        assert!(all.unwanted(&NEWS.into()).is_none(), "somebody subscribes");
        assert_eq!(again.claim.hold(connection(1), &subscribed(9, false), Asker::Application), Some(false));
        drop(again);
        assert!(!all.is_wanted(&earlier) && all.is_wanted(&which(&all, NEWS)));
        assert!(!all.give_up(&earlier) && !all.note_refusal(&earlier));
        all.note_position(&earlier, at(77));
        assert_eq!(from(&all), Some(9));

        let second = all.begin_unsubscribe(NEWS);
        first.has_ended();
        assert!(all.unwanted(&NEWS.into()).is_some(), "the newer one was not answered");
        second.has_ended();
        assert!(all.unwanted(&NEWS.into()).is_none());
    }

    /// What the client gives up is over, unless the application subscribes this moment: then only that counts.
    #[test]
    fn what_is_given_up_is_over_unless_somebody_subscribes() {
        let all = held(1, 5);
        let mine = which(&all, NEWS);
        assert!(all.give_up(&mine) && !all.is_wanted(&mine) && !all.give_up(&mine));
        assert!(!all.any.load(Ordering::Acquire));

        let (all, other) = (held(1, 5), "other");
        all.want(other);
        let mine = which(&all, other);
        assert!(all.give_up(&mine) && all.any.load(Ordering::Acquire), "there is another one");
        let claim = all.begin_subscribe(NEWS).claim;
        let mine = which(&all, NEWS);
        assert!(all.give_up(&mine), "it was wanted");
        assert!(!all.give_up(&mine), "only the call that is under way may still have it");
        assert_eq!(claim.hold(connection(1), &subscribed(9, false), Asker::Application), Some(false));
        assert!(all.is_wanted(&mine));
    }
}
