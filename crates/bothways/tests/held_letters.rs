//! Letters that are held up: by a runtime that ends before it has run what waits in it, and by a store that is full.

#[macro_use]
#[path = "mailbox/passes_on.rs"]
mod passes_on;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bothways::{
    Class, Client, ClientOptions, Push, Receipt, Server, ServerBuilder, ServerMessages, Target,
    cluster::memory::{MemoryBroker, MemoryEngine},
    session::MailboxOptions,
    store::{AppendError, BoxFuture, Log, NewEntry, Store, Stored},
    testing::{self, Network},
};
use tokio::{
    runtime::{Builder, Runtime},
    time::{Instant, timeout},
};

/// What is waited for at most.
const LIMIT: Duration = Duration::from_secs(20);

/// Each client is the user that its token names.
fn builder() -> ServerBuilder {
    Server::builder().auth(|request| async move {
        let session = request.session().ok_or("the client has left")?;
        session.bind_user(&request.token);
        Ok::<_, &str>(())
    })
}

fn post(server: &Server, text: &str) -> Receipt {
    let class = Class::Durable { ttl: Duration::from_secs(3600) };
    server
        .push(&Target::user("ann"), &Push::new("Mail", "New", text.to_owned()).class(class))
        .expect("there is a store")
}

/// One task runs between two looks at what the runtime is to wait for.
fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().event_interval(1).build().expect("a runtime")
}

/// A push whose runtime ends before anything of it has run is answered, and the next one is stored.
#[test]
fn a_runtime_that_ends_holds_up_no_later_letter() {
    let server = builder().store(MemoryBroker::new().engine()).build();
    let first = runtime();
    let lost = {
        let _entered = first.enter();
        post(&server, "lost")
    };
    drop(first);
    runtime().block_on(async {
        let lost = timeout(LIMIT, lost.stored()).await.expect("it is answered").expect_err("nobody has appended it");
        assert!(lost.is_unknown(), "{lost}");
        let kept = timeout(LIMIT, post(&server, "kept").stored()).await.expect("it is answered");
        assert_eq!(kept.expect("there is room").len(), 1);
    });
}

/// The text of the next message, which is handled.
async fn next(messages: &mut ServerMessages) -> String {
    let message = timeout(LIMIT, messages.next()).await.expect("it comes").expect("the client is open");
    String::from_utf8(message.payload().expect("not packed").to_vec()).expect("a text")
}

/// A session whose mailbox was to be read in a runtime that has ended gets its letters with the next one.
#[test]
fn a_reader_that_never_ran_is_followed_by_another_one() {
    let server = builder().store(MemoryBroker::new().engine()).build();
    let (first, second) = (runtime(), runtime());
    let listening = first.block_on(server.listen("memory@held-first")).expect("the name is free");
    let (client, mut messages, _listening) = second.block_on(async {
        let listening = server.listen("memory@held-second").await.expect("the name is free");
        let options = ClientOptions::new().auth("ann");
        let (client, mut messages) = Client::bidirectional(listening.address(), options).await.expect("it listens");
        timeout(LIMIT, post(&server, "1").stored()).await.expect("it is answered").expect("there is room");
        assert_eq!(next(&mut messages).await, "1");
        // What has read it ends when it is forgotten.
        let mail = server.mail().expect("there is a store");
        while !mail.letters("ann", 0, 1).await.expect("the store works").is_empty() {
            tokio::task::yield_now().await;
        }
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        (client, messages, listening)
    });

    // It is stored there, and what is to read it has not run yet.
    let kept = first.block_on(async { timeout(LIMIT, post(&server, "2").stored()).await });
    kept.expect("it is answered").expect("there is room");
    drop((listening, first));
    second.block_on(async {
        timeout(LIMIT, post(&server, "3").stored()).await.expect("it is answered").expect("there is room");
        assert_eq!([next(&mut messages).await, next(&mut messages).await], ["2", "3"]);
        drop(client);
    });
}

/// A store whose dead letters are full, or not.
struct Full {
    store: Arc<MemoryEngine>,
    is_full: Arc<AtomicBool>,
    refused: Arc<AtomicU64>,
}

impl Store for Full {
    fn append(&self, to: Log, entry: NewEntry) -> BoxFuture<Result<Stored, AppendError>> {
        if matches!(to, Log::Dead(_)) && self.is_full.load(Ordering::Relaxed) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Box::pin(std::future::ready(Err(AppendError::Full)));
        }
        self.store.append(to, entry)
    }

    passes_on!(read, cursor, cursors, advance, trim, remove, list);
}

/// While the store has no room for a dead letter, what was handled before it is noted and forgotten, what is behind it goes
/// on at once, and the store is not asked without end. When it has room, the letter is kept.
#[test]
fn a_full_store_holds_up_only_the_letter_that_dies() {
    testing::run(async {
        let (is_full, refused) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
        let store =
            Full { store: MemoryBroker::new().engine(), is_full: Arc::clone(&is_full), refused: Arc::clone(&refused) };
        let server = builder().store(store).mailboxes(MailboxOptions::new().deliveries_max(1)).build();
        let network = Network::new(server).await.expect("the server runs");
        let mail = network.server().mail().expect("there is a store");
        let mut stored = Vec::new();
        for text in ["1", "bad", "2"] {
            let kept = post(network.server(), text).stored().await.expect("there is room");
            stored.push(kept[0].position);
        }
        let options = ClientOptions::new().auth("ann").device("phone");
        let mut ann = network.client(options).await.expect("the server listens");
        for text in ["1", "bad", "2"] {
            let message = ann.messages.next().await.expect("the client is open");
            assert_eq!(message.payload().expect("not packed"), text);
            if text == "bad" {
                message.fail("it is bad");
            }
        }

        let letters = async || mail.letters("ann", 0, 10).await.expect("the store works");
        let began = Instant::now();
        while letters().await.iter().any(|letter| letter.place == stored[0]) {
            assert!(began.elapsed() < LIMIT, "the first letter is handled, and is not forgotten");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(mail.devices("ann").await.expect("the store works"), [("phone".to_owned(), stored[0])]);

        let asked = Instant::now();
        post(network.server(), "3").stored().await.expect("there is room");
        let message = ann.messages.next().await.expect("the client is open");
        assert_eq!(message.payload().expect("not packed"), "3");
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
        drop(message);
        let tried = refused.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(100)).await;
        let tried = refused.load(Ordering::Relaxed) - tried;
        assert!((5..=15).contains(&tried), "{tried} tries in 100 s");

        is_full.store(false, Ordering::Relaxed);
        let began = Instant::now();
        while !letters().await.is_empty() {
            assert!(began.elapsed() < LIMIT, "the letter that dies is not kept");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(mail.dead_letters("ann", 0, 10).await.expect("the store works").len(), 1);
    });
}
