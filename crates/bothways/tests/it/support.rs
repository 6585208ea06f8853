//! What several topics need.

use std::sync::atomic::{AtomicU64, Ordering};

use bothways::{Server, ServerBuilder};
use serde::{Deserialize, Serialize};

/// Arguments as Go declares them.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Args {
    pub(crate) a: i64,
    pub(crate) b: i64,
}

/// The reply as Go declares it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Product {
    pub(crate) c: i64,
}

/// An address in memory that no other test uses.
pub(crate) fn address() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("memu@it-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A builder whose server multiplies.
pub(crate) fn arith() -> ServerBuilder {
    Server::builder().function(
        "Arith",
        "Mul",
        |args: Args| async move { Ok::<_, String>(Product { c: args.a * args.b }) },
    )
}
