//! What an operator does with mailboxes: looks, sends again what could not be handled, deletes.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::{
    Mailboxes,
    letter::{Dead, Letter},
};
use crate::store::{AppendError, EngineDown, Log, NewEntry, Place};

/// The mailboxes of a server, for operators. From [`Server::mail`](crate::Server::mail).
///
/// Each method asks the store, and ends within [`store_wait`](super::MailboxOptions::store_wait). A future that is dropped
/// may have done its work.
#[derive(Clone)]
pub struct Mail {
    pub(super) mailboxes: Arc<Mailboxes>,
}

impl std::fmt::Debug for Mail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mail")
    }
}

/// A mailbox, and how much is in it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct MailboxView {
    /// Whose it is.
    pub user: String,
    /// Letters that a device has not handled, or that are not forgotten yet.
    pub letters: usize,
}

/// A letter in a mailbox.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LetterView {
    /// Where it stands.
    pub place: Place,
    /// The service that it names; empty if it cannot be read.
    pub service_path: String,
    /// The method that it names.
    pub service_method: String,
    /// Of its payload.
    pub bytes: usize,
    /// When it was pushed, in milliseconds since 1970.
    pub at_ms: u64,
    /// Its idempotency key.
    pub key: Option<String>,
}

/// A letter that a device could not handle.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The letter; its place is that among the dead letters.
    pub letter: LetterView,
    /// The device.
    pub device: String,
    /// Why it was given up.
    pub why: String,
    /// How often it was tried.
    pub deliveries: u32,
    /// When it was given up, in milliseconds since 1970.
    pub died_ms: u64,
}

impl LetterView {
    fn of(place: Place, bytes: Bytes) -> Self {
        let whole = bytes.len();
        match Letter::of_bytes(bytes) {
            Some(letter) => Self {
                place,
                service_path: letter.path.clone(),
                service_method: letter.method.clone(),
                bytes: letter.payload.len(),
                at_ms: letter.at_ms,
                key: letter.given_key(),
            },
            None => Self {
                place,
                service_path: String::new(),
                service_method: String::new(),
                bytes: whole,
                at_ms: 0,
                key: None,
            },
        }
    }
}

impl Mail {
    pub(crate) fn new(mailboxes: Arc<Mailboxes>) -> Self {
        Self { mailboxes }
    }

    async fn within<T, E>(&self, asked: impl Future<Output = Result<T, E>>, late: E) -> Result<T, E> {
        let wait: Duration = self.mailboxes.options.store_wait;
        timeout(wait, asked).await.unwrap_or(Err(late))
    }

    async fn list(&self, after: Log, max: usize) -> Result<Vec<MailboxView>, EngineDown> {
        let listed = self.within(self.mailboxes.store.list(after, max), EngineDown).await?;
        Ok(listed.into_iter().map(|(user, letters)| MailboxView { user, letters }).collect())
    }

    /// Up to `max` users who have mail, in the order of their names, after this one. A letter that was handled lately may
    /// still count.
    ///
    /// # Errors
    /// [`EngineDown`].
    pub async fn mailboxes(&self, after: &str, max: usize) -> Result<Vec<MailboxView>, EngineDown> {
        self.list(Log::Mailbox(after.to_owned()), max).await
    }

    /// As [`Self::mailboxes`], those who have dead letters.
    ///
    /// # Errors
    /// [`EngineDown`].
    pub async fn with_dead_letters(&self, after: &str, max: usize) -> Result<Vec<MailboxView>, EngineDown> {
        self.list(Log::Dead(after.to_owned()), max).await
    }

    /// Up to `max` letters of a user, oldest first, after this sequence; 0 begins at the oldest.
    ///
    /// # Errors
    /// [`EngineDown`].
    pub async fn letters(&self, user: &str, after: u64, max: usize) -> Result<Vec<LetterView>, EngineDown> {
        let read = self.mailboxes.store.read(Log::Mailbox(user.to_owned()), after, max);
        let page = self.within(read, EngineDown).await?;
        Ok(page.entries.into_iter().map(|(place, bytes)| LetterView::of(place, bytes)).collect())
    }

    /// How far each device of a user has come, by its name.
    ///
    /// # Errors
    /// [`EngineDown`].
    pub async fn devices(&self, user: &str) -> Result<Vec<(String, Place)>, EngineDown> {
        let cursors = self.mailboxes.store.cursors(Log::Mailbox(user.to_owned()));
        self.within(cursors, EngineDown).await
    }

    /// As [`Self::letters`], those that could not be handled.
    ///
    /// # Errors
    /// [`EngineDown`].
    pub async fn dead_letters(&self, user: &str, after: u64, max: usize) -> Result<Vec<DeadLetter>, EngineDown> {
        let read = self.mailboxes.store.read(Log::Dead(user.to_owned()), after, max);
        let page = self.within(read, EngineDown).await?;
        let dead = |(place, bytes): (Place, Bytes)| {
            let Some(dead) = Dead::of_bytes(bytes.clone()) else {
                let letter = LetterView::of(place, bytes);
                return DeadLetter { letter, device: String::new(), why: String::new(), deliveries: 0, died_ms: 0 };
            };
            DeadLetter {
                letter: LetterView::of(place, dead.letter),
                device: dead.device,
                why: dead.why,
                deliveries: dead.deliveries,
                died_ms: dead.at_ms,
            }
        };
        Ok(page.entries.into_iter().map(dead).collect())
    }

    /// Sends a dead letter again: it is appended to its user's mailbox, for all devices, and is dead no more. It has its
    /// idempotency key, so a device that has handled it does not handle it again. False: it is not there.
    ///
    /// # Errors
    /// [`AppendError`]: it is still with the dead letters. If it is [unknown](AppendError::Unknown), it may be in the mailbox
    /// too.
    pub async fn send_again(&self, user: &str, place: Place) -> Result<bool, AppendError> {
        let (dead_letters, mailbox) = (Log::Dead(user.to_owned()), Log::Mailbox(user.to_owned()));
        let store = &self.mailboxes.store;
        let read = store.read(dead_letters.clone(), place.sequence.saturating_sub(1), 1);
        let page = self.within(read, EngineDown).await.map_err(|_| AppendError::Down)?;
        let found = page.entries.into_iter().find(|(at, _)| *at == place).map(|(_, bytes)| bytes);
        let Some(dead) = found.and_then(Dead::of_bytes) else { return Ok(false) };

        // Sent again twice within two minutes, it is there once.
        let entry = NewEntry::new(dead.letter).with_key(format!("again {place}"));
        let entry = entry.with_time_to_live(self.mailboxes.options.ttl_max);
        let stored = self.within(store.append(mailbox, entry), AppendError::Unknown).await;
        if stored == Err(AppendError::Unknown) {
            self.mailboxes.look_for(user);
        }
        let stored = stored?;
        let removed = self.within(store.remove(dead_letters, place), EngineDown).await;
        self.mailboxes.ring(user, Some(stored.place));
        removed.map_err(|_| AppendError::Unknown)?;
        Ok(true)
    }

    /// Deletes a letter from a mailbox: no device that has not read it gets it. False: it is not there.
    ///
    /// # Errors
    /// [`EngineDown`]: it may be deleted.
    pub async fn delete(&self, user: &str, place: Place) -> Result<bool, EngineDown> {
        let removed = self.mailboxes.store.remove(Log::Mailbox(user.to_owned()), place);
        self.within(removed, EngineDown).await
    }

    /// Deletes a dead letter. False: it is not there.
    ///
    /// # Errors
    /// [`EngineDown`]: it may be deleted.
    pub async fn delete_dead_letter(&self, user: &str, place: Place) -> Result<bool, EngineDown> {
        let removed = self.mailboxes.store.remove(Log::Dead(user.to_owned()), place);
        self.within(removed, EngineDown).await
    }
}
