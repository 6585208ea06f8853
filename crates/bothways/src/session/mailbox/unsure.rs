//! Appends whose end nobody knows. What is stored after its caller has given up rings nobody, so it is looked for.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;

use super::Mailboxes;

/// The pauses between the looks, of which the first is at once: three minutes in all. A store that does not answer is asked
/// until it does, by who reads; this is for one that answers, and stores late.
const PAUSES: [Duration; 4] =
    [Duration::from_secs(5), Duration::from_secs(15), Duration::from_secs(40), Duration::from_secs(120)];

/// Users for whom it is looked at the same time. For more it is looked once, at once.
const USERS_MAX: usize = 16_384;

/// Users for whom it is looked. True: it has happened since the looks began.
pub(super) type Unsure = Mutex<HashMap<Arc<str>, bool>>;

impl Mailboxes {
    /// Something may be in the mailbox of this user, or come there late: the sessions that are here look now, and later.
    pub(super) fn look_for(self: &Arc<Self>, user: &str) {
        self.ring(user, None);
        let Some(runtime) = self.runtimes.near().or_else(|| self.runtimes.any()) else { return };

        let mut users = self.unsure.lock();
        if let Some(has_happened) = users.get_mut(user) {
            *has_happened = true;
            return;
        }
        if USERS_MAX <= users.len() {
            return;
        }
        let user: Arc<str> = user.into();
        users.insert(Arc::clone(&user), true);
        drop(users);
        runtime.spawn(Looking { mail: Arc::downgrade(self), user, is_closed: false }.run());
    }
}

/// Looks for what one user may have got. If its runtime ends, the next time begins anew.
struct Looking {
    mail: Weak<Mailboxes>,
    user: Arc<str>,
    is_closed: bool,
}

impl Looking {
    async fn run(mut self) {
        while self.goes_on() {
            for pause in PAUSES {
                tokio::time::sleep(pause).await;
                let Some(mail) = self.mail.upgrade() else { return };
                mail.ring(&self.user, None);
            }
        }
    }

    /// False: it has not happened again, and is forgotten.
    fn goes_on(&mut self) -> bool {
        let Some(mail) = self.mail.upgrade() else { return false };
        let mut users = mail.unsure.lock();
        let goes_on = users.get_mut(&self.user).is_some_and(std::mem::take);
        if !goes_on {
            users.remove(&self.user);
            self.is_closed = true;
        }
        goes_on
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        if let Some(mail) = self.mail.upgrade().filter(|_| !self.is_closed) {
            mail.unsure.lock().remove(&self.user);
        }
    }
}
