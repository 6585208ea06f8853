//! Where the beginning of a frame is kept until its end arrives.
//!
//! A small frame grows by doubling, up to its size. From [`Buffers::IN_PLACE_FROM`] on a frame has a place of its own that is
//! larger than what has come of it, so that the rest can be read from the socket into it, and is copied no more. How
//! large that is follows from what has come, never from what its prefix promises: see [`room_for`].

use std::marker::PhantomData;

use bytes::Bytes;

use crate::PREFIX_LEN;

/// Of a frame that is read in place so much must have come before it has its place: an eighth of the least size of such
/// a frame. And if less than that is still to come, it comes with what follows the frame.
const PART: usize = 8;

/// A place has room for so many times the bytes that have come.
const TIMES: usize = 4;

/// Where buffers of large frames come from, and where they go when the last slice of the frame is dropped. Called from
/// any thread.
pub trait Buffers: std::fmt::Debug + 'static {
    /// Frames of at least so many bytes are read in place: 96 KiB. Smaller ones are one read and a half, and cheaper to
    /// copy.
    const IN_PLACE_FROM: usize = 96 << 10;

    /// A buffer of at least so many bytes that is there already, if there is one: of no more than an eighth above that.
    /// What is in it is of no meaning.
    fn take(bytes: usize) -> Option<Vec<u8>>;

    /// A buffer is free. Its length is its capacity.
    fn give(buffer: Vec<u8>);
}

/// Buffers are made, and given back to the allocator.
#[derive(Debug)]
pub struct Fresh;

impl Buffers for Fresh {
    fn take(_bytes: usize) -> Option<Vec<u8>> {
        None
    }

    fn give(_buffer: Vec<u8>) {}
}

/// Bytes of a place for a frame of which so many have come: four times as many, or all that is promised if that is five
/// times as many at most.
fn room_for(came: usize, promised: usize) -> usize {
    let room = came.saturating_mul(TIMES);
    if promised <= came.saturating_mul(TIMES + 1) { promised } else { room }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Place<B> {
    /// What has come, and in a large frame room for more behind it.
    bytes: Vec<u8>,
    /// How much of it is room.
    room: u32,
    /// Bytes that are still to be passed over, of a frame of which nothing is kept.
    pub(crate) skip: u32,
    buffers: PhantomData<fn() -> B>,
}

impl<B> Default for Place<B> {
    fn default() -> Self {
        Self { bytes: Vec::new(), room: 0, skip: 0, buffers: PhantomData }
    }
}

impl<B: Buffers> Place<B> {
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Bytes that have come.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.room as usize
    }

    /// Bytes of memory.
    pub(crate) fn held(&self) -> usize {
        self.bytes.capacity()
    }

    pub(crate) fn came(&self) -> &[u8] {
        &self.bytes[..self.len()]
    }

    /// Bytes of the frame when it is all there; `None` before its prefix is.
    pub(crate) fn promised(&self) -> Option<usize> {
        let [.., a, b, c, d] = *self.came().first_chunk::<PREFIX_LEN>()?;
        Some(PREFIX_LEN + u32::from_be_bytes([a, b, c, d]) as usize)
    }

    /// Appends what has come of a frame of so many bytes.
    pub(crate) fn keep(&mut self, more: &[u8], promised: usize) {
        let came = self.len();
        let needed = came + more.len();
        if self.bytes.len() < needed && Self::is_in_place(needed, promised) {
            self.grow(needed, promised);
        }
        if needed <= self.bytes.len() {
            self.bytes[came..needed].copy_from_slice(more);
            self.filled(more.len());
            return;
        }

        if self.bytes.capacity() < needed {
            let room = needed.saturating_mul(2).min(promised.max(needed));
            self.bytes.reserve_exact(room - came);
        }
        self.bytes.extend_from_slice(more);
    }

    /// Room for what comes next. `None`: the frame is small, or little of it has come, or little is still to come.
    pub(crate) fn space(&mut self) -> Option<&mut [u8]> {
        let (came, promised) = (self.len(), self.promised()?);
        if !Self::is_in_place(came, promised) || promised - came < B::IN_PLACE_FROM / PART {
            return None;
        }
        if self.room == 0 {
            self.grow(came, promised);
        }
        let end = self.bytes.len().min(promised);
        Some(&mut self.bytes[came..end])
    }

    /// So many bytes were read into [`Self::space`].
    pub(crate) fn filled(&mut self, bytes: usize) {
        let left = (self.room as usize).checked_sub(bytes).expect("no more is read than there was room for");
        self.room = left as u32;
    }

    fn is_in_place(came: usize, promised: usize) -> bool {
        B::IN_PLACE_FROM <= promised && B::IN_PLACE_FROM / PART <= came
    }

    /// Moves what has come to a larger place. One that was there already may be as large as the frame.
    #[cold]
    fn grow(&mut self, needed: usize, promised: usize) {
        let room = room_for(needed, promised);
        let there = B::take(promised).or_else(|| B::take(room));
        let mut bytes = there.unwrap_or_else(|| vec![0; room]);
        let came = self.len();
        bytes[..came].copy_from_slice(self.came());
        // The body of a frame is 4 GiB at most, and some of it has come.
        self.room = u32::try_from(bytes.len() - came).unwrap_or(u32::MAX);
        let small = std::mem::replace(&mut self.bytes, bytes);
        give::<B>(small);
    }

    /// Takes out what has come.
    pub(crate) fn take(&mut self) -> Bytes {
        let came = self.len();
        self.room = 0;
        let mut bytes = std::mem::take(&mut self.bytes);
        if is_whole::<B>(&bytes) {
            let mut lent = Bytes::from_owner(Lent::<B> { bytes, buffers: PhantomData });
            lent.truncate(came);
            return lent;
        }
        bytes.truncate(came);
        bytes.into()
    }

    pub(crate) fn clear(&mut self) {
        let Self { bytes, .. } = std::mem::take(self);
        give::<B>(bytes);
    }
}

/// True of a buffer that may be of use to others.
fn is_whole<B: Buffers>(buffer: &Vec<u8>) -> bool {
    B::IN_PLACE_FROM <= buffer.len() && buffer.len() == buffer.capacity()
}

fn give<B: Buffers>(buffer: Vec<u8>) {
    if is_whole::<B>(&buffer) {
        B::give(buffer);
    }
}

/// A buffer that goes back when the last slice of it is dropped.
struct Lent<B: Buffers> {
    bytes: Vec<u8>,
    buffers: PhantomData<fn() -> B>,
}

impl<B: Buffers> AsRef<[u8]> for Lent<B> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl<B: Buffers> Drop for Lent<B> {
    fn drop(&mut self) {
        B::give(std::mem::take(&mut self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However much is promised, the room follows from what has come.
    #[test]
    fn room_follows_from_what_has_come() {
        for (came, promised, room) in
            [(100, 8 << 20, 400), (100, 500, 500), (100, 501, 400), (100, 300, 300), (0, 1000, 0), (1, usize::MAX, 4)]
        {
            assert_eq!(room_for(came, promised), room, "{came} of {promised}");
        }
        assert_eq!(room_for(usize::MAX / 2, usize::MAX), usize::MAX);
    }
}
