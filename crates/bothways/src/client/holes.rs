//! Gaps in a topic before its last received message: a bounded list of ranges.

/// Stretches that are told apart. Of more, the last ones are one stretch, which then is filled only by a recovery.
const HOLES_MAX: usize = 8;

/// In ascending order: the last message before a gap, and the first one after it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Holes {
    list: Vec<(u64, u64)>,
    /// What is missing up to here is to come: a session that ends before that has lost it.
    owed: u64,
}

impl Holes {
    /// A message came, while the topic was at `last`.
    pub(super) fn note(&mut self, last: u64, offset: u64) {
        if last < offset {
            if last + 1 < offset {
                self.list.push((last, offset));
            }
        } else if let Some(index) = self.list.iter().position(|(before, behind)| *before < offset && offset < *behind) {
            let (before, behind) = self.list.remove(index);
            let left = [(before, offset), (offset, behind)].into_iter().filter(|(before, behind)| before + 1 < *behind);
            self.list.splice(index..index, left);
        }
        while HOLES_MAX < self.list.len()
            && let Some((_, behind)) = self.list.pop()
            && let Some(last) = self.list.last_mut()
        {
            last.1 = behind;
        }
    }

    /// The last message before the first that is missing.
    pub(super) fn first(&self) -> Option<u64> {
        self.list.first().map(|(before, _)| *before)
    }

    /// What is missing now is to come.
    pub(super) fn owe(&mut self) {
        self.owed = self.list.last().map_or(0, |(_, behind)| *behind);
    }

    /// Something is missing that was to come.
    pub(super) fn are_owed(&self) -> bool {
        self.list.first().is_some_and(|(_, behind)| *behind <= self.owed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(offsets: &[u64]) -> Holes {
        let (mut holes, mut last) = (Holes::default(), 0);
        for offset in offsets {
            holes.note(last, *offset);
            last = last.max(*offset);
        }
        holes
    }

    #[test]
    fn what_comes_late_fills_a_hole() {
        assert_eq!(noted(&[1, 2, 3]).first(), None);
        assert_eq!(noted(&[1, 5, 6]).first(), Some(1));
        assert_eq!(noted(&[1, 5, 2, 3]).first(), Some(3));
        assert_eq!(noted(&[1, 5, 2, 3, 4]).first(), None);
        assert_eq!(noted(&[1, 5, 9, 2, 3, 4]).first(), Some(5), "there is another");
        assert_eq!(noted(&[1, 5, 4, 2]).first(), Some(2));
        assert_eq!(noted(&[1, 5, 9, 7]).list, [(1, 5), (5, 7), (7, 9)], "it is in the second");
        assert_eq!(noted(&[1, 5, 1]).list, [(1, 5)], "it came before");
        assert_eq!(noted(&[1, 5, 5]).list, [(1, 5)], "it came again");
    }

    #[test]
    fn holes_are_bounded_and_none_is_forgotten() {
        let offsets: Vec<_> = (1..=100).map(|number| 2 * number).collect();
        let mut holes = noted(&offsets);
        assert_eq!(holes.list.len(), HOLES_MAX);
        assert_eq!(holes.list.last(), Some(&(14, 200)));
        for offset in (1..14).step_by(2) {
            holes.note(200, offset);
        }
        assert_eq!(holes.first(), Some(14));
    }

    #[test]
    fn what_is_owed_and_came_is_owed_no_more() {
        let mut holes = noted(&[1, 4]);
        assert!(!holes.are_owed(), "it may have expired");
        holes.owe();
        assert!(holes.are_owed());
        holes.note(4, 2);
        holes.note(4, 3);
        holes.note(4, 8);
        assert!(!holes.are_owed());
    }
}
