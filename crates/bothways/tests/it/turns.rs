//! When others have their turn, and when what a handler sends leaves.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use bothways::{Client, ClientOptions, Metadata, Reply, Request, Router, Server, connection::Sent, layer};

use crate::{
    scripted::{Scripted, request},
    support::{address, call, connections, echoing, soon},
};

/// F46. What a handler sends leaves at once: to its own client while it goes on, and to another connection, which
/// waits for no other's messages.
#[tokio::test(start_paused = true)]
async fn what_a_handler_sends_leaves_at_once() {
    let (sent, mut outcomes) = tokio::sync::mpsc::unbounded_channel();
    let (server_of, other) = (Arc::new(std::sync::OnceLock::<Server>::new()), Arc::new(AtomicUsize::new(0)));
    let (of_handler, of_other) = (Arc::clone(&server_of), Arc::clone(&other));
    let handler = move |request: Request| {
        let server = of_handler.get().expect("it is built");
        let own = request.connection().clone();
        let other = server.connections().into_iter().find(|connection| *connection != own).expect("there are two");
        for connection in [&own, &other] {
            let outcome = connection.send_message("T", "x", &Metadata::new(), "now").expect("it is open");
            let _ = sent.send((outcome, connection.stats().pushes_waiting));
        }
        of_other.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Reply::ok(""))
    };
    let server = Server::builder().handler("T", "Send", handler).build();
    server_of.set(server.clone()).expect("once");
    let listening = server.listen(&address()).await.expect("the name is free");
    let [mut client, mut listens] =
        [Scripted::connect(listening.address()).await, Scripted::connect(listening.address()).await];
    connections(&server, 2).await;
    client.say([request(1, "Send", b""), request(2, "Send", b"")].concat()).await;
    for _ in 0..4 {
        assert_eq!(soon(outcomes.recv()).await, Some((Sent::Written, 0)));
    }
    for _ in 0..2 {
        assert!(listens.next().await.header().is_oneway());
        // Each reply behind what its handler sent.
        assert!(client.next().await.header().is_oneway());
        assert!(!client.next().await.header().is_oneway());
    }
    assert_eq!(other.load(Ordering::Relaxed), 2);
}

/// F45. A handler that waits for a call to another server by tokio's bridge gets its answer.
#[test]
fn a_handler_may_wait_for_a_call_to_another_server() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("it starts");
    let _in_it = runtime.enter();
    let done = runtime.block_on(tokio::time::timeout(Duration::from_secs(60), async {
        let behind = echoing().build();
        let behind_listens = behind.listen(&address()).await.expect("the name is free");
        let to_behind = Client::connect(behind_listens.address(), ClientOptions::new()).await.expect("it listens");
        let bridge = move |request: Request| {
            let asked = async {
                let reply = call(&to_behind, "Echo", request.payload().expect("plain"));
                tokio::time::timeout(Duration::from_secs(30), reply).await
            };
            let answer = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(asked));
            std::future::ready(match answer {
                Ok(Ok(payload)) => Reply::ok(payload),
                other => Reply::error(format!("{other:?}")),
            })
        };
        let server = Server::builder().handler("T", "Bridge", bridge).build();
        let listening = server.listen(&address()).await.expect("the name is free");
        let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
        call(&client, "Bridge", "over").await
    }));
    assert_eq!(done.expect("it takes for ever").expect("answered"), "over");
    runtime.shutdown_background();
}

/// F47. However many small requests a client sends at once, others have their turn after at most 256 of them.
#[tokio::test(start_paused = true)]
async fn others_have_their_turn_among_a_clients_small_requests() {
    const REQUESTS: usize = 5000;
    let handled = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&handled);
    let handler = move |_: Request| {
        count.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Reply::ok(""))
    };
    let server = Server::builder().handler("T", "Count", handler).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    let watching = tokio::spawn(async move {
        let (mut last, mut most) = (0, 0);
        while last < REQUESTS {
            tokio::task::yield_now().await;
            let now = handled.load(Ordering::Relaxed);
            most = most.max(now - last);
            last = now;
        }
        most
    });
    client.say((0..REQUESTS as u64).flat_map(|n| request(n, "Count", b"")).collect::<Vec<u8>>()).await;
    for _ in 0..REQUESTS {
        client.next().await;
    }
    let most = soon(watching).await.expect("no panic");
    assert!(0 < most && most <= 256, "{most} handlers ran in one turn");
}

/// F51. Under the layer for it, handlers of one connection that compute run side by side.
#[test]
fn handlers_of_one_connection_run_side_by_side() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build().expect("it starts");
    let _in_it = runtime.enter();
    let done = runtime.block_on(tokio::time::timeout(Duration::from_secs(60), async {
        // Each blocks its thread until the other has begun.
        let (to_b, from_a) = mpsc::channel::<()>();
        let (to_a, from_b) = mpsc::channel::<()>();
        let meet = |to: mpsc::Sender<()>, from: mpsc::Receiver<()>| {
            let from = std::sync::Mutex::new(from);
            move |_: Request| {
                let _ = to.send(());
                let met = from.lock().expect("no panic").recv_timeout(Duration::from_secs(20)).is_ok();
                std::future::ready(Reply::ok(if met { "met" } else { "alone" }))
            }
        };
        let routes = Router::new().handler("T", "A", meet(to_b, from_b)).handler("T", "B", meet(to_a, from_a));
        let server = Server::builder().router(routes.layer(&layer::spawn())).build();
        let listening = server.listen(&address()).await.expect("the name is free");
        let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
        tokio::join!(call(&client, "A", ""), call(&client, "B", ""))
    }));
    let (a, b) = done.expect("it takes for ever");
    assert_eq!((a.expect("answered"), b.expect("answered")), ("met".into(), "met".into()));
    runtime.shutdown_background();
}
