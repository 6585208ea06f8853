//! Wires that are empty, for the next connection of this thread that has something to write.
//!
//! A connection has a [`Wire`] only while something is to be written. It is the one that this thread used last, and so in
//! the cache of its processor: a buffer of its own would have to be fetched from memory for each of a thousand
//! connections, and each would keep one that it seldom needs.

use std::cell::RefCell;

use super::wire::{WIRE_BYTES, Wire};

/// Bytes of the wires that a thread keeps at most: 512 KiB. One push to a thousand connections takes as many, and to give
/// them back to an allocator and to take them again would cost more than the push.
const BYTES_MAX: usize = 8 * WIRE_BYTES;

/// Bytes of one of them at most: 128 KiB, twice what is usually under way.
const WIRE_BYTES_MAX: usize = 2 * WIRE_BYTES;

thread_local! {
    static SPARE: RefCell<Spare> = const { RefCell::new(Spare { wires: Vec::new(), bytes: 0 }) };
}

struct Spare {
    /// The last one was used last.
    #[expect(clippy::vec_box, reason = "an outbox has it in a box, and so it is not moved")]
    wires: Vec<Box<Wire>>,
    bytes: usize,
}

impl Spare {
    fn take(&mut self) -> Option<Box<Wire>> {
        let wire = self.wires.pop()?;
        self.bytes -= wire.capacity();
        Some(wire)
    }

    /// Returns it if there is no room.
    fn give(&mut self, wire: Box<Wire>) -> Option<Box<Wire>> {
        let bytes = wire.capacity();
        if WIRE_BYTES_MAX < bytes || BYTES_MAX < self.bytes + bytes {
            return Some(wire);
        }
        self.bytes += bytes;
        self.wires.push(wire);
        None
    }
}

/// An empty one.
pub(super) fn take() -> Box<Wire> {
    // At the end of its thread there are none.
    SPARE.try_with(|spare| spare.borrow_mut().take()).ok().flatten().unwrap_or_default()
}

/// Everything that was on it has gone.
pub(super) fn give(mut wire: Box<Wire>) {
    if wire.renew() {
        let refused = SPARE.try_with(|spare| spare.borrow_mut().give(wire));
        drop(refused);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Buffers of so many bytes, of which there is room for some.
    const SOME: usize = 10 << 10;

    fn filled(bytes: usize) -> Box<Wire> {
        let mut wire = take();
        wire.push_flat(&vec![7; bytes]);
        while !wire.is_empty() {
            wire.write_with(0, |slices| slices.iter().map(|slice| slice.len()).sum(), |n: &usize| *n);
        }
        wire
    }

    fn kept() -> (usize, usize) {
        SPARE.with_borrow(|spare| (spare.wires.len(), spare.bytes))
    }

    /// What is kept is bounded in number and in bytes, and what was used last is taken first.
    #[test]
    fn what_is_spare_is_bounded() {
        assert_eq!(kept(), (0, 0));
        let wires: Vec<_> = (0..2 * BYTES_MAX / SOME).map(|_| filled(SOME)).collect();
        wires.into_iter().for_each(give);
        let (count, bytes) = kept();
        assert!((BYTES_MAX - 2 * SOME..=BYTES_MAX).contains(&bytes), "{count} of {bytes} bytes");

        while kept().0 != 0 {
            let wire = take();
            assert!(wire.is_empty() && SOME <= wire.capacity());
        }
        assert_eq!(kept().1, 0);
        give(filled(WIRE_BYTES_MAX + 1));
        assert_eq!(kept(), (0, 0), "it is too large to keep");
        let mut last = filled(10);
        last.push_flat(b"x");
        let (before, waits) = (kept(), last.bytes());
        give(last);
        assert_eq!((kept(), waits), (before, 1), "something is on it");
    }
}
