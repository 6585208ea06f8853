//! Benchmarks that answer questions about Bothways, and what they are made of.
//!
//! | file | what it is |
//! |---|---|
//! | `contract.rs` | the service `Bench` on the wire: what every server here offers and the load asks for |
//! | `server.rs` | our server of that contract; `bin/bench-server.rs` runs it |

pub mod contract;
pub mod server;
