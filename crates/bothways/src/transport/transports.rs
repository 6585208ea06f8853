//! Transports by the names of their networks: those built in, and those of an application.

use std::{
    fmt, io,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{runtime::Handle, time::timeout_at};

#[cfg(unix)]
use super::unix;
use super::{Accepted, Address, AnySocket, ConnectOptions, ListenOptions, Listener, address::Network, memory, tcp};
use crate::{
    clock::after,
    error::{AddressError, ConnectError, ServeError},
    guard::{Guarded, Panicked},
    reply::BoxFuture,
};

/// A way for bytes to travel, chosen by the network of an address: that of `xyz@somewhere` is `xyz`.
///
/// A client gets one by [`ClientOptions::transport`](crate::ClientOptions::transport) or
/// [`XClientOptions::transport`](crate::XClientOptions::transport), a server by
/// [`ServerBuilder::transport`](crate::ServerBuilder::transport). Its addresses are then good wherever `tcp@…` is: to
/// listen, to connect, to come back, and in the list of a discovery. One that has the network of a built-in transport
/// takes its place; of several for one network the last one added counts.
///
/// One that wraps a built-in transport, as a WebSocket wraps TCP, calls [`connect`](super::connect()) and
/// [`Listener::bind`] with the options that it is given.
///
/// ```
/// use std::{io, task::{Context, Poll}};
///
/// use bothways::{
///     Client, ClientOptions, Server,
///     transport::{
///         self, Accepted, Address, AnySocket, BoxFuture, ConnectOptions, Listen, ListenOptions, Listener, Transport,
///     },
/// };
///
/// /// `local@name` is `memory@name`.
/// struct Local;
///
/// fn below(address: &Address) -> Address {
///     format!("memory@{}", address.target()).parse().expect("a name")
/// }
///
/// impl Transport for Local {
///     fn networks(&self) -> &[&str] {
///         &["local"]
///     }
///
///     fn connect(&self, address: &Address, options: &ConnectOptions) -> BoxFuture<io::Result<AnySocket>> {
///         let (below, options) = (below(address), options.clone());
///         Box::pin(async move { transport::connect(&below, &options).await.map_err(io::Error::other) })
///     }
///
///     fn bind(&self, address: &Address, options: &ListenOptions) -> BoxFuture<io::Result<Box<dyn Listen>>> {
///         let (local_address, below, options) = (address.to_string(), below(address), options.clone());
///         Box::pin(async move {
///             let below = Listener::bind(&below, &options).await.map_err(io::Error::other)?;
///             Ok(Box::new(LocalListener { local_address, below }) as Box<dyn Listen>)
///         })
///     }
/// }
///
/// struct LocalListener {
///     local_address: String,
///     below: Listener,
/// }
///
/// impl Listen for LocalListener {
///     fn local_address(&self) -> String {
///         self.local_address.clone()
///     }
///
///     fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
///         self.below.poll_accept(cx)
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let server = Server::builder()
///     .function("Text", "Upper", |text: String| async move { Ok::<_, String>(text.to_uppercase()) })
///     .transport(Local)
///     .build();
/// let _listening = server.listen("local@chat").await?;
/// let client = Client::connect("local@chat", ClientOptions::new().transport(Local)).await?;
/// assert_eq!(client.call::<String>("Text", "Upper", "abc").await?, "ABC");
/// # Ok(()) }
/// ```
pub trait Transport: Send + Sync + 'static {
    /// The names of its networks: letters, digits, `+`, `-` and `.`. Asked once, when it is added.
    fn networks(&self) -> &[&str];

    /// Connects. It has [`ConnectOptions::connect_timeout`], after which the future is dropped. A panic of it counts as
    /// an error. Default: nobody can connect by this transport.
    fn connect(&self, address: &Address, options: &ConnectOptions) -> BoxFuture<io::Result<AnySocket>> {
        _ = options;
        unsupported(format!("nobody can connect by the network `{}`", address.network()))
    }

    /// Listens. Default: nobody can listen by this transport.
    fn bind(&self, address: &Address, options: &ListenOptions) -> BoxFuture<io::Result<Box<dyn Listen>>> {
        _ = options;
        unsupported(format!("nobody can listen on the network `{}`", address.network()))
    }
}

fn unsupported<T: Send + 'static>(why: String) -> BoxFuture<io::Result<T>> {
    Box::pin(std::future::ready(Err(io::Error::new(io::ErrorKind::Unsupported, why))))
}

/// What a [`Transport`] listens by. Dropping it ends the listening; its address is free then.
pub trait Listen: Send + Sync + 'static {
    /// Where clients find it, in rpcx's form, `network@address`: with the real port, if it was to choose one. Asked once.
    fn local_address(&self) -> String;

    /// Waits for the next connection. What takes the client's time, such as a handshake, is no part of this, or one
    /// client holds up all others: it goes into [`Accepted::after`].
    ///
    /// Polled by one task at a time, and the last one is to be woken. After an error, and after a panic, the server
    /// goes on, with a pause of 5 ms to 1 s unless the error is that of one connection (`ConnectionAborted`,
    /// `ConnectionReset`, `ConnectionRefused`, `Interrupted`). One that has no further connections stays pending.
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>>;
}

/// The transports of one client or server: its own, and those built in.
#[derive(Clone, Default)]
pub(crate) struct Transports(Vec<(Box<str>, Arc<dyn Transport>)>);

impl Transports {
    /// Those built in, and no others.
    pub(super) const BUILT_IN: Self = Self(Vec::new());

    pub(crate) fn add(&mut self, transport: impl Transport) {
        let transport: Arc<dyn Transport> = Arc::new(transport);
        for network in transport.networks() {
            self.0.push(((*network).into(), Arc::clone(&transport)));
        }
    }

    /// Those count more than its own.
    pub(crate) fn add_all(&mut self, others: &Self) {
        self.0.extend(others.0.iter().cloned());
    }

    /// An address of one of them.
    pub(crate) fn address(&self, text: &str) -> Result<Address, AddressError> {
        let address = text.parse()?;
        self.of(&address).map(|_| address)
    }

    /// An address of one of them that a client can connect to.
    pub(crate) fn place(&self, text: &str) -> Result<Address, AddressError> {
        let address = self.address(text)?;
        self.check_connects(&address)?;
        Ok(address)
    }

    fn check_connects(&self, address: &Address) -> Result<(), AddressError> {
        if *address.kind() == Network::ReusePort && !self.is_own(address) {
            let why = "`reuseport` is for servers that share a port; a client connects to `tcp@`";
            return Err(AddressError::Malformed { address: address.to_string(), why });
        }
        Ok(())
    }

    /// True if the transport of this network is one of the application's.
    pub(crate) fn is_own(&self, address: &Address) -> bool {
        self.own(address).is_some()
    }

    fn own(&self, address: &Address) -> Option<&dyn Transport> {
        let (_, transport) = self.0.iter().rev().find(|(network, _)| **network == *address.network())?;
        Some(&**transport)
    }

    fn of(&self, address: &Address) -> Result<&dyn Transport, AddressError> {
        if let Some(own) = self.own(address) {
            return Ok(own);
        }
        match address.kind() {
            Network::Tcp | Network::Tcp4 | Network::Tcp6 | Network::Tls | Network::ReusePort => Ok(&tcp::Tcp),
            #[cfg(feature = "ws")]
            Network::Ws | Network::Wss | Network::Http => Ok(&tcp::Tcp),
            #[cfg(unix)]
            Network::Unix => Ok(&unix::Unix),
            Network::Memory => Ok(&memory::Memory),
            _ => Err(address.unknown(self.known())),
        }
    }

    /// Their networks, for people.
    fn known(&self) -> String {
        let own = self.0.iter().map(|(network, _)| &**network);
        own.map(str::to_owned).chain([Network::known()]).collect::<Vec<_>>().join(", ")
    }

    /// See [`connect`](super::connect()).
    pub(crate) async fn connect(&self, address: &Address, options: &ConnectOptions) -> Result<AnySocket, ConnectError> {
        Handle::try_current().map_err(|_| ConnectError::NoRuntime)?;
        let failed = |error| ConnectError::Io { address: address.to_string(), error: Arc::new(error) };
        if let Some(socket) = &options.over {
            let is_over = || io::Error::new(io::ErrorKind::NotConnected, "the socket that was brought is over");
            return socket.lock().take().ok_or_else(is_over).map_err(failed);
        }

        let transport = self.of(address)?;
        self.check_connects(address)?;
        let limit = options.connect_timeout;
        let connecting =
            Guarded::begin(|| transport.connect(address, options)).map_err(|panic| failed(told(&panic)))?;
        match timeout_at(after(limit), connecting).await {
            Ok(outcome) => outcome.unwrap_or_else(|panic| Err(told(&panic))).map_err(failed),
            Err(_) => Err(ConnectError::TimedOut { address: address.to_string(), after: limit }),
        }
    }

    /// See [`Listener::bind`].
    pub(crate) async fn bind(&self, address: &Address, options: &ListenOptions) -> Result<Listener, ServeError> {
        Handle::try_current().map_err(|_| ServeError::NoRuntime)?;
        let transport = self.of(address)?;
        if matches!(address.kind(), Network::Tls | Network::Wss) && !self.is_own(address) && !options.has_tls() {
            let why = "it has no certificate (`ListenOptions::tls`)".to_owned();
            return Err(ServeError::Tls { address: address.to_string(), why });
        }

        let failed = |error| ServeError::Listen { address: address.to_string(), error };
        let binding = Guarded::begin(|| transport.bind(address, options)).map_err(|panic| failed(told(&panic)))?;
        match binding.await.unwrap_or_else(|panic| Err(told(&panic))) {
            Ok(listening) => Ok(Listener::of(listening)),
            Err(error) => Err(failed(error)),
        }
    }
}

/// A panic of a transport as its error.
pub(super) fn told(panic: &Panicked) -> io::Error {
    io::Error::other(format!("the transport panicked: {}", panic.text()))
}

impl fmt::Debug for Transports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(network, _)| network)).finish()
    }
}
