//! The first events of a session, packed: connected, bound to a user, subscribed to topics. Three such events take some
//! 60 bytes, where records would take 200 beside their texts. They never change, and when something else happens they
//! become records.

use std::sync::Arc;

use super::log::{Record, What, text};
use crate::connection::ConnectionId;

/// Packed events at most: beyond them records are no loss.
const EVENTS: u32 = 32;

/// Events, each as a tag, its microseconds, and its number or its text. Numbers are in groups of seven bits, the
/// lowest first, of which all but the last have the eighth set; a text has its length before it.
#[derive(Debug, Default)]
pub(super) struct Packed {
    packed: Box<[u8]>,
    len: u32,
}

const CONNECTED: u8 = 0;
const RESUMABLE: u8 = 1;
const BOUND: u8 = 2;
const UNBOUND: u8 = 3;
const SUBSCRIBED: u8 = 4;
const UNSUBSCRIBED: u8 = 5;

impl Packed {
    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    /// Takes an event in; answers its number. `None`: it is not packed any more.
    pub(super) fn push(&mut self, record: &Record, events_max: u32) -> Option<u64> {
        if EVENTS.min(events_max) <= self.len {
            return None;
        }

        let (tag, id, name) = match &record.what {
            What::Connected(connection) => (CONNECTED, Some(connection.get()), None),
            What::Resumable => (RESUMABLE, None, None),
            What::Bound(Some(user)) => (BOUND, None, Some(user)),
            What::Bound(None) => (UNBOUND, None, None),
            What::Subscribed(pattern) => (SUBSCRIBED, None, Some(pattern)),
            What::Unsubscribed(pattern) => (UNSUBSCRIBED, None, Some(pattern)),
            _ => return None,
        };

        let name = name.map_or("", |name| name);
        let has_len = matches!(tag, BOUND | SUBSCRIBED | UNSUBSCRIBED);
        let numbers = [Some(record.at), id, has_len.then_some(name.len() as u64)];
        let numbers = numbers.iter().flatten();
        let mut packed = Vec::with_capacity(
            self.packed.len() + 1 + numbers.clone().map(|number| number_len(*number)).sum::<usize>() + name.len(),
        );

        packed.extend_from_slice(&self.packed);
        packed.push(tag);
        numbers.for_each(|number| put_number(&mut packed, *number));
        packed.extend_from_slice(name.as_bytes());
        self.packed = packed.into();
        self.len += 1;
        Some(u64::from(self.len) - 1)
    }

    /// Oldest first.
    pub(super) fn records(&self) -> impl Iterator<Item = Record> {
        let mut rest = &*self.packed;
        std::iter::from_fn(move || take_record(&mut rest))
    }
}

fn number_len(number: u64) -> usize {
    (number | 1).ilog2() as usize / 7 + 1
}

fn put_number(packed: &mut Vec<u8>, mut number: u64) {
    while 0x80 <= number {
        packed.push(number as u8 | 0x80);
        number >>= 7;
    }
    packed.push(number as u8);
}

fn take_number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let (group, tail) = rest.split_first()?;
        *rest = tail;
        number |= u64::from(group & 0x7f) << shift;
        if *group < 0x80 {
            break;
        }
    }
    Some(number)
}

fn take_text(rest: &mut &[u8]) -> Option<Arc<str>> {
    let len = take_number(rest)? as usize;
    let (bytes, tail) = rest.split_at_checked(len)?;
    *rest = tail;
    Some(text(str::from_utf8(bytes).ok()?))
}

fn take_record(rest: &mut &[u8]) -> Option<Record> {
    let (tag, tail) = rest.split_first()?;
    *rest = tail;
    let at = take_number(rest)?;
    let what = match *tag {
        CONNECTED => What::Connected(ConnectionId::new(take_number(rest)?)),
        RESUMABLE => What::Resumable,
        BOUND => What::Bound(Some(take_text(rest)?)),
        UNBOUND => What::Bound(None),
        SUBSCRIBED => What::Subscribed(take_text(rest)?),
        _ => What::Unsubscribed(take_text(rest)?),
    };
    Some(Record { at, what })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn what() -> impl Strategy<Value = What> {
        let name = || ".{0,40}".prop_map(|name| text(&name));
        prop_oneof![
            any::<u64>().prop_map(|number| What::Connected(ConnectionId::new(number))),
            any::<()>().prop_map(|()| What::Resumable),
            prop::option::of(name()).prop_map(What::Bound),
            name().prop_map(What::Subscribed),
            name().prop_map(What::Unsubscribed),
        ]
    }

    proptest! {
        /// What is packed is told as it was noted, and with its number.
        #[test]
        fn it_tells_what_was_noted(events in prop::collection::vec((any::<u64>(), what()), 0..40), max in 0..40_u32) {
            let mut first = Packed::default();
            let mut noted = Vec::new();
            for (at, what) in events {
                let record = Record { at, what };
                let number = first.push(&record, max);
                let expected = (noted.len() < max.min(EVENTS) as usize).then_some(noted.len() as u64);
                prop_assert_eq!(number, expected);
                if number.is_some() {
                    noted.push(record);
                }
            }
            let told: Vec<String> = first.records().map(|record| format!("{record:?}")).collect();
            let noted: Vec<String> = noted.iter().map(|record| format!("{record:?}")).collect();
            prop_assert_eq!(told.len(), first.len());
            prop_assert_eq!(told, noted);
        }
    }

    /// The usual first events are small.
    #[test]
    fn a_name_and_a_topic_are_nearly_all_of_it() {
        let mut first = Packed::default();
        let minute = 60_000_000;
        for what in [
            What::Connected(ConnectionId::new(1_000_000)),
            What::Bound(Some("ann".into())),
            What::Subscribed("news".into()),
        ] {
            first.push(&Record { at: minute, what }, 64);
        }
        assert_eq!(first.packed.len(), "ann".len() + "news".len() + 20);
    }

    /// What a number takes is known before it is put.
    #[test]
    fn a_number_takes_what_it_is_said_to_take() {
        for number in (0..64).flat_map(|bits| [(1 << bits) - 1, 1 << bits]).chain([u64::MAX]) {
            let mut packed = Vec::new();
            put_number(&mut packed, number);
            assert_eq!(number_len(number), packed.len(), "{number}");
        }
    }

    /// A number takes as many bytes as it is said to take.
    #[test]
    fn a_number_takes_as_many_bytes_as_it_is_said_to_take() {
        for bits in 0..u64::BITS {
            for number in [(1_u64 << bits) - 1, 1 << bits, u64::MAX >> bits] {
                let mut packed = Vec::new();
                put_number(&mut packed, number);
                assert_eq!(packed.len(), number_len(number), "{number}");
                assert_eq!(take_number(&mut &*packed), Some(number));
            }
        }
    }
}
