//! An RPC framework in which a server calls and pushes to its clients as easily as clients call the server.
//!
//! On the wire it is Go's rpcx: Go services and clients work with it unchanged, in both directions. Where both ends are
//! Bothways there is more: users and topics, receipts, sessions that survive a lost connection, and calls to clients.
//!
//! ```
//! use bothways::{Client, ClientOptions, Push, Server, Stage, Target};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let server = Server::builder()
//!     .auth(|request| async move {
//!         // Look the token up in your own store. Here the token is the user's name.
//!         let session = request.session().ok_or("the client has left")?;
//!         session.bind_user(&request.token);
//!         Ok::<_, &str>(())
//!     })
//!     .function("Text", "Upper", |text: String| async move { Ok::<_, String>(text.to_uppercase()) })
//!     .build();
//! let listening = server.listen("tcp@127.0.0.1:0").await?;
//!
//! // A client calls the server, and keeps the stream of what the server sends to it.
//! let options = ClientOptions::new().auth("ann");
//! let (client, mut messages) = Client::bidirectional(listening.address(), options).await?;
//! let upper: String = client.call("Text", "Upper", "abc").await?;
//! assert_eq!(upper, "ABC");
//!
//! // The server pushes to the user, wherever she is connected, and learns what became of it.
//! let receipt = server.push(&Target::user("ann"), &Push::new("Mail", "New", "a letter"))?;
//! let message = messages.next().await.ok_or("the client is closed")?;
//! assert_eq!(message.payload()?, "a letter");
//! drop(message); // The application is done with it, so the client acknowledges it as handled.
//! assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
//! # Ok(()) }
//! ```
//!
//! # What do you want to do?
//!
//! | you want to | begin at |
//! |---|---|
//! | offer services | [`Server::builder`], [`service`](macro@service) |
//! | call one server | [`Client::connect`] |
//! | call many servers as one | [`XClient::new`] |
//! | receive what a server pushes | [`Client::bidirectional`] for a stream, [`Client::with_handlers`] for typed handlers |
//! | know when the connection is lost and restored | [`Client::events`] |
//! | know who a client is | [`ServerBuilder::auth`], [`Session::bind_user`] |
//! | let clients subscribe to topics | [`session::TopicOptions`], [`Client::subscribe`] |
//! | know why a message did not arrive | [`Server::explain`] |
//! | stop without losing calls | [`Server::shutdown`], [`Server::drain`] |
//! | bound what a peer can cost | [`ServerOptions`] and its groups, [`ClientOptions`], [`Limits`] |
//! | test an application | [`testing`](https://docs.rs/bothways/latest/bothways/testing/), a feature |
//!
//! # From the server to clients
//!
//! A **push** wants no reply; a **call** does. No push waits for a client.
//!
//! | you want to reach | call this | what it promises |
//! |---|---|---|
//! | a user, on all devices | [`Server::push`] with [`Target::user`] | Once and in order for each session that lives or resumes. The [`Receipt`] says how far each one came. A user without a session gets nothing, and the receipt has no target. |
//! | a user, also if nobody is there, or the server ends | the same with a [`Push`] of class [`Class::Durable`], of a server with a [store](ServerBuilder::store) | Kept in the user's mailbox when [`Receipt::stored`] says so, and given to each named device once, in order, when it comes. |
//! | many users, everyone, or those with a label | the same with [`Target::users`], [`Target::everyone`], [`Target::only_labelled`] | The same. The push is encoded once. |
//! | one client | [`Session::push`], or [`Target::session`], [`Target::connection`] | The same. [`Session::push_within`] waits for room first. |
//! | the subscribers of a topic, and those who come later | [`Server::publish`] | The same for each subscriber. A topic with [history](session::TopicOptions::history) keeps the message, and a client gets what it missed. |
//! | the subscribers of a topic who are here now | [`Server::push`] with [`Target::subscribers_of`] | The same as a push to users. The topic's history does not keep it. |
//! | anyone of these, with the newest value only | a [`Push`] of class [`Class::Latest`] | The newest value of the key arrives if the session lives or resumes. Older ones may be skipped. |
//! | anyone of these, where a loss does no harm | a [`Push`] of class [`Class::Fire`] | At most once, on the connection of now. If the queue is full, the oldest is dropped. A topic with history keeps it, and may send it once more. |
//! | each target, with its own outcome | any of these with [`Push::watch_each`], then [`Receipt::each`] | The same, with a stream of which session ended at which [`Stage`]. |
//! | a client or user, with typed arguments | a stub of [`service`](macro@service) over a [`Session`] or [`User`] | As [`Session::push`], without a receipt. An error if it is known already that nobody gets it. |
//! | one connection, as Go's `SendMessage` | [`Connection::send_message`]; [`Server::send_message`] is the same | At most once, on this connection. [`Sent`] says whether the kernel has it. [`Connection::send_message_within`] waits for room. |
//! | every connection, as fast as possible | [`raw::broadcast`]; [`raw::fan_out`] for some | At most once. [`FanOut`](raw::FanOut) counts connections that were full or gone. |
//! | a user, and get an answer | a stub or [`Caller::call_typed`] over [`Server::user`] | By [`CallPolicy`] the first, the most recent, a quorum or one device. A client that loses its connection and comes back in time runs the call once. [`User::call_all`] returns every answer. A call may overtake pushes that were made before it. |
//! | one client, and get an answer | the same over a [`Session`] | The same for one session. |
//! | one connection, and get an answer | the same over a [`Connection`] | At most once. If the connection ends, so does the call. A plain rpcx client cannot be called: [`CallError::NotSupported`]. |
//!
//! A plain rpcx client acknowledges nothing: a push is sent to it at most once, and its receipt ends as
//! [`Stage::PlainWritten`]. A push to its session waits for its first request, because Go's `XClient` loses what comes
//! earlier; [`Connection::send_message`] does not wait.
//!
//! # From a client to servers
//!
//! | you want to | call this | what it promises |
//! |---|---|---|
//! | call and get the value | [`Client::call`], [`Client::call_with`] | Runs at most once. A call that was certainly not sent waits for the next connection. [`CallError::is_safe_to_retry`] says whether it may have run. |
//! | call with typed arguments | a stub of [`service`](macro@service) over a [`Client`] or [`XClient`] | The same as the caller below it. |
//! | send without a reply (*oneway*) | [`Client::oneshot`] | At most once. Returns when it is queued; there is no report whether it was handled. If its token has expired, or its connection is lost before it has left, it is sent over the next one. |
//! | call any of several servers | [`XClient::call`], [`XClient::call_with`] | By [`FailMode`]: `Failfast` tries once; the others may run a call twice if the connection is lost under it, unless [`XClientOptions::retry_maybe_executed`] forbids it. |
//! | send without a reply to any of them | [`XClient::oneshot`] | At most once. Another server is tried only where nothing was queued. |
//! | call with bytes that are encoded already | [`XClient::send_raw`], [`Caller::call_raw`] | As `call`. |
//! | get what is published to a topic | [`Client::subscribe`], [`XClient::subscribe`] | Comes back after a lost connection. After a lost session the client subscribes again by itself, and [`ConnectionEvent::Resubscribed`] says whether something is missing. |
//! | go on where an earlier program stopped | [`Client::subscribe_from`] | All of what was published since that position, in parts if need be, or none of it; [`Subscribed::recovered`](session::Subscribed::recovered) says which. |
//! | know who is in a topic | [`Client::roster`] | The members, with a generation that orders it among the changes. |
//! | send bytes to the server on this connection | [`Client::connection`], then [`Connection::send_message`] | At most once, as a oneway request. |
//!
//! # Features
//!
//! | feature | adds | default |
//! |---|---|---|
//! | `macros` | [`service`](macro@service) and [`message`](macro@message) | yes |
//! | `json` | JSON | yes |
//! | `tls` | TLS by rustls with ring, and client certificates | yes |
//! | `ws` | WebSocket, rpcx behind HTTP CONNECT, and one port for everything that a server speaks | yes |
//! | `protobuf` | Protocol Buffers by prost | no |
//! | `thrift` | Thrift's binary protocol by Apache's crate | no |
//! | `cluster` | many nodes over an engine between them: the seam, and what runs over it | no |
//! | `cluster-memory` | an engine for several nodes in one process | no |
//! | `config` | options that a program reads from a file with serde: [`ServerOptions`] and its groups | no |
//! | `testing` | a server and clients in memory for tests: virtual time, and connections that break where you say | no |
//!
//! A feature adds to what is there and changes nothing.
//!
//! # Where to go next
//!
//! - [`service`](macro@service) and [`message`](macro@message): typed services, and how names and values travel.
//! - [`session`]: users, topics, receipts. [`xclient`]: fail modes and selection. [`error`]: what each error says.
//! - The [examples](https://github.com/bothways/bothways/tree/main/crates/bothways/examples), one for each task.
//! - [From Go](https://github.com/bothways/bothways/blob/main/docs/from-go.md): move a Go service step by step.
//! - [Slow clients](https://github.com/bothways/bothways/blob/main/docs/slow-clients.md): every queue and its bound.
//! - [Sizing](https://github.com/bothways/bothways/blob/main/docs/sizing.md): what a machine of some size holds.
//! - [Promises](https://github.com/bothways/bothways/blob/main/docs/promises.md): each one with its test.
//!
//! # What the log says
//!
//! The log goes through `tracing`. Level info has the life of a server and of a client: listening, stopping, a session
//! that ended, expired or was resumed; connected, lost, connected again. Refusals are warnings, at most one of a kind in
//! ten seconds. Single connections are at level debug. [`layer::trace`] puts what a handler logs into the span of its
//! request. What peers say is kept on one line, and no secret is shown.
//!
//! # Names that belong to the framework
//!
//! Metadata keys that begin with `_bw.`, and the service path `_bothways`. Every way to send refuses them
//! ([`PushError::ReservedMetadata`], [`CallError::ReservedMetadata`]), and replies leave such pairs out. If you pass on
//! the metadata of a peer, pass on [`Metadata::without_reserved`]: it also leaves out the caller's token (`__AUTH`) and
//! deadline (`__ServerTimeout`), which cannot be sent to a client.
//!
//! # Dropping a future
//!
//! Dropping the future of a call gives the call up: its place in the table of pending calls is free at once, a late
//! reply is dropped, and a peer that understands it is told to drop the handler. Dropping the `next` of a stream loses
//! nothing. Dropping a push that waits for room sends nothing. Every other future says so where it differs.

mod beside;
pub mod call;
pub mod caller;
#[doc(hidden)] // For crates of this repository.
pub mod calm;
pub mod client;
mod clock;
#[cfg(feature = "cluster")]
pub mod cluster;
pub mod codec;
#[cfg(feature = "config")]
mod config;
pub mod connection;
pub mod discovery;
pub mod error;
mod extensions;
mod guard;
pub mod handler;
mod in_turn;
pub mod layer;
pub mod options;
mod packing;
mod peer;
pub mod raw;
mod reply;
pub mod router;
pub mod server;
pub mod session;
pub mod shares;
mod shrink;
pub mod stats;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
pub mod transport;
pub mod xclient;

pub use self::{
    caller::{CallOptions, Caller, Response},
    client::{
        Client, ClientOptions, ConnectionEvent, ConnectionEvents, OtherAddresses, Reconnect, ServerMessage,
        ServerMessages, SessionLost, Token,
    },
    codec::{Encode, Payload},
    connection::{Connection, Overflow, Sent},
    discovery::{Discovery, MultipleServersDiscovery, Peer2PeerDiscovery, ServerEntry},
    error::{AuthError, CallError, CloseReason, ConnectError, ErrorCode, PushError, ReservedName, ServeError},
    extensions::Extensions,
    handler::{Context, Handler, Reply, Request},
    options::{Heartbeat, QueueBound},
    router::{Router, Service},
    server::{
        AdmissionOptions, OutgoingOptions, Server, ServerBuilder, ServerLimits, ServerOptions, Timeouts, WeakServer,
    },
    session::{CallPolicy, Class, Explanation, Priority, Push, Receipt, Session, SessionOptions, Stage, Target, User},
    xclient::{FailMode, SelectMode, Selector, XClient, XClientOptions},
};
#[cfg(feature = "macros")]
pub use bothways_macros::{message, service};
pub use bothways_proto::{CompressType, Limits, Metadata, Rate, SerializeType};

/// For what the macros generate. Not for use.
#[doc(hidden)]
#[cfg(feature = "macros")]
pub mod __private {
    pub use bytes::Bytes;
    pub use serde;

    pub use crate::codec::{ByteSlice, direct, go};

    /// What a method of a service returns: a `Result`, whatever it is called.
    #[diagnostic::on_unimplemented(
        message = "a method of a service returns `Result<Reply, Error>`, or nothing if it is a push",
        label = "is no `Result`"
    )]
    pub trait Outcome {
        /// The value.
        type Reply;
        /// The error.
        type Error;

        /// The same, as what it is.
        fn into_result(self) -> Result<Self::Reply, Self::Error>;
    }

    impl<T, E> Outcome for Result<T, E> {
        type Reply = T;
        type Error = E;

        fn into_result(self) -> Self {
            self
        }
    }

    /// An error, as a method of a service returns it: asked for its value, if it has one.
    ///
    /// Of both traits below the first that fits is taken: it needs one reference less.
    #[derive(Debug)]
    pub struct Failed<'a, E>(pub &'a E);

    /// Of an error that serde can write.
    pub trait WithValue {
        /// Puts the value beside the text.
        fn tell(&self, context: &mut crate::Context);
    }

    impl<E: serde::Serialize + Send> WithValue for Failed<'_, E> {
        fn tell(&self, context: &mut crate::Context) {
            context.set_default_detail(self.0);
        }
    }

    /// Of any other.
    pub trait TextOnly {
        /// Does nothing.
        fn tell(&self, context: &mut crate::Context);
    }

    impl<E> TextOnly for &Failed<'_, E> {
        fn tell(&self, _context: &mut crate::Context) {}
    }

    /// The reply of a `Result`, whatever it is called.
    pub type ReplyOf<R> = <R as Outcome>::Reply;

    /// Whether the format is a text, which says so itself.
    pub fn is_text(says_so: bool) -> bool {
        crate::codec::is_text(says_so)
    }

    /// The default of an array of bytes of any length.
    pub fn zeros<const N: usize>() -> [u8; N] {
        [0; N]
    }
}

/// The code of the README, so that it compiles.
#[cfg(all(doctest, feature = "macros"))]
#[doc = include_str!("../README.md")]
struct Readme;

/// The code of `docs/from-go.md`, so that it compiles.
#[cfg(all(doctest, feature = "macros"))]
#[doc = include_str!("../from-go.md")]
struct FromGo;
