//! A front's own server: accepts within bounds, and lets no slow client keep a connection.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use bothways::shares::Share;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::{Instant, Sleep},
};

use crate::{
    front::{Front, Shared},
    inside::Visitor,
    peer,
};

/// Headers of one request.
const HEADERS_MAX: usize = 64;

/// Most bytes that wait within one HTTP connection to be written; a head has room in as much.
const BUFFER_BYTES: usize = 64 << 10;

/// The pause after a failure to accept, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a client may still say something after its last response; as in Go.
const LINGER: Duration = Duration::from_millis(500);

/// Of that, pieces of 4 KiB that are read before others have their turn.
const HEARD_AT_ONCE: usize = 16;

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
                    match self.shared.told.due() {
                        Some(left_out) => tracing::warn!(left_out, %error, "cannot accept an HTTP connection"),
                        None => tracing::debug!(%error, "cannot accept an HTTP connection"),
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let peer: Arc<str> = format!("http@{address}").into();
            let Some(place) = place(&self.shared, &peer) else { continue };
            self.prepare(&stream);
            let front = self.clone();
            connections.spawn(async move {
                front.serve_connection(stream, peer).await;
                drop(place);
            });
        }
    }

    /// Serves HTTP on one stream that the application brings, such as one over TLS, until it ends. `peer` is its client
    /// in rpcx's form, such as `http@192.0.2.7:50312`. It counts as one that the front has accepted itself: beyond
    /// [`FrontOptions::connections_max`] the stream is closed at once.
    ///
    /// [`FrontOptions::connections_max`]: crate::FrontOptions::connections_max
    pub async fn serve_stream<S>(&self, stream: S, peer: impl Into<Arc<str>>)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let peer = peer.into();
        let Some(_place) = place(&self.shared, &peer) else { return };
        self.serve_connection(stream, peer).await;
    }

    async fn serve_connection<S>(&self, stream: S, peer: Arc<str>)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let options = &self.shared.options;
        let visitor = Arc::new(Visitor::of_front(Arc::clone(&peer)));
        let front = self.clone();
        let service = service_fn(move |request: http::Request<Incoming>| {
            let (front, visitor) = (front.clone(), Arc::clone(&visitor));
            async move { Ok::<_, std::convert::Infallible>(front.answer(visitor, request).await) }
        });

        let stream = TokioIo::new(Stalling::new(stream, options.write_timeout, options.rate_min));
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

/// The place of an HTTP connection, of the share of its address; that of a trusted proxy counts for all alone. `None`:
/// there is none, and the connection is closed at once.
fn place(shared: &Shared, peer: &str) -> Option<Share> {
    let taken = match peer::is_proxy(&shared.options.trusted_proxies, peer) {
        true => shared.places.take_for_many(1),
        false => shared.places.take(peer, 1),
    };
    if taken.is_err() {
        shared.counters.connections_refused.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(peer, "an HTTP connection was refused: too many are open");
    }
    taken.ok()
}

/// A stream whose writes fail when its peer takes bytes too slowly for too long. Reads have their bounds elsewhere.
struct Stalling<S> {
    stream: S,
    /// Bytes in a second; 0: any number but none.
    rate_min: usize,
    limit: Duration,
    /// How long writes may still wait: less after each wait, more with what was taken.
    left: Duration,
    /// Since when a write waits.
    since: Option<Instant>,
    until: Option<Pin<Box<Sleep>>>,
    /// Runs while the peer is heard out.
    linger: Option<Pin<Box<Sleep>>>,
}

impl<S> Stalling<S> {
    fn new(stream: S, limit: Duration, rate_min: usize) -> Self {
        Self { stream, rate_min, limit, left: limit, since: None, until: None, linger: None }
    }

    /// What a write of bytes came to.
    fn judge_bytes(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = written {
            self.took(bytes);
        }
        self.judge(cx, written)
    }

    /// The time between two writes is not the peer's.
    fn end_wait(&mut self) {
        if let Some(since) = self.since.take() {
            self.left = self.left.saturating_sub(since.elapsed());
        }
    }

    fn took(&mut self, bytes: usize) {
        self.end_wait();
        let given = match self.rate_min {
            0 => self.limit,
            rate => Duration::from_secs_f64(bytes as f64 / rate as f64).min(self.limit),
        };
        self.left = (self.left + given).min(self.limit);
    }

    /// What a write came to; one that waits for too long fails.
    fn judge<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.end_wait();
            return written;
        }
        let until = *self.since.get_or_insert_with(Instant::now) + self.left;
        let sleep = self.until.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if sleep.deadline() != until {
            sleep.as_mut().reset(until);
        }
        ready!(sleep.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stalling<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stalling<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.judge_bytes(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.judge_bytes(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.judge(cx, flushed)
    }

    /// Ends the stream, and hears the peer out for a moment: a socket that is closed with bytes unread takes the last
    /// response away from a client that still sends, such as a body that was refused.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger.is_none() {
            let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
            ready!(self.judge(cx, shut))?;
            self.linger = Some(Box::pin(tokio::time::sleep(LINGER)));
        }
        let Self { stream, linger, .. } = &mut *self;
        if linger.as_mut().is_none_or(|linger| linger.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Ok(()));
        }
        let mut unread = [0; 4 << 10];
        for _ in 0..HEARD_AT_ONCE {
            let mut unread = ReadBuf::new(&mut unread);
            match ready!(Pin::new(&mut *stream).poll_read(cx, &mut unread)) {
                Ok(()) if unread.filled().is_empty() => return Poll::Ready(Ok(())),
                Ok(()) => {}
                Err(_) => return Poll::Ready(Ok(())),
            }
        }
        // Others have their turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A peer that takes bytes at the least rate is waited for, however long; one that takes fewer is given up, also if it
    /// takes one now and then; and a rest without anything to write costs nothing.
    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_too_little_is_given_up_and_a_slow_one_is_not() {
        for (bytes, every, rate_min, is_kept) in
            [(1024, 20, 50, true), (1, 20, 0, true), (1, 20, 50, false), (1024, 31, 50, false), (0, 20, 0, false)]
        {
            let (near, mut far) = tokio::io::duplex(1024);
            let mut stalling = Stalling::new(near, Duration::from_secs(30), rate_min);
            tokio::time::sleep(Duration::from_secs(3600)).await;
            let reader = tokio::spawn(async move {
                let mut read = vec![0; bytes];
                while let Ok(()) = tokio::time::timeout(Duration::from_secs(600), async {
                    tokio::time::sleep(Duration::from_secs(every)).await;
                    if far.read_exact(&mut read).await.is_err() {
                        std::future::pending::<()>().await;
                    }
                })
                .await
                {}
            });
            let much = vec![1; 40 * bytes.max(1) + 1024];
            let written = stalling.write_all(&much).await;
            match written {
                Ok(()) => assert!(is_kept, "{bytes} each {every} s"),
                Err(error) => {
                    assert!(!is_kept && error.kind() == io::ErrorKind::TimedOut, "{bytes} each {every} s: {error}");
                }
            }
            reader.abort();
        }
    }
}
