//! Lets clients in at a rate: when very many come at once, most are told when to try again.
//!
//! Checked with the first frame of each connection, before its token: a crowd would overload the hook that checks
//! tokens. A client that comes back to a session that waits for it has a place of its own.

use std::time::Duration;

use bothways_proto::{Rate, TokenBucket};
use parking_lot::Mutex;
use tokio::time::Instant;

/// Most that a client is asked to wait.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// How many clients may come at a time. Each client beyond that is told when to try again.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "config", derive(serde::Deserialize), serde(default, deny_unknown_fields))]
#[must_use]
pub struct AdmissionOptions {
    #[cfg_attr(feature = "config", serde(deserialize_with = "crate::config::rate"))]
    new_sessions: Option<Rate>,
    #[cfg_attr(feature = "config", serde(deserialize_with = "crate::config::rate"))]
    resumes: Option<Rate>,
}

impl Default for AdmissionOptions {
    fn default() -> Self {
        Self {
            new_sessions: Some(Rate::per_second(10_000).burst(100_000)),
            resumes: Some(Rate::per_second(50_000).burst(500_000)),
        }
    }
}

impl AdmissionOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many clients may begin a session. A client beyond that is told when to try again, before its token is
    /// checked, and a Bothways client does so. A plain rpcx client is closed at its first frame, which is not run.
    ///
    /// Default 10,000 a second and 100,000 at once: a guard against a flood, far above what comes in quiet times. A
    /// user database that the auth hook asks usually allows less: then choose its rate. `None`: no bound.
    pub fn new_sessions_rate(mut self, rate: impl Into<Option<Rate>>) -> Self {
        self.new_sessions = rate.into();
        self
    }

    /// How many clients may come back to a session that waits for them, in place of [`Self::new_sessions_rate`].
    /// Default 50,000 a second and 500,000 at once. That is more than for new ones, because their state is here
    /// already, and their queues take memory until they come. `None`: no bound.
    pub fn resumes_rate(mut self, rate: impl Into<Option<Rate>>) -> Self {
        self.resumes = rate.into();
        self
    }
}

/// What a client comes for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Arrival {
    /// A new session.
    New,
    /// The session that it had.
    Resume,
}

/// See the module.
pub(super) struct Admission {
    began: Instant,
    new_sessions: Option<Mutex<Gate>>,
    resumes: Option<Mutex<Gate>>,
}

impl Admission {
    pub(super) fn new(options: &AdmissionOptions) -> Self {
        let gate = |rate: Option<Rate>| rate.map(|rate| Mutex::new(Gate::new(rate)));
        Self { began: Instant::now(), new_sessions: gate(options.new_sessions), resumes: gate(options.resumes) }
    }

    /// `Err`: the client is not let in, and may try again after so long.
    pub(super) fn admit(&self, arrival: Arrival) -> Result<(), Duration> {
        let gate = match arrival {
            Arrival::New => &self.new_sessions,
            Arrival::Resume => &self.resumes,
        };
        let Some(gate) = gate else { return Ok(()) };
        gate.lock().admit(self.began.elapsed(), rand::random())
    }
}

/// Lets through what the rate allows, and gives each of the others a later moment of its own, at the same rate.
#[derive(Debug)]
struct Gate {
    bucket: TokenBucket,
    /// Owes a token to each who was sent away and is not due yet.
    line: TokenBucket,
}

impl Gate {
    fn new(rate: Rate) -> Self {
        Self { bucket: TokenBucket::new(rate), line: TokenBucket::new(rate.burst(1)) }
    }

    /// `part`, from 0 to 1, is drawn.
    fn admit(&mut self, now: Duration, part: f64) -> Result<(), Duration> {
        let Err(soonest) = self.bucket.take(now, 1) else { return Ok(()) };
        // A client that comes when the line is longest waits any time: nobody knows who of the line will be back.
        let behind = match self.line.charge(now, 0) {
            behind if behind < RETRY_AFTER_MAX => self.line.charge(now, 1),
            _ => RETRY_AFTER_MAX.mul_f64(part),
        };
        Err((soonest + behind).min(RETRY_AFTER_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn each_of_a_crowd_has_a_moment_of_its_own() {
        let mut gate = Gate::new(Rate::per_second(100).burst(3));
        let outcomes: Vec<_> = (0..6).map(|_| gate.admit(ms(1000), 0.5)).collect();
        assert_eq!(outcomes, [Ok(()), Ok(()), Ok(()), Err(ms(10)), Err(ms(20)), Err(ms(30))]);
        for due in [10, 20, 30] {
            assert_eq!(gate.admit(ms(1000 + due), 0.5), Ok(()), "it came when it was told to");
        }
    }

    #[test]
    fn nobody_waits_for_ever() {
        let mut gate = Gate::new(Rate::per_second(1));
        for _ in 0..1000 {
            let _ = gate.admit(ms(0), 0.5);
        }
        assert_eq!(gate.admit(ms(0), 0.25), Err(ms(16_000)), "any part of the longest, behind the next token");
        assert_eq!(gate.admit(ms(0), 1.0), Err(RETRY_AFTER_MAX));
        // And a line of those who never came back is forgotten.
        assert_eq!(gate.admit(ms(100_000), 0.5), Ok(()));
        assert_eq!(gate.admit(ms(100_000), 0.5), Err(ms(1000)));
    }
}
