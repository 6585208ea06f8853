//! What a client has subscribed to, and how far it is in each topic.
//!
//! While a session lives or resumes its subscriptions live with it. Then positions are noted here; what the server says
//! that it dropped is asked for again; and what the application unsubscribed from while there was no connection is made
//! good. Each session begins with a connection, and connections are numbered: a reply of an earlier one says nothing of
//! the session that there is now.

use std::{
    collections::{BTreeMap, BTreeSet},
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
    session::{Answer, Position, SubscribeArgs, SubscribeReply, Subscribed},
};

/// Shared between the client, the reader of its connection, and the task that subscribes again.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    /// There is one at least: messages are looked at.
    any: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    list: BTreeMap<Arc<str>, Subscription>,
    /// The first connection of the present session.
    began: Option<ConnectionId>,
    /// The newest connection that stood: only on this one is anything asked for again.
    newest: Option<ConnectionId>,
    /// What the application has unsubscribed from, and the present session may still have.
    unwanted: BTreeSet<Arc<str>>,
    /// How many subscriptions have begun, to tell one from the next of the same topic.
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
    /// The subscription to a topic, which begins here if there is none.
    fn entry(&mut self, topic: &str) -> &mut Subscription {
        let begun = &mut self.begun;
        self.list.entry(topic.into()).or_insert_with(|| {
            *begun += 1;
            Subscription { number: *begun, ..Subscription::default() }
        })
    }
}

/// Where a topic was when its session began. Until it is asked for, messages that come by a wildcard move its position.
#[derive(Clone, Copy, Debug)]
struct Pending {
    from: Option<Position>,
    /// Messages of a session before this one are missing.
    missed: bool,
}

impl Subscription {
    /// Its session is lost, and with it what that was still to send.
    fn lose_session(&mut self) {
        let was_pending = self.pending.is_some_and(|pending| {
            let epoch = |position: Option<Position>| position.map(|position| position.epoch);
            pending.missed || (pending.from.is_some() && epoch(pending.from) != epoch(self.position))
        });
        let missed = 0 < self.gaps || self.holes.are_owed() || was_pending;
        self.pending = self.wanted.then_some(Pending { from: self.position, missed });
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
    fn note_message(&mut self, position: Position) {
        let before = self.position.filter(|noted| noted.epoch == position.epoch);
        self.note(position);
        let Some(before) = before else { return };
        self.holes.note(before.offset, position.offset);
        if self.pending.is_some() {
            self.holes.owe();
        }
    }
}

/// Who subscribes.
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
pub(super) struct Claim<'a> {
    all: &'a Subscriptions,
    topic: &'a str,
    /// Of which subscription it is: the topic may be unsubscribed from meanwhile, and subscribed to again.
    number: u64,
    /// The server has answered: what it has is known.
    answered: AtomicBool,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut state = self.all.state.lock();
        if let Some(subscription) = state.list.get_mut(self.topic).filter(|of| of.number == self.number) {
            subscription.claims = subscription.claims.saturating_sub(1);
            if subscription.claims == 0 && !subscription.wanted {
                state.list.remove(self.topic);
                if !*self.answered.get_mut() {
                    // The session may have it, and the application was not told so.
                    state.unwanted.insert(self.topic.into());
                }
            }
        }
        self.all.any.store(!state.list.is_empty(), Ordering::Release);
    }
}

impl Claim<'_> {
    /// The server has answered, whatever it was.
    pub(super) fn is_answered(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    /// The server refuses it for good. False: it was unsubscribed meanwhile, and perhaps subscribed to again.
    pub(super) fn forget(&self) -> bool {
        let mut state = self.all.state.lock();
        let is_mine = state.list.get(self.topic).is_some_and(|of| of.number == self.number);
        if is_mine {
            self.all.forget_in(&mut state, self.topic);
        }
        is_mine
    }

    /// The server answered on this connection: it has the topic. `None`: the session is lost since. Otherwise whether
    /// messages are missing that sessions before it were to send.
    pub(super) fn hold(&self, connection: ConnectionId, subscribed: &Subscribed, asker: Asker) -> Option<bool> {
        let mut state = self.all.state.lock();
        let held = state.began.is_none_or(|began| began <= connection);
        let mine = state.list.get_mut(self.topic).filter(|of| of.number == self.number);
        // Unsubscribed meanwhile: the client has nothing to tell of it.
        let Some(subscription) = mine else { return (asker != Asker::Client).then_some(false) };
        (subscription.wanted, subscription.held) = (true, held);
        // What was missed before is still asked for, and not behind this position.
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
        Some(pending.is_some_and(|pending| pending.missed))
    }
}

impl Subscriptions {
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

    /// Notes positions of a topic from now on: its messages may come before the reply.
    pub(super) fn claim<'a>(&'a self, topic: &'a str) -> Claim<'a> {
        let mut state = self.state.lock();
        let subscription = state.entry(topic);
        subscription.claims += 1;
        let number = subscription.number;
        self.any.store(true, Ordering::Release);
        Claim { all: self, topic, number, answered: false.into() }
    }

    pub(super) fn forget(&self, topic: &str) {
        self.forget_in(&mut self.state.lock(), topic);
    }

    fn forget_in(&self, state: &mut State, topic: &str) {
        state.list.remove(topic);
        self.any.store(!state.list.is_empty(), Ordering::Release);
    }

    /// As [`Self::claim`], because the application asks for it.
    pub(super) fn claim_wanted<'a>(&'a self, topic: &'a str) -> Claim<'a> {
        self.state.lock().unwanted.remove(topic);
        self.claim(topic)
    }

    /// The application wants this no more. Until [`Self::has_ended`] a session that is resumed may still have it.
    pub(super) fn end(&self, topic: &str) {
        let mut state = self.state.lock();
        self.forget_in(&mut state, topic);
        state.unwanted.insert(topic.into());
    }

    /// The server does not have it any more.
    pub(super) fn has_ended(&self, topic: &str) {
        self.state.lock().unwanted.remove(topic);
    }

    /// A message came, for the first time.
    pub(super) fn note(&self, metadata: impl FnOnce() -> Metadata) {
        if !self.any.load(Ordering::Acquire) {
            return;
        }
        let metadata = metadata();
        if let (Some(topic), Some(position)) = (metadata.get(keys::TOPIC), position(&metadata))
            && let Some(subscription) = self.state.lock().list.get_mut(topic)
        {
            subscription.note_message(position);
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
            unwanted: state.unwanted.iter().cloned().collect(),
        }
    }

    /// The server says on this connection that it dropped something. Returns the topics of which that may have been, and
    /// of which it is not being asked for.
    pub(super) fn miss(&self, connection: ConnectionId) -> Vec<Arc<str>> {
        let mut state = self.state.lock();
        // The answer to a call that subscribes may be behind the notice.
        let held = state.list.iter_mut().filter(|(_, s)| 0 < s.claims || (s.held && s.position.is_some()));
        let missed = held.filter_map(|(topic, subscription)| {
            subscription.gaps += 1;
            (subscription.recovering != Some(connection)).then(|| Arc::clone(topic))
        });
        missed.collect()
    }

    /// Where to go on, if that is still wanted. A new session is asked from where the topic was when it began; one that
    /// has had the topic, from what is missing.
    pub(super) fn from(&self, topic: &str) -> Option<Option<Position>> {
        let state = self.state.lock();
        let subscription = state.list.get(topic).filter(|subscription| subscription.wanted)?;
        let first_missing = subscription.first_missing();
        let Some(Pending { from, .. }) = subscription.pending else { return Some(first_missing) };
        let goes_on = first_missing.zip(from).filter(|(reached, from)| reached.epoch == from.epoch);
        Some(goes_on.map_or(from, |(reached, from)| Some(if from.offset < reached.offset { reached } else { from })))
    }

    /// Where a topic was of which the application wants what comes from now on, and that it has had before.
    pub(super) fn pending_from(&self, topic: &str) -> Option<Position> {
        let is_pending = self.state.lock().list.get(topic).is_some_and(|subscription| subscription.pending.is_some());
        if is_pending { self.from(topic)? } else { None }
    }

    /// A part of what was missed was sent or is on its way, up to here.
    pub(super) fn note_part(&self, topic: &str, reached: Option<Position>) {
        if let Some(pending) = self.state.lock().list.get_mut(topic).and_then(|s| s.pending.as_mut()) {
            pending.from = reached;
        }
    }

    pub(super) fn is_wanted(&self, topic: &str) -> bool {
        self.state.lock().list.get(topic).is_some_and(|subscription| subscription.wanted)
    }

    /// The session may have it, and is not to.
    pub(super) fn is_unwanted(&self, topic: &str) -> bool {
        self.state.lock().unwanted.contains(topic)
    }

    /// No connection has stood since.
    pub(super) fn is_newest(&self, connection: ConnectionId) -> bool {
        self.state.lock().newest.is_none_or(|newest| newest == connection)
    }

    /// The server refuses it. True if that is to be told: once, until it lets the client in.
    pub(super) fn note_refusal(&self, topic: &str) -> bool {
        let mut state = self.state.lock();
        let Some(subscription) = state.list.get_mut(topic).filter(|subscription| subscription.wanted) else {
            return false;
        };
        !std::mem::replace(&mut subscription.refused, true)
    }

    /// The server does not refuse it any more. True if the application was told that it did.
    pub(super) fn end_refusal(&self, topic: &str) -> bool {
        let mut state = self.state.lock();
        state.list.get_mut(topic).is_some_and(|subscription| std::mem::take(&mut subscription.refused))
    }

    /// What was dropped is about to be asked for on this connection: `false` if somebody asks already.
    pub(super) fn begin_recovery(&self, connection: ConnectionId, topic: &str) -> bool {
        let mut state = self.state.lock();
        let Some(subscription) = state.list.get_mut(topic) else { return false };
        subscription.recovering.replace(connection) != Some(connection)
    }

    /// What is to be asked for next, if that is known.
    pub(super) fn next_recovery(&self, topic: &str) -> Recovery {
        let state = self.state.lock();
        match state.list.get(topic) {
            Some(subscription) if subscription.held && subscription.wanted => subscription.recovery(),
            Some(subscription) if 0 < subscription.claims => Recovery::Unknown,
            _ => Recovery::Over,
        }
    }

    /// What was dropped was asked for, as far as `gaps`, and is on its way or gone. False if the server has said since
    /// that it dropped more.
    pub(super) fn end_recovery(&self, topic: &str, gaps: u64, recovered: bool) -> bool {
        let mut state = self.state.lock();
        let Some(subscription) = state.list.get_mut(topic) else { return true };
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
    pub(super) fn leave_recovery(&self, connection: ConnectionId, topic: &str) {
        if let Some(subscription) = self.state.lock().list.get_mut(topic)
            && subscription.recovering == Some(connection)
        {
            subscription.recovering = None;
        }
    }

    pub(super) fn note_position(&self, topic: &str, position: Position) {
        if let Some(subscription) = self.state.lock().list.get_mut(topic) {
            subscription.note(position);
        }
    }

    /// The server does not have this topic any more. True if it is wanted.
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
    fn recovery(&self) -> Recovery {
        self.first_missing().map_or(Recovery::Over, |position| Recovery::From(position, self.gaps))
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

/// The position of a message within its topic.
pub(super) fn position(metadata: &Metadata) -> Option<Position> {
    let number = |key| metadata.get(key)?.parse().ok();
    Some(Position { epoch: number(keys::TOPIC_EPOCH)?, offset: number(keys::TOPIC_OFFSET)? })
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
    fn held(on: u64, offset: u64) -> Subscriptions {
        let all = Subscriptions::default();
        all.begin(connection(on), false);
        let claim = all.claim_wanted(NEWS);
        assert_eq!(claim.hold(connection(on), &subscribed(offset, false), Asker::Application), Some(false));
        claim.is_answered();
        drop(claim);
        all
    }

    fn names(topics: &[Arc<str>]) -> Vec<&str> {
        topics.iter().map(|topic| &**topic).collect()
    }

    /// What the position is from which a topic goes on.
    fn from(all: &Subscriptions) -> Option<u64> {
        all.from(NEWS).flatten().map(|position| position.offset)
    }

    #[test]
    fn positions_go_on_and_not_back() {
        let all = held(1, 5);
        assert_eq!(from(&all), Some(5));
        all.note_position(NEWS, at(7));
        assert_eq!(from(&all), Some(7));
        all.note_position(NEWS, at(6));
        assert_eq!(from(&all), Some(7), "not back");
        all.note_position("another", at(9));
        all.note(|| message(8));
        assert_eq!(from(&all), Some(8));
        all.note(|| message(11));
        assert_eq!(from(&all), Some(8), "two are missing");
        all.note_position(NEWS, Position { epoch: 2, offset: 1 });
        assert_eq!(all.from(NEWS).flatten(), Some(Position { epoch: 2, offset: 1 }), "another life of the topic");
        assert!(all.from("another").is_none());
    }

    /// What was dropped is asked for by one on each connection.
    #[test]
    fn one_at_a_time_asks_for_what_was_dropped() {
        let all = held(1, 5);
        assert_eq!(names(&all.miss(connection(1))), [NEWS]);
        assert!(all.begin_recovery(connection(1), NEWS));
        assert!(!all.begin_recovery(connection(1), NEWS), "somebody asks already");
        assert_eq!(all.miss(connection(1)), [], "it is being asked for");
        assert_eq!(names(&all.miss(connection(2))), [NEWS], "not on this one");
        let Recovery::From(position, gaps) = all.next_recovery(NEWS) else { panic!("it is known") };
        assert_eq!((position, gaps), (at(5), 3));
        assert!(!all.end_recovery(NEWS, 2, true), "more was dropped since");
        assert!(!all.begin_recovery(connection(1), NEWS), "and so it goes on");
        assert!(all.end_recovery(NEWS, 3, true));
        assert!(all.begin_recovery(connection(1), NEWS), "the next one");
        all.leave_recovery(connection(2), NEWS);
        assert!(!all.begin_recovery(connection(1), NEWS), "that was another connection");
        all.leave_recovery(connection(1), NEWS);
        assert!(all.begin_recovery(connection(1), NEWS));
        assert!(all.begin_recovery(connection(2), NEWS), "it is asked for anew on the next connection");
        assert!(!all.begin_recovery(connection(1), "another") && all.end_recovery("another", 0, true));
    }

    /// A topic is asked for by whoever knows where it stands, once the server has answered.
    #[test]
    fn what_is_not_answered_yet_has_no_position() {
        let all = Subscriptions::default();
        all.begin(connection(1), false);
        assert!(matches!(all.next_recovery(NEWS), Recovery::Over));
        let claim = all.claim_wanted(NEWS);
        assert!(matches!(all.next_recovery(NEWS), Recovery::Unknown));
        assert_eq!(names(&all.miss(connection(1))), [NEWS], "its answer may be behind the notice");
        assert!(!all.is_wanted(NEWS), "the application was not told yet");
        drop(claim);
        assert!(all.is_unwanted(NEWS), "the session may have it");
        assert!(matches!(all.next_recovery(NEWS), Recovery::Over));
        assert_eq!(all.miss(connection(1)), []);
        all.has_ended(NEWS);
        assert!(!all.is_unwanted(NEWS));
        all.claim_wanted(NEWS).is_answered();
        assert!(!all.is_unwanted(NEWS), "it was refused");
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
        assert!(matches!(all.next_recovery(NEWS), Recovery::Over), "it is wanted, and not there");
        assert_eq!(names(&all.miss(connection(3))), [] as [&str; 0], "the new session does not have it");
        // A message that comes by another pattern moves nothing of that.
        all.note(|| message(9));
        assert_eq!(all.pending_from(NEWS), Some(at(5)));
        all.note_part(NEWS, Some(at(7)));
        assert_eq!(all.pending_from(NEWS), Some(at(7)));

        let claim = all.claim(NEWS);
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
        assert!(all.is_wanted(NEWS));
        all.end(NEWS);
        assert!(!all.is_wanted(NEWS) && all.is_unwanted(NEWS));
        assert_eq!(names(&all.begin(connection(2), true).unwanted), [NEWS]);
        assert_eq!(all.begin(connection(3), false).unwanted, [], "a new session never had it");
        all.end(NEWS);
        all.want(NEWS);
        assert!(all.is_wanted(NEWS) && !all.is_unwanted(NEWS));
        all.forget(NEWS);
        assert!(!all.is_wanted(NEWS) && !all.is_unwanted(NEWS));
        let wanting = Subscriptions::wanting([Arc::from(NEWS)]);
        assert_eq!(wanting.begin(connection(1), false).missing, [(Arc::from(NEWS), false)]);
    }

    /// A refusal is told once, until the server lets the client in.
    #[test]
    fn a_refusal_is_told_once() {
        let all = held(1, 5);
        assert_eq!([0; 2].map(|_| all.note_refusal(NEWS)), [true, false]);
        assert_eq!([0; 2].map(|_| all.end_refusal(NEWS)), [true, false]);
        assert!(all.note_refusal(NEWS) && !all.note_refusal("another") && !all.end_refusal("another"));
        assert!(all.lose(NEWS) && !all.lose("another"));
        assert_eq!(all.begin(connection(2), true).missing, [(Arc::from(NEWS), false)], "it is asked for again");
    }

    /// Messages are looked at only if something is subscribed to.
    #[test]
    fn what_nobody_wants_is_not_looked_at() {
        let all = Subscriptions::default();
        all.note(|| panic!("there is no subscription"));
        let all = held(1, 5);
        all.end(NEWS);
        all.note(|| panic!("there is none any more"));
    }

    /// A session is lost before all of the one before it was asked for: only what is in another life of the topic by
    /// then is missing.
    #[test]
    fn what_was_pending_is_missed_in_another_life_of_the_topic() {
        for (epoch, missed) in [(1, false), (2, true)] {
            let all = held(1, 5);
            all.begin(connection(2), false);
            all.note_position(NEWS, Position { epoch, offset: 9 });
            all.begin(connection(3), false);
            let claim = all.claim(NEWS);
            assert_eq!(claim.hold(connection(3), &subscribed(9, true), Asker::Client), Some(missed), "{epoch}");
        }
    }

    /// Nothing is asked for of a topic that has no position: it keeps nothing.
    #[test]
    fn a_topic_without_a_position_is_not_asked_for() {
        let all = Subscriptions::default();
        all.begin(connection(1), false);
        let claim = all.claim_wanted(NEWS);
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
        let (one, other) = (all.claim(NEWS), all.claim("other"));
        other.is_answered();
        drop(other);
        drop(one);
        assert!(all.is_wanted(NEWS) && !all.is_unwanted(NEWS) && !all.is_unwanted("other"));
        let (first, second) = (all.claim("new"), all.claim("new"));
        drop(first);
        assert!(matches!(all.next_recovery("new"), Recovery::Unknown), "another call is under way");
        drop(second);
        assert!(matches!(all.next_recovery("new"), Recovery::Over) && all.is_unwanted("new"));
    }
}
