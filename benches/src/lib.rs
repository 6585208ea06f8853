//! Benchmarks that answer questions about Bothways, and their parts.
//!
//! | file | what it is |
//! |---|---|
//! | `contract.rs` | the service `Bench` on the wire: what every server here offers and the load asks for |
//! | `server.rs` | our server of that contract |
//! | `limit.rs` | the bare limit: a server of that contract on epoll alone |
//! | `load.rs` | one neutral load for every server of that contract, and for message brokers (`load/wire.rs`) |
//! | `pair.rs` | the load that a framework's own client makes; `ours.rs` is our client |
//! | `governance.rs` | what choosing a server, fail modes and layers take of a call |
//! | `fairness.rs` | how much of a large reply goes before a push to somebody else |
//! | `crowd.rs` | very many sessions within one process |
//! | `cluster.rs` | our server as a node of a cluster over NATS |
//! | `process.rs` | CPU time and memory of a process |
//! | `programs.rs` | what the binaries do |
//! | `compare.rs` | all questions in one command: `cargo run --release -p bothways-benches -- compare` |
//! | `plot.rs`, `page.rs` | what came out as pictures, and as `docs/performance.md` |

#[cfg(feature = "nodes")]
pub mod cluster;
pub mod compare;
pub mod contract;
pub mod crowd;
mod fairness;
mod governance;
pub mod limit;
pub mod load;
pub mod ours;
pub mod page;
pub mod pair;
mod plot;
pub mod process;
pub mod programs;
pub mod record;
pub mod server;
