//! What a peer can make the other hold, tried: each attack has a server, or a client, in a process of its own, whose
//! peak of memory is held against the bounds that were set. `BOTHWAYS_ATTACKS=full` takes the defaults and the sizes of
//! real attacks, for a release build.
#![cfg(target_os = "linux")]

use std::{
    io::{BufRead, BufReader, Lines, Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use bothways::{
    CallError, CallOptions, Caller, Client, ClientOptions, Limits, OutgoingOptions, QueueBound, Reply, Request, Server,
    ServerLimits, caller::RawCall, session::TopicOptions,
};
use bothways_proto::{
    Capabilities, CompressType, Deframer, Header, Hello, Message, Metadata, Seq, SerializeType, Welcome, gzip, keys,
};

/// Set for the process that is attacked.
const ATTACKED: &str = "BOTHWAYS_ATTACKED";

/// What a process takes that serves nobody, and what the allocator keeps.
const BESIDE: usize = 48 << 20;

/// What may wait of a client's calls.
const CALL_BYTES: usize = 16 << 20;

/// A reply that is large.
const LARGE: usize = 6 << 20;

/// The bounds of the server, and what the attacks send.
struct Sizes {
    payload: usize,
    unpacked: usize,
    unpacked_of_connection: usize,
    requests_of_connection: usize,
    partial: usize,
    stranger: usize,
    outgoing: usize,
    attackers: usize,
}

fn sizes() -> Sizes {
    if std::env::var("BOTHWAYS_ATTACKS").is_ok_and(|sizes| sizes == "full") {
        return Sizes {
            payload: 31 << 20,
            unpacked: 512 << 20,
            unpacked_of_connection: 64 << 20,
            requests_of_connection: 64 << 20,
            partial: 256 << 20,
            stranger: 1 << 20,
            outgoing: 1 << 30,
            attackers: 150,
        };
    }
    Sizes {
        payload: 4 << 20,
        unpacked: 16 << 20,
        unpacked_of_connection: 8 << 20,
        requests_of_connection: 8 << 20,
        partial: 8 << 20,
        stranger: 256 << 10,
        outgoing: 16 << 20,
        attackers: 40,
    }
}

fn serve(guarded: bool, hooked: bool) {
    let sizes = sizes();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("it starts").block_on(async {
        let echo = |request: Request| {
            std::future::ready(request.payload().map_or_else(|error| Reply::error(error.to_string()), Reply::ok))
        };
        let wait = |_: Request| async {
            tokio::time::sleep(Duration::from_secs(600)).await;
            Reply::ok("")
        };
        let keep = |request: Request| async move {
            tokio::time::sleep(Duration::from_secs(600)).await;
            Reply::ok(request.payload().unwrap_or_default())
        };
        let function = |text: String| async move {
            tokio::time::sleep(Duration::from_secs(600)).await;
            Ok::<_, String>(text)
        };
        let strings = |strings: Vec<String>| async move {
            tokio::time::sleep(Duration::from_secs(600)).await;
            Ok::<_, String>(strings.len())
        };
        let later = |_: Request| async {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            Reply::ok(vec![7; 100_000])
        };
        let large = |_: Request| std::future::ready(Reply::ok(vec![7; LARGE]));
        let mut builder = Server::builder()
            .handler("T", "Echo", echo)
            .handler("T", "Later", later)
            .handler("T", "Large", large)
            .handler("T", "Wait", wait)
            .handler("T", "Keep", keep)
            .function("T", "Function", function)
            .function("T", "Strings", strings)
            .topic(">", TopicOptions::new().open())
            .expect("a pattern")
            .limits(Limits::default().decompressed_bytes_max(sizes.payload + 1))
            .limits(
                ServerLimits::new()
                    .unpacked_bytes_max(sizes.unpacked)
                    .unpacked_bytes_per_connection_max(sizes.unpacked_of_connection)
                    .request_bytes_max(1 << 30)
                    .request_bytes_per_connection_max(sizes.requests_of_connection)
                    .partial_bytes_max(sizes.partial)
                    .unauthenticated_body_bytes_max(sizes.stranger),
            )
            .outgoing(OutgoingOptions::new().all_bytes_max(sizes.outgoing));
        if guarded {
            builder = builder.auth(|_| async {
                tokio::time::sleep(Duration::from_secs(600)).await;
                Err::<(), _>("no")
            });
        }
        if hooked {
            builder = builder.on_error(|_, _, text| text);
        }
        let server = builder.build();
        let listening = server.listen("tcp@127.0.0.1:0").await.expect("a free port");
        println!("listens at {}", listening.address().trim_start_matches("tcp@"));
        std::future::pending::<()>().await;
    });
}

/// A client of this server, which calls with much, or takes no message.
fn ask(kind: &str, address: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("it starts").block_on(async {
        let options =
            ClientOptions::new().call_bytes_max(CALL_BYTES).message_queue(QueueBound::messages(10).bytes(10_000));
        let address = format!("tcp@{address}");
        println!("listens at nothing");
        if kind == "listener" {
            let (_client, _messages) = Client::bidirectional(&address, options).await.expect("it listens");
            return std::future::pending::<()>().await;
        }
        let client = Client::connect(&address, options.negotiate(false)).await.expect("it listens");
        let calls = (0..400).map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                let payload = vec![7; 1 << 20].into();
                let (serialize, options) = (SerializeType::RAW, CallOptions::new());
                let call = RawCall { service_path: "T", service_method: "Wait", serialize, payload, options };
                let refused = client.call_raw(call).await.expect_err("nobody answers");
                assert!(matches!(refused, CallError::QueueFull { .. } | CallError::Closed { .. }), "{refused}");
            })
        });
        let calls: Vec<_> = calls.collect();
        for call in calls {
            call.await.expect("no panic");
        }
    });
}

struct Attacked {
    process: Child,
    address: String,
    /// Kept: after a minute the test that it is says how long it has been running, and ends if nobody may hear it.
    _says: Lines<BufReader<ChildStdout>>,
}

impl Attacked {
    fn start(kind: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().expect("it runs"))
            .args(["--exact", "the_attacked", "--nocapture"])
            .env(ATTACKED, kind)
            // What is freed goes back to the system at once: what is measured is what the library holds, and not what
            // glibc keeps for the next large payload of each thread.
            .env("MALLOC_MMAP_THRESHOLD_", "131072")
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut says = BufReader::new(process.stdout.take().expect("piped")).lines();
        let mut lines = says.by_ref().map_while(Result::ok);
        let address = lines.find_map(|line| Some(line.split_once("listens at ")?.1.to_owned()));
        Self { process, address: address.expect("it listens"), _says: says }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).expect("it listens");
        stream.set_write_timeout(Some(Duration::from_millis(500))).expect("a time");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time");
        stream
    }

    /// The most bytes of it that were ever in memory.
    fn peak(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("it lives");
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("Linux tells");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<usize>().ok()).expect("a number of KiB") << 10
    }

    /// Waits until its peak has not grown for a second, and holds it against this.
    fn stays_below(&self, bound: usize, why: &str) {
        let (mut peak, mut since, began) = (0, Instant::now(), Instant::now());
        while since.elapsed() < Duration::from_secs(1) && began.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(50));
            let now = self.peak();
            if now != peak {
                (peak, since) = (now, Instant::now());
            }
        }
        assert!(peak <= BESIDE + bound, "{why}: {} MiB, of {} + {}", peak >> 20, BESIDE >> 20, bound >> 20);
    }
}

impl Drop for Attacked {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn request(number: u64, method: &str, compress: CompressType, payload: &[u8]) -> Vec<u8> {
    let header = Header::request(Seq::new(number), SerializeType::RAW).with_compress(compress);
    Message::new(header, "T", method, &Metadata::new(), payload).frame().to_vec()
}

/// The process that is attacked; nothing when it is not one.
#[test]
fn the_attacked() {
    if let Ok(kind) = std::env::var(ATTACKED) {
        match kind.split_once(' ') {
            Some((kind, address)) => ask(kind, address),
            None => serve(kind == "guarded", kind == "hooked"),
        }
    }
}

/// F22. Small gzip payloads that unpack to large ones, which are echoed and not read.
#[test]
fn unpacked_payloads() {
    let (sizes, attacked) = (sizes(), Attacked::start("open"));
    let packed = gzip(&vec![0; sizes.payload]);
    let mut client = attacked.connect();
    for number in 0..100 {
        if client.write_all(&request(number, "Echo", CompressType::GZIP, &packed)).is_err() {
            break;
        }
    }
    // Four are unpacked at a time, each in twice its bytes; and the frames themselves.
    attacked.stays_below(sizes.unpacked_of_connection + 8 * sizes.payload + 8 * packed.len(), "unpacked payloads");
    let mut other = attacked.connect();
    other.write_all(&request(1, "Echo", CompressType::GZIP, &gzip(&[1; 300 << 10]))).expect("it reads");
    other.read_exact(&mut [0; 16]).expect("others are answered");
}

/// F24. Frames that never end, behind a heartbeat that is answered.
#[test]
fn frames_that_never_end() {
    let (sizes, attacked) = (sizes(), Attacked::start("open"));
    let frame = request(1, "Echo", CompressType::NONE, &vec![7; 2 << 20]);
    let heartbeat = Message::ping(Seq::new(0), &Metadata::new(), &[]).frame().to_vec();
    let mut held = Vec::new();
    for _ in 0..sizes.attackers {
        let mut client = attacked.connect();
        let _ = client.write_all(&heartbeat);
        let _ = client.write_all(&frame[..frame.len() - 1]);
        held.push(client);
    }
    // A buffer that grows may be twice what is in it.
    attacked.stays_below(2 * sizes.partial + sizes.attackers * (192 << 10), "frames that never end");
}

/// F25. Requests that wait for a slow hook.
#[test]
fn requests_of_strangers() {
    let (sizes, attacked) = (sizes(), Attacked::start("guarded"));
    let body = request(1, "Echo", CompressType::NONE, &vec![7; sizes.stranger - 100]);
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut client = attacked.connect();
        for _ in 0..50 {
            if client.write_all(&body).is_err() {
                break;
            }
        }
        held.push(client);
    }
    // One request is checked, and one more may be on its way.
    attacked.stays_below(4 * (4 * sizes.stranger + (256 << 10)), "requests of strangers");
}

/// F25. Requests that run for long.
#[test]
fn requests_that_run() {
    let (sizes, attacked) = (sizes(), Attacked::start("open"));
    let body = request(1, "Wait", CompressType::NONE, &vec![7; 1 << 20]);
    let mut client = attacked.connect();
    for _ in 0..3 * (sizes.requests_of_connection >> 20) {
        if client.write_all(&body).is_err() {
            break;
        }
    }
    attacked.stays_below(2 * sizes.requests_of_connection + (8 << 20), "requests that run");
}

/// F31. Arguments that take 24 times their bytes, and more of those that are being decoded.
#[test]
fn arguments_that_take_more_than_their_bytes() {
    const CLIENTS: usize = 3;
    const STRINGS: usize = 1_000_000;
    let attacked = Attacked::start("open");
    let payload = [&[0xdd][..], &(STRINGS as u32).to_be_bytes(), &[0xc0; STRINGS]].concat();
    let header = Header::request(Seq::new(1), SerializeType::MSGPACK);
    let asked = Message::new(header, "T", "Strings", &Metadata::new(), &payload).frame().to_vec();
    let mut held = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = attacked.connect();
        flood(&mut client, &asked, 7);
        held.push(client);
    }
    // One of each client, and one for each of two threads that decode; a list that grows has up to twice its bytes.
    let list = 2 * STRINGS * size_of::<String>();
    attacked.stays_below((CLIENTS + 2) * list + CLIENTS * (8 << 20), "arguments that take more than their bytes");
}

/// F27. Small requests that run for long, each beside a large one that does not: whatever their handlers keep.
#[test]
fn small_requests_beside_large_ones() {
    for (kind, method) in [("open", "Wait"), ("open", "Keep"), ("open", "Function"), ("hooked", "Wait")] {
        let attacked = Attacked::start(kind);
        let header = Header::request(Seq::new(1), SerializeType::MSGPACK);
        let small = Message::new(header, "T", method, &Metadata::new(), b"\xa5small").frame().to_vec();
        let pair = [small, request(2, "None", CompressType::NONE, &vec![7; 60_000])].concat();
        let mut client = attacked.connect();
        client.set_write_timeout(Some(Duration::from_secs(60))).expect("a time");
        let mut answers = client.try_clone().expect("a second handle");
        let reading = std::thread::spawn(move || while matches!(answers.read(&mut [0; 4096]), Ok(1..)) {});
        for _ in 0..1500 {
            client.write_all(&pair).expect("it reads");
        }
        attacked.stays_below(16 << 20, &format!("small requests beside large ones: {kind} {method}"));
        drop(attacked);
        reading.join().expect("no panic");
    }
}

/// Sends the same bytes until it cannot, or so often.
fn flood(client: &mut TcpStream, bytes: &[u8], times: usize) {
    for _ in 0..times {
        if client.write_all(bytes).is_err() {
            return;
        }
    }
}

/// F21. Peers that read slowly, and never catch up: what was written is given back.
#[test]
fn replies_that_are_read_slowly() {
    const ATTACKERS: usize = 4;
    let attacked = Attacked::start("open");
    let attackers: Vec<_> = (0..ATTACKERS)
        .map(|_| {
            let mut client = attacked.connect();
            let mut reading = client.try_clone().expect("a second handle");
            let asked = request(1, "Echo", CompressType::NONE, &[7; 3000]).repeat(10);
            let writer = std::thread::spawn(move || flood(&mut client, &asked, 8000));
            let reader = std::thread::spawn(move || {
                while matches!(reading.read(&mut [0; 4096]), Ok(1..)) {
                    std::thread::sleep(Duration::from_micros(200));
                }
            });
            (writer, reader)
        })
        .collect();
    std::thread::sleep(Duration::from_secs(5));
    // Replies wait up to 4 MiB, and what is on its way is as much as two frames and a batch.
    attacked.stays_below(ATTACKERS * (6 << 20), "replies that are read slowly");
    drop(attacked);
    for (writer, reader) in attackers {
        writer.join().expect("no panic");
        reader.join().expect("no panic");
    }
}

/// Replies that nobody reads, of handlers that run already and of such as are ready at once, on many connections.
#[test]
fn replies_that_nobody_reads() {
    for (method, calls) in [("Later", 200), ("Large", 3)] {
        let (sizes, attacked) = (sizes(), Attacked::start("open"));
        let mut held = Vec::new();
        for _ in 0..sizes.attackers {
            let mut client = attacked.connect();
            flood(&mut client, &request(1, method, CompressType::NONE, b""), calls);
            held.push(client);
        }
        std::thread::sleep(Duration::from_secs(3));
        // Of each its own 64 KiB, what is on its way, and failures; and a reply for each thread that asks for room.
        let bound = sizes.outgoing + sizes.attackers * (256 << 10) + 4 * LARGE;
        attacked.stays_below(bound, &format!("replies that nobody reads: {method}"));
        let mut other = attacked.connect();
        other.write_all(&request(1, "Echo", CompressType::NONE, &[1; 30_000])).expect("it reads");
        other.read_exact(&mut [0; 30_000]).expect("others are answered");
    }
}

/// F23. Heartbeats before any token: large ones, and small ones whose answers nobody reads.
#[test]
fn heartbeats_of_strangers() {
    let (sizes, attacked) = (sizes(), Attacked::start("guarded"));
    let heartbeat = |len: usize| Message::ping(Seq::new(0), &Metadata::new(), &vec![7; len]).frame().to_vec();
    let (large, small) = (heartbeat(8_000_000), heartbeat(4000));
    let mut held = Vec::new();
    for at in 0..sizes.attackers {
        let mut client = attacked.connect();
        match at % 2 {
            0 => flood(&mut client, &large, 3),
            _ => flood(&mut client, &small, 10_000),
        }
        held.push(client);
    }
    // Each has a buffer of reads, what waits in its lane, and what is on its way.
    attacked.stays_below(sizes.attackers * (1 << 20), "heartbeats of strangers");
}

/// F26. A server sends tracked pushes to a client that takes none.
#[test]
fn pushes_that_nobody_takes() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let attacked = Attacked::start(&format!("listener {}", listener.local_addr().expect("it is bound")));
    // The client comes back, as often as its server is too much for it.
    for _ in 0..3 {
        let (mut server, _) = listener.accept().expect("it connects");
        server.set_write_timeout(Some(Duration::from_millis(500))).expect("a time");
        let hello = first_message(&mut server);
        let mut pairs = Metadata::new().with(keys::SESSION_ID, "a1").with(keys::SESSION_KEY, "k");
        pairs.insert(keys::SESSION_OFFSET, "0");
        let said = Hello::from_metadata(&hello.metadata()).expect("a Hello comes first");
        Welcome::answer(&said, Capabilities::ALL).put(&mut pairs);
        let welcome = Message::new(hello.header().reply(), "", "", &pairs, &[]);
        server.write_all(welcome.frame()).expect("it reads");
        for offset in 1..=60_000 {
            let header = Header::oneway(Seq::of_push(offset), SerializeType::RAW);
            let push = Message::new(header, "T", "N", &Metadata::new(), &[7; 1024]);
            if server.write_all(push.frame()).is_err() {
                break;
            }
        }
    }
    attacked.stays_below(8 << 20, "pushes that nobody takes");
}

fn first_message(stream: &mut TcpStream) -> Message {
    let (mut deframer, limits) = (Deframer::new(), Limits::default());
    let mut buffer = [0; 4096];
    loop {
        let len = stream.read(&mut buffer).expect("it says something");
        assert_ne!(len, 0, "it says something");
        deframer.feed(&buffer[..len], &limits);
        if let Some(message) = deframer.next_message(&limits).expect("frames") {
            return message;
        }
    }
}

/// F28. Calls to a server that does not read.
#[test]
fn calls_that_nobody_reads() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let attacked = Attacked::start(&format!("caller {}", listener.local_addr().expect("it is bound")));
    let _server = listener.accept().expect("it connects");
    // A payload is its caller's until it is refused, and those that run at once are few.
    attacked.stays_below(2 * CALL_BYTES + (16 << 20), "calls that nobody reads");
}

/// F29. Subscriptions with long names, each another, of sessions that are kept when their clients leave; and the names of
/// methods that they announce.
#[test]
fn subscriptions_and_methods() {
    const SESSIONS: usize = 10;
    let attacked = Attacked::start("open");
    for session in 0..SESSIONS {
        let mut client = attacked.connect();
        client.set_write_timeout(None).expect("none");
        let mut answers = client.try_clone().expect("a second handle");
        let asked = |number: usize, method: &str, said: &Metadata, payload: &str| {
            let header = Header::request(Seq::new(number as u64), SerializeType::JSON);
            Message::new(header, keys::CONTROL_PATH, method, said, payload.as_bytes()).frame().to_vec()
        };
        let methods: Vec<String> = (0..400).map(|n| format!("S{session}.m{n}")).collect();
        let methods = methods.join(",").chars().take(4096).collect::<String>();
        let mut frames = asked(0, keys::ENABLE, &Metadata::new().with(keys::METHODS, &methods), "");
        for number in 1..=1000 {
            let segments: Vec<String> = (0..16).map(|at| format!("{session:05}{number:05}{at:05}")).collect();
            let topic = format!(r#"{{"Topic":"{}"}}"#, segments.join("."));
            frames.extend(asked(number, keys::SUBSCRIBE, &Metadata::new(), &topic));
        }
        let writer = std::thread::spawn(move || client.write_all(&frames).map(|()| client));
        let (mut deframer, limits, mut answered) = (Deframer::new(), Limits::default(), 0);
        let mut buffer = vec![0; 64 << 10];
        while answered < 1001 {
            let len = answers.read(&mut buffer).expect("it answers");
            assert_ne!(len, 0, "it answers");
            deframer.feed(&buffer[..len], &limits);
            while deframer.next_message(&limits).expect("frames").is_some() {
                answered += 1;
            }
        }
        drop(writer.join().expect("no panic"));
    }
    attacked.stays_below(SESSIONS * ((512 + 4 + 64) << 10), "subscriptions and methods");
}
