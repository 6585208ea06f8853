//! Tables of connections by their numbers.
//!
//! What happens to many connections happens to them in the order in which they were made, mostly: a message is published
//! to them, and their acknowledgements come. In a usual table the next one is anywhere in memory, and is waited for. Here
//! [`RUN`] that follow one another lie beside each other.
//!
//! The numbers are the server's own, and count up. Clients may choose which of them stay, but not to where their
//! runs are scattered, so that of one run at most [`RUN`] look for the same place.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use super::ConnectionId;

/// Numbers that lie beside each other: a KiB, at 16 bytes for each.
const RUN: u64 = 64;

/// An odd number without a pattern in its bits.
const SCATTER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Bits by which a table tells keys apart before it compares them.
const TAG: u64 = 0x7f << 57;

/// By the number of a connection.
pub(crate) type ByConnection<T> = HashMap<ConnectionId, T, InOrder>;

/// How a number finds its place.
pub(crate) type InOrder = BuildHasherDefault<Placing>;

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Placing(u64);

impl Hasher for Placing {
    fn finish(&self) -> u64 {
        let Self(number) = *self;
        let run = (number / RUN).wrapping_mul(SCATTER);
        let place = (run ^ (run >> 32)).wrapping_mul(RUN) | (number % RUN);
        // Of those beside each other all would have one tag, if that were the run's.
        (place & !TAG) | (number.wrapping_mul(SCATTER) & TAG)
    }

    fn write(&mut self, bytes: &[u8]) {
        // Of a key that is no number.
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = self.0.wrapping_mul(SCATTER).wrapping_add(number);
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, hash::BuildHasher};

    use super::*;

    fn place(number: u64) -> u64 {
        InOrder::default().hash_one(ConnectionId::new(number))
    }

    /// Those of a run have places beside each other in a table of any size, and other tags each.
    #[test]
    fn a_run_lies_together() {
        for first in [0, RUN, 1_000 * RUN, 1 << 40] {
            let places: Vec<u64> = (first..first + RUN).map(place).collect();
            assert!(places.windows(2).all(|two| two[0] % (1 << 30) + 1 == two[1] % (1 << 30)), "from {first}");
            let tags: HashSet<u64> = places.iter().map(|place| place >> 57).collect();
            assert!(RUN as usize / 2 < tags.len(), "{} tags from {first}", tags.len());
        }
    }

    /// A client that keeps connections of its choice does not get all of them into one place: of 4,096 in a table of 8,192
    /// no 16 places beside each other are looked for by more than 64.
    #[test]
    fn chosen_numbers_do_not_meet() {
        for stride in [1, 2, 64, 1_024, 4_096, 65_536, 1 << 20] {
            let mut groups = vec![0; 8_192 / 16];
            (0..4_096).for_each(|number| groups[place(number * stride) as usize % 8_192 / 16] += 1);
            assert!(groups.iter().all(|count| *count <= RUN), "{:?} in steps of {stride}", groups.iter().max());
        }
    }

    /// What is no number has places, too.
    #[test]
    fn other_keys_have_places() {
        let place = |key: &str| InOrder::default().hash_one(key);
        assert_ne!(place("a"), place("b"));
        assert_ne!(place("ab"), place("ba"));
    }
}
