//! Keeps one connection to one server: watches it, and reconnects with back-off.
//!
//! ```text
//!                    ┌───────────────────── no connection, no answer, refused, not admitted ◄──┐
//!                    ▼                                                                         │
//!  start ──► down: waiting (0 to base × 2^failures, at random) ──► connecting ──► greeting ────┤
//!                    ▲                                                                         │ the Hello is answered
//!                    └───────────────────── lost, or the server said goodbye ◄──────────── up ◄┘
//!
//!  any of them ──► ended: by this side, or for good if it must not try again
//! ```
//!
//! A connection is up once its server has answered the Hello: before that nobody knows whether it lets this client in,
//! and whether it is an rpcx server at all. Calls do not wait for that: they are sent after the Hello, and if it is
//! refused they were certainly not run. Events and [`Client::connect`](super::Client::connect) do.
//!
//! A server may say goodbye and when to come back, or not admit the client for now. The connection counts as lost
//! from then on, though what runs on it is still answered, and the waiting begins when the time that the server named
//! is over.
//!
//! A call that waits for the connection shortens the waiting between tries: a server that is back after
//! a long absence is not left alone for the rest of a long back-off.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bothways_proto::{Capabilities, Role, keys};
use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    Common,
    elsewhere::{Named, Target},
    events::{ConnectionEvent, ConnectionEvents, EventSender, SessionLost},
    handler::ClientHandler,
    messages::MessageQueue,
    options::{ClientOptions, Credentials},
    resubscribe::Resubscriber,
    results::Results,
    returned::Returned,
    session::SessionMemory,
    subscriptions::Subscriptions,
};
use crate::{
    calm::{Calm, Said},
    clock::{after, later, spread},
    connection::{Connection, ConnectionHandler, ConnectionId, Methods, Settings, recycle::Sweeper},
    error::{CloseReason, ConnectError},
    router::Router,
    transport::{Address, AnySocket},
};

pub(super) struct Link {
    address: Address,
    options: ClientOptions,
    /// The runtime in which the client was made. Callers on other threads use its clock.
    runtime: Handle,
    state: watch::Sender<State>,
    /// Held while a connection is found to stand, or to fail before it does: events come in the order of the states.
    turn: Mutex<()>,
    /// A connection has stood.
    has_stood: AtomicBool,
    /// Tries to connect that have failed.
    failures: AtomicU64,
    /// Those among them that the server refused.
    refusals: AtomicU64,
    /// Told when a call waits for the connection.
    wanted: Notify,
    /// Taken when the link has ended, so that streams of events and messages end.
    receivers: Mutex<Option<Receivers>>,
    subscriptions: Arc<Subscriptions>,
    memory: Arc<SessionMemory>,
    /// Oneway requests that the server handed back.
    returned: Arc<Returned>,
    /// Its server has left the list that it was made for: its end is told.
    is_unlisted: AtomicBool,
}

/// Doublings of the wait between tries while a call waits for the connection: with the default base of
/// 50 ms at most 0.8 s. That is soon for the caller, and bearable for a server to which all come back.
const WANTED_DOUBLINGS: u32 = 4;

/// A connection that stood for so long has lived: the waiting before the next one begins anew. One that did not is
/// a failure more, however it ended.
const LIVED: Duration = Duration::from_secs(1);

/// Connections that their servers are about to end, and that still answer what runs.
const LEAVING_MAX: usize = 2;

/// How long such a connection stays though nothing runs on it: for the last acknowledgements, and for its server to
/// end it.
const LEAVING_IDLE: Duration = Duration::from_secs(5);

/// How long it stays without that, where its server says what it has taken: longer than that reads what this client has
/// sent.
const LEAVING_UNREAD: Duration = Duration::from_secs(90);

/// How long it stays at most.
const LEAVING_TIME: Duration = Duration::from_secs(600);

/// How long a server that sent this client away may take to answer what runs, and to close the connection.
const FAREWELL: Duration = Duration::from_secs(1);

/// What a call waits for that finds no connection.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum Patience {
    /// The connection, or a refusal.
    Connection,
    /// The outcome of the next try to make it.
    OneTry,
}

/// Those who are told what happens, and what comes.
struct Receivers {
    events: EventSender,
    resubscriber: Resubscriber,
    _messages: Option<MessageQueue>,
}

/// What is seen of a link at one moment.
pub(crate) struct Look {
    /// The connection of a call that does not wait.
    pub(crate) connection: Option<Connection>,
    /// It stands: its Hello is answered.
    pub(crate) is_up: bool,
    /// Other servers are to be preferred, if any of them is up.
    pub(crate) is_down: bool,
    /// The link has not ended, or is not to be replaced.
    pub(crate) may_be_called: bool,
}

#[derive(Clone)]
enum State {
    /// Being made.
    Down(Why),
    /// Made, but its Hello is not answered yet; and why there was none before it.
    Greeting(Connection, Why),
    Up(Connection),
    /// For good.
    Ended(ConnectError),
}

/// Why there is no connection.
#[derive(Clone)]
enum Why {
    /// The first try is under way.
    New,
    /// The last try failed.
    Failed(ConnectError),
    /// The last one was lost, or not admitted.
    Lost(CloseReason),
}

/// Ends the link when its task is gone, however it ended: nobody waits for a connection that nobody makes.
struct Kept(Arc<Link>);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.end(ConnectError::Abandoned);
    }
}

/// Of connections of a client that listens or not, and has handlers for what it hears or not.
fn settings_of(options: &ClientOptions, listens: bool, goes_to_handlers: bool) -> Settings {
    let mut settings = options.settings();
    if !listens {
        // Without a listener nothing is ever handled, and nothing may be promised.
        let of_sessions = Capabilities::SESSIONS.union(Capabilities::OUTCOMES);
        settings.capabilities = settings.capabilities.without(of_sessions);
    }
    if !goes_to_handlers {
        settings.capabilities = settings.capabilities.without(Capabilities::HANDLERS);
    }
    if !options.can_renew() {
        // With the same token it would be refused again.
        settings.capabilities = settings.capabilities.without(Capabilities::RETURNS);
    }
    settings
}

impl Link {
    /// `client` is told of to its handlers.
    pub(super) fn start(
        client: Weak<super::Handle>,
        address: Address,
        options: ClientOptions,
        handlers: Router,
        messages: Option<MessageQueue>,
        Common { events, keys, oneways_lost }: Common,
        subscriptions: Subscriptions,
    ) -> Arc<Self> {
        let is_quiet = options.is_quiet();
        let events = events.quiet(is_quiet);
        // Told in one pause, of each kind.
        let lines = if is_quiet { 0 } else { 1 };
        let adder = messages.as_ref().map(MessageQueue::adder);
        let goes_to_handlers = messages.as_ref().is_some_and(MessageQueue::goes_to_handlers);

        let link = Arc::new(Self {
            address,
            options,
            runtime: Handle::current(),
            state: watch::Sender::new(State::Down(Why::New)),
            turn: Mutex::default(),
            has_stood: false.into(),
            failures: 0.into(),
            refusals: 0.into(),
            wanted: Notify::new(),
            receivers: Mutex::default(),
            subscriptions: Arc::new(subscriptions),
            memory: Arc::default(),
            returned: Arc::new(Returned::counting_in(oneways_lost, lines)),
            is_unlisted: false.into(),
        });

        let server: Arc<str> = link.address.to_string().into();
        let settings = settings_of(&link.options, adder.is_some(), goes_to_handlers);

        let resubscriber = Resubscriber {
            server: Arc::clone(&server),
            subscriptions: Arc::clone(&link.subscriptions),
            events: events.clone(),
            timeout: link.options.default_timeout(),
            room: Default::default(),
        };
        let receivers = Receivers { events: events.clone(), resubscriber: resubscriber.clone(), _messages: messages };
        *link.receivers.lock() = Some(receivers);

        let handler = Arc::new(ClientHandler {
            link: Arc::downgrade(&link),
            runtime: link.runtime.clone(),
            client,
            server: Arc::clone(&server),
            resubscriber,
            handlers,
            messages: adder,
            memory: Arc::clone(&link.memory),
            returned: Arc::clone(&link.returned),
            keys,
            events: events.clone(),
            results: Results::default(),
            turn: Mutex::default(),
            warned: is_quiet.into(),
            repeats: Calm::new(lines),
        });

        let methods = Methods::announce(&handler.handlers.routes());
        let keeper = Keeper { server, handler, settings, events, methods };
        let kept = Kept(Arc::clone(&link));
        tokio::spawn(async move { keep(&kept.0, &keeper).await });
        link
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    pub(super) fn options(&self) -> &ClientOptions {
        &self.options
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(super) fn subscriptions(&self) -> &Arc<Subscriptions> {
        &self.subscriptions
    }

    pub(super) fn events(&self) -> ConnectionEvents {
        self.receivers.lock().as_ref().map(|receivers| receivers.events.clone()).unwrap_or_default().subscribe()
    }

    /// The session does not have what the application wants, or the server could not let it subscribe for now: it is
    /// asked again, on the connection that there is. If there is none, the next one asks.
    pub(super) fn subscribe_again(&self, topic: &Arc<str>) {
        let _runtime = self.runtime.enter();
        if let (Some(resubscriber), Ok(connection)) = (self.resubscriber(), self.current()) {
            resubscriber.ask_again(&connection, Arc::clone(topic));
        }
    }

    /// The server has sent the application a part of what it asked for: the rest is asked for, on the connection that
    /// there is. If there is none, the next one asks.
    pub(super) fn ask_for_rest(&self, topic: &Arc<str>) {
        let _runtime = self.runtime.enter();
        if let (Some(resubscriber), Ok(connection)) = (self.resubscriber(), self.current()) {
            resubscriber.ask_for_rest(&connection, Arc::clone(topic));
        }
    }

    fn resubscriber(&self) -> Option<Resubscriber> {
        self.receivers.lock().as_ref().map(|receivers| receivers.resubscriber.clone())
    }

    /// The connection as it is now.
    pub(super) fn current(&self) -> Result<Connection, ConnectError> {
        self.state.borrow().connection(&self.address)
    }

    /// What a call gets that waits for this; `None` if that is still to come. The connection may be over already:
    /// the call finds that out, and must wait then, as this would answer the same again.
    pub(super) fn at_once(&self, patience: Patience) -> Option<Result<Connection, ConnectError>> {
        let state = self.state.borrow();
        let settled = match (patience, &*state) {
            (Patience::Connection, State::Up(connection) | State::Greeting(connection, _)) => {
                return Some(Ok(connection.clone()));
            }
            _ => state.is_settled(),
        };
        (settled || self.options.wait().is_zero()).then(|| state.connection(&self.address))
    }

    /// As [`Self::at_once`], for a oneway request: after a Hello that is refused it would be lost without a word, so it
    /// waits until the connection stands.
    pub(super) fn standing_at_once(&self, patience: Patience) -> Option<Result<Connection, ConnectError>> {
        let is_greeting = !self.options.wait().is_zero() && matches!(&*self.state.borrow(), State::Greeting(..));
        if is_greeting { None } else { self.at_once(patience) }
    }

    /// What a oneway request gets, after waiting until this moment: a connection that stands. After that one that may. As
    /// of [`Self::wait`] it is open, unless it is over by the time the request gets it.
    pub(super) async fn wait_standing(&self, patience: Patience, until: Instant) -> Result<Connection, ConnectError> {
        let is_greeting = |state: &State| matches!(state, State::Greeting(..));
        loop {
            if is_greeting(&self.state.borrow()) {
                let greeted = self.reaches(|state| !is_greeting(state));
                let is_late = tokio::time::timeout_at(until, greeted).await.is_err();
                if is_late || patience == Patience::OneTry {
                    return self.current();
                }
            }

            match self.standing_at_once(patience) {
                // The keeper is about to say so, once it gets the thread: with this one the caller would ask again at once.
                Some(Ok(connection)) if !connection.is_open() => {}
                Some(outcome) => return outcome,
                None => {}
            }

            let outcome = self.wait(patience, until).await;
            if !is_greeting(&self.state.borrow()) || until <= Instant::now() {
                return outcome;
            }
        }
    }

    /// Waits for a connection that stands, later than this one; `None`: there is none by then.
    pub(super) async fn next_standing(&self, earlier: ConnectionId, until: Instant) -> Option<Connection> {
        let mut states = self.state.subscribe();
        self.wanted.notify_one();
        let is_later = |connection: &Connection| earlier < connection.id() && connection.is_open();
        let settled = states.wait_for(|state| match state {
            State::Up(connection) => is_later(connection),
            State::Ended(_) => true,
            State::Down(_) | State::Greeting(..) => false,
        });
        match &*tokio::time::timeout_at(until, settled).await.ok()?.ok()? {
            State::Up(connection) => Some(connection.clone()),
            State::Down(_) | State::Greeting(..) | State::Ended(_) => None,
        }
    }

    pub(super) fn returned(&self) -> &Returned {
        &self.returned
    }

    /// The server that is there does not take part in the negotiation that this client wants.
    pub(super) fn is_at_plain_server(&self) -> bool {
        self.options.negotiates() && self.current().is_ok_and(|connection| !connection.is_negotiated())
    }

    /// What a call gets, after waiting for it until this moment: a connection that is open, unless it is over by the
    /// time the call gets it.
    pub(super) async fn wait(&self, patience: Patience, until: Instant) -> Result<Connection, ConnectError> {
        let counter = match patience {
            Patience::Connection => &self.refusals,
            Patience::OneTry => &self.failures,
        };
        let before = counter.load(Ordering::Acquire);
        let mut states = self.state.subscribe();
        self.wanted.notify_one();
        let settled = states.wait_for(|state| state.is_settled() || before < counter.load(Ordering::Acquire));
        // In time or not: what there is by then. The sender is not gone while `self` is borrowed.
        let _ = tokio::time::timeout_at(until, settled).await;
        self.current()
    }

    /// The outcome of the first try, or the first connection if the options say so. A server that asks to come again
    /// later is waited for.
    pub(super) async fn first_connection(&self) -> Result<Connection, ConnectError> {
        let mut states = self.state.subscribe();
        let is_over = |state: &State| match state {
            State::Up(_) | State::Ended(_) => true,
            State::Down(Why::Failed(_)) => !self.options.retries_first_connect(),
            State::Down(Why::New | Why::Lost(_)) | State::Greeting(..) => false,
        };
        match states.wait_for(is_over).await {
            // What becomes of it later is told by events.
            Ok(state) => match &*state {
                State::Up(connection) => Ok(connection.clone()),
                state => state.connection(&self.address),
            },
            Err(_) => Err(ConnectError::Closed),
        }
    }

    /// Ends the connection for good. `leaves`: and the session, if the server can be told.
    pub(super) fn close(&self, leaves: bool) {
        self.end_with(ConnectError::Closed, leaves);
    }

    /// Ends the connection for good, for this reason unless it had ended before.
    fn end(&self, error: ConnectError) {
        self.end_with(error, false);
    }

    fn end_with(&self, error: ConnectError, leaves: bool) {
        let mut ended = None;
        self.state.send_if_modified(|state| match state {
            State::Ended(_) => false,
            State::Up(_) | State::Greeting(..) | State::Down(_) => {
                ended = Some(std::mem::replace(state, State::Ended(error)));
                true
            }
        });

        let (has_ended, stood) = (ended.is_some(), matches!(ended, Some(State::Up(_))));
        let mut has_left = false;
        let is_greeted = matches!(ended, Some(State::Greeting(..)));
        if let Some(State::Up(connection) | State::Greeting(connection, _)) = ended {
            let acks = if leaves { self.memory.leave(connection.id()) } else { None };
            has_left = acks.is_some();
            match acks {
                Some(acks) => connection.close_leaving(&acks),
                None if is_greeted && self.is_only_greeted() => connection.cut(),
                None => connection.close(),
            }
        }

        // Tasks that wait for the end of a stream are woken outside of the lock.
        let receivers = self.receivers.lock().take();
        if let Some(receivers) = &receivers
            && has_ended
            && self.is_unlisted.load(Ordering::Acquire)
        {
            self.tell_unlisted(&receivers.events, stood, has_left);
        }
        drop(receivers);
    }

    /// Only a Hello goes over a connection that does not stand: no end waits until its server has read that.
    fn is_only_greeted(&self) -> bool {
        self.options.negotiates() && !self.options.wait().is_zero()
    }

    /// A client with others to call, and that leaves this one, has lost what it had there.
    fn tell_unlisted(&self, events: &EventSender, stood: bool, has_left: bool) {
        let server: Arc<str> = self.address.to_string().into();
        if stood {
            events.tell(&ConnectionEvent::Lost { server: Arc::clone(&server), reason: CloseReason::Local });
        }
        // While it was away the server could not be told, and nobody comes back to that session.
        if has_left || self.memory.lose() {
            events.tell(&ConnectionEvent::SessionLost { server, why: SessionLost::Unlisted });
        }
    }

    /// Its server has left the list, or is on it again: if it has left when the last clone of the client is gone, that is
    /// told.
    pub(super) fn note_unlisted(&self, is_unlisted: bool) {
        self.is_unlisted.store(is_unlisted, Ordering::Release);
    }

    /// All that a caller with other servers to ask wants to know before a call, at one look. It is down if the last try
    /// failed, or the connection is lost or about to be.
    #[inline]
    pub(super) fn look(&self) -> Look {
        let state = self.state.borrow();
        let connection = match &*state {
            State::Up(connection) | State::Greeting(connection, _) => Some(connection).filter(|it| it.is_open()),
            State::Down(_) | State::Ended(_) => None,
        };
        let stays_away = self.stays_away_in(&state);
        let is_down = match &*state {
            State::Down(why) | State::Greeting(_, why) => !matches!(why, Why::New),
            State::Up(_) => connection.is_none(),
            State::Ended(_) => stays_away,
        };
        let may_be_called = stays_away || !matches!(&*state, State::Ended(_));
        let is_up = matches!(&*state, State::Up(_)) && connection.is_some();
        Look { connection: connection.cloned(), is_up, is_down, may_be_called }
    }

    /// True if calls wait for the next connection, and there may be one.
    pub(super) fn is_waited_for(&self) -> bool {
        !self.options.wait().is_zero() && !self.is_ended()
    }

    /// True if there will be no connection any more.
    pub(super) fn is_ended(&self) -> bool {
        matches!(&*self.state.borrow(), State::Ended(_))
    }

    /// True if it ended for what its server said, and only the application can change: it was sent away, or gave up
    /// after so many refusals. Where the client does not come back by itself anyway, it is asked again like any other.
    pub(super) fn stays_away(&self) -> bool {
        self.stays_away_in(&self.state.borrow())
    }

    fn stays_away_in(&self, state: &State) -> bool {
        match state {
            State::Ended(ConnectError::SentAway { .. }) => true,
            State::Ended(ConnectError::Refused { .. }) => self.options.reconnects(),
            _ => false,
        }
    }

    /// The server has answered the Hello of this connection: it is up, and `tell` says so, and whether one was before
    /// it. Nothing if it was given up meanwhile.
    pub(super) fn stands<R>(&self, connection: &Connection, tell: impl FnOnce(bool) -> R) {
        let turn = self.turn.lock();
        let is_greeted = match &*self.state.borrow() {
            State::Greeting(greeted, _) => greeted == connection,
            State::Down(_) | State::Up(_) | State::Ended(_) => false,
        };
        if !is_greeted {
            return;
        }

        // The event is told before anybody can see the state.
        let readers = tell(self.has_stood.swap(true, Ordering::AcqRel));
        self.change_silently(|state| match state {
            State::Ended(_) => false,
            State::Down(_) | State::Greeting(..) | State::Up(_) => {
                *state = State::Up(connection.clone());
                true
            }
        });

        // Wakers may be an application's own, and look at the client.
        drop(turn);
        self.state.send_modify(|_| {});
        drop(readers);
    }

    #[cfg(test)]
    pub(super) fn turn_is_taken(&self) -> bool {
        self.turn.try_lock().is_none()
    }

    /// Changes the state, and wakes nobody. Returns what `change` does: true if those who wait are to be woken.
    fn change_silently(&self, change: impl FnOnce(&mut State) -> bool) -> bool {
        let mut has_changed = false;
        self.state.send_if_modified(|state| {
            has_changed = change(state);
            false
        });
        has_changed
    }

    /// A connection was made, and its Hello is on its way. False: the link was ended meanwhile.
    fn greet(&self, connection: &Connection) -> bool {
        self.state.send_if_modified(|state| {
            let State::Down(why) = state else { return false };
            *state = State::Greeting(connection.clone(), why.clone());
            true
        })
    }

    /// The connection that is being greeted is no more. False: it stands, or the link has ended.
    fn forget_greeting(&self) -> bool {
        let turn = self.turn.lock();
        let is_forgotten = self.change_silently(|state| {
            let State::Greeting(_, why) = state else { return false };
            *state = State::Down(why.clone());
            true
        });
        drop(turn);
        if is_forgotten {
            self.state.send_modify(|_| {});
        }
        is_forgotten
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

    /// Notes why a try failed, and tells those who wait for its outcome.
    fn note_failure(&self, next: Why) {
        self.failures.fetch_add(1, Ordering::AcqRel);
        let is_refusal = matches!(next, Why::Failed(ConnectError::Refused { .. }));
        if is_refusal {
            self.refusals.fetch_add(1, Ordering::AcqRel);
        }
        self.state.send_modify(|state| {
            if let State::Down(why) = state {
                // A client that was connected asks why it is not any more; a refusal says more than that. One that never
                // was has what its last try came to: a server that asked to come again may be gone.
                let has_stood = self.has_stood.load(Ordering::Acquire);
                let keeps = has_stood && matches!((&*why, &next), (Why::Lost(_), Why::Failed(_))) && !is_refusal;
                if !keeps {
                    *why = next;
                }
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
        self.reaches(|state| matches!(state, State::Ended(_))).await;
    }

    async fn reaches(&self, is_it: impl FnMut(&State) -> bool) {
        let mut states = self.state.subscribe();
        // The sender is here: it is not gone while `self` is borrowed.
        let _ = states.wait_for(is_it).await;
    }

    /// Waits before the next try: a random part of a limit that doubles with each failure in a row (full
    /// jitter). Sooner if a call waits; until the link is ended at most.
    async fn pause(&self, failures: u32, refused: bool) {
        let part = spread(0.0);
        let began = Instant::now();
        let until = |failures| later(began, self.options.backoff_wait(failures, refused, part));
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
            Self::Up(connection) | Self::Greeting(connection, _) => connection.is_open(),
            Self::Ended(_) => true,
            Self::Down(_) => false,
        }
    }

    fn connection(&self, address: &Address) -> Result<Connection, ConnectError> {
        let reconnecting = |lost| ConnectError::Reconnecting { address: address.to_string(), lost };
        match self {
            Self::Up(connection) | Self::Greeting(connection, _) => match connection.end_reason() {
                None => Ok(connection.clone()),
                Some(lost) => Err(reconnecting(lost)),
            },
            Self::Down(Why::New) => Err(ConnectError::Connecting { address: address.to_string() }),
            Self::Down(Why::Lost(reason)) => Err(reconnecting(reason.clone())),
            Self::Down(Why::Failed(error)) | Self::Ended(error) => Err(error.clone()),
        }
    }
}

/// What the keeping task needs beside the link.
#[derive(Clone)]
struct Keeper {
    server: Arc<str>,
    handler: Arc<ClientHandler>,
    settings: Settings,
    events: EventSender,
    /// What the handlers take, as a Hello announces it.
    methods: Option<String>,
}

/// What came of a try to connect.
enum Tried {
    Stands(Connection),
    /// There is no connection, or it ended before its Hello was answered.
    Failed(ConnectError),
    /// The server does not take this client.
    Refused(String),
    /// The server takes it later.
    NotNow(CloseReason),
    /// It does not go there.
    NotThere,
    /// The link has ended.
    Ended,
}

/// How long the next try is waited for.
#[derive(Default)]
struct Backoff {
    /// Tries in a row that failed, and connections that did not live.
    failures: u32,
    /// Refusals in a row.
    refusals: u32,
}

/// The task of a link.
async fn keep(link: &Arc<Link>, keeper: &Keeper) {
    let mut backoff = Backoff::default();
    let (mut leaving, mut named) = (Vec::new(), Named::default());

    while !link.is_ended() {
        let mut not_before = None;
        let tried = match named.next() {
            Target::Home => keeper.attempt(link, None, &mut named).await,
            Target::Other(other) => match keeper.attempt(link, Some(&*other), &mut named).await {
                // Its own address decides whether the client fails, or is refused.
                Tried::Failed(error) => {
                    tracing::debug!(server = &*keeper.server, %other, error = %Said(&error), "not at another address");
                    link.pause(backoff.failures, false).await;
                    backoff.failures = backoff.failures.saturating_add(1);
                    continue;
                }
                Tried::NotThere => continue,
                tried => tried,
            },
        };
        let refused = matches!(tried, Tried::Refused(_));

        match tried {
            Tried::Ended => return,
            Tried::NotThere => {}
            Tried::Stands(connection) => {
                backoff.refusals = 0;
                named.stands();
                let began = Instant::now();
                let Some(reason) = keeper.keep_up(link, &connection).await else { return };
                named.hear_from(&connection);
                if LIVED <= began.elapsed() {
                    backoff.failures = 0;
                }

                not_before = reason.reconnect_after();
                // Its server has said goodbye: what runs on it is still answered.
                if !connection.is_closed() {
                    keeper.let_leave(link, connection, &mut leaving);
                }
            }
            Tried::Failed(error) => {
                tracing::debug!(server = &*keeper.server, error = %Said(&error), "a try to connect failed");
                if !link.options.reconnects() {
                    return keeper.give_up(link, error);
                }
                link.note_failure(Why::Failed(error));
            }
            Tried::Refused(reason) => {
                backoff.refusals = backoff.refusals.saturating_add(1);
                if backoff.refusals == 1 && link.options.can_renew() {
                    // The token may just have run out.
                    continue;
                }
                if !keeper.handle_refusal(link, reason, backoff.refusals) {
                    return;
                }
            }
            Tried::NotNow(reason) => {
                not_before = reason.reconnect_after();
                keeper.tell_lost(&reason);
                if !link.options.reconnects() {
                    return keeper.give_up(link, link.lost_error(reason));
                }
                link.note_failure(Why::Lost(reason));
            }
        }

        if let Some(wait) = not_before {
            link.rest(after(wait)).await;
        }
        link.pause(backoff.failures, refused).await;
        backoff.failures = backoff.failures.saturating_add(1);
    }
}

impl Link {
    fn lost_error(&self, lost: CloseReason) -> ConnectError {
        ConnectError::Lost { address: self.address.to_string(), lost }
    }
}

/// Watches a connection that its server ends, while the next one is made: what runs on it is still answered.
async fn outlive(link: Arc<Link>, keeper: Keeper, connection: Connection) {
    let until = after(LEAVING_TIME);
    let is_told = connection.peer_can(Capabilities::LAST);
    let read_until = if is_told { after(LEAVING_UNREAD) } else { Instant::now() };

    let done = async {
        loop {
            tokio::time::sleep(LEAVING_IDLE).await;
            let now = Instant::now();
            if (!connection.is_busy() && read_until <= now) || until <= now {
                return;
            }
        }
    };
    let ended = async {
        tokio::select! {
            () = link.ended() => {}
            () = done => {}
            _ = connection.closed() => {}
        }
    };

    keeper.watch(&connection, ended).await;
    connection.close();
    keeper.watch(&connection, connection.closed()).await;
}

impl Keeper {
    /// Tries once to connect, and to be let in: at its own address, or at another one that its server has named.
    async fn attempt(&self, link: &Link, other: Option<&str>, named: &mut Named) -> Tried {
        let (transports, options) = (link.options.transports(), link.options.connect());
        let opening = async {
            let Some(other) = other else {
                let token = self.token(link).await?;
                return Ok(Some((token, transports.connect(&link.address, options).await?)));
            };
            // Before anybody is asked for a token that would not be used.
            let goes = named.open(other, &link.address, link.options.others(), transports, options).await;
            let Some((address, options)) = goes else { return Ok(None) };
            let token = self.token(link).await?;
            Ok(Some((token, transports.connect(&address, &options).await?)))
        };
        let (token, socket) = tokio::select! {
            opened = opening => match opened {
                Ok(Some(opened)) => opened,
                Ok(None) => return Tried::NotThere,
                Err(error) => return Tried::Failed(error),
            },
            () = link.ended() => return Tried::Ended,
        };

        let connection = self.start(link, token, socket);
        if link.is_ended() {
            match link.is_only_greeted() {
                true => connection.cut(),
                false => connection.close(),
            }
            self.watch(&connection, connection.closed()).await;
            return Tried::Ended;
        }

        let limit = link.options.connect().timeout();
        let late = self.answer_is_late(&connection, limit);
        let over = async {
            tokio::select! {
                biased;
                reason = connection.leaving() => Some(reason),
                () = link.reaches(|state| !matches!(state, State::Greeting(..))) => None,
                () = late => None,
            }
        };

        let over = self.watch(&connection, over).await;
        // The answer may have come at the last moment: then it stands.
        if !link.forget_greeting() {
            if !link.is_ended() {
                return Tried::Stands(connection);
            }
            self.watch(&connection, connection.closed()).await;
            return Tried::Ended;
        }

        named.hear_from(&connection);
        self.dismiss(connection);
        let address = link.address.to_string();
        if other.is_some() && matches!(over, Some(CloseReason::Unauthenticated(_) | CloseReason::HelloRefused(_))) {
            // Its own address decides whether the client is refused.
            return Tried::Failed(ConnectError::NoAnswer { address, after: limit });
        }
        match over {
            None => Tried::Failed(ConnectError::NoAnswer { address, after: limit }),
            Some(CloseReason::Unauthenticated(text) | CloseReason::HelloRefused(text)) => Tried::Refused(text),
            Some(reason) if reason.reconnect_after().is_some() => Tried::NotNow(reason),
            Some(reason) => Tried::Failed(ConnectError::Unanswered { address, reason }),
        }
    }

    /// The time for the answer to a Hello is over. A server that has calls to answer may do so first: a plain one with a
    /// pool answers all in turn, and its Hello in the meantime lost would be their loss. It has as long as any silent peer.
    async fn answer_is_late(&self, connection: &Connection, limit: Duration) {
        let watch = &self.settings.watch;
        let most = watch.heartbeat_interval.unwrap_or_default().saturating_add(watch.heartbeat_timeout);
        let (began, until) = (Instant::now(), after(limit.max(most)));
        sleep_until(after(limit)).await;
        while connection.waits_for_replies() && Instant::now() < until {
            sleep_until(until.min(Instant::now() + watch.tick())).await;
        }
        tracing::debug!(server = &*self.server, waited = ?began.elapsed(), "the Hello is not answered");
    }

    /// The token of the next connection.
    async fn token(&self, link: &Link) -> Result<Option<Arc<str>>, ConnectError> {
        let ask = match link.options.credentials_kind() {
            Credentials::None => return Ok(None),
            Credentials::Token(token) => return Ok(Some(Arc::clone(token))),
            Credentials::Asked(ask) => Arc::clone(ask),
        };
        // In a task of its own, so that its panic ends no client.
        let mut asking = JoinSet::new();
        asking.spawn(async move { ask().await });
        let limit = link.options.connect().timeout();
        let why = match tokio::time::timeout(limit, asking.join_next()).await {
            Ok(Some(Ok(token))) => return Ok(Some(token.into())),
            Ok(_) => "the function that was asked for them panicked".to_owned(),
            Err(_) => format!("not within {limit:?} (`connect_timeout`)"),
        };
        Err(ConnectError::Credentials { address: link.address.to_string(), why })
    }

    fn start(&self, link: &Link, token: Option<Arc<str>>, socket: AnySocket) -> Connection {
        let hello = link.options.negotiates().then(|| {
            let mut hello = self.handler.memory.hello();
            if let Some(token) = &token {
                hello.insert(keys::AUTH, &**token);
            }
            if let Some(methods) = &self.methods {
                hello.insert(keys::METHODS, methods);
            }
            if let Some(device) = link.options.device_name() {
                hello.insert(keys::DEVICE, device);
            }
            hello
        });

        let settings = Arc::new(Settings { token, ..self.settings.clone() });
        let handler: Arc<dyn ConnectionHandler> = Arc::clone(&self.handler) as _;
        Connection::start(Role::Client, socket, settings, handler, hello, |connection| {
            if link.greet(connection) && !link.options.negotiates() {
                // No Welcome will come: each connection is a session of its own.
                self.handler.stands(connection);
                self.handler.resubscriber.begin(connection, false);
            }
        })
    }

    /// Watches a connection that stands until it is lost. `None`: the link is over.
    async fn keep_up(&self, link: &Link, connection: &Connection) -> Option<CloseReason> {
        let reconnects = link.options.reconnects();
        // Without a next one, this one is of use until it is closed.
        let reason = match reconnects {
            true => self.watch(connection, connection.leaving()).await,
            false => self.watch(connection, connection.closed()).await,
        };

        if !link.enter(State::Down(Why::Lost(reason.clone()))) {
            return None;
        }
        self.tell_lost(&reason);

        if let Some(why) = reason.sent_away() {
            self.say_farewell(link, connection, reason, why).await;
            return None;
        }
        if !reconnects {
            self.give_up(link, link.lost_error(reason));
            return None;
        }
        Some(reason)
    }

    fn tell_lost(&self, reason: &CloseReason) {
        self.events.tell(&ConnectionEvent::Lost { server: Arc::clone(&self.server), reason: reason.clone() });
    }

    /// True if there is to be another try.
    fn handle_refusal(&self, link: &Link, reason: String, refusals: u32) -> bool {
        let server = Arc::clone(&self.server);
        self.events.tell(&ConnectionEvent::Refused { server, reason: reason.clone() });
        let error = ConnectError::Refused { address: link.address.to_string(), reason };
        if !link.options.reconnects() || link.options.refusals().is_some_and(|max| max <= refusals) {
            self.give_up(link, error);
            return false;
        }
        link.note_failure(Why::Failed(error));
        true
    }

    /// The client does not try any more.
    fn give_up(&self, link: &Link, error: ConnectError) {
        self.events.tell(&ConnectionEvent::GaveUp { server: Arc::clone(&self.server), error: error.clone() });
        link.end(error);
    }

    /// Closes a connection that has not stood, and watches it to its end.
    fn dismiss(&self, connection: Connection) {
        connection.close();
        if !connection.is_closed() {
            let keeper = self.clone();
            tokio::spawn(async move { keeper.watch(&connection, connection.closed()).await });
        }
    }

    /// Its server is about to end this connection. Of those before it the oldest gives way.
    fn let_leave(&self, link: &Arc<Link>, connection: Connection, leaving: &mut Vec<Connection>) {
        leaving.retain(|leaving| !leaving.is_closed());
        while LEAVING_MAX <= leaving.len() {
            leaving.remove(0).close();
        }
        leaving.push(connection.clone());
        tokio::spawn(outlive(Arc::clone(link), self.clone(), connection));
    }

    /// The server has sent this client away, and closes the connection: here it is closed at last.
    async fn say_farewell(&self, link: &Link, connection: &Connection, reason: CloseReason, why: SessionLost) {
        if self.handler.memory.lose() {
            let server = Arc::clone(&self.server);
            self.events.tell(&ConnectionEvent::SessionLost { server, why });
        }
        let closed = self.watch(connection, connection.closed());
        if tokio::time::timeout(FAREWELL, closed).await.is_err() {
            connection.close();
            self.watch(connection, connection.closed()).await;
        }
        let CloseReason::Goodbye { why: reason, .. } = reason else { return };
        self.give_up(link, ConnectError::SentAway { address: link.address.to_string(), why, reason });
    }

    /// Does for a connection what is due, until something has happened.
    async fn watch<T>(&self, connection: &Connection, happened: impl Future<Output = T>) -> T {
        let memory = &self.handler.memory;
        // Kept over the ticks: one that began again with each would never be due if they come quickly.
        let due = memory.due(connection.id());
        tokio::pin!(happened, due);

        let mut ticks = tokio::time::interval(self.settings.watch.tick());
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let sweeper = Sweeper::begin();

        loop {
            tokio::select! {
                outcome = &mut happened => return outcome,
                asked = ticks.tick() => {
                    connection.watch(asked, Instant::now());
                    sweeper.sweep();
                }
                acks = &mut due => {
                    connection.acknowledge(&acks.to_metadata());
                    // What was handled has made room for what waits to be sent.
                    self.handler.resubscriber.room.notify_one();
                    due.set(memory.due(connection.id()));
                }
            }
        }
    }
}
