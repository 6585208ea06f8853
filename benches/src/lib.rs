//! Benchmarks that answer questions about Bothways, and what they are made of.
//!
//! | file | what it is |
//! |---|---|
//! | `contract.rs` | the service `Bench` on the wire: what every server here offers and the load asks for |
//! | `limit.rs` | the bare limit: a server of that contract on epoll alone; `bin/bench-limit.rs` runs it |
//! | `load.rs` | one neutral load for every server of that contract |
//! | `process.rs` | CPU time and memory of a process |
//! | `server.rs` | our server of that contract; `bin/bench-server.rs` runs it |

pub mod contract;
pub mod limit;
pub mod load;
pub mod process;
pub mod server;
