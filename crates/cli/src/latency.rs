//! Latencies: a histogram, and the quantiles that are printed.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::term;

/// Longest time that is told apart; longer ones count as this.
const NANOS_MAX: u64 = 600_000_000_000;

/// Times, kept to three digits.
#[derive(Clone, Debug)]
pub(crate) struct Latency {
    nanos: Histogram<u64>,
}

impl Latency {
    pub(crate) fn new() -> Self {
        let mut nanos = Histogram::new_with_bounds(1, 1_000_000, 3).expect("the bounds are in order");
        nanos.auto(true);
        Self { nanos }
    }

    pub(crate) fn record(&mut self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).clamp(1, NANOS_MAX);
        self.nanos.record(nanos).expect("the histogram grows with what it is given");
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.nanos.add(&other.nanos).expect("the histogram grows with what it is given");
    }

    pub(crate) fn quantiles(&self) -> Quantiles {
        // A tenth of a microsecond is finer than any clock here tells.
        let micros = |nanos: u64| (nanos as f64 / 100.0).round() / 10.0;
        let at = |quantile| micros(self.nanos.value_at_quantile(quantile));
        Quantiles {
            count: self.nanos.len(),
            mean_us: if self.nanos.is_empty() { 0.0 } else { micros(self.nanos.mean() as u64) },
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: micros(self.nanos.max()),
        }
    }
}

/// The times that half, 90 %, 99 % and 99.9 % did not exceed, and the longest; in microseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Quantiles {
    pub(crate) count: u64,
    pub(crate) mean_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p90_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) max_us: f64,
}

impl std::fmt::Display for Quantiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.count == 0 {
            return f.write_str("latency  nothing was answered");
        }
        let time = |micros: f64| term::time(Duration::from_nanos((micros * 1e3) as u64));
        write!(
            f,
            "latency  p50 {}   p90 {}   p99 {}   p99.9 {}   max {}",
            time(self.p50_us),
            time(self.p90_us),
            time(self.p99_us),
            time(self.p999_us),
            time(self.max_us)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_what_was_recorded() {
        let (mut latency, mut rest) = (Latency::new(), Latency::new());
        (1..=500).for_each(|millis| latency.record(Duration::from_millis(millis)));
        (501..=1000).for_each(|millis| rest.record(Duration::from_millis(millis)));
        latency.add(&rest);
        let quantiles = latency.quantiles();
        assert_eq!(quantiles.count, 1000);
        for (found, millis) in [
            (quantiles.p50_us, 500.0),
            (quantiles.p90_us, 900.0),
            (quantiles.p99_us, 990.0),
            (quantiles.max_us, 1000.0),
        ] {
            assert!((found / 1e3 - millis).abs() <= millis / 500.0, "{found} is not about {millis} ms");
        }
    }

    #[test]
    fn nothing_recorded_is_all_zeros() {
        let quantiles = Latency::new().quantiles();
        assert_eq!((quantiles.count, quantiles.mean_us, quantiles.max_us), (0, 0.0, 0.0));
    }
}
