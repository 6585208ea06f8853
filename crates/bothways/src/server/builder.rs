//! What a server is made of: services, hooks, bounds.

use std::{future::Future, sync::Arc, time::Duration};

use bothways_proto::{CompressType, Limits, Rate};
use parking_lot::Mutex;
use tokio::sync::{Notify, OnceCell, watch};

use super::{
    AuthRequest, Counters, Refusals, Server, Shared,
    accept::Watching,
    admin,
    admission::{Admission, AdmissionOptions},
    control,
    door::{AdminOptions, Door},
    topics,
};
use crate::{
    codec::{Encode, Payload},
    connection::{Connection, Load, Overflow, Settings, UNPACKED_BYTES, UNPACKED_BYTES_OF_CONNECTION},
    error::{AuthError, CloseReason},
    handler::Handler,
    layer::Layer,
    packing::Room,
    reply::BoxFuture,
    router::{RouteProblem, Router, Service, WhitelistError},
    session::{Registry, SessionOptions, TopicError, TopicOptions},
    transport::ListenOptions,
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
#[must_use]
pub struct ServerBuilder {
    router: Router,
    layers: Vec<Box<dyn Layer>>,
    hooks: Hooks,
    settings: Settings,
    listen: ListenOptions,
    connections_max: usize,
    admission: AdmissionOptions,
    calls_per_user_max: Option<usize>,
    calls_max: usize,
    request_bytes_max: usize,
    partial_bytes_max: usize,
    outgoing_bytes_max: usize,
    /// Of the server and of one connection.
    unpacked_bytes_max: (usize, usize),
    admin: Option<AdminOptions>,
    sessions: SessionOptions,
}

impl ServerBuilder {
    pub(super) fn new() -> Self {
        Self {
            router: Router::new(),
            layers: Vec::new(),
            hooks: Hooks::default(),
            settings: Settings::default(),
            listen: ListenOptions::default(),
            connections_max: 1 << 20,
            admission: AdmissionOptions::default(),
            calls_per_user_max: None,
            calls_max: 1 << 17,
            request_bytes_max: 1 << 30,
            partial_bytes_max: 256 << 20,
            outgoing_bytes_max: 1 << 30,
            unpacked_bytes_max: (UNPACKED_BYTES, UNPACKED_BYTES_OF_CONNECTION),
            admin: None,
            sessions: SessionOptions::default(),
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

    /// Serves one function: arguments in, value or error out. Source: Go `RegisterFunctionName`.
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

    /// Wraps every handler, also those added later. The layer that is added first sees a request first: these layers are
    /// a list. (Of [`Router::layer`], which wraps what is there already, the last sees it first.)
    pub fn layer(mut self, layer: impl Layer + 'static) -> Self {
        self.layers.push(Box::new(layer));
        self
    }

    /// Asks this hook before any request runs, and before a Hello is welcomed. A refusal goes to the
    /// client as the error text, and the connection is closed behind it, as in Go.
    ///
    /// A hook that cannot tell, as its user database is down, says [`AuthError::not_now`]. A Bothways client that said
    /// Hello comes back when it was told, with its session; a call of one that was let in before fails as
    /// [`Overloaded`](crate::ErrorCode::Overloaded), and its connection goes on. A plain client gets the text, and is
    /// closed. Any other error is a refusal.
    ///
    /// At the Hello of a client that comes back, [`AuthRequest::resumes`] is the session that it had: whoever ends a user's
    /// other sessions here, or counts them, must leave that one out.
    ///
    /// Until it has let a connection in once, it is asked for one request of that connection at a time, and those
    /// behind it wait; see also [`Self::unauthenticated_body_bytes_max`]. From then on it is not asked for what its client
    /// says of what it was sent: acknowledgements, answers to calls, and that it leaves.
    ///
    /// Without a hook everybody may call everything. It is not asked for the [admin service](Self::admin), whose
    /// token decides alone, and which answers at the service's addresses only if
    /// [`AdminOptions::on_service_addresses`] says so.
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

    /// Runs when a connection was taken, before its first frame is handled. Must not block.
    ///
    /// Who greets a client here pushes to [`Target::connection`](crate::Target::connection): that waits for the first
    /// request of a plain client, and for the Welcome of a Bothways one. It is dropped, and its receipt says with its
    /// session, if the client comes back to the session that it had: that one goes on, and is not greeted again.
    /// [`Connection::send_message`] goes at once, when an application on Go's `XClient` does not listen yet.
    pub fn on_connect(mut self, hook: impl Fn(&Connection) + Send + Sync + 'static) -> Self {
        self.hooks.on_connect = Some(Arc::new(hook));
        self
    }

    /// Runs exactly once for every connection that [`Self::on_connect`] saw, when it is over. Must not block.
    pub fn on_disconnect(mut self, hook: impl Fn(&Connection, &CloseReason) + Send + Sync + 'static) -> Self {
        self.hooks.on_disconnect = Some(Arc::new(hook));
        self
    }

    /// Rewrites the text of each error that a handler answers with, given service path, method and text.
    /// Source: Go `ServerErrorFunc`.
    pub fn on_error(mut self, hook: impl Fn(&str, &str, String) -> String + Send + Sync + 'static) -> Self {
        self.hooks.on_error = Some(Arc::new(hook));
        self
    }

    /// Runs once when the server begins to stop, before clients are told; the stop waits for it, within
    /// its deadline. Hooks run in the order in which they were added.
    pub fn on_shutdown<F, Fut>(self, hook: F) -> Self
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.hooks.on_shutdown.lock().push(Box::new(move || Box::pin(hook())));
        self
    }

    /// Bounds on what one frame may cost. See [`Limits`] for the defaults.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.settings.limits = limits;
        self
    }

    /// Most connections at once; more are closed as they come. Default 1,048,576: beyond what one
    /// process usually has files for.
    pub fn connections_max(mut self, connections: usize) -> Self {
        self.connections_max = connections;
        self
    }

    /// How many clients may begin a session. One that is too many is told when to try again, before its token is
    /// looked at, and a client of ours does; a plain rpcx client is closed with its first frame, of which nothing ran.
    ///
    /// Default 10,000 a second and 100,000 at once: a guard against a flood, far above what comes in quiet times. What
    /// a hook for tokens asks, such as a database, usually takes less: then choose what it takes. `None`: no bound.
    pub fn new_sessions_rate(mut self, rate: Option<Rate>) -> Self {
        self.admission.new_sessions = rate;
        self
    }

    /// How many clients may come back to a session that waits for them, in place of [`Self::new_sessions_rate`].
    /// Default 50,000 a second and 500,000 at once: more than of new ones, for their state is here already, and what
    /// they are owed takes memory until they come. `None`: no bound.
    pub fn resumes_rate(mut self, rate: Option<Rate>) -> Self {
        self.admission.resumes = rate;
        self
    }

    /// Most requests that run at once in the whole server; more are answered as overloaded at once.
    /// Default 131,072.
    pub fn calls_max(mut self, calls: usize) -> Self {
        self.calls_max = calls;
        self
    }

    /// Most requests of one connection that run at once; more are answered as overloaded at once.
    /// Default 16,384.
    pub fn calls_per_connection_max(mut self, calls: usize) -> Self {
        self.settings.calls_running_max = calls;
        self
    }

    /// Most bytes of the requests that run at once: in the whole server, and of one connection. Beyond either, more are
    /// answered as overloaded at once; one request alone is bounded by [`Limits::body_bytes_max`] instead. What counts is
    /// what is held while a handler has a task of its own: the frame as it came, and a reply that waits to be packed.
    /// Default 1 GiB and 64 MiB.
    pub fn request_bytes_max(mut self, of_server: usize, of_connection: usize) -> Self {
        self.request_bytes_max = of_server;
        self.settings.request_bytes_max = of_connection;
        self
    }

    /// Most bytes of payloads that came packed, once unpacked, of the requests that run at once: in the whole server, and
    /// of one connection. Beyond the first 64 KiB a connection has no more than it leaves for all others. Further ones
    /// wait, packed, and are answered as [overloaded](crate::ErrorCode::Overloaded) when there was no room for 10 s; each
    /// bound is at least [`Limits::decompressed_bytes_max`]. As much again is for replies to calls of clients, until the
    /// callers have them. While a payload is unpacked it may take twice its bytes, and four are at a time. Default
    /// 512 MiB and 64 MiB.
    pub fn unpacked_bytes_max(mut self, of_server: usize, of_connection: usize) -> Self {
        self.unpacked_bytes_max = (of_server, of_connection);
        self
    }

    /// Most bytes of frames that have begun and not ended, in the whole server, of each what is beyond one read of
    /// 64 KiB. A connection whose frame has no room is told that the server is overloaded, and ends. Default 256 MiB.
    pub fn partial_bytes_max(mut self, bytes: usize) -> Self {
        self.partial_bytes_max = bytes;
        self
    }

    /// How fast a frame must come that has begun: so many bytes within each such time, or its end. A client that is
    /// slower is closed; while the server itself does not read from it, or holds it back by
    /// [`Self::bytes_per_connection_rate`], it is not slow. Default 10 KiB within 10 s: a line of 8 kbit/s. 0 bytes: no
    /// such rule.
    pub fn frame_progress_min(mut self, bytes: usize, within: Duration) -> Self {
        self.settings.watch.frame_progress_min = bytes;
        self.settings.watch.frame_progress_time = within;
        self
    }

    /// Most bytes of a frame's body until the [`auth`](Self::auth) hook has let its connection in once; without a hook
    /// it is [`Limits::body_bytes_max`] from the beginning. Until then the requests of a connection are also handled one
    /// after the other. Default 1 MiB: more than a token takes, and enough for most first calls.
    pub fn unauthenticated_body_bytes_max(mut self, bytes: usize) -> Self {
        self.settings.unauthenticated_body_bytes_max = bytes;
        self
    }

    /// Most requests that run at once of all sessions that are bound to one user; more are answered as overloaded at
    /// once, or, if they want no answer, dropped and counted. A request counts from the moment at which its session is
    /// bound, by its own auth hook at the latest. Default `None`: no bound but those of connections, for it costs each
    /// request two look-ups.
    pub fn calls_per_user_max(mut self, calls: Option<usize>) -> Self {
        self.calls_per_user_max = calls;
        self
    }

    /// How many frames one connection may send. Requests beyond are answered as overloaded at once, or, if they want
    /// no answer, dropped and counted, be they to a service or to the framework's own; heartbeats count, and are taken, as
    /// is what ends something: acknowledgements, answers to the server's calls, a client that leaves. Default `None`: no
    /// bound, for only the application knows what its clients do.
    pub fn frames_per_connection_rate(mut self, rate: Option<Rate>) -> Self {
        self.settings.frames_rate = rate;
        self
    }

    /// How many bytes one connection may send. Beyond it the server reads no further until the client may send more:
    /// nothing is lost, and the client's own writing slows down. Default `None`: no bound.
    pub fn bytes_per_connection_rate(mut self, rate: Option<Rate>) -> Self {
        self.settings.bytes_rate = rate;
        self
    }

    /// How long a client may take to send its first frame. Default 10 s. Zero ends whoever has sent none at the next
    /// look, within a second.
    pub fn first_frame_timeout(mut self, limit: Duration) -> Self {
        self.settings.watch.first_frame_timeout = limit;
        self
    }

    /// How long a client may stay without anything that passes the [auth hook](Self::auth), however many heartbeats it
    /// sends. Default 5 min: a Go client that has connected says its token with its first call, and makes the
    /// connection anew if that comes later. Without a hook nobody has to.
    pub fn unauthenticated_timeout(mut self, limit: Duration) -> Self {
        self.settings.watch.unauthenticated_timeout = limit;
        self
    }

    /// Close connections from which nothing came for this long. Default: never, because a plain Go
    /// client that only listens sends nothing. Zero ends each at the next look, within a second.
    pub fn idle_timeout(mut self, limit: Option<Duration>) -> Self {
        self.settings.watch.idle_timeout = limit;
        self
    }

    /// Ask clients that understand it for a sign of life after `interval` of silence, and close them if
    /// none comes within `timeout`. Default 15 s and 10 s. Plain rpcx clients are never asked: they
    /// would take the question for a reply. A timeout of zero ends a silent client at the next look, within a second.
    pub fn heartbeat(mut self, interval: Option<Duration>, timeout: Duration) -> Self {
        self.settings.watch.heartbeat_interval = interval;
        self.settings.watch.heartbeat_timeout = timeout;
        self
    }

    /// Close a client for which bytes wait and whose socket takes none for this long. Default 10 s.
    pub fn write_timeout(mut self, limit: Duration) -> Self {
        self.settings.watch.write_timeout = limit;
        self
    }

    /// Pushes, and their bytes, that may wait for one client that reads slowly, beyond the 64 KiB
    /// that are under way. Default 1,024 pushes, 1 MiB: a burst, not a backlog.
    pub fn push_queue(mut self, frames_max: usize, bytes_max: usize) -> Self {
        self.settings.push_frames_max = frames_max;
        self.settings.push_bytes_max = bytes_max;
        self
    }

    /// What happens to a push when that queue is full. Default [`Overflow::RefuseNewest`].
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.settings.overflow = overflow;
        self
    }

    /// Bytes of replies that may wait for a client that does not read them, before its requests are
    /// no longer read either. Default 4 MiB. Handlers that run by then still come to their ends: of their replies 16
    /// times as many bytes are taken, and beyond that a caller is told that its reply cannot be sent.
    pub fn reply_bytes_max(mut self, bytes: usize) -> Self {
        self.settings.reply_bytes_max = bytes;
        self
    }

    /// Bytes of replies, calls and messages that may wait for clients to read them, in the whole server, of each client
    /// what is beyond 64 KiB; pushes that were encoded once for many count for nobody. A client that holds more than is
    /// left of this is not read from, and its replies, calls to it and messages are refused as if its own bounds were
    /// reached; so one that does not read has half of the room at most, and those that hold little find room. A reply
    /// that is kept for many at once counts for each. Default 1 GiB.
    pub fn outgoing_bytes_max(mut self, bytes: usize) -> Self {
        self.outgoing_bytes_max = bytes;
        self
    }

    /// Bytes of calls to one client that may wait for it to read; a call beyond is refused with
    /// [`CallError::QueueFull`](crate::CallError::QueueFull), and nothing of it is sent. One call that is larger is
    /// taken if no other waits. Default 16 MiB.
    pub fn call_bytes_max(mut self, bytes: usize) -> Self {
        self.settings.call_bytes_max = bytes;
        self
    }

    /// How long the session of a client that lost its connection waits for it to come back. Default 120 s.
    /// Only Bothways clients that listen have sessions that outlive their connections.
    pub fn resume_window(mut self, window: Duration) -> Self {
        self.sessions.resume_window = window;
        self
    }

    /// Most sessions that wait so at once. When one more client leaves, one of them ends: what it was owed counts as
    /// dropped because the session ended, and its client gets a new session if it comes back. First those end that are
    /// owed nothing, subscribe to nothing and never did; then those of the user who has most of them, of a user the one
    /// that is longest away. Sessions without a user count for the address of their client. Default 100,000, with
    /// nothing owed to them about 150 MiB: all the clients of a busy server at once, when the network before it blinks.
    pub fn sessions_away_max(mut self, sessions: usize) -> Self {
        self.sessions.away_max = sessions;
        self
    }

    /// Tracked pushes, and their bytes, that a session keeps until its client has handled them; more are
    /// refused, and the client is told of the gap. Default 1,000 pushes, 1 MiB.
    pub fn session_log(mut self, messages_max: usize, bytes_max: usize) -> Self {
        self.sessions.set_log(messages_max, bytes_max);
        self
    }

    /// Bytes that the logs of one user's sessions hold together; a tracked push beyond is refused, and the client is
    /// told of the gap, though the session's own log has room. Default 16 MiB: 16 devices that are all full.
    ///
    /// Values of class `Latest` count from when they are sent until they are handled, and are not refused for it.
    pub fn user_log_bytes_max(mut self, bytes: usize) -> Self {
        self.sessions.set_user_log(bytes);
        self
    }

    /// Pushes of class `Fire`, and their bytes, that may wait for one session; beyond them the oldest is
    /// dropped. Default 256 pushes, 256 KiB.
    pub fn fire_queue(mut self, messages_max: usize, bytes_max: usize) -> Self {
        self.sessions.set_fire_queue(messages_max, bytes_max);
        self
    }

    /// Values of class `Latest`, and their bytes with those of their keys, that may wait for one session;
    /// more are refused, and the client is told of the gap. Default 1,024 keys, 1 MiB.
    pub fn latest_queue(mut self, keys_max: usize, bytes_max: usize) -> Self {
        self.sessions.set_latest(keys_max, bytes_max);
        self
    }

    /// [Idempotency keys](crate::Push::idempotency_key) that a session remembers; of more the oldest are forgotten.
    /// Default 1,024: a burst of retries, and 64 KiB once so many have come. 0: none, and nothing is repeated.
    pub fn idempotency_keys(mut self, keys_max: usize) -> Self {
        self.sessions.set_idempotency_keys(keys_max);
        self
    }

    /// Events that [`Server::explain`] tells of one session, and how many sessions that ended it still knows.
    /// Default 64 events, about 5 KiB once they have come, and 4,096 sessions; 0 turns either off. Of those that ended
    /// it knows the last 8 of each user, those that tell of something sent before others; a quarter may have had no
    /// user; and all take 8 MiB at most. Of one that had neither user, push, call nor subscription nothing is kept,
    /// unless the server ended it.
    pub fn explain(mut self, events_max: usize, ended_sessions_max: usize) -> Self {
        (self.sessions.events_max, self.sessions.ended_max) = (events_max, ended_sessions_max);
        self
    }

    /// What the topics that match this pattern are like; of several patterns that match, the first added
    /// counts. A topic that none matches has the defaults: clients cannot subscribe to it by themselves.
    ///
    /// # Errors
    /// [`TopicError`]: it is no pattern.
    pub fn topic(mut self, pattern: &str, options: TopicOptions) -> Result<Self, TopicError> {
        self.sessions.rules.add(pattern, options)?;
        Ok(self)
    }

    /// Most topics and patterns that one client may have subscribed to when it subscribes to another by
    /// itself; more are refused. Default 1,000.
    pub fn subscriptions_per_session_max(mut self, subscriptions: usize) -> Self {
        self.sessions.subscriptions_max = subscriptions;
        self
    }

    /// Bytes that the subscriptions of one client may take: 256 and its name for a topic, twice its name and 640 a
    /// segment beside that for a pattern with wildcards. Default 512 KiB: 1,000 topics with the longest names, or some
    /// 200 patterns.
    pub fn subscription_bytes_per_session_max(mut self, bytes: usize) -> Self {
        self.sessions.subscription_bytes_max = bytes;
        self
    }

    /// Bytes that all subscriptions at the server may take before a client's are refused; of a topic to which many
    /// subscribe the name counts once, and each of them 64 bytes. Default 1 GiB: some three million topics of one
    /// subscriber each.
    pub fn subscription_bytes_max(mut self, bytes: usize) -> Self {
        self.sessions.all_subscription_bytes_max = bytes;
        self
    }

    /// Drop running handlers when the connection that asked is over. Default: they run to their end,
    /// as in Go.
    pub fn cancel_on_disconnect(mut self, cancel: bool) -> Self {
        self.settings.cancel_on_disconnect = cancel;
        self
    }

    /// Pack calls to clients whose arguments are above 1,024 bytes. Replies are packed when their
    /// request was. Default: not.
    pub fn compress(mut self, compress: CompressType) -> Self {
        self.settings.compress = compress;
        self
    }

    /// How to listen: backlog, keep-alive of the system, TLS.
    pub fn listen_options(mut self, options: ListenOptions) -> Self {
        self.listen = options;
        self
    }

    /// Gives the admin service a token: it answers at [`Server::listen_admin`], and without a token nowhere. What it
    /// answers, operators' tools ask through [`AdminClient`](super::AdminClient): who is connected, what happened to a
    /// session; and it pushes and sends away. The [auth](Self::auth) hook is not asked for it.
    pub fn admin(mut self, options: AdminOptions) -> Self {
        self.admin = Some(options);
        self
    }

    /// The server. It serves nobody until it [listens](Server::listen).
    ///
    /// A route that was added twice, or under a path that belongs to the framework, is told in a warning;
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
        for layer in self.layers.iter().rev() {
            router = router.layer(&**layer);
        }
        let router = topics::add_routes(control::add_routes(router));
        let mut settings = self.settings;
        let load = Load::new(self.calls_max).with_bytes(self.request_bytes_max, self.partial_bytes_max);
        settings.load = Arc::new(load.with_outgoing(self.outgoing_bytes_max));
        let (all, share) = self.unpacked_bytes_max;
        let room = || Arc::new(Room::new(all, share, settings.limits.decompressed_bytes()));
        (settings.room, settings.reply_room) = (room(), room());
        let mut sessions = self.sessions;
        sessions.limits = settings.limits.clone();
        sessions.counts_user_calls = self.calls_per_user_max.is_some();
        let connections = Arc::default();
        let on_service_addresses = self.admin.as_ref().is_some_and(AdminOptions::is_on_service_addresses);
        let door = self.admin.map(|options| Arc::new(Door::new(options)));
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
                connections_max: self.connections_max,
                admission: Admission::new(&self.admission),
                calls_per_user_max: self.calls_per_user_max,
                handshaking: 0.into(),
                sessions: Registry::new(sessions, Arc::clone(&connections)),
                topic_lines: Arc::default(),
                connections,
                ending: Default::default(),
                emptied: Notify::new(),
                watching: Watching::default(),
                stopping: watch::Sender::new(false),
                listeners: Default::default(),
                draining: false.into(),
                stopped: OnceCell::new(),
                counters: Counters::default(),
            }),
        }
    }
}

impl std::fmt::Debug for ServerBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerBuilder").field("routes", &self.router.routes()).finish_non_exhaustive()
    }
}
