//! Bytes → messages: bounds first, then slices.
//!
//! The only file that reads a frame's length from a peer; it checks it before any memory is taken.

use bytes::{Buf, Bytes};

use crate::{
    DecodeError, Header, Limits, MAGIC, Message, PREFIX_LEN,
    place::{Buffers, Fresh, Place},
};

/// The bytes of the frame at the start of `bytes`, prefix included. `None`: the prefix is not all
/// there yet, and nothing in what is there is wrong.
///
/// # Errors
/// [`DecodeError::WrongMagic`] and [`DecodeError::TooLarge`], as soon as the byte that shows it is there.
pub fn frame_len(bytes: &[u8], limits: &Limits) -> Result<Option<usize>, DecodeError> {
    match bytes.first() {
        Some(&MAGIC) => {}
        Some(&found) => return Err(DecodeError::WrongMagic { found }),
        None => return Ok(None),
    }
    let Some(prefix) = bytes.first_chunk::<PREFIX_LEN>() else {
        return Ok(None);
    };
    let [.., a, b, c, d] = *prefix;
    let (len, max) = (u32::from_be_bytes([a, b, c, d]) as usize, limits.body_bytes());
    if max < len {
        return Err(DecodeError::TooLarge { len, max });
    }
    Ok(Some(PREFIX_LEN + len))
}

/// Cuts a stream of bytes into messages.
///
/// Feed it what a read brought, then take messages until there is none. The frames that one
/// [`feed`](Self::feed) brought whole share one allocation of exactly their size, so that a kept
/// message pins little. A frame that is not all there is collected in a buffer of its own, which
/// grows with the bytes that really arrived, never with what a prefix promises. Between frames it holds no memory.
///
/// The rest of a large frame that has begun may be read in place, without a copy: see [`space`](Self::space).
#[derive(Debug)]
pub struct Deframer<B = Fresh> {
    /// The frame that earlier reads began and the last one ended, if it was not yet taken.
    finished: Bytes,
    /// The frames after it that the last read brought whole.
    ready: Bytes,
    /// How many bytes these were when they were read.
    ready_len: u32,
    /// Something was wrong: nothing more is taken in.
    broken: bool,
    /// The beginning of a frame whose end has not arrived. While a frame is passed over, what is still to come of it.
    partial: Place<B>,
    /// The last thing that was wrong.
    wrong: Option<Box<Wrong>>,
}

#[derive(Debug)]
struct Wrong {
    /// The error after the frames in `ready`, until it is reported.
    error: Option<DecodeError>,
    /// The header of the frame, if it has one.
    header: Option<Header>,
}

impl<B: Buffers> Default for Deframer<B> {
    fn default() -> Self {
        Self {
            finished: Bytes::new(),
            ready: Bytes::new(),
            ready_len: 0,
            broken: false,
            partial: Place::default(),
            wrong: None,
        }
    }
}

impl Deframer {
    /// A deframer at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }
}

impl<B: Buffers> Deframer<B> {
    /// Takes the next bytes of the stream in. After an error it takes nothing.
    ///
    /// Messages of the last call that wait still come first. They are copied for that: who takes them by
    /// [`next_message`](Self::next_message) before feeding again saves it.
    pub fn feed(&mut self, input: &[u8], limits: &Limits) {
        if self.broken {
            return;
        }
        if self.finished.is_empty() && self.ready.is_empty() {
            return self.feed_more(input, limits);
        }
        let mut waiting = [std::mem::take(&mut self.finished), std::mem::take(&mut self.ready)].concat();
        self.feed_more(input, limits);
        waiting.extend_from_slice(&std::mem::take(&mut self.finished));
        waiting.extend_from_slice(&self.ready);
        self.ready_len = u32::try_from(waiting.len()).unwrap_or(u32::MAX);
        self.ready = waiting.into();
    }

    fn feed_more(&mut self, mut input: &[u8], limits: &Limits) {
        if self.is_mid_frame() {
            match self.end_frame(input, limits) {
                Some(behind) => input = behind,
                None => return,
            }
        }
        let whole = self.whole_frames(input, limits);
        let (frames, rest) = input.split_at(whole);
        self.ready = Bytes::copy_from_slice(frames);
        if !rest.is_empty() && !self.broken {
            self.take_rest(rest, limits);
        }
        self.ready_len = u32::try_from(self.ready.len()).unwrap_or(u32::MAX);
    }

    /// Takes in more of the frame that has begun. `None`: it has not ended.
    fn end_frame<'a>(&mut self, mut input: &'a [u8], limits: &Limits) -> Option<&'a [u8]> {
        input = self.pass_over(input);
        if !self.partial.is_empty() {
            input = self.fill_partial(input, limits);
            self.finished = self.take_finished()?;
            input = self.pass_over(input);
        }
        Some(input)
    }

    /// Takes in what comes after the whole frames: the beginning of one, or those that are to be passed over, and what
    /// comes after them.
    fn take_rest(&mut self, mut rest: &[u8], limits: &Limits) {
        let mut ready = Vec::new();
        loop {
            rest = self.fill_partial(rest, limits);
            // It is passed over: its prefix stands for it.
            let Some(prefix) = self.take_finished() else { break };
            // The whole frames before it stay first.
            if ready.is_empty() {
                ready.extend_from_slice(&self.ready);
            }
            ready.extend_from_slice(&prefix);

            rest = self.pass_over(rest);
            let whole = self.whole_frames(rest, limits);
            ready.extend_from_slice(&rest[..whole]);
            rest = &rest[whole..];
            if self.broken {
                break;
            }
        }

        if !ready.is_empty() {
            self.ready = ready.into();
        }
    }

    /// What `partial` holds, if that is a whole frame, or the prefix of one that is passed over.
    fn take_finished(&mut self) -> Option<Bytes> {
        let is_whole = match self.is_passing_over() {
            true => !self.partial.is_empty(),
            false => self.partial.promised().is_some_and(|promised| promised <= self.partial.len()),
        };
        is_whole.then(|| self.partial.take())
    }

    /// Room for what the stream brings next, if that is part of a large frame that has begun, and nothing else waits.
    /// What is read into it is told by [`filled`](Self::filled). `None`: it goes by [`feed`](Self::feed).
    pub fn space(&mut self) -> Option<&mut [u8]> {
        if self.partial.is_empty() || !self.is_drained() { None } else { self.partial.space() }
    }

    /// So many bytes of the stream were read into the room that [`space`](Self::space) gave last.
    ///
    /// # Panics
    /// If it gave none, or less.
    pub fn filled(&mut self, bytes: usize) {
        let lacking = self.partial.promised().map_or(0, |promised| promised - self.partial.len());
        assert!(bytes <= lacking, "{bytes} bytes were read into room for {lacking}");
        self.partial.filled(bytes);
        if let Some(finished) = self.take_finished() {
            self.finished = finished;
        }
    }

    /// Drops what belongs to the frame that is passed over; returns what follows it.
    fn pass_over<'a>(&mut self, input: &'a [u8]) -> &'a [u8] {
        let passed = (self.partial.skip as usize).min(input.len());
        self.partial.skip -= passed as u32;
        &input[passed..]
    }

    /// The next message; `None` when what was fed is used up.
    ///
    /// # Errors
    /// Any [`DecodeError`]. After [`DecodeError::MetadataTooLarge`], and after a [`DecodeError::TooLarge`] of at most
    /// [`Limits::passed_over_bytes`], the stream goes on after that frame, of which nothing is kept as it comes. After
    /// any other it cannot: every later call returns `None`. [`Self::refused`] says whose frame it was, and
    /// [`Self::is_broken`] whether the stream goes on.
    pub fn next_message(&mut self, limits: &Limits) -> Result<Option<Message>, DecodeError> {
        let (frames, chunk_len) = match self.finished.is_empty() {
            true => (&mut self.ready, self.ready_len),
            false => (&mut self.finished, 0),
        };

        if frames.is_empty() {
            let error = self.wrong.as_mut().and_then(|wrong| wrong.error.take());
            return error.map_or(Ok(None), Err);
        }

        let head = frames.first_chunk().copied();
        let error = match frame_len(frames, limits) {
            Ok(Some(len)) if len <= frames.len() => {
                match Message::parse_part(frames.split_to(len), limits, chunk_len) {
                    Ok(message) => return Ok(Some(message)),
                    Err(error) => error,
                }
            }
            // These limits are not those by which it was cut.
            Ok(_) => DecodeError::Truncated { part: "body", body_len: frames.len() },
            Err(error) => {
                // All that there is of a frame that is passed over.
                frames.advance(PREFIX_LEN.min(frames.len()));
                error
            }
        };

        self.note_wrong(&error, head.as_ref().and_then(Header::from_bytes), limits);
        Err(error)
    }

    /// The frame with this header is wrong: it is passed over, or nothing more is taken in.
    #[cold]
    fn note_wrong(&mut self, error: &DecodeError, header: Option<Header>, limits: &Limits) {
        if is_passed_over(error, limits) {
            let error = self.wrong.take().and_then(|wrong| wrong.error);
            self.wrong = Some(Box::new(Wrong { error, header }));
        } else {
            self.fail(None, header);
            self.finished.clear();
            self.ready.clear();
        }
    }

    /// True if [`next_message`](Self::next_message) has nothing more to say of what was fed.
    pub fn is_drained(&self) -> bool {
        self.finished.is_empty()
            && self.ready.is_empty()
            && self.wrong.as_ref().is_none_or(|wrong| wrong.error.is_none())
    }

    /// True in the middle of a frame: an end of the stream here loses something.
    pub fn is_mid_frame(&self) -> bool {
        !self.partial.is_empty() || self.is_passing_over()
    }

    /// True in the middle of a frame that is too large, and whose bytes are dropped as they come.
    pub fn is_passing_over(&self) -> bool {
        self.partial.skip != 0
    }

    /// True once nothing more is taken in: where the next frame begins is not known.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// The header of the frame of which an error was last told: who sent it can be answered.
    pub fn refused(&self) -> Option<Header> {
        self.wrong.as_ref()?.header
    }

    /// The header of the frame that is not all there, and its bytes when it will be; `None` before its
    /// prefix is there.
    pub fn promised(&self) -> Option<(Header, usize)> {
        let header = self.partial.came().first_chunk().and_then(Header::from_bytes)?;
        Some((header, self.partial.promised()?))
    }

    /// Bytes that came of a frame that is not all there, and are kept.
    pub fn partial_bytes(&self) -> usize {
        self.partial.len()
    }

    /// Bytes of memory that are held for it: with the room for what comes next, up to five times as many. More only
    /// where a buffer was taken that was there already.
    pub fn held_bytes(&self) -> usize {
        self.partial.held()
    }

    /// Bytes of a frame that came in parts, is all there, and was not taken yet.
    pub fn finished_bytes(&self) -> usize {
        self.finished.len()
    }

    /// Bytes that came of a frame that is not all there. Of one that is passed over it is more than that: what grows by
    /// each byte that comes.
    pub fn begun_bytes(&self, limits: &Limits) -> usize {
        match self.partial.skip as usize {
            0 => self.partial.len(),
            skip => limits.passed_over_bytes().saturating_sub(skip) + PREFIX_LEN,
        }
    }

    /// Moves into `partial` what it lacks, at most; returns what is left of `input`.
    fn fill_partial<'a>(&mut self, mut input: &'a [u8], limits: &Limits) -> &'a [u8] {
        let came = self.partial.len();
        if came < PREFIX_LEN {
            let lacking = (PREFIX_LEN - came).min(input.len());
            self.partial.keep(&input[..lacking], PREFIX_LEN);
            input.advance(lacking);

            // Checked before there is any memory for the body.
            match frame_len(self.partial.came(), limits) {
                Ok(_) => {}
                Err(DecodeError::TooLarge { len, .. }) if len <= limits.passed_over_bytes() => {
                    // A length on the wire has 32 bits.
                    self.partial.skip = len as u32;
                    return input;
                }
                Err(error) => {
                    let header = self.partial.came().first_chunk().and_then(Header::from_bytes);
                    self.fail(Some(error), header);
                    return input;
                }
            }
        }

        if let Some(promised) = self.partial.promised() {
            let lacking = (promised - self.partial.len()).min(input.len());
            self.partial.keep(&input[..lacking], promised);
            input.advance(lacking);
        }
        input
    }

    /// How many bytes at the start of `input` are whole frames.
    fn whole_frames(&mut self, input: &[u8], limits: &Limits) -> usize {
        let mut at = 0;
        loop {
            match frame_len(&input[at..], limits) {
                Ok(Some(len)) if len <= input.len() - at => at += len,
                Ok(_) => return at,
                Err(DecodeError::TooLarge { len, .. }) if len <= limits.passed_over_bytes() => return at,
                Err(error) => {
                    self.fail(Some(error), input[at..].first_chunk().and_then(Header::from_bytes));
                    return at;
                }
            }
        }
    }

    fn fail(&mut self, error: Option<DecodeError>, header: Option<Header>) {
        self.wrong = Some(Box::new(Wrong { error, header }));
        self.broken = true;
        self.partial.clear();
    }
}

/// True if this costs its frame only: where the next one begins is known.
fn is_passed_over(error: &DecodeError, limits: &Limits) -> bool {
    match error {
        DecodeError::MetadataTooLarge { .. } => true,
        DecodeError::TooLarge { len, .. } => *len <= limits.passed_over_bytes(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use hex_literal::hex;

    use super::*;
    use crate::{Metadata, Seq, SerializeType};

    fn push(number: u64, payload: &[u8]) -> Bytes {
        let header = Header::oneway(Seq::new(number), SerializeType::RAW);
        Message::new(header, "Chat", "say", &Metadata::new(), payload).frame().clone()
    }

    /// What came out of a stream cut into pieces of these sizes.
    fn cut(stream: &[u8], sizes: impl Iterator<Item = usize>) -> (Vec<u64>, Option<DecodeError>) {
        let (limits, mut deframer, mut seqs, mut rest) = (Limits::default(), Deframer::new(), Vec::new(), stream);
        for size in sizes {
            let (piece, tail) = rest.split_at(size.min(rest.len()));
            rest = tail;
            deframer.feed(piece, &limits);
            loop {
                match deframer.next_message(&limits) {
                    Ok(Some(message)) => seqs.push(message.header().seq().get()),
                    Ok(None) => break,
                    Err(error) => return (seqs, Some(error)),
                }
            }
            if rest.is_empty() {
                break;
            }
        }
        (seqs, None)
    }

    /// The same messages come out, however the stream is cut.
    #[test]
    fn cuts_do_not_matter() {
        let stream: Vec<u8> = (0..20).flat_map(|n| push(n, &vec![n as u8; n as usize * 7])).collect();
        let all: Vec<u64> = (0..20).collect();
        for size in 1..stream.len() {
            assert_eq!(cut(&stream, std::iter::repeat(size)), (all.clone(), None), "pieces of {size}");
        }
    }

    /// What precedes a broken frame is delivered, in whatever pieces it came, and nothing after it.
    #[test]
    fn frames_before_a_broken_one_are_delivered() {
        let stream = [&push(1, b"a")[..], &push(2, b"b"), &hex!("09"), &push(3, b"c")].concat();
        for size in 1..=stream.len() {
            let expected = (vec![1, 2], Some(DecodeError::WrongMagic { found: 9 }));
            assert_eq!(cut(&stream, std::iter::repeat(size)), expected, "pieces of {size}");
        }
    }

    /// A lone prefix that promises 4 GiB is an error, and takes no memory.
    #[test]
    fn a_promise_takes_no_memory() {
        let limits = Limits::default();
        let mut deframer = Deframer::new();
        deframer.feed(&hex!("08 00 00 30 0000000000000001 ffffffff"), &limits);
        let max = limits.body_bytes();
        assert_eq!(deframer.next_message(&limits), Err(DecodeError::TooLarge { len: 0xffff_ffff, max }));
        assert_eq!(deframer.next_message(&limits), Ok(None));
        deframer.feed(&push(1, b""), &limits);
        assert_eq!(deframer.next_message(&limits), Ok(None));
        assert_eq!(deframer.partial_bytes(), 0);
    }

    /// A frame within the limit grows with what arrives, not with what is promised.
    #[test]
    fn a_buffer_grows_with_what_arrived() {
        let limits = Limits::default();
        let mut deframer = Deframer::new();
        deframer.feed(&hex!("08 00 00 30 0000000000000001 00700000"), &limits);
        assert!(deframer.partial.held() < 1024, "{}", deframer.partial.held());
        deframer.feed(&[0; 4096], &limits);
        assert!(deframer.partial.held() < 16 << 10, "{}", deframer.partial.held());
        assert!(deframer.is_mid_frame());
    }

    /// The rest of a large frame is read in place: its bytes are copied no more, and the message keeps the whole buffer.
    #[test]
    fn the_rest_of_a_large_frame_is_read_in_place() {
        let (limits, frame) = (Limits::default(), push(7, &vec![9; 1 << 20]));
        let mut deframer = Deframer::new();
        assert!(deframer.space().is_none(), "no frame has begun");
        let mut rest = &frame[..];
        deframer.feed(&rest[..Fresh::IN_PLACE_FROM / 8 - 1], &limits);
        rest.advance(Fresh::IN_PLACE_FROM / 8 - 1);
        assert!(deframer.space().is_none(), "little of it has come");
        deframer.feed(&rest[..1], &limits);
        rest.advance(1);

        let mut rooms = Vec::new();
        while let Some(space) = deframer.space() {
            rooms.push(space.len());
            let room = space.len();
            space.copy_from_slice(&rest[..room]);
            rest.advance(room);
            deframer.filled(room);
            assert!(deframer.held_bytes() <= 5 * deframer.partial_bytes());
        }
        assert_eq!(rooms, [36 << 10, 144 << 10, 576 << 10, frame.len() - (768 << 10)]);
        let message = deframer.next_message(&limits).expect("valid").expect("whole");
        assert_eq!((message.frame(), message.pinned_bytes()), (&frame, frame.len()));
        assert!(!deframer.is_mid_frame() && deframer.held_bytes() == 0);
    }

    /// What is left of a frame when that is little comes with what follows it.
    #[test]
    fn the_end_of_a_frame_comes_with_the_next_one() {
        let (limits, frame) = (Limits::default(), push(7, &vec![9; 200 << 10]));
        let mut deframer = Deframer::new();
        deframer.feed(&frame[..frame.len() - Fresh::IN_PLACE_FROM / 8], &limits);
        assert_eq!(deframer.space().map(|space| space.len()), Some(Fresh::IN_PLACE_FROM / 8));
        deframer.filled(1);
        assert!(deframer.space().is_none());
        let rest = [&frame[frame.len() + 1 - Fresh::IN_PLACE_FROM / 8..], &push(8, b"next")].concat();
        deframer.feed(&rest, &limits);
        for number in [7, 8] {
            assert_eq!(deframer.next_message(&limits).expect("valid").expect("whole").header().seq().get(), number);
        }
    }

    /// A frame beyond the limit costs only itself: its bytes are dropped as they come, in any pieces, and its header is
    /// known. Beyond sixteen times the limit the stream ends.
    #[test]
    fn a_frame_that_is_too_large_is_passed_over() {
        let limits = Limits::default().body_bytes_max(100);
        let too_large = [push(2, &[2; 400]), push(4, &[4; 85]), push(5, &[5; 1500])];
        let small = [push(1, b"a"), push(3, b"b"), push(6, b"c")];
        let order = [&small[0], &too_large[0], &small[1], &too_large[1], &too_large[2], &small[2]];
        let stream = order.map(|frame| &frame[..]).concat();
        for size in 1..=stream.len() {
            let (mut deframer, mut told) = (Deframer::new(), Vec::new());
            for piece in stream.chunks(size) {
                deframer.feed(piece, &limits);
                assert!(deframer.partial_bytes() <= 116, "pieces of {size}");
                while !deframer.is_drained() {
                    match deframer.next_message(&limits) {
                        Ok(Some(message)) => told.push((message.header().seq().get(), true)),
                        Ok(None) => break,
                        Err(DecodeError::TooLarge { .. }) => {
                            told.push((deframer.refused().expect("it has a header").seq().get(), false));
                        }
                        Err(error) => panic!("pieces of {size}: {error}"),
                    }
                }
            }
            let expected = [(1, true), (2, false), (3, true), (4, false), (5, false), (6, true)];
            assert_eq!(told, expected, "pieces of {size}");
            assert!(!deframer.is_broken() && !deframer.is_mid_frame(), "pieces of {size}");
        }

        let mut deframer = Deframer::new();
        deframer.feed(&push(1, &[0; 1600]), &limits);
        assert!(matches!(deframer.next_message(&limits), Err(DecodeError::TooLarge { .. })));
        assert!(deframer.is_broken());
    }

    /// Between frames nothing is held.
    #[test]
    fn nothing_is_held_between_frames() {
        let (limits, frame) = (Limits::default(), push(1, &[0; 5000]));
        let mut deframer = Deframer::new();
        for piece in frame.chunks(1000) {
            deframer.feed(piece, &limits);
        }
        assert_eq!(deframer.next_message(&limits).expect("valid").expect("whole").wire_payload().len(), 5000);
        assert_eq!((deframer.partial.held(), deframer.ready.len(), deframer.is_mid_frame()), (0, 0, false));
    }

    /// A frame that came in pieces pins its own size: not the doubled buffer, not its neighbours.
    #[test]
    fn a_frame_in_pieces_pins_its_own_size() {
        let (limits, frame) = (Limits::default(), push(1, &[0; 5000]));
        let stream = [&frame[..], &push(2, b"neighbour")].concat();
        let mut deframer = Deframer::new();
        deframer.feed(&stream[..3000], &limits);
        deframer.feed(&stream[3000..5001], &limits);
        assert!(deframer.partial.held() <= frame.len(), "{}", deframer.partial.held());
        deframer.feed(&stream[5001..], &limits);
        assert_eq!(deframer.finished.len(), frame.len());
        for number in [1, 2] {
            let message = deframer.next_message(&limits).expect("valid").expect("whole");
            assert_eq!(message.header().seq().get(), number);
        }
    }

    /// Behind a malformed frame nothing comes out: not the frames after it, not what is wrong with
    /// those, and not what is fed later.
    #[test]
    fn nothing_follows_a_malformed_frame() {
        let malformed = hex!("08 00 00 30 0000000000000001 00000000");
        let stream = [&malformed[..], &push(1, b"later"), &hex!("09")].concat();
        // A lower limit than the frame was cut by is an error too.
        for (end, tight) in [(stream.len(), false), (stream.len(), true), (15, false), (15, true)] {
            let limits = Limits::default();
            let taking = if tight { Limits::default().body_bytes_max(0) } else { Limits::default() };
            let mut deframer = Deframer::new();
            let stream = if tight { &stream[malformed.len()..] } else { &stream[..] };
            deframer.feed(&stream[..end.min(stream.len())], &limits);
            if end == 15 {
                assert_eq!(deframer.next_message(&limits), Ok(None));
                deframer.feed(&stream[end..], &limits);
            }
            assert!(deframer.next_message(&taking).is_err());
            for _ in 0..2 {
                assert_eq!(deframer.next_message(&limits), Ok(None));
                deframer.feed(&push(2, b"later still"), &limits);
            }
        }
    }

    /// Too much metadata costs its frame; whose it was is known, and what follows is read.
    #[test]
    fn too_much_metadata_costs_one_frame() {
        let limits = Limits::default().metadata_pairs_max(1);
        let header = Header::oneway(Seq::new(7), SerializeType::RAW);
        let two = Metadata::new().with("a", "1").with("b", "2");
        let stream = [Message::new(header, "T", "x", &two, b"").frame(), &push(8, b"next")[..]].concat();
        for size in [stream.len(), 7] {
            let (mut deframer, mut refused, mut taken) = (Deframer::new(), None, Vec::new());
            for piece in stream.chunks(size) {
                deframer.feed(piece, &limits);
                loop {
                    match deframer.next_message(&limits) {
                        Ok(Some(message)) => taken.push(message.header().seq().get()),
                        Ok(None) => break,
                        Err(error) => refused = Some((error, deframer.refused().map(|header| header.seq().get()))),
                    }
                }
            }
            let error = DecodeError::MetadataTooLarge { found: 2, max: 1, unit: "pairs" };
            assert_eq!((refused, taken), (Some((error, Some(7))), vec![8]));
        }
    }

    /// A frame that is too large is known by its number, and so is one that has not arrived.
    #[test]
    fn a_frame_is_known_before_it_is_there() {
        let limits = Limits::default();
        let mut deframer = Deframer::new();
        deframer.feed(&hex!("08 00 00 30 0000000000000009 00000100 0000"), &limits);
        assert_eq!(deframer.promised().map(|(header, len)| (header.seq().get(), len)), Some((9, PREFIX_LEN + 256)));
        for size in [16, 3] {
            let mut deframer = Deframer::new();
            for piece in hex!("08 00 00 30 0000000000000005 ffffffff").chunks(size) {
                deframer.feed(piece, &limits);
            }
            assert!(matches!(deframer.next_message(&limits), Err(DecodeError::TooLarge { .. })));
            assert_eq!(deframer.refused().map(|header| header.seq().get()), Some(5));
        }
    }

    /// Bytes that are fed while messages wait come after them, however the stream is cut.
    #[test]
    fn feeding_over_waiting_messages_keeps_their_order() {
        let limits = Limits::default();
        let stream: Vec<u8> = (0..5).flat_map(|n| push(n, &[7; 30])).collect();
        for size in 1..stream.len() {
            let mut deframer = Deframer::new();
            stream.chunks(size).for_each(|piece| deframer.feed(piece, &limits));
            for number in 0..5 {
                let message = deframer.next_message(&limits).expect("valid").expect("whole");
                assert_eq!(message.header().seq().get(), number, "pieces of {size}");
            }
            assert!(deframer.is_drained());
        }
    }

    /// The largest limit still leaves room for the prefix in a `usize`, of 32 bits too.
    #[test]
    fn the_largest_limit_does_not_overflow() {
        let limits = Limits::default().body_bytes_max(usize::MAX);
        let largest = hex!("08 00 00 30 0000000000000001 ffffffff");
        match frame_len(&largest, &limits) {
            Ok(Some(len)) => assert_eq!(len, PREFIX_LEN + u32::MAX as usize),
            Err(DecodeError::TooLarge { len, max }) => assert!(max < len && max.checked_add(PREFIX_LEN).is_some()),
            other => panic!("{other:?}"),
        }
    }
}
