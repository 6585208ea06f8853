//! Files that are served as they are: pages that are clients.

use http::{HeaderValue, Method, header, request::Parts};

use crate::{
    body::{Body, Response},
    fault::Fault,
    options::File,
};

/// What a page may load and where it may connect: here, and nowhere else. No other page may show it in a frame.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; \
     connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// The file at the path of a request.
pub(crate) fn find<'a>(files: &'a [File], parts: &Parts) -> Option<&'a File> {
    files.iter().find(|file| file.path == parts.uri.path())
}

/// The answer with a file.
pub(crate) fn answer(file: &File, parts: &Parts) -> Response {
    if parts.method != Method::GET && parts.method != Method::HEAD {
        return Fault::method_not_allowed("GET, HEAD").into_response();
    }
    let mut response = http::Response::new(Body::from(file.content.clone()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, file.content_type.clone());
    headers.insert(header::CONTENT_SECURITY_POLICY, POLICY);
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}
