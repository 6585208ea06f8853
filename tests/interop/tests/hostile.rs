//! What a server is sent that means it no good: the sender gets a clear end, others notice nothing, and memory
//! stays within a stated bound. No Go needed.
//!
//! A bystander calls all the time. It must not see an error, nor another connection than its first.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bothways::{Client, ClientOptions, CloseReason, ConnectionEvent, Metadata, Reconnect, SerializeType};
use bothways_interop::{
    LONG,
    contract::{self, Args, Reply},
    peers::{ServerProcess, Stats, rust_program},
    process::Process,
    until,
    wire::RawConnection,
    within,
};
use bothways_proto::{CompressType, Deframer, Header, Limits, Message, Role, Seq};
use tokio::{io::AsyncWriteExt, net::TcpListener, process::Command};

#[path = "../../../crates/proto/tests/data/malformed.rs"]
mod malformed;

use malformed::{Case, Expect};

const MIB: u64 = 1024;

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A client that does nothing wrong, and calls without a pause.
struct Bystander {
    client: Client,
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
    longest_millis: Arc<AtomicU64>,
    calling: tokio::task::JoinHandle<()>,
}

impl Bystander {
    async fn start(address: &str) -> Self {
        let options = ClientOptions::new().reconnect(Reconnect::Never).timeout(LONG);
        let client = Client::connect(address, options).await.expect("the server listens");
        let (stop, calls) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let longest_millis = Arc::<AtomicU64>::default();
        let calling = {
            let (client, stop) = (client.clone(), Arc::clone(&stop));
            let (calls, longest_millis) = (Arc::clone(&calls), Arc::clone(&longest_millis));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    let reply: Reply = client.call("Arith", "Mul", &Args { a: 6, b: 7 }).await.expect("it is served");
                    assert_eq!(reply.c, 42);
                    calls.fetch_add(1, Ordering::Relaxed);
                    longest_millis.fetch_max(began.elapsed().as_millis() as u64, Ordering::Relaxed);
                    tokio::time::sleep(millis(1)).await;
                }
            })
        };
        Self { client, stop, calls, longest_millis, calling }
    }

    /// It was served all the time, and never waited long.
    async fn noticed_nothing(self) {
        let before = self.calls.load(Ordering::Relaxed);
        until("another call", LONG, async || before < self.calls.load(Ordering::Relaxed)).await;
        self.stop.store(true, Ordering::Relaxed);
        within(LONG, "the last call", self.calling).await.expect("no call failed");
        let longest = millis(self.longest_millis.load(Ordering::Relaxed));
        assert!(longest < Duration::from_secs(5), "a call took {longest:?}");
        self.client.close();
    }
}

fn echo(seq: u64, payload: &[u8]) -> Message {
    let header = Header::request(Seq::new(seq), SerializeType::RAW);
    Message::new(header, "Raw", "Echo", &Metadata::new(), payload)
}

fn call(seq: u64, path: &str, method: &str, payload: &[u8]) -> Message {
    Message::new(Header::request(Seq::new(seq), SerializeType::MSGPACK), path, method, &Metadata::new(), payload)
}

/// `Args { A: 60,000, B: 1 }` in MessagePack.
const A_MINUTE: &[u8] = b"\x82\xa1A\xcd\xea\x60\xa1B\x01";

// Frames.

/// Every record of `malformed.hex` that goes to a server, on a live one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_frames_end_as_the_table_says() {
    let cases: Vec<Case> = malformed::cases().into_iter().filter(|case| case.to == Role::Server).collect();
    assert!(40 < cases.len(), "{} cases", cases.len());
    for case in cases {
        let reasons = Arc::<Mutex<Vec<CloseReason>>>::default();
        let told = Arc::clone(&reasons);
        let server = contract::server(None)
            .limits(case.limits.clone())
            .on_disconnect(move |_, reason| told.lock().expect("nobody panics with it").push(reason.clone()))
            .build();
        let listening = server.listen("tcp@127.0.0.1:0").await.expect("a port is free");
        // With limits so low that a plain call is beyond them there is no bystander.
        let bystander = match case.limits == Limits::default() {
            true => Some(Bystander::start(listening.address()).await),
            false => None,
        };
        let address = listening.address().strip_prefix("tcp@").expect("it is TCP");
        let mut offender = RawConnection::connect(address).await;
        offender.send(&case.bytes).await;
        meets_its_end(&case, &mut offender, &reasons).await;
        if let Some(bystander) = bystander {
            bystander.noticed_nothing().await;
        }
    }
}

async fn meets_its_end(case: &Case, offender: &mut RawConnection, reasons: &Mutex<Vec<CloseReason>>) {
    let name = case.name;
    let first_reason = || reasons.lock().expect("nobody panics with it").first().cloned();
    match case.expect {
        // The decoder passes over such a frame, and a server answers it and goes on.
        Expect::Closes(expected) if expected.starts_with("MetadataTooLarge") => {
            let answer = offender.receive(LONG).await.unwrap_or_else(|| panic!("{name}: closed"));
            assert!(answer.error_text().is_some_and(|text| !text.is_empty()), "{name}: {answer:?}");
        }
        Expect::Closes(expected) => {
            let answers = offender.until_closed(LONG, name).await;
            // A reply may say before the end which limit a frame is beyond.
            let frames = good_frames(case) + 1;
            let mut deframer = Deframer::new();
            // Who speaks another protocol is told so in HTTP.
            let answers = if answers.starts_with(b"HTTP/1.0 400 ") { &[] } else { &answers[..] };
            deframer.feed(answers, &Limits::default());
            let mut answered = 0;
            while deframer.next_message(&Limits::default()).expect("a server sends frames").is_some() {
                answered += 1;
            }
            assert!(answered <= frames, "{name}: {answered} answers to {frames} good frames");
            until(name, LONG, async || first_reason().is_some()).await;
            let reason = match first_reason().expect("it was waited for") {
                CloseReason::BadFrame(error) => format!("{error:?}"),
                CloseReason::Misbehaved(error) => format!("{error:?}"),
                // Passed over, and no byte of it comes.
                CloseReason::SlowFrame { .. } if expected.starts_with("TooLarge") => return,
                other => panic!("{name}: {other:?}"),
            };
            assert!(malformed::is_error(&reason, expected), "{name}: {reason}");
        }
        Expect::Fails(_) => {
            let answer = offender.receive(LONG).await.unwrap_or_else(|| panic!("{name}: closed"));
            assert!(answer.error_text().is_some_and(|text| !text.is_empty()), "{name}: {answer:?}");
            goes_on(offender, name).await;
        }
        Expect::Accepts(_) => goes_on(offender, name).await,
        Expect::Waits => {
            tokio::time::sleep(millis(50)).await;
            assert!(first_reason().is_none(), "{name}: {:?}", first_reason());
        }
    }
}

/// The frames of a record before the last, which is bad.
fn good_frames(case: &Case) -> usize {
    let mut deframer = Deframer::new();
    deframer.feed(&case.bytes, &case.limits);
    let mut frames = 0;
    while let Ok(Some(_)) = deframer.next_message(&case.limits) {
        frames += 1;
    }
    frames
}

/// A heartbeat is answered, behind whatever else is.
async fn goes_on(connection: &mut RawConnection, name: &str) {
    connection.send_message(&Message::ping(Seq::new(77), &Metadata::new(), b"")).await;
    loop {
        let answer = connection.receive(LONG).await.unwrap_or_else(|| panic!("{name}: closed"));
        if answer.header().is_heartbeat() && answer.header().seq().get() == 77 {
            return;
        }
    }
}

/// Every record that goes to a client, on a live one: it hears what was wrong.
#[tokio::test]
async fn malformed_frames_end_a_clients_connection_with_the_reason() {
    let cases: Vec<Case> = malformed::cases().into_iter().filter(|case| case.to == Role::Client).collect();
    assert!(!cases.is_empty());
    for case in cases {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = format!("tcp@{}", listener.local_addr().expect("it is bound"));
        let options = ClientOptions::new().negotiate(false).reconnect(Reconnect::Never).limits(case.limits.clone());
        let client = Client::connect(&address, options).await.expect("it listens");
        let mut events = client.events();
        let (mut socket, _) = listener.accept().await.expect("the client is there");
        socket.write_all(&case.bytes).await.expect("it reads");
        let expected = match case.expect {
            Expect::Closes(expected) => expected,
            Expect::Accepts("Late") => {
                until(case.name, LONG, async || client.stats().late_replies == 1).await;
                continue;
            }
            other => panic!("{}: {other:?}", case.name),
        };
        let reason = within(LONG, case.name, async {
            loop {
                if let ConnectionEvent::Lost { reason, .. } = events.next().await.expect("the client is open") {
                    return reason;
                }
            }
        })
        .await;
        let reason = match reason {
            CloseReason::BadFrame(error) => format!("{error:?}"),
            CloseReason::Misbehaved(error) => format!("{error:?}"),
            other => panic!("{}: {other:?}", case.name),
        };
        assert!(malformed::is_error(&reason, expected), "{}: {reason}", case.name);
    }
}

// Memory.

/// A server in a process of its own, which can be weighed, and its bystander.
async fn server(arguments: &[&str]) -> (ServerProcess, Bystander) {
    let mut server = ServerProcess::rust(arguments).await;
    let bystander = Bystander::start(&server.address).await;
    until("the bystander is served", LONG, async || 10 < bystander.calls.load(Ordering::Relaxed)).await;
    // The first of everything takes memory that stays.
    server.stats().await;
    (server, bystander)
}

fn memory(server: &ServerProcess) -> u64 {
    server.process.memory_kib().expect("Linux tells")
}

fn assert_grew_less(server: &ServerProcess, before: u64, bound_kib: u64, what: &str) {
    let now = memory(server);
    assert!(now.saturating_sub(before) < bound_kib, "{what}: {before} KiB became {now} KiB");
}

/// Waits until the server is like this.
async fn until_stats(server: &mut ServerProcess, what: &str, wanted: impl Fn(&Stats) -> bool) -> Stats {
    let began = Instant::now();
    loop {
        let stats = server.stats().await;
        if wanted(&stats) {
            return stats;
        }
        assert!(began.elapsed() < LONG, "{what}: {stats:?}");
        tokio::time::sleep(millis(5)).await;
    }
}

/// Waits until only the bystander is left of so many connections that ever were.
async fn only_the_bystander(server: &mut ServerProcess, accepted: u64) -> Stats {
    // A connection leaves the table a moment before its hook runs.
    let alone =
        |stats: &Stats| stats.accepted == accepted && stats.connections == 1 && accepted - 1 <= stats.disconnected;
    let stats = until_stats(server, "connections stay", alone).await;
    assert_eq!((stats.connected, stats.disconnected, stats.out_of_order), (accepted, accepted - 1, 0), "{stats:?}");
    stats
}

fn prefix(body_len: u32) -> [u8; 16] {
    let mut prefix = [0; 16];
    prefix[..12].copy_from_slice(&Header::request(Seq::new(1), SerializeType::MSGPACK).to_bytes());
    prefix[12..].copy_from_slice(&body_len.to_be_bytes());
    prefix
}

/// 1,000 lone prefixes that promise 4 GiB each are refused at sight; 1,000 that promise as much as is allowed,
/// 8 GiB in all, take no more than their connections do: less than 32 MiB.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lone_prefixes_take_no_memory() {
    let (mut server, bystander) = server(&["--default-limits"]).await;
    let before = memory(&server);
    for _ in 0..1_000 {
        let mut liar = RawConnection::connect(server.socket_address()).await;
        liar.send(&prefix(u32::MAX)).await;
        let told = liar.until_closed(LONG, "a promise of 4 GiB").await;
        assert_eq!(told.get(2), Some(&0x81), "the reply says which limit it is beyond");
    }
    let stats = only_the_bystander(&mut server, 1_001).await;
    assert_eq!(stats.ended.get("BadFrame"), Some(&1_000));

    let mut holding = Vec::new();
    for _ in 0..1_000 {
        let mut liar = RawConnection::connect(server.socket_address()).await;
        liar.send(&prefix(8 << 20)).await;
        holding.push(liar);
    }
    until_stats(&mut server, "they come", |stats| stats.connections == 1_001).await;
    // Their bytes are read soon after.
    tokio::time::sleep(millis(200)).await;
    assert_grew_less(&server, before, 32 * MIB, "1,000 promises of 8 MiB");
    drop(holding);
    only_the_bystander(&mut server, 2_001).await;
    bystander.noticed_nothing().await;
}

/// A first frame that comes byte by byte, and never ends, ends with the time for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_first_frames_run_out_of_time() {
    let (mut server, bystander) = server(&["--first-frame", "500"]).await;
    let mut slow = Vec::new();
    for _ in 0..50 {
        slow.push(RawConnection::connect(server.socket_address()).await);
    }
    let frame = echo(1, &[7; 1_000]);
    let began = Instant::now();
    for byte in frame.frame().chunks(1).take(15) {
        for connection in &mut slow {
            connection.send(byte).await;
        }
        tokio::time::sleep(millis(100)).await;
    }
    assert!(millis(1_500) <= began.elapsed());
    for connection in &mut slow {
        connection.closed_without_an_answer(LONG, "a frame that never ends").await;
    }
    let stats = only_the_bystander(&mut server, 51).await;
    assert_eq!(stats.ended.get("NoFirstFrame"), Some(&50), "{stats:?}");
    bystander.noticed_nothing().await;
}

/// 400 KiB that would unpack to 40 MiB, where 32 MiB are allowed: each call fails. While one is unpacked it may
/// take twice the limit, and two are at a time: less than 192 MiB in all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gzip_bombs_fail_their_calls_only() {
    let (mut server, bystander) = server(&["--default-limits"]).await;
    let before = memory(&server);
    let packed = bothways_proto::gzip(&vec![0; 40 << 20]);
    assert!(packed.len() < 1 << 20, "{} bytes", packed.len());
    let mut bombers = Vec::new();
    for _ in 0..4 {
        bombers.push(RawConnection::connect(server.socket_address()).await);
    }
    for seq in 0..4 {
        for bomber in &mut bombers {
            let header = Header::request(Seq::new(seq), SerializeType::RAW).with_compress(CompressType::GZIP);
            bomber.send_message(&Message::new(header, "Raw", "Echo", &Metadata::new(), &packed)).await;
        }
    }
    for bomber in &mut bombers {
        for _ in 0..4 {
            let answer = bomber.receive(LONG).await.expect("the connection goes on");
            assert!(answer.error_text().is_some_and(|text| text.contains("decompress")), "{answer:?}");
        }
        bomber.send_message(&echo(9, b"still here?")).await;
        let answer = bomber.receive(LONG).await.expect("the connection goes on");
        assert_eq!(answer.wire_payload(), "still here?");
    }
    assert_grew_less(&server, before, 192 * MIB, "16 bombs");
    drop(bombers);
    only_the_bystander(&mut server, 5).await;
    bystander.noticed_nothing().await;
}

/// A client that asks for 1 MiB again and again and never reads: the server stops to read it, and gives it up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_reads_is_given_up() {
    let (mut server, bystander) = server(&["--write", "1000"]).await;
    let before = memory(&server);
    let mut deaf = RawConnection::connect(server.socket_address()).await;
    let request =
        Message::new(Header::request(Seq::new(1), SerializeType::RAW), "Raw", "Make", &Metadata::new(), b"1048576");
    for _ in 0..500 {
        deaf.send_message(&request).await;
    }
    let mut most = before;
    let began = Instant::now();
    while server.stats().await.disconnected == 0 {
        most = most.max(memory(&server));
        assert!(began.elapsed() < LONG, "it is kept");
        tokio::time::sleep(millis(5)).await;
    }
    assert!(most - before < 64 * MIB, "500 replies of 1 MiB: {before} KiB became {most} KiB");
    let stats = only_the_bystander(&mut server, 2).await;
    assert_eq!(stats.ended.get("SlowPeer"), Some(&1), "{stats:?}");
    bystander.noticed_nothing().await;
}

/// Requests without end, whose handlers run for a minute, from a client that does not read: what is too much is
/// refused, the refusals are bounded too, and the client is given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_slow_calls_is_bounded() {
    let (mut server, bystander) = server(&["--write", "1000", "--cancel-on-disconnect"]).await;
    let before = memory(&server);
    let mut flood = RawConnection::connect(server.socket_address()).await;
    let batch = call(1, "Arith", "Sleep", A_MINUTE).frame().repeat(1_000);
    let began = Instant::now();
    // Until the server takes no more of it.
    while began.elapsed() < Duration::from_secs(20) {
        let took = tokio::time::timeout(Duration::from_secs(2), flood.stream().write_all(&batch)).await;
        if !matches!(took, Ok(Ok(()))) {
            break;
        }
    }
    assert_grew_less(&server, before, 128 * MIB, "a flood of calls");
    drop(flood);
    only_the_bystander(&mut server, 2).await;
    // The bystander's own may run.
    until_stats(&mut server, "handlers stay", |stats| stats.calls_running <= 1).await;
    bystander.noticed_nothing().await;
}

/// Small requests without end, answered at once, from a client that reads all answers: it is served, and the others
/// are too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_quick_calls_is_served() {
    const CALLS: usize = 100_000;
    let (mut server, bystander) = server(&[]).await;
    let before = memory(&server);
    let flood = RawConnection::connect(server.socket_address()).await;
    let (mut read, mut write) = flood.into_split();
    let request = echo(1, &[7; 100]);
    let answer_bytes = request.frame().len() * CALLS;
    let writing = tokio::spawn(async move {
        let batch = request.frame().repeat(1_000);
        for _ in 0..CALLS / 1_000 {
            write.write_all(&batch).await.expect("the server reads");
        }
        write
    });
    let mut left = answer_bytes;
    let mut buffer = vec![0; 64 << 10];
    while 0 < left {
        let read = tokio::io::AsyncReadExt::read(&mut read, &mut buffer);
        let n = within(LONG, "an answer", read).await.expect("the connection goes on");
        assert!(0 < n, "{left} bytes of answers are missing");
        left -= n;
    }
    drop((writing.await.expect("no panic"), read));
    assert_grew_less(&server, before, 64 * MIB, "100,000 quick calls");
    only_the_bystander(&mut server, 2).await;
    bystander.noticed_nothing().await;
}

/// 10,000 connections come and go, politely and not: no task, no entry and no memory of them stays. The bound is
/// 8 MiB, which is less than a KiB a connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_connections_leave_nothing_behind() {
    const ROUNDS: u64 = 10_000;
    let (mut server, bystander) = server(&[]).await;
    churn(&server, 1_000).await;
    let settled = only_the_bystander(&mut server, 1_001).await;
    let before = memory(&server);
    churn(&server, ROUNDS).await;
    only_the_bystander(&mut server, 1_001 + ROUNDS).await;
    until_stats(&mut server, "tasks stay", |stats| stats.tasks <= settled.tasks).await;
    assert_grew_less(&server, before, 8 * MIB, "10,000 connections");
    bystander.noticed_nothing().await;
}

/// Connections that come and go, eight at a time, in five ways.
async fn churn(server: &ServerProcess, rounds: u64) {
    let at_once: Vec<_> = (0..8)
        .map(|lane| {
            let address = server.socket_address().to_owned();
            tokio::spawn(async move {
                for round in (lane..rounds).step_by(8) {
                    let mut connection = RawConnection::connect(&address).await;
                    match round % 5 {
                        0 => {}
                        1 => {
                            connection.send_message(&echo(round, b"hello")).await;
                            connection.receive(LONG).await.expect("an answer");
                        }
                        2 => connection.send(&echo(round, b"hello").frame()[..20]).await,
                        3 => connection.send_message(&echo(round, b"hello")).await,
                        _ => connection.send(b"GET / HTTP/1.1\r\n\r\n").await,
                    }
                    // Half of them reset: ports must not run out either.
                    if round % 2 == 0 {
                        connection.reset();
                    }
                }
            })
        })
        .collect();
    for lane in at_once {
        within(LONG, "the churn", lane).await.expect("no panic");
    }
}

// Clients that end without a word.

async fn doomed(server: &ServerProcess) -> Process {
    let mut command = Command::new(rust_program("interop-client"));
    command.arg(&server.address);
    let mut client = Process::start(command);
    assert_eq!(client.line(LONG).await, "READY");
    client
}

/// A client that is killed, with a call that runs and pushes on their way: its server hears of it once, and keeps
/// nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_client_is_one_disconnect() {
    let (mut server, bystander) = server(&["--cancel-on-disconnect"]).await;
    let settled = server.stats().await;
    for killed in 1..=3 {
        let mut client = doomed(&server).await;
        assert_eq!(server.stats().await.connections, 2);
        client.kill().await;
        only_the_bystander(&mut server, 1 + killed).await;
    }
    until_stats(&mut server, "tasks stay", |stats| stats.tasks <= settled.tasks && stats.calls_running <= 1).await;
    bystander.noticed_nothing().await;
}

/// Unless it is told otherwise, the server lets a handler run to its end whose client has gone, as Go does. A
/// client that sends nothing more may still read: the connection waits for the answer, but not for long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_handler_of_a_killed_client_runs_on() {
    let mut server = ServerProcess::rust(&[]).await;
    let mut client = doomed(&server).await;
    client.kill().await;
    let stats = until_stats(&mut server, "the connection stays", |stats| stats.disconnected == 1).await;
    assert_eq!((stats.calls_running, stats.disconnected, stats.out_of_order), (1, 1, 0), "{stats:?}");
}

/// A client that is frozen closes nothing: its server's heartbeat finds out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_client_is_found_out_by_the_heartbeat() {
    let (mut server, bystander) = server(&["--heartbeat", "500", "--cancel-on-disconnect"]).await;
    let mut client = doomed(&server).await;
    let began = Instant::now();
    client.freeze().await;
    let stats = only_the_bystander(&mut server, 2).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(stats.ended.get("Gone"), Some(&1), "{stats:?}");
    bystander.noticed_nothing().await;
}
