//! A client's way through its session: it arrives, comes back to a session that it had, acknowledges, and leaves.

use std::{sync::Arc, time::Duration};

use bothways_proto::{Metadata, keys};
use tokio::time::Instant;

use super::{
    Session, SessionId,
    acks::{self, Acks},
    away::{Owner, Waiting},
    claims::Claims,
    endings::{Ending, NotResumed},
    explain::{self, What},
    given_up,
    lock::Locked,
    registry::Registry,
    state::{Gap, State},
};
use crate::{
    clock::later,
    connection::{Connection, HeldReply},
    reply::BoxFuture,
};

impl Registry {
    /// The client of a connection shows that it had another session, and is about to be let in, which may take a while.
    /// What is pushed to its user meanwhile is for the session that it had, and not for the one of its connection as
    /// well. `is_let_in`: the hook has let it in before, so that it is found as itself until it has the other one.
    pub(crate) fn claim(&self, connection: &Connection, said: &Metadata, is_let_in: bool) -> Option<Claim> {
        let wanted = said.get(keys::SESSION_ID)?.parse().ok()?;
        let session = self.of(connection)?;
        let bounds = Arc::clone(&self.bounds);
        let claims = if self.waits_for(said) {
            Claims::new(wanted, !is_let_in, bounds)
        } else {
            #[cfg(not(feature = "cluster"))]
            return None;
            #[cfg(feature = "cluster")]
            match self.beyond.get() {
                Some(_) if self.session(wanted).is_none() && !is_let_in => {
                    Claims::elsewhere(wanted, session.id(), bounds)
                }
                _ => return None,
            }
        };
        let claims = {
            let mut state = session.lock();
            state.leave_batch(&session.inner.event_log);
            state.claim(claims)
        };
        claims.then_some(Claim { session: Some(session) })
    }

    /// A client that speaks sessions said Hello, and was let in: back to its session, or on with its new one.
    ///
    /// Returns the pairs of the Welcome. Until [`Self::welcomed`] nothing is sent to it.
    ///
    /// # Errors
    /// [`NotWelcome`]: the client gets no session on this connection.
    pub(crate) fn arrive(&self, connection: &Connection, hello: &Metadata) -> Result<Metadata, NotWelcome> {
        let fresh = self.of(connection).ok_or(NotWelcome::Over)?;
        // A client that comes back is on another connection: this one takes nothing from that.
        if connection.is_over() {
            return Err(NotWelcome::Over);
        }

        let asked = hello.get(keys::SESSION_ID).and_then(|id| id.parse::<SessionId>().ok());
        let resumed = asked.map(|id| (id, self.resume(connection, &fresh, id, hello)));

        let mut welcome = Metadata::new();
        let session = match resumed {
            Some((_, Ok((session, left_out)))) => {
                self.resumes.count("resumed");
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
                    self.refuse_resume(&fresh, wanted, why, hello, &mut welcome)?;
                } else if hello.get(keys::SESSION_ID).is_some() {
                    // No session has such a name.
                    self.resumes.count(NotResumed::Unknown.code());
                    welcome.insert(keys::SESSION_WHY, NotResumed::Unknown.code());
                }
                self.name_device(&fresh, hello);
                welcome.insert(keys::SESSION_KEY, self.begin(&fresh));
                fresh
            }
        };

        let (methods, takes_only_these) = (connection.methods(), connection.pushes_go_to_handlers());
        // Let go before `leave` below, which locks the session again.
        let offset = {
            let mut state = session.lock();
            state.introduce(methods, takes_only_these);
            state.ledger().last_offset()
        };
        self.name_device(&session, hello);
        welcome.insert(keys::SESSION_ID, session.id().to_string());
        welcome.insert(keys::SESSION_OFFSET, offset.to_string());

        if connection.is_closed() {
            // It ended while its client was being let in, and its end may have found only the session that it
            // had before. A session whose connection is over waits for its client.
            self.leave(connection);
        }
        Ok(welcome)
    }

    /// The client does not get the session that it wanted: the Welcome says why not.
    fn refuse_resume(
        &self,
        fresh: &Session,
        wanted: SessionId,
        why: NotResumed,
        hello: &Metadata,
        welcome: &mut Metadata,
    ) -> Result<(), NotWelcome> {
        let text = why.code();
        self.resumes.count(text);
        fresh.inner.note(What::NotResumed { wanted: explain::text(&wanted.to_string()), why: text });
        if why == NotResumed::Late {
            return Err(NotWelcome::Late);
        }

        welcome.insert(keys::SESSION_WHY, text);
        if let NotResumed::Evicted(_) = why {
            welcome.insert(keys::GOODBYE_CODE, text);
        }

        let key = hello.get(keys::SESSION_KEY).unwrap_or_default();
        if let Some(words) = self.endings.words(wanted, key) {
            welcome.insert(keys::SESSION_WORDS, words);
        }

        if why == NotResumed::Revoked {
            self.end_revoked(wanted);
        } else if wanted != fresh.id() && self.waits_for(hello) {
            self.end_left_behind(wanted);
        }
        Ok(())
    }

    /// The client goes on with the session of its connection. Returns the secret by which it comes back to it.
    fn begin(&self, fresh: &Session) -> String {
        fresh.inner.note(What::Resumable);
        let (secret, claimed) = fresh.lock().begin(fresh.now());
        fresh.inner.changed.notify_waiters();
        if let Some(claimed) = claimed {
            // Its client has this one instead, and with it the places that the other one had.
            if let Some(other) = self.session(claimed.wanted) {
                claimed.places.iter().for_each(|pattern| self.hub.unsubscribe(&other, pattern));
            }
            self.hub.rename(fresh);
        }
        #[cfg(feature = "cluster")]
        if let Some(beyond) = self.beyond.get() {
            beyond.note(fresh.id());
        }
        secret
    }

    /// Brings the session here that the client of this Hello had, if another node has it. `None`: there is nothing to
    /// bring. `Err`: not now; its client keeps it, and is to come again after so long.
    pub(crate) fn bring(&self, connection: &Connection, hello: &Metadata) -> Option<BoxFuture<Result<(), Duration>>> {
        #[cfg(feature = "cluster")]
        return self.beyond.get()?.bring(connection, hello);
        #[cfg(not(feature = "cluster"))]
        {
            let _ = (connection, hello);
            None
        }
    }

    /// True if this may be a client whose session is to be brought here.
    pub(crate) fn may_bring(&self, hello: &Metadata) -> bool {
        #[cfg(feature = "cluster")]
        return self.beyond.get().is_some() && hello.value(keys::SESSION_ID).is_some();
        #[cfg(not(feature = "cluster"))]
        {
            let _ = hello;
            false
        }
    }

    /// Its mailbox is read from the place of this device. Before it can be resumed, for that is when reading may begin.
    fn name_device(&self, session: &Session, hello: &Metadata) {
        if let Some(mail) = self.post.get() {
            mail.name_device(session.id(), hello.get(keys::DEVICE));
        }
    }

    /// The Welcome is on its way: what the session owes its client follows it.
    pub(crate) fn welcomed(&self, connection: &Connection) {
        let Some(session) = self.made_of(connection) else { return };
        let given_up = session.lock().welcomed(connection);
        let Some(given_up) = given_up else { return };
        for id in given_up {
            connection.cancel_call(&given_up::text(id));
        }
        session.pump();
        if let Some(mail) = self.post.get() {
            mail.arrived(&session);
        }
    }

    /// True if a client that says this has a session here to come back to.
    pub(crate) fn waits_for(&self, hello: &Metadata) -> bool {
        let Some(id) = hello.get(keys::SESSION_ID).and_then(|id| id.parse().ok()) else { return false };
        let (Some(session), Some(key)) = (self.session(id), hello.get(keys::SESSION_KEY)) else { return false };
        let state = session.lock();
        state.is_resumable() && state.admits(key)
    }

    /// The session that the client of this one has shown the secret of, while it is being let in: it is about to get
    /// that one.
    pub(crate) fn wanted_by(&self, session: &Session) -> Option<Session> {
        let wanted = session.lock().wanted()?;
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
            self.by_connection.of(&before.id()).write().remove(&before.id());
            before.say_goodbye("moved", "the session is on another connection now");
            before.close();
        }
        self.by_connection.of(&connection.id()).write().insert(connection.id(), session.clone());

        // What the fresh session subscribed to goes along, from where it began. What is published meanwhile follows
        // it, as it has made way already.
        let left_out = self.hub.carry_over(fresh, &session);
        self.hub.rename(&session);
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
    /// connection that the session has had until now, if it is to end. One whose token has run out was told so: it ends
    /// when what runs on it is answered, for this session.
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

        // A connection without a claim delays nobody.
        self.check_claimed(session, &session.lock(), claimed)?;
        let (mut making_way, mut state) = lock_both(fresh, session);
        // Checked again: others may have changed the session between the two locks.
        self.check_claimed(session, &state, claimed)?;

        if !making_way.may_make_way() {
            return Err(NotResumed::Unknown);
        }
        if state.is_given() {
            // Another node has asked for it this moment.
            return Err(NotResumed::Late);
        }
        if state.is_past(self.options.resume_window) {
            return Err(NotResumed::Expired);
        }
        if !state.secret().is_some_and(|secret| secret.is_latest(claimed.attempt)) {
            return Err(NotResumed::Late);
        }
        // Whom the auth hook bound to the new connection must be whom the session belongs to.
        if making_way.user().is_some() && making_way.user() != state.user() {
            return Err(NotResumed::Revoked);
        }

        let since = state.away_since();
        let Claimed { attempt, handled, received, failed, .. } = claimed;
        let before = state
            .resume(connection, *attempt, *handled, *received, failed, session.now())
            .map_err(|Gap| NotResumed::Gap)?;
        if let Some(since) = since {
            self.away.forget(session.id(), since);
        }

        if let Some(before) = &before {
            session.inner.note(What::TakenOver(before.id()));
        }
        let (generation, repeated) = (state.generation(), state.ledger().unrepeated());
        session.inner.note(What::Resumed { connection: connection.id(), generation, repeated });
        making_way.leave_batch(&fresh.inner.event_log);
        making_way.make_way(fresh, &mut state, session);

        match before {
            Some(before) if before.has_refused_token() => {
                before.take_no_calls();
                Ok(state.keep_former(&before))
            }
            before => Ok(before),
        }
    }

    /// That this session can be had by who shows this.
    fn check_claimed(&self, session: &Session, state: &State, claimed: &Claimed<'_>) -> Result<(), NotResumed> {
        if state.is_ended() {
            // It ended this moment.
            return Err(self.endings.why(session.id(), claimed.key));
        }
        if !state.is_resumable() || !state.admits(claimed.key) {
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
        let (is_true, has_next) = {
            let mut state = session.lock();
            (state.ack(connection, &acks, session.now()), state.ledger().has_next())
        };
        match is_true {
            Some(true) => {}
            Some(false) => return false,
            None => return true,
        }
        session.inner.changed.notify_waiters();
        if has_next {
            session.pump();
        }
        true
    }

    /// A connection is over: its session waits for its client, or ends with it.
    pub(crate) fn leave(&self, connection: &Connection) {
        if self.never_makes(connection) {
            return;
        }
        let Some(session) = self.by_connection.of(&connection.id()).write().remove(&connection.id()) else {
            return;
        };

        let now = Instant::now();
        let waiting = {
            let mut state = session.lock();
            if state.is_on(connection) {
                state.leave_batch(&session.inner.event_log);
            }
            state.forget_former(connection);
            // Without a window nobody comes back.
            let has_window = !self.options.resume_window.is_zero();
            let Some(waits) = state.lose(connection, has_window, now, session.now()) else { return };
            if waits {
                // Under the session's lock, so that it counts before it can come back.
                self.away.note();
            }

            let why = connection.close_reason().map(|reason| reason.to_string()).unwrap_or_default();
            session.inner.note(What::Lost { connection: connection.id(), why: explain::text(&why), waits });
            waits.then(|| Waiting {
                session: session.clone(),
                generation: state.generation(),
                owner: Owner::of(&state, connection),
                is_idle: state.is_idle(),
            })
        };

        // Outside the session's lock: the topics and tables below are locked before a session.
        session.inner.changed.notify_waiters();
        if let Some(waiting) = waiting {
            self.hub.rename(&session);
            self.wait_for_client(waiting, now);
        } else {
            let why = match session.is_resumable() {
                true => "with its connection: `resume_window` is 0",
                false => "with its connection: its client does not speak sessions",
            };

            // A plain client comes back as another session of its user, if at all.
            let ending = match connection.is_trusted() {
                true => Ending::new(why, NotResumed::Expired),
                // A client that comes and goes without a token drives out no event log of others.
                false => Ending::of_stranger(),
            };
            self.remove(&session, ending, Some(later(now, self.options.resume_window)));
        }
    }
}

/// See [`Registry::claim`]. Ends when dropped.
pub(crate) struct Claim {
    session: Option<Session>,
}

impl Claim {
    /// The client is let in: [`Registry::arrive`] ends it; or its connection ends, and with it what it claims.
    pub(crate) fn granted(mut self) {
        self.session = None;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        let claimed = session.lock().unclaim(session.now());
        session.inner.changed.notify_waiters();
        session.pump();
        if let (Some(claimed), Some(registry)) = (claimed, session.inner.registry.upgrade()) {
            // It was not let in: the session that it named has its places still.
            claimed.places.iter().for_each(|pattern| registry.hub.unsubscribe(&session, pattern));
            registry.hub.rename(&session);
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

/// Locks two sessions: that of the lower number first, whichever of them is named first.
fn lock_both<'a>(one: &'a Session, other: &'a Session) -> (Locked<'a, State>, Locked<'a, State>) {
    if one.id() < other.id() {
        let one = one.lock();
        (one, other.lock())
    } else {
        let other = other.lock();
        (one.lock(), other)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Push, Target,
            fixtures::{claim, plain_connections},
        },
        *,
    };

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
        session.lock().mark(first.pushes_written() + 1);
        for connection in [&old, &new] {
            let again = registry.arrive(connection, &claim(&welcome)).expect("it is open");
            assert!(again.get(keys::SESSION_RESUMED).is_some());
        }
        // The moment between the taking over and the table that says so.
        let stale = registry.by_connection.of(&old.id());
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
        session.lock().mark(first.pushes_written());
        assert!(!session.note_written(&first), "it says nothing of what the new one has written");
        assert!(session.lock().written_upto(0, Duration::ZERO), "it is not known to be written");
    }

    /// The hook has let a client in that claims another session, and another thread pushes before the client gets it.
    #[tokio::test(start_paused = true)]
    async fn who_is_granted_its_claim_is_nobody_until_it_arrives() {
        let (_server, _clients, registry, [first, claims]) = plain_connections("granted").await;
        let welcome = registry.arrive(&first, &Metadata::new()).expect("it is open");
        let fresh = registry.of(&claims).expect("it is made");
        registry.claim(&claims, &claim(&welcome), false).expect("it is open").granted();
        let everyone = || registry.find(&Target::everyone()).expect("no topic");
        let session = registry.of(&first).expect("it was made");
        assert_eq!(everyone(), std::slice::from_ref(&session));
        assert_eq!(
            fresh.explain().standing,
            explain::Standing::Arriving(claims.id().to_string()),
            "an operator sees it"
        );
        let listed_before = vec![fresh.clone(), session.clone()];
        registry.arrive(&claims, &claim(&welcome)).expect("it is open");
        assert_eq!(everyone(), [registry.of(&claims).expect("it has it")]);
        // A caller that has listed both just before calls one client, and not twice.
        assert_eq!(registry.without_claims(listed_before), [session]);
        assert_eq!(
            registry.without_claims(vec![fresh.clone()]),
            std::slice::from_ref(&fresh),
            "it stands for the other one"
        );
        assert_eq!(fresh.connection().as_ref(), Some(&claims), "its holder still has the session of its client");
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
            assert_eq!(receipt.written().await.at(super::super::Stage::Written), 1, "{receipt:?}");
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
        registry.claim(&claims, &claim(&welcome), false).expect("it is open").granted();
        let push = Push::new("Chat", "say", "for ever").time_to_live(Duration::MAX);
        let receipt = fresh.push(&push).expect("small");
        let again = registry.arrive(&claims, &claim(&welcome)).expect("it is open");
        assert!(again.get(keys::SESSION_RESUMED).is_some());
        registry.welcomed(&claims);
        assert_eq!(receipt.outcomes().at(super::super::Stage::Written), 1, "{receipt:?}");
    }

    /// A connection claims one session, and only while it has none that outlives it. What comes to nothing ends.
    #[tokio::test(start_paused = true)]
    async fn a_claim_ends_when_it_is_dropped() {
        let (_server, _clients, registry, [first, second, third]) = plain_connections("claim-ends").await;
        let wanted = claim(&registry.arrive(&third, &Metadata::new()).expect("it is open"));
        let session = registry.of(&first).expect("it is made");
        let claims = || session.lock().wanted().is_some();
        let guessed = wanted.clone().with(keys::SESSION_KEY, "guessed");
        assert!(registry.claim(&first, &guessed, false).is_none() && !claims(), "the number alone claims nothing");
        let held = registry.claim(&first, &wanted, false).expect("it is open");
        assert!(claims() && registry.claim(&first, &wanted, false).is_none(), "it claims one already");
        drop(held);
        assert!(!claims());
        registry.claim(&first, &wanted, false).expect("it is open").granted();
        assert!(claims(), "it goes on until the client arrives");
        registry.arrive(&second, &Metadata::new()).expect("it is open");
        assert!(registry.claim(&second, &wanted, false).is_none(), "it has a session");
    }
}
