//! A message as an event of `text/event-stream`.

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bothways::{Metadata, SerializeType, client::ServerMessage};
use bytes::Bytes;
use serde_json::{Map, Value, json, value::RawValue};

use super::position_of;

/// A comment: it keeps a connection open, and a client does not see it.
pub(super) const BEAT: &[u8] = b":\n\n";

/// After how long a client comes back by itself, unless it is told otherwise: milliseconds.
const RETRY_MILLIS: u64 = 1000;

/// An event without its id.
#[derive(Debug)]
pub(super) struct Event {
    name: String,
    data: String,
}

impl Event {
    /// One of the front's own.
    pub(super) fn named(name: &str, data: &Value) -> Self {
        Self { name: name.to_owned(), data: data.to_string() }
    }

    /// A message of the server: its names are the name of the event.
    pub(super) fn of(message: &ServerMessage) -> Self {
        let name = format!("{}.{}", message.service_path(), message.service_method());
        Self { name, data: data_of(message) }
    }

    /// The event as it is written, with its id.
    pub(super) fn text(&self, id: &str) -> Bytes {
        let name: String = self.name.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let mut text = Vec::with_capacity(self.data.len() + name.len() + id.len() + 64);
        text.extend_from_slice(format!("id: {id}\nevent: {name}\n").as_bytes());
        // A line break within the data would end it: each line is one of its own, and the client puts them together.
        for line in self.data.as_bytes().split(|byte| matches!(byte, b'\n' | b'\r')) {
            text.extend_from_slice(b"data: ");
            text.extend_from_slice(line);
            text.push(b'\n');
        }
        text.push(b'\n');
        text.into()
    }
}

/// What the stream begins with.
pub(super) fn retry() -> Bytes {
    format!("retry: {RETRY_MILLIS}\n\n").into()
}

/// The last event of a stream: its id stays what it was.
pub(super) fn end(why: &str, retry_millis: Option<u128>) -> Bytes {
    let retry = retry_millis.map(|millis| format!("retry: {millis}\n")).unwrap_or_default();
    format!("{retry}event: bothways.end\ndata: {}\n\n", json!({ "why": why })).into()
}

/// The data: names, topic, metadata, and the payload under a name that says what it is.
fn data_of(message: &ServerMessage) -> String {
    let mut fields = Map::new();
    fields.insert("path".to_owned(), message.service_path().into());
    fields.insert("method".to_owned(), message.service_method().into());
    if let Some(topic) = message.topic() {
        fields.insert("topic".to_owned(), topic.into());
    }
    if let Some(position) = message.position() {
        fields.insert("position".to_owned(), position_of(&position).into());
    }
    let metadata = metadata_of(message.metadata());
    if !metadata.is_empty() {
        fields.insert("meta".to_owned(), metadata.into());
    }
    let mut text = Value::Object(fields).to_string();
    // What is JSON already is put in as it is: no number is changed on its way.
    text.pop();
    let _ = write!(text, ",{}}}", payload_of(message));
    text
}

fn metadata_of(metadata: Metadata) -> Map<String, Value> {
    let pairs = metadata.without_reserved();
    pairs.iter().map(|(key, value)| (key.into_owned(), value.into_owned().into())).collect()
}

/// A member of an object: `payload` if it is JSON or can be said in it, `text` or `base64` otherwise.
fn payload_of(message: &ServerMessage) -> String {
    let Ok(payload) = message.payload() else { return r#""payload":null"#.to_owned() };
    let serialize = message.serialize_type();
    if matches!(serialize, SerializeType::JSON | SerializeType::RAW)
        && let Ok(json) = serde_json::from_slice::<&RawValue>(&payload)
    {
        return format!(r#""payload":{}"#, json.get());
    }
    if serialize == SerializeType::MSGPACK
        && let Ok(value) = message.decode::<Value>()
    {
        return format!(r#""payload":{value}"#);
    }
    match std::str::from_utf8(&payload) {
        Ok(text) if serialize == SerializeType::RAW => format!(r#""text":{}"#, json!(text)),
        _ => format!(r#""codec":{},"base64":"{}""#, serialize.get(), STANDARD.encode(&payload)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing that a name or a payload says can end the event, begin another, or change its id.
    #[test]
    fn an_event_is_one_event_whatever_it_says() {
        let event = Event { name: "a\nid: 9\r\n\ndata: x".to_owned(), data: "{\n\"a\":\r1}".to_owned() };
        let text = String::from_utf8(event.text("k-1").to_vec()).expect("a text");
        assert_eq!(text, "id: k-1\nevent: a id: 9   data: x\ndata: {\ndata: \"a\":\ndata: 1}\n\n");
    }

    #[test]
    fn the_end_says_why_and_when_to_come_back() {
        assert_eq!(end("x\ny", Some(500)), "retry: 500\nevent: bothways.end\ndata: {\"why\":\"x\\ny\"}\n\n");
    }
}
