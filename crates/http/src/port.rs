//! HTTP on the port of the server itself.

use std::sync::{Arc, OnceLock};

use bothways::transport::{BoxFuture, HttpFront, HttpStream};

use crate::{front::Front, inside::Home, options::FrontOptions};

/// A front for the port on which a server speaks everything:
/// [`ListenOptions::http`](bothways::transport::ListenOptions::http). Made by [`FrontOptions::on_port`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use bothways::{Server, transport::ListenOptions};
/// use bothways_http::FrontOptions;
///
/// let http = ListenOptions::default().http(FrontOptions::new().on_port());
/// let server = Server::builder().listen_options(http).build();
/// let listening = server.listen("tcp@127.0.0.1:0").await?; // rpcx and HTTP.
/// # Ok(()) }
/// ```
///
/// Connections have the bounds of the front there, and that of the server beside them
/// ([`ServerLimits::connections_max`](bothways::ServerLimits::connections_max)): an HTTP connection that calls takes two
/// places of the server, its own and that of its connection inside.
#[derive(Debug)]
pub struct PortFront {
    options: FrontOptions,
    /// In front of the server at whose port the first connection came in.
    front: Arc<OnceLock<Front>>,
}

impl FrontOptions {
    /// A front for the port of one server itself.
    pub fn on_port(self) -> PortFront {
        PortFront { options: self, front: Arc::default() }
    }
}

impl HttpFront for PortFront {
    fn serve(&self, stream: HttpStream) -> BoxFuture<()> {
        // One that no server accepted has none to ask.
        let Some(server) = stream.server() else { return Box::pin(std::future::ready(())) };
        let front = self.front.get_or_init(|| Front::before(Home::Keeper(server.downgrade()), self.options.clone()));
        let front = front.clone();
        let peer = stream.peer();
        let address = peer.split_once('@').map_or(peer.as_str(), |(_, address)| address);
        let peer = format!("http@{address}");
        Box::pin(async move { front.serve_stream(stream, peer).await })
    }

    fn serves_host(&self, host: &str) -> Option<bool> {
        self.options.serves_host(host)
    }
}
