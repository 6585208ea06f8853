//! JSON ↔ MessagePack, and payloads for people.
//!
//! A [`Value`] holds whatever either format can say, in the order in which it stood: in MessagePack also keys of any
//! kind, bytes, extensions, and text that is not UTF-8.
//!
//! What JSON cannot say is written as an object with one key: bytes are `{"$bytes": "base64"}`, which
//! is also read that way, so that what was printed can be sent again. A map whose keys are no text may be written
//! `{"$map": [[1, "one"]]}`; it is printed with the JSON of its keys as text.

use std::time::SystemTime;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bothways::{
    Encode, Payload, SerializeType,
    codec::{
        CodecError,
        time::{of_extension, rfc3339},
    },
};
use bytes::Bytes;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
    ser::{SerializeMap, SerializeSeq},
};

use crate::term;

/// The key of an object that stands for bytes.
const BYTES_KEY: &str = "$bytes";

/// The key of an object that stands for a map with keys of any kind.
const MAP_KEY: &str = "$map";

/// A value of JSON or MessagePack.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Nil,
    Bool(bool),
    Int(i64),
    UInt(u64),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Value>),
    Map(Vec<(Value, Value)>),
    /// An extension of MessagePack that is a time.
    Time(SystemTime),
    Extension(i8, Vec<u8>),
}

impl Value {
    /// Reads JSON.
    pub(crate) fn from_json(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }

    /// Writes JSON on one line.
    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a value can always be written as JSON")
    }

    /// Writes JSON on as many lines as it takes.
    pub(crate) fn to_pretty_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a value can always be written as JSON")
    }

    /// Writes MessagePack, as Go's rpcx reads it.
    pub(crate) fn to_msgpack(&self) -> Bytes {
        self.encode(SerializeType::MSGPACK).expect("a value can always be written as MessagePack")
    }

    /// Reads MessagePack. Bytes after the value are ignored, as Go ignores them.
    pub(crate) fn from_msgpack(bytes: &Bytes) -> Result<Self, CodecError> {
        Self::decode(SerializeType::MSGPACK, bytes.clone())
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let json = serializer.is_human_readable();
        match self {
            Self::Nil => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Int(value) => serializer.serialize_i64(*value),
            Self::UInt(value) => serializer.serialize_u64(*value),
            // JSON has no number for these.
            Self::Float(value) if json && !value.is_finite() => serializer.serialize_str(&value.to_string()),
            Self::Float(value) => serializer.serialize_f64(*value),
            Self::Text(value) => serializer.serialize_str(value),
            Self::Bytes(value) if json => one_pair(serializer, BYTES_KEY, &BASE64.encode(value)),
            Self::Bytes(value) => serializer.serialize_bytes(value),
            Self::List(values) => {
                let mut list = serializer.serialize_seq(Some(values.len()))?;
                values.iter().try_for_each(|value| list.serialize_element(value))?;
                list.end()
            }
            Self::Map(pairs) => {
                let mut map = serializer.serialize_map(Some(pairs.len()))?;
                for (key, value) in pairs {
                    match key {
                        Self::Text(_) => map.serialize_entry(key, value)?,
                        // JSON knows only text as a key.
                        key if json => map.serialize_entry(&key.to_json(), value)?,
                        key => map.serialize_entry(key, value)?,
                    }
                }
                map.end()
            }
            Self::Time(time) => serializer.serialize_str(&rfc3339(*time, 9).unwrap_or_default()),
            Self::Extension(kind, data) => {
                one_pair(serializer, "$extension", &format!("{kind}:{}", BASE64.encode(data)))
            }
        }
    }
}

/// Key and value, if it is a list of the two.
fn pair(value: Value) -> Option<(Value, Value)> {
    let Value::List(both) = value else { return None };
    <[Value; 2]>::try_from(both).ok().map(|[key, value]| (key, value))
}

fn one_pair<S: Serializer>(serializer: S, key: &str, value: &str) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(1))?;
    map.serialize_entry(key, value)?;
    map.end()
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

/// Makes a [`Value`] of whatever a format holds.
struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Nil)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        // What fits is an `Int`, so that equal numbers are equal values.
        Ok(i64::try_from(value).map_or(Value::UInt(value), Value::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_f32<E>(self, value: f32) -> Result<Value, E> {
        // By way of its shortest text: 0.1 is to be shown as 0.1, not as 0.10000000149011612.
        Ok(Value::Float(value.to_string().parse().unwrap_or(f64::from(value))))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<Value, E> {
        Ok(Value::Bytes(value.to_vec()))
    }

    /// An extension comes as its kind and its data.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match <(i8, Value)>::deserialize(deserializer)? {
            (kind, Value::Bytes(data)) => Ok(extension(kind, data)),
            _ => Err(D::Error::custom("an extension without bytes")),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element()? {
            values.push(value);
        }
        Ok(Value::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry::<Value, Value>()? {
            pairs.push(pair);
        }
        of_pairs(pairs).map_err(A::Error::custom)
    }
}

/// A map, or the bytes or the map that an object with one key stands for. The error says what is wrong with such an
/// object.
fn of_pairs(mut pairs: Vec<(Value, Value)>) -> Result<Value, String> {
    match pairs.as_slice() {
        [(Value::Text(key), Value::Text(text))] if key == BYTES_KEY => {
            let bytes = BASE64.decode(text);
            bytes.map(Value::Bytes).map_err(|error| format!("{BYTES_KEY}: {error}"))
        }
        [(Value::Text(key), Value::List(_))] if key == MAP_KEY => {
            let Some((_, Value::List(entries))) = pairs.pop() else { unreachable!("it was one just now") };
            let entries: Option<Vec<_>> = entries.into_iter().map(pair).collect();
            let wanted = || format!("{MAP_KEY}: a list of pairs is wanted: [[1,\"one\"]]");
            entries.map(Value::Map).ok_or_else(wanted)
        }
        _ => Ok(Value::Map(pairs)),
    }
}

/// An extension, of which a year of more than four digits makes no time.
fn extension(kind: i8, data: Vec<u8>) -> Value {
    match of_extension(kind, &data).filter(|time| rfc3339(*time, 0).is_some()) {
        Some(time) => Value::Time(time),
        None => Value::Extension(kind, data),
    }
}

/// A payload, as far as its codec tells what it says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Shown {
    Value(Value),
    Text(String),
    Binary(Bytes),
}

impl Shown {
    /// Reads an unpacked payload.
    pub(crate) fn new(serialize: SerializeType, payload: &Bytes) -> Self {
        let value = match serialize {
            SerializeType::MSGPACK => Value::from_msgpack(payload).ok(),
            SerializeType::JSON => Value::from_json(payload).ok(),
            _ => None,
        };
        if let Some(value) = value {
            return Self::Value(value);
        }
        let textual = matches!(serialize, SerializeType::RAW | SerializeType::JSON) || payload.is_empty();
        match str::from_utf8(payload) {
            Ok(text) if textual && !text.contains(|c: char| c.is_control() && !"\n\r\t".contains(c)) => {
                Self::Text(text.to_owned())
            }
            _ => Self::Binary(payload.clone()),
        }
    }

    /// For one line of a terminal: at most about `max` characters.
    pub(crate) fn one_line(&self, max: usize) -> String {
        match self {
            Self::Value(value) => term::cut(&term::printable(&value.to_json()), max),
            Self::Text(text) => term::cut(&escaped(text), max),
            Self::Binary(bytes) => hex(bytes, max / 2),
        }
    }

    /// The fields of a JSON object that tell it: `payload`, or `payload_base64` if it is not text.
    pub(crate) fn fields(&self, max: usize) -> PayloadFields<'_> {
        let mut fields = PayloadFields::default();
        match self {
            Self::Value(value) => {
                let json = value.to_json();
                if json.len() <= max {
                    fields.payload = Some(PayloadField::Value(value));
                } else {
                    fields.payload_cut = Some(term::cut(&json, max));
                }
            }
            Self::Text(text) if text.len() <= max => fields.payload = Some(PayloadField::Text(text)),
            Self::Text(text) => fields.payload_cut = Some(term::cut(text, max)),
            Self::Binary(bytes) if bytes.len() <= max => fields.payload_base64 = Some(BASE64.encode(bytes)),
            Self::Binary(bytes) => fields.payload_cut = Some(hex(bytes, max)),
        }
        fields
    }
}

/// A payload as fields of a JSON object; exactly one is there.
#[derive(Debug, Default, Serialize)]
pub(crate) struct PayloadFields<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<PayloadField<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
    /// The beginning, for people, of what is too long.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_cut: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum PayloadField<'a> {
    Value(&'a Value),
    Text(&'a str),
}

/// Metadata as a JSON object, tokens masked.
#[derive(Debug)]
pub(crate) struct MetadataJson<'a> {
    pub(crate) metadata: &'a bothways::Metadata,
    pub(crate) show_secrets: bool,
}

impl Serialize for MetadataJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(pairs(self.metadata, self.show_secrets))
    }
}

/// The pairs as text, each key once with the value that counts, tokens masked.
pub(crate) fn pairs(metadata: &bothways::Metadata, show_secrets: bool) -> Vec<(String, String)> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    for (key, value) in metadata.iter() {
        let secret = !show_secrets && bothways_proto::keys::is_secret(key.as_bytes());
        let value = if secret { "***".to_owned() } else { value.into_owned() };
        match pairs.iter_mut().find(|(known, _)| *known == key) {
            Some(pair) => pair.1 = value,
            None => pairs.push((key.into_owned(), value)),
        }
    }
    pairs
}

/// `{k="v" n="1"}`, or nothing for no pairs.
pub(crate) fn metadata_line(metadata: &bothways::Metadata, show_secrets: bool, max: usize) -> String {
    let pairs: Vec<String> = pairs(metadata, show_secrets)
        .iter()
        .map(|(key, value)| format!("{}={}", term::one_line(key), term::cut(&escaped(value), max)))
        .collect();
    if pairs.is_empty() { String::new() } else { format!("{{{}}}", pairs.join(" ")) }
}

/// A text in quotes on one line.
fn escaped(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' | '\n' | '\r' | '\t' => out.extend(c.escape_default()),
            c if term::is_control(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Bytes in hexadecimal, the first `max` of them.
fn hex(bytes: &[u8], max: usize) -> String {
    let shown: String = bytes.iter().take(max).map(|byte| format!("{byte:02x}")).collect();
    let more = if max < bytes.len() { format!("… ({} bytes in all)", bytes.len()) } else { String::new() };
    format!("hex:{shown}{more}")
}

#[cfg(test)]
mod tests {
    use hex_literal::hex;

    use super::*;

    fn json(text: &str) -> Value {
        Value::from_json(text.as_bytes()).expect("JSON")
    }

    #[test]
    fn json_becomes_the_messagepack_that_go_sends() {
        assert_eq!(json(r#"{"A":10,"B":20}"#).to_msgpack()[..], hex!("82 a1 41 0a a1 42 14"));
        assert_eq!(json(r#"[null,true,-1,1.5,"é"]"#).to_msgpack()[..], hex!("95 c0 c3 ff cb3ff8000000000000 a2c3a9"));
        assert_eq!(json("18446744073709551615").to_msgpack()[..], hex!("cf ffffffffffffffff"));
    }

    #[test]
    fn bytes_go_there_and_back() {
        let value = json(r#"{"Data":{"$bytes":"AP8="}}"#);
        let wire = value.to_msgpack();
        assert_eq!(wire[..], hex!("81 a4 44617461 c4 02 00ff"));
        assert_eq!(Value::from_msgpack(&wire).expect("valid").to_json(), r#"{"Data":{"$bytes":"AP8="}}"#);
        assert!(Value::from_json(br#"{"$bytes":"!"}"#).is_err());
        let keys = json(r#"{"$map":[[1,"one"],[-2,{"$bytes":"AP8="}],["t",null]]}"#);
        assert_eq!(keys.to_msgpack(), hex!("83 01 a36f6e65 fe c40200ff a174 c0")[..]);
        assert_eq!(keys.to_json(), r#"{"1":"one","-2":{"$bytes":"AP8="},"t":null}"#);
        for bad in [r#"{"$map":[1]}"#, r#"{"$map":[[1]]}"#, r#"{"$map":[[1,2,3]]}"#] {
            assert!(Value::from_json(bad.as_bytes()).expect_err(bad).to_string().contains("a list of pairs"), "{bad}");
        }
        assert_eq!(json(r#"{"$map":1}"#).to_json(), r#"{"$map":1}"#);
    }

    #[test]
    fn messagepack_becomes_json_whatever_it_holds() {
        for (wire, shown) in [
            (&hex!("81 a1 43 cc c8")[..], r#"{"C":200}"#),
            (&hex!("82 01 a1 61 c3 c0"), r#"{"1":"a","true":null}"#),
            (&hex!("ca 3dcccccd"), "0.1"),
            (&hex!("cb 7ff0000000000000"), r#""inf""#),
            (&hex!("d3 8000000000000000"), "-9223372036854775808"),
            (&hex!("d0 80"), "-128"),
            (&hex!("e0"), "-32"),
            (&hex!("a1 ff"), r#"{"$bytes":"/w=="}"#),
            (&hex!("d6 ff 6553f100"), r#""2023-11-14T22:13:20.000000000Z""#),
            (&hex!("d4 05 07"), r#"{"$extension":"5:Bw=="}"#),
            (&hex!("dc 0001 c2"), "[false]"),
            (&hex!("de 0001 a0 d9 00"), r#"{"":""}"#),
        ] {
            assert_eq!(Value::from_msgpack(&Bytes::copy_from_slice(wire)).expect("valid").to_json(), shown);
        }
    }

    #[test]
    fn the_order_of_keys_stays() {
        assert_eq!(json(r#"{"b":1,"a":{"z":1,"y":2}}"#).to_json(), r#"{"b":1,"a":{"z":1,"y":2}}"#);
    }

    #[test]
    fn bad_messagepack_is_an_error() {
        for wire in
            [&hex!("92 01")[..], &hex!("91 c1"), &hex!("dd ffffffff"), &hex!("c6 ffffffff 00"), &[0x91; 2000], &[]]
        {
            assert!(Value::from_msgpack(&Bytes::copy_from_slice(wire)).is_err(), "{wire:02x?}");
        }
    }

    #[test]
    fn a_payload_is_shown_as_what_it_is() {
        let show = |serialize, payload: &'static [u8]| Shown::new(serialize, &payload.into()).one_line(40);
        assert_eq!(show(SerializeType::RAW, b"abcde"), r#""abcde""#);
        assert_eq!(show(SerializeType::RAW, b"a\nb\"\xe2\x80\xae"), "\"a\\nb\\\"\\u{202e}\"");
        assert_eq!(show(SerializeType::RAW, b"\x00\x01"), "hex:0001");
        assert_eq!(show(SerializeType::MSGPACK, b"\x81\xa1C\xcc\xc8"), r#"{"C":200}"#);
        assert_eq!(show(SerializeType::MSGPACK, b"\xc1"), "hex:c1");
        assert_eq!(show(SerializeType::JSON, b"{ \"a\" : 1 }"), r#"{"a":1}"#);
        assert_eq!(show(SerializeType::PROTOBUF, b"abc"), "hex:616263");
        assert_eq!(show(SerializeType::RAW, &[b'x'; 100]).chars().filter(|c| *c == 'x').count(), 39);
        assert_eq!(show(SerializeType::RAW, &[0; 100]), format!("hex:{}… (100 bytes in all)", "00".repeat(20)));
    }

    #[test]
    fn tokens_are_masked() {
        let metadata = bothways::Metadata::new().with("__AUTH", "bearer x").with("_bw.admin", "y").with("k", "v");
        assert_eq!(metadata_line(&metadata, false, 40), r#"{__AUTH="***" _bw.admin="***" k="v"}"#);
        assert_eq!(metadata_line(&metadata, true, 40), r#"{__AUTH="bearer x" _bw.admin="y" k="v"}"#);
    }
}
