//! An embedded store for [Bothways](bothways): durable pushes of a single node, in one file, without a broker.
//!
//! [`RedbStore`] implements [`Store`] over [redb](https://docs.rs/redb). What it says is stored is on the disk
//! ([`Level::Synced`]): it outlives a process that is killed, and a machine that loses its
//! power if its disk keeps what was synced. Appends that come together share one sync.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use bothways::Server;
//! use bothways_redb::RedbStore;
//!
//! let server = Server::builder().store(RedbStore::open("mail.redb")?).build();
//! # Ok(()) }
//! ```
//!
//! # What it costs
//!
//! Two threads, one that writes and one that reads; a cache of [`StoreOptions::cache_bytes`]; and the file, which grows
//! to about twice what is kept and gives room that is free to what comes next, and not back to the disk.
//!
//! # What it needs of the clock
//!
//! Times to live go by the clock of the system, as they go on while nobody runs: one that jumps forward ends entries
//! early, one that jumps back keeps them longer, and knows the keys of entries for longer than two minutes: a new entry
//! of the same key is taken for a repeated one as long.

mod tables;
mod work;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bothways::store::{
    AppendError, BoxFuture, EngineDown, EngineLimits, Level, Log, NewEntry, Page, Place, Store, Stored,
};
use redb::{Database, DatabaseError, Durability};

use self::{
    tables::{Identity, Look},
    work::Workers,
};

/// The bounds of a [`RedbStore`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct StoreOptions {
    /// Most bytes of all entries, keys and cursors, each with 128 beside its own. What goes beyond is refused as full.
    /// Default 1 GiB. The file has up to about twice as many.
    pub bytes_max: u64,
    /// Most entries of one mailbox, which then refuses, and of one history, which forgets its oldest. Default 1,000.
    pub log_entries_max: u64,
    /// Most bytes of one mailbox or history, counted as [`Self::bytes_max`]; an entry with more is too large. Default
    /// 16 MiB.
    pub log_bytes_max: u64,
    /// Most bytes of one entry. Default 1 MiB.
    pub entry_bytes_max: usize,
    /// What of the file is kept in memory. Default 16 MiB.
    pub cache_bytes: usize,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            bytes_max: 1 << 30,
            log_entries_max: 1000,
            log_bytes_max: 16 << 20,
            entry_bytes_max: 1 << 20,
            cache_bytes: 16 << 20,
        }
    }
}

impl StoreOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// See [`Self::bytes_max`](field@Self::bytes_max).
    pub fn bytes_max(self, bytes: u64) -> Self {
        Self { bytes_max: bytes, ..self }
    }

    /// See [`Self::log_entries_max`](field@Self::log_entries_max). At least one.
    pub fn log_entries_max(self, entries: u64) -> Self {
        Self { log_entries_max: entries.max(1), ..self }
    }

    /// See [`Self::log_bytes_max`](field@Self::log_bytes_max).
    pub fn log_bytes_max(self, bytes: u64) -> Self {
        Self { log_bytes_max: bytes, ..self }
    }

    /// See [`Self::entry_bytes_max`](field@Self::entry_bytes_max). At least 64 KiB.
    pub fn entry_bytes_max(self, bytes: usize) -> Self {
        Self { entry_bytes_max: bytes.max(64 << 10), ..self }
    }

    /// See [`Self::cache_bytes`](field@Self::cache_bytes).
    pub fn cache_bytes(self, bytes: usize) -> Self {
        Self { cache_bytes: bytes, ..self }
    }

    /// The same for [`testing::store`](https://docs.rs/bothways/latest/bothways/testing/store/).
    pub fn limits(&self) -> EngineLimits {
        let entries = usize::try_from(self.log_entries_max).unwrap_or(usize::MAX);
        EngineLimits::new(Level::Synced)
            .message_bytes_max(self.entry_bytes_max)
            .history_entries_max(entries)
            .mailbox_entries_max(entries)
    }
}

/// Why a file could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A program has it open: this one, or another.
    #[error("{} is open already", .0.display())]
    InUse(PathBuf),
    /// It was written by a later version of this crate.
    #[error("{} has a layout of version {version}, which this version does not know", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Of its layout.
        version: u64,
    },
    /// The process that was making it ended before the file was whole. Nothing was stored in it: delete it.
    #[error("{} was not finished when it was made, and has nothing: delete it", .0.display())]
    Unfinished(PathBuf),
    /// It cannot be read or written, or is none of these files.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<redb::Error>,
    },
    /// A thread could not be started.
    #[error("no thread for the store: {0}")]
    Thread(std::io::Error),
}

/// A store in one file. A clone is the same store.
///
/// After an error of the disk it answers [`EngineDown`] until it is opened again. The last clone that is dropped waits for
/// what is being written, and closes the file.
#[derive(Clone)]
pub struct RedbStore {
    options: StoreOptions,
    workers: Arc<Workers>,
}

impl std::fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedbStore").field("options", &self.options).finish_non_exhaustive()
    }
}

impl RedbStore {
    /// Opens a file, or makes it, which only the user of this process may read. One that was not closed is mended first,
    /// which takes a while for one of many GiB.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::open_with(path, StoreOptions::default())
    }

    /// As [`Self::open`], with bounds of its own. They are no part of the file.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_with(path: impl AsRef<Path>, options: StoreOptions) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let failed = |source: redb::Error| OpenError::File { path: path.to_owned(), source: Box::new(source) };
        make(path).map_err(|error| failed(redb::Error::Io(error)))?;
        let database = match Database::builder().set_cache_size(options.cache_bytes).create(path) {
            Ok(database) => database,
            Err(DatabaseError::DatabaseAlreadyOpen) => return Err(OpenError::InUse(path.to_owned())),
            Err(_) if is_unfinished(path) => return Err(OpenError::Unfinished(path.to_owned())),
            Err(error) => return Err(failed(error.into())),
        };
        let identity = begin(&database).map_err(failed)?;
        let identity = identity.map_err(|version| OpenError::Version { path: path.to_owned(), version })?;
        let workers = Workers::start(Arc::new(database), options, identity).map_err(OpenError::Thread)?;
        Ok(Self { options, workers: Arc::new(workers) })
    }
}

fn begin(database: &Database) -> Result<Result<Identity, u64>, redb::Error> {
    let mut txn = database.begin_write()?;
    txn.set_durability(Durability::Immediate)?;
    let identity = tables::begin(&txn)?;
    if identity.is_ok() {
        txn.commit()?;
    }
    Ok(identity)
}

/// Makes the file, if there is none, so that nobody else may read it, and so that it is found after a loss of power.
fn make(path: &Path) -> std::io::Result<()> {
    let mut how = std::fs::OpenOptions::new();
    how.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut how, 0o600);
    match how.open(path) {
        Ok(file) => file.sync_all()?,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(error),
    }
    #[cfg(unix)]
    {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// True if a file begins with zeros: what it begins with is written last, when all else is on the disk.
fn is_unfinished(path: &Path) -> bool {
    let mut first = [1; BEGINNING];
    let read = std::fs::File::open(path).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut first));
    read.is_ok() && first == [0; BEGINNING]
}

/// How many bytes a database is known by.
const BEGINNING: usize = 9;

/// Bytes of an entry while it waits.
fn weight_of(entry: &NewEntry) -> usize {
    entry.bytes.len() + entry.key.as_ref().map_or(0, String::len)
}

impl Store for RedbStore {
    fn append(&self, to: Log, entry: NewEntry) -> BoxFuture<Result<Stored, AppendError>> {
        if self.options.entry_bytes_max < entry.bytes.len() {
            return Box::pin(async { Err(AppendError::TooLarge) });
        }
        let weight = weight_of(&entry) + to.name().len();
        let appended = self.workers.change(weight, move |change| change.append(&to, entry));
        Box::pin(async move {
            match appended.await {
                Ok(appended) => appended,
                Err(work::Failed::Never) => Err(AppendError::Down),
                Err(work::Failed::Maybe) => Err(AppendError::Unknown),
            }
        })
    }

    /// In one transaction.
    fn append_all(&self, to: Log, entries: Vec<NewEntry>) -> BoxFuture<Vec<Result<Stored, AppendError>>> {
        let (count, most) = (entries.len(), self.options.entry_bytes_max);
        let weight = to.name().len() + entries.iter().map(weight_of).sum::<usize>();
        let appended = self.workers.change(weight, move |change| {
            let append = |entry: NewEntry| match most < entry.bytes.len() {
                true => Ok(Err(AppendError::TooLarge)),
                false => change.append(&to, entry),
            };
            entries.into_iter().map(append).collect::<Result<Vec<_>, redb::Error>>()
        });
        Box::pin(async move {
            match appended.await {
                Ok(appended) => appended,
                Err(work::Failed::Never) => vec![Err(AppendError::Down); count],
                Err(work::Failed::Maybe) => vec![Err(AppendError::Unknown); count],
            }
        })
    }

    fn read(&self, from: Log, after: u64, max: usize) -> BoxFuture<Result<Page, EngineDown>> {
        self.look(move |look| look.page(&from, after, max))
    }

    fn cursor(&self, of: Log, reader: String) -> BoxFuture<Result<Option<Place>, EngineDown>> {
        self.look(move |look| look.cursor(&of, &reader))
    }

    fn cursors(&self, of: Log) -> BoxFuture<Result<Vec<(String, Place)>, EngineDown>> {
        self.look(move |look| look.cursors(&of))
    }

    fn advance(&self, of: Log, reader: String, to: Place, keep: Duration) -> BoxFuture<Result<Place, EngineDown>> {
        let advanced =
            self.workers.change(reader.len() + of.name().len(), move |change| change.advance(&of, &reader, to, keep));
        Box::pin(async move { advanced.await.ok().flatten().ok_or(EngineDown) })
    }

    fn trim(&self, log: Log, upto: Place) -> BoxFuture<Result<(), EngineDown>> {
        let trimmed = self.workers.change(log.name().len(), move |change| change.trim(&log, upto));
        Box::pin(async move { trimmed.await.map_err(|_| EngineDown) })
    }

    fn remove(&self, from: Log, place: Place) -> BoxFuture<Result<bool, EngineDown>> {
        let removed = self.workers.change(from.name().len(), move |change| change.remove(&from, place));
        Box::pin(async move { removed.await.map_err(|_| EngineDown) })
    }

    fn list(&self, after: Log, max: usize) -> BoxFuture<Result<Vec<(String, usize)>, EngineDown>> {
        self.look(move |look| look.list(&after, max))
    }
}

impl RedbStore {
    fn look<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Look<'_>) -> Result<T, redb::Error> + Send + 'static,
    ) -> BoxFuture<Result<T, EngineDown>> {
        let looked = self.workers.look(ask);
        Box::pin(async move { looked.await.map_err(|_| EngineDown) })
    }
}
