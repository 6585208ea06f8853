//! Who the client of a request is, where proxies stand between it and the front.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use http::{HeaderMap, HeaderName};

/// What proxies say of those whose requests they pass on: the last one is who spoke to the last proxy.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Most proxies in a row that are believed.
const PROXIES_MAX: usize = 16;

/// An IP address, or all that begin alike: `192.0.2.7`, `10.0.0.0/8`, `2001:db8::/32`.
///
/// ```
/// use bothways_http::Network;
///
/// let network: Network = "10.0.0.0/8".parse()?;
/// assert!(network.contains("10.1.2.3".parse()?) && !network.contains("11.1.2.3".parse()?));
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

/// A text that is no [`Network`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NetworkError(String);

impl fmt::Display for NetworkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is neither an IP address nor a network such as 10.0.0.0/8", self.0)
    }
}

impl std::error::Error for NetworkError {}

impl Network {
    /// True of its addresses; an IPv4 address that is written as one of IPv6 is one of IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                begin_alike(u128::from(own.to_bits()) << 96, u128::from(other.to_bits()) << 96, self.bits)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => begin_alike(own.to_bits(), other.to_bits(), self.bits),
            _ => false,
        }
    }
}

fn begin_alike(one: u128, other: u128, bits: u8) -> bool {
    bits == 0 || (one ^ other) >> (128 - u32::from(bits)) == 0
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let parsed = || {
            let (address, bits) = match text.split_once('/') {
                None => (text.parse::<IpAddr>().ok()?, None),
                Some((address, bits)) => (address.parse().ok()?, Some(bits.parse::<u8>().ok()?)),
            };
            let most = if address.is_ipv4() { 32 } else { 128 };
            let bits = bits.unwrap_or(most);
            if most < bits {
                return None;
            }
            // An IPv4 address that is written as one of IPv6 is one of IPv4, here as in `contains`: of fewer than those 96
            // bits that all such have, it would be of both.
            match address.to_canonical() {
                IpAddr::V4(canonical) if address.is_ipv6() => {
                    Some(Self { address: canonical.into(), bits: bits.checked_sub(96)? })
                }
                _ => Some(Self { address, bits }),
            }
        };
        parsed().ok_or_else(|| NetworkError(text.to_owned()))
    }
}

/// The address of a peer in rpcx's form, if it has one.
pub(crate) fn ip_of(peer: &str) -> Option<IpAddr> {
    let (_, address) = peer.split_once('@')?;
    Some(address.parse::<SocketAddr>().ok()?.ip())
}

/// True of a peer that stands for many.
pub(crate) fn is_proxy(trusted: &[Network], peer: &str) -> bool {
    !trusted.is_empty() && ip_of(peer).is_some_and(|ip| trusted.iter().any(|network| network.contains(ip)))
}

/// The client for whom a proxy asks: who stands behind the last of those that are trusted, as these say. What comes from
/// anybody else says nothing.
pub(crate) fn client_of(trusted: &[Network], peer: &Arc<str>, headers: &HeaderMap) -> Arc<str> {
    if !is_proxy(trusted, peer) {
        return Arc::clone(peer);
    }
    // A proxy adds its part to the line that a client sent: what that has in it, of whatever bytes, says nothing of the part.
    let parts =
        headers.get_all(FORWARDED_FOR).iter().rev().flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    let mut client = None;
    for said in parts.take(PROXIES_MAX) {
        let Some(address) = std::str::from_utf8(said).ok().and_then(|said| address(said.trim())) else { break };
        client = Some(address);
        if !trusted.iter().any(|network| network.contains(address.ip())) {
            break;
        }
    }
    client.map_or_else(|| Arc::clone(peer), |address| format!("http@{address}").into())
}

/// An address as proxies write it: with a port or without.
fn address(text: &str) -> Option<SocketAddr> {
    let ip = || text.trim_start_matches('[').trim_end_matches(']').parse().ok();
    text.parse().ok().or_else(|| Some(SocketAddr::new(ip()?, 0)))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_network_is_an_address_or_what_begins_alike() {
        let has = |network: &str, address: &str| {
            let network: Network = network.parse().expect(network);
            network.contains(address.parse().expect(address))
        };
        assert!(
            has("127.0.0.1", "127.0.0.1") && has("127.0.0.1", "::ffff:127.0.0.1") && !has("127.0.0.1", "127.0.0.2")
        );
        assert!(has("10.0.0.0/8", "10.255.0.1") && !has("10.0.0.0/8", "11.0.0.0") && !has("10.0.0.0/8", "a00::1"));
        assert!(has("0.0.0.0/0", "9.9.9.9") && !has("0.0.0.0/0", "2001:db8::1") && has("::/0", "2001:db8::1"));
        assert!(has("2001:db8::/32", "2001:db8:1::1") && !has("2001:db8::/32", "2001:db9::1"));
        // A server that listens on IPv6 and IPv4 sees such addresses, so that they are written down so.
        for mapped in ["::ffff:10.0.0.0/104", "::ffff:a00:0/104"] {
            assert!(
                has(mapped, "10.255.0.1") && has(mapped, "::ffff:10.9.9.9") && !has(mapped, "11.0.0.0"),
                "{mapped}"
            );
        }
        assert!(has("::ffff:127.0.0.1", "127.0.0.1") && !has("::ffff:127.0.0.1", "127.0.0.2"));
        assert!(has("::ffff:0.0.0.0/96", "9.9.9.9") && !has("::ffff:0.0.0.0/96", "2001:db8::1"));
        for wrong in [
            "",
            "::ffff:10.0.0.0/95",
            "::ffff:10.0.0.0/129",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/-1",
            "localhost",
            "10.0.0/8",
            "10.0.0.0/",
        ] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }

    /// Only proxies that are named are believed, and of what they say only what the last of them has seen itself.
    #[test]
    fn a_client_cannot_say_who_it_is() {
        let trusted: Vec<Network> = ["10.0.0.0/8", "::1"].iter().map(|text| text.parse().expect("it is one")).collect();
        let client = |trusted: &[Network], peer: &str, said: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in said {
                let bytes: Vec<u8> = line.chars().map(|c| u8::try_from(c).expect("a byte")).collect();
                headers.append(FORWARDED_FOR, HeaderValue::from_bytes(&bytes).expect("no byte ends it"));
            }
            client_of(trusted, &peer.into(), &headers).to_string()
        };
        for (peer, said, expected) in [
            ("http@192.0.2.1:5", &["1.1.1.1"][..], "http@192.0.2.1:5"),
            ("http@10.0.0.1:5", &[], "http@10.0.0.1:5"),
            ("http@10.0.0.1:5", &["198.51.100.7"], "http@198.51.100.7:0"),
            ("http@[::1]:5", &["1.1.1.1, 198.51.100.7:99"], "http@198.51.100.7:99"),
            ("http@10.0.0.1:5", &["1.1.1.1, 198.51.100.7 , 10.9.9.9"], "http@198.51.100.7:0"),
            ("http@10.0.0.1:5", &["1.1.1.1", "198.51.100.7", "10.9.9.9,10.0.0.3"], "http@198.51.100.7:0"),
            ("http@10.0.0.1:5", &["[2001:db8::7]"], "http@[2001:db8::7]:0"),
            ("http@10.0.0.1:5", &["1.1.1.1, nonsense"], "http@10.0.0.1:5"),
            ("http@10.0.0.1:5", &["1.1.1.1, nonsense, 10.0.0.4"], "http@10.0.0.4:0"),
            ("http@10.0.0.1:5", &["\u{ff}, 198.51.100.7"], "http@198.51.100.7:0"),
            ("http@10.0.0.1:5", &["1.1.1.1\u{ff}", "\u{80},\u{c3}, 198.51.100.7 , 10.9.9.9"], "http@198.51.100.7:0"),
            ("http@10.0.0.1:5", &["1.1.1.1, 198.51.100.7\u{ff}"], "http@10.0.0.1:5"),
            ("unknown", &["1.1.1.1"], "unknown"),
        ] {
            assert_eq!(client(&trusted, peer, said), expected, "{peer} {said:?}");
        }
        assert_eq!(client(&[], "http@10.0.0.1:5", &["1.1.1.1"]), "http@10.0.0.1:5", "nobody is trusted unless named");
    }
}
