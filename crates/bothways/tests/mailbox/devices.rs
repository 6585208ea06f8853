//! Each named device has its own place in the mailbox.

use std::{sync::Arc, time::Duration};

use bothways::{
    ClientOptions,
    cluster::memory::{MemoryBroker, MemoryEngine},
    store::{AppendError, BoxFuture, EngineDown, Log, NewEntry, Page, Place, Store, Stored},
    testing,
};

use crate::support::{alone, builder, client, network, next, next_of, nothing_for, stored, until_letters};

/// Each named device gets everything once, when it comes; those without a name share one place.
#[test]
fn each_named_device_gets_its_own_copy() {
    testing::run(async {
        let network = alone().await;
        for device in [None, Some("phone"), Some("laptop")] {
            let known = client(&network, "ann", device).await;
            known.client.close();
        }
        for text in ["1", "2"] {
            stored(&network, "ann", text).await;
        }
        for device in [Some("phone"), Some("laptop"), None] {
            let mut here = client(&network, "ann", device).await;
            assert_eq!(next_of(&mut here, 2).await, ["1", "2"], "{device:?}");
            nothing_for(&mut here).await;
            here.client.close();
            let mut again = client(&network, "ann", device).await;
            nothing_for(&mut again).await;
        }
        until_letters(&network, "ann", 0).await;
    });
}

/// A letter stays until all known devices have handled it, and no longer.
#[test]
fn a_letter_stays_until_all_devices_have_it() {
    testing::run(async {
        let network = alone().await;
        let (mut phone, mut laptop) =
            (client(&network, "ann", Some("phone")).await, client(&network, "ann", Some("laptop")).await);
        laptop.client.close();
        stored(&network, "ann", "1").await;
        assert_eq!(next(&mut phone).await, "1");
        nothing_for(&mut phone).await;
        until_letters(&network, "ann", 1).await;
        laptop = client(&network, "ann", Some("laptop")).await;
        assert_eq!(next(&mut laptop).await, "1");
        until_letters(&network, "ann", 0).await;
        let devices = network.server().mail().expect("a store").devices("ann").await.expect("it works");
        let mut names: Vec<String> = devices.into_iter().map(|(name, _)| name).collect();
        names.sort();
        assert_eq!(names, ["laptop", "phone"]);
    });
}

/// A new name begins at the oldest letter that is kept.
#[test]
fn a_new_name_begins_at_the_oldest() {
    testing::run(async {
        let network = alone().await;
        let away = client(&network, "ann", Some("away")).await;
        away.client.close();
        let mut phone = client(&network, "ann", Some("phone")).await;
        for text in ["1", "2", "3"] {
            stored(&network, "ann", text).await;
        }
        assert_eq!(next_of(&mut phone, 3).await, ["1", "2", "3"]);
        let mut tablet = client(&network, "ann", Some("tablet")).await;
        assert_eq!(next_of(&mut tablet, 3).await, ["1", "2", "3"]);
    });
}

/// Two new devices that are there when the first letter comes both get it, however quick one of them is.
#[test]
fn a_quick_device_takes_nothing_from_a_slow_one() {
    testing::run(async {
        let network = alone().await;
        let (mut quick, mut slow) = (client(&network, "ann", Some("quick")).await, client(&network, "ann", None).await);
        slow.wire.freeze_reader();
        for text in ["1", "2"] {
            stored(&network, "ann", text).await;
        }
        assert_eq!(next_of(&mut quick, 2).await, ["1", "2"]);
        nothing_for(&mut quick).await;
        slow.wire.thaw();
        assert_eq!(next_of(&mut slow, 2).await, ["1", "2"]);
        until_letters(&network, "ann", 0).await;
    });
}

/// A user has 16 named devices at most: one more shares the place of those without a name.
#[test]
fn names_have_a_bound() {
    testing::run(async {
        let network = alone().await;
        for number in 0..20 {
            let known = client(&network, "ann", Some(&format!("device {number}"))).await;
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            known.client.close();
        }
        let mail = network.server().mail().expect("a store");
        let devices = mail.devices("ann").await.expect("it works");
        let named = devices.iter().filter(|(name, _)| name != "default").count();
        assert_eq!((named, devices.len()), (16, 17), "{devices:?}");
        stored(&network, "ann", "1").await;
        let mut last = client(&network, "ann", Some("device 19")).await;
        assert_eq!(next(&mut last).await, "1");
    });
}

/// A store whose answers take as long as those of one over a network.
struct Far(Arc<MemoryEngine>);

impl Far {
    fn after<T: Send + 'static>(answer: BoxFuture<T>) -> BoxFuture<T> {
        Box::pin(async {
            let answer = answer.await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            answer
        })
    }
}

impl Store for Far {
    fn append(&self, to: Log, entry: NewEntry) -> BoxFuture<Result<Stored, AppendError>> {
        Self::after(self.0.append(to, entry))
    }

    fn read(&self, from: Log, after: u64, max: usize) -> BoxFuture<Result<Page, EngineDown>> {
        Self::after(self.0.read(from, after, max))
    }

    fn cursor(&self, of: Log, reader: String) -> BoxFuture<Result<Option<Place>, EngineDown>> {
        Self::after(self.0.cursor(of, reader))
    }

    fn cursors(&self, of: Log) -> BoxFuture<Result<Vec<(String, Place)>, EngineDown>> {
        Self::after(self.0.cursors(of))
    }

    fn advance(&self, of: Log, reader: String, to: Place, keep: Duration) -> BoxFuture<Result<Place, EngineDown>> {
        Self::after(self.0.advance(of, reader, to, keep))
    }

    fn trim(&self, log: Log, upto: Place) -> BoxFuture<Result<(), EngineDown>> {
        Self::after(self.0.trim(log, upto))
    }

    fn remove(&self, from: Log, place: Place) -> BoxFuture<Result<bool, EngineDown>> {
        Self::after(self.0.remove(from, place))
    }

    fn list(&self, after: Log, max: usize) -> BoxFuture<Result<Vec<(String, usize)>, EngineDown>> {
        Self::after(self.0.list(after, max))
    }
}

/// Many that come at the same moment are as many as those that come one by one.
#[test]
fn names_that_come_at_once_have_the_same_bound() {
    testing::run(async {
        let network = network(builder().store(Far(MemoryBroker::new().engine())).build()).await;
        let mut clients = Vec::new();
        for number in 0..40 {
            let options = ClientOptions::new().auth("ann").device(&format!("device {number}"));
            clients.push(network.client(options).await.expect("the server listens"));
        }
        for client in &clients {
            client.welcomed().await;
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        let mail = network.server().mail().expect("a store");
        let devices = mail.devices("ann").await.expect("it works");
        let named = devices.iter().filter(|(name, _)| name != "default").count();
        assert_eq!((named, devices.len()), (16, 17), "{devices:?}");

        stored(&network, "ann", "1").await;
        assert_eq!(next(&mut clients[0]).await, "1");
    });
}
