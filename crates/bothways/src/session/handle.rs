//! One session: the handle that all share, and what is done with it alone.
//!
//! Here a push enters the ledger, and goes from there to the connection. What needs the tables of the server is in
//! `mod.rs`.

use std::{
    borrow::Borrow,
    hash::{Hash, Hasher},
    sync::{Arc, Weak},
    time::Duration,
};

use bothways_proto::Seq;
use tokio::{sync::Notify, time::Instant};

use super::{
    SessionId,
    account::{Account, UserCall},
    batch::{Batch, Joins},
    claims::Listed,
    explain::{self, EventLog, What},
    flight::{FlusherId, Flying},
    ledger::{Entry, Ledger, Next},
    lock::{self, Lock, Locked},
    long_batch,
    push::{Class, Encoded, Origin, Push},
    receipt::{Failure, Receipt, Stage},
    registry::Registry,
    state::State,
    subscribers::Numbered,
};
use crate::{
    clock::{Over, is_outside, timeout_outside},
    connection::{Connection, ConnectionId, HeldReply},
    error::PushError,
};

/// A server's state of one client. A clone is the same session.
///
/// The `auth` hook of a Hello gets one before the server knows whether the client comes back to a session that it had.
/// If so, the hook's handle stands for that session from then on, except for its [`id`](Self::id).
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
    pub(super) inner: Arc<Inner>,
}

/// In which form a session gets a push.
#[derive(Clone, Copy)]
pub(super) enum Form<'a> {
    Only(&'a Encoded),
    /// Of a topic: for those who know of topics, and for those of whom it is not known. These see what Go would send, unless
    /// they turn out to speak sessions before it goes.
    OfTopic {
        with_topic: &'a Encoded,
        plain: &'a dyn Fn() -> Option<&'a Encoded>,
    },
}

/// What became of a push that is delivered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Entered {
    /// There is nothing to do for it here.
    Nothing,
    /// It may only be entered where that suits, and it does not.
    DoesNotSuit,
    /// It is in the ledger: the session is pumped next.
    Kept,
    /// Its connection has it, and is to be written.
    Sent,
    /// Its connection has it, and so much that it is to be written at once.
    SentMuch,
}

pub(super) struct Inner {
    pub(super) id: SessionId,
    pub(super) registry: Weak<Registry>,
    pub(super) event_log: Arc<EventLog>,
    /// Told when the session gets or loses a connection, has more room, or ends.
    pub(super) changed: Notify,
    pub(super) state: Lock<State>,
}

impl Inner {
    /// Notes an event in the story of this session, and in the feed of all if somebody watches that.
    pub(super) fn note(&self, what: What) {
        if let Some(registry) = self.registry.upgrade() {
            registry.feed.note(self.id, &what);
        }
        self.event_log.note(what);
    }
}

impl lock::Changes for Inner {
    fn tell(&self) {
        self.changed.notify_waiters();
    }
}

impl Session {
    /// The session that this one stands for: itself, or the one that its client came back to. The `auth` hook of a Hello
    /// is given a session before it is known which one its client gets.
    pub(super) fn current(&self) -> Self {
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
    pub(super) fn lock(&self) -> Locked<'_, State> {
        let mut state = self.inner.state.lock();
        if state.has_batch() {
            state.catch_up(&self.inner.event_log);
        }
        if let Some(newest) = long_batch::newest()
            && state.has_not_seen(newest)
            && let Some(registry) = self.inner.registry.upgrade()
        {
            registry.fan_out.batches.take_part(self, &mut state);
        }
        state
    }

    /// As [`Self::lock`], where it is known that it is in no long batch before its own, or that it does not matter.
    pub(super) fn lock_in_turn(&self) -> Locked<'_, State> {
        let mut state = self.inner.state.lock();
        if state.has_batch() {
            state.catch_up(&self.inner.event_log);
        }
        state
    }

    /// Takes from now on what is noted there. `None`: it takes no part.
    pub(super) fn join(&self, batch: &Arc<Batch>) -> Option<Joins> {
        self.lock().join(batch, &self.inner.event_log)
    }

    /// What is known of the session that this one stands for.
    pub(super) fn of_current<T>(&self, read: impl FnOnce(&mut State) -> T) -> T {
        read(&mut self.current().lock())
    }

    /// The public number.
    pub fn id(&self) -> SessionId {
        self.inner.id
    }

    /// A place for one more call of its user, if it has one. `Err`: so many run already.
    pub(crate) fn begin_user_call(&self, calls_max: usize) -> Result<Option<UserCall>, usize> {
        // Under the session's lock: the account of one that ends this moment is kept for the call, or not found.
        let begun = self.lock().ledger().account().map(Account::begin_call);
        let Some((call, running)) = begun else { return Ok(None) };
        if running < calls_max { Ok(Some(call)) } else { Err(running) }
    }

    /// True if its client acknowledges, and has been sent what it has not acknowledged.
    pub(crate) fn awaits_acks(&self) -> bool {
        let state = self.lock();
        state.connection().is_some() && state.ledger().awaits_acks()
    }

    /// Enters a push into the ledger; the caller pumps. It is for all of `listed`.
    pub(super) fn add(&self, push: &Push, encoded: &Encoded, receipt: &Receipt, listed: &Listed<'_>) {
        self.add_if(push, encoded, receipt, listed, |_| true);
    }

    /// Enters a push into the ledger if that suits; the caller pumps. True if there is nothing to wait for.
    pub(super) fn add_if(
        &self,
        push: &Push,
        encoded: &Encoded,
        receipt: &Receipt,
        listed: &Listed<'_>,
        suits: impl FnOnce(&Ledger) -> bool,
    ) -> bool {
        self.enter(push, Form::Only(encoded), receipt, listed, suits) != Entered::DoesNotSuit
    }

    /// Hands a push to the connection, if nothing is before it and the socket is free. `None`: [`Self::deliver`] follows.
    pub(super) fn send(
        &self,
        push: &Push,
        flying: Flying<'_>,
        topic: Option<&str>,
        flusher: Option<FlusherId>,
    ) -> Option<Entered> {
        self.lock().send(push, flying, topic, flusher, &self.inner.event_log)
    }

    /// Enters a push into the ledger.
    pub(super) fn deliver(&self, push: &Push, form: Form<'_>, receipt: &Receipt, listed: &Listed<'_>) -> Entered {
        self.enter(push, form, receipt, listed, |_| true)
    }

    fn enter(
        &self,
        push: &Push,
        form: Form<'_>,
        receipt: &Receipt,
        listed: &Listed<'_>,
        suits: impl FnOnce(&Ledger) -> bool,
    ) -> Entered {
        let mut state = self.lock();
        let wanted = state.wanted();
        if wanted.is_some_and(|wanted| listed.contains(wanted)) {
            // The session that the client wants gets it, and a client that does not get that one was not meant.
            return Entered::Nothing;
        }

        if let Some(into) = state.made_way_for().cloned() {
            // Two sessions are locked at once only where both change: see `resume.rs`.
            drop(state);
            if listed.contains(into.id()) {
                return Entered::Nothing;
            }
            // To pump this one is to pump that one.
            return into.enter(push, form, receipt, &listed.alone(), suits);
        }

        let Encoded { frame, keyed } = match form {
            Form::Only(encoded) => encoded,
            Form::OfTopic { with_topic, .. } if state.knows_topics() => with_topic,
            Form::OfTopic { plain, .. } => match plain() {
                Some(plain) => plain,
                None => return Entered::Nothing,
            },
        };

        let takes_no_such = state.takes_no_such(&push.service_path, &push.service_method);
        let may_wait = !state.is_ended() && wanted.is_none() && !takes_no_such && push.class == Class::Tracked;
        let now = self.now();
        // First: what is too old makes room.
        state.expire_waiting(now);
        if may_wait && !suits(state.ledger()) {
            return Entered::DoesNotSuit;
        }

        let event_log = &self.inner.event_log;
        let mut ticket = receipt.ticket(self.id());
        // What the framework tells by itself is no part of the application's story.
        if listed.origin != Origin::Framework {
            ticket.follow(event_log, event_log.note_push(push.name(), &push.class, frame.len(), now));
        }

        if state.is_ended() {
            // The ticket counts as dropped with its session.
            return Entered::Nothing;
        }
        if takes_no_such {
            ticket.advance(Stage::Failed(Failure::NoHandler));
            return Entered::Nothing;
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
        let Some(entry) = state.hold(entry, push.name()) else { return Entered::Nothing };
        state.take(entry, listed.topic, now);
        Entered::Kept
    }

    /// Writes what its connection has, which was put off.
    pub(super) fn write_put_off(&self) {
        self.write_out(self.lock());
    }

    /// Writes what it has got of a batch, which is closed.
    pub(super) fn write_batch(&self, batch: &Arc<Batch>) {
        self.write_batch_of(self.lock(), batch);
    }

    /// As [`Self::write_batch`], of one that is locked.
    pub(super) fn write_batch_of(&self, mut state: Locked<'_, State>, batch: &Arc<Batch>) {
        state.end_batch(batch);
        self.write_out(state);
    }

    fn write_out(&self, mut state: Locked<'_, State>) {
        state.end_put_off();
        let connection = state.connection().cloned();
        drop(state);
        let Some(connection) = connection else { return };
        connection.flush();
        if self.note_written(&connection) {
            self.pump();
        }
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
            // Two sessions are locked at once only where both change.
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
        while connection.is_writable() {
            let Some(next) = state.next(now) else { break };
            is_added = true;
            let added = match next {
                Next::Frame { frame, offset } => match connection.queue_as(&frame, Seq::of_push(offset)) {
                    Err(error @ PushError::TooLarge(_)) => {
                        too_large = Some(error);
                        state.fail_last(offset);
                        if offset == 0 {
                            continue;
                        }
                        connection.queue_skip(Seq::of_push(offset))
                    }
                    added => added,
                },
                Next::Skip { offset } => connection.queue_skip(Seq::of_push(offset)),
                Next::Gap { missed } => {
                    self.inner.note(What::GapTold(missed));
                    connection.queue_gap(missed)
                }
            };

            let Ok(mark) = added else {
                // It is over, and its end is on its way here; or others filled it this moment. Then it ends
                // too: what the ledger has given away, the client must get on this connection or the next.
                ended = Some(connection.cut_untold());
                break;
            };
            state.mark(mark);
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
    pub(super) fn note_written(&self, connection: &Connection) -> bool {
        let mut state = self.lock_in_turn();
        if !state.is_on(connection) {
            return false;
        }
        let is_left = state.written_upto(connection.pushes_written(), self.now());
        let keeps = state.ledger().has_next();
        (is_left || keeps) && !connection.notify_writable(keeps)
    }

    /// What it was pushed is written by a task: replies of handlers that run now ask whether it is theirs.
    pub(super) fn note_unwritten(&self) {
        if let Some(connection) = self.lock().connection() {
            connection.note_kept_push();
        }
    }

    /// The reply of a handler on this connection goes after the pushes that wait in the session now.
    pub(crate) fn put_behind(&self, connection: &Connection, reply: HeldReply) {
        {
            let mut state = self.lock();
            if state.is_on(connection) {
                state.put_behind(reply);
            }
        }
        self.pump();
    }

    /// True if the pairs that go with what is published mean something to the client.
    pub(super) fn knows_topics(&self) -> bool {
        self.lock().knows_topics()
    }

    /// True if a call can reach its client, now or when the client is back.
    pub(super) fn takes_calls(&self) -> bool {
        self.lock().takes_calls()
    }

    /// False if its client has said what it handles, and this is not among it.
    pub(super) fn handles(&self, service_path: &str, service_method: &str) -> bool {
        let methods = self.lock().methods();
        methods.is_none_or(|methods| methods.contains(service_path, service_method))
    }

    /// Orders sessions by when their clients were last there: those that are away come first, in the order in
    /// which they left, then those that are connected, in the order in which they came.
    pub(super) fn recency(&self) -> (Option<ConnectionId>, Option<Instant>) {
        let state = self.lock();
        (state.connection().map(Connection::id), state.away_since())
    }

    /// It belongs to this user from now on. Returns to whom it did; `None` if nothing changes. The tables of both are
    /// settled next.
    pub(super) fn bind(&self, user: Option<Arc<str>>) -> Option<Option<Arc<str>>> {
        // The story is told under the session's lock, so that of two that bind it at once the last one told is the one
        // that it is bound to.
        let mut state = self.lock();
        let before = state.bind(user.clone())?;
        self.inner.note(What::Bound(user.as_ref().map(explain::shared)));
        Some(before)
    }

    pub(super) fn now(&self) -> Duration {
        self.inner.event_log.now()
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
    pub(super) async fn within<T>(&self, deadline: Instant, future: impl Future<Output = T>) -> Result<T, Over> {
        match is_outside() {
            false => tokio::time::timeout_at(deadline, future).await.map_err(|_| Over),
            true => {
                let clock = self.inner.registry.upgrade().and_then(|registry| registry.runtimes.any());
                Box::pin(timeout_outside(clock, deadline, future)).await
            }
        }
    }

    /// Waits until the session has noticed that this connection is over.
    pub(super) async fn left(&self, connection: &Connection) {
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
    pub(super) async fn connected(&self) -> Option<Connection> {
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

impl Numbered for Session {
    fn number(&self) -> u128 {
        self.inner.id.0
    }
}

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
    use super::{super::Target, *};
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
        session.lock().mark(connection.pushes_written() + 1);
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
        assert_eq!(session.lock().lose(&connection, true, Instant::now(), Duration::ZERO), Some(true));
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
