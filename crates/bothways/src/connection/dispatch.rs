//! Runs handlers: in line while they are ready at once, else in tasks of their own.

use std::{
    any::Any,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bothways_proto::{Capabilities, CompressType, DecodeError, Greeting, Hello, Message, Metadata, Seq, Status, keys};
use bytes::Bytes;
use tokio::{runtime::Handle, sync::Notify, time::Instant};

use super::{
    Connection, Lane, Shared, after,
    behind::{HeldReply, PushesSoFar},
    control::cut,
    outgoing::Outgoing,
};
use crate::{
    calm::{Calm, Said, tell},
    error::{AuthError, CloseReason, ErrorCode},
    guard::{Guarded, Panicked},
    packing,
    reply::{BoxFuture, Reply},
};

/// What the layer above makes of what a connection receives.
pub(crate) trait Inlet: Send + Sync + 'static {
    /// A request: with `is_oneway` the reply is dropped.
    fn handle_request(&self, connection: &Connection, message: Message) -> Answer;

    /// What finishes something that is under way, see [`ends_something`]: it is done at once, in the order in which it
    /// came, and takes no place of what runs. `None`: it is a request like others.
    fn finish(&self, _: &Connection, _: &Message) -> Option<Reply> {
        None
    }

    /// A request that wants no reply was passed over: it is larger, or has more metadata, than the limits allow, and
    /// nothing but its number is known.
    fn handle_passed_over(&self, connection: &Connection, _: Seq) {
        connection.count_refused_oneway();
    }

    /// True if requests of a client are checked by its token before they run.
    fn asks_for_token(&self) -> bool {
        false
    }

    /// True if a Hello that [`Self::handle_hello`] lets in has shown the client's token.
    fn hello_shows_token(&self) -> bool {
        true
    }

    /// The first frame of a client, whatever it is. `Err`: there are too many now, and it may try again after so long.
    fn admit(&self, _first: &Message) -> Result<(), Duration> {
        Ok(())
    }

    /// The first frame of a peer that can do more than rpcx. `Err` refuses it, and the connection ends.
    fn handle_hello(&self, connection: &Connection, metadata: Metadata) -> BoxFuture<Result<(), AuthError>>;

    /// The connection is over. Called exactly once.
    fn handle_closed(&self, connection: &Connection, reason: &CloseReason);

    /// A Hello was let in, and both sides keep sessions: the pairs that go with the Welcome. `Err`: not now, and the
    /// client may try again after so long.
    fn welcome_pairs(&self, _: &Connection, _hello: &Metadata) -> Result<Metadata, Duration> {
        Ok(Metadata::new())
    }

    /// The Welcome is queued: what follows it may be.
    fn on_welcome_sent(&self, _: &Connection) {}

    /// The answer to our Hello came. `None`: the server speaks plain rpcx.
    fn on_welcome_received(&self, _: &Connection, _welcome: Option<&Metadata>) {}

    /// Where tasks of a connection are made, if it may do without one while it is idle.
    fn runtime(&self) -> Option<&Handle> {
        None
    }

    /// Who keeps the time of those who wait on a thread without a runtime.
    fn clock(&self) -> Option<&Handle> {
        self.runtime()
    }

    /// What those find who hold only a connection.
    fn owner(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        None
    }

    /// The server that it belongs to.
    fn server(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        None
    }

    /// Everything is written, as was asked to be told.
    fn handle_room(&self, _: &Connection) {}

    /// The layer above keeps pushes for want of room that the handler of this reply may have made. The reply goes when
    /// this is dropped.
    fn handle_held(&self, _: &Connection, _: HeldReply) {}
}

/// True for what a client says of what it was sent: it acknowledges it, answers it, or leaves. No bound may lose that,
/// for it makes room, and nothing may bring it out of order.
#[inline(always)]
pub(crate) fn ends_something(message: &Message) -> bool {
    message.has_service_path(keys::CONTROL_PATH) && is_an_end(message.service_method())
}

/// True for a method of the framework that finishes something; see [`ends_something`].
pub(crate) fn is_an_end(method: &str) -> bool {
    matches!(method, keys::ACK | keys::LEAVE | keys::REPLY)
}

/// How a request is answered.
pub(crate) enum Answer {
    /// At once.
    Ready(Reply),
    /// By a handler; it gives up at the deadline, which is the caller's.
    Later(BoxFuture<Reply>, Option<Instant>),
    /// Not at all.
    Nothing,
}

/// A refusal because of the caller's deadline leaves this long after it. The caller sent whole milliseconds,
/// rounded down: at the deadline itself the refusal would arrive before the caller's own clock is there,
/// and be the outcome of the call in place of its deadline.
const LATE_REFUSAL: Duration = Duration::from_millis(250);

/// Refusals that wait for [`LATE_REFUSAL`] in all connections of one server or client; one more leaves at once.
/// 4,096: a burst of callers that give up together. Each holds its request.
const LATE_REFUSALS: usize = 4096;

/// Most bytes of a Hello beside its metadata, which have a bound of their own: ours has nine.
const HELLO_BYTES: usize = 4 << 10;

/// After how long a client whose Hello finds no place is to come again.
const HELLO_RETRY: Duration = Duration::from_secs(1);

/// When the caller of a request gives up. A text that is no number is ignored, as in Go. A time that is over means that
/// nobody waits for the handler; from a plain caller it means nothing, for Go's server runs such a call.
pub(crate) fn deadline(connection: &Connection, message: &Message) -> Result<Option<Instant>, Reply> {
    let Some(text) = message.metadata_value(keys::SERVER_TIMEOUT) else { return Ok(None) };
    let Some(left) = str::from_utf8(text).ok().and_then(|text| text.parse::<i64>().ok()) else { return Ok(None) };
    match u64::try_from(left) {
        Ok(left) if 0 < left => Ok(Some(after(Duration::from_millis(left)))),
        _ if !connection.is_negotiated() => Ok(None),
        _ => Err(Reply::refused(ErrorCode::Timeout, "the caller's deadline passed before the handler began")),
    }
}

/// How many requests run at once in all connections of one server or client.
#[derive(Debug)]
pub(crate) struct Load {
    running: AtomicUsize,
    /// Requests whose handlers were dropped at the deadline, and whose callers are still to be told.
    late: AtomicUsize,
    max: usize,
    /// KiB of the requests that run in tasks of their own, each rounded up.
    request_kib: AtomicU32,
    request_bytes_max: usize,
    /// Bytes of the frames that have begun and not ended, of each what is beyond one read.
    partial_bytes: AtomicUsize,
    partial_bytes_max: usize,
    /// What waits for their peers to read.
    outgoing: Outgoing,
    /// Replies that found no room there.
    pub(super) told_no_room: Calm,
    /// Frames that were larger than this side takes, what was larger than a peer takes, and replies that were lost.
    pub(super) told_passed_over: Calm,
    pub(super) told_too_large: Calm,
    pub(super) told_lost: Calm,
    /// Woken when nothing runs any more, and when nobody is to be told any more.
    idle: Notify,
}

impl Load {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            running: AtomicUsize::new(0),
            late: AtomicUsize::new(0),
            max,
            request_kib: AtomicU32::new(0),
            request_bytes_max: 1 << 30,
            partial_bytes: AtomicUsize::new(0),
            partial_bytes_max: 256 << 20,
            outgoing: Outgoing::new(usize::MAX),
            told_no_room: Calm::default(),
            told_passed_over: Calm::default(),
            told_too_large: Calm::default(),
            told_lost: Calm::default(),
            idle: Notify::new(),
        }
    }

    /// The same, with these bounds on the bytes of requests that run, and of frames that have not ended.
    pub(crate) fn with_bytes(self, request_bytes_max: usize, partial_bytes_max: usize) -> Self {
        Self { request_bytes_max, partial_bytes_max, ..self }
    }

    /// The same, with this bound on the bytes that wait for peers to read.
    pub(crate) fn with_outgoing(self, bytes_max: usize) -> Self {
        Self { outgoing: Outgoing::new(bytes_max), ..self }
    }

    pub(crate) fn outgoing(&self) -> &Outgoing {
        &self.outgoing
    }

    /// A frame that had so many bytes has so many now. False: all of them together have too many, or more than half of
    /// the room and their peer has shown no token that was accepted.
    pub(super) fn count_partial(&self, before: usize, now: usize, is_trusted: bool) -> bool {
        if now <= before {
            self.partial_bytes.fetch_sub(before - now, Ordering::Relaxed);
            return true;
        }
        let others = self.partial_bytes.fetch_add(now - before, Ordering::Relaxed) - before;
        // One alone is bounded by `body_bytes_max`.
        others == 0 || others + now <= share(self.partial_bytes_max, is_trusted)
    }

    /// Requests that run now.
    pub(crate) fn running(&self) -> usize {
        self.running.load(Ordering::Acquire)
    }

    /// Waits until nothing runs, and all are told.
    pub(crate) async fn idle(&self) {
        loop {
            let idle = self.idle.notified();
            if self.running() == 0 && self.late.load(Ordering::Acquire) == 0 {
                return;
            }
            idle.await;
        }
    }
}

/// What of a server's room a peer may use. Half of it is for those whose token was accepted: strangers must not shut
/// them out.
fn share(room: usize, is_trusted: bool) -> usize {
    if is_trusted { room } else { room / 2 }
}

impl Shared {
    /// Whether requests may hold so many bytes more, of this connection and, up to `all_max`, of all. `own_kib` of what
    /// they hold are of the one that asks. `Err`: which bound is reached, for the caller.
    fn check_request_bytes(&self, own_kib: usize, bytes: usize, all_max: usize) -> Result<(), String> {
        if self.settings.load.request_kib.load(Ordering::Relaxed) == 0 {
            // No request is held by anybody.
            return Ok(());
        }
        for (held, max, of) in [
            (&self.request_kib, self.settings.request_bytes_max, "of this connection "),
            (&self.settings.load.request_kib, all_max, ""),
        ] {
            // One alone is bounded by `body_bytes_max`, or by what a value may take.
            let others = (held.load(Ordering::Relaxed) as usize).saturating_sub(own_kib).saturating_mul(1024);
            if others != 0 && max < others.saturating_add(bytes) {
                return Err(format!("overloaded: calls {of}that hold {others} bytes run already"));
            }
        }
        Ok(())
    }

    /// Requests hold so many bytes more. Returns the KiB that are to be given back.
    fn hold_request_bytes(&self, bytes: usize) -> u32 {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        self.request_kib.fetch_add(kib, Ordering::Relaxed);
        self.settings.load.request_kib.fetch_add(kib, Ordering::Relaxed);
        kib
    }

    fn give_request_room_back(&self, kib: u32) {
        self.request_kib.fetch_sub(kib, Ordering::Relaxed);
        self.settings.load.request_kib.fetch_sub(kib, Ordering::Relaxed);
    }
}

/// The right to run one request; gives its place back when dropped.
struct Permit {
    connection: Connection,
    is_late: bool,
    /// The request is the only one that is handled until the token of its connection is accepted.
    is_check: bool,
    /// KiB that it holds in a task of its own.
    kib: u32,
}

impl Permit {
    /// `Err`: which bound is reached, for the caller.
    fn acquire(connection: &Connection, message: &Message) -> Result<Self, String> {
        let shared = &*connection.shared;
        let load = &*shared.settings.load;
        let in_connection = shared.calls_running.fetch_add(1, Ordering::AcqRel) as usize;
        let in_all = load.running.fetch_add(1, Ordering::AcqRel);
        let permit = Self { connection: connection.clone(), is_late: false, is_check: false, kib: 0 };
        let bytes_max = share(load.request_bytes_max, shared.is_trusted.load(Ordering::Relaxed));
        shared.check_request_bytes(0, message.frame().len(), bytes_max)?;
        if shared.settings.calls_running_max <= in_connection {
            return Err(format!("overloaded: {in_connection} calls of this connection run already"));
        }
        if load.max <= in_all {
            return Err(format!("overloaded: {in_all} calls run already"));
        }
        Ok(permit)
    }

    /// The request goes on in a task of its own, and is kept until that ends.
    fn keep(&mut self, message: &Message) {
        let shared = &*self.connection.shared;
        if !shared.is_trusted.load(Ordering::Relaxed) {
            shared.is_checking.store(true, Ordering::Relaxed);
            self.is_check = true;
        }
        self.charge(message.pinned_bytes());
    }

    /// It holds so many bytes more.
    fn charge(&mut self, bytes: usize) {
        self.kib += self.connection.shared.hold_request_bytes(bytes);
    }

    /// Nothing runs any more, but the caller is to be told so later: others may have the place at once. False: so
    /// many wait for that already that it is told now.
    fn retire(&mut self) -> bool {
        // Counted before it leaves the others: who waits for both to be none must not see that in between.
        let late = self.connection.shared.settings.load.late.fetch_add(1, Ordering::AcqRel);
        self.leave();
        self.is_late = true;
        late < LATE_REFUSALS
    }

    fn leave(&self) {
        let shared = &*self.connection.shared;
        if shared.calls_running.fetch_sub(1, Ordering::SeqCst) == 1 && shared.answering.load(Ordering::SeqCst) {
            self.connection.wake_driver(&mut shared.state.lock());
        }
        if shared.settings.load.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            shared.settings.load.idle.notify_waiters();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.kib != 0 {
            self.connection.shared.give_request_room_back(self.kib);
        }
        if self.is_check {
            self.connection.end_check();
        }
        if !self.is_late {
            return self.leave();
        }
        let load = &*self.connection.shared.settings.load;
        if load.late.fetch_sub(1, Ordering::AcqRel) == 1 {
            load.idle.notify_waiters();
        }
    }
}

/// Arguments of at most this many bytes in memory beside their payload count with their request.
const SMALL_ARGUMENTS: usize = 4 << 10;

/// Room that the arguments of a request take in memory, given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Decoded {
    connection: Connection,
    kib: u32,
}

impl Drop for Decoded {
    fn drop(&mut self) {
        self.connection.shared.give_request_room_back(self.kib);
    }
}

/// The place of the handlers that run in line while the messages of one read are handled. They run one after
/// the other, so that one permit does for all of them: it is taken for the first, and goes along with a handler
/// that is not ready. A permit for each costs 160 instructions a call, most of them atomic; the step `serve16` of
/// `compare instructions` shows it.
#[derive(Default)]
pub(super) struct Place(Option<Permit>);

impl Place {
    fn take(&mut self, connection: &Connection, message: &Message) -> Result<Permit, String> {
        self.0.take().map_or_else(|| Permit::acquire(connection, message), Ok)
    }

    fn keep(&mut self, permit: Permit) {
        self.0 = Some(permit);
    }
}

impl Connection {
    /// Answers a request that wants a reply. `pushes_before` says where pushes stood when it was read: its reply does not
    /// overtake those that are made while its handler runs.
    #[inline(always)]
    pub(super) fn run_call(&self, mut message: Message, pushes_before: PushesSoFar, place: &mut Place) {
        if let Some(reply) = self.finish(&mut message) {
            return self.reply(&message, reply, Lane::Reply, Some(pushes_before));
        }
        let permit = match place.take(self, &message) {
            Ok(permit) => permit,
            Err(text) => return self.refuse_call(&message, text),
        };
        self.copy_if_many_run(&mut message);
        let reply = match self.shared.inlet.handle_request(self, message.clone()) {
            Answer::Ready(reply) => reply,
            Answer::Nothing => return place.keep(permit),
            Answer::Later(handler, deadline) => {
                let mut handler = Guarded::new(handler);
                match poll_first(&mut handler, &message) {
                    Poll::Ready(reply) => reply,
                    Poll::Pending => return self.spawn_call(handler, deadline, message, permit, pushes_before),
                }
            }
        };
        if takes_long_to_pack(&message, &reply) {
            let ready = Guarded::new(Box::pin(std::future::ready(reply)));
            return self.spawn_call(ready, None, message, permit, pushes_before);
        }
        self.reply_in_line(&message, reply, Lane::Reply, Some(pushes_before));
        place.keep(permit);
    }

    /// Does what finishes something, if it is that. Nearly always it is not, which the path says.
    fn finish(&self, message: &mut Message) -> Option<Reply> {
        if !message.has_service_path(keys::CONTROL_PATH) {
            return None;
        }
        self.copy_if_many_run(message);
        self.shared.inlet.finish(self, message)
    }

    /// Copies a request out of its read before its handler sees it, if many run already: it may run for as long as
    /// they do, and whatever the handler keeps of it would keep the whole read. The first 16 are kept as they came, each
    /// counted with its read, so that those that are ready at once are not copied where few others run; of a client
    /// without a token that was accepted each is copied.
    fn copy_if_many_run(&self, message: &mut Message) {
        /// Requests of one connection that are kept as they came.
        const AS_THEY_CAME: u32 = 16;
        let shared = &*self.shared;
        if AS_THEY_CAME < shared.calls_running.load(Ordering::Relaxed) || !shared.is_trusted.load(Ordering::Relaxed) {
            message.compact();
        }
    }

    /// The arguments of a request take so many bytes in memory: they count among what requests hold, as long as the
    /// answer is kept. `Err`: there is no room for them.
    pub(crate) fn hold_decoded(&self, request: &Message, bytes: usize) -> Result<Option<Decoded>, String> {
        if bytes <= SMALL_ARGUMENTS {
            return Ok(None);
        }
        let shared = &*self.shared;
        let own_kib = request.pinned_bytes().div_ceil(1024);
        shared.check_request_bytes(own_kib, bytes, shared.settings.load.request_bytes_max)?;
        Ok(Some(Decoded { connection: self.clone(), kib: shared.hold_request_bytes(bytes) }))
    }

    /// Answers a request for which there is no room.
    pub(super) fn refuse_call(&self, message: &Message, text: String) {
        // A server stops reading when replies pile up. A client never does: there the small lane is the bound.
        let lane = if self.goes_to_client() { Lane::Reply } else { Lane::Control };
        self.reply(message, Reply::refused(ErrorCode::Overloaded, text), lane, None);
    }

    /// Handles a request that wants no reply.
    pub(super) fn run_oneway(&self, mut message: Message, place: &mut Place) {
        if self.finish(&mut message).is_some() {
            return;
        }
        self.copy_if_many_run(&mut message);
        // A client's inlet queues what the server sends unasked and answers that there is nothing to
        // run: only what runs needs a place.
        let Answer::Later(handler, deadline) = self.shared.inlet.handle_request(self, message.clone()) else {
            return;
        };
        let mut handler = Guarded::new(handler);
        let Ok(mut permit) = place.take(self, &message) else {
            self.shared.state.lock().seldom().oneways_refused += 1;
            return;
        };
        match poll_first(&mut handler, &message) {
            Poll::Ready(reply) => {
                place.keep(permit);
                self.finish_oneway(reply);
            }
            Poll::Pending => {
                let connection = self.clone();
                permit.keep(&message);
                tokio::spawn(async move {
                    if let Some(reply) = connection.run_while_wanted(handler, deadline, &message, &mut permit).await {
                        connection.finish_oneway(reply);
                    }
                });
            }
        }
    }

    /// A oneway request whose token was refused ends the connection without a frame, as in Go.
    fn finish_oneway(&self, reply: Reply) {
        if let Some(reason) = reply.then_close {
            self.close_after_flush(*reason);
        }
    }

    /// Asks whether a client may come, by its first frame. `Err`: it may not, and the connection is to end at once;
    /// a client that said Hello is told when to try again, and its connection ends behind that.
    pub(super) fn admit(&self, first: &Message) -> Result<(), CloseReason> {
        let Err(retry_after) = self.shared.inlet.admit(first) else { return Ok(()) };
        let retry_after = in_whole_millis(retry_after);
        let why = "too many clients come at once";
        if !first.header().is_heartbeat() || Hello::from_metadata(&first.metadata()).is_none() {
            return Err(CloseReason::NotAdmitted { why: why.to_owned(), retry_after });
        }
        self.refuse_for_now(first, why, retry_after);
        Ok(())
    }

    /// Answers a Hello with: not now. The connection ends behind that.
    fn refuse_for_now(&self, hello: &Message, why: &str, retry_after: Duration) {
        let refusal = Metadata::new()
            .with(keys::ERROR, cut(why))
            .with(keys::ERROR_CODE, ErrorCode::Overloaded.name())
            .with(keys::RETRY_AFTER, retry_after.as_millis().to_string());
        let header = hello.header().reply().with_status(Status::ERROR);
        self.control(Message::new(header, "", "", &refusal, &[]).frame());
        self.close_unwelcomed(CloseReason::NotAdmitted { why: why.to_owned(), retry_after });
    }

    /// Checks and answers a Hello. One that is not answered at once counts as a request, without its payload.
    pub(super) fn run_hello(&self, hello: Hello, message: Message) {
        let came = message.frame().len();
        // The hook keeps the metadata, and nothing else of what was read.
        let message = Message::new(message.header(), "", "", &message.metadata(), &[]);
        let max = message.frame().len() + HELLO_BYTES;
        if max < came {
            let error = DecodeError::TooLarge { len: came, max };
            self.refuse_by_header(message.header(), ErrorCode::BadArguments, &format!("a Hello: {error}"));
            return self.close_after_flush(CloseReason::BadFrame(error));
        }
        let check = Guarded::begin(|| self.shared.inlet.handle_hello(self, message.metadata()));
        let mut check = match check {
            Ok(check) => check,
            Err(panicked) => return self.finish_hello(&hello, &message, checked(Err(panicked))),
        };
        match Pin::new(&mut check).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(outcome) => self.finish_hello(&hello, &message, checked(outcome)),
            Poll::Pending => {
                let connection = self.clone();
                let mut permit = match Permit::acquire(self, &message) {
                    Ok(permit) => permit,
                    Err(why) => return self.refuse_for_now(&message, &why, HELLO_RETRY),
                };
                permit.keep(&message);
                tokio::spawn(async move {
                    let mut permit = permit;
                    let outcome = tokio::select! {
                        outcome = check => checked(outcome),
                        retry_after = connection.hello_unwanted() => match retry_after {
                            Some(retry_after) => Err(NotLetIn::NotNow { text: STOPPING.to_owned(), retry_after }),
                            None => return,
                        },
                    };
                    // What is next may be checked from here on.
                    permit.is_check = false;
                    connection.finish_hello(&hello, &message, outcome);
                    connection.flush();
                });
            }
        }
    }

    /// Has the client whose Hello is being checked told to come again after so long. False: there is no such Hello.
    pub(crate) fn turn_away(&self, retry_after: Duration) -> bool {
        let mut state = self.shared.state.lock();
        let is_checking = self.shared.is_checking.load(Ordering::Relaxed);
        let is_pending = state.proto.greeting() == Greeting::HelloPending;
        let is_checked = is_checking && is_pending && state.can_answer();
        if is_checked {
            state.seldom().turned_away = Some(in_whole_millis(retry_after));
            state.notify(&self.shared.changed);
        }
        is_checked
    }

    /// Waits until nobody needs the check of a Hello: the connection takes no answer any more, or its client was turned
    /// away, and is to come again after so long.
    async fn hello_unwanted(&self) -> Option<Duration> {
        loop {
            let changed = self.shared.changed.notified();
            {
                let state = self.shared.state.lock();
                if !state.can_answer() {
                    return None;
                }
                if let Some(retry_after) = state.seldom.as_ref().and_then(|seldom| seldom.turned_away) {
                    return Some(retry_after);
                }
            }
            changed.await;
        }
    }

    /// Waits until a client whose token was not accepted yet takes no answer any more; for ever once it is.
    async fn stranger_left(&self) {
        loop {
            let changed = self.shared.changed.notified();
            if self.shared.is_trusted.load(Ordering::Relaxed) {
                return std::future::pending().await;
            }
            if !self.shared.state.lock().can_answer() {
                return;
            }
            changed.await;
        }
    }

    /// The auth hook has let this client in: from here on its requests are handled side by side, and may be as large
    /// as any.
    pub(crate) fn trust(&self) {
        if !self.shared.is_trusted.load(Ordering::Relaxed) {
            self.shared.is_trusted.store(true, Ordering::Relaxed);
            self.end_check();
        }
    }

    /// As [`Self::trust`], by a request: what waited for its client's first one may go.
    pub(crate) fn trust_by_request(&self) {
        self.trust();
        self.tell_waiting_pushes();
    }

    /// False while nothing that the client sent has passed the auth hook, if there is one.
    pub(crate) fn is_trusted(&self) -> bool {
        self.shared.is_trusted.load(Ordering::Relaxed)
    }

    /// The request that was checked is over: the next one is.
    fn end_check(&self) {
        let mut state = self.shared.state.lock();
        if self.shared.is_checking.swap(false, Ordering::Relaxed) {
            self.wake_driver(&mut state);
        }
    }

    /// The peer gave up a call: its handler is dropped at its next `await`.
    pub(super) fn cancel(&self, seq: Seq) {
        let handler = self.shared.state.lock().take_running(seq);
        if let Some(Some(handler)) = handler {
            handler.abort();
        }
    }

    /// Runs a handler to its end, or to that of the connection if nobody wants the reply then.
    async fn run_while_wanted(
        &self,
        handler: Guarded<Reply>,
        deadline: Option<Instant>,
        message: &Message,
        permit: &mut Permit,
    ) -> Option<Reply> {
        let is_check = permit.is_check;
        let reply = run(handler, deadline, message, permit);
        if !self.shared.settings.cancel_on_disconnect {
            if !is_check {
                return Some(reply.await);
            }
            // The hook of a stranger who is gone ends with it, or strangers who come and go fill the room of others.
            return tokio::select! {
                reply = reply => Some(reply),
                () = self.stranger_left() => None,
            };
        }
        tokio::select! {
            reply = reply => Some(reply),
            _ = self.closed() => None,
        }
    }

    fn spawn_call(
        &self,
        handler: Guarded<Reply>,
        deadline: Option<Instant>,
        message: Message,
        mut permit: Permit,
        pushes_before: PushesSoFar,
    ) {
        let seq = message.header().seq();
        permit.keep(&message);
        let mut state = self.shared.state.lock();
        // A number that a peer uses twice at once finds its first call only.
        let remember = state.proto.peer_can(Capabilities::CANCEL)
            && !state.running.as_ref().is_some_and(|running| running.contains_key(&seq));
        if remember {
            state.running.get_or_insert_default().insert(seq, None);
        }
        // Not under the lock: a runtime that is shutting down drops the handler on the spot, and with
        // it perhaps a call of its own on this connection.
        drop(state);
        let task = tokio::spawn(async move {
            let connection = permit.connection.clone();
            let mut reply = connection.run_while_wanted(handler, deadline, &message, &mut permit).await;
            if let Some(reply) = reply.as_mut().filter(|reply| takes_long_to_pack(&message, reply))
                && let Ok(payload) = &mut reply.outcome
            {
                permit.charge(payload.len());
                *payload = packing::pack(std::mem::take(payload), connection.id().get()).await;
                reply.packed = true;
                reply.held = None;
            }
            if remember {
                let mut state = connection.shared.state.lock();
                if state.take_running(seq).is_none() {
                    return;
                }
            }
            if let Some(reply) = reply {
                connection.reply(&message, reply, Lane::Reply, Some(pushes_before));
                connection.flush();
            }
        });
        if remember {
            match self.shared.state.lock().running.as_mut().and_then(|running| running.get_mut(&seq)) {
                Some(entry) => *entry = Some(task.abort_handle()),
                // Done already, or cancelled: then it stops at its next `await`.
                None => task.abort(),
            }
        }
    }

    fn finish_hello(&self, hello: &Hello, message: &Message, outcome: Result<(), NotLetIn>) {
        let header = message.header().reply();
        let mut sessions = false;
        let frame = match &outcome {
            Ok(()) => {
                let said = message.metadata();
                let methods = self.shared.settings.announced.take(said.get(keys::METHODS));
                let welcome = {
                    let mut state = self.shared.state.lock();
                    state.set_methods(methods);
                    state.note_limit_of_peer(&said, self.limits());
                    state.proto.on_hello_accepted(hello, self.shared.settings.capabilities)
                };
                sessions = welcome.capabilities.contains(Capabilities::SESSIONS);
                let pairs = if sessions { self.shared.inlet.welcome_pairs(self, &said) } else { Ok(Metadata::new()) };
                let mut pairs = match pairs {
                    Ok(pairs) => pairs,
                    Err(retry_after) => {
                        let why = "a later attempt of this client was let in before";
                        return self.refuse_for_now(message, why, retry_after);
                    }
                };
                welcome.put(&mut pairs);
                pairs.insert(keys::BODY_BYTES_MAX, self.limits().body_bytes().to_string());
                Message::new(header, "", "", &pairs, &[])
            }
            Err(NotLetIn::NotNow { text, retry_after }) => {
                self.refuse_for_now(message, text, *retry_after);
                // Nothing behind the Hello is run: the connection takes nothing any more.
                self.hello_is_refused();
                return self.end_check();
            }
            Err(NotLetIn::Refused(code, text)) => {
                let refusal = Metadata::new().with(keys::ERROR, cut(text)).with(keys::ERROR_CODE, code.name());
                Message::new(header.with_status(Status::ERROR), "", "", &refusal, &[])
            }
        };
        self.control(frame.frame());
        match outcome {
            Ok(()) => self.welcome_is_queued(),
            Err(_) => self.hello_is_refused(),
        }
        match outcome {
            Ok(()) if self.shared.inlet.hello_shows_token() => self.trust(),
            Ok(()) | Err(_) => self.end_check(),
        }
        match outcome {
            Err(NotLetIn::Refused(ErrorCode::Unauthenticated, text)) => {
                self.close_after_flush(CloseReason::Unauthenticated(text));
            }
            _ if sessions => self.shared.inlet.on_welcome_sent(self),
            // What waited for the answer goes on its way.
            _ => self.shared.inlet.handle_room(self),
        }
    }
}

/// Said to whom a server that stops turns away.
const STOPPING: &str = "the server is shutting down";

/// Why a Hello is not welcomed.
enum NotLetIn {
    Refused(ErrorCode, String),
    /// It may be later.
    NotNow {
        text: String,
        retry_after: Duration,
    },
}

/// Whole milliseconds travel, and a moment too early is in vain.
fn in_whole_millis(wait: Duration) -> Duration {
    Duration::from_millis(u64::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u64::MAX))
}

/// True if packing this reply as its request was packed would hold up whoever does it.
fn takes_long_to_pack(request: &Message, reply: &Reply) -> bool {
    let is_large = |payload: &Bytes| packing::IN_LINE_BYTES < payload.len();
    request.header().compress() == CompressType::GZIP && reply.outcome.as_ref().is_ok_and(is_large)
}

/// What the auth hook makes of a Hello. A hook that panics has not said that the token is wrong: the client stays, as
/// a plain one.
fn checked(outcome: Result<Result<(), AuthError>, Panicked>) -> Result<(), NotLetIn> {
    match outcome {
        Ok(Ok(())) => Ok(()),
        Ok(Err(AuthError::Refused(text))) => Err(NotLetIn::Refused(ErrorCode::Unauthenticated, text)),
        Ok(Err(AuthError::NotNow { text, retry_after })) => {
            Err(NotLetIn::NotNow { text, retry_after: in_whole_millis(retry_after) })
        }
        Err(panicked) => Err(NotLetIn::Refused(ErrorCode::Internal, panicked_text(&panicked, "", "auth"))),
    }
}

/// Polls a handler for the first time, without a task; one whose arguments may take long to decode is not polled.
#[inline(always)]
fn poll_first(handler: &mut Guarded<Reply>, message: &Message) -> Poll<Reply> {
    if packing::IN_LINE_BYTES < message.frame().len() {
        return Poll::Pending;
    }
    // Polled again by its task if it is not ready, so that the waker of this poll is never needed.
    let mut cx = Context::from_waker(Waker::noop());
    handler.poll_or(&mut cx, |panic| panicked(&panic, message))
}

/// Runs a handler to its end, its panic or its caller's deadline.
async fn run(mut handler: Guarded<Reply>, deadline: Option<Instant>, message: &Message, permit: &mut Permit) -> Reply {
    let done = |outcome: Result<Reply, Panicked>| outcome.unwrap_or_else(|panic| panicked(&panic, message));
    match deadline {
        None => done(handler.await),
        Some(deadline) => match tokio::time::timeout_at(deadline, &mut handler).await {
            Ok(outcome) => done(outcome),
            Err(_) => {
                drop(handler);
                if permit.retire() && !message.header().is_oneway() {
                    tokio::time::sleep(LATE_REFUSAL).await;
                }
                Reply::refused(ErrorCode::Timeout, "the caller's deadline passed before the handler was done")
            }
        },
    }
}

/// Panics that the log of a process has in ten seconds as errors; of more it has the ids at level debug.
const PANICS_TOLD: u32 = 16;

/// The reply of a handler that panicked: an id for the caller, everything else for the log.
///
/// Go sends the arguments and a stack to the caller.
fn panicked(panic: &Panicked, message: &Message) -> Reply {
    Reply::refused(ErrorCode::Internal, panicked_text(panic, message.service_path(), message.service_method()))
}

fn panicked_text(panic: &Panicked, service_path: &str, service_method: &str) -> String {
    /// The caller is told to look for its id: not only one in a while is there.
    static TOLD: Calm = Calm::new(PANICS_TOLD);
    let id = format!("{:016x}", rand::random::<u64>());
    let (service_path, service_method, panic) = (Said(service_path), Said(service_method), Said(panic.text()));
    tell!(TOLD, error, %id, ?service_path, ?service_method, ?panic, "a handler panicked");
    format!("internal error, id {id}: the server's log has more")
}

#[cfg(test)]
mod tests;
