//! A token bucket: so many a second, and so many at once.
//!
//! Without a clock: the time is an argument. Numbers are exact, so that at the time that it named, a bucket has the
//! tokens that it promised.

use std::time::Duration;

/// Nanoseconds of a second: a token is so many parts, of which each nanosecond brings `per_second`.
const PARTS: u128 = 1_000_000_000;

/// So many a second on average, and so many at once after a quiet time.
///
/// ```
/// use bothways_proto::Rate;
///
/// let rate = Rate::per_second(100).burst(500);
/// assert_eq!(rate.to_string(), "100 a second, 500 at once");
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub struct Rate {
    per_second: u32,
    burst: u32,
}

impl Rate {
    /// So many a second, and as many at once. 0 counts as 1: what never lets anything through is no rate.
    pub const fn per_second(count: u32) -> Self {
        let count = if count == 0 { 1 } else { count };
        Self { per_second: count, burst: count }
    }

    /// So many at once; 0 counts as 1.
    pub const fn burst(self, count: u32) -> Self {
        Self { burst: if count == 0 { 1 } else { count }, ..self }
    }

    /// How many a second.
    pub const fn per_second_max(&self) -> u32 {
        self.per_second
    }

    /// Most at once.
    pub const fn burst_max(&self) -> u32 {
        self.burst
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} a second, {} at once", self.per_second, self.burst)
    }
}

/// Lets through what a [`Rate`] allows. Times are durations since any fixed moment; one that lies before an earlier
/// one counts as that one.
///
/// ```text
///   per_second ──► ( tokens, `burst` at most ) ──► take: there are enough, or how long until there are
///                                              └─► charge: what has happened already; may leave a debt
/// ```
#[derive(Clone, Debug)]
pub struct TokenBucket {
    rate: Rate,
    /// Parts of tokens that are missing to a full bucket; more than `burst` of them are a debt.
    missing: u128,
    /// When `missing` was right.
    at: Duration,
}

impl TokenBucket {
    /// A full bucket.
    pub const fn new(rate: Rate) -> Self {
        Self { rate, missing: 0, at: Duration::ZERO }
    }

    /// Takes so many tokens, or none. More than the bucket ever holds are taken when it is full, and leave a debt.
    ///
    /// # Errors
    /// How long until there will be enough, if nobody else takes any.
    pub fn take(&mut self, now: Duration, count: u32) -> Result<(), Duration> {
        self.refill(now);
        let wanted = u128::from(count.min(self.rate.burst)) * PARTS;
        let allowed = self.capacity() - wanted;
        if allowed < self.missing {
            return Err(self.time_for(self.missing - allowed));
        }
        self.missing += u128::from(count) * PARTS;
        Ok(())
    }

    /// Takes so many tokens, whether they are there or not. Returns how long until the debt is paid; zero if there
    /// is none.
    pub fn charge(&mut self, now: Duration, count: u32) -> Duration {
        self.refill(now);
        self.missing += u128::from(count) * PARTS;
        self.time_for(self.missing.saturating_sub(self.capacity()))
    }

    /// Puts so many tokens back; of more than the bucket holds the rest is lost. Returns whether it is full.
    pub fn put_back(&mut self, count: u32) -> bool {
        self.missing = self.missing.saturating_sub(u128::from(count) * PARTS);
        self.missing == 0
    }

    fn capacity(&self) -> u128 {
        u128::from(self.rate.burst) * PARTS
    }

    fn refill(&mut self, now: Duration) {
        let elapsed = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        self.missing = self.missing.saturating_sub(elapsed.as_nanos() * u128::from(self.rate.per_second));
    }

    /// How long until so many parts have come.
    fn time_for(&self, parts: u128) -> Duration {
        let nanos = parts.div_ceil(u128::from(self.rate.per_second));
        let seconds = u64::try_from(nanos / PARTS).unwrap_or(u64::MAX);
        Duration::new(seconds, (nanos % PARTS) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_burst_goes_at_once_and_the_rest_at_the_rate() {
        let mut bucket = TokenBucket::new(Rate::per_second(10).burst(3));
        for _ in 0..3 {
            assert_eq!(bucket.take(ms(500), 1), Ok(()));
        }
        assert_eq!(bucket.take(ms(500), 1), Err(ms(100)));
        assert_eq!(bucket.take(ms(599), 1), Err(ms(1)));
        assert_eq!(bucket.take(ms(600), 1), Ok(()));
        assert_eq!(bucket.take(ms(60_000), 4), Ok(()), "more than it holds, when it is full");
        assert_eq!(bucket.take(ms(60_000), 1), Err(ms(200)), "and a debt");
    }

    #[test]
    fn what_is_put_back_is_there_again() {
        let mut bucket = TokenBucket::new(Rate::per_second(10).burst(3));
        assert_eq!(bucket.take(ms(0), 3), Ok(()));
        assert!(!bucket.put_back(2));
        assert_eq!(bucket.take(ms(0), 2), Ok(()));
        assert_eq!(bucket.take(ms(0), 1), Err(ms(100)));
        assert!(bucket.put_back(100), "it is full, and no more than that");
        assert_eq!([bucket.take(ms(0), 3), bucket.take(ms(0), 1)], [Ok(()), Err(ms(100))]);
    }

    #[test]
    fn what_has_happened_already_leaves_a_debt() {
        let mut bucket = TokenBucket::new(Rate::per_second(1000));
        assert_eq!(bucket.charge(ms(0), 1000), ms(0));
        assert_eq!(bucket.charge(ms(0), 250), ms(250));
        assert_eq!(bucket.charge(ms(250), 0), ms(0));
        assert_eq!(bucket.take(ms(250), 1), Err(ms(1)));
    }

    #[test]
    fn nothing_a_second_is_one_and_the_end_of_time_is_no_trap() {
        let mut bucket = TokenBucket::new(Rate::per_second(0).burst(0));
        assert_eq!(bucket.take(Duration::MAX, 1), Ok(()));
        assert_eq!(bucket.take(Duration::ZERO, 1), Err(Duration::from_secs(1)), "time does not go back");
        let mut bucket = TokenBucket::new(Rate::per_second(u32::MAX));
        assert_eq!(bucket.take(Duration::ZERO, u32::MAX), Ok(()));
        assert_eq!(bucket.take(Duration::MAX, u32::MAX), Ok(()));
    }
}
