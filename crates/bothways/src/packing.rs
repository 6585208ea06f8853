//! Packs and unpacks payloads: small ones where they are, large ones apart from the tasks of connections.
//!
//! A payload of 32 MiB takes some 50 ms to unpack. In the task of its connection that would hold up every other
//! message of this connection, and every connection of the same thread.

use bothways_proto::{self as proto, CompressType, DecodeError, Limits, Message};
use bytes::Bytes;
use tokio::sync::Semaphore;

/// Most unpacked bytes of a payload that is packed or unpacked in line. 256 KiB: about as long as a change of
/// threads and back is worth.
pub(crate) const IN_LINE_BYTES: usize = 256 << 10;

/// Payloads that are packed or unpacked apart at once, in this process. Four: each may hold as much as
/// `decompressed_bytes_max`. The others wait for their turn with the packed bytes alone.
const APART_MAX: usize = 4;

static APART: Semaphore = Semaphore::const_new(APART_MAX);

/// The payload of a message that travelled packed. Dropping the future stops nothing that has begun; its result is
/// dropped.
///
/// # Errors
/// As [`Message::payload`].
pub(crate) async fn unpack(message: &Message, limits: &Limits) -> Result<Bytes, DecodeError> {
    let max = limits.decompressed_bytes();
    if unpacked_len_said(message) <= IN_LINE_BYTES {
        let in_line = limits.clone().decompressed_bytes_max(max.min(IN_LINE_BYTES));
        match message.payload(&in_line) {
            // It is not as small as its sender says.
            Err(DecodeError::DecompressedTooLarge { .. }) if IN_LINE_BYTES < max => {}
            done => return done,
        }
    }
    let (message, limits) = (message.clone(), limits.clone());
    apart(move || message.payload(&limits)).await
}

/// The same payload as gzip.
pub(crate) async fn pack(payload: Bytes) -> Bytes {
    apart(move || proto::gzip(&payload).into()).await
}

/// How many bytes a payload unpacks to if its sender tells the truth, or as many as it has: gzip ends with that
/// number.
fn unpacked_len_said(message: &Message) -> usize {
    let payload = message.wire_payload();
    let said = match payload.last_chunk::<4>() {
        Some(said) if message.header().compress() == CompressType::GZIP => u32::from_le_bytes(*said) as usize,
        _ => 0,
    };
    said.max(payload.len())
}

/// Does something long on a thread for that, when it is its turn.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let turn = APART.acquire().await.expect("it is never closed");
    let done = tokio::task::spawn_blocking(move || {
        let done = work();
        drop(turn);
        done
    });
    match done.await.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(done) => done,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // The runtime shuts down, and drops whoever waits here.
        Err(Err(_)) => std::future::pending().await,
    }
}
