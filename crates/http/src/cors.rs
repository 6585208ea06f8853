//! Which pages of other origins may ask, and the headers that tell browsers so.
//!
//! A browser lets any page send a simple request anywhere and only keeps the response from it. The page of a stranger,
//! open in the browser of somebody who may reach this front, could so make calls without a token, and take that
//! visitor's share of streams and tickets. So requests of pages that may not read the response are refused, before
//! anything is done for them.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts};

use crate::{
    body::{Body, Response},
    fault::Fault,
};

/// Whose page asks, beside the site that is asked, as the browser says: no page can say this itself. It comes with every
/// request to an `https` address or to this machine.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// What pages of other origins can read of a response, besides its body.
const EXPOSED: &str = "X-Rpcx-Version, X-Rpcx-Messageid, X-Rpcx-Messagestatustype, X-Rpcx-Errormessage, X-Rpcx-Meta, \
                       X-Rpcx-Serializetype, X-Rpcx-Servicepath, X-Rpcx-Servicemethod, X-Bothways-Error, Retry-After";

/// How long a browser may remember what it was allowed, in seconds.
const MAX_AGE: &str = "600";

/// The origins whose pages may use a front.
///
/// No cookie is ever read, so credentials are not allowed and not needed: a token goes in the header `Authorization`.
#[derive(Clone, Debug)]
pub struct Cors {
    /// `None`: any.
    origins: Option<Arc<[String]>>,
}

impl Cors {
    /// Every origin.
    pub fn any() -> Self {
        Self { origins: None }
    }

    /// These origins, such as `https://shop.example`, or with a port that is not the usual one `http://localhost:3000`;
    /// `https://*.shop.example` for all below that name, `null` for pages that have none, such as files, and `*` for
    /// every origin. What is none of these lets nobody in.
    pub fn origins<O: Into<String>>(origins: impl IntoIterator<Item = O>) -> Self {
        let origins: Arc<[String]> = origins.into_iter().map(|origin| origin.into().to_ascii_lowercase()).collect();
        let is_any = origins.iter().any(|origin| origin == "*");
        Self { origins: (!is_any).then_some(origins) }
    }

    /// What a page of this origin is told; `None` if it may not ask.
    fn allows(&self, origin: &HeaderValue) -> Option<HeaderValue> {
        match &self.origins {
            None => Some(HeaderValue::from_static("*")),
            Some(origins) => {
                let named = origin.to_str().ok()?;
                origins.iter().any(|known| is_like(known, named)).then(|| origin.clone())
            }
        }
    }

    /// The answer to a browser that asks before it sends the request itself; `None` if this is no such question.
    pub(crate) fn preflight(&self, parts: &Parts) -> Option<Response> {
        let asked = parts.headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?;
        if parts.method != Method::OPTIONS {
            return None;
        }
        let mut response = http::Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        headers.insert(
            header::VARY,
            HeaderValue::from_static("Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
        );

        let is_served = ["GET", "POST", "PUT"].iter().any(|method| asked == method);
        let origin = parts.headers.get(header::ORIGIN).and_then(|origin| self.allows(origin));
        if let (Some(origin), true) = (origin, is_served) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, asked.clone());
            if let Some(names) = parts.headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
                headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
            }
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE));
        }
        Some(response)
    }

    /// True if pages of the origin that a request names may ask.
    fn lets_in(&self, headers: &HeaderMap) -> bool {
        match (&self.origins, headers.get(header::ORIGIN)) {
            (None, _) => true,
            (Some(_), origin) => origin.is_some_and(|origin| self.allows(origin).is_some()),
        }
    }

    /// Tells the browser of a page whether the page may read this response.
    pub(crate) fn mark(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
        if let Some(origin) = origin.and_then(|origin| self.allows(origin)) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
        }
    }
}

/// If the page of another origin asks, to which the front is not open. Programs that are no browsers send neither header.
pub(crate) fn refuse_page(cors: Option<&Cors>, parts: &Parts) -> Option<Fault> {
    let is_open = || cors.is_some_and(|cors| cors.lets_in(&parts.headers));
    let why = "pages of other origins may not ask here: see `FrontOptions::cors`";
    (is_of_other_page(parts) && !is_open()).then(|| Fault::new(StatusCode::FORBIDDEN, "forbidden", why))
}

/// True if a browser says that the page of another origin asks. What neither header says anything of passes.
fn is_of_other_page(parts: &Parts) -> bool {
    let mut sites = parts.headers.get_all(FETCH_SITE).iter().peekable();
    if sites.peek().is_some() {
        // `none` is the user, who has typed the address.
        return !sites.all(|site| site == "same-origin" || site == "none");
    }
    let said = parts.uri.authority().map(http::uri::Authority::as_str);
    let host = said.or_else(|| parts.headers.get(header::HOST)?.to_str().ok()).unwrap_or_default();
    let is_own = |origin: &HeaderValue| origin.to_str().is_ok_and(|origin| is_of_host(origin, host));
    !parts.headers.get_all(header::ORIGIN).iter().all(is_own)
}

/// Behind a proxy that speaks TLS the front does not know which scheme, and so which usual port, a host without a port
/// has.
fn is_of_host(origin: &str, host: &str) -> bool {
    let place = match origin.split_once("://") {
        Some(("https", place)) => place.strip_suffix(":443").unwrap_or(place),
        Some(("http", place)) => place.strip_suffix(":80").unwrap_or(place),
        _ => return false,
    };
    let host = host.strip_suffix(":443").or(host.strip_suffix(":80")).unwrap_or(host);
    !host.is_empty() && place.eq_ignore_ascii_case(host)
}

/// Whether an origin, as a browser sends it, is this one or below this one's name: the forms of `WsOrigins`.
fn is_like(known: &str, origin: &str) -> bool {
    let known = without_usual_port(known);
    match known.split_once("://*.") {
        None => known == origin,
        Some((scheme, domain)) => origin
            .split_once("://")
            .filter(|(of_origin, _)| *of_origin == scheme)
            .and_then(|(_, host)| host.strip_suffix(domain))
            .is_some_and(|name| 1 < name.len() && name.ends_with('.')),
    }
}

/// Browsers leave it out.
fn without_usual_port(origin: &str) -> &str {
    let usual = if origin.starts_with("https:") { ":443" } else { ":80" };
    origin.strip_suffix(usual).unwrap_or(origin)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOP: &str = "https://shop.example";

    fn is_refused(cors: Option<&Cors>, headers: &[(&str, &str)]) -> bool {
        let mut request = http::Request::builder().uri("/events");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).expect("a request").into_parts();
        refuse_page(cors, &parts).is_some()
    }

    /// What browsers say of pages of each kind, and who passes where nobody else is let in, where one origin is, and
    /// where all are.
    #[test]
    fn only_pages_that_may_ask_are_answered() {
        let (site, origin, host) = ("sec-fetch-site", "origin", ("host", "api.example:8080"));
        let shop = Cors::origins([SHOP]);
        for (headers, closed, open_to_shop, open_to_all) in [
            // No browser, or one that does not say.
            (&[host][..], false, false, false),
            (&[], false, false, false),
            // The user, and the front's own pages, also where a proxy has changed the host.
            (&[host, (site, "none")], false, false, false),
            (&[host, (site, "same-origin")], false, false, false),
            (&[host, (site, "same-origin"), (origin, "https://api.example")], false, false, false),
            (&[host, (origin, "http://api.example:8080")], false, false, false),
            (&[("host", "api.example"), (origin, "https://API.example:443")], false, false, false),
            (&[("host", "api.example:443"), (origin, "https://api.example")], false, false, false),
            // Others: that do not let their origin be known, that do, and that are neighbours.
            (&[host, (site, "cross-site")], true, true, false),
            (&[host, (site, "same-site")], true, true, false),
            (&[host, (site, "same-site"), (origin, "https://www.example")], true, true, false),
            (&[host, (site, "cross-site"), (origin, SHOP)], true, false, false),
            (&[host, (origin, SHOP)], true, false, false),
            (&[host, (origin, "null")], true, true, false),
            (&[host, (origin, "")], true, true, false),
            (&[host, (origin, "https://api.example.evil.net")], true, true, false),
            (&[host, (origin, "http://api.example:8081")], true, true, false),
            (&[host, (origin, "api.example:8080")], true, true, false),
            (&[(origin, "http://")], true, true, false),
            // What no browser sends.
            (&[host, (site, "same-origin"), (site, "cross-site")], true, true, false),
            (&[host, (site, "nonsense")], true, true, false),
            (&[host, (origin, "http://api.example:8080"), (origin, "http://evil.net")], true, true, false),
        ] {
            let refused = [None, Some(&shop), Some(&Cors::any())].map(|cors| is_refused(cors, headers));
            assert_eq!(refused, [closed, open_to_shop, open_to_all], "{headers:?}");
        }
    }

    /// The same forms name origins here and for WebSocket.
    #[test]
    fn origins_are_those_that_are_named() {
        let known = ["https://shop.example:443", "https://*.Example.net", "http://localhost:3000", "same", "none"];
        let takes = |known: &[&str], origin: &str| {
            let origin = HeaderValue::from_str(origin).expect("a header");
            Cors::origins(known.iter().copied()).allows(&origin)
        };
        for (origin, taken) in [
            (SHOP, true),
            ("http://shop.example", false),
            ("https://a.b.example.net", true),
            ("https://example.net", false),
            ("https://.example.net", false),
            ("https://evilexample.net", false),
            ("http://a.example.net", false),
            ("https://a.example.net.evil.org", false),
            ("http://localhost:3000", true),
            ("http://localhost", false),
            ("null", false),
            ("", false),
        ] {
            let told = takes(&known, origin);
            assert_eq!(told.is_some(), taken, "{origin}");
            assert!(told.is_none_or(|told| told == origin), "a page is told its own origin");
        }
        assert!(takes(&["null"], "null").is_some());
        assert_eq!(takes(&[SHOP, "*"], "http://any.org").expect("any"), "*");
    }
}
