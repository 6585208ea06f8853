//! Where servers are: lists that change, from any source.
//!
//! | file | what it does |
//! |---|---|
//! | `mod.rs` | [`Discovery`], what a caller of many servers asks for |
//! | `entry.rs` | [`ServerEntry`], one server: address and metadata |
//! | `metadata.rs` | [`ServerMetadata`], rpcx's query string of pairs |
//! | `fixed.rs` | lists that the application keeps itself: one server, or several |
//! | `watched.rs` | [`Lists`] of a source that may fail: it is watched again, with back-off |
//! | `dns.rs` | [`DnsDiscovery`]: the addresses of a DNS name |

mod dns;
mod entry;
mod fixed;
mod metadata;
mod watched;

use std::sync::Arc;

pub use self::{
    dns::DnsDiscovery,
    entry::ServerEntry,
    fixed::{MultipleServersDiscovery, Peer2PeerDiscovery},
    metadata::{MetadataSyntaxError, ServerMetadata},
    watched::{DiscoveryError, ListSink, Lists},
};

/// Knows the servers of a service.
///
/// Only the newest list counts: one that was replaced before anybody read it is never seen. Lists are raw: the caller
/// leaves out who is inactive or of another group.
///
/// Servers do not vanish because a registry does. While a source fails, its last list counts. A list that is empty is
/// taken for a failing registry too: an [`XClient`](crate::XClient) that has servers keeps them, with their sessions,
/// until a list names one. To leave them all, close the client.
///
/// A registry over the network, which may fail and come back:
///
/// ```
/// use std::{sync::Arc, time::Duration};
///
/// use bothways::discovery::{Discovery, DiscoveryError, Lists};
///
/// /// A client of some registry.
/// struct Registry;
///
/// impl Registry {
///     async fn servers_of(&self, service: &str) -> Result<Vec<String>, DiscoveryError> {
///         Ok(vec![format!("tcp@{service}.internal:8972")])
///     }
/// }
///
/// struct ByRegistry(Arc<Registry>);
///
/// impl Discovery for ByRegistry {
///     fn lists(&self, service: &str) -> Lists {
///         let (registry, service) = (Arc::clone(&self.0), service.to_owned());
///         Lists::watched(move |lists| {
///             let (registry, service) = (Arc::clone(&registry), service.clone());
///             async move {
///                 loop {
///                     // An error ends the future; it is made again after a pause.
///                     lists.set(registry.servers_of(&service).await?);
///                     tokio::time::sleep(Duration::from_secs(10)).await;
///                 }
///             }
///         })
///     }
/// }
/// ```
///
/// Source: Go rpcx `client/discovery.go`, `ServiceDiscovery` (`GetServices`, `WatchService`).
pub trait Discovery: Send + Sync + 'static {
    /// The lists of this service: [known](Lists::known) ones, or those of a source that is [watched](Lists::watched).
    fn lists(&self, service: &str) -> Lists;
}

impl<D: Discovery + ?Sized> Discovery for Arc<D> {
    fn lists(&self, service: &str) -> Lists {
        (**self).lists(service)
    }
}

impl<D: Discovery + ?Sized> Discovery for Box<D> {
    fn lists(&self, service: &str) -> Lists {
        (**self).lists(service)
    }
}
