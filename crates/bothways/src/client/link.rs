//! Keeps one connection to one server: watches it, and makes it again with back-off.
//!
//! ```text
//!  connecting ──► up ──► lost ──► waiting (0 to base × 2^failures, at random) ──► connecting
//!      │           │      │
//!      └───────────┴──────┴──► closed, by this side, or for good if it must not reconnect
//! ```
//!
//! A server may say goodbye and when to come back, or not admit the client for now. The connection counts as lost
//! from then on, though what runs on it is still answered, and the waiting begins when the time that the server named
//! is over.
//!
//! A call that waits for the connection shortens the waiting between tries: a server that is back after
//! a long absence is not left alone for the rest of a long back-off.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bothways_proto::{Capabilities, Role, keys};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};

use super::{
    Common,
    events::{ConnectionEvent, ConnectionEvents, EventSender},
    inlet::ClientInlet,
    messages::MessageQueue,
    options::ClientOptions,
    results::Results,
    subscriptions::{Resubscriber, Subscriptions},
};
use crate::{
    connection::{Connection, Inlet, Methods, Settings},
    error::{CloseReason, ConnectError},
    router::Router,
    transport::{self, Address},
};

pub(super) struct Link {
    address: Address,
    options: ClientOptions,
    state: watch::Sender<State>,
    /// Tries to connect that have failed.
    failures: AtomicU64,
    /// Told when a call waits for the connection.
    wanted: Notify,
    /// Taken when the link has ended, so that streams of events and messages end.
    ears: Mutex<Option<Ears>>,
    subscriptions: Arc<Subscriptions>,
}

/// Doublings of the wait between tries while a call waits for the connection: with the default base of
/// 50 ms at most 0.8 s. That is soon for the caller, and bearable for a server to which all come back.
const WANTED_DOUBLINGS: u32 = 4;

/// What a call waits for that finds no connection.
#[derive(Clone, Copy)]
pub(super) enum Patience {
    /// The connection.
    Connection,
    /// The outcome of the next try to make it.
    OneTry,
}

/// Those who are told what happens, and what comes.
struct Ears {
    events: EventSender,
    _messages: Option<MessageQueue>,
}

#[derive(Clone)]
enum State {
    /// The first connection is being made; the last try failed for this reason.
    Connecting(Option<ConnectError>),
    Up(Connection),
    /// Lost, and being made again.
    Lost(CloseReason),
    /// For good.
    Ended(ConnectError),
}

impl Link {
    pub(super) fn start(
        address: Address,
        options: ClientOptions,
        handlers: Router,
        messages: Option<MessageQueue>,
        Common { events, keys }: Common,
        subscriptions: Subscriptions,
    ) -> Arc<Self> {
        let adder = messages.as_ref().map(MessageQueue::adder);
        let goes_to_handlers = messages.as_ref().is_some_and(MessageQueue::goes_to_handlers);
        let link = Arc::new(Self {
            address,
            options,
            state: watch::Sender::new(State::Connecting(None)),
            failures: 0.into(),
            wanted: Notify::new(),
            ears: Mutex::new(Some(Ears { events: events.clone(), _messages: messages })),
            subscriptions: Arc::new(subscriptions),
        });
        let server: Arc<str> = link.address.to_string().into();
        let mut settings = link.options.settings();
        if adder.is_none() {
            // Without a listener nothing is ever handled, and nothing may be promised.
            let of_sessions = Capabilities::SESSIONS.union(Capabilities::OUTCOMES);
            settings.capabilities = settings.capabilities.without(of_sessions);
        }
        if !goes_to_handlers {
            settings.capabilities = settings.capabilities.without(Capabilities::HANDLERS);
        }
        let resubscriber = Resubscriber {
            server: Arc::clone(&server),
            subscriptions: Arc::clone(&link.subscriptions),
            events: events.clone(),
            token: link.options.token().map(Arc::from),
            timeout: link.options.default_timeout(),
        };
        let inlet = Arc::new(ClientInlet {
            server: Arc::clone(&server),
            resubscriber,
            handlers,
            messages: adder,
            memory: Arc::default(),
            keys,
            events: events.clone(),
            results: Results::default(),
            turn: Mutex::default(),
            unheard: 0.into(),
            warned: false.into(),
        });
        let settings = Arc::new(settings);
        let methods = Methods::announce(&inlet.handlers.routes());
        let (kept, keeper) = (Arc::clone(&link), Keeper { server, inlet, settings, events, methods });
        tokio::spawn(async move {
            keep(&kept, &keeper).await;
            kept.ears.lock().take();
        });
        link
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    pub(super) fn options(&self) -> &ClientOptions {
        &self.options
    }

    pub(super) fn subscriptions(&self) -> &Subscriptions {
        &self.subscriptions
    }

    pub(super) fn events(&self) -> ConnectionEvents {
        self.ears.lock().as_ref().map(|ears| ears.events.clone()).unwrap_or_default().subscribe()
    }

    /// The connection as it is now.
    pub(super) fn current(&self) -> Result<Connection, ConnectError> {
        self.state.borrow().connection(&self.address)
    }

    /// What a call gets that waits for this; `None` if that is still to come.
    pub(super) fn at_once(&self, patience: Patience) -> Option<Result<Connection, ConnectError>> {
        let state = self.state.borrow();
        let settled = match patience {
            Patience::Connection => matches!(&*state, State::Up(_) | State::Ended(_)),
            Patience::OneTry => state.is_settled(),
        };
        (settled || self.options.wait().is_zero()).then(|| state.connection(&self.address))
    }

    /// What a call gets, after waiting for it.
    pub(super) async fn wait(&self, patience: Patience) -> Result<Connection, ConnectError> {
        match patience {
            Patience::Connection => self.connection().await,
            Patience::OneTry => self.connection_or_failure().await,
        }
    }

    /// The connection, after waiting for it if it is being made.
    async fn connection(&self) -> Result<Connection, ConnectError> {
        if let Some(outcome) = self.at_once(Patience::Connection) {
            return outcome;
        }
        let mut states = self.state.subscribe();
        self.wanted.notify_one();
        let settled = states.wait_for(|state| matches!(state, State::Up(_) | State::Ended(_)));
        match tokio::time::timeout(self.options.wait(), settled).await {
            Ok(Ok(state)) => state.connection(&self.address),
            // Not in time; or the sender is gone, which it cannot be while `self` is borrowed.
            _ => self.current(),
        }
    }

    /// The connection; if it is not there, the outcome of the next try to make it.
    async fn connection_or_failure(&self) -> Result<Connection, ConnectError> {
        let failures = self.failures.load(Ordering::Acquire);
        if let Some(outcome) = self.at_once(Patience::OneTry) {
            return outcome;
        }
        let mut states = self.state.subscribe();
        self.wanted.notify_one();
        let tried = states.wait_for(|state| state.is_settled() || failures < self.failures.load(Ordering::Acquire));
        match tokio::time::timeout(self.options.wait(), tried).await {
            Ok(Ok(state)) => state.connection(&self.address),
            // Not in time; or the sender is gone, which it cannot be while `self` is borrowed.
            _ => self.current(),
        }
    }

    /// The outcome of the first try. A server that asks to come again later is waited for.
    pub(super) async fn first_connection(&self) -> Result<Connection, ConnectError> {
        let mut states = self.state.subscribe();
        let asks_to_wait = |state: &State| matches!(state, State::Lost(reason) if reason.reconnect_after().is_some());
        let settled = states.wait_for(|state| !matches!(state, State::Connecting(None)) && !asks_to_wait(state)).await;
        match settled {
            Ok(state) => state.connection(&self.address),
            Err(_) => Err(ConnectError::Closed),
        }
    }

    /// Ends the connection for good.
    pub(super) fn close(&self) {
        let before = self.state.send_replace(State::Ended(ConnectError::Closed));
        if let State::Up(connection) = before {
            connection.close();
        }
        self.ears.lock().take();
    }

    /// True if the last try failed, or the connection is lost or about to be.
    pub(super) fn is_down(&self) -> bool {
        match &*self.state.borrow() {
            State::Connecting(error) => error.is_some(),
            State::Up(connection) => !connection.is_open(),
            State::Lost(_) => true,
            State::Ended(_) => false,
        }
    }

    /// True if there will be no connection any more.
    pub(super) fn is_ended(&self) -> bool {
        matches!(&*self.state.borrow(), State::Ended(_))
    }

    /// Enters a state, unless the link was ended meanwhile.
    fn enter(&self, next: State) -> bool {
        self.state.send_if_modified(|state| {
            let open = !matches!(state, State::Ended(_));
            if open {
                *state = next;
            }
            open
        })
    }

    /// Notes a try that failed, and tells those who wait for its outcome.
    fn note_failure(&self, error: ConnectError) {
        self.failures.fetch_add(1, Ordering::Release);
        self.state.send_modify(|state| {
            if let State::Connecting(last) = state {
                *last = Some(error);
            }
        });
    }

    /// Waits until the moment that the server named, or until the link is ended.
    async fn rest(&self, until: Instant) {
        // Either is an end of the waiting.
        let _ = tokio::time::timeout_at(until, self.ended()).await;
    }

    /// Waits until the link is ended.
    async fn ended(&self) {
        let mut states = self.state.subscribe();
        // The sender is here: it is not gone while `self` is borrowed.
        let _ = states.wait_for(|state| matches!(state, State::Ended(_))).await;
    }

    /// Waits before the next try: a random part of a limit that doubles with each failure in a row (full
    /// jitter). Sooner if a call waits; until the link is ended at most.
    async fn pause(&self, failures: u32) {
        let (began, part) = (Instant::now(), rand::random::<f64>());
        let until = |failures| began + self.options.backoff_wait(failures, part);
        let wanted = async {
            self.wanted.notified().await;
            sleep_until(until(failures.min(WANTED_DOUBLINGS))).await;
        };
        tokio::select! {
            () = sleep_until(until(failures)) => {}
            () = wanted => {}
            () = self.ended() => {}
        }
    }
}

impl State {
    /// True if waiting brings nothing better.
    fn is_settled(&self) -> bool {
        match self {
            Self::Up(connection) => connection.is_open(),
            Self::Ended(_) => true,
            Self::Connecting(_) | Self::Lost(_) => false,
        }
    }

    fn connection(&self, address: &Address) -> Result<Connection, ConnectError> {
        match self {
            Self::Up(connection) => Ok(connection.clone()),
            Self::Connecting(Some(error)) | Self::Ended(error) => Err(error.clone()),
            Self::Connecting(None) => {
                Err(ConnectError::Reconnecting { address: address.to_string(), lost: CloseReason::Local })
            }
            Self::Lost(reason) => {
                Err(ConnectError::Reconnecting { address: address.to_string(), lost: reason.clone() })
            }
        }
    }
}

/// What the keeping task needs beside the link.
#[derive(Clone)]
struct Keeper {
    server: Arc<str>,
    inlet: Arc<ClientInlet>,
    settings: Arc<Settings>,
    events: EventSender,
    /// What the handlers take, as a Hello announces it.
    methods: Option<String>,
}

/// The task of a link.
async fn keep(link: &Arc<Link>, keeper: &Keeper) {
    let mut failures = 0;
    let mut lost_before = false;
    while !link.is_ended() {
        let socket = match transport::connect(&link.address, link.options.connect()).await {
            Ok(socket) => socket,
            Err(error) => {
                tracing::debug!(server = &*keeper.server, %error, "a try to connect failed");
                if !link.options.reconnects() {
                    link.enter(State::Ended(error));
                    return;
                }
                link.note_failure(error);
                link.pause(failures).await;
                failures += 1;
                continue;
            }
        };
        let connection = keeper.connect(link, socket);
        if !link.enter(State::Up(connection.clone())) {
            connection.close();
            keeper.watch(&connection, connection.closed()).await;
            return;
        }
        let server = Arc::clone(&keeper.server);
        keeper.events.tell(&match lost_before {
            false => ConnectionEvent::Connected { server },
            true => ConnectionEvent::Restored { server, losses: 1 },
        });
        lost_before = true;

        let began = Instant::now();
        let reason = match link.options.reconnects() {
            true => keeper.watch(&connection, connection.leaving()).await,
            false => keeper.watch(&connection, connection.closed()).await,
        };
        let refused = matches!(reason, CloseReason::Unauthenticated(_));
        let not_before = Instant::now() + reason.reconnect_after().unwrap_or_default();
        let next = match &reason {
            CloseReason::Unauthenticated(text) => {
                State::Ended(ConnectError::Refused { address: link.address.to_string(), reason: text.clone() })
            }
            reason if link.options.reconnects() => State::Lost(reason.clone()),
            reason => {
                State::Ended(ConnectError::Reconnecting { address: link.address.to_string(), lost: reason.clone() })
            }
        };
        if !link.enter(next) {
            return;
        }
        failures = match &reason {
            // Each time more patient, as with tries that fail.
            CloseReason::NotAdmitted { .. } => failures.max(1),
            // A server that takes connections and drops them at once is not asked in a tight loop.
            _ if began.elapsed() < Duration::from_secs(1) => 1,
            _ => 0,
        };
        keeper.events.tell(&ConnectionEvent::Lost { server: Arc::clone(&keeper.server), reason });
        if refused || !link.options.reconnects() {
            return;
        }
        if !connection.is_closed() {
            tokio::spawn(outlive(Arc::clone(link), keeper.clone(), connection));
        }
        link.rest(not_before).await;
        link.pause(failures).await;
        failures += 1;
    }
}

/// Watches a connection that its server ends, while the next one is made: what runs on it is still answered.
async fn outlive(link: Arc<Link>, keeper: Keeper, connection: Connection) {
    let ended = async {
        tokio::select! {
            () = link.ended() => connection.close(),
            _ = connection.closed() => {}
        }
    };
    keeper.watch(&connection, ended).await;
    keeper.watch(&connection, connection.closed()).await;
}

impl Keeper {
    fn connect(&self, link: &Link, socket: transport::AnySocket) -> Connection {
        let hello = link.options.negotiates().then(|| {
            let mut hello = self.inlet.memory.hello();
            if let Some(token) = link.options.token() {
                hello.insert(keys::AUTH, token);
            }
            if let Some(methods) = &self.methods {
                hello.insert(keys::METHODS, methods);
            }
            hello
        });
        let inlet: Arc<dyn Inlet> = Arc::clone(&self.inlet) as _;
        Connection::start(Role::Client, socket, Arc::clone(&self.settings), inlet, hello, |connection| {
            if !link.options.negotiates() {
                // No Welcome will come: each connection is a session of its own.
                self.inlet.resubscriber.begin(connection, false);
            }
        })
    }

    /// Does for a connection what is due, until something has happened.
    async fn watch<T>(&self, connection: &Connection, happened: impl Future<Output = T>) -> T {
        let memory = &self.inlet.memory;
        // Kept over the ticks: one that began again with each would never be due if they come quickly.
        let due = memory.due(connection.id());
        tokio::pin!(happened, due);
        let mut ticks = tokio::time::interval(self.settings.watch.tick());
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                outcome = &mut happened => return outcome,
                _ = ticks.tick() => connection.watch(Instant::now()),
                acks = &mut due => {
                    connection.acknowledge(&acks.to_metadata());
                    due.set(memory.due(connection.id()));
                }
            }
        }
    }
}
