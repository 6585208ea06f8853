//! The twelve bytes that every frame begins with, as typed values.
//!
//! This is the only file that knows bit positions.

use crate::Seq;

/// The first byte of every frame. Source: Go rpcx `protocol/message.go`, `magicNumber`.
pub const MAGIC: u8 = 0x08;

/// Bytes of the header: magic, version, two bytes of flags, eight of [`Seq`].
pub const HEADER_LEN: usize = 12;

/// Bytes of the header and of the body length that follows it.
pub const PREFIX_LEN: usize = HEADER_LEN + 4;

const RESPONSE: u8 = 0b1000_0000;
const HEARTBEAT: u8 = 0b0100_0000;
const ONEWAY: u8 = 0b0010_0000;
const COMPRESS: u8 = 0b0001_1100;
const COMPRESS_SHIFT: u8 = 2;
const STATUS: u8 = 0b0000_0011;
const SERIALIZE_SHIFT: u8 = 4;

/// The header of a frame.
///
/// | byte | meaning |
/// |---|---|
/// | 0 | [`MAGIC`] |
/// | 1 | version, sent as 0, never checked |
/// | 2 | bit 7 response, bit 6 heartbeat, bit 5 oneway, bits 4..2 compress type, bits 1..0 status |
/// | 3 | bits 7..4 serialize type, bits 3..0 reserved: sent as 0, ignored |
/// | 4..12 | sequence number, big-endian |
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Header {
    version: u8,
    flags: u8,
    kinds: u8,
    seq: Seq,
}

impl Header {
    /// A request that wants a reply.
    pub const fn request(seq: Seq, serialize: SerializeType) -> Self {
        Self { version: 0, flags: 0, kinds: serialize.0 << SERIALIZE_SHIFT, seq }
    }

    /// A request that wants none: a oneway call of a client, or a push of a server.
    pub const fn oneway(seq: Seq, serialize: SerializeType) -> Self {
        let mut header = Self::request(seq, serialize);
        header.flags = ONEWAY;
        header
    }

    /// A heartbeat request. Go's client always says MessagePack in it.
    pub const fn heartbeat(seq: Seq, serialize: SerializeType) -> Self {
        let mut header = Self::request(seq, serialize);
        header.flags = HEARTBEAT;
        header
    }

    /// The header of the reply to this request: same number, version, codec and heartbeat bit.
    ///
    /// Go echoes the status bits and the reserved ones too, so that a request sent with status 1
    /// comes back as an error without a text; here both start at zero.
    pub const fn reply(self) -> Self {
        Self {
            version: self.version,
            flags: RESPONSE | (self.flags & (HEARTBEAT | ONEWAY)),
            kinds: self.kinds & (0xf << SERIALIZE_SHIFT),
            seq: self.seq,
        }
    }

    /// The same header with another sequence number.
    pub const fn with_seq(mut self, seq: Seq) -> Self {
        self.seq = seq;
        self
    }

    /// The same header with another status.
    pub const fn with_status(mut self, status: Status) -> Self {
        self.flags = (self.flags & !STATUS) | status.0;
        self
    }

    /// The same header with another compress type.
    pub const fn with_compress(mut self, compress: CompressType) -> Self {
        self.flags = (self.flags & !COMPRESS) | (compress.0 << COMPRESS_SHIFT);
        self
    }

    /// The same header with another serialize type.
    pub const fn with_serialize(mut self, serialize: SerializeType) -> Self {
        self.kinds = serialize.0 << SERIALIZE_SHIFT;
        self
    }

    /// Request or response.
    pub const fn kind(self) -> MessageKind {
        if self.flags & RESPONSE == 0 { MessageKind::Request } else { MessageKind::Response }
    }

    /// True for a heartbeat and its answer.
    pub const fn is_heartbeat(self) -> bool {
        self.flags & HEARTBEAT != 0
    }

    /// True for a request that wants no reply. Heartbeats are answered all the same.
    pub const fn is_oneway(self) -> bool {
        self.flags & ONEWAY != 0
    }

    /// How the payload is compressed.
    pub const fn compress(self) -> CompressType {
        CompressType((self.flags & COMPRESS) >> COMPRESS_SHIFT)
    }

    /// Normal, or an error whose text is in the metadata.
    pub const fn status(self) -> Status {
        Status(self.flags & STATUS)
    }

    /// The codec of the payload.
    pub const fn serialize(self) -> SerializeType {
        SerializeType(self.kinds >> SERIALIZE_SHIFT)
    }

    /// What pairs a reply with its call.
    pub const fn seq(self) -> Seq {
        self.seq
    }

    /// The header as it travels.
    pub const fn to_bytes(self) -> [u8; HEADER_LEN] {
        let [a, b, c, d, e, f, g, h] = self.seq.get().to_be_bytes();
        [MAGIC, self.version, self.flags, self.kinds, a, b, c, d, e, f, g, h]
    }

    /// Reads a header. `None` if the first byte is not [`MAGIC`].
    pub const fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Option<Self> {
        let [magic, version, flags, kinds, a, b, c, d, e, f, g, h] = *bytes;
        if magic != MAGIC {
            return None;
        }
        Some(Self { version, flags, kinds, seq: Seq::new(u64::from_be_bytes([a, b, c, d, e, f, g, h])) })
    }
}

/// Whether a frame asks or answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MessageKind {
    /// Bit 7 clear.
    Request,
    /// Bit 7 set.
    Response,
}

/// Whether a reply is an error.
///
/// Two bits: 0 normal, 1 error; Go takes the undefined 2 and 3 for success, here everything but 0
/// is an error (`docs/go-differences.md`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Status(u8);

impl Status {
    /// The call succeeded.
    pub const NORMAL: Self = Self(0);
    /// The call failed; metadata `__rpcx_error__` has the text.
    pub const ERROR: Self = Self(1);

    /// True for every value but [`Self::NORMAL`].
    pub const fn is_error(self) -> bool {
        self.0 != 0
    }

    /// The value on the wire, 0 to 3.
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// The codec of a payload: four bits on the wire.
///
/// Source: Go rpcx `protocol/message.go`, `SerializeType`. Numbers 5 to 15 are free for
/// applications.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct SerializeType(u8);

impl SerializeType {
    /// Bytes as they are; every push of a Go server.
    pub const RAW: Self = Self(0);
    /// JSON.
    pub const JSON: Self = Self(1);
    /// Protocol Buffers.
    pub const PROTOBUF: Self = Self(2);
    /// MessagePack, the default of Go's client and of ours.
    pub const MSGPACK: Self = Self(3);
    /// Thrift's binary protocol.
    pub const THRIFT: Self = Self(4);

    /// A serialize type by its number; `None` above 15.
    pub const fn new(number: u8) -> Option<Self> {
        if number < 16 { Some(Self(number)) } else { None }
    }

    /// The number on the wire.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// The name of a well-known type.
    pub const fn name(self) -> Option<&'static str> {
        match self.0 {
            0 => Some("raw"),
            1 => Some("json"),
            2 => Some("protobuf"),
            3 => Some("msgpack"),
            4 => Some("thrift"),
            _ => None,
        }
    }
}

impl std::fmt::Debug for SerializeType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for SerializeType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name} ({})", self.0),
            None => write!(f, "{}", self.0),
        }
    }
}

/// How a payload is compressed: three bits on the wire.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CompressType(u8);

impl CompressType {
    /// Not at all.
    pub const NONE: Self = Self(0);
    /// gzip, RFC 1952.
    pub const GZIP: Self = Self(1);

    /// A compress type by its number; `None` above 7.
    pub const fn new(number: u8) -> Option<Self> {
        if number < 8 { Some(Self(number)) } else { None }
    }

    /// The number on the wire.
    pub const fn get(self) -> u8 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use hex_literal::hex;

    use super::*;

    /// Every field stands where Go puts it.
    #[test]
    fn fields_stand_where_go_puts_them() {
        let call = Header::request(Seq::new(2), SerializeType::MSGPACK);
        assert_eq!(call.to_bytes(), hex!("08 00 00 30 0000000000000002"));
        let push = Header::oneway(Seq::new(1), SerializeType::RAW);
        assert_eq!(push.to_bytes(), hex!("08 00 20 00 0000000000000001"));
        let ping = Header::heartbeat(Seq::new(3), SerializeType::MSGPACK);
        assert_eq!(ping.to_bytes(), hex!("08 00 40 30 0000000000000003"));
        let zipped = call.with_compress(CompressType::GZIP);
        assert_eq!(zipped.to_bytes(), hex!("08 00 04 30 0000000000000002"));
        let failed = call.reply().with_status(Status::ERROR);
        assert_eq!(failed.to_bytes(), hex!("08 00 81 30 0000000000000002"));
    }

    /// A reply keeps number, codec and heartbeat bit, and drops compression, status and reserved bits.
    #[test]
    fn a_reply_starts_clean() {
        let request = Header::from_bytes(&hex!("08 07 5d 3f 00000000000000ff")).expect("magic is right");
        assert_eq!(request.reply().to_bytes(), hex!("08 07 c0 30 00000000000000ff"));
    }

    /// Undefined status values are errors, not successes.
    #[test]
    fn an_undefined_status_is_an_error() {
        for (flags, is_error) in [(0x80, false), (0x81, true), (0x82, true), (0x83, true)] {
            let bytes = [MAGIC, 0, flags, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            assert_eq!(Header::from_bytes(&bytes).expect("magic is right").status().is_error(), is_error);
        }
    }

    /// Any header with the right magic travels unchanged.
    #[test]
    fn a_header_travels_unchanged() {
        for flags in 0..=255 {
            let bytes = [MAGIC, 1, flags, 0xa5, 1, 2, 3, 4, 5, 6, 7, 8];
            assert_eq!(Header::from_bytes(&bytes).expect("magic is right").to_bytes(), bytes);
        }
        assert_eq!(Header::from_bytes(&[9; HEADER_LEN]), None);
    }
}
