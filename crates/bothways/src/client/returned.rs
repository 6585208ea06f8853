//! Oneway requests that the server returned because their token had expired: they did not run, and
//! each is sent once more, over the next connection. So is a call whose token was refused.
//!
//! The bound is for what waits, and never for how much comes back while a connection lives. Each number is taken back
//! once: a server can make a client send no more requests than it has sent. The content is what the server returns.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bothways_proto::{Message, keys};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::link::Link;
use crate::{
    calm::{Calm, tell},
    clock::after,
    connection::{Connection, ConnectionId},
    error::PushError,
};

/// Requests that wait for the next connection. Of more the newest are lost.
const MESSAGES_MAX: usize = 1024;

/// Bytes that wait for the next connection; a single request may be larger.
const BYTES_MAX: usize = 4 << 20;

/// Runs of numbers that are remembered of one connection: 16 to 32 KiB.
const RUNS_MAX: usize = 1024;

/// Connections of which it is remembered what came back: the present one, those that their server is about to end, and
/// one that is made.
const CONNECTIONS_MAX: usize = 4;

/// See the module.
#[derive(Default)]
pub(super) struct Returned {
    state: Mutex<State>,
    /// Requests that do not go again.
    lost: AtomicU64,
    /// Those of all clients that belong together.
    lost_of_all: Arc<AtomicU64>,
    told: Calm,
}

#[derive(Default)]
struct State {
    /// The oldest first.
    waiting: VecDeque<Waiting>,
    bytes: usize,
    /// A task sends them.
    is_sending: bool,
    /// The newest connection over which some went again, and their numbers there.
    again: Option<(ConnectionId, Numbers)>,
    /// What came back.
    came: BTreeMap<ConnectionId, Numbers>,
}

/// Numbers of requests on one connection, the first and the last of each run. They grow with each request.
#[derive(Default)]
struct Numbers(BTreeMap<u64, u64>);

impl Numbers {
    fn contains(&self, number: u64) -> bool {
        self.0.range(..=number).next_back().is_some_and(|(_, last)| number <= *last)
    }

    /// False: it was there.
    fn insert(&mut self, number: u64) -> bool {
        if self.contains(number) {
            return false;
        }
        let before = self.0.range(..number).next_back().filter(|(_, last)| **last + 1 == number);
        let first = before.map_or(number, |(first, _)| *first);
        let last = self.0.remove(&number.saturating_add(1)).unwrap_or(number);
        self.0.insert(first, last);
        true
    }

    /// Of too many runs the oldest is forgotten.
    fn forget_oldest(&mut self) {
        while RUNS_MAX < self.0.len() {
            self.0.pop_first();
        }
    }

    /// Of too many runs the oldest are one, with what is between them.
    fn join_oldest(&mut self) {
        while RUNS_MAX < self.0.len() {
            let (Some((first, _)), Some((_, last))) = (self.0.pop_first(), self.0.pop_first()) else { return };
            self.0.insert(first, last);
        }
    }
}

struct Waiting {
    request: Message,
    /// The connection on which it came back.
    on: ConnectionId,
    until: Instant,
}

impl State {
    /// `Err`: it does not go again.
    fn add(&mut self, waiting: Waiting) -> Result<(), ()> {
        let (bytes, number) = (waiting.request.frame().len(), waiting.request.header().seq().get());
        let came = self.came.entry(waiting.on).or_default();
        let is_new = came.insert(number);
        came.join_oldest();
        let is_past =
            CONNECTIONS_MAX < self.came.len() && self.came.pop_first().is_some_and(|(of, _)| of == waiting.on);
        let went_again = self.again.as_ref().is_some_and(|(on, numbers)| *on == waiting.on && numbers.contains(number));
        let has_room = self.waiting.is_empty() || self.bytes.saturating_add(bytes) <= BYTES_MAX;
        if !is_new || is_past || went_again || !has_room || MESSAGES_MAX <= self.waiting.len() {
            return Err(());
        }
        self.bytes += bytes;
        self.waiting.push_back(waiting);
        Ok(())
    }

    fn pop(&mut self) {
        if let Some(first) = self.waiting.pop_front() {
            self.bytes -= first.request.frame().len();
        }
    }

    /// Sends the first one over this connection. False: it is lost.
    fn send(&mut self, connection: &Connection) -> Result<bool, PushError> {
        let Some(first) = self.waiting.front() else { return Ok(true) };
        if self.again.as_ref().is_none_or(|(on, _)| *on != connection.id()) {
            self.again = Some((connection.id(), Numbers::default()));
        }
        // Its number is noted before it can come back: the task that takes it back waits for this lock.
        match connection.push_again(&first.request) {
            Ok(seq) => {
                if let Some((_, numbers)) = &mut self.again {
                    numbers.insert(seq.get());
                    numbers.forget_oldest();
                }
            }
            Err(error @ (PushError::Full { .. } | PushError::Closed(_))) => return Err(error),
            Err(_) => {
                self.pop();
                return Ok(false);
            }
        }
        self.pop();
        Ok(true)
    }
}

impl Returned {
    /// Requests that do not go again are counted there too.
    pub(super) fn counting_in(lost_of_all: Arc<AtomicU64>) -> Self {
        Self { lost_of_all, ..Self::default() }
    }

    /// Requests that the server handed back and that did not go again.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    fn lose(&self, server: &str) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        self.lost_of_all.fetch_add(1, Ordering::Relaxed);
        tell!(self.told, warn, server, "a oneway request whose token had run out is lost: it was not run");
    }
}

/// A request came back on this connection; `None`: too large to come, or to be understood. It goes
/// again over the next one, for as long as a call would wait for that.
pub(super) fn take_back(link: &Arc<Link>, connection: &Connection, request: Option<Message>) {
    let returned = link.returned();
    let server = || link.address().to_string();
    // A server may hand back what this client has sent it, and no more.
    let request = request.filter(|request| {
        let header = request.header();
        let is_ours = header.is_oneway() && connection.has_made_push(header.seq());
        is_ours && !request.has_service_path(keys::CONTROL_PATH)
    });
    let goes_again = link.options().can_renew() && link.is_waited_for();
    let Some(request) = request.filter(|_| goes_again) else { return returned.lose(&server()) };
    let waiting = Waiting { request, on: connection.id(), until: after(link.options().wait()) };
    let starts = {
        let mut state = returned.state.lock();
        match state.add(waiting) {
            Ok(()) => Ok(!std::mem::replace(&mut state.is_sending, true)),
            Err(()) => Err(()),
        }
    };
    match starts {
        Err(()) => returned.lose(&server()),
        Ok(false) => {}
        Ok(true) => {
            let of_task = Arc::clone(link);
            link.runtime().spawn(async move { send(&of_task).await });
        }
    }
}

/// Sends what came back, in the order in which it did.
async fn send(link: &Link) {
    let returned = link.returned();
    loop {
        let (on, until) = {
            let mut state = returned.state.lock();
            let Some(first) = state.waiting.front() else {
                state.is_sending = false;
                return;
            };
            (first.on, first.until)
        };
        let sent = match link.next_standing(on, until).await {
            None => None,
            Some(connection) => {
                let left = until.saturating_duration_since(Instant::now());
                match connection.with_room(left, || returned.state.lock().send(&connection)).await {
                    Ok(is_sent) => Some(is_sent),
                    // The next one is as good, if there is one in time.
                    Err(PushError::Closed(_)) if Instant::now() < until => continue,
                    Err(_) => None,
                }
            }
        };
        if sent.is_none() {
            returned.state.lock().pop();
        }
        if sent != Some(true) {
            returned.lose(&link.address().to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers are there from when they came: as a run where they follow one another, in whatever order they come.
    #[test]
    fn a_number_is_there_once() {
        let mut numbers = Numbers::default();
        for number in [5, 7, 6, 1, 3, 2] {
            assert!(!numbers.contains(number) && numbers.insert(number), "{number}");
            assert!(numbers.contains(number) && !numbers.insert(number), "{number}");
        }
        assert_eq!(numbers.0.into_iter().collect::<Vec<_>>(), [(1, 3), (5, 7)]);
    }

    /// However many there are, so many runs are remembered: of what came back all counts as come, of what went again the
    /// newest.
    #[test]
    fn runs_are_bounded() {
        let all = || (1..=RUNS_MAX as u64 + 10).map(|number| 2 * number);
        let (mut came, mut again) = (Numbers::default(), Numbers::default());
        for number in all() {
            assert!(came.insert(number) && again.insert(number));
            came.join_oldest();
            again.forget_oldest();
            assert!(came.0.len() <= RUNS_MAX && again.0.len() <= RUNS_MAX);
        }
        assert!(all().all(|number| came.contains(number)) && came.contains(3));
        assert_eq!(all().filter(|number| again.contains(*number)).count(), RUNS_MAX);
        assert!(!again.contains(2) && again.contains(2 * (RUNS_MAX as u64 + 10)));
    }
}
