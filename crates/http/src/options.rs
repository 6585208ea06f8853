//! What a front offers, and every bound on what a client of it can cost.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::HeaderValue;

use crate::{cors::Cors, peer::Network};

/// What is longer is as long as this, thirty years: a clock can count it, and nobody waits to see the difference.
const FOR_EVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// What a [`Front`](crate::Front) offers, and its bounds. Any duration may be given, also
/// [`Duration::MAX`].
///
/// ```
/// use std::time::Duration;
///
/// use bothways_http::{Cors, FrontOptions};
///
/// let options = FrontOptions::new()
///     .call_timeout(Duration::from_secs(5))
///     .cors(Cors::origins(["https://shop.example"]))
///     .hosts(["api.shop.example"]);
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct FrontOptions {
    pub(crate) files: Vec<File>,
    pub(crate) gateway: bool,
    pub(crate) json_rpc: bool,
    pub(crate) rpc: bool,
    pub(crate) events: bool,
    pub(crate) debug: bool,
    #[cfg(feature = "metrics")]
    pub(crate) metrics: Option<crate::metrics::Make>,
    pub(crate) strict_json_rpc_codes: bool,
    pub(crate) cors: Option<Cors>,
    pub(crate) hosts: Option<Arc<[String]>>,
    pub(crate) connections_max: usize,
    pub(crate) connections_per_address_max: Option<usize>,
    pub(crate) trusted_proxies: Arc<[Network]>,
    pub(crate) head_bytes_max: usize,
    pub(crate) head_timeout: Duration,
    pub(crate) body_bytes_max: usize,
    pub(crate) body_timeout: Duration,
    pub(crate) write_timeout: Duration,
    /// Bytes in a second.
    pub(crate) rate_min: usize,
    pub(crate) held_bytes_max: usize,
    pub(crate) held_bytes_per_address_max: Option<usize>,
    pub(crate) call_timeout: Duration,
    pub(crate) batch_calls_max: usize,
    pub(crate) streams: StreamBounds,
}

/// A file that is served as it is.
#[derive(Clone, Debug)]
pub(crate) struct File {
    pub(crate) path: String,
    pub(crate) content_type: HeaderValue,
    pub(crate) content: Bytes,
}

/// The bounds of streams of events.
#[derive(Clone, Debug)]
pub(crate) struct StreamBounds {
    pub(crate) streams_max: usize,
    pub(crate) per_address_max: Option<usize>,
    pub(crate) topics_max: usize,
    pub(crate) queue_messages_max: usize,
    pub(crate) queue_bytes_max: usize,
    pub(crate) kept_events_max: usize,
    pub(crate) kept_bytes_max: usize,
    pub(crate) bytes_max: usize,
    pub(crate) resume_window: Duration,
    pub(crate) beat: Duration,
    pub(crate) ticket_time: Duration,
    pub(crate) tickets_max: usize,
}

impl Default for FrontOptions {
    fn default() -> Self {
        Self {
            files: Vec::new(),
            gateway: true,
            json_rpc: true,
            rpc: true,
            events: true,
            debug: false,
            #[cfg(feature = "metrics")]
            metrics: None,
            strict_json_rpc_codes: false,
            cors: None,
            hosts: None,
            connections_max: 1024,
            connections_per_address_max: None,
            trusted_proxies: Arc::default(),
            head_bytes_max: 16 << 10,
            head_timeout: Duration::from_secs(20),
            body_bytes_max: 8 << 20,
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            rate_min: 1 << 10,
            held_bytes_max: 64 << 20,
            held_bytes_per_address_max: None,
            call_timeout: Duration::from_secs(30),
            batch_calls_max: 100,
            streams: StreamBounds::default(),
        }
    }
}

impl Default for StreamBounds {
    fn default() -> Self {
        Self {
            streams_max: 1024,
            per_address_max: None,
            topics_max: 100,
            queue_messages_max: 1024,
            queue_bytes_max: 256 << 10,
            kept_events_max: 256,
            kept_bytes_max: 256 << 10,
            bytes_max: 64 << 20,
            resume_window: Duration::from_secs(30),
            beat: Duration::from_secs(15),
            ticket_time: Duration::from_secs(30),
            tickets_max: 4096,
        }
    }
}

impl FrontOptions {
    /// The defaults: everything that carries calls and events is on, CORS and debugging are off.
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves a file to `GET` at exactly this path, without any token: a page that is a client. Its scripts and styles come
    /// from files too, and it connects to nothing else: it is served with a `Content-Security-Policy` that says so. Default
    /// none.
    ///
    /// ```
    /// use bothways_http::FrontOptions;
    ///
    /// let options = FrontOptions::new()
    ///     .file("/", "text/html; charset=utf-8", "<!doctype html><script type=module src=/app.js></script>")
    ///     .file("/app.js", "text/javascript", "console.log('hello')");
    /// ```
    ///
    /// # Panics
    /// The content type cannot be a header.
    pub fn file(mut self, path: impl Into<String>, content_type: &'static str, content: impl Into<Bytes>) -> Self {
        let content_type = HeaderValue::from_static(content_type);
        self.files.push(File { path: path.into(), content_type, content: content.into() });
        self
    }

    /// rpcx's gateway: `X-RPCX-*` headers. Default on. Off, its requests are 404.
    pub fn gateway(mut self, on: bool) -> Self {
        self.gateway = on;
        self
    }

    /// JSON-RPC 2.0: requests with the header `X-JSONRPC-2.0: true`. Default on. Off, they are 404.
    pub fn json_rpc(mut self, on: bool) -> Self {
        self.json_rpc = on;
        self
    }

    /// `POST /rpc/Service/Method`. Default on. Off, these are 404.
    pub fn rpc(mut self, on: bool) -> Self {
        self.rpc = on;
        self
    }

    /// `GET /events`. Default on. Off, these are 404.
    pub fn events(mut self, on: bool) -> Self {
        self.events = on;
        self
    }

    /// `GET /debug/vars`: tasks, connections and queues as JSON, without any token. Default off: turn it on only where
    /// operators alone can connect.
    pub fn debug(mut self, on: bool) -> Self {
        self.debug = on;
        self
    }

    /// `GET /metrics`: the metrics that this function makes for the front's server, without any token. Default none: serve
    /// them only where operators alone can connect. The function is called once.
    ///
    /// ```
    /// use bothways::Server;
    /// use bothways_http::FrontOptions;
    /// use bothways_metrics::{Calls, Metrics};
    ///
    /// let calls = Calls::new();
    /// let server = Server::builder().layer(calls.clone()).build();
    /// let options = FrontOptions::new().metrics(move |server| Metrics::new(server).with_calls(&calls));
    /// ```
    #[cfg(feature = "metrics")]
    pub fn metrics<F>(mut self, make: F) -> Self
    where
        F: Fn(&bothways::Server) -> bothways_metrics::Metrics + Send + Sync + 'static,
    {
        self.metrics = Some(crate::metrics::Make(Arc::new(make)));
        self
    }

    /// JSON-RPC: the codes -32601 for an unknown method and -32602 for arguments that cannot be decoded. Default off: all
    /// errors of a call are -32603, as in Go, whose clients compare codes.
    pub fn strict_json_rpc_codes(mut self, on: bool) -> Self {
        self.strict_json_rpc_codes = on;
        self
    }

    /// Which pages of other origins may use this front. Default none.
    pub fn cors(mut self, cors: Cors) -> Self {
        self.cors = Some(cors);
        self
    }

    /// The names by which clients may reach this front, without port, in any case: another `Host` is answered with 421.
    /// It stops a page whose name was made to point to this address (DNS rebinding); [at the port](Self::on_port) of a
    /// server it holds for WebSocket too. Default any: set it where requests
    /// need no token, as on a developer's machine.
    pub fn hosts<H: Into<String>>(mut self, hosts: impl IntoIterator<Item = H>) -> Self {
        self.hosts = Some(hosts.into_iter().map(|host| host.into().to_ascii_lowercase()).collect());
        self
    }

    /// HTTP connections that are open at once; more are closed at once and counted. Default 1,024. For a front in an
    /// application's own HTTP server, that server's bound counts.
    pub fn connections_max(mut self, connections: usize) -> Self {
        self.connections_max = connections;
        self
    }

    /// Of these, so many from one address (of IPv6, one /64 network; all of this machine's addresses count as one).
    /// Default 256, and never more than it leaves to others: an address that takes all it gets leaves as many to the next.
    /// If this is [`connections_max`](Self::connections_max) or more, one address may have them all: for a front behind
    /// a proxy that is not among the [trusted](Self::trusted_proxies).
    pub fn connections_per_address_max(mut self, connections: usize) -> Self {
        self.connections_per_address_max = Some(connections);
        self
    }

    /// Proxies that are believed when they say by `X-Forwarded-For` for whom they ask, by address or network. Default
    /// none: then the client is the other end of the connection. With them it is the last address that a trusted proxy
    /// has seen itself: bounds by address, the auth hook and the handlers see that one, and the connections of a proxy
    /// count for [`connections_max`](Self::connections_max) alone.
    ///
    /// Name only proxies that set this header or add to it. One that passes on what its clients send lets each of them be
    /// anybody.
    ///
    /// ```
    /// use bothways_http::FrontOptions;
    ///
    /// let options = FrontOptions::new().trusted_proxies(["127.0.0.1".parse()?, "10.0.0.0/8".parse()?]);
    /// # Ok::<_, bothways_http::NetworkError>(())
    /// ```
    pub fn trusted_proxies(mut self, proxies: impl IntoIterator<Item = Network>) -> Self {
        self.trusted_proxies = proxies.into_iter().collect();
        self
    }

    /// Bytes of a request's head; more is answered with 431. Default 16 KiB, at least 8 KiB.
    pub fn head_bytes_max(mut self, bytes: usize) -> Self {
        self.head_bytes_max = bytes.max(8 << 10);
        self
    }

    /// Time for the head of a request to arrive whole, from when the connection is open or the response before it has
    /// left. So it is also how long an unused connection stays open. Default 20 s.
    pub fn head_timeout(mut self, limit: Duration) -> Self {
        self.head_timeout = limit.min(FOR_EVER);
        self
    }

    /// Bytes of a request's body; more is answered with 413 and no more of it is read. Default 8 MiB, as
    /// [`Limits::body_bytes_max`](bothways::Limits::body_bytes_max).
    pub fn body_bytes_max(mut self, bytes: usize) -> Self {
        self.body_bytes_max = bytes;
        self
    }

    /// Time for a body to arrive whole; then 408. Default 30 s.
    pub fn body_timeout(mut self, limit: Duration) -> Self {
        self.body_timeout = limit.min(FOR_EVER);
        self
    }

    /// How long a client may take bytes of a response more slowly than [`rate_min`](Self::rate_min); then its connection
    /// is closed. Default 30 s. It holds where the front serves connections itself.
    pub fn write_timeout(mut self, limit: Duration) -> Self {
        self.write_timeout = limit.min(FOR_EVER);
        self
    }

    /// Bytes in a second, of a body that comes and of a response that waits for its client. A body that is slower for
    /// 10 s is answered with 408, a client that takes less for [`write_timeout`](Self::write_timeout) is closed. Default
    /// 1,024; 0: any number but none is enough, within the other bounds.
    pub fn rate_min(mut self, bytes_per_second: usize) -> Self {
        self.rate_min = bytes_per_second;
        self
    }

    /// Bytes of all bodies together, those of requests that are read or handled and those of replies that wait for their
    /// clients. They count when they are there, not when they are announced. What is beyond is answered with 503; a
    /// body that has not ended makes way, with 503 too, for one of an address that has less. Default 64 MiB.
    pub fn held_bytes_max(mut self, bytes: usize) -> Self {
        self.held_bytes_max = bytes;
        self
    }

    /// Of these, so many of one address, counted as for [`Self::connections_per_address_max`]. Default as many as it
    /// leaves to others: one address alone has half of all at most, the next one half of what is left. If this is
    /// [`held_bytes_max`](Self::held_bytes_max) or more, one address may have all.
    pub fn held_bytes_per_address_max(mut self, bytes: usize) -> Self {
        self.held_bytes_per_address_max = Some(bytes);
        self
    }

    /// Time for a call, after its body has come; the server is told. Then `/rpc` answers 504. Default 30 s. A client asks
    /// for less by `X-Bothways-Timeout`, in milliseconds.
    pub fn call_timeout(mut self, limit: Duration) -> Self {
        self.call_timeout = limit.min(FOR_EVER);
        self
    }

    /// Calls in one JSON-RPC batch; a larger batch is refused as a whole. Default 100.
    pub fn batch_calls_max(mut self, calls: usize) -> Self {
        self.batch_calls_max = calls;
        self
    }

    /// Streams of events, open ones and those whose client may still come back; more are answered with 503. Default
    /// 1,024.
    pub fn streams_max(mut self, streams: usize) -> Self {
        self.streams.streams_max = streams;
        self
    }

    /// Of these, so many from one address, counted as for [`Self::connections_per_address_max`]. Default 64, and never more
    /// than it leaves to others, unless this is [`streams_max`](Self::streams_max) or more. The oldest one that waits for
    /// its client makes room.
    pub fn streams_per_address_max(mut self, streams: usize) -> Self {
        self.streams.per_address_max = Some(streams);
        self
    }

    /// Topics of one stream. Default 100.
    pub fn topics_per_stream_max(mut self, topics: usize) -> Self {
        self.streams.topics_max = topics;
        self
    }

    /// Messages, and their bytes, that wait for one stream's client to read. Default 1,024 and 256 KiB. Beyond it the
    /// stream ends if the message is tracked; of others the oldest is dropped, and the client is told how many.
    pub fn stream_queue(mut self, messages: usize, bytes: usize) -> Self {
        (self.streams.queue_messages_max, self.streams.queue_bytes_max) = (messages, bytes);
        self
    }

    /// Events, and their bytes, that one stream keeps after it has written them, for a client that comes back with
    /// `Last-Event-ID`. Default 256 and 256 KiB.
    pub fn stream_kept(mut self, events: usize, bytes: usize) -> Self {
        (self.streams.kept_events_max, self.streams.kept_bytes_max) = (events, bytes);
        self
    }

    /// Bytes of the events of all streams together, those that are kept and those that are being written. An event that
    /// many streams have counts once, for the address whose stream had it first; an address has no more than it leaves to
    /// others. A stream without room for its next event keeps fewer of those before, and then ends, so that its client
    /// comes again after a second. Default 64 MiB.
    pub fn streams_bytes_max(mut self, bytes: usize) -> Self {
        self.streams.bytes_max = bytes;
        self
    }

    /// How long a stream whose connection is lost waits for its client. Default 30 s; a browser comes back after one.
    pub fn stream_resume_window(mut self, window: Duration) -> Self {
        self.streams.resume_window = window.min(FOR_EVER);
        self
    }

    /// How often a stream without events sends a comment, so that proxies keep it and a lost client is noticed.
    /// Default 15 s, at least 1 s.
    pub fn stream_beat(mut self, every: Duration) -> Self {
        self.streams.beat = every.clamp(Duration::from_secs(1), FOR_EVER);
        self
    }

    /// How long a ticket for `/events` can be used. Default 30 s.
    pub fn ticket_time(mut self, time: Duration) -> Self {
        self.streams.ticket_time = time.min(FOR_EVER);
        self
    }
}
