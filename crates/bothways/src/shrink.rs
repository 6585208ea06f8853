//! When a collection gives memory back that it needed once.

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
