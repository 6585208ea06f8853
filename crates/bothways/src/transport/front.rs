//! HTTP at a server's port, for who knows HTTP: the front to which its connections go, and what it gets.

use std::{
    any::Any,
    fmt,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
};

use super::{AnySocket, Socket};
use crate::reply::BoxFuture;

/// Serves the HTTP connections of a port on which a server speaks everything: see
/// [`ListenOptions::http`](super::ListenOptions::http).
///
/// ```
/// use bothways::transport::{BoxFuture, HttpFront, HttpStream};
/// use tokio::io::AsyncWriteExt;
///
/// /// Has nothing at all.
/// struct Nothing;
///
/// impl HttpFront for Nothing {
///     fn serve(&self, mut stream: HttpStream) -> BoxFuture<()> {
///         Box::pin(async move {
///             _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
///             _ = stream.shutdown().await;
///         })
///     }
/// }
/// ```
pub trait HttpFront: Send + Sync + 'static {
    /// Serves one connection to its end. It runs in a task of its own, and counts as one of
    /// [`ServerLimits::connections_max`](crate::ServerLimits::connections_max) until the future is done.
    ///
    /// When the server begins to stop ([`HttpStream::stopping`]), the front ends what it can end, such as connections
    /// that wait for a next request, and streams of events. What it still serves at the deadline of the shutdown is
    /// dropped. A panic ends this connection only.
    fn serve(&self, stream: HttpStream) -> BoxFuture<()>;

    /// Whether a WebSocket at the same port is for here whose request names this host, with its port if it has one:
    /// `Some(false)` is answered with 421, and the front need not see what is refused. Default `None`: any host, or on
    /// loopback those of [`WsOrigins::same_host`](super::ws::WsOrigins::same_host).
    ///
    /// A front that takes only its own names says so here too: otherwise a page whose owner lets its name point to this
    /// machine (DNS rebinding), and which the front refuses, would get a WebSocket.
    fn serves_host(&self, host: &str) -> Option<bool> {
        _ = host;
        None
    }
}

/// An HTTP connection that came in at a server's port. What was read of it, to know that it speaks HTTP, is read here
/// once more.
///
/// It may be split: one task reads it and another one writes it. Dropping it closes it.
pub struct HttpStream {
    /// What was read already.
    first: Bytes,
    socket: AnySocket,
    /// The server that it came to, and whether that stops.
    server: Option<(Arc<dyn Any + Send + Sync>, watch::Receiver<bool>)>,
}

impl HttpStream {
    /// One that no server accepted, such as for a test of a front: it belongs to no server, and none stops under it.
    /// `first` is read before what the socket has.
    pub fn new(socket: impl Into<AnySocket>, first: impl Into<Bytes>) -> Self {
        Self { first: first.into(), socket: socket.into(), server: None }
    }

    pub(crate) fn belong_to(&mut self, server: Arc<dyn Any + Send + Sync>, stopping: watch::Receiver<bool>) {
        self.server = Some((server, stopping));
    }

    pub(crate) fn owner(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        self.server.as_ref().map(|(server, _)| Arc::clone(server))
    }

    /// The other end in rpcx's form: `tcp@127.0.0.1:50312`, or `tls@…` if it speaks TLS below HTTP.
    pub fn peer(&self) -> String {
        self.socket.peer()
    }

    /// The certificate that the other end showed and its chain, each in DER; `None` without.
    pub fn peer_certificates(&self) -> Option<Vec<Vec<u8>>> {
        self.socket.peer_certificates()
    }

    /// Waits until the server begins to stop; for ever if it belongs to none. The future is the caller's own: it
    /// stays when the stream is moved away.
    pub fn stopping(&self) -> impl Future<Output = ()> + Send + use<> {
        let stopping = self.server.as_ref().map(|(_, stopping)| stopping.clone());
        async move {
            if let Some(mut stopping) = stopping
                && stopping.wait_for(|stopping| *stopping).await.is_ok()
            {
                return;
            }
            // A server that is gone without having stopped ends nothing either.
            std::future::pending().await
        }
    }

    /// What is to be read first, and the socket for all that follows: to speak something else than HTTP on it, such
    /// as after an upgrade.
    pub fn into_parts(self) -> (Bytes, AnySocket) {
        (self.first, self.socket)
    }
}

impl fmt::Debug for HttpStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpStream").field("peer", &self.peer()).field("first", &self.first.len()).finish()
    }
}

impl AsyncRead for HttpStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let len = self.first.len().min(buf.remaining());
            buf.put_slice(&self.first[..len]);
            self.first.advance(len);
            return Poll::Ready(Ok(()));
        }
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        self.socket.poll_read(cx, buf.initialize_unfilled()).map_ok(|len| buf.advance(len))
    }
}

impl AsyncWrite for HttpStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.socket.poll_write(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.socket.poll_write(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::transport::memory;

    /// In pieces of any size, what was read before comes first, and then what the socket has.
    #[tokio::test]
    async fn what_was_read_already_comes_first() {
        let (near, far) = memory::pair(100);
        let mut stream = HttpStream::new(near, &b"GET / "[..]);
        let mut far = HttpStream::new(far, Bytes::new());
        far.write_all(b"HTTP/1.1").await.expect("there is room");
        far.shutdown().await.expect("it ends");
        let mut read = vec![0; 4];
        stream.read_exact(&mut read).await.expect("it is there");
        stream.read_to_end(&mut read).await.expect("it ends");
        assert_eq!(read, b"GET / HTTP/1.1");

        stream.write_all(b"answer").await.expect("there is room");
        drop(stream);
        let mut answer = String::new();
        far.read_to_string(&mut answer).await.expect("it ends");
        assert_eq!(answer, "answer");
    }

    /// One that a test made stops with nobody.
    #[tokio::test(start_paused = true)]
    async fn one_without_a_server_is_never_told_to_stop() {
        let (near, _far) = memory::pair(1);
        let stopping = HttpStream::new(near, Bytes::new()).stopping();
        tokio::time::timeout(std::time::Duration::from_secs(60), stopping).await.expect_err("nobody stops");
    }
}
