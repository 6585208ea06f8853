//! Places for connections at an admin address that have not shown the token: few, and the newest always gets one.
//!
//! An operator needs a place for as long as its first request takes. So nobody is kept out by those who were there
//! before: of the peer that has too many places, the connection that has its place longest makes way.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Places of all strangers.
const PLACES_MAX: usize = 64;

/// Places of one peer.
const OF_PEER_MAX: usize = 16;

/// See the module.
#[derive(Default)]
pub(super) struct Strangers {
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    all: BTreeMap<u64, Stranger>,
    of: HashMap<String, BTreeSet<u64>>,
    next: u64,
}

struct Stranger {
    peer: String,
    /// Says that it is none any more. Dropped without that, it makes way.
    shown: oneshot::Sender<()>,
}

/// A stranger's place, until it is dropped.
pub(super) struct Place {
    table: Arc<Mutex<Table>>,
    number: u64,
    told: oneshot::Receiver<()>,
}

impl Strangers {
    /// A place for one more of this peer. True: another one makes way for it.
    pub(super) fn admit(&self, peer: String) -> (Place, bool) {
        let (shown, told) = oneshot::channel();
        let mut table = self.table.lock();
        let longest = table.longest_of(&peer).and_then(|longest| table.remove(longest));
        let number = table.next;
        table.next += 1;
        table.of.entry(peer.clone()).or_default().insert(number);
        table.all.insert(number, Stranger { peer, shown });
        drop(table);
        (Place { table: Arc::clone(&self.table), number, told }, longest.is_some())
    }

    /// The connection with this place has shown the token, and needs none any more.
    pub(super) fn show(&self, number: u64) {
        let stranger = self.table.lock().remove(number);
        if let Some(stranger) = stranger {
            // It may be gone by now.
            let _ = stranger.shown.send(());
        }
    }
}

impl Table {
    /// The connection that makes way for one more of this peer, if one must.
    fn longest_of(&self, peer: &str) -> Option<u64> {
        let theirs = self.of.get(peer).filter(|theirs| OF_PEER_MAX <= theirs.len());
        let most = || self.of.values().max_by_key(|theirs| (theirs.len(), Reverse(theirs.first())));
        let of = theirs.or_else(|| if PLACES_MAX <= self.all.len() { most() } else { None });
        of.and_then(|theirs| theirs.first().copied())
    }

    fn remove(&mut self, number: u64) -> Option<Stranger> {
        let stranger = self.all.remove(&number)?;
        if let Some(theirs) = self.of.get_mut(&stranger.peer) {
            theirs.remove(&number);
            if theirs.is_empty() {
                self.of.remove(&stranger.peer);
            }
        }
        Some(stranger)
    }
}

impl Place {
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Waits until the connection has shown the token (true), or makes way for another one. Not called again then.
    pub(super) async fn ended(&mut self) -> bool {
        (&mut self.told).await.is_ok()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let left = self.table.lock().remove(self.number);
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn is_there(place: &mut Place) -> bool {
        tokio::time::timeout(Duration::from_millis(1), place.ended()).await.is_err()
    }

    /// However many come, the newest of a peer have places, and nobody takes those of a peer that has fewer.
    #[tokio::test(start_paused = true)]
    async fn the_newest_have_places() {
        let strangers = Strangers::default();
        let (mut operator, _) = strangers.admit("an operator's".to_owned());
        let mut places = Vec::new();
        for number in 0..1000 {
            places.push(strangers.admit(format!("peer {}", number % 5)).0);
            assert!(strangers.table.lock().all.len() <= PLACES_MAX);
        }
        assert!(is_there(&mut operator).await, "its peer has one place");
        assert!(is_there(places.last_mut().expect("many came")).await);
        assert!(!is_there(&mut places[0]).await);
        let (mut one_more, made_way) = strangers.admit("an operator's".to_owned());
        assert!(made_way && is_there(&mut one_more).await && is_there(&mut operator).await);
        strangers.show(one_more.number());
        assert!(one_more.ended().await, "it has shown the token");
        drop((operator, places, one_more));
        let table = strangers.table.lock();
        assert!(table.all.is_empty() && table.of.is_empty());
    }
}
