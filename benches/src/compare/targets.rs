//! The targets, and whether they are met.

use serde::{Deserialize, Serialize};

use super::{kinds::Kind, report::Answered};

/// A bound on a median: of a figure of the first kind, or of its ratio to another kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    metric: &'static str,
    to: Option<Kind>,
    bound: Bound,
}

#[derive(Clone, Copy, Debug)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// A target, and what came of it in a run.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Reached {
    /// In words: what is to be how large.
    pub target: String,
    /// The median. `None` if it was not measured, as where a kind was not there.
    pub median: Option<f64>,
    /// True if it holds.
    pub holds: Option<bool>,
}

/// Whose own figures are compared with a bound: of these, the first one that a question asks.
const OURS: [&str; 3] = [Kind::Ours.name(), Kind::Ws.name(), Kind::Nodes.name()];

impl Target {
    /// Of the first kind itself.
    pub(super) fn figure(metric: &'static str) -> Self {
        Self { metric, to: None, bound: Bound::AtMost(f64::INFINITY) }
    }

    /// Of the first kind's figure to that of another.
    pub(super) fn ratio(to: Kind, metric: &'static str) -> Self {
        Self { to: Some(to), ..Self::figure(metric) }
    }

    pub(super) fn at_least(self, bound: f64) -> Self {
        Self { bound: Bound::AtLeast(bound), ..self }
    }

    pub(super) fn at_most(self, bound: f64) -> Self {
        Self { bound: Bound::AtMost(bound), ..self }
    }

    pub(super) fn reached(&self, answered: &Answered) -> Reached {
        let median = match self.to {
            Some(kind) => answered.ratios.get(kind.name()).and_then(|ratios| ratios.get(self.metric)).copied(),
            None => answered.kinds.iter().find(|of| OURS.contains(&of.kind.as_str())).and_then(|of| {
                let metric = of.metrics.iter().find(|of| of.metric == self.metric)?;
                Some(metric.median)
            }),
        };
        let (sign, bound, holds) = match self.bound {
            Bound::AtLeast(bound) => ("≥", bound, median.map(|median| bound <= median)),
            Bound::AtMost(bound) => ("≤", bound, median.map(|median| median <= bound)),
        };
        let target = match self.to {
            Some(kind) => format!("{} {sign} {bound} times {}'s", self.metric, kind.name()),
            None => format!("{} {sign} {bound}", self.metric),
        };
        Reached { target, median, holds }
    }
}

impl Reached {
    /// Yes, no, or that it was not measured.
    pub fn verdict(&self) -> &'static str {
        match self.holds {
            Some(true) => "holds",
            Some(false) => "DOES NOT HOLD",
            None => "not measured",
        }
    }
}
