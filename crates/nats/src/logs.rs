//! Logs and cursors.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use async_nats::HeaderMap;
use bothways::{
    cluster::engine::{
        AppendError, EngineDown, EngineLimits, Level, Log, NewEntry, Page, Place, READER_BYTES_MAX, Stored,
    },
    store::TOGETHER_WITHIN,
};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio::time::Instant;

use crate::{
    names::{self, Kind},
    streams::{Got, Identity, Put, PutFailure, Streams, TogetherFailure, Write},
};

/// How often a cursor is tried to be moved while others move it.
const TRIES_MAX: usize = 16;

/// What is appended to one log at a time: most entries, and bytes after which no more are taken.
const TOGETHER_MAX: usize = 256;
/// See [`TOGETHER_MAX`].
const TOGETHER_BYTES: usize = 1 << 20;

/// Most cursors of one log that are read: more are an error, as a part is not all.
const READERS_MAX: usize = 1000;

fn place(identity: &Identity, sequence: u64) -> Place {
    Place { epoch: identity.epoch(), sequence }
}

fn not_stored(failure: PutFailure) -> AppendError {
    match failure {
        PutFailure::Full => AppendError::Full,
        PutFailure::TooLarge => AppendError::TooLarge,
        PutFailure::Unknown | PutFailure::Meanwhile => AppendError::Unknown,
        PutFailure::Down | PutFailure::WrongLast(_) => AppendError::Down,
    }
}

/// One log, to be appended to.
struct Appending {
    streams: Arc<Streams>,
    kind: Kind,
    identity: Identity,
    /// Its part of the subject.
    rest: String,
    level: Level,
}

impl Appending {
    fn to(streams: Arc<Streams>, level: Level, log: &Log) -> Result<Self, AppendError> {
        let kind = Kind::of(log);
        let rest = names::log(log).ok_or(AppendError::TooLarge)?;
        let identity = streams.identity(kind).ok_or(AppendError::Down)?;
        let level = identity.level(level);
        Ok(Self { streams, kind, identity, rest, level })
    }

    fn headers(&self, entry: &NewEntry) -> HeaderMap {
        let subject = || self.streams.names.subject(self.kind.letter(), "", &self.rest);
        let key = entry.key.as_ref().map(|key| names::key(&subject(), key));
        Write { after: None, time_to_live: entry.time_to_live, key: key.as_deref() }.headers()
    }

    fn stored(&self, sequence: u64, repeated: bool) -> Stored {
        Stored::new(place(&self.identity, sequence), self.level, repeated)
    }

    /// Each is sent before the one before it is answered.
    async fn each(&self, entries: Vec<NewEntry>) -> Vec<Result<Stored, AppendError>> {
        let mut puts = self.put_each(&entries).await;
        // Of two with one key the second is refused while the first is on its way. By now it is known what came of that.
        for (put, entry) in puts.iter_mut().zip(entries) {
            if *put == Err(PutFailure::Meanwhile) {
                *put = self.put_each(&[entry]).await.pop().unwrap_or(Err(PutFailure::Unknown));
            }
        }
        let stored =
            |put: Result<Put, PutFailure>| put.map(|Put { sequence, repeated }| self.stored(sequence, repeated));
        puts.into_iter().map(|put| stored(put).map_err(not_stored)).collect()
    }

    async fn put_each(&self, entries: &[NewEntry]) -> Vec<Result<Put, PutFailure>> {
        let writes = entries.iter().map(|entry| (self.headers(entry), entry.bytes.clone())).collect();
        self.streams.put_each(self.kind, &self.identity, &self.rest, writes).await
    }

    /// Nothing is sent behind one of which it is not known that it is stored, or never will be; and nothing at all when this
    /// takes too long.
    async fn in_turn(&self, entries: Vec<NewEntry>) -> Vec<Result<Stored, AppendError>> {
        let (mut outcomes, began) = (Vec::with_capacity(entries.len()), Instant::now());
        for entry in entries {
            let outcome = match is_open(&outcomes) || TOGETHER_WITHIN <= began.elapsed() {
                true => Err(AppendError::Down),
                false => self.each(vec![entry]).await.pop().unwrap_or(Err(AppendError::Unknown)),
            };
            outcomes.push(outcome);
        }
        outcomes
    }

    /// All in one, if the stream takes that.
    async fn together(&self, entries: Vec<NewEntry>) -> Vec<Result<Stored, AppendError>> {
        if entries.len() < 2 || !self.identity.takes_batches() {
            return self.in_turn(entries).await;
        }
        let writes = entries.iter().map(|entry| (self.headers(entry), entry.bytes.clone())).collect();
        match self.streams.put_together(self.kind, &self.identity, &self.rest, writes).await {
            Ok(first) => (first..).take(entries.len()).map(|sequence| Ok(self.stored(sequence, false))).collect(),
            Err(TogetherFailure::Refused) => self.in_turn(entries).await,
            Err(TogetherFailure::Failed(failure)) => vec![Err(not_stored(failure)); entries.len()],
        }
    }
}

/// True if what comes behind these would pass one that may be appended again.
fn is_open(outcomes: &[Result<Stored, AppendError>]) -> bool {
    let is_certain =
        |outcome: &&Result<_, AppendError>| !matches!(outcome, Err(AppendError::Full | AppendError::TooLarge));
    outcomes.iter().rev().find(is_certain).is_some_and(Result::is_err)
}

pub(crate) async fn append(
    streams: Arc<Streams>,
    level: Level,
    to: Log,
    entry: NewEntry,
) -> Result<Stored, AppendError> {
    let appending = Appending::to(streams, level, &to)?;
    appending.each(vec![entry]).await.pop().unwrap_or(Err(AppendError::Unknown))
}

/// Those of a history go together or one after another: who publishes appends again what failed, and it is to stand before
/// what was published after it. Others are sent one behind the other without waiting, as nobody appends them again.
pub(crate) async fn append_all(
    streams: Arc<Streams>,
    limits: EngineLimits,
    to: Log,
    entries: Vec<NewEntry>,
) -> Vec<Result<Stored, AppendError>> {
    let fits = |entry: &NewEntry| entry.bytes.len() <= limits.message_bytes_max;
    let are_sent: Vec<bool> = entries.iter().map(fits).collect();
    let mut left: VecDeque<NewEntry> = entries.into_iter().filter(fits).collect();
    let appending = Appending::to(streams, limits.level, &to);
    let mut outcomes = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let some = take_some(&mut left);
        outcomes.extend(match (&appending, &to) {
            (Err(why), _) => vec![Err(*why); some.len()],
            (Ok(_), Log::History(_)) if is_open(&outcomes) => vec![Err(AppendError::Down); some.len()],
            (Ok(appending), Log::History(_)) => appending.together(some).await,
            (Ok(appending), _) => appending.each(some).await,
        });
    }
    let mut outcomes = outcomes.into_iter();
    let mut next = || outcomes.next().unwrap_or(Err(AppendError::Unknown));
    are_sent.into_iter().map(|is_sent| if is_sent { next() } else { Err(AppendError::TooLarge) }).collect()
}

/// As many as are under way at a time.
fn take_some(left: &mut VecDeque<NewEntry>) -> Vec<NewEntry> {
    let (mut some, mut bytes) = (Vec::new(), 0);
    while some.len() < TOGETHER_MAX
        && bytes < TOGETHER_BYTES
        && let Some(entry) = left.pop_front()
    {
        bytes += entry.bytes.len();
        some.push(entry);
    }
    some
}

pub(crate) async fn read(streams: Arc<Streams>, from: Log, after: u64, max: usize) -> Result<Page, EngineDown> {
    let kind = Kind::of(&from);
    let Some(rest) = names::log(&from) else { return Ok(Page::default()) };
    let identity = streams.identity(kind).ok_or(EngineDown)?;
    let last = streams.last(kind, identity.token(), &rest).await.map_err(|_| EngineDown)?;
    let Some(last) = last else { return Ok(Page::default()) };
    let got = match after < last.sequence && max != 0 {
        true => streams.page(kind, identity.token(), &rest, after, last.sequence, max).await.map_err(|_| EngineDown)?,
        false => Vec::new(),
    };
    // One may have come since.
    let last = got.last().map_or(last.sequence, |got| last.sequence.max(got.sequence));
    let entries = got.into_iter().map(|got| (place(&identity, got.sequence), got.bytes)).collect();
    Ok(Page::new(entries, Some(place(&identity, last))))
}

fn cursor_of(got: &Got) -> Option<Place> {
    let mut bytes = got.bytes.clone();
    (bytes.len() == 16).then(|| Place { epoch: bytes.get_u64(), sequence: bytes.get_u64() })
}

fn cursor_bytes(place: Place) -> Bytes {
    let mut bytes = BytesMut::with_capacity(16);
    bytes.put_u64(place.epoch);
    bytes.put_u64(place.sequence);
    bytes.freeze()
}

/// Where a cursor is.
fn cursor_name(of: &Log, reader: &str) -> Result<String, EngineDown> {
    let name = names::cursor(of, Some(reader)).filter(|_| reader.len() <= READER_BYTES_MAX);
    name.ok_or(EngineDown)
}

pub(crate) async fn cursor(streams: Arc<Streams>, of: Log, reader: String) -> Result<Option<Place>, EngineDown> {
    let identity = streams.identity(Kind::Cursors).ok_or(EngineDown)?;
    let rest = cursor_name(&of, &reader)?;
    let got = streams.last(Kind::Cursors, identity.token(), &rest).await.map_err(|_| EngineDown)?;
    Ok(got.as_ref().and_then(cursor_of))
}

pub(crate) async fn cursors(streams: Arc<Streams>, of: Log) -> Result<Vec<(String, Place)>, EngineDown> {
    let identity = streams.identity(Kind::Cursors).ok_or(EngineDown)?;
    let rest = names::cursor(&of, None).ok_or(EngineDown)?;
    let (mut all, mut after) = (BTreeMap::new(), 0);
    // One that moves meanwhile comes again, further behind.
    for _ in 0..READERS_MAX {
        let got = streams.first_from(Kind::Cursors, identity.token(), &rest, after + 1).await;
        let Some(got) = got.map_err(|_| EngineDown)? else { return Ok(all.into_iter().collect()) };
        after = got.sequence;
        let reader = got.subject.rsplit('.').next().and_then(names::name_of);
        if let (Some(reader), Some(place)) = (reader, cursor_of(&got)) {
            all.insert(reader, place);
        }
    }
    tracing::warn!(log = %of, "it has more than {READERS_MAX} readers, or they move too fast to be listed");
    Err(EngineDown)
}

pub(crate) async fn advance(
    streams: Arc<Streams>,
    of: Log,
    reader: String,
    to: Place,
    keep: Duration,
) -> Result<Place, EngineDown> {
    let identity = streams.identity(Kind::Cursors).ok_or(EngineDown)?;
    let rest = cursor_name(&of, &reader)?;
    for _ in 0..TRIES_MAX {
        let before = streams.last(Kind::Cursors, identity.token(), &rest).await.map_err(|_| EngineDown)?;
        let after = before.as_ref().map_or(0, |got| got.sequence);
        let before = before.as_ref().and_then(cursor_of);
        let stands = before
            .filter(|before| to.epoch == 0 || before.epoch == to.epoch && to.sequence < before.sequence)
            .unwrap_or(to);
        // Also where it stays: it is kept for longer from now on.
        let write = Write::after(after, keep);
        match streams.put(Kind::Cursors, &identity, &rest, write, cursor_bytes(stands)).await {
            Ok(_) => return Ok(stands),
            Err(PutFailure::WrongLast(_)) => {}
            Err(_) => return Err(EngineDown),
        }
    }
    Err(EngineDown)
}

pub(crate) async fn trim(streams: Arc<Streams>, log: Log, upto: Place) -> Result<(), EngineDown> {
    let kind = Kind::of(&log);
    let Some(rest) = names::log(&log) else { return Ok(()) };
    let identity = streams.identity(kind).ok_or(EngineDown)?;
    if identity.epoch() != upto.epoch {
        return Ok(());
    }
    let before = upto.sequence.saturating_add(1);
    streams.purge(kind, identity.token(), &rest, before).await.map_err(|_| EngineDown)
}

pub(crate) async fn remove(streams: Arc<Streams>, from: Log, place: Place) -> Result<bool, EngineDown> {
    let kind = Kind::of(&from);
    let Some(rest) = names::log(&from) else { return Ok(false) };
    let identity = streams.identity(kind).ok_or(EngineDown)?;
    if identity.epoch() != place.epoch {
        return Ok(false);
    }
    let got = streams.at(kind, place.sequence).await.map_err(|_| EngineDown)?;
    let subject = streams.names.subject(kind.letter(), identity.token(), &rest);
    if got.is_none_or(|got| got.subject != subject) {
        return Ok(false);
    }
    streams.delete(kind, place.sequence).await.map_err(|_| EngineDown)
}

pub(crate) async fn list(streams: Arc<Streams>, after: Log, max: usize) -> Result<Vec<(String, usize)>, EngineDown> {
    let mut first = BTreeMap::new();
    let last_before = after.name();
    for kind in Kind::all_of(&after) {
        let identity = streams.identity(kind).ok_or(EngineDown)?;
        let keep = |subject: &str, count: usize| {
            let rest = streams.names.parts(subject).map(|(_, rest)| rest);
            let name = rest.and_then(|rest| names::name_of_log(kind, rest)).filter(|name| last_before < *name);
            if let Some(name) = name {
                first.insert(name, count);
            }
            if max < first.len() {
                first.pop_last();
            }
        };
        streams.subjects(kind, identity.token(), keep).await.map_err(|_| EngineDown)?;
    }
    Ok(first.into_iter().collect())
}
