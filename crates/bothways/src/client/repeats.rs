//! Idempotency keys of the messages that a client has received, over all its sessions: a repetition is not given to the
//! application. The clients of one [`XClient`](crate::XClient) share them, so that this holds over all its servers.
//!
//! ```text
//!              ┌──► handled: a repetition is handled at once
//!  received ───┤
//!              ├──► superseded by a newer value, unseen: so are its repetitions
//!              ├──► failed: so did its repetitions, and the next one with its key is the first
//!              ├──► pushed out of a full queue: its repetitions failed, and the next one with its key is the first
//!              └──► forgotten: nobody will handle it, and the next one with its key is the first
//! ```

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, OnceLock},
};

use parking_lot::Mutex;

use super::session::Ack;
use crate::session::{Failure, KEY_BYTES_MAX, Stage};

/// Keys that a client remembers of a server: as many as a session there does, and some 256 KiB.
const KEYS_MAX: usize = 1024;

/// Repetitions of one message whose acknowledgements wait for it. A server does not send one key twice to a session;
/// so many servers may send it to one application. More are never acknowledged.
const REPEATS_MAX: usize = 256;

/// Shared between the readers of connections and the messages that were handed out.
#[derive(Clone, Debug, Default)]
pub(crate) struct ReceivedKeys {
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    runs: HashMap<Arc<str>, Arc<Run>>,
    /// The keys that each server was the first to bring.
    rings: HashMap<Arc<str>, Ring>,
    /// Servers that bring messages now.
    servers: usize,
    /// Grows with each key.
    clock: u64,
}

/// The keys of one server, the oldest first.
#[derive(Debug, Default)]
struct Ring {
    order: VecDeque<Arc<str>>,
    used: u64,
}

impl Known {
    /// Remembers one more key of a server. What others have brought stays, unless servers come and go: of those that
    /// are gone as many are remembered as there are.
    fn remember(&mut self, server: &Arc<str>, key: Arc<str>, run: Arc<Run>) {
        let rings_max = 2 * self.servers.max(1);
        if !self.rings.contains_key(server) && rings_max <= self.rings.len() {
            let idle = self.rings.iter().min_by_key(|(_, ring)| ring.used).map(|(server, _)| Arc::clone(server));
            let forgotten = idle.and_then(|idle| self.rings.remove(&idle)).unwrap_or_default();
            forgotten.order.iter().for_each(|key| drop(self.runs.remove(key)));
        }
        self.clock += 1;
        let ring = self.rings.entry(Arc::clone(server)).or_default();
        ring.used = self.clock;
        if KEYS_MAX <= ring.order.len()
            && let Some(oldest) = ring.order.pop_front()
        {
            self.runs.remove(&oldest);
        }
        ring.order.push_back(Arc::clone(&key));
        self.runs.insert(key, run);
    }
}

/// What becomes of the first message with a key.
#[derive(Debug, Default)]
struct Run {
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    /// The application has not dealt with it; the acknowledgements of its repetitions wait for that.
    Open(Vec<Ack>),
    Handled,
    /// So is a repetition that came at the same moment.
    Lost(Lost),
}

impl Default for State {
    fn default() -> Self {
        Self::Open(Vec::new())
    }
}

/// The first message with a key is handled when this is dropped.
#[derive(Debug)]
pub(super) struct FirstOfKey {
    keys: ReceivedKeys,
    server: Arc<str>,
    key: Arc<str>,
    run: Arc<Run>,
    lost: OnceLock<Lost>,
}

/// Why a message was not handled; of one with a key, so were its repetitions.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lost {
    /// Nobody has handled it, and nobody will on this connection: its sender is not told that somebody has.
    Forgotten,
    /// The application's queue was full.
    PushedOut,
    /// The application does not listen any more.
    Abandoned,
    /// A newer value took its place. Its repetitions are as old: for them, its key stays taken.
    Superseded,
    /// The application could not handle it.
    Failed(Failure),
}

impl Lost {
    /// Says so of the message, or of a repetition, to which this belongs.
    pub(super) fn say_of(self, ack: &Ack) {
        match self {
            Self::Forgotten => ack.forget(),
            Self::PushedOut => ack.push_out(),
            Self::Abandoned => ack.abandon(),
            Self::Superseded => ack.end_as(Stage::Superseded),
            Self::Failed(failure) => ack.end_as(Stage::Failed(failure)),
        }
    }
}

/// What a key makes of a message.
pub(super) enum Met {
    First(FirstOfKey, Option<Ack>),
    /// Received already, and acknowledged when the first is.
    Again,
}

impl ReceivedKeys {
    /// So many servers bring messages from here on.
    pub(crate) fn share_among(&self, servers: usize) {
        self.known.lock().servers = servers;
    }

    /// A message with this key came from a server. `Err`: the key is none, and says nothing.
    pub(super) fn meet(&self, server: &Arc<str>, key: &str, ack: Option<Ack>) -> Result<Met, Option<Ack>> {
        if key.is_empty() || KEY_BYTES_MAX < key.len() {
            return Err(ack);
        }
        let mut known = self.known.lock();
        if let Some(run) = known.runs.get(key).map(Arc::clone) {
            drop(known);
            run.repeat(ack);
            return Ok(Met::Again);
        }
        let (key, run): (Arc<str>, _) = (key.into(), Arc::<Run>::default());
        known.remember(server, Arc::clone(&key), Arc::clone(&run));
        let (keys, server) = (self.clone(), Arc::clone(server));
        Ok(Met::First(FirstOfKey { keys, server, key, run, lost: OnceLock::new() }, ack))
    }

    /// Keeps the lock.
    #[cfg(test)]
    pub(super) fn hold(&self) -> impl Sized + '_ {
        self.known.lock()
    }

    fn free(&self, server: &Arc<str>, key: &Arc<str>, run: &Arc<Run>) {
        let mut known = self.known.lock();
        if known.runs.get(key).is_some_and(|of_key| Arc::ptr_eq(of_key, run)) {
            known.runs.remove(key);
            if let Some(ring) = known.rings.get_mut(server) {
                ring.order.retain(|other| other != key);
            }
        }
    }
}

impl Run {
    fn repeat(&self, ack: Option<Ack>) {
        let Some(ack) = ack else { return };
        let mut state = self.state.lock();
        match &mut *state {
            State::Open(waiting) if waiting.len() < REPEATS_MAX => return waiting.push(ack),
            State::Open(_) => ack.forget(),
            State::Handled => {}
            State::Lost(how) => how.say_of(&ack),
        }
        // Dropped, and so given, without the lock: it takes one of its own.
        drop(state);
        drop(ack);
    }
}

impl FirstOfKey {
    /// The message was not handled for this reason. What is said first counts.
    pub(super) fn lose(&self, why: Lost) {
        let _ = self.lost.set(why);
    }

    /// Tracked repetitions wait for what becomes of it.
    pub(super) fn has_repetitions(&self) -> bool {
        matches!(&*self.run.state.lock(), State::Open(waiting) if !waiting.is_empty())
    }
}

impl Drop for FirstOfKey {
    fn drop(&mut self) {
        let lost = self.lost.get().copied();
        if lost.is_some_and(|lost| !matches!(lost, Lost::Superseded)) {
            self.keys.free(&self.server, &self.key, &self.run);
        }
        let end = lost.map_or(State::Handled, State::Lost);
        let state = std::mem::replace(&mut *self.run.state.lock(), end);
        if let (State::Open(waiting), Some(lost)) = (&state, lost) {
            waiting.iter().for_each(|ack| lost.say_of(ack));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(keys: &ReceivedKeys, key: &str) -> Option<FirstOfKey> {
        first_of("a", keys, key)
    }

    fn first_of(server: &str, keys: &ReceivedKeys, key: &str) -> Option<FirstOfKey> {
        match keys.meet(&server.into(), key, None) {
            Ok(Met::First(first, _)) => Some(first),
            _ => None,
        }
    }

    #[test]
    fn a_key_has_one_first_message_unless_that_is_forgotten() {
        let keys = ReceivedKeys::default();
        let held = first(&keys, "a").expect("it is the first");
        assert!(first(&keys, "a").is_none());
        held.lose(Lost::Forgotten);
        drop(held);
        drop(first(&keys, "a").expect("the one before was lost"));
        assert!(first(&keys, "a").is_none(), "it was handled");
        assert!(keys.meet(&"a".into(), "", None).is_err() && keys.meet(&"a".into(), &"x".repeat(65), None).is_err());
    }

    #[test]
    fn the_oldest_of_too_many_is_forgotten() {
        let keys = ReceivedKeys::default();
        let oldest = first(&keys, "0").expect("new");
        (1..=KEYS_MAX).for_each(|n| drop(first(&keys, &n.to_string()).expect("new")));
        assert_eq!(keys.known.lock().runs.len(), KEYS_MAX);
        let again = first(&keys, "0").expect("it is not remembered");
        oldest.lose(Lost::Forgotten);
        drop(oldest);
        drop(again);
        assert!(first(&keys, "0").is_none(), "an earlier one with its key takes nothing from it");
    }

    /// The keys of servers that are gone make way: first those of the server that has brought none for longest.
    #[test]
    fn of_servers_that_are_gone_the_longest_quiet_is_forgotten() {
        for _ in 0..20 {
            let keys = ReceivedKeys::default();
            for (server, key) in [("a", "1"), ("b", "2"), ("a", "3"), ("c", "4")] {
                drop(first_of(server, &keys, key).expect("new"));
            }
            for known in ["1", "3", "4"] {
                assert!(first_of("c", &keys, known).is_none(), "{known}");
            }
            assert!(first_of("c", &keys, "2").is_some());
        }
    }

    /// Of many repetitions of a message that nobody has dealt with, so many wait, and the others are no promise.
    #[test]
    fn so_many_repetitions_wait_for_the_first() {
        let keys = ReceivedKeys::default();
        let _held = first(&keys, "a").expect("it is the first");
        let acks = crate::client::session::acks(REPEATS_MAX as u64 + 1);
        for ack in acks {
            assert!(matches!(keys.meet(&"a".into(), "a", Some(ack)), Ok(Met::Again)));
        }
        let state = keys.known.lock();
        let waiting = match &*state.runs["a"].state.lock() {
            State::Open(waiting) => waiting.len(),
            State::Handled | State::Lost(_) => 0,
        };
        assert_eq!(waiting, REPEATS_MAX);
    }

    /// A repetition that comes while its first ends is not taken for handled if that was not.
    #[test]
    fn a_repetition_of_what_was_lost_ends_as_it_did() {
        let keys = ReceivedKeys::default();
        let held = first(&keys, "a").expect("it is the first");
        let run = Arc::clone(&held.run);
        held.lose(Lost::Failed(Failure::Error));
        drop(held);
        assert!(matches!(&*run.state.lock(), State::Lost(Lost::Failed(Failure::Error))));
        run.repeat(crate::client::session::acks(1).pop());
    }

    #[test]
    fn a_repetition_of_what_was_superseded_is_superseded_too() {
        let keys = ReceivedKeys::default();
        let held = first(&keys, "a").expect("it is the first");
        let run = Arc::clone(&held.run);
        held.lose(Lost::Superseded);
        drop(held);
        assert!(first(&keys, "a").is_none(), "it is no first of its own");
        assert!(matches!(&*run.state.lock(), State::Lost(Lost::Superseded)));
    }

    #[test]
    fn no_server_has_the_keys_of_another_forgotten() {
        let keys = ReceivedKeys::default();
        keys.share_among(2);
        (0..KEYS_MAX).for_each(|n| drop(first_of("a", &keys, &format!("a {n}")).expect("new")));
        (0..4 * KEYS_MAX).for_each(|n| drop(first_of("b", &keys, &format!("b {n}")).expect("new")));
        assert_eq!(keys.known.lock().runs.len(), 2 * KEYS_MAX);
        assert!(first_of("a", &keys, "a 0").is_none(), "it is remembered");
        assert!(first_of("b", &keys, "a 1").is_none(), "over all servers");
        assert!(first_of("b", &keys, "b 0").is_some(), "of its own it has pushed out the oldest");
    }

    /// Servers that come and go fill no memory.
    #[test]
    fn of_servers_that_are_gone_as_many_are_remembered_as_there_are() {
        let keys = ReceivedKeys::default();
        keys.share_among(2);
        (0..100).for_each(|n| drop(first_of(&n.to_string(), &keys, &n.to_string()).expect("new")));
        let known = keys.known.lock();
        assert_eq!((known.rings.len(), known.runs.len()), (4, 4));
    }

    /// What was lost is forgotten, and nothing else is.
    #[test]
    fn what_was_lost_makes_room_for_one() {
        let keys = ReceivedKeys::default();
        drop(first(&keys, "a").expect("new"));
        let lost = first(&keys, "b").expect("new");
        assert!(!lost.has_repetitions());
        lost.lose(Lost::PushedOut);
        drop(lost);
        assert_eq!(keys.known.lock().rings["a"].order, [Arc::from("a")]);
        assert!(first(&keys, "a").is_none() && first(&keys, "b").is_some());
    }
}
