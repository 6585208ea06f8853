//! Who is in a topic: users, by however many sessions, and sessions without a user.
//!
//! Without I/O and without a clock: times are durations since any fixed moment. A session whose client is
//! away is still in; a user whose last session ended with its connection stays for a while, because plain
//! clients come back as new sessions. So a network that blinks changes nothing.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
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

/// Who is in a topic, at one moment.
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
    /// The sessions that subscribe; none of a user who is between two of them.
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
    /// Grows with each change while the server runs: of two changes the one with the greater is the newer.
    pub generation: u64,
}

#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
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
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Roster {
    /// Of the last change that was told.
    pub(super) generation: u64,
    members: BTreeMap<Who, Member>,
    of_session: HashMap<SessionId, Who>,
}

#[derive(Debug, Default)]
struct Member {
    sessions: Vec<SessionId>,
    /// When a user without a session is gone.
    until: Duration,
}

impl Roster {
    /// A session subscribes, or is now somebody else's.
    pub(super) fn enter(&mut self, who: &Who, session: SessionId) -> Vec<Change> {
        if self.of_session.get(&session) == Some(who) {
            return Vec::new();
        }
        let mut changes: Vec<Change> = self.leave(session, None).into_iter().collect();
        self.of_session.insert(session, who.clone());
        let is_new = !self.members.contains_key(who);
        self.members.entry(who.clone()).or_default().sessions.push(session);
        if is_new {
            changes.push(Change { who: who.clone(), is_in: true });
        }
        changes
    }

    /// A session subscribes no more. `until`: its user may come back by then.
    pub(super) fn leave(&mut self, session: SessionId, until: Option<Duration>) -> Option<Change> {
        let who = self.of_session.remove(&session)?;
        let member = self.members.get_mut(&who).expect("a session is in its member");
        member.sessions.retain(|other| *other != session);
        if !member.sessions.is_empty() {
            return None;
        }
        if let (Some(until), Who::User(_)) = (until, &who) {
            member.until = until;
            return None;
        }
        self.members.remove(&who);
        Some(Change { who, is_in: false })
    }

    /// The users who did not come back in time leave.
    pub(super) fn expire(&mut self, now: Duration) -> Vec<Change> {
        let mut gone = Vec::new();
        self.members.retain(|who, member| {
            let stays = !member.sessions.is_empty() || now < member.until;
            if !stays {
                gone.push(Change { who: who.clone(), is_in: false });
            }
            stays
        });
        gone
    }

    /// Each member with its sessions: users by name, then sessions.
    pub(super) fn members(&self) -> impl Iterator<Item = (&Who, &[SessionId])> {
        self.members.iter().map(|(who, member)| (who, member.sessions.as_slice()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn user(name: &str) -> Who {
        Who::User(Arc::from(name))
    }

    fn change(who: &Who, is_in: bool) -> Change {
        Change { who: who.clone(), is_in }
    }

    /// A user is in from the first session to the last.
    #[test]
    fn a_user_is_in_by_any_session() {
        let (mut roster, ann, phone, desk) = (Roster::default(), user("ann"), SessionId(1), SessionId(2));
        assert_eq!(roster.enter(&ann, phone), [change(&ann, true)]);
        assert_eq!(roster.enter(&ann, desk), []);
        assert_eq!(roster.leave(phone, None), None);
        assert_eq!(roster.leave(desk, None), Some(change(&ann, false)));
        assert!(roster.is_empty());
    }

    /// A user who comes back in time was never gone; one who does not is, once.
    #[test]
    fn a_blink_changes_nothing() {
        let (mut roster, ann) = (Roster::default(), user("ann"));
        roster.enter(&ann, SessionId(1));
        assert_eq!(roster.leave(SessionId(1), Some(Duration::from_secs(10))), None);
        assert_eq!(roster.expire(Duration::from_secs(9)), []);
        assert_eq!(roster.enter(&ann, SessionId(2)), []);
        assert_eq!(roster.expire(Duration::from_secs(60)), []);
        roster.leave(SessionId(2), Some(Duration::from_secs(70)));
        assert_eq!(roster.expire(Duration::from_secs(70)), [change(&ann, false)]);
        assert_eq!(roster.expire(Duration::from_secs(80)), []);
    }

    proptest! {
        /// The changes that were told add up to who is in, whatever happens: nobody comes twice, and nobody leaves
        /// who was not there.
        #[test]
        fn changes_add_up(steps in prop::collection::vec((0..4_u8, 0..4_u128, 0..3_usize, 0..5_u64), 0..60)) {
            let mut roster = Roster::default();
            let (mut now, mut told) = (Duration::ZERO, BTreeSet::new());
            for (step, session, name, pause) in steps {
                now += Duration::from_secs(pause);
                let session = SessionId(session);
                let user = ["ann", "bob"].get(name).map(|name| Arc::from(*name));
                let changes = match step {
                    0 | 1 => roster.enter(&Who::new(user, session), session),
                    2 => roster.leave(session, (name == 0).then_some(now + Duration::from_secs(3))).into_iter().collect(),
                    _ => roster.expire(now),
                };
                for change in changes {
                    let was_told = match change.is_in {
                        true => told.insert(change.who),
                        false => told.remove(&change.who),
                    };
                    prop_assert!(was_told);
                }
                let present: BTreeSet<Who> = roster.members().map(|(who, _)| who.clone()).collect();
                prop_assert_eq!(&present, &told);
            }
        }
    }
}
