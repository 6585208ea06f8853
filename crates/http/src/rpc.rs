//! `POST /rpc/Service/Method`: the body is the arguments, the reply is the body, and statuses are those of HTTP.

use bothways::{CallOptions, Caller, Metadata, SerializeType, caller::RawCall};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts};

use crate::{
    body::{Body, Response},
    codecs,
    fault::Fault,
    form,
    front::Asked,
    gateway,
};

/// What the paths begin with.
pub(crate) const PREFIX: &str = "/rpc/";

/// Headers of a trace, which go on as metadata of the same name.
const TRACE: [&str; 3] = ["traceparent", "tracestate", "baggage"];

/// The answer to `POST /rpc/Service/Method`.
pub(crate) async fn answer<B: http_body::Body>(asked: &Asked, parts: &Parts, body: B) -> Response {
    match call(asked, parts, body).await {
        Ok(response) => response,
        Err(fault) => fault.into_response(),
    }
}

async fn call<B: http_body::Body>(asked: &Asked, parts: &Parts, body: B) -> Result<Response, Fault> {
    let (path, method) = names(parts.uri.path())?;
    if parts.method != Method::POST {
        return Err(Fault::method_not_allowed("POST"));
    }
    // A body without a type, or with one that a form can have, may come from a page of another origin, unasked.
    let serialize = codecs::serialize_type(parts.headers.get(header::CONTENT_TYPE)).ok_or_else(unsupported)?;
    let (metadata, token) = metadata(&parts.headers)?;
    let time = asked.time(&parts.headers)?;

    let client = asked.client(&token).await?;
    let (body, _held) = asked.read(body).await?;
    let payload = match body.is_empty() && serialize == SerializeType::JSON {
        true => Bytes::from_static(b"null"),
        false => body,
    };
    let options = CallOptions::new().metadata(metadata).timeout(time);
    let raw = RawCall { service_path: &path, service_method: &method, serialize, payload, options };
    if !gateway::text(&parts.headers, &gateway::ONEWAY).is_empty() {
        client.push_raw(raw).await?;
        return Ok(gateway::nothing(StatusCode::ACCEPTED));
    }

    let reply = asked.checked(client.call_raw(raw).await).await?;
    let mut response = http::Response::new(Body::empty());
    let headers = response.headers_mut();
    if let Some(metadata) = gateway::reply_metadata(&reply.metadata) {
        headers.insert(gateway::META, metadata);
    }
    if let Some(kind) = codecs::content_type(reply.serialize) {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    *response.body_mut() = asked.held(reply.payload)?;
    Ok(response)
}

/// The method is what follows the last slash.
fn names(path: &str) -> Result<(String, String), Fault> {
    let rest = path.strip_prefix(PREFIX).unwrap_or_default();
    let names = rest
        .rsplit_once('/')
        .and_then(|(path, method)| Some((form::unescape_path(path)?, form::unescape_path(method)?)));
    match names {
        Some((path, method)) if !path.is_empty() && !method.is_empty() => Ok((path, method)),
        _ => Err(Fault::not_found("the path is /rpc/SERVICE/METHOD")),
    }
}

fn unsupported() -> Fault {
    let text = "the Content-Type says the codec: application/json, application/msgpack, application/protobuf, \
                application/vnd.apache.thrift.binary or application/octet-stream";
    Fault::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", text)
}

/// The metadata of a request, those of its trace among it, and its token.
pub(crate) fn metadata(headers: &HeaderMap) -> Result<(Metadata, String), Fault> {
    let (mut metadata, token) = gateway::metadata(headers).map_err(Fault::bad_request)?;
    for name in TRACE {
        if let Some(value) = headers.get(name) {
            metadata.insert(name, value.as_bytes());
        }
    }
    Ok((metadata, token))
}
