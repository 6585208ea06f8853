//! The socket of a connection, until it is over.

use std::{
    io::{self, IoSlice},
    task::{Context, Poll},
};

use parking_lot::RwLock;

use crate::transport::{AnySocket, Socket};

/// Holds a socket, and lets go of it when the connection is over: a handle that an application keeps for
/// ever must not keep a file open, nor let a peer write to nobody.
pub(super) struct SocketSlot(RwLock<Slot>);

/// What became of the bytes that a socket took.
#[derive(Clone, Copy, Default)]
pub(super) struct PassedOn {
    /// It holds some.
    pub(super) has_unsent: bool,
    /// So many have left it. `None`: all that it took.
    pub(super) sent: Option<u64>,
}

enum Slot {
    Open(AnySocket),
    /// The peer, as the socket named it.
    Over(Box<str>),
}

impl SocketSlot {
    pub(super) fn new(socket: AnySocket) -> Self {
        Self(RwLock::new(Slot::Open(socket)))
    }

    /// The other end, also after the end.
    pub(super) fn peer(&self) -> String {
        match &*self.0.read() {
            Slot::Open(socket) => socket.peer(),
            Slot::Over(peer) => peer.to_string(),
        }
    }

    /// What the other end showed; `None` after the end.
    pub(super) fn peer_certificates(&self) -> Option<Vec<Vec<u8>>> {
        self.with(Socket::peer_certificates).flatten()
    }

    pub(super) fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            match self.with(|socket| socket.poll_read(cx, buf)).unwrap_or_else(over) {
                // Nothing was read, and nothing is wrong.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }

    pub(super) fn poll_write(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.with(|socket| socket.poll_write(cx, slices)).unwrap_or_else(over)
    }

    pub(super) fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.with(|socket| socket.try_write(slices)).unwrap_or_else(|| Err(io::ErrorKind::NotConnected.into()))
    }

    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|socket| socket.poll_flush(cx)).unwrap_or_else(over)
    }

    pub(super) fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|socket| socket.poll_shutdown(cx)).unwrap_or_else(over)
    }

    /// What the socket has taken, and sent or not.
    pub(super) fn passed_on(&self) -> PassedOn {
        let ask = |socket: &AnySocket| PassedOn { has_unsent: socket.has_unsent(), sent: socket.sent_bytes() };
        self.with(ask).unwrap_or_default()
    }

    /// True if the socket wakes an idle connection, also by the end of its runtime.
    pub(super) fn can_rest(&self) -> bool {
        self.with(Socket::can_rest).unwrap_or(false)
    }

    /// Waits for something to read, without reading. `None`: no socket that can.
    pub(super) fn poll_rest(&self, cx: &mut Context<'_>) -> Option<Poll<()>> {
        self.with(|socket| socket.poll_rest(cx)).flatten()
    }

    /// Lets go of the socket, which closes it.
    pub(super) fn close(&self) {
        let mut slot = self.0.write();
        let Slot::Open(socket) = &*slot else { return };
        let over = Slot::Over(socket.peer().into());
        let open = std::mem::replace(&mut *slot, over);
        drop(slot);
        drop(open);
    }

    fn with<R>(&self, act: impl FnOnce(&AnySocket) -> R) -> Option<R> {
        match &*self.0.read() {
            Slot::Open(socket) => Some(act(socket)),
            Slot::Over(_) => None,
        }
    }
}

fn over<T>() -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::transport::memory;

    /// A read that a signal interrupts so many times, and the end of which is reached then.
    struct Interrupted(AtomicUsize);

    impl Socket for Interrupted {
        fn poll_read(&self, _: &mut Context<'_>, _: &mut [u8]) -> Poll<io::Result<usize>> {
            let left = self.0.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
            Poll::Ready(left.map_or(Ok(0), |_| Err(io::ErrorKind::Interrupted.into())))
        }

        fn poll_write(&self, _: &mut Context<'_>, _: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn try_write(&self, _: &[IoSlice<'_>]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }

        fn poll_flush(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn peer(&self) -> String {
            "a test".into()
        }
    }

    /// A read that is interrupted is made again, and any other error is told.
    #[test]
    fn an_interrupted_read_is_made_again() {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut read =
            |slot: &SocketSlot| slot.poll_read(&mut cx, &mut [0; 8]).map(|read| read.map_err(|error| error.kind()));
        let slot = SocketSlot::new(AnySocket::Other(Box::new(Interrupted(AtomicUsize::new(3)))));
        assert_eq!(read(&slot), Poll::Ready(Ok(0)));
        slot.close();
        assert_eq!(read(&slot), Poll::Ready(Err(io::ErrorKind::NotConnected)));
        let (near, far) = memory::pair(8);
        far.reset();
        assert!(matches!(read(&SocketSlot::new(near.into())), Poll::Ready(Err(_))));
    }
}
