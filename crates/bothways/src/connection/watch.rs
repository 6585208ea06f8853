//! Timeouts of a connection: heartbeats, idle and write deadlines.
//!
//! No connection has a timer of its own. A client calls [`Connection::watch`] of its one about once a second; a server
//! looks at each of its many a second after something happened to it, and when something is due
//! ([wheel](super::wheel)). The times below are kept to that precision.

use std::{num::NonZeroU32, sync::atomic::Ordering, time::Duration};

use bothways_proto::{self as proto, Capabilities, Greeting, Keepalive, KeepaliveAction, Metadata, Role};
use tokio::time::Instant;

use super::{
    BEHIND, Connection, Phase, Rare, Settings, State, Waiter,
    lock::{Locked, NextLook},
    rest::Driving,
    socket::PassedOn,
    wheel::Slot,
    writer::Writer,
};
use crate::error::CloseReason;

/// How long each kind of silence may last.
#[derive(Clone, Debug)]
pub(crate) struct Deadlines {
    /// Silence after which a peer that answers heartbeats is asked for one. `None`: never asked.
    pub(crate) heartbeat_interval: Option<Duration>,
    /// Silence after a heartbeat before the peer is gone.
    pub(crate) heartbeat_timeout: Duration,
    /// Silence after which any peer is closed. `None`: never.
    pub(crate) idle_timeout: Option<Duration>,
    /// Time for the first frame of a client.
    pub(crate) first_frame_timeout: Duration,
    /// Time until something that a client sent has passed the auth hook, where there is one.
    pub(crate) unauthenticated_timeout: Duration,
    /// Bytes that a frame which has begun must bring within each such time, or its end.
    pub(crate) frame_progress_min: usize,
    pub(crate) frame_progress_time: Duration,
    /// Time without a byte taken by a socket for which bytes wait.
    pub(crate) write_timeout: Duration,
    /// Time for what waits to be written, and for the peer to end its side, when closing.
    pub(crate) close_timeout: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            heartbeat_interval: Some(Duration::from_secs(15)),
            heartbeat_timeout: Duration::from_secs(10),
            idle_timeout: None,
            first_frame_timeout: Duration::from_secs(10),
            unauthenticated_timeout: Duration::from_secs(300),
            frame_progress_min: 10 << 10,
            frame_progress_time: Duration::from_secs(10),
            write_timeout: Duration::from_secs(10),
            close_timeout: Duration::from_secs(5),
        }
    }
}

impl Deadlines {
    /// True if a client that has been here for so many milliseconds should have been let in.
    fn is_stranger_too_long(&self, now: u64) -> bool {
        self.unauthenticated_timeout <= Duration::from_millis(now)
    }

    /// How often [`Connection::watch`] must be called for these to be kept well.
    pub(crate) fn tick(&self) -> Duration {
        let shortest = [Some(self.heartbeat_timeout), self.heartbeat_interval, self.idle_timeout]
            .into_iter()
            .flatten()
            .chain([self.first_frame_timeout, self.frame_progress_time, self.write_timeout, self.close_timeout])
            .min()
            .unwrap_or(Duration::from_secs(1));
        (shortest / 4).clamp(Duration::from_millis(10), Duration::from_secs(1))
    }
}

/// The least rate at which a peer is expected to take what it is sent, for the time in which it may answer a heartbeat
/// that comes after it: 64 KiB/s.
const LEAST_RATE: u64 = 64 << 10;

/// A plain server with calls under way may be silent so many times as long after a heartbeat: one with a pool answers
/// heartbeats after the calls that fill it. That its system is there, keep-alive and the write timeout find out.
const BUSY_TIMES: u32 = 10;

/// What was sent and not heard of is counted in such units; less between two ticks is nothing. 16 KiB.
const UNHEARD_BYTES: u32 = 16 << 10;

/// What was seen of a connection at the last tick. Small, for every connection has one.
#[derive(Debug)]
pub(crate) struct Watch {
    /// When it began: nanoseconds from a moment that all connections with its settings share.
    began: i64,
    /// When the peer last showed that it lives: something came, or a socket that was full took bytes again; or when this
    /// side last did not read, be it busy or held up.
    /// Milliseconds, as all times here: since the beginning.
    alive_at: u64,
    reads: u16,
    /// What was sent since something came, in [`UNHEARD_BYTES`].
    unheard: u16,
    written_bytes: u32,
    /// The last 32 bits of when something was taken by the socket, or nothing waited for it: never long ago.
    written_at: u32,
    /// Likewise of when a heartbeat was sent that is not answered.
    pinged_at: Option<NonZeroU32>,
    /// Likewise of when it began to close.
    closing_since: Option<NonZeroU32>,
    /// The last 16 bits of when something was sent, in [`SAID_MILLIS`].
    said_at: u16,
    /// A tick found the driver idle, and asks it to rest.
    pub(super) rest_wanted: bool,
    flags: u8,
}

/// Bytes waited for the socket at the last tick.
const WAITED: u8 = 1;
/// A whole message has come since.
const HEARD: u8 = 2;
/// The last tick came late, and would have ended the connection.
const SPARED: u8 = 4;
/// The socket was full at the last tick.
const FULL: u8 = 8;

/// The unit of [`Watch::said_at`].
const SAID_MILLIS: u64 = 64;

impl Watch {
    pub(crate) fn new(epoch: Instant, now: Instant) -> Self {
        // Clocks of different runtimes may differ, where time is paused: `now` may be before the other.
        let nanos = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
        let began = match now.checked_duration_since(epoch) {
            Some(after) => nanos(after),
            None => -nanos(epoch.saturating_duration_since(now)),
        };

        Self {
            began,
            alive_at: 0,
            reads: 0,
            unheard: 0,
            written_bytes: 0,
            written_at: 0,
            pinged_at: None,
            closing_since: None,
            said_at: 0,
            rest_wanted: false,
            flags: 0,
        }
    }

    /// Reads since the last tick.
    pub(super) fn reads_since(&self, reads: u16) -> u16 {
        reads.wrapping_sub(self.reads)
    }

    pub(super) fn began(&self, epoch: Instant) -> Instant {
        let time = Duration::from_nanos(self.began.unsigned_abs());
        if 0 <= self.began { epoch + time } else { epoch.checked_sub(time).unwrap_or(epoch) }
    }

    /// A whole message came.
    pub(super) fn note_message(&mut self) {
        self.flags |= HEARD;
    }

    /// How long a peer may take to answer a heartbeat, beyond the time that is set: what was sent before it comes
    /// first, and may fill the buffers of both systems and of all that is between.
    fn on_the_way(&self) -> Duration {
        Duration::from_millis(u64::from(self.unheard) * u64::from(UNHEARD_BYTES) * 1000 / LEAST_RATE)
    }

    /// How long ago anything was sent. Of more than an hour, what is left.
    fn since_said(&self, now: u64) -> Duration {
        let units = ((now / SAID_MILLIS) as u16).wrapping_sub(self.said_at);
        Duration::from_millis(u64::from(units) * SAID_MILLIS)
    }
}

/// What a tick saw.
struct Seen {
    /// Nothing came.
    is_quiet: bool,
    /// Bytes came, and no whole message: a long frame is on its way.
    is_long: bool,
}

/// What a tick finds to be done.
enum Due {
    Nothing,
    /// The connection is about to end, or over: it is left alone.
    Over,
    /// A client closes it, and half of the time for that is over.
    HalfClosed,
    Ping,
    End(CloseReason),
}

/// A frame that has begun and is not all there.
#[derive(Debug, Default)]
pub(super) struct BegunFrame {
    /// Messages before it: it is another frame if that is another number.
    number: u32,
    bytes: usize,
    /// The same of the frame at the beginning of the time that is measured, and when that was.
    seen: Option<(u32, usize, u64)>,
}

impl Rare {
    /// So many bytes are there of the frame after so many messages; 0: there is none.
    pub(super) fn note_frame(&mut self, number: u32, bytes: usize) {
        if bytes == 0 {
            self.frame = None;
            return;
        }
        let frame = self.frame.get_or_insert_default();
        (frame.number, frame.bytes) = (number, bytes);
    }
}

impl State {
    /// Why the connection is to end, if a frame has begun and does not go on.
    fn slow_frame(&mut self, settings: &Settings, is_held_up: bool, now: u64) -> Option<CloseReason> {
        let deadlines = &settings.watch;
        if self.proto.role() == Role::Client {
            return None;
        }

        let frame = self.rare.as_mut()?.frame.as_mut()?;
        let (_, bytes, at) = *frame.seen.get_or_insert((frame.number, frame.bytes, now));
        let within = deadlines.frame_progress_time;
        // Another frame, or nothing was read for a while: its time begins anew.
        if frame.seen.is_some_and(|(number, ..)| number != frame.number) || is_held_up {
            frame.seen = Some((frame.number, frame.bytes, now));
            return None;
        }

        if Duration::from_millis(now.saturating_sub(at)) < within {
            return None;
        }

        let bytes = frame.bytes.saturating_sub(bytes);
        let wanted = deadlines.frame_progress_min;
        let wanted = settings.slowest_bytes().map_or(wanted, |max| wanted.min(max as usize));
        frame.seen = Some((frame.number, frame.bytes, now));
        (bytes < wanted).then_some(CloseReason::SlowFrame { bytes, within })
    }
}

/// The peer is a plain server, for all that is known, and a call waits for its reply.
fn may_be_busy(proto: &proto::Connection<Waiter>) -> bool {
    proto.role() == Role::Client && !proto.is_negotiated() && proto.calls().waiters().any(Waiter::is_call)
}

/// The last 32 bits of a moment; of one that has none, those of the millisecond before it.
fn mark(now: u64) -> NonZeroU32 {
    NonZeroU32::new(now as u32).unwrap_or(NonZeroU32::MAX)
}

/// How long ago a moment was of which these are the last 32 bits.
fn since(now: u64, then: u32) -> Duration {
    Duration::from_millis(u64::from((now as u32).wrapping_sub(then)))
}

impl State {
    /// Notes what moved since the last tick. Bytes that move are life, in either direction; and while this side does not
    /// read (`is_held_up`), silence is its own.
    fn tick(&mut self, reads: u16, passed_on: PassedOn, is_held_up: bool, now: u64) -> Seen {
        let waits = !self.outbox.is_empty() || passed_on.has_unsent;
        // What was queued and is left to a write that never comes is not the peer's fault.
        let is_tried = self.outbox.writer != Writer::Idle || passed_on.has_unsent;

        let watch = &mut self.watch;
        let is_quiet = reads == watch.reads;
        // No socket takes just 4 GiB between two ticks.
        let written_bytes = passed_on.sent.unwrap_or_else(|| self.outbox.written_bytes()) as u32;
        let written = written_bytes.wrapping_sub(watch.written_bytes);
        let [waited, was_full, heard] = [WAITED, FULL, HEARD].map(|flag| watch.flags & flag != 0);

        watch.reads = reads;
        watch.written_bytes = written_bytes;
        // A socket that does not say what leaves it may have taken more into its own room.
        let keeps = passed_on.has_unsent && passed_on.sent.is_some();
        let is_full = keeps || (waits && self.outbox.writer == Writer::Blocked);
        watch.flags = (watch.flags & SPARED) | if waits { WAITED } else { 0 } | if is_full { FULL } else { 0 };
        watch.unheard = match is_quiet {
            true => watch.unheard.saturating_add(u16::try_from(written / UNHEARD_BYTES).unwrap_or(u16::MAX)),
            false => 0,
        };

        // A socket that was full takes bytes only when the peer has taken some. One that was not takes them for nothing.
        if !is_quiet || is_held_up || (was_full && 0 < written) {
            watch.alive_at = now;
            watch.pinged_at = None;
        }

        if 0 < written {
            watch.said_at = (now / SAID_MILLIS) as u16;
        }

        // What began to wait since then has all its time.
        if 0 < written || !waits || !is_tried || !waited {
            watch.written_at = now as u32;
        }

        Seen { is_quiet, is_long: !is_quiet && !heard }
    }

    /// What is due now.
    fn due(&mut self, deadlines: &Deadlines, seen: &Seen, now: u64) -> Due {
        let is_heard_out = self.is_heard_out();
        let watch = &mut self.watch;
        match self.phase {
            Phase::Closed(_) => return Due::Over,
            Phase::Closing(ref reason) | Phase::Answering(ref reason) => {
                let closing = since(now, watch.closing_since.get_or_insert(mark(now)).get());
                return match deadlines.close_timeout {
                    all if all <= closing => Due::End(CloseReason::clone(reason)),
                    all if all / 2 <= closing && is_heard_out => Due::HalfClosed,
                    _ => Due::Over,
                };
            }
            Phase::Open | Phase::Draining(_) => {}
        }

        let silent = Duration::from_millis(now.saturating_sub(watch.alive_at));
        let role = self.proto.role();

        // Bytes are no frame: one byte now and then must not hold a connection.
        let no_frame = role == Role::Server && self.proto.greeting() == Greeting::Unknown;
        // One that has begun and goes on has the time that it takes.
        let begun = self.rare.as_ref().and_then(|rare| rare.frame.as_ref()).map_or(0, |frame| frame.bytes);
        let no_frame = no_frame && begun < deadlines.frame_progress_min.max(1);
        if no_frame && deadlines.first_frame_timeout <= Duration::from_millis(now) {
            return Due::End(CloseReason::NoFirstFrame(deadlines.first_frame_timeout));
        }

        if watch.flags & WAITED != 0 && deadlines.write_timeout <= since(now, watch.written_at) {
            return Due::End(CloseReason::SlowPeer(match role {
                Role::Server => "it took no byte within `timeouts.write`",
                // A client has no option for that.
                Role::Client => "it took no byte for too long",
            }));
        }

        if let Some(idle) = deadlines.idle_timeout.filter(|idle| *idle <= silent) {
            return Due::End(CloseReason::Idle(idle));
        }

        // A plain server answers heartbeats, a plain client would take one for a reply.
        let answers = role == Role::Client || self.proto.peer_can(Capabilities::PING);
        let Some(interval) = deadlines.heartbeat_interval.filter(|_| answers) else { return Due::Nothing };

        // The sender of a long frame hears nothing meanwhile, because the answer to its heartbeat comes after the
        // frame. One that knows no better takes that for death.
        if seen.is_long && interval <= watch.since_said(now) {
            return Due::Ping;
        }

        let [received, now_at] = [watch.alive_at, now].map(Duration::from_millis);
        let pinged = watch.pinged_at.map(|pinged| now_at.saturating_sub(since(now, pinged.get())));
        let timeout = deadlines.heartbeat_timeout.saturating_add(watch.on_the_way());
        let of = |timeout| Keepalive::new(interval, timeout, received).pinged_at(pinged).poll(now_at);
        let action = match of(timeout) {
            KeepaliveAction::Gone if may_be_busy(&self.proto) => of(timeout.saturating_mul(BUSY_TIMES)),
            action => action,
        };

        match action {
            KeepaliveAction::Ping => {
                watch.pinged_at = Some(mark(now));
                Due::Ping
            }
            KeepaliveAction::Gone => Due::End(CloseReason::Gone { silent }),
            KeepaliveAction::WaitUntil(_) => Due::Nothing,
        }
    }
}

impl State {
    /// When the next deadline of a connection is over that is at rest, if it stays so.
    fn next_due(&self, deadlines: &Deadlines, is_trusted: bool, now: u64) -> NextLook {
        let (role, watch) = (self.proto.role(), &self.watch);
        let from = |at: u64, time: Duration| Duration::from_millis(at).saturating_add(time);
        let is_new = role == Role::Server && self.proto.greeting() == Greeting::Unknown;
        let answers = role == Role::Client || self.proto.peer_can(Capabilities::PING);
        let due = [
            is_new.then_some(deadlines.first_frame_timeout),
            (!is_trusted).then_some(deadlines.unauthenticated_timeout),
            deadlines.idle_timeout.map(|idle| from(watch.alive_at, idle)),
            deadlines.heartbeat_interval.filter(|_| answers).map(|interval| from(watch.alive_at, interval)),
        ];
        let now = Duration::from_millis(now);
        let next = due.into_iter().flatten().min();
        next.map_or(NextLook::Never, |due| NextLook::Within(due.saturating_sub(now)))
    }
}

impl Connection {
    /// A call waits for its reply.
    pub(crate) fn waits_for_replies(&self) -> bool {
        self.shared.state.lock().proto.calls().waiters().any(Waiter::is_call)
    }

    /// Looks at the connection: sends what is due, ends it if a deadline passed, frees idle memory. `asked` is when this
    /// tick was to be. One that comes late ends nothing, but the next one does: while a process stands still, what its
    /// peers send waits in the sockets, and is read first.
    pub(crate) fn watch(&self, asked: Instant, now: Instant) {
        self.look_at(&mut self.shared.state.lock(), asked, now);
    }

    /// The same, if it has its turn in this slot, or is to be looked at for what happened to it.
    pub(crate) fn watch_in_turn(&self, asked: Instant, now: Instant, slot: Option<Slot>) {
        let lock = &self.shared.state;
        let mut state = lock.lock_to_look();
        if state.place.takes_turn(slot) {
            let next = self.look_at(&mut state, asked, now);
            lock.look_again(&mut state.place, next, self.shared.settings.watch.tick());
        }
    }

    /// See [`Self::watch`]. Answers when there is something to look at again.
    fn look_at<'a>(&'a self, state: &mut Locked<'a>, asked: Instant, now: Instant) -> NextLook {
        let late = now.saturating_duration_since(asked);
        let deadlines = &self.shared.settings.watch;
        let reads = self.shared.reads.load(Ordering::Relaxed);
        let began = state.watch.began(self.shared.state.wheel().epoch());
        let now = now.saturating_duration_since(began).as_millis() as u64;

        // Nothing comes while nothing is read: what there is lies unread in the socket.
        let is_held_up =
            state.paused || self.shared.is_checking.load(Ordering::Relaxed) || self.shared.reads_as(BEHIND);
        let seen = state.tick(reads, self.shared.socket.passed_on(), is_held_up, now);
        let due = match state.due(deadlines, &seen, now) {
            due @ (Due::Nothing | Due::Ping) => {
                state.slow_frame(&self.shared.settings, is_held_up, now).map_or(due, Due::End)
            }
            due => due,
        };

        let due = match due {
            Due::Nothing | Due::Ping if !self.is_trusted() && deadlines.is_stranger_too_long(now) => {
                let why = format!("no token was accepted within {:?}", deadlines.unauthenticated_timeout);
                Due::End(CloseReason::Unauthenticated(why))
            }
            due => due,
        };

        // If this process stood still, what peers sent meanwhile is read before one is cut off.
        let was_spared = state.watch.flags & SPARED != 0;
        let spares = matches!(due, Due::End(_)) && !was_spared && deadlines.tick() < late;
        state.watch.flags = if spares { state.watch.flags | SPARED } else { state.watch.flags & !SPARED };

        match due {
            Due::End(_) if spares => {}
            Due::Nothing => {}
            Due::Over if matches!(state.phase, Phase::Closed(_)) => return NextLook::Never,
            Due::Over => return NextLook::Soon,
            Due::HalfClosed => {
                self.give_up_requests(state);
                return NextLook::Soon;
            }
            Due::Ping => self.heartbeat(state, Waiter::Ping, &Metadata::new()),
            Due::End(reason) => {
                self.end(state, reason);
                return NextLook::Never;
            }
        }

        if !state.outbox.is_empty() && state.outbox.writer == Writer::Idle {
            // The heartbeat, or what was queued and never written.
            self.wake_driver(state);
        }
        if seen.is_quiet {
            self.ask_to_rest(state);
        }
        state.outbox.shrink();
        state.proto.shrink();

        let is_at_rest = seen.is_quiet && !is_held_up && !spares && self.is_at_rest(state);
        if is_at_rest { state.next_due(deadlines, self.is_trusted(), now) } else { NextLook::Soon }
    }

    /// True if nothing is under way that a look would find changed: not a byte, a frame, or the task that handled them.
    fn is_at_rest(&self, state: &State) -> bool {
        let has_task = match state.driving {
            Driving::Resting => false,
            // One that stays has nothing to do.
            Driving::Task(_) => self.shared.socket.can_rest(),
            Driving::Called | Driving::Made => true,
        };
        state.is_quiet()
            && state.watch.flags & WAITED == 0
            && !has_task
            && !state.outbox.holds_replies()
            && !state.watch.rest_wanted
            && state.watch.pinged_at.is_none()
            && state.rare.as_ref().is_none_or(|rare| rare.frame.is_none())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        connection::alone::{Deaf, alone},
        transport::memory,
    };

    /// A process stands still just after it sent a heartbeat, and the answer waits in the socket: the first tick after
    /// that leaves the time to read it. A peer that is gone is found by the next one.
    #[tokio::test(start_paused = true)]
    async fn a_tick_that_comes_late_ends_nothing() {
        let (near, far) = memory::pair(1 << 16);
        let settings = Arc::new(Settings::default());
        let start = |role, socket: memory::MemorySocket, hello| {
            Connection::start(role, socket.into(), Arc::clone(&settings), Arc::new(Deaf), hello, |_| {})
        };
        let _server = start(Role::Server, far, None);
        let client = start(Role::Client, near, Some(Metadata::new()));
        let began = Instant::now();
        // Every task that is ready has its turn, and no time passes.
        let turns = || async {
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
        };
        turns().await;
        let tick = |asked: u64, at: u64| {
            let after = |secs| began + Duration::from_secs(secs);
            client.watch(after(asked), after(at));
            !client.is_closed()
        };
        assert!(tick(1, 1) && tick(17, 17), "it asks for an answer");
        assert!(tick(18, 60), "nothing was read, and this tick is late");
        turns().await;
        assert!(tick(61, 61), "the answer is there");

        assert!(tick(80, 80) && tick(81, 120));
        assert!(!tick(121, 121), "there was time to read it, and it did not come");
    }

    /// While this side does not read, for whichever reason, what its peer says lies in the socket: nobody is gone.
    #[tokio::test(start_paused = true)]
    async fn a_peer_that_is_not_read_is_not_gone() {
        let reasons: [fn(&Connection); 4] = [
            |_| {},
            |client| client.shared.state.lock().paused = true,
            |client| client.shared.is_checking.store(true, Ordering::Relaxed),
            |client| client.shared.note_reading(BEHIND, true),
        ];
        for (number, does_not_read) in reasons.into_iter().enumerate() {
            let (client, _far) = alone(Role::Client);
            let is_over = |millis| {
                let moment = client.began() + Duration::from_millis(millis);
                client.watch(moment, moment);
                client.is_closed()
            };
            assert!(!is_over(15_000), "it is asked for an answer");
            does_not_read(&client);
            assert_eq!(is_over(25_000), number == 0, "{number}");
        }
    }

    /// A socket that keeps nothing of what it took.
    const ALL: PassedOn = PassedOn { has_unsent: false, sent: None };

    const QUIET: Seen = Seen { is_quiet: true, is_long: false };

    /// What is due, in a word.
    fn due(state: &mut State, deadlines: &Deadlines, seen: &Seen, now: u64) -> &'static str {
        match state.due(deadlines, seen, now) {
            Due::Nothing => "nothing",
            Due::Over => "over",
            Due::HalfClosed => "half",
            Due::Ping => "ping",
            Due::End(CloseReason::NoFirstFrame(_)) => "no first frame",
            Due::End(CloseReason::SlowPeer(_)) => "slow",
            Due::End(CloseReason::Idle(_)) => "idle",
            Due::End(CloseReason::Gone { .. }) => "gone",
            Due::End(_) => "end",
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_is_asked_and_gone_at_the_exact_times() {
        let (client, _far) = alone(Role::Client);
        let (mut state, deadlines) = (client.shared.state.lock(), Deadlines::default());
        assert_eq!(due(&mut state, &deadlines, &QUIET, 14_999), "nothing");
        assert_eq!(due(&mut state, &deadlines, &QUIET, 15_000), "ping");
        assert_eq!(due(&mut state, &deadlines, &QUIET, 24_999), "nothing");
        state.watch.unheard = 4;
        assert_eq!(due(&mut state, &deadlines, &QUIET, 25_999), "nothing", "what was sent before is on its way");
        assert_eq!(due(&mut state, &deadlines, &QUIET, 26_000), "gone");
        state.watch.unheard = 0;
        assert_eq!(due(&mut state, &deadlines, &QUIET, 25_000), "gone");

        // It is answered, and asked again after as long.
        (state.watch.alive_at, state.watch.pinged_at) = (25_000, None);
        assert_eq!(due(&mut state, &deadlines, &QUIET, 39_999), "nothing");
        assert_eq!(due(&mut state, &deadlines, &QUIET, 40_000), "ping");
        let never = Deadlines { heartbeat_interval: None, ..deadlines };
        assert_eq!(due(&mut state, &never, &QUIET, 1_000_000), "nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn the_sender_of_a_long_frame_is_told_that_this_side_lives() {
        let (client, _far) = alone(Role::Client);
        let (mut state, deadlines) = (client.shared.state.lock(), Deadlines::default());
        let long = Seen { is_quiet: false, is_long: true };
        let short = Seen { is_quiet: false, is_long: false };
        // Something comes all the time; the last that was said was said at the beginning.
        for (now, seen, expected) in
            [(15_039, &long, "nothing"), (15_040, &long, "ping"), (15_040, &short, "nothing"), (15_041, &long, "ping")]
        {
            state.watch.alive_at = now;
            assert_eq!(due(&mut state, &deadlines, seen, now), expected, "{now}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_says_nothing_is_closed_at_the_exact_time() {
        let (server, _far) = alone(Role::Server);
        let (mut state, mut deadlines) = (server.shared.state.lock(), Deadlines::default());
        assert_eq!(due(&mut state, &deadlines, &QUIET, 9_999), "nothing");
        assert_eq!(due(&mut state, &deadlines, &QUIET, 10_000), "no first frame");
        let least = deadlines.frame_progress_min;
        state.rare().note_frame(0, least - 1);
        assert_eq!(due(&mut state, &deadlines, &QUIET, 10_000), "no first frame", "one byte now and then");
        state.rare().note_frame(0, least);
        assert_eq!(due(&mut state, &deadlines, &QUIET, 10_000), "nothing", "it goes on");

        deadlines.frame_progress_min = 0;
        state.rare().note_frame(0, 1);
        assert_eq!(due(&mut state, &deadlines, &QUIET, 10_000), "nothing");
        state.rare().note_frame(0, 0);
        assert_eq!(due(&mut state, &deadlines, &QUIET, 10_000), "no first frame", "none has begun");
        deadlines.first_frame_timeout = Duration::MAX;
        assert_eq!(due(&mut state, &deadlines, &QUIET, 15_000), "nothing", "a plain client answers no heartbeat");
        drop(state);

        let (client, _far) = alone(Role::Client);
        assert_eq!(due(&mut client.shared.state.lock(), &Deadlines::default(), &QUIET, 10_000), "nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_socket_and_an_idle_peer_end_at_the_exact_times() {
        let (client, _far) = alone(Role::Client);
        let (mut state, mut deadlines) = (client.shared.state.lock(), Deadlines::default());
        (state.watch.written_at, state.watch.flags) = (4_000, WAITED);
        assert_eq!(due(&mut state, &deadlines, &QUIET, 13_999), "nothing");
        assert_eq!(due(&mut state, &deadlines, &QUIET, 14_000), "slow");
        state.watch.flags = HEARD | SPARED;
        assert_eq!(due(&mut state, &deadlines, &QUIET, 14_000), "nothing", "nothing waited");

        (deadlines.idle_timeout, state.watch.alive_at) = (Some(Duration::from_secs(7)), 1_000);
        assert_eq!(due(&mut state, &deadlines, &QUIET, 7_999), "nothing");
        assert_eq!(due(&mut state, &deadlines, &QUIET, 8_000), "idle");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_closes_has_its_time_and_no_more() {
        let (client, _far) = alone(Role::Client);
        let deadlines = Deadlines::default();
        let reason = || Box::new(CloseReason::Local);
        for (phase, half) in [(Phase::Closing(reason()), "half"), (Phase::Answering(reason()), "over")] {
            let mut state = client.shared.state.lock();
            (state.phase, state.watch.closing_since) = (phase, None);
            assert_eq!(due(&mut state, &deadlines, &QUIET, 100_000), "over");
            assert_eq!(due(&mut state, &deadlines, &QUIET, 102_499), "over");
            assert_eq!(due(&mut state, &deadlines, &QUIET, 102_500), half);
            assert_eq!(due(&mut state, &deadlines, &QUIET, 104_999), half);
            assert_eq!(due(&mut state, &deadlines, &QUIET, 105_000), "end");
        }
        let mut state = client.shared.state.lock();
        state.phase = Phase::Draining(reason());
        assert_eq!(due(&mut state, &deadlines, &QUIET, 15_000), "ping", "it still answers");
        state.phase = Phase::Closed(reason());
        assert_eq!(due(&mut state, &deadlines, &QUIET, 200_000), "over");
    }

    /// What moved since the last tick is seen, in either direction.
    #[tokio::test(start_paused = true)]
    async fn what_moves_is_life() {
        let (client, _far) = alone(Role::Client);
        let mut state = client.shared.state.lock();
        // So many bytes were written since the last tick.
        let wrote = |state: &mut State, bytes: u32| {
            state.watch.written_bytes = (state.outbox.written_bytes() as u32).wrapping_sub(bytes);
        };
        let seen = state.tick(0, ALL, false, 1_000);
        assert!(seen.is_quiet && !seen.is_long);
        assert_eq!((state.watch.alive_at, state.watch.written_at, state.watch.said_at), (0, 1_000, 0));

        state.watch.pinged_at = NonZeroU32::new(1_000);
        let seen = state.tick(1, ALL, false, 2_000);
        assert!(!seen.is_quiet && seen.is_long, "no whole message came");
        assert_eq!((state.watch.alive_at, state.watch.pinged_at), (2_000, None));
        state.watch.note_message();
        assert!(!state.tick(2, ALL, false, 3_000).is_long);
        assert!(state.tick(3, ALL, false, 4_000).is_long, "that one was before the last tick");
        assert!(state.tick(3, ALL, true, 5_000).is_quiet);
        assert_eq!(state.watch.alive_at, 5_000, "this side does not read");

        wrote(&mut state, 2 * UNHEARD_BYTES - 1);
        state.tick(3, ALL, false, 6_400);
        assert_eq!((state.watch.unheard, state.watch.said_at, state.watch.alive_at), (1, 100, 5_000));
        wrote(&mut state, UNHEARD_BYTES);
        state.watch.flags = WAITED;
        state.tick(3, ALL, false, 6_500);
        assert_eq!(
            (state.watch.unheard, state.watch.alive_at),
            (2, 5_000),
            "what waited was written, and nothing was full"
        );
        wrote(&mut state, UNHEARD_BYTES);
        state.watch.flags = WAITED | FULL | SPARED;
        state.tick(3, ALL, false, 7_000);
        assert_eq!((state.watch.unheard, state.watch.alive_at), (3, 7_000), "a full socket took bytes");
        assert_eq!(state.watch.flags, SPARED);
        state.watch.flags = WAITED | FULL;
        state.tick(3, ALL, false, 8_000);
        assert_eq!((state.watch.unheard, state.watch.alive_at), (3, 7_000), "it took none");
        state.tick(4, ALL, false, 9_000);
        assert_eq!(state.watch.unheard, 0);
    }

    /// The time of a socket that is full begins when somebody tried to write.
    #[tokio::test(start_paused = true)]
    async fn what_nobody_tried_to_write_is_not_the_peers_fault() {
        let (client, _far) = alone(Role::Client);
        let mut state = client.shared.state.lock();
        client.heartbeat(&mut state, Waiter::Ping, &Metadata::new());
        for (writer, now, written_at) in [
            (Writer::Idle, 1_000, 1_000),
            (Writer::Blocked, 2_000, 1_000),
            (Writer::Busy, 3_000, 1_000),
            (Writer::Idle, 4_000, 4_000),
        ] {
            state.outbox.writer = writer;
            state.tick(0, ALL, false, now);
            let full = if writer == Writer::Blocked { FULL } else { 0 };
            assert_eq!((state.watch.flags, state.watch.written_at), (WAITED | full, written_at), "{writer:?}");
        }
        state.watch.written_bytes = state.watch.written_bytes.wrapping_sub(1);
        state.outbox.writer = Writer::Blocked;
        state.tick(0, ALL, false, 5_000);
        assert_eq!(state.watch.written_at, 5_000);
        state.outbox.writer = Writer::Idle;
    }

    /// What a socket has taken and keeps waits like what it has not taken, and what leaves it is what the peer takes.
    #[tokio::test(start_paused = true)]
    async fn what_a_socket_keeps_waits_for_the_peer() {
        let (client, _far) = alone(Role::Client);
        let (mut state, deadlines) = (client.shared.state.lock(), Deadlines::default());
        let mut after = |sent, now| {
            let seen = state.tick(1, PassedOn { has_unsent: true, sent }, false, now);
            due(&mut state, &deadlines, &seen, now)
        };
        assert_eq!((after(Some(100), 1_000), after(Some(100), 10_999)), ("nothing", "nothing"));
        assert_eq!(after(Some(101), 11_000), "nothing", "the peer takes little, and takes it");
        assert_eq!((after(Some(101), 20_999), after(Some(101), 21_000)), ("nothing", "slow"));
    }

    /// Over TLS, what was encrypted and did not leave has the write deadline of a client that reads nothing; of one that
    /// reads slowly it may take as long as it takes.
    #[cfg(feature = "tls")]
    #[tokio::test(start_paused = true)]
    async fn over_tls_bytes_that_nobody_reads_have_the_write_deadline() {
        use std::task::Poll;

        use crate::transport::{AnySocket, Socket, tls::socket_pair};

        for reads in [false, true] {
            let (near, far) = socket_pair(1000).await;
            let socket = AnySocket::Other(Box::new(near));
            let settings = Arc::new(Settings::default());
            let client = Connection::start(Role::Client, socket, settings, Arc::new(Deaf), None, |_| {});
            client
                .send_message("T", "News", &Metadata::new(), bytes::Bytes::from(vec![7; 40_000]))
                .expect("it takes all");

            let mut ended_after = None;
            for second in 1..20_u64 {
                if reads {
                    // A record that is not all there shows nothing yet.
                    let mut buf = [0; 4096];
                    std::future::poll_fn(|cx| Poll::Ready(far.poll_read(cx, &mut buf).is_ready())).await;
                }
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
                let moment = client.began() + Duration::from_secs(second);
                client.watch(moment, moment);
                if client.is_closed() && ended_after.is_none() {
                    ended_after = Some(second);
                }
            }
            assert_eq!(ended_after.is_some(), !reads);
            assert!(ended_after.is_none_or(|second| (10..=12).contains(&second)), "{ended_after:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_brings_its_bytes_within_each_time() {
        let (server, _far) = alone(Role::Server);
        let settings = Settings::default();
        let least = settings.watch.frame_progress_min;
        let mut state = server.shared.state.lock();
        let mut tick = |frame: (u32, usize), is_held_up, now| {
            state.rare().note_frame(frame.0, frame.1);
            match state.slow_frame(&settings, is_held_up, now) {
                Some(CloseReason::SlowFrame { bytes, .. }) => Some(bytes),
                _ => None,
            }
        };
        assert_eq!(tick((1, 100), false, 0), None);
        assert_eq!(tick((1, 101), false, 9_999), None);
        assert_eq!(tick((1, 101), false, 10_000), Some(1));
        assert_eq!(tick((1, 101 + least), false, 20_000), None, "that is enough");
        assert_eq!(tick((1, 100 + 2 * least), false, 30_000), Some(least - 1));
        assert_eq!(tick((2, 5), false, 40_000), None, "it is another frame");
        assert_eq!(tick((2, 5), false, 49_999), None);
        assert_eq!(tick((2, 5), true, 50_000), None, "this side does not read");
        assert_eq!(tick((2, 5), false, 59_999), None);
        assert_eq!(tick((2, 5), false, 60_000), Some(0));
        assert_eq!(tick((2, 0), false, 90_000), None, "none has begun");
        drop(state);

        let (client, _far) = alone(Role::Client);
        let mut state = client.shared.state.lock();
        state.rare().note_frame(1, 5);
        assert!(state.slow_frame(&settings, false, 0).is_none());
        assert!(state.slow_frame(&settings, false, 99_000).is_none(), "a server may take its time");
    }

    #[test]
    fn moments_are_told_by_their_last_bits() {
        assert_eq!((mark(5).get(), mark(1 << 32).get()), (5, u32::MAX));
        assert_eq!(since(7, 5), Duration::from_millis(2));
        assert_eq!(since((1 << 32) + 3, u32::MAX), Duration::from_millis(4));
    }

    #[test]
    fn a_stranger_stays_for_so_long() {
        let deadlines = Deadlines::default();
        assert!(!deadlines.is_stranger_too_long(299_999) && deadlines.is_stranger_too_long(300_000));
    }

    #[test]
    fn ticks_come_four_times_in_the_shortest_time() {
        let tick = |deadlines: Deadlines| deadlines.tick();
        let millis = Duration::from_millis;
        assert_eq!(tick(Deadlines::default()), Duration::from_secs(1));
        assert_eq!(tick(Deadlines { close_timeout: millis(400), ..Deadlines::default() }), millis(100));
        assert_eq!(tick(Deadlines { idle_timeout: Some(millis(200)), ..Deadlines::default() }), millis(50));
        assert_eq!(tick(Deadlines { heartbeat_interval: Some(millis(8)), ..Deadlines::default() }), millis(10));
    }
}
