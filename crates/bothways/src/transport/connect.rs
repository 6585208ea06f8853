//! Connects: from an address to a socket.

use std::{io, sync::Arc};

use tokio::{
    runtime::Handle,
    time::{Instant, timeout_at},
};

#[cfg(unix)]
use super::unix;
use super::{Address, AnySocket, ConnectOptions, Network, memory, tcp};
use crate::{clock::after, error::ConnectError};

/// Connects. A name with several addresses is tried address by address.
///
/// Dropping the future gives up and leaves nothing behind.
///
/// # Errors
/// - [`ConnectError::Io`]: nothing listens there, the name is unknown, the TLS handshake failed, or the like.
/// - [`ConnectError::NoRuntime`]: sockets need one.
/// - [`ConnectError::TimedOut`]: not within [`ConnectOptions::connect_timeout`].
pub async fn connect(address: &Address, options: &ConnectOptions) -> Result<AnySocket, ConnectError> {
    Handle::try_current().map_err(|_| ConnectError::NoRuntime)?;
    let deadline = after(options.connect_timeout);
    match timeout_at(deadline, open(address, options, deadline)).await {
        Ok(Ok(socket)) => Ok(socket),
        Ok(Err(error)) => Err(ConnectError::Io { address: address.to_string(), error: Arc::new(error) }),
        Err(_) => Err(ConnectError::TimedOut { address: address.to_string(), after: options.connect_timeout }),
    }
}

async fn open(address: &Address, options: &ConnectOptions, deadline: Instant) -> io::Result<AnySocket> {
    if let Some(socket) = &options.over {
        let is_over = || io::Error::new(io::ErrorKind::NotConnected, "the socket that was brought is over");
        return socket.lock().take().ok_or_else(is_over);
    }
    match address.network() {
        Network::Memory => Ok(memory::connect(address).await?.into()),
        #[cfg(unix)]
        Network::Unix => Ok(unix::connect(address).await?.into()),
        _ => open_tcp(address, options, deadline).await,
    }
}

#[cfg(feature = "tls")]
async fn open_tcp(address: &Address, options: &ConnectOptions, deadline: Instant) -> io::Result<AnySocket> {
    const NO_TLS: &str = "`tls@` needs to know whom to trust (`ConnectOptions::tls`)";
    match &options.tls {
        None if address.network() == Network::Tls => Err(io::Error::new(io::ErrorKind::InvalidInput, NO_TLS)),
        None => plain_tcp(address, options, deadline).await,
        Some(tls) => {
            let host = address.host().filter(|host| !host.is_empty()).unwrap_or("localhost");
            Ok(tcp::connect(address, &options.tcp, deadline, |socket| tls.handshake(socket, host)).await?.into())
        }
    }
}

#[cfg(not(feature = "tls"))]
async fn open_tcp(address: &Address, options: &ConnectOptions, deadline: Instant) -> io::Result<AnySocket> {
    plain_tcp(address, options, deadline).await
}

async fn plain_tcp(address: &Address, options: &ConnectOptions, deadline: Instant) -> io::Result<AnySocket> {
    Ok(tcp::connect(address, &options.tcp, deadline, |socket| std::future::ready(Ok(socket))).await?.into())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::transport::{ListenOptions, Listener, Socket};

    fn address(text: &str) -> Address {
        text.parse().expect("an address")
    }

    /// The listener has room for one connection, and does not accept it.
    #[tokio::test(start_paused = true)]
    async fn connecting_takes_no_longer_than_its_time() {
        let address = address("memory@takes no longer");
        let _listener = Listener::bind(&address, &ListenOptions::default().backlog(1)).await.expect("listens");
        let options = ConnectOptions::default().connect_timeout(Duration::from_secs(2));
        let start = Instant::now();
        let first = connect(&address, &options).await.expect("connects");
        assert_eq!(first.peer(), address.to_string());
        let error = connect(&address, &options).await.expect_err("no room");
        assert_eq!(start.elapsed(), Duration::from_secs(2));
        assert_eq!(error.to_string(), "cannot connect to memory@takes no longer within 2s (`connect_timeout`)",);
    }

    #[tokio::test]
    async fn nobody_there_is_an_error_with_the_address() {
        let error = connect(&address("memory@nobody there"), &ConnectOptions::default()).await.expect_err("nobody");
        let ConnectError::Io { address, error } = error else { panic!("{error}") };
        assert_eq!((address.as_str(), error.kind()), ("memory@nobody there", io::ErrorKind::ConnectionRefused));
    }

    /// The system takes the connection; nobody answers the first words of TLS.
    #[cfg(feature = "tls")]
    #[tokio::test(start_paused = true)]
    async fn the_time_is_for_the_handshake_too() {
        use crate::transport::tls::TlsClient;
        let listener = Listener::bind(&address("127.0.0.1:0"), &ListenOptions::default()).await.expect("listens");
        let tls = TlsClient::dangerously_trusting_any_server().expect("a client");
        let options = ConnectOptions::default().tls(tls);
        let error = connect(&address(listener.local_address()), &options).await.expect_err("nobody answers");
        assert!(matches!(error, ConnectError::TimedOut { after, .. } if after == Duration::from_secs(5)), "{error}");
    }

    #[cfg(feature = "tls")]
    #[tokio::test]
    async fn tls_without_a_configuration_says_what_is_missing() {
        let error = connect(&address("tls@127.0.0.1:1"), &ConnectOptions::default()).await.expect_err("no TLS");
        assert!(error.to_string().contains("`ConnectOptions::tls`"), "{error}");
    }

    /// What a task holds of it can move between threads.
    #[test]
    fn connecting_can_be_spawned() {
        fn is_send<T: Send>(_: &T) {}
        let (address, options) = (address("memory@x"), ConnectOptions::default());
        is_send(&connect(&address, &options));
    }
}
