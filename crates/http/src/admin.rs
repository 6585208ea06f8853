//! The admin page: static files at the address of the admin service, whose WebSocket the page talks to.
//!
//! ```text
//!   GET /_bothways/admin/      the page, and what it is made of: the same for everybody, and no secret
//!   GET /_rpcx_ (WebSocket)    the admin service, at the same port: the page sends its token there, and nowhere else
//! ```

use std::{convert::Infallible, fmt::Write as _, net::IpAddr, sync::Arc, time::Duration};

use bothways::{
    server::AdminOptions,
    transport::{BoxFuture, HttpFront, HttpStream},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use sha2::{Digest, Sha256};

use crate::body::{Body, Response};

/// Where the page is.
pub const ADMIN_PAGE_PATH: &str = "/_bothways/admin/";

/// How long the head of a request may take. What a connection may take in all is the admin service's business.
const HEAD_WITHIN: Duration = Duration::from_secs(5);

/// Headers of one request, and bytes of its head.
const HEADERS_MAX: usize = 64;
const HEAD_BYTES_MAX: usize = 16 << 10;

/// What the page is made of, each with its type.
const FILES: &[(&str, &str, &[u8])] = &[
    ("", "text/html; charset=utf-8", include_bytes!("../admin/index.html")),
    ("admin.css", "text/css; charset=utf-8", include_bytes!("../admin/admin.css")),
    ("icon.svg", "image/svg+xml", include_bytes!("../admin/icon.svg")),
    ("api.js", SCRIPT, include_bytes!("../admin/api.js")),
    ("app.js", SCRIPT, include_bytes!("../admin/app.js")),
    ("audit.js", SCRIPT, include_bytes!("../admin/audit.js")),
    ("chart.js", SCRIPT, include_bytes!("../admin/chart.js")),
    ("client.js", SCRIPT, include_bytes!("../admin/client.js")),
    ("dom.js", SCRIPT, include_bytes!("../admin/dom.js")),
    ("list.js", SCRIPT, include_bytes!("../admin/list.js")),
    ("mail.js", SCRIPT, include_bytes!("../admin/mail.js")),
    ("nodes.js", SCRIPT, include_bytes!("../admin/nodes.js")),
    ("overview.js", SCRIPT, include_bytes!("../admin/overview.js")),
    ("push.js", SCRIPT, include_bytes!("../admin/push.js")),
    ("sessions.js", SCRIPT, include_bytes!("../admin/sessions.js")),
    ("topics.js", SCRIPT, include_bytes!("../admin/topics.js")),
];

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// The page for operators, at the address of the admin service.
///
/// It is served to those who name the server by an IP address or as `localhost`, so that no site of the web can let its
/// own name point here and be taken for it. By other names it is reached if they are [named](Self::host).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use bothways::{Server, server::AdminOptions};
/// use bothways_http::{ADMIN_PAGE_PATH, AdminPage};
///
/// let options = AdminPage::new().add_to(AdminOptions::token("a long secret")?);
/// let server = Server::builder().admin(options).build();
/// let listening = server.listen_admin("tcp@127.0.0.1:0").await?;
/// let address = listening.address().trim_start_matches("tcp@");
/// println!("http://{address}{ADMIN_PAGE_PATH}");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct AdminPage {
    hosts: Vec<String>,
    tags: Arc<[HeaderValue]>,
}

impl Default for AdminPage {
    fn default() -> Self {
        Self::new()
    }
}

impl AdminPage {
    /// The page.
    pub fn new() -> Self {
        Self { hosts: Vec::new(), tags: FILES.iter().map(|(_, _, bytes)| tag(bytes)).collect() }
    }

    /// Operators may reach it by this name too, such as `admin.example.org`: one that nobody else can give away. It is
    /// compared without the port.
    pub fn host(mut self, name: impl Into<String>) -> Self {
        self.hosts.push(name.into().to_ascii_lowercase());
        self
    }

    /// Serves it where these options let the admin service answer by [`listen_admin`](bothways::Server::listen_admin), on
    /// `tcp` and `tls` addresses.
    pub fn add_to(self, options: AdminOptions) -> AdminOptions {
        let options = self.hosts.iter().fold(options, AdminOptions::page_host);
        options.page(self)
    }

    /// How a request is answered. `is_tls`: below HTTP is TLS.
    fn answer<B>(&self, request: &Request<B>, is_tls: bool) -> Response {
        let Some(host) = self.host_of(request.headers()) else {
            return refuse(StatusCode::MISDIRECTED_REQUEST, "this server is not known by that name");
        };
        if !is_own_origin(request.headers(), host, is_tls) {
            return refuse(StatusCode::FORBIDDEN, "pages of other origins may not ask here");
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut refusal = refuse(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD");
            refusal.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refusal;
        }

        let path = request.uri().path();
        if path == "/" || path == ADMIN_PAGE_PATH.trim_end_matches('/') {
            let mut moved = refuse(StatusCode::FOUND, ADMIN_PAGE_PATH);
            moved.headers_mut().insert(header::LOCATION, HeaderValue::from_static(ADMIN_PAGE_PATH));
            return moved;
        }
        let place = path.strip_prefix(ADMIN_PAGE_PATH).and_then(|name| FILES.iter().position(|file| file.0 == name));
        match place {
            Some(place) => self.file(place, request, host, is_tls),
            None => refuse(StatusCode::NOT_FOUND, "404 page not found"),
        }
    }

    fn file<B>(&self, place: usize, request: &Request<B>, host: &str, is_tls: bool) -> Response {
        let ((_, kind, bytes), tag) = (FILES[place], &self.tags[place]);
        let known = request.headers().get_all(header::IF_NONE_MATCH).iter();
        let is_known = known.filter_map(|value| value.to_str().ok()).any(|tags| has_tag(tags, tag));

        let body = match is_known || request.method() == Method::HEAD {
            true => Body::from(Bytes::new()),
            false => Body::from(Bytes::from_static(bytes)),
        };
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        protect(headers);
        headers.insert(header::ETAG, tag.clone());
        headers.insert(header::CONTENT_SECURITY_POLICY, policy(host, is_tls));
        match is_known {
            true => *response.status_mut() = StatusCode::NOT_MODIFIED,
            false => {
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
            }
        }
        response
    }

    /// The host that the request names, if it is one of ours.
    fn host_of<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        let mut named = headers.get_all(header::HOST).iter();
        let host = named.next().filter(|_| named.next().is_none())?.to_str().ok()?;
        let name = without_port(host)?;
        let is_ours = name.eq_ignore_ascii_case("localhost")
            || name.parse::<IpAddr>().is_ok()
            || self.hosts.iter().any(|host| name.eq_ignore_ascii_case(host));
        is_ours.then_some(host)
    }
}

impl HttpFront for AdminPage {
    fn serve(&self, stream: HttpStream) -> BoxFuture<()> {
        let (page, peer) = (self.clone(), stream.peer());
        let is_tls = peer.starts_with("tls@");
        let stopping = stream.stopping();
        let service = service_fn(move |request: Request<Incoming>| {
            std::future::ready(Ok::<_, Infallible>(page.answer(&request, is_tls)))
        });

        Box::pin(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_WITHIN)
                .max_headers(HEADERS_MAX)
                .max_header_size(HEAD_BYTES_MAX)
                .max_buf_size(HEAD_BYTES_MAX)
                .serve_connection(TokioIo::new(stream), service);
            let mut connection = std::pin::pin!(connection);
            let outcome = tokio::select! {
                outcome = connection.as_mut() => outcome,
                () = stopping => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = outcome {
                tracing::debug!(peer, %error, "an HTTP connection to the admin page ended");
            }
        })
    }
}

/// The name or address before the port. `None`: it is none.
fn without_port(host: &str) -> Option<&str> {
    if let Some(rest) = host.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        return (port.is_empty() || is_port(port.strip_prefix(':')?)).then_some(address);
    }
    match host.split_once(':') {
        None => Some(host),
        Some((name, port)) => is_port(port).then_some(name),
    }
}

fn is_port(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// True if no page of another origin asks: a browser says so if one does.
fn is_own_origin(headers: &HeaderMap, host: &str, is_tls: bool) -> bool {
    let scheme = if is_tls { "https" } else { "http" };
    let is_own = |origin: &HeaderValue| origin.to_str().is_ok_and(|origin| origin == format!("{scheme}://{host}"));
    headers.get_all(header::ORIGIN).iter().all(is_own)
}

/// What the page may do: run its own scripts, and talk to this server. Nothing inline, nothing from elsewhere, no markup
/// made of text.
fn policy(host: &str, is_tls: bool) -> HeaderValue {
    let scheme = if is_tls { "wss" } else { "ws" };
    let policy = format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self' \
         {scheme}://{host}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'; trusted-types 'none'"
    );
    HeaderValue::from_str(&policy).expect("a host that was checked is a text")
}

/// What every answer says.
fn protect(headers: &mut HeaderMap) {
    let all = [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    headers.extend(all.map(|(name, value)| (name, HeaderValue::from_static(value))));
}

fn refuse(status: StatusCode, why: &'static str) -> Response {
    let mut response = Response::new(Body::from(Bytes::from_static(why.as_bytes())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    protect(headers);
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// The tag of a file: its SHA-256.
fn tag(bytes: &[u8]) -> HeaderValue {
    let mut tag = String::from("\"");
    for byte in Sha256::digest(bytes) {
        let _ = write!(tag, "{byte:02x}");
    }
    tag.push('"');
    HeaderValue::from_str(&tag).expect("hexadecimal digits")
}

/// True if a list of tags, as a browser sends them back, has this one.
fn has_tag(tags: &str, tag: &HeaderValue) -> bool {
    tags.split(',').map(|known| known.trim().trim_start_matches("W/")).any(|known| known == "*" || known == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(headers: &[(&str, &str)], method: &str, path: &str) -> Response {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        AdminPage::new().host("Admin.example.org").answer(&request.body(()).expect("a request"), false)
    }

    fn status(headers: &[(&str, &str)], path: &str) -> u16 {
        ask(headers, "GET", path).status().as_u16()
    }

    /// By an address, as `localhost`, and by the names that are ours; by any other name it is somebody else's page that
    /// asks, whose owner has let its name point here.
    #[test]
    fn a_strangers_name_is_not_ours() {
        for host in ["127.0.0.1:8973", "localhost", "LOCALHOST:1", "[::1]:8973", "10.0.0.7", "admin.example.org:443"] {
            assert_eq!(status(&[("host", host)], ADMIN_PAGE_PATH), 200, "{host}");
        }
        for host in [
            "evil.net",
            "127.0.0.1.evil.net",
            "localhost.evil.net",
            "example.org",
            "",
            ":8973",
            "[::1",
            "[::1]x",
            "127.0.0.1:",
            "127.0.0.1:80;x",
            "localhost:8 ; script-src *",
            "a.admin.example.org",
        ] {
            assert_eq!(status(&[("host", host)], ADMIN_PAGE_PATH), 421, "{host}");
        }
        assert_eq!(status(&[], ADMIN_PAGE_PATH), 421);
        assert_eq!(status(&[("host", "localhost"), ("host", "evil.net")], ADMIN_PAGE_PATH), 421);
    }

    #[test]
    fn pages_of_other_origins_get_nothing() {
        let from = |origin| status(&[("host", "127.0.0.1:8973"), ("origin", origin)], ADMIN_PAGE_PATH);
        assert_eq!(from("http://127.0.0.1:8973"), 200);
        for origin in ["http://evil.net", "null", "https://127.0.0.1:8973", "http://127.0.0.1:8974", ""] {
            assert_eq!(from(origin), 403, "{origin}");
        }
    }

    #[test]
    fn each_file_has_its_type_its_tag_and_the_policy() {
        let host = ("host", "127.0.0.1:8973");
        for (name, kind, bytes) in FILES {
            let path = format!("{ADMIN_PAGE_PATH}{name}");
            let response = ask(&[host], "GET", &path);
            let header =
                |name: &str| response.headers().get(name).expect("it has one").to_str().expect("a text").to_owned();
            assert_eq!((response.status(), &*header("content-type")), (StatusCode::OK, *kind), "{name}");
            assert_eq!(header("content-length"), bytes.len().to_string());
            assert_eq!((&*header("x-content-type-options"), &*header("referrer-policy")), ("nosniff", "no-referrer"));
            let policy = header("content-security-policy");
            assert_eq!(
                policy,
                "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self' \
                 ws://127.0.0.1:8973; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                 require-trusted-types-for 'script'; trusted-types 'none'"
            );
            let again = [host, ("if-none-match", &*header("etag"))];
            assert_eq!(status(&again, &path), 304);
            assert_eq!(status(&[host, ("if-none-match", "W/\"x\", *")], &path), 304);
            assert_eq!(status(&[host, ("if-none-match", "\"x\"")], &path), 200);
            assert_eq!(ask(&[host], "HEAD", &path).status(), 200);
        }
    }

    #[test]
    fn there_is_nothing_else() {
        let host = ("host", "localhost");
        for path in
            ["/_bothways/admin/../admin/app.js", "/_bothways/admin/%61pp.js", "/_bothways/", "/x", "/_bothways/admin/x"]
        {
            assert_eq!(status(&[host], path), 404, "{path}");
        }
        for path in ["/", "/_bothways/admin"] {
            let moved = ask(&[host], "GET", path);
            assert_eq!(
                (moved.status().as_u16(), &moved.headers()["location"]),
                (302, &HeaderValue::from_static(ADMIN_PAGE_PATH))
            );
        }
        assert_eq!(ask(&[host], "POST", ADMIN_PAGE_PATH).status(), 405);
    }

    /// Whatever a script imports, and the page loads, is there; and nothing in them is run that is not a file of its own.
    #[test]
    fn what_the_page_loads_is_there() {
        let is_there = |name: &str| FILES.iter().any(|file| file.0 == name);
        for (name, kind, bytes) in FILES.iter().filter(|file| file.0 != "client.js") {
            let text = std::str::from_utf8(bytes).expect("a text");
            for part in text.split("from \"./").skip(1) {
                let import = part.split('"').next().unwrap_or_default();
                assert!(is_there(import), "{name} imports {import}");
            }
            for attribute in ["href=\"", "src=\""] {
                let loaded = text.split(attribute).skip(1).filter(|_| kind.starts_with("text/html"));
                loaded.for_each(|part| assert!(is_there(part.split('"').next().unwrap_or_default()), "{name}: {part}"));
            }
            for markup in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"] {
                assert!(!text.contains(markup), "{name} has {markup}");
            }
        }
        assert!(
            std::str::from_utf8(FILES[0].2).is_ok_and(|page| !page.contains(" onload=") && !page.contains("style="))
        );
    }
}
