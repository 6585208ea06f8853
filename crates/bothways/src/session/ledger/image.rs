//! A ledger as it goes to another node: all that its client is owed, and how far the client is. Without a clock: of what
//! expires the time that is left travels.
//!
//! It is taken when its session has no connection: nothing is half written then, and nothing is left that does not
//! outlive a connection. The stamps of topics stay behind, as they count the messages of one node.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bothways_proto::{Limits, Message, keys};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Bounds, Entry, Ledger, Pages, Terms,
    book::{Book, Queued, Sent},
};
use crate::session::{
    history::TopicPlace,
    keys::{Holder, KeyHash, Keyed},
    push::{Class, Origin, Priority},
    receipt::{Stage, Ticket},
};

/// See the module.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(in crate::session) struct LedgerImage {
    next_offset: u64,
    received: u64,
    handled: u64,
    missed: u64,
    dropped: u64,
    sent: Vec<SentImage>,
    /// What waits, by priority.
    queues: Vec<Vec<EntryImage>>,
    keys: Vec<KeyImage>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct SentImage {
    offset: u64,
    may_have_left: bool,
    entry: EntryImage,
}

/// A key that was taken, and by whom.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct KeyImage {
    key: KeyHash,
    by: KeyHolder,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
enum KeyHolder {
    /// One that has come to its end.
    Gone,
    /// One that was written, of which no more will be known.
    Settled,
    /// The entry at this place among all.
    Entry(u32),
}

/// One push that its client is owed.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct EntryImage {
    /// `None`: it is tracked. Of newest values the key.
    latest: Option<String>,
    priority: u8,
    frame: Bytes,
    /// What a plain client would see, if that is another frame.
    plain: Option<Bytes>,
    key: Option<KeyHash>,
    /// In microseconds.
    left: Option<u64>,
    is_framework: bool,
    stage: u8,
    /// Under which its former node hears of it; 0: nobody asks.
    pub(crate) number: u64,
    /// Of one that follows its session: who hears of it when that node is gone, the first of these that lives.
    #[serde(default)]
    pub(crate) behind: Vec<u64>,
}

impl EntryImage {
    pub(in crate::session) fn of(entry: &Entry, now: Duration, number: u64) -> Self {
        let left = entry.expires.map(|at| at.saturating_sub(now).as_micros());
        Self {
            latest: match &entry.class {
                Class::Latest(key) => Some(key.clone()),
                Class::Tracked | Class::Durable { .. } | Class::Fire => None,
            },
            priority: entry.priority.index() as u8,
            frame: entry.frame.clone(),
            plain: entry.keyed.as_ref().map(|keyed| keyed.plain.clone()),
            key: entry.keyed.as_ref().and_then(|keyed| keyed.hash),
            left: left.map(|left| u64::try_from(left).unwrap_or(u64::MAX)),
            is_framework: entry.origin == Origin::Framework,
            stage: entry.ticket.stage().index() as u8,
            number,
            behind: Vec::new(),
        }
    }

    /// As this, under another number.
    pub(in crate::session) fn numbered(self, number: u64) -> Self {
        Self { number, ..self }
    }

    /// The topic that it was published to, and where it stands there, if that has a history.
    pub(in crate::session) fn place(&self, limits: &Limits) -> Option<(String, TopicPlace)> {
        let message = Message::parse(self.frame.clone(), limits).ok()?;
        let metadata = message.metadata();
        Some((metadata.get(keys::TOPIC)?.to_owned(), TopicPlace::of(&metadata)?))
    }

    /// As this, after so long on its way.
    pub(crate) fn aged(self, waited: Duration) -> Self {
        let waited = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
        Self { left: self.left.map(|left| left.saturating_sub(waited)), ..self }
    }

    /// Its time to live is over after so long on its way.
    pub(crate) fn is_over(&self, waited: Duration) -> bool {
        self.left.is_some_and(|left| u128::from(left) <= waited.as_micros())
    }

    pub(in crate::session) fn stage(&self) -> Stage {
        Stage::of_index(self.stage)
    }

    /// `None`: it is none.
    pub(in crate::session) fn open(self, now: Duration, ticket: Ticket) -> Option<Entry> {
        let keyed = self.plain.map(|plain| Arc::new(Keyed { hash: self.key, plain }));
        Some(Entry {
            class: self.latest.map_or(Class::Tracked, Class::Latest),
            priority: Priority::of_index(self.priority)?,
            frame: self.frame,
            keyed,
            expires: self.left.map(|left| now.saturating_add(Duration::from_micros(left))),
            origin: if self.is_framework { Origin::Framework } else { Origin::Push },
            ticket,
        })
    }
}

impl Ledger {
    /// What goes to another node. `number` is asked once for each push whose end is still open, in the order of
    /// [`Self::depart`]. The session has no connection, and nothing changes here until it is known where it goes on.
    pub(in crate::session) fn export(
        &mut self,
        now: Duration,
        number: &mut dyn FnMut(&Ticket) -> u64,
    ) -> Option<LedgerImage> {
        debug_assert!(!self.terms().connected, "it is taken between two connections");
        Some(self.book_mut()?.export(now, number))
    }

    /// It goes on elsewhere: returns the tickets of all whose ends are open, in the order in which their numbers were
    /// asked for. The ledger is blank then.
    pub(in crate::session) fn depart(&mut self) -> Vec<Ticket> {
        let terms = self.terms().clone();
        let Pages::Book(mut book) = std::mem::replace(&mut self.0, Pages::Blank(terms)) else { return Vec::new() };
        book.depart()
    }

    /// A ledger that came from another node, whose session has no connection yet. `ticket` makes that of each push, at
    /// the stage at which it stood. `None`: this is none.
    pub(in crate::session) fn import(
        bounds: &Arc<Bounds>,
        image: Option<LedgerImage>,
        now: Duration,
        ticket: &mut dyn FnMut(&EntryImage) -> Ticket,
    ) -> Option<Self> {
        let mut ledger = Self::new(Arc::clone(bounds));
        ledger.terms_mut().confirms = true;
        if let Some(image) = image {
            let terms = ledger.terms().clone();
            ledger.0 = Pages::Book(Box::new(Book::import(terms, image, now, ticket)?));
        }
        Some(ledger)
    }
}

impl Book {
    fn export(&mut self, now: Duration, number: &mut dyn FnMut(&Ticket) -> u64) -> LedgerImage {
        self.land_all();
        let (mut places, mut entries) = (HashMap::new(), 0_u32);
        let mut image = |entry: &Entry| {
            if let Some(keyed) = &entry.keyed {
                places.insert(Holder::of(keyed), entries);
            }
            entries += 1;
            let number = if entry.ticket.stage().is_final() { 0 } else { number(&entry.ticket) };
            EntryImage::of(entry, now, number)
        };
        let sent = self.sent.iter().map(|sent| {
            let Sent { offset, may_have_left, entry } = sent;
            SentImage { offset: *offset, may_have_left: *may_have_left, entry: image(entry) }
        });
        let sent = sent.collect();
        let queues = self.queues.iter().map(|queue| {
            let entries = queue.iter().filter_map(|queued| match queued {
                Queued::Entry(entry) => Some(&**entry),
                Queued::Latest(key) => self.latest.as_ref()?.get(key),
                Queued::Flight(_) | Queued::Behind(_) => None,
            });
            entries.map(&mut image).collect()
        });
        let queues = queues.collect();
        let keys = self.keys.iter().map(|(key, holder)| {
            let place = places.get(&holder).map(|place| KeyHolder::Entry(*place));
            let by = if holder == Holder::SETTLED { KeyHolder::Settled } else { place.unwrap_or(KeyHolder::Gone) };
            KeyImage { key, by }
        });
        LedgerImage {
            next_offset: self.next_offset,
            received: self.received,
            handled: self.handled,
            missed: self.missed,
            dropped: self.dropped,
            sent,
            queues,
            keys: keys.collect(),
        }
    }

    fn depart(&mut self) -> Vec<Ticket> {
        self.land_all();
        self.terms.give_back(self.tracked_bytes());
        (self.tracked, self.latest_sent) = ((0, 0), (0, 0));
        let mut tickets: Vec<Ticket> =
            std::mem::take(&mut self.sent).into_iter().map(|sent| sent.entry.ticket).collect();
        let mut latest = self.latest.take().unwrap_or_default();
        for queued in std::mem::take(&mut self.queues).into_iter().flatten() {
            match queued {
                Queued::Entry(entry) => tickets.push(entry.ticket),
                Queued::Latest(key) => tickets.extend(latest.remove(&key).map(|entry| entry.ticket)),
                Queued::Flight(_) | Queued::Behind(_) => {}
            }
        }
        tickets.retain(|ticket| !ticket.stage().is_final());
        tickets
    }

    fn import(
        terms: Terms,
        image: LedgerImage,
        now: Duration,
        ticket: &mut dyn FnMut(&EntryImage) -> Ticket,
    ) -> Option<Self> {
        let mut book = Self::new(terms);
        (book.next_offset, book.received, book.handled) = (image.next_offset, image.received, image.handled);
        (book.missed, book.dropped) = (image.missed, image.dropped);
        let mut holders = Vec::new();
        let mut open = |entry: EntryImage, ticket: &mut dyn FnMut(&EntryImage) -> Ticket| {
            let ticket = ticket(&entry);
            let entry = entry.open(now, ticket)?;
            holders.push(entry.keyed.as_ref().map(Holder::of));
            Some(entry)
        };

        let mut last = 0;
        for SentImage { offset, may_have_left, entry } in image.sent {
            if offset <= last || image.next_offset <= offset {
                return None;
            }
            last = offset;
            let entry = open(entry, ticket)?;
            let (messages, bytes) = book.log_of(&entry.class);
            (*messages, *bytes) = (*messages + 1, *bytes + entry.size());
            book.sent.push_back(Sent { offset, entry, may_have_left });
        }
        for entry in image.queues.into_iter().flatten() {
            let entry = open(entry, ticket)?;
            let size = entry.size();
            match &entry.class {
                Class::Latest(key) => {
                    let key: Box<str> = key.as_str().into();
                    book.note_expiry(entry.expires);
                    book.latest_bytes += entry.len();
                    book.queues[entry.priority.index()].push_back(Queued::Latest(key.clone()));
                    if book.latest.get_or_insert_default().insert(key, entry).is_some() {
                        return None;
                    }
                }
                Class::Tracked | Class::Durable { .. } | Class::Fire => {
                    book.tracked = (book.tracked.0 + 1, book.tracked.1 + size);
                    book.wait(entry);
                }
            }
        }
        let keys_max = book.terms.bounds.idempotency_keys;
        for KeyImage { key, by } in image.keys {
            let holder = match by {
                KeyHolder::Gone => Holder::GONE,
                KeyHolder::Settled => Holder::SETTLED,
                KeyHolder::Entry(place) => holders.get(place as usize).copied().flatten().unwrap_or(Holder::GONE),
            };
            book.keys.insert(key, holder, keys_max);
        }
        (book.handled < book.next_offset && book.received < book.next_offset).then_some(book)
    }
}
