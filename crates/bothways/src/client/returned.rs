//! Oneway requests that wait for the next connection: those that the server returned because their token had expired, and
//! those that had not left when their connection was lost. Neither ran. What is returned is sent once more; so is a call
//! whose token was refused.
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
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::link::Link;
use crate::{
    calm::{Calm, tell},
    clock::after,
    connection::{Connection, ConnectionId},
    error::{CloseReason, ErrorCode, PushError},
};

/// Requests that wait for the next connection. Of more the newest are lost. What one connection had not sent is taken as a
/// whole, or not: its queue has bounds of its own.
const MESSAGES_MAX: usize = 1024;

/// Bytes that wait for the next connection; a single request may be larger.
const BYTES_MAX: usize = 4 << 20;

pub(super) const REFUSED: &str = "its server has handed it back";
pub(super) const NOT_TAKEN: &str = "its server has ended the connection, and is not known to have read it";
pub(super) const NOT_SENT: &str = "its connection ended before it had left";

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
    /// The connection on which it came back, or was to leave.
    on: ConnectionId,
    until: Instant,
    /// The server has returned it: it does so once.
    was_refused: bool,
}

impl Waiting {
    /// Why it waits, if it is lost then.
    fn why(&self) -> &'static str {
        if self.was_refused { REFUSED } else { NOT_SENT }
    }
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
        let has_room = self.waiting.is_empty() || self.bytes.saturating_add(bytes) <= BYTES_MAX;
        let went_again = self.went_again(waiting.on, number);
        if !is_new || is_past || went_again || !has_room || MESSAGES_MAX <= self.waiting.len() {
            return Err(());
        }
        self.push(waiting);
        Ok(())
    }

    /// What was to leave on a connection that is lost. Returns how many of these are lost, too.
    fn add_unsent(&mut self, on: ConnectionId, requests: Vec<Message>, until: Instant) -> usize {
        if BYTES_MAX <= self.bytes || MESSAGES_MAX <= self.waiting.len() {
            return requests.len();
        }
        for request in requests {
            let was_refused = self.went_again(on, request.header().seq().get());
            self.push(Waiting { request, on, until, was_refused });
        }
        0
    }

    /// True if the request of this number was returned before, and sent once more on this connection.
    fn went_again(&self, on: ConnectionId, number: u64) -> bool {
        self.again.as_ref().is_some_and(|(again_on, numbers)| *again_on == on && numbers.contains(number))
    }

    fn push(&mut self, waiting: Waiting) {
        self.bytes += waiting.request.frame().len();
        self.waiting.push_back(waiting);
    }

    fn pop(&mut self) {
        if let Some(first) = self.waiting.pop_front() {
            self.bytes -= first.request.frame().len();
        }
    }

    /// Sends the first one over this connection. False: it is lost.
    fn send(&mut self, connection: &Connection) -> Result<bool, PushError> {
        let Some(first) = self.waiting.front() else { return Ok(true) };
        let was_refused = first.was_refused;
        if self.again.as_ref().is_none_or(|(on, _)| *on != connection.id()) {
            self.again = Some((connection.id(), Numbers::default()));
        }

        // Its number is noted before it can come back: the task that takes it back waits for this lock.
        match connection.push_again(&first.request) {
            Ok(seq) => {
                if let Some((_, numbers)) = self.again.as_mut().filter(|_| was_refused) {
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
    /// Writes so many lines in one pause.
    pub(super) fn counting_in(lost_of_all: Arc<AtomicU64>, lines: u32) -> Self {
        Self { lost_of_all, told: Calm::new(lines), ..Self::default() }
    }

    /// Requests that were not run, and did not go again.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    pub(super) fn lose(&self, server: &str, requests: usize, why: &'static str) {
        self.count(requests);
        self.tell(server, requests, why);
    }

    pub(super) fn count(&self, requests: usize) {
        self.lost.fetch_add(requests as u64, Ordering::Relaxed);
        self.lost_of_all.fetch_add(requests as u64, Ordering::Relaxed);
    }

    /// Logs so many that are counted.
    pub(super) fn tell(&self, server: &str, requests: usize, why: &'static str) {
        if requests != 0 {
            tell!(self.told, warn, server, requests, why, "oneway requests are lost");
        }
    }
}

/// A request came back on this connection; `None`: too large to come, or to be understood. It goes
/// again over the next one, for as long as a call would wait for that.
pub(super) fn take_back(link: &Arc<Link>, connection: &Connection, request: Option<Message>) {
    let returned = link.returned();
    let lose = || returned.lose(&link.address().to_string(), 1, REFUSED);
    // A server may hand back what this client has sent it, and no more.
    let request = request.filter(|request| {
        let header = request.header();
        let is_ours = header.is_oneway() && connection.has_made_push(header.seq());
        is_ours && !request.has_service_path(keys::CONTROL_PATH)
    });

    let goes_again = link.is_waited_for() && (link.options().can_renew() || !is_over_for_token(connection));
    let Some(request) = request.filter(|_| goes_again) else { return lose() };
    let until = after(link.options().wait());
    let waiting = Waiting { request, on: connection.id(), until, was_refused: true };

    // The lock ends in `begin_sending`: a loss is logged without it.
    let mut state = returned.state.lock();
    let is_added = state.add(waiting).is_ok();
    begin_sending(link, state);
    if !is_added {
        lose();
    }
}

/// The server has refused the token of this connection: with the same one it would refuse again.
fn is_over_for_token(connection: &Connection) -> bool {
    let unauthenticated = ErrorCode::Unauthenticated.name();
    matches!(connection.end_reason(), Some(CloseReason::Goodbye { code, .. }) if code == unauthenticated)
}

/// These requests had not left when this connection was lost: they go over the next one, for as long as a call would wait
/// for that. So many more are lost, and so many had left, and the server has not taken them.
pub(super) fn wait_for_next(
    link: &Arc<Link>,
    on: ConnectionId,
    requests: Vec<Message>,
    mut lost: usize,
    untaken: usize,
) {
    let returned = link.returned();
    if link.is_waited_for() {
        let until = after(link.options().wait());
        let mut state = returned.state.lock();
        lost += state.add_unsent(on, requests, until);
        begin_sending(link, state);
    } else {
        lost += requests.len();
    }
    returned.lose(&link.address().to_string(), lost, NOT_SENT);
    returned.lose(&link.address().to_string(), untaken, NOT_TAKEN);
}

/// Begins the task that sends what waits, unless there is nothing, or it is there.
fn begin_sending(link: &Arc<Link>, mut state: MutexGuard<'_, State>) {
    if state.waiting.is_empty() || std::mem::replace(&mut state.is_sending, true) {
        return;
    }
    drop(state);
    let of_task = Arc::clone(link);
    link.runtime().spawn(async move { send(&of_task).await });
}

/// Sends what waits, in the order in which it came here.
async fn send(link: &Link) {
    let returned = link.returned();
    loop {
        // Not held over the waiting below: more comes back meanwhile.
        let (on, until, why) = {
            let mut state = returned.state.lock();
            let Some(first) = state.waiting.front() else {
                // Under the lock, so that the next one that is added begins a task.
                state.is_sending = false;
                return;
            };
            (first.on, first.until, first.why())
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
            returned.lose(&link.address().to_string(), 1, why);
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
