//! Accepts clients, authenticates them, routes their requests, and stops gracefully.
//!
//! | file | what it does |
//! |---|---|
//! | `mod.rs` | [`Server`], the handle: connections, sending, counters |
//! | `builder.rs` | what a server is made of: services, hooks, options |
//! | `options.rs` | options that are numbers, in groups that a program can read from a file |
//! | `accept.rs` | from a listening socket to connections |
//! | `admission.rs` | how many clients come at a time |
//! | `handler.rs` | from a request to its handler: limits, token, route |
//! | `topics.rs` | the service by which clients subscribe |
//! | `home.rs` | what it tells and answers the other nodes of its cluster |
//! | `shutdown.rs`, `silence.rs` | answers what runs, says goodbye, closes |
//! | `control.rs` | the service by which plain rpcx clients ask for more: sessions, acknowledgements, calls |
//! | `admin/` | the service by which an operator's tools look in, push and kick; closed unless a token opens it |
//! | `door.rs` | the addresses of the admin service, its token, and the pace at which tokens may be guessed |
//! | `fronts.rs` | HTTP connections, which a front of the application serves |
//! | `strangers.rs` | the places of those at these addresses who have not shown the token |

mod accept;
mod admin;
mod admission;
mod builder;
mod control;
mod door;
#[cfg(feature = "ws")]
mod fronts;
mod handler;
#[cfg(feature = "cluster")]
mod home;
mod options;
mod shutdown;
mod silence;
mod strangers;
mod topics;

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bothways_proto::{Limits, Metadata, keys};
use parking_lot::Mutex;
use tokio::sync::{Notify, OnceCell, watch};

pub use self::{
    accept::Listening,
    admin::{
        AdminClient, AdminDrain, AdminExplained, AdminKick, AdminKicked, AdminNode, AdminPush, AdminPushOutcome,
        AdminStats, AuditAsked, AuditEntry, ConnectionView, EventView, EventsAsked, EventsListed, LetterNamed,
        LettersAsked, LettersListed, MailboxesAsked, MembersAsked, MembersListed, OperatorView, Page, PushClass,
        PushFailures, PushReceipt, PushTarget, PushUntil, ReceiptAsked, SERVICE_PATH as ADMIN_PATH, SessionPlace,
        SessionView, SessionsAsked, SessionsListed, SilentNode, TOKEN_KEY as ADMIN_TOKEN_KEY, TopicView, TopicsAsked,
        TopicsListed, WrongTarget,
    },
    admission::AdmissionOptions,
    builder::ServerBuilder,
    door::{AdminOptions, AdminRole, EmptyAdminToken},
    handler::AuthRequest,
    options::{OutgoingOptions, ServerLimits, ServerOptions, Timeouts},
    shutdown::ShutdownReport,
};
use self::{admission::Admission, builder::Hooks, door::Door};
pub use crate::session::SessionOptions;
use crate::{
    calm::{Calm, Said, tell},
    codec::IntoBytes,
    connection::{
        Connection, ConnectionId, Sent, Settings,
        in_order::ByConnection,
        send::{FanOut, PushFrame, fan_out},
    },
    error::{CloseReason, PushError, ServeError},
    guard,
    in_turn::Lines,
    router::Router,
    session::{
        Explanation, Mail, Presence, Push, PushCounts, QueueStats, Receipt, Registry, SendError, Session, SessionId,
        Target, User,
    },
    shrink::is_sparse,
    stats::{Counts, Meters},
    transport::{AnySocket, BoundListener, ListenOptions, Listeners, Transports},
};

/// A server: services on one or more addresses, and its clients. A clone is the same server.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use bothways::Server;
///
/// let server = Server::builder()
///     .function("Text", "Upper", |text: String| async move { Ok::<_, String>(text.to_uppercase()) })
///     .build();
/// server.serve("tcp@127.0.0.1:8972").await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    router: Router,
    hooks: Hooks,
    settings: Arc<Settings>,
    listen: ListenOptions,
    transports: Transports,
    connections_max: usize,
    admission: Admission,
    calls_per_user_max: Option<usize>,
    connections: Arc<Mutex<ByConnection<Connection>>>,
    /// Sockets that were accepted and are not yet connections. Changed under the lock of those.
    handshaking: AtomicUsize,
    sessions: Arc<Registry>,
    /// Requests that subscribe and unsubscribe.
    topic_lines: Arc<Lines<topics::Line>>,
    /// Connections that are in that table no more, and whose `on_disconnect` runs. Raised under its lock.
    ending: AtomicUsize,
    /// Woken when the last connection is gone, and its `on_disconnect` done.
    emptied: Notify,
    watching: accept::Watching,
    /// HTTP connections.
    #[cfg(feature = "ws")]
    fronts: fronts::Fronts,
    stopping: watch::Sender<bool>,
    /// Closed when the server begins to stop.
    listeners: Listeners,
    /// It stops client by client: who has not been told goodbye is served.
    draining: AtomicBool,
    stopped: OnceCell<ShutdownReport>,
    /// What it is in its cluster.
    #[cfg(feature = "cluster")]
    node: std::sync::OnceLock<Arc<crate::cluster::Node>>,
    /// For the mailboxes of a cluster.
    #[cfg(feature = "cluster")]
    mailboxes: crate::session::MailboxOptions,
    /// Rings for what other nodes put into mailboxes.
    #[cfg(feature = "cluster")]
    doorbell: std::sync::OnceLock<crate::cluster::Doorbell>,
    /// Somebody joins: one at a time.
    #[cfg(feature = "cluster")]
    joining: tokio::sync::Mutex<()>,
    counters: Counters,
    /// As those of its connections have it.
    meters: Arc<Meters>,
    /// Of the admin service, if there is a token for it.
    door: Option<Arc<Door>>,
    calm: Refusals,
}

#[derive(Debug, Default)]
struct Counters {
    accepted: AtomicU64,
    refused: AtomicU64,
    not_admitted: AtomicU64,
    tokens_refused: AtomicU64,
    no_route: AtomicU64,
}

/// When refusals of each kind were told last.
#[derive(Debug, Default)]
struct Refusals {
    connections: Calm,
    handshakes: Calm,
    admissions: Calm,
    tokens: Calm,
    slow: Calm,
    misbehaved: Calm,
    /// Hooks of the application that panicked.
    hooks: Calm,
}

/// Counters of a server since it was built.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct ServerStats {
    /// Connections that are open.
    pub connections: usize,
    /// HTTP connections that a [front](crate::transport::HttpFront) serves. They are none of `connections`, and have a
    /// place of [`ServerLimits::connections_max`] as those have.
    pub http_connections: usize,
    /// Sessions that live, those whose clients are away among them.
    pub sessions: usize,
    /// Sessions whose clients are away.
    pub sessions_away: usize,
    /// Connections that were ever taken.
    pub connections_accepted: u64,
    /// Connections that were refused because `connections_max` were open, or failed their handshake.
    pub connections_refused: u64,
    /// Clients that were sent away with their first frame because too many came at once, and requests and Hellos of which
    /// the auth hook said that it cannot tell now.
    pub clients_not_admitted: u64,
    /// Requests and Hellos that the auth hook refused.
    pub tokens_refused: u64,
    /// Requests to the admin service that were refused, for a wrong token or too many of them.
    pub admin_requests_refused: u64,
    /// Requests whose handlers run.
    pub calls_running: usize,
    /// Requests, Hellos and frames that were refused because all clients together, or their user or address, had taken
    /// the room of the whole server: [`ServerLimits::calls_max`], [`ServerLimits::request_bytes_max`],
    /// [`ServerLimits::partial_bytes_max`].
    pub overloads: u64,
    /// Bytes that wait for clients to read them, of each what is beyond 64 KiB; see
    /// [`OutgoingOptions::all_bytes_max`].
    pub outgoing_bytes: usize,
    /// Frames that were read.
    pub frames_in: u64,
    /// Bytes that were read, of what is left when TLS is taken off.
    pub bytes_in: u64,
    /// Frames that were given to sockets.
    pub frames_out: u64,
    /// Bytes that sockets took, before TLS is put on.
    pub bytes_out: u64,
    /// Requests that no handler takes.
    pub requests_unrouted: u64,
    /// Replies that were errors: `application` for those of handlers, and each [`ErrorCode`](crate::ErrorCode) by its
    /// name.
    pub errors: Counts,
    /// How the pushes to sessions ended, each once for every session that it was for. What the framework itself sends is
    /// not among them.
    pub pushes: PushCounts,
    /// Messages that were given up and are in no receipt. Pushes without a session: `queue_full` (refused, or the oldest
    /// made room) and `connection_ended` (they waited behind a full socket). `oneway_refused`: requests without a reply
    /// that were not run. `late_reply`: the call was given up before. `reply_lost`: there was no room even for an error in its place.
    pub drops: Counts,
    /// How clients came back that named a session: `resumed`, or why not: `unknown`, `expired`, `gap` (what it was sent is
    /// not kept any more), `revoked`, `kicked`, `ended`, `late` (an earlier attempt of a client that is back already).
    pub resumes: Counts,
    /// Connections that ended, by the [name](CloseReason::name) of why.
    pub closes: Counts,
    /// Tasks that live now: `connection` (those that read; an idle connection has none), `handler` (requests that were not
    /// ready at once) and `listener`.
    pub tasks: Counts,
}

/// A [`Server`] that is not kept by it: for a service that needs the server it belongs to, which keeps the service.
///
/// ```
/// use std::sync::{Arc, OnceLock};
///
/// use bothways::{Server, WeakServer};
///
/// let home = Arc::<OnceLock<WeakServer>>::default();
/// let of_handler = Arc::clone(&home);
/// let server = Server::builder()
///     .function("Clients", "Count", move |(): ()| {
///         let server = of_handler.get().and_then(WeakServer::upgrade);
///         async move { server.map(|server| server.connections().len() as u64).ok_or("it is gone") }
///     })
///     .build();
/// home.set(server.downgrade()).expect("it is set once");
/// ```
#[derive(Clone)]
pub struct WeakServer {
    shared: Weak<Shared>,
}

impl WeakServer {
    /// The server, if a handle or one of its connections still keeps it.
    pub fn upgrade(&self) -> Option<Server> {
        self.shared.upgrade().map(|shared| Server { shared })
    }
}

impl std::fmt::Debug for WeakServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WeakServer")
    }
}

impl crate::Request {
    /// The server that was asked; `None` at a client.
    ///
    /// ```
    /// use bothways::{Reply, Request, Router};
    ///
    /// let count = Router::new().handler("Clients", "Count", |request: Request| async move {
    ///     let server = request.server().expect("it is asked at a server");
    ///     Reply::encode(&(server.connections().len() as u64), request.serialize_type())
    /// });
    /// ```
    pub fn server(&self) -> Option<Server> {
        Some(Server { shared: self.connection().server()? })
    }
}

impl crate::Context {
    /// The server that got the request; `None` at a client. A handler that keeps it beyond the request keeps the
    /// server: that is what [`Server::downgrade`] is for.
    pub fn server(&self) -> Option<Server> {
        self.request().server()
    }
}

#[cfg(feature = "ws")]
impl crate::transport::HttpStream {
    /// The server at whose port it came in; `None` for one of a test. A front keeps it no longer than it serves.
    pub fn server(&self) -> Option<Server> {
        Some(Server { shared: self.owner()?.downcast().ok()? })
    }
}

impl Server {
    /// A handle that does not keep the server. A handler that needs its server has this one: the server keeps its
    /// handlers, and would never be dropped if they kept it.
    pub fn downgrade(&self) -> WeakServer {
        WeakServer { shared: Arc::downgrade(&self.shared) }
    }

    /// Builds a server from services, hooks and options.
    pub fn builder() -> ServerBuilder {
        ServerBuilder::new()
    }

    /// Listens on this address and serves until the server is shut down.
    ///
    /// Dropping the future stops the listening; connections that are open stay.
    ///
    /// # Errors
    /// As [`Self::listen`].
    pub async fn serve(&self, address: &str) -> Result<(), ServeError> {
        let listening = self.listen(address).await?;
        listening.stopped().await;
        Ok(())
    }

    /// Starts to listen on this address, and serves in the background for as long as the answer is kept.
    ///
    /// The runtime in which it is called drives the connections that come in there. Several runtimes may listen
    /// for one server, also on one port ([`ListenOptions::reuse_port`]): the example `per_core` has one for each
    /// core. One of those runtimes keeps the deadlines of all connections; when it ends, another does.
    ///
    /// # Errors
    /// [`ServeError::Address`], [`ServeError::Listen`], [`ServeError::Tls`], [`ServeError::NoRuntime`], or
    /// [`ServeError::ShutDown`] if the server was shut down before.
    pub async fn listen(&self, address: &str) -> Result<Listening, ServeError> {
        accept::listen(self, address).await
    }

    /// As [`Self::listen`], on a socket that listens already: one that systemd or a parent process has passed on, or
    /// that the application bound with options of its own. TLS is spoken there if [`ServerBuilder::listen_options`] has
    /// it. The file of a Unix socket stays when the listening ends.
    ///
    /// ```
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let socket = std::net::TcpListener::bind("127.0.0.1:0")?;
    /// let server = bothways::Server::builder().build();
    /// let listening = server.listen_on(socket)?;
    /// assert!(listening.address().starts_with("tcp@127.0.0.1:"));
    /// # Ok(()) }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(example()).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`ServeError::Listen`] if the system does not take it as one that listens, [`ServeError::NoRuntime`] and
    /// [`ServeError::ShutDown`].
    pub fn listen_on(&self, listener: impl Into<BoundListener>) -> Result<Listening, ServeError> {
        accept::listen_on(self, listener.into())
    }

    /// Serves one connection that the application brings: over a [`Socket`](crate::transport::Socket) of its own kind,
    /// or any stream of tokio's, as [`AnySocket::from_async`](crate::transport::AnySocket::from_async). It is a
    /// connection like those that are accepted, hooks and bounds included; a handshake is the application's business.
    ///
    /// ```
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use bothways::{Client, ClientOptions, Server, transport::AnySocket};
    ///
    /// let (here, there) = tokio::io::duplex(4096);
    /// let server = Server::builder()
    ///     .function("Text", "Upper", |text: String| async move { Ok::<_, String>(text.to_uppercase()) })
    ///     .build();
    /// server.take(AnySocket::from_async(there, "pipe"))?;
    /// let client = Client::over(AnySocket::from_async(here, "pipe"), ClientOptions::new()).await?;
    /// assert_eq!(client.call::<String>("Text", "Upper", "abc").await?, "ABC");
    /// # Ok(()) }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(example()).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`ServeError::ShutDown`], [`ServeError::TooManyConnections`] and [`ServeError::NoRuntime`].
    pub fn take(&self, socket: impl Into<AnySocket>) -> Result<Connection, ServeError> {
        accept::take_socket(self, socket.into())
    }

    /// Opens the [admin service](ServerBuilder::admin) at this address, for as long as the answer is kept. Nothing else
    /// answers there, and clients of the service have no way to it.
    ///
    /// 64 connections at most, each of which has [`Timeouts::first_frame`] to bring the token. One that
    /// brings a wrong token is refused and closed, which is counted ([`ServerStats`]) and told in a warning; after ten
    /// wrong ones a peer has one try a second. Operators are answered until a shutdown or a drain is done.
    ///
    /// # Errors
    /// [`ServeError::Admin`]: the server has no admin token, the address can be reached from other machines and
    /// there is no TLS ([`ListenOptions::tls`]), or its transport is the application's. Otherwise as [`Self::listen`].
    pub async fn listen_admin(&self, address: &str) -> Result<Listening, ServeError> {
        door::listen(self, address).await
    }

    /// All connections that are open, oldest first.
    pub fn connections(&self) -> Vec<Connection> {
        let mut connections: Vec<_> = self.shared.connections.lock().values().cloned().collect();
        connections.sort_by_key(Connection::id);
        connections
    }

    /// The open connection with this id.
    pub fn connection(&self, id: ConnectionId) -> Option<Connection> {
        self.shared.connections.lock().get(&id).cloned()
    }

    /// [`Connection::send_message`], by the name that it has in rpcx.
    ///
    /// # Errors
    /// As [`Connection::send_message`].
    pub fn send_message(
        &self,
        connection: &Connection,
        service_path: &str,
        service_method: &str,
        metadata: &Metadata,
        payload: impl IntoBytes,
    ) -> Result<Sent, PushError> {
        connection.send_message(service_path, service_method, metadata, payload)
    }

    /// Sends a frame to every client that has passed the auth hook, and that it has not refused since.
    pub(crate) fn broadcast(&self, frame: &PushFrame) -> FanOut {
        // Nothing is written, and nobody woken, under the lock of the table.
        let mut connections = self.shared.all_connections();
        connections.retain(Connection::is_trusted);
        if self.shared.hooks.auth.is_some() {
            connections.retain(|connection| !connection.has_refused_token());
        }
        fan_out(&connections, std::slice::from_ref(frame))
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.shared.settings.limits
    }

    /// Pushes to every session that `target` names. The push is encoded once, and no client waits for another.
    ///
    /// When this returns, the push is in the queue of each session, in order: that costs the caller's thread a few locks
    /// for each. For more than 4,096 sessions a task does the writing, and yields to others. If the calling thread has
    /// other work, make a push to very many sessions from [`spawn_blocking`](tokio::task::spawn_blocking).
    ///
    /// The receipt says what becomes of it for each session. A receipt without targets means that no session was named.
    ///
    /// # Errors
    /// [`SendError`]: nobody got it.
    pub fn push(&self, target: &Target, push: &Push) -> Result<Receipt, SendError> {
        let receipt = self.shared.sessions.receipt_of(push);
        self.shared.sessions.push(target, push, &receipt)?;
        Ok(receipt)
    }

    /// Publishes to a topic: pushes to every session that subscribes to it, once to each, and keeps the push if
    /// the topic has a [history](crate::session::TopicOptions::history).
    ///
    /// When this returns, the push is in the queue of each session. Up to 4,096 sessions are written to before it returns,
    /// as by [`Self::push`]; for more, a task of the runtime does it, a millisecond at a time, so that a topic with a
    /// million subscribers holds up nobody. Nothing that is sent to one of them later comes before it. If the server already keeps its maximum of topics,
    /// the subscribers get the push, and it is not kept.
    ///
    /// In a cluster, the nodes share the history of a topic: the push goes into its log, and from there to the subscribers of
    /// all nodes. This returns before that; [`Receipt::stored`] waits for it, and the receipt has the sessions of this
    /// node.
    ///
    /// Clients that use topics see the pair `_bw.t` with the topic, and for a topic with history also `_bw.te` and
    /// `_bw.to`, its epoch and offset. Other clients see the push without these pairs.
    ///
    /// ```
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    ///
    /// use bothways::{Client, ClientOptions, Push, Server, session::TopicOptions};
    ///
    /// let news = TopicOptions::new().open().history(100, Duration::from_secs(3600));
    /// let server = Server::builder().topic("news.*", news)?.build();
    /// let listening = server.listen("memu@news").await?;
    ///
    /// let (client, mut messages) = Client::bidirectional(listening.address(), ClientOptions::new()).await?;
    /// client.subscribe("news.sport").await?;
    /// server.publish("news.sport", &Push::new("News", "say", "2:1"))?;
    /// let message = messages.next().await.ok_or("closed")?;
    /// assert_eq!(message.topic().as_deref(), Some("news.sport"));
    /// # Ok(()) }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(example()).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`SendError`]: nobody got it, and it is not kept.
    pub fn publish(&self, topic: &str, push: &Push) -> Result<Receipt, SendError> {
        let receipt = self.shared.sessions.receipt_of(push);
        self.shared.sessions.publish(topic, push, &receipt)?;
        Ok(receipt)
    }

    /// The mailboxes of durable pushes, for operators; `None`: the server has no [store](ServerBuilder::store).
    pub fn mail(&self) -> Option<Mail> {
        self.shared.sessions.mailboxes().map(|mailboxes| Mail::new(Arc::clone(mailboxes)))
    }

    /// Joins a cluster: from here on, pushes to users, to a session, to subscribers and to everyone go to the clients of
    /// all its nodes, with one receipt ([`Receipt::routing`], [`Receipt::unreached`]). Join before you listen: when it has
    /// joined, the members that answer push to it; those that do not are waited for up to 2 s. A server that has not joined
    /// is alone.
    ///
    /// The runtime in which it is called runs the tasks of the node. A [shutdown](Self::shutdown) leaves the cluster;
    /// without one, the node's lease runs out.
    ///
    /// # Errors
    /// [`JoinError`](crate::cluster::JoinError): it is no member, and serves as before. Dropping the future may leave a lease
    /// that runs out.
    #[cfg(feature = "cluster")]
    pub async fn join(
        &self,
        cluster: crate::cluster::Cluster,
    ) -> Result<crate::cluster::NodeId, crate::cluster::JoinError> {
        use crate::cluster::{JoinError, Node};
        if self.shared.is_stopping() {
            return Err(JoinError::ShutDown);
        }
        let Ok(_joining) = self.shared.joining.try_lock() else { return Err(JoinError::Joined) };
        if self.shared.node.get().is_some() {
            return Err(JoinError::Joined);
        }
        let engine = cluster.engine();
        // First: what the others append from here on rings.
        let keeps_mail = self.shared.sessions.mailboxes().is_none();
        let doorbell = match keeps_mail {
            true => Some(crate::cluster::Doorbell::hang(&engine, &self.shared.sessions).await?),
            false => None,
        };
        let home: Weak<dyn crate::cluster::Home> = Arc::downgrade(&self.shared) as _;
        let node = Node::join(cluster, &self.shared.sessions, home).await?;
        if let Some(doorbell) = doorbell {
            let _ = self.shared.sessions.keep_mail(engine, self.shared.mailboxes.clone());
            let _ = self.shared.doorbell.set(doorbell);
            if let Some(mail) = self.shared.sessions.mailboxes().cloned() {
                tokio::spawn(mail.wake_all());
            }
        }
        let me = node.me().unwrap_or(crate::cluster::NodeId(0));
        let _ = self.shared.sessions.beyond.set(Arc::clone(&node) as _);
        self.shared.sessions.hub.share(Arc::clone(&node) as _);
        node.note_all();
        let _ = self.shared.node.set(node);
        Ok(me)
    }

    /// As [`Self::explain`], at every node of the cluster. A server that has not joined one answers for itself alone, as
    /// node 0. Dropping the future asks nobody further.
    ///
    /// # Errors
    /// As [`Self::sessions`].
    #[cfg(feature = "cluster")]
    pub async fn explain_everywhere(
        &self,
        target: &Target,
    ) -> Result<crate::cluster::Answers<crate::cluster::Explained>, SendError> {
        match self.shared.node.get() {
            Some(node) => Ok(node.explain(target).await?),
            None => {
                let alone = crate::cluster::Explained { sessions: self.explain(target)?, left_out: 0 };
                Ok(crate::cluster::Answers { answers: vec![(crate::cluster::NodeId(0), alone)], silent: Vec::new() })
            }
        }
    }

    /// As [`Self::kick`], at every node of the cluster; each answers how many sessions ended. A server that has not joined
    /// one answers for itself alone, as node 0. Dropping the future leaves it open which nodes have done so.
    ///
    /// Sessions that wait in the store end too: each counts as one of this node's, and its client hears that nobody knows it.
    /// With [`Target::session`] so does one whose node has lost its lease. If the register does not say which there are, or
    /// they take more than 30 s, this node is among the silent ones, as
    /// [`EngineDown`](crate::session::UnreachedWhy::EngineDown). [`Target::subscribers_of`] means the sessions at nodes only.
    ///
    /// # Errors
    /// As [`Self::sessions`].
    #[cfg(feature = "cluster")]
    pub async fn kick_everywhere(
        &self,
        target: &Target,
        why: &str,
    ) -> Result<crate::cluster::Answers<usize>, SendError> {
        match self.shared.node.get() {
            Some(node) => Ok(node.kick(target, why).await?),
            None => {
                let ended = self.kick(target, why)?;
                Ok(crate::cluster::Answers { answers: vec![(crate::cluster::NodeId(0), ended)], silent: Vec::new() })
            }
        }
    }

    /// The node that this server is in its cluster, and the other members as far as it knows them; `None`: it has not
    /// joined, or its lease has just ended.
    #[cfg(feature = "cluster")]
    pub fn nodes(&self) -> Option<(crate::cluster::NodeId, Vec<crate::cluster::NodeId>)> {
        let node = self.shared.node.get()?;
        Some((node.me()?, node.others()))
    }

    /// The nodes of the cluster as they described themselves a second ago, this one first. Empty if the server has not
    /// joined one, and without this one while its lease has just ended.
    #[cfg(feature = "cluster")]
    pub fn members(&self) -> Vec<crate::cluster::NodeView> {
        self.shared.node.get().map(|node| node.views()).unwrap_or_default()
    }

    /// A page of the sessions of all nodes, by user and number; each says at which node it is. A node has 3 s to answer, and
    /// gives 256 sessions at most, so that a page may have fewer than were asked for; the list ends with an empty one. A
    /// server that has not joined a cluster lists its own. [`SessionsAsked::silent`] takes the silent nodes of the page
    /// before: they are not waited for again.
    ///
    /// # Errors
    /// [`WrongTarget`]: no session can be meant. Nodes that do not answer are among
    /// [`SessionsListed::silent`].
    pub async fn sessions_everywhere(&self, asked: &SessionsAsked) -> Result<SessionsListed, WrongTarget> {
        admin::sessions_everywhere(self, asked, None).await
    }

    /// What is under way between the nodes of the cluster. Cheap. `None`: it has not joined one.
    #[cfg(feature = "cluster")]
    pub fn cluster_stats(&self) -> Option<crate::cluster::ClusterStats> {
        self.shared.node.get().map(|node| node.stats())
    }

    /// The members of a topic whose options show [presence](crate::session::TopicOptions::presence); for any other topic
    /// the list is empty.
    ///
    /// # Errors
    /// [`SendError::Topic`]: it is the name of no topic.
    pub fn presence(&self, topic: &str) -> Result<Presence, SendError> {
        Ok(self.shared.sessions.hub.presence(topic)?)
    }

    /// The sessions that `target` names, each once.
    ///
    /// # Errors
    /// [`SendError::Topic`]: the target is a topic, and its name is none.
    pub fn sessions(&self, target: &Target) -> Result<Vec<Session>, SendError> {
        Ok(self.shared.sessions.find(target)?)
    }

    /// The session with this id, if it lives.
    pub fn session(&self, id: SessionId) -> Option<Session> {
        self.shared.sessions.session(id)
    }

    /// The session with this number, at whichever node of the cluster it is: to call it, or to push to it. Nobody is asked
    /// before that.
    #[cfg(feature = "cluster")]
    pub fn session_anywhere(&self, id: SessionId) -> crate::session::SessionAnywhere {
        crate::session::SessionAnywhere::new(Arc::clone(&self.shared.sessions), id)
    }

    /// A user to call or push to, whether that user has a session now or not; in a cluster, with the sessions of all
    /// nodes.
    pub fn user(&self, name: &str) -> User {
        User::new(Arc::clone(&self.shared.sessions), name)
    }

    /// The recent events of the sessions that `target` names, to find out why a message did not arrive: connections,
    /// pushes with their stages, calls, and why a session ended. Never payloads or tokens.
    ///
    /// A user or a session is found for a while after it ended; see [`SessionOptions::ended_max`].
    ///
    /// # Errors
    /// As [`Self::sessions`].
    pub fn explain(&self, target: &Target) -> Result<Vec<Explanation>, SendError> {
        Ok(self.shared.sessions.explain(target)?)
    }

    /// The most memory that the session of one client can take, in bytes, if no push is larger than `push_bytes`: the
    /// sum of the bounds on its queues, its log and its events, and of the overhead of each push.
    /// `docs/slow-clients.md` has the sum term by term.
    pub fn session_bytes_max(&self, push_bytes: usize) -> usize {
        self.shared.sessions.session_bytes_max(push_bytes)
    }

    /// Ends every session that `target` names and sends the clients away; see [`Session::evict`]. Returns how many.
    /// [`Session::end`] ends a session whose client may come back with a new one. The time grows with the number of
    /// sessions. They are not told of each other's leave.
    ///
    /// # Errors
    /// As [`Self::sessions`].
    pub fn kick(&self, target: &Target, why: &str) -> Result<usize, SendError> {
        let sessions = self.shared.sessions.find_all(target)?;
        self.shared.sessions.kick(&sessions, why);
        Ok(sessions.len())
    }

    /// Stops accepting, tells clients, lets running calls finish, and closes, at the latest after `deadline`.
    ///
    /// Bothways clients get a Goodbye, and start no new calls. Their calls that arrive after that are refused as
    /// shutting down. The connection of a plain client ends when its running calls are answered; new calls on it get no
    /// reply, so that Go calls another server. Clients may acknowledge handled pushes for 500 ms, within the deadline;
    /// the receipts of all others say [`Stage::Unknown`](crate::Stage::Unknown). The shutdown waits for the
    /// [`ServerBuilder::on_disconnect`] hooks; for those of connections that are cut at the deadline, up to 500 ms
    /// more. Sessions end with it; in a cluster they are handed over or parked, as by [`Self::drain`]. A second call, or
    /// a drain, waits for the same end and returns the same report; the deadline of the first call counts.
    ///
    /// Both may be called on any thread. If the thread has no runtime, one in which the server listens does the work.
    /// If there is none, nothing can be waited for, and all connections are cut at once, after the
    /// [hooks](ServerBuilder::on_shutdown).
    ///
    /// A handler that stops its server spawns a task for this: one that waits for it waits for its own end, until the
    /// deadline cuts its call.
    pub async fn shutdown(&self, deadline: Duration) -> ShutdownReport {
        let stop = || {
            let shared = Arc::clone(&self.shared);
            shutdown::anywhere(&self.shared, async move { shutdown::shutdown(&shared, deadline).await })
        };
        *self.shared.stopped.get_or_init(stop).await
    }

    /// As [`Self::shutdown`], but client by client, so that the clients come back, to another server or to the next one
    /// at this address, at this rate and not as a crowd. 0 a second counts as 1.
    ///
    /// Accepting stops at once. Then each client has a slot, in random order. In its slot it gets a Goodbye, or, if it
    /// speaks plain rpcx, is just closed. Until then it is served, and its connection ends when its running calls are
    /// answered. If the slots take longer than half of the deadline, clients get the Goodbye earlier and are asked to
    /// wait for their slots. Bothways clients do; plain ones come back at any time.
    ///
    /// In a cluster sessions go on: those whose clients come to another node, within two seconds from their slots on,
    /// are handed over to it, and the others are parked in the store of the cluster, where any node finds them. A
    /// server alone hands nothing over: its sessions end with it, at the latest at the deadline. The report says how
    /// many of each, and how many pushes the clients of those that ended have not handled.
    ///
    /// ```
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    ///
    /// let server = bothways::Server::builder().build();
    /// let listening = server.listen("memu@drained").await?;
    /// let report = server.drain(Duration::from_secs(60), 500).await;
    /// assert_eq!((report.connections_cut, report.calls_unfinished, report.pushes_unhandled), (0, 0, 0));
    /// # Ok(()) }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(example()).unwrap();
    /// ```
    pub async fn drain(&self, deadline: Duration, reconnects_per_second: u32) -> ShutdownReport {
        let drain = || {
            let shared = Arc::clone(&self.shared);
            let drain = async move { shutdown::drain(&shared, deadline, reconnects_per_second).await };
            shutdown::anywhere(&self.shared, drain)
        };
        *self.shared.stopped.get_or_init(drain).await
    }

    /// True once [`Self::shutdown`] or [`Self::drain`] has begun: nobody new comes in. For a readiness check.
    pub fn is_stopping(&self) -> bool {
        self.shared.is_stopping()
    }

    /// Waits until [`Self::is_stopping`]. Dropping the future changes nothing.
    pub async fn stopping(&self) {
        let mut stopping = self.shared.stopping.subscribe();
        // The sender lives in the server that is held here.
        let _ = stopping.wait_for(|stopping| *stopping).await;
    }

    /// Every path and method that is served, sorted, including the framework's own under `_bothways`.
    pub fn routes(&self) -> Vec<(String, String)> {
        self.shared.router.routes()
    }

    /// Counters. Cheap: some hundred numbers are read, however many clients there are.
    pub fn stats(&self) -> ServerStats {
        let shared = &*self.shared;
        let (counters, meters, load) = (&shared.counters, &shared.meters, &shared.settings.load);
        let traffic = meters.traffic();
        ServerStats {
            connections: shared.connections.lock().len(),
            #[cfg(feature = "ws")]
            http_connections: shared.fronts.open(),
            #[cfg(not(feature = "ws"))]
            http_connections: 0,
            sessions: shared.sessions.len(),
            sessions_away: shared.sessions.away(),
            connections_accepted: counters.accepted.load(Ordering::Relaxed),
            connections_refused: counters.refused.load(Ordering::Relaxed),
            clients_not_admitted: counters.not_admitted.load(Ordering::Relaxed),
            tokens_refused: counters.tokens_refused.load(Ordering::Relaxed),
            admin_requests_refused: shared.door.as_ref().map_or(0, |door| door.refused.load(Ordering::Relaxed)),
            calls_running: load.running(),
            overloads: load.refused(),
            outgoing_bytes: load.outgoing().bytes(),
            frames_in: traffic.frames_in,
            bytes_in: traffic.bytes_in,
            frames_out: traffic.frames_out,
            bytes_out: traffic.bytes_out,
            requests_unrouted: counters.no_route.load(Ordering::Relaxed),
            errors: meters.errors(),
            pushes: shared.sessions.pushes(),
            drops: meters.drops(),
            resumes: shared.sessions.resumes(),
            closes: meters.ends(),
            tasks: meters.tasks(),
        }
    }

    /// What waits in the queues of all sessions, and where the sessions stand: for an operator, and for metrics. Each session
    /// is looked at, in parts, so that nobody waits for more than a look at one; the calling thread is busy for about 0.1 µs
    /// for each.
    pub fn queues(&self) -> QueueStats {
        self.shared.sessions.queues()
    }
}

impl Shared {
    /// Tells of the end of a connection: in a warning if the client was closed for what it did.
    fn tell_end(&self, connection: &Connection, reason: &CloseReason) {
        self.meters.count_end(reason);
        let calm = match reason {
            CloseReason::SlowPeer(_) => &self.calm.slow,
            CloseReason::BadFrame(_) | CloseReason::Misbehaved(_) => &self.calm.misbehaved,
            _ => return tracing::debug!(connection = %connection.id(), reason = %Said(reason), "a connection ended"),
        };
        let (connection, peer, reason) = (connection.id(), connection.peer_address(), Said(reason));
        tell!(calm, warn, %connection, peer, %reason, "a connection was closed");
    }

    fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Nobody new comes in from here on, and the addresses are free.
    fn stop_listening(&self) {
        self.stopping.send_replace(true);
        self.listeners.close();
    }

    /// True if this client's calls are not taken any more.
    fn refuses_calls_of(&self, connection: &Connection) -> bool {
        self.is_stopping() && (!self.draining.load(Ordering::Acquire) || connection.takes_no_calls())
    }

    fn all_connections(&self) -> Vec<Connection> {
        self.connections.lock().values().cloned().collect()
    }

    fn forget(&self, connection: &Connection, reason: &CloseReason) {
        let mut connections = self.connections.lock();
        if connections.remove(&connection.id()).is_none() {
            return;
        }
        self.ending.fetch_add(1, Ordering::AcqRel);
        if is_sparse(connections.len(), connections.capacity()) {
            connections.shrink_to_fit();
        }
        drop(connections);
        self.tell_end(connection, reason);
        if let Some(hook) = &self.hooks.on_disconnect {
            self.isolated("on_disconnect", || hook(connection, reason));
        }
        if self.ending.fetch_sub(1, Ordering::AcqRel) == 1 && self.is_emptied() {
            self.emptied.notify_waiters();
        }
    }

    /// Runs a hook of the application: its panic is its own, and ends nothing of ours.
    fn isolated(&self, name: &str, hook: impl FnOnce()) {
        if let Err(panicked) = guard::call(hook) {
            tell!(self.calm.hooks, error, name, panic = ?Said(panicked.text()), "a hook panicked");
        }
    }

    /// True if all connections are gone, and the application has been told so of each.
    fn is_emptied(&self) -> bool {
        let connections = self.connections.lock();
        connections.is_empty() && self.ending.load(Ordering::Acquire) == 0
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// The token of a request or a Hello; empty if there is none, as in Go.
fn token(metadata: &Metadata) -> String {
    metadata.get(keys::AUTH).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use bothways_proto::Role;

    use super::*;
    use crate::{Client, ClientOptions, Reply, Request, connection::alone::alone};

    /// Each kind of bad end has its own line each ten seconds; a common end has none.
    #[tokio::test(start_paused = true)]
    async fn each_kind_of_end_is_told_by_itself() {
        let (connection, _far) = alone(Role::Server);
        let ended = |reason: CloseReason| {
            let server = Server::builder().build();
            server.shared.tell_end(&connection, &reason);
            let calm = &server.shared.calm;
            (calm.slow.due().is_none(), calm.misbehaved.due().is_none())
        };
        assert_eq!(ended(CloseReason::Local), (false, false));
        assert_eq!(ended(CloseReason::SlowPeer("it reads nothing")), (true, false));
        assert_eq!(
            ended(CloseReason::from(bothways_proto::PeerMisbehaved::CallFromPlainServer(
                bothways_proto::Seq::of_push(1)
            ))),
            (false, true)
        );
    }

    /// What happens is counted where it belongs, once, and what is over is counted no more among what is there.
    #[tokio::test(start_paused = true)]
    async fn what_happens_is_counted() {
        let server = Server::builder()
            .function("Math", "Half", |number: i64| async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                if number % 2 == 0 { Ok(number / 2) } else { Err("odd") }
            })
            .build();
        let listening = server.listen("memory@server-counted").await.expect("the name is free");
        let (client, mut messages) =
            Client::bidirectional(listening.address(), ClientOptions::new()).await.expect("it listens");
        assert_eq!(client.call::<i64>("Math", "Half", &4).await.expect("it is even"), 2);
        client.call::<i64>("Math", "Half", &3).await.expect_err("it is odd");
        client.call::<i64>("Math", "Half", "three").await.expect_err("it is no number");
        client.call::<i64>("Math", "Third", &3).await.expect_err("there is no such method");

        let before = server.stats();
        let errors = [("application", 1), ("bad_arguments", 1), ("not_found", 1)];
        assert!(errors.iter().all(|(code, count)| before.errors.get(code) == *count), "{:?}", before.errors);
        assert_eq!((before.errors.total(), before.requests_unrouted), (3, 1));
        assert!(5 <= before.frames_in && 5 <= before.frames_out, "a Hello and four calls: {before:?}");
        assert!(20 * before.frames_in < before.bytes_in && 20 * before.frames_out < before.bytes_out, "{before:?}");
        assert_eq!((before.tasks.get("listener"), before.tasks.get("connection")), (1, 1), "{before:?}");

        // One is handled, and of two that wait the older one is superseded.
        server.push(&Target::everyone(), &Push::new("T", "m", "1")).expect("small");
        assert_eq!(messages.next().await.expect("it came").payload().expect("bytes"), "1");
        let queues = server.queues();
        assert_eq!((queues.resumable, queues.plain, queues.away), (1, 0, 0));
        let receipt = server.push(&Target::everyone(), &Push::new("T", "m", "2")).expect("small");
        assert_eq!(server.queues().sessions_by_bytes.iter().sum::<u64>(), 1);
        assert!(server.queues().bytes != 0, "it is not handled");
        drop(messages.next().await);
        receipt.handled().await;
        let after = server.stats();
        assert_eq!((after.pushes.tracked.get("handled"), after.pushes.tracked.total()), (2, 2), "{:?}", after.pushes);
        assert_eq!((after.frames_out - before.frames_out, after.pushes.fire.total()), (2, 0));

        // A handler that takes its time is a task, and so is no longer one.
        let calling = tokio::spawn({
            let client = client.clone();
            async move { client.call::<i64>("Math", "Half", &6).await }
        });
        while server.stats().tasks.get("handler") == 0 {
            tokio::task::yield_now().await;
        }
        calling.await.expect("no panic").expect("it is even");
        client.close();
        server.shutdown(Duration::from_secs(1)).await;
        let after = server.stats();
        assert_eq!((after.tasks.total(), after.closes.total(), after.sessions), (0, 1, 0), "{after:?}");
    }

    #[test]
    fn routes_are_sorted_and_the_frameworks_own_are_among_them() {
        let answer = |_: Request| async { Reply::error("no") };
        let server = Server::builder().handler("B", "b", answer).handler("A", "a", answer).build();
        let routes = server.routes();
        let has = |path: &str, method: &str| routes.contains(&(path.to_owned(), method.to_owned()));
        assert!(has("A", "a") && has("B", "b") && routes.is_sorted());
        assert!(routes.iter().any(|(path, _)| path == keys::CONTROL_PATH));
    }
}
