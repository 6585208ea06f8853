//! `network@address`: where a server listens and a client connects.

use std::{fmt, net::IpAddr, net::SocketAddr, str::FromStr};

use crate::error::AddressError;

/// How bytes travel to an address.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) enum Network {
    /// TCP over IPv4 or IPv6. With TLS if the options bring a TLS configuration, as in rpcx.
    Tcp,
    /// TCP over IPv4 only.
    Tcp4,
    /// TCP over IPv6 only.
    Tcp6,
    /// TLS over TCP. Go peers have no such name: their addresses say `tcp`, and the options decide.
    Tls,
    /// TCP over IPv4 or IPv6, on a port that several servers share. For servers only.
    ReusePort,
    /// WebSocket. With TLS if the options bring a TLS configuration, as in rpcx.
    Ws,
    /// WebSocket over TLS.
    Wss,
    /// TCP behind an HTTP CONNECT. With TLS if the options bring a TLS configuration.
    Http,
    /// A Unix domain socket. Never with TLS.
    Unix,
    /// A pipe within this process. rpcx's name for it, `memu`, is understood too.
    Memory,
    /// A network of a transport of the application's.
    Other(Box<str>),
}

impl Network {
    const NAMES: [(&'static str, Self); 11] = [
        ("tcp", Self::Tcp),
        ("tcp4", Self::Tcp4),
        ("tcp6", Self::Tcp6),
        ("tls", Self::Tls),
        ("reuseport", Self::ReusePort),
        ("ws", Self::Ws),
        ("wss", Self::Wss),
        ("http", Self::Http),
        ("unix", Self::Unix),
        ("memory", Self::Memory),
        ("memu", Self::Memory),
    ];

    /// The built-in networks, for people.
    pub(super) fn known() -> String {
        let names = Self::NAMES.iter().map(|(name, network)| (*name, network.is_built_in()));
        let built_in: Vec<_> = names.filter_map(|(name, is)| is.then_some(name)).collect();
        let (last, others) = built_in.split_last().expect("there are some");
        let mut known = format!("{} or {last}", others.join(", "));
        match (cfg!(feature = "tls"), cfg!(feature = "ws")) {
            (true, true) => {}
            (false, true) => known += " (tls and wss need the feature `tls`)",
            (true, false) => known += " (ws, wss and http need the feature `ws`)",
            (false, false) => known += " (tls needs the feature `tls`, ws and http the feature `ws`)",
        }
        known
    }

    fn is_built_in(&self) -> bool {
        match self {
            Self::Tls => cfg!(feature = "tls"),
            Self::Ws | Self::Http => cfg!(feature = "ws"),
            Self::Wss => cfg!(all(feature = "tls", feature = "ws")),
            Self::Unix => cfg!(unix),
            _ => true,
        }
    }

    /// The name in front of `@`.
    fn name(&self) -> &str {
        match self {
            Self::Other(name) => name,
            known => Self::NAMES.iter().find(|(_, network)| network == known).map_or("", |(name, _)| name),
        }
    }

    fn from_name(name: &str) -> Self {
        let known = Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, network)| network.clone());
        known.filter(Self::is_built_in).unwrap_or_else(|| Self::Other(name.into()))
    }

    /// True if the part after `@` is `host:port`.
    fn has_port(&self) -> bool {
        matches!(self, Self::Tcp | Self::Tcp4 | Self::Tcp6 | Self::Tls | Self::ReusePort) || self.has_path()
    }

    /// True if a path may stand behind that.
    fn has_path(&self) -> bool {
        matches!(self, Self::Ws | Self::Wss | Self::Http)
    }
}

/// An address in rpcx's form: `tcp@127.0.0.1:8972`, `tls@example.org:8972`, `unix@/run/chat.sock`,
/// `memory@chat`. Without `@` the network is `tcp`. The first `@` separates.
///
/// Behind `tcp`, `tcp4`, `tcp6`, `tls`, `ws`, `wss` and `http` stand a host and a port. An IPv6 address is in brackets:
/// `tcp@[::1]:8972`. Without a host, as in `:8972`, a server listens on all addresses of the machine,
/// and a client connects to its own machine. Port 0 lets the system choose one to listen on.
///
/// Behind the port of `ws`, `wss` (WebSocket) and `http` (rpcx behind CONNECT) may stand a path, `ws@example.org:80/rpc`;
/// without one it is `/_rpcx_`, as in rpcx. A server may also listen on `reuseport@host:port`: it shares the port with
/// others, as [`ListenOptions::reuse_port`](super::ListenOptions::reuse_port) has it.
///
/// Behind `unix` stands a path; on Linux, `@name` is a name in the abstract namespace, which leaves
/// no file. Behind `memory` stands any name.
///
/// Any other network is a name of letters, digits, `+`, `-` and `.`, and behind it stands what its
/// [`Transport`](super::Transport) makes of it. Whether a client or a server has that transport is seen when it
/// connects or listens.
///
/// ```
/// use bothways::transport::Address;
///
/// let address: Address = "tcp@[::1]:8972".parse()?;
/// assert_eq!(address.network(), "tcp");
/// assert_eq!(address.host(), Some("::1"));
/// assert_eq!(address.port(), Some(8972));
/// assert_eq!("127.0.0.1:8972".parse::<Address>()?.to_string(), "tcp@127.0.0.1:8972");
/// # Ok::<(), bothways::error::AddressError>(())
/// ```
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Address {
    network: Network,
    target: Box<str>,
}

impl Address {
    /// The part in front of `@`, or `tcp`; `memory` for rpcx's name `memu`.
    pub fn network(&self) -> &str {
        self.network.name()
    }

    pub(super) fn kind(&self) -> &Network {
        &self.network
    }

    /// The part after `@`: `host:port`, a path or a name.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The host, without brackets; empty if there is none in front of the colon. `None` for networks
    /// without hosts.
    pub fn host(&self) -> Option<&str> {
        let (host, _) = self.host_and_port()?;
        Some(host)
    }

    /// The port. `None` for networks without ports.
    pub fn port(&self) -> Option<u16> {
        let (_, port) = self.host_and_port()?;
        Some(port)
    }

    fn host_and_port(&self) -> Option<(&str, u16)> {
        if !self.network.has_port() {
            return None;
        }
        let (place, _) = split_path(&self.network, &self.target);
        Some(split_host_and_port(place).expect("checked when the address was made"))
    }

    /// The path of HTTP, on networks that have one.
    #[cfg(feature = "ws")]
    pub(super) fn path(&self) -> &str {
        match split_path(&self.network, &self.target) {
            (_, "") => super::ws::PATH,
            (_, path) => path,
        }
    }

    /// The host and the port, as HTTP names them.
    #[cfg(feature = "ws")]
    pub(super) fn place(&self) -> String {
        match split_path(&self.network, &self.target).0 {
            place if place.starts_with(':') => format!("localhost{place}"),
            place => place.to_owned(),
        }
    }

    /// The same place with the port that the system chose.
    pub(super) fn with_port(&self, port: u16) -> Self {
        let host = self.host().unwrap_or_default();
        let (_, path) = split_path(&self.network, &self.target);
        let target = if host.contains(':') { format!("[{host}]:{port}{path}") } else { format!("{host}:{port}{path}") };
        // Where servers share a port, clients find one.
        let network = if self.network == Network::ReusePort { Network::Tcp } else { self.network.clone() };
        Self { network, target: target.into() }
    }

    /// Where its host is, of a network with hosts.
    pub(crate) async fn places(&self) -> std::io::Result<Vec<SocketAddr>> {
        super::tcp::resolve(self).await
    }

    /// No transport has its network.
    pub(super) fn unknown(&self, known: String) -> AddressError {
        AddressError::UnknownNetwork { network: self.network().to_owned(), address: self.to_string(), known }
    }
}

/// `tcp@` and the socket address.
impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self { network: Network::Tcp, target: address.to_string().into() }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.network(), self.target)
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(address: &str) -> Result<Self, AddressError> {
        let (name, target) = address.split_once('@').unwrap_or(("tcp", address));
        let network = Network::from_name(name);
        match check(&network, target) {
            Ok(()) => Ok(Self { network, target: target.into() }),
            Err(why) => Err(AddressError::Malformed { address: address.to_owned(), why }),
        }
    }
}

fn check(network: &Network, target: &str) -> Result<(), &'static str> {
    let is_of_a_name = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    match network {
        Network::Other(name) if name.is_empty() || !name.chars().all(is_of_a_name) => {
            return Err("the network, in front of `@`, is a name of letters, digits, `+`, `-` and `.`");
        }
        Network::Other(_) => return Ok(()),
        Network::Unix if target.is_empty() => return Err("the path is missing, as in `unix@/run/chat.sock`"),
        Network::Unix if target.contains('\0') => return Err("a path has no zero bytes"),
        Network::Memory if target.is_empty() => return Err("the name is missing, as in `memory@chat`"),
        Network::Unix | Network::Memory => return Ok(()),
        _ => {}
    }

    let (place, path) = split_path(network, target);
    if path.contains(|c: char| !c.is_ascii_graphic() || "?#".contains(c)) {
        return Err("the path is of ASCII letters, digits and signs, without blanks, `?` and `#`");
    }
    let (host, _) = split_host_and_port(place)?;
    match (network, host.parse::<IpAddr>()) {
        (Network::Tcp4, Ok(IpAddr::V6(_))) => Err("`tcp4` takes IPv4 addresses only; IPv6 is `tcp6` or `tcp`"),
        (Network::Tcp6, Ok(IpAddr::V4(_))) => Err("`tcp6` takes IPv6 addresses only; IPv4 is `tcp4` or `tcp`"),
        _ => Ok(()),
    }
}

/// The place, and the path behind it, which may be empty.
fn split_path<'a>(network: &Network, target: &'a str) -> (&'a str, &'a str) {
    let begin = if network.has_path() { target.find('/') } else { None };
    target.split_at(begin.unwrap_or(target.len()))
}

/// The host without brackets, and the port.
fn split_host_and_port(target: &str) -> Result<(&str, u16), &'static str> {
    const BRACKETS: &str = "an IPv6 address stands in brackets, and the port behind them, as in `tcp@[::1]:8972`";
    const NO_PORT: &str = "the port is missing, as in `tcp@127.0.0.1:8972`";

    let (host, port) = if let Some(rest) = target.strip_prefix('[') {
        let (host, port) = rest.split_once(']').ok_or(BRACKETS)?;
        if !host.contains(':') {
            return Err("brackets are for IPv6 addresses only");
        }
        (host, port.strip_prefix(':').ok_or(NO_PORT)?)
    } else {
        let (host, port) = target.rsplit_once(':').ok_or(NO_PORT)?;
        if host.contains(':') && !host.contains('/') {
            return Err(BRACKETS);
        }
        (host, port)
    };

    if host.contains(|c: char| c.is_whitespace() || c.is_control() || "/@?#[]".contains(c)) {
        return Err("the host is a name or an IP address and nothing else: no scheme, no path, no blanks");
    }
    if port.is_empty() || !port.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err("the port is a number from 0 to 65535, as in `tcp@127.0.0.1:8972`");
    }
    let port = port.parse().map_err(|_| "the port is more than 65535")?;
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_rpcx_reads_them() {
        for (text, network, host, port, shown) in [
            ("127.0.0.1:8972", Network::Tcp, Some("127.0.0.1"), Some(8972), "tcp@127.0.0.1:8972"),
            ("tcp@localhost:0", Network::Tcp, Some("localhost"), Some(0), "tcp@localhost:0"),
            ("tcp@:8972", Network::Tcp, Some(""), Some(8972), "tcp@:8972"),
            (":8972", Network::Tcp, Some(""), Some(8972), "tcp@:8972"),
            ("tcp4@0.0.0.0:80", Network::Tcp4, Some("0.0.0.0"), Some(80), "tcp4@0.0.0.0:80"),
            ("tcp6@[::1]:8972", Network::Tcp6, Some("::1"), Some(8972), "tcp6@[::1]:8972"),
            ("[::]:65535", Network::Tcp, Some("::"), Some(65535), "tcp@[::]:65535"),
            ("tcp@[fe80::1%eth0]:1", Network::Tcp, Some("fe80::1%eth0"), Some(1), "tcp@[fe80::1%eth0]:1"),
            ("reuseport@:80", Network::ReusePort, Some(""), Some(80), "reuseport@:80"),
            ("memory@a@b:c", Network::Memory, None, None, "memory@a@b:c"),
            ("memu@chat", Network::Memory, None, None, "memory@chat"),
        ] {
            let address: Address = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((address.kind(), address.host(), address.port()), (&network, host, port), "{text}");
            assert_eq!(address.to_string(), shown, "{text}");
            assert_eq!(shown.parse(), Ok(address), "{text}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn behind_unix_stands_any_path() {
        for path in ["/run/a socket.sock", "relative.sock", "@abstract", "/a@b:c"] {
            let address: Address = format!("unix@{path}").parse().expect("a path");
            assert_eq!((address.network(), address.target()), ("unix", path));
        }
    }

    #[cfg(feature = "tls")]
    #[test]
    fn tls_has_a_host_and_a_port() {
        let address: Address = "tls@example.org:8972".parse().expect("an address");
        assert_eq!((address.network(), address.host()), ("tls", Some("example.org")));
    }

    #[cfg(feature = "ws")]
    #[test]
    fn a_path_may_stand_behind_the_port_where_http_is() {
        for (text, host, place, path) in [
            ("ws@127.0.0.1:80", "127.0.0.1", "127.0.0.1:80", "/_rpcx_"),
            ("ws@:80/", "", "localhost:80", "/"),
            ("http@[::1]:80/a/b", "::1", "[::1]:80", "/a/b"),
            ("ws@example.org:80/a@b:1", "example.org", "example.org:80", "/a@b:1"),
        ] {
            let address: Address = text.parse().expect("an address");
            assert_eq!((address.host(), address.port()), (Some(host), Some(80)), "{text}");
            assert_eq!((&*address.place(), address.path(), &*address.to_string()), (place, path, text));
            assert!(address.with_port(9).to_string().contains(":9"), "{text}");
        }
        assert_eq!("ws@h:0/a".parse::<Address>().expect("an address").with_port(9).to_string(), "ws@h:9/a");
        for text in ["ws@h/a", "ws@/a", "ws@h:1/a b", "ws@h:1/?a", "ws@h:1/\u{e4}", "http@h:1/#a", "tcp@h:1/a"] {
            text.parse::<Address>().expect_err(text);
        }
    }

    /// Its transport, if there is one, knows what stands behind it.
    #[test]
    fn behind_another_network_stands_anything() {
        for (text, network, target) in [
            ("exec@/bin/worker --fast", "exec", "/bin/worker --fast"),
            ("x-1.y+z@", "x-1.y+z", ""),
            ("a@b@c", "a", "b@c"),
        ] {
            let address: Address = text.parse().expect("an address");
            assert_eq!((address.network(), address.target()), (network, target));
            assert_eq!((address.host(), address.port(), address.to_string()), (None, None, text.to_owned()));
        }
    }

    #[test]
    fn a_malformed_address_says_what_is_wrong_and_what_is_right() {
        for (text, part) in [
            ("", "port is missing"),
            ("tcp@", "port is missing"),
            ("localhost", "port is missing"),
            ("tcp@[::1]", "port is missing"),
            ("tcp@::1:8972", "in brackets"),
            ("tcp@[::1:8972", "in brackets"),
            ("tcp@[localhost]:1", "IPv6 addresses only"),
            ("tcp@localhost:", "0 to 65535"),
            ("tcp@localhost:http", "0 to 65535"),
            ("tcp@localhost:+1", "0 to 65535"),
            ("tcp@localhost:-1", "0 to 65535"),
            ("tcp@localhost:65536", "more than 65535"),
            ("http://localhost:8972", "no scheme"),
            ("tcp@user@host:1", "nothing else"),
            ("tcp@ 127.0.0.1:1", "no blanks"),
            ("tcp4@[::1]:1", "IPv4 addresses only"),
            ("tcp6@127.0.0.1:1", "IPv6 addresses only"),
            ("memory@", "name is missing"),
            ("@localhost:1", "in front of `@`"),
            ("http://user@localhost:1", "in front of `@`"),
        ] {
            let error = text.parse::<Address>().expect_err(text);
            let AddressError::Malformed { address, why } = error else { panic!("{text}: {error}") };
            assert_eq!(address, text);
            assert!(why.contains(part), "{text}: {why}");
        }
    }

    #[test]
    fn the_chosen_port_takes_the_place_of_port_0() {
        for (text, shown) in [("127.0.0.1:0", "tcp@127.0.0.1:9"), ("tcp6@[::1]:0", "tcp6@[::1]:9"), (":0", "tcp@:9")] {
            assert_eq!(text.parse::<Address>().expect("an address").with_port(9).to_string(), shown);
        }
    }

    proptest::proptest! {
        /// Whatever the text: an error or an address, never a panic; and an address can be asked.
        #[test]
        fn any_text_is_an_address_or_an_error(text in "(tcp@|tls@|ws@|http@|unix@|memory@|other@)?[\\[\\]:@0-9a-f.% /]{0,12}") {
            if let Ok(address) = text.parse::<Address>() {
                proptest::prop_assert_eq!(address.port().is_some(), address.host().is_some());
                proptest::prop_assert_eq!(address.to_string().parse(), Ok(address));
            }
        }
    }
}
