//! What a client may make a server hold on the way in: before its token is accepted, and after it.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bothways::{
    Client, ClientOptions, CloseReason, ErrorCode, Limits, Metadata, OutgoingOptions, QueueBound, Reply, Server,
    ServerBuilder, ServerLimits,
};
use bothways_proto::{Capabilities, CompressType, Header, Message, PREFIX_LEN, Seq, SerializeType, gzip, keys};
use tokio::time::Instant;

use crate::{
    scripted::{Scripted, hello, ping, reply, request, request_with},
    support::{address, call, connections, echoing, gate, settle, soon, until},
};

type Reasons = Arc<Mutex<Vec<CloseReason>>>;

/// A builder whose server says why its connections ended.
fn telling(builder: ServerBuilder) -> (Server, Reasons) {
    let reasons = Reasons::default();
    let kept = Arc::clone(&reasons);
    let server = builder.on_disconnect(move |_, reason| kept.lock().expect("no panic").push(reason.clone())).build();
    (server, reasons)
}

/// F24. A frame that has begun and stands still ends its connection, whatever came before it; one that goes on, and a
/// connection between two frames, stay.
#[tokio::test(start_paused = true)]
async fn a_frame_that_stands_still_ends_its_connection() {
    let (server, reasons) = telling(echoing());
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut idle = Scripted::connect(listening.address()).await;
    idle.say(request(1, "Echo", b"")).await;
    idle.next().await;
    for begun in [1, 16, 100, 200_000] {
        let mut client = Scripted::connect(listening.address()).await;
        client.say([ping(0), request(1, "Echo", &[7; 300_000])[..begun].to_vec()].concat()).await;
        client.next().await;
        let began = Instant::now();
        client.hears_the_end().await;
        assert!((9..=12).contains(&began.elapsed().as_secs()), "{begun}: {:?}", began.elapsed());
    }
    // Also if it is the first.
    let mut slow = Scripted::connect(listening.address()).await;
    let frame = request(1, "Echo", &[7; 300_000]);
    for piece in frame.chunks(50 << 10) {
        slow.say(piece).await;
        tokio::time::sleep(Duration::from_secs(9)).await;
    }
    slow.hears(reply(1, "Echo", &[7; 300_000])).await;
    idle.say(request(2, "Echo", b"")).await;
    idle.hears(reply(2, "Echo", b"")).await;
    let reasons = reasons.lock().expect("no panic");
    assert!(reasons.iter().all(|reason| matches!(reason, CloseReason::SlowFrame { .. })), "{reasons:?}");
    assert_eq!(reasons.len(), 4);
}

/// A frame that is passed over goes on as any, and the one behind it is another: each has its own time.
#[tokio::test(start_paused = true)]
async fn the_frame_behind_one_that_is_passed_over_has_its_own_time() {
    let (server, reasons) = telling(echoing().limits(Limits::default().body_bytes_max(100_000)));
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect_negotiated(listening.address()).await;
    let (large, small) = (request(1, "Echo", &[7; 300_000]), request(2, "Echo", &[7; 50_000]));
    for (piece, seconds) in
        [(&large[..200_000], 9), (&large[200_000..], 0), (&small[..20_000], 9), (&small[20_000..], 0)]
    {
        client.say(piece).await;
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
    assert!(client.next().await.error_text().is_some(), "it was passed over");
    client.hears(reply(2, "Echo", &[7; 50_000])).await;
    assert!(reasons.lock().expect("no panic").is_empty());
}

/// F31. Arguments that take more in memory than on the wire count with the requests that run: one that finds no room is
/// answered as overloaded, and there is room again when the others have ended.
#[tokio::test(start_paused = true)]
async fn decoded_arguments_are_bounded_with_their_requests() {
    for (of_server, of_connection) in [(1 << 30, 1_500_000), (2_000_000, 1 << 30)] {
        let release = Arc::new(tokio::sync::Notify::new());
        let of_handler = Arc::clone(&release);
        let take = move |values: Vec<String>| {
            let release = Arc::clone(&of_handler);
            async move {
                release.notified().await;
                Ok::<_, String>(values.len())
            }
        };
        let server = Server::builder()
            .function("T", "Take", take)
            .limits(ServerLimits::new().request_bytes_max(of_server).request_bytes_per_connection_max(of_connection))
            .build();
        let listening = server.listen(&address()).await.expect("the name is free");
        let mut client = Scripted::connect(listening.address()).await;
        let ask = |seq: u64, values: u16| {
            let payload = [&[0xdc][..], &values.to_be_bytes(), &vec![0xc0; values.into()]].concat();
            let header = Header::request(Seq::new(seq), SerializeType::MSGPACK);
            Message::new(header, "T", "Take", &Metadata::new(), &payload).frame().to_vec()
        };
        for round in 0..3 {
            client.say(ask(1, 20_000)).await;
            settle().await;
            client.say(ask(2, 20_000)).await;
            let refused = client.next().await;
            assert_eq!(refused.header().seq(), Seq::new(2), "round {round}");
            assert!(refused.error_text().is_some_and(|text| text.starts_with("overloaded: calls ")), "{refused:?}");
            // Few values count with their request.
            client.say(ask(3, 50)).await;
            settle().await;
            release.notify_waiters();
            for _ in 0..2 {
                let answer = client.next().await;
                assert_eq!(answer.error_text(), None, "round {round}: {answer:?}");
            }
            settle().await;
        }
    }
}

/// F24. Frames that have begun have a bound in all connections together: one that finds no room is told so, and when
/// others have ended there is room again.
#[tokio::test(start_paused = true)]
async fn frames_that_have_begun_are_bounded_together() {
    let (server, reasons) = telling(echoing().limits(ServerLimits::new().partial_bytes_max(300_000)));
    let listening = server.listen(&address()).await.expect("the name is free");
    let frame = request(5, "Echo", &[7; 1_000_000]);
    let begin = async || {
        let mut client = Scripted::connect(listening.address()).await;
        client.say(&frame[..340_000]).await;
        settle().await;
        client
    };
    let mut first = begin().await;
    let mut second = begin().await;
    let refused = second.next().await;
    assert_eq!(refused.header().seq(), Seq::new(5));
    assert!(refused.error_text().is_some_and(|text| text.contains("`partial_bytes_max`")), "{refused:?}");
    second.hears_the_end().await;
    drop(second);
    // Small frames in pieces are none that count.
    let mut small = Scripted::connect(listening.address()).await;
    let [begins, ends] = [&request(6, "Echo", &[7; 1000])[..500], &request(6, "Echo", &[7; 1000])[500..]];
    small.say(begins).await;
    settle().await;
    small.say(ends).await;
    small.hears(reply(6, "Echo", &[7; 1000])).await;
    // One alone has the bound of a frame, and gives its room back.
    first.say(&frame[340_000..]).await;
    first.hears(reply(5, "Echo", &[7; 1_000_000])).await;
    for _ in 0..3 {
        let mut third = begin().await;
        third.say(&frame[340_000..]).await;
        third.hears(reply(5, "Echo", &[7; 1_000_000])).await;
    }
    until(|| {
        let reasons = reasons.lock().expect("no panic");
        reasons.iter().filter(|reason| matches!(reason, CloseReason::NoRoom { .. })).count() == 1
    })
    .await;
}

/// A server whose hook accepts `good`, at once or, if told so, after a second; and how many hooks ran, and at once.
fn guarded(slow: bool) -> (ServerBuilder, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let (asked, most) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let (count, highest, now) = (Arc::clone(&asked), Arc::clone(&most), Arc::<AtomicUsize>::default());
    let builder = echoing().auth(move |request| {
        count.fetch_add(1, Ordering::Relaxed);
        let (now, highest) = (Arc::clone(&now), Arc::clone(&highest));
        async move {
            highest.fetch_max(1 + now.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
            if slow {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            now.fetch_sub(1, Ordering::Relaxed);
            if request.token == "good" { Ok(()) } else { Err("no") }
        }
    });
    (builder, asked, most)
}

fn with_token(number: u64, token: &str, payload: &[u8]) -> Vec<u8> {
    request_with(number, "Echo", &Metadata::new().with(keys::AUTH, token), payload)
}

/// F25. Until a token is accepted one request of a connection is checked at a time, and a refused one ends it before the
/// others are looked at; from then on they are checked side by side.
#[tokio::test(start_paused = true)]
async fn one_token_is_checked_at_a_time_until_one_is_accepted() {
    let (builder, asked, most) = guarded(true);
    let server = builder.build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut stranger = Scripted::connect(listening.address()).await;
    stranger.say((0..50).flat_map(|n| with_token(n, "bad", &[7; 10_000])).collect::<Vec<u8>>()).await;
    assert_eq!(stranger.next().await.error_text().as_deref(), Some("no"));
    stranger.hears_the_end().await;
    assert_eq!((asked.swap(0, Ordering::Relaxed), most.swap(0, Ordering::Relaxed)), (1, 1));

    let mut client = Scripted::connect(listening.address()).await;
    let began = Instant::now();
    client.say((0..50).flat_map(|n| with_token(n, "good", &[7; 10_000])).collect::<Vec<u8>>()).await;
    for _ in 0..50 {
        assert_eq!(client.next().await.error_text(), None);
    }
    assert_eq!((asked.load(Ordering::Relaxed), most.load(Ordering::Relaxed)), (50, 49));
    assert_eq!(began.elapsed().as_secs(), 2);
}

/// What is whole and waits for the check of a stranger's token counts as what has begun: a crowd of strangers does not
/// fill the memory with it.
#[tokio::test(start_paused = true)]
async fn frames_that_wait_for_a_token_are_bounded_together() {
    let (builder, ..) = guarded(true);
    let limits = ServerLimits::new().partial_bytes_max(2_000_000);
    let (server, reasons) = telling(builder.limits(limits));
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut strangers = Vec::new();
    for _ in 0..10 {
        let mut stranger = Scripted::connect(listening.address()).await;
        stranger.say(with_token(1, "good", b"")).await;
        settle().await;
        stranger.say(with_token(2, "good", &[7; 400_000])).await;
        settle().await;
        strangers.push(stranger);
    }
    // Of half of the room: each holds its frame beyond 64 KiB.
    for mut stranger in strangers.drain(..2) {
        assert_eq!(stranger.next().await.header().seq(), Seq::new(1));
        assert_eq!(stranger.next().await.payload(&Limits::default()).expect("plain").len(), 400_000);
    }
    let found_no_room = || {
        let reasons = reasons.lock().expect("no panic");
        reasons.iter().filter(|reason| matches!(reason, CloseReason::NoRoom { .. })).count()
    };
    until(|| 7 <= found_no_room()).await;
}

/// Strangers share half of the server's room: however much of it they take, a client whose token was accepted has the
/// other half, for frames that have begun and for requests that run.
#[tokio::test(start_paused = true)]
async fn strangers_leave_room_for_those_who_were_let_in() {
    let (builder, ..) = guarded(true);
    let server = builder
        .limits(
            ServerLimits::new()
                .partial_bytes_max(1_000_000)
                .request_bytes_max(1_000_000)
                .request_bytes_per_connection_max(1_000_000),
        )
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut good = Scripted::connect(listening.address()).await;
    good.say(with_token(1, "good", b"")).await;
    assert_eq!(good.next().await.error_text(), None);

    // Half frames, and requests whose tokens are being checked.
    let frame = with_token(2, "bad", &[7; 400_000]);
    let mut strangers = Vec::new();
    for part in [&frame[..350_000], &frame[..]] {
        for _ in 0..5 {
            let mut stranger = Scripted::connect(listening.address()).await;
            stranger.say(part).await;
            settle().await;
            strangers.push(stranger);
        }
    }

    let large = with_token(3, "good", &[7; 300_000]);
    good.say(&large[..250_000]).await;
    settle().await;
    good.say(&large[250_000..]).await;
    assert_eq!(good.next().await.error_text(), None);
    drop(strangers);
}

/// F24, F25. A frame that is larger than strangers may send is refused before it is there, and its sender is told; what
/// comes behind a token that is accepted, by a Hello or by a request, may be as large as any.
#[tokio::test(start_paused = true)]
async fn strangers_send_small_frames() {
    for slow in [false, true] {
        let (builder, ..) = guarded(slow);
        let server = builder.limits(ServerLimits::new().unauthenticated_body_bytes_max(100_000)).build();
        let listening = server.listen(&address()).await.expect("the name is free");
        let large = vec![7; 500_000];
        for token in ["bad", "good"] {
            let mut stranger = Scripted::connect(listening.address()).await;
            stranger.say(&with_token(3, token, &large)[..90_000]).await;
            let refused = stranger.next().await;
            assert_eq!(refused.header().seq(), Seq::new(3));
            let text = refused.error_text().expect("it failed");
            assert!(text.contains("`unauthenticated_body_bytes_max` is 100000"), "{text}");
            stranger.hears_the_end().await;
        }
        let good = Metadata::new().with(keys::AUTH, "good");
        for first in [with_token(1, "good", b"small"), hello(0, Capabilities::ALL, &good)] {
            let mut client = Scripted::connect(listening.address()).await;
            client.say([first, with_token(2, "good", &large)].concat()).await;
            client.next().await;
            let answer = client.next().await;
            assert_eq!((answer.error_text(), answer.wire_payload().len()), (None, large.len()));
        }
        // Behind a token that is refused nothing large is waited for.
        let mut refused = Scripted::connect(listening.address()).await;
        refused.say([with_token(1, "bad", b""), with_token(2, "bad", &large)[..150_000].to_vec()].concat()).await;
        assert_eq!(refused.next().await.error_text().as_deref(), Some("no"));
        refused.hears_the_end().await;
    }
}

/// What a stranger may send is bounded to the byte.
#[tokio::test(start_paused = true)]
async fn a_stranger_may_send_all_that_is_allowed() {
    let whole = with_token(2, "good", &[7; 5000]);
    for (short, is_allowed) in [(0, true), (1, false)] {
        let (builder, ..) = guarded(false);
        let server = builder
            .limits(ServerLimits::new().unauthenticated_body_bytes_max(whole.len() - PREFIX_LEN - short))
            .build();
        let listening = server.listen(&address()).await.expect("the name is free");
        let mut stranger = Scripted::connect(listening.address()).await;
        // In two parts, so that a frame has begun and is not there.
        stranger.say(&whole[..1000]).await;
        settle().await;
        if is_allowed {
            stranger.say(&whole[1000..]).await;
        }
        assert_eq!(stranger.next().await.error_text().is_none(), is_allowed);
    }
}

/// F25. Requests that run are bounded in bytes, of each connection and of all: more are answered as overloaded at once,
/// and there is room again when they have ended.
#[tokio::test(start_paused = true)]
async fn requests_that_run_are_bounded_in_bytes() {
    for (of_server, of_connection) in [(1 << 30, 500_000), (640_000, 1 << 30)] {
        let (handler, mut asked) = gate();
        let server = echoing()
            .handler("T", "Wait", handler)
            .limits(ServerLimits::new().request_bytes_max(of_server).request_bytes_per_connection_max(of_connection))
            .build();
        let listening = server.listen(&address()).await.expect("the name is free");
        let mut clients = [Scripted::connect(listening.address()).await, Scripted::connect(listening.address()).await];
        let mut running = Vec::new();
        for number in 0..4 {
            clients[0].say(request(number, "Wait", &[7; 120_000])).await;
            running.push(soon(asked.recv()).await.expect("it runs"));
        }
        clients[0].say(request(4, "Wait", &[7; 120_000])).await;
        let refused = clients[0].next().await;
        assert_eq!(refused.header().seq(), Seq::new(4));
        assert!(refused.error_text().is_some_and(|text| text.starts_with("overloaded: ")), "{refused:?}");
        clients[1].say(request(5, "Wait", &[7; 120_000])).await;
        if of_connection < of_server {
            soon(asked.recv()).await.expect("it runs").answer(Reply::ok(""));
        }
        let answer = clients[1].next().await;
        assert_eq!(answer.error_text().is_some(), of_server < of_connection, "{answer:?}");
        running.into_iter().for_each(|asked| asked.answer(Reply::ok("")));
        for _ in 0..4 {
            assert_eq!(clients[0].next().await.error_text(), None);
        }
        until(|| server.stats().calls_running == 0).await;
        clients[0].say(request(6, "Wait", &[7; 120_000])).await;
        soon(asked.recv()).await.expect("it runs").answer(Reply::ok(""));
        assert_eq!(clients[0].next().await.error_text(), None);
    }
}

/// F22. A connection that holds its share of unpacked payloads waits for its own calls to end; others do not wait for
/// it, and it goes on when they have.
#[tokio::test(start_paused = true)]
async fn unpacked_payloads_are_bounded_and_others_do_not_wait() {
    let (handler, mut asked) = gate();
    let server = echoing()
        .handler("T", "Wait", handler)
        .limits(ServerLimits::new().unpacked_bytes_max(200 << 20).unpacked_bytes_per_connection_max(64 << 20))
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let large = gzip(&vec![0; 31 << 20]);
    let packed = |number, method, payload: &[u8]| {
        let header = Header::request(Seq::new(number), SerializeType::RAW).with_compress(CompressType::GZIP);
        Message::new(header, "T", method, &Metadata::new(), payload).frame().to_vec()
    };
    let mut client = Scripted::connect(listening.address()).await;
    client.say((0..5).flat_map(|n| packed(n, "Wait", &large)).collect::<Vec<u8>>()).await;
    let mut running = vec![soon(asked.recv()).await.expect("it runs"), soon(asked.recv()).await.expect("it runs")];
    let mut other = Scripted::connect(listening.address()).await;
    other.say(packed(9, "Echo", &gzip(&vec![1; 300 << 10]))).await;
    assert_eq!(other.next().await.error_text(), None);
    assert!(asked.try_recv().is_err(), "two payloads of 31 MiB are the share");
    for _ in 0..5 {
        running.remove(0).answer(Reply::ok(""));
        assert_eq!(client.next().await.error_text(), None);
        if let Ok(Some(asked)) = tokio::time::timeout(Duration::from_secs(60), asked.recv()).await {
            running.push(asked);
        }
    }
}

/// Y4. Of those who send huge packed requests, and whose handlers run long, nobody stands before the others: what is small
/// has room at once, what is its connection's own always, and what finds none is told so in time.
#[tokio::test(start_paused = true)]
async fn huge_packed_requests_hold_up_nobody_else() {
    let (handler, mut asked) = gate();
    let server = echoing()
        .handler("T", "Wait", handler)
        .limits(ServerLimits::new().unpacked_bytes_max(64 << 20).unpacked_bytes_per_connection_max(64 << 20))
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let (huge, large) = (gzip(&vec![0; 31 << 20]), gzip(&vec![0; 300 << 10]));
    let packed = |number, method, payload: &[u8]| {
        let header = Header::request(Seq::new(number), SerializeType::RAW).with_compress(CompressType::GZIP);
        Message::new(header, "T", method, &Metadata::new(), payload).frame().to_vec()
    };
    let mut greedy = Vec::new();
    for _ in 0..3 {
        let mut client = Scripted::connect_negotiated(listening.address()).await;
        client.say([packed(1, "Wait", &huge), packed(2, "Wait", &huge)].concat()).await;
        greedy.push(client);
    }
    let running = soon(asked.recv()).await.expect("one runs");
    for payload in [large, gzip(&vec![1; 60 << 10])] {
        let mut other = Scripted::connect(listening.address()).await;
        other.say(packed(9, "Echo", &payload)).await;
        assert_eq!(soon(other.next()).await.error_text(), None, "it waits for none of them");
    }
    let began = tokio::time::Instant::now();
    for client in greedy.iter_mut().skip(1) {
        for _ in 0..2 {
            let answer = soon(client.next()).await;
            assert_eq!(answer.metadata().get(keys::ERROR_CODE), Some(ErrorCode::Overloaded.name()), "{answer:?}");
        }
    }
    assert!(began.elapsed() <= Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(asked.try_recv().is_err(), "none of these ran");
    running.answer(Reply::ok(""));
    soon(greedy[0].next()).await;
}

/// F31. Arguments that are large, packed or not, are decoded apart from their connection: a heartbeat behind them is
/// answered first.
#[tokio::test(start_paused = true)]
async fn large_arguments_do_not_hold_up_their_connection() {
    let server = echoing().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    for (len, in_line) in [(200 << 10, true), (300 << 10, false)] {
        let mut client = Scripted::connect(listening.address()).await;
        client.say([request(1, "Echo", &vec![7; len]), ping(2)].concat()).await;
        assert_eq!(client.next().await.header().is_heartbeat(), !in_line, "{len}");
        client.next().await;
    }
}

/// F65, F67. Code of the application that panics where it is called, polled, or dropped costs its own message: the caller
/// is answered, the connection goes on, and nothing stays counted.
#[tokio::test(start_paused = true)]
async fn a_panic_anywhere_costs_one_message() {
    struct Grumbles;
    impl Drop for Grumbles {
        fn drop(&mut self) {
            panic!("it does not want to go");
        }
    }
    let server = echoing()
        .handler("T", "Drops", |_| {
            let held = Grumbles;
            async move {
                let _held = held;
                std::future::pending().await
            }
        })
        .handler("T", "AtOnce", |_| -> std::future::Ready<Reply> { panic!("before any await") })
        .handler("T", "Throws", |_| async { std::panic::panic_any(Grumbles) })
        .handler("T", "DoneThenDrops", |_| {
            let held = Grumbles;
            std::future::poll_fn(move |_| {
                let _held = &held;
                std::task::Poll::Ready(Reply::ok("done"))
            })
        })
        .on_connect(|_| std::panic::panic_any(Grumbles))
        .on_disconnect(|_, _| panic!("in a hook"))
        .on_shutdown(|| -> std::future::Ready<()> { panic!("before any await") })
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect_negotiated(listening.address()).await;
    client.say(request_with(1, "Drops", &Metadata::new().with(keys::SERVER_TIMEOUT, "200"), b"")).await;
    let answer = client.next().await;
    assert_eq!(answer.metadata().get(keys::ERROR_CODE), Some(ErrorCode::Timeout.name()));
    for method in ["AtOnce", "Throws", "DoneThenDrops"] {
        client.say(request(2, method, b"")).await;
        let answer = client.next().await;
        assert_eq!(answer.metadata().get(keys::ERROR_CODE), Some(ErrorCode::Internal.name()), "{method}");
    }
    client.say([request(4, "Drops", b""), request(5, "Echo", b"on")].concat()).await;
    client.hears(reply(5, "Echo", b"on")).await;
    until(|| server.stats().calls_running == 1).await;
    drop(client);
    connections(&server, 0).await;
    let again = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    assert_eq!(call(&again, "Echo", "on").await.expect("answered"), "on");
    soon(server.shutdown(Duration::from_secs(1))).await;
}

/// F65. An auth hook that panics before its first await is answered: at a Hello as "not now", which ends the connection,
/// and at a request as internal, and the connection stays.
#[tokio::test(start_paused = true)]
async fn an_auth_hook_that_panics_at_once_is_answered() {
    let calm = Arc::new(AtomicBool::new(false));
    let is_calm = Arc::clone(&calm);
    let server = echoing()
        .auth(move |_| {
            assert!(is_calm.load(Ordering::Relaxed), "before any await");
            std::future::ready(Ok::<_, String>(()))
        })
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    client.say(hello(0, Capabilities::ALL, &Metadata::new())).await;
    let answer = client.next().await;
    assert_eq!(answer.metadata().get(keys::ERROR_CODE), Some(ErrorCode::Overloaded.name()));
    client.hears_the_end().await;

    let mut client = Scripted::connect(listening.address()).await;
    client.say(request(1, "Echo", b"")).await;
    assert!(client.next().await.error_text().is_some_and(|text| text.starts_with("internal error, id ")));
    calm.store(true, Ordering::Relaxed);
    client.say(request(2, "Echo", b"on")).await;
    client.hears(reply(2, "Echo", b"on")).await;
}

/// A server whose auth hook never ends, and how many hooks there are.
fn hanging(builder: ServerBuilder) -> (Server, Arc<AtomicUsize>) {
    let alive = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&alive);
    let server = builder.auth(move |_| {
        let counted = Counted::new(&count);
        async move {
            let _counted = counted;
            std::future::pending::<Result<(), String>>().await
        }
    });
    (server.build(), alive)
}

/// Counts itself for as long as it is kept.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The hook of a client whose token was not accepted yet ends with its connection, be it asked for a Hello, for a
/// request, or with more behind either; as long as it runs it counts as a request.
#[tokio::test(start_paused = true)]
async fn the_hook_of_a_stranger_ends_with_it() {
    let (server, alive) = hanging(echoing());
    let listening = server.listen(&address()).await.expect("the name is free");
    let says_hello = hello(0, Capabilities::ALL, &Metadata::new().with(keys::AUTH, "x"));
    let asks = request(1, "Echo", &[7; 1000]);
    let many = asks.repeat(60);
    for (said, then) in [
        (says_hello.clone(), &[][..]),
        (asks.clone(), &[]),
        ([&says_hello[..], &asks].concat(), &[]),
        ([&asks[..], &asks].concat(), &[]),
        // More comes while the hook runs, and again.
        ([&says_hello[..], &asks].concat(), &[&asks[..1], &asks[1..]]),
        (says_hello, &[&asks, &many]),
        (asks.clone(), &[&asks, &asks]),
    ] {
        let mut client = Scripted::connect(listening.address()).await;
        client.say(said).await;
        until(|| server.stats().calls_running == 1 && alive.load(Ordering::SeqCst) == 1).await;
        for more in then {
            settle().await;
            client.say(more).await;
        }
        settle().await;
        drop(client);
        until(|| alive.load(Ordering::SeqCst) == 0).await;
        until(|| server.stats().calls_running == 0).await;
        connections(&server, 0).await;
    }
}

/// A Hello for which there is no place is refused for now, like the requests of others.
#[tokio::test(start_paused = true)]
async fn hellos_have_the_bounds_of_requests() {
    let (server, alive) = hanging(echoing().limits(ServerLimits::new().calls_max(1)));
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut first = Vec::new();
    // One as a call, and one in the place that only Hellos have.
    for number in 1..3 {
        let mut client = Scripted::connect(listening.address()).await;
        client.say(hello(0, Capabilities::ALL, &Metadata::new())).await;
        until(|| alive.load(Ordering::SeqCst) == number).await;
        first.push(client);
    }
    let mut second = Scripted::connect(listening.address()).await;
    second.say(hello(0, Capabilities::ALL, &Metadata::new())).await;
    let answer = second.next().await.metadata();
    assert_eq!(answer.get(keys::ERROR_CODE), Some(ErrorCode::Overloaded.name()));
    assert_eq!(answer.get(keys::RETRY_AFTER), Some("1000"));
    second.hears_the_end().await;
    assert_eq!(alive.load(Ordering::SeqCst), 2);
}

/// A Hello with a large payload is none: its connection ends, and no hook is asked.
#[tokio::test(start_paused = true)]
async fn a_hello_with_a_large_payload_ends_its_connection() {
    let (server, alive) = hanging(echoing());
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut said = Metadata::new();
    bothways_proto::Hello { version: bothways_proto::VERSION, capabilities: Capabilities::ALL }.put(&mut said);
    let mut client = Scripted::connect(listening.address()).await;
    client.say(Message::ping(Seq::new(0), &said, &[7; 5000]).frame()).await;
    assert!(client.next().await.error_text().is_some_and(|text| text.starts_with("a Hello: ")));
    client.hears_the_end().await;
    assert_eq!(alive.load(Ordering::SeqCst), 0);
}

/// A client whose Hello is being checked when the server stops, at once or client by client, is told to come again, and
/// its hook ends; so is one that says Hello after that.
#[tokio::test(start_paused = true)]
async fn who_is_being_let_in_is_told_that_the_server_stops() {
    for drains in [false, true] {
        let (server, alive) = hanging(echoing());
        let listening = server.listen(&address()).await.expect("the name is free");
        let mut client = Scripted::connect(listening.address()).await;
        client.say(hello(0, Capabilities::ALL, &Metadata::new())).await;
        until(|| alive.load(Ordering::SeqCst) == 1).await;
        let began = Instant::now();
        let stopping = tokio::spawn(async move {
            match drains {
                true => server.drain(Duration::from_secs(100), 1).await,
                false => server.shutdown(Duration::from_secs(100)).await,
            }
        });
        let answer = client.next().await.metadata();
        assert_eq!(answer.get(keys::ERROR_CODE), Some(ErrorCode::Overloaded.name()), "{drains}");
        assert!(answer.get(keys::RETRY_AFTER).is_some(), "{drains}");
        client.hears_the_end().await;
        let report = soon(stopping).await.expect("no panic");
        assert_eq!((report.clients_told, report.calls_unfinished), (1, 0), "{drains}");
        assert!(began.elapsed() < Duration::from_secs(10), "{drains}: nobody waits for the hook");
        assert_eq!(alive.load(Ordering::SeqCst), 0, "{drains}");
    }
}

/// The hook that decides on a subscription ends with the client that asked for it.
#[tokio::test(start_paused = true)]
async fn the_hook_of_a_topic_ends_with_its_client() {
    let alive = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&alive);
    let topic = bothways::session::TopicOptions::new().authorize(move |_| {
        let counted = Counted::new(&count);
        async move {
            let _counted = counted;
            std::future::pending::<Result<(), String>>().await
        }
    });
    let server = echoing().topic("news", topic).expect("a name").build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let client = Client::connect(listening.address(), ClientOptions::new()).await.expect("it listens");
    let asking = tokio::spawn(async move { client.subscribe("news").await.map(drop) });
    until(|| alive.load(Ordering::SeqCst) == 1).await;
    server.connections()[0].close();
    until(|| alive.load(Ordering::SeqCst) == 0).await;
    asking.abort();
}

/// A payload of 100 KiB whose owner does this when it is dropped.
fn payload_that_looks(look: impl Fn() + Send + Sync + 'static) -> bytes::Bytes {
    struct Looks<F: Fn()>(Vec<u8>, F);
    impl<F: Fn()> AsRef<[u8]> for Looks<F> {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    impl<F: Fn()> Drop for Looks<F> {
        fn drop(&mut self) {
            self.1();
        }
    }
    bytes::Bytes::from_owner(Looks(vec![7; 100 << 10], look))
}

/// Payloads of an application that are dropped behind a full socket, pushes and calls that are given up, are dropped
/// when the lock of their connection is free: they may look at it.
#[tokio::test(start_paused = true)]
async fn a_payload_that_is_dropped_may_look_at_its_connection() {
    let server = echoing()
        .outgoing(
            OutgoingOptions::new()
                .push_queue(QueueBound::messages(2).bytes(64 << 20))
                .overflow(bothways::Overflow::DropOldest),
        )
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let client = Scripted::connect_negotiated(listening.address()).await;
    let connection = connections(&server, 1).await.remove(0);
    let looked = Arc::<AtomicUsize>::default();
    let looks = || {
        let (connection, looked) = (connection.clone(), Arc::clone(&looked));
        payload_that_looks(move || {
            connection.stats();
            looked.fetch_add(1, Ordering::SeqCst);
        })
    };
    for _ in 0..40 {
        connection.send_message("T", "News", &Metadata::new(), looks()).expect("the oldest is dropped");
    }
    let before = looked.load(Ordering::SeqCst);
    assert!(0 < before, "some were dropped");
    // Calls that are given up: the first may be on its way, the others have not left.
    let calls = async {
        tokio::join!(call(&connection, "A", looks()), call(&connection, "B", looks()), call(&connection, "C", looks()))
    };
    assert!(tokio::time::timeout(Duration::from_millis(10), calls).await.is_err());
    assert!(before < looked.load(Ordering::SeqCst), "their payloads were dropped");
    drop(client);
}

/// What a client sends while its token is checked is there when it was accepted, in order, however it came.
#[tokio::test(start_paused = true)]
async fn what_comes_while_a_token_is_checked_is_kept() {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let of_hook = Arc::clone(&gate);
    let server = echoing().auth(move |_| {
        let gate = Arc::clone(&of_hook);
        async move {
            gate.acquire().await.expect("open").forget();
            Ok::<_, String>(())
        }
    });
    let server = server.build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    let all: Vec<Vec<u8>> = (0..200).map(|number| request(number, "Echo", &[number as u8; 900])).collect();
    client.say(&all[0]).await;
    settle().await;
    let bytes = all[1..].concat();
    let saying = async {
        for part in bytes.chunks(7001) {
            client.say(part).await;
            settle().await;
        }
        for number in 0..200_u64 {
            client.hears(reply(number, "Echo", &[number as u8; 900])).await;
        }
    };
    let letting_in = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        gate.add_permits(1000);
    };
    soon(async { tokio::join!(saying, letting_in) }).await;
}

/// A broadcast drops what it pushes out, and writes, under no lock: the payload may look at the whole server.
#[tokio::test(start_paused = true)]
async fn a_payload_that_a_broadcast_pushes_out_may_look_at_the_server() {
    let server = echoing()
        .outgoing(
            OutgoingOptions::new()
                .push_queue(QueueBound::messages(1).bytes(64 << 20))
                .overflow(bothways::Overflow::DropOldest),
        )
        .build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let _client = Scripted::connect_negotiated(listening.address()).await;
    let connection = connections(&server, 1).await.remove(0);
    let looked = Arc::<AtomicUsize>::default();
    for _ in 0..40 {
        let (looking, looked) = (server.clone(), Arc::clone(&looked));
        let looks = payload_that_looks(move || {
            looking.stats();
            looked.fetch_add(looking.connections().len(), Ordering::SeqCst);
        });
        connection.send_message("T", "News", &Metadata::new(), looks).expect("the oldest is dropped");
        let (of_thread, done) = (server.clone(), std::sync::mpsc::channel());
        std::thread::spawn(move || {
            bothways::raw::broadcast(&of_thread, "T", "News", &Metadata::new(), b"all").expect("small");
            done.0.send(())
        });
        done.1.recv_timeout(Duration::from_secs(20)).expect("it is not blocked");
    }
    assert!(0 < looked.load(Ordering::SeqCst), "some were dropped");
}
