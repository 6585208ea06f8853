//! Every bound on a peer's bytes, in one place.

use crate::PREFIX_LEN;

/// What one frame may cost us. The defaults are safe on an open port.
///
/// The worst that one connection can make us hold while it sends a single frame is
/// `body_bytes_max` (twice that for a moment, while a growing buffer is copied), plus
/// `decompressed_bytes_max` once its payload is unpacked.
#[derive(Clone, Debug, Eq, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct Limits {
    #[cfg_attr(feature = "serde", serde(deserialize_with = "body_bytes"))]
    body_bytes_max: usize,
    decompressed_bytes_max: usize,
    metadata_bytes_max: usize,
    metadata_pairs_max: usize,
    calls_pending_max: usize,
}

/// What a length of the wire can say, and what one buffer can hold with the prefix before it.
const BODY_BYTES_CEILING: usize = {
    let buffer = isize::MAX as usize - PREFIX_LEN;
    if buffer < u32::MAX as usize { buffer } else { u32::MAX as usize }
};

/// The bound of [`Limits::body_bytes_max`] holds for a number of a file too.
#[cfg(feature = "serde")]
fn body_bytes<'de, D: serde::Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    let bytes: usize = serde::Deserialize::deserialize(from)?;
    Ok(bytes.min(BODY_BYTES_CEILING))
}

/// A frame that is too large is passed over up to so many times `body_bytes_max`.
const PASSED_OVER_TIMES: usize = 16;

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 8 << 20,
            decompressed_bytes_max: 32 << 20,
            metadata_bytes_max: 64 << 10,
            metadata_pairs_max: 128,
            calls_pending_max: 65_536,
        }
    }
}

impl Limits {
    /// Most bytes of one frame after its 16-byte prefix, in and out. Default 8 MiB: larger data
    /// delays everything else on the connection.
    ///
    /// Go's `protocol.MaxMessageLength` is this without a default: a lone prefix makes Go take up
    /// to 4 GiB.
    ///
    /// A frame beyond it is passed over: its bytes are dropped as they come, up to [`Self::passed_over_bytes`].
    ///
    /// At most what the wire and a buffer can hold: 4 GiB less one byte, or on a 32-bit machine 2
    /// GiB less the prefix. More is taken for that.
    #[must_use]
    pub fn body_bytes_max(mut self, bytes: usize) -> Self {
        self.body_bytes_max = bytes.min(BODY_BYTES_CEILING);
        self
    }

    /// Most bytes of one payload after decompression. Default 32 MiB: four times the largest frame,
    /// where gzip could make a thousand times of it. Go has no limit by default.
    #[must_use]
    pub fn decompressed_bytes_max(mut self, bytes: usize) -> Self {
        self.decompressed_bytes_max = bytes;
        self
    }

    /// Most bytes of the metadata block of one frame, in and out. Default 64 KiB: it is read before
    /// anybody has looked at a token. Less than 1 KiB is less than our clients say of what they could not handle; a Hello
    /// after many such failures takes up to 2 KiB.
    #[must_use]
    pub fn metadata_bytes_max(mut self, bytes: usize) -> Self {
        self.metadata_bytes_max = bytes;
        self
    }

    /// Most key and value pairs in the metadata of one frame, in and out. Default 128: a look-up
    /// walks them all.
    #[must_use]
    pub fn metadata_pairs_max(mut self, pairs: usize) -> Self {
        self.metadata_pairs_max = pairs;
        self
    }

    /// Most calls that wait for a reply on one connection, on the side that began them. Default
    /// 65,536: about 10 MiB of bookkeeping.
    #[must_use]
    pub fn calls_pending_max(mut self, calls: usize) -> Self {
        self.calls_pending_max = calls;
        self
    }

    /// See [`Self::body_bytes_max`].
    pub fn body_bytes(&self) -> usize {
        self.body_bytes_max
    }

    /// Most bytes of a body that is too large and passed over; of a larger one the stream ends. Sixteen times
    /// [`Self::body_bytes_max`].
    pub fn passed_over_bytes(&self) -> usize {
        self.body_bytes_max.saturating_mul(PASSED_OVER_TIMES)
    }

    /// See [`Self::decompressed_bytes_max`].
    pub fn decompressed_bytes(&self) -> usize {
        self.decompressed_bytes_max
    }

    /// See [`Self::metadata_bytes_max`].
    pub fn metadata_bytes(&self) -> usize {
        self.metadata_bytes_max
    }

    /// See [`Self::metadata_pairs_max`].
    pub fn metadata_pairs(&self) -> usize {
        self.metadata_pairs_max
    }

    /// See [`Self::calls_pending_max`].
    pub fn calls_pending(&self) -> usize {
        self.calls_pending_max
    }
}
