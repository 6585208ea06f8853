//! gzip there and back.

use bothways_proto::{DecodeError, gunzip, gzip};
use proptest::{collection::vec, prelude::*};

/// Bytes that pack well, and bytes that do not.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![vec(any::<u8>(), 0..5000), (any::<u8>(), 0..100_000_usize).prop_map(|(byte, len)| vec![byte; len]),]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What was packed comes out whole if the limit allows it, and not at all if it does not.
    #[test]
    fn what_was_packed_comes_out_or_is_too_large(bytes in bytes(), less in 1..200_usize, more in 0..200_usize) {
        let packed = gzip(&bytes);
        prop_assert_eq!(gunzip(&packed, bytes.len()), Ok(bytes.clone()));
        prop_assert_eq!(gunzip(&packed, bytes.len() + more), Ok(bytes.clone()));
        if let Some(max) = bytes.len().checked_sub(less) {
            prop_assert_eq!(gunzip(&packed, max), Err(DecodeError::DecompressedTooLarge { max }));
        }
    }

    /// A changed byte is an error or harmless (the header has fields that nobody reads), and never more
    /// than the limit comes out.
    #[test]
    fn a_changed_byte_is_an_error_or_harmless(bytes in bytes(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let (mut packed, max) = (gzip(&bytes), bytes.len());
        let at = at.index(packed.len());
        packed[at] = byte;
        match gunzip(&packed, max) {
            Ok(out) => prop_assert_eq!(out, bytes),
            Err(DecodeError::Gzip(_)) => {}
            Err(error) => prop_assert_eq!(error, DecodeError::DecompressedTooLarge { max }),
        }
    }

    /// What ends too early is an error.
    #[test]
    fn a_beginning_is_an_error(bytes in bytes(), at in any::<prop::sample::Index>()) {
        let packed = gzip(&bytes);
        let beginning = gunzip(&packed[..at.index(packed.len())], bytes.len());
        prop_assert!(matches!(beginning, Err(DecodeError::Gzip(_))), "{beginning:?}");
    }
}
