//! Everything may be called on a thread that has no runtime: it works, or is an error. Nothing panics.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake},
    thread::Thread,
    time::{Duration, Instant},
};

use bothways::{
    CallError, CallOptions, CallPolicy, Caller, Client, ClientOptions, ConnectError, Metadata, Peer2PeerDiscovery,
    Push, QueueBound, Reply, Router, SerializeType, ServeError, Server, Session, SessionOptions, Stage, Target, call,
    caller::RawCall,
    session::TopicOptions,
    transport::{Address, AnySocket, ConnectOptions, ListenOptions, Listener},
    xclient::{FailMode, SelectMode, XClient, XClientOptions},
};
use tokio::runtime::Runtime;

use crate::support::{address, connections, echo, echoing, gate, soon, until};

/// Long enough for whatever is to happen at once, and for nobody to wait for.
const LONG: Duration = Duration::from_secs(60);

/// Over soon.
const SHORT: Duration = Duration::from_millis(20);

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Polls a future on this thread, which has no runtime.
fn outside<F: Future>(future: F) -> F::Output {
    assert!(tokio::runtime::Handle::try_current().is_err());
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let (mut context, mut future) = (Context::from_waker(&waker), std::pin::pin!(future));
    let until = Instant::now() + LONG;
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        assert!(Instant::now() < until, "it takes for ever");
        std::thread::park_timeout(Duration::from_secs(1));
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

fn raw<'a>(service_path: &'a str, service_method: &'a str, timeout: Option<Duration>) -> RawCall<'a> {
    let options = timeout.map_or_else(CallOptions::new, |timeout| CallOptions::new().timeout(timeout));
    RawCall { service_path, service_method, serialize: SerializeType::RAW, payload: "x".into(), options }
}

/// A server, its listening address, and a client with handlers: `C.say` echoes, and `C.hang` never ends.
fn both(runtime: &Runtime) -> (Server, bothways::server::Listening, Client) {
    let news = TopicOptions::new().open();
    let server = echoing()
        .sessions(SessionOptions::new().log(QueueBound::messages(2).bytes(1 << 20)))
        .topic("news", news)
        .expect("a name")
        .build();
    let listening = runtime.block_on(server.listen(&address())).expect("the name is free");
    let handlers = Router::new().handler("C", "say", echo).handler("C", "hang", |_| std::future::pending::<Reply>());
    let options = ClientOptions::new().backoff(LONG, LONG);
    let client = runtime.block_on(Client::with_handlers(listening.address(), options, handlers)).expect("let in");
    (server, listening, client)
}

fn session_of(server: &Server) -> Session {
    let mut sessions = server.sessions(&Target::everyone()).expect("no topic");
    assert_eq!(sessions.len(), 1);
    sessions.remove(0)
}

/// Calls to a session, to a user, and over a connection keep their deadlines.
#[test]
fn a_server_calls_its_clients_from_outside() {
    let runtime = runtime();
    let (server, _listening, _client) = both(&runtime);
    let session = session_of(&server);
    session.bind_user("ann");
    let (user, connection) = (server.user("ann"), server.connections().remove(0));
    for timeout in [None, Some(LONG), Some(Duration::MAX)] {
        let call = || raw("C", "say", timeout);
        assert_eq!(outside(session.call_raw(call())).expect("answered").payload, "x");
        assert_eq!(outside(connection.call_raw(call())).expect("answered").payload, "x");
        for policy in [CallPolicy::First, CallPolicy::MostRecent, CallPolicy::All { quorum: 0 }] {
            let outcome = outside(user.clone().policy(policy).call_raw(call()));
            assert_eq!(outcome.expect("answered").payload, "x");
        }
    }
    let hang = || raw("C", "hang", Some(SHORT));
    for error in [
        outside(session.call_raw(hang())).expect_err("it hangs"),
        outside(connection.call_raw(hang())).expect_err("it hangs"),
        outside(user.call_raw(hang())).expect_err("it hangs"),
    ] {
        assert!(matches!(error, CallError::TimedOut(SHORT)), "{error}");
    }
    let all = user.call_all::<_, ()>("C", "hang", &(), CallOptions::new().timeout(SHORT));
    let outcomes = outside(all).expect("encoded");
    assert!(matches!(outcomes[..], [(_, Err(CallError::TimedOut(SHORT)))]), "{outcomes:?}");

    runtime.block_on(async {
        connection.close();
        until(|| session.connection().is_none()).await;
    });
    let error = outside(session.call_raw(raw("C", "say", Some(SHORT)))).expect_err("its client is away");
    assert!(matches!(error, CallError::NoClient(_)), "{error}");
}

/// Pushes wait for room, and receipts for what becomes of them.
#[test]
fn a_server_pushes_from_outside() {
    let runtime = runtime();
    let (server, _listening, _client) = both(&runtime);
    let (session, connection) = (session_of(&server), server.connections().remove(0));
    let push = Push::new("C", "say", "x");
    let receipt = outside(session.push_within(SHORT, &push)).expect("small");
    assert_eq!(outside(receipt.handled()).at(Stage::Handled), 1);
    let none = Metadata::new();
    outside(connection.send_message_within(SHORT, "C", "say", &none, "x")).expect("there is room");
    outside(connection.push_raw(raw("C", "say", None))).expect("there is room");
    outside(session.push_raw(raw("C", "say", Some(SHORT)))).expect("there is room");
    runtime.block_on(async {
        connection.close();
        until(|| session.connection().is_none()).await;
    });
    assert_eq!(outside(connection.closed()).to_string(), "closed by this side");
    for _ in 0..2 {
        session.push(&push).expect("small");
    }
    let receipt = outside(session.push_within(SHORT, &push)).expect("small");
    assert_eq!(receipt.outcomes().dropped(), 1, "there was no room in time: {receipt:?}");
}

/// All that a client does, and all that an XClient does.
#[test]
fn clients_work_from_outside() {
    let runtime = runtime();
    let (server, listening, client) = both(&runtime);
    let discovery = Peer2PeerDiscovery::new(listening.address());
    let xclient = {
        let _entered = runtime.enter();
        XClient::new("T", FailMode::Failover, SelectMode::RoundRobin, discovery, ClientOptions::new())
    };
    for timeout in [None, Some(LONG)] {
        assert_eq!(outside(client.call_raw(raw("T", "Echo", timeout))).expect("answered").payload, "x");
        for mode in [FailMode::Failover, FailMode::Failfast, FailMode::Failtry, FailMode::Failbackup] {
            let reply = outside(xclient.with_fail_mode(mode).call_raw(raw("T", "Echo", timeout)));
            assert_eq!(reply.expect("answered").payload, "x");
        }
    }
    outside(client.push_raw(raw("T", "Echo", Some(SHORT)))).expect("queued");
    outside(xclient.push_raw(raw("T", "Echo", Some(SHORT)))).expect("queued");
    outside(client.subscribe("news")).expect("a topic");
    outside(client.unsubscribe("news")).expect("no topic");
    assert!(outside(xclient.subscribe("news")).expect("not closed").iter().all(|(_, outcome)| outcome.is_ok()));
    outside(xclient.unsubscribe("news")).expect("no topic");
    let over_it = client.connection().expect("it is up");
    assert_eq!(outside(over_it.call_raw(raw("T", "Echo", Some(LONG)))).expect("answered").payload, "x");

    // Its list is not half taken, and what cannot be had is an error.
    assert_eq!((xclient.servers().len(), xclient.clients().len(), xclient.connections().len()), (1, 1, 1));
    drop(listening);
    server.connections().iter().for_each(bothways::Connection::close);
    runtime.block_on(connections(&server, 0));
    for mode in [FailMode::Failover, FailMode::Failfast, FailMode::Failtry, FailMode::Failbackup] {
        let error = outside(xclient.with_fail_mode(mode).call_raw(raw("T", "Echo", Some(LONG)))).expect_err("gone");
        assert!(error.is_worth_retrying(), "{error}");
    }
    xclient.close();
    client.close();
    assert!(outside(client.call_raw(raw("T", "Echo", Some(LONG)))).is_err());
}

/// Servers of an XClient that is made in a runtime may come to its list from any thread.
#[test]
fn a_list_of_servers_may_change_outside() {
    let runtime = runtime();
    let (_server, listening, _client) = both(&runtime);
    let discovery = bothways::MultipleServersDiscovery::new(Vec::<String>::new());
    let xclient = {
        let _entered = runtime.enter();
        XClient::new("T", FailMode::Failover, SelectMode::RoundRobin, discovery.clone(), ClientOptions::new())
    };
    let error = outside(xclient.call_raw(raw("T", "Echo", Some(SHORT)))).expect_err("nobody is there");
    assert!(matches!(error, CallError::NoServer(_)), "{error}");
    discovery.update([bothways::ServerEntry::new(listening.address())]);
    assert_eq!(outside(xclient.call_raw(raw("T", "Echo", Some(LONG)))).expect("answered").payload, "x");
    assert_eq!((xclient.servers().len(), xclient.clients().len()), (1, 1));
}

/// What needs a runtime of its own says that there is none.
#[test]
fn where_a_runtime_is_missing_is_an_error() {
    let server = echoing().build();
    let no_runtime = |error: &ServeError| matches!(error, ServeError::NoRuntime);
    assert!(outside(server.listen(&address())).is_err_and(|error| no_runtime(&error)));
    assert!(outside(server.serve("tcp@127.0.0.1:0")).is_err_and(|error| no_runtime(&error)));
    let (here, there) = tokio::io::duplex(64);
    assert!(server.take(AnySocket::from_async(there, "pipe")).is_err_and(|error| no_runtime(&error)));
    let free: Address = "tcp@127.0.0.1:0".parse().expect("an address");
    assert!(outside(Listener::bind(&free, &ListenOptions::default())).is_err_and(|error| no_runtime(&error)));

    let no_runtime = |error: &ConnectError| matches!(error, ConnectError::NoRuntime);
    let options = ClientOptions::new;
    assert!(outside(Client::connect("tcp@127.0.0.1:1", options())).is_err_and(|error| no_runtime(&error)));
    assert!(outside(Client::bidirectional("memu@none", options())).is_err_and(|error| no_runtime(&error)));
    let with_handlers = Client::with_handlers("memu@none", options(), Router::new());
    assert!(outside(with_handlers).is_err_and(|error| no_runtime(&error)));
    let over = Client::over(AnySocket::from_async(here, "pipe"), options());
    assert!(outside(over).is_err_and(|error| no_runtime(&error)));
    let plain = ConnectOptions::default();
    assert!(outside(bothways::transport::connect(&free, &plain)).is_err_and(|error| no_runtime(&error)));
}

/// A server is stopped from any thread, whether its runtime is there or not; its hooks run.
#[test]
fn a_server_is_stopped_from_outside() {
    for (drains, is_there) in [(false, true), (true, true), (false, false), (true, false)] {
        let runtime = runtime();
        let hooked = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&hooked);
        let server = echoing()
            .on_shutdown(move || async move { _ = counted.fetch_add(1, Ordering::Relaxed) })
            .on_shutdown(|| async {
                if true {
                    panic!("a hook")
                }
            })
            .build();
        let listening = runtime.block_on(server.listen(&address())).expect("the name is free");
        let client = runtime.block_on(Client::connect(listening.address(), ClientOptions::new())).expect("let in");
        let _runtime = is_there.then_some(runtime);
        let report = match drains {
            true => outside(server.drain(LONG, 100)),
            false => outside(server.shutdown(LONG)),
        };
        assert_eq!(report.clients_told, usize::from(is_there), "{report:?}");
        assert_eq!(report, outside(server.shutdown(LONG)), "the same report again");
        assert_eq!(hooked.load(Ordering::Relaxed), 1);
        assert!(server.connections().is_empty() || !is_there);
        drop(client);
    }
    let never_listened = echoing().build();
    assert_eq!(outside(never_listened.shutdown(LONG)).connections_cut, 0);
}

/// A caller that waits outside when the server's runtime goes is told so, and not left behind.
#[test]
fn a_call_from_outside_ends_with_the_servers_runtime() {
    let (servers, clients) = (runtime(), runtime());
    let server = echoing().build();
    let listening = servers.block_on(server.listen(&address())).expect("the name is free");
    let (handler, mut asked) = gate();
    let handlers = Router::new().handler("C", "wait", handler);
    let connecting = Client::with_handlers(listening.address(), ClientOptions::new(), handlers);
    let client = clients.block_on(connecting).expect("let in");
    let session = session_of(&server);
    let calling = std::thread::spawn({
        let session = session.clone();
        move || outside(session.call_raw(raw("C", "wait", Some(LONG))))
    });
    let asked = clients.block_on(soon(asked.recv())).expect("it was asked");
    drop(servers);
    let error = calling.join().expect("no panic").expect_err("nobody brings the reply");
    assert!(error.may_have_run(), "{error}");
    drop((asked, client));
    let error = outside(session.call_raw(raw("C", "wait", Some(LONG)))).expect_err("nobody can wait for its client");
    assert!(matches!(error, CallError::NoClient(_) | CallError::Closed { .. }), "{error}");
    let push = Push::new("C", "say", "x");
    outside(session.push_within(LONG, &push)).expect("small");
}

/// The time of a call is kept also while a layer waits.
#[test]
fn a_layer_that_waits_outside_ends_in_time() {
    let runtime = runtime();
    let (_server, listening, _client) = both(&runtime);
    let waits = || call::from_fn(|_, _| std::future::pending());
    let options = ClientOptions::new().timeout(SHORT).layer(waits());
    let client = runtime.block_on(Client::connect(listening.address(), options)).expect("let in");
    let many = runtime.block_on(async {
        let servers = Peer2PeerDiscovery::new(listening.address());
        let options = XClientOptions::new().client(ClientOptions::new().timeout(SHORT)).layer(waits());
        XClient::new("T", FailMode::Failfast, SelectMode::RandomSelect, servers, options)
    });
    for error in [outside(client.call_raw(raw("T", "Echo", None))), outside(many.call_raw(raw("T", "Echo", None)))] {
        assert!(matches!(error, Err(CallError::TimedOut(SHORT))), "{error:?}");
    }
}
