//! A store that fails at one call, whichever that is, while letters come.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bothways::{
    cluster::memory::{MemoryBroker, MemoryEngine},
    store::{AppendError, BoxFuture, EngineDown, Log, NewEntry, Page, Place, Store, Stored},
    testing,
};

use crate::support::{builder, client, network, next, nothing_for, stored, until_letters};

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Call {
    Read,
    Cursors,
    Advance,
    Trim,
}

/// Its call of this kind and number fails, after a while.
struct Stubborn {
    store: Arc<MemoryEngine>,
    call: Call,
    number: u64,
    calls: AtomicU64,
}

impl Stubborn {
    fn unless<T: Send + 'static>(
        &self,
        call: Call,
        answer: BoxFuture<Result<T, EngineDown>>,
    ) -> BoxFuture<Result<T, EngineDown>> {
        if call != self.call || self.calls.fetch_add(1, Ordering::Relaxed) + 1 != self.number {
            return answer;
        }
        Box::pin(async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            Err(EngineDown)
        })
    }
}

impl Store for Stubborn {
    fn append(&self, to: Log, entry: NewEntry) -> BoxFuture<Result<Stored, AppendError>> {
        self.store.append(to, entry)
    }

    fn read(&self, from: Log, after: u64, max: usize) -> BoxFuture<Result<Page, EngineDown>> {
        self.unless(Call::Read, self.store.read(from, after, max))
    }

    fn cursors(&self, of: Log) -> BoxFuture<Result<Vec<(String, Place)>, EngineDown>> {
        self.unless(Call::Cursors, self.store.cursors(of))
    }

    fn advance(&self, of: Log, reader: String, to: Place, keep: Duration) -> BoxFuture<Result<Place, EngineDown>> {
        self.unless(Call::Advance, self.store.advance(of, reader, to, keep))
    }

    fn trim(&self, log: Log, upto: Place) -> BoxFuture<Result<(), EngineDown>> {
        self.unless(Call::Trim, self.store.trim(log, upto))
    }

    passes_on!(cursor, remove, list);
}

/// Letters that come before, while and after the store fails are all handled, once and in order, and forgotten.
#[test]
fn one_failure_of_the_store_stops_no_letter() {
    for call in [Call::Read, Call::Cursors, Call::Advance, Call::Trim] {
        for number in 1..=4 {
            testing::run(async move {
                let calls = AtomicU64::new(0);
                let store = Stubborn { store: MemoryBroker::new().engine(), call, number, calls };
                let network = network(builder().store(store).build()).await;
                let mut here = client(&network, "ann", Some("phone")).await;
                for text in (0..20).map(|number| number.to_string()) {
                    stored(&network, "ann", &text).await;
                    assert_eq!(next(&mut here).await, text, "{call:?} {number}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                nothing_for(&mut here).await;
                until_letters(&network, "ann", 0).await;
            });
        }
    }
}
