//! Ends sessions, at every node; and those that no node has: in the store, or where the lease of their node has ended.
//!
//! The nodes are asked first, and the store is looked at when they have answered. So nothing slips through: a session that
//! goes into the store meanwhile is there before its node answers, and of one that comes out of it the node that it comes
//! to has noted the kick before.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};

use super::{
    ask::{Answers, Asked, Said},
    claim::Record,
    engine::{EngineDown, Log, NodeId},
    moves::WriteError,
    node::Node,
    record::Written,
};
use crate::session::{InStore, SessionId, Target, TopicError, UnreachedWhy};

/// How long one question to the register may take.
const ASK_MAX: Duration = Duration::from_secs(1);
/// How often a session is looked for that moves meanwhile.
const KICK_TRIES: usize = 3;
/// How long the sessions in the store may take altogether.
const STORE_MAX: Duration = Duration::from_secs(30);
/// Sessions in the store that are ended side by side.
const SIDE_BY_SIDE: usize = 64;
/// Most users whose sessions in the store are looked up one user after the other. Of more all that is there is looked at.
const USERS_MAX: usize = 64;
/// Sessions in the store that are listed at once.
const PAGE_MAX: usize = 1024;

/// Where the sessions of a user are named that wait in the store: by cursors.
pub(super) fn parked_of(user: &str) -> Log {
    Log::ParkedOf(user.to_owned())
}

/// Where a session is that no node has said to have.
enum Nowhere {
    /// It was in the store, or at a node that is gone, and is not there any more.
    Ended,
    /// The register names a node that lives.
    At(NodeId),
    /// There is none.
    None,
}

impl Node {
    /// Ends these sessions, at every node, and in the store; one that is named also where its node is gone.
    pub(crate) async fn kick(&self, target: &Target, why: &str) -> Result<Answers<usize>, TopicError> {
        let mut tries = 0;
        loop {
            let answers = self.ask_all(Asked::Kick(why.to_owned()), target).await?;
            let mut answers = answers.map(|said| match said {
                Said::Kicked(count) => Some(count),
                _ => None,
            });
            let is_found = answers.answers.iter().any(|(_, count)| 0 < *count);
            let ended = match target.in_store() {
                InStore::Nothing => Ok(0),
                InStore::Session(_) if is_found => Ok(0),
                InStore::Session(id) => {
                    tries += 1;
                    match self.kick_nowhere(id, target).await {
                        Ok(Nowhere::Ended) => Ok(1),
                        // It has just come there, or its end is not written yet.
                        Ok(Nowhere::At(node)) if tries < KICK_TRIES && !answers.is_silent(node) => continue,
                        Ok(Nowhere::At(_) | Nowhere::None) => Ok(0),
                        Err(EngineDown) => Err(EngineDown),
                    }
                }
                InStore::Users(users) => self.kick_parked(Some(users), target).await,
                InStore::Any => self.kick_parked(None, target).await,
            };
            match ended {
                Ok(ended) => answers.answers.iter_mut().take(1).for_each(|(_, count)| *count += ended),
                Err(EngineDown) => {
                    answers.silent.push((self.me().unwrap_or(NodeId(0)), UnreachedWhy::EngineDown));
                }
            }
            return Ok(answers);
        }
    }

    /// Ends those sessions in the store that are meant; of these users, if they are named. How many there were.
    async fn kick_parked(&self, users: Option<&[String]>, target: &Target) -> Result<usize, EngineDown> {
        let deadline = Instant::now() + STORE_MAX;
        let of_users = match users {
            Some(users) if users.len() <= USERS_MAX => {
                timeout_at(deadline, self.parked_of_users(users)).await.ok().flatten()
            }
            _ => None,
        };
        if let Some(found) = of_users {
            return self.kick_each(found, target, deadline).await;
        }

        // All of them, a page at a time: of who is not meant the record says so.
        let (mut after, mut ended) = (SessionId::FIRST, 0);
        loop {
            let page = timeout_at(deadline, self.engine().list(Log::Parked(after), PAGE_MAX)).await;
            let page = page.unwrap_or(Err(EngineDown))?;
            let found: BTreeSet<SessionId> = page.iter().filter_map(|(id, _)| id.parse().ok()).collect();
            // What is listed in another order would be listed for ever.
            let Some(last) = found.last().copied().filter(|last| after < *last) else { return Ok(ended) };
            after = last;
            ended += self.kick_each(found, target, deadline).await?;
        }
    }

    /// The sessions that wait, or have waited, in the store for these users. `None`: it cannot be told.
    async fn parked_of_users(&self, users: &[String]) -> Option<BTreeSet<SessionId>> {
        let mut found = BTreeSet::new();
        for user in users {
            let named = self.engine().cursors(parked_of(user)).await.ok()?;
            found.extend(named.iter().filter_map(|(id, _)| id.parse::<SessionId>().ok()));
        }
        Some(found)
    }

    /// Ends those of these sessions that are meant and that no node has. How many there were.
    async fn kick_each(
        &self,
        sessions: BTreeSet<SessionId>,
        target: &Target,
        deadline: Instant,
    ) -> Result<usize, EngineDown> {
        let Some(node) = self.this() else { return Err(EngineDown) };
        let (mut left, mut kicking, mut ended) = (sessions.into_iter(), JoinSet::new(), 0);
        loop {
            while kicking.len() < SIDE_BY_SIDE
                && let Some(id) = left.next()
            {
                let (node, target) = (Arc::clone(&node), target.clone());
                kicking.spawn(async move { node.kick_nowhere(id, &target).await });
            }
            let Ok(kicked) = timeout_at(deadline, kicking.join_next()).await else { return Err(EngineDown) };
            match kicked {
                None => return Ok(ended),
                Some(Ok(nowhere)) => ended += usize::from(matches!(nowhere?, Nowhere::Ended)),
                // Its runtime has ended, and with it this future.
                Some(Err(_)) => return Err(EngineDown),
            }
        }
    }

    /// Ends a session that no living node has: who comes for it hears that nobody knows it.
    async fn kick_nowhere(&self, id: SessionId, target: &Target) -> Result<Nowhere, EngineDown> {
        for _ in 0..KICK_TRIES {
            let read = timeout(ASK_MAX, self.engine().session(id, true)).await.unwrap_or(Err(EngineDown))?;
            let Some((bytes, revision)) = read else { return Ok(Nowhere::None) };
            let Some(written) = Written::from_bytes(bytes) else { return Err(EngineDown) };
            let Record { term, owner, .. } = written.record();
            if written.is_given_up() || !target.admits_known(id, &written.known()) {
                return Ok(Nowhere::None);
            }
            let is_parked = written.parked.is_some();
            if !is_parked && (self.me() == Some(owner) || self.members().contains(&owner)) {
                return Ok(Nowhere::At(owner));
            }
            // A node that was stopped may have it still.
            let given_up = Written::nobodys(term, written.hash);
            match timeout(ASK_MAX, self.write(id, Some(revision), &given_up)).await {
                Ok(Ok(_)) => {
                    if let Some(parked) = written.parked {
                        let _ = timeout(ASK_MAX, self.forget_parked(id, parked)).await;
                    }
                    return Ok(Nowhere::Ended);
                }
                // It has been written since, or nobody knows: the register says.
                Ok(Err(WriteError::Lost(_) | WriteError::Unknown)) | Err(_) => {}
                Ok(Err(WriteError::Down)) => return Err(EngineDown),
            }
        }
        Err(EngineDown)
    }
}
