//! Which Rust types Go can read, decided by the compiler. For the code that the macros generate.
//!
//! `#[service]` asks [`Probe`] for each argument and reply. A type that has a [`Shape`] says there what Go cannot
//! read in it; one that has none (serde impls of its own) is trusted. Aliases and generics are seen through, as the
//! types themselves are asked.
//!
//! Messages may hold each other in a circle, so each constant of a message rests on those of its fields one level
//! below: `AT_3` on their `AT_2`. At level 0 a message is trusted.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet, LinkedList, VecDeque},
    marker::PhantomData,
    num::NonZero,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use ::bytes::{Bytes, BytesMut};

use super::{Blob, Nanos, Raw, Timestamp};

/// What Go cannot read, and where it is.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    why: &'static str,
    /// The innermost field of a message: its type and its name, or nothing.
    field: Option<(&'static str, &'static str)>,
}

/// Of a type, or of none.
pub type Verdict = Option<Fault>;

const ENUM: &str = "Go has no enums with data: make a struct of it";
const TUPLE: &str = "a tuple travels as an array of unlike values: make a `#[message]` with names of it";
const BEFORE: &str = "Go cannot read this as serde writes it";
const BEHIND: &str = "; `#[rpc(plain)]` on the method, or `#[message(plain)]` on a field, leaves it so";

impl Fault {
    const fn new(why: &'static str) -> Verdict {
        Some(Self { why, field: None })
    }

    /// Of an enum whose variants hold something.
    pub const ENUM: Verdict = Self::new(ENUM);
    /// Of a struct with several fields and no names.
    pub const TUPLE: Verdict = Self::new(TUPLE);

    /// The verdict on a field as one on its type, which may be one on a field of the field.
    pub const fn of_field(verdict: Verdict, of: &'static str, field: &'static str) -> Verdict {
        match verdict {
            Some(Self { why, field: None }) => Some(Self { why, field: Some((of, field)) }),
            other => other,
        }
    }

    /// The first that there is.
    pub const fn first(verdicts: &[Verdict]) -> Verdict {
        let mut at = 0;
        while at < verdicts.len() {
            if verdicts[at].is_some() {
                return verdicts[at];
            }
            at += 1;
        }
        None
    }

    const fn parts(verdict: Verdict) -> [&'static str; 8] {
        match verdict {
            None => [""; 8],
            Some(Self { why, field: None }) => [BEFORE, ": ", why, BEHIND, "", "", "", ""],
            Some(Self { why, field: Some((of, field)) }) => [BEFORE, ", `", of, ".", field, "`: ", why, BEHIND],
        }
    }

    /// Bytes of the text; 0 where there is no fault.
    pub const fn len(verdict: Verdict) -> usize {
        let (parts, mut at, mut len) = (Self::parts(verdict), 0, 0);
        while at < parts.len() {
            len += parts[at].len();
            at += 1;
        }
        len
    }

    /// The text, of as many bytes as [`len`](Self::len) says.
    pub const fn text<const LEN: usize>(verdict: Verdict) -> [u8; LEN] {
        let (parts, mut at, mut text, mut len) = (Self::parts(verdict), 0, [b' '; LEN], 0);
        while at < parts.len() {
            let (part, mut byte) = (parts[at].as_bytes(), 0);
            while byte < part.len() && len < LEN {
                text[len] = part[byte];
                byte += 1;
                len += 1;
            }
            at += 1;
        }
        text
    }
}

const NO_KEY: Verdict =
    Fault::new("the key of a map is text or an integer in Go's JSON: take a `String` or an integer");

/// A type of which we know how serde writes it.
///
/// The levels count the messages within each other that are looked into.
pub trait Shape {
    /// As an element of a list.
    const IN_LIST: Verdict = None;
    /// As the key of a map.
    const AS_KEY: Verdict = NO_KEY;
    /// As a value, with no message looked into.
    const AT_0: Verdict;
    /// As a value, with one level of messages looked into, and so on.
    const AT_1: Verdict = Self::AT_0;
    /// Two.
    const AT_2: Verdict = Self::AT_1;
    /// Three.
    const AT_3: Verdict = Self::AT_2;
    /// Four.
    const AT_4: Verdict = Self::AT_3;
    /// Five.
    const AT_5: Verdict = Self::AT_4;
    /// Six.
    const AT_6: Verdict = Self::AT_5;
    /// Seven.
    const AT_7: Verdict = Self::AT_6;
    /// Eight.
    const AT_8: Verdict = Self::AT_7;
}

/// Asks a type for its [`Shape`], whether it has one or not: the constants below are those of the shape, else those
/// of [`Trusted`], which must be in scope.
pub struct Probe<T: ?Sized>(PhantomData<T>);

/// The verdicts on a type without a [`Shape`].
pub trait Trusted {
    /// See [`Shape`].
    const IN_LIST: Verdict = None;
    /// See [`Shape`].
    const AS_KEY: Verdict = None;
    /// See [`Shape`].
    const AT_0: Verdict = None;
    /// See [`Shape`].
    const AT_1: Verdict = None;
    /// See [`Shape`].
    const AT_2: Verdict = None;
    /// See [`Shape`].
    const AT_3: Verdict = None;
    /// See [`Shape`].
    const AT_4: Verdict = None;
    /// See [`Shape`].
    const AT_5: Verdict = None;
    /// See [`Shape`].
    const AT_6: Verdict = None;
    /// See [`Shape`].
    const AT_7: Verdict = None;
    /// See [`Shape`].
    const AT_8: Verdict = None;
}

impl<T: ?Sized> Trusted for Probe<T> {}

/// Does this for each level.
macro_rules! at_each_level {
    ($do:ident!($($rest:tt)*)) => {
        $do! { $($rest)*; AT_0 AT_1 AT_2 AT_3 AT_4 AT_5 AT_6 AT_7 AT_8 }
    };
}

macro_rules! probe {
    (; $($level:ident)*) => {
        impl<T: Shape + ?Sized> Probe<T> {
            /// See [`Shape`].
            pub const IN_LIST: Verdict = T::IN_LIST;
            /// See [`Shape`].
            pub const AS_KEY: Verdict = T::AS_KEY;
            $(
                /// See [`Shape`].
                pub const $level: Verdict = T::$level;
            )*
        }
    };
}
at_each_level!(probe!());

/// Types that Go reads. As keys, too.
macro_rules! keys {
    ($($type:ty),* $(,)?) => {$(
        impl Shape for $type {
            const AS_KEY: Verdict = None;
            const AT_0: Verdict = None;
        }
    )*};
}

keys!(i8, i16, i32, i64, isize, u16, u32, u64, usize, String, str);
keys!(NonZero<i8>, NonZero<i16>, NonZero<i32>, NonZero<i64>, NonZero<isize>);
keys!(NonZero<u16>, NonZero<u32>, NonZero<u64>, NonZero<usize>);

const BYTES: &str = "a list of bytes travels as an array, which is no `[]byte`. \
    Take `bytes::Bytes` or `bothways::codec::Blob`, or say `#[serde(with = \"bothways::codec::bytes\")]` on the field";

macro_rules! octets {
    ($($type:ty),*) => {$(
        impl Shape for $type {
            const IN_LIST: Verdict = Fault::new(BYTES);
            const AS_KEY: Verdict = None;
            const AT_0: Verdict = None;
        }
    )*};
}

octets!(u8, NonZero<u8>);

/// Types that Go reads, but not as keys.
macro_rules! values {
    ($([$($generics:tt)*] $type:ty),* $(,)?) => {$(
        impl<$($generics)*> Shape for $type {
            const AT_0: Verdict = None;
        }
    )*};
}

values!([] bool, [] f32, [] f64, [] (), [] Bytes, [] BytesMut, [] Raw);
values!([T] Blob<T>, [T] Nanos<T>, [T] Timestamp<T>, [T: ?Sized] PhantomData<T>);
#[cfg(feature = "protobuf")]
values!([T] super::Protobuf<T>);
#[cfg(feature = "thrift")]
values!([T] super::Thrift<T>);
#[cfg(feature = "json")]
values!([] serde_json::Value, [] serde_json::Map<String, serde_json::Value>);

/// Types that Go does not read, whatever is in them.
macro_rules! faults {
    ($($why:expr => $([$($generics:tt)*] $type:ty),*;)*) => {$($(
        impl<$($generics)*> Shape for $type {
            const AT_0: Verdict = Fault::new($why);
        }
    )*)*};
}

faults! {
    "Go has no integers of 128 bits: take 64 bits, or text" => [] i128, [] u128;
    "a `char` travels as text, which is no `rune`: take a `String`, or a `u32`" => [] char;
    "Go's `time.Time` is `bothways::codec::Timestamp`, or `#[serde(with = \"bothways::codec::time\")]` on the field" =>
        [] SystemTime;
    "Go's `time.Duration` is `bothways::codec::Nanos`, or `#[serde(with = \"bothways::codec::duration\")]` on the field" =>
        [] Duration;
    ENUM => [T, E] Result<T, E>;
    "a range has names that Go does not: make a `#[message]` of it" =>
        [T] std::ops::Range<T>, [T] std::ops::RangeInclusive<T>;
    "an address travels in another form in MessagePack than in JSON: take a `String`" =>
        [] std::net::IpAddr, [] std::net::Ipv4Addr, [] std::net::Ipv6Addr,
        [] std::net::SocketAddr, [] std::net::SocketAddrV4, [] std::net::SocketAddrV6;
}

macro_rules! tuples {
    ($($($name:ident)+;)*) => {$(
        impl<$($name),+> Shape for ($($name,)+) {
            const AT_0: Verdict = Fault::TUPLE;
        }
    )*};
}

tuples! {
    A; A B; A B C; A B C D; A B C D E; A B C D E F; A B C D E F G; A B C D E F G H; A B C D E F G H I;
    A B C D E F G H I J; A B C D E F G H I J K; A B C D E F G H I J K L;
}

/// As what they hold.
macro_rules! same {
    ([$($generics:tt)*] $type:ty; $($level:ident)*) => {
        impl<$($generics)*> Shape for $type {
            const IN_LIST: Verdict = T::IN_LIST;
            const AS_KEY: Verdict = T::AS_KEY;
            $(const $level: Verdict = T::$level;)*
        }
    };
}

at_each_level!(same!([T: Shape + ?Sized] Box<T>));
at_each_level!(same!([T: Shape + ?Sized] Rc<T>));
at_each_level!(same!([T: Shape + ?Sized] Arc<T>));
at_each_level!(same!([T: Shape + ?Sized] &T));
at_each_level!(same!([T: Shape + ToOwned + ?Sized] Cow<'_, T>));

macro_rules! option {
    (; $($level:ident)*) => {
        impl<T: Shape> Shape for Option<T> {
            $(const $level: Verdict = T::$level;)*
        }
    };
}
at_each_level!(option!());

macro_rules! lists {
    ([$($generics:tt)*] $type:ty; $($level:ident)*) => {
        impl<$($generics)*> Shape for $type {
            $(const $level: Verdict = Fault::first(&[T::IN_LIST, T::$level]);)*
        }
    };
}

at_each_level!(lists!([T: Shape] Vec<T>));
at_each_level!(lists!([T: Shape] VecDeque<T>));
at_each_level!(lists!([T: Shape] LinkedList<T>));
at_each_level!(lists!([T: Shape] BTreeSet<T>));
at_each_level!(lists!([T: Shape] BinaryHeap<T>));
at_each_level!(lists!([T: Shape, H] HashSet<T, H>));
at_each_level!(lists!([T: Shape] [T]));
at_each_level!(lists!([T: Shape, const N: usize] [T; N]));

macro_rules! maps {
    ([$($generics:tt)*] $type:ty; $($level:ident)*) => {
        impl<$($generics)*> Shape for $type {
            $(const $level: Verdict = Fault::first(&[K::AS_KEY, T::$level]);)*
        }
    };
}

at_each_level!(maps!([K: Shape, T: Shape] BTreeMap<K, T>));
at_each_level!(maps!([K: Shape, T: Shape, H] HashMap<K, T, H>));
