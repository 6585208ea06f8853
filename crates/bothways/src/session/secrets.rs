//! What a client shows to come back to its session.

use std::collections::VecDeque;

use sha2::{Digest, Sha256};

/// What a client may know of its session, hashed: the last secret that it has shown to know, and those
/// that were sent since, oldest first. A Welcome may be lost, so that the client still has the one before.
#[derive(Debug, Default)]
pub(super) struct Secrets {
    hashes: VecDeque<[u8; 32]>,
}

impl Secrets {
    /// Welcomes that may be lost in a row.
    const KEPT: usize = 5;

    /// A new secret, in the client's form.
    pub(super) fn rotate(&mut self) -> String {
        let secret = format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>());
        if Self::KEPT <= self.hashes.len() {
            // The oldest but one: the first may be the only one that the client has.
            self.hashes.remove(1);
        }
        self.hashes.push_back(hash(&secret));
        secret
    }

    pub(super) fn admits(&self, secret: &str) -> bool {
        // Of hashes of secrets, the time of a comparison tells nothing of use.
        self.hashes.contains(&hash(secret))
    }

    /// The client has come back with this one: those before it are over.
    pub(super) fn show(&mut self, secret: &str) {
        let shown = hash(secret);
        while self.hashes.front().is_some_and(|hash| *hash != shown) {
            self.hashes.pop_front();
        }
    }

    /// The client has shown that it got the newest one.
    pub(super) fn confirm(&mut self) {
        self.hashes.drain(..self.hashes.len().saturating_sub(1));
    }
}

fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}
