//! A stream socket of the system, by whatever it is connected.

use std::{
    io::{self, IoSlice, Read},
    mem::MaybeUninit,
    net::{Shutdown, SocketAddr},
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream};

use super::{Socket, peer::Peer};

/// A stream socket of the system: [`TcpSocket`](super::tcp::TcpSocket) or `UnixSocket`.
///
/// Each keeps its own kind of peer. A Unix socket as large as one of TCP would cost every connection 8 bytes: nothing
/// would be left to tell the kinds of [`AnySocket`](super::AnySocket) apart.
#[derive(Debug)]
pub struct OsSocket<S, P> {
    stream: S,
    peer: P,
}

impl<S, P> OsSocket<S, P> {
    pub(super) fn of(stream: S, peer: P) -> Self {
        Self { stream, peer }
    }

    #[cfg(any(test, feature = "ws"))]
    pub(super) fn stream(&self) -> &S {
        &self.stream
    }
}

/// What a peer is called, in rpcx's form.
pub(super) trait Name: Send + Sync + 'static {
    fn name(&self) -> String;
}

impl Name for SocketAddr {
    fn name(&self) -> String {
        format!("tcp@{self}")
    }
}

impl Name for Peer {
    fn name(&self) -> String {
        self.to_string()
    }
}

/// What the streams of tokio have in common, and no trait of theirs says.
pub(super) trait Stream: Send + Sync + 'static {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Runs the function if the stream is marked as readable, and takes the mark away if it says `WouldBlock`.
    fn try_read(&self, read: impl FnOnce() -> io::Result<usize>) -> io::Result<usize>;
    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;
    fn system(&self) -> SockRef<'_>;
}

macro_rules! stream {
    ($stream:ty) => {
        impl Stream for $stream {
            fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Self::poll_read_ready(self, cx)
            }

            fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Self::poll_write_ready(self, cx)
            }

            fn try_read(&self, read: impl FnOnce() -> io::Result<usize>) -> io::Result<usize> {
                self.try_io(Interest::READABLE, read)
            }

            fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
                match slices {
                    [slice] => Self::try_write(self, slice),
                    slices => self.try_write_vectored(slices),
                }
            }

            fn system(&self) -> SockRef<'_> {
                SockRef::from(self)
            }
        }
    };
}

stream!(TcpStream);
#[cfg(unix)]
stream!(tokio::net::UnixStream);

impl<S: Stream, P: Name> Socket for OsSocket<S, P> {
    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match read_and_note_drained(&self.stream, buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn poll_write(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match self.stream.try_write(slices) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.stream.try_write(slices)
    }

    fn poll_flush(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(ended(self.stream.system().shutdown(Shutdown::Write)))
    }

    fn peer(&self) -> String {
        self.peer.name()
    }

    fn can_rest(&self) -> bool {
        true
    }

    /// Asks the system, too: tokio marks each socket as readable that it is given, for it may be, and a server would make
    /// a task for each client that connects, only to find nothing.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if ready!(self.stream.poll_read_ready(cx)).is_err() {
                return Poll::Ready(());
            }
            let peeked = self.stream.try_read(|| self.stream.system().peek(&mut [MaybeUninit::uninit()]));
            match peeked {
                // The mark is gone: unless another has come, the waker is kept now.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                _ => return Poll::Ready(()),
            }
        }
    }
}

/// Reads once. If that did not fill `buf`, the socket is drained: it is marked as not readable, which
/// spares the system call that would only say so. The next byte, and the end of the stream, are events
/// of their own.
fn read_and_note_drained(stream: &impl Stream, buf: &mut [u8]) -> io::Result<usize> {
    let mut drained_by = 0;
    let result = stream.try_read(|| {
        let len = (&*stream.system()).read(buf)?;
        if EDGE_TRIGGERED && 0 < len && len < buf.len() {
            drained_by = len;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(len)
    });
    if 0 < drained_by { Ok(drained_by) } else { result }
}

/// True where the system reports each new event once (epoll, kqueue).
const EDGE_TRIGGERED: bool = cfg!(any(
    target_os = "android",
    target_os = "freebsd",
    target_os = "ios",
    target_os = "linux",
    target_os = "macos",
    target_os = "netbsd",
    target_os = "openbsd",
));

/// Ending a direction that the peer has ended already is no failure.
fn ended(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, io::Write, task::Waker};

    use tokio::net::TcpListener;

    use super::*;

    /// A socket is readable when something has come, or its peer has ended, and not because it is new.
    #[tokio::test]
    async fn a_new_socket_is_not_readable_before_something_comes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it has one");
        let mut far = std::net::TcpStream::connect(address).expect("it listens");
        let (stream, peer) = listener.accept().await.expect("one came");
        let socket = OsSocket::of(stream, peer);
        let mut context = Context::from_waker(Waker::noop());
        assert!(socket.poll_readable(&mut context).is_pending(), "nothing came");

        far.write_all(b"ab").expect("it is open");
        poll_fn(|cx| socket.poll_readable(cx)).await;
        let mut buffer = [0; 8];
        let read = poll_fn(|cx| socket.poll_read(cx, &mut buffer)).await.expect("it is open");
        assert_eq!(&buffer[..read], b"ab", "a look takes nothing");
        assert!(socket.poll_readable(&mut context).is_pending(), "all was read");

        drop(far);
        poll_fn(|cx| socket.poll_readable(cx)).await;
        assert_eq!(poll_fn(|cx| socket.poll_read(cx, &mut buffer)).await.expect("an end"), 0);
    }
}
