//! The front itself: which request goes where.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bothways::{CallError, Client, Server, calm::Calm, shares::Shares};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Version, header, request::Parts};
use tokio::time::Instant;

use crate::{
    body::{self, Body, Bounds, Budget, Held, Response},
    cors,
    events::{self, Streams},
    fault::Fault,
    files, gateway, health,
    inside::{Entrance, Home, Visitor},
    jsonrpc,
    options::FrontOptions,
    peer, rpc,
};

/// How long the server's auth hook may take for a request's token.
const LET_IN_WITHIN: Duration = Duration::from_secs(10);

/// HTTP connections of one address, if the application says nothing else.
const CONNECTIONS_PER_ADDRESS: usize = 256;

/// A client's own time for its call, in milliseconds.
const TIMEOUT: HeaderName = HeaderName::from_static("x-bothways-timeout");

/// HTTP in front of a [`Server`]. A clone is the same front.
///
/// It serves connections itself ([`listen`](Self::listen), [`serve`](Self::serve)), or is mounted in an application's
/// own HTTP server: it is a [`tower_service::Service`] that never fails.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use bothways::Server;
/// use bothways_http::{Front, FrontOptions};
///
/// let server = Server::builder()
///     .function("Text", "Upper", |text: String| async move { Ok::<_, String>(text.to_uppercase()) })
///     .build();
/// let front = Front::new(&server, FrontOptions::new());
/// let listening = front.listen("127.0.0.1:0").await?;
/// println!("curl -d '\"abc\"' -H 'Content-Type: application/json' http://{}/rpc/Text/Upper", listening.address());
/// # Ok(()) }
/// ```
///
/// In axum it takes what no other route does. Each request is a connection of its own to the server there; a layer that
/// inserts a [`HttpPeer`] says who its client is:
///
/// ```
/// # use bothways::Server;
/// # use bothways_http::{Front, FrontOptions};
/// # let server = Server::builder().build();
/// let app = axum::Router::<()>::new()
///     .route("/hello", axum::routing::get(|| async { "hello" }))
///     .fallback_service(Front::new(&server, FrontOptions::new()));
/// ```
#[derive(Clone)]
pub struct Front {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) options: FrontOptions,
    pub(crate) entrance: Entrance,
    pub(crate) budget: Budget,
    pub(crate) streams: Arc<Streams>,
    pub(crate) counters: Counters,
    /// Failures to accept: somebody who opens connections can cause ten a second.
    pub(crate) told: Calm,
    /// Of HTTP connections.
    pub(crate) places: Arc<Shares>,
    #[cfg(feature = "metrics")]
    pub(crate) metrics: crate::metrics::Made,
    pub(crate) began: Instant,
}

/// Counters of a front.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) connections_refused: AtomicU64,
    pub(crate) requests: AtomicU64,
}

/// Counters of a [`Front`] since it was made.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct FrontStats {
    /// HTTP connections that are open, of those that the front serves itself or at the server's port.
    pub connections: usize,
    /// HTTP connections that were closed at once because too many were open.
    pub connections_refused: u64,
    /// Requests.
    pub requests: u64,
    /// Streams of events that are open.
    pub streams: usize,
    /// Streams whose clients may come back.
    pub streams_waiting: usize,
    /// Bytes of events that streams keep; see [`FrontOptions::streams_bytes_max`].
    pub stream_bytes: usize,
    /// Bytes of bodies that are held; see [`FrontOptions::held_bytes_max`].
    pub held_bytes: usize,
}

/// Who the client of a request is, in rpcx's form, such as `http@192.0.2.7:50312`: an extension of a request that an
/// application gives to a [`Front`] itself. Bounds of addresses go by it; without it all such requests are of one.
#[derive(Clone, Debug)]
pub struct HttpPeer(pub Arc<str>);

impl HttpPeer {
    /// A client at this address.
    pub fn of(address: std::net::SocketAddr) -> Self {
        Self(format!("http@{address}").into())
    }
}

impl Front {
    /// In front of this server.
    pub fn new(server: &Server, options: FrontOptions) -> Self {
        Self::before(Home::Kept(server.clone()), options)
    }

    pub(crate) fn before(home: Home, options: FrontOptions) -> Self {
        let entrance = Entrance { home, body_bytes_max: options.body_bytes_max, connect_timeout: LET_IN_WITHIN };
        let shared = Shared {
            budget: Budget::new(options.held_bytes_max, options.held_bytes_per_address_max),
            places: body::shares(options.connections_max, options.connections_per_address_max, CONNECTIONS_PER_ADDRESS),
            streams: Streams::new(options.streams.clone()),
            entrance,
            options,
            counters: Counters::default(),
            told: Calm::default(),
            #[cfg(feature = "metrics")]
            metrics: crate::metrics::Made::default(),
            began: Instant::now(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Counters.
    pub fn stats(&self) -> FrontStats {
        let (counters, streams) = (&self.shared.counters, self.shared.streams.count());
        FrontStats {
            connections: self.shared.places.taken(),
            connections_refused: counters.connections_refused.load(Ordering::Relaxed),
            requests: counters.requests.load(Ordering::Relaxed),
            streams: streams.open,
            streams_waiting: streams.waiting,
            stream_bytes: self.shared.streams.bytes(),
            held_bytes: self.shared.budget.bytes(),
        }
    }

    /// The answer to one request of this client.
    pub(crate) async fn answer<B>(&self, visitor: Arc<Visitor>, request: Request<B>) -> Response
    where
        B: http_body::Body,
    {
        self.shared.counters.requests.fetch_add(1, Ordering::Relaxed);
        let (parts, body) = request.into_parts();
        let cors = &self.shared.options.cors;
        let is_of_page = parts.headers.contains_key(header::ORIGIN);
        if let Some(response) = cors.as_ref().filter(|_| is_of_page).and_then(|cors| cors.preflight(&parts)) {
            return response;
        }

        let peer = peer::client_of(&self.shared.options.trusted_proxies, &visitor.peer, &parts.headers);
        let asked = Asked { front: self.clone(), visitor, peer };
        let refused = self.refuse_host(&parts, asked.visitor.names_host).or_else(|| refuse_expectation(&parts));
        let mut response = match refused {
            Some(fault) => fault.into_response(),
            None => route(&asked, &parts, body).await,
        };
        let headers = response.headers_mut();
        if let Some(cors) = cors {
            cors.mark(parts.headers.get(header::ORIGIN), headers);
        }
        // No browser is to guess that a reply is a page, or to keep it.
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if self.shared.entrance.home.is_stopping() {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        response
    }

    /// If a request names a host that is not this one's, several, or none where it must. RFC 9112, section 3.2.
    fn refuse_host(&self, parts: &Parts, names_host: bool) -> Option<Fault> {
        let mut named = parts.headers.get_all(header::HOST).iter();
        let is_right = match (named.next(), named.next()) {
            (None, _) => !names_host || parts.version != Version::HTTP_11,
            (Some(host), None) => is_host(host.as_bytes()),
            (Some(_), Some(_)) => false,
        };
        if !is_right {
            return Some(Fault::bad_request("a request names one host, in one header `Host`"));
        }
        let said = parts.uri.authority().map(http::uri::Authority::as_str);
        let said = said.or_else(|| parts.headers.get(header::HOST)?.to_str().ok()).unwrap_or_default();
        let is_known = self.shared.options.serves_host(said)?;
        (!is_known).then(|| Fault::new(StatusCode::MISDIRECTED_REQUEST, "misdirected", "this host is not served here"))
    }
}

impl FrontOptions {
    /// Whether this host, with or without a port, is one of its names. `None`: it takes any.
    pub(crate) fn serves_host(&self, said: &str) -> Option<bool> {
        let hosts = self.hosts.as_ref()?;
        Some(hosts.contains(&host_of(said).to_ascii_lowercase()))
    }
}

/// If a request expects what nobody here does. As Go answers; RFC 9110, section 10.1.1: a list, in one header or several.
fn refuse_expectation(parts: &Parts) -> Option<Fault> {
    let lines = parts.headers.get_all(header::EXPECT).iter();
    let mut expected = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    let is_met = expected.all(|one| one.is_empty() || one.eq_ignore_ascii_case(b"100-continue"));
    let why = "the only expectation that is met is 100-continue";
    (!is_met).then(|| Fault::new(StatusCode::EXPECTATION_FAILED, "bad_request", why))
}

/// True of what a header `Host` may have. Source: Go `golang.org/x/net/http/httpguts`, `ValidHostHeader`.
fn is_host(host: &[u8]) -> bool {
    host.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!$%&'()*+,-.:;=[]_~".contains(byte))
}

/// A host without its port: `[::1]:80` is `[::1]`.
fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// Finds who answers. Headers of rpcx decide first, whatever the path: Go looks at nothing else.
async fn route<B: http_body::Body>(asked: &Asked, parts: &Parts, body: B) -> Response {
    let options = asked.options();
    let nobody = || Fault::not_found("nothing is served here").into_response();
    // What costs next to nothing and is no secret is for everybody; all else is not for pages of strangers.
    let is_for_gateway = gateway::is_meant(&parts.headers);
    if !is_for_gateway
        && !jsonrpc::is_meant(&parts.headers)
        && let Some(response) = answer_anybody(asked, parts)
    {
        return response;
    }
    if let Some(fault) = cors::refuse_page(options.cors.as_ref(), parts) {
        return fault.into_response();
    }

    if jsonrpc::is_meant(&parts.headers) {
        return if options.json_rpc { jsonrpc::answer(asked, parts, body).await } else { nobody() };
    }
    if is_for_gateway {
        return if options.gateway { gateway::answer(asked, parts, body).await } else { nobody() };
    }
    match parts.uri.path() {
        "/debug/vars" if options.debug => only_get(parts, || health::vars(&asked.front)),
        #[cfg(feature = "metrics")]
        "/metrics" if options.metrics.is_some() => match parts.method {
            Method::GET => crate::metrics::answer(&asked.front).await,
            _ => Fault::method_not_allowed("GET").into_response(),
        },
        events::PATH if options.events => events::answer(asked, parts).await,
        events::ACK_PATH if options.events => events::ack(asked, parts),
        events::TICKET_PATH if options.events => events::give_ticket(asked, parts).await,
        path if path.starts_with(rpc::PREFIX) && options.rpc => rpc::answer(asked, parts, body).await,
        // Closed here, and no service of the gateway either.
        "/debug/vars" | "/metrics" => nobody(),
        _ if options.gateway => gateway::answer(asked, parts, body).await,
        _ => nobody(),
    }
}

/// The answer to a request for a file, or whether the process is well.
fn answer_anybody(asked: &Asked, parts: &Parts) -> Option<Response> {
    if let Some(file) = files::find(&asked.options().files, parts) {
        return Some(files::answer(file, parts));
    }
    match parts.uri.path() {
        "/healthz" => Some(only_get(parts, health::is_alive)),
        "/readyz" => Some(only_get(parts, || health::is_ready(&asked.front.shared.entrance.home))),
        _ => None,
    }
}

fn only_get(parts: &Parts, answer: impl FnOnce() -> Response) -> Response {
    match parts.method {
        Method::GET | Method::HEAD => answer(),
        _ => Fault::method_not_allowed("GET, HEAD").into_response(),
    }
}

/// A request, as those who answer it see it.
pub(crate) struct Asked {
    pub(crate) front: Front,
    pub(crate) visitor: Arc<Visitor>,
    /// Who asks, which is not the other end of the connection where a proxy is trusted.
    pub(crate) peer: Arc<str>,
}

impl Asked {
    pub(crate) fn options(&self) -> &FrontOptions {
        &self.front.shared.options
    }

    /// The client inside whose requests carry this token, if the server lets it in.
    pub(crate) async fn client(&self, token: &str) -> Result<Client, Fault> {
        self.visitor.client(&self.front.shared.entrance, &self.peer, token).await
    }

    /// The next request gets another connection inside.
    pub(crate) async fn forget(&self) {
        self.visitor.forget().await;
    }

    /// The outcome of a call. After a refused token the server ends the connection, so that it is not used again.
    pub(crate) async fn checked<T>(&self, outcome: Result<T, CallError>) -> Result<T, Fault> {
        match outcome.map_err(Fault::from) {
            Err(fault) => {
                if fault.status == StatusCode::UNAUTHORIZED {
                    self.forget().await;
                }
                Err(fault)
            }
            done => done,
        }
    }

    pub(crate) async fn read<B: http_body::Body>(&self, body: B) -> Result<(Bytes, Held), Fault> {
        self.read_up_to(body, self.options().body_bytes_max).await
    }

    pub(crate) async fn read_up_to<B>(&self, body: B, bytes_max: usize) -> Result<(Bytes, Held), Fault>
    where
        B: http_body::Body,
    {
        let bytes_max = bytes_max.min(self.options().body_bytes_max);
        let FrontOptions { body_timeout: within, rate_min, .. } = *self.options();
        body::read(body, Bounds { bytes_max, within, rate_min }, self.budget(), &self.peer).await
    }

    pub(crate) fn budget(&self) -> &Budget {
        &self.front.shared.budget
    }

    /// A reply that counts for the budget until its client has it.
    pub(crate) fn held(&self, reply: Bytes) -> Result<Body, Fault> {
        let held = self.budget().hold(&self.peer, reply.len())?;
        Ok(Body::held(reply, held))
    }

    /// The time of a call: the front's, or less if the client says so.
    pub(crate) fn time(&self, headers: &HeaderMap) -> Result<Duration, Fault> {
        let most = self.options().call_timeout;
        match gateway::text(headers, &TIMEOUT) {
            "" => Ok(most),
            text => match text.parse() {
                Ok(millis) => Ok(most.min(Duration::from_millis(millis))),
                Err(_) => Err(Fault::bad_request("X-Bothways-Timeout is a whole number of milliseconds")),
            },
        }
    }
}

impl<B> tower_service::Service<Request<B>> for Front
where
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Send,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let front = self.clone();
        let peer =
            request.extensions().get::<HttpPeer>().map_or_else(|| "http@unknown".into(), |peer| Arc::clone(&peer.0));
        Box::pin(async move { Ok(front.answer(Arc::new(Visitor::new(peer)), request).await) })
    }
}

impl std::fmt::Debug for Front {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Front").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_nothing_that_ends_it() {
        for host in ["", "localhost:80", "[::1]:80", "a_b.example", "xn--bcher-kva.example"] {
            assert!(is_host(host.as_bytes()), "{host}");
        }
        for host in ["a b", "a/b", "user@host", "a?b", "a#b", "\u{fc}", "a\tb", "a\\b"] {
            assert!(!is_host(host.as_bytes()), "{host}");
        }
    }

    #[test]
    fn a_host_is_known_without_its_port() {
        for (said, host) in [
            ("localhost:8080", "localhost"),
            ("localhost", "localhost"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
            ("127.0.0.1:1", "127.0.0.1"),
            ("a:b", "a:b"),
            ("", ""),
        ] {
            assert_eq!(host_of(said), host, "{said}");
        }
    }
}
