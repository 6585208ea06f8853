//! Servers over NATS in one process, each with a runtime of its own.

use std::time::Duration;

use bothways::{
    Push, Receipt, Server, ServerBuilder, Target,
    cluster::{Cluster, NodeId},
    server::Listening,
};
use bothways_nats::{NatsEngine, NatsOptions};
use tokio::{
    runtime::Runtime,
    time::{Instant, sleep},
};

/// Longer than anything here takes: a lease, an election, and a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// A server with a runtime of its own: when that is gone, it is gone without a word.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) server: Server,
    pub(crate) listening: Listening,
    runtime: Runtime,
}

impl Node {
    /// One whose clients are the users that their tokens name, and subscribe to this.
    pub(crate) fn start(
        options: NatsOptions,
        to: &'static str,
        with: impl FnOnce(ServerBuilder) -> ServerBuilder,
    ) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let (id, server, listening) = runtime.block_on(async {
            let server = with(Server::builder())
                .auth(move |request| async move {
                    let session = request.session().ok_or("it has left")?;
                    session.bind_user(&request.token);
                    session.subscribe(to).map_err(|_| "a pattern")?;
                    Ok::<_, &str>(())
                })
                .build();
            let engine = NatsEngine::connect(options).await.expect("the broker works");
            let id = server.join(Cluster::new(engine)).await.expect("the broker works");
            let listening = server.listen("tcp@127.0.0.1:0").await.expect("a free port");
            (id, server, listening)
        });
        Self { id, server, listening, runtime }
    }

    pub(crate) fn push(&self, target: &Target, text: &str) -> Receipt {
        self.server.push(target, &Push::new("Mail", "New", text.to_owned())).expect("a small push")
    }

    /// Dies without a word.
    pub(crate) fn kill(self) -> NodeId {
        self.runtime.shutdown_background();
        self.id
    }
}

pub(crate) async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) fn run(test: impl Future<Output = ()>) {
    Runtime::new().expect("a runtime").block_on(test);
}
