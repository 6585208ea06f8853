//! Servers of one cluster, with clients, in virtual time.

use std::time::Duration;

use bothways::{
    ClientOptions, Push, Receipt, Server, ServerBuilder, Target,
    cluster::{Cluster, NodeId, memory::MemoryBroker},
    session::TopicOptions,
    testing::{Network, TestClient},
};
use tokio::time::{Instant, sleep};

/// One server of a cluster.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) network: Network,
}

impl Node {
    pub(crate) fn server(&self) -> &Server {
        self.network.server()
    }

    /// A client of this user, which has a session.
    pub(crate) async fn client(&self, user: &str) -> TestClient {
        let client = self.network.client(ClientOptions::new().auth(user)).await.expect("it listens");
        client.welcomed().await;
        client
    }

    /// This client, the node's only one, loses its connection, and cannot come back yet.
    pub(crate) async fn loses(&self, client: &TestClient) {
        client.wire.refuse();
        client.wire.cut();
        until("it is away", || self.server().stats().sessions_away == 1).await;
    }

    pub(crate) fn push(&self, target: &Target, text: &str) -> Receipt {
        self.server().push(target, &Push::new("Mail", "New", text.to_owned())).expect("a small push")
    }
}

/// A server in which a token is the user's name, or `user/device`.
pub(crate) fn server() -> Server {
    builder().build()
}

/// What [`server`] is built by.
pub(crate) fn builder() -> ServerBuilder {
    let kept = TopicOptions::new().history(10, Duration::from_secs(60));
    Server::builder().topic("kept.*", kept).expect("a pattern").auth(|request| async move {
        let session = request.session().ok_or("it has left")?;
        let (user, device) = request.token.split_once('/').unwrap_or((&request.token, "phone"));
        session.bind_user(user);
        session.set_label("device", device);
        Ok::<_, &str>(())
    })
}

/// One more node.
pub(crate) async fn join(broker: &MemoryBroker) -> Node {
    join_with(broker, |cluster| cluster).await
}

/// As [`join`], with options.
pub(crate) async fn join_with(broker: &MemoryBroker, options: impl FnOnce(Cluster) -> Cluster) -> Node {
    join_as(server(), options(Cluster::new(broker.engine()))).await
}

/// One more node, by this server.
pub(crate) async fn join_as(server: Server, cluster: Cluster) -> Node {
    let id = server.join(cluster).await.expect("the engine works");
    Node { id, network: Network::new(server).await.expect("it runs") }
}

/// Some nodes that know each other.
pub(crate) async fn nodes<const N: usize>(broker: &MemoryBroker) -> [Node; N] {
    let mut nodes = Vec::new();
    for _ in 0..N {
        nodes.push(join(broker).await);
    }
    know_each_other(&nodes).await;
    nodes.try_into().unwrap_or_else(|_| unreachable!("as many"))
}

/// Waits until each of these counts the others.
pub(crate) async fn know_each_other(nodes: &[Node]) {
    let others = nodes.len() - 1;
    for node in nodes {
        until("all know each other", || node.server().nodes().is_some_and(|(_, known)| known.len() == others)).await;
    }
}

/// The text of the next message, which is handled.
pub(crate) async fn next(client: &mut TestClient) -> String {
    let message = client.messages.next().await.expect("the client is open");
    String::from_utf8(message.payload().expect("not packed").to_vec()).expect("a text")
}

/// No message comes within ten seconds.
pub(crate) async fn nothing(client: &mut TestClient) {
    let none = tokio::time::timeout(Duration::from_secs(10), client.messages.next()).await;
    assert!(none.is_err(), "{none:?}");
}

/// Waits until this holds, a minute at most.
pub(crate) async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}
