//! How long does one call take, from client to server and back, over TCP and within the process?
//!
//! One call at a time: p50 and p99 are what matters, so this has no harness that averages.

use std::time::{Duration, Instant};

use bothways::{Client, ClientOptions, codec::Raw};
use bothways_benches::{contract, load::latencies, server::server};

/// Time for each.
const MEASURE: Duration = Duration::from_secs(2);

#[tokio::main(flavor = "current_thread")]
async fn main() {
    println!("{:<14} {:>9} {:>9} {:>9}", "echo, 581 bytes", "p50 µs", "p99 µs", "calls");
    for (name, address) in [("echo/tcp", "tcp@127.0.0.1:0"), ("echo/memory", "memory@echo")] {
        let server = server();
        let listening = server.listen(address).await.expect("listens");
        let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("connects");
        let payload = Raw::from(vec![7; 581]);
        let (mut latency, begin) = (latencies(), Instant::now());
        while begin.elapsed() < MEASURE {
            let since = Instant::now();
            let got: Raw = client.call(contract::SERVICE, contract::ECHO, &payload).await.expect("answers");
            latency.saturating_record(since.elapsed().as_nanos() as u64);
            assert_eq!(got.len(), payload.len());
        }
        let micros = |quantile| latency.value_at_quantile(quantile) as f64 / 1e3;
        println!("{name:<15} {:>9.1} {:>9.1} {:>9}", micros(0.5), micros(0.99), latency.len());
    }
}
