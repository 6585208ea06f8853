//! The state of one connection, for either side: numbers, calls, what the peer may send.

use crate::{Calls, Capabilities, Greeting, Hello, Message, MessageKind, PeerMisbehaved, Seq, TooManyCalls, keys};

/// Which side of the connection this is: who opened it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// Opened it.
    Client,
    /// Accepted it.
    Server,
}

/// What a message means to the one who received it.
#[derive(Debug)]
pub enum Inbound<W> {
    /// A request that wants a reply.
    Call(Message),
    /// A request that wants none: a oneway call at a server, a push at a client.
    Push(Message),
    /// The reply to a call of ours, with its waiter.
    Reply(W, Message),
    /// A heartbeat to answer with [`Message::pong`], oneway or not.
    Ping(Message),
    /// The first frame of a client that can do more than rpcx. Check its token, then
    /// [let it in](Connection::on_hello_accepted), or [not](Connection::on_hello_refused).
    Hello(Hello, Message),
    /// The peer wants its call of this number stopped: [`keys::CANCEL`].
    Cancel(Seq),
    /// The server is about to close the connection: [`keys::GOODBYE`].
    Goodbye(Message),
    /// The server says how many oneway requests it has taken, and closes the connection.
    Taken(Message),
    /// A reply that nobody waits for: its call was forgotten or never made. Count it. The answer to
    /// a heartbeat whose number is not in the table of calls comes out here too.
    Late(Message),
}

/// Most bytes of a heartbeat, except for a Hello. Go's takes 25 bytes beside its metadata; its answer repeats all of it.
pub const HEARTBEAT_BYTES_MAX: usize = 4 << 10;

/// Heartbeats that may wait for their answer beside a full table of calls.
const HEARTBEATS_MAX: usize = 4;

/// Numbers, pending calls and the negotiated state of one connection. `W` waits for a reply.
#[derive(Debug)]
pub struct Connection<W> {
    role: Role,
    pub(crate) greeting: Greeting,
    calls: Calls<W>,
    /// Oneway requests: those that a client has made, those that a server has read.
    pushes: u64,
}

impl<W> Connection<W> {
    /// A connection that was just opened; at most `calls_pending_max` calls wait at a time.
    pub const fn new(role: Role, calls_pending_max: usize) -> Self {
        Self { role, greeting: Greeting::Unknown, calls: Calls::new(calls_pending_max), pushes: 0 }
    }

    /// Which side this is.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Enters a call; the number goes into its frame. At a server the number is marked so that the
    /// client cannot mistake the call for a reply.
    ///
    /// # Errors
    /// [`TooManyCalls`]; nothing changes.
    pub fn begin_call(&mut self, waiter: W) -> Result<Seq, TooManyCalls> {
        let seq = self.calls.insert(waiter)?;
        Ok(self.mark(seq))
    }

    /// Enters a heartbeat: like [`Self::begin_call`], but a table that is full of calls has room for it, so
    /// that a busy connection is not taken for a dead one.
    ///
    /// # Errors
    /// [`TooManyCalls`] if heartbeats alone have used that up; nothing changes.
    pub fn begin_heartbeat(&mut self, waiter: W) -> Result<Seq, TooManyCalls> {
        let seq = self.calls.insert_beyond(waiter, HEARTBEATS_MAX)?;
        Ok(self.mark(seq))
    }

    /// The number of the next oneway request. A server's has no count: on a push that number is the offset
    /// in its session's log, and 0 says that it is not tracked.
    pub fn next_push(&mut self) -> Seq {
        match self.role {
            // Beyond every number of the table of calls, so that nothing can be paired with it.
            Role::Client => {
                self.pushes += 1;
                Seq::new(Seq::of_call_to_client(self.pushes).get() & !(1 << 63))
            }
            Role::Server => Seq::of_push(0),
        }
    }

    /// True if this is the number of a oneway request that this client has made.
    pub fn has_made_push(&self, seq: Seq) -> bool {
        let number = |pushes| Seq::of_call_to_client(pushes).get() & !(1 << 63);
        self.role == Role::Client && (number(1)..=number(self.pushes)).contains(&seq.get())
    }

    /// How many oneway requests a server has read: those for its application, those that were passed over, and
    /// [`keys::LAST`].
    pub fn oneways_read(&self) -> u64 {
        if self.role == Role::Server { self.pushes } else { 0 }
    }

    /// A oneway request was passed over.
    pub fn on_oneway_passed_over(&mut self) {
        if self.role == Role::Server {
            self.pushes += 1;
        }
    }

    /// Changes what waits for the reply to this call.
    pub fn waiter_mut(&mut self, seq: Seq) -> Option<&mut W> {
        let seq = self.unmark(seq)?;
        self.calls.waiter_mut(seq)
    }

    /// Nobody waits for this call any more.
    pub fn forget(&mut self, seq: Seq) -> Option<W> {
        self.calls.forget(self.unmark(seq)?)
    }

    /// Calls that wait for a reply.
    pub fn calls(&self) -> &Calls<W> {
        &self.calls
    }

    /// Gives back memory that only calls under way need, if there are none.
    pub fn shrink(&mut self) {
        self.calls.shrink();
    }

    /// The connection ended: everyone who waited.
    pub fn drain(&mut self) -> impl Iterator<Item = W> + use<W> {
        self.calls.drain()
    }

    /// Says what a message means here, and takes the call that it answers out of the table.
    ///
    /// # Errors
    /// [`PeerMisbehaved`]: close the connection.
    pub fn handle_message(&mut self, message: Message) -> Result<Inbound<W>, PeerMisbehaved> {
        let first = self.greeting == Greeting::Unknown;
        let header = message.header();
        if self.role == Role::Server && first {
            // Whatever comes first, no Hello comes any more; if it is one, that is found below.
            self.greeting = Greeting::Plain { listens: false };
        }
        match header.kind() {
            MessageKind::Request if header.is_heartbeat() => self.handle_heartbeat(message, first),
            MessageKind::Request if header.is_oneway() => Ok(self.handle_oneway(message)),
            MessageKind::Request if self.role == Role::Client && !self.peer_can(Capabilities::CALLS) => {
                Err(PeerMisbehaved::CallFromPlainServer(header.seq()))
            }
            MessageKind::Request => Ok(Inbound::Call(message)),
            MessageKind::Response => self.handle_response(message),
        }
    }

    fn handle_heartbeat(&mut self, message: Message, first: bool) -> Result<Inbound<W>, PeerMisbehaved> {
        match self.role {
            Role::Client if self.peer_can(Capabilities::PING) => ping(message),
            Role::Client => Err(PeerMisbehaved::PingFromPlainServer(message.header().seq())),
            Role::Server => match Hello::from_metadata(&message.metadata()) {
                Some(hello) if first => {
                    self.greeting = Greeting::HelloPending;
                    Ok(Inbound::Hello(hello, message))
                }
                Some(_) => Err(PeerMisbehaved::LateHello),
                None => ping(message),
            },
        }
    }

    fn handle_oneway(&mut self, message: Message) -> Inbound<W> {
        let is_control = self.is_negotiated() && message.has_service_path(keys::CONTROL_PATH);
        if self.role == Role::Server && (!is_control || message.service_method() == keys::LAST) {
            self.pushes += 1;
        }

        if is_control {
            match message.service_method() {
                keys::CANCEL if self.peer_can(Capabilities::CANCEL) => {
                    if let Some(seq) = message.metadata().get(keys::CANCEL_SEQ).and_then(|seq| seq.parse().ok()) {
                        return Inbound::Cancel(Seq::new(seq));
                    }
                }
                keys::GOODBYE if self.role == Role::Client && self.peer_can(Capabilities::GOODBYE) => {
                    return Inbound::Goodbye(message);
                }
                keys::TAKEN if self.role == Role::Client && self.peer_can(Capabilities::LAST) => {
                    return Inbound::Taken(message);
                }
                _ => {}
            }
        }

        Inbound::Push(message)
    }

    fn handle_response(&mut self, message: Message) -> Result<Inbound<W>, PeerMisbehaved> {
        let (header, seq) = (message.header(), message.header().seq());
        let asked_for = if header.is_heartbeat() { Capabilities::PING } else { Capabilities::CALLS };
        if self.role == Role::Server && !self.peer_can(asked_for) {
            return Err(PeerMisbehaved::ReplyFromPlainClient(seq));
        }
        Ok(match self.unmark(seq).and_then(|seq| self.calls.complete(seq)) {
            Some(waiter) => Inbound::Reply(waiter, message),
            None => Inbound::Late(message),
        })
    }

    /// The number on the wire of a call in the table: a server's is marked, so that its client cannot mistake it
    /// for a reply.
    fn mark(&self, seq: Seq) -> Seq {
        match self.role {
            Role::Client => seq,
            Role::Server => Seq::of_call_to_client(seq.get()),
        }
    }

    /// The number in the table of calls; `None` if it cannot be one of ours.
    fn unmark(&self, seq: Seq) -> Option<Seq> {
        match self.role {
            Role::Client => Some(seq),
            Role::Server => seq.is_call_to_client().then(|| Seq::new(seq.unmarked())),
        }
    }
}

/// A heartbeat to answer, unless it is so large that the answer would be worth sending it.
fn ping<W>(message: Message) -> Result<Inbound<W>, PeerMisbehaved> {
    match message.frame().len() {
        bytes if HEARTBEAT_BYTES_MAX < bytes => Err(PeerMisbehaved::LargeHeartbeat(bytes)),
        _ => Ok(Inbound::Ping(message)),
    }
}
