//! Servers with sessions, for the tests beside this.

use std::sync::Arc;

use bothways_proto::{Metadata, keys};

use super::{Session, registry::Registry, target::Target};
use crate::{Client, ClientOptions, Reconnect, Server, connection::Connection};

/// A server's sessions, and one of them.
pub(super) async fn one_session(name: &str) -> (Server, Client, Arc<Registry>, Session) {
    one_session_at(Server::builder().build(), name).await
}

/// As [`one_session`], at this server.
pub(super) async fn one_session_at(server: Server, name: &str) -> (Server, Client, Arc<Registry>, Session) {
    let listening = server.listen(&format!("memory@registry-{name}")).await.expect("the name is free");
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
    let session = server.sessions(&Target::everyone()).expect("no topic").remove(0);
    let registry = session.inner.registry.upgrade().expect("the server lives");
    (server, client, registry, session)
}

/// Plain connections of one server, without sessions so far.
pub(super) async fn plain_connections<const N: usize>(
    name: &str,
) -> (Server, Vec<Client>, Arc<Registry>, [Connection; N]) {
    let server = Server::builder().build();
    let listening = server.listen(&format!("memory@registry-{name}")).await.expect("the name is free");
    let mut clients = Vec::new();
    for _ in 0..N {
        let options = ClientOptions::new().negotiate(false).reconnect(Reconnect::Never);
        let client = Client::connect(listening.address(), options).await.expect("it listens");
        client.call::<()>("No", "Such", &()).await.expect_err("there is no such service");
        clients.push(client);
    }
    let connections: [Connection; N] = server.connections().try_into().expect("as many");
    let registry = connections[0].owner::<Registry>().expect("a server's connection");
    (server, clients, registry, connections)
}

/// What the client of this Welcome says when it comes back.
pub(super) fn claim(welcome: &Metadata) -> Metadata {
    [keys::SESSION_ID, keys::SESSION_KEY]
        .iter()
        .fold(Metadata::new(), |pairs, key| pairs.with(key, welcome.get(key).expect("it is in each Welcome")))
        .with(keys::SESSION_OFFSET, "0")
}
