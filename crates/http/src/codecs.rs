//! Serialize types and the content types that stand for them.

use bothways::SerializeType;
use http::HeaderValue;

/// The content type of a payload; `None` for a codec of the application's.
pub(crate) fn content_type(serialize: SerializeType) -> Option<&'static str> {
    Some(match serialize {
        SerializeType::RAW => "application/octet-stream",
        SerializeType::JSON => "application/json",
        SerializeType::PROTOBUF => "application/protobuf",
        SerializeType::MSGPACK => "application/msgpack",
        SerializeType::THRIFT => "application/vnd.apache.thrift.binary",
        _ => return None,
    })
}

/// The codec that a content type names; its parameters mean nothing.
pub(crate) fn serialize_type(content_type: Option<&HeaderValue>) -> Option<SerializeType> {
    let text = content_type?.to_str().ok()?;
    let kind = text.split(';').next()?.trim().to_ascii_lowercase();
    Some(match kind.as_str() {
        "application/json" => SerializeType::JSON,
        "application/msgpack" | "application/x-msgpack" | "application/vnd.msgpack" => SerializeType::MSGPACK,
        "application/protobuf" | "application/x-protobuf" => SerializeType::PROTOBUF,
        "application/vnd.apache.thrift.binary" => SerializeType::THRIFT,
        "application/octet-stream" => SerializeType::RAW,
        _ => return None,
    })
}
