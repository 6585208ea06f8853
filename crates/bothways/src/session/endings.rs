//! How sessions end, and the reason that a client gets when it comes back to one that has ended.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;

use super::{SessionId, secrets::Secret};

/// Sessions that ended of which a server still knows why: 5 MiB in all, and 13 MiB more if all were ended on purpose
/// with long reasons.
pub(super) const KNOWN_MAX: usize = 65_536;

/// Most bytes of the server's own words that are kept for a client that is away: a sentence or two.
const WORDS_MAX: usize = 200;

/// Why a client is sent away for good. A Bothways client does not come back by itself, for any of these reasons: if it is
/// connected it ends at once, if it is away it ends when it is back and is told. Its application may make a new
/// [`Client`](crate::Client), with other credentials.
///
/// If a client only needs a new token, the [`auth`](crate::ServerBuilder::auth) hook refuses the old one instead: a client
/// with [`ClientOptions::credentials`](crate::ClientOptions::credentials) then asks for the next, and keeps its session.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Eviction {
    /// It is not wanted.
    Kicked,
    /// The credentials that it was let in with have expired, such as a token with a date.
    Expired,
    /// The credentials that it was let in with were revoked.
    Revoked,
}

impl Eviction {
    /// The `_bw.code` of the Goodbye.
    pub(super) fn code(self) -> &'static str {
        match self {
            Self::Kicked => "kicked",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

/// Why a client does not get the session back that it had.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum NotResumed {
    Unknown,
    Expired,
    Gap,
    Revoked,
    /// It was sent away, and does not come back to any other session either.
    Evicted(Eviction),
    Ended,
    Late,
    /// The node that had it is gone.
    #[cfg_attr(not(feature = "cluster"), expect(dead_code, reason = "there is one node"))]
    NodeLost,
}

/// How a client came back that names the session that it had: it has it again, or [`NotResumed::code`] says why not.
pub(super) const RESUMES: [&str; 9] =
    ["resumed", "unknown", "expired", "gap", "revoked", "kicked", "ended", "late", "node_lost"];

impl NotResumed {
    /// What the Welcome calls it, and an event log.
    pub(super) fn code(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Expired => "expired",
            Self::Gap => "gap",
            Self::Revoked => "revoked",
            Self::Evicted(eviction) => eviction.code(),
            Self::Ended => "ended",
            Self::Late => "late",
            Self::NodeLost => "node_lost",
        }
    }
}

/// What a connection whose session is ended does last.
#[derive(Clone, Copy, Debug)]
pub(super) enum Last {
    /// What waits is written.
    Written,
    /// What runs is answered.
    Answered,
}

/// The end of a session.
#[derive(Clone, Copy)]
pub(super) struct Ending<'a> {
    /// For who asks what happened to it. `None`: nothing is left of it.
    pub(super) why: Option<&'a str>,
    /// What its client is told that comes back to it.
    pub(super) told: NotResumed,
    /// The server's application ended it on purpose.
    pub(super) by_server: bool,
    /// What the connections do on which something may run for it.
    pub(super) last: Last,
}

impl<'a> Ending<'a> {
    pub(super) fn new(why: &'a str, told: NotResumed) -> Self {
        Self { why: Some(why), told, by_server: false, last: Last::Written }
    }

    /// On purpose: it can be explained whatever happened to it before.
    pub(super) fn by_server(self) -> Self {
        Self { by_server: true, ..self }
    }

    /// Its client showed no token that was accepted: nothing is told of it.
    pub(super) fn of_stranger() -> Self {
        Self::merged()
    }

    /// Another session stands for it.
    pub(super) fn merged() -> Self {
        Self { why: None, told: NotResumed::Unknown, by_server: false, last: Last::Written }
    }
}

/// Why sessions ended to which a client may want to come back, of the last [`KNOWN_MAX`].
#[derive(Default)]
pub(super) struct Endings {
    known: Mutex<Known>,
}

/// Of one session.
struct Why {
    mark: u128,
    told: NotResumed,
    words: Option<Box<str>>,
}

#[derive(Default)]
struct Known {
    /// With what is enough of the secret's hash to know its client by.
    whys: HashMap<SessionId, Why>,
    order: VecDeque<SessionId>,
}

impl Endings {
    /// `words`: the server's own, for people.
    pub(super) fn note(&self, session: SessionId, secret: &Secret, told: NotResumed, words: Option<&str>) {
        let Some(mark) = secret.mark() else { return };
        if told == NotResumed::Unknown {
            return;
        }
        let mut known = self.known.lock();
        if KNOWN_MAX <= known.order.len()
            && let Some(oldest) = known.order.pop_front()
        {
            known.whys.remove(&oldest);
        }
        let words =
            words.filter(|words| !words.is_empty()).map(|words| words[..words.floor_char_boundary(WORDS_MAX)].into());
        if known.whys.insert(session, Why { mark, told, words }).is_none() {
            known.order.push_back(session);
        }
    }

    /// Why the session of this number ended, for the client that had it.
    pub(super) fn why(&self, session: SessionId, secret: &str) -> NotResumed {
        match self.known.lock().whys.get(&session) {
            Some(known) if known.mark == Secret::mark_of(secret) => known.told,
            _ => NotResumed::Unknown,
        }
    }

    /// What the server said when it ended that session on purpose.
    pub(super) fn words(&self, session: SessionId, secret: &str) -> Option<String> {
        let known = self.known.lock();
        let known = known.whys.get(&session).filter(|known| known.mark == Secret::mark_of(secret))?;
        known.words.as_deref().map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_endings_are_known_to_their_clients_alone() {
        let endings = Endings::default();
        let mut secret = Secret::default();
        let text = secret.make();
        for number in 0..=KNOWN_MAX as u128 {
            endings.note(SessionId(number), &secret, NotResumed::Expired, Some(&"é".repeat(101)));
        }
        assert_eq!(endings.known.lock().whys.len(), KNOWN_MAX);
        assert_eq!(endings.why(SessionId(0), &text), NotResumed::Unknown, "it is the oldest");
        assert_eq!(endings.why(SessionId(1), &text), NotResumed::Expired);
        assert_eq!(endings.words(SessionId(1), &text), Some("é".repeat(100)));
        assert_eq!(endings.why(SessionId(1), "guessed"), NotResumed::Unknown);
        assert_eq!(endings.words(SessionId(1), "guessed"), None);
    }
}
