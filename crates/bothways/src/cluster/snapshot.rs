//! A session as bytes, in parts that the engine takes.

use bothways_proto::SerializeType;
use bytes::{Bytes, BytesMut};

use crate::{
    codec::{Encode, Payload},
    session::SessionImage,
};

/// Most bytes of one part, if the engine takes twice as much; half of what it takes otherwise.
const PART_BYTES_MAX: usize = 512 << 10;

/// Most bytes of a session that goes to another node. A larger one stays where it is.
pub(super) const IMAGE_BYTES_MAX: usize = 64 << 20;

/// How many bytes of a message that an engine takes are for a part.
pub(super) fn part_bytes(message_bytes_max: usize) -> usize {
    (message_bytes_max / 2).clamp(1, PART_BYTES_MAX)
}

/// A session in parts, one at least. `None`: it is too large.
pub(super) fn write(image: &SessionImage, part_bytes: usize) -> Option<Vec<Bytes>> {
    let whole = image.encode(SerializeType::MSGPACK).ok().filter(|whole| whole.len() <= IMAGE_BYTES_MAX)?;
    Some((0..whole.len()).step_by(part_bytes).map(|at| whole.slice(at..whole.len().min(at + part_bytes))).collect())
}

/// The session again. `None`: this is none.
pub(super) fn read(parts: &[Bytes]) -> Option<SessionImage> {
    let mut whole = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    parts.iter().for_each(|part| whole.extend_from_slice(part));
    SessionImage::decode(SerializeType::MSGPACK, whole.freeze()).ok()
}
