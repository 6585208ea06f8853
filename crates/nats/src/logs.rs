//! Logs and cursors.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bothways::cluster::engine::{AppendError, EngineDown, Level, Log, NewEntry, Page, Place, READER_BYTES_MAX, Stored};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::{
    names::{self, Kind},
    streams::{Got, Identity, Put, PutFailure, Streams, Write},
};

/// How often a cursor is tried to be moved while others move it.
const TRIES_MAX: usize = 16;

/// Most cursors of one log that are read: more are an error, as a part is not all.
const READERS_MAX: usize = 1000;

fn place(identity: &Identity, sequence: u64) -> Place {
    Place { epoch: identity.epoch(), sequence }
}

pub(crate) async fn append(
    streams: Arc<Streams>,
    level: Level,
    to: Log,
    entry: NewEntry,
) -> Result<Stored, AppendError> {
    let kind = Kind::of(&to);
    let rest = names::log(&to).ok_or(AppendError::TooLarge)?;
    let identity = streams.identity(kind).ok_or(AppendError::Down)?;
    let key = entry.key.map(|key| names::key(&streams.names.subject(kind.letter(), "", &rest), &key));
    let write = Write { after: None, time_to_live: entry.time_to_live, key: key.as_deref() };
    match streams.put(kind, identity.token(), &rest, write, entry.bytes).await {
        Ok(Put { sequence, repeated }) => Ok(Stored::new(place(&identity, sequence), identity.level(level), repeated)),
        Err(PutFailure::Full) => Err(AppendError::Full),
        Err(PutFailure::TooLarge) => Err(AppendError::TooLarge),
        Err(PutFailure::Unknown) => Err(AppendError::Unknown),
        Err(PutFailure::Down | PutFailure::WrongLast(_)) => Err(AppendError::Down),
    }
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
        match streams.put(Kind::Cursors, identity.token(), &rest, write, cursor_bytes(stands)).await {
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
