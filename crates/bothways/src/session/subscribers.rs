//! Who subscribes to one pattern: sorted by number, for they come and go one by one, and a list, which each message is
//! published to.
//!
//! A long list is in parts, as they are: who comes or goes makes one part anew, and nobody walks a hundred thousand
//! sessions to publish to them.

use std::sync::{Arc, OnceLock};

use crate::shrink::is_sparse;

/// A part that would be larger is cut in two. What one change costs the next message, at most.
const PART_MAX: usize = 512;

/// So many are never a long list. In tests that is one.
const SMALL_MAX: usize = if cfg!(test) { 1 } else { PART_MAX };

/// Something with a number of its own, which mostly is larger than those before it, as that of a session is.
pub(super) trait Numbered {
    fn number(&self) -> u128;
}

/// See the module.
#[derive(Debug)]
pub(super) enum Subscribers<S> {
    Small(Part<S>),
    Many(Box<Many<S>>),
}

/// Sorted by number.
#[derive(Debug)]
pub(super) struct Part<S> {
    members: Vec<S>,
    /// Made by the first message after a change.
    list: OnceLock<Arc<[S]>>,
}

#[derive(Debug)]
pub(super) struct Many<S> {
    /// None is empty. Each with the number from which on members are in it; that of the first is 0.
    parts: Vec<(u128, Part<S>)>,
    len: usize,
    listing: OnceLock<Listing<S>>,
}

/// Those to whom a message is published, each once.
#[derive(Debug)]
pub(super) enum Listing<S> {
    Short(Arc<[S]>),
    Long(Arc<LongList<S>>),
}

impl<S> Clone for Listing<S> {
    fn clone(&self) -> Self {
        match self {
            Self::Short(list) => Self::Short(Arc::clone(list)),
            Self::Long(list) => Self::Long(Arc::clone(list)),
        }
    }
}

impl<S> Default for Listing<S> {
    fn default() -> Self {
        Self::Short(Arc::default())
    }
}

impl<S> Listing<S> {
    pub(super) fn iter(&self) -> impl Iterator<Item = &S> + Clone {
        let (short, long): (&[S], &[LongPart<S>]) = match self {
            Self::Short(list) => (list, &[]),
            Self::Long(list) => (&[], &list.parts),
        };
        short.iter().chain(long.iter().flat_map(|part| part.list.iter()))
    }
}

/// Very many, in parts that other lists share.
#[derive(Debug)]
pub(super) struct LongList<S> {
    parts: Box<[LongPart<S>]>,
    len: usize,
}

#[derive(Debug)]
struct LongPart<S> {
    /// As in [`Many`].
    from: u128,
    /// How many are before it.
    place: usize,
    list: Arc<[S]>,
}

impl<S> LongList<S> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// So many of them from this place on, or fewer: those of one part.
    pub(super) fn at(&self, place: usize, max: usize) -> &[S] {
        let after = self.parts.partition_point(|part| part.place <= place);
        let Some(part) = after.checked_sub(1).and_then(|at| self.parts.get(at)) else { return &[] };
        let rest = part.list.get(place - part.place..).unwrap_or_default();
        &rest[..rest.len().min(max)]
    }
}

impl<S: Numbered> LongList<S> {
    /// The place of who has this number.
    pub(super) fn place_of(&self, number: u128) -> Option<usize> {
        let after = self.parts.partition_point(|part| part.from <= number);
        let part = self.parts.get(after.checked_sub(1)?)?;
        let at = part.list.binary_search_by_key(&number, Numbered::number).ok()?;
        Some(part.place + at)
    }
}

/// Lists that are not true any more. They may be long: to be dropped when nothing is locked.
#[derive(Debug)]
pub(super) struct Stale<S> {
    _part: Option<Arc<[S]>>,
    _listing: Option<Listing<S>>,
}

impl<S> Stale<S> {
    /// `None`: there is none.
    fn of(part: Option<Arc<[S]>>, listing: Option<Listing<S>>) -> Option<Self> {
        (part.is_some() || listing.is_some()).then_some(Self { _part: part, _listing: listing })
    }
}

impl<S> Default for Part<S> {
    fn default() -> Self {
        Self::of(Vec::new())
    }
}

impl<S> Part<S> {
    fn of(members: Vec<S>) -> Self {
        Self { members, list: OnceLock::new() }
    }
}

impl<S: Numbered> Part<S> {
    fn place_of(&self, number: u128) -> Result<usize, usize> {
        self.members.binary_search_by_key(&number, Numbered::number)
    }

    /// Returns its list, which is not true any more. `None`: it was there.
    fn insert(&mut self, subscriber: S) -> Option<Option<Arc<[S]>>> {
        let at = self.place_of(subscriber.number()).err()?;
        if self.members.is_empty() {
            // Of a million topics most have one.
            self.members.reserve_exact(1);
        }
        self.members.insert(at, subscriber);
        Some(self.list.take())
    }

    /// As [`Self::insert`]. `None`: it was not there.
    fn remove(&mut self, number: u128) -> Option<Option<Arc<[S]>>> {
        let at = self.place_of(number).ok()?;
        self.members.remove(at);
        if is_sparse(self.members.len(), self.members.capacity()) {
            self.members.shrink_to_fit();
        }
        Some(self.list.take())
    }

    /// Cuts off its second half, or only its last member, behind which others will come.
    fn split(&mut self, grows: bool) -> (u128, Self) {
        let len = self.members.len();
        let members = self.members.split_off(if grows { len.saturating_sub(1) } else { len / 2 });
        self.members.shrink_to(PART_MAX);
        // What is cut has members in both halves.
        (members.first().map_or(0, Numbered::number), Self::of(members))
    }
}

impl<S: Clone> Part<S> {
    fn list(&self) -> &Arc<[S]> {
        self.list.get_or_init(|| self.members.iter().cloned().collect())
    }
}

impl<S: Numbered> Many<S> {
    fn new(mut first: Part<S>) -> Self {
        let len = first.members.len();
        let second = first.split(false);
        Self { parts: vec![(0, first), second], len, listing: OnceLock::new() }
    }

    /// The part where this number is, or would be.
    fn part_of(&self, number: u128) -> usize {
        self.parts.partition_point(|(from, _)| *from <= number).saturating_sub(1)
    }

    fn insert(&mut self, subscriber: S) -> (bool, Option<Stale<S>>) {
        let number = subscriber.number();
        let at = self.part_of(number);
        let is_last = at + 1 == self.parts.len();
        let part = &mut self.parts[at].1;
        let Some(list) = part.insert(subscriber) else { return (false, None) };
        self.len += 1;
        if PART_MAX < part.members.len() {
            // Who comes now has the largest number as a rule: to halve each part for that would leave all half empty.
            let grows = is_last && part.members.last().is_some_and(|last| last.number() == number);
            let cut = part.split(grows);
            self.parts.insert(at + 1, cut);
        }
        (true, Stale::of(list, self.listing.take()))
    }

    fn remove(&mut self, number: u128) -> Option<Option<Stale<S>>> {
        let at = self.part_of(number);
        let list = self.parts[at].1.remove(number)?;
        self.len -= 1;
        self.merge(at);
        Some(Stale::of(list, self.listing.take()))
    }

    /// This part has become smaller: it goes with the one before it, or the one behind it, if both are small or one is
    /// empty.
    fn merge(&mut self, at: usize) {
        let len = |at: usize| self.parts.get(at).map_or(PART_MAX, |(_, part)| part.members.len());
        let go_together = |first: &usize| {
            let (one, other) = (len(*first), len(first + 1));
            first + 1 < self.parts.len() && (one + other <= PART_MAX / 2 || one == 0 || other == 0)
        };
        let Some(first) = [at.checked_sub(1), Some(at)].into_iter().flatten().find(go_together) else { return };
        let (_, behind) = self.parts.remove(first + 1);
        let part = &mut self.parts[first].1;
        part.members.extend(behind.members);
        part.list.take();
    }
}

impl<S> Default for Subscribers<S> {
    fn default() -> Self {
        Self::Small(Part::default())
    }
}

impl<S> Subscribers<S> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Small(part) => part.members.len(),
            Self::Many(many) => many.len,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<S: Numbered> Subscribers<S> {
    pub(super) fn contains(&self, number: u128) -> bool {
        let part = match self {
            Self::Small(part) => part,
            Self::Many(many) => &many.parts[many.part_of(number)].1,
        };
        part.place_of(number).is_ok()
    }

    /// False: it was there.
    pub(super) fn insert(&mut self, subscriber: S) -> (bool, Option<Stale<S>>) {
        let part = match self {
            Self::Small(part) => part,
            Self::Many(many) => return many.insert(subscriber),
        };
        let Some(list) = part.insert(subscriber) else { return (false, None) };
        if SMALL_MAX < part.members.len() {
            *self = Self::Many(Many::new(std::mem::take(part)).into());
        }
        (true, Stale::of(list, None))
    }

    /// Returns how many are left; `None`: it was not among them.
    pub(super) fn remove(&mut self, subscriber: &S) -> Option<(usize, Option<Stale<S>>)> {
        let number = subscriber.number();
        let stale = match self {
            Self::Small(part) => Stale::of(part.remove(number)?, None),
            Self::Many(many) => many.remove(number)?,
        };
        if let Self::Many(many) = self
            && many.len <= SMALL_MAX
            && many.parts.len() == 1
            && let Some((_, part)) = many.parts.pop()
        {
            *self = Self::Small(part);
        }
        Some((self.len(), stale))
    }
}

impl<S: Clone> Subscribers<S> {
    /// Each of them once; more than `short_max`, the same each time, are a long list.
    pub(super) fn listing(&self, short_max: usize) -> Listing<S> {
        match self {
            Self::Small(part) => Listing::Short(Arc::clone(part.list())),
            Self::Many(many) => many.listing.get_or_init(|| many.make_listing(short_max)).clone(),
        }
    }
}

impl<S: Clone> Many<S> {
    fn make_listing(&self, short_max: usize) -> Listing<S> {
        let parts = self.parts.iter().map(|(from, part)| (*from, part));
        match self.len <= short_max {
            true => Listing::Short(parts.flat_map(|(_, part)| part.members.iter().cloned()).collect()),
            false => Listing::Long(Arc::new(long_list(parts))),
        }
    }
}

fn long_list<'a, S: Clone + 'a>(parts: impl Iterator<Item = (u128, &'a Part<S>)>) -> LongList<S> {
    let mut len = 0;
    let part = |(from, part): (u128, &Part<S>)| {
        let (place, list) = (len, Arc::clone(part.list()));
        len += list.len();
        LongPart { from, place, list }
    };
    let parts = parts.map(part).collect();
    LongList { parts, len }
}

#[cfg(test)]
macro_rules! numbered {
    ($($number:ty),*) => {
        $(impl Numbered for $number {
            fn number(&self) -> u128 {
                *self as u128
            }
        })*
    };
}

#[cfg(test)]
numbered!(i32, u32, u64, usize);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn short(subscribers: &Subscribers<u64>) -> Arc<[u64]> {
        match subscribers.listing(usize::MAX) {
            Listing::Short(list) => list,
            Listing::Long(list) => panic!("it is long: {}", list.len()),
        }
    }

    /// The list has who is there, through all coming and going; and it is made anew only after a change.
    #[test]
    fn the_list_has_who_is_there() {
        let mut subscribers = Subscribers::default();
        assert!(short(&subscribers).is_empty());
        for (number, is_new) in [(1, true), (2, true), (1, false)] {
            let before = short(&subscribers);
            let (inserted, stale) = subscribers.insert(number);
            assert_eq!((inserted, stale.is_some()), (is_new, is_new));
            assert_eq!(Arc::ptr_eq(&before, &short(&subscribers)), !is_new, "{number}");
        }
        assert_eq!(*short(&subscribers), [1, 2]);
        assert!(subscribers.remove(&3).is_none());
        let (left, stale) = subscribers.remove(&1).expect("it was there");
        assert_eq!((left, stale.is_some()), (1, true));
        assert_eq!(*short(&subscribers), [2]);
    }

    /// A change of a long list leaves its other parts as they are.
    #[test]
    fn a_change_makes_one_part_anew() {
        let mut subscribers = Subscribers::default();
        (0..10_000).for_each(|number| _ = subscribers.insert(number * 3));
        let long = |subscribers: &Subscribers<u64>| match subscribers.listing(100) {
            Listing::Long(list) => list,
            Listing::Short(list) => panic!("it is short: {}", list.len()),
        };
        let before = long(&subscribers);
        assert!(Arc::ptr_eq(&before, &long(&subscribers)), "nothing has changed");
        assert!(subscribers.insert(301).0);
        let after = long(&subscribers);
        assert_eq!((before.len(), after.len()), (10_000, 10_001));
        let is_kept = |part: &LongPart<u64>| before.parts.iter().any(|other| Arc::ptr_eq(&part.list, &other.list));
        let made = after.parts.iter().filter(|part| !is_kept(part)).count();
        assert!((1..=2).contains(&made) && 20 < after.parts.len(), "{made} of {}", after.parts.len());
    }

    /// Who come one after another, as sessions do, fill all parts but two: the first list was halved when it became long.
    #[test]
    fn who_come_one_after_another_fill_their_parts() {
        let mut subscribers = Subscribers::default();
        (0..10_000_u64).for_each(|number| _ = subscribers.insert(number));
        let Subscribers::Many(many) = &subscribers else { panic!("they are many") };
        let full = many.parts.iter().filter(|(_, part)| part.members.len() == PART_MAX).count();
        assert_eq!((full, many.parts.len()), (10_000 / PART_MAX, 10_000 / PART_MAX + 2));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// However many come and go: all that are there are listed, once and in order, and each is found at its place.
        #[test]
        fn all_are_found_at_their_places(
            steps in prop::collection::vec((any::<bool>(), 0_u64..3000, 1_u64..700), 1..60),
        ) {
            let (mut subscribers, mut model) = (Subscribers::default(), BTreeSet::new());
            for (comes, from, count) in steps {
                for number in from..from + count {
                    match comes {
                        true => prop_assert_eq!(subscribers.insert(number).0, model.insert(number)),
                        false => {
                            let left = subscribers.remove(&number).map(|(left, _)| left);
                            prop_assert_eq!(left, model.remove(&number).then_some(model.len()));
                        }
                    }
                }
                check(&subscribers, &model)?;
            }
        }
    }

    fn check(subscribers: &Subscribers<u64>, model: &BTreeSet<u64>) -> Result<(), TestCaseError> {
        let all: Vec<u64> = model.iter().copied().collect();
        prop_assert_eq!(subscribers.len(), all.len());
        let listing = subscribers.listing(100);
        prop_assert_eq!(listing.iter().copied().collect::<Vec<_>>(), all.clone());
        prop_assert!((0..3700).all(|number| subscribers.contains(number.into()) == model.contains(&number)));
        if let Subscribers::Many(many) = subscribers {
            prop_assert!(many.parts.iter().all(|(_, part)| (1..=PART_MAX).contains(&part.members.len())));
        }

        let Listing::Long(long) = listing else { return Ok(()) };
        prop_assert_eq!(long.len(), all.len());
        for number in 0..3700 {
            let place = all.binary_search(&number).ok();
            prop_assert_eq!(long.place_of(number.into()), place, "{}", number);
        }
        let mut walked = Vec::new();
        while walked.len() < long.len() {
            let next = long.at(walked.len(), 100);
            prop_assert!((1..=100).contains(&next.len()));
            walked.extend_from_slice(next);
        }
        prop_assert_eq!(walked, all);
        prop_assert!(long.at(long.len(), 1).is_empty());
        Ok(())
    }
}
