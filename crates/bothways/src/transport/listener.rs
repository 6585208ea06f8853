//! Listens: from an address to accepted sockets.

use std::{
    fmt,
    future::poll_fn,
    io,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::task::coop;

#[cfg(unix)]
use super::unix;
use super::{
    Address, AnySocket, BoundListener, Listen, ListenOptions, Socket,
    accept::Failures,
    tcp,
    transports::{Transports, told},
};
use crate::{
    error::ServeError,
    guard::{self, Guarded},
    reply::BoxFuture,
};

/// Listens on one address until it is dropped.
pub struct Listener {
    listening: Box<dyn Listen>,
    local_address: String,
    /// Whose turn it is to accept, where several tasks do.
    turn: tokio::sync::Mutex<()>,
}

impl Listener {
    /// Starts to listen by a built-in transport.
    ///
    /// # Errors
    /// - [`ServeError::Address`]: the network is not built in.
    /// - [`ServeError::Listen`]: the address is in use, may not be used, or is not one of this machine.
    /// - [`ServeError::Tls`]: the network is `tls`, and the options bring no certificate.
    /// - [`ServeError::NoRuntime`]: sockets need one.
    pub async fn bind(address: &Address, options: &ListenOptions) -> Result<Self, ServeError> {
        Transports::BUILT_IN.bind(address, options).await
    }

    /// Takes over a socket that listens already. Of the options those of TCP, which Linux passes on to the sockets that
    /// are accepted, and TLS have an effect.
    ///
    /// # Errors
    /// [`ServeError::Listen`]: the system does not take it as one that listens. [`ServeError::NoRuntime`].
    pub fn from_bound(bound: BoundListener, options: &ListenOptions) -> Result<Self, ServeError> {
        tokio::runtime::Handle::try_current().map_err(|_| ServeError::NoRuntime)?;
        let failed = |error| ServeError::Listen { address: "a socket that was passed on".to_owned(), error };
        match bound {
            BoundListener::Tcp(listener) => {
                tcp::Listening::adopt(listener, options).map(|listening| Self::of(Box::new(listening)))
            }
            #[cfg(unix)]
            BoundListener::Unix(listener) => {
                unix::Listening::adopt(listener).map(|listening| Self::of(Box::new(listening)))
            }
        }
        .map_err(failed)
    }

    pub(super) fn of(listening: Box<dyn Listen>) -> Self {
        let local_address = listening.local_address();
        Self { listening, local_address, turn: tokio::sync::Mutex::default() }
    }

    /// The address in rpcx's form, with the port that the system chose if it was to choose one.
    pub fn local_address(&self) -> &str {
        &self.local_address
    }

    /// Waits for the next connection. Failures to accept, such as too many open files, are reported to
    /// `tracing` and tried again after a pause of 5 ms to 1 s: they never end a server.
    ///
    /// Dropping the future loses no connection. Several tasks may accept.
    pub async fn accept(&self) -> Accepted {
        let mut failures = Failures::none();
        loop {
            let accepted = {
                let _turn = self.turn.lock().await;
                poll_fn(|cx| self.poll_accept(cx)).await
            };
            match accepted {
                Ok(accepted) => return accepted,
                Err(error) => failures.pause_after(error, &self.local_address).await,
            }
        }
    }

    /// As [`Self::accept`], once, for one task: of several that poll, the last is woken.
    ///
    /// # Errors
    /// What the system said. The next try may be good.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        // One that never has to wait leaves others their turn all the same.
        let turn = ready!(coop::poll_proceed(cx));
        let accepted = guard::call(|| self.listening.poll_accept(cx));
        let accepted = accepted.unwrap_or_else(|panic| Poll::Ready(Err(told(&panic))));
        if accepted.is_ready() {
            turn.made_progress();
        }
        accepted
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Listener").field(&self.local_address).finish()
    }
}

/// A listener that the holder of any clone can close at once: its address is free when [`Self::close`] returns, also
/// while a task accepts from it.
#[derive(Clone, Debug)]
pub(crate) struct Closable(Arc<Mutex<Option<Listener>>>);

impl Closable {
    pub(crate) fn new(listener: Listener) -> Self {
        Self(Arc::new(Mutex::new(Some(listener))))
    }

    /// Listens no more.
    pub(crate) fn close(&self) {
        // The socket is closed outside the lock.
        let listener = self.0.lock().take();
        drop(listener);
    }

    fn is_closed(&self) -> bool {
        self.0.lock().is_none()
    }

    /// As [`Listener::accept`], for one task; `None` once it is closed, which wakes nobody.
    pub(crate) async fn accept(&self) -> Option<Accepted> {
        let mut failures = Failures::none();
        loop {
            let accepted = poll_fn(|cx| match &*self.0.lock() {
                Some(listener) => listener.poll_accept(cx).map(Some),
                None => Poll::Ready(None),
            });
            match accepted.await? {
                Ok(accepted) => return Some(accepted),
                Err(error) => {
                    let address = self.0.lock().as_ref()?.local_address.clone();
                    failures.pause_after(error, &address).await;
                }
            }
        }
    }
}

/// The listeners of one server, until it closes them.
#[derive(Debug, Default)]
pub(crate) struct Listeners(Mutex<Vec<Closable>>);

impl Listeners {
    /// Keeps one more. If these were to be closed meanwhile, it is: `is_over` is asked when it can be found.
    ///
    /// # Errors
    /// [`ServeError::ShutDown`].
    pub(crate) fn keep(&self, listener: &Closable, is_over: impl FnOnce() -> bool) -> Result<(), ServeError> {
        let mut all = self.0.lock();
        all.retain(|listener| !listener.is_closed());
        all.push(listener.clone());
        drop(all);
        if is_over() {
            listener.close();
            return Err(ServeError::ShutDown);
        }
        Ok(())
    }

    pub(crate) fn close(&self) {
        std::mem::take(&mut *self.0.lock()).iter().for_each(Closable::close);
    }
}

/// A connection that came in and was not spoken with yet.
pub struct Accepted(Step);

enum Step {
    Open(AnySocket),
    Handshake { peer: String, done: BoxFuture<io::Result<Opened>> },
}

/// What a connection that came in turns out to be.
pub(crate) enum Opened {
    /// One of ours.
    Socket(AnySocket),
    /// One that speaks HTTP, and whom it is for.
    #[cfg(feature = "ws")]
    Http(Arc<dyn super::HttpFront>, super::HttpStream),
}

impl Accepted {
    /// One with which nothing must be done before the first frame.
    pub fn new(socket: impl Into<AnySocket>) -> Self {
        Self(Step::Open(socket.into()))
    }

    /// One that is ready when this future is: after a handshake. `peer` is what it is called until then, best in rpcx's
    /// form, `network@address`. The server drops the future after its
    /// [`Timeouts::first_frame`](crate::server::Timeouts::first_frame).
    pub fn after(
        peer: impl Into<String>,
        handshake: impl Future<Output = io::Result<AnySocket>> + Send + 'static,
    ) -> Self {
        Self::opening(peer.into(), async move { handshake.await.map(Opened::Socket) })
    }

    /// As [`Self::after`], for one that may turn out to be none of ours.
    pub(super) fn opening(peer: String, opening: impl Future<Output = io::Result<Opened>> + Send + 'static) -> Self {
        Self(Step::Handshake { peer, done: Box::pin(opening) })
    }

    /// The other end in rpcx's form, such as `tcp@127.0.0.1:50312`.
    pub fn peer(&self) -> String {
        match &self.0 {
            Step::Open(socket) => socket.peer(),
            Step::Handshake { peer, .. } => peer.clone(),
        }
    }

    /// The connection, if nothing must be done before the first frame.
    pub(crate) fn open(self) -> Result<AnySocket, Self> {
        match self.0 {
            Step::Open(socket) => Ok(socket),
            step @ Step::Handshake { .. } => Err(Self(step)),
        }
    }

    /// Does what must be done before the first frame, within `limit`: a handshake, as that of TLS. It is a step of
    /// its own so that a slow peer delays only itself; without a handshake it is done at once.
    ///
    /// # Errors
    /// `TimedOut` after `limit`; `Unsupported` if it speaks HTTP, and a server would give it to its front; otherwise the
    /// error of the handshake.
    pub async fn handshake(self, limit: Duration) -> io::Result<AnySocket> {
        match self.finish(limit).await? {
            Opened::Socket(socket) => Ok(socket),
            #[cfg(feature = "ws")]
            Opened::Http(..) => {
                Err(io::Error::new(io::ErrorKind::Unsupported, "it speaks HTTP, and has no front here"))
            }
        }
    }

    /// As [`Self::handshake`], for who serves HTTP too.
    pub(crate) async fn finish(self, limit: Duration) -> io::Result<Opened> {
        match self.0 {
            Step::Open(socket) => Ok(Opened::Socket(socket)),
            Step::Handshake { done, .. } => {
                let outcome = tokio::time::timeout(limit, Guarded::new(done)).await?;
                outcome.unwrap_or_else(|panic| Err(told(&panic)))
            }
        }
    }
}

impl fmt::Debug for Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Accepted").field(&self.peer()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::{ConnectOptions, check, connect};

    async fn listener(address: &str) -> Result<Listener, ServeError> {
        Listener::bind(&address.parse()?, &ListenOptions::default()).await
    }

    /// Connects to where the listener says it listens.
    async fn pair(listener: &Listener) -> (AnySocket, AnySocket) {
        let address = listener.local_address().parse().expect("an address");
        let options = ConnectOptions::default();
        let (client, accepted) = tokio::join!(connect(&address, &options), listener.accept());
        let accepted = accepted.handshake(Duration::from_secs(60)).await;
        (client.expect("connects"), accepted.expect("no TLS, no failure"))
    }

    #[tokio::test]
    async fn a_listener_says_where_clients_find_it() {
        for address in ["127.0.0.1:0", "tcp4@localhost:0", "memory@finds it", "memu@finds it by rpcx's name"] {
            let listener = listener(address).await.expect("listens");
            assert!(!listener.local_address().ends_with(":0"), "{}", listener.local_address());
            let (client, server) = pair(&listener).await;
            check::half_close(client, server).await;
        }
    }

    #[tokio::test]
    async fn an_address_in_use_is_an_error_with_the_address() {
        for address in ["127.0.0.1:0", "memory@in use"] {
            let first = listener(address).await.expect("listens");
            let error = listener(first.local_address()).await.expect_err("in use");
            let ServeError::Listen { address, error } = error else { panic!("{error}") };
            assert_eq!((address.as_str(), error.kind()), (first.local_address(), io::ErrorKind::AddrInUse));
        }
    }

    #[tokio::test]
    async fn a_dropped_accept_loses_no_connection() {
        for address in ["127.0.0.1:0", "memory@loses none"] {
            let listener = listener(address).await.expect("listens");
            let mut accept = Box::pin(listener.accept());
            std::future::poll_fn(|cx| {
                assert!(accept.as_mut().poll(cx).is_pending());
                std::task::Poll::Ready(())
            })
            .await;
            drop(accept);
            pair(&listener).await;
        }
    }

    /// What a server holds of it can move between threads.
    #[tokio::test]
    async fn accepting_can_be_spawned() {
        fn is_send<T: Send>(_: &T) {}
        let listener = listener("memory@can be spawned").await.expect("listens");
        is_send(&listener);
        is_send(&listener.accept());
        let (address, options) = ("memory@x".parse().expect("an address"), ListenOptions::default());
        is_send(&Listener::bind(&address, &options));
    }

    #[cfg(feature = "tls")]
    mod tls {
        use super::*;
        use crate::transport::tls::{Authority, TlsClient, TlsServer};

        /// Options for both ends, with the same authority.
        fn options(authority: &Authority) -> (ConnectOptions, ListenOptions) {
            let client = TlsClient::new(&authority.roots()).expect("a client");
            let server = TlsServer::new(authority.identity("localhost")).expect("a server");
            (ConnectOptions::default().tls(client), ListenOptions::default().tls(server))
        }

        async fn accept(listener: &Listener) -> io::Result<AnySocket> {
            listener.accept().await.handshake(Duration::from_secs(60)).await
        }

        /// `tls@` says it; behind `tcp@` the options do, as in rpcx.
        #[tokio::test]
        async fn tls_is_spoken_if_the_address_or_the_options_say_so() {
            let (near, far) = options(&Authority::new());
            for network in ["tls", "tcp", "tcp4"] {
                let address = format!("{network}@localhost:0").parse().expect("an address");
                let listener = Listener::bind(&address, &far).await.expect("listens");
                assert!(listener.local_address().starts_with(&format!("{network}@localhost:")));
                let address = listener.local_address().parse().expect("an address");
                let (client, server) = tokio::join!(connect(&address, &near), accept(&listener));
                let (client, server) = (client.expect("connects"), server.expect("accepts"));
                assert!(matches!((&client, &server), (AnySocket::Tls(_), AnySocket::Tls(_))));
                assert!(server.peer().starts_with("tls@"));
                check::half_close(client, server).await;
            }
        }

        #[tokio::test]
        async fn tls_has_no_effect_in_memory() {
            let (near, far) = options(&Authority::new());
            let address = "memory@tls has no effect".parse().expect("an address");
            let listener = Listener::bind(&address, &far).await.expect("listens");
            let (client, server) = tokio::join!(connect(&address, &near), accept(&listener));
            check::half_close(client.expect("connects"), server.expect("accepts")).await;
        }

        #[tokio::test]
        async fn tls_without_a_certificate_is_refused_at_once() {
            let error = listener("tls@127.0.0.1:0").await.expect_err("no certificate");
            assert!(matches!(&error, ServeError::Tls { .. }), "{error}");
            assert!(error.to_string().contains("`ListenOptions::tls`"), "{error}");
        }

        /// A peer that says nothing is given up after its time, and others come in meanwhile.
        #[tokio::test]
        async fn a_silent_peer_holds_up_nobody_but_itself() {
            let (near, far) = options(&Authority::new());
            let address = "127.0.0.1:0".parse().expect("an address");
            let listener = Listener::bind(&address, &far).await.expect("listens");
            let silent = listener.local_address().parse().expect("an address");
            let _silent = connect(&silent, &ConnectOptions::default()).await.expect("connects");
            let mut held_up = tokio::spawn(listener.accept().await.handshake(Duration::from_secs(3600)));

            let address = listener.local_address().replace("127.0.0.1", "localhost").parse().expect("an address");
            let (client, server) = tokio::join!(connect(&address, &near), accept(&listener));
            check::half_close(client.expect("connects"), server.expect("accepts")).await;

            tokio::time::pause();
            tokio::time::advance(Duration::from_secs(3600)).await;
            let error = (&mut held_up).await.expect("no panic").expect_err("silent");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        }
    }
}
