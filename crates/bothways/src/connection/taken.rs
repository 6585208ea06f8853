//! How many oneway requests a server has taken of a connection that it is about to end: what its client has sent beyond
//! that, and has not got back, is lost, and counted.
//!
//! ```text
//!  server                                           client
//!  Goodbye, with how many it has taken ───────────► sends nothing new
//!                                      ◄─────────── what it had queued, and behind that: Last
//!  what it does not run ──────────────────────────► goes over the next connection
//!  Taken, behind all that it hands back ──────────► the rest is lost
//!  the end
//! ```
//!
//! A request is taken once the server has read it, unless it is handed back: it runs, or the server has counted it as
//! refused. Both sides need `last`.
//!
//! A client that closes the connection hears its server out, and says Leave in the place of Last, or ends its side.

use std::sync::atomic::Ordering;

use bothways_proto::{Capabilities, Header, Message, Metadata, Role, SerializeType, keys};

use super::{Connection, State, lanes::Lane, lock::Locked, outbox::OutboxBounds};
use crate::connection::Overflow;

/// What is known of the oneway requests of a client.
#[derive(Default)]
pub(super) struct Taken {
    /// At a server: those that it has handed back. At a client: those that came back.
    pub(super) returned: u64,
    /// At a server: those that were read, and may still be handed back, for their token is being checked.
    undecided: u64,
    /// At a server: the last request was read. At a client: it was queued.
    last: bool,
    /// At a server: how many it has taken at its end is said.
    is_said: bool,
    /// At a server: how many it has taken by then went with its Goodbye.
    is_begun: bool,
    /// At a client: how many the server said that it has taken.
    by_server: Option<u64>,
    /// At a client: what the framework has queued behind all requests, with their numbers. Last and Leave.
    own: u64,
}

impl State {
    fn taken(&self) -> Option<&Taken> {
        self.rare.as_ref().map(|rare| &rare.taken)
    }

    /// How many a server has taken, without those that may still be handed back.
    fn oneways_taken(&self) -> u64 {
        let others = self.taken().map_or(0, |taken| taken.returned + taken.undecided);
        self.proto.oneways_read().saturating_sub(others)
    }

    /// True at a server if what its client had sent may still come back, though the client sends nothing more: it is told
    /// how many requests are taken.
    pub(super) fn owes_taken(&self) -> bool {
        let owes = self.taken().is_some_and(|taken| taken.is_begun || 0 < taken.undecided + taken.returned);
        owes && self.proto.role() == Role::Server && self.proto.peer_can(Capabilities::LAST)
    }

    /// True at a server while the token of a oneway request is being checked, and its client can be told of it.
    pub(super) fn has_undecided(&self) -> bool {
        self.owes_taken() && self.taken().is_some_and(|taken| 0 < taken.undecided)
    }

    /// How many oneway requests of a client have left whole, and neither came back nor were taken, as its server says.
    pub(super) fn oneways_untaken(&self) -> usize {
        let Some(taken) = self.taken() else { return 0 };
        let Some(by_server) = taken.by_server else { return 0 };
        // A Last that was read counts as taken: then all before it were read, too.
        let own = taken.own.saturating_sub(self.outbox.pushes_unwritten());
        let left = self.outbox.pushes_left().saturating_sub(own);
        usize::try_from(left.saturating_sub(by_server).saturating_sub(taken.returned)).unwrap_or(usize::MAX)
    }

    /// True if no request of the application is left to be written.
    pub(super) fn only_own_are_unwritten(&self) -> bool {
        let own = self.own_behind_requests();
        0 < own && self.outbox.pushes_unwritten() <= own
    }

    /// How many frames of the framework are behind all requests, written or not.
    pub(super) fn own_behind_requests(&self) -> u64 {
        self.taken().map_or(0, |taken| taken.own)
    }
}

/// A oneway request that is taken, or handed back, when this is dropped.
pub(crate) struct Undecided(Connection);

impl Undecided {
    /// It is taken. False: its client was told that it is not, and counts it as lost.
    pub(crate) fn take(self) -> bool {
        let state = self.0.shared.state.lock();
        !state.taken().is_some_and(|taken| taken.is_said)
    }
}

impl Drop for Undecided {
    fn drop(&mut self) {
        let mut state = self.0.shared.state.lock();
        let undecided = &mut state.rare().taken.undecided;
        *undecided = undecided.saturating_sub(1);
    }
}

impl Connection {
    // At a server.

    /// The pairs of a Goodbye, with how many requests are taken by now.
    pub(super) fn with_taken(&self, state: &mut State, said: Metadata) -> Metadata {
        if !state.proto.peer_can(Capabilities::LAST) {
            return said;
        }
        state.rare().taken.is_begun = true;
        said.with(keys::TAKEN_COUNT, state.oneways_taken().to_string())
    }

    /// Nothing more is read: the client is told how many requests are taken, behind all that goes back to it. True if
    /// that is queued now.
    pub(super) fn say_taken(&self, state: &mut Locked<'_>) -> bool {
        let is_to_know = state.proto.role() == Role::Server && state.proto.peer_can(Capabilities::LAST);
        // Without its Welcome a client takes the frame for a message to its application.
        let is_to_know = is_to_know && !state.is_welcoming();
        if !is_to_know || state.rare().taken.is_said {
            return false;
        }
        let said = Metadata::new().with(keys::TAKEN_COUNT, state.oneways_taken().to_string());
        let header = Header::oneway(state.proto.next_push(), SerializeType::RAW);
        let frame = Message::new(header, keys::CONTROL_PATH, keys::TAKEN, &said, &[]);
        // It is small, and the last one: the only refusal is of a client that reads nothing.
        let is_said = state.outbox.add_frame(Lane::Reply, frame.frame(), &self.shared.settings.bounds()).is_ok();
        state.rare().taken.is_said = is_said;
        is_said
    }

    /// The token of a oneway request is being checked, until the answer is dropped: it may be handed back.
    pub(crate) fn begin_check_of_oneway(&self) -> Undecided {
        self.shared.state.lock().rare().taken.undecided += 1;
        Undecided(self.clone())
    }

    /// The client sends no more requests.
    pub(crate) fn note_last(&self) {
        self.shared.state.lock().rare().taken.last = true;
    }

    /// True once the last request of the client was read, if it says so.
    pub(crate) fn has_read_last(&self) -> bool {
        self.shared.state.lock().taken().is_some_and(|taken| taken.last)
    }

    /// Changes with each read.
    pub(crate) fn reads(&self) -> u16 {
        self.shared.reads.load(Ordering::Relaxed)
    }

    // At a client.

    /// The server is about to end the connection, and nothing new is sent: it is told where the requests end.
    pub(super) fn say_last<'a>(&'a self, state: &mut Locked<'a>) {
        if !state.proto.peer_can(Capabilities::LAST) || std::mem::replace(&mut state.rare().taken.last, true) {
            return;
        }
        self.queue_behind_requests(state, keys::LAST, &Metadata::new());
    }

    /// Queues what the framework says behind all requests: the server reads those first.
    pub(super) fn queue_behind_requests<'a>(&'a self, state: &mut Locked<'a>, method: &str, said: &Metadata) {
        let header = Header::oneway(state.proto.next_push(), SerializeType::RAW);
        let frame = Message::new(header, keys::CONTROL_PATH, method, said, &[]);
        let bounds = self.shared.settings.bounds();
        // One more than there is room for.
        let (push_frames, push_bytes) = (usize::MAX, usize::MAX);
        let bounds = OutboxBounds { push_frames, push_bytes, overflow: Overflow::RefuseNewest, ..bounds };
        let added = state.outbox.add_frame(Lane::Push, frame.frame(), &bounds);
        if self.check_added(state, added).is_ok() {
            state.rare().taken.own += 1;
        }
    }

    /// This client closes the connection, and what its server still says of requests counts: which of them it has not run,
    /// and how many it has taken. Nothing else does.
    #[cold]
    pub(super) fn hear_at_end(&self, mut state: Locked<'_>, message: Message) {
        let is_control = message.header().is_oneway() && message.has_service_path(keys::CONTROL_PATH);
        if !state.is_heard_out() || !state.proto.is_negotiated() || !is_control {
            return;
        }
        match message.service_method() {
            keys::GOODBYE | keys::TAKEN if state.proto.peer_can(Capabilities::LAST) => {
                Self::hear_taken(&mut state, &message.metadata());
            }
            keys::RETURN => {
                // The layer above has locks of its own.
                drop(state);
                self.shared.handler.handle_request(self, message);
            }
            _ => {}
        }
    }

    /// What the server says of how many requests it has taken.
    pub(super) fn hear_taken(state: &mut State, said: &Metadata) {
        if let Some(taken) = said.get(keys::TAKEN_COUNT).and_then(|taken| taken.parse().ok()) {
            state.rare().taken.by_server = Some(taken);
        }
    }

    /// A oneway request came back.
    pub(crate) fn note_returned(&self) {
        self.shared.state.lock().rare().taken.returned += 1;
    }
}
