//! How a server belongs to a cluster.

use std::{fmt, sync::Arc, time::Duration};

use super::{calls::CallBounds, engine::Engine};

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
    pub(super) also_at: Vec<String>,
    pub(super) lease: Duration,
    pub(super) pushes_max: usize,
    pub(super) park_bytes_max: usize,
    pub(super) calls: CallBounds,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("address", &self.address)
            .field("lease", &self.lease)
            .field("pushes_max", &self.pushes_max)
            .field("calls", &self.calls)
            .finish_non_exhaustive()
    }
}

impl Cluster {
    /// Its engine.
    pub(crate) fn engine(&self) -> Arc<dyn Engine> {
        Arc::clone(&self.engine)
    }

    /// All servers whose engines are of one cluster.
    pub fn new<E: Engine>(engine: Arc<E>) -> Self {
        let calls = CallBounds { calls: 16 << 10, bytes: 64 << 20 };
        Self {
            engine,
            address: None,
            also_at: Vec::new(),
            lease: Duration::from_secs(15),
            pushes_max: 128 << 10,
            park_bytes_max: 256 << 20,
            calls,
        }
    }

    /// Where clients reach this server, in rpcx's form, as the other nodes show it to operators, and name it to their own
    /// clients when they stop. At most 255 bytes, without blanks. Default: nothing is told.
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.address = Some(address.into());
        self
    }

    /// One more such address, of another network: a client goes to one of the network that it uses. Three at most count.
    ///
    /// ```
    /// # let broker = bothways::cluster::memory::MemoryBroker::new();
    /// let cluster = bothways::cluster::Cluster::new(broker.engine())
    ///     .address("tcp@10.0.0.7:8972")
    ///     .also_at("wss@node7.example.org:443");
    /// ```
    pub fn also_at(mut self, address: impl Into<String>) -> Self {
        self.also_at.push(address.into());
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

    /// Most bytes of sessions that a server leaves in the store when it stops, so that their clients find them at other
    /// nodes. Those for which there is no room end with the server, and count as
    /// [left](crate::server::ShutdownReport::sessions_left). Default 256 MiB; 0 parks none.
    pub fn park_bytes_max(mut self, bytes: usize) -> Self {
        self.park_bytes_max = bytes;
        self
    }

    /// Most calls of this node that other nodes run, and most calls of others that this node runs or has not told the end
    /// of. What goes beyond is refused, with nothing sent: [`CallError::TooManyCalls`](crate::CallError::TooManyCalls), or
    /// [`Overloaded`](crate::ErrorCode::Overloaded) if it is the other node that takes no more. Default 16,384.
    pub fn calls_pending_max(mut self, calls: usize) -> Self {
        self.calls.calls = calls;
        self
    }

    /// Most bytes of these calls, for each of the two: arguments while they run, then what they ended with, until the node
    /// that asked has it. What goes beyond is refused: [`CallError::QueueFull`](crate::CallError::QueueFull), or
    /// [`Overloaded`](crate::ErrorCode::Overloaded). A reply for which there is no room is lost, and the call fails as one
    /// that may have run. Default 64 MiB.
    pub fn call_bytes_max(mut self, bytes: usize) -> Self {
        self.calls.bytes = bytes;
        self
    }
}
