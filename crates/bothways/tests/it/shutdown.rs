//! A server that stops in good order, and hooks that run as often as they should.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bothways::{
    Client, ClientOptions, CloseReason, ErrorCode, Metadata, Push, Reconnect, Reply, Router, ServeError, Target,
    session::{SendError, TopicOptions},
};
use bothways_proto::keys;
use tokio::time::Instant;

use crate::{
    scripted::{Scripted, arrive, is_control, ping, reply, request},
    support::{address, call, connections, echoing, gate, settle, soon, until},
};

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// B16, W8, W19. What runs is answered, negotiated clients are told, new calls are refused, nobody new
/// gets in, and the report says that nothing was left.
#[tokio::test(start_paused = true)]
async fn a_server_stops_in_good_order() {
    let (handler, mut asked) = gate();
    let hooks = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&hooks);
    let server = echoing()
        .handler("T", "Wait", handler)
        .on_shutdown(move || async move {
            tokio::time::sleep(s(1)).await;
            counted.fetch_add(1, Ordering::Relaxed);
        })
        .on_shutdown(|| async { panic!("a hook of the application") })
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut plain = Scripted::connect(listening.address()).await;
    let mut negotiated = Scripted::connect_negotiated(listening.address()).await;
    for client in [&mut plain, &mut negotiated] {
        client.say(request(1, "Wait", b"")).await;
    }
    let running = [soon(asked.recv()).await.expect("it runs"), soon(asked.recv()).await.expect("it runs")];
    let stopping = tokio::spawn({
        let server = server.clone();
        async move { server.shutdown(s(60)).await }
    });
    let goodbye = negotiated.next().await;
    assert!(is_control(&goodbye, keys::GOODBYE), "{goodbye:?}");
    assert!(goodbye.metadata().get(keys::GOODBYE_WHY).is_some());
    assert_eq!(hooks.load(Ordering::Relaxed), 1, "hooks run before clients are told");
    soon(listening.stopped()).await;
    let error = server.listen(&address()).await.expect_err("it stops");
    assert!(matches!(error, ServeError::ShutDown), "{error}");
    negotiated.say(request(2, "Echo", b"")).await;
    let refused = negotiated.next().await;
    assert_eq!(refused.metadata().get(keys::ERROR_CODE), Some(ErrorCode::ShuttingDown.name()));
    assert!(!stopping.is_finished());

    running.into_iter().for_each(|asked| asked.answer(Reply::ok("done")));
    for client in [&mut plain, &mut negotiated] {
        client.hears(reply(1, "Wait", b"done")).await;
        client.hears_the_end().await;
        client.end().await;
    }
    let report = soon(stopping).await.expect("no panic");
    assert_eq!((report.calls_unfinished, report.connections_cut), (0, 0));
    assert_eq!(server.stats().connections, 0);
    assert_eq!(server.shutdown(s(60)).await, report, "again, it is the same end");
    assert_eq!(hooks.load(Ordering::Relaxed), 1);
}

/// Go calls another server if the connection ends, and not if it is answered with an error: what a plain client asks
/// for when its server stops or drains gets no answer, and it sees the end once what runs of its own is answered.
#[tokio::test(start_paused = true)]
async fn a_plain_client_of_a_server_that_stops_sees_the_end_and_no_error() {
    for drains in [false, true] {
        let (handler, mut asked) = gate();
        let (hooks_begin, hooks) = tokio::sync::oneshot::channel::<()>();
        let server = echoing()
            .handler("T", "Wait", handler)
            .on_shutdown(|| async {
                hooks.await.expect("the test goes on");
            })
            .build();
        let listening = server.listen(&address()).await.expect("the name is free");
        let mut clients = Vec::new();
        for _ in 0..4 {
            let mut client = Scripted::connect(listening.address()).await;
            client.say(request(1, "Echo", b"a")).await;
            client.hears(reply(1, "Echo", b"a")).await;
            clients.push(client);
        }
        let [mut running, mut idle, mut asks, mut quiet] = clients.try_into().ok().expect("four");
        let mut another = Scripted::connect_negotiated(listening.address()).await;
        running.say(request(2, "Wait", b"")).await;
        let of_running = soon(asked.recv()).await.expect("it runs");
        another.say(request(1, "Wait", b"")).await;
        let of_another = soon(asked.recv()).await.expect("it runs");

        let stopping = tokio::spawn({
            let server = server.clone();
            async move { if drains { server.drain(s(60), 1000).await } else { server.shutdown(s(60)).await } }
        });
        settle().await;
        if !drains {
            asks.say(request(2, "Echo", b"while hooks run")).await;
            asks.hears_the_end().await;
        }
        hooks_begin.send(()).expect("they wait");
        settle().await;
        // The call of another still runs.
        for client in [&mut idle, &mut quiet] {
            client.hears_the_end().await;
        }
        // By now each has had its turn.
        tokio::time::sleep(s(1)).await;
        running.say(request(3, "Echo", b"behind the stop")).await;
        running.hears_nothing().await;
        of_running.answer(Reply::ok("done"));
        running.hears(reply(2, "Wait", b"done")).await;
        running.hears_the_end().await;
        assert!(!stopping.is_finished(), "{drains}");

        of_another.answer(Reply::ok("done"));
        for client in [running, idle, asks, quiet] {
            client.end().await;
        }
        another.rest().await;
        another.end().await;
        let report = soon(stopping).await.expect("no panic");
        assert_eq!((report.calls_unfinished, report.connections_cut), (0, 0), "{drains}");
    }
}

/// What is not done at the deadline is cut, and reported.
#[tokio::test(start_paused = true)]
async fn a_deadline_cuts() {
    let (handler, mut asked) = gate();
    let server = echoing().handler("T", "Wait", handler).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    client.say(request(1, "Wait", b"")).await;
    let _running = soon(asked.recv()).await.expect("it runs");
    let began = Instant::now();
    let report = server.shutdown(s(3)).await;
    assert_eq!(began.elapsed(), s(3));
    assert_eq!((report.calls_unfinished, report.connections_cut), (1, 1));
    client.hears_the_end().await;
    connections(&server, 0).await;
}

/// The hooks of the connections that are cut at the deadline have run, too, when a shutdown returns.
#[tokio::test(start_paused = true)]
async fn hooks_of_connections_that_are_cut_are_waited_for() {
    let (handler, mut asked) = gate();
    let ended = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&ended);
    let server = echoing()
        .handler("T", "Wait", handler)
        .on_disconnect(move |_, _| _ = counted.fetch_add(1, Ordering::SeqCst))
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut clients = Vec::new();
    for _ in 0..10 {
        let mut client = Scripted::connect(listening.address()).await;
        client.say(request(1, "Wait", b"")).await;
        clients.push((soon(asked.recv()).await.expect("it runs"), client));
    }
    let report = soon(server.shutdown(s(3))).await;
    assert_eq!((report.connections_cut, ended.load(Ordering::SeqCst)), (10, 10));
}

/// Who pushes or publishes at a server that has stopped is told so, and not that a topic keeps it.
#[tokio::test(start_paused = true)]
async fn nothing_is_sent_or_kept_by_a_server_that_has_stopped() {
    for drains in [false, true] {
        let news = TopicOptions::new().history(10, s(60));
        let server = echoing().topic("news", news).expect("a name").build();
        let push = Push::new("News", "say", "x");
        assert!(server.publish("news", &push).expect("it runs").position().is_some());
        match drains {
            false => soon(server.shutdown(s(3))).await,
            true => soon(server.drain(s(3), 100)).await,
        };
        let outcomes = [server.publish("news", &push), server.push(&Target::everyone(), &push)];
        for outcome in outcomes {
            assert!(matches!(outcome, Err(SendError::ShutDown)), "{outcome:?}");
        }
    }
}

/// Two that stop the server at once wait for one end; clients are told once.
#[tokio::test(start_paused = true)]
async fn a_server_stops_once() {
    let server = echoing().on_shutdown(|| tokio::time::sleep(s(2))).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect_negotiated(listening.address()).await;
    let began = Instant::now();
    let hear = async {
        assert!(is_control(&client.next().await, keys::GOODBYE));
        client.hears_the_end().await;
        client.end().await;
    };
    let (first, second, ()) = tokio::join!(server.shutdown(s(10)), server.shutdown(s(10)), hear);
    assert_eq!(first, second);
    assert_eq!(began.elapsed(), s(2));
}

/// A client that is being accepted while the server stops is not left behind.
#[tokio::test(start_paused = true)]
async fn nobody_slips_in_while_a_server_stops() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut clients = Vec::new();
    for _ in 0..50 {
        clients.push(Scripted::connect(listening.address()).await);
        tokio::task::yield_now().await;
    }
    let report = tokio::join!(server.shutdown(s(5)), async {
        for client in &mut clients {
            client.rest().await;
            client.end().await;
        }
    })
    .0;
    assert_eq!(report.calls_unfinished, 0);
    drop(listening);
    connections(&server, 0).await;
}

/// B15. Each connection's hooks run once, in whatever way it ends; one that panics harms nobody.
#[tokio::test(start_paused = true)]
async fn hooks_run_exactly_once() {
    let (begun, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (begins, ends) = (Arc::clone(&begun), Arc::clone(&ended));
    let server = echoing()
        .on_connect(move |_| {
            if begins.fetch_add(1, Ordering::Relaxed) == 3 {
                panic!("a hook of the application");
            }
        })
        .on_disconnect(move |connection, _| {
            assert!(connection.is_closed());
            if ends.fetch_add(1, Ordering::Relaxed) == 2 {
                panic!("a hook of the application");
            }
        })
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    // Ended by the client, by the network, by a bad frame, by the server, and by the shutdown.
    for n in 0..5 {
        let mut client = Scripted::connect(listening.address()).await;
        client.say(ping(0)).await;
        client.next().await;
        assert_eq!(begun.load(Ordering::Relaxed), n + 1);
        match n {
            0 => client.end().await,
            1 => client.reset(),
            2 => client.say("nonsense").await,
            3 => {
                let connection = connections(&server, 1).await.remove(0);
                connection.close();
                connection.close();
            }
            _ => {
                let hear = async {
                    client.hears_the_end().await;
                    client.end().await;
                };
                tokio::join!(server.shutdown(s(60)), hear);
            }
        }
        drop(client);
        until(|| ended.load(Ordering::Relaxed) == n + 1).await;
    }
    settle().await;
    assert_eq!((begun.load(Ordering::Relaxed), ended.load(Ordering::Relaxed)), (5, 5));
}

/// Clients of ours see the goodbye as the reason, and one that runs a handler for the server finishes it.
#[tokio::test(start_paused = true)]
async fn our_clients_see_a_goodbye() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let options = ClientOptions::new().reconnect(Reconnect::Never);
    let client = Client::connect(listening.address(), options).await.expect("it listens");
    call(&client, "Echo", "").await.expect("answered");
    let connection = client.connection().expect("it is up");
    let report = server.shutdown(s(60)).await;
    assert_eq!((report.calls_unfinished, report.connections_cut), (0, 0));
    let reason = soon(connection.closed()).await;
    assert!(matches!(reason, CloseReason::Goodbye { .. }), "{reason}");
}

/// B7, W7. A close writes what waits, then ends; new messages are refused from the first moment.
#[tokio::test(start_paused = true)]
async fn a_close_writes_what_waits() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    client.say(ping(0)).await;
    client.next().await;
    let connection = connections(&server, 1).await.remove(0);
    for _ in 0..300 {
        connection.send_message("T", "News", &Metadata::new(), vec![0; 1000]).expect("room");
    }
    connection.close();
    assert!(connection.send_message("T", "Late", &Metadata::new(), "").is_err());
    assert!(!connection.is_closed());
    assert_eq!(client.rest().await.len(), 300);
    client.end().await;
    assert!(matches!(soon(connection.closed()).await, CloseReason::Local));
    assert_eq!(connection.stats().pushes_dropped, 0);
}

/// A peer that does not end its side is given `close_timeout`, five seconds, and no more.
#[tokio::test(start_paused = true)]
async fn a_close_waits_for_the_peer_but_not_for_ever() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    client.say(ping(0)).await;
    client.next().await;
    let connection = connections(&server, 1).await.remove(0);
    connection.close();
    let began = Instant::now();
    client.hears_the_end().await;
    client.say(request(1, "Echo", b"nobody reads it")).await;
    soon(connection.closed()).await;
    assert!(s(4) <= began.elapsed() && began.elapsed() <= s(8), "{:?}", began.elapsed());
}

/// Calls under way fail at once when their own side closes; what had not left never leaves.
#[tokio::test(start_paused = true)]
async fn ones_own_close_fails_calls_at_once() {
    let server = crate::scripted::ScriptedServer::listen().await;
    let (client, mut peer) =
        tokio::join!(Client::connect(&server.address, ClientOptions::new()), server.accept_negotiated());
    let client = client.expect("it listens");
    let ask = |method: &'static str, len: usize| {
        let client = client.clone();
        tokio::spawn(async move { call(&client, method, vec![0; len]).await })
    };
    let on_its_way = ask("Big", 200_000);
    settle().await;
    let waiting = ask("Small", 10);
    settle().await;
    let began = Instant::now();
    client.close();
    for (call, expected) in [(on_its_way, true), (waiting, false)] {
        let error = call.await.expect("no panic").expect_err("closed");
        assert!(
            matches!(error, bothways::CallError::Closed { written, reason: CloseReason::Local } if written == expected),
            "{error}"
        );
    }
    assert!(began.elapsed() < s(1));
    let heard = peer.rest().await;
    assert!(matches!(&heard[..], [big] if big.service_method() == "Big"), "{heard:?}");
}

/// A handle that is kept for ever keeps no socket: a client that goes on writing learns that nobody reads.
#[tokio::test(start_paused = true)]
async fn a_kept_handle_keeps_no_socket() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    let kept = connections(&server, 1).await.remove(0);
    let peer = kept.peer_address();
    client.end().await;
    soon(kept.closed()).await;
    settle().await;
    assert!(client.try_say([0]).await.is_err(), "somebody reads still");
    assert_eq!(kept.peer_address(), peer, "who it was is still known");
}

/// The connection is in no table any more while the application is told of its end; a shutdown waits for that.
#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_for_on_disconnect() {
    use std::{
        pin::pin,
        sync::OnceLock,
        task::{Context, Waker},
    };
    let (home, ended) = (Arc::<OnceLock<bothways::WeakServer>>::default(), Arc::<OnceLock<bool>>::default());
    let (of_hook, tell) = (Arc::clone(&home), Arc::clone(&ended));
    let server = echoing()
        .on_disconnect(move |_, _| {
            let server = of_hook.get().and_then(bothways::WeakServer::upgrade).expect("it lives");
            let mut stopping = pin!(server.shutdown(s(60)));
            let mut cx = Context::from_waker(Waker::noop());
            tell.set((0..100).any(|_| stopping.as_mut().poll(&mut cx).is_ready())).expect("once");
        })
        .build();
    home.set(server.downgrade()).expect("once");
    let listening = server.listen(&address()).await.expect("the name is free");
    let client = Client::connect(listening.address(), ClientOptions::new().negotiate(false)).await.expect("it listens");
    connections(&server, 1).await;
    drop(client);
    until(|| ended.get().is_some()).await;
    assert_eq!(ended.get(), Some(&false), "it is done while the hook runs");
    let began = Instant::now();
    soon(server.shutdown(s(60))).await;
    assert!(began.elapsed() < s(60), "nothing is left to wait for");
}

/// An address is free as soon as nobody listens there by what the program holds: without a turn of any task.
#[tokio::test(start_paused = true)]
async fn an_address_is_free_at_once() {
    let path = std::env::temp_dir().join(format!("bothways-free-{}", std::process::id()));
    let unix = format!("unix@{}", path.display());
    for address in [address(), "tcp@127.0.0.1:0".to_owned(), unix] {
        let server = echoing().build();
        let first = server.listen(&address).await.expect("it is free");
        let address = first.address().to_owned();
        drop(first);
        let second = server.listen(&address).await.expect("nobody listens there any more");
        soon(server.shutdown(s(60))).await;
        let other = echoing().build();
        let _third = other.listen(&address).await.expect("that server stopped");
        drop(second);
        let client = Client::connect(&address, ClientOptions::new()).await.expect("it listens");
        assert_eq!(call(&client, "Echo", "x").await.expect("answered"), "x");
    }
}

/// What the server itself has asked a client is waited for, up to the deadline, and counted if that comes first.
#[tokio::test(start_paused = true)]
async fn a_server_that_stops_waits_for_what_it_has_asked() {
    for answers in [true, false] {
        let server = echoing().build();
        let listening = server.listen(&address()).await.expect("the name is free");
        let (handler, mut asked) = gate();
        let handlers = Router::new().handler("T", "Ask", handler);
        let options = ClientOptions::new().reconnect(Reconnect::Never);
        let _client = Client::with_handlers(listening.address(), options, handlers).await.expect("it listens");
        let connection = connections(&server, 1).await.remove(0);
        until(|| connection.is_negotiated()).await;
        let asking = tokio::spawn(async move { call(&connection, "Ask", "").await });
        let running = soon(asked.recv()).await.expect("it is asked");
        let began = Instant::now();
        let stopping = tokio::spawn({
            let server = server.clone();
            async move { server.shutdown(s(5)).await }
        });
        tokio::time::sleep(s(1)).await;
        assert!(!stopping.is_finished());
        if answers {
            running.answer(Reply::ok("yes"));
            assert_eq!(soon(asking).await.expect("no panic").expect("answered"), "yes");
            assert_eq!(soon(stopping).await.expect("no panic").calls_unfinished, 0);
            assert!(began.elapsed() < s(5));
        } else {
            assert_eq!(soon(stopping).await.expect("no panic").calls_unfinished, 1);
            assert_eq!(began.elapsed(), s(5));
            soon(asking).await.expect("no panic").expect_err("the server has stopped");
        }
    }
}

/// A client that keeps a message takes all the time of a short shutdown: nothing for it is unwritten, and so it is not
/// called cut.
#[tokio::test(start_paused = true)]
async fn who_has_all_that_was_written_is_not_called_cut() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (mut client, _) = arrive(listening.address(), &Metadata::new()).await;
    server.push(&Target::everyone(), &Push::new("T", "News", "hi")).expect("small");
    client.next().await;
    let report = soon(server.shutdown(Duration::from_millis(400))).await;
    assert_eq!((report.connections_cut, report.connections_closed), (0, 1), "{report:?}");
    assert_eq!((report.sessions_left, report.pushes_unhandled), (1, 1), "{report:?}");
}
