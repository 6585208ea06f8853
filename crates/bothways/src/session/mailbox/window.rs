//! How far one device is with its mailbox: the letters between its cursor and what it has read. No I/O, no clock: times
//! are durations since any fixed moment.
//!
//! ```text
//!           ┌──── comes again later, after a failure ────┐
//!           ▼                                            │
//!  taken ─► due ─► out ─► handled ─► done                │
//!                   │ └── failed ────────────────────────┤
//!                   │ └── not delivered ─────────────────┘
//!                   └──── failed too often ─► dying ─► done, when it is with the dead letters
//! ```
//!
//! The cursor moves behind the last letter up to which all are done. So whatever ends between two moves comes again, and
//! nothing is passed over.

use std::{collections::VecDeque, time::Duration};

use crate::clock::backoff;

/// Most letters between the cursor and what is read.
pub(super) const LETTERS_MAX: usize = 32;
/// And so many bytes of them; one is taken however large it is.
pub(super) const BYTES_MAX: usize = 1 << 20;

/// How often a letter is tried, and when again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tries {
    /// Failures of a handler; at least one.
    pub(super) most: u32,
    /// After the first; doubled with each.
    pub(super) first: Duration,
    pub(super) longest: Duration,
}

/// How a delivery ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum End {
    Handled,
    /// The application could not.
    Failed,
    /// It did not get there: there was no room, or it had to make way.
    NotDelivered,
}

/// What follows the end of a delivery.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Then {
    Done,
    Again,
    /// It goes to the dead letters, and is done when it is there ([`Window::buried`]).
    Dies,
}

#[derive(Debug)]
enum Standing {
    Due(Duration),
    Out,
    Dying,
    Done,
}

#[derive(Debug)]
struct Waiting<T> {
    sequence: u64,
    bytes: usize,
    failures: u32,
    /// How often it was not delivered.
    misses: u32,
    standing: Standing,
    letter: T,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Window<T> {
    tries: Tries,
    /// All up to this one are done.
    cursor: u64,
    /// All up to this one were taken.
    read: u64,
    letters: VecDeque<Waiting<T>>,
    bytes: usize,
}

impl<T> Window<T> {
    pub(super) fn beginning_after(cursor: u64, tries: Tries) -> Self {
        Self { tries, cursor, read: cursor, letters: VecDeque::new(), bytes: 0 }
    }

    pub(super) fn read(&self) -> u64 {
        self.read
    }

    pub(super) fn is_empty(&self) -> bool {
        self.letters.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.letters.len()
    }

    /// For how many more letters there is room.
    pub(super) fn room(&self) -> usize {
        if BYTES_MAX <= self.bytes { 0 } else { LETTERS_MAX.saturating_sub(self.letters.len()) }
    }

    /// Takes the next letter of the mailbox. False: there is no room for it.
    pub(super) fn take(&mut self, sequence: u64, bytes: usize, letter: T, now: Duration) -> bool {
        if self.room() == 0 {
            return false;
        }
        debug_assert!(self.read < sequence);
        self.read = sequence;
        self.bytes += bytes;
        let standing = Standing::Due(now);
        self.letters.push_back(Waiting { sequence, bytes, failures: 0, misses: 0, standing, letter });
        true
    }

    /// The oldest letter that is to be delivered now: it is out.
    pub(super) fn next(&mut self, now: Duration) -> Option<(u64, &T)> {
        let is_due = |waiting: &&mut Waiting<T>| matches!(waiting.standing, Standing::Due(at) if at <= now);
        let next = self.letters.iter_mut().find(is_due)?;
        next.standing = Standing::Out;
        Some((next.sequence, &next.letter))
    }

    /// When the next one is due that is not yet.
    pub(super) fn next_at(&self) -> Option<Duration> {
        let due = |waiting: &Waiting<T>| match waiting.standing {
            Standing::Due(at) => Some(at),
            _ => None,
        };
        self.letters.iter().filter_map(due).min()
    }

    /// A delivery ended. `None`: it was none of these.
    pub(super) fn end(&mut self, sequence: u64, end: End, now: Duration) -> Option<Then> {
        let Tries { most, first, longest } = self.tries;
        let waiting = self.out(sequence)?;
        let again_after = |before: u32| backoff(first, longest, before, 1.0);
        let (standing, then) = match end {
            End::Handled => (Standing::Done, Then::Done),
            End::Failed => {
                waiting.failures += 1;
                match most <= waiting.failures {
                    true => (Standing::Dying, Then::Dies),
                    false => (Standing::Due(now.saturating_add(again_after(waiting.failures - 1))), Then::Again),
                }
            }
            End::NotDelivered => {
                waiting.misses += 1;
                (Standing::Due(now.saturating_add(again_after(waiting.misses - 1))), Then::Again)
            }
        };
        waiting.standing = standing;
        Some(then)
    }

    /// Something that is out, or dies.
    fn out(&mut self, sequence: u64) -> Option<&mut Waiting<T>> {
        let at = self.letters.binary_search_by_key(&sequence, |waiting| waiting.sequence).ok()?;
        let waiting = &mut self.letters[at];
        matches!(waiting.standing, Standing::Out | Standing::Dying).then_some(waiting)
    }

    /// What cannot be delivered at all dies.
    pub(super) fn give_up(&mut self, sequence: u64) {
        if let Some(waiting) = self.out(sequence) {
            waiting.standing = Standing::Dying;
        }
    }

    /// The oldest that dies: it is with the dead letters when [`Self::buried`] follows.
    pub(super) fn dying(&self) -> Option<(u64, &T, u32)> {
        let dying = self.letters.iter().find(|waiting| matches!(waiting.standing, Standing::Dying))?;
        Some((dying.sequence, &dying.letter, dying.failures))
    }

    /// It is with the dead letters.
    pub(super) fn buried(&mut self, sequence: u64) {
        if let Some(waiting) = self.out(sequence) {
            waiting.standing = Standing::Done;
        }
    }

    /// Moves the cursor behind all that is done. `None`: it stays.
    pub(super) fn advance(&mut self) -> Option<u64> {
        let mut moved = None;
        while let Some(done) = self.letters.pop_front_if(|waiting| matches!(waiting.standing, Standing::Done)) {
            self.bytes -= done.bytes;
            self.cursor = done.sequence;
            moved = Some(done.sequence);
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TRIES: Tries = Tries { most: 3, first: Duration::from_secs(1), longest: Duration::from_secs(3) };

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A letter that fails comes again after a wait that doubles, up to the longest, and dies with its last failure. What
    /// is behind it goes on; the cursor does not.
    #[test]
    fn what_fails_comes_again_and_dies_in_the_end() {
        let mut window = Window::beginning_after(4, TRIES);
        assert!(window.take(5, 1, "a", seconds(0)) && window.take(9, 1, "b", seconds(0)));
        assert_eq!(window.next(seconds(0)), Some((5, &"a")));
        assert_eq!(window.next(seconds(0)), Some((9, &"b")));
        assert_eq!(window.end(9, End::Handled, seconds(0)), Some(Then::Done));
        assert_eq!(window.end(5, End::Failed, seconds(0)), Some(Then::Again));
        assert_eq!(window.advance(), None);
        assert_eq!(window.next(seconds(0)), None);
        assert_eq!(window.next_at(), Some(seconds(1)));
        assert_eq!(window.next(seconds(1)), Some((5, &"a")));
        assert_eq!(window.end(5, End::Failed, seconds(1)), Some(Then::Again));
        assert_eq!(window.next_at(), Some(seconds(3)));
        assert_eq!(window.next(seconds(3)), Some((5, &"a")));
        assert_eq!(window.end(5, End::NotDelivered, seconds(3)), Some(Then::Again), "that is no failure");
        assert_eq!(window.next(seconds(4)), Some((5, &"a")));
        assert_eq!(window.end(5, End::Failed, seconds(4)), Some(Then::Dies));
        assert_eq!(window.dying(), Some((5, &"a", 3)));
        assert_eq!(window.advance(), None);
        window.buried(5);
        assert_eq!((window.advance(), window.is_empty(), window.dying()), (Some(9), true, None));
        assert_eq!(window.end(5, End::Handled, seconds(9)), None, "it is gone");
    }

    /// There is a bound in letters, and one in bytes, which a single letter may pass.
    #[test]
    fn it_has_bounds() {
        let mut window = Window::beginning_after(0, TRIES);
        for sequence in 1..=LETTERS_MAX as u64 {
            assert!(window.take(sequence, 1, (), seconds(0)));
        }
        assert!(!window.take(99, 1, (), seconds(0)) && window.room() == 0);

        let mut window = Window::beginning_after(0, TRIES);
        assert!(window.take(1, 5 * BYTES_MAX, (), seconds(0)));
        assert!(!window.take(2, 1, (), seconds(0)) && window.read() == 1);
        window.next(seconds(0));
        window.end(1, End::Handled, seconds(0));
        assert_eq!(window.advance(), Some(1));
        assert!(window.take(2, 1, (), seconds(0)));
    }

    proptest! {
        /// Whatever happens, letters go out in their order for the first time, none more often than it may fail, the cursor
        /// passes none that is not done, and in the end all are done.
        #[test]
        fn the_cursor_passes_nothing(ends in proptest::collection::vec((0_usize..4, 0_u8..8), 0..200)) {
            let mut window = Window::beginning_after(0, TRIES);
            let (mut clock, mut first_out, mut done) = (Duration::ZERO, 0, std::collections::HashSet::new());
            let (mut out, mut failures) = (Vec::new(), std::collections::HashMap::<u64, u32>::new());
            let mut ends = ends.into_iter().chain(std::iter::repeat((0, 0)));
            while done.len() < 60 {
                while window.read() < 60 && window.take(window.read() + 1, 1, (), clock) {}
                while let Some((sequence, ())) = window.next(clock) {
                    if first_out < sequence {
                        prop_assert_eq!(sequence, first_out + 1);
                        first_out = sequence;
                    }
                    out.push(sequence);
                }
                if out.is_empty() {
                    clock = window.next_at().expect("not all are done");
                    continue;
                }
                let (which, how) = ends.next().expect("it goes on for ever");
                let sequence = out.remove(which % out.len());
                let end = match how {
                    0..4 => End::Handled,
                    4..7 => End::Failed,
                    _ => End::NotDelivered,
                };
                match window.end(sequence, end, clock).expect("it is out") {
                    Then::Done => _ = done.insert(sequence),
                    Then::Again => {}
                    Then::Dies => {
                        prop_assert_eq!(window.dying().map(|(dies, (), _)| dies), Some(sequence));
                        window.buried(sequence);
                        done.insert(sequence);
                    }
                }
                if end == End::Failed {
                    let failed = failures.entry(sequence).or_default();
                    *failed += 1;
                    prop_assert!(*failed <= TRIES.most);
                }
                if let Some(cursor) = window.advance() {
                    prop_assert!((1..=cursor).all(|sequence| done.contains(&sequence)));
                }
            }
            prop_assert!(window.is_empty());
        }
    }
}
