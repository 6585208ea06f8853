//! Which connections without a token count as one peer, by their addresses.

use std::net::IpAddr;

/// An address without its port, of IPv6 its network, and each other kind of socket by its listener. All of this machine's
/// own addresses are one peer: a program on it has 16 million of them.
pub(crate) fn group(peer: &str) -> String {
    let (network, target) = peer.split_once('@').unwrap_or(("", peer));
    let Some((host, _)) = target.rsplit_once(':') else {
        return target.rsplit_once('#').map_or(target, |(listener, _)| listener).to_owned();
    };
    match host.trim_matches(['[', ']']).parse().map(|ip: IpAddr| ip.to_canonical()) {
        Ok(ip) if ip.is_loopback() => "localhost".to_owned(),
        Ok(IpAddr::V6(ip)) => ip.segments()[..4].iter().map(|part| format!("{part:x}:")).collect(),
        Ok(IpAddr::V4(ip)) => ip.to_string(),
        Err(_) => format!("{network}@{target}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Another port, or another address of the same IPv6 network, is the same peer.
    #[test]
    fn a_peer_is_a_host_or_a_network() {
        for (one, other, is_same) in [
            ("tcp@10.0.0.1:1", "tcp@10.0.0.1:2", true),
            ("tcp@10.0.0.1:1", "tls@[::ffff:10.0.0.1]:2", true),
            ("tcp@10.0.0.1:1", "tcp@10.0.0.2:1", false),
            ("tcp@[2001:db8:1:2::1]:1", "tcp@[2001:db8:1:2:3::9]:7", true),
            ("tcp@[2001:db8:1:2::1]:1", "tcp@[2001:db8:1:3::1]:1", false),
            ("tcp@127.0.0.1:1", "tcp@127.255.3.2:1", true),
            ("tcp@127.0.0.1:1", "tls@[::1]:2", true),
            ("tcp@127.0.0.1:1", "tcp@[::ffff:127.0.0.9]:2", true),
            ("tcp@127.0.0.1:1", "tcp@128.0.0.1:1", false),
            ("tcp@[::1]:1", "tcp@[::2]:1", false),
            ("unix@/run/a#1", "unix@/run/a#2", true),
            ("memory@a#1", "memory@b#1", false),
        ] {
            assert_eq!(group(one) == group(other), is_same, "{one} {other}");
        }
    }
}
