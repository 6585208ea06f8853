//! A socket without a library, for frames that no library sends.

use std::time::Duration;

use bothways_proto::{Limits, Message, PREFIX_LEN};
use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use crate::{LONG, within};

/// A TCP connection on which a test sends bytes as it likes.
#[derive(Debug)]
pub struct RawConnection {
    stream: TcpStream,
}

impl RawConnection {
    /// Connects to `HOST:PORT`.
    pub async fn connect(address: &str) -> Self {
        let stream = within(LONG, "connect", TcpStream::connect(address)).await;
        Self { stream: stream.unwrap_or_else(|error| panic!("{address}: {error}")) }
    }

    /// Sends these bytes; a peer that has closed already is none of our business.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = within(LONG, "send", self.stream.write_all(bytes)).await;
    }

    /// Sends a message.
    pub async fn send_message(&mut self, message: &Message) {
        self.send(message.frame()).await;
    }

    /// The next frame, or `None` if the peer has closed the connection.
    pub async fn receive(&mut self, limit: Duration) -> Option<Message> {
        let mut frame = vec![0; PREFIX_LEN];
        within(limit, "a frame", self.stream.read_exact(&mut frame)).await.ok()?;
        let len = u32::from_be_bytes([frame[12], frame[13], frame[14], frame[15]]) as usize;
        frame.resize(PREFIX_LEN + len, 0);
        within(limit, "the rest of a frame", self.stream.read_exact(&mut frame[PREFIX_LEN..])).await.ok()?;
        Some(Message::parse(Bytes::from(frame), &unlimited()).expect("a server sends frames"))
    }

    /// Waits for the end of the connection.
    ///
    /// # Panics
    /// If anything comes before it, or it does not come within this long.
    pub async fn closed_without_an_answer(&mut self, limit: Duration, what: &str) {
        let answer = self.until_closed(limit, what).await;
        assert!(answer.is_empty(), "{what}: answered with {answer:02x?}");
    }

    /// Everything that comes until the end of the connection.
    ///
    /// # Panics
    /// If the end does not come within this long.
    pub async fn until_closed(&mut self, limit: Duration, what: &str) -> Vec<u8> {
        let mut all = Vec::new();
        // A reset is an end too.
        let _ = within(limit, what, self.stream.read_to_end(&mut all)).await;
        all
    }

    /// Ends the connection without a goodbye: a reset in place of an end of the stream.
    pub fn reset(self) {
        let _ = self.stream.set_zero_linger();
    }

    /// Its two directions.
    pub fn into_split(self) -> (OwnedReadHalf, OwnedWriteHalf) {
        self.stream.into_split()
    }

    /// The socket itself.
    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }
}

/// Bounds of a test that reads what it asked for.
pub fn unlimited() -> Limits {
    Limits::default()
        .body_bytes_max(usize::MAX)
        .decompressed_bytes_max(usize::MAX)
        .metadata_bytes_max(usize::MAX)
        .metadata_pairs_max(usize::MAX)
}
