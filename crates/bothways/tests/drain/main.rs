//! Nodes that stop, and where their clients go. A binary of its own, as it needs features.

mod goodbye;
#[path = "../cluster/support.rs"]
#[allow(dead_code, reason = "others use the rest")]
mod support;
