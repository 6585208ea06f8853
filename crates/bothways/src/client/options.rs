//! How a client connects, calls and listens.

use std::{future::Future, sync::Arc, time::Duration};

use bothways_proto::{Capabilities, CompressType, Limits, SerializeType};

use super::{
    elsewhere::OtherAddresses,
    messages::{MessageQueue, QueueBounds, ServerMessages},
};
use crate::{
    call::{CallLayer, CallLayers},
    clock::backoff,
    connection::{Load, Overflow, Settings, UNPACKED_BYTES, UNPACKED_BYTES_OF_CONNECTION},
    options::{Heartbeat, QueueBound},
    packing::Room,
    reply::BoxFuture,
    store::READER_BYTES_MAX,
    transport::{ConnectOptions, Transport, Transports},
};

/// Which connections a client makes again by itself.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[cfg_attr(feature = "config", derive(serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Reconnect {
    /// None: the client ends with its connection, and [`ConnectionEvent::GaveUp`](crate::ConnectionEvent::GaveUp)
    /// says so.
    Never,
    /// One that was lost, also where the server refuses this client. `connect` and the like return the error of the
    /// first try.
    #[default]
    Lost,
    /// The first one too: `connect` and the like return when the client is connected, or has given up.
    Always,
}

/// How a client connects, calls and listens. Source of the names: Go rpcx `client.Option`.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// use bothways::{Client, ClientOptions};
/// # let server = bothways::Server::builder().build();
/// # let listening = server.listen("memu@client options").await?;
/// # let address = listening.address();
///
/// let options = ClientOptions::new()
///     .auth("bearer tGzv3JOkF0XG5Qx2TlKWIA")
///     .timeout(Duration::from_secs(3))
///     .backoff(Duration::from_millis(100), Duration::from_secs(30));
/// let client = Client::connect(address, options).await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use]
pub struct ClientOptions {
    settings: Settings,
    connect: ConnectOptions,
    credentials: Credentials,
    serialize: SerializeType,
    timeout: Option<Duration>,
    connection_wait: Duration,
    room_wait: Duration,
    negotiate: bool,
    device: Option<Arc<str>>,
    reconnect: Reconnect,
    others: OtherAddresses,
    refusals_max: Option<u32>,
    backoff_base: Duration,
    backoff_max: Duration,
    queue: QueueBounds,
    is_quiet: bool,
    layers: CallLayers,
    transports: Transports,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            settings: Settings {
                calls_running_max: 16,
                push_bytes_max: 16 << 20,
                call_bytes_max: 64 << 20,
                ..Settings::default()
            },
            connect: ConnectOptions::default(),
            credentials: Credentials::None,
            serialize: SerializeType::MSGPACK,
            timeout: None,
            connection_wait: Duration::from_secs(5),
            room_wait: Duration::from_secs(10),
            negotiate: true,
            device: None,
            reconnect: Reconnect::default(),
            others: OtherAddresses::default(),
            refusals_max: None,
            backoff_base: Duration::from_millis(50),
            backoff_max: Duration::from_secs(10),
            queue: QueueBounds {
                messages_max: 16_384,
                bytes_max: 16 << 20,
                overflow: Overflow::DropOldest,
                tracked_max: 16_384,
                tracked_bytes_max: 16 << 20,
            },
            is_quiet: false,
            layers: CallLayers::default(),
            transports: Transports::default(),
        }
    }
}

impl ClientOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// The token that goes with every request (`__AUTH`), such as `bearer …`. Default none.
    pub fn auth(mut self, token: impl Into<String>) -> Self {
        self.credentials = Credentials::Token(token.into().into());
        self
    }

    /// The name of this device among those of its user, such as `phone` or an id that the application has drawn and kept.
    /// Each named device gets every [durable](crate::Class::Durable) push once, from the oldest that is kept when its name
    /// first comes; those without a name share one place in the mailbox. At most 64 bytes; a longer or empty name counts as
    /// none. A server keeps the places of 16 names for each user. Default none.
    ///
    /// It sets no label: [`CallPolicy::Device`](crate::session::CallPolicy::Device) looks for the label
    /// [`DEVICE_LABEL`](crate::session::DEVICE_LABEL), which the server's application sets.
    pub fn device(mut self, name: &str) -> Self {
        self.device = (1..=READER_BYTES_MAX).contains(&name.len()).then(|| name.into());
        self
    }

    /// In place of [`Self::auth`]: a function that returns the token, for one that expires. It is called before each
    /// Hello, and once more when the server has refused the token. All requests on a connection carry the token of its
    /// Hello. It must return within [`ConnectOptions::connect_timeout`].
    ///
    /// ```
    /// use bothways::ClientOptions;
    ///
    /// # async fn fetch_token() -> String { "bearer t".to_owned() }
    /// let options = ClientOptions::new().credentials(|| async { fetch_token().await });
    /// ```
    pub fn credentials<F, Fut>(mut self, ask: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future + Send + 'static,
        Fut::Output: Into<Token>,
    {
        let ask = Arc::new(ask);
        self.credentials = Credentials::Asked(Arc::new(move || {
            let ask = Arc::clone(&ask);
            // Within the future, so that a panic of either part is one of it.
            Box::pin(async move { ask().await.into() })
        }));
        self
    }

    /// The codec of values that can choose. Default MessagePack, as in Go.
    pub fn serialize_type(mut self, serialize: SerializeType) -> Self {
        self.serialize = serialize;
        self
    }

    /// Pack arguments above 1,024 bytes; the server packs large replies to packed requests. Default: not.
    ///
    /// A debug build packs a MiB in a second; `[profile.dev.package.zlib-rs] opt-level = 3` in your `Cargo.toml` makes
    /// that as fast as a release build.
    pub fn compress(mut self, compress: CompressType) -> Self {
        self.settings.compress = compress;
        self
    }

    /// Deadline of calls without one of their own; the server is told. Default none, as in Go: a call ends with its
    /// reply, its connection, or the drop of its future. Zero: each call ends before it is sent.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How long a call waits for a connection that is being made. Default 5 s; zero fails at once.
    pub fn connection_wait(mut self, wait: Duration) -> Self {
        self.connection_wait = wait;
        self
    }

    /// How long a oneway message waits for room in the queue. Default 10 s.
    pub fn room_wait(mut self, wait: Duration) -> Self {
        self.room_wait = wait;
        self
    }

    /// Bounds on what one frame may cost. See [`Limits`] for the defaults.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.settings.limits = limits;
        self
    }

    /// When a silent server gets a heartbeat. The connection is given up if the server does not answer in time. By
    /// default a dead server is found within 25 s. While a plain server has a call to answer, it has ten times the
    /// timeout, because a server with a pool answers heartbeats after the calls that fill it.
    pub fn heartbeat(mut self, heartbeat: Heartbeat) -> Self {
        self.settings.watch.heartbeat_interval = heartbeat.interval;
        self.settings.watch.heartbeat_timeout = heartbeat.timeout;
        self
    }

    /// Give the connection up when nothing comes for this long. Default never; zero ends it at the next look, within a
    /// second.
    pub fn idle_timeout(mut self, limit: Option<Duration>) -> Self {
        self.settings.watch.idle_timeout = limit;
        self
    }

    /// Begin with a Hello, so that a Bothways server can call this client, stop cancelled calls and say
    /// goodbye. Default yes; a plain rpcx server echoes it and nothing changes, unless its plugins see a Hello or a
    /// heartbeat as a request without what they ask of each: one that wants a pair of the application's closes the
    /// connection, and one that counts requests counts these too. For such a server: no, and no
    /// [`heartbeat`](Self::heartbeat).
    pub fn negotiate(mut self, negotiate: bool) -> Self {
        self.negotiate = negotiate;
        if !negotiate {
            self.settings.capabilities = Capabilities::NONE;
        }
        self
    }

    /// Which connections are made again by themselves. Default [`Reconnect::Lost`].
    pub fn reconnect(mut self, reconnect: Reconnect) -> Self {
        self.reconnect = reconnect;
        self
    }

    /// To which of the addresses this client goes that its server names when it stops. It tries each of them in turn, with
    /// back-off, then its own address, and so on; from ten minutes after that only its own. Default
    /// [`OtherAddresses::Trusted`]. What it says of its server, in events and errors, stays the address that it was made
    /// with. An [`XClient`](crate::XClient) ignores such addresses: it has a list of servers, and goes to another one of
    /// these.
    pub fn other_addresses(mut self, others: OtherAddresses) -> Self {
        self.others = others;
        self
    }

    pub(super) fn others(&self) -> OtherAddresses {
        self.others
    }

    /// Writes what happens to this client, such as a refused token, to the log at level debug only. The same is still told
    /// to the application: by errors, [`Client::events`](crate::Client::events) and counters. Default false.
    ///
    /// For a program that makes a client for each of its own, as a gateway does: there, a stranger who sends a wrong token
    /// would write a line with each request. What handlers of server messages do is logged as always.
    ///
    /// ```
    /// let options = bothways::ClientOptions::new().quiet(true);
    /// ```
    pub fn quiet(mut self, quiet: bool) -> Self {
        self.is_quiet = quiet;
        let load = Load::default();
        self.settings.load = Arc::new(if quiet { load.quiet() } else { load });
        self
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.is_quiet
    }

    /// Give up after this many refusals in a row: the client ends, and
    /// [`ConnectionEvent::GaveUp`](crate::ConnectionEvent::GaveUp) says so. Default `None`: never. A server may refuse
    /// every client while its user database is down.
    pub fn refusals_max(mut self, refusals: Option<u32>) -> Self {
        self.refusals_max = refusals;
        self
    }

    /// How long to wait before each new try: a random time up to `base`, doubled with every failure up to
    /// `max`, and up to six times `max` where the server refuses this client. Default 50 ms and 10 s: a minute after
    /// refusals. A connection that ends within its first second is a failure too. The randomness keeps a crowd of
    /// clients from coming back at once.
    pub fn backoff(mut self, base: Duration, max: Duration) -> Self {
        self.backoff_base = base.max(Duration::from_millis(1));
        self.backoff_max = max.max(self.backoff_base);
        self
    }

    /// Messages from the server, and their bytes, that may wait for the application. Default 16,384
    /// messages, 16 MiB. Tracked messages have a bound of their own: [`Self::tracked_queue`].
    ///
    /// Of several servers of an [`XClient`](crate::XClient) none takes all of it: half of both bounds is first come,
    /// first served, and each server has an even share of the other half. A server beyond its share has messages
    /// dropped, as [`Self::message_overflow`] says. While servers come and go, the queue may exceed the bound, up to
    /// twice of it. It may also do so for single messages that are larger than a share.
    pub fn message_queue(mut self, bound: QueueBound) -> Self {
        bound.set(&mut self.queue.messages_max, &mut self.queue.bytes_max);
        self.queue.messages_max = self.queue.messages_max.max(1);
        self
    }

    /// Tracked messages from the server, and their bytes, that may wait for the application. Default 16,384
    /// messages, 16 MiB: more than a server's
    /// [`log`](crate::SessionOptions::log) and [`latest_queue`](crate::SessionOptions::latest_queue), whose values count here, hold by
    /// default. The connection ends at one more, as [`CloseReason::SlowPeer`](crate::CloseReason::SlowPeer); nothing is
    /// lost, for the server sends it again when the client is back. One message that is larger than the bound may wait
    /// alone.
    ///
    /// Several servers of an [`XClient`](crate::XClient) share it as they share [`Self::message_queue`]: the
    /// connection that ends is that of a server which is over its share.
    pub fn tracked_queue(mut self, bound: QueueBound) -> Self {
        bound.set(&mut self.queue.tracked_max, &mut self.queue.tracked_bytes_max);
        self
    }

    /// The rule for a message from the server when that queue is full; each dropped message is
    /// counted. Default [`Overflow::DropOldest`]. Reading never stops for it.
    pub fn message_overflow(mut self, overflow: Overflow) -> Self {
        self.queue.overflow = overflow;
        self
    }

    /// Calls from the server that run at once; more are answered as overloaded at once. Default 16.
    pub fn server_calls_max(mut self, calls: usize) -> Self {
        self.settings.calls_running_max = calls;
        self
    }

    /// Bytes of replies that may wait for a server that calls this client and does not read what it is answered,
    /// before its further calls are answered as overloaded at once. Default 4 MiB. The client reads on, for the
    /// replies to its own calls. Its worst is this, and the replies of
    /// [`server_calls_max`](Self::server_calls_max) handlers that run already.
    pub fn reply_bytes_max(mut self, bytes: usize) -> Self {
        self.settings.reply_bytes_max = bytes;
        self
    }

    /// Bytes of calls that may wait for a server that does not read; a call beyond is refused with
    /// [`CallError::QueueFull`](crate::CallError::QueueFull), and nothing of it is sent. One call that is larger is
    /// taken if no other waits. Default 64 MiB.
    pub fn call_bytes_max(mut self, bytes: usize) -> Self {
        self.settings.call_bytes_max = bytes;
        self
    }

    /// Wraps each call and oneway message of the client. The layer that is added first sees it first. With an
    /// [`XClient`](crate::XClient) each try is wrapped, inside of
    /// [`XClientOptions::try_layer`](crate::XClientOptions::try_layer). The client's own requests, such as
    /// [`subscribe`](crate::Client::subscribe), pass no layers.
    pub fn layer(mut self, layer: impl CallLayer) -> Self {
        self.layers.add(Arc::new(layer));
        self
    }

    /// A way to connect that is not built in, for addresses of its networks.
    pub fn transport(mut self, transport: impl Transport) -> Self {
        self.transports.add(transport);
        self
    }

    /// How to connect: time limit, keep-alive of the system, TLS.
    pub fn connect_options(mut self, options: ConnectOptions) -> Self {
        self.connect = options;
        self
    }

    pub(super) fn layers(&self) -> &CallLayers {
        &self.layers
    }

    /// Puts these layers around its own.
    pub(crate) fn wrap_in(&mut self, outer: &CallLayers) {
        let inner = std::mem::replace(&mut self.layers, outer.clone());
        self.layers.add_all(&inner);
    }

    pub(crate) fn transports(&self) -> &Transports {
        &self.transports
    }

    /// Has these too; they count more than its own.
    pub(crate) fn add_transports(&mut self, transports: &Transports) {
        self.transports.add_all(transports);
    }

    pub(crate) fn new_queue(&self) -> (MessageQueue, ServerMessages) {
        super::messages::queue(self.queue)
    }

    pub(super) fn settings(&self) -> Settings {
        let payload_max = self.settings.limits.decompressed_bytes();
        let room = || Arc::new(Room::new(UNPACKED_BYTES, UNPACKED_BYTES_OF_CONNECTION, payload_max));
        Settings { room: room(), reply_room: room(), ..self.settings.clone() }
    }

    pub(super) fn connect(&self) -> &ConnectOptions {
        &self.connect
    }

    pub(super) fn credentials_kind(&self) -> &Credentials {
        &self.credentials
    }

    /// True if another token may be had than the one that was refused.
    pub(super) fn can_renew(&self) -> bool {
        matches!(self.credentials, Credentials::Asked(_))
    }

    pub(super) fn retries_first_connect(&self) -> bool {
        self.reconnect == Reconnect::Always
    }

    pub(super) fn refusals(&self) -> Option<u32> {
        self.refusals_max
    }

    pub(crate) fn serialize(&self) -> SerializeType {
        self.serialize
    }

    pub(crate) fn default_timeout(&self) -> Option<Duration> {
        self.timeout
    }

    pub(crate) fn wait(&self) -> Duration {
        self.connection_wait
    }

    pub(super) fn message_wait(&self) -> Duration {
        self.room_wait
    }

    pub(super) fn device_name(&self) -> Option<&str> {
        self.device.as_deref()
    }

    pub(super) fn negotiates(&self) -> bool {
        self.negotiate
    }

    pub(super) fn reconnects(&self) -> bool {
        self.reconnect != Reconnect::Never
    }

    /// The wait before try number `failures + 1`: this part, which is drawn, of a limit that doubles.
    pub(super) fn backoff_wait(&self, failures: u32, refused: bool, part: f64) -> Duration {
        let max = self.backoff_max.saturating_mul(if refused { REFUSED_TIMES } else { 1 });
        backoff(self.backoff_base, max, failures, part)
    }
}

/// How much longer a client waits after a refusal than after a failed connection: the server that refused it is busy
/// already.
const REFUSED_TIMES: u32 = 6;

/// A token for `__AUTH`, such as `bearer …`. Its `Debug` does not show it.
#[derive(Clone)]
pub struct Token(Arc<str>);

impl Token {
    /// This one.
    pub fn new(token: impl Into<String>) -> Self {
        Self(token.into().into())
    }
}

impl From<String> for Token {
    fn from(token: String) -> Self {
        Self(token.into())
    }
}

impl From<&str> for Token {
    fn from(token: &str) -> Self {
        Self(token.into())
    }
}

impl From<Token> for Arc<str> {
    fn from(token: Token) -> Self {
        token.0
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(***)")
    }
}

/// Where the token of a connection comes from.
#[derive(Clone)]
pub(super) enum Credentials {
    None,
    Token(Arc<str>),
    Asked(Arc<dyn Fn() -> BoxFuture<Token> + Send + Sync>),
}

impl std::fmt::Debug for ClientOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientOptions")
            .field("token", &(!matches!(self.credentials, Credentials::None)).then_some("***"))
            .field("serialize", &self.serialize)
            .field("timeout", &self.timeout)
            .field("reconnect", &self.reconnect)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From nothing at all up to a limit that doubles with each failure, and no further than the longest: full jitter.
    #[test]
    fn a_wait_is_any_part_of_a_limit_that_doubles() {
        let ms = Duration::from_millis;
        let options = ClientOptions::new().backoff(ms(50), ms(1000));
        let limits: Vec<_> = (0..7).map(|failures| options.backoff_wait(failures, false, 1.0)).collect();
        assert_eq!(limits, [50, 100, 200, 400, 800, 1000, 1000].map(ms));
        for failures in [0, 1, 7, u32::MAX] {
            let limit = options.backoff_wait(failures, false, 1.0);
            assert_eq!(options.backoff_wait(failures, false, 0.0), Duration::ZERO);
            assert_eq!(options.backoff_wait(failures, false, 0.25), limit / 4);
        }
        let limits = [0, 4, 5, 6, 7, 20].map(|failures| options.backoff_wait(failures, true, 1.0));
        assert_eq!(limits, [50, 800, 1600, 3200, 6000, 6000].map(ms), "after refusals");
        assert_eq!(ClientOptions::new().backoff_wait(u32::MAX, true, 1.0), Duration::from_secs(60));
    }

    /// No limit, however large, is too large for the clock.
    #[test]
    fn a_wait_may_be_for_ever() {
        for base in [Duration::ZERO, Duration::MAX] {
            let options = ClientOptions::new().backoff(base, Duration::MAX);
            for (failures, part) in [(0, 1.0), (u32::MAX, 1.0), (3, 1.0 - f64::EPSILON)] {
                let _ = std::time::Instant::now() + options.backoff_wait(failures, true, part);
            }
        }
    }

    #[test]
    fn a_token_is_not_shown() {
        let options = ClientOptions::new().credentials(|| async { "bearer s3cret" });
        for shown in
            [format!("{options:?}"), format!("{:?}", options.auth("s3cret")), format!("{:?}", Token::new("s3cret"))]
        {
            assert!(!shown.contains("s3cret"), "{shown}");
        }
    }

    /// Each option is what was chosen, and the others stay as they are.
    #[test]
    fn each_option_is_what_was_chosen() {
        let s = Duration::from_secs;
        let default = ClientOptions::new();
        assert!(default.negotiates() && default.reconnects() && !default.retries_first_connect());
        assert_eq!((default.refusals(), default.default_timeout(), default.can_renew()), (None, None, false));
        assert_eq!(
            (default.wait(), default.message_wait(), default.serialize()),
            (s(5), s(10), SerializeType::MSGPACK)
        );

        let options = ClientOptions::new()
            .auth("bearer good")
            .serialize_type(SerializeType::RAW)
            .compress(CompressType::GZIP)
            .timeout(s(1))
            .connection_wait(s(2))
            .room_wait(s(3))
            .limits(Limits::default().body_bytes_max(4096))
            .heartbeat(Heartbeat::every(s(5)).timeout(s(6)))
            .idle_timeout(Some(s(7)))
            .reconnect(Reconnect::Always)
            .refusals_max(Some(8))
            .backoff(s(9), s(10))
            .message_queue(QueueBound::messages(11).bytes(12))
            .tracked_queue(QueueBound::messages(13).bytes(14))
            .message_overflow(Overflow::Disconnect)
            .server_calls_max(15)
            .reply_bytes_max(16)
            .call_bytes_max(17);
        assert!(matches!(&options.credentials, Credentials::Token(token) if &**token == "bearer good"));
        assert_eq!((options.serialize(), options.default_timeout()), (SerializeType::RAW, Some(s(1))));
        assert_eq!((options.wait(), options.message_wait(), options.refusals()), (s(2), s(3), Some(8)));
        assert!(options.retries_first_connect() && options.negotiates());
        assert_eq!((options.backoff_base, options.backoff_max), (s(9), s(10)));
        let QueueBounds { messages_max, bytes_max, overflow, tracked_max, tracked_bytes_max } = options.queue;
        assert_eq!((messages_max, bytes_max, tracked_max, tracked_bytes_max), (11, 12, 13, 14));
        assert_eq!(overflow, Overflow::Disconnect);
        let settings = options.settings();
        assert_eq!((settings.compress, settings.limits.body_bytes()), (CompressType::GZIP, 4096));
        let watch = &settings.watch;
        assert_eq!((watch.heartbeat_interval, watch.heartbeat_timeout), (Some(s(5)), s(6)));
        assert_eq!(watch.idle_timeout, Some(s(7)));
        let bounds = (settings.calls_running_max, settings.reply_bytes_max, settings.call_bytes_max);
        assert_eq!(bounds, (15, 16, 17));

        let options = options.reconnect(Reconnect::Never).negotiate(false).credentials(|| async { "x" });
        assert!(!options.reconnects() && !options.retries_first_connect(), "one that does not come back tries once");
        assert!(!options.negotiates() && options.can_renew());
        assert_eq!(options.settings().capabilities, Capabilities::NONE);
        let options = ClientOptions::new()
            .backoff(Duration::ZERO, Duration::ZERO)
            .message_queue(QueueBound::messages(0).bytes(0));
        let least = Duration::from_millis(1);
        assert_eq!((options.backoff_base, options.backoff_max, options.queue.messages_max), (least, least, 1));
    }

    /// Each client has rooms of its own for what is unpacked, also of the same options.
    #[test]
    fn no_client_takes_the_room_of_another() {
        let options = ClientOptions::new();
        let [one, other] = [options.settings(), options.settings()];
        assert!(!Arc::ptr_eq(&one.room, &other.room) && !Arc::ptr_eq(&one.reply_room, &other.reply_room));
        assert!(!Arc::ptr_eq(&one.room, &one.reply_room));
    }
}
