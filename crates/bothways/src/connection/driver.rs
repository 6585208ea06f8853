//! The one task of a connection.
//!
//! Reads, decodes and hands out; writes when the socket was full. It awaits the socket and nothing
//! else: handlers that are not ready go to tasks of their own, and a queue that is full has a rule.

use std::{
    cell::RefCell,
    future::Future,
    io,
    num::NonZero,
    pin::{Pin, pin},
    sync::atomic::Ordering,
    task::{Context, Poll},
    time::Duration,
};

use bothways_proto::{DecodeError, Deframer, Greeting, Inbound, Message, Role};
use tokio::time::{Instant, Sleep};

use super::{
    BEHIND, Connection, PEER_IS_GONE, Phase, Settings, State, Waiter,
    call::{CALLERS_TURNS, Threads, this_thread},
    handler::ends_something,
    limits::Place,
    lock::Locked,
    recycle::Recycled,
    wire::WRITE_BYTES,
    write::move_bytes,
    writer::{self, Ended, Hand, Writer},
};
use crate::{
    error::CloseReason,
    stats::{Lost, Task},
};

/// One read takes at most this much; the buffer belongs to the thread, so that an idle connection
/// holds none.
pub(super) const READ_BYTES: usize = 64 << 10;

/// Reads of one turn, before other tasks get theirs.
pub(super) const READS: usize = 8;

/// Bytes of one turn that are read: as many as so many reads bring at most.
const TURN_BYTES: usize = READS * READ_BYTES;

/// Most bytes of one read into the place of a large frame: as many as of one write.
const IN_PLACE_BYTES: usize = 256 << 10;

/// Messages of one turn. 256: of the quickest handlers half a millisecond, and as many replies as one write is worth.
pub(super) const MESSAGES: usize = 256;

/// After so long the messages of a read that are still to be handled wait for the next turn: what was answered is
/// written first, and others have their turn.
const TURN_TIME: Duration = Duration::from_millis(1);

/// Messages after which the clock is looked at: that takes as long as a fiftieth of a call.
const CLOCK_EVERY: usize = 4;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// How much of what a peer sends is handled before others have their turn.
#[derive(Default)]
struct Turn {
    messages: usize,
    /// Bytes that were read.
    bytes: usize,
    /// When the first of several messages was begun, by the runtime's clock: where time is paused, a turn ends by its
    /// messages only. A read of one message needs no clock.
    began: Option<Instant>,
    is_over: bool,
}

impl Turn {
    /// A message is about to be handled, and others wait after it.
    fn begin(&mut self) {
        self.began.get_or_insert_with(Instant::now);
    }

    /// That message was handled. True if those after it wait for the next turn.
    fn ends(&mut self) -> bool {
        self.messages += 1;
        let looks = self.messages.is_multiple_of(CLOCK_EVERY);
        self.is_over =
            MESSAGES <= self.messages || (looks && self.began.is_some_and(|began| TURN_TIME <= began.elapsed()));
        self.is_over
    }
}

/// How much the task does before others have their turn: the bytes written since it was woken, [`YIELDS`] and [`MOVED`].
#[derive(Default)]
struct Share(u32);

/// Others have their turn next.
const YIELDS: u32 = 1 << 31;

/// It goes on in another task than the one that was to be woken when others have had their turn.
const MOVED: u32 = 1 << 30;

const FLAGS: u32 = YIELDS | MOVED;

impl Share {
    fn note_moved(&mut self) {
        self.0 |= MOVED;
    }

    fn written(&self) -> usize {
        (self.0 & !FLAGS) as usize
    }

    fn set_written(&mut self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX) & !FLAGS;
        self.0 = self.0 & FLAGS | bytes;
    }

    /// Has the task go on when others have had their turn: those that are ready, and those that the runtime finds to
    /// be ready when it looks at its sockets and timers. A thread whose tasks wake themselves looks only every 61
    /// turns: at 256 KiB each, everybody else waits for 3 ms.
    fn yield_now(&mut self, cx: &mut Context<'_>) {
        self.0 |= YIELDS;
        // The runtime keeps the waker when this future is first polled: it need not live on.
        let _ = pin!(tokio::task::yield_now()).poll(cx);
    }

    /// A new share, unless others are to have their turn first. In a runtime of many threads, what gave way is woken
    /// last and runs first of all that is woken after a look: from here it goes behind them.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match std::mem::take(&mut self.0) & FLAGS {
            0 | MOVED => return Poll::Ready(()),
            YIELDS => cx.waker().wake_by_ref(),
            _ => self.yield_now(cx),
        }
        Poll::Pending
    }
}

/// What few drivers have: none is larger than a task should be.
#[derive(Default)]
struct Rare {
    /// The peer has sent more than its rate allows, and is read from again after this.
    pause: Option<Pin<Box<Sleep>>>,
    /// Bytes that were read and not yet looked at: after the first read of a client, or after a request whose token is
    /// checked. At most [`READ_BYTES`].
    ahead: Vec<u8>,
}

/// Callers of one thread who were answered by one read, and are to have their turn before the driver goes on: what they
/// send in it leaves in one write.
struct Callers {
    thread: Threads,
    /// Who had had no turn when this was looked at last.
    due: u8,
    /// Turns that they are waited for at most.
    turns: NonZero<u8>,
}

/// What the task of a connection is.
pub(super) struct Driver {
    connection: Connection,
    deframer: Deframer<Recycled>,
    share: Share,
    /// Messages that came, to tell one frame that has begun from the next.
    messages: u32,
    /// Bytes of a frame that is not all there, as they are counted for all connections.
    partial: u32,
    /// The watch knows of such a frame.
    is_noted: bool,
    rare: Option<Box<Rare>>,
    callers: Option<Callers>,
    shut_down: bool,
    /// It has not been polled yet.
    is_new: bool,
    /// The connection is over, or at rest.
    done: bool,
}

impl Driver {
    /// It goes on in another task than the one that has polled it.
    pub(super) fn note_moved(&mut self) {
        self.share.note_moved();
    }

    pub(super) fn new(connection: Connection) -> Self {
        if let Some(meters) = &connection.shared.settings.meters {
            meters.begin_task(Task::Driver);
        }
        Self {
            connection,
            deframer: Deframer::default(),
            share: Share::default(),
            messages: 0,
            partial: 0,
            is_noted: false,
            rare: None,
            callers: None,
            shut_down: false,
            is_new: true,
            done: false,
        }
    }

    /// Handles the messages that a read brought, until there is none, the turn is over, or the client lets its
    /// replies pile up: one read may hold a thousand small requests for large replies.
    fn handle_messages(&mut self, turn: &mut Turn) -> Result<(), CloseReason> {
        let mut place = Place::default();
        let shared = &self.connection.shared;
        while !self.deframer.is_drained() {
            // Cut off and understood under one lock, beside the one for the reply: each lock more costs 40 instructions
            // and two atomic operations a message.
            let mut state = shared.state.lock();
            if state.must_not_read(&shared.settings, self.shut_down) || shared.is_checking.load(Ordering::Relaxed) {
                break;
            }

            let message = match self.deframer.next_message(&shared.settings.limits) {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(error) if self.deframer.is_broken() => return Err(error.into()),
                Err(error) => {
                    let is_heard_out = state.is_heard_out();
                    // Who is told of it may be the application, and its client is answered under the lock.
                    drop(state);
                    self.messages = self.messages.wrapping_add(1);
                    if is_heard_out {
                        continue;
                    }
                    self.connection.pass_over(self.deframer.refused(), error)?;
                    continue;
                }
            };

            self.messages = self.messages.wrapping_add(1);
            let are_more = !self.deframer.is_drained();
            if are_more {
                turn.begin();
            }

            let too_many = state.frame_is_too_many(&shared.settings);
            handle_message(&self.connection, state, message, too_many, &mut place)?;
            if turn.ends() && are_more {
                break;
            }
        }
        Ok(())
    }

    /// Handles the messages that a read brought, and writes what they are answered with. `Some`: how the turn ends.
    fn poll_handling(&mut self, turn: &mut Turn, cx: &mut Context<'_>) -> Option<Poll<CloseReason>> {
        match self.handle_messages(turn).and_then(|()| self.check_partial()) {
            Err(reason) => Some(Poll::Ready(reason)),
            Ok(()) if self.poll_replies(cx).is_err() => Some(Poll::Pending),
            Ok(()) if self.callers.is_some() => {
                // Into the queue of this thread, behind them. An idle thread may take the driver from there, so that one
                // who blocks this thread does not keep the driver from reading.
                cx.waker().wake_by_ref();
                Some(Poll::Pending)
            }
            Ok(()) => None,
        }
    }

    /// Ready when the callers that a read has answered have had their turn. As long as more of them call they are waited
    /// for: a turn ends early on a busy thread.
    #[inline]
    fn poll_callers(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(callers) = &mut self.callers else { return Poll::Ready(()) };
        let mut state = self.connection.shared.state.lock();
        let still_due = state.callers_due;
        let turns = NonZero::new(callers.turns.get() - 1);
        if let Some(turns) = turns
            && (1..callers.due).contains(&still_due)
        {
            (callers.turns, callers.due) = (turns, still_due);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        state.callers_had_their_turn(callers.thread);
        self.callers = None;
        Poll::Ready(())
    }

    /// Bounds the frame that has begun and is not all there, or has waited since it was: by what all such frames hold,
    /// and, until a token of its connection was accepted, by less than others.
    #[inline]
    fn check_partial(&mut self) -> Result<(), CloseReason> {
        if self.partial == 0 && self.deframer.partial_bytes() == 0 && self.deframer.finished_bytes() == 0 {
            return Ok(());
        }
        self.count_partial()
    }

    fn count_partial(&mut self) -> Result<(), CloseReason> {
        let settings = &self.connection.shared.settings;
        // A read that ends within a small frame is nothing that counts.
        let held = self.deframer.held_bytes() + self.deframer.finished_bytes();
        let counted = held.saturating_sub(READ_BYTES);
        let before = std::mem::replace(&mut self.partial, u32::try_from(counted).unwrap_or(u32::MAX));
        let (before, now) = (before as usize, self.partial as usize);
        if before != now && !self.connection.count_partial(before, now) {
            let bytes = self.deframer.promised().map_or(0, |(_, bytes)| bytes);
            return Err(CloseReason::NoRoom { bytes });
        }
        match self.untrusted_frame() {
            Some(len) if self.deframer.is_drained() && !self.connection.shared.is_checking.load(Ordering::Relaxed) => {
                let max = settings.unauthenticated_body_bytes_max;
                Err(DecodeError::TooLargeUnauthenticated { len, max }.into())
            }
            _ => Ok(()),
        }
    }

    /// The bytes of the frame that has begun, if it is too large for who has shown no token that was accepted.
    fn untrusted_frame(&self) -> Option<usize> {
        let shared = &self.connection.shared;
        let (_, len) = self.deframer.promised()?;
        let is_untrusted = !shared.is_trusted.load(Ordering::Relaxed);
        let len = len - bothways_proto::PREFIX_LEN;
        (is_untrusted && shared.settings.unauthenticated_body_bytes_max < len).then_some(len)
    }

    /// Tells the watch of the frame that is not all there, or that there is none.
    fn note_partial(&mut self) {
        let bytes = self.deframer.begun_bytes(self.connection.limits());
        if bytes != 0 || self.is_noted {
            self.is_noted = bytes != 0;
            // One that is passed over was counted already: the next one is another.
            let number = if self.deframer.is_passing_over() { !self.messages } else { self.messages };
            let mut state = self.connection.shared.state.lock();
            state.rare().note_frame(number, bytes);
        }
    }

    /// Reads as long as something comes, within the turn's share.
    fn poll_reads(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        let mut buffer = BUFFER.take();
        buffer.resize(READ_BYTES, 0);
        let (mut outcome, mut turn, messages) = (None, Turn::default(), self.messages);
        for _ in 0..READS {
            outcome = self.poll_read_once(&mut turn, &mut buffer, cx);
            if outcome.is_some() || turn.is_over || TURN_BYTES <= turn.bytes {
                break;
            }
        }
        BUFFER.set(buffer);
        if let Some(meters) = self.connection.shared.settings.meters.as_ref().filter(|_| turn.bytes != 0) {
            meters.read(self.messages.wrapping_sub(messages), turn.bytes);
        }

        outcome.unwrap_or_else(|| {
            self.share.yield_now(cx);
            Poll::Pending
        })
    }

    /// Handles what is left of an earlier read, or else reads once and handles that. `Some`: how the turn ends.
    #[inline]
    fn poll_read_once(
        &mut self,
        turn: &mut Turn,
        buffer: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Option<Poll<CloseReason>> {
        let (closing, checking) = {
            // Let go before anything is read or handled: that takes the lock itself, and may call the application.
            let shared = &self.connection.shared;
            let mut state = shared.state.lock();
            if state.must_not_read(&shared.settings, self.shut_down) {
                return Some(Poll::Pending);
            }
            let closing = !state.can_answer() && !state.is_heard_out();
            (closing, shared.is_checking.load(Ordering::Relaxed))
        };

        if !closing {
            if checking && (!self.deframer.is_drained() || self.untrusted_frame().is_some()) {
                // What a token opens waits for the token, unless the client is gone.
                return Some(self.poll_end(cx, buffer));
            }

            if !self.deframer.is_drained() {
                return self.poll_handling(turn, cx);
            }
            if let Err(reason) = self.check_partial() {
                // Its token was refused, or its check is over without one.
                return Some(Poll::Ready(reason));
            }

            if self.poll_pause(cx).is_pending() {
                return Some(Poll::Pending);
            }
        }

        // Never 0: a read of 0 bytes means the end of the stream.
        let bytes_max = TURN_BYTES.saturating_sub(turn.bytes).max(1);
        match self.poll_take_in(cx, buffer, bytes_max, !closing) {
            Poll::Pending => {
                // All was read: from here on silence is the peer's.
                self.connection.shared.note_reading(BEHIND, false);
                Some(Poll::Pending)
            }
            Poll::Ready(Ok(0)) if self.deframer.is_mid_frame() => Some(Poll::Ready(CloseReason::PeerClosedMidFrame)),
            Poll::Ready(Ok(0)) => Some(Poll::Ready(CloseReason::PeerClosed)),
            Poll::Ready(Ok(n)) => {
                self.connection.shared.note_reading(BEHIND, true);
                let is_first = self.connection.shared.reads.fetch_add(1, Ordering::Relaxed) == 0;
                turn.bytes += n;
                // Once a server closes, what still comes is dropped.
                if closing {
                    return None;
                }

                self.pause_after(n);
                if is_first {
                    self.look_ahead(cx);
                }
                self.poll_handling(turn, cx)
            }
            Poll::Ready(Err(error)) => Some(Poll::Ready(error.into())),
        }
    }

    /// Ready when the peer may be read from.
    fn poll_pause(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(rare) = &mut self.rare else { return Poll::Ready(()) };
        if let Some(pause) = &mut rare.pause {
            std::task::ready!(pause.as_mut().poll(cx));
            rare.pause = None;
        }
        self.drop_unused();
        Poll::Ready(())
    }

    /// A driver that has nothing to wait for, and nothing that was read ahead, may rest.
    fn drop_unused(&mut self) {
        self.rare.take_if(|rare| rare.pause.is_none() && rare.ahead.is_empty());
    }

    fn has_read_ahead(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| !rare.ahead.is_empty())
    }

    /// While what was read waits for the token that opens it: has the client ended its side behind that? One that has sent
    /// more than [`READ_BYTES`] by then is not known to be gone before the check is over.
    fn poll_end(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<CloseReason> {
        let ahead = &mut self.rare.get_or_insert_default().ahead;
        while ahead.len() < READ_BYTES {
            let room = READ_BYTES - ahead.len();
            match self.connection.shared.socket.poll_read(cx, &mut buffer[..room]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(CloseReason::PeerClosed),
                Poll::Ready(Ok(n)) => ahead.extend_from_slice(&buffer[..n]),
                Poll::Ready(Err(error)) => return Poll::Ready(error.into()),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Pending
    }

    /// Before a server looks at the first frame: has its client given the connection up already? The Hello of such a
    /// one, read late, must not take a session from the connection that its client has since.
    fn look_ahead(&mut self, cx: &mut Context<'_>) {
        {
            let state = self.connection.shared.state.lock();
            if state.proto.greeting() != Greeting::Unknown || state.proto.role() != Role::Server {
                return;
            }
        }
        let mut byte = [0];
        match self.connection.shared.socket.poll_read(cx, &mut byte) {
            Poll::Pending => {}
            Poll::Ready(Ok(1..)) => self.rare.get_or_insert_default().ahead.push(byte[0]),
            // The next read finds it again.
            Poll::Ready(Ok(0) | Err(_)) => self.connection.shared.note_reading(PEER_IS_GONE, true),
        }
    }

    /// Reads from the socket, and first what was read of it ahead.
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let socket = &self.connection.shared.socket;
        let Some(rare) = &mut self.rare else { return socket.poll_read(cx, buffer) };
        let len = rare.ahead.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rare.ahead[..len]);
        rare.ahead.drain(..len);
        if len == 0 {
            self.drop_unused();
            return self.connection.shared.socket.poll_read(cx, buffer);
        }
        if len == buffer.len() {
            return Poll::Ready(Ok(len));
        }
        match socket.poll_read(cx, &mut buffer[len..]) {
            Poll::Ready(Ok(n)) => Poll::Ready(Ok(len + n)),
            // What is wrong is found again by the next read.
            Poll::Ready(Err(_)) | Poll::Pending => Poll::Ready(Ok(len)),
        }
    }

    /// Reads what comes next, and takes it in, or drops it. The rest of a large frame is read in its place.
    #[inline]
    fn poll_take_in(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
        bytes_max: usize,
        is_wanted: bool,
    ) -> Poll<io::Result<usize>> {
        let shared = &self.connection.shared;
        let (settings, socket) = (&shared.settings, &shared.socket);

        // Bytes that were read ahead come first: they go through `poll_read`.
        if is_wanted
            && !self.has_read_ahead()
            && let Some(space) = self.deframer.space()
        {
            let room = settings.read_bytes_max(space.len().min(IN_PLACE_BYTES).min(bytes_max));
            let read = socket.poll_read(cx, &mut space[..room]);
            if let Poll::Ready(Ok(n)) = &read {
                self.deframer.filled(*n);
            }
            return read;
        }

        let room = settings.read_bytes_max(buffer.len());
        let read = self.poll_read(cx, &mut buffer[..room]);
        if let Poll::Ready(Ok(n)) = &read
            && is_wanted
        {
            self.deframer.feed(&buffer[..*n], self.connection.limits());
        }
        read
    }

    /// So many bytes were read: perhaps that is enough for now. Only who is held back has a timer.
    fn pause_after(&mut self, bytes: usize) {
        let shared = &self.connection.shared;
        if shared.settings.bytes_rate.is_some() {
            let pause = shared.state.lock().pause_after(&shared.settings, bytes);
            if let Some(pause) = pause {
                self.rare.get_or_insert_default().pause = Some(Box::pin(tokio::time::sleep(pause)));
            }
        }
    }

    /// Writes what waits, and arranges a wake-up if the socket is full, or if [`WRITE_BYTES`] were written since
    /// the last one: then others have their turn first. `Err`: the connection ended.
    fn poll_writes(&mut self, cx: &mut Context<'_>) -> Result<(), ()> {
        let state = self.connection.shared.state.lock();
        write(&self.connection, state, &mut self.share, cx)
    }

    /// Writes the replies to what was just read. If the socket is full, or somebody wrote enough for now, that
    /// has arranged a wake-up already.
    fn poll_replies(&mut self, cx: &mut Context<'_>) -> Result<(), ()> {
        let mut state = self.connection.shared.state.lock();
        let (due, thread) = (state.callers_due, this_thread());
        if 2 <= due && state.flush_comes & thread == 0 {
            state.flush_comes |= thread;
            self.callers = Some(Callers { thread, due, turns: CALLERS_TURNS });
        }
        if state.outbox.writer == Writer::Idle { write(&self.connection, state, &mut self.share, cx) } else { Ok(()) }
    }

    /// Ends the sending direction once everything is written.
    fn poll_closing(&mut self, cx: &mut Context<'_>) {
        if self.shut_down {
            return;
        }

        let shared = &*self.connection.shared;
        let mut state = shared.state.lock();
        let drained = state.outbox.is_empty() && state.outbox.writer == Writer::Idle;

        // While a handler runs, its end wakes the driver, and this looks again.
        if let Phase::Answering(reason) = &state.phase
            && drained
            && shared.calls_running.load(Ordering::SeqCst) == 0
        {
            let reason = reason.clone();
            if self.connection.say_taken(&mut state) {
                // The next turn writes that.
                cx.waker().wake_by_ref();
                return;
            }
            state.phase = Phase::Closing(reason);
        }
        let drained = drained && matches!(state.phase, Phase::Closing(_));

        // The socket is asked without the lock: over TLS, its end is written by this.
        drop(state);
        if drained && self.connection.shared.socket.poll_shutdown(cx).is_ready() {
            // From here the peer is read until it ends its side, and at a server what comes is dropped: closing with
            // bytes unread would make the kernel reset the connection, and lose our last frames.
            self.shut_down = true;
        }
    }

    /// Nothing more can be read, for this reason.
    fn handle_end(&mut self, reason: CloseReason, cx: &mut Context<'_>) {
        use CloseReason::{BadFrame, NoRoom, PeerClosed, PeerClosedMidFrame};
        let connection = &self.connection;
        let header = self.deframer.promised().map(|(header, _)| header).or(self.deframer.refused());
        let told = connection.tell_why(header, &reason);

        // Nothing more of what came is looked at.
        self.deframer = Deframer::default();
        connection.count_partial(self.partial as usize, 0);
        self.partial = 0;

        let may_answer = matches!(reason, PeerClosed | PeerClosedMidFrame | BadFrame(_) | NoRoom { .. });
        if may_answer && connection.answer_the_rest(&reason) {
            // What is there to answer may be done this moment: the next turn looks.
            cx.waker().wake_by_ref();
            return;
        }

        if told {
            connection.close_after_flush(reason);
            cx.waker().wake_by_ref();
            return;
        }

        // If an end was announced or begun before, its reason stands.
        let reason = match &connection.shared.state.lock().phase {
            Phase::Closing(ours) | Phase::Draining(ours) => CloseReason::clone(ours),
            _ => reason,
        };
        connection.close_now(reason);
    }

    fn finish(&mut self) {
        if !self.done {
            self.done = true;
            self.connection.count_partial(self.partial as usize, 0);
            self.partial = 0;
            self.connection.close_now(CloseReason::Local);
            self.connection.leave_rooms();
            self.connection.shared.socket.close();
            let reason = self.connection.close_reason().expect("it was just closed");
            self.connection.shared.handler.handle_closed(&self.connection, &reason);
        }
    }
}

impl State {
    /// True while the driver must not read, which it is asked before every read and every message. A server does
    /// not read on while a client lets its replies pile up; the write deadline bounds it.
    fn must_not_read(&mut self, settings: &Settings, shut_down: bool) -> bool {
        self.paused = match self.phase {
            Phase::Closed(_) => true,
            // A server that waits for its client to read would not read the last of it.
            Phase::Closing(_) => !shut_down && !self.is_heard_out(),
            Phase::Answering(_) => true,
            Phase::Open | Phase::Draining(_) => self.proto.role() == Role::Server && self.unread_piles_up(settings),
        };
        self.paused
    }

    /// True if the peer asks and does not read what it is answered, be it calls or heartbeats.
    fn unread_piles_up(&self, settings: &Settings) -> bool {
        self.replies_pile_up(settings)
            || self.outbox.control_piles_up()
            || self.outbox.holds_much(settings.load.outgoing())
    }

    /// True if the peer calls and does not read what it is answered.
    fn replies_pile_up(&self, settings: &Settings) -> bool {
        settings.reply_bytes_max < self.outbox.reply_bytes()
    }

    /// True if there is nothing to do but to read.
    pub(super) fn is_quiet(&self) -> bool {
        matches!(self.phase, Phase::Open)
            && self.outbox.is_empty()
            && self.outbox.writer == Writer::Idle
            && !self.writable_wanted
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this.share.poll_next(cx).is_pending() || this.poll_callers(cx).is_pending() {
            return Poll::Pending;
        }

        let is_new = std::mem::take(&mut this.is_new);
        let (quiet, asked) = {
            // Let go: what follows takes the lock itself.
            let mut state = this.connection.shared.state.lock();
            state.driving.note(cx.waker());
            (state.is_quiet(), std::mem::take(&mut state.watch.rest_wanted))
        };

        // Most wake-ups are for reading: to find that out by trying to write takes two locks more. The step `serve1`
        // of `compare instructions` shows it.
        let goes_on = if quiet { flush(&this.connection, cx) } else { this.poll_writes(cx) };
        if goes_on.is_ok() {
            if !quiet {
                this.poll_closing(cx);
            }
            if let Poll::Ready(reason) = this.poll_reads(cx) {
                this.handle_end(reason, cx);
            }
        }

        if !this.connection.is_closed() {
            // Between frames the deframer keeps nothing.
            this.note_partial();

            let may_rest = (is_new || asked)
                && this.rare.is_none()
                && this.callers.is_none()
                && this.deframer.is_drained()
                && !this.deframer.is_mid_frame();
            if may_rest && this.connection.poll_rest(is_new, asked) {
                this.done = true;
                return Poll::Ready(());
            }
            return Poll::Pending;
        }

        if !this.shut_down {
            // The peer sees an end of the stream even if handles keep the socket alive.
            let _ = this.connection.shared.socket.poll_shutdown(cx);
        }
        this.finish();
        Poll::Ready(())
    }
}

impl Drop for Driver {
    /// A runtime that shuts down drops its tasks: a caller that waits is told all the same.
    fn drop(&mut self) {
        self.finish();
        if let Some(meters) = &self.connection.shared.settings.meters {
            meters.end_task(Task::Driver);
        }
    }
}

/// Writes what waits; see [`Driver::poll_writes`].
fn write<'a>(connection: &'a Connection, state: Locked<'a>, share: &mut Share, cx: &mut Context<'_>) -> Result<(), ()> {
    let socket = &connection.shared.socket;
    let mut turn =
        writer::Turn { hand: Hand::Driver, batches: usize::MAX, written: share.written(), bytes_max: WRITE_BYTES };

    let (mut state, ended) = writer::write(connection, state, &mut turn, |wire, done| {
        move_bytes(wire, done, |slices| socket.poll_write(cx, slices))
    });
    share.set_written(turn.written);

    let mut writable_wanted = false;
    match ended {
        Ended::Done => writable_wanted = std::mem::take(&mut state.writable_wanted),
        Ended::Left => {}
        Ended::Yield => share.yield_now(cx),
        Ended::Failed(error) => {
            connection.end(&mut state, error.into());
            return Err(());
        }
    }
    // The layer above has locks of its own, and sends from there.
    drop(state);

    if writable_wanted {
        connection.shared.handler.on_writable(connection);
    }
    flush(connection, cx)
}

/// Moves on what the socket itself holds. `Err`: the connection ended.
fn flush(connection: &Connection, cx: &mut Context<'_>) -> Result<(), ()> {
    match connection.shared.socket.poll_flush(cx) {
        Poll::Ready(Err(error)) => {
            connection.close_now(error.into());
            Err(())
        }
        // A flush that is not done has arranged its own wake-up.
        _ => Ok(()),
    }
}

/// Does what a message asks for. A part of the loop over messages: as a function of its own it costs 60 instructions a
/// message.
#[inline(always)]
fn handle_message<'a>(
    connection: &'a Connection,
    mut state: Locked<'a>,
    message: Message,
    too_many: bool,
    place: &mut Place,
) -> Result<(), CloseReason> {
    if !state.can_answer() {
        // A frame before it in the same read ended the connection, such as a refused token; or this is a client that
        // closes it.
        connection.hear_at_end(state, message);
        return Ok(());
    }

    if state.proto.greeting() == Greeting::Unknown && state.proto.role() == Role::Server {
        // Let go: the code that admits clients has locks of its own. What it decides may have ended the connection.
        drop(state);
        connection.admit(&message)?;
        state = connection.shared.state.lock();
        if !state.can_answer() {
            return Ok(());
        }
    }

    state.watch.note_message();
    let inbound = state.proto.handle_message(message)?;
    let asks_first = state.proto.on_inbound(&inbound);

    // Each arm lets go of the lock before it calls the application, or what takes the lock itself.
    match inbound {
        Inbound::Reply(Waiter::Call { reply, .. }, message) => {
            state.callers_due = state.callers_due.saturating_add(1);
            drop(state);
            // Nobody listens if the call's future was dropped this moment.
            let _ = reply.send(Ok(message));
        }
        Inbound::Reply(Waiter::Hello, message) => connection.hello_is_answered(state, &message),
        Inbound::Reply(Waiter::Ping, _) => {}
        Inbound::Late(_) => {
            state.rare().late_replies += 1;
            connection.shared.settings.count_drops(Lost::LateReply, 1);
        }
        Inbound::Cancel(seq) => {
            drop(state);
            connection.cancel(seq);
        }
        Inbound::Goodbye(message) => connection.handle_goodbye(state, &message),
        Inbound::Taken(message) => Connection::hear_taken(&mut state, &message.metadata()),
        Inbound::Call(message) => handle_call(connection, state, message, too_many, place),
        // Acknowledgements and the like are worth their place.
        Inbound::Push(message) if too_many && !ends_something(&message) => {
            state.rare().oneways_refused += 1;
            connection.shared.settings.count_drops(Lost::OnewayRefused, 1);
        }
        Inbound::Push(message) => {
            drop(state);
            connection.run_oneway(message, place);
        }
        Inbound::Ping(message) => {
            drop(state);
            connection.control(&message.pong().into());
        }
        Inbound::Hello(hello, message) => {
            drop(state);
            connection.run_hello(hello, message);
        }
    }

    if asks_first {
        connection.tell_waiting_pushes();
    }
    Ok(())
}

/// Runs a call of the peer, or refuses it: too much is on its way already, in one direction or the other.
#[inline(always)]
fn handle_call<'a>(connection: &'a Connection, state: Locked<'a>, message: Message, too_many: bool, place: &mut Place) {
    let settings = &connection.shared.settings;
    // A client reads on, for the replies to its own calls: if neither side read while its replies pile up, both would
    // wait for ever.
    if state.replies_pile_up(settings) {
        drop(state);
        return connection.refuse_call(&message, "overloaded: the replies to earlier calls are not read".to_owned());
    }
    if too_many && !ends_something(&message) {
        drop(state);
        let rate = settings.frames_rate.map(|rate| rate.to_string()).unwrap_or_default();
        return connection.refuse_call(&message, format!("overloaded: this connection may send {rate} frames"));
    }
    let pushes_before = state.pushes_so_far();
    // The handler may send over this connection.
    drop(state);
    connection.run_call(message, pushes_before, place);
}

#[cfg(test)]
mod tests {
    use bothways_proto::{FrameParts, Header, Metadata, Names, Seq, SerializeType};
    use bytes::Bytes;

    use super::*;
    use crate::connection::{call::Waiter, lanes::Lane};

    /// A turn ends with its last message, or when its time is over, whichever comes first; one message needs no clock.
    #[test]
    fn a_turn_has_a_bound_in_messages_and_in_time() {
        let mut turn = Turn::default();
        assert_eq!((1..=MESSAGES).filter(|_| turn.ends()).count(), 1, "the last of them");
        let long_ago = Instant::now().checked_sub(TURN_TIME);
        let mut turn = Turn { began: long_ago, ..Turn::default() };
        turn.begin();
        assert_eq!((turn.began, (1..=CLOCK_EVERY).find(|_| turn.ends())), (long_ago, Some(CLOCK_EVERY)));
        assert!(turn.is_over);
    }

    /// Replies pile up beyond their bound, and not before.
    #[tokio::test(start_paused = true)]
    async fn so_many_bytes_of_replies_may_wait() {
        let (server, _far) = crate::connection::alone::alone(Role::Server);
        let mut state = server.shared.state.lock();
        let bounds = |bytes| Settings { reply_bytes_max: bytes, ..Settings::default() };
        assert!(!state.replies_pile_up(&bounds(0)));
        let parts = FrameParts {
            header: Header::request(Seq::new(1), SerializeType::RAW).reply(),
            names: Names::new("", ""),
            metadata: &Metadata::new(),
            payload_len: 0,
        };
        let settings = Settings::default();
        // Of a socket that takes what it gets nothing waits.
        state.outbox.writer = Writer::Blocked;
        state.outbox.add(Lane::Reply, &parts, &Bytes::new(), &settings.limits, &settings.bounds()).expect("room");
        let bytes = state.outbox.reply_bytes();
        assert!(0 < bytes && !state.replies_pile_up(&bounds(bytes)) && state.replies_pile_up(&bounds(bytes - 1)));
        state.outbox.writer = Writer::Idle;
    }

    /// A connection is owed what waits in its queue, and what somebody is writing.
    #[tokio::test(start_paused = true)]
    async fn what_is_not_written_is_owed() {
        let (client, _far) = crate::connection::alone::alone(Role::Client);
        assert!(!client.is_owed());
        let mut state = client.shared.state.lock();
        state.outbox.writer = Writer::Busy;
        drop(state);
        assert!(client.is_owed(), "somebody writes");
        let mut state = client.shared.state.lock();
        state.outbox.writer = Writer::Idle;
        client.heartbeat(&mut state, Waiter::Ping, &Metadata::new());
        drop(state);
        assert!(client.is_owed(), "it waits");
    }
}
