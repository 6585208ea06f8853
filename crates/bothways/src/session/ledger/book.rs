//! The content of a ledger: pushes that wait, and pushes that were sent and are not yet handled.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bothways_proto::Seq;
use bytes::Bytes;

use super::{
    Behind, Entry, Next, Terms,
    flights::{self, Flights, Landed},
    unsent::Unsent,
};
use crate::session::{
    acks::End,
    explain::EventLog,
    flight::Flight,
    keys::{Holder, KeyHash, Keyed, TakenKeys},
    push::{Class, Origin, Priority},
    receipt::{DropReason, Failure, Stage, Ticket},
};

/// See the module.
#[derive(Debug)]
pub(super) struct Book {
    pub(super) terms: Terms,
    /// What waits, by priority.
    pub(super) queues: [VecDeque<Queued>; Priority::COUNT],
    /// How many [`Queued::Behind`] are in each.
    behinds: [usize; Priority::COUNT],
    /// While there are some: what is before the last of them went last, and not the first of all.
    served_behind: bool,
    pub(super) latest: Option<Box<Latest>>,
    pub(super) latest_bytes: usize,
    /// Nothing that waits expires before this.
    expires: Duration,
    fire: (usize, usize),
    pub(super) tracked: (usize, usize),
    /// Values of keys that were sent and are not handled: they take no places of what is tracked.
    pub(super) latest_sent: (usize, usize),
    /// Of pushes that were taken and not given up.
    pub(super) keys: TakenKeys,
    /// Sent, and not handled, by offset.
    pub(super) sent: VecDeque<Sent>,
    /// The next offset.
    pub(super) next_offset: u64,
    pub(super) received: u64,
    pub(super) handled: u64,
    /// While a new connection is brought up to date.
    replay: Option<Replay>,
    unwritten: VecDeque<Unwritten>,
    /// What went straight to the connection, after all that is in `sent` and `unwritten`.
    flights: Flights,
    /// Where the connection's counter of pushes stood after each of these.
    marks: VecDeque<u64>,
    /// Dropped for want of room since the session began, and how many of them the present connection was given
    /// a notice of. A notice may be lost with its connection, so that the next one is given all of it again.
    pub(super) missed: u64,
    told: u64,
    pub(super) dropped: u64,
    /// Of topics that keep their messages: what this session was not sent.
    unsent: Unsent,
    /// Of these topics: what the present connection was given, and what is lost if that is.
    unconfirmed: Unsent,
}

#[derive(Debug)]
pub(super) struct Sent {
    pub(super) offset: u64,
    pub(super) entry: Entry,
    /// A connection that is over may have sent it whole, though nobody knows.
    pub(super) may_have_left: bool,
}

impl Sent {
    fn new(offset: u64, entry: Entry) -> Self {
        Self { offset, entry, may_have_left: false }
    }
}

/// What was given to the present connection and is not known to be written.
#[derive(Debug)]
enum Unwritten {
    /// Its ticket ends with being written.
    Fire(Ticket, Option<Arc<Keyed>>),
    Tracked(u64),
    Notice,
}

/// What is sent again.
#[derive(Clone, Copy, Debug)]
struct Replay {
    /// The next offset.
    at: u64,
    /// The client understands that something is skipped.
    skips: bool,
}

#[derive(Debug)]
pub(super) enum Queued {
    Entry(Box<Entry>),
    /// A tracked push that becomes an entry when it goes, or something happens to it: until then it takes 24 bytes.
    Flight(Arc<Flight>),
    Latest(Box<str>),
    /// Nothing that is sent: it waits for what is before it.
    Behind(#[expect(dead_code, reason = "it is there to be dropped")] Behind),
}

impl Queued {
    /// Values of keys wait for a client that has many unhandled ones; nothing else does.
    fn may_go(&self, behind: bool) -> bool {
        !behind || !matches!(self, Self::Latest(_))
    }
}

/// The newest value of each key.
pub(super) type Latest = HashMap<Box<str>, Entry>;

fn hash_of(keyed: Option<&Arc<Keyed>>) -> Option<KeyHash> {
    keyed?.hash
}

/// True if this is what took that key. The address alone does not say so: another push may have it by now.
fn is_push_of(taken: Option<(KeyHash, Holder)>, keyed: Option<&Arc<Keyed>>) -> bool {
    let of = keyed.and_then(|keyed| Some((keyed.hash?, Holder::of(keyed))));
    of.is_some() && of == taken
}

/// Takes the place of a key out of a queue.
fn take_key_of(queue: &mut VecDeque<Queued>, key: &str) -> Option<Queued> {
    let at = queue.iter().position(|queued| matches!(queued, Queued::Latest(other) if **other == *key))?;
    queue.remove(at)
}

/// Pushes of one session that wait for the end of another one with their key. One more is dropped.
const REPETITIONS_MAX: usize = 64;

/// Places that a burst leaves.
const KEPT: usize = 64;

/// Gives back what a burst took, once it is over: an idle session is small.
pub(super) fn give_back<T>(queue: &mut VecDeque<T>) {
    if queue.is_empty() && KEPT < queue.capacity() {
        *queue = VecDeque::new();
    }
}

impl Book {
    pub(super) fn new(terms: Terms) -> Self {
        Self {
            terms,
            queues: Default::default(),
            behinds: [0; Priority::COUNT],
            served_behind: true,
            latest: None,
            latest_bytes: 0,
            expires: Duration::MAX,
            fire: (0, 0),
            tracked: (0, 0),
            latest_sent: (0, 0),
            keys: TakenKeys::default(),
            sent: VecDeque::new(),
            next_offset: 1,
            received: 0,
            handled: 0,
            replay: None,
            unwritten: VecDeque::new(),
            flights: Flights::default(),
            marks: VecDeque::new(),
            missed: 0,
            told: 0,
            dropped: 0,
            unsent: Unsent::default(),
            unconfirmed: Unsent::default(),
        }
    }

    /// Takes a push in. False: it was dropped at once, or is the repetition of one that was taken; its ticket says
    /// which.
    pub(super) fn push(&mut self, mut entry: Entry, now: Duration) -> bool {
        // First: what is too old leaves its room and its key.
        self.expire_waiting(now);
        self.expire_holder(entry.keyed.as_ref(), now);
        if self.has_taken(entry.keyed.as_ref()) {
            // The one that was taken may yet come to nothing.
            self.note_unsent(entry.origin);
            self.repeat(entry);
            return false;
        }

        if entry.is_expired(now) {
            entry.ticket.advance(Stage::Expired);
            return false;
        }

        let (keyed, origin) = (entry.keyed.clone(), entry.origin);
        let taken = self.queue(entry);
        if taken {
            self.take_key(keyed.as_ref());
            self.note_sent(origin);
        } else {
            self.note_unsent(origin);
        }
        taken
    }

    /// As [`Ledger::send`](super::Ledger::send).
    pub(super) fn send(
        &mut self,
        flight: &Arc<Flight>,
        event_log: &Arc<EventLog>,
        give: impl FnOnce(&Bytes, Seq) -> Option<u64>,
    ) -> bool {
        if !self.is_quiet() {
            return false;
        }

        let len = flight.encoded.size();
        let is_tracked = flight.class != Class::Fire;
        let is_logged = is_tracked && self.terms.confirms;
        let held = self.tracked_bytes();
        let has_room = match (is_tracked, is_logged) {
            (false, _) => true,
            (true, false) => !self.is_full_for(len) && self.terms.has_room_for(held, len),
            (true, true) => !self.is_full_for(len) && self.terms.take(held, len),
        };
        if !has_room {
            return false;
        }

        let offset = if is_logged { self.next_offset } else { 0 };
        let frame = match &flight.encoded.keyed {
            Some(keyed) if !self.terms.confirms => &keyed.plain,
            _ => &flight.encoded.frame,
        };
        let Some(mark) = give(frame, Seq::of_push(offset)) else {
            if is_logged {
                self.terms.give_back(len);
            }
            return false;
        };

        self.note_sent(flight.origin);
        self.flights.add(flight, event_log, mark, offset);
        if is_logged {
            self.tracked = (self.tracked.0 + 1, self.tracked.1 + len);
            self.next_offset += 1;
        } else if let Origin::Topic(stamp) = flight.origin {
            self.unconfirmed.miss(stamp);
        }
        true
    }

    /// As [`Ledger::miss_flight`](super::Ledger::miss_flight).
    pub(super) fn miss_flight(&mut self, flight: &Flight, event_log: &EventLog) {
        let end = Stage::Dropped(DropReason::Disconnected);
        flights::note_end(flight, end, event_log);
        self.note_unsent(flight.origin);
        self.dropped += 1;
    }

    /// As [`Ledger::keep`](super::Ledger::keep).
    pub(super) fn keep(&mut self, flight: &Arc<Flight>, event_log: &Arc<EventLog>) -> bool {
        let len = flight.encoded.size();
        if !self.take_tracked(len) {
            self.refuse_flight(flight, event_log);
            return false;
        }
        self.note_sent(flight.origin);
        self.flights.tell_in(event_log);
        self.queues[flight.priority.index()].push_back(Queued::Flight(Arc::clone(flight)));
        true
    }

    /// As [`Ledger::entry_of`](super::Ledger::entry_of).
    pub(super) fn entry_of(&mut self, flight: &Arc<Flight>, event_log: &Arc<EventLog>) -> Entry {
        self.flights.tell_in(event_log);
        self.flights.entry_of(Arc::clone(flight))
    }

    /// As [`Self::refuse_unsent`].
    pub(super) fn refuse_flight(&mut self, flight: &Flight, event_log: &EventLog) {
        flights::note_end(flight, Stage::Dropped(DropReason::Full), event_log);
        self.note_unsent(flight.origin);
        self.dropped += 1;
        self.missed += 1;
    }

    /// All that is told of by its flight becomes entries.
    pub(super) fn land_all(&mut self) {
        self.land();
        for queued in self.queues.iter_mut().flatten() {
            if let Queued::Flight(flight) = queued {
                *queued = Queued::Entry(self.flights.entry_of(Arc::clone(flight)).into());
            }
        }
    }

    /// What went straight to the connection becomes entries, as if it had gone through the queues.
    fn land(&mut self) {
        if self.flights.is_empty() {
            return;
        }
        for Landed { flight, ticket, mark, offset } in self.flights.land() {
            self.marks.extend(mark);
            if offset == 0 {
                self.unwritten.push_back(Unwritten::Fire(ticket, None));
                continue;
            }
            if mark.is_some() {
                self.unwritten.push_back(Unwritten::Tracked(offset));
            }
            self.sent.push_back(Sent::new(offset, flights::entry(&flight, ticket)));
        }
    }

    /// Nothing waits, and nothing is sent again: what comes now is next.
    fn is_quiet(&self) -> bool {
        self.terms.connected
            && self.replay.is_none()
            && !(self.terms.confirms && self.told < self.missed)
            && self.queues.iter().all(VecDeque::is_empty)
    }

    /// A message is in a queue, or with the connection.
    fn note_sent(&mut self, origin: Origin) {
        if let Origin::Topic(stamp) = origin {
            self.unsent.send(stamp);
            self.unconfirmed.send(stamp);
        }
    }

    /// A message does not reach the client: a recovery has to bring it.
    fn note_unsent(&mut self, origin: Origin) {
        if let Origin::Topic(stamp) = origin {
            self.unsent.miss(stamp);
        }
    }

    pub(super) fn miss(&mut self, stamp: u64) {
        self.unsent.miss(stamp);
    }

    pub(super) fn miss_and_tell(&mut self, stamp: u64) {
        self.unsent.miss(stamp);
        self.missed += 1;
    }

    pub(super) fn miss_all(&mut self, unsent: Unsent) {
        self.unsent.miss_all(unsent);
    }

    pub(super) fn is_unsent(&self, stamp: u64) -> bool {
        self.unsent.contains(stamp)
    }

    /// What waits and is over by now gives its room up: a client that is away asks for nothing, and would find it over.
    /// It is looked through once for each moment at which something expires.
    pub(super) fn expire_waiting(&mut self, now: Duration) {
        if now < self.expires {
            return;
        }
        self.expires = Duration::MAX;

        for index in 0..Priority::COUNT {
            let queue = std::mem::take(&mut self.queues[index]);
            for queued in queue {
                let expires = match &queued {
                    Queued::Entry(entry) => entry.expires,
                    Queued::Latest(key) => self.latest.as_ref().and_then(|latest| latest.get(key)?.expires),
                    Queued::Flight(_) | Queued::Behind(_) => None,
                };

                if expires.is_none_or(|expires| now < expires) {
                    self.note_expiry(expires);
                    self.queues[index].push_back(queued);
                } else if let Some(mut entry) = self.take_from(queued) {
                    let charged = self.leave_queue(&entry);
                    self.expire(&mut entry, charged);
                }
            }
        }
    }

    /// Something waits from here on, and expires then.
    pub(super) fn note_expiry(&mut self, expires: Option<Duration>) {
        self.expires = expires.map_or(self.expires, |expires| self.expires.min(expires));
    }

    /// Puts an entry, which has been counted, after the others of its priority.
    pub(super) fn wait(&mut self, entry: Entry) {
        self.note_expiry(entry.expires);
        self.queues[entry.priority.index()].push_back(Queued::Entry(entry.into()));
    }

    /// Nothing that waits expires before this; `None`: nothing expires.
    pub(super) fn expires(&self) -> Option<Duration> {
        (self.expires != Duration::MAX).then_some(self.expires)
    }

    fn queue(&mut self, mut entry: Entry) -> bool {
        let len = entry.size();

        match &entry.class {
            Class::Fire => {
                if !self.terms.connected {
                    entry.ticket.advance(Stage::Dropped(DropReason::Disconnected));
                    self.dropped += 1;
                    return false;
                }
                while !self.fire_fits(len) {
                    if !self.drop_oldest_fire() {
                        break;
                    }
                }
                self.fire = (self.fire.0 + 1, self.fire.1 + len);
            }
            Class::Latest(key) => {
                let key: Box<str> = key.as_str().into();
                let older = self.latest.as_ref().and_then(|latest| latest.get(&key)).map(Entry::len);
                let others = self.latest_bytes - older.unwrap_or(0);
                if (older.is_none() && self.terms.bounds.latest_keys <= self.latest_len())
                    || (0 < others && self.terms.bounds.latest_bytes < others + entry.len())
                {
                    return self.refuse(entry);
                }

                self.latest_bytes = others + entry.len();
                self.note_expiry(entry.expires);
                if let Some(older) = self.latest.as_mut().and_then(|latest| latest.get_mut(&key)) {
                    older.ticket.advance(Stage::Superseded);
                    let queued_at = older.priority;
                    *older = entry;
                    self.move_up(&key, queued_at);
                    return true;
                }

                self.queues[entry.priority.index()].push_back(Queued::Latest(key.clone()));
                self.latest.get_or_insert_default().insert(key, entry);
                return true;
            }
            Class::Tracked | Class::Durable { .. } => {
                if !self.take_tracked(len) {
                    return self.refuse(entry);
                }
            }
        }

        self.wait(entry);
        true
    }

    /// Takes room for one more tracked push, here and with the user. False: there is none.
    fn take_tracked(&mut self, len: usize) -> bool {
        if self.is_full_for(len) || !self.terms.take(self.tracked_bytes(), len) {
            return false;
        }
        self.tracked = (self.tracked.0 + 1, self.tracked.1 + len);
        true
    }

    /// A newer value took the place of one that was queued at this priority: if its own is higher, it goes there.
    fn move_up(&mut self, key: &str, queued_at: Priority) {
        let Some(entry) = self.latest.as_mut().and_then(|latest| latest.get_mut(key)) else { return };
        if queued_at.index() <= entry.priority.index() {
            // It stands where the older one stood, however low its own.
            entry.priority = queued_at;
            return;
        }
        let (from, to) = (queued_at.index(), entry.priority.index());
        if let Some(queued) = take_key_of(&mut self.queues[from], key) {
            self.queues[to].push_back(queued);
        }
    }

    /// A push with the key of one that was taken is not sent, and goes that one's way. One whose way is not followed
    /// any more has come to a good end, or was written and no more is known: what comes to nothing gives its key back.
    fn repeat(&mut self, mut entry: Entry) {
        let holder = self.holder_of(entry.keyed.as_ref());
        let is_holder = |ticket: &Ticket, keyed: &Option<Arc<Keyed>>| {
            is_push_of(holder, keyed.as_ref()) && !ticket.stage().is_final()
        };

        let queued = self.queues.iter_mut().flatten().filter_map(|queued| match queued {
            Queued::Entry(entry) => Some((&mut entry.ticket, &entry.keyed)),
            Queued::Flight(_) | Queued::Latest(_) | Queued::Behind(_) => None,
        });
        let latest = self.latest.iter_mut().flat_map(|latest| latest.values_mut());
        let latest = latest.map(|entry| (&mut entry.ticket, &entry.keyed));
        let sent = self.sent.iter_mut().map(|sent| (&mut sent.entry.ticket, &sent.entry.keyed));
        let unwritten = self.unwritten.iter_mut().filter_map(|unwritten| match unwritten {
            Unwritten::Fire(ticket, keyed) => Some((ticket, &*keyed)),
            Unwritten::Tracked(_) | Unwritten::Notice => None,
        });

        let (mut found, mut repetitions) = (None, 0);
        for (ticket, keyed) in queued.chain(latest).chain(sent).chain(unwritten) {
            repetitions += ticket.repetitions();
            if found.is_none() && is_holder(ticket, keyed) {
                found = Some(ticket);
            }
        }

        match found {
            Some(_) if REPETITIONS_MAX <= repetitions => entry.ticket.advance(Stage::Dropped(DropReason::Full)),
            Some(holder) => holder.repeat(entry.ticket),
            None if holder.is_some_and(|(_, holder)| holder == Holder::SETTLED) => {
                entry.ticket.advance(Stage::PlainWritten);
            }
            None => entry.ticket.advance(Stage::Duplicate),
        }
    }

    /// What waits with this key and is too old gives the key back.
    fn expire_holder(&mut self, keyed: Option<&Arc<Keyed>>, now: Duration) {
        let holder = self.holder_of(keyed);
        if holder.is_none() {
            return;
        }
        let is_over = |entry: &Entry| is_push_of(holder, entry.keyed.as_ref()) && entry.is_expired(now);
        let latest = self.latest.as_ref();
        let of_key = latest.and_then(|latest| latest.iter().find(|(_, entry)| is_over(entry)));
        let of_key = of_key.map(|(key, entry)| (key.clone(), entry.priority));

        let mut over = None;
        if let Some((key, priority)) = of_key {
            over = take_key_of(&mut self.queues[priority.index()], &key);
        }
        for queue in &mut self.queues {
            let found = queue.iter().position(|queued| matches!(queued, Queued::Entry(entry) if is_over(entry)));
            over = over.or_else(|| queue.remove(found?));
        }

        if let Some(mut entry) = over.and_then(|queued| self.take_from(queued)) {
            let charged = self.leave_queue(&entry);
            self.expire(&mut entry, charged);
        }
    }

    /// Which push has taken this key, if one has.
    fn holder_of(&self, keyed: Option<&Arc<Keyed>>) -> Option<(KeyHash, Holder)> {
        let hash = hash_of(keyed)?;
        Some((hash, self.keys.holder(hash)?))
    }

    /// True if a push with this key was taken, and would be repeated.
    pub(super) fn has_taken(&self, keyed: Option<&Arc<Keyed>>) -> bool {
        hash_of(keyed).is_some_and(|hash| self.keys.contains(hash))
    }

    fn take_key(&mut self, keyed: Option<&Arc<Keyed>>) {
        if let (Some(keyed), Some(hash)) = (keyed, hash_of(keyed)) {
            self.keys.insert(hash, Holder::of(keyed), self.terms.bounds.idempotency_keys);
        }
    }

    /// The client has not got it, and does not get it: a sender that tries again is not refused for it.
    fn free_key(&mut self, keyed: Option<&Arc<Keyed>>) {
        if let (Some(keyed), Some(hash)) = (keyed, hash_of(keyed)) {
            self.keys.free(hash, Holder::of(keyed));
        }
    }

    /// The client may have got it, and nobody will know.
    fn settle_key(&mut self, keyed: Option<&Arc<Keyed>>) {
        if let (Some(keyed), Some(hash)) = (keyed, hash_of(keyed)) {
            self.keys.settle(hash, Holder::of(keyed));
        }
    }

    /// Takes a tracked push in for which there is room by [`Self::claim_room`].
    pub(super) fn push_claimed(&mut self, mut entry: Entry, now: Duration) {
        let len = entry.size();
        self.expire_holder(entry.keyed.as_ref(), now);
        let is_known = self.has_taken(entry.keyed.as_ref());
        if is_known || entry.is_expired(now) {
            if is_known {
                self.note_unsent(entry.origin);
            }
            self.terms.give_back(len);
            return entry.ticket.advance(if is_known { Stage::Duplicate } else { Stage::Expired });
        }
        self.take_key(entry.keyed.as_ref());
        self.note_sent(entry.origin);
        self.tracked = (self.tracked.0 + 1, self.tracked.1 + len);
        self.wait(entry);
    }

    /// True if a tracked push of this size would be refused now, for want of room here or with the user.
    pub(super) fn refuses(&self, len: usize) -> bool {
        self.is_full_for(len) || !self.terms.has_room_for(self.tracked_bytes(), len)
    }

    /// True if a tracked push of this size finds no room in this log now.
    pub(super) fn is_full_for(&self, len: usize) -> bool {
        let (messages, bytes) = self.tracked;
        self.terms.bounds.tracked_messages <= messages
            || (0 < messages && self.terms.bounds.tracked_bytes < bytes + len)
    }

    /// Tracked pushes, and their bytes, for which there is room in this log.
    pub(super) fn room(&self) -> (usize, usize) {
        let (messages, bytes) = self.tracked;
        let bounds = &self.terms.bounds;
        (bounds.tracked_messages.saturating_sub(messages), bounds.tracked_bytes.saturating_sub(bytes))
    }

    /// True if there is room for so many tracked pushes of so many bytes in all: [`Self::push_claimed`] follows for
    /// each of them.
    pub(super) fn claim_room(&mut self, messages: usize, bytes: usize) -> bool {
        self.tracked.0 + messages <= self.terms.bounds.tracked_messages
            && (self.tracked.0 + messages == 1 || self.tracked.1 + bytes <= self.terms.bounds.tracked_bytes)
            && self.terms.take(self.tracked_bytes(), bytes)
    }

    /// What goes on the wire next. The caller puts it there, or ends the connection.
    pub(super) fn next(&mut self, now: Duration) -> Option<Next> {
        if !self.terms.connected {
            return None;
        }
        if let Some(again) = self.next_again(now) {
            return Some(again);
        }
        if self.told < self.missed && self.terms.confirms {
            self.told = self.missed;
            self.land();
            self.unwritten.push_back(Unwritten::Notice);
            return Some(Next::Gap { missed: self.missed });
        }

        loop {
            let mut entry = self.take_queued()?;
            let len = entry.size();
            let charged = self.leave_queue(&entry);
            if entry.is_expired(now) {
                self.expire(&mut entry, charged);
                continue;
            }
            // `unwritten` is in the order of the wire: what went straight to it comes first.
            self.land();
            let frame = match &entry.keyed {
                Some(keyed) if !self.terms.confirms => keyed.plain.clone(),
                _ => entry.frame.clone(),
            };

            if entry.class == Class::Fire || !self.terms.confirms {
                if let Origin::Topic(stamp) = entry.origin {
                    self.unconfirmed.miss(stamp);
                }
                self.terms.give_back(charged);
                self.unwritten.push_back(Unwritten::Fire(entry.ticket, entry.keyed));
                return Some(Next::Frame { frame, offset: 0 });
            }

            let (messages, counted) = self.log_of(&entry.class);
            (*messages, *counted) = (*messages + 1, *counted + len);
            self.terms.take_anyway(len - charged);
            let offset = self.next_offset;
            self.next_offset += 1;
            entry.ticket.numbered(offset);
            self.unwritten.push_back(Unwritten::Tracked(offset));
            self.sent.push_back(Sent::new(offset, entry));
            return Some(Next::Frame { frame, offset });
        }
    }

    /// An entry waits no more. Returns what the user is charged for it already.
    fn leave_queue(&mut self, entry: &Entry) -> usize {
        let len = entry.size();
        match entry.class {
            Class::Fire => self.fire = (self.fire.0 - 1, self.fire.1 - len),
            Class::Tracked | Class::Durable { .. } => {
                self.forget_sent(&entry.class, len);
                return len;
            }
            Class::Latest(_) => {}
        }
        0
    }

    /// What waited is too old.
    fn expire(&mut self, entry: &mut Entry, charged: usize) {
        self.terms.give_back(charged);
        self.free_key(entry.keyed.as_ref());
        entry.ticket.advance(Stage::Expired);
    }

    /// What the client has not received, in the order in which it was sent. What has expired meanwhile leaves its
    /// offset behind; but not what the client has said to have, which it may only have lost the place of.
    fn next_again(&mut self, now: Duration) -> Option<Next> {
        let Replay { at, skips } = self.replay?;
        // What was handled meanwhile is gone.
        let at = at.max(self.handled + 1);
        let place = self.sent.partition_point(|sent| sent.offset < at);
        let Some(sent) = self.sent.get_mut(place) else {
            self.replay = None;
            return None;
        };

        let at = sent.offset;
        let (entry, mut freed, mut keyed) = (&mut sent.entry, 0, None);
        if skips && entry.is_expired(now) && entry.ticket.stage() != Stage::Received {
            entry.ticket.advance(Stage::Expired);
            freed = entry.size();
            (entry.frame, keyed) = (Bytes::new(), entry.keyed.take());
        }

        let next = match entry.ticket.stage() {
            // The others that failed are gone.
            Stage::Expired | Stage::Failed(_) => Next::Skip { offset: at },
            _ => Next::Frame { frame: entry.frame.clone(), offset: at },
        };

        let class = entry.class.clone();
        self.log_of(&class).1 -= freed;
        self.terms.give_back(freed);
        self.free_key(keyed.as_ref());
        self.replay = Some(Replay { at: at + 1, skips });
        self.unwritten.push_back(Unwritten::Tracked(at));
        Some(next)
    }

    /// The first that may be sent.
    fn take_queued(&mut self) -> Option<Entry> {
        let behind = self.is_behind();
        loop {
            let place = self.place_of_next(behind)?;
            let queue = &mut self.queues[place];
            let at = queue.iter().position(|queued| queued.may_go(behind))?;
            let queued = queue.remove(at)?;
            give_back(queue);
            if let Queued::Behind(_) = &queued {
                self.behinds[place] -= 1;
            }
            if let Some(entry) = self.take_from(queued) {
                return Some(entry);
            }
        }
    }

    /// The queue whose turn it is. While a reply waits for pushes of low priority, these and those before them take
    /// turns: what is pushed later does not hold it up for ever.
    fn place_of_next(&mut self, behind: bool) -> Option<usize> {
        let may_go = |queue: &VecDeque<Queued>| queue.iter().any(|queued| queued.may_go(behind));
        let first = self.queues.iter().position(may_go)?;
        let Some(last) = self.behinds.iter().rposition(|behinds| 0 < *behinds) else {
            self.served_behind = true;
            return Some(first);
        };
        let place = if self.served_behind { first } else { last };
        self.served_behind = !self.served_behind;
        Some(place)
    }

    pub(super) fn put_behind(&mut self, behind: Behind) {
        if !self.terms.connected {
            return;
        }
        for (queue, behinds) in self.queues.iter_mut().zip(&mut self.behinds).filter(|(queue, _)| !queue.is_empty()) {
            queue.push_back(Queued::Behind(Arc::clone(&behind)));
            *behinds += 1;
        }
    }

    /// The entry of a place that left its queue, if it has one.
    fn take_from(&mut self, queued: Queued) -> Option<Entry> {
        Some(match queued {
            Queued::Behind(_) => return None,
            Queued::Entry(entry) => *entry,
            Queued::Flight(flight) => self.flights.entry_of(flight),
            Queued::Latest(key) => {
                let latest = self.latest.as_mut().expect("a key that is queued has a value");
                let entry = latest.remove(&key).expect("a key that is queued has a value");
                if latest.is_empty() && KEPT < latest.capacity() {
                    self.latest = None;
                }
                self.latest_bytes -= entry.len();
                entry
            }
        })
    }

    /// True if something waits that may go on the wire now. What only an acknowledgement sets free does not count: a
    /// caller that asks for more whenever there is room would ask without end.
    pub(super) fn has_next(&self) -> bool {
        let behind = self.is_behind();
        self.terms.connected
            && (0 < self.unrepeated()
                || (self.terms.confirms && self.told < self.missed)
                || self.queues.iter().flatten().any(|queued| queued.may_go(behind)))
    }

    /// The client has so much to confirm that values which a newer one may replace are not sent yet.
    fn is_behind(&self) -> bool {
        let (values, bytes) = self.latest_sent;
        let bounds = &self.terms.bounds;
        let is_full = bounds.latest_keys <= values || bounds.latest_bytes < bytes;
        self.terms.confirms && (is_full || self.is_full_for(0))
    }

    /// Tracked pushes that are still to be sent again, or to be skipped.
    pub(super) fn unrepeated(&self) -> usize {
        let before = |replay: Replay| self.sent.partition_point(|sent| sent.offset < replay.at);
        self.replay.map_or(0, |replay| self.sent.len() - before(replay))
    }

    /// The oldest `count` of what `next` gave to the present connection are with the kernel.
    pub(super) fn written(&mut self, count: usize, now: Duration) {
        for _ in 0..count {
            match self.unwritten.pop_front() {
                Some(Unwritten::Fire(mut ticket, keyed)) => {
                    self.settle_key(keyed.as_ref());
                    ticket.advance_at(Stage::PlainWritten, now);
                }
                Some(Unwritten::Tracked(offset)) => {
                    if let Some(sent) = self.sent_mut(offset) {
                        sent.entry.ticket.advance_at(Stage::Written, now);
                    }
                }
                Some(Unwritten::Notice) => {}
                None => break,
            }
        }
        give_back(&mut self.unwritten);
    }

    /// The client says how far it is: everything up to these offsets. False: it claims what was never sent.
    pub(super) fn ack(&mut self, received: u64, handled: u64, now: Duration) -> bool {
        let received = received.max(handled);
        if self.next_offset <= received {
            return false;
        }

        self.received = self.received.max(received);
        self.handled = self.handled.max(handled);
        while self.sent.front().is_some_and(|sent| sent.offset <= self.handled) {
            let sent = self.sent.pop_front().expect("it was just seen");
            self.finish(sent, Stage::Handled, now);
        }
        give_back(&mut self.sent);

        let (messages, bytes) = self.flights.ack(self.received, self.handled, now);
        self.tracked = (self.tracked.0 - messages, self.tracked.1 - bytes);
        self.terms.give_back(bytes);
        let upto = self.received;
        for sent in self.sent.iter_mut().take_while(|sent| sent.offset <= upto) {
            sent.entry.ticket.advance_at(Stage::Received, now);
        }
        true
    }

    /// The client says what became of these offsets, in whatever order. False: it claims what was never sent.
    pub(super) fn settle(&mut self, ends: &[End], now: Duration) -> bool {
        if ends.iter().any(|(range, _)| range.is_empty() || self.next_offset <= *range.end()) {
            return false;
        }
        if !ends.is_empty() {
            self.land();
        }
        for (range, stage) in ends {
            let from = self.sent.partition_point(|sent| sent.offset < *range.start());
            let upto = self.sent.partition_point(|sent| sent.offset <= *range.end());
            if from < upto {
                let settled: Vec<Sent> = self.sent.drain(from..upto).collect();
                settled.into_iter().for_each(|sent| self.finish(sent, *stage, now));
            }
        }
        true
    }

    /// What was sent has come to this end.
    fn finish(&mut self, mut sent: Sent, stage: Stage, now: Duration) {
        let len = sent.entry.size();
        self.forget_sent(&sent.entry.class, len);
        self.terms.give_back(len);
        if !matches!(stage, Stage::Handled | Stage::Superseded) {
            // A sender that tries again is not refused for it. A client that has handled it knows the key by itself.
            self.free_key(sent.entry.keyed.as_ref());
        }
        sent.entry.ticket.advance_at(stage, now);
    }

    /// The client came back, and has handled everything up to this offset, and received up to the other: what it
    /// has not received is sent again, before anything new. One that names no other takes what it has not handled,
    /// and all of it, however old. False: it claims what was never sent, or less than it acknowledged before, and
    /// what it wants is gone.
    pub(super) fn resume(&mut self, handled: u64, received: Option<u64>, now: Duration) -> bool {
        let has = received.map_or(handled, |received| received.max(handled));
        if handled < self.handled || !self.ack(has, handled, now) {
            return false;
        }
        // The old connection may still be open: what it was given counts for nothing, and it may yet send all of it.
        self.disconnect(u64::MAX);
        self.replay = Some(Replay { at: has + 1, skips: received.is_some() });
        true
    }

    /// The connection is gone. What does not outlive it is dropped; what has marks up to this one it may have sent whole.
    pub(super) fn disconnect(&mut self, begun: u64) {
        self.land();
        self.terms.connected = false;
        self.replay = None;
        self.told = 0;
        let mut marks = std::mem::take(&mut self.marks).into_iter();
        for (queue, _) in self.queues.iter_mut().zip(&self.behinds).filter(|(_, behinds)| 0 < **behinds) {
            queue.retain(|queued| !matches!(queued, Queued::Behind(_)));
        }
        self.behinds = [0; Priority::COUNT];

        for unwritten in std::mem::take(&mut self.unwritten) {
            let may_have_left = marks.next().is_some_and(|mark| mark <= begun);
            let (mut ticket, keyed) = match unwritten {
                Unwritten::Fire(ticket, keyed) => (ticket, keyed),
                Unwritten::Tracked(offset) => {
                    if let Some(sent) = self.sent_mut(offset) {
                        sent.may_have_left |= may_have_left;
                    }
                    continue;
                }
                Unwritten::Notice => continue,
            };
            self.free_key(keyed.as_ref());
            if may_have_left {
                ticket.advance(Stage::Unknown);
            } else {
                ticket.advance(Stage::Dropped(DropReason::Disconnected));
                self.dropped += 1;
            }
        }

        // Nobody knows whether the client got what ended with being written, either. One that comes back knows the keys
        // of what it got by itself.
        self.keys.free_settled();
        while self.drop_oldest_fire_as(DropReason::Disconnected) {}
        let lost = std::mem::take(&mut self.unconfirmed);
        self.unsent.miss_all(lost);
    }

    /// As [`Ledger::fail_last`](super::Ledger::fail_last).
    pub(super) fn fail_last(&mut self, offset: u64) {
        let end = Stage::Failed(Failure::BadArguments);
        if offset == 0 {
            if let Some(Unwritten::Fire(mut ticket, keyed)) = self.unwritten.pop_back() {
                ticket.advance(end);
                self.free_key(keyed.as_ref());
            }
            return;
        }

        let Some(sent) = self.sent_mut(offset) else { return };
        let entry = &mut sent.entry;
        entry.ticket.advance(end);
        // Its place stays, for who comes back without the notice.
        let (freed, keyed) = (entry.size(), entry.keyed.take());
        entry.frame = Bytes::new();

        let class = entry.class.clone();
        self.log_of(&class).1 -= freed;
        self.terms.give_back(freed);
        self.free_key(keyed.as_ref());
    }

    /// What `next` gave last is with the connection, whose counter of pushes stands here after it.
    pub(super) fn mark(&mut self, mark: u64) {
        self.marks.push_back(mark);
    }

    /// As [`Ledger::written_upto`](super::Ledger::written_upto).
    pub(super) fn written_upto(&mut self, mark: u64, now: Duration) -> bool {
        let written = self.marks.iter().take_while(|at| **at <= mark).count();
        if 0 < written {
            self.marks.drain(..written);
            self.written(written, now);
        }
        self.flights.written_upto(mark, now) || !self.marks.is_empty()
    }

    /// Of all that is in the log, for which the user is charged.
    pub(super) fn tracked_bytes(&self) -> usize {
        self.tracked.1 + self.latest_sent.1
    }

    pub(super) fn oldest_held(&self) -> Option<u64> {
        let oldest = self.sent.front().map(|sent| sent.offset).or_else(|| self.flights.oldest());
        oldest.filter(|offset| *offset <= self.received)
    }

    pub(super) fn awaits_acks(&self) -> bool {
        !self.sent.is_empty() || self.flights.oldest().is_some()
    }

    /// The last offset given to the wire; the position at which a new session's client begins.
    pub(super) fn last_offset(&self) -> u64 {
        self.next_offset - 1
    }

    /// Pushes that wait or are not yet handled, and their bytes, tracked ones and others.
    pub(super) fn waiting(&self) -> (usize, usize) {
        let latest: usize = self.latest.iter().flat_map(|latest| latest.values()).map(Entry::size).sum();
        let messages = self.tracked.0 + self.latest_sent.0 + self.fire.0 + self.latest_len();
        (messages, self.tracked_bytes() + self.fire.1 + latest)
    }

    /// Pushes that wait or are not yet handled, except for those of the framework itself.
    pub(super) fn unhandled(&self) -> usize {
        let queued = self.queues.iter().flatten().filter_map(|queued| match queued {
            Queued::Entry(entry) => Some(&**entry),
            Queued::Flight(_) | Queued::Latest(_) | Queued::Behind(_) => None,
        });
        let latest = self.latest.iter().flat_map(|latest| latest.values());
        let all = queued.chain(latest).chain(self.sent.iter().map(|sent| &sent.entry));
        let waiting = self.queues.iter().flatten().filter(|queued| matches!(queued, Queued::Flight(_))).count();
        all.filter(|entry| entry.origin != Origin::Framework).count() + waiting + self.flights.logged()
    }

    fn latest_len(&self) -> usize {
        self.latest.as_ref().map_or(0, |latest| latest.len())
    }

    /// Pushes that were dropped since the session began.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    fn sent_mut(&mut self, offset: u64) -> Option<&mut Sent> {
        let first = self.sent.front()?.offset;
        let place = usize::try_from(offset.checked_sub(first)?).ok()?;
        if self.sent.get(place).is_none_or(|sent| sent.offset != offset) {
            // Some before it were handled out of order.
            let place = self.sent.binary_search_by_key(&offset, |sent| sent.offset).ok()?;
            return self.sent.get_mut(place);
        }
        self.sent.get_mut(place)
    }

    /// Pushes of this class in the log, and their bytes. `Fire` has no place there.
    pub(super) fn log_of(&mut self, class: &Class) -> &mut (usize, usize) {
        match class {
            Class::Latest(_) => &mut self.latest_sent,
            Class::Tracked | Class::Durable { .. } | Class::Fire => &mut self.tracked,
        }
    }

    fn forget_sent(&mut self, class: &Class, len: usize) {
        let (messages, bytes) = self.log_of(class);
        (*messages, *bytes) = (*messages - 1, *bytes - len);
    }

    pub(super) fn refuse_unsent(&mut self, entry: Entry) {
        self.note_unsent(entry.origin);
        self.refuse(entry);
    }

    pub(super) fn missed(&self) -> u64 {
        self.missed
    }

    fn refuse(&mut self, mut entry: Entry) -> bool {
        entry.ticket.advance(Stage::Dropped(DropReason::Full));
        self.dropped += 1;
        self.missed += 1;
        false
    }

    fn fire_fits(&self, len: usize) -> bool {
        let (messages, bytes) = self.fire;
        messages < self.terms.bounds.fire_messages && (messages == 0 || bytes + len <= self.terms.bounds.fire_bytes)
    }

    fn drop_oldest_fire(&mut self) -> bool {
        let dropped = self.drop_oldest_fire_as(DropReason::Full);
        self.missed += u64::from(dropped);
        dropped
    }

    /// Of the lowest priority that has one.
    fn drop_oldest_fire_as(&mut self, reason: DropReason) -> bool {
        for queue in self.queues.iter_mut().rev() {
            let is_fire = |queued: &Queued| matches!(queued, Queued::Entry(entry) if entry.class == Class::Fire);
            let Some(at) = queue.iter().position(is_fire) else { continue };
            if let Some(Queued::Entry(mut entry)) = queue.remove(at) {
                self.fire = (self.fire.0 - 1, self.fire.1 - entry.size());
                entry.ticket.advance(Stage::Dropped(reason));
                self.free_key(entry.keyed.as_ref());
                self.note_unsent(entry.origin);
                self.dropped += 1;
                return true;
            }
        }
        false
    }
}

impl Drop for Book {
    /// The session ends. What its connection was given the client may have, and may have handled; of what an earlier
    /// connection was given it has nothing, unless that was being written, or is known to be.
    fn drop(&mut self) {
        self.land_all();
        self.terms.give_back(self.tracked_bytes());
        for sent in &mut self.sent {
            let ticket = &mut sent.entry.ticket;
            if self.terms.connected || sent.may_have_left || ticket.stage() != Stage::Queued {
                ticket.advance(Stage::Unknown);
            }
        }
        for unwritten in &mut self.unwritten {
            if let Unwritten::Fire(ticket, _) = unwritten {
                ticket.advance(Stage::Unknown);
            }
        }
    }
}
