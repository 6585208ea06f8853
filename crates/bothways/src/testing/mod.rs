//! A test kit for applications: server and clients in memory, in virtual time, over wires that break on command.
//!
//! | file | what it does |
//! |---|---|
//! | `mod.rs` | [`run`], a clock that jumps; [`Network`], a server and its clients |
//! | `engine.rs` | what every engine of a cluster must do, as one suite |
//! | `store.rs` | what every store must do, as another one |
//! | `wire.rs` | [`Wire`], what lies between a client and its server, and how it breaks |
//!
//! Nothing in the server or the client is replaced: between the two stands a relay that understands frames, so that a
//! test says *where* something breaks: after the seventh push, or in the middle of a frame.
//!
//! An application whose clients must see every order, whatever their network does:
//!
//! ```
//! use bothways::{Class, ClientOptions, Push, Server, Stage, Target, testing};
//!
//! // What is tested: it numbers what it pushes.
//! fn announce(server: &Server, orders: std::ops::Range<u32>) -> Vec<bothways::Receipt> {
//!     let push = |order: u32| server.push(&Target::everyone(), &Push::new("Orders", "New", order.to_string()));
//!     orders.map(|order| push(order).expect("a small push")).collect()
//! }
//!
//! testing::run(async {
//!     let network = testing::Network::new(Server::builder().build()).await.expect("a name of its own");
//!     let mut client = network.client(ClientOptions::new()).await.expect("the server listens");
//!     client.welcomed().await;
//!
//!     client.wire.cut_after_push(7);
//!     let receipts = announce(network.server(), 0..20);
//!     for order in 0..20 {
//!         let message = client.messages.next().await.expect("the client is open");
//!         assert_eq!(message.payload().expect("not packed"), order.to_string());
//!     }
//!     for receipt in receipts {
//!         assert_eq!(receipt.handled().await.at(Stage::Handled), 1);
//!     }
//!     assert_eq!(client.wire.connections(), 2);
//! });
//! ```

#[cfg(feature = "cluster")]
pub mod engine;
pub mod store;
mod wire;

use std::{future::Future, time::Duration};

pub use self::wire::{Direction, Wire};
use crate::{
    client::{Client, ClientOptions, ServerMessages},
    error::{ConnectError, ServeError},
    server::{Listening, Server},
};

/// Runs a test in virtual time, on a runtime of its own: when everybody waits, the clock jumps to the first
/// deadline, so that a resume window of two minutes passes at once.
///
/// The same as `#[tokio::test(start_paused = true)]`. Sockets of the system do not know the virtual clock: with
/// them it jumps while bytes are under way.
///
/// # Panics
/// If the test does, or within another runtime.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.expect("the system gives one more runtime").block_on(test)
}

/// A server that listens in memory, and the clients that a test connects to it. Dropping it stops the listening.
///
/// ```
/// use bothways::{ClientOptions, Server, testing};
///
/// testing::run(async {
///     let server = Server::builder()
///         .function("Text", "Upper", |text: String| async move { Ok::<_, String>(text.to_uppercase()) })
///         .build();
///     let network = testing::Network::new(server).await.expect("the server runs");
///     let ann = network.client(ClientOptions::new()).await.expect("the server listens");
///     assert_eq!(ann.client.call::<String>("Text", "Upper", "abc").await.expect("it answers"), "ABC");
/// });
/// ```
#[derive(Debug)]
pub struct Network {
    server: Server,
    listening: Listening,
}

impl Network {
    /// Lets the server listen in memory, under a name that nobody else uses.
    ///
    /// # Errors
    /// [`ServeError::ShutDown`].
    pub async fn new(server: Server) -> Result<Self, ServeError> {
        let listening = server.listen(&wire::fresh_address()).await?;
        Ok(Self { server, listening })
    }

    /// The server.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Where the server listens, past all wires.
    pub fn address(&self) -> &str {
        self.listening.address()
    }

    /// A wire to the server, for a client that the test makes itself, such as one with handlers.
    ///
    /// # Errors
    /// As [`Wire::to`].
    pub async fn wire(&self) -> Result<Wire, ServeError> {
        Wire::to(self.address()).await
    }

    /// A client with a wire of its own. It comes back after a lost connection as the options say.
    ///
    /// # Errors
    /// [`ConnectError`]: there is no client then.
    pub async fn client(&self, options: ClientOptions) -> Result<TestClient, ConnectError> {
        let wire = self.wire().await.expect("the name of a wire is its own");
        let (client, messages) = Client::bidirectional(wire.address(), options).await?;
        Ok(TestClient { client, messages, wire })
    }
}

/// A client of a [`Network`], and what lies between it and its server.
#[derive(Debug)]
#[non_exhaustive]
pub struct TestClient {
    /// The client.
    pub client: Client,
    /// The messages that the server sends to the client.
    pub messages: ServerMessages,
    /// The wire between the client and the server.
    pub wire: Wire,
}

impl TestClient {
    /// Waits until the server has answered the client's Hello: from then on it has a session, and what is pushed
    /// to it is tracked. For ever if the wire does not let the answer through.
    pub async fn welcomed(&self) {
        while !self.client.connection().is_ok_and(|connection| connection.is_negotiated()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
