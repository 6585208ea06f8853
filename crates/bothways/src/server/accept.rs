//! From a listening socket to connections.

use std::{
    io,
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use bothways_proto::Role;
use tokio::{
    runtime::{self, Handle},
    task::AbortHandle,
    time::Instant,
};

use super::{Server, Shared, handler::ServerHandler};
use crate::{
    calm::{Said, tell},
    connection::{Connection, Readers, recycle::Sweeper},
    error::ServeError,
    guard,
    stats::Task,
    transport::{Accepted, AnySocket, BoundListener, Closable, Listener, Opened},
};

/// Connections are looked at for so long before others have their turn. In tests each part has a turn of its own.
const WATCH_TURN: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_micros(250) };

/// So many are looked up under one lock of their table, and looked at before the clock is.
const FOUND_AT_ONCE: usize = 32;

/// A server listens on an address for as long as this is kept, or until it begins to stop; then the address is free for
/// others at once. Connections that it accepted stay.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use bothways::Server;
///
/// let server = Server::builder().build();
/// let listening = server.listen("tcp@127.0.0.1:0").await?;
/// println!("listening on {}", listening.address()); // The port that was free.
/// drop(listening); // New clients find nobody. Those that are connected stay.
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Listening {
    address: String,
    server: Server,
    listener: Closable,
    accepting: AbortHandle,
}

impl Listening {
    pub(super) fn new(address: String, server: Server, listener: Closable, accepting: AbortHandle) -> Self {
        Self { address, server, listener, accepting }
    }

    /// Where, in rpcx's form and with the real port, such as `tcp@127.0.0.1:8972`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Waits until the server begins to shut down.
    pub async fn stopped(&self) {
        let mut stopping = self.server.shared.stopping.subscribe();
        // The sender lives in the server that is held here.
        let _ = stopping.wait_for(|stopping| *stopping).await;
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.listener.close();
        self.accepting.abort();
    }
}

pub(super) async fn listen(server: &Server, address: &str) -> Result<Listening, ServeError> {
    let shared = &server.shared;
    if shared.is_stopping() {
        return Err(ServeError::ShutDown);
    }
    let address = shared.transports.address(address)?;
    let listener = shared.transports.bind(&address, &shared.listen).await?;
    begin_listening(server, listener)
}

/// As [`listen`], on a socket that listens already.
pub(super) fn listen_on(server: &Server, bound: BoundListener) -> Result<Listening, ServeError> {
    let shared = &server.shared;
    if shared.is_stopping() {
        return Err(ServeError::ShutDown);
    }
    begin_listening(server, Listener::from_bound(bound, &shared.listen)?)
}

fn begin_listening(server: &Server, listener: Listener) -> Result<Listening, ServeError> {
    let shared = &server.shared;
    let local = listener.local_address().to_owned();
    start_watch(shared);
    let listener = Closable::new(listener);
    shared.listeners.keep(&listener, || shared.is_stopping())?;
    let accepting = tokio::spawn(accept_all(Arc::clone(shared), listener.clone()));
    tracing::info!(address = local, "listening");
    Ok(Listening::new(local, server.clone(), listener, accepting.abort_handle()))
}

/// Sockets and tasks belong to a runtime.
pub(super) fn in_a_runtime() -> Result<(), ServeError> {
    Handle::try_current().map(|_| ()).map_err(|_| ServeError::NoRuntime)
}

/// Who keeps the deadlines of all connections. Each runtime in which the server listens has a task for that, and one of
/// these does it: when its runtime ends, the next takes over.
#[derive(Debug, Default)]
pub(super) struct Watching {
    lease: Arc<tokio::sync::Mutex<()>>,
}

/// The task of one runtime. Forgotten when that is gone, for another may have its number.
struct Watcher {
    shared: Weak<Shared>,
    runtime: runtime::Id,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.sessions.runtimes.remove(self.runtime);
        }
    }
}

/// Keeps the deadlines from the first listening on.
pub(super) fn start_watch(shared: &Arc<Shared>) {
    let runtime = Handle::current();
    let id = runtime.id();
    if !shared.sessions.runtimes.add(runtime) {
        return;
    }
    let watcher = Watcher { shared: Arc::downgrade(shared), runtime: id };
    let lease = Arc::clone(&shared.watching.lease);
    shared.settings.wheel.begin();
    tokio::spawn(async move {
        let _lease = lease.lock().await;
        watch_connections(&watcher.shared).await;
    });
}

async fn accept_all(shared: Arc<Shared>, listener: Closable) {
    let handler = Arc::new(ServerHandler(Arc::clone(&shared), Readers::new(Handle::current())));
    let mut stopping = shared.stopping.subscribe();
    let _counted = shared.meters.counted(Task::Listener);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.wait_for(|stopping| *stopping) => return,
        };
        let Some(accepted) = accepted else { return };
        let Some(place) = take_place(&shared) else { continue };
        // A handshake takes the client's time, and a hook the application's: not that of others. All others do without
        // a task, which has room for a handshake, 3 KiB: those of a crowd leave holes between its connections.
        let opened = if shared.hooks.on_connect.is_none() { accepted.open() } else { Err(accepted) };
        match opened {
            Ok(socket) => drop(begin(place, &handler, socket)),
            Err(accepted) => _ = tokio::spawn(take(place, Arc::clone(&handler), accepted)),
        }
    }
}

/// The place of a socket that is not yet a connection, or of one that speaks HTTP. Given back when dropped, also with
/// the runtime of its handshake.
pub(super) struct Place(Arc<Shared>);

#[cfg(feature = "ws")]
impl Place {
    pub(super) fn server(&self) -> &Arc<Shared> {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.handshaking.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The place of one more connection, which [`begin`] gives to it. `None`: it is refused, for there is none.
fn take_place(shared: &Arc<Shared>) -> Option<Place> {
    let open = {
        let connections = shared.connections.lock();
        let open = connections.len() + shared.handshaking.load(Ordering::Relaxed);
        if open < shared.connections_max {
            shared.handshaking.fetch_add(1, Ordering::Relaxed);
        }
        open
    };
    if open < shared.connections_max {
        return Some(Place(Arc::clone(shared)));
    }
    shared.counters.refused.fetch_add(1, Ordering::Relaxed);
    if let Some(left_out) = shared.calm.connections.due() {
        tracing::warn!(open, left_out, "a connection was refused: `connections_max` are open");
    }
    None
}

/// Serves a connection that the application brings.
pub(super) fn take_socket(server: &Server, socket: AnySocket) -> Result<Connection, ServeError> {
    let shared = &server.shared;
    if shared.is_stopping() {
        return Err(ServeError::ShutDown);
    }
    in_a_runtime()?;
    start_watch(shared);
    let Some(place) = take_place(shared) else {
        return Err(ServeError::TooManyConnections { max: shared.connections_max });
    };
    let handler = Arc::new(ServerHandler(Arc::clone(shared), Readers::new(Handle::current())));
    Ok(begin(place, &handler, socket))
}

async fn take(place: Place, handler: Arc<ServerHandler>, accepted: Accepted) {
    let shared = Arc::clone(&place.0);
    let limit = shared.settings.watch.first_frame_timeout;
    let peer = accepted.peer();
    match accepted.finish(limit).await {
        Ok(Opened::Socket(socket)) => drop(begin(place, &handler, socket)),
        #[cfg(feature = "ws")]
        Ok(Opened::Http(front, stream)) => {
            shared.counters.accepted.fetch_add(1, Ordering::Relaxed);
            // Not here: a task has room for a handshake and for this one after the other, but never gives any back.
            drop(tokio::spawn(super::fronts::serve(place, front, stream)));
        }
        // As those do that look whether somebody listens, every few seconds.
        Err(error) if has_left(&error) => tracing::debug!(peer, "a client left before it said anything that counts"),
        Err(error) => {
            drop(place);
            shared.counters.refused.fetch_add(1, Ordering::Relaxed);
            tell!(shared.calm.handshakes, warn, peer, error = %Said(&error), "a handshake failed");
        }
    }
}

/// True if it was the client who ended the handshake.
fn has_left(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};

    matches!(error.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe)
}

fn begin(place: Place, handler: &Arc<ServerHandler>, socket: AnySocket) -> Connection {
    let shared = &Arc::clone(&place.0);
    shared.counters.accepted.fetch_add(1, Ordering::Relaxed);
    let (settings, handler) = (Arc::clone(&shared.settings), Arc::clone(handler));
    let connection = Connection::start(Role::Server, socket, settings, handler, None, |connection| {
        shared.sessions.open();
        let mut connections = shared.connections.lock();
        connections.insert(connection.id(), connection.clone());
        // Under the lock, so that `take_place` counts this client exactly once.
        drop(place);
        drop(connections);

        // Outside the lock: the hook may ask the server for its connections.
        if let Some(hook) = &shared.hooks.on_connect {
            shared.isolated("on_connect", || hook(connection));
        }
    });

    // A shutdown closes the connections that are open by then: this one may be too late.
    if shared.is_stopping() {
        connection.close();
    }
    connection
}

/// Keeps the deadlines of all connections, until the server is gone.
async fn watch_connections(shared: &Weak<Shared>) {
    let tick = match shared.upgrade() {
        Some(shared) => shared.settings.watch.tick(),
        None => Duration::from_secs(1),
    };
    let mut ticks = tokio::time::interval(tick);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let sweeper = Sweeper::begin();

    loop {
        let asked = ticks.tick().await;
        // Held for one round only, so that this task does not keep the server alive.
        let Some(shared) = shared.upgrade() else { return };
        let now = Instant::now();
        shared.settings.wheel.turn(now, tick);
        while watch_some(&shared, asked, now) {
            tokio::task::yield_now().await;
        }

        let at_the_door = shared.door.iter().flat_map(|door| door.connections());
        at_the_door.for_each(|connection| guard::one_of_many(|| connection.watch(asked, now)));
        shared.sessions.start_sweep(now);
        sweeper.sweep();
    }
}

/// Looks at some of the connections whose turn has come. False: there are no more. What is left when this task is dropped
/// with its runtime is the next one's.
fn watch_some(shared: &Shared, asked: Instant, now: Instant) -> bool {
    // By the real clock: what it bounds is the time of a thread.
    let began = std::time::Instant::now();
    let (mut ids, mut found) = (Vec::new(), Vec::new());
    loop {
        let Some(slot) = shared.settings.wheel.take_due(&mut ids, FOUND_AT_ONCE) else { return false };
        {
            let connections = shared.connections.lock();
            // Those that are over are not there any more.
            found.extend(ids.drain(..).filter_map(|id| connections.get(&id).cloned()));
        }
        for connection in found.drain(..) {
            guard::one_of_many(move || connection.watch_in_turn(asked, now, slot));
        }
        if WATCH_TURN <= began.elapsed() {
            return true;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use bothways_proto::{Header, Limits, Metadata, Seq, SerializeType, frame};

    use super::*;
    use crate::{
        ServerLimits,
        connection::ConnectionId,
        transport::{ConnectOptions, Socket, connect},
    };

    /// A plain client that has called and says no more is not looked at any more; one with heartbeats is when the next one
    /// is due.
    #[tokio::test(start_paused = true)]
    async fn who_is_at_rest_is_looked_at_when_something_is_due() {
        let server = Server::builder().build();
        let listening = server.listen("memory@rests").await.expect("the name is free");
        let address = listening.address().parse().expect("it is one");
        let socket = connect(&address, &ConnectOptions::default()).await.expect("it listens");
        let standing = || server.shared.settings.wheel.standing();
        let seconds = |seconds| tokio::time::sleep(Duration::from_secs(seconds));
        seconds(3).await;
        assert_eq!(standing(), (0, 1), "its first frame is due");

        let header = Header::request(Seq::new(1), SerializeType::RAW);
        let asked = frame(header, "No", "Such", &Metadata::new(), b"", &Limits::default()).expect("it is small");
        assert_eq!(socket.try_write(&[IoSlice::new(&asked)]).expect("it is open"), asked.len());
        seconds(30).await;
        assert_eq!((server.stats().connections, standing()), (1, (0, 0)), "nothing is due any more");

        let client =
            crate::Client::connect(listening.address(), crate::ClientOptions::new()).await.expect("it listens");
        client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
        seconds(3).await;
        assert_eq!(standing(), (0, 1), "its heartbeat is due");
        seconds(60).await;
        let (soon, later) = standing();
        assert!((1..=2).contains(&(soon + later)) && server.stats().connections == 2, "{soon} {later}");
    }

    /// However many are due, others have their turn between parts of them.
    #[tokio::test]
    async fn many_are_looked_at_in_parts() {
        let server = Server::builder().build();
        let (shared, now) = (&server.shared, Instant::now());
        shared.settings.wheel.begin();
        for id in 0..=3 * FOUND_AT_ONCE as u64 {
            shared.settings.wheel.note(ConnectionId::new(id));
        }
        shared.settings.wheel.turn(now, Duration::from_secs(1));
        let parts = (0..100).take_while(|_| watch_some(shared, now, now)).count();
        assert_eq!(parts, 4, "of two lists");
    }

    /// A connection that shakes hands has a place as one that is open has.
    #[tokio::test]
    async fn a_place_is_held_until_it_is_given_back() {
        let server = Server::builder().limits(ServerLimits::new().connections_max(2)).build();
        let place = || take_place(&server.shared);
        let (first, second) = (place().expect("two are free"), place().expect("one is free"));
        assert!(place().is_none());
        assert_eq!(
            (server.shared.handshaking.load(Ordering::Relaxed), server.shared.counters.refused.load(Ordering::Relaxed)),
            (2, 1)
        );
        drop(second);
        let again = place().expect("it was given back");
        drop((first, again));
        assert_eq!(server.shared.handshaking.load(Ordering::Relaxed), 0);
    }
}
