//! What `#[service]` says of types that Go cannot read, through aliases, generics and messages.

#![allow(dead_code)]

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, LinkedList, VecDeque},
    sync::Arc,
    time::{Duration, SystemTime},
};

use bothways::codec::{Blob, Nanos, Raw, Timestamp};
use bytes::Bytes;

/// What `#[service]` would say of a type as an argument or a reply, or nothing.
macro_rules! said_of {
    ($type:ty) => {{
        #[allow(unused_imports)]
        use bothways::__private::go::{Fault, Probe, Trusted as _, Verdict};
        const VERDICT: Verdict = <Probe<$type>>::AT_8;
        const LEN: usize = Fault::len(VERDICT);
        String::from_utf8(Fault::text::<LEN>(VERDICT).to_vec()).unwrap()
    }};
}

macro_rules! refused {
    ($($type:ty => $why:literal;)*) => {$(
        let said = said_of!($type);
        assert!(said.starts_with("Go cannot read"), "{}: {said:?}", stringify!($type));
        assert!(said.contains($why), "{}: {said:?}", stringify!($type));
    )*};
}

macro_rules! taken {
    ($($type:ty;)*) => {$( assert_eq!(said_of!($type), "", "{}", stringify!($type)); )*};
}

type Photo = Vec<u8>;
type When = SystemTime;
type ByPlace<T> = HashMap<(i32, i32), T>;

#[bothways::message]
#[derive(Default)]
struct Sound {
    number: u8,
    data: Vec<u8>,
    maybe: Option<Bytes>,
    at: Option<SystemTime>,
    took: HashMap<String, Duration>,
    names: Vec<String>,
    token: [u8; 4],
    /// As its author wants it.
    #[message(plain)]
    plain: VecDeque<u8>,
    #[serde(with = "bothways::codec::bytes")]
    photo: Photo,
    #[serde(skip)]
    own: (u8, u8),
    children: Vec<Sound>,
    other: Option<Box<Circle>>,
}

#[bothways::message]
#[derive(Default)]
struct Circle {
    all: Vec<Sound>,
    of: BTreeMap<Kind, Number>,
}

#[bothways::message]
#[derive(Default, Eq, Ord, PartialEq, PartialOrd)]
enum Kind {
    #[default]
    Large,
    Small,
}

#[bothways::message]
#[derive(Default)]
struct Number(i64);

#[bothways::message]
#[derive(Default)]
struct Octet(u8);

#[bothways::message]
#[derive(Default)]
struct Page<T> {
    items: Vec<T>,
}

#[bothways::message]
#[derive(Default)]
struct WithAlias {
    photo: Photo,
}

#[bothways::message]
#[derive(Default)]
struct WithName {
    #[message(json = "photo")]
    photo: Photo,
}

#[bothways::message]
#[derive(Default)]
struct Outer {
    number: i64,
    inner: Option<Box<WithAlias>>,
    back: Vec<Outer>,
}

#[bothways::message]
enum Shape {
    Circle { radius: f64 },
}

#[bothways::message]
#[derive(Default)]
struct Pair(i64, i64);

/// Serde impls of its own: only its author knows.
struct Own {
    data: Vec<u8>,
}

macro_rules! generated {
    ($name:ident, $($field:ident: $type:ty),*) => {
        #[bothways::message]
        #[derive(Clone, Debug, PartialEq)]
        struct $name {
            $($field: $type),*
        }
    };
}

generated!(Generated, data: Vec<u8>, at: SystemTime, list: Vec<SystemTime>, maybe: Option<[u8; 4]>, key: [u8; 2]);

#[test]
fn what_go_cannot_read_is_refused_however_it_is_named() {
    refused! {
        Vec<u8> => "no `[]byte`";
        Photo => "no `[]byte`";
        [u8; 4] => "no `[]byte`";
        VecDeque<u8> => "no `[]byte`";
        LinkedList<u8> => "no `[]byte`";
        BTreeSet<u8> => "no `[]byte`";
        HashSet<u8> => "no `[]byte`";
        Box<[u8]> => "no `[]byte`";
        Cow<'static, [u8]> => "no `[]byte`";
        Arc<Vec<u8>> => "no `[]byte`";
        Vec<Octet> => "no `[]byte`";
        Option<Vec<Photo>> => "no `[]byte`";
        HashMap<String, Vec<u8>> => "no `[]byte`";
        When => "codec::Timestamp";
        [SystemTime; 2] => "codec::Timestamp";
        VecDeque<SystemTime> => "codec::Timestamp";
        Box<Duration> => "codec::Nanos";
        BTreeMap<i64, Duration> => "codec::Nanos";
        u128 => "128 bits";
        Vec<i128> => "128 bits";
        char => "rune";
        (Vec<u8>, i64) => "a tuple";
        Vec<(i64, i64)> => "a tuple";
        (Own, i64) => "a tuple";
        Pair => "a tuple";
        Shape => "no enums with data";
        Option<Shape> => "no enums with data";
        Result<i64, String> => "no enums with data";
        std::net::IpAddr => "an address";
        HashMap<(i32, i32), String> => "the key of a map";
        ByPlace<i64> => "the key of a map";
        BTreeMap<bool, i64> => "the key of a map";
        BTreeMap<Vec<u16>, i64> => "the key of a map";
    }
}

#[test]
fn a_message_is_looked_into_and_its_field_is_named() {
    refused! {
        WithAlias => "Go cannot read this as serde writes it, `WithAlias.photo`: a list of bytes";
        WithName => "`WithName.photo`";
        Outer => "`WithAlias.photo`";
        Vec<Outer> => "`WithAlias.photo`";
        Page<Photo> => "`Page.items`: a list of bytes";
        Page<u8> => "`Page.items`: a list of bytes";
        Page<Page<Outer>> => "`WithAlias.photo`";
        Page<(i64, i64)> => "`Page.items`: a tuple";
    }
}

#[test]
fn what_go_reads_is_taken_and_so_is_what_its_author_wrote() {
    taken! {
        ();
        bool;
        u8;
        Option<u8>;
        HashMap<String, u8>;
        i64;
        f32;
        String;
        Box<str>;
        Bytes;
        Vec<Bytes>;
        Blob;
        Blob<Vec<Vec<u8>>>;
        Nanos;
        Timestamp<Option<SystemTime>>;
        Raw;
        Vec<Vec<i64>>;
        [f64; 3];
        BTreeMap<Kind, Vec<Number>>;
        BTreeMap<u8, String>;
        Kind;
        Octet;
        Sound;
        Circle;
        Page<Sound>;
        Page<Page<i64>>;
        Generated;
        Own;
        Vec<Own>;
        Page<Own>;
    }
}

#[test]
fn a_message_made_by_a_macro_travels_as_one_written_by_hand() {
    use bothways::{Payload, SerializeType};

    let epoch = SystemTime::UNIX_EPOCH;
    let data = vec![104, 105];
    let value = Generated { data, at: epoch, list: vec![epoch], maybe: Some([1, 2, 3, 4]), key: [5, 6] };
    let wire = bothways::Encode::encode(&value, SerializeType::MSGPACK).unwrap();
    let wanted = hex_literal::hex!(
        "85 a4 44617461 c402 6869 a2 4174 d6ff 00000000 a4 4c697374 91 d6ff 00000000"
        "a5 4d61796265 c404 01020304 a3 4b6579 c402 0506"
    );
    assert_eq!(wire, wanted[..]);
    assert_eq!(Generated::decode(SerializeType::MSGPACK, wire).unwrap(), value);
    // What is missing is zero, as in a message that was written by hand.
    let none = Generated::decode(SerializeType::MSGPACK, Bytes::from_static(b"\x80")).unwrap();
    assert_eq!((none.at, none.key), (bothways::codec::time::go_zero(), [0; 2]));
}
