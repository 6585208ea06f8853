//! What a server holds of each client: who it is, what it subscribes to, what it is owed.
//!
//! A session is not a connection. A plain rpcx client has a session for as long as its connection. A
//! Bothways client has one that outlives its connection by the resume window: it comes back with the
//! session's secret, and gets what it has not handled before anything new.
//!
//! | file | what it does |
//! |---|---|
//! | `mod.rs` | [`Session`], the handle |
//! | `push.rs`, `target.rs` | what is sent, and to whom |
//! | `state.rs` | what is known of one session: the only one who changes it |
//! | `call.rs`, `user.rs` | calls to a session's client, and to a user with several |
//! | `given_up.rs` | calls whose Cancel may have been lost with a connection |
//! | `side_by_side.rs` | futures of which only those that were woken are polled |
//! | `receipt.rs` | what became of it |
//! | `acks.rs` | how far a client is, as it says so on the wire |
//! | `each.rs` | what became of it for each of many, for who asks |
//! | `pasts.rs` | what is left of those that ended, for who asks later |
//! | `explain.rs` | what lately happened to each, for who asks why a message did not arrive |
//! | `few.rs` | a list that nearly always has one item |
//! | `crowd.rs` | the sessions of a user, who may be very many |
//! | `account.rs` | what the sessions of a user use together: bytes, calls |
//! | `ledger.rs` | what one client is owed: queues, the log, offsets; no I/O, no clock |
//! | `keys.rs` | which idempotency keys a session has taken |
//! | `topic.rs` | names, patterns, who subscribes |
//! | `rules.rs` | what topics are like: options by pattern |
//! | `history.rs`, `presence.rs` | what a topic keeps, and who is in it; no I/O, no clock |
//! | `kept.rs` | what the server keeps of topics, and how many of them |
//! | `hub.rs` | topics at work: subscribing, publishing |
//! | `parts.rs` | what a session was sent of topics that it does not have whole yet |
//! | `tell.rs` | tells subscribers of changes of presence |
//! | `away.rs` | sessions whose clients are away: for how long, and how many |
//! | `ranks.rs` | which of these go first when they are too many |
//! | `claims.rs` | what is for a session whose client has named another one, until it is known which it gets |
//! | `endings.rs` | how sessions end, and what a client is told that comes back to one |
//! | `shards.rs` | tables in parts |
//! | `secrets.rs` | what a client shows to come back |
//! | `registry.rs` | finds sessions by connection, number, user, topic |
//! | `resume.rs` | clients that arrive, come back, acknowledge and leave |
//! | `end.rs` | ends sessions |
//! | `users.rs` | the sessions of each user |
//! | `fan_out.rs` | one push to many sessions |
//! | `options.rs` | what a server promises of its sessions |
//!
//! Nothing here waits for a client: a push is put into its session's ledger, and as much of the ledger as
//! the socket takes goes to the connection's outbox. When the socket drains, the connection asks for more.

mod account;
mod acks;
mod away;
mod call;
mod claims;
mod crowd;
mod each;
mod end;
mod endings;
mod explain;
mod fan_out;
mod few;
#[cfg(test)]
mod fixtures;
mod given_up;
mod history;
mod hub;
mod kept;
mod keys;
mod ledger;
mod lock;
mod options;
mod parts;
mod pasts;
mod presence;
mod push;
mod ranks;
mod receipt;
mod registry;
mod resume;
mod rules;
mod secrets;
mod shards;
mod side_by_side;
mod state;
mod target;
mod tell;
mod topic;
mod user;
mod users;

use std::{
    borrow::Borrow,
    collections::BTreeMap,
    hash::{Hash, Hasher},
    sync::{Arc, Weak},
    time::Duration,
};

use bothways_proto::Seq;
use tokio::{sync::Notify, time::Instant};

#[cfg(test)]
pub(crate) use self::acks::failed;
pub(crate) use self::{
    account::UserCall,
    acks::{Acks, End, TOLD_AT_ONCE, put_failed},
    hub::{Answer, SubscribeArgs, SubscribeReply, Wish},
    options::SessionOptions,
    presence::{ROSTER_MEMBERS_MAX, RosterArgs, RosterReply},
    registry::Registry,
    resume::{Claim, NotWelcome, RETRY_LATE},
    rules::Rules,
    topic::covers,
};
use self::{
    claims::Listed,
    end::Last,
    explain::{Trail, What},
    ledger::{Entry, Ledger, Next, Origin},
    lock::{Lock, Locked},
    push::Encoded,
    state::State,
};
pub use self::{
    each::TargetOutcomes,
    endings::Eviction,
    explain::{CallOutcome, Event, Explanation, Happened, Held, Standing},
    fan_out::SendError,
    history::Position,
    hub::Subscribed,
    keys::{InvalidKey, KEY_BYTES_MAX},
    presence::{Presence, PresenceChange, PresenceMember, PresenceStatus},
    push::{Class, Priority, Push},
    receipt::{DropReason, Failure, Outcomes, Receipt, Stage},
    rules::{SubscribeRequest, TopicOptions},
    target::Target,
    topic::{SEGMENTS_MAX, TOPIC_BYTES_MAX, TopicError},
    user::{CallPolicy, DEVICE_LABEL, User},
};
use crate::{
    calm::{Calm, tell},
    clock::{Over, is_outside, later, timeout_outside},
    connection::{Connection, ConnectionId, HeldReply, after},
    error::PushError,
};

/// The public number of a session; no secret.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SessionId(u128);

impl SessionId {
    pub(crate) fn random() -> Self {
        Self(rand::random())
    }
}

impl std::fmt::Display for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl std::fmt::Debug for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for SessionId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(text, 16).map(Self)
    }
}

impl serde::Serialize for SessionId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for SessionId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A client, as its server knows it. A clone is the same session.
///
/// The `auth` hook of a Hello is given one before it is known whether its client comes back to a session that it had. If
/// so, this one stands for that from then on, but for its [`id`](Self::id).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use bothways::{Client, ClientOptions, Push, Server, Target};
///
/// let server = Server::builder()
///     .auth(|request| async move {
///         let session = request.session().ok_or("the client has left")?;
///         session.bind_user(&request.token);
///         session.set_label("device", "phone");
///         Ok::<_, &str>(())
///     })
///     .build();
/// let listening = server.listen("memu@session").await?;
/// let (client, mut messages) = Client::bidirectional(listening.address(), ClientOptions::new().auth("ann")).await?;
///
/// for session in server.sessions(&Target::user("ann"))? {
///     println!("{} on {:?}", session.id(), session.label("device"));
///     session.push(&Push::new("Mail", "New", "a letter"))?;
/// }
/// assert_eq!(messages.next().await.ok_or("closed")?.payload()?, "a letter");
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

struct Inner {
    id: SessionId,
    registry: Weak<Registry>,
    trail: Arc<Trail>,
    /// Told when the session gets or loses a connection, has more room, or ends.
    changed: Notify,
    state: Lock<State>,
}

impl lock::Changes for Inner {
    fn tell(&self) {
        self.changed.notify_waiters();
    }
}

impl Session {
    /// The session that this one stands for: itself, or the one that its client came back to. The `auth` hook of a Hello
    /// is given a session before it is known which one its client gets.
    fn current(&self) -> Self {
        let mut session = self.clone();
        loop {
            let into = session.lock().made_way_for().cloned();
            match into {
                Some(into) => session = into,
                None => return session,
            }
        }
    }

    /// Locks what is known of it. See the module for the order of locks.
    fn lock(&self) -> Locked<'_, State> {
        self.inner.state.lock()
    }

    /// What is known of the session that this one stands for.
    fn of_current<T>(&self, read: impl FnOnce(&mut State) -> T) -> T {
        read(&mut self.current().lock())
    }

    /// The public number.
    pub fn id(&self) -> SessionId {
        self.inner.id
    }

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

    /// The user it is bound to.
    pub fn user(&self) -> Option<Arc<str>> {
        self.of_current(|state| state.user().cloned())
    }

    /// Binds it to a user, such as the one that the auth hook found. A user may have many sessions.
    ///
    /// An empty name is the name of no user: it is refused with a warning, and the session stays bound as it was.
    pub fn bind_user(&self, name: &str) {
        if name.is_empty() {
            static TOLD: Calm = Calm::new(1);
            return tell!(TOLD, warn, session = %self.id(), "a session was not bound to a user: the name is empty");
        }
        if let Some(registry) = self.inner.registry.upgrade() {
            registry.bind_user(&self.current(), Some(name));
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

    /// Subscribes it to a topic, or to all that match a pattern: `*` is one segment, a last `>` the rest.
    ///
    /// No [`authorize`](TopicOptions::authorize) hook is asked: whoever calls this has decided.
    ///
    /// # Errors
    /// [`TopicError`]: it is no pattern, the session is over, or a bound is reached.
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

    /// What it subscribes to, sorted.
    pub fn subscriptions(&self) -> Vec<String> {
        self.of_current(|state| state.patterns().names().map(ToString::to_string).collect())
    }

    /// The methods that its client handles, each as `Path.method`, by what it said when it was there last; `None`: it
    /// has not said, or named more than 4,096 bytes of them, and is asked.
    pub fn methods(&self) -> Option<Vec<String>> {
        self.of_current(|state| state.methods()).map(|methods| methods.names())
    }

    /// A place for one more call of its user, if it has one. `Err`: so many run already.
    pub(crate) fn begin_user_call(&self, calls_max: usize) -> Result<Option<UserCall>, usize> {
        let account = self.lock().ledger().account().cloned();
        account.map(|account| account.begin_call(calls_max)).transpose()
    }

    /// Pushes that wait or are not yet handled, and their bytes.
    pub fn waiting(&self) -> (usize, usize) {
        self.of_current(|state| state.ledger().waiting())
    }

    /// The oldest push that its client has received and that its application is not done with, if there is one.
    pub fn held(&self) -> Option<Held> {
        self.of_current(|state| state.held())
    }

    /// True if its client acknowledges, and has been sent what it has not acknowledged.
    pub(crate) fn awaits_acks(&self) -> bool {
        let state = self.lock();
        state.connection().is_some() && state.ledger().awaits_acks()
    }

    /// Pushes that were dropped since it began.
    pub fn dropped(&self) -> u64 {
        self.of_current(|state| state.ledger().dropped())
    }

    /// What lately happened to it, for who asks why a message did not arrive.
    pub fn explain(&self) -> Explanation {
        let session = self.current();
        let (standing, user, held) = {
            let state = session.lock();
            (state.standing(), state.user().cloned(), state.held())
        };
        Explanation { held, ..session.inner.trail.tell(session.id(), user.as_deref(), standing) }
    }

    /// Ends the session: the client is told why, its connection closed, and it cannot come back to it. A client of ours
    /// comes back with a new session; [`Self::evict`] sends it away. Calls of the client that run are not answered, not
    /// even one whose handler says this: [`Self::end_after_replies`] answers them.
    pub fn end(&self, why: &str) {
        if let Some(registry) = self.inner.registry.upgrade() {
            registry.end(&self.current(), why, None, Last::Written);
        }
    }

    /// As [`Self::end`], for the handler of a call such as `Logout`: the session ends now, and nothing more of the client
    /// is heard, but its calls that run are answered before its connection ends, as far as that takes no longer than
    /// `close_timeout`.
    pub fn end_after_replies(&self, why: &str) {
        if let Some(registry) = self.inner.registry.upgrade() {
            registry.end(&self.current(), why, None, Last::Answered);
        }
    }

    /// Ends the session and sends its client away: it is told why, its connection is closed, and a client of ours does
    /// not come back by itself. Its application hears
    /// [`SessionLost`](crate::client::ConnectionEvent::SessionLost) with this reason, and makes a new
    /// [`Client`](crate::Client) if it likes. A client that is away hears it when it comes back.
    ///
    /// A plain rpcx client cannot be told: it sees the end of its connection. Who must stay out is to be refused by the
    /// `auth` hook as well. Calls of the client that run are not answered.
    pub fn evict(&self, eviction: Eviction, why: &str) {
        if let Some(registry) = self.inner.registry.upgrade() {
            registry.end(&self.current(), why, Some(eviction), Last::Written);
        }
    }

    /// Pushes to this session. Never waits for the client.
    ///
    /// What is larger than the client has said to take ends as
    /// [`Failed(BadArguments)`](Failure::BadArguments) when it would be sent.
    ///
    /// # Errors
    /// [`PushError::TooLarge`] and [`PushError::ReservedMetadata`]: nothing was queued.
    pub fn push(&self, push: &Push) -> Result<Receipt, PushError> {
        push.check_reserved()?;
        let receipt = Receipt::new();
        let frame = match self.inner.registry.upgrade() {
            Some(registry) => registry.fan_out.encode(push)?,
            None => return Ok(receipt),
        };
        self.add(push, &frame, &receipt, &Listed::default());
        self.pump();
        Ok(receipt)
    }

    /// Pushes to this session, after waiting up to `wait` for room in what it is owed.
    ///
    /// Dropping the future before it is done sends nothing.
    ///
    /// # Errors
    /// As [`Self::push`]. A receipt that says dropped because full means that there was no room in time.
    pub async fn push_within(&self, wait: Duration, push: &Push) -> Result<Receipt, PushError> {
        push.check_reserved()?;
        let deadline = after(wait);
        let receipt = Receipt::new();
        let frame = match self.inner.registry.upgrade() {
            Some(registry) => registry.fan_out.encode(push)?,
            None => return Ok(receipt),
        };
        loop {
            // The hook of a Hello may have been given a session that makes way for an earlier one of its client.
            let session = self.current();
            let changed = session.inner.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
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
                let expired = expires.map(|expires| later(session.inner.trail.began(), expires));
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

    /// Enters a push into the ledger; the caller pumps. It is for all of `listed`.
    fn add(&self, push: &Push, encoded: &Encoded, receipt: &Receipt, listed: &Listed<'_>) {
        self.add_if(push, encoded, receipt, listed, |_| true);
    }

    /// Enters a push into the ledger if that suits; the caller pumps. True if there is nothing to wait for.
    fn add_if(
        &self,
        push: &Push,
        encoded: &Encoded,
        receipt: &Receipt,
        listed: &Listed<'_>,
        suits: impl FnOnce(&Ledger) -> bool,
    ) -> bool {
        let Encoded { frame, keyed } = encoded;
        let mut state = self.lock();
        let wanted = state.wanted();
        if wanted.is_some_and(|wanted| listed.contains(wanted)) {
            // The session that the client wants gets it, and a client that does not get that one was not meant.
            return true;
        }
        if let Some(into) = state.made_way_for().cloned() {
            // Two sessions are locked at once only where both change: see `resume.rs`.
            drop(state);
            if listed.contains(into.id()) {
                return true;
            }
            return into.add_if(push, encoded, receipt, &listed.alone(), suits);
        }
        let takes_no_such = state.takes_no_such(push);
        let may_wait = !state.is_ended() && wanted.is_none() && !takes_no_such && push.class == Class::Tracked;
        let now = self.now();
        state.ledger_mut().expire_waiting(now);
        if may_wait && !suits(state.ledger()) {
            return false;
        }

        let trail = &self.inner.trail;
        let mut ticket = receipt.ticket(self.id());
        // What the framework tells by itself is no part of the application's story.
        if listed.origin != Origin::Framework {
            ticket.follow(trail, trail.note_push(push.name(), &push.class, frame.len()));
        }
        if state.is_ended() {
            // The ticket counts as dropped with its session.
            return true;
        }
        if takes_no_such {
            ticket.advance(Stage::Failed(Failure::NoHandler));
            return true;
        }
        let entry = Entry {
            class: push.class.clone(),
            priority: push.priority,
            frame: frame.clone(),
            keyed: keyed.clone(),
            expires: push.time_to_live.map(|time| now.saturating_add(time)),
            origin: listed.origin,
            ticket,
        };
        if let Some(entry) = state.hold(entry, push.name()) {
            state.take(entry, listed.topic, now);
        }
        true
    }

    /// Moves as much as the socket takes from the ledger to the connection, and notes what is written. What was added to
    /// a session that has made way for another went into the ledger of that one.
    pub(crate) fn pump(&self) {
        while self.pump_once() {}
    }

    /// True if others have written meanwhile, so that there is more to note or to move.
    fn pump_once(&self) -> bool {
        let mut state = self.lock();
        let Some(connection) = state.connection().cloned() else {
            let into = state.made_way_for().cloned();
            drop(state);
            if let Some(into) = into {
                into.pump();
            }
            return false;
        };
        let (now, room) = (self.now(), state.ledger().room());
        let mut is_added = false;
        // Callers and payloads are the application's: not under this lock.
        let (mut ended, mut too_large) = (None, None);
        while connection.has_room() {
            let Some(next) = state.ledger_mut().next(now) else { break };
            is_added = true;
            let added = match next {
                Next::Frame { frame, offset } => match connection.queue_as(&frame, Seq::of_push(offset)) {
                    Err(error @ PushError::TooLarge(_)) => {
                        too_large = Some(error);
                        state.ledger_mut().fail_last(offset);
                        if offset == 0 {
                            continue;
                        }
                        connection.queue_skip(Seq::of_push(offset))
                    }
                    added => added,
                },
                Next::Skip { offset } => connection.queue_skip(Seq::of_push(offset)),
                Next::Gap { missed } => {
                    self.inner.trail.note(What::GapTold(missed));
                    connection.queue_gap(missed)
                }
            };
            let Ok(mark) = added else {
                // It is over, and its end is on its way here; or others filled it this moment. Then it ends
                // too: what the ledger has given away, the client must get on this connection or the next.
                ended = Some(connection.cut_untold());
                break;
            };
            state.ledger_mut().mark(mark);
        }
        let is_freed = room < state.ledger().room();
        drop(state);
        drop(ended);
        if let Some(error) = too_large {
            connection.tell_too_large(&error);
        }
        if is_freed {
            // A plain client's pushes leave the log here, and whatever has expired.
            self.inner.changed.notify_waiters();
        }
        // A write of nothing would wake a driver that does not read for now, and that one asks here again.
        if is_added {
            connection.flush();
        }
        self.note_written(&connection)
    }

    /// Takes over from the connection what is written, and asks it to tell when more is. True if it is already.
    fn note_written(&self, connection: &Connection) -> bool {
        let mut state = self.lock();
        if !state.is_on(connection) {
            return false;
        }
        let is_left = state.ledger_mut().written_upto(connection.pushes_written());
        let keeps = state.ledger().has_next();
        (is_left || keeps) && !connection.tell_of_room(keeps)
    }

    /// What it was pushed is written by a task: replies of handlers that run now ask whether it is theirs.
    fn note_unwritten(&self) {
        if let Some(connection) = self.lock().connection() {
            connection.note_kept_push();
        }
    }

    /// The reply of a handler on this connection goes behind what the session owes now.
    pub(crate) fn put_behind(&self, connection: &Connection, reply: HeldReply) {
        {
            let mut state = self.lock();
            if state.is_on(connection) {
                state.ledger_mut().put_behind(Arc::new(reply));
            }
        }
        self.pump();
    }

    /// True if the pairs that go with what is published mean something to the client.
    fn knows_topics(&self) -> bool {
        self.lock().knows_topics()
    }

    /// True if a call can reach its client, now or when the client is back.
    fn takes_calls(&self) -> bool {
        self.lock().takes_calls()
    }

    /// False if its client has said what it handles, and this is not among it.
    fn handles(&self, service_path: &str, service_method: &str) -> bool {
        let methods = self.lock().methods();
        methods.is_none_or(|methods| methods.contains(service_path, service_method))
    }

    /// Orders sessions by when their clients were last there: those that are away come first, in the order in
    /// which they left, then those that are connected, in the order in which they came.
    fn recency(&self) -> (Option<ConnectionId>, Option<Instant>) {
        let state = self.lock();
        (state.connection().map(Connection::id), state.away_since())
    }

    /// It belongs to this user from now on. Returns to whom it did; `None` if nothing changes. The tables of both are
    /// settled next.
    fn bind(&self, user: Option<Arc<str>>) -> Option<Option<Arc<str>>> {
        // The story is told under the session's lock, so that of two that bind it at once the last one told is the one
        // that it is bound to.
        let mut state = self.lock();
        let before = state.bind(user.clone())?;
        self.inner.trail.note(What::Bound(user.as_ref().map(explain::shared)));
        Some(before)
    }

    fn now(&self) -> Duration {
        self.inner.trail.began().elapsed()
    }

    /// Waits until it is known which session its client gets, if it has named another one.
    pub(crate) async fn settled(&self) {
        loop {
            let changed = self.inner.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.lock().wanted().is_none() {
                return;
            }
            changed.await;
        }
    }

    /// Waits until this moment, on a thread without a runtime too if the server listens in one.
    async fn within<T>(&self, deadline: Instant, future: impl Future<Output = T>) -> Result<T, Over> {
        match is_outside() {
            false => tokio::time::timeout_at(deadline, future).await.map_err(|_| Over),
            true => {
                let clock = self.inner.registry.upgrade().and_then(|registry| registry.runtimes.any());
                Box::pin(timeout_outside(clock, deadline, future)).await
            }
        }
    }

    /// Waits until the session has noticed that this connection is over.
    async fn left(&self, connection: &Connection) {
        loop {
            let changed = self.inner.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if !self.lock().is_on(connection) {
                return;
            }
            changed.await;
        }
    }

    /// Waits until the session has a connection; `None` if it ended.
    async fn connected(&self) -> Option<Connection> {
        loop {
            let changed = self.inner.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let state = self.lock();
                match state.connection() {
                    Some(connection) if !connection.is_closed() => return Some(connection.clone()),
                    _ if state.is_ended() => return None,
                    _ => {}
                }
            }
            changed.await;
        }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("id", &self.id()).field("user", &self.user()).finish_non_exhaustive()
    }
}

impl PartialEq for Session {
    fn eq(&self, other: &Self) -> bool {
        self.inner.id == other.inner.id
    }
}

impl Eq for Session {}

/// A session hashes as its number.
impl Borrow<SessionId> for Session {
    fn borrow(&self) -> &SessionId {
        &self.inner.id
    }
}

impl Hash for Session {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.id.hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Client, ClientOptions, Server};

    /// Another thread writes the rest between the look at what is written and the question whether all of it is: that is
    /// an answer, and no call back into the session under its own lock.
    #[tokio::test(start_paused = true)]
    async fn what_others_write_meanwhile_blocks_nobody() {
        let server = Server::builder().build();
        let listening = server.listen("memory@session-others-write").await.expect("the name is free");
        let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
        client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
        let session = server.sessions(&Target::everyone()).expect("no topic").remove(0);
        let connection = session.connection().expect("it is up");
        assert!(!session.note_written(&connection), "nothing is owed");
        // At the look this one was not written.
        session.lock().ledger_mut().mark(connection.pushes_written() + 1);
        let (done, over) = std::sync::mpsc::channel();
        let (of_thread, on) = (session.clone(), connection.clone());
        std::thread::spawn(move || done.send(of_thread.note_written(&on)));
        let again = over.recv_timeout(Duration::from_secs(10)).expect("it is not blocked");
        assert!(again, "there is more to note");
    }

    async fn session_of(address: &str) -> (Server, Client, Session) {
        let server = Server::builder().build();
        let listening = server.listen(address).await.expect("the name is free");
        let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
        client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
        let session = server.sessions(&Target::everyone()).expect("no topic").remove(0);
        (server, client, session)
    }

    /// A call reaches the client of a session that it may come back to, or that it has a connection for.
    #[tokio::test(start_paused = true)]
    async fn a_session_takes_calls_for_a_client_that_is_there_or_comes_back() {
        let (_server, _client, session) = session_of("memory@session-takes-calls").await;
        let connection = session.connection().expect("it is up");
        assert!(session.takes_calls(), "it is there");
        _ = session.lock().begin(Duration::ZERO);
        assert!(session.takes_calls(), "it is there, and may come back");
        assert_eq!(session.lock().lose(&connection, true, Instant::now()), Some(true));
        assert!(session.takes_calls(), "it may come back");
        drop(session.lock().end(&Arc::default()));
        assert!(!session.takes_calls());
    }

    /// Only a tracked push that the client is to get waits for room.
    #[tokio::test(start_paused = true)]
    async fn only_a_tracked_push_of_a_living_session_waits_for_room() {
        let (_server, _client, session) = session_of("memory@session-add-if").await;
        let registry = session.inner.registry.upgrade().expect("the server lives");
        let add = |push: &Push, suits: bool| {
            let (encoded, receipt) = (registry.fan_out.encode(push).expect("small"), Receipt::new());
            let added = session.add_if(push, &encoded, &receipt, &Listed::default(), |_| suits);
            (added, receipt.outcomes().targets())
        };
        let (tracked, lossy) = (Push::new("A", "b", "1"), Push::new("A", "b", "1").class(Class::Fire));
        assert_eq!(add(&tracked, false), (false, 0), "there is no room");
        assert_eq!(add(&tracked, true), (true, 1));
        assert_eq!(add(&lossy, false), (true, 1), "it takes the place of another");
        drop(session.lock().end(&Arc::default()));
        assert_eq!(add(&tracked, false), (true, 1), "nothing will make room");
    }
}
