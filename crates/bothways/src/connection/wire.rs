//! Bytes that are being written to the socket, in their final order.
//!
//! `flat` is one buffer that a write takes whole: bytes copied one after another beat a vectored write of small slices.
//! From [`SHARE_BYTES`] on a payload is not copied but shared, in `tail`; what of it a socket did not take is copied
//! below [`COPY_BYTES`], for it may be a slice of a read, which it would keep whole for as long as it waits.

use std::{collections::VecDeque, io::IoSlice};

use bytes::Bytes;

use crate::{guard, shrink::COPY_BYTES};

/// Bytes whose order is settled. More than this wait in their lanes, where a reply can still
/// overtake a push, and a push can still be dropped.
pub(super) const WIRE_BYTES: usize = 64 << 10;

/// Payloads of at least this many bytes are shared, smaller ones copied.
pub(super) const SHARE_BYTES: usize = 4 << 10;

/// Most bytes of one write, and how much a thread writes to one connection before it turns to another: a
/// frame of many MiB must not hold up the pushes to everybody else. 256 KiB: some 50 µs of copying, which the
/// system call and the change of tasks around it disappear in. And 4 KiB, so that what comes before a payload of just that
/// size does not cost a write of its own.
pub(super) const WRITE_BYTES: usize = (256 << 10) + (4 << 10);

/// Slices of one write.
const SLICES: usize = 16;

/// Capacity of `flat` above which it is given back between writes. 256 KiB: four times what is usually under way.
const FLAT_BYTES_KEPT: usize = 4 * WIRE_BYTES;

/// Places for ends of pushes above which they are given back between writes. 256: of a usual burst.
const PUSHES_KEPT: usize = 256;

/// Bytes in their final order: `flat` first, then `tail`.
#[derive(Debug, Default)]
pub(super) struct Wire {
    flat: Vec<u8>,
    /// Bytes of `flat` that the socket took already.
    written: usize,
    tail: VecDeque<Chunk>,
    bytes: usize,
    /// Of these at most so many are this connection's alone, and not in `flat`.
    owned: usize,
    /// Frames that were put here and are not counted yet.
    frames: u32,
    /// Bytes that have gone.
    gone: u64,
    /// The last place where a frame is known to begin, counted as `gone` is.
    frame_at: u64,
    /// Where the last push ends, counted as `gone` is, and where those before it end: what is left of a write that was
    /// not taken whole says which have gone.
    last_push: Option<PushEnd>,
    pushes: VecDeque<PushEnd>,
}

#[derive(Debug)]
struct Chunk {
    bytes: Bytes,
    /// An application's own, and perhaps a small part of something large.
    is_lent: bool,
}

impl From<Bytes> for Chunk {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, is_lent: false }
    }
}

#[derive(Clone, Copy, Debug)]
struct PushEnd {
    at: u64,
    /// The number of the push.
    number: u64,
}

impl Wire {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What it takes: itself, its buffer and its lists, with what is free of them.
    pub(super) fn capacity(&self) -> usize {
        let lists = self.tail.capacity() * size_of::<Chunk>() + self.pushes.capacity() * size_of::<PushEnd>();
        size_of::<Self>() + self.flat.capacity() + lists
    }

    /// As if nothing had ever been on it, for another connection. False: something is.
    pub(super) fn renew(&mut self) -> bool {
        if !self.is_empty() {
            return false;
        }
        self.flat.clear();
        self.tail.clear();
        self.forget_pushes();
        let (flat, tail, pushes) =
            (std::mem::take(&mut self.flat), std::mem::take(&mut self.tail), std::mem::take(&mut self.pushes));
        *self = Self { flat, tail, pushes, ..Self::default() };
        true
    }

    /// What of it counts for all connections together, at most.
    pub(super) fn cost(&self) -> usize {
        self.owned
    }

    /// What is left of the flat buffer.
    #[cfg(test)]
    pub(super) fn unwritten(&self) -> &[u8] {
        &self.flat[self.written..]
    }

    /// The slices of the next write, of this many bytes at most.
    fn slices<'a>(&'a self, space: &mut [IoSlice<'a>; SLICES], mut left: usize) -> usize {
        let mut used = 0;
        let flat = Some(&self.flat[self.written..]).filter(|flat| !flat.is_empty());
        for chunk in flat.into_iter().chain(self.tail.iter().map(|chunk| &*chunk.bytes)).take(SLICES) {
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
        self.gone += n as u64;
        self.bytes -= n;
        if self.bytes == 0 {
            self.frame_at = self.gone;
        }
        self.owned = self.owned.min(self.bytes);

        let of_flat = n.min(self.flat.len() - self.written);
        self.written += of_flat;
        n -= of_flat;
        self.give_back();

        while 0 < n {
            let front = &mut self.tail.front_mut().expect("no more is taken than was there").bytes;
            let of_front = n.min(front.len());
            n -= of_front;
            if of_front == front.len() {
                guard::drop_of(guard::VALUE, self.tail.pop_front());
            } else {
                bytes::Buf::advance(front, of_front);
            }
        }
    }

    /// Gives back what the socket took of `flat`: at once when that is all, and else whenever it is as much as
    /// may wait. A peer that always reads a little less than it is sent must not make `flat` grow for ever.
    fn give_back(&mut self) {
        if self.written == self.flat.len() {
            self.flat.clear();
            self.written = 0;
        } else if WIRE_BYTES <= self.written {
            self.flat.drain(..self.written);
            self.written = 0;
        }

        // One frame with very much metadata may have made it large.
        if FLAT_BYTES_KEPT < self.flat.capacity() && self.flat.len() < WIRE_BYTES {
            self.flat.shrink_to(WIRE_BYTES);
        }
    }

    pub(super) fn push_flat(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
        if self.tail.is_empty() {
            self.flat.extend_from_slice(bytes);
        } else {
            self.tail.push_back(Bytes::copy_from_slice(bytes).into());
        }
    }

    fn push_shared(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        self.bytes += bytes.len();
        self.tail.push_back(bytes.into());
    }

    pub(super) fn push(&mut self, bytes: Bytes) {
        if bytes.len() < SHARE_BYTES && self.tail.is_empty() {
            self.push_flat(&bytes);
        } else {
            self.push_shared(bytes);
        }
    }

    /// A frame in two pieces: its head, and a payload that is shared or empty. `owned`: it is this connection's alone.
    pub(super) fn push_frame(&mut self, head: Bytes, body: Bytes, owned: bool) {
        if owned {
            self.owned += head.len() + body.len();
        }
        self.note_frames(1);
        self.push(head);
        self.push_shared(body);
    }

    /// So many frames were put here.
    pub(super) fn note_frames(&mut self, frames: u32) {
        self.frames = self.frames.wrapping_add(frames);
    }

    /// How many frames were put here since this was asked last.
    pub(super) fn take_frames(&mut self) -> u32 {
        std::mem::take(&mut self.frames)
    }

    /// As [`Self::push_frame`], of a frame that nothing else waited for: its payload is as the application gave it.
    pub(super) fn lend_frame(&mut self, head: Bytes, body: Bytes, owned: bool) {
        let is_lent = owned && !body.is_empty() && body.len() < COPY_BYTES;
        self.push_frame(head, body, owned);
        if let Some(chunk) = self.tail.back_mut().filter(|_| is_lent) {
            chunk.is_lent = true;
        }
    }

    /// The socket takes no more for now: what waits from here on keeps nothing that it is a small part of.
    pub(super) fn keep_alone(&mut self) {
        for chunk in self.tail.iter_mut().filter(|chunk| chunk.is_lent) {
            *chunk = Bytes::copy_from_slice(&chunk.bytes).into();
        }
    }

    /// The flat buffer, if a frame that is encoded into it now comes after everything else. A thread that writes to it
    /// says so by [`Self::note_flat`].
    pub(super) fn flat_end(&mut self) -> Option<&mut Vec<u8>> {
        self.tail.is_empty().then_some(&mut self.flat)
    }

    /// One frame of this many bytes was written to the end of the flat buffer.
    pub(super) fn note_flat(&mut self, bytes: usize) {
        self.note_frames(1);
        self.bytes += bytes;
    }

    /// What was put here last is the push of this number. A lone push takes no memory.
    pub(super) fn note_push(&mut self, number: u64) {
        self.add_push(PushEnd { at: self.gone + self.bytes as u64, number });
    }

    fn add_push(&mut self, end: PushEnd) {
        if let Some(before) = self.last_push.replace(end)
            && self.gone < before.at
        {
            self.pushes.push_back(before);
        }
    }

    /// The number of the last push that has gone whole since this was asked last.
    pub(super) fn pushes_gone(&mut self) -> Option<u64> {
        let is_gone = |end: &PushEnd| end.at <= self.gone;
        let mut last = None;
        while let Some(end) = self.pushes.front().filter(|end| is_gone(end)) {
            last = Some(*end);
            self.pushes.pop_front();
        }
        if self.last_push.as_ref().is_some_and(is_gone) {
            last = self.last_push.take();
        }
        let last = last?;
        self.frame_at = self.frame_at.max(last.at);
        Some(last.number)
    }

    /// What is left from the first push on of which nothing has gone, in whole frames; and whether there is one before it
    /// of which a part has.
    pub(super) fn into_whole_frames(mut self) -> (impl Iterator<Item = Bytes>, bool) {
        self.pushes_gone();
        let next_end = self.pushes.front().or(self.last_push.as_ref()).map(|end| end.at);
        let is_cut = self.frame_at != self.gone && next_end.is_some();
        let begins_at = if self.frame_at == self.gone { Some(self.gone) } else { next_end };
        let cut = begins_at.map_or(self.bytes, |at| (at - self.gone) as usize);
        self.advance(cut);
        let flat = Bytes::from(self.flat).slice(self.written..);
        let tail = self.tail.into_iter().map(|chunk| chunk.bytes);
        (std::iter::once(flat).chain(tail), is_cut)
    }

    /// All has gone, and its pushes are counted.
    pub(super) fn forget_pushes(&mut self) {
        self.last_push = None;
        self.pushes.clear();
        if PUSHES_KEPT < self.pushes.capacity() {
            self.pushes = VecDeque::new();
        }
    }

    /// Puts the frames that came in between after those that were not written.
    pub(super) fn append(&mut self, newer: &mut Self) {
        let end = self.gone + self.bytes as u64;
        for push in newer.pushes.drain(..).chain(newer.last_push.take()) {
            self.add_push(PushEnd { at: end + (push.at - newer.gone), ..push });
        }
        self.note_frames(newer.frames);
        self.bytes += newer.bytes;
        self.owned += newer.owned;
        if self.tail.is_empty() {
            self.flat.extend_from_slice(&newer.flat[newer.written..]);
        } else if newer.written < newer.flat.len() {
            self.tail.push_back(Bytes::from(std::mem::take(&mut newer.flat)).slice(newer.written..).into());
        }
        self.tail.append(&mut newer.tail);
        newer.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Takes so many bytes of what is next, as a socket does.
    fn take(wire: &mut Wire, bytes: usize) -> usize {
        wire.write_with(0, |slices| slices[0].len().min(bytes), |n| *n)
    }

    /// A peer that always reads a little less than it is sent leaves the buffer as large as what waits.
    #[test]
    fn written_bytes_are_given_back_as_they_go() {
        let mut wire = Wire::default();
        for _ in 0..4096 {
            while wire.bytes() < WIRE_BYTES {
                wire.push_flat(&[7; 300]);
            }
            take(&mut wire, 16 << 10);
            assert!(wire.flat.capacity() <= FLAT_BYTES_KEPT, "{}", wire.flat.capacity());
        }
    }

    /// What was written is given back at the bound and not before it: each time costs a copy of the rest.
    #[test]
    fn the_buffer_is_moved_once_per_bound() {
        let mut wire = Wire::default();
        wire.push_flat(&vec![7; 3 * WIRE_BYTES]);
        take(&mut wire, WIRE_BYTES - 1);
        assert_eq!((wire.written, wire.flat.len()), (WIRE_BYTES - 1, 3 * WIRE_BYTES));
        take(&mut wire, 1);
        assert_eq!((wire.written, wire.flat.len(), wire.bytes()), (0, 2 * WIRE_BYTES, 2 * WIRE_BYTES));
    }

    /// A buffer that one large frame made large is not kept.
    #[test]
    fn a_large_buffer_is_given_back() {
        let mut wire = Wire::default();
        wire.push_flat(&vec![7; 2 * FLAT_BYTES_KEPT]);
        while !wire.is_empty() {
            take(&mut wire, WIRE_BYTES);
        }
        assert!(wire.flat.capacity() <= FLAT_BYTES_KEPT, "{}", wire.flat.capacity());
    }

    /// One write offers no more than its share, wherever a slice ends.
    #[test]
    fn a_write_is_no_larger_than_its_share() {
        let mut wire = Wire::default();
        wire.push_flat(&[1; 100]);
        wire.push(vec![2; WRITE_BYTES].into());
        wire.push(vec![3; WRITE_BYTES].into());
        let offered = |wire: &mut Wire, done| {
            wire.write_with(done, |slices| slices.iter().map(|slice| slice.len()).sum::<usize>(), |_| 0)
        };
        assert_eq!(offered(&mut wire, 0), WRITE_BYTES);
        assert_eq!(offered(&mut wire, WRITE_BYTES - 1), 1);
    }

    /// However many small pieces wait, one write has [`SLICES`] of them at most, in order.
    #[test]
    fn a_write_has_a_bound_of_slices() {
        let mut wire = Wire::default();
        for n in 0..2 * SLICES {
            wire.push_shared(vec![n as u8; SHARE_BYTES].into());
        }
        let seen = wire.write_with(0, |slices| slices.iter().map(|slice| slice[0]).collect::<Vec<_>>(), |_| 0);
        assert_eq!(seen, (0..SLICES as u8).collect::<Vec<_>>());
    }

    /// Of what a socket took in part, each push that it has whole is known, also of what was added meanwhile.
    #[test]
    fn pushes_are_counted_as_they_go() {
        let mut wire = Wire::default();
        for number in 1..=3 {
            wire.push_flat(&[7; 10]);
            wire.note_push(number);
        }
        let mut newer = Wire::default();
        for number in 4..=5 {
            newer.push_flat(&[7; 10]);
            newer.note_push(number);
        }
        newer.push_flat(&[8; 10]);
        let gone = |wire: &mut Wire, bytes| {
            let mut left = bytes;
            while 0 < left {
                left -= take(wire, left);
            }
            wire.pushes_gone()
        };
        assert_eq!([gone(&mut wire, 9), gone(&mut wire, 1), gone(&mut wire, 9)], [None, Some(1), None]);
        wire.append(&mut newer);
        assert_eq!([gone(&mut wire, 12), gone(&mut wire, 18), gone(&mut wire, 1)], [Some(3), Some(4), Some(5)]);
        assert_eq!((wire.bytes(), wire.pushes.len()), (10, 0));
    }

    /// A payload is copied below the bound and shared from it on.
    #[test]
    fn payloads_are_shared_from_the_bound_on() {
        let mut wire = Wire::default();
        wire.push(vec![1; SHARE_BYTES - 1].into());
        assert_eq!((wire.flat.len(), wire.tail.len()), (SHARE_BYTES - 1, 0));
        wire.push(vec![2; SHARE_BYTES].into());
        assert_eq!((wire.flat.len(), wire.tail.len()), (SHARE_BYTES - 1, 1));
        wire.push(vec![3; 1].into());
        assert_eq!((wire.tail.len(), wire.bytes()), (2, 2 * SHARE_BYTES));
    }

    /// What a socket did not take keeps the read alive that it is a slice of only if it is large, or for many connections.
    #[test]
    fn what_a_socket_did_not_take_is_a_copy() {
        let read = Bytes::from(vec![1; 2 * COPY_BYTES]);
        for (len, owned, is_copied) in [
            (SHARE_BYTES, true, true),
            (COPY_BYTES - 1, true, true),
            (COPY_BYTES, true, false),
            (SHARE_BYTES, false, false),
        ] {
            let payload = read.slice(..len);
            let mut wire = Wire::default();
            wire.lend_frame(Bytes::from_static(b"head"), payload.clone(), owned);
            take(&mut wire, 4);
            assert_eq!(wire.tail[0].bytes.as_ptr(), payload.as_ptr(), "it did not wait");
            take(&mut wire, 1);
            wire.keep_alone();
            let kept = wire.tail[0].bytes.clone();
            assert_eq!(kept.as_ptr() != payload[1..].as_ptr(), is_copied, "{len} {owned}");
            wire.keep_alone();
            assert_eq!(wire.tail[0].bytes.as_ptr(), kept.as_ptr(), "once");
            assert_eq!((&kept[..], wire.bytes()), (&payload[1..], len - 1));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// However bytes come, copied, shared, encoded in place or behind others, they go in order and each once.
        #[test]
        fn what_is_pushed_goes_in_order(steps in prop::collection::vec((0..7_u8, 0..2 * SHARE_BYTES), 0..30)) {
            let (mut wire, mut pushed, mut gone) = (Wire::default(), Vec::<u8>::new(), Vec::<u8>::new());
            for (number, (step, len)) in steps.into_iter().enumerate() {
                let bytes: Vec<u8> = (0..len).map(|at| (at + 31 * number) as u8).collect();
                let all = |bytes: &[u8]| Bytes::copy_from_slice(bytes);
                match step {
                    0 => wire.push_flat(&bytes),
                    1 => wire.push(all(&bytes)),
                    2 => {
                        wire.lend_frame(all(&bytes[..len / 8]), all(&bytes[len / 8..]), number % 2 == 0);
                        if number % 3 == 0 {
                            wire.keep_alone();
                        }
                    }
                    3 => match wire.flat_end() {
                        Some(flat) => {
                            flat.extend_from_slice(&bytes);
                            wire.note_flat(len);
                        }
                        None => wire.push_flat(&bytes),
                    },
                    4 => {
                        // Some of what came meanwhile is written already.
                        let mut newer = Wire::default();
                        newer.push_flat(b"abc");
                        newer.push_flat(&bytes[..len / 4]);
                        newer.push(all(&bytes[len / 4..]));
                        take(&mut newer, 3);
                        wire.append(&mut newer);
                    }
                    _ => {
                        let mut left = len;
                        wire.write_with(
                            0,
                            |slices| {
                                let before = gone.len();
                                for slice in slices {
                                    let taken = left.min(slice.len());
                                    gone.extend_from_slice(&slice[..taken]);
                                    left -= taken;
                                }
                                gone.len() - before
                            },
                            |taken| *taken,
                        );
                    }
                }
                if step < 5 {
                    pushed.extend_from_slice(&bytes);
                }
                prop_assert_eq!(wire.bytes(), pushed.len() - gone.len());
                prop_assert_eq!(wire.is_empty(), pushed.len() == gone.len());
            }
            while !wire.is_empty() {
                let all = |slices: &[IoSlice<'_>]| slices.iter().flat_map(|slice| slice.to_vec()).collect::<Vec<u8>>();
                gone.extend(wire.write_with(0, all, Vec::len));
            }
            prop_assert!(gone == pushed);
        }
    }
}
