//! What waits for the socket, in which order, and how much of it may.
//!
//! ```text
//!            socket free                          socket full, or 64 KiB are under way
//!  frame ───────────────► wire ──► socket     frame ──► lane: control │ replies and calls │ pushes
//!                          ▲                                    │ first  │ then              │ last
//!                          └────────────────────────────────────┴── refilled as the wire drains
//! ```
//!
//! A frame that finds the lanes empty goes straight into `wire`, a flat buffer that one write takes
//! whole: bytes copied behind each other beat a vectored write of small slices. From
//! [`SHARE_BYTES`] on a payload is not copied but shared.

use std::{collections::VecDeque, io::IoSlice};

use bothways_proto::{EncodeError, FrameParts, HEADER_LEN, Limits, Role, Seq};
use bytes::Bytes;

use crate::connection::Overflow;

/// Bytes whose order is settled. More than this wait in their lanes, where a reply can still
/// overtake a push, and a push can still be dropped.
pub(super) const WIRE_BYTES: usize = 64 << 10;

/// Payloads of at least this many bytes are shared, smaller ones copied.
pub(super) const SHARE_BYTES: usize = 4 << 10;

/// Most bytes of one write, and how much a thread writes to one connection before it turns to another: a
/// frame of many MiB must not hold up the pushes to everybody else. 256 KiB: some 50 µs of copying, which the
/// system call and the change of tasks around it disappear in.
pub(super) const WRITE_BYTES: usize = 256 << 10;

/// Slices of one write.
const SLICES: usize = 16;

/// Heartbeat answers, refusals and other small frames that may wait. A peer that lets so many pile
/// up is not reading.
const CONTROL_FRAMES: usize = 1024;

/// What a frame is, for the order in which frames leave and for what may be dropped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Lane {
    /// Heartbeats and their answers, refusals, goodbyes.
    Control,
    /// Replies of handlers.
    Reply,
    /// Calls that wait for a reply. A client's go with its pushes, in order.
    Call,
    /// Requests that want no reply.
    Push,
}

/// Why a frame was not taken.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Refused {
    TooLarge(EncodeError),
    /// The lane is full, and its rule is to refuse.
    Full {
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

/// Bounds of an outbox.
#[derive(Clone, Debug)]
pub(super) struct OutboxBounds {
    pub(super) push_frames: usize,
    pub(super) push_bytes: usize,
    pub(super) overflow: Overflow,
}

#[derive(Debug)]
struct Entry {
    lane: Lane,
    /// Of a call its number, of anything else that of the last call before it: within a lane these numbers
    /// never fall.
    call: u64,
    head: Bytes,
    /// A shared payload behind the head.
    body: Bytes,
}

impl Entry {
    fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }
}

/// Bytes in their final order: `flat` first, then `tail`.
#[derive(Debug, Default)]
pub(super) struct Wire {
    flat: Vec<u8>,
    /// Bytes of `flat` that the socket took already.
    written: usize,
    tail: VecDeque<Bytes>,
    bytes: usize,
}

/// What waits behind a full socket.
#[derive(Debug, Default)]
struct Lanes {
    control: VecDeque<Entry>,
    /// Replies, and a server's calls.
    replies: VecDeque<Entry>,
    /// Pushes, the replies of handlers that pushed first, and a client's calls.
    pushes: VecDeque<Entry>,
    /// Of replies, wherever they wait.
    reply_bytes: usize,
    /// Of pushes alone.
    push_frames: usize,
    push_bytes: usize,
}

impl Lanes {
    fn is_empty(&self) -> bool {
        self.control.is_empty() && self.replies.is_empty() && self.pushes.is_empty()
    }

    /// What leaves next.
    fn pop(&mut self) -> Option<Entry> {
        let next = self.control.pop_front().or_else(|| self.replies.pop_front());
        let entry = next.or_else(|| self.pushes.pop_front())?;
        self.count_out(entry.lane, entry.len());
        Some(entry)
    }

    fn count_in(&mut self, lane: Lane, len: usize) {
        match lane {
            Lane::Reply => self.reply_bytes += len,
            Lane::Push => {
                self.push_frames += 1;
                self.push_bytes += len;
            }
            Lane::Control | Lane::Call => {}
        }
    }

    fn count_out(&mut self, lane: Lane, len: usize) {
        match lane {
            Lane::Reply => self.reply_bytes -= len,
            Lane::Push => {
                self.push_frames -= 1;
                self.push_bytes -= len;
            }
            Lane::Control | Lane::Call => {}
        }
    }
}

/// How far calls or pushes are, each by how many went that far.
#[derive(Debug, Default)]
struct Progress {
    /// Given to the outbox.
    added: u64,
    on_wire: u64,
    /// In a write that is under way, or was the last one.
    under_way: u64,
    /// Of calls: begun to be written; a call with a number up to this may have reached the peer. Of pushes: the
    /// kernel has them whole.
    written: u64,
}

/// What is counted of calls and pushes.
#[derive(Debug, Default)]
struct Counted {
    calls: Progress,
    /// In the order of the adding, unless the rule for a full queue drops some.
    pushes: Progress,
    /// By that rule, or with the connection.
    pushes_dropped: u64,
}

impl Wire {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The slices of the next write, of this many bytes at most.
    fn slices<'a>(&'a self, space: &mut [IoSlice<'a>; SLICES], mut left: usize) -> usize {
        let mut used = 0;
        let flat = Some(&self.flat[self.written..]).filter(|flat| !flat.is_empty());
        for chunk in flat.into_iter().chain(self.tail.iter().map(|chunk| &**chunk)).take(SLICES) {
            if left == 0 {
                break;
            }
            let chunk = &chunk[..chunk.len().min(left)];
            left -= chunk.len();
            space[used] = IoSlice::new(chunk);
            used += 1;
        }
        used
    }

    /// Hands the slices of the next write to `write`, and forgets what it took. `done` is what was written since the
    /// thread turned to this connection, less than [`WRITE_BYTES`]: the two are not more together.
    pub(super) fn write_with<R>(
        &mut self,
        done: usize,
        write: impl FnOnce(&[IoSlice<'_>]) -> R,
        taken: impl FnOnce(&R) -> usize,
    ) -> R {
        let mut space = [IoSlice::new(&[]); SLICES];
        let used = self.slices(&mut space, WRITE_BYTES - done);
        let result = write(&space[..used]);
        self.advance(taken(&result));
        result
    }

    fn advance(&mut self, mut n: usize) {
        self.bytes -= n;
        let of_flat = n.min(self.flat.len() - self.written);
        self.written += of_flat;
        n -= of_flat;
        if self.written == self.flat.len() {
            self.flat.clear();
            self.written = 0;
        }
        while 0 < n {
            let front = self.tail.front_mut().expect("no more is taken than was there");
            let of_front = n.min(front.len());
            n -= of_front;
            if of_front == front.len() {
                self.tail.pop_front();
            } else {
                bytes::Buf::advance(front, of_front);
            }
        }
    }

    fn push_flat(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
        if self.tail.is_empty() {
            self.flat.extend_from_slice(bytes);
        } else {
            self.tail.push_back(Bytes::copy_from_slice(bytes));
        }
    }

    fn push_shared(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        self.bytes += bytes.len();
        self.tail.push_back(bytes);
    }

    fn push(&mut self, bytes: Bytes) {
        if bytes.len() < SHARE_BYTES && self.tail.is_empty() {
            self.push_flat(&bytes);
        } else {
            self.push_shared(bytes);
        }
    }

    fn push_entry(&mut self, entry: Entry) {
        self.push(entry.head);
        self.push_shared(entry.body);
    }

    /// Puts what came meanwhile behind what was not written.
    fn append(&mut self, newer: Self) {
        self.bytes += newer.bytes;
        if self.tail.is_empty() {
            self.flat.extend_from_slice(&newer.flat[newer.written..]);
        } else if newer.written < newer.flat.len() {
            self.tail.push_back(Bytes::from(newer.flat).slice(newer.written..));
        }
        self.tail.extend(newer.tail);
    }
}

/// Who writes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Writing {
    /// Nobody: whoever adds a frame may write.
    #[default]
    Idle,
    /// Somebody does, outside the lock, and will look again when done.
    Busy,
    /// The socket is full, or enough was written for now: the connection's task waits for it, or for its turn.
    Blocked,
    /// A caller wrote enough for now: the connection's task goes on, after others have had their turn.
    LeftOff,
}

/// Frames on their way to the socket. Small while there are none.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// Kept with its buffer between writes, and given back at a look.
    wire: Option<Box<Wire>>,
    lanes: Option<Box<Lanes>>,
    /// None before the first call and the first push.
    counted: Option<Box<Counted>>,
    /// Total bytes the socket took; what the write deadline watches.
    written_bytes: u64,
    pub(super) writing: Writing,
    /// Calls wait in the lane of pushes: a client's requests leave in the order in which they were made, whether
    /// they want a reply or not.
    requests_in_order: bool,
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
        bounds: &OutboxBounds,
    ) -> Result<u64, Refused> {
        let direct = self.goes_direct();
        if !direct {
            self.make_room(lane, bothways_proto::PREFIX_LEN + parts.body_len(), bounds)?;
        }
        if direct && payload.len() < SHARE_BYTES {
            let wire = &mut **self.wire.get_or_insert_default();
            if wire.tail.is_empty() {
                let before = wire.flat.len();
                parts.put_frame(&mut wire.flat, payload, limits)?;
                wire.bytes += wire.flat.len() - before;
                return Ok(self.count(lane, true));
            }
        }
        let mut head = Vec::new();
        let body = if payload.len() < SHARE_BYTES {
            parts.put_frame(&mut head, payload, limits)?;
            Bytes::new()
        } else {
            parts.put_head(&mut head, limits)?;
            payload.clone()
        };
        Ok(self.add_entry(Entry { lane, call: 0, head: head.into(), body }, direct))
    }

    /// Takes one frame that is encoded already, and perhaps shared with other connections.
    pub(super) fn add_frame(&mut self, lane: Lane, frame: &Bytes, bounds: &OutboxBounds) -> Result<u64, Refused> {
        self.add_frame_as(lane, frame, None, bounds)
    }

    /// Like [`Self::add_frame`], under another number: the body stays shared.
    pub(super) fn add_frame_as(
        &mut self,
        lane: Lane,
        frame: &Bytes,
        seq: Option<Seq>,
        bounds: &OutboxBounds,
    ) -> Result<u64, Refused> {
        let direct = self.goes_direct();
        if !direct {
            self.make_room(lane, frame.len(), bounds)?;
        }
        if direct && frame.len() < SHARE_BYTES {
            let wire = &mut **self.wire.get_or_insert_default();
            if wire.tail.is_empty() {
                let at = wire.flat.len();
                wire.push_flat(frame);
                if let Some(seq) = seq {
                    seq.put(&mut wire.flat[at..]);
                }
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
        Ok(self.add_entry(Entry { lane, call: 0, head, body }, direct))
    }

    /// Takes this many pushes that were joined into one piece, if all of them go straight onto the wire. False:
    /// nothing was taken, and each has to find its own way.
    pub(super) fn add_joined_pushes(&mut self, joined: &Bytes, pushes: usize) -> bool {
        if !self.goes_direct() || WIRE_BYTES < self.wire_bytes() + joined.len() {
            return false;
        }
        self.wire.get_or_insert_default().push(joined.clone());
        let progress = &mut self.counted.get_or_insert_default().pushes;
        progress.added += pushes as u64;
        progress.on_wire = progress.added;
        true
    }

    /// True if the peer may have seen the call of this number.
    pub(super) fn call_may_be_written(&self, number: u64) -> bool {
        let Some(counted) = &self.counted else { return false };
        let calls = &counted.calls;
        number <= calls.written || (self.writing == Writing::Busy && number <= calls.under_way)
    }

    /// Takes the call of this number out if it has not left its lane: then it never leaves, and the
    /// peer need not be told. False: it is on the wire, or gone.
    pub(super) fn forget_call(&mut self, number: u64) -> bool {
        let Some(lanes) = &mut self.lanes else { return false };
        let calls = if self.requests_in_order { &mut lanes.pushes } else { &mut lanes.replies };
        let at = calls.partition_point(|entry| entry.call < number);
        let Some(entry) =
            calls.get_mut(at).filter(|entry| entry.lane == Lane::Call && entry.call == number && entry.len() != 0)
        else {
            return false;
        };
        // An empty entry keeps the place of those behind it; at either end it can go.
        (entry.head, entry.body) = (Bytes::new(), Bytes::new());
        while calls.pop_front_if(|entry| entry.len() == 0).is_some() {}
        while calls.pop_back_if(|entry| entry.len() == 0).is_some() {}
        true
    }

    /// True while the peer may be told of calls that were given up. When it does not read, that can
    /// wait for ever, and answers to its heartbeats have more need of the room.
    pub(super) fn has_room_for_cancels(&self) -> bool {
        self.lanes.as_ref().is_none_or(|lanes| lanes.control.len() < CONTROL_FRAMES / 2)
    }

    /// How many pushes were ever added: a reply that was begun before a push was added stays behind it.
    pub(super) fn pushes_added(&self) -> u64 {
        self.counted.as_ref().map_or(0, |counted| counted.pushes.added)
    }

    /// Of the pushes that were added, how many the kernel has whole: exact as long as none was dropped.
    pub(super) fn pushes_written(&self) -> u64 {
        self.counted.as_ref().map_or(0, |counted| counted.pushes.written)
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
            }
        }
        match &mut self.wire {
            None => self.wire = Some(wire),
            Some(_) if wire.is_empty() => {}
            Some(newer) => {
                std::mem::swap(newer, &mut wire);
                newer.append(*wire);
            }
        }
    }

    /// Total bytes that the socket took.
    pub(super) fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// Bytes of replies that wait behind a full socket.
    pub(super) fn reply_bytes(&self) -> usize {
        self.lanes.as_ref().map_or(0, |lanes| lanes.reply_bytes)
    }

    /// Pushes and their bytes that wait behind a full socket.
    pub(super) fn pushes_waiting(&self) -> (usize, usize) {
        self.lanes.as_ref().map_or((0, 0), |lanes| (lanes.push_frames, lanes.push_bytes))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.wire.as_ref().is_none_or(|wire| wire.is_empty())
            && self.lanes.as_ref().is_none_or(|lanes| lanes.is_empty())
    }

    /// Gives back memory that a burst took, unless something waits.
    pub(super) fn shrink(&mut self) {
        if self.is_empty() && self.writing == Writing::Idle {
            self.wire = None;
            self.lanes = None;
        }
    }

    /// Forgets everything, because the connection is over.
    pub(super) fn clear(&mut self) {
        self.wire = None;
        if let Some(lanes) = self.lanes.take().filter(|lanes| 0 < lanes.push_frames) {
            self.counted.get_or_insert_default().pushes_dropped += lanes.push_frames as u64;
        }
    }

    /// True if enough is on the wire for a write of its own, and nobody writes: putting the write off
    /// any longer would only fill the lanes of a socket that may be free.
    pub(super) fn wants_write(&self) -> bool {
        WIRE_BYTES <= self.wire_bytes() && self.writing == Writing::Idle
    }

    pub(super) fn goes_direct(&self) -> bool {
        self.wire_bytes() < WIRE_BYTES
            && self.lanes.as_ref().is_none_or(|lanes| lanes.is_empty())
            && !matches!(self.writing, Writing::Blocked | Writing::LeftOff)
    }

    fn wire_bytes(&self) -> usize {
        self.wire.as_ref().map_or(0, |wire| wire.bytes)
    }

    fn make_room(&mut self, lane: Lane, len: usize, bounds: &OutboxBounds) -> Result<(), Refused> {
        let lanes = self.lanes.get_or_insert_default();
        match lane {
            Lane::Control if CONTROL_FRAMES <= lanes.control.len() => {
                Err(Refused::Disconnect("it lets heartbeat answers and refusals pile up"))
            }
            Lane::Push => {
                let full = |lanes: &Lanes| {
                    bounds.push_frames <= lanes.push_frames
                        || (bounds.push_bytes < lanes.push_bytes + len && 0 < lanes.push_frames)
                };
                while full(lanes) {
                    let (frames, bytes) = (lanes.push_frames, lanes.push_bytes);
                    match bounds.overflow {
                        Overflow::RefuseNewest => return Err(Refused::Full { frames, bytes }),
                        Overflow::Disconnect => return Err(Refused::Disconnect("its queue of pushes is full")),
                        Overflow::DropOldest => {
                            let oldest = lanes.pushes.iter().position(|entry| entry.lane == Lane::Push);
                            let Some(dropped) = oldest.and_then(|at| lanes.pushes.remove(at)) else {
                                return Err(Refused::Full { frames, bytes });
                            };
                            lanes.count_out(Lane::Push, dropped.len());
                            let counted = self.counted.get_or_insert_default();
                            counted.pushes_dropped += 1;
                            // Those behind it keep their numbers.
                            counted.pushes.on_wire += 1;
                        }
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn add_entry(&mut self, mut entry: Entry, direct: bool) -> u64 {
        let lane = entry.lane;
        if direct {
            self.wire.get_or_insert_default().push_entry(entry);
            return self.count(lane, true);
        }
        let number = self.count(lane, false);
        entry.call = number;
        let lanes = self.lanes.get_or_insert_default();
        lanes.count_in(lane, entry.len());
        match lane {
            Lane::Control => lanes.control.push_back(entry),
            Lane::Call if self.requests_in_order => lanes.pushes.push_back(entry),
            Lane::Reply | Lane::Call => lanes.replies.push_back(entry),
            Lane::Push => lanes.pushes.push_back(entry),
        }
        number
    }

    /// Moves the replies that were just added behind the pushes that wait: their handlers pushed first.
    pub(super) fn last_reply_behind_pushes(&mut self) {
        let Some(lanes) = self.lanes.as_mut().filter(|lanes| !lanes.pushes.is_empty()) else { return };
        if let Some(entry) = lanes.replies.pop_back_if(|entry| entry.lane == Lane::Reply) {
            lanes.pushes.push_back(entry);
        }
    }

    /// Counts a frame that was added. Answers the number of the last call that was.
    fn count(&mut self, lane: Lane, on_wire: bool) -> u64 {
        let counted = match lane {
            Lane::Call | Lane::Push => self.counted.get_or_insert_default(),
            Lane::Control | Lane::Reply => return self.counted.as_ref().map_or(0, |counted| counted.calls.added),
        };
        let progress = if lane == Lane::Call { &mut counted.calls } else { &mut counted.pushes };
        progress.added += 1;
        if on_wire {
            progress.on_wire = progress.added;
        }
        counted.calls.added
    }

    fn refill(&mut self) {
        let Some(lanes) = self.lanes.as_mut().filter(|lanes| !lanes.is_empty()) else { return };
        let wire = self.wire.get_or_insert_default();
        while wire.bytes < WIRE_BYTES {
            let Some(entry) = lanes.pop() else { return };
            if let Some(counted) = &mut self.counted {
                match entry.lane {
                    Lane::Call => counted.calls.on_wire = entry.call,
                    Lane::Push => counted.pushes.on_wire += 1,
                    Lane::Control | Lane::Reply => {}
                }
            }
            wire.push_entry(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use bothways_proto::{Header, Metadata, Names, Role, Seq, SerializeType};

    use super::*;

    fn bounds(overflow: Overflow) -> OutboxBounds {
        OutboxBounds { push_frames: 3, push_bytes: 1 << 20, overflow }
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
            let written = wire.bytes;
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
            outbox.writing = Writing::Blocked;
            assert!(!outbox.add_joined_pushes(&joined, 3));
            outbox.writing = Writing::Idle;
            while outbox.add_joined_pushes(&joined, 3) {}
            assert!(outbox.wire_bytes() <= WIRE_BYTES && WIRE_BYTES < outbox.wire_bytes() + joined.len());
        }
    }

    /// Behind a full socket, control overtakes replies, and replies overtake pushes.
    #[test]
    fn a_full_socket_sorts_by_lane() {
        let mut outbox = Outbox::new(Role::Server);
        outbox.writing = Writing::Blocked;
        for (lane, text) in [(Lane::Push, "a"), (Lane::Reply, "b"), (Lane::Push, "c"), (Lane::Control, "d")] {
            add(&mut outbox, lane, text, Overflow::RefuseNewest).expect("room");
        }
        assert_eq!(drain(&mut outbox), "dbac");
    }

    /// A client's requests keep their order whether they want a reply or not; its replies overtake them, and a call
    /// that is given up leaves no gap.
    #[test]
    fn a_clients_requests_keep_their_order() {
        let mut outbox = Outbox::new(Role::Client);
        outbox.writing = Writing::Blocked;
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
        assert_eq!((outbox.pushes_waiting().0, outbox.reply_bytes()), (2, 33));
        assert_eq!(drain(&mut outbox), "dabce");
        assert_eq!((outbox.pushes_waiting(), outbox.reply_bytes()), ((0, 0), 0));
    }

    /// However many calls wait, a client's oneway requests have a bound of their own.
    #[test]
    fn calls_do_not_crowd_out_oneway_requests() {
        let mut outbox = Outbox::new(Role::Client);
        outbox.writing = Writing::Blocked;
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
        outbox.writing = Writing::Blocked;
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
            outbox.writing = Writing::Blocked;
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
        outbox.writing = Writing::Blocked;
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
        outbox.writing = Writing::Busy;
        assert!(outbox.call_may_be_written(first), "a write is under way: nobody can tell");
        let second = add(&mut outbox, Lane::Call, "two", Overflow::RefuseNewest).expect("room");
        outbox.put_back(wire, 0);
        outbox.writing = Writing::Blocked;
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
        outbox.writing = Writing::Blocked;
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
        assert_eq!(drain(&mut outbox), "creplye");
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
        outbox.writing = Writing::Busy;
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
        sent.extend_from_slice(&rest.flat[rest.written..]);
        let (mut deframer, limits) = (bothways_proto::Deframer::new(), Limits::default());
        deframer.feed(&sent, &limits);
        for text in ["one", "two"] {
            let message = deframer.next_message(&limits).expect("valid").expect("whole");
            assert_eq!(message.wire_payload(), text.as_bytes());
        }
    }
}
