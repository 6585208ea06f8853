//! Transports of the application's own: on both sides, wherever an address is named.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bothways::{
    Client, ClientOptions, ConnectError, ConnectionEvent, FailMode, MultipleServersDiscovery, SelectMode, Server,
    XClient, XClientOptions,
    error::ServeError,
    server::{AdminOptions, Listening},
    transport::{
        self, Accepted, Address, AnySocket, BoxFuture, ConnectOptions, Listen, ListenOptions, Listener, Transport,
    },
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::mpsc,
};

use crate::support::{call, connections, echoing, soon, until};

/// Names of this network, and pipes between both ends, which begin with a byte that says that all is well.
#[derive(Clone, Default)]
struct Xyz {
    names: Arc<Mutex<HashMap<String, mpsc::UnboundedSender<DuplexStream>>>>,
    /// The network; `xyz` if it is empty.
    network: Option<&'static str>,
    first_byte: u8,
}

impl Transport for Xyz {
    fn networks(&self) -> &[&str] {
        self.network.as_ref().map_or(&["xyz"], std::slice::from_ref)
    }

    fn connect(&self, address: &Address, _: &ConnectOptions) -> BoxFuture<io::Result<AnySocket>> {
        let name = self.names.lock().get(address.target()).cloned();
        let (address, first_byte) = (address.to_string(), self.first_byte);
        Box::pin(async move {
            let (mut here, there) = duplex(4096);
            here.write_u8(first_byte).await?;
            name.and_then(|name| name.send(there).ok()).ok_or(io::ErrorKind::ConnectionRefused)?;
            Ok(AnySocket::from_async(here, address))
        })
    }

    fn bind(&self, address: &Address, _: &ListenOptions) -> BoxFuture<io::Result<Box<dyn Listen>>> {
        let (sender, incoming) = mpsc::unbounded_channel();
        self.names.lock().insert(address.target().to_owned(), sender);
        let listening = XyzListener { xyz: self.clone(), address: address.clone(), incoming: incoming.into() };
        Box::pin(async { Ok(Box::new(listening) as Box<dyn Listen>) })
    }
}

struct XyzListener {
    xyz: Xyz,
    address: Address,
    incoming: Mutex<mpsc::UnboundedReceiver<DuplexStream>>,
}

impl Listen for XyzListener {
    fn local_address(&self) -> String {
        self.address.to_string()
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        let peer = format!("{}#1", self.address);
        self.incoming.lock().poll_recv(cx).map(|stream| {
            let mut stream = stream.expect("the table has the sender");
            Ok(Accepted::after(peer.clone(), async move {
                match stream.read_u8().await? {
                    0 => Ok(AnySocket::from_async(stream, peer)),
                    1 => panic!("in a handshake"),
                    _ => Err(io::ErrorKind::InvalidData.into()),
                }
            }))
        })
    }
}

impl Drop for XyzListener {
    fn drop(&mut self) {
        self.xyz.names.lock().remove(self.address.target());
    }
}

async fn listen(xyz: &Xyz, address: &str) -> (Server, Listening) {
    let server = echoing().transport(xyz.clone()).build();
    let listening = server.listen(address).await.expect("it listens");
    (server, listening)
}

#[tokio::test(start_paused = true)]
async fn an_own_transport_listens_connects_and_comes_back() {
    let xyz = Xyz::default();
    let (server, listening) = listen(&xyz, "xyz@a place").await;
    assert_eq!(listening.address(), "xyz@a place");
    let options = ClientOptions::new().transport(xyz.clone());
    let client = soon(Client::connect("xyz@a place", options)).await.expect("connects");
    assert_eq!(call(&client, "Echo", "1").await.expect("answered"), "1");
    assert_eq!(connections(&server, 1).await[0].peer_address(), "xyz@a place#1");

    let mut events = client.events();
    server.shutdown(Duration::ZERO).await;
    assert!(xyz.names.lock().is_empty(), "its address is free");
    tokio::time::sleep(Duration::from_secs(60)).await;
    let (_server, _listening) = listen(&xyz, "xyz@a place").await;
    let restored = async { while !matches!(events.next().await, Some(ConnectionEvent::Restored { .. })) {} };
    soon(restored).await;
    assert_eq!(call(&client, "Echo", "2").await.expect("answered"), "2");
}

/// Entries of a discovery name its addresses beside those of built-in transports. The transport is one of all clients,
/// whichever option was set first.
#[tokio::test(start_paused = true)]
async fn a_discovery_lists_addresses_of_an_own_transport() {
    let xyz = Xyz::default();
    let (one, _one) = listen(&xyz, "xyz@one").await;
    let (two, _two) = listen(&xyz, "xyz@two").await;
    let (three, _three) = listen(&xyz, "memory@three of own transports").await;
    let discovery = MultipleServersDiscovery::new(["xyz@one", "xyz@two", "memory@three of own transports"]);
    let of_client = ClientOptions::new().transport(xyz.clone());
    let then_all = XClientOptions::new().transport(xyz.clone()).client(ClientOptions::new());
    for options in [of_client.into(), then_all] {
        let (mode, select) = (FailMode::Failfast, SelectMode::RoundRobin);
        let xclient = XClient::new("T", mode, select, discovery.clone(), options);
        for _ in 0..3 {
            soon(xclient.call::<()>("Nowhere", &())).await.expect_err("the method is not there");
        }
        for server in [&one, &two, &three] {
            connections(server, 1).await;
        }
        drop(xclient);
        until(|| [&one, &two, &three].iter().all(|server| server.stats().connections == 0)).await;
    }
}

/// Both sides say it, and name the networks that they have: at once where the address is a text, and otherwise when it
/// is connected to or listened on.
#[tokio::test]
async fn an_unknown_network_is_named_with_those_known() {
    let xyz = Xyz::default();
    let is_named = |text: &str, own: &str| {
        let begin = format!("unknown network `quic` in the address `quic@h:1`: known are {own}tcp, tcp4, tcp6, ");
        assert!(text.starts_with(&begin) && text.contains("memory"), "{text}");
    };
    let options = ClientOptions::new().transport(xyz.clone());
    let error = Client::connect("quic@h:1", options).await.expect_err("no such network");
    assert!(matches!(error, ConnectError::Address(_)), "{error}");
    is_named(&error.to_string(), "xyz, ");
    let server = Server::builder().transport(xyz).admin(AdminOptions::token("t").expect("it is not empty")).build();
    for error in [server.listen("quic@h:1").await.err(), server.listen_admin("quic@h:1").await.err()] {
        is_named(&error.expect("no such network").to_string(), "xyz, ");
    }
    let address = "quic@h:1".parse().expect("somebody may have it");
    let error = transport::connect(&address, &ConnectOptions::default()).await.expect_err("not built in");
    is_named(&error.to_string(), "");
    let error = Listener::bind(&address, &ListenOptions::default()).await.expect_err("not built in");
    is_named(&error.to_string(), "");
}

#[tokio::test(start_paused = true)]
async fn an_own_transport_takes_the_place_of_a_built_in_one() {
    let tcp = Xyz { network: Some("tcp"), ..Xyz::default() };
    let (_server, listening) = listen(&tcp, "tcp@a.example:1").await;
    assert_eq!(listening.address(), "tcp@a.example:1");
    let options = ClientOptions::new().transport(Xyz { network: Some("tcp"), ..Xyz::default() }).transport(tcp);
    let client = soon(Client::connect("a.example:1", options)).await.expect("the last one added counts");
    assert_eq!(call(&client, "Echo", "1").await.expect("answered"), "1");
}

/// The token of operators goes where the library knows who can read it.
#[tokio::test]
async fn the_admin_service_takes_no_own_transport() {
    let token = || AdminOptions::token("t").expect("it is not empty");
    for (network, address) in [("xyz", "xyz@a"), ("memory", "memory@a")] {
        let own = Xyz { network: Some(network), ..Xyz::default() };
        let server = Server::builder().transport(own).admin(token()).build();
        let error = server.listen_admin(address).await.expect_err("it is not built in");
        assert!(matches!(error, ServeError::Admin { .. }), "{error}");
    }
}

/// A handshake that fails, or panics, is that of one client.
#[tokio::test(start_paused = true)]
async fn a_handshake_that_panics_costs_nobody_else_anything() {
    let xyz = Xyz::default();
    let (server, _listening) = listen(&xyz, "xyz@h").await;
    for first_byte in [1, 2, 1] {
        let options = ClientOptions::new().transport(Xyz { first_byte, ..xyz.clone() });
        soon(Client::connect("xyz@h", options)).await.expect_err("it is not let in");
    }
    assert_eq!(server.stats().connections_refused, 3);
    let client = soon(Client::connect("xyz@h", ClientOptions::new().transport(xyz))).await.expect("connects");
    assert_eq!(call(&client, "Echo", "1").await.expect("answered"), "1");
}

/// One that panics where it is told to.
struct Panics(&'static str);

impl Transport for Panics {
    fn networks(&self) -> &[&str] {
        &["panics"]
    }

    fn connect(&self, _: &Address, _: &ConnectOptions) -> BoxFuture<io::Result<AnySocket>> {
        assert_ne!(self.0, "at once");
        let at = self.0;
        Box::pin(async move { panic!("{at}") })
    }

    fn bind(&self, address: &Address, _: &ListenOptions) -> BoxFuture<io::Result<Box<dyn Listen>>> {
        assert_ne!(self.0, "at once");
        let (at, address) = (self.0, address.to_string());
        Box::pin(async move {
            assert_ne!(at, "later");
            let below: Address = "memory@panics".parse().expect("an address");
            let below = Listener::bind(&below, &ListenOptions::default()).await.map_err(io::Error::other)?;
            Ok(Box::new(PanicsTwice { address, below, panics: 2.into() }) as Box<dyn Listen>)
        })
    }
}

struct PanicsTwice {
    address: String,
    below: Listener,
    panics: AtomicUsize,
}

impl Listen for PanicsTwice {
    fn local_address(&self) -> String {
        self.address.clone()
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        let left = self.panics.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        assert!(left.is_err(), "{left:?}");
        self.below.poll_accept(cx)
    }
}

/// Its panic is an error of the one who connects or listens; a server goes on accepting.
#[tokio::test(start_paused = true)]
async fn a_panic_of_a_transport_is_an_error() {
    for at in ["at once", "later"] {
        let options = ClientOptions::new().transport(Panics(at));
        let error = soon(Client::connect("panics@x", options)).await.expect_err("it panics");
        assert!(matches!(error, ConnectError::Io { .. }) && error.to_string().contains("panicked"), "{error}");
        let server = Server::builder().transport(Panics(at)).build();
        let error = server.listen("panics@x").await.expect_err("it panics");
        assert!(matches!(error, ServeError::Listen { .. }) && error.to_string().contains("panicked"), "{error}");
    }
    let server = echoing().transport(Panics("when it accepts")).build();
    let _listening = server.listen("panics@x").await.expect("it listens");
    let client = soon(Client::connect("memory@panics", ClientOptions::new())).await.expect("connects");
    assert_eq!(call(&client, "Echo", "1").await.expect("answered"), "1");
}

/// One that does neither.
struct Name;

impl Transport for Name {
    fn networks(&self) -> &[&str] {
        &["name"]
    }
}

#[tokio::test]
async fn a_transport_that_cannot_connect_or_listen_says_so() {
    let unsupported = |error: &io::Error| error.kind() == io::ErrorKind::Unsupported;
    let error = Client::connect("name@x", ClientOptions::new().transport(Name)).await.expect_err("it cannot");
    assert!(matches!(&error, ConnectError::Io { error, .. } if unsupported(error)), "{error}");
    let error = Server::builder().transport(Name).build().listen("name@x").await.expect_err("it cannot");
    assert!(matches!(&error, ServeError::Listen { error, .. } if unsupported(error)), "{error}");
}
