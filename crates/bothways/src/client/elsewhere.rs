//! Where a client goes whose server stops: the addresses that its Goodbye names, as far as the client trusts them.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    clock::after,
    connection::Connection,
    transport::{Address, ConnectOptions, Transports},
};

/// For how long after a Goodbye the addresses that it named count.
const NAMED_TIME: Duration = Duration::from_secs(600);
/// How many of them count.
const NAMED_MAX: usize = 12;
/// How many places one of them may have, by its name.
const PLACES_MAX: usize = 4;

/// To which of the addresses a client goes that its server names when it stops.
///
/// A server in a cluster tells its clients when it stops where the other nodes are. A client that goes there shows its
/// token, and the secret of its session, to the server that answers; and it opens a connection wherever it was told to. So it asks:
/// what could a server that is not honest do with this? What a client never does, whatever is chosen here:
///
/// - to use another network: of `tls@` it stays TLS, of `ws@` WebSocket;
/// - to check a certificate for another name than that of the configured address: the server that answers must be one that the client was
///   made to trust. The path of a WebSocket, and the name in its `Host`, stay those of the configured address too.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[cfg_attr(feature = "config", derive(serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum OtherAddresses {
    /// To none: the client comes back to the address that it was made with. For a client whose address is that of a
    /// balancer, which knows better, or that is not to be sent anywhere by its server.
    Ignore,
    /// To those that are no further inside than the server itself: a server on the internet sends its clients into no
    /// private network, and one in a private network to no service of the client's own machine. Over `memory@`, to any such
    /// address; over `unix@`, and transports of the application's own, to none.
    #[default]
    Trusted,
    /// To all. Without TLS this takes any server at its word.
    Any,
}

/// Where the next try goes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Target {
    /// To the address that the client was made with.
    Home,
    /// To another one, which stands for it.
    Other(Box<str>),
}

/// The addresses that the last Goodbye has named.
#[derive(Default)]
pub(super) struct Named {
    addresses: Vec<Box<str>>,
    until: Option<Instant>,
    /// Whose turn it is. The configured address has the last one.
    next: usize,
    /// From where they were named.
    by: Option<IpAddr>,
}

impl Named {
    /// What the server of this connection has named, if it has.
    pub(super) fn hear_from(&mut self, connection: &Connection) {
        if let Some(others) = connection.others() {
            self.hear(&others, &connection.peer_address());
        }
    }

    fn hear(&mut self, others: &str, peer: &str) {
        let addresses = others.split_whitespace().take(NAMED_MAX).map(Into::into).collect();
        let place = peer.split_once('@').map_or(peer, |(_, place)| place);
        let by = place.parse::<SocketAddr>().ok().map(|peer| peer.ip().to_canonical());
        *self = Self { addresses, until: Some(after(NAMED_TIME)), next: 0, by };
    }

    /// Where the next try goes: to each of them in turn, then home, and again.
    pub(super) fn next(&mut self) -> Target {
        if self.until.is_none_or(|until| until <= Instant::now()) {
            *self = Self::default();
        }
        let turn = self.next;
        match self.addresses.get(turn) {
            Some(address) => {
                self.next = turn + 1;
                Target::Other(address.clone())
            }
            None => {
                self.next = 0;
                Target::Home
            }
        }
    }

    /// A connection stands: after the next loss, home comes first.
    pub(super) fn stands(&mut self) {
        self.next = self.addresses.len();
    }

    /// How to connect there in place of home. `None`: the client does not go there.
    pub(super) async fn open(
        &self,
        other: &str,
        home: &Address,
        trusts: OtherAddresses,
        transports: &Transports,
        options: &ConnectOptions,
    ) -> Option<(Address, ConnectOptions)> {
        if trusts == OtherAddresses::Ignore {
            return None;
        }
        let address = transports.place(other).ok().filter(|other| is_like(home, other))?;
        if transports.is_own(home) || address.port().is_none() {
            let goes = address.network() == "memory" || trusts == OtherAddresses::Any;
            return goes.then(|| (address, options.clone()));
        }
        if address.port() == Some(0) || address.host() == Some("") {
            return None;
        }
        let limit = options.timeout();
        let mut places = tokio::time::timeout(limit, address.places()).await.ok()?.ok()?;
        places.retain(|place| trusts == OtherAddresses::Any || self.by.is_some_and(|by| may_send(by, place.ip())));
        places.truncate(PLACES_MAX);
        // The name that is checked, the path and the host are those of home.
        (!places.is_empty()).then(|| (home.clone(), options.clone().at(Arc::from(places))))
    }
}

/// True if what is said over these two is the same.
fn is_like(home: &Address, other: &Address) -> bool {
    let kind = |address: &Address| match address.network() {
        "tcp" | "tcp4" | "tcp6" | "tls" => "tcp".to_owned(),
        "ws" | "wss" => "ws".to_owned(),
        network => network.to_owned(),
    };
    kind(home) == kind(other)
}

/// How far inside an address is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Reach {
    /// This machine.
    Loopback,
    /// What stands on the same cable; also where clouds tell a machine its own secrets.
    Link,
    /// A network of an organization.
    Private,
    Public,
}

impl Reach {
    /// `None`: no server has it.
    fn of(ip: IpAddr) -> Option<Self> {
        let ip = ip.to_canonical();
        if ip.is_unspecified() || ip.is_multicast() {
            return None;
        }
        if ip.is_loopback() {
            return Some(Self::Loopback);
        }
        Some(match ip {
            IpAddr::V4(v4) if v4.is_broadcast() || v4.octets()[0] == 0 => return None,
            IpAddr::V4(v4) if v4.is_link_local() => Self::Link,
            IpAddr::V4(v4) if v4.is_private() || is_shared(v4.octets()) => Self::Private,
            IpAddr::V4(_) => Self::Public,
            IpAddr::V6(v6) => Self::of_v6(v6)?,
        })
    }

    fn of_v6(ip: Ipv6Addr) -> Option<Self> {
        if ip.is_unicast_link_local() {
            return Some(Self::Link);
        }
        if ip.is_unique_local() {
            return Some(Self::Private);
        }
        match ip.segments() {
            // Others go through to IPv4: as far inside as that.
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Self::of(v4_of(high, low)),
            // Where in it the IPv4 address stands, only that network knows.
            [0x64, 0xff9b, 1, ..] => Some(Self::Private),
            // As private networks were written once.
            [site, ..] if site & 0xffc0 == 0xfec0 => Some(Self::Private),
            [0x2002, high, low, ..] => Self::of(v4_of(high, low)),
            [0, 0, 0, 0, 0, 0, high, low] => Self::of(v4_of(high, low)),
            _ => Some(Self::Public),
        }
    }
}

fn v4_of(high: u16, low: u16) -> IpAddr {
    let [[a, b], [c, d]] = [high.to_be_bytes(), low.to_be_bytes()];
    IpAddr::from([a, b, c, d])
}

/// Addresses that a provider shares among its customers: 100.64.0.0/10.
fn is_shared([first, second, ..]: [u8; 4]) -> bool {
    first == 100 && second & 0xc0 == 64
}

/// True if a server there may send a client here.
fn may_send(by: IpAddr, to: IpAddr) -> bool {
    match (Reach::of(by), Reach::of(to)) {
        (Some(by), Some(to)) => by <= to,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// Each in turn, then home; and after a connection that stood, home first. After ten minutes nothing is left of it.
    #[tokio::test(start_paused = true)]
    async fn each_address_has_its_turn() {
        let mut named = Named::default();
        assert_eq!(named.next(), Target::Home);
        named.hear("tcp@a:1  tcp@b:2", "tcp@10.0.0.1:80");
        assert_eq!(named.by, Some(ip("10.0.0.1")));
        let other = |text: &str| Target::Other(text.into());
        let turns: Vec<_> = (0..4).map(|_| named.next()).collect();
        assert_eq!(turns, [other("tcp@a:1"), other("tcp@b:2"), Target::Home, other("tcp@a:1")]);
        named.stands();
        assert_eq!([named.next(), named.next()], [Target::Home, other("tcp@a:1")]);
        tokio::time::advance(NAMED_TIME).await;
        assert_eq!([named.next(), named.next()], [Target::Home, Target::Home]);

        let many = "tcp@a:1 ".repeat(100);
        named.hear(&many, "somewhere");
        assert_eq!((named.addresses.len(), named.by), (NAMED_MAX, None));
    }

    #[test]
    fn nobody_is_sent_further_inside() {
        for (by, to, may) in [
            ("203.0.113.9", "198.51.100.1", true),
            ("203.0.113.9", "10.0.0.1", false),
            ("203.0.113.9", "100.64.0.1", false),
            ("203.0.113.9", "127.0.0.1", false),
            ("203.0.113.9", "fd00::1", false),
            ("203.0.113.9", "::ffff:10.0.0.1", false),
            ("203.0.113.9", "64:ff9b::a00:1", false),
            ("203.0.113.9", "2002:0a00:0001::", false),
            ("203.0.113.9", "64:ff9b:1::a00:1", false),
            ("203.0.113.9", "fec0::1", false),
            ("203.0.113.9", "feff::1", false),
            ("203.0.113.9", "2001:db8::1", true),
            ("10.0.0.1", "fec0::1", true),
            ("10.0.0.1", "192.168.1.1", true),
            ("10.0.0.1", "169.254.169.254", false),
            ("10.0.0.1", "fe80::1", false),
            ("10.0.0.1", "::1", false),
            ("fd00::1", "172.31.0.1", true),
            ("127.0.0.1", "127.0.0.2", true),
            ("127.0.0.1", "0.0.0.0", false),
            ("127.0.0.1", "0.1.2.3", false),
            ("127.0.0.1", "::", false),
            ("127.0.0.1", "224.0.0.1", false),
            ("127.0.0.1", "255.255.255.255", false),
            ("::1", "10.0.0.1", true),
        ] {
            assert_eq!(may_send(ip(by), ip(to)), may, "{by} sends to {to}");
        }
    }

    /// How a client connects to another address: `None`, or to which place it goes as whom.
    async fn opened(home: &str, peer: &str, other: &str, trusts: OtherAddresses) -> Option<String> {
        let mut named = Named::default();
        named.hear(other, peer);
        let (home, transports) = (home.parse().expect("an address"), Transports::default());
        let Target::Other(other) = named.next() else { panic!("it is named") };
        let (address, options) = named.open(&other, &home, trusts, &transports, &ConnectOptions::default()).await?;
        Some(match options.places() {
            Some(places) => format!("{address} at {places:?}"),
            None => address.to_string(),
        })
    }

    #[tokio::test]
    async fn a_client_keeps_its_network_and_the_name_that_it_trusts() {
        use OtherAddresses::{Any, Ignore, Trusted};
        let here = "tcp@10.0.0.1:8972";
        for (home, peer, other, trusts, expected) in [
            ("tcp@chat:8972", here, "tcp@10.0.0.2:1", Trusted, Some("tcp@chat:8972 at [10.0.0.2:1]")),
            ("tcp@chat:8972", here, "tcp@10.0.0.2:1", Ignore, None),
            ("tcp@chat:8972", here, "tcp@127.0.0.1:1", Trusted, None),
            ("tcp@chat:8972", here, "tcp@127.0.0.1:1", Any, Some("tcp@chat:8972 at [127.0.0.1:1]")),
            ("tcp@chat:8972", here, "tcp@localhost:1", Trusted, None),
            ("tcp@chat:8972", here, "tcp@:1", Any, None),
            ("tcp@chat:8972", here, "tcp@10.0.0.2:0", Any, None),
            ("tcp@chat:8972", here, "unix@/run/docker.sock", Any, None),
            ("tcp@chat:8972", here, "memory@x", Any, None),
            ("tcp@chat:8972", here, "nothing", Any, None),
            ("tcp@chat:8972", "nobody knows", "tcp@10.0.0.2:1", Trusted, None),
            ("unix@/a", "", "unix@/b", Trusted, None),
            ("unix@/a", "", "unix@/b", Any, Some("unix@/b")),
            ("memory@a", "", "memory@b", Trusted, Some("memory@b")),
            ("memory@a", "", "tcp@10.0.0.2:1", Trusted, None),
        ] {
            let opened = opened(home, peer, other, trusts).await;
            assert_eq!(opened.as_deref(), expected, "from {home} to {other}, {trusts:?}");
        }
    }

    /// What the certificate, the path and the host are of stays that of home: of TLS nothing else is reached.
    #[cfg(all(feature = "tls", feature = "ws"))]
    #[tokio::test]
    async fn tls_and_websocket_stay_what_they_are() {
        let at = |other| opened("tls@chat.example.org:8972", "tls@10.0.0.1:8972", other, OtherAddresses::Trusted);
        assert_eq!(at("tcp@10.0.0.2:1").await.as_deref(), Some("tls@chat.example.org:8972 at [10.0.0.2:1]"));
        assert_eq!(at("ws@10.0.0.2:1").await, None);
        let at = |other| opened("wss@chat.example.org:443/rpc", "wss@10.0.0.1:443", other, OtherAddresses::Trusted);
        assert_eq!(at("ws@10.0.0.2:1/x").await.as_deref(), Some("wss@chat.example.org:443/rpc at [10.0.0.2:1]"));
        assert_eq!(at("tcp@10.0.0.2:1").await, None);
    }
}
