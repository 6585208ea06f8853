//! Why a message arrived, or did not: what lately happened to a session, told as a story.
//!
//! Each session has a [`Trail`]: a ring of its last events, [`EVENTS_MAX`] unless chosen otherwise. A push is one
//! event, which its ticket keeps up to date, so that a trail covers as many pushes as it has places. No payload,
//! metadata or token is ever kept, and every text is cut at [`TEXT_BYTES_MAX`]. An event takes
//! [`EVENT_BYTES_MAX`] at most; memory is taken as events come. The first ones, before anything is sent, are packed: of
//! most sessions there are no others.
//!
//! A session that ended leaves its trail behind, if there is something to tell: see `pasts.rs`.

mod opening;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bothways_proto::one_line;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use self::opening::Opening;
use super::{SessionId, push::Class, receipt::DropReason, receipt::Stage};
use crate::connection::ConnectionId;

/// Events that a session keeps: some minutes of a chat, some seconds of a busy feed.
pub(super) const EVENTS_MAX: usize = 64;

/// Sessions that ended and can still be explained.
pub(super) const ENDED_MAX: usize = 4096;

/// Longer texts in an event are cut: names, reasons.
pub(super) const TEXT_BYTES_MAX: usize = 128;

/// Events that may follow the end of a session: that of its connection, and of a call.
const EVENTS_AFTER_END: u32 = 2;

/// What one event takes at most: its place in the ring, and its two texts.
pub(super) const EVENT_BYTES_MAX: usize = size_of::<Record>() + 2 * (TEXT_BYTES_MAX + 2 * size_of::<usize>());

const _: () = assert!(EVENT_BYTES_MAX <= 352, "the number in docs/slow-clients.md");

/// What lately happened to one session.
///
/// ```text
/// session 0b5c… of ann, connected as c12
/// 2026-03-01 12:00:01.003 connected as c12
/// 2026-03-01 12:00:01.004 user ann
/// 2026-03-01 12:00:07.120 push Chat.say (tracked, offset 1, 45 B): written after 0 ms, received after 2 ms, handled after 2 ms
/// ```
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Explanation {
    /// The session.
    pub session: SessionId,
    /// The user it is, or was last, bound to.
    pub user: Option<String>,
    /// Where it stands now.
    pub standing: Standing,
    /// The oldest push that its client has received, and not handled.
    #[serde(default)]
    pub held: Option<Held>,
    /// Older events that are not kept any more.
    pub forgotten: u64,
    /// What happened, oldest first.
    pub events: Vec<Happened>,
}

/// A push that a client has received, and that its application is not done with. It keeps its place in the session's log;
/// those behind it that are handled do not.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Held {
    /// The number under which it was sent.
    pub offset: u64,
    /// Since when it is known to be the oldest, in milliseconds.
    pub for_ms: u64,
}

/// Where a session stands.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub enum Standing {
    /// It has this connection, such as `c12`.
    Connected(String),
    /// Its client is away, and may come back.
    Away,
    /// It ended.
    Ended,
}

/// One event and its time.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Happened {
    /// Milliseconds since 1970, by the server's clock.
    pub at_ms: u64,
    /// What it was.
    pub event: Event,
}

/// What can happen to a session. Times are milliseconds since the event began.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub enum Event {
    /// Its client connected, as this connection.
    Connected(String),
    /// Its client speaks sessions, and may come back to it.
    Resumable,
    /// Its client wanted another session back, and did not get it.
    NotResumed {
        /// The session that it wanted.
        wanted: String,
        /// Why not: `expired`, `gap`, `unknown` or `revoked`.
        why: String,
    },
    /// The connection was lost.
    Lost {
        /// Which, such as `c12`.
        connection: String,
        /// Why.
        why: String,
        /// True if the session waits for its client to come back.
        waits: bool,
    },
    /// Its client came back to it.
    Resumed {
        /// The new connection.
        connection: String,
        /// How many connections it has had.
        generation: u64,
        /// Tracked pushes that had been sent, and that its client had not received: they are sent again, but for
        /// those whose time is over.
        repeated: usize,
    },
    /// A new connection took it over while this one was still open.
    TakenOver(String),
    /// It was bound to a user; `None`: to nobody any more.
    Bound(Option<String>),
    /// It subscribed to this pattern.
    Subscribed(String),
    /// It ended a subscription.
    Unsubscribed(String),
    /// Its client was told that so many pushes were dropped since the session began.
    GapTold(u64),
    /// Something was pushed to it.
    Push {
        /// Path and method, with a dot between them.
        name: String,
        /// `fire`, `latest` or `tracked`.
        class: String,
        /// The number under which a tracked push was sent.
        offset: Option<u64>,
        /// The bytes of its frame.
        bytes: u32,
        /// How far it came.
        stage: Stage,
        /// When the kernel had it.
        written_ms: Option<u32>,
        /// When the client's library had it.
        received_ms: Option<u32>,
        /// When it came to its end, whatever that is.
        done_ms: Option<u32>,
    },
    /// Its client was called.
    Call {
        /// Path and method, with a dot between them.
        name: String,
        /// How often it was sent: more than once if the connection was lost.
        attempts: u16,
        /// What came of it.
        outcome: CallOutcome,
        /// When that was.
        done_ms: Option<u32>,
    },
    /// It ended.
    Ended(String),
}

/// What came of a call to a client.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub enum CallOutcome {
    /// It waits for its reply.
    Waits,
    /// It was answered.
    Answered,
    /// It failed, for this reason.
    Failed(String),
    /// Its caller does not wait for it any more.
    GivenUp,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "session {}", self.session)?;
        if let Some(user) = &self.user {
            write!(f, " of {}", one_line(user))?;
        }
        match &self.standing {
            Standing::Connected(connection) => write!(f, ", connected as {connection}")?,
            Standing::Away => f.write_str(", its client is away")?,
            Standing::Ended => f.write_str(", ended")?,
        }
        if let Some(Held { offset, for_ms }) = self.held {
            write!(f, "\nits client has held offset {offset} for {} s", for_ms / 1000)?;
        }
        if self.forgotten != 0 {
            write!(f, "\n({} older events are not kept)", self.forgotten)?;
        }
        self.events.iter().try_for_each(|happened| write!(f, "\n{happened}"))
    }
}

impl fmt::Display for Happened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, in_day) = (self.at_ms / 86_400_000, self.at_ms % 86_400_000);
        let (year, month, day) = civil(days);
        let (hour, minute, second) = (in_day / 3_600_000, in_day / 60_000 % 60, in_day / 1000 % 60);
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{:03} ", in_day % 1000)?;
        self.event.fmt(f)
    }
}

/// One line, whatever the names and reasons in it hold.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        one_line(&Told(self).to_string()).fmt(f)
    }
}

/// An event as it is told, with its names as they came.
struct Told<'a>(&'a Event);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Event::Connected(connection) => write!(f, "connected as {connection}"),
            Event::Resumable => f.write_str("its client speaks sessions and may come back to it"),
            Event::NotResumed { wanted, why } => write!(f, "its client wanted session {wanted} back: {why}"),
            Event::Lost { connection, why, waits } => {
                let then = if *waits { "; the session waits for its client" } else { "" };
                write!(f, "connection {connection} lost: {why}{then}")
            }
            Event::Resumed { connection, generation, repeated } => {
                write!(f, "resumed as {connection}, generation {generation}; {repeated} pushes are sent again")
            }
            Event::TakenOver(connection) => write!(f, "taken over from {connection}, which was still open"),
            Event::Bound(Some(user)) => write!(f, "user {user}"),
            Event::Bound(None) => f.write_str("no user any more"),
            Event::Subscribed(pattern) => write!(f, "subscribed to {pattern}"),
            Event::Unsubscribed(pattern) => write!(f, "unsubscribed from {pattern}"),
            Event::GapTold(missed) => write!(f, "told its client that {missed} pushes were dropped so far"),
            Event::Push { name, class, offset, bytes, stage, written_ms, received_ms, done_ms } => {
                write!(f, "push {name} ({class}")?;
                if let Some(offset) = offset {
                    write!(f, ", offset {offset}")?;
                }
                write!(f, ", {bytes} B): ")?;
                for (what, after) in [("written", written_ms), ("received", received_ms)] {
                    if let Some(after) = after {
                        write!(f, "{what} after {after} ms, ")?;
                    }
                }
                if let Stage::Failed(how) = stage {
                    write!(f, "failed: {how},")?;
                }
                f.write_str(match stage {
                    Stage::Failed(_) => "",
                    Stage::Unknown => "the session ended before its client said what became of it,",
                    Stage::Queued => "waits",
                    Stage::Written => "its client has not confirmed it",
                    Stage::Received => "its client has not handled it yet",
                    Stage::Handled => "handled",
                    Stage::PlainWritten => "written, and nothing more is ever confirmed,",
                    Stage::Expired => "expired",
                    Stage::Superseded => "superseded by a newer value of its key",
                    Stage::Duplicate => "not sent, as one of the same idempotency key was,",
                    Stage::Dropped(DropReason::Full) => "dropped because too much waited already,",
                    Stage::Dropped(DropReason::Disconnected) => "dropped with its connection",
                    Stage::Dropped(DropReason::SessionEnded) => "dropped with the session",
                })?;
                done_ms.map_or(Ok(()), |after| write!(f, " after {after} ms"))
            }
            Event::Call { name, attempts, outcome, done_ms } => {
                write!(f, "call {name}")?;
                if 1 < *attempts {
                    write!(f, " (sent {attempts} times)")?;
                }
                match outcome {
                    CallOutcome::Waits => f.write_str(": waits for its reply")?,
                    CallOutcome::Answered => f.write_str(": answered")?,
                    CallOutcome::Failed(why) => write!(f, ": failed: {why};")?,
                    CallOutcome::GivenUp => f.write_str(": given up by its caller")?,
                }
                done_ms.map_or(Ok(()), |after| write!(f, " after {after} ms"))
            }
            Event::Ended(why) => write!(f, "ended: {why}"),
        }
    }
}

/// Year, month and day of a day since 1970, in the calendar of today.
fn civil(days: u64) -> (u64, u64, u64) {
    // Eras of 400 years that begin on the first of March: the leap day comes last in its year.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// The events of one session. Its own lock: tickets reach it without the session.
#[derive(Debug)]
pub(super) struct Trail {
    began: Instant,
    /// Changes once, under the lock of the story, when the session ends.
    events_max: AtomicU32,
    story: Mutex<Story>,
}

#[derive(Debug)]
enum Story {
    Opening(Opening),
    Ring(Ring),
}

#[derive(Debug)]
struct Ring {
    /// Each event at its number, modulo how many are kept.
    records: Vec<Record>,
    /// The number of the next event.
    next: u64,
}

#[derive(Debug)]
struct Record {
    /// Microseconds since the trail began.
    at: u64,
    what: What,
}

/// What the ring keeps of an event.
#[derive(Debug)]
pub(super) enum What {
    Connected(ConnectionId),
    Resumable,
    NotResumed { wanted: Arc<str>, why: &'static str },
    Lost { connection: ConnectionId, why: Arc<str>, waits: bool },
    Resumed { connection: ConnectionId, generation: u64, repeated: usize },
    TakenOver(ConnectionId),
    Bound(Option<Arc<str>>),
    Subscribed(Arc<str>),
    Unsubscribed(Arc<str>),
    GapTold(u64),
    Push(PushRecord),
    Call { name: Arc<str>, attempts: u16, outcome: Outcome, done: u32 },
    Ended(Arc<str>),
}

#[derive(Debug)]
pub(super) enum Outcome {
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

#[derive(Debug)]
pub(super) struct PushRecord {
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

const NEVER: u32 = u32::MAX;

/// A text as an event keeps it.
pub(super) fn text(text: &str) -> Arc<str> {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].into()
}

/// A text that is shared already, if it is short enough.
pub(super) fn shared(shared: &Arc<str>) -> Arc<str> {
    if shared.len() <= TEXT_BYTES_MAX { Arc::clone(shared) } else { text(shared) }
}

impl Trail {
    #[cfg(test)]
    pub(super) fn new(events_max: usize) -> Self {
        Self::at(events_max, Instant::now())
    }

    fn at(events_max: usize, began: Instant) -> Self {
        let events_max = u32::try_from(events_max).unwrap_or(u32::MAX);
        Self { began, events_max: events_max.into(), story: Mutex::new(Story::Opening(Opening::default())) }
    }

    /// A trail that began then, with this event.
    pub(super) fn begun(events_max: usize, began: Instant, what: What) -> Self {
        let trail = Self::at(events_max, began);
        trail.note_at(0, what);
        trail
    }

    /// When the session began.
    pub(super) fn began(&self) -> Instant {
        self.began
    }

    fn events_max(&self) -> u32 {
        self.events_max.load(Ordering::Relaxed)
    }

    fn micros(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }

    /// Takes an event in; answers its number, by which [`Self::update`] finds it.
    pub(super) fn note(&self, what: What) -> u64 {
        if self.events_max() == 0 {
            return u64::MAX;
        }
        self.note_at(self.micros(), what)
    }

    fn note_at(&self, at: u64, what: What) -> u64 {
        if self.events_max() == 0 {
            return u64::MAX;
        }
        let mut story = self.story.lock();
        let record = Record { at, what };
        match &mut *story {
            Story::Ring(ring) => ring.push(record, self.events_max()),
            Story::Opening(opening) => match opening.push(&record, self.events_max()) {
                Some(number) => number,
                None => {
                    let mut ring = Ring::after(opening);
                    let number = ring.push(record, self.events_max());
                    *story = Story::Ring(ring);
                    number
                }
            },
        }
    }

    /// Notes a push of this class; its ticket tells how it goes on.
    pub(super) fn note_push(&self, name: &Arc<str>, class: &Class, bytes: usize) -> u64 {
        let class = match class {
            Class::Fire => ClassName::Fire,
            Class::Latest(_) => ClassName::Latest,
            Class::Tracked => ClassName::Tracked,
        };
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let (stage, name) = (Stage::Queued, Arc::clone(name));
        let (written, received, done) = (NEVER, NEVER, NEVER);
        self.note(What::Push(PushRecord { name, offset: 0, bytes, class, stage, written, received, done }))
    }

    /// A push reached a stage.
    pub(super) fn reached(&self, number: u64, to: Stage) {
        self.update(number, |after, what| {
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
    pub(super) fn numbered(&self, number: u64, offset: u64) {
        self.update(number, |_, what| {
            if let What::Push(push) = what {
                push.offset = offset;
            }
        });
    }

    fn update(&self, number: u64, change: impl FnOnce(u32, &mut What)) {
        if self.events_max() == 0 {
            return;
        }
        let now = self.micros();
        // What is packed does not change.
        let Story::Ring(ring) = &mut *self.story.lock() else { return };
        if let Some(record) = ring.get_mut(number, self.events_max()) {
            let after = u32::try_from(now.saturating_sub(record.at) / 1000).unwrap_or(NEVER - 1);
            change(after, &mut record.what);
        }
    }

    /// Notes a call; the answer follows it.
    pub(super) fn call(&self, service_path: &str, service_method: &str) -> CallTrail<'_> {
        if self.events_max() == 0 {
            return CallTrail { trail: self, number: u64::MAX, outcome: None };
        }
        let name = name(service_path, service_method);
        let number = self.note(What::Call { name, attempts: 0, outcome: Outcome::Waits, done: NEVER });
        CallTrail { trail: self, number, outcome: Some(Outcome::GivenUp) }
    }

    /// The session has ended, and few events follow: gives back memory that they do not need. Answers how many there
    /// can be in all from here on.
    pub(super) fn seal(&self) -> usize {
        let mut story = self.story.lock();
        let len = match &*story {
            Story::Opening(opening) => opening.len(),
            Story::Ring(ring) => ring.records.len(),
        };
        // A ring that is not full grows at its end, so that each event keeps its place.
        let most = self.events_max().min(u32::try_from(len).unwrap_or(u32::MAX).saturating_add(EVENTS_AFTER_END));
        self.events_max.store(most, Ordering::Relaxed);
        if let Story::Ring(ring) = &mut *story {
            ring.records.shrink_to(most as usize);
            ring.records.reserve_exact(most as usize - len);
        }
        most as usize
    }

    /// What there is to tell: `Some(true)` of something sent, `Some(false)` of a user, a session that was wanted or
    /// older events that are forgotten, `None` of nothing but a connection.
    pub(super) fn worth(&self) -> Option<bool> {
        let worth = |record: &Record| match &record.what {
            What::Push(_) | What::Call { .. } | What::Subscribed(_) | What::GapTold(_) => Some(true),
            What::Bound(Some(_)) | What::NotResumed { .. } => Some(false),
            _ => None,
        };
        match &*self.story.lock() {
            Story::Opening(opening) => opening.records().filter_map(|record| worth(&record)).max(),
            Story::Ring(ring) if ring.first() != 0 => {
                Some(ring.records.iter().any(|record| worth(record) == Some(true)))
            }
            Story::Ring(ring) => ring.records.iter().filter_map(worth).max(),
        }
    }

    /// The story so far.
    pub(super) fn tell(&self, session: SessionId, user: Option<&str>, standing: Standing) -> Explanation {
        // The clock may have been set since; times are right as of now.
        let began =
            (SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()).saturating_sub(self.began.elapsed());
        let happened = |record: &Record| Happened {
            at_ms: (began + Duration::from_micros(record.at)).as_millis() as u64,
            event: record.what.event(),
        };
        let (forgotten, events) = match &*self.story.lock() {
            Story::Opening(opening) => (0, opening.records().map(|record| happened(&record)).collect()),
            Story::Ring(ring) => (ring.first(), ring.in_order().map(happened).collect()),
        };
        Explanation { session, user: user.map(str::to_owned), standing, held: None, forgotten, events }
    }
}

impl Ring {
    /// Goes on behind what is packed.
    fn after(opening: &Opening) -> Self {
        let mut records = Vec::with_capacity(opening.len() + 1);
        records.extend(opening.records());
        Self { next: records.len() as u64, records }
    }

    fn push(&mut self, record: Record, events_max: u32) -> u64 {
        let number = self.next;
        match self.records.get_mut(place(number, events_max)) {
            Some(oldest) => *oldest = record,
            None => self.records.push(record),
        }
        self.next += 1;
        number
    }

    /// The number of the first record: that many were forgotten.
    fn first(&self) -> u64 {
        self.next - self.records.len() as u64
    }

    fn get_mut(&mut self, number: u64, events_max: u32) -> Option<&mut Record> {
        let is_kept = self.first() <= number && number < self.next;
        self.records.get_mut(place(number, events_max)).filter(|_| is_kept)
    }

    /// Oldest first.
    fn in_order(&self) -> impl Iterator<Item = &Record> {
        let oldest = self.first().checked_rem(self.records.len() as u64).unwrap_or(0);
        let (newer, older) = self.records.split_at(oldest as usize);
        older.iter().chain(newer)
    }
}

fn place(number: u64, events_max: u32) -> usize {
    (number % u64::from(events_max)) as usize
}

/// `Path.method`, cut to what an event keeps.
pub(super) fn name(service_path: &str, service_method: &str) -> Arc<str> {
    text(&format!("{service_path}.{service_method}"))
}

impl What {
    fn event(&self) -> Event {
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
        }
    }
}

/// A call under way. Dropped before its end, it was given up.
pub(super) struct CallTrail<'a> {
    trail: &'a Trail,
    number: u64,
    outcome: Option<Outcome>,
}

impl CallTrail<'_> {
    /// It is sent, once more perhaps.
    pub(super) fn sent(&self) {
        self.trail.update(self.number, |_, what| {
            if let What::Call { attempts, .. } = what {
                *attempts = attempts.saturating_add(1);
            }
        });
    }

    /// It has come to its end.
    pub(super) fn ended<T, E: fmt::Display>(mut self, result: &Result<T, E>) {
        if self.outcome.is_some() {
            self.outcome = Some(match result {
                Ok(_) => Outcome::Answered,
                Err(error) => Outcome::Failed(text(&error.to_string())),
            });
        }
    }
}

impl Drop for CallTrail<'_> {
    fn drop(&mut self) {
        let Some(ended) = self.outcome.take() else { return };
        self.trail.update(self.number, |after, what| {
            if let What::Call { outcome, done, .. } = what {
                (*outcome, *done) = (ended, after);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(trail: &Trail) -> Explanation {
        trail.tell(SessionId::random(), None, Standing::Ended)
    }

    /// A trail keeps the newest, says how many it forgot, and what is forgotten is not mistaken for what stays.
    #[tokio::test(start_paused = true)]
    async fn the_newest_events_stay() {
        let trail = Trail::new(3);
        let name: Arc<str> = "Chat.say".into();
        let first = trail.note_push(&name, &Class::Fire, 40);
        let others: Vec<u64> = (0..3).map(|_| trail.note_push(&name, &Class::Tracked, 41)).collect();
        tokio::time::advance(Duration::from_millis(7)).await;
        trail.reached(first, Stage::PlainWritten);
        trail.numbered(others[1], 17);
        trail.reached(others[1], Stage::Written);
        let story = told(&trail);
        assert_eq!((story.forgotten, story.events.len()), (1, 3));
        let texts: Vec<String> = story.events.iter().map(|happened| happened.event.to_string()).collect();
        assert_eq!(
            texts,
            [
                "push Chat.say (tracked, 41 B): waits",
                "push Chat.say (tracked, offset 17, 41 B): written after 7 ms, its client has not confirmed it",
                "push Chat.say (tracked, 41 B): waits",
            ]
        );
    }

    /// A trail of no events keeps none.
    #[test]
    fn a_trail_can_be_turned_off() {
        let trail = Trail::new(0);
        let number = trail.note_push(&"A.b".into(), &Class::Fire, 1);
        trail.reached(number, Stage::Written);
        drop(trail.call("A", "b"));
        assert_eq!(told(&trail).events, []);
        assert!(matches!(&*trail.story.lock(), Story::Opening(opening) if opening.len() == 0));
    }

    /// However long a name is, an event is small.
    #[test]
    fn texts_are_cut_between_characters() {
        let long = "ü".repeat(1000);
        assert_eq!(name(&long, "x").len(), TEXT_BYTES_MAX);
        assert_eq!(text(&format!("x{long}")).len(), TEXT_BYTES_MAX - 1);
    }

    /// A call that nobody waits for any more says so.
    #[tokio::test(start_paused = true)]
    async fn a_call_tells_its_end() {
        let trail = Trail::new(8);
        let given_up = trail.call("A", "b");
        given_up.sent();
        tokio::time::advance(Duration::from_millis(3)).await;
        drop(given_up);
        let failed = trail.call("A", "c");
        failed.sent();
        failed.sent();
        failed.ended(&Err::<(), _>("no"));
        let texts: Vec<String> = told(&trail).events.iter().map(|happened| happened.event.to_string()).collect();
        assert_eq!(
            texts,
            ["call A.b: given up by its caller after 3 ms", "call A.c (sent 2 times): failed: no; after 0 ms"]
        );
    }

    #[test]
    fn days_have_their_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_512), (2026, 2, 28));
        assert_eq!(civil(20_513), (2026, 3, 1));
        let happened = Happened { at_ms: 951_782_400_000 + 45_296_789, event: Event::Resumable };
        assert!(happened.to_string().starts_with("2000-02-29 12:34:56.789 "), "{happened}");
    }

    /// What happens is told as it was noted, from the packed beginning and from the ring alike.
    #[tokio::test(start_paused = true)]
    async fn each_event_has_its_words() {
        let connection = ConnectionId::new;
        let name = |text: &str| Arc::<str>::from(text);
        let noted: Vec<(What, &str)> = vec![
            (What::Connected(connection(300)), "connected as c300"),
            (What::Resumable, "its client speaks sessions and may come back to it"),
            (What::Bound(Some(name("ann"))), "user ann"),
            (What::Bound(None), "no user any more"),
            (What::Subscribed(name("room.*")), "subscribed to room.*"),
            (What::Unsubscribed(name("room.*")), "unsubscribed from room.*"),
            (What::NotResumed { wanted: name("17"), why: "expired" }, "its client wanted session 17 back: expired"),
            (
                What::Lost { connection: connection(2), why: name("it broke"), waits: true },
                "connection c2 lost: it broke; the session waits for its client",
            ),
            (
                What::Lost { connection: connection(2), why: name("it broke"), waits: false },
                "connection c2 lost: it broke",
            ),
            (
                What::Resumed { connection: connection(3), generation: 4, repeated: 5 },
                "resumed as c3, generation 4; 5 pushes are sent again",
            ),
            (What::TakenOver(connection(3)), "taken over from c3, which was still open"),
            (What::GapTold(9), "told its client that 9 pushes were dropped so far"),
            (What::Ended(name("two\nlines")), "ended: two\\nlines"),
        ];
        let trail = Trail::new(64);
        let expected: Vec<&str> = noted.iter().map(|(_, text)| *text).collect();
        for (number, (what, _)) in noted.into_iter().enumerate() {
            assert_eq!(trail.note(what), number as u64);
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        let story = told(&trail);
        let texts: Vec<String> = story.events.iter().map(|happened| happened.event.to_string()).collect();
        assert_eq!(texts, expected);
        let times: Vec<u64> = story.events.iter().map(|happened| happened.at_ms).collect();
        assert!(times.windows(2).all(|pair| pair[0] + 10 == pair[1]), "{times:?}");
    }

    /// A push that came to any stage says so.
    #[tokio::test(start_paused = true)]
    async fn each_stage_of_a_push_has_its_words() {
        use super::super::receipt::Failure;

        let trail = Trail::new(64);
        let stages = [
            (Stage::Queued, "waits"),
            (Stage::Written, "written after 1 ms, its client has not confirmed it"),
            (Stage::Received, "received after 1 ms, its client has not handled it yet"),
            (Stage::Handled, "handled after 1 ms"),
            (Stage::PlainWritten, "written, and nothing more is ever confirmed, after 1 ms"),
            (Stage::Expired, "expired after 1 ms"),
            (Stage::Superseded, "superseded by a newer value of its key after 1 ms"),
            (Stage::Duplicate, "not sent, as one of the same idempotency key was, after 1 ms"),
            (Stage::Failed(Failure::Panicked), "failed: its handler panicked, after 1 ms"),
            (Stage::Unknown, "the session ended before its client said what became of it, after 1 ms"),
            (Stage::Dropped(DropReason::Full), "dropped because too much waited already, after 1 ms"),
            (Stage::Dropped(DropReason::Disconnected), "dropped with its connection after 1 ms"),
            (Stage::Dropped(DropReason::SessionEnded), "dropped with the session after 1 ms"),
        ];
        for (stage, _) in stages {
            let number = trail.note_push(&"A.b".into(), &Class::Latest("k".to_owned()), 7);
            tokio::time::advance(Duration::from_millis(1)).await;
            if stage != Stage::Queued {
                trail.reached(number, stage);
            }
        }
        let texts: Vec<String> = told(&trail).events.iter().map(|happened| happened.event.to_string()).collect();
        let expected: Vec<String> = stages.iter().map(|(_, text)| format!("push A.b (latest, 7 B): {text}")).collect();
        assert_eq!(texts, expected);
    }

    #[test]
    fn a_story_begins_with_where_its_session_stands() {
        let session = SessionId(0x17);
        let text = |standing, user: Option<&str>, held, forgotten| {
            let happened = Happened { at_ms: 0, event: Event::Resumable };
            let user = user.map(str::to_owned);
            Explanation { session, user, standing, held, forgotten, events: vec![happened] }.to_string()
        };
        let event = "1970-01-01 00:00:00.000 its client speaks sessions and may come back to it";
        assert_eq!(text(Standing::Away, None, None, 0), format!("session {session}, its client is away\n{event}"));
        assert_eq!(
            text(Standing::Connected("c7".into()), Some("a\nn"), Some(Held { offset: 3, for_ms: 2999 }), 4),
            format!(
                "session {session} of a\\nn, connected as c7\nits client has held offset 3 for 2 s\n\
                 (4 older events are not kept)\n{event}"
            )
        );
        assert_eq!(text(Standing::Ended, None, None, 0), format!("session {session}, ended\n{event}"));
    }

    /// What is kept of a story that ended depends on what there is to tell; older events that are forgotten count.
    #[test]
    fn a_story_has_its_worth() {
        let with = |events: Vec<What>, events_max: usize| {
            let trail = Trail::new(events_max);
            for what in events {
                trail.note(what);
            }
            trail.worth()
        };
        let connected = || What::Connected(ConnectionId::new(1));
        let bound = || What::Bound(Some("ann".into()));
        let lost = || What::Lost { connection: ConnectionId::new(1), why: "x".into(), waits: false };
        assert_eq!(with(vec![], 8), None);
        assert_eq!(with(vec![connected()], 8), None);
        assert_eq!(with(vec![connected(), lost()], 8), None, "a ring that has forgotten nothing");
        assert_eq!(with(vec![connected(), bound()], 8), Some(false));
        assert_eq!(with(vec![connected(), bound(), lost()], 8), Some(false));
        assert_eq!(with(vec![connected(), What::Subscribed("a".into())], 8), Some(true));
        assert_eq!(with(vec![connected(), lost(), What::GapTold(1)], 8), Some(true));
        assert_eq!(with(vec![connected(), lost(), lost()], 2), Some(false), "something is forgotten");
        assert_eq!(with(vec![connected(), lost(), What::GapTold(1)], 2), Some(true));
        assert_eq!(with(vec![What::GapTold(1), lost(), lost()], 2), Some(false));
    }

    /// A number finds its own record and no other, whatever stands in its place.
    #[test]
    fn a_record_is_found_by_its_number() {
        let mut ring = Ring { records: Vec::new(), next: 0 };
        assert!(ring.get_mut(0, 3).is_none());
        for number in 0..5 {
            let record = Record { at: number, what: What::GapTold(number) };
            assert_eq!(ring.push(record, 3), number);
        }
        let found: Vec<Option<u64>> = (0..7).map(|number| ring.get_mut(number, 3).map(|record| record.at)).collect();
        assert_eq!(found, [None, None, Some(2), Some(3), Some(4), None, None]);
        assert_eq!((ring.first(), ring.in_order().map(|record| record.at).collect::<Vec<_>>()), (2, vec![2, 3, 4]));
    }

    /// A story that is sealed has room for two events more, and keeps those that it has.
    #[test]
    fn a_sealed_story_has_room_for_two_events() {
        let trail = Trail::new(64);
        assert_eq!(trail.seal(), 2, "of none");
        for packed in [true, false] {
            let trail = Trail::new(64);
            for number in 0..3 {
                trail.note(if packed { What::Bound(None) } else { What::GapTold(number) });
            }
            assert_eq!(trail.seal(), 5);
            if let Story::Ring(ring) = &*trail.story.lock() {
                assert_eq!((packed, ring.records.capacity()), (false, 5));
            }
            for number in 3..7 {
                trail.note(What::GapTold(number));
            }
            let story = told(&trail);
            assert_eq!((story.events.len(), story.forgotten), (5, 2));
            assert_eq!(story.events[4].event, Event::GapTold(6));
        }
        let full = Trail::new(3);
        for number in 0..3 {
            full.note(What::GapTold(number));
        }
        assert_eq!(full.seal(), 3, "never more than it may keep");
    }

    /// A text that fits is shared, and of a longer one its beginning is kept.
    #[test]
    fn a_text_that_an_event_keeps_has_a_bound() {
        for (len, is_shared) in [(TEXT_BYTES_MAX - 1, true), (TEXT_BYTES_MAX, true), (TEXT_BYTES_MAX + 1, false)] {
            let whole: Arc<str> = "x".repeat(len).into();
            let kept = shared(&whole);
            assert_eq!((Arc::ptr_eq(&kept, &whole), kept.len()), (is_shared, len.min(TEXT_BYTES_MAX)), "{len}");
        }
    }
}
