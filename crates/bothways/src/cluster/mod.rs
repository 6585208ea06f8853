//! Many nodes: servers that reach each other's clients, over an engine between them.
//!
//! | file | what it does |
//! |---|---|
//! | `engine.rs` | the seam: what a cluster needs of the system between its nodes |
//! | `memory.rs` | an engine for nodes of one process |
//!
//! `docs/cluster.md` in the repository says what is promised, and what becomes of it when something fails.

pub mod engine;
#[cfg(feature = "cluster-memory")]
pub mod memory;

pub use self::engine::{Engine, NodeId, Store};
