//! What goes out. A server's bytes go as they are, behind a header that says how many there are; a client's are masked,
//! and so copied.

use std::{
    io::{self, IoSlice},
    task::Waker,
};

use super::frame::{Header, Opcode, apply_mask, put_control};

/// Most bytes of a frame that a client sends: what it masks at once, and may have to keep. 16 KiB, as a record of TLS.
const MASKED_BYTES_MAX: usize = 16 << 10;

/// Most bytes of Pongs that wait for room in the socket. A peer that sends more Pings, and reads no answer, gets none.
const PONG_BYTES_MAX: usize = 4 << 10;

/// Slices that are written at once, beside what goes before them: those that a connection writes at once.
const SLICES_MAX: usize = 16;

/// See the module.
#[derive(Debug)]
pub(super) struct Out {
    is_client: bool,
    /// What goes before anything else: the rest of a header, control frames, at a client the rest of a masked frame.
    pending: Vec<u8>,
    /// The payload that the header of a server's frame has announced and that was not written yet. Whatever bytes
    /// come next are it.
    left: u64,
    /// Control frames that wait for the end of that frame.
    waiting: Vec<u8>,
    is_closed: bool,
    /// Of the task that polls, to be woken when others leave it something to send.
    pub(super) task: Option<Waker>,
    /// How sending failed after bytes were taken: the next write or flush returns it.
    failed: Option<io::Error>,
}

impl Out {
    pub(super) fn new(is_client: bool) -> Self {
        let (pending, waiting) = (Vec::new(), Vec::new());
        Self { is_client, pending, left: 0, waiting, is_closed: false, task: None, failed: None }
    }

    /// True if it holds what the socket below did not take.
    pub(super) fn has_unsent(&self) -> bool {
        !self.pending.is_empty() || !self.waiting.is_empty()
    }

    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.pending.len() + self.waiting.len()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }

    fn mask(&self) -> Option<[u8; 4]> {
        self.is_client.then(rand::random)
    }

    pub(super) fn pong(&mut self, payload: &[u8]) {
        if !self.is_closed && self.waiting.len() + self.pending.len() < PONG_BYTES_MAX + MASKED_BYTES_MAX {
            let mask = self.mask();
            put_control(&mut self.waiting, Opcode::Pong, payload, mask);
        }
    }

    /// Nothing follows. Within a frame that nobody can end, a Close would be taken for its payload: there is none.
    pub(super) fn close(&mut self, status: u16) {
        if !self.is_closed && self.left == 0 {
            let mask = self.mask();
            put_control(&mut self.waiting, Opcode::Close, &status.to_be_bytes(), mask);
        }
        self.is_closed = true;
    }

    pub(super) fn fail(&mut self, error: io::Error) {
        self.failed.get_or_insert(error);
    }

    /// Tells once how sending failed.
    pub(super) fn check_failed(&mut self) -> io::Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Sends what goes before all others; `WouldBlock` if not all of it goes.
    pub(super) fn send_pending(&mut self, put: &mut impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>) -> io::Result<()> {
        self.gather();
        while !self.pending.is_empty() {
            let sent = not_zero(put(&[IoSlice::new(&self.pending)])?)?;
            self.forget_pending(sent);
        }
        Ok(())
    }

    /// Control frames go when no frame is incomplete.
    fn gather(&mut self) {
        if self.left == 0 && !self.waiting.is_empty() {
            self.pending.append(&mut self.waiting);
            self.waiting = Vec::new();
        }
    }

    fn forget_pending(&mut self, sent: usize) {
        if sent == self.pending.len() {
            self.pending = Vec::new();
        } else {
            self.pending.drain(..sent);
        }
    }

    /// Writes some bytes; `Ok` and an error mean what they do in [`Socket::poll_write`](crate::transport::Socket).
    pub(super) fn write(
        &mut self,
        slices: &[IoSlice<'_>],
        put: &mut impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        self.check_failed()?;
        if self.is_closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if slices.iter().all(|slice| slice.is_empty()) {
            return Ok(0);
        }
        if self.is_client { self.write_masked(slices, put) } else { self.write_plain(slices, put) }
    }

    /// As a server: what is pending, a header, and the bytes themselves, in one write.
    fn write_plain(
        &mut self,
        slices: &[IoSlice<'_>],
        put: &mut impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let slices = &slices[..slices.len().min(SLICES_MAX)];
        let offered = slices.iter().fold(0, |sum, slice| sum + slice.len() as u64);
        loop {
            self.gather();
            let begins = self.left == 0;
            let header = Header::new(Opcode::Binary, offered, None);
            let header = if begins { header.bytes() } else { &[] };
            let room = if begins { offered } else { self.left };

            let mut space = [IoSlice::new(&[]); SLICES_MAX + 2];
            let used = gathered(&mut space, [&self.pending, header], slices, room);
            let sent = not_zero(put(&space[..used])?)?;

            let of_pending = sent.min(self.pending.len());
            let of_header = (sent - of_pending).min(header.len());
            let written = sent - of_pending - of_header;
            let rest = header[of_header..].to_vec();
            let has_begun = begins && 0 < of_header;
            self.forget_pending(of_pending);
            if has_begun {
                (self.pending, self.left) = (rest, offered);
            }
            if 0 < written {
                self.left -= written as u64;
                return Ok(written);
            }
            // Nothing of the bytes themselves has left: the socket is asked once more, and says that it is full.
        }
    }

    /// As a client: a masked copy, which is kept as far as it is not sent.
    fn write_masked(
        &mut self,
        slices: &[IoSlice<'_>],
        put: &mut impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        self.send_pending(put)?;
        let offered = slices.iter().fold(0_usize, |sum, slice| sum.saturating_add(slice.len()));
        let len = offered.min(MASKED_BYTES_MAX);
        let mask = rand::random();
        let header = Header::new(Opcode::Binary, len as u64, Some(mask));
        let mut frame = Vec::with_capacity(header.bytes().len() + len);
        frame.extend_from_slice(header.bytes());
        let begin = frame.len();
        for slice in slices {
            let left = len - (frame.len() - begin);
            frame.extend_from_slice(&slice[..slice.len().min(left)]);
        }
        apply_mask(&mut frame[begin..], mask, 0);

        let sent = not_zero(put(&[IoSlice::new(&frame)])?)?;
        frame.drain(..sent);
        self.pending = frame;
        // From here on some of it is gone, whatever happens: an error is for the next call.
        match self.send_pending(put) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => self.fail(error),
            _ => {}
        }
        Ok(len)
    }
}

/// What goes first, and then the slices, of which no more than `room`. How many places of `space` are used.
fn gathered<'a>(
    space: &mut [IoSlice<'a>; SLICES_MAX + 2],
    first: [&'a [u8]; 2],
    slices: &'a [IoSlice<'_>],
    mut room: u64,
) -> usize {
    let mut used = 0;
    for bytes in first.into_iter().filter(|bytes| !bytes.is_empty()) {
        space[used] = IoSlice::new(bytes);
        used += 1;
    }
    for slice in slices.iter().filter(|slice| !slice.is_empty()) {
        if room == 0 {
            break;
        }
        let slice = &slice[..slice.len().min(usize::try_from(room).unwrap_or(usize::MAX))];
        room -= slice.len() as u64;
        space[used] = IoSlice::new(slice);
        used += 1;
    }
    used
}

fn not_zero(sent: usize) -> io::Result<usize> {
    if sent == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(sent) }
}
