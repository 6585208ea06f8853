//! A server that sends its clients away one by one, so that the next one meets no crowd.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bothways::{
    Client, ClientOptions, ConnectionEvent, Push, Reply, Server, ServerBuilder, ServerMessages, SessionLost, Stage,
    Target,
};
use bothways_proto::keys;
use tokio::time::Instant;

use crate::{
    scripted::{Scripted, is_control, reply, request},
    support::{address, call, echoing, gate, settle, soon, until},
};

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A server, and when each of its clients came, since the test began.
fn noting(builder: ServerBuilder) -> (Server, Arc<Mutex<Vec<Duration>>>) {
    let (began, came) = (Instant::now(), Arc::new(Mutex::new(Vec::new())));
    let notes = Arc::clone(&came);
    let server = builder.on_connect(move |_| notes.lock().expect("no panic").push(began.elapsed())).build();
    (server, came)
}

/// A crowd of clients, none of which is to be lost.
async fn crowd(address: &str, count: usize) -> Vec<(Client, ServerMessages)> {
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(Client::bidirectional(address, ClientOptions::new()).await.expect("it listens"));
    }
    settle().await;
    clients
}

/// Times of arrival lie in at least so many seconds, and nowhere closer than the rate allows, give or take the jitter
/// of a client.
fn assert_spread(came: &[Duration], per_second: usize, seconds: u64) {
    let (first, last) = (came.iter().min().expect("some came"), came.iter().max().expect("some came"));
    assert!(s(seconds) <= *last - *first, "{first:?} to {last:?}");
    for from in came {
        let window = came.iter().filter(|at| *from <= **at && **at < *from + Duration::from_millis(200)).count();
        assert!(window <= per_second * 2 / 5, "{window} came within 200 ms of {from:?}");
    }
}

/// Five hundred clients come to the next server over five seconds: each once, none lost, and no crowd. Each is served
/// until its turn, learns that its session is gone, and the first server is through in time.
#[tokio::test(start_paused = true)]
async fn a_drained_crowd_comes_to_the_next_server_at_the_rate() {
    const CLIENTS: usize = 500;
    let place = address();
    let first = echoing().build();
    let listening = first.listen(&place).await.expect("the name is free");
    let mut clients = crowd(&place, CLIENTS).await;
    assert_eq!(first.stats().sessions, CLIENTS);
    let receipt = first.push(&Target::everyone(), &Push::new("T", "News", "hi")).expect("small");
    assert_eq!(receipt.received().await.at(Stage::Received), CLIENTS);
    let mut events: Vec<_> = clients.iter().map(|(client, _)| client.events()).collect();

    let began = Instant::now();
    let draining = tokio::spawn({
        let first = first.clone();
        async move { first.drain(s(60), 100).await }
    });
    listening.stopped().await;
    settle().await;
    let (next, came) = noting(echoing());
    let _listening = next.listen(&place).await.expect("the first has gone from here");
    tokio::time::sleep(s(2)).await;
    let served = first.stats().connections;
    // Two hundred were told; the last fifty of them may still acknowledge.
    assert!((290..=360).contains(&served), "{served} are there still");
    for (client, _) in clients.iter().step_by(50) {
        assert_eq!(call(client, "Echo", "x").await.expect("by either"), "x");
    }
    let report = soon(draining).await.expect("no panic");
    let took = began.elapsed();
    assert!(s(5) <= took && took <= s(7), "{took:?}");
    assert_eq!((report.clients_told, report.connections_closed), (CLIENTS, CLIENTS));
    assert_eq!((report.connections_cut, report.calls_unfinished), (0, 0));
    // Nobody is known to have dealt with the message: it is counted, and its sender is told.
    assert_eq!((report.sessions_left, report.pushes_unhandled), (CLIENTS, CLIENTS));
    assert_eq!(receipt.outcomes().at(Stage::Unknown), CLIENTS);

    until(|| next.stats().sessions == CLIENTS).await;
    let came = came.lock().expect("no panic").clone();
    assert_eq!(came.len(), CLIENTS, "each once");
    assert_spread(&came, 100, 4);
    for events in &mut events {
        let lost = loop {
            if let ConnectionEvent::SessionLost { why, .. } = soon(events.next()).await.expect("the client is open") {
                break why;
            }
        };
        assert_eq!(lost, SessionLost::Unknown);
    }
    for (client, messages) in &mut clients {
        assert_eq!(call(client, "Echo", "there").await.expect("it is there"), "there");
        assert!(messages.try_next().is_some(), "what it had received it still has");
    }
}

/// With less time than slots, all are told in the first half of it and the server is gone at once; the clients come
/// at the rate all the same, for they wait for their slots.
#[tokio::test(start_paused = true)]
async fn a_server_in_a_hurry_leaves_its_clients_their_slots() {
    const CLIENTS: usize = 500;
    let place = address();
    let first = echoing().build();
    let listening = first.listen(&place).await.expect("the name is free");
    let clients = crowd(&place, CLIENTS).await;
    let began = Instant::now();
    let draining = tokio::spawn({
        let first = first.clone();
        async move { first.drain(s(1), 100).await }
    });
    listening.stopped().await;
    settle().await;
    let (next, came) = noting(echoing());
    let _listening = next.listen(&place).await.expect("the first has gone from here");
    let report = soon(draining).await.expect("no panic");
    assert!(began.elapsed() <= s(1), "{:?}", began.elapsed());
    assert_eq!((report.clients_told, report.connections_closed, report.connections_cut), (CLIENTS, CLIENTS, 0));
    until(|| next.stats().sessions == CLIENTS).await;
    let came = came.lock().expect("no panic").clone();
    assert_eq!(came.len(), CLIENTS);
    assert_spread(&came, 100, 4);
    drop(clients);
}

/// Who is not told yet is served; who is told is refused, but answered what runs. Plain clients see their end.
#[tokio::test(start_paused = true)]
async fn each_is_served_until_its_turn() {
    let (handler, mut asked) = gate();
    let server = echoing().handler("T", "Wait", handler).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut negotiated = Scripted::connect_negotiated(listening.address()).await;
    negotiated.say(request(1, "Wait", b"")).await;
    let running = soon(asked.recv()).await.expect("it runs");
    let mut plain = Vec::new();
    for _ in 0..3 {
        let mut client = Scripted::connect(listening.address()).await;
        client.say(request(1, "Echo", b"a")).await;
        client.hears(reply(1, "Echo", b"a")).await;
        plain.push(client);
    }
    // Each calls until its end, and is answered until then.
    let plain: Vec<_> = plain
        .into_iter()
        .map(|mut client| {
            tokio::spawn(async move {
                let mut calls = 2;
                while client.try_say(request(calls, "Echo", b"b")).await.is_ok() {
                    let Some(answer) = client.try_next().await else { break };
                    assert_eq!(&answer.wire_payload()[..], b"b");
                    calls += 1;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                client.end().await;
                Instant::now()
            })
        })
        .collect();
    let began = Instant::now();
    let draining = tokio::spawn({
        let server = server.clone();
        async move { server.drain(s(30), 1).await }
    });
    let goodbye = negotiated.next().await;
    let mut turns = vec![Instant::now()];
    assert!(is_control(&goodbye, keys::GOODBYE), "{goodbye:?}");
    assert_eq!(goodbye.metadata().get(keys::GOODBYE_AFTER), Some("0"));
    negotiated.say(request(2, "Echo", b"")).await;
    assert_eq!(negotiated.next().await.metadata().get(keys::ERROR_CODE), Some("shutting_down"));
    for client in plain {
        turns.push(client.await.expect("no panic"));
    }
    turns.sort();
    for (place, turn) in turns.iter().enumerate() {
        let off = (*turn - began).as_secs_f64() - place as f64;
        assert!((0.0..0.2).contains(&off), "turn {place} was {off} s late");
    }
    tokio::time::sleep(s(6)).await;
    assert!(!draining.is_finished(), "a call runs");
    running.answer(Reply::ok("done"));
    negotiated.hears(reply(1, "Wait", b"done")).await;
    negotiated.hears_the_end().await;
    negotiated.end().await;
    let report = soon(draining).await.expect("no panic");
    assert!(began.elapsed() < s(15), "it waits for no more than what runs: {:?}", began.elapsed());
    assert_eq!((report.clients_told, report.connections_closed), (1, 4));
    assert_eq!((report.calls_unfinished, report.connections_cut), (0, 0));
    assert_eq!(server.shutdown(s(1)).await, report, "it is the same end");
}

/// What does not end is cut at the deadline, and counted. A client that is quick to handle leaves nothing behind.
#[tokio::test(start_paused = true)]
async fn what_is_left_at_the_deadline_is_told() {
    let (handler, mut asked) = gate();
    let server = echoing().handler("T", "Wait", handler).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut stuck = Scripted::connect(listening.address()).await;
    stuck.say(request(1, "Wait", b"")).await;
    let _running = soon(asked.recv()).await.expect("it runs");
    let mut clients = crowd(listening.address(), 1).await;
    let (_client, messages) = &mut clients[0];
    let receipt = server.push(&Target::everyone(), &Push::new("T", "News", "hi")).expect("small");
    let handling = async {
        // Nothing of it is acknowledged when its client is told.
        drop(soon(messages.next()).await.expect("it came"));
    };
    let began = Instant::now();
    let (report, ()) = tokio::join!(server.drain(s(3), 1000), handling);
    assert_eq!(began.elapsed(), s(3));
    assert_eq!((report.calls_unfinished, report.connections_cut, report.connections_closed), (1, 1, 1));
    assert_eq!((report.sessions_left, report.pushes_unhandled), (1, 0), "{report:?}");
    assert_eq!(receipt.outcomes().at(Stage::Handled), 1);
    assert_eq!(server.stats().sessions, 0);
}
