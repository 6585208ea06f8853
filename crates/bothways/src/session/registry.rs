//! The tables of sessions: by connection, number and user; with what is kept of those that ended.
//!
//! Tables have parts with a lock each. No two parts are locked at once, with one exception: a session is entered by its
//! number while the part of its connection is locked. Order of locks: a part, then a session (see `mod.rs`).

use std::{
    collections::HashSet,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::Notify;

#[cfg(feature = "cluster")]
use super::receipt::Outcomes;
use super::{
    Session, SessionId,
    away::Away,
    claims::Listed,
    endings::{Endings, RESUMES},
    explain::{self, EventLog, Explanation, What},
    fan_out::{Delivery, SendError},
    feed::Feed,
    handle::Inner,
    hub::Hub,
    ledger::Bounds,
    lock::Lock,
    mailbox::{MailboxOptions, Mailboxes, Post},
    options::{SessionOptions, Setup},
    parts::PARTS_BYTES,
    pasts::{self, Pasts},
    push::{Class, Push},
    queues::QueueStats,
    receipt::Receipt,
    shards::Shards,
    state::State,
    target::{Target, Who},
    topic::{self, TopicError},
    totals::PushCounts,
    users::Users,
};
use crate::{
    calm::Calm,
    clock::Runtimes,
    connection::{
        Connection, ConnectionId, METHODS_BYTES_MAX,
        in_order::{ByConnection, InOrder},
    },
    error::NotDurable,
    stats::{Counters, Counts},
    store::Store,
};

/// All sessions of a server.
pub(crate) struct Registry {
    pub(super) options: SessionOptions,
    /// Of the ledger of each session.
    pub(super) bounds: Arc<Bounds>,
    /// By number.
    pub(super) by_id: Shards<HashSet<Session>>,
    pub(super) by_connection: Shards<ByConnection<Session>, InOrder>,
    /// The server's connections: those that have no session yet get it from here.
    pub(super) connections: Arc<Mutex<ByConnection<Connection>>>,
    /// Connections that have no session yet.
    pub(super) lazy: AtomicUsize,
    pub(super) me: Weak<Registry>,
    pub(super) users: Users,
    /// Topics.
    pub(crate) hub: Arc<Hub>,
    pub(super) fan_out: Arc<Delivery>,
    pub(super) away: Away,
    pub(super) told: Told,
    /// How clients came back, or did not.
    pub(super) resumes: Counters<{ RESUMES.len() }>,
    /// Somebody sweeps: only one at a time.
    pub(super) sweeping: AtomicBool,
    pub(super) endings: Endings,
    /// Of all sessions, for operators.
    pub(crate) feed: Feed,
    /// Those in which the server listens.
    pub(crate) runtimes: Arc<Runtimes>,
    /// What is left of sessions that ended.
    pub(super) ended: Mutex<Pasts>,
    pub(super) count: AtomicUsize,
    /// Durable pushes, if there is a store for them.
    pub(super) post: Post,
    /// The way to sessions of other nodes.
    #[cfg(feature = "cluster")]
    pub(crate) beyond: super::carried::Beyond,
    /// Held while a push is on its way to sessions of this node, and by who takes a session in or parts from one. Locked
    /// before all others.
    #[cfg(feature = "cluster")]
    pub(crate) gate: super::gate::Gate,
}

/// When the log was told last of what befalls sessions: of a crowd it is told how many, and `explain` has the rest.
#[derive(Default)]
pub(super) struct Told {
    pub(super) resumed: Calm,
    pub(super) ended: Calm,
}

impl Registry {
    pub(crate) fn new(setup: Setup, connections: Arc<Mutex<ByConnection<Connection>>>) -> Arc<Self> {
        let Setup { options, rules, limits, counts_user_calls } = setup;
        let bounds = Arc::new(options.bounds());
        let log = bounds.tracked_messages;
        for (pattern, history) in rules.keeping_more_than(log) {
            tracing::warn!(
                pattern,
                history,
                log,
                "the history is longer than `SessionOptions::log`: not all of it can be recovered at once"
            );
        }

        // Without event logs there is nothing to keep of a session that ended.
        let ended_max = if options.events_max == 0 { 0 } else { options.ended_max };
        let runtimes = Arc::<Runtimes>::default();
        let fan_out = Arc::new(Delivery::new(limits, Arc::clone(&runtimes)));

        Arc::new_cyclic(|me| Self {
            users: Users::new(counts_user_calls, bounds.user_bytes),
            hub: Hub::new(&options, rules, Arc::clone(&fan_out)),
            fan_out,
            options,
            bounds,
            by_id: Shards::default(),
            by_connection: Shards::default(),
            connections,
            lazy: AtomicUsize::new(0),
            me: me.clone(),
            away: Away::default(),
            told: Told::default(),
            resumes: Counters::new(&RESUMES),
            runtimes,
            sweeping: AtomicBool::new(false),
            endings: Endings::default(),
            feed: Feed::default(),
            ended: Mutex::new(Pasts::new(ended_max, pasts::BYTES_MAX)),
            count: AtomicUsize::new(0),
            post: Post::new(),
            #[cfg(feature = "cluster")]
            beyond: super::carried::Beyond::new(),
            #[cfg(feature = "cluster")]
            gate: super::gate::Gate::default(),
        })
    }

    pub(super) fn options(&self) -> &SessionOptions {
        &self.options
    }

    /// A connection is about to open: its session begins, and is made when somebody asks for it.
    pub(crate) fn open(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.lazy.fetch_add(1, Ordering::Relaxed);
    }

    /// The session of a connection; `None` once it has gone to another connection, or is over.
    ///
    /// It is made when it is first asked for: a client that only calls costs its server none.
    pub(crate) fn of(&self, connection: &Connection) -> Option<Session> {
        let id = connection.id();
        let shard = self.by_connection.of(&id);
        if connection.is_adopted() {
            return shard.read().get(&id).cloned();
        }
        let mut of_shard = shard.write();
        if !connection.is_adopted() {
            let session = self.make(connection);
            self.by_id.of(&session.id()).write().insert(session.clone());
            of_shard.insert(id, session);
            self.lazy.fetch_sub(1, Ordering::Relaxed);
            connection.adopt();
        }
        of_shard.get(&id).cloned()
    }

    /// As [`Self::of`], but none is made: if nobody has asked for it, there is nothing in it.
    pub(crate) fn made_of(&self, connection: &Connection) -> Option<Session> {
        if connection.is_adopted() { self.of(connection) } else { None }
    }

    /// As [`Self::of`], by number.
    pub(crate) fn of_connection(&self, id: ConnectionId) -> Option<Session> {
        let made = self.by_connection.of(&id).read().get(&id).cloned();
        made.or_else(|| {
            let connection = self.connections.lock().get(&id).cloned()?;
            self.of(&connection)
        })
    }

    /// What was pushed to its client and to others is with the connection after this, or in the ledger.
    pub(crate) fn catch_up(&self, connection: &Connection) {
        if self.fan_out.has_batches()
            && let Some(session) = self.made_of(connection)
        {
            drop(session.lock());
        }
    }

    /// The connection is over: if nobody has asked for its session, there is none, and none is made. True: so it is.
    pub(super) fn never_makes(&self, connection: &Connection) -> bool {
        if connection.is_adopted() {
            return false;
        }
        let _of_shard = self.by_connection.of(&connection.id()).write();
        let is_lazy = !connection.is_adopted();
        if is_lazy {
            connection.adopt();
            self.lazy.fetch_sub(1, Ordering::Relaxed);
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        is_lazy
    }

    /// Makes the sessions that nobody has asked for yet.
    pub(super) fn make_all(&self) {
        if self.lazy.load(Ordering::Relaxed) != 0 {
            let all: Vec<Connection> = self.connections.lock().values().cloned().collect();
            for connection in all.iter().filter(|connection| !connection.is_adopted()) {
                self.of(connection);
            }
        }
    }

    /// Connections whose sessions nobody has asked for yet.
    pub(crate) fn lazy_connections(&self) -> Vec<ConnectionId> {
        if self.lazy.load(Ordering::Relaxed) == 0 {
            return Vec::new();
        }
        // Numbers only: what is locked for all is locked for as long as it takes to copy them.
        self.connections.lock().keys().copied().collect()
    }

    /// Makes the sessions of these connections.
    pub(crate) fn make_some(&self, connections: impl Iterator<Item = ConnectionId>) {
        connections.for_each(|id| _ = self.of_connection(id));
    }

    /// The sessions in this part of the table; `None` behind the last part.
    pub(crate) fn part(&self, part: usize) -> Option<Vec<Session>> {
        self.by_id.iter().nth(part).map(|part| part.read().iter().cloned().collect())
    }

    /// True if its client has another session, or is about to have it: that one stands for both.
    pub(crate) fn is_stood_for(&self, session: &Session) -> bool {
        let other = {
            let state = session.lock();
            state.hidden_by().or_else(|| state.made_way_for().map(Session::id))
        };
        other.is_some_and(|other| self.session(other).is_some() || self.may_be_elsewhere(other))
    }

    /// Without those whose client has named another of them, or has got that one since they were listed: that one gets what
    /// is for both. So does one that has gone to another node meanwhile, which lists it.
    pub(super) fn without_claims(&self, sessions: Vec<Session>) -> Vec<Session> {
        let stands_for = |state: &State| state.hidden_by().or_else(|| state.made_way_for().map(Session::id));
        without(sessions, stands_for, |wanted| self.may_be_elsewhere(wanted))
    }

    /// True if this session is not here, and may be at another node. One whose client has named it while it was here is no
    /// session of its own for that.
    fn may_be_elsewhere(&self, id: SessionId) -> bool {
        #[cfg(feature = "cluster")]
        return self.beyond.get().is_some() && self.session(id).is_none();
        #[cfg(not(feature = "cluster"))]
        {
            let _ = id;
            false
        }
    }

    /// The user of a session, also of one that ended lately.
    pub(crate) fn user_of(&self, id: SessionId) -> Option<Arc<str>> {
        match self.session(id) {
            Some(session) => session.user(),
            None => self.ended.lock().user_of(id),
        }
    }

    /// The session of a connection as it began. Plain until a Hello says otherwise.
    pub(super) fn make(&self, connection: &Connection) -> Session {
        let began = connection.began();
        Session {
            inner: Arc::new(Inner {
                id: SessionId::next(),
                registry: self.me.clone(),
                event_log: Arc::new(EventLog::begun(self.options.events_max, began, What::Connected(connection.id()))),
                changed: Notify::new(),
                state: Lock::new(State::connected(connection.clone(), Arc::clone(&self.bounds))),
            }),
        }
    }

    /// Binds a session to a user: it is found among that user's sessions from then on.
    pub(super) fn bind_user(&self, session: &Session, name: Option<&str>) {
        let name: Option<Arc<str>> = name.map(Arc::from);
        let Some(before) = session.bind(name.clone()) else { return };
        if before.is_some() && name.is_some() {
            session.tell_of_another_user();
        }
        for user in before.iter().chain(&name) {
            self.users.settle(session, user);
        }
        // Another bound counts now for what it is owed.
        session.inner.changed.notify_waiters();
        self.hub.rename(session);
        if let Some(mail) = self.post.get() {
            mail.arrived(session);
        }
    }

    pub(crate) fn session(&self, id: SessionId) -> Option<Session> {
        self.by_id.of(&id).read().get(&id).cloned()
    }

    /// Sessions whose clients are away.
    pub(crate) fn away(&self) -> usize {
        self.away.len()
    }

    /// Sessions that live.
    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// The sessions that a target names, each once: of a client that is about to get its session back, that one alone.
    pub(crate) fn find(&self, target: &Target) -> Result<Vec<Session>, TopicError> {
        Ok(self.without_claims(self.find_all(target)?))
    }

    /// As [`Self::find`], with those whose clients are about to have another one: what ends, or explains, leaves out none.
    pub(crate) fn find_all(&self, target: &Target) -> Result<Vec<Session>, TopicError> {
        let mut found: Vec<Session> = match &target.who {
            Who::Connection(id) => self.of_connection(*id).into_iter().collect(),
            Who::Session(id) => self.session(*id).into_iter().collect(),
            Who::Users(names) => unique(names.iter().flat_map(|name| self.users.sessions_of(name)).collect()),
            Who::SubscribersOf(name) => {
                topic::check_topic(name)?;
                #[cfg(feature = "cluster")]
                let coming = self.hub.coming_to(name);
                let found: Vec<Session> = self.hub.subscribers(name).iter().cloned().collect();
                #[cfg(feature = "cluster")]
                let found = unique(found.into_iter().chain(coming).collect());
                found
            }
            Who::Everyone => {
                self.make_all();
                self.by_id.iter().flat_map(|shard| shard.read().iter().cloned().collect::<Vec<_>>()).collect()
            }
        };

        // A client that is about to get its session back is excepted with that one.
        let wanted = |id: &SessionId| self.wanted_by(&self.session(*id)?);
        let excepted: Vec<Session> = target.except.iter().filter_map(wanted).collect();
        found.retain(|session| target.admits(session) && !excepted.contains(session));
        Ok(without(found, |state| state.made_way_for().map(Session::id), |_| false))
    }

    /// What lately happened to the sessions that a target names: first those that ended.
    pub(crate) fn explain(&self, target: &Target) -> Result<Vec<Explanation>, TopicError> {
        let live = self.find_all(target)?;
        let mut told = self.ended.lock().tell(target);
        told.extend(live.iter().map(Session::explain));
        Ok(told)
    }

    /// What one session can take at most, if no push is larger than this.
    pub(crate) fn session_bytes_max(&self, push_bytes: usize) -> usize {
        let options = &self.options;
        let terms = [
            options.events_max.saturating_mul(explain::EVENT_BYTES_MAX),
            options.subscription_bytes_max,
            METHODS_BYTES_MAX,
            PARTS_BYTES,
        ];
        terms.into_iter().fold(self.bounds.bytes_max(push_bytes), usize::saturating_add)
    }

    /// A receipt for this push, which counts among all pushes.
    pub(crate) fn receipt_of(&self, push: &Push) -> Receipt {
        Receipt::of(push, &self.fan_out.totals)
    }

    /// What became of all pushes.
    pub(crate) fn pushes(&self) -> PushCounts {
        self.fan_out.totals.read()
    }

    /// How clients came back, or did not.
    pub(crate) fn resumes(&self) -> Counts {
        self.resumes.read()
    }

    /// Looks at every session, part by part: no more than one part's table is locked, while it is copied, and then each
    /// session by itself.
    pub(crate) fn queues(&self) -> QueueStats {
        let mut queues = QueueStats::default();
        for part in self.by_id.iter() {
            let sessions: Vec<Session> = part.read().iter().cloned().collect();
            for session in sessions {
                let state = session.lock();
                if !state.is_ended() {
                    queues.add(state.counted_as(), state.ledger().waiting());
                }
            }
        }
        // Of those that nobody has asked for there is nothing but their number.
        queues.add_blank(self.lazy.load(Ordering::Relaxed));
        queues
    }

    /// Pushes to everybody that a target names. The push is encoded once, and nobody waits for anybody.
    pub(crate) fn push(&self, target: &Target, push: &Push, receipt: &Receipt) -> Result<(), SendError> {
        if let Class::Durable { ttl } = push.class {
            return self.post(target, push, ttl, receipt);
        }
        #[cfg(feature = "cluster")]
        if let Some(beyond) = self.beyond.get()
            && let Some(carried) = super::Carried::of(target, push)
        {
            return self.push_everywhere(&**beyond, &carried, target, push, receipt);
        }
        self.push_here(target, push, receipt)
    }

    /// As [`Self::push`], in a cluster. No session comes or goes between the look for sessions and the number under which
    /// other nodes get the push: by that number they know who has it.
    #[cfg(feature = "cluster")]
    fn push_everywhere(
        &self,
        beyond: &dyn super::Elsewhere,
        carried: &super::Carried,
        target: &Target,
        push: &Push,
        receipt: &Receipt,
    ) -> Result<(), SendError> {
        let _stay = self.gate.stay();
        self.push_here(target, push, receipt)?;
        if let Some(number) = beyond.route(carried, receipt)
            && beyond.has_left()
        {
            beyond.push_after(&super::Destination::Sessions(target.clone()), push, receipt, number);
        }
        Ok(())
    }

    /// The way to call clients of other nodes.
    #[cfg(feature = "cluster")]
    pub(crate) fn callable(&self) -> Option<Arc<dyn super::Callable>> {
        self.beyond.get().map(|beyond| Arc::clone(beyond) as _)
    }

    /// Puts a push into the mailboxes of the users that a target names.
    #[cold]
    fn post(&self, target: &Target, push: &Push, ttl: Duration, receipt: &Receipt) -> Result<(), SendError> {
        self.fan_out.check_running()?;
        let refused = |why: NotDurable| SendError::Push(why.into());
        let mail = self.post.get().ok_or_else(|| refused(NotDurable::NoStore))?;
        let Who::Users(users) = &target.who else { return Err(refused(NotDurable::Target)) };
        if !target.except.is_empty() || !target.labels.is_empty() {
            return Err(refused(NotDurable::Target));
        }
        self.fan_out.check(push)?;
        Ok(mail.post(users, push, ttl, receipt)?)
    }

    /// Durable pushes are kept in this store from here on. False: they are in another one.
    pub(crate) fn keep_mail(self: &Arc<Self>, store: Arc<dyn Store>, options: MailboxOptions) -> bool {
        self.post.set(Mailboxes::new(store, options, self)).is_ok()
    }

    /// Durable pushes, if there is a store.
    pub(crate) fn mailboxes(&self) -> Option<&Arc<Mailboxes>> {
        self.post.get()
    }

    /// Publishes to a topic: here, and at all nodes if no history keeps it.
    pub(crate) fn publish(&self, topic: &str, push: &Push, receipt: &Receipt) -> Result<(), SendError> {
        #[cfg(feature = "cluster")]
        if let Some(beyond) = self.beyond.get().filter(|_| !self.hub.keeps_history(topic)) {
            let _stay = self.gate.stay();
            self.hub.publish(topic, push, receipt)?;
            if let Some(number) = beyond.route(&super::Carried::of_topic(topic, push), receipt)
                && beyond.has_left()
            {
                beyond.push_after(&super::Destination::Topic(topic.to_owned()), push, receipt, number);
            }
            return Ok(());
        }
        self.hub.publish(topic, push, receipt)
    }

    /// Pushes here what another node has sent. False: it cannot be taken.
    #[cfg(feature = "cluster")]
    pub(crate) fn push_carried(
        &self,
        to: &super::Destination,
        push: &Push,
        receipt: &Receipt,
        origin: (super::NodeId, u64),
    ) -> bool {
        match to {
            super::Destination::Sessions(target) => self.push_of(target, push, receipt, origin).is_ok(),
            // Where nodes differ in what they keep, its messages would have no order.
            super::Destination::Topic(topic) if self.hub.keeps_history(topic) => false,
            super::Destination::Topic(topic) => {
                self.hub.publish_to_others(topic, push, receipt, &self.taken(origin)).is_ok()
            }
        }
    }

    /// As [`Self::push_here`], the push of another node: a session that has come lately may have it already.
    #[cfg(feature = "cluster")]
    fn push_of(
        &self,
        target: &Target,
        push: &Push,
        receipt: &Receipt,
        origin: (super::NodeId, u64),
    ) -> Result<(), SendError> {
        self.fan_out.check_running()?;
        let mut found = self.find(target)?;
        let taken = self.taken(origin);
        found.retain(|session| !taken.contains(&session.id()));
        Ok(self.fan_out.push_to(&found, push, receipt)?)
    }

    /// The sessions that have come lately and have this push already: a few at most.
    #[cfg(feature = "cluster")]
    fn taken(&self, (node, number): (super::NodeId, u64)) -> Vec<SessionId> {
        self.beyond.get().map(|beyond| beyond.taken(node, number)).unwrap_or_default()
    }

    /// As [`Self::push`], to sessions of this node only.
    pub(crate) fn push_here(&self, target: &Target, push: &Push, receipt: &Receipt) -> Result<(), SendError> {
        self.fan_out.check_running()?;
        Ok(self.fan_out.push_to(&self.find(target)?, push, receipt)?)
    }

    /// That of a push of another node: each change is told.
    #[cfg(feature = "cluster")]
    pub(crate) fn watched(&self, push: &Push, watcher: impl Fn(u64, &Outcomes) + Send + Sync + 'static) -> Receipt {
        Receipt::watched(push, &self.fan_out.totals, watcher)
    }

    /// They end, or have ended, with their server.
    #[cfg(feature = "cluster")]
    pub(crate) fn have_ended(&self) -> bool {
        self.fan_out.check_running().is_err()
    }

    #[cfg(feature = "cluster")]
    pub(crate) fn limits(&self) -> &bothways_proto::Limits {
        self.fan_out.limits()
    }
}

/// Without those for which another one stands that is among them, or of which this is so.
fn without(
    mut sessions: Vec<Session>,
    stands_for: impl Fn(&State) -> Option<SessionId>,
    is_so: impl Fn(SessionId) -> bool,
) -> Vec<Session> {
    let claiming: Vec<(SessionId, SessionId)> =
        sessions.iter().filter_map(|session| Some((session.id(), stands_for(&session.lock())?))).collect();
    if !claiming.is_empty() {
        let listed = Listed::new(&*sessions);
        let is_stood_for = |wanted: SessionId| listed.contains(wanted) || is_so(wanted);
        let hidden: HashSet<SessionId> =
            claiming.into_iter().filter(|(_, wanted)| is_stood_for(*wanted)).map(|(id, _)| id).collect();
        sessions.retain(|session| !hidden.contains(&session.id()));
    }
    sessions
}

/// Each once, in the order of their first place.
pub(super) fn unique(mut sessions: Vec<Session>) -> Vec<Session> {
    let mut seen = HashSet::with_capacity(sessions.len());
    sessions.retain(|session| seen.insert(session.id()));
    sessions
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Client, ClientOptions, Server};

    /// A client that only calls costs no session. Asked for, it has one, which tells of everything from the beginning.
    #[tokio::test(start_paused = true)]
    async fn a_session_is_made_when_it_is_asked_for() {
        let registry = Arc::new(Mutex::new(None::<Arc<Registry>>));
        let ended = Arc::new(Mutex::new(None));
        let (of_hook, asked) = (Arc::clone(&registry), Arc::clone(&ended));
        let server = Server::builder()
            .on_disconnect(move |connection, _| {
                *asked.lock() = of_hook.lock().as_ref().and_then(|registry| registry.of_connection(connection.id()));
            })
            .build();
        let listening = server.listen("memory@registry-asked-for").await.expect("the name is free");
        let mut clients = Vec::new();
        for _ in 0..2 {
            let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
            client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
            clients.push(client);
        }
        let [first, second] = server.connections().try_into().expect("two");
        let all = first.owner::<Registry>().expect("a server's connection");
        *registry.lock() = Some(Arc::clone(&all));
        assert_eq!((all.made_of(&first), all.made_of(&second), server.stats().sessions), (None, None, 2));

        tokio::time::advance(Duration::from_secs(5)).await;
        let told = server.explain(&Target::connection(first.id())).expect("no topic").remove(0);
        let since: Duration = Duration::from_millis(told.events[0].at_ms);
        let ago = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970") - since;
        assert!(Duration::from_secs(5) <= ago, "{ago:?}, as it connected");
        assert_eq!(told.events[0].event, super::super::Event::Connected(first.id().to_string()));
        assert_eq!((all.made_of(&first), all.made_of(&second)), (all.of(&first), None), "one, and the same for all");

        let everyone = server.sessions(&Target::everyone()).expect("no topic");
        assert_eq!((everyone.len(), all.lazy.load(Ordering::Relaxed)), (2, 0));
        let third = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
        third.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
        clients.push(third);
        let last = server.connections().pop().expect("three");
        drop(clients.pop());
        last.closed().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(ended.lock().is_some(), "`on_disconnect` finds it");
        assert_eq!((all.of(&last), all.of_connection(last.id()), server.stats().sessions), (None, None, 2));
    }

    /// F36. A push to many does the same few things for each in the caller's call, and nothing that grows with their
    /// number; so does a message of a topic.
    #[tokio::test(start_paused = true)]
    async fn a_push_to_many_costs_the_same_for_each() {
        use super::super::{TopicOptions, lock};

        let history = TopicOptions::new().open().history(10, Duration::from_secs(60));
        let server = Server::builder().topic("news", history).expect("a pattern").build();
        let listening = server.listen("memory@registry-many").await.expect("the name is free");
        let mut clients = Vec::new();
        let mut costs = Vec::new();
        for count in [20, 40, 80] {
            while clients.len() < count {
                let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
                client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
                clients.push(client);
            }
            let sessions = server.sessions(&Target::everyone()).expect("no topic");
            let registry = sessions[0].inner.registry.upgrade().expect("the server lives");
            sessions
                .iter()
                .for_each(|session| _ = registry.hub.subscribe(session, "news", None, false).expect("it lives"));
            let push = Push::new("N", "say", "1");
            let cost = |run: &dyn Fn() -> Receipt| {
                let before = lock::TAKEN.get();
                assert_eq!(run().outcomes().targets(), count);
                lock::TAKEN.get() - before
            };
            costs.push([
                cost(&|| server.push(&Target::everyone(), &push).expect("small")),
                cost(&|| server.publish("news", &push).expect("small")),
            ]);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for [push, publish] in costs.iter().zip([20, 40, 80]).map(|(cost, count)| cost.map(|cost| cost.div_ceil(count)))
        {
            assert!(push <= 6 && publish <= 6, "{costs:?}");
        }
    }
}
