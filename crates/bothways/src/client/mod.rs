//! A client of one server: a connection that comes back by itself, and what the server pushes.
//!
//! | file | what it does |
//! |---|---|
//! | `mod.rs` | [`Client`], the handle: calls and oneway messages |
//! | `options.rs` | deadlines, bounds, token, codec |
//! | `layered.rs` | the end of a call that goes through layers |
//! | `returned.rs` | oneway requests that did not run and wait for the next connection |
//! | `elsewhere.rs` | where it goes when its server stops, if that names other addresses |
//! | `link.rs` | keeps the connection: watches it, and makes it again with back-off |
//! | `handler.rs` | what comes from the server: messages to the queue, calls to the handlers |
//! | `messages.rs` | the bounded queue of what the server pushes, and its stream |
//! | `repeats.rs` | idempotency keys of what was received, so that a repetition is not handed on |
//! | `session.rs` | what the client remembers of its session: secret, offsets, what to acknowledge |
//! | `subscriptions.rs` | what the client subscribes to, and how far it is in each topic |
//! | `holes.rs` | what is missing of a topic before its last message |
//! | `resubscribe.rs` | subscribes again when the session is lost, and asks for what a gap cost |
//! | `results.rs` | replies to the server's calls, so that a call that is sent again runs once |
//! | `events.rs` | connected, lost, restored: always reported, in order |

mod elsewhere;
mod events;
mod handler;
mod holes;
mod layered;
mod link;
mod messages;
mod options;
mod repeats;
mod resubscribe;
mod results;
mod returned;
mod roster;
mod session;
mod subscriptions;
mod waiting;

use std::{
    sync::{Arc, Weak, atomic::AtomicU64},
    time::Duration,
};

use bothways_proto::{SerializeType, keys};
use parking_lot::Mutex;
use tokio::{runtime, time::Instant};

pub use self::{
    elsewhere::OtherAddresses,
    events::{ConnectionEvent, ConnectionEvents, SessionLost},
    messages::{ServerMessage, ServerMessages},
    options::{ClientOptions, Reconnect, Token},
};
pub(crate) use self::{
    events::EventSender,
    handler::handle_messages,
    link::Look,
    messages::MessageQueue,
    repeats::ReceivedKeys,
    subscriptions::{Subscribing, Unsubscribing},
};
use self::{
    layered::{Layered, LayeredTry},
    link::{Link, Patience},
    resubscribe::is_passing,
    subscriptions::{Asker, Place, Subscriptions},
};
use crate::{
    caller::{CallOptions, Caller, RawCall, RawReply, Response, encoded},
    clock::{after, anywhere, clocked},
    codec::{Encode, Payload},
    connection::{CallTime, Connection, ConnectionId, ConnectionStats},
    error::{CallError, ConnectError, ErrorCode, PushError, ReservedName},
    handler::{Context, Request},
    router::Router,
    session::{Position, Presence, Subscribed},
    transport::AnySocket,
};

/// So many servers may refuse a call because they are shutting down before its caller is told.
const REFUSALS_MAX: usize = 2;

/// What the clients of several servers have together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Common {
    pub(crate) events: EventSender,
    pub(crate) keys: ReceivedKeys,
    /// Oneway requests that did not go again; see [`Client::oneways_lost`].
    pub(crate) oneways_lost: Arc<AtomicU64>,
}

/// A client of one server. A clone is the same client; the connection ends with the last one.
///
/// It belongs to the runtime in which it was made; calls may be made from any thread.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use bothways::{Client, ClientOptions};
///
/// let client = Client::connect("tcp@127.0.0.1:8972", ClientOptions::new()).await?;
/// let upper: String = client.call("Text", "Upper", "abcde").await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Client {
    handle: Arc<Handle>,
}

/// A client that others keep, or do not.
pub(crate) struct WeakClient(Weak<Handle>);

impl WeakClient {
    /// A clone of it is left.
    pub(crate) fn is_kept(&self) -> bool {
        0 < self.0.strong_count()
    }

    /// The client, if a clone of it is left.
    pub(crate) fn upgrade(&self) -> Option<Client> {
        Some(Client { handle: self.0.upgrade()? })
    }
}

/// Ends the link when the last client is dropped.
struct Handle {
    link: Arc<Link>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.link.close(true);
    }
}

impl Client {
    /// Connects to a server. Returns when the server has answered the Hello, and so has let this client in. What the server
    /// pushes is dropped and counted; [`Self::bidirectional`] and [`Self::with_handlers`] receive it.
    ///
    /// A server that admits no more clients for now, or whose auth hook cannot check the token
    /// ([`AuthError::not_now`](crate::AuthError::not_now)), is tried again after the time it names, for as long as the future
    /// is polled: put a time limit around it. With [`Reconnect::Always`], any server is tried again. [`Self::events`] that
    /// are taken afterwards do not begin with this connection.
    ///
    /// The runtime in which this is called keeps the connection; all other methods may be called on any thread.
    ///
    /// # Errors
    /// [`ConnectError`]: there is no client then.
    pub async fn connect(address: &str, options: ClientOptions) -> Result<Self, ConnectError> {
        let client = Self::start(address, options, Router::new(), None, Common::default(), &[])?;
        client.handle.link.first_connection().await?;
        Ok(client)
    }

    /// Connects to a server, and returns the stream of what it pushes. No message is missed, however early it comes. The
    /// wait for a server that admits no more clients, or that cannot check tokens for now, is that of [`Self::connect`].
    ///
    /// # Errors
    /// [`ConnectError`]: there is no client then.
    pub async fn bidirectional(address: &str, options: ClientOptions) -> Result<(Self, ServerMessages), ConnectError> {
        let (queue, messages) = options.new_queue();
        let client = Self::start(address, options, Router::new(), Some(queue), Common::default(), &[])?;
        client.handle.link.first_connection().await?;
        Ok((client, messages))
    }

    /// Connects to a server, with handlers for its pushes and calls: the same kind of routes as a server's. The pushes of
    /// one server are handled one after another, in order. Calls run side by side, up to
    /// [`ClientOptions::server_calls_max`], and may overtake pushes that were made before them.
    ///
    /// A call of this client may return before the handlers of pushes have run that came before its reply: pushes wait for
    /// their turn in a queue. With the stream of [`Self::bidirectional`], they are in the stream by then.
    ///
    /// The wait for a server that admits no more clients, or that cannot check tokens for now, is that of [`Self::connect`].
    ///
    /// # Errors
    /// [`ConnectError`]: there is no client then.
    pub async fn with_handlers(address: &str, options: ClientOptions, handlers: Router) -> Result<Self, ConnectError> {
        in_a_runtime()?;
        let (queue, messages) = options.new_queue();
        handler::handle_messages(messages, handlers.clone());
        let client = Self::start(address, options, handlers, Some(queue), Common::default(), &[])?;
        client.handle.link.first_connection().await?;
        Ok(client)
    }

    /// A client over one socket that the application brings; see [`Server::take`](crate::Server::take) for the other end
    /// and an example. When the socket ends the client has ended: it cannot come back by itself.
    ///
    /// To receive what the server pushes, use [`ConnectOptions::over`](crate::transport::ConnectOptions::over) with
    /// [`Self::bidirectional`] or [`Self::with_handlers`].
    ///
    /// # Errors
    /// [`ConnectError`]: there is no client then.
    pub async fn over(socket: impl Into<AnySocket>, options: ClientOptions) -> Result<Self, ConnectError> {
        let connect = options.connect().clone().over(socket);
        Self::connect("memory@over a socket", options.connect_options(connect).reconnect(Reconnect::Never)).await
    }

    /// A client that is connecting in the background, and subscribes to these topics as soon as it is. Must be called
    /// within a tokio runtime.
    pub(crate) fn start(
        address: &str,
        options: ClientOptions,
        handlers: Router,
        messages: Option<MessageQueue>,
        common: Common,
        topics: &[Arc<str>],
    ) -> Result<Self, ConnectError> {
        let address = options.transports().place(address)?;
        in_a_runtime()?;
        handlers.warn_of_problems();
        let subscriptions = Subscriptions::wanting(topics.iter().cloned());
        let handle = Arc::new_cyclic(|client| {
            let client = Weak::clone(client);
            Handle { link: Link::start(client, address, options, handlers, messages, common, subscriptions) }
        });
        Ok(Self { handle })
    }

    /// Calls a method and waits for its value.
    ///
    /// Dropping the future cancels the call: its place in the table of pending calls is free at once, and a server that
    /// understands it stops the handler.
    ///
    /// A call that certainly did not run waits for the next connection, within its own time and
    /// [`ClientOptions::connection_wait`]: one that was not sent, and one that the server refused because it is shutting
    /// down. After the third such refusal, or if no connection comes in time, the refusal is the error.
    ///
    /// # Errors
    /// Any [`CallError`]; [`CallError::is_safe_to_retry`] says whether the call can have run.
    pub async fn call<R: Payload>(
        &self,
        service_path: &str,
        service_method: &str,
        args: &(impl Encode + Sync + ?Sized),
    ) -> Result<R, CallError> {
        // Without `call_typed`: each future around another is copied with it.
        let (serialize, payload) = encoded(args, self.serialize_type())?;
        let options = CallOptions::new();
        let reply = self.call_raw(RawCall { service_path, service_method, serialize, payload, options }).await?;
        R::decode(reply.serialize, reply.payload).map_err(CallError::Decode)
    }

    /// Calls a method with its own metadata, deadline or codec, and returns the reply with its metadata.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn call_with<R: Payload>(
        &self,
        service_path: &str,
        service_method: &str,
        args: &(impl Encode + Sync + ?Sized),
        options: CallOptions,
    ) -> Result<Response<R>, CallError> {
        self.call_typed(service_path, service_method, args, options).await
    }

    /// Sends a oneway request. Returns when it is queued; errors of the handler are not reported, and a server that
    /// does not run it says so only in its own counter ([`ConnectionStats::oneways_refused`]). It runs at most once: a
    /// request that is on its way when the connection is lost may be lost too, and nothing tells of it. What must arrive
    /// is a call.
    ///
    /// A request that is still queued when the connection is lost is sent over the next one, if that stands within
    /// [`ClientOptions::connection_wait`]. An expired token costs nothing: with [`ClientOptions::credentials`] the request is
    /// sent once more with the next token, like a call, if the server is a Bothways server that returns it.
    /// [`Self::oneways_lost`] counts the requests for which that was not possible. After [`Self::close`] nothing is
    /// sent again: what comes back then, or has not left in time, is counted.
    ///
    /// # Errors
    /// [`PushError`]: nothing was queued.
    pub async fn oneshot(
        &self,
        service_path: &str,
        service_method: &str,
        args: &(impl Encode + Sync + ?Sized),
    ) -> Result<(), PushError> {
        self.push_typed(service_path, service_method, args, CallOptions::new()).await
    }

    /// Subscribes to a topic, or to all topics that match a pattern (`*` is one segment, a last `>` the rest).
    /// From now on, messages published to them arrive in the stream or at the handlers.
    ///
    /// The subscription belongs to the client's session, and survives a lost connection with it. If the session itself is
    /// lost, or this client has none, the client subscribes again by itself, from the last message that it got.
    /// [`ConnectionEvent::Resubscribed`] says whether it missed something. A server that is too busy is asked again after
    /// 50 ms to 5 s, and one that refuses after 1 to 60 s ([`ConnectionEvent::SubscriptionLost`]). A pattern is subscribed
    /// again after the topics that it covers and whose positions are known, so that these go on in order. It does not wait
    /// for a topic that is refused, and never longer than 5 s: then new messages may arrive before those that were missed.
    ///
    /// Requests of several clones about one topic run one after another, in the order in which their futures were first
    /// polled; the last one counts. The time limit of a call includes this wait.
    ///
    /// Dropping the future may leave the session subscribed, until [`Self::unsubscribe`] or the next connection.
    ///
    /// If the server reports that it dropped some messages, the client asks for those of topics with history again, as
    /// soon as there is room: each topic's messages arrive in order and once. [`ConnectionEvent::Resubscribed`] reports
    /// what cannot be had any more.
    ///
    /// # Errors
    /// [`CallError::Remote`] with the server's reason for a refusal, or any other [`CallError`]: this client
    /// does not subscribe again by itself.
    pub async fn subscribe(&self, pattern: &str) -> Result<Subscribed, CallError> {
        self.subscribe_at(&self.begin_subscribe(pattern), None, Patience::Connection).await
    }

    /// Subscribes to a topic, and gets the messages after a position that this program, or an earlier one, had reached:
    /// all of them, or none if [`Subscribed::recovered`] is false. Messages that the session has already got by another
    /// subscription do not come again.
    ///
    /// If the session's log at the server has no room for all of them, they come in parts, in order and before anything
    /// new. This method returns with the first part, and the client asks for the next while the application handles
    /// what it got. If the history drops a message before the client asks for it, [`ConnectionEvent::Resubscribed`]
    /// says so.
    ///
    /// A program that goes on after a restart stores [`Subscribed::position`] as soon as it has subscribed, and then
    /// the position of each message that it has handled. If it stored only the positions of messages, and ended before
    /// the first one came, it would miss everything in between.
    ///
    /// ```no_run
    /// use bothways::{Client, ClientOptions, session::Position};
    /// # fn read_kept() -> Option<Position> { None }
    /// # fn keep(position: Position) {}
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let (client, mut messages) = Client::bidirectional("tcp@127.0.0.1:8972", ClientOptions::new()).await?;
    /// let subscribed = match read_kept() {
    ///     Some(position) => client.subscribe_from("news", position).await?,
    ///     None => client.subscribe("news").await?,
    /// };
    /// if let Some(position) = subscribed.position {
    ///     keep(position); // In a file, say, as `epoch` and `offset`.
    /// }
    /// while let Some(message) = messages.next().await {
    ///     println!("{:?}", message.payload()?);
    ///     if let Some(position) = message.position() {
    ///         keep(position);
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// A new subscriber that wants the whole history subscribes twice: [`Self::subscribe`] returns the epoch, and this
    /// method from offset 0 of that epoch brings everything that is kept, if nothing has been dropped from it yet.
    ///
    /// # Errors
    /// As [`Self::subscribe`].
    pub async fn subscribe_from(&self, topic: &str, position: Position) -> Result<Subscribed, CallError> {
        self.subscribe_at(&self.begin_subscribe(topic), Some(position), Patience::Connection).await
    }

    /// Ends the subscription to this topic or pattern, if there is one. Messages that are on their way still arrive.
    ///
    /// # Errors
    /// Any [`CallError`]: the server may still have it. The client tells it so when the next connection stands, and does
    /// not subscribe again by itself. The same if the future is dropped before it is done.
    pub async fn unsubscribe(&self, pattern: &str) -> Result<(), CallError> {
        self.finish_unsubscribe(self.begin_unsubscribe(pattern)).await
    }

    /// The members of a topic with presence that this client subscribes to: to begin with, or after it may have missed
    /// changes. It includes each [`PresenceChange`](crate::session::PresenceChange) up to the returned generation. Users
    /// are listed without their sessions.
    ///
    /// For more than 1,000 members it makes several calls. A member that comes or goes between them is reported as a change
    /// with a generation above the returned one.
    ///
    /// # Errors
    /// [`CallError::Remote`] with the server's reason, or any other [`CallError`].
    pub async fn roster(&self, topic: &str) -> Result<Presence, CallError> {
        roster::of(self, topic).await
    }

    /// The events of this client's connection, from now on. Each stream gets all of them.
    pub fn events(&self) -> ConnectionEvents {
        self.handle.link.events()
    }

    /// The server's address, in rpcx's form.
    pub fn address(&self) -> String {
        self.handle.link.address().to_string()
    }

    /// The current connection. Requests on it carry this client's token.
    ///
    /// # Errors
    /// [`ConnectError::Reconnecting`] while it is being made again, or another [`ConnectError`] that says how the last
    /// try failed; [`ConnectError::Closed`] after [`Self::close`].
    pub fn connection(&self) -> Result<Connection, ConnectError> {
        self.handle.link.current()
    }

    /// Counters of the current connection; zeros while there is none.
    pub fn stats(&self) -> ConnectionStats {
        self.connection().map(|connection| connection.stats()).unwrap_or_default()
    }

    /// Oneway requests of this client that were lost. The log has a line for them, too. Either they certainly did not run,
    /// and could not be sent again: their token had run out, their server was shutting down, or their connection was lost
    /// before they had left whole. No connection stood within [`ClientOptions::connection_wait`], the next server did not
    /// run them either, more than 1,024 of them, or 4 MiB, waited at once, a part of the request had left, or the client was
    /// closed. Or their server ended the connection, and has not said that it had read them.
    ///
    /// Of a connection that breaks without a word, and of a server that does not say what it has read, nobody knows what
    /// became of the requests that had left: these are not counted.
    pub fn oneways_lost(&self) -> u64 {
        self.handle.link.returned().lost()
    }

    /// Makes one try of a call, which takes what is left of its time, over the connection that [`Self::look`] has just
    /// seen. Without one it waits for the outcome of one try to connect at most, and not for the connection: a caller
    /// with other servers to ask would rather know.
    #[expect(
        clippy::manual_async_fn,
        reason = "an `async fn` has its arguments twice: as they came, and as they are used"
    )]
    pub(crate) fn try_call(
        &self,
        call: &RawCall<'_>,
        time: Option<CallTime>,
        seen: Option<&Connection>,
    ) -> impl Future<Output = Result<RawReply, CallError>> + Send {
        async move {
            let layers = self.handle.link.options().layers();
            if layers.see(&call.options) {
                let timeout = self.timeout_of(call);
                let end = LayeredTry { client: self.clone(), time, timeout };
                return Box::pin(layers.call(call.clone(), time, timeout, end)).await;
            }
            self.try_call_direct(call, time, seen).await
        }
    }

    /// All that a caller with other servers to ask wants to know of this client.
    #[inline]
    pub(crate) fn look(&self) -> Look {
        self.handle.link.look()
    }

    /// The time that a call has.
    fn timeout_of(&self, call: &RawCall<'_>) -> Option<Duration> {
        call.options.timeout.or(self.handle.link.options().default_timeout())
    }

    /// As [`Self::try_call`], after all layers.
    #[expect(
        clippy::manual_async_fn,
        reason = "an `async fn` has its arguments twice: as they came, and as they are used"
    )]
    fn try_call_direct(
        &self,
        call: &RawCall<'_>,
        mut time: Option<CallTime>,
        seen: Option<&Connection>,
    ) -> impl Future<Output = Result<RawReply, CallError>> + Send {
        async move {
            self.check_reserved(call)?;
            let waited_for;
            let connection = match seen {
                Some(connection) => connection,
                None => {
                    let (connection, left) = Box::pin(self.connection_for(Patience::OneTry, time)).await?;
                    time = left;
                    waited_for = connection;
                    &waited_for
                }
            };

            let again = {
                let error = match connection.call_within(call, time).await {
                    Err(error) if self.may_renew(&error, connection) => error,
                    outcome => return outcome.map_err(|error| error.of_call_within(self.timeout_of(call))),
                };
                Box::pin(self.call_renewed(call, Patience::OneTry, time, error, |_| {}))
            };
            again.await.map_err(|error| error.of_call_within(self.timeout_of(call)))
        }
    }

    /// As [`Caller::push_raw`], but waits for the outcome of one try to connect at most.
    pub(crate) async fn try_push(&self, push: &RawCall<'_>) -> Result<(), PushError> {
        let layers = self.handle.link.options().layers();
        if layers.see(&push.options) {
            let end = LayeredTry { client: self.clone(), time: None, timeout: None };
            return Box::pin(layers.push(push.clone(), end)).await;
        }
        self.push_over(Patience::OneTry, push).await
    }

    /// The application subscribes: from here on this is in line, and what it asks later is behind it.
    pub(crate) fn begin_subscribe(&self, pattern: &str) -> Subscribing {
        self.handle.link.subscriptions().begin_subscribe(pattern)
    }

    /// As [`Self::begin_subscribe`], for the end of a subscription.
    pub(crate) fn begin_unsubscribe(&self, pattern: &str) -> Unsubscribing {
        self.handle.link.subscriptions().begin_unsubscribe(pattern)
    }

    /// The rest of [`Self::unsubscribe`].
    pub(crate) async fn finish_unsubscribe(&self, unsubscribing: Unsubscribing) -> Result<(), CallError> {
        let options = self.in_turn(&unsubscribing.place).await?;
        subscriptions::unsubscribe(self, &unsubscribing.which.topic, options).await?;
        unsubscribing.has_ended();
        Ok(())
    }

    /// As [`Self::subscribe`], but waits for the outcome of one try to connect at most; and if the connection is
    /// missing or lost, subscribes when it is there. A server that cannot do it for now is asked again.
    pub(crate) async fn subscribe_lastingly(&self, subscribing: Subscribing) -> Result<Subscribed, CallError> {
        let link = &self.handle.link;

        loop {
            match self.subscribe_at(&subscribing, None, Patience::OneTry).await {
                Err(error @ (CallError::Closed { .. } | CallError::NotConnected(_))) => {
                    subscribing.claim.want();
                    // A connection that stands by now may not have known of it.
                    match link.at_once(Patience::OneTry) {
                        Some(Ok(_)) => {}
                        _ => return Err(error),
                    }
                }
                Err(error) if is_passing(&error) => {
                    // It is in line behind this call, and looks then whether it is still wanted.
                    subscribing.claim.want();
                    link.subscribe_again(&subscribing.claim.which().topic);
                    return Err(error);
                }
                outcome => {
                    if outcome.is_err() {
                        subscribing.claim.forget();
                    }

                    if matches!(outcome, Err(CallError::Remote { .. })) && link.is_at_plain_server() {
                        // It has no topics. The one that is there the next time may have.
                        subscribing.claim.want();
                    }
                    return outcome;
                }
            }
        }
    }

    /// True if the connection is over and will not be made again.
    pub(crate) fn is_ended(&self) -> bool {
        self.handle.link.is_ended()
    }

    /// True if it has ended, and is not to be replaced by another one of the same server.
    pub(crate) fn stays_away(&self) -> bool {
        self.handle.link.stays_away()
    }

    /// Keeps nothing of it but its place.
    pub(crate) fn downgrade(&self) -> WeakClient {
        WeakClient(Arc::downgrade(&self.handle))
    }

    /// Its server has left the list that it was made for.
    pub(crate) fn note_unlisted(&self) {
        self.handle.link.note_unlisted(true);
    }

    /// Its server is on that list again. It subscribes to those of these topics that it does not have.
    pub(crate) fn note_listed(&self, topics: &[Arc<str>]) {
        let link = &self.handle.link;
        link.note_unlisted(false);
        for topic in topics {
            link.subscriptions().want(topic);
            link.subscribe_again(topic);
        }
    }

    /// Ends the client and its session for good: pushes that wait for it end, their senders are told, and it is no
    /// longer present in its topics. Pending calls fail as closed by this side. Dropping the last clone does the same.
    ///
    /// Oneway requests that are queued still leave, before the server hears of the end: within 2.5 s, the rest is lost.
    /// [`Self::oneways_lost`] counts these, and those that the server hands back, or says that it has not read, within 5 s.
    ///
    /// Without a connection the server cannot be told: then the session ends after its resume window.
    pub fn close(&self) {
        self.handle.link.close(true);
    }

    /// Ends the connection for good, but not the session: to others this client looks like one that lost its connection,
    /// until the resume window is over. For a program that restarts at once, and whose user should not appear to leave and
    /// return. Pushes that wait for this session are never delivered.
    pub fn close_keeping_session(&self) {
        self.handle.link.close(false);
    }
}

impl Request {
    /// The client that has this handler, to call the server that asks. `None` at a server, and when the application
    /// has dropped its client.
    ///
    /// ```no_run
    /// use bothways::{Client, ClientOptions, Reply, Request, Router};
    ///
    /// # async fn example() -> Result<(), bothways::ConnectError> {
    /// let handlers = Router::new().handler("Customer", "Confirm", |request: Request| async move {
    ///     let Some(shop) = request.client() else { return Reply::error("it is closed") };
    ///     match shop.call::<String>("Shop", "Terms", &()).await {
    ///         Ok(terms) => Reply::ok(terms),
    ///         Err(error) => Reply::error(error.to_string()),
    ///     }
    /// });
    /// let client = Client::with_handlers("tcp@127.0.0.1:8972", ClientOptions::new(), handlers).await?;
    /// # Ok(()) }
    /// ```
    pub fn client(&self) -> Option<Client> {
        Some(Client { handle: self.connection().owner()? })
    }
}

impl Context {
    /// The client that has this handler; see [`Request::client`].
    pub fn client(&self) -> Option<Client> {
        self.request().client()
    }
}

/// The connection is kept by a task, and its socket belongs to a runtime.
fn in_a_runtime() -> Result<(), ConnectError> {
    runtime::Handle::try_current().map(|_| ()).map_err(|_| ConnectError::NoRuntime)
}

impl Client {
    fn runtime(&self) -> &runtime::Handle {
        self.handle.link.runtime()
    }

    async fn subscribe_at(
        &self,
        Subscribing { claim, place }: &Subscribing,
        mut from: Option<Position>,
        patience: Patience,
    ) -> Result<Subscribed, CallError> {
        let options = self.in_turn(place).await?;
        let (pattern, subscriptions) = (&*claim.which().topic, self.handle.link.subscriptions());
        let (position, asker) = match from {
            Some(_) => (from, Asker::ApplicationFrom),
            None => (None, Asker::Application),
        };

        loop {
            let over = Over { client: self, patience, used: Mutex::default() };
            // It may be that this client is about to ask for what it missed: then that comes first.
            let asked_from = from.or_else(|| subscriptions.pending_from(pattern));
            let outcome = subscriptions::subscribe(&over, pattern, asked_from, from.is_some(), options.clone()).await;

            if matches!(outcome, Ok(_) | Err(CallError::Remote { .. })) {
                claim.is_answered();
            }
            let answer = outcome?;
            let connection = over.used.into_inner().expect("a call that was answered had a connection");

            if let Some(asked_for) = from.filter(|_| answer.more || answer.later) {
                // The server has all of it, and the session no room: the application may be about to make some, once
                // this has returned.
                let reached = answer.subscribed.position.unwrap_or(asked_for);
                if claim.hold_part(connection, reached) {
                    self.handle.link.ask_for_rest(&claim.which().topic);
                    return Ok(Subscribed { recovered: true, position });
                }
                from = Some(reached);
                continue;
            }

            if claim.hold(connection, &answer.subscribed, asker).is_some() {
                return Ok(answer.subscribed);
            }
            // The session to which that answer belonged is lost since.
        }
    }

    /// Waits until what was asked of a topic before is answered. Answers with the options for what is asked now, which
    /// has the rest of a call's time.
    async fn in_turn(&self, place: &Place) -> Result<CallOptions, CallError> {
        if place.is_first() {
            return Ok(CallOptions::new());
        }

        let waiting = async {
            let Some(timeout) = self.handle.link.options().default_timeout() else {
                place.turn().await;
                return Ok(CallOptions::new());
            };

            let began = Instant::now();
            // If its turn has not come by then, nothing of the time is left.
            let _ = tokio::time::timeout_at(after(timeout), place.turn()).await;
            let left = timeout.saturating_sub(began.elapsed());
            if left.is_zero() {
                // Zero says that nothing was sent.
                return Err(CallError::TimedOut(Duration::ZERO));
            }
            Ok(CallOptions::new().timeout(left))
        };
        anywhere!(self.runtime(), waiting)
    }

    /// A client that does not negotiate may speak to `_bothways` itself, as any plain rpcx client may.
    fn check_reserved(&self, call: &RawCall<'_>) -> Result<(), ReservedName> {
        let speaks_itself = call.service_path == keys::CONTROL_PATH && !self.handle.link.options().negotiates();
        if speaks_itself { Ok(()) } else { call.check_reserved() }
    }

    /// The connection for a call, and the time that the call has once it is there.
    async fn connection_for(
        &self,
        patience: Patience,
        time: Option<CallTime>,
    ) -> Result<(Connection, Option<CallTime>), CallError> {
        let link = &self.handle.link;
        if let Some(outcome) = link.at_once(patience) {
            return Ok((outcome?, time));
        }
        // Seldom, and larger than all the rest of a call: it is put aside, so that calls are small.
        Box::pin(self.wait_for_connection(patience, time, after(link.options().wait()))).await
    }

    /// As [`Self::connection_for`], if it is not there, until this moment.
    async fn wait_for_connection(
        &self,
        patience: Patience,
        time: Option<CallTime>,
        until: Instant,
    ) -> Result<(Connection, Option<CallTime>), CallError> {
        let link = &self.handle.link;
        // The time for the call includes the time for its connection. If that is over, the error says what is wrong
        // with the connection, and that nothing was sent.
        let until = time.map_or(until, |time| until.min(time.end));
        let connection = link.wait(patience, until).await?;
        Ok((connection, time.map(CallTime::rest)))
    }

    /// Makes a call within its own time or the client's, of which so much is left, over the connection that `used` is
    /// shown.
    #[expect(
        clippy::manual_async_fn,
        reason = "an `async fn` has its arguments twice: as they came, and as they are used"
    )]
    fn call_noting(
        &self,
        call: &RawCall<'_>,
        time: Option<CallTime>,
        patience: Patience,
        used: impl Fn(&Connection),
    ) -> impl Future<Output = Result<RawReply, CallError>> {
        async move {
            self.check_reserved(call)?;
            let link = &self.handle.link;
            let mut over = None;

            let at_once = link.at_once(patience).transpose()?;
            // What is named here is not kept for the wait.
            let again = {
                let first = match at_once {
                    Some(connection) => {
                        used(&connection);
                        over.insert(connection).call_within(call, time).await
                    }
                    None => {
                        let until = after(link.options().wait());
                        let waiting = async {
                            let (connection, time) = self.wait_for_connection(patience, time, until).await?;
                            used(&connection);
                            over.insert(connection).call_within(call, time).await
                        };
                        Box::pin(waiting).await
                    }
                };
                let error = match first {
                    Err(error) if self.may_call_again(&error, patience, over.as_ref()) => error,
                    outcome => return outcome.map_err(|error| error.of_call_within(self.timeout_of(call))),
                };
                Box::pin(self.call_again(call, time.map(CallTime::rest), patience, error, over, used))
            };
            again.await.map_err(|error| error.of_call_within(self.timeout_of(call)))
        }
    }

    /// True if a call that failed so over this connection is made once more: it certainly did not run.
    fn may_call_again(&self, error: &CallError, patience: Patience, over: Option<&Connection>) -> bool {
        let waits = patience == Patience::Connection;
        match error {
            CallError::Closed { written: false, .. } if waits && self.handle.link.is_waited_for() => true,
            error if waits && self.may_come_back(error) => true,
            error => over.is_some_and(|connection| self.may_renew(error, connection)),
        }
    }

    /// Makes a call once more, for one of these reasons.
    async fn call_again(
        &self,
        call: &RawCall<'_>,
        time: Option<CallTime>,
        patience: Patience,
        error: CallError,
        over: Option<Connection>,
        used: impl Fn(&Connection),
    ) -> Result<RawReply, CallError> {
        match error {
            CallError::Closed { written: false, .. } => self.call_when_back(call, time, None, used).await,
            error if patience == Patience::Connection && self.may_come_back(&error) => {
                let refused = over.map(|connection| (connection.id(), error));
                self.call_when_back(call, time, refused, used).await
            }
            error => self.call_renewed(call, patience, time, error, used).await,
        }
    }

    /// True if the token of a call has run out, and the client is about to ask for another: the server has said so by
    /// ending the connection.
    fn may_renew(&self, error: &CallError, connection: &Connection) -> bool {
        let link = &self.handle.link;
        matches!(error, CallError::Remote { code: Some(ErrorCode::Unauthenticated), .. })
            && !connection.is_open()
            && link.options().can_renew()
            && link.is_waited_for()
    }

    /// True if the server has refused a call because it is shutting down, and the client is about to connect again: the
    /// call certainly did not run.
    fn may_come_back(&self, error: &CallError) -> bool {
        let link = &self.handle.link;
        matches!(error, CallError::Remote { code: Some(ErrorCode::ShuttingDown), .. })
            && link.options().reconnects()
            && link.is_waited_for()
    }

    /// Makes a call whose token was refused once more, with the next one: the server has run nothing of it.
    async fn call_renewed(
        &self,
        call: &RawCall<'_>,
        patience: Patience,
        time: Option<CallTime>,
        refused: CallError,
        used: impl Fn(&Connection),
    ) -> Result<RawReply, CallError> {
        let until = after(self.handle.link.options().wait());
        let again = self.wait_for_connection(patience, time.map(CallTime::rest), until).await;
        let Ok((connection, time)) = again else { return Err(refused) };
        used(&connection);
        connection.call_within(call, time).await
    }

    /// Makes a call whose connection ended before a byte of it had left: over the next one, and if that ends so as
    /// well over the next, for as long as calls wait for a connection. So does a call that a server refused on this
    /// connection because it is shutting down, but not for ever: the next server may be about to stop too, and one that
    /// only refuses is left alone.
    async fn call_when_back(
        &self,
        call: &RawCall<'_>,
        mut time: Option<CallTime>,
        mut refused: Option<(ConnectionId, CallError)>,
        used: impl Fn(&Connection),
    ) -> Result<RawReply, CallError> {
        let until = after(self.handle.link.options().wait());
        let mut refusals = usize::from(refused.is_some());
        loop {
            let (connection, left) = match refused.take() {
                None => self.wait_for_connection(Patience::Connection, time, until).await?,
                Some((on, error)) => {
                    let until = time.map_or(until, |time| until.min(time.end));
                    let next = self.handle.link.next_standing(on, until).await;
                    (next.ok_or(error)?, time.map(CallTime::rest))
                }
            };

            used(&connection);
            match connection.call_within(call, left).await {
                // Beyond that time there is only a connection that is open already.
                Err(CallError::Closed { written: false, .. }) => {}
                Err(error) if refusals < REFUSALS_MAX && self.may_come_back(&error) => {
                    refusals += 1;
                    refused = Some((connection.id(), error));
                }
                outcome => return outcome,
            }
            time = left.map(CallTime::rest);
        }
    }

    async fn push_over(&self, patience: Patience, push: &RawCall<'_>) -> Result<(), PushError> {
        self.check_reserved(push)?;
        let link = &self.handle.link;
        let until = after(link.options().wait());
        let wait = push.options.timeout.unwrap_or(link.options().message_wait());
        let mut at_once = link.standing_at_once(patience);
        loop {
            let connection = match at_once.take() {
                Some(outcome) => outcome?,
                None => Box::pin(link.wait_standing(patience, until)).await?,
            };
            match connection.push_within(push, wait).await {
                // Nothing was queued: the next connection is as good.
                Err(PushError::Closed(_)) if patience == Patience::Connection && link.is_waited_for() => {}
                outcome => return outcome,
            }
        }
    }
}

/// A client's calls, with a note of the connection that was used last.
struct Over<'a> {
    client: &'a Client,
    patience: Patience,
    used: Mutex<Option<ConnectionId>>,
}

impl Caller for Over<'_> {
    async fn call_raw(&self, call: RawCall<'_>) -> Result<RawReply, CallError> {
        let used = |connection: &Connection| *self.used.lock() = Some(connection.id());
        let time = self.client.timeout_of(&call).and_then(CallTime::new);
        anywhere!(self.client.runtime(), self.client.call_noting(&call, time, self.patience, used))
    }

    async fn push_raw(&self, push: RawCall<'_>) -> Result<(), PushError> {
        self.client.push_raw(push).await
    }

    fn serialize_type(&self) -> SerializeType {
        self.client.serialize_type()
    }
}

#[expect(clippy::manual_async_fn, reason = "an `async fn` has its arguments twice: as they came, and as they are used")]
impl Caller for Client {
    fn call_raw(&self, call: RawCall<'_>) -> impl Future<Output = Result<RawReply, CallError>> + Send {
        async move {
            let (layers, timeout) = (self.handle.link.options().layers(), self.timeout_of(&call));
            let time = timeout.and_then(CallTime::new);
            if layers.see(&call.options) {
                let end = Layered { client: self.clone(), time, timeout };
                return clocked(self.runtime(), Box::pin(layers.call(call, time, timeout, end))).await;
            }
            anywhere!(self.runtime(), self.call_noting(&call, time, Patience::Connection, |_| {}))
        }
    }

    fn push_raw(&self, push: RawCall<'_>) -> impl Future<Output = Result<(), PushError>> + Send {
        async move {
            let layers = self.handle.link.options().layers();
            if layers.see(&push.options) {
                let end = Layered { client: self.clone(), time: None, timeout: None };
                return Box::pin(layers.push(push, end)).await;
            }
            anywhere!(self.runtime(), self.push_over(Patience::Connection, &push))
        }
    }

    fn serialize_type(&self) -> SerializeType {
        self.handle.link.options().serialize()
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("address", &self.address()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::{
        Server,
        transport::{ListenOptions, Listener},
    };

    /// A caller with other servers to ask is told at once that the connection was lost while its message waited for
    /// room, though another connection can be had.
    #[tokio::test(start_paused = true)]
    async fn a_single_try_ends_with_its_connection() {
        let (address, hour) = ("memory@client-single-try", Duration::from_secs(3600));
        let parsed = address.parse().expect("an address");
        let listener = Listener::bind(&parsed, &ListenOptions::default()).await.expect("the name is free");
        let options = ClientOptions::new().negotiate(false).room_wait(hour).connection_wait(hour);
        let client = Client::connect(address, options).await.expect("it listens");
        let socket = listener.accept().await.handshake(hour).await.expect("nothing to do");

        let sending = tokio::spawn({
            let client = client.clone();
            async move {
                let payload = Bytes::from(vec![0; 1 << 20]);
                let (serialize, options) = (SerializeType::RAW, CallOptions::new());
                let push = RawCall { service_path: "T", service_method: "m", serialize, payload, options };
                for _ in 0..1000 {
                    client.try_push(&push).await?;
                }
                Ok(())
            }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!sending.is_finished(), "there is no room");
        drop(socket);
        let sent = tokio::time::timeout(hour, sending).await.expect("it does not wait").expect("no panic");
        assert!(matches!(sent, Err(PushError::Closed(_))), "{sent:?}");
    }

    /// A task that waits for the connection, or for its events, is woken when no lock of its client is held.
    #[tokio::test(start_paused = true)]
    async fn nobody_is_woken_under_the_lock_of_a_clients_states() {
        use std::{
            sync::atomic::{AtomicUsize, Ordering},
            task::{Context as TaskContext, Wake, Waker},
        };

        struct Looks {
            link: Arc<Link>,
            woken: AtomicUsize,
            locked: AtomicUsize,
        }
        impl Wake for Looks {
            fn wake(self: Arc<Self>) {
                self.woken.fetch_add(1, Ordering::Relaxed);
                self.locked.fetch_add(usize::from(self.link.turn_is_taken()), Ordering::Relaxed);
            }
        }

        let server = Server::builder().build();
        let listening = server.listen("memory@client-woken").await.expect("the name is free");
        let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
        let link = Arc::clone(&client.handle.link);
        let looks = Arc::new(Looks { link: Arc::clone(&link), woken: 0.into(), locked: 0.into() });
        let waker = Waker::from(Arc::clone(&looks));
        let mut cx = TaskContext::from_waker(&waker);
        let mut events = client.events();
        for _ in 0..3 {
            let before = client.connection().expect("it is up");
            let mut later = std::pin::pin!(link.next_standing(before.id(), after(Duration::from_secs(60))));
            before.close();
            let mut stands = false;
            // At each turn of the thread, so that it waits whenever something may wake it.
            for turn in 1.. {
                stands = stands || later.as_mut().poll(&mut cx).is_ready();
                let restored = std::pin::pin!(events.next()).poll(&mut cx).is_ready();
                if stands && !restored {
                    break;
                }
                match turn % 20 {
                    0 => tokio::time::sleep(Duration::from_millis(1)).await,
                    _ => tokio::task::yield_now().await,
                }
                assert!(turn < 100_000, "it comes back");
            }
        }
        assert_eq!(looks.locked.load(Ordering::Relaxed), 0);
        assert!(6 <= looks.woken.load(Ordering::Relaxed), "it was woken for both");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_is_ended_when_it_is_closed() {
        let server = Server::builder().build();
        let listening = server.listen("memory@client-ended").await.expect("the name is free");
        let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
        assert!(!client.is_ended() && !client.look().is_down);
        client.close();
        assert!(client.is_ended());
    }

    /// What notes the connection of a call sends messages as the client does.
    #[tokio::test(start_paused = true)]
    async fn who_notes_the_connection_of_calls_sends_messages_too() {
        let (sender, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let server = Server::builder().handler("T", "Tell", move |_: crate::Request| {
            sender.send(()).expect("the test listens");
            std::future::ready(crate::Reply::ok(""))
        });
        let listening = server.build().listen("memory@client-over").await.expect("the name is free");
        let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
        let over = Over { client: &client, patience: Patience::Connection, used: Mutex::default() };
        let (serialize, payload, options) = (SerializeType::RAW, Bytes::new(), CallOptions::new());
        let push = RawCall { service_path: "T", service_method: "Tell", serialize, payload, options };
        over.push_raw(push).await.expect("it is up");
        tokio::time::timeout(Duration::from_secs(60), heard.recv()).await.expect("it comes");
    }
}
