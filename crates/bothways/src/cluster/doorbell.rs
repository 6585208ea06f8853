//! Rings for what other nodes put into mailboxes: the sessions here look, and get what the engine shows them.
//!
//! A ring is a reason to look, and no letter; so one that is lost delays its letter, until the next one, the client's next
//! session, or the next epoch of the engine, when all sessions look. The engine begins one when it misses a ring.

use std::sync::{Arc, Weak};

use tokio::sync::watch;

use super::engine::{Engine, EngineDown, EngineState, Followed, Follower, Following};
use crate::session::Registry;

/// See the module. It rings for as long as this is kept.
pub(crate) struct Doorbell {
    _following: Following,
    _stop: watch::Sender<()>,
}

impl Doorbell {
    /// Follows the mailboxes.
    ///
    /// # Errors
    /// [`EngineDown`].
    pub(crate) async fn hang(engine: &Arc<dyn Engine>, sessions: &Arc<Registry>) -> Result<Self, EngineDown> {
        let bell: Arc<dyn Follower> = Arc::new(Bell(Arc::downgrade(sessions)));
        let following = engine.follow_mailboxes(bell).await?;
        let (stop, stopped) = watch::channel(());
        let states = (engine.mail_state(), engine.register_state());
        tokio::spawn(look_again(states, Arc::downgrade(sessions), stopped));
        Ok(Self { _following: following, _stop: stop })
    }
}

struct Bell(Weak<Registry>);

impl Follower for Bell {
    fn message(&self, message: Followed) {
        if let Some(registry) = self.0.upgrade()
            && let Some(mail) = registry.mailboxes()
        {
            mail.ring(&message.topic, message.stored.map(|(place, _)| place));
        }
    }
}

/// All sessions look into their mailboxes after each gap, in which a ring may have been lost, or the store itself.
async fn look_again(
    (mut mail, mut register): (watch::Receiver<EngineState>, watch::Receiver<EngineState>),
    sessions: Weak<Registry>,
    mut stopped: watch::Receiver<()>,
) {
    mail.mark_unchanged();
    register.mark_unchanged();
    loop {
        let changed = tokio::select! {
            changed = mail.changed() => changed,
            changed = register.changed() => changed,
            // Nothing is said there: it ends with the doorbell.
            _ = stopped.changed() => return,
        };
        if changed.is_err() {
            return;
        }
        let is_up = mail.borrow().is_up() && register.borrow().is_up();
        let Some(registry) = sessions.upgrade().filter(|_| is_up) else { continue };
        if let Some(mail) = registry.mailboxes().cloned() {
            drop(registry);
            mail.wake_all().await;
        }
    }
}
