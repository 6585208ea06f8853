#![doc = include_str!("../README.md")]

mod logs;
mod names;
mod options;
mod register;
mod rings;
mod streams;
mod wire;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use async_nats::{HeaderMap, Message, Subscriber};
use bothways::{
    cluster::{
        Engine, NodeId, Store,
        engine::{
            AppendError, AskError, BoxFuture, BuryError, ClaimError, EngineDown, EngineLimits, EngineState, Followed,
            Follower, Following, Inbox, Lease, Level, Log, Members, NewEntry, Page, Place, Revision, Stored,
        },
    },
    session::SessionId,
};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch},
    task::{AbortHandle, JoinHandle},
    time::{Instant, timeout},
};

pub use crate::options::{ConnectError, NatsOptions};
use crate::{
    names::{Kind, UNKEPT},
    options::{BATCHES, OLDEST},
    register::Register,
    streams::{REPLICATED_MIN, Streams, Wanted},
    wire::{Events, Failure, Outbox, Wire},
};

/// What a message may have besides its bytes: headers, and what the register adds.
const HEADROOM: usize = 4096;
/// The smallest message that an engine must take, with that.
const MESSAGE_BYTES_MIN: usize = (64 << 10) + HEADROOM;
/// How long the way to a node's own mail, or to a follower, may take until it is open.
const OPEN_MAX: Duration = Duration::from_secs(2);
/// How long it is waited for that the leaders have heard of that.
const REACH_MAX: Duration = Duration::from_millis(250);
/// Most messages to this node that are not answered yet, and their bytes. More are not taken: those who asked try again.
const TAKEN_MAX: usize = 4096;
const TAKEN_BYTES_MAX: usize = 64 << 20;
/// The longest that a node may take for one message.
const TAKE_MAX: Duration = Duration::from_secs(30);
/// How often it is said, at most, that more comes.
const SAID_EVERY: Duration = Duration::from_secs(10);
/// By this header a node asks whether its own mail comes.
const PROBE: &str = "Bothways-Probe";
/// How often the client library asks its server whether it is there.
const PING_EVERY: Duration = Duration::from_secs(2);
/// How long one server may take to let this node in, before the next is tried.
const TRY_MAX: Duration = Duration::from_secs(2);

/// The engine of one node, over a connection of its own. From [`NatsEngine::connect`].
///
/// It ends with its last handle: the node does not listen any more, and its lease runs out.
pub struct NatsEngine {
    here: Arc<Here>,
    tasks: Vec<AbortHandle>,
}

struct Here {
    wire: Arc<Wire>,
    register: Arc<Register>,
    streams: Arc<Streams>,
    limits: EngineLimits,
    /// What takes the mail of each name.
    listening: Mutex<HashMap<NodeId, Listening>>,
}

/// Takes the mail of a name until this is dropped.
struct Listening {
    /// Told, or dropped, it ends.
    end: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Listening {
    /// Returns when the server was told.
    async fn end(mut self) {
        drop(self.end.take());
        let _ = timeout(OPEN_MAX, &mut self.task).await;
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for NatsEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsEngine").field("limits", &self.here.limits).finish_non_exhaustive()
    }
}

impl Drop for NatsEngine {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        self.here.listening.lock().clear();
    }
}

impl NatsEngine {
    /// Connects to a broker, and makes or checks its streams: thirteen, named `bw_<cluster>_…`. From then on the connection
    /// is made anew by itself whenever it breaks, also if the broker was emptied meanwhile.
    ///
    /// TLS is done by the `CryptoProvider` of rustls that the process has; if it has none, that is ring from then on.
    ///
    /// # Errors
    /// [`ConnectError`] says what is to be done.
    pub async fn connect(options: NatsOptions) -> Result<Arc<Self>, ConnectError> {
        let until = Instant::now() + options.start_max;
        options.check()?;
        let names = options.names()?;
        let addresses = options.server_addresses()?;
        choose_cryptography();
        let (connection, is_encrypted) = options.connection(&addresses).await?;

        let events = Events::new();
        let told = Arc::clone(&events);
        let connection = connection
            .name(format!("bothways {}", options.cluster))
            .ping_interval(PING_EVERY)
            .connection_timeout(TRY_MAX)
            .custom_inbox_prefix(format!("{}i", names.prefix()))
            .event_callback(move |event| {
                told.told(event);
                std::future::ready(())
            });
        let connected = timeout(options.start_max, connection.connect(addresses.as_slice())).await;
        let client = connected
            .map_err(|_| ConnectError::Silent { complaint: events.complaint() })?
            .map_err(|error| ConnectError::from_connecting(&error, &addresses))?;

        let info = client.server_info();
        if !is_at_least(&info.version, OLDEST) {
            return Err(ConnectError::TooOld { version: info.version });
        }
        if info.max_payload < MESSAGE_BYTES_MIN {
            let what = format!("`max_payload` is {}, and at least {MESSAGE_BYTES_MIN} is needed", info.max_payload);
            return Err(ConnectError::TooSmall { what });
        }

        let may_batch = is_at_least(&info.version, BATCHES);
        let silent = |_: Failure| ConnectError::Silent { complaint: events.complaint() };
        let wire = Wire::new(client, Arc::clone(&events), &names.prefix()).await.map_err(silent)?;
        let wanted = Wanted {
            replicas: options.replicas,
            history_entries_max: options.history_entries_max,
            mailbox_entries_max: options.mailbox_entries_max,
            stream_bytes_max: options.stream_bytes_max,
            domain: options.domain.clone(),
        };
        let streams = Arc::new(Streams::new(Arc::clone(&wire), names, wanted, info.cluster.is_some(), may_batch));
        let left = || until.saturating_duration_since(Instant::now());
        streams.check_account(left()).await?;
        streams.ensure(left()).await?;

        let register = Register::new(Arc::clone(&wire), Arc::clone(&streams), is_encrypted);
        let leases = streams.names.subject('w', "*", "*");
        let leases = wire.subscribe(leases).await.map_err(silent)?;
        register.list().await.map_err(silent)?;
        let level = match (options.is_synced, streams.replicas()) {
            (true, _) => Level::Synced,
            (false, REPLICATED_MIN..) => Level::Replicated,
            // It is on the disk sooner or later.
            (false, _) => Level::Memory,
        };
        let limits = EngineLimits::new(level)
            .message_bytes_max(info.max_payload - HEADROOM)
            .history_entries_max(options.history_entries_max)
            .mailbox_entries_max(options.mailbox_entries_max);
        let tasks = vec![
            tokio::spawn(register::watch_over(Arc::downgrade(&register))).abort_handle(),
            tokio::spawn(register::watch_leases(Arc::downgrade(&register), leases)).abort_handle(),
            tokio::spawn(wire::tell_gaps(events)).abort_handle(),
            tokio::spawn(warn_of_listeners(Arc::clone(&wire))).abort_handle(),
        ];
        let here = Here { wire, register, streams, limits, listening: Mutex::default() };
        Ok(Arc::new(Self { here: Arc::new(here), tasks }))
    }
}

/// The client library takes what the process has, and panics where a program brings two and has not said which.
fn choose_cryptography() {
    use async_nats::rustls::crypto::{CryptoProvider, ring};

    if CryptoProvider::get_default().is_none() {
        // Somebody else may be first.
        let _ = ring::default_provider().install_default();
    }
}

fn is_at_least(version: &str, oldest: (u64, u64)) -> bool {
    let mut parts = version.trim_start_matches('v').split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    oldest <= (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

impl Here {
    fn is_too_large(&self, bytes: &Bytes) -> bool {
        self.limits.message_bytes_max < bytes.len()
    }

    async fn listen(&self, me: NodeId, inbox: Arc<dyn Inbox>) -> Result<(), EngineDown> {
        let subject = self.streams.names.mail(me);
        let mail = self.wire.subscribe(subject.clone()).await.map_err(|_| EngineDown)?;
        let (end, ended) = oneshot::channel();
        let task = tokio::spawn(take_mail(mail, inbox, Arc::clone(&self.wire), ended));
        let before = self.listening.lock().insert(me, Listening { end: Some(end), task });
        drop(before);
        // A server that is far from the nodes of others has them hear of it while this goes there and back.
        let mut probe = HeaderMap::new();
        probe.insert(PROBE, "1");
        let heard = self.wire.ask(Outbox::Mail, subject, Some(probe), Bytes::new(), OPEN_MAX).await.is_ok();
        self.reach_leaders(Kind::all()).await;
        if !heard {
            let listening = self.listening.lock().remove(&me);
            drop(listening);
            return Err(EngineDown);
        }
        Ok(())
    }

    async fn deafen(&self, me: NodeId) {
        let listening = self.listening.lock().remove(&me);
        let Some(listening) = listening else { return };
        listening.end().await;
        // What comes back was sent after that, on the same way.
        if self.wire.is_served(OPEN_MAX).await {
            self.reach_leaders(Kind::all()).await;
        }
    }

    /// Asks the leaders of these streams for something. What this connection has said to its server before, theirs have
    /// heard then: it takes the same way.
    async fn reach_leaders(&self, of: impl IntoIterator<Item = Kind>) {
        let reaching = async {
            for kind in of {
                if let Some(identity) = self.streams.identity(kind) {
                    let _ = self.streams.last(kind, identity.token(), "probe").await;
                }
            }
        };
        let _ = timeout(REACH_MAX, reaching).await;
    }

    async fn ask(&self, to: NodeId, bytes: Bytes, within: Duration) -> Result<Bytes, AskError> {
        match self.wire.ask(Outbox::Mail, self.streams.names.mail(to), None, bytes, within).await {
            Ok(answer) => Ok(answer.payload),
            Err(Failure::Nobody) => Err(AskError::NoNode),
            Err(Failure::NotSent | Failure::NoRoom) => Err(AskError::Down),
            Err(Failure::TooLarge) => Err(AskError::TooLarge),
            Err(Failure::Unknown) if self.wire.events.is_up() => Err(AskError::TimedOut),
            Err(Failure::Unknown) => Err(AskError::Down),
        }
    }

    async fn publish(&self, topic: String, bytes: Bytes) -> Result<(), EngineDown> {
        let topic = names::topic(&topic).ok_or(EngineDown)?;
        let subject = self.streams.names.subject('t', UNKEPT, &topic);
        self.wire.tell(subject, bytes).await.map_err(|_| EngineDown)
    }

    async fn follow(&self, pattern: String, follower: Arc<dyn Follower>) -> Result<Following, EngineDown> {
        let subjects = names::pattern(&pattern).ok_or(EngineDown)?;
        let subject = self.streams.names.subject('t', "*", &subjects);
        self.follow_subject(subject, names::histories_of(&pattern), follower, names::topic_of).await
    }

    async fn follow_mailboxes(&self, follower: Arc<dyn Follower>) -> Result<Following, EngineDown> {
        let subject = self.streams.names.subject('b', "*", "*");
        let mailboxes = Kind::all_of(&Log::Mailbox(String::new()));
        let following = self.follow_subject(subject, mailboxes, follower, names::name_of).await?;
        self.streams.rings.follow();
        Ok(following)
    }

    /// `name` makes what is told out of the last part of a subject.
    async fn follow_subject(
        &self,
        subject: String,
        of: Vec<Kind>,
        follower: Arc<dyn Follower>,
        name: fn(&str) -> Option<String>,
    ) -> Result<Following, EngineDown> {
        let subscriber = self.wire.subscribe(subject).await.map_err(|_| EngineDown)?;
        self.reach_leaders(of).await;
        let (streams, wire) = (Arc::downgrade(&self.streams), Arc::downgrade(&self.wire));
        let task = tokio::spawn(tell_follower(subscriber, follower, streams, wire, name)).abort_handle();
        Ok(Following::until(move || task.abort()))
    }
}

/// Says so if a server does not tell of a subject without listeners.
async fn warn_of_listeners(wire: Arc<Wire>) {
    if wire.is_served(OPEN_MAX).await && !wire.says_nobody(OPEN_MAX).await {
        tracing::warn!(
            "somebody listens to everything in this account of NATS: that a node is gone shows by time only"
        );
    }
}

/// Takes the mail of this node, in its order, and answers it.
async fn take_mail(mut mail: Subscriber, inbox: Arc<dyn Inbox>, wire: Arc<Wire>, mut ended: oneshot::Receiver<()>) {
    let mut room = Taken::new();
    loop {
        let message = tokio::select! {
            message = wire::next(&mut mail) => message,
            _ = &mut ended => break,
        };
        let Some(message) = message else { return };
        let Some(reply) = message.reply else { continue };
        let wire = Arc::clone(&wire);
        let is_probe = message.headers.is_some_and(|headers| headers.get(PROBE).is_some());
        if is_probe {
            tokio::spawn(async move { wire.tell(reply.to_string(), Bytes::new()).await });
            continue;
        }
        let Some(permits) = room.take(message.payload.len()) else { continue };
        let taking = inbox.take(message.payload);
        tokio::spawn(async move {
            // Also given back if the inbox panics.
            let _permits = permits;
            let answer = timeout(TAKE_MAX, taking).await;
            if let Ok(Some(answer)) = answer {
                // One that is lost is asked for again.
                let _ = wire.tell(reply.to_string(), answer).await;
            }
        });
    }
    let _ = mail.unsubscribe().await;
}

/// What this node has taken and not answered yet.
struct Taken {
    messages: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    /// Messages that had no room and were not told of, and when some were.
    left: u64,
    said: Option<Instant>,
}

impl Taken {
    fn new() -> Self {
        let (messages, bytes) = (Arc::new(Semaphore::new(TAKEN_MAX)), Arc::new(Semaphore::new(TAKEN_BYTES_MAX)));
        Self { messages, bytes, left: 0, said: None }
    }

    /// `None`: there is no room. The message is left, and those who asked try again.
    fn take(&mut self, bytes: usize) -> Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        let bytes = bytes.min(TAKEN_BYTES_MAX) as u32;
        let message = Arc::clone(&self.messages).try_acquire_owned().ok();
        let both = message.and_then(|one| Some((one, Arc::clone(&self.bytes).try_acquire_many_owned(bytes).ok()?)));
        if both.is_none() {
            self.left += 1;
            if self.said.is_none_or(|said| SAID_EVERY <= said.elapsed()) {
                tracing::warn!(
                    left = self.left,
                    "more mail comes than this node answers: some is left to be sent again"
                );
                (self.left, self.said) = (0, Some(Instant::now()));
            }
        }
        both
    }
}

/// Hands over what comes, in its order.
async fn tell_follower(
    mut subscriber: Subscriber,
    follower: Arc<dyn Follower>,
    streams: Weak<Streams>,
    wire: Weak<Wire>,
    name: fn(&str) -> Option<String>,
) {
    while let Some(message) = wire::next(&mut subscriber).await {
        let (Some(streams), Some(wire)) = (streams.upgrade(), wire.upgrade()) else { return };
        let Some((token, rest)) = streams.names.parts(&message.subject) else { continue };
        let Some(topic) = name(rest) else { continue };
        let stored = match token {
            UNKEPT => None,
            token => match chain(&streams, token, &message) {
                Some((kind, place, previous)) => {
                    let is_letter = matches!(kind, Kind::Mailbox(_));
                    if is_letter && !streams.rings.rang(kind, place.epoch, place.sequence) {
                        wire.events.gap();
                    }
                    Some((place, previous))
                }
                // Of a stream that was made just now: it is looked at, and what is missed is read then.
                None => {
                    streams.doubt.notify_one();
                    wire.events.gap();
                    continue;
                }
            },
        };
        follower.message(Followed::new(topic, message.payload, stored));
    }
}

/// In which stream something is stored, where, and the last sequence of its log before.
fn chain(streams: &Streams, token: &str, message: &Message) -> Option<(Kind, Place, u64)> {
    let (kind, identity) = streams.of_token(token)?;
    let number = |name: &str| message.headers.as_ref()?.get_last(name)?.as_str().parse::<u64>().ok();
    let place = Place { epoch: identity.epoch(), sequence: number("Nats-Sequence")? };
    Some((kind, place, number("Nats-Last-Sequence")?))
}

impl Store for NatsEngine {
    fn append(&self, to: Log, entry: NewEntry) -> BoxFuture<Result<Stored, AppendError>> {
        if self.here.is_too_large(&entry.bytes) {
            return Box::pin(async { Err(AppendError::TooLarge) });
        }
        Box::pin(logs::append(Arc::clone(&self.here.streams), self.here.limits.level, to, entry))
    }

    fn append_all(&self, to: Log, entries: Vec<NewEntry>) -> BoxFuture<Vec<Result<Stored, AppendError>>> {
        Box::pin(logs::append_all(Arc::clone(&self.here.streams), self.here.limits, to, entries))
    }

    fn read(&self, from: Log, after: u64, max: usize) -> BoxFuture<Result<Page, EngineDown>> {
        Box::pin(logs::read(Arc::clone(&self.here.streams), from, after, max))
    }

    fn cursor(&self, of: Log, reader: String) -> BoxFuture<Result<Option<Place>, EngineDown>> {
        Box::pin(logs::cursor(Arc::clone(&self.here.streams), of, reader))
    }

    fn cursors(&self, of: Log) -> BoxFuture<Result<Vec<(String, Place)>, EngineDown>> {
        Box::pin(logs::cursors(Arc::clone(&self.here.streams), of))
    }

    fn advance(&self, of: Log, reader: String, to: Place, keep: Duration) -> BoxFuture<Result<Place, EngineDown>> {
        Box::pin(logs::advance(Arc::clone(&self.here.streams), of, reader, to, keep))
    }

    fn trim(&self, log: Log, upto: Place) -> BoxFuture<Result<(), EngineDown>> {
        Box::pin(logs::trim(Arc::clone(&self.here.streams), log, upto))
    }

    fn remove(&self, from: Log, place: Place) -> BoxFuture<Result<bool, EngineDown>> {
        Box::pin(logs::remove(Arc::clone(&self.here.streams), from, place))
    }

    fn list(&self, after: Log, max: usize) -> BoxFuture<Result<Vec<(String, usize)>, EngineDown>> {
        Box::pin(logs::list(Arc::clone(&self.here.streams), after, max))
    }
}

impl Engine for NatsEngine {
    fn mail_state(&self) -> watch::Receiver<EngineState> {
        self.here.wire.mail_state()
    }

    fn register_state(&self) -> watch::Receiver<EngineState> {
        self.here.register.state()
    }

    fn limits(&self) -> EngineLimits {
        self.here.limits
    }

    fn listen(&self, me: NodeId, inbox: Arc<dyn Inbox>) -> BoxFuture<Result<(), EngineDown>> {
        let here = Arc::clone(&self.here);
        Box::pin(async move { here.listen(me, inbox).await })
    }

    fn deafen(&self, me: NodeId) -> BoxFuture<()> {
        let here = Arc::clone(&self.here);
        Box::pin(async move { here.deafen(me).await })
    }

    fn ask(&self, to: NodeId, bytes: Bytes, within: Duration) -> BoxFuture<Result<Bytes, AskError>> {
        if self.here.is_too_large(&bytes) {
            return Box::pin(async { Err(AskError::TooLarge) });
        }
        let here = Arc::clone(&self.here);
        Box::pin(async move { here.ask(to, bytes, within).await })
    }

    fn lease(&self, me: NodeId, card: Bytes, ttl: Duration) -> BoxFuture<Result<Arc<dyn Lease>, EngineDown>> {
        Box::pin(Arc::clone(&self.here.register).lease(me, card, ttl))
    }

    fn members(&self) -> watch::Receiver<Arc<Members>> {
        self.here.register.members()
    }

    fn bury(&self, node: NodeId, _was: Revision) -> BoxFuture<Result<(), BuryError>> {
        let register = Arc::clone(&self.here.register);
        Box::pin(async move { register.bury(node).await })
    }

    fn session(&self, id: SessionId, fresh: bool) -> BoxFuture<Result<Option<(Bytes, Revision)>, EngineDown>> {
        let register = Arc::clone(&self.here.register);
        Box::pin(async move { register.session(id, fresh).await })
    }

    fn claim(
        &self,
        id: SessionId,
        was: Option<Revision>,
        record: Bytes,
        ttl: Duration,
    ) -> BoxFuture<Result<Revision, ClaimError>> {
        if self.here.is_too_large(&record) {
            return Box::pin(async { Err(ClaimError::TooLarge) });
        }
        let register = Arc::clone(&self.here.register);
        Box::pin(async move { register.claim(id, was, record, ttl).await })
    }

    fn forget(&self, id: SessionId, was: Revision) -> BoxFuture<Result<(), ClaimError>> {
        let register = Arc::clone(&self.here.register);
        Box::pin(async move { register.forget(id, was).await })
    }

    fn publish(&self, topic: String, bytes: Bytes) -> BoxFuture<Result<(), EngineDown>> {
        if self.here.is_too_large(&bytes) {
            return Box::pin(async { Err(EngineDown) });
        }
        let here = Arc::clone(&self.here);
        Box::pin(async move { here.publish(topic, bytes).await })
    }

    fn follow(&self, pattern: String, follower: Arc<dyn Follower>) -> BoxFuture<Result<Following, EngineDown>> {
        let here = Arc::clone(&self.here);
        Box::pin(async move { here.follow(pattern, follower).await })
    }

    fn follow_mailboxes(&self, follower: Arc<dyn Follower>) -> BoxFuture<Result<Following, EngineDown>> {
        let here = Arc::clone(&self.here);
        Box::pin(async move { here.follow_mailboxes(follower).await })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Panics;

    impl Inbox for Panics {
        fn take(&self, _: Bytes) -> BoxFuture<Option<Bytes>> {
            Box::pin(async { panic!("an inbox with a fault") })
        }
    }

    /// A place that was taken is free again however its message ended.
    #[tokio::test]
    async fn an_inbox_that_panics_takes_no_room_for_good() {
        let mut taken = Taken::new();
        for _ in 0..3 {
            let all: Vec<_> = (0..TAKEN_MAX).map(|_| taken.take(16 << 10).expect("there is room")).collect();
            assert!(taken.take(0).is_none());
            let running = all.into_iter().map(|permits| {
                let taking = Panics.take(Bytes::new());
                tokio::spawn(async move {
                    let _permits = permits;
                    taking.await
                })
            });
            let running: Vec<_> = running.collect();
            for one in running {
                assert!(one.await.is_err());
            }
        }
        assert!(taken.take(TAKEN_BYTES_MAX + 1).is_some(), "one that is larger goes alone");
    }

    #[test]
    fn versions_are_compared_by_number() {
        for new in ["2.11.0", "2.11.0-RC.1", "2.15.2", "3.0.0", "v2.12.1"] {
            assert!(is_at_least(new, OLDEST), "{new}");
        }
        for old in ["2.9.10", "2.10.29", "1.4.1", "", "x"] {
            assert!(!is_at_least(old, OLDEST), "{old}");
        }
    }
}
