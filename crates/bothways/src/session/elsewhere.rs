//! What receipts know of sessions of other nodes: how many targets of a node stand where, and which nodes were not
//! reached.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use parking_lot::Mutex;

use super::receipt::{Outcomes, Stage};

/// One life of a node: a random number that its process draws when it joins. A process that starts again, or whose
/// lease was lost, is another node. Mail to a life that is over finds nobody.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NodeId(pub u64);

impl NodeId {
    /// Of a life that begins now.
    pub fn random() -> Self {
        Self(rand::random())
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for NodeId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

/// A node that a push has not reached, as far as its origin knows. From [`Receipt::unreached`](crate::Receipt::unreached).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Unreached {
    /// Which node.
    pub node: NodeId,
    /// Why.
    pub why: UnreachedWhy,
    /// It may have got the push all the same. While the receipt is [routing](crate::Receipt::routing), the origin goes on
    /// asking.
    pub maybe: bool,
}

/// Why a node was not reached.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum UnreachedWhy {
    /// Nobody answers under its name, or its lease has ended.
    NodeLost,
    /// It did not answer in time.
    TimedOut,
    /// There is no mail between the nodes.
    EngineDown,
    /// Too much waits for it already, or too many pushes of this node are open.
    Full,
    /// The push is larger than the engine takes.
    TooLarge,
    /// It has as many pushes of other nodes to answer for as it takes, or it cannot read this one.
    Refused,
    /// It leaves the cluster, or this node has left it, or this node's own lease has ended.
    Left,
}

impl fmt::Display for UnreachedWhy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NodeLost => "the node is gone",
            Self::TimedOut => "the node did not answer in time",
            Self::EngineDown => "there is no mail between the nodes",
            Self::Full => "too much waits for the node",
            Self::TooLarge => "the push is larger than the engine takes",
            Self::Refused => "the node refused it",
            Self::Left => "the node has left the cluster",
        })
    }
}

/// How many targets of a push are at which stage, by the number of the stage.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub(crate) struct Counts(pub(crate) [u32; STAGES]);

/// As many as there are.
pub(crate) const STAGES: usize = 16;
/// Stages before this number are open.
const OPEN: usize = 3;
/// The number of [`Stage::Unknown`](super::Stage::Unknown).
const UNKNOWN: usize = 15;

impl Counts {
    /// No targets.
    pub(crate) const NONE: Self = Self([0; STAGES]);

    pub(crate) fn is_final(&self) -> bool {
        self.0[..OPEN].iter().all(|count| *count == 0)
    }

    /// What is open ends as unknown.
    pub(crate) fn to_unknown(self) -> Self {
        let mut counts = self.0;
        counts[UNKNOWN] += counts[..OPEN].iter().sum::<u32>();
        counts[..OPEN].fill(0);
        Self(counts)
    }

    /// One target, at this stage.
    pub(crate) fn one(stage: Stage) -> Self {
        Self::of_pairs(&[(stage.index() as u8, 1)])
    }

    /// As they travel: those that are not zero, by number.
    pub(crate) fn pairs(&self) -> Vec<(u8, u32)> {
        let all = self.0.iter().enumerate().map(|(stage, count)| (stage as u8, *count));
        all.filter(|(_, count)| *count != 0).collect()
    }

    /// A stage of a newer version counts as unknown.
    pub(crate) fn of_pairs(pairs: &[(u8, u32)]) -> Self {
        let mut counts = Self::default();
        for (stage, count) in pairs {
            let of_stage = &mut counts.0[usize::from(*stage).min(UNKNOWN)];
            *of_stage = of_stage.saturating_add(*count);
        }
        counts
    }
}

/// What a receipt has of one node.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Share {
    pub(crate) is_routing: bool,
    pub(crate) counts: Counts,
    pub(crate) unreached: Option<(UnreachedWhy, bool)>,
}

/// Told of each change of a receipt: how many there were, and what it says now.
pub(crate) type Watcher = Box<dyn Fn(u64, &Outcomes) + Send + Sync>;

/// What a receipt has of other nodes.
#[derive(Default)]
pub(super) struct Afar {
    pub(super) unreached: Mutex<Vec<Unreached>>,
    pub(super) watcher: OnceLock<Watcher>,
    /// The node that has pushed it, and its number there.
    pub(super) address: OnceLock<(NodeId, u64)>,
    /// Under which name its former node hears of it: it came with its session.
    pub(super) owed: OnceLock<(NodeId, u64)>,
}

impl fmt::Debug for Afar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Afar").field("unreached", &self.unreached).finish_non_exhaustive()
    }
}

/// What a register says of a session beside whose it is.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) user: Option<Arc<str>>,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) hash: [u8; 32],
    /// What it subscribes to.
    pub(crate) patterns: Vec<Arc<str>>,
}

impl Known {
    /// Nothing but its secret.
    pub(crate) fn of(hash: [u8; 32]) -> Self {
        Self { user: None, labels: Vec::new(), hash, patterns: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is open where nobody knows more is unknown, and nothing else changes.
    #[test]
    fn what_is_open_ends_as_unknown() {
        let counts = Counts::of_pairs(&[(0, 2), (2, 3), (3, 5), (15, 1), (40, 1)]);
        assert!(!counts.is_final());
        let ended = counts.to_unknown();
        assert!(ended.is_final());
        assert_eq!(ended.pairs(), [(3, 5), (15, 7)]);
    }
}
