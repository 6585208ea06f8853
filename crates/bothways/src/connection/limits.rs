//! How many requests run at once, and how much they hold: of one connection, and of all of a server or client.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
};

use bothways_proto::Message;
use tokio::sync::Notify;

use super::{
    Connection, Shared,
    lanes::Lane,
    outgoing::Outgoing,
    shares::{Share, Shares, beyond_half, is_scarce},
};
use crate::{
    calm::{Calm, Said, tell},
    error::ErrorCode,
    reply::Reply,
    stats::Task,
};

/// Refusals that wait for [`LATE_REFUSAL`] in all connections of one server or client; one more leaves at once.
/// 4,096: a burst of callers that give up together. Each holds its request.
const LATE_REFUSALS: usize = 4096;

/// What part of the places and of the bytes of requests is there again for Hellos, where requests have taken all: so
/// that clients come in whatever runs.
const HELLO_PART: usize = 16;

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
    /// Who has how much of these three, once half is taken; and of the room that is kept for Hellos, in KiB.
    call_shares: Arc<Shares>,
    kib_shares: Arc<Shares>,
    partial_shares: Arc<Shares>,
    hello_shares: Arc<Shares>,
    /// Requests, Hellos and frames for which there was no room.
    refused: AtomicU64,
    told_refused: Calm,
    /// What waits for their peers to read.
    outgoing: Outgoing,
    /// Replies that found no room there.
    pub(super) told_no_room: Calm,
    /// Frames that were larger than this side takes, what was larger than a peer takes, and replies that were lost.
    pub(super) told_passed_over: Calm,
    pub(super) told_too_large: Calm,
    pub(super) told_lost: Calm,
    /// Messages that the application of this side failed to handle.
    told_failed: Calm,
    /// Woken when nothing runs any more, and when nobody is to be told any more.
    idle: Notify,
}

impl Default for Load {
    /// For 131,072 requests at once.
    fn default() -> Self {
        Self::new(131_072)
    }
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
            call_shares: Arc::default(),
            kib_shares: Arc::default(),
            partial_shares: Arc::default(),
            hello_shares: Arc::default(),
            refused: AtomicU64::new(0),
            told_refused: Calm::default(),
            outgoing: Outgoing::new(usize::MAX),
            told_no_room: Calm::default(),
            told_passed_over: Calm::default(),
            told_too_large: Calm::default(),
            told_lost: Calm::default(),
            told_failed: Calm::default(),
            idle: Notify::new(),
        }
    }

    /// The same, with these bounds on the bytes of requests that run, and of frames that have not ended.
    pub(crate) fn with_bytes(self, request_bytes_max: usize, partial_bytes_max: usize) -> Self {
        Self { request_bytes_max, partial_bytes_max, ..self }
    }

    /// The same, of which no line is told above level debug.
    pub(crate) fn quiet(self) -> Self {
        Self {
            told_refused: Calm::new(0),
            told_no_room: Calm::new(0),
            told_passed_over: Calm::new(0),
            told_too_large: Calm::new(0),
            told_lost: Calm::new(0),
            told_failed: Calm::new(0),
            ..self
        }
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

    /// Requests, Hellos and frames for which there was no room in all connections together.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// KiB that are kept for Hellos, and what each of these takes of them at least: so many have a place that there are
    /// [`HELLO_PART`] requests for each.
    fn hello_room(&self) -> (usize, usize) {
        let kib = (self.request_bytes_max / 1024 / HELLO_PART).max(1);
        (kib, (kib / (self.max / HELLO_PART).max(1)).max(1))
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

/// Why there is no place for a request.
#[derive(Debug)]
pub(super) struct NoPlace {
    /// For the caller.
    pub(super) text: String,
    /// The bound is one for all connections together.
    is_of_all: bool,
}

impl NoPlace {
    fn of_connection(text: String) -> Self {
        Self { text, is_of_all: false }
    }

    fn of_all(text: String) -> Self {
        Self { text, is_of_all: true }
    }
}

/// What of a server's room a peer may use. Half of it is for those whose token was accepted: strangers must not shut
/// them out.
fn share(room: usize, is_trusted: bool) -> usize {
    if is_trusted { room } else { room / 2 }
}

impl Connection {
    /// Whether requests may hold so many bytes more, of this connection and of all. `own_kib` of what they hold are of
    /// the one that asks.
    fn check_request_bytes(&self, own_kib: usize, bytes: usize) -> Result<(), NoPlace> {
        let shared = &*self.shared;
        let of_all = shared.settings.load.request_kib.load(Ordering::Relaxed);
        if of_all == 0 {
            // No request is held by anybody.
            return Ok(());
        }

        // One alone is bounded by `body_bytes_max`, or by what a value may take.
        let others = |kib: u32| (kib as usize).saturating_sub(own_kib).saturating_mul(1024);
        let of_connection = others(shared.request_kib.load(Ordering::Relaxed));
        if of_connection != 0 && shared.settings.request_bytes_max < of_connection.saturating_add(bytes) {
            let text = format!("overloaded: calls of this connection that hold {of_connection} bytes run already");
            return Err(NoPlace::of_connection(text));
        }

        let of_all = others(of_all);
        if of_all != 0 && self.has_no_room(of_all, bytes) {
            let text = format!("overloaded: calls that hold {of_all} bytes run already");
            return Err(NoPlace::of_all(text));
        }
        Ok(())
    }

    /// True if requests of all connections that hold so much leave no room for this one, or not for this owner.
    fn has_no_room(&self, others: usize, bytes: usize) -> bool {
        let max = share(self.shared.settings.load.request_bytes_max, self.is_trusted());
        let taken = others.saturating_add(bytes);
        max < taken || (is_scarce(taken, max) && self.is_beyond_share(bytes, max - others))
    }

    #[cold]
    fn is_beyond_share(&self, bytes: usize, left: usize) -> bool {
        let load = &*self.shared.settings.load;
        let fits = |owner: Arc<str>| load.kib_shares.fits(&owner, bytes.div_ceil(1024), left / 1024);
        !self.shared.handler.shares_as(self).is_none_or(fits)
    }
}

impl Shared {
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
    /// What it holds of rooms that are more than half taken.
    #[expect(clippy::box_collection, reason = "hardly any has one, and each request moves it")]
    shares: Option<Box<Vec<Share>>>,
    /// The request is the only one that is handled until the token of its connection is accepted.
    pub(super) is_check: bool,
    /// KiB that it holds in a task of its own.
    kib: u32,
    /// The request runs in a task of its own, which is counted.
    is_task: bool,
}

impl Permit {
    /// `Err`: which bound is reached.
    #[inline]
    pub(super) fn acquire(connection: &Connection, message: &Message) -> Result<Self, NoPlace> {
        let (mut permit, in_connection, in_all) = Self::counted(connection);
        let shared = &*connection.shared;
        connection.check_request_bytes(0, message.frame().len())?;
        if shared.settings.calls_running_max <= in_connection {
            let text = format!("overloaded: {in_connection} calls of this connection run already");
            return Err(NoPlace::of_connection(text));
        }
        let max = shared.settings.load.max;
        let has_place = in_all < max && (!is_scarce(in_all + 1, max) || permit.takes_place(max - in_all));
        if !has_place {
            return Err(NoPlace::of_all(format!("overloaded: {in_all} calls run already")));
        }
        Ok(permit)
    }

    /// The same for a Hello: where requests have taken all, it has a place of those that are kept for Hellos.
    pub(super) fn acquire_for_hello(connection: &Connection, message: &Message) -> Result<Self, NoPlace> {
        let refused = match Self::acquire(connection, message) {
            Err(refused) if refused.is_of_all => refused,
            done => return done,
        };
        let load = &*connection.shared.settings.load;
        let (kib, least) = load.hello_room();
        let takes = message.frame().len().div_ceil(1024).max(least);
        let owner = connection.shared.handler.shares_as(connection);
        let Some(share) = owner.and_then(|owner| load.hello_shares.take_within(owner, takes, kib)) else {
            return Err(refused);
        };
        let (mut permit, ..) = Self::counted(connection);
        permit.shares.get_or_insert_default().push(share);
        Ok(permit)
    }

    /// One more, and how many there were before, of the connection and of all.
    #[inline(always)]
    fn counted(connection: &Connection) -> (Self, usize, usize) {
        let shared = &*connection.shared;
        let in_connection = shared.calls_running.fetch_add(1, Ordering::AcqRel) as usize;
        let in_all = shared.settings.load.running.fetch_add(1, Ordering::AcqRel);
        let permit = Self {
            connection: connection.clone(),
            is_late: false,
            shares: None,
            is_check: false,
            kib: 0,
            is_task: false,
        };
        (permit, in_connection, in_all)
    }

    /// Takes a place where so many are left. False: its owner has as many already.
    #[cold]
    fn takes_place(&mut self, left: usize) -> bool {
        let Some(owner) = self.connection.shared.handler.shares_as(&self.connection) else { return true };
        let share = self.connection.shared.settings.load.call_shares.take(owner, 1, 1, left);
        let has_place = share.is_some();
        self.shares.get_or_insert_default().extend(share);
        has_place
    }

    /// The request goes on in a task of its own, and is kept until that ends.
    pub(super) fn keep(&mut self, message: &Message) {
        let shared = &*self.connection.shared;
        if !shared.is_trusted.load(Ordering::Relaxed) {
            shared.is_checking.store(true, Ordering::Relaxed);
            self.is_check = true;
        }
        self.charge(message.pinned_bytes());
        if let Some(meters) = &self.connection.shared.settings.meters {
            meters.begin_task(Task::Handler);
            self.is_task = true;
        }
    }

    /// It holds so many bytes more.
    pub(super) fn charge(&mut self, bytes: usize) {
        let kib = self.connection.shared.hold_request_bytes(bytes);
        self.kib += kib;
        if let Some(share) = self.connection.kib_share(kib) {
            self.shares.get_or_insert_default().push(share);
        }
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

    fn leave(&mut self) {
        self.shares = None;
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
        if let Some(meters) = self.connection.shared.settings.meters.as_ref().filter(|_| self.is_task) {
            meters.end_task(Task::Handler);
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
    #[expect(dead_code, reason = "it is kept to be dropped")]
    share: Option<Share>,
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
        match self.0.take() {
            Some(permit) => Ok(permit),
            None => Permit::acquire(connection, message).map_err(|refused| connection.note_no_place(refused)),
        }
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
        let own_kib = request.pinned_bytes().div_ceil(1024);
        self.check_request_bytes(own_kib, bytes).map_err(|refused| self.note_no_place(refused))?;
        let kib = self.shared.hold_request_bytes(bytes);
        Ok(Some(Decoded { connection: self.clone(), kib, share: self.kib_share(kib) }))
    }

    /// The part of so many KiB that counts for their owner, if requests have taken more than half of the room.
    fn kib_share(&self, kib: u32) -> Option<Share> {
        let load = &*self.shared.settings.load;
        let held = load.request_kib.load(Ordering::Relaxed) as usize;
        let max = share(load.request_bytes_max, self.is_trusted()) / 1024;
        if !is_scarce(held, max) {
            return None;
        }
        let owner = self.shared.handler.shares_as(self)?;
        Some(load.kib_shares.add(owner, beyond_half(kib as usize, held, max)))
    }

    /// There was no place for a request, a Hello or its arguments: it is counted, and told. Returns the text for the caller.
    #[cold]
    pub(super) fn note_no_place(&self, refused: NoPlace) -> String {
        let NoPlace { text, is_of_all } = refused;
        if is_of_all {
            self.note_refused(&text);
        }
        text
    }

    /// When it was told last that the application of this side failed to handle a message.
    pub(crate) fn told_failed(&self) -> &Calm {
        &self.shared.settings.load.told_failed
    }

    fn note_refused(&self, why: &str) {
        let load = &*self.shared.settings.load;
        let refused = 1 + load.refused.fetch_add(1, Ordering::Relaxed);
        let owner = || Said(self.shared.handler.shares_as(self).unwrap_or_default());
        tell!(
            load.told_refused,
            warn,
            peer = self.peer_address(),
            owner = ?owner(),
            why = %Said(why),
            refused,
            "there was no room for what a peer asked"
        );
    }

    /// A frame of this connection that had so many bytes has so many now. False: there is no room for it, or not for
    /// its owner, where frames have taken more than half.
    pub(super) fn count_partial(&self, before: usize, now: usize) -> bool {
        let load = &*self.shared.settings.load;
        let is_trusted = self.is_trusted();
        let fits = load.count_partial(before, now, is_trusted);
        if now <= before {
            if now == 0 && before != 0 {
                self.keep_partial_share(None);
            }
            return true;
        }
        let max = share(load.partial_bytes_max, is_trusted);
        let taken = load.partial_bytes.load(Ordering::Relaxed);
        let fits = fits && (taken == now || !is_scarce(taken, max) || self.takes_partial(now, taken, max));
        if !fits {
            self.note_refused("overloaded: frames that have begun take all room");
        }
        fits
    }

    #[cold]
    fn takes_partial(&self, now: usize, taken: usize, max: usize) -> bool {
        let Some(owner) = self.shared.handler.shares_as(self) else { return true };
        let left = max.saturating_sub(taken.saturating_sub(now));
        self.keep_partial_share(None);
        let beyond = beyond_half(now, taken, max);
        let share = self.shared.settings.load.partial_shares.take(owner, now, beyond, left);
        let fits = share.is_some();
        self.keep_partial_share(share);
        fits
    }

    /// What its frame that has begun takes of its owner's share, in place of what it took.
    fn keep_partial_share(&self, share: Option<Share>) {
        let mut state = self.shared.state.lock();
        let changes = share.is_some() || state.rare.is_some();
        let before = changes.then(|| std::mem::replace(&mut state.rare().partial_share, share));
        drop(state);
        drop(before);
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
