//! From which web pages a server takes connections.

/// Whose pages may connect by WebSocket. A browser lets any page connect anywhere, and says in `Origin` whose page it is;
/// programs that are no browsers say what they like there, and so pass whatever this says.
///
/// ```
/// use bothways::transport::{ListenOptions, ws::WsOrigins};
///
/// let options = ListenOptions::default().ws_origins(WsOrigins::these(["https://shop.example.org", "https://*.example.net"]));
/// let options = ListenOptions::default().ws_origins(WsOrigins::same_host().and("none"));
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
#[must_use]
pub struct WsOrigins(Vec<Box<str>>);

/// The server's own host.
const SAME: &str = "same";
/// No header at all.
const NONE: &str = "none";
const ANY: &str = "*";
/// The server's own host, if that is an address, or `localhost`.
const ADDRESS: &str = "address";
/// Before the name of a host: the server's own host, if that is its name.
const HOST: &str = "host:";

impl Default for WsOrigins {
    fn default() -> Self {
        Self::same_host()
    }
}

impl WsOrigins {
    /// Pages of the host, and port, that the client has connected to, as the `Host` of its request says. The default.
    /// Clients that name no origin are refused, as Go's server refuses them; Go's own client names the server's address.
    ///
    /// A page of any site can have that host if its owner lets its name point to this server (DNS rebinding). So over
    /// loopback, also where the server listens at all addresses, this takes an IP address, `localhost` and the name in the server's own address for hosts, and no
    /// other: behind a proxy on the same machine, name the [origins](Self::these) of its pages, or its
    /// [hosts](crate::transport::HttpFront::serves_host). A server without authentication on another network names the
    /// origins that it takes too.
    pub fn same_host() -> Self {
        Self(vec![SAME.into()])
    }

    /// As [`Self::same_host`], if that host is an IP address or `localhost`: no site can let these point here.
    pub(crate) fn same_address() -> Self {
        Self(vec![ADDRESS.into()])
    }

    /// As these on a loopback address: the server's own host is an address, or has the name by which it listens.
    pub(in crate::transport) fn on_loopback(&self, name: Option<&str>) -> Self {
        let Self(origins) = self.clone();
        let strict = origins.into_iter().map(|origin| if *origin == *SAME { ADDRESS.into() } else { origin }).collect();
        let takes_own = self.0.iter().any(|origin| **origin == *SAME);
        name.filter(|_| takes_own).into_iter().fold(Self(strict), Self::and_host)
    }

    /// Also if that host has this name.
    pub(crate) fn and_host(self, name: impl AsRef<str>) -> Self {
        let name = name.as_ref();
        self.and(format!("{HOST}{name}"))
    }

    /// Pages of these origins and no others: `https://example.org`, or with a port that is not the usual one
    /// `http://localhost:3000`; `https://*.example.org` for all below that name. Four words stand for others: `same` for the server's own host,
    /// `none` for clients that name no origin, `null` for pages that have none, such as files, and `*` for all of these.
    pub fn these<I: IntoIterator<Item: AsRef<str>>>(origins: I) -> Self {
        Self(origins.into_iter().map(|origin| origin.as_ref().to_ascii_lowercase().into()).collect())
    }

    /// This one too.
    pub fn and(mut self, origin: impl AsRef<str>) -> Self {
        self.0.push(origin.as_ref().to_ascii_lowercase().into());
        self
    }

    /// Whether a client that names this origin and this host may connect.
    pub(super) fn take(&self, origin: Option<&str>, host: &str) -> bool {
        let origin = origin.map(str::to_ascii_lowercase);
        self.0.iter().any(|taken| match (&**taken, &origin) {
            (ANY, _) | (NONE, None) => true,
            (_, None) => false,
            (SAME, Some(origin)) => is_of_host(origin, &host.to_ascii_lowercase()),
            (ADDRESS, Some(origin)) => is_of_host(origin, &host.to_ascii_lowercase()) && is_address(name_of(host)),
            (taken, Some(origin)) if taken.starts_with(HOST) => {
                let is_named = name_of(host).eq_ignore_ascii_case(&taken[HOST.len()..]);
                is_named && is_of_host(origin, &host.to_ascii_lowercase())
            }
            (taken, Some(origin)) => is_like(taken, origin),
        })
    }
}

/// The port that a scheme has if none is named need not be named.
fn without_usual_port(origin: &str) -> &str {
    let usual = match origin.split_once("://") {
        Some(("https" | "wss", _)) => ":443",
        _ => ":80",
    };
    origin.strip_suffix(usual).unwrap_or(origin)
}

/// Behind a proxy that speaks TLS the server does not know which scheme, and so which usual port, a host without a port has.
fn is_of_host(origin: &str, host: &str) -> bool {
    let Some((_, place)) = without_usual_port(origin).split_once("://") else { return false };
    let host = host.strip_suffix(":443").or(host.strip_suffix(":80")).unwrap_or(host);
    !host.is_empty() && place == host
}

/// A host without its port.
fn name_of(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    }
}

fn is_address(name: &str) -> bool {
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok()
}

fn is_like(pattern: &str, origin: &str) -> bool {
    let (pattern, origin) = (without_usual_port(pattern), without_usual_port(origin));
    match pattern.split_once("://*.") {
        None => pattern == origin,
        Some((scheme, domain)) => origin
            .split_once("://")
            .filter(|(of_origin, _)| *of_origin == scheme)
            .and_then(|(_, host)| host.strip_suffix(domain))
            .is_some_and(|name| 1 < name.len() && name.ends_with('.')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_of_the_same_host_may_connect_by_default() {
        let origins = WsOrigins::default();
        for (origin, host, taken) in [
            ("http://127.0.0.1:8972", "127.0.0.1:8972", true),
            ("http://Example.org", "example.ORG", true),
            ("http://example.org", "example.org:80", true),
            ("https://example.org", "example.org", true),
            ("https://example.org:443", "example.org", true),
            ("https://example.org", "example.org:443", true),
            ("http://[::1]:8972", "[::1]:8972", true),
            ("http://example.org:8080", "example.org", false),
            ("http://example.org", "example.org:8080", false),
            ("http://example.org.evil.net", "example.org", false),
            ("http://evil.net", "example.org", false),
            ("null", "example.org", false),
            ("null", "null", false),
            ("", "", false),
            ("http://", "", false),
            ("example.org", "example.org", false),
        ] {
            assert_eq!(origins.take(Some(origin), host), taken, "{origin} at {host}");
        }
        assert!(!origins.take(None, "example.org"));
    }

    /// A page whose owner lets its name point to this machine has that name for its host.
    #[test]
    fn a_name_that_anybody_can_have_is_no_address() {
        let origins = WsOrigins::same_address().and_host("admin.example.org");
        for (host, taken) in [
            ("127.0.0.1:8973", true),
            ("[::1]:8973", true),
            ("localhost:8973", true),
            ("LocalHost", true),
            ("admin.example.org:8973", true),
            ("evil.net:8973", false),
            ("127.0.0.1.evil.net", false),
            ("localhost.evil.net", false),
            ("xadmin.example.org", false),
            ("[evil.net]", false),
        ] {
            assert_eq!(origins.take(Some(&format!("http://{host}")), host), taken, "{host}");
            assert!(!origins.take(Some("http://evil.net"), host) || host == "evil.net", "{host}");
            assert!(!origins.take(None, host));
        }
        assert!(!WsOrigins::same_address().take(Some("http://admin.example.org"), "admin.example.org"));
    }

    /// Where only this machine is to come from, the default takes no name that anybody can have.
    #[test]
    fn on_loopback_a_host_is_an_address_or_named() {
        let origins = WsOrigins::default().and("https://shop.example.org").on_loopback(Some("devbox"));
        for (origin, host, taken) in [
            ("http://127.0.0.1:8972", "127.0.0.1:8972", true),
            ("http://localhost:8972", "localhost:8972", true),
            ("http://devbox:8972", "devbox:8972", true),
            ("https://shop.example.org", "shop.example.org", true),
            ("http://evil.net:8972", "evil.net:8972", false),
            ("http://evil.net:8972", "devbox:8972", false),
            ("http://shop.example.org", "shop.example.org", false),
        ] {
            assert_eq!(origins.take(Some(origin), host), taken, "{origin} at {host}");
        }
        let listed = WsOrigins::these(["https://shop.example.org"]).on_loopback(Some("devbox"));
        assert!(!listed.take(Some("http://devbox"), "devbox"), "what is listed is all");
        assert!(WsOrigins::these(["*"]).on_loopback(None).take(Some("http://evil.net"), "evil.net"));
    }

    #[test]
    fn those_that_are_named_and_no_others_are_taken() {
        let these = |origins: &[&str], origin: Option<&str>| WsOrigins::these(origins).take(origin, "here.org");
        let listed = ["https://shop.example.org", "https://*.example.net", "http://localhost:3000"];
        for (origin, taken) in [
            ("https://shop.example.org", true),
            ("https://SHOP.example.org:443", true),
            ("http://shop.example.org", false),
            ("https://a.b.example.net", true),
            ("https://example.net", false),
            ("https://.example.net", false),
            ("https://evilexample.net", false),
            ("https://a.example.net.evil.org", false),
            ("http://localhost:3000", true),
            ("http://localhost", false),
            ("http://here.org", false),
        ] {
            assert_eq!(these(&listed, Some(origin)), taken, "{origin}");
        }
        assert!(!these(&listed, None) && !these(&[], None) && !these(&[], Some("null")));
        assert!(these(&["none"], None) && !these(&["none"], Some("null")));
        assert!(these(&["null"], Some("null")) && !these(&["null"], None));
        assert!(these(&["*"], None) && these(&["*"], Some("http://any.org")));
        assert!(WsOrigins::same_host().and("none").take(Some("http://here.org"), "here.org"));
    }
}
