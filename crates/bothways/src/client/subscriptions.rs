//! What a client has subscribed to, and how far it is: subscribes again by itself when its session is lost.
//!
//! While a session lives or resumes its subscriptions live with it, and nothing is done here but to note
//! positions. Each session begins with a connection, and connections are numbered: a reply of an earlier one
//! says nothing of the session that there is now.

use std::{
    collections::BTreeMap,
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
    session::{Position, SubscribeArgs, SubscribeReply, Subscribed},
};

/// Subscriptions that are made again at once: enough to hide the way there and back, few enough for a server to
/// which many clients come back.
const AT_ONCE: usize = 64;

/// How long one may take if calls have no time of their own.
const TIMEOUT: Duration = Duration::from_secs(30);

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
}

#[derive(Debug, Default)]
struct Subscription {
    position: Option<Position>,
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
            noted => *noted = Some(position),
        }
    }
}

/// A call that subscribes is under way. Without success nothing is left of it.
pub(super) struct Claim<'a> {
    all: &'a Subscriptions,
    topic: &'a str,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut state = self.all.state.lock();
        if let Some(subscription) = state.list.get_mut(self.topic) {
            subscription.claims = subscription.claims.saturating_sub(1);
            if subscription.claims == 0 && !subscription.wanted {
                state.list.remove(self.topic);
            }
        }
        self.all.any.store(!state.list.is_empty(), Ordering::Release);
    }
}

impl Claim<'_> {
    /// The server answered on this connection. False: its session is lost since.
    pub(super) fn hold(&self, connection: ConnectionId, subscribed: &Subscribed) -> bool {
        let mut state = self.all.state.lock();
        let held = state.began.is_none_or(|began| began <= connection);
        // Not there: unsubscribed meanwhile.
        let Some(subscription) = state.list.get_mut(self.topic) else { return true };
        subscription.wanted = true;
        subscription.held = held;
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
        self.state.lock().list.entry(topic.into()).or_default().wanted = true;
        self.any.store(true, Ordering::Release);
    }

    /// Notes positions of a topic from now on: its messages may come before the reply.
    pub(super) fn claim<'a>(&'a self, topic: &'a str) -> Claim<'a> {
        let mut state = self.state.lock();
        state.list.entry(topic.into()).or_default().claims += 1;
        self.any.store(true, Ordering::Release);
        Claim { all: self, topic }
    }

    pub(super) fn forget(&self, topic: &str) {
        let mut state = self.state.lock();
        state.list.remove(topic);
        self.any.store(!state.list.is_empty(), Ordering::Release);
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
            subscription.note(position);
        }
    }

    /// A connection stands, with the session that the one before had or with a new one. Answers what the session
    /// does not have.
    fn begin(&self, connection: ConnectionId, resumed: bool) -> Vec<Arc<str>> {
        let mut state = self.state.lock();
        if !resumed {
            state.began = Some(connection);
            state.list.values_mut().for_each(|subscription| subscription.held = false);
        }
        let missing = state.list.iter().filter(|(_, subscription)| subscription.wanted && !subscription.held);
        missing.map(|(topic, _)| Arc::clone(topic)).collect()
    }

    /// Where to go on, if that is still wanted.
    fn position_of(&self, topic: &str) -> Option<Option<Position>> {
        self.state.lock().list.get(topic).filter(|subscription| subscription.wanted).map(|s| s.position)
    }
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
        let missing = self.subscriptions.begin(connection.id(), resumed);
        if missing.is_empty() {
            return;
        }
        let (this, connection) = (self.clone(), connection.clone());
        tokio::spawn(async move {
            let mut running = JoinSet::new();
            for topic in missing {
                if AT_ONCE <= running.len() {
                    running.join_next().await;
                }
                let (this, connection) = (this.clone(), connection.clone());
                running.spawn(async move { this.resubscribe(&connection, topic).await });
            }
            while running.join_next().await.is_some() {}
        });
    }

    async fn resubscribe(&self, connection: &Connection, topic: Arc<str>) {
        let Some(from) = self.subscriptions.position_of(&topic) else { return };
        let claim = self.subscriptions.claim(&topic);
        let (server, timeout) = (Arc::clone(&self.server), self.timeout.unwrap_or(TIMEOUT));
        let options = CallOptions::new().timeout(timeout);
        match subscribe(connection, &topic, from, options.clone()).await {
            Ok(subscribed) => {
                if self.subscriptions.position_of(&topic).is_none() {
                    // Unsubscribed meanwhile; if that call was overtaken, it is made good here.
                    if let Err(error) = unsubscribe(connection, &topic, options).await {
                        tracing::debug!(server = &*server, topic = &*topic, %error, "could not unsubscribe");
                    }
                    return;
                }
                if claim.hold(connection.id(), &subscribed) {
                    let recovered = subscribed.recovered;
                    drop(claim);
                    self.events.tell(&ConnectionEvent::Resubscribed { server, topic, recovered });
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
}

/// Subscribes by an ordinary call.
pub(super) async fn subscribe(
    caller: &impl Caller,
    topic: &str,
    from: Option<Position>,
    mut options: CallOptions,
) -> Result<Subscribed, CallError> {
    options.is_own = true;
    let Position { epoch, offset } = from.unwrap_or(Position { epoch: 0, offset: 0 });
    let args = SubscribeArgs { topic: topic.to_owned(), epoch, offset };
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
