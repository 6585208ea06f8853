//! A client's acknowledgements of the tracked pushes of its session, as they are on the wire.
//!
//! ```text
//!  _bw.ack  = RECEIVED,HANDLED        everything up to these offsets
//!  _bw.sack = A-B,C-D                 handled beyond that, in order
//!  _bw.nack = OFFSET:CODE,A-B:CODE    not handled; counts before the other two
//! ```

use std::ops::RangeInclusive;

use bothways_proto::{Metadata, keys};

use super::receipt::{Failure, Stage};

/// Ranges in one acknowledgement.
const AHEAD_MAX: usize = 32;

/// Failed offsets, and ranges, in one acknowledgement of our clients. With offsets of ten digits it takes less than 1 KiB
/// of metadata: a server may take no more, and would pass it over unread.
pub(crate) const TOLD_AT_ONCE: usize = 16;

/// Failed offsets that one message may name: more than a Bothways client has in a Hello.
const ENDS_MAX: usize = 2048;

/// What became of some offsets.
pub(crate) type End = (RangeInclusive<u64>, Stage);

/// What one acknowledgement says.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Acks {
    /// Received up to here.
    pub(crate) received: u64,
    /// Handled, or failed, up to here.
    pub(crate) handled: u64,
    /// Of single offsets, those that failed first: what comes later in the list does not change them.
    pub(crate) ends: Vec<End>,
}

impl Acks {
    /// `None`: it is none.
    pub(crate) fn from_metadata(metadata: &Metadata) -> Option<Self> {
        let (received, handled) = metadata.get(keys::ACK_OFFSETS)?.split_once(',')?;
        let (received, handled) = (received.parse().ok()?, handled.parse().ok()?);
        let mut ends = failed(metadata)?;
        if let Some(text) = metadata.get(keys::ACK_AHEAD).filter(|text| !text.is_empty()) {
            let ranges = text.split(',').map(|text| Some((range(text)?, Stage::Handled)));
            let ahead = ranges.take(AHEAD_MAX + 1).collect::<Option<Vec<End>>>()?;
            if AHEAD_MAX < ahead.len() {
                return None;
            }
            ends.extend(ahead);
        }
        Some(Self { received, handled, ends })
    }

    /// The pairs that say this.
    pub(crate) fn to_metadata(&self) -> Metadata {
        let mut metadata = Metadata::new().with(keys::ACK_OFFSETS, format!("{},{}", self.received, self.handled));
        let mut ahead = Vec::new();
        for (range, _) in self.ends.iter().filter(|(_, stage)| *stage == Stage::Handled) {
            ahead.push(format!("{}-{}", range.start(), range.end()));
        }
        if !ahead.is_empty() {
            metadata.insert(keys::ACK_AHEAD, ahead.join(","));
        }
        put_failed(&mut metadata, &self.ends);
        metadata
    }
}

/// The failed offsets that an acknowledgement or a Hello names. `None`: it names none in the right form.
pub(crate) fn failed(metadata: &Metadata) -> Option<Vec<End>> {
    let Some(text) = metadata.get(keys::ACK_FAILED).filter(|text| !text.is_empty()) else { return Some(Vec::new()) };
    let end = |text: &str| {
        let (offsets, code) = text.split_once(':')?;
        Some((range(offsets)?, stage_of(code)))
    };
    let ends = text.split(',').map(end).take(ENDS_MAX + 1).collect::<Option<Vec<End>>>()?;
    (ends.len() <= ENDS_MAX).then_some(ends)
}

/// Adds the pair that names the failed ones among these, if there are any.
pub(crate) fn put_failed(metadata: &mut Metadata, ends: &[End]) {
    let mut failed = Vec::new();
    for (range, stage) in ends {
        match (code_of(*stage), range.start() == range.end()) {
            (Some(code), true) => failed.push(format!("{}:{code}", range.start())),
            (Some(code), false) => failed.push(format!("{}-{}:{code}", range.start(), range.end())),
            (None, _) => {}
        }
    }
    if !failed.is_empty() {
        metadata.insert(keys::ACK_FAILED, failed.join(","));
    }
}

/// `A-B`, or `A` alone.
fn range(text: &str) -> Option<RangeInclusive<u64>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    (0 < first && first <= last).then_some(first..=last)
}

fn code_of(stage: Stage) -> Option<&'static str> {
    match stage {
        Stage::Failed(Failure::NoHandler) => Some("no_handler"),
        Stage::Failed(Failure::BadArguments) => Some("bad_arguments"),
        Stage::Failed(Failure::Error) => Some("error"),
        Stage::Failed(Failure::Panicked) => Some("panicked"),
        Stage::Superseded => Some("superseded"),
        Stage::Unknown => Some("unknown"),
        _ => None,
    }
}

/// A code that we do not know is an error of the client's application, of whatever kind.
fn stage_of(code: &str) -> Stage {
    match code {
        "no_handler" => Stage::Failed(Failure::NoHandler),
        "bad_arguments" => Stage::Failed(Failure::BadArguments),
        "panicked" => Stage::Failed(Failure::Panicked),
        "superseded" => Stage::Superseded,
        "unknown" => Stage::Unknown,
        _ => Stage::Failed(Failure::Error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(ack: &str, sack: Option<&str>, nack: Option<&str>) -> Option<Acks> {
        let mut metadata = Metadata::new().with(keys::ACK_OFFSETS, ack);
        for (key, value) in [(keys::ACK_AHEAD, sack), (keys::ACK_FAILED, nack)] {
            if let Some(value) = value {
                metadata.insert(key, value);
            }
        }
        Acks::from_metadata(&metadata)
    }

    #[test]
    fn what_is_said_is_what_is_heard() {
        let failures = [Failure::NoHandler, Failure::BadArguments, Failure::Error, Failure::Panicked];
        let stages = failures.map(Stage::Failed).into_iter().chain([Stage::Superseded, Stage::Unknown]);
        let mut ends: Vec<End> = (2..).zip(stages).map(|(offset, stage)| (offset..=offset, stage)).collect();
        ends.extend([(10..=20, Stage::Unknown), (3..=5, Stage::Handled), (9..=9, Stage::Handled)]);
        let acks = Acks { received: 30, handled: 1, ends };
        assert_eq!(Acks::from_metadata(&acks.to_metadata()), Some(acks));
        let plain = Acks { received: 3, handled: 2, ends: Vec::new() };
        assert_eq!(plain.to_metadata(), Metadata::new().with(keys::ACK_OFFSETS, "3,2"), "an old server takes no more");
        assert_eq!(
            said("1,0", None, Some("1:melted")).expect("well formed").ends,
            [(1..=1, Stage::Failed(Failure::Error))]
        );
    }

    #[test]
    fn what_is_no_acknowledgement_is_none() {
        for ack in ["", "1", "1;1", "a,b", "-1,0"] {
            assert_eq!(said(ack, None, None), None, "{ack}");
        }
        for sack in ["2-1", "0-1", "a-b", "1-2-3", "1-2,,3-4"] {
            assert_eq!(said("9,0", Some(sack), None), None, "{sack}");
        }
        for nack in ["1", ":error", "2-1:error", "0:error", "1:error,"] {
            assert_eq!(said("9,0", None, Some(nack)), None, "{nack}");
        }
        let ranges = |count: u64| (1..=count).map(|n| format!("{n}-{n}")).collect::<Vec<_>>().join(",");
        assert!(said("9,0", Some(&ranges(32)), None).is_some());
        assert_eq!(said("9,0", Some(&ranges(33)), None), None);
        assert_eq!(said("9,0", None, Some(&vec!["1:error"; ENDS_MAX + 1].join(","))), None);
    }
}
