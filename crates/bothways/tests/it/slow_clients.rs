//! Clients that do not read: what waits for them, what becomes of it, and when they are sent away.

use std::time::Duration;

use bothways::{
    Class, Client, ClientOptions, CloseReason, Metadata, Push, QueueBound, Receipt, Server, ServerBuilder, Session,
    SessionOptions, Stage, Target, Timeouts,
    session::{DropReason, SessionId},
    transport::tcp::TcpSocket,
};
use bothways_proto::{Capabilities, Message, keys};

use crate::{
    scripted::{Scripted, hello, oneway, request},
    support::{address, call, echoing, settle, soon, until},
};

/// A thousand bytes that begin with a number.
fn payload(number: usize) -> Vec<u8> {
    let mut payload = vec![0; 1000];
    payload[..8].copy_from_slice(&(number as u64).to_be_bytes());
    payload
}

fn number(message: &Message) -> usize {
    u64::from_be_bytes(*message.wire_payload().first_chunk().expect("eight bytes")) as usize
}

fn push(session: &Session, class: Class, number: usize) -> Receipt {
    session.push(&Push::new("T", "News", payload(number)).class(class)).expect("small")
}

/// A server and the session of a client that has said this.
async fn server_and_client(builder: ServerBuilder, first: Vec<u8>) -> (Server, impl Sized, String, Scripted, Session) {
    let server = builder.build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let place = listening.address().to_owned();
    let mut client = Scripted::connect(&place).await;
    client.say(first).await;
    client.next().await;
    let session = server.sessions(&Target::everyone()).expect("no topic")[0].clone();
    (server, listening, place, client, session)
}

/// Pushes until so many wait in the session that nothing goes on; answers all receipts.
async fn fill(session: &Session, class: &Class) -> Vec<Receipt> {
    let mut receipts = Vec::new();
    while receipts.iter().map(|receipt: &Receipt| receipt.outcomes().dropped()).sum::<usize>() < 50 {
        receipts.push(push(session, class.clone(), receipts.len()));
        settle().await;
    }
    receipts
}

fn at(receipts: &[Receipt], stage: Stage) -> Vec<usize> {
    (0..receipts.len()).filter(|number| receipts[*number].outcomes().at(stage) == 1).collect()
}

/// To a plain client the newest is refused, and what was taken arrives in order. That something was refused, it
/// cannot be told; this must not keep the server busy.
#[tokio::test(start_paused = true)]
async fn a_plain_client_loses_the_newest() {
    let builder = Server::builder().sessions(SessionOptions::new().log(QueueBound::messages(10).bytes(1 << 20)));
    let (_server, _listening, _, mut client, session) = server_and_client(builder, request(0, "None", b"")).await;
    let receipts = fill(&session, &Class::Tracked).await;
    let dropped = at(&receipts, Stage::Dropped(DropReason::Full));
    let taken: Vec<usize> = (0..receipts.len()).filter(|number| !dropped.contains(number)).collect();
    assert_eq!(dropped, (taken.len()..receipts.len()).collect::<Vec<_>>(), "the newest");
    for expected in &taken {
        assert_eq!(number(&client.next().await), *expected);
    }
    settle().await;
    assert_eq!(at(&receipts, Stage::PlainWritten), taken);
    push(&session, Class::Tracked, 7777);
    assert_eq!(number(&client.next().await), 7777, "there is room again");
}

/// Of pushes of class `Fire` the oldest is dropped: what arrives ends with the newest.
#[tokio::test(start_paused = true)]
async fn a_negotiated_client_loses_the_oldest_fires() {
    let builder = Server::builder().sessions(SessionOptions::new().fire_queue(QueueBound::messages(10).bytes(1 << 20)));
    let first = hello(0, Capabilities::ALL, &Metadata::new());
    let (_server, _listening, _, mut client, session) = server_and_client(builder, first).await;
    let receipts = fill(&session, &Class::Fire).await;
    assert_eq!(session.waiting().0, 10);
    let dropped = at(&receipts, Stage::Dropped(DropReason::Full));
    for expected in (0..receipts.len()).filter(|number| !dropped.contains(number)) {
        let mut message = client.next().await;
        if message.service_method() == keys::GAP {
            assert_eq!(message.metadata().get(keys::GAP_MISSED), Some("50"));
            message = client.next().await;
        }
        assert_eq!(number(&message), expected);
    }
    settle().await;
    assert_eq!(at(&receipts, Stage::PlainWritten).last(), Some(&(receipts.len() - 1)));
}

/// While a client has confirmed too little for more, the newest values of keys wait: they must not keep the server
/// busy, and they go as soon as it confirms.
#[tokio::test(start_paused = true)]
async fn newest_values_wait_for_a_client_that_is_behind() {
    let builder = Server::builder().sessions(SessionOptions::new().log(QueueBound::messages(3).bytes(1 << 20)));
    let first = hello(0, Capabilities::ALL, &Metadata::new());
    let (_server, _listening, _, mut client, session) = server_and_client(builder, first).await;
    for n in 0..3 {
        push(&session, Class::Tracked, n);
        client.next().await;
    }
    let old = push(&session, Class::Latest("EUR".to_owned()), 3);
    let new = push(&session, Class::Latest("EUR".to_owned()), 4);
    client.hears_nothing().await;
    assert_eq!((old.outcomes().at(Stage::Superseded), new.outcomes().at(Stage::Queued)), (1, 1));
    client.say(ack("3,3")).await;
    assert_eq!(number(&client.next().await), 4);
}

/// Values of keys are bounded in bytes, those of the keys among them, in both of their forms; a value that replaces one takes its place.
#[tokio::test(start_paused = true)]
async fn newest_values_are_bounded_in_bytes() {
    let builder = Server::builder().sessions(
        SessionOptions::new()
            .log(QueueBound::messages(1).bytes(1 << 20))
            .latest_queue(QueueBound::messages(100).bytes(10_000)),
    );
    let first = hello(0, Capabilities::ALL, &Metadata::new());
    let (_server, _listening, _, mut client, session) = server_and_client(builder, first).await;
    push(&session, Class::Tracked, 0);
    client.next().await;
    let outcomes: Vec<_> =
        (0..6).map(|n| push(&session, Class::Latest(format!("key {n}")), n).outcomes().dropped()).collect();
    assert_eq!(outcomes, [0, 0, 0, 0, 1, 1]);
    assert_eq!(push(&session, Class::Latest("key 0".to_owned()), 7).outcomes().dropped(), 0);
    let long = push(&session, Class::Latest("k".repeat(5000)), 8);
    assert_eq!(long.outcomes().at(Stage::Dropped(DropReason::Full)), 1, "keys count");
    let larger = Push::new("T", "News", vec![0; 3000]).class(Class::Latest("key 0".to_owned()));
    assert_eq!(session.push(&larger).expect("small").outcomes().dropped(), 1, "a larger value finds no room");
    client.say(ack("1,1")).await;
    for missed in ["1", "2", "3", "4"] {
        assert_eq!(client.next().await.metadata().get(keys::GAP_MISSED), Some(missed), "each is told at once");
    }
    for (offset, expected) in [(2, 7), (3, 1), (4, 2)] {
        assert_eq!(number(&client.next().await), expected);
        client.say(ack(&format!("{offset},{offset}"))).await;
    }
}

fn ack(offsets: &str) -> Vec<u8> {
    let header = bothways_proto::Header::oneway(bothways_proto::Seq::new(9), bothways::SerializeType::RAW);
    let metadata = Metadata::new().with(keys::ACK_OFFSETS, offsets);
    Message::new(header, keys::CONTROL_PATH, keys::ACK, &metadata, &[]).frame().to_vec()
}

/// A client that takes no byte for 10 s loses its connection and nothing else: when it comes back, everything that it
/// has not handled is there, once, in order, before anything new.
#[tokio::test(start_paused = true)]
async fn a_frozen_reader_is_disconnected_and_resumes() {
    let server = Server::builder().build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut frozen = Scripted::connect(listening.address()).await;
    frozen.say(hello(0, Capabilities::ALL, &Metadata::new())).await;
    let welcome = frozen.next().await.metadata();
    let session = server.sessions(&Target::everyone()).expect("no topic")[0].clone();
    let connection = session.connection().expect("it is up");
    let receipts: Vec<_> = (0..300).map(|n| push(&session, Class::Tracked, n)).collect();
    let began = tokio::time::Instant::now();
    let reason = soon(connection.closed()).await;
    assert!(matches!(reason, CloseReason::SlowPeer(_)), "{reason}");
    assert!((10..=12).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    until(|| session.connection().is_none()).await;
    assert_eq!((session.is_resumable(), session.dropped(), session.waiting().0), (true, 0, 300));
    let told = session.explain().to_string();
    assert!(told.contains("reads too slowly") && told.contains("the session waits for its client"), "{told}");

    let back = Metadata::new()
        .with(keys::SESSION_ID, welcome.get(keys::SESSION_ID).expect("a session"))
        .with(keys::SESSION_KEY, welcome.get(keys::SESSION_KEY).expect("its secret"))
        .with(keys::SESSION_OFFSET, "0");
    let mut client = Scripted::connect(listening.address()).await;
    client.say(hello(0, Capabilities::ALL, &back)).await;
    assert!(client.next().await.metadata().get(keys::SESSION_RESUMED).is_some());
    push(&session, Class::Tracked, 300);
    for expected in 0..=300 {
        let message = client.next().await;
        assert_eq!((number(&message), message.header().seq().unmarked()), (expected, expected as u64 + 1));
    }
    client.say(ack("301,301")).await;
    until(|| session.waiting().0 == 0).await;
    assert_eq!(at(&receipts, Stage::Handled).len(), 300);
}

/// A plain client that takes no byte for 10 s is closed, and its session ends with it.
#[tokio::test(start_paused = true)]
async fn a_frozen_plain_client_is_closed() {
    let (server, _listening, _, _client, session) = server_and_client(Server::builder(), request(0, "None", b"")).await;
    let receipts: Vec<_> = (0..300).map(|n| push(&session, Class::Tracked, n)).collect();
    let reason = soon(session.connection().expect("it is up").closed()).await;
    assert!(matches!(reason, CloseReason::SlowPeer(_)), "{reason}");
    until(|| server.stats().sessions == 0).await;
    let dropped: usize = receipts.iter().map(|receipt| receipt.outcomes().dropped()).sum();
    assert!(200 < dropped, "what the socket did not take: {dropped}");
}

/// A push to a session whose connection is about to be closed waits for the next one, and nothing runs in circles.
#[tokio::test(start_paused = true)]
async fn a_push_during_a_close_waits() {
    let first = hello(0, Capabilities::ALL, &Metadata::new());
    let (_server, _listening, _, mut client, session) = server_and_client(Server::builder(), first).await;
    session.connection().expect("it is up").close();
    let receipt = push(&session, Class::Tracked, 1);
    assert_eq!(receipt.outcomes().at(Stage::Queued), 1);
    client.hears_the_end().await;
    client.end().await;
    until(|| session.connection().is_none()).await;
    assert_eq!(receipt.outcomes().at(Stage::Queued), 1);
}

/// Who may wait gets its place as soon as the client has handled something, and is refused when the time is over.
#[tokio::test(start_paused = true)]
async fn a_push_may_wait_for_room() {
    let builder = Server::builder().sessions(SessionOptions::new().log(QueueBound::messages(1).bytes(1 << 20)));
    let first = hello(0, Capabilities::ALL, &Metadata::new());
    let (_server, _listening, _, mut client, session) = server_and_client(builder, first).await;
    push(&session, Class::Tracked, 0);
    client.next().await;
    let late = Push::new("T", "News", payload(1));
    let began = tokio::time::Instant::now();
    let refused = session.push_within(Duration::from_secs(2), &late).await.expect("small");
    assert_eq!(refused.outcomes().at(Stage::Dropped(DropReason::Full)), 1);
    assert_eq!(began.elapsed().as_secs(), 2);
    let (receipt, ()) = tokio::join!(session.push_within(Duration::from_secs(60), &late), async {
        settle().await;
        client.say(ack("1,1")).await;
        // First the notice of the one that was refused.
        assert_eq!(client.next().await.service_method(), keys::GAP);
        assert_eq!(number(&client.next().await), 1);
    });
    assert_eq!(receipt.expect("small").outcomes().dropped(), 0);
    client.say(oneway(1, "Nothing", b"")).await;
}

/// What waited for the first request of a plain client leaves its log with that, sent or expired: who waits for room
/// gets it then.
#[tokio::test(start_paused = true)]
async fn a_push_may_wait_for_the_room_of_a_plain_client() {
    for time_to_live in [Duration::MAX, Duration::from_secs(1)] {
        let server = crate::support::echoing()
            .sessions(SessionOptions::new().log(QueueBound::messages(1).bytes(1 << 20)))
            .build();
        let listening = server.listen(&crate::support::address()).await.expect("the name is free");
        let options = bothways::ClientOptions::new().negotiate(false);
        let (client, _messages) =
            bothways::Client::bidirectional(listening.address(), options).await.expect("it listens");
        let connection = crate::support::connections(&server, 1).await.remove(0);
        let session = server.sessions(&Target::connection(connection.id())).expect("no topic").remove(0);
        let first = Push::new("T", "News", payload(0)).time_to_live(time_to_live);
        session.push(&first).expect("small");

        let (late, began) = (Push::new("T", "News", payload(1)), tokio::time::Instant::now());
        let (receipt, answer) = tokio::join!(session.push_within(Duration::from_secs(60), &late), async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            crate::support::call(&client, "Echo", "x").await
        });
        answer.expect("it is there");
        assert_eq!(receipt.expect("small").outcomes().dropped(), 0);
        assert_eq!(began.elapsed().as_secs(), 2, "it was woken by the request");
    }
}

/// What one device of a user has not handled takes room from the others, and from nobody else; who waits for room at
/// one device gets it when another handles.
#[tokio::test(start_paused = true)]
async fn the_devices_of_a_user_are_bounded_together() {
    let server = Server::builder().sessions(SessionOptions::new().user_log_bytes_max(2500)).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut devices = Vec::new();
    for user in ["ann", "ann", "bob"] {
        let (client, messages) =
            Client::bidirectional(listening.address(), ClientOptions::new()).await.expect("it listens");
        settle().await;
        let connection = server.connections().pop().expect("it is connected");
        let session = server.sessions(&Target::connection(connection.id())).expect("no topic").remove(0);
        session.bind_user(user);
        devices.push((client, messages, session));
    }
    let [phone, desk, bobs] = [0, 1, 2].map(|at: usize| devices[at].2.clone());
    let on_phone = [0, 1].map(|number| push(&phone, Class::Tracked, number));
    for receipt in &on_phone {
        assert_eq!(receipt.received().await.at(Stage::Received), 1);
    }
    let refused = push(&desk, Class::Tracked, 2);
    assert_eq!(refused.outcomes().at(Stage::Dropped(DropReason::Full)), 1);
    assert_eq!(push(&bobs, Class::Tracked, 3).outcomes().dropped(), 0, "another user");

    let late = Push::new("T", "News", payload(4));
    let began = tokio::time::Instant::now();
    let (receipt, ()) = tokio::join!(desk.push_within(Duration::from_secs(60), &late), async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        drop(devices[0].1.next().await.expect("it came"));
    });
    let receipt = receipt.expect("small");
    assert_eq!(receipt.received().await.at(Stage::Received), 1);
    assert_eq!(began.elapsed().as_secs(), 2);
    // A session that ends leaves its room to the others.
    assert_eq!(push(&desk, Class::Tracked, 5).outcomes().dropped(), 1);
    phone.end("lost in a taxi");
    assert_eq!(push(&desk, Class::Tracked, 6).outcomes().dropped(), 0);
}

/// A user is bounded with the first device as with more, and what the first one holds counts when a second one comes.
#[tokio::test(start_paused = true)]
async fn the_only_device_of_a_user_is_bounded_and_shares_with_the_next() {
    let server = Server::builder().sessions(SessionOptions::new().user_log_bytes_max(2500)).build();
    let listening = server.listen(&address()).await.expect("the name is free");
    let mut devices = Vec::new();
    for _ in 0..2 {
        let (client, messages) =
            Client::bidirectional(listening.address(), ClientOptions::new()).await.expect("it listens");
        settle().await;
        let connection = server.connections().pop().expect("it is connected");
        let session = server.sessions(&Target::connection(connection.id())).expect("no topic").remove(0);
        devices.push((client, messages, session));
    }
    let [phone, desk] = [0, 1].map(|at: usize| devices[at].2.clone());
    let nobodys = [0, 1, 2].map(|number| push(&phone, Class::Tracked, number));
    assert!(nobodys.iter().all(|receipt| receipt.outcomes().dropped() == 0), "no user, no bound but that of the log");
    for _ in &nobodys {
        drop(devices[0].1.next().await.expect("it came"));
    }
    for receipt in &nobodys {
        receipt.handled().await;
    }
    phone.bind_user("ann");
    let held = [3, 4, 5].map(|number| push(&phone, Class::Tracked, number).outcomes().dropped());
    assert_eq!(held, [0, 0, 1]);
    desk.bind_user("ann");
    assert_eq!(push(&desk, Class::Tracked, 7).outcomes().dropped(), 1, "the phone holds it");
    drop(devices[0].1.next().await.expect("it came"));
    until(|| phone.waiting().0 == 1).await;
    assert_eq!(push(&desk, Class::Tracked, 8).outcomes().dropped(), 0);
    assert_eq!(push(&phone, Class::Tracked, 9).outcomes().dropped(), 1, "the desk holds it");
}

/// A client over TCP whose kernel takes little for it.
async fn narrow(address: &str) -> Scripted {
    let place = address.strip_prefix("tcp@").expect("TCP").parse().expect("an address");
    let socket = tokio::net::TcpSocket::new_v4().expect("the system has sockets");
    socket.set_recv_buffer_size(4 << 10).expect("it may be small");
    let stream = socket.connect(place).await.expect("it listens");
    Scripted::over(TcpSocket::new(stream).expect("it is connected"))
}

/// Over real sockets: ninety clients that read, half of them plain, get all of a broadcast in order while ten do not read
/// a byte of it. What those are owed stays within its bounds, which receipts say of each push; they lose their
/// connections, and those that can come back get what their log held, and are told what it did not hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_in_a_hundred_that_do_not_read_hurt_nobody_else() {
    const PUSHES: usize = 1000;
    const LOG: usize = 200;
    /// Of each kind.
    const READERS: usize = 45;
    const STALLED: usize = 5;
    /// A frame around its payload.
    const FRAME_BYTES: usize = 1000 + 64;
    let server = echoing()
        .sessions(SessionOptions::new().log(QueueBound::messages(LOG).bytes(1 << 20)))
        .timeouts(Timeouts::new().write(Duration::from_secs(3)))
        .build();
    let listening = server.listen("tcp@127.0.0.1:0").await.expect("a port is free");
    let mut reading = Vec::new();
    for reader in 0..2 * READERS {
        let options = ClientOptions::new()
            .negotiate(reader % 2 == 0)
            .message_queue(QueueBound::messages(2 * PUSHES).bytes(16 << 20));
        let (client, mut messages) = Client::bidirectional(listening.address(), options).await.expect("it listens");
        call(&client, "Echo", "here").await.expect("answered");
        reading.push(tokio::spawn(async move {
            for expected in 0..PUSHES {
                let message = messages.next().await.expect("the client is open");
                let payload = message.payload().expect("not packed");
                assert_eq!(u64::from_be_bytes(*payload.first_chunk().expect("eight bytes")), expected as u64);
                assert_eq!(message.dropped_before(), 0);
            }
            (client, messages)
        }));
    }
    let readers = server.sessions(&Target::everyone()).expect("no topic");
    assert_eq!(readers.len(), 2 * READERS);
    let (mut welcomes, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..STALLED {
        let mut client = narrow(listening.address()).await;
        client.say(hello(0, Capabilities::ALL, &Metadata::new())).await;
        welcomes.push((client.next().await.metadata(), client));
        let mut client = narrow(listening.address()).await;
        client.say(request(1, "Echo", b"here")).await;
        client.next().await;
        plain.push(client);
    }
    let everybody = server.sessions(&Target::everyone()).expect("no topic");
    assert_eq!(everybody.len(), 2 * READERS + 2 * STALLED);
    let frozen = everybody.iter().filter(|session| !readers.contains(session));
    let frozen: Vec<_> = frozen.map(|session| session.connection().expect("it is up")).collect();

    let mut receipts = Vec::new();
    for n in 0..PUSHES {
        receipts.push(server.push(&Target::everyone(), &Push::new("T", "News", payload(n))).expect("small"));
        for session in &everybody {
            let (messages, bytes) = session.waiting();
            assert!(messages <= LOG && bytes <= LOG * FRAME_BYTES, "{messages} and {bytes} wait");
        }
        if n % 50 == 49 {
            // As an application does that wants those who read to miss nothing.
            until(|| readers.iter().all(|session| session.waiting().0 == 0)).await;
        }
    }
    let mut heard = Vec::new();
    for reader in reading {
        heard.push(reader.await.expect("all came, in order"));
    }

    // A plain client's session is over; the others' wait for them.
    let ids: Vec<SessionId> = welcomes
        .iter()
        .map(|(said, _)| said.get(keys::SESSION_ID).expect("it has one").parse().expect("a number"))
        .collect();
    let stalled: Vec<Session> = ids.iter().map(|id| server.session(*id).expect("it waits")).collect();
    until(|| stalled.iter().all(|session| session.connection().is_none())).await;
    until(|| server.stats().sessions == 2 * READERS + STALLED).await;
    for connection in frozen {
        let reason = soon(connection.closed()).await;
        assert!(matches!(reason, CloseReason::SlowPeer(_)), "{reason}");
    }
    for session in &stalled {
        assert_eq!((session.waiting().0, session.dropped()), (LOG, (PUSHES - LOG) as u64));
    }
    for (n, receipt) in receipts.iter().enumerate() {
        let outcomes = receipt.outcomes();
        let written = outcomes.at(Stage::PlainWritten);
        assert_eq!(outcomes.at(Stage::Handled), READERS, "push {n}: {outcomes:?}");
        assert!((READERS..=READERS + STALLED).contains(&written), "push {n}: {outcomes:?}");
        let refused = if n < LOG { 0 } else { STALLED };
        assert!(refused <= outcomes.at(Stage::Dropped(DropReason::Full)), "push {n}: {outcomes:?}");
        // What the kernel took of a frozen socket is known; the rest of what waited ended with its session.
        assert_eq!(outcomes.open(), STALLED - refused, "push {n}: {outcomes:?}");
    }
    assert_eq!(receipts[PUSHES - 1].outcomes().at(Stage::PlainWritten), READERS, "the last found no room");

    for ((welcome, _frozen), session) in welcomes.into_iter().zip(&stalled) {
        let back = Metadata::new()
            .with(keys::SESSION_ID, welcome.get(keys::SESSION_ID).expect("a session"))
            .with(keys::SESSION_KEY, welcome.get(keys::SESSION_KEY).expect("its secret"))
            .with(keys::SESSION_OFFSET, "0");
        let mut client = narrow(listening.address()).await;
        client.say(hello(0, Capabilities::ALL, &back)).await;
        assert!(client.next().await.metadata().get(keys::SESSION_RESUMED).is_some());
        // What was sent before comes first; the notice is the first thing that is new.
        let (mut expected, mut told) = (0, None);
        while expected < LOG || told.is_none() {
            let message = client.next().await;
            if message.service_method() == keys::GAP {
                assert!(told.replace(message.metadata()).is_none(), "it is told once");
                continue;
            }
            assert_eq!((number(&message), message.header().seq().unmarked()), (expected, expected as u64 + 1));
            expected += 1;
        }
        let missed = told.as_ref().and_then(|told| told.get(keys::GAP_MISSED));
        assert_eq!(missed, Some(&*(PUSHES - LOG).to_string()));
        client.say(ack(&format!("{LOG},{LOG}"))).await;
        until(|| session.waiting().0 == 0).await;
    }
    for (n, receipt) in receipts.iter().enumerate() {
        let came_back = if n < LOG { STALLED } else { 0 };
        let outcomes = receipt.outcomes();
        assert_eq!((outcomes.at(Stage::Handled), outcomes.open()), (READERS + came_back, 0), "push {n}: {outcomes:?}");
    }
    for (_client, mut messages) in heard {
        assert!(messages.try_next().is_none(), "nothing comes twice");
    }
}

/// What waits for a client that is away and is over by now gives its room up: to the next push, and to one that waits.
#[tokio::test(start_paused = true)]
async fn what_has_expired_takes_no_room() {
    let first = hello(0, Capabilities::ALL, &Metadata::new());
    let (_server, _listening, _, client, session) = server_and_client(
        Server::builder().sessions(
            SessionOptions::new()
                .log(QueueBound::messages(2).bytes(1 << 20))
                .latest_queue(QueueBound::messages(2).bytes(1 << 20)),
        ),
        first,
    )
    .await;
    client.reset();
    until(|| session.connection().is_none()).await;
    let second = Duration::from_secs(1);
    let brief = |class: Class| Push::new("T", "News", payload(0)).class(class).time_to_live(second);
    for class in [Class::Tracked, Class::Latest("a".to_owned())] {
        let other = || if class == Class::Tracked { Class::Tracked } else { Class::Latest("b".to_owned()) };
        let third = || if class == Class::Tracked { Class::Tracked } else { Class::Latest("c".to_owned()) };
        let over = [class.clone(), other()].map(|class| session.push(&brief(class)).expect("small"));
        assert_eq!(session.push(&brief(third())).expect("small").outcomes().at(Stage::Dropped(DropReason::Full)), 1);
        tokio::time::sleep(second).await;
        let next = session.push(&brief(third())).expect("small");
        assert_eq!(next.outcomes().at(Stage::Queued), 1, "{class:?}");
        assert!(over.iter().all(|over| over.outcomes().at(Stage::Expired) == 1), "{class:?}");
        tokio::time::sleep(second).await;
    }
    let _full = [(); 2].map(|()| session.push(&brief(Class::Tracked)).expect("small"));
    let began = tokio::time::Instant::now();
    let waited = session.push_within(60 * second, &Push::new("T", "News", payload(1))).await.expect("small");
    assert_eq!((waited.outcomes().at(Stage::Queued), began.elapsed()), (1, second));
}

/// What a plain client has whole when its connection is lost was written, also of a batch that was not taken whole, and the
/// rest was not.
#[tokio::test(start_paused = true)]
async fn receipts_of_a_lost_plain_client_say_what_it_has() {
    let builder = Server::builder().timeouts(Timeouts::new().write(Duration::from_secs(1)));
    let (server, _listening, _, mut client, session) = server_and_client(builder, request(0, "None", b"")).await;
    let receipts: Vec<_> = (0..300).map(|number| push(&session, Class::Tracked, number)).collect();
    until(|| server.connections().is_empty()).await;
    let has: Vec<usize> = client.rest().await.iter().map(number).collect();
    assert!(!has.is_empty() && has.len() < receipts.len(), "{}", has.len());
    assert_eq!(at(&receipts, Stage::PlainWritten), has);
    assert!(receipts[has.len()..].iter().all(|receipt| receipt.outcomes().dropped() == 1));
}
