//! Sockets that already listen, bound by systemd, a parent process or the application.

/// A socket of the system that listens already; made by `into()` from what the standard library has.
///
/// [`Server::listen_on`](crate::Server::listen_on) serves on it.
#[derive(Debug)]
#[non_exhaustive]
pub enum BoundListener {
    /// On a TCP port.
    Tcp(std::net::TcpListener),
    /// On a file, which stays when the listening ends: it belongs to the process that made it.
    #[cfg(unix)]
    Unix(std::os::unix::net::UnixListener),
}

impl From<std::net::TcpListener> for BoundListener {
    fn from(listener: std::net::TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

#[cfg(unix)]
impl From<std::os::unix::net::UnixListener> for BoundListener {
    fn from(listener: std::os::unix::net::UnixListener) -> Self {
        Self::Unix(listener)
    }
}
