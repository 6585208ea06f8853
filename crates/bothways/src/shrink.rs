//! When a collection gives back memory that it needed once, and how a part of something larger is kept.

use bytes::Bytes;

/// Payloads below this many bytes are copied where they are kept: one may be a slice of a read, which it would keep
/// whole. 64 KiB: a read.
pub(crate) const COPY_BYTES: usize = 64 << 10;

/// An application's payload, as a copy if it is a small part of something larger.
pub(crate) fn keep_alone(payload: &Bytes) -> Bytes {
    if payload.len() < COPY_BYTES { Bytes::copy_from_slice(payload) } else { payload.clone() }
}

/// True of a collection that holds less than an eighth of what it has memory for.
pub(crate) fn is_sparse(len: usize, capacity: usize) -> bool {
    len < capacity / 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_below_an_eighth() {
        assert!(is_sparse(0, 8) && is_sparse(9, 80));
        assert!(!is_sparse(10, 80) && !is_sparse(11, 80) && !is_sparse(0, 7) && !is_sparse(0, 0));
    }
}
