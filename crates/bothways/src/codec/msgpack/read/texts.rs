//! Lists of short texts, which are checked for UTF-8 together.
//!
//! The check of one short text is mostly its beginning and its end, which are looked at byte by byte: it takes some 100
//! instructions for 13 bytes, and 10 for as many in the middle of a long text. So the texts of a list are copied behind
//! each other, and checked as one. A part of what is UTF-8 is UTF-8 as well, if it begins and ends where a character does.

use super::Reader;
use crate::codec::msgpack::mark;

/// Texts that are checked together at most.
pub(super) const TEXTS: usize = 8;

/// Room for each: a text is short if its length is part of its first byte.
const TEXT_BYTES: usize = 32;

impl Reader<'_> {
    /// Appends the short texts that come next, up to [`TEXTS`] of them and `most`. None if the first is no short text,
    /// or one of them is not UTF-8. True if there were some.
    pub(super) fn short_texts(&mut self, texts: &mut Vec<String>, most: usize) -> bool {
        let (mut bytes, mut lens) = ([0; TEXTS * TEXT_BYTES], [0; TEXTS]);
        let (mut rest, mut count, mut end) = (self.rest, 0, 0);

        while count < TEXTS.min(most) {
            let [marker @ mark::FIX_STR..=mark::FIX_STR_LAST, ref behind @ ..] = *rest else { break };
            let len = usize::from(marker - mark::FIX_STR);
            let Some((text, after)) = behind.split_at_checked(len) else { break };
            match (behind.first_chunk::<TEXT_BYTES>(), bytes[end..].first_chunk_mut()) {
                // More than the text: so much is two moves and no call. The next text goes over the rest.
                (Some(chunk), Some(place)) => *place = *chunk,
                _ => bytes[end..end + len].copy_from_slice(text),
            }
            lens[count] = len;
            (rest, count, end) = (after, count + 1, end + len);
        }

        let Ok(mut together) = str::from_utf8(&bytes[..end]) else { return false };
        let before = texts.len();
        for &len in &lens[..count] {
            let Some((text, others)) = together.split_at_checked(len) else {
                texts.truncate(before);
                return false;
            };
            texts.push(text.to_owned());
            together = others;
        }

        self.rest = rest;
        count != 0
    }
}
