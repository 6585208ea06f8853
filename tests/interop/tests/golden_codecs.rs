//! Every value that Go's codecs were recorded encoding (`golden/README.md`), read by ours.
//!
//! Each must decode; to the same value as the JSON that Go prints for it; and must survive our own
//! encoding. Where Go has one way to write a value, ours must write the same bytes: not where Go writes
//! sized integers in full, or JSON with escapes for HTML.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    path::Path,
    time::{Duration, SystemTime},
};

use bothways::{
    Encode, Payload, SerializeType,
    codec::{Protobuf, Thrift},
};
use bytes::Bytes;
use thrift::protocol::{TFieldIdentifier, TInputProtocol, TOutputProtocol, TSerializable, TStructIdentifier, TType};

/// One recorded value.
struct Value {
    file: String,
    /// As Go prints it: its type first.
    go: String,
    json: Option<String>,
    bytes: Bytes,
}

fn values(file: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(file).with_extension("hex");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let paragraphs = text.trim_end().split("\n\n").skip(1);
    let values: Vec<Value> = paragraphs.map(|paragraph| value(file, paragraph)).collect();
    assert!(!values.is_empty(), "{file} has no values");
    values
}

fn value(file: &str, paragraph: &str) -> Value {
    let comment = |key: &str| paragraph.lines().find_map(|line| line.strip_prefix(key)).map(str::to_owned);
    let hex: String = paragraph.lines().filter(|line| !line.starts_with('#')).collect();
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
    Value {
        file: file.to_owned(),
        go: comment("# go: ").expect("what Go prints"),
        json: comment("# json: "),
        bytes: (0..hex.len()).step_by(2).map(byte).collect(),
    }
}

impl Value {
    fn serialize_type(&self) -> SerializeType {
        match self.file.split_once('_').expect("a codec in the name").0 {
            "msgpack" => SerializeType::MSGPACK,
            "json" => SerializeType::JSON,
            "protobuf" => SerializeType::PROTOBUF,
            "thrift" => SerializeType::THRIFT,
            other => panic!("no codec {other}"),
        }
    }

    fn decode<T: Payload>(&self) -> T {
        let decoded = T::decode(self.serialize_type(), self.bytes.clone());
        decoded.unwrap_or_else(|error| panic!("{}, {}: {error}", self.file, self.go))
    }

    /// It decodes and survives; whether it is the same as its JSON, the caller asks.
    fn survives<T: Payload + PartialEq + Debug>(&self) -> T {
        let decoded: T = self.decode();
        let encoded = decoded.encode(self.serialize_type()).expect("what decodes, encodes");
        let again = T::decode(self.serialize_type(), encoded).expect("our own bytes");
        assert_eq!(again, decoded, "{}, {}", self.file, self.go);
        decoded
    }

    fn reads_as<T: Payload + PartialEq + Debug>(&self) -> T {
        let decoded: T = self.survives();
        if let Some(json) = &self.json {
            let from_json = T::decode(SerializeType::JSON, json.clone().into()).expect("JSON of Go's");
            assert_eq!(from_json, decoded, "{}, {}", self.file, self.go);
        }
        decoded
    }

    /// Our bytes are Go's, unless Go's are `nil`, for which we have the empty value.
    fn is_exactly<T: Payload + PartialEq + Debug>(&self) {
        let decoded: T = self.reads_as();
        if self.bytes[..] != [0xc0] && self.bytes != "null" {
            let encoded = decoded.encode(self.serialize_type()).expect("what decodes, encodes");
            assert_eq!(encoded, self.bytes, "{}, {}", self.file, self.go);
        }
    }
}

#[bothways::message]
#[derive(Clone, Debug, Default, PartialEq)]
struct Inner {
    name: String,
    value: i64,
}

#[bothways::message]
#[derive(Debug, PartialEq)]
struct Types {
    bool: bool,
    int: i64,
    int8: i8,
    int16: i16,
    int32: i32,
    int64: i64,
    uint: u64,
    uint8: u8,
    uint16: u16,
    uint32: u32,
    uint64: u64,
    float32: f32,
    float64: f64,
    string: String,
    bytes: Vec<u8>,
    nil_bytes: Bytes,
    empty_bytes: Option<Vec<u8>>,
    nested: Inner,
    pointer: Option<Inner>,
    nil_pointer: Option<Inner>,
    map: BTreeMap<String, String>,
    nil_map: BTreeMap<String, String>,
    empty_map: BTreeMap<String, String>,
    strings: Vec<String>,
    ints: Vec<i64>,
    nil_slice: Vec<i64>,
    empty_slice: Vec<i64>,
    inners: Vec<Inner>,
    duration: Duration,
}

#[bothways::message]
#[derive(Debug, PartialEq)]
struct Times {
    seconds: SystemTime,
    nanos: SystemTime,
    far: SystemTime,
    before: SystemTime,
}

/// A time that is a value of its own.
#[bothways::message]
#[derive(Debug, PartialEq)]
struct Time(SystemTime);

/// A duration that is a value of its own.
#[bothways::message]
#[derive(Debug, PartialEq)]
struct Span(Duration);

#[bothways::message]
#[derive(Debug, PartialEq)]
struct Args {
    a: i64,
    b: i64,
}

#[bothways::message]
#[derive(Debug, PartialEq)]
struct Reply {
    c: i64,
}

#[bothways::message]
#[derive(Debug, PartialEq)]
struct Text {
    s: String,
}

#[bothways::message]
#[derive(Debug, PartialEq)]
struct MetaReply {
    deadline: bool,
    millis: i64,
}

#[bothways::message]
#[derive(Debug, PartialEq)]
struct Empty {}

#[bothways::message]
#[derive(Debug, PartialEq)]
struct Pointers {
    pointer: Option<Inner>,
    nil: Option<Inner>,
}

#[bothways::message]
#[derive(Debug, PartialEq)]
struct Embedded {
    #[serde(flatten)]
    inner: Inner,
    own: i64,
}

#[bothways::message]
#[derive(Debug, PartialEq)]
struct Hidden {
    shown: i64,
}

#[test]
fn the_sample_of_all_types_is_the_same_in_msgpack_and_json() {
    let sample = |file| values(file).iter().map(Value::reads_as::<Types>).collect::<Vec<_>>();
    let msgpack = sample("msgpack_types");
    assert_eq!(msgpack, sample("json_types"));
    assert_eq!(msgpack[0].string, "Grüße <&> 世界");
    assert_eq!((msgpack[0].int64, msgpack[0].uint64), (i64::MIN, u64::MAX));
    assert_eq!((&msgpack[0].nil_slice[..], &msgpack[0].empty_bytes), (&[][..], &Some(vec![])));
    assert_eq!((&msgpack[1].nested, &msgpack[1].pointer), (&Inner::default(), &None));
}

#[test]
fn times_and_durations_are_gos_in_every_form() {
    for value in ["msgpack_sample_times", "json_sample_times"].into_iter().flat_map(values) {
        value.is_exactly::<Times>();
    }
    for value in ["msgpack_times", "msgpack_durations", "json_times"].into_iter().flat_map(values) {
        match value.go.split_once(' ').expect("a type in front") {
            // We have no zones: the instant is the same, the text is not.
            ("time.Time", text) if value.file == "json_times" && text.contains('+') => _ = value.reads_as::<Time>(),
            ("time.Time", _) => value.is_exactly::<Time>(),
            ("time.Duration", text) if text.starts_with('-') => {
                let error = Span::decode(value.serialize_type(), value.bytes).expect_err("no negative durations");
                assert!(error.to_string().contains("negative"), "{error}");
            }
            ("time.Duration", _) => _ = value.reads_as::<Span>(),
            (other, _) => panic!("no type for {other}"),
        }
    }
}

#[test]
fn numbers_fill_the_rust_types_of_their_width_and_wider_ones() {
    let files = ["msgpack_int", "msgpack_uint", "msgpack_sized_ints", "msgpack_sized_uints", "msgpack_floats"];
    for value in files.into_iter().chain(["msgpack_bools_and_nil", "json_scalars"]).flat_map(values) {
        match value.go.split_once(' ').expect("a type in front").0 {
            "int" if value.serialize_type() == SerializeType::MSGPACK => value.is_exactly::<i64>(),
            "uint" => value.is_exactly::<u64>(),
            "int" | "int64" => _ = value.reads_as::<i64>(),
            "int8" => assert_eq!(i64::from(value.reads_as::<i8>()), value.reads_as::<i64>()),
            "int16" => assert_eq!(i64::from(value.reads_as::<i16>()), value.reads_as::<i64>()),
            "int32" => assert_eq!(i64::from(value.reads_as::<i32>()), value.reads_as::<i64>()),
            "uint8" => assert_eq!(u64::from(value.reads_as::<u8>()), value.reads_as::<u64>()),
            "uint16" => assert_eq!(u64::from(value.reads_as::<u16>()), value.reads_as::<u64>()),
            "uint32" => assert_eq!(u64::from(value.reads_as::<u32>()), value.reads_as::<u64>()),
            "uint64" => _ = value.reads_as::<u64>(),
            "float32" => {
                value.is_exactly::<f32>();
                assert_eq!(value.survives::<f64>(), f64::from(value.decode::<f32>()));
            }
            "float64" if value.serialize_type() == SerializeType::MSGPACK => value.is_exactly::<f64>(),
            "float64" => _ = value.reads_as::<f64>(),
            "bool" => value.is_exactly::<bool>(),
            "<nil>" => value.is_exactly::<()>(),
            "*Inner" => assert_eq!(value.reads_as::<Option<Inner>>(), None),
            "*int" => assert_eq!(value.reads_as::<Option<i64>>(), None),
            other => panic!("no type for {other}"),
        }
    }
}

#[test]
fn texts_and_bytes_are_gos() {
    for value in ["msgpack_strings", "msgpack_bytes", "json_bytes"].into_iter().flat_map(values) {
        match value.go.split_once(' ').expect("a type in front").0 {
            "string" => value.is_exactly::<String>(),
            "[]byte" => value.is_exactly::<Bytes>(),
            other => panic!("no type for {other}"),
        }
    }
    for value in values("json_strings") {
        value.reads_as::<String>();
    }
}

#[test]
fn lists_and_maps_are_gos_and_nil_ones_are_empty() {
    for value in ["msgpack_lists", "msgpack_maps", "json_lists_and_maps"].into_iter().flat_map(values) {
        match value.go.split_once(' ').expect("a type in front").0 {
            "[]bool" => value.is_exactly::<Vec<bool>>(),
            "[]int" => value.is_exactly::<Vec<i64>>(),
            "[]int64" => _ = value.reads_as::<Vec<i64>>(),
            "[]string" => value.is_exactly::<Vec<String>>(),
            "[]interface" => value.is_exactly::<(i64, String, Option<u8>, bool)>(),
            "[2]int" => value.is_exactly::<[i64; 2]>(),
            "[]Inner" => value.is_exactly::<Vec<Inner>>(),
            "[][]int" => _ = value.reads_as::<Vec<Vec<i64>>>(),
            "map[string]string" => value.is_exactly::<BTreeMap<String, String>>(),
            "map[string]int" => value.is_exactly::<BTreeMap<String, i64>>(),
            "map[string]interface" => value.is_exactly::<BTreeMap<String, Option<u8>>>(),
            "map[int]string" => value.is_exactly::<BTreeMap<i64, String>>(),
            "map[string][]int" => value.is_exactly::<BTreeMap<String, Vec<i64>>>(),
            "map[string]map[string]string" => value.is_exactly::<BTreeMap<String, BTreeMap<String, String>>>(),
            other => panic!("no type for {other}"),
        }
    }
}

#[test]
fn structs_are_maps_from_the_names_of_their_fields() {
    for value in ["msgpack_structs", "json_structs"].into_iter().flat_map(values) {
        match value.go.split_once(' ').map_or(&value.go[..], |(ty, _)| ty) {
            "Args" | "*Args" => value.is_exactly::<Args>(),
            "Reply" => value.is_exactly::<Reply>(),
            "Text" => value.is_exactly::<Text>(),
            // Its integer is an int64, which Go writes in full.
            "MetaReply" => _ = value.reads_as::<MetaReply>(),
            "empty" => value.is_exactly::<Empty>(),
            "pointers" => value.is_exactly::<Pointers>(),
            "embedded" => value.is_exactly::<Embedded>(),
            "hidden" => value.is_exactly::<Hidden>(),
            "tagged" => assert_eq!(value.survives::<TaggedInJson>(), TaggedInJson { renamed: "r".into(), last: 1 }),
            other => panic!("no type for {other}"),
        }
    }
}

#[bothways::message]
#[derive(Debug, PartialEq)]
struct TaggedInJson {
    #[message(rename = "json_name")]
    renamed: String,
    last: i64,
}

#[bothways::message]
#[derive(Debug, PartialEq)]
struct TaggedInMsgpack {
    #[message(rename = "new_name")]
    renamed: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    omitted: Option<i64>,
    last: i64,
}

#[bothways::message]
#[derive(Debug, PartialEq)]
struct AsArray {
    a: i64,
    b: String,
}

#[bothways::message]
#[derive(Debug, PartialEq)]
struct OfRpcxItself {
    file_name: String,
    file_size: i64,
    meta: BTreeMap<String, String>,
    token: [u8; 32],
    addr: String,
}

#[test]
fn msgpack_tags_and_the_structs_of_rpcx_itself_are_read() {
    for value in values("msgpack_tags") {
        match value.go.split_once(' ').expect("a type in front").0 {
            "tagged" => {
                let tagged: TaggedInMsgpack = value.survives();
                assert_eq!((&tagged.renamed[..], tagged.last), ("r", 1));
                assert_eq!(tagged.encode(SerializeType::MSGPACK).expect("encodes"), value.bytes);
            }
            "asArray" => assert_eq!(value.survives::<AsArray>(), AsArray { a: 1, b: "b".into() }),
            other => panic!("no type for {other}"),
        }
    }
    for value in values("msgpack_rpcx_own") {
        let own: OfRpcxItself = value.survives();
        match value.go.split_once(' ').expect("a type in front").0 {
            "share.FileTransferArgs" => assert_eq!((&own.file_name[..], own.file_size, own.meta.len()), ("a", 5, 1)),
            "share.DownloadFileArgs" => assert_eq!((&own.file_name[..], own.meta.len()), ("a", 1)),
            "share.FileTransferReply" | "share.StreamServiceReply" => assert_eq!(own.addr, "x:1"),
            "share.StreamServiceArgs" => assert_eq!(own.meta.len(), 0),
            other => panic!("no type for {other}"),
        }
    }
}

/// The numbers in the JSON of a struct, for the codecs whose types are not serde's.
fn numbers(value: &Value) -> BTreeMap<String, i32> {
    Payload::decode(SerializeType::JSON, value.json.clone().expect("JSON").into()).expect("an object of numbers")
}

#[derive(Clone, PartialEq, prost::Message)]
struct ProtoArgs {
    #[prost(int32, tag = "1")]
    a: i32,
    #[prost(int32, tag = "2")]
    b: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ProtoReply {
    #[prost(int32, tag = "1")]
    c: i32,
}

#[test]
fn protobuf_structs_are_gos_bytes() {
    for value in values("protobuf_structs") {
        let numbers = numbers(&value);
        let encoded = match numbers.get("C") {
            Some(&c) => {
                assert_eq!(value.survives::<Protobuf<ProtoReply>>().c, c);
                Protobuf(ProtoReply { c }).encode(SerializeType::PROTOBUF)
            }
            None => {
                let args = Protobuf(ProtoArgs { a: numbers["A"], b: numbers["B"] });
                assert_eq!(value.survives::<Protobuf<ProtoArgs>>(), args);
                args.encode(SerializeType::PROTOBUF)
            }
        };
        assert_eq!(encoded.expect("encodes"), value.bytes, "{}", value.go);
    }
}

/// What the Thrift compiler generates for a struct of `i32` fields that are numbered from 1.
#[derive(Debug, PartialEq)]
struct ThriftNumbers<const N: usize>([i32; N]);

impl<const N: usize> TSerializable for ThriftNumbers<N> {
    fn read_from_in_protocol(input: &mut dyn TInputProtocol) -> thrift::Result<Self> {
        let mut numbers = [0; N];
        input.read_struct_begin()?;
        loop {
            let field = input.read_field_begin()?;
            let number = field.id.and_then(|id| numbers.get_mut(usize::try_from(id).ok()?.checked_sub(1)?));
            match (number, field.field_type) {
                (_, TType::Stop) => break,
                (Some(number), TType::I32) => *number = input.read_i32()?,
                (_, other) => input.skip(other)?,
            }
            input.read_field_end()?;
        }
        input.read_struct_end()?;
        Ok(Self(numbers))
    }

    fn write_to_out_protocol(&self, output: &mut dyn TOutputProtocol) -> thrift::Result<()> {
        output.write_struct_begin(&TStructIdentifier::new("Numbers"))?;
        for (id, number) in (1..).zip(self.0) {
            output.write_field_begin(&TFieldIdentifier::new("", TType::I32, id))?;
            output.write_i32(number)?;
            output.write_field_end()?;
        }
        output.write_field_stop()?;
        output.write_struct_end()
    }
}

#[test]
fn thrift_structs_are_gos_bytes() {
    for value in values("thrift_structs") {
        let numbers = numbers(&value);
        let encoded = match numbers.get("C") {
            Some(&c) => {
                assert_eq!(value.survives::<Thrift<ThriftNumbers<1>>>().0.0, [c]);
                Thrift(ThriftNumbers([c])).encode(SerializeType::THRIFT)
            }
            None => {
                let args = Thrift(ThriftNumbers([numbers["A"], numbers["B"]]));
                assert_eq!(value.survives::<Thrift<ThriftNumbers<2>>>(), args);
                args.encode(SerializeType::THRIFT)
            }
        };
        assert_eq!(encoded.expect("encodes"), value.bytes, "{}", value.go);
    }
}
