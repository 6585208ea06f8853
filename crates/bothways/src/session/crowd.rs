//! The sessions of one user, in the order in which they came: nearly always one, and of a name such as `guest` very
//! many, who come and go one by one.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
};

/// See the module. `S` names a session.
#[derive(Default)]
pub(super) enum Crowd<S> {
    #[default]
    None,
    One(S),
    Many(Box<Many<S>>),
}

pub(super) struct Many<S> {
    /// By when they came.
    in_order: BTreeMap<u64, S>,
    places: HashMap<S, u64>,
    next: u64,
}

impl<S: Clone + Eq + Hash> Many<S> {
    fn add(&mut self, session: S) {
        self.in_order.insert(self.next, session.clone());
        self.places.insert(session, self.next);
        self.next += 1;
    }
}

impl<S: Clone + Eq + Hash> Crowd<S> {
    pub(super) fn contains(&self, session: &S) -> bool {
        match self {
            Self::None => false,
            Self::One(only) => only == session,
            Self::Many(many) => many.places.contains_key(session),
        }
    }

    /// Adds a session that is not among them.
    pub(super) fn add(&mut self, session: S) {
        *self = match std::mem::take(self) {
            Self::None => Self::One(session),
            Self::One(first) => {
                let mut many = Box::new(Many { in_order: BTreeMap::new(), places: HashMap::new(), next: 0 });
                many.add(first);
                many.add(session);
                Self::Many(many)
            }
            Self::Many(mut many) => {
                many.add(session);
                Self::Many(many)
            }
        };
    }

    pub(super) fn remove(&mut self, session: &S) {
        match self {
            Self::One(only) if only == session => *self = Self::None,
            Self::Many(many) => {
                if let Some(place) = many.places.remove(session) {
                    many.in_order.remove(&place);
                }
                if many.in_order.len() == 1 {
                    *self = many.in_order.pop_first().map_or(Self::None, |(_, last)| Self::One(last));
                }
            }
            Self::None | Self::One(_) => {}
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::None)
    }

    /// In the order in which they came.
    pub(super) fn iter(&self) -> impl Iterator<Item = &S> {
        let (one, many) = match self {
            Self::None => (None, None),
            Self::One(only) => (Some(only), None),
            Self::Many(many) => (None, Some(many.in_order.values())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A session that counts how often it is compared.
    #[derive(Clone, Copy, Debug, Eq)]
    struct Compared(u32);

    thread_local! {
        static COMPARISONS: Cell<usize> = const { Cell::new(0) };
    }

    impl PartialEq for Compared {
        fn eq(&self, other: &Self) -> bool {
            COMPARISONS.set(COMPARISONS.get() + 1);
            self.0 == other.0
        }
    }

    impl Hash for Compared {
        fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
            self.0.hash(state);
        }
    }

    /// A name with very many sessions: each comes and goes at the same price, the newest first or the oldest first.
    #[test]
    fn who_leaves_a_crowd_is_not_searched_for() {
        const CROWD: u32 = 8000;
        for newest_first in [true, false] {
            let mut crowd = Crowd::default();
            (0..CROWD).for_each(|number| crowd.add(Compared(number)));
            assert!(crowd.iter().map(|session| session.0).eq(0..CROWD), "in the order in which they came");
            COMPARISONS.set(0);
            for number in 0..CROWD {
                let number = if newest_first { CROWD - 1 - number } else { number };
                assert!(crowd.contains(&Compared(number)));
                crowd.remove(&Compared(number));
            }
            assert!(crowd.is_empty());
            assert!(COMPARISONS.get() < 6 * CROWD as usize, "{} comparisons", COMPARISONS.get());
        }
    }

    /// None, one, and many: each knows who is in it, and nobody else.
    #[test]
    fn a_crowd_knows_who_is_in_it() {
        let mut crowd = Crowd::default();
        assert!(crowd.is_empty() && !crowd.contains(&1));
        for number in 1..=3 {
            crowd.add(number);
            assert!(crowd.contains(&number) && !crowd.contains(&(number + 1)) && !crowd.is_empty());
        }
        crowd.remove(&4);
        crowd.remove(&2);
        assert!(!crowd.contains(&2));
        assert_eq!(crowd.iter().copied().collect::<Vec<_>>(), [1, 3]);
        crowd.remove(&1);
        assert!(matches!(crowd, Crowd::One(3)), "what is left of many is one");
        crowd.remove(&1);
        assert!(crowd.contains(&3), "another one leaves");
        crowd.remove(&3);
        assert!(crowd.is_empty() && !crowd.contains(&3));
    }
}
