//! The way in: an HTTP connection is a client of the server like any other, over a connection within the process.
//!
//! So the server's auth hook, bounds, admission, layers and counters hold for HTTP without being asked here.

use std::{sync::Arc, time::Duration};

use bothways::{
    Client, ClientOptions, Heartbeat, Limits, QueueBound, Reconnect, ServeError, Server,
    client::ServerMessages,
    transport::{ConnectOptions, memory},
};

use crate::fault::Fault;

/// Bytes that wait in one direction between a front and its server.
const PIPE_BYTES: usize = 64 << 10;

/// Bytes of frames beside the body of a request or a reply: names and metadata.
const BESIDE_BODY_BYTES: usize = 128 << 10;

/// The server behind a front.
#[derive(Clone)]
pub(crate) enum Home {
    /// Kept for as long as the front is.
    Kept(Server),
    /// The server keeps its front, so that the front does not keep its server.
    #[cfg(feature = "port")]
    Keeper(bothways::WeakServer),
}

impl Home {
    /// The server, if it is still there.
    pub(crate) fn server(&self) -> Option<Server> {
        match self {
            Self::Kept(server) => Some(server.clone()),
            #[cfg(feature = "port")]
            Self::Keeper(server) => server.upgrade(),
        }
    }

    /// True if there is no server any more, or it begins to stop.
    pub(crate) fn is_stopping(&self) -> bool {
        self.server().is_none_or(|server| server.is_stopping())
    }
}

/// What every connection inside has in common.
#[derive(Clone)]
pub(crate) struct Entrance {
    pub(crate) home: Home,
    pub(crate) body_bytes_max: usize,
    pub(crate) connect_timeout: Duration,
}

/// One HTTP connection, and the connection inside that it uses. Requests of different clients or with different tokens
/// share none: a proxy may send those of several users over one HTTP connection.
pub(crate) struct Visitor {
    pub(crate) peer: Arc<str>,
    /// Speaks HTTP/1 to the front itself, so that each request names its host.
    pub(crate) names_host: bool,
    current: tokio::sync::Mutex<Option<Inside>>,
}

struct Inside {
    peer: Arc<str>,
    token: String,
    client: Client,
}

impl Visitor {
    pub(crate) fn new(peer: impl Into<Arc<str>>) -> Self {
        Self { peer: peer.into(), names_host: false, current: tokio::sync::Mutex::default() }
    }

    /// At a connection that the front serves itself.
    pub(crate) fn of_front(peer: Arc<str>) -> Self {
        Self { names_host: true, ..Self::new(peer) }
    }

    /// The connection inside for requests of this client with this token. The server is asked whether it is good.
    pub(crate) async fn client(&self, entrance: &Entrance, peer: &Arc<str>, token: &str) -> Result<Client, Fault> {
        let mut current = self.current.lock().await;
        if let Some(inside) = &*current
            && (&inside.peer, &*inside.token) == (peer, token)
            && inside.client.connection().is_ok()
        {
            return Ok(inside.client.clone());
        }

        // The one before ends first: two of them count twice for the bounds of the server.
        *current = None;
        let client = entrance.connect(peer, token).await?;
        *current = Some(Inside { peer: Arc::clone(peer), token: token.to_owned(), client: client.clone() });
        Ok(client)
    }

    /// The token has been refused: the server ends that connection.
    pub(crate) async fn forget(&self) {
        *self.current.lock().await = None;
    }
}

impl Entrance {
    /// A client that calls.
    pub(crate) async fn connect(&self, peer: &Arc<str>, token: &str) -> Result<Client, Fault> {
        let options = self.options(peer, token)?;
        Ok(Client::connect(ADDRESS, options).await?)
    }

    /// A client that listens too.
    pub(crate) async fn connect_listening(
        &self,
        peer: &Arc<str>,
        token: &str,
        queue: QueueBound,
    ) -> Result<(Client, ServerMessages), Fault> {
        let options = self.options(peer, token)?.message_queue(queue).tracked_queue(queue);
        Ok(Client::bidirectional(ADDRESS, options).await?)
    }

    fn options(&self, peer: &Arc<str>, token: &str) -> Result<ClientOptions, Fault> {
        let (near, far) = memory::pair_for(Arc::clone(peer), PIPE_BYTES);
        self.home.server().ok_or(ServeError::ShutDown)?.take(far)?;
        let connect = ConnectOptions::default().connect_timeout(self.connect_timeout).over(near);
        let limits = Limits::default().body_bytes_max(self.body_bytes_max.saturating_add(BESIDE_BODY_BYTES));
        let options = ClientOptions::new()
            .connect_options(connect)
            .reconnect(Reconnect::Never)
            // The other end is in this process.
            .heartbeat(Heartbeat::never())
            .limits(limits)
            // What a stranger does is told by the server, once in a while: here it would be a line for each request.
            .quiet(true);
        Ok(if token.is_empty() { options } else { options.auth(token) })
    }
}

/// What errors call the server.
const ADDRESS: &str = "memory@the server";
