//! Gaps in a topic before its last received message: a bounded list of ranges.

/// Stretches that are told apart. Of more, the last ones are one stretch, which then is filled only by a recovery.
const HOLES_MAX: usize = 8;

/// In ascending order: the last message before a gap, and the last one in it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Holes {
    list: Vec<(u64, u64)>,
    /// What is missing up to here is to come: a session that ends before that has lost it.
    owed: u64,
}

impl Holes {
    /// A message came, while the topic was at `last`. Before it in the topic stands the message at `previous`.
    pub(super) fn note(&mut self, last: u64, previous: u64, offset: u64) {
        if last < offset {
            if last < previous {
                self.list.push((last, previous));
            }
        } else if let Some(index) = self.list.iter().position(|(before, end)| *before < offset && offset <= *end) {
            let (before, end) = self.list.remove(index);
            let left = [(before, previous), (offset, end)].into_iter().filter(|(before, end)| before < end);
            self.list.splice(index..index, left);
        }
        while HOLES_MAX < self.list.len()
            && let Some((_, end)) = self.list.pop()
            && let Some(last) = self.list.last_mut()
        {
            last.1 = end;
        }
    }

    /// The last message before the first that is missing.
    pub(super) fn first(&self) -> Option<u64> {
        self.list.first().map(|(before, _)| *before)
    }

    /// What is missing now is to come.
    pub(super) fn owe(&mut self) {
        self.owed = self.list.last().map_or(0, |(_, end)| *end);
    }

    /// Something is missing that was to come.
    pub(super) fn are_owed(&self) -> bool {
        self.list.first().is_some_and(|(_, end)| *end <= self.owed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(offsets: &[u64]) -> Holes {
        let (mut holes, mut last) = (Holes::default(), 0);
        for offset in offsets {
            holes.note(last, *offset - 1, *offset);
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
        assert_eq!(noted(&[1, 5, 9, 7]).list, [(1, 4), (5, 6), (7, 8)], "it is in the second");
        assert_eq!(noted(&[1, 5, 1]).list, [(1, 4)], "it came before");
        assert_eq!(noted(&[1, 5, 5]).list, [(1, 4)], "it came again");
    }

    #[test]
    fn holes_are_bounded_and_none_is_forgotten() {
        let offsets: Vec<_> = (1..=100).map(|number| 2 * number).collect();
        let mut holes = noted(&offsets);
        assert_eq!(holes.list.len(), HOLES_MAX);
        assert_eq!(holes.list.last(), Some(&(14, 199)));
        for offset in (1..14).step_by(2) {
            holes.note(200, offset - 1, offset);
        }
        assert_eq!(holes.first(), Some(14));
    }

    #[test]
    fn what_is_owed_and_came_is_owed_no_more() {
        let mut holes = noted(&[1, 4]);
        assert!(!holes.are_owed(), "it may have expired");
        holes.owe();
        assert!(holes.are_owed());
        holes.note(4, 1, 2);
        holes.note(4, 2, 3);
        holes.note(4, 7, 8);
        assert!(!holes.are_owed());
    }

    /// Offsets that do not count by one have no holes where each message follows the one that it names.
    #[test]
    fn what_follows_what_it_names_leaves_no_hole() {
        let mut holes = Holes::default();
        holes.note(7, 7, 30);
        assert_eq!(holes.first(), None);
        holes.note(30, 44, 51);
        assert_eq!(holes.list, [(30, 44)]);
        holes.note(51, 30, 38);
        assert_eq!(holes.list, [(38, 44)]);
        holes.note(51, 38, 44);
        assert_eq!(holes.first(), None, "all of it has come");
    }
}
