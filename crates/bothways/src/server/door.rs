//! Access to the admin service: its address, its token, and the rate at which tokens may be tried.
//!
//! ```text
//!   listen_admin ──► a stranger's place ──► the token is right ──► answered; the place is free again
//!                                       └─► it is wrong: refused, closed, counted, told; after several of one peer
//!                                           later and later
//! ```
//!
//! A right token is let in whatever others guess: it is looked at before anybody waits. A peer that guesses a short token at
//! a pace that no operator has is not looked at for a while, and neither is an operator at the same address then; a token
//! of [`LONG_TOKEN`] characters nobody guesses, at whatever pace.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bothways_proto::{Message, Metadata, Rate, Role, TokenBucket, keys};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::{runtime::Handle, sync::watch, time::Instant};

use super::{
    Server, Shared,
    accept::{Listening, start_watch},
    admin::{self, Audit, Receipts},
    strangers::{Place, Strangers},
};
#[cfg(feature = "ws")]
use crate::{
    calm::tell,
    guard::Guarded,
    transport::{HttpFront, HttpStream, ws::WsOrigins},
};
use crate::{
    calm::{Calm, Said},
    connection::{Answer, Connection, ConnectionHandler, ConnectionId, Load, Readers, Settings, deadline},
    error::{AuthError, CloseReason, ErrorCode, ServeError},
    handler::Request,
    peer,
    reply::{BoxFuture, Reply},
    router::{Router, no_route},
    transport::{Accepted, Address, Closable, ListenOptions, Listeners, Opened},
};

/// Connections that have shown the token: operators and their tools. Strangers have places of their own.
const OPERATORS_MAX: usize = 64;

/// Bytes of their frames that have begun and not ended, beyond 64 KiB of each; without a token half of it. 16 MiB: two
/// of the largest frames. Clients of the service have their own room, whatever strangers do here.
const PARTIAL_BYTES_MAX: usize = 16 << 20;

/// Their requests that run at once, and the bytes of these.
const REQUESTS_MAX: usize = 1024;
const REQUEST_BYTES_MAX: usize = 64 << 20;

/// Bytes of answers that they do not read.
const OUTGOING_BYTES_MAX: usize = 64 << 20;

/// Wrong tokens of one peer that are answered at once: ten, and then one a second.
const GUESSES: Rate = Rate::per_second(1).burst(10);

/// Those beyond are answered so much later at most, until all of them are one a second. Of a peer that guesses on
/// meanwhile no token is looked at, unless it would be a long one.
const LATE_MAX: Duration = Duration::from_secs(4);

/// A token of so many bytes is not guessed at any pace: each is looked at.
const LONG_TOKEN: usize = 32;

/// Peers whose wrong tokens are counted apart; those beyond share a count.
const PEERS_MAX: usize = 1024;

/// What an operator may do, each of these more than the one before.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum AdminRole {
    /// List, explain, watch.
    Look,
    /// Push as well.
    Push,
    /// Send clients away as well, and drain the server.
    Kick,
}

impl AdminRole {
    /// Its name: `look`, `push` or `kick`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Look => "look",
            Self::Push => "push",
            Self::Kick => "kick",
        }
    }
}

/// Who has a token, and what it allows.
#[derive(Debug)]
pub(super) struct Operator {
    pub(super) name: Arc<str>,
    pub(super) role: AdminRole,
    digest: [u8; 32],
}

/// The tokens of the admin service, and where it answers. `Debug` shows no token.
///
/// ```
/// use bothways::{Server, server::AdminOptions};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let server = Server::builder().admin(AdminOptions::token("a long secret")?).build();
/// assert!(AdminOptions::token("").is_err());
/// # drop(server);
///
/// // One for each operator: the audit has their names.
/// use bothways::server::AdminRole;
/// let options = AdminOptions::operator("ann", AdminRole::Kick, "a long secret")?
///     .and_operator("wallboard", AdminRole::Look, "another secret")?;
/// # drop(options);
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use]
pub struct AdminOptions {
    salt: [u8; 16],
    operators: Vec<Arc<Operator>>,
    /// All tokens are.
    is_long: bool,
    on_service_addresses: bool,
    /// What serves HTTP there.
    #[cfg(feature = "ws")]
    page: Option<Page>,
    /// Names by which operators' browsers may reach it.
    #[cfg(feature = "ws")]
    page_hosts: Vec<String>,
}

#[cfg(feature = "ws")]
#[derive(Clone)]
struct Page(Arc<dyn HttpFront>);

/// An admin token without a character: it would open the admin service to everybody.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the admin token is empty: it would open the admin service to everybody")]
pub struct EmptyAdminToken;

impl AdminOptions {
    /// Opens it to anyone who presents this token, at the addresses of
    /// [`Server::listen_admin`](crate::Server::listen_admin) and nowhere else.
    ///
    /// A token of 32 random characters or more is best, as `openssl rand -hex 16` makes one: it cannot be guessed, so
    /// it is checked however many others guess. A shorter one is not checked for some seconds while somebody at the
    /// same address guesses faster than once a second.
    ///
    /// # Errors
    /// [`EmptyAdminToken`]: the token is empty, as from an environment variable that is not set.
    pub fn token(token: impl AsRef<str>) -> Result<Self, EmptyAdminToken> {
        Self::operator("operator", AdminRole::Kick, token)
    }

    /// As [`Self::token`], for an operator of this name, whose token allows so much. The name stands in the audit and in the
    /// log; two operators may have the same.
    ///
    /// # Errors
    /// [`EmptyAdminToken`]: the token is empty.
    pub fn operator(name: &str, role: AdminRole, token: impl AsRef<str>) -> Result<Self, EmptyAdminToken> {
        let none = Self {
            salt: rand::random(),
            operators: Vec::new(),
            is_long: true,
            on_service_addresses: false,
            #[cfg(feature = "ws")]
            page: None,
            #[cfg(feature = "ws")]
            page_hosts: Vec::new(),
        };
        none.and_operator(name, role, token)
    }

    /// One more operator. Of two with the same token the first is meant.
    ///
    /// # Errors
    /// [`EmptyAdminToken`]: the token is empty.
    pub fn and_operator(
        mut self,
        name: &str,
        role: AdminRole,
        token: impl AsRef<str>,
    ) -> Result<Self, EmptyAdminToken> {
        let token = token.as_ref();
        if token.is_empty() {
            return Err(EmptyAdminToken);
        }
        self.is_long &= LONG_TOKEN <= token.len();
        let digest = digest(&self.salt, token.as_bytes());
        self.operators.push(Arc::new(Operator { name: name.into(), role, digest }));
        Ok(self)
    }

    /// Opens it at every address of the server too, where each client can try tokens. The server's
    /// [auth](crate::ServerBuilder::auth) hook is not asked for these requests: the admin token alone decides.
    pub fn on_service_addresses(mut self) -> Self {
        self.on_service_addresses = true;
        self
    }

    /// Serves HTTP at the addresses of the admin service, on `tcp` and `tls`: for a page that talks to it by WebSocket. The
    /// crate `bothways-http` has one. Such a connection has the place, and the time, of a stranger.
    #[cfg(feature = "ws")]
    pub fn page(mut self, front: impl HttpFront) -> Self {
        self.page = Some(Page(Arc::new(front)));
        self
    }

    /// Takes WebSocket connections of pages that reached the server by this name. By an IP address and as `localhost`
    /// they are taken without: no site of the web can have these for its own name.
    #[cfg(feature = "ws")]
    pub fn page_host(mut self, name: impl AsRef<str>) -> Self {
        self.page_hosts.push(name.as_ref().to_ascii_lowercase());
        self
    }

    pub(super) fn is_on_service_addresses(&self) -> bool {
        self.on_service_addresses
    }

    /// As the server's addresses, and for HTTP with what is served here and nothing of theirs.
    fn listen_options(&self, of_server: &ListenOptions) -> ListenOptions {
        let options = of_server.without_front();
        #[cfg(feature = "ws")]
        let options = match &self.page {
            Some(Page(front)) => {
                let origins = self.page_hosts.iter().fold(WsOrigins::same_address(), WsOrigins::and_host);
                options.http_shared(Arc::clone(front)).ws_origins(origins)
            }
            None => options,
        };
        options
    }

    /// Whose token it is. Looks at salted digests: how long that takes says nothing of the tokens.
    fn whose(&self, presented: &[u8]) -> Option<&Arc<Operator>> {
        let digest = digest(&self.salt, presented);
        self.operators.iter().find(|operator| operator.digest == digest)
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

/// The token that is presented: a tool names it as that of an operator; a client of any kind, as the admin page's, has a
/// place for one token that goes with each request.
fn token(metadata: &Metadata) -> &[u8] {
    let named = metadata.value(keys::ADMIN_TOKEN);
    named.or_else(|| metadata.value(keys::AUTH)).unwrap_or_default()
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
    /// Connections to the admin addresses, and the places that they had as strangers.
    open: Mutex<HashMap<ConnectionId, (Connection, u64)>>,
    /// Connections, to whatever address, that have shown the right token.
    shown: Mutex<HashSet<ConnectionId>>,
    strangers: Strangers,
    /// What runs for them, and what they have begun to send.
    pub(super) load: Arc<Load>,
    /// True once the server is over: until then operators look in, also while it stops.
    over: watch::Sender<bool>,
    /// Closed then.
    listeners: Listeners,
    pub(super) audit: Audit,
    pub(super) receipts: Receipts,
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
            shown: Mutex::default(),
            strangers: Strangers::default(),
            load: Arc::new(load.with_outgoing(OUTGOING_BYTES_MAX)),
            over: watch::Sender::new(false),
            listeners: Listeners::default(),
            audit: Audit::default(),
            receipts: Receipts::default(),
        }
    }

    pub(super) fn is_on_service_addresses(&self) -> bool {
        self.options.is_on_service_addresses()
    }

    /// Lets in a request with the right token. A wrong one ends its connection, and is answered late after several.
    pub(super) async fn check(&self, connection: &Connection, metadata: &Metadata) -> Result<Arc<Operator>, Reply> {
        let peer = peer::group(&connection.peer_address());
        // An operator who has shown the token has nothing to guess.
        let has_shown = self.shown.lock().contains(&connection.id());
        if !has_shown && let Err(wait) = self.may_try(&peer) {
            let seconds = wait.as_secs() + 1;
            let text = format!("too many wrong admin tokens from this address: try again in {seconds} s");
            return Err(self.refuse(&peer, text));
        }
        if let Some(operator) = self.options.whose(token(metadata)) {
            return self.let_in(connection).map(|()| Arc::clone(operator));
        }

        let late = self.note_wrong(peer.clone());
        if !late.is_zero() {
            tokio::time::sleep(late).await;
        }
        Err(self.refuse(&peer, "the admin token is missing or wrong".to_owned()))
    }

    /// This connection has shown the right token: it takes no stranger's place.
    fn let_in(&self, connection: &Connection) -> Result<(), Reply> {
        let id = connection.id();
        // Where clients of the service connect, the service's own hook is what lets them in.
        let place = self.open.lock().get(&id).map(|(_, place)| *place);

        // A block of its own, because `forget` below takes the same lock.
        {
            let mut shown = self.shown.lock();
            let is_known = shown.contains(&id);
            if !is_known && OPERATORS_MAX <= shown.len() && place.is_some() {
                let text = format!("{OPERATORS_MAX} operators are connected");
                return Err(Reply::refused(ErrorCode::Overloaded, text));
            }
            if !is_known && shown.len() < OPERATORS_MAX {
                shown.insert(id);
            }
        }

        if let Some(place) = place {
            connection.trust();
            self.strangers.show(place);
        }
        if connection.is_closed() {
            // Its end may have found nothing to forget.
            self.forget(id);
        }
        Ok(())
    }

    /// A connection is over, to whatever address.
    pub(super) fn forget(&self, id: ConnectionId) {
        self.shown.lock().remove(&id);
    }

    fn refuse(&self, peer: &str, text: String) -> Reply {
        let refused = 1 + self.refused.fetch_add(1, Ordering::Relaxed);
        self.audit.note_refusal("", peer, &text);
        if let Some(left_out) = self.told.due() {
            tracing::warn!(peer, refused, left_out, why = ?Said(&text), "an admin request was refused");
        }
        Reply::refused_for_good(text)
    }

    /// `Err`: so many wrong tokens came from there that none is looked at for so long.
    fn may_try(&self, peer: &str) -> Result<(), Duration> {
        let guesses = self.guesses.lock();
        let bucket = guesses.get(peer).or_else(|| guesses.get(""));
        let debt = bucket.map_or(Duration::ZERO, |bucket| bucket.clone().charge(self.began.elapsed(), 0));
        if debt < LATE_MAX || self.options.is_long { Ok(()) } else { Err(debt - LATE_MAX) }
    }

    /// Counts a wrong token. How much later it is answered.
    fn note_wrong(&self, peer: String) -> Duration {
        let now = self.began.elapsed();
        let mut guesses = self.guesses.lock();
        if PEERS_MAX <= guesses.len() && !guesses.contains_key(&peer) {
            // A peer that may guess as often as a stranger is one.
            guesses.retain(|_, bucket| bucket.clone().take(now, GUESSES.burst_max()).is_err());
        }
        let peer = if PEERS_MAX <= guesses.len() && !guesses.contains_key(&peer) { String::new() } else { peer };
        let bucket = guesses.entry(peer).or_insert_with(|| TokenBucket::new(GUESSES));
        match bucket.charge(now, 0) {
            debt if debt < LATE_MAX => bucket.charge(now, 1).min(LATE_MAX),
            _ => LATE_MAX,
        }
    }

    /// Since the server was built.
    pub(super) fn up(&self) -> Duration {
        self.began.elapsed()
    }

    pub(super) fn connections(&self) -> Vec<Connection> {
        self.open.lock().values().map(|(connection, _)| connection.clone()).collect()
    }

    /// The server is over, and with it its admin service.
    pub(super) fn close(&self) {
        self.over.send_replace(true);
        self.listeners.close();
        self.connections().iter().for_each(Connection::close);
    }
}

/// What an admin address does with what clients send: the admin service, and nothing else.
struct AdminHandler {
    shared: Arc<Shared>,
    door: Arc<Door>,
    router: Router,
    readers: Arc<Readers>,
    /// Those of the service, with a load of their own.
    settings: Arc<Settings>,
}

impl ConnectionHandler for AdminHandler {
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

    /// A peer without the token gets no further than this.
    fn hello_shows_token(&self) -> bool {
        false
    }

    fn handle_hello(&self, _: &Connection, _: Metadata) -> BoxFuture<Result<(), AuthError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn handle_closed(&self, connection: &Connection, reason: &CloseReason) {
        self.door.open.lock().remove(&connection.id());
        self.door.forget(connection.id());
        tracing::debug!(connection = %connection.id(), reason = %Said(reason), "an admin connection ended");
    }

    fn readers(&self) -> Option<&Arc<Readers>> {
        Some(&self.readers)
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

    let parsed = shared.transports.address(address)?;
    if shared.transports.is_own(&parsed) {
        return Err(refuse("nobody knows who reads along there: the token takes built-in transports only"));
    }
    if !is_local(&parsed) && !shared.listen.has_tls() {
        return Err(refuse("other machines reach it: the token needs TLS there (`ListenOptions::tls`)"));
    }

    let listener = shared.transports.bind(&parsed, &door.options.listen_options(&shared.listen)).await?;
    let local = listener.local_address().to_owned();
    // This may be the server's first address, and its connections have deadlines too.
    start_watch(shared);
    let router = admin::add_routes(Router::new(), Arc::clone(door), Arc::downgrade(shared));
    let settings = Arc::new(Settings { load: Arc::clone(&door.load), ..Settings::clone(&shared.settings) });
    let listener = Closable::new(listener);
    door.listeners.keep(&listener, || *door.over.borrow())?;

    let (shared, door, readers) = (Arc::clone(shared), Arc::clone(door), Readers::new(Handle::current()));
    let handler = AdminHandler { shared, door, router, readers, settings };
    let accepting = tokio::spawn(accept_all(Arc::new(handler), listener.clone()));
    tracing::info!(address = local, "listening for operators");
    Ok(Listening::new(local, server.clone(), listener, accepting.abort_handle()))
}

/// True if only programs on this machine can connect.
fn is_local(address: &Address) -> bool {
    match address.network() {
        "unix" | "memory" => true,
        _ => match address.host() {
            Some("localhost") => true,
            Some(host) => host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()),
            None => false,
        },
    }
}

async fn accept_all(handler: Arc<AdminHandler>, listener: Closable) {
    let mut over = handler.door.over.subscribe();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = over.wait_for(|over| *over) => return,
        };
        let Some(accepted) = accepted else { return };
        let peer = accepted.peer();
        let (place, made_way) = handler.door.strangers.admit(peer::group(&peer));
        if made_way && let Some(left_out) = handler.door.told.due() {
            tracing::warn!(peer, left_out, "too many at an admin address have shown no token: the earliest was cut");
        }
        drop(tokio::spawn(take(Arc::clone(&handler), accepted, place)));
    }
}

/// Serves one connection to its end, which comes soon if no right token does.
async fn take(handler: Arc<AdminHandler>, accepted: Accepted, mut place: Place) {
    let shared = &handler.shared;
    let limit = shared.settings.watch.first_frame_timeout;
    let opened = tokio::select! {
        opened = accepted.finish(limit) => opened,
        _ = place.ended() => return,
    };
    let socket = match opened {
        Ok(Opened::Socket(socket)) => socket,
        #[cfg(feature = "ws")]
        Ok(Opened::Http(front, stream)) => return drop(tokio::spawn(serve_page(handler, front, stream, place))),
        Err(error) => return tracing::debug!(error = %Said(&error), "a handshake at an admin address failed"),
    };

    let door = Arc::clone(&handler.door);
    let (settings, of_connection) = (Arc::clone(&handler.settings), Arc::clone(&handler) as Arc<dyn ConnectionHandler>);
    let connection = Connection::start(Role::Server, socket, settings, of_connection, None, |connection| {
        door.open.lock().insert(connection.id(), (connection.clone(), place.number()));
    });
    // `Door::close` may have looked before this connection was entered.
    if *door.over.borrow() {
        return connection.close();
    }

    let in_time = tokio::time::timeout(limit, async {
        tokio::select! {
            _ = connection.closed() => true,
            has_shown = place.ended() => has_shown,
        }
    });
    if !in_time.await.unwrap_or_else(|_| connection.is_trusted()) {
        tracing::debug!(connection = %connection.id(), "an admin connection brought no token in time");
        // At once: who does not end its side keeps no place.
        connection.cut();
    }
    connection.closed().await;
}

/// Serves what a page is made of, to somebody who has shown no token: not for long.
#[cfg(feature = "ws")]
async fn serve_page(handler: Arc<AdminHandler>, front: Arc<dyn HttpFront>, mut stream: HttpStream, mut place: Place) {
    let (shared, door) = (&handler.shared, &handler.door);
    let mut over = door.over.subscribe();
    // Operators look in also while the server stops.
    stream.belong_to(Arc::clone(shared) as _, door.over.subscribe());
    let peer = stream.peer();
    let serving = match Guarded::begin(|| front.serve(stream)) {
        Ok(serving) => tokio::time::timeout(shared.settings.watch.first_frame_timeout, serving),
        Err(panicked) => {
            return tell!(door.told, error, peer, panic = ?Said(panicked.text()), "the admin page panicked");
        }
    };
    tokio::select! {
        served = serving => {
            if let Ok(Err(panicked)) = served {
                tell!(door.told, error, peer, panic = ?Said(panicked.text()), "the admin page panicked");
            }
        }
        _ = place.ended() => {}
        _ = over.wait_for(|over| *over) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_compared_whole() {
        let options = AdminOptions::token("right").expect("it has characters");
        assert!(options.whose(b"right").is_some());
        for wrong in [&b""[..], b"righ", b"right ", b"Right", b"\0right"] {
            assert!(options.whose(wrong).is_none(), "{wrong:?}");
        }
        assert_eq!(AdminOptions::token("").unwrap_err(), EmptyAdminToken);
        assert_eq!(options.and_operator("", AdminRole::Look, "").unwrap_err(), EmptyAdminToken);
    }

    /// Each token is its operator's, with the role of that one, and a short one among them is one that may be guessed.
    #[test]
    fn each_operator_has_a_token() {
        let long = "0123456789abcdef0123456789abcdef";
        let one = AdminOptions::operator("ann", AdminRole::Kick, long).expect("a token");
        assert!(one.is_long);
        let both = one.and_operator("board", AdminRole::Look, "short").expect("a token");
        let whose = |token: &str| both.whose(token.as_bytes()).map(|operator| (&*operator.name, operator.role));
        assert_eq!(whose(long), Some(("ann", AdminRole::Kick)));
        assert_eq!((whose("short"), whose("")), (Some(("board", AdminRole::Look)), None));
        assert!(!both.is_long);
        assert!(AdminRole::Look < AdminRole::Push && AdminRole::Push < AdminRole::Kick);
        assert_eq!([AdminRole::Look, AdminRole::Push, AdminRole::Kick].map(AdminRole::name), ["look", "push", "kick"]);
    }

    #[test]
    fn only_this_machine_is_local() {
        let local = |text: &str| is_local(&text.parse().expect("an address"));
        assert!(local("127.0.0.1:1") && local("tcp@[::1]:1") && local("localhost:1"));
        assert!(local("memory@x") && local("unix@/run/x"));
        assert!(!local(":1") && !local("0.0.0.0:1") && !local("example.org:1") && !local("[::]:1"));
    }

    /// Ten wrong ones are answered at once, then one a second and up to four late; others are not held up, and the
    /// table has a bound.
    #[tokio::test(start_paused = true)]
    async fn guesses_have_a_pace_for_each_peer() {
        let seconds = Duration::from_secs;
        let door = Door::new(AdminOptions::token("right").expect("it has characters"));
        for _ in 0..10 {
            assert_eq!((door.may_try("a"), door.note_wrong("a".to_owned())), (Ok(()), Duration::ZERO));
        }
        for late in 1..=4 {
            assert_eq!((door.may_try("a"), door.note_wrong("a".to_owned())), (Ok(()), seconds(late)));
        }
        assert!(door.may_try("a").is_err());
        assert_eq!(door.may_try("b"), Ok(()));
        tokio::time::advance(seconds(1)).await;
        assert_eq!((door.may_try("a"), door.note_wrong("a".to_owned())), (Ok(()), seconds(4)));
        assert!(door.may_try("a").is_err(), "one a second");
        for peer in 0..2 * PEERS_MAX {
            for _ in 0..3 {
                door.note_wrong(peer.to_string());
            }
        }
        assert!(door.guesses.lock().len() <= PEERS_MAX + 1);
        assert!(door.may_try("a stranger").is_err(), "those who have no count of their own share one");
        tokio::time::advance(seconds(3600)).await;
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

    /// Nobody guesses it: so each is looked at, and answered late.
    #[tokio::test(start_paused = true)]
    async fn a_long_token_is_always_looked_at() {
        let door = Door::new(AdminOptions::token("0123456789abcdef0123456789abcdef").expect("it has characters"));
        let late: Vec<u64> = (0..1000).map(|_| door.note_wrong("a".to_owned()).as_secs()).collect();
        assert_eq!((late[9], late[10], late[999]), (0, 1, 4));
        assert_eq!(door.may_try("a"), Ok(()));
    }

    /// With so many operators one more is refused, and who was let in before is let in again.
    #[tokio::test(start_paused = true)]
    async fn so_many_operators_have_a_place() {
        use bothways_proto::Role;

        use crate::connection::alone::alone;

        let door = Door::new(AdminOptions::token("right").expect("it has characters"));
        let (connection, _far) = alone(Role::Server);
        let [first, second] = [1, 2].map(|number| ConnectionId::new(u64::MAX - number));
        door.open.lock().insert(connection.id(), (connection.clone(), 0));
        let others = (3..=OPERATORS_MAX as u64).map(|number| ConnectionId::new(u64::MAX - number));
        door.shown.lock().extend(others.chain([first, second]));
        assert!(door.let_in(&connection).is_err());
        door.forget(first);
        for _ in 0..2 {
            assert!(door.let_in(&connection).is_ok());
            assert_eq!(door.shown.lock().len(), OPERATORS_MAX);
        }
    }
}
