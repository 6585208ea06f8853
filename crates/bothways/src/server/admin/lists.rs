//! Connections, sessions and their stories, topics and their members, each in pages.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Asking, Refused,
    views::{
        ConnectionView, MembersAsked, MembersListed, Page, PushTarget, SessionView, SessionsAsked, SessionsListed,
        TopicView, TopicsAsked, TopicsListed,
    },
};
use crate::{
    calm::Said,
    connection::{Connection, ConnectionId},
    server::Server,
    session::{Explanation, PresenceMember, Session, SessionId, Target, TopicStanding},
};

/// Sessions and connections in one answer; the next page begins after the last of this one.
pub(super) const PAGE_MAX: usize = 1000;

/// Bytes of the sessions in one answer; the first of them is in it however large it is.
pub(super) const PAGE_BYTES_MAX: usize = 1 << 20;

/// Sessions of clients that only call, which are made for a list, before others have their turn.
const MADE_AT_ONCE: usize = 1024;

/// Sessions that are explained at once: 64 events of each are some 600 KiB.
pub(super) const EXPLAINED_MAX: usize = 100;

pub(super) fn connections(asking: &Asking, page: Page) -> Result<Vec<ConnectionView>, Refused> {
    let parse = |id: String| {
        let wrong = |_| Refused::wrong(format!("`{}` is no connection, such as `c12`", Said(&id)));
        id.parse::<ConnectionId>().map_err(wrong)
    };
    let after = page.after.map(parse).transpose()?;

    let mut connections = asking.server.shared.all_connections();
    connections.retain(|connection| after.is_none_or(|after| after < connection.id()));
    first_of(&mut connections, page.max.clamp(1, PAGE_MAX), Connection::id);

    let each = |connection: Connection| {
        let stats = connection.stats();
        ConnectionView {
            id: connection.id().to_string(),
            peer: connection.peer_address(),
            negotiated: connection.is_negotiated(),
            pushes_sent: stats.pushes_sent,
            pushes_waiting: stats.pushes_waiting,
            pushes_dropped: stats.pushes_dropped,
            calls_running: stats.calls_running,
            is_asking: connection.id() == asking.connection,
        }
    };
    Ok(connections.into_iter().map(each).collect())
}

/// Keeps the first so many by this key, sorted, without sorting the others.
pub(super) fn first_of<T, K: Ord>(all: &mut Vec<T>, max: usize, key: impl Fn(&T) -> K) {
    if max < all.len() {
        all.select_nth_unstable_by_key(max, &key);
        all.truncate(max);
    }
    all.sort_by_key(key);
}

/// Whose sessions come first: by user, then by number.
type Place = (Option<Arc<str>>, SessionId);

pub(super) async fn sessions(asking: Asking, asked: SessionsAsked) -> Result<SessionsListed, Refused> {
    let target = asking.target(&asked.target)?;
    Ok(list(&asking.server, &target, &asked, PAGE_BYTES_MAX).await?.0)
}

/// A page of the sessions of this server. The flag: there are more behind it.
pub(super) async fn list(
    server: &Server,
    target: &Target,
    asked: &SessionsAsked,
    bytes_max: usize,
) -> Result<(SessionsListed, bool), Refused> {
    let first = match asked.target {
        PushTarget::Everyone => walk(server, target, asked).await,
        _ => {
            let mut first = First::new(asked);
            first.see(server.sessions(target).map_err(Refused::wrong)?);
            first
        }
    };

    let (mut sessions, mut bytes, mut has_more) = (Vec::new(), 0, first.has_more);
    for session in first.sessions.values() {
        let view = view(session);
        bytes += bytes_of(&view);
        // The first one goes in whatever its size: after an empty page there is no next one.
        if !sessions.is_empty() && bytes_max < bytes {
            has_more = true;
            break;
        }
        sessions.push(view);
    }
    Ok((SessionsListed { total: first.total, sessions, silent: Vec::new() }, has_more))
}

/// Looks at all sessions, a part of the table at a time: between two parts others have their turn, and no lock is held.
/// A session that comes or goes meanwhile is listed or not.
async fn walk<'a>(server: &Server, target: &Target, asked: &'a SessionsAsked) -> First<'a> {
    let registry = &server.shared.sessions;
    let mut lazy = registry.lazy_connections();
    while !lazy.is_empty() {
        registry.make_some(lazy.drain(lazy.len().saturating_sub(MADE_AT_ONCE)..));
        tokio::task::yield_now().await;
    }

    let mut first = First::new(asked);
    for part in 0.. {
        let Some(mut sessions) = registry.part(part) else { break };
        sessions.retain(|session| target.admits(session) && !registry.is_stood_for(session));
        first.see(sessions);
        tokio::task::yield_now().await;
    }
    first
}

/// The first sessions behind a place, of those that are seen.
struct First<'a> {
    asked: &'a SessionsAsked,
    total: usize,
    sessions: BTreeMap<Place, Session>,
    /// Some behind these were seen.
    has_more: bool,
}

impl<'a> First<'a> {
    fn new(asked: &'a SessionsAsked) -> Self {
        Self { asked, total: 0, sessions: BTreeMap::new(), has_more: false }
    }

    fn see(&mut self, sessions: Vec<Session>) {
        let max = self.asked.max.clamp(1, PAGE_MAX);
        let prefix = &*self.asked.user_prefix;
        for session in sessions {
            // Looked at once: whose a session is may change meanwhile.
            let place = (session.user(), session.id());
            if !place.0.as_deref().unwrap_or_default().starts_with(prefix) {
                continue;
            }
            self.total += 1;
            let after = self.asked.after.as_ref();
            if after.is_some_and(|after| (place.0.as_deref(), place.1) <= (after.user.as_deref(), after.id)) {
                continue;
            }
            self.sessions.insert(place, session);
            if max < self.sessions.len() {
                self.sessions.pop_last();
                self.has_more = true;
            }
        }
    }
}

/// What a session takes in an answer, about.
pub(super) fn bytes_of(view: &SessionView) -> usize {
    let texts = view.subscriptions.iter().chain(view.methods.iter().flatten()).chain(&view.user);
    let labels = view.labels.iter().map(|(key, value)| key.len() + value.len() + 8);
    512 + texts.map(|text| text.len() + 8).sum::<usize>() + labels.sum::<usize>()
}

fn view(session: &Session) -> SessionView {
    let (waiting, waiting_bytes) = session.waiting();
    let connection = session.connection();
    SessionView {
        id: session.id(),
        node: None,
        user: session.user().map(|user| user.to_string()),
        labels: session.labels(),
        connection: connection.as_ref().map(|connection| connection.id().to_string()),
        peer: connection.map(|connection| connection.peer_address()),
        generation: session.generation(),
        resumable: session.is_resumable(),
        waiting,
        waiting_bytes,
        held: session.held(),
        dropped: session.dropped(),
        subscriptions: session.subscriptions(),
        methods: session.methods(),
    }
}

pub(super) fn explain(asking: &Asking, asked: &PushTarget) -> Result<Vec<Explanation>, Refused> {
    // A session that ended cannot be looked up any more: no check that it is there.
    let target = asking.target(asked)?;
    let live = asking.server.sessions(&target).map_err(Refused::wrong)?.len();
    if EXPLAINED_MAX < live {
        return Err(Refused::Wrong(format!(
            "{live} sessions are meant, and {EXPLAINED_MAX} at most are explained at once: name a user or a session"
        )));
    }
    let mut told = asking.server.explain(&target).map_err(Refused::wrong)?;
    // Those that ended come first, oldest first.
    told.drain(..told.len().saturating_sub(EXPLAINED_MAX));
    Ok(told)
}

pub(super) fn topics(asking: &Asking, asked: &TopicsAsked) -> TopicsListed {
    let after = asked.after.as_deref().unwrap_or_default();
    let hub = &asking.server.shared.sessions.hub;
    let (total, topics) = hub.topics_after(&asked.prefix, after, asked.max.clamp(1, PAGE_MAX));
    let view = |topic: TopicStanding| TopicView {
        name: topic.name.to_string(),
        subscribers: topic.subscribers,
        newest: topic.newest,
        members: topic.members,
    };
    TopicsListed { total, topics: topics.into_iter().map(view).collect() }
}

pub(super) fn members(asking: &Asking, asked: &MembersAsked) -> Result<MembersListed, Refused> {
    let hub = &asking.server.shared.sessions.hub;
    let (presence, more) = hub.first_members(&asked.topic, asked.max.clamp(1, PAGE_MAX)).map_err(Refused::wrong)?;
    let name = |member: &PresenceMember| match (&member.user, member.sessions.first()) {
        (Some(user), _) => user.to_string(),
        (None, session) => session.map(SessionId::to_string).unwrap_or_default(),
    };
    Ok(MembersListed { more, members: presence.members.iter().map(|member| (name(member), member.status)).collect() })
}
