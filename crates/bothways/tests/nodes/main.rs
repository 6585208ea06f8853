//! Calls, lists and topics over several nodes, on the engine in memory. A binary of its own, as it needs features.

mod calls;
mod lists;
#[path = "../cluster/support.rs"]
#[allow(dead_code)]
mod support;
mod topics;
