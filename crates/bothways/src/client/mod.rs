//! One connection to one server that comes back by itself, and what the server sends unasked.
//!
//! | file | what it does |
//! |---|---|
//! | `mod.rs` | [`Client`], the handle: calls and oneway messages |
//! | `options.rs` | deadlines, bounds, token, codec |
//! | `link.rs` | keeps the connection: watches it, and makes it again with back-off |
//! | `inlet.rs` | what comes from the server: messages to the queue, calls to the handlers |
//! | `messages.rs` | the bounded queue of server messages, and its stream |
//! | `events.rs` | connected, lost, restored: told always, in order |

mod events;
mod inlet;
mod link;
mod messages;
mod options;

use std::sync::Arc;

use bothways_proto::{SerializeType, keys};
use tokio::time::Instant;

use self::link::Link;
pub(crate) use self::{events::EventSender, messages::MessageQueue};
pub use self::{
    events::{ConnectionEvent, ConnectionEvents},
    messages::{ServerMessage, ServerMessages},
    options::ClientOptions,
};
use crate::{
    caller::{CallOptions, Caller, RawCall, RawReply, Response},
    codec::Payload,
    connection::{Connection, ConnectionStats},
    error::{CallError, ConnectError, PushError},
    router::Router,
    transport::Address,
};

/// A client of one server. A clone is the same client; the connection ends with the last one.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use bothways::{Client, ClientOptions};
///
/// let client = Client::connect("tcp@127.0.0.1:8972", ClientOptions::new()).await?;
/// let upper: String = client.call("Text", "Upper", &"abcde".to_owned()).await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Client {
    handle: Arc<Handle>,
}

/// Ends the link when the last client is dropped.
struct Handle {
    link: Arc<Link>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.link.close();
    }
}

impl Client {
    /// Connects to a server. What it sends unasked is dropped and counted, unless the options name handlers.
    ///
    /// # Errors
    /// [`ConnectError`]: there is no client then.
    pub async fn connect(address: &str, options: ClientOptions) -> Result<Self, ConnectError> {
        let client = Self::start(address, options, Router::new(), None, None)?;
        client.handle.link.first_connection().await?;
        Ok(client)
    }

    /// Connects to a server, and gives the stream of what it sends unasked. No message is missed,
    /// however early it comes.
    ///
    /// # Errors
    /// [`ConnectError`]: there is no client then.
    pub async fn bidirectional(address: &str, options: ClientOptions) -> Result<(Self, ServerMessages), ConnectError> {
        let (queue, messages) = options.message_queue();
        let client = Self::start(address, options, Router::new(), Some(queue), None)?;
        client.handle.link.first_connection().await?;
        Ok((client, messages))
    }

    /// Connects to a server whose pushes and calls these handlers take: the same kind of routes as a
    /// server's. Pushes of one server are handled one after the other, in order; calls at once, as many
    /// as [`ClientOptions::server_calls_max`].
    ///
    /// # Errors
    /// [`ConnectError`]: there is no client then.
    pub async fn with_handlers(address: &str, options: ClientOptions, handlers: Router) -> Result<Self, ConnectError> {
        let (queue, messages) = options.message_queue();
        inlet::handle_messages(messages, handlers.clone());
        let client = Self::start(address, options, handlers, Some(queue), None)?;
        client.handle.link.first_connection().await?;
        Ok(client)
    }

    /// A client that is connecting in the background. Must be called within a tokio runtime.
    pub(crate) fn start(
        address: &str,
        options: ClientOptions,
        handlers: Router,
        messages: Option<MessageQueue>,
        events: Option<EventSender>,
    ) -> Result<Self, ConnectError> {
        let address: Address = address.parse()?;
        let link = Link::start(address, options, handlers, messages, events);
        Ok(Self { handle: Arc::new(Handle { link }) })
    }

    /// Calls a method and waits for its value.
    ///
    /// Dropping the future gives the call up: its place in the table is free at once, and a server that
    /// understands it stops the handler.
    ///
    /// # Errors
    /// Any [`CallError`]; [`CallError::is_safe_to_retry`] says whether the call can have run.
    pub async fn call<R: Payload>(
        &self,
        service_path: &str,
        service_method: &str,
        args: &(impl Payload + Sync),
    ) -> Result<R, CallError> {
        Ok(self.call_with(service_path, service_method, args, CallOptions::new()).await?.value)
    }

    /// Calls a method with metadata, a deadline or a codec of its own, and gives the reply's metadata too.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn call_with<R: Payload>(
        &self,
        service_path: &str,
        service_method: &str,
        args: &(impl Payload + Sync),
        options: CallOptions,
    ) -> Result<Response<R>, CallError> {
        self.call_typed(service_path, service_method, args, options).await
    }

    /// Sends a request that wants no reply. Done when it is queued; errors of the handler stay unseen.
    ///
    /// # Errors
    /// [`PushError`]: nothing was queued.
    pub async fn oneshot(
        &self,
        service_path: &str,
        service_method: &str,
        args: &(impl Payload + Sync),
    ) -> Result<(), PushError> {
        self.push_typed(service_path, service_method, args, CallOptions::new()).await
    }

    /// The events of this client's connection, from now on. Each of several streams gets all of them.
    pub fn events(&self) -> ConnectionEvents {
        self.handle.link.events()
    }

    /// The server's address, in rpcx's form.
    pub fn address(&self) -> String {
        self.handle.link.address().to_string()
    }

    /// The connection as it is now.
    ///
    /// # Errors
    /// [`ConnectError::Reconnecting`] while it is being made again; [`ConnectError::Closed`] after [`Self::close`].
    pub fn connection(&self) -> Result<Connection, ConnectError> {
        self.handle.link.current()
    }

    /// Counters of the present connection; zeros while there is none.
    pub fn stats(&self) -> ConnectionStats {
        self.connection().map(|connection| connection.stats()).unwrap_or_default()
    }

    /// Ends the connection for good. Calls under way fail as closed by this side.
    pub fn close(&self) {
        self.handle.link.close();
    }
}

impl Caller for Client {
    async fn call_raw(&self, mut call: RawCall<'_>) -> Result<RawReply, CallError> {
        let link = &self.handle.link;
        let options = link.options();
        if let Some(token) = options.token() {
            call.options.metadata.insert(keys::AUTH, token);
        }
        let Some(timeout) = call.options.timeout.or(options.default_timeout()) else {
            return link.connection().await?.call_raw(call).await;
        };
        // The time for the call includes the time for its connection.
        let deadline = Instant::now() + timeout;
        let connection = tokio::time::timeout_at(deadline, link.connection()).await;
        let connection = connection.map_err(|_| CallError::TimedOut(timeout))??;
        call.options.timeout = Some(deadline.saturating_duration_since(Instant::now()));
        connection.call_raw(call).await.map_err(|error| match error {
            CallError::TimedOut(_) => CallError::TimedOut(timeout),
            error => error,
        })
    }

    async fn push_raw(&self, mut push: RawCall<'_>) -> Result<(), PushError> {
        let link = &self.handle.link;
        let connection = link.connection().await?;
        if let Some(token) = link.options().token() {
            push.options.metadata.insert(keys::AUTH, token);
        }
        push.options.timeout = push.options.timeout.or(Some(link.options().message_wait()));
        connection.push_raw(push).await
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
