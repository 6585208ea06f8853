//! The mailboxes of durable pushes, for operators.

use serde::{Deserialize, Serialize};

use super::{Acting, Asking, Refused, lists::PAGE_MAX};
use crate::{
    session::{DeadLetter, LetterView, Mail, MailboxView},
    store::Place,
};

/// Which mailboxes an operator asks for.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct MailboxesAsked {
    /// Those with dead letters, and not those with mail.
    #[serde(default)]
    pub dead: bool,
    /// Users after this one, in the order of their names.
    #[serde(default)]
    pub after: String,
    /// At most so many; 1,000 at most.
    #[serde(default)]
    pub max: usize,
}

/// Which letters an operator asks for.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct LettersAsked {
    /// Of this user.
    pub user: String,
    /// After this sequence; 0 begins at the oldest.
    #[serde(default)]
    pub after: u64,
    /// At most so many; 1,000 at most. A page may be shorter, and the last one is empty.
    #[serde(default)]
    pub max: usize,
}

/// A page of a mailbox.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct LettersListed {
    /// Oldest first.
    pub letters: Vec<LetterView>,
    /// How far each device of the user has come.
    pub devices: Vec<(String, Place)>,
}

/// One letter.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct LetterNamed {
    /// Of this user.
    pub user: String,
    /// Where it stands.
    pub place: Place,
    /// Among the dead letters.
    #[serde(default)]
    pub dead: bool,
}

fn mail(asking: &Asking) -> Result<Mail, Refused> {
    asking.server.mail().ok_or_else(|| Refused::Failed("the server has no store for durable pushes".to_owned()))
}

fn failed(error: impl std::fmt::Display) -> Refused {
    Refused::Failed(error.to_string())
}

pub(super) async fn mailboxes(asking: Asking, asked: MailboxesAsked) -> Result<Vec<MailboxView>, Refused> {
    let (mail, max) = (mail(&asking)?, asked.max.clamp(1, PAGE_MAX));
    let listed = match asked.dead {
        true => mail.with_dead_letters(&asked.after, max).await,
        false => mail.mailboxes(&asked.after, max).await,
    };
    listed.map_err(failed)
}

pub(super) async fn letters(asking: Asking, asked: LettersAsked) -> Result<LettersListed, Refused> {
    let mail = mail(&asking)?;
    let letters = mail.letters(&asked.user, asked.after, asked.max.clamp(1, PAGE_MAX)).await.map_err(failed)?;
    let devices = mail.devices(&asked.user).await.map_err(failed)?;
    Ok(LettersListed { letters, devices })
}

pub(super) async fn dead_letters(asking: Asking, asked: LettersAsked) -> Result<Vec<DeadLetter>, Refused> {
    let max = asked.max.clamp(1, PAGE_MAX);
    mail(&asking)?.dead_letters(&asked.user, asked.after, max).await.map_err(failed)
}

pub(super) async fn send_again(asking: Asking, letter: LetterNamed) -> Result<bool, Refused> {
    let mail = mail(&asking)?;
    let acting = act(&asking, "send again", &letter);
    let sent = mail.send_again(&letter.user, letter.place).await;
    acting.ended(sent.as_ref().map(|is_sent| usize::from(*is_sent)));
    sent.map_err(failed)
}

pub(super) async fn delete(asking: Asking, letter: LetterNamed) -> Result<bool, Refused> {
    let mail = mail(&asking)?;
    let acting = act(&asking, if letter.dead { "delete a dead letter" } else { "delete a letter" }, &letter);
    let deleted = match letter.dead {
        true => mail.delete_dead_letter(&letter.user, letter.place).await,
        false => mail.delete(&letter.user, letter.place).await,
    };
    acting.ended(deleted.as_ref().map(|is_deleted| usize::from(*is_deleted)));
    deleted.map_err(failed)
}

fn act<'a>(asking: &'a Asking, act: &'static str, letter: &LetterNamed) -> Acting<'a> {
    asking.act(act, format!("user {}", letter.user), letter.place.to_string())
}
