//! To whom: one kind of address, used alike by pushes and calls.

use super::{Session, SessionId};
use crate::connection::ConnectionId;

/// Who gets a push: sessions, however they are known.
#[derive(Clone, Debug)]
#[must_use]
pub struct Target {
    pub(super) who: Who,
    pub(super) except: Vec<SessionId>,
    pub(super) labels: Vec<(String, String)>,
}

#[derive(Clone, Debug)]
pub(super) enum Who {
    Connection(ConnectionId),
    Session(SessionId),
    Users(Vec<String>),
    SubscribersOf(String),
    Everyone,
}

impl Target {
    fn new(who: Who) -> Self {
        Self { who, except: Vec::new(), labels: Vec::new() }
    }

    /// The session whose connection has this number.
    pub fn connection(id: ConnectionId) -> Self {
        Self::new(Who::Connection(id))
    }

    /// The session of this number.
    pub fn session(id: SessionId) -> Self {
        Self::new(Who::Session(id))
    }

    /// All sessions of this user.
    pub fn user(name: impl Into<String>) -> Self {
        Self::users([name])
    }

    /// All sessions of these users, each once.
    pub fn users<N: Into<String>>(names: impl IntoIterator<Item = N>) -> Self {
        Self::new(Who::Users(names.into_iter().map(Into::into).collect()))
    }

    /// All sessions that subscribe to this topic now, each once, by however many patterns: past its history.
    ///
    /// What is pushed to these is no message of the topic. It has no topic and no position, and no history keeps it, so
    /// that nobody recovers it: [`Server::publish`](crate::Server::publish) is what a topic's messages go by.
    pub fn subscribers_of(topic: impl Into<String>) -> Self {
        Self::new(Who::SubscribersOf(topic.into()))
    }

    /// All sessions. A client that is coming back has two while its new connection has not said whose it is: its own,
    /// which gets the push, and one that ends with what was pushed to it
    /// ([`DropReason::SessionEnded`](super::DropReason::SessionEnded)).
    pub fn everyone() -> Self {
        Self::new(Who::Everyone)
    }

    /// But not this session; while its client is being let in that comes back to another one, not that one either.
    pub fn except(mut self, session: SessionId) -> Self {
        self.except.push(session);
        self
    }

    /// Only sessions that have this label with this value. Each session that the target names otherwise is looked at:
    /// with [`Self::everyone`] all of the server's.
    pub fn only_labelled(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.push((key.into(), value.into()));
        self
    }

    /// True if a session that ended would be named by who it was; topics and labels ended with it.
    pub(super) fn admits_past(&self, id: SessionId, user: Option<&str>) -> bool {
        let named = match &self.who {
            Who::Session(session) => *session == id,
            Who::Users(names) => user.is_some_and(|user| names.iter().any(|name| name == user)),
            Who::Everyone => true,
            Who::Connection(_) | Who::SubscribersOf(_) => false,
        };
        named && self.labels.is_empty() && !self.except.contains(&id)
    }

    /// True if the session is not excluded.
    pub(super) fn admits(&self, session: &Session) -> bool {
        if self.except.contains(&session.id()) {
            return false;
        }
        if self.labels.is_empty() {
            return true;
        }
        let state = session.inner.state.lock();
        self.labels.iter().all(|(key, value)| state.label(key) == Some(value))
    }
}
