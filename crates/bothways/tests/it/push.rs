//! Servers that send unasked.

use bothways::{Client, ClientOptions, Metadata, Reply, Request};

use crate::support::{Args, Product, address, arith};

/// A server remembers who called, and sends to it when it likes.
#[tokio::test(start_paused = true)]
async fn a_server_sends_to_a_client_that_called() {
    let (sender, mut callers) = tokio::sync::mpsc::unbounded_channel();
    let server = arith()
        .handler("Chat", "Join", move |request: Request| {
            sender.send(request.connection().clone()).expect("the test listens");
            std::future::ready(Reply::ok(""))
        })
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (client, mut messages) =
        Client::bidirectional(listening.address(), ClientOptions::new()).await.expect("it listens");

    let product: Product = client.call("Arith", "Mul", &Args { a: 10, b: 20 }).await.expect("it multiplies");
    assert_eq!(product, Product { c: 200 });

    client.oneshot("Chat", "Join", &()).await.expect("there is room");
    let caller = callers.recv().await.expect("it joined");
    server.send_message(&caller, "Chat", "say", &Metadata::new().with("k", "v"), "abcde").expect("there is room");
    let message = messages.next().await.expect("it is connected");
    assert_eq!((message.service_path(), message.service_method()), ("Chat", "say"));
    assert_eq!(message.metadata().get("k"), Some("v"));
    assert_eq!(message.payload().expect("not compressed"), "abcde");
    assert_eq!(message.server(), listening.address());
}
