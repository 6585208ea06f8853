//! What is in the file, and how one transaction changes it. No threads, no clock: the time is passed in.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | a name | the epoch, the last sequence, the bytes of everything, the version of this layout |
//! | `logs` | a log | its last sequence, how many entries it has, and their bytes |
//! | `entries` | a log, a sequence | when it ends, and its bytes |
//! | `keys` | a log, a key | the sequence of its entry, and when the key is forgotten |
//! | `cursors` | a log, a reader | epoch, sequence, and when it is forgotten |
//! | `ends` | when, and what | nothing: what is over is found in the order of its end |

use std::{ops::Bound, time::Duration};

use bothways::store::{AppendError, Level, Log, NewEntry, PAGE_BYTES, Page, Place, READER_BYTES_MAX, Stored};
use bytes::Bytes;
use redb::{ReadTransaction, ReadableTable, Table, TableDefinition, WriteTransaction};

use crate::StoreOptions;

/// Of this layout.
const VERSION: u64 = 2;

/// As this one, but of a cursor only the name of its reader was counted.
const COUNTED_LESS: u64 = 1;

/// What an entry, a key or a cursor counts beside its bytes.
const OVERHEAD: u64 = 128;

/// For how long an entry's key is known.
const KEYS_KEPT: Duration = Duration::from_secs(120);

/// With each change so much of what is over goes too.
const SWEPT_EACH: usize = 64;

/// So much of it goes when there is no room.
const SWEPT_FOR_ROOM: usize = 4096;

/// An entry that stays until others need its place.
const NEVER: u64 = u64::MAX;

/// Its log, and its sequence.
type EntryKey<'a> = (&'a [u8], u64);
/// When it ends, and its bytes.
type Entry<'a> = (u64, &'a [u8]);

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const LOGS: TableDefinition<'_, &[u8], (u64, u64, u64)> = TableDefinition::new("logs");
const ENTRIES: TableDefinition<'_, EntryKey<'_>, Entry<'_>> = TableDefinition::new("entries");
const KEYS: TableDefinition<'_, (&[u8], &str), (u64, u64)> = TableDefinition::new("keys");
const CURSORS: TableDefinition<'_, (&[u8], &str), (u64, u64, u64)> = TableDefinition::new("cursors");
const ENDS: TableDefinition<'_, (u64, u8, &[u8], u64, &str), ()> = TableDefinition::new("ends");

const OF_ENTRY: u8 = 0;
const OF_KEY: u8 = 1;
const OF_CURSOR: u8 = 2;

/// Milliseconds since 1970.
pub(crate) type Millis = u64;

fn later(now: Millis, by: Duration) -> Millis {
    now.saturating_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)).min(NEVER - 1)
}

fn size_of(bytes: usize) -> u64 {
    OVERHEAD.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX))
}

/// A cursor is nothing but names: that of its log, which may be longer than that of its reader, is counted too.
fn size_of_cursor(log: &[u8], reader: &str) -> u64 {
    size_of(log.len() + reader.len())
}

/// A log as a key: its kind, then its name.
pub(crate) fn key_of(log: &Log) -> Vec<u8> {
    let kind = match log {
        Log::History(_) => b'h',
        Log::Mailbox(_) => b'm',
        Log::Dead(_) => b'd',
        Log::Parked(_) => b'p',
        Log::ParkedOf(_) => b'u',
    };
    [&[kind], log.name().as_bytes()].concat()
}

/// What the file says of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub(crate) epoch: u64,
}

/// Makes the tables, or looks at those that are there. `Err`: they have a layout of this version.
pub(crate) fn begin(txn: &WriteTransaction) -> Result<Result<Identity, u64>, redb::Error> {
    let mut meta = txn.open_table(META)?;
    let version = meta.get("version")?.map(|version| version.value());
    match version {
        Some(VERSION) => {}
        Some(COUNTED_LESS) => {
            meta.insert("bytes", count(txn)?)?;
            meta.insert("version", VERSION)?;
        }
        Some(other) => return Ok(Err(other)),
        None => {
            meta.insert("version", VERSION)?;
            meta.insert("epoch", rand::random::<u64>().max(1))?;
        }
    }
    let epoch = meta.get("epoch")?.map_or(0, |epoch| epoch.value());
    txn.open_table(LOGS)?;
    txn.open_table(ENTRIES)?;
    txn.open_table(KEYS)?;
    txn.open_table(CURSORS)?;
    txn.open_table(ENDS)?;
    Ok(Ok(Identity { epoch }))
}

/// The bytes of everything, as they are counted: it reads the whole file.
fn count(txn: &WriteTransaction) -> Result<u64, redb::Error> {
    let mut bytes = 0;
    for entry in txn.open_table(ENTRIES)?.iter()? {
        bytes += size_of(entry?.1.value().1.len());
    }
    for key in txn.open_table(KEYS)?.iter()? {
        bytes += size_of(key?.0.value().1.len());
    }
    for cursor in txn.open_table(CURSORS)?.iter()? {
        let (key, _) = cursor?;
        let (log, reader) = key.value();
        bytes += size_of_cursor(log, reader);
    }
    Ok(bytes)
}

/// One transaction that changes things.
pub(crate) struct Change<'t> {
    options: StoreOptions,
    identity: Identity,
    now: Millis,
    sequence: u64,
    bytes: u64,
    meta: Table<'t, &'static str, u64>,
    logs: Table<'t, &'static [u8], (u64, u64, u64)>,
    entries: Table<'t, EntryKey<'static>, Entry<'static>>,
    keys: Table<'t, (&'static [u8], &'static str), (u64, u64)>,
    cursors: Table<'t, (&'static [u8], &'static str), (u64, u64, u64)>,
    ends: Table<'t, (u64, u8, &'static [u8], u64, &'static str), ()>,
}

/// Something that is over, or goes.
type End = (Millis, u8, Vec<u8>, u64, String);

impl<'t> Change<'t> {
    pub(crate) fn new(
        txn: &'t WriteTransaction,
        options: StoreOptions,
        identity: Identity,
        now: Millis,
    ) -> Result<Self, redb::Error> {
        let meta = txn.open_table(META)?;
        let read = |name| Ok::<u64, redb::Error>(meta.get(name)?.map_or(0, |value| value.value()));
        let (sequence, bytes) = (read("sequence")?, read("bytes")?);
        Ok(Self {
            options,
            identity,
            now,
            sequence,
            bytes,
            meta,
            logs: txn.open_table(LOGS)?,
            entries: txn.open_table(ENTRIES)?,
            keys: txn.open_table(KEYS)?,
            cursors: txn.open_table(CURSORS)?,
            ends: txn.open_table(ENDS)?,
        })
    }

    /// What was counted is written too.
    pub(crate) fn finish(mut self) -> Result<(), redb::Error> {
        self.meta.insert("sequence", self.sequence)?;
        self.meta.insert("bytes", self.bytes)?;
        Ok(())
    }

    pub(crate) fn append(&mut self, log: &Log, entry: NewEntry) -> Result<Result<Stored, AppendError>, redb::Error> {
        let key_of_log = key_of(log);
        let size = size_of(entry.bytes.len());
        let known = match &entry.key {
            Some(key) => self.keys.get((&*key_of_log, &**key))?.map(|known| known.value()),
            None => None,
        };
        if let Some((sequence, _)) = known.filter(|(_, until)| self.now < *until) {
            return Ok(Ok(self.stored(sequence, true)));
        }

        if self.options.log_bytes_max < size && !matches!(log, Log::Parked(_) | Log::ParkedOf(_)) {
            return Ok(Err(AppendError::TooLarge));
        }

        self.sweep(SWEPT_EACH)?;
        let of_key = entry.key.as_ref().map_or(0, |key| size_of(key.len()));
        let more = size.saturating_add(of_key);
        let is_full = match log {
            Log::Mailbox(_) => !self.has_place(&key_of_log, size)? || !self.has_room(more)?,
            Log::History(_) | Log::Dead(_) => !self.make_place(&key_of_log, size, more)?,
            Log::Parked(_) | Log::ParkedOf(_) => !self.has_room(more)?,
        };
        if is_full {
            return Ok(Err(AppendError::Full));
        }

        self.sequence += 1;
        let (sequence, log) = (self.sequence, &*key_of_log);
        let until = entry.time_to_live.map_or(NEVER, |ttl| later(self.now, ttl));
        self.entries.insert((log, sequence), (until, &*entry.bytes))?;
        if until != NEVER {
            self.ends.insert((until, OF_ENTRY, log, sequence, ""), ())?;
        }
        let (_, count, bytes) = self.standing(log)?;
        self.logs.insert(log, (sequence, count + 1, bytes + size))?;
        self.bytes += size;

        if let Some(key) = &entry.key {
            let until = later(self.now, KEYS_KEPT);
            let replaced = self.keys.insert((log, &**key), (sequence, until))?.map(|before| before.value());
            match replaced {
                // It is over, and was not swept above.
                Some((_, before)) => _ = self.ends.remove((before, OF_KEY, log, 0, &**key))?,
                None => self.bytes += of_key,
            }
            self.ends.insert((until, OF_KEY, log, 0, &**key), ())?;
        }
        Ok(Ok(self.stored(sequence, false)))
    }

    fn stored(&self, sequence: u64, repeated: bool) -> Stored {
        Stored::new(Place { epoch: self.identity.epoch, sequence }, Level::Synced, repeated)
    }

    /// Its last sequence, how many entries it has, and their bytes.
    fn standing(&self, log: &[u8]) -> Result<(u64, u64, u64), redb::Error> {
        Ok(self.logs.get(log)?.map_or((0, 0, 0), |standing| standing.value()))
    }

    fn fits(&self, log: &[u8], size: u64) -> Result<bool, redb::Error> {
        let (_, count, bytes) = self.standing(log)?;
        let StoreOptions { log_entries_max, log_bytes_max, .. } = self.options;
        Ok(count < log_entries_max && bytes.saturating_add(size) <= log_bytes_max)
    }

    /// True if a mailbox takes one more; what is over makes way.
    fn has_place(&mut self, log: &[u8], size: u64) -> Result<bool, redb::Error> {
        if self.fits(log, size)? {
            return Ok(true);
        }
        let now = self.now;
        self.forget(log, u64::MAX, |until| until <= now)?;
        self.fits(log, size)
    }

    /// The oldest make way for one more, if the store then takes so many bytes more. False: it does not, and nothing but
    /// what was over has gone.
    fn make_place(&mut self, log: &[u8], size: u64, more: u64) -> Result<bool, redb::Error> {
        loop {
            let (oldest, freed) = self.in_the_way(log, size)?;
            if self.bytes.saturating_sub(freed).saturating_add(more) <= self.options.bytes_max {
                oldest.into_iter().try_for_each(|sequence| self.forget_one(log, sequence).map(drop))?;
                return Ok(true);
            }
            // What is swept may be of this log: it is looked at again.
            if self.sweep(SWEPT_FOR_ROOM)? == 0 {
                return Ok(false);
            }
        }
    }

    /// The oldest entries of a log that must go before one more fits, and their bytes.
    fn in_the_way(&self, log: &[u8], size: u64) -> Result<(Vec<u64>, u64), redb::Error> {
        let (_, mut count, bytes) = self.standing(log)?;
        let StoreOptions { log_entries_max, log_bytes_max, .. } = self.options;
        let (mut gone, mut freed) = (Vec::new(), 0);
        for entry in self.entries.range((log, 0)..=(log, u64::MAX))? {
            if count < log_entries_max && bytes.saturating_sub(freed).saturating_add(size) <= log_bytes_max {
                break;
            }
            let (key, value) = entry?;
            gone.push(key.value().1);
            freed += size_of(value.value().1.len());
            count = count.saturating_sub(1);
        }
        Ok((gone, freed))
    }

    /// True if the store takes so many bytes more; what is over makes way.
    fn has_room(&mut self, more: u64) -> Result<bool, redb::Error> {
        while self.options.bytes_max < self.bytes.saturating_add(more) {
            if self.sweep(SWEPT_FOR_ROOM)? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Forgets the entries of a log up to this sequence whose ends are like that.
    fn forget(&mut self, log: &[u8], upto: u64, is_one: impl Fn(Millis) -> bool) -> Result<(), redb::Error> {
        let mut gone = Vec::new();
        for entry in self.entries.range((log, 0)..=(log, upto))? {
            let (key, value) = entry?;
            if is_one(value.value().0) {
                gone.push(key.value().1);
            }
        }
        gone.into_iter().try_for_each(|sequence| self.forget_one(log, sequence).map(drop))
    }

    /// False: it is not there.
    fn forget_one(&mut self, log: &[u8], sequence: u64) -> Result<bool, redb::Error> {
        let gone = self.entries.remove((log, sequence))?.map(|gone| {
            let (until, bytes) = gone.value();
            (until, size_of(bytes.len()))
        });
        let Some((until, size)) = gone else { return Ok(false) };
        if until != NEVER {
            self.ends.remove((until, OF_ENTRY, log, sequence, ""))?;
        }
        let (last, count, bytes) = self.standing(log)?;
        match count {
            0 | 1 => _ = self.logs.remove(log)?,
            _ => _ = self.logs.insert(log, (last, count - 1, bytes.saturating_sub(size)))?,
        }
        self.bytes = self.bytes.saturating_sub(size);
        Ok(true)
    }

    pub(crate) fn trim(&mut self, log: &Log, upto: Place) -> Result<(), redb::Error> {
        if upto.epoch != self.identity.epoch {
            return Ok(());
        }
        self.forget(&key_of(log), upto.sequence, |_| true)
    }

    pub(crate) fn remove(&mut self, log: &Log, place: Place) -> Result<bool, redb::Error> {
        Ok(place.epoch == self.identity.epoch && self.forget_one(&key_of(log), place.sequence)?)
    }

    /// `None`: there is no room for one more reader.
    pub(crate) fn advance(
        &mut self,
        log: &Log,
        reader: &str,
        to: Place,
        keep: Duration,
    ) -> Result<Option<Place>, redb::Error> {
        if READER_BYTES_MAX < reader.len() {
            return Ok(None);
        }
        self.sweep(SWEPT_EACH)?;
        let key_of_log = key_of(log);
        let log = &*key_of_log;
        let before = self.cursors.get((log, reader))?.map(|cursor| cursor.value());
        match before {
            Some((_, _, until)) => _ = self.ends.remove((until, OF_CURSOR, log, 0, reader))?,
            None if !self.has_room(size_of_cursor(log, reader))? => return Ok(None),
            None => self.bytes += size_of_cursor(log, reader),
        }

        // Epoch 0 only makes one.
        let is_behind = |epoch: u64, sequence: u64| to.epoch == 0 || epoch == to.epoch && to.sequence < sequence;
        let stood = before.filter(|(epoch, sequence, until)| self.now < *until && is_behind(*epoch, *sequence));
        let stands = stood.map_or(to, |(epoch, sequence, _)| Place { epoch, sequence });
        let until = later(self.now, keep);
        self.cursors.insert((log, reader), (stands.epoch, stands.sequence, until))?;
        self.ends.insert((until, OF_CURSOR, log, 0, reader), ())?;
        Ok(Some(stands))
    }

    /// Forgets some of what is over. Returns how much.
    pub(crate) fn sweep(&mut self, max: usize) -> Result<usize, redb::Error> {
        let mut over: Vec<End> = Vec::new();
        let end: (u64, u8, &[u8], u64, &str) = (self.now.saturating_add(1), 0, &[], 0, "");
        for row in self.ends.range(..end)?.take(max) {
            let (row, _) = row?;
            let (until, kind, log, sequence, name) = row.value();
            over.push((until, kind, log.to_vec(), sequence, name.to_owned()));
        }
        let count = over.len();
        for (until, kind, log, sequence, name) in over {
            self.ends.remove((until, kind, &*log, sequence, &*name))?;
            match kind {
                OF_ENTRY => _ = self.forget_one(&log, sequence)?,
                OF_KEY => {
                    self.keys.remove((&*log, &*name))?;
                    self.bytes = self.bytes.saturating_sub(size_of(name.len()));
                }
                _ => {
                    self.cursors.remove((&*log, &*name))?;
                    self.bytes = self.bytes.saturating_sub(size_of_cursor(&log, &name));
                }
            }
        }
        Ok(count)
    }
}

/// What is asked of the file as it is at one moment.
pub(crate) struct Look<'t> {
    pub(crate) txn: &'t ReadTransaction,
    pub(crate) identity: Identity,
    pub(crate) now: Millis,
}

impl Look<'_> {
    pub(crate) fn page(&self, log: &Log, after: u64, max: usize) -> Result<Page, redb::Error> {
        let (log, epoch) = (key_of(log), self.identity.epoch);
        let place = |sequence| Place { epoch, sequence };
        let last = self.txn.open_table(LOGS)?.get(&*log)?.map(|standing| place(standing.value().0));
        let table = self.txn.open_table(ENTRIES)?;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for entry in table.range((&*log, after.saturating_add(1))..=(&*log, u64::MAX))? {
            if max <= entries.len() || PAGE_BYTES <= bytes {
                break;
            }
            let (key, value) = entry?;
            let (until, of_entry) = value.value();
            if self.now < until {
                bytes += of_entry.len();
                entries.push((place(key.value().1), Bytes::copy_from_slice(of_entry)));
            }
        }
        Ok(Page::new(entries, last))
    }

    pub(crate) fn cursor(&self, log: &Log, reader: &str) -> Result<Option<Place>, redb::Error> {
        let cursor = self.txn.open_table(CURSORS)?.get((&*key_of(log), reader))?.map(|cursor| cursor.value());
        Ok(cursor.filter(|(_, _, until)| self.now < *until).map(|(epoch, sequence, _)| Place { epoch, sequence }))
    }

    pub(crate) fn cursors(&self, log: &Log) -> Result<Vec<(String, Place)>, redb::Error> {
        let (log, table) = (key_of(log), self.txn.open_table(CURSORS)?);
        let mut cursors = Vec::new();
        for cursor in table.range((&*log, "")..)? {
            let (key, value) = cursor?;
            let ((of, reader), (epoch, sequence, until)) = (key.value(), value.value());
            if of != &*log {
                break;
            }
            if self.now < until {
                cursors.push((reader.to_owned(), Place { epoch, sequence }));
            }
        }
        Ok(cursors)
    }

    pub(crate) fn list(&self, after: &Log, max: usize) -> Result<Vec<(String, usize)>, redb::Error> {
        let (after, logs) = (key_of(after), self.txn.open_table(LOGS)?);
        let entries = self.txn.open_table(ENTRIES)?;
        let mut found = Vec::new();
        for log in logs.range::<&[u8]>((Bound::Excluded(&*after), Bound::Unbounded))? {
            let (log, _) = log?;
            let log = log.value();
            if max <= found.len() || log.first() != after.first() {
                break;
            }
            let mut count = 0;
            for entry in entries.range((log, 0)..=(log, u64::MAX))? {
                count += usize::from(self.now < entry?.1.value().0);
            }
            if count != 0 {
                found.push((String::from_utf8_lossy(&log[1..]).into_owned(), count));
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use redb::{Database, ReadableDatabase, backends::InMemoryBackend};

    use super::*;

    fn database() -> (Database, Identity) {
        let database = Database::builder().create_with_backend(InMemoryBackend::new()).expect("it is in memory");
        let txn = database.begin_write().expect("it works");
        let identity = begin(&txn).expect("it works").expect("it is new");
        txn.commit().expect("it works");
        (database, identity)
    }

    /// Changes something at this time.
    fn change<T>(
        (database, identity): &(Database, Identity),
        options: StoreOptions,
        now: Millis,
        run: impl FnOnce(&mut Change<'_>) -> Result<T, redb::Error>,
    ) -> T {
        let txn = database.begin_write().expect("it works");
        let mut change = Change::new(&txn, options, *identity, now).expect("it works");
        let changed = run(&mut change).expect("it works");
        change.finish().expect("it works");
        txn.commit().expect("it works");
        changed
    }

    /// The bytes that are noted, and those that are there.
    fn bytes((database, _): &(Database, Identity)) -> (u64, u64) {
        let txn = database.begin_read().expect("it works");
        let noted = txn.open_table(META).expect("it is there").get("bytes").expect("it works").expect("it is noted");
        let (entries, keys) =
            (txn.open_table(ENTRIES).expect("it is there"), txn.open_table(KEYS).expect("it is there"));
        let of_entries = entries.iter().expect("it works").map(|entry| {
            let (_, value) = entry.expect("it works");
            size_of(value.value().1.len())
        });
        let of_keys = keys.iter().expect("it works").map(|key| size_of(key.expect("it works").0.value().1.len()));
        let cursors = txn.open_table(CURSORS).expect("it is there");
        let of_cursors = cursors.iter().expect("it works").map(|cursor| {
            let (key, _) = cursor.expect("it works");
            let (log, reader) = key.value();
            OVERHEAD + (log.len() + reader.len()) as u64
        });
        (noted.value(), of_entries.chain(of_keys).chain(of_cursors).sum())
    }

    /// A key that is used again when its time is over, swept or not, is counted once, as it is kept once.
    #[test]
    fn a_key_that_is_used_again_is_counted_once() {
        let (file, options, ann) = (database(), StoreOptions::new(), Log::Mailbox("ann".to_owned()));
        let kept = u64::try_from(KEYS_KEPT.as_millis()).expect("two minutes");
        let entry = || NewEntry::new("letter").with_key("key").with_time_to_live(Duration::from_secs(1));
        for round in 0..10 {
            let now = 1_000 + round * 2 * kept;
            let stored = change(&file, options, now, |change| change.append(&ann, entry())).expect("there is room");
            assert!(!stored.repeated);
            let (noted, there) = bytes(&file);
            assert_eq!(noted, there, "round {round}");
        }
        // With more over than is swept at a time, the key is still there when it is used again.
        let parked = Log::Parked("7".parse().expect("a session"));
        let other = |number: usize| NewEntry::new("x").with_key(format!("{number}"));
        let now = 1_000 + 30 * kept;
        change(&file, options, now, |change| {
            let all = (0..3 * SWEPT_EACH).map(|number| change.append(&parked, other(number)));
            all.collect::<Result<Vec<_>, _>>()
        });
        let last = 3 * SWEPT_EACH - 1;
        change(&file, options, now + 2 * kept, |change| change.append(&parked, other(last))).expect("there is room");
        let (noted, there) = bytes(&file);
        assert_eq!(noted, there);
    }

    /// The places of devices of users with long names fill no more than the bound, and are counted until they are
    /// forgotten.
    #[test]
    fn a_cursor_counts_the_name_of_its_log() {
        let keep = Duration::from_secs(60);
        let (file, options) = (database(), StoreOptions::new().bytes_max(64 << 10));
        let user = |number: usize| Log::Mailbox(format!("{number:0256}"));
        let at = Place { epoch: 0, sequence: 0 };
        let advance = |now: Millis, number: usize| {
            change(&file, options, now, |change| change.advance(&user(number), "phone", at, keep))
        };
        let known = (0..1_000).take_while(|number| advance(1_000, *number).is_some()).count();
        assert!(64 << 10 < (known + 1) * (256 + 128 + 6), "there was room for more than {known}");
        assert!(known * 256 < 64 << 10, "the names of {known} alone are more than the bound");
        assert!(advance(2_000, 0).is_some(), "one that is there takes no more");
        let (noted, there) = bytes(&file);
        assert_eq!(noted, there);

        let over = 2_000 + 2 * u64::try_from(keep.as_millis()).expect("a minute");
        change(&file, options, over, |change| change.sweep(2_000));
        assert_eq!(bytes(&file), (0, 0));
    }

    /// A file of a version that counted less is counted anew when it is opened, once; one of a later version is not opened.
    #[test]
    fn a_file_that_was_counted_otherwise_is_counted_anew() {
        let (file, options, ann) = (database(), StoreOptions::new(), Log::Mailbox("ann".to_owned()));
        let (at, keep) = (Place { epoch: 0, sequence: 0 }, Duration::from_secs(60));
        change(&file, options, 1_000, |change| {
            change.append(&ann, NewEntry::new("letter").with_key("key"))?.expect("there is room");
            change.advance(&ann, "phone", at, keep)
        });
        let (_, there) = bytes(&file);
        let noted = |name: &'static str, value: u64| {
            let txn = file.0.begin_write().expect("it works");
            txn.open_table(META).expect("it is there").insert(name, value).expect("it works");
            txn.commit().expect("it works");
        };
        let open = || {
            let txn = file.0.begin_write().expect("it works");
            let begun = begin(&txn).expect("it works").map(|identity| identity.epoch);
            txn.commit().expect("it works");
            begun
        };
        noted("version", COUNTED_LESS);
        noted("bytes", there - 4);
        assert_eq!((open(), bytes(&file)), (Ok(file.1.epoch), (there, there)));
        noted("bytes", there - 4);
        assert_eq!((open(), bytes(&file)), (Ok(file.1.epoch), (there - 4, there)), "it is counted once");
        noted("version", VERSION + 1);
        assert_eq!(open(), Err(VERSION + 1));
    }

    /// A store without room refuses before a history forgets anything, and so does an entry that is larger than a log.
    #[test]
    fn what_is_refused_forgets_nothing() {
        let options = StoreOptions::new().bytes_max(8 << 10).log_bytes_max(4 << 10).log_entries_max(2);
        let (file, news) = (database(), Log::History("news".to_owned()));
        let append = |log: &Log, bytes: usize| {
            change(&file, options, 1_000, |change| change.append(log, NewEntry::new(vec![7; bytes])))
        };
        let first = append(&news, 100).expect("there is room");
        append(&news, 100).expect("there is room");
        let mut user = 0;
        while append(&Log::Mailbox(user.to_string()), 1_000).is_ok() {
            user += 1;
        }
        let places = || {
            let txn = file.0.begin_read().expect("it works");
            let page = Look { txn: &txn, identity: file.1, now: 1_000 }.page(&news, 0, 10).expect("it works");
            page.entries.into_iter().map(|(place, _)| place).collect::<Vec<_>>()
        };

        assert_eq!(append(&news, 3_000), Err(AppendError::Full));
        assert_eq!((places().len(), places()[0]), (2, first.place), "what was refused has forgotten nothing");
        assert_eq!(append(&news, 5_000), Err(AppendError::TooLarge));
        assert_eq!((places().len(), places()[0]), (2, first.place), "nor has what is larger than a history");
        assert_eq!(
            append(&Log::Mailbox("new".to_owned()), 5_000),
            Err(AppendError::TooLarge),
            "it would never be taken"
        );
        append(&news, 100).expect("what makes way is room");
        assert_eq!((places().len(), places()[0] == first.place), (2, false));
    }
}
