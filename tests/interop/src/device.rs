//! The services between a server and its clients in tests of sessions: one trait for each direction.

use crate::contract::{Args, Reply};

/// What the server offers.
#[bothways::service]
pub trait Arith {
    /// A times B.
    async fn mul(&self, args: Args) -> Result<Reply, String>;
}

/// What a client offers, in whatever language.
#[bothways::service]
pub trait Device {
    /// A times B.
    async fn mul(&self, args: Args) -> Result<Reply, String>;
    /// Waits A ms, and answers how often it has run: this run is the last.
    async fn count(&self, args: Args) -> Result<Reply, String>;
}
