//! What every engine must do, over one server and over three.

use std::{sync::Arc, time::Duration};

use bothways::{
    cluster::Engine,
    testing::engine::{Bed, checks},
};
use bothways_brokers::Broker;
use bothways_nats::{NatsEngine, NatsOptions};
use tokio::runtime::Runtime;

/// The broker counts in whole seconds, and looks for what has ended once in a while.
const LEASE: Duration = Duration::from_secs(3);

/// Each check in a cluster of its own. The engines of one bed are at different servers.
fn check_all(broker: &Broker) {
    let runtime = Runtime::new().expect("a runtime");
    for check in checks() {
        let options = NatsOptions::new(broker.addresses())
            .cluster(format!("check-{:08x}", hash(check.name())))
            .mailbox_entries_max(50)
            .history_entries_max(50);
        let engines: Vec<Arc<NatsEngine>> = runtime.block_on(async {
            let mut engines = Vec::new();
            for number in 0..6 {
                let options = NatsOptions::clone(&options);
                engines.push(NatsEngine::connect(options).await.unwrap_or_else(|error| panic!("{number}: {error}")));
            }
            engines
        });
        let next = std::sync::atomic::AtomicUsize::new(0);
        let bed = Bed::new(LEASE, move || {
            let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Arc::clone(&engines[number % engines.len()]) as Arc<dyn Engine>
        });
        let began = std::time::Instant::now();
        runtime.block_on(check.run(bed));
        println!("{:?} {}", began.elapsed(), check.name());
    }
}

fn hash(name: &str) -> u32 {
    name.bytes().fold(2_166_136_261, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(16_777_619))
}

#[test]
fn every_check_passes_over_one_server() {
    let Some(broker) = Broker::one() else { return };
    check_all(&broker);
}

#[test]
fn every_check_passes_over_three_servers() {
    let Some(broker) = Broker::three() else { return };
    check_all(&broker);
}
