//! Errors, one enum for each kind of act: calling, pushing, connecting, serving.

use std::{borrow::Cow, sync::Arc, time::Duration};

use bothways_proto::{DecodeError, EncodeError, Metadata, PeerMisbehaved, keys, one_line};

pub use crate::beside::{APP_CODE_BYTES_MAX, Beside, ERROR_DETAIL_BYTES_MAX};
use crate::codec::CodecError;

/// Why a call has no reply value.
///
/// ```
/// use bothways::{CallError, ErrorCode};
///
/// fn what_to_do(error: &CallError) -> &'static str {
///     match error {
///         CallError::Remote { code: None, .. } => "the handler returned an error: show its text",
///         CallError::Remote { code: Some(ErrorCode::NotFound), .. } => "there is no such method",
///         error if error.is_safe_to_retry() => "it did not run: try again",
///         _ => "it may have run: ask first",
///     }
/// }
/// ```
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The handler ran and returned an error, or the peer refused the call; the text is the
    /// peer's own. A Bothways peer adds a code to its own refusals.
    #[error("{ANSWERED}{}", one_line(&said_once(.text)))]
    Remote {
        /// The text of `__rpcx_error__`, as it came; empty if the peer sent none. The error itself shows it on one
        /// line, with control characters escaped.
        text: String,
        /// The kind of the refusal, from a Bothways peer.
        code: Option<ErrorCode>,
        /// The values that came with the text; see [`CallError::detail`].
        beside: Beside,
    },
    /// No reply within the deadline. The handler may have run, or may still be running; not if the deadline
    /// is zero: then nothing was sent.
    #[error("{}", timed_out(*.0))]
    TimedOut(Duration),
    /// The connection ended before the reply.
    #[error("the connection ended before the reply: {reason} ({})", if *.written { "the call may have run" } else { "the call was not sent" })]
    Closed {
        /// False if no byte of the call left this process, so that it cannot have run.
        written: bool,
        /// Why the connection ended.
        reason: CloseReason,
    },
    /// There is no connection, and none could be made. The call was not sent.
    #[error("not connected: {0}")]
    NotConnected(ConnectError),
    /// The peer does not accept calls, because it did not negotiate them, or not this one: it has announced the methods
    /// that it handles. Nothing was sent.
    #[error("the peer does not accept this call: it speaks plain rpcx, where only clients call, or has no such method")]
    NotSupported,
    /// Too many calls already wait for a reply (`calls_pending_max`). Nothing was sent.
    #[error("{max} calls already wait for a reply (`calls_pending_max`); nothing was sent")]
    TooManyCalls {
        /// The limit.
        max: usize,
    },
    /// Too many bytes of calls wait for a peer that does not read (`call_bytes_max`). Nothing was sent.
    #[error("{bytes} bytes of calls already wait for the peer to read them (`call_bytes_max`); nothing was sent")]
    QueueFull {
        /// The bytes that wait.
        bytes: usize,
    },
    /// The application used a name that belongs to the framework. Nothing was sent.
    #[error(transparent)]
    ReservedMetadata(#[from] ReservedName),
    /// The arguments could not be encoded. Nothing was sent.
    #[error("cannot encode the arguments: {0}")]
    Encode(CodecError),
    /// The message is too large to send. Nothing was sent.
    #[error(transparent)]
    TooLarge(#[from] EncodeError),
    /// The handler ran, but its reply could not be decoded. The connection goes on.
    #[error("cannot decode the reply: {0}")]
    Decode(CodecError),
    /// No server to choose from.
    #[error("no server: {}", one_line(.0))]
    NoServer(String),
    /// No client to call: the user has no session, or the client did not come back in time. Nothing was sent.
    #[error("no client: {}", one_line(.0))]
    NoClient(String),
    /// Too few of the user's clients succeeded.
    #[error("{answered} of {wanted} clients succeeded; one of the others: {error}")]
    NoQuorum {
        /// How many had to.
        wanted: usize,
        /// How many did.
        answered: usize,
        /// The error of another session.
        error: Box<CallError>,
        /// False if it is known of all of them that they did not run the call.
        may_have_run: bool,
    },
}

fn timed_out(limit: Duration) -> String {
    if limit.is_zero() {
        return "the time for the call was over before it was sent".to_owned();
    }
    format!("no reply within {limit:?}")
}

/// What the text of a peer's answer begins with.
const ANSWERED: &str = "the peer answered: ";

/// A peer whose handler failed with what another peer answered gives that on in these words: they are said once.
fn said_once(text: &str) -> Cow<'_, str> {
    if text.contains(ANSWERED) { text.replace(ANSWERED, "").into() } else { text.into() }
}

impl CallError {
    /// As it is told to the caller: with the time that the call had, and not what was left of it for the last try. Zero
    /// stays: it says that nothing was sent.
    pub(crate) fn of_call_within(self, timeout: Option<Duration>) -> Self {
        match (self, timeout) {
            (Self::TimedOut(left), Some(timeout)) if !left.is_zero() => Self::TimedOut(timeout),
            (error, _) => error,
        }
    }

    /// True unless it is known that no handler ran. Of a call that was tried several times this is about all of its
    /// tries.
    pub fn may_have_run(&self) -> bool {
        match self {
            Self::Closed { written, .. } => *written,
            Self::NoQuorum { may_have_run, .. } => *may_have_run,
            Self::Remote { code: Some(code), .. } => code.may_have_run(),
            // Zero was over before anything was sent.
            Self::TimedOut(limit) => !limit.is_zero(),
            Self::Remote { code: None, .. } | Self::Decode(_) => true,
            Self::NotConnected(_)
            | Self::NotSupported
            | Self::TooManyCalls { .. }
            | Self::QueueFull { .. }
            | Self::Encode(_)
            | Self::TooLarge(_)
            | Self::ReservedMetadata(_)
            | Self::NoServer(_)
            | Self::NoClient(_) => false,
        }
    }

    /// True if no handler can have run the call, so that trying again cannot run it twice. [`Self::is_worth_retrying`]
    /// says whether trying again may help.
    pub fn is_safe_to_retry(&self) -> bool {
        !self.may_have_run()
    }

    /// True if the same call may succeed later, or elsewhere: something was missing, lost or overloaded. False for an
    /// answer, and for what is wrong with the call itself.
    pub fn is_worth_retrying(&self) -> bool {
        match self {
            Self::Remote { code: Some(code), .. } => code.is_worth_retrying(),
            Self::NotConnected(error) => error.is_worth_retrying(),
            Self::NoQuorum { error, .. } => error.is_worth_retrying(),
            Self::TimedOut(_)
            | Self::Closed { .. }
            | Self::TooManyCalls { .. }
            | Self::QueueFull { .. }
            | Self::NoServer(_)
            | Self::NoClient(_) => true,
            Self::Remote { code: None, .. }
            | Self::NotSupported
            | Self::Encode(_)
            | Self::TooLarge(_)
            | Self::ReservedMetadata(_)
            | Self::Decode(_) => false,
        }
    }

    /// This error of the last try of a call, or that of an earlier one if it says more: that nothing ran is only true
    /// of all tries.
    pub(crate) fn after_tries(self, may_have_run: Option<Self>) -> Self {
        match may_have_run {
            Some(earlier) if !self.may_have_run() => earlier,
            _ => self,
        }
    }

    /// True if the connection failed, and not the call: trying again, here or elsewhere, may help. False for an answer
    /// of the peer, and for a deadline.
    ///
    /// Source: Go rpcx `client/xclient.go`, `uncoverError`.
    pub fn is_connection_failure(&self) -> bool {
        matches!(self, Self::Closed { .. } | Self::NotConnected(_))
    }

    /// The peer's text, if the peer answered with an error.
    pub fn remote_text(&self) -> Option<&str> {
        match self {
            Self::Remote { text, .. } => Some(text),
            _ => None,
        }
    }

    /// The handler's error itself, if it is an `E`: the `Serialize` error of a `#[bothways::service]` method, or the
    /// value given to [`Context::set_error_detail`](crate::Context::set_error_detail). `None` if the peer sent none,
    /// like Go's servers, or one of another type.
    ///
    /// Two things are compared. First the names of the types: the last segment of the path (`NotPaid` of
    /// `bank::errors::NotPaid`), without generic arguments, and for a pointer that of what it points to. So both sides
    /// call the type the same. Types of the standard library have no name here (`u8`, `String`, `Vec<NotPaid>`, tuples):
    /// they fit only each other. Then the value is decoded, with the rules of any message: for a lenient `#[message]`
    /// unknown fields are skipped and missing ones are the default, so that a type can grow. A peer that names no type is
    /// one of an early version of Bothways: there the decoding decides alone.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::fmt;
    ///
    /// use bothways::{Client, ClientOptions, Server, message, service};
    ///
    /// #[message]
    /// #[derive(Debug, PartialEq)]
    /// enum NotPaid {
    ///     TooLittle { missing: u64 },
    ///     Locked,
    /// }
    ///
    /// // What people, and clients in Go, see.
    /// impl fmt::Display for NotPaid {
    ///     fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    ///         f.write_str("not paid")
    ///     }
    /// }
    ///
    /// struct Bank;
    ///
    /// #[service]
    /// impl Bank {
    ///     async fn pay(&self, amount: u64) -> Result<(), NotPaid> {
    ///         if amount <= 10 { Ok(()) } else { Err(NotPaid::TooLittle { missing: amount - 10 }) }
    ///     }
    /// }
    /// # let listening = Server::builder().service(Bank).build().listen("memu@detail").await?;
    /// # let client = Client::connect(listening.address(), ClientOptions::new()).await?;
    ///
    /// let error = BankClient::new(client).pay(&15).await.expect_err("too little");
    /// assert_eq!(error.remote_text(), Some("not paid"));
    /// assert_eq!(error.detail::<NotPaid>(), Some(NotPaid::TooLittle { missing: 5 }));
    /// # Ok(()) }
    /// ```
    pub fn detail<E: serde::de::DeserializeOwned + serde::Serialize + Send>(&self) -> Option<E> {
        self.beside()?.detail()
    }

    /// The application's own code of the handler's error; see
    /// [`Context::set_error_code`](crate::Context::set_error_code).
    pub fn app_code(&self) -> Option<&str> {
        self.beside()?.app_code()
    }

    /// The values that came with the text, if the peer answered with an error; also the metadata and the reply of a Go
    /// server.
    pub fn beside(&self) -> Option<&Beside> {
        match self {
            Self::Remote { beside, .. } => Some(beside),
            _ => None,
        }
    }

    /// The kind of refusal, if a Bothways peer refused the call.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Remote { code, .. } => *code,
            _ => None,
        }
    }
}

/// The kind of a Bothways peer's refusal. It travels as metadata `_bw.err`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum ErrorCode {
    /// A limit on the calls that run at once was reached; the handler did not run.
    Overloaded,
    /// The token was refused; the handler did not run.
    Unauthenticated,
    /// No such service or method.
    NotFound,
    /// The arguments could not be decoded; the handler did not run.
    BadArguments,
    /// The handler panicked; the id in the text finds it in the peer's log.
    Internal,
    /// The peer's own time limit on handlers passed.
    Timeout,
    /// The peer is shutting down; the handler did not run.
    ShuttingDown,
}

impl ErrorCode {
    /// Every code, in a fixed order: the one list from which counters and metrics have their names.
    pub const ALL: &'static [Self] = &[
        Self::Overloaded,
        Self::Unauthenticated,
        Self::NotFound,
        Self::BadArguments,
        Self::Internal,
        Self::Timeout,
        Self::ShuttingDown,
    ];

    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Overloaded => "overloaded",
            Self::Unauthenticated => "unauthenticated",
            Self::NotFound => "not_found",
            Self::BadArguments => "bad_arguments",
            Self::Internal => "internal",
            Self::Timeout => "timeout",
            Self::ShuttingDown => "shutting_down",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.name() == name)
    }

    /// See [`CallError::may_have_run`].
    fn may_have_run(self) -> bool {
        match self {
            Self::Internal | Self::Timeout => true,
            Self::Overloaded | Self::Unauthenticated | Self::NotFound | Self::BadArguments | Self::ShuttingDown => {
                false
            }
        }
    }

    /// See [`CallError::is_worth_retrying`].
    fn is_worth_retrying(self) -> bool {
        match self {
            Self::Overloaded | Self::Timeout | Self::ShuttingDown => true,
            Self::Unauthenticated | Self::NotFound | Self::BadArguments | Self::Internal => false,
        }
    }
}

/// An application used a name that belongs to the framework: a metadata key, or the key of a
/// [`Class::Latest`](crate::Class::Latest), that begins with `_bw.`, or the service path `_bothways`. Or a server tried to
/// send a client a key that belongs to one request or reply: `__AUTH` (a caller's token), `__ServerTimeout` or
/// `__rpcx_error__`.
///
/// The metadata of a peer may have such keys. [`Metadata::without_reserved`] leaves them out.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{}` {}", one_line(.name), why_reserved(.name))]
pub struct ReservedName {
    /// The key or the path.
    pub name: String,
}

impl ReservedName {
    /// Looks at what an application wants to send. Metadata without pairs costs nothing.
    pub(crate) fn check(service_path: &str, metadata: &Metadata) -> Result<(), Self> {
        if keys::is_reserved_path(service_path) {
            return Err(Self { name: service_path.to_owned() });
        }
        match metadata.reserved_key() {
            None => Ok(()),
            Some(name) => Err(Self { name: name.into_owned() }),
        }
    }

    /// As [`Self::check`], of what goes to a client: it is not sent a caller's token either.
    pub(crate) fn check_for_client(service_path: &str, metadata: &Metadata) -> Result<(), Self> {
        Self::check(service_path, metadata)?;
        match metadata.key_of_one_hop() {
            None => Ok(()),
            Some(name) => Err(Self { name: name.into_owned() }),
        }
    }

    /// As [`Self::check`], of a key that names something within the framework's own tables.
    pub(crate) fn check_key(key: &str) -> Result<(), Self> {
        if keys::is_reserved(key.as_bytes()) { Err(Self { name: key.to_owned() }) } else { Ok(()) }
    }
}

fn why_reserved(name: &str) -> &'static str {
    match keys::is_of_one_hop(name.as_bytes()) {
        true => "belongs to one request or reply: no client is sent it",
        false => {
            "belongs to the framework: an application may send neither keys that begin with `_bw.` nor the service \
             path `_bothways`"
        }
    }
}

/// What may help where a Hello ends a connection.
fn hint(address: &str, reason: &CloseReason) -> &'static str {
    let is_cut = match reason {
        CloseReason::PeerClosed => true,
        CloseReason::Io(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        _ => false,
    };
    match is_cut {
        true if address.starts_with("tcp") => {
            "; a server that speaks TLS does so to a client that does not (`ConnectOptions::tls`), and a plain rpcx \
             server whose plugins refuse a request without a pair of their own (`ClientOptions::negotiate`)"
        }
        true => {
            "; a plain rpcx server whose plugins refuse a request without a pair of their own does so: see \
             `ClientOptions::negotiate`"
        }
        false => "",
    }
}

/// Why the [`auth`](crate::ServerBuilder::auth) hook of a server does not let a request run, or a client in.
///
/// Anything that implements `Display` becomes [`Self::Refused`] by `?` and `into`: most hooks need only a text. To make that
/// possible, this is not an [`Error`](std::error::Error) itself.
///
/// ```
/// use std::time::Duration;
///
/// use bothways::{AuthError, Server};
///
/// # async fn user_of(_token: &str) -> Result<Option<String>, std::io::Error> { Ok(None) }
/// let server = Server::builder().auth(|request| async move {
///     match user_of(&request.token).await {
///         Ok(Some(_user)) => Ok(()),
///         Ok(None) => Err(AuthError::from("no such token")),
///         Err(_down) => Err(AuthError::not_now("the user database is down", Duration::from_secs(5))),
///     }
/// });
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum AuthError {
    /// The token is refused. The text goes to the client, and then the connection is closed.
    Refused(String),
    /// The token cannot be checked at the moment. It does not count as refused.
    NotNow {
        /// The text for people; it goes to the client.
        text: String,
        /// When the client may ask again, in whole milliseconds rounded up. A Bothways client waits an hour at most.
        retry_after: Duration,
    },
}

impl AuthError {
    /// The token cannot be checked now: see [`Self::NotNow`]. A client that connects for the first time waits in
    /// [`Client::connect`](crate::Client::connect) until it can.
    pub fn not_now(text: impl Into<String>, retry_after: Duration) -> Self {
        Self::NotNow { text: text.into(), retry_after }
    }
}

impl<E: std::fmt::Display> From<E> for AuthError {
    fn from(error: E) -> Self {
        Self::Refused(error.to_string())
    }
}

/// Why a push was not queued.
///
/// ```
/// use bothways::{Connection, Metadata, PushError};
///
/// fn say(connection: &Connection) {
///     match connection.send_message("Chat", "Say", &Metadata::new(), "hello") {
///         Ok(sent) => println!("{sent:?}"),
///         Err(PushError::Full { frames, .. }) => println!("it reads too slowly: {frames} wait"),
///         Err(error) => println!("nothing was sent: {error}"),
///     }
/// }
/// ```
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PushError {
    /// The connection is over.
    #[error("the connection is over: {0}")]
    Closed(CloseReason),
    /// The peer reads too slowly: as many pushes wait for it as its queue holds
    /// ([`OutgoingOptions::push_queue`](crate::OutgoingOptions::push_queue)), or its session
    /// ([`SessionOptions::log`](crate::SessionOptions::log)). Nothing was queued.
    #[error("{frames} messages of {bytes} bytes already wait for the peer{}", named(.setting))]
    Full {
        /// Pushes that wait.
        frames: usize,
        /// Their bytes.
        bytes: usize,
        /// The name of the option that bounds them, if the application can change it. A client has none.
        setting: Option<&'static str>,
    },
    /// The push is too large. Nothing was queued.
    #[error(transparent)]
    TooLarge(#[from] EncodeError),
    /// The application used a name that belongs to the framework. Nothing was queued.
    #[error(transparent)]
    ReservedMetadata(#[from] ReservedName),
    /// The value could not be encoded. Nothing was queued.
    #[error("cannot encode the message: {0}")]
    Encode(CodecError),
    /// There is no connection. Nothing was queued.
    #[error("not connected: {0}")]
    NotConnected(ConnectError),
    /// No server to choose from. Nothing was queued.
    #[error("no server: {}", one_line(.0))]
    NoServer(String),
    /// No client to push to. Nothing was queued.
    #[error("no client: {}", one_line(.0))]
    NoClient(String),
    /// The client has announced its methods, and this is not one of them. Nothing was queued.
    #[error("the client has announced no handler for this")]
    NotSupported,
    /// It cannot be a durable push. Nothing was stored or queued.
    #[error("no durable push: {0}")]
    NotDurable(#[from] NotDurable),
}

/// Why a push cannot be [durable](crate::Class::Durable).
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum NotDurable {
    /// The server has no store: see [`ServerBuilder::store`](crate::ServerBuilder::store).
    #[error("the server has no store")]
    NoStore,
    /// A mailbox is a user's: the target is [`Target::user`](crate::Target::user) or
    /// [`Target::users`](crate::Target::users), without exceptions and labels.
    #[error("its target must be users, without exceptions and labels")]
    Target,
    /// Its time to live is zero, or longer than this
    /// ([`MailboxOptions::ttl_max`](crate::session::MailboxOptions::ttl_max)).
    #[error("its time to live must be from a moment to {0:?}")]
    TimeToLive(std::time::Duration),
    /// The name of a user is empty, or has more than 256 bytes.
    #[error("the name of a user is empty or too long")]
    User,
    /// Nobody could append it: the server listens nowhere, and this thread has no tokio runtime.
    #[error("there is no tokio runtime")]
    NoRuntime,
}

fn named(setting: &Option<&'static str>) -> String {
    setting.map(|setting| format!(" (`{setting}`)")).unwrap_or_default()
}

/// Why a connection ended.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CloseReason {
    /// This side closed it.
    #[error("closed by this side")]
    Local,
    /// The peer closed it between two frames.
    #[error("closed by the peer")]
    PeerClosed,
    /// The peer closed it in the middle of a frame: that frame is lost.
    #[error("closed by the peer in the middle of a frame")]
    PeerClosedMidFrame,
    /// The socket failed.
    #[error("the socket failed: {0}")]
    Io(Arc<std::io::Error>),
    /// The peer sent bytes that are not a frame.
    #[error("bad frame: {0}")]
    BadFrame(DecodeError),
    /// The peer sent a frame that it must not send.
    #[error("the peer misbehaved: {0}")]
    Misbehaved(PeerMisbehaved),
    /// The peer was silent for too long and did not answer a heartbeat.
    #[error("the peer is gone: no answer to the heartbeat for {silent:?}")]
    Gone {
        /// How long nothing arrived.
        silent: Duration,
    },
    /// Nothing arrived from the peer within the idle limit.
    #[error("idle for {0:?} (`timeouts.idle` of a server, `ClientOptions::idle_timeout` of a client)")]
    Idle(Duration),
    /// The first frame did not arrive in time.
    #[error("no frame within {0:?} of connecting (`timeouts.first_frame`)")]
    NoFirstFrame(Duration),
    /// A frame of the peer did not keep coming fast enough.
    #[error("a frame arrives too slowly: {bytes} bytes in the last {within:?} (`timeouts.frame_progress`)")]
    SlowFrame {
        /// Bytes of it that arrived within the time.
        bytes: usize,
        /// The time.
        within: Duration,
    },
    /// There was no room for a frame of the peer.
    #[error("no room for a frame of {bytes} bytes: too many partial frames are held (`partial_bytes_max`)")]
    NoRoom {
        /// Bytes of the frame.
        bytes: usize,
    },
    /// The peer did not read: its queue was full, or its socket accepted no byte for too long.
    #[error("the peer reads too slowly: {0}")]
    SlowPeer(&'static str),
    /// The token was refused. At a client: that of its Hello, and nothing that it sent after that was run.
    #[error("not authenticated: {}", one_line(.0))]
    Unauthenticated(String),
    /// The server refused the Hello, but neither for its token nor for now. What was sent after the Hello may have run:
    /// older servers go on reading then.
    #[error("the server refused the Hello: {}", one_line(.0))]
    HelloRefused(String),
    /// The server ended the connection and said so: it shuts down, or sends this client away.
    #[error("the server said goodbye: {}", one_line(.why))]
    Goodbye {
        /// The reason, for a program: `shutting_down`, `moved`, `ended`, `kicked`, `expired`, `revoked`, or a newer
        /// one.
        code: String,
        /// The server's words.
        why: String,
        /// How long the server asks to wait before the next connection.
        reconnect_after: Option<Duration>,
    },
    /// The server lets in clients at a rate, and this one was too many. Nothing that it sent was run.
    #[error("not admitted: {}; it may try again after {retry_after:?}", one_line(.why))]
    NotAdmitted {
        /// The server's words.
        why: String,
        /// How long the server asks to wait before the next connection.
        retry_after: Duration,
    },
    /// It was a connection of another node of the cluster, or the way to that node; in that node's words.
    #[error("at another node: {}", one_line(.0))]
    Elsewhere(String),
}

impl CloseReason {
    /// What [`Self::name`] may return.
    pub(crate) const NAMES: [&'static str; 17] = [
        "local",
        "peer_closed",
        "peer_closed_mid_frame",
        "io",
        "bad_frame",
        "misbehaved",
        "gone",
        "idle",
        "no_first_frame",
        "slow_frame",
        "no_room",
        "slow_peer",
        "unauthenticated",
        "hello_refused",
        "goodbye",
        "not_admitted",
        "elsewhere",
    ];

    pub(crate) fn index(&self) -> usize {
        match self {
            Self::Local => 0,
            Self::PeerClosed => 1,
            Self::PeerClosedMidFrame => 2,
            Self::Io(_) => 3,
            Self::BadFrame(_) => 4,
            Self::Misbehaved(_) => 5,
            Self::Gone { .. } => 6,
            Self::Idle(_) => 7,
            Self::NoFirstFrame(_) => 8,
            Self::SlowFrame { .. } => 9,
            Self::NoRoom { .. } => 10,
            Self::SlowPeer(_) => 11,
            Self::Unauthenticated(_) => 12,
            Self::HelloRefused(_) => 13,
            Self::Goodbye { .. } => 14,
            Self::NotAdmitted { .. } => 15,
            Self::Elsewhere(_) => 16,
        }
    }

    /// Its kind in one word, such as `slow_peer`: a value for a label of a metric.
    pub fn name(&self) -> &'static str {
        Self::NAMES[self.index()]
    }

    /// How long the server asked its client to wait before the next connection. A Bothways client does.
    pub fn reconnect_after(&self) -> Option<Duration> {
        match self {
            Self::Goodbye { reconnect_after, .. } => *reconnect_after,
            Self::NotAdmitted { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }
}

impl CloseReason {
    /// Why the server sent this client away for good, if it did. A Bothways client does not come back by itself then.
    pub fn sent_away(&self) -> Option<SessionLost> {
        let Self::Goodbye { code, .. } = self else { return None };
        Some(SessionLost::from_wire(code)).filter(|why| Self::is_for_good(*why))
    }

    /// True of what a server sends its client away with.
    pub(crate) fn is_for_good(why: SessionLost) -> bool {
        matches!(why, SessionLost::Kicked | SessionLost::Expired | SessionLost::Revoked)
    }
}

// The texts of these errors hold those of what they are made of. As sources these would be told twice by code that
// tells of an error with all of its sources.

impl From<ConnectError> for CallError {
    fn from(error: ConnectError) -> Self {
        Self::NotConnected(error)
    }
}

impl From<ConnectError> for PushError {
    fn from(error: ConnectError) -> Self {
        Self::NotConnected(error)
    }
}

impl From<DecodeError> for CloseReason {
    fn from(error: DecodeError) -> Self {
        Self::BadFrame(error)
    }
}

impl From<PeerMisbehaved> for CloseReason {
    fn from(what: PeerMisbehaved) -> Self {
        Self::Misbehaved(what)
    }
}

impl From<std::io::Error> for CloseReason {
    fn from(error: std::io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

/// Why a connection could not be made.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The address is not of the form `network@address`, or its network is not known here.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The socket could not be opened.
    #[error("cannot connect to {address}: {error}")]
    Io {
        /// Where to.
        address: String,
        /// The error of the system.
        error: Arc<std::io::Error>,
    },
    /// The connection was not made in time.
    #[error("cannot connect to {address} within {after:?} (`connect_timeout`)")]
    TimedOut {
        /// Where to.
        address: String,
        /// The limit.
        after: Duration,
    },
    /// The server refused this client.
    #[error("{address} refused this client: {}", one_line(.reason))]
    Refused {
        /// Where to.
        address: String,
        /// The server's text.
        reason: String,
    },
    /// The server accepted the connection but did not answer the Hello in time. Every rpcx server answers it.
    #[error("{address} accepted the connection but did not answer the Hello within {after:?} (`connect_timeout`)")]
    NoAnswer {
        /// Where to.
        address: String,
        /// The limit.
        after: Duration,
    },
    /// The connection ended before the server had answered the Hello.
    #[error("the connection to {address} ended before the Hello was answered: {reason}{}", hint(.address, .reason))]
    Unanswered {
        /// Where to.
        address: String,
        /// Why.
        reason: CloseReason,
    },
    /// [`ClientOptions::credentials`](crate::ClientOptions::credentials) gave no token.
    #[error("no credentials for {address}: {why}")]
    Credentials {
        /// Where to.
        address: String,
        /// The reason.
        why: String,
    },
    /// The first connection is being made.
    #[error("the connection to {address} is being made")]
    Connecting {
        /// Where to.
        address: String,
    },
    /// The connection is lost, and the client's options say not to reconnect.
    #[error("the connection to {address} is lost ({lost}), and this client does not reconnect")]
    Lost {
        /// Where to.
        address: String,
        /// Why it was lost.
        lost: CloseReason,
    },
    /// The runtime in which the client was made has ended, and nothing keeps its connection.
    #[error("the client's runtime is gone")]
    Abandoned,
    /// A client must be made in a tokio runtime, which keeps its connection.
    #[error("there is no tokio runtime here to keep a connection")]
    NoRuntime,
    /// The connection is lost and being made again; the last try failed for this reason.
    #[error("the connection to {address} is lost ({lost}) and is being made again")]
    Reconnecting {
        /// Where to.
        address: String,
        /// Why it was lost.
        lost: CloseReason,
    },
    /// The server has sent this client away for good. Another [`Client`](crate::Client) may be let in.
    #[error("{address} sent this client away ({why}): {reason}")]
    SentAway {
        /// Where to.
        address: String,
        /// Why, for a program.
        why: SessionLost,
        /// The server's text.
        reason: String,
    },
    /// The client was closed.
    #[error("the client is closed")]
    Closed,
}

impl ConnectError {
    /// True if there may be a connection later.
    fn is_worth_retrying(&self) -> bool {
        match self {
            Self::Io { .. }
            | Self::TimedOut { .. }
            // A server refuses everybody while it cannot check tokens, and the token may be another by then.
            | Self::Refused { .. }
            | Self::NoAnswer { .. }
            | Self::Unanswered { .. }
            | Self::Credentials { .. }
            | Self::Connecting { .. }
            | Self::Reconnecting { .. } => true,
            Self::Address(_)
            | Self::Lost { .. }
            | Self::Abandoned
            | Self::SentAway { .. }
            | Self::NoRuntime
            | Self::Closed => false,
        }
    }
}

/// Why a text is not an address.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// The network has no transport here.
    #[error("unknown network `{network}` in the address `{address}`: known are {known}")]
    UnknownNetwork {
        /// The part before `@`.
        network: String,
        /// The whole text.
        address: String,
        /// The networks of this client or server, separated by commas.
        known: String,
    },
    /// The part after `@` is wrong for its network.
    #[error("`{address}` is not an address: {why}")]
    Malformed {
        /// The whole text.
        address: String,
        /// The reason.
        why: &'static str,
    },
}

/// Why a server could not serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The address is not of the form `network@address`, or its network is not known here.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The socket could not be opened.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// Where.
        address: String,
        /// The error of the system.
        error: std::io::Error,
    },
    /// The server has its maximum of connections.
    #[error("{max} connections are open already (`connections_max`)")]
    TooManyConnections {
        /// The limit.
        max: usize,
    },
    /// The admin service cannot be opened there.
    #[error("the admin service cannot listen on {address}: {why}")]
    Admin {
        /// Where.
        address: String,
        /// The reason.
        why: String,
    },
    /// A server must listen in a tokio runtime, which drives its connections.
    #[error("there is no tokio runtime here to listen in")]
    NoRuntime,
    /// The server was shut down before.
    #[error("the server is shut down")]
    ShutDown,
    /// TLS is wanted, but is not possible.
    #[error("cannot serve {address} with TLS: {why}")]
    Tls {
        /// Where.
        address: String,
        /// The reason.
        why: String,
    },
}

/// Why a client did not get its session back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum SessionLost {
    /// The client was away for longer than the server kept its session; or what it was let in with has run out.
    Expired,
    /// Some of what the client has not handled is no longer there.
    Gap,
    /// The server does not know the session: it was restarted, or has forgotten why the session ended.
    Unknown,
    /// The client is somebody else now, or what it was let in with does not count any more.
    Revoked,
    /// The server has sent the client away.
    Kicked,
    /// The server has ended the session.
    Ended,
    /// The server speaks plain rpcx now.
    Plain,
    /// The node of a cluster that had the session is gone, and with it what the client had not handled.
    NodeLost,
    /// The server has left the list of an [`XClient`](crate::XClient)'s discovery, and so this client the session.
    Unlisted,
}

impl SessionLost {
    pub(crate) fn from_wire(why: &str) -> Self {
        match why {
            "expired" => Self::Expired,
            "gap" => Self::Gap,
            "revoked" => Self::Revoked,
            "kicked" => Self::Kicked,
            "ended" => Self::Ended,
            "node_lost" => Self::NodeLost,
            _ => Self::Unknown,
        }
    }
}

impl std::fmt::Display for SessionLost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Expired => "expired",
            Self::Gap => "gap",
            Self::Unknown => "unknown",
            Self::Revoked => "revoked",
            Self::Kicked => "kicked",
            Self::Ended => "ended",
            Self::Plain => "the server speaks plain rpcx",
            Self::NodeLost => "its node is gone",
            Self::Unlisted => "the server left the list",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each variant says whether it may have run, and whether another try may help.
    #[test]
    fn an_error_says_what_it_knows_of_the_call() {
        let remote = |code| CallError::Remote { text: String::new(), code, beside: Beside::default() };
        let closed = |written| CallError::Closed { written, reason: CloseReason::PeerClosed };
        let too_large = || CallError::TooLarge(EncodeError::TooLarge { len: 2, max: 1 });
        let no_quorum =
            |may_have_run| CallError::NoQuorum { wanted: 2, answered: 0, error: Box::new(too_large()), may_have_run };
        let refused = ConnectError::Refused { address: String::new(), reason: String::new() };
        for (error, may_have_run, is_worth) in [
            (remote(None), true, false),
            (remote(Some(ErrorCode::Overloaded)), false, true),
            (remote(Some(ErrorCode::Unauthenticated)), false, false),
            (remote(Some(ErrorCode::NotFound)), false, false),
            (remote(Some(ErrorCode::BadArguments)), false, false),
            (remote(Some(ErrorCode::Internal)), true, false),
            (remote(Some(ErrorCode::Timeout)), true, true),
            (remote(Some(ErrorCode::ShuttingDown)), false, true),
            (CallError::TimedOut(Duration::from_nanos(1)), true, true),
            (CallError::TimedOut(Duration::ZERO), false, true),
            (closed(true), true, true),
            (closed(false), false, true),
            (CallError::NotConnected(ConnectError::Connecting { address: String::new() }), false, true),
            (CallError::NotConnected(refused), false, true),
            (CallError::NotSupported, false, false),
            (CallError::TooManyCalls { max: 1 }, false, true),
            (CallError::QueueFull { bytes: 1 }, false, true),
            (CallError::Encode(CodecError::Compressed(DecodeError::Gzip(String::new()))), false, false),
            (too_large(), false, false),
            (CallError::Decode(CodecError::Compressed(DecodeError::Gzip(String::new()))), true, false),
            (CallError::NoServer(String::new()), false, true),
            (CallError::NoClient(String::new()), false, true),
            (no_quorum(true), true, false),
            (no_quorum(false), false, false),
        ] {
            let said = (error.may_have_run(), error.is_safe_to_retry(), error.is_worth_retrying());
            assert_eq!(said, (may_have_run, !may_have_run, is_worth), "{error:?}");
        }
    }

    #[test]
    fn that_nothing_ran_is_said_of_all_tries() {
        let written = || CallError::Closed { written: true, reason: CloseReason::PeerClosed };
        assert!(CallError::NoServer(String::new()).after_tries(Some(written())).may_have_run());
        assert!(!CallError::NoServer(String::new()).after_tries(None).may_have_run());
        let answered = CallError::Remote { text: "no".to_owned(), code: None, beside: Beside::default() }
            .after_tries(Some(written()));
        assert!(matches!(answered, CallError::Remote { .. }));
    }

    /// A handler may fail with what its own call failed of, over any number of peers.
    #[test]
    fn an_error_that_is_given_on_is_told_once() {
        let answered = |text: &str| CallError::Remote { text: text.to_owned(), code: None, beside: Beside::default() };
        let mut text = answered("command failed with 1").to_string();
        for _ in 0..3 {
            text = answered(&text).to_string();
        }
        assert_eq!(text, "the peer answered: command failed with 1");
        let error = CallError::NoQuorum { wanted: 2, answered: 1, error: Box::new(answered("no")), may_have_run: true };
        let text = answered(&error.to_string()).to_string();
        assert_eq!(text, "the peer answered: 1 of 2 clients succeeded; one of the others: no");
        assert_eq!(answered("the peer answered: no").remote_text(), Some("the peer answered: no"), "as it came");
    }

    /// An error printed with its sources says nothing twice.
    #[test]
    fn no_error_tells_of_its_source_itself() {
        let connecting = || ConnectError::Connecting { address: "tcp@a:1".to_owned() };
        let io = || CloseReason::from(std::io::Error::other("it broke"));
        let gzip = || DecodeError::Gzip("it broke".to_owned());
        let unanswered = ConnectError::Unanswered { address: "tcp@a:1".to_owned(), reason: io() };
        let errors: [Box<dyn std::error::Error>; 10] = [
            Box::new(CallError::from(connecting())),
            Box::new(CallError::from(unanswered)),
            Box::new(CallError::from(ConnectError::from(AddressError::Malformed { address: String::new(), why: "-" }))),
            Box::new(PushError::from(connecting())),
            Box::new(CallError::Closed { written: true, reason: gzip().into() }),
            Box::new(CloseReason::from(gzip())),
            Box::new(CloseReason::from(PeerMisbehaved::FalseAck)),
            Box::new(io()),
            Box::new(CallError::Decode(gzip().into())),
            Box::new(CallError::from(EncodeError::TooLarge { len: 2, max: 1 })),
        ];
        for error in errors {
            let mut told = vec![error.to_string()];
            let mut next = error.source();
            while let Some(source) = next {
                let text = source.to_string();
                assert!(told.iter().all(|above| !above.contains(&text)), "{told:?}, {text}");
                told.push(text);
                next = source.source();
            }
        }
    }

    /// A server that hears no TLS where it wants it just ends the connection.
    #[test]
    fn an_end_before_the_answer_names_tls_where_there_may_be_some() {
        let reset = || CloseReason::from(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
        for (address, reason, named) in [
            ("tcp@a:1", CloseReason::PeerClosed, true),
            ("tcp@a:1", reset(), true),
            ("tcp6@a:1", CloseReason::PeerClosed, true),
            ("tcp@a:1", CloseReason::Gone { silent: Duration::ZERO }, false),
            ("tls@a:1", CloseReason::PeerClosed, false),
            ("unix@a", CloseReason::PeerClosed, false),
        ] {
            let text = ConnectError::Unanswered { address: address.to_owned(), reason }.to_string();
            assert_eq!(text.contains("speaks TLS"), named, "{text}");
        }
    }

    /// A text names an option only where its reader has it.
    #[test]
    fn an_error_names_the_options_of_its_side() {
        let full = |setting| PushError::Full { frames: 1, bytes: 2, setting }.to_string();
        assert_eq!(full(None), "1 messages of 2 bytes already wait for the peer");
        assert!(full(Some("sessions.log")).ends_with("the peer (`sessions.log`)"));
        let idle = CloseReason::Idle(Duration::from_secs(1)).to_string();
        assert!(idle.contains("`timeouts.idle`") && idle.contains("`ClientOptions::idle_timeout`"), "{idle}");
    }

    #[test]
    fn each_code_has_a_name_of_its_own() {
        for code in ErrorCode::ALL.iter().copied() {
            assert_eq!(ErrorCode::from_name(code.name()), Some(code));
        }
        assert_eq!(ErrorCode::from_name("of_a_later_version"), None);
    }
}
