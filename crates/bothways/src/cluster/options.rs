//! How a server belongs to a cluster.

use std::{fmt, sync::Arc, time::Duration};

use super::engine::Engine;

/// The cluster that a server joins: its engine, and bounds.
///
/// ```
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use bothways::{
///     Server,
///     cluster::{Cluster, memory::MemoryBroker},
/// };
///
/// let broker = MemoryBroker::new();
/// let server = Server::builder().build();
/// server.join(Cluster::new(broker.engine()).address("tcp@10.0.0.7:8972")).await?;
/// # Ok(()) }
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(example()).unwrap();
/// ```
#[derive(Clone)]
#[must_use]
pub struct Cluster {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) address: Option<String>,
    pub(super) lease: Duration,
    pub(super) pushes_max: usize,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("address", &self.address)
            .field("lease", &self.lease)
            .field("pushes_max", &self.pushes_max)
            .finish_non_exhaustive()
    }
}

impl Cluster {
    /// All servers whose engines are of one cluster.
    pub fn new<E: Engine>(engine: Arc<E>) -> Self {
        Self { engine, address: None, lease: Duration::from_secs(15), pushes_max: 128 << 10 }
    }

    /// Where clients reach this server, as the other nodes may tell them. Default: nothing is told.
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.address = Some(address.into());
        self
    }

    /// How long the others count a node as a member that does not renew its lease. It renews it each second. A register
    /// that elects a leader stands still for four to nine seconds: a lease has to outlive that. Default 15 s, at least
    /// 3 s.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease.max(Duration::from_secs(3));
        self
    }

    /// Most pushes of this node that others still have to answer for, and most pushes of others that this node answers
    /// for: those that are not handled yet, those to clients that are away among them. One takes some hundred bytes. What
    /// goes beyond is [unreached](crate::Receipt::unreached). Default 131,072.
    pub fn pushes_max(mut self, pushes: usize) -> Self {
        self.pushes_max = pushes;
        self
    }
}
