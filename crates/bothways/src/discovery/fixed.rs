//! Lists that the application keeps itself.

use std::sync::Arc;

use tokio::sync::watch;

use super::{Discovery, Lists, ServerEntry};

/// One server, for good.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use bothways::{ClientOptions, FailMode, Peer2PeerDiscovery, SelectMode, XClient};
///
/// let servers = Peer2PeerDiscovery::new("tcp@127.0.0.1:8972");
/// let client = XClient::new("Arith", FailMode::Failtry, SelectMode::RandomSelect, servers, ClientOptions::new());
/// assert_eq!(client.servers().len(), 1);
/// # Ok(()) }
/// ```
///
/// Source: Go rpcx `client/peer2peer_discovery.go`.
#[derive(Clone, Debug)]
pub struct Peer2PeerDiscovery {
    servers: watch::Sender<Arc<[ServerEntry]>>,
}

impl Peer2PeerDiscovery {
    /// The server at this address, such as `tcp@127.0.0.1:8972`; or an address with metadata.
    pub fn new(server: impl Into<ServerEntry>) -> Self {
        Self { servers: watch::Sender::new([server.into()].into()) }
    }
}

impl Discovery for Peer2PeerDiscovery {
    fn lists(&self, _service: &str) -> Lists {
        Lists::known(self.servers.subscribe())
    }
}

/// Several servers, until the application says otherwise. A clone is the same list: keep one to
/// [`update`](Self::update) it.
///
/// ```
/// use bothways::{MultipleServersDiscovery, ServerEntry};
///
/// let servers = MultipleServersDiscovery::new(["tcp@10.0.0.1:8972", "tcp@10.0.0.2:8972"]);
/// servers.update([("tcp@10.0.0.1:8972", "weight=7"), ("tcp@10.0.0.3:8972", "weight=3")]);
/// let addresses: Vec<String> = servers.servers().iter().map(|entry| entry.address().to_owned()).collect();
/// assert_eq!(addresses, ["tcp@10.0.0.1:8972", "tcp@10.0.0.3:8972"]);
/// ```
///
/// Source: Go rpcx `client/multiple_servers_discovery.go`.
#[derive(Clone, Debug)]
pub struct MultipleServersDiscovery {
    servers: watch::Sender<Arc<[ServerEntry]>>,
}

impl MultipleServersDiscovery {
    /// These servers: addresses, or addresses with metadata.
    pub fn new<E: Into<ServerEntry>>(servers: impl IntoIterator<Item = E>) -> Self {
        Self { servers: watch::Sender::new(servers.into_iter().map(Into::into).collect()) }
    }

    /// From now on these servers and no others. An `XClient` that follows the list sees it with its next call.
    pub fn update<E: Into<ServerEntry>>(&self, servers: impl IntoIterator<Item = E>) {
        self.servers.send_replace(servers.into_iter().map(Into::into).collect());
    }

    /// The servers now.
    pub fn servers(&self) -> Arc<[ServerEntry]> {
        Arc::clone(&self.servers.borrow())
    }
}

impl Discovery for MultipleServersDiscovery {
    fn lists(&self, _service: &str) -> Lists {
        Lists::known(self.servers.subscribe())
    }
}
