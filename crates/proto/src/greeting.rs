//! The greeting of two peers: its phases, and the events that change them.

use crate::{Capabilities, Connection, Hello, Inbound, Message, Welcome, keys};

/// What is known of the peer, and what it waits for. Each arrow is a method of [`Connection`].
///
/// ```text
/// at a server, whose client speaks first
///
///            a Hello                  on_hello_accepted            on_welcome_sent
///  Unknown ──────────► HelloPending ───────────────────► Welcoming ───────────────► Negotiated
///     │                     │ on_hello_refused
///     │ any other frame     ▼         on_enable              on_enabled
///     └─────────────────► Plain ─────────────────► Enabling ───────────► Enabled
///                           ▲                         │ on_enable_refused
///                           └─────────────────────────┘
///
/// at a client
///
///            on_hello_sent            on_welcome_received
///  Unknown ────────────────► HelloSent ─────────────────► Negotiated, or Plain if it is an echo
/// ```
///
/// `listens` is set by [`Connection::on_inbound`], and stays set.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Greeting {
    /// Nothing has come from the peer.
    Unknown,
    /// This client has sent a Hello, which is not answered.
    HelloSent,
    /// The client has sent a Hello, and its token is being checked.
    HelloPending,
    /// The peer speaks rpcx and nothing more.
    Plain {
        /// It has asked for something, and so its application reads what comes unasked.
        listens: bool,
    },
    /// A plain client asks for a session, and the answer is not queued.
    Enabling {
        /// As in [`Self::Plain`].
        listens: bool,
    },
    /// A plain client has a session: it is called by pushes, and answers by calls.
    Enabled,
    /// It is known what the client can do, and its Welcome is not queued.
    Welcoming(Capabilities),
    /// Both sides have agreed on these.
    Negotiated(Capabilities),
}

impl Greeting {
    /// What both sides can do beyond rpcx; `None` for a plain peer, and for one that is not known yet.
    #[inline]
    pub fn agreed(self) -> Option<Capabilities> {
        match self {
            Self::Welcoming(agreed) | Self::Negotiated(agreed) => Some(agreed),
            _ => None,
        }
    }

    /// True if the peer waits to be let in, by the answer to its Hello or to its request for a session. What is sent to
    /// it unasked waits for that answer.
    #[inline]
    pub fn is_pending(self) -> bool {
        matches!(self, Self::HelloPending | Self::Enabling { .. } | Self::Welcoming(_))
    }

    /// True if the peer reads what comes unasked, and waits for no answer before it.
    #[inline]
    pub fn takes_pushes(self) -> bool {
        matches!(self, Self::Plain { listens: true } | Self::Enabled | Self::Negotiated(_))
    }
}

/// What happens to a greeting. An event that does not fit the phase changes nothing.
impl<W> Connection<W> {
    /// How far the greeting is.
    pub fn greeting(&self) -> Greeting {
        self.greeting
    }

    /// True if the peer has agreed on anything beyond rpcx.
    pub fn is_negotiated(&self) -> bool {
        self.greeting.agreed().is_some()
    }

    /// True if the peer agreed on all of these.
    pub fn peer_can(&self, capabilities: Capabilities) -> bool {
        self.greeting.agreed().is_some_and(|agreed| agreed.contains(capabilities))
    }

    /// A client's Hello is on its way.
    pub fn on_hello_sent(&mut self) {
        if self.greeting == Greeting::Unknown {
            self.greeting = Greeting::HelloSent;
        }
    }

    /// A server lets in the client that said this Hello: from now on both use what both have. Returns the answer, which
    /// is to be queued before [`Self::on_welcome_sent`].
    pub fn on_hello_accepted(&mut self, hello: &Hello, capabilities: Capabilities) -> Welcome {
        let welcome = Welcome::answer(hello, capabilities);
        self.greeting = Greeting::Welcoming(welcome.capabilities);
        welcome
    }

    /// A server refuses the Hello of a client, and the connection goes on: the client is a plain one.
    pub fn on_hello_refused(&mut self) {
        if self.greeting == Greeting::HelloPending {
            self.greeting = Greeting::Plain { listens: false };
        }
    }

    /// The Welcome is queued.
    pub fn on_welcome_sent(&mut self) {
        if let Greeting::Welcoming(agreed) = self.greeting {
            self.greeting = Greeting::Negotiated(agreed);
        }
    }

    /// A client learns what the answer to its Hello says of the server. `None`: it is plain.
    ///
    /// Call it as soon as the answer came, before the next [`handle_message`](Self::handle_message): the server's first
    /// call may come right after it.
    pub fn on_welcome_received(&mut self, answer: &Message) -> Option<Welcome> {
        let welcome = Welcome::from_metadata(&answer.metadata());
        let plain = Greeting::Plain { listens: false };
        self.greeting = welcome.map_or(plain, |welcome| Greeting::Negotiated(welcome.capabilities));
        welcome
    }

    /// The first frame of a client was passed over: no Hello comes any more.
    pub fn on_passed_over(&mut self) {
        if self.greeting == Greeting::Unknown {
            self.greeting = Greeting::Plain { listens: false };
        }
    }

    /// Notes that a plain client asks for something, by a message that [`handle_message`](Self::handle_message) has just
    /// understood. True if it does so for the first time. What it is owed does not go before the answer to `Enable` or
    /// `Resume`, which begins its session: these are no sign that it listens.
    #[inline]
    pub fn on_inbound(&mut self, inbound: &Inbound<W>) -> bool {
        let (Greeting::Plain { listens } | Greeting::Enabling { listens }) = &mut self.greeting else { return false };
        let (false, Inbound::Call(message) | Inbound::Push(message)) = (*listens, inbound) else { return false };
        let begins_session = message.service_path() == keys::CONTROL_PATH
            && matches!(message.service_method(), keys::ENABLE | keys::RESUME);
        *listens = !begins_session;
        *listens
    }

    /// A plain client asks for a session. False: it has one, is about to get one, or is no plain client.
    pub fn on_enable(&mut self) -> bool {
        let Greeting::Plain { listens } = self.greeting else { return false };
        self.greeting = Greeting::Enabling { listens };
        true
    }

    /// It does not get one now, and may ask again.
    pub fn on_enable_refused(&mut self) {
        if let Greeting::Enabling { listens } = self.greeting {
            self.greeting = Greeting::Plain { listens };
        }
    }

    /// The answer that gives it one is queued.
    pub fn on_enabled(&mut self) {
        if matches!(self.greeting, Greeting::Enabling { .. }) {
            self.greeting = Greeting::Enabled;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Header, Metadata, Role, Seq, SerializeType, VERSION};

    const BOTH: Capabilities = Capabilities::PING;

    /// Every phase, once; of those with `listens`, both.
    const PHASES: [Greeting; 10] = [
        Greeting::Unknown,
        Greeting::HelloSent,
        Greeting::HelloPending,
        Greeting::Plain { listens: false },
        Greeting::Plain { listens: true },
        Greeting::Enabling { listens: false },
        Greeting::Enabling { listens: true },
        Greeting::Enabled,
        Greeting::Welcoming(BOTH),
        Greeting::Negotiated(BOTH),
    ];

    fn at(role: Role, greeting: Greeting) -> Connection<()> {
        let mut connection = Connection::new(role, 1);
        connection.greeting = greeting;
        connection
    }

    fn after(role: Role, greeting: Greeting, event: impl FnOnce(&mut Connection<()>)) -> Greeting {
        let mut connection = at(role, greeting);
        event(&mut connection);
        connection.greeting()
    }

    fn inbound(path: &str, method: &str) -> Inbound<()> {
        let header = Header::request(Seq::new(1), SerializeType::RAW);
        Inbound::Call(Message::new(header, path, method, &Metadata::new(), b""))
    }

    /// Each event changes the phases that are named here, and no other.
    #[test]
    fn an_event_changes_the_phases_that_it_fits() {
        use Greeting::{Enabled, Enabling, HelloPending, HelloSent, Negotiated, Plain, Unknown, Welcoming};
        type Event = fn(&mut Connection<()>);
        let events: [(Event, &[(Greeting, Greeting)]); 8] = [
            (Connection::on_hello_sent, &[(Unknown, HelloSent)]),
            (Connection::on_hello_refused, &[(HelloPending, Plain { listens: false })]),
            (Connection::on_welcome_sent, &[(Welcoming(BOTH), Negotiated(BOTH))]),
            (Connection::on_passed_over, &[(Unknown, Plain { listens: false })]),
            (
                |connection| _ = connection.on_inbound(&inbound("T", "Echo")),
                &[
                    (Plain { listens: false }, Plain { listens: true }),
                    (Enabling { listens: false }, Enabling { listens: true }),
                ],
            ),
            (
                |connection| _ = connection.on_enable(),
                &[
                    (Plain { listens: false }, Enabling { listens: false }),
                    (Plain { listens: true }, Enabling { listens: true }),
                ],
            ),
            (
                Connection::on_enable_refused,
                &[
                    (Enabling { listens: false }, Plain { listens: false }),
                    (Enabling { listens: true }, Plain { listens: true }),
                ],
            ),
            (Connection::on_enabled, &[(Enabling { listens: false }, Enabled), (Enabling { listens: true }, Enabled)]),
        ];
        for (number, (event, changes)) in events.into_iter().enumerate() {
            for before in PHASES {
                let expected = changes.iter().find(|(from, _)| *from == before).map_or(before, |(_, to)| *to);
                assert_eq!(after(Role::Server, before, event), expected, "event {number} in {before:?}");
            }
        }
    }

    /// What may be done in each phase.
    #[test]
    fn a_phase_says_what_may_be_sent() {
        let which = |asks: fn(Greeting) -> bool| PHASES.map(|phase| u8::from(asks(phase)));
        assert_eq!(which(Greeting::is_pending), [0, 0, 1, 0, 0, 1, 1, 0, 1, 0]);
        assert_eq!(which(Greeting::takes_pushes), [0, 0, 0, 0, 1, 0, 0, 1, 0, 1]);
        assert_eq!(which(|phase| phase.agreed() == Some(BOTH)), [0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        for greeting in PHASES {
            let connection = at(Role::Server, greeting);
            let agreed = greeting.agreed().is_some();
            assert_eq!((connection.is_negotiated(), connection.peer_can(BOTH)), (agreed, agreed));
            assert!(!connection.peer_can(Capabilities::ALL));
        }
    }

    /// The first frame of a client says which of the two it is, and no other frame does.
    #[test]
    fn the_first_frame_of_a_client_begins_the_greeting() {
        let mut said = Metadata::new();
        Hello { version: VERSION, capabilities: BOTH }.put(&mut said);
        let hello = Message::ping(Seq::new(0), &said, &[]);
        let ask = || Message::new(Header::request(Seq::new(1), SerializeType::RAW), "T", "Echo", &Metadata::new(), b"");
        let first = |message: Message| {
            after(Role::Server, Greeting::Unknown, |connection| drop(connection.handle_message(message)))
        };
        assert_eq!(first(hello.clone()), Greeting::HelloPending);
        assert_eq!(first(ask()), Greeting::Plain { listens: false });
        for later in PHASES.into_iter().skip(1) {
            for message in [hello.clone(), ask()] {
                let greeting = after(Role::Server, later, |connection| drop(connection.handle_message(message)));
                assert_eq!(greeting, later);
            }
        }
    }

    /// A plain client is known to listen from its first request on, unless that begins a session.
    #[test]
    fn the_first_request_of_a_plain_client_is_noted_once() {
        let mut server = Connection::<()>::new(Role::Server, 1);
        assert!(!server.on_inbound(&inbound("T", "Echo")), "nobody knows yet what it is");
        server.on_passed_over();
        for method in [keys::ENABLE, keys::RESUME] {
            assert!(!server.on_inbound(&inbound(keys::CONTROL_PATH, method)), "{method}");
        }
        assert!(server.on_inbound(&inbound("T", keys::ENABLE)));
        assert!(!server.on_inbound(&inbound("T", "Echo")), "it is no news");

        server.greeting = Greeting::Plain { listens: false };
        assert!(server.on_inbound(&inbound(keys::CONTROL_PATH, keys::ACK)));
    }

    #[test]
    fn an_answer_to_a_hello_tells_what_the_server_is() {
        let answer =
            |said: &Metadata| Message::new(Header::request(Seq::new(0), SerializeType::RAW).reply(), "", "", said, b"");
        let mut said = Metadata::new();
        for (is_welcome, expected) in [(false, Greeting::Plain { listens: false }), (true, Greeting::Negotiated(BOTH))]
        {
            if is_welcome {
                Welcome { version: VERSION, capabilities: BOTH }.put(&mut said);
            }
            let greeting = after(Role::Client, Greeting::HelloSent, |client| {
                assert_eq!(client.on_welcome_received(&answer(&said)).is_some(), is_welcome);
            });
            assert_eq!(greeting, expected);
        }
        let hello = Hello { version: VERSION, capabilities: Capabilities::ALL };
        let greeting = after(Role::Server, Greeting::HelloPending, |server| {
            assert_eq!(server.on_hello_accepted(&hello, BOTH).capabilities, BOTH);
        });
        assert_eq!(greeting, Greeting::Welcoming(BOTH));
    }
}
