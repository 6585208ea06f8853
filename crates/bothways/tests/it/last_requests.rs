//! What a client has sent by the time its server ends the connection, over ways so narrow that much of it is still under
//! way then: it runs once, or is counted as lost.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bothways::{
    Client, ClientOptions, FailMode, Metadata, MultipleServersDiscovery, Reply, Request, SelectMode, Server,
    ServerMessages, Target, XClient, XClientOptions,
    server::AuthRequest,
    testing::{Direction, Network, Wire, run},
};
use bothways_proto::{Capabilities, Header, Message, Seq, SerializeType, keys};

use crate::{
    scripted::{Scripted, hello, is_control},
    support::{address, soon},
};

/// A server whose tokens run out: only `t0` counts, then `t1`, and so on. It notes what runs.
struct Noting {
    server: Server,
    generation: Arc<AtomicUsize>,
    noted: Arc<Mutex<Vec<usize>>>,
}

/// The number at the beginning of a text.
fn number_of(text: &str) -> usize {
    text.split(' ').next().and_then(|number| number.parse().ok()).expect("a number")
}

impl Noting {
    /// The check of a token takes so long.
    fn new(check: Duration) -> Self {
        Self::noting_in(Arc::default(), check)
    }

    fn noting_in(noted: Arc<Mutex<Vec<usize>>>, check: Duration) -> Self {
        let generation = Arc::<AtomicUsize>::default();
        let (counts, notes) = (Arc::clone(&generation), Arc::clone(&noted));
        let server = Server::builder()
            .handler("T", "Note", move |request: Request| {
                notes.lock().expect("no panic").push(number_of(&request.decode::<String>().expect("a text")));
                std::future::ready(Reply::ok(&b"\xa5noted"[..]))
            })
            .auth(move |request: AuthRequest| {
                let counts = Arc::clone(&counts);
                async move {
                    if !check.is_zero() {
                        tokio::time::sleep(check).await;
                    }
                    let counts = format!("t{}", counts.load(Ordering::Relaxed));
                    if request.token == counts { Ok(()) } else { Err("the token has run out") }
                }
            })
            .build();
        Self { server, generation, noted }
    }

    fn options(&self) -> ClientOptions {
        let newest = Arc::clone(&self.generation);
        ClientOptions::new().credentials(move || std::future::ready(format!("t{}", newest.load(Ordering::Relaxed))))
    }

    /// Ends all its connections in this way.
    async fn end(&self, way: &str) {
        let (server, time) = (&self.server, Duration::from_secs(30));
        match way {
            "kick" => _ = server.kick(&Target::everyone(), "enough").expect("no topic"),
            "shutdown" => _ = server.shutdown(time).await,
            "drain" => _ = server.drain(time, 10).await,
            "close" => server.connections().iter().for_each(bothways::Connection::close),
            "token" => _ = self.generation.fetch_add(1, Ordering::Relaxed),
            _ => {}
        }
    }

    fn noted(&self) -> Vec<usize> {
        self.noted.lock().expect("no panic").clone()
    }

    /// Whatever was sent ran once, or is counted.
    fn check(&self, sent: usize, lost: u64, what: &str) {
        let noted = self.noted();
        let unique: BTreeSet<usize> = noted.iter().copied().collect();
        assert_eq!(unique.len(), noted.len(), "{what}: each runs once");
        assert_eq!(noted.len() + usize::try_from(lost).expect("few"), sent, "{what}: {lost} lost");
    }
}

const BYTES: usize = 10_000;

/// Sends requests with these numbers that want no reply, of 10 KB each. Returns how many were taken to be sent.
async fn send(client: &Client, numbers: std::ops::Range<usize>) -> usize {
    let mut sent = 0;
    for number in numbers {
        let text = format!("{number} {}", "x".repeat(BYTES));
        sent += usize::from(soon(client.oneshot("T", "Note", &text)).await.is_ok());
    }
    sent
}

async fn connected(network: &Network, options: ClientOptions) -> (Client, ServerMessages, Wire) {
    let wire = network.wire().await.expect("the server runs");
    let (client, messages) = Client::bidirectional(wire.address(), options).await.expect("let in");
    (client, messages, wire)
}

/// A token runs out while requests for many seconds are under way: all are read, and what the server refuses runs with the
/// next token.
#[test]
fn what_is_under_way_when_a_token_runs_out_runs_with_the_next_one() {
    const SENT: usize = 150;
    for check in [Duration::ZERO, Duration::from_millis(30)] {
        run(async move {
            let noting = Noting::new(check);
            let network = Network::new(noting.server.clone()).await.expect("a name of its own");
            let (client, _messages, wire) = connected(&network, noting.options()).await;
            wire.slow(Direction::ToServer, Duration::from_millis(100));
            let mut sent = send(&client, 0..SENT / 3).await;
            tokio::time::sleep(Duration::from_secs(2)).await;
            noting.generation.fetch_add(1, Ordering::Relaxed);
            sent += send(&client, SENT / 3..SENT).await;

            tokio::time::sleep(Duration::from_secs(120)).await;
            assert_eq!((sent, client.oneways_lost()), (SENT, 0));
            noting.check(SENT, 0, "a token");
        });
    }
}

/// Calls that are under way then are made once more, and none may have run without an answer.
#[test]
fn calls_under_way_when_a_token_runs_out_are_answered() {
    const CALLS: usize = 100;
    run(async {
        let noting = Noting::new(Duration::ZERO);
        let network = Network::new(noting.server.clone()).await.expect("a name of its own");
        let options = noting.options().timeout(Duration::from_secs(100));
        let (client, _messages, wire) = connected(&network, options).await;
        wire.slow(Direction::ToServer, Duration::from_millis(100));
        let calls: Vec<_> = (0..CALLS)
            .map(|number| {
                let client = client.clone();
                tokio::spawn(async move {
                    let text = format!("{number} {}", "x".repeat(BYTES));
                    client.call::<String>("T", "Note", &text).await
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_secs(2)).await;
        noting.generation.fetch_add(1, Ordering::Relaxed);
        for call in calls {
            let answer = soon(call).await.expect("no panic");
            assert_eq!(answer.expect("answered"), "noted");
        }
        noting.check(CALLS, 0, "calls");
    });
}

/// A server waits neither for ever for what is under way, nor for a client that sends nothing: it says what it has taken,
/// and the client counts the rest.
#[test]
fn what_a_server_has_not_read_at_the_end_is_counted() {
    for each in [Duration::from_secs(3), Duration::from_secs(40)] {
        run(async move {
            const SENT: usize = 60;
            let noting = Noting::new(Duration::ZERO);
            let network = Network::new(noting.server.clone()).await.expect("a name of its own");
            let (client, _messages, wire) = connected(&network, noting.options()).await;
            wire.slow(Direction::ToServer, Duration::from_millis(100));
            let sent = send(&client, 0..SENT).await;
            noting.generation.fetch_add(1, Ordering::Relaxed);
            // A next connection that breaks on its narrow way would say nothing.
            wire.refuse();
            // By then the server has said Goodbye.
            tokio::time::sleep(Duration::from_secs(1)).await;
            wire.slow(Direction::ToServer, each);
            tokio::time::sleep(Duration::from_secs(4000)).await;
            assert!(1 < sent && 0 < client.oneways_lost(), "{each:?}");
            noting.check(sent, client.oneways_lost(), &format!("{each:?}"));
        });
    }
}

/// However a server ends a connection on which requests are under way, and says so: each runs once, or is counted.
#[test]
fn however_a_server_ends_a_connection_what_is_under_way_runs_or_is_counted() {
    for way in ["kick", "shutdown", "drain", "close", "cut"] {
        run(async move {
            const SENT: usize = 80;
            let noting = Noting::new(Duration::from_millis(30));
            let network = Network::new(noting.server.clone()).await.expect("a name of its own");
            let (client, _messages, wire) = connected(&network, noting.options()).await;
            wire.slow(Direction::ToServer, Duration::from_millis(100));
            assert_eq!(send(&client, 0..SENT).await, SENT);
            tokio::time::sleep(Duration::from_secs(2)).await;
            let server = &noting.server;
            match way {
                "kick" => _ = server.kick(&Target::everyone(), "enough").expect("no topic"),
                "shutdown" => _ = server.shutdown(Duration::from_secs(30)).await,
                "drain" => _ = server.drain(Duration::from_secs(30), 10).await,
                "close" => server.connections().iter().for_each(bothways::Connection::close),
                _ => {
                    // After the Goodbye, and before all of it is read. Of a next connection nobody could know.
                    wire.refuse();
                    noting.generation.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_secs(2)).await;
                    wire.cut();
                }
            }
            tokio::time::sleep(Duration::from_secs(120)).await;
            noting.check(SENT, client.oneways_lost(), way);
            assert!(!noting.noted().is_empty(), "{way}");
        });
    }
}

/// A client that does not say which request is its last is read until it is silent.
#[tokio::test(start_paused = true)]
async fn an_older_client_is_read_until_it_is_silent() {
    let noting = Noting::new(Duration::ZERO);
    let listening = noting.server.listen(&address()).await.expect("the name is free");
    let mut client = Scripted::connect(listening.address()).await;
    let token = Metadata::new().with(keys::AUTH, "t0");
    client.say(hello(0, Capabilities::ALL, &token)).await;
    client.next().await;
    noting.generation.fetch_add(1, Ordering::Relaxed);
    let note = |number: u64| {
        let header = Header::oneway(Seq::new(number), SerializeType::RAW);
        Message::new(header, "T", "Note", &token, number.to_string().as_bytes())
    };
    for number in 1..=10 {
        client.say(note(number).frame()).await;
        tokio::time::sleep(Duration::from_millis(600)).await;
    }
    let mut returned = 0;
    while let Some(message) = client.try_next().await {
        assert!(!is_control(&message, keys::TAKEN), "it would not understand it");
        returned += usize::from(is_control(&message, keys::RETURN));
    }
    assert_eq!(returned, 10);
}

/// The connection of a client that has said so ends at the server's next look.
#[tokio::test(start_paused = true)]
async fn a_client_that_said_its_last_request_is_not_waited_for() {
    let noting = Noting::new(Duration::ZERO);
    let listening = noting.server.listen(&address()).await.expect("the name is free");
    let client = Client::connect(listening.address(), noting.options()).await.expect("let in");
    soon(client.call::<String>("T", "Note", "1")).await.expect("answered");
    let first = noting.server.connections().pop().expect("it is there");
    noting.generation.fetch_add(1, Ordering::Relaxed);
    soon(client.call::<String>("T", "Note", "2")).await.expect("answered with the next token");
    let over = tokio::time::timeout(Duration::from_secs(3), first.closed()).await;
    over.expect("it ends at the next look");
    assert_eq!(client.oneways_lost(), 0);
}

/// A client is closed while more of its requests are under way than pass within the time that its connection has then, and
/// its server ends the connection too, or does not: each request runs once, or is counted, and the session is over.
#[test]
fn what_is_under_way_when_a_client_is_closed_runs_or_is_counted() {
    for way in ["nothing", "kick", "shutdown", "drain", "close", "token"] {
        for (sent, listens) in [(40, true), (40, false), (200, true)] {
            run(async move {
                let what = format!("{way} {sent} {listens}");
                let noting = Noting::new(Duration::from_millis(30));
                let network = Network::new(noting.server.clone()).await.expect("a name of its own");
                let wire = network.wire().await.expect("the server runs");
                let client = match listens {
                    true => Client::bidirectional(wire.address(), noting.options()).await.expect("let in").0,
                    false => Client::connect(wire.address(), noting.options()).await.expect("let in"),
                };
                wire.slow(Direction::ToServer, Duration::from_millis(100));
                assert_eq!(send(&client, 0..sent).await, sent);
                tokio::time::sleep(Duration::from_secs(1)).await;
                client.close();
                let closed = tokio::time::Instant::now();
                let ending = async {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    noting.end(way).await;
                };
                let over = async {
                    // One that closes the connection itself does not read the Leave.
                    while way != "close" && 0 < noting.server.stats().sessions {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    assert!(closed.elapsed() < Duration::from_secs(7), "{what}: its session");
                };
                tokio::join!(ending, over);
                tokio::time::sleep(Duration::from_secs(120)).await;
                noting.check(sent, client.oneways_lost(), &what);
                assert!(!noting.noted().is_empty(), "{what}");
            });
        }
    }
}

/// A server leaves the list of an `XClient`, and is stopped at once or a second later, as behind a balancer: each request
/// that is under way to it runs once, or is counted.
#[test]
fn what_is_under_way_to_a_server_that_leaves_the_list_runs_or_is_counted() {
    const SENT: usize = 100;
    for way in ["nothing", "kick", "shutdown", "drain", "close", "token"] {
        for later in [Duration::ZERO, Duration::from_secs(1)] {
            run(async move {
                let noted = Arc::<Mutex<Vec<usize>>>::default();
                let noting = || Noting::noting_in(Arc::clone(&noted), Duration::from_millis(30));
                let (first, second) = (noting(), noting());
                let a = Network::new(first.server.clone()).await.expect("a name of its own");
                let b = Network::new(second.server.clone()).await.expect("a name of its own");
                let (wire_a, wire_b) = (a.wire().await.expect("it runs"), b.wire().await.expect("it runs"));
                let discovery = MultipleServersDiscovery::new([wire_a.address(), wire_b.address()]);
                // Without credentials a server does not hand back what it refuses for its token.
                let options = ClientOptions::new().credentials(|| std::future::ready("t0".to_owned()));
                let options = XClientOptions::new().client(options);
                let (mode, select) = (FailMode::Failover, SelectMode::RoundRobin);
                let (xclient, _messages) = XClient::bidirectional("T", mode, select, discovery.clone(), options);
                tokio::time::sleep(Duration::from_millis(200)).await;

                for wire in [&wire_a, &wire_b] {
                    wire.slow(Direction::ToServer, Duration::from_millis(100));
                }
                for number in 0..SENT {
                    let text = format!("{number} {}", "x".repeat(BYTES));
                    soon(xclient.oneshot("Note", &text)).await.expect("queued");
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
                discovery.update([wire_b.address()]);
                tokio::time::sleep(later).await;
                first.end(way).await;

                tokio::time::sleep(Duration::from_secs(120)).await;
                first.check(SENT, xclient.oneways_lost(), &format!("{way} {later:?}"));
            });
        }
    }
}

/// What the framework itself says at the end is no request of the application.
#[test]
fn a_client_that_is_sent_away_counts_no_request_of_its_own() {
    for each in [Duration::ZERO, Duration::from_millis(100)] {
        run(async move {
            let noting = Noting::new(Duration::ZERO);
            let network = Network::new(noting.server.clone()).await.expect("a name of its own");
            let (client, _messages, wire) = connected(&network, noting.options()).await;
            wire.slow(Direction::ToServer, each);
            let sent = send(&client, 0..5).await;
            soon(client.call::<String>("T", "Note", "5")).await.expect("answered");
            noting.end("kick").await;
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert_eq!((sent, noting.noted().len(), client.oneways_lost()), (5, 6, 0), "{each:?}");
        });
    }
}
