//! Letters that are stored after their callers were told that nobody knows.

#[macro_use]
#[path = "mailbox/passes_on.rs"]
mod passes_on;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bothways::{
    Class, ClientOptions, Push, Server, Target,
    cluster::memory::{MemoryBroker, MemoryEngine},
    store::{AppendError, BoxFuture, EngineDown, Log, NewEntry, Page, Store, Stored},
    testing::{self, Network},
};
use tokio::time::{sleep, timeout};

/// What a slow store was asked to append.
type Late = Arc<Mutex<Vec<(Log, Vec<NewEntry>)>>>;

/// A store that answers reads, and keeps back what it is to append while it is slow.
struct Slow {
    store: Arc<MemoryEngine>,
    is_slow: Arc<AtomicBool>,
    late: Late,
    reads: Arc<AtomicU64>,
}

impl Slow {
    /// True if it is kept back.
    fn keeps_back(&self, to: &Log, entries: &[NewEntry]) -> bool {
        let is_kept = self.is_slow.load(Ordering::Relaxed) && matches!(to, Log::Mailbox(_));
        if is_kept {
            self.late.lock().unwrap_or_else(PoisonError::into_inner).push((to.clone(), entries.to_vec()));
        }
        is_kept
    }
}

impl Store for Slow {
    fn append(&self, to: Log, entry: NewEntry) -> BoxFuture<Result<Stored, AppendError>> {
        match self.keeps_back(&to, std::slice::from_ref(&entry)) {
            true => Box::pin(std::future::pending()),
            false => self.store.append(to, entry),
        }
    }

    fn append_all(&self, to: Log, entries: Vec<NewEntry>) -> BoxFuture<Vec<Result<Stored, AppendError>>> {
        match self.keeps_back(&to, &entries) {
            true => Box::pin(std::future::pending()),
            false => self.store.append_all(to, entries),
        }
    }

    fn read(&self, from: Log, after: u64, max: usize) -> BoxFuture<Result<Page, EngineDown>> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.store.read(from, after, max)
    }

    passes_on!(cursor, cursors, advance, trim, remove, list);
}

/// A letter whose push was told that nobody knows, and that is stored later, reaches who is there: at each of the looks, and
/// after the last one nobody asks the store any more.
#[test]
fn a_letter_that_is_stored_late_arrives() {
    testing::run(async {
        let (store, is_slow) = (MemoryBroker::new().engine(), Arc::new(AtomicBool::new(false)));
        let (late, reads) = (Late::default(), Arc::new(AtomicU64::new(0)));
        let slow = Slow {
            store: Arc::clone(&store),
            is_slow: Arc::clone(&is_slow),
            late: Arc::clone(&late),
            reads: Arc::clone(&reads),
        };
        let server = Server::builder().auth(|request| async move {
            let session = request.session().ok_or("the client has left")?;
            session.bind_user(&request.token);
            Ok::<_, &str>(())
        });
        let network = Network::new(server.store(slow).build()).await.expect("the server runs");
        let mut ann = network.client(ClientOptions::new().auth("ann")).await.expect("the server listens");
        let class = Class::Durable { ttl: Duration::from_secs(3600) };
        let post = |text: &str| {
            let push = Push::new("Mail", "New", text.to_owned()).class(class.clone());
            network.server().push(&Target::user("ann"), &push).expect("there is a store")
        };

        // Stored before the second look, and before the last one.
        for (text, wait) in [("soon", 10), ("late", 100)] {
            is_slow.store(true, Ordering::Relaxed);
            let unknown = post(text).stored().await.expect_err("it is not stored in time");
            assert!(unknown.is_unknown(), "{unknown}");
            sleep(Duration::from_secs(wait)).await;
            is_slow.store(false, Ordering::Relaxed);
            let kept = std::mem::take(&mut *late.lock().unwrap_or_else(PoisonError::into_inner));
            assert_eq!(kept.len(), 1);
            for (log, entries) in kept {
                assert!(store.append_all(log, entries).await.iter().all(Result::is_ok), "there is room");
            }
            let message = timeout(Duration::from_secs(150), ann.messages.next()).await.expect("somebody looks");
            assert_eq!(message.expect("the client is open").payload().expect("not packed"), text);
        }

        sleep(Duration::from_secs(400)).await;
        let before = reads.load(Ordering::Relaxed);
        sleep(Duration::from_secs(3600)).await;
        assert_eq!(reads.load(Ordering::Relaxed), before, "nobody looks for ever");
    });
}
