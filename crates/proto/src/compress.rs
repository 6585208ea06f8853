//! gzip in both directions, with a bound on the output.

use std::io::{Read, Write};

use flate2::{Compression, read::MultiGzDecoder, write::GzEncoder};

use crate::DecodeError;

/// Packs bytes as gzip, at the fast level: most of the gain for a small part of the time.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(64 + bytes.len() / 4), Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("writing to memory does not fail")
}

/// Unpacks gzip of one or more members, as Go does, up to `max` bytes.
///
/// # Errors
/// [`DecodeError::Gzip`] if it is not valid, or empty; [`DecodeError::DecompressedTooLarge`] as soon
/// as more than `max` bytes come out. At no time are more than twice `max` bytes held, beside at most
/// 256 KiB that the decoder takes for itself.
pub fn gunzip(bytes: &[u8], max: usize) -> Result<Vec<u8>, DecodeError> {
    let mut decoder = MultiGzDecoder::new(bytes);
    let mut out = Vec::new();
    // One byte more than allowed tells "exactly the limit" from "beyond it".
    let room = max.saturating_add(1);
    let mut step = bytes.len().saturating_mul(2).max(STEP_BYTES_MIN);
    while out.len() < room {
        step = step.max(out.len()).min(room - out.len());
        out.reserve_exact(step);
        let read = decoder.by_ref().take(step as u64).read_to_end(&mut out);
        if read.map_err(|error| DecodeError::Gzip(error.to_string()))? < step {
            return Ok(out);
        }
    }
    Err(DecodeError::DecompressedTooLarge { max })
}

/// Least room to unpack into at a time.
const STEP_BYTES_MIN: usize = 1024;

#[cfg(test)]
mod tests {
    use hex_literal::hex;

    use super::*;

    /// What Go packed, we unpack.
    #[test]
    fn go_gzip_is_read() {
        let wire = hex!("1f8b08000000000000ff000700f8ff82a1410aa14214000000ffff0300deb9a45a07000000");
        assert_eq!(gunzip(&wire, 7).expect("valid"), hex!("82a1410aa14214"));
    }

    /// Exactly the limit is fine, one byte less is not. Source: Go `util/compress_test.go`.
    #[test]
    fn the_limit_is_exact() {
        let packed = gzip(&[7; 1000]);
        assert_eq!(gunzip(&packed, 1000).expect("within the limit"), [7; 1000]);
        assert_eq!(gunzip(&packed, 999), Err(DecodeError::DecompressedTooLarge { max: 999 }));
    }

    /// A bomb stops at the limit.
    #[test]
    fn a_bomb_stops_at_the_limit() {
        let bomb = gzip(&vec![0; 4 << 20]);
        assert!(bomb.len() < 64 << 10);
        assert_eq!(gunzip(&bomb, 1024), Err(DecodeError::DecompressedTooLarge { max: 1024 }));
    }

    /// What comes out does not take more memory than the limit allows, whatever it is.
    #[test]
    fn room_is_taken_within_the_limit() {
        for (len, max) in [(0, 0), (1, 1), (1024, 1024), (5000, 5001), (100_000, 130_000)] {
            let out = gunzip(&gzip(&vec![7; len]), max).expect("within the limit");
            assert!(out.len() == len && out.capacity() <= max + 1, "{len} of {max}: {}", out.capacity());
        }
        assert_eq!(gunzip(&gzip(&[7]), 0), Err(DecodeError::DecompressedTooLarge { max: 0 }));
        assert_eq!(gunzip(&gzip(&[7; 9]), usize::MAX).expect("no limit").len(), 9);
    }

    /// Several members are one payload, as Go reads them.
    #[test]
    fn members_are_joined() {
        let packed = [gzip(b"abc"), gzip(b"de")].concat();
        assert_eq!(gunzip(&packed, 100).expect("valid"), b"abcde");
    }

    /// Neither rubbish nor nothing is gzip.
    #[test]
    fn rubbish_is_an_error() {
        for bytes in [&b""[..], b"rubbish", &gzip(b"abc")[..10]] {
            assert!(matches!(gunzip(bytes, 100), Err(DecodeError::Gzip(_))), "{bytes:?}");
        }
    }
}
