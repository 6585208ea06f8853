//! Oneway requests that the server returned because their token had expired: they did not run, and
//! each is sent once more, over the next connection. So is a call whose token was refused.

use std::{
    collections::{HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bothways_proto::{Message, Seq, keys};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::link::Link;
use crate::{
    calm::{Calm, tell},
    clock::after,
    connection::{Connection, ConnectionId},
    error::PushError,
};

/// Requests that wait for the next connection, and that go again over one. Of more the newest are
/// lost.
const MESSAGES_MAX: usize = 1024;

/// Bytes that wait for the next connection; a single request may be larger.
const BYTES_MAX: usize = 4 << 20;

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
    again: Option<(ConnectionId, HashSet<Seq>)>,
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
        let (bytes, seq) = (waiting.request.frame().len(), waiting.request.header().seq());
        let is_this = |(on, seqs): &(ConnectionId, HashSet<Seq>)| *on == waiting.on && seqs.contains(&seq);
        let went_again = self.again.as_ref().is_some_and(is_this);
        let has_room = self.waiting.is_empty() || self.bytes.saturating_add(bytes) <= BYTES_MAX;
        if went_again || !has_room || MESSAGES_MAX <= self.waiting.len() {
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
            self.again = Some((connection.id(), HashSet::new()));
        }
        let seqs = self.again.as_mut().map(|(_, seqs)| seqs).filter(|seqs| seqs.len() < MESSAGES_MAX);
        let Some(seqs) = seqs else {
            self.pop();
            return Ok(false);
        };
        // Its number is noted before it can come back: the task that takes it back waits for this lock.
        match connection.push_again(&first.request) {
            Ok(seq) => _ = seqs.insert(seq),
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
