//! What is over leaves nothing behind: no task, no connection, no call, no memory.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use bothways::{CallOptions, Client, ClientOptions, Metadata, Reply, Request, Router};

use crate::{
    scripted::{Scripted, request},
    support::{address, call, call_with, connections, echoing, gate, soon, until},
};

fn tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

/// 10,000 clients connect, call and go, by their own close, by a drop, by the server's close, by a break of
/// the network, with calls under way or not: afterwards it is as it was before.
#[tokio::test(start_paused = true)]
async fn ten_thousand_clients_leave_nothing() {
    let (handler, mut asked) = gate();
    let server = echoing().handler("T", "Wait", handler).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let base = tasks();
    for round in 0..10_000 {
        match round % 5 {
            0 => {
                let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
                call(&client, "Echo", "x").await.expect("answered");
            }
            1 => {
                let (client, messages) =
                    Client::bidirectional(listening.address(), ClientOptions::new()).await.expect("it listens");
                let options = CallOptions::new().timeout(Duration::from_millis(5));
                call_with(&client, "Wait", "x", options).await.expect_err("nobody answers");
                bothways::raw::broadcast(&server, "T", "News", &Metadata::new(), b"x").expect("it is small");
                client.close();
                drop(messages);
            }
            2 => {
                let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
                let waiting = tokio::spawn(async move { call(&client, "Wait", "x").await });
                let running = soon(asked.recv()).await.expect("it runs");
                running.request.connection().close();
                waiting.await.expect("no panic").expect_err("the server closed");
            }
            3 => {
                let mut client = Scripted::connect(listening.address()).await;
                client.say(request(1, "Wait", b"")).await;
                soon(asked.recv()).await.expect("it runs");
                client.reset();
            }
            _ => {
                let mut client = Scripted::connect(listening.address()).await;
                client.say(request(1, "Echo", b"")).await;
                client.next().await;
            }
        }
        while asked.try_recv().is_ok() {}
    }
    connections(&server, 0).await;
    until(|| tasks() == base).await;
    assert_eq!(server.stats().calls_running, 0);
}

/// A client's handlers, and with them the client's own memory, go with the client: also when messages
/// wait that nobody reads, when one is kept, and when a handle on the connection is kept.
#[tokio::test(start_paused = true)]
async fn a_clients_handlers_go_with_it() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    for round in 0..3 {
        let token = Arc::new(());
        let held = Arc::clone(&token);
        let handlers = Router::new().handler("T", "Never", move |_: Request| {
            let _ = &held;
            std::future::ready(Reply::ok(""))
        });
        let remains: Weak<()> = Arc::downgrade(&token);
        drop(token);
        let client =
            Client::with_handlers(listening.address(), ClientOptions::new(), handlers).await.expect("it listens");
        connections(&server, 1).await[0].send_message("T", "Other", &Metadata::new(), "").expect("room");
        let kept = (round == 1).then(|| client.connection().expect("it is up"));
        if round == 2 {
            bothways::raw::broadcast(&server, "T", "Many", &Metadata::new(), &[0; 1000]).expect("it is small");
        }
        drop(client);
        connections(&server, 0).await;
        drop(kept);
        until(|| remains.strong_count() == 0).await;
    }
}

/// A server that is dropped with its listener and its clients is gone, with its handlers and its tasks.
#[tokio::test(start_paused = true)]
async fn a_server_goes_with_its_last_connection() {
    let base = tasks();
    let token = Arc::new(());
    let held = Arc::clone(&token);
    let server = echoing()
        .handler("T", "Never", move |_: Request| {
            let _ = &held;
            std::future::ready(Reply::ok(""))
        })
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    call(&client, "Echo", "").await.expect("answered");
    drop((server, listening));
    call(&client, "Echo", "").await.expect("a connection that is open stays");
    drop(client);
    until(|| tasks() == base).await;
    assert_eq!(Arc::strong_count(&token), 1);
}
