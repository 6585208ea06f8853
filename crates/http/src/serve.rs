//! A front's own server: accepts within bounds, and lets no slow client keep a connection.

use std::{
    collections::HashMap,
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::Sleep,
};

use crate::{
    front::{Front, Shared},
    inside::Visitor,
};

/// Headers of one request.
const HEADERS_MAX: usize = 64;

/// Most bytes that wait within one HTTP connection to be written; a head has room in as much.
const BUFFER_BYTES: usize = 64 << 10;

/// The pause after a failure to accept, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A front listens at an address for as long as this is kept. Dropping it closes the HTTP connections too.
#[derive(Debug)]
pub struct HttpListening {
    address: SocketAddr,
    serving: AbortHandle,
}

impl HttpListening {
    /// Where, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for HttpListening {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Front {
    /// Listens at `HOST:PORT` and serves in the background, for as long as the answer is kept. Port 0 is a free one.
    ///
    /// # Errors
    /// The address is in use, may not be used, or is not one of this machine.
    pub async fn listen(&self, address: &str) -> io::Result<HttpListening> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let front = self.clone();
        let serving = tokio::spawn(async move { front.serve(listener).await }).abort_handle();
        tracing::info!(%address, "HTTP is served");
        Ok(HttpListening { address, serving })
    }

    /// Serves the connections of this listener until the future is dropped; then they are closed. A failure to accept is
    /// logged and tried again.
    ///
    /// It goes on while the server stops, so that `/readyz` can say so; each connection ends with its next response then.
    pub async fn serve(&self, listener: TcpListener) {
        // Aborted when this future is dropped.
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an HTTP connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(place) = Place::take(&self.shared, Some(address.ip())) else { continue };
            self.prepare(&stream);
            let front = self.clone();
            connections.spawn(async move {
                front.serve_connection(stream, format!("http@{address}").into()).await;
                drop(place);
            });
        }
    }

    /// Serves HTTP on one stream that the application brings, such as one over TLS, until it ends. `peer` is its client
    /// in rpcx's form, such as `http@192.0.2.7:50312`. It counts for [`FrontOptions::connections_max`] alone.
    ///
    /// [`FrontOptions::connections_max`]: crate::FrontOptions::connections_max
    pub async fn serve_stream<S>(&self, stream: S, peer: impl Into<Arc<str>>)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let Some(_place) = Place::take(&self.shared, None) else { return };
        self.serve_connection(stream, peer.into()).await;
    }

    /// As [`Self::serve_stream`], where the server has counted the connection.
    #[cfg(feature = "port")]
    pub(crate) async fn serve_at_port<S>(&self, stream: S, peer: crate::HttpPeer)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.serve_connection(stream, peer.0).await;
    }

    async fn serve_connection<S>(&self, stream: S, peer: Arc<str>)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let options = &self.shared.options;
        let visitor = Arc::new(Visitor::new(Arc::clone(&peer)));
        let front = self.clone();
        let service = service_fn(move |request: http::Request<Incoming>| {
            let (front, visitor) = (front.clone(), Arc::clone(&visitor));
            async move { Ok::<_, std::convert::Infallible>(front.answer(visitor, request).await) }
        });

        let stream = TokioIo::new(Stalling::new(stream, options.write_timeout));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(options.head_timeout)
            .max_headers(HEADERS_MAX)
            .max_header_size(options.head_bytes_max)
            .max_buf_size(BUFFER_BYTES.max(options.head_bytes_max))
            // Go's form of names: some clients compare them.
            .title_case_headers(true)
            .serve_connection(stream, service);

        let mut connection = pin!(connection);
        // One that comes while the server stops has its one answer, which ends it.
        let server = self.shared.entrance.home.server().filter(|server| !server.is_stopping());
        let outcome = match server {
            None => connection.await,
            Some(server) => tokio::select! {
                outcome = connection.as_mut() => outcome,
                () = server.stopping() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            },
        };
        if let Err(error) = outcome {
            tracing::debug!(peer = &*peer, %error, "an HTTP connection ended");
        }
    }

    /// Small responses leave at once, and a client that is gone without a word is given up.
    fn prepare(&self, stream: &TcpStream) {
        let socket = socket2::SockRef::from(stream);
        let _ = socket.set_tcp_nodelay(true);
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let _ = socket.set_tcp_user_timeout(Some(self.shared.options.write_timeout));
    }
}

/// The HTTP connections of each address.
#[derive(Debug, Default)]
pub(crate) struct Places(Mutex<HashMap<IpAddr, usize>>);

/// The place of one HTTP connection. Given back when dropped.
struct Place {
    shared: Arc<Shared>,
    address: Option<IpAddr>,
}

impl Place {
    /// `None`: there is none, and the connection is closed at once.
    fn take(shared: &Arc<Shared>, ip: Option<IpAddr>) -> Option<Self> {
        let (options, counters) = (&shared.options, &shared.counters);
        let open = counters.connections.fetch_add(1, Ordering::Relaxed);
        // Gives its place back also if it is refused.
        let mut place = Self { shared: Arc::clone(shared), address: None };
        let address = ip.map(group);
        let is_let_in = open < options.connections_max
            && address.is_none_or(|address| shared.places.enter(address, options.connections_per_address_max));
        if !is_let_in {
            counters.connections_refused.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(open, "an HTTP connection was refused: too many are open");
            return None;
        }
        place.address = address;
        Some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.counters.connections.fetch_sub(1, Ordering::Relaxed);
        if let Some(address) = self.address {
            self.shared.places.leave(address);
        }
    }
}

impl Places {
    fn enter(&self, address: IpAddr, max: usize) -> bool {
        let mut places = self.0.lock();
        let open = places.entry(address).or_default();
        let has_room = *open < max;
        *open += usize::from(has_room);
        has_room
    }

    fn leave(&self, address: IpAddr) {
        let mut places = self.0.lock();
        if let Some(open) = places.get_mut(&address) {
            *open -= 1;
            if *open == 0 {
                places.remove(&address);
            }
        }
    }
}

/// What counts as one address: of IPv6 a network, and all of this machine's own.
pub(crate) fn group(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        ip if ip.is_loopback() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            [a, b, c, d, 0, 0, 0, 0].into()
        }
        ip => ip,
    }
}

/// A stream whose writes fail when its peer takes no byte for too long. Reads have their bounds elsewhere.
struct Stalling<S> {
    stream: S,
    limit: Duration,
    /// Runs while a write waits.
    until: Option<Pin<Box<Sleep>>>,
}

impl<S> Stalling<S> {
    fn new(stream: S, limit: Duration) -> Self {
        Self { stream, limit, until: None }
    }

    /// What a write came to; one that waits for too long fails.
    fn judge<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.until = None;
            return written;
        }
        let until = self.until.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.limit)));
        ready!(until.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stalling<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stalling<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.judge(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.judge(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.judge(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.judge(cx, shut)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn an_address_is_a_host_or_a_network() {
        let of = |text: &str| group(text.parse().expect("an address"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:3::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!((of("127.0.0.9"), of("::1")), (of("127.0.0.1"), of("127.0.0.1")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_given_up_and_a_slow_one_is_not() {
        let (near, mut far) = tokio::io::duplex(16);
        let mut stalling = Stalling::new(near, Duration::from_secs(30));
        let slow = tokio::spawn(async move {
            let mut byte = [0; 1];
            for _ in 0..8 {
                tokio::time::sleep(Duration::from_secs(29)).await;
                far.read_exact(&mut byte).await.expect("there is more");
            }
            far
        });
        stalling.write_all(&[1; 24]).await.expect("a byte each 29 seconds is progress");
        let _far = slow.await.expect("no panic");
        let error = stalling.write_all(&[1; 24]).await.expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
