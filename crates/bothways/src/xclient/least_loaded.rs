//! The less loaded of two servers chosen at random.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    outcome::{Outcome, OutcomeKind},
    select::{Selection, Selector},
};
use crate::{clock::later, discovery::ServerEntry};

/// A server that failed is chosen for so long only if the other one failed too. It would look idle otherwise.
const FAILING_FOR: Duration = Duration::from_secs(1);
/// A latency that is older is forgotten, so that a server which was slow once is tried again.
const LATENCY_KEPT: Duration = Duration::from_secs(10);
/// One outcome moves the average by a quarter of the difference.
const LATENCY_WEIGHT: f64 = 0.25;
/// Errors of one server that count as calls in flight at once. Of more the oldest do not.
const ERRORS_MAX: usize = 256;

/// See [`SelectMode::LeastLoaded`](super::SelectMode::LeastLoaded).
#[derive(Default)]
pub(super) struct LeastLoaded {
    /// By address: those in the list, and those that left it with calls in flight.
    loads: Mutex<HashMap<Box<str>, Load>>,
}

#[derive(Default)]
struct Load {
    is_listed: bool,
    in_flight: usize,
    /// Errors that came sooner than the answers of others do: until when each counts as a call in flight. A server that
    /// fails at once would look idle otherwise, and draw all calls to itself.
    quick_errors: VecDeque<Instant>,
    latency: Option<(Duration, Instant)>,
    failed: Option<Instant>,
}

/// Less is better: not failing, then fewer calls in flight, then a shorter latency.
type Rank = (bool, usize, Duration);

impl Load {
    fn rank(&self, now: Instant) -> Rank {
        let is_failing = self.failed.is_some_and(|failed| now.saturating_duration_since(failed) < FAILING_FOR);
        let quick_errors = self.quick_errors.iter().filter(|until| now < **until).count();
        let in_flight = self.in_flight + quick_errors;
        (is_failing, in_flight, self.latency(now).unwrap_or_default())
    }

    /// The average, if it is not too old.
    fn latency(&self, now: Instant) -> Option<Duration> {
        let (average, measured) = self.latency?;
        (now.saturating_duration_since(measured) < LATENCY_KEPT).then_some(average)
    }

    /// `usual`: how long an answer of it takes, as far as that is known.
    fn note(&mut self, outcome: &Outcome, usual: Option<Duration>, now: Instant) {
        match outcome.kind {
            OutcomeKind::Ok | OutcomeKind::TimedOut => {
                self.failed = None;
                self.note_latency(outcome.latency, now);
            }
            OutcomeKind::Error => {
                self.failed = None;
                if let Some(usual) = usual {
                    self.note_error(outcome.latency, usual, now);
                }
            }
            // It would have taken longer still.
            OutcomeKind::Cancelled if self.latency.is_none_or(|(average, _)| average < outcome.latency) => {
                self.note_latency(outcome.latency, now);
            }
            OutcomeKind::Failed | OutcomeKind::Refused | OutcomeKind::NotSent | OutcomeKind::Lost => {
                self.failed = Some(now);
            }
            OutcomeKind::Cancelled | OutcomeKind::Queued | OutcomeKind::Invalid => {}
        }
    }

    /// An error that came sooner than answers do says nothing of how quick the server is.
    fn note_error(&mut self, latency: Duration, usual: Duration, now: Instant) {
        self.note_latency(latency.max(usual), now);
        if usual <= latency {
            return;
        }
        self.quick_errors.retain(|until| now < *until);
        if self.quick_errors.len() == ERRORS_MAX {
            self.quick_errors.pop_front();
        }
        self.quick_errors.push_back(later(now, usual - latency));
    }

    fn note_latency(&mut self, latency: Duration, now: Instant) {
        let average = match self.latency(now) {
            Some(average) => average.mul_f64(1.0 - LATENCY_WEIGHT) + latency.mul_f64(LATENCY_WEIGHT),
            None => latency,
        };
        self.latency = Some((average, now));
    }
}

impl Selector for LeastLoaded {
    fn select(&self, selection: &Selection<'_>) -> Option<usize> {
        let (one, other) = two_of(selection)?;
        if one == other {
            return Some(one);
        }
        let (loads, now) = (self.loads.lock(), Instant::now());
        let rank = |server: usize| loads.get(selection.servers()[server].address()).map(|load| load.rank(now));
        Some(if rank(other) < rank(one) { other } else { one })
    }

    fn update(&self, servers: &[ServerEntry]) {
        let mut loads = self.loads.lock();
        loads.values_mut().for_each(|load| load.is_listed = false);
        for server in servers {
            loads.entry(server.address().into()).or_default().is_listed = true;
        }
        loads.retain(|_, load| load.is_listed || 0 < load.in_flight);
    }

    fn begun(&self, server: &ServerEntry) {
        let mut loads = self.loads.lock();
        match loads.get_mut(server.address()) {
            Some(load) => load.in_flight += 1,
            // It was chosen just before it left the list.
            None => {
                loads.insert(server.address().into(), Load { in_flight: 1, ..Load::default() });
            }
        }
    }

    fn ended(&self, server: &ServerEntry, outcome: &Outcome) {
        let (mut loads, now) = (self.loads.lock(), Instant::now());
        let usual = if outcome.kind == OutcomeKind::Error { usual(&loads, server, now) } else { None };
        let Some(load) = loads.get_mut(server.address()) else { return };
        load.in_flight = load.in_flight.saturating_sub(1);
        load.note(outcome, usual, now);
        if !load.is_listed && load.in_flight == 0 {
            loads.remove(server.address());
        }
    }
}

/// How long an answer of this server takes: as long as the longest average of the others, if it has none.
fn usual(loads: &HashMap<Box<str>, Load>, server: &ServerEntry, now: Instant) -> Option<Duration> {
    let own = loads.get(server.address()).and_then(|load| load.latency(now));
    let longest = || loads.values().filter_map(|load| load.latency(now)).max();
    own.or_else(longest)
}

/// Two different candidates at random; the same one twice if there is no other.
fn two_of(selection: &Selection<'_>) -> Option<(usize, usize)> {
    let count = selection.candidates().count();
    let nth = |n| selection.candidates().nth(n);
    match count {
        0 => None,
        1 => nth(0).map(|server| (server, server)),
        _ => {
            let one = rand::random_range(0..count);
            let other = (one + rand::random_range(1..count)) % count;
            nth(one).zip(nth(other))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries(servers: impl IntoIterator<Item = usize>) -> Vec<ServerEntry> {
        servers.into_iter().map(|n| ServerEntry::new(format!("memu@{n}"))).collect()
    }

    fn selection(servers: &[ServerEntry]) -> Selection<'_> {
        Selection::new("Arith", "Mul", b"", servers)
    }

    fn ended(selector: &LeastLoaded, server: &ServerEntry, millis: u64, kind: OutcomeKind) {
        selector.begun(server);
        selector.ended(server, &Outcome::new(Duration::from_millis(millis), kind));
    }

    /// Of two servers the one is chosen that does not fail, then the one with fewer calls, then the quicker one.
    #[tokio::test(start_paused = true)]
    async fn failures_count_before_calls_in_flight_and_these_before_latency() {
        let (selector, list) = (LeastLoaded::default(), entries(0..2));
        selector.update(&list);
        let chosen = || selector.select(&selection(&list));
        ended(&selector, &list[0], 5, OutcomeKind::Ok);
        ended(&selector, &list[1], 9, OutcomeKind::Error);
        assert_eq!(chosen(), Some(0), "it is quicker");
        selector.begun(&list[0]);
        assert_eq!(chosen(), Some(1), "it has fewer calls in flight");
        for kind in [OutcomeKind::Failed, OutcomeKind::Refused, OutcomeKind::NotSent, OutcomeKind::Lost] {
            ended(&selector, &list[1], 0, kind);
            assert_eq!(chosen(), Some(0), "the other fails: {kind:?}");
            tokio::time::advance(FAILING_FOR).await;
            assert_eq!(chosen(), Some(1), "it may be back: {kind:?}");
        }
    }

    /// A server that answers errors at once is as loaded as one that takes as long as others for its answers, and no
    /// quicker than it was before.
    #[tokio::test(start_paused = true)]
    async fn errors_that_come_at_once_draw_no_calls() {
        let (selector, list) = (LeastLoaded::default(), entries(0..2));
        selector.update(&list);
        let chosen = || selector.select(&selection(&list));
        ended(&selector, &list[0], 10, OutcomeKind::Ok);
        for _ in 0..ERRORS_MAX + 10 {
            ended(&selector, &list[1], 0, OutcomeKind::Error);
        }
        (0..ERRORS_MAX - 1).for_each(|_| selector.begun(&list[0]));
        assert_eq!(chosen(), Some(0), "as many are bounded, and count");
        selector.begun(&list[0]);
        selector.begun(&list[0]);
        assert_eq!(chosen(), Some(1), "it has fewer");
        assert_eq!(selector.loads.lock()[list[1].address()].quick_errors.len(), ERRORS_MAX);

        tokio::time::advance(Duration::from_millis(10)).await;
        ended(&selector, &list[1], 0, OutcomeKind::Error);
        let loads = selector.loads.lock();
        let load = &loads[list[1].address()];
        assert_eq!((load.quick_errors.len(), load.latency), (1, Some((Duration::from_millis(10), Instant::now()))));
    }

    /// A server that was slow once is measured again.
    #[tokio::test(start_paused = true)]
    async fn an_old_latency_is_forgotten() {
        let (selector, list) = (LeastLoaded::default(), entries(0..2));
        selector.update(&list);
        ended(&selector, &list[0], 5000, OutcomeKind::TimedOut);
        tokio::time::advance(LATENCY_KEPT).await;
        ended(&selector, &list[1], 1, OutcomeKind::Ok);
        assert_eq!(selector.select(&selection(&list)), Some(0));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Update(Vec<usize>),
        Begin(usize),
        End(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            prop::collection::vec(0_usize..5, 0..5).prop_map(Step::Update),
            (0_usize..5).prop_map(Step::Begin),
            (0_usize..20).prop_map(Step::End),
        ]
    }

    proptest! {
        /// Whatever lists and calls follow one another: what is counted is what is in flight, and nothing is kept of
        /// a server that left with its last call.
        #[test]
        fn what_is_counted_is_in_flight(steps in prop::collection::vec(step(), 1..60)) {
            let selector = LeastLoaded::default();
            let (mut listed, mut flying) = (Vec::new(), Vec::new());
            let all = entries(0..5);
            for step in steps {
                match step {
                    Step::Update(list) => {
                        selector.update(&entries(list.iter().copied()));
                        listed = list;
                    }
                    Step::Begin(server) => {
                        selector.begun(&all[server]);
                        flying.push(server);
                    }
                    Step::End(which) if !flying.is_empty() => {
                        let server = flying.remove(which % flying.len());
                        selector.ended(&all[server], &Outcome::new(Duration::ZERO, OutcomeKind::Ok));
                    }
                    Step::End(_) => {}
                }
                for (server, entry) in all.iter().enumerate() {
                    let counted = selector.loads.lock().get(entry.address()).map(|load| load.in_flight);
                    let in_flight = flying.iter().filter(|of| **of == server).count();
                    let is_known = listed.contains(&server) || 0 < in_flight;
                    prop_assert_eq!(counted, is_known.then_some(in_flight));
                }
            }
        }
    }
}
