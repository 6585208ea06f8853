//! Ends sessions: because the server wants it, because their clients left, or because they did not come back.

use std::sync::{Arc, atomic::Ordering};

use bothways_proto::{Metadata, keys};
use tokio::time::Instant;

use super::{
    Session, SessionId,
    away::{Key, Waiting},
    endings::{Ending, Eviction, Last, NotResumed},
    explain::{self, What},
    registry::Registry,
    state::{Remains, State},
};
use crate::{
    calm::{Said, tell},
    connection::Connection,
    error::CloseReason,
};

/// Sessions that end before others have their turn.
pub(super) const ENDED_AT_ONCE: usize = 256;

impl Registry {
    /// The client of this session is told that it does not get it back, and forgets it: it ends, if it has not yet.
    pub(super) fn end_revoked(&self, id: SessionId) {
        let Some(session) = self.session(id) else { return };
        let ending = Ending::new("its client came back as another user", NotResumed::Revoked);
        if let Some(connection) = self.remove(&session, ending, None) {
            connection.close();
        }
    }

    /// The client of this session has shown its secret on another connection, and goes on there with a new one: its old
    /// connection ends, and this session with it. A client that is connected twice is nobody's idea of one that comes
    /// back.
    pub(super) fn end_left_behind(&self, id: SessionId) {
        let Some(session) = self.session(id) else { return };
        let ending = Ending::new("its client came back, and could not get it", NotResumed::Gap);
        if let Some(connection) = self.remove_if(&session, ending, None, |state| state.connection().is_some()) {
            connection.say_goodbye("moved", "its client has another session now");
            connection.close();
        }
    }

    /// Ends these sessions now. Those of them that are in a topic together are not told of each other.
    pub(crate) fn kick(&self, sessions: &[Session], why: &str) {
        let _hold = self.hub.hold_telling();
        sessions.iter().for_each(|session| self.end(session, why, Some(Eviction::Kicked), Last::Written));
    }

    /// Ends a session now.
    pub(super) fn end(&self, session: &Session, why: &str, eviction: Option<Eviction>, last: Last) {
        let (id, reason) = (session.id(), Said(why));
        tell!(self.told.ended, info, session = %id, why = %reason, "a session was ended");
        let told = eviction.map_or(NotResumed::Ended, NotResumed::Evicted);
        if let Some(connection) = self.remove(session, Ending { last, ..Ending::new(why, told).by_server() }, None) {
            if eviction.is_some_and(|eviction| connection.send_away_at_hello(eviction.code(), why)) {
                return;
            }
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
            self.remove_if(&session, ending, None, |state| state.is_on(connection));
        }
        true
    }

    /// Ends all sessions, because no client can come back to any, and tells nobody of the others. Answers to how many a
    /// client might have, and how many pushes these were owed.
    pub(crate) async fn end_all(&self, why: &str) -> (usize, usize) {
        self.hub.be_quiet();
        self.fan_out.stop();
        let (mut sessions, mut pushes) = (0, 0);
        for shard in self.by_id.iter() {
            let of_shard: Vec<Session> = shard.read().iter().cloned().collect();
            for chunk in of_shard.chunks(ENDED_AT_ONCE) {
                for session in chunk {
                    sessions += usize::from(session.is_resumable());
                    pushes += session.lock().ledger().unhandled();
                    self.remove(session, Ending::new(why, NotResumed::Ended), None);
                }
                tokio::task::yield_now().await;
            }
        }
        (sessions, pushes)
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
            sweeping.0.hub.sweep_topics().await;
        });
    }

    /// Takes a session out of every table; what it was owed is dropped, and its senders are told.
    ///
    /// `until`: its user may come back with
    /// another one by then. Returns the connection that it had when it ended: nothing takes it from there.
    pub(super) fn remove(&self, session: &Session, ending: Ending<'_>, until: Option<Instant>) -> Option<Connection> {
        self.remove_if(session, ending, until, |_| true)
    }

    pub(super) fn remove_if(
        &self,
        session: &Session,
        ending: Ending<'_>,
        until: Option<Instant>,
        still: impl FnOnce(&State) -> bool,
    ) -> Option<Connection> {
        // Nobody is told less of what was put off than they would have been of what is written.
        if session.lock().is_put_off() {
            session.write_put_off();
        }

        #[cfg(feature = "cluster")]
        let was_resumable = self.beyond.get().is_some() && session.lock().is_resumable();
        let remains = {
            let mut state = session.lock();
            if state.is_ended() || !still(&state) {
                return None;
            }
            // Under the session's lock, so that who comes back at this moment finds it away, or ended and known why.
            if let Some(since) = state.away_since() {
                self.away.forget(session.id(), since);
            }
            if let Some(secret) = state.secret() {
                let words = ending.why.filter(|_| ending.by_server);
                self.endings.note(session.id(), secret, ending.told, words);
            }
            state.leave_batch(&session.inner.event_log);
            state.end(&self.bounds)?
        };

        // Outside the session's lock: the topics and tables below are locked before a session.
        let Remains { user, patterns, ledger, claims, connection, former } = remains;
        for connection in former {
            match ending.last {
                Last::Answered => connection.answer_and_end(CloseReason::Local),
                Last::Written => connection.close(),
            }
        }

        if let Some(mail) = self.post.get() {
            mail.forget(session.id());
        }
        let event_log = &session.inner.event_log;
        if let Some(why) = ending.why {
            session.inner.note(What::Ended(explain::text(why)));
        }
        // What was waiting tells its end after that of the session.
        drop((ledger, claims));
        if ending.why.is_some() {
            self.ended.lock().keep(session.id(), user.clone(), event_log, ending.by_server);
        }

        if let Some(user) = user {
            self.users.settle(session, &user);
        }
        self.hub.unsubscribe_all(session, patterns.names().map(|pattern| &**pattern), until);
        if self.by_id.of(&session.id()).write().remove(session) {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        #[cfg(feature = "cluster")]
        if was_resumable && let Some(beyond) = self.beyond.get() {
            beyond.note(session.id());
        }

        session.inner.changed.notify_waiters();
        connection
    }

    /// Keeps a session whose client has just left. If too many wait by now, another one ends: first those whose end
    /// costs nothing, and of those one of the user with the most.
    pub(super) fn wait_for_client(&self, waiting: Waiting, lost_at: Instant) {
        self.away.waiting.lock().insert((lost_at, waiting.session.id()), waiting);
        let max = self.options().away_max;
        if self.away.len() <= max {
            return;
        }
        let _turn = self.away.making_room.lock();
        while max < self.away.len() {
            let Some((key, mut first)) = self.away.first() else { return };
            // It was not when its client left: since then it has been owed something.
            if first.is_idle && !first.session.lock().is_idle() {
                first.is_idle = false;
                self.keep_waiting(key, first);
                continue;
            }
            self.end_away(&first, "more clients were away than `sessions.away_max`");
        }
    }

    fn keep_waiting(&self, key: Key, waiting: Waiting) {
        let session = waiting.session.clone();
        let state = session.lock();
        if waiting.is_still(&state) {
            self.away.waiting.lock().insert(key, waiting);
        }
    }

    /// Ends the sessions whose window is over. Those that leave topics together are not told of each other.
    pub(super) async fn sweep_away(&self, now: Instant) {
        let Some(left_by) = now.checked_sub(self.options().resume_window) else { return };
        let mut hold = None;
        loop {
            let over = self.away.over(left_by, ENDED_AT_ONCE);
            let Some(first) = over.first().map(|first| first.session.id()) else { return };
            hold.get_or_insert_with(|| self.hub.hold_telling());
            for waiting in &over {
                self.end_away(waiting, "its client did not come back within `resume_window`");
            }
            let sessions = over.len();
            tracing::info!(sessions, %first, "sessions expired: their clients did not come back");
            tokio::task::yield_now().await;
        }
    }

    fn end_away(&self, waiting: &Waiting, why: &str) {
        // Its client may have come back this moment.
        let ending = Ending::new(why, NotResumed::Expired);
        self.remove_if(&waiting.session, ending, None, |state| waiting.is_still(state));
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::fixtures::{claim, plain_connections},
        *,
    };

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
}
