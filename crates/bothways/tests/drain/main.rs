//! Nodes that stop, and where their clients go. A binary of its own, as it needs features.

mod goodbye;
#[path = "../cluster/support.rs"]
#[allow(dead_code, reason = "others use the rest")]
mod nodes;
mod old;
mod on_the_way;
#[path = "../it/scripted.rs"]
#[allow(dead_code, reason = "others use the rest")]
mod scripted;

/// What the files above have from it.
mod support {
    pub(crate) use super::nodes::{server, until};

    /// A name in memory that nobody else has.
    pub(crate) fn address() -> String {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        format!("memory@drain-{}", NEXT.fetch_add(1, Ordering::Relaxed))
    }
}
