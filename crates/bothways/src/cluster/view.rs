//! What a node shows of itself and of its cluster.

use super::node::Node;

/// What is under way between the nodes. From [`Server::cluster_stats`](crate::Server::cluster_stats).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct ClusterStats {
    /// Other members.
    pub members: usize,
    /// Pushes of this node that others answer for: some of their targets are not handled yet.
    pub pushes_out: usize,
    /// Pushes of others that this node answers for.
    pub pushes_here: usize,
    /// Items that wait for other nodes, and their bytes.
    pub waiting: usize,
    /// See [`Self::waiting`].
    pub waiting_bytes: usize,
    /// Calls of this node that other nodes run.
    pub calls_out: usize,
    /// The bytes of their arguments.
    pub call_bytes_out: usize,
    /// Calls of others that this node runs, or has not told the end of.
    pub calls_here: usize,
    /// The bytes of their arguments, or of what they ended with.
    pub call_bytes_here: usize,
}

impl Node {
    /// Cheap: no list is walked but that of the members.
    pub(crate) fn stats(&self) -> ClusterStats {
        let state = self.state.lock();
        let mut stats = ClusterStats { members: state.members.len(), ..state.counts() };
        for link in state.members.values() {
            let (items, bytes) = link.out.waiting();
            stats.waiting += items;
            stats.waiting_bytes += bytes;
        }
        state.calls.count(&mut stats);
        stats
    }
}
