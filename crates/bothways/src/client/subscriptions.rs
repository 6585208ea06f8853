//! What a client has subscribed to, and how far it is: subscribes again by itself when its session is lost.
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
    time::Duration,
};

use bothways_proto::{Metadata, keys};
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::events::{ConnectionEvent, EventSender};
use crate::{
    caller::{CallOptions, Caller},
    connection::{Connection, ConnectionId},
    error::CallError,
    session::{Answer, Position, SubscribeArgs, SubscribeReply, Subscribed},
};

/// Subscriptions that are made again at once: enough to hide the way there and back, few enough for a server to
/// which many clients come back.
const AT_ONCE: usize = 64;

/// How long one may take if calls have no time of their own.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How long is waited at first, and at most, before what found no room in the session is asked for again.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

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
    /// What the application has unsubscribed from, and the present session may still have.
    unwanted: BTreeSet<Arc<str>>,
}

#[derive(Debug, Default)]
struct Subscription {
    position: Option<Position>,
    /// Where the first message was missing, of this epoch: it was dropped, or had expired.
    hole: Option<u64>,
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

impl Subscription {
    /// Goes on to a position, and back only into another life of the topic.
    fn note(&mut self, position: Position) {
        match &mut self.position {
            Some(noted) if noted.epoch == position.epoch => noted.offset = noted.offset.max(position.offset),
            noted => (*noted, self.hole) = (Some(position), None),
        }
    }

    /// A message came. What is missing before it is remembered.
    fn note_message(&mut self, position: Position) {
        let before = self.position.filter(|noted| noted.epoch == position.epoch);
        self.note(position);
        let Some(before) = before else { return };
        match self.hole {
            Some(hole) if hole + 1 == position.offset => {
                self.hole = (position.offset < before.offset).then_some(position.offset);
            }
            None if before.offset + 1 < position.offset => self.hole = Some(before.offset),
            _ => {}
        }
    }
}

/// A call that subscribes is under way. Without success nothing is left of it.
pub(super) struct Claim<'a> {
    all: &'a Subscriptions,
    topic: &'a str,
    /// The server has answered: what it has is known.
    answered: AtomicBool,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut state = self.all.state.lock();
        if let Some(subscription) = state.list.get_mut(self.topic) {
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

    /// The server answered on this connection. False: its session is lost since. `is_whole`: it is subscribed, and not
    /// only sent a part of what came before.
    pub(super) fn hold(&self, connection: ConnectionId, subscribed: &Subscribed, is_whole: bool) -> bool {
        let mut state = self.all.state.lock();
        let held = state.began.is_none_or(|began| began <= connection);
        // Not there: unsubscribed meanwhile.
        let Some(subscription) = state.list.get_mut(self.topic) else { return true };
        subscription.wanted = true;
        subscription.held = held && is_whole;
        if let Some(position) = subscribed.position {
            subscription.note(position);
        }
        held
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
        state.list.entry(topic.into()).or_default().wanted = true;
        state.unwanted.remove(topic);
        self.any.store(true, Ordering::Release);
    }

    /// Notes positions of a topic from now on: its messages may come before the reply.
    pub(super) fn claim<'a>(&'a self, topic: &'a str) -> Claim<'a> {
        let mut state = self.state.lock();
        state.list.entry(topic.into()).or_default().claims += 1;
        self.any.store(true, Ordering::Release);
        Claim { all: self, topic, answered: false.into() }
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
    fn begin(&self, connection: ConnectionId, resumed: bool) -> ToDo {
        let mut state = self.state.lock();
        if !resumed {
            state.began = Some(connection);
            state.list.values_mut().for_each(|subscription| subscription.held = false);
            state.unwanted.clear();
        }
        let wanted = || state.list.iter().filter(|(_, subscription)| subscription.wanted);
        let names = |topic: (&Arc<str>, &Subscription)| Arc::clone(topic.0);
        ToDo {
            missing: wanted().filter(|(_, subscription)| !subscription.held).map(names).collect(),
            with_gaps: wanted().filter(|(_, s)| s.held && 0 < s.gaps).map(names).collect(),
            unwanted: state.unwanted.iter().cloned().collect(),
        }
    }

    /// The server says on this connection that it dropped something. Returns the topics of which that may have been, and
    /// of which it is not being asked for.
    fn miss(&self, connection: ConnectionId) -> Vec<Arc<str>> {
        let mut state = self.state.lock();
        // The answer to a call that subscribes may be behind the notice.
        let held = state.list.iter_mut().filter(|(_, s)| 0 < s.claims || (s.held && s.position.is_some()));
        let missed = held.filter_map(|(topic, subscription)| {
            subscription.gaps += 1;
            (subscription.recovering != Some(connection)).then(|| Arc::clone(topic))
        });
        missed.collect()
    }

    /// Where to go on, if that is still wanted.
    fn position_of(&self, topic: &str) -> Option<Option<Position>> {
        self.state.lock().list.get(topic).filter(|subscription| subscription.wanted).map(|s| s.position)
    }

    /// What was dropped is about to be asked for on this connection: `false` if somebody asks already.
    fn begin_recovery(&self, connection: ConnectionId, topic: &str) -> bool {
        let mut state = self.state.lock();
        let Some(subscription) = state.list.get_mut(topic) else { return false };
        subscription.recovering.replace(connection) != Some(connection)
    }

    /// What is to be asked for next, if that is known.
    fn next_recovery(&self, topic: &str) -> Recovery {
        let state = self.state.lock();
        match state.list.get(topic) {
            Some(subscription) if subscription.held && subscription.wanted => subscription.recovery(),
            Some(subscription) if 0 < subscription.claims => Recovery::Unknown,
            _ => Recovery::Over,
        }
    }

    /// What was dropped was asked for, as far as `gaps`. False if the server has said since that it dropped more.
    fn end_recovery(&self, topic: &str, gaps: u64) -> bool {
        let mut state = self.state.lock();
        let Some(subscription) = state.list.get_mut(topic) else { return true };
        if gaps == subscription.gaps {
            (subscription.gaps, subscription.hole, subscription.recovering) = (0, None, None);
        }
        subscription.gaps == 0
    }

    /// Nobody asks any more on this connection.
    fn leave_recovery(&self, connection: ConnectionId, topic: &str) {
        if let Some(subscription) = self.state.lock().list.get_mut(topic)
            && subscription.recovering == Some(connection)
        {
            subscription.recovering = None;
        }
    }

    fn note_position(&self, topic: &str, position: Position) {
        if let Some(subscription) = self.state.lock().list.get_mut(topic) {
            subscription.note(position);
        }
    }

    /// The server does not have this topic any more. True if it is wanted.
    fn lose(&self, topic: &str) -> bool {
        let mut state = self.state.lock();
        let wanted = state.list.get_mut(topic).filter(|subscription| subscription.wanted);
        wanted.map(|subscription| subscription.held = false).is_some()
    }

    /// A new session has this topic: what the old one was not sent is gone. True if it was told that something was.
    fn take_gaps(&self, topic: &str) -> bool {
        let mut state = self.state.lock();
        let subscription = state.list.get_mut(topic);
        subscription.is_some_and(|s| std::mem::take(&mut s.gaps) != 0)
    }
}

/// What was dropped, as far as it is known.
enum Recovery {
    /// From where to ask, for so many gaps.
    From(Position, u64),
    /// The server has not answered yet to the call that subscribes.
    Unknown,
    /// Nothing that is kept.
    Over,
}

impl Subscription {
    fn recovery(&self) -> Recovery {
        match self.position {
            Some(position) => {
                let offset = self.hole.unwrap_or(position.offset);
                Recovery::From(Position { offset, ..position }, self.gaps)
            }
            None => Recovery::Over,
        }
    }
}

/// What a client does when a connection stands.
struct ToDo {
    /// What the session does not have.
    missing: Vec<Arc<str>>,
    /// Of which it was not sent everything.
    with_gaps: Vec<Arc<str>>,
    /// What it has and is not to have.
    unwanted: Vec<Arc<str>>,
}

/// Why a topic is subscribed to by the client itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Why {
    /// The session is new.
    Lost,
    /// The server has ended what the application wants again.
    Ended,
    /// The server dropped something.
    Gap,
    /// The application does not want it, and unsubscribed while there was no connection.
    Unwanted,
}

/// The position of a message within its topic.
pub(super) fn position(metadata: &Metadata) -> Option<Position> {
    let number = |key| metadata.get(key)?.parse().ok();
    Some(Position { epoch: number(keys::TOPIC_EPOCH)?, offset: number(keys::TOPIC_OFFSET)? })
}

/// Subscribes again.
#[derive(Clone)]
pub(super) struct Resubscriber {
    pub(super) server: Arc<str>,
    pub(super) subscriptions: Arc<Subscriptions>,
    pub(super) events: EventSender,
    pub(super) timeout: Option<Duration>,
}

impl Resubscriber {
    /// A connection stands; see [`Subscriptions::begin`]. What its session does not have is subscribed to in the
    /// background. Must be called within a tokio runtime.
    pub(super) fn begin(&self, connection: &Connection, resumed: bool) {
        let ToDo { missing, with_gaps, unwanted } = self.subscriptions.begin(connection.id(), resumed);
        let with = |why: Why| move |topic: Arc<str>| (topic, why);
        let all = unwanted.into_iter().map(with(Why::Unwanted));
        let all = all.chain(missing.into_iter().map(with(Why::Lost)));
        self.run(connection, all.chain(with_gaps.into_iter().map(with(Why::Gap))).collect());
    }

    /// The server has said that it dropped something. What may be missing of topics with history is asked for.
    pub(super) fn handle_gap(&self, connection: &Connection) {
        let missed = self.subscriptions.miss(connection.id());
        self.run(connection, missed.into_iter().map(|topic| (topic, Why::Gap)).collect());
    }

    fn run(&self, connection: &Connection, all: Vec<(Arc<str>, Why)>) {
        if all.is_empty() {
            return;
        }
        let (this, connection) = (self.clone(), connection.clone());
        tokio::spawn(async move {
            let mut running = JoinSet::new();
            for (topic, why) in all {
                if AT_ONCE <= running.len() {
                    running.join_next().await;
                }
                let (this, connection) = (this.clone(), connection.clone());
                running.spawn(async move {
                    match why {
                        Why::Lost | Why::Ended => this.resubscribe(&connection, topic, why).await,
                        Why::Gap => this.recover(&connection, topic).await,
                        Why::Unwanted => this.unsubscribe(&connection, topic).await,
                    }
                });
            }
            while running.join_next().await.is_some() {}
        });
    }

    fn options(&self) -> CallOptions {
        CallOptions::new().timeout(self.timeout.unwrap_or(TIMEOUT))
    }

    /// Asks for everything behind a position, part by part as the session has room. Returns the last answer; `None` if
    /// the application does not want the topic any more.
    async fn ask(
        &self,
        connection: &Connection,
        topic: &str,
        mut from: Option<Position>,
    ) -> Result<Option<Subscribed>, CallError> {
        let mut pause = PAUSE_MIN;
        loop {
            let answer = subscribe(connection, topic, from, true, self.options()).await?;
            if self.subscriptions.position_of(topic).is_none() {
                // Unsubscribed meanwhile; if that call was overtaken, it is made good here.
                self.unsubscribe(connection, topic.into()).await;
                return Ok(None);
            }
            if !answer.more && !answer.later {
                return Ok(Some(answer.subscribed));
            }
            if answer.more {
                (from, pause) = (answer.subscribed.position, PAUSE_MIN);
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(PAUSE_MAX);
        }
    }

    async fn resubscribe(&self, connection: &Connection, topic: Arc<str>, why: Why) {
        let Some(from) = self.subscriptions.position_of(&topic) else { return };
        let claim = self.subscriptions.claim(&topic);
        let server = Arc::clone(&self.server);
        match self.ask(connection, &topic, from).await {
            Ok(None) => {}
            Ok(Some(subscribed)) => {
                if claim.hold(connection.id(), &subscribed, true) {
                    drop(claim);
                    let had_gaps = why == Why::Lost && self.subscriptions.take_gaps(&topic);
                    let recovered = subscribed.recovered && !had_gaps;
                    if why == Why::Lost || !recovered {
                        self.events.tell(&ConnectionEvent::Resubscribed { server, topic, recovered });
                    }
                }
            }
            // The next connection begins anew.
            Err(CallError::Closed { .. } | CallError::NotConnected(_)) => {}
            Err(error) => {
                drop(claim);
                self.subscriptions.forget(&topic);
                self.events.tell(&ConnectionEvent::SubscriptionLost { server, topic, error });
            }
        }
    }

    /// Asks for what the server dropped, until it is sent or gone.
    async fn recover(&self, connection: &Connection, topic: Arc<str>) {
        if !self.subscriptions.begin_recovery(connection.id(), &topic) {
            return;
        }
        let server = Arc::clone(&self.server);
        let mut recovered = true;
        loop {
            match self.subscriptions.next_recovery(&topic) {
                Recovery::Over => break,
                Recovery::Unknown if connection.is_closed() => break,
                Recovery::Unknown => {}
                Recovery::From(position, gaps) => match self.ask(connection, &topic, Some(position)).await {
                    Ok(None) => break,
                    Ok(Some(subscribed)) => {
                        recovered &= subscribed.recovered;
                        if let Some(position) = subscribed.position {
                            self.subscriptions.note_position(&topic, position);
                        }
                        if self.subscriptions.end_recovery(&topic, gaps) {
                            break;
                        }
                    }
                    // The next connection asks again.
                    Err(CallError::Closed { .. } | CallError::NotConnected(_)) => break,
                    Err(error @ CallError::Remote { .. }) => {
                        // It may not have the topic any more: then it does not have a part of it either.
                        self.subscriptions.end(&topic);
                        self.unsubscribe(connection, Arc::clone(&topic)).await;
                        return self.events.tell(&ConnectionEvent::SubscriptionLost { server, topic, error });
                    }
                    Err(error) => tracing::debug!(server = &*self.server, topic = &*topic, %error, "asks again"),
                },
            }
            tokio::time::sleep(PAUSE_MIN).await;
        }
        self.subscriptions.leave_recovery(connection.id(), &topic);
        if !recovered {
            self.events.tell(&ConnectionEvent::Resubscribed { server, topic, recovered });
        }
    }

    /// The application does not want it: the session is not to have it.
    async fn unsubscribe(&self, connection: &Connection, topic: Arc<str>) {
        match unsubscribe(connection, &topic, self.options()).await {
            Ok(()) => self.subscriptions.has_ended(&topic),
            Err(error) => {
                tracing::debug!(server = &*self.server, topic = &*topic, %error, "could not unsubscribe");
            }
        }
        // The application may have subscribed again meanwhile, before this call came to the server.
        if self.subscriptions.lose(&topic) {
            Box::pin(self.resubscribe(connection, topic, Why::Ended)).await;
        }
    }
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
