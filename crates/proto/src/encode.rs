//! A message → one frame.

use bytes::Bytes;

use crate::{EncodeError, HEADER_LEN, Header, Limits, Metadata, Names, PREFIX_LEN};

/// All of a frame but the bytes of its payload.
#[derive(Clone, Copy, Debug)]
pub struct FrameParts<'a> {
    /// What kind of frame it is.
    pub header: Header,
    /// The names of the service and of the method.
    pub names: Names<'a>,
    /// The pairs beside the payload.
    pub metadata: &'a Metadata,
    /// How many bytes of payload follow the head.
    pub payload_len: usize,
}

impl FrameParts<'_> {
    /// Bytes of the body: four lengths and four parts. `usize::MAX` if it is beyond counting.
    pub fn body_len(&self) -> usize {
        let rest = self.metadata.as_block().len().saturating_add(self.payload_len).saturating_add(8);
        self.names.block_len().saturating_add(rest)
    }

    /// Appends everything up to the payload, which the caller appends or sends after it.
    ///
    /// # Errors
    /// [`EncodeError::TooLarge`] and [`EncodeError::MetadataTooLarge`]; `out` is as it was.
    pub fn put_head(&self, out: &mut Vec<u8>, limits: &Limits) -> Result<(), EncodeError> {
        let len = self.checked_body_len(limits)?;
        out.reserve(PREFIX_LEN + len - self.payload_len);
        self.put_head_of(len, out);
        Ok(())
    }

    /// Appends the whole frame.
    ///
    /// # Errors
    /// [`EncodeError::TooLarge`] and [`EncodeError::MetadataTooLarge`]; `out` is as it was.
    ///
    /// # Panics
    /// If `payload` has not `payload_len` bytes: the peer would take what follows for something else.
    pub fn put_frame(&self, out: &mut Vec<u8>, payload: &[u8], limits: &Limits) -> Result<(), EncodeError> {
        assert_eq!(self.payload_len, payload.len(), "`payload_len` is the length of the payload");
        let len = self.checked_body_len(limits)?;
        out.reserve(PREFIX_LEN + len);
        self.put_head_of(len, out);
        out.extend_from_slice(payload);
        Ok(())
    }

    /// Appends the head of a frame whose body has this length.
    ///
    /// Neighbours of a fixed size go in as one, and the names of a reply as they came: 100 instructions less a
    /// reply than part by part. The steps `encode-push` and `serve16` of `compare instructions` show it.
    fn put_head_of(&self, body_len: usize, out: &mut Vec<u8>) {
        let mut prefix = [0; PREFIX_LEN];
        prefix[..HEADER_LEN].copy_from_slice(&self.header.to_bytes());
        prefix[HEADER_LEN..].copy_from_slice(&(body_len as u32).to_be_bytes());
        out.extend_from_slice(&prefix);
        self.names.put(out);
        let (block, payload_len) = (self.metadata.as_block(), self.payload_len as u32);
        if block.is_empty() {
            return out.extend_from_slice(&u64::from(payload_len).to_be_bytes());
        }
        out.extend_from_slice(&(block.len() as u32).to_be_bytes());
        out.extend_from_slice(block);
        out.extend_from_slice(&payload_len.to_be_bytes());
    }

    /// The length of the body, if a peer with the same limits would take it.
    fn checked_body_len(&self, limits: &Limits) -> Result<usize, EncodeError> {
        let (len, max) = (self.body_len(), limits.body_bytes());
        if max < len {
            return Err(EncodeError::TooLarge { len, max });
        }
        self.metadata.check_bounds(limits).map_err(|(found, max, unit)| EncodeError::MetadataTooLarge {
            found,
            max,
            unit,
        })?;
        Ok(len)
    }
}

/// One frame on its own, to be shared: a push to many connections is encoded once and cloned, and a
/// clone is a counter.
///
/// # Errors
/// [`EncodeError::TooLarge`] and [`EncodeError::MetadataTooLarge`].
pub fn frame(
    header: Header,
    service_path: &str,
    service_method: &str,
    metadata: &Metadata,
    payload: &[u8],
    limits: &Limits,
) -> Result<Bytes, EncodeError> {
    let names = Names::new(service_path, service_method);
    let parts = FrameParts { header, names, metadata, payload_len: payload.len() };
    let mut out = Vec::with_capacity(PREFIX_LEN + parts.checked_body_len(limits)?);
    parts.put_frame(&mut out, payload, limits)?;
    Ok(out.into())
}

#[cfg(test)]
mod tests {
    use hex_literal::hex;

    use super::*;
    use crate::{Seq, SerializeType};

    fn encode(header: Header, path: &str, method: &str, metadata: &Metadata, payload: &[u8]) -> Bytes {
        frame(header, path, method, metadata, payload, &Limits::default()).expect("within limits")
    }

    /// A request is encoded as Go encodes `Arith.Mul` of `{A: 10, B: 20}` in MessagePack.
    #[test]
    fn a_request_is_the_bytes_go_sends() {
        let header = Header::request(Seq::new(2), SerializeType::MSGPACK);
        let wire = hex!(
            "08 00 00 30 0000000000000002 0000001f 00000005 4172697468 00000003 4d756c 00000000 00000007 82a1410aa14214"
        );
        assert_eq!(encode(header, "Arith", "Mul", &Metadata::new(), &hex!("82a1410aa14214")), wire[..]);
    }

    /// A push is a oneway request without a codec, as Go's `Server.SendMessage` builds it.
    #[test]
    fn a_push_is_a_oneway_request() {
        let header = Header::oneway(Seq::new(1), SerializeType::RAW);
        let wire = hex!(
            "08 00 20 00 0000000000000001 00000021 00000001 70 00000001 6d 0000000a 00000001 6b 00000001 76 00000005 6162636465"
        );
        assert_eq!(encode(header, "p", "m", &Metadata::new().with("k", "v"), b"abcde"), wire[..]);
    }

    /// Too large is an error of ours, and leaves the buffer as it was.
    #[test]
    fn what_is_too_large_is_refused_before_a_byte_is_written() {
        let limits = Limits::default().body_bytes_max(20);
        let header = Header::oneway(Seq::new(1), SerializeType::RAW);
        let metadata = Metadata::new();
        let parts = FrameParts { header, names: Names::new("", ""), metadata: &metadata, payload_len: 5 };
        let mut out = vec![7];
        assert_eq!(parts.put_frame(&mut out, b"abcde", &limits), Err(EncodeError::TooLarge { len: 21, max: 20 }));
        assert_eq!(out, [7]);
    }

    /// Metadata that a peer with our limits would close the connection for is refused before it leaves.
    #[test]
    fn too_much_metadata_is_refused_before_a_byte_is_written() {
        let header = Header::oneway(Seq::new(1), SerializeType::RAW);
        let metadata = Metadata::new().with("a", "1").with("b", "2");
        let refused = |limits| frame(header, "", "", &metadata, b"", &limits).map(drop);
        assert_eq!(
            refused(Limits::default().metadata_pairs_max(1)),
            Err(EncodeError::MetadataTooLarge { found: 2, max: 1, unit: "pairs" })
        );
        assert_eq!(
            refused(Limits::default().metadata_bytes_max(19)),
            Err(EncodeError::MetadataTooLarge { found: 20, max: 19, unit: "bytes" })
        );
        assert_eq!(refused(Limits::default().metadata_bytes_max(20).metadata_pairs_max(2)), Ok(()));
    }

    /// A payload length beyond counting is too large; it does not wrap round to a small one.
    #[test]
    fn a_length_beyond_counting_is_too_large() {
        let header = Header::oneway(Seq::new(1), SerializeType::RAW);
        let metadata = Metadata::new();
        let parts = FrameParts { header, names: Names::new("p", "m"), metadata: &metadata, payload_len: usize::MAX };
        let limits = Limits::default().body_bytes_max(usize::MAX);
        let refused = parts.put_head(&mut Vec::new(), &limits);
        assert_eq!(refused, Err(EncodeError::TooLarge { len: usize::MAX, max: limits.body_bytes() }));
    }
}
