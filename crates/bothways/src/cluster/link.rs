//! Mail from one node to another: batches, one in flight, each run once. No I/O, no clock.
//!
//! ```text
//!  offer ──► waiting ──► begin ──► in flight ──► answered      the items are done
//!                                      │
//!                                      └──► give up            perhaps they were run; the next batch begins an epoch
//! ```
//!
//! A batch has a number within an epoch of the link. The receiver runs a number once, repeats its last answer when it is
//! asked again, and drops what is older. A sender that gives a batch up goes on in another epoch: after the first batch of
//! that one, nothing of the old one is run any more. So a link is never stuck behind what was given up.

use std::collections::VecDeque;

/// Most bytes of a batch, if the engine takes twice as much; half of what it takes otherwise.
pub(super) const BATCH_BYTES_MAX: usize = 512 << 10;

/// Most items of a batch.
pub(super) const BATCH_ITEMS_MAX: usize = 4096;

/// Most items that wait for one node, and most bytes of them. What would go beyond is refused, and counts as unreached.
pub(super) const WAITING_ITEMS_MAX: usize = 64 << 10;
/// See [`WAITING_ITEMS_MAX`].
pub(super) const WAITING_BYTES_MAX: usize = 16 << 20;

/// What goes wrong on purpose, so that a search is seen to find it.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub(super) enum Mutant {
    #[default]
    None,
    /// The receiver takes the next number only, and knows no epochs.
    #[cfg(test)]
    GoBackN,
    /// What was given up is sent again as the same batch.
    #[cfg(test)]
    SameEpoch,
    /// An answer is not kept: a batch that comes twice is run twice.
    #[cfg(test)]
    NoMemory,
    /// A batch of an older epoch is run.
    #[cfg(test)]
    OldEpochsRun,
    /// Any answer ends what is in flight.
    #[cfg(test)]
    AnyAnswer,
}

/// Places a batch in the order of its link.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) struct Number {
    pub(super) epoch: u64,
    pub(super) n: u64,
}

/// The end that sends. `T` is an item.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Outgoing<T> {
    next: Number,
    waiting: VecDeque<(T, usize)>,
    bytes: usize,
    in_flight: Option<(Number, Vec<T>)>,
    mutant: Mutant,
}

impl<T: Clone> Outgoing<T> {
    pub(super) fn new() -> Self {
        let next = Number { epoch: 1, n: 1 };
        Self { next, waiting: VecDeque::new(), bytes: 0, in_flight: None, mutant: Mutant::None }
    }

    #[cfg(test)]
    pub(super) fn mutated(mutant: Mutant) -> Self {
        Self { mutant, ..Self::new() }
    }

    /// One more item, of so many bytes.
    ///
    /// # Errors
    /// The item: too much waits already.
    pub(super) fn offer(&mut self, item: T, bytes: usize) -> Result<(), T> {
        if WAITING_ITEMS_MAX <= self.waiting.len() || WAITING_BYTES_MAX < self.bytes + bytes {
            return Err(item);
        }
        self.bytes += bytes;
        self.waiting.push_back((item, bytes));
        Ok(())
    }

    /// The next batch, if none is in flight and something waits: as many items as `most` bytes have room for, and one at
    /// least.
    pub(super) fn begin(&mut self, most: usize) -> Option<(Number, Vec<T>)> {
        if self.in_flight.is_some() {
            return None;
        }
        let (mut items, mut bytes) = (Vec::new(), 0);
        while let Some((_, size)) = self.waiting.front() {
            if !items.is_empty() && (most < bytes + size || BATCH_ITEMS_MAX <= items.len()) {
                break;
            }
            let Some((item, size)) = self.waiting.pop_front() else { break };
            bytes += size;
            items.push(item);
        }
        self.bytes -= bytes;
        if items.is_empty() {
            return None;
        }

        let number = self.next;
        self.next.n += 1;
        self.in_flight = Some((number, items.clone()));
        Some((number, items))
    }

    /// The batch with this number was answered. Returns its items; `None`: another one is in flight, or none.
    pub(super) fn answered(&mut self, number: Number) -> Option<Vec<T>> {
        let is_this = self.in_flight.as_ref().is_some_and(|(in_flight, _)| *in_flight == number);
        #[cfg(test)]
        let is_this = is_this || self.mutant == Mutant::AnyAnswer;
        if !is_this {
            return None;
        }
        self.in_flight.take().map(|(_, items)| items)
    }

    /// Nobody has answered what is in flight: it may have been run. The next batch begins another epoch.
    pub(super) fn give_up(&mut self) -> Vec<T> {
        let Some((_, items)) = self.in_flight.take() else { return Vec::new() };
        #[cfg(test)]
        if matches!(self.mutant, Mutant::SameEpoch | Mutant::GoBackN) {
            return items;
        }
        self.next = Number { epoch: self.next.epoch + 1, n: 1 };
        items
    }

    /// All that waits, of which nothing was sent. Nothing waits after that.
    pub(super) fn take_waiting(&mut self) -> Vec<T> {
        self.bytes = 0;
        std::mem::take(&mut self.waiting).into_iter().map(|(item, _)| item).collect()
    }

    /// Items that wait, and their bytes.
    pub(super) fn waiting(&self) -> (usize, usize) {
        (self.waiting.len(), self.bytes)
    }

    /// True if there is nothing to send and nothing to wait for.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.in_flight.is_none()
    }
}

/// What becomes of a batch that has come.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Arrival<A> {
    /// It is new: it is to be run, and [`Incoming::done`] follows. `confirms`: the sender has the answer before this
    /// one. `breaks`: it may not have it, and never will.
    Run { confirms: bool, breaks: bool },
    /// It was run: this is what was answered.
    Repeat(A),
    /// It is older than the last one: nobody waits for an answer.
    Old,
}

/// The end that receives, for one sender. `A` is what a batch was answered with.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Incoming<A> {
    last: Option<(Number, A)>,
    mutant: Mutant,
}

impl<A: Clone> Incoming<A> {
    pub(super) fn new() -> Self {
        Self { last: None, mutant: Mutant::None }
    }

    #[cfg(test)]
    pub(super) fn mutated(mutant: Mutant) -> Self {
        Self { mutant, ..Self::new() }
    }

    /// A batch has come.
    pub(super) fn arrive(&self, number: Number) -> Arrival<A> {
        let Some((last, answer)) = &self.last else {
            #[cfg(test)]
            if self.mutant == Mutant::GoBackN && number.n != 1 {
                return Arrival::Old;
            }
            return Arrival::Run { confirms: false, breaks: false };
        };
        #[cfg(test)]
        match self.mutant {
            Mutant::GoBackN if number.n != last.n && number.n != last.n + 1 => return Arrival::Old,
            Mutant::NoMemory if number == *last => return Arrival::Run { confirms: false, breaks: false },
            Mutant::OldEpochsRun if number.epoch < last.epoch => {
                return Arrival::Run { confirms: false, breaks: false };
            }
            _ => {}
        }
        if number == *last {
            Arrival::Repeat(answer.clone())
        } else if number < *last {
            Arrival::Old
        } else {
            let same = number.epoch == last.epoch;
            Arrival::Run { confirms: same, breaks: !same }
        }
    }

    /// The batch was run, and is answered so.
    pub(super) fn done(&mut self, number: Number, answer: A) {
        self.last = Some((number, answer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch has as many items as there is room for, and one that is larger goes alone.
    #[test]
    fn a_batch_has_bounds() {
        let mut link = Outgoing::new();
        for (item, bytes) in [(1, 40), (2, 40), (3, 40), (4, 200), (5, 10)] {
            link.offer(item, bytes).expect("there is room");
        }
        let first = link.begin(100).expect("something waits");
        assert_eq!(first, (Number { epoch: 1, n: 1 }, vec![1, 2]));
        assert_eq!(link.begin(100), None, "one in flight");
        assert_eq!(link.answered(Number { epoch: 1, n: 2 }), None, "another one's answer");
        assert_eq!(link.answered(first.0), Some(vec![1, 2]));
        for expected in [vec![3], vec![4], vec![5]] {
            let (number, items) = link.begin(100).expect("something waits");
            assert_eq!(items, expected);
            assert_eq!(link.answered(number), Some(expected));
        }
        assert!(link.is_idle() && link.begin(100).is_none());
    }

    /// What waits for a node that takes nothing has a bound in bytes and in number.
    #[test]
    fn what_waits_has_bounds() {
        let mut link = Outgoing::new();
        let large = WAITING_BYTES_MAX / 4;
        assert_eq!((0..5).map(|item| link.offer(item, large)).position(|offered| offered.is_err()), Some(4));
        assert_eq!(link.take_waiting(), [0, 1, 2, 3]);
        assert_eq!(link.offer(5, large), Ok(()), "there is room again");

        let mut link = Outgoing::new();
        let taken = (0..=WAITING_ITEMS_MAX).map_while(|item| link.offer(item, 1).ok()).count();
        assert_eq!(taken, WAITING_ITEMS_MAX);
    }

    /// R16. What is given up is followed by another epoch, and the receiver goes on with that one.
    #[test]
    fn a_link_goes_on_after_it_has_given_up() {
        let (mut link, mut incoming) = (Outgoing::new(), Incoming::new());
        for item in 0..3 {
            link.offer(item, 1).expect("there is room");
        }
        let (lost, _) = link.begin(1).expect("something waits");
        assert_eq!(link.give_up(), [0]);
        let (number, items) = link.begin(1).expect("something waits");
        assert_eq!(incoming.arrive(number), Arrival::Run { confirms: false, breaks: false });
        incoming.done(number, "one");
        assert_eq!(incoming.arrive(number), Arrival::Repeat("one"));
        assert_eq!(incoming.arrive(lost), Arrival::Old, "it comes too late");
        assert_eq!(link.answered(number), Some(items));
        let (next, _) = link.begin(1).expect("something waits");
        assert_eq!(incoming.arrive(next), Arrival::Run { confirms: true, breaks: false });
        assert_eq!(link.give_up(), [2]);
        link.offer(3, 1).expect("there is room");
        let (anew, _) = link.begin(1).expect("something waits");
        assert_eq!(incoming.arrive(anew), Arrival::Run { confirms: false, breaks: true });
    }
}
