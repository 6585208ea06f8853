//! Many servers as one caller: which server a call goes to, and what happens when it fails.
//!
//! | file | what it does |
//! |---|---|
//! | `mod.rs` | [`XClient`], the handle: calls, oneway messages, events |
//! | `options.rs` | [`XClientOptions`]: retries, group, stickiness, handlers |
//! | `select.rs` | [`SelectMode`] and [`Selector`]: which server a call goes to |
//! | `layered.rs` | the end of a call that goes through layers |
//! | `least_loaded.rs` | [`SelectMode::LeastLoaded`]: the less loaded of two servers chosen at random |
//! | `outcome.rs` | [`Outcome`]: what became of each try, for selectors that learn |
//! | `failure.rs` | [`FailMode`]: what happens when a try fails |
//! | `budget.rs` | how many further tries overloaded servers get |
//! | `servers.rs` | the list that the discovery keeps, and the one client of each server |
//! | `snapshots.rs` | one value for many threads, without a line of memory that all of them write to |
//!
//! There is one connection to each server, which calls and messages share. It is made with the first call that goes there,
//! or at once for a client that [listens](XClient::bidirectional), and made again by itself when it is lost. All of that
//! happens in the background: calls to other servers do not wait for it. A server that leaves the list gets no new calls,
//! and its connection is closed when its pending calls are done. If it is listed again before that, it goes on with the
//! connection and the session that it has. An empty list is ignored: the servers of the one before
//! are kept.
//!
//! # Fail modes
//!
//! | mode | a try fails | tries | may run twice |
//! |---|---|---|---|
//! | [`Failfast`](FailMode::Failfast) | its error is returned | 1 | never |
//! | [`Failtry`](FailMode::Failtry) | the same server again, as soon as it is connected again | `retries` + 1 | if the connection is lost while a call is under way |
//! | [`Failover`](FailMode::Failover) | another server, of those not tried yet if there are any | `retries` + 1 | if the connection is lost while a call is under way |
//! | [`Failbackup`](FailMode::Failbackup) | a second server is asked after `backup_latency`, or at once if the first fails before and `Failover` would try again; the first success counts, and the other call is taken back. With one server there is no second call | 2 | by design |
//!
//! What a try fails with decides whether there is another one:
//!
//! | error | `Failtry` | `Failover` |
//! |---|---|---|
//! | not connected, or the connection ended before a byte of the call left | again | again |
//! | the connection ended with the call under way: it may have run | again, unless [`retry_maybe_executed(false)`](XClientOptions::retry_maybe_executed) | the same |
//! | a Bothways server shuts down and refused the call | again | again |
//! | a Bothways server is overloaded and refused the call; too many calls wait for it already; it refuses this client | returned | again |
//! | any other answer of a server, an argument or a reply that the codec does not take, the deadline | returned | returned |
//!
//! Servers that are overloaded are not made more so: tries that follow such a refusal have a bound of their own, which
//! the calls that succeed fill again: [`XClientOptions::retry_budget`].
//!
//! After the last try its error is returned. A deadline, of the call or of the client, covers all tries and
//! the pauses between them: each try has what is left, and a pause that is longer than that is not begun.
//!
//! A try waits for a connection that is being made until that one attempt has an outcome, but no longer than
//! [`ClientOptions::connection_wait`](crate::ClientOptions::connection_wait). `Failover` and `Failbackup`
//! pass over servers that are known to be down while any others are left; the other modes do not, because
//! for them it may matter which server it is.
//!
//! Where this differs from Go: there a further try may go to the very server that failed; a total failure
//! of `SendRaw` is reported as success; `Failbackup` returns whatever comes first, errors included, and
//! lets the other call run on.
//!
//! # Servers that push
//!
//! rpcx's example of two-way communication: a server that remembers who called, and sends to them.
//!
//! ```
//! use std::time::Duration;
//!
//! use bothways::{
//!     ClientOptions, FailMode, Metadata, Peer2PeerDiscovery, Reply, Request, SelectMode, Server, XClient,
//! };
//!
//! #[bothways::message]
//! struct Args {
//!     a: i64,
//!     b: i64,
//! }
//!
//! #[bothways::message]
//! struct Product {
//!     c: i64,
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let address = "memu@bidirectional";
//! // The server: the connection of a caller is all it takes to send to it later.
//! let server = Server::builder()
//!     .handler("Arith", "Mul", |request: Request| async move {
//!         let caller = request.connection().clone();
//!         tokio::spawn(async move {
//!             loop {
//!                 let metadata = Metadata::new();
//!                 if caller.send_message("test_service_path", "test_service_method", &metadata, "abcde").is_err() {
//!                     return; // It is gone.
//!                 }
//!                 tokio::time::sleep(Duration::from_secs(1)).await;
//!             }
//!         });
//!         match request.decode::<Args>() {
//!             Ok(args) => Reply::encode(&Product { c: args.a * args.b }, request.serialize_type()),
//!             Err(error) => Reply::error(error.to_string()),
//!         }
//!     })
//!     .build();
//! let listening = server.listen(address).await?;
//!
//! // The client.
//! let discovery = Peer2PeerDiscovery::new(address);
//! let (xclient, mut messages) =
//!     XClient::bidirectional("Arith", FailMode::Failtry, SelectMode::RandomSelect, discovery, ClientOptions::new());
//!
//! let product: Product = xclient.call("Mul", &Args { a: 10, b: 20 }).await?;
//! println!("10 * 20 = {}", product.c);
//!
//! while let Some(message) = messages.next().await {
//!     println!("{} sends {:?}", message.server(), message.payload()?);
//! #   assert_eq!((product.c, message.payload()?), (200, "abcde".into()));
//! #   xclient.close();
//! }
//! # Ok(()) }
//! ```

mod budget;
mod failure;
mod layered;
mod least_loaded;
mod options;
mod outcome;
mod select;
mod servers;
mod snapshots;

use std::{future::Future, sync::Arc};

use bothways_proto::SerializeType;
use bytes::Bytes;
use tokio::{
    runtime::Handle,
    task::{AbortHandle, JoinSet},
};

use self::layered::Layered;
use self::servers::{Receivers, Servers};
pub use self::{
    failure::FailMode,
    options::XClientOptions,
    outcome::{Outcome, OutcomeKind},
    select::{SelectMode, Selection, Selector, UserSelector},
};
use crate::{
    caller::{CallOptions, Caller, RawCall, RawReply, Response, encoded},
    client::{Client, Common, ConnectionEvent, ConnectionEvents, MessageQueue, ServerMessages},
    clock::{anywhere, clocked},
    codec::{Encode, Payload},
    connection::{CallTime, Connection},
    discovery::{Discovery, Lists, ServerEntry},
    error::{CallError, ConnectError, PushError},
    session::Subscribed,
};

/// A client of many servers that offer the same service. A clone is the same client; its connections end
/// with the last one.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use bothways::{ClientOptions, FailMode, MultipleServersDiscovery, SelectMode, XClient};
///
/// let servers = MultipleServersDiscovery::new(["tcp@10.0.0.1:8972", "tcp@10.0.0.2:8972"]);
/// let text = XClient::new("Text", FailMode::Failover, SelectMode::RoundRobin, servers, ClientOptions::new());
/// let upper: String = text.call("Upper", &"abcde".to_owned()).await?;
/// # Ok(()) }
/// ```
///
/// # Whom a server sends away
///
/// The client of a server that [sent it away](crate::error::SessionLost::Kicked), or at which it gave up after
/// [`refusals_max`](crate::ClientOptions::refusals_max), does not come back by itself: not with a call, and not with a
/// list that names the server again. Calls that go there fail at once with the reason, and
/// [`Failover`](FailMode::Failover) and [`Failbackup`](FailMode::Failbackup) prefer other servers. It begins anew if the
/// server is missing in one list and comes with a later one; so does a new `XClient`.
///
/// Where the options say not to [`reconnect`](crate::ClientOptions::reconnect), a client that has lost its connection is
/// made again by the next call that goes there, unless it was sent away.
///
/// Source: Go rpcx `client/xclient.go`, `XClient`.
#[derive(Clone)]
pub struct XClient {
    shared: Arc<Shared>,
    fail_mode: FailMode,
}

struct Shared {
    service_path: Box<str>,
    servers: Arc<Servers>,
    /// Kept for as long as its list is followed.
    _discovery: Box<dyn Discovery>,
    /// The tasks that follow the list, and watch its source.
    tasks: Vec<AbortHandle>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl XClient {
    /// A client of the servers that `discovery` knows. Nothing is connected before the first call, unless
    /// the options say so ([`XClientOptions::eager`], [`XClientOptions::handlers`]).
    ///
    /// `service_path` is the service that [`call`](Self::call) and the like ask for; as a
    /// [`Caller`] an `XClient` asks for whatever service it is told to.
    ///
    /// It belongs to the runtime in which it is made; calls and all else may be made from any thread.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    ///
    /// Source: Go rpcx `client/xclient.go`, `NewXClient`.
    pub fn new(
        service_path: impl Into<String>,
        fail_mode: FailMode,
        select_mode: SelectMode,
        discovery: impl Discovery,
        options: impl Into<XClientOptions>,
    ) -> Self {
        let options = options.into();
        let eager = options.eager.unwrap_or(options.handlers.is_some());
        Self::start(service_path.into(), fail_mode, select_mode, Box::new(discovery), options, eager, None)
    }

    /// A client of the servers that `discovery` knows, and the stream of what any of them sends unasked.
    ///
    /// Every server is connected at once, and again whenever the connection is lost, without a call. One that
    /// refuses the token is tried again, less and less often, and at once when a call goes there. The stream ends with
    /// the last clone of the client, or when it is [closed](Self::close). No message is missed, however early it comes;
    /// each knows its [server](crate::ServerMessage::server), and the messages of one server are in the order in which
    /// it sent them. The bounds of the queue are [`ClientOptions`](crate::ClientOptions)', for all servers together.
    ///
    /// A plain rpcx server does not know after a reconnection whom it sent to before:
    /// [`ConnectionEvent::Restored`] among the [events](Self::events) is
    /// the time to tell it again.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    ///
    /// Source: Go rpcx `client/xclient.go`, `NewBidirectionalXClient`.
    pub fn bidirectional(
        service_path: impl Into<String>,
        fail_mode: FailMode,
        select_mode: SelectMode,
        discovery: impl Discovery,
        options: impl Into<XClientOptions>,
    ) -> (Self, ServerMessages) {
        let options = options.into();
        let eager = options.eager.unwrap_or(true);
        let (queue, messages) = options.client.new_queue();
        let discovery = Box::new(discovery);
        let client = Self::start(service_path.into(), fail_mode, select_mode, discovery, options, eager, Some(queue));
        (client, messages)
    }

    fn start(
        service_path: String,
        fail_mode: FailMode,
        select_mode: SelectMode,
        discovery: Box<dyn Discovery>,
        options: XClientOptions,
        eager: bool,
        messages: Option<MessageQueue>,
    ) -> Self {
        let Lists { lists, source } = discovery.lists(&service_path);
        let mut changes = lists.clone();
        let receivers = Receivers { common: Common::default(), messages };
        let servers =
            Arc::new(Servers::new(options.complete(), eager, select_mode, lists, source.is_some(), receivers));

        // Weak: the servers end with the last client, and not with this task.
        let followed = Arc::downgrade(&servers);
        let following = tokio::spawn(async move {
            while changes.changed().await.is_ok() {
                let Some(servers) = followed.upgrade() else { return };
                servers.update();
            }
        });

        let mut tasks = vec![following.abort_handle()];
        if let Some(source) = source {
            let (service, watched) = (Arc::from(&*service_path), Arc::downgrade(&servers));
            let watching = tokio::spawn(source.keep_watching(move |error| {
                let Some(servers) = watched.upgrade() else { return };
                servers.note_source_failed(error);
                let (service, error) = (Arc::clone(&service), error.clone());
                servers.events().tell(&ConnectionEvent::DiscoveryFailed { service, error });
            }));
            tasks.push(watching.abort_handle());
        }

        let service_path = service_path.into();
        Self { shared: Arc::new(Shared { service_path, servers, _discovery: discovery, tasks }), fail_mode }
    }

    /// The same client, servers and connections with another fail mode, for calls that need their own:
    /// `xclient.with_fail_mode(FailMode::Failfast).call(…)` for what must not run twice.
    #[must_use]
    pub fn with_fail_mode(&self, fail_mode: FailMode) -> Self {
        Self { shared: Arc::clone(&self.shared), fail_mode }
    }

    /// Calls a method and waits for its value.
    ///
    /// Dropping the future gives the call up: its place in the table is free at once, and a server that
    /// understands it stops the handler.
    ///
    /// # Errors
    /// That of the last try, or [`CallError::NoServer`]; [`CallError::TimedOut`] if the deadline passed,
    /// however many tries were made; [`CallError::NotConnected`] after [`Self::close`].
    pub async fn call<R: Payload>(
        &self,
        service_method: &str,
        args: &(impl Encode + Sync + ?Sized),
    ) -> Result<R, CallError> {
        // Without `call_typed`: each future around another is copied with it.
        let (serialize, payload) = encoded(args, self.serialize_type())?;
        let (service_path, options) = (&*self.shared.service_path, CallOptions::new());
        let reply = self.call_raw(RawCall { service_path, service_method, serialize, payload, options }).await?;
        R::decode(reply.serialize, reply.payload).map_err(CallError::Decode)
    }

    /// Calls a method with its own metadata, deadline or codec, and returns the reply with its metadata.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn call_with<R: Payload>(
        &self,
        service_method: &str,
        args: &(impl Encode + Sync + ?Sized),
        options: CallOptions,
    ) -> Result<Response<R>, CallError> {
        self.call_typed(&self.shared.service_path, service_method, args, options).await
    }

    /// Sends a oneway request to one server. Returns when it is queued; errors of the handler are not reported. If it
    /// could not be queued because a connection is missing, all fail modes except `Failfast` try again.
    ///
    /// # Errors
    /// [`PushError`]: nothing was queued anywhere.
    ///
    /// Source: Go rpcx `client/xclient.go`, `Oneshot`.
    pub async fn oneshot(&self, service_method: &str, args: &(impl Encode + Sync + ?Sized)) -> Result<(), PushError> {
        self.push_typed(&self.shared.service_path, service_method, args, CallOptions::new()).await
    }

    /// Calls a method with arguments that are already encoded, and returns the raw reply.
    ///
    /// # Errors
    /// As [`Self::call`]; a total failure is always an error.
    ///
    /// Source: Go rpcx `client/xclient.go`, `SendRaw`.
    pub async fn send_raw(
        &self,
        service_method: &str,
        serialize: SerializeType,
        payload: impl Into<Bytes>,
        options: CallOptions,
    ) -> Result<RawReply, CallError> {
        let (service_path, payload) = (&*self.shared.service_path, payload.into());
        self.call_raw(RawCall { service_path, service_method, serialize, payload, options }).await
    }

    /// Subscribes to a topic, or to all topics that match a pattern, at every server. What any of them publishes to it
    /// from now on arrives among the [messages](Self::bidirectional) or at the [handlers](XClientOptions::handlers),
    /// and says which server it is from. Each server has its own topics, with their own positions: what is published at
    /// two servers arrives twice.
    ///
    /// Connects to every server. Returns what each of them said, by its address, in the order of [`Self::servers`]. A
    /// server whose connection is missing or lost ([`CallError::NotConnected`], [`CallError::Closed`]) is subscribed to
    /// when it is connected, and so is a server that joins the list.
    /// [`ConnectionEvent::Resubscribed`] reports both, or
    /// [`SubscriptionLost`](crate::ConnectionEvent::SubscriptionLost) if the server refuses. A plain server has no
    /// topics: its address is asked again at each new connection, because it may be a Bothways server by then. A server
    /// that is too busy, shuts down, or does not answer in time is asked again soon, as after a lost session. Any other
    /// error is final for that server, until it has left the list and joins again. A lost session is handled as in
    /// [`Client::subscribe`].
    ///
    /// Dropping the future leaves some servers subscribed, and those that join: [`Self::unsubscribe`] undoes it.
    ///
    /// # Errors
    /// [`CallError::NotConnected`] after [`Self::close`].
    pub async fn subscribe(&self, pattern: &str) -> Result<Vec<(String, Result<Subscribed, CallError>)>, CallError> {
        let closed = || CallError::NotConnected(ConnectError::Closed);
        let servers = self.shared.servers.want_topic(pattern).ok_or_else(closed)?;
        let (addresses, clients): (Vec<_>, Vec<_>) = servers.into_iter().unzip();
        let subscribe =
            |(client, subscribing): (Client, _)| async move { client.subscribe_lastingly(subscribing).await };
        let outcomes = Running::begin(clients, subscribe, self.shared.servers.runtime()).all().await;
        Ok(addresses.into_iter().zip(outcomes).collect())
    }

    /// Ends a subscription at every server that has it, also at those that have left the list and whose connection a call
    /// or a clone of their client keeps. Messages that are on their way still arrive.
    ///
    /// Dropping the future, once it was polled, does not keep any server from being asked.
    ///
    /// # Errors
    ///
    /// That of the first server in the list that returned one: it may still have the subscription. No server is
    /// subscribed to again.
    pub async fn unsubscribe(&self, pattern: &str) -> Result<(), CallError> {
        let clients = self.shared.servers.forget_topic(pattern);
        let unsubscribe =
            |(client, unsubscribing): (Client, _)| async move { client.finish_unsubscribe(unsubscribing).await };
        let mut running = Running::begin(clients, unsubscribe, self.shared.servers.runtime());
        running.goes_on = true;
        running.all().await.into_iter().collect()
    }

    /// The events of the connections to all servers, from now on. Servers that were connected before are among the
    /// [`connections`](Self::connections). Each stream gets all events.
    ///
    /// When a server leaves the list, and no call needs its connection any more, its client ends. That is reported as
    /// [`Lost`](crate::ConnectionEvent::Lost) with [`CloseReason::Local`](crate::error::CloseReason::Local), and, if it
    /// had a session, as [`SessionLost`](crate::ConnectionEvent::SessionLost) with
    /// [`Unlisted`](crate::error::SessionLost::Unlisted). A server that is listed again before that has lost nothing, and
    /// nothing is reported. An empty list is ignored: see [`Discovery`].
    pub fn events(&self) -> ConnectionEvents {
        self.shared.servers.events().subscribe()
    }

    /// The service that is called.
    pub fn service_path(&self) -> &str {
        &self.shared.service_path
    }

    /// What happens when a try fails.
    pub fn fail_mode(&self) -> FailMode {
        self.fail_mode
    }

    /// The servers that calls may go to now: those on the list (or on the last list that was not empty), without those
    /// that are inactive, of another group, or whose address is wrong.
    pub fn servers(&self) -> Vec<ServerEntry> {
        self.shared.servers.entries()
    }

    /// The clients of single servers that exist now, connected or not, in the order of [`Self::servers`]. A clone that
    /// is kept keeps its connection, even when the server leaves the list.
    pub fn clients(&self) -> Vec<Client> {
        self.shared.servers.clients()
    }

    /// The connections that are up now: to send to each server, or to read counters.
    pub fn connections(&self) -> Vec<Connection> {
        self.clients().iter().filter_map(|client| client.connection().ok()).collect()
    }

    /// [`Client::oneways_lost`], summed over all servers since this was made. Servers that have left the list count too: a
    /// request that is under way to one runs there, or is counted if the server says that it did not.
    pub fn oneways_lost(&self) -> u64 {
        self.shared.servers.oneways_lost()
    }

    /// Ends all connections for good, for every clone: also those that calls, or clones of their clients, keep to servers
    /// that have left the list. Pending calls fail as closed by this side; streams of messages
    /// and events end.
    pub fn close(&self) {
        self.shared.tasks.iter().for_each(AbortHandle::abort);
        self.shared.servers.close();
    }
}

/// Something that is done at many servers at once. It ends when this is dropped, unless it goes on.
struct Running<T: 'static> {
    tasks: JoinSet<(usize, T)>,
    goes_on: bool,
}

impl<T: Send + 'static> Running<T> {
    fn begin<C, F>(clients: Vec<C>, act: impl Fn(C) -> F, runtime: &Handle) -> Self
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut tasks = JoinSet::new();
        for (at, client) in clients.into_iter().enumerate() {
            let acting = act(client);
            tasks.spawn_on(async move { (at, acting.await) }, runtime);
        }
        Self { tasks, goes_on: false }
    }

    /// The outcomes, in the order of the servers.
    async fn all(mut self) -> Vec<T> {
        let mut outcomes = Vec::with_capacity(self.tasks.len());
        while let Some(outcome) = self.tasks.join_next().await {
            match outcome {
                Ok(outcome) => outcomes.push(outcome),
                Err(panicked) if panicked.is_panic() => std::panic::resume_unwind(panicked.into_panic()),
                // Its runtime has ended, and with it the client.
                Err(_) => {}
            }
        }
        outcomes.sort_unstable_by_key(|(at, _)| *at);
        outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        if self.goes_on {
            self.tasks.detach_all();
        }
    }
}

#[expect(clippy::manual_async_fn, reason = "an `async fn` has its arguments twice: as they came, and as they are used")]
impl Caller for XClient {
    fn call_raw(&self, call: RawCall<'_>) -> impl Future<Output = Result<RawReply, CallError>> + Send {
        async move {
            let options = self.shared.servers.options();
            let timeout = call.options.timeout.or(options.client.default_timeout());
            let time = timeout.and_then(CallTime::new);
            if options.layers.see(&call.options) {
                let end = Layered { client: self.clone(), time, timeout };
                let calling = Box::pin(options.layers.call(call, time, timeout, end));
                return clocked(self.shared.servers.runtime(), calling).await;
            }
            anywhere!(self.shared.servers.runtime(), self.call_by_fail_mode(&call, time))
        }
    }

    fn push_raw(&self, push: RawCall<'_>) -> impl Future<Output = Result<(), PushError>> + Send {
        async move {
            let layers = &self.shared.servers.options().layers;
            if layers.see(&push.options) {
                let end = Layered { client: self.clone(), time: None, timeout: None };
                return Box::pin(layers.push(push, end)).await;
            }
            anywhere!(self.shared.servers.runtime(), self.push_by_fail_mode(&push))
        }
    }

    fn serialize_type(&self) -> SerializeType {
        self.shared.servers.options().client.serialize()
    }
}

impl std::fmt::Debug for XClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("XClient")
            .field("service_path", &self.shared.service_path)
            .field("fail_mode", &self.fail_mode)
            .field("servers", &self.servers())
            .finish_non_exhaustive()
    }
}
