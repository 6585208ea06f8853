//! A list that nearly always has one item, such as the topics of a session. It takes no
//! memory of its own until it has two: of a million clients most have one.

use std::ops::{Deref, DerefMut};

/// See the module.
#[derive(Clone, Debug)]
pub(super) enum OneOrMany<T> {
    One(T),
    /// None or several.
    #[expect(clippy::box_collection, reason = "the place of a vector is three times that of an item, and for nothing")]
    Other(Option<Box<Vec<T>>>),
}

impl<T> Default for OneOrMany<T> {
    fn default() -> Self {
        Self::Other(None)
    }
}

impl<T> OneOrMany<T> {
    /// Puts an item before the one at this place, or after all.
    pub(super) fn insert(&mut self, at: usize, item: T) {
        *self = match std::mem::take(self) {
            Self::Other(None) => Self::One(item),
            Self::Other(Some(mut several)) => {
                several.insert(at, item);
                Self::Other(Some(several))
            }
            Self::One(first) => {
                let mut two = vec![first];
                two.insert(at, item);
                Self::Other(Some(two.into()))
            }
        };
    }

    /// Takes out the item at this place.
    pub(super) fn remove(&mut self, at: usize) -> T {
        match std::mem::take(self) {
            Self::Other(Some(mut several)) => {
                let item = several.remove(at);
                *self = match several.len() {
                    1 => Self::One(several.remove(0)),
                    _ => Self::Other(Some(several)),
                };
                item
            }
            Self::One(item) if at == 0 => item,
            _ => panic!("there is no item {at}"),
        }
    }
}

impl<T> Deref for OneOrMany<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::One(item) => std::slice::from_ref(item),
            Self::Other(several) => several.as_ref().map_or(&[], |several| several),
        }
    }
}

impl<T> DerefMut for OneOrMany<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Self::One(item) => std::slice::from_mut(item),
            Self::Other(several) => several.as_mut().map_or(&mut [], |several| several),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// It has what a vector has, and none or one takes no memory of its own.
        #[test]
        fn it_is_a_list(steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 0..30)) {
            let (mut few, mut list) = (OneOrMany::default(), Vec::new());
            for (number, (comes, at)) in steps.into_iter().enumerate() {
                if comes {
                    let at = at.index(list.len() + 1);
                    few.insert(at, number);
                    list.insert(at, number);
                } else if !list.is_empty() {
                    let at = at.index(list.len());
                    prop_assert_eq!(few.remove(at), list.remove(at));
                }
                prop_assert_eq!(&*few, list.as_slice());
                prop_assert_eq!(matches!(few, OneOrMany::One(_) | OneOrMany::Other(None)), list.len() < 2);
            }
        }
    }
}
