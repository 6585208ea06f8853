//! The HTTP before WebSocket, at both ends.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use sha1::{Digest, Sha1};

use super::WsOrigins;
use crate::transport::head::{Answer, Request};

/// Where Go's rpcx serves WebSocket, and CONNECT.
pub(in crate::transport) const PATH: &str = "/_rpcx_";

/// The one version of the protocol.
const VERSION: &str = "13";

/// The subprotocol that is chosen where a client offers it.
const SUBPROTOCOL: &str = "rpcx";

/// What a server answers in `Sec-WebSocket-Accept` to a client's `Sec-WebSocket-Key`: for an HTTP server that makes the
/// upgrade itself, and then has a [`WsSocket::server`](super::WsSocket::server).
///
/// ```
/// use bothways::transport::ws::accept_key;
///
/// assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
/// ```
pub fn accept_key(key: &str) -> String {
    let digest = Sha1::new().chain_update(key).chain_update("258EAFA5-E914-47DA-95CA-C5AB0DC85B11").finalize();
    BASE64.encode(digest)
}

/// Why a request gets no WebSocket: the status and a text for its sender.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::transport) struct Refusal {
    pub(in crate::transport) status: &'static str,
    pub(in crate::transport) why: &'static str,
}

const fn bad(why: &'static str) -> Refusal {
    Refusal { status: "400 Bad Request", why }
}

/// The answer that makes a WebSocket of the connection.
///
/// # Errors
/// The request has not what RFC 6455 wants, section 4.2.1, or comes from a page that may not connect.
pub(in crate::transport) fn answer_to(request: &Request<'_>, origins: &WsOrigins) -> Result<String, Refusal> {
    if request.method != "GET" || request.version == 0 {
        return Err(bad("a WebSocket begins with GET and HTTP/1.1"));
    }
    if !request.headers.has_token("connection", "upgrade") || !request.headers.has_token("upgrade", "websocket") {
        return Err(Refusal { status: "426 Upgrade Required", why: "here is WebSocket only" });
    }
    if request.has_body() {
        return Err(bad("a WebSocket begins without a body"));
    }
    if request.headers.one("sec-websocket-version") != Some(VERSION) {
        return Err(Refusal { status: "426 Upgrade Required", why: "the version of WebSocket is 13" });
    }
    let key = request.headers.one("sec-websocket-key").ok_or(bad("the `Sec-WebSocket-Key` is missing"))?;
    if BASE64.decode(key).map(|key| key.len()) != Ok(16) {
        return Err(bad("the `Sec-WebSocket-Key` has not 16 bytes"));
    }
    let host = request.headers.one("host").ok_or(bad("the `Host` is missing"))?;
    let origin = match request.headers.count("origin") {
        0 => None,
        _ => Some(request.headers.one("origin").ok_or(bad("there are several `Origin`s"))?),
    };
    if !origins.take(origin, host) {
        return Err(Refusal { status: "403 Forbidden", why: "pages of this origin may not connect (`ws_origins`)" });
    }

    let accept = accept_key(key);
    let protocol = match request.headers.has_token("sec-websocket-protocol", SUBPROTOCOL) {
        true => "Sec-WebSocket-Protocol: rpcx\r\n",
        false => "",
    };
    Ok(format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n{protocol}\r\n"
    ))
}

/// A client's request, and what it takes for an answer.
pub(in crate::transport) struct Ask {
    pub(in crate::transport) request: String,
    accept: String,
}

/// Asks for a WebSocket at this place, `host:port`, as Go does: with the server's own address for an origin.
pub(in crate::transport) fn ask(place: &str, path: &str, is_tls: bool) -> Ask {
    let key = BASE64.encode(rand::random::<[u8; 16]>());
    let scheme = if is_tls { "https" } else { "http" };
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {place}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {key}\r\nOrigin: {scheme}://{place}\r\nSec-WebSocket-Version: {VERSION}\r\n\r\n"
    );
    Ask { request, accept: accept_key(&key) }
}

impl Ask {
    /// # Errors
    /// What is wrong with the answer.
    pub(in crate::transport) fn check(&self, answer: &Answer<'_>) -> Result<(), String> {
        if answer.status != 101 {
            return Err(format!("the server answers {} {} and makes no WebSocket", answer.status, answer.said()));
        }
        if !answer.headers.has_token("connection", "upgrade") || !answer.headers.has_token("upgrade", "websocket") {
            return Err("the server switches to something that is not WebSocket".to_owned());
        }
        if answer.headers.one("sec-websocket-accept") != Some(&*self.accept) {
            return Err("the server's answer is not to this request: its `Sec-WebSocket-Accept` is wrong".to_owned());
        }
        // Neither was offered.
        if answer.headers.count("sec-websocket-extensions") + answer.headers.count("sec-websocket-protocol") != 0 {
            return Err("the server chose an extension or a protocol that it was not offered".to_owned());
        }
        Ok(())
    }
}
