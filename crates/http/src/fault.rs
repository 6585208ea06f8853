//! Why a request is not answered with a reply: its status, its kind for programs, its text for people.

use std::time::Duration;

use bothways::{CallError, CloseReason, ConnectError, ErrorCode, PushError, ServeError};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde_json::json;

use crate::body::{Body, Response};

/// The kind of a fault, for programs.
pub(crate) const KIND: HeaderName = HeaderName::from_static("x-bothways-error");

/// Most bytes of a text in a header.
const HEADER_TEXT_BYTES_MAX: usize = 1024;

/// After how long a client that finds no room is to come again.
const NO_ROOM_RETRY: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) status: StatusCode,
    /// A name that stays: programs compare it.
    pub(crate) kind: &'static str,
    pub(crate) text: String,
    pub(crate) retry_after: Option<Duration>,
    /// The application's own code.
    pub(crate) app_code: Option<String>,
    /// Which methods are served, of a 405.
    pub(crate) allow: Option<&'static str>,
}

impl Fault {
    pub(crate) fn new(status: StatusCode, kind: &'static str, text: impl Into<String>) -> Self {
        Self { status, kind, text: text.into(), retry_after: None, app_code: None, allow: None }
    }

    pub(crate) fn bad_request(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", text)
    }

    pub(crate) fn not_found(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", text)
    }

    pub(crate) fn overloaded(text: impl Into<String>) -> Self {
        let fault = Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", text);
        Self { retry_after: Some(NO_ROOM_RETRY), ..fault }
    }

    pub(crate) fn method_not_allowed(allow: &'static str) -> Self {
        let fault = Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this method is not served here");
        Self { allow: Some(allow), ..fault }
    }

    /// As the answer to a client that understands statuses: a JSON object, the same facts in headers.
    pub(crate) fn into_response(self) -> Response {
        let body = json!({ "error": self.text, "kind": self.kind, "code": self.app_code }).to_string();
        let mut response = http::Response::new(Body::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.mark(headers);
        response
    }

    /// Adds the kind, and when to come again.
    pub(crate) fn mark(&self, headers: &mut HeaderMap) {
        headers.insert(KIND, HeaderValue::from_static(self.kind));
        if let Some(after) = self.retry_after {
            // Whole seconds, rounded up: too early is too early.
            let seconds = after.as_millis().div_ceil(1000);
            headers.insert(header::RETRY_AFTER, header_text(&seconds.to_string()));
        }
        if let Some(allow) = self.allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
    }
}

/// A text as the value of a header. Control characters become blanks, as Go does with line breaks: nothing of it can
/// end the header. It is cut at 1 KiB.
pub(crate) fn header_text(text: &str) -> HeaderValue {
    let text = &text[..text.floor_char_boundary(HEADER_TEXT_BYTES_MAX)];
    let shown: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    HeaderValue::from_bytes(shown.trim().as_bytes()).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// As [`header_text`], of bytes that may be no text.
pub(crate) fn header_bytes(bytes: &[u8]) -> HeaderValue {
    HeaderValue::from_maybe_shared(Bytes::copy_from_slice(bytes)).unwrap_or_else(|_| HeaderValue::from_static(""))
}

impl From<CallError> for Fault {
    fn from(error: CallError) -> Self {
        let text = error.to_string();
        match error {
            CallError::Remote { text, code, beside } => {
                let (status, kind) = of_code(code);
                Self { app_code: beside.app_code().map(str::to_owned), ..Self::new(status, kind, text) }
            }
            CallError::TimedOut(_) => Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout", text),
            CallError::NotConnected(error) => error.into(),
            CallError::Closed { .. } => Self::new(StatusCode::SERVICE_UNAVAILABLE, "connection_lost", text),
            CallError::TooManyCalls { .. } | CallError::QueueFull { .. } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", text)
            }
            CallError::TooLarge(_) => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", text),
            CallError::ReservedMetadata(_) => Self::bad_request(text),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", text),
        }
    }
}

fn of_code(code: Option<ErrorCode>) -> (StatusCode, &'static str) {
    let status = match code {
        None => return (StatusCode::INTERNAL_SERVER_ERROR, "handler"),
        Some(ErrorCode::NotFound) => StatusCode::NOT_FOUND,
        Some(ErrorCode::Unauthenticated) => StatusCode::UNAUTHORIZED,
        Some(ErrorCode::BadArguments) => StatusCode::BAD_REQUEST,
        Some(ErrorCode::Overloaded) => StatusCode::TOO_MANY_REQUESTS,
        Some(ErrorCode::ShuttingDown) => StatusCode::SERVICE_UNAVAILABLE,
        Some(ErrorCode::Timeout) => StatusCode::GATEWAY_TIMEOUT,
        Some(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, code.map_or("internal", ErrorCode::name))
}

impl From<PushError> for Fault {
    fn from(error: PushError) -> Self {
        let text = error.to_string();
        match error {
            PushError::NotConnected(error) => error.into(),
            PushError::Full { .. } => Self::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", text),
            PushError::TooLarge(_) => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", text),
            PushError::ReservedMetadata(_) => Self::bad_request(text),
            PushError::Closed(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, "connection_lost", text),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", text),
        }
    }
}

impl From<ConnectError> for Fault {
    fn from(error: ConnectError) -> Self {
        let text = error.to_string();
        match error {
            ConnectError::Refused { reason, .. } => Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", reason),
            ConnectError::Lost { lost: CloseReason::NotAdmitted { why, retry_after }, .. } => {
                Self { retry_after: Some(retry_after), ..Self::overloaded(why) }
            }
            ConnectError::NoAnswer { .. } => Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout", text),
            _ => Self::overloaded(text),
        }
    }
}

impl From<ServeError> for Fault {
    fn from(error: ServeError) -> Self {
        match error {
            ServeError::ShutDown => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", "the server is shutting down")
            }
            error => Self::overloaded(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever a handler's error says, it is one header and no more.
    #[test]
    fn a_text_cannot_end_its_header() {
        for (text, shown) in [
            ("boom\nline2", "boom line2"),
            ("a\r\nSet-Cookie: x=1\r\n\r\n<script>", "a  Set-Cookie: x=1    <script>"),
            ("\u{0}\u{7f}x\u{85}", "x"),
            ("  blank at the ends\n", "blank at the ends"),
            ("grün", "grün"),
            ("", ""),
        ] {
            assert_eq!(header_text(text).as_bytes(), shown.as_bytes(), "{text:?}");
        }
        assert_eq!(header_text(&"ü".repeat(5000)).as_bytes().len(), HEADER_TEXT_BYTES_MAX);
    }
}
