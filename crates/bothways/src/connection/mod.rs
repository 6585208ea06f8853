//! One connection, the same for both sides.
//!
//! | file | what it does |
//! |---|---|
//! | `mod.rs` | [`Connection`], the handle that all others hold |
//! | `send.rs` | pushes and oneway requests: to one connection, or encoded once for many |
//! | `call.rs` | calls to the peer, and what a dropped future leaves |
//! | `control.rs` | replies, acks, goodbyes, and frames that are passed over |
//! | `hello.rs` | the greeting, and who has been let in: Hello and Welcome, the check of tokens, heartbeats |
//! | `write.rs` | writes what waits, in the thread that added it |
//! | `writer.rs` | which thread writes, and which takes over: the rules, and the one loop |
//! | `end.rs` | how a connection ends |
//! | `unsent.rs` | oneway requests that had not left by then |
//! | `taken.rs` | how many oneway requests a server has taken of a connection that it ends |
//! | `behind.rs` | replies that stay after a session's waiting pushes |
//! | `announced.rs` | which methods a client handles |
//! | `settings.rs` | bounds and habits that all connections of one server or client share |
//! | `socket.rs` | the socket, until the connection is over |
//! | `lock.rs` | the one lock, and what waits until it is free |
//! | `outbox.rs` | the frames that wait for the socket: their order and their bounds |
//! | `outgoing.rs` | bytes that wait in all connections, and which of these may have more |
//! | `lanes.rs` | frames that wait while the socket is full, and which lane is next |
//! | `wire.rs` | bytes in their final order |
//! | `spare.rs` | wires that are empty, for the next connection that writes |
//! | `progress.rs` | how far calls and pushes are |
//! | `pace.rs` | how fast a client may send |
//! | `driver.rs` | the one task of a connection: reads, decodes, hands out, writes when the socket was full |
//! | `rest.rs` | an idle connection without that task |
//! | `readers.rs` | what comes to idle connections, read by a few tasks |
//! | `handler.rs` | what the layer above makes of what is received: the trait for servers and clients |
//! | `recycle.rs` | buffers of large frames, for the next ones |
//! | `limits.rs` | how many requests run at once, and how much they hold |
//! | `shares.rs` | who has how much of a room that is more than half taken |
//! | `dispatch.rs` | runs handlers: in line while they are ready at once, else in tasks of their own |
//! | `watch.rs` | timeouts: heartbeats, idle and write deadlines |
//! | `wheel.rs` | which connections of a server are looked at for these, and when |
//! | `in_order.rs` | tables of connections, in which those made one after another lie together |
//!
//! Writing: a thread that adds a frame to an idle outbox writes it at once, outside the lock. While the driver works
//! through what one read brought, the replies of handlers that are ready at once wait until that is done, for a
//! millisecond at most, so that many leave in one write; what handlers send by themselves is written at once. When the
//! socket is full the driver waits for it; nobody else does.

#[cfg(test)]
pub(crate) mod alone;
mod announced;
mod behind;
mod call;
mod control;
mod dispatch;
mod driver;
mod end;
mod hand_back;
mod handler;
mod hello;
pub(crate) mod in_order;
mod lanes;
mod limits;
mod lock;
mod outbox;
mod outgoing;
mod pace;
mod progress;
mod readers;
pub(crate) mod recycle;
mod rest;
pub(crate) mod send;
mod settings;
mod shares;
mod socket;
mod spare;
mod taken;
#[cfg(test)]
mod tests;
mod unsent;
mod watch;
pub(crate) mod wheel;
mod wire;
mod write;
mod writer;

use std::{
    any::Any,
    collections::HashMap,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering},
    },
};

use bothways_proto::{
    self as proto, Capabilities, EncodeError, Greeting, Limits, Message, Metadata, PREFIX_LEN, Role, Seq, keys,
};
use bytes::Bytes;
use tokio::{sync::Notify, task::AbortHandle, time::Instant};

#[cfg(test)]
pub(crate) use self::lock::LOCKS_TAKEN;
pub use self::send::Sent;
pub(crate) use self::{
    announced::{METHODS_BYTES_MAX, Methods},
    behind::HeldReply,
    call::CallTime,
    control::{SHUTTING_DOWN, TokenOver},
    dispatch::deadline,
    hand_back::NotRun,
    handler::{Answer, ConnectionHandler, ends_something, is_an_end},
    limits::{Decoded, Load},
    readers::Readers,
    settings::{Settings, UNPACKED_BYTES, UNPACKED_BYTES_OF_CONNECTION},
    watch::Watch,
};
use self::{
    call::{Threads, Waiter},
    end::Phase,
    hello::AfterWelcome,
    lock::StateLock,
    outbox::Outbox,
    pace::Pace,
    rest::Driving,
    socket::SocketSlot,
    watch::BegunFrame,
};
pub(crate) use crate::clock::after;
use crate::{
    clock::{is_outside, timeout_outside},
    error::{CallError, CloseReason},
    packing::{self, Asker, Held, NotUnpacked, Room},
    stats::Lost,
    transport::AnySocket,
};

/// The rule for a push when its queue is full.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[cfg_attr(feature = "config", derive(serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Overflow {
    /// The new push is refused with [`PushError::Full`](crate::PushError::Full); what waits stays.
    #[default]
    RefuseNewest,
    /// The oldest push that waits is dropped, and counted.
    DropOldest,
    /// The connection ends: its client is too slow to be of use.
    Disconnect,
}

/// Numbers a connection within this process, in the order in which they were made.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ConnectionId(u64);

impl ConnectionId {
    pub(crate) fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl std::fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "c{}", self.0)
    }
}

impl std::str::FromStr for ConnectionId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.strip_prefix('c').unwrap_or(text).parse().map(Self)
    }
}

/// A handle on one connection: a server's to one of its clients, or a client's to its server.
///
/// Cheap to clone, and usable from any thread for as long as it is kept. Once the connection is over, sending returns
/// [`PushError::Closed`](crate::PushError::Closed).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use bothways::{Client, ClientOptions, Context, Metadata, Server, service};
///
/// struct Chat;
///
/// #[service]
/// impl Chat {
///     async fn join(&self, cx: &mut Context) -> Result<(), String> {
///         let caller = cx.connection().clone(); // Keep it, and send whenever you like.
///         caller.send_message("Chat", "Say", &Metadata::new(), "welcome").map_err(|error| error.to_string())?;
///         Ok(())
///     }
/// }
///
/// let server = Server::builder().service(Chat).build();
/// let listening = server.listen("memu@connection").await?;
/// let (client, mut messages) = Client::bidirectional(listening.address(), ClientOptions::new()).await?;
/// client.call::<()>("Chat", "Join", &()).await?;
/// let message = messages.next().await.ok_or("closed")?;
/// assert_eq!(message.payload()?, "welcome");
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    socket: SocketSlot,
    settings: Arc<Settings>,
    handler: Arc<dyn ConnectionHandler>,
    /// Counts reads, so that the watch can tell silence without a clock on the hot path.
    reads: AtomicU16,
    /// What the driver knows of its reading, and alone changes: [`BEHIND`], [`PEER_IS_GONE`]. And [`TO_CLIENT`], which
    /// stays as it is: a byte of its own would be one too many.
    reading: AtomicU8,
    calls_running: AtomicU32,
    /// KiB of the requests that run in tasks of their own, each rounded up.
    request_kib: AtomicU32,
    /// Its auth hook has let it in once, or there is none. Not a phase of the greeting: a plain client is let in by a
    /// request, and a Welcome may come before any token. An atomic, for each request asks it without the lock.
    is_trusted: AtomicBool,
    /// The token of its first requests is being checked: until it is accepted they are handled one by one. An atomic, for
    /// each read and each request of a client asks it, and a task that begins a check does not hold the lock.
    is_checking: AtomicBool,
    /// The phase is [`Phase::Answering`]: the last handler wakes the driver.
    answering: AtomicBool,
    /// The server is about to close it, and takes no calls of it any more.
    calls_refused: AtomicBool,
    /// The layer above keeps something for this connection, or did. An atomic, for a fan-out to many connections asks it
    /// of each, without their locks.
    adopted: AtomicBool,
    /// Woken when room appears in the outbox, when a Hello is answered, and when the connection ends.
    changed: Notify,
    state: StateLock,
}

/// What was read last is not all handled, or the socket was not asked for more since: that nothing was read says nothing
/// of the peer.
const BEHIND: u8 = 1;
/// The client ended its side before its first frame was looked at.
const PEER_IS_GONE: u8 = 2;
/// The peer is a client.
const TO_CLIENT: u8 = 4;

impl Shared {
    fn reads_as(&self, flag: u8) -> bool {
        self.reading.load(Ordering::Relaxed) & flag != 0
    }

    /// Without a locked instruction: the driver alone writes.
    fn note_reading(&self, flag: u8, is_set: bool) {
        let flags = self.reading.load(Ordering::Relaxed);
        self.reading.store(if is_set { flags | flag } else { flags & !flag }, Ordering::Relaxed);
    }
}

/// Everything under the one lock. Held for table operations, never across an await or a write.
///
/// What only some connections need is behind a pointer, and made when it is needed: there may be a million
/// that are idle.
struct State {
    proto: proto::Connection<Waiter>,
    outbox: Outbox,
    /// Handlers in tasks of their own, by the number of their call; filled only for peers that may cancel.
    /// `None` for the moment in which the task is being made.
    running: Option<Box<Running>>,
    rare: Option<Box<Rare>>,
    phase: Phase,
    driving: Driving,
    /// The socket woke the connection, rather than a task.
    woken_by_socket: bool,
    watch: Watch,
    /// When the watch looks at it.
    place: wheel::Place,
    /// Threads on which a task, or the driver, will write once the callers have had their turn.
    flush_comes: Threads,
    /// Callers who were answered and have had no turn since: each may call again, and the last of them writes for all.
    /// No more than 255 are counted, for a byte is what there is room for; of more, some write too early.
    callers_due: u8,
    /// The driver does not read until something is written.
    paused: bool,
    /// The layer above wants to know when everything is written.
    writable_wanted: bool,
}

type Running = HashMap<Seq, Option<AbortHandle>>;

/// What few connections ever have.
#[derive(Default)]
struct Rare {
    /// Requests that want no reply and were not run.
    oneways_refused: u64,
    late_replies: u64,
    messages_unheard: u64,
    messages_repeated: u64,
    /// The Hello that is being checked is refused for now: its client may come again after so long.
    turned_away: Option<std::time::Duration>,
    /// Where else the server has said that its client may go.
    others: Option<Box<str>>,
    /// What waits for the Welcome that is on its way: a Goodbye, and the end.
    after_welcome: AfterWelcome,
    /// Calls that were given up while the Hello of this side is not answered: their Cancels go after the answer.
    given_up: Vec<Seq>,
    /// The last heartbeat.
    ping: Option<Seq>,
    /// How much of its rates the peer has used up.
    pace: Option<Box<Pace>>,
    /// The frame that has begun and is not all there.
    frame: Option<BegunFrame>,
    /// Most bytes of a frame's body that the peer takes, if that is less than this side sends.
    peer_body_max: Option<usize>,
    /// What the client has said to handle; `None`: nothing, and it is asked.
    methods: Option<Methods>,
    /// A request of a client that was let in showed a token that was refused.
    token_refused: Option<u64>,
    /// Oneway requests that a server has taken, or handed back.
    taken: taken::Taken,
    /// What its frame that has begun takes of its owner's share of a room that is more than half taken.
    partial_share: Option<shares::Share>,
}

impl State {
    /// True if what its session is owed may go to the client. Not while a Hello is being checked: until its answer
    /// nobody knows what that is, and by which session. And not to a plain client before its first request: Go's
    /// client reads before its application listens, and drops what comes too early. And not once a token of it was refused:
    /// what its session is owed waits for its next connection.
    fn takes_pushes(&self) -> bool {
        matches!(self.phase, Phase::Open) && self.proto.greeting().takes_pushes() && !self.has_refused_token()
    }

    fn has_refused_token(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.token_refused.is_some())
    }

    /// True if its peer is a plain client that is called by pushes, and answers by calls.
    fn is_called_by_pushes(&self) -> bool {
        self.proto.greeting() == Greeting::Enabled
    }

    /// Notes how large a frame's body may be, if the peer has said so.
    fn note_limit_of_peer(&mut self, said: &Metadata, own: &Limits) {
        let max = said.get(keys::BODY_BYTES_MAX).and_then(|max| max.parse().ok());
        if let Some(max) = max.filter(|max: &usize| *max < own.body_bytes()) {
            self.rare().peer_body_max = Some(max);
        }
    }

    /// `Err`: the peer has said that it takes no frame with such a body.
    fn check_limit_of_peer(&self, len: usize) -> Result<(), EncodeError> {
        match self.rare.as_ref().and_then(|rare| rare.peer_body_max) {
            Some(max) if max < len => Err(EncodeError::TooLarge { len, max }),
            _ => Ok(()),
        }
    }

    fn has_limit_of_peer(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.peer_body_max.is_some())
    }

    /// As [`Self::check_limit_of_peer`], of a frame that is encoded already.
    fn check_frame(&self, frame: &Bytes) -> Result<(), EncodeError> {
        self.check_limit_of_peer(frame.len().saturating_sub(PREFIX_LEN))
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    fn methods(&self) -> Option<&Methods> {
        self.rare.as_ref()?.methods.as_ref()
    }

    fn set_methods(&mut self, methods: Option<Methods>) {
        if methods.is_some() || self.rare.is_some() {
            self.rare().methods = methods;
        }
    }

    fn take_running(&mut self, seq: Seq) -> Option<Option<AbortHandle>> {
        let running = self.running.as_mut()?;
        let taken = running.remove(&seq);
        if running.is_empty() {
            self.running = None;
        }
        taken
    }
}

/// Counters of one connection.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct ConnectionStats {
    /// Calls of ours that wait for a reply.
    pub calls_pending: usize,
    /// Calls of the peer whose handlers run.
    pub calls_running: usize,
    /// Pushes that wait because the socket is full.
    pub pushes_waiting: usize,
    /// Their bytes.
    pub push_bytes_waiting: usize,
    /// Pushes given to this connection.
    pub pushes_sent: u64,
    /// Pushes that were queued and never left: by [`Overflow::DropOldest`], or because the connection ended.
    pub pushes_dropped: u64,
    /// Oneway requests that a server did not run: it was overloaded, they were beyond its limits, their token was
    /// refused, there is no handler for them, their deadline was over, or the server was shutting down. What a client
    /// drops of what its server sends is in [`ServerMessages::dropped`](crate::ServerMessages::dropped).
    pub oneways_refused: u64,
    /// Replies that came after their calls were given up.
    pub late_replies: u64,
    /// Messages of a server that its client dropped because it does not listen: it was made by
    /// [`Client::connect`](crate::Client::connect), or its application has dropped
    /// [`ServerMessages`](crate::ServerMessages).
    pub messages_unheard: u64,
    /// Messages of a server that its client dropped because it has them: their offset, or their idempotency key, came
    /// before. And those that a connection still brought when the client had the next one, on which they come again if
    /// they are new.
    pub messages_repeated: u64,
    /// Bytes that the socket took.
    pub written_bytes: u64,
}

impl Connection {
    /// Starts the task of a connection over this socket; `before` sees it first. With `hello`, these
    /// pairs go with a Hello as the first frame. Must be called within a tokio runtime.
    pub(crate) fn start(
        role: Role,
        socket: AnySocket,
        settings: Arc<Settings>,
        handler: Arc<dyn ConnectionHandler>,
        hello: Option<Metadata>,
        before: impl FnOnce(&Self),
    ) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = ConnectionId(NEXT.fetch_add(1, Ordering::Relaxed));
        let wheel = Arc::clone(&settings.wheel);

        let state = State {
            proto: proto::Connection::new(role, settings.limits.calls_pending()),
            outbox: Outbox::new(role),
            running: None,
            rare: None,
            phase: Phase::Open,
            driving: Driving::Resting,
            woken_by_socket: false,
            watch: Watch::new(wheel.epoch(), Instant::now()),
            place: wheel::Place::default(),
            flush_comes: 0,
            callers_due: 0,
            paused: false,
            writable_wanted: false,
        };

        let is_trusted = !handler.asks_for_token();
        let connection = Self {
            shared: Arc::new(Shared {
                socket: SocketSlot::new(socket),
                settings,
                handler,
                reads: AtomicU16::new(0),
                reading: AtomicU8::new(if role == Role::Server { TO_CLIENT } else { 0 }),
                calls_running: AtomicU32::new(0),
                request_kib: AtomicU32::new(0),
                is_trusted: is_trusted.into(),
                is_checking: false.into(),
                answering: AtomicBool::new(false),
                calls_refused: AtomicBool::new(false),
                adopted: AtomicBool::new(false),
                changed: Notify::new(),
                state: StateLock::new(id, wheel, state),
            }),
        };

        if let Some(metadata) = hello {
            connection.say_hello(metadata);
        }

        before(&connection);
        connection.begin();
        // It is there, and may be looked at.
        drop(connection.shared.state.lock());
        connection
    }

    /// Its owner, if it is of this type.
    pub(crate) fn owner<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.shared.handler.owner()?.downcast().ok()
    }

    /// Its server, if that is of this type.
    pub(crate) fn server<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.shared.handler.server()?.downcast().ok()
    }

    /// True if its owner keeps something for it, or did.
    pub(crate) fn is_adopted(&self) -> bool {
        self.shared.adopted.load(Ordering::Acquire)
    }

    /// Its owner keeps something for it from here on.
    pub(crate) fn adopt(&self) {
        self.shared.adopted.store(true, Ordering::Release);
    }

    /// When it began.
    pub(crate) fn began(&self) -> Instant {
        let lock = &self.shared.state;
        lock.lock().watch.began(lock.wheel().epoch())
    }

    /// The id of this connection within this process.
    pub fn id(&self) -> ConnectionId {
        self.shared.state.id()
    }

    /// The peer's certificate and its chain, each in DER, the peer's own first. `None` without TLS, if the peer showed
    /// none, and once the connection is over. A server asks for one with
    /// [`TlsServer::with_required_client_certificates`](crate::transport::tls::TlsServer::with_required_client_certificates),
    /// and has checked it before the first frame is read.
    pub fn peer_certificates(&self) -> Option<Vec<Vec<u8>>> {
        self.shared.socket.peer_certificates()
    }

    /// The address of the peer in rpcx's form, such as `tcp@127.0.0.1:50312`.
    pub fn peer_address(&self) -> String {
        self.shared.socket.peer()
    }

    /// The bounds in force.
    pub fn limits(&self) -> &Limits {
        &self.shared.settings.limits
    }

    /// True once the peer has said that it accepts calls: a Bothways client, or a plain rpcx client that has called
    /// `_bothways`/`Enable`.
    pub fn takes_calls(&self) -> bool {
        let state = self.shared.state.lock();
        state.is_called_by_pushes() || state.proto.peer_can(Capabilities::CALLS)
    }

    /// A plain client asks for a session, and says what it handles: calls to it wait from here on until it is
    /// welcomed. False: it was welcomed already, by whatever means.
    pub(crate) fn on_enable(&self, methods: Option<&str>) -> bool {
        let methods = self.shared.settings.announced.take(methods);
        let mut state = self.shared.state.lock();
        let is_new = state.proto.on_enable();
        if is_new {
            state.set_methods(methods);
        }
        is_new
    }

    /// It is not welcomed after all, and may ask again.
    pub(crate) fn on_enable_refused(&self) {
        self.shared.state.lock().proto.on_enable_refused();
        self.shared.changed.notify_waiters();
    }

    /// What the client has said to handle; `None` if it has said nothing, or too much.
    pub(crate) fn methods(&self) -> Option<Methods> {
        self.shared.state.lock().methods().cloned()
    }

    /// A plain client answers the call of this number. False: nobody waits for it any more.
    pub(crate) fn answer_call(&self, number: u64, answer: Result<Message, CallError>) -> bool {
        let mut state = self.shared.state.lock();
        if !state.is_called_by_pushes() {
            return false;
        }
        let Some(Waiter::Call { reply, .. }) = state.proto.forget(Seq::of_call_to_client(number)) else {
            state.rare().late_replies += 1;
            self.shared.settings.count_drops(Lost::LateReply, 1);
            return false;
        };
        // The caller is woken without the lock: its waker may look at this connection.
        drop(state);
        // Nobody listens if the call's future was dropped this moment.
        let _ = reply.send(answer);
        true
    }

    /// True if the peer agreed on anything beyond rpcx.
    pub fn is_negotiated(&self) -> bool {
        self.shared.state.lock().proto.is_negotiated()
    }

    /// True at a client if what its server says of topics is the server's framework's: it negotiated, or has answered a
    /// subscription.
    pub(crate) fn brings_topics(&self) -> bool {
        !self.goes_to_client() && (self.is_negotiated() || self.shared.handler.server_keeps_topics())
    }

    /// True if both ends have agreed on these.
    pub(crate) fn peer_can(&self, capabilities: Capabilities) -> bool {
        self.shared.state.lock().proto.peer_can(capabilities)
    }

    /// True if the client has said that its pushes go to the handlers that it names, and to nobody else.
    pub(crate) fn pushes_go_to_handlers(&self) -> bool {
        self.peer_can(Capabilities::HANDLERS)
    }

    /// True while calls and pushes are taken: the connection is not over, nor about to be.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.shared.state.lock().phase, Phase::Open)
    }

    /// True from the moment the connection is over.
    pub fn is_closed(&self) -> bool {
        matches!(self.shared.state.lock().phase, Phase::Closed(_))
    }

    /// True if the connection is over, or about to be, or its client has ended its side.
    pub(crate) fn is_over(&self) -> bool {
        let state = self.shared.state.lock();
        self.shared.reads_as(PEER_IS_GONE) || !matches!(state.phase, Phase::Open)
    }

    /// Why the connection is over; `None` while it is not.
    pub fn close_reason(&self) -> Option<CloseReason> {
        match &self.shared.state.lock().phase {
            Phase::Closed(reason) => Some(CloseReason::clone(reason)),
            _ => None,
        }
    }

    /// Waits until the connection is over. Dropping the future leaves nothing behind.
    pub async fn closed(&self) -> CloseReason {
        loop {
            let changed = self.shared.changed.notified();
            if let Some(reason) = self.close_reason() {
                return reason;
            }
            changed.await;
        }
    }

    /// Ends the connection. Queued frames are still written; pending calls fail, and new ones are refused.
    pub fn close(&self) {
        self.close_after_flush(CloseReason::Local);
    }

    /// Counters of this connection.
    pub fn stats(&self) -> ConnectionStats {
        let state = self.shared.state.lock();
        let (pushes_waiting, push_bytes_waiting) = state.outbox.pushes_waiting();
        let rare = state.rare.as_ref();
        let count = |of: fn(&Rare) -> u64| rare.map_or(0, |rare| of(rare));
        ConnectionStats {
            calls_pending: state.proto.calls().len(),
            calls_running: self.shared.calls_running.load(Ordering::Relaxed) as usize,
            pushes_waiting,
            push_bytes_waiting,
            pushes_sent: state.outbox.pushes_added(),
            pushes_dropped: state.outbox.pushes_dropped(),
            oneways_refused: count(|rare| rare.oneways_refused),
            late_replies: count(|rare| rare.late_replies),
            messages_unheard: count(|rare| rare.messages_unheard),
            messages_repeated: count(|rare| rare.messages_repeated),
            written_bytes: state.outbox.written_bytes(),
        }
    }

    /// The payload of a request that came packed, and the room that it takes.
    pub(crate) async fn unpack_request(&self, request: &Message) -> Result<(Bytes, Held), NotUnpacked> {
        self.unpack(request, &self.shared.settings.room).await
    }

    /// The same for a message that finds room there.
    async fn unpack(&self, message: &Message, room: &Arc<Room>) -> Result<(Bytes, Held), NotUnpacked> {
        let clock = || self.shared.handler.clock().cloned();
        let owner = || self.room_owner();
        let asker = Asker { id: self.id().get(), is_over: &|| self.is_closed(), owner: &owner };
        packing::unpack(message, self.limits(), room, asker, clock).await
    }

    fn room_owner(&self) -> Arc<str> {
        self.shared.handler.shares_as(self).unwrap_or_else(|| self.peer_address().into())
    }

    /// It is over: what is held of rooms for it counts as what its owner has left behind.
    fn leave_rooms(&self) {
        for room in [&self.shared.settings.room, &self.shared.settings.reply_room] {
            room.leave(self.id().get(), || self.room_owner());
        }
    }

    /// A request that wants no reply was dropped.
    pub(crate) fn count_refused_oneway(&self) {
        self.shared.state.lock().rare().oneways_refused += 1;
        self.shared.settings.count_drops(Lost::OnewayRefused, 1);
    }

    /// A message of the server was dropped, for nobody listens.
    pub(crate) fn count_unheard(&self) {
        self.shared.state.lock().rare().messages_unheard += 1;
    }

    /// A message of the server was dropped, for its client has it.
    pub(crate) fn count_repeated(&self) {
        self.shared.state.lock().rare().messages_repeated += 1;
    }

    /// True if a request of a client that was let in showed a token that was refused.
    pub(crate) fn has_refused_token(&self) -> bool {
        self.shared.state.lock().has_refused_token()
    }

    /// From here on the layer above refuses the peer's calls.
    pub(crate) fn take_no_calls(&self) {
        self.shared.calls_refused.store(true, Ordering::Release);
    }

    pub(crate) fn takes_no_calls(&self) -> bool {
        self.shared.calls_refused.load(Ordering::Acquire)
    }

    /// True while a call of either side runs, or the peer is being let in.
    pub(crate) fn is_busy(&self) -> bool {
        let state = self.shared.state.lock();
        let waits = state.proto.greeting().is_pending() || !state.proto.calls().is_empty();
        0 < self.shared.calls_running.load(Ordering::Acquire) || (waits && state.can_answer())
    }

    /// Calls of this side that may still be answered.
    pub(crate) fn calls_to_peer(&self) -> usize {
        let state = self.shared.state.lock();
        if !state.can_answer() {
            return 0;
        }
        state.proto.calls().waiters().filter(|waiter| waiter.is_call()).count()
    }

    /// True while bytes for the peer wait, or a call of the peer runs.
    pub(crate) fn is_owed(&self) -> bool {
        let state = self.shared.state.lock();
        let is_written = state.outbox.is_empty() && state.outbox.writer == writer::Writer::Idle;
        0 < self.shared.calls_running.load(Ordering::Acquire) || !is_written
    }

    /// True while the peer waits to be let in: its Hello is being checked, or it has asked for a session.
    pub(crate) fn is_being_let_in(&self) -> bool {
        let state = self.shared.state.lock();
        matches!(state.phase, Phase::Open) && state.proto.greeting().is_pending()
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("id", &self.id()).field("peer", &self.peer_address()).finish()
    }
}

impl PartialEq for Connection {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl Eq for Connection {}

impl Connection {
    /// Waits as long as the call has time.
    async fn within<T>(&self, time: Option<CallTime>, future: impl Future<Output = T>) -> Result<T, CallError> {
        let Some(CallTime { left, end }) = time else { return Ok(future.await) };
        match is_outside() {
            false => tokio::time::timeout_at(end, future).await.map_err(|_| CallError::TimedOut(left)),
            true => {
                let clock = self.shared.handler.clock().cloned();
                Box::pin(timeout_outside(clock, end, future)).await.map_err(|_| CallError::TimedOut(left))
            }
        }
    }
}
