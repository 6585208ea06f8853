//! What `#[message]` makes of a type, as bytes. This crate has no dependency on serde.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bothways::{
    Payload, SerializeType,
    codec::{CodecError, time},
};
use bytes::Bytes;
use hex_literal::hex;

#[bothways::message]
#[derive(Clone, Debug, Default, PartialEq)]
struct Profile {
    #[message(rename = "ID")]
    id: u64,
    full_name: String,
    r#type: i8,
    #[serde(rename = "URL", skip_serializing_if = "String::is_empty")]
    url: String,
}

fn write<T: Payload>(value: &T) -> Bytes {
    value.encode(SerializeType::MSGPACK).unwrap()
}

fn read<T: Payload>(wire: &[u8]) -> Result<T, CodecError> {
    T::decode(SerializeType::MSGPACK, Bytes::copy_from_slice(wire))
}

fn json<T: Payload>(value: &T) -> String {
    String::from_utf8(value.encode(SerializeType::JSON).unwrap().to_vec()).unwrap()
}

#[test]
fn fields_have_gos_names_unless_renamed() {
    let profile = Profile { id: 7, full_name: "Ada".into(), r#type: 1, url: "x".into() };
    assert_eq!(json(&profile), r#"{"ID":7,"FullName":"Ada","Type":1,"URL":"x"}"#);
    assert_eq!(json(&Profile::default()), r#"{"ID":0,"FullName":"","Type":0}"#);
}

#[test]
fn missing_and_nil_fields_are_default_and_unknown_ones_skipped() {
    assert_eq!(read::<Profile>(&hex!("80")).unwrap(), Profile::default());
    assert_eq!(read::<Profile>(&hex!("c0")).unwrap(), Profile::default());
    let wire = hex!("83 a24944 07 a846756c6c4e616d65 c0 a15a 93 01 02 03");
    assert_eq!(read::<Profile>(&wire).unwrap(), Profile { id: 7, ..Profile::default() });
    let text = Bytes::from_static(br#"{"ID":7,"FullName":null}"#);
    assert_eq!(Profile::decode(SerializeType::JSON, text).unwrap(), Profile { id: 7, ..Profile::default() });
}

#[bothways::message]
#[derive(Debug, PartialEq)]
struct Parcel {
    data: Vec<u8>,
    shared: Bytes,
    boxed: Box<[u8]>,
    token: [u8; 40],
    maybe: Option<Vec<u8>>,
    many: Vec<Vec<u8>>,
    by_name: BTreeMap<String, Vec<u8>>,
}

#[test]
fn bytes_travel_as_byte_strings_wherever_they_are() {
    let parcel = Parcel {
        data: vec![1],
        shared: Bytes::from_static(&[2]),
        boxed: [3].into(),
        token: [4; 40],
        maybe: Some(vec![5]),
        many: vec![vec![6], vec![]],
        by_name: BTreeMap::from([("a".to_owned(), vec![7])]),
    };
    let wire = write(&parcel);
    let expected = [
        &hex!("87 a444617461 c40101 a6536861726564 c40102 a5426f786564 c40103 a5546f6b656e c428")[..],
        &[4; 40],
        &hex!("a54d61796265 c40105 a44d616e79 92 c40106 c400 a642794e616d65 81 a161 c40107"),
    ];
    assert_eq!(wire, expected.concat());
    assert_eq!(read::<Parcel>(&wire).unwrap(), parcel);
    let text = json(&parcel);
    assert!(text.starts_with(r#"{"Data":"AQ==","Shared":"Ag==","Boxed":"Aw==","Token":[4,4,"#), "{text}");
    assert_eq!(Parcel::decode(SerializeType::JSON, text.into()).unwrap(), parcel);
    let empty = read::<Parcel>(&hex!("82 a54d61796265 c0 a44d616e79 c0")).unwrap();
    assert_eq!((empty.token, empty.maybe, empty.many), ([0; 40], None, vec![]));
}

#[bothways::message]
#[derive(Debug, PartialEq)]
struct Meeting {
    at: SystemTime,
    until: Option<SystemTime>,
    takes: Duration,
    pauses: Vec<Duration>,
    marks: HashMap<String, SystemTime>,
}

#[test]
fn times_and_durations_are_gos() {
    let meeting = Meeting {
        at: UNIX_EPOCH + Duration::from_secs(1),
        until: None,
        takes: Duration::from_millis(1_500),
        pauses: vec![Duration::from_nanos(5)],
        marks: HashMap::from([("a".to_owned(), UNIX_EPOCH)]),
    };
    let wire = hex!(
        "85 a24174 d6ff00000001 a5556e74696c c0 a554616b6573 ce59682f00 a6506175736573 91 05"
        "a54d61726b73 81 a161 d6ff00000000"
    );
    assert_eq!(write(&meeting), wire[..]);
    assert_eq!(read::<Meeting>(&wire).unwrap(), meeting);
    let text = r#"{"At":"1970-01-01T00:00:01Z","Until":null,"Takes":1500000000,"Pauses":[5],"Marks":{"a":"1970-01-01T00:00:00Z"}}"#;
    assert_eq!(json(&meeting), text);
    assert_eq!(Meeting::decode(SerializeType::JSON, text.into()).unwrap(), meeting);
    assert_eq!(read::<Meeting>(&hex!("80")).unwrap().at, time::go_zero());
    assert_eq!(read::<Meeting>(&hex!("81 a24174 c0")).unwrap().at, time::go_zero());
    assert!(read::<Meeting>(&hex!("81 a554616b6573 ff")).is_err(), "a negative duration");
}

#[bothways::message]
#[derive(Clone, Debug, PartialEq)]
enum Shape {
    Empty,
    Circle {
        radius: f32,
        label_text: String,
    },
    #[message(rename = "rect")]
    Rectangle(u8, u8),
}

#[bothways::message]
#[derive(Debug, PartialEq)]
struct Drawing {
    #[message(required)]
    shape: Shape,
    #[serde(default = "red")]
    colour: String,
}

fn red() -> String {
    "red".to_owned()
}

#[test]
fn enums_keep_the_names_of_variants_and_required_fields_must_be_there() {
    let drawing = Drawing { shape: Shape::Circle { radius: 1.5, label_text: "o".into() }, colour: red() };
    assert_eq!(json(&drawing), r#"{"Shape":{"Circle":{"Radius":1.5,"LabelText":"o"}},"Colour":"red"}"#);
    assert_eq!(read::<Drawing>(&write(&drawing)).unwrap(), drawing);
    let read_json = |text: &'static str| Drawing::decode(SerializeType::JSON, text.into());
    assert_eq!(read_json(r#"{"Shape":{"rect":[1,2]}}"#).unwrap().shape, Shape::Rectangle(1, 2));
    assert_eq!(read_json(r#"{"Shape":"Empty"}"#).unwrap(), Drawing { shape: Shape::Empty, colour: red() });
    let error = read_json("{}").unwrap_err().to_string();
    assert!(error.contains("missing field `Shape`"), "{error}");
}

#[bothways::message]
#[derive(Debug, PartialEq)]
struct Page<T> {
    items: Vec<T>,
    next: Option<u32>,
    newest: T,
}

#[bothways::message]
#[derive(Debug, Default, PartialEq)]
struct Id(u64);

#[bothways::message]
#[derive(Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
struct Camel {
    full_name: String,
}

/// Not the one of the standard library.
#[bothways::message]
#[derive(Debug, Default, PartialEq)]
struct SystemTimeOfDay {
    hour: u8,
}

use SystemTimeOfDay as SystemTimeAlias;

mod own {
    #[bothways::message]
    #[derive(Debug, Default, PartialEq)]
    pub(super) struct Duration {
        pub(super) weeks: u8,
    }
}

#[bothways::message]
#[derive(Debug, PartialEq)]
struct Plain {
    #[message(plain)]
    lasts: own::Duration,
    at: SystemTimeAlias,
}

#[test]
fn generics_newtypes_other_rules_and_types_of_the_same_name_work() {
    let page = Page { items: vec![Id(1), Id(2)], next: None, newest: Id(2) };
    assert_eq!(json(&page), r#"{"Items":[1,2],"Next":null,"Newest":2}"#);
    assert_eq!(read::<Page<Id>>(&write(&page)).unwrap(), page);
    assert_eq!(read::<Page<Id>>(&hex!("80")).unwrap(), Page { items: vec![], next: None, newest: Id(0) });
    assert_eq!(json(&Camel { full_name: "Ada".into() }), r#"{"fullName":"Ada"}"#);
    let plain = Plain { lasts: own::Duration { weeks: 2 }, at: SystemTimeOfDay { hour: 9 } };
    assert_eq!(json(&plain), r#"{"Lasts":{"Weeks":2},"At":{"Hour":9}}"#);
}

#[bothways::message]
#[derive(Debug, Default, PartialEq)]
struct Nothing;

#[bothways::message]
#[derive(Debug, Default, PartialEq)]
struct NoFields {}

#[test]
fn a_struct_without_fields_reads_what_go_sends_for_one() {
    for wire in [&hex!("80")[..], &hex!("c0"), &hex!("90")] {
        assert_eq!(read::<Nothing>(wire).unwrap(), Nothing);
        assert_eq!(read::<NoFields>(wire).unwrap(), NoFields {});
    }
    assert_eq!(write(&NoFields {}), hex!("80")[..]);
}
