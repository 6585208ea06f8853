//! The table of pending calls.

use slab::Slab;

use crate::{Seq, TooManyCalls};

/// Pending calls, each with the waiter for its reply.
///
/// A call leaves in exactly one of four ways: [`complete`](Self::complete) (its reply came),
/// [`forget`](Self::forget) (nobody waits any more: its future was dropped, or its deadline passed),
/// [`drain`](Self::drain) (the connection ended), or it never entered because the table was full.
///
/// A number holds the call's place in the table and a generation, so that a late reply to a call
/// that was forgotten never reaches another call in the same place.
#[derive(Debug)]
pub struct Calls<W> {
    /// None before the first call, and none after a rest.
    slots: Option<Box<Slab<Slot<W>>>>,
    generation: u32,
    max: u32,
}

#[derive(Debug)]
struct Slot<W> {
    generation: u32,
    waiter: W,
}

/// Bits of a number that say the place; the 30 above them say the generation.
const PLACE_BITS: u32 = 32;
const GENERATION_MASK: u32 = (1 << 30) - 1;

impl<W> Calls<W> {
    /// A table for at most `max` calls. Takes no memory until the first.
    pub const fn new(max: usize) -> Self {
        // A place is 32 bits of a number.
        let max = if (u32::MAX as usize) < max { u32::MAX } else { max as u32 };
        Self { slots: None, generation: 0, max }
    }

    /// Enters a call and answers the number that will find it.
    ///
    /// # Errors
    /// [`TooManyCalls`] if `max` calls wait already; the waiter is handed back by being dropped.
    pub fn insert(&mut self, waiter: W) -> Result<Seq, TooManyCalls> {
        self.insert_beyond(waiter, 0)
    }

    /// Enters a call although the table is full, as long as no more than `beyond` are too many.
    pub(crate) fn insert_beyond(&mut self, waiter: W, beyond: usize) -> Result<Seq, TooManyCalls> {
        let max = self.max as usize;
        let slots = self.slots.get_or_insert_with(Box::default);
        if max.saturating_add(beyond) <= slots.len() {
            return Err(TooManyCalls { max });
        }
        self.generation = (self.generation + 1) & GENERATION_MASK;
        let place = slots.insert(Slot { generation: self.generation, waiter });
        Ok(Seq::new(u64::from(self.generation) << PLACE_BITS | place as u64))
    }

    /// Takes the call of this number out, because its reply came. `None`: nobody waits for it.
    pub fn complete(&mut self, seq: Seq) -> Option<W> {
        self.remove(seq)
    }

    /// Takes the call of this number out, because nobody waits any more.
    pub fn forget(&mut self, seq: Seq) -> Option<W> {
        self.remove(seq)
    }

    /// Takes all calls out, because the connection ended.
    pub fn drain(&mut self) -> impl Iterator<Item = W> + use<W> {
        self.slots.take().into_iter().flat_map(|slots| *slots).map(|(_, slot)| slot.waiter)
    }

    /// Changes what waits under this number.
    pub fn waiter_mut(&mut self, seq: Seq) -> Option<&mut W> {
        let (place, generation) = place_and_generation(seq)?;
        self.slots.as_mut()?.get_mut(place).filter(|slot| slot.generation == generation).map(|slot| &mut slot.waiter)
    }

    /// The waiters, in no order.
    pub fn waiters(&self) -> impl Iterator<Item = &W> {
        self.slots.iter().flat_map(|slots| slots.iter()).map(|(_, slot)| &slot.waiter)
    }

    /// How many calls wait.
    pub fn len(&self) -> usize {
        self.slots.as_ref().map_or(0, |slots| slots.len())
    }

    /// True if no call waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Gives back the memory of calls that were, if none waits.
    pub fn shrink(&mut self) {
        if self.is_empty() {
            self.slots = None;
        }
    }

    fn remove(&mut self, seq: Seq) -> Option<W> {
        let (place, generation) = place_and_generation(seq)?;
        let slots = self.slots.as_mut()?;
        if slots.get(place)?.generation != generation {
            return None;
        }
        let slot = slots.remove(place);
        if slots.is_empty() && 64 < slots.capacity() {
            // A burst is over: an idle connection keeps no memory of it.
            self.slots = None;
        }
        Some(slot.waiter)
    }
}

fn place_and_generation(seq: Seq) -> Option<(usize, u32)> {
    let number = seq.get();
    let generation = u32::try_from(number >> PLACE_BITS).ok()?;
    Some((usize::try_from(number & u64::from(u32::MAX)).ok()?, generation))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Replies find their calls in any order, once.
    #[test]
    fn replies_find_their_calls_once() {
        let mut calls = Calls::new(10);
        let seqs: Vec<Seq> = ["a", "b", "c"].map(|w| calls.insert(w).expect("room")).into();
        assert_eq!(calls.complete(seqs[2]), Some("c"));
        assert_eq!(calls.complete(seqs[0]), Some("a"));
        assert_eq!(calls.complete(seqs[0]), None);
        assert_eq!(calls.len(), 1);
    }

    /// The late reply of a forgotten call does not reach the next call in its place.
    #[test]
    fn a_late_reply_reaches_nobody() {
        let mut calls = Calls::new(10);
        let first = calls.insert("first").expect("room");
        assert_eq!(calls.forget(first), Some("first"));
        let second = calls.insert("second").expect("room");
        assert_eq!(calls.complete(first), None);
        assert_eq!(calls.complete(second), Some("second"));
    }

    /// A full table refuses the next call and keeps the others.
    #[test]
    fn a_full_table_refuses() {
        let mut calls = Calls::new(1);
        calls.insert(1).expect("room");
        assert_eq!(calls.insert(2), Err(TooManyCalls { max: 1 }));
        assert_eq!(calls.drain().collect::<Vec<_>>(), [1]);
        assert!(calls.is_empty());
    }

    /// Numbers stay below the bits that mark what a server begins, however long a connection lives.
    #[test]
    fn numbers_stay_below_the_marks() {
        let mut calls = Calls::new(2);
        calls.generation = GENERATION_MASK - 1;
        for _ in 0..3 {
            let seq = calls.insert(()).expect("room");
            assert_eq!(seq.get() >> 62, 0);
            calls.complete(seq).expect("it waits");
        }
    }

    /// Numbers that no table gave out find nothing.
    #[test]
    fn foreign_numbers_find_nothing() {
        let mut calls = Calls::new(2);
        calls.insert(()).expect("room");
        for number in [0, 1, u64::MAX, 1 << 63, 1 << 62] {
            assert_eq!(calls.complete(Seq::new(number)), None, "{number}");
        }
    }
}
