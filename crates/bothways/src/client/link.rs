//! Keeps one connection to one server: watches it, and makes it again with back-off.
//!
//! ```text
//!  connecting ──► up ──► lost ──► waiting (0 to base × 2^failures, at random) ──► connecting
//!      │           │      │
//!      └───────────┴──────┴──► closed, by this side, or for good if it must not reconnect
//! ```

use std::{sync::Arc, time::Duration};

use bothways_proto::{Metadata, Role, keys};
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

use super::{
    events::{ConnectionEvent, ConnectionEvents, EventSender},
    inlet::ClientInlet,
    messages::MessageQueue,
    options::ClientOptions,
};
use crate::{
    connection::{Connection, Inlet, Settings},
    error::{CloseReason, ConnectError},
    router::Router,
    transport::{self, Address},
};

pub(super) struct Link {
    address: Address,
    options: ClientOptions,
    state: watch::Sender<State>,
    /// Taken when the link is closed, so that streams of events end.
    events: Mutex<Option<EventSender>>,
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
        events: Option<EventSender>,
    ) -> Arc<Self> {
        let events = events.unwrap_or_default();
        let link = Arc::new(Self {
            address,
            options,
            state: watch::Sender::new(State::Connecting(None)),
            events: Mutex::new(Some(events.clone())),
        });
        let server: Arc<str> = link.address.to_string().into();
        let inlet = Arc::new(ClientInlet {
            server: Arc::clone(&server),
            handlers,
            messages,
            unheard: 0.into(),
            warned: false.into(),
        });
        let settings = link.options.settings();
        tokio::spawn(keep(Arc::clone(&link), Keeper { server, inlet, settings, events }));
        link
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    pub(super) fn options(&self) -> &ClientOptions {
        &self.options
    }

    pub(super) fn events(&self) -> ConnectionEvents {
        self.events.lock().clone().unwrap_or_default().subscribe()
    }

    /// The connection as it is now.
    pub(super) fn current(&self) -> Result<Connection, ConnectError> {
        self.state.borrow().connection(&self.address)
    }

    /// The connection, after waiting for it if it is being made.
    pub(super) async fn connection(&self) -> Result<Connection, ConnectError> {
        {
            let state = self.state.borrow();
            if matches!(&*state, State::Up(_) | State::Ended(_)) || self.options.wait().is_zero() {
                return state.connection(&self.address);
            }
        }
        let mut states = self.state.subscribe();
        let settled = states.wait_for(|state| matches!(state, State::Up(_) | State::Ended(_)));
        match tokio::time::timeout(self.options.wait(), settled).await {
            Ok(Ok(state)) => state.connection(&self.address),
            // Not in time; or the sender is gone, which it cannot be while `self` is borrowed.
            _ => self.current(),
        }
    }

    /// The outcome of the first try.
    pub(super) async fn first_connection(&self) -> Result<Connection, ConnectError> {
        let mut states = self.state.subscribe();
        let settled = states.wait_for(|state| !matches!(state, State::Connecting(None))).await;
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
        self.events.lock().take();
    }

    fn is_ended(&self) -> bool {
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

    /// Waits for this long, or until the link is ended.
    async fn pause(&self, wait: Duration) {
        let mut states = self.state.subscribe();
        let ended = states.wait_for(|state| matches!(state, State::Ended(_)));
        let _ = tokio::time::timeout(wait, ended).await;
    }
}

impl State {
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
struct Keeper {
    server: Arc<str>,
    inlet: Arc<ClientInlet>,
    settings: Arc<Settings>,
    events: EventSender,
}

/// The task of a link.
async fn keep(link: Arc<Link>, keeper: Keeper) {
    let mut failures = 0;
    let mut lost_before = false;
    while !link.is_ended() {
        let socket = match transport::connect(&link.address, link.options.connect()).await {
            Ok(socket) => socket,
            Err(error) => {
                tracing::debug!(server = &*keeper.server, %error, "a try to connect failed");
                let first = matches!(&*link.state.borrow(), State::Connecting(_));
                if !link.options.reconnects() {
                    link.enter(State::Ended(error));
                    return;
                }
                if first {
                    link.enter(State::Connecting(Some(error)));
                }
                wait_before_retry(&link, failures).await;
                failures += 1;
                continue;
            }
        };
        let connection = keeper.connect(&link, socket);
        if !link.enter(State::Up(connection.clone())) {
            connection.close();
            return;
        }
        failures = 0;
        let server = Arc::clone(&keeper.server);
        keeper.events.tell(&match lost_before {
            false => ConnectionEvent::Connected { server },
            true => ConnectionEvent::Restored { server, losses: 1 },
        });
        lost_before = true;

        let began = Instant::now();
        let reason = watch_until_closed(&connection, keeper.settings.watch.tick()).await;
        let refused = matches!(reason, CloseReason::Unauthenticated(_));
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
        keeper.events.tell(&ConnectionEvent::Lost { server: Arc::clone(&keeper.server), reason });
        if refused || !link.options.reconnects() {
            return;
        }
        if began.elapsed() < Duration::from_secs(1) {
            // A server that takes connections and drops them at once is not asked in a tight loop.
            failures = 1;
        }
        wait_before_retry(&link, failures).await;
        failures += 1;
    }
}

impl Keeper {
    fn connect(&self, link: &Link, socket: transport::AnySocket) -> Connection {
        let hello = link.options.negotiates().then(|| match link.options.token() {
            Some(token) => Metadata::new().with(keys::AUTH, token),
            None => Metadata::new(),
        });
        let inlet: Arc<dyn Inlet> = Arc::clone(&self.inlet) as _;
        Connection::start(Role::Client, socket, Arc::clone(&self.settings), inlet, hello, |_| {})
    }
}

/// Full jitter: a random part of a limit that doubles with each failure.
async fn wait_before_retry(link: &Link, failures: u32) {
    link.pause(link.options.backoff_limit(failures).mul_f64(rand::random::<f64>())).await;
}

async fn watch_until_closed(connection: &Connection, tick: Duration) -> CloseReason {
    let closed = connection.closed();
    tokio::pin!(closed);
    let mut ticks = tokio::time::interval(tick);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            reason = &mut closed => return reason,
            _ = ticks.tick() => connection.watch(Instant::now()),
        }
    }
}
