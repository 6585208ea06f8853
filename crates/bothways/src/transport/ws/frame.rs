//! The frames of RFC 6455.

use std::borrow::Cow;

/// The longest header: 2 bytes, 8 of a length, 4 of a mask.
const HEADER_BYTES_MAX: usize = 14;

/// The longest payload of a Ping, Pong or Close.
const CONTROL_BYTES_MAX: u8 = 125;

/// Pings of one read that are answered: those before them are not.
const PINGS_MAX: usize = 16;

/// The status of a Close, as RFC 6455 has them in section 7.4.1.
pub(super) mod status {
    pub(in super::super) const NORMAL: u16 = 1000;
    pub(in super::super) const GOING_AWAY: u16 = 1001;
    pub(in super::super) const PROTOCOL: u16 = 1002;
    pub(in super::super) const NOT_UTF8: u16 = 1007;
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Opcode {
    Continuation = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

impl Opcode {
    fn of(bits: u8) -> Option<Self> {
        [Self::Continuation, Self::Text, Self::Binary, Self::Close, Self::Ping, Self::Pong]
            .into_iter()
            .find(|opcode| *opcode as u8 == bits)
    }

    fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// The header of a frame that goes out. Each is the last of its message.
#[derive(Debug)]
pub(super) struct Header {
    bytes: [u8; HEADER_BYTES_MAX],
    len: usize,
}

impl Header {
    pub(super) fn new(opcode: Opcode, payload_bytes: u64, mask: Option<[u8; 4]>) -> Self {
        const FIN: u8 = 0x80;
        const MASKED: u8 = 0x80;
        let mut header = Self { bytes: [0; HEADER_BYTES_MAX], len: 0 };
        header.put(&[FIN | opcode as u8]);
        let masked = if mask.is_some() { MASKED } else { 0 };
        match (u8::try_from(payload_bytes), u16::try_from(payload_bytes)) {
            (Ok(len @ ..=CONTROL_BYTES_MAX), _) => header.put(&[masked | len]),
            (_, Ok(len)) => {
                header.put(&[masked | 126]);
                header.put(&len.to_be_bytes());
            }
            _ => {
                header.put(&[masked | 127]);
                header.put(&payload_bytes.to_be_bytes());
            }
        }
        if let Some(mask) = mask {
            header.put(&mask);
        }
        header
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Puts a whole Ping, Pong or Close behind others. Of the payload no more is sent than may be.
pub(super) fn put_control(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8], mask: Option<[u8; 4]>) {
    let payload = &payload[..payload.len().min(CONTROL_BYTES_MAX.into())];
    out.extend_from_slice(Header::new(opcode, payload.len() as u64, mask).bytes());
    let begin = out.len();
    out.extend_from_slice(payload);
    if let Some(mask) = mask {
        apply_mask(&mut out[begin..], mask, 0);
    }
}

/// Masks or unmasks bytes that stand at this place of their payload.
pub(super) fn apply_mask(bytes: &mut [u8], mut mask: [u8; 4], place: usize) {
    mask.rotate_left(place % 4);
    let wide = u64::from_ne_bytes([mask, mask].concat().try_into().expect("four and four are eight"));
    let (chunks, rest) = bytes.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

/// How what a peer sends comes to its end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum End {
    /// It has sent a Close, with this status and reason.
    Closed(Option<(u16, Box<str>)>),
    /// It has broken the rules, and is to be told this status.
    Broken(u16, &'static str),
}

/// Reads frames, in place: a header that is cut off is all that it keeps. Each idle connection has one: what is rare is
/// apart.
#[derive(Debug)]
pub(super) struct Reader {
    /// A client masks what it sends, and a server does not.
    is_masked: bool,
    /// A message has begun, and its last frame has not come.
    is_mid_message: bool,
    header: [u8; HEADER_BYTES_MAX],
    header_bytes: u8,
    /// Of the frame whose header is complete: how much of its payload is missing, and by how much more than fours it was
    /// there.
    left: u64,
    place: u8,
    mask: [u8; 4],
    /// That frame is a control frame, and this its payload so far.
    control: Option<Box<(Opcode, Vec<u8>)>>,
    pings: Option<Box<Pings>>,
    end: Option<Box<End>>,
}

/// Payloads of Pings, in order.
#[derive(Debug, Default)]
struct Pings(Vec<Vec<u8>>);

#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<Reader>() == 56);

impl Reader {
    /// `is_masked`: of a client's frames.
    pub(super) fn new(is_masked: bool) -> Self {
        Self {
            is_masked,
            header: [0; HEADER_BYTES_MAX],
            header_bytes: 0,
            left: 0,
            place: 0,
            mask: [0; 4],
            control: None,
            is_mid_message: false,
            pings: None,
            end: None,
        }
    }

    /// Payloads of Pings that came since the last question, in order.
    pub(super) fn take_pings(&mut self) -> Vec<Vec<u8>> {
        self.pings.take().map(|pings| pings.0).unwrap_or_default()
    }

    /// How it ended, if it has.
    pub(super) fn end(&self) -> Option<&End> {
        self.end.as_deref()
    }

    /// Takes what came. The payload in it moves to the front; answers how much it is. What follows an end is left.
    pub(super) fn take(&mut self, bytes: &mut [u8]) -> usize {
        let (mut read, mut kept) = (0, 0);
        while self.end.is_none() && read < bytes.len() {
            if self.left == 0 {
                self.header[usize::from(self.header_bytes)] = bytes[read];
                self.header_bytes += 1;
                read += 1;
                if let Err((status, why)) = self.look_at_header() {
                    self.end = Some(Box::new(End::Broken(status, why)));
                }
                continue;
            }

            let here = (bytes.len() - read).min(usize::try_from(self.left).unwrap_or(usize::MAX));
            let place = self.place.into();
            match self.control.as_deref_mut() {
                Some((_, payload)) => {
                    let begin = payload.len();
                    payload.extend_from_slice(&bytes[read..read + here]);
                    apply_mask(&mut payload[begin..], self.mask, place);
                }
                None => {
                    bytes.copy_within(read..read + here, kept);
                    if self.is_masked {
                        apply_mask(&mut bytes[kept..kept + here], self.mask, place);
                    }
                    kept += here;
                }
            }
            read += here;
            self.left -= here as u64;
            self.place = ((place + here) % 4) as u8;
            if self.left == 0 {
                self.end_frame();
            }
        }
        kept
    }

    /// What is known of the header so far: an error as soon as it is one, and the frame begins when it is complete.
    fn look_at_header(&mut self) -> Result<(), (u16, &'static str)> {
        let broken = |why| Err((status::PROTOCOL, why));
        let [first, second, ..] = self.header;
        let (is_last, opcode) = (first & 0x80 != 0, Opcode::of(first & 0x0F));
        let Some(opcode) = opcode.filter(|_| first & 0x70 == 0) else {
            return broken("a frame has an opcode or a bit that means nothing");
        };
        if self.header_bytes < 2 {
            return Ok(());
        }

        let (is_masked, short_len) = (second & 0x80 != 0, second & 0x7F);
        if is_masked != self.is_masked {
            return broken("a client masks its frames, and a server does not");
        }
        match opcode {
            _ if opcode.is_control() && !(is_last && short_len <= CONTROL_BYTES_MAX) => {
                return broken("a control frame is at most 125 bytes, and in one piece");
            }
            Opcode::Continuation if !self.is_mid_message => return broken("there is no message to go on with"),
            Opcode::Text | Opcode::Binary if self.is_mid_message => return broken("a message begins within another"),
            _ => {}
        }

        let len_bytes = [0, 2, 8][usize::from(short_len.saturating_sub(CONTROL_BYTES_MAX))];
        let mask_bytes = if is_masked { 4 } else { 0 };
        if usize::from(self.header_bytes) < 2 + len_bytes + mask_bytes {
            return Ok(());
        }
        let long = &self.header[2..2 + len_bytes];
        let (len, len_min) = match len_bytes {
            0 => (short_len.into(), 0),
            2 => (long.iter().fold(0, |len, byte| len << 8 | u64::from(*byte)), 126),
            _ => (long.iter().fold(0, |len, byte| len << 8 | u64::from(*byte)), 1 << 16),
        };
        if len < len_min || len >> 63 != 0 {
            return broken("a length is not in its one form");
        }

        if is_masked {
            self.mask.copy_from_slice(&self.header[2 + len_bytes..2 + len_bytes + 4]);
        }
        (self.header_bytes, self.left, self.place) = (0, len, 0);
        if opcode.is_control() {
            self.control = Some(Box::new((opcode, Vec::new())));
        } else {
            self.is_mid_message = !is_last;
        }
        if len == 0 {
            self.end_frame();
        }
        Ok(())
    }

    fn end_frame(&mut self) {
        match self.control.take().map(|control| *control) {
            Some((Opcode::Ping, payload)) => {
                let Pings(pings) = &mut **self.pings.get_or_insert_default();
                if pings.len() == PINGS_MAX {
                    pings.remove(0);
                }
                pings.push(payload);
            }
            Some((Opcode::Close, payload)) => self.end = Some(Box::new(close_of(&payload))),
            _ => {}
        }
    }
}

/// What a Close says.
fn close_of(payload: &[u8]) -> End {
    let Some((status, reason)) = payload.split_first_chunk() else {
        return match payload {
            [] => End::Closed(None),
            _ => End::Broken(status::PROTOCOL, "a Close has half a status"),
        };
    };
    let status = u16::from_be_bytes(*status);
    match (status, String::from_utf8_lossy(reason)) {
        (1000..=1003 | 1007..=1014 | 3000..=4999, Cow::Borrowed(reason)) => End::Closed(Some((status, reason.into()))),
        (1000..=1003 | 1007..=1014 | 3000..=4999, Cow::Owned(_)) => {
            End::Broken(status::NOT_UTF8, "the reason of a Close is no text")
        }
        _ => End::Broken(status::PROTOCOL, "a Close has a status that nobody sends"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Each length has one form, the shortest.
    #[test]
    fn headers_are_as_the_rfc_has_them() {
        for (len, bytes) in [
            (0, &[0x82, 0][..]),
            (125, &[0x82, 125]),
            (126, &[0x82, 126, 0, 126]),
            (65_535, &[0x82, 126, 0xFF, 0xFF]),
            (65_536, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            assert_eq!(Header::new(Opcode::Binary, len, None).bytes(), bytes);
            let masked = Header::new(Opcode::Text, len, Some([1, 2, 3, 4]));
            let (head, mask) = masked.bytes().split_at(bytes.len());
            assert_eq!((head[0], head[1] & 0x7F, head[1] & 0x80, &head[2..]), (0x81, bytes[1], 0x80, &bytes[2..]));
            assert_eq!(mask, [1, 2, 3, 4]);
        }
    }

    /// What a reader makes of a stream that comes in pieces of this size: the payload, the pings, the end.
    fn read(is_masked: bool, stream: &[u8], piece: usize) -> (Vec<u8>, Vec<Vec<u8>>, Option<End>) {
        let (mut reader, mut payload, mut pings) = (Reader::new(is_masked), Vec::new(), Vec::new());
        for piece in stream.chunks(piece) {
            let mut piece = piece.to_vec();
            let len = reader.take(&mut piece);
            payload.extend_from_slice(&piece[..len]);
            pings.extend(reader.take_pings());
        }
        (payload, pings, reader.end().cloned())
    }

    /// The examples of RFC 6455, section 5.7.
    #[test]
    fn the_examples_of_the_rfc_are_read() {
        let hello = b"Hello".to_vec();
        let masked = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        let masked_pong = [0x8a, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        let mut long = vec![0x82, 0x7F, 0, 0, 0, 0, 0, 1, 0, 0];
        long.extend([5; 65_536]);
        for piece in [1, 2, 3, 7, 1000, 100_000] {
            for (is_masked, stream, payload, pings) in [
                (false, &[0x81, 5, 0x48, 0x65, 0x6c, 0x6c, 0x6f][..], hello.clone(), vec![]),
                (true, &masked, hello.clone(), vec![]),
                (false, &[0x01, 3, 0x48, 0x65, 0x6c, 0x80, 2, 0x6c, 0x6f], hello.clone(), vec![]),
                (false, &[0x89, 5, 0x48, 0x65, 0x6c, 0x6c, 0x6f], vec![], vec![hello.clone()]),
                (true, &masked_pong, vec![], vec![]),
                (false, &long, vec![5; 65_536], vec![]),
            ] {
                assert_eq!(read(is_masked, stream, piece), (payload, pings, None), "{:?}", &stream[..2]);
            }
        }
    }

    #[test]
    fn only_the_last_pings_of_one_read_are_answered() {
        let mut stream = Vec::new();
        for n in 0..100 {
            put_control(&mut stream, Opcode::Ping, &[n], None);
        }
        let (_, pings, _) = read(false, &stream, stream.len());
        assert_eq!(pings, (84..100).map(|n| vec![n]).collect::<Vec<_>>());
    }

    proptest! {
        /// However a stream is cut into frames, and these into reads, its bytes come out.
        #[test]
        fn bytes_come_out_as_they_went_in(
            frames in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..300), any::<[u8; 4]>()), 0..20),
            is_masked: bool,
            piece in 1..400_usize,
        ) {
            let (mut stream, mut expected) = (Vec::new(), Vec::new());
            for (payload, mask) in &frames {
                let mask = Some(*mask).filter(|_| is_masked);
                stream.extend_from_slice(Header::new(Opcode::Binary, payload.len() as u64, mask).bytes());
                let begin = stream.len();
                stream.extend_from_slice(payload);
                if let Some(mask) = mask {
                    apply_mask(&mut stream[begin..], mask, 0);
                }
                expected.extend_from_slice(payload);
            }
            prop_assert_eq!(read(is_masked, &stream, piece), (expected, vec![], None));
        }

        /// Cutting changes neither what comes out nor how it ends, whatever the bytes are.
        #[test]
        fn any_bytes_are_read_alike_however_they_are_cut(
            stream in prop::collection::vec(prop_oneof![Just(0x82_u8), Just(0x89), Just(0x88), 0..16_u8, any::<u8>()], 0..200),
            is_masked: bool,
            piece in 1..50_usize,
        ) {
            let (payload, pings, end) = read(is_masked, &stream, piece);
            let whole = read(is_masked, &stream, 1000);
            prop_assert_eq!((&payload, &end), (&whole.0, &whole.2));
            prop_assert!(pings.ends_with(&whole.1));
        }
    }
}
