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

/// Go's `type Colour string`, with constants.
#[bothways::message]
#[derive(Clone, Debug, Default, PartialEq)]
enum Colour {
    #[default]
    #[serde(rename = "")]
    Unset,
    #[serde(rename = "red")]
    Red,
    #[serde(other, rename = "another")]
    Another,
}

#[bothways::message]
#[derive(Clone, Debug, PartialEq)]
struct Car {
    #[serde(default)]
    colour: Colour,
}

/// A field that nobody has set is the empty text, in Go. It is a variant, and so is what a newer peer may send.
#[test]
fn constants_of_a_string_type_are_an_enum_with_a_variant_for_the_empty_text() {
    for (colour, text) in [(Colour::Unset, ""), (Colour::Red, "red"), (Colour::Another, "another")] {
        let car = Car { colour };
        assert_eq!(json(&car), format!(r#"{{"Colour":"{text}"}}"#));
        assert_eq!(read::<Car>(&write(&car)).unwrap(), car);
        assert_eq!(Car::decode(SerializeType::JSON, json(&car).into()).unwrap(), car);
    }
    let unset = hex!("81 a6436f6c6f7572 a0");
    assert_eq!(
        (read::<Car>(&unset).unwrap(), &*write(&Car { colour: Colour::Unset })),
        (Car { colour: Colour::Unset }, &unset[..])
    );
    assert_eq!(read::<Car>(&hex!("80")).unwrap().colour, Colour::Unset);
    assert_eq!(read::<Car>(&hex!("81 a6436f6c6f7572 a4626c7565")).unwrap().colour, Colour::Another);
    assert_eq!(Car::decode(SerializeType::JSON, r#"{"Colour":"blue"}"#.into()).unwrap().colour, Colour::Another);

    // Without such variants both are errors: an enum is the names of its variants.
    assert!(Shape::decode(SerializeType::JSON, r#""""#.into()).is_err());
    assert!(read::<Shape>(&hex!("a0")).is_err() && read::<Shape>(&hex!("a4626c7565")).is_err());
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

/// `struct { Name string `json:"full_name" msgpack:"n"`; Value int `json:"value"`; Next *Tagged }` in Go.
#[bothways::message]
#[derive(Clone, Debug, Default, PartialEq)]
struct Tagged {
    #[message(json = "full_name", rename = "n")]
    name: String,
    #[message(json = "value")]
    value: i64,
    #[serde(rename = "Bytes")]
    #[message(json = "data")]
    bytes: Vec<u8>,
    next: Option<Box<Self>>,
}

fn tagged() -> Tagged {
    let next = Some(Box::new(Tagged { value: 7, ..Tagged::default() }));
    Tagged { name: "Ada".into(), value: 6, bytes: vec![1], next }
}

#[test]
fn names_for_json_are_in_json_and_nowhere_else() {
    let text = r#"{"full_name":"Ada","value":6,"data":"AQ==","Next":{"full_name":"","value":7,"data":"","Next":null}}"#;
    assert_eq!(json(&tagged()), text);
    assert_eq!(Tagged::decode(SerializeType::JSON, text.into()).unwrap(), tagged());
    let wire = hex!(
        "84 a16e a3416461 a556616c7565 06 a54279746573 c40101 a44e657874"
        "84 a16e a0 a556616c7565 07 a54279746573 c400 a44e657874 c0"
    );
    assert_eq!(write(&tagged()), wire[..]);
    assert_eq!(read::<Tagged>(&wire).unwrap(), tagged());
    assert_eq!(read::<Tagged>(&hex!("81 a966756c6c5f6e616d65 a3416461")).unwrap(), Tagged::default());
    let other = Tagged::decode(SerializeType::JSON, r#"{"N":"Ada","FULL_NAME":"Eve"}"#.into());
    assert_eq!(other.unwrap().name, "Eve");
}

#[bothways::message(json = "snake_case")]
#[derive(Debug, Default, PartialEq)]
struct Snake {
    full_name: String,
    #[message(json = "id")]
    user_id: u64,
}

#[bothways::message]
#[derive(Debug, PartialEq)]
struct Embedding {
    #[serde(flatten)]
    tagged: Tagged,
    #[serde(flatten)]
    snake: Option<Snake>,
    own: u8,
}

#[test]
fn names_for_json_hold_in_embedded_structs_and_may_follow_a_rule() {
    let snake = Snake { full_name: "Ada".into(), user_id: 7 };
    assert_eq!(json(&snake), r#"{"full_name":"Ada","id":7}"#);
    assert_eq!(write(&snake), hex!("82 a846756c6c4e616d65 a3416461 a6557365724964 07")[..]);
    let value = Embedding { tagged: Tagged { next: None, ..tagged() }, snake: None, own: 1 };
    let text = r#"{"full_name":"Ada","value":6,"data":"AQ==","Next":null,"Own":1}"#;
    assert_eq!(json(&value), text);
    assert_eq!(Embedding::decode(SerializeType::JSON, json(&value).into()).unwrap().tagged, value.tagged);
    let wire = write(&value);
    assert!(wire.starts_with(&hex!("85 a16e a3416461 a556616c7565 06")), "{wire:?}");
    assert_eq!(read::<Embedding>(&wire).unwrap().tagged, value.tagged);
}

#[bothways::message]
#[derive(Debug, PartialEq)]
enum Told {
    #[message(json = "nothing")]
    Nothing,
    Of {
        #[message(json = "who")]
        name: String,
    },
}

#[test]
fn names_for_json_may_be_those_of_variants() {
    assert_eq!(json(&Told::Nothing), r#""nothing""#);
    assert_eq!(write(&Told::Nothing), b"\xa7Nothing"[..]);
    let told = Told::Of { name: "Ada".into() };
    assert_eq!(json(&told), r#"{"Of":{"who":"Ada"}}"#);
    assert_eq!(read::<Told>(&write(&told)).unwrap(), told);
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

#[bothways::message(strict)]
#[derive(Debug, Default, PartialEq)]
struct Exact {
    #[message(rename = "ID")]
    id: u64,
    #[message(json = "full_name")]
    full_name: String,
}

#[bothways::message(strict)]
#[derive(Debug, PartialEq)]
enum Order {
    Buy { amount: u8 },
    Cancel,
}

#[bothways::message]
#[derive(Debug, Default, PartialEq)]
struct Envelope {
    exact: Option<Exact>,
}

#[bothways::message(strict)]
#[derive(Debug, Default, PartialEq)]
struct ExactlyNothing {}

#[test]
fn a_strict_message_refuses_unknown_fields_in_both_codecs_and_names_them() {
    let read_json = |text: &'static str| {
        Exact::decode(SerializeType::JSON, Bytes::from_static(text.as_bytes())).map_err(|e| e.to_string())
    };
    let error = read::<Exact>(&hex!("82 a24944 07 a6436f6c6f7572 01")).unwrap_err().to_string();
    assert!(error.contains("unknown field `Colour`"), "{error}");
    assert!(error.contains("`ID`") && error.contains("`FullName`") && !error.contains("Exact"), "{error}");
    let error = read_json(r#"{"ID":7,"Colour":1}"#).unwrap_err();
    assert!(error.contains("unknown field `Colour`") && error.contains("`full_name`"), "{error}");

    // A name of the other codec is unknown; one in another case is not, in JSON.
    assert!(read_json(r#"{"FullName":"Ada"}"#).is_err());
    assert_eq!(read_json(r#"{"id":7,"FULL_NAME":"Ada"}"#), Ok(Exact { id: 7, full_name: "Ada".into() }));
    // All else is as ever: what is missing, and nil.
    assert_eq!(read::<Exact>(&hex!("81 a24944 07")).unwrap(), Exact { id: 7, ..Exact::default() });
    assert_eq!(read::<Exact>(&hex!("c0")).unwrap(), Exact::default());
    let exact = Exact { id: 7, full_name: "Ada".into() };
    assert_eq!(read::<Exact>(&write(&exact)).unwrap(), exact);
    assert_eq!(json(&exact), r#"{"ID":7,"full_name":"Ada"}"#);
}

#[test]
fn a_strict_message_is_strict_within_others_and_as_an_enum() {
    let error = read::<Envelope>(&hex!("82 a14e 01 a54578616374 81 a15a 01")).unwrap_err().to_string();
    assert!(error.contains("unknown field `Z`"), "{error}");
    let error = read::<Order>(&hex!("81 a3427579 82 a6416d6f756e74 01 a15a 01")).unwrap_err().to_string();
    assert!(error.contains("unknown field `Z`"), "{error}");
    assert_eq!(read::<Order>(&write(&Order::Buy { amount: 3 })).unwrap(), Order::Buy { amount: 3 });
    assert_eq!(read::<Order>(&write(&Order::Cancel)).unwrap(), Order::Cancel);
    assert!(read::<ExactlyNothing>(&hex!("81 a15a 01")).is_err() && read::<ExactlyNothing>(&hex!("80")).is_ok());
}

/// A message as wide as some are, and what it may nest in.
macro_rules! wide {
    ($($field:ident)*) => {
        #[bothways::message]
        #[derive(Debug, Default)]
        struct Wide {
            next: Option<Box<Wide>>,
            kids: Vec<Wide>,
            boxes: Vec<Box<Wide>>,
            $($field: String,)*
        }
    };
}

wide! {
    a00 a01 a02 a03 a04 a05 a06 a07 a08 a09 a10 a11 a12 a13 a14 a15 a16 a17 a18 a19 a20 a21 a22 a23 a24
    b00 b01 b02 b03 b04 b05 b06 b07 b08 b09 b10 b11 b12 b13 b14 b15 b16 b17 b18 b19 b20 b21 b22 b23 b24
    c00 c01 c02 c03 c04 c05 c06 c07 c08 c09 c10 c11 c12 c13 c14 c15 c16 c17 c18 c19 c20 c21 c22 c23 c24
    d00 d01 d02 d03 d04 d05 d06 d07 d08 d09 d10 d11 d12 d13 d14 d15 d16 d17 d18 d19 d20 d21 d22 d23 d24
}

/// However deep a payload nests, and however large its types are: it is a value or an error, within the stack that a
/// thread has.
#[test]
fn a_payload_takes_no_more_stack_than_a_thread_has() {
    let decode = || {
        let mut refused = 0;
        for levels in (1..=130).step_by(3) {
            let next = [&b"\x81\xa4Next".repeat(levels)[..], b"\x80"].concat();
            let kids = [&b"\x81\xa4Kids\x91".repeat(levels)[..], b"\x80"].concat();
            let text = format!("{}{{}}{}", r#"{"Next":"#.repeat(levels), "}".repeat(levels));
            for read in [read::<Wide>(&next), read::<Wide>(&kids), Wide::decode(SerializeType::JSON, text.into())] {
                if let Err(error) = read {
                    assert!(error.to_string().contains("nested deeper"), "{levels}: {error}");
                    refused += 1;
                }
            }
        }
        assert_ne!(refused, 0, "some nest beyond all bounds");
    };
    let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(decode).expect("a thread");
    thread.join().expect("no panic");
}

/// What is in a box counts by its type: a list of so many does not take what it may not.
#[test]
fn boxes_count_by_what_is_in_them() {
    let elements = bothways::codec::DECODED_BYTES_MAX / size_of::<Wide>() + 1;
    for each in [&b"\xc0"[..], b"\x80"] {
        let len = u32::try_from(elements).expect("few").to_be_bytes();
        let wire = [&b"\x81\xa5Boxes\xdd"[..], &len, &each.repeat(elements)].concat();
        let error = read::<Wide>(&wire).expect_err("it takes too much");
        assert!(error.to_string().contains("bytes in memory"), "{error}");
    }
}
