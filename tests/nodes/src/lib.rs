//! Servers of one cluster as processes, and their clients, for tests that kill, stop and cut off either.
//!
//! ```no_run
//! use bothways_brokers::Broker;
//! use bothways_nodes::{As, Node, Options, Proxy, To, User};
//!
//! # async fn test() {
//! let Some(broker) = Broker::three() else { return };
//! let [mut one, other] = Node::start_all(&Options::new(broker.addresses())).await;
//!
//! // Clients come through this, as through a balancer: to the first of these that takes them.
//! let balancer = Proxy::to([other.address(), one.address()]).await;
//! let ann = User::connect(balancer.address(), "ann").await;
//!
//! // A push has a number, which is its payload: 1 to 100.
//! one.push(To::user("ann"), As::Tracked, 1, 100).await;
//! let receipts = one.receipts_over(1, 100).await;
//! assert!(receipts.iter().all(|receipt| receipt.at("handled") == 1 && receipt.unreached.is_empty()));
//! assert!((1..=100).all(|number| ann.times(number) == 1));
//!
//! one.stop(); // SIGSTOP; `go_on` is SIGCONT, and `kill` is SIGKILL.
//! # }
//! ```
//!
//! - [`Node`] is a process of its own (`src/bin/bothways-node.rs`): a server that has joined over NATS. It is asked with
//!   one line of JSON and answers with one ([`Command`]), side by side. It ends with the test, and by its id.
//! - [`User`] is a client in the process of the test. It counts how often each number was handled, by topic, and how often
//!   each call ran; it keeps what its client told of its connection. It can hold back what it is to handle.
//! - [`Proxy`] stands before a node, as a balancer, or between a node and a broker, as a network that is cut.
//! - [`bothways_brokers::Broker`] starts, kills, stops and empties the servers of NATS;
//!   [`lead_everything`] chooses the one whose end is felt.
//!
//! Every wait here has an end, [`LONG`], and says what was waited for.

use std::time::Duration;

pub use leaders::lead_everything;
pub use node::Node;
pub use proxy::Proxy;
pub use say::{
    Answer, As, CallEnd, Command, Drained, Kicked, Known, Line, Missed, Options, SessionSeen, Started, Stats, Stored,
    To, Told, Topic,
};
pub use user::{Came, User};

mod leaders;
mod node;
mod proxy;
mod say;
mod user;

/// Longer than anything here takes: a lease, an election, and a busy machine.
pub const LONG: Duration = Duration::from_secs(90);

/// Waits until something holds that nobody tells of.
///
/// # Panics
/// It does not within [`LONG`].
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + LONG;
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "not within {LONG:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
