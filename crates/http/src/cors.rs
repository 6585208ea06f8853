//! Which pages of other origins may ask, and the headers that tell browsers so.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts};

use crate::body::{Body, Response};

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

    /// These origins, such as `https://shop.example`, exactly as browsers send them.
    pub fn origins<O: Into<String>>(origins: impl IntoIterator<Item = O>) -> Self {
        Self { origins: Some(origins.into_iter().map(Into::into).collect()) }
    }

    /// What a page of this origin is told; `None` if it may not ask.
    fn allows(&self, origin: &HeaderValue) -> Option<HeaderValue> {
        match &self.origins {
            None => Some(HeaderValue::from_static("*")),
            Some(origins) => {
                let is_known = origins.iter().any(|known| known.as_bytes() == origin.as_bytes());
                is_known.then(|| origin.clone())
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

    /// Tells the browser of a page whether the page may read this response.
    pub(crate) fn mark(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
        if let Some(origin) = origin.and_then(|origin| self.allows(origin)) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
        }
    }
}
