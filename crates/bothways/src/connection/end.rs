//! How a connection ends: at once, after the queue is written, or after all calls are answered.

use std::sync::atomic::Ordering;

use bothways_proto as proto;
use bothways_proto::{Greeting, Role};

use super::{Connection, State, call::Waiter, lock::Locked, unsent::Unsent, writer::Writer};
use crate::{
    error::{CallError, CloseReason, PushError, SessionLost},
    stats::Lost,
};

/// How far the connection is from its end.
pub(super) enum Phase {
    Open,
    /// The peer is about to end the connection: nothing new is sent, but replies still come.
    Draining(Box<CloseReason>),
    /// Nothing more of the peer is read: what it asked for is answered, then the connection ends.
    Answering(Box<CloseReason>),
    /// Nothing new is taken; what waits is written, then the connection ends.
    Closing(Box<CloseReason>),
    Closed(Box<CloseReason>),
}

impl State {
    pub(super) fn check_open(&self) -> Result<(), PushError> {
        match &self.phase {
            Phase::Open => Ok(()),
            Phase::Draining(reason) | Phase::Answering(reason) | Phase::Closing(reason) | Phase::Closed(reason) => {
                Err(PushError::Closed(CloseReason::clone(reason)))
            }
        }
    }

    /// True while it is known what a client can do, and its Welcome is not queued yet. A moment.
    pub(super) fn is_welcoming(&self) -> bool {
        self.can_answer() && matches!(self.proto.greeting(), Greeting::Welcoming(_))
    }

    /// True while answers may still be sent.
    pub(super) fn can_answer(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Draining(_) | Phase::Answering(_))
    }

    /// True at a client that closes the connection: it reads on to its server's end.
    pub(super) fn is_heard_out(&self) -> bool {
        matches!(self.phase, Phase::Closing(_)) && self.proto.role() == Role::Client
    }

    /// Notes that the peer is about to end the connection, and why.
    pub(super) fn drain(&mut self, reason: CloseReason) {
        if matches!(self.phase, Phase::Open) {
            self.phase = Phase::Draining(Box::new(reason));
            self.release_replies();
        }
    }
}

impl State {
    /// Why it ends, if this is said now. Why the peer sends nothing more says more than how the answers failed; and that
    /// a server refused the Hello says more than that the client closes the connection then.
    fn first_reason(&self, reason: CloseReason) -> CloseReason {
        match &self.phase {
            Phase::Answering(first) => CloseReason::clone(first),
            Phase::Draining(first) if is_refusal(self.proto.role(), first) => CloseReason::clone(first),
            _ => reason,
        }
    }
}

impl Locked<'_> {
    /// No reply will be read any more: the callers that wait for one are told. What is on its way still
    /// leaves, so that a call is only called unwritten if it can be taken back.
    fn fail_calls(&mut self, reason: &CloseReason) {
        let heard = was_heard(self.proto.role(), reason);
        for waiter in self.proto.drain() {
            if let Waiter::Call { reply, number } = waiter {
                let written = !self.outbox.forget_call(number) && heard;
                self.answer(reply, CallError::Closed { written, reason: reason.clone() });
            }
        }
        self.drop_forgotten();
    }
}

/// True if this is how a server refuses the Hello of this side.
fn is_refusal(role: Role, reason: &CloseReason) -> bool {
    matches!(reason, CloseReason::HelloRefused(_)) && role == Role::Client || !was_heard(role, reason)
}

/// True if a connection that ends for this reason may have been listened to. A server that refuses the token, or says
/// "not now", closes with that and looks at nothing that was sent after the Hello. Any other refusal does not say so:
/// older servers went on reading after `internal`.
fn was_heard(role: Role, reason: &CloseReason) -> bool {
    match reason {
        CloseReason::NotAdmitted { .. } | CloseReason::Unauthenticated(_) => role == Role::Server,
        _ => true,
    }
}

impl Connection {
    /// Why it takes nothing new; `None` while it is open.
    pub(crate) fn end_reason(&self) -> Option<CloseReason> {
        match self.shared.state.lock().check_open() {
            Err(PushError::Closed(reason)) => Some(reason),
            _ => None,
        }
    }

    /// Waits until the connection is over, or its server has said that it ends it and when to come back. It takes
    /// no calls from then on, but what runs is still answered. Dropping the future changes nothing.
    pub async fn leaving(&self) -> CloseReason {
        loop {
            // Made before the look at the phase: a change between the two wakes it.
            let changed = self.shared.changed.notified();
            match &self.shared.state.lock().phase {
                Phase::Closed(reason) => return CloseReason::clone(reason),
                Phase::Draining(reason)
                    if matches!(
                        **reason,
                        CloseReason::Goodbye { .. }
                            | CloseReason::NotAdmitted { .. }
                            | CloseReason::Unauthenticated(_)
                            | CloseReason::HelloRefused(_)
                    ) =>
                {
                    return CloseReason::clone(reason);
                }
                _ => {}
            }

            changed.await;
        }
    }

    /// The server has ended this client's session while it was away, and does not want it back: as if it said goodbye.
    /// `words`: what it said of that, if it did.
    pub(crate) fn end_as_sent_away(&self, why: SessionLost, words: Option<&str>) {
        let words = words.unwrap_or("the session was ended while this client was away");
        let (code, why) = (why.to_string(), words.to_owned());
        self.shared.state.lock().drain(CloseReason::Goodbye { code, why, reconnect_after: None });
        self.shared.changed.notify_waiters();
    }

    /// Ends the connection now; what is queued is dropped, and counted.
    pub(crate) fn cut(&self) {
        self.close_now(CloseReason::Local);
    }

    /// As [`Self::cut`], for who holds locks of the layer above: the callers are told, and payloads dropped, with the
    /// answer.
    #[must_use]
    pub(crate) fn cut_untold(&self) -> impl Sized + '_ {
        let mut state = self.shared.state.lock();
        self.end(&mut state, CloseReason::Local);
        state.unlock()
    }

    /// Ends the connection now because its client acknowledged what it was never sent.
    pub(crate) fn end_as_misbehaved(&self) {
        self.close_now(CloseReason::Misbehaved(proto::PeerMisbehaved::FalseAck));
    }

    /// Ends the connection once what waits is written: its client has left, and reads no reply. Oneway requests whose token
    /// is being checked are decided first.
    pub(crate) fn end_as_left(&self) {
        let has_undecided = self.shared.state.lock().has_undecided();
        match has_undecided {
            true => self.answer_and_end(CloseReason::PeerClosed),
            false => self.close_after_flush(CloseReason::PeerClosed),
        }
    }

    /// At a client: ends the connection for good, and the session with it, once what waits is written. The server is told
    /// how far this client was with what it was sent.
    pub(crate) fn close_leaving(&self, acks: &[proto::Metadata]) {
        self.acknowledge_before_leave(acks);
        let mut state = self.shared.state.lock();
        // Under the lock: no request comes behind it.
        self.queue_leave(&mut state, acks);
        self.begin_closing(state, CloseReason::Local);
        self.flush();
    }

    /// Takes nothing more of the peer: its calls that run are answered, within `close_timeout`, then the connection ends.
    /// What the peer was asked is answered by nobody.
    pub(crate) fn answer_and_end(&self, reason: CloseReason) {
        self.catch_up();
        let mut state = self.shared.state.lock();
        if matches!(state.phase, Phase::Open | Phase::Draining(_)) {
            self.begin_answering(&mut state, reason);
            self.wake_driver(&mut state);
        }
    }

    /// Ends the connection now because its server sent what it must not send.
    pub(crate) fn end_as_misbehaved_by(&self, what: proto::PeerMisbehaved) {
        self.close_now(CloseReason::Misbehaved(what));
    }

    /// Ends the connection now because what it brings is not taken fast enough.
    pub(crate) fn end_as_slow(&self, why: &'static str) {
        self.close_now(CloseReason::SlowPeer(why));
    }

    /// Ends the connection once what waits is written.
    pub(super) fn close_after_flush(&self, reason: CloseReason) {
        self.catch_up();
        let mut state = self.shared.state.lock();
        if state.is_welcoming() {
            state.rare().after_welcome.end.get_or_insert(reason);
            return;
        }
        self.begin_closing(state, reason);
    }

    /// As [`Self::close_after_flush`], and without a Welcome, if that is on its way.
    pub(super) fn close_unwelcomed(&self, reason: CloseReason) {
        self.begin_closing(self.shared.state.lock(), reason);
    }

    fn begin_closing<'a>(&'a self, mut state: Locked<'a>, reason: CloseReason) {
        if state.can_answer() {
            let reason = state.first_reason(reason);
            state.fail_calls(&reason);
            // Of a client that left all was read.
            if !matches!(reason, CloseReason::PeerClosed) || state.owes_taken() {
                self.say_taken(&mut state);
            }
            state.phase = Phase::Closing(Box::new(reason));
            state.release_replies();
            self.wake_driver(&mut state);
            state.notify(&self.shared.changed);
        }
    }

    /// Nothing more comes from the peer. What it asked for is still answered, as long as that is
    /// worth something; false if there is nothing to answer, or nobody who would read it.
    pub(super) fn answer_the_rest(&self, reason: &CloseReason) -> bool {
        self.catch_up();
        let shared = &*self.shared;
        let mut state = shared.state.lock();

        let at_end = matches!(reason, CloseReason::PeerClosed | CloseReason::PeerClosedMidFrame);
        // A Bothways client ends its side when it is closed, and reads no reply from then on; or it was killed. It
        // must not be listed as connected for as long as its handlers run. What it sent at last may have to go back, though.
        let owes_taken = at_end && state.owes_taken();
        let reads_no_more = at_end && state.proto.is_negotiated() && !owes_taken;
        // A stranger's token is not checked for nobody.
        let reads_no_more = reads_no_more || shared.is_checking.load(Ordering::Relaxed);
        let is_cancelled = shared.settings.cancel_on_disconnect && !owes_taken;
        let worth_it = state.proto.role() == Role::Server && !is_cancelled && !reads_no_more;

        if !worth_it || !matches!(state.phase, Phase::Open) {
            return false;
        }

        // Set before the count is read: a handler that ends after that wakes the driver.
        shared.answering.store(true, Ordering::SeqCst);
        let is_done = shared.calls_running.load(Ordering::SeqCst) == 0
            && state.outbox.is_empty()
            && !state.outbox.holds_replies();
        if is_done && !owes_taken {
            return false;
        }

        self.begin_answering(&mut state, reason.clone());
        true
    }

    /// Takes nothing more of the peer: what runs is answered, then the connection ends. If it is waited for the answers
    /// of the peer, these are still read, and the caller that stops the connection ends it.
    pub(crate) fn end_once_answered(&self) {
        self.catch_up();
        let mut state = self.shared.state.lock();
        if matches!(state.phase, Phase::Open) && state.proto.calls().is_empty() {
            self.begin_answering(&mut state, CloseReason::Local);
            self.wake_driver(&mut state);
        }
    }

    /// From here on the peer is not read, and what runs is answered. The driver looks next, or is to be woken.
    fn begin_answering<'a>(&'a self, state: &mut Locked<'a>, reason: CloseReason) {
        self.shared.answering.store(true, Ordering::SeqCst);
        state.fail_calls(&reason);
        state.phase = Phase::Answering(Box::new(reason));
        state.release_replies();
        state.notify(&self.shared.changed);
    }

    /// Ends the connection now: what waits is dropped, and everyone who waits is told.
    pub(super) fn close_now(&self, reason: CloseReason) {
        self.end(&mut self.shared.state.lock(), reason);
    }

    pub(super) fn end<'a>(&'a self, state: &mut Locked<'a>, reason: CloseReason) {
        if matches!(state.phase, Phase::Closed(_)) {
            return;
        }
        let reason = state.first_reason(reason);
        let heard = was_heard(state.proto.role(), &reason);
        for waiter in state.proto.drain() {
            if let Waiter::Call { reply, number } = waiter {
                let written = state.outbox.call_may_be_written(number) && heard;
                state.answer(reply, CallError::Closed { written, reason: reason.clone() });
            }
        }

        let writes = state.outbox.writer == Writer::Busy;
        self.forget_outgoing(state, writes);
        state.phase = Phase::Closed(Box::new(reason));
        self.wake_driver(state);
        state.notify(&self.shared.changed);
    }

    /// Nothing that waits leaves any more. `writes`: what somebody is writing will have left, or comes here later.
    pub(super) fn forget_outgoing(&self, state: &mut Locked<'_>, writes: bool) {
        let untaken = if writes { 0 } else { state.oneways_untaken() };
        let is_own = state.only_own_are_unwritten();
        let rest = state.outbox.clear();
        self.shared.settings.count_drops(Lost::ConnectionEnded, rest.lost_pushes());
        state.outbox.recount(self.shared.settings.load.outgoing());
        state.drop_later(Unsent::new(self, rest, untaken, is_own));
    }

    /// Half of the time for closing is over, and requests of this client still wait: they do not leave any more, so that
    /// those before them are read in the other half, and the server hears that its client leaves.
    pub(super) fn give_up_requests<'a>(&'a self, state: &mut Locked<'a>) {
        let own = usize::try_from(state.own_behind_requests()).unwrap_or(usize::MAX);
        if let Some(rest) = state.outbox.give_up_pushes(own) {
            state.outbox.recount(self.shared.settings.load.outgoing());
            state.drop_later(Unsent::new(self, rest, 0, false));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client whose Hello was refused in a way that closes knows that nothing after it was looked at. After any other
    /// refusal it does not; a server knows nothing of the kind.
    #[test]
    fn behind_a_hello_that_is_refused_nothing_was_heard_if_the_refusal_closes() {
        let text = || "no".to_owned();
        let not_now = CloseReason::NotAdmitted { why: text(), retry_after: std::time::Duration::ZERO };
        for (reason, heard) in [
            (not_now, false),
            (CloseReason::Unauthenticated(text()), false),
            (CloseReason::HelloRefused(text()), true),
            (CloseReason::PeerClosed, true),
        ] {
            assert_eq!([Role::Server, Role::Client].map(|role| was_heard(role, &reason)), [true, heard], "{reason}");
            let is_refused = !matches!(reason, CloseReason::PeerClosed);
            assert_eq!([Role::Server, Role::Client].map(|role| is_refusal(role, &reason)), [false, is_refused]);
        }
    }
}
