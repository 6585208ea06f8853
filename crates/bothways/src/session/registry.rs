//! Finds sessions: by connection, number, user and topic. Resumes them, and ends them.
//!
//! Tables are sharded, and no lock is held across an await, a write, or another shard's lock; but that a session
//! is entered by its number while its connection's shard is locked. Whoever needs both
//! locks a shard first, and then a session. Whoever needs two sessions locks that of the lower number first.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bothways_proto::{Header, Limits, Metadata, Seq, keys};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::{runtime::Handle, sync::Notify, time::Instant};

use super::{
    Inner, Session, SessionId,
    account::Account,
    acks::{self, Acks},
    away::{Away, Owner, Waiting},
    claims::{Claims, Listed},
    crowd::Crowd,
    endings::{Ending, Endings, Eviction, NotResumed},
    explain::{self, Explanation, Trail, What},
    given_up,
    hub::Hub,
    keys::Keyed,
    ledger::{Bounds, Ledger},
    lock::{self, Changes, Held as HeldLocks, Lock, Locked, Wake},
    parts::PARTS_BYTES,
    pasts::{self, Pasts},
    push::{Class, Encoded, Push},
    receipt::Receipt,
    rules::Rules,
    state::{Seldom, State},
    target::{Target, Who},
    topic::{self, TopicError},
};
use crate::{
    calm::{Calm, Said, tell},
    clock::{Runtimes, later},
    connection::{Connection, ConnectionId, HeldReply, METHODS_BYTES_MAX, PushFrame},
    error::{CloseReason, PushError, ReservedName},
    options::QueueBound,
};

/// What a connection whose session is ended does last.
#[derive(Clone, Copy, Debug)]
pub(super) enum Last {
    /// What waits is written.
    Written,
    /// What runs is answered.
    Answered,
}

/// Sessions that end, or are written to, before others have their turn.
pub(super) const ENDED_AT_ONCE: usize = 256;

/// Sessions up to which whoever pushes to many writes to all of them itself.
const WRITTEN_AT_ONCE: usize = 4096;

/// Tables of one kind: enough that threads rarely meet, few enough to walk.
const SHARDS: usize = 64;

/// What a server promises of its sessions.
#[derive(Clone, Debug)]
pub(crate) struct SessionOptions {
    /// How long a session waits for its client to come back.
    pub(crate) resume_window: Duration,
    /// Sessions that may wait so at once.
    pub(crate) away_max: usize,
    /// Topics and patterns that a client may subscribe to at once.
    pub(crate) subscriptions_max: usize,
    /// What these may take.
    pub(crate) subscription_bytes_max: usize,
    /// What the subscriptions of all sessions may take before a client's are refused.
    pub(crate) all_subscription_bytes_max: usize,
    pub(crate) rules: Rules,
    pub(super) bounds: Arc<Bounds>,
    /// The calls of each user are counted.
    pub(crate) counts_user_calls: bool,
    /// Events that a session keeps of its past.
    pub(crate) events_max: usize,
    /// Sessions that ended whose past is kept.
    pub(crate) ended_max: usize,
    pub(crate) limits: Limits,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            resume_window: Duration::from_secs(120),
            away_max: 100_000,
            subscriptions_max: 1000,
            subscription_bytes_max: 512 << 10,
            all_subscription_bytes_max: 1 << 30,
            rules: Rules::default(),
            bounds: Arc::default(),
            counts_user_calls: false,
            events_max: explain::EVENTS_MAX,
            ended_max: explain::ENDED_MAX,
            limits: Limits::default(),
        }
    }
}

impl SessionOptions {
    /// What a session's queues hold: its log, pushes of class `Fire`, and values of class `Latest`.
    pub(crate) fn set_bounds(&mut self, log: QueueBound, fire: QueueBound, latest: QueueBound) {
        let bounds = Arc::make_mut(&mut self.bounds);
        log.set(&mut bounds.tracked_messages, &mut bounds.tracked_bytes);
        fire.set(&mut bounds.fire_messages, &mut bounds.fire_bytes);
        latest.set(&mut bounds.latest_keys, &mut bounds.latest_bytes);
        for messages in [&mut bounds.tracked_messages, &mut bounds.fire_messages, &mut bounds.latest_keys] {
            *messages = (*messages).max(1);
        }
    }

    /// Bytes that the logs of one user's sessions may hold together.
    pub(crate) fn set_user_log(&mut self, bytes: usize) {
        Arc::make_mut(&mut self.bounds).user_bytes = bytes;
    }

    /// Idempotency keys that a session remembers.
    pub(crate) fn set_idempotency_keys(&mut self, keys_max: usize) {
        Arc::make_mut(&mut self.bounds).idempotency_keys = keys_max;
    }
}

/// All sessions of a server.
pub(crate) struct Registry {
    options: SessionOptions,
    hasher: RandomState,
    /// By number.
    by_id: Vec<RwLock<HashSet<Session>>>,
    by_connection: Vec<RwLock<HashMap<ConnectionId, Session>>>,
    /// The server's connections: those that have no session yet get it from here.
    connections: Arc<Mutex<HashMap<ConnectionId, Connection>>>,
    /// Connections that have no session yet.
    unmade: AtomicUsize,
    pub(super) me: Weak<Registry>,
    by_user: Vec<RwLock<HashMap<Arc<str>, OfUser>>>,
    pub(super) hub: Hub,
    pub(super) away: Away,
    pub(super) told: Told,
    /// The server has stopped, and all sessions ended.
    stopped: AtomicBool,
    /// Somebody sweeps: only one at a time.
    sweeping: AtomicBool,
    endings: Endings,
    /// Those in which the server listens.
    pub(crate) runtimes: Runtimes,
    /// What is left of sessions that ended.
    ended: Mutex<Pasts>,
    count: AtomicUsize,
}

/// When the log was told last of what befalls sessions: of a crowd it is told how many, and `explain` has the rest.
#[derive(Default)]
pub(super) struct Told {
    resumed: Calm,
    ended: Calm,
    pub(super) unkept: Calm,
    pub(super) presence_too_large: Calm,
}

/// What belongs to one user.
#[derive(Default)]
struct OfUser {
    sessions: Crowd<Session>,
    /// From the second session on, or if its calls are counted. What a user of one session holds, the ledger of that
    /// one holds.
    account: Option<Arc<Account>>,
}

impl Registry {
    pub(crate) fn new(
        options: SessionOptions,
        connections: Arc<Mutex<HashMap<ConnectionId, Connection>>>,
    ) -> Arc<Self> {
        let log = options.bounds.tracked_messages;
        for (pattern, history) in options.rules.keeping_more_than(log) {
            tracing::warn!(
                pattern,
                history,
                log,
                "the history is longer than `SessionOptions::log`: not all of it can be recovered at once"
            );
        }
        let ended_max = if options.events_max == 0 { 0 } else { options.ended_max };
        Arc::new_cyclic(|me| Self {
            hub: Hub::new(options.rules.clone()),
            options,
            hasher: RandomState::new(),
            by_id: shards(),
            by_connection: shards(),
            connections,
            unmade: AtomicUsize::new(0),
            me: me.clone(),
            by_user: shards(),
            away: Away::default(),
            told: Told::default(),
            runtimes: Runtimes::default(),
            stopped: AtomicBool::new(false),
            sweeping: AtomicBool::new(false),
            endings: Endings::default(),
            ended: Mutex::new(Pasts::new(ended_max, pasts::BYTES_MAX)),
            count: AtomicUsize::new(0),
        })
    }

    pub(super) fn options(&self) -> &SessionOptions {
        &self.options
    }

    fn shard<'a, K: std::hash::Hash + ?Sized, T>(&self, shards: &'a [T], key: &K) -> &'a T {
        &shards[self.hasher.hash_one(key) as usize % SHARDS]
    }

    /// A connection is about to open: its session begins, and is made when somebody asks for it.
    pub(crate) fn open(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.unmade.fetch_add(1, Ordering::Relaxed);
    }

    /// The session of a connection; `None` once it has gone to another connection, or is over.
    ///
    /// It is made when it is first asked for: a client that only calls costs its server none.
    pub(crate) fn of(&self, connection: &Connection) -> Option<Session> {
        let id = connection.id();
        let shard = self.shard(&self.by_connection, &id);
        if connection.is_adopted() {
            return shard.read().get(&id).cloned();
        }
        let mut of_shard = shard.write();
        if !connection.is_adopted() {
            let session = self.make(connection);
            self.shard(&self.by_id, &session.id()).write().insert(session.clone());
            of_shard.insert(id, session);
            self.unmade.fetch_sub(1, Ordering::Relaxed);
            connection.adopt();
        }
        of_shard.get(&id).cloned()
    }

    /// As [`Self::of`], but none is made: if nobody has asked for it, there is nothing in it.
    pub(crate) fn made_of(&self, connection: &Connection) -> Option<Session> {
        if connection.is_adopted() { self.of(connection) } else { None }
    }

    /// As [`Self::of`], by number.
    pub(crate) fn of_connection(&self, id: ConnectionId) -> Option<Session> {
        let made = self.shard(&self.by_connection, &id).read().get(&id).cloned();
        made.or_else(|| {
            let connection = self.connections.lock().get(&id).cloned()?;
            self.of(&connection)
        })
    }

    /// The connection is over: if nobody has asked for its session, there is none, and none is made. True: so it is.
    fn never_makes(&self, connection: &Connection) -> bool {
        if connection.is_adopted() {
            return false;
        }
        let _of_shard = self.shard(&self.by_connection, &connection.id()).write();
        let is_unmade = !connection.is_adopted();
        if is_unmade {
            connection.adopt();
            self.unmade.fetch_sub(1, Ordering::Relaxed);
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        is_unmade
    }

    /// Makes the sessions that nobody has asked for yet.
    fn make_all(&self) {
        if self.unmade.load(Ordering::Relaxed) != 0 {
            let all: Vec<Connection> = self.connections.lock().values().cloned().collect();
            for connection in all.iter().filter(|connection| !connection.is_adopted()) {
                self.of(connection);
            }
        }
    }

    /// The session of a connection as it began. Plain until a Hello says otherwise.
    fn make(&self, connection: &Connection) -> Session {
        let mut ledger = Ledger::new(Arc::clone(&self.options.bounds));
        ledger.connect(false);
        let began = connection.began();
        Session {
            inner: Arc::new(Inner {
                id: SessionId::random(),
                registry: self.me.clone(),
                trail: Arc::new(Trail::begun(self.options.events_max, began, What::Connected(connection.id()))),
                changed: Notify::new(),
                state: Lock::new(State {
                    connection: Some(connection.clone()),
                    generation: 1,
                    resumable: false,
                    claims: None,
                    ended: false,
                    user: None,
                    listed: 0,
                    patterns: Default::default(),
                    knows_topics: false,
                    ledger,
                    seldom: None,
                }),
            }),
        }
    }

    /// The client of a connection names a session that it had, and is about to be let in, which may take a while. What
    /// is pushed to its user meanwhile is for the session that it had, and not for the one of its connection as well.
    pub(crate) fn claim(&self, connection: &Connection, said: &Metadata) -> Option<Claim> {
        let wanted = said.get(keys::SESSION_ID)?.parse().ok()?;
        let session = self.of(connection)?;
        let is_proven = self.waits_for(said);
        {
            let mut state = session.inner.state.lock();
            // Whoever has a session claims none: it will be told so.
            if state.resumable || state.ended || state.claims.is_some() {
                return None;
            }
            state.claims = Some(Box::new(Claims::new(wanted, is_proven, Arc::clone(&self.options.bounds))));
        }
        Some(Claim { session: Some(session) })
    }

    /// A client that speaks sessions said Hello, and was let in: back to its session, or on with its new one.
    ///
    /// Returns the pairs of the Welcome. Until [`Self::welcomed`] nothing is sent to it.
    ///
    /// # Errors
    /// [`NotWelcome`]: the client gets no session on this connection.
    pub(crate) fn arrive(&self, connection: &Connection, hello: &Metadata) -> Result<Metadata, NotWelcome> {
        let fresh = self.of(connection).ok_or(NotWelcome::Over)?;
        // Whoever comes back is on another connection: this one takes nothing from that.
        if connection.is_over() {
            return Err(NotWelcome::Over);
        }

        let asked = hello.get(keys::SESSION_ID).and_then(|id| id.parse::<SessionId>().ok());
        let resumed = asked.map(|id| (id, self.resume(connection, &fresh, id, hello)));
        let mut welcome = Metadata::new();
        let session = match resumed {
            Some((_, Ok((session, left_out)))) => {
                welcome.insert(keys::SESSION_RESUMED, "1");
                if 0 < left_out {
                    welcome.insert(keys::LEFT_OUT, left_out.to_string());
                }
                let key = hello.get(keys::SESSION_KEY).unwrap_or_default();
                welcome.insert(keys::SESSION_KEY, key);
                session
            }
            other => {
                if let Some((wanted, Err(why))) = other {
                    let text = why.code();
                    fresh.inner.trail.note(What::NotResumed { wanted: explain::text(&wanted.to_string()), why: text });
                    if why == NotResumed::Late {
                        return Err(NotWelcome::Late);
                    }
                    welcome.insert(keys::SESSION_WHY, text);
                    let key = hello.get(keys::SESSION_KEY).unwrap_or_default();
                    if let Some(words) = self.endings.words(wanted, key) {
                        welcome.insert(keys::SESSION_WORDS, words);
                    }
                    if why == NotResumed::Revoked {
                        self.end_revoked(wanted);
                    }
                } else if hello.get(keys::SESSION_ID).is_some() {
                    // No session has such a name.
                    welcome.insert(keys::SESSION_WHY, NotResumed::Unknown.code());
                }
                welcome.insert(keys::SESSION_KEY, self.begin(&fresh));
                fresh
            }
        };
        let (methods, takes_only_these) = (connection.methods(), connection.pushes_go_to_handlers());
        {
            let mut state = session.inner.state.lock();
            let seldom = state.seldom();
            (seldom.methods, seldom.takes_only_these) = (methods, takes_only_these);
        }
        welcome.insert(keys::SESSION_ID, session.id().to_string());
        let offset = session.inner.state.lock().ledger.last_offset();
        welcome.insert(keys::SESSION_OFFSET, offset.to_string());
        if connection.is_closed() {
            // It ended while its client was being let in, and its end may have found only the session that it
            // had before. A session whose connection is over waits for its client.
            self.leave(connection);
        }
        Ok(welcome)
    }

    /// The client of this session is told that it does not get it back, and forgets it: it ends, if it has not yet.
    fn end_revoked(&self, id: SessionId) {
        let Some(session) = self.session(id) else { return };
        let ending = Ending::new("its client came back as another user", NotResumed::Revoked);
        if let Some(connection) = self.remove(&session, ending, None) {
            connection.close();
        }
    }

    /// The client goes on with the session of its connection. Returns the secret by which it comes back to it.
    fn begin(&self, fresh: &Session) -> String {
        fresh.inner.trail.note(What::Resumable);
        let mut state = fresh.inner.state.lock();
        state.resumable = true;
        // From here on all it is owed is tracked. The connection lets nothing go before the Welcome, but behind
        // it a thread that pushes may be quicker than the call of `welcomed`.
        state.ledger.connect(true);
        let claimed = state.settle(fresh);
        let secret = state.seldom().secret.make();
        drop(state);
        fresh.inner.changed.notify_waiters();
        if let Some(claimed) = claimed {
            // Its client has this one instead, and with it the places that the other one had.
            if let Some(other) = self.session(claimed.wanted) {
                claimed.places.iter().for_each(|pattern| self.unsubscribe(&other, pattern));
            }
            self.rename(fresh);
        }
        secret
    }

    /// The Welcome is on its way: what the session owes its client follows it.
    pub(crate) fn welcomed(&self, connection: &Connection) {
        let Some(session) = self.made_of(connection) else { return };
        let given_up = {
            let mut state = session.inner.state.lock();
            // Another connection may have claimed the session this moment, and is not welcomed yet.
            if state.connection.as_ref() != Some(connection) {
                return;
            }
            state.ledger.connect(true);
            let seldom = state.seldom.as_ref();
            seldom.and_then(|seldom| seldom.given_up.as_ref()).map(|calls| calls.ids())
        };
        for id in given_up.into_iter().flatten() {
            connection.cancel_call(&given_up::text(id));
        }
        session.pump();
    }

    /// True if a client that says this has a session here to come back to.
    pub(crate) fn waits_for(&self, hello: &Metadata) -> bool {
        let Some(id) = hello.get(keys::SESSION_ID).and_then(|id| id.parse().ok()) else { return false };
        let (Some(session), Some(key)) = (self.session(id), hello.get(keys::SESSION_KEY)) else { return false };
        let state = session.inner.state.lock();
        state.resumable && !state.ended && state.admits(key)
    }

    /// The session that the client of this one has shown the secret of, while it is being let in: it is about to get
    /// that one.
    pub(crate) fn wanted_by(&self, session: &Session) -> Option<Session> {
        let wanted = session.inner.state.lock().claims.as_ref().and_then(|claims| claims.proven())?;
        self.session(wanted)
    }

    /// Gives the session of this number to the connection, whose own session makes way for it. Answers as well how many of
    /// that one's subscriptions found no room there.
    fn resume(
        &self,
        connection: &Connection,
        fresh: &Session,
        id: SessionId,
        hello: &Metadata,
    ) -> Result<(Session, usize), NotResumed> {
        let claimed = Claimed::from_hello(hello).ok_or(NotResumed::Unknown)?;
        let session = self.session(id).ok_or_else(|| self.endings.why(id, claimed.key))?;
        let before = self.hand_over(connection, fresh, &session, &claimed)?;
        if let Some(before) = before {
            // Half open is the normal case: the old connection's writes and acks count for nothing.
            self.shard(&self.by_connection, &before.id()).write().remove(&before.id());
            // One whose token has run out was told so, and ends when what runs on it is answered.
            if !before.has_refused_token() {
                before.say_goodbye("moved", "the session is on another connection now");
                before.close();
            }
        }
        self.shard(&self.by_connection, &connection.id()).write().insert(connection.id(), session.clone());

        // What the fresh session subscribed to goes along, from where it began. What is published meanwhile follows
        // it, as it has made way already.
        let left_out = self.carry_over(fresh, &session);
        self.rename(&session);
        self.remove(fresh, Ending::merged(), None);
        session.inner.changed.notify_waiters();
        match self.told.resumed.due() {
            Some(left_out) => {
                tracing::info!(session = %id, connection = %connection.id(), left_out, "a session was resumed")
            }
            None => tracing::debug!(session = %id, connection = %connection.id(), "a session was resumed"),
        }
        if connection.is_closed() {
            // It may have ended before it was in the table, and then has left the fresh session only.
            self.leave(connection);
        }
        Ok((session, left_out))
    }

    /// The part of [`Self::resume`] that happens at one moment: under the locks of both sessions. Returns the
    /// connection that the session has had until now.
    fn hand_over(
        &self,
        connection: &Connection,
        fresh: &Session,
        session: &Session,
        claimed: &Claimed<'_>,
    ) -> Result<Option<Connection>, NotResumed> {
        if fresh == session {
            return Err(NotResumed::Unknown);
        }
        // Who has no claim holds nobody up.
        self.check_claimed(session, &session.inner.state.lock(), claimed)?;
        let (mut making_way, mut state) = lock_both(fresh, session);
        self.check_claimed(session, &state, claimed)?;
        if making_way.ended || making_way.resumable {
            return Err(NotResumed::Unknown);
        }
        if state.is_past(self.options.resume_window) {
            return Err(NotResumed::Expired);
        }
        let is_latest = |seldom: &Seldom| seldom.secret.is_latest(claimed.attempt);
        if !state.seldom.as_deref().is_some_and(is_latest) {
            return Err(NotResumed::Late);
        }
        // Whom the auth hook bound to the new connection must be whom the session belongs to.
        if making_way.user.is_some() && making_way.user != state.user {
            return Err(NotResumed::Revoked);
        }
        if let Some(before) = &state.connection {
            // What the kernel took before is not called lost.
            let written = before.pushes_written();
            state.ledger.written_upto(written);
        }
        if !state.ledger.settle(&claimed.failed) || !state.ledger.resume(claimed.handled, claimed.received) {
            return Err(NotResumed::Gap);
        }

        state.note_held();
        self.away.recount(state.is_away(), false);
        self.away.forget(session.id(), &state);
        let seldom = state.seldom();
        seldom.secret.let_in(claimed.attempt);
        seldom.lost_at = None;
        state.generation += 1;
        let before = state.connection.replace(connection.clone());
        let trail = &session.inner.trail;
        if let Some(before) = &before {
            trail.note(What::TakenOver(before.id()));
        }
        let (generation, repeated) = (state.generation, state.ledger.unrepeated());
        trail.note(What::Resumed { connection: connection.id(), generation, repeated });
        making_way.connection = None;
        making_way.merge(&fresh.inner.trail, &mut state, session);
        Ok(before)
    }

    /// That this session can be had by who shows this.
    fn check_claimed(&self, session: &Session, state: &State, claimed: &Claimed<'_>) -> Result<(), NotResumed> {
        if state.ended {
            // It ended this moment.
            return Err(self.endings.why(session.id(), claimed.key));
        }
        if !state.resumable || !state.admits(claimed.key) {
            return Err(NotResumed::Unknown);
        }
        Ok(())
    }

    /// A handler is done whose pushes may still be in the ledger of its client's session.
    pub(crate) fn put_behind(&self, connection: &Connection, reply: HeldReply) {
        if let Some(session) = self.made_of(connection) {
            session.put_behind(connection, reply);
        }
    }

    /// A client acknowledges. Counts only on the session's present connection. False: it claims what was
    /// never sent.
    pub(crate) fn ack(&self, connection: &Connection, metadata: &Metadata) -> bool {
        let Some(acks) = Acks::from_metadata(metadata) else { return false };
        let Some(session) = self.made_of(connection) else { return true };
        {
            let mut state = session.inner.state.lock();
            if state.connection.as_ref() != Some(connection) {
                return true;
            }
            // What failed comes first: the offsets that follow count it as handled.
            if !state.ledger.settle(&acks.ends) || !state.ledger.ack(acks.received, acks.handled) {
                return false;
            }
            state.note_held();
        }
        session.inner.changed.notify_waiters();
        session.pump();
        true
    }

    /// A connection is over: its session waits for its client, or ends with it.
    pub(crate) fn leave(&self, connection: &Connection) {
        if self.never_makes(connection) {
            return;
        }
        let Some(session) = self.shard(&self.by_connection, &connection.id()).write().remove(&connection.id()) else {
            return;
        };
        let now = Instant::now();
        let waiting = {
            let mut state = session.inner.state.lock();
            if state.connection.as_ref() != Some(connection) {
                return;
            }
            state.connection = None;
            // What the kernel took before the end is not called lost.
            let (written, begun) = (connection.pushes_written(), connection.pushes_begun());
            state.ledger.written_upto(written);
            state.ledger.disconnect(begun);
            // Without a window nobody comes back.
            if state.resumable && !self.options.resume_window.is_zero() {
                let (methods, lost_at) = (connection.methods(), Some(now));
                let seldom = state.seldom();
                (seldom.methods, seldom.lost_at) = (methods, lost_at);
            }
            let waits = state.is_away();
            self.away.recount(false, waits);
            let why = connection.close_reason().map(|reason| reason.to_string()).unwrap_or_default();
            session.inner.trail.note(What::Lost { connection: connection.id(), why: explain::text(&why), waits });
            waits.then(|| Waiting {
                session: session.clone(),
                generation: state.generation,
                owner: Owner::of(&state, connection),
                is_idle: state.is_idle(),
            })
        };
        session.inner.changed.notify_waiters();
        if let Some(waiting) = waiting {
            self.rename(&session);
            self.wait_for_client(waiting, now);
        } else {
            let why = match session.is_resumable() {
                true => "with its connection: `resume_window` is 0",
                false => "with its connection: its client does not speak sessions",
            };
            // A plain client comes back as another session of its user, if at all.
            let ending = match connection.is_trusted() {
                true => Ending::new(why, NotResumed::Expired),
                // Whoever comes and goes without a token drives out no story of others.
                false => Ending::of_stranger(),
            };
            self.remove(&session, ending, Some(later(now, self.options.resume_window)));
        }
    }

    /// Ends sessions whose window is over, and forgets what topics need not keep: in a task, which lets others run every
    /// so many. Must be called within a tokio runtime.
    pub(crate) fn start_sweep(&self, now: Instant) {
        /// The next one may begin, also if this one was dropped with its runtime.
        struct Sweeping(Arc<Registry>);

        impl Drop for Sweeping {
            fn drop(&mut self) {
                self.0.sweeping.store(false, Ordering::Release);
            }
        }

        let Some(me) = self.me.upgrade() else { return };
        if me.sweeping.swap(true, Ordering::AcqRel) {
            return;
        }
        let sweeping = Sweeping(me);
        tokio::spawn(async move {
            sweeping.0.sweep_away(now).await;
            sweeping.0.sweep_topics().await;
        });
    }

    /// Ends all sessions, because no client can come back to any, and tells nobody of the others. Answers to how many a
    /// client might have, and how many pushes these were owed.
    pub(crate) async fn end_all(&self, why: &str) -> (usize, usize) {
        self.be_quiet();
        self.stopped.store(true, Ordering::Release);
        let (mut sessions, mut pushes) = (0, 0);
        for shard in &self.by_id {
            let of_shard: Vec<Session> = shard.read().iter().cloned().collect();
            for chunk in of_shard.chunks(ENDED_AT_ONCE) {
                for session in chunk {
                    sessions += usize::from(session.is_resumable());
                    pushes += session.inner.state.lock().ledger.unhandled();
                    self.remove(session, Ending::new(why, NotResumed::Ended), None);
                }
                tokio::task::yield_now().await;
            }
        }
        (sessions, pushes)
    }

    /// Ends these sessions now. Those of them that are in a topic together are not told of each other.
    pub(crate) fn kick(&self, sessions: &[Session], why: &str) {
        let _hold = self.hold_telling();
        sessions.iter().for_each(|session| self.end(session, why, Some(Eviction::Kicked), Last::Written));
    }

    /// Ends a session now.
    pub(super) fn end(&self, session: &Session, why: &str, eviction: Option<Eviction>, last: Last) {
        let (id, reason) = (session.id(), Said(why));
        tell!(self.told.ended, info, session = %id, why = %reason, "a session was ended");
        let told = eviction.map_or(NotResumed::Ended, Eviction::told);
        if let Some(connection) = self.remove(session, Ending::new(why, told).by_server(), None) {
            connection.say_goodbye(eviction.map_or("ended", Eviction::code), why);
            match last {
                Last::Answered if !connection.is_being_let_in() => connection.answer_and_end(CloseReason::Local),
                Last::Answered | Last::Written => connection.close(),
            }
        }
    }

    /// The client of this connection has left, and does not come back. What it has acknowledged by that is. False: it
    /// claims what was never sent.
    pub(crate) fn end_by_client(&self, connection: &Connection, said: &Metadata) -> bool {
        if said.get(keys::ACK_OFFSETS).is_some() && !self.ack(connection, said) {
            return false;
        }
        if let Some(session) = self.of(connection) {
            let ending = Ending::new("its client left", NotResumed::Ended);
            // It may have gone to another connection meanwhile, on which its client has not said so.
            self.remove_if(&session, ending, None, |state| state.connection.as_ref() == Some(connection));
        }
        true
    }

    /// Takes a session out of every table; what it was owed is dropped, and its senders are told.
    ///
    /// `until`: its user may come back with
    /// another one by then. Returns the connection that it had when it ended: nothing takes it from there.
    fn remove(&self, session: &Session, ending: Ending<'_>, until: Option<Instant>) -> Option<Connection> {
        self.remove_if(session, ending, until, |_| true)
    }

    pub(super) fn remove_if(
        &self,
        session: &Session,
        ending: Ending<'_>,
        until: Option<Instant>,
        still: impl FnOnce(&State) -> bool,
    ) -> Option<Connection> {
        let (user, patterns, ledger, held, connection) = {
            let mut state = session.inner.state.lock();
            if state.ended || !still(&state) {
                return None;
            }
            self.away.recount(state.is_away(), false);
            self.away.forget(session.id(), &state);
            if let Some(seldom) = &state.seldom {
                let words = ending.why.filter(|_| ending.by_server);
                self.endings.note(session.id(), &seldom.secret, ending.told, words);
            }
            state.ended = true;
            state.resumable = false;
            let ledger = Ledger::new(Arc::clone(&self.options.bounds));
            let ledger = std::mem::replace(&mut state.ledger, ledger);
            let (held, connection) = (state.claims.take(), state.connection.clone());
            (state.user.take(), std::mem::take(&mut state.patterns), ledger, held, connection)
        };
        let trail = &session.inner.trail;
        if let Some(why) = ending.why {
            trail.note(What::Ended(explain::text(why)));
        }
        // What was waiting tells its end after that of the session.
        drop((ledger, held));
        if ending.why.is_some() {
            self.ended.lock().keep(session.id(), user.clone(), trail, ending.by_server);
        }
        if let Some(user) = user {
            self.settle_user(session, &user);
        }
        self.unsubscribe_all(session, patterns.names().map(|pattern| &**pattern), until);
        if self.shard(&self.by_id, &session.id()).write().remove(session) {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        session.inner.changed.notify_waiters();
        connection
    }

    pub(super) fn bind_user(&self, session: &Session, name: Option<&str>) {
        let name: Option<Arc<str>> = name.map(Arc::from);
        let Some(before) = self.note_user(session, name.clone()) else { return };
        for user in before.iter().chain(&name) {
            self.settle_user(session, user);
        }
        // Another bound counts now for what it is owed.
        session.inner.changed.notify_waiters();
        self.rename(session);
    }

    /// Writes the user down, and answers who it was before; `None` if nothing changes. Both names are settled next.
    fn note_user(&self, session: &Session, name: Option<Arc<str>>) -> Option<Option<Arc<str>>> {
        let mut state = session.inner.state.lock();
        if state.ended || state.user == name {
            return None;
        }
        session.inner.trail.note(What::Bound(name.as_ref().map(explain::shared)));
        Some(std::mem::replace(&mut state.user, name))
    }

    /// Makes the table say of this user and this session what the session itself says now. Whoever has changed that
    /// comes here after it, so that the last of several who race leaves the truth: a session that ends while it is
    /// being bound is nobody's, and one that is bound twice at once is found under one name, once.
    fn settle_user(&self, session: &Session, user: &Arc<str>) {
        // Nobody is woken while a table is locked.
        let _held_locks = HeldLocks::begin();
        let mut users = self.shard(&self.by_user, &**user).write();
        if let Some(theirs) = users.get_mut(user) {
            self.open_account(theirs, session, user);
        }
        let mut state = session.inner.state.lock();
        let is_theirs = !state.ended && state.user.as_ref() == Some(user);
        // Nearly always it is in no list, or leaves its only one: a user of many sessions is not searched for nothing.
        let is_listed = 0 < state.listed && users.get(user).is_some_and(|theirs| theirs.sessions.contains(session));
        if is_theirs {
            let theirs = users.entry(Arc::clone(user)).or_default();
            if !is_listed {
                theirs.sessions.add(session.clone());
                state.listed += 1;
            }
            if theirs.account.is_none() && self.options.counts_user_calls {
                theirs.account = Some(self.new_account());
            }
            state.ledger.bill(true, theirs.account.clone());
        } else if is_listed {
            let theirs = users.get_mut(user).expect("it was just seen");
            theirs.sessions.remove(session);
            let has_user = state.user.is_some();
            match (state.ledger.account(), &theirs.account) {
                // Another user is billed already.
                (Some(billed), account) if account.as_ref().is_none_or(|account| !Arc::ptr_eq(billed, account)) => {}
                _ => state.ledger.bill(has_user, None),
            }
            if theirs.sessions.is_empty() {
                users.remove(user);
            }
            state.listed -= 1;
        }
    }

    /// Gives a user an account who is about to have a second session: what the first one holds is billed there.
    fn open_account(&self, theirs: &mut OfUser, second: &Session, user: &Arc<str>) {
        let comes = || second.inner.state.lock().user.as_ref() == Some(user);
        if theirs.account.is_some() || theirs.sessions.iter().all(|other| other == second) || !comes() {
            return;
        }
        let account = self.new_account();
        for session in theirs.sessions.iter() {
            let mut state = session.inner.state.lock();
            if !state.ended && state.user.as_ref() == Some(user) {
                state.ledger.bill(true, Some(Arc::clone(&account)));
                drop(state);
                // Whoever waits for room there waits for the others to make some, too.
                lock::wake(Wake::Of(Arc::clone(&session.inner) as Arc<dyn Changes>));
            }
        }
        theirs.account = Some(account);
    }

    fn new_account(&self) -> Arc<Account> {
        Account::new(self.options.bounds.user_bytes).into()
    }

    pub(crate) fn session(&self, id: SessionId) -> Option<Session> {
        self.shard(&self.by_id, &id).read().get(&id).cloned()
    }

    /// Sessions whose clients are away.
    pub(crate) fn away(&self) -> usize {
        self.away.len()
    }

    /// Sessions that live.
    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// The sessions that a target names, each once.
    pub(crate) fn find(&self, target: &Target) -> Result<Vec<Session>, TopicError> {
        let mut found: Vec<Session> = match &target.who {
            Who::Connection(id) => self.of_connection(*id).into_iter().collect(),
            Who::Session(id) => self.session(*id).into_iter().collect(),
            Who::Users(names) => {
                let of_user = |name: &String| -> Vec<Session> {
                    let users = self.shard(&self.by_user, name.as_str()).read();
                    users.get(name.as_str()).map(|theirs| theirs.sessions.iter().cloned().collect()).unwrap_or_default()
                };
                unique(names.iter().flat_map(of_user).collect())
            }
            Who::SubscribersOf(name) => {
                topic::check_topic(name)?;
                self.subscribers(name)
            }
            Who::Everyone => {
                self.make_all();
                self.by_id.iter().flat_map(|shard| shard.read().iter().cloned().collect::<Vec<_>>()).collect()
            }
        };
        // Who is about to get its session back is excepted with that.
        let wanted = |id: &SessionId| self.wanted_by(&self.session(*id)?);
        let excepted: Vec<Session> = target.except.iter().filter_map(wanted).collect();
        found.retain(|session| target.admits(session) && !excepted.contains(session));
        Ok(without_claims(found))
    }

    /// What lately happened to the sessions that a target names: first those that ended.
    pub(crate) fn explain(&self, target: &Target) -> Result<Vec<Explanation>, TopicError> {
        let live = self.find(target)?;
        let mut told = self.ended.lock().tell(target);
        told.extend(live.iter().map(Session::explain));
        Ok(told)
    }

    /// What one session can take at most, if no push is larger than this.
    pub(crate) fn session_bytes_max(&self, push_bytes: usize) -> usize {
        let options = &self.options;
        let terms = [
            options.events_max.saturating_mul(explain::EVENT_BYTES_MAX),
            options.subscription_bytes_max,
            METHODS_BYTES_MAX,
            PARTS_BYTES,
        ];
        terms.into_iter().fold(options.bounds.bytes_max(push_bytes), usize::saturating_add)
    }

    pub(super) fn encode(&self, push: &Push) -> Result<Encoded, PushError> {
        let plain = self.encode_with(push, &push.metadata)?;
        let mut metadata = push.metadata.clone();
        let hash = push.key.as_ref().map(|(key, hash)| {
            metadata.insert(keys::IDEMPOTENCY_KEY, &**key);
            *hash
        });
        if let Class::Latest(key) = &push.class {
            metadata.insert(keys::LATEST_KEY, key);
        } else if hash.is_none() {
            return Ok(Encoded { frame: plain, keyed: None });
        }
        let frame = self.encode_with(push, &metadata)?;
        Ok(Encoded { frame, keyed: Some(Arc::new(Keyed { hash, plain })) })
    }

    fn encode_with(&self, push: &Push, metadata: &Metadata) -> Result<Bytes, PushError> {
        let header = Header::oneway(Seq::of_push(0), push.serialize);
        let limits = &self.options.limits;
        let frame =
            PushFrame::with_header(header, &push.service_path, &push.service_method, metadata, &push.payload, limits)?;
        Ok(frame.bytes())
    }

    /// Pushes to everybody that a target names. The push is encoded once, and nobody waits for anybody.
    pub(crate) fn push(&self, target: &Target, push: &Push, receipt: &Receipt) -> Result<(), SendError> {
        self.check_running()?;
        Ok(self.push_to(&self.find(target)?, push, receipt)?)
    }

    /// # Errors
    /// [`SendError::ShutDown`].
    pub(super) fn check_running(&self) -> Result<(), SendError> {
        if self.stopped.load(Ordering::Acquire) { Err(SendError::ShutDown) } else { Ok(()) }
    }

    /// Pushes to these sessions.
    pub(super) fn push_to(&self, sessions: &[Session], push: &Push, receipt: &Receipt) -> Result<(), PushError> {
        push.check_reserved()?;
        let (frame, listed) = (self.encode(push)?, Listed::new(sessions));
        for session in sessions {
            session.add(push, &frame, receipt, &listed);
        }
        self.pump_all(sessions);
        Ok(())
    }

    /// Writes to these sessions what is in their ledgers. To a crowd a task does so, which lets others run every so
    /// many; the order of what each session gets is that of its ledger, whoever writes.
    pub(super) fn pump_all(&self, sessions: &[Session]) {
        let crowd = WRITTEN_AT_ONCE < sessions.len();
        let runtime = crowd.then(|| self.runtimes.near()).flatten();
        let Some(runtime) = runtime else { return sessions.iter().for_each(Session::pump) };
        write_by_task(sessions, &runtime);
    }
}

/// Writes to these sessions by a task, which lets others run every so many.
fn write_by_task(sessions: &[Session], runtime: &Handle) {
    sessions.iter().for_each(Session::note_unwritten);
    let owned = sessions.to_vec();
    let mut unwritten = Unwritten(owned.into_iter());
    runtime.spawn(async move {
        while unwritten.write(ENDED_AT_ONCE) {
            tokio::task::yield_now().await;
        }
    });
}

/// Sessions that are still to be written to. Dropped with the runtime that was to do so, it writes to them.
struct Unwritten(std::vec::IntoIter<Session>);

impl Unwritten {
    /// Writes to so many of them. False: there are no more.
    fn write(&mut self, sessions_max: usize) -> bool {
        self.0.by_ref().take(sessions_max).for_each(|session| session.pump());
        0 < self.0.len()
    }
}

impl Drop for Unwritten {
    fn drop(&mut self) {
        self.write(usize::MAX);
    }
}

/// See [`Registry::claim`]. Ends when dropped.
pub(crate) struct Claim {
    session: Option<Session>,
}

impl Claim {
    /// The client is let in: [`Registry::arrive`] ends it.
    pub(crate) fn granted(mut self) {
        self.session = None;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        let claimed = session.inner.state.lock().settle(&session);
        session.inner.changed.notify_waiters();
        session.pump();
        if let (Some(claimed), Some(registry)) = (claimed, session.inner.registry.upgrade()) {
            // It was not let in: the session that it named has its places still.
            claimed.places.iter().for_each(|pattern| registry.unsubscribe(&session, pattern));
            registry.rename(&session);
        }
    }
}

/// Why a client that was let in gets no session on its connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum NotWelcome {
    /// The connection is over, or its client has ended its side already.
    Over,
    /// A later attempt of the same client was let in before. If this is its client's last one all the same, the
    /// client is to try again.
    Late,
}

/// How long a client waits whose attempt was not its latest.
pub(crate) const RETRY_LATE: Duration = Duration::from_millis(50);

/// What a client says that wants its session back.
struct Claimed<'a> {
    key: &'a str,
    handled: u64,
    received: Option<u64>,
    attempt: Option<u64>,
    /// What it did not handle of what it counts as handled.
    failed: Vec<acks::End>,
}

impl<'a> Claimed<'a> {
    /// `None`: something is missing, or is no number.
    fn from_hello(hello: &'a Metadata) -> Option<Self> {
        let number = |key| hello.get(key).map(str::parse).transpose().ok();
        Some(Self {
            key: hello.get(keys::SESSION_KEY)?,
            handled: number(keys::SESSION_OFFSET)??,
            received: number(keys::SESSION_RECEIVED)?,
            attempt: number(keys::SESSION_TRY)?,
            failed: acks::failed(hello)?,
        })
    }
}

/// Without those whose client has named another of them: that one gets what is for both.
fn without_claims(mut sessions: Vec<Session>) -> Vec<Session> {
    let wanted = |session: &Session| session.inner.state.lock().claims.as_ref().map(|claims| claims.wanted);
    let claiming: Vec<(SessionId, SessionId)> =
        sessions.iter().filter_map(|session| Some((session.id(), wanted(session)?))).collect();
    if !claiming.is_empty() {
        let listed = Listed::new(&sessions);
        let hidden: HashSet<SessionId> =
            claiming.into_iter().filter(|(_, wanted)| listed.contains(*wanted)).map(|(id, _)| id).collect();
        sessions.retain(|session| !hidden.contains(&session.id()));
    }
    sessions
}

/// Why a push to a target was not even begun.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The topic has no such name.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// The message cannot be sent.
    #[error(transparent)]
    Push(#[from] PushError),
    /// The server was shut down: its sessions have ended, and nobody comes to what its topics keep.
    #[error("the server was shut down")]
    ShutDown,
}

impl From<ReservedName> for SendError {
    fn from(error: ReservedName) -> Self {
        Self::Push(error.into())
    }
}

/// Locks two sessions: that of the lower number first, whichever of them is named first.
fn lock_both<'a>(one: &'a Session, other: &'a Session) -> (Locked<'a, State>, Locked<'a, State>) {
    if one.id() < other.id() {
        let one = one.inner.state.lock();
        (one, other.inner.state.lock())
    } else {
        let other = other.inner.state.lock();
        (one.inner.state.lock(), other)
    }
}

fn shards<T: Default>() -> Vec<T> {
    std::iter::repeat_with(T::default).take(SHARDS).collect()
}

/// Each once, in the order of their first place.
pub(super) fn unique(mut sessions: Vec<Session>) -> Vec<Session> {
    let mut seen = HashSet::with_capacity(sessions.len());
    sessions.retain(|session| seen.insert(session.id()));
    sessions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Client, ClientOptions, Reconnect, Server};

    /// A server's sessions, and one of them.
    async fn one_session(name: &str) -> (Server, Client, Arc<Registry>, Session) {
        let server = Server::builder().build();
        let listening = server.listen(&format!("memory@registry-{name}")).await.expect("the name is free");
        let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
        client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
        let session = server.sessions(&Target::everyone()).expect("no topic").remove(0);
        let registry = session.inner.registry.upgrade().expect("the server lives");
        (server, client, registry, session)
    }

    fn bound_to(registry: &Registry, name: &str) -> usize {
        registry.find(&Target::user(name)).expect("no topic").len()
    }

    /// A client that only calls costs no session. Asked for, it has one, which tells of everything from the beginning.
    #[tokio::test(start_paused = true)]
    async fn a_session_is_made_when_it_is_asked_for() {
        let registry = Arc::new(Mutex::new(None::<Arc<Registry>>));
        let ended = Arc::new(Mutex::new(None));
        let (of_hook, asked) = (Arc::clone(&registry), Arc::clone(&ended));
        let server = Server::builder()
            .on_disconnect(move |connection, _| {
                *asked.lock() = of_hook.lock().as_ref().and_then(|registry| registry.of_connection(connection.id()));
            })
            .build();
        let listening = server.listen("memory@registry-asked-for").await.expect("the name is free");
        let mut clients = Vec::new();
        for _ in 0..2 {
            let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
            client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
            clients.push(client);
        }
        let [first, second] = server.connections().try_into().expect("two");
        let all = first.owner::<Registry>().expect("a server's connection");
        *registry.lock() = Some(Arc::clone(&all));
        assert_eq!((all.made_of(&first), all.made_of(&second), server.stats().sessions), (None, None, 2));

        tokio::time::advance(Duration::from_secs(5)).await;
        let told = server.explain(&Target::connection(first.id())).expect("no topic").remove(0);
        let since: Duration = Duration::from_millis(told.events[0].at_ms);
        let ago = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970") - since;
        assert!(Duration::from_secs(5) <= ago, "{ago:?}, as it connected");
        assert_eq!(told.events[0].event, super::super::Event::Connected(first.id().to_string()));
        assert_eq!((all.made_of(&first), all.made_of(&second)), (all.of(&first), None), "one, and the same for all");

        let everyone = server.sessions(&Target::everyone()).expect("no topic");
        assert_eq!((everyone.len(), all.unmade.load(Ordering::Relaxed)), (2, 0));
        let third = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
        third.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
        clients.push(third);
        let last = server.connections().pop().expect("three");
        drop(clients.pop());
        last.closed().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(ended.lock().is_some(), "`on_disconnect` finds it");
        assert_eq!((all.of(&last), all.of_connection(last.id()), server.stats().sessions), (None, None, 2));
    }

    /// The table kept such a session for ever: found, pushed to, and never forgotten.
    #[tokio::test(start_paused = true)]
    async fn a_session_that_ends_while_it_is_bound_is_nobodys() {
        let (_server, _client, registry, session) = one_session("ends-while-bound").await;
        let ann: Arc<str> = "ann".into();
        assert_eq!(registry.note_user(&session, Some(Arc::clone(&ann))), Some(None));
        registry.remove(&session, Ending::new("now", NotResumed::Ended), None);
        registry.settle_user(&session, &ann);
        assert_eq!(bound_to(&registry, "ann"), 0);
        assert!(registry.by_user.iter().all(|shard| shard.read().is_empty()), "nothing is left");
        registry.bind_user(&session, Some("bob"));
        assert_eq!(bound_to(&registry, "bob"), 0, "it has ended");
    }

    /// Two threads bind a session to two users, and one of them comes to the table late.
    #[tokio::test(start_paused = true)]
    async fn a_session_bound_twice_at_once_is_found_under_the_last_name_once() {
        let (_server, _client, registry, session) = one_session("bound-twice").await;
        let [ann, bob]: [Arc<str>; 2] = ["ann".into(), "bob".into()];
        assert_eq!(registry.note_user(&session, Some(Arc::clone(&ann))), Some(None));
        registry.bind_user(&session, Some("bob"));
        registry.settle_user(&session, &ann);
        assert_eq!((bound_to(&registry, "ann"), bound_to(&registry, "bob")), (0, 1));

        // From bob to ann and back to bob, while the first of these is late.
        assert_eq!(registry.note_user(&session, Some(Arc::clone(&ann))), Some(Some(Arc::clone(&bob))));
        registry.bind_user(&session, Some("bob"));
        registry.settle_user(&session, &bob);
        registry.settle_user(&session, &ann);
        assert_eq!((bound_to(&registry, "ann"), bound_to(&registry, "bob")), (0, 1));
    }

    /// Plain connections of one server, without sessions so far.
    async fn plain_connections<const N: usize>(name: &str) -> (Server, Vec<Client>, Arc<Registry>, [Connection; N]) {
        let server = Server::builder().build();
        let listening = server.listen(&format!("memory@registry-{name}")).await.expect("the name is free");
        let mut clients = Vec::new();
        for _ in 0..N {
            let options = ClientOptions::new().negotiate(false).reconnect(Reconnect::Never);
            let client = Client::connect(listening.address(), options).await.expect("it listens");
            client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
            clients.push(client);
        }
        let connections: [Connection; N] = server.connections().try_into().expect("as many");
        let registry = connections[0].owner::<Registry>().expect("a server's connection");
        (server, clients, registry, connections)
    }

    /// What the client of this Welcome says when it comes back.
    fn claim(welcome: &Metadata) -> Metadata {
        [keys::SESSION_ID, keys::SESSION_KEY]
            .iter()
            .fold(Metadata::new(), |pairs, key| pairs.with(key, welcome.get(key).expect("it is in each Welcome")))
            .with(keys::SESSION_OFFSET, "0")
    }

    /// A thread that found the session by its connection goes on when another connection has taken the session: it
    /// neither lets the session speak to a client that is not welcomed yet, nor confirms, nor takes it away again.
    #[tokio::test(start_paused = true)]
    async fn who_found_the_session_by_an_old_connection_does_nothing_to_it() {
        let (_server, _clients, registry, [first, old, new]) = plain_connections("old-connection").await;
        let welcome = registry.arrive(&first, &Metadata::new()).expect("it is open");
        registry.welcomed(&first);
        let session = registry.of(&first).expect("it was made");
        let push = |text: &str| session.push(&Push::new("Chat", "say", text.to_owned())).expect("small");
        let sent = push("sent");
        assert_eq!(sent.outcomes().at(super::super::Stage::Written), 1);
        // It has not taken this one, and never will.
        session.inner.state.lock().ledger.mark(first.pushes_written() + 1);
        for connection in [&old, &new] {
            let again = registry.arrive(connection, &claim(&welcome)).expect("it is open");
            assert!(again.get(keys::SESSION_RESUMED).is_some());
        }
        // The moment between the taking over and the table that says so.
        let stale = registry.shard(&registry.by_connection, &old.id());
        stale.write().insert(old.id(), session.clone());
        registry.welcomed(&old);
        let waits = push("waits");
        assert_eq!(waits.outcomes().at(super::super::Stage::Queued), 1, "the new connection is not welcomed yet");
        assert!(registry.ack(&old, &Metadata::new().with(keys::ACK_OFFSETS, "1,1")));
        assert_eq!(sent.outcomes().at(super::super::Stage::Written), 1, "nobody has confirmed it");
        registry.leave(&old);
        assert_eq!(session.connection().as_ref(), Some(&new));
        registry.welcomed(&new);
        assert_eq!(waits.outcomes().at(super::super::Stage::Written), 1, "by the count of the new connection");
        session.inner.state.lock().ledger.mark(first.pushes_written());
        assert!(!session.note_written(&first), "it says nothing of what the new one has written");
        assert!(session.inner.state.lock().ledger.written_upto(0), "it is not known to be written");
    }

    /// A crowd is written to by a task. If its runtime ends before that has run, all are written to, and no push waits
    /// for the next one.
    #[tokio::test(start_paused = true)]
    async fn a_crowd_is_written_to_though_its_runtime_ends() {
        let (_server, _clients, registry, connections) = plain_connections::<3>("crowd").await;
        let sessions = connections.map(|connection| registry.of(&connection).expect("it is made"));
        let (push, receipt) = (Push::new("Chat", "say", "x"), Receipt::new());
        let frame = registry.encode(&push).expect("small");
        sessions.iter().for_each(|session| session.add(&push, &frame, &receipt, &Listed::default()));
        // Nobody runs its tasks.
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        write_by_task(&sessions, runtime.handle());
        assert_eq!(receipt.outcomes().at(super::super::Stage::Queued), 3, "{receipt:?}");
        runtime.shutdown_background();
        assert_eq!(receipt.outcomes().at(super::super::Stage::PlainWritten), 3, "{receipt:?}");
    }

    /// The hook has let a client in that claims another session, and another thread pushes before the client gets it.
    #[tokio::test(start_paused = true)]
    async fn who_is_granted_its_claim_is_nobody_until_it_arrives() {
        let (_server, _clients, registry, [first, claims]) = plain_connections("granted").await;
        let welcome = registry.arrive(&first, &Metadata::new()).expect("it is open");
        let fresh = registry.of(&claims).expect("it is made");
        registry.claim(&claims, &claim(&welcome)).expect("it is open").granted();
        let everyone = || registry.find(&Target::everyone()).expect("no topic");
        assert_eq!(everyone(), [registry.of(&first).expect("it was made")]);
        registry.arrive(&claims, &claim(&welcome)).expect("it is open");
        assert_eq!(everyone(), [registry.of(&claims).expect("it has it")]);
        assert_eq!(
            fresh.connection().as_ref(),
            Some(&claims),
            "whoever holds it still holds the session of its client"
        );
    }

    /// The Welcome is queued and a thread pushes before the session is told so: to a client that has just begun its
    /// session that is a tracked push, as are those that waited for it. They once went as they go to a plain client,
    /// and were lost with the connection.
    #[tokio::test(start_paused = true)]
    async fn what_is_pushed_beside_the_welcome_is_tracked() {
        let (_server, _clients, registry, [connection]) = plain_connections("beside-the-welcome").await;
        let session = registry.of(&connection).expect("it is made");
        registry.arrive(&connection, &Metadata::new()).expect("it is open");
        let push = |text: &str| session.push(&Push::new("Chat", "say", text.to_owned())).expect("small");
        let fire = session.push(&Push::new("Chat", "say", "f").class(super::super::Class::Fire)).expect("small");
        let receipts = [push("1"), push("2")];
        registry.welcomed(&connection);
        for receipt in &receipts {
            assert_eq!(receipt.outcomes().at(super::super::Stage::Written), 1, "{receipt:?}");
        }
        assert_eq!(fire.outcomes().at(super::super::Stage::PlainWritten), 1);
        connection.cut();
        connection.closed().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(session.waiting().0, 2, "they wait for the client to come back");
    }

    /// The connection is over when its client is let in, and nobody was told so far: it takes nothing from the
    /// session that its client had, be that away or on a connection that lives, and begins none that waits for nobody.
    #[tokio::test(start_paused = true)]
    async fn who_is_gone_when_it_is_let_in_takes_nothing_over() {
        let (server, _clients, registry, [first, claims, new]) = plain_connections("gone-when-let-in").await;
        let welcome = registry.arrive(&first, &Metadata::new()).expect("it is open");
        let session = registry.of(&first).expect("it was made");
        for gone in [&claims, &new] {
            gone.cut();
        }
        assert_eq!(registry.arrive(&claims, &claim(&welcome)), Err(NotWelcome::Over));
        assert_eq!((session.connection().as_ref(), session.generation()), (Some(&first), 1));
        assert_eq!(registry.arrive(&new, &Metadata::new()), Err(NotWelcome::Over));
        for connection in [&claims, &new] {
            connection.closed().await;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!((server.stats().sessions, registry.len(), registry.away()), (1, 1, 0));
    }

    /// Two clients name each other's session, of which each has the secret: who locks both of them does so in one
    /// order, and neither thread waits for the other.
    #[tokio::test]
    async fn clients_that_claim_each_others_sessions_block_nobody() {
        const ROUNDS: usize = 5000;
        let (_server, _clients, registry, connections) = plain_connections::<2>("each-others").await;
        let claims: Vec<Metadata> = connections
            .iter()
            .map(|connection| claim(&registry.arrive(connection, &Metadata::new()).expect("it is open")))
            .collect();
        let start = Arc::new(std::sync::Barrier::new(2));
        let (done, over) = std::sync::mpsc::channel();
        for (this, other) in [(0, 1), (1, 0)] {
            let (registry, start, done) = (Arc::clone(&registry), Arc::clone(&start), done.clone());
            let (connection, claims) = (connections[this].clone(), claims[other].clone());
            let [fresh, wanted] = [this, other].map(|at| registry.of(&connections[at]).expect("it was made"));
            std::thread::spawn(move || {
                let claimed = Claimed::from_hello(&claims).expect("it is whole");
                start.wait();
                for _ in 0..ROUNDS {
                    let outcome = registry.hand_over(&connection, &fresh, &wanted, &claimed);
                    assert!(outcome.is_err(), "it has a session that it may come back to");
                }
                done.send(())
            });
        }
        for _ in 0..2 {
            over.recv_timeout(Duration::from_secs(30)).expect("neither is blocked");
        }
    }

    /// No clock can count how long it has: a resume once panicked, under the locks of both sessions.
    #[tokio::test(start_paused = true)]
    async fn what_never_expires_follows_its_client_to_the_session_that_it_gets() {
        let (_server, _clients, registry, [first, claims]) = plain_connections("never-expires").await;
        let welcome = registry.arrive(&first, &Metadata::new()).expect("it is open");
        registry.welcomed(&first);
        let fresh = registry.of(&claims).expect("it is made");
        registry.claim(&claims, &claim(&welcome)).expect("it is open").granted();
        let push = Push::new("Chat", "say", "for ever").time_to_live(Duration::MAX);
        let receipt = fresh.push(&push).expect("small");
        let again = registry.arrive(&claims, &claim(&welcome)).expect("it is open");
        assert!(again.get(keys::SESSION_RESUMED).is_some());
        registry.welcomed(&claims);
        assert_eq!(receipt.outcomes().at(super::super::Stage::Written), 1, "{receipt:?}");
    }

    /// A session is ended while its client comes back to it on another thread. Either it has ended before, and the
    /// client is told so; or the connection that it has by then is closed. No connection is left whose session is over.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_ends_a_session_ends_the_connection_that_it_has() {
        const ROUNDS: usize = 64;
        let connections = plain_connections::<{ 2 * ROUNDS }>("ends-the-connection").await;
        let (_server, _clients, registry, connections) = connections;
        for pair in connections.chunks(2) {
            let welcome = registry.arrive(&pair[0], &Metadata::new()).expect("it is open");
            let session = registry.of(&pair[0]).expect("it was made");
            let start = std::sync::Barrier::new(2);
            let again = std::thread::scope(|scope| {
                let arriving = scope.spawn(|| {
                    start.wait();
                    registry.arrive(&pair[1], &claim(&welcome))
                });
                start.wait();
                registry.end(&session, "enough", None, Last::Written);
                arriving.join().expect("no panic")
            });
            let resumed = again.is_ok_and(|welcome| welcome.get(keys::SESSION_RESUMED).is_some());
            assert!(!resumed || pair[1].is_over(), "its session is over and nobody says so");
        }
    }

    /// F36. A push to many does the same few things for each in the caller's call, and nothing that grows with their
    /// number; so does a message of a topic.
    #[tokio::test(start_paused = true)]
    async fn a_push_to_many_costs_the_same_for_each() {
        use super::super::{TopicOptions, lock};

        let history = TopicOptions::new().open().history(10, Duration::from_secs(60));
        let server = Server::builder().topic("news", history).expect("a pattern").build();
        let listening = server.listen("memory@registry-many").await.expect("the name is free");
        let mut clients = Vec::new();
        let mut costs = Vec::new();
        for count in [20, 40, 80] {
            while clients.len() < count {
                let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
                client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
                clients.push(client);
            }
            let sessions = server.sessions(&Target::everyone()).expect("no topic");
            let registry = sessions[0].inner.registry.upgrade().expect("the server lives");
            sessions.iter().for_each(|session| _ = registry.subscribe(session, "news", None, false).expect("it lives"));
            let push = Push::new("N", "say", "1");
            let cost = |run: &dyn Fn() -> Receipt| {
                let before = lock::TAKEN.get();
                assert_eq!(run().outcomes().targets(), count);
                lock::TAKEN.get() - before
            };
            costs.push([
                cost(&|| server.push(&Target::everyone(), &push).expect("small")),
                cost(&|| server.publish("news", &push).expect("small")),
            ]);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for [push, publish] in costs.iter().zip([20, 40, 80]).map(|(cost, count)| cost.map(|cost| cost.div_ceil(count)))
        {
            assert!(push <= 6 && publish <= 6, "{costs:?}");
        }
    }

    /// A connection claims one session, and only while it has none that outlives it. What comes to nothing ends.
    #[tokio::test(start_paused = true)]
    async fn a_claim_ends_when_it_is_dropped() {
        let (_server, _clients, registry, [first, second]) = plain_connections("claim-ends").await;
        let wanted = Metadata::new().with(keys::SESSION_ID, SessionId::random().to_string());
        let session = registry.of(&first).expect("it is made");
        let claims = || session.inner.state.lock().claims.is_some();
        let held = registry.claim(&first, &wanted).expect("it is open");
        assert!(claims() && registry.claim(&first, &wanted).is_none(), "it claims one already");
        drop(held);
        assert!(!claims());
        registry.claim(&first, &wanted).expect("it is open").granted();
        assert!(claims(), "it goes on until the client arrives");
        registry.arrive(&second, &Metadata::new()).expect("it is open");
        assert!(registry.claim(&second, &wanted).is_none(), "it has a session");
    }

    /// Sessions are written to so many at a time, until all were.
    #[tokio::test(start_paused = true)]
    async fn what_is_unwritten_is_written_part_by_part() {
        let (_server, _clients, registry, connections) = plain_connections::<3>("unwritten").await;
        let sessions: Vec<_> = connections.iter().map(|it| registry.of(it).expect("it is made")).collect();
        let mut unwritten = Unwritten(sessions.into_iter());
        assert!(unwritten.write(2), "one is left");
        assert!(!unwritten.write(2));
        assert!(!unwritten.write(2));
    }

    /// However many sessions a user has, they share one account.
    #[tokio::test(start_paused = true)]
    async fn a_user_has_one_account() {
        let (_server, _clients, registry, connections) = plain_connections::<4>("account").await;
        let sessions: Vec<_> = connections.iter().map(|it| registry.of(it).expect("it is made")).collect();
        let account = |at: usize| sessions[at].inner.state.lock().ledger.account().cloned();
        sessions[0].bind_user("ann");
        assert!(account(0).is_none(), "one session alone has its own bounds");
        for session in &sessions[1..3] {
            session.bind_user("ann");
        }
        let first = account(0).expect("there are several");
        sessions[3].bind_user("ann");
        assert!(account(0).is_some_and(|same| Arc::ptr_eq(&same, &first)), "another session changes nothing");
        assert!((1..4).all(|at| account(at).is_some_and(|other| Arc::ptr_eq(&other, &first))));
        sessions[3].bind_user("bob");
        assert!(account(3).is_none());
    }

    /// A session that is another user's by now, and one that has ended, are still in the list: the account that their
    /// former user gets with its next session is not theirs.
    #[tokio::test(start_paused = true)]
    async fn an_account_is_for_sessions_of_its_user_only() {
        let (_server, _clients, registry, connections) = plain_connections::<3>("account-of").await;
        let sessions: Vec<_> = connections.iter().map(|it| registry.of(it).expect("it is made")).collect();
        let account = |at: usize| sessions[at].inner.state.lock().ledger.account().cloned();
        let [ann, bob]: [Arc<str>; 2] = ["ann".into(), "bob".into()];
        sessions[0].bind_user("ann");
        registry.settle_user(&sessions[1], &ann);
        assert!(account(0).is_none(), "the other one is not of ann");
        // Not settled yet.
        assert_eq!(registry.note_user(&sessions[0], Some(Arc::clone(&bob))), Some(Some(Arc::clone(&ann))));
        sessions[1].bind_user("ann");
        assert!(account(0).is_none());
        assert!(account(1).is_some(), "the list still has two");

        registry.settle_user(&sessions[0], &ann);
        registry.settle_user(&sessions[0], &bob);
        assert!(account(0).is_none(), "the only session of bob");
        sessions[0].inner.state.lock().ended = true;
        sessions[2].bind_user("bob");
        assert!(account(0).is_none() && account(2).is_some());
    }
}
