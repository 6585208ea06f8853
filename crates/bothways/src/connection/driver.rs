//! The one task of a connection.
//!
//! Reads, decodes and hands out; writes when the socket was full. It awaits the socket and nothing
//! else: handlers that are not ready go to tasks of their own, and a queue that is full has a rule.

use std::{
    cell::RefCell,
    future::Future,
    io,
    pin::{Pin, pin},
    sync::atomic::Ordering,
    task::{Context, Poll},
    time::Duration,
};

use bothways_proto::{Deframer, Inbound, Message, Metadata, Peer, Role, Status, keys};

use tokio::time::Sleep;

use super::{
    Connection, Phase, Settings, State, Waiter,
    dispatch::Place,
    lock::Locked,
    wire::WRITE_BYTES,
    write::move_bytes,
    writer::{self, Ended, Hand, Writer},
};
use crate::error::{CloseReason, ErrorCode};

/// One read takes at most this much; the buffer belongs to the thread, so that an idle connection
/// holds none.
pub(super) const READ_BYTES: usize = 64 << 10;

/// Reads of one turn, before other tasks get theirs.
pub(super) const READS: usize = 8;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// Connections to write to when the driver that is working on this thread has handled its read.
    static PUT_OFF: RefCell<Option<Vec<Connection>>> = const { RefCell::new(None) };
}

/// Remembers a connection to be flushed at the end of the current turn; false if there is no turn.
pub(super) fn put_off_flush(connection: &Connection) -> bool {
    PUT_OFF.with_borrow_mut(|put_off| match put_off {
        Some(connections) => {
            if connections.last() != Some(connection) {
                connections.push(connection.clone());
            }
            true
        }
        None => false,
    })
}

/// While it lives, flushes on this thread are put off until it is dropped.
struct Turn;

impl Turn {
    fn begin() -> Option<Self> {
        PUT_OFF.with_borrow_mut(|put_off| put_off.is_none().then(|| *put_off = Some(Vec::new())))?;
        Some(Self)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let connections = PUT_OFF.with_borrow_mut(Option::take).unwrap_or_default();
        for connection in connections {
            connection.flush();
        }
    }
}

/// How much the task does before others have their turn.
#[derive(Default)]
struct Share {
    /// Bytes written since the task was woken.
    written: usize,
    gives_way: bool,
}

impl Share {
    /// Has the task go on when others have had their turn: those that are ready, and those that the runtime finds to
    /// be ready when it looks at its sockets and timers. A thread whose tasks wake themselves looks only every 61
    /// turns: at 256 KiB each, everybody else waits for 3 ms.
    fn give_way(&mut self, cx: &mut Context<'_>) {
        self.gives_way = true;
        // The runtime keeps the waker when this future is first polled: it need not live on.
        let _ = pin!(tokio::task::yield_now()).poll(cx);
    }

    /// A new share, unless others are to have their turn first. In a runtime of many threads, what gave way is woken
    /// last and runs first of all that is woken after a look: from here it goes behind them.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.written = 0;
        if std::mem::take(&mut self.gives_way) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

/// What the task of a connection is.
pub(super) struct Driver {
    connection: Connection,
    deframer: Deframer,
    share: Share,
    /// The peer has sent more than its rate allows, and is read from again after this.
    pause: Option<Pin<Box<Sleep>>>,
    shut_down: bool,
    /// It has not been polled yet.
    is_new: bool,
    /// The connection is over, or at rest.
    done: bool,
}

impl Driver {
    pub(super) fn new(connection: Connection) -> Self {
        Self {
            connection,
            deframer: Deframer::new(),
            share: Share::default(),
            pause: None,
            shut_down: false,
            is_new: true,
            done: false,
        }
    }

    /// Handles the messages that a read brought, until there is none, or the client lets its replies pile up:
    /// one read may hold a thousand small requests for large replies.
    fn handle_messages(&mut self) -> Result<(), CloseReason> {
        let _turn = Turn::begin();
        let mut place = Place::default();
        let shared = &self.connection.shared;
        while !self.deframer.is_drained() {
            // Cut off and understood under one lock, beside the one for the reply: each lock more costs 40 instructions
            // and two atomic operations a message.
            let mut state = shared.state.lock();
            if state.must_not_read(&shared.settings, self.shut_down) {
                break;
            }
            let Some(message) = self.deframer.next_message(&shared.settings.limits)? else { break };
            let too_many = state.frame_is_too_many(&shared.settings);
            handle_message(&self.connection, state, message, too_many, &mut place)?;
        }
        Ok(())
    }

    /// Handles the messages that a read brought, and writes what they are answered with. `Some`: how the turn ends.
    fn poll_handling(&mut self, cx: &mut Context<'_>) -> Option<Poll<CloseReason>> {
        match self.handle_messages() {
            Err(reason) => Some(Poll::Ready(reason)),
            Ok(()) => self.poll_replies(cx).is_err().then_some(Poll::Pending),
        }
    }

    /// Reads as long as something comes, within the turn's share.
    fn poll_reads(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        let mut buffer = BUFFER.take();
        buffer.resize(READ_BYTES, 0);
        let mut outcome = None;
        for _ in 0..READS {
            let closing = {
                let shared = &self.connection.shared;
                let mut state = shared.state.lock();
                if state.must_not_read(&shared.settings, self.shut_down) {
                    outcome = Some(Poll::Pending);
                    break;
                }
                !state.can_answer()
            };
            if !closing && !self.deframer.is_drained() {
                outcome = self.poll_handling(cx);
                if outcome.is_some() {
                    break;
                }
                continue;
            }
            if !closing && self.poll_pause(cx).is_pending() {
                outcome = Some(Poll::Pending);
                break;
            }
            let room = self.connection.shared.settings.read_bytes_max(buffer.len());
            match self.connection.shared.socket.poll_read(cx, &mut buffer[..room]) {
                Poll::Pending => {
                    outcome = Some(Poll::Pending);
                    break;
                }
                Poll::Ready(Ok(0)) => {
                    let mid_frame = self.deframer.is_mid_frame();
                    let reason = if mid_frame { CloseReason::PeerClosedMidFrame } else { CloseReason::PeerClosed };
                    outcome = Some(Poll::Ready(reason));
                    break;
                }
                Poll::Ready(Ok(n)) => {
                    let is_first = self.connection.shared.reads.fetch_add(1, Ordering::Relaxed) == 0;
                    if closing {
                        continue;
                    }
                    self.pause_after(n);
                    self.deframer.feed(&buffer[..n], self.connection.limits());
                    if is_first {
                        self.look_ahead(cx, &mut buffer[..room]);
                    }
                    outcome = self.poll_handling(cx);
                    if outcome.is_some() {
                        break;
                    }
                }
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Poll::Ready(Err(error)) => {
                    outcome = Some(Poll::Ready(error.into()));
                    break;
                }
            }
        }
        BUFFER.set(buffer);
        outcome.unwrap_or_else(|| {
            self.share.give_way(cx);
            Poll::Pending
        })
    }

    /// Ready when the peer may be read from.
    fn poll_pause(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(pause) = &mut self.pause {
            std::task::ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        Poll::Ready(())
    }

    /// Before a server looks at the first frame: has its client given the connection up already? The Hello of such a
    /// one, read late, must not take a session from the connection that its client has since.
    fn look_ahead(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) {
        {
            let state = self.connection.shared.state.lock();
            if state.proto.peer() != Peer::Unknown || state.proto.role() != Role::Server {
                return;
            }
        }
        match self.connection.shared.socket.poll_read(cx, buffer) {
            Poll::Pending => {}
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            // The next read finds it again.
            Poll::Ready(Ok(0) | Err(_)) => self.connection.shared.state.lock().peer_is_gone = true,
            Poll::Ready(Ok(n)) => {
                self.connection.shared.reads.fetch_add(1, Ordering::Relaxed);
                self.pause_after(n);
                self.deframer.feed(&buffer[..n], self.connection.limits());
            }
        }
    }

    /// So many bytes were read: perhaps that is enough for now. Only who is held back has a timer.
    fn pause_after(&mut self, bytes: usize) {
        let shared = &self.connection.shared;
        if shared.settings.bytes_rate.is_some() {
            let pause = shared.state.lock().pause_after(&shared.settings, bytes);
            self.pause = pause.map(|pause| Box::pin(tokio::time::sleep(pause)));
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
        let state = self.connection.shared.state.lock();
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
        if let Phase::Answering(reason) = &state.phase
            && drained
            && shared.calls_running.load(Ordering::SeqCst) == 0
        {
            state.phase = Phase::Closing(reason.clone());
        }
        let drained = drained && matches!(state.phase, Phase::Closing(_));
        drop(state);
        if drained && self.connection.shared.socket.poll_shutdown(cx).is_ready() {
            // From here the peer's bytes are read and dropped until it ends its side: closing with
            // bytes unread would make the kernel reset the connection, and lose our last frames.
            self.shut_down = true;
        }
    }

    /// Nothing more can be read, for this reason.
    fn handle_end(&mut self, reason: CloseReason, cx: &mut Context<'_>) {
        use CloseReason::{BadFrame, PeerClosed, PeerClosedMidFrame};
        let connection = &self.connection;
        if matches!(reason, PeerClosed | PeerClosedMidFrame | BadFrame(_)) && connection.answer_the_rest(&reason) {
            // What is there to answer may be done this moment: the next turn looks.
            cx.waker().wake_by_ref();
            return;
        }
        let reason = match &connection.shared.state.lock().phase {
            Phase::Closing(ours) | Phase::Draining(ours) => CloseReason::clone(ours),
            _ => reason,
        };
        connection.close_now(reason);
    }

    fn finish(&mut self) {
        if !self.done {
            self.done = true;
            self.connection.close_now(CloseReason::Local);
            self.connection.shared.socket.close();
            let reason = self.connection.close_reason().expect("it was just closed");
            self.connection.shared.inlet.handle_closed(&self.connection, &reason);
        }
    }
}

impl State {
    /// True while the driver must not read, which it is asked before every read and every message. A server does
    /// not read on while a client lets its replies pile up; the write deadline bounds it.
    fn must_not_read(&mut self, settings: &Settings, shut_down: bool) -> bool {
        self.paused = match self.phase {
            Phase::Closed(_) => true,
            Phase::Closing(_) => !shut_down,
            Phase::Answering(_) => true,
            Phase::Open | Phase::Draining(_) => self.proto.role() == Role::Server && self.unread_piles_up(settings),
        };
        self.paused
    }

    /// True if the peer asks and does not read what it is answered, be it calls or heartbeats.
    fn unread_piles_up(&self, settings: &Settings) -> bool {
        self.replies_pile_up(settings) || self.outbox.control_piles_up()
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
            && !self.room_wanted
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this.share.poll_next(cx).is_pending() {
            return Poll::Pending;
        }
        let is_new = std::mem::take(&mut this.is_new);
        let (quiet, asked) = {
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
            let may_rest = (is_new || asked)
                && this.pause.is_none()
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
    /// A runtime that shuts down drops its tasks: whoever waits is told all the same.
    fn drop(&mut self) {
        self.finish();
    }
}

/// Writes what waits; see [`Driver::poll_writes`].
fn write<'a>(connection: &'a Connection, state: Locked<'a>, share: &mut Share, cx: &mut Context<'_>) -> Result<(), ()> {
    let socket = &connection.shared.socket;
    let mut turn =
        writer::Turn { hand: Hand::Driver, batches: usize::MAX, written: share.written, bytes_max: WRITE_BYTES };
    let (mut state, ended) = writer::write(connection, state, &mut turn, |wire, done| {
        move_bytes(wire, done, |slices| socket.poll_write(cx, slices))
    });
    share.written = turn.written;

    let mut room_wanted = false;
    match ended {
        Ended::Done => room_wanted = std::mem::take(&mut state.room_wanted),
        Ended::Left => {}
        Ended::GiveWay => share.give_way(cx),
        Ended::Failed(error) => {
            connection.end(&mut state, error.into());
            return Err(());
        }
    }
    drop(state);

    if room_wanted {
        connection.shared.inlet.handle_room(connection);
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

/// Does what a message asks for.
fn handle_message<'a>(
    connection: &'a Connection,
    mut state: Locked<'a>,
    message: Message,
    too_many: bool,
    place: &mut Place,
) -> Result<(), CloseReason> {
    if !state.can_answer() {
        // A frame before it in the same read ended the connection, such as a refused token.
        return Ok(());
    }
    if state.proto.peer() == Peer::Unknown && state.proto.role() == Role::Server {
        drop(state);
        connection.admit(&message)?;
        state = connection.shared.state.lock();
        if !state.can_answer() {
            return Ok(());
        }
    }
    state.watch.note_message();
    let inbound = state.proto.handle_message(message)?;
    let asks_first = state.note_request(&inbound);
    match inbound {
        Inbound::Reply(waiter, message) => match waiter {
            Waiter::Call { reply, .. } => {
                state.callers_due = state.callers_due.saturating_add(1);
                drop(state);
                // Nobody listens if the call's future was dropped this moment.
                let _ = reply.send(Ok(message));
            }
            Waiter::Hello => {
                let welcomed = state.proto.handle_welcome(&message).is_some();
                let metadata = message.metadata();
                if let Some(refusal) = refusal_of_hello(&message, &metadata) {
                    state.drain(refusal);
                    drop(state);
                    connection.shared.changed.notify_waiters();
                    // No session was given or lost: there will be another Hello.
                    return Ok(());
                }
                drop(state);
                connection.shared.inlet.handle_welcome(connection, welcomed.then_some(&metadata));
            }
            Waiter::Ping => {}
        },
        Inbound::Late(_) => state.seldom().late_replies += 1,
        Inbound::Cancel(seq) => {
            drop(state);
            connection.cancel(seq);
        }
        Inbound::Goodbye(message) => {
            let said = message.metadata();
            let why = said.get(keys::GOODBYE_WHY).unwrap_or_default().to_owned();
            let reconnect_after = wait_asked_for(&said, keys::GOODBYE_AFTER);
            state.drain(CloseReason::Goodbye { why, reconnect_after });
            drop(state);
            connection.shared.changed.notify_waiters();
        }
        // A client reads on, for the replies to its own calls: if neither side read while its replies pile up, both
        // would wait for ever.
        Inbound::Call(message) if state.replies_pile_up(&connection.shared.settings) => {
            drop(state);
            connection.refuse_call(&message, "overloaded: the replies to earlier calls are not read".to_owned());
        }
        Inbound::Call(message) if too_many => {
            drop(state);
            let rate = connection.shared.settings.frames_rate.map(|rate| rate.to_string()).unwrap_or_default();
            connection.refuse_call(&message, format!("overloaded: this connection may send {rate} frames"));
        }
        // Acknowledgements and the like are worth their place.
        Inbound::Push(message) if too_many && !message.has_service_path(keys::CONTROL_PATH) => {
            state.seldom().oneways_refused += 1;
        }
        Inbound::Call(message) => {
            let pushes_before = state.outbox.pushes_added();
            drop(state);
            connection.run_call(message, pushes_before, place);
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

/// Why the answer to a Hello is a refusal, if it is one. A plain server echoes the Hello, and refuses nobody.
fn refusal_of_hello(answer: &Message, said: &Metadata) -> Option<CloseReason> {
    let why = || answer.error_text().unwrap_or_default();
    match said.get(keys::ERROR_CODE).map(ErrorCode::from_name) {
        Some(Some(ErrorCode::Unauthenticated)) => Some(CloseReason::Unauthenticated(why())),
        Some(Some(ErrorCode::Overloaded)) => {
            let retry_after = wait_asked_for(said, keys::RETRY_AFTER).unwrap_or_default();
            Some(CloseReason::NotAdmitted { why: why(), retry_after })
        }
        Some(_) => Some(CloseReason::HelloRefused(why())),
        None if answer.header().status() == Status::ERROR => Some(CloseReason::HelloRefused(why())),
        None => None,
    }
}

/// How long a server asks its client to wait before the next connection. An hour at most: it must not send its clients
/// away for good.
fn wait_asked_for(said: &Metadata, key: &str) -> Option<Duration> {
    let millis: u64 = said.get(key)?.parse().ok()?;
    Some(Duration::from_millis(millis.min(3_600_000)))
}
