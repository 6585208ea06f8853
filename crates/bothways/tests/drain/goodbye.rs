//! A Goodbye names other nodes, and clients go there.

use std::time::Duration;

use bothways::{
    Client, ClientOptions, ConnectionEvent, ConnectionEvents, OtherAddresses, Peer2PeerDiscovery, Push, Server,
    ServerMessages, Stage, Target, XClient,
    cluster::{Cluster, memory::MemoryBroker},
    server::{Listening, ShutdownReport},
    testing,
    xclient::{FailMode, SelectMode},
};
use tokio::time::Instant;

use crate::support::{server, until};

/// A server of the cluster that clients reach at an address of their own.
struct Node {
    server: Server,
    _listening: Listening,
}

impl Node {
    async fn at(broker: &MemoryBroker, address: &str) -> Self {
        Self::saying(broker, address, address).await
    }

    /// It listens there, and says that it is here.
    async fn saying(broker: &MemoryBroker, address: &str, said: &str) -> Self {
        let server = server();
        server.join(Cluster::new(broker.engine()).address(said)).await.expect("the engine works");
        let _listening = server.listen(address).await.expect("the address is free");
        Self { server, _listening }
    }

    async fn knows(&self, others: usize) {
        until("it knows the others", || self.server.members().len() == others + 1).await;
    }

    fn connected(&self) -> usize {
        let stats = self.server.stats();
        stats.sessions - stats.sessions_away
    }

    fn drain(&self, deadline: Duration) -> tokio::task::JoinHandle<ShutdownReport> {
        let server = self.server.clone();
        tokio::spawn(async move { server.drain(deadline, 100).await })
    }

    /// Takes a call that does not end, so that a drain of it lasts.
    async fn busy(broker: &MemoryBroker, address: &str) -> (Self, Client) {
        let server = Server::builder()
            .function("Slow", "Wait", |(): ()| async {
                std::future::pending::<()>().await;
                Ok::<_, String>(())
            })
            .build();
        server.join(Cluster::new(broker.engine()).address(address)).await.expect("the engine works");
        let _listening = server.listen(address).await.expect("the address is free");
        let client = Client::connect(address, ClientOptions::new()).await.expect("it listens");
        let caller = client.clone();
        tokio::spawn(async move { caller.call::<()>("Slow", "Wait", &()).await });
        until("it runs", || server.stats().calls_running == 1).await;
        (Self { server, _listening }, client)
    }
}

async fn client(address: &str, user: &str, options: ClientOptions) -> (Client, ServerMessages) {
    Client::bidirectional(address, options.auth(user)).await.expect("it listens")
}

/// A client that knows the address of one node goes to the other one, and takes its session along.
#[test]
fn a_client_goes_to_a_node_that_its_server_has_named() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let one = Node::at(&broker, "memory@goodbye one").await;
        let other = Node::at(&broker, "memory@goodbye other").await;
        // An address with a blank cannot be said.
        let named = Node::at(&broker, "memory@goodbye-named").await;
        one.knows(2).await;
        let mut clients = Vec::new();
        for number in 0..8 {
            clients.push(client("memory@goodbye one", &format!("user{number}"), ClientOptions::new()).await);
        }
        until("all have sessions", || one.connected() == 8).await;
        tokio::time::sleep(Duration::from_millis(100)).await;

        let mut receipts = Vec::new();
        let draining = one.drain(Duration::from_secs(10));
        let began = Instant::now();
        while !draining.is_finished() {
            for user in 0..8 {
                let push = Push::new("Mail", "New", "a letter");
                receipts.push(other.server.push(&Target::user(format!("user{user}")), &push).expect("a small push"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let report = draining.await.expect("no panic");
        let moved = report.sessions_handed_over + report.sessions_parked;
        assert_eq!((report.clients_told, moved, report.sessions_left), (8, 8, 0), "{report:?}");
        assert!(began.elapsed() < Duration::from_secs(5), "nobody waited for the deadline: {:?}", began.elapsed());
        until("all are there", || named.connected() == 8).await;
        assert_eq!(other.connected(), 0);

        let each = receipts.len() / 8;
        for (user, (_, messages)) in clients.iter_mut().enumerate() {
            for number in 0..each {
                let next = tokio::time::timeout(Duration::from_secs(60), messages.next()).await;
                let told = || receipts.iter().skip(user).step_by(8).collect::<Vec<_>>();
                next.unwrap_or_else(|_| panic!("user{user} got {number} of {each}: {:#?}", told())).expect("all come");
            }
        }
        for receipt in &receipts {
            assert_eq!(receipt.handled().await.at(Stage::Handled), 1, "{receipt:?}");
        }
    });
}

/// A node that stops says so at once, and no client is sent there.
#[test]
fn nobody_is_sent_to_a_node_that_stops() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let one = Node::at(&broker, "memory@stops-one").await;
        let other = Node::at(&broker, "memory@stops-other").await;
        let (third, _caller) = Node::busy(&broker, "memory@stops-third").await;
        other.knows(2).await;
        // It has more sessions than the one that stops.
        let mut clients = Vec::new();
        for number in 0..6 {
            clients.push(client("memory@stops-other", &format!("other{number}"), ClientOptions::new()).await);
        }
        for number in 0..4 {
            clients.push(client("memory@stops-one", &format!("user{number}"), ClientOptions::new()).await);
        }
        tokio::time::sleep(Duration::from_secs(2)).await;

        let began = Instant::now();
        let draining = third.drain(Duration::from_secs(60));
        let is_shown = || {
            let members = other.server.members();
            members.iter().filter(|view| view.is_draining).map(|view| view.address.clone()).collect::<Vec<_>>()
                == [Some("memory@stops-third".to_owned())]
        };
        until("it is shown", is_shown).await;
        assert!(began.elapsed() < Duration::from_millis(200), "not only with the next renewal: {:?}", began.elapsed());

        let report = one.drain(Duration::from_secs(10)).await.expect("no panic");
        // The client of the third one goes to one of the others meanwhile, whichever is there.
        let kept = report.sessions_handed_over + report.sessions_parked;
        assert_eq!((kept, report.sessions_left), (4, 0), "{report:?}");
        let is_there = |number: u32| {
            let sessions = other.server.sessions(&Target::user(format!("user{number}"))).expect("no topic");
            sessions.iter().any(|session| session.connection().is_some())
        };
        until("all are there", || (0..4).all(is_there)).await;
        assert_eq!(third.server.stats().connections, 1, "the one that calls");
        assert!(!draining.is_finished(), "it was there all the time");
        draining.abort();
    });
}

/// Nobody is where the server said: the client comes back to its own address, with back-off.
#[test]
fn a_client_comes_home_if_nobody_is_there() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let one = Node::at(&broker, "memory@home-one").await;
        let other = Node::saying(&broker, "memory@home-other", "memory@home-nobody").await;
        one.knows(1).await;
        let (client, _messages) = client("memory@home-one", "ann", ClientOptions::new()).await;
        until("she has a session", || one.connected() == 1).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let report = one.drain(Duration::from_secs(5)).await.expect("no panic");
        assert_eq!(report.sessions_parked, 1, "{report:?}");

        let mut events = client.events();
        let again = Node::at(&broker, "memory@home-one").await;
        until("she is back", || again.connected() == 1).await;
        assert_eq!(other.connected(), 0);
        assert!(is_restored(&mut events).await, "it is the session that she had");
    });
}

/// The next event is that the client is back.
async fn is_restored(events: &mut ConnectionEvents) -> bool {
    matches!(events.next().await, Some(ConnectionEvent::Restored { .. }))
}

/// A client that is told to ignores what its server says, and so does a client of a list of servers.
#[test]
fn a_client_may_ignore_what_its_server_says() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let one = Node::at(&broker, "memory@ignore-one").await;
        let other = Node::at(&broker, "memory@ignore-other").await;
        one.knows(1).await;
        let options = ClientOptions::new().other_addresses(OtherAddresses::Ignore);
        let (_client, _messages) = client("memory@ignore-one", "ann", options).await;
        let list = Peer2PeerDiscovery::new("memory@ignore-one");
        let options = ClientOptions::new().auth("bob");
        let list = XClient::new("No", FailMode::Failtry, SelectMode::RoundRobin, list, options);
        list.call::<()>("Such", &()).await.expect_err("there is no such method");
        until("both are there", || one.server.stats().connections == 2).await;
        let report = one.drain(Duration::from_secs(5)).await.expect("no panic");
        assert_eq!(report.clients_told, 2, "{report:?}");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(other.server.stats().connections, 0);
        let again = Node::at(&broker, "memory@ignore-one").await;
        until("she is back", || again.connected() == 1).await;
    });
}

/// Of several addresses of a node a client takes one of its own network.
#[test]
fn a_client_takes_an_address_of_its_own_network() {
    testing::run(async {
        let broker = MemoryBroker::new();
        let one = Node::at(&broker, "memory@network-one").await;
        let other = server();
        let cluster = Cluster::new(broker.engine()).address("tcp@127.0.0.1:9").also_at("memory@network-other");
        other.join(cluster).await.expect("the engine works");
        let _listening = other.listen("memory@network-other").await.expect("it is free");
        one.knows(1).await;
        let (_client, _messages) = client("memory@network-one", "ann", ClientOptions::new()).await;
        until("she has a session", || one.connected() == 1).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let report = one.drain(Duration::from_secs(5)).await.expect("no panic");
        assert_eq!((report.clients_told, report.sessions_left), (1, 0), "{report:?}");
        until("she is there", || other.stats().sessions == 1).await;
    });
}

/// Over TLS the server that answers has to have the certificate of the name that the client was made for: a node that has it is
/// reached by its number, and one that has another is not.
#[cfg(feature = "tls")]
#[tokio::test]
async fn tls_asks_for_the_certificate_of_home() {
    use bothways::transport::{
        ConnectOptions, ListenOptions,
        tls::{TlsClient, TlsIdentity, TlsRoots, TlsServer},
    };

    let made = |name: &str| rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
    let (right, wrong) = (made("localhost"), made("127.0.0.1"));
    let both = right.cert.pem() + &wrong.cert.pem();
    let roots = TlsRoots::from_pem(both.as_bytes()).expect("roots");

    for (theirs, is_reached) in [(&right, true), (&wrong, false)] {
        let broker = MemoryBroker::new();
        let mut addresses = Vec::new();
        let mut nodes = Vec::new();
        for certified in [&right, theirs] {
            let pem = (certified.cert.pem(), certified.signing_key.serialize_pem());
            let identity = TlsIdentity::from_pem(pem.0.as_bytes(), pem.1.as_bytes()).expect("an identity");
            let listen = ListenOptions::default().tls(TlsServer::new(identity).expect("a server"));
            let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
            let port = free.local_addr().expect("bound").port();
            drop(free);
            let server = Server::builder().listen_options(listen).build();
            let cluster = Cluster::new(broker.engine()).address(format!("tls@127.0.0.1:{port}"));
            server.join(cluster).await.expect("the engine works");
            let listening = server.listen(&format!("tls@127.0.0.1:{port}")).await.expect("the port is free");
            addresses.push(port);
            nodes.push((server, listening));
        }
        let connect = ConnectOptions::default().tls(TlsClient::new(&roots).expect("a client"));
        let options = ClientOptions::new().connect_options(connect);
        let home = format!("tls@localhost:{}", addresses[0]);
        let (_client, _messages) = Client::bidirectional(&home, options).await.expect("it has the name");
        let (one, other) = (&nodes[0].0, &nodes[1].0);
        until("it is there", || one.stats().connections == 1 && one.members().len() == 2).await;
        one.drain(Duration::from_secs(5), 100).await;
        if is_reached {
            until("it is at the other node", || other.stats().sessions == 1).await;
        } else {
            let until = Instant::now() + Duration::from_secs(1);
            while Instant::now() < until {
                assert_eq!(other.stats().sessions, 0, "it has another certificate");
                tokio::task::yield_now().await;
            }
        }
    }
}
