//! Packs and unpacks payloads: small ones where they are, large ones apart from the tasks of connections.
//!
//! A payload of 32 MiB takes some 50 ms to unpack. In the task of its connection that would hold up every other
//! message of this connection, and every connection of the same thread.
//!
//! What comes out is bounded in bytes, for each connection and for all of a server: a payload is unpacked when there
//! is [`Room`] for it, and the room is given back when its call has ended and its reply is packed. Replies to calls of
//! this side have a room of their own, until their callers have them: a handler that calls its caller back holds room
//! for its request, and would wait for itself. Packing takes no
//! turns from unpacking: a reply that waits to be packed holds memory, a request that waits to be unpacked holds
//! little.

use std::sync::Arc;

use bothways_proto::{self as proto, CompressType, DecodeError, Limits, Message};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::clock::is_outside;

/// Most unpacked bytes of a payload that is packed or unpacked in line. 256 KiB: about as long as a change of
/// threads and back is worth.
pub(crate) const IN_LINE_BYTES: usize = 256 << 10;

/// Payloads that are unpacked apart at once, in this process; as many are packed. Four: each may hold twice
/// `decompressed_bytes_max` while it is unpacked. The others wait for their turn with the packed bytes alone.
const APART_MAX: usize = 4;

static UNPACKING: Semaphore = Semaphore::const_new(APART_MAX);
static PACKING: Semaphore = Semaphore::const_new(APART_MAX);

/// Bytes that one permit of a [`Room`] stands for.
const UNIT: usize = 1024;

/// Room for unpacked payloads in all connections of one server or client, in bytes.
#[derive(Debug)]
pub(crate) struct Room {
    all: Arc<Semaphore>,
    all_units: u32,
    share_units: u32,
}

/// The part of a [`Room`] that one connection may take.
pub(crate) type Share = Arc<Semaphore>;

impl Room {
    /// Room for so many bytes, of which one connection has so many at most. Each is at least `payload_max`: one
    /// payload that is as large as it may be has room when it is alone.
    pub(crate) fn new(bytes_max: usize, of_connection_max: usize, payload_max: usize) -> Self {
        let share_units = units(of_connection_max.max(payload_max));
        let all_units = units(bytes_max).max(share_units);
        Self { all: Arc::new(Semaphore::new(all_units as usize)), all_units, share_units }
    }

    /// The share of another connection.
    pub(crate) fn share(&self) -> Share {
        Arc::new(Semaphore::new(self.share_units as usize))
    }

    /// Bytes of unpacked payloads that are held now.
    #[cfg(test)]
    fn held(&self) -> usize {
        (self.all_units as usize - self.all.available_permits()) * UNIT
    }

    /// Waits for room, first in the share of the connection and then in all.
    async fn take(&self, share: &Share, bytes: usize) -> Held {
        let units = units(bytes).min(self.share_units).min(self.all_units);
        let never_closed = "it is never closed";
        let of_share = Arc::clone(share).acquire_many_owned(units).await.expect(never_closed);
        let of_all = Arc::clone(&self.all).acquire_many_owned(units).await.expect(never_closed);
        Held { of_share, of_all }
    }
}

/// So many bytes as permits. More than can be counted is as much as there is.
fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT).clamp(1, Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX)
}

/// Room that an unpacked payload takes, given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    of_share: OwnedSemaphorePermit,
    of_all: OwnedSemaphorePermit,
}

impl Held {
    fn bytes(&self) -> usize {
        self.of_all.num_permits() * UNIT
    }

    /// Gives back what so many bytes do not need.
    fn shrink(&mut self, bytes: usize) {
        let spare = self.of_all.num_permits().saturating_sub(units(bytes) as usize);
        drop((self.of_all.split(spare), self.of_share.split(spare)));
    }
}

/// The payload of a message that travelled packed, and the room that it takes. Dropping the future stops nothing that
/// has begun; its result is dropped.
///
/// # Errors
/// As [`Message::payload`].
pub(crate) async fn unpack(
    message: &Message,
    limits: &Limits,
    room: &Room,
    share: &Share,
) -> Result<(Bytes, Held), DecodeError> {
    let max = limits.decompressed_bytes();
    let said = unpacked_len_said(message).min(max);
    let held = room.take(share, said).await;
    let of_held = limits.clone().decompressed_bytes_max(held.bytes().min(max));
    let unpacked = match said <= IN_LINE_BYTES {
        true => with_room(message.payload(&of_held), held),
        false => unpack_apart(message, of_held, held).await,
    };
    match unpacked {
        // It is not as small as its sender says.
        Err(DecodeError::DecompressedTooLarge { max: tried }) if tried < max => {
            let held = room.take(share, max).await;
            unpack_apart(message, limits.clone(), held).await
        }
        done => done,
    }
}

fn with_room(unpacked: Result<Bytes, DecodeError>, mut held: Held) -> Result<(Bytes, Held), DecodeError> {
    let payload = unpacked?;
    held.shrink(payload.len());
    Ok((payload, held))
}

async fn unpack_apart(message: &Message, limits: Limits, held: Held) -> Result<(Bytes, Held), DecodeError> {
    let message = message.clone();
    apart(&UNPACKING, move || with_room(message.payload(&limits), held)).await
}

/// The same payload as gzip.
pub(crate) async fn pack(payload: Bytes) -> Bytes {
    apart(&PACKING, move || proto::gzip(&payload).into()).await
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

/// Does something long on a thread for that, when it is its turn. A caller without a runtime does it itself.
async fn apart<T: Send + 'static>(turns: &'static Semaphore, work: impl FnOnce() -> T + Send + 'static) -> T {
    let turn = turns.acquire().await.expect("it is never closed");
    if is_outside() {
        let done = work();
        drop(turn);
        return done;
    }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bothways_proto::{Header, Metadata, Seq, SerializeType, gzip};

    use super::*;

    fn packed(bytes: usize, says: Option<u32>) -> Message {
        let header = Header::request(Seq::new(1), SerializeType::RAW).with_compress(CompressType::GZIP);
        let mut payload = gzip(&vec![0; bytes]);
        if let Some(says) = says {
            // The length stands behind the data, and so a reader that counts finds the lie only at the end.
            let at = payload.len() - 4;
            payload[at..].copy_from_slice(&says.to_le_bytes());
        }
        Message::new(header, "T", "Echo", &Metadata::new(), &payload)
    }

    /// As much room is taken as came out, and it is back when the payload is dropped; a connection that has taken its
    /// share waits, and another does not.
    #[tokio::test]
    async fn unpacked_bytes_are_counted_and_given_back() {
        let limits = Limits::default().decompressed_bytes_max(1 << 20);
        let room = Room::new(4 << 20, 1 << 20, limits.decompressed_bytes());
        let shares = [room.share(), room.share()];
        let message = packed(700_000, None);
        let (payload, held) = unpack(&message, &limits, &room, &shares[0]).await.expect("valid");
        assert_eq!((payload.len(), room.held()), (700_000, 700_000_usize.next_multiple_of(UNIT)));
        let waits = unpack(&message, &limits, &room, &shares[0]);
        assert!(tokio::time::timeout(Duration::from_millis(20), waits).await.is_err(), "the share is taken");
        let other = unpack(&message, &limits, &room, &shares[1]);
        drop(tokio::time::timeout(Duration::from_secs(60), other).await.expect("room").expect("valid"));
        drop(held);
        assert_eq!(room.held(), 0);
        let again = unpack(&message, &limits, &room, &shares[0]);
        tokio::time::timeout(Duration::from_secs(60), again).await.expect("room").expect("valid");
    }

    /// Who says that a payload is small gets no more room by that.
    #[tokio::test]
    async fn a_lie_about_the_length_takes_the_room_of_the_largest() {
        let limits = Limits::default().decompressed_bytes_max(1 << 20);
        let room = Room::new(1 << 20, 1 << 20, limits.decompressed_bytes());
        let share = room.share();
        let outcome = unpack(&packed(900_000, Some(1)), &limits, &room, &share).await;
        assert!(matches!(outcome, Err(DecodeError::Gzip(_))), "its check sum is wrong");
        let outcome = unpack(&packed(2 << 20, Some(1)), &limits, &room, &share).await;
        assert_eq!(outcome.map(|_| ()), Err(DecodeError::DecompressedTooLarge { max: 1 << 20 }));
        assert_eq!(room.held(), 0);
    }

    /// A share is never too small for one payload, and no number is too large for a room.
    #[test]
    fn a_room_has_room_for_one() {
        let room = Room::new(0, 0, 32 << 20);
        assert_eq!((room.share_units, room.all_units), (32 << 10, 32 << 10));
        let vast = Room::new(usize::MAX, usize::MAX, usize::MAX);
        assert!(vast.share_units <= vast.all_units && 0 < vast.share().available_permits());
    }
}
