//! The door of the admin service: its own address, its token, and the pace at which tokens may be guessed.
//!
//! ```text
//!   listen_admin ──► a connection of its own table ──► the token is right ──► answered
//!                                                  └─► it is wrong: refused, closed, counted, told
//!                                                      and after several of one peer none is looked at for a while
//! ```

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bothways_proto::{Message, Metadata, Rate, Role, TokenBucket, keys};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::Instant,
};

use super::{
    Server, Shared,
    accept::{Listening, start_watch},
    admin,
};
use crate::{
    calm::Calm,
    connection::{Answer, Connection, ConnectionId, Inlet, Load, Settings, deadline},
    error::{AuthError, CloseReason, ServeError},
    handler::Request,
    reply::{BoxFuture, Reply},
    router::{Router, no_route},
    transport::{Accepted, Address, Closable, Listener, Network},
};

/// Connections to the admin address at once: operators and their tools, and nobody else.
const CONNECTIONS_MAX: usize = 64;

/// Bytes of their frames that have begun and not ended, beyond 64 KiB of each; without a token half of it. 16 MiB: two
/// of the largest frames. Clients of the service have their own room, whatever strangers do here.
const PARTIAL_BYTES_MAX: usize = 16 << 20;

/// Their requests that run at once, and the bytes of these.
const REQUESTS_MAX: usize = 1024;
const REQUEST_BYTES_MAX: usize = 64 << 20;

/// Bytes of answers that they do not read.
const OUTGOING_BYTES_MAX: usize = 64 << 20;

/// Wrong tokens of one peer that are looked at: ten at once, and then one a second.
const GUESSES: Rate = Rate::per_second(1).burst(10);

/// Peers whose wrong tokens are counted apart; those beyond share a count.
const PEERS_MAX: usize = 1024;

/// What the admin service is opened with. `Debug` shows no token.
///
/// ```
/// use bothways::{Server, server::AdminOptions};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let server = Server::builder().admin(AdminOptions::token("a long secret")?).build();
/// assert!(AdminOptions::token("").is_err());
/// # drop(server);
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use]
pub struct AdminOptions {
    salt: [u8; 16],
    digest: [u8; 32],
    on_service_addresses: bool,
}

/// An admin token without a character: it would open the admin service to everybody.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the admin token is empty: it would open the admin service to everybody")]
pub struct EmptyAdminToken;

impl AdminOptions {
    /// Opens it to anyone who presents this token, at the addresses of
    /// [`Server::listen_admin`](crate::Server::listen_admin) and nowhere else.
    ///
    /// # Errors
    /// [`EmptyAdminToken`], as of a variable that is not set.
    pub fn token(token: impl AsRef<str>) -> Result<Self, EmptyAdminToken> {
        let token = token.as_ref();
        if token.is_empty() {
            return Err(EmptyAdminToken);
        }
        let salt = rand::random();
        Ok(Self { salt, digest: digest(&salt, token.as_bytes()), on_service_addresses: false })
    }

    /// Opens it at every address of the server too, where each client can try tokens. The server's
    /// [auth](crate::ServerBuilder::auth) hook is not asked for these requests: the admin token alone decides.
    pub fn on_service_addresses(mut self) -> Self {
        self.on_service_addresses = true;
        self
    }

    pub(super) fn is_on_service_addresses(&self) -> bool {
        self.on_service_addresses
    }

    /// Looks at salted digests: how long that takes says nothing of the token.
    fn is(&self, presented: &[u8]) -> bool {
        digest(&self.salt, presented) == self.digest
    }
}

impl std::fmt::Debug for AdminOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminOptions")
            .field("token", &"***")
            .field("on_service_addresses", &self.on_service_addresses)
            .finish()
    }
}

fn digest(salt: &[u8; 16], token: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(salt).chain_update(token).finalize().into()
}

/// Who may use the admin service, and who tried.
pub(super) struct Door {
    options: AdminOptions,
    guesses: Mutex<HashMap<String, TokenBucket>>,
    began: Instant,
    pub(super) refused: AtomicU64,
    told: Calm,
    /// Connections to the admin addresses.
    open: Mutex<HashMap<ConnectionId, Connection>>,
    /// What runs for them, and what they have begun to send.
    pub(super) load: Arc<Load>,
    slots: Arc<Semaphore>,
    /// True once the server is over: until then operators look in, also while it stops.
    over: watch::Sender<bool>,
    /// Closed then.
    listeners: Mutex<Vec<Closable>>,
}

impl Door {
    pub(super) fn new(options: AdminOptions) -> Self {
        let load = Load::new(REQUESTS_MAX).with_bytes(REQUEST_BYTES_MAX, PARTIAL_BYTES_MAX);
        Self {
            options,
            guesses: Mutex::default(),
            began: Instant::now(),
            refused: AtomicU64::new(0),
            told: Calm::default(),
            open: Mutex::default(),
            load: Arc::new(load.with_outgoing(OUTGOING_BYTES_MAX)),
            slots: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            over: watch::Sender::new(false),
            listeners: Mutex::default(),
        }
    }

    pub(super) fn is_on_service_addresses(&self) -> bool {
        self.options.is_on_service_addresses()
    }

    /// Lets in a request with the right token. A wrong one ends its connection.
    pub(super) fn check(&self, connection: &Connection, metadata: &Metadata) -> Result<(), Reply> {
        let peer = group(&connection.peer_address());
        if let Err(wait) = self.may_try(&peer) {
            let seconds = wait.as_secs() + 1;
            let text = format!("too many wrong admin tokens from this address: try again in {seconds} s");
            return Err(self.refuse(&peer, text));
        }
        if self.options.is(metadata.value(keys::ADMIN_TOKEN).unwrap_or_default()) {
            // Where clients of the service connect, the service's own hook is what lets them in.
            let is_ours = self.open.lock().contains_key(&connection.id());
            if is_ours {
                connection.trust();
            }
            return Ok(());
        }
        self.note_wrong(peer.clone());
        Err(self.refuse(&peer, "the admin token is missing or wrong".to_owned()))
    }

    fn refuse(&self, peer: &str, text: String) -> Reply {
        let refused = 1 + self.refused.fetch_add(1, Ordering::Relaxed);
        if let Some(left_out) = self.told.due() {
            tracing::warn!(peer, refused, left_out, why = text, "an admin request was refused");
        }
        Reply::refused_for_good(text)
    }

    /// `Err`: so many wrong tokens came from there that none is looked at for so long.
    fn may_try(&self, peer: &str) -> Result<(), Duration> {
        let guesses = self.guesses.lock();
        let bucket = guesses.get(peer).or_else(|| guesses.get(""));
        bucket.map_or(Ok(()), |bucket| bucket.clone().take(self.began.elapsed(), 1))
    }

    fn note_wrong(&self, peer: String) {
        let now = self.began.elapsed();
        let mut guesses = self.guesses.lock();
        if PEERS_MAX <= guesses.len() && !guesses.contains_key(&peer) {
            // Whoever may guess as often as a stranger is one.
            guesses.retain(|_, bucket| bucket.clone().take(now, GUESSES.burst_max()).is_err());
        }
        let peer = if PEERS_MAX <= guesses.len() && !guesses.contains_key(&peer) { String::new() } else { peer };
        guesses.entry(peer).or_insert_with(|| TokenBucket::new(GUESSES)).charge(now, 1);
    }

    pub(super) fn connections(&self) -> Vec<Connection> {
        self.open.lock().values().cloned().collect()
    }

    /// Listens here until the server is over.
    fn keep_listener(&self, listener: &Closable) -> Result<(), ServeError> {
        let mut listeners = self.listeners.lock();
        listeners.retain(|listener| !listener.is_closed());
        listeners.push(listener.clone());
        drop(listeners);
        if *self.over.borrow() {
            listener.close();
            return Err(ServeError::ShutDown);
        }
        Ok(())
    }

    /// The server is over, and with it its admin service.
    pub(super) fn close(&self) {
        self.over.send_replace(true);
        std::mem::take(&mut *self.listeners.lock()).iter().for_each(Closable::close);
        self.connections().iter().for_each(Connection::close);
    }
}

/// Who counts as one peer: an address without its port, of IPv6 its network, and each other kind of socket by its
/// listener.
fn group(peer: &str) -> String {
    let (network, target) = peer.split_once('@').unwrap_or(("", peer));
    let Some((host, _)) = target.rsplit_once(':') else {
        return target.rsplit_once('#').map_or(target, |(listener, _)| listener).to_owned();
    };
    match host.trim_matches(['[', ']']).parse() {
        Ok(IpAddr::V6(ip)) => match ip.to_ipv4_mapped() {
            Some(ip) => ip.to_string(),
            None => ip.segments()[..4].iter().map(|part| format!("{part:x}:")).collect(),
        },
        Ok(IpAddr::V4(ip)) => ip.to_string(),
        Err(_) => format!("{network}@{target}"),
    }
}

/// The ears of a server at an admin address: the admin service, and nothing else.
struct AdminInlet {
    shared: Arc<Shared>,
    door: Arc<Door>,
    router: Router,
    runtime: Handle,
    /// Those of the service, with a load of their own.
    settings: Arc<Settings>,
}

impl Inlet for AdminInlet {
    fn handle_request(&self, connection: &Connection, message: Message) -> Answer {
        let is_control = message.has_service_path(keys::CONTROL_PATH);
        if is_control && message.header().is_oneway() && connection.is_negotiated() {
            return Answer::Nothing;
        }
        let deadline = match deadline(connection, &message) {
            Ok(deadline) => deadline,
            Err(reply) => return Answer::Ready(reply),
        };
        let request = Request::new(message, connection.clone(), deadline);
        match self.router.find(&request.message) {
            Ok(handler) => Answer::Later(handler.handle(request), deadline),
            Err(why) => Answer::Ready(no_route(&request, why)),
        }
    }

    fn asks_for_token(&self) -> bool {
        true
    }

    /// Whoever has no token gets no further than this.
    fn hello_shows_token(&self) -> bool {
        false
    }

    fn handle_hello(&self, _: &Connection, _: Metadata) -> BoxFuture<Result<(), AuthError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn handle_closed(&self, connection: &Connection, reason: &CloseReason) {
        self.door.open.lock().remove(&connection.id());
        tracing::debug!(connection = %connection.id(), %reason, "an admin connection ended");
    }

    fn runtime(&self) -> Option<&Handle> {
        Some(&self.runtime)
    }
}

/// Listens on an address of the admin service.
pub(super) async fn listen(server: &Server, address: &str) -> Result<Listening, ServeError> {
    let shared = &server.shared;
    let refuse = |why: &str| ServeError::Admin { address: address.to_owned(), why: why.to_owned() };
    let Some(door) = &shared.door else {
        return Err(refuse("the server has no admin token (`ServerBuilder::admin`)"));
    };
    if shared.is_stopping() {
        return Err(ServeError::ShutDown);
    }
    let parsed: Address = address.parse()?;
    if !is_local(&parsed) && !shared.listen.has_tls() {
        return Err(refuse("other machines reach it: the token needs TLS there (`ListenOptions::tls`)"));
    }
    let listener = Listener::bind(&parsed, &shared.listen).await?;
    let local = listener.local_address().to_owned();
    start_watch(shared);
    let router = admin::add_routes(Router::new(), Arc::clone(door), Arc::downgrade(shared));
    let settings = Arc::new(Settings { load: Arc::clone(&door.load), ..Settings::clone(&shared.settings) });
    let listener = Closable::new(listener);
    door.keep_listener(&listener)?;
    let (shared, door, runtime) = (Arc::clone(shared), Arc::clone(door), Handle::current());
    let inlet = AdminInlet { shared, door, router, runtime, settings };
    let accepting = tokio::spawn(accept_all(Arc::new(inlet), listener.clone()));
    tracing::info!(address = local, "listening for operators");
    Ok(Listening::new(local, server.clone(), listener, accepting.abort_handle()))
}

/// True if only programs on this machine can connect.
fn is_local(address: &Address) -> bool {
    match address.network() {
        Network::Unix | Network::Memory => true,
        _ => match address.host() {
            Some("localhost") => true,
            Some(host) => host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()),
            None => false,
        },
    }
}

async fn accept_all(inlet: Arc<AdminInlet>, listener: Closable) {
    let mut over = inlet.door.over.subscribe();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = over.wait_for(|over| *over) => return,
        };
        let Some(accepted) = accepted else { return };
        match Arc::clone(&inlet.door.slots).try_acquire_owned() {
            Ok(slot) => drop(tokio::spawn(take(Arc::clone(&inlet), accepted, slot))),
            Err(_) => {
                if let Some(left_out) = inlet.door.told.due() {
                    tracing::warn!(left_out, "an admin connection was refused: {CONNECTIONS_MAX} are open");
                }
            }
        }
    }
}

/// Serves one connection to its end, which comes soon if no right token does.
async fn take(inlet: Arc<AdminInlet>, accepted: Accepted, _slot: OwnedSemaphorePermit) {
    let shared = &inlet.shared;
    let limit = shared.settings.watch.first_frame_timeout;
    let socket = match accepted.handshake(limit).await {
        Ok(socket) => socket,
        Err(error) => return tracing::debug!(%error, "a handshake at an admin address failed"),
    };
    let door = Arc::clone(&inlet.door);
    let (settings, ears) = (Arc::clone(&inlet.settings), Arc::clone(&inlet) as Arc<dyn Inlet>);
    let connection = Connection::start(Role::Server, socket, settings, ears, None, |connection| {
        door.open.lock().insert(connection.id(), connection.clone());
    });
    if *door.over.borrow() {
        return connection.close();
    }
    if tokio::time::timeout(limit, connection.closed()).await.is_ok() {
        return;
    }
    if !connection.is_trusted() {
        tracing::debug!(connection = %connection.id(), "an admin connection brought no token in time");
        // At once: who does not end its side keeps no place.
        connection.cut();
    }
    connection.closed().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_compared_whole() {
        let options = AdminOptions::token("right").expect("it has characters");
        assert!(options.is(b"right"));
        for wrong in [&b""[..], b"righ", b"right ", b"Right", b"\0right"] {
            assert!(!options.is(wrong), "{wrong:?}");
        }
        assert_eq!(AdminOptions::token("").unwrap_err(), EmptyAdminToken);
    }

    #[test]
    fn only_this_machine_is_local() {
        let local = |text: &str| is_local(&text.parse().expect("an address"));
        assert!(local("127.0.0.1:1") && local("tcp@[::1]:1") && local("localhost:1"));
        assert!(local("memory@x") && local("unix@/run/x"));
        assert!(!local(":1") && !local("0.0.0.0:1") && !local("example.org:1") && !local("[::]:1"));
    }

    /// Another port, or another address of the same IPv6 network, is the same peer.
    #[test]
    fn a_peer_is_a_host_or_a_network() {
        for (one, other, is_same) in [
            ("tcp@10.0.0.1:1", "tcp@10.0.0.1:2", true),
            ("tcp@10.0.0.1:1", "tls@[::ffff:10.0.0.1]:2", true),
            ("tcp@10.0.0.1:1", "tcp@10.0.0.2:1", false),
            ("tcp@[2001:db8:1:2::1]:1", "tcp@[2001:db8:1:2:3::9]:7", true),
            ("tcp@[2001:db8:1:2::1]:1", "tcp@[2001:db8:1:3::1]:1", false),
            ("unix@/run/a#1", "unix@/run/a#2", true),
            ("memory@a#1", "memory@b#1", false),
        ] {
            assert_eq!(group(one) == group(other), is_same, "{one} {other}");
        }
    }

    /// Ten wrong ones are looked at, then one a second; others are not held up, and the table has a bound.
    #[tokio::test(start_paused = true)]
    async fn guesses_have_a_pace_for_each_peer() {
        let door = Door::new(AdminOptions::token("right").expect("it has characters"));
        for _ in 0..10 {
            assert_eq!(door.may_try("a"), Ok(()));
            door.note_wrong("a".to_owned());
        }
        assert_eq!(door.may_try("a"), Err(Duration::from_secs(1)));
        assert_eq!(door.may_try("b"), Ok(()));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(door.may_try("a"), Ok(()));
        for peer in 0..2 * PEERS_MAX {
            for _ in 0..3 {
                door.note_wrong(peer.to_string());
            }
        }
        assert!(door.guesses.lock().len() <= PEERS_MAX + 1);
        assert!(door.may_try("a stranger").is_err(), "those who have no count of their own share one");
        tokio::time::advance(Duration::from_secs(3600)).await;
        door.note_wrong("c".to_owned());
        assert!(door.guesses.lock().len() <= 2, "what is paid off is forgotten");
    }

    #[test]
    fn an_admin_service_is_on_service_addresses_if_it_says_so() {
        let options = || AdminOptions::token("right").expect("it has characters");
        assert!(!Door::new(options()).is_on_service_addresses());
        assert!(Door::new(options().on_service_addresses()).is_on_service_addresses());
        let shown = format!("{:?}", options());
        assert_eq!(shown, "AdminOptions { token: \"***\", on_service_addresses: false }");
    }
}
