//! The builder of a server: services, hooks, options.

use std::{future::Future, sync::Arc};

use bothways_proto::CompressType;
use parking_lot::Mutex;
use tokio::sync::{Notify, OnceCell, watch};

use super::{
    AuthRequest, Counters, Refusals, Server, Shared,
    accept::Watching,
    admin,
    admission::{Admission, AdmissionOptions},
    control,
    door::{AdminOptions, Door},
    options::{OutgoingOptions, ServerLimits, ServerOptions, Timeouts},
    topics,
};
use crate::{
    codec::{Encode, Payload},
    connection::{Connection, Load, Settings},
    error::{AuthError, CloseReason},
    handler::Handler,
    layer::Layer,
    options::Heartbeat,
    packing::Room,
    reply::BoxFuture,
    router::{RouteProblem, Router, Service, WhitelistError},
    session::{MailboxOptions, Registry, Rules, SessionOptions, Setup, TopicError, TopicOptions},
    stats::Meters,
    store::Store,
    transport::{ListenOptions, Transport, Transports},
};

/// Decides whether a request may run.
pub(super) type AuthHook = Arc<dyn Fn(AuthRequest) -> BoxFuture<Result<(), AuthError>> + Send + Sync>;
/// Sees a connection begin.
pub(super) type ConnectHook = Arc<dyn Fn(&Connection) + Send + Sync>;
/// Sees a connection end.
pub(super) type DisconnectHook = Arc<dyn Fn(&Connection, &CloseReason) + Send + Sync>;
/// Rewrites the text of an error before it leaves.
pub(super) type ErrorHook = Arc<dyn Fn(&str, &str, String) -> String + Send + Sync>;
/// Runs once when the server begins to stop.
pub(super) type ShutdownHook = Box<dyn FnOnce() -> BoxFuture<()> + Send>;

#[derive(Default)]
pub(super) struct Hooks {
    pub(super) auth: Option<AuthHook>,
    pub(super) on_connect: Option<ConnectHook>,
    pub(super) on_disconnect: Option<DisconnectHook>,
    pub(super) on_error: Option<ErrorHook>,
    pub(super) on_shutdown: Mutex<Vec<ShutdownHook>>,
}

/// Builds a [`Server`].
///
/// ```
/// use std::time::Duration;
///
/// use bothways::{Limits, Server, layer};
///
/// let server = Server::builder()
///     .function("Text", "Upper", |text: String| async move { Ok::<_, String>(text.to_uppercase()) })
///     .layer(layer::timeout(Duration::from_secs(5)))
///     .on_disconnect(|connection, why| println!("{} left: {why}", connection.peer_address()))
///     .limits(Limits::default().body_bytes_max(1 << 20))
///     .build();
/// # assert!(server.routes().contains(&("Text".to_owned(), "Upper".to_owned())));
/// ```
#[must_use]
pub struct ServerBuilder {
    router: Router,
    layers: Vec<Box<dyn Layer>>,
    hooks: Hooks,
    options: ServerOptions,
    listen: ListenOptions,
    transports: Transports,
    admin: Option<AdminOptions>,
    rules: Rules,
    cancel_on_disconnect: bool,
    compress: CompressType,
    store: Option<Arc<dyn Store>>,
    mailboxes: MailboxOptions,
}

impl ServerBuilder {
    pub(super) fn new() -> Self {
        Self {
            router: Router::new(),
            layers: Vec::new(),
            hooks: Hooks::default(),
            options: ServerOptions::default(),
            listen: ListenOptions::default(),
            transports: Transports::default(),
            admin: None,
            rules: Rules::default(),
            cancel_on_disconnect: false,
            compress: CompressType::NONE,
            store: None,
            mailboxes: MailboxOptions::default(),
        }
    }

    /// Serves every method of a service under its own name.
    pub fn service(mut self, service: impl Service) -> Self {
        self.router = self.router.service(service);
        self
    }

    /// Serves every method of a service under this name.
    pub fn service_named(mut self, service_path: &str, service: impl Service) -> Self {
        self.router = self.router.service_named(service_path, service);
        self
    }

    /// Serves only these methods of a service.
    ///
    /// # Errors
    /// [`WhitelistError`] if the list is empty or names a method that the service does not have.
    pub fn service_with_methods(mut self, service: impl Service, methods: &[&str]) -> Result<Self, WhitelistError> {
        self.router = self.router.service_with_methods(service, methods)?;
        Ok(self)
    }

    /// Serves one function: arguments in, value or error out. It takes its arguments as an owned value, `String` and not
    /// `&str`; methods of a [`service`](macro@crate::service) may borrow. Source: Go `RegisterFunctionName`.
    pub fn function<A, R, E, F, Fut>(mut self, service_path: &str, service_method: &str, function: F) -> Self
    where
        A: Payload + 'static,
        R: Encode,
        E: std::fmt::Display,
        F: Fn(A) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, E>> + Send + 'static,
    {
        self.router = self.router.function(service_path, service_method, function);
        self
    }

    /// Serves one raw handler: it sees the request's bytes and answers with bytes. Source: Go `AddHandler`.
    pub fn handler(mut self, service_path: &str, service_method: &str, handler: impl Handler) -> Self {
        self.router = self.router.handler(service_path, service_method, handler);
        self
    }

    /// Serves all of these routes too.
    pub fn router(mut self, router: Router) -> Self {
        self.router = self.router.merge(router);
        self
    }

    /// Wraps every handler, including those added later. The layer that is added first sees a request first: these
    /// layers are a list. ([`Router::layer`] wraps what is there already, so there the last one sees it first.)
    pub fn layer(mut self, layer: impl Layer + 'static) -> Self {
        self.layers.push(Box::new(layer));
        self
    }

    /// Asks this hook before any request runs, and before a Hello is answered with a Welcome. The text of a refusal
    /// goes to the client as the error, and the connection is closed after it, as in Go.
    ///
    /// A hook that cannot decide, because its user database is down, returns [`AuthError::not_now`]. A Bothways client
    /// that sent a Hello tries again after the time it names, with its session. A call of a client that was let in
    /// before fails as [`Overloaded`](crate::ErrorCode::Overloaded), and its connection goes on. A plain client gets
    /// the text, and is closed. Any other error is a refusal. A hook that panics has not decided either: the log has it
    /// as an error, and a client that sent a Hello tries again after a second.
    ///
    /// At the Hello of a client that comes back, [`AuthRequest::resumes`] is the session that it had. A hook that ends
    /// a user's other sessions, or counts them, must leave that one out.
    ///
    /// Until the hook has let a connection in once, it is asked about one request of that connection at a time, and
    /// later requests wait; see also [`ServerLimits::unauthenticated_body_bytes_max`]. After that it is not asked about
    /// a client's acknowledgements, its answers to calls, or its leave.
    ///
    /// Without a hook everyone may call everything. The hook is not asked for the [admin service](Self::admin): its
    /// token alone decides, and it answers at the service's addresses only with [`AdminOptions::on_service_addresses`].
    pub fn auth<F, Fut, E>(mut self, hook: F) -> Self
    where
        F: Fn(AuthRequest) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<AuthError>,
    {
        self.hooks.auth = Some(Arc::new(move |request| {
            let decision = hook(request);
            Box::pin(async move { decision.await.map_err(Into::into) })
        }));
        self
    }

    /// Runs when a connection was accepted, before its first frame is handled. Must not block.
    ///
    /// To greet a client here, push to [`Target::connection`](crate::Target::connection): the push waits for the first
    /// request of a plain client, and for the Welcome of a Bothways one. If the client comes back to a session that it
    /// had, the greeting is dropped, and its receipt says so: the old session goes on and is not greeted again.
    /// [`Connection::send_message`] is sent at once, before an application on Go's `XClient` listens.
    pub fn on_connect(mut self, hook: impl Fn(&Connection) + Send + Sync + 'static) -> Self {
        self.hooks.on_connect = Some(Arc::new(hook));
        self
    }

    /// Runs exactly once for each connection that [`Self::on_connect`] saw, when it is over. Must not block.
    pub fn on_disconnect(mut self, hook: impl Fn(&Connection, &CloseReason) + Send + Sync + 'static) -> Self {
        self.hooks.on_disconnect = Some(Arc::new(hook));
        self
    }

    /// Rewrites the text of each error that a handler returns, given service path, method and text. Source: Go
    /// `ServerErrorFunc`.
    ///
    /// If the new text differs, it goes alone: the error's value ([`CallError::detail`](crate::CallError::detail)) and
    /// the application's code ([`CallError::app_code`](crate::CallError::app_code)) are dropped. They stay beside a text
    /// that the hook returns unchanged. The pairs of [`Context::reply_metadata`](crate::Context::reply_metadata) are the
    /// reply's, and stay in any case. A refusal ([`Reply::refused`](crate::Reply::refused)) does not come to the hook: its
    /// text is for the caller.
    pub fn on_error(mut self, hook: impl Fn(&str, &str, String) -> String + Send + Sync + 'static) -> Self {
        self.hooks.on_error = Some(Arc::new(hook));
        self
    }

    /// Runs once when the server begins to stop, before clients are told. The stop waits for it, within its deadline.
    /// Hooks run in the order in which they were added.
    pub fn on_shutdown<F, Fut>(self, hook: F) -> Self
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.hooks.on_shutdown.lock().push(Box::new(move || Box::pin(hook())));
        self
    }

    /// All options that are numbers, as a program reads them from a file. They take the place of those that were set
    /// before, of every group.
    pub fn options(mut self, options: ServerOptions) -> Self {
        self.options = options;
        self
    }

    /// Bounds on what clients may cost: connections, running requests, and incoming bytes. A
    /// [`Limits`](bothways_proto::Limits) alone bounds single frames, and leaves the defaults for everything else.
    pub fn limits(mut self, limits: impl Into<ServerLimits>) -> Self {
        self.options.limits = limits.into();
        self
    }

    /// Bounds on what may wait for clients to read it.
    pub fn outgoing(mut self, outgoing: OutgoingOptions) -> Self {
        self.options.outgoing = outgoing;
        self
    }

    /// How many clients may come at a time.
    pub fn admission(mut self, admission: AdmissionOptions) -> Self {
        self.options.admission = admission;
        self
    }

    /// How long a client may be silent, slow or unknown.
    pub fn timeouts(mut self, timeouts: Timeouts) -> Self {
        self.options.timeouts = timeouts;
        self
    }

    /// When clients that understand it get a heartbeat. A client that does not answer in time is closed. Plain rpcx
    /// clients never get one: they would take it for a reply.
    pub fn heartbeat(mut self, heartbeat: Heartbeat) -> Self {
        self.options.heartbeat = heartbeat;
        self
    }

    /// How long a session waits for its client to come back, and how much its queues may hold.
    pub fn sessions(mut self, sessions: SessionOptions) -> Self {
        self.options.sessions = sessions;
        self
    }

    /// Options for the topics that match this pattern; of several matching patterns the first added counts. A topic
    /// that no pattern matches has the defaults: clients cannot subscribe to it by themselves.
    ///
    /// # Errors
    /// [`TopicError`]: it is no pattern.
    pub fn topic(mut self, pattern: &str, options: TopicOptions) -> Result<Self, TopicError> {
        self.rules.add(pattern, options)?;
        Ok(self)
    }

    /// Drops running handlers when the connection of their request ends. Default: they run to their end, as in Go.
    pub fn cancel_on_disconnect(mut self, cancel: bool) -> Self {
        self.cancel_on_disconnect = cancel;
        self
    }

    /// Packs the arguments of calls to clients above 1,024 bytes. A reply is packed if its request was. Default: no.
    pub fn compress(mut self, compress: CompressType) -> Self {
        self.compress = compress;
        self
    }

    /// Where durable pushes ([`Class::Durable`](crate::Class::Durable)) are kept: the crate `bothways-redb` has a store in one
    /// file. Without one they are refused. A server that joins a cluster keeps them in the cluster's engine, and needs none;
    /// one that has its own all the same keeps its own mailboxes, apart from those of the other nodes.
    pub fn store(mut self, store: impl Store) -> Self {
        self.store = Some(Arc::new(store));
        self
    }

    /// Bounds and times of durable pushes.
    pub fn mailboxes(mut self, options: MailboxOptions) -> Self {
        self.mailboxes = options;
        self
    }

    /// A way to listen that is not built in, for addresses of its networks.
    pub fn transport(mut self, transport: impl Transport) -> Self {
        self.transports.add(transport);
        self
    }

    /// How to listen: backlog, keep-alive of the system, TLS.
    pub fn listen_options(mut self, options: ListenOptions) -> Self {
        self.listen = options;
        self
    }

    /// Gives the admin service a token: it answers at [`Server::listen_admin`], and without a token nowhere. Operators'
    /// tools use it through [`AdminClient`](super::AdminClient): they list clients, show what happened to a session,
    /// push, and send clients away. The [auth](Self::auth) hook is not asked for it.
    pub fn admin(mut self, options: AdminOptions) -> Self {
        self.admin = Some(options);
        self
    }

    /// Builds the server. It serves nobody until it [listens](Server::listen).
    ///
    /// A route that was added twice, or under a path that belongs to the framework, is logged as a warning;
    /// [`Self::try_build`] refuses it.
    pub fn build(self) -> Server {
        self.router.warn_of_problems();
        self.make()
    }

    /// As [`Self::build`], but each route must be served as it was added.
    ///
    /// # Errors
    /// The first [`RouteProblem`].
    pub fn try_build(self) -> Result<Server, RouteProblem> {
        match self.router.problems().first() {
            Some(problem) => Err(problem.clone()),
            None => Ok(self.make()),
        }
    }

    fn make(self) -> Server {
        let mut router = self.router;
        // The last one first, so that the layer added first ends up outermost.
        for layer in self.layers.iter().rev() {
            router = router.layer(&**layer);
        }
        // Added after the layers, which do not see the calls of the framework itself.
        let router = topics::add_routes(control::add_routes(router));

        let (options, meters) = (self.options, Arc::<Meters>::default());
        let mut settings = Settings {
            cancel_on_disconnect: self.cancel_on_disconnect,
            compress: self.compress,
            meters: Some(Arc::clone(&meters)),
            ..Settings::default()
        };
        options.apply(&mut settings);

        let limits = options.limits;
        let load = Load::new(limits.calls_max).with_bytes(limits.request_bytes_max, limits.partial_bytes_max);
        settings.load = Arc::new(load.with_outgoing(options.outgoing.all_bytes_max));
        let (all, share) = (limits.unpacked_bytes_max, limits.unpacked_bytes_per_connection_max);
        let room = || Arc::new(Room::new(all, share, settings.limits.decompressed_bytes()));
        // Replies have their own: a handler that calls back still holds room for its request.
        (settings.room, settings.reply_room) = (room(), room());

        let sessions = Setup {
            options: options.sessions,
            rules: self.rules,
            limits: settings.limits.clone(),
            counts_user_calls: limits.calls_per_user_max.is_some(),
        };

        let connections = Arc::default();
        let on_service_addresses = self.admin.as_ref().is_some_and(AdminOptions::is_on_service_addresses);
        let door = self.admin.map(|options| Arc::new(Door::new(options)));

        let sessions = Registry::new(sessions, Arc::clone(&connections));
        if let Some(store) = self.store {
            // It is the first.
            let _ = sessions.keep_mail(store, self.mailboxes.clone());
        }

        Server {
            shared: Arc::new_cyclic(|shared| Shared {
                router: match &door {
                    Some(door) if on_service_addresses => admin::add_routes(router, Arc::clone(door), shared.clone()),
                    _ => router,
                },
                door,
                calm: Refusals::default(),
                hooks: self.hooks,
                settings: Arc::new(settings),
                listen: self.listen,
                transports: self.transports,
                connections_max: limits.connections_max,
                admission: Admission::new(&options.admission),
                calls_per_user_max: limits.calls_per_user_max,
                handshaking: 0.into(),
                sessions,
                #[cfg(feature = "cluster")]
                mailboxes: self.mailboxes,
                #[cfg(feature = "cluster")]
                doorbell: Default::default(),
                topic_lines: Arc::default(),
                connections,
                ending: Default::default(),
                emptied: Notify::new(),
                watching: Watching::default(),
                #[cfg(feature = "ws")]
                fronts: Default::default(),
                stopping: watch::Sender::new(false),
                listeners: Default::default(),
                draining: false.into(),
                stopped: OnceCell::new(),
                #[cfg(feature = "cluster")]
                node: Default::default(),
                #[cfg(feature = "cluster")]
                joining: Default::default(),
                counters: Counters::default(),
                meters,
            }),
        }
    }
}

impl std::fmt::Debug for ServerBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerBuilder").field("routes", &self.router.routes()).finish_non_exhaustive()
    }
}
