//! How clients and their sessions go from node to node.

use bothways::{
    Server,
    session::{SessionId, Target},
    testing::TestClient,
};

use crate::support::{Node, until};

/// The only session of this user at a node.
pub(crate) fn session_of(server: &Server, user: &str) -> Option<SessionId> {
    let found = server.sessions(&Target::user(user)).expect("no topic");
    assert!(found.len() <= 1, "one at most");
    found.first().map(bothways::Session::id)
}

/// A client of ann at this node, and her session, which another node can have.
pub(crate) async fn ann_at(node: &Node) -> (TestClient, SessionId) {
    let ann = node.client("ann").await;
    let id = session_of(node.server(), "ann").expect("she is there");
    settle().await;
    (ann, id)
}

/// The record of this session is written: it can be had by another node.
pub(crate) async fn settle() {
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
}

/// The client loses its connection, and comes back to this node.
pub(crate) fn goes_to(client: &TestClient, node: &Node) {
    client.wire.lead_to(node.network.address()).expect("an address");
    client.wire.cut();
    client.wire.admit();
}

/// As [`goes_to`], until this session is there.
pub(crate) async fn comes_to(client: &TestClient, node: &Node, id: SessionId) {
    goes_to(client, node);
    until("it is there", || is_there(node, id)).await;
}

/// As [`comes_to`], until it is welcomed, as this user and with the session that it had.
pub(crate) async fn moves_to(client: &TestClient, user: &str, node: &Node, id: SessionId) {
    comes_to(client, node, id).await;
    assert_eq!(session_of(node.server(), user), Some(id));
    client.welcomed().await;
}

/// True if the client has this session there.
pub(crate) fn is_there(node: &Node, id: SessionId) -> bool {
    let found = node.server().sessions(&Target::session(id)).expect("no topic");
    found.first().is_some_and(|session| session.connection().is_some())
}
