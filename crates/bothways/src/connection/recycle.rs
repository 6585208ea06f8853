//! Buffers of large frames, for the next ones.
//!
//! An allocator maps a large buffer anew each time, and each page of it costs a fault: of a call of 1 MiB as much as the
//! copying of it. The buffers that are free are those of the whole process, for a message is often dropped by another
//! thread than read it. What nobody takes for a second is given back by a [`Sweeper`]; with the last of these all is.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bothways_proto::Buffers;

/// Bytes of free buffers that a process keeps at most: 8 MiB. With one more, the oldest go.
pub(super) const RECYCLED_BYTES_MAX: usize = 8 << 20;

/// Bytes of one of them at most: 2 MiB. For a larger frame the copying counts, and not the buffer.
const BUFFER_BYTES_MAX: usize = RECYCLED_BYTES_MAX / 4;

/// For how long one is kept that nobody takes: this long at least, and twice as long at most, if [`sweep`] is called as
/// often.
const KEPT_FOR: Duration = Duration::from_secs(1);

static FREE: Mutex<Free> = Mutex::new(Free::new());

/// See the module.
#[derive(Debug)]
struct Free {
    /// Oldest first, each with the number of sweeps before it.
    buffers: VecDeque<(u64, Vec<u8>)>,
    bytes: usize,
    sweeps: u64,
    swept_at: Option<Instant>,
    sweepers: usize,
}

impl Free {
    const fn new() -> Self {
        Self { buffers: VecDeque::new(), bytes: 0, sweeps: 0, swept_at: None, sweepers: 0 }
    }

    /// The youngest that has room for so many bytes, and not for more than an eighth beyond.
    fn take(&mut self, bytes: usize) -> Option<Vec<u8>> {
        let fits = bytes..=bytes.saturating_add(bytes / 8);
        let at = self.buffers.iter().rposition(|(_, buffer)| fits.contains(&buffer.len()))?;
        let (_, buffer) = self.buffers.remove(at)?;
        self.bytes -= buffer.len();
        Some(buffer)
    }

    /// Keeps a buffer. Returns those for which there is no room any more.
    fn give(&mut self, buffer: Vec<u8>) -> Vec<Vec<u8>> {
        if BUFFER_BYTES_MAX < buffer.len() || buffer.len() != buffer.capacity() {
            return vec![buffer];
        }
        self.bytes += buffer.len();
        self.buffers.push_back((self.sweeps, buffer));
        let mut over = Vec::new();
        while RECYCLED_BYTES_MAX < self.bytes {
            let Some((_, oldest)) = self.buffers.pop_front() else { break };
            self.bytes -= oldest.len();
            over.push(oldest);
        }
        over
    }

    /// The same, where somebody gives it back in time.
    fn give_if_swept(&mut self, buffer: Vec<u8>) -> Vec<Vec<u8>> {
        if self.sweepers == 0 { vec![buffer] } else { self.give(buffer) }
    }

    /// A sweeper ends; with the last one go all buffers.
    fn end(&mut self) -> VecDeque<(u64, Vec<u8>)> {
        self.sweepers -= 1;
        if self.sweepers != 0 {
            return VecDeque::new();
        }
        self.bytes = 0;
        std::mem::take(&mut self.buffers)
    }

    fn sweep(&mut self, now: Instant) -> VecDeque<(u64, Vec<u8>)> {
        let is_early = self.swept_at.is_some_and(|at| now.saturating_duration_since(at) < KEPT_FOR);
        if is_early || (self.buffers.is_empty() && self.swept_at.is_some()) {
            return VecDeque::new();
        }
        self.swept_at = Some(now);
        let young = self.buffers.partition_point(|(sweeps, _)| *sweeps < self.sweeps);
        self.sweeps += 1;
        let rest = self.buffers.split_off(young);
        let old = std::mem::replace(&mut self.buffers, rest);
        self.bytes -= old.iter().map(|(_, buffer)| buffer.len()).sum::<usize>();
        old
    }
}

fn free() -> MutexGuard<'static, Free> {
    // Nothing here panics in between.
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The free buffers of this process.
#[derive(Debug)]
pub(super) struct Recycled;

impl Buffers for Recycled {
    fn take(bytes: usize) -> Option<Vec<u8>> {
        if BUFFER_BYTES_MAX < bytes { None } else { free().take(bytes) }
    }

    fn give(buffer: Vec<u8>) {
        let over = free().give_if_swept(buffer);
        // What the allocator does with these, it does without the lock.
        drop(over);
    }
}

/// Gives back what nobody takes. For who keeps the time of connections.
pub(crate) struct Sweeper(());

impl Sweeper {
    pub(crate) fn begin() -> Self {
        free().sweepers += 1;
        Self(())
    }

    /// Gives the buffers back that nobody has taken for a second. About once a second: more often does nothing.
    pub(crate) fn sweep(&self) {
        let old = free().sweep(Instant::now());
        drop(old);
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        let all = free().end();
        drop(all);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn buffer(bytes: usize) -> Vec<u8> {
        vec![0; bytes]
    }

    /// A buffer that is taken is at most an eighth larger than it needs to be, and of several the youngest.
    #[test]
    fn a_buffer_fits() {
        let mut free = Free::new();
        for bytes in [1000, 1125, 1126, 999] {
            free.give(buffer(bytes));
        }
        let mut take = |bytes| free.take(bytes).map(|buffer| buffer.len());
        assert_eq!([take(1000), take(1000), take(1000), take(999)], [Some(1125), Some(1000), None, Some(999)]);
        assert_eq!(free.bytes, 1126);
    }

    /// What is larger than a buffer may be, or holds bytes that nobody has set, is not kept.
    #[test]
    fn what_is_too_large_is_not_kept() {
        let mut free = Free::new();
        assert_eq!(free.give(buffer(BUFFER_BYTES_MAX + 1)).len(), 1);
        assert_eq!(free.give(Vec::with_capacity(10)).len(), 1);
        assert!(free.give(buffer(BUFFER_BYTES_MAX)).is_empty());
        assert_eq!((free.bytes, free.buffers.len()), (BUFFER_BYTES_MAX, 1));
    }

    /// What nobody takes goes after one to two seconds, and what was given meanwhile stays.
    #[test]
    fn what_is_not_taken_is_given_back() {
        let (mut free, began) = (Free::new(), Instant::now());
        let after = |millis| began + Duration::from_millis(millis);
        assert!(free.sweep(after(0)).is_empty());
        free.give(buffer(100));
        assert!(free.sweep(after(999)).is_empty() && free.sweep(after(1000)).is_empty());
        free.give(buffer(200));
        assert_eq!((free.sweep(after(1999)).len(), free.sweep(after(2000)).len()), (0, 1));
        assert_eq!(free.bytes, 200);
        let again = free.take(200).expect("it is there");
        free.give(again);
        assert!(free.sweep(after(3000)).is_empty(), "it was of use");
        assert_eq!((free.sweep(after(4000)).len(), free.bytes), (1, 0));
    }

    /// With the last of those who give them back all buffers go, and none is kept until there is another.
    #[test]
    fn nothing_is_kept_for_nobody() {
        let mut free = Free::new();
        assert_eq!(free.give_if_swept(buffer(10)).len(), 1);
        free.sweepers = 2;
        assert!(free.give_if_swept(buffer(10)).is_empty() && free.end().is_empty());
        assert_eq!((free.end().len(), free.bytes), (1, 0));
        assert_eq!(free.give_if_swept(buffer(10)).len(), 1);
    }

    proptest! {
        /// However buffers come and go, what is kept has its bound, and is counted.
        #[test]
        fn free_buffers_have_a_bound(steps in prop::collection::vec((0..3_u8, 0..BUFFER_BYTES_MAX + 9), 0..60)) {
            let (mut free, began) = (Free::new(), Instant::now());
            for (number, (step, bytes)) in steps.into_iter().enumerate() {
                match step {
                    0 => _ = free.take(bytes),
                    1 => _ = free.give(buffer(bytes)),
                    _ => _ = free.sweep(began + Duration::from_millis(700 * number as u64)),
                }
                prop_assert!(free.bytes <= RECYCLED_BYTES_MAX);
                prop_assert_eq!(free.bytes, free.buffers.iter().map(|(_, buffer)| buffer.len()).sum::<usize>());
            }
        }
    }
}
