//! A message as an event of `text/event-stream`: encoded once for all streams that have it, and kept once.

use std::{
    collections::HashMap,
    fmt::Write as _,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    sync::{Arc, Weak},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bothways::{
    Metadata, SerializeType,
    client::ServerMessage,
    shares::{Full, Share, Shares},
};
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Map, Value, json, value::RawValue};

use super::position_of;
use crate::body::shares;

/// A comment: it keeps a connection open, and a client does not see it.
pub(super) const BEAT: &[u8] = b":\n\n";

/// After how long a client comes back by itself, unless it is told otherwise: milliseconds.
const RETRY_MILLIS: u64 = 1000;

/// An event without its id, which is another one in each stream.
#[derive(Debug)]
pub(super) struct Event {
    text: Bytes,
}

/// The text of an event, and the room that it takes for as long as anybody keeps or writes a part of it.
struct Kept {
    text: Vec<u8>,
    _room: Share,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

impl Event {
    /// One of the front's own.
    pub(super) fn named(name: &str, data: &Value) -> Arc<Self> {
        Arc::new(Self { text: text(name, &data.to_string()).into() })
    }

    pub(super) fn len(&self) -> usize {
        self.text.len()
    }

    /// The event as it is written, with its id before it.
    pub(super) fn parts(&self, id: &str) -> [Bytes; 2] {
        [format!("id: {id}\n").into(), self.text.clone()]
    }
}

/// The text of an event without its id.
fn text(name: &str, data: &str) -> Vec<u8> {
    let name: String = name.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut text = Vec::with_capacity(data.len() + name.len() + 32);
    text.extend_from_slice(format!("event: {name}\n").as_bytes());
    // A line break within the data would end it: each line is one of its own, and the client puts them together.
    for line in data.as_bytes().split(|byte| matches!(byte, b'\n' | b'\r')) {
        text.extend_from_slice(b"data: ");
        text.extend_from_slice(line);
        text.push(b'\n');
    }
    text.push(b'\n');
    text
}

/// The events that some stream keeps. What was published to many is found here by all but the first.
pub(super) struct Encodings {
    /// Bytes of all of them. The address whose stream has an event first pays for it.
    room: Arc<Shares>,
    /// Nobody who chooses messages knows these, so that no two have the same key.
    seeds: [RandomState; 2],
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    events: HashMap<u128, Weak<Event>>,
    /// Those that nobody keeps any more are left out when there are so many.
    swept_at: usize,
}

/// Least number of known events at which they are looked through.
const SWEEP_AT: usize = 64;

impl Encodings {
    pub(super) fn new(bytes_max: usize) -> Self {
        let seeds = [RandomState::new(), RandomState::new()];
        Self { room: shares(bytes_max, None, bytes_max), seeds, known: Mutex::default() }
    }

    /// Bytes of all events that are kept.
    pub(super) fn bytes(&self) -> usize {
        self.room.taken()
    }

    /// The event of a message of the server: its names are the name of the event.
    ///
    /// # Errors
    /// There is no room for it.
    pub(super) fn of(&self, message: &ServerMessage, peer: &str) -> Result<Arc<Event>, Full> {
        let key = self.key(message);
        if let Some(event) = self.known.lock().events.get(&key).and_then(Weak::upgrade) {
            return Ok(event);
        }

        let name = format!("{}.{}", message.service_path(), message.service_method());
        let text = text(&name, &data_of(message));
        let room = self.room.take(peer, text.capacity())?;
        let event = Arc::new(Event { text: Bytes::from_owner(Kept { text, _room: room }) });
        let mut known = self.known.lock();
        if known.swept_at <= known.events.len() {
            known.events.retain(|_, event| 0 < event.strong_count());
            known.swept_at = (2 * known.events.len()).max(SWEEP_AT);
        }
        known.events.insert(key, Arc::downgrade(&event));
        Ok(event)
    }

    /// What says all that the event says.
    fn key(&self, message: &ServerMessage) -> u128 {
        let payload = message.payload().ok();
        let (metadata, topic) = (message.metadata().without_reserved(), message.topic());
        let position = message.position().map(|position| position_of(&position));
        let [high, low] = [0, 1].map(|seed| {
            let mut hasher = self.seeds[seed].build_hasher();
            let mut put = |bytes: &[u8]| {
                hasher.write_usize(bytes.len());
                hasher.write(bytes);
            };
            put(message.service_path().as_bytes());
            put(message.service_method().as_bytes());
            put(&[message.serialize_type().get(), u8::from(payload.is_some())]);
            put(payload.as_deref().unwrap_or_default());
            for said in [&topic, &position] {
                put(&[u8::from(said.is_some())]);
                put(said.as_deref().unwrap_or_default().as_bytes());
            }
            metadata.pairs().for_each(|(key, value)| {
                put(key);
                put(value);
            });
            u128::from(hasher.finish())
        });
        high << 64 | low
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

/// The last event of a response whose stream another one reads now.
pub(super) fn taken_over() -> Bytes {
    let said = json!({ "why": "another connection reads this stream now", "taken": true });
    format!("event: bothways.end\ndata: {said}\n\n").into()
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
        let event = Event { text: text("a\nid: 9\r\n\ndata: x", "{\n\"a\":\r1}").into() };
        let text = String::from_utf8(event.parts("k-1").concat()).expect("a text");
        assert_eq!(text, "id: k-1\nevent: a id: 9   data: x\ndata: {\ndata: \"a\":\ndata: 1}\n\n");
    }

    #[test]
    fn the_end_says_why_and_when_to_come_back() {
        assert_eq!(end("x\ny", Some(500)), "retry: 500\nevent: bothways.end\ndata: {\"why\":\"x\\ny\"}\n\n");
    }
}
