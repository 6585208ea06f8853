//! Presence: tells the subscribers of topics which members have come and gone.
//!
//! Changes are noted where they happen, and told by a task of their own, which lets others run every so many pushes: to
//! tell n sessions of n changes takes n² pushes, and a member that leaves must not wait for them. What one member does
//! before it is told is told as one change. While many sessions end at once nothing is told, so that of all that leave
//! together none is told of another.

use std::{
    collections::{HashMap, VecDeque},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Waker},
};

use bothways_proto::keys;
use parking_lot::Mutex;

use super::{
    Class, Push, Session,
    claims::Listed,
    hub::Hub,
    kept::{Kept, Topic},
    presence::{
        Change, Member, Presence, PresenceChange, PresenceMember, PresenceStatus, ROSTER_MEMBERS_MAX, RosterArgs,
        RosterMember, RosterReply, Who, fit_into_reply,
    },
    push::Origin,
    receipt::Receipt,
    topic::{self, TopicError},
};
use crate::calm::{Said, tell};

/// Pushes that are entered, or sessions that are written to, before others have their turn.
const AT_ONCE: usize = 1024;

/// Topics of which changes are to be told.
#[derive(Default)]
pub(super) struct Telling {
    state: Mutex<State>,
    /// Nobody is told any more: the server is about to end.
    is_quiet: AtomicBool,
}

#[derive(Default)]
struct State {
    topics: VecDeque<Arc<str>>,
    is_running: bool,
    /// How many want that nothing is told yet.
    holds: usize,
}

impl Telling {
    /// The next topic; `None`, and nobody tells any more, if there is none, or nothing is to be told now.
    fn next(&self) -> Option<Arc<str>> {
        let mut state = self.state.lock();
        let next = if state.holds == 0 { state.topics.pop_front() } else { None };
        state.is_running = next.is_some();
        next
    }
}

/// Nothing is told while this is kept.
pub(super) struct Hold<'a>(&'a Hub);

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.telling.state.lock().holds -= 1;
        self.0.tell();
    }
}

/// The task that tells has been dropped with its runtime: the next one goes on.
struct Running(Option<Arc<Telling>>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(telling) = &self.0 {
            telling.state.lock().is_running = false;
        }
    }
}

/// Changes of one topic that are being told. Dropped with the runtime that was to tell them, they are told with the next
/// ones, of which a listener gets the last of each member; what was entered is written.
struct Untold<'a> {
    hub: &'a Hub,
    name: &'a str,
    changes: VecDeque<Change>,
    unwritten: Vec<Session>,
}

impl Drop for Untold<'_> {
    fn drop(&mut self) {
        std::mem::take(&mut self.unwritten).iter().for_each(Session::pump);
        if self.changes.is_empty() {
            return;
        }
        let Some(topic) = self.hub.topics.find(self.name) else { return };
        let mut kept = topic.kept.lock();
        let newer = std::mem::take(&mut kept.untold);
        let changes = std::mem::take(&mut self.changes).into_iter().chain(newer);
        self.hub.note_changes(&topic, &mut kept, changes.collect());
    }
}

impl Hub {
    /// Many sessions are about to end: nothing is told before all have.
    pub(super) fn hold_telling(&self) -> Hold<'_> {
        self.telling.state.lock().holds += 1;
        Hold(self)
    }

    /// The server is about to end, or its clients are to go: who leaves is nobody's business any more.
    pub(crate) fn be_quiet(&self) {
        self.telling.is_quiet.store(true, Ordering::Release);
    }

    /// Notes changes of presence; [`Self::tell`] follows once the topic is free.
    pub(super) fn note_changes(&self, topic: &Topic, kept: &mut Kept, changes: Vec<Change>) {
        if changes.is_empty() || self.telling.is_quiet.load(Ordering::Acquire) {
            return;
        }
        if kept.untold.is_empty() {
            self.telling.state.lock().topics.push_back(Arc::clone(&topic.name));
        }
        kept.untold.extend(changes);
    }

    /// Sees to it that all changes are told: by a task, or at once where there is no runtime for one.
    pub(super) fn tell(&self) {
        {
            let mut state = self.telling.state.lock();
            if state.topics.is_empty() || state.is_running || 0 < state.holds {
                return;
            }
            state.is_running = true;
        }
        // The runtime may end before the task runs.
        let running = Running(Some(Arc::clone(&self.telling)));
        match (self.fan_out.runtimes.near(), self.me.upgrade()) {
            (Some(runtime), Some(me)) => _ = runtime.spawn(async move { me.tell_all(running).await }),
            _ => {
                let mut telling = pin!(self.tell_all(running));
                while telling.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {}
            }
        }
    }

    async fn tell_all(&self, mut running: Running) {
        let mut work = 0;
        while let Some(name) = self.telling.next() {
            self.tell_of(&name, &mut work).await;
        }
        running.0 = None;
    }

    /// Tells of one topic's changes.
    async fn tell_of(&self, name: &str, work: &mut usize) {
        let Some(topic) = self.topics.find(name) else { return };
        let (changes, listeners, is_left) = {
            let mut kept = topic.kept.lock();
            let changes = last_of_each(std::mem::take(&mut kept.untold));
            let listeners: Vec<(Session, u64)> = match &kept.roster {
                // A member that came after a change knows it, or was it.
                Some(roster) => self.subscribers(name).iter().map(|s| (s.clone(), roster.entered(s.id()))).collect(),
                None => return,
            };
            (changes, listeners, kept.is_unused())
        };

        // `forget_unused` leaves a topic that is still in use.
        drop(topic);
        if is_left {
            // The last one has left it, and only this was still to be told.
            self.forget_unused([name.into()]);
        }

        if self.telling.is_quiet.load(Ordering::Acquire) {
            return;
        }
        let listeners: Vec<_> = listeners.into_iter().filter(|(session, _)| session.knows_topics()).collect();
        let unwritten = listeners.iter().map(|(session, _)| session.clone()).collect();
        let mut untold = Untold { hub: self, name, changes: changes.into(), unwritten };

        let (receipt, listed) = (Receipt::new(), Listed::of(Origin::Framework, &*untold.unwritten));
        while let Some(change) = untold.changes.front() {
            let (generation, push) = (change.generation, push_of(name, change.clone()));
            match self.fan_out.encode(&push) {
                Ok(frame) => {
                    for (session, _) in listeners.iter().filter(|(_, entered)| *entered < generation) {
                        session.add(&push, &frame, &receipt, &listed);
                        take_turns(work).await;
                    }
                }
                Err(_) => {
                    let told = &self.too_large_told;
                    tell!(told, warn, topic = ?Said(name), "a change of presence is larger than a frame may be");
                }
            }
            untold.changes.pop_front();
        }

        while let Some(session) = untold.unwritten.pop() {
            session.pump();
            take_turns(work).await;
        }
    }

    /// Tells a session who is in a topic that it subscribes to.
    ///
    /// # Errors
    /// Why not, as the client is told.
    pub(crate) fn roster_for(&self, session: &Session, args: &RosterArgs) -> Result<RosterReply, String> {
        let topic = &args.topic;
        topic::check_topic(topic).map_err(|error| error.to_string())?;
        if !session.lock().patterns().covers(topic) {
            return Err(format!("who is in `{topic}` is told to those who subscribe to it"));
        }
        let after = args.after();
        let (presence, more) =
            self.roster(topic, after.as_ref(), ROSTER_MEMBERS_MAX, false).map_err(|error| error.to_string())?;
        let mut members = presence.members.into_iter().map(RosterMember::from).collect();
        let more = fit_into_reply(&mut members) || more;
        Ok(RosterReply { generation: presence.generation, members, more })
    }

    /// The members of a topic.
    pub(crate) fn presence(&self, topic: &str) -> Result<Presence, TopicError> {
        Ok(self.roster(topic, None, usize::MAX, true)?.0)
    }

    /// The first members of a topic, without the sessions of users, and whether there are more.
    pub(crate) fn first_members(&self, topic: &str, max: usize) -> Result<(Presence, bool), TopicError> {
        self.roster(topic, None, max, false)
    }

    /// So many members of a topic, after this one, with the sessions of users or without; and whether there are more.
    /// Without these it takes time by members, however many sessions each has.
    fn roster(
        &self,
        topic: &str,
        after: Option<&Who>,
        members_max: usize,
        with_sessions: bool,
    ) -> Result<(Presence, bool), TopicError> {
        topic::check_topic(topic)?;
        let Some(topic) = self.topics.find(topic) else { return Ok(Default::default()) };
        let kept = topic.kept.lock();
        let Some(roster) = &kept.roster else { return Ok(Default::default()) };

        let mut all = roster.members(after);
        let of = |(who, member): (&Who, &Member)| {
            let (user, sessions) = match who {
                Who::User(name) if with_sessions => (Some(Arc::clone(name)), member.sessions.iter().copied().collect()),
                Who::User(name) => (Some(Arc::clone(name)), Vec::new()),
                Who::Session(id) => (None, vec![*id]),
            };
            PresenceMember { user, sessions, status: member.status() }
        };

        let members = all.by_ref().take(members_max).map(of).collect();
        Ok((Presence { generation: roster.generation, members }, all.next().is_some()))
    }
}

/// Of the changes of one member only the last is told.
fn last_of_each(changes: Vec<Change>) -> Vec<Change> {
    if changes.len() < 2 {
        return changes;
    }
    let last: HashMap<Who, u64> = changes.iter().map(|change| (change.who.clone(), change.generation)).collect();
    changes.into_iter().filter(|change| last.get(&change.who) == Some(&change.generation)).collect()
}

fn push_of(topic: &str, change: Change) -> Push {
    let (user, session) = match &change.who {
        Who::User(name) => (name.to_string(), String::new()),
        Who::Session(id) => (String::new(), id.to_string()),
    };
    // No application's key: those do not begin so.
    let key = format!("{}{} {topic} {user} {session}", keys::RESERVED_PREFIX, keys::PRESENCE);
    let status = if change.is_in { PresenceStatus::Online } else { PresenceStatus::Offline };
    let change = PresenceChange { topic: topic.to_owned(), user, session, status, generation: change.generation };
    let push = Push::of(keys::CONTROL_PATH, keys::PRESENCE, &change).expect("texts and a number");
    let mut push = push.class(Class::Latest(key));
    push.metadata.insert(keys::TOPIC, topic);
    push
}

/// Lets others run, if so much was done.
async fn take_turns(work: &mut usize) {
    *work += 1;
    if work.is_multiple_of(AT_ONCE) {
        tokio::task::yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Client, ClientOptions, Server,
        session::{SessionId, TopicOptions},
    };

    /// A roster comes in pages, each member once and in order.
    #[tokio::test(start_paused = true)]
    async fn a_roster_comes_in_pages() {
        let server =
            Server::builder().topic("room", TopicOptions::new().open().presence(true)).expect("a pattern").build();
        let listening = server.listen("memory@tell-pages").await.expect("the name is free");
        let (client, _messages) =
            Client::bidirectional(listening.address(), ClientOptions::new()).await.expect("it listens");
        client.subscribe("room").await.expect("open");
        let session = server.sessions(&super::super::Target::everyone()).expect("no topic").remove(0);
        let registry = session.inner.registry.upgrade().expect("the server lives");
        let hub = &registry.hub;
        let topic = hub.topics.find("room").expect("somebody is there");
        {
            let mut kept = topic.kept.lock();
            let roster = kept.roster.as_mut().expect("it shows who is there");
            for number in 0..2500_u128 {
                let user = (number % 2 == 0).then(|| Arc::from(format!("user{number}")));
                roster.enter(&Who::new(user, SessionId(number)), SessionId(number), &hub.generations);
            }
        }
        let all = client.roster("room").await.expect("it subscribes");
        let expected = server.presence("room").expect("a topic");
        assert_eq!((all.members.len(), all.generation), (2501, expected.generation));
        let names = |presence: &Presence| {
            let name = |member: &PresenceMember| match &member.user {
                Some(user) => user.to_string(),
                None => member.sessions[0].to_string(),
            };
            presence.members.iter().map(name).collect::<Vec<_>>()
        };
        assert_eq!(names(&all), names(&expected));
    }

    /// A user who has very many sessions takes one place of a roster, and no look at each: neither who they are nor whether
    /// they are connected is asked.
    #[tokio::test(start_paused = true)]
    async fn a_roster_costs_the_same_however_many_sessions_a_member_has() {
        use super::super::lock;

        let options = TopicOptions::new().open().presence(true);
        let server = Server::builder()
            .auth(|request| async move {
                request.session().expect("it is connected").bind_user("ann");
                Ok::<_, String>(())
            })
            .topic("room", options)
            .expect("a pattern")
            .build();
        let listening = server.listen("memory@tell-many-sessions").await.expect("the name is free");
        let (mut clients, mut costs) = (Vec::new(), Vec::new());
        for count in [1, 2, 100] {
            while clients.len() < count {
                let connecting = Client::bidirectional(listening.address(), ClientOptions::new());
                let client = connecting.await.expect("it listens");
                client.0.subscribe("room").await.expect("open");
                clients.push(client);
            }
            let session = server.sessions(&super::super::Target::everyone()).expect("no topic").remove(0);
            let registry = session.inner.registry.upgrade().expect("the server lives");
            let hub = &registry.hub;
            let args = RosterArgs { topic: "room".to_owned(), ..RosterArgs::default() };
            let before = lock::TAKEN.get();
            let reply = hub.roster_for(&session, &args).expect("it subscribes");
            costs.push(lock::TAKEN.get() - before);
            assert_eq!((reply.members.len(), reply.members[0].status), (1, PresenceStatus::Online));
        }
        assert!(costs.iter().all(|cost| *cost == costs[0]), "{costs:?}");

        let status = || server.presence("room").expect("a topic").members[0].status;
        drop(listening);
        for connection in server.connections() {
            assert_eq!(status(), PresenceStatus::Online);
            connection.cut();
            connection.closed().await;
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        assert_eq!(status(), PresenceStatus::Reconnecting);
        assert_eq!(server.presence("room").expect("a topic").members[0].sessions.len(), 100);
    }

    /// A helper runtime ends before the task ran that it was given: its changes are told where the server listens. If
    /// that is nowhere, they are told with the next ones.
    #[tokio::test(start_paused = true)]
    async fn a_runtime_that_ends_silences_nobody() {
        let server =
            Server::builder().topic("room", TopicOptions::new().open().presence(true)).expect("a pattern").build();
        let listening = server.listen("memory@tell-runtime-ends").await.expect("the name is free");
        let connect = || Client::bidirectional(listening.address(), ClientOptions::new());
        let (client, mut messages) = connect().await.expect("it listens");
        client.subscribe("room").await.expect("open");
        let hears = server.sessions(&super::super::Target::everyone()).expect("no topic").remove(0);
        let (_other, _messages) = connect().await.expect("it listens");
        let mut sessions = server.sessions(&super::super::Target::everyone()).expect("no topic");
        sessions.retain(|session| *session != hears);
        let session = sessions.remove(0);

        let in_helper = |act: fn(&Session)| {
            let session = session.clone();
            let helper = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
                let entered = runtime.enter();
                act(&session);
                drop(entered);
            });
            helper.join().expect("no panic");
        };
        let mut is_told = async || {
            let message = tokio::time::timeout(std::time::Duration::from_secs(60), messages.next()).await;
            message.expect("it is told").expect("the session lives").service_method() == keys::PRESENCE
        };
        in_helper(|session| session.subscribe("room").expect("open"));
        assert!(is_told().await);
        let registry = session.inner.registry.upgrade().expect("the server lives");
        registry.runtimes.remove(tokio::runtime::Handle::current().id());
        in_helper(|session| session.unsubscribe("room"));
        session.subscribe("room").expect("open");
        assert!(is_told().await);
    }

    /// A runtime ends while its task tells of changes: those that were not told to all are told with the next ones.
    #[tokio::test(start_paused = true)]
    async fn what_was_being_told_is_told_by_the_next() {
        let server =
            Server::builder().topic("room", TopicOptions::new().open().presence(true)).expect("a pattern").build();
        let listening = server.listen("memory@tell-half-told").await.expect("the name is free");
        let (client, mut messages) =
            Client::bidirectional(listening.address(), ClientOptions::new()).await.expect("it listens");
        client.subscribe("room").await.expect("open");
        let session = server.sessions(&super::super::Target::everyone()).expect("no topic").remove(0);
        let registry = session.inner.registry.upgrade().expect("the server lives");
        let hub = &registry.hub;
        let change = |user: &str, generation| Change { who: Who::User(user.into()), is_in: true, generation };
        let changes = VecDeque::from([change("a", u64::MAX - 1), change("b", u64::MAX)]);
        drop(Untold { hub, name: "room", changes, unwritten: Vec::new() });
        hub.tell();
        for user in ["a", "b"] {
            let message = tokio::time::timeout(std::time::Duration::from_secs(60), messages.next()).await;
            let change: PresenceChange = message.expect("it is told").expect("open").decode().expect("a change");
            assert_eq!(change.user, user);
        }
    }

    /// Of what a member did before it was told, the last is told.
    #[test]
    fn the_last_of_each_is_told() {
        let change = |user: &str, is_in, generation| Change { who: Who::User(user.into()), is_in, generation };
        let told = last_of_each(vec![change("a", true, 1), change("b", true, 2), change("a", false, 3)]);
        assert_eq!(told, [change("b", true, 2), change("a", false, 3)]);
        let told = last_of_each(vec![change("a", true, 1), change("a", false, 2)]);
        assert_eq!(told, [change("a", false, 2)]);
    }

    /// A server that is quiet tells nobody who comes.
    #[tokio::test(start_paused = true)]
    async fn who_comes_to_a_quiet_server_is_told_to_nobody() {
        let server =
            Server::builder().topic("room", TopicOptions::new().open().presence(true)).expect("a pattern").build();
        let listening = server.listen("memory@tell-quiet").await.expect("the name is free");
        let connect = || Client::bidirectional(listening.address(), ClientOptions::new());
        let (first, mut messages) = connect().await.expect("it listens");
        first.subscribe("room").await.expect("open");
        let session = server.sessions(&super::super::Target::everyone()).expect("no topic").remove(0);
        let registry = session.inner.registry.upgrade().expect("the server lives");
        let hub = &registry.hub;
        let mut others = Vec::new();
        for is_quiet in [false, true] {
            if is_quiet {
                hub.be_quiet();
            }
            let other = connect().await.expect("it listens");
            other.0.subscribe("room").await.expect("open");
            others.push(other);
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            assert_eq!(std::iter::from_fn(|| messages.try_next()).count(), usize::from(!is_quiet));
            let topic = hub.topics.find("room").expect("somebody is there");
            assert!(topic.kept.lock().untold.is_empty());
        }
        assert_eq!(server.presence("room").expect("a topic").members.len(), 3);
    }

    /// One task tells at a time, and none where there is nothing to tell.
    #[tokio::test(start_paused = true)]
    async fn one_task_tells_at_a_time() {
        let server =
            Server::builder().topic("room", TopicOptions::new().open().presence(true)).expect("a pattern").build();
        let listening = server.listen("memory@tell-one-task").await.expect("the name is free");
        let connecting = Client::bidirectional(listening.address(), ClientOptions::new());
        let (client, _messages) = connecting.await.expect("it listens");
        client.subscribe("room").await.expect("open");
        let session = server.sessions(&super::super::Target::everyone()).expect("no topic").remove(0);
        let registry = session.inner.registry.upgrade().expect("the server lives");
        let hub = &registry.hub;
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;

        hub.tell();
        assert!(!hub.telling.state.lock().is_running, "there is nothing to tell");
        hub.telling.state.lock().is_running = true;
        hub.telling.state.lock().topics.push_back("room".into());
        hub.tell();
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        assert_eq!(hub.telling.state.lock().topics.len(), 1, "another task comes to it");
        hub.telling.state.lock().is_running = false;
        hub.tell();
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        assert_eq!(hub.telling.state.lock().topics.len(), 0);
    }

    /// A task that tells very many lets others run.
    #[tokio::test]
    async fn telling_takes_turns() {
        let mut pauses = 0;
        let mut work = 0;
        for _ in 0..3 * AT_ONCE {
            let mut turn = pin!(take_turns(&mut work));
            pauses += usize::from(turn.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        assert_eq!(pauses, 3);
    }
}
