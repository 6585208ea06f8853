//! One message: a header and the four parts of a body.

use bytes::{Buf, Bytes};

use crate::{
    CompressType, DecodeError, FrameParts, Header, Limits, MessageKind, Metadata, Names, PREFIX_LEN, SerializeType,
    Status, keys, metadata::PAIR_BYTES_MIN,
};

/// One message as it came off the wire, or as it would go onto it.
///
/// Holds the frame's bytes once; every part is a slice of them, and a clone is a counter. Keeping a
/// message, or a payload taken from it, keeps the bytes that arrived with it in one read: at most
/// one frame and its neighbours in the same read. Call [`Self::compact`] before keeping it for long.
#[derive(Clone)]
pub struct Message {
    header: Header,
    frame: Bytes,
    path_len: u32,
    method_len: u32,
    metadata_len: u32,
    /// Bytes of the allocation that the frame is a part of.
    chunk_len: u32,
}

impl PartialEq for Message {
    fn eq(&self, other: &Self) -> bool {
        self.header == other.header && self.frame == other.frame
    }
}

impl Eq for Message {}

/// Most bytes of the code of an error that is kept of too much metadata: ours have fifteen.
const CODE_BYTES_MAX: usize = 32;

/// Where the first part begins: after the prefix and its own length.
const PATH_AT: usize = PREFIX_LEN + 4;

impl Message {
    /// A message of these parts, without regard to limits. For tests and tools: what is on its way to
    /// a socket goes through [`FrameParts`].
    ///
    /// # Panics
    /// If the parts do not fit into a frame, which holds 4 GiB.
    pub fn new(header: Header, service_path: &str, service_method: &str, metadata: &Metadata, payload: &[u8]) -> Self {
        let mut frame = Vec::new();
        let limits =
            Limits::default().body_bytes_max(usize::MAX).metadata_bytes_max(usize::MAX).metadata_pairs_max(usize::MAX);
        let names = Names::new(service_path, service_method);
        FrameParts { header, names, metadata, payload_len: payload.len() }
            .put_frame(&mut frame, payload, &limits)
            .expect("the parts of a message made by hand are below 4 GiB");
        Self {
            header,
            chunk_len: frame.len() as u32,
            frame: frame.into(),
            path_len: service_path.len() as u32,
            method_len: service_method.len() as u32,
            metadata_len: metadata.as_block().len() as u32,
        }
    }

    /// Reads a whole frame, prefix included. Everything a peer can get wrong in it is an error;
    /// `docs/go-differences.md` compares each with Go. The payload stays as it travelled.
    ///
    /// Takes the frame as it is: [`Limits::body_bytes_max`] was checked when it was cut off the stream.
    ///
    /// # Errors
    /// Any [`DecodeError`] but those of [`Self::payload`] and [`DecodeError::TooLarge`].
    pub fn parse(frame: Bytes, limits: &Limits) -> Result<Self, DecodeError> {
        let chunk_len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        Self::parse_part(frame, limits, chunk_len)
    }

    /// As [`Self::parse`], of a frame that is a part of so many bytes, which are kept with it.
    pub(crate) fn parse_part(frame: Bytes, limits: &Limits, chunk_len: u32) -> Result<Self, DecodeError> {
        let body_len = frame.len().saturating_sub(PREFIX_LEN);
        let truncated = |part| DecodeError::Truncated { part, body_len };
        let first = frame.first().copied().unwrap_or_default();
        let header = frame.first_chunk().ok_or(truncated("header"))?;
        let header = Header::from_bytes(header).ok_or(DecodeError::WrongMagic { found: first })?;

        let (prefix, mut rest) = frame.split_first_chunk::<PREFIX_LEN>().ok_or(truncated("prefix"))?;
        let [.., a, b, c, d] = *prefix;
        let stated = u32::from_be_bytes([a, b, c, d]) as usize;
        if stated != body_len {
            return Err(DecodeError::BodyLength { stated, actual: body_len });
        }

        let mut part = |name| -> Result<&[u8], DecodeError> {
            let (len, tail) = rest.split_first_chunk::<4>().ok_or(truncated(name))?;
            let (bytes, tail) = tail.split_at_checked(u32::from_be_bytes(*len) as usize).ok_or(truncated(name))?;
            rest = tail;
            Ok(bytes)
        };

        let path = part("service path")?;
        let method = part("service method")?;
        let metadata = part("metadata")?;

        let (stated, payload) = rest.split_first_chunk::<4>().ok_or(truncated("payload length"))?;
        let stated = u32::from_be_bytes(*stated) as usize;
        if stated != payload.len() {
            return Err(DecodeError::PayloadLength { stated, actual: payload.len() });
        }

        let (path_len, method_len, metadata_len) = (path.len() as u32, method.len() as u32, metadata.len() as u32);
        let message = Self { header, frame, path_len, method_len, metadata_len, chunk_len };
        // Most names are ASCII, and so are their lengths: one look at all of it, 100 instructions less a message.
        // The step `decode` of `compare instructions` shows it.
        if !message.names_block().is_ascii() {
            message.check_text(PATH_AT, path_len, "service path")?;
            message.check_text(message.method_at(), method_len, "service method")?;
        }

        if metadata_len != 0 {
            return match crate::metadata::check(message.metadata_bytes(), limits) {
                Ok(()) => Ok(message),
                Err(error) => message.shortened(limits).ok_or(error),
            };
        }
        Ok(message)
    }

    /// What is left of a failed reply with more metadata than the limits allow: the beginning of its text, and its code.
    /// Go puts the arguments and the stack of a handler that panicked into the text.
    #[cold]
    fn shortened(&self, limits: &Limits) -> Option<Self> {
        let is_failed = self.header.kind() == MessageKind::Response && self.header.status().is_error();
        if !is_failed || self.header.is_heartbeat() {
            return None;
        }

        let (text, code) = crate::metadata::error_of(self.metadata_bytes())?;
        let mut kept = Metadata::new();
        if let Some(code) = code.filter(|code| code.len() <= CODE_BYTES_MAX) {
            kept.insert(keys::ERROR_CODE, code);
        }

        let taken = kept.as_block().len() + PAIR_BYTES_MIN + keys::ERROR.len();
        let mut room = limits.metadata_bytes().checked_sub(taken)?.min(text.len());
        // Not within a letter.
        while room < text.len() && 0 < room && text[room] & 0b1100_0000 == 0b1000_0000 {
            room -= 1;
        }

        kept.insert(keys::ERROR, &text[..room]);
        kept.check_bounds(limits).ok()?;
        let header = self.header.with_compress(CompressType::NONE);
        Some(Self::new(header, self.service_path(), self.service_method(), &kept, &[]))
    }

    /// The header.
    pub fn header(&self) -> Header {
        self.header
    }

    /// The name of the service, such as `Arith`.
    pub fn service_path(&self) -> &str {
        self.text(PATH_AT, self.path_len)
    }

    /// The name of the method, such as `Mul`.
    pub fn service_method(&self) -> &str {
        self.text(self.method_at(), self.method_len)
    }

    /// True if it is for this service.
    #[inline]
    pub fn has_service_path(&self, service_path: &str) -> bool {
        self.frame[PATH_AT..PATH_AT + self.path_len as usize] == *service_path.as_bytes()
    }

    /// Both names, for a frame that repeats them.
    pub fn names(&self) -> Names<'_> {
        Names::of_block(self.names_block())
    }

    /// Both names as they travel; see [`Names::to_block`]. Texts are checked for UTF-8 each time they are
    /// asked for, these bytes were checked once.
    pub fn names_block(&self) -> &[u8] {
        &self.frame[PREFIX_LEN..self.method_at() + self.method_len as usize]
    }

    /// The value of one pair beside the payload, like [`Metadata::value`], without taking hold of them all.
    #[inline]
    pub fn metadata_value(&self, key: &str) -> Option<&[u8]> {
        // Most messages have none.
        if self.metadata_len == 0 { None } else { self.last_value(key) }
    }

    fn last_value(&self, key: &str) -> Option<&[u8]> {
        let pairs = crate::Pairs::of_block(self.metadata_bytes());
        pairs.filter(|(k, _)| *k == key.as_bytes()).last().map(|(_, value)| value)
    }

    /// The pairs beside the payload.
    pub fn metadata(&self) -> Metadata {
        if self.metadata_len == 0 {
            return Metadata::new();
        }
        Metadata::from_checked_block(self.frame.slice_ref(self.metadata_bytes()))
    }

    /// The payload as it travelled: still compressed if the header says so.
    pub fn wire_payload(&self) -> Bytes {
        self.frame.slice(self.payload_at()..)
    }

    /// The payload, unpacked if it travelled compressed.
    ///
    /// # Errors
    /// [`DecodeError::UnknownCompression`], [`DecodeError::Gzip`] or
    /// [`DecodeError::DecompressedTooLarge`]; the connection can go on, only this message is lost.
    pub fn payload(&self, limits: &Limits) -> Result<Bytes, DecodeError> {
        match self.header.compress() {
            CompressType::NONE => Ok(self.wire_payload()),
            _ => self.clone().into_payload(limits),
        }
    }

    /// The payload, like [`Self::payload`], without keeping the message.
    ///
    /// # Errors
    /// As for [`Self::payload`].
    pub fn into_payload(self, limits: &Limits) -> Result<Bytes, DecodeError> {
        let at = self.payload_at();
        let compress = self.header.compress();
        let mut wire = self.frame;
        wire.advance(at);
        match compress.get() {
            0 => Ok(wire),
            #[cfg(feature = "gzip")]
            1 => crate::gunzip(&wire, limits.decompressed_bytes()).map(Bytes::from),
            _ => {
                let _ = limits;
                Err(DecodeError::UnknownCompression(compress))
            }
        }
    }

    /// The text of a failed reply: `None` unless this is a response with an error status. A reply
    /// that failed without a text, which Go takes for a success, has an empty one.
    pub fn error_text(&self) -> Option<String> {
        if self.header.kind() != MessageKind::Response || !self.header.status().is_error() {
            return None;
        }
        let metadata = self.metadata();
        Some(metadata.value(keys::ERROR).map(|text| String::from_utf8_lossy(text).into_owned()).unwrap_or_default())
    }

    /// Bytes that are kept in memory for as long as this message is: its frame, and what came with it
    /// in one read.
    pub fn pinned_bytes(&self) -> usize {
        self.frame.len().max(self.chunk_len as usize)
    }

    /// Copies the frame out of its read if it is less than half of that: from here on this message
    /// keeps at most twice its own bytes. For code that keeps messages; clones and payloads that were
    /// taken before are as they were.
    pub fn compact(&mut self) {
        if self.frame.len() < self.chunk_len as usize / 2 {
            self.frame = Bytes::copy_from_slice(&self.frame);
            self.chunk_len = self.frame.len() as u32;
        }
    }

    /// The whole frame as it travels.
    pub fn frame(&self) -> &Bytes {
        &self.frame
    }

    /// The frame that answers a heartbeat: the same bytes with the response bit, whatever codec,
    /// path and metadata the heartbeat carries. Only the status and the reserved bits, which Go echoes
    /// too, are zero. Source: Go `server/server.go`, heartbeat handling.
    pub fn pong(&self) -> Vec<u8> {
        let mut frame = self.frame.to_vec();
        let header = self.header.reply().with_compress(self.header.compress());
        frame[..crate::HEADER_LEN].copy_from_slice(&header.to_bytes());
        frame
    }

    /// A heartbeat request with this payload.
    pub fn ping(seq: crate::Seq, metadata: &Metadata, payload: &[u8]) -> Self {
        Self::new(Header::heartbeat(seq, SerializeType::MSGPACK), "", "", metadata, payload)
    }

    /// A failed reply to `request` with this text.
    pub fn error_reply(request: Header, service_path: &str, service_method: &str, text: &str) -> Self {
        let metadata = Metadata::new().with(keys::ERROR, text);
        Self::new(request.reply().with_status(Status::ERROR), service_path, service_method, &metadata, &[])
    }

    fn text(&self, at: usize, len: u32) -> &str {
        str::from_utf8(&self.frame[at..at + len as usize]).expect("checked when the message was made")
    }

    fn check_text(&self, at: usize, len: u32, part: &'static str) -> Result<(), DecodeError> {
        let text = str::from_utf8(&self.frame[at..at + len as usize]);
        text.map(drop).map_err(|_| DecodeError::NotUtf8 { part })
    }

    fn method_at(&self) -> usize {
        PATH_AT + self.path_len as usize + 4
    }

    fn metadata_at(&self) -> usize {
        self.method_at() + self.method_len as usize + 4
    }

    fn metadata_bytes(&self) -> &[u8] {
        let at = self.metadata_at();
        &self.frame[at..at + self.metadata_len as usize]
    }

    fn payload_at(&self) -> usize {
        self.metadata_at() + self.metadata_len as usize + 4
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Message")
            .field("header", &self.header)
            .field("service_path", &self.service_path())
            .field("service_method", &self.service_method())
            .field("metadata", &self.metadata())
            .field("payload_bytes", &(self.frame.len() - self.payload_at()))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use hex_literal::hex;

    use super::*;
    use crate::Seq;

    fn reply(status: u8, metadata: &Metadata) -> Message {
        let mut frame = Message::new(
            Header::request(Seq::new(1), SerializeType::MSGPACK).reply(),
            "Arith",
            "Mul",
            metadata,
            &hex!("81a143ccc8"),
        )
        .frame()
        .to_vec();
        frame[2] |= status;
        Message::parse(frame.into(), &Limits::default()).expect("well formed")
    }

    /// The text of a failed reply is in its metadata; a reply that did not fail has none, whatever is there.
    #[test]
    fn the_text_of_a_failure_is_in_the_metadata() {
        let metadata = Metadata::new().with(keys::ERROR, "boom");
        assert_eq!(reply(1, &metadata).error_text().as_deref(), Some("boom"));
        assert_eq!(reply(0, &metadata).error_text(), None);
    }

    /// An error status is a failure, with or without a text. Go takes 1 without metadata, and 2 and 3, for a success.
    #[test]
    fn an_error_without_a_text_is_still_one() {
        for status in [1, 2, 3] {
            assert_eq!(reply(status, &Metadata::new()).error_text().as_deref(), Some(""), "status {status}");
        }
    }

    /// A failed reply with too much metadata is its text, as far as the limits allow, and its code: Go puts a stack and
    /// arguments into the text. Any other message with too much metadata is an error.
    #[test]
    fn a_failed_reply_with_too_much_metadata_keeps_the_beginning_of_its_text() {
        let limits = Limits::default().metadata_bytes_max(100).metadata_pairs_max(3);
        let header = Header::request(Seq::new(1), SerializeType::MSGPACK).reply().with_status(Status::ERROR);
        let parsed = |header, pairs: &Metadata| {
            let message = Message::new(header, "Arith", "Mul", pairs, b"x");
            Message::parse(message.frame().clone(), &limits)
        };
        // Letters of three bytes: the cut is between two.
        for text in
            ["\u{20ac}".repeat(100), format!("a{}", "\u{20ac}".repeat(100)), format!("ab{}", "\u{20ac}".repeat(100))]
        {
            let pairs = Metadata::new().with("a", "1").with(keys::ERROR, &text).with(keys::ERROR_CODE, "internal");
            let message = parsed(header, &pairs).expect("its text is known");
            let kept = message.error_text().expect("it failed");
            assert!(text.starts_with(&kept) && 40 < kept.len(), "{kept}");
            assert!(message.metadata_bytes().len() <= 100 && message.metadata().get("a").is_none());
            assert_eq!(message.metadata().get(keys::ERROR_CODE), Some("internal"));
            assert_eq!((message.service_method(), message.wire_payload().len()), ("Mul", 0));
            assert!(parsed(header.with_status(Status::NORMAL), &pairs).is_err(), "it did not fail");
            assert!(parsed(Header::request(Seq::new(1), SerializeType::RAW), &pairs).is_err(), "a request");
        }
        let many = (0..9).fold(Metadata::new().with(keys::ERROR, "boom"), |pairs, n| pairs.with(&n.to_string(), ""));
        assert_eq!(parsed(header, &many).expect("its text is known").error_text().as_deref(), Some("boom"));
        let without = Metadata::new().with("a", "x".repeat(200));
        assert!(parsed(header, &without).is_err(), "there is no text");
        let tiny = Limits::default().metadata_bytes_max(10);
        let message = Message::new(header, "Arith", "Mul", &many, b"x");
        assert!(Message::parse(message.frame().clone(), &tiny).is_err(), "no text fits");
    }

    /// A request is no failed reply, whatever its status bits say.
    #[test]
    fn a_request_has_no_error_text() {
        let header = Header::request(Seq::new(1), SerializeType::MSGPACK).with_status(Status::ERROR);
        assert_eq!(Message::new(header, "Arith", "Mul", &Metadata::new(), &[]).error_text(), None);
    }

    /// A failed reply always carries the key of its text, for a Go client looks at that and not at the status.
    #[test]
    fn a_failed_reply_always_carries_its_key() {
        let request = Header::request(Seq::new(1), SerializeType::MSGPACK);
        let failed = Message::error_reply(request, "Arith", "Mul", "");
        assert_eq!(failed.metadata().get(keys::ERROR), Some(""));
    }

    /// A small message that came with large ones in one read can be kept without them, and is the same.
    #[test]
    fn a_kept_message_lets_go_of_its_neighbours() {
        let header = Header::request(Seq::new(1), SerializeType::RAW);
        let [small, large] = [10, 10_000].map(|len| Message::new(header, "T", "Echo", &Metadata::new(), &vec![1; len]));
        let mut deframer = crate::Deframer::new();
        deframer.feed(&[&small.frame()[..], large.frame()].concat(), &Limits::default());
        let mut next = || deframer.next_message(&Limits::default()).expect("valid").expect("whole");
        let [mut first, mut second] = [next(), next()];
        assert!(large.frame().len() < first.pinned_bytes());
        first.compact();
        assert_eq!((first.pinned_bytes(), &first), (small.frame().len(), &small));
        second.compact();
        assert_eq!(second.pinned_bytes(), small.frame().len() + large.frame().len(), "it is most of its read");
    }

    /// A payload that cannot be unpacked leaves the message readable.
    #[test]
    fn a_bad_payload_costs_the_payload_only() {
        let header = Header::request(Seq::new(7), SerializeType::MSGPACK);
        for number in [2, 7] {
            let compress = crate::CompressType::new(number).expect("three bits");
            let message = Message::new(header.with_compress(compress), "Arith", "Mul", &Metadata::new(), b"?");
            assert_eq!(message.payload(&Limits::default()), Err(DecodeError::UnknownCompression(compress)));
            assert_eq!((message.service_path(), message.header().seq()), ("Arith", Seq::new(7)));
        }
    }
}
