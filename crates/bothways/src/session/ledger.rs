//! The pushes that a session's client still has to get: those that wait, and those that were sent
//! and are not yet handled.
//!
//! Without I/O and without a clock, so that a model can be held against it. `next` gives what goes on the
//! wire, `written` and `ack` say how far it came, `connect` and `disconnect` when the wire changes.
//!
//! A tracked push gets its offset when it is first given to the wire, so that offsets on the wire have no
//! holes whatever waited, expired or overtook. It then stays until the client has handled it.
//!
//! A ledger is blank, and small, until the first push: of a million sessions most may never have one. What it is from
//! then on is in `ledger/book.rs`.

mod book;
mod flights;
#[cfg(feature = "cluster")]
mod image;
mod unsent;

use std::{sync::Arc, time::Duration};

use bothways_proto::Seq;
use bytes::Bytes;

use self::book::Book;
#[cfg(feature = "cluster")]
pub(crate) use self::image::EntryImage;
#[cfg(feature = "cluster")]
pub(super) use self::image::LedgerImage;
pub(super) use self::unsent::Unsent;
use super::{
    account::{self, Account},
    acks::End,
    explain::EventLog,
    flight::Flight,
    keys::{KEPT_KEY_BYTES, Keyed},
    push::{Class, Origin, Priority},
    receipt::Ticket,
};

/// Most of what waits for one client, per class.
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    pub(super) fire_messages: usize,
    pub(super) fire_bytes: usize,
    pub(super) latest_keys: usize,
    pub(super) latest_bytes: usize,
    pub(super) tracked_messages: usize,
    pub(super) tracked_bytes: usize,
    pub(super) idempotency_keys: usize,
    /// Of the tracked pushes of all sessions of one user.
    pub(super) user_bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            fire_messages: 256,
            fire_bytes: 256 << 10,
            latest_keys: 1024,
            latest_bytes: 1 << 20,
            tracked_messages: 1000,
            tracked_bytes: 1 << 20,
            idempotency_keys: 1024,
            user_bytes: 16 << 20,
        }
    }
}

/// What one push takes beside the bytes of its frame: its places in a queue and in the log, which grow by
/// doubling, the counters of its frame and its receipt, its name, and what the allocator adds to each.
const PUSH_OVERHEAD_BYTES: usize = 1024;

/// What is between ledger and kernel: a batch that is being written and one that is being filled, each of 64 KiB
/// as one buffer that grows by doubling, and the tickets of the smallest pushes that these can hold.
const UNDER_WAY_BYTES: usize = 768 << 10;

/// An empty session, its connection, its places in the tables, 64 repetitions of pushes that wait for the first, and 32
/// calls that were given up.
const SESSION_BYTES: usize = 8 << 10;

impl Bounds {
    /// What all queues of one session and what is under way to its socket take at most, if no push is larger
    /// than this. Each queue takes one push that is larger than its bound, if nothing else is in it.
    pub(super) fn bytes_max(&self, push_bytes: usize) -> usize {
        let queues = [
            (self.fire_messages, self.fire_bytes),
            (self.latest_keys, self.latest_bytes),
            // Those that were sent and are not handled, beside those that wait.
            (self.latest_keys, self.latest_bytes),
            (self.tracked_messages, self.tracked_bytes),
        ];

        // A push with a key is there in two forms.
        let both_forms = push_bytes.saturating_mul(2);
        let queue_bytes = |(count, bytes): (usize, usize)| {
            bytes.max(both_forms).saturating_add(count.saturating_mul(PUSH_OVERHEAD_BYTES))
        };

        let terms = queues.into_iter().map(queue_bytes).chain([
            SESSION_BYTES,
            UNDER_WAY_BYTES,
            both_forms.saturating_mul(2),
            self.idempotency_keys.saturating_mul(KEPT_KEY_BYTES),
        ]);
        terms.fold(0, usize::saturating_add)
    }
}

/// A push as the ledger keeps it. Times are durations since any fixed moment.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) class: Class,
    pub(super) priority: Priority,
    /// The encoded frame, shared between all sessions of a fan-out.
    pub(super) frame: Bytes,
    /// If its frame says more than a plain client is to see, such as an idempotency key.
    pub(super) keyed: Option<Arc<Keyed>>,
    pub(super) expires: Option<Duration>,
    pub(super) origin: Origin,
    pub(super) ticket: Ticket,
}

impl Entry {
    /// What it holds: its frame, and the one that a plain client would see.
    pub(super) fn size(&self) -> usize {
        self.frame.len() + self.keyed.as_ref().map_or(0, |keyed| keyed.plain.len())
    }

    /// What counts of it against the bound of its class.
    fn len(&self) -> usize {
        match &self.class {
            Class::Latest(key) => self.size() + key.len(),
            Class::Fire | Class::Tracked | Class::Durable { .. } => self.size(),
        }
    }

    fn is_expired(&self, now: Duration) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

/// What goes on the wire next.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Next {
    /// This frame, with this offset; 0 if it is not tracked.
    Frame { frame: Bytes, offset: u64 },
    /// A notice that what had this offset has expired, or is larger than the client takes, and does not come again.
    Skip { offset: u64 },
    /// A notice that this many pushes were dropped for want of room since the session began.
    Gap { missed: u64 },
}

/// What is dropped when what was before it has gone.
pub(super) type Behind = Arc<dyn std::fmt::Debug + Send + Sync>;

/// By what a ledger is kept, whatever is in it.
#[derive(Clone, Debug)]
struct Terms {
    bounds: Arc<Bounds>,
    /// Where its tracked bytes are charged, if its user has other sessions.
    account: Option<Arc<Account>>,
    /// It has a user: without an account one of whom this is the only session.
    has_user: bool,
    connected: bool,
    /// The client confirms what it receives and handles.
    confirms: bool,
}

impl Terms {
    /// Takes so many bytes of the user's, of which this ledger holds so many. False: there is no room.
    fn take(&self, held: usize, bytes: usize) -> bool {
        self.account.as_ref().map_or_else(|| self.fits_alone(held, bytes), |account| account.take(bytes))
    }

    /// Takes what is held already, or must be.
    fn take_anyway(&self, bytes: usize) {
        if let Some(account) = &self.account {
            account.take_anyway(bytes);
        }
    }

    fn give_back(&self, bytes: usize) {
        if let Some(account) = &self.account {
            account.give_back(bytes);
        }
    }

    /// True if [`Self::take`] would take so many now.
    fn has_room_for(&self, held: usize, bytes: usize) -> bool {
        self.account.as_ref().map_or_else(|| self.fits_alone(held, bytes), |account| account.has_room_for(bytes))
    }

    fn fits_alone(&self, held: usize, bytes: usize) -> bool {
        !self.has_user || account::fits(held, bytes, self.bounds.user_bytes)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Ledger(Pages);

#[derive(Debug)]
enum Pages {
    Blank(Terms),
    Book(Box<Book>),
}

impl Ledger {
    pub(super) fn new(bounds: impl Into<Arc<Bounds>>) -> Self {
        let bounds = bounds.into();
        Self(Pages::Blank(Terms { bounds, account: None, has_user: false, connected: false, confirms: false }))
    }

    fn terms(&self) -> &Terms {
        match &self.0 {
            Pages::Blank(terms) => terms,
            Pages::Book(book) => &book.terms,
        }
    }

    fn terms_mut(&mut self) -> &mut Terms {
        match &mut self.0 {
            Pages::Blank(terms) => terms,
            Pages::Book(book) => &mut book.terms,
        }
    }

    fn book(&self) -> Option<&Book> {
        match &self.0 {
            Pages::Blank(_) => None,
            Pages::Book(book) => Some(book),
        }
    }

    fn book_mut(&mut self) -> Option<&mut Book> {
        match &mut self.0 {
            Pages::Blank(_) => None,
            Pages::Book(book) => Some(book),
        }
    }

    /// Something is entered: it is blank no more.
    fn open(&mut self) -> &mut Book {
        if let Pages::Blank(terms) = &self.0 {
            self.0 = Pages::Book(Book::new(terms.clone()).into());
        }
        self.book_mut().expect("it was just made")
    }

    /// Takes a push in. False: it was dropped at once, or is the repetition of one that was taken; its ticket says
    /// which.
    pub(super) fn push(&mut self, entry: Entry, now: Duration) -> bool {
        self.open().push(entry, now)
    }

    /// Hands a push on if nothing is before it, as if it were entered, were next and had its mark. `give` takes it, and
    /// answers with its mark; `None`: there is no room. False: it was not handed on, and goes through the queues.
    pub(super) fn send(
        &mut self,
        flight: &Arc<Flight>,
        event_log: &Arc<EventLog>,
        give: impl FnOnce(&Bytes, Seq) -> Option<u64>,
    ) -> bool {
        self.open().send(flight, event_log, give)
    }

    /// Keeps a tracked push that cannot be sent now, as [`Self::push`] does. False: there is no room, and it is refused.
    /// `None`: it goes through the queues as an entry.
    pub(super) fn keep(&mut self, flight: &Arc<Flight>, event_log: &Arc<EventLog>) -> Option<bool> {
        let book = self.open();
        // What is too old would make room.
        (flight.class == Class::Tracked && book.expires().is_none()).then(|| book.keep(flight, event_log))
    }

    /// One that cannot be sent now becomes an entry, which is pushed next, and of which the event log tells.
    pub(super) fn entry_of(&mut self, flight: &Arc<Flight>, event_log: &Arc<EventLog>) -> Entry {
        self.open().entry_of(flight, event_log)
    }

    /// Refuses a push, as if there were no room for it.
    pub(super) fn refuse_flight(&mut self, flight: &Flight, event_log: &EventLog) {
        self.open().refuse_flight(flight, event_log);
    }

    /// The client is away, and does not get this.
    pub(super) fn miss_flight(&mut self, flight: &Flight, event_log: &EventLog) {
        self.open().miss_flight(flight, event_log);
    }

    /// What was handed on or kept so becomes entries, of which the event log tells.
    pub(super) fn land(&mut self) {
        if let Some(book) = self.book_mut() {
            book.land_all();
        }
    }

    /// This goes after all that may be sent now, whatever comes later: it is dropped when that has gone, and with the
    /// connection.
    pub(super) fn put_behind(&mut self, behind: Behind) {
        if let Some(book) = self.book_mut() {
            book.put_behind(behind);
        }
    }

    /// Refuses a push, as if there were no room for it.
    pub(super) fn refuse(&mut self, entry: Entry) {
        self.open().refuse_unsent(entry);
    }

    /// Pushes of which the client is told, now or later, that they were dropped.
    pub(super) fn missed(&self) -> u64 {
        self.book().map_or(0, Book::missed)
    }

    /// True if a push with this key was taken, and would be repeated.
    pub(super) fn has_taken(&self, keyed: Option<&Arc<Keyed>>) -> bool {
        self.book().is_some_and(|book| book.has_taken(keyed))
    }

    /// True if the message of a topic with this stamp was to be sent to this session, and was not: refused, dropped, or
    /// lost with a connection.
    pub(super) fn is_unsent(&self, stamp: u64) -> bool {
        self.book().is_some_and(|book| book.is_unsent(stamp))
    }

    /// The message of a topic with this stamp was not sent to this session.
    pub(super) fn miss(&mut self, stamp: u64) {
        self.open().miss(stamp);
    }

    /// A message of a topic was not sent to this session, and its client is told that something is missing.
    pub(super) fn miss_and_tell(&mut self, stamp: u64) {
        self.open().miss_and_tell(stamp);
    }

    /// These messages of topics were not sent to this session.
    pub(super) fn miss_all(&mut self, unsent: Unsent) {
        if !unsent.is_empty() {
            self.open().miss_all(unsent);
        }
    }

    /// Pushes of the application that wait or are not yet handled.
    pub(super) fn unhandled(&self) -> usize {
        self.book().map_or(0, Book::unhandled)
    }

    /// Tracked pushes, and their bytes, for which there is room in this log.
    pub(super) fn room(&self) -> (usize, usize) {
        match &self.0 {
            Pages::Blank(terms) => (terms.bounds.tracked_messages, terms.bounds.tracked_bytes),
            Pages::Book(book) => book.room(),
        }
    }

    /// True if there is room for so many tracked pushes of so many bytes in all: [`Self::push_claimed`] follows for
    /// each of them.
    pub(super) fn claim_room(&mut self, messages: usize, bytes: usize) -> bool {
        messages == 0 || self.open().claim_room(messages, bytes)
    }

    /// Takes a tracked push in for which there is room by [`Self::claim_room`].
    pub(super) fn push_claimed(&mut self, entry: Entry, now: Duration) {
        self.open().push_claimed(entry, now);
    }

    /// True if a tracked push of this size would be refused now, for want of room here or with the user.
    pub(super) fn refuses(&self, len: usize) -> bool {
        match &self.0 {
            Pages::Blank(terms) => !terms.has_room_for(0, len),
            Pages::Book(book) => book.refuses(len),
        }
    }

    /// What waits and is over by now gives its room up.
    pub(super) fn expire_waiting(&mut self, now: Duration) {
        if let Some(book) = self.book_mut() {
            book.expire_waiting(now);
        }
    }

    /// When that may make room next.
    pub(super) fn expires(&self) -> Option<Duration> {
        self.book().and_then(Book::expires)
    }

    /// From here on it is a user's, or nobody's. One who has other sessions has an account, which is charged.
    pub(super) fn charge(&mut self, has_user: bool, account: Option<Arc<Account>>) {
        let held = self.tracked_bytes();
        let terms = self.terms_mut();
        terms.give_back(held);
        (terms.has_user, terms.account) = (has_user, account);
        // Also what is beyond its bound: it is owed already.
        terms.take_anyway(held);
    }

    /// Where the session's user is charged, if it has other sessions or its calls are counted.
    pub(super) fn account(&self) -> Option<&Arc<Account>> {
        self.terms().account.as_ref()
    }

    fn tracked_bytes(&self) -> usize {
        self.book().map_or(0, Book::tracked_bytes)
    }

    /// What goes on the wire next. The caller puts it there, or ends the connection.
    pub(super) fn next(&mut self, now: Duration) -> Option<Next> {
        self.book_mut()?.next(now)
    }

    /// True if something waits that may go on the wire now. What only an acknowledgement sets free does not count: a
    /// caller that asks for more whenever there is room would ask without end.
    pub(super) fn has_next(&self) -> bool {
        self.book().is_some_and(Book::has_next)
    }

    /// Tracked pushes that are still to be sent again, or to be skipped.
    pub(super) fn unrepeated(&self) -> usize {
        self.book().map_or(0, Book::unrepeated)
    }

    /// What `next` gave last is larger than the client takes: it failed, and a notice goes under its offset, if it has
    /// one.
    pub(super) fn fail_last(&mut self, offset: u64) {
        self.open().fail_last(offset);
    }

    /// What `next` gave last is with the connection, whose counter of pushes stands here after it.
    pub(super) fn mark(&mut self, mark: u64) {
        self.open().mark(mark);
    }

    /// What has marks up to this one is with the kernel. True if something is left that is not known to be.
    pub(super) fn written_upto(&mut self, mark: u64, now: Duration) -> bool {
        self.book_mut().is_some_and(|book| book.written_upto(mark, now))
    }

    /// The client says how far it is: everything up to these offsets. False: it claims what was never sent.
    pub(super) fn ack(&mut self, received: u64, handled: u64, now: Duration) -> bool {
        match self.book_mut() {
            Some(book) => book.ack(received, handled, now),
            None => (received, handled) == (0, 0),
        }
    }

    /// The client says what became of these offsets, in whatever order; [`Self::ack`] follows. False: it claims what
    /// was never sent.
    pub(super) fn settle(&mut self, ends: &[End], now: Duration) -> bool {
        ends.is_empty() || self.book_mut().is_some_and(|book| book.settle(ends, now))
    }

    /// A connection is there. `confirms`: its client acknowledges offsets.
    pub(super) fn connect(&mut self, confirms: bool) {
        let terms = self.terms_mut();
        (terms.connected, terms.confirms) = (true, confirms);
    }

    /// The client came back, and has handled everything up to this offset, and received up to the other: what it
    /// has not received is sent again, before anything new. One that names no other takes what it has not handled,
    /// and all of it, however old. False: it claims what was never sent, or less than it acknowledged before, and
    /// what it wants is gone.
    pub(super) fn resume(&mut self, handled: u64, received: Option<u64>, now: Duration) -> bool {
        match &mut self.0 {
            Pages::Book(book) => book.resume(handled, received, now),
            Pages::Blank(terms) => {
                let is_true = (handled, received.unwrap_or(0)) == (0, 0);
                terms.connected &= !is_true;
                is_true
            }
        }
    }

    /// The connection is gone. What does not outlive it is dropped; what has marks up to this one it may have sent whole.
    pub(super) fn disconnect(&mut self, begun: u64) {
        match &mut self.0 {
            Pages::Blank(terms) => terms.connected = false,
            Pages::Book(book) => book.disconnect(begun),
        }
    }

    /// The last offset given to the wire; the position at which a new session's client begins.
    pub(super) fn last_offset(&self) -> u64 {
        self.book().map_or(0, Book::last_offset)
    }

    /// Pushes that wait or are not yet handled, and their bytes, tracked ones and others.
    pub(super) fn waiting(&self) -> (usize, usize) {
        self.book().map_or((0, 0), Book::waiting)
    }

    /// The oldest that the client has received, and not handled.
    pub(super) fn oldest_held(&self) -> Option<u64> {
        self.book().and_then(Book::oldest_held)
    }

    /// True if something was sent to the present connection that is to be acknowledged.
    pub(super) fn awaits_acks(&self) -> bool {
        self.terms().connected && self.book().is_some_and(Book::awaits_acks)
    }

    /// Pushes that were dropped since the session began.
    pub(super) fn dropped(&self) -> u64 {
        self.book().map_or(0, Book::dropped)
    }
}

#[cfg(test)]
mod tests;
