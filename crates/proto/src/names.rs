//! The service path and method of a message, as they travel.

/// The names of a service and of one of its methods: two texts, or the part of a frame that holds both.
///
/// ```text
///  u32 │ service path │ u32 │ service method
/// ```
///
/// A message keeps this part as it came, checked once for UTF-8. A reply repeats it with one copy, and a
/// route is found by it without making texts of it.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a>(Form<'a>);

#[derive(Clone, Copy, Debug)]
enum Form<'a> {
    Texts(&'a str, &'a str),
    Block(&'a [u8]),
}

impl<'a> Names<'a> {
    /// The names of this service and of this method.
    pub const fn new(service_path: &'a str, service_method: &'a str) -> Self {
        Self(Form::Texts(service_path, service_method))
    }

    /// The part of a frame that was checked before.
    pub(crate) const fn of_block(block: &'a [u8]) -> Self {
        Self(Form::Block(block))
    }

    /// Bytes that they take in a frame, with their two lengths. `usize::MAX` if it is beyond counting.
    pub fn block_len(&self) -> usize {
        match self.0 {
            Form::Texts(path, method) => path.len().saturating_add(method.len()).saturating_add(8),
            Form::Block(block) => block.len(),
        }
    }

    /// Appends them as they travel.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        match self.0 {
            Form::Texts(path, method) => {
                for name in [path, method] {
                    out.extend_from_slice(&(name.len() as u32).to_be_bytes());
                    out.extend_from_slice(name.as_bytes());
                }
            }
            Form::Block(block) => out.extend_from_slice(block),
        }
    }

    /// Them as they travel: what [`Message::names_block`](crate::Message::names_block) answers for a message
    /// with these names, and for no other.
    pub fn to_block(&self) -> Vec<u8> {
        let mut block = Vec::with_capacity(self.block_len());
        self.put(&mut block);
        block
    }
}

#[cfg(test)]
mod tests {
    use hex_literal::hex;

    use super::*;
    use crate::{Header, Message, Metadata, Seq, SerializeType};

    /// The block of two names is the part of a frame that holds them.
    #[test]
    fn the_block_is_the_part_of_a_frame() {
        let header = Header::request(Seq::new(1), SerializeType::RAW);
        let message = Message::new(header, "Chat", "say", &Metadata::new(), b"hi");
        assert_eq!(message.names_block(), hex!("00000004 43686174  00000003 736179"));
        assert_eq!(Names::new("Chat", "say").to_block(), message.names_block());
        assert_eq!(message.names().to_block(), message.names_block());
    }

    /// Other names have another block, also where the letters are the same.
    #[test]
    fn other_names_have_another_block() {
        assert_ne!(Names::new("ab", "c").to_block(), Names::new("a", "bc").to_block());
        assert_ne!(Names::new("", "abc").to_block(), Names::new("abc", "").to_block());
    }
}
