//! Calls to the peer: their place in the table, the wait for the reply, and what a dropped future leaves.

use std::{
    num::NonZero,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use bothways_proto::{
    Capabilities, CompressType, FrameParts, Greeting, Header, Message, MessageKind, Metadata, Names, Role, Seq, keys,
};
use bytes::Bytes;
use tokio::{runtime::Handle, sync::oneshot, time::Instant};

use super::{Connection, State, TO_CLIENT, after, control::compressed, lanes::Lane, outbox::Refused};
use crate::{
    caller::{Caller, RawCall, RawReply},
    error::{Beside, CallError, CloseReason, ErrorCode, PushError, ReservedName},
};

/// The caller that waits for a reply.
pub(super) enum Waiter {
    Call { reply: oneshot::Sender<Result<Message, CallError>>, number: u64 },
    Hello,
    Ping,
}

impl Waiter {
    pub(super) fn is_call(&self) -> bool {
        matches!(self, Self::Call { .. })
    }
}

/// A call that was sent.
struct Begun<'a> {
    /// Dropped before the guard, which drops the other end under the lock: nobody is woken by that.
    reply: oneshot::Receiver<Result<Message, CallError>>,
    guard: Forget<'a>,
    written: Written,
}

/// Which thread or task writes a call that was queued.
enum Written {
    /// Its caller: nobody else is about to call, or it was the last who was.
    AtOnce,
    /// A task that its caller makes, for others too, once every task that is ready on this thread has had its turn.
    Together(Threads),
    /// Who does so already for this thread: such a task, or the driver, which has answered several by one read.
    ByAnother,
}

/// A set of threads, a bit each. From the ninth on threads share bits.
pub(super) type Threads = u8;

/// The set of this thread alone.
pub(super) fn this_thread() -> Threads {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    thread_local! {
        static THIS: Threads = 1 << (NEXT.fetch_add(1, Ordering::Relaxed) % Threads::BITS);
    }
    THIS.with(|this| *this)
}

/// The time that a call has.
#[derive(Clone, Copy)]
pub(crate) struct CallTime {
    /// What the peer is told.
    pub(super) left: Duration,
    pub(crate) end: Instant,
}

impl CallTime {
    /// From now on. `None`: a time that the clock cannot count is none.
    pub(crate) fn new(timeout: Duration) -> Option<Self> {
        Some(Self { left: timeout, end: Instant::now().checked_add(timeout)? })
    }

    /// What is left of it now.
    #[must_use]
    pub(crate) fn rest(self) -> Self {
        Self { left: self.end.saturating_duration_since(Instant::now()), ..self }
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

        let by_push = state.is_called_by_pushes();
        // Taken back before it left, it needs no Cancel.
        let may_be_heard = !state.outbox.forget_call(number);
        if may_be_heard {
            state.note_given_up(seq);
        }
        let tell = may_be_heard
            && (by_push || state.proto.peer_can(Capabilities::CANCEL))
            && state.outbox.has_room_for_cancels();

        let forgotten = state.outbox.take_dropped();
        // The payload is the application's, and what it does when it is dropped may look at this connection.
        drop(state);
        drop(forgotten);

        if tell {
            self.connection.cancel_at_peer(if by_push { seq.unmarked() } else { seq.get() });
            self.connection.flush();
        }
    }
}

/// Calls that are given up before a Hello is answered and are cancelled then. Of more, the rest run on: Cancels take a
/// tenth of a KiB each, and all of them fit where small frames wait.
const GIVEN_UP_MAX: usize = 512;

impl State {
    /// Whether the peer understands a Cancel, its answer to the Hello will say.
    fn note_given_up(&mut self, seq: Seq) {
        if self.proto.greeting() == Greeting::HelloSent {
            let given_up = &mut self.rare().given_up;
            if given_up.len() < GIVEN_UP_MAX {
                given_up.push(seq);
            }
        }
    }

    /// The Hello is answered: takes what is to be cancelled.
    pub(super) fn take_given_up(&mut self) -> Vec<Seq> {
        let given_up = self.rare.as_mut().map(|rare| std::mem::take(&mut rare.given_up));
        given_up.filter(|_| self.proto.peer_can(Capabilities::CANCEL)).unwrap_or_default()
    }
}

#[expect(clippy::manual_async_fn, reason = "an `async fn` has its arguments twice: as they came, and as they are used")]
impl Caller for Connection {
    fn call_raw(&self, call: RawCall<'_>) -> impl Future<Output = Result<RawReply, CallError>> + Send {
        async move {
            self.check_reserved(&call)?;
            let time = call.options.timeout.map(|timeout| CallTime { left: timeout, end: after(timeout) });
            self.call_within(&call, time).await
        }
    }

    fn push_raw(&self, push: RawCall<'_>) -> impl Future<Output = Result<(), PushError>> + Send {
        async move {
            self.check_reserved(&push)?;
            self.push_within(&push, push.options.timeout.unwrap_or_default()).await
        }
    }
}

/// What a caller makes of the frame that answers its call.
fn raw_reply(message: Message, unpacked: Option<Bytes>, connection: &Connection) -> Result<RawReply, CallError> {
    if let Some(text) = message.error_text() {
        let code = message.metadata().get(keys::ERROR_CODE).and_then(ErrorCode::from_name);
        // In what a plain peer says this pair is an application's.
        let code = code.filter(|_| connection.is_negotiated());
        let beside = Beside::of(message, connection.is_negotiated(), connection.limits());
        return Err(CallError::Remote { text, code, beside });
    }
    let (serialize, mut metadata) = (message.header().serialize(), message.metadata());
    if message.header().kind() == MessageKind::Request {
        // A plain client's request that answers: what says so is for the framework, and its token for nobody else.
        metadata = metadata.without_reserved();
    }
    let payload = match unpacked {
        Some(payload) => payload,
        None => message.into_payload(connection.limits()).map_err(|error| CallError::Decode(error.into()))?,
    };
    Ok(RawReply { serialize, payload, metadata })
}

/// The pairs of a call or a message, if more than its own go with it.
pub(super) fn with_more(metadata: &Metadata, token: Option<&str>, time: Option<CallTime>) -> Option<Metadata> {
    if token.is_none() && time.is_none() {
        return None;
    }
    let mut metadata = metadata.clone();
    if let Some(token) = token {
        metadata.insert(keys::AUTH, token);
    }
    if let Some(time) = time {
        // At least one: the peer takes zero for a deadline that has passed.
        metadata.insert(keys::SERVER_TIMEOUT, time.left.as_millis().max(1).to_string());
    }
    Some(metadata)
}

/// Turns that callers who were answered together are waited for.
pub(super) const CALLERS_TURNS: NonZero<u8> = NonZero::new(16).expect("not 0");

/// Writes for all who rely on it, also if the task that was to do it is dropped.
struct FlushOnDrop {
    connection: Connection,
    thread: Threads,
}

impl FlushOnDrop {
    /// A turn ends early on a busy thread, and a neighbour may have taken over some of the callers: as long as more of
    /// them come back they are waited for. That takes 0.93 of the CPU time of one turn, at 64 connections with 16 calls
    /// in flight each: `compare --only pair-64x16-raw` shows its loss, and `docs/decisions/when-callers-write.md` says
    /// what was tried.
    async fn wait_for_callers(&self) {
        let mut due = u8::MAX;
        for _ in 0..CALLERS_TURNS.get() {
            tokio::task::yield_now().await;
            let still_due = self.connection.shared.state.lock().callers_due;
            if !(1..due).contains(&still_due) {
                break;
            }
            due = still_due;
        }
    }
}

impl Drop for FlushOnDrop {
    fn drop(&mut self) {
        let mut state = self.connection.shared.state.lock();
        state.callers_had_their_turn(self.thread);
        // A write takes the lock itself.
        drop(state);
        self.connection.flush();
    }
}

impl Connection {
    /// Tells the peer that the call of this number is given up.
    pub(super) fn cancel_at_peer(&self, number: u64) {
        self.control_request(keys::CANCEL, &Metadata::new().with(keys::CANCEL_SEQ, number.to_string()));
    }

    /// Writes, after every task that is ready now on this thread has had its turn. Callers whose replies came in one
    /// read are ready together, and so are their next calls: these leave in one write instead of one each. Each thread
    /// has a flush of its own: a task that blocks its thread holds up the calls of that thread, and no others.
    ///
    /// A task of its own does it: a caller may hold its future without polling it, and must not hold up others by that.
    fn flush_together(&self, thread: Threads) {
        let flush = FlushOnDrop { connection: self.clone(), thread };
        // Without a runtime it is dropped here, and so writes at once.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { flush.wait_for_callers().await });
        }
    }

    /// That it names nothing that only the framework may; to a client, no caller's token either.
    fn check_reserved(&self, call: &RawCall<'_>) -> Result<(), ReservedName> {
        match self.goes_to_client() {
            true => call.check_for_client(),
            false => call.check_reserved(),
        }
    }

    /// True at a server: its peer is a client. Asked of each call and push, and so without the lock.
    pub(super) fn goes_to_client(&self) -> bool {
        self.shared.reads_as(TO_CLIENT)
    }

    /// As [`Caller::call_raw`], except for the time of the call, which is this one. The call is only borrowed: code
    /// that tries it at several servers copies nothing of it.
    ///
    /// A future is copied, all of it, where it is made and wherever it is awaited within another. So what is seldom
    /// needed is put aside, here and in the futures around this one, and nothing large is kept over an `await`: what a
    /// `match` looks at is kept over those of its arms.
    #[expect(
        clippy::manual_async_fn,
        reason = "an `async fn` has its arguments twice: as they came, and as they are used"
    )]
    pub(crate) fn call_within(
        &self,
        call: &RawCall<'_>,
        time: Option<CallTime>,
    ) -> impl Future<Output = Result<RawReply, CallError>> + Send {
        async move {
            if let Some(CallTime { left: Duration::ZERO, .. }) = time {
                // Nobody would wait for the reply: nothing is sent.
                return Err(CallError::TimedOut(Duration::ZERO));
            }
            let Some(begun) = self.begin_call(call, time)? else {
                return Box::pin(self.call_when_greeted(call, time)).await;
            };
            self.finish_call(begun, time).await
        }
    }

    /// Makes a call that cannot be sent before the Hello is answered.
    async fn call_when_greeted(&self, call: &RawCall<'_>, time: Option<CallTime>) -> Result<RawReply, CallError> {
        loop {
            // If this takes all of the time, nothing was sent.
            let greeted = self.within(time, self.hello_answered()).await;
            greeted.map_err(|_| CallError::TimedOut(Duration::ZERO))?;
            // The peer is told what is left then.
            if let Some(begun) = self.begin_call(call, time.map(CallTime::rest))? {
                return self.finish_call(begun, time).await;
            }
        }
    }

    /// Writes a call that was begun, and waits for its reply.
    #[expect(
        clippy::manual_async_fn,
        reason = "an `async fn` has its arguments twice: as they came, and as they are used"
    )]
    fn finish_call(
        &self,
        mut begun: Begun<'_>,
        time: Option<CallTime>,
    ) -> impl Future<Output = Result<RawReply, CallError>> + Send {
        async move {
            // All of it: what is not named here is not kept for the wait.
            let begun = &mut begun;
            match begun.written {
                Written::AtOnce => drop(self.flush()),
                Written::Together(thread) => self.flush_together(thread),
                Written::ByAnother => {}
            }

            let reply = match time {
                None => (&mut begun.reply).await,
                // With a timer it is as large as all the rest.
                Some(_) => Box::pin(self.within(time, &mut begun.reply)).await?,
            };
            // The call is over: there is nothing left for the guard to cancel.
            begun.guard.seq = None;

            let unpacking = {
                let reply = reply.expect("a waiter is answered before it leaves the table")?;
                if reply.header().compress() == CompressType::NONE {
                    return raw_reply(reply, None, self);
                }
                Box::pin(self.unpacked(reply, time))
            };
            unpacking.await
        }
    }

    async fn unpacked(&self, reply: Message, time: Option<CallTime>) -> Result<RawReply, CallError> {
        let payload = self.within(time, self.unpack_reply(&reply)).await??;
        raw_reply(reply, Some(payload), self)
    }

    /// The payload of a reply that came packed, unpacked when there is room for it; a large one apart from its caller.
    /// The room is given back as the caller gets it.
    async fn unpack_reply(&self, reply: &Message) -> Result<Bytes, CallError> {
        if reply.error_text().is_some() {
            return Ok(Bytes::new());
        }
        let unpacked = self.unpack(reply, &self.shared.settings.reply_room).await;
        unpacked.map(|(payload, _)| payload).map_err(|error| CallError::Decode(error.into()))
    }

    /// As [`Caller::push_raw`], waiting up to `wait` for room in the queue.
    pub(crate) async fn push_within(&self, push: &RawCall<'_>, wait: Duration) -> Result<(), PushError> {
        let RawCall { service_path, service_method, serialize, payload, options } = push;
        self.with_room(wait, || self.push(service_path, service_method, *serialize, &options.metadata, payload))
            .await
            .map(|_| ())
    }

    async fn hello_answered(&self) {
        loop {
            let changed = self.shared.changed.notified();
            let pending = |state: &State| state.proto.greeting().is_pending() && state.check_open().is_ok();
            if !pending(&self.shared.state.lock()) {
                return;
            }
            changed.await;
        }
    }

    /// Queues a call. `None`: it cannot be sent before the Hello is answered.
    fn begin_call(&self, call: &RawCall<'_>, time: Option<CallTime>) -> Result<Option<Begun<'_>>, CallError> {
        let shared = &*self.shared;
        let more = with_more(&call.options.metadata, shared.settings.token.as_deref(), time);
        let metadata = more.as_ref().unwrap_or(&call.options.metadata);

        let header = Header::request(Seq::default(), call.serialize);
        // Packing takes long: not under the lock.
        let packed = (shared.settings.compress != CompressType::NONE)
            .then(|| compressed(header, call.payload.clone(), shared.settings.compress));
        let (header, payload) = packed.as_ref().map_or((header, &call.payload), |(header, payload)| (*header, payload));

        self.catch_up();
        let mut state = shared.state.lock();
        if !state.may_call(call)? {
            return Ok(None);
        }

        let by_push = state.is_called_by_pushes();
        let (sender, reply) = oneshot::channel();
        let begun = state.proto.begin_call(Waiter::Call { reply: sender, number: u64::MAX });
        let seq = begun.map_err(|full| CallError::TooManyCalls { max: full.max })?;

        let names = Names::new(call.service_path, call.service_method);
        let payload_len = payload.len();
        let numbered;
        let (header, metadata) = if by_push {
            // A plain client would take a request that wants a reply for the reply to a call of its own.
            numbered = metadata.clone().with(keys::CALL_NUMBER, seq.unmarked().to_string());
            (Header::oneway(Seq::of_push(0), header.serialize()).with_compress(header.compress()), &numbered)
        } else {
            (header.with_seq(seq), metadata)
        };
        let parts = FrameParts { header, names, metadata, payload_len };

        let added = match state.check_limit_of_peer(parts.body_len()) {
            Ok(()) => state.outbox.add(Lane::Call, &parts, payload, self.limits(), &shared.settings.bounds()),
            Err(error) => Err(Refused::TooLarge(error)),
        };
        let number = match added {
            Ok(number) => number,
            Err(refused) => {
                state.proto.forget(seq);
                return Err(refusal_of_call(refused));
            }
        };

        // If the call is given up, the outbox finds its frame by this number.
        if let Some(Waiter::Call { number: of_waiter, .. }) = state.proto.waiter_mut(seq) {
            *of_waiter = number;
        }

        let written = state.who_writes();
        // Lets go of the lock: what is written is written without it.
        self.write_if_much(state);
        Ok(Some(Begun { guard: Forget { connection: self, seq: Some(seq) }, reply, written }))
    }
}

impl State {
    /// Whether the peer may be called so. False: not before the Hello is answered.
    #[inline]
    fn may_call(&self, call: &RawCall<'_>) -> Result<bool, CallError> {
        if let Err(PushError::Closed(reason)) = self.check_open() {
            return Err(CallError::Closed { written: false, reason });
        }
        if self.proto.greeting().is_pending() {
            return Ok(false);
        }
        let takes_calls =
            self.proto.role() == Role::Client || self.is_called_by_pushes() || self.proto.peer_can(Capabilities::CALLS);
        if !takes_calls || self.methods().is_some_and(|all| !all.contains(call.service_path, call.service_method)) {
            return Err(CallError::NotSupported);
        }
        Ok(true)
    }

    /// The callers of this thread that were answered have had their turn: who writes for them is about to.
    pub(super) fn callers_had_their_turn(&mut self, thread: Threads) {
        self.flush_comes &= !thread;
        if self.flush_comes == 0 {
            // A caller that has not called again by now does something else.
            self.callers_due = 0;
        }
    }

    /// Which thread or task writes the call that was just queued.
    #[inline]
    fn who_writes(&mut self) -> Written {
        let (due, here) = (self.callers_due, this_thread());
        self.callers_due = due.saturating_sub(1);
        match (due, self.proto.calls().len()) {
            (0, 1) | (1, _) => Written::AtOnce,
            _ if self.flush_comes & here != 0 => Written::ByAnother,
            _ => {
                self.flush_comes |= here;
                Written::Together(here)
            }
        }
    }
}

#[cold]
fn refusal_of_call(refused: Refused) -> CallError {
    match refused {
        Refused::TooLarge(error) => CallError::TooLarge(error),
        Refused::Full { bytes, .. } | Refused::AllFull { bytes, .. } => CallError::QueueFull { bytes },
        Refused::Disconnect(why) => CallError::Closed { written: false, reason: CloseReason::SlowPeer(why) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Client, ClientOptions, Reply, Request, Server, caller::CallOptions};

    /// A reply that came packed is unpacked when there is room for it, and gives the room back to the next.
    #[tokio::test(start_paused = true)]
    async fn packed_replies_wait_for_room() {
        let echo = |request: Request| {
            let payload = request.payload().expect("it is whole");
            std::future::ready(Reply::ok(payload))
        };
        let server = Server::builder().handler("T", "Echo", echo).build();
        let listening = server.listen("memory@packed_replies").await.expect("the name is free");
        let options = ClientOptions::new().compress(CompressType::GZIP);
        let client = Client::connect(listening.address(), options).await.expect("it listens");
        let call = || RawCall {
            service_path: "T",
            service_method: "Echo",
            serialize: bothways_proto::SerializeType::RAW,
            payload: Bytes::from(vec![7; 1 << 20]),
            options: CallOptions::new().timeout(Duration::from_secs(30)),
        };
        let connection = client.connection().expect("it is up");
        let room = &connection.shared.settings.reply_room;
        let taken = room.take_all(connection.id().get()).await;
        for (time, says) in [(5, "no reply within 5s"), (30, "no room")] {
            let mut call = call();
            call.options = CallOptions::new().timeout(Duration::from_secs(time));
            let error = client.call_raw(call).await.expect_err("there is no room");
            assert!(error.to_string().contains(says), "{error}");
        }
        drop(taken);
        let reply = client.call_raw(call()).await.expect("there is room");
        assert_eq!((reply.payload.len(), room.held()), (1 << 20, (0, 0)));
    }
}
