//! One server on several runtimes, each with a listener of its own on the one port.

use std::{
    collections::BTreeSet,
    future::ready,
    thread::{self, JoinHandle},
    time::Duration,
};

use bothways::{
    Client, ClientOptions, Push, Reply, Server, Stage, Target, codec::Raw, server::ShutdownReport,
    transport::ListenOptions,
};
use tokio::runtime::Builder;

/// So many that chance does not put all of them on one of two listeners.
const CLIENTS: usize = 40;

/// Answers with the name of the thread that serves.
fn server() -> Server {
    let which = |_| ready(Reply::ok(thread::current().name().expect("it has a name").to_owned()));
    Server::builder().handler("Core", "Which", which).listen_options(ListenOptions::default().reuse_port(true)).build()
}

/// Starts a thread with a runtime that listens.
fn listen(server: &Server, address: &str, name: &str) -> (String, JoinHandle<ShutdownReport>) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let listening = runtime.block_on(server.listen(address)).expect("listens");
    let (address, server) = (listening.address().to_owned(), server.clone());
    let drive = move || {
        runtime.block_on(async {
            listening.stopped().await;
            server.shutdown(Duration::from_secs(20)).await
        })
    };
    (address, thread::Builder::new().name(name.to_owned()).spawn(drive).expect("a thread"))
}

#[test]
fn connections_spread_over_the_runtimes_of_one_server_and_pushes_reach_all_of_them() {
    // Given a server on two runtimes.
    let server = server();
    let (address, first) = listen(&server, "tcp@127.0.0.1:0", "first");
    let (same, second) = listen(&server, &address, "second");
    assert_eq!(same, address);

    Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(async {
        // When many clients connect.
        let mut clients = Vec::new();
        let mut threads = BTreeSet::new();
        for _ in 0..CLIENTS {
            let (client, messages) = Client::bidirectional(&address, ClientOptions::new()).await.expect("connects");
            let thread: Raw = client.call("Core", "Which", &Raw::from("")).await.expect("answers");
            threads.insert(String::from_utf8(thread.to_vec()).expect("a name"));
            clients.push((client, messages));
        }

        // Then each runtime serves some, and a push from a third one reaches all.
        assert_eq!(threads, ["first", "second"].map(str::to_owned).into());
        let receipt = server.push(&Target::everyone(), &Push::new("Core", "say", "hello")).expect("is sent");
        for (_, messages) in &mut clients {
            assert_eq!(messages.next().await.expect("a push").payload().expect("plain"), "hello");
        }
        assert_eq!(receipt.handled().await.at(Stage::Handled), CLIENTS);

        // When it is shut down from outside, each runtime sees the end of its own connections.
        let report = server.shutdown(Duration::from_secs(20)).await;
        for thread in [first, second] {
            assert_eq!(thread.join().expect("no panic"), report);
        }
        assert_eq!((report.connections_cut, server.stats().connections), (0, 0));
    });
}
