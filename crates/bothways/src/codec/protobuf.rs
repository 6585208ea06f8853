//! Protocol Buffers (serialize type 2), by prost.

use std::ops::{Deref, DerefMut};

use ::bytes::Bytes;
use bothways_proto::SerializeType;
use prost::Message;

use super::{CodecError, Encode, Payload};

/// A prost message as a payload: the plain wire format, without an envelope.
///
/// An empty payload is a message in which every field has its default, as the format says.
///
/// ```
/// use bothways::{Encode, Payload, SerializeType, codec::Protobuf};
///
/// #[derive(Clone, PartialEq, prost::Message)]
/// struct Args {
///     #[prost(int32, tag = "1")]
///     a: i32,
///     #[prost(int32, tag = "2")]
///     b: i32,
/// }
///
/// let args = Protobuf(Args { a: 200, b: 100 });
/// let wire = args.encode(SerializeType::PROTOBUF)?;
/// assert_eq!(wire, &b"\x08\xc8\x01\x10\x64"[..]);
/// assert_eq!(Protobuf::<Args>::decode(SerializeType::PROTOBUF, wire)?.a, 200);
/// # Ok::<(), bothways::codec::CodecError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Protobuf<M>(pub M);

impl<M: Message + Default> Encode for Protobuf<M> {
    fn serialize_type(_preferred: SerializeType) -> SerializeType {
        SerializeType::PROTOBUF
    }

    fn encode(&self, serialize: SerializeType) -> Result<Bytes, CodecError> {
        match serialize {
            SerializeType::PROTOBUF => Ok(self.0.encode_to_vec().into()),
            _ => Err(CodecError::unsupported::<Self>(serialize, "protobuf")),
        }
    }
}

impl<M: Message + Default> Payload for Protobuf<M> {
    fn decode(serialize: SerializeType, payload: Bytes) -> Result<Self, CodecError> {
        match serialize {
            SerializeType::PROTOBUF => {
                let decoded = M::decode(payload).map(Self);
                decoded.map_err(|error| CodecError::codec(serialize, without_type_names(&error.to_string())))
            }
            _ => Err(CodecError::unsupported::<Self>(serialize, "protobuf")),
        }
    }
}

/// `Args.a: invalid wire type` → `a: invalid wire type`: the error goes to peers.
fn without_type_names(text: &str) -> String {
    let words = text.split(' ').map(|word| match word.rsplit_once('.') {
        Some((_, field)) if field.ends_with(':') => field,
        _ => word,
    });
    words.collect::<Vec<_>>().join(" ")
}

impl<M> Deref for Protobuf<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.0
    }
}

impl<M> DerefMut for Protobuf<M> {
    fn deref_mut(&mut self) -> &mut M {
        &mut self.0
    }
}

impl<M> From<M> for Protobuf<M> {
    fn from(message: M) -> Self {
        Self(message)
    }
}

#[cfg(test)]
mod tests {
    use hex_literal::hex;
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, PartialEq, Message)]
    struct Tree {
        #[prost(int32, tag = "1")]
        a: i32,
        #[prost(int32, tag = "2")]
        b: i32,
        #[prost(message, repeated, tag = "3")]
        children: Vec<Tree>,
        #[prost(int64, repeated, tag = "4")]
        numbers: Vec<i64>,
        #[prost(string, tag = "5")]
        text: String,
        #[prost(map = "string, bytes", tag = "6")]
        map: std::collections::HashMap<String, Vec<u8>>,
    }

    fn read(wire: &[u8]) -> Result<Protobuf<Tree>, CodecError> {
        Protobuf::decode(SerializeType::PROTOBUF, Bytes::copy_from_slice(wire))
    }

    #[test]
    fn a_message_travels_without_an_envelope() {
        let tree = Protobuf(Tree { a: 200, b: 100, ..Tree::default() });
        assert_eq!(tree.encode(SerializeType::PROTOBUF).unwrap(), hex!("08c8011064")[..]);
        assert_eq!(read(&hex!("08c8011064")).unwrap(), tree);
    }

    #[test]
    fn an_empty_payload_is_the_default_message() {
        assert_eq!(read(&[]).unwrap(), Protobuf::default());
    }

    #[test]
    fn an_error_names_the_field_and_not_the_type() {
        let error = read(&hex!("0a 01 61")).unwrap_err().to_string();
        assert!(error.contains(" a: invalid wire type") && !error.contains("Tree"), "{error}");
    }

    #[test]
    fn a_length_beyond_the_payload_is_an_error() {
        assert!(read(&hex!("2a ffffffff0f 61")).is_err());
        assert!(read(&hex!("22 ffffffffffffffff7f 01")).is_err());
    }

    #[test]
    fn a_message_nested_a_thousand_times_is_an_error() {
        let mut wire = Vec::new();
        for _ in 0..1_000 {
            let mut outer = vec![0x1a];
            prost::encoding::encode_varint(wire.len() as u64, &mut outer);
            outer.append(&mut wire);
            wire = outer;
        }
        assert!(read(&wire).is_err());
    }

    #[derive(Clone, PartialEq, Message)]
    struct Numbers {
        #[prost(int64, tag = "1")]
        int: i64,
        #[prost(sint32, tag = "2")]
        signed: i32,
        #[prost(uint64, tag = "3")]
        uint: u64,
        #[prost(fixed64, tag = "4")]
        fixed: u64,
        #[prost(double, tag = "5")]
        double: f64,
        #[prost(float, tag = "6")]
        single: f32,
        #[prost(bool, tag = "7")]
        flag: bool,
        #[prost(bytes = "vec", tag = "8")]
        bytes: Vec<u8>,
        #[prost(string, optional, tag = "9")]
        maybe: Option<String>,
    }

    proptest! {
        /// Floats to the last bit, NaN among them.
        #[test]
        fn every_value_arrives_as_it_was(
            (int, signed, uint, fixed) in any::<(i64, i32, u64, u64)>(),
            (double, single) in any::<(u64, u32)>(),
            (flag, bytes) in any::<(bool, Vec<u8>)>(),
            maybe in any::<Option<String>>(),
        ) {
            let floats = (f64::from_bits(double), f32::from_bits(single));
            let value = Numbers { int, signed, uint, fixed, double: floats.0, single: floats.1, flag, bytes, maybe };
            let wire = Protobuf(value.clone()).encode(SerializeType::PROTOBUF).unwrap();
            let Protobuf(read) = Protobuf::<Numbers>::decode(SerializeType::PROTOBUF, wire).unwrap();
            prop_assert_eq!((read.double.to_bits(), read.single.to_bits()), (double, single));
            let read = Numbers { double: 0.0, single: 0.0, ..read };
            prop_assert_eq!(read, Numbers { double: 0.0, single: 0.0, ..value });
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(wire in proptest::collection::vec(any::<u8>(), 0..256)) {
            if let Ok(tree) = read(&wire) {
                prop_assert_eq!(read(&tree.encode(SerializeType::PROTOBUF).unwrap()).unwrap(), tree);
            }
        }
    }
}
