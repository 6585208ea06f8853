//! Where servers are: lists that change, from any source.
//!
//! | file | what it does |
//! |---|---|
//! | `mod.rs` | [`Discovery`], what a caller of many servers asks for |
//! | `entry.rs` | [`ServerEntry`], one server: address and metadata |
//! | `metadata.rs` | [`ServerMetadata`], rpcx's query string of pairs |
//! | `fixed.rs` | lists that the application keeps itself: one server, or several |

mod entry;
mod fixed;
mod metadata;

use std::sync::Arc;

use tokio::sync::watch;

pub use self::{
    entry::ServerEntry,
    fixed::{MultipleServersDiscovery, Peer2PeerDiscovery},
    metadata::{MetadataSyntaxError, ServerMetadata},
};

/// Knows the servers of a service.
///
/// The answer is the list as it is now and, through [`changed`](watch::Receiver::changed), each list
/// that follows. Only the newest list counts: one that was replaced before anybody read it is never
/// seen. Lists are raw: who is inactive, and who is of which group, the caller sorts out.
///
/// A subscriber also keeps the discovery. One that watches a registry does so in a task of its
/// own, ends it when it is dropped, and keeps its last list while the registry is away: servers do
/// not vanish because a registry does.
///
/// A list that is empty is taken for such a registry: an [`XClient`](crate::XClient) that has servers keeps
/// them, with their sessions, until a list names one. To leave them all, close the client.
///
/// ```
/// use std::sync::Arc;
///
/// use bothways::discovery::{Discovery, ServerEntry};
/// use tokio::sync::watch;
///
/// /// Every server of a region, told by whatever means.
/// struct Region {
///     servers: watch::Sender<Arc<[ServerEntry]>>,
/// }
///
/// impl Discovery for Region {
///     fn subscribe(&self) -> watch::Receiver<Arc<[ServerEntry]>> {
///         self.servers.subscribe()
///     }
/// }
/// ```
///
/// Source: Go rpcx `client/discovery.go`, `ServiceDiscovery` (`GetServices`, `WatchService`).
pub trait Discovery: Send + Sync + 'static {
    /// The list now, and from now on.
    fn subscribe(&self) -> watch::Receiver<Arc<[ServerEntry]>>;
}

impl<D: Discovery + ?Sized> Discovery for Arc<D> {
    fn subscribe(&self) -> watch::Receiver<Arc<[ServerEntry]>> {
        (**self).subscribe()
    }
}

impl<D: Discovery + ?Sized> Discovery for Box<D> {
    fn subscribe(&self) -> watch::Receiver<Arc<[ServerEntry]>> {
        (**self).subscribe()
    }
}
