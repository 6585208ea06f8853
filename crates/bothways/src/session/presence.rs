//! The members of topics: users, each with any number of sessions, and sessions without a user.
//!
//! Without I/O and without a clock: times are durations since any fixed moment. A session whose client is
//! away is still in; a user whose last session ended with its connection stays for a while, because plain
//! clients come back as new sessions. So a network that blinks changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::SessionId;

/// Whether somebody is in a topic.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum PresenceStatus {
    /// Connected, by one session at least.
    Online,
    /// Away, and expected back.
    Reconnecting,
    /// Gone: after the resume window, by unsubscribing, or by the end of the session.
    Offline,
}

/// The members of a topic, at one moment.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Presence {
    /// The generation of the last change that is in here; 0 before the first.
    pub generation: u64,
    /// Each user once, then each session without a user.
    pub members: Vec<PresenceMember>,
}

/// One user in a topic, or one session without a user.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PresenceMember {
    /// The user; `None`: a session without one.
    pub user: Option<Arc<str>>,
    /// The sessions that subscribe; empty for a user who is between two of them. A client that
    /// [asks](crate::Client::roster) does not get those of users.
    pub sessions: Vec<SessionId>,
    /// [`PresenceStatus::Online`] or [`PresenceStatus::Reconnecting`].
    pub status: PresenceStatus,
}

/// Somebody came to a topic or left it: the payload of a push to `_bothways` / `Presence`, as MessagePack.
///
/// ```
/// use bothways::{ServerMessage, session::PresenceChange};
///
/// fn presence(message: &ServerMessage) -> Option<PresenceChange> {
///     let is_presence = message.service_path() == "_bothways" && message.service_method() == "Presence";
///     is_presence.then(|| message.decode().ok()).flatten()
/// }
/// ```
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PresenceChange {
    /// The topic.
    pub topic: String,
    /// The user; empty for a session without one.
    pub user: String,
    /// The session; empty for a user.
    pub session: String,
    /// [`PresenceStatus::Online`] or [`PresenceStatus::Offline`].
    pub status: PresenceStatus,
    /// Grows with each change. Of two changes, the one with the greater generation is newer, and a [`Presence`]
    /// includes all changes up to its generation. It begins with the time at which the server started, so that it also
    /// grows over restarts.
    pub generation: u64,
}

/// The arguments of `_bothways` / `Roster`, as Go declares them.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct RosterArgs {
    pub(crate) topic: String,
    /// The last member of an earlier reply, of which there is more; empty for the first.
    pub(crate) after_user: String,
    pub(crate) after_session: String,
}

/// The reply, as Go declares it.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct RosterReply {
    pub(crate) generation: u64,
    pub(crate) members: Vec<RosterMember>,
    /// There are more after the last of these.
    pub(crate) more: bool,
}

/// One user in a topic, or one session without a user; the other is empty.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct RosterMember {
    pub(crate) user: String,
    pub(crate) session: String,
    pub(crate) status: PresenceStatus,
}

/// Members that one reply has at most.
pub(crate) const ROSTER_MEMBERS_MAX: usize = 1000;

/// Bytes that they take at most, about; the first of them is in it however long its name is.
const ROSTER_BYTES_MAX: usize = 1 << 20;

/// As many of these members as one reply has room for. True: there are more.
pub(crate) fn fit_into_reply(members: &mut Vec<RosterMember>) -> bool {
    let mut bytes = 0;
    let fits = |member: &RosterMember| {
        bytes += member.user.len() + member.session.len() + 64;
        bytes <= ROSTER_BYTES_MAX
    };
    let fitting = members.iter().map(fits).take_while(|fits| *fits).count().max(1);
    let are_more = fitting < members.len();
    members.truncate(fitting);
    are_more
}

impl RosterArgs {
    /// Behind whom the reply begins; `None` if that is no member's name.
    pub(super) fn after(&self) -> Option<Who> {
        match (self.after_user.as_str(), self.after_session.parse()) {
            ("", session) => session.ok().map(Who::Session),
            (user, _) => Some(Who::User(user.into())),
        }
    }
}

impl From<PresenceMember> for RosterMember {
    fn from(member: PresenceMember) -> Self {
        let session = match &member.user {
            Some(_) => String::new(),
            None => member.sessions.first().map(SessionId::to_string).unwrap_or_default(),
        };
        Self { user: member.user.as_deref().unwrap_or_default().to_owned(), session, status: member.status }
    }
}

impl From<RosterMember> for PresenceMember {
    fn from(member: RosterMember) -> Self {
        let user = Some(Arc::from(member.user)).filter(|user: &Arc<str>| !user.is_empty());
        Self { user, sessions: member.session.parse().into_iter().collect(), status: member.status }
    }
}

#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) enum Who {
    User(Arc<str>),
    Session(SessionId),
}

impl Who {
    pub(super) fn new(user: Option<Arc<str>>, session: SessionId) -> Self {
        user.map_or(Self::Session(session), Self::User)
    }
}

/// Somebody is in now who was not, or the other way round.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Change {
    pub(super) who: Who,
    pub(super) is_in: bool,
    pub(super) generation: u64,
}

/// Numbers changes, over all topics of a server and all its lives.
#[derive(Debug)]
pub(super) struct Generations(AtomicU64);

impl Generations {
    /// The first number that a server gives out which starts now: so many for each millisecond since 1970, that those of
    /// its lives follow each other; below 2^53 until the year 2255, so that every language's numbers hold it.
    pub(super) fn beginning_at(now: SystemTime) -> Self {
        let millis = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        Self(AtomicU64::new(u64::try_from(millis).unwrap_or(0) << 10))
    }

    /// The number of the last change.
    fn last(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Roster {
    /// Of the last change.
    pub(super) generation: u64,
    members: BTreeMap<Who, Member>,
    of_session: HashMap<SessionId, Entered>,
    /// Users without a session, by when they are gone.
    leaving: BTreeSet<(Duration, Who)>,
}

#[derive(Debug)]
struct Entered {
    who: Who,
    /// The generation of the last change, anywhere, when it entered.
    generation: u64,
    is_online: bool,
}

#[derive(Debug, Default)]
pub(super) struct Member {
    pub(super) sessions: BTreeSet<SessionId>,
    /// How many of these have a connection.
    online: usize,
    /// When a user without a session is gone.
    until: Option<Duration>,
}

impl Member {
    pub(super) fn status(&self) -> PresenceStatus {
        if self.online == 0 { PresenceStatus::Reconnecting } else { PresenceStatus::Online }
    }
}

impl Roster {
    /// A session subscribes, or is now somebody else's.
    pub(super) fn enter(&mut self, who: &Who, session: SessionId, generations: &Generations) -> Vec<Change> {
        if self.of_session.get(&session).is_some_and(|entered| entered.who == *who) {
            return Vec::new();
        }
        let mut changes: Vec<Change> = self.leave(session, None, generations).into_iter().collect();
        if !self.members.contains_key(who) {
            changes.push(self.change(who.clone(), true, generations));
        }
        let generation = changes.last().map_or_else(|| generations.last(), |last| last.generation);
        self.of_session.insert(session, Entered { who: who.clone(), generation, is_online: false });
        let member = self.members.entry(who.clone()).or_default();
        member.sessions.insert(session);
        if let Some(until) = member.until.take() {
            self.leaving.remove(&(until, who.clone()));
        }
        changes
    }

    /// A session has a connection now, or has none.
    pub(super) fn set_online(&mut self, session: SessionId, is_online: bool) {
        let Some(entered) = self.of_session.get_mut(&session) else { return };
        let was_online = std::mem::replace(&mut entered.is_online, is_online);
        let member = self.members.get_mut(&entered.who).expect("a session is in its member");
        member.online = member.online + usize::from(is_online) - usize::from(was_online);
    }

    /// A session subscribes no more. `until`: its user may come back by then.
    pub(super) fn leave(
        &mut self,
        session: SessionId,
        until: Option<Duration>,
        generations: &Generations,
    ) -> Option<Change> {
        let Entered { who, is_online, .. } = self.of_session.remove(&session)?;
        let member = self.members.get_mut(&who).expect("a session is in its member");
        member.sessions.remove(&session);
        member.online -= usize::from(is_online);

        if !member.sessions.is_empty() {
            return None;
        }
        if let (Some(until), Who::User(_)) = (until, &who) {
            member.until = Some(until);
            self.leaving.insert((until, who));
            return None;
        }

        self.members.remove(&who);
        Some(self.change(who, false, generations))
    }

    /// The users who did not come back in time leave.
    pub(super) fn expire(&mut self, now: Duration, generations: &Generations) -> Vec<Change> {
        let mut gone = Vec::new();
        while self.leaving.first().is_some_and(|(until, _)| *until <= now) {
            let Some((_, who)) = self.leaving.pop_first() else { break };
            self.members.remove(&who);
            gone.push(self.change(who, false, generations));
        }
        gone
    }

    fn change(&mut self, who: Who, is_in: bool, generations: &Generations) -> Change {
        self.generation = generations.next();
        Change { who, is_in, generation: self.generation }
    }

    /// When the next user without a session is gone.
    pub(super) fn next_due(&self) -> Option<Duration> {
        self.leaving.first().map(|(until, _)| *until)
    }

    /// The generation up to which a session knows who is in; 0 if it watches by a wildcard.
    pub(super) fn entered(&self, session: SessionId) -> u64 {
        self.of_session.get(&session).map_or(0, |entered| entered.generation)
    }

    /// Each member with its sessions: users by name, then sessions. `after`: those after this one.
    pub(super) fn members(&self, after: Option<&Who>) -> impl Iterator<Item = (&Who, &Member)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.members.range((from, Bound::Unbounded))
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn user(name: &str) -> Who {
        Who::User(Arc::from(name))
    }

    /// U14. Users may have names of any length.
    #[test]
    fn a_reply_has_room_for_so_many_bytes_of_members() {
        let named = |bytes: usize| RosterMember {
            user: "x".repeat(bytes),
            session: String::new(),
            status: PresenceStatus::Online,
        };
        for (bytes, count, fitting) in [(100, 1000, 1000), (64 << 10, 1000, 15), (2 << 20, 3, 1), (9, 0, 0)] {
            let mut members: Vec<_> = (0..count).map(|_| named(bytes)).collect();
            assert_eq!(fit_into_reply(&mut members), fitting < count);
            assert_eq!(members.len(), fitting, "{count} of {bytes} bytes");
        }
    }

    fn generations() -> Generations {
        Generations::beginning_at(UNIX_EPOCH + Duration::from_millis(1))
    }

    /// The members that came, and those that left.
    fn told(changes: impl IntoIterator<Item = Change>) -> Vec<(Who, bool)> {
        changes.into_iter().map(|change| (change.who, change.is_in)).collect()
    }

    /// A user is in from the first session to the last.
    #[test]
    fn a_user_is_in_by_any_session() {
        let (mut roster, ann, phone, desk) = (Roster::default(), user("ann"), SessionId(1), SessionId(2));
        let all = generations();
        assert_eq!(told(roster.enter(&ann, phone, &all)), [(ann.clone(), true)]);
        assert_eq!(told(roster.enter(&ann, desk, &all)), []);
        assert_eq!(told(roster.leave(phone, None, &all)), []);
        assert_eq!(told(roster.leave(desk, None, &all)), [(ann, false)]);
        assert!(roster.is_empty());
    }

    /// A user who comes back in time was never gone; one who does not is, once.
    #[test]
    fn a_blink_changes_nothing() {
        let (mut roster, ann, all) = (Roster::default(), user("ann"), generations());
        let seconds = Duration::from_secs;
        roster.enter(&ann, SessionId(1), &all);
        assert_eq!(told(roster.leave(SessionId(1), Some(seconds(10)), &all)), []);
        assert_eq!(roster.next_due(), Some(seconds(10)));
        assert_eq!(told(roster.expire(seconds(9), &all)), []);
        assert_eq!(told(roster.enter(&ann, SessionId(2), &all)), []);
        assert_eq!(told(roster.expire(seconds(60), &all)), []);
        roster.leave(SessionId(2), Some(seconds(70)), &all);
        assert_eq!(told(roster.expire(seconds(70), &all)), [(ann, false)]);
        assert_eq!(told(roster.expire(seconds(80), &all)), []);
        assert_eq!(roster.next_due(), None);
    }

    /// A session is told of what came after it, and not of its own coming.
    #[test]
    fn who_comes_is_told_of_those_after_it() {
        let (mut roster, all) = (Roster::default(), generations());
        let generation = |changes: Vec<Change>| changes[0].generation;
        let first = generation(roster.enter(&user("ann"), SessionId(1), &all));
        let second = generation(roster.enter(&user("bob"), SessionId(2), &all));
        assert!(first == roster.entered(SessionId(1)) && first < second);
        assert_eq!(roster.entered(SessionId(2)), second);
        assert_eq!(roster.entered(SessionId(3)), 0, "it watches by a wildcard");
    }

    /// A server that is started again goes on above its earlier generations.
    #[test]
    fn generations_grow_over_the_lives_of_a_server() {
        let now = SystemTime::now();
        let first = Generations::beginning_at(now);
        (0..100_000).for_each(|_| _ = first.next());
        let second = Generations::beginning_at(now + Duration::from_secs(1));
        assert!(first.last() < second.last() && second.last() < 1 << 53);
    }

    proptest! {
        /// The changes that were told add up to who is in, whatever happens: nobody comes twice, and nobody leaves
        /// who was not there.
        #[test]
        fn changes_add_up(steps in prop::collection::vec((0..6_u8, 0..4_u128, 0..3_usize, 0..5_u64), 0..60)) {
            let (mut roster, all) = (Roster::default(), generations());
            let (mut now, mut told) = (Duration::ZERO, BTreeSet::new());
            let mut online = BTreeSet::new();
            for (step, session, name, pause) in steps {
                now += Duration::from_secs(pause);
                let session = SessionId(session);
                let user = ["ann", "bob"].get(name).map(|name| Arc::from(*name));
                let until = (name == 0).then_some(now + Duration::from_secs(3));
                let changes = match step {
                    4 => {
                        roster.set_online(session, name != 0);
                        if name == 0 { online.remove(&session) } else { online.insert(session) };
                        continue;
                    }
                    0 | 1 => roster.enter(&Who::new(user, session), session, &all),
                    2 | 3 => roster.leave(session, until, &all).into_iter().collect(),
                    _ => roster.expire(now, &all),
                };
                for change in changes {
                    let was_told = match change.is_in {
                        true => told.insert(change.who),
                        false => told.remove(&change.who),
                    };
                    prop_assert!(was_told);
                }
                let present: BTreeSet<Who> = roster.members(None).map(|(who, _)| who.clone()).collect();
                prop_assert_eq!(&present, &told);
                // A member that enters anew says next whether it is online.
                (0..4).map(SessionId).for_each(|session| roster.set_online(session, online.contains(&session)));
                for (_, member) in roster.members(None) {
                    prop_assert_eq!(member.online, member.sessions.intersection(&online).count());
                }
            }
        }
    }

    /// Each change has the next number after the one before.
    #[test]
    fn each_change_has_the_next_number() {
        let now = UNIX_EPOCH + Duration::from_millis(5);
        let generations = Generations::beginning_at(now);
        assert_eq!(
            [generations.last(), generations.next(), generations.next(), generations.last()],
            [5120, 5121, 5122, 5122]
        );
        assert_eq!(Generations::beginning_at(UNIX_EPOCH - Duration::from_secs(1)).last(), 0);
    }
}
