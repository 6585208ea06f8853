//! The frames that wait for the socket: their order and their bounds.
//!
//! ```text
//!            socket free                          socket full, or 64 KiB are under way
//!  frame ───────────────► wire ──► socket     frame ──► lane: control │ replies 8 │ calls 4 │ pushes 4
//!                          ▲                                    │ first  │ shares by weight in bytes
//!                          └────────────────────────────────────┴── refilled as the wire drains
//! ```
//!
//! A frame that finds the lanes empty goes straight onto the [`Wire`]; [`Lanes`] says whose turn it is behind a
//! full socket. What waits has a bound of its own in each lane, and a rule for when it is full:
//!
//! | lane | bound | rule |
//! |---|---|---|
//! | control | [`CONTROL_FRAMES`], [`CONTROL_BYTES`] | the connection ends |
//! | replies | [`REPLY_OVERDRAFT`] times `reply_bytes_max` | a short failure takes the reply's place |
//! | calls | `call_bytes_max` | the call is refused |
//! | pushes | `outgoing.push_queue` | [`Overflow`] |
//!
//! One frame that is larger than its bound is taken if nothing else waits in its lane. Beside these bounds all connections
//! share the room that [`Outgoing`] counts: what finds none there is refused by the same rules, a push always.

use bothways_proto::{EncodeError, FrameParts, HEADER_LEN, Limits, Role, Seq};
use bytes::Bytes;

use super::{
    lanes::{Entry, Lane, Lanes, Waiting},
    outgoing::{ENTRY_BYTES, OWN_BYTES, Outgoing},
    progress::Counted,
    spare,
    wire::{SHARE_BYTES, WIRE_BYTES, Wire},
    writer::Writer,
};
use crate::{
    connection::Overflow,
    shrink::keep_alone,
    stats::{Lost, Meters},
};

/// Heartbeat answers, refusals and other small frames that may wait. A peer that lets so many pile
/// up is not reading.
pub(super) const CONTROL_FRAMES: usize = 1024;

/// Their bytes: a quarter of a KiB for each.
pub(super) const CONTROL_BYTES: usize = 256 << 10;

/// Replies may take so many times the bytes above which the peer is not read from: handlers that run already come
/// to their ends. Beyond, a reply of more than [`FAILURE_BYTES`] is refused.
pub(super) const REPLY_OVERDRAFT: usize = 16;

/// A reply of at most this many bytes is taken beyond the bound of replies, for it tells a caller that its own was
/// not; until twice that bound is full.
const FAILURE_BYTES: usize = 1 << 10;

/// Why a frame was not taken.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Refused {
    TooLarge(EncodeError),
    /// The lane is full, and its rule is to refuse.
    Full {
        frames: usize,
        bytes: usize,
    },
    /// All connections together hold so many bytes, and this one no little.
    AllFull {
        frames: usize,
        bytes: usize,
    },
    /// The lane is full, and its rule is to end the connection.
    Disconnect(&'static str),
}

impl From<EncodeError> for Refused {
    fn from(error: EncodeError) -> Self {
        Self::TooLarge(error)
    }
}

/// What an outbox held when its connection ended.
pub(super) struct Rest {
    pub(super) wire: Option<Box<Wire>>,
    pub(super) lanes: Option<Box<Lanes>>,
}

impl Rest {
    /// Pushes that waited and that no session sends again.
    pub(super) fn lost_pushes(&self) -> u64 {
        self.lanes.as_ref().map_or(0, |lanes| lanes.lost_pushes())
    }
}

/// Bounds of an outbox.
#[derive(Clone, Debug)]
pub(super) struct OutboxBounds<'a> {
    pub(super) push_frames: usize,
    pub(super) push_bytes: usize,
    pub(super) overflow: Overflow,
    /// Bytes of replies above which the peer is not read from.
    pub(super) reply_bytes: usize,
    /// Bytes of calls that may wait.
    pub(super) call_bytes: usize,
    /// What waits in all connections.
    pub(super) outgoing: &'a Outgoing,
    /// Where pushes that find a queue full are counted.
    pub(super) meters: Option<&'a Meters>,
}

impl OutboxBounds<'_> {
    #[cold]
    fn count_full(&self) {
        if let Some(meters) = self.meters {
            meters.count_drops(Lost::QueueFull, 1);
        }
    }
}

/// Frames on their way to the socket. Small while there are none.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// While something is to be written, and is not being written.
    wire: Option<Box<Wire>>,
    lanes: Option<Box<Lanes>>,
    /// None before the first call and the first push.
    counted: Option<Box<Counted>>,
    /// Total bytes the socket took; what the write deadline watches.
    written_bytes: u64,
    pub(super) writer: Writer,
    /// Calls wait in the lane of pushes: a client's requests leave in the order in which they were made, whether
    /// they want a reply or not.
    requests_in_order: bool,
    /// KiB that [`Outgoing`] has counted of this.
    counted_kib: u32,
}

impl Outbox {
    pub(super) fn new(role: Role) -> Self {
        Self { requests_in_order: role == Role::Client, ..Self::default() }
    }

    /// Takes one frame: `parts` and its payload. Answers, for a call, the number that
    /// [`Self::call_may_be_written`] knows it by.
    pub(super) fn add(
        &mut self,
        lane: Lane,
        parts: &FrameParts<'_>,
        payload: &Bytes,
        limits: &Limits,
        bounds: &OutboxBounds<'_>,
    ) -> Result<u64, Refused> {
        let direct = self.goes_direct();
        if !direct || OWN_BYTES < payload.len() {
            let len = bothways_proto::PREFIX_LEN + parts.body_len();
            self.check_all(lane, len, bounds)?;
            // What goes straight onto the wire waits in no lane.
            if !direct {
                self.make_room(lane, len, bounds)?;
            }
        }

        if direct && payload.len() < SHARE_BYTES {
            let wire = &mut **self.wire.get_or_insert_with(spare::take);
            // Copied: one buffer beats a vectored write of small slices.
            if let Some(flat) = wire.flat_end() {
                let before = flat.len();
                parts.put_frame(flat, payload, limits)?;
                let added = flat.len() - before;
                wire.note_flat(added);
                return Ok(self.count(lane, true));
            }
        }

        Ok(self.add_entry(entry_of(lane, parts, payload, limits, !direct)?, direct, bounds))
    }

    /// Takes a reply that is kept back until [`Self::release_reply`]. Answers its number.
    pub(super) fn hold_reply(
        &mut self,
        parts: &FrameParts<'_>,
        payload: &Bytes,
        limits: &Limits,
        bounds: &OutboxBounds<'_>,
    ) -> Result<u64, Refused> {
        let len = bothways_proto::PREFIX_LEN + parts.body_len();
        self.check_all(Lane::Reply, len, bounds)?;
        self.make_room(Lane::Reply, len, bounds)?;
        let mut entry = entry_of(Lane::Reply, parts, payload, limits, true)?;
        (entry.call, entry.push) = (self.count(Lane::Reply, false), self.pushes_added());
        let counted = self.counted.get_or_insert_default();
        counted.replies_held += 1;
        let number = counted.replies_held;
        self.lanes_mut().hold(number, entry);
        self.count_what_waits(bounds);
        Ok(number)
    }

    /// Lets the reply of this number go, or the oldest that is kept back: behind the pushes that wait. False: there is
    /// none.
    pub(super) fn release_reply(&mut self, number: Option<u64>) -> bool {
        let Some(mut entry) = self.lanes.as_mut().and_then(|lanes| lanes.release(number)) else { return false };
        if self.goes_direct() {
            self.wire.get_or_insert_with(spare::take).push_frame(entry.head, entry.body, entry.owned);
        } else {
            (entry.call, entry.push) = (self.count(Lane::Reply, false), self.pushes_added());
            let lanes = self.lanes_mut();
            lanes.push(entry);
            lanes.last_reply_behind_pushes();
        }
        true
    }

    /// True if a reply is kept back.
    pub(super) fn holds_replies(&self) -> bool {
        self.lanes.as_ref().is_some_and(|lanes| lanes.holds_any())
    }

    fn lanes_mut(&mut self) -> &mut Lanes {
        self.lanes.get_or_insert_with(|| Box::new(Lanes::new(self.requests_in_order)))
    }

    /// Takes one frame that is encoded already, and perhaps shared with other connections.
    pub(super) fn add_frame(&mut self, lane: Lane, frame: &Bytes, bounds: &OutboxBounds<'_>) -> Result<u64, Refused> {
        self.add_frame_as(lane, frame, None, bounds)
    }

    /// Like [`Self::add_frame`], under another number: the body stays shared. A frame with a number of its own is a
    /// session's, which has looked for room and given it away: it is taken, and stays.
    pub(super) fn add_frame_as(
        &mut self,
        lane: Lane,
        frame: &Bytes,
        seq: Option<Seq>,
        bounds: &OutboxBounds<'_>,
    ) -> Result<u64, Refused> {
        let direct = self.goes_direct();
        let owed = seq.is_some();
        if !direct && !owed {
            self.make_room(lane, frame.len(), bounds)?;
        }

        if direct && frame.len() < SHARE_BYTES {
            let wire = &mut **self.wire.get_or_insert_with(spare::take);
            if let Some(flat) = wire.flat_end() {
                let at = flat.len();
                flat.extend_from_slice(frame);
                if let Some(seq) = seq {
                    seq.put(&mut flat[at..]);
                }
                wire.note_flat(frame.len());
                return Ok(self.count(lane, true));
            }
        }

        let (head, body) = match seq {
            None => (frame.clone(), Bytes::new()),
            Some(seq) => {
                let mut head = frame[..HEADER_LEN].to_vec();
                seq.put(&mut head);
                (head.into(), frame.slice(HEADER_LEN..))
            }
        };

        let owned = lane != Lane::Push;
        Ok(self.add_entry(Entry { lane, owned, call: 0, push: 0, owed, head, body }, direct, bounds))
    }

    /// Takes this many pushes that were joined into one piece, if all of them go straight onto the wire. False:
    /// nothing was taken, and each has to find its own way.
    pub(super) fn add_joined_pushes(&mut self, joined: &Bytes, pushes: usize) -> bool {
        if !self.goes_direct() || WIRE_BYTES < self.wire_bytes() + joined.len() {
            return false;
        }
        let wire = self.wire.get_or_insert_with(spare::take);
        wire.push(joined.clone());
        wire.note_frames(u32::try_from(pushes).unwrap_or(u32::MAX));
        let progress = &mut self.counted.get_or_insert_default().pushes;
        progress.added += pushes as u64;
        progress.on_wire = progress.added;
        wire.note_push(progress.added);
        true
    }

    /// True if the peer may have seen the call of this number.
    pub(super) fn call_may_be_written(&self, number: u64) -> bool {
        let Some(counted) = &self.counted else { return false };
        let calls = &counted.calls;
        number <= calls.written || (self.writer == Writer::Busy && number <= calls.under_way)
    }

    /// Takes the call of this number out if it has not left its lane: then it never leaves, and the
    /// peer need not be told. False: it is on the wire, or gone.
    /// Its payload is in [`Self::take_dropped`].
    pub(super) fn forget_call(&mut self, number: u64) -> bool {
        let Some(lanes) = &mut self.lanes else { return false };
        let forgotten = lanes.forget_call(number);
        let is_forgotten = forgotten.is_some();
        forgotten.into_iter().for_each(|entry| lanes.drop_later(entry));
        is_forgotten
    }

    /// Payloads of what left its lane unsent. They may be an application's own, whose `Drop` is to run outside the lock.
    pub(super) fn has_dropped(&self) -> bool {
        self.lanes.as_ref().is_some_and(|lanes| lanes.has_dropped())
    }

    /// See [`Self::has_dropped`].
    pub(super) fn take_dropped(&mut self) -> Vec<Bytes> {
        self.lanes.as_mut().map_or(Vec::new(), |lanes| lanes.take_dropped())
    }

    /// True while the peer may be told of calls that were given up. When it does not read, that can
    /// wait for ever, and answers to its heartbeats have more need of the room.
    pub(super) fn has_room_for_cancels(&self) -> bool {
        !self.control_piles_up()
    }

    /// True while half of what may wait of heartbeat answers and the like does: a server reads no more of them.
    pub(super) fn control_piles_up(&self) -> bool {
        let Waiting { frames, bytes } = self.waiting(Lane::Control);
        CONTROL_FRAMES / 2 <= frames || CONTROL_BYTES / 2 <= bytes
    }

    /// How many pushes were ever added: a reply that was begun before a push was added stays behind it.
    pub(super) fn pushes_added(&self) -> u64 {
        self.counted.as_ref().map_or(0, |counted| counted.pushes.added)
    }

    /// How often the session of this connection kept pushes for which there was no room here.
    pub(super) fn pushes_kept(&self) -> u64 {
        self.counted.as_ref().map_or(0, |counted| counted.pushes_kept)
    }

    pub(super) fn note_kept_push(&mut self) {
        self.counted.get_or_insert_default().pushes_kept += 1;
    }

    /// The number of the last push that the kernel has whole. Those before it have left too, or were dropped.
    pub(super) fn pushes_written(&self) -> u64 {
        self.counted.as_ref().map_or(0, |counted| counted.pushes.written)
    }

    /// The number of the last push that the kernel may have whole.
    pub(super) fn pushes_begun(&self) -> u64 {
        let pushes = self.counted.as_ref().map(|counted| &counted.pushes);
        pushes.map_or(0, |pushes| match self.writer {
            Writer::Busy => pushes.under_way.max(pushes.written),
            _ => pushes.written,
        })
    }

    /// How many pushes the kernel has whole, except those that are being written.
    pub(super) fn pushes_left(&self) -> u64 {
        let Some(counted) = &self.counted else { return 0 };
        let by_rule = counted.pushes_dropped.saturating_sub(counted.pushes_dropped_at_end);
        counted.pushes.written.saturating_sub(by_rule)
    }

    /// How many of the last pushes the kernel does not have whole.
    pub(super) fn pushes_unwritten(&self) -> u64 {
        self.counted.as_ref().map_or(0, |counted| counted.pushes.added.saturating_sub(counted.pushes.written))
    }

    /// How many pushes the rule for a full queue dropped.
    pub(super) fn pushes_dropped(&self) -> u64 {
        self.counted.as_ref().map_or(0, |counted| counted.pushes_dropped)
    }

    /// Takes what is next to be written out of the outbox; `None` if there is nothing.
    pub(super) fn take(&mut self) -> Option<Box<Wire>> {
        self.refill();
        let wire = self.wire.take_if(|wire| !wire.is_empty())?;
        if let Some(Counted { calls, pushes, .. }) = self.counted.as_deref_mut() {
            calls.under_way = calls.on_wire;
            pushes.under_way = pushes.on_wire;
        }
        Some(wire)
    }

    /// Puts back what [`Self::take`] gave; `written` bytes of it went out.
    pub(super) fn put_back(&mut self, mut wire: Box<Wire>, written: usize) {
        self.written_bytes += written as u64;
        if let Some(Counted { calls, pushes, .. }) = self.counted.as_deref_mut() {
            if 0 < written {
                calls.written = calls.under_way;
            }

            if wire.is_empty() {
                pushes.written = pushes.under_way;
                wire.forget_pushes();
            } else if let Some(number) = wire.pushes_gone() {
                pushes.written = number;
            }
        }

        match &mut self.wire {
            _ if wire.is_empty() => spare::give(wire),
            None => self.wire = Some(wire),
            // What was added during the write goes behind what is left of this.
            Some(newer) => {
                std::mem::swap(newer, &mut wire);
                newer.append(&mut wire);
                spare::give(wire);
            }
        }
    }

    /// Total bytes that the socket took.
    pub(super) fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// Bytes of replies that wait behind a full socket, with their places.
    pub(super) fn reply_bytes(&self) -> usize {
        let Waiting { frames, bytes } = self.waiting(Lane::Reply);
        bytes + frames * ENTRY_BYTES
    }

    /// What of all this counts for all connections together.
    fn cost(&self) -> usize {
        let wire = self.wire.as_ref().map_or(0, |wire| wire.cost());
        wire + self.lanes.as_ref().map_or(0, |lanes| lanes.cost())
    }

    /// Has what waits counted for all connections: after each write, and when all is forgotten.
    pub(super) fn recount(&mut self, all: &Outgoing) {
        let cost = self.cost();
        if OWN_BYTES < cost || self.counted_kib != 0 {
            self.counted_kib = all.recount(self.counted_kib, cost);
        }
    }

    /// True if this holds more than is left for everybody: its peer is not read from until it reads.
    pub(super) fn holds_much(&self, all: &Outgoing) -> bool {
        self.counted_kib != 0 && !all.has_room_for(self.cost())
    }

    /// Pushes and their bytes that wait behind a full socket.
    pub(super) fn pushes_waiting(&self) -> (usize, usize) {
        let Waiting { frames, bytes } = self.waiting(Lane::Push);
        (frames, bytes)
    }

    fn waiting(&self, lane: Lane) -> Waiting {
        self.lanes.as_ref().map_or(Waiting::default(), |lanes| lanes.waiting(lane))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.wire.as_ref().is_none_or(|wire| wire.is_empty())
            && self.lanes.as_ref().is_none_or(|lanes| lanes.is_empty())
    }

    /// Gives back memory that a burst took, unless something waits.
    pub(super) fn shrink(&mut self) {
        if self.is_empty() && !self.holds_replies() && self.writer == Writer::Idle {
            self.wire = None;
            self.lanes = None;
        }
    }

    /// Forgets everything, because the connection is over. Gives what it held: payloads may be an application's
    /// own, whose `Drop` is to run outside the lock.
    pub(super) fn clear(&mut self) -> Rest {
        let (wire, lanes) = (self.wire.take(), self.lanes.take());
        let waited = lanes.as_ref().map_or(0, |lanes| lanes.waiting(Lane::Push).frames);
        if waited != 0 {
            let counted = self.counted.get_or_insert_default();
            counted.pushes_dropped += waited as u64;
            counted.pushes_dropped_at_end += waited as u64;
        }
        Rest { wire, lanes }
    }

    /// Gives up the pushes that wait in their lane, except the last ones: so many.
    pub(super) fn give_up_pushes(&mut self, except: usize) -> Option<Rest> {
        let lanes = self.lanes.as_mut()?.take_pushes(except)?;
        self.counted.get_or_insert_default().pushes_dropped += lanes.waiting(Lane::Push).frames as u64;
        Some(Rest { wire: None, lanes: Some(Box::new(lanes)) })
    }

    /// True if enough is on the wire for a write of its own, and nobody writes: putting the write off
    /// any longer would only fill the lanes of a socket that may be free.
    pub(super) fn wants_write(&self) -> bool {
        WIRE_BYTES <= self.wire_bytes() && self.writer == Writer::Idle
    }

    /// True if so much is on the wire that it is not to wait for more.
    pub(super) fn is_worth_a_write(&self) -> bool {
        WIRE_BYTES / 2 <= self.wire_bytes()
    }

    pub(super) fn goes_direct(&self) -> bool {
        self.wire_bytes() < WIRE_BYTES
            && self.lanes.as_ref().is_none_or(|lanes| lanes.is_empty())
            && !matches!(self.writer, Writer::Blocked | Writer::LeftOff)
    }

    fn wire_bytes(&self) -> usize {
        self.wire.as_ref().map_or(0, |wire| wire.bytes())
    }

    /// Makes room for a frame that has to wait, by the rule of its lane, or refuses it.
    fn make_room(&mut self, lane: Lane, len: usize, bounds: &OutboxBounds<'_>) -> Result<(), Refused> {
        let Waiting { frames, bytes } = self.waiting(lane);
        let over = |bytes_max: usize| 0 < frames && bytes_max < bytes.saturating_add(len);

        match lane {
            Lane::Control if CONTROL_FRAMES <= frames || over(CONTROL_BYTES) => {
                Err(Refused::Disconnect("it lets heartbeat answers and refusals pile up"))
            }
            Lane::Control => Ok(()),
            Lane::Reply => {
                let bytes_max = bounds.reply_bytes.saturating_mul(REPLY_OVERDRAFT);
                if over(bytes_max.saturating_mul(2)) {
                    Err(Refused::Disconnect("it lets replies pile up"))
                } else if over(bytes_max) && FAILURE_BYTES < len {
                    Err(Refused::Full { frames, bytes })
                } else {
                    Ok(())
                }
            }
            Lane::Call if over(bounds.call_bytes) => Err(Refused::Full { frames, bytes }),
            Lane::Call => Ok(()),
            Lane::Push => self.make_room_for_push(len, bounds),
        }
    }

    /// Whether there is room in all connections for a frame that is this one's alone. What is small and must be said
    /// finds room in the bounds of its connection.
    fn check_all(&self, lane: Lane, len: usize, bounds: &OutboxBounds<'_>) -> Result<(), Refused> {
        let is_needed = match lane {
            Lane::Control => true,
            Lane::Reply => len <= FAILURE_BYTES,
            Lane::Call | Lane::Push => false,
        };
        if is_needed || bounds.outgoing.has_room_for(self.cost().saturating_add(len)) {
            return Ok(());
        }
        Err(Refused::AllFull { frames: self.waiting(lane).frames, bytes: bounds.outgoing.bytes() })
    }

    fn make_room_for_push(&mut self, len: usize, bounds: &OutboxBounds<'_>) -> Result<(), Refused> {
        loop {
            let Waiting { frames, bytes } = self.waiting(Lane::Push);
            let over = 0 < frames && bounds.push_bytes < bytes.saturating_add(len);
            if frames < bounds.push_frames && !over {
                return Ok(());
            }
            bounds.count_full();
            match bounds.overflow {
                Overflow::RefuseNewest => return Err(Refused::Full { frames, bytes }),
                Overflow::Disconnect => return Err(Refused::Disconnect("its queue of pushes is full")),
                Overflow::DropOldest => {
                    let Some(lanes) = &mut self.lanes else { return Err(Refused::Full { frames, bytes }) };
                    let Some(dropped) = lanes.drop_oldest_push() else { return Err(Refused::Full { frames, bytes }) };
                    lanes.drop_later(dropped);
                    self.counted.get_or_insert_default().pushes_dropped += 1;
                }
            }
        }
    }

    fn add_entry(&mut self, mut entry: Entry, direct: bool, bounds: &OutboxBounds<'_>) -> u64 {
        let lane = entry.lane;
        if direct {
            self.wire.get_or_insert_with(spare::take).lend_frame(entry.head, entry.body, entry.owned);
            return self.count(lane, true);
        }
        let number = self.count(lane, false);
        (entry.call, entry.push) = (number, self.pushes_added());
        self.lanes_mut().push(entry);
        self.count_what_waits(bounds);
        number
    }

    /// More waits than before. What is being written is not here, and still counts.
    fn count_what_waits(&mut self, bounds: &OutboxBounds<'_>) {
        if (self.counted_kib as usize) << 10 < self.cost() {
            self.recount(bounds.outgoing);
        }
    }

    /// Moves the reply that was just added behind the pushes that wait: its handler pushed first.
    pub(super) fn last_reply_behind_pushes(&mut self) {
        if let Some(lanes) = &mut self.lanes {
            lanes.last_reply_behind_pushes();
        }
    }

    /// Counts a frame that was added. Answers the number of the last call that was.
    #[inline(always)]
    fn count(&mut self, lane: Lane, on_wire: bool) -> u64 {
        match lane {
            Lane::Call | Lane::Push => self.count_numbered(lane, on_wire),
            Lane::Control | Lane::Reply => self.counted.as_ref().map_or(0, |counted| counted.calls.added),
        }
    }

    fn count_numbered(&mut self, lane: Lane, on_wire: bool) -> u64 {
        let counted = self.counted.get_or_insert_default();
        let is_push = lane == Lane::Push;
        let progress = if is_push { &mut counted.pushes } else { &mut counted.calls };
        progress.added += 1;
        if on_wire {
            progress.on_wire = progress.added;
            if let Some(wire) = self.wire.as_mut().filter(|_| is_push) {
                wire.note_push(progress.added);
            }
        }
        counted.calls.added
    }

    fn refill(&mut self) {
        let Some(lanes) = self.lanes.as_mut().filter(|lanes| !lanes.is_empty()) else { return };
        let wire = self.wire.get_or_insert_with(spare::take);
        while wire.bytes() < WIRE_BYTES {
            let Some(entry) = lanes.pop() else { return };
            if let Some(counted) = &mut self.counted {
                match entry.lane {
                    Lane::Call => counted.calls.on_wire = entry.call,
                    Lane::Push => counted.pushes.on_wire = entry.push,
                    Lane::Control | Lane::Reply => {}
                }
            }
            wire.push_frame(entry.head, entry.body, entry.owned);
            if entry.lane == Lane::Push {
                wire.note_push(entry.push);
            }
        }
    }
}

/// A frame that finds its own way. `waits`: behind others, perhaps for long.
fn entry_of(
    lane: Lane,
    parts: &FrameParts<'_>,
    payload: &Bytes,
    limits: &Limits,
    waits: bool,
) -> Result<Entry, EncodeError> {
    let mut head = Vec::new();
    let body = if payload.len() < SHARE_BYTES {
        parts.put_frame(&mut head, payload, limits)?;
        Bytes::new()
    } else {
        parts.put_head(&mut head, limits)?;
        if waits { keep_alone(payload) } else { payload.clone() }
    };
    Ok(Entry { lane, owned: true, call: 0, push: 0, owed: false, head: head.into(), body })
}

#[cfg(test)]
mod tests {
    use bothways_proto::{Header, Metadata, Names, Role, Seq, SerializeType};

    use super::*;
    use crate::shrink::COPY_BYTES;

    fn bounds(overflow: Overflow) -> OutboxBounds<'static> {
        static ALL: Outgoing = Outgoing::new(usize::MAX);
        let (reply_bytes, call_bytes) = (4 << 20, 1 << 20);
        OutboxBounds {
            push_frames: 3,
            push_bytes: 1 << 20,
            overflow,
            reply_bytes,
            call_bytes,
            outgoing: &ALL,
            meters: None,
        }
    }

    fn add(outbox: &mut Outbox, lane: Lane, text: &str, overflow: Overflow) -> Result<u64, Refused> {
        let payload = Bytes::copy_from_slice(text.as_bytes());
        let metadata = Metadata::new();
        let header = Header::oneway(Seq::new(0), SerializeType::RAW);
        let parts = FrameParts { header, names: Names::new("", ""), metadata: &metadata, payload_len: payload.len() };
        outbox.add(lane, &parts, &payload, &Limits::default(), &bounds(overflow))
    }

    /// The payloads that would leave now, in order, as one text.
    fn drain(outbox: &mut Outbox) -> String {
        let (mut stream, limits) = (Vec::new(), Limits::default());
        while let Some(mut wire) = outbox.take() {
            let written = wire.bytes();
            while !wire.is_empty() {
                wire.write_with(
                    0,
                    |slices| {
                        let n = slices[0].len().min(5);
                        stream.extend_from_slice(&slices[0][..n]);
                        n
                    },
                    |n| *n,
                );
            }
            outbox.put_back(wire, written);
        }
        let (mut deframer, mut out) = (bothways_proto::Deframer::new(), Vec::new());
        deframer.feed(&stream, &limits);
        while let Some(message) = deframer.next_message(&limits).expect("whole frames") {
            out.extend_from_slice(&message.wire_payload());
        }
        String::from_utf8(out).expect("texts")
    }

    /// While the socket is free, frames leave in the order in which they came, whatever they are.
    #[test]
    fn a_free_socket_keeps_the_order() {
        let mut outbox = Outbox::new(Role::Server);
        for (lane, text) in [(Lane::Push, "a"), (Lane::Reply, "b"), (Lane::Push, "c"), (Lane::Control, "d")] {
            add(&mut outbox, lane, text, Overflow::RefuseNewest).expect("room");
        }
        assert_eq!(drain(&mut outbox), "abcd");
    }

    /// Pushes in one piece keep their place among the others and count as so many, copied or shared; where
    /// each would need a way of its own they are not taken.
    #[test]
    fn pushes_in_one_piece_are_as_many() {
        for len in [1, SHARE_BYTES] {
            let text = "p".repeat(len);
            let header = Header::oneway(Seq::new(0), SerializeType::RAW);
            let frame = bothways_proto::frame(header, "", "", &Metadata::new(), text.as_bytes(), &Limits::default());
            let joined = Bytes::from(frame.expect("within the limits").repeat(3));
            let mut outbox = Outbox::new(Role::Server);
            add(&mut outbox, Lane::Reply, "a", Overflow::RefuseNewest).expect("room");
            assert!(outbox.add_joined_pushes(&joined, 3));
            add(&mut outbox, Lane::Push, "b", Overflow::RefuseNewest).expect("room");
            assert_eq!((outbox.pushes_added(), outbox.pushes_written()), (4, 0));
            assert_eq!(drain(&mut outbox), format!("a{}b", text.repeat(3)));
            assert_eq!(outbox.pushes_written(), 4);
            outbox.writer = Writer::Blocked;
            assert!(!outbox.add_joined_pushes(&joined, 3));
            outbox.writer = Writer::Idle;
            while outbox.add_joined_pushes(&joined, 3) {}
            assert!(outbox.wire_bytes() <= WIRE_BYTES && WIRE_BYTES < outbox.wire_bytes() + joined.len());
        }
    }

    /// Behind a full socket control overtakes everything, and the other lanes take turns, each in its own order.
    #[test]
    fn a_full_socket_sorts_by_lane() {
        let mut outbox = Outbox::new(Role::Server);
        outbox.writer = Writer::Blocked;
        let frames = [
            (Lane::Push, "a"),
            (Lane::Reply, "b"),
            (Lane::Call, "x"),
            (Lane::Push, "c"),
            (Lane::Reply, "e"),
            (Lane::Call, "y"),
            (Lane::Control, "d"),
        ];
        for (lane, text) in frames {
            add(&mut outbox, lane, text, Overflow::RefuseNewest).expect("room");
        }
        let left = drain(&mut outbox);
        assert!(left.starts_with('d'), "{left}");
        for order in ["ac", "be", "xy"] {
            let own: String = left.chars().filter(|letter| order.contains(*letter)).collect();
            assert_eq!(own, order, "{left}");
        }
    }

    /// What a session has given away is taken though others have filled the queue meanwhile, is never dropped for them,
    /// and is not called written before it is.
    #[test]
    fn what_a_session_gave_away_is_not_dropped() {
        let mut outbox = Outbox::new(Role::Server);
        outbox.writer = Writer::Blocked;
        for text in ["a", "b", "c"] {
            add(&mut outbox, Lane::Push, text, Overflow::DropOldest).expect("room");
        }
        let header = Header::oneway(Seq::of_push(0), SerializeType::RAW);
        let owed = bothways_proto::frame(header, "", "", &Metadata::new(), b"O", &Limits::default()).expect("small");
        let bounds = bounds(Overflow::RefuseNewest);
        outbox.add_frame_as(Lane::Push, &owed, Some(Seq::of_push(7)), &bounds).expect("it is taken");
        let mark = outbox.pushes_added();
        for text in ["d", "e", "f", "g", "h"] {
            add(&mut outbox, Lane::Push, text, Overflow::DropOldest).expect("the oldest makes room");
        }
        assert_eq!((mark, outbox.pushes_dropped()), (4, 6));
        assert!(outbox.pushes_written() < mark, "it waits still");
        outbox.writer = Writer::Idle;
        assert_eq!(drain(&mut outbox), "Ogh");
        assert_eq!(outbox.pushes_written(), outbox.pushes_added());
    }

    /// A reply that is kept back counts as one that waits, holds nothing else up, and goes behind the pushes that wait.
    #[test]
    fn a_reply_that_is_kept_back_counts_and_goes_behind_pushes() {
        for full in [false, true] {
            let mut outbox = Outbox::new(Role::Server);
            let metadata = Metadata::new();
            let header = Header::oneway(Seq::new(0), SerializeType::RAW);
            let parts = FrameParts { header, names: Names::new("", ""), metadata: &metadata, payload_len: 1 };
            let bounds = bounds(Overflow::RefuseNewest);
            let held = outbox.hold_reply(&parts, &Bytes::from_static(b"R"), &Limits::default(), &bounds);
            assert!(outbox.is_empty() && outbox.goes_direct() && outbox.holds_replies() && 0 < outbox.reply_bytes());
            outbox.shrink();
            if full {
                outbox.writer = Writer::Blocked;
            }
            add(&mut outbox, Lane::Push, "a", Overflow::RefuseNewest).expect("room");
            assert!(outbox.release_reply(Some(held.expect("room"))) && !outbox.release_reply(None));
            add(&mut outbox, Lane::Push, "b", Overflow::RefuseNewest).expect("room");
            outbox.writer = Writer::Idle;
            assert_eq!(drain(&mut outbox), "aRb");
            assert_eq!((outbox.reply_bytes(), outbox.holds_replies()), (0, false));
        }
    }

    /// Pushes leave behind a full socket though new replies come as fast as the socket takes them.
    #[test]
    fn replies_that_never_end_do_not_starve_pushes() {
        let mut outbox = Outbox::new(Role::Server);
        outbox.writer = Writer::Blocked;
        add(&mut outbox, Lane::Push, "push", Overflow::RefuseNewest).expect("room");
        let large = "r".repeat(3000);
        let mut left = String::new();
        for _ in 0..10 {
            for _ in 0..20 {
                add(&mut outbox, Lane::Reply, &large, Overflow::RefuseNewest).expect("room");
            }
            let mut wire = outbox.take().expect("much waits");
            let mut written = 0;
            while written < WIRE_BYTES / 2 {
                written += wire.write_with(
                    0,
                    |slices| {
                        let n = slices[0].len().min(WIRE_BYTES / 2 - written);
                        left.push_str(&String::from_utf8_lossy(&slices[0][..n]));
                        n
                    },
                    |n| *n,
                );
            }
            outbox.put_back(wire, written);
        }
        assert!(left.contains("push"), "{} bytes of replies went first", left.len());
    }

    /// Of control frames as many wait as the bound says, and not one more; half of them stop the reading.
    #[test]
    fn the_bound_of_control_frames_is_exact() {
        let mut outbox = Outbox::new(Role::Server);
        outbox.writer = Writer::Blocked;
        for n in 0..CONTROL_FRAMES {
            assert_eq!(outbox.control_piles_up(), CONTROL_FRAMES / 2 <= n, "{n}");
            assert_eq!(outbox.has_room_for_cancels(), n < CONTROL_FRAMES / 2, "{n}");
            add(&mut outbox, Lane::Control, "", Overflow::RefuseNewest).expect("room");
        }
        let refused = add(&mut outbox, Lane::Control, "", Overflow::RefuseNewest);
        assert!(matches!(refused, Err(Refused::Disconnect(_))), "{refused:?}");
    }

    /// How large a frame with no payload is.
    fn frame_bytes() -> usize {
        let mut outbox = Outbox::new(Role::Server);
        add(&mut outbox, Lane::Reply, "", Overflow::RefuseNewest).expect("room");
        outbox.wire_bytes()
    }

    /// A payload that makes a frame of so many bytes.
    fn payload_of(bytes: usize) -> String {
        "x".repeat(bytes - frame_bytes())
    }

    /// Of control frames as many bytes wait as the bound says, and not one more; a single one may be larger.
    #[test]
    fn the_bound_of_control_bytes_is_exact() {
        let half = payload_of(CONTROL_BYTES / 2);
        for (last, fits) in [(half.clone(), true), (format!("{half}x"), false)] {
            let mut outbox = Outbox::new(Role::Server);
            outbox.writer = Writer::Blocked;
            assert!(!outbox.control_piles_up());
            add(&mut outbox, Lane::Control, &half, Overflow::RefuseNewest).expect("room");
            assert!(outbox.control_piles_up());
            assert_eq!(add(&mut outbox, Lane::Control, &last, Overflow::RefuseNewest).is_ok(), fits);
        }
        let mut outbox = Outbox::new(Role::Server);
        outbox.writer = Writer::Blocked;
        add(&mut outbox, Lane::Control, &payload_of(2 * CONTROL_BYTES), Overflow::RefuseNewest).expect("alone");
    }

    /// Adds frames of half a bound each, and then one that just fits, or is one byte too large.
    fn fill_exactly(lane: Lane, bytes_max: usize) -> [Result<u64, Refused>; 2] {
        let half = payload_of(bytes_max / 2);
        [half.clone(), format!("{half}x")].map(|last| {
            let mut outbox = Outbox::new(Role::Server);
            outbox.writer = Writer::Blocked;
            add(&mut outbox, lane, &half, Overflow::RefuseNewest).expect("room");
            add(&mut outbox, lane, &last, Overflow::RefuseNewest)
        })
    }

    /// Calls wait up to their bytes; what is refused can be tried elsewhere.
    #[test]
    fn the_bound_of_call_bytes_is_exact() {
        let bound = bounds(Overflow::RefuseNewest).call_bytes;
        let [fits, beyond] = fill_exactly(Lane::Call, bound);
        assert!(fits.is_ok());
        assert_eq!(beyond, Err(Refused::Full { frames: 1, bytes: bound / 2 }));
    }

    /// Pushes wait up to their bytes.
    #[test]
    fn the_bound_of_push_bytes_is_exact() {
        let bound = bounds(Overflow::RefuseNewest).push_bytes;
        let [fits, beyond] = fill_exactly(Lane::Push, bound);
        assert!(fits.is_ok());
        assert_eq!(beyond, Err(Refused::Full { frames: 1, bytes: bound / 2 }));
    }

    /// Replies of handlers that ran when reading stopped wait up to their bytes. Beyond, a short failure is taken,
    /// until twice as much waits.
    #[test]
    fn the_bound_of_reply_bytes_is_exact() {
        let bounds = OutboxBounds { reply_bytes: 1 << 10, ..bounds(Overflow::RefuseNewest) };
        let bound = REPLY_OVERDRAFT << 10;
        let mut outbox = Outbox::new(Role::Server);
        outbox.writer = Writer::Blocked;
        let mut reply = |bytes: usize| {
            let payload = Bytes::from(payload_of(bytes));
            let metadata = Metadata::new();
            let header = Header::oneway(Seq::new(0), SerializeType::RAW);
            let parts =
                FrameParts { header, names: Names::new("", ""), metadata: &metadata, payload_len: payload.len() };
            outbox.add(Lane::Reply, &parts, &payload, &Limits::default(), &bounds)
        };
        reply(bound / 2).expect("room");
        reply(bound / 2).expect("just fits");
        let refused = reply(FAILURE_BYTES + 1);
        assert_eq!(refused, Err(Refused::Full { frames: 2, bytes: bound }));
        for _ in 0..REPLY_OVERDRAFT {
            reply(FAILURE_BYTES).expect("a short failure");
        }
        assert!(matches!(reply(FAILURE_BYTES), Err(Refused::Disconnect(_))));
    }

    /// Frames go straight onto the wire until its bytes are reached, and then wait.
    #[test]
    fn the_bound_of_the_wire_is_exact() {
        let mut outbox = Outbox::new(Role::Server);
        let first = payload_of(WIRE_BYTES - 1 - frame_bytes());
        add(&mut outbox, Lane::Push, &first, Overflow::RefuseNewest).expect("room");
        assert!(outbox.goes_direct() && !outbox.wants_write());
        let joined = Bytes::from(vec![0; frame_bytes() + 2]);
        assert!(!outbox.add_joined_pushes(&joined, 2), "one byte too many");
        assert!(outbox.add_joined_pushes(&joined.slice(..frame_bytes()), 2), "one byte less than the bound");
        assert!(outbox.goes_direct() && !outbox.wants_write());
        outbox.add_frame(Lane::Control, &Bytes::from_static(b"x"), &bounds(Overflow::RefuseNewest)).expect("room");
        assert!(!outbox.goes_direct() && outbox.wants_write());
        outbox.writer = Writer::Busy;
        assert!(!outbox.wants_write());
    }

    /// A burst's memory is given back once nothing waits and nobody writes, and not before.
    #[test]
    fn an_empty_outbox_is_given_back() {
        let mut outbox = Outbox::new(Role::Server);
        outbox.writer = Writer::Blocked;
        add(&mut outbox, Lane::Push, "a", Overflow::RefuseNewest).expect("room");
        outbox.shrink();
        assert_eq!(outbox.pushes_waiting().0, 1);
        drain(&mut outbox);
        assert!(outbox.wire.is_none(), "nothing is to be written");
        outbox.shrink();
        assert!(outbox.lanes.is_some(), "somebody writes");
        outbox.writer = Writer::Idle;
        outbox.shrink();
        assert!(outbox.wire.is_none() && outbox.lanes.is_none());
    }

    /// What waited when the connection ended was dropped, and is counted.
    #[test]
    fn an_end_counts_what_waited() {
        let mut outbox = Outbox::new(Role::Server);
        outbox.writer = Writer::Blocked;
        for lane in [Lane::Push, Lane::Reply, Lane::Push] {
            add(&mut outbox, lane, "a", Overflow::RefuseNewest).expect("room");
        }
        drop(outbox.clear());
        assert_eq!((outbox.pushes_dropped(), outbox.is_empty()), (2, true));
    }

    /// Whatever waits keeps no read alive that it is a slice of; what is large is shared.
    #[test]
    fn what_is_small_and_waits_is_a_copy() {
        let read = Bytes::from(vec![1; 2 * COPY_BYTES]);
        for lane in [Lane::Reply, Lane::Call, Lane::Push, Lane::Control] {
            for (len, copied) in [(SHARE_BYTES, true), (COPY_BYTES - 1, true), (COPY_BYTES, false)] {
                let payload = read.slice(..len);
                let metadata = Metadata::new();
                let header = Header::oneway(Seq::new(0), SerializeType::RAW);
                let parts = FrameParts { header, names: Names::new("", ""), metadata: &metadata, payload_len: len };
                let mut outbox = Outbox::new(Role::Server);
                outbox.writer = Writer::Blocked;
                let added = outbox.add(lane, &parts, &payload, &Limits::default(), &bounds(Overflow::RefuseNewest));
                added.expect("room");
                let entry = outbox.lanes.as_mut().and_then(|lanes| lanes.pop()).expect("it waits");
                assert_eq!(entry.body.as_ptr() != payload.as_ptr(), copied, "{lane:?} {len}");
            }
        }
    }

    /// A client's requests keep their order whether they want a reply or not; its replies overtake them, and a call
    /// that is given up leaves no gap.
    #[test]
    fn a_clients_requests_keep_their_order() {
        let mut outbox = Outbox::new(Role::Client);
        outbox.writer = Writer::Blocked;
        let mut given_up = 0;
        for (lane, text) in [
            (Lane::Push, "a"),
            (Lane::Call, "b"),
            (Lane::Call, "x"),
            (Lane::Push, "c"),
            (Lane::Reply, "d"),
            (Lane::Call, "e"),
        ] {
            let number = add(&mut outbox, lane, text, Overflow::RefuseNewest).expect("room");
            given_up = if text == "x" { number } else { given_up };
        }
        assert!(outbox.forget_call(given_up));
        assert_eq!((outbox.pushes_waiting().0, outbox.reply_bytes()), (2, 33 + ENTRY_BYTES));
        assert_eq!(drain(&mut outbox), "dabce");
        assert_eq!((outbox.pushes_waiting(), outbox.reply_bytes()), ((0, 0), 0));
    }

    /// However many calls wait, a client's oneway requests have a bound of their own.
    #[test]
    fn calls_do_not_crowd_out_oneway_requests() {
        let mut outbox = Outbox::new(Role::Client);
        outbox.writer = Writer::Blocked;
        for _ in 0..10 {
            add(&mut outbox, Lane::Call, "call", Overflow::RefuseNewest).expect("room");
        }
        for _ in 0..3 {
            add(&mut outbox, Lane::Push, "push", Overflow::RefuseNewest).expect("room");
        }
        let refused = add(&mut outbox, Lane::Push, "push", Overflow::RefuseNewest);
        assert!(matches!(refused, Err(Refused::Full { frames: 3, .. })), "{refused:?}");
    }

    /// A reply whose handler pushed first stays behind that push even when the socket is full.
    #[test]
    fn a_reply_stays_behind_its_handlers_push() {
        let mut outbox = Outbox::new(Role::Server);
        outbox.writer = Writer::Blocked;
        add(&mut outbox, Lane::Push, "push ", Overflow::RefuseNewest).expect("room");
        add(&mut outbox, Lane::Reply, "reply", Overflow::RefuseNewest).expect("room");
        outbox.last_reply_behind_pushes();
        assert_eq!(drain(&mut outbox), "push reply");
    }

    /// Each rule for a full queue does what its name says, and counts what it drops.
    #[test]
    fn a_full_queue_follows_its_rule() {
        let fill = |overflow| {
            let mut outbox = Outbox::new(Role::Server);
            outbox.writer = Writer::Blocked;
            for text in ["a", "b", "c"] {
                add(&mut outbox, Lane::Push, text, overflow).expect("room");
            }
            let last = add(&mut outbox, Lane::Push, "d", overflow);
            (last, outbox.pushes_dropped(), drain(&mut outbox))
        };
        let (last, dropped, left) = fill(Overflow::RefuseNewest);
        assert_eq!((last, dropped, &*left), (Err(Refused::Full { frames: 3, bytes: 99 }), 0, "abc"));
        let (last, dropped, left) = fill(Overflow::DropOldest);
        assert_eq!((last, dropped, &*left), (Ok(0), 1, "bcd"));
        let (last, ..) = fill(Overflow::Disconnect);
        assert!(matches!(last, Err(Refused::Disconnect(_))));
    }

    /// Replies and calls are taken however many pushes wait.
    #[test]
    fn pushes_do_not_crowd_out_replies() {
        let mut outbox = Outbox::new(Role::Server);
        outbox.writer = Writer::Blocked;
        while add(&mut outbox, Lane::Push, "p", Overflow::RefuseNewest).is_ok() {}
        add(&mut outbox, Lane::Reply, "reply", Overflow::RefuseNewest).expect("replies have room");
        assert!(drain(&mut outbox).starts_with("reply"));
    }

    /// A call counts as written from the first write that took a byte of its batch, not before.
    #[test]
    fn a_call_is_written_when_the_socket_took_a_byte() {
        let mut outbox = Outbox::new(Role::Server);
        let first = add(&mut outbox, Lane::Call, "one", Overflow::RefuseNewest).expect("room");
        assert!(!outbox.call_may_be_written(first));
        let wire = outbox.take().expect("one frame");
        outbox.writer = Writer::Busy;
        assert!(outbox.call_may_be_written(first), "a write is under way: nobody can tell");
        let second = add(&mut outbox, Lane::Call, "two", Overflow::RefuseNewest).expect("room");
        outbox.put_back(wire, 0);
        outbox.writer = Writer::Blocked;
        assert!(!outbox.call_may_be_written(first), "the write took nothing");
        let mut wire = outbox.take().expect("two frames");
        wire.write_with(0, |_| 1, |n| *n);
        outbox.put_back(wire, 1);
        assert!(outbox.call_may_be_written(first));
        assert!(outbox.call_may_be_written(second), "it was in the same batch: careful is right");
        let third = add(&mut outbox, Lane::Call, "three", Overflow::RefuseNewest).expect("room");
        assert!(!outbox.call_may_be_written(third));
    }

    /// A call that is given up while it waits in its lane never leaves; the others keep their order
    /// and their numbers.
    #[test]
    fn a_call_that_is_given_up_in_its_lane_never_leaves() {
        let mut outbox = Outbox::new(Role::Server);
        outbox.writer = Writer::Blocked;
        let added = |outbox: &mut Outbox, lane, text| add(outbox, lane, text, Overflow::RefuseNewest).expect("room");
        let calls = ["a", "b", "c", "d"].map(|text| added(&mut outbox, Lane::Call, text));
        added(&mut outbox, Lane::Reply, "reply");
        let last = added(&mut outbox, Lane::Call, "e");
        for given_up in [calls[1], calls[0], calls[3]] {
            assert!(outbox.forget_call(given_up));
            assert!(!outbox.forget_call(given_up), "only once");
        }
        let wire = outbox.take().expect("the rest");
        assert!(!outbox.forget_call(calls[2]), "it is on the wire");
        outbox.put_back(wire, 0);
        assert_eq!(drain(&mut outbox), "replyce");
        assert_eq!((outbox.reply_bytes(), outbox.call_may_be_written(last)), (0, true));
    }

    /// Large payloads are shared and small ones copied; the bytes are the same.
    #[test]
    fn large_payloads_keep_their_place() {
        let mut outbox = Outbox::new(Role::Server);
        let large = "x".repeat(SHARE_BYTES);
        for text in ["a", &large, "b", &large, "c"] {
            add(&mut outbox, Lane::Reply, text, Overflow::RefuseNewest).expect("room");
        }
        assert_eq!(drain(&mut outbox), format!("a{large}b{large}c"));
    }

    /// What is added while a write is under way comes behind what that write left.
    #[test]
    fn leftovers_come_first() {
        let mut outbox = Outbox::new(Role::Server);
        add(&mut outbox, Lane::Reply, "one", Overflow::RefuseNewest).expect("room");
        let mut wire = outbox.take().expect("one frame");
        outbox.writer = Writer::Busy;
        add(&mut outbox, Lane::Reply, "two", Overflow::RefuseNewest).expect("room");
        let mut sent = Vec::new();
        wire.write_with(
            0,
            |slices| {
                sent.extend_from_slice(&slices[0][..7]);
                7
            },
            |n| *n,
        );
        outbox.put_back(wire, 7);
        let rest = outbox.take().expect("the rest");
        sent.extend_from_slice(rest.unwritten());
        let (mut deframer, limits) = (bothways_proto::Deframer::new(), Limits::default());
        deframer.feed(&sent, &limits);
        for text in ["one", "two"] {
            let message = deframer.next_message(&limits).expect("valid").expect("whole");
            assert_eq!(message.wire_payload(), text.as_bytes());
        }
    }

    /// A reply of so many bytes.
    fn add_reply(outbox: &mut Outbox, len: usize, bounds: &OutboxBounds<'_>) -> Result<u64, Refused> {
        let (payload, metadata) = (Bytes::from(vec![7; len]), Metadata::new());
        let header = Header::oneway(Seq::new(0), SerializeType::RAW);
        let parts = FrameParts { header, names: Names::new("", ""), metadata: &metadata, payload_len: len };
        outbox.add(Lane::Reply, &parts, &payload, &Limits::default(), bounds)
    }

    /// What waits in one outbox counts for all, until it is written or forgotten; a failure finds room, and so does what
    /// is small where little waits. Frames that many share count for nobody.
    #[test]
    fn what_waits_counts_for_all() {
        let all = Outgoing::new(1 << 20);
        let bounds = OutboxBounds { outgoing: &all, push_frames: 100, ..bounds(Overflow::RefuseNewest) };
        let (mut first, mut second) = (Outbox::new(Role::Server), Outbox::new(Role::Server));
        first.writer = Writer::Blocked;
        let taken = (0..100).take_while(|_| add_reply(&mut first, 50 << 10, &bounds).is_ok()).count();
        assert!((10..=12).contains(&taken), "half of it, and its own: {taken}");
        assert!(add_reply(&mut first, 2000, &bounds).is_ok(), "that is left yet");
        let refused = add_reply(&mut first, 50 << 10, &bounds);
        assert!(matches!(refused, Err(Refused::AllFull { bytes, .. }) if bytes == all.bytes()), "{refused:?}");
        add_reply(&mut first, 100, &bounds).expect("a failure");
        let held = all.bytes();
        let push = Bytes::from(vec![7; 10 << 10]);
        (0..20).for_each(|_| _ = first.add_frame(Lane::Push, &push, &bounds).expect("its own bound"));
        assert_eq!(all.bytes(), held);

        // A socket that is not known to be full takes what there is room for, and what is left then counts.
        assert!(matches!(add_reply(&mut second, 1 << 20, &bounds), Err(Refused::AllFull { .. })));
        add_reply(&mut second, 200 << 10, &bounds).expect("there is as much left");
        assert_eq!(all.bytes(), held);
        let wire = second.take().expect("it is there");
        second.put_back(wire, 0);
        second.recount(&all);
        assert!((136 << 10..=138 << 10).contains(&(all.bytes() - held)), "{}", all.bytes() - held);
        assert!(first.holds_much(&all) && !second.holds_much(&all));
        drop(second.clear());
        second.recount(&all);
        assert_eq!(all.bytes(), held);

        while let Some(mut wire) = first.take() {
            let written = wire.bytes();
            while !wire.is_empty() {
                wire.write_with(0, |slices| slices[0].len(), |n| *n);
            }
            first.put_back(wire, written);
        }
        first.recount(&all);
        assert_eq!((all.bytes(), first.holds_much(&all)), (0, false));
    }

    /// While somebody writes, the kernel may have what is under way; before and behind that it has what was written.
    #[test]
    fn what_is_under_way_may_have_left() {
        let mut outbox = Outbox::new(Role::Server);
        assert_eq!((outbox.pushes_begun(), outbox.pushes_written()), (0, 0));
        for text in ["a", "b"] {
            add(&mut outbox, Lane::Push, text, Overflow::RefuseNewest).expect("room");
        }
        let wire = outbox.take().expect("two frames");
        assert_eq!(outbox.pushes_begun(), 0, "nobody writes");
        outbox.writer = Writer::Busy;
        assert_eq!((outbox.pushes_begun(), outbox.pushes_written()), (2, 0));
        outbox.writer = Writer::Blocked;
        assert_eq!(outbox.pushes_begun(), 0);
        outbox.put_back(wire, 0);
        assert_eq!(drain(&mut outbox), "ab");
        for writer in [Writer::Idle, Writer::Busy] {
            outbox.writer = writer;
            assert_eq!((outbox.pushes_begun(), outbox.pushes_written()), (2, 2));
        }
    }
}
