//! The id of a session.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

/// The public number of a session; no secret. One that began later in the same process has a larger number: the first
/// half is when it began, in microseconds since 1970, and the second is random.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SessionId(pub(super) u128);

impl SessionId {
    /// None has it: all others are behind it.
    #[cfg(feature = "cluster")]
    pub(crate) const FIRST: Self = Self(0);

    /// That of a session that begins now.
    ///
    /// Who began one after another lie beside each other in memory, mostly. So a list that is sorted by number is walked
    /// in the order in which the processor fetches memory ahead, which a random number would give up.
    pub(crate) fn next() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_micros() as u64);
        // A clock that is set back stands still here until it is as far again.
        let after = |last: u64| now.max(last.saturating_add(1));
        let last = LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(after(last)));
        let began = after(last.unwrap_or_else(|last| last));
        Self((u128::from(began) << 64) | u128::from(rand::random::<u64>()))
    }
}

impl std::fmt::Display for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl std::fmt::Debug for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for SessionId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(text, 16).map(Self)
    }
}

impl serde::Serialize for SessionId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for SessionId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However many begin within a microsecond, and on how many threads, each is larger than those before it.
    #[test]
    fn later_ones_are_larger() {
        let of_thread = || {
            let ids: Vec<SessionId> = std::iter::repeat_with(SessionId::next).take(10_000).collect();
            assert!(ids.is_sorted_by(|before, after| before < after), "in the order in which they began");
            ids
        };
        let threads: Vec<_> = (0..2).map(|_| std::thread::spawn(of_thread)).collect();
        let mut all: Vec<_> = threads.into_iter().flat_map(|it| it.join().expect("no panic")).collect();
        all.sort_unstable();
        assert!(all.windows(2).all(|two| two[0].0 >> 64 < two[1].0 >> 64), "none began at the same time");
    }
}
