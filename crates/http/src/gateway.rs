//! rpcx's gateway: a request is a frame whose header travels as `X-RPCX-*`.
//!
//! Statuses, headers and texts are those of Go for the same input; `docs/go-differences.md` has the exceptions. A client
//! that sends `X-Bothways: 1` gets statuses that say more.
//!
//! Source: Go rpcx `server/gateway.go` and `server/converter.go`.

use bothways::{CallOptions, Caller, Metadata, SerializeType, caller::RawCall};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts};

use crate::{
    body::{Body, Response},
    codecs,
    fault::{Fault, header_bytes, header_text},
    form,
    front::Asked,
};

const VERSION: HeaderName = HeaderName::from_static("x-rpcx-version");
const MESSAGE_ID: HeaderName = HeaderName::from_static("x-rpcx-messageid");
const STATUS: HeaderName = HeaderName::from_static("x-rpcx-messagestatustype");
const ERROR: HeaderName = HeaderName::from_static("x-rpcx-errormessage");
pub(crate) const META: HeaderName = HeaderName::from_static("x-rpcx-meta");
const SERIALIZE: HeaderName = HeaderName::from_static("x-rpcx-serializetype");
const COMPRESS: HeaderName = HeaderName::from_static("x-rpcx-compresstype");
const PATH: HeaderName = HeaderName::from_static("x-rpcx-servicepath");
const METHOD: HeaderName = HeaderName::from_static("x-rpcx-servicemethod");
pub(crate) const ONEWAY: HeaderName = HeaderName::from_static("x-rpcx-oneway");

/// What is served at each path. Go's router says it in this order.
const ALLOWED: &str = "GET, OPTIONS, POST, PUT";

/// The metadata key of the token. Source: Go `share.AuthKey`.
pub(crate) const AUTH: &str = "__AUTH";

/// True if the headers alone say that a request is for the gateway.
pub(crate) fn is_meant(headers: &HeaderMap) -> bool {
    [PATH, METHOD, SERIALIZE].iter().any(|name| headers.contains_key(name))
}

/// What the headers ask for.
struct Called {
    path: String,
    method: String,
    serialize: SerializeType,
    metadata: Metadata,
    token: String,
}

/// The answer to a request for the gateway.
pub(crate) async fn answer<B: http_body::Body>(asked: &Asked, parts: &Parts, body: B) -> Response {
    match parts.method {
        Method::GET | Method::POST | Method::PUT => {}
        Method::OPTIONS => {
            let mut response = http::Response::new(Body::empty());
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(ALLOWED));
            return response;
        }
        _ => return method_not_allowed(),
    }

    let path = service_path(parts);
    let mut headers = HeaderMap::new();
    headers.insert(VERSION, echo(&parts.headers, &VERSION));
    headers.insert(MESSAGE_ID, echo(&parts.headers, &MESSAGE_ID));
    let read = read_headers(&parts.headers, &path, &mut headers);
    let wants_more = parts.headers.get("x-bothways").is_some_and(|value| value == "1");

    let outcome = match read {
        // Go answers what it does not understand with a success.
        Err(text) => Err(Fault::new(StatusCode::OK, "bad_request", text)),
        Ok(called) => call(asked, parts, called, body, &mut headers).await,
    };
    let mut response = match outcome {
        Ok(body) => http::Response::new(body),
        Err(fault) => failed(fault, wants_more, &mut headers),
    };
    response.headers_mut().extend(headers);
    response
}

fn method_not_allowed() -> Response {
    let mut response = http::Response::new(Body::from("Method Not Allowed\n".to_owned()));
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(ALLOWED));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// The header says the service path, or else the whole path of the URL.
fn service_path(parts: &Parts) -> String {
    match text(&parts.headers, &PATH) {
        "" => {
            let path = parts.uri.path();
            form::unescape_path(path.strip_prefix('/').unwrap_or(path)).unwrap_or_default()
        }
        path => path.to_owned(),
    }
}

/// Reads what is asked for, and echoes the names that are there.
///
/// # Errors
/// The text of the first thing that is wrong, in Go's order.
fn read_headers(headers: &HeaderMap, path: &str, echoes: &mut HeaderMap) -> Result<Called, String> {
    let converted = convert(headers);
    let mut wrong = converted.as_ref().err().cloned();
    for (name, said, missing) in [
        (PATH, path, "empty servicepath"),
        (METHOD, text(headers, &METHOD), "empty servicemethod"),
        (SERIALIZE, text(headers, &SERIALIZE), "empty serialized type"),
    ] {
        match said.is_empty() && wrong.is_none() {
            true => wrong = Some(missing.to_owned()),
            false => _ = echoes.insert(name, header_bytes(said.as_bytes())),
        }
    }
    if let Some(wrong) = wrong {
        return Err(wrong);
    }

    let (serialize, metadata, token) = converted?;
    let method = text(headers, &METHOD).to_owned();
    Ok(Called { path: path.to_owned(), method, serialize, metadata, token })
}

/// What is not a name: the codec, the metadata and the token.
fn convert(headers: &HeaderMap) -> Result<(SerializeType, Metadata, String), String> {
    unsigned(text(headers, &MESSAGE_ID))?;
    let serialize = integer(text(headers, &SERIALIZE))?;
    integer(text(headers, &COMPRESS))?;
    let (metadata, token) = metadata(headers)?;
    // Four bits travel, whatever the number is.
    let serialize = SerializeType::new(serialize as u8 & 15).unwrap_or(SerializeType::RAW);
    Ok((serialize, metadata, token))
}

/// The metadata of a request, and its token.
///
/// # Errors
/// The text of Go's error.
pub(crate) fn metadata(headers: &HeaderMap) -> Result<(Metadata, String), String> {
    let (mut metadata, mut token) = (Metadata::new(), String::new());
    for (key, value) in form::parse(text(headers, &META))? {
        match key == AUTH {
            true => token = String::from_utf8_lossy(&value).into_owned(),
            false => metadata.insert(&key, value),
        }
    }
    match text(headers, &header::AUTHORIZATION) {
        "" => {}
        said => token = said.to_owned(),
    }
    Ok((metadata, token))
}

async fn call<B: http_body::Body>(
    asked: &Asked,
    parts: &Parts,
    called: Called,
    body: B,
    headers: &mut HeaderMap,
) -> Result<Body, Fault> {
    // The token is looked at before a byte of the body is read.
    let client = asked.client(&called.token).await?;
    let (payload, _held) = asked.read(body).await?;
    let raw = RawCall {
        service_path: &called.path,
        service_method: &called.method,
        serialize: called.serialize,
        payload,
        options: CallOptions::new().metadata(called.metadata).timeout(asked.time(&parts.headers)?),
    };
    let reply = asked.checked(client.call_raw(raw).await).await?;

    headers.insert(META, header_text_unbounded(&form::encode(&reply.metadata)));
    if !text(&parts.headers, &ONEWAY).is_empty() {
        return Ok(Body::empty());
    }
    if let (Some(kind), false) = (codecs::content_type(reply.serialize), reply.payload.is_empty()) {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    asked.held(reply.payload)
}

/// Metadata is encoded, and has nothing that a header may not have.
fn header_text_unbounded(text: &str) -> HeaderValue {
    header_bytes(text.as_bytes())
}

/// The answer that Go gives to any failure: two headers, no body.
fn failed(fault: Fault, wants_more: bool, headers: &mut HeaderMap) -> Response {
    headers.insert(STATUS, HeaderValue::from_static("Error"));
    headers.insert(ERROR, header_text(&fault.text));
    let mut response = http::Response::new(Body::empty());
    *response.status_mut() = match fault.status {
        StatusCode::OK | StatusCode::UNAUTHORIZED => fault.status,
        status if wants_more => status,
        // Go has no bound on a body, and no status for what it does not know.
        status @ (StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT) => status,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    if wants_more {
        fault.mark(headers);
    }
    response
}

fn echo(headers: &HeaderMap, name: &HeaderName) -> HeaderValue {
    headers.get(name).cloned().unwrap_or_else(|| HeaderValue::from_static(""))
}

/// The first value of a header, if it is a text; else empty.
pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> &'a str {
    headers.get(name).and_then(|value| std::str::from_utf8(value.as_bytes()).ok()).unwrap_or("")
}

/// Source: Go `strconv.ParseUint`.
fn unsigned(text: &str) -> Result<u64, String> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(number) if is_number => Ok(number),
        _ if text.is_empty() => Ok(0),
        _ => Err(not_a_number("ParseUint", text, is_number)),
    }
}

/// Source: Go `strconv.Atoi`.
fn integer(text: &str) -> Result<i64, String> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(number) if is_number => Ok(number),
        _ if text.is_empty() => Ok(0),
        _ => Err(not_a_number("Atoi", text, is_number)),
    }
}

fn not_a_number(function: &str, text: &str, is_too_large: bool) -> String {
    let why = if is_too_large { "value out of range" } else { "invalid syntax" };
    format!("strconv.{function}: parsing {text:?}: {why}")
}

/// The metadata of a reply for a response, if there is any.
pub(crate) fn reply_metadata(metadata: &Metadata) -> Option<HeaderValue> {
    (!metadata.is_empty()).then(|| header_text_unbounded(&form::encode(metadata)))
}

/// Without content: for what has nothing to say.
pub(crate) fn nothing(status: StatusCode) -> Response {
    let mut response = http::Response::new(Body::from(Bytes::new()));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each text as Go 1.26 says it.
    #[test]
    fn numbers_are_read_as_go_reads_them() {
        assert_eq!((unsigned("18446744073709551615"), unsigned("")), (Ok(u64::MAX), Ok(0)));
        assert_eq!(unsigned("x"), Err("strconv.ParseUint: parsing \"x\": invalid syntax".into()));
        assert_eq!(unsigned("+1"), Err("strconv.ParseUint: parsing \"+1\": invalid syntax".into()));
        assert_eq!(
            unsigned("18446744073709551616"),
            Err("strconv.ParseUint: parsing \"18446744073709551616\": value out of range".into())
        );
        assert_eq!((integer("+1"), integer("-15"), integer("007")), (Ok(1), Ok(-15), Ok(7)));
        assert_eq!(integer("1.0"), Err("strconv.Atoi: parsing \"1.0\": invalid syntax".into()));
        assert_eq!(integer("-"), Err("strconv.Atoi: parsing \"-\": invalid syntax".into()));
        assert_eq!(
            integer("9223372036854775808"),
            Err("strconv.Atoi: parsing \"9223372036854775808\": value out of range".into())
        );
    }
}
