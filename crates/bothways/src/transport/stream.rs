//! Any stream of tokio's as a socket.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering},
    task::{Context, Poll, ready},
};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Socket;

/// Most bytes that are put together for a stream that takes one slice at a time: a full record of TLS,
/// which is what such streams mostly are.
const JOINED_BYTES_MAX: usize = 16 * 1024;

/// A stream that implements tokio's traits, such as `tokio::io::duplex`, as a [`Socket`].
///
/// Such a stream can be written from its own task only, so [`try_write`](Socket::try_write) always
/// says `WouldBlock`, and each push costs a wake-up of that task.
///
/// What a stream keeps of what it took is known by its flush. It has the write deadline for that, counted from the last
/// bytes that it took: how far it is meanwhile no stream tells.
#[derive(Debug)]
pub struct FromAsync<S> {
    stream: Mutex<Inner<S>>,
    /// The last flush was not done at once.
    is_flushing: AtomicBool,
    peer: Box<str>,
}

#[derive(Debug)]
struct Inner<S> {
    stream: S,
    /// How a write failed of which nobody knows how much had left: the next write or flush returns it.
    failed: Option<io::Error>,
}

impl<S> FromAsync<S> {
    /// `peer` is what [`Socket::peer`] says; best in rpcx's form, `network@address`.
    pub fn new(stream: S, peer: impl Into<String>) -> Self {
        let stream = Mutex::new(Inner { stream, failed: None });
        Self { stream, is_flushing: false.into(), peer: peer.into().into() }
    }

    /// The stream again.
    pub fn into_inner(self) -> S {
        self.stream.into_inner().stream
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Socket for FromAsync<S> {
    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buf = ReadBuf::new(buf);
        ready!(Pin::new(&mut self.stream.lock().stream).poll_read(cx, &mut buf))?;
        Poll::Ready(Ok(buf.filled().len()))
    }

    fn poll_write(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut inner = self.stream.lock();
        if let Some(error) = inner.failed.take() {
            return Poll::Ready(Err(error));
        }

        let stream = Pin::new(&mut inner.stream);
        let (len, polled) = match slices {
            [slice] => (slice.len(), stream.poll_write(cx, slice)),
            slices if stream.is_write_vectored() => {
                (slices.iter().map(|slice| slice.len()).sum(), stream.poll_write_vectored(cx, slices))
            }
            slices => {
                let joined = join(slices);
                (joined.len(), stream.poll_write(cx, &joined))
            }
        };

        match polled {
            // A stream that packs or encrypts may have sent some of it before it failed.
            Poll::Ready(Err(error)) if 0 < len && error.kind() != io::ErrorKind::Interrupted => {
                inner.failed = Some(error);
                // The next write or flush returns the error, so this task has to call again.
                cx.waker().wake_by_ref();
                Poll::Ready(Ok(len))
            }
            polled => polled,
        }
    }

    fn try_write(&self, _: &[IoSlice<'_>]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.stream.lock();
        match inner.failed.take() {
            Some(error) => Poll::Ready(Err(error)),
            None => {
                let polled = Pin::new(&mut inner.stream).poll_flush(cx);
                self.is_flushing.store(polled.is_pending(), Ordering::Relaxed);
                polled
            }
        }
    }

    fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream.lock().stream).poll_shutdown(cx)
    }

    fn has_unsent(&self) -> bool {
        self.is_flushing.load(Ordering::Relaxed)
    }

    fn peer(&self) -> String {
        self.peer.to_string()
    }
}

/// The first slices in one piece. The first that holds any byte is there in full or up to the bound.
fn join(slices: &[IoSlice<'_>]) -> Vec<u8> {
    let len = slices.iter().map(|slice| slice.len()).sum::<usize>().min(JOINED_BYTES_MAX);
    let mut joined = Vec::with_capacity(len);
    for slice in slices {
        joined.extend_from_slice(&slice[..slice.len().min(len - joined.len())]);
    }
    joined
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{DuplexStream, SimplexStream, duplex};

    use super::*;
    use crate::transport::check;

    fn pair(buffer_bytes: usize) -> (FromAsync<DuplexStream>, FromAsync<DuplexStream>) {
        let (a, b) = duplex(buffer_bytes);
        (FromAsync::new(a, "duplex@b"), FromAsync::new(b, "duplex@a"))
    }

    /// A stream that writes one slice at a time, as some do.
    struct OneSlice(DuplexStream);

    impl AsyncRead for OneSlice {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for OneSlice {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(cx, buf)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn bytes_arrive_in_order_both_ways(plans in check::plans(), buffer_bytes in 64..100_000_usize) {
            check::run(async {
                let (a, b) = pair(buffer_bytes);
                check::exchange(a, FromAsync::new(OneSlice(b.into_inner()), "duplex@a"), plans).await;
            });
        }
    }

    #[tokio::test]
    async fn a_full_stream_blocks_and_wakes_its_task_when_there_is_room() {
        let (a, b) = pair(1000);
        check::fill_then_drain(a, b).await;
    }

    #[tokio::test]
    async fn an_end_is_the_end_of_one_direction_only() {
        let (a, b) = pair(1000);
        check::half_close(a, b).await;
    }

    /// A stream of which nobody knows what it sent before it failed took what it was given; the failure comes with the
    /// next call.
    #[tokio::test]
    async fn bytes_that_may_have_left_count_as_written() {
        let (a, b) = pair(1000);
        drop(b);
        let write = || std::future::poll_fn(|cx| a.poll_write(cx, &[IoSlice::new(b"abc")]));
        assert_eq!(write().await.expect("nobody knows"), 3);
        write().await.expect_err("it failed");
        assert_eq!(write().await.expect("nobody knows"), 3);
        std::future::poll_fn(|cx| a.poll_flush(cx)).await.expect_err("it failed");
    }

    /// What a stream keeps is known by its flush, which is not done before the peer has read.
    #[tokio::test]
    async fn a_stream_that_cannot_flush_has_something_unsent() {
        let (near, mut far) = duplex(10);
        let near = FromAsync::new(tokio::io::BufStream::new(near), "duplex@far");
        let written = std::future::poll_fn(|cx| near.poll_write(cx, &[IoSlice::new(&[7; 100])])).await;
        assert_eq!(written.expect("it has room"), 100);

        let flush = || std::future::poll_fn(|cx| Poll::Ready(near.poll_flush(cx)));
        assert!(flush().await.is_pending() && near.has_unsent());
        for _ in 0..10 {
            tokio::io::AsyncReadExt::read_exact(&mut far, &mut [0; 10]).await.expect("it is there");
            _ = flush().await;
        }
        assert!(flush().await.is_ready() && !near.has_unsent());
    }

    #[test]
    fn slices_are_joined_up_to_the_bound() {
        let long = vec![3; JOINED_BYTES_MAX];
        let joined = join(&[IoSlice::new(&[]), IoSlice::new(&[1, 2]), IoSlice::new(&long), IoSlice::new(&[4])]);
        assert_eq!((joined.len(), &joined[..3]), (JOINED_BYTES_MAX, &[1, 2, 3][..]));
    }

    #[test]
    fn the_peer_is_as_given() {
        assert_eq!(FromAsync::new(SimplexStream::new_unsplit(1), "pipe@1").peer(), "pipe@1");
    }
}
