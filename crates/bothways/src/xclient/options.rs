//! How an `XClient` chooses, tries and connects.

use std::{sync::Arc, time::Duration};

use crate::{
    call::{CallLayer, CallLayers},
    client::{ClientOptions, OtherAddresses},
    router::Router,
    transport::{Transport, Transports},
};

/// How an [`XClient`](super::XClient) chooses, tries and connects. Source of the names: Go rpcx
/// `client.Option`.
///
/// Wherever an `XClient` takes these, it takes [`ClientOptions`] too: what concerns each single
/// connection, such as the token, the codec or the heartbeat, is theirs.
///
/// ```
/// use std::time::Duration;
///
/// use bothways::{ClientOptions, XClientOptions};
///
/// let options = XClientOptions::new()
///     .client(ClientOptions::new().auth("bearer tGzv3JOkF0XG5Qx2TlKWIA").timeout(Duration::from_secs(3)))
///     .group("test")
///     .retries(1);
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct XClientOptions {
    pub(super) client: ClientOptions,
    pub(super) group: Option<Arc<str>>,
    pub(super) retries: u32,
    pub(super) retry_interval: Duration,
    pub(super) retry_maybe_executed: bool,
    pub(super) retry_budget: u32,
    pub(super) backup_latency: Duration,
    pub(super) sticky: bool,
    pub(super) eager: Option<bool>,
    pub(super) handlers: Option<Router>,
    pub(super) layers: CallLayers,
    pub(super) try_layers: CallLayers,
    pub(super) transports: Transports,
}

impl Default for XClientOptions {
    fn default() -> Self {
        Self {
            client: ClientOptions::default(),
            group: None,
            retries: 3,
            retry_interval: Duration::ZERO,
            retry_maybe_executed: true,
            retry_budget: 20,
            backup_latency: Duration::from_millis(10),
            sticky: false,
            eager: None,
            handlers: None,
            layers: CallLayers::default(),
            try_layers: CallLayers::default(),
            transports: Transports::default(),
        }
    }
}

impl XClientOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// What concerns each connection: token, codec, deadline, heartbeat, back-off, queues.
    pub fn client(mut self, options: ClientOptions) -> Self {
        self.client = options;
        self
    }

    /// Only servers of this group: those whose metadata has `group=` with this value. Default all. An
    /// empty name is no group, as in Go.
    pub fn group(mut self, group: &str) -> Self {
        self.group = (!group.is_empty()).then(|| group.into());
        self
    }

    /// How often `Failtry` and `Failover` try again after the first try. Default 3: four tries.
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    /// The pause before each further try. Default none.
    pub fn retry_interval(mut self, interval: Duration) -> Self {
        self.retry_interval = interval;
        self
    }

    /// Try again after a connection was lost while the call was under way, although the server may have
    /// run it. Default true, because that is what these fail modes do in rpcx: **a method that must not
    /// run twice wants false, or [`FailMode::Failfast`](super::FailMode)**. With false, a call
    /// whose bytes may have reached a server fails with
    /// [`CallError::Closed`](crate::CallError::Closed) and `written: true`; everything that cannot have run
    /// is tried again all the same.
    pub fn retry_maybe_executed(mut self, retry: bool) -> Self {
        self.retry_maybe_executed = retry;
        self
    }

    /// How many further tries may follow refusals of servers that are overloaded, of all calls together, beyond one for each
    /// call that succeeds. Default 20; one comes back with each success, and each 100 ms. A call that finds none left
    /// returns the refusal: where all servers are overloaded, their clients do not ask each of them for each call. Zero:
    /// such a refusal is never followed by another try; `u32::MAX`: there is no bound. Tries after anything else, such as
    /// a lost connection, are not counted.
    pub fn retry_budget(mut self, tries: u32) -> Self {
        self.retry_budget = tries;
        self
    }

    /// How long `Failbackup` waits for the first server before it asks a second one. Default 10 ms.
    pub fn backup_latency(mut self, latency: Duration) -> Self {
        self.backup_latency = latency;
        self
    }

    /// Stay with the server that was chosen first, until its connection fails or it leaves the list.
    /// Default: choose for each call.
    pub fn sticky(mut self, sticky: bool) -> Self {
        self.sticky = sticky;
        self
    }

    /// Connect to every server at once, and not with the first call that goes there. Default: only if the
    /// client listens, with [`XClient::bidirectional`](super::XClient::bidirectional) or
    /// [`Self::handlers`]: a server can only speak to whom is connected.
    pub fn eager(mut self, eager: bool) -> Self {
        self.eager = Some(eager);
        self
    }

    /// Wraps each call and oneway message, with all its tries. The layer that is added first sees it first.
    pub fn layer(mut self, layer: impl CallLayer) -> Self {
        self.layers.add(Arc::new(layer));
        self
    }

    /// Wraps each try of a call or oneway message: the retries and the backup too. The layer that is added first sees it
    /// first; those of [`ClientOptions::layer`] are inside of these.
    pub fn try_layer(mut self, layer: impl CallLayer) -> Self {
        self.try_layers.add(Arc::new(layer));
        self
    }

    /// A way to connect that is not built in, for servers whose addresses have its networks.
    pub fn transport(mut self, transport: impl Transport) -> Self {
        self.transports.add(transport);
        self
    }

    /// The options of each server's client, with the layers of each try and all transports.
    pub(super) fn complete(mut self) -> Self {
        // The list says where servers are: one that stops does not send its client to one of them a second time.
        self.client = self.client.other_addresses(OtherAddresses::Ignore);
        self.client.wrap_in(&self.try_layers);
        self.client.add_transports(&self.transports);
        self
    }

    /// These handlers take what servers send unasked and what they call: the same kind of routes as a
    /// server's. What one server sends is handled in order, one message after the other; servers do not
    /// wait for each other. With [`XClient::bidirectional`](super::XClient::bidirectional) the stream has the
    /// messages, and these have the calls only.
    pub fn handlers(mut self, handlers: Router) -> Self {
        self.handlers = Some(handlers);
        self
    }
}

impl From<ClientOptions> for XClientOptions {
    fn from(options: ClientOptions) -> Self {
        Self::new().client(options)
    }
}
