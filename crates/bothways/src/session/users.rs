//! The sessions of each user, and what these use together.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use super::{
    Session,
    account::{Account, Home},
    crowd::Crowd,
    lock::{self, Changes, Held as HeldLocks, Wake},
    shards::Shards,
};

/// See the module.
///
/// Locks: a part of the table, then a session.
pub(super) struct Users {
    table: Arc<Table>,
    /// The calls of each user are counted.
    counts_calls: bool,
    /// Bytes that the logs of one user's sessions may hold together.
    bytes_max: usize,
}

type Table = Shards<HashMap<Arc<str>, OfUser>>;

/// What belongs to one user. It stays while the user has sessions, or calls that run.
#[derive(Default)]
struct OfUser {
    sessions: Crowd<Session>,
    /// From the second session on, or if its calls are counted. What a user of one session holds, the ledger of that
    /// one holds.
    account: Option<Arc<Account>>,
}

impl Users {
    pub(super) fn new(counts_calls: bool, bytes_max: usize) -> Self {
        Self { table: Arc::default(), counts_calls, bytes_max }
    }

    /// The sessions of the user of this name, in the order in which they came.
    pub(super) fn sessions_of(&self, name: &str) -> Vec<Session> {
        let users = self.table.of(name).read();
        users.get(name).map(|theirs| theirs.sessions.iter().cloned().collect()).unwrap_or_default()
    }

    /// Makes the table say of this user and this session what the session itself says now. The caller that has changed
    /// that comes here after it, so that the last of several who race leaves the truth: a session that ends while it is
    /// being bound is nobody's, and one that is bound twice at once is found under one name, once.
    pub(super) fn settle(&self, session: &Session, user: &Arc<str>) {
        // Nobody is woken while a table is locked.
        let _held_locks = HeldLocks::begin();
        let mut users = self.table.of(&**user).write();
        if let Some(theirs) = users.get_mut(user) {
            self.open_account(theirs, session, user);
        }

        // The table first, then the session: what the table says is settled by what the session says meanwhile.
        let mut state = session.lock();
        let is_theirs = state.is_of(user);
        // Nearly always it is in no list, or leaves its only one: a user of many sessions is not searched for nothing.
        let is_listed = state.is_listed() && users.get(user).is_some_and(|theirs| theirs.sessions.contains(session));

        if is_theirs {
            let theirs = users.entry(Arc::clone(user)).or_default();
            if !is_listed {
                theirs.sessions.add(session.clone());
                state.list();
            }

            if theirs.account.is_none() && self.counts_calls {
                theirs.account = Some(self.new_account(user));
            }
            if let Some(account) = &theirs.account {
                account.note_session();
            }
            state.charge(theirs.account.clone());
        } else if is_listed {
            let theirs = users.get_mut(user).expect("it was just seen");
            theirs.sessions.remove(session);
            state.unlist(theirs.account.as_ref());
            let has_calls = || theirs.account.as_ref().is_some_and(|account| account.outlives_sessions());
            if theirs.sessions.is_empty() && !has_calls() {
                users.remove(user);
            }
        }
    }

    /// Gives a user an account who is about to have a second session: what the first one holds is charged there.
    fn open_account(&self, theirs: &mut OfUser, second: &Session, user: &Arc<str>) {
        let comes = || second.lock().user() == Some(user);
        if theirs.account.is_some() || theirs.sessions.iter().all(|other| other == second) || !comes() {
            return;
        }
        let account = self.new_account(user);
        for session in theirs.sessions.iter() {
            let mut state = session.lock();
            if state.is_of(user) {
                state.charge(Some(Arc::clone(&account)));
                drop(state);
                // A sender that waits for room there waits for the others to make some, too.
                lock::wake(Wake::Of(Arc::clone(&session.inner) as Arc<dyn Changes>));
            }
        }
        theirs.account = Some(account);
    }

    fn new_account(&self, user: &Arc<str>) -> Arc<Account> {
        let home = || AtHome { table: Arc::downgrade(&self.table), user: Arc::clone(user) };
        match self.counts_calls {
            true => Account::at_home(self.bytes_max, home()).into(),
            false => Account::new(self.bytes_max).into(),
        }
    }
}

/// The place of an account, from which the last call of a user without sessions takes it.
struct AtHome {
    table: Weak<Table>,
    user: Arc<str>,
}

impl Home for AtHome {
    fn forget(&self, account: &Arc<Account>) {
        let Some(table) = self.table.upgrade() else { return };
        let mut users = table.of(&*self.user).write();
        let is_kept_for_calls = |theirs: &OfUser| {
            theirs.sessions.is_empty() && theirs.account.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, account))
        };
        // The user may be back, or call once more, this moment.
        if users.get(&self.user).is_some_and(is_kept_for_calls) && !account.runs_calls() {
            users.remove(&self.user);
        }
    }
}

impl std::fmt::Debug for AtHome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AtHome").field("user", &self.user).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Target,
            endings::{Ending, NotResumed},
            fixtures::{one_session, plain_connections},
        },
        *,
    };
    use crate::session::registry::Registry;

    fn bound_to(registry: &Registry, name: &str) -> usize {
        registry.find(&Target::user(name)).expect("no topic").len()
    }

    /// The table kept such a session for ever: found, pushed to, and never forgotten.
    #[tokio::test(start_paused = true)]
    async fn a_session_that_ends_while_it_is_bound_is_nobodys() {
        let (_server, _client, registry, session) = one_session("ends-while-bound").await;
        let ann: Arc<str> = "ann".into();
        assert_eq!(session.bind(Some(Arc::clone(&ann))), Some(None));
        registry.remove(&session, Ending::new("now", NotResumed::Ended), None);
        registry.users.settle(&session, &ann);
        assert_eq!(bound_to(&registry, "ann"), 0);
        assert!(registry.users.table.iter().all(|shard| shard.read().is_empty()), "nothing is left");
        registry.bind_user(&session, Some("bob"));
        assert_eq!(bound_to(&registry, "bob"), 0, "it has ended");
    }

    /// Two threads bind a session to two users, and one of them comes to the table late.
    #[tokio::test(start_paused = true)]
    async fn a_session_bound_twice_at_once_is_found_under_the_last_name_once() {
        let (_server, _client, registry, session) = one_session("bound-twice").await;
        let [ann, bob]: [Arc<str>; 2] = ["ann".into(), "bob".into()];
        assert_eq!(session.bind(Some(Arc::clone(&ann))), Some(None));
        registry.bind_user(&session, Some("bob"));
        registry.users.settle(&session, &ann);
        assert_eq!((bound_to(&registry, "ann"), bound_to(&registry, "bob")), (0, 1));

        // From bob to ann and back to bob, while the first of these is late.
        assert_eq!(session.bind(Some(Arc::clone(&ann))), Some(Some(Arc::clone(&bob))));
        registry.bind_user(&session, Some("bob"));
        registry.users.settle(&session, &bob);
        registry.users.settle(&session, &ann);
        assert_eq!((bound_to(&registry, "ann"), bound_to(&registry, "bob")), (0, 1));
    }

    /// However many sessions a user has, they share one account.
    #[tokio::test(start_paused = true)]
    async fn a_user_has_one_account() {
        let (_server, _clients, registry, connections) = plain_connections::<4>("account").await;
        let sessions: Vec<_> = connections.iter().map(|it| registry.of(it).expect("it is made")).collect();
        let account = |at: usize| sessions[at].lock().ledger().account().cloned();
        sessions[0].bind_user("ann");
        assert!(account(0).is_none(), "one session alone has its own bounds");
        for session in &sessions[1..3] {
            session.bind_user("ann");
        }
        let first = account(0).expect("there are several");
        sessions[3].bind_user("ann");
        assert!(account(0).is_some_and(|same| Arc::ptr_eq(&same, &first)), "another session changes nothing");
        assert!((1..4).all(|at| account(at).is_some_and(|other| Arc::ptr_eq(&other, &first))));
        sessions[3].bind_user("bob");
        assert!(account(3).is_none());
    }

    /// What a user runs is counted for as long as it runs, whichever sessions come and go meanwhile; then nothing of
    /// the user is left.
    #[tokio::test(start_paused = true)]
    async fn an_account_outlives_the_last_session_while_calls_run() {
        let (_server, _clients, registry, connections) = plain_connections::<3>("account-outlives").await;
        let users = Users::new(true, 0);
        let sessions: Vec<_> = connections.iter().map(|it| registry.of(it).expect("it is made")).collect();
        let bind = |at: usize, name: &str| {
            let name: Arc<str> = name.into();
            let before = sessions[at].bind(Some(Arc::clone(&name))).expect("another user");
            before.iter().chain([&name]).for_each(|user| users.settle(&sessions[at], user));
        };
        let begin = |at: usize| sessions[at].begin_user_call(2).map(|call| call.expect("calls are counted"));
        bind(0, "ann");
        let calls = [begin(0).expect("room"), begin(0).expect("room")];
        assert_eq!(begin(0).err(), Some(2));
        bind(0, "bob");
        assert!(begin(0).is_ok(), "bob runs nothing");
        bind(1, "ann");
        assert_eq!(begin(1).err(), Some(2), "what runs is ann's still");
        bind(0, "ann");
        bind(0, "bob");
        bind(1, "bob");
        assert_eq!(users.table.iter().map(|shard| shard.read().len()).sum::<usize>(), 2);
        drop(calls);
        assert_eq!(users.table.iter().map(|shard| shard.read().len()).sum::<usize>(), 1, "bob");
        bind(2, "ann");
        assert!(begin(2).is_ok());
    }

    /// A session that is another user's by now, and one that has ended, are still in the list: the account that their
    /// former user gets with its next session is not theirs.
    #[tokio::test(start_paused = true)]
    async fn an_account_is_for_sessions_of_its_user_only() {
        let (_server, _clients, registry, connections) = plain_connections::<3>("account-of").await;
        let sessions: Vec<_> = connections.iter().map(|it| registry.of(it).expect("it is made")).collect();
        let account = |at: usize| sessions[at].lock().ledger().account().cloned();
        let [ann, bob]: [Arc<str>; 2] = ["ann".into(), "bob".into()];
        sessions[0].bind_user("ann");
        registry.users.settle(&sessions[1], &ann);
        assert!(account(0).is_none(), "the other one is not of ann");
        // Not settled yet.
        assert_eq!(sessions[0].bind(Some(Arc::clone(&bob))), Some(Some(Arc::clone(&ann))));
        sessions[1].bind_user("ann");
        assert!(account(0).is_none());
        assert!(account(1).is_some(), "the list still has two");

        registry.users.settle(&sessions[0], &ann);
        registry.users.settle(&sessions[0], &bob);
        assert!(account(0).is_none(), "the only session of bob");
        drop(sessions[0].lock().end(&Arc::default()));
        sessions[2].bind_user("bob");
        assert!(account(0).is_none() && account(2).is_some());
    }
}
