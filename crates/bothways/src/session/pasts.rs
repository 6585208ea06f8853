//! The event logs of sessions that ended, to find out later why a message did not arrive.
//!
//! Each user has a few of them, so that one who comes and goes costs the others nothing, and all sessions without a user
//! share a quarter of the whole. Of all the oldest go first; but those that the server ended, of which somebody asks most,
//! make way for no others as long as they have no more than a half. Of a session that had neither user, push, call nor
//! subscription nothing is left, unless the server ended it: health checks come every second.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    SessionId,
    explain::{EVENT_BYTES_MAX, EventLog, Explanation, Standing},
    target::Target,
};

/// Sessions of one user that ended and can still be explained.
const OF_USER_MAX: usize = 8;

/// What all of them may take, in bytes.
pub(super) const BYTES_MAX: usize = 8 << 20;

/// What one takes beside its events and its name: its places in the tables, and the event log itself.
const PAST_BYTES: usize = 512;

/// See the module.
pub(super) struct Pasts {
    count_max: usize,
    bytes_max: usize,
    /// By age.
    all: BTreeMap<u64, Past>,
    next: u64,
    bytes: usize,
    /// Of these, those of sessions without a user.
    nobodys: usize,
    /// By age, those that ended by themselves, and those that the server ended.
    by_age: [BTreeSet<u64>; 2],
    /// Bytes of those that the server ended.
    ended: usize,
    /// By user, those who have none together. What tells least goes first, and then what is oldest.
    of: HashMap<Option<Arc<str>>, BTreeSet<(bool, u64)>>,
}

struct Past {
    id: SessionId,
    user: Option<Arc<str>>,
    event_log: Arc<EventLog>,
    /// Something was sent, or the server ended it.
    tells: bool,
    by_server: bool,
    bytes: usize,
}

impl Pasts {
    pub(super) fn new(count_max: usize, bytes_max: usize) -> Self {
        let (all, of, by_age) = (BTreeMap::new(), HashMap::new(), Default::default());
        Self { count_max, bytes_max, all, next: 0, bytes: 0, nobodys: 0, by_age, ended: 0, of }
    }

    /// Keeps what happened to a session that ends now. `by_server`: it was ended on purpose.
    pub(super) fn keep(&mut self, id: SessionId, user: Option<Arc<str>>, event_log: &Arc<EventLog>, by_server: bool) {
        let told = event_log.worth();
        let tells = by_server || told.is_some_and(|tells| tells);
        if self.count_max == 0 || (user.is_none() && told.is_none() && !by_server) {
            return;
        }

        let name = user.as_ref().map_or(0, |user| user.len());
        let bytes = PAST_BYTES + name + event_log.seal() * EVENT_BYTES_MAX;
        let number = self.next;
        self.next += 1;
        self.bytes += bytes;
        self.of.entry(user.clone()).or_default().insert((tells, number));
        self.all
            .insert(number, Past { id, user: user.clone(), event_log: Arc::clone(event_log), tells, by_server, bytes });
        self.by_age[usize::from(by_server)].insert(number);

        if user.is_none() {
            self.nobodys += bytes;
        }
        if by_server {
            self.ended += bytes;
        }

        while self.is_beyond_share(&user) {
            // Except for this one, the newest.
            let first = self.of.get(&user).and_then(|theirs| theirs.iter().find(|(_, other)| *other != number));
            let Some((_, first)) = first.copied() else { break };
            self.forget(first);
        }
        while self.count_max < self.all.len() || self.bytes_max < self.bytes {
            let Some(oldest) = self.oldest() else { break };
            self.forget(oldest);
        }
    }

    /// The one that makes way for newer ones of others.
    fn oldest(&self) -> Option<u64> {
        let [others, ended] = &self.by_age;
        let are_many = self.count_max / 2 < ended.len() || self.bytes_max / 2 < self.ended;
        let (first, then) = if are_many { (ended, others) } else { (others, ended) };
        first.first().or_else(|| then.first()).copied()
    }

    /// True if this user has more than a user may, or those without one together more than their quarter.
    fn is_beyond_share(&self, user: &Option<Arc<str>>) -> bool {
        let count = self.of.get(user).map_or(0, BTreeSet::len);
        match user {
            Some(_) => OF_USER_MAX < count,
            None => self.count_max.div_ceil(4) < count || self.bytes_max / 4 < self.nobodys,
        }
    }

    fn forget(&mut self, number: u64) {
        let Some(past) = self.all.remove(&number) else { return };
        self.bytes -= past.bytes;
        self.by_age[usize::from(past.by_server)].remove(&number);
        if past.user.is_none() {
            self.nobodys -= past.bytes;
        }
        if past.by_server {
            self.ended -= past.bytes;
        }
        if let Some(theirs) = self.of.get_mut(&past.user) {
            theirs.remove(&(past.tells, number));
            if theirs.is_empty() {
                self.of.remove(&past.user);
            }
        }
    }

    /// Whose this one was.
    pub(super) fn user_of(&self, id: SessionId) -> Option<Arc<str>> {
        self.all.values().find(|past| past.id == id).and_then(|past| past.user.as_deref()).map(Arc::from)
    }

    /// Those that a target names, oldest first.
    pub(super) fn tell(&self, target: &Target) -> Vec<Explanation> {
        let named = self.all.values().filter(|past| target.admits_past(past.id, past.user.as_deref()));
        named.map(|past| past.event_log.snapshot(past.id, past.user.as_deref(), Standing::Ended)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        connection::ConnectionId,
        session::{explain::What, push::Class},
    };

    fn event_log(what: What) -> Arc<EventLog> {
        Arc::new(EventLog::begun(64, tokio::time::Instant::now(), what))
    }

    fn keep(pasts: &mut Pasts, user: Option<&str>, pushes: usize) {
        let event_log = match user {
            Some(user) => event_log(What::Bound(Some(user.into()))),
            None => event_log(What::Subscribed("news".into())),
        };
        for _ in 0..pushes {
            event_log.note_push(&"A.b".into(), &Class::Fire, 1, std::time::Duration::ZERO);
        }
        pasts.keep(SessionId::next(), user.map(Arc::from), &event_log, false);
    }

    fn count(pasts: &Pasts, user: &str) -> usize {
        pasts.tell(&Target::user(user)).len()
    }

    /// However many sessions of others end, or others of its own, what a user was sent stays known for long.
    #[tokio::test]
    async fn nobody_drives_out_what_was_sent_to_another() {
        let mut pasts = Pasts::new(100, BYTES_MAX);
        keep(&mut pasts, Some("ann"), 1);
        for _ in 0..1000 {
            keep(&mut pasts, None, 1);
            keep(&mut pasts, Some("bob"), 1);
            keep(&mut pasts, Some("ann"), 0);
        }
        assert_eq!((count(&pasts, "ann"), count(&pasts, "bob"), pasts.all.len()), (8, 8, 25 + 16));
        let first = &pasts.tell(&Target::user("ann"))[0];
        assert!(first.events.iter().any(|happened| happened.event.to_string().starts_with("push A.b")), "{first}");
    }

    /// The bound in bytes holds, by what each can take from here on, and is given back.
    #[tokio::test]
    async fn all_together_are_bounded_in_bytes() {
        let mut pasts = Pasts::new(1000, 64 << 10);
        for n in 0..200 {
            keep(&mut pasts, Some(&format!("user {n}")), 30);
            keep(&mut pasts, None, 30);
            assert!(pasts.bytes <= 64 << 10 && pasts.nobodys <= 16 << 10, "{} {}", pasts.bytes, pasts.nobodys);
            let nobodys: usize = pasts.all.values().filter(|past| past.user.is_none()).map(|past| past.bytes).sum();
            assert_eq!(pasts.nobodys, nobodys);
        }
        assert_eq!((count(&pasts, "user 0"), count(&pasts, "user 199")), (0, 1));
        let all: Vec<u64> = pasts.all.keys().copied().collect();
        all.into_iter().for_each(|number| pasts.forget(number));
        assert_eq!((pasts.bytes, pasts.nobodys, pasts.of.len(), pasts.ended), (0, 0, 0, 0));
    }

    /// However many users come and go, why the server ended a session stays known; but not of all that it ends.
    #[tokio::test]
    async fn what_the_server_ended_makes_way_for_what_it_ended() {
        let mut pasts = Pasts::new(100, 64 << 10);
        let kick = |pasts: &mut Pasts, user: &str| {
            let event_log = event_log(What::Bound(Some(user.into())));
            pasts.keep(SessionId::next(), Some(user.into()), &event_log, true);
        };
        kick(&mut pasts, "ann");
        for number in 0..1000 {
            keep(&mut pasts, Some(&format!("user {number}")), 7);
        }
        assert_eq!((count(&pasts, "ann"), count(&pasts, "user 0"), count(&pasts, "user 999")), (1, 0, 1));
        for number in 0..1000 {
            kick(&mut pasts, &format!("kicked {number}"));
            keep(&mut pasts, Some("bob"), 7);
            assert!(pasts.bytes <= 64 << 10 && pasts.all.len() <= 100);
        }
        assert_eq!((count(&pasts, "ann"), count(&pasts, "kicked 999"), count(&pasts, "bob")), (0, 1, 8));
        let ended: usize = pasts.all.values().filter(|past| past.by_server).map(|past| past.bytes).sum();
        assert_eq!(pasts.ended, ended);
    }

    /// A connection that came and went is no story, unless the server ended it.
    #[tokio::test]
    async fn a_connection_alone_leaves_nothing() {
        let mut pasts = Pasts::new(100, BYTES_MAX);
        let connected = || event_log(What::Connected(ConnectionId::new(1)));
        pasts.keep(SessionId::next(), None, &connected(), false);
        assert_eq!(pasts.all.len(), 0);
        pasts.keep(SessionId::next(), None, &connected(), true);
        assert_eq!(pasts.all.len(), 1);
    }

    /// What follows the end is told, and takes no more room than was counted.
    #[tokio::test]
    async fn a_sealed_trail_grows_by_two_at_most() {
        for pushes in [1, 40, 63, 64, 200] {
            let event_log = event_log(What::Connected(ConnectionId::new(1)));
            (0..pushes)
                .for_each(|_| _ = event_log.note_push(&"A.b".into(), &Class::Fire, 1, std::time::Duration::ZERO));
            let most = event_log.seal();
            assert_eq!(most, (pushes + 3).min(64));
            (0..10).for_each(|n| _ = event_log.note(What::GapTold(n)));
            let told = event_log.snapshot(SessionId::next(), None, Standing::Ended);
            assert_eq!((told.events.len(), told.forgotten as usize), (most, pushes + 11 - most));
            assert!(told.events[most - 1].event.to_string().contains("that 9 pushes"), "{told}");
        }
    }

    /// What is kept counts with its name and with each event that it may have.
    #[tokio::test]
    async fn a_story_counts_with_its_name_and_its_events() {
        let mut pasts = Pasts::new(100, BYTES_MAX);
        let told = event_log(What::Bound(Some("ann".into())));
        pasts.keep(SessionId::next(), Some("ann".into()), &told, false);
        let events = told.seal();
        assert!(0 < events);
        assert_eq!(pasts.bytes, PAST_BYTES + 3 + events * EVENT_BYTES_MAX);
        assert_eq!((pasts.nobodys, pasts.ended), (0, 0));
    }

    /// Of a user's sessions those that ended last are kept.
    #[tokio::test]
    async fn the_newest_of_a_user_are_kept() {
        let mut pasts = Pasts::new(100, BYTES_MAX);
        let ids: Vec<SessionId> = (0..20).map(SessionId).collect();
        for id in &ids {
            pasts.keep(*id, Some("ann".into()), &event_log(What::Bound(Some("ann".into()))), false);
        }
        let kept: Vec<SessionId> = pasts.all.values().map(|past| past.id).collect();
        assert_eq!(kept, ids[ids.len() - OF_USER_MAX..]);
    }
}
