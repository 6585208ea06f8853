//! One port for everything that a server speaks: what a client speaks is known by its first byte.
//!
//! The byte is looked at and stays in the socket. So a client of rpcx costs one system call more, once, and its socket is
//! the same as on a port of its own.

use std::{
    future::poll_fn,
    io,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;

#[cfg(feature = "tls")]
use super::tls::TlsServer;
use super::{AnySocket, HttpFront, HttpStream, ListenOptions, Socket, listener::Opened, tcp::TcpSocket};

/// The first byte of each rpcx frame.
const RPCX: u8 = 0x08;

/// A socket of which the first bytes can be read without taking them.
pub(super) trait Peek: Socket + Into<AnySocket> {
    /// As [`Socket::poll_read`]; what is read can be read again.
    fn poll_peek(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>>;
}

/// What a port takes.
pub(super) struct Opening {
    front: Arc<dyn HttpFront>,
    #[cfg(feature = "tls")]
    tls: Option<TlsServer>,
}

impl Opening {
    /// `None`: the first bytes decide nothing there.
    pub(super) fn of(options: &ListenOptions) -> Option<Self> {
        let front = Arc::clone(&options.http.as_ref()?.0);
        Some(Self {
            front,
            #[cfg(feature = "tls")]
            tls: options.tls.clone(),
        })
    }

    /// Waits for what the client says first. With TLS all of it is inside.
    pub(super) async fn open(self, socket: TcpSocket) -> io::Result<Opened> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            let socket = tls.handshake(socket).await?;
            return self.tell(socket).await;
        }
        self.tell(socket).await
    }

    async fn tell(self, socket: impl Peek) -> io::Result<Opened> {
        let mut first = [0];
        if poll_fn(|cx| socket.poll_peek(cx, &mut first)).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match first[0] {
            RPCX => Ok(Opened::Socket(socket.into())),
            b'A'..=b'Z' => Ok(Opened::Http(self.front, HttpStream::new(socket, Bytes::new()))),
            other => {
                let why = format!("it begins with the byte {other:#04x}, which is neither rpcx nor HTTP");
                Err(io::Error::new(io::ErrorKind::InvalidData, why))
            }
        }
    }
}
