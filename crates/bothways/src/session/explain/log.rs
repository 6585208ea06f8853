//! The last events of one session, as they are kept.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::{
    super::{SessionId, flight::Flight, push::Class, receipt::Stage},
    CallOutcome, Event, Explanation, Happened, Standing, TEXT_BYTES_MAX,
    packed::Packed,
};
use crate::connection::ConnectionId;

/// Events that may follow the end of a session: that of its connection, and of a call.
const EVENTS_AFTER_END: u32 = 2;

/// The events of one session. Its own lock: tickets reach it without the session.
#[derive(Debug)]
pub(in crate::session) struct EventLog {
    began: Instant,
    /// Changes once, under the lock of what is stored, when the session ends.
    events_max: AtomicU32,
    pub(super) stored: Mutex<Stored>,
}

#[derive(Debug)]
pub(super) enum Stored {
    Packed(Packed),
    Ring(Ring),
}

#[derive(Debug)]
pub(super) struct Ring {
    /// Each event at its number, modulo how many are kept.
    pub(super) records: Vec<Record>,
    /// The number of the next event.
    pub(super) next: u64,
}

#[derive(Debug)]
pub(super) struct Record {
    /// Microseconds since the event log began.
    pub(super) at: u64,
    pub(super) what: What,
}

/// What the ring keeps of an event.
#[derive(Debug)]
pub(in crate::session) enum What {
    Connected(ConnectionId),
    Resumable,
    NotResumed {
        wanted: Arc<str>,
        why: &'static str,
    },
    Lost {
        connection: ConnectionId,
        why: Arc<str>,
        waits: bool,
    },
    Resumed {
        connection: ConnectionId,
        generation: u64,
        repeated: usize,
    },
    TakenOver(ConnectionId),
    Bound(Option<Arc<str>>),
    Subscribed(Arc<str>),
    Unsubscribed(Arc<str>),
    GapTold(u64),
    Push(PushRecord),
    Call {
        name: Arc<str>,
        attempts: u16,
        outcome: Outcome,
        done: u32,
    },
    Ended(Arc<str>),
    /// Of the node that had the session before.
    #[cfg_attr(not(feature = "cluster"), expect(dead_code, reason = "there is one node"))]
    Elsewhere(Box<Event>),
}

#[derive(Debug)]
pub(in crate::session) enum Outcome {
    Waits,
    Answered,
    Failed(Arc<str>),
    GivenUp,
}

/// A class without its key.
#[derive(Clone, Copy, Debug)]
enum ClassName {
    Fire,
    Latest,
    Tracked,
}

impl ClassName {
    fn of(class: &Class) -> Self {
        match class {
            Class::Fire => Self::Fire,
            Class::Latest(_) => Self::Latest,
            Class::Tracked | Class::Durable { .. } => Self::Tracked,
        }
    }
}

#[derive(Debug)]
pub(in crate::session) struct PushRecord {
    name: Arc<str>,
    /// 0: none.
    offset: u64,
    bytes: u32,
    class: ClassName,
    stage: Stage,
    /// Milliseconds since it was pushed; [`NEVER`] until then.
    written: u32,
    received: u32,
    done: u32,
}

pub(in crate::session) const NEVER: u32 = u32::MAX;

/// A text as an event keeps it.
pub(in crate::session) fn text(text: &str) -> Arc<str> {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].into()
}

/// A text that is shared already, if it is short enough.
pub(in crate::session) fn shared(shared: &Arc<str>) -> Arc<str> {
    if shared.len() <= TEXT_BYTES_MAX { Arc::clone(shared) } else { text(shared) }
}

impl EventLog {
    #[cfg(test)]
    pub(in crate::session) fn new(events_max: usize) -> Self {
        Self::at(events_max, Instant::now())
    }

    fn at(events_max: usize, began: Instant) -> Self {
        let events_max = u32::try_from(events_max).unwrap_or(u32::MAX);
        Self { began, events_max: events_max.into(), stored: Mutex::new(Stored::Packed(Packed::default())) }
    }

    /// An event log that began then, with this event.
    pub(in crate::session) fn begun(events_max: usize, began: Instant, what: What) -> Self {
        let event_log = Self::at(events_max, began);
        event_log.note_at(0, what);
        event_log
    }

    /// When the session began.
    pub(in crate::session) fn began(&self) -> Instant {
        self.began
    }

    fn events_max(&self) -> u32 {
        self.events_max.load(Ordering::Relaxed)
    }

    /// Since it began.
    pub(in crate::session) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn micros(&self) -> u64 {
        self.now().as_micros() as u64
    }

    /// Takes an event in; answers its number, by which [`Self::update`] finds it.
    pub(in crate::session) fn note(&self, what: What) -> u64 {
        if self.events_max() == 0 {
            return u64::MAX;
        }
        self.note_at(self.micros(), what)
    }

    fn note_at(&self, at: u64, what: What) -> u64 {
        if self.events_max() == 0 {
            return u64::MAX;
        }
        let mut stored = self.stored.lock();
        let record = Record { at, what };
        match &mut *stored {
            Stored::Ring(ring) => ring.push(record, self.events_max()),
            Stored::Packed(packed) => match packed.push(&record, self.events_max()) {
                Some(number) => number,
                None => {
                    let mut ring = Ring::after(packed);
                    let number = ring.push(record, self.events_max());
                    *stored = Stored::Ring(ring);
                    number
                }
            },
        }
    }

    /// Notes a push of this class; its ticket tells how it goes on.
    pub(in crate::session) fn note_push(&self, name: &Arc<str>, class: &Class, bytes: usize, now: Duration) -> u64 {
        if self.events_max() == 0 {
            return u64::MAX;
        }
        let class = ClassName::of(class);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let (stage, name) = (Stage::Queued, Arc::clone(name));
        let (written, received, done) = (NEVER, NEVER, NEVER);
        let what = What::Push(PushRecord { name, offset: 0, bytes, class, stage, written, received, done });
        self.note_at(now.as_micros() as u64, what)
    }

    /// Takes in so many pushes that have come to their ends: the last ones are kept.
    pub(in crate::session) fn ended(&self, pushes: usize) -> Ended<'_> {
        let events_max = self.events_max();
        if events_max == 0 || pushes == 0 {
            return Ended { stored: None, events_max, left: pushes };
        }
        let mut stored = self.stored.lock();
        if let Stored::Packed(packed) = &*stored {
            *stored = Stored::Ring(Ring::after(packed));
        }
        Ended { stored: Some(stored), events_max, left: pushes }
    }

    /// Notes a push that is on its way already, at this moment since the session began; its ticket tells how it goes on.
    pub(in crate::session) fn note_flight(&self, push: &FlightEvent<'_>) -> u64 {
        self.note_at(push.at, push.what())
    }

    /// A push reached a stage.
    pub(in crate::session) fn reached(&self, number: u64, to: Stage, now: Duration) {
        self.update(number, now.as_micros() as u64, |after, what| {
            let What::Push(push) = what else { return };
            push.stage = to;
            match to {
                Stage::Written => push.written = after,
                Stage::Received => push.received = after,
                _ => push.done = after,
            }
        });
    }

    /// A push was given its offset.
    pub(in crate::session) fn numbered(&self, number: u64, offset: u64) {
        self.update(number, 0, |_, what| {
            if let What::Push(push) = what {
                push.offset = offset;
            }
        });
    }

    fn update(&self, number: u64, now: u64, change: impl FnOnce(u32, &mut What)) {
        if self.events_max() == 0 {
            return;
        }
        // What is packed does not change.
        let Stored::Ring(ring) = &mut *self.stored.lock() else { return };
        if let Some(record) = ring.get_mut(number, self.events_max()) {
            change(millis_between(record.at, now), &mut record.what);
        }
    }

    /// Notes a call; the answer follows it.
    pub(in crate::session) fn call(&self, service_path: &str, service_method: &str) -> CallEvent<'_> {
        if self.events_max() == 0 {
            return CallEvent { event_log: self, number: u64::MAX, outcome: None };
        }
        let name = name(service_path, service_method);
        let number = self.note(What::Call { name, attempts: 0, outcome: Outcome::Waits, done: NEVER });
        CallEvent { event_log: self, number, outcome: Some(Outcome::GivenUp) }
    }

    /// The session has ended, and few events follow: gives back memory that they do not need. Answers how many there
    /// can be in all from here on.
    pub(in crate::session) fn seal(&self) -> usize {
        let mut stored = self.stored.lock();
        let len = match &*stored {
            Stored::Packed(packed) => packed.len(),
            Stored::Ring(ring) => ring.records.len(),
        };
        // A ring that is not full grows at its end, so that each event keeps its place.
        let most = self.events_max().min(u32::try_from(len).unwrap_or(u32::MAX).saturating_add(EVENTS_AFTER_END));
        self.events_max.store(most, Ordering::Relaxed);
        if let Stored::Ring(ring) = &mut *stored {
            ring.records.shrink_to(most as usize);
            ring.records.reserve_exact(most as usize - len);
        }
        most as usize
    }

    /// What there is to tell: `Some(true)` of something sent, `Some(false)` of a user, a session that was wanted or
    /// older events that are forgotten, `None` of a connection alone.
    pub(in crate::session) fn worth(&self) -> Option<bool> {
        let worth = |record: &Record| match &record.what {
            What::Push(_) | What::Call { .. } | What::Subscribed(_) | What::GapTold(_) => Some(true),
            What::Bound(Some(_)) | What::NotResumed { .. } => Some(false),
            _ => None,
        };
        match &*self.stored.lock() {
            Stored::Packed(packed) => packed.records().filter_map(|record| worth(&record)).max(),
            Stored::Ring(ring) if ring.first() != 0 => {
                Some(ring.records.iter().any(|record| worth(record) == Some(true)))
            }
            Stored::Ring(ring) => ring.records.iter().filter_map(worth).max(),
        }
    }

    /// That of a session which comes from another node, with its last events there.
    #[cfg(feature = "cluster")]
    pub(in crate::session) fn restored(
        events_max: usize,
        began: Instant,
        events: impl Iterator<Item = (u64, Event)>,
    ) -> Self {
        let event_log = Self::at(events_max, began);
        for (at, event) in events {
            event_log.note_at(at, What::Elsewhere(event.into()));
        }
        event_log
    }

    /// The last events, each at so many microseconds since the session began.
    #[cfg(feature = "cluster")]
    pub(in crate::session) fn last_events(&self, max: usize) -> Vec<(u64, Event)> {
        let told = |record: &Record| (record.at, record.what.event());
        let mut events: Vec<(u64, Event)> = match &*self.stored.lock() {
            Stored::Packed(packed) => packed.records().map(|record| told(&record)).collect(),
            Stored::Ring(ring) => ring.in_order().map(told).collect(),
        };
        events.sort_by_key(|(at, _)| *at);
        events.split_off(events.len().saturating_sub(max))
    }

    /// The story so far.
    pub(in crate::session) fn snapshot(
        &self,
        session: SessionId,
        user: Option<&str>,
        standing: Standing,
    ) -> Explanation {
        // The clock may have been set since; times are right as of now.
        let began =
            (SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()).saturating_sub(self.began.elapsed());
        let happened = |record: &Record| Happened {
            at_ms: (began + Duration::from_micros(record.at)).as_millis() as u64,
            event: record.what.event(),
        };

        let (forgotten, events) = match &*self.stored.lock() {
            Stored::Packed(packed) => (0, packed.records().map(|record| happened(&record)).collect()),
            Stored::Ring(ring) => {
                let mut records: Vec<&Record> = ring.in_order().collect();
                // A push that went straight to its connection was noted when it came to its end.
                records.sort_by_key(|record| record.at);
                (ring.first(), records.into_iter().map(happened).collect())
            }
        };

        Explanation { session, user: user.map(str::to_owned), standing, held: None, forgotten, events }
    }
}

/// A push that went straight to its connection, as it is told.
#[derive(Clone, Copy)]
pub(in crate::session) struct FlightEvent<'a> {
    pub(in crate::session) flight: &'a Flight,
    /// When it was pushed, in microseconds since the event log began.
    pub(in crate::session) at: u64,
    /// 0: none.
    pub(in crate::session) offset: u64,
    pub(in crate::session) stage: Stage,
    /// Milliseconds since it was pushed; [`NEVER`] until then.
    pub(in crate::session) written: u32,
    pub(in crate::session) received: u32,
    pub(in crate::session) done: u32,
}

#[cfg(test)]
impl<'a> FlightEvent<'a> {
    pub(in crate::session) fn for_test(flight: &'a Flight) -> Self {
        Self { flight, at: 0, offset: 0, stage: Stage::Handled, written: 0, received: 0, done: 0 }
    }
}

impl FlightEvent<'_> {
    fn what(&self) -> What {
        let Self { flight, offset, stage, written, received, done, .. } = *self;
        let (name, class) = (Arc::clone(&flight.name), ClassName::of(&flight.class));
        let bytes = u32::try_from(flight.encoded.frame.len()).unwrap_or(u32::MAX);
        What::Push(PushRecord { name, offset, bytes, class, stage, written, received, done })
    }
}

/// Pushes that end together.
pub(in crate::session) struct Ended<'a> {
    stored: Option<MutexGuard<'a, Stored>>,
    events_max: u32,
    /// Those that are still to come.
    left: usize,
}

impl Ended<'_> {
    /// The next one, if it is kept.
    pub(in crate::session) fn push<'a>(&mut self, push: impl FnOnce() -> FlightEvent<'a>) {
        let Some(Stored::Ring(ring)) = self.stored.as_deref_mut() else { return };
        let is_full = ring.records.len() == self.events_max as usize;
        if is_full && (self.events_max as usize) < self.left {
            // Those that follow take all places.
            ring.next += 1;
        } else {
            let push = push();
            ring.push(Record { at: push.at, what: push.what() }, self.events_max);
        }
        self.left -= 1;
    }
}

/// So many milliseconds lie between these, in microseconds.
fn millis_between(from: u64, to: u64) -> u32 {
    u32::try_from(to.saturating_sub(from) / 1000).unwrap_or(NEVER - 1)
}

impl Ring {
    /// Continues after the packed events.
    pub(super) fn after(packed: &Packed) -> Self {
        let mut records = Vec::with_capacity(packed.len() + 1);
        records.extend(packed.records());
        Self { next: records.len() as u64, records }
    }

    pub(super) fn push(&mut self, record: Record, events_max: u32) -> u64 {
        let number = self.next;
        match self.records.get_mut(place(number, events_max)) {
            Some(oldest) => *oldest = record,
            None => {
                self.make_room(events_max);
                self.records.push(record);
            }
        }
        self.next += 1;
        number
    }

    /// Room for one more. To four times as much at once: each step moves what is there, and a session that gets pushes gets
    /// more of them.
    fn make_room(&mut self, events_max: u32) {
        let (len, room) = (self.records.len(), self.records.capacity());
        if len == room {
            let wanted = (4 * room).min(events_max as usize).max(len + 1);
            self.records.reserve_exact(wanted - len);
        }
    }

    /// The number of the first record: that many were forgotten.
    pub(super) fn first(&self) -> u64 {
        self.next - self.records.len() as u64
    }

    pub(super) fn get_mut(&mut self, number: u64, events_max: u32) -> Option<&mut Record> {
        let is_kept = self.first() <= number && number < self.next;
        self.records.get_mut(place(number, events_max)).filter(|_| is_kept)
    }

    /// Oldest first.
    pub(super) fn in_order(&self) -> impl Iterator<Item = &Record> {
        let oldest = self.first().checked_rem(self.records.len() as u64).unwrap_or(0);
        let (newer, older) = self.records.split_at(oldest as usize);
        older.iter().chain(newer)
    }
}

fn place(number: u64, events_max: u32) -> usize {
    (number % u64::from(events_max)) as usize
}

/// `Path.method`, cut to what an event keeps.
pub(in crate::session) fn name(service_path: &str, service_method: &str) -> Arc<str> {
    text(&format!("{service_path}.{service_method}"))
}

impl What {
    pub(in crate::session) fn event(&self) -> Event {
        let known = |after: u32| (after != NEVER).then_some(after);

        match self {
            Self::Connected(connection) => Event::Connected(connection.to_string()),
            Self::Resumable => Event::Resumable,
            Self::NotResumed { wanted, why } => {
                Event::NotResumed { wanted: wanted.to_string(), why: (*why).to_owned() }
            }
            Self::Lost { connection, why, waits } => {
                Event::Lost { connection: connection.to_string(), why: why.to_string(), waits: *waits }
            }
            Self::Resumed { connection, generation, repeated } => {
                let (generation, repeated) = (*generation, *repeated);
                Event::Resumed { connection: connection.to_string(), generation, repeated }
            }
            Self::TakenOver(connection) => Event::TakenOver(connection.to_string()),
            Self::Bound(user) => Event::Bound(user.as_deref().map(str::to_owned)),
            Self::Subscribed(pattern) => Event::Subscribed(pattern.to_string()),
            Self::Unsubscribed(pattern) => Event::Unsubscribed(pattern.to_string()),
            Self::GapTold(missed) => Event::GapTold(*missed),
            Self::Push(push) => Event::Push {
                name: push.name.to_string(),
                class: match push.class {
                    ClassName::Fire => "fire",
                    ClassName::Latest => "latest",
                    ClassName::Tracked => "tracked",
                }
                .to_owned(),
                offset: (push.offset != 0).then_some(push.offset),
                bytes: push.bytes,
                stage: push.stage,
                written_ms: known(push.written),
                received_ms: known(push.received),
                done_ms: known(push.done),
            },
            Self::Call { name, attempts, outcome, done } => Event::Call {
                name: name.to_string(),
                attempts: *attempts,
                outcome: match outcome {
                    Outcome::Waits => CallOutcome::Waits,
                    Outcome::Answered => CallOutcome::Answered,
                    Outcome::Failed(why) => CallOutcome::Failed(why.to_string()),
                    Outcome::GivenUp => CallOutcome::GivenUp,
                },
                done_ms: known(*done),
            },
            Self::Ended(why) => Event::Ended(why.to_string()),
            Self::Elsewhere(event) => (**event).clone(),
        }
    }
}

/// A call under way. Dropped before its end, it was given up.
pub(in crate::session) struct CallEvent<'a> {
    event_log: &'a EventLog,
    number: u64,
    outcome: Option<Outcome>,
}

impl CallEvent<'_> {
    /// It is sent, once more perhaps.
    pub(in crate::session) fn sent(&self) {
        self.event_log.update(self.number, 0, |_, what| {
            if let What::Call { attempts, .. } = what {
                *attempts = attempts.saturating_add(1);
            }
        });
    }

    /// It has come to its end.
    pub(in crate::session) fn ended<T, E: fmt::Display>(mut self, result: &Result<T, E>) {
        if self.outcome.is_some() {
            self.outcome = Some(match result {
                Ok(_) => Outcome::Answered,
                Err(error) => Outcome::Failed(text(&error.to_string())),
            });
        }
    }
}

impl Drop for CallEvent<'_> {
    fn drop(&mut self) {
        let Some(ended) = self.outcome.take() else { return };
        self.event_log.update(self.number, self.event_log.micros(), |after, what| {
            if let What::Call { outcome, done, .. } = what {
                (*outcome, *done) = (ended, after);
            }
        });
    }
}
