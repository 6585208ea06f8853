//! Options for listening and connecting.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;

use super::AnySocket;
#[cfg(feature = "tls")]
use super::tls::{TlsClient, TlsServer};
#[cfg(feature = "ws")]
use super::{HttpFront, ws::WsOrigins};

/// How a [`Listener`](super::Listener) listens.
///
/// ```
/// use std::time::Duration;
///
/// use bothways::{
///     Server,
///     transport::{ListenOptions, TcpOptions},
/// };
///
/// let tcp = TcpOptions::default().keepalive(Some(Duration::from_secs(60)));
/// let options = ListenOptions::default().backlog(4096).tcp(tcp);
/// let server = Server::builder().listen_options(options).build();
/// ```
#[derive(Clone, Debug)]
pub struct ListenOptions {
    pub(super) backlog: u32,
    pub(super) reuse_port: bool,
    pub(super) tcp: TcpOptions,
    #[cfg(feature = "tls")]
    pub(super) tls: Option<TlsServer>,
    #[cfg(all(feature = "tls", feature = "ws"))]
    pub(super) plain_beside_tls: bool,
    #[cfg(feature = "ws")]
    pub(super) http: Option<Front>,
    #[cfg(feature = "ws")]
    pub(super) one_port: bool,
    #[cfg(feature = "ws")]
    pub(super) ws_origins: WsOrigins,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self {
            backlog: 4096,
            reuse_port: false,
            tcp: TcpOptions::default(),
            #[cfg(feature = "tls")]
            tls: None,
            #[cfg(all(feature = "tls", feature = "ws"))]
            plain_beside_tls: false,
            #[cfg(feature = "ws")]
            http: None,
            #[cfg(feature = "ws")]
            one_port: false,
            #[cfg(feature = "ws")]
            ws_origins: WsOrigins::same_host(),
        }
    }
}

impl ListenOptions {
    /// Most connections that wait to be accepted. Default 4096: when a server comes back, its clients
    /// come back together. The system may have a lower bound of its own (`net.core.somaxconn`).
    pub fn backlog(mut self, connections: u32) -> Self {
        self.backlog = connections;
        self
    }

    /// Lets several listeners share one TCP port; the system spreads connections over them. Default
    /// false: a second server on a port is mostly a mistake. Without effect where there is no
    /// `SO_REUSEPORT`, and on networks other than TCP.
    pub fn reuse_port(mut self, reuse: bool) -> Self {
        self.reuse_port = reuse;
        self
    }

    /// TLS on `tls`, `tcp`, `tcp4` and `tcp6`; on other networks it has no effect, as in rpcx. Default: none, so that a
    /// server cannot listen on `tls`.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: TlsServer) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Opens one port for everything, on `tcp`, `tcp4`, `tcp6` and `tls`: rpcx, WebSocket, and rpcx behind CONNECT, the
    /// latter two at the path `/_rpcx_`. What a client speaks is known by its first bytes. Other HTTP goes to the
    /// [front](Self::http), or gets a 404. Default: false, and a client that does not speak rpcx is closed.
    ///
    /// A client is seen when it has said something, for which it has
    /// [`Timeouts::first_frame`](crate::server::Timeouts::first_frame): one that only waits to be greeted needs a port
    /// without this. With [`Self::tls`] everything goes inside TLS.
    #[cfg(feature = "ws")]
    pub fn one_port(mut self, everything: bool) -> Self {
        self.one_port = everything;
        self
    }

    /// Takes clients without TLS too where [`Self::tls`] is set: on one port for everything, and on `ws` and `http`.
    /// Default: false, so that nobody sends a token in the clear.
    #[cfg(all(feature = "tls", feature = "ws"))]
    pub fn plain_beside_tls(mut self, plain: bool) -> Self {
        self.plain_beside_tls = plain;
        self
    }

    /// From which web pages connections by WebSocket are taken. Default: those of the host that they connect to.
    #[cfg(feature = "ws")]
    pub fn ws_origins(mut self, origins: WsOrigins) -> Self {
        self.ws_origins = origins;
        self
    }

    /// HTTP that is none of ours goes to this front; and so there is [one port](Self::one_port) for everything. On `ws`
    /// and `http` the front gets what is not for them. Default: none.
    #[cfg(feature = "ws")]
    pub fn http(mut self, front: impl HttpFront) -> Self {
        self.http = Some(Front(Arc::new(front)));
        self
    }

    /// As these, with this front.
    #[cfg(feature = "ws")]
    pub(crate) fn http_shared(mut self, front: Arc<dyn HttpFront>) -> Self {
        self.http = Some(Front(front));
        self
    }

    /// As these, without a front.
    pub(crate) fn without_front(&self) -> Self {
        #[cfg(feature = "ws")]
        return Self { http: None, ..self.clone() };
        #[cfg(not(feature = "ws"))]
        self.clone()
    }

    /// True if what is listened on over TCP speaks TLS.
    pub(crate) fn has_tls(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.tls.is_some();
        #[cfg(not(feature = "tls"))]
        false
    }

    /// How the system keeps TCP connections.
    pub fn tcp(mut self, tcp: TcpOptions) -> Self {
        self.tcp = tcp;
        self
    }
}

/// The application's.
#[cfg(feature = "ws")]
#[derive(Clone)]
pub(super) struct Front(pub(super) Arc<dyn HttpFront>);

#[cfg(feature = "ws")]
impl std::fmt::Debug for Front {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HttpFront")
    }
}

/// How [`connect`](super::connect()) connects.
///
/// ```
/// use std::time::Duration;
///
/// use bothways::{ClientOptions, transport::ConnectOptions};
///
/// let connect = ConnectOptions::default().connect_timeout(Duration::from_secs(2));
/// let options = ClientOptions::new().connect_options(connect);
/// ```
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    pub(super) connect_timeout: Duration,
    /// What the application has connected already; taken by the first try.
    pub(super) over: Option<Arc<Mutex<Option<AnySocket>>>>,
    /// In place of those that the name of the address has.
    pub(super) places: Option<Arc<[SocketAddr]>>,
    pub(super) tcp: TcpOptions,
    #[cfg(feature = "tls")]
    pub(super) tls: Option<TlsClient>,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            over: None,
            places: None,
            tcp: TcpOptions::default(),
            #[cfg(feature = "tls")]
            tls: None,
        }
    }
}

impl ConnectOptions {
    /// Connects there, over TCP, in place of where the name of the address leads. All else is as the address says: who is
    /// trusted there, and the path.
    pub(crate) fn at(mut self, places: Arc<[SocketAddr]>) -> Self {
        self.places = Some(places);
        self
    }

    #[cfg(test)]
    pub(crate) fn places(&self) -> Option<&[SocketAddr]> {
        self.places.as_deref()
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// The time for looking up the name, for connecting, and for the TLS handshake together; and as long again for the
    /// server's answer to the Hello. Default 5 s. A lost first packet of TCP is sent again after 1 s and after 3 s: rpcx's own default of 1 s
    /// gives up before the first repetition.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    /// Do not connect, but go over this socket: one of a kind of your own, or any stream of tokio's
    /// ([`AnySocket::from_async`]). The address is only a name then, and there is no second connection: a client should
    /// not reconnect. Default: none.
    pub fn over(mut self, socket: impl Into<AnySocket>) -> Self {
        self.over = Some(Arc::new(Mutex::new(Some(socket.into()))));
        self
    }

    /// TLS on `tls`, `tcp`, `tcp4` and `tcp6`; on other networks it has no effect. Default: none, and `tls`
    /// cannot be connected to.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: TlsClient) -> Self {
        self.tls = Some(tls);
        self
    }

    /// How the system keeps TCP connections.
    pub fn tcp(mut self, tcp: TcpOptions) -> Self {
        self.tcp = tcp;
        self
    }
}

/// How the system keeps a TCP connection. What it refuses is left out.
#[derive(Clone, Debug)]
pub struct TcpOptions {
    /// `None`: as is usual at this end.
    pub(super) keepalive: Option<Option<Duration>>,
    pub(super) user_timeout: Option<Duration>,
    pub(super) unsent_bytes_max: Option<u32>,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self { keepalive: None, user_timeout: Some(Duration::from_secs(30)), unsent_bytes_max: Some(16 * 1024) }
    }
}

impl TcpOptions {
    /// How long a connection is silent before the system asks whether the peer is still there. Default 1 minute at a
    /// client, as in rpcx, and 3 minutes at a server, as rpcx means to have it; `None` leaves the socket as the system
    /// makes it.
    ///
    /// Source: Go rpcx `client/client.go`, `DefaultOption.TCPKeepAlivePeriod`; `server/server.go`, `Server.serveConn`,
    /// and `server/option.go`, `WithTCPKeepAlivePeriod`.
    pub fn keepalive(mut self, after: Option<Duration>) -> Self {
        self.keepalive = Some(after);
        self
    }

    /// How long sent bytes may wait for the peer's acknowledgement, or for room at the peer, before
    /// the system gives the connection up. Default 30 s: a network's short failure passes, a pulled
    /// cable does not hold a session for the 15 minutes of Linux's own default. `None`: the system's
    /// default. Only Linux and Android have the option (`TCP_USER_TIMEOUT`).
    pub fn user_timeout(mut self, limit: Option<Duration>) -> Self {
        self.user_timeout = limit;
        self
    }

    /// Most bytes that the system takes from us beyond what it has sent. Default 16 KiB: with the
    /// system's own default some MiB of a stalled client hide in its socket, and each bound on a
    /// session's queue acts too late. `None`: the system's default. Only Linux and Android have the
    /// option (`TCP_NOTSENT_LOWAT`).
    pub fn unsent_bytes_max(mut self, bytes: Option<u32>) -> Self {
        self.unsent_bytes_max = bytes;
        self
    }
}
