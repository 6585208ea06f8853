//! The target of a push or a call.

use super::{Session, SessionId};
use crate::connection::ConnectionId;

/// The sessions that get a push: by connection, session, user, topic, label, or all of them.
///
/// ```
/// use bothways::{Push, Server, Target};
///
/// let server = Server::builder().build();
/// let push = Push::new("News", "Flash", "rain");
/// for target in [
///     Target::user("ann"),
///     Target::users(["ann", "bob"]),
///     Target::everyone().only_labelled("device", "phone"),
///     Target::subscribers_of("news.weather"),
/// ] {
///     let receipt = server.push(&target, &push)?;
///     assert_eq!(receipt.outcomes().targets(), 0, "nobody is connected");
/// }
/// # Ok::<(), bothways::session::SendError>(())
/// ```
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

/// See [`Target::in_store`].
#[cfg(feature = "cluster")]
pub(crate) enum InStore<'a> {
    Session(SessionId),
    Users(&'a [String]),
    Any,
    Nothing,
}

impl Target {
    fn new(who: Who) -> Self {
        Self { who, except: Vec::new(), labels: Vec::new() }
    }

    /// The session of this connection.
    pub fn connection(id: ConnectionId) -> Self {
        Self::new(Who::Connection(id))
    }

    /// The session with this id.
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

    /// All sessions that subscribe to this topic now, each once, whatever the number of patterns.
    ///
    /// Such a push is not a message of the topic: it has no topic and no position, and no history keeps it. The
    /// messages of a topic go through [`Server::publish`](crate::Server::publish).
    pub fn subscribers_of(topic: impl Into<String>) -> Self {
        Self::new(Who::SubscribersOf(topic.into()))
    }

    /// All sessions. A client that is coming back has two until its new connection has said whose it is: its own, which
    /// gets the push, and one that ends with what was pushed to it
    /// ([`DropReason::SessionEnded`](super::DropReason::SessionEnded)).
    pub fn everyone() -> Self {
        Self::new(Who::Everyone)
    }

    /// Except for this session. If its client is just coming back to another session, that one is left out too.
    pub fn except(mut self, session: SessionId) -> Self {
        self.except.push(session);
        self
    }

    /// Only sessions that have this label with this value. Every session that the target names otherwise is checked:
    /// with [`Self::everyone`] all sessions of the server.
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

    /// True if a session that went to another node lately is meant.
    #[cfg(feature = "cluster")]
    pub(crate) fn admits_known(&self, id: SessionId, known: &super::elsewhere::Known) -> bool {
        let named = match &self.who {
            Who::Session(session) => *session == id,
            Who::Users(names) => known.user.as_deref().is_some_and(|user| names.iter().any(|name| name == user)),
            Who::Everyone => true,
            Who::SubscribersOf(topic) => known.patterns.iter().any(|pattern| super::topic::covers(pattern, topic)),
            Who::Connection(_) => false,
        };
        let has = |wanted: &(String, String)| known.labels.contains(wanted);
        named && !self.except.contains(&id) && self.labels.iter().all(has)
    }

    /// Which sessions it can mean of those that are at no node.
    #[cfg(feature = "cluster")]
    pub(crate) fn in_store(&self) -> InStore<'_> {
        match &self.who {
            Who::Session(id) => InStore::Session(*id),
            Who::Users(names) => InStore::Users(names),
            Who::Everyone => InStore::Any,
            // What they subscribe to is in their images only.
            Who::SubscribersOf(_) | Who::Connection(_) => InStore::Nothing,
        }
    }

    /// True if the session is not excluded.
    pub(crate) fn admits(&self, session: &Session) -> bool {
        if self.except.contains(&session.id()) {
            return false;
        }
        if self.labels.is_empty() {
            return true;
        }
        let state = session.lock();
        self.labels.iter().all(|(key, value)| state.label(key) == Some(value))
    }
}
