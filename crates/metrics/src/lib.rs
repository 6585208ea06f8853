#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
//! # Labels
//!
//! Paths and methods come from the routes of the server, and from those that a client has called with success;
//! everything else counts as `unknown`. No user, topic, session or peer is ever a label: a client that sends a name must not
//! be able to make a series.
//!
//! | file | what it does |
//! |---|---|
//! | `lib.rs` | [`Metrics`]: the text |
//! | `server.rs` | what a server counts, read when the text is made |
//! | `calls.rs` | [`Calls`]: counts and times calls, around the handlers of a server and the calls of a client |

mod calls;
mod server;

use std::{sync::Arc, time::Duration};

use bothways::Server;
use parking_lot::Mutex;
use prometheus_client::{encoding::text, metrics::info::Info, registry::Registry};

pub use self::calls::{Calls, ROUTES_MAX};
use self::server::OfServer;
/// The library that writes the text, for metrics of your own: see [`Metrics::registry`].
pub use prometheus_client;

/// The type of what [`Metrics::encode`] returns, for the header `Content-Type`.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// For so long the look at the queues of all sessions is used again: 5 s. However often somebody asks for the metrics, the
/// sessions are looked at no more often.
pub const QUEUES_KEPT: Duration = Duration::from_secs(5);

/// The metrics of one server, and of the calls that its process makes. It does not keep the server: once that is dropped,
/// the text has only the calls.
///
/// ```
/// use bothways::{ClientOptions, Server};
/// use bothways_metrics::{Calls, Metrics};
///
/// let calls = Calls::new();
/// let server = Server::builder().layer(calls.clone()).build();
/// let options = ClientOptions::new().layer(calls.clone()); // For the clients of this process.
///
/// let metrics = Metrics::new(&server).with_calls(&calls);
/// assert!(metrics.encode().contains("\nbothways_sessions{state=\"resumable\"} 0\n"));
/// ```
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    server: Arc<OfServer>,
    /// Of these the server knows how many requests no route took.
    calls: Mutex<Vec<Calls>>,
}

impl Metrics {
    /// Those of this server.
    pub fn new(server: &Server) -> Self {
        let server = Arc::new(OfServer::new(server.downgrade(), QUEUES_KEPT));
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Arc::clone(&server)));
        registry.register(
            "bothways_build",
            "The version of this crate",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        Self { registry, server, calls: Mutex::default() }
    }

    /// With the calls that this layer counts. Add it to the server and to the clients, too.
    #[must_use]
    pub fn with_calls(mut self, calls: &Calls) -> Self {
        calls.register(&mut self.registry);
        self.calls.get_mut().push(calls.clone());
        self
    }

    /// Looks at the queues of all sessions when the last look is so old, instead of [`QUEUES_KEPT`]. A look takes about 0.1 µs
    /// for each session. Zero: each time.
    #[must_use]
    pub fn with_queues_kept(self, time: Duration) -> Self {
        self.server.keep_queues(time);
        self
    }

    /// To add metrics of your own to the same text. Names that begin with `bothways_` are this crate's.
    pub fn registry(&mut self) -> &mut Registry {
        &mut self.registry
    }

    /// The metrics as OpenMetrics text, of the type [`CONTENT_TYPE`].
    ///
    /// Takes about 20 µs, and, when the queues are looked at, about 0.1 µs for each session more: with very many sessions
    /// call it on a thread that may be busy for so long
    /// ([`spawn_blocking`](https://docs.rs/tokio/latest/tokio/task/fn.spawn_blocking.html)).
    pub fn encode(&self) -> String {
        if let Some(unrouted) = self.server.unrouted() {
            self.calls.lock().iter().for_each(|calls| calls.set_unrouted(unrouted));
        }
        let mut text = String::with_capacity(16 << 10);
        // It writes to memory: only a metric of the application can fail, and then its text ends early.
        if text::encode(&mut text, &self.registry).is_err() && !text.ends_with("# EOF\n") {
            text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
            text.push_str("# EOF\n");
        }
        text
    }
}
