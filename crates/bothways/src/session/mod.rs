//! A server's state of each client: its user, its subscriptions, and the pushes that it still has to get.
//!
//! A session is not a connection. A plain rpcx client has a session for as long as its connection. A
//! Bothways client has one that outlives its connection by the resume window: it comes back with the
//! session's secret, and gets what it has not handled before anything new.
//!
//! | file | what it does |
//! |---|---|
//! | `handle.rs` | [`Session`], the handle that all share |
//! | `mod.rs` | what applications do with it |
//! | `push.rs`, `target.rs` | a push, and its targets |
//! | `state.rs` | the state of one session: only this file changes it |
//! | `call.rs`, `user.rs` | calls to a session's client, and to a user with several |
//! | `given_up.rs` | calls whose Cancel may have been lost with a connection |
//! | `side_by_side.rs` | futures of which only those that were woken are polled |
//! | `receipt.rs` | how far a push has come |
//! | `acks.rs` | acknowledgements, as they are on the wire |
//! | `totals.rs`, `queues.rs` | what became of all of them, and what waits in all sessions |
//! | `carried.rs`, `elsewhere.rs` | pushes to sessions of other nodes, and what receipts know of them |
//! | `anywhere.rs`, `carried_call.rs` | calls to sessions of other nodes |
//! | `gate.rs` | keeps pushes apart from sessions that come and go |
//! | `travel.rs` | sessions that go on at another node: given away, parted from, taken in |
//! | `mailbox.rs`, `mailbox/` | durable pushes: a mailbox for each user, in a store |
//! | `each.rs` | what became of it for each of many, if the push asks |
//! | `pasts.rs` | event logs of sessions that ended |
//! | `explain.rs` | what lately happened to each, for who asks why a message did not arrive |
//! | `one_or_many.rs` | a list that nearly always has one item |
//! | `crowd.rs` | the sessions of a user, which may be very many |
//! | `account.rs` | what the sessions of a user use together: bytes, calls |
//! | `ledger.rs` | the pushes that one client still has to get: queues, the log, offsets; no I/O, no clock |
//! | `keys.rs` | which idempotency keys a session has taken |
//! | `topic.rs`, `subscribers.rs` | names, patterns, subscribers |
//! | `rules.rs` | options of topics, by pattern |
//! | `history.rs`, `presence.rs` | the messages and the members of a topic; no I/O, no clock |
//! | `kept.rs` | the topics that the server keeps, and how many |
//! | `hub.rs`, `hub/` | topics at work: publishing, subscribing |
//! | `parts.rs` | how far a session is in topics that come in parts |
//! | `came_with.rs` | which messages of topics have come with a session from another node |
//! | `tell.rs` | tells subscribers of changes of presence |
//! | `away.rs` | sessions whose clients are away: for how long, and how many |
//! | `ranks.rs` | which of these go first when they are too many |
//! | `claims.rs` | what waits until the server knows which session a client gets |
//! | `endings.rs` | how sessions ended, for clients that come back too late |
//! | `shards.rs` | tables in parts |
//! | `secrets.rs` | the secrets that clients come back with |
//! | `registry.rs` | finds sessions by connection, number, user, topic |
//! | `resume.rs` | clients that arrive, come back, acknowledge and leave |
//! | `end.rs` | ends sessions |
//! | `users.rs` | the sessions of each user |
//! | `fan_out.rs` | one push to many sessions |
//! | `flight.rs` | what is the same for all of them |
//! | `flusher.rs` | bursts of pushes |
//! | `batch.rs` | what many sessions get of a burst: noted once |
//! | `long_batch.rs` | what very many get, in turns |
//! | `options.rs` | the bounds and times of sessions |
//!
//! # Locks
//!
//! A thread takes them in this order, and skips those that it does not need:
//!
//! 1. a topic's turn, the table of topics that are kept, one topic of it (`kept.rs`),
//! 2. the tree of subscriptions (`hub.rs`),
//! 3. a part of a table: by connection, then by number; by user (`registry.rs`, `users.rs`),
//! 4. the turn of a batch (`batch.rs`), a session (`state.rs`): of two that of the lower number first, and both only where one makes way for the other,
//! 5. what is small and asks nobody else: the table of sessions that are away, why sessions ended, an account, the
//!    events of a session, what is in a batch, the state of its connection.
//!
//! None is held across an await or a write, and nobody is woken under one (`lock.rs`).
//!
//! Nothing here waits for a client: a push is put into its session's ledger, and as much of the ledger as
//! the socket takes goes to the connection's outbox. When the socket drains, the connection asks for more.

mod account;
mod acks;
#[cfg(feature = "cluster")]
mod anywhere;
mod away;
mod batch;
mod call;
#[cfg(feature = "cluster")]
mod came_with;
#[cfg(feature = "cluster")]
mod carried;
#[cfg(feature = "cluster")]
mod carried_call;
mod claims;
mod crowd;
mod each;
#[cfg(feature = "cluster")]
mod elsewhere;
mod end;
mod endings;
mod explain;
mod fan_out;
mod feed;
#[cfg(test)]
mod fixtures;
mod flight;
mod flusher;
#[cfg(feature = "cluster")]
mod gate;
mod given_up;
mod handle;
mod history;
mod hub;
mod id;
mod kept;
mod keys;
mod ledger;
mod lock;
mod long_batch;
mod mailbox;
mod one_or_many;
mod options;
mod parts;
mod pasts;
mod presence;
mod push;
mod queues;
mod ranks;
mod receipt;
mod registry;
mod resume;
mod rules;
mod secrets;
mod shards;
mod side_by_side;
mod state;
mod subscribers;
mod target;
mod tell;
mod topic;
mod totals;
#[cfg(feature = "cluster")]
mod travel;
mod user;
mod users;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

#[cfg(test)]
pub(crate) use self::acks::failed;
pub(crate) use self::{
    account::UserCall,
    acks::{Acks, End, TOLD_AT_ONCE, put_failed},
    feed::Fed,
    history::TopicPlace,
    hub::{Answer, SubscribeArgs, SubscribeReply, TopicStanding, Wish},
    options::Setup,
    presence::{ROSTER_MEMBERS_MAX, RosterArgs, RosterReply},
    registry::Registry,
    resume::{Claim, NotWelcome, RETRY_LATE},
    rules::Rules,
    topic::covers,
};
#[cfg(feature = "cluster")]
pub use self::{
    anywhere::SessionAnywhere,
    elsewhere::{NodeId, Unreached, UnreachedWhy},
};
#[cfg(feature = "cluster")]
pub(crate) use self::{
    carried::{Carried, Destination, Elsewhere},
    carried_call::{Callable, CarriedCall, CarriedOutcome, FindAsked, FoundEverywhere, Missed, Seen},
    elsewhere::{Counts, Known, Share, Watcher},
    hub::{Arrived, SharedHistories, SharedMessage, SharedPage, Step, ToShare},
    ledger::EntryImage,
    receipt::Storing,
    target::InStore,
    travel::{Address, Departed, Relay, SessionImage, hash_of},
};
use self::{claims::Listed, endings::Last};
pub use self::{
    each::TargetOutcomes,
    endings::Eviction,
    explain::{CallOutcome, Event, Explanation, Happened, Held, Standing},
    fan_out::SendError,
    handle::Session,
    history::Position,
    hub::Subscribed,
    id::SessionId,
    keys::{InvalidKey, KEY_BYTES_MAX},
    mailbox::{DeadLetter, LetterView, Mail, MailboxOptions, MailboxView},
    options::SessionOptions,
    presence::{Presence, PresenceChange, PresenceMember, PresenceStatus},
    push::{Class, Priority, Push},
    queues::QueueStats,
    receipt::{DropReason, Failure, Outcomes, Receipt, Stage},
    rules::{SubscribeRequest, TopicOptions},
    target::Target,
    topic::{SEGMENTS_MAX, TOPIC_BYTES_MAX, TopicError},
    totals::PushCounts,
    user::{CallPolicy, DEVICE_LABEL, User},
};
use crate::{
    calm::{Calm, tell},
    clock::later,
    connection::{Connection, after},
    error::PushError,
};

/// Most bytes of a user's name: it may come from a token, and each session keeps it, those that are away too. As many as
/// a topic's name has.
const USER_BYTES_MAX: usize = 256;

/// The methods of a session that applications use.
impl Session {
    /// The connection it has now; `None` while its client is away.
    pub fn connection(&self) -> Option<Connection> {
        self.of_current(|state| state.connection().cloned())
    }

    /// True if the client may come back to it after a lost connection.
    pub fn is_resumable(&self) -> bool {
        self.of_current(|state| state.is_resumable())
    }

    /// How many connections it has had.
    pub fn generation(&self) -> u64 {
        self.of_current(|state| state.generation())
    }

    /// The user it is bound to, at this moment: the one that was bound last. It is not who sent a request. For the
    /// identity of a request see [`AuthRequest::attach`](crate::server::AuthRequest::attach).
    pub fn user(&self) -> Option<Arc<str>> {
        self.of_current(|state| state.user().cloned())
    }

    /// Binds it to a user, such as the one that the auth hook found. A user may have many sessions, and a session has one
    /// user: binding it to another one takes it away from the first.
    ///
    /// A plain client may send each request with another token, as a gateway in Go does for its users. A hook that binds
    /// the session at each of them moves it from user to user, with its pushes, its presence and its calls
    /// (`calls_per_user_max`), and a handler that asks for [`Self::user`] after an `await` finds the user of the last call.
    /// A warning in the log says so, at most once in ten seconds. Leave the identity of a request to its handler by
    /// [`AuthRequest::attach`](crate::server::AuthRequest::attach), and bind only sessions whose client is one user.
    ///
    /// An empty name is the name of no user, and a name has 256 bytes at most: others are refused with a warning, and
    /// the session stays bound as it was.
    pub fn bind_user(&self, name: &str) {
        if name.is_empty() || USER_BYTES_MAX < name.len() {
            static TOLD: Calm = Calm::new(1);
            let (session, bytes) = (self.id(), name.len());
            return tell!(TOLD, warn, %session, bytes, "a session was not bound to a user: the name is empty or too long");
        }
        if let Some(registry) = self.inner.registry.upgrade() {
            registry.bind_user(&self.current(), Some(name));
        }
    }

    /// It was bound to one user, and is now to another one. A Bothways client is one user; a plain one may speak for many.
    fn tell_of_another_user(&self) {
        static TOLD: Calm = Calm::new(1);
        let is_plain = |connection: Connection| !connection.is_negotiated();
        if self.connection().is_some_and(is_plain) {
            let session = self.id();
            tell!(
                TOLD,
                warn,
                %session,
                "the session of a plain client was bound to another user: if its requests are of several users, attach \
                 to each who sent it (`AuthRequest::attach`)"
            );
        }
    }

    /// The value of a label.
    pub fn label(&self, key: &str) -> Option<String> {
        self.of_current(|state| state.label(key).cloned())
    }

    /// All its labels.
    pub fn labels(&self) -> BTreeMap<String, String> {
        self.of_current(|state| state.labels().cloned()).unwrap_or_default()
    }

    /// Sets a label, by which [`Target::only_labelled`] selects.
    pub fn set_label(&self, key: impl Into<String>, value: impl Into<String>) {
        let (key, value) = (key.into(), value.into());
        self.of_current(|state| state.set_label(key, value));
    }

    /// Subscribes the session to a topic, or to all topics that match a pattern: `*` is one segment, a last `>` the
    /// rest.
    ///
    /// No [`authorize`](TopicOptions::authorize) hook runs: the caller has decided.
    ///
    /// # Errors
    /// [`TopicError`]: this is no valid pattern, the session has ended, or a bound is reached.
    pub fn subscribe(&self, pattern: &str) -> Result<(), TopicError> {
        let registry = self.inner.registry.upgrade().ok_or(TopicError::SessionEnded)?;
        registry.hub.subscribe(&self.current(), pattern, None, false).map(|_| ())
    }

    /// Ends a subscription.
    pub fn unsubscribe(&self, pattern: &str) {
        if let Some(registry) = self.inner.registry.upgrade() {
            registry.hub.unsubscribe(&self.current(), pattern);
        }
    }

    /// The topics and patterns that it subscribes to, sorted.
    pub fn subscriptions(&self) -> Vec<String> {
        self.of_current(|state| state.patterns().names().map(ToString::to_string).collect())
    }

    /// The methods for which its client has handlers, each as `Path.method`, as the client announced them last. `None`:
    /// the client announced none, or more than 4,096 bytes of them, so that any method may be called.
    pub fn methods(&self) -> Option<Vec<String>> {
        self.of_current(|state| state.methods()).map(|methods| methods.names())
    }

    /// Pushes that wait or are not yet handled, and their bytes.
    pub fn waiting(&self) -> (usize, usize) {
        self.of_current(|state| state.ledger().waiting())
    }

    /// The oldest push that its client has received and that its application is not done with, if there is one.
    pub fn held(&self) -> Option<Held> {
        self.of_current(|state| state.held())
    }

    /// Pushes that were dropped since it began.
    pub fn dropped(&self) -> u64 {
        self.of_current(|state| state.ledger().dropped())
    }

    /// The recent events of this session, to find out why a message did not arrive.
    pub fn explain(&self) -> Explanation {
        let session = self.current();
        let (standing, user, held) = {
            let mut state = session.lock();
            state.land();
            (state.standing(), state.user().cloned(), state.held())
        };
        Explanation { held, ..session.inner.event_log.snapshot(session.id(), user.as_deref(), standing) }
    }

    /// Ends the session: the client is told why, its connection is closed, and it cannot come back to this session. A
    /// Bothways client comes back with a new session; [`Self::evict`] sends it away. Running calls of the client get no
    /// reply, not even one whose handler calls this: [`Self::end_after_replies`] lets them finish.
    pub fn end(&self, why: &str) {
        if let Some(registry) = self.inner.registry.upgrade() {
            registry.end(&self.current(), why, None, Last::Written);
        }
    }

    /// As [`Self::end`], for the handler of a call such as `Logout`. The session ends now, and the server reads nothing
    /// more from the client. Its connection ends when its running calls are answered, or after `close_timeout`.
    pub fn end_after_replies(&self, why: &str) {
        if let Some(registry) = self.inner.registry.upgrade() {
            registry.end(&self.current(), why, None, Last::Answered);
        }
    }

    /// Ends the session and sends its client away, as [`Eviction`] says: it is told why, its connection is closed, and a
    /// Bothways client does not come back by itself. Its application gets [`SessionLost`](crate::client::ConnectionEvent::SessionLost) with
    /// this reason, and may make a new [`Client`](crate::Client). A client that is away is told when it comes back.
    ///
    /// A plain rpcx client cannot be told: it sees the end of its connection. To keep a client out, the `auth` hook
    /// must refuse it as well. Running calls of the client get no reply.
    pub fn evict(&self, eviction: Eviction, why: &str) {
        if let Some(registry) = self.inner.registry.upgrade() {
            registry.end(&self.current(), why, Some(eviction), Last::Written);
        }
    }

    /// Pushes to this session. Never waits for the client.
    ///
    /// A push that is larger than the client accepts ends as
    /// [`Failed(BadArguments)`](Failure::BadArguments) when it would be sent.
    ///
    /// # Errors
    /// [`PushError::TooLarge`] and [`PushError::ReservedMetadata`]: nothing was queued.
    pub fn push(&self, push: &Push) -> Result<Receipt, PushError> {
        push.check_reserved()?;
        let Some(registry) = self.inner.registry.upgrade() else { return Ok(Receipt::new()) };
        let receipt = registry.receipt_of(push);
        registry.fan_out.push_to(std::slice::from_ref(self), push, &receipt)?;
        Ok(receipt)
    }

    /// Pushes to this session, after waiting up to `wait` for room in its queues.
    ///
    /// Dropping the future before it is done sends nothing.
    ///
    /// # Errors
    /// As [`Self::push`]. If there was no room in time, the receipt says that the push was dropped because the queue
    /// was full.
    pub async fn push_within(&self, wait: Duration, push: &Push) -> Result<Receipt, PushError> {
        push.check_reserved()?;
        let deadline = after(wait);
        let (receipt, frame) = match self.inner.registry.upgrade() {
            Some(registry) => (registry.receipt_of(push), registry.fan_out.encode(push)?),
            None => return Ok(Receipt::new()),
        };

        loop {
            // The hook of a Hello may have been given a session that makes way for an earlier one of its client.
            let session = self.current();

            // Listens before it looks: room that is made in between is not missed.
            let changed = session.inner.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            // Let go before the await below.
            let (account, expires) = {
                let state = session.lock();
                (state.ledger().account().cloned(), state.ledger().expires())
            };

            let room = account.as_ref().map(|account| account.room.notified());
            tokio::pin!(room);
            if let Some(room) = room.as_mut().as_pin_mut() {
                room.enable();
            }

            // Looked at and taken under one lock: of several that wait, each takes room that is there.
            let added = session.add_if(push, &frame, &receipt, &Listed::default(), |ledger| {
                !ledger.refuses(frame.size()) || ledger.has_taken(frame.keyed.as_ref())
            });
            if !added {
                // Another session of the user may make room too.
                let more_room = async {
                    match room.as_pin_mut() {
                        Some(room) => tokio::select! { () = changed => {}, () = room => {} },
                        None => changed.await,
                    }
                };
                // So may what waits and expires.
                let expired = expires.map(|expires| later(session.inner.event_log.began(), expires));
                let until = expired.unwrap_or(deadline).min(deadline);
                if session.within(until, more_room).await.is_ok() || until < deadline {
                    continue;
                }
                session.add(push, &frame, &receipt, &Listed::default());
            }

            session.pump();
            return Ok(receipt);
        }
    }
}
