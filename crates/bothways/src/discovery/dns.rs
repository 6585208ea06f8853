//! The servers of a DNS name.

use std::{io, net::SocketAddr, time::Duration};

use tokio::time::{sleep, timeout};

use super::{Discovery, DiscoveryError, Lists, ServerEntry};

/// How often a name is looked up, unless it is said otherwise.
const INTERVAL: Duration = Duration::from_secs(30);
/// The time of one look-up. The system may take minutes to give up.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// Every address of a DNS name, looked up again and again by the resolver of the system. The name of a headless service
/// in Kubernetes is such a name.
///
/// Each address is a server of its own. Of a name with A and AAAA records each server is there twice: a client has two
/// sessions at it and gets what is published twice, unless [`Self::ipv4_only`] or [`Self::ipv6_only`] is set. And use a name that answers with all
/// its addresses: if each answer has a part of them, the other servers are left with each look-up.
///
/// A look-up that fails, or takes longer than 10 s, keeps the servers that were found before; see [`Lists::watched`].
/// The servers are known by their IP addresses: over TLS, say by
/// [`TlsClient::server_name`](crate::transport::tls::TlsClient::server_name) which name their certificates have.
///
/// ```
/// use std::time::Duration;
///
/// use bothways::discovery::DnsDiscovery;
///
/// let servers = DnsDiscovery::new("tcp", "rpc.example.com", 8972).interval(Duration::from_secs(10));
/// ```
///
/// Source: Go rpcx `client/dns_discovery.go`, `DNSDiscovery`.
#[derive(Clone, Debug)]
#[must_use]
pub struct DnsDiscovery {
    network: Box<str>,
    name: Box<str>,
    port: u16,
    interval: Duration,
    family: Family,
}

/// Which addresses of a name count.
#[derive(Clone, Copy, Debug)]
enum Family {
    Any,
    V4,
    V6,
}

impl Family {
    fn has(self, address: &SocketAddr) -> bool {
        match self {
            Self::Any => true,
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
        }
    }
}

impl DnsDiscovery {
    /// The servers of this name, which all listen on this network (`tcp` or `tls`) and port.
    pub fn new(network: &str, name: &str, port: u16) -> Self {
        Self { network: network.into(), name: name.into(), port, interval: INTERVAL, family: Family::Any }
    }

    /// How long after one look-up the next one begins. Default 30 s, at least 1 ms.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval.max(Duration::from_millis(1));
        self
    }

    /// Only IPv4 addresses count. Default: all.
    pub fn ipv4_only(mut self) -> Self {
        self.family = Family::V4;
        self
    }

    /// Only IPv6 addresses count. Default: all.
    pub fn ipv6_only(mut self) -> Self {
        self.family = Family::V6;
        self
    }

    /// The addresses now, in order: an answer that only has them in another order is the same list.
    async fn look_up(&self) -> Result<Vec<ServerEntry>, DiscoveryError> {
        let found = timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host((&*self.name, self.port))).await;
        let found = found.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let found =
            found.map_err(|error| DiscoveryError::new(format_args!("cannot look up {}: {error}", self.name)))?;
        let mut found: Vec<SocketAddr> = found.filter(|address| self.family.has(address)).collect();
        if found.is_empty() {
            let of_family = match self.family {
                Family::Any => "",
                Family::V4 => " of IPv4",
                Family::V6 => " of IPv6",
            };
            return Err(DiscoveryError::new(format_args!("{} has no address{of_family}", self.name)));
        }
        found.sort_unstable();
        Ok(found.into_iter().map(|address| ServerEntry::new(format!("{}@{address}", self.network))).collect())
    }
}

impl Discovery for DnsDiscovery {
    fn lists(&self, _service: &str) -> Lists {
        let dns = self.clone();
        Lists::watched(move |lists| {
            let dns = dns.clone();
            async move {
                loop {
                    lists.set(dns.look_up().await?);
                    sleep(dns.interval).await;
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An address that is one already needs no resolver, and a name that cannot be one fails.
    #[tokio::test]
    async fn a_name_is_looked_up() {
        let servers = DnsDiscovery::new("tcp", "127.0.0.1", 8972).look_up().await.expect("it is an address");
        assert_eq!(servers, [ServerEntry::new("tcp@127.0.0.1:8972")]);
        let servers = DnsDiscovery::new("tcp", "::1", 8972).look_up().await.expect("it is an address");
        assert_eq!(servers, [ServerEntry::new("tcp@[::1]:8972")]);
        let error = DnsDiscovery::new("tcp", "no\0name", 8972).look_up().await.expect_err("it is no name");
        assert!(error.to_string().starts_with("cannot look up no"), "{error}");
    }

    /// Addresses of the other family are no servers, and if there are no others the look-up has failed.
    #[tokio::test]
    async fn one_family_may_be_chosen() {
        for (name, is_v4) in [("127.0.0.1", true), ("::1", false)] {
            let dns = DnsDiscovery::new("tcp", name, 8972);
            let (own, other) = match is_v4 {
                true => (dns.clone().ipv4_only(), dns.ipv6_only()),
                false => (dns.clone().ipv6_only(), dns.ipv4_only()),
            };
            assert_eq!(own.look_up().await.map(|servers| servers.len()).unwrap_or_default(), 1, "{name}");
            let error = other.look_up().await.expect_err("it has none");
            assert!(error.to_string().contains("has no address of IPv"), "{error}");
        }
    }
}
