//! Thrift's binary protocol (serialize type 4), by Apache's own crate.

use std::ops::{Deref, DerefMut};

use ::bytes::Bytes;
use bothways_proto::SerializeType;
use thrift::{
    TConfiguration,
    protocol::{TBinaryInputProtocol, TBinaryOutputProtocol, TSerializable},
};

use super::{CodecError, Encode, Payload};

/// A Thrift struct as a payload: the binary protocol (not the compact one), without a message header.
///
/// `T` is what the Thrift compiler generates for Rust. No length from the wire is believed beyond
/// the size of the payload, and structs nest at most 64 deep.
///
/// ```
/// use bothways::{Encode, Payload, SerializeType, codec::Thrift};
/// use thrift::protocol::{TFieldIdentifier, TInputProtocol, TOutputProtocol, TSerializable, TStructIdentifier, TType};
///
/// #[derive(Debug, Default, PartialEq)]
/// struct Args {
///     a: i32,
/// }
///
/// // What the Thrift compiler generates, in short.
/// impl TSerializable for Args {
///     fn read_from_in_protocol(input: &mut dyn TInputProtocol) -> thrift::Result<Self> {
///         let mut args = Args::default();
///         input.read_struct_begin()?;
///         loop {
///             let field = input.read_field_begin()?;
///             match (field.id, field.field_type) {
///                 (_, TType::Stop) => break,
///                 (Some(1), TType::I32) => args.a = input.read_i32()?,
///                 (_, other) => input.skip(other)?,
///             }
///             input.read_field_end()?;
///         }
///         input.read_struct_end()?;
///         Ok(args)
///     }
///
///     fn write_to_out_protocol(&self, output: &mut dyn TOutputProtocol) -> thrift::Result<()> {
///         output.write_struct_begin(&TStructIdentifier::new("Args"))?;
///         output.write_field_begin(&TFieldIdentifier::new("a", TType::I32, 1))?;
///         output.write_i32(self.a)?;
///         output.write_field_end()?;
///         output.write_field_stop()?;
///         output.write_struct_end()
///     }
/// }
///
/// let wire = Thrift(Args { a: 200 }).encode(SerializeType::THRIFT)?;
/// assert_eq!(wire, &b"\x08\x00\x01\x00\x00\x00\xc8\x00"[..]);
/// assert_eq!(Thrift::decode(SerializeType::THRIFT, wire)?, Thrift(Args { a: 200 }));
/// # Ok::<(), bothways::codec::CodecError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Thrift<T>(pub T);

impl<T: TSerializable + Send> Encode for Thrift<T> {
    fn serialize_type(_preferred: SerializeType) -> SerializeType {
        SerializeType::THRIFT
    }

    fn encode(&self, serialize: SerializeType) -> Result<Bytes, CodecError> {
        if serialize != SerializeType::THRIFT {
            return Err(CodecError::unsupported::<Self>(serialize, "thrift"));
        }
        let mut payload = Vec::new();
        let mut output = TBinaryOutputProtocol::with_config(&mut payload, true, TConfiguration::no_limits());
        self.0.write_to_out_protocol(&mut output).map_err(|error| CodecError::codec(serialize, error))?;
        Ok(payload.into())
    }
}

impl<T: TSerializable + Send> Payload for Thrift<T> {
    fn decode(serialize: SerializeType, payload: Bytes) -> Result<Self, CodecError> {
        if serialize != SerializeType::THRIFT {
            return Err(CodecError::unsupported::<Self>(serialize, "thrift"));
        }
        if payload.is_empty() {
            return Err(CodecError::Empty { serialize });
        }
        // Everything that has a length takes at least that many bytes.
        let most = Some(payload.len());
        let limits = TConfiguration::builder()
            .max_frame_size(most)
            .max_message_size(most)
            .max_container_size(most)
            .max_string_size(most)
            .build()
            .expect("the frame is as large as the message");
        let mut input = TBinaryInputProtocol::with_config(&payload[..], true, limits);
        T::read_from_in_protocol(&mut input).map(Self).map_err(|error| CodecError::codec(serialize, error))
    }
}

impl<T> Deref for Thrift<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Thrift<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T> From<T> for Thrift<T> {
    fn from(value: T) -> Self {
        Self(value)
    }
}

#[cfg(test)]
mod tests {
    use hex_literal::hex;
    use proptest::prelude::*;
    use thrift::protocol::{
        TFieldIdentifier, TInputProtocol, TListIdentifier, TOutputProtocol, TStructIdentifier, TType,
    };

    use super::*;

    /// A struct of the shape that the Thrift compiler generates: numbers, text, and itself in a list.
    #[derive(Clone, Debug, Default, PartialEq)]
    struct Tree {
        a: i32,
        b: i32,
        text: String,
        children: Vec<Tree>,
    }

    impl TSerializable for Tree {
        fn read_from_in_protocol(input: &mut dyn TInputProtocol) -> thrift::Result<Self> {
            let mut tree = Self::default();
            input.read_struct_begin()?;
            loop {
                let field = input.read_field_begin()?;
                match (field.id, field.field_type) {
                    (_, TType::Stop) => break,
                    (Some(1), TType::I32) => tree.a = input.read_i32()?,
                    (Some(2), TType::I32) => tree.b = input.read_i32()?,
                    (Some(3), TType::String) => tree.text = input.read_string()?,
                    (Some(4), TType::List) => {
                        let list = input.read_list_begin()?;
                        tree.children = Vec::with_capacity(thrift::protocol::prealloc_size(list.size));
                        for _ in 0..list.size {
                            tree.children.push(Self::read_from_in_protocol(input)?);
                        }
                        input.read_list_end()?;
                    }
                    (_, other) => input.skip(other)?,
                }
                input.read_field_end()?;
            }
            input.read_struct_end()?;
            Ok(tree)
        }

        fn write_to_out_protocol(&self, output: &mut dyn TOutputProtocol) -> thrift::Result<()> {
            output.write_struct_begin(&TStructIdentifier::new("Tree"))?;
            for (id, number) in [(1, self.a), (2, self.b)] {
                output.write_field_begin(&TFieldIdentifier::new("", TType::I32, id))?;
                output.write_i32(number)?;
                output.write_field_end()?;
            }
            if !self.text.is_empty() {
                output.write_field_begin(&TFieldIdentifier::new("", TType::String, 3))?;
                output.write_string(&self.text)?;
                output.write_field_end()?;
            }
            if !self.children.is_empty() {
                output.write_field_begin(&TFieldIdentifier::new("", TType::List, 4))?;
                let len = self.children.len().try_into().expect("few children");
                output.write_list_begin(&TListIdentifier::new(TType::Struct, len))?;
                for child in &self.children {
                    child.write_to_out_protocol(output)?;
                }
                output.write_list_end()?;
                output.write_field_end()?;
            }
            output.write_field_stop()?;
            output.write_struct_end()
        }
    }

    fn read(wire: &[u8]) -> Result<Thrift<Tree>, CodecError> {
        Thrift::decode(SerializeType::THRIFT, Bytes::copy_from_slice(wire))
    }

    #[test]
    fn a_struct_travels_in_the_binary_protocol_without_a_header() {
        let wire = hex!("08 0001 000000c8 08 0002 00000064 00");
        let tree = Thrift(Tree { a: 200, b: 100, ..Tree::default() });
        assert_eq!(tree.encode(SerializeType::THRIFT).unwrap(), wire[..]);
        assert_eq!(read(&wire).unwrap(), tree);
    }

    #[test]
    fn unknown_fields_are_skipped_and_trailing_bytes_ignored() {
        let wire = hex!("0b 0063 00000002 6869  0f 0064 0b 00000001 00000000  08 0001 00000001 00  ffff");
        assert_eq!(read(&wire).unwrap().a, 1);
    }

    #[test]
    fn an_empty_payload_is_an_error_that_says_so() {
        assert!(matches!(read(&[]), Err(CodecError::Empty { .. })));
    }

    #[test]
    fn a_length_beyond_the_payload_is_refused_before_memory_is_taken() {
        assert!(read(&hex!("0b 0003 7fffffff 61")).is_err(), "text of two gigabytes");
        assert!(read(&hex!("0b 0003 ffffffff 61")).is_err(), "text of minus one byte");
        assert!(read(&hex!("0f 0004 0c 7fffffff")).is_err(), "a list of two thousand million structs");
        assert!(read(&hex!("0d 0063 0b0b 7fffffff 00000000")).is_err(), "a map that is skipped");
    }

    #[test]
    fn a_struct_nested_a_thousand_times_is_an_error() {
        let known: Vec<u8> = hex!("0f 0004 0c 00000001").repeat(1_000);
        assert!(read(&known).is_err());
        let skipped: Vec<u8> = hex!("0c 0063").repeat(1_000);
        assert!(read(&skipped).is_err());
    }

    fn trees() -> impl Strategy<Value = Tree> {
        let leaf =
            (any::<i32>(), any::<i32>(), ".{0,9}").prop_map(|(a, b, text)| Tree { a, b, text, children: vec![] });
        leaf.prop_recursive(4, 16, 4, |inner| {
            (any::<i32>(), proptest::collection::vec(inner, 0..4)).prop_map(|(a, children)| Tree {
                a,
                children,
                ..Tree::default()
            })
        })
    }

    /// A field of each kind that is no `i32`.
    #[derive(Clone, Debug, Default, PartialEq)]
    struct Numbers {
        flag: bool,
        byte: i8,
        short: i16,
        long: i64,
        double: u64,
        bytes: Vec<u8>,
    }

    impl TSerializable for Numbers {
        fn read_from_in_protocol(input: &mut dyn TInputProtocol) -> thrift::Result<Self> {
            let mut numbers = Self::default();
            input.read_struct_begin()?;
            loop {
                let field = input.read_field_begin()?;
                match (field.id, field.field_type) {
                    (_, TType::Stop) => break,
                    (Some(1), TType::Bool) => numbers.flag = input.read_bool()?,
                    (Some(2), TType::I08) => numbers.byte = input.read_i8()?,
                    (Some(3), TType::I16) => numbers.short = input.read_i16()?,
                    (Some(4), TType::I64) => numbers.long = input.read_i64()?,
                    (Some(5), TType::Double) => numbers.double = input.read_double()?.to_bits(),
                    (Some(6), TType::String) => numbers.bytes = input.read_bytes()?,
                    (_, other) => input.skip(other)?,
                }
                input.read_field_end()?;
            }
            input.read_struct_end()?;
            Ok(numbers)
        }

        fn write_to_out_protocol(&self, output: &mut dyn TOutputProtocol) -> thrift::Result<()> {
            output.write_struct_begin(&TStructIdentifier::new("Numbers"))?;
            output.write_field_begin(&TFieldIdentifier::new("", TType::Bool, 1))?;
            output.write_bool(self.flag)?;
            output.write_field_begin(&TFieldIdentifier::new("", TType::I08, 2))?;
            output.write_i8(self.byte)?;
            output.write_field_begin(&TFieldIdentifier::new("", TType::I16, 3))?;
            output.write_i16(self.short)?;
            output.write_field_begin(&TFieldIdentifier::new("", TType::I64, 4))?;
            output.write_i64(self.long)?;
            output.write_field_begin(&TFieldIdentifier::new("", TType::Double, 5))?;
            output.write_double(f64::from_bits(self.double))?;
            output.write_field_begin(&TFieldIdentifier::new("", TType::String, 6))?;
            output.write_bytes(&self.bytes)?;
            output.write_field_stop()?;
            output.write_struct_end()
        }
    }

    proptest! {
        /// Floats to the last bit, NaN among them.
        #[test]
        fn every_value_arrives_as_it_was(
            (flag, byte, short, long, double) in any::<(bool, i8, i16, i64, u64)>(),
            bytes in any::<Vec<u8>>(),
        ) {
            let value = Numbers { flag, byte, short, long, double, bytes };
            let wire = Thrift(value.clone()).encode(SerializeType::THRIFT).unwrap();
            let Thrift(read) = Thrift::<Numbers>::decode(SerializeType::THRIFT, wire).unwrap();
            prop_assert_eq!(read, value);
        }

        #[test]
        fn every_struct_survives(tree in trees()) {
            prop_assert_eq!(read(&Thrift(tree.clone()).encode(SerializeType::THRIFT).unwrap()).unwrap().0, tree);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(wire in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = read(&wire);
        }

        #[test]
        fn no_damaged_struct_makes_the_decoder_panic(tree in trees(), at in any::<proptest::sample::Index>(), byte: u8) {
            let mut wire = Thrift(tree).encode(SerializeType::THRIFT).unwrap().to_vec();
            *at.get_mut(&mut wire[..]) = byte;
            let _ = read(&wire);
        }
    }
}
