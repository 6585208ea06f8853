//! Who was kicked lately: a session that was on its way then, and at no node, ends where it comes.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use super::moves::LATELY;
use crate::session::{Known, SessionId, Target};

/// Most kicks that are remembered. Of more, the oldest is forgotten.
const KICKS_MAX: usize = 256;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Kicks(VecDeque<Kick>);

#[derive(Debug)]
struct Kick {
    target: Target,
    why: String,
    at: Instant,
}

impl Kicks {
    /// Those who are meant were kicked at this moment.
    pub(super) fn note(&mut self, target: &Target, why: &str) {
        let now = Instant::now();
        self.0.retain(|kick| now.saturating_duration_since(kick.at) < LATELY);
        if KICKS_MAX <= self.0.len() {
            self.0.pop_front();
        }
        self.0.push_back(Kick { target: target.clone(), why: why.to_owned(), at: now });
    }

    /// Why a session was kicked that is so old, and has come here. `None`: it was not, or it began after that.
    pub(super) fn reason(&self, id: SessionId, known: &Known, age: Duration) -> Option<&str> {
        let means = |kick: &&Kick| {
            let since = kick.at.elapsed();
            since < LATELY && since < age && kick.target.admits_known(id, known)
        };
        self.0.iter().rev().find(means).map(|kick| &*kick.why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A session that was there when its user was kicked is meant, for a while, and one that began later is not.
    #[tokio::test(start_paused = true)]
    async fn who_was_kicked_is_known_for_a_while() {
        let known = |user: &str| Known { user: Some(user.into()), labels: vec![], hash: [0; 32], patterns: vec![] };
        let (id, old): (SessionId, _) = ("7".parse().expect("a number"), Duration::from_secs(3600));
        let mut kicks = Kicks::default();
        assert_eq!(kicks.reason(id, &known("ann"), old), None);
        kicks.note(&Target::user("ann"), "enough");
        kicks.note(&Target::session("9".parse().expect("a number")), "another");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(kicks.reason(id, &known("ann"), old), Some("enough"));
        assert_eq!(kicks.reason(id, &known("bob"), old), None);
        assert_eq!(kicks.reason(id, &known("ann"), Duration::from_millis(900)), None, "it began after that");
        tokio::time::advance(LATELY).await;
        assert_eq!(kicks.reason(id, &known("ann"), old), None, "it is forgotten");
        (0..2 * KICKS_MAX).for_each(|_| kicks.note(&Target::user("bob"), "enough"));
        assert_eq!(kicks.0.len(), KICKS_MAX);
    }
}
