//! Two connections in memory, driven by bytes, and a model of what each of them may answer.
//!
//! Every two bytes are one act: which, and by whom; then an argument. The acts include what no
//! honest peer does (answer twice, answer what was never asked, call without leave). What is sent
//! waits in order, in a pipe that is cut anywhere. What the receiver makes of it is compared with
//! what the model says; if that is an error, the connection ends and the next one begins.
//!
//! Depends on nothing but the crate, so that a fuzz target can include this file by its path.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use bothways_proto::{
    Capabilities, Connection, Deframer, Greeting, Header, Hello, Inbound, Limits, Message, Metadata, PeerMisbehaved,
    Role, Seq, SerializeType, VERSION, Welcome, keys,
};

/// Small, so that tables fill up.
const CALLS_MAX: usize = 12;

/// How often each thing came about: a driver that never gets somewhere tests nothing there.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) seen: HashMap<&'static str, u64>,
}

impl Tally {
    fn count(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }
}

/// Does what the bytes say, and panics if a connection answers anything but what the model says.
pub(crate) fn run(bytes: &[u8], tally: &mut Tally) {
    let (acts, _) = bytes.as_chunks::<2>();
    let mut acts = acts.iter();
    while let Some([mode, offer]) = acts.next() {
        let mut pair = Pair::open(*mode, *offer);
        for [act, argument] in acts.by_ref() {
            let closed = pair.act(*act, *argument, tally);
            pair.check();
            if closed {
                break;
            }
        }
        pair.close(tally);
    }
}

/// What a frame on its way is meant to be.
#[derive(Clone, Copy, Debug)]
enum Sent {
    Call(Seq),
    Ping(Seq),
    Hello,
    Push,
    Cancel(Seq),
    Goodbye,
    /// With the ticket of the call it answers, if it answers one.
    Reply {
        seq: Seq,
        heartbeat: bool,
        ticket: Option<u32>,
    },
}

struct End {
    role: Role,
    connection: Connection<u32>,
    offers: Capabilities,
    deframer: Deframer,
    /// Bytes on their way here, and what they are.
    pipe: Vec<u8>,
    on_the_way: VecDeque<Sent>,
    /// Messages that are to be answered, and those that were.
    unanswered: Vec<Message>,
    answered: Vec<Message>,
    /// The model: what the other side agreed to, whether it was heard, whose reply is waited for.
    agreed: Option<Capabilities>,
    heard: bool,
    waiting: HashMap<Seq, u32>,
    /// Numbers that nobody waits for any more, and all that were ever used.
    stale: Vec<Seq>,
    used: HashSet<Seq>,
    hello: Option<u32>,
    /// Tickets handed out, and handed back, of calls that entered the table.
    begun: BTreeSet<u32>,
    ended: BTreeSet<u32>,
}

impl End {
    fn new(role: Role, offers: Capabilities) -> Self {
        Self {
            role,
            connection: Connection::new(role, CALLS_MAX),
            offers,
            deframer: Deframer::new(),
            pipe: Vec::new(),
            on_the_way: VecDeque::new(),
            unanswered: Vec::new(),
            answered: Vec::new(),
            agreed: None,
            heard: false,
            waiting: HashMap::new(),
            stale: Vec::new(),
            used: HashSet::new(),
            hello: None,
            begun: BTreeSet::new(),
            ended: BTreeSet::new(),
        }
    }

    fn can(&self, capability: Capabilities) -> bool {
        self.agreed.is_some_and(|agreed| agreed.contains(capability))
    }

    /// Enters a call into the table and into the model. `None`: both are full.
    fn begin(&mut self, ticket: u32, tally: &mut Tally) -> Option<Seq> {
        match self.connection.begin_call(ticket) {
            Err(full) => {
                assert_eq!((full.max, self.waiting.len()), (CALLS_MAX, CALLS_MAX));
                tally.count("too many calls");
                None
            }
            Ok(seq) => {
                assert!(self.waiting.len() < CALLS_MAX, "a full table took a call");
                assert_eq!(seq.is_call_to_client(), self.role == Role::Server, "{seq}");
                assert_eq!(seq.get() >> 63 == 1, self.role == Role::Server, "{seq}");
                self.use_number(seq);
                self.waiting.insert(seq, ticket);
                assert!(self.begun.insert(ticket));
                Some(seq)
            }
        }
    }

    fn next_push(&mut self) -> Seq {
        let seq = self.connection.next_push();
        match self.role {
            Role::Client => self.use_number(seq),
            // Not tracked: it has no number of its own, and no call can have this one.
            Role::Server => assert_eq!(seq, Seq::of_push(0)),
        }
        seq
    }

    fn use_number(&mut self, seq: Seq) {
        assert!(self.used.insert(seq), "number {seq} was used before");
    }

    /// Takes a call out of the model.
    fn end(&mut self, seq: Seq) -> Option<u32> {
        let ticket = self.waiting.remove(&seq)?;
        assert!(self.ended.insert(ticket), "the call {ticket} ended before");
        self.stale.push(seq);
        Some(ticket)
    }

    /// The n-th waiting call, in an order that does not depend on the map.
    fn nth_waiting(&self, n: u8) -> Option<Seq> {
        let seqs: BTreeSet<Seq> = self.waiting.keys().copied().collect();
        seqs.iter().nth(usize::from(n) % seqs.len().max(1)).copied()
    }
}

struct Pair {
    client: End,
    server: End,
    /// Whether the server is one of ours, which answers a Hello with a Welcome.
    welcomes: bool,
    next_ticket: u32,
}

const CAPABILITIES: [Capabilities; 4] =
    [Capabilities::CALLS, Capabilities::CANCEL, Capabilities::GOODBYE, Capabilities::PING];

/// Most often all of them.
fn capabilities(bits: u8) -> Capabilities {
    if bits.is_multiple_of(2) {
        return Capabilities::ALL;
    }
    let chosen = CAPABILITIES.iter().enumerate().filter(|(place, _)| bits >> (place + 1) & 1 == 1);
    chosen.fold(Capabilities::NONE, |all, (_, one)| all.union(*one))
}

fn message(header: Header, path: &str, method: &str, metadata: &Metadata, ticket: u32) -> Message {
    Message::new(header, path, method, metadata, &ticket.to_be_bytes())
}

impl Pair {
    fn open(mode: u8, offer: u8) -> Self {
        let (client, server) = (capabilities(offer >> 1), capabilities(mode >> 3));
        let mut pair = Self {
            client: End::new(Role::Client, client),
            server: End::new(Role::Server, server),
            welcomes: !mode.is_multiple_of(4),
            next_ticket: 0,
        };
        if !offer.is_multiple_of(4) {
            pair.send_hello(&mut Tally::default());
        }
        pair
    }

    fn end(&mut self, role: Role) -> &mut End {
        match role {
            Role::Client => &mut self.client,
            Role::Server => &mut self.server,
        }
    }

    fn ticket(&mut self) -> u32 {
        self.next_ticket += 1;
        self.next_ticket
    }

    /// Puts a message on its way from `role` to the other side.
    fn send(&mut self, role: Role, message: &Message, sent: Sent) {
        let receiver = match role {
            Role::Client => &mut self.server,
            Role::Server => &mut self.client,
        };
        receiver.pipe.extend_from_slice(message.frame());
        receiver.on_the_way.push_back(sent);
    }

    /// One act. True: the connection is over.
    fn act(&mut self, act: u8, argument: u8, tally: &mut Tally) -> bool {
        let role = if act & 1 == 0 { Role::Client } else { Role::Server };
        // What an honest peer would not do is rare, or connections would be short.
        let rude = 250 <= argument;
        match (act >> 1) % 20 {
            0..=3 => self.call(role, rude, tally),
            4 => self.forget(role, argument, tally),
            5 | 6 => self.reply(role, argument),
            7 => self.reply_again(role, argument, rude),
            8 => self.forge_reply(role, argument, rude),
            9 => self.push(role),
            10 => self.ping(role, argument, rude, tally),
            11 if role == Role::Server => self.goodbye(),
            11 if rude => self.send_hello(tally),
            12 => self.forget_what_is_gone(role, argument),
            13 if argument < 3 => return true,
            _ => return self.deliver(role, usize::from(argument) + 1, tally),
        }
        false
    }

    fn call(&mut self, role: Role, rude: bool, tally: &mut Tally) {
        let ticket = self.ticket();
        let end = self.end(role);
        if role == Role::Server && !end.can(Capabilities::CALLS) && !rude {
            return;
        }
        if let Some(seq) = end.begin(ticket, tally) {
            let header = Header::request(seq, SerializeType::RAW);
            let call = message(header, "Arith", "Mul", &Metadata::new(), ticket);
            self.send(role, &call, Sent::Call(seq));
        }
    }

    /// A caller that waited gives up, and tells the peer so if that is agreed.
    fn forget(&mut self, role: Role, argument: u8, tally: &mut Tally) {
        let end = self.end(role);
        let Some(seq) = end.nth_waiting(argument) else {
            return;
        };
        assert_eq!(end.connection.forget(seq), end.end(seq));
        tally.count("forgotten");
        if end.can(Capabilities::CANCEL) {
            let header = Header::oneway(end.next_push(), SerializeType::RAW);
            let metadata = Metadata::new().with(keys::CANCEL_SEQ, seq.get().to_string());
            let cancel = message(header, keys::CONTROL_PATH, keys::CANCEL, &metadata, 0);
            self.send(role, &cancel, Sent::Cancel(seq));
        }
    }

    fn reply(&mut self, role: Role, argument: u8) {
        let end = self.end(role);
        if end.unanswered.is_empty() {
            return;
        }
        let place = usize::from(argument) % end.unanswered.len();
        let request = end.unanswered.swap_remove(place);
        end.answered.push(request.clone());
        self.send_reply(role, &request, argument);
    }

    fn reply_again(&mut self, role: Role, argument: u8, rude: bool) {
        let end = self.end(role);
        if end.answered.is_empty() || !(rude || role == Role::Server || end.can(Capabilities::CALLS)) {
            return;
        }
        let place = usize::from(argument) % end.answered.len();
        let request = end.answered[place].clone();
        self.send_reply(role, &request, argument);
    }

    /// Answers a call or a heartbeat, with success or failure.
    fn send_reply(&mut self, role: Role, request: &Message, argument: u8) {
        let (header, payload) = (request.header(), request.wire_payload());
        let ticket = u32::from_be_bytes(*payload.first_chunk().expect("every payload here is a ticket"));
        let reply = if header.is_heartbeat() {
            Message::parse(request.pong().into(), &Limits::default()).expect("a pong is well formed")
        } else if argument.is_multiple_of(3) {
            Message::error_reply(header, request.service_path(), request.service_method(), "no")
        } else {
            message(header.reply(), request.service_path(), request.service_method(), &Metadata::new(), ticket)
        };
        let sent = Sent::Reply { seq: header.seq(), heartbeat: header.is_heartbeat(), ticket: Some(ticket) };
        self.send(role, &reply, sent);
    }

    /// A reply to what the other side never asked, under a number close to those it did use.
    fn forge_reply(&mut self, role: Role, argument: u8, rude: bool) {
        if role == Role::Client && !self.client.can(Capabilities::CALLS) && !rude {
            return;
        }
        let other = if role == Role::Client { &self.server } else { &self.client };
        let near = other.nth_waiting(argument).unwrap_or_default().get();
        let number = match argument % 8 {
            0 => u64::from(argument),
            1 => near ^ 1 << 63,
            2 => near ^ 1 << 62,
            3 => near ^ 3 << 62,
            4 => near.wrapping_add(1 << 32),
            5 => near ^ 1,
            6 => u64::MAX,
            _ => other.stale.last().map_or(1 << 33, |seq| seq.get()),
        };
        let seq = Seq::new(number);
        if other.waiting.contains_key(&seq) {
            return; // not forged: that is a reply like any other
        }
        let heartbeat = argument & 64 != 0;
        let asked = match heartbeat {
            true => Header::heartbeat(seq, SerializeType::RAW),
            false => Header::request(seq, SerializeType::RAW),
        };
        let reply = message(asked.reply(), "Arith", "Mul", &Metadata::new(), u32::MAX);
        self.send(role, &reply, Sent::Reply { seq, heartbeat, ticket: None });
    }

    fn push(&mut self, role: Role) {
        let ticket = self.ticket();
        let header = Header::oneway(self.end(role).next_push(), SerializeType::RAW);
        let push = message(header, "Chat", "say", &Metadata::new(), ticket);
        self.send(role, &push, Sent::Push);
    }

    /// A heartbeat whose answer somebody waits for, or nobody.
    fn ping(&mut self, role: Role, argument: u8, rude: bool, tally: &mut Tally) {
        let ticket = self.ticket();
        let end = self.end(role);
        if role == Role::Server && !end.can(Capabilities::PING) && !rude {
            return;
        }
        let seq = if argument & 1 == 0 { Some(end.next_push()) } else { end.begin(ticket, tally) };
        if let Some(seq) = seq {
            let ping = Message::ping(seq, &Metadata::new(), &ticket.to_be_bytes());
            self.send(role, &ping, Sent::Ping(seq));
        }
    }

    fn send_hello(&mut self, tally: &mut Tally) {
        let ticket = self.ticket();
        let Some(seq) = self.client.begin(ticket, tally) else {
            return;
        };
        self.client.hello = Some(ticket);
        let mut metadata = Metadata::new().with(keys::AUTH, "secret");
        Hello { version: VERSION, capabilities: self.client.offers }.put(&mut metadata);
        let hello = Message::ping(seq, &metadata, &ticket.to_be_bytes());
        self.send(Role::Client, &hello, Sent::Hello);
    }

    fn goodbye(&mut self) {
        let header = Header::oneway(self.server.next_push(), SerializeType::RAW);
        let metadata = Metadata::new().with(keys::GOODBYE_CODE, "draining").with(keys::GOODBYE_AFTER, "500");
        let goodbye = message(header, keys::CONTROL_PATH, keys::GOODBYE, &metadata, 0);
        self.send(Role::Server, &goodbye, Sent::Goodbye);
    }

    /// A number that nobody waits under forgets nobody: not one that is gone, not that of a push.
    fn forget_what_is_gone(&mut self, role: Role, argument: u8) {
        let end = self.end(role);
        let near = end.nth_waiting(argument).unwrap_or_default().get();
        let stale = end.stale.get(usize::from(argument) % end.stale.len().max(1)).copied();
        for seq in [stale, Some(Seq::of_push(near)), Some(Seq::new(near ^ 3 << 62)), Some(Seq::new(argument.into()))] {
            if let Some(seq) = seq.filter(|seq| !end.waiting.contains_key(seq)) {
                assert_eq!(end.connection.forget(seq), None, "{seq}");
            }
        }
    }

    /// Lets some bytes arrive at `role`. True: it closes the connection.
    fn deliver(&mut self, role: Role, bytes: usize, tally: &mut Tally) -> bool {
        let limits = Limits::default();
        let end = self.end(role);
        // 16 bytes and less cut prefixes; more brings several frames at once.
        let bytes = if bytes.is_multiple_of(2) { bytes * 8 } else { bytes };
        let piece: Vec<u8> = end.pipe.drain(..bytes.min(end.pipe.len())).collect();
        end.deframer.feed(&piece, &limits);
        while let Some(message) = self.end(role).deframer.next_message(&limits).expect("only whole frames are sent") {
            if self.receive(role, message, tally) {
                return true;
            }
            self.check();
        }
        let end = self.end(role);
        assert_eq!(end.deframer.is_mid_frame(), 0 < end.deframer.partial_bytes());
        assert!(!end.pipe.is_empty() || end.on_the_way.is_empty(), "{:?} did not arrive", end.on_the_way);
        false
    }

    /// Compares what a message means to the connection with what it means to the model.
    fn receive(&mut self, role: Role, message: Message, tally: &mut Tally) -> bool {
        let welcomes = self.welcomes;
        let end = self.end(role);
        let sent = end.on_the_way.pop_front().expect("nothing arrives that was not sent");
        let first = !std::mem::replace(&mut end.heard, true);
        let seq = message.header().seq();
        let found = end.connection.handle_message(message);
        let server = role == Role::Server;
        match (sent, found) {
            (Sent::Call(_), Ok(Inbound::Call(call))) if server || end.can(Capabilities::CALLS) => {
                tally.count(if server { "call" } else { "call to a client" });
                end.unanswered.push(call);
            }
            (Sent::Call(sent), Err(PeerMisbehaved::CallFromPlainServer(found)))
                if !server && !end.can(Capabilities::CALLS) && sent == found =>
            {
                tally.count("call from a plain server");
                return true;
            }
            (Sent::Ping(_), Ok(Inbound::Ping(ping))) if server || end.can(Capabilities::PING) => {
                tally.count(if server { "ping" } else { "ping to a client" });
                end.unanswered.push(ping);
            }
            (Sent::Ping(sent), Err(PeerMisbehaved::PingFromPlainServer(found)))
                if !server && !end.can(Capabilities::PING) && sent == found =>
            {
                tally.count("ping from a plain server");
                return true;
            }
            (Sent::Push, Ok(Inbound::Push(_))) => tally.count("push"),
            (Sent::Cancel(sent), Ok(Inbound::Cancel(found))) if end.can(Capabilities::CANCEL) => {
                assert_eq!(found, sent);
                tally.count("cancel");
            }
            (Sent::Goodbye, Ok(Inbound::Goodbye(_))) if end.can(Capabilities::GOODBYE) => tally.count("goodbye"),
            (Sent::Goodbye, Ok(Inbound::Push(push))) if !end.can(Capabilities::GOODBYE) => {
                assert_eq!(push.service_method(), keys::GOODBYE);
                tally.count("goodbye that is a push");
            }
            (Sent::Hello, Ok(Inbound::Hello(hello, asked))) if server && first => {
                tally.count("hello");
                if welcomes {
                    let welcome = end.connection.on_hello_accepted(&hello, end.offers);
                    end.agreed = Some(welcome.capabilities);
                    end.connection.on_welcome_sent();
                    self.send_welcome(&asked, welcome);
                } else {
                    end.unanswered.push(asked); // and echoes it later, as Go does
                }
            }
            (Sent::Hello, Err(PeerMisbehaved::LateHello)) if server && !first => {
                tally.count("late hello");
                return true;
            }
            (Sent::Reply { seq: sent, heartbeat, ticket }, found) => {
                assert_eq!(seq, sent);
                let agreed = end.can(if heartbeat { Capabilities::PING } else { Capabilities::CALLS });
                match (found, if !server || agreed { end.end(seq) } else { None }) {
                    (Ok(Inbound::Reply(waiter, reply)), Some(expected)) => {
                        assert_eq!(waiter, expected);
                        // A forged number may be that of a later call: who is asked may answer early.
                        assert!(ticket.is_none_or(|ticket| ticket == waiter), "a reply to another call");
                        tally.count(if server { "reply of a client" } else { "reply" });
                        if end.hello == Some(waiter) {
                            if ticket.is_none() {
                                // Forged before the Hello, under the number that the Hello then got: to the client
                                // the server is plain, to itself it may not be, and from here on they disagree.
                                self.client.agreed = None;
                                assert_eq!(self.client.connection.on_welcome_received(&reply), None);
                                tally.count("forged answer to a hello");
                                return true;
                            }
                            self.handle_welcome(&reply, tally);
                        }
                    }
                    (Ok(Inbound::Late(_)), None) if !server || agreed => {
                        tally.count(if server { "late reply of a client" } else { "late reply" });
                    }
                    (Err(PeerMisbehaved::ReplyFromPlainClient(found)), None) if server && !agreed && found == sent => {
                        tally.count("reply of a plain client");
                        return true;
                    }
                    (found, expected) => panic!("{role:?} took {sent} for {found:?}, waiting {expected:?}"),
                }
            }
            (sent, found) => panic!("{role:?} took {sent:?} for {found:?}"),
        }
        false
    }

    fn send_welcome(&mut self, asked: &Message, welcome: Welcome) {
        let mut metadata = asked.metadata();
        welcome.put(&mut metadata);
        let (header, payload) = (asked.header(), asked.wire_payload());
        let ticket = u32::from_be_bytes(*payload.first_chunk().expect("every payload here is a ticket"));
        let answer = message(header.reply(), "", "", &metadata, ticket);
        self.send(Role::Server, &answer, Sent::Reply { seq: header.seq(), heartbeat: true, ticket: Some(ticket) });
    }

    fn handle_welcome(&mut self, reply: &Message, tally: &mut Tally) {
        let welcome = self.client.connection.on_welcome_received(reply);
        self.client.agreed = welcome.map(|welcome| welcome.capabilities);
        let both = self.client.offers.intersection(self.server.offers);
        assert_eq!(self.client.agreed, self.welcomes.then_some(both));
        assert_eq!(self.client.agreed, self.server.agreed);
        tally.count(if welcome.is_some() { "welcome" } else { "echo of a hello" });
    }

    /// What holds between any two acts.
    fn check(&self) {
        for end in [&self.client, &self.server] {
            let calls = end.connection.calls();
            assert_eq!((calls.len(), calls.is_empty()), (end.waiting.len(), end.waiting.is_empty()));
            assert_eq!(end.begun.len(), end.waiting.len() + end.ended.len());
            match (end.connection.greeting(), end.agreed) {
                (Greeting::Negotiated(found), Some(agreed)) => assert_eq!(found, agreed),
                (Greeting::Unknown, None) => assert!(end.role == Role::Client || !end.heard),
                (Greeting::Plain { .. } | Greeting::HelloPending, None) => assert!(end.heard),
                (found, agreed) => panic!("{:?} takes its peer for {found:?}, not {agreed:?}", end.role),
            }
            for capability in CAPABILITIES {
                assert_eq!(end.connection.peer_can(capability), end.can(capability));
            }
        }
    }

    /// The connection ends: everyone who waits still hears of it, and nobody else.
    fn close(mut self, tally: &mut Tally) {
        for end in [&mut self.client, &mut self.server] {
            let drained: Vec<u32> = end.connection.drain().collect();
            for ticket in &drained {
                assert!(end.ended.insert(*ticket), "the call {ticket} ended before");
                tally.count("drained");
            }
            assert_eq!(drained.len(), end.waiting.len());
            assert_eq!(end.begun, end.ended);
            assert!(end.connection.calls().is_empty());
        }
    }
}
