//! Connects: from an address to a socket.

use super::{Address, AnySocket, ConnectOptions, transports::Transports};
use crate::error::ConnectError;

/// Connects by a built-in transport. A name with several addresses is tried address by address.
///
/// Dropping the future gives up and leaves nothing behind.
///
/// # Errors
/// - [`ConnectError::Address`]: the network is not built in.
/// - [`ConnectError::Io`]: nothing listens there, the name is unknown, the TLS handshake failed, or the like.
/// - [`ConnectError::NoRuntime`]: sockets need one.
/// - [`ConnectError::TimedOut`]: not within [`ConnectOptions::connect_timeout`].
pub async fn connect(address: &Address, options: &ConnectOptions) -> Result<AnySocket, ConnectError> {
    Transports::BUILT_IN.connect(address, options).await
}

#[cfg(test)]
mod tests {
    use std::{io, time::Duration};

    use tokio::time::Instant;

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
