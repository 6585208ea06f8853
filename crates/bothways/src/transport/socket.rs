//! The trait [`Socket`]: what a connection needs from a stream of bytes.

use std::{
    io::{self, IoSlice},
    task::{Context, Poll},
};

/// One end of a stream of bytes, as a connection needs it.
///
/// The bytes arrive as they were written, in order, each once; where a write ends means nothing. `tcp::TcpSocket` is the
/// model; [`FromAsync`](super::FromAsync) makes one of any stream of tokio's.
///
/// Only the connection's own task calls the `poll_` methods. [`try_write`](Self::try_write) may be
/// called by any thread, one at a time: a caller that finds the connection idle writes at once instead of
/// waking the task.
///
/// The task answers every wake-up with [`poll_read`](Self::poll_read), whatever else it does: a
/// socket with bytes of its own to send, as TLS has them, sends them on that occasion.
pub trait Socket: Send + Sync + 'static {
    /// Reads some bytes. 0 is the end of the stream.
    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>>;

    /// Writes some bytes, and arranges a wake-up if none can be taken now.
    ///
    /// `Ok(n)` as soon as any byte of the first `n` may have left, or may leave later: a call in them may run at the
    /// peer, and is never said to be safe to try again. An error, and `Pending`, say that no byte of these slices
    /// goes. A socket that fails with bytes half sent takes them, and fails in the next call, for which it wakes the
    /// task.
    fn poll_write(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>>;

    /// Writes some bytes if that is possible without waiting; `WouldBlock` if not. A socket that
    /// cannot be written from outside its task always says so. What `Ok` and an error mean is as in
    /// [`poll_write`](Self::poll_write).
    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Moves what `poll_write` took on its way. Most sockets have nothing to do.
    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ends the sending direction.
    fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// True if the socket holds bytes that it has taken and the peer has no room for: they count for the write deadline,
    /// as those do that the socket has not taken. Asked about once a second, from any thread, and answered without waiting.
    /// Default: no; so says a socket that takes only what it can hand on to the system.
    fn has_unsent(&self) -> bool {
        false
    }

    /// How many bytes have left a socket that may hold some, so far, however it counts them: as long as they grow in
    /// number, the peer takes some. Default: `None`, and what the socket has taken counts as having left.
    fn sent_bytes(&self) -> Option<u64> {
        None
    }

    /// The other end in rpcx's form, such as `tcp@127.0.0.1:50312`.
    fn peer(&self) -> String;

    /// The certificate that the other end showed and its chain, each in DER. Default: none, as without TLS.
    fn peer_certificates(&self) -> Option<Vec<Vec<u8>>> {
        None
    }

    /// True if an idle connection of a server may do without a task, and so without its memory:
    /// [`poll_readable`](Self::poll_readable) wakes it again. The socket has nothing of its own to do meanwhile: no
    /// bytes that it has taken and not sent, no timer, and it has handed over everything that it has read. Default: no;
    /// then the connection keeps its task.
    fn can_rest(&self) -> bool {
        false
    }

    /// Waits for something to read, without reading it: bytes, the end, or an error. Asked only of a socket that can
    /// rest, and by its connection alone, with a waker that starts a new task.
    ///
    /// `Pending` keeps the waker, and drops an earlier one. The waker is woken, once at least, by what comes to be read,
    /// and by the end of the runtime that drives the socket, for else its connection never ends. A socket of tokio's
    /// does so by `poll_read_ready`; one that wraps it hands this on.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        _ = cx;
        Poll::Ready(())
    }
}
