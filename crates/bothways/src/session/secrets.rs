//! The proof with which a client comes back to its session: the session's secret, and the number of the attempt.

use sha2::{Digest, Sha256};

/// The secret of a session, hashed, and the greatest attempt that was let in.
///
/// The secret stays for the session's life: a Welcome may be lost, and a Hello may be read long after its
/// client has given it up, so that whatever was new in either could not be relied on. Of attempts that come
/// in any order the greatest is the client's last one, and the ones before it take nothing from it.
#[derive(Debug, Default)]
pub(super) struct Secret {
    hash: Option<[u8; 32]>,
    attempt: u64,
}

impl Secret {
    /// Makes the secret. Returns it in the client's form; only its hash is kept.
    pub(super) fn make(&mut self) -> String {
        let secret = format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>());
        self.hash = Some(hash(&secret));
        secret
    }

    /// One that was made at another node.
    #[cfg(feature = "cluster")]
    pub(super) fn of(hash: [u8; 32], attempt: u64) -> Self {
        Self { hash: Some(hash), attempt }
    }

    #[cfg(feature = "cluster")]
    pub(super) fn hash(&self) -> Option<[u8; 32]> {
        self.hash
    }

    /// The greatest attempt that was let in.
    #[cfg(feature = "cluster")]
    pub(super) fn attempt(&self) -> u64 {
        self.attempt
    }

    /// True if this is the secret.
    pub(super) fn admits(&self, secret: &str) -> bool {
        // Of hashes of secrets, the time of a comparison tells nothing of use.
        self.hash == Some(hash(secret))
    }

    /// What is enough of its hash to know its client by; `None`: there is none.
    pub(super) fn mark(&self) -> Option<u128> {
        self.hash.map(mark)
    }

    /// As [`Self::mark`], of what a client shows.
    pub(super) fn mark_of(secret: &str) -> u128 {
        mark(hash(secret))
    }

    /// True if no later attempt was let in before. A client that does not count its attempts is always the latest.
    pub(super) fn is_latest(&self, attempt: Option<u64>) -> bool {
        attempt.is_none_or(|attempt| self.attempt < attempt)
    }

    /// This attempt is let in.
    pub(super) fn let_in(&mut self, attempt: Option<u64>) {
        self.attempt = self.attempt.max(attempt.unwrap_or(0));
    }
}

fn mark(hash: [u8; 32]) -> u128 {
    hash.iter().take(16).fold(0, |mark, byte| mark << 8 | u128::from(*byte))
}

pub(super) fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_stays_and_attempts_only_grow() {
        let mut secret = Secret::default();
        assert!(!secret.admits(""), "there is none");
        let text = secret.make();
        assert!(secret.admits(&text) && !secret.admits("guessed"));
        for (attempt, is_latest) in [(Some(0), false), (Some(1), true), (Some(3), true), (None, true), (Some(2), false)]
        {
            assert_eq!(secret.is_latest(attempt), is_latest, "{attempt:?}");
            if is_latest {
                secret.let_in(attempt);
            }
        }
        for (attempt, is_latest) in [(Some(3), false), (Some(4), true), (Some(u64::MAX), true)] {
            assert_eq!(secret.is_latest(attempt), is_latest, "{attempt:?}");
        }
        assert!(secret.admits(&text));
    }

    /// What is kept of a secret is half of its hash, each bit of it: one that differs anywhere there is another.
    #[test]
    fn what_is_kept_of_a_secret_is_half_of_its_hash() {
        let hash: [u8; 32] = std::array::from_fn(|at| at as u8 + 1);
        assert_eq!(mark(hash), 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
        for at in 0..16 {
            let mut other = hash;
            other[at] ^= 0x80;
            assert_ne!(mark(other), mark(hash), "{at}");
        }
    }
}
