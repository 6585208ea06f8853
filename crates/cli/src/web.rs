//! HTTP beside the server: `bothways serve --http`.

use std::{net::SocketAddr, str::FromStr};

use bothways::Server;
use bothways_http::{Cors, Front, FrontOptions, HttpListening};
use bothways_metrics::{Calls, Metrics};

use crate::{args::ServeArgs, failure::Failure};

/// Where HTTP is served; a port alone is one of this machine.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct HttpAddress(SocketAddr);

impl HttpAddress {
    pub(crate) fn socket(self) -> SocketAddr {
        self.0
    }
}

impl FromStr for HttpAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const HOW: &str = "write a port, or an IP and a port, such as 8080 or 0.0.0.0:8080";
        let text = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        let text = text.replace("localhost:", "127.0.0.1:");
        match text.strip_prefix(':').unwrap_or(&text).parse::<u16>() {
            Ok(port) => Ok(Self(([127, 0, 0, 1], port).into())),
            Err(_) => text.parse().map(Self).map_err(|_| HOW),
        }
    }
}

/// Serves HTTP for as long as the answer is kept.
pub(crate) async fn listen(
    args: &ServeArgs,
    address: HttpAddress,
    server: &Server,
    calls: Calls,
) -> Result<HttpListening, Failure> {
    let mut options = for_this_machine(FrontOptions::new(), address);
    if address.0.ip().is_loopback() || args.http_debug {
        options = options.debug(true).metrics(move |server| Metrics::new(server).with_calls(&calls));
    }
    if !args.origins.is_empty() {
        options = options.cors(Cors::origins(&args.origins));
    }
    let listening = Front::new(server, options).listen(&address.0.to_string()).await;
    listening.map_err(|error| {
        let failure = Failure::usage(format!("cannot serve HTTP at {}: {error}", address.0));
        failure.hint("--http ADDR chooses where; port 0 is a free one")
    })
}

/// At an address of this machine alone, with its names alone: a page whose name was made to point here is none of them.
pub(crate) fn for_this_machine(options: FrontOptions, address: HttpAddress) -> FrontOptions {
    match address.0.ip().is_loopback() {
        true => options.hosts(["localhost".to_owned(), "127.0.0.1".to_owned(), host_of(address.0)]),
        false => options,
    }
}

/// As it stands in a URL.
fn host_of(address: SocketAddr) -> String {
    match address {
        SocketAddr::V4(address) => address.ip().to_string(),
        SocketAddr::V6(address) => format!("[{}]", address.ip()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_of_this_machine() {
        let of = |text: &str| HttpAddress::from_str(text).map(|address| address.0.to_string());
        for (text, address) in [
            ("8080", "127.0.0.1:8080"),
            (":8080", "127.0.0.1:8080"),
            ("localhost:0", "127.0.0.1:0"),
            ("http://127.0.0.1:8080/", "127.0.0.1:8080"),
            ("0.0.0.0:80", "0.0.0.0:80"),
            ("[::1]:80", "[::1]:80"),
        ] {
            assert_eq!(of(text).as_deref(), Ok(address), "{text}");
        }
        for wrong in ["", "x", "127.0.0.1", "99999", "example.org:80"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
