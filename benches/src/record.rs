//! The [`pair::Record`] of our own sides, as an application of ours has it: with the code for MessagePack that
//! `#[message]` makes. Same names of its fields, same bytes.

use std::sync::LazyLock;

use crate::pair;

/// See the module.
#[bothways::message]
#[derive(Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "as those of `pair::Record`")]
pub struct Record {
    pub id: u64,
    pub name: String,
    pub address: String,
    pub tags: Vec<String>,
    pub scores: Vec<i64>,
    pub balance: f64,
    pub active: bool,
    pub notes: String,
}

impl From<pair::Record> for Record {
    fn from(record: pair::Record) -> Self {
        let pair::Record { id, name, address, tags, scores, balance, active, notes } = record;
        Self { id, name, address, tags, scores, balance, active, notes }
    }
}

impl Record {
    /// As [`pair::Record::sample`].
    pub fn sample(number: u64) -> Self {
        static SAMPLE: LazyLock<Record> = LazyLock::new(|| pair::Record::sample(0).into());
        Self { id: pair::id_of(number), ..SAMPLE.clone() }
    }

    /// As [`pair::Record::check`].
    ///
    /// # Errors
    /// It is not the record that was sent.
    pub fn check(&self, got: &Self) -> anyhow::Result<()> {
        anyhow::ensure!(self == got, "a reply with another record than its call");
        Ok(())
    }
}

/// The same for a handler that reads it where it lies.
#[bothways::message]
#[derive(Debug, Default)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "as those of `pair::Record`")]
pub struct Borrowed<'a> {
    pub id: u64,
    pub name: &'a str,
    pub address: &'a str,
    #[serde(borrow)]
    pub tags: Vec<&'a str>,
    pub scores: Vec<i64>,
    pub balance: f64,
    pub active: bool,
    pub notes: &'a str,
}

#[cfg(test)]
mod tests {
    use bothways::{Encode, SerializeType, codec};

    use super::*;

    /// By which type it is written makes no difference.
    #[test]
    fn all_forms_have_the_same_bytes() {
        for number in [0, 1, 77 << 32] {
            let theirs = pair::Record::sample(number).encode(SerializeType::MSGPACK).expect("it can travel so");
            let ours = Record::sample(number).encode(SerializeType::MSGPACK).expect("it can travel so");
            assert_eq!(theirs, ours);
            let borrowed: Borrowed<'_> = codec::decode_borrowed(SerializeType::MSGPACK, &ours).expect("it is one");
            assert_eq!(borrowed.encode(SerializeType::MSGPACK).expect("it can travel so"), ours);
        }
    }
}
