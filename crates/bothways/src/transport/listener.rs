//! From an address to sockets, at the server's side.

use std::{io, time::Duration};

#[cfg(unix)]
use super::unix;
use super::{Address, AnySocket, ListenOptions, Network, Socket, accept::Failures, memory, tcp};
use crate::error::ServeError;

/// Listens on one address until it is dropped.
#[derive(Debug)]
pub struct Listener {
    listening: Listening,
    local_address: String,
}

#[derive(Debug)]
enum Listening {
    Tcp(tcp::Listening),
    #[cfg(unix)]
    Unix(unix::Listening),
    Memory(memory::Listening),
}

impl Listener {
    /// Starts to listen.
    ///
    /// # Errors
    /// [`ServeError::Listen`]: the address is in use, may not be used, or is not one of this machine.
    pub async fn bind(address: &Address, options: &ListenOptions) -> Result<Self, ServeError> {
        match listen(address, options).await {
            Ok((listening, address)) => Ok(Self { listening, local_address: address.to_string() }),
            Err(error) => Err(ServeError::Listen { address: address.to_string(), error }),
        }
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
            match self.try_accept().await {
                Ok(socket) => return Accepted { socket },
                Err(error) => failures.pause_after(error, &self.local_address).await,
            }
        }
    }

    async fn try_accept(&self) -> io::Result<AnySocket> {
        Ok(match &self.listening {
            Listening::Tcp(listening) => listening.accept().await?.into(),
            #[cfg(unix)]
            Listening::Unix(listening) => listening.accept().await?.into(),
            Listening::Memory(listening) => listening.accept().await?.into(),
        })
    }
}

async fn listen(address: &Address, options: &ListenOptions) -> io::Result<(Listening, Address)> {
    match address.network() {
        Network::Memory => Ok((Listening::Memory(memory::Listening::bind(address, options)?), address.clone())),
        #[cfg(unix)]
        Network::Unix => Ok((Listening::Unix(unix::Listening::bind(address, options).await?), address.clone())),
        Network::Tls => Err(io::ErrorKind::Unsupported.into()),
        Network::Tcp | Network::Tcp4 | Network::Tcp6 => {
            let listening = tcp::Listening::bind(address, options).await?;
            let address = address.with_port(listening.local_addr()?.port());
            Ok((Listening::Tcp(listening), address))
        }
    }
}

/// A connection that came in and was not spoken with yet.
#[derive(Debug)]
pub struct Accepted {
    socket: AnySocket,
}

impl Accepted {
    /// The other end in rpcx's form, such as `tcp@127.0.0.1:50312`.
    pub fn peer(&self) -> String {
        self.socket.peer()
    }

    /// Does what must be done before the first frame, within `limit`: the TLS handshake. It is a step of
    /// its own so that a slow peer holds up nobody but itself; without TLS it is done at once.
    ///
    /// # Errors
    /// `TimedOut` after `limit`; otherwise what went wrong in the handshake.
    pub async fn handshake(self, limit: Duration) -> io::Result<AnySocket> {
        _ = limit;
        Ok(self.socket)
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
}
