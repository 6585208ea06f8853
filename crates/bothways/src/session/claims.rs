//! Pushes that are held while a Hello that names an earlier session is checked: until then nobody knows which of the
//! two sessions the client gets.
//!
//! A push to a user, to everybody or to a topic to which the other session subscribes too is for that one. What only
//! this session is for, as its application has subscribed it meanwhile, is held, and goes to the session that the
//! client gets: to each once, in order, and before anything that comes later.

use std::{cell::OnceCell, collections::HashSet, sync::Arc};

use super::{
    DropReason, Session, SessionId, Stage,
    ledger::{Bounds, Entry, Unsent},
    push::Origin,
    subscribers::Listing,
};

/// The session that a client wants and has shown the secret of, and what is held meanwhile.
pub(super) struct Claims {
    pub(super) wanted: SessionId,
    /// Nobody lists this session beside that one. A client that was let in before stands for itself until it has the
    /// other one: or it could keep out of each list of its user for as long as it likes.
    hidden_by: Option<SessionId>,
    /// Topics that have no room for one more, where this session stands in the place of the wanted one.
    pub(super) places: Vec<Arc<str>>,
    pub(super) held: Vec<Held>,
    bytes: usize,
    /// Messages of topics that found no room.
    pub(super) unsent: Unsent,
    /// What may be held is what a log may hold.
    bounds: Arc<Bounds>,
}

/// What is left of it when the client gets this session and no other.
pub(super) struct Settled {
    pub(super) wanted: SessionId,
    /// Topics in which both have one place.
    pub(super) places: Vec<Arc<str>>,
}

pub(super) struct Held {
    pub(super) entry: Entry,
    /// What event logs call it.
    pub(super) name: Arc<str>,
}

impl Claims {
    pub(super) fn new(wanted: SessionId, hides: bool, bounds: Arc<Bounds>) -> Self {
        let (places, held, unsent) = (Vec::new(), Vec::new(), Unsent::default());
        Self { wanted, hidden_by: hides.then_some(wanted), places, held, bytes: 0, unsent, bounds }
    }

    /// Of a session that is at another node: nobody lists this one, whose number it is, at all.
    #[cfg(feature = "cluster")]
    pub(super) fn elsewhere(wanted: SessionId, own: SessionId, bounds: Arc<Bounds>) -> Self {
        Self { hidden_by: Some(own), ..Self::new(wanted, true, bounds) }
    }

    /// The session in whose stead this one is not listed.
    pub(super) fn hidden_by(&self) -> Option<SessionId> {
        self.hidden_by
    }

    /// This session subscribes where the wanted one does, and no more may: it stands in its place.
    pub(super) fn share_place(&mut self, pattern: &Arc<str>) {
        self.places.push(Arc::clone(pattern));
    }

    pub(super) fn hold(&mut self, mut entry: Entry, name: &Arc<str>) {
        let bytes = self.bytes + entry.size();
        let is_full = self.bounds.tracked_messages <= self.held.len() || self.bounds.tracked_bytes < bytes;
        if is_full && !self.held.is_empty() {
            entry.ticket.advance(Stage::Dropped(DropReason::Full));
            if let Origin::Topic(stamp) = entry.origin {
                self.unsent.miss(stamp);
            }
            return;
        }
        self.bytes = bytes;
        self.held.push(Held { entry, name: Arc::clone(name) });
    }
}

/// The sessions that one push is for, and by whom it was made.
#[derive(Default)]
pub(super) struct Listed<'a> {
    pub(super) origin: Origin,
    /// The topic that keeps it.
    pub(super) topic: Option<&'a str>,
    sessions: Among<'a>,
    /// Of a short list. Made when it is first asked for: hardly ever does a session claim another.
    ids: OnceCell<HashSet<SessionId>>,
}

/// Where they are listed.
pub(super) enum Among<'a> {
    Slice(&'a [Session]),
    All(&'a Listing<Session>),
}

impl Default for Among<'_> {
    fn default() -> Self {
        Self::Slice(&[])
    }
}

impl<'a> From<&'a [Session]> for Among<'a> {
    fn from(sessions: &'a [Session]) -> Self {
        Self::Slice(sessions)
    }
}

impl<'a> From<&'a Listing<Session>> for Among<'a> {
    fn from(sessions: &'a Listing<Session>) -> Self {
        Self::All(sessions)
    }
}

impl<'a> Listed<'a> {
    /// What the application pushes to sessions.
    pub(super) fn new(sessions: impl Into<Among<'a>>) -> Self {
        Self::of(Origin::Push, sessions)
    }

    pub(super) fn of(origin: Origin, sessions: impl Into<Among<'a>>) -> Self {
        Self { origin, topic: None, sessions: sessions.into(), ids: OnceCell::new() }
    }

    /// A message of a topic that keeps it under this stamp.
    pub(super) fn published(topic: &'a str, stamp: u64, sessions: impl Into<Among<'a>>) -> Self {
        Self { topic: Some(topic), ..Self::of(Origin::Topic(stamp), sessions) }
    }

    /// As this, for one session more.
    pub(super) fn alone(&self) -> Listed<'a> {
        Listed { topic: self.topic, ..Listed::of(self.origin, Among::default()) }
    }

    pub(super) fn contains(&self, id: SessionId) -> bool {
        let sessions = match &self.sessions {
            Among::Slice(sessions) => sessions,
            Among::All(Listing::Short(sessions)) => &**sessions,
            Among::All(Listing::Long(list)) => return list.place_of(id.0).is_some(),
        };
        let ids = || sessions.iter().map(Session::id).collect();
        !sessions.is_empty() && self.ids.get_or_init(ids).contains(&id)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{
        super::{Class, Priority, ledger::Ledger, receipt::Receipt},
        *,
    };

    fn claims() -> Claims {
        let bounds = Bounds { tracked_messages: 3, tracked_bytes: 10, ..Bounds::default() };
        Claims::new(SessionId(1), false, Arc::new(bounds))
    }

    /// Holds a message of so many bytes, which has this stamp. True if it was not dropped for want of room.
    fn hold(claims: &mut Claims, bytes: usize, stamp: u64) -> bool {
        let receipt = Receipt::new();
        let entry = Entry {
            class: Class::Tracked,
            priority: Priority::Normal,
            frame: Bytes::from(vec![0; bytes]),
            keyed: None,
            expires: None,
            origin: Origin::Topic(stamp),
            ticket: receipt.ticket(SessionId(2)),
        };
        claims.hold(entry, &"T.m".into());
        let outcomes = receipt.outcomes();
        assert_eq!(outcomes.at(Stage::Queued) + outcomes.at(Stage::Dropped(DropReason::Full)), 1);
        outcomes.dropped() == 0
    }

    /// What is held has the bounds of a log, in messages and in bytes; and what found no room is owed.
    #[test]
    fn what_is_held_is_bounded_and_what_is_not_is_owed() {
        let mut claims = claims();
        assert!(hold(&mut claims, 4, 1) && hold(&mut claims, 6, 2), "ten bytes");
        assert!(!hold(&mut claims, 1, 3), "one more");
        assert_eq!((claims.held.len(), claims.bytes), (2, 10));
        let mut ledger = Ledger::new(Bounds::default());
        ledger.miss_all(claims.unsent);
        assert_eq!([1, 2, 3].map(|stamp| ledger.is_unsent(stamp)), [false, false, true]);
    }

    #[test]
    fn what_is_held_is_bounded_in_messages() {
        let mut claims = claims();
        assert_eq!((1..=4).map(|stamp| hold(&mut claims, 1, stamp)).collect::<Vec<_>>(), [true, true, true, false]);
        assert_eq!((claims.held.len(), claims.bytes), (3, 3));
    }

    /// As a log does, it takes one that is larger than all of it, if it is the only one.
    #[test]
    fn one_that_is_larger_than_the_bound_is_held_alone() {
        let mut claims = claims();
        assert!(hold(&mut claims, 11, 1));
        assert!(!hold(&mut claims, 0, 2));
    }

    /// A push to several sessions knows each of them; one for a single session more knows none.
    #[test]
    fn a_list_knows_its_sessions() {
        let listed = Listed::published("news", 7, Among::default());
        assert!(!listed.contains(SessionId(1)));
        let alone = listed.alone();
        assert_eq!((alone.topic, alone.origin), (Some("news"), Origin::Topic(7)));
        assert!(matches!(alone.sessions, Among::Slice([])));
        assert_eq!(Listed::new(Among::default()).origin, Origin::Push);
    }

    /// A request that depends on which session a client gets waits until that is known.
    #[tokio::test(start_paused = true)]
    async fn it_is_waited_for_until_a_session_is_settled() {
        let server = crate::Server::builder().build();
        let listening = server.listen("memory@claims-settled").await.expect("the name is free");
        let client =
            crate::Client::connect(listening.address(), crate::ClientOptions::new()).await.expect("it listens");
        client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
        let session = server.sessions(&super::super::Target::everyone()).expect("no topic").remove(0);
        session.settled().await;
        assert!(session.lock().claim(claims()));
        let mut settling = std::pin::pin!(session.settled());
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(settling.as_mut().poll(&mut cx).is_pending(), "nobody knows yet");
        assert!(session.lock().unclaim(std::time::Duration::ZERO).is_some());
        session.inner.changed.notify_waiters();
        assert!(settling.as_mut().poll(&mut cx).is_ready());
    }
}
