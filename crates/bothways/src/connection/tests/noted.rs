//! A socket with room for everything, that tells what it moves.

use std::{
    io::{self, IoSlice},
    task::{Context, Poll},
};

use crate::transport::{AnySocket, Socket, memory::MemorySocket};

/// What a socket did.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum Moved {
    Read,
    Written,
}

/// Told how many bytes were moved, each time.
type Note = Box<dyn Fn(Moved, usize) + Send + Sync>;

/// See the module.
pub(super) struct Noted {
    socket: MemorySocket,
    /// How much it takes at once; `None`: everything.
    at_once: Option<usize>,
    note: Note,
}

impl Noted {
    pub(super) fn socket(
        socket: MemorySocket,
        at_once: Option<usize>,
        note: impl Fn(Moved, usize) + Send + Sync + 'static,
    ) -> AnySocket {
        AnySocket::Other(Box::new(Self { socket, at_once, note: Box::new(note) }))
    }

    fn note(&self, moved: Moved, result: io::Result<usize>) -> io::Result<usize> {
        result.inspect(|len| (self.note)(moved, *len))
    }

    /// Writes what it takes at once.
    fn write<R>(&self, slices: &[IoSlice<'_>], write: impl FnOnce(&[IoSlice<'_>]) -> R) -> R {
        let Some(at_once) = self.at_once else { return write(slices) };
        write(&[IoSlice::new(slices.first().map_or(&[], |first| &first[..first.len().min(at_once)]))])
    }
}

impl Socket for Noted {
    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.socket.poll_read(cx, buf).map(|result| self.note(Moved::Read, result))
    }

    fn poll_write(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let polled = self.write(slices, |slices| self.socket.poll_write(cx, slices));
        polled.map(|result| self.note(Moved::Written, result))
    }

    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.note(Moved::Written, self.write(slices, |slices| self.socket.try_write(slices)))
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_flush(cx)
    }

    fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_shutdown(cx)
    }

    fn peer(&self) -> String {
        self.socket.peer()
    }
}
