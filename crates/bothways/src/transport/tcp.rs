//! TCP: the socket, how it is tuned, listening, connecting.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    task::{Context, Poll},
    time::Duration,
};

use socket2::{Domain, Protocol, SockRef, TcpKeepalive, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    time::Instant,
};

#[cfg(any(feature = "tls", feature = "ws"))]
use super::Socket;
#[cfg(feature = "ws")]
use super::opening::{Opening, begin};
use super::{
    Accepted, Address, AnySocket, ConnectOptions, Listen, ListenOptions, OsSocket, TcpOptions, Transport,
    address::Network,
};
use crate::{clock::after, reply::BoxFuture};

/// A TCP connection. An IPv4 peer of a listener for both is shown as IPv4.
pub type TcpSocket = OsSocket<TcpStream, SocketAddr>;

impl OsSocket<TcpStream, SocketAddr> {
    /// Takes over a connection that was made elsewhere, as it is.
    ///
    /// # Errors
    /// The connection is over, so that the system no longer knows its peer.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        let peer = stream.peer_addr()?;
        Ok(with_peer(stream, peer))
    }
}

#[cfg(feature = "ws")]
impl super::opening::Peek for TcpSocket {
    fn poll_peek(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_peek(cx, &mut tokio::io::ReadBuf::new(buf))
    }

    fn local_ip(&self) -> Option<IpAddr> {
        self.stream().local_addr().ok().map(|at| at.ip())
    }

    fn under_ws(ws: super::ws::WsSocket<Self>) -> AnySocket {
        AnySocket::Ws(Box::new(ws))
    }
}

fn with_peer(stream: TcpStream, peer: SocketAddr) -> TcpSocket {
    TcpSocket::of(stream, canonical(peer))
}

/// An IPv4 address in IPv6 clothes as what it is.
fn canonical(mut address: SocketAddr) -> SocketAddr {
    if let IpAddr::V4(ip) = address.ip().to_canonical() {
        address.set_ip(ip.into());
    }
    address
}

/// What Linux takes at most, in whole seconds: nine hours.
const KEEPALIVE_MAX: Duration = Duration::from_secs(32_767);

/// What Linux takes at most, in whole milliseconds: 24 days. More would be none at all.
const USER_TIMEOUT_MAX: Duration = Duration::from_millis(i32::MAX as u64);

/// After how long a silence the system asks, where the options say nothing: at a server, and at a client.
const SERVER_KEEPALIVE: Duration = Duration::from_secs(180);
const CLIENT_KEEPALIVE: Duration = Duration::from_secs(60);

/// All of them help, and none is needed: what the system refuses is left.
impl TcpOptions {
    fn apply(&self, socket: &SockRef<'_>, usual_keepalive: Duration) {
        let noted = |option: &str, result: io::Result<()>| {
            if let Err(error) = result {
                tracing::debug!(option, %error, "the system refused an option of a TCP socket");
            }
        };

        noted("TCP_NODELAY", socket.set_tcp_nodelay(true));
        if let Some(after) = self.keepalive.unwrap_or(Some(usual_keepalive)) {
            // The questions that follow an unanswered one come faster than the first.
            let after = after.clamp(Duration::from_secs(1), KEEPALIVE_MAX);
            let every = after.min(Duration::from_secs(15));
            noted("SO_KEEPALIVE", socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(after).with_interval(every)));
        }

        #[cfg(any(target_os = "android", target_os = "linux"))]
        {
            if let Some(limit) = self.user_timeout {
                let limit = limit.clamp(Duration::from_millis(1), USER_TIMEOUT_MAX);
                noted("TCP_USER_TIMEOUT", socket.set_tcp_user_timeout(Some(limit)));
            }
            if let Some(bytes) = self.unsent_bytes_max {
                noted("TCP_NOTSENT_LOWAT", socket.set_tcp_notsent_lowat(bytes));
            }
        }
    }
}

/// The networks of TCP: with and without TLS, WebSocket or CONNECT over it.
pub(super) struct Tcp;

impl Transport for Tcp {
    fn networks(&self) -> &[&str] {
        &["tcp", "tcp4", "tcp6", "tls", "reuseport", "ws", "wss", "http"]
    }

    fn connect(&self, address: &Address, options: &ConnectOptions) -> BoxFuture<io::Result<AnySocket>> {
        let (address, options) = (address.clone(), options.clone());
        Box::pin(async move { open(&address, &options).await })
    }

    fn bind(&self, address: &Address, options: &ListenOptions) -> BoxFuture<io::Result<Box<dyn Listen>>> {
        let (address, options) = (address.clone(), options.clone());
        Box::pin(async move { Ok(Box::new(Listening::bind(&address, &options).await?) as Box<dyn Listen>) })
    }
}

/// With TLS if the options have it.
async fn open(address: &Address, options: &ConnectOptions) -> io::Result<AnySocket> {
    let deadline = after(options.connect_timeout);
    #[cfg(feature = "tls")]
    match &options.tls {
        None if matches!(address.kind(), Network::Tls | Network::Wss) => {
            const NO_TLS: &str = "`tls@` and `wss@` need to know whom to trust (`ConnectOptions::tls`)";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, NO_TLS));
        }
        None => {}
        Some(tls) => {
            let host = address.host().filter(|host| !host.is_empty()).unwrap_or("localhost");
            let then = |socket| async move { begin(tls.handshake(socket, host).await?, address, true).await };
            return connect(address, options, deadline, then).await;
        }
    }
    connect(address, options, deadline, |socket| begin(socket, address, false)).await
}

/// Nothing is said first: no network here wants it.
#[cfg(not(feature = "ws"))]
async fn begin(socket: impl Into<AnySocket>, _: &Address, _: bool) -> io::Result<AnySocket> {
    Ok(socket.into())
}

/// Listens on one TCP port.
#[derive(Debug)]
pub(super) struct Listening {
    listener: TcpListener,
    address: String,
    options: ListenOptions,
    /// What the first bytes of a client decide, if anything.
    #[cfg(feature = "ws")]
    opening: Option<std::sync::Arc<Opening>>,
}

impl Listening {
    pub(super) async fn bind(address: &Address, options: &ListenOptions) -> io::Result<Self> {
        let mut failed = None;
        for place in places_to_listen(address).await? {
            match listen(place, address.kind(), options) {
                Ok(listener) => {
                    let local = listener.local_addr()?;
                    return Ok(Self {
                        listener,
                        address: address.with_port(local.port()).to_string(),
                        options: options.clone(),
                        #[cfg(feature = "ws")]
                        opening: Opening::of(Some(address), options),
                    });
                }
                Err(error) => _ = failed.get_or_insert(error),
            }
        }
        Err(failed.unwrap_or_else(no_address))
    }

    /// Goes on with a socket that listens already.
    pub(super) fn adopt(listener: std::net::TcpListener, options: &ListenOptions) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        options.tcp.apply(&SockRef::from(&listener), SERVER_KEEPALIVE);
        let listener = TcpListener::from_std(listener)?;
        let network = if options.has_tls() { "tls" } else { "tcp" };
        let local = listener.local_addr()?;
        let address = format!("{network}@{local}");
        Ok(Self {
            listener,
            address,
            options: options.clone(),
            #[cfg(feature = "ws")]
            opening: Opening::of(None, options),
        })
    }

    fn poll_socket(&self, cx: &mut Context<'_>) -> Poll<io::Result<TcpSocket>> {
        self.listener.poll_accept(cx).map_ok(|(stream, peer)| {
            if !INHERITS {
                self.options.tcp.apply(&SockRef::from(&stream), SERVER_KEEPALIVE);
            }
            with_peer(stream, peer)
        })
    }
}

impl Listen for Listening {
    fn local_address(&self) -> String {
        self.address.clone()
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        self.poll_socket(cx).map_ok(|socket| {
            #[cfg(feature = "ws")]
            if let Some(opening) = self.opening.clone() {
                return Accepted::opening(socket.peer(), opening.open(socket));
            }
            #[cfg(feature = "tls")]
            if let Some(tls) = self.options.tls.clone() {
                return Accepted::after(socket.peer(), async move { Ok(tls.handshake(socket).await?.into()) });
            }
            Accepted::new(socket)
        })
    }
}

/// True where an accepted socket has the options of the one that listens. Several system calls for each
/// connection are spared.
const INHERITS: bool = cfg!(any(target_os = "android", target_os = "linux"));

async fn places_to_listen(address: &Address) -> io::Result<Vec<SocketAddr>> {
    let port = address.port().unwrap_or_default();
    let everywhere: &[IpAddr] = match address.kind() {
        Network::Tcp4 => &[IpAddr::V4(Ipv4Addr::UNSPECIFIED)],
        Network::Tcp6 => &[IpAddr::V6(Ipv6Addr::UNSPECIFIED)],
        // The second is for machines without IPv6.
        _ => &[IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::UNSPECIFIED)],
    };
    match address.host() {
        None | Some("") => Ok(everywhere.iter().map(|ip| SocketAddr::new(*ip, port)).collect()),
        Some(_) => resolve(address).await,
    }
}

fn listen(place: SocketAddr, network: &Network, options: &ListenOptions) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(Domain::for_address(place), Type::STREAM, Some(Protocol::TCP))?;
    if place.is_ipv6() {
        socket.set_only_v6(*network == Network::Tcp6)?;
    }
    // A server that starts again takes its port at once. Elsewhere the option means something else.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    #[cfg(all(unix, not(any(target_os = "illumos", target_os = "solaris", target_os = "cygwin"))))]
    if options.reuse_port || *network == Network::ReusePort {
        socket.set_reuse_port(true)?;
    }
    options.tcp.apply(&SockRef::from(&socket), SERVER_KEEPALIVE);
    socket.set_nonblocking(true)?;
    socket.bind(&place.into())?;
    socket.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
    TcpListener::from_std(socket.into())
}

/// Connects to the first of the name's addresses that answers, and goes on to `then`, such as a handshake. Each gets an
/// equal share of the time that is left, for both, so that one that does not answer leaves time for the others. The
/// last has no share of its own: it is the caller who ends the wait at the deadline.
async fn connect<T, F: Future<Output = io::Result<T>>>(
    address: &Address,
    options: &ConnectOptions,
    deadline: Instant,
    then: impl Fn(TcpSocket) -> F,
) -> io::Result<T> {
    let places = match &options.places {
        Some(places) => places.to_vec(),
        None => resolve(address).await?,
    };
    first_of(places, &options.tcp, deadline, then).await
}

/// See [`connect`].
async fn first_of<T, F: Future<Output = io::Result<T>>>(
    mut places: Vec<SocketAddr>,
    tcp: &TcpOptions,
    deadline: Instant,
    then: impl Fn(TcpSocket) -> F,
) -> io::Result<T> {
    let last = places.pop().ok_or_else(no_address)?;
    let mut failed = None;
    let reach = async |place| then(connect_to(place, tcp).await?).await;
    let mut left = u32::try_from(places.len()).unwrap_or(u32::MAX - 1) + 1;

    for place in places {
        let share = deadline.saturating_duration_since(Instant::now()) / left;
        left -= 1;
        match tokio::time::timeout(share, reach(place)).await {
            Ok(Ok(socket)) => return Ok(socket),
            Ok(Err(error)) => _ = failed.get_or_insert(error),
            Err(_) => _ = failed.get_or_insert(io::ErrorKind::TimedOut.into()),
        }
    }
    reach(last).await.map_err(|error| failed.unwrap_or(error))
}

async fn connect_to(place: SocketAddr, tcp: &TcpOptions) -> io::Result<TcpSocket> {
    let stream = not_to_itself(TcpStream::connect(place).await?)?;
    tcp.apply(&SockRef::from(&stream), CLIENT_KEEPALIVE);
    Ok(with_peer(stream, place))
}

/// Nobody listens, and the system chose the port that is connected to as the own one: TCP lets a socket connect to
/// itself. Ended at once, or it would keep its server's port.
fn not_to_itself(stream: TcpStream) -> io::Result<TcpStream> {
    if stream.local_addr()? != stream.peer_addr()? {
        return Ok(stream);
    }
    // Without this the port stays taken for a minute.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    Err(io::ErrorKind::ConnectionRefused.into())
}

/// The addresses of the host, in the order in which the system gives them. No host is this machine.
pub(super) async fn resolve(address: &Address) -> io::Result<Vec<SocketAddr>> {
    let (host, port) = (address.host().unwrap_or_default(), address.port().unwrap_or_default());
    let host = if host.is_empty() { "localhost" } else { host };
    let all = tokio::net::lookup_host((host, port)).await?;
    Ok(all
        .filter(|place| match address.kind() {
            Network::Tcp4 => place.is_ipv4(),
            Network::Tcp6 => place.is_ipv6(),
            _ => true,
        })
        .collect())
}

fn no_address() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the host has no address of this network")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::transport::{Socket, check};

    fn address(text: &str) -> Address {
        text.parse().expect("an address")
    }

    async fn accept(listening: &Listening) -> io::Result<TcpSocket> {
        std::future::poll_fn(|cx| listening.poll_socket(cx)).await
    }

    async fn connect(place: &Address) -> io::Result<TcpSocket> {
        let deadline = Instant::now() + Duration::from_secs(60);
        super::connect(place, &ConnectOptions::default(), deadline, |socket| std::future::ready(Ok(socket))).await
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_socket_that_is_connected_to_itself_is_refused_and_gives_its_port_back() {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
        let place = socket.local_addr().expect("bound");
        let stream = socket.connect(place).await.expect("to itself");
        let error = not_to_itself(stream).expect_err("nobody listens");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        std::net::TcpListener::bind(place).expect("the port is free");
    }

    async fn pair_at(listen: &str) -> (TcpSocket, TcpSocket) {
        let place = address(listen);
        let listening = Listening::bind(&place, &ListenOptions::default()).await.expect("listens");
        let place = place.with_port(listening.listener.local_addr().expect("bound").port());
        let (client, server) = tokio::join!(connect(&place), accept(&listening));
        (client.expect("connects"), server.expect("accepts"))
    }

    /// What comes after connecting, a handshake, has the share of its address too: one that hangs there leaves time
    /// for the next.
    #[tokio::test]
    async fn a_handshake_that_hangs_leaves_time_for_the_next_address() {
        let (here, options) = (address("tcp@127.0.0.1:0"), ListenOptions::default());
        let hangs = Listening::bind(&here, &options).await.expect("listens");
        let greets = Listening::bind(&here, &options).await.expect("listens");
        let (hangs, greets) =
            (hangs.listener.local_addr().expect("bound"), greets.listener.local_addr().expect("bound"));
        // The first has a tenth of a second of it.
        let deadline = Instant::now() + Duration::from_millis(200);
        let tried = parking_lot::Mutex::new(Vec::new());
        let tuning = TcpOptions::default();
        let connected = first_of(vec![hangs, greets], &tuning, deadline, |socket| {
            let place: SocketAddr = socket.peer()[4..].parse().expect("behind `tcp@`");
            tried.lock().push(place);
            async move {
                if place == hangs {
                    std::future::pending::<()>().await;
                }
                Ok(place)
            }
        });
        let place = tokio::time::timeout(Duration::from_secs(60), connected).await.expect("in time");
        assert_eq!(place.expect("the second answers"), greets);
        assert_eq!(*tried.lock(), [hangs, greets]);
    }

    async fn pair() -> (TcpSocket, TcpSocket) {
        pair_at("tcp@127.0.0.1:0").await
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn bytes_arrive_in_order_both_ways(plans in check::plans()) {
            check::run(async {
                let (client, server) = pair().await;
                check::exchange(client, server, plans).await;
            });
        }
    }

    #[tokio::test]
    async fn a_full_socket_blocks_and_wakes_its_task_when_there_is_room() {
        let (client, server) = pair().await;
        check::fill_then_drain(client, server).await;
    }

    #[tokio::test]
    async fn an_end_is_the_end_of_one_direction_only() {
        let (client, server) = pair().await;
        check::half_close(client, server).await;
    }

    #[tokio::test]
    async fn a_dropped_socket_is_the_end_of_the_stream() {
        let (client, server) = pair().await;
        drop(client);
        assert_eq!(check::read(&server, 16).await.expect("no error"), b"");
    }

    #[tokio::test]
    async fn peers_are_named_in_rpcx_form() {
        let (client, server) = pair().await;
        let local = |socket: &TcpSocket| format!("tcp@{}", socket.stream().local_addr().expect("open"));
        assert_eq!((client.peer(), server.peer()), (local(&server), local(&client)));
    }

    /// `:0` takes IPv4 and IPv6; an IPv4 peer looks like one.
    #[tokio::test]
    async fn no_host_is_every_address_of_this_machine() {
        let listening = Listening::bind(&address(":0"), &ListenOptions::default()).await.expect("listens");
        let port = listening.listener.local_addr().expect("bound").port();
        let place = address(&format!("127.0.0.1:{port}"));
        let (client, server) = tokio::join!(connect(&place), accept(&listening));
        assert_eq!(client.expect("connects").peer(), place.to_string());
        assert!(server.expect("accepts").peer().starts_with("tcp@127."));
        let place = address(&format!(":{port}"));
        let (client, _server) = tokio::join!(connect(&place), accept(&listening));
        client.expect("no host is this machine for a client");
    }

    #[tokio::test]
    async fn tcp4_is_for_ipv4_only() {
        let (client, _server) = pair_at("tcp4@localhost:0").await;
        assert!(client.peer().starts_with("tcp@127."));
    }

    #[tokio::test]
    async fn sockets_at_both_ends_are_tuned() {
        let (client, server) = pair().await;
        for (socket, keepalive) in [(&client, 60), (&server, 180)] {
            let socket = SockRef::from(socket.stream());
            assert!(socket.tcp_nodelay().expect("known"));
            assert!(socket.keepalive().expect("known"));
            #[cfg(target_os = "linux")]
            {
                assert_eq!(socket.tcp_keepalive_time().expect("known"), Duration::from_secs(keepalive));
                assert_eq!(socket.tcp_user_timeout().expect("known"), Some(Duration::from_secs(30)));
                assert_eq!(socket.tcp_notsent_lowat().expect("known"), 16 * 1024);
            }
            _ = keepalive;
        }
    }

    #[tokio::test]
    async fn a_port_in_use_is_an_error_unless_it_is_shared() {
        let (alone, shared) = (ListenOptions::default(), ListenOptions::default().reuse_port(true));
        for (options, works) in [(alone, false), (shared, cfg!(target_os = "linux"))] {
            let first = Listening::bind(&address("127.0.0.1:0"), &options).await.expect("listens");
            let second = Listening::bind(&Address::from(first.listener.local_addr().expect("bound")), &options).await;
            match second {
                Ok(_) => assert!(works),
                Err(error) => assert!(!works && error.kind() == io::ErrorKind::AddrInUse, "{error}"),
            }
        }
    }

    #[tokio::test]
    async fn nobody_listening_is_an_error_at_once() {
        let bound = tokio::net::TcpSocket::new_v4().expect("a socket");
        bound.bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a port is free");
        let place = Address::from(bound.local_addr().expect("bound"));
        let error = connect(&place).await.expect_err("nobody listens");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
