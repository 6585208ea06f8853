//! The memory of decoded values: a list of `nil`s has one byte on the wire for each element, and may have a hundred in
//! memory; and a value that nests takes stack by the size of its types, not by its bytes.
//!
//! Both readers of serde types count the elements of lists and the entries of maps as they come, by the size of their
//! types, and stop at [`DECODED_BYTES_MAX`]. The code that runs the request then knows what its payload took.

use std::{
    cell::Cell,
    mem::{needs_drop, size_of},
};

use serde::de::Error;

/// Most bytes that the lists and maps of one payload may take in memory, once they are decoded: 256 MiB. A growing list
/// may take twice its counted size. Texts and bytes are never larger than the payload, and are not counted.
pub const DECODED_BYTES_MAX: usize = 256 << 20;

/// Most bytes of its thread's stack that decoding one payload may have taken when the next level begins: 1 MiB, half of
/// what threads have unless they are given more. [`NESTING_MAX`](super::NESTING_MAX) levels of small types take less, also
/// in a debug build.
pub const DECODING_STACK_BYTES: usize = 1 << 20;

/// Elements of at most so many bytes count without the byte that they have on the wire at least: one of a byte is not
/// counted.
const SMALL_BYTES: usize = 8;

/// What a value takes outside of itself, if it may have anything there.
const HEAP_BYTES: usize = 32;

/// What a field of a struct counts where nobody knows its type: as much as a text takes beside its bytes.
const FIELD_BYTES: usize = 24;

/// A map's first entry makes a node with room for so many.
const ENTRIES_OF_NODE: usize = 11;

thread_local! {
    /// What the value that is decoded may still take.
    static LEFT: Cell<usize> = const { Cell::new(DECODED_BYTES_MAX) };
    /// What values took that were decoded by [`measured`].
    static TAKEN: Cell<usize> = const { Cell::new(0) };
    /// Where on the stack the decoding began.
    static BEGAN: Cell<usize> = const { Cell::new(0) };
    /// What was counted of the element that comes next: a struct that it is has been counted.
    static ELEMENT: Cell<usize> = const { Cell::new(0) };
}

/// Where the stack is.
#[inline]
fn here() -> usize {
    let here = 0_u8;
    std::ptr::from_ref(std::hint::black_box(&here)).addr()
}

/// True if the value that is decoded has taken so much stack that nothing deeper is begun.
#[inline]
pub(super) fn is_too_deep() -> bool {
    let began = BEGAN.get();
    began != 0 && DECODING_STACK_BYTES < here().abs_diff(began)
}

/// Decodes one payload within the bound.
pub(super) fn bounded<T>(decode: impl FnOnce() -> T) -> T {
    /// Also if the application's type panics.
    struct Around {
        left: usize,
        began: usize,
    }
    impl Drop for Around {
        fn drop(&mut self) {
            TAKEN.set(TAKEN.get().saturating_add(DECODED_BYTES_MAX - LEFT.replace(self.left)));
            BEGAN.set(self.began);
        }
    }
    let _around = Around { left: LEFT.replace(DECODED_BYTES_MAX), began: BEGAN.replace(here()) };
    ELEMENT.set(usize::MAX);
    decode()
}

/// The same, and how many bytes the lists and maps took.
pub(crate) fn measured<T>(decode: impl FnOnce() -> T) -> (T, usize) {
    TAKEN.set(0);
    let decoded = decode();
    (decoded, TAKEN.take())
}

/// An element of a list.
#[inline]
pub(super) fn count_element<T, E: Error>() -> Result<(), E> {
    let bytes = const { beyond_wire::<T>(1) };
    ELEMENT.set(const { size_in_memory::<T>() });
    if bytes == 0 { Ok(()) } else { count(bytes) }
}

/// A struct of so many fields begins, as far as it was not counted as an element: it is in a box, which says nothing of
/// itself, or within another struct.
#[inline]
pub(super) fn count_struct<E: Error>(fields: usize) -> Result<(), E> {
    let counted = ELEMENT.take();
    match fields.saturating_mul(FIELD_BYTES).saturating_sub(counted) {
        0 => Ok(()),
        bytes => count(bytes),
    }
}

/// A value that is put into a box.
#[cfg(feature = "macros")]
#[inline]
pub(super) fn count_box<T, E: Error>() -> Result<(), E> {
    count(const { size_in_memory::<T>() })
}

/// So many elements of a list, before they are read.
#[cfg(feature = "macros")]
#[inline]
pub(super) fn count_elements<T, E: Error>(elements: usize) -> Result<(), E> {
    let bytes = const { beyond_wire::<T>(1) };
    if bytes == 0 { Ok(()) } else { count(bytes.saturating_mul(elements)) }
}

/// A key or a value of a map. Its tables are at least half full, except for that of the first entry.
#[inline]
pub(super) fn count_entry<T, E: Error>(is_first: bool) -> Result<(), E> {
    ELEMENT.set(const { size_in_memory::<T>() });
    if is_first {
        return count(const { ENTRIES_OF_NODE * size_of::<T>() + HEAP_BYTES });
    }
    count(const { beyond_wire::<T>(2) })
}

/// What so many of this type take beyond the byte that one has on the wire.
const fn beyond_wire<T>(places: usize) -> usize {
    let bytes = places * size_in_memory::<T>();
    if size_of::<T>() <= SMALL_BYTES { bytes.saturating_sub(1) } else { bytes }
}

const fn size_in_memory<T>() -> usize {
    size_of::<T>() + if needs_drop::<T>() { HEAP_BYTES } else { 0 }
}

#[inline]
fn count<E: Error>(bytes: usize) -> Result<(), E> {
    match LEFT.get().checked_sub(bytes) {
        Some(left) => {
            LEFT.set(left);
            Ok(())
        }
        None => Err(too_much()),
    }
}

#[cold]
fn too_much<E: Error>() -> E {
    E::custom(format!("the value takes more than {DECODED_BYTES_MAX} bytes in memory"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bothways_proto::SerializeType;
    use bytes::Bytes;
    use serde::Deserialize;

    use super::*;
    use crate::Payload;

    fn taken<T: Payload>(serialize: SerializeType, wire: Vec<u8>) -> Result<usize, String> {
        let (decoded, taken) = measured(|| T::decode(serialize, Bytes::from(wire)));
        decoded.map(|_| taken).map_err(|error| error.to_string())
    }

    /// A list in MessagePack: so many elements, each of these bytes.
    fn list(elements: usize, each: &[u8]) -> Vec<u8> {
        let len = u32::try_from(elements).expect("few").to_be_bytes();
        [&[0xdd][..], &len, &each.repeat(elements)].concat()
    }

    #[derive(Debug, Default, Deserialize, serde::Serialize)]
    #[serde(default)]
    struct Large {
        name: String,
        numbers: [u64; 16],
    }

    /// What takes more than its bytes is counted, whatever it is read as; what does not costs nothing.
    #[test]
    fn elements_count_by_their_types() {
        const N: usize = 1000;
        let msgpack = SerializeType::MSGPACK;
        for (taken, size) in [
            (taken::<Vec<String>>(msgpack, list(N, b"\xc0")), 24),
            (taken::<Vec<Vec<i64>>>(msgpack, list(N, b"\xc0")), 24),
            (taken::<Vec<Option<Large>>>(msgpack, list(N, b"\xc0")), 152),
            (taken::<Vec<Large>>(msgpack, list(N, b"\x80")), 152),
            (taken::<Vec<(u64, u64)>>(msgpack, list(N, b"\x92\x01\x01")), 16),
            (taken::<Vec<BTreeMap<u8, u8>>>(msgpack, list(N, b"\x81\x01\x01")), 24 + 2 * HEAP_BYTES),
            (
                taken::<BTreeMap<u32, Large>>(msgpack, {
                    let entries = (0..N as u32).flat_map(|key| [&[0xce][..], &key.to_be_bytes(), &[0x80]].concat());
                    [&[0xdf][..], &(N as u32).to_be_bytes()].concat().into_iter().chain(entries).collect()
                }),
                152,
            ),
        ] {
            let taken = taken.expect("it is read");
            assert!((N * size..=3 * N * (size + HEAP_BYTES)).contains(&taken), "{taken} for {size} bytes each");
        }
        for (taken, bytes) in [
            (taken::<Vec<u64>>(msgpack, list(N, b"\x01")), 7),
            (taken::<Vec<Option<u32>>>(msgpack, list(N, b"\xc0")), 7),
            (taken::<Vec<Box<u8>>>(msgpack, list(N, b"\x01")), 7 + HEAP_BYTES),
            (taken::<Vec<u16>>(msgpack, list(N, b"\x01")), 1),
        ] {
            assert_eq!(taken, Ok(N * bytes));
        }
        assert_eq!(taken::<Vec<u8>>(msgpack, list(N, b"\x01")), Ok(0));
        // Fields are within the struct that they belong to.
        assert_eq!(taken::<Large>(msgpack, b"\x81\xa4name\xa1x".to_vec()), Ok(0));
    }

    /// What is in a box says nothing of itself: a struct counts by its fields.
    #[test]
    fn what_is_in_boxes_counts_by_its_fields() {
        #[derive(Default, Deserialize, serde::Serialize)]
        #[serde(default)]
        struct Tree {
            left: Option<Box<Tree>>,
            right: Option<Box<Tree>>,
            name: String,
        }
        const N: usize = 1000;
        let msgpack = SerializeType::MSGPACK;
        let boxed = 2 * FIELD_BYTES;
        for each in [&b"\xc0"[..], b"\x80"] {
            let taken = taken::<Vec<Box<Large>>>(msgpack, list(N, each)).expect("it is read");
            // A byte of each box is on the wire.
            assert!(N * (boxed - 2) <= taken, "{taken}");
        }
        let tree = [&b"\x81\xa4left".repeat(100)[..], b"\x80"].concat();
        let of_tree = taken::<Tree>(msgpack, tree).expect("it is read");
        assert!(100 * size_of::<Tree>() <= of_tree, "{of_tree}");
        #[cfg(feature = "json")]
        {
            let json = format!("{}{{}}{}", r#"{"left":"#.repeat(100), "}".repeat(100));
            let of_tree = taken::<Tree>(SerializeType::JSON, json.into_bytes()).expect("it is read");
            assert!(100 * size_of::<Tree>() <= of_tree, "{of_tree}");
        }
    }

    #[cfg(feature = "json")]
    #[test]
    fn json_counts_alike() {
        let json = SerializeType::JSON;
        let text = |each: &str| format!("[{}]", vec![each; 1000].join(",")).into_bytes();
        let values = taken::<Vec<serde_json::Value>>(json, text("1")).expect("it is read");
        assert!((32_000..100_000).contains(&values), "{values}");
        let maps = taken::<Vec<serde_json::Value>>(json, text(r#"{"":1}"#)).expect("it is read");
        assert!((600_000..1_000_000).contains(&maps), "{maps}: a node each");
        let structs = taken::<Vec<Large>>(json, text(r#"{"name":"x"}"#)).expect("it is read");
        assert!((152_000..200_000).contains(&structs), "{structs}");
        assert_eq!(taken::<Vec<u64>>(json, text("1")), Ok(7000));
    }

    /// A list of which nothing is kept.
    #[derive(serde::Serialize)]
    struct Sink;

    impl<'de> Deserialize<'de> for Sink {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Visitor;
            impl<'de> serde::de::Visitor<'de> for Visitor {
                type Value = Sink;

                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("a list")
                }

                fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<Sink, A::Error> {
                    while list.next_element::<Large>()?.is_some() {}
                    Ok(Sink)
                }
            }
            deserializer.deserialize_seq(Visitor)
        }
    }

    /// F31. A list that would take more than the bound is an error before it does.
    #[test]
    fn a_value_stops_at_the_bound() {
        let size = size_of::<Large>() + HEAP_BYTES;
        let most = DECODED_BYTES_MAX / size;
        assert_eq!(taken::<Sink>(SerializeType::MSGPACK, list(most, b"\x80")), Ok(most * size));
        let error = taken::<Sink>(SerializeType::MSGPACK, list(most + 1, b"\x80")).expect_err("too much");
        assert!(error.contains("more than 268435456 bytes in memory"), "{error}");
        assert!(taken::<Vec<Large>>(SerializeType::MSGPACK, list(10, b"\x80")).is_ok(), "the next has its own bound");
    }
}
