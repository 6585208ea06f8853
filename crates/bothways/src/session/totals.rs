//! What became of the pushes of all sessions together, by class and stage.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::{
    push::Class,
    receipt::{STAGES, Stage},
};
use crate::stats::{self, CELLS, Counts};

/// Classes of pushes.
const CLASSES: usize = 3;

/// How many pushes of each class have ended, each counted once for every session that it was for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct PushCounts {
    /// Of [`Class::Fire`], by the [name](Stage::name) of the stage at which they ended.
    pub fire: Counts,
    /// Of [`Class::Latest`].
    pub latest: Counts,
    /// Of [`Class::Tracked`].
    pub tracked: Counts,
}

impl PushCounts {
    /// Each class by its [name](Class::name), with its counts.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Counts)> {
        [("fire", &self.fire), ("latest", &self.latest), ("tracked", &self.tracked)].into_iter()
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Totals {
    /// Each behind a pointer of its own: a push that is counted holds its cell, and the threads that make pushes hold different ones.
    cells: [Arc<Cell>; CELLS],
}

#[repr(align(128))]
#[derive(Debug, Default)]
struct Cell {
    counts: [[AtomicU64; STAGES]; CLASSES],
}

/// Where the ends of one push are counted.
#[derive(Debug)]
pub(super) struct Total {
    cell: Arc<Cell>,
    class: u8,
}

impl Totals {
    /// For a push of this class, which this thread makes.
    pub(super) fn of(&self, class: &Class) -> Total {
        Total { cell: Arc::clone(&self.cells[stats::cell()]), class: class.index() }
    }

    pub(super) fn read(&self) -> PushCounts {
        let [fire, latest, tracked] = [0, 1, 2].map(|class: usize| {
            let count =
                |stage: usize| self.cells.iter().map(|cell| cell.counts[class][stage].load(Ordering::Relaxed)).sum();
            // The first stages end nothing.
            Counts::of(&Stage::FINAL_NAMES, |index| count(index + Stage::FIRST_FINAL))
        });
        PushCounts { fire, latest, tracked }
    }
}

impl Total {
    /// One more target has ended, at the stage of this place.
    #[inline]
    pub(super) fn count(&self, stage: usize) {
        self.cell.counts[usize::from(self.class)][stage].fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{DropReason, Failure};

    /// Each end is counted under its class and under its name.
    #[test]
    fn each_end_has_its_name() {
        let totals = Totals::default();
        let ends = [
            (Class::Fire, Stage::PlainWritten),
            (Class::Latest("k".into()), Stage::Superseded),
            (Class::Tracked, Stage::Handled),
            (Class::Tracked, Stage::Failed(Failure::NoHandler)),
            (Class::Tracked, Stage::Dropped(DropReason::Full)),
        ];
        for (class, stage) in &ends {
            totals.of(class).count(stage.index());
        }
        let counts = totals.read();
        for (class, stage) in &ends {
            let of_class = counts.iter().find(|(name, _)| *name == class.name()).expect("it has a name").1;
            assert_eq!(of_class.get(stage.name()), 1, "{class:?} {stage:?}");
        }
        assert_eq!(counts.iter().map(|(_, counts)| counts.total()).sum::<u64>(), ends.len() as u64);
    }
}
