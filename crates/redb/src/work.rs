//! The two threads: one that writes, and takes what comes together into one transaction, and one that reads.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bothways::store::BoxFuture;
use parking_lot::Mutex;
use redb::{Database, Durability, ReadableDatabase};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::{
    StoreOptions,
    tables::{Change, Identity, Look, Millis},
};

/// What waits for a thread: so many KiB, and one for each beside its bytes. What comes then waits for room.
const WAITING_KIB: usize = 32 << 10;

/// Most changes of one transaction.
const TOGETHER: usize = 1024;

/// What is over is forgotten so often, also if nothing else is to be done; and so much of it at a time.
const SWEPT_EVERY: Duration = Duration::from_secs(10);
const SWEPT: usize = 4096;

/// Why nothing was answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Failed {
    /// It was not done.
    Never,
    /// It may have been done.
    Maybe,
}

/// Says what came of a change: called when it is on the disk, or may be. It is dropped if it is certain not to be, as a
/// change is that never began.
type Answer = Box<dyn FnOnce(Result<(), Failed>) + Send>;
type Apply = Box<dyn FnOnce(&mut Change<'_>) -> Result<Answer, redb::Error> + Send>;
type Ask = Box<dyn FnOnce(&Look<'_>) -> Result<(), redb::Error> + Send>;

/// With its place in the queue, which is free when this is dropped.
struct Job<T>(T, OwnedSemaphorePermit);

pub(crate) struct Workers {
    changes: Option<Queue<Apply>>,
    looks: Option<Queue<Ask>>,
    threads: Vec<JoinHandle<()>>,
}

struct Queue<T> {
    jobs: Mutex<Sender<Job<T>>>,
    room: Arc<Semaphore>,
}

impl<T: Send + 'static> Queue<T> {
    fn new() -> (Self, Receiver<Job<T>>) {
        let (jobs, taken) = channel();
        (Self { jobs: Mutex::new(jobs), room: Arc::new(Semaphore::new(WAITING_KIB)) }, taken)
    }

    /// Waits for room for so many bytes. `None`: they are closed.
    async fn room(room: Arc<Semaphore>, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let kib = u32::try_from((bytes >> 10) + 1).unwrap_or(u32::MAX).min(WAITING_KIB as u32);
        room.acquire_many_owned(kib).await.ok()
    }
}

impl Workers {
    pub(crate) fn start(database: Arc<Database>, options: StoreOptions, identity: Identity) -> std::io::Result<Self> {
        let (changes, to_change) = Queue::new();
        let (looks, to_look) = Queue::new();
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let writer = Writer { database: Arc::clone(&database), options, identity };
        let writer = thread("store-writer").spawn(move || writer.run(&to_change))?;
        let reader = thread("store-reader").spawn(move || read(&database, identity, &to_look))?;
        Ok(Self { changes: Some(changes), looks: Some(looks), threads: vec![writer, reader] })
    }

    /// Changes something, together with what comes at the same time. Answered when it is on the disk. It is queued in
    /// the order of the calls as long as there is room.
    pub(crate) fn change<T: Send + 'static>(
        self: &Arc<Self>,
        bytes: usize,
        apply: impl FnOnce(&mut Change<'_>) -> Result<T, redb::Error> + Send + 'static,
    ) -> BoxFuture<Result<T, Failed>> {
        let (told, answer) = oneshot::channel();
        let apply: Apply = Box::new(move |change| {
            let outcome = apply(change)?;
            Ok(Box::new(move |ended| _ = told.send(ended.map(|()| outcome))))
        });
        let me = Arc::clone(self);
        Box::pin(async move {
            let queue = me.changes.as_ref().ok_or(Failed::Never)?;
            let permit = Queue::<Apply>::room(Arc::clone(&queue.room), bytes).await.ok_or(Failed::Never)?;
            queue.jobs.lock().send(Job(apply, permit)).map_err(|_| Failed::Never)?;
            // The file stays open no longer than somebody has the store.
            drop(me);
            answer.await.unwrap_or(Err(Failed::Never))
        })
    }

    /// Asks something.
    pub(crate) fn look<T: Send + 'static>(
        self: &Arc<Self>,
        ask: impl FnOnce(&Look<'_>) -> Result<T, redb::Error> + Send + 'static,
    ) -> BoxFuture<Result<T, Failed>> {
        let (told, answer) = oneshot::channel();
        let ask: Ask = Box::new(move |look| {
            _ = told.send(ask(look)?);
            Ok(())
        });
        let me = Arc::clone(self);
        Box::pin(async move {
            let queue = me.looks.as_ref().ok_or(Failed::Never)?;
            let permit = Queue::<Ask>::room(Arc::clone(&queue.room), 0).await.ok_or(Failed::Never)?;
            queue.jobs.lock().send(Job(ask, permit)).map_err(|_| Failed::Never)?;
            drop(me);
            answer.await.map_err(|_| Failed::Never)
        })
    }
}

/// Waits for what is being written; after that the file is closed.
impl Drop for Workers {
    fn drop(&mut self) {
        (self.changes, self.looks) = (None, None);
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            _ = thread.join();
        }
    }
}

fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

struct Writer {
    database: Arc<Database>,
    options: StoreOptions,
    identity: Identity,
}

impl Writer {
    fn run(&self, jobs: &Receiver<Job<Apply>>) {
        let mut said = Said::default();
        loop {
            let mut together = Vec::new();
            match jobs.recv_timeout(SWEPT_EVERY) {
                Ok(job) => together.push(job),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while together.len() < TOGETHER
                && let Ok(job) = jobs.try_recv()
            {
                together.push(job);
            }
            said.outcome(self.commit(together), "the store could not write: it must be opened again");
        }
    }

    /// Changes it all in one transaction, and answers when that is on the disk. What fails before it is written changes
    /// nothing.
    fn commit(&self, jobs: Vec<Job<Apply>>) -> Result<(), redb::Error> {
        let mut txn = self.database.begin_write()?;
        txn.set_durability(Durability::Immediate)?;
        let mut answers = Vec::with_capacity(jobs.len());
        let mut change = Change::new(&txn, self.options, self.identity, now())?;
        if jobs.is_empty() && change.sweep(SWEPT)? == 0 {
            drop(change);
            return Ok(txn.abort()?);
        }
        // The places in the queue are free when the answers are given.
        let mut permits = Vec::with_capacity(jobs.len());
        for Job(apply, permit) in jobs {
            permits.push(permit);
            answers.push(apply(&mut change)?);
        }
        change.finish()?;
        let committing = Committing(answers);
        txn.commit()?;
        committing.done();
        Ok(())
    }
}

/// Who waits for a transaction that is being written: unless it is done, nobody knows what is on the disk.
struct Committing(Vec<Answer>);

impl Committing {
    fn done(mut self) {
        std::mem::take(&mut self.0).into_iter().for_each(|answer| answer(Ok(())));
    }
}

impl Drop for Committing {
    fn drop(&mut self) {
        self.0.drain(..).for_each(|answer| answer(Err(Failed::Maybe)));
    }
}

fn read(database: &Database, identity: Identity, jobs: &Receiver<Job<Ask>>) {
    let mut said = Said::default();
    while let Ok(Job(ask, _permit)) = jobs.recv() {
        let asked = database.begin_read().map_err(redb::Error::from).and_then(|txn| {
            let look = Look { txn: &txn, identity, now: now() };
            ask(&look)
        });
        said.outcome(asked, "the store could not read");
    }
}

/// What failed is said once, and not again before something has succeeded: after an error of the disk all fails.
#[derive(Default)]
struct Said(bool);

impl Said {
    fn outcome(&mut self, outcome: Result<(), redb::Error>, what: &str) {
        match outcome {
            Ok(()) => self.0 = false,
            Err(_) if self.0 => {}
            Err(error) => {
                tracing::error!(%error, "{what}");
                self.0 = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use bothways::store::{AppendError, Log, NewEntry, Store as _};
    use redb::{StorageBackend, backends::InMemoryBackend};

    use super::*;
    use crate::RedbStore;

    /// A disk that writes nothing any more from some moment on.
    #[derive(Debug)]
    struct Disk {
        memory: InMemoryBackend,
        is_broken: Arc<AtomicBool>,
    }

    impl Disk {
        fn works(&self) -> Result<(), std::io::Error> {
            match self.is_broken.load(Ordering::Relaxed) {
                true => Err(std::io::Error::other("the disk is broken")),
                false => Ok(()),
            }
        }
    }

    impl StorageBackend for Disk {
        fn len(&self) -> Result<u64, std::io::Error> {
            self.memory.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), std::io::Error> {
            self.memory.read(offset, out)
        }

        fn set_len(&self, len: u64) -> Result<(), std::io::Error> {
            self.works()?;
            self.memory.set_len(len)
        }

        fn sync_data(&self) -> Result<(), std::io::Error> {
            self.works()?;
            self.memory.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> Result<(), std::io::Error> {
            self.works()?;
            self.memory.write(offset, data)
        }
    }

    /// Of what was being written when the disk broke nobody knows whether it is there. What comes after that is not.
    #[tokio::test]
    async fn what_never_began_is_known_not_to_be_stored() {
        let is_broken = Arc::new(AtomicBool::new(false));
        let disk = Disk { memory: InMemoryBackend::new(), is_broken: Arc::clone(&is_broken) };
        let database = Database::builder().create_with_backend(disk).expect("it works");
        let identity = crate::begin(&database).expect("it works").expect("it is new");
        let options = StoreOptions::new();
        let workers = Workers::start(Arc::new(database), options, identity).expect("there are threads");
        let store = RedbStore { options, workers: Arc::new(workers) };

        let log = || Log::Mailbox("ann".to_owned());
        let entry = || NewEntry::new("letter").with_time_to_live(Duration::from_secs(3600));
        store.append(log(), entry()).await.expect("it works");
        is_broken.store(true, Ordering::Relaxed);
        assert_eq!(store.append(log(), entry()).await, Err(AppendError::Unknown), "it was being written");
        assert_eq!(store.append(log(), entry()).await, Err(AppendError::Down), "it never began");
        let all = store.append_all(log(), vec![entry(), entry()]).await;
        assert_eq!(all, [Err(AppendError::Down); 2], "nor did these");
    }
}
