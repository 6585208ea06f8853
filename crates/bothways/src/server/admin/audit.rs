//! What operators did, and what was refused: two rings, so that those who guess tokens wash out nothing of what was done.

use std::collections::VecDeque;

use parking_lot::Mutex;

use super::views::{AuditAsked, AuditEntry};
use crate::clock::unix_ms;

/// Pushes, kicks and drains that are kept.
const ACTS_MAX: usize = 1000;

/// Refused tries that are kept.
const REFUSALS_MAX: usize = 200;

/// Longer texts of an entry are cut: an entry takes 1 KiB at most.
const TEXT_BYTES_MAX: usize = 200;

/// Entries in one answer.
const PAGE_MAX: usize = 200;

/// See the module.
#[derive(Debug, Default)]
pub(in crate::server) struct Audit {
    rings: Mutex<Rings>,
}

#[derive(Debug, Default)]
struct Rings {
    /// The number of the last entry; they count from 1.
    last: u64,
    acts: VecDeque<AuditEntry>,
    refusals: VecDeque<AuditEntry>,
}

impl Audit {
    pub(super) fn note_act(
        &self,
        operator: &str,
        peer: &str,
        act: &'static str,
        target: &str,
        detail: &str,
        sessions: usize,
    ) {
        self.note(AuditEntry { sessions, ..entry(operator, peer, act, target, detail) });
    }

    /// Somebody was refused: `operator` is empty if nobody knows who it was.
    pub(in crate::server) fn note_refusal(&self, operator: &str, peer: &str, why: &str) {
        self.note(entry(operator, peer, "refused", "", why));
    }

    fn note(&self, mut entry: AuditEntry) {
        let mut rings = self.rings.lock();
        rings.last += 1;
        entry.number = rings.last;
        let (ring, max) = match &*entry.act {
            "refused" => (&mut rings.refusals, REFUSALS_MAX),
            _ => (&mut rings.acts, ACTS_MAX),
        };
        ring.push_back(entry);
        if max < ring.len() {
            ring.pop_front();
        }
    }

    /// A page, newest first.
    pub(super) fn page(&self, asked: &AuditAsked) -> Vec<AuditEntry> {
        let rings = self.rings.lock();
        let is_wanted = |entry: &&AuditEntry| asked.before.is_none_or(|before| entry.number < before);
        let max = asked.max.clamp(1, PAGE_MAX);
        let newest = |ring: &VecDeque<AuditEntry>| -> Vec<AuditEntry> {
            ring.iter().rev().filter(is_wanted).take(max).cloned().collect()
        };

        let mut page = newest(&rings.acts);
        page.extend(newest(&rings.refusals));
        drop(rings);
        page.sort_by_key(|entry| std::cmp::Reverse(entry.number));
        page.truncate(max);
        page
    }
}

fn entry(operator: &str, peer: &str, act: &str, target: &str, detail: &str) -> AuditEntry {
    let cut = |text: &str| text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned();
    AuditEntry {
        number: 0,
        at_ms: unix_ms(),
        operator: cut(operator),
        peer: cut(peer),
        act: act.to_owned(),
        target: cut(target),
        detail: cut(detail),
        sessions: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(audit: &Audit, before: Option<u64>, max: usize) -> Vec<u64> {
        audit.page(&AuditAsked { before, max }).iter().map(|entry| entry.number).collect()
    }

    /// Newest first, in pages; of too many the newest stay; and however many tries are refused, what was done stays.
    #[test]
    fn guesses_wash_out_no_act() {
        let audit = Audit::default();
        audit.note_act("ann", "tcp@10.0.0.1:1", "kick", "user bob", &"é".repeat(1000), 2);
        for _ in 0..10 * ACTS_MAX {
            audit.note_refusal("", "tcp@10.0.0.2:1", "the admin token is missing or wrong");
        }
        let last = 1 + 10 * ACTS_MAX as u64;
        assert_eq!(numbers(&audit, None, 2), [last, last - 1]);
        assert_eq!(numbers(&audit, Some(last - 1), 2), [last - 2, last - 3]);
        assert_eq!(numbers(&audit, None, usize::MAX).len(), PAGE_MAX);
        let oldest = audit.page(&AuditAsked { before: Some(last - REFUSALS_MAX as u64 + 1), max: 10 });
        assert_eq!((oldest.len(), oldest[0].sessions, &*oldest[0].act), (1, 2, "kick"));
        assert_eq!(oldest[0].detail.len(), TEXT_BYTES_MAX);

        for _ in 0..2 * ACTS_MAX {
            audit.note_act("ann", "", "push", "everyone", "News.Flash", 1);
        }
        let (mut before, mut seen) = (None, 0);
        while let Some(last) = numbers(&audit, before, PAGE_MAX).last() {
            seen += numbers(&audit, before, PAGE_MAX).len();
            before = Some(*last);
        }
        assert_eq!(seen, ACTS_MAX + REFUSALS_MAX);
    }
}
