//! Packs and unpacks payloads: small ones in place, large ones outside the tasks of connections.
//!
//! A payload of 32 MiB takes some 50 ms to unpack. In the task of its connection that would hold up every other
//! message of this connection, and every connection of the same thread.
//!
//! What comes out is bounded in bytes, for each connection and for all of a server: a payload is unpacked when there
//! is [`Room`] for it, or refused when there was none for ten seconds, and the room is given back when its call has ended and its reply is packed. Replies to calls of
//! this side have a room of their own, until their callers have them: a handler that calls its caller back holds room
//! for its request, and would wait for itself. Packing takes no
//! turns from unpacking: a reply that waits to be packed holds memory, a request that waits to be unpacked holds
//! little.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use bothways_proto::{self as proto, CompressType, DecodeError, Limits, Message};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;

pub(crate) use self::room::{Asker, Held, Room, WAIT_MAX};
use self::turns::{Turn, Turns};
use crate::clock::is_outside;

mod room;
mod turns;

/// Most unpacked bytes of a payload that is packed or unpacked in line. 256 KiB: about as long as a change of
/// threads and back is worth.
pub(crate) const IN_LINE_BYTES: usize = 256 << 10;

/// Payloads that are unpacked apart at once, in this process; as many are packed. Four: each may hold twice
/// `decompressed_bytes_max` while it is unpacked. The others wait for their turn with the packed bytes alone.
const APART_MAX: usize = 4;

/// How long a turn is kept for work that waits for a thread of its runtime.
const BEGIN_MAX: Duration = Duration::from_secs(1);

static UNPACKING: LazyLock<Turns> = LazyLock::new(|| Turns::new(APART_MAX));
static PACKING: LazyLock<Turns> = LazyLock::new(|| Turns::new(APART_MAX));

/// Why there is no unpacked payload.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum NotUnpacked {
    /// It is no valid one.
    Decode(DecodeError),
    /// There was no room for it within [`WAIT_MAX`].
    NoRoom,
}

impl From<DecodeError> for NotUnpacked {
    fn from(error: DecodeError) -> Self {
        Self::Decode(error)
    }
}

impl From<room::NoRoom> for NotUnpacked {
    fn from(_: room::NoRoom) -> Self {
        Self::NoRoom
    }
}

/// The payload of a message that travelled packed, and the room that it takes. Dropping the future stops nothing that
/// has begun; its result is dropped.
///
/// `asker` is the connection whose it is, and `clock` keeps the time on a thread without a runtime.
///
/// # Errors
/// As [`Message::payload`], or that there is no room.
pub(crate) async fn unpack(
    message: &Message,
    limits: &Limits,
    room: &Arc<Room>,
    asker: Asker<'_>,
    clock: impl Fn() -> Option<Handle>,
) -> Result<(Bytes, Held), NotUnpacked> {
    let of = asker.id;
    let max = limits.decompressed_bytes();
    let said = unpacked_len_said(message).min(max);

    let held = room.take(asker, said, &clock).await?;
    // Bounded by the room held: the length is only what the sender says.
    let of_held = limits.clone().decompressed_bytes_max(held.bytes().min(max));
    let unpacked = match said <= IN_LINE_BYTES {
        true => with_room(message.payload(&of_held), held),
        false => unpack_apart(message, of_held, held, of).await,
    };

    match unpacked {
        // It is not as small as its sender says.
        Err(DecodeError::DecompressedTooLarge { max: tried }) if tried < max => {
            let held = room.take(asker, max, &clock).await?;
            Ok(unpack_apart(message, limits.clone(), held, of).await?)
        }
        done => Ok(done?),
    }
}

fn with_room(unpacked: Result<Bytes, DecodeError>, mut held: Held) -> Result<(Bytes, Held), DecodeError> {
    let payload = unpacked?;
    held.shrink(payload.len());
    Ok((payload, held))
}

async fn unpack_apart(message: &Message, limits: Limits, held: Held, of: u64) -> Result<(Bytes, Held), DecodeError> {
    let message = message.clone();
    apart(&UNPACKING, of, move || with_room(message.payload(&limits), held)).await
}

/// The same payload as gzip, for the connection of this number.
pub(crate) async fn pack(payload: Bytes, of: u64) -> Bytes {
    apart(&PACKING, of, move || proto::gzip(&payload).into()).await
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

/// Does something long on a thread for that, when it is the turn of this connection. If no thread takes it up within
/// [`BEGIN_MAX`] the turn is another's, and it runs without one. A caller without a runtime does it itself.
async fn apart<T: Send + 'static>(turns: &Turns, of: u64, work: impl FnOnce() -> T + Send + 'static) -> T {
    let turn = turns.take(of).await;
    if is_outside() {
        let done = work();
        drop(turn);
        return done;
    }

    let turn = NotBegun(Arc::new(Mutex::new(Some(turn))));
    let begins = Arc::clone(&turn.0);
    let mut done = tokio::task::spawn_blocking(move || {
        let turn = begins.lock().take();
        let done = work();
        drop(turn);
        done
    });

    let begun = tokio::time::timeout(BEGIN_MAX, &mut done).await;
    // A no-op once the work has begun: the work then holds the turn itself.
    drop(turn);
    let done = match begun {
        Ok(done) => done,
        Err(_) => done.await,
    };

    match done.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(done) => done,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // The runtime shuts down, and drops the tasks that wait here.
        Err(Err(_)) => std::future::pending().await,
    }
}

/// The turn of work that has not begun. It is given back with this: the threads of one runtime may all be busy, and
/// turns are for all runtimes of the process.
struct NotBegun(Arc<Mutex<Option<Turn>>>);

impl Drop for NotBegun {
    fn drop(&mut self) {
        let turn = self.0.lock().take();
        drop(turn);
    }
}

#[cfg(test)]
mod tests {
    use bothways_proto::{Header, Metadata, Seq, SerializeType, gzip};

    use super::*;

    fn asker<'a>(id: u64) -> Asker<'a> {
        Asker { id, is_over: &|| false, owner: &|| Arc::from("") }
    }

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
        let room = Arc::new(Room::new(4 << 20, 1 << 20, limits.decompressed_bytes()));
        let message = packed(700_000, None);
        let (payload, held) = unpack(&message, &limits, &room, asker(1), || None).await.expect("valid");
        assert_eq!((payload.len(), room.held()), (700_000, (700_000, 1)));
        let waits = unpack(&message, &limits, &room, asker(1), || None);
        assert!(tokio::time::timeout(Duration::from_millis(20), waits).await.is_err(), "the share is taken");
        let other = unpack(&message, &limits, &room, asker(2), || None);
        drop(tokio::time::timeout(Duration::from_secs(60), other).await.expect("room").expect("valid"));
        drop(held);
        assert_eq!(room.held(), (0, 0));
        let again = unpack(&message, &limits, &room, asker(1), || None);
        tokio::time::timeout(Duration::from_secs(60), again).await.expect("room").expect("valid");
    }

    /// A peer that says that a payload is small gets no more room by that.
    #[tokio::test]
    async fn a_lie_about_the_length_takes_the_room_of_the_largest() {
        let limits = Limits::default().decompressed_bytes_max(1 << 20);
        let room = Arc::new(Room::new(1 << 20, 1 << 20, limits.decompressed_bytes()));
        let outcome = unpack(&packed(900_000, Some(1)), &limits, &room, asker(1), || None).await;
        assert!(matches!(outcome, Err(NotUnpacked::Decode(DecodeError::Gzip(_)))), "its check sum is wrong");
        let outcome = unpack(&packed(2 << 20, Some(1)), &limits, &room, asker(1), || None).await;
        assert_eq!(outcome.map(|_| ()), Err(DecodeError::DecompressedTooLarge { max: 1 << 20 }.into()));
        assert_eq!(room.held(), (0, 0));
    }

    /// A runtime whose threads for long work are all busy keeps the turns of others for a second only.
    #[test]
    fn a_runtime_without_a_free_thread_gives_its_turns_back() {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).max_blocking_threads(1).build().expect("it starts");
        runtime.block_on(async {
            let (free, busy) = std::sync::mpsc::channel::<()>();
            let occupied = tokio::task::spawn_blocking(move || busy.recv());
            let turns: &Turns = Box::leak(Box::new(Turns::new(1)));
            let waits = tokio::spawn(apart(turns, 1, || 7));
            let a_moment = || async {
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
            };
            let has_turn = || async {
                tokio::select! {
                    biased;
                    _ = turns.take(2) => true,
                    () = a_moment() => false,
                }
            };
            a_moment().await;
            assert!(!has_turn().await, "it is that of who asked first");
            tokio::time::advance(BEGIN_MAX).await;
            assert!(has_turn().await, "it was given back");

            free.send(()).expect("it waits");
            assert!(occupied.await.expect("no panic").is_ok());
            assert_eq!(waits.await.expect("no panic"), 7);
        });
    }
}
