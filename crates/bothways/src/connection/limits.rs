//! How many requests run at once, and how much they hold: of one connection, and of all of a server or client.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use bothways_proto::Message;
use tokio::sync::Notify;

use super::{Connection, Shared, lanes::Lane, outgoing::Outgoing};
use crate::{calm::Calm, error::ErrorCode, reply::Reply};

/// Refusals that wait for [`LATE_REFUSAL`] in all connections of one server or client; one more leaves at once.
/// 4,096: a burst of callers that give up together. Each holds its request.
const LATE_REFUSALS: usize = 4096;

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
pub(super) struct Permit {
    pub(super) connection: Connection,
    is_late: bool,
    /// The request is the only one that is handled until the token of its connection is accepted.
    pub(super) is_check: bool,
    /// KiB that it holds in a task of its own.
    kib: u32,
}

impl Permit {
    /// `Err`: which bound is reached, for the caller.
    #[inline]
    pub(super) fn acquire(connection: &Connection, message: &Message) -> Result<Self, String> {
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
    pub(super) fn keep(&mut self, message: &Message) {
        let shared = &*self.connection.shared;
        if !shared.is_trusted.load(Ordering::Relaxed) {
            shared.is_checking.store(true, Ordering::Relaxed);
            self.is_check = true;
        }
        self.charge(message.pinned_bytes());
    }

    /// It holds so many bytes more.
    pub(super) fn charge(&mut self, bytes: usize) {
        self.kib += self.connection.shared.hold_request_bytes(bytes);
    }

    /// Nothing runs any more, but the caller is to be told so later: others may have the place at once. False: so
    /// many wait for that already that it is told now.
    pub(super) fn retire(&mut self) -> bool {
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
    #[inline]
    pub(super) fn take(&mut self, connection: &Connection, message: &Message) -> Result<Permit, String> {
        self.0.take().map_or_else(|| Permit::acquire(connection, message), Ok)
    }

    #[inline]
    pub(super) fn keep(&mut self, permit: Permit) {
        self.0 = Some(permit);
    }
}

impl Connection {
    /// Copies a request out of its read before its handler sees it, if many run already: it may run for as long as
    /// they do, and whatever the handler keeps of it would keep the whole read. The first 16 are kept as they came, each
    /// counted with its read, so that those that are ready at once are not copied where few others run; of a client
    /// without a token that was accepted each is copied.
    #[inline]
    pub(super) fn copy_if_many_run(&self, message: &mut Message) {
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
}

#[cfg(test)]
mod tests;
