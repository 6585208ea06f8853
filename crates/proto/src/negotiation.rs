//! Hello and Welcome: what two Bothways peers agree on, in frames that a plain rpcx peer tolerates.
//!
//! Hello is a heartbeat, and the client's first frame. A Go server echoes it untouched, so no
//! Welcome comes and the connection stays plain. Our server echoes it with its own pairs added.
//!
//! | key | in | meaning |
//! |---|---|---|
//! | `_bw.v` | both | the version of these rules, decimal |
//! | `_bw.caps` | both | capabilities, separated by commas; unknown ones are ignored |
//! | `_bw.ok` | Welcome | `1`; its presence is what makes the echo a Welcome |
//! | `__AUTH` | Hello | the token, if the client has one |
//! | `_bw.fns` | Hello | which of the server's calls the client handles |

use crate::Metadata;

/// The version of the rules that this crate speaks.
pub const VERSION: u32 = 1;

const KEY_VERSION: &str = "_bw.v";
const KEY_CAPS: &str = "_bw.caps";
const KEY_OK: &str = "_bw.ok";

/// What a peer can do beyond rpcx. Both use the intersection.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Capabilities(u16);

impl Capabilities {
    /// Nothing beyond rpcx.
    pub const NONE: Self = Self(0);
    /// Takes calls from the server, and answers them. On the wire: `calls`.
    pub const CALLS: Self = Self(1);
    /// Understands `_bothways`/`Cancel`. On the wire: `cancel`.
    pub const CANCEL: Self = Self(2);
    /// Understands `_bothways`/`Goodbye`. On the wire: `goodbye`.
    pub const GOODBYE: Self = Self(4);
    /// Answers heartbeats of either side. On the wire: `ping`.
    pub const PING: Self = Self(8);
    /// Keeps a session across connections, and acknowledges tracked pushes. On the wire: `sessions`.
    pub const SESSIONS: Self = Self(16);
    /// Says of each tracked push what became of it, also out of order: failed offsets and ranges in Acks. On the wire:
    /// `outcomes`.
    pub const OUTCOMES: Self = Self(32);
    /// What a server pushes goes to the handlers that the client names in `_bw.fns`, and to nobody else. On the wire:
    /// `handlers`.
    pub const HANDLERS: Self = Self(64);
    /// Takes back a oneway request whose token was refused, and sends it once more over its next connection. On the
    /// wire: `returns`.
    pub const RETURNS: Self = Self(128);
    /// A client says which request is its last one after a Goodbye, and a server how many oneway requests it has taken. On
    /// the wire: `last`.
    pub const LAST: Self = Self(256);
    /// All that this version knows.
    pub const ALL: Self = Self(511);

    const NAMES: [(Self, &str); 9] = [
        (Self::CALLS, "calls"),
        (Self::CANCEL, "cancel"),
        (Self::GOODBYE, "goodbye"),
        (Self::PING, "ping"),
        (Self::SESSIONS, "sessions"),
        (Self::OUTCOMES, "outcomes"),
        (Self::HANDLERS, "handlers"),
        (Self::RETURNS, "returns"),
        (Self::LAST, "last"),
    ];

    /// True if every one of `others` is here.
    pub const fn contains(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }

    /// What both have.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What either has.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Without these.
    #[must_use]
    pub const fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    fn parse(text: &str) -> Self {
        let known = |name: &str| Self::NAMES.iter().find(|(_, n)| *n == name).map(|(cap, _)| *cap);
        text.split(',').filter_map(|name| known(name.trim())).fold(Self::NONE, Self::union)
    }
}

impl std::fmt::Display for Capabilities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = Self::NAMES.iter().filter(|(cap, _)| self.contains(*cap)).map(|(_, name)| *name).collect();
        f.write_str(&names.join(","))
    }
}

/// What a client says of itself in its first frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Hello {
    /// The version of the rules the client speaks.
    pub version: u32,
    /// What it can do.
    pub capabilities: Capabilities,
}

impl Hello {
    /// Reads a Hello out of the metadata of a heartbeat; `None`: a plain heartbeat.
    pub fn from_metadata(metadata: &Metadata) -> Option<Self> {
        if metadata.is_empty() {
            return None;
        }
        let version = metadata.get(KEY_VERSION)?.parse().ok()?;
        Some(Self { version, capabilities: Capabilities::parse(metadata.get(KEY_CAPS).unwrap_or_default()) })
    }

    /// Adds the pairs of this Hello.
    pub fn put(&self, metadata: &mut Metadata) {
        metadata.insert(KEY_VERSION, self.version.to_string());
        metadata.insert(KEY_CAPS, self.capabilities.to_string());
    }
}

/// A server's answer to a [`Hello`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Welcome {
    /// The version that both speak: the lower of the two.
    pub version: u32,
    /// What both can do.
    pub capabilities: Capabilities,
}

impl Welcome {
    /// The answer to `hello` of a server with these capabilities.
    pub fn answer(hello: &Hello, capabilities: Capabilities) -> Self {
        Self { version: hello.version.min(VERSION), capabilities: hello.capabilities.intersection(capabilities) }
    }

    /// Reads a Welcome out of the metadata of the answer to a Hello; `None`: a plain server's echo.
    pub fn from_metadata(metadata: &Metadata) -> Option<Self> {
        metadata.value(KEY_OK)?;
        let hello = Hello::from_metadata(metadata)?;
        Some(Self { version: hello.version, capabilities: hello.capabilities })
    }

    /// Adds the pairs of this Welcome.
    pub fn put(&self, metadata: &mut Metadata) {
        Hello { version: self.version, capabilities: self.capabilities }.put(metadata);
        metadata.insert(KEY_OK, "1");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A Hello survives its metadata, and capabilities nobody knows are ignored.
    #[test]
    fn unknown_capabilities_are_ignored() {
        let metadata = Metadata::new().with("_bw.v", "7").with("_bw.caps", "calls,teleport,ping");
        let hello = Hello::from_metadata(&metadata).expect("it is a Hello");
        assert_eq!(hello.capabilities, Capabilities::CALLS.union(Capabilities::PING));
        let welcome = Welcome::answer(&hello, Capabilities::CALLS.union(Capabilities::CANCEL));
        assert_eq!(welcome, Welcome { version: VERSION, capabilities: Capabilities::CALLS });
        let mut echo = metadata;
        welcome.put(&mut echo);
        assert_eq!(Welcome::from_metadata(&echo), Some(welcome));
    }

    /// A Go server's echo of our Hello is no Welcome.
    #[test]
    fn an_echo_is_no_welcome() {
        let mut metadata = Metadata::new();
        Hello { version: VERSION, capabilities: Capabilities::ALL }.put(&mut metadata);
        assert_eq!(Welcome::from_metadata(&metadata), None);
        assert_eq!(metadata.get("_bw.caps"), Some("calls,cancel,goodbye,ping,sessions,outcomes,handlers,returns,last"));
    }
}
