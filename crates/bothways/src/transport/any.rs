//! A socket of any network.

use std::{
    fmt,
    io::{self, IoSlice},
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite};

#[cfg(feature = "tls")]
use super::tls::TlsSocket;
#[cfg(unix)]
use super::unix::UnixSocket;
#[cfg(feature = "ws")]
use super::ws::WsSocket;
use super::{FromAsync, Socket, memory::MemorySocket, tcp::TcpSocket};

/// A socket of one of our networks, or of a kind of your own.
#[non_exhaustive]
pub enum AnySocket {
    /// TCP.
    Tcp(TcpSocket),
    /// A Unix domain socket.
    #[cfg(unix)]
    Unix(UnixSocket),
    /// TLS over TCP.
    #[cfg(feature = "tls")]
    Tls(Box<TlsSocket<TcpSocket>>),
    /// WebSocket over TCP.
    #[cfg(feature = "ws")]
    Ws(Box<WsSocket<TcpSocket>>),
    /// WebSocket over TLS over TCP.
    #[cfg(all(feature = "tls", feature = "ws"))]
    Wss(Box<WsSocket<TlsSocket<TcpSocket>>>),
    /// A pipe within this process.
    Memory(MemorySocket),
    /// Anything else; a stream of tokio's comes as [`FromAsync`](super::FromAsync).
    Other(Box<dyn Socket>),
}

/// Does the same with the socket inside, whichever it is.
macro_rules! delegate {
    ($any:expr, $socket:ident => $result:expr) => {
        match $any {
            AnySocket::Tcp($socket) => $result,
            #[cfg(unix)]
            AnySocket::Unix($socket) => $result,
            #[cfg(feature = "tls")]
            AnySocket::Tls($socket) => $result,
            #[cfg(feature = "ws")]
            AnySocket::Ws($socket) => $result,
            #[cfg(all(feature = "tls", feature = "ws"))]
            AnySocket::Wss($socket) => $result,
            AnySocket::Memory($socket) => $result,
            AnySocket::Other($socket) => $result,
        }
    };
}

impl AnySocket {
    /// As [`Socket::poll_readable`]; `None` if it cannot rest.
    pub(crate) fn poll_rest(&self, cx: &mut Context<'_>) -> Option<Poll<()>> {
        delegate!(self, socket => socket.can_rest().then(|| socket.poll_readable(cx)))
    }
}

impl Socket for AnySocket {
    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        delegate!(self, socket => socket.poll_read(cx, buf))
    }

    fn poll_write(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        delegate!(self, socket => socket.poll_write(cx, slices))
    }

    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        delegate!(self, socket => socket.try_write(slices))
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, socket => socket.poll_flush(cx))
    }

    fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, socket => socket.poll_shutdown(cx))
    }

    fn has_unsent(&self) -> bool {
        delegate!(self, socket => socket.has_unsent())
    }

    fn sent_bytes(&self) -> Option<u64> {
        delegate!(self, socket => socket.sent_bytes())
    }

    fn peer(&self) -> String {
        delegate!(self, socket => socket.peer())
    }

    fn peer_certificates(&self) -> Option<Vec<Vec<u8>>> {
        delegate!(self, socket => socket.peer_certificates())
    }

    fn can_rest(&self) -> bool {
        delegate!(self, socket => socket.can_rest())
    }

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        delegate!(self, socket => socket.poll_readable(cx))
    }
}

impl fmt::Debug for AnySocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AnySocket").field(&self.peer()).finish()
    }
}

impl AnySocket {
    /// Any stream of tokio's. `peer` is what it is called by, best in rpcx's form, `network@address`.
    pub fn from_async<S>(stream: S, peer: impl Into<String>) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        Self::Other(Box::new(FromAsync::new(stream, peer)))
    }
}

impl From<TcpSocket> for AnySocket {
    fn from(socket: TcpSocket) -> Self {
        Self::Tcp(socket)
    }
}

#[cfg(unix)]
impl From<UnixSocket> for AnySocket {
    fn from(socket: UnixSocket) -> Self {
        Self::Unix(socket)
    }
}

#[cfg(feature = "tls")]
impl From<TlsSocket<TcpSocket>> for AnySocket {
    fn from(socket: TlsSocket<TcpSocket>) -> Self {
        Self::Tls(Box::new(socket))
    }
}

impl From<MemorySocket> for AnySocket {
    fn from(socket: MemorySocket) -> Self {
        Self::Memory(socket)
    }
}

impl From<Box<dyn Socket>> for AnySocket {
    fn from(socket: Box<dyn Socket>) -> Self {
        Self::Other(socket)
    }
}
