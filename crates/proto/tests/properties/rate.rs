//! The bucket against its definition: whatever stretch of time ends now, no more than its share was let through.

use std::time::Duration;

use bothways_proto::{Rate, TokenBucket};
use proptest::{collection::vec, prelude::*};

/// What was let through: when, and how much.
type Past = [(Duration, u32)];

/// Tokens that are missing to a full bucket, in billionths: of all stretches that end now, the one that took most
/// beyond what the rate brought meanwhile.
fn missing(past: &Past, per_second: u32, now: Duration) -> i128 {
    let stretch = |from: usize| {
        let taken: i128 = past[from..].iter().map(|(_, count)| i128::from(*count) * 1_000_000_000).sum();
        taken - (now - past[from].0).as_nanos() as i128 * i128::from(per_second)
    };
    (0..past.len()).map(stretch).max().unwrap_or(0).max(0)
}

proptest! {
    /// Exactly what the definition allows is let through; a refusal names the first moment at which it would not be
    /// one; and a charge names the moment at which its debt is paid.
    #[test]
    fn a_bucket_lets_through_what_its_rate_allows(
        per_second in 1..2000_u32,
        burst in 1..50_u32,
        asks in vec((0..40_000_000_u64, 0..60_u32, prop::bool::weighted(0.8)), 0..60),
    ) {
        let mut bucket = TokenBucket::new(Rate::per_second(per_second).burst(burst));
        let (mut now, mut past) = (Duration::from_secs(7), Vec::new());
        for (pause, count, may_refuse) in asks {
            now += Duration::from_nanos(pause);
            let room = i128::from(burst - count.min(burst)) * 1_000_000_000;
            if !may_refuse {
                let debt_free = now + bucket.charge(now, count);
                past.push((now, count));
                let full = i128::from(burst) * 1_000_000_000;
                prop_assert!(missing(&past, per_second, debt_free) <= full);
                prop_assert!(debt_free == now || full < missing(&past, per_second, debt_free - Duration::from_nanos(1)));
                continue;
            }
            let allowed = missing(&past, per_second, now) <= room;
            match bucket.clone().take(now, count) {
                Ok(()) => prop_assert!(allowed, "{count} at {now:?}"),
                Err(wait) => {
                    prop_assert!(!allowed, "{count} at {now:?}");
                    prop_assert_eq!(bucket.clone().take(now + wait, count), Ok(()));
                    prop_assert_eq!(bucket.clone().take(now + wait - Duration::from_nanos(1), count), Err(Duration::from_nanos(1)));
                }
            }
            if bucket.take(now, count).is_ok() {
                past.push((now, count));
            }
        }
    }
}
