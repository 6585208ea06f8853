//! One server: address and metadata.

use std::sync::Arc;

use super::ServerMetadata;

/// One server of a list. A clone is two counters.
///
/// ```
/// use bothways::discovery::ServerEntry;
///
/// let entry = ServerEntry::new("tcp@127.0.0.1:8972").with_metadata("weight=7&group=test&group=blue");
/// assert_eq!(entry.address(), "tcp@127.0.0.1:8972");
/// assert_eq!(entry.metadata().get("weight"), Some("7"));
/// assert!(entry.is_eligible(Some("blue")));
/// ```
///
/// Source: Go rpcx `client/discovery.go`, `KVPair`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServerEntry {
    address: Arc<str>,
    metadata: Arc<ServerMetadata>,
}

impl ServerEntry {
    /// A server without metadata at an address in rpcx's form, such as `tcp@127.0.0.1:8972`. Without `@`
    /// the network is `tcp`.
    pub fn new(address: impl AsRef<str>) -> Self {
        Self { address: address.as_ref().into(), metadata: Arc::default() }
    }

    /// The same server with this metadata; see [`ServerMetadata::parse`].
    #[must_use]
    pub fn with_metadata(mut self, query: &str) -> Self {
        self.metadata = Arc::new(ServerMetadata::parse(query));
        self
    }

    /// The address, as it was given.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The metadata that the server registered.
    pub fn metadata(&self) -> &ServerMetadata {
        &self.metadata
    }

    /// True if calls may go there: it is not inactive (`state=inactive`) and, if a group is asked for, one
    /// of its `group` values is that one. Metadata that is no query string keeps nobody out.
    ///
    /// Source: Go rpcx `client/xclient.go`, `filterByStateAndGroup`.
    pub fn is_eligible(&self, group: Option<&str>) -> bool {
        let metadata = self.metadata();
        if !metadata.is_well_formed() {
            return true;
        }
        let in_group = || group.is_none_or(|group| metadata.get_all("group").any(|of| of == group));
        metadata.get("state") != Some("inactive") && in_group()
    }
}

impl From<&str> for ServerEntry {
    fn from(address: &str) -> Self {
        Self::new(address)
    }
}

impl From<&String> for ServerEntry {
    fn from(address: &String) -> Self {
        Self::new(address)
    }
}

impl From<String> for ServerEntry {
    fn from(address: String) -> Self {
        Self::new(address)
    }
}

/// Address and metadata, as rpcx's `KVPair`.
impl<A: AsRef<str>, M: AsRef<str>> From<(A, M)> for ServerEntry {
    fn from((address, metadata): (A, M)) -> Self {
        Self::new(address).with_metadata(metadata.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Go's cases of `TestXClient_filterByStateAndGroup`, and what its code does beyond them.
    #[test]
    fn inactive_servers_and_those_of_other_groups_are_out() {
        for (metadata, without_group, in_test) in [
            ("", true, false),
            ("weight=7", true, false),
            ("state=inactive&ops=10", false, false),
            ("state=active", true, false),
            ("group=test&ops=20", true, true),
            ("group=blue&group=test", true, true),
            ("group=blue", true, false),
            ("group=test&state=inactive", false, false),
            ("group=te%73t", true, true),
            // Only the first `state` counts, as in Go's `Values.Get`.
            ("state=active&state=inactive", true, false),
            // No query string: kept.
            ("state=inactive;group=blue", true, true),
            ("state=inactive&x=%zz", true, true),
        ] {
            let entry = ServerEntry::from(("tcp@a:1", metadata));
            assert_eq!(
                (entry.is_eligible(None), entry.is_eligible(Some("test"))),
                (without_group, in_test),
                "{metadata}"
            );
        }
    }
}
