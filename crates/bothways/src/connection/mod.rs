//! One connection, the same for both sides: it knows neither client nor server.
//!
//! | file | what it does |
//! |---|---|
//! | `mod.rs` | [`Connection`], the handle that everybody else holds |
//! | `socket.rs` | the socket, until the connection is over |
//! | `outbox.rs` | what waits for the socket, in which order, and how much of it may |
//! | `driver.rs` | the one task of a connection: reads, decodes, hands out, writes when the socket was full |
//! | `dispatch.rs` | runs handlers: in line while they are ready at once, else in tasks of their own |
//! | `watch.rs` | what time does to a connection: heartbeats, idle and write deadlines |
//!
//! Who writes: whoever adds a frame to an idle outbox writes it at once, outside the lock. While the
//! driver works through what one read brought, writing is put off until it is done, so that many
//! replies leave in one write. When the socket is full the driver waits for it; nobody else does.

mod dispatch;
mod driver;
mod outbox;
mod socket;
#[cfg(test)]
mod tests;
mod watch;

use std::{
    any::Any,
    collections::HashMap,
    future::Future,
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::Waker,
    time::Duration,
};

use bothways_proto::{
    self as proto, Capabilities, CompressType, FrameParts, Header, Limits, Message, MessageKind, Metadata, Peer, Role,
    Seq, SerializeType, Status, keys,
};
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::{Notify, oneshot},
    task::AbortHandle,
    time::Instant,
};

pub(crate) use self::{
    dispatch::{Answer, Inlet, Load, deadline},
    watch::Watch,
};
use self::{
    driver::Driver,
    outbox::{Lane, Outbox, OutboxBounds, Refused, Wire, Writing},
    socket::SocketSlot,
};
use crate::{
    caller::{Caller, RawCall, RawReply},
    error::{CallError, CloseReason, ErrorCode, PushError},
    reply::Reply,
    transport::AnySocket,
};

/// Payloads of more than this many bytes are worth compressing. Source: Go `share`, 1024.
const COMPRESS_ABOVE: usize = 1024;

/// What happens to a push when the queue for it is full.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum Overflow {
    /// The new push is refused with [`PushError::Full`]; what waits stays.
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

/// What became of a message that was sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Sent {
    /// The kernel has all of it. That is not delivery.
    Written,
    /// It waits in the connection's queue and leaves as soon as the socket takes it.
    Queued,
}

/// Bounds and habits that all connections of one server or client share.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) limits: Limits,
    pub(crate) capabilities: Capabilities,
    pub(crate) push_frames_max: usize,
    pub(crate) push_bytes_max: usize,
    pub(crate) overflow: Overflow,
    /// A server stops reading while replies of more than this wait for a client that does not read.
    pub(crate) reply_bytes_max: usize,
    /// Requests of the peer that may run at once.
    pub(crate) calls_running_max: usize,
    /// Requests that run, and may run, in all connections with these settings.
    pub(crate) load: Arc<Load>,
    /// Drop running handlers when their connection ends.
    pub(crate) cancel_on_disconnect: bool,
    /// Pack payloads of calls above [`COMPRESS_ABOVE`].
    pub(crate) compress: CompressType,
    /// Moments of the connection's life; see [`Watch`].
    pub(crate) watch: watch::Deadlines,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            capabilities: Capabilities::ALL,
            push_frames_max: 1024,
            push_bytes_max: 1 << 20,
            overflow: Overflow::default(),
            reply_bytes_max: 4 << 20,
            calls_running_max: 16_384,
            load: Arc::new(Load::new(131_072)),
            cancel_on_disconnect: false,
            compress: CompressType::NONE,
            watch: watch::Deadlines::default(),
        }
    }
}

impl Settings {
    fn bounds(&self) -> OutboxBounds {
        OutboxBounds { push_frames: self.push_frames_max, push_bytes: self.push_bytes_max, overflow: self.overflow }
    }
}

/// A handle on one connection: a server's to one of its clients, or a client's to its server.
///
/// Cheap to clone, and usable from any thread for as long as it is kept: once the connection is
/// over, sending answers [`PushError::Closed`].
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    id: ConnectionId,
    socket: SocketSlot,
    settings: Arc<Settings>,
    inlet: Arc<dyn Inlet>,
    /// Counts reads, so that the watch can tell silence without a clock on the hot path.
    reads: AtomicU64,
    /// The phase is [`Phase::Answering`]: the last handler wakes the driver.
    answering: AtomicBool,
    calls_running: AtomicUsize,
    /// What the layer above keeps with its connections, for those who hold only a connection.
    owner: OnceLock<Arc<dyn Any + Send + Sync>>,
    /// Woken when room appears in the outbox, when a Hello is answered, and when the connection ends.
    changed: Notify,
    state: Mutex<State>,
}

/// Everything under the one lock. Held for table operations, never across an await or a write.
struct State {
    proto: proto::Connection<Waiter>,
    outbox: Outbox,
    /// Handlers in tasks of their own, by the number of their call; filled only for peers that may cancel.
    /// `None` for the moment in which the task is being made.
    running: HashMap<Seq, Option<AbortHandle>>,
    /// Requests that want no reply, dropped because too much ran already.
    oneways_refused: u64,
    /// A Hello came and its token is being checked, or a plain client is about to be welcomed.
    hello_pending: bool,
    /// A plain client has asked to be called by pushes.
    called_by_pushes: bool,
    phase: Phase,
    driver: Option<Waker>,
    watch: Watch,
    late_replies: u64,
    /// A caller will write once the others have had their turn.
    flush_comes: bool,
    /// The last heartbeat.
    ping: Option<Seq>,
    /// The driver does not read until something is written.
    paused: bool,
    /// The layer above wants to know when everything is written.
    room_wanted: bool,
}

/// How far the connection is from its end.
enum Phase {
    Open,
    /// The peer is about to end the connection: nothing new is sent, but replies still come.
    Draining(CloseReason),
    /// The peer sends nothing more: what it asked for is answered, then the connection ends.
    Answering(CloseReason),
    /// Nothing new is taken; what waits is written, then the connection ends.
    Closing(CloseReason),
    Closed(CloseReason),
}

/// Whoever waits for a reply.
enum Waiter {
    Call { reply: oneshot::Sender<Result<Message, CallError>>, number: u64 },
    Hello,
    Ping,
}

/// Counters of one connection.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct ConnectionStats {
    /// Calls of ours that wait for a reply.
    pub calls_pending: usize,
    /// Calls of the peer whose handlers run.
    pub calls_running: usize,
    /// Pushes that wait behind a full socket.
    pub pushes_waiting: usize,
    /// Their bytes.
    pub push_bytes_waiting: usize,
    /// Pushes given to this connection.
    pub pushes_sent: u64,
    /// Pushes that were queued and never left: by [`Overflow::DropOldest`], or because the connection ended.
    pub pushes_dropped: u64,
    /// Requests without a reply that were dropped because too much ran already.
    pub oneways_refused: u64,
    /// Replies that came when nobody waited for them any more.
    pub late_replies: u64,
    /// Bytes that the socket took.
    pub written_bytes: u64,
}

/// A push, encoded once for any number of connections. A clone is a counter.
#[derive(Clone, Debug)]
pub struct PushFrame(Bytes);

impl PushFrame {
    /// Encodes a push without a codec, as Go's `SendMessage` does.
    ///
    /// # Errors
    /// [`PushError::TooLarge`] beyond `limits`.
    pub fn new(
        service_path: &str,
        service_method: &str,
        metadata: &Metadata,
        payload: &[u8],
        limits: &Limits,
    ) -> Result<Self, PushError> {
        let header = Header::oneway(Seq::of_push(0), SerializeType::RAW);
        Self::with_header(header, service_path, service_method, metadata, payload, limits)
    }

    /// Encodes a push with this header.
    pub(crate) fn with_header(
        header: Header,
        service_path: &str,
        service_method: &str,
        metadata: &Metadata,
        payload: &[u8],
        limits: &Limits,
    ) -> Result<Self, PushError> {
        Ok(Self(proto::frame(header, service_path, service_method, metadata, payload, limits)?))
    }

    /// The frame as it travels.
    pub(crate) fn bytes(&self) -> Bytes {
        self.0.clone()
    }
}

/// What became of a push to many connections.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct FanOut {
    /// Connections that took it.
    pub queued: usize,
    /// Connections whose queue was full.
    pub full: usize,
    /// Connections that are over.
    pub closed: usize,
}

impl Connection {
    /// Starts the task of a connection over this socket; `before` sees it first. With `hello`, these
    /// pairs go with a Hello as the first frame. Must be called within a tokio runtime.
    pub(crate) fn start(
        role: Role,
        socket: AnySocket,
        settings: Arc<Settings>,
        inlet: Arc<dyn Inlet>,
        hello: Option<Metadata>,
        before: impl FnOnce(&Self),
    ) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let state = State {
            proto: proto::Connection::new(role, settings.limits.calls_pending()),
            outbox: Outbox::new(),
            running: HashMap::new(),
            oneways_refused: 0,
            hello_pending: false,
            called_by_pushes: false,
            phase: Phase::Open,
            driver: None,
            watch: Watch::new(&settings.watch, Instant::now()),
            late_replies: 0,
            flush_comes: false,
            ping: None,
            paused: false,
            room_wanted: false,
        };
        let connection = Self {
            shared: Arc::new(Shared {
                id: ConnectionId(NEXT.fetch_add(1, Ordering::Relaxed)),
                socket: SocketSlot::new(socket),
                settings,
                inlet,
                reads: AtomicU64::new(0),
                answering: AtomicBool::new(false),
                calls_running: AtomicUsize::new(0),
                owner: OnceLock::new(),
                changed: Notify::new(),
                state: Mutex::new(state),
            }),
        };
        if let Some(metadata) = hello {
            connection.say_hello(metadata);
        }
        before(&connection);
        tokio::spawn(Driver::new(connection.clone()));
        connection
    }

    /// Gives the connection to its owner, once.
    pub(crate) fn set_owner(&self, owner: Arc<dyn Any + Send + Sync>) {
        // A second owner would be a mistake of ours; the first one stays.
        let _ = self.shared.owner.set(owner);
    }

    /// Its owner, if it is of this type.
    pub(crate) fn owner<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        Arc::clone(self.shared.owner.get()?).downcast().ok()
    }

    /// Tells the server how far this client is with what it was sent.
    pub(crate) fn acknowledge(&self, received: u64, handled: u64) {
        self.control_request(keys::ACK, &Metadata::new().with(keys::ACK_OFFSETS, format!("{received},{handled}")));
        self.flush();
    }

    /// The number of this connection in this process.
    pub fn id(&self) -> ConnectionId {
        self.shared.id
    }

    /// The other end in rpcx's form, such as `tcp@127.0.0.1:50312`.
    pub fn peer_address(&self) -> String {
        self.shared.socket.peer().to_owned()
    }

    /// The bounds in force.
    pub fn limits(&self) -> &Limits {
        &self.shared.settings.limits
    }

    /// True once the peer has said that it takes calls: a Bothways client, or a plain rpcx one that has asked
    /// for it by `_bothways`/`Enable`.
    pub fn takes_calls(&self) -> bool {
        let state = self.shared.state.lock();
        state.called_by_pushes || state.proto.peer_can(Capabilities::CALLS)
    }

    /// A plain client asks for a session: calls to it wait from here on until it is welcomed. False: it was
    /// welcomed already, by whatever means.
    pub(crate) fn begin_welcome(&self) -> bool {
        let mut state = self.shared.state.lock();
        let is_new = !state.hello_pending && !state.called_by_pushes && state.proto.peer() == Peer::Plain;
        state.hello_pending |= is_new;
        is_new
    }

    /// A plain client answers the call of this number. False: nobody waits for it any more.
    pub(crate) fn answer_call(&self, number: u64, answer: Result<Message, CallError>) -> bool {
        let mut state = self.shared.state.lock();
        if !state.called_by_pushes {
            return false;
        }
        let Some(Waiter::Call { reply, .. }) = state.proto.forget(Seq::of_call_to_client(number)) else {
            state.late_replies += 1;
            return false;
        };
        drop(state);
        // Nobody listens if the call's future was dropped this moment.
        let _ = reply.send(answer);
        true
    }

    /// True if the peer agreed on anything beyond rpcx.
    pub fn is_negotiated(&self) -> bool {
        matches!(self.shared.state.lock().proto.peer(), Peer::Negotiated(_))
    }

    /// True while calls and pushes are taken: the connection is not over, nor about to be.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.shared.state.lock().phase, Phase::Open)
    }

    /// True from the moment the connection is over.
    pub fn is_closed(&self) -> bool {
        matches!(self.shared.state.lock().phase, Phase::Closed(_))
    }

    /// Why the connection is over; `None` while it is not.
    pub fn close_reason(&self) -> Option<CloseReason> {
        match &self.shared.state.lock().phase {
            Phase::Closed(reason) => Some(reason.clone()),
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

    /// Ends the connection: what is queued is still written, calls under way fail, new ones are refused.
    pub fn close(&self) {
        self.close_after_flush(CloseReason::Local);
    }

    /// Ends the connection now; what is queued is dropped, and counted.
    pub(crate) fn cut(&self) {
        self.close_now(CloseReason::Local);
    }

    /// Ends the connection now because its client acknowledged what it was never sent.
    pub(crate) fn end_as_misbehaved(&self) {
        self.close_now(CloseReason::Misbehaved(proto::PeerMisbehaved::FalseAck));
    }

    /// Ends the connection now because what it brings is not taken fast enough.
    pub(crate) fn end_as_slow(&self, why: &'static str) {
        self.close_now(CloseReason::SlowPeer(why));
    }

    /// Counters of this connection.
    pub fn stats(&self) -> ConnectionStats {
        let state = self.shared.state.lock();
        let (pushes_waiting, push_bytes_waiting) = state.outbox.pushes_waiting();
        ConnectionStats {
            calls_pending: state.proto.calls().len(),
            calls_running: self.shared.calls_running.load(Ordering::Relaxed),
            pushes_waiting,
            push_bytes_waiting,
            pushes_sent: state.outbox.pushes_added(),
            pushes_dropped: state.outbox.pushes_dropped(),
            oneways_refused: state.oneways_refused,
            late_replies: state.late_replies,
            written_bytes: state.outbox.written_bytes(),
        }
    }

    /// Sends one message that wants no reply. Never waits: a peer that does not read hurts only itself.
    ///
    /// # Errors
    /// - [`PushError::Full`]: the queue of this connection is full, and its rule is to refuse.
    /// - [`PushError::Closed`]: the connection is over.
    /// - [`PushError::TooLarge`]: the message is beyond `body_bytes_max`.
    ///
    /// In each case nothing was queued.
    ///
    /// Source: Go rpcx `server/server_response.go`, `Server.SendMessage` (a oneway request, raw codec).
    pub fn send_message(
        &self,
        service_path: &str,
        service_method: &str,
        metadata: &Metadata,
        payload: impl Into<Bytes>,
    ) -> Result<Sent, PushError> {
        self.push(service_path, service_method, SerializeType::RAW, metadata, &payload.into())
    }

    /// Like [`Self::send_message`], but waits for room in the queue, up to `wait`.
    ///
    /// Dropping the future before it is done sends nothing.
    ///
    /// # Errors
    /// As [`Self::send_message`]; [`PushError::Full`] after `wait`.
    pub async fn send_message_within(
        &self,
        wait: Duration,
        service_path: &str,
        service_method: &str,
        metadata: &Metadata,
        payload: impl Into<Bytes>,
    ) -> Result<Sent, PushError> {
        let payload = payload.into();
        self.with_room(wait, || self.push(service_path, service_method, SerializeType::RAW, metadata, &payload)).await
    }

    /// Queues a push that was encoded before, and leaves the writing to the next
    /// [`flush`](Self::flush), to the connection's own next write, or to [`fan_out`].
    ///
    /// # Errors
    /// As [`Self::send_message`].
    pub fn queue(&self, frame: &PushFrame) -> Result<(), PushError> {
        let mut state = self.shared.state.lock();
        state.check_open()?;
        let added = state.outbox.add_frame(Lane::Push, &frame.0, &self.shared.settings.bounds());
        self.check_added(&mut state, added)?;
        self.write_if_much(state);
        Ok(())
    }

    /// True if a push that is added now goes straight to the socket's next write. Not while a Hello is being
    /// checked: until its answer nobody knows what the client is owed, and by which session.
    pub(crate) fn has_room(&self) -> bool {
        let state = self.shared.state.lock();
        matches!(state.phase, Phase::Open) && !state.hello_pending && state.outbox.goes_direct()
    }

    /// True while the peer's Hello is being checked.
    pub(crate) fn is_being_let_in(&self) -> bool {
        let state = self.shared.state.lock();
        matches!(state.phase, Phase::Open) && state.hello_pending
    }

    /// Queues a push that was encoded before, under this number. Answers where the counter of pushes stands
    /// behind it; see [`Self::pushes_written`].
    pub(crate) fn queue_as(&self, frame: &Bytes, seq: Seq) -> Result<u64, PushError> {
        let mut state = self.shared.state.lock();
        state.check_open()?;
        let added = state.outbox.add_frame_as(Lane::Push, frame, Some(seq), &self.shared.settings.bounds());
        self.check_added(&mut state, added)?;
        Ok(state.outbox.pushes_added())
    }

    /// Queues the notice that pushes were dropped. Answers as [`Self::queue_as`].
    pub(crate) fn queue_gap(&self, missed: u64) -> Result<u64, PushError> {
        let header = Header::oneway(Seq::of_push(0), SerializeType::RAW);
        let metadata = Metadata::new().with(keys::GAP_MISSED, missed.to_string());
        let limits = Limits::default();
        self.queue_as(
            &PushFrame::with_header(header, keys::CONTROL_PATH, keys::GAP, &metadata, &[], &limits)?.0,
            Seq::of_push(0),
        )
    }

    /// Where the counter of pushes stood behind the last one of which the kernel has all.
    pub(crate) fn pushes_written(&self) -> u64 {
        self.shared.state.lock().outbox.pushes_written()
    }

    /// Asks for [`Inlet::handle_room`], once, when everything is written.
    pub(crate) fn tell_of_room(&self) {
        let mut state = self.shared.state.lock();
        // Who cannot take anything has no room, however empty it is: its end, or the answer to its Hello, is on its
        // way to whoever asks.
        let takes = matches!(state.phase, Phase::Open) && !state.hello_pending;
        if takes && state.outbox.is_empty() && state.outbox.writing == Writing::Idle {
            drop(state);
            self.shared.inlet.handle_room(self);
        } else {
            state.room_wanted = true;
        }
    }

    /// Writes what is queued, as far as the socket takes it without waiting.
    pub fn flush(&self) -> Sent {
        if self.write_out() { Sent::Written } else { Sent::Queued }
    }

    fn push(
        &self,
        service_path: &str,
        service_method: &str,
        serialize: SerializeType,
        metadata: &Metadata,
        payload: &Bytes,
    ) -> Result<Sent, PushError> {
        let shared = &*self.shared;
        let mut state = shared.state.lock();
        state.check_open()?;
        let header = Header::oneway(state.proto.next_push(), serialize);
        let parts = FrameParts { header, service_path, service_method, metadata, payload_len: payload.len() };
        let added = state.outbox.add(Lane::Push, &parts, payload, self.limits(), &shared.settings.bounds());
        self.check_added(&mut state, added)?;
        self.write_if_much(state);
        Ok(self.flush_soon())
    }

    /// Tries again whenever room appears, up to `wait`.
    async fn with_room<T>(
        &self,
        wait: Duration,
        mut attempt: impl FnMut() -> Result<T, PushError>,
    ) -> Result<T, PushError> {
        let deadline = after(wait);
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match attempt() {
                Err(full @ PushError::Full { .. }) => {
                    if tokio::time::timeout_at(deadline, changed).await.is_err() {
                        return Err(full);
                    }
                }
                done => return done,
            }
        }
    }

    fn check_added(&self, state: &mut State, added: Result<u64, Refused>) -> Result<u64, PushError> {
        match added {
            Ok(number) => Ok(number),
            Err(Refused::TooLarge(error)) => Err(PushError::TooLarge(error)),
            Err(Refused::Full { frames, bytes }) => Err(PushError::Full { frames, bytes }),
            Err(Refused::Disconnect(why)) => {
                let reason = CloseReason::SlowPeer(why);
                self.end(state, reason.clone());
                Err(PushError::Closed(reason))
            }
        }
    }

    /// Sends the reply to `request`.
    fn reply(&self, request: &Message, reply: Reply, lane: Lane, pushes_before: Option<u64>) {
        let shared = &*self.shared;
        let mut metadata = reply.wire_metadata();
        let mut header = request.header().reply();
        if let Some(serialize) = reply.serialize {
            header = header.with_serialize(serialize);
        }
        let payload = match reply.outcome {
            Ok(payload) => payload,
            Err(_) => {
                header = header.with_status(Status::ERROR);
                Bytes::new()
            }
        };
        let (header, payload) = compressed(header, payload, request.header().compress());
        let mut state = shared.state.lock();
        if !state.can_answer() {
            return;
        }
        if header.status().is_error() && !matches!(state.proto.peer(), Peer::Negotiated(_)) {
            // A plain client's application would find it among the metadata of its reply.
            metadata.remove(keys::ERROR_CODE);
        }
        let (service_path, service_method) = (request.service_path(), request.service_method());
        let parts =
            FrameParts { header, service_path, service_method, metadata: &metadata, payload_len: payload.len() };
        let mut added = state.outbox.add(lane, &parts, &payload, self.limits(), &shared.settings.bounds());
        if let Err(Refused::TooLarge(error)) = &added {
            let metadata = Metadata::new().with(keys::ERROR, format!("the reply cannot be sent: {error}"));
            let header = request.header().reply().with_status(Status::ERROR);
            let parts = FrameParts { header, service_path, service_method, metadata: &metadata, payload_len: 0 };
            added = state.outbox.add(lane, &parts, &Bytes::new(), self.limits(), &shared.settings.bounds());
        }
        if pushes_before.is_some_and(|before| before != state.outbox.pushes_added()) {
            state.outbox.last_reply_behind_pushes();
        }
        let failed = self.check_added(&mut state, added).err();
        if reply.then_welcome {
            state.hello_pending = false;
            state.called_by_pushes = true;
        }
        self.write_if_much(state);
        if reply.then_welcome {
            shared.changed.notify_waiters();
            shared.inlet.handle_welcomed(self);
        }
        if let Some(error) = failed {
            tracing::warn!(connection = %self.id(), %error, "a reply was lost");
        } else if reply.then_close {
            let why = metadata.get(keys::ERROR).unwrap_or_default().to_owned();
            self.close_after_flush(CloseReason::Unauthenticated(why));
        }
    }

    /// Sends a frame of the small lane: a heartbeat or its answer, a cancel, a goodbye.
    fn control(&self, frame: &Bytes) {
        let mut state = self.shared.state.lock();
        if state.can_answer() {
            let added = state.outbox.add_frame(Lane::Control, frame, &self.shared.settings.bounds());
            // Control frames are small; the only refusal ends the connection, and says so itself.
            let _ = self.check_added(&mut state, added);
        }
    }

    fn control_request(&self, service_method: &str, metadata: &Metadata) {
        let seq = self.shared.state.lock().proto.next_push();
        let header = Header::oneway(seq, SerializeType::RAW);
        let frame = proto::frame(header, keys::CONTROL_PATH, service_method, metadata, &[], &Limits::default());
        self.control(&frame.expect("a control frame is small"));
    }

    /// Tells a client that the server is about to close the connection, if it understands that.
    /// `code` is for programs, `why` for people.
    pub(crate) fn say_goodbye(&self, code: &str, why: &str) {
        let understands = self.shared.state.lock().proto.peer_can(Capabilities::GOODBYE);
        if understands {
            self.control_request(
                keys::GOODBYE,
                &Metadata::new().with(keys::GOODBYE_CODE, code).with(keys::GOODBYE_WHY, why),
            );
            self.flush_soon();
        }
    }

    fn pushes_added(&self) -> u64 {
        self.shared.state.lock().outbox.pushes_added()
    }

    fn say_hello(&self, mut metadata: Metadata) {
        let mut state = self.shared.state.lock();
        proto::Hello { version: proto::VERSION, capabilities: self.shared.settings.capabilities }.put(&mut metadata);
        self.heartbeat(&mut state, Waiter::Hello, &metadata);
    }

    /// Adds a heartbeat request; its answer comes back as a reply to `waiter`.
    fn heartbeat(&self, state: &mut State, waiter: Waiter, metadata: &Metadata) {
        let is_ping = matches!(waiter, Waiter::Ping);
        if let Some(unanswered) = state.ping.take_if(|_| is_ping) {
            // Whatever came since was a sign of life; its answer is not waited for any more.
            state.proto.forget(unanswered);
        }
        if let Ok(seq) = state.proto.begin_heartbeat(waiter) {
            state.ping = is_ping.then_some(seq);
            // Go's heartbeat carries the clock as a MessagePack int64; nobody reads it.
            let ping = Message::ping(seq, metadata, &[0xd3, 0, 0, 0, 0, 0, 0, 0, 0]);
            let added = state.outbox.add_frame(Lane::Control, ping.frame(), &self.shared.settings.bounds());
            let _ = self.check_added(state, added);
        }
    }

    /// Writes soon: at once, or, within the handling of a read, when that is done.
    pub(crate) fn flush_soon(&self) -> Sent {
        if driver::put_off_flush(self) { Sent::Queued } else { self.flush() }
    }

    /// Ends the use of the state; writes if so much waits that a write pays for itself.
    fn write_if_much(&self, state: MutexGuard<'_, State>) {
        let much = state.outbox.wants_write();
        drop(state);
        if much {
            self.write_out();
        }
    }

    /// Writes until nothing is left (true), or until the socket is full or somebody else writes (false).
    fn write_out(&self) -> bool {
        /// Batches that a caller writes before it leaves the rest to the driver, so that it is not
        /// kept busy with what others add.
        const ROUNDS: usize = 4;
        let shared = &*self.shared;
        let mut state = shared.state.lock();
        if state.outbox.writing != Writing::Idle {
            return false;
        }
        for _ in 0..ROUNDS {
            let Some(mut wire) = shared.take(&mut state) else {
                self.written_out(state);
                return true;
            };
            state.outbox.writing = Writing::Busy;
            drop(state);
            let mut written = 0;
            let error = loop {
                let result = wire.write_with(|slices| shared.socket.try_write(slices), |n| *n.as_ref().unwrap_or(&0));
                match result {
                    Ok(0) => break Some(io::Error::from(io::ErrorKind::WriteZero)),
                    Ok(n) => {
                        written += n;
                        if wire.is_empty() {
                            break None;
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => break Some(error),
                }
            };
            state = shared.state.lock();
            state.outbox.put_back(wire, written);
            match error {
                None => state.outbox.writing = Writing::Idle,
                Some(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    state.outbox.writing = Writing::Blocked;
                    state.wake_driver();
                    return false;
                }
                Some(error) => {
                    state.outbox.writing = Writing::Idle;
                    self.end(&mut state, error.into());
                    return false;
                }
            }
        }
        if state.outbox.is_empty() {
            self.written_out(state);
            return true;
        }
        state.outbox.writing = Writing::Blocked;
        state.wake_driver();
        false
    }

    /// Everything is with the kernel: the driver, or the layer above, may have waited for that.
    fn written_out(&self, mut state: MutexGuard<'_, State>) {
        if state.paused || !matches!(state.phase, Phase::Open) {
            state.wake_driver();
        }
        let wanted = std::mem::take(&mut state.room_wanted);
        drop(state);
        if wanted {
            self.shared.inlet.handle_room(self);
        }
    }

    /// Ends the connection once what waits is written.
    fn close_after_flush(&self, reason: CloseReason) {
        let mut state = self.shared.state.lock();
        if state.can_answer() {
            state.fail_calls(&reason);
            state.phase = Phase::Closing(reason);
            state.wake_driver();
            self.shared.changed.notify_waiters();
        }
    }

    /// Nothing more comes from the peer. What it asked for is still answered, as long as that is
    /// worth something; false if there is nothing to answer.
    fn answer_the_rest(&self, reason: &CloseReason) -> bool {
        let shared = &*self.shared;
        let mut state = shared.state.lock();
        let worth_it = state.proto.role() == Role::Server && !shared.settings.cancel_on_disconnect;
        if !worth_it || !matches!(state.phase, Phase::Open) {
            return false;
        }
        shared.answering.store(true, Ordering::SeqCst);
        if shared.calls_running.load(Ordering::SeqCst) == 0 && state.outbox.is_empty() {
            return false;
        }
        state.fail_calls(reason);
        state.phase = Phase::Answering(reason.clone());
        shared.changed.notify_waiters();
        true
    }

    /// Ends the connection now: what waits is dropped, and everyone who waits is told.
    fn close_now(&self, reason: CloseReason) {
        self.end(&mut self.shared.state.lock(), reason);
    }

    fn end(&self, state: &mut State, reason: CloseReason) {
        if matches!(state.phase, Phase::Closed(_)) {
            return;
        }
        // Why the peer sends nothing more says more than how the answers failed.
        let reason = match &state.phase {
            Phase::Answering(first) => first.clone(),
            _ => reason,
        };
        for waiter in state.proto.drain() {
            if let Waiter::Call { reply, number } = waiter {
                let written = state.outbox.call_may_be_written(number);
                // Nobody listens if the call's future was dropped this moment.
                let _ = reply.send(Err(CallError::Closed { written, reason: reason.clone() }));
            }
        }
        state.outbox.clear();
        state.phase = Phase::Closed(reason);
        state.wake_driver();
        self.shared.changed.notify_waiters();
    }

    /// Writes, after every task that is ready now has had its turn. Callers whose replies came in one read
    /// are ready together, and so are their next calls: these leave in one write instead of one each.
    async fn flush_together(&self) {
        if std::mem::replace(&mut self.shared.state.lock().flush_comes, true) {
            return;
        }
        let _flush = FlushOnDrop(self);
        tokio::task::yield_now().await;
    }

    async fn hello_answered(&self) {
        loop {
            let changed = self.shared.changed.notified();
            let pending = |state: &State| state.hello_pending && state.check_open().is_ok();
            if !pending(&self.shared.state.lock()) {
                return;
            }
            changed.await;
        }
    }

    fn begin_call(
        &self,
        call: &RawCall<'_>,
        payload: &Bytes,
        header: Header,
        metadata: &Metadata,
    ) -> Result<Begun<'_>, CallError> {
        let shared = &*self.shared;
        let mut state = shared.state.lock();
        if let Err(PushError::Closed(reason)) = state.check_open() {
            return Err(CallError::Closed { written: false, reason });
        }
        let by_push = state.called_by_pushes;
        if state.proto.role() == Role::Server && !by_push && !state.proto.peer_can(Capabilities::CALLS) {
            return Err(CallError::NotSupported);
        }
        let (sender, reply) = oneshot::channel();
        let begun = state.proto.begin_call(Waiter::Call { reply: sender, number: u64::MAX });
        let seq = begun.map_err(|full| CallError::TooManyCalls { max: full.max })?;
        let (service_path, service_method) = (call.service_path, call.service_method);
        let payload_len = payload.len();
        let numbered;
        let (header, metadata) = if by_push {
            // A plain client would take a request that wants a reply for the reply to a call of its own.
            numbered = metadata.clone().with(keys::CALL_NUMBER, seq.unmarked().to_string());
            (Header::oneway(Seq::of_push(0), header.serialize()).with_compress(header.compress()), &numbered)
        } else {
            (header.with_seq(seq), metadata)
        };
        let parts = FrameParts { header, service_path, service_method, metadata, payload_len };
        let added = state.outbox.add(Lane::Call, &parts, payload, self.limits(), &shared.settings.bounds());
        match added {
            Ok(number) => {
                if let Some(Waiter::Call { number: of_waiter, .. }) = state.proto.waiter_mut(seq) {
                    *of_waiter = number;
                }
                let alone = state.proto.calls().len() == 1;
                self.write_if_much(state);
                Ok(Begun { reply, guard: Forget { connection: self, seq: Some(seq) }, alone })
            }
            Err(refused) => {
                state.proto.forget(seq);
                Err(match refused {
                    Refused::TooLarge(error) => CallError::TooLarge(error),
                    Refused::Full { .. } | Refused::Disconnect(_) => unreachable!("calls have a lane without a rule"),
                })
            }
        }
    }
}

impl Shared {
    /// Takes what is next to be written; tells those who wait for room in the queue of pushes.
    fn take(&self, state: &mut State) -> Option<Wire> {
        let waiting = state.outbox.pushes_waiting();
        let wire = state.outbox.take();
        if state.outbox.pushes_waiting() != waiting {
            self.changed.notify_waiters();
        }
        wire
    }
}

impl State {
    fn check_open(&self) -> Result<(), PushError> {
        match &self.phase {
            Phase::Open => Ok(()),
            Phase::Draining(reason) | Phase::Answering(reason) | Phase::Closing(reason) | Phase::Closed(reason) => {
                Err(PushError::Closed(reason.clone()))
            }
        }
    }

    /// True while answers may still be sent.
    fn can_answer(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Draining(_) | Phase::Answering(_))
    }

    /// No reply will be read any more: whoever waits for one is told. What is on its way still
    /// leaves, so that a call is only called unwritten if it can be taken back.
    fn fail_calls(&mut self, reason: &CloseReason) {
        for waiter in self.proto.drain() {
            if let Waiter::Call { reply, number } = waiter {
                let written = !self.outbox.forget_call(number);
                // Nobody listens if the call's future was dropped this moment.
                let _ = reply.send(Err(CallError::Closed { written, reason: reason.clone() }));
            }
        }
    }

    /// Notes that the peer is about to end the connection, and why.
    fn drain(&mut self, reason: CloseReason) {
        if matches!(self.phase, Phase::Open) {
            self.phase = Phase::Draining(reason);
        }
    }

    fn wake_driver(&self) {
        if let Some(driver) = &self.driver {
            driver.wake_by_ref();
        }
    }
}

/// A call that was sent.
struct Begun<'a> {
    reply: oneshot::Receiver<Result<Message, CallError>>,
    guard: Forget<'a>,
    /// No other call waits for its reply.
    alone: bool,
}

/// Writes for all who rely on it, also if the future that was to do it is dropped.
struct FlushOnDrop<'a>(&'a Connection);

impl Drop for FlushOnDrop<'_> {
    fn drop(&mut self) {
        self.0.shared.state.lock().flush_comes = false;
        self.0.flush_soon();
    }
}

/// Takes a call out of the table when its future is dropped, and tells a peer that understands.
struct Forget<'a> {
    connection: &'a Connection,
    seq: Option<Seq>,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        let Some(seq) = self.seq else { return };
        let mut state = self.connection.shared.state.lock();
        let Some(Waiter::Call { number, .. }) = state.proto.forget(seq) else { return };
        let by_push = state.called_by_pushes;
        let tell = !state.outbox.forget_call(number)
            && (by_push || state.proto.peer_can(Capabilities::CANCEL))
            && state.outbox.has_room_for_cancels();
        drop(state);
        if tell {
            let number = if by_push { seq.unmarked() } else { seq.get() };
            self.connection.control_request(keys::CANCEL, &Metadata::new().with(keys::CANCEL_SEQ, number.to_string()));
            self.connection.flush_soon();
        }
    }
}

impl Caller for Connection {
    async fn call_raw(&self, mut call: RawCall<'_>) -> Result<RawReply, CallError> {
        let mut metadata = std::mem::take(&mut call.options.metadata);
        let timeout = call.options.timeout;
        let deadline = timeout.map(after);
        if let Some(timeout) = timeout {
            // At least one: the peer takes zero for a deadline that has passed.
            metadata.insert(keys::SERVER_TIMEOUT, timeout.as_millis().max(1).to_string());
        }
        let header = Header::request(Seq::default(), call.serialize);
        let (header, payload) = compressed(header, call.payload.clone(), self.shared.settings.compress);
        let hello_pending = self.shared.state.lock().hello_pending;
        if hello_pending {
            within(timeout, deadline, self.hello_answered()).await?;
        }
        let Begun { reply, mut guard, alone } = self.begin_call(&call, &payload, header, &metadata)?;
        if alone {
            self.flush_soon();
        } else {
            self.flush_together().await;
        }
        let reply = within(timeout, deadline, reply).await?;
        guard.seq = None;
        let reply = reply.expect("a waiter is answered before it leaves the table")?;
        raw_reply(reply, self.limits())
    }

    async fn push_raw(&self, push: RawCall<'_>) -> Result<(), PushError> {
        let RawCall { service_path, service_method, serialize, payload, options } = push;
        let wait = options.timeout.unwrap_or_default();
        self.with_room(wait, || self.push(service_path, service_method, serialize, &options.metadata, &payload))
            .await
            .map(|_| ())
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

/// Sends pushes that were encoded once to many connections: first all are queued, then each
/// connection is written once. Never waits for any of them.
///
/// A push counts once per connection and frame in the answer.
pub fn fan_out(connections: &[Connection], frames: &[PushFrame]) -> FanOut {
    let mut outcome = FanOut::default();
    for connection in connections {
        for frame in frames {
            match connection.queue(frame) {
                Ok(()) => outcome.queued += 1,
                Err(PushError::Full { .. }) => outcome.full += 1,
                Err(_) => outcome.closed += 1,
            }
        }
        connection.flush_soon();
    }
    outcome
}

/// The moment that long from now; without end if nobody lives to see it.
pub(crate) fn after(wait: Duration) -> Instant {
    const FOR_EVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
    Instant::now() + wait.min(FOR_EVER)
}

/// Waits up to the deadline, which is `timeout` from the beginning of the call.
async fn within<T>(
    timeout: Option<Duration>,
    deadline: Option<Instant>,
    future: impl Future<Output = T>,
) -> Result<T, CallError> {
    match deadline {
        None => Ok(future.await),
        Some(deadline) => {
            let outcome = tokio::time::timeout_at(deadline, future).await;
            outcome.map_err(|_| CallError::TimedOut(timeout.unwrap_or_default()))
        }
    }
}

/// Packs a payload worth packing in the way asked for.
fn compressed(header: Header, payload: Bytes, compress: CompressType) -> (Header, Bytes) {
    if compress == CompressType::GZIP && COMPRESS_ABOVE < payload.len() {
        return (header.with_compress(compress), proto::gzip(&payload).into());
    }
    (header, payload)
}

/// What a caller makes of the frame that answers its call.
fn raw_reply(message: Message, limits: &Limits) -> Result<RawReply, CallError> {
    if let Some(text) = message.error_text() {
        let code = message.metadata().get(keys::ERROR_CODE).and_then(ErrorCode::from_name);
        return Err(CallError::Remote { text, code });
    }
    let (serialize, mut metadata) = (message.header().serialize(), message.metadata());
    if message.header().kind() == MessageKind::Request {
        // A plain client's request that answers: these pairs say that it does, and who asks.
        metadata.remove(keys::CALL_NUMBER);
        metadata.remove(keys::AUTH);
    }
    let payload = message.into_payload(limits).map_err(|error| CallError::Decode(error.into()))?;
    Ok(RawReply { serialize, payload, metadata })
}
