//! A server with a store in memory, and clients of it.

use std::{sync::Arc, time::Duration};

use bothways::{
    Class, ClientOptions, Push, Receipt, Server, ServerBuilder, Target,
    cluster::memory::{MemoryBroker, MemoryEngine},
    session::MailboxOptions,
    testing::{Network, TestClient},
};

pub(crate) const TTL: Duration = Duration::from_secs(3600);

/// Each client is the user that its token names.
pub(crate) fn builder() -> ServerBuilder {
    Server::builder().auth(|request| async move {
        let session = request.session().ok_or("the client has left")?;
        session.bind_user(&request.token);
        Ok::<_, &str>(())
    })
}

pub(crate) async fn network(server: Server) -> Network {
    Network::new(server).await.expect("the server runs")
}

pub(crate) async fn with_store(store: Arc<MemoryEngine>) -> Network {
    network(builder().store(store).build()).await
}

/// A server with a store of its own.
pub(crate) async fn alone() -> Network {
    with_store(MemoryBroker::new().engine()).await
}

pub(crate) async fn with_options(options: MailboxOptions) -> Network {
    network(builder().store(MemoryBroker::new().engine()).mailboxes(options).build()).await
}

pub(crate) async fn client(network: &Network, user: &str, device: Option<&str>) -> TestClient {
    let options = ClientOptions::new().auth(user);
    let options = device.into_iter().fold(options, |options, device| options.device(device));
    let client = network.client(options).await.expect("the server listens");
    client.welcomed().await;
    client
}

pub(crate) fn letter(text: &str) -> Push {
    Push::new("Mail", "New", text.to_owned()).class(Class::Durable { ttl: TTL })
}

pub(crate) fn post(network: &Network, user: &str, text: &str) -> Receipt {
    network.server().push(&Target::user(user), &letter(text)).expect("there is a store")
}

pub(crate) async fn stored(network: &Network, user: &str, text: &str) {
    post(network, user, text).stored().await.expect("there is room");
}

/// The next message, which is handled.
pub(crate) async fn next(client: &mut TestClient) -> String {
    let message = client.messages.next().await.expect("the client is open");
    String::from_utf8(message.payload().expect("not packed").to_vec()).expect("a text")
}

pub(crate) async fn next_of(client: &mut TestClient, count: usize) -> Vec<String> {
    let mut texts = Vec::new();
    for _ in 0..count {
        texts.push(next(client).await);
    }
    texts
}

/// That no message comes, however long one waits.
pub(crate) async fn nothing_for(client: &mut TestClient) {
    let waited = tokio::time::timeout(Duration::from_secs(100), client.messages.next()).await;
    if let Ok(message) = waited {
        panic!("{message:?} came");
    }
}

/// Waits until the mailbox has so many letters.
pub(crate) async fn until_letters(network: &Network, user: &str, count: usize) {
    let mail = network.server().mail().expect("there is a store");
    for _ in 0..10_000 {
        let letters = mail.letters(user, 0, 1000).await.expect("the store works");
        if letters.len() == count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the mailbox of {user} has other than {count} letters");
}
